//! What a build reads of pods and endpoint slices. Whoever keeps many of them gives the rest away first: most of a pod is for
//! the kubelet. What stays is kept as text, for a tree of JSON values takes several times the memory. The readers of
//! `kubernetes` and these lists change together.

use serde_json::{Map, Value};
use std::borrow::Cow;
use weft_k8s_api::{Kept, Object};

/// Field of the body in which what is kept stands as JSON text.
const TEXT: &str = "weft.dev/kept";

const CONTAINER: Kept =
    Kept::Fields(&[("name", Kept::All), ("ports", Kept::Fields(&[("name", Kept::All), ("containerPort", Kept::All)]))]);
const POD: Kept = Kept::Fields(&[
    (
        "spec",
        Kept::Fields(&[
            ("nodeName", Kept::All),
            ("serviceAccountName", Kept::All),
            ("hostNetwork", Kept::All),
            ("containers", CONTAINER),
            ("initContainers", CONTAINER),
        ]),
    ),
    (
        "status",
        Kept::Fields(&[
            ("phase", Kept::All),
            ("podIP", Kept::All),
            ("podIPs", Kept::All),
            ("conditions", Kept::Fields(&[("type", Kept::All), ("status", Kept::All)])),
        ]),
    ),
]);
const SLICE: Kept = Kept::Fields(&[
    (
        "endpoints",
        Kept::Fields(&[
            ("addresses", Kept::All),
            ("conditions", Kept::All),
            ("targetRef", Kept::Fields(&[("kind", Kept::All), ("name", Kept::All)])),
            ("nodeName", Kept::All),
            ("zone", Kept::All),
        ]),
    ),
    ("ports", Kept::Fields(&[("name", Kept::All), ("port", Kept::All)])),
]);

/// What a build reads of the bodies of a kind's objects.
pub fn kept(group: &str, kind: &str) -> Kept {
    match (group, kind) {
        ("", "Pod") => POD,
        ("discovery.k8s.io", "EndpointSlice") => SLICE,
        _ => Kept::All,
    }
}

/// Takes from an object what no build reads, where objects are many; others stay as they are.
pub fn trim(object: &mut Object) {
    let kept = kept(object.group(), &object.kind);
    if kept == Kept::All || object.body.contains_key(TEXT) {
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
    if let Some(owners) = &mut meta.owner_references {
        owners.retain(|owner| owner.controller == Some(true));
    }
    let mut body = Value::Object(std::mem::take(&mut object.body));
    kept.apply(&mut body);
    let mut text = body.to_string();
    text.shrink_to_fit();
    object.body = Map::from_iter([(TEXT.to_string(), Value::String(text))]);
}

/// The body of an object, trimmed or not.
pub(crate) fn body(object: &Object) -> Cow<'_, Map<String, Value>> {
    match object.body.get(TEXT).and_then(Value::as_str).map(serde_json::from_str) {
        Some(Ok(body)) => Cow::Owned(body),
        _ => Cow::Borrowed(&object.body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::{ENDPOINT_SLICE, POD};
    use serde_json::json;

    fn object(value: Value) -> Object {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_trimmed_pod_reads_the_same() {
        let whole = object(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7", "labels": {"app": "a"},
                "annotations": {"proxy.istio.io/config": "{}", "sidecar.istio.io/status": "{}", "kubernetes.io/psp": "x"},
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
        }));
        let mut trimmed = whole.clone();
        trim(&mut trimmed);
        let want = POD(&whole).unwrap();
        assert!(want.ready && want.has_proxy && want.host_network && want.addresses.len() == 2, "{want:?}");
        assert_eq!(POD(&trimmed).unwrap(), want);
        assert_eq!(crate::parsed::Meta::of(&trimmed), crate::parsed::Meta::of(&whole));
        let text = trimmed.to_value().to_string();
        for gone in
            ["volumes", "env", "sidecar.istio.io/status", "containerStatuses", "psp", "kubelet", "lastTransitionTime"]
        {
            assert!(!text.contains(gone), "{gone} in {text}");
        }
        let again = trimmed.clone();
        trim(&mut trimmed);
        assert_eq!(trimmed, again, "trimmed twice is trimmed once");
    }

    #[test]
    fn so_does_an_endpoint_slice_and_others_stay() {
        let whole = object(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "a-1", "namespace": "n", "labels": {"kubernetes.io/service-name": "a"}},
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "h2c"}],
            "endpoints": [{
                "addresses": ["10.0.0.1"], "nodeName": "n", "zone": "z", "hints": {"forZones": [{"name": "z"}]},
                "conditions": {"ready": false, "serving": true, "terminating": true},
                "targetRef": {"kind": "Pod", "name": "p", "namespace": "n", "uid": "u"},
            }],
        }));
        let mut trimmed = whole.clone();
        trim(&mut trimmed);
        let want = ENDPOINT_SLICE(&whole).unwrap();
        assert!(want.endpoints[0].draining && want.endpoints[0].pod.as_deref() == Some("p"), "{want:?}");
        assert_eq!(ENDPOINT_SLICE(&trimmed).unwrap(), want);
        let mut other = object(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"sessionAffinity": "None"},
        }));
        let before = other.clone();
        trim(&mut other);
        assert_eq!(other, before);
    }
}
