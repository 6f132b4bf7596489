//! JSON of tokens, with bounds: how deep, how many values, and no name twice. A name that stands twice would be one claim to
//! this proxy and another to the endpoint.

use super::token::JwtFailure;
use base64::Engine as _;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::cell::Cell;
use std::fmt;
use weft_core::Strng;
use weft_route::MetadataValue;

/// Most values of a header or payload, lists and objects counted with what they hold.
pub const MAX_VALUES: usize = 2000;
/// Deepest nesting.
pub const MAX_DEPTH: usize = 32;

/// Reads a JSON object.
///
/// # Errors
/// `otherwise` when it is none; [`JwtFailure::TooLarge`] when it is beyond the bounds.
pub fn object(text: &[u8], otherwise: JwtFailure) -> Result<MetadataValue, JwtFailure> {
    let left = Cell::new(MAX_VALUES);
    let mut json = serde_json::Deserializer::from_slice(text);
    let read = Seed { left: &left, depth: 0 }.deserialize(&mut json).and_then(|value| json.end().map(|()| value));
    match read {
        Ok(value @ MetadataValue::Struct(_)) => Ok(value),
        Err(_) if left.get() == 0 => Err(JwtFailure::TooLarge),
        _ => Err(otherwise),
    }
}

#[derive(Clone, Copy)]
struct Seed<'b> {
    left: &'b Cell<usize>,
    depth: usize,
}

impl Seed<'_> {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            self.left.set(0);
            return Err(E::custom("too deep"));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = MetadataValue;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<MetadataValue, D::Error> {
        match self.left.get().checked_sub(1) {
            Some(left) if left > 0 => self.left.set(left),
            _ => {
                self.left.set(0);
                return Err(D::Error::custom("too many values"));
            }
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = MetadataValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<MetadataValue, E> {
        Ok(MetadataValue::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<MetadataValue, E> {
        Ok(MetadataValue::Bool(value))
    }

    #[allow(clippy::cast_precision_loss)] // Numbers of JSON are taken as doubles, as Envoy does.
    fn visit_i64<E>(self, value: i64) -> Result<MetadataValue, E> {
        Ok(MetadataValue::Number(value as f64))
    }

    #[allow(clippy::cast_precision_loss)]
    fn visit_u64<E>(self, value: u64) -> Result<MetadataValue, E> {
        Ok(MetadataValue::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<MetadataValue, E> {
        Ok(MetadataValue::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<MetadataValue, E> {
        Ok(MetadataValue::String(Strng::from(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<MetadataValue, A::Error> {
        let inner = self.deeper()?;
        let mut out = Vec::new();
        while let Some(value) = list.next_element_seed(inner)? {
            out.push(value);
        }
        Ok(MetadataValue::List(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<MetadataValue, A::Error> {
        let inner = self.deeper()?;
        let mut names = std::collections::HashSet::new();
        let mut out: Vec<(Strng, MetadataValue)> = Vec::new();
        while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let name = Strng::from(&*name);
            if !names.insert(name.clone()) {
                return Err(A::Error::custom("a name stands twice"));
            }
            out.push((name, map.next_value_seed(inner)?));
        }
        Ok(MetadataValue::Struct(out))
    }
}

/// The payload with the named claims, where they are text, as lists of their words.
pub fn spaces_to_lists(payload: MetadataValue, names: &[Strng]) -> MetadataValue {
    let MetadataValue::Struct(mut fields) = payload else { return payload };
    for (name, value) in &mut fields {
        if let MetadataValue::String(text) = value
            && names.contains(name)
        {
            let words = text.split(' ').filter(|word| !word.is_empty());
            *value = MetadataValue::List(words.map(|word| MetadataValue::String(word.into())).collect());
        }
    }
    MetadataValue::Struct(fields)
}

/// A claim as the value of a header: text, numbers and booleans as they are, lists and objects as JSON in base64.
pub fn header_text(value: &MetadataValue) -> Option<String> {
    match value {
        MetadataValue::Null => None,
        MetadataValue::String(text) => Some(text.to_string()),
        MetadataValue::Bool(value) => Some(value.to_string()),
        MetadataValue::Number(_) => Some(json(value).to_string()),
        MetadataValue::List(_) | MetadataValue::Struct(_) => {
            Some(base64::engine::general_purpose::STANDARD.encode(json(value).to_string()))
        }
    }
}

/// As JSON.
pub fn json(value: &MetadataValue) -> serde_json::Value {
    use serde_json::Value;
    match value {
        MetadataValue::Null => Value::Null,
        MetadataValue::String(text) => Value::String(text.to_string()),
        MetadataValue::Bool(value) => Value::Bool(*value),
        #[allow(clippy::cast_possible_truncation)] // Whole and within 53 bits.
        MetadataValue::Number(n) if n.fract() == 0.0 && n.abs() < 9e15 => Value::from(*n as i64),
        MetadataValue::Number(n) => Value::from(*n),
        MetadataValue::List(list) => Value::Array(list.iter().map(json).collect()),
        MetadataValue::Struct(fields) => {
            Value::Object(fields.iter().map(|(name, value)| (name.to_string(), json(value))).collect())
        }
    }
}
