//! JSON as values of CEL, by the schema that describes it: names that CEL cannot write are escaped, times and lengths of
//! time have their own types, numbers are what the schema says.
//!
//! Source: the Kubernetes documentation, "Common Expression Language in Kubernetes", "Type system integration" and
//! "Escaping".

use base64::Engine;
use kube_cel::cel::objects::{Key, Map};
use kube_cel::cel::{Context, Program, Value as Cel};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// Words that CEL keeps for itself.
const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// The name by which an expression reaches a field; `None` when it cannot.
pub(crate) fn field_name(name: &str) -> Option<String> {
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let first = name.chars().next()?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/');
    if first.is_ascii_digit() || !name.chars().all(allowed) {
        return None;
    }
    let escaped = name.replace("__", "__underscores__").replace('.', "__dot__");
    Some(escaped.replace('-', "__dash__").replace('/', "__slash__"))
}

/// A JSON value; without a schema as it is.
pub(crate) fn from_json(value: &Value, schema: Option<&Value>) -> Cel {
    let word = |name: &str| schema.and_then(|s| s.get(name)).and_then(Value::as_str).unwrap_or_default();
    match value {
        Value::Null => Cel::Null,
        Value::Bool(flag) => Cel::Bool(*flag),
        Value::Number(number) if word("type") == "number" => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(whole), ..) => Cel::Int(whole),
            (_, Some(whole), _) => Cel::UInt(whole),
            // The schema says that it is whole.
            (.., Some(other)) if word("type") == "integer" => Cel::Int(other as i64),
            (.., other) => Cel::Float(other.unwrap_or(f64::NAN)),
        },
        Value::String(text) => from_text(text, word("format")),
        Value::Array(items) => {
            let inner = schema.and_then(|s| s.get("items"));
            Cel::List(Arc::new(items.iter().map(|item| from_json(item, inner)).collect()))
        }
        Value::Object(fields) => {
            let properties = schema.and_then(|s| s.get("properties")).and_then(Value::as_object);
            let others = schema.and_then(|s| s.get("additionalProperties")).filter(|a| a.is_object());
            let mut map = HashMap::with_capacity(fields.len());
            for (name, value) in fields {
                let known = properties.and_then(|p| p.get(name));
                // Names of a schema are escaped, keys that users choose are not.
                let key = known.and_then(|_| field_name(name)).unwrap_or_else(|| name.clone());
                map.insert(Key::String(Arc::new(key)), from_json(value, known.or(others)));
            }
            Cel::Map(Map { map: Arc::new(map) })
        }
    }
}

/// Texts of these formats have a type of their own; one that does not parse stays a text, and rules that compare it fail.
fn from_text(text: &str, format: &str) -> Cel {
    let plain = || Cel::String(Arc::new(text.into()));
    match format {
        "date-time" => read("timestamp", text).unwrap_or_else(plain),
        "date" => read("timestamp", &format!("{text}T00:00:00Z")).unwrap_or_else(plain),
        "duration" => read("duration", text).unwrap_or_else(plain),
        "byte" => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text);
            bytes.map_or_else(|_| plain(), |bytes| Cel::Bytes(Arc::new(bytes)))
        }
        _ => plain(),
    }
}

/// What CEL's own function makes of a text.
fn read(function: &str, text: &str) -> Option<Cel> {
    static TIME: LazyLock<Option<Program>> = LazyLock::new(|| Program::compile("timestamp(text)").ok());
    static LENGTH: LazyLock<Option<Program>> = LazyLock::new(|| Program::compile("duration(text)").ok());
    let program = if function == "timestamp" { &TIME } else { &LENGTH };
    let mut context = Context::default();
    context.add_variable_from_value("text", text.to_string());
    program.as_ref()?.execute(&context).ok()
}

/// What `type()` calls a value.
pub(super) fn type_name(value: &Cel) -> &'static str {
    match value {
        Cel::List(_) => "list",
        Cel::Map(_) => "map",
        Cel::Int(_) => "int",
        Cel::UInt(_) => "uint",
        Cel::Float(_) => "double",
        Cel::String(_) => "string",
        Cel::Bytes(_) => "bytes",
        Cel::Bool(_) => "bool",
        Cel::Null => "null_type",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, want) in [
            ("a", Some("a")),
            ("my_field", Some("my_field")),
            ("my__field", Some("my__underscores__field")),
            ("a.b-c/d", Some("a__dot__b__dash__c__slash__d")),
            ("namespace", Some("__namespace__")),
            ("$ref", None),
            ("1a", None),
        ] {
            assert_eq!(field_name(name).as_deref(), want, "{name}");
        }
    }
}
