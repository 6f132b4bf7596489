//! Merging JSON objects as Kubernetes does: JSON merge patch, strategic merge patch, and the three-way merge of an apply.
//! Pure; which objects are merged, and what an annotation keeps, is for the callers.
//!
//! Source of the list keys: `patchMergeKey` and `patchStrategy` in Kubernetes' core, apps, batch and admissionregistration types.

use crate::definitions::is_built_in;
use serde_json::{Map, Value};
use std::collections::HashSet;

/// How lists are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lists {
    /// A list replaces a list (RFC 7386, and custom resources).
    Replace,
    /// Lists of objects with a known key are merged by that key (Kubernetes' own kinds).
    ByKey,
}

impl Lists {
    /// Kubernetes merges by key only in the kinds that it has compiled in; the Gateway API's are custom resources.
    pub fn of_group(group: &str) -> Self {
        if is_built_in(group) { Self::ByKey } else { Self::Replace }
    }
}

/// RFC 7386 on `target`.
pub fn merge_patch(target: &mut Value, patch: &Value) {
    json_patch::merge(target, patch);
}

/// Brings `current` to what `wanted` says. Fields of `original` (what was wanted last time) that `wanted` no longer has are
/// removed; fields that neither has stay.
pub fn three_way(lists: Lists, original: &Value, current: &Value, wanted: &Value) -> Value {
    three_way_field(lists, "", original, current, wanted)
}

fn three_way_field(lists: Lists, name: &str, original: &Value, current: &Value, wanted: &Value) -> Value {
    match (current, wanted) {
        (Value::Object(current), Value::Object(wanted)) => three_way_object(lists, original, current, wanted),
        (_, Value::Object(wanted)) => three_way_object(lists, &Value::Null, &Map::new(), wanted),
        (Value::Array(current), Value::Array(wanted)) if lists == Lists::ByKey => {
            three_way_list(name, original.as_array().map_or(&[], Vec::as_slice), current, wanted)
        }
        _ => wanted.clone(),
    }
}

fn three_way_object(
    lists: Lists,
    original: &Value,
    current: &Map<String, Value>,
    wanted: &Map<String, Value>,
) -> Value {
    let mut result = current.clone();
    let gone = |name: &String| wanted.get(name).is_none_or(Value::is_null);
    for name in original.as_object().into_iter().flatten().map(|(name, _)| name).chain(wanted.keys()) {
        if gone(name) {
            result.shift_remove(name);
        }
    }
    for (name, value) in wanted.iter().filter(|(_, v)| !v.is_null()) {
        let before = original.get(name).unwrap_or(&Value::Null);
        let merged = three_way_field(lists, name, before, current.get(name).unwrap_or(&Value::Null), value);
        result.insert(name.clone(), merged);
    }
    Value::Object(result)
}

fn three_way_list(name: &str, original: &[Value], current: &[Value], wanted: &[Value]) -> Value {
    if is_set(name) {
        let foreign = current.iter().filter(|v| !original.contains(v) && !wanted.contains(v));
        return Value::Array(wanted.iter().chain(foreign).cloned().collect());
    }
    let keys = merge_keys(name, current.iter().chain(wanted));
    // A key that is there twice tells nothing apart.
    let keyed = |items: &[Value]| {
        let mut seen = HashSet::new();
        items.iter().all(|item| key_of(keys, item).is_some_and(|key| seen.insert(key)))
    };
    if keys.is_empty() || !keyed(current) || !keyed(wanted) {
        return Value::Array(wanted.to_vec());
    }
    let find = |items: &[Value], key: &Option<Vec<String>>| items.iter().find(|i| key_of(keys, i) == *key).cloned();
    let mut merged = Vec::new();
    for item in current {
        let key = key_of(keys, item);
        let before = find(original, &key);
        match find(wanted, &key) {
            Some(want) => {
                let before = before.unwrap_or(Value::Null);
                merged.push(three_way_field(Lists::ByKey, "", &before, item, &want));
            }
            None if before.is_none() => merged.push(item.clone()),
            None => {}
        }
    }
    for want in wanted {
        let key = key_of(keys, want);
        if find(current, &key).is_none() {
            merged.push(three_way_field(Lists::ByKey, "", &Value::Null, &Value::Null, want));
        }
    }
    order_as(keys, &mut merged, wanted);
    Value::Array(merged)
}

/// Puts the items that `wanted` names into its order, unless they are in that order already (others may stand between).
fn order_as(keys: &[&str], items: &mut [Value], wanted: &[Value]) {
    let place = |item: &Value| wanted.iter().position(|w| key_of(keys, w) == key_of(keys, item));
    let places: Vec<usize> = items.iter().filter_map(place).collect();
    if !places.is_sorted() {
        items.sort_by_key(|item| place(item).unwrap_or(usize::MAX));
    }
}

/// Applies a strategic merge patch with its directives (`$patch`, `$retainKeys`, `$setElementOrder`,
/// `$deleteFromPrimitiveList`).
///
/// # Errors
/// A sentence that names an unknown directive.
pub fn strategic_patch(current: &Value, patch: &Value) -> Result<Value, String> {
    match (current, patch) {
        (Value::Object(current), Value::Object(patch)) => strategic_object(current.clone(), patch),
        (_, Value::Object(patch)) => strategic_object(Map::new(), patch),
        _ => Ok(patch.clone()),
    }
}

fn strategic_object(mut result: Map<String, Value>, patch: &Map<String, Value>) -> Result<Value, String> {
    match patch.get("$patch").and_then(Value::as_str) {
        None | Some("merge") => {}
        Some("replace" | "delete") => result.clear(),
        Some(other) => return Err(format!("unknown patch directive $patch: {other}; use merge, replace or delete")),
    }
    if let Some(keep) = patch.get("$retainKeys").and_then(Value::as_array) {
        result.retain(|name, _| keep.iter().any(|k| k.as_str() == Some(name)));
    }
    for (name, gone) in patch {
        let Some(list) = name.strip_prefix("$deleteFromPrimitiveList/") else { continue };
        if let (Some(Value::Array(items)), Some(gone)) = (result.get_mut(list), gone.as_array()) {
            items.retain(|item| !gone.contains(item));
        }
    }
    for (name, value) in patch.iter().filter(|(name, _)| !name.starts_with('$')) {
        if value.is_null() {
            result.shift_remove(name);
            continue;
        }
        let before = result.get(name).cloned().unwrap_or(Value::Null);
        let merged = match value {
            Value::Array(items) => strategic_list(name, &before, items)?,
            other => strategic_patch(&before, other)?,
        };
        result.insert(name.clone(), merged);
    }
    for (name, order) in patch {
        let Some(list) = name.strip_prefix("$setElementOrder/") else { continue };
        if let (Some(Value::Array(items)), Some(order)) = (result.get_mut(list), order.as_array()) {
            set_order(list, items, order);
        }
    }
    Ok(Value::Object(result))
}

fn strategic_list(name: &str, before: &Value, patch: &[Value]) -> Result<Value, String> {
    let directive = |item: &Value| item.get("$patch").and_then(Value::as_str).map(str::to_string);
    let mut items = before.as_array().cloned().unwrap_or_default();
    if is_set(name) {
        items.extend(patch.iter().filter(|p| !items.contains(p)).cloned().collect::<Vec<_>>());
        return Ok(Value::Array(items));
    }
    let keys = merge_keys(name, items.iter().chain(patch));
    let replace =
        patch.iter().any(|p| p.as_object().is_some_and(|o| o.len() == 1) && directive(p).as_deref() == Some("replace"));
    if keys.is_empty() || replace {
        return Ok(Value::Array(patch.iter().filter(|p| directive(p).is_none()).cloned().collect()));
    }
    for change in patch {
        let key = key_of(keys, change);
        let at = key.as_ref().and_then(|_| items.iter().position(|i| key_of(keys, i) == key));
        match (directive(change).as_deref(), at) {
            (Some("delete"), Some(at)) => drop(items.remove(at)),
            (Some("delete"), None) => {}
            (_, Some(at)) => {
                if let Some(item) = items.get_mut(at) {
                    *item = strategic_patch(item, change)?;
                }
            }
            (_, None) => items.push(strategic_patch(&Value::Null, change)?),
        }
    }
    Ok(Value::Array(items))
}

fn set_order(name: &str, items: &mut [Value], order: &[Value]) {
    let keys = merge_keys(name, items.iter());
    let same = |item: &Value, wanted: &Value| {
        if keys.is_empty() { item == wanted } else { key_of(keys, item) == key_of(keys, wanted) }
    };
    items.sort_by_key(|item| order.iter().position(|w| same(item, w)).unwrap_or(usize::MAX));
}

/// Lists of words that are merged as sets.
fn is_set(name: &str) -> bool {
    matches!(name, "finalizers" | "podCIDRs")
}

/// The fields that tell the items of a list apart; empty when the list is one value.
fn merge_keys<'a>(name: &str, mut items: impl Iterator<Item = &'a Value>) -> &'static [&'static str] {
    match name {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "env"
        | "volumes"
        | "imagePullSecrets"
        | "secrets"
        | "webhooks"
        | "matchConditions"
        | "resourceClaims" => &["name"],
        "ports" => match items.next() {
            Some(item) if item.get("containerPort").is_some() => &["containerPort", "protocol"],
            Some(item) if item.get("port").is_some() => &["port", "protocol"],
            _ => &[],
        },
        "volumeMounts" => &["mountPath"],
        "volumeDevices" => &["devicePath"],
        "hostAliases" | "podIPs" | "hostIPs" => &["ip"],
        "conditions" | "addresses" => &["type"],
        "ownerReferences" => &["uid"],
        "topologySpreadConstraints" => &["topologyKey", "whenUnsatisfiable"],
        "taints" => &["key", "effect"],
        _ => &[],
    }
}

/// An item's key; `None` when it has no such fields.
fn key_of(keys: &[&str], item: &Value) -> Option<Vec<String>> {
    let mut parts = Vec::with_capacity(keys.len());
    for (index, key) in keys.iter().enumerate() {
        parts.push(match item.get(*key) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            // Kubernetes' default for a port; the first key is never left out.
            None if index > 0 => (if *key == "protocol" { "TCP" } else { "" }).to_string(),
            None => return None,
        });
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn three_ways() {
        let table = [
            (
                "added, changed, removed, foreign",
                json!({"a": 1, "b": 1, "c": 1}),
                json!({"a": 1, "b": 1, "c": 1, "x": 1}),
                json!({"a": 2, "b": 1, "d": 1}),
                json!({"a": 2, "b": 1, "x": 1, "d": 1}),
            ),
            (
                "nested",
                json!({"m": {"a": 1, "b": 1}}),
                json!({"m": {"a": 1, "b": 1, "x": 1}}),
                json!({"m": {"a": 1}}),
                json!({"m": {"a": 1, "x": 1}}),
            ),
            ("null removes", json!({}), json!({"a": 1}), json!({"a": null}), json!({})),
            ("type changes", json!({"a": 1}), json!({"a": [1]}), json!({"a": {"b": 1}}), json!({"a": {"b": 1}})),
            (
                "first apply",
                json!({}),
                json!({"spec": {"x": 1}}),
                json!({"spec": {"y": 1}}),
                json!({"spec": {"x": 1, "y": 1}}),
            ),
            ("list without key", json!({"l": [1]}), json!({"l": [1, 2]}), json!({"l": [3]}), json!({"l": [3]})),
            (
                "container defaults stay",
                json!({"containers": [{"name": "a", "image": "1", "tty": true}]}),
                json!({"containers": [{"name": "inject"}, {"name": "a", "image": "1", "tty": true, "default": 1}]}),
                json!({"containers": [{"name": "a", "image": "2"}]}),
                json!({"containers": [{"name": "inject"}, {"name": "a", "image": "2", "default": 1}]}),
            ),
            (
                "container removed",
                json!({"containers": [{"name": "a"}, {"name": "b"}]}),
                json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}),
                json!({"containers": [{"name": "b"}]}),
                json!({"containers": [{"name": "b"}, {"name": "c"}]}),
            ),
            (
                "order as wanted",
                json!({}),
                json!({"env": [{"name": "a"}, {"name": "b"}]}),
                json!({"env": [{"name": "b"}, {"name": "a"}]}),
                json!({"env": [{"name": "b"}, {"name": "a"}]}),
            ),
            (
                "service ports",
                json!({"ports": [{"port": 80}]}),
                json!({"ports": [{"port": 80, "protocol": "TCP", "nodePort": 3}, {"port": 80, "protocol": "UDP"}]}),
                json!({"ports": [{"port": 80, "name": "http"}]}),
                json!({"ports": [{"port": 80, "protocol": "TCP", "nodePort": 3, "name": "http"}, {"port": 80, "protocol": "UDP"}]}),
            ),
            (
                "finalizers",
                json!({"finalizers": ["a"]}),
                json!({"finalizers": ["a", "x"]}),
                json!({"finalizers": ["b"]}),
                json!({"finalizers": ["b", "x"]}),
            ),
        ];
        for (what, original, current, wanted, want) in table {
            let got = three_way(Lists::ByKey, &original, &current, &wanted);
            assert_eq!(got, want, "{what}");
            assert_eq!(three_way(Lists::ByKey, &wanted, &got, &wanted), got, "{what}, again");
        }
        let http = json!({"http": [{"name": "a"}]});
        assert_eq!(three_way(Lists::Replace, &json!({}), &json!({"http": [{"name": "b"}]}), &http), http);
        let ports = |p| json!({"ports": [{"port": p}]});
        assert_eq!(
            three_way(Lists::Replace, &json!({}), &ports(1), &ports(2)),
            ports(2),
            "custom resources replace lists"
        );
    }

    #[test]
    fn strategic_patches() {
        let table = [
            (
                "merge by name",
                json!({"containers": [{"name": "a", "image": "1"}, {"name": "b"}]}),
                json!({"containers": [{"name": "a", "tty": true}, {"name": "c"}]}),
                json!({"containers": [{"name": "a", "image": "1", "tty": true}, {"name": "b"}, {"name": "c"}]}),
            ),
            (
                "webhooks by name",
                json!({"webhooks": [{"name": "a", "sideEffects": "None"}, {"name": "b"}]}),
                json!({"webhooks": [{"name": "a", "clientConfig": {"caBundle": "x"}}]}),
                json!({"webhooks": [{"name": "a", "sideEffects": "None", "clientConfig": {"caBundle": "x"}}, {"name": "b"}]}),
            ),
            (
                "delete by name",
                json!({"env": [{"name": "a"}, {"name": "b"}]}),
                json!({"env": [{"name": "a", "$patch": "delete"}]}),
                json!({"env": [{"name": "b"}]}),
            ),
            (
                "replace a list",
                json!({"env": [{"name": "a"}]}),
                json!({"env": [{"$patch": "replace"}, {"name": "c"}]}),
                json!({"env": [{"name": "c"}]}),
            ),
            (
                "replace a map",
                json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {}}}),
                json!({"strategy": {"$patch": "replace", "type": "Recreate"}}),
                json!({"strategy": {"type": "Recreate"}}),
            ),
            (
                "retain keys",
                json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {}}}),
                json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
                json!({"strategy": {"type": "Recreate"}}),
            ),
            (
                "order",
                json!({"containers": [{"name": "a"}, {"name": "b"}]}),
                json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b", "x": 1}]}),
                json!({"containers": [{"name": "b", "x": 1}, {"name": "a"}]}),
            ),
            (
                "set",
                json!({"finalizers": ["a", "b"]}),
                json!({"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}),
                json!({"finalizers": ["b", "c"]}),
            ),
            ("null", json!({"a": 1, "b": {"c": 1}}), json!({"a": null, "b": {"c": null}}), json!({"b": {}})),
            (
                "tolerations are one value",
                json!({"tolerations": [{"key": "a"}]}),
                json!({"tolerations": [{"key": "b"}]}),
                json!({"tolerations": [{"key": "b"}]}),
            ),
        ];
        for (what, current, patch, want) in table {
            assert_eq!(strategic_patch(&current, &patch).unwrap(), want, "{what}");
        }
        assert!(strategic_patch(&json!({}), &json!({"$patch": "explode"})).unwrap_err().contains("explode"));
    }

    #[test]
    fn a_key_that_is_there_twice_merges_nothing() {
        let node = |addresses: Value| json!({"addresses": addresses});
        let both =
            node(json!([{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "InternalIP", "address": "fd::1"}]));
        assert_eq!(three_way(Lists::ByKey, &both, &both, &both), both);
    }

    #[test]
    fn groups() {
        for (group, want) in [
            ("", Lists::ByKey),
            ("apps", Lists::ByKey),
            ("networking.k8s.io", Lists::ByKey),
            ("flowcontrol.apiserver.k8s.io", Lists::ByKey),
            ("networking.istio.io", Lists::Replace),
            ("gateway.networking.k8s.io", Lists::Replace),
        ] {
            assert_eq!(Lists::of_group(group), want, "{group}");
        }
    }
}
