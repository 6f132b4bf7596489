//! A pod, or the template of one, as JSON: `metadata` and `spec`, and short ways to its parts.

use crate::annotations::PROXY;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Metadata's and spec's maps and lists, looked at.
pub(crate) trait Pod {
    /// A label's value.
    fn label(&self, name: &str) -> Option<&str>;
    /// An annotation's value.
    fn annotation(&self, name: &str) -> Option<&str>;
    /// The items of a list of the spec.
    fn list(&self, field: &str) -> &[Value];
    /// The proxy's container, wherever it stands.
    fn proxy(&self) -> Option<&Value>;
}

impl Pod for Value {
    fn label(&self, name: &str) -> Option<&str> {
        self["metadata"]["labels"][name].as_str()
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        self["metadata"]["annotations"][name].as_str()
    }

    fn list(&self, field: &str) -> &[Value] {
        self["spec"][field].as_array().map_or(&[], Vec::as_slice)
    }

    fn proxy(&self) -> Option<&Value> {
        let all = self.list("containers").iter().chain(self.list("initContainers"));
        all.into_iter().find(|container| container["name"] == PROXY)
    }
}

/// A map of the metadata (`labels`, `annotations`), made where it is missing.
pub(crate) fn meta<'a>(pod: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    object(&mut pod["metadata"][field])
}

/// A list of the spec, made where it is missing.
pub(crate) fn list<'a>(pod: &'a mut Value, field: &str) -> &'a mut Vec<Value> {
    array(&mut pod["spec"][field])
}

fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object just above"),
    }
}

/// The value as a list, made where it is missing.
pub(crate) fn array(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = json!([]);
    }
    match value {
        Value::Array(items) => items,
        _ => unreachable!("made a list just above"),
    }
}

/// Takes away lists that are empty and were not there before.
pub(crate) fn tidy(pod: &mut Value, before: &Value) {
    for field in ["initContainers", "volumes", "imagePullSecrets"] {
        if pod.list(field).is_empty()
            && before["spec"][field].is_null()
            && let Some(spec) = pod["spec"].as_object_mut()
        {
            spec.shift_remove(field);
        }
    }
}

/// The proxy's container, to be changed.
pub(crate) fn proxy_mut(pod: &mut Value) -> Option<&mut Value> {
    let at = ["containers", "initContainers"].into_iter().find_map(|field| {
        pod.list(field).iter().position(|container| container["name"] == PROXY).map(|at| (field, at))
    })?;
    pod["spec"][at.0].get_mut(at.1)
}

/// Sets a variable of a container; one of the same name goes.
pub(crate) fn set_env(container: &mut Value, name: &str, value: &str) {
    let env = array(&mut container["env"]);
    env.retain(|known| known["name"] != name);
    env.push(json!({"name": name, "value": value}));
}

/// A variable's value.
pub(crate) fn env<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    let env = container["env"].as_array()?;
    env.iter().find(|known| known["name"] == name)?["value"].as_str()
}

/// A map of strings.
pub(crate) fn strings(value: &Value) -> BTreeMap<String, String> {
    let fields = value.as_object().into_iter().flatten();
    fields.map(|(name, value)| (name.clone(), crate::values::as_text(value))).collect()
}

/// The JSON patch (RFC 6902) that makes `after` of `before`: whole fields of `metadata` and `spec` are replaced. Who owns which
/// field (`managedFields`) is the API server's own: it fills that before it asks, and what is left out of it is gone for good.
pub fn patch(before: &Value, after: &Value) -> Value {
    let mut operations = Vec::new();
    for part in ["metadata", "spec"] {
        let (Some(new), old) = (after[part].as_object(), &before[part]) else { continue };
        if old.is_null() {
            operations.push(json!({"op": "add", "path": format!("/{part}"), "value": new}));
            continue;
        }
        for (name, value) in new.iter().filter(|(name, value)| old[name.as_str()] != **value) {
            let path = format!("/{part}/{}", name.replace('~', "~0").replace('/', "~1"));
            operations.push(json!({"op": "add", "path": path, "value": value}));
        }
        let gone = |name: &&String| !new.contains_key(*name) && *name != "managedFields";
        for name in old.as_object().into_iter().flatten().map(|(name, _)| name).filter(gone) {
            operations.push(
                json!({"op": "remove", "path": format!("/{part}/{}", name.replace('~', "~0").replace('/', "~1"))}),
            );
        }
    }
    operations.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_server_keeps_is_in_no_patch() {
        let before = json!({"metadata": {"name": "a", "managedFields": [{"manager": "kubectl"}], "labels": {"a": "1"}}, "spec": {}});
        let after = json!({"metadata": {"name": "a"}, "spec": {"containers": []}});
        let wanted = json!([
            {"op": "remove", "path": "/metadata/labels"},
            {"op": "add", "path": "/spec/containers", "value": []},
        ]);
        assert_eq!(patch(&before, &after), wanted);
    }
}
