//! Mutual TLS between proxies of the mesh: when clients offer it, with which parameters, and where servers ask for it.

#![allow(clippy::unwrap_used)]

mod common;

use common::World;
use serde_json::{Value, json};
use weft_proto::envoy::config::cluster::v3::Cluster;
use weft_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use weft_proto::envoy::config::listener::v3::Listener;
use weft_proto::{json::to_json, unpack};
use weft_xds_gen::{ProxyResources, generate};

const CLUSTER: &str = "outbound|9080||reviews.default.svc.cluster.local";

/// What a sidecar of the bookinfo gets.
fn of(pod: &str, mesh: Value, more: &str) -> ProxyResources {
    let mut world = World::new();
    world.mesh = mesh;
    world.add_sample("bookinfo/platform/kube/bookinfo.yaml").add(more);
    let snapshot = world.snapshot();
    generate(&snapshot, &common::proxy(&snapshot, pod, false, &Value::Null))
}

fn cluster(resources: &ProxyResources) -> Value {
    to_json(&unpack::<Cluster>(&resources.clusters.get(CLUSTER).unwrap().any).unwrap(), true).unwrap()
}

fn peer_authentication(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
    )
}

#[test]
fn a_strict_workload_of_a_plain_namespace_is_reached() {
    let plain = peer_authentication("all", "{mtls: {mode: DISABLE}}");
    for (one, mutual) in [
        (String::new(), false),
        (peer_authentication("one", "{selector: {matchLabels: {version: v2}}, mtls: {mode: STRICT}}"), true),
        (peer_authentication("one", "{selector: {matchLabels: {version: v2}}, mtls: {mode: DISABLE}}"), false),
        (
            peer_authentication(
                "one",
                "{selector: {matchLabels: {version: v2}}, portLevelMtls: {9080: {mode: STRICT}}}",
            ),
            true,
        ),
    ] {
        let resources = of("productpage-v1-0", json!({}), &format!("{plain}{one}"));
        let matches = &cluster(&resources)["transport_socket_matches"];
        let offered = matches.as_array().is_some_and(|all| all.iter().any(|m| m["match"]["tlsMode"] == "istio"));
        assert_eq!(offered, mutual, "{one}: {matches}");
        // Which endpoints take it is said of each.
        let endpoints = unpack::<ClusterLoadAssignment>(&resources.endpoints.get(CLUSTER).unwrap().any).unwrap();
        let endpoints = to_json(&endpoints, true).unwrap();
        let all = endpoints["endpoints"].as_array().unwrap().iter().flat_map(|l| l["lb_endpoints"].as_array().unwrap());
        let taking = all.filter(|e| e["metadata"].to_string().contains(r#""tlsMode":"istio""#)).count();
        assert_eq!(taking, usize::from(mutual), "{one}: {endpoints}");
    }
}

#[test]
fn both_sides_have_the_parameters_of_the_mesh_config() {
    let mesh = json!({"meshMTLS": {"minProtocolVersion": "TLSV1_3", "ecdhCurves": ["X25519MLKEM768"]}});
    let want = json!({
        "tls_minimum_protocol_version": "TLSv1_3",
        "tls_maximum_protocol_version": "TLSv1_3",
        "ecdh_curves": ["X25519MLKEM768"],
    });
    let resources = of("productpage-v1-0", mesh, "");
    let client = &cluster(&resources)["transport_socket_matches"][0]["transport_socket"]["typed_config"];
    assert_eq!(client["common_tls_context"]["tls_params"], want);
    let listener = unpack::<Listener>(&resources.listeners.get("virtualInbound").unwrap().any).unwrap();
    let listener = to_json(&listener, true).unwrap();
    let chains = listener["filter_chains"].as_array().unwrap();
    let params = |chain: &Value| chain["transport_socket"]["typed_config"]["common_tls_context"]["tls_params"].clone();
    let servers: Vec<Value> = chains.iter().map(params).filter(|params| !params.is_null()).collect();
    assert!(!servers.is_empty() && servers.iter().all(|params| *params == want), "{servers:?}");
    // A destination rule that asks for the mesh's TLS by name asks for the same.
    let told = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r}\nspec: {host: reviews, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}\n";
    let mesh = json!({"meshMTLS": {"minProtocolVersion": "TLSV1_3", "ecdhCurves": ["X25519MLKEM768"]}});
    let client = cluster(&of("productpage-v1-0", mesh, told));
    assert_eq!(client["transport_socket"]["typed_config"]["common_tls_context"]["tls_params"], want);
}

/// 2:AP-10 and 1:SEC-27 say that an entry for a port without a Service has no effect. Istio's control plane gives such a port a
/// filter chain of its own with that mode all the same (`ForPassthrough`, pilot/pkg/networking/plugin/authn), and so does this one: to drop the
/// entry would open a port that its owner closed.
#[test]
fn ap_10_sec_27_a_mode_for_a_port_without_a_service_holds() {
    let policy = "{selector: {matchLabels: {app: reviews}}, portLevelMtls: {7777: {mode: STRICT}}}";
    let resources = of("reviews-v1-0", json!({}), &peer_authentication("reviews", policy));
    let listener = unpack::<Listener>(&resources.listeners.get("virtualInbound").unwrap().any).unwrap();
    let listener = to_json(&listener, true).unwrap();
    let of_port = |port: u16| {
        let chains = listener["filter_chains"].as_array().unwrap().iter();
        let mine = chains.filter(|chain| chain["filter_chain_match"]["destination_port"] == port);
        let plain = |chain: &&Value| chain["transport_socket"].is_null();
        let all: Vec<&Value> = mine.collect();
        (all.len(), all.iter().copied().filter(|chain| plain(chain)).count())
    };
    let ((strict, plain), (served, permissive)) = (of_port(7777), of_port(9080));
    assert!(strict > 0 && plain == 0, "{strict} chains, {plain} of them without TLS");
    assert!(served > 0 && permissive > 0, "another port is as it was");
}

/// A rule that asks for TLS gets it or no connection, also at sidecars, which the secret that it names is not for: they go by the
/// certificate paths (Istio's reference, ClientTLSSettings.credentialName), and here it has none.
#[test]
fn class_tls_origination_never_falls_back_to_plain_text() {
    for (tls, certificate) in [
        ("{mode: SIMPLE, credentialName: c}", None),
        ("{mode: MUTUAL, credentialName: c}", None),
        ("{mode: MUTUAL, clientCertificate: /c, privateKey: /k}", Some("file-cert:/c~/k")),
    ] {
        let rule = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r}}\n\
             spec: {{host: reviews, trafficPolicy: {{tls: {tls}}}}}\n"
        );
        let resources = of("productpage-v1-0", json!({}), &rule);
        let socket = &cluster(&resources)["transport_socket"];
        assert_eq!(socket["name"], "envoy.transport_sockets.tls", "{tls}");
        let common = &socket["typed_config"]["common_tls_context"];
        let shown = &common["tls_certificate_sds_secret_configs"][0]["name"];
        assert_eq!(shown.as_str(), certificate, "{tls}: {common}");
        let roots = &common["combined_validation_context"]["validation_context_sds_secret_config"]["name"];
        assert_eq!(roots, "file-root:system", "{tls}: {common}");
        assert!(resources.credentials.is_empty(), "{tls}");
    }
}
