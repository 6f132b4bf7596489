//! weft-proxy under Envoy's go-control-plane, by both protocols of ADS: what it is sent it serves, what changes it follows,
//! what it cannot do it refuses by name, and without its control plane it goes on.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::{Value, json};
use weft_interop_tests::backend::{Backend, get};
use weft_interop_tests::control_plane::ControlPlane;
use weft_interop_tests::proxy::{self, Proxy, free_port, socket};
use weft_interop_tests::{LIMIT, eventually};

/// Envoy's way to a control plane, for `weft-proxy -c`.
fn bootstrap(control_plane: u16, api_type: &str) -> Value {
    let service = json!({"envoy_grpc": {"cluster_name": "xds"}});
    json!({
        "node": {"id": "interop", "cluster": "test"},
        "static_resources": {"clusters": [proxy::cluster("xds", control_plane, &proxy::http2())]},
        "dynamic_resources": {
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
            "ads_config": {"api_type": api_type, "transport_api_version": "V3", "grpc_services": [service]}}})
}

/// Resources of all four types: a listener with routes by RDS, a cluster with endpoints by EDS.
struct Mesh {
    listener: u16,
    backend: u16,
    /// A route of its own: path and body.
    direct: (&'static str, &'static str),
    /// The listener asks for what weft-proxy cannot do.
    broken: bool,
}

impl Mesh {
    fn snapshot(&self, version: &str) -> Value {
        let ads = json!({"ads": {}, "resource_api_version": "V3"});
        let manager = json!({"rds": {"route_config_name": "routes", "config_source": ads}});
        let (path, body) = self.direct;
        let routes = vec![
            json!({"match": {"path": path}, "direct_response": {"status": 200, "body": {"inline_string": body}}}),
            json!({"match": {"prefix": "/"}, "route": {"cluster": "app"}}),
        ];
        let mut listener = proxy::listener("front", self.listener, &manager, &json!({}));
        if self.broken {
            listener["freebind"] = true.into();
        }
        let endpoint = json!({"endpoint": {"address": socket(self.backend)}});
        json!({
            "version": version,
            "listeners": [listener],
            "routes": [{"name": "routes",
                        "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]}],
            "clusters": [{"name": "app", "type": "EDS", "connect_timeout": "5s",
                          "eds_cluster_config": {"eds_config": ads}}],
            "endpoints": [{"cluster_name": "app", "endpoints": [{"lb_endpoints": [endpoint]}]}]})
    }
}

fn answers(port: u16, path: &str, want: &str) {
    eventually(&format!("{path} answers {want:?}"), || match get(port, "any", path, &[])? {
        (200, body) if body == want => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

fn is_listener(event: &Value) -> bool {
    event["type"].as_str().is_some_and(|kind| kind.ends_with(".Listener"))
}

fn serves(api_type: &str) {
    let (one, two) = (Backend::start("one"), Backend::start("two"));
    let mut plane = ControlPlane::start();
    let mut mesh = Mesh { listener: free_port(), backend: one.port, direct: ("/a", "first"), broken: false };
    plane.set(&mesh.snapshot("1"));
    let mut proxy = Proxy::start(&bootstrap(plane.port, api_type));
    proxy.until_listening(mesh.listener);
    answers(mesh.listener, "/", "one");
    answers(mesh.listener, "/a", "first");
    let delta = plane.request("the ACK of the listener", |event| {
        let acked = is_listener(event) && event["nonce"].is_string() && event["error"].is_null();
        acked.then(|| event["delta"].as_bool().unwrap_or(false))
    });
    assert_eq!(delta, api_type == "DELTA_GRPC", "the protocol that the bootstrap asks for");

    // Endpoints and routes change.
    mesh.backend = two.port;
    mesh.direct = ("/b", "second");
    plane.set(&mesh.snapshot("2"));
    answers(mesh.listener, "/b", "second");
    answers(mesh.listener, "/", "two");
    answers(mesh.listener, "/a", "two");

    // A listener that cannot be: refused by name, and the one before stays; all else of the same version applies.
    mesh.backend = one.port;
    mesh.direct = ("/c", "third");
    mesh.broken = true;
    plane.set(&mesh.snapshot("3"));
    let refusal = plane.request("a NACK", |event| {
        let error = event["error"].as_str().filter(|_| is_listener(event))?;
        Some((error.to_string(), event["version"].as_str().unwrap_or_default().to_string()))
    });
    assert!(refusal.0.contains("front") && refusal.0.contains("freebind"), "{}", refusal.0);
    // State of the world: a NACK repeats the version in force. A delta NACK has none.
    assert_eq!(refusal.1, if delta { "" } else { "2" });
    answers(mesh.listener, "/c", "third");
    answers(mesh.listener, "/", "one");

    // What is put right is taken.
    mesh.broken = false;
    mesh.direct = ("/d", "fourth");
    plane.set(&mesh.snapshot("4"));
    answers(mesh.listener, "/d", "fourth");
    plane.request("the ACK", |event| {
        let right = if delta { true } else { event["version"] == "4" };
        (is_listener(event) && right && event["error"].is_null()).then_some(())
    });

    // The control plane goes away, traffic does not.
    plane.kill();
    eventually("the proxy notices", || match proxy.log().contains("control plane") {
        true => Ok(()),
        false => Err(format!("nothing in the log within {LIMIT:?}")),
    });
    assert_eq!(get(mesh.listener, "any", "/", &[]).unwrap(), (200, "one".into()));
}

#[test]
fn state_of_the_world() {
    serves("GRPC");
}

#[test]
fn delta() {
    serves("DELTA_GRPC");
}
