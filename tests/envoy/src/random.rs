//! Configurations and requests from a seed: virtual services, destination rules and a gateway as a user could have written
//! them, whose outcome leaves nothing to chance, and requests that are likely to meet their conditions.

use crate::twin::Ask;
use fastrand::Rng;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use weft_k8s_api::{Object, de, istio};
use weft_model::{Inputs, Settings};
use weft_proto::envoy::config::core::v3::Node;
use weft_xds_gen::{ProxyResources, ProxyView, generate};

/// Port of the gateway in the configuration.
pub const GATEWAY_PORT: u16 = 8080;
const HOSTS: [&str; 6] = ["a.example", "*.b.example", "x.b.example", "c.example", "*.example", "*"];
const ASKED: [&str; 9] = [
    "a.example",
    "A.Example",
    "x.b.example",
    "y.b.example",
    "c.example",
    "c.example:8080",
    "d.example",
    "other.test",
    "b.example",
];
const SEGMENTS: [&str; 10] = ["api", "v1", "v2", "users", "API", "a.b", "x%20y", "items", "%41", "status"];
pub(crate) const VALUES: [&str; 6] = ["jason", "v1", "v2", "true", "", "a-b.c"];
pub(crate) const HEADERS: [&str; 4] = ["end-user", "x-version", "x-debug", "cookie"];
/// Those that operations change: without its cookie a client's endpoint may be left to chance.
pub(crate) const OPERATED: &[&str] = &["end-user", "x-version", "x-debug"];
pub(crate) const PARAMS: [&str; 3] = ["q", "debug", "version"];

/// What the gateway of a random mesh is given. `backends` are those of the services: two a service, then those of the hashed
/// service.
pub fn configuration(seed: u64, backends: &[SocketAddr]) -> (ProxyResources, Vec<Value>) {
    let mut rng = Rng::with_seed(seed);
    let mut documents = world(backends, &mut rng);
    let services = 1 + rng.usize(..4);
    for i in 0..services {
        documents.push(virtual_service(i, &mut rng));
    }
    (generated(&documents, &json!({})), documents)
}

/// What the gateway is given by these documents, in the order of their age, and mesh config.
pub(crate) fn generated(documents: &[Value], mesh: &Value) -> ProxyResources {
    let node = json!({
        "id": "router~10.244.0.1~gateway.default~default.svc.cluster.local",
        "cluster": "gateway.default",
        "locality": {"region": "r", "zone": "z1"},
        "metadata": {"NAMESPACE": "default", "LABELS": {"istio": "gateway"}, "CLUSTER_ID": "Kubernetes"},
    });
    generated_for(documents, mesh, &node)
}

/// What that proxy is given.
pub(crate) fn generated_for(documents: &[Value], mesh: &Value, node: &Value) -> ProxyResources {
    let mesh = de::read(&istio::MeshConfig::overlay(mesh), "mesh", de::Dialect::ProtoJson, &mut Vec::new());
    let mut inputs = Inputs::new(Arc::new(mesh.unwrap()), Arc::new(Settings::default()));
    for (i, document) in documents.iter().enumerate() {
        let mut document = document.clone();
        document["metadata"]["namespace"] = json!("default");
        document["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T00:00:{i:02}Z"));
        let object: Object = serde_json::from_value(document).unwrap();
        inputs.push(Arc::new(object));
    }
    let snapshot = weft_model::build(&inputs, None);
    let view = ProxyView::new(&weft_proto::json::from_json::<Node>(node).unwrap()).unwrap();
    generate(&snapshot, &view)
}

pub(crate) fn world(backends: &[SocketAddr], rng: &mut Rng) -> Vec<Value> {
    let mut documents = vec![
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "gateway", "labels": {"istio": "gateway"}},
            "spec": {"containers": [{"name": "istio-proxy", "image": "auto"}]},
            "status": {"phase": "Running", "podIP": "10.244.0.1", "podIPs": [{"ip": "10.244.0.1"}],
                       "conditions": [{"type": "Ready", "status": "True"}]},
        }),
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": {"name": "gateway"},
            "spec": {"selector": {"istio": "gateway"},
                     "servers": [{"port": {"number": GATEWAY_PORT, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}]},
        }),
    ];
    let endpoint = |addr: &SocketAddr, version: &str| json!({"address": addr.ip().to_string(), "ports": {"http": addr.port()}, "labels": {"version": version}});
    let entry = |name: &str, endpoints: Vec<Value>| {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": name},
            "spec": {"hosts": [format!("{name}.svc.test")], "location": "MESH_EXTERNAL", "resolution": "STATIC",
                     "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "endpoints": endpoints},
        })
    };
    let (pairs, hashed) = backends.split_at(4);
    for (i, pair) in pairs.chunks(2).enumerate() {
        let name = format!("s{i}");
        documents.push(entry(&name, vec![endpoint(&pair[0], "v1"), endpoint(&pair[1], "v2")]));
        documents.push(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": name},
            "spec": {"host": format!("{name}.svc.test"),
                     "subsets": [{"name": "v1", "labels": {"version": "v1"}}, {"name": "v2", "labels": {"version": "v2"}}]},
        }));
    }
    let zoned = |(i, addr): (usize, &SocketAddr)| {
        let mut endpoint = endpoint(addr, "v1");
        endpoint["locality"] = json!(if i == 0 { "r/z1" } else { "r/z2" });
        endpoint
    };
    documents.push(entry("hashed", hashed.iter().enumerate().map(zoned).collect()));
    let mut hash = json!({"httpHeaderName": "x-user"});
    if rng.bool() {
        hash["maglev"] = json!({});
    } else {
        hash["ringHash"] = json!({"minimumRingSize": ([64, 1024, 5000][rng.usize(..3)])});
    }
    documents.push(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "hashed"},
        "spec": {"host": "hashed.svc.test", "trafficPolicy": {"loadBalancer": {"consistentHash": hash}},
                 "subsets": [{"name": "all", "labels": {"version": "v1"}}]},
    }));
    documents
}

pub(crate) fn one<'a>(rng: &mut Rng, of: &[&'a str]) -> &'a str {
    of[rng.usize(..of.len())]
}

fn path(rng: &mut Rng) -> String {
    let mut text = String::new();
    for _ in 0..rng.usize(..4) {
        text.push('/');
        text.push_str(one(rng, &SEGMENTS));
    }
    if text.is_empty() || rng.u8(..4) == 0 {
        text.push('/');
    }
    text
}

fn string_match(rng: &mut Rng, value: String, regex: String) -> Value {
    match rng.u8(..3) {
        0 => json!({"exact": value}),
        1 => json!({"prefix": value}),
        _ => json!({"regex": regex}),
    }
}

fn value_match(rng: &mut Rng) -> Value {
    let value = one(rng, &VALUES);
    if value.is_empty() {
        return json!({});
    }
    let regex = ["j.*n", "v[12]", "(?i)TRUE", ".*"][rng.usize(..4)].to_string();
    string_match(rng, value.to_string(), regex)
}

fn condition(rng: &mut Rng) -> Value {
    let mut condition = json!({});
    if rng.u8(..10) < 7 {
        let wanted = path(rng);
        let regex = ["/api/.*", "/v[0-9]/[a-z]+", "/.*\\.b", "/(users|items)(/.*)?"][rng.usize(..4)].to_string();
        condition["uri"] = string_match(rng, wanted, regex);
        if rng.u8(..5) == 0 {
            condition["ignoreUriCase"] = json!(true);
        }
    }
    if rng.u8(..3) == 0 {
        condition["headers"] = json!({one(rng, &HEADERS): value_match(rng)});
    }
    if rng.u8(..6) == 0 {
        condition["withoutHeaders"] = json!({one(rng, &HEADERS): value_match(rng)});
    }
    if rng.u8(..4) == 0 {
        condition["queryParams"] = json!({one(rng, &PARAMS): value_match(rng)});
    }
    if rng.u8(..5) == 0 {
        condition["method"] = json!({"exact": one(rng, &["GET", "POST", "PUT"])});
    }
    if rng.u8(..8) == 0 {
        // Of hosts that are asked for in lower case: Envoy compares as written, and we in lower case, as all of routing.
        condition["authority"] = string_match(rng, "c.exam".into(), "[cxy]\\..*".into());
    }
    if rng.u8(..10) == 0 {
        condition["scheme"] = json!({"exact": one(rng, &["http", "https"])});
    }
    condition
}

fn operations(rng: &mut Rng) -> Value {
    let mut side = || {
        let mut operations = json!({});
        if rng.bool() {
            operations["set"] = json!({"x-set": "one", one(rng, OPERATED): "set"});
        }
        if rng.bool() {
            operations["add"] = json!({"x-add": "two", "x-version": "added"});
        }
        if rng.bool() {
            operations["remove"] = json!(["x-debug", "x-backend"]);
        }
        operations
    };
    json!({"request": side(), "response": side()})
}

pub(crate) fn destination(rng: &mut Rng) -> Value {
    match rng.u8(..4) {
        0 => {
            let mut all = json!({"host": "hashed.svc.test"});
            if rng.bool() {
                all["subset"] = json!("all");
            }
            all
        }
        n => json!({"host": format!("s{}.svc.test", n % 2), "subset": one(rng, &["v1", "v2"])}),
    }
}

fn rule(rng: &mut Rng) -> Value {
    let mut rule = json!({});
    let conditions = rng.usize(..3);
    if conditions > 0 {
        rule["match"] = (0..conditions).map(|_| condition(rng)).collect();
    }
    if rng.u8(..3) == 0 {
        rule["headers"] = operations(rng);
    }
    match rng.u8(..12) {
        0 => {
            rule["redirect"] = json!({"uri": "/moved", "redirectCode": ([301, 302, 307, 308][rng.usize(..4)])});
            if rng.bool() {
                rule["redirect"]["authority"] = json!("new.example");
            }
            if rng.bool() {
                rule["redirect"]["scheme"] = json!("https");
            }
            return rule;
        }
        1 => {
            rule["directResponse"] =
                json!({"status": ([200, 404, 503][rng.usize(..3)]), "body": {"string": "direct\n"}});
            return rule;
        }
        2 => rule["fault"] = json!({"abort": {"httpStatus": 418, "percentage": {"value": 100}}}),
        3 => rule["timeout"] = json!("12.5s"),
        4 => {
            let on = one(rng, &["5xx", "gateway-error,connect-failure", "503", "retriable-4xx", "reset"]);
            rule["retries"] = json!({"attempts": 1 + rng.u8(..3), "retryOn": on, "perTryTimeout": "10s"});
        }
        5 => {
            rule["corsPolicy"] = json!({
                "allowOrigins": [{"exact": "https://a.example"}, {"regex": "https://.*\\.b\\.example"}],
                "allowMethods": ["GET", "POST"], "allowHeaders": ["x-debug"], "exposeHeaders": ["x-backend"],
                "maxAge": "24h", "allowCredentials": rng.bool(),
            });
        }
        _ => {}
    }
    if rng.u8(..4) == 0 {
        rule["rewrite"] = match rng.u8(..4) {
            0 => json!({"uri": "/new"}),
            1 => json!({"uri": "/"}),
            2 => json!({"authority": "rewritten.example"}),
            _ => json!({"uriRegexRewrite": {"match": "^/([a-z]+)/(.*)$", "rewrite": "/\\2/\\1"}}),
        };
    }
    let mut route = json!({"destination": destination(rng)});
    if rng.u8(..4) == 0 {
        route["headers"] = operations(rng);
    }
    rule["route"] = json!([route]);
    rule
}

pub(crate) fn virtual_service(number: usize, rng: &mut Rng) -> Value {
    let hosts: Vec<&str> = (0..1 + rng.usize(..2)).map(|_| one(rng, &HOSTS)).collect();
    let rules: Vec<Value> = (0..1 + rng.usize(..6)).map(|_| rule(rng)).collect();
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": format!("vs{number}")},
        "spec": {"hosts": hosts, "gateways": ["gateway"], "http": rules},
    })
}

/// A random request.
pub fn ask(rng: &mut Rng) -> Ask {
    let mut path = path(rng);
    match rng.u8(..12) {
        0 => path = path.replacen('/', "//", 1),
        1 => path.push_str("/../other"),
        2 => path.push_str("/./x"),
        3 => path.push_str("/a%2fb"),
        4 => path.push_str("/status/503"),
        _ => {}
    }
    let params = rng.usize(..3);
    for i in 0..params {
        let (name, value) = (one(rng, &PARAMS), one(rng, &VALUES));
        path.push(if i == 0 { '?' } else { '&' });
        path.push_str(name);
        if !value.is_empty() || rng.bool() {
            path.push('=');
            path.push_str(value);
        }
    }
    let mut headers = vec![
        ("host".to_string(), one(rng, &ASKED).to_string()),
        // Without it the hashed service would leave its choice to chance.
        ("x-user".to_string(), format!("user-{}", rng.u8(..40))),
    ];
    for name in HEADERS {
        if rng.u8(..3) == 0 {
            headers.push((name.to_string(), one(rng, &VALUES).to_string()));
        }
    }
    for (name, value, odds) in [
        ("origin", "https://a.example", 8),
        ("access-control-request-method", "POST", 12),
        ("x-forwarded-for", "10.1.2.3, 10.4.5.6", 8),
        ("x-forwarded-proto", "https", 10),
        ("x-envoy-max-retries", "3", 12),
        ("x-envoy-upstream-rq-timeout-ms", "7500", 12),
        ("x-fail", "1", 10),
        ("te", "trailers", 12),
        ("connection", "x-debug", 20),
    ] {
        if rng.u8(..odds) == 0 {
            headers.push((name.to_string(), value.to_string()));
        }
    }
    let method = one(rng, &["GET", "GET", "GET", "GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"]);
    let body = if matches!(method, "POST" | "PUT") { "hello" } else { "" };
    Ask { method: method.into(), path, headers, body: body.into() }
}
