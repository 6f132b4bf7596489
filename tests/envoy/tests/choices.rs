//! Which endpoint a hash leads to, at first and when a try has failed, and what is said of requests that a filter answers: the
//! same file and the same requests for Envoy and for us.

#![allow(clippy::unwrap_used)]

use http::Version;
use weft_envoy_tests::{Ask, Backend, Twin, bootstrap};

const FAULT: &str = r#"{name: envoy.filters.http.fault, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}},"#;
const CORS: &str = r#"{name: envoy.filters.http.cors, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}},"#;
const GZIP: &str = r#"{name: gzip, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.compressor.v3.Compressor, response_direction_config: {common_config: {min_content_length: 0}}, compressor_library: {name: gzip, typed_config: {"@type": type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip}}}},"#;

/// A cluster of these endpoints, in two localities of unequal weight: the first is alone in its own.
fn cluster(name: &str, policy: &str, backends: &[Backend]) -> String {
    let endpoint = |backend: &Backend| {
        let (ip, port) = (backend.addr.ip(), backend.addr.port());
        format!("{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}")
    };
    let locality = |zone: &str, weight: u32, of: &[Backend]| {
        let endpoints = of.iter().map(endpoint).collect::<Vec<_>>().join(", ");
        format!("{{locality: {{zone: {zone}}}, load_balancing_weight: {weight}, lb_endpoints: [{endpoints}]}}")
    };
    let (first, others) = backends.split_at(1);
    format!(
        "  - {{name: {name}, type: STATIC, connect_timeout: 20s, {policy} load_assignment: {{cluster_name: {name}, endpoints: [{}, {}]}}}}\n",
        locality("one", 70, first),
        locality("two", 30, others)
    )
}

async fn same(file: &str, asks: &[Ask]) {
    let Some(twin) = Twin::start(file).await else { return };
    let mut found = Vec::new();
    for (version, more) in [(Version::HTTP_11, "1"), (Version::HTTP_2, "2")] {
        let asks = asks.iter().map(|ask| {
            let mut ask = ask.clone();
            // A path of its own: what fails once fails once for each client.
            ask.path = format!("{}{}v={more}", ask.path, if ask.path.contains('?') { '&' } else { '?' });
            ask
        });
        found.extend(twin.compare_over(version, &asks.collect::<Vec<_>>()).await);
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn hashes_lead_on_after_failures() {
    let mut backends = Vec::new();
    for name in ["one", "two", "three", "four", "five"] {
        backends.push(Backend::start(name).await);
    }
    let weighted = "common_lb_config: {locality_weighted_lb_config: {}}";
    let clusters = [
        ("ring", "lb_policy: RING_HASH, ring_hash_lb_config: {minimum_ring_size: 64},".to_string()),
        ("table", "lb_policy: MAGLEV,".to_string()),
        ("zones", format!("lb_policy: RING_HASH, {weighted},")),
        ("zoned", format!("lb_policy: MAGLEV, {weighted},")),
    ];
    let retries = "retry_policy: {retry_on: 5xx, num_retries: 3, retry_back_off: {base_interval: 0.001s}, retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: {'@type': type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}], host_selection_retry_max_attempts: 4}";
    let route = |name: &str| {
        format!(
            "{{match: {{prefix: /{name}/user}}, route: {{cluster: {name}, {retries}, hash_policy: [{{header: {{header_name: x-user}}}}]}}}},\
             {{match: {{prefix: /{name}/source}}, route: {{cluster: {name}, hash_policy: [{{connection_properties: {{source_ip: true}}}}]}}}},\
             {{match: {{prefix: /{name}/cookie}}, request_headers_to_add: [{{header: {{key: cookie, value: 'user=%REQ(x-user)%'}}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}}],\
               route: {{cluster: {name}, hash_policy: [{{cookie: {{name: user}}}}]}}}}"
        )
    };
    let routes = clusters.iter().map(|(name, _)| route(name)).collect::<Vec<_>>().join(", ");
    let hosts = format!("[{{name: v, domains: ['*'], routes: [{routes}]}}]");
    let mut file = bootstrap::plain("", &hosts, "", &[]);
    clusters.iter().for_each(|(name, policy)| file.push_str(&cluster(name, policy, &backends)));
    let mut asks = Vec::new();
    for n in 0..16 {
        let (user, fails) = (format!("user-{n}"), (n % 4).to_string());
        let client = format!("10.1.2.{n}");
        for (name, _) in &clusters {
            asks.push(Ask::get(&format!("/{name}/user?n={n}"), &[("x-user", &user), ("x-fail", &fails)]));
            asks.push(Ask::get(&format!("/{name}/source"), &[("x-forwarded-for", &client)]));
            asks.push(Ask::get(&format!("/{name}/cookie"), &[("x-user", &user), ("cookie", "user=forged")]));
        }
    }
    same(&file, &asks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_filters() {
    let backend = Backend::start("a").await;
    let said = r#"response_headers_to_add: [{header: {key: x-said, value: "%UPSTREAM_CLUSTER% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %REQ(:SCHEME)% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}}]"#;
    let fault = r#"typed_per_filter_config: {envoy.filters.http.fault: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: 418, percentage: {numerator: 100}}}}"#;
    let cors = r#"typed_per_filter_config: {envoy.filters.http.cors: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy, allow_origin_string_match: [{exact: "https://a.example"}], allow_methods: GET}}"#;
    let hosts = format!(
        r#"[{{name: v, domains: ['*'], routes: [
        {{match: {{prefix: /fault}}, route: {{cluster: a}}, {fault}, {said}}},
        {{match: {{prefix: /cors}}, route: {{cluster: a}}, {cors}, {said}}},
        {{match: {{prefix: /direct}}, direct_response: {{status: 404, body: {{inline_string: nothing}}}}, {said}}},
        {{match: {{prefix: /tls, headers: [{{name: ":scheme", string_match: {{exact: https}}}}]}}, redirect: {{path_redirect: /by-tls}}}},
        {{match: {{prefix: /}}, route: {{cluster: a}}, {said}}}]}}]"#
    );
    let file = bootstrap::plain("", &hosts, &format!("{CORS} {FAULT} {GZIP}"), &[("a", backend.addr, "")]);
    let mut asks = Vec::new();
    for path in ["/fault", "/cors", "/direct", "/tls", "/other"] {
        for more in [
            &[][..],
            &[("accept-encoding", "gzip")],
            &[("x-forwarded-proto", "https")],
            &[(":scheme", "https"), ("x-forwarded-proto", "http"), ("x-forwarded-for", "10.9.9.9")],
            &[("content-type", "application/grpc")],
        ] {
            asks.push(Ask::get(path, more));
            let preflight = [("origin", "https://a.example"), ("access-control-request-method", "GET")];
            asks.push(Ask::get(path, &[&preflight[..], more].concat()).with("OPTIONS", ""));
        }
    }
    same(&file, &asks).await;
}
