//! Objects that tests create: pods as a kubelet would have them, services with their slices, definitions of Istio's kinds.

use serde_json::{Value, json};
use weft_k8s_api::KindInfo;

/// Address of pod number `n`, in 10.0.0.0/8.
pub fn address(n: usize) -> String {
    format!("10.{}.{}.{}", 128 + ((n >> 16) & 0x7f), (n >> 8) & 0xff, n & 0xff)
}

/// A pod with an application and a proxy; its status is set apart, by [`running`].
pub fn pod(namespace: &str, name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": app, "version": "v1"}},
        "spec": {
            "serviceAccountName": "default",
            "containers": [
                {"name": app, "image": "app", "ports": [{"name": "http", "containerPort": 8080}]},
                {"name": "istio-proxy", "image": "proxy"},
            ],
        },
    })
}

/// The status of a pod that runs at `ip` and is ready.
pub fn running(ip: &str) -> Value {
    json!({
        "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "192.168.0.1",
        "conditions": [{"type": "Ready", "status": "True"}],
    })
}

/// A service on port 80 that selects `app`.
pub fn service(namespace: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": app, "namespace": namespace},
        "spec": {"selector": {"app": app}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    })
}

/// A slice of a service with ready pods: (name, address).
pub fn slice(namespace: &str, service: &str, pods: &[(String, String)]) -> Value {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|(name, ip)| {
            json!({
                "addresses": [ip], "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "name": name, "namespace": namespace},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("{service}-1"), "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service},
        },
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

/// A virtual service of `app` that leads to `subset`, or to all.
pub fn virtual_service(namespace: &str, app: &str, subset: Option<&str>) -> Value {
    let mut destination = json!({"host": app});
    if let Some(subset) = subset {
        destination["subset"] = subset.into();
    }
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": app, "namespace": namespace},
        "spec": {"hosts": [app], "http": [{"route": [{"destination": destination}]}]},
    })
}

/// A definition of a kind with these versions, the first one stored; fields are not checked.
pub fn definition(kind: &KindInfo, versions: &[&str]) -> Value {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let versions: Vec<Value> = versions
        .iter()
        .enumerate()
        .map(|(i, name)| {
            json!({
                "name": name, "served": true, "storage": i == 0, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": open, "status": open}}},
            })
        })
        .collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{}.{}", kind.plural, kind.group)},
        "spec": {
            "group": kind.group, "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
            "names": {
                "kind": kind.kind, "plural": kind.plural, "singular": kind.singular, "shortNames": kind.short,
                "listKind": format!("{}List", kind.kind),
            },
            "versions": versions,
        },
    })
}
