//! `google.protobuf.Struct` and metadata: provenance of Weft, facts in Istio's spelling.

use super::core::Metadata;
use prost_types::value::Kind;
use weft_core::Provenance;
use weft_proto::{Struct, Value};

/// Filter-metadata key under which generated messages carry the object they came from.
pub const PROVENANCE_KEY: &str = "weft";
/// Filter-metadata key of facts about services and endpoints.
pub(crate) const ISTIO_KEY: &str = "istio";

/// Text.
pub(crate) fn text(value: impl Into<String>) -> Value {
    Value { kind: Some(Kind::StringValue(value.into())) }
}

/// Boolean.
pub(crate) fn boolean(value: bool) -> Value {
    Value { kind: Some(Kind::BoolValue(value)) }
}

/// Fields.
pub(crate) fn object(fields: Struct) -> Value {
    Value { kind: Some(Kind::StructValue(fields)) }
}

/// List.
pub(crate) fn list(values: Vec<Value>) -> Value {
    Value { kind: Some(Kind::ListValue(prost_types::ListValue { values })) }
}

/// Fields by name.
pub(crate) fn fields<const N: usize>(entries: [(&str, Value); N]) -> Struct {
    Struct { fields: entries.into_iter().map(|(name, value)| (name.to_string(), value)).collect() }
}

/// Metadata that says which object, and which place in it, a message came from. Empty parts are left out.
pub(crate) fn provenance(origin: &Provenance) -> Metadata {
    let mut metadata = Metadata::default();
    add_provenance(&mut metadata, origin);
    metadata
}

/// Adds [`provenance`] to metadata that holds other facts.
pub(crate) fn add_provenance(metadata: &mut Metadata, origin: &Provenance) {
    let parts =
        [("kind", &origin.kind), ("namespace", &origin.namespace), ("name", &origin.name), ("path", &origin.path)];
    let known = parts.into_iter().filter(|(_, part)| !part.is_empty());
    let fields = Struct { fields: known.map(|(key, part)| (key.to_string(), text(part))).collect() };
    metadata.filter_metadata.insert(PROVENANCE_KEY.into(), fields);
}

/// Reads the origin back out of metadata.
pub fn read_provenance(metadata: &Metadata) -> Option<Provenance> {
    let fields = &metadata.filter_metadata.get(PROVENANCE_KEY)?.fields;
    let part = |key: &str| match fields.get(key).and_then(|v| v.kind.as_ref()) {
        Some(Kind::StringValue(text)) => text.clone(),
        _ => String::new(),
    };
    Some(Provenance { kind: part("kind"), namespace: part("namespace"), name: part("name"), path: part("path") })
}

/// `Struct` from a JSON object; anything else gives no fields.
pub(crate) fn json_to_struct(json: &serde_json::Value) -> Struct {
    let fields = json.as_object().into_iter().flatten();
    Struct { fields: fields.map(|(key, value)| (key.clone(), json_to_value(value))).collect() }
}

fn json_to_value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Json::String(value) => Kind::StringValue(value.clone()),
        Json::Array(items) => return list(items.iter().map(json_to_value).collect()),
        Json::Object(_) => Kind::StructValue(json_to_struct(json)),
    };
    Value { kind: Some(kind) }
}

/// JSON object from a `Struct`.
pub(crate) fn struct_to_json(fields: &Struct) -> serde_json::Value {
    fields.fields.iter().map(|(key, value)| (key.clone(), value_to_json(value))).collect()
}

fn value_to_json(value: &Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(v)) => Json::Bool(*v),
        Some(Kind::NumberValue(v)) => serde_json::Number::from_f64(*v).map_or(Json::Null, Json::Number),
        Some(Kind::StringValue(v)) => Json::String(v.clone()),
        Some(Kind::StructValue(v)) => struct_to_json(v),
        Some(Kind::ListValue(v)) => v.values.iter().map(value_to_json).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provenance_round_trip() {
        let origin = Provenance::object("VirtualService", "default", "reviews").at("spec.http[0]");
        assert_eq!(read_provenance(&provenance(&origin)), Some(origin));
        assert_eq!(read_provenance(&Metadata::default()), None);
    }

    #[test]
    fn json_round_trip() {
        let json = serde_json::json!({"a": [1.5, "x", null, true], "b": {"c": "d"}});
        assert_eq!(struct_to_json(&json_to_struct(&json)), json);
    }
}
