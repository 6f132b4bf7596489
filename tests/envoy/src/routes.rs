//! The Gateway API from a seed: a Gateway whose listeners are for hosts, HTTPRoutes of all that they may ask for, and requests
//! that are likely to meet them.

use crate::random::{self, HEADERS, OPERATED, PARAMS, VALUES, one};
use crate::twin::Ask;
use crate::wide;
use fastrand::Rng;
use serde_json::{Value, json};
use std::net::SocketAddr;
use weft_xds_gen::ProxyResources;

/// A service of one endpoint, for copies: their endpoint is left to chance.
const COPIES: &str = "copies.svc.test";
const PATHS: [&str; 8] = ["/", "/api", "/api/", "/api/v1", "/v1", "/users", "/API", "/items/a.b"];

/// What the gateway of such a mesh is given, and the documents that it was made of. `backends` as in
/// [`random::configuration`].
pub fn configuration(seed: u64, backends: &[SocketAddr]) -> (ProxyResources, Vec<Value>) {
    let mut rng = Rng::with_seed(seed);
    let rng = &mut rng;
    let mut documents = random::world(backends, rng);
    let labels = json!({"gateway.networking.k8s.io/gateway-name": "gateway"});
    for document in &mut documents {
        match document["kind"].as_str() {
            Some("Pod") => document["metadata"]["labels"] = labels.clone(),
            // Routes know no subsets: what is left to a service is found by hash.
            Some("DestinationRule") if document["metadata"]["name"] != "hashed" => {
                let hash = json!({"httpHeaderName": "x-user", "maglev": {"tableSize": 1021}});
                document["spec"]["trafficPolicy"] = json!({"loadBalancer": {"consistentHash": hash}});
            }
            _ => {}
        }
    }
    documents.retain(|document| document["kind"] != "Gateway");
    documents.push(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "copies"},
        "spec": {"hosts": [COPIES], "location": "MESH_EXTERNAL", "resolution": "STATIC",
                 "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
                 "endpoints": [{"address": backends[0].ip().to_string(), "ports": {"http": backends[0].port()}}]},
    }));
    documents.push(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "istio"},
        "spec": {"controllerName": "istio.io/gateway-controller"},
    }));
    documents.push(gateway(rng));
    for i in 0..2 + rng.usize(..4) {
        documents.push(route(i, rng));
    }
    let node = json!({
        "id": "router~10.244.0.1~gateway.default~default.svc.cluster.local",
        "cluster": "gateway.default",
        "locality": {"region": "r", "zone": "z1"},
        "metadata": {"NAMESPACE": "default", "LABELS": labels, "CLUSTER_ID": "Kubernetes"},
    });
    (random::generated_for(&documents, &json!({}), &node), documents)
}

fn gateway(rng: &mut Rng) -> Value {
    let listener = |name: &str, hostname: Option<&str>| {
        let mut listener = json!({"name": name, "port": random::GATEWAY_PORT, "protocol": "HTTP"});
        if let Some(hostname) = hostname {
            listener["hostname"] = json!(hostname);
        }
        listener
    };
    let mut listeners = vec![listener("all", None)];
    if rng.bool() {
        listeners.push(listener("b", Some("*.b.example")));
    }
    if rng.bool() {
        listeners.push(listener("c", Some("c.example")));
    }
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "gateway"},
        "spec": {"gatewayClassName": "istio", "listeners": listeners},
    })
}

fn route(number: usize, rng: &mut Rng) -> Value {
    let mut parent = json!({"name": "gateway"});
    if rng.u8(..4) == 0 {
        parent["sectionName"] = json!(one(rng, &["all", "b", "c"]));
    }
    let mut spec = json!({"parentRefs": [parent]});
    if rng.u8(..4) > 0 {
        let hosts = (0..1 + rng.usize(..2))
            .map(|_| one(rng, &["a.example", "*.b.example", "x.b.example", "c.example", "*.example"]));
        spec["hostnames"] = hosts.collect();
    }
    spec["rules"] = (0..1 + rng.usize(..5)).map(|_| rule(rng)).collect();
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": format!("route{number}")},
        "spec": spec,
    })
}

fn rule(rng: &mut Rng) -> Value {
    let mut rule = json!({});
    let conditions = rng.usize(..4);
    if conditions > 0 {
        rule["matches"] = (0..conditions).map(|_| condition(rng)).collect();
    }
    let by_prefix = rule["matches"].as_array().into_iter().flatten().all(|condition| {
        let kind = &condition["path"]["type"];
        condition["path"].is_null() || kind == "PathPrefix"
    });
    let mut filters = Vec::new();
    if rng.u8(..3) == 0 {
        filters.push(json!({"type": "RequestHeaderModifier", "requestHeaderModifier": headers(rng)}));
    }
    if rng.u8(..3) == 0 {
        filters.push(json!({"type": "ResponseHeaderModifier", "responseHeaderModifier": headers(rng)}));
    }
    match rng.u8(..12) {
        0 | 1 => {
            filters.push(json!({"type": "RequestRedirect", "requestRedirect": redirect(by_prefix, rng)}));
            rule["filters"] = json!(filters);
            return rule;
        }
        2 | 3 => {
            let mut rewrite = json!({"path": path_modifier(by_prefix, rng)});
            if rng.bool() {
                rewrite["hostname"] = json!("rewritten.example");
            }
            filters.push(json!({"type": "URLRewrite", "urlRewrite": rewrite}));
        }
        4 => {
            let mut mirror = json!({"backendRef": backend(COPIES)});
            match rng.u8(..3) {
                0 => mirror["percent"] = json!([0, 100][rng.usize(..2)]),
                1 => mirror["fraction"] = json!({"numerator": 3, "denominator": 3}),
                _ => {}
            }
            filters.push(json!({"type": "RequestMirror", "requestMirror": mirror}));
        }
        5 => filters.push(json!({"type": "CORS", "cors": cors(rng)})),
        6 => rule["timeouts"] = json!({"request": "12500ms", "backendRequest": one(rng, &["10s", "12500ms", "0s"])}),
        7 => {
            rule["retry"] = json!({"codes": [503, 500], "attempts": rng.u8(..4), "backoff": "1ms"});
        }
        _ => {}
    }
    if !filters.is_empty() {
        rule["filters"] = json!(filters);
    }
    let mut to = backend(&format!("s{}.svc.test", rng.u8(..2)));
    match rng.u8(..12) {
        0 => to = backend("hashed.svc.test"),
        1 => to = backend("nobody.svc.test"),
        2 => return rule,
        _ => {}
    }
    if rng.u8(..4) == 0 {
        to["filters"] = json!([{"type": "RequestHeaderModifier", "requestHeaderModifier": headers(rng)},
                               {"type": "ResponseHeaderModifier", "responseHeaderModifier": headers(rng)}]);
    }
    let mut all = vec![to];
    if rng.u8(..3) == 0 {
        // Shares that leave nothing to chance.
        let mut none = backend("s1.svc.test");
        none["weight"] = json!(0);
        all.insert(0, none);
    }
    rule["backendRefs"] = json!(all);
    rule
}

fn backend(host: &str) -> Value {
    json!({"group": "networking.istio.io", "kind": "Hostname", "name": host, "port": 80})
}

fn condition(rng: &mut Rng) -> Value {
    let mut condition = json!({});
    match rng.u8(..4) {
        0 => condition["path"] = json!({"type": "Exact", "value": one(rng, &PATHS)}),
        1 | 2 => condition["path"] = json!({"type": "PathPrefix", "value": one(rng, &PATHS)}),
        _ if rng.u8(..3) == 0 => {
            let regex = one(rng, &["/api/.*", "/v[0-9](/[a-z]+)?", "/(users|items)(/.*)?"]);
            condition["path"] = json!({"type": "RegularExpression", "value": regex});
        }
        _ => {}
    }
    let named = |names: &[&str], rng: &mut Rng| {
        let name = one(rng, names);
        match rng.u8(..3) {
            0 => json!([{"type": "RegularExpression", "name": name, "value": one(rng, &["j.*n", "v[12]", "[a-z-]+"])}]),
            _ => json!([{"name": name, "value": one(rng, &["jason", "v1", "v2", "true", "a-b.c"])}]),
        }
    };
    if rng.u8(..3) == 0 {
        condition["headers"] = named(&HEADERS, rng);
    }
    if rng.u8(..5) == 0 {
        condition["queryParams"] = named(&PARAMS, rng);
    }
    if rng.u8(..6) == 0 {
        condition["method"] = json!(one(rng, &["GET", "POST", "OPTIONS"]));
    }
    condition
}

fn headers(rng: &mut Rng) -> Value {
    let mut changes = json!({});
    if rng.bool() {
        changes["set"] =
            json!([{"name": one(rng, OPERATED), "value": "set"}, {"name": "X-Set", "value": one(rng, &VALUES[..4])}]);
    }
    if rng.bool() {
        changes["add"] = json!([{"name": "x-version", "value": "added"}, {"name": "x-add", "value": "two"}]);
    }
    if rng.bool() {
        changes["remove"] = json!(["x-debug", "x-backend"]);
    }
    changes
}

fn path_modifier(by_prefix: bool, rng: &mut Rng) -> Value {
    if by_prefix && rng.bool() {
        return json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": one(rng, &["/", "/new", "/new/", ""])});
    }
    json!({"type": "ReplaceFullPath", "replaceFullPath": one(rng, &["/", "/whole", "/a/b"])})
}

fn redirect(by_prefix: bool, rng: &mut Rng) -> Value {
    let mut redirect = json!({});
    if rng.bool() {
        redirect["path"] = path_modifier(by_prefix, rng);
    }
    if rng.bool() {
        redirect["hostname"] = json!("new.example");
    }
    if rng.bool() {
        redirect["scheme"] = json!(one(rng, &["http", "https"]));
    }
    if rng.u8(..3) == 0 {
        redirect["port"] = json!([80, 443, 8443][rng.usize(..3)]);
    }
    if rng.bool() {
        redirect["statusCode"] = json!([301, 302, 303, 307, 308][rng.usize(..5)]);
    }
    redirect
}

fn cors(rng: &mut Rng) -> Value {
    let mut cors = json!({
        "allowOrigins": one_list(rng, &[&["https://a.example"], &["https://*.b.example", "https://a.example"], &["*"]]),
        "allowMethods": one_list(rng, &[&["GET", "POST"], &["*"]]),
        "allowHeaders": ["x-a", "x-b"],
    });
    if rng.bool() {
        cors["exposeHeaders"] = json!(["x-backend"]);
    }
    if rng.bool() {
        cors["maxAge"] = json!(60);
    }
    if rng.bool() {
        cors["allowCredentials"] = json!(rng.bool());
    }
    cors
}

fn one_list(rng: &mut Rng, of: &[&[&str]]) -> Value {
    json!(of[rng.usize(..of.len())])
}

/// A random request.
pub fn ask(rng: &mut Rng) -> Ask {
    let mut ask = wide::ask(rng);
    if rng.bool() {
        let query = ask.path.split_once('?').map(|(_, query)| format!("?{query}"));
        let more = one(rng, &["", "/", "/more", "x"]);
        ask.path = format!("{}{more}{}", one(rng, &PATHS), query.unwrap_or_default()).replacen("//", "/", 1);
    }
    ask
}
