//! What a sidecar's clients meet, on top of [`crate::wide`]: virtual services of the mesh with rules for some workloads and
//! namespaces alone, rules that are delegated, names short and whole, hosts that are no service, and a registry beyond which
//! nothing goes.

use crate::random::{self, VALUES, one};
use crate::twin::Ask;
use crate::wide;
use fastrand::Rng;
use serde_json::{Value, json};
use std::net::SocketAddr;
use weft_xds_gen::ProxyResources;

/// Port of the services, and so of the sidecar's listener.
pub const PORT: u16 = 80;
/// Hosts of rules: services, names that are none, and one that covers others.
const HOSTS: [&str; 6] =
    ["s0.svc.test", "s1.svc.test", "hashed.svc.test", "nowhere.example", "*.wild.example", "x.wild.example"];
const ASKED: [&str; 10] = [
    "s0.svc.test",
    "s0.svc.test:80",
    "S0.svc.test",
    "s1.svc.test",
    "hashed.svc.test",
    "nowhere.example",
    "x.wild.example",
    "y.wild.example",
    "unknown.test",
    "s0.svc.test:81",
];

/// What the sidecar of such a mesh is given, and the documents that it was made of. `backends` as in
/// [`random::configuration`].
pub fn configuration(seed: u64, backends: &[SocketAddr]) -> (ProxyResources, Vec<Value>) {
    let mut rng = Rng::with_seed(seed);
    let rng = &mut rng;
    let mut documents = random::world(backends, rng);
    for document in &mut documents {
        wide::change_world(document, rng);
        if document["kind"] == "DestinationRule" && document["metadata"]["name"] != "hashed" {
            // Of services without a rule all endpoints are met.
            let hash = json!({"httpHeaderName": "x-user", "maglev": {"tableSize": 1021}});
            document["spec"]["trafficPolicy"]["loadBalancer"] = json!({"consistentHash": hash});
        }
    }
    documents.push(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app", "labels": {"app": "client", "tier": "front"}},
        "spec": {"containers": [{"name": "istio-proxy", "image": "auto"}]},
        "status": {"phase": "Running", "podIP": "10.244.0.2", "podIPs": [{"ip": "10.244.0.2"}],
                   "conditions": [{"type": "Ready", "status": "True"}]},
    }));
    for i in 0..2 + rng.usize(..4) {
        virtual_service(i, &mut documents, rng);
    }
    let normalization = one(rng, &["NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"]);
    let mesh = json!({
        "pathNormalization": {"normalization": normalization},
        "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"},
    });
    let node = json!({
        "id": "sidecar~10.244.0.2~app.default~default.svc.cluster.local",
        "cluster": "client.default",
        "locality": {"region": "r", "zone": "z1"},
        "metadata": {"NAMESPACE": "default", "LABELS": {"app": "client", "tier": "front"}, "CLUSTER_ID": "Kubernetes"},
    });
    (random::generated_for(&documents, &mesh, &node), documents)
}

fn virtual_service(number: usize, documents: &mut Vec<Value>, rng: &mut Rng) {
    let mut service = random::virtual_service(number, rng);
    let hosts: Vec<&str> = (0..1 + rng.usize(..2)).map(|_| one(rng, &HOSTS)).collect();
    service["spec"]["hosts"] = json!(hosts);
    service["spec"].as_object_mut().map(|spec| spec.remove("gateways"));
    if rng.u8(..6) == 0 {
        service["spec"]["gateways"] = json!(["mesh", "gateway"]);
    }
    if rng.u8(..10) == 0 {
        service["spec"]["exportTo"] = json!([one(rng, &[".", "*"])]);
    }
    rules(&mut service, rng);
    if rng.u8(..3) == 0 {
        let name = format!("delegate{number}");
        let mut delegate = random::virtual_service(number, rng);
        delegate["metadata"]["name"] = json!(name);
        delegate["spec"].as_object_mut().map(|spec| (spec.remove("hosts"), spec.remove("gateways")));
        rules(&mut delegate, rng);
        let mut root = json!({"delegate": {"name": name, "namespace": "default"}});
        match rng.u8(..3) {
            0 => {}
            1 => root["match"] = json!([{"uri": {"prefix": one(rng, &["/", "/api", "/v1"])}}]),
            _ => root["match"] = json!([{"headers": {"end-user": {"exact": one(rng, &VALUES[..4])}}}]),
        }
        if let Some(list) = service["spec"]["http"].as_array_mut() {
            list.insert(rng.usize(..=list.len()), root);
        }
        documents.push(delegate);
    }
    documents.push(service);
}

fn rules(service: &mut Value, rng: &mut Rng) {
    for rule in service["spec"]["http"].as_array_mut().into_iter().flatten() {
        wide::change_rule(rule, rng);
        for condition in rule["match"].as_array_mut().into_iter().flatten() {
            if condition.get("port").is_some() {
                condition["port"] = json!([80, 81][rng.usize(..2)]);
            }
            if condition.get("gateways").is_some() {
                condition["gateways"] = json!([one(rng, &["mesh", "gateway"])]);
            }
            match rng.u8(..12) {
                0 => condition["sourceLabels"] = json!({"app": "client"}),
                1 => condition["sourceLabels"] = json!({"app": "client", "tier": "back"}),
                2 => condition["sourceNamespace"] = json!(one(rng, &["default", "other"])),
                _ => {}
            }
        }
        if rule["match"].is_null()
            && let Some(rule) = rule.as_object_mut()
        {
            rule.remove("match");
        }
    }
}

/// A random request.
pub fn ask(rng: &mut Rng) -> Ask {
    let mut ask = wide::ask(rng);
    for (name, value) in &mut ask.headers {
        match name.as_str() {
            "host" => *value = one(rng, &ASKED).to_string(),
            // One address is one that a sidecar believes, and heeds what the request wants.
            "x-forwarded-for" if rng.bool() => *value = "10.9.8.7".into(),
            _ => {}
        }
    }
    ask
}
