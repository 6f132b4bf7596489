//! The functions of templates: Go's own, those of the library that Go's users know (sprig), and Istio's, as far as templates
//! of pods need them. Pure: none reads the environment, a file or the time.

use serde_json::{Map, Value, json};

/// Longest text that a function makes, bytes.
const MAX_TEXT: usize = 1 << 20;

/// All names.
pub(super) const NAMES: &[&str] = &[
    "and",
    "or",
    "not",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "len",
    "index",
    "print",
    "printf",
    "default",
    "coalesce",
    "empty",
    "ternary",
    "quote",
    "squote",
    "trim",
    "trimAll",
    "trimPrefix",
    "trimSuffix",
    "trunc",
    "upper",
    "lower",
    "toLower",
    "replace",
    "contains",
    "hasPrefix",
    "hasSuffix",
    "join",
    "split",
    "list",
    "append",
    "dict",
    "strdict",
    "hasKey",
    "get",
    "int",
    "toString",
    "add",
    "sub",
    "toJson",
    "toJSON",
    "structToJSON",
    "protoToJSON",
    "toYaml",
    "fromJson",
    "fromJSON",
    "indent",
    "nindent",
    "isset",
    "annotation",
    "valueOrDefault",
    "omit",
    "directory",
];

pub(super) fn known(name: &str) -> bool {
    NAMES.contains(&name)
}

/// A value as it is printed.
pub(super) fn text(value: &Value) -> String {
    crate::values::as_text(value)
}

/// Whether a value counts as true: not false, not zero, not empty, not null.
pub(super) fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// Calls a function.
///
/// # Errors
/// What is wrong with the arguments.
pub(super) fn call(name: &str, arguments: &[Value]) -> Result<Value, String> {
    let at =
        |index: usize| arguments.get(index).ok_or_else(|| format!("takes more than {} arguments", arguments.len()));
    let word = |index: usize| at(index).map(text);
    let whole = |index: usize| at(index)?.as_i64().ok_or_else(|| "takes a whole number".to_string());
    Ok(match name {
        "and" => arguments.iter().find(|value| !is_true(value)).or(arguments.last()).cloned().unwrap_or(Value::Null),
        "or" => arguments.iter().find(|value| is_true(value)).or(arguments.last()).cloned().unwrap_or(Value::Null),
        "not" => (!is_true(at(0)?)).into(),
        "eq" => {
            let first = at(0)?;
            at(1)?;
            arguments.iter().skip(1).any(|other| equal(first, other)).into()
        }
        "ne" => (!equal(at(0)?, at(1)?)).into(),
        "lt" | "le" | "gt" | "ge" => compare(name, at(0)?, at(1)?)?.into(),
        "len" => length(at(0)?)?.into(),
        "index" => arguments.iter().skip(1).fold(at(0)?, |value, key| item(value, key)).clone(),
        "print" | "toString" => arguments.iter().map(text).collect::<String>().into(),
        "printf" => printf(&word(0)?, arguments.get(1..).unwrap_or_default())?.into(),
        // Piped: the value comes last.
        "default" => at(usize::from(is_true(at(1).unwrap_or(&Value::Null))))?.clone(),
        "valueOrDefault" => (if matches!(at(0)?, Value::Null) || at(0)? == "" { at(1)? } else { at(0)? }).clone(),
        "coalesce" => arguments.iter().find(|value| is_true(value)).cloned().unwrap_or(Value::Null),
        "empty" => (!is_true(at(0)?)).into(),
        "ternary" => at(if is_true(at(2)?) { 0 } else { 1 })?.clone(),
        "quote" => joined(arguments, |text| Value::from(text).to_string()).into(),
        "squote" => joined(arguments, |text| format!("'{text}'")).into(),
        "trim" => word(0)?.trim().into(),
        "trimAll" => {
            let cut: Vec<char> = word(0)?.chars().collect();
            word(1)?.trim_matches(cut.as_slice()).into()
        }
        "trimPrefix" => word(1)?.strip_prefix(&word(0)?).map_or(word(1)?, str::to_string).into(),
        "trimSuffix" => word(1)?.strip_suffix(&word(0)?).map_or(word(1)?, str::to_string).into(),
        "trunc" => truncated(whole(0)?, &word(1)?).into(),
        "upper" => word(0)?.to_uppercase().into(),
        "lower" | "toLower" => word(0)?.to_lowercase().into(),
        "replace" => bounded(word(2)?.replace(&word(0)?, &word(1)?))?.into(),
        "contains" => word(1)?.contains(&word(0)?).into(),
        "hasPrefix" => word(1)?.starts_with(&word(0)?).into(),
        "hasSuffix" => word(1)?.ends_with(&word(0)?).into(),
        "directory" => word(0)?.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/")).into(),
        "int" => number(at(0)?).into(),
        "add" => arguments.iter().map(number).fold(0_i64, i64::wrapping_add).into(),
        "sub" => number(at(0)?).wrapping_sub(number(at(1)?)).into(),
        "indent" => bounded(indented(whole(0)?, &word(1)?))?.into(),
        "nindent" => bounded(format!("\n{}", indented(whole(0)?, &word(1)?)))?.into(),
        "annotation" => match at(0)?["annotations"].get(word(1)?) {
            Some(value) => text(value).into(),
            None => word(2)?.into(),
        },
        _ => collections(name, arguments)?,
    })
}

/// Functions of lists and maps, and of their texts.
fn collections(name: &str, arguments: &[Value]) -> Result<Value, String> {
    let at =
        |index: usize| arguments.get(index).ok_or_else(|| format!("takes more than {} arguments", arguments.len()));
    let word = |index: usize| at(index).map(text);
    Ok(match name {
        "join" => {
            let parts: Vec<String> = at(1)?.as_array().into_iter().flatten().map(text).collect();
            bounded(parts.join(&word(0)?))?.into()
        }
        "split" => word(1)?.split(&word(0)?).map(Value::from).collect(),
        "list" => arguments.to_vec().into(),
        "append" => {
            let mut items = at(0)?.as_array().cloned().unwrap_or_default();
            items.push(at(1)?.clone());
            items.into()
        }
        "dict" | "strdict" => {
            let pairs = arguments.chunks(2);
            let field = |pair: &[Value]| {
                (pair.first().map(text).unwrap_or_default(), pair.get(1).cloned().unwrap_or("".into()))
            };
            Value::Object(pairs.map(field).collect())
        }
        "hasKey" | "isset" => at(0)?.get(word(1)?).is_some().into(),
        "get" => at(0)?.get(word(1)?).cloned().unwrap_or("".into()),
        "omit" => {
            let gone: Vec<String> = arguments.iter().skip(1).map(text).collect();
            let fields: Map<String, Value> = at(0)?.as_object().cloned().unwrap_or_default();
            Value::Object(fields.into_iter().filter(|(name, _)| !gone.contains(name)).collect())
        }
        "toJson" | "toJSON" | "structToJSON" | "protoToJSON" => match at(0)? {
            Value::Null => "{}".into(),
            value => bounded(value.to_string())?.into(),
        },
        "toYaml" => bounded(weft_k8s_api::yaml::write(at(0)?)?.trim_end().to_string())?.into(),
        "fromJson" | "fromJSON" => serde_json::from_str(&word(0)?).map_err(|error| format!("is not JSON: {error}"))?,
        other => return Err(format!("the function {other} does not exist")),
    })
}

fn bounded(text: String) -> Result<String, String> {
    if text.len() > MAX_TEXT { Err(format!("makes a text of more than {MAX_TEXT} bytes")) } else { Ok(text) }
}

fn joined(values: &[Value], write: impl Fn(String) -> String) -> String {
    let shown = values.iter().filter(|value| !value.is_null()).map(|value| write(text(value)));
    shown.collect::<Vec<_>>().join(" ")
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        // Nothing is what prints as nothing.
        (Value::Null, Value::String(text)) | (Value::String(text), Value::Null) => text.is_empty(),
        _ => a == b,
    }
}

fn compare(name: &str, a: &Value, b: &Value) -> Result<bool, String> {
    let order = match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => None,
    };
    let order = order.ok_or("compares two numbers or two strings")?;
    Ok(match name {
        "lt" => order.is_lt(),
        "le" => order.is_le(),
        "gt" => order.is_gt(),
        _ => order.is_ge(),
    })
}

fn length(value: &Value) -> Result<usize, String> {
    match value {
        Value::Null => Ok(0),
        Value::String(text) => Ok(text.len()),
        Value::Array(items) => Ok(items.len()),
        Value::Object(fields) => Ok(fields.len()),
        _ => Err("takes a string, a list or a map".into()),
    }
}

fn item<'a>(value: &'a Value, key: &Value) -> &'a Value {
    let found = match key {
        Value::Number(number) => number.as_u64().and_then(|n| usize::try_from(n).ok()).and_then(|at| value.get(at)),
        key => value.get(text(key)),
    };
    found.unwrap_or(&Value::Null)
}

fn number(value: &Value) -> i64 {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().map(|f| f as i64)).unwrap_or(0),
        Value::String(text) => text.trim().parse().unwrap_or(0),
        Value::Bool(on) => i64::from(*on),
        _ => 0,
    }
}

/// The first characters; the last ones for a negative count.
fn truncated(count: i64, text: &str) -> String {
    let wanted = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
    let length = text.chars().count();
    match count {
        0.. => text.chars().take(wanted).collect(),
        _ => text.chars().skip(length.saturating_sub(wanted)).collect(),
    }
}

fn indented(count: i64, text: &str) -> String {
    let blanks = " ".repeat(usize::try_from(count.clamp(0, 64)).unwrap_or(0));
    text.lines().map(|line| format!("{blanks}{line}")).collect::<Vec<_>>().join("\n")
}

/// `%s`, `%v`, `%d`, `%t`, `%q` and `%%`.
fn printf(format: &str, arguments: &[Value]) -> Result<String, String> {
    let (mut out, mut chars, mut next) = (String::new(), format.chars(), arguments.iter());
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut take = || next.next().ok_or("has more verbs than arguments");
        match chars.next() {
            Some('%') => out.push('%'),
            Some('s' | 'v' | 'd' | 't') => out.push_str(&text(take()?)),
            Some('q') => out.push_str(&json!(text(take()?)).to_string()),
            other => {
                return Err(format!("the verb %{} is not supported; use %s, %v, %d, %t or %q", other.unwrap_or(' ')));
            }
        }
    }
    bounded(out)
}
