//! Structural schemas: removing what they do not know, filling defaults, checking values. Pure.
//!
//! Source: the Kubernetes documentation, "Extend the Kubernetes API with CustomResourceDefinitions", and the validation
//! keywords of JSON Schema that it allows.

use crate::status::FieldError;
use regex::Regex;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Errors reported for one object.
const MAX_ERRORS: usize = 64;
/// Compiled patterns that are kept.
const MAX_PATTERNS: usize = 1024;
/// Size of one compiled pattern, in bytes.
const PATTERN_SIZE: usize = 1 << 20;

pub(super) fn flag(schema: &Value, name: &str) -> bool {
    schema.get(name).and_then(Value::as_bool).unwrap_or(false)
}

pub(super) fn word<'a>(schema: &'a Value, name: &str) -> &'a str {
    schema.get(name).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn list<'a>(schema: &'a Value, name: &str) -> &'a [Value] {
    schema.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

/// Removes the fields of a whole object's body that the schema does not have; their paths are added to `unknown`.
pub(crate) fn prune_root(body: &mut Value, schema: &Value, unknown: &mut Vec<String>) {
    prune(body, schema, "", unknown);
}

fn prune(value: &mut Value, schema: &Value, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(fields) => prune_object(fields, schema, path, unknown),
        Value::Array(items) => {
            if let Some(inner) = schema.get("items") {
                for (at, item) in items.iter_mut().enumerate() {
                    prune(item, inner, &format!("{path}[{at}]"), unknown);
                }
            }
        }
        _ => {}
    }
}

fn prune_object(fields: &mut Map<String, Value>, schema: &Value, path: &str, unknown: &mut Vec<String>) {
    let keep_all = flag(schema, "x-kubernetes-preserve-unknown-fields");
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    let properties = schema.get("properties").and_then(Value::as_object);
    let additional = schema.get("additionalProperties").filter(|a| **a != Value::Bool(false));
    let mut gone = Vec::new();
    for (name, value) in fields.iter_mut() {
        let place = join(path, name);
        if let Some(inner) = properties.and_then(|p| p.get(name)) {
            prune(value, inner, &place, unknown);
        } else if embedded && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
        } else if let Some(inner) = additional {
            prune(value, inner, &place, unknown);
        } else if !keep_all {
            gone.push(name.clone());
            unknown.push(place);
        }
    }
    for name in gone {
        fields.shift_remove(&name);
    }
}

/// Fills the defaults of the schema.
pub(crate) fn default(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
                // A null where none may be is as if nothing had been said.
                if fields.get(name).is_some_and(Value::is_null) && !flag(inner, "nullable") {
                    fields.shift_remove(name);
                }
                if let Some(default) = inner.get("default").filter(|_| !fields.contains_key(name)) {
                    fields.insert(name.clone(), default.clone());
                }
                if let Some(value) = fields.get_mut(name) {
                    self::default(value, inner);
                }
            }
            if let Some(inner) = schema.get("additionalProperties").filter(|a| a.is_object()) {
                let known = schema.get("properties").and_then(Value::as_object);
                for (_, value) in fields.iter_mut().filter(|(name, _)| known.is_none_or(|k| !k.contains_key(*name))) {
                    self::default(value, inner);
                }
            }
        }
        Value::Array(items) => {
            if let Some(inner) = schema.get("items") {
                items.iter_mut().for_each(|item| self::default(item, inner));
            }
        }
        _ => {}
    }
}

/// Checks a value; errors are added up to a bound.
pub(crate) fn validate(value: &Value, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if errors.len() >= MAX_ERRORS {
        return;
    }
    if value.is_null() && flag(schema, "nullable") {
        return;
    }
    let mut add = |message: String| errors.push(FieldError { field: path.into(), message });
    if let Some(message) = wrong_type(value, schema, path) {
        return add(message);
    }
    let allowed = list(schema, "enum");
    if !allowed.is_empty() && !allowed.contains(value) {
        let all: Vec<String> = allowed.iter().map(Value::to_string).collect();
        add(format!("Unsupported value: {value}: supported values: {}", all.join(", ")));
    }
    match value {
        Value::String(text) => {
            if let Some(max) = limit(schema, "maxLength").filter(|max| text.chars().count() > *max) {
                add(format!("Too long: may not be more than {max} bytes"));
            }
            text_rules(text, schema).into_iter().for_each(|why| add(invalid(value, path, &why)));
        }
        Value::Number(_) => number_rules(value, schema).into_iter().for_each(|why| add(invalid(value, path, &why))),
        Value::Array(items) => array(items, schema, path, errors),
        Value::Object(fields) => object(fields, schema, path, errors),
        _ => {}
    }
    combinations(value, schema, path, errors);
}

fn invalid(value: &Value, path: &str, why: &str) -> String {
    let shown: String = value.to_string().chars().take(100).collect();
    let place = if path.is_empty() { "the object" } else { path };
    format!("Invalid value: {shown}: {place} in body {why}")
}

fn wrong_type(value: &Value, schema: &Value, path: &str) -> Option<String> {
    if flag(schema, "x-kubernetes-int-or-string") {
        let fits = value.is_string() || value.is_i64() || value.is_u64();
        return (!fits).then(|| mistyped(value, path, "integer,string"));
    }
    let fits = match word(schema, "type") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0),
        "number" => value.is_number(),
        _ => true,
    };
    let wanted = word(schema, "type");
    (!fits).then(|| mistyped(value, path, wanted))
}

fn mistyped(value: &Value, path: &str, wanted: &str) -> String {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let place = if path.is_empty() { "the object" } else { path };
    format!("Invalid value: {found:?}: {place} in body must be of type {wanted}: {found:?}")
}

fn limit(schema: &Value, name: &str) -> Option<usize> {
    schema.get(name).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok())
}

fn text_rules(text: &str, schema: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let length = text.chars().count();
    if let Some(min) = limit(schema, "minLength").filter(|min| length < *min) {
        wrong.push(format!("should be at least {min} chars long"));
    }
    let pattern = word(schema, "pattern");
    if !pattern.is_empty() && !compiled(pattern).is_some_and(|p| p.is_match(text)) {
        wrong.push(format!("should match '{pattern}'"));
    }
    let format = word(schema, "format");
    if !fits_format(text, format) {
        wrong.push(format!("must be of type {format}: {text:?}"));
    }
    wrong
}

fn fits_format(text: &str, format: &str) -> bool {
    match format {
        "date-time" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "uri" => text.parse::<http::Uri>().is_ok(),
        "byte" => {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD.decode(text).is_ok()
        }
        "cidr" => text.split_once('/').is_some_and(|(address, bits)| {
            let widest = address.parse::<std::net::IpAddr>().map_or(0, |ip| if ip.is_ipv4() { 32 } else { 128 });
            widest > 0 && bits.parse::<u8>().is_ok_and(|bits| bits <= widest)
        }),
        "duration" => compiled(DURATION).is_some_and(|p| p.is_match(text)),
        "uuid" => text.len() == 36 && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-'),
        _ => true,
    }
}

/// Lengths of time as Go writes them, and in words.
const DURATION: &str =
    r"^-?(0|((\d+(\.\d*)?|\.\d+)\s*(ns|us|µs|ms|s|m|h|d|w|seconds?|minutes?|hours?|days?|weeks?))+)$";

/// A pattern, compiled once.
fn compiled(pattern: &str) -> Option<Arc<Regex>> {
    static PATTERNS: Mutex<Option<HashMap<String, Option<Arc<Regex>>>>> = Mutex::new(None);
    let mut patterns = PATTERNS.lock().unwrap_or_else(PoisonError::into_inner);
    let patterns = patterns.get_or_insert_default();
    if let Some(known) = patterns.get(pattern) {
        return known.clone();
    }
    if patterns.len() >= MAX_PATTERNS {
        patterns.clear();
    }
    let made = regex::RegexBuilder::new(pattern).size_limit(PATTERN_SIZE).build().ok().map(Arc::new);
    patterns.insert(pattern.into(), made.clone());
    made
}

fn number_rules(value: &Value, schema: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let Some(number) = value.as_f64() else { return wrong };
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    if let Some(max) = bound("maximum") {
        let exclusive = flag(schema, "exclusiveMaximum");
        if number > max || (exclusive && number >= max) {
            wrong.push(format!("should be less than{} {max}", if exclusive { "" } else { " or equal to" }));
        }
    }
    if let Some(min) = bound("minimum") {
        let exclusive = flag(schema, "exclusiveMinimum");
        if number < min || (exclusive && number <= min) {
            wrong.push(format!("should be greater than{} {min}", if exclusive { "" } else { " or equal to" }));
        }
    }
    if let Some(step) = bound("multipleOf").filter(|s| *s > 0.0)
        && (number / step).fract().abs() > 1e-9
    {
        wrong.push(format!("should be a multiple of {step}"));
    }
    if word(schema, "format") == "int32" && value.as_i64().is_none_or(|n| i32::try_from(n).is_err()) {
        wrong.push("must be of type int32".into());
    }
    wrong
}

fn array(items: &[Value], schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let count = items.len();
    let mut add = |message: String| errors.push(FieldError { field: path.into(), message });
    if let Some(max) = limit(schema, "maxItems").filter(|max| count > *max) {
        add(format!("Too many: {count}: must have at most {max} items"));
    }
    if let Some(min) = limit(schema, "minItems").filter(|min| count < *min) {
        add(format!("Invalid value: {count}: {path} in body should have at least {min} items"));
    }
    let keys: Vec<&str> = list(schema, "x-kubernetes-list-map-keys").iter().filter_map(Value::as_str).collect();
    let unique = flag(schema, "uniqueItems") || word(schema, "x-kubernetes-list-type") == "set";
    let identity = |item: &Value| -> Option<String> {
        if unique {
            return Some(item.to_string());
        }
        let parts = keys.iter().map(|key| item.get(*key).map(Value::to_string).unwrap_or_default());
        (!keys.is_empty()).then(|| parts.collect::<Vec<_>>().join("\u{0}"))
    };
    let mut seen = std::collections::HashSet::new();
    for (at, item) in items.iter().enumerate() {
        if identity(item).is_some_and(|identity| !seen.insert(identity)) {
            let shown: Map<String, Value> =
                keys.iter().filter_map(|key| Some(((*key).to_string(), item.get(*key)?.clone()))).collect();
            let shown = if unique { item.clone() } else { Value::Object(shown) };
            errors.push(FieldError { field: format!("{path}[{at}]"), message: format!("Duplicate value: {shown}") });
        }
        if let Some(inner) = schema.get("items") {
            validate(item, inner, &format!("{path}[{at}]"), errors);
        }
    }
}

fn object(fields: &Map<String, Value>, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let count = fields.len();
    for name in list(schema, "required").iter().filter_map(Value::as_str) {
        if fields.get(name).is_none() {
            errors.push(FieldError { field: join(path, name), message: "Required value".into() });
        }
    }
    let mut add = |message: String| errors.push(FieldError { field: path.into(), message });
    if let Some(max) = limit(schema, "maxProperties").filter(|max| count > *max) {
        add(format!("Too many: {count}: must have at most {max} items"));
    }
    if let Some(min) = limit(schema, "minProperties").filter(|min| count < *min) {
        add(format!("Invalid value: {count}: should have at least {min} properties"));
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    let additional = schema.get("additionalProperties").filter(|a| a.is_object());
    for (name, value) in fields {
        let inner = properties.and_then(|p| p.get(name)).or(additional);
        if let Some(inner) = inner {
            validate(value, inner, &join(path, name), errors);
        }
    }
}

fn combinations(value: &Value, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let fits = |inner: &Value| {
        let mut found = Vec::new();
        validate(value, inner, path, &mut found);
        found.is_empty()
    };
    for inner in list(schema, "allOf") {
        validate(value, inner, path, errors);
    }
    let mut add = |why: &str| errors.push(FieldError { field: path.into(), message: invalid(value, path, why) });
    let any = list(schema, "anyOf");
    if !any.is_empty() && !any.iter().any(fits) {
        add("must validate at least one schema (anyOf)");
    }
    let one = list(schema, "oneOf");
    if !one.is_empty() && one.iter().filter(|inner| fits(inner)).count() != 1 {
        add("must validate one and only one schema (oneOf)");
    }
    if schema.get("not").is_some_and(fits) {
        add("must not validate the schema (not)");
    }
}

/// What is wrong with a schema itself: place and reason.
pub(crate) fn check_schema(schema: &Value, path: &str, wrong: &mut Vec<(String, String)>) {
    if wrong.len() >= MAX_ERRORS {
        return;
    }
    let kind = word(schema, "type");
    let free = flag(schema, "x-kubernetes-int-or-string") || flag(schema, "x-kubernetes-preserve-unknown-fields");
    if kind.is_empty() && !free {
        wrong.push((format!("{path}.type"), "Required value: must not be empty for specified object fields".into()));
    } else if !matches!(kind, "" | "object" | "array" | "string" | "boolean" | "integer" | "number") {
        wrong.push((format!("{path}.type"), format!("Unsupported value: {kind:?}")));
    }
    let pattern = word(schema, "pattern");
    if !pattern.is_empty() && compiled(pattern).is_none() {
        wrong.push((format!("{path}.pattern"), format!("{pattern:?} is no regular expression")));
    }
    if schema.get("$ref").is_some() {
        wrong.push((format!("{path}.$ref"), "Forbidden: references are not allowed in structural schemas".into()));
    }
    if let Some(default) = schema.get("default") {
        let mut found = Vec::new();
        validate(default, schema, "", &mut found);
        if let Some(first) = found.first() {
            wrong.push((format!("{path}.default"), first.message.clone()));
        }
    }
    for (name, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        check_schema(inner, &format!("{path}.properties[{name}]"), wrong);
    }
    if let Some(inner) = schema.get("items") {
        check_schema(inner, &format!("{path}.items"), wrong);
    } else if kind == "array" {
        wrong.push((format!("{path}.items"), "Required value: must be specified".into()));
    }
    if let Some(inner) = schema.get("additionalProperties").filter(|a| a.is_object()) {
        check_schema(inner, &format!("{path}.additionalProperties"), wrong);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Value {
        json!({"type": "object", "properties": {"spec": {
            "type": "object", "required": ["host"], "properties": {
                "host": {"type": "string", "minLength": 1, "maxLength": 5, "pattern": "^[a-z]+$"},
                "replicas": {"type": "integer", "format": "int32", "minimum": 0, "default": 2},
                "mode": {"type": "string", "enum": ["A", "B"]},
                "port": {"x-kubernetes-int-or-string": true},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 1},
                "rules": {"type": "array", "maxItems": 2, "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"], "items": {"type": "object", "properties": {
                        "name": {"type": "string"}, "weight": {"type": "integer", "default": 1},
                    }}},
                "note": {"type": "string", "nullable": true},
                "one": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                    "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
            },
        }}})
    }

    #[test]
    fn pruning_and_defaults() {
        let mut value = json!({"spec": {
            "host": "a", "typo": 1, "free": {"x": 1}, "labels": {"k": "v"}, "rules": [{"name": "r", "y": 1}],
        }, "other": 1});
        let mut unknown = Vec::new();
        prune_root(&mut value, &schema(), &mut unknown);
        assert_eq!(unknown, ["spec.typo", "spec.rules[0].y", "other"]);
        default(&mut value, &schema());
        let want = json!({"spec": {
            "host": "a", "free": {"x": 1}, "labels": {"k": "v"}, "rules": [{"name": "r", "weight": 1}], "replicas": 2,
        }});
        assert_eq!(value, want);
    }

    #[test]
    fn values() {
        let table = [
            (json!({"host": "a"}), None),
            (json!({}), Some("spec.host: Required value")),
            (json!({"host": "ABC"}), Some("should match")),
            (json!({"host": "abcdef"}), Some("Too long: may not be more than 5 bytes")),
            (json!({"host": 1}), Some("must be of type string: \"integer\"")),
            (json!({"host": "a", "replicas": -1}), Some("greater than or equal to 0")),
            (json!({"host": "a", "replicas": 1.5}), Some("must be of type integer")),
            (json!({"host": "a", "replicas": 5_000_000_000_i64}), Some("int32")),
            (json!({"host": "a", "mode": "C"}), Some("supported values: \"A\", \"B\"")),
            (json!({"host": "a", "port": 1}), None),
            (json!({"host": "a", "port": "http"}), None),
            (json!({"host": "a", "port": true}), Some("integer,string")),
            (json!({"host": "a", "labels": {"a": "1", "b": "2"}}), Some("at most 1 items")),
            (json!({"host": "a", "rules": [{"name": "x"}, {"name": "x"}]}), Some("Duplicate value")),
            (json!({"host": "a", "rules": [{}, {}, {}]}), Some("at most 2 items")),
            (json!({"host": "a", "note": null}), None),
            (json!({"host": null}), Some("must be of type string: \"null\"")),
            (json!({"host": "a", "one": {"a": "1"}}), None),
            (json!({"host": "a", "one": {"a": "1", "b": "1"}}), Some("one and only one")),
        ];
        for (spec, want) in table {
            let mut errors = Vec::new();
            validate(&json!({"spec": spec}), &schema(), "", &mut errors);
            let text: Vec<String> = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
            match want {
                None => assert!(text.is_empty(), "{spec}: {text:?}"),
                Some(want) => assert!(text.iter().any(|t| t.contains(want)), "{spec}: {text:?}"),
            }
        }
    }

    #[test]
    fn schemas() {
        let mut wrong = Vec::new();
        check_schema(&schema(), "s", &mut wrong);
        assert_eq!(wrong, []);
        for (schema, want) in [
            (json!({"type": "object", "properties": {"a": {}}}), "s.properties[a].type"),
            (json!({"type": "array"}), "s.items"),
            (json!({"type": "string", "pattern": "["}), "s.pattern"),
            (json!({"type": "string", "default": 1}), "s.default"),
            (json!({"type": "object", "$ref": "#/x"}), "s.$ref"),
        ] {
            let mut wrong = Vec::new();
            check_schema(&schema, "s", &mut wrong);
            assert!(wrong.iter().any(|(place, _)| place == want), "{schema}: {wrong:?}");
        }
    }
}
