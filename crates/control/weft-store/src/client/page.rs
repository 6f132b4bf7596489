//! One page of a list, read straight into objects: a page of pods is megabytes, and the way through a tree of JSON values
//! would cost several times that.

use super::Listed;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Map;
use std::fmt;
use weft_k8s_api::{Kept, KindInfo, Object};

/// One page.
#[derive(Default)]
pub(super) struct Page {
    api_version: String,
    metadata: PageMeta,
    items: Vec<Object>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PageMeta {
    resource_version: String,
    r#continue: String,
}

impl Page {
    /// Reads a page. With `kept`, of each object that, and no managed fields.
    pub(super) fn read(text: &[u8], kept: Option<Kept>) -> Result<Self, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        let page = deserializer.deserialize_map(Fields(kept))?;
        deserializer.end()?;
        Ok(page)
    }

    /// The objects, with their API version and kind filled in.
    pub(super) fn listed(self, kind: &KindInfo) -> Listed {
        let api_version = if self.api_version.is_empty() { kind.api_version() } else { self.api_version };
        let mut items = self.items;
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

/// Reads the fields of a page.
struct Fields(Option<Kept>);

impl<'de> Visitor<'de> for Fields {
    type Value = Page;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of Kubernetes objects")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut fields: M) -> Result<Page, M::Error> {
        let mut page = Page::default();
        while let Some(name) = fields.next_key::<String>()? {
            match name.as_str() {
                "apiVersion" => page.api_version = fields.next_value()?,
                "metadata" => page.metadata = fields.next_value()?,
                "items" => page.items = fields.next_value_seed(Items(self.0))?,
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(page)
    }
}

/// Reads the objects; `null` is none.
struct Items(Option<Kept>);

impl<'de> DeserializeSeed<'de> for Items {
    type Value = Vec<Object>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Object>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items {
    type Value = Vec<Object>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("objects")
    }

    fn visit_unit<E>(self) -> Result<Vec<Object>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Vec<Object>, S::Error> {
        let mut all = Vec::new();
        while let Some(object) = items.next_element_seed(Item(self.0))? {
            all.push(object);
        }
        Ok(all)
    }
}

/// Reads an object whose type may be missing, as in the lists of core kinds.
struct Item(Option<Kept>);

impl<'de> DeserializeSeed<'de> for Item {
    type Value = Object;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Object, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Item {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kubernetes object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut fields: M) -> Result<Object, M::Error> {
        let mut object =
            Object { api_version: String::new(), kind: String::new(), metadata: Default::default(), body: Map::new() };
        while let Some(name) = fields.next_key::<String>()? {
            match (name.as_str(), self.0) {
                ("apiVersion", _) => object.api_version = fields.next_value()?,
                ("kind", _) => object.kind = fields.next_value()?,
                ("metadata", None) => object.metadata = fields.next_value()?,
                ("metadata", Some(_)) => object.metadata = fields.next_value_seed(Metadata)?,
                (_, None) => drop(object.body.insert(name, fields.next_value()?)),
                (_, Some(kept)) => match kept.field(&name) {
                    Some(below) => drop(object.body.insert(name, fields.next_value_seed(below)?)),
                    None => drop(fields.next_value::<IgnoredAny>()?),
                },
            }
        }
        Ok(object)
    }
}

/// Reads metadata without the managed fields, which are often more than all the rest.
struct Metadata;

impl<'de> DeserializeSeed<'de> for Metadata {
    type Value = ObjectMeta;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<ObjectMeta, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Metadata {
    type Value = ObjectMeta;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("metadata of an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, fields: M) -> Result<ObjectMeta, M::Error> {
        ObjectMeta::deserialize(MapAccessDeserializer::new(Unmanaged(fields)))
    }
}

/// Fields but one.
struct Unmanaged<M>(M);

impl<'de, M: MapAccess<'de>> MapAccess<'de> for Unmanaged<M> {
    type Error = M::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, M::Error> {
        while let Some(name) = self.0.next_key::<String>()? {
            if name != "managedFields" {
                return seed.deserialize(name.into_deserializer()).map(Some);
            }
            self.0.next_value::<IgnoredAny>()?;
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, M::Error> {
        self.0.next_value_seed(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use weft_k8s_api::kinds::by_any_name;

    #[test]
    fn lists_of_core_kinds_and_others() {
        let read = |value: Value, kind: &str| {
            let page = Page::read(value.to_string().as_bytes(), None).unwrap();
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
    #[test]
    fn a_part_of_each_object() {
        let pod = json!({
            "metadata": {
                "name": "a", "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}], "labels": {"b": "c"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u"}],
            },
            "spec": {"nodeName": "n", "volumes": [1, {"x": [2]}]}, "status": {"phase": "Running"},
        });
        let text = json!({"items": [pod], "metadata": {"remainingItemCount": 1}}).to_string();
        let read = |kept| {
            let mut listed = Page::read(text.as_bytes(), kept).unwrap().listed(by_any_name("pods").unwrap());
            listed.items.remove(0)
        };
        const SPEC: Kept = Kept::Fields(&[("nodeName", Kept::All)]);
        let part = read(Some(Kept::Fields(&[("spec", SPEC)])));
        assert_eq!(part.body, *json!({"spec": {"nodeName": "n"}}).as_object().unwrap());
        let whole = read(None);
        assert!(whole.metadata.managed_fields.is_some());
        let mut unmanaged = whole.metadata.clone();
        unmanaged.managed_fields = None;
        assert_eq!(part.metadata, unmanaged);
        assert_eq!(read(Some(Kept::All)).body, whole.body);
        assert!(Page::read(b"{\"items\": [{]}", None).is_err());
    }
}
