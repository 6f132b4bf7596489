//! What objects of the Gateway API come to at proxies: TLS towards backends, routes of connections, isolation of listeners.

#![allow(clippy::unwrap_used)]

mod common;

use common::World;
use serde_json::{Value, json};
use weft_model::MeshSnapshot;
use weft_proto::envoy::config::cluster::v3::Cluster;
use weft_proto::{json::to_json, unpack};
use weft_xds_gen::{ProxyResources, generate};

const BACKEND: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: https, port: 443}, {name: grpc, port: 9443}, {name: http, port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: client}
spec: {template: {metadata: {labels: {app: client}}, spec: {containers: [{name: client, image: c}]}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: ca}
data: {ca.crt: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: ca}
stringData: {ca.crt: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}
---
"#;

/// The world with more objects.
fn mesh(more: &str) -> MeshSnapshot {
    let mut world = World::new();
    world.add(common::INGRESS).add(BACKEND).add(more);
    world.snapshot()
}

/// What a proxy gets.
fn of(snapshot: &MeshSnapshot, pod: &str) -> ProxyResources {
    generate(snapshot, &common::proxy(snapshot, pod, false, &Value::Null))
}

fn cluster(resources: &ProxyResources, name: &str) -> Value {
    let resource = resources.clusters.get(name).unwrap_or_else(|| panic!("no cluster {name}"));
    to_json(&unpack::<Cluster>(&resource.any).unwrap(), true).unwrap()
}

fn policy(name: &str, targets: &str, authority: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: {name}}}\nspec:\n  targetRefs: \
         {targets}\n  validation: {{hostname: {name}.example, {authority}}}\n---\n"
    )
}

/// Server name and SDS name of the authorities that a cluster of `web` has TLS with; `None` in the clear.
fn tls_of(resources: &ProxyResources, port: u16, subset: &str) -> Option<(String, String)> {
    let cluster = cluster(resources, &format!("outbound|{port}|{subset}|web.default.svc.cluster.local"));
    let tls = &cluster["transport_socket"]["typed_config"];
    let roots =
        tls.pointer("/common_tls_context/combined_validation_context/validation_context_sds_secret_config/name");
    Some((tls["sni"].as_str()?.to_string(), roots?.as_str()?.to_string()))
}

#[test]
fn a_backend_that_is_to_have_tls_never_gets_plain_text() {
    let web = r#"[{group: "", kind: Service, name: web}]"#;
    let authority =
        |kind: &str, name: &str| format!(r#"caCertificateRefs: [{{group: "", kind: {kind}, name: {name}}}]"#);
    for (kind, name, roots) in [
        ("ConfigMap", "ca", "configmap://default/ca-cacert"),
        ("ConfigMap", "gone", "configmap://default/gone-cacert"),
        ("Secret", "ca", "kubernetes-gateway://default/ca-cacert"),
        ("Secret", "gone", "kubernetes-gateway://default/gone-cacert"),
        ("Widget", "ca", "unserved://default/ca-cacert"),
    ] {
        let snapshot = mesh(&policy("p", web, &authority(kind, name)));
        for pod in ["client-0", "istio-system/istio-ingressgateway-0"] {
            let resources = of(&snapshot, pod);
            assert_eq!(tls_of(&resources, 443, ""), Some(("p.example".into(), roots.into())), "{pod} {kind} {name}");
            assert!(resources.credentials.iter().any(|c| **c == *roots), "{pod}: {:?}", resources.credentials);
        }
        let status = snapshot.statuses.iter().find(|s| s.object.kind == "BackendTLSPolicy").unwrap();
        let accepted = &status.status["ancestors"][0]["conditions"][0];
        let whole = if name == "ca" && kind != "Widget" { "True" } else { "False" };
        assert_eq!((&accepted["type"], &accepted["status"]), (&json!("Accepted"), &json!(whole)), "{kind} {name}");
    }
}
