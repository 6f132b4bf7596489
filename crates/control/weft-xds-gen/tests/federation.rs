//! Other meshes: whose identities may connect, and that policies do not take them for ours.

#![allow(clippy::unwrap_used)]

mod common;

use common::World;
use serde_json::{Value, json};
use weft_proto::envoy::config::listener::v3::Listener;
use weft_proto::{json::to_json, unpack};
use weft_xds_gen::generate;

const POLICY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ours}
spec: {rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/ratings]}}]}]}
";

/// The inbound listener of a sidecar, as text.
fn inbound(mesh: Value) -> String {
    let mut world = World::new();
    world.mesh = mesh;
    world.add_sample("bookinfo/platform/kube/bookinfo.yaml").add(POLICY);
    let snapshot = world.snapshot();
    let resources = generate(&snapshot, &common::proxy(&snapshot, "reviews-v1-0", false, &Value::Null));
    let listener = resources.listeners.get("virtualInbound").unwrap();
    to_json(&unpack::<Listener>(&listener.any).unwrap(), true).unwrap().to_string()
}

#[test]
fn another_mesh_may_connect_and_is_nobody_of_ours() {
    let alone = inbound(json!({"trustDomain": "ours", "trustDomainAliases": ["older"]}));
    let roots = json!([{"pem": "x", "trustDomains": ["partner.example"]}]);
    let joined = inbound(json!({"trustDomain": "ours", "trustDomainAliases": ["older"], "caCertificates": roots}));
    for (listener, partner) in [(&alone, false), (&joined, true)] {
        assert!(listener.contains("spiffe://ours/") && listener.contains("spiffe://older/"));
        assert_eq!(listener.contains("spiffe://partner.example/"), partner);
        // The policy names the account under our own names alone.
        assert!(listener.contains("spiffe://older/ns/default/sa/ratings"));
        assert!(!listener.contains("partner.example/ns/default"));
    }
}
