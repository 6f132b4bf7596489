//! TCP and TLS from a seed: gateways that let TLS through by its server name, gateways for plain TCP, and sidecars whose clients
//! open TLS themselves; the rules of virtual services for them; and connections to meet those.

use crate::random::{generated_for, one};
use fastrand::Rng;
use serde_json::{Value, json};
use std::net::SocketAddr;
use weft_xds_gen::ProxyResources;

/// Port of TLS, at the gateway and outside.
pub const TLS_PORT: u16 = 443;
/// Port of the gateway's plain TCP, and of the services'.
pub const TCP_PORT: u16 = 9000;
const HOSTS: [&str; 7] =
    ["a.example", "*.b.example", "x.b.example", "c.example", "*.example", "t0.svc.test", "t1.svc.test"];
const NAMES: [&str; 10] = [
    "a.example",
    "A.Example",
    "x.b.example",
    "y.b.example",
    "b.example",
    "c.example",
    "d.c.example",
    "t0.svc.test",
    "t1.svc.test",
    "nowhere.test",
];

/// Whose configuration it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// A gateway that passes TLS through.
    Passing,
    /// A gateway of plain TCP.
    Plain,
    /// A sidecar.
    Sidecar,
}

impl Who {
    /// The port of its listener.
    pub fn port(self) -> u16 {
        if self == Self::Plain { TCP_PORT } else { TLS_PORT }
    }
}

/// What the proxy is given, and the documents that it was made of. `backends`: two for each of two services.
pub fn configuration(seed: u64, who: Who, backends: &[SocketAddr]) -> (ProxyResources, Vec<Value>) {
    let mut rng = Rng::with_seed(seed);
    let rng = &mut rng;
    let mut documents = services(backends, rng);
    if who != Who::Sidecar {
        documents.push(gateway(who, rng));
    }
    for i in 0..1 + rng.usize(..4) {
        documents.push(virtual_service(i, who, rng));
    }
    let (kind, labels) = match who {
        Who::Sidecar => ("sidecar", json!({"app": "client"})),
        _ => ("router", json!({"istio": "gateway"})),
    };
    let node = json!({
        "id": format!("{kind}~10.244.0.1~it.default~default.svc.cluster.local"), "cluster": "it.default",
        "metadata": {"NAMESPACE": "default", "LABELS": labels, "CLUSTER_ID": "Kubernetes"},
    });
    documents.push(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "it", "labels": node["metadata"]["LABELS"]},
        "spec": {"containers": [{"name": "istio-proxy", "image": "auto"}]},
        "status": {"phase": "Running", "podIP": "10.244.0.1", "podIPs": [{"ip": "10.244.0.1"}],
                   "conditions": [{"type": "Ready", "status": "True"}]},
    }));
    let mesh = json!({"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}});
    (generated_for(&documents, &mesh, &node), documents)
}

fn services(backends: &[SocketAddr], rng: &mut Rng) -> Vec<Value> {
    let mut documents = Vec::new();
    for (i, pair) in backends.chunks(2).enumerate() {
        let host = format!("t{i}.svc.test");
        let endpoint = |addr: &SocketAddr, version: &str| {
            let ports = json!({"tls": addr.port(), "tcp": addr.port()});
            json!({"address": addr.ip().to_string(), "ports": ports, "labels": {"version": version}})
        };
        documents.push(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": format!("t{i}")},
            "spec": {"hosts": [host], "location": "MESH_EXTERNAL", "resolution": "STATIC",
                     "ports": [{"number": TLS_PORT, "name": "tls", "protocol": "TLS"},
                               {"number": TCP_PORT, "name": "tcp", "protocol": "TCP"}],
                     "endpoints": [endpoint(&pair[0], "v1"), endpoint(&pair[1], "v2")]},
        }));
        let mut rule = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": format!("t{i}")},
            "spec": {"host": host,
                     "subsets": [{"name": "v1", "labels": {"version": "v1"}}, {"name": "v2", "labels": {"version": "v2"}}]},
        });
        if rng.bool() {
            // What is not led to a subset finds its endpoint by who asks, and that is always the same.
            rule["spec"]["trafficPolicy"] =
                json!({"loadBalancer": {"consistentHash": {"useSourceIp": true, "maglev": {"tableSize": 1021}}}});
        } else {
            rule["spec"]["trafficPolicy"] = json!({
                "loadBalancer": {"simple": "ROUND_ROBIN"},
                "portLevelSettings": ([TLS_PORT, TCP_PORT]
                    .map(|number| json!({"port": {"number": number}, "loadBalancer": {"consistentHash": {"useSourceIp": true}}}))),
            });
        }
        documents.push(rule);
    }
    documents
}

fn gateway(who: Who, rng: &mut Rng) -> Value {
    let mut servers = Vec::new();
    for i in 0..1 + rng.usize(..3) {
        let hosts: Vec<&str> = (0..1 + rng.usize(..3)).map(|_| one(rng, &HOSTS)).collect();
        servers.push(match who {
            Who::Plain => {
                json!({"port": {"number": TCP_PORT, "name": "tcp", "protocol": "TCP"}, "hosts": ["*"]})
            }
            _ => json!({"port": {"number": TLS_PORT, "name": format!("tls-{i}"), "protocol": "TLS"},
                        "hosts": if rng.u8(..3) == 0 { json!(["*"]) } else { json!(hosts) }, "tls": {"mode": "PASSTHROUGH"}}),
        });
    }
    if who == Who::Plain {
        servers.truncate(1);
    }
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": {"name": "gateway"},
        "spec": {"selector": {"istio": "gateway"}, "servers": servers},
    })
}

fn route(port: u16, rng: &mut Rng) -> Value {
    let to = |rng: &mut Rng| {
        let mut destination = json!({"host": format!("t{}.svc.test", rng.u8(..2)), "port": {"number": port}});
        if rng.u8(..4) > 0 {
            destination["subset"] = json!(one(rng, &["v1", "v2"]));
        }
        json!({"destination": destination})
    };
    let mut routes = vec![to(rng)];
    if rng.u8(..3) == 0 {
        // Weights that leave nothing to chance.
        let mut none = to(rng);
        (none["weight"], routes[0]["weight"]) = (json!(0), json!(100));
        routes.insert(0, none);
    }
    json!(routes)
}

fn virtual_service(number: usize, who: Who, rng: &mut Rng) -> Value {
    let mut hosts: Vec<&str> = (0..1 + rng.usize(..3)).map(|_| one(rng, &HOSTS)).collect();
    hosts.dedup();
    let mut spec = json!({"hosts": hosts});
    if who != Who::Sidecar {
        spec["gateways"] = json!(["gateway"]);
    }
    let condition = |rng: &mut Rng| {
        let mut condition = json!({});
        if rng.u8(..3) == 0 {
            condition["port"] = json!(if rng.u8(..4) == 0 { 1 } else { who.port() });
        }
        if rng.u8(..6) == 0 {
            condition["gateways"] = json!([one(rng, &["gateway", "mesh"])]);
        }
        if rng.u8(..6) == 0 {
            condition["sourceLabels"] = json!({"app": one(rng, &["client", "other"])});
        }
        condition
    };
    let rules = (0..1 + rng.usize(..3)).map(|_| {
        let mut rule = json!({"route": route(who.port(), rng)});
        let conditions: Vec<Value> = (0..1 + rng.usize(..2))
            .map(|_| {
                let mut condition = condition(rng);
                if who != Who::Plain {
                    let host = one(rng, &hosts);
                    // A name that a wildcard covers may be asked for by itself.
                    let name = if rng.bool() { host.replacen("*.", "x.", 1) } else { host.to_string() };
                    condition["sniHosts"] = json!([name]);
                }
                condition
            })
            .collect();
        if who != Who::Plain || rng.bool() {
            rule["match"] = json!(conditions);
        }
        rule
    });
    let rules: Vec<Value> = rules.collect();
    spec[if who == Who::Plain { "tcp" } else { "tls" }] = json!(rules);
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": format!("vs{number}")}, "spec": spec,
    })
}

/// What a client sends first, and how that is told.
pub fn first_bytes(who: Who, rng: &mut Rng) -> (Vec<u8>, String) {
    match (who, rng.u8(..12)) {
        (Who::Plain, _) | (_, 0) => (b"hello, whoever\r\n".to_vec(), "plain bytes".into()),
        (_, 1) => (client_hello(None), "TLS without a name".into()),
        _ => {
            let name = one(rng, &NAMES);
            (client_hello(Some(name)), format!("TLS to {name}"))
        }
    }
}

/// A ClientHello: as much of one as is read without answering it (RFC 8446 §4.1.2, RFC 6066 §3).
fn client_hello(name: Option<&str>) -> Vec<u8> {
    let block = |kind: &[u8], content: Vec<u8>, width: usize| {
        let length = (content.len() as u32).to_be_bytes();
        [kind, &length[4 - width..], &content].concat()
    };
    let mut extensions = Vec::new();
    if let Some(name) = name {
        let entry = block(&[0], name.as_bytes().to_vec(), 2);
        extensions.extend(block(&[0, 0], block(&[], entry, 2), 2));
    }
    // supported_versions, supported_groups, signature_algorithms, key_share.
    extensions.extend([0, 43, 0, 3, 2, 3, 4, 0, 10, 0, 4, 0, 2, 0, 29, 0, 13, 0, 4, 0, 2, 4, 3]);
    extensions.extend([0, 51, 0, 38, 0, 36, 0, 29, 0, 32]);
    extensions.extend([9; 32]);
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend(block(&[], extensions, 2));
    block(&[22, 3, 1], block(&[1], body, 3), 2)
}
