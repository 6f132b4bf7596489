//! Objects that outlive the lab: which of them are kept in the state directory, and in which state they come back. The file
//! itself is [`weft_store::durable`]'s.
//!
//! Kept is what somebody wants: everything but what controllers and nodes make anew from it.

use serde_json::{Value, json};
use std::path::Path;
use weft_k8s_api::Object;
use weft_store::MemoryStore;
use weft_store::durable::{Durable, DurableError};

/// Puts the objects of an earlier lab back, and keeps the file equal to the store from now on. Returns how many came back.
///
/// # Errors
/// When the file cannot be used.
pub fn restore(store: &MemoryStore, folder: &Path) -> Result<usize, DurableError> {
    let (durable, objects) = Durable::open(folder, is_kept)?;
    let count = store.restore(objects.into_iter().filter_map(revived));
    tokio::spawn(durable.run(store.clone()));
    Ok(count)
}

fn is_kept(object: &Object) -> bool {
    let owned = object.metadata.owner_references.as_ref().is_some_and(|owners| !owners.is_empty());
    match (object.group(), object.kind.as_str()) {
        ("", "Event" | "Node" | "Endpoints") | ("coordination.k8s.io", "Lease") => false,
        ("", "Pod") | ("discovery.k8s.io", "EndpointSlice") => !owned,
        _ => true,
    }
}

/// A pod that ran has to be started again, and one that was being stopped has stopped.
fn revived(mut object: Object) -> Option<Object> {
    if object.kind != "Pod" || !object.group().is_empty() {
        return Some(object);
    }
    if object.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let phase = object.body.get("status").and_then(|s| s.get("phase")).and_then(Value::as_str).unwrap_or_default();
    if !matches!(phase, "Succeeded" | "Failed") {
        object.body.insert("status".into(), json!({"phase": "Pending"}));
    }
    Some(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(phase: &str, more: Value) -> Object {
        let mut value = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n"},
            "spec": {"nodeName": "weft-lab"}, "status": {"phase": phase, "podIP": "10.244.0.9"},
        });
        for (name, field) in more.as_object().unwrap() {
            value["metadata"][name] = field.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_is_kept() {
        let owned =
            json!({"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "1"}]});
        assert!(is_kept(&pod("Running", json!({}))) && !is_kept(&pod("Running", owned)));
        let revived = super::revived(pod("Running", json!({}))).unwrap();
        assert_eq!(revived.body["status"], json!({"phase": "Pending"}));
        assert_eq!(super::revived(pod("Succeeded", json!({}))).unwrap().body["status"]["phase"], "Succeeded");
        assert!(super::revived(pod("Running", json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}))).is_none());
    }
}
