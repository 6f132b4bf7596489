//! Text to objects: streams of YAML or JSON documents, each with the file and line it came from.
//!
//! Reads what `kubectl` reads: several documents, empty ones, `...` at the end of a document, lists of objects, `yes` and
//! `on` as booleans. What objects mean is checked by [`crate::validate()`].

use crate::de::{Dialect, UnknownField, read};
use crate::object::Object;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;
use std::fmt;

/// Largest text that is read, bytes.
pub const MAX_BYTES: usize = 32 * 1024 * 1024;

/// Where a document begins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// File, or a name such as `stdin`.
    pub file: String,
    /// Line, from 1.
    pub line: u64,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Text that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{location}: {message}")]
pub struct YamlError {
    /// Where.
    pub location: Location,
    /// What is wrong and what would be right.
    pub message: String,
}

/// An object and where it was written.
#[derive(Debug, Clone)]
pub struct Document {
    /// The object.
    pub object: Object,
    /// Where it begins.
    pub location: Location,
    /// Unknown fields of `metadata`, which the object itself does not keep.
    pub unknown_metadata: Vec<UnknownField>,
    tree: Spot,
}

impl Document {
    /// Where the value at a path such as `spec.http[0].route[1].weight` is written, or the nearest there is around it.
    pub fn locate(&self, path: &str) -> Location {
        let line = self.tree.line_of(path);
        Location { file: self.location.file.clone(), line }
    }
}

/// Reads all documents of a text. `file` is only named in locations. Lists are taken apart.
///
/// # Errors
/// The first place that cannot be read, or a document that is not an object.
pub fn documents(text: &str, file: &str) -> Result<Vec<Document>, YamlError> {
    let mut documents = Vec::new();
    for tree in parse(text).map_err(|(line, message)| error(file, line, message))? {
        collect(tree, file, &mut documents)?;
    }
    Ok(documents)
}

/// Reads a text that is one value, such as the mesh config. An empty text is an empty object.
///
/// # Errors
/// A sentence with the line that cannot be read.
pub fn value(text: &str) -> Result<Value, String> {
    let mut trees = parse(text).map_err(|(line, message)| format!("line {line}: {message}"))?;
    match trees.len() {
        0 => Ok(Value::Object(Map::new())),
        1 => Ok(trees.remove(0).into_value()),
        n => Err(format!("has {n} documents; keep one")),
    }
}

/// Writes a value as YAML.
///
/// # Errors
/// Only for values that YAML cannot hold.
pub fn write<T: serde::Serialize>(value: &T) -> Result<String, String> {
    serde_saphyr::to_string(value).map_err(|e| e.to_string())
}

fn error(file: &str, line: u64, message: String) -> YamlError {
    YamlError { location: Location { file: file.to_string(), line: line.max(1) }, message }
}

/// Line and message of what is wrong.
type ParseError = (u64, String);

fn parse(text: &str) -> Result<Vec<Spot>, ParseError> {
    if text.len() > MAX_BYTES {
        return Err((1, format!("the text is larger than {MAX_BYTES} bytes; split it")));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_buffered_comment_events: 65_536,
            max_events: 8_000_000,
            max_nodes: 4_000_000,
            max_documents: 65_536,
            max_depth: 64,
        },
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options::<Spot>(text, options)
        .map_err(|e| explain(text, e.location().map_or(1, |l| l.line()), &e.to_string()))
}

/// The parser's message, and what the line suggests.
fn explain(text: &str, line: u64, message: &str) -> ParseError {
    // The location is said already, with the file.
    let message = message.lines().next().unwrap_or_default();
    let message = message.split(" at line ").next().unwrap_or(message).trim_end_matches('.');
    let from = usize::try_from(line.saturating_sub(1)).unwrap_or(0);
    let mut lines = (line..).zip(text.lines().skip(from));
    // A tab is reported where the value before it began.
    let tab = lines.clone().take(2).find(|(_, written)| {
        let indent = &written[..written.len() - written.trim_start().len()];
        indent.contains('\t')
    });
    if let Some((line, _)) = tab {
        return (line, format!("{message}: the line is indented with a tab; YAML wants spaces"));
    }
    match lines.next().map(|(_, written)| written.trim()).filter(|written| !written.is_empty()) {
        Some(written) => (line, format!("{message}, near {:?}", written.chars().take(80).collect::<String>())),
        None => (line, message.to_string()),
    }
}

/// Adds the object a tree is, or the objects of the list that it is.
fn collect(tree: Spot, file: &str, documents: &mut Vec<Document>) -> Result<(), YamlError> {
    let line = tree.line;
    let Node::Map(fields) = &tree.node else {
        let message = "is not an object; it must have apiVersion, kind and metadata".to_string();
        return Err(error(file, line, format!("the document {message}")));
    };
    let text = |name: &str| match fields.iter().find(|(key, _)| key == name) {
        Some((_, Spot { node: Node::Scalar(Value::String(text)), .. })) if !text.is_empty() => Ok(text.clone()),
        Some((_, Spot { node: Node::Scalar(Value::Null), .. })) | None => {
            Err(error(file, line, format!("the document has no {name}; every object needs apiVersion and kind")))
        }
        Some((_, spot)) => Err(error(file, spot.line, format!("{name} must be a string"))),
    };
    let (api_version, kind) = (text("apiVersion")?, text("kind")?);
    if kind.ends_with("List") && fields.iter().any(|(key, _)| key == "items") {
        return collect_list(tree, file, documents);
    }
    let mut value = match tree.clone().into_value() {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    for name in ["apiVersion", "kind"] {
        value.remove(name);
    }
    let mut unknown_metadata = Vec::new();
    let metadata = match value.remove("metadata") {
        None | Some(Value::Null) => ObjectMeta::default(),
        Some(metadata) => read(&metadata, "metadata", Dialect::Kubernetes, &mut unknown_metadata)
            .map_err(|e| error(file, tree.line_of(&e.path), format!("{kind}: {e}")))?,
    };
    let object = Object { api_version, kind, metadata, body: value };
    let location = Location { file: file.to_string(), line };
    documents.push(Document { object, location, unknown_metadata, tree });
    Ok(())
}

fn collect_list(tree: Spot, file: &str, documents: &mut Vec<Document>) -> Result<(), YamlError> {
    let Node::Map(fields) = tree.node else { return Ok(()) };
    for (_, items) in fields.into_iter().filter(|(key, _)| key == "items") {
        match items.node {
            Node::List(list) => {
                for item in list {
                    collect(item, file, documents)?;
                }
            }
            Node::Scalar(Value::Null) => {}
            _ => return Err(error(file, items.line, "items must be a list of objects".to_string())),
        }
    }
    Ok(())
}

/// A value with the line it is written on.
#[derive(Debug, Clone, PartialEq)]
struct Spot {
    line: u64,
    node: Node,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Scalar(Value),
    List(Vec<Spot>),
    Map(Vec<(String, Spot)>),
}

impl Spot {
    fn into_value(self) -> Value {
        match self.node {
            Node::Scalar(value) => value,
            Node::List(list) => Value::Array(list.into_iter().map(Spot::into_value).collect()),
            Node::Map(fields) => Value::Object(fields.into_iter().map(|(k, v)| (k, v.into_value())).collect()),
        }
    }

    /// Follows a path as far as it goes.
    fn line_of(&self, path: &str) -> u64 {
        let (mut spot, mut rest) = (self, path);
        while !rest.is_empty() {
            let (step, after) = next_step(rest);
            let next = match &spot.node {
                Node::Map(fields) => fields.iter().find(|(key, _)| *key == step).map(|(_, value)| value),
                Node::List(list) => step.parse::<usize>().ok().and_then(|index| list.get(index)),
                Node::Scalar(_) => None,
            };
            let Some(next) = next else { break };
            (spot, rest) = (next, after);
        }
        spot.line
    }
}

/// The first step of `a.b[0]["c.d"]`, and what follows it.
fn next_step(path: &str) -> (String, &str) {
    let path = path.strip_prefix('.').unwrap_or(path);
    if let Some(quoted) = path.strip_prefix("[\"")
        && let Some(end) = quoted.find("\"]")
    {
        return (quoted[..end].to_string(), &quoted[end + 2..]);
    }
    if let Some(index) = path.strip_prefix('[')
        && let Some(end) = index.find(']')
    {
        return (index[..end].to_string(), &index[end + 1..]);
    }
    let end = path.find(['.', '[', ':']).unwrap_or(path.len());
    // A path that makes no progress would be followed for ever.
    if end == 0 { (String::new(), "") } else { (path[..end].to_string(), &path[end..]) }
}

impl<'de> Deserialize<'de> for Spot {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Node>::deserialize(deserializer)?;
        Ok(Spot { line: spanned.referenced.line(), node: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("the number is not finite"))?;
        Ok(Node::Scalar(Value::Number(number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(entry) = entries.next_entry::<String, Spot>()? {
            fields.push(entry);
        }
        Ok(Node::Map(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        documents(text, "f.yaml").unwrap().iter().map(|d| d.object.key().to_string()).collect()
    }

    #[test]
    fn reads_streams_of_documents() {
        let text = "\u{feff}# a comment\n---\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n...\n---\n# nothing\n---\nnull\n---\n{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {\"name\": \"b\", \"namespace\": \"n\"}}\n...\n";
        assert_eq!(names(text), ["Namespace a", "Service n/b"]);
        assert_eq!(names(""), [""; 0]);
        assert_eq!(names("# only a comment\n"), [""; 0]);
        let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata:\n    name: p\n- {apiVersion: v1, kind: Pod, metadata: {name: q}}\n";
        assert_eq!(names(list), ["Pod p", "Pod q"]);
        let documents = documents(list, "f.yaml").unwrap();
        assert_eq!(documents[0].location.to_string(), "f.yaml:4");
        assert_eq!(documents[1].location.line, 8);
    }

    #[test]
    fn locates_fields() {
        let text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: a\n  labels:\n    x.y/z: '1'\nspec:\n  http:\n  - route:\n    - destination: {host: a}\n    - destination: {host: b}\n      weight: 5\n";
        let document = &documents(text, "vs.yaml").unwrap()[0];
        for (path, line) in [
            ("spec.http[0].route[1].weight", 12),
            ("spec.http[0].route[1].wait", 11),
            ("spec.http[0].route[7]", 10),
            ("metadata.labels[\"x.y/z\"]", 6),
            ("nothing.here", 1),
            ("", 1),
        ] {
            assert_eq!(document.locate(path).line, line, "{path}");
        }
    }

    #[test]
    fn types_of_scalars() {
        let text = "a: yes\nb: 010\nc: 0x1F\nd: 1.5\ne: '1'\nf: ~\ng: 2024-01-01\n8080: x\nh: &p {k: v}\ni: *p\n";
        let value = value(text).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"a": true, "b": 8, "c": 31, "d": 1.5, "e": "1", "f": null, "g": "2024-01-01",
                "8080": "x", "h": {"k": "v"}, "i": {"k": "v"}})
        );
        assert!(super::value("a: 1\n---\nb: 2\n").is_err());
        // As kubectl reads them.
        let list = super::value("[n, no, on, y, 010, 0o10, 0x1F, 1_000, .5, 1:30, 2024-01-01]").unwrap();
        let wanted = serde_json::json!([false, false, true, true, 8, 8, 31, 1000, 0.5, "1:30", "2024-01-01"]);
        assert_eq!(list, wanted);
    }

    #[test]
    fn names_file_and_line_of_what_is_malformed() {
        for (text, line, part) in [
            ("apiVersion: v1\nkind: Pod\n\tmetadata: {}\n", 3, "tab"),
            ("apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  name: b\n", 5, "name"),
            ("a: [1, 2\nb: 3\n", 2, ""),
            ("kind: Pod\n", 1, "no apiVersion"),
            ("apiVersion: v1\nkind: 7\n", 2, "kind must be a string"),
            ("- a\n", 1, "not an object"),
            ("apiVersion: v1\nkind: Pod\nmetadata:\n  labels:\n    version: 1\n", 5, "\"1\""),
            ("apiVersion: v1\nkind: List\nitems: 7\n", 3, "list"),
            ("a: b: c\n", 1, ""),
            ("a: \"unclosed\n", 2, "quoted"),
        ] {
            let error = documents(text, "bad.yaml").unwrap_err();
            assert_eq!(error.location.file, "bad.yaml");
            assert_eq!(error.location.line, line, "{text:?}: {error}");
            assert!(error.to_string().contains(part), "{text:?}: {error}");
        }
    }

    #[test]
    fn bounds_hold() {
        let deep = format!("a: {}{}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(value(&deep).is_err());
        let laughs = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
        assert!(value(laughs).is_err());
    }

    #[test]
    fn unknown_metadata_is_kept_apart() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, label: {x: y}}\n";
        let document = &documents(text, "f").unwrap()[0];
        assert_eq!(document.unknown_metadata[0].path, "metadata.label");
        assert_eq!(document.unknown_metadata[0].suggestion, Some("labels"));
    }
}
