//! One thing after another that a configuration can ask for: the same file and the same requests for Envoy and for us.

#![allow(clippy::unwrap_used)]

use weft_envoy_tests::{Ask, Backend, Twin, bootstrap};

const FAULT: &str = r#"{name: envoy.filters.http.fault, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {header_abort: {}, percentage: {numerator: 100}}, delay: {header_delay: {}, percentage: {numerator: 100}}}},"#;
const MUTATION: &str = r#"{name: envoy.filters.http.header_mutation, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation, mutations: {request_mutations: [{remove: x-gone}, {append: {header: {key: x-a, value: "%REQ(x-b)%"}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}}], response_mutations: [{append: {header: {key: x-r, value: r}, append_action: ADD_IF_ABSENT}}]}}},"#;
const HTTP2: &str = r#"typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}},"#;

fn all(routes: &str) -> String {
    format!("[{{name: v, domains: ['*'], routes: [{routes}]}}]")
}

/// Differences of a pair with one backend `a`.
async fn differences(manager: &str, hosts: &str, filters: &str, extra: &str, asks: &[Ask]) -> Vec<String> {
    let backend = Backend::start("a").await;
    let dead = "127.0.0.1:1".parse().unwrap();
    let clusters = [("a", backend.addr, extra), ("dead", dead, "")];
    let file = bootstrap::plain(manager, hosts, filters, &clusters);
    match Twin::start(&file).await {
        Some(twin) => twin.compare(asks).await,
        None => Vec::new(),
    }
}

async fn same(manager: &str, hosts: &str, filters: &str, extra: &str, asks: &[Ask]) {
    let found = differences(manager, hosts, filters, extra, asks).await;
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_and_their_headers() {
    let hosts = r#"[{name: v, domains: ['*'], include_request_attempt_count: true, include_attempt_count_in_response: true, routes: [
        {match: {prefix: "/codes"}, route: {cluster: a, retry_policy: {retry_on: retriable-status-codes, retriable_status_codes: [503], num_retries: 2, retry_back_off: {base_interval: 0.001s}}}},
        {match: {prefix: "/5xx"}, route: {cluster: a, retry_policy: {retry_on: 5xx, num_retries: 2, retry_back_off: {base_interval: 0.001s}}}},
        {match: {prefix: "/named"}, route: {cluster: a, retry_policy: {retry_on: 5xx, num_retries: 2, retry_back_off: {base_interval: 0.001s}, retriable_request_headers: [{name: x-again, present_match: true}, {name: x-user, string_match: {prefix: a}}]}}},
        {match: {prefix: "/refused"}, route: {cluster: dead}},
        {match: {prefix: "/dead"}, route: {cluster: dead, retry_policy: {retry_on: connect-failure, num_retries: 1, retry_back_off: {base_interval: 0.001s}}}},
        {match: {prefix: "/"}, route: {cluster: a, timeout: 12s}}]}]"#;
    let mut asks = Vec::new();
    for fails in ["1", "2", "3"] {
        for path in ["/codes", "/5xx", "/none"] {
            asks.push(Ask::get(&format!("{path}/{fails}"), &[("x-fail", fails)]));
        }
        // Wishes of a request are Envoy's to heed only with an address in x-forwarded-for that it was told is internal.
        let own = [
            ("x-fail", fails),
            ("x-envoy-retry-on", "5xx"),
            ("x-envoy-max-retries", "2"),
            ("x-forwarded-for", "127.0.0.1"),
        ];
        asks.push(Ask::get(&format!("/own/{fails}"), &own).with("POST", "again"));
    }
    for (name, value) in [("x-again", "1"), ("x-user", "ann"), ("x-user", "bob")] {
        asks.push(Ask::get(&format!("/named/{value}"), &[("x-fail", "2"), (name, value)]));
    }
    let inside = ("x-forwarded-for", "127.0.0.1");
    asks.push(Ask::get("/own/t", &[("x-envoy-upstream-rq-timeout-ms", "10000"), inside]));
    asks.push(Ask::get("/own/t", &[("x-envoy-upstream-rq-per-try-timeout-ms", "7000"), inside]));
    asks.push(Ask::get("/dead", &[]));
    asks.push(Ask::get("/refused", &[]));
    let internal = "internal_address_config: {cidr_ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}]},";
    same(internal, hosts, "", "", &asks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_by_header() {
    let hosts = all(
        r#"{match: {prefix: "/route"}, route: {cluster: a}, typed_per_filter_config: {envoy.filters.http.fault: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {grpc_status: 14, percentage: {numerator: 100}}}}}, {match: {prefix: "/"}, route: {cluster: a}}"#,
    );
    let mut asks = vec![
        Ask::get("/", &[]),
        Ask::get("/", &[("x-envoy-fault-abort-request", "418")]),
        Ask::get("/", &[("x-envoy-fault-abort-request", "418"), ("x-envoy-fault-abort-request-percentage", "0")]),
        Ask::get("/", &[("x-envoy-fault-abort-request", "99")]),
        Ask::get("/", &[("x-envoy-fault-abort-grpc-request", "5")]),
        Ask::get("/", &[("x-envoy-fault-delay-request", "10")]),
        Ask::get("/route", &[]),
    ];
    asks.push(Ask::get("/route", &[("content-type", "application/grpc")]).with("POST", ""));
    same("", &hosts, FAULT, "", &asks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn header_operations() {
    let add = |name: &str, value: &str, action: &str| {
        format!("{{header: {{key: {name}, value: \"{value}\"}}, append_action: {action}}}")
    };
    let list = [
        add("x-append", "1", "APPEND_IF_EXISTS_OR_ADD"),
        add("x-absent", "1", "ADD_IF_ABSENT"),
        add("x-over", "1", "OVERWRITE_IF_EXISTS_OR_ADD"),
        add("x-only", "1", "OVERWRITE_IF_EXISTS"),
        add("x-protocol", "%PROTOCOL%", "OVERWRITE_IF_EXISTS_OR_ADD"),
        add("x-req", "%REQ(x-over?x-append)% %REQ(:path)% %REQ(:method)%", "OVERWRITE_IF_EXISTS_OR_ADD"),
        add("x-no", "%REQ(no-such)%", "OVERWRITE_IF_EXISTS_OR_ADD"),
        add("x-route", "%ROUTE_NAME% 100%%", "OVERWRITE_IF_EXISTS_OR_ADD"),
        add("x-cluster", "%UPSTREAM_CLUSTER%", "OVERWRITE_IF_EXISTS_OR_ADD"),
    ]
    .join(", ");
    let hosts = all(&format!(
        r#"{{name: here, match: {{prefix: "/direct"}}, direct_response: {{status: 203, body: {{inline_string: hi}}}}, response_headers_to_add: [{list}]}},
           {{name: there, match: {{prefix: "/"}}, route: {{cluster: a}}, request_headers_to_add: [{list}], response_headers_to_add: [{list}], request_headers_to_remove: [x-gone], response_headers_to_remove: [x-backend]}}"#
    ));
    let own = [("x-append", "0"), ("x-absent", "0"), ("x-over", "0"), ("x-only", "0"), ("x-gone", "0"), ("x-b", "b")];
    let asks = [Ask::get("/p?q", &[]), Ask::get("/p", &own), Ask::get("/direct", &own), Ask::get("/status/500", &own)];
    same("append_x_forwarded_port: true, use_remote_address: true,", &hosts, MUTATION, "", &asks).await;
    same("server_name: me, via: v, xff_num_trusted_hops: 1, use_remote_address: true,", &hosts, "", HTTP2, &asks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rewrites_redirects_and_paths() {
    let hosts = all(r#"{match: {path_separated_prefix: "/seg"}, route: {cluster: a, prefix_rewrite: "/new"}},
           {match: {safe_regex: {regex: "/re/(.*)"}}, route: {cluster: a, regex_rewrite: {pattern: {regex: "^/re/([^/]+)/(.*)$"}, substitution: '/\2/\1'}}},
           {match: {prefix: "/host"}, route: {cluster: a, host_rewrite_literal: "other:81", append_x_forwarded_host: true}},
           {match: {prefix: "/https"}, redirect: {https_redirect: true, port_redirect: 8443}},
           {match: {prefix: "/pre"}, redirect: {prefix_rewrite: "/post", strip_query: true, response_code: FOUND}},
           {match: {path: "/gone"}, direct_response: {status: 410}},
           {match: {prefix: "/none"}, route: {cluster: nowhere, cluster_not_found_response_code: NOT_FOUND}},
           {match: {prefix: "/ws"}, route: {cluster: a, idle_timeout: 20s, max_stream_duration: {max_stream_duration: 20s}}},
           {match: {prefix: "/"}, route: {cluster: a}}"#);
    let paths = [
        "/seg",
        "/seg/x?q=1",
        "/segment",
        "/re/a/b/c",
        "/host/x",
        "/https/a?b",
        "/pre/x?y=1",
        "/gone",
        "/none",
        "/ws",
        "//a//b/../c",
        "/a/%2e%2e/b",
        "/a%2Fb",
        "/a%5cb",
        "/%7euser",
        "/a?b=%2f..",
        "/a/./b/",
        "/a;b=c",
        "/..",
        "/a/b/../../..",
    ];
    let asks: Vec<Ask> = paths.iter().map(|path| Ask::get(path, &[("host", "A.example:80")])).collect();
    for manager in [
        "",
        "normalize_path: true, merge_slashes: true,",
        "normalize_path: true, path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD, strip_any_host_port: true,",
        "normalize_path: true, path_with_escaped_slashes_action: REJECT_REQUEST,",
        "path_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT,",
    ] {
        same(manager, &hosts, "", "", &asks).await;
    }
}

/// The answer to a HEAD says a length and has no bytes, over either protocol to the endpoint.
#[tokio::test(flavor = "multi_thread")]
async fn heads_of_answers_alone() {
    let hosts = all("{match: {prefix: /}, route: {cluster: a}}");
    let mut asks = vec![Ask::get("/status/304", &[])];
    for path in ["/", "/status/404", "/status/304"] {
        let mut ask = Ask::get(path, &[]);
        ask.method = "HEAD".into();
        asks.extend([ask.clone(), ask]);
    }
    asks.push(Ask::get("/", &[]));
    for protocol in ["", HTTP2] {
        same("", &hosts, "", protocol, &asks).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_a_weighted_cluster_is_asked_for() {
    let weighted = |more: &str| {
        format!(
            "route: {{weighted_clusters: {{clusters: [{{name: a, weight: 1, host_rewrite_literal: weighted.example, \
             response_headers_to_add: [{{header: {{key: x-code, value: '%RESPONSE_CODE%'}}}}]}}]}}{more}}}"
        )
    };
    let hosts = all(&format!(
        "{{match: {{prefix: /both}}, {}}}, {{match: {{prefix: /}}, {}}}",
        weighted(", host_rewrite_literal: route.example"),
        weighted("")
    ));
    let asks: Vec<Ask> =
        ["/", "/both", "/status/503", "/both/status/404"].iter().map(|path| Ask::get(path, &[])).collect();
    same("", &hosts, "", "", &asks).await;
}

/// What overwrites comes before what adds, wherever each stands.
#[tokio::test(flavor = "multi_thread")]
async fn operations_on_one_header() {
    let add =
        |action: &str, value: &str| format!("{{header: {{key: x-one, value: '{value}'}}, append_action: {action}}}");
    let actions = ["APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS"];
    let mut routes = Vec::new();
    for (i, first) in actions.iter().enumerate() {
        for (j, second) in actions.iter().enumerate() {
            let adds = format!("[{}, {}]", add(first, "a"), add(second, "%REQ(x-one)%b"));
            routes.push(format!(
                "{{match: {{prefix: /{i}{j}}}, route: {{cluster: a}}, request_headers_to_add: {adds}, response_headers_to_add: {adds}}}"
            ));
        }
    }
    let mut asks = Vec::new();
    for (i, j) in (0..4).flat_map(|i| (0..4).map(move |j| (i, j))) {
        asks.push(Ask::get(&format!("/{i}{j}"), &[]));
        asks.push(Ask::get(&format!("/{i}{j}"), &[("x-one", "came")]));
    }
    same("", &all(&routes.join(", ")), "", "", &asks).await;
}

/// An answer of a filter takes what the route adds to answers, also where that is made of the request.
#[tokio::test(flavor = "multi_thread")]
async fn headers_of_answers_that_filters_give() {
    let hosts = all("{name: r, match: {prefix: /}, route: {cluster: a}, \
                     response_headers_to_add: [{header: {key: x-route, value: '%ROUTE_NAME%'}}, \
                     {header: {key: x-of, value: '%REQ(x-user)%'}}]}");
    let abort = r#"{name: envoy.filters.http.fault, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: 418, percentage: {numerator: 100}}, headers: [{name: x-abort, present_match: true}]}},"#;
    let asks = [Ask::get("/", &[("x-user", "u"), ("x-abort", "1")]), Ask::get("/", &[("x-user", "u")])];
    same("", &hosts, abort, "", &asks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_for_tls_alone() {
    let hosts =
        r#"[{name: v, domains: ['*'], require_tls: ALL, routes: [{match: {prefix: "/"}, route: {cluster: a}}]}]"#;
    let rules = r#"{name: envoy.filters.http.rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: DENY, policies: {p: {permissions: [{url_path: {path: {prefix: "/denied"}}}], principals: [{any: true}]}}}}},"#;
    let mut asks = Vec::new();
    for host in ["a.example", "A.Example:8080", "a.example:80"] {
        for path in ["/", "/x?y=1", "/denied"] {
            asks.push(Ask::get(path, &[("host", host)]));
            asks.push(Ask::get(path, &[("host", host), ("x-forwarded-proto", "https")]));
        }
    }
    same("", hosts, &format!("{MUTATION} {rules}"), "", &asks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_where_there_is_no_route() {
    let hosts = r#"[{name: v, domains: [a.example], response_headers_to_add: [{header: {key: x-host, value: v}}], routes: [{match: {prefix: "/here"}, route: {cluster: a}}, {match: {prefix: "/no"}, route: {cluster: none}}]}]"#;
    let asks: Vec<Ask> =
        [("a.example", "/here"), ("a.example", "/no"), ("a.example", "/there"), ("b.example", "/here")]
            .iter()
            .map(|(host, path)| Ask::get(path, &[("host", host), ("origin", "https://x.example")]))
            .collect();
    same("", hosts, MUTATION, "", &asks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_of_hashes_chooses_the_same_endpoint() {
    let mut backends = Vec::new();
    for name in ["one", "two", "three", "four", "five"] {
        backends.push(Backend::start(name).await);
    }
    let endpoints: Vec<String> = backends
        .iter()
        .enumerate()
        .map(|(i, b)| {
            let (ip, port) = (b.addr.ip(), b.addr.port());
            format!("{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}, load_balancing_weight: {}}}", i + 1)
        })
        .collect();
    let endpoints = endpoints.join(", ");
    for policy in ["RING_HASH", "MAGLEV"] {
        let hosts = all(
            r#"{match: {prefix: "/q"}, route: {cluster: h, hash_policy: [{query_parameter: {name: user}}]}},
               {match: {prefix: "/"}, route: {cluster: h, hash_policy: [{header: {header_name: x-user}}, {cookie: {name: c}}]}}"#,
        );
        let mut file = bootstrap::plain("", &hosts, "", &[]);
        file.push_str(&format!("  - {{name: h, type: STATIC, connect_timeout: 20s, lb_policy: {policy}, load_assignment: {{cluster_name: h, endpoints: [{{lb_endpoints: [{endpoints}]}}]}}}}\n"));
        let Some(twin) = Twin::start(&file).await else { return };
        let mut asks = Vec::new();
        for n in 0..300 {
            let user = format!("user-{n}");
            asks.push(Ask::get("/", &[("x-user", &user)]));
            asks.push(Ask::get(&format!("/q?user={user}"), &[]));
            asks.push(Ask::get("/", &[("cookie", &format!("a=b; c={user}")), ("x-user", "same")]));
        }
        let found = twin.compare(&asks).await;
        assert!(found.is_empty(), "{policy}: {} of {}: {}", found.len(), asks.len(), found[0]);
    }
}
