//! OpenAPI schemas of the typed specs, made from the types themselves: what a CustomResourceDefinition declares is what the
//! reader reads, and cannot fall behind it. The descriptions are the types' own comments.
//!
//! A type is asked for its shape by being read from a value that answers every question and notes it down. Each reading
//! visits one path of fields that was not seen yet, so that forms which exclude each other are both seen.
//!
//! Reading order: [`of`], then `docs` (the comments).

mod docs;

use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};
use std::fmt;

/// Readings of one type; real specs need a few thousand.
const MAX_READINGS: usize = 100_000;
/// Depth at which a type counts as recursive.
const MAX_DEPTH: usize = 32;

/// The schema of a spec: structural, as CustomResourceDefinitions want it.
pub fn of<T: DeserializeOwned>() -> Value {
    let mut root = Shape::default();
    for _ in 0..MAX_READINGS {
        if root.done {
            break;
        }
        // A refusal is an answer too: the path that led to it has been noted.
        let refused = T::deserialize(Probe { shape: &mut root, depth: 0 }).is_err();
        if refused {
            root.finish_path();
        }
    }
    root.schema()
}

/// What is known of a value's shape.
#[derive(Debug, Default)]
struct Shape {
    kind: Kind,
    /// Nothing more to learn below.
    done: bool,
    /// The child that the present reading went into.
    current: Option<usize>,
}

#[derive(Debug, Default)]
enum Kind {
    #[default]
    Unknown,
    Any,
    Plain(Value),
    List(Box<Shape>),
    Map(Box<Shape>),
    Struct(&'static str, Vec<(&'static str, Shape)>),
}

impl Shape {
    fn plain(&mut self, schema: Value) {
        self.kind = Kind::Plain(schema);
        self.done = true;
    }

    /// Ends the path that the last reading took, after a refusal.
    fn finish_path(&mut self) {
        let child = match (&mut self.kind, self.current) {
            (Kind::List(child) | Kind::Map(child), _) => Some(child.as_mut()),
            (Kind::Struct(_, fields), Some(at)) => fields.get_mut(at).map(|(_, child)| child),
            _ => None,
        };
        match child.filter(|child| !child.done) {
            Some(child) => child.finish_path(),
            None => self.done = true,
        }
        self.settle();
    }

    /// Takes note of children that are done.
    fn settle(&mut self) {
        let done = match &self.kind {
            Kind::List(child) | Kind::Map(child) => child.done,
            Kind::Struct(_, fields) => fields.iter().all(|(_, child)| child.done),
            _ => self.done,
        };
        self.done |= done;
    }

    fn schema(&self) -> Value {
        match &self.kind {
            Kind::Unknown | Kind::Any => json!({"x-kubernetes-preserve-unknown-fields": true}),
            Kind::Plain(schema) => schema.clone(),
            Kind::List(item) => json!({"type": "array", "items": item.schema()}),
            Kind::Map(item) if matches!(item.kind, Kind::Unknown | Kind::Any) => {
                json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
            }
            Kind::Map(item) => json!({"type": "object", "additionalProperties": item.schema()}),
            Kind::Struct(name, fields) => {
                let mut properties = Map::new();
                for (field, shape) in fields {
                    let mut schema = shape.schema();
                    if let Some(text) = docs::field(name, field) {
                        schema["description"] = text.into();
                    }
                    properties.insert((*field).to_string(), schema);
                }
                let mut schema = json!({"type": "object"});
                if let Some(text) = docs::of(name) {
                    schema["description"] = text.into();
                }
                if !properties.is_empty() {
                    schema["properties"] = properties.into();
                }
                schema
            }
        }
    }
}

/// A refusal; what it says is of no interest.
#[derive(Debug)]
struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("refused")
    }
}

impl std::error::Error for Refused {}

impl de::Error for Refused {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Refused
    }
}

/// The value that answers every question.
struct Probe<'a> {
    shape: &'a mut Shape,
    depth: usize,
}

macro_rules! numbers {
    ($($method:ident $visit:ident $value:literal $schema:tt),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
            self.shape.plain(json!($schema));
            visitor.$visit($value)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Probe<'_> {
    type Error = Refused;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.shape.kind = Kind::Any;
        self.shape.done = true;
        visitor.visit_unit()
    }

    numbers!(
        deserialize_bool visit_bool false {"type": "boolean"},
        deserialize_i8 visit_i8 1 {"type": "integer"},
        deserialize_i16 visit_i16 1 {"type": "integer"},
        deserialize_i32 visit_i32 1 {"type": "integer", "format": "int32"},
        deserialize_i64 visit_i64 1 {"type": "integer", "format": "int64"},
        deserialize_u8 visit_u8 1 {"type": "integer", "minimum": 0, "maximum": 255},
        deserialize_u16 visit_u16 1 {"type": "integer", "minimum": 0, "maximum": 65535},
        deserialize_u32 visit_u32 1 {"type": "integer", "minimum": 0, "maximum": 4294967295_u32},
        deserialize_u64 visit_u64 1 {"type": "integer", "minimum": 0},
        deserialize_f32 visit_f32 1.0 {"type": "number", "format": "double"},
        deserialize_f64 visit_f64 1.0 {"type": "number", "format": "double"},
        deserialize_char visit_char 'x' {"type": "string"},
        // Text that is read at once into something else is a span of time.
        deserialize_str visit_str "1s" {"type": "string"},
        deserialize_string visit_str "x" {"type": "string"},
        deserialize_bytes visit_str "eA==" {"type": "string", "format": "byte"},
        deserialize_byte_buf visit_str "eA==" {"type": "string", "format": "byte"},
    );

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_some(self)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_any(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_any(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        if !matches!(self.shape.kind, Kind::List(_)) {
            self.shape.kind = Kind::List(Box::default());
        }
        let Kind::List(item) = &mut self.shape.kind else { return Err(Refused) };
        let result = visitor.visit_seq(One { shape: Some(item), depth: self.depth + 1 });
        self.shape.settle();
        result
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        if !matches!(self.shape.kind, Kind::Map(_)) {
            self.shape.kind = Kind::Map(Box::default());
        }
        let Kind::Map(item) = &mut self.shape.kind else { return Err(Refused) };
        let result = visitor.visit_map(Entry { key: Some(Key::Data), shape: Some(item), depth: self.depth + 1 });
        self.shape.settle();
        result
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        if self.depth > MAX_DEPTH {
            return self.deserialize_any(visitor);
        }
        if !matches!(self.shape.kind, Kind::Struct(..)) {
            let fields = fields.iter().map(|field| (*field, Shape::default())).collect();
            self.shape.kind = Kind::Struct(name, fields);
        }
        let Kind::Struct(_, known) = &mut self.shape.kind else { return Err(Refused) };
        self.shape.current = known.iter().position(|(_, shape)| !shape.done);
        let next = self.shape.current.and_then(|at| known.get_mut(at));
        let (key, shape) = next.map_or((None, None), |(name, shape)| (Some(Key::Field(name)), Some(shape)));
        let result = visitor.visit_map(Entry { key, shape, depth: self.depth + 1 });
        self.shape.settle();
        result
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.shape.plain(json!({"type": "string", "enum": variants}));
        let first: &'static str = variants.first().copied().unwrap_or_default();
        visitor.visit_enum(first.into_deserializer())
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_string(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_unit()
    }
}

/// A list of one.
struct One<'a> {
    shape: Option<&'a mut Shape>,
    depth: usize,
}

impl<'de> SeqAccess<'de> for One<'_> {
    type Error = Refused;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Refused> {
        match self.shape.take() {
            Some(shape) => seed.deserialize(Probe { shape, depth: self.depth }).map(Some),
            None => Ok(None),
        }
    }
}

enum Key {
    Field(&'static str),
    Data,
}

/// An object of one field, or of none.
struct Entry<'a> {
    key: Option<Key>,
    shape: Option<&'a mut Shape>,
    depth: usize,
}

impl<'de> MapAccess<'de> for Entry<'_> {
    type Error = Refused;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Refused> {
        match self.key.take() {
            Some(Key::Field(name)) => seed.deserialize(name.into_deserializer()).map(Some),
            // Keys are words or numbers.
            Some(Key::Data) => {
                let mut unused = Shape::default();
                seed.deserialize(Probe { shape: &mut unused, depth: self.depth }).map(Some)
            }
            None => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Refused> {
        let shape = self.shape.take().ok_or(Refused)?;
        seed.deserialize(Probe { shape, depth: self.depth })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::istio;

    fn at(schema: &Value, path: &str) -> Value {
        path.split('.').fold(schema.clone(), |schema, name| match name {
            "[]" => schema["items"].clone(),
            "*" => schema["additionalProperties"].clone(),
            name => schema["properties"][name].clone(),
        })
    }

    #[test]
    fn every_form_is_seen() {
        let vs = of::<istio::VirtualService>();
        for (path, kind) in [
            ("hosts.[]", "string"),
            ("http.[].match.[].uri.exact", "string"),
            ("http.[].match.[].uri.regex", "string"),
            ("http.[].match.[].headers.*.prefix", "string"),
            ("http.[].timeout", "string"),
            ("http.[].route.[].destination.port.number", "integer"),
            ("http.[].fault.delay.percentage.value", "number"),
            ("http.[].corsPolicy.allowCredentials", "boolean"),
            ("tls.[].match.[].sniHosts.[]", "string"),
            ("exportTo", "array"),
        ] {
            assert_eq!(at(&vs, path)["type"], kind, "{path}");
        }
        let words = at(&of::<istio::PeerAuthentication>(), "portLevelMtls.*.mode");
        assert!(words["enum"].as_array().unwrap().contains(&json!("STRICT")), "{words}");
        let free = at(&of::<istio::EnvoyFilter>(), "configPatches.[].patch.value");
        assert_eq!(free["x-kubernetes-preserve-unknown-fields"], true, "{free}");
    }

    #[test]
    fn comments_are_the_descriptions() {
        let vs = of::<istio::VirtualService>();
        assert!(vs["description"].as_str().unwrap().contains("outing rules"), "{}", vs["description"]);
        let text = at(&vs, "http.[].match")["description"].as_str().unwrap().to_string();
        assert!(text.contains("any of which suffices"), "{text}");
        let text = at(&vs, "exportTo")["description"].as_str().unwrap().to_string();
        assert!(text.starts_with("Namespaces that see it"), "{text}");
    }

    /// A structural schema has a type everywhere, but where unknown fields are kept.
    fn structural(schema: &Value, path: &str) {
        let free = schema["x-kubernetes-preserve-unknown-fields"] == true;
        assert!(schema["type"].is_string() || free, "{path}: {schema}");
        for (name, child) in schema["properties"].as_object().into_iter().flatten() {
            structural(child, &format!("{path}.{name}"));
        }
        for part in ["items", "additionalProperties"] {
            if schema[part].is_object() {
                structural(&schema[part], &format!("{path}[]"));
            }
        }
    }

    #[test]
    fn all_kinds_are_structural() {
        for kind in crate::kinds::KINDS {
            if let Some(schema) = crate::crd::spec_schema(kind) {
                structural(&schema, kind.kind);
                assert!(!schema["properties"].as_object().unwrap().is_empty(), "{}", kind.kind);
            }
        }
    }
}
