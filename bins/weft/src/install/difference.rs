//! What two trees differ in, one line a place: `path: a -> b`.

use serde_json::{Map, Value};

/// Most lines about one pair.
const MAX_LINES: usize = 1000;

/// Differences of lists of objects, which are known by kind, namespace and name; empty when there are none.
pub fn of_objects(a: &[Value], b: &[Value]) -> String {
    let mut text = String::new();
    for object in a {
        let key = key(object);
        match b.iter().find(|other| self::key(other) == key) {
            None => text.push_str(&format!("\nObject {key} is missing in B\n")),
            Some(other) => {
                let lines = of_trees(object, other);
                if !lines.is_empty() {
                    text.push_str(&format!("\nObject {key} has diffs:\n\n{}\n", lines.join("\n")));
                }
            }
        }
    }
    for object in b.iter().filter(|object| a.iter().all(|other| key(other) != key(object))) {
        text.push_str(&format!("\nObject {} is missing in A\n", key(object)));
    }
    text
}

/// `Kind:namespace:name`.
fn key(object: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let metadata = &object["metadata"];
    format!("{}:{}:{}", word(&object["kind"]), word(&metadata["namespace"]), word(&metadata["name"]))
}

/// Places in which two trees differ.
pub fn of_trees(a: &Value, b: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    walk(a, b, "", &mut lines);
    lines
}

fn walk(a: &Value, b: &Value, path: &str, lines: &mut Vec<String>) {
    if a == b || lines.len() >= MAX_LINES {
        return;
    }
    let (empty, none) = (Map::new(), Value::Null);
    match (a, b) {
        // What is there on one side alone is told leaf by leaf.
        (Value::Object(a), Value::Null) if !a.is_empty() => fields(a, &empty, path, lines),
        (Value::Null, Value::Object(b)) if !b.is_empty() => fields(&empty, b, path, lines),
        (Value::Object(a), Value::Object(b)) => fields(a, b, path, lines),
        (Value::Array(a), Value::Array(b)) => {
            for at in 0..a.len().max(b.len()) {
                walk(a.get(at).unwrap_or(&none), b.get(at).unwrap_or(&none), &format!("{path}[{at}]"), lines);
            }
        }
        _ => lines.push(format!("{path}: {} -> {}", shown(a), shown(b))),
    }
}

fn fields(a: &Map<String, Value>, b: &Map<String, Value>, path: &str, lines: &mut Vec<String>) {
    let none = Value::Null;
    for name in a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))) {
        let place = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        walk(a.get(name).unwrap_or(&none), b.get(name).unwrap_or(&none), &place, lines);
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<none>".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn places_and_objects() {
        let (a, b) =
            (json!({"x": {"y": 1, "z": [1, 2]}, "only": {"a": "b"}}), json!({"x": {"y": 2, "z": [1]}, "new": true}));
        assert_eq!(
            of_trees(&a, &b),
            ["x.y: 1 -> 2", "x.z[1]: 2 -> <none>", "only.a: b -> <none>", "new: <none> -> true"]
        );
        let object = |name: &str, data: &str| json!({"kind": "ConfigMap", "metadata": {"name": name, "namespace": "n"}, "data": {"k": data}});
        let text = of_objects(&[object("a", "1"), object("b", "1")], &[object("a", "2"), object("c", "1")]);
        for line in [
            "ConfigMap:n:a has diffs:\n\ndata.k: 1 -> 2",
            "ConfigMap:n:b is missing in B",
            "ConfigMap:n:c is missing in A",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert_eq!(of_objects(&[object("a", "1")], &[object("a", "1")]), "");
    }
}
