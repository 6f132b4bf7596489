//! Places in a tree: the path language of `--set` and of overlays.
//!
//! Steps are parted by dots; `\.` is a dot in a name. An item of a list is chosen by `[2]` its index, `[name:x]` a field,
//! `[30m]` its value, and `[-1]` is a new one at the end; with a dot before the bracket or without.
//!
//! Source: Istio's "Customizing the installation configuration", list item path selection.

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// Most steps of a path.
const MAX_STEPS: usize = 64;
/// Largest index.
const MAX_INDEX: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// A field.
    Name(String),
    /// An item by its place.
    Index(usize),
    /// A new last item.
    Append,
    /// An item that has this value in a field.
    Field(String, String),
    /// An item that is this value.
    Item(String),
}

fn parse(path: &str) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut name = String::new();
    let mut rest = path.chars();
    // A name ends at a dot, a bracket or the end; behind a bracket there is none.
    let mut wanted = true;
    while let Some(c) = rest.next() {
        match c {
            '\\' => name.push(rest.next().context("a path does not end with a backslash")?),
            '.' if name.is_empty() && wanted => bail!("a name is missing in the path {path:?}"),
            '.' => {
                take(&mut name, &mut steps);
                wanted = true;
            }
            '[' => {
                take(&mut name, &mut steps);
                let (inner, behind) =
                    rest.as_str().split_once(']').with_context(|| format!("{path:?}: ] is missing"))?;
                steps.push(selection(inner).with_context(|| format!("in the path {path:?}"))?);
                rest = behind.chars();
                wanted = false;
            }
            c => name.push(c),
        }
        if steps.len() > MAX_STEPS {
            bail!("the path {path:?} has more than {MAX_STEPS} steps");
        }
    }
    if name.is_empty() && wanted {
        bail!("a name is missing in the path {path:?}");
    }
    take(&mut name, &mut steps);
    Ok(steps)
}

fn take(name: &mut String, steps: &mut Vec<Step>) {
    if !name.is_empty() {
        steps.push(Step::Name(std::mem::take(name)));
    }
}

fn selection(inner: &str) -> anyhow::Result<Step> {
    if inner == "-1" {
        return Ok(Step::Append);
    }
    if let Ok(index) = inner.parse::<usize>() {
        if index > MAX_INDEX {
            bail!("the index {index} is larger than {MAX_INDEX}");
        }
        return Ok(Step::Index(index));
    }
    match inner.split_once(':') {
        _ if inner.is_empty() => bail!("[] chooses nothing; write [0], [name:x], [value] or [-1]"),
        // An image has a colon and is a value; a field's name has no slash.
        Some((field, value)) if !field.is_empty() && !field.contains('/') => {
            Ok(Step::Field(field.into(), value.into()))
        }
        _ => Ok(Step::Item(inner.into())),
    }
}

/// The fields that a path goes through; `None` is an item of a list.
///
/// # Errors
/// A path that cannot be read.
pub fn names(path: &str) -> anyhow::Result<Vec<Option<String>>> {
    let name = |step| match step {
        Step::Name(name) => Some(name),
        _ => None,
    };
    Ok(parse(path)?.into_iter().map(name).collect())
}

/// Sets the value at a path; what is missing on the way is made.
///
/// # Errors
/// A path that cannot be read, or an index behind the end of a list.
pub fn put(tree: &mut Value, path: &str, value: Value) -> anyhow::Result<()> {
    let mut at = tree;
    for step in parse(path)? {
        at = enter(at, &step).with_context(|| format!("at {step:?} of the path {path:?}"))?;
    }
    *at = value;
    Ok(())
}

fn enter<'a>(at: &'a mut Value, step: &Step) -> anyhow::Result<&'a mut Value> {
    if let Step::Name(name) = step {
        if !at.is_object() {
            *at = json!({});
        }
        return Ok(at.as_object_mut().context("not an object")?.entry(name.clone()).or_insert(Value::Null));
    }
    if !at.is_array() {
        *at = json!([]);
    }
    let list = at.as_array_mut().context("not a list")?;
    let found = match step {
        Step::Index(index) if *index > list.len() => {
            bail!("the list has {} items; [-1] puts one at its end", list.len())
        }
        Step::Index(index) => *index,
        step => position(list, step).unwrap_or(list.len()),
    };
    if found == list.len() {
        list.push(match step {
            Step::Field(field, value) => json!({field: scalar(value)}),
            _ => Value::Null,
        });
    }
    list.get_mut(found).context("no such item")
}

/// Removes the value at a path; false where there is none.
///
/// # Errors
/// A path that cannot be read.
pub fn remove(tree: &mut Value, path: &str) -> anyhow::Result<bool> {
    let steps = parse(path)?;
    let Some((last, before)) = steps.split_last() else { return Ok(false) };
    let mut at = tree;
    for step in before {
        match existing(at, step) {
            Some(next) => at = next,
            None => return Ok(false),
        }
    }
    Ok(match (last, at) {
        (Step::Name(name), Value::Object(fields)) => fields.shift_remove(name).is_some(),
        (step, Value::Array(list)) => match position(list, step) {
            Some(found) => {
                list.remove(found);
                true
            }
            None => false,
        },
        _ => false,
    })
}

fn existing<'a>(at: &'a mut Value, step: &Step) -> Option<&'a mut Value> {
    match (step, at) {
        (Step::Name(name), Value::Object(fields)) => fields.get_mut(name),
        (step, Value::Array(list)) => {
            let found = position(list, step)?;
            list.get_mut(found)
        }
        _ => None,
    }
}

/// The value at a path; null where there is none.
///
/// # Errors
/// A path that cannot be read.
pub fn get<'a>(tree: &'a Value, path: &str) -> anyhow::Result<&'a Value> {
    const NOTHING: &Value = &Value::Null;
    let mut at = tree;
    for step in parse(path)? {
        at = match (&step, at) {
            (Step::Name(name), Value::Object(fields)) => fields.get(name).unwrap_or(NOTHING),
            (step, Value::Array(list)) => position(list, step).and_then(|found| list.get(found)).unwrap_or(NOTHING),
            _ => NOTHING,
        };
    }
    Ok(at)
}

fn position(list: &[Value], step: &Step) -> Option<usize> {
    match step {
        Step::Index(index) => (*index < list.len()).then_some(*index),
        Step::Field(field, value) => list.iter().position(|item| text(&item[field.as_str()]) == *value),
        Step::Item(value) => list.iter().position(|item| text(item) == *value),
        Step::Name(_) | Step::Append => None,
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// `true`, `12` and `1.5` are what they look like; everything else is text.
pub fn scalar(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Bool(_) | Value::Number(_))) => value,
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Value {
        json!({"c": [{"name": "a", "args": ["--x", "30m"], "ports": [{"containerPort": 8080}]}, {"name": "b"}], "l": {"x.y": 1}})
    }

    #[test]
    fn values_are_put_where_the_path_says() {
        for (path, value, at, wanted) in [
            ("c.[name:a].args.[30m]", json!("60m"), "/c/0/args", json!(["--x", "60m"])),
            ("c[name:a].args[30m]", json!("60m"), "/c/0/args", json!(["--x", "60m"])),
            ("c.[name:a].args.[0]", json!("--y"), "/c/0/args/0", json!("--y")),
            ("c[0].args[-1]", json!("new"), "/c/0/args/2", json!("new")),
            (
                "c.[name:a].ports.[containerPort:8080].containerPort",
                json!(1234),
                "/c/0/ports",
                json!([{"containerPort": 1234}]),
            ),
            ("c.[name:new].image", json!("i"), "/c/2", json!({"name": "new", "image": "i"})),
            ("l.x\\.y", json!(2), "/l", json!({"x.y": 2})),
            ("new.path[0].x", json!(true), "/new", json!({"path": [{"x": true}]})),
            ("c.[name:b].env.[name:E].value", json!("v"), "/c/1/env", json!([{"name": "E", "value": "v"}])),
        ] {
            let mut all = tree();
            put(&mut all, path, value.clone()).unwrap();
            assert_eq!(all.pointer(at), Some(&wanted), "{path}");
            // What ends with a choice by value has another value now.
            let chosen_anew = path.contains("30m") || path.contains("8080") || path.contains("-1");
            assert!(chosen_anew || *get(&all, path).unwrap() == value, "{path}");
        }
    }

    #[test]
    fn values_are_removed() {
        for (path, at, left) in [
            ("c.[name:a].args.[30m]", "/c/0/args", json!(["--x"])),
            ("c[1]", "/c/1", Value::Null),
            ("l.x\\.y", "/l", json!({})),
            ("c.[name:a].nothing", "/c/1", json!({"name": "b"})),
            ("nothing.at.all", "/l", json!({"x.y": 1})),
        ] {
            let mut all = tree();
            let there = *get(&all, path).unwrap() != Value::Null;
            assert_eq!(remove(&mut all, path).unwrap(), there, "{path}");
            assert_eq!(all.pointer(at).cloned().unwrap_or_default(), left, "{path}");
        }
    }

    #[test]
    fn paths_that_say_nothing() {
        for (path, said) in [
            ("", "missing"),
            ("a..b", "missing"),
            (".a", "missing"),
            ("a.", "missing"),
            ("a[", "]"),
            ("a[]", "chooses nothing"),
            ("c[101]", "larger"),
            ("c[7]", "[-1]"),
            ("a\\", "backslash"),
        ] {
            let error = format!("{:#}", put(&mut tree(), path, json!(1)).unwrap_err());
            assert!(error.contains(said), "{path}: {error}");
        }
        assert!(put(&mut tree(), &"a.".repeat(70), json!(1)).is_err());
        assert_eq!((scalar("true"), scalar("1.5"), scalar("1.8.0")), (json!(true), json!(1.5), json!("1.8.0")));
    }
}
