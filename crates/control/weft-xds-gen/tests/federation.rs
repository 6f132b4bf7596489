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

/// The parts of the inbound listener that say who: those of one policy.
fn principals(mesh: &Value, action: &str, source: &str) -> String {
    let mut world = World::new();
    world.mesh = mesh.clone();
    world.add_sample("bookinfo/platform/kube/bookinfo.yaml").add(&format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec: {{action: {action}, rules: [{{from: [{{source: {source}}}]}}]}}\n"
    ));
    let snapshot = world.snapshot();
    let resources = generate(&snapshot, &common::proxy(&snapshot, "reviews-v1-0", false, &Value::Null));
    let listener = resources.listeners.get("virtualInbound").unwrap();
    let listener = to_json(&unpack::<Listener>(&listener.any).unwrap(), true).unwrap();
    let mut found = Vec::new();
    collect(&listener, &mut found);
    assert!(found.iter().all(|other| *other == found[0]), "the same on every port");
    found.swap_remove(0).to_string()
}

/// Every `principals` of RBAC policies.
fn collect(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("principals").cloned());
            map.values().for_each(|value| collect(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| collect(value, found)),
        _ => {}
    }
}

#[test]
fn a_name_without_a_trust_domain_is_of_our_mesh_where_it_lets_in() {
    let alone = json!({"trustDomain": "ours", "trustDomainAliases": ["older"]});
    let roots = json!([{"pem": "x", "trustDomains": ["partner.example"]}]);
    let joined = json!({"trustDomain": "ours", "trustDomainAliases": ["older"], "caCertificates": roots});
    // An own alias among the roots makes no other mesh of it.
    let own = json!([{"pem": "x", "trustDomains": ["older"]}]);
    let own = json!({"trustDomain": "ours", "trustDomainAliases": ["older"], "caCertificates": own});
    let prefixes = r#"{"or_ids":{"ids":[{"authenticated":{"principal_name":{"prefix":"spiffe://ours/"}}},{"authenticated":{"principal_name":{"prefix":"spiffe://older/"}}}]}}"#;
    for (action, source, restricted) in [
        ("ALLOW", "{namespaces: [foo]}", true),
        ("ALLOW", "{serviceAccounts: [foo/bar]}", true),
        ("ALLOW", "{notNamespaces: [foo]}", false),
        ("DENY", "{namespaces: [foo]}", false),
        ("DENY", "{serviceAccounts: [foo/bar]}", false),
        ("DENY", "{notNamespaces: [foo]}", true),
        ("DENY", "{notServiceAccounts: [foo/bar]}", true),
        ("ALLOW", "{principals: ['*/ns/foo/sa/bar']}", false),
    ] {
        let now = principals(&joined, action, source);
        assert_eq!(now.contains(prefixes), restricted, "{action} {source}: {now}");
        if restricted && action == "DENY" {
            assert!(
                now.contains(&format!(r#""not_id":{{"and_ids":{{"ids":[{prefixes}"#)),
                "within the negation: {now}"
            );
        }
        let before = principals(&alone, action, source);
        assert!(!before.contains(prefixes), "{before}");
        assert_eq!(principals(&own, action, source), before);
    }
}
