//! What objects of the Gateway API come to at proxies: TLS towards backends, routes of connections, isolation of listeners.

#![allow(clippy::unwrap_used)]

mod common;

use common::World;
use serde_json::{Value, json};
use weft_model::MeshSnapshot;
use weft_proto::envoy::config::cluster::v3::Cluster;
use weft_proto::envoy::config::route::v3::RouteConfiguration;
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

/// Server name and SDS name of the authorities that a cluster of `web` has TLS with, or the only certificate that is taken; `None`
/// in the clear.
fn tls_of(resources: &ProxyResources, port: u16, subset: &str) -> Option<(String, String)> {
    let cluster = cluster(resources, &format!("outbound|{port}|{subset}|web.default.svc.cluster.local"));
    let tls = &cluster["transport_socket"]["typed_config"];
    let validation = &tls["common_tls_context"];
    let roots = validation
        .pointer("/combined_validation_context/validation_context_sds_secret_config/name")
        .or_else(|| validation.pointer("/validation_context/verify_certificate_hash/0"));
    Some((tls["sni"].as_str()?.to_string(), roots?.as_str()?.to_string()))
}

#[test]
fn a_backend_that_is_to_have_tls_never_gets_plain_text() {
    let web = r#"[{group: "", kind: Service, name: web}]"#;
    let authority =
        |kind: &str, name: &str| format!(r#"caCertificateRefs: [{{group: "", kind: {kind}, name: {name}}}]"#);
    let nobodys = "0".repeat(64);
    for (kind, name, roots) in [
        ("ConfigMap", "ca", "configmap://default/ca-cacert"),
        ("ConfigMap", "gone", nobodys.as_str()),
        ("Secret", "ca", "kubernetes-gateway://default/ca-cacert"),
        ("Secret", "gone", nobodys.as_str()),
        ("Widget", "ca", nobodys.as_str()),
    ] {
        let snapshot = mesh(&policy("p", web, &authority(kind, name)));
        for pod in ["client-0", "istio-system/istio-ingressgateway-0"] {
            let resources = of(&snapshot, pod);
            assert_eq!(tls_of(&resources, 443, ""), Some(("p.example".into(), roots.into())), "{pod} {kind} {name}");
            // An Envoy that asks for what never comes does not become ready.
            let asked: Vec<_> = resources.credentials.iter().filter(|c| c.ends_with("-cacert")).collect();
            assert_eq!(asked.iter().any(|c| ***c == *roots), roots != nobodys, "{pod}: {asked:?}");
            assert_eq!(asked.len(), usize::from(roots != nobodys), "{pod}: {asked:?}");
        }
        let status = snapshot.statuses.iter().find(|s| s.object.kind == "BackendTLSPolicy").unwrap();
        let accepted = &status.status["ancestors"][0]["conditions"][0];
        let whole = if name == "ca" && kind != "Widget" { "True" } else { "False" };
        assert_eq!((&accepted["type"], &accepted["status"]), (&json!("Accepted"), &json!(whole)), "{kind} {name}");
    }
}

#[test]
fn each_port_of_a_backend_has_the_tls_that_is_asked_for_it() {
    let roots = || "configmap://default/ca-cacert".to_string();
    let authority = "caCertificateRefs: [{group: \"\", kind: ConfigMap, name: ca}]";
    let section = |name: &str| format!(r#"{{group: "", kind: Service, name: web, sectionName: {name}}}"#);
    let one = policy("one", &format!("[{}, {}]", section("https"), section("grpc")), authority);
    let two = policy("one", &format!("[{}]", section("https")), authority)
        + &policy("two", &format!("[{}]", section("grpc")), authority);
    for (policies, second) in [(one, "one.example"), (two, "two.example")] {
        let resources = of(&mesh(&policies), "client-0");
        assert_eq!(tls_of(&resources, 443, ""), Some(("one.example".into(), roots())));
        assert_eq!(tls_of(&resources, 9443, ""), Some((second.into(), roots())));
        assert_eq!(tls_of(&resources, 80, ""), None, "a port that no policy is for");
    }
}

#[test]
fn a_destination_rule_leaves_the_tls_of_a_policy_alone() {
    let authority = "caCertificateRefs: [{group: \"\", kind: ConfigMap, name: ca}]";
    let whole = policy("whole", r#"[{group: "", kind: Service, name: web}]"#, authority);
    let section = policy("port", r#"[{group: "", kind: Service, name: web, sectionName: https}]"#, authority);
    let rule = |more: &str| {
        let pool = "connectionPool: {tcp: {maxConnections: 7}}";
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web}}\nspec:\n  host: web\n  \
             trafficPolicy: {{{pool}{more}}}\n  subsets:\n  - {{name: v1, labels: {{version: v1}}}}\n  - {{name: v2, labels: \
             {{version: v2}}, trafficPolicy: {{portLevelSettings: [{{port: {{number: 443}}, {pool}}}]}}}}\n---\n"
        )
    };
    let of_port = ", portLevelSettings: [{port: {number: 443}, loadBalancer: {simple: RANDOM}}]";
    let plain = ", tls: {mode: DISABLE}";
    let plain_port = ", portLevelSettings: [{port: {number: 443}, tls: {mode: DISABLE}}]";
    for (policy, more, of_443, of_80) in [
        (&whole, "", Some("whole.example"), Some("whole.example")),
        (&section, "", Some("port.example"), None),
        (&whole, of_port, Some("whole.example"), Some("whole.example")),
        (&section, of_port, Some("port.example"), None),
        (&whole, plain, None, None),
        (&section, plain, Some("port.example"), None),
        (&whole, plain_port, None, Some("whole.example")),
    ] {
        let snapshot = mesh(&format!("{policy}{}", rule(more)));
        let resources = of(&snapshot, "client-0");
        for subset in ["", "v1", "v2"] {
            let found = |port| tls_of(&resources, port, subset).map(|(sni, _)| sni);
            // What a subset says of the port for itself is filled too, where the rule has no TLS of its own there.
            if subset != "v2" || !more.contains("DISABLE") {
                assert_eq!(found(443).as_deref(), of_443, "443 {subset} {more} {policy}");
            }
            assert_eq!(found(80).as_deref(), of_80, "80 {subset} {more} {policy}");
        }
        let pool = |port: u16| cluster(&resources, &format!("outbound|{port}||web.default.svc.cluster.local"));
        let limit = |port| pool(port)["circuit_breakers"]["thresholds"][0]["max_connections"].clone();
        assert_eq!(limit(80), 7, "{more}");
        assert_eq!(limit(443) == 7, !more.contains("portLevelSettings"), "port settings replace the rule's: {more}");
        let told = snapshot.warnings.iter().any(|w| w.at.kind == "BackendTLSPolicy" && w.message.contains("tls"));
        assert_eq!(told, more.contains("DISABLE") && !(policy == &section && more == plain), "{:?}", snapshot.warnings);
    }
}

#[test]
fn a_host_of_a_server_without_rules_is_not_found() {
    let snapshot = mesh(
        r#"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 443, name: wide, protocol: HTTPS}, hosts: ["*.example.com"], tls: {mode: SIMPLE, credentialName: c}}
  - {port: {number: 443, name: other, protocol: HTTPS}, hosts: [other.example.com], tls: {mode: SIMPLE, credentialName: c}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: bin}
spec: {hosts: [bin.example.com], gateways: [edge], http: [{route: [{destination: {host: web, port: {number: 80}}}]}]}
"#,
    );
    let resources = of(&snapshot, "istio-system/istio-ingressgateway-0");
    let name = "https.443.wide.edge.default";
    let config = resources.routes.get(name).unwrap();
    let config = to_json(&unpack::<RouteConfiguration>(&config.any).unwrap(), true).unwrap();
    let hosts = config["virtual_hosts"].as_array().unwrap();
    // Domain, and the status that it answers without asking anyone.
    let answer = |host: &Value| host["routes"][0]["direct_response"]["status"].as_u64();
    let mut found: Vec<(String, usize, Option<u64>)> = hosts
        .iter()
        .flat_map(|h| h["domains"].as_array().unwrap().iter().map(move |d| (d.as_str().unwrap().to_string(), h)))
        .map(|(domain, h)| (domain, h["routes"].as_array().map_or(0, Vec::len), answer(h)))
        .collect();
    found.sort();
    let want = [
        ("*".to_string(), 1, Some(421)),
        ("*.example.com".into(), 0, None),
        ("bin.example.com".into(), 1, None),
        ("other.example.com".into(), 1, Some(421)),
    ];
    assert_eq!(found, want);
}
