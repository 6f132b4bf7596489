//! One page of a list, read straight into objects: a page of pods is megabytes, and the way through a tree of JSON values
//! would cost several times that.

use super::Listed;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;
use weft_k8s_api::{KindInfo, Object};

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Page {
    api_version: String,
    metadata: PageMeta,
    items: Option<Vec<Item>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PageMeta {
    resource_version: String,
    r#continue: String,
}

/// An object whose type may be missing, as in the lists of core kinds.
struct Item(Object);

impl Page {
    /// The objects, with their API version and kind filled in.
    pub(super) fn listed(self, kind: &KindInfo) -> Listed {
        let api_version = if self.api_version.is_empty() { kind.api_version() } else { self.api_version };
        let mut items: Vec<Object> = self.items.unwrap_or_default().into_iter().map(|item| item.0).collect();
        for object in &mut items {
            if object.api_version.is_empty() {
                object.api_version.clone_from(&api_version);
            }
            if object.kind.is_empty() {
                object.kind = kind.kind.to_string();
            }
        }
        let token = Some(self.metadata.r#continue).filter(|token| !token.is_empty());
        Listed { items, resource_version: self.metadata.resource_version, continue_token: token }
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kubernetes object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut fields: M) -> Result<Item, M::Error> {
        let mut object =
            Object { api_version: String::new(), kind: String::new(), metadata: Default::default(), body: Map::new() };
        while let Some(name) = fields.next_key::<String>()? {
            match name.as_str() {
                "apiVersion" => object.api_version = fields.next_value()?,
                "kind" => object.kind = fields.next_value()?,
                "metadata" => object.metadata = fields.next_value()?,
                _ => drop(object.body.insert(name, fields.next_value::<Value>()?)),
            }
        }
        Ok(Item(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use weft_k8s_api::kinds::by_any_name;

    #[test]
    fn lists_of_core_kinds_and_others() {
        let read = |value: Value, kind: &str| {
            let page: Page = serde_json::from_str(&value.to_string()).unwrap();
            page.listed(by_any_name(kind).unwrap())
        };
        let pods = read(
            json!({
                "kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "7", "continue": "x"},
                "items": [{"metadata": {"name": "a", "labels": {"b": "c"}}, "spec": {"nodeName": "n"}, "status": null}],
            }),
            "pods",
        );
        assert_eq!((pods.resource_version.as_str(), pods.continue_token.as_deref()), ("7", Some("x")));
        let pod = &pods.items[0];
        assert_eq!((pod.api_version.as_str(), pod.kind.as_str(), pod.label("b")), ("v1", "Pod", Some("c")));
        assert_eq!(pod.body, *json!({"spec": {"nodeName": "n"}, "status": null}).as_object().unwrap());
        let rules = read(
            json!({
                "apiVersion": "networking.istio.io/v1beta1", "kind": "VirtualServiceList", "metadata": {},
                "items": [{"apiVersion": "networking.istio.io/v1beta1", "kind": "VirtualService", "metadata": {}}],
            }),
            "vs",
        );
        assert_eq!(rules.items[0].version(), "v1beta1");
        assert_eq!(rules.continue_token, None);
        assert!(read(json!({"items": null}), "pods").items.is_empty());
    }
}
