//! Small helpers over untyped objects, used by all controllers.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_k8s_api::Object;
use weft_store::{DeleteOptions, ListQuery, MemoryStore};

/// All objects of a kind, in all namespaces.
pub fn list(store: &MemoryStore, group: &str, kind: &str) -> Vec<Arc<Object>> {
    store.list(&ListQuery::all(group, kind)).map(|list| list.items).unwrap_or_default()
}

/// The uid, or empty.
pub fn uid(object: &Object) -> &str {
    object.metadata.uid.as_deref().unwrap_or_default()
}

/// Whether the object is marked for deletion.
pub fn is_deleting(object: &Object) -> bool {
    object.metadata.deletion_timestamp.is_some()
}

/// The reference to the object's controller.
pub fn controller_of(object: &Object) -> Option<&OwnerReference> {
    object.metadata.owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true))
}

/// Whether `owner` controls `object`.
pub fn is_controlled_by(object: &Object, owner: &Object) -> bool {
    controller_of(object).is_some_and(|reference| reference.uid == uid(owner))
}

/// A reference that makes `owner` the controller.
pub fn owner_reference(owner: &Object) -> OwnerReference {
    OwnerReference {
        api_version: owner.api_version.clone(),
        kind: owner.kind.clone(),
        name: owner.name().into(),
        uid: uid(owner).into(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A new object under `owner`.
pub fn owned(api_version: &str, kind: &str, owner: &Object, labels: BTreeMap<String, String>) -> Object {
    Object {
        api_version: api_version.into(),
        kind: kind.into(),
        metadata: ObjectMeta {
            namespace: owner.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![owner_reference(owner)]),
            ..ObjectMeta::default()
        },
        body: Map::new(),
    }
}

/// A pod from the template of `owner`, with further labels; its name is still to be given.
pub fn pod_from_template(owner: &Object, template: &Value, more: &[(&str, &str)]) -> Object {
    let mut labels = string_map(&template["metadata"]["labels"]);
    labels.extend(more.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())));
    let mut pod = owned("v1", "Pod", owner, labels);
    let annotations = string_map(&template["metadata"]["annotations"]);
    pod.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    pod.body.insert("spec".into(), template["spec"].clone());
    pod
}

/// Reads a JSON object of strings; what is no string is left out.
pub fn string_map(value: &Value) -> BTreeMap<String, String> {
    let entries = value.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_string()))).collect()
}

/// Whether `labels` satisfy a `LabelSelector` (`matchLabels`, `matchExpressions`). An empty selector matches nothing here: a
/// workload without one owns nothing.
pub fn selects(selector: &Value, object: &Object) -> bool {
    let equal = string_map(&selector["matchLabels"]);
    let expressions = selector["matchExpressions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if equal.is_empty() && expressions.is_empty() {
        return false;
    }
    equal.iter().all(|(name, value)| object.label(name) == Some(value)) && expressions.iter().all(|e| holds(e, object))
}

fn holds(expression: &Value, object: &Object) -> bool {
    let actual = expression["key"].as_str().and_then(|key| object.label(key));
    let listed = |label: &str| expression["values"].as_array().is_some_and(|values| values.iter().any(|v| v == label));
    match expression["operator"].as_str() {
        Some("In") => actual.is_some_and(listed),
        Some("NotIn") => actual.is_none_or(|label| !listed(label)),
        Some("Exists") => actual.is_some(),
        Some("DoesNotExist") => actual.is_none(),
        _ => false,
    }
}

/// A number in `spec`, or the default.
pub fn spec_number(object: &Object, field: &str, default: i64) -> i64 {
    object.spec()[field].as_i64().unwrap_or(default)
}

/// A number in `status`, or 0.
pub fn status_number(object: &Object, field: &str) -> i64 {
    object.body.get("status").and_then(|status| status[field].as_i64()).unwrap_or(0)
}

/// A condition's status in `status.conditions`.
pub fn has_condition(object: &Object, kind: &str) -> bool {
    let conditions = object.body.get("status").map(|status| &status["conditions"]).and_then(Value::as_array);
    conditions.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == "True")
}

/// A pod's phase; a pod that has none yet is pending.
pub fn phase(pod: &Object) -> &str {
    pod.body.get("status").and_then(|status| status["phase"].as_str()).unwrap_or("Pending")
}

/// A pod's addresses, the main one first.
pub fn addresses_of(pod: &Object) -> impl Iterator<Item = &str> {
    let status = pod.body.get("status").unwrap_or(&Value::Null);
    let all = status["podIPs"].as_array().into_iter().flatten().filter_map(|one| one["ip"].as_str());
    // A status that only says the main one.
    let alone = status["podIP"].as_str().filter(|_| !status["podIPs"].is_array());
    all.chain(alone).filter(|address| !address.is_empty())
}

/// Whether a pod still counts as a replica: it is neither being deleted nor finished.
pub fn is_active(pod: &Object) -> bool {
    !is_deleting(pod) && !matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether a pod is ready and stays.
pub fn is_ready(pod: &Object) -> bool {
    !is_deleting(pod) && has_condition(pod, "Ready")
}

/// Writes `status`; an equal one costs nothing.
pub fn write_status(store: &MemoryStore, object: &Object, status: Value) {
    if object.body.get("status") == Some(&status) {
        return;
    }
    // Gone meanwhile is fine: the next pass will not find it.
    let _ = store.modify(&object.key(), |object| {
        object.body.insert("status".into(), status.clone());
    });
}

/// Deletes an object as a user would.
pub fn delete(store: &MemoryStore, object: &Object) {
    match store.delete(&object.key(), &DeleteOptions::default()) {
        Err(error) if !error.is_not_found() => tracing::warn!(%error, "cannot delete {}", object.key()),
        _ => {}
    }
}

/// Logs a refused creation once per pass; a refusal is no reason to stop the controller.
pub fn report<E: std::fmt::Display>(owner: &Object, result: Result<Arc<Object>, E>) -> Option<Arc<Object>> {
    result.inspect_err(|error| tracing::warn!(%error, "{} cannot create an object", owner.key())).ok()
}

/// Ten letters that stand for a value: equal values have equal ones, and renaming a field's order does not matter less than
/// it does to the value itself.
pub fn hash(value: &Value) -> String {
    // FNV-1a, so that the name is the same in every run and on every machine.
    let text = value.to_string();
    let mut state: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in text.bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    // Kubernetes' own alphabet for generated names: no vowels, no look-alikes.
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..10)
        .map(|_| {
            let letter = ALPHABET[(state % ALPHABET.len() as u64) as usize] as char;
            state /= ALPHABET.len() as u64;
            letter
        })
        .collect()
}

/// A condition with times kept from the earlier one where its status did not change.
pub fn condition(object: &Object, kind: &str, status: bool, reason: &str, message: &str) -> Value {
    let status = if status { "True" } else { "False" };
    let old = object.body.get("status").and_then(|s| s["conditions"].as_array()).into_iter().flatten();
    let old = old.into_iter().find(|c| c["type"] == kind && c["status"] == status);
    let same_reason = old.is_some_and(|c| c["reason"] == reason);
    let now = Value::from(now());
    let since = old.map_or(now.clone(), |c| c["lastTransitionTime"].clone());
    let updated = old.filter(|_| same_reason).map_or(now, |c| c["lastUpdateTime"].clone());
    json!({"type": kind, "status": status, "reason": reason, "message": message,
           "lastTransitionTime": since, "lastUpdateTime": updated})
}

/// The present time as Kubernetes writes it, in whole seconds.
pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Removes the fields whose value is 0, as Kubernetes leaves them out of a status.
pub fn without_zeros(mut status: Value) -> Value {
    if let Some(fields) = status.as_object_mut() {
        fields.retain(|_, value| *value != 0);
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_short_and_stable() {
        let (a, b) = (hash(&json!({"a": 1})), hash(&json!({"a": 2})));
        assert_eq!((a.len(), a == b, a == hash(&json!({"a": 1}))), (10, false, true));
    }

    #[test]
    fn selectors() {
        let pod: Object = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "x", "labels": {"app": "a", "tier": "web"}}}))
        .unwrap();
        for (selector, expected) in [
            (json!({}), false),
            (json!({"matchLabels": {"app": "a"}}), true),
            (json!({"matchLabels": {"app": "b"}}), false),
            (json!({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["web", "db"]}]}), true),
            (json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}), false),
            (
                json!({"matchLabels": {"app": "a"}, "matchExpressions": [{"key": "x", "operator": "NotIn", "values": ["1"]}]}),
                true,
            ),
        ] {
            assert_eq!(selects(&selector, &pod), expected, "{selector}");
        }
    }
}
