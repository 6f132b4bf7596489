//! More of what a user may write, on top of [`crate::random`]: mirrors, weights, delays, redirects that derive a port, headers
//! that are formats, hosts that headers set, compression, HTTP/2 to endpoints, hash policies, normalisation, trusted hops, and
//! requests to meet it. What the endpoints saw is compared too, so that copies and tries count.

use crate::random::{self, HEADERS, OPERATED, PARAMS, VALUES, one};
use crate::twin::Ask;
use fastrand::Rng;
use serde_json::{Value, json};
use std::net::SocketAddr;
use weft_xds_gen::ProxyResources;

/// What the gateway of such a mesh is given, and the documents that it was made of. `backends` as in
/// [`random::configuration`].
pub fn configuration(seed: u64, backends: &[SocketAddr]) -> (ProxyResources, Vec<Value>) {
    let mut rng = Rng::with_seed(seed);
    let rng = &mut rng;
    let mut documents = random::world(backends, rng);
    documents.iter_mut().for_each(|document| change_world(document, rng));
    let compressed = rng.bool();
    for i in 0..2 + rng.usize(..4) {
        let mut service = random::virtual_service(i, rng);
        let rules = service["spec"]["http"].as_array_mut().into_iter().flatten();
        rules.for_each(|rule| change_rule(rule, rng));
        documents.push(service);
    }
    if compressed {
        documents.push(compressor(rng));
    }
    let normalization = one(rng, &["NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"]);
    let hops = rng.u8(..3);
    let mesh = json!({
        "pathNormalization": {"normalization": normalization},
        "defaultConfig": {"gatewayTopology": {"numTrustedProxies": hops}},
    });
    (random::generated(&documents, &mesh), documents)
}

fn often(rng: &mut Rng, one_in: u8) -> bool {
    rng.u8(..one_in) == 0
}

/// Destination rules, and the gateway.
pub(crate) fn change_world(document: &mut Value, rng: &mut Rng) {
    let name = document["metadata"]["name"].as_str().unwrap_or_default().to_string();
    match (document["kind"].as_str(), name.as_str()) {
        (Some("DestinationRule"), "hashed") => {
            let policy = &mut document["spec"]["trafficPolicy"];
            let balancer = &mut policy["loadBalancer"];
            let mut own = balancer.clone();
            hash_by_another(&mut balancer["consistentHash"], rng);
            if often(rng, 2) {
                let to = json!({"r/z1/*": 60, "r/z2/*": 40});
                balancer["localityLbSetting"] = json!({"distribute": [{"from": "r/z1/*", "to": to}]});
            }
            if often(rng, 3) {
                policy["portLevelSettings"] = json!([{"port": {"number": 80}, "loadBalancer": balancer.clone()}]);
            }
            // A subset of all, by a hash of its own.
            hash_by_another(&mut own["consistentHash"], rng);
            let mut subset = json!({"name": "all", "labels": {"version": "v1"}});
            if often(rng, 2) {
                subset["trafficPolicy"] = json!({"loadBalancer": own});
            }
            document["spec"]["subsets"] = json!([subset]);
        }
        (Some("DestinationRule"), _) => {
            let mut http = json!({});
            match rng.u8(..4) {
                0 => http["h2UpgradePolicy"] = json!("UPGRADE"),
                1 => http["maxRequestsPerConnection"] = json!(1 + rng.u8(..3)),
                2 => http["useClientProtocol"] = json!(true),
                _ => {}
            }
            document["spec"]["trafficPolicy"] = json!({"connectionPool": {"http": http}});
            if often(rng, 2) {
                let policy =
                    json!({"connectionPool": {"http": {"h2UpgradePolicy": one(rng, &["UPGRADE", "DO_NOT_UPGRADE"])}}});
                let for_port = json!({"portLevelSettings": [{"port": {"number": 80}, "connectionPool": policy["connectionPool"].clone()}]});
                let place = if often(rng, 2) { policy } else { for_port };
                document["spec"]["subsets"][rng.usize(..2)]["trafficPolicy"] = place;
            }
        }
        (Some("Gateway"), _) if often(rng, 2) => {
            let servers = document["spec"]["servers"].as_array_mut();
            servers.into_iter().for_each(|servers| {
                servers[0]["hosts"] = json!(["a.example", "*.b.example", "*"]);
                servers.push(json!({
                    "port": {"number": random::GATEWAY_PORT, "name": "http-c", "protocol": "HTTP"},
                    "hosts": ["c.example"], "tls": {"httpsRedirect": true},
                }));
            });
        }
        _ => {}
    }
}

fn hash_by_another(hash: &mut Value, rng: &mut Rng) {
    let by = match rng.u8(..4) {
        0 => json!({"httpCookie": {"name": "user", "ttl": "0s"}}),
        1 => json!({"httpQueryParameterName": "u"}),
        2 => json!({"useSourceIp": true}),
        _ => return,
    };
    let table = ["maglev", "ringHash"].into_iter().find_map(|key| Some((key, hash.get(key)?.clone())));
    *hash = by;
    if let Some((key, table)) = table {
        hash[key] = table;
    }
}

fn compressor(rng: &mut Rng) -> Value {
    let library = one(rng, &["gzip", "brotli", "zstd"]);
    let kind = match library {
        "gzip" => "gzip.compressor.v3.Gzip",
        "brotli" => "brotli.compressor.v3.Brotli",
        _ => "zstd.compressor.v3.Zstd",
    };
    let mut common = json!({"min_content_length": ([0, 30, 300][rng.usize(..3)])});
    if rng.bool() {
        common["content_type"] = json!(["text/plain", "application/json"]);
    }
    let direction = json!({
        "common_config": common, "disable_on_etag_header": rng.bool(), "remove_accept_encoding_header": rng.bool(),
    });
    json!({
        "apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter", "metadata": {"name": "compressor"},
        "spec": {"workloadSelector": {"labels": {"istio": "gateway"}}, "configPatches": [{
            "applyTo": "HTTP_FILTER",
            "match": {"context": "GATEWAY", "listener": {"filterChain": {"filter": {
                "name": "envoy.filters.network.http_connection_manager",
                "subFilter": {"name": "envoy.filters.http.router"}}}}},
            "patch": {"operation": "INSERT_BEFORE", "value": {
                "name": "envoy.filters.http.compressor",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.compressor.v3.Compressor",
                    "response_direction_config": direction,
                    "compressor_library": {"name": library, "typed_config": {
                        "@type": format!("type.googleapis.com/envoy.extensions.compression.{kind}")}},
                },
            }},
        }]},
    })
}

pub(crate) fn change_rule(rule: &mut Value, rng: &mut Rng) {
    rule["match"].as_array_mut().into_iter().flatten().for_each(|condition| change_condition(condition, rng));
    if rule["match"].is_null()
        && let Some(rule) = rule.as_object_mut()
    {
        rule.remove("match");
    }
    if often(rng, 3) {
        rule["headers"] = formats(rng);
    }
    if rule.get("redirect").is_some() {
        rule["redirect"] = redirect(rng);
        return;
    }
    if rule.get("directResponse").is_some() {
        if often(rng, 2) {
            rule["directResponse"] = match rng.u8(..3) {
                0 => json!({"status": 204}),
                1 => json!({"status": 418, "body": {"bytes": "AGhpCg=="}}),
                _ => json!({"status": 200, "body": {"string": "x".repeat(400)}}),
            };
        }
        return;
    }
    match rng.u8(..14) {
        0 => rule["fault"] = json!({"delay": {"fixedDelay": "0.003s", "percentage": {"value": 100}}}),
        1 => rule["fault"] = json!({"abort": {"grpcStatus": "UNAVAILABLE", "percentage": {"value": 100}}}),
        2 => {
            rule["fault"] = json!({"delay": {"fixedDelay": "0.002s", "percentage": {"value": 100}},
                                   "abort": {"httpStatus": 503, "percentage": {"value": 100}}});
        }
        3 => rule["fault"] = json!({"abort": {"httpStatus": 500, "percentage": {"value": 0}}}),
        4 => {
            let mirrors = (0..1 + rng.usize(..2)).map(|_| json!({"destination": copied_to(rng)}));
            rule["mirrors"] = mirrors.collect();
        }
        5 => {
            rule["mirror"] = copied_to(rng);
            rule["mirrorPercentage"] = json!({"value": ([0, 100][rng.usize(..2)])});
        }
        6 => {
            let on =
                one(rng, &["503,gateway-error", "retriable-status-codes,418", "5xx,reset-before-request", "500,502"]);
            rule["retries"] = json!({"attempts": rng.u8(..4), "retryOn": on, "backoff": "0.001s",
                                     "retryIgnorePreviousHosts": rng.bool(), "retryRemoteLocalities": rng.bool()});
        }
        7 => rule["timeout"] = json!("0s"),
        8 => rule["corsPolicy"] = cors(rng),
        _ => {}
    }
    if often(rng, 4) {
        rule["rewrite"] = match rng.u8(..6) {
            0 => json!({"uri": "/new", "authority": "both.example"}),
            1 => json!({"uri": ""}),
            2 => json!({"uri": "/n/"}),
            3 => json!({"uriRegexRewrite": {"match": "/v([0-9]+)", "rewrite": "/version-\\1"}}),
            4 => json!({"uriRegexRewrite": {"match": "^(.*)$", "rewrite": "/p\\1"}, "authority": "re.example"}),
            _ => json!({"uriRegexRewrite": {"match": "[aeiou]", "rewrite": "\\0\\0"}}),
        };
        if rule["rewrite"]["uri"] == "" {
            rule["rewrite"] = json!({"authority": "only.example"});
        }
    }
    if often(rng, 5) {
        // Weights that leave nothing to chance.
        let mut route = json!({"destination": random::destination(rng), "weight": 100});
        if rng.bool() {
            route["headers"] = formats(rng);
        }
        let none = json!({"destination": {"host": "s0.svc.test", "subset": "v1"}, "weight": 0});
        rule["route"] = json!([none, route]);
    }
}

/// Where copies go: not to the hashed service, whose endpoint is left to chance for them.
fn copied_to(rng: &mut Rng) -> Value {
    json!({"host": format!("s{}.svc.test", rng.u8(..2)), "subset": one(rng, &["v1", "v2"])})
}

fn change_condition(condition: &mut Value, rng: &mut Rng) {
    if often(rng, 8) {
        condition["port"] = json!(random::GATEWAY_PORT);
    }
    if often(rng, 8) {
        condition["gateways"] = json!(["gateway"]);
    }
    if often(rng, 10) {
        condition["method"] = json!({"regex": "GET|P.*"});
    }
    if often(rng, 10) {
        condition["name"] = json!("named");
    }
    if often(rng, 12) {
        condition["headers"] = json!({":authority": {"prefix": "c.exam"}});
    }
    if often(rng, 10) {
        let wanted = match rng.u8(..4) {
            0 => json!({}),
            1 => json!({"prefix": "ja"}),
            2 => json!({"regex": "[a-z]+"}),
            _ => json!({"exact": "a-b.c"}),
        };
        condition["queryParams"] = json!({one(rng, &PARAMS): wanted});
    }
    if often(rng, 12) {
        condition["withoutHeaders"] = json!({one(rng, &HEADERS): {}, "x-none": {"prefix": "a"}});
    }
}

/// Operations whose values are formats, and that name the host.
fn formats(rng: &mut Rng) -> Value {
    let value = |rng: &mut Rng| {
        let all = [
            "plain",
            "%REQ(x-user)%",
            "%REQ(:path)%-%REQ(:method)%",
            "%PROTOCOL%",
            "100%%",
            "%REQ(no-such?x-version)%",
            "%REQ(x-user):4%",
            "%UPSTREAM_CLUSTER%",
            "%ROUTE_NAME%",
            "%RESPONSE_CODE%",
            "%RESPONSE_FLAGS%",
            "%RESPONSE_CODE_DETAILS%",
            "%REQ(:scheme)%",
            "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
            "%REQ(no-such)%",
            "a, b",
        ];
        json!(one(rng, &all))
    };
    let mut side = |request: bool| {
        let mut operations = json!({});
        if rng.bool() {
            operations["set"] = json!({"x-format": value(rng), one(rng, OPERATED): value(rng)});
        }
        if rng.bool() {
            operations["add"] = json!({"x-more": value(rng)});
        }
        if often(rng, 3) {
            operations["remove"] = json!([one(rng, OPERATED), "x-format"]);
        }
        if request && often(rng, 6) {
            operations["set"]["host"] = json!("header.example");
        }
        operations
    };
    json!({"request": side(true), "response": side(false)})
}

fn redirect(rng: &mut Rng) -> Value {
    let mut redirect = json!({});
    match rng.u8(..4) {
        0 => redirect["uri"] = json!("/moved"),
        1 => redirect["uri"] = json!("%PREFIX()%/p"),
        2 => redirect["uri"] = json!("/moved?with=query"),
        _ => {}
    }
    if rng.bool() {
        redirect["authority"] = json!(one(rng, &["new.example", "new.example:99"]));
    }
    if rng.bool() {
        redirect["scheme"] = json!(one(rng, &["http", "https"]));
    }
    match rng.u8(..4) {
        0 => redirect["derivePort"] = json!("FROM_REQUEST_PORT"),
        1 => redirect["derivePort"] = json!("FROM_PROTOCOL_DEFAULT"),
        2 => redirect["port"] = json!([80, 443, 8443][rng.usize(..3)]),
        _ => {}
    }
    if rng.bool() {
        redirect["redirectCode"] = json!([301, 302, 303, 307, 308][rng.usize(..5)]);
    }
    redirect
}

fn cors(rng: &mut Rng) -> Value {
    let mut cors = json!({
        "allowOrigins": [{"prefix": "https://a."}, {"exact": "null"}],
        "unmatchedPreflights": one(rng, &["FORWARD", "IGNORE", "UNSPECIFIED"]),
    });
    if rng.bool() {
        cors["allowMethods"] = json!(["PUT"]);
    }
    if rng.bool() {
        cors["maxAge"] = json!("90s");
    }
    if rng.bool() {
        cors["exposeHeaders"] = json!(["x-a", "x-b"]);
    }
    if rng.bool() {
        cors["allowCredentials"] = json!(rng.bool());
    }
    cors
}

/// A random request.
pub fn ask(rng: &mut Rng) -> Ask {
    let mut ask = random::ask(rng);
    match rng.u8(..16) {
        0 => ask.path = ask.path.replacen('/', "///", 1),
        1 => ask.path = ask.path.replace('/', "/./"),
        2 => ask.path = ask.path.replacen("api", "%61pi", 1),
        3 => ask.path = format!("{};a=b", ask.path),
        4 => ask.path = format!("/a%5cb{}", ask.path),
        5 => ask.path = format!("{}{}debug=tr%75e", ask.path, if ask.path.contains('?') { '&' } else { '?' }),
        6 => ask.path = format!("{}{}q=jason&q=v1", ask.path, if ask.path.contains('?') { '&' } else { '?' }),
        7 => ask.path = format!("/v1{}", ask.path),
        _ => {}
    }
    // Envoy merges slashes to one, but makes two of a path that is nothing else, once its dots are gone.
    if ask.path.bytes().take_while(|byte| *byte != b'?').all(|byte| matches!(byte, b'/' | b'.')) {
        let query = ask.path.split_once('?').map(|(_, query)| format!("?{query}"));
        ask.path = format!("/{}", query.unwrap_or_default());
    }
    let user = rng.u8(..40);
    // Whatever the endpoint is found by, each request says it: else its choice would be left to chance.
    ask.path.push_str(&format!("{}u=user-{user}", if ask.path.contains('?') { '&' } else { '?' }));
    ask.headers.retain(|(name, _)| name != "cookie");
    ask.headers.push(("cookie".into(), format!("user=user-{user}; version={}", one(rng, &VALUES))));
    for (name, value, odds) in [
        ("accept-encoding", "gzip, br;q=0.9, zstd;q=0.5", 3),
        ("accept-encoding", "identity", 12),
        ("access-control-request-headers", "x-a", 12),
        ("origin", "null", 12),
        ("origin", "https://evil.test", 12),
        ("x-forwarded-host", "fwd.example", 12),
        ("x-forwarded-client-cert", "By=x;Hash=y", 16),
        ("x-envoy-retry-on", "5xx", 12),
        ("x-envoy-original-path", "/forged", 16),
        ("x-envoy-attempt-count", "9", 16),
        ("x-envoy-internal", "true", 16),
        ("x-envoy-decorator-operation", "op", 16),
        ("x-request-id", "not-a-uuid", 16),
        ("forwarded", "for=1.2.3.4", 16),
        ("via", "1.1 someone", 16),
        ("content-type", "application/grpc", 12),
        ("x-version", "second", 8),
        ("x-fail", "2", 16),
        (":scheme", "https", 8),
        ("cache-control", "no-transform", 16),
        ("range", "bytes=0-3", 16),
    ] {
        // To a HEAD of gRPC Envoy's own answers say no message; ours say it, which costs nobody anything.
        let excluded = name == "content-type" && ask.method == "HEAD";
        let taken = excluded || ask.headers.iter().any(|(known, _)| known == name) && name != "x-version";
        if rng.u8(..odds) == 0 && !taken {
            ask.headers.push((name.into(), value.into()));
        }
    }
    ask
}
