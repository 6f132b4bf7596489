//! Reads JSON values into typed structs: says at which field an error is, what is unknown, and accepts the spellings that
//! protobuf JSON accepts.
//!
//! It owns shapes and nothing else: what values mean is checked by [`crate::validate`].

use serde::de::{self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::fmt;

/// Deeper objects are refused; Kubernetes' own limit is larger, no real object comes near.
const MAX_DEPTH: usize = 96;

/// How lenient the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Protobuf JSON (Istio kinds): snake_case names, numbers as strings.
    ProtoJson,
    /// Kubernetes' own kinds: exactly the API's names and types.
    Kubernetes,
}

/// A shape that is wrong at a place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct ShapeError {
    /// Path such as `spec.http[0].route[1].weight`.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// A field that no type knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownField {
    /// Its path.
    pub path: String,
    /// The known field that looks most like it.
    pub suggestion: Option<&'static str>,
    /// All known fields of that object.
    pub known: &'static [&'static str],
}

/// Reads a value as `T`. `root` begins every path. Unknown fields are added to `unknown`.
///
/// # Errors
/// The first shape that is wrong.
pub fn read<T: de::DeserializeOwned>(
    value: &Value,
    root: &str,
    dialect: Dialect,
    unknown: &mut Vec<UnknownField>,
) -> Result<T, ShapeError> {
    let context = Context { dialect, unknown: RefCell::new(Vec::new()) };
    let node = Node { value, path: Path::Root(root), depth: 0, context: &context };
    let result = T::deserialize(node)
        .map_err(|e| ShapeError { path: e.path.unwrap_or_else(|| root.into()), message: e.message });
    unknown.append(&mut context.unknown.borrow_mut());
    result
}

struct Context {
    dialect: Dialect,
    unknown: RefCell<Vec<UnknownField>>,
}

/// Where a node is; linked to its parents, written out only for errors.
#[derive(Clone, Copy)]
enum Path<'a> {
    Root(&'a str),
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root(root) => f.write_str(root),
            Path::Field(parent, name) => {
                let parent = parent.to_string();
                if name.contains(['.', '/', '[']) || name.is_empty() {
                    write!(f, "{parent}[{name:?}]")
                } else if parent.is_empty() {
                    f.write_str(name)
                } else {
                    write!(f, "{parent}.{name}")
                }
            }
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

#[derive(Debug)]
struct Error {
    path: Option<String>,
    message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Error { path: None, message: message.to_string() }
    }

    fn missing_field(field: &'static str) -> Self {
        Error { path: None, message: format!("the field {field} is required") }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let nearest = nearest(variant, expected).map(|n| format!("; did you mean {n}?")).unwrap_or_default();
        Error { path: None, message: format!("{variant:?} is not known; use one of {}{nearest}", expected.join(", ")) }
    }
}

#[derive(Clone, Copy)]
struct Node<'a> {
    value: &'a Value,
    path: Path<'a>,
    depth: usize,
    context: &'a Context,
}

impl Node<'_> {
    fn wrong(&self, expected: impl fmt::Display) -> Error {
        let remedy = match self.value {
            Value::Null => "is empty".to_string(),
            Value::Bool(b) => format!("is the boolean {b}"),
            Value::Number(n) => format!("is the number {n}"),
            Value::String(s) => format!("is the string {:?}", shorten(s)),
            Value::Array(_) => "is a list".to_string(),
            Value::Object(_) => "is an object".to_string(),
        };
        self.error(format!("{remedy}; it must be {expected}"))
    }

    fn error(&self, message: String) -> Error {
        Error { path: Some(self.path.to_string()), message }
    }

    /// Gives an error that came from inside a value this node's place, unless it has one.
    fn located<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|mut e| {
            e.path.get_or_insert_with(|| self.path.to_string());
            e
        })
    }

    fn check_depth(&self) -> Result<(), Error> {
        if self.depth > MAX_DEPTH {
            return Err(self.error(format!("is nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(())
    }

    fn integer(&self, min: i128, max: i128) -> Result<i128, Error> {
        let expected = || format!("a whole number between {min} and {max}");
        let lenient = self.context.dialect == Dialect::ProtoJson;
        let number = match self.value {
            Value::Number(n) => n.as_i64().map(i128::from).or_else(|| n.as_u64().map(i128::from)).or_else(|| {
                n.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9_007_199_254_740_992.0).map(|f| f as i128)
            }),
            Value::String(s) if lenient => s.trim().parse::<i128>().ok(),
            _ => None,
        };
        number.filter(|n| (min..=max).contains(n)).ok_or_else(|| self.wrong(expected()))
    }
}

fn shorten(text: &str) -> String {
    if text.chars().count() > 60 { format!("{}…", text.chars().take(60).collect::<String>()) } else { text.into() }
}

macro_rules! integers {
    ($($method:ident $visit:ident $ty:ty),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let number = self.integer(i128::from(<$ty>::MIN), i128::from(<$ty>::MAX))?;
            self.located(visitor.$visit(number as $ty))
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Node<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.check_depth()?;
        let result = match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Number(n) => match (n.as_u64(), n.as_i64(), n.as_f64()) {
                (Some(u), ..) => visitor.visit_u64(u),
                (_, Some(i), _) => visitor.visit_i64(i),
                (.., Some(f)) => visitor.visit_f64(f),
                _ => Err(self.wrong("a number that fits 64 bits")),
            },
            Value::String(s) => visitor.visit_str(s),
            Value::Array(list) => visitor.visit_seq(List { node: &self, list, next: 0 }),
            Value::Object(map) => visitor.visit_map(Entries::new(&self, map, None)),
        };
        self.located(result)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Bool(b) => self.located(visitor.visit_bool(*b)),
            _ => Err(self.wrong("true or false, without quotes")),
        }
    }

    integers!(
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64,
    );

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let number = match self.value {
            Value::Number(n) => n.as_f64(),
            Value::String(s) if self.context.dialect == Dialect::ProtoJson => s.trim().parse().ok(),
            _ => None,
        };
        match number.filter(|n: &f64| n.is_finite()) {
            Some(number) => self.located(visitor.visit_f64(number)),
            None => Err(self.wrong("a number")),
        }
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::String(s) => self.located(visitor.visit_str(s)),
            Value::Number(n) => Err(self.wrong(format_args!("a string: write it in quotes, \"{n}\""))),
            // `yes`, `no`, `on`, `off`, `y` and `n` are booleans in YAML.
            Value::Bool(_) => Err(self.wrong("a string: write it in quotes")),
            _ => Err(self.wrong("a string")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Null => visitor.visit_unit(),
            _ => Err(self.wrong("empty")),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        // `cpu: 1` and `memory: 128` are quantities in Kubernetes, which keeps them as strings.
        if let ("Quantity", Value::Number(n)) = (name, self.value) {
            let text = Value::String(n.to_string());
            return visitor.visit_newtype_struct(Node { value: &text, ..self });
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.check_depth()?;
        match self.value {
            Value::Array(list) => self.located(visitor.visit_seq(List { node: &self, list, next: 0 })),
            _ => Err(self.wrong("a list: put a dash before each item")),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.check_depth()?;
        match self.value {
            Value::Object(map) => self.located(visitor.visit_map(Entries::new(&self, map, None))),
            _ => Err(self.wrong("an object of names and values")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.check_depth()?;
        match self.value {
            Value::Object(map) => self.located(visitor.visit_map(Entries::new(&self, map, Some(fields)))),
            _ if fields.is_empty() => Err(self.wrong("an object, such as {}")),
            _ => Err(self.wrong(format_args!("an object with the fields {}", fields.join(", ")))),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.value {
            Value::String(s) => self.located(visitor.visit_enum(s.as_str().into_deserializer())),
            _ => Err(self.wrong(format_args!("one of {}", variants.join(", ")))),
        }
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }
}

struct List<'a> {
    node: &'a Node<'a>,
    list: &'a [Value],
    next: usize,
}

impl<'de> SeqAccess<'de> for List<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(value) = self.list.get(self.next) else { return Ok(None) };
        let path = Path::Index(&self.node.path, self.next);
        self.next += 1;
        let node = Node { value, path, depth: self.node.depth + 1, context: self.node.context };
        node.located(seed.deserialize(node)).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.list.len() - self.next)
    }
}

struct Entries<'a> {
    node: &'a Node<'a>,
    entries: serde_json::map::Iter<'a>,
    /// Known fields of a struct; `None` for maps, whose keys are data.
    fields: Option<&'static [&'static str]>,
    current: Option<(&'a str, &'a Value)>,
}

impl<'a> Entries<'a> {
    fn new(node: &'a Node<'a>, map: &'a Map<String, Value>, fields: Option<&'static [&'static str]>) -> Self {
        Entries { node, entries: map.iter(), fields, current: None }
    }

    /// The known name that a key means, or nothing when it is unknown.
    fn field(&self, key: &str, fields: &'static [&'static str]) -> Option<&'static str> {
        let exact = fields.iter().copied().find(|f| *f == key);
        if exact.is_some() || self.node.context.dialect == Dialect::Kubernetes {
            return exact;
        }
        let camel = camel_case(key);
        fields.iter().copied().find(|f| *f == camel)
    }

    fn report_unknown(&self, key: &str, fields: &'static [&'static str]) {
        let path = Path::Field(&self.node.path, key).to_string();
        let unknown = UnknownField { path, suggestion: nearest(key, fields), known: fields };
        self.node.context.unknown.borrow_mut().push(unknown);
    }
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        while let Some((key, value)) = self.entries.next() {
            self.current = Some((key, value));
            let Some(fields) = self.fields else {
                let path = Path::Field(&self.node.path, key);
                return seed.deserialize(Key { key, path }).map(Some);
            };
            // An empty value is a field that is not set.
            if value.is_null() {
                continue;
            }
            match self.field(key, fields) {
                Some(name) => return seed.deserialize(name.into_deserializer()).map(Some),
                None => self.report_unknown(key, fields),
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((key, value)) = self.current.take() else {
            return Err(de::Error::custom("a value was read before its name"));
        };
        let path = Path::Field(&self.node.path, key);
        let node = Node { value, path, depth: self.node.depth + 1, context: self.node.context };
        node.located(seed.deserialize(node))
    }
}

/// A key of a map; may be read as a number.
struct Key<'a> {
    key: &'a str,
    path: Path<'a>,
}

impl Key<'_> {
    fn number<T: std::str::FromStr>(&self) -> Result<T, Error> {
        self.key.parse().map_err(|_| Error {
            path: Some(self.path.to_string()),
            message: format!("the name {:?} must be a whole number", shorten(self.key)),
        })
    }
}

impl<'de> de::Deserializer<'de> for Key<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(self.key)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u16(self.number()?)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u32(self.number()?)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct
        seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// `mirror_percent` → `mirrorPercent`.
fn camel_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        match c {
            '_' => upper = true,
            c if upper => {
                out.extend(c.to_uppercase());
                upper = false;
            }
            c => out.push(c),
        }
    }
    out
}

/// The known word that looks most like `word`, when one is near enough to be meant.
pub fn nearest(word: &str, known: &'static [&'static str]) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    let limit = (word.len() / 3).clamp(1, 4);
    let distances = known.iter().map(|k| (distance(&word, &k.to_ascii_lowercase(), limit), *k));
    distances.filter(|(d, _)| *d <= limit).min_by_key(|(d, _)| *d).map(|(_, k)| k)
}

/// Edits (insert, delete, replace, swap of neighbours) between two words; `limit + 1` when there are more than `limit`.
fn distance(a: &str, b: &str, limit: usize) -> usize {
    if a.len().abs_diff(b.len()) > limit || a.len() > 128 {
        return limit + 1;
    }
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut before: Vec<usize> = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::istio;
    use serde_json::json;

    fn virtual_service(spec: Value) -> (Result<istio::VirtualService, ShapeError>, Vec<UnknownField>) {
        let mut unknown = Vec::new();
        (read(&spec, "spec", Dialect::ProtoJson, &mut unknown), unknown)
    }

    #[test]
    fn accepts_the_spellings_of_protobuf_json() {
        let (spec, unknown) = virtual_service(json!({
            "hosts": ["reviews"],
            "gateways": null,
            "http": [{
                "mirror_percent": "50",
                "match": [{"headers": {"x-a": {}, "x-b": {"exact": "1"}}, "port": "80"}],
                "route": [{"destination": {"host": "reviews", "port": {"number": 9080.0}}, "weight": 1}],
                "fault": {"delay": {"percentage": {"value": "0.1"}, "fixedDelay": "5s"}},
            }],
        }));
        let spec = spec.unwrap();
        assert_eq!(unknown, []);
        let route = &spec.http[0];
        assert_eq!(route.mirror_percent, Some(50));
        assert_eq!(route.matches[0].port, 80);
        assert_eq!(route.matches[0].headers["x-a"], istio::StringMatch::Present);
        assert_eq!(route.matches[0].headers["x-b"], istio::StringMatch::Exact("1".into()));
        let delay = route.fault.as_ref().and_then(|f| f.delay.as_ref()).unwrap();
        assert_eq!(delay.share(), 0.1);
        assert_eq!(delay.fixed_delay, Some(istio::Duration::from_secs(5)));
    }

    #[test]
    fn names_the_place_of_an_error() {
        for (spec, path, part) in [
            (json!({"hosts": "reviews"}), "spec.hosts", "a list"),
            (json!({"hosts": [7]}), "spec.hosts[0]", "\"7\""),
            (json!({"http": [{"timeout": "5"}]}), "spec.http[0].timeout", "10s"),
            (
                json!({"http": [{"route": [{"weight": -1}]}]}),
                "spec.http[0].route[0].weight",
                "between 0 and 4294967295",
            ),
            (
                json!({"http": [{"match": [{"headers": {"a.b": {"exact": "x", "regex": "y"}}}]}]}),
                "spec.http[0].match[0].headers[\"a.b\"]",
                "more than one",
            ),
            (
                json!({"http": [{"corsPolicy": {"unmatchedPreflights": "FORWARDS"}}]}),
                "spec.http[0].corsPolicy.unmatchedPreflights",
                "did you mean FORWARD?",
            ),
            (json!({"http": [null]}), "spec.http[0]", "is empty"),
            (json!([]), "spec", "is a list"),
        ] {
            let error = virtual_service(spec).0.unwrap_err();
            assert_eq!(error.path, path, "{error}");
            assert!(error.message.contains(part), "{error}");
        }
    }

    #[test]
    fn lists_unknown_fields_with_the_nearest_known() {
        let (spec, unknown) = virtual_service(json!({"host": ["a"], "http": [{"rout": [], "zzz": 1}]}));
        spec.unwrap();
        let found: Vec<_> = unknown.iter().map(|u| (u.path.as_str(), u.suggestion)).collect();
        let expected = [("spec.host", Some("hosts")), ("spec.http[0].rout", Some("route")), ("spec.http[0].zzz", None)];
        assert_eq!(found, expected);
    }

    #[test]
    fn reads_kubernetes_kinds_strictly() {
        use k8s_openapi::api::core::v1::{PodSpec, Service};
        let mut unknown = Vec::new();
        let pod = json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": 1, "memory": "64Mi"}}}]});
        let pod: PodSpec = read(&pod, "spec", Dialect::Kubernetes, &mut unknown).unwrap();
        assert_eq!(pod.containers[0].resources.as_ref().unwrap().limits.as_ref().unwrap()["cpu"].0, "1");
        let service =
            json!({"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": "80"}], "selectr": {}}});
        let error = read::<Service>(&service, "", Dialect::Kubernetes, &mut unknown).unwrap_err();
        assert_eq!(error.path, "spec.ports[0].port");
        let service = json!({"apiVersion": "v1", "kind": "Service", "spec": {"selectr": {}}});
        read::<Service>(&service, "", Dialect::Kubernetes, &mut unknown).unwrap();
        assert_eq!(unknown[0].path, "spec.selectr");
        assert_eq!(unknown[0].suggestion, Some("selector"));
    }

    #[test]
    fn depth_is_bounded() {
        let mut value = json!({});
        for _ in 0..500 {
            value = json!({"a": value});
        }
        let spec = json!({"configPatches": [{"patch": {"value": value}}]});
        let error = read::<istio::EnvoyFilter>(&spec, "spec", Dialect::ProtoJson, &mut Vec::new()).unwrap_err();
        assert!(error.message.contains("nested"), "{error}");
    }
}
