//! What a patch does to JSON: merging, and the operations on lists of named things.

use super::{Item, retired};
use serde_json::Value;
use weft_k8s_api::istio::PatchOperation as Op;

/// Merges `more` into `value` as protobuf does: objects field by field, lists by appending (or, when told, replacing), words
/// and numbers by replacing. Packed messages of two types do not mix: the new one replaces the old.
pub(super) fn merge(value: &mut Value, more: &Value, replace_lists: bool) {
    match (value, more) {
        (Value::Object(old), Value::Object(new)) => {
            let types = (old.get("@type"), new.get("@type"));
            if let (Some(a), Some(b)) = types
                && a != b
            {
                *old = new.clone();
                return;
            }
            for (name, new) in new {
                match old.get_mut(name) {
                    Some(old) => merge(old, new, replace_lists),
                    None => drop(old.insert(name.clone(), new.clone())),
                }
            }
        }
        (Value::Array(old), Value::Array(new)) if !replace_lists => old.extend(new.iter().cloned()),
        (old, new) => *old = new.clone(),
    }
}

/// The list of that field.
pub(super) fn list<'a>(value: &'a mut Value, field: &str) -> Option<&'a mut Vec<Value>> {
    value.get_mut(field).and_then(Value::as_array_mut)
}

/// A text of that field; empty when there is none.
pub(super) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Names that filters had before they had their present ones.
fn present_name(name: &str) -> &str {
    match name {
        "envoy.http_connection_manager" => "envoy.filters.network.http_connection_manager",
        "envoy.tcp_proxy" => "envoy.filters.network.tcp_proxy",
        "envoy.router" => "envoy.filters.http.router",
        "envoy.cors" => "envoy.filters.http.cors",
        "envoy.fault" => "envoy.filters.http.fault",
        other => other,
    }
}

/// Whether a thing has the name that is asked for; no name is any.
pub(super) fn has_name(value: &Value, wanted: &str) -> bool {
    let name = text(value, "name");
    wanted.is_empty() || name == present_name(wanted) || retired::is_stats(wanted, name)
}

/// Applies one patch to a list of named things (filters, routes). `wanted` says which are meant. What is added without a
/// place stands before the last one when that ends the list by its nature (`ends`).
pub(super) fn on_list(
    list: &mut Vec<Value>,
    item: &Item<'_>,
    value: Option<&Value>,
    wanted: &dyn Fn(&Value) -> bool,
    ends: &dyn Fn(&Value) -> bool,
) {
    let at = list.iter().position(wanted);
    let place = match (item.op(), at) {
        (Op::Remove, Some(_)) => {
            list.retain(|v| !wanted(v));
            item.applied();
            return;
        }
        (op @ (Op::Merge | Op::MergeAndReplaceList), Some(_)) => {
            let Some(value) = value else { return };
            list.iter_mut().filter(|v| wanted(v)).for_each(|v| merge(v, value, op == Op::MergeAndReplaceList));
            item.applied();
            return;
        }
        (Op::Replace, Some(at)) => {
            if let Some(value) = value {
                list[at] = value.clone();
                item.applied();
            }
            return;
        }
        (Op::InsertBefore, Some(at)) => at,
        (Op::InsertAfter, Some(at)) => at + 1,
        (Op::InsertFirst, _) => 0,
        (Op::Add, _) if list.last().is_some_and(ends) => list.len() - 1,
        (Op::Add, _) => list.len(),
        _ => return,
    };
    if let Some(value) = value {
        list.insert(place.min(list.len()), value.clone());
        item.applied();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn merges_as_protobuf_does() {
        for (old, more, replace, want) in [
            (
                json!({"a": 1, "b": {"c": [1]}}),
                json!({"b": {"c": [2], "d": "x"}}),
                false,
                json!({"a": 1, "b": {"c": [1, 2], "d": "x"}}),
            ),
            (json!({"c": [1]}), json!({"c": [2]}), true, json!({"c": [2]})),
            (
                json!({"typed_config": {"@type": "t/A", "x": 1}}),
                json!({"typed_config": {"@type": "t/A", "y": 2}}),
                false,
                json!({"typed_config": {"@type": "t/A", "x": 1, "y": 2}}),
            ),
            (
                json!({"typed_config": {"@type": "t/A", "x": 1}}),
                json!({"typed_config": {"@type": "t/B", "y": 2}}),
                false,
                json!({"typed_config": {"@type": "t/B", "y": 2}}),
            ),
        ] {
            let mut value = old.clone();
            merge(&mut value, &more, replace);
            assert_eq!(value, want, "{old} {more}");
        }
    }
}
