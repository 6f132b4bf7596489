//! What a build reads of a pod. Whoever keeps many pods takes the rest away first: most of a pod is for the kubelet. The
//! readers of `kubernetes` and this list change together.

use serde_json::{Map, Value};
use weft_k8s_api::Object;

/// Fields of a pod that a build reads: in the spec, in each of its containers, in each of their ports, in the status, in each
/// of its conditions.
const SPEC: &[&str] = &["nodeName", "serviceAccountName", "hostNetwork", "containers", "initContainers"];
const CONTAINER: &[&str] = &["name", "ports"];
const PORT: &[&str] = &["name", "containerPort", "protocol"];
const STATUS: &[&str] = &["phase", "podIP", "podIPs", "conditions"];
const CONDITION: &[&str] = &["type", "status"];

/// Takes from a pod what no build reads; other objects stay as they are.
pub fn trim(object: &mut Object) {
    if object.kind != "Pod" || !object.group().is_empty() {
        return;
    }
    let meta = &mut object.metadata;
    meta.managed_fields = None;
    meta.finalizers = None;
    meta.generate_name = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.retain(|name, _| crate::parsed::is_of_mesh(name));
    }
    if meta.annotations.as_ref().is_some_and(|a| a.is_empty()) {
        meta.annotations = None;
    }
    object.body = kept(&mut object.body, &["spec", "status"]);
    if let Some(spec) = keep(object.body.get_mut("spec"), SPEC) {
        for list in ["containers", "initContainers"] {
            for container in each(spec.get_mut(list)) {
                let container = keep(Some(container), CONTAINER);
                each(container.and_then(|c| c.get_mut("ports"))).for_each(|port| drop(keep(Some(port), PORT)));
            }
        }
    }
    if let Some(status) = keep(object.body.get_mut("status"), STATUS) {
        let conditions = status.get_mut("conditions").and_then(Value::as_array_mut);
        if let Some(conditions) = conditions {
            conditions.retain(|c| c.get("type").and_then(Value::as_str) == Some("Ready"));
            conditions.iter_mut().for_each(|c| drop(keep(Some(c), CONDITION)));
        }
    }
}

/// Keeps these fields of an object.
fn keep<'a>(value: Option<&'a mut Value>, names: &[&str]) -> Option<&'a mut Map<String, Value>> {
    let fields = value?.as_object_mut()?;
    *fields = kept(fields, names);
    Some(fields)
}

/// A new map: the old one's memory is as large as everything that was in it.
fn kept(fields: &mut Map<String, Value>, names: &[&str]) -> Map<String, Value> {
    std::mem::take(fields).into_iter().filter(|(name, _)| names.contains(&name.as_str())).collect()
}

fn each(list: Option<&mut Value>) -> impl Iterator<Item = &mut Value> {
    list.and_then(Value::as_array_mut).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::POD;
    use serde_json::json;

    #[test]
    fn a_trimmed_pod_reads_the_same() {
        let whole: Object = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7", "labels": {"app": "a"},
                "annotations": {"sidecar.istio.io/status": "{}", "kubernetes.io/psp": "x"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "a-1", "uid": "r", "controller": true}],
                "managedFields": [{"manager": "kubelet"}],
            },
            "spec": {
                "nodeName": "node", "serviceAccountName": "sa", "hostNetwork": true, "volumes": [{"name": "v"}],
                "containers": [{
                    "name": "app", "image": "i", "env": [{"name": "E", "value": "v"}],
                    "ports": [{"name": "http", "containerPort": 8080, "hostPort": 1}],
                }],
                "initContainers": [{"name": "istio-proxy", "restartPolicy": "Always"}],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                "conditions": [
                    {"type": "Initialized", "status": "True"},
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                ],
                "containerStatuses": [{"name": "app", "image": "i"}],
            },
        }))
        .unwrap();
        let mut trimmed = whole.clone();
        trim(&mut trimmed);
        assert_eq!(POD(&trimmed).unwrap(), POD(&whole).unwrap());
        assert_eq!(crate::parsed::Meta::of(&trimmed), crate::parsed::Meta::of(&whole));
        let text = trimmed.to_value().to_string();
        for gone in ["volumes", "env", "containerStatuses", "psp", "kubelet", "Initialized", "lastTransitionTime"] {
            assert!(!text.contains(gone), "{gone} in {text}");
        }
        assert!(text.len() * 2 < whole.to_value().to_string().len());
        let mut other: Object = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"sessionAffinity": "None"},
        }))
        .unwrap();
        let before = other.clone();
        trim(&mut other);
        assert_eq!(other, before);
    }
}
