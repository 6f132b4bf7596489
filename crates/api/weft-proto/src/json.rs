//! Canonical protobuf JSON, with every `Any` expanded under `@type`.
//!
//! The schema costs about 11 MB, so it lives only as long as somebody converts ([`pool`]): a proxy that has read its bootstrap
//! file or answered a config dump gives it back. An `Any` of a type that even the whole of Envoy's API does not have is kept as
//! its type URL and base64 bytes.

mod explain;

use base64::Engine as _;
use prost::{Message, Name};
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, ReflectMessage, SerializeOptions,
};
use serde_json::Value;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

static POOL: Mutex<Weak<Pool>> = Mutex::new(Weak::new());

/// The schema of every message that is generated, and, when something names more, of all of Envoy's API.
#[derive(Debug)]
pub struct Pool {
    used: DescriptorPool,
    all: OnceLock<DescriptorPool>,
}

/// The schema; whoever makes many conversions holds it meanwhile, so that it is decoded once (some 10 ms).
pub fn pool() -> Arc<Pool> {
    let mut kept = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    kept.upgrade().unwrap_or_else(|| {
        // The bytes are generated beside the code: a failure here is a broken build, and the pool is left empty, which makes
        // every conversion return an error that names the type.
        let bytes = include_bytes!("generated/descriptors.bin").as_slice();
        let used = DescriptorPool::decode(bytes).unwrap_or_default();
        let pool = Arc::new(Pool { used, all: OnceLock::new() });
        *kept = Arc::downgrade(&pool);
        pool
    })
}

impl Pool {
    fn all(&self) -> &DescriptorPool {
        self.all.get_or_init(|| {
            let mut all = self.used.clone();
            // As above: without these bytes the messages that are generated are still known.
            let rest = include_bytes!("generated/extensions.bin").as_slice();
            all.decode_file_descriptor_set(rest).ok();
            all
        })
    }

    /// The smaller pool that has every type that the JSON names, as far as there is one.
    fn of(&self, value: &Value) -> &DescriptorPool {
        if names_only(value, &self.used) { &self.used } else { self.all() }
    }
}

/// Whether every `@type` in the JSON is in the pool.
fn names_only(value: &Value, pool: &DescriptorPool) -> bool {
    match value {
        Value::Object(map) => {
            let known = |url: &str| pool.get_message_by_name(message_of(url)).is_some();
            map.get("@type").and_then(Value::as_str).is_none_or(known) && map.values().all(|v| names_only(v, pool))
        }
        Value::Array(items) => items.iter().all(|item| names_only(item, pool)),
        _ => true,
    }
}

/// The full name of a message in its type URL.
fn message_of(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or_default()
}

/// Why JSON and a message could not be turned into one another.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The pool has no such message.
    #[error("unknown message type {0}")]
    UnknownType(String),
    /// The JSON does not fit the message: where, as a path of fields, and why.
    #[error("{path}: {reason}")]
    Field {
        /// Such as `static_resources.listeners[0].name`.
        path: String,
        /// What is wrong there.
        reason: String,
    },
    /// The JSON does not fit the message.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// The message's own bytes do not decode.
    #[error("{0}")]
    Decode(#[from] prost::DecodeError),
    /// The YAML text does not parse.
    #[error("{0}")]
    Yaml(String),
}

/// What becomes of a field that the schema does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownFields {
    /// It is an error that names it.
    Refused,
    /// It is left out, as by somebody who is older than the field.
    LeftOut,
}

fn descriptor(pool: &DescriptorPool, name: &str) -> Result<MessageDescriptor, JsonError> {
    pool.get_message_by_name(name).ok_or_else(|| JsonError::UnknownType(name.to_string()))
}

/// Writes `message` as canonical JSON; `proto_names` keeps field names as the schema spells them (Envoy's own dumps do).
///
/// # Errors
/// When the message is not of the generated schema.
pub fn to_json<M: Message + Name>(message: &M, proto_names: bool) -> Result<Value, JsonError> {
    let pool = pool();
    let options = SerializeOptions::new().use_proto_field_name(proto_names).skip_default_fields(true);
    let (name, bytes) = (M::full_name(), message.encode_to_vec());
    let dynamic = |pool: &DescriptorPool| -> Result<DynamicMessage, JsonError> {
        let mut dynamic = DynamicMessage::new(descriptor(pool, &name)?);
        dynamic.merge(bytes.as_slice())?;
        Ok(dynamic)
    };
    if let Ok(value) = dynamic(&pool.used)?.serialize_with_options(serde_json::value::Serializer, &options) {
        return Ok(value);
    }
    let mut dynamic = dynamic(pool.all())?;
    hide_unknown_anys(&mut dynamic);
    Ok(dynamic.serialize_with_options(serde_json::value::Serializer, &options)?)
}

/// Reads canonical JSON into a message; a field that the schema does not have is an error that names it.
///
/// # Errors
/// When the JSON does not fit `M`.
pub fn from_json<M: Message + Name + Default>(value: &Value) -> Result<M, JsonError> {
    from_json_with(value, UnknownFields::Refused)
}

/// Reads canonical JSON into a message.
///
/// # Errors
/// When the JSON does not fit `M`.
pub fn from_json_with<M: Message + Name + Default>(value: &Value, unknown: UnknownFields) -> Result<M, JsonError> {
    let options = DeserializeOptions::new().deny_unknown_fields(unknown == UnknownFields::Refused);
    let pool = pool();
    let expanded = expanded(value);
    let schema = descriptor(pool.of(&expanded), &M::full_name())?;
    let dynamic = DynamicMessage::deserialize_with_options(schema.clone(), &*expanded, &options)
        .map_err(|error| explain::why(&schema, &expanded, &options).unwrap_or(JsonError::Json(error)))?;
    Ok(M::decode(crate::canonical::ordered(&dynamic.encode_to_vec(), &schema).as_slice())?)
}

/// The types that carry a message as plain JSON beside its type URL (`udpa.type.v1.TypedStruct` and its successor).
const TYPED_STRUCTS: [&str; 2] =
    ["type.googleapis.com/udpa.type.v1.TypedStruct", "type.googleapis.com/xds.type.v3.TypedStruct"];

/// The value with the message in place of each `TypedStruct` that carries one. One of a type that nobody knows stays what it is.
pub fn expanded(value: &Value) -> std::borrow::Cow<'_, Value> {
    if !has_typed_struct(value) {
        return std::borrow::Cow::Borrowed(value);
    }
    let mut value = value.clone();
    expand(&mut value, &pool());
    std::borrow::Cow::Owned(value)
}

fn is_typed_struct(value: &Value) -> bool {
    value.get("@type").and_then(Value::as_str).is_some_and(|name| TYPED_STRUCTS.contains(&name))
}

fn has_typed_struct(value: &Value) -> bool {
    match value {
        Value::Object(map) => is_typed_struct(value) || map.values().any(has_typed_struct),
        Value::Array(items) => items.iter().any(has_typed_struct),
        _ => false,
    }
}

fn expand(value: &mut Value, pool: &Pool) {
    if is_typed_struct(value) {
        let known = |name: &str| pool.all().get_message_by_name(message_of(name)).is_some();
        let name = value.get("type_url").or_else(|| value.get("typeUrl"));
        let name = name.filter(|name| name.as_str().is_some_and(known)).cloned();
        let inner = value.get("value").cloned().unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        if let (Some(name @ Value::String(_)), Value::Object(mut fields)) = (name, inner) {
            fields.insert("@type".into(), name);
            *value = Value::Object(fields);
        }
    }
    match value {
        Value::Object(map) => map.values_mut().for_each(|value| expand(value, pool)),
        Value::Array(items) => items.iter_mut().for_each(|value| expand(value, pool)),
        _ => {}
    }
}

/// Reads YAML (or JSON, which is YAML) into a message: Envoy's bootstrap files.
///
/// # Errors
/// When the text is not YAML, or does not fit `M`.
pub fn from_yaml<M: Message + Name + Default>(text: &str) -> Result<M, JsonError> {
    // What begins like JSON is read as JSON, which is quicker; YAML's flow style begins so too.
    let as_json = text.trim_start().starts_with('{').then(|| serde_json::from_str::<Value>(text));
    let value: Value = match as_json {
        Some(Ok(value)) => value,
        _ => serde_saphyr::from_str_with_options(text, yaml_options()).map_err(|e| JsonError::Yaml(e.to_string()))?,
    };
    from_json(&value)
}

/// Bounds of a YAML text: room for ten thousand services, and an end to what grows by its own references.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 16_000_000,
            max_nodes: 8_000_000,
            max_total_scalar_bytes: 256 * 1024 * 1024,
            max_depth: 128,
        },
        with_snippet: false,
    }
}

/// Replaces each `Any` that cannot be expanded by a `Struct` that carries its type URL and bytes.
fn hide_unknown_anys(message: &mut DynamicMessage) {
    let fields: Vec<_> = message.fields().map(|(field, _)| field).collect();
    for field in fields {
        hide_in_value(message.get_field_mut(&field));
    }
}

fn hide_in_value(value: &mut prost_reflect::Value) {
    match value {
        prost_reflect::Value::Message(inner) if inner.descriptor().full_name() == "google.protobuf.Any" => {
            hide_in_any(inner);
        }
        prost_reflect::Value::Message(inner) => hide_unknown_anys(inner),
        prost_reflect::Value::List(items) => items.iter_mut().for_each(hide_in_value),
        prost_reflect::Value::Map(entries) => entries.values_mut().for_each(hide_in_value),
        _ => {}
    }
}

fn hide_in_any(any: &mut DynamicMessage) {
    let Ok(plain) = any.transcode_to::<prost_types::Any>() else { return };
    let known = descriptor(any.descriptor().parent_pool(), message_of(&plain.type_url))
        .ok()
        .and_then(|d| DynamicMessage::decode(d, plain.value.as_slice()).ok());
    let shown = match known {
        Some(mut inner) => {
            hide_unknown_anys(&mut inner);
            prost_types::Any { type_url: plain.type_url, value: inner.encode_to_vec() }
        }
        None => opaque(&plain),
    };
    any.transcode_from(&shown).ok();
}

/// An `Any` that holds a `Struct` saying what it stands for.
fn opaque(any: &prost_types::Any) -> prost_types::Any {
    let text = |s: String| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(s)) };
    let fields = [
        ("type_url".to_string(), text(any.type_url.clone())),
        ("value".to_string(), text(base64::engine::general_purpose::STANDARD.encode(&any.value))),
    ];
    let shown = prost_types::Struct { fields: fields.into_iter().collect() };
    prost_types::Any {
        type_url: "type.googleapis.com/google.protobuf.Struct".to_string(),
        value: shown.encode_to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::config::listener::v3::{Listener, ListenerFilter, listener_filter};
    use crate::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;

    #[test]
    fn any_is_expanded_and_read_back() {
        let filter = ListenerFilter {
            name: "envoy.filters.listener.original_dst".into(),
            config_type: Some(listener_filter::ConfigType::TypedConfig(crate::pack(&OriginalDst::default()))),
            ..Default::default()
        };
        let listener = Listener { name: "l".into(), listener_filters: vec![filter], ..Default::default() };
        let json = to_json(&listener, true).unwrap();
        assert_eq!(
            json["listener_filters"][0]["typed_config"]["@type"],
            "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst"
        );
        assert_eq!(from_json::<Listener>(&json).unwrap(), listener);
    }

    #[test]
    fn unknown_any_is_shown_as_bytes() {
        let any = prost_types::Any { type_url: "type.googleapis.com/no.such.Type".into(), value: vec![1, 2] };
        let filter = ListenerFilter {
            name: "x".into(),
            config_type: Some(listener_filter::ConfigType::TypedConfig(any)),
            ..Default::default()
        };
        let json = to_json(&Listener { listener_filters: vec![filter], ..Default::default() }, true).unwrap();
        assert!(json.to_string().contains("no.such.Type"), "{json}");
    }

    #[test]
    fn a_large_file_is_read() {
        let filter = |index: usize| {
            format!(
                "{{name: filter-{index}, typed_config: {{\"@type\": \
            type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}}}}"
            )
        };
        let filters: Vec<String> = (0..60_000).map(filter).collect();
        let yaml = format!("name: x\nlistener_filters: [{}]\n", filters.join(", "));
        assert_eq!(from_yaml::<Listener>(&yaml).unwrap().listener_filters.len(), 60_000);
    }

    /// What is wrong is told once, with the path of the innermost field.
    #[test]
    fn errors_say_where() {
        let filter =
            |inner: &str| format!("name: x\nlistener_filters:\n- name: a\n- name: b\n  typed_config: {{{inner}}}\n");
        let typed = |name: &str, more: &str| filter(&format!("\"@type\": type.googleapis.com/{name}, {more}"));
        let lua = "envoy.extensions.filters.http.lua.v3.Lua";
        let csrf = "envoy.extensions.filters.http.csrf.v3.CsrfPolicy";
        let table = [
            ("name: x\nnme: y\n".to_string(), "nme: is no field of envoy.config.listener.v3.Listener"),
            ("name: 7\n".to_string(), "name: invalid type: integer `7`"),
            (
                "listener_filters: [{name: a}, {nme: b}]\n".to_string(),
                "listener_filters[1].nme: is no field of envoy.config.listener.v3.ListenerFilter",
            ),
            ("traffic_direction: SIDEWAYS\n".to_string(), "traffic_direction: unrecognized enum value 'SIDEWAYS'"),
            (
                typed("no.such.Type", ""),
                "listener_filters[1].typed_config.@type: no.such.Type is no message of Envoy's API v3",
            ),
            (typed("envoy.config.filter.http.lua.v2.Lua", ""), "use the type of API v3"),
            (filter("inline_code: x"), "listener_filters[1].typed_config: @type is missing"),
            (
                typed(lua, "inline_cod: x"),
                "listener_filters[1].typed_config.inline_cod: is no field of envoy.extensions.filters.http.lua.v3.Lua",
            ),
            (
                typed(csrf, "filter_enabled: {default_value: {denominator: HUNDREDS}}"),
                "listener_filters[1].typed_config.filter_enabled.default_value.denominator: unrecognized enum value 'HUNDREDS'",
            ),
            // What stands in free data is nobody's type; a message in a map or a list in a packed message is.
            (
                "name: 7\nmetadata: {filter_metadata: {of.mine: {'@type': mine/no.such.Type, deeper: [{'@type': 7}]}}}\n".into(),
                "name: invalid type: integer `7`",
            ),
            (
                "metadata: {typed_filter_metadata: {a: {'@type': type.googleapis.com/no.such.Type}}}\n".into(),
                "metadata.typed_filter_metadata.a.@type: no.such.Type is no message of Envoy's API v3",
            ),
            (
                typed(
                    "envoy.extensions.filters.http.composite.v3.ExecuteFilterAction",
                    "typed_config: {name: x, typed_config: {\"@type\": type.googleapis.com/no.such.Type}}",
                ),
                "listener_filters[1].typed_config.typed_config.typed_config.@type: no.such.Type is no message",
            ),
        ];
        for (yaml, wanted) in table {
            let error = from_yaml::<Listener>(&yaml).unwrap_err().to_string();
            assert!(error.contains(wanted), "{yaml}: {error}, not {wanted}");
            assert!(error.matches(wanted).count() == 1, "{error}");
        }
    }

    #[test]
    fn types_that_are_not_generated_are_read_and_written_too() {
        let yaml = "name: x\nlistener_filters:\n- name: a\n  typed_config: {\"@type\": \
                    type.googleapis.com/envoy.extensions.filters.http.csrf.v3.CsrfPolicy, additional_origins: [{exact: a}]}\n";
        let listener = from_yaml::<Listener>(yaml).unwrap();
        let json = to_json(&listener, true).unwrap();
        assert_eq!(json["listener_filters"][0]["typed_config"]["additional_origins"][0]["exact"], "a", "{json}");
    }

    #[test]
    fn unknown_fields_are_left_out_where_that_is_wanted() {
        let value = serde_json::json!({"name": "x", "of_the_future": {"a": [1]}});
        let listener: Listener = from_json_with(&value, UnknownFields::LeftOut).unwrap();
        assert_eq!(listener, Listener { name: "x".into(), ..Default::default() });
    }

    /// What Weft cannot look into is passed on as it is.
    #[test]
    fn typed_structs_of_unknown_types_stay() {
        let carried = |name: &str| {
            serde_json::json!({"@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
                "type_url": format!("type.googleapis.com/{name}"), "value": {"inline_code": "x"}})
        };
        let unknown = carried("no.such.Type");
        assert_eq!(*expanded(&unknown), unknown);
        let filter = serde_json::json!({"name": "x", "typed_config": unknown});
        let read: ListenerFilter = from_json(&filter).unwrap();
        assert_eq!(to_json(&read, true).unwrap(), filter);
        let known = carried("envoy.extensions.filters.http.lua.v3.Lua");
        assert_eq!(expanded(&known)["inline_code"], "x");
    }
}
