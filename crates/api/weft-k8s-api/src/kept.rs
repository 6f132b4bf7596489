//! Parts of objects: which fields a reader wants, so that the others are never read into memory.

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// Fields that are kept, and what of each; of a list, the same of each entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Everything.
    All,
    /// These fields, where they are.
    Fields(&'static [(&'static str, Kept)]),
}

impl Kept {
    /// What is kept of a field; `None` when nothing is.
    pub fn field(&self, name: &str) -> Option<Kept> {
        match self {
            Self::All => Some(Self::All),
            Self::Fields(fields) => fields.iter().find(|(known, _)| *known == name).map(|(_, kept)| *kept),
        }
    }

    /// Takes away the rest.
    pub fn apply(&self, value: &mut Value) {
        let Self::Fields(known) = self else { return };
        match value {
            Value::Object(fields) => {
                fields.retain(|name, _| known.iter().any(|(field, _)| field == name));
                for (name, below) in *known {
                    if let Some(value) = fields.get_mut(*name) {
                        below.apply(value);
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.apply(item)),
            _ => {}
        }
    }
}

/// Reads a value without the rest: the same as to read it whole and [`Kept::apply`].
impl<'de> DeserializeSeed<'de> for Kept {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(Reader(self))
    }
}

struct Reader(Kept);

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_string()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.0.deserialize(deserializer)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Value, S::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element_seed(self.0)? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<M: MapAccess<'de>>(self, mut fields: M) -> Result<Value, M::Error> {
        let mut all = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            match self.0.field(&name) {
                Some(kept) => drop(all.insert(name, fields.next_value_seed(kept)?)),
                None => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reading_a_part_is_reading_and_cutting() {
        const PORT: Kept = Kept::Fields(&[("port", Kept::All)]);
        const KEPT: Kept = Kept::Fields(&[("a", Kept::All), ("ports", PORT), ("n", Kept::All)]);
        let whole = json!({
            "a": {"b": [1, -2, 1.5, null, true, "text"]}, "x": {"y": 1}, "n": null,
            "ports": [{"port": 1, "name": "one"}, {"name": "two"}, "odd"],
        });
        let text = whole.to_string();
        let read = |kept: Kept| kept.deserialize(&mut serde_json::Deserializer::from_str(&text)).unwrap();
        assert_eq!(read(Kept::All), whole);
        let mut cut = whole.clone();
        KEPT.apply(&mut cut);
        assert_eq!(read(KEPT), cut);
        assert_eq!(cut["ports"], json!([{"port": 1}, {}, "odd"]));
        assert!(cut.get("x").is_none() && cut["n"].is_null() && cut["a"] == whole["a"]);
    }
}
