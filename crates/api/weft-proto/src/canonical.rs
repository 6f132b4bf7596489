//! One order for the bytes of a message: entries of maps sorted, in nested messages and inside of every `Any` too. What the
//! reflection library writes has its maps in no order, and equal input must give equal bytes.

use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};
use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};
use std::collections::BTreeMap;

/// Messages nested deeper than this stay as they are; JSON that is read is not nested that deep.
const DEEPEST: usize = 100;
/// The message that holds another one packed.
const ANY: &str = "google.protobuf.Any";

/// The bytes of a message of type `schema`, in order. Bytes that do not decode stay as they are.
pub(crate) fn ordered(bytes: &[u8], schema: &MessageDescriptor) -> Vec<u8> {
    message(bytes, schema, 0).unwrap_or_else(|| bytes.to_vec())
}

fn message(bytes: &[u8], schema: &MessageDescriptor, depth: usize) -> Option<Vec<u8>> {
    if depth > DEEPEST {
        return None;
    }
    if schema.full_name() == ANY {
        return any(bytes, schema.parent_pool(), depth);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut maps: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
    let mut rest = bytes;
    while rest.has_remaining() {
        let before = rest;
        let (tag, wire) = decode_key(&mut rest).ok()?;
        let field = schema.get_field(tag);
        match (wire, field) {
            (WireType::LengthDelimited, Some(field)) => {
                let value = block(&mut rest)?;
                let value = nested(value, &field, depth);
                if field.is_map() {
                    maps.entry(tag).or_default().push(value);
                } else {
                    put(&mut out, tag, &value);
                }
            }
            _ => {
                skip(wire, &mut rest)?;
                out.extend_from_slice(&before[..before.len() - rest.len()]);
            }
        }
    }
    for (tag, mut entries) in maps {
        entries.sort();
        entries.iter().for_each(|entry| put(&mut out, tag, entry));
    }
    Some(out)
}

/// The value of a length-delimited field: messages in order, all else as it is.
fn nested(value: &[u8], field: &FieldDescriptor, depth: usize) -> Vec<u8> {
    let inner = match field.kind() {
        Kind::Message(inner) => message(value, &inner, depth + 1),
        _ => None,
    };
    inner.unwrap_or_else(|| value.to_vec())
}

/// A packed message of a type that the pool has is put in order too.
fn any(bytes: &[u8], pool: &DescriptorPool, depth: usize) -> Option<Vec<u8>> {
    let (mut url, mut value) = (&[][..], &[][..]);
    let mut rest = bytes;
    while rest.has_remaining() {
        match decode_key(&mut rest).ok()? {
            (1, WireType::LengthDelimited) => url = block(&mut rest)?,
            (2, WireType::LengthDelimited) => value = block(&mut rest)?,
            _ => return None,
        }
    }
    let name = std::str::from_utf8(url).ok()?.rsplit('/').next()?;
    let value = message(value, &pool.get_message_by_name(name)?, depth + 1)?;
    let mut out = Vec::with_capacity(bytes.len());
    put(&mut out, 1, url);
    if !value.is_empty() {
        put(&mut out, 2, &value);
    }
    Some(out)
}

fn put(out: &mut Vec<u8>, tag: u32, value: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

fn block<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(decode_varint(rest).ok()?).ok()?;
    let (block, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(block)
}

fn skip(wire: WireType, rest: &mut &[u8]) -> Option<()> {
    let length = match wire {
        WireType::Varint => {
            decode_varint(rest).ok()?;
            0
        }
        WireType::ThirtyTwoBit => 4,
        WireType::SixtyFourBit => 8,
        WireType::LengthDelimited => {
            block(rest)?;
            0
        }
        WireType::StartGroup | WireType::EndGroup => return None,
    };
    *rest = rest.get(length..)?;
    Some(())
}

#[cfg(test)]
mod tests {
    use crate::envoy::config::listener::v3::Listener;
    use crate::json::from_json;
    use prost::Message;
    use serde_json::json;

    #[test]
    fn packed_maps_are_in_one_order() {
        let fields: serde_json::Map<_, _> = (0..20).map(|i| (format!("k{i}"), json!({"b": "x"}))).collect();
        let listener = json!({
            "name": "l",
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "s",
                    "route_config": {"virtual_hosts": [{
                        "name": "h", "domains": ["*"], "metadata": {"filter_metadata": fields},
                    }]},
                },
            }]}],
        });
        let first = from_json::<Listener>(&listener).unwrap();
        for _ in 0..5 {
            let again = from_json::<Listener>(&listener).unwrap();
            assert_eq!(first.encode_to_vec(), again.encode_to_vec());
        }
        let shown = crate::json::to_json(&first, true).unwrap();
        assert_eq!(
            shown["filter_chains"][0]["filters"][0]["typed_config"]["route_config"],
            listener["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]
        );
    }
}
