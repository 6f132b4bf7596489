//! Why JSON does not fit a message: the path of the innermost field, and what is wrong there. Asked only after a failure.

use super::{JsonError, message_of};
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, Kind, MessageDescriptor};
use serde_json::Value;

/// What is wrong with `value` as a message of that type; `None` when nothing is.
pub(super) fn why(schema: &MessageDescriptor, value: &Value, options: &DeserializeOptions) -> Option<JsonError> {
    inside(schema, value, "", options).or_else(|| message(schema, value, "", options))
}

/// The first packed message in the fields of `value` that is wrong by itself, innermost first. Only fields that the schema has
/// for packed messages are looked into: in free data (`Struct`) an `@type` is a word like others. The depth is that of the text,
/// which its parser has bounded.
fn inside(schema: &MessageDescriptor, value: &Value, path: &str, options: &DeserializeOptions) -> Option<JsonError> {
    value.as_object()?.iter().find_map(|(name, value)| {
        let field = schema.get_field_by_json_name(name).or_else(|| schema.get_field_by_name(name))?;
        let path = join(path, name);
        match (field.kind(), value) {
            (Kind::Message(entry), Value::Object(map)) if field.is_map() => {
                let Kind::Message(schema) = entry.map_entry_value_field().kind() else { return None };
                map.iter().find_map(|(key, value)| one(&schema, value, &join(&path, key), options))
            }
            (Kind::Message(schema), Value::Array(items)) if field.is_list() => {
                let mut items = items.iter().enumerate();
                items.find_map(|(i, item)| one(&schema, item, &format!("{path}[{i}]"), options))
            }
            (Kind::Message(schema), value) => one(&schema, value, &path, options),
            _ => None,
        }
    })
}

/// A message of a field, which may be a packed one.
fn one(schema: &MessageDescriptor, value: &Value, path: &str, options: &DeserializeOptions) -> Option<JsonError> {
    match schema.full_name() {
        "google.protobuf.Any" => packed(schema.parent_pool(), value.get("@type")?, value, path, options),
        // They have a JSON form of their own.
        name if name.starts_with("google.protobuf.") => None,
        _ => inside(schema, value, path, options),
    }
}

/// A message that is packed under its type URL.
fn packed(
    pool: &DescriptorPool,
    url: &Value,
    value: &Value,
    path: &str,
    options: &DeserializeOptions,
) -> Option<JsonError> {
    let at = join(path, "@type");
    let Some(url) = url.as_str() else {
        return Some(field(
            at,
            "must be text, such as type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        ));
    };
    let name = message_of(url);
    let Some(schema) = pool.get_message_by_name(name) else {
        let hint = if name.contains(".v2.") || name.contains("v2alpha") { "; use the type of API v3" } else { "" };
        return Some(field(at, format!("{name} is no message of Envoy's API v3 that Weft knows{hint}")));
    };
    // Those have a JSON form of their own, beside @type as `value`.
    if name.starts_with("google.protobuf.") {
        return None;
    }
    let mut fields = value.clone();
    fields.as_object_mut()?.shift_remove("@type");
    inside(&schema, &fields, path, options).or_else(|| message(&schema, &fields, path, options))
}

fn message(schema: &MessageDescriptor, value: &Value, path: &str, options: &DeserializeOptions) -> Option<JsonError> {
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    let error = DynamicMessage::deserialize_with_options(schema.clone(), tracked, options).err()?;
    let inner = track.path().to_string();
    let at = if inner == "." { path.to_string() } else { join(path, &inner) };
    let reason = error.to_string();
    // The library names the field in its text, and ends the path before it.
    let unknown = reason.strip_prefix("unrecognized field name '").and_then(|rest| rest.split_once('\''));
    Some(match unknown {
        Some((name, _)) => field(join(&at, name), format!("is no field of {}", innermost(schema, &inner))),
        None if reason.contains("@type") => {
            field(at, "@type is missing: the type of the message, such as type.googleapis.com/envoy.extensions.…")
        }
        None => field(at, reason),
    })
}

/// The message at a path of fields, as far as the path can be followed.
fn innermost(schema: &MessageDescriptor, path: &str) -> String {
    let mut at = schema.clone();
    for name in path.split('.').map(|step| step.split('[').next().unwrap_or_default()) {
        let field = at.get_field_by_name(name).or_else(|| at.get_field_by_json_name(name));
        match field.map(|field| field.kind()) {
            Some(Kind::Message(next)) => at = next,
            _ => break,
        }
    }
    at.full_name().to_string()
}

fn field(path: String, reason: impl Into<String>) -> JsonError {
    JsonError::Field { path: if path.is_empty() { "the whole".into() } else { path }, reason: reason.into() }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}
