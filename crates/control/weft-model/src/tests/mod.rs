//! Tables: objects in, facts of the snapshot out.

mod bad_input;
mod gateway_api;
mod incremental;
mod policies;
mod precedence;
mod routing;
mod services;

use crate::{Inputs, MeshSnapshot, build};
use serde_json::Value;
use std::sync::Arc;
use weft_k8s_api::{Object, istio::MeshConfig};

/// Objects of YAML documents.
pub(super) fn objects(yaml: &str) -> Vec<Arc<Object>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).unwrap();
    documents.into_iter().map(|v| Arc::new(serde_json::from_value(v).unwrap())).collect()
}

/// Inputs of YAML documents, with the mesh's defaults.
pub(super) fn inputs(yaml: &str) -> Inputs {
    let mut inputs = Inputs::new(Arc::new(MeshConfig::with_defaults()), Arc::default());
    for object in objects(yaml) {
        inputs.push(object);
    }
    inputs
}

/// The snapshot of YAML documents.
pub(super) fn mesh(yaml: &str) -> MeshSnapshot {
    build(&inputs(yaml), None)
}

/// A certificate for names, from one Unix second to another, with its key: both PEM.
pub(super) fn pair(names: &[&str], from: u64, to: u64) -> (String, String) {
    use std::time::{Duration, UNIX_EPOCH};
    use weft_tls::{Issuer, KeyKind, LeafParams, PrivateKey, RootParams, San};
    let (not_before, not_after) = (UNIX_EPOCH + Duration::from_secs(from), UNIX_EPOCH + Duration::from_secs(to));
    let root = RootParams { organization: "example.com".into(), key: KeyKind::EcdsaP256, not_before, not_after };
    let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
    let names = names.iter().map(|n| San::Dns((*n).to_string())).collect();
    let leaf = Issuer::self_signed(&root).unwrap().sign_key(&key, &LeafParams { names, not_before, not_after });
    (leaf.unwrap().pem, key.to_pem().to_string())
}

/// A Secret with a certificate and a key, as JSON, which is YAML.
pub(super) fn tls_secret(namespace: &str, name: &str, chain: &str, key: &str) -> String {
    let object = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": name, "namespace": namespace}, "stringData": {"tls.crt": chain, "tls.key": key},
    });
    format!("{object}\n---\n")
}

/// `code path` of the warnings about one object.
pub(super) fn warnings_of(mesh: &MeshSnapshot, kind: &str, name: &str) -> Vec<String> {
    let about = mesh.warnings.iter().filter(|w| w.at.kind == kind && w.at.name == name);
    about.map(|w| format!("{} {}", w.code, w.at.path)).collect()
}

pub(super) fn labels(pairs: &[(&str, &str)]) -> crate::Labels {
    pairs.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect()
}

/// Reviews with two pods, one of them draining, and a node with a locality.
pub(super) const REVIEWS: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-1}}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default, creationTimestamp: "2026-01-01T00:00:00Z", labels: {app: reviews}}
spec:
  clusterIP: 10.96.0.10
  selector: {app: reviews}
  ports:
  - {name: http, port: 9080, targetPort: web}
  - {name: tcp-admin, port: 9090, targetPort: 9091}
  - {name: dns, port: 53, protocol: UDP}
---
apiVersion: v1
kind: Pod
metadata:
  name: reviews-v1-6f4d-abcde
  namespace: default
  labels: {app: reviews, version: v1, pod-template-hash: 6f4d}
  annotations: {weft.dev/proxy-engine: weft, example.com/other: x}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: reviews-v1-6f4d, uid: u, controller: true}]
spec:
  nodeName: n1
  serviceAccountName: bookinfo-reviews
  containers:
  - {name: reviews, ports: [{containerPort: 8080, name: web}]}
  - {name: istio-proxy}
status: {phase: Running, podIP: 10.244.0.5, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-v2-x, namespace: default, labels: {app: reviews, version: v2, istio-locality: us.us-2.rack}}
spec: {serviceAccountName: bookinfo-reviews, containers: [{name: reviews, ports: [{containerPort: 8081, name: web}]}]}
status: {phase: Running, podIPs: [{ip: 10.244.0.6}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews-1, namespace: default, labels: {kubernetes.io/service-name: reviews}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: tcp-admin, port: 9091}]
endpoints:
- {addresses: [10.244.0.5], conditions: {ready: true}, targetRef: {kind: Pod, name: reviews-v1-6f4d-abcde, namespace: default}}
- {addresses: [10.244.0.6], conditions: {ready: false, serving: true, terminating: true}, targetRef: {kind: Pod, name: reviews-v2-x}}
- {addresses: [10.244.0.7], conditions: {ready: false}}
"#;
