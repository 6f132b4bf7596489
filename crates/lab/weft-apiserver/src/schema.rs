//! What the server knows of the types of an object, whoever defined them: Kubernetes' own structs, the schema of a custom
//! kind, or nothing. Pure.

use crate::types::{Field, Merge, Message, Shape, message, of_kind, plain};
use serde_json::Value;
use weft_k8s_api::KindInfo;

/// A type inside an object.
#[derive(Clone, Copy)]
pub(crate) enum Type<'a> {
    /// A struct of Kubernetes; owned as a whole or by field.
    Struct(&'static Message, bool),
    /// A list of Kubernetes.
    List(&'static Field),
    /// A map of Kubernetes.
    Map(&'static Field),
    /// A schema of a definition.
    Schema(&'a Value),
    /// A whole object of a defined kind.
    Root(&'a Value),
    /// A plain value.
    Leaf,
    /// Structs by field, lists as a whole.
    Unknown,
}

/// How a list is merged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lists<'a> {
    Atomic,
    Set,
    Keys(Vec<&'a str>),
}

impl<'a> Type<'a> {
    /// The type of an object of a kind; `schema` is that of a definition.
    pub(crate) fn of(kind: &KindInfo, version: &str, schema: Option<&'a Value>) -> Self {
        if let Some(schema) = schema {
            return Self::Root(schema);
        }
        match of_kind(kind.group, version, kind.kind) {
            Some(found) => Self::Struct(found, false),
            None => Self::Root(&Value::Null),
        }
    }

    fn of_field(field: &'static Field) -> Self {
        match field.shape {
            Shape::List => Self::List(field),
            Shape::Map => Self::Map(field),
            Shape::One => Self::of_item(field),
        }
    }

    fn of_item(field: &'static Field) -> Self {
        match field.message() {
            Some(inner) if plain(inner.name).is_none() => {
                let atomic = inner.atomic || (field.shape == Shape::One && field.merge == Merge::Atomic);
                Self::Struct(inner, atomic)
            }
            _ => Self::Leaf,
        }
    }

    /// The type of a field.
    pub(crate) fn field(self, name: &str) -> Self {
        match self {
            Self::Struct(known, _) => known.field(name).map_or(Self::Unknown, Self::of_field),
            Self::Map(field) => Self::of_item(field),
            Self::Root(schema) => match name {
                "metadata" => message("meta.v1.ObjectMeta").map_or(Self::Unknown, |m| Self::Struct(m, false)),
                _ => Self::Schema(schema).field(name),
            },
            Self::Schema(schema) => {
                let named = schema.get("properties").and_then(|p| p.get(name));
                let found = named.or_else(|| schema.get("additionalProperties").filter(|a| a.is_object()));
                found.map_or(Self::Unknown, Self::Schema)
            }
            Self::List(_) | Self::Leaf | Self::Unknown => Self::Unknown,
        }
    }

    /// The type of a list's items.
    pub(crate) fn item(self) -> Self {
        match self {
            Self::List(field) => Self::of_item(field),
            Self::Schema(schema) => schema.get("items").map_or(Self::Unknown, Self::Schema),
            _ => Self::Unknown,
        }
    }

    /// How server-side apply merges a list of this type.
    pub(crate) fn lists(self) -> Lists<'a> {
        match self {
            Self::List(field) => match &field.merge {
                Merge::Keys(keys) => Lists::Keys(keys.clone()),
                Merge::Set => Lists::Set,
                _ => Lists::Atomic,
            },
            Self::Schema(schema) => match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
                Some("set") => Lists::Set,
                Some("map") => {
                    let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
                    Lists::Keys(keys.into_iter().flatten().filter_map(Value::as_str).collect())
                }
                _ => Lists::Atomic,
            },
            _ => Lists::Atomic,
        }
    }

    /// Whether server-side apply owns a map or struct of this type as a whole.
    pub(crate) fn is_atomic(self) -> bool {
        match self {
            Self::Struct(_, atomic) => atomic,
            Self::Map(field) => field.merge == Merge::Atomic,
            Self::Schema(schema) => schema.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic"),
            Self::Leaf => true,
            _ => false,
        }
    }

    /// The value that a list's key has when an item leaves it out.
    pub(crate) fn key_default(self, key: &str) -> Option<Value> {
        match self {
            // The only such key of Kubernetes' own kinds.
            Self::Struct(..) if key == "protocol" => Some("TCP".into()),
            Self::Schema(schema) => schema.get("properties")?.get(key)?.get("default").cloned(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use weft_k8s_api::kinds::by_any_name;

    #[test]
    fn types() {
        let pod = Type::of(by_any_name("pods").unwrap(), "v1", None);
        let containers = pod.field("spec").field("containers");
        assert_eq!(containers.lists(), Lists::Keys(vec!["name"]));
        assert_eq!(containers.item().field("ports").lists(), Lists::Keys(vec!["containerPort", "protocol"]));
        assert_eq!(containers.item().field("command").lists(), Lists::Atomic);
        assert_eq!(pod.field("metadata").field("finalizers").lists(), Lists::Set);
        assert!(pod.field("spec").field("nodeSelector").is_atomic());
        assert!(!pod.field("metadata").field("labels").is_atomic());
        let schema = json!({"properties": {"spec": {"properties": {
            "rules": {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {}},
            "whole": {"x-kubernetes-map-type": "atomic"},
        }}}});
        let route = Type::of(by_any_name("vs").unwrap(), "v1", Some(&schema));
        assert_eq!(route.field("spec").field("rules").lists(), Lists::Keys(vec!["name"]));
        assert!(route.field("spec").field("whole").is_atomic());
        assert_eq!(route.field("metadata").field("finalizers").lists(), Lists::Set);
        assert_eq!(Type::of(by_any_name("vs").unwrap(), "v1", None).field("spec").field("http").lists(), Lists::Atomic);
    }
}
