//! Protobuf bodies of Kubernetes' clients as JSON. Only reading: every client that sends protobuf takes JSON in answer.
//!
//! A body is the four bytes `k8s\0` and a `runtime.Unknown` that names the kind and carries the object. Source: "Kubernetes API
//! Concepts", "Kubernetes Protobuf encoding"; the wire format is protobuf's own.

use super::{Base, Field, Message, Plain, Shape, message, of_kind, plain};
use base64::Engine;
use serde_json::{Map, Value, json};

/// The content type of such bodies.
pub(crate) const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";
/// Deepest nesting of structs.
const MAX_DEPTH: usize = 64;

/// Reads a whole body.
///
/// # Errors
/// A sentence that says what is wrong.
pub(crate) fn read(body: &[u8]) -> Result<Value, String> {
    let unknown = body.strip_prefix(MAGIC).ok_or("the body does not begin with Kubernetes' protobuf mark")?;

    let (mut kind, mut raw): (Map<String, Value>, &[u8]) = (Map::new(), &[]);
    for item in items(unknown) {
        match item? {
            (1, Wire::Bytes(bytes)) => {
                let types = message("runtime.TypeMeta").ok_or("no table of types")?;
                kind = fields(bytes, types, 0)?;
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }

    let text = |name: &str| kind.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
    let (api_version, name) = (text("apiVersion"), text("kind"));
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
    let known = of_kind(group, version, &name)
        .ok_or_else(|| format!("{name} of {api_version} is not known as protobuf here; send it as JSON"))?;
    let mut object = Map::new();
    object.insert("apiVersion".into(), api_version.clone().into());
    object.insert("kind".into(), name.into());
    object.extend(fields(raw, known, 0)?);
    Ok(Value::Object(object))
}

/// A field's value on the wire.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Double(f64),
}

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or("the body ends inside a number")?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number is longer than ten bytes".into())
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], String> {
    let length = usize::try_from(length).map_err(|_| "a field is longer than the body")?;
    let (head, rest) = bytes.split_at_checked(length).ok_or("a field is longer than the body")?;
    *bytes = rest;
    Ok(head)
}

/// The fields of a message, in their order.
fn items(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u32, Wire<'_>), String>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let mut next = || {
            let tag = varint(&mut bytes)?;
            let number = u32::try_from(tag >> 3).map_err(|_| "a field's number is too large")?;
            let wire = match tag & 7 {
                0 => Wire::Number(varint(&mut bytes)?),
                1 => {
                    let eight = take(&mut bytes, 8)?.try_into().map_err(|_| "eight bytes")?;
                    Wire::Double(f64::from_le_bytes(eight))
                }
                2 => {
                    let length = varint(&mut bytes)?;
                    Wire::Bytes(take(&mut bytes, length)?)
                }
                5 => {
                    let four = take(&mut bytes, 4)?.try_into().map_err(|_| "four bytes")?;
                    Wire::Double(f64::from(f32::from_le_bytes(four)))
                }
                other => return Err(format!("wire type {other} is not used by Kubernetes")),
            };
            Ok((number, wire))
        };
        let item = next();
        if item.is_err() {
            bytes = &[];
        }
        Some(item)
    })
}

fn fields(bytes: &[u8], known: &'static Message, depth: usize) -> Result<Map<String, Value>, String> {
    if depth > MAX_DEPTH {
        return Err(format!("the object is nested deeper than {MAX_DEPTH} levels"));
    }
    let mut object = Map::new();
    for item in items(bytes) {
        let (number, wire) = item?;
        let Some(field) = known.fields.iter().find(|f| f.number == number) else { continue };
        let at = |e: String| format!("{}: {e}", field.name);
        match field.shape {
            Shape::One if field.inline => {
                if let (Wire::Bytes(bytes), Some(embedded)) = (&wire, field.message()) {
                    object.extend(fields(bytes, embedded, depth + 1)?);
                }
            }
            Shape::One => {
                let value = value(field, &wire, depth).map_err(at)?;
                // Go writes the zero of everything that is not a pointer; in JSON it is left out.
                if field.pointer || !is_zero(&value) {
                    object.insert(field.name.into(), value);
                }
            }
            Shape::List => {
                let value = value(field, &wire, depth).map_err(at)?;
                if let Value::Array(list) = object.entry(field.name).or_insert_with(|| json!([])) {
                    list.push(value);
                }
            }
            Shape::Map => {
                let Wire::Bytes(entry) = wire else { return Err(at("a map is expected".into())) };
                let (name, value) = map_entry(field, entry, depth).map_err(at)?;
                if let Value::Object(map) = object.entry(field.name).or_insert_with(|| json!({})) {
                    map.insert(name, value);
                }
            }
        }
    }
    Ok(object)
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) => false,
    }
}

fn map_entry(field: &Field, entry: &[u8], depth: usize) -> Result<(String, Value), String> {
    let (mut name, mut found) = (String::new(), None);
    for item in items(entry) {
        match item? {
            (1, Wire::Bytes(bytes)) => name = text(bytes)?,
            (2, wire) => found = Some(value(field, &wire, depth)?),
            _ => {}
        }
    }
    let empty = || match field.base {
        Base::Message(_) => value(field, &Wire::Bytes(&[]), depth),
        _ => Ok(Value::String(String::new())),
    };
    Ok((name, found.map_or_else(empty, Ok)?))
}

fn text(bytes: &[u8]) -> Result<String, String> {
    std::str::from_utf8(bytes).map(str::to_string).map_err(|_| "the text is not UTF-8".into())
}

fn value(field: &Field, wire: &Wire<'_>, depth: usize) -> Result<Value, String> {
    Ok(match (field.base, wire) {
        (Base::Text, Wire::Bytes(bytes)) => text(bytes)?.into(),
        (Base::Bytes, Wire::Bytes(bytes)) => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
        (Base::Bool, Wire::Number(number)) => (*number != 0).into(),
        // Negative numbers are ten bytes of two's complement.
        (Base::Integer, Wire::Number(number)) => number.cast_signed().into(),
        (Base::Double, Wire::Double(number)) => {
            serde_json::Number::from_f64(*number).map_or(Value::Null, Value::Number)
        }
        (Base::Message(name), Wire::Bytes(bytes)) => match plain(name) {
            Some(plain) => plain_value(plain, bytes, depth)?,
            None => {
                let inner = message(name).ok_or_else(|| format!("{name} is not known"))?;
                Value::Object(fields(bytes, inner, depth + 1)?)
            }
        },
        _ => return Err("another wire type than the field's".into()),
    })
}

fn number(bytes: &[u8], wanted: u32) -> Result<i64, String> {
    for item in items(bytes) {
        if let (found, Wire::Number(number)) = item?
            && found == wanted
        {
            return Ok(number.cast_signed());
        }
    }
    Ok(0)
}

fn bytes_of(bytes: &[u8], wanted: u32) -> Result<Vec<&[u8]>, String> {
    let mut all = Vec::new();
    for item in items(bytes) {
        if let (found, Wire::Bytes(bytes)) = item?
            && found == wanted
        {
            all.push(bytes);
        }
    }
    Ok(all)
}

fn plain_value(kind: Plain, bytes: &[u8], depth: usize) -> Result<Value, String> {
    let first = |wanted| bytes_of(bytes, wanted).map(|all| all.into_iter().next());
    let schema = |bytes: &[u8]| {
        let schema = message("apiextensions.v1.JSONSchemaProps").ok_or("no table of types")?;
        fields(bytes, schema, depth + 1).map(Value::Object)
    };
    Ok(match kind {
        Plain::Time | Plain::MicroTime if bytes.is_empty() => Value::Null,
        Plain::Time => time(number(bytes, 1)?, 0)?,
        Plain::MicroTime => time(number(bytes, 1)?, number(bytes, 2)?)?,
        Plain::Seconds => format!("{}ns", number(bytes, 1)?).into(),
        Plain::Quantity => text(first(1)?.unwrap_or_default())?.into(),
        Plain::IntOrString if number(bytes, 1)? == 1 => text(first(3)?.unwrap_or_default())?.into(),
        Plain::IntOrString => number(bytes, 2)?.into(),
        Plain::Json => match first(1)?.filter(|raw| !raw.is_empty()) {
            Some(raw) => serde_json::from_slice(raw).map_err(|e| format!("the raw value is not JSON: {e}"))?,
            None => Value::Null,
        },
        Plain::Words => words(bytes, 1)?,
        Plain::SchemaOrBool => match first(2)? {
            Some(bytes) => schema(bytes)?,
            None => (number(bytes, 1)? != 0).into(),
        },
        Plain::SchemaOrArray => match first(1)? {
            Some(bytes) => schema(bytes)?,
            None => bytes_of(bytes, 2)?.into_iter().map(schema).collect::<Result<Vec<_>, _>>()?.into(),
        },
        Plain::SchemaOrWords => match first(1)? {
            Some(bytes) => schema(bytes)?,
            None => words(bytes, 2)?,
        },
    })
}

fn words(bytes: &[u8], wanted: u32) -> Result<Value, String> {
    Ok(bytes_of(bytes, wanted)?.into_iter().map(text).collect::<Result<Vec<_>, _>>()?.into())
}

fn time(seconds: i64, nanos: i64) -> Result<Value, String> {
    let nanos = i32::try_from(nanos).map_err(|_| "nanos are out of range")?;
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|_| "the time is out of range")?;
    Ok(if nanos == 0 { format!("{time}") } else { format!("{time:.6}") }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()][..], bytes].concat()
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let types = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC, &field(1, &types), &field(2, raw), &field(3, b""), &field(4, b"")].concat()
    }

    #[test]
    fn a_namespace_as_kubectl_sends_it() {
        // metadata {name, generateName "", creationTimestamp {}}, spec {}, status {phase ""}.
        let meta =
            [field(1, b"shop"), field(2, b""), field(8, b""), field(11, &[field(1, b"a"), field(2, b"b")].concat())];
        let raw = [field(1, &meta.concat()), field(2, b""), field(3, &field(1, b""))].concat();
        let want = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"a": "b"}},
        });
        assert_eq!(read(&body("v1", "Namespace", &raw)).unwrap(), want);
    }

    #[test]
    fn zeros_of_pointers_are_values() {
        let options = [0x08, 0x00, 0x18, 0x00, 0x22, 0x0a].iter().copied().chain(*b"Foreground").collect::<Vec<u8>>();
        let want = json!({
            "apiVersion": "apps/v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "orphanDependents": false,
            "propagationPolicy": "Foreground",
        });
        assert_eq!(read(&body("apps/v1", "DeleteOptions", &options)).unwrap(), want);
    }

    #[test]
    fn plain_values() {
        assert_eq!(plain_value(Plain::IntOrString, &[8, 0, 16, 80, 26, 0], 0).unwrap(), json!(80));
        assert_eq!(plain_value(Plain::IntOrString, &[8, 1, 16, 0, 26, 3, b'w', b'e', b'b'], 0).unwrap(), json!("web"));
        assert_eq!(plain_value(Plain::Time, &[8, 60], 0).unwrap(), json!("1970-01-01T00:01:00Z"));
        assert_eq!(plain_value(Plain::MicroTime, &[8, 60, 16, 1], 0).unwrap(), json!("1970-01-01T00:01:00.000000Z"));
        assert_eq!(plain_value(Plain::SchemaOrBool, &[8, 1], 0).unwrap(), json!(true));
        assert_eq!(plain_value(Plain::Json, &[10, 4, b't', b'r', b'u', b'e'], 0).unwrap(), json!(true));
    }

    #[test]
    fn broken_bodies() {
        let whole = body("v1", "Namespace", &field(1, &field(1, b"shop")));
        for cut in 0..whole.len() {
            let _ = read(&whole[..cut]);
        }
        assert!(read(b"{}").unwrap_err().contains("mark"));
        assert!(read(&body("v1", "Namespace", &[0x0a, 0x7f])).unwrap_err().contains("longer"));
        assert!(read(&body("v1", "Namespace", &[0x0b])).unwrap_err().contains("wire type 3"));
        assert!(read(&body("example.org/v1", "Thing", b"")).unwrap_err().contains("send it as JSON"));
        // A schema in a schema in a schema …
        let mut deep = Vec::new();
        for _ in 0..80 {
            deep = [&[0xe2, 0x01][..], &varint_of(deep.len()), &deep].concat();
        }
        let schema = message("apiextensions.v1.JSONSchemaProps").unwrap();
        assert!(fields(&deep, schema, 0).unwrap_err().contains("nested"));
    }

    fn varint_of(mut value: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value > 0x7f {
            bytes.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
            value >>= 7;
        }
        bytes.push(u8::try_from(value).unwrap());
        bytes
    }
}
