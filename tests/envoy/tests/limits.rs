//! Rate limits, circuit breakers, who counts as internal, and mirrors: the same file and the same requests for Envoy and for
//! us.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_envoy_tests::{Ask, Backend, Twin, bootstrap, twin};
use weft_proto::envoy::config::core::v3::HeaderValue as Header;
use weft_proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse, rate_limit_response::Code};

const LOCAL: &str = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
const GLOBAL: &str = "type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit";
const HTTP2: &str = r#"typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}},"#;
const ALL: &str = "default_value: {numerator: 100}";

async fn same(manager: &str, hosts: &str, filters: &str, clusters: &[(&str, SocketAddr, &str)], asks: &[Ask]) {
    let file = bootstrap::plain(manager, hosts, filters, clusters);
    if let Some(twin) = Twin::start(&file).await {
        let found = twin.compare_over(Version::HTTP_11, asks).await;
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn local_rate_limits() {
    let backend = Backend::start("a").await;
    let bucket = |n: u32| format!("token_bucket: {{max_tokens: {n}, tokens_per_fill: {n}, fill_interval: 600s}}");
    let on = format!("filter_enabled: {{{ALL}}}, filter_enforced: {{{ALL}}}");
    let header =
        |name: &str| format!("{{append_action: OVERWRITE_IF_EXISTS_OR_ADD, header: {{key: {name}, value: 'true'}}}}");
    let filter = format!(
        r#"{{name: envoy.filters.http.local_ratelimit, typed_config: {{"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: {LOCAL}, value: {{stat_prefix: l}}}}}},"#
    );
    let own = |more: &str| {
        format!(
            r#"typed_per_filter_config: {{envoy.filters.http.local_ratelimit: {{"@type": {LOCAL}, stat_prefix: r, {more}}}}}"#
        )
    };
    let user = r#"rate_limits: [{actions: [{request_headers: {header_name: x-user, descriptor_key: user}}]}, {actions: [{header_value_match: {descriptor_value: slow, headers: [{name: x-slow, present_match: true}]}}]}]"#;
    let descriptors = format!(
        "descriptors: [{{entries: [{{key: user, value: one}}], {}}}, {{entries: [{{key: header_match, value: slow}}], {}}}]",
        bucket(1),
        bucket(2)
    );
    let hosts = format!(
        r#"[{{name: v, domains: ['*'], routes: [
        {{match: {{prefix: "/plain"}}, route: {{cluster: a}}, {}}},
        {{match: {{prefix: "/status"}}, route: {{cluster: a}}, {}}},
        {{match: {{prefix: "/shadow"}}, route: {{cluster: a}}, {}}},
        {{match: {{prefix: "/off"}}, route: {{cluster: a}}, {}}},
        {{match: {{prefix: "/by"}}, route: {{cluster: a, {user}}}, {}}},
        {{match: {{prefix: "/alone"}}, route: {{cluster: a, {user}}}, {}}},
        {{match: {{prefix: "/"}}, route: {{cluster: a}}}}]}}]"#,
        own(&format!("{}, {on}, response_headers_to_add: [{}]", bucket(2), header("x-local-rate-limit"))),
        own(&format!("{}, {on}, status: {{code: 503}}, rate_limited_as_resource_exhausted: true", bucket(1))),
        own(&format!(
            "{}, filter_enabled: {{{ALL}}}, request_headers_to_add_when_not_enforced: [{}]",
            bucket(1),
            header("x-over")
        )),
        own(&bucket(1)),
        own(&format!("{}, {on}, {descriptors}", bucket(5))),
        own(&format!("{}, {on}, {descriptors}, always_consume_default_token_bucket: false", bucket(2))),
    );
    let mut asks = Vec::new();
    for _ in 0..3 {
        for path in ["/plain", "/status", "/shadow", "/off", "/any"] {
            asks.push(Ask::get(path, &[]));
        }
        asks.push(Ask::get("/status", &[("content-type", "application/grpc")]).with("POST", ""));
        for path in ["/by", "/alone"] {
            asks.push(Ask::get(path, &[("x-user", "one")]));
            asks.push(Ask::get(path, &[("x-user", "two"), ("x-slow", "1")]));
            asks.push(Ask::get(path, &[]));
        }
    }
    same("", &hosts, &filter, &[("a", backend.addr, "")], &asks).await;
}

/// A rate limit service: what each descriptor says decides.
async fn service() -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serve = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service_fn(judge));
            tokio::spawn(serve);
        }
    });
    (addr, task)
}

type Answered = Response<StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>>;

async fn judge(request: Request<Incoming>) -> Result<Answered, Infallible> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let asked = RateLimitRequest::decode(&body[5..]).unwrap();
    let said: Vec<String> = asked
        .descriptors
        .iter()
        .map(|d| d.entries.iter().map(|e| format!("{}={}", e.key, e.value)).collect::<Vec<_>>().join(","))
        .collect();
    let said = format!("{} {} {}", asked.domain, asked.hits_addend, said.join(";"));
    let header = |key: &str, value: &str| Header { key: key.into(), value: value.into(), ..Default::default() };
    let over = said.contains("=stop");
    let answer = RateLimitResponse {
        overall_code: if over { Code::OverLimit } else { Code::Ok } as i32,
        response_headers_to_add: vec![header("x-asked", &said)],
        request_headers_to_add: vec![header("x-counted", "yes")],
        raw_body: if said.contains("loud") { b"too many".to_vec() } else { Vec::new() },
        ..Default::default()
    };
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(answer.encoded_len()).unwrap().to_be_bytes());
    framed.extend(answer.encode_to_vec());
    let mut trailers = HeaderMap::new();
    let status = if said.contains("=broken") { "13" } else { "0" };
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    let frames = vec![Ok(Frame::data(Bytes::from(framed))), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limits_of_a_service() {
    let backend = Backend::start("a").await;
    let (service, task) = service().await;
    let dead = "127.0.0.1:1".parse().unwrap();
    let clusters = [("a", backend.addr, ""), ("rls", service, HTTP2), ("dead", dead, HTTP2)];
    let by_user = r#"{actions: [{request_headers: {header_name: x-user, descriptor_key: user}}]}"#;
    let whole = r#"{actions: [{destination_cluster: {}}, {generic_key: {descriptor_value: g}}, {request_headers: {header_name: x-more, descriptor_key: more, skip_if_absent: true}}, {query_parameter_value_match: {descriptor_value: q, query_parameters: [{name: q, string_match: {exact: loud}}], expect_match: false}}]}"#;
    let staged = r#"{stage: 1, actions: [{generic_key: {descriptor_value: stop}}]}"#;
    let per_route = |more: &str| {
        format!(
            r#"typed_per_filter_config: {{envoy.filters.http.ratelimit: {{"@type": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute, {more}}}}}"#
        )
    };
    let hosts = format!(
        r#"[{{name: v, domains: ['*'], rate_limits: [{{actions: [{{generic_key: {{descriptor_key: host, descriptor_value: all}}}}]}}], routes: [
        {{match: {{prefix: "/own"}}, route: {{cluster: a, rate_limits: [{by_user}, {whole}, {staged}]}}}},
        {{match: {{prefix: "/both"}}, route: {{cluster: a, rate_limits: [{by_user}], include_vh_rate_limits: true}}}},
        {{match: {{prefix: "/ignore"}}, route: {{cluster: a}}, {}}},
        {{match: {{prefix: "/include"}}, route: {{cluster: a, rate_limits: [{by_user}]}}, {}}},
        {{match: {{prefix: "/"}}, route: {{cluster: a}}}}]}}]"#,
        per_route("vh_rate_limits: IGNORE"),
        per_route("vh_rate_limits: INCLUDE, domain: other"),
    );
    let filter = |cluster: &str, more: &str| {
        format!(
            r#"{{name: envoy.filters.http.ratelimit, typed_config: {{"@type": {GLOBAL}, domain: d, timeout: 20s, {more} rate_limit_service: {{transport_api_version: V3, grpc_service: {{envoy_grpc: {{cluster_name: {cluster}}}}}}}}}}},"#
        )
    };
    let mut asks = Vec::new();
    for path in ["/own", "/own?q=loud", "/both", "/ignore", "/include", "/any"] {
        asks.push(Ask::get(path, &[]));
        asks.push(Ask::get(path, &[("x-user", "me"), ("x-more", "m")]));
        asks.push(Ask::get(path, &[("x-user", "stop")]));
        asks.push(Ask::get(path, &[("x-user", "stop"), ("x-more", "loud")]));
        asks.push(Ask::get(path, &[("x-user", "stop"), ("content-type", "application/grpc")]).with("POST", ""));
        asks.push(Ask::get(path, &[("x-user", "broken")]));
    }
    for (cluster, more) in [
        ("rls", ""),
        ("rls", "failure_mode_deny: true, disable_x_envoy_ratelimited_header: true, rate_limited_status: {code: 503},"),
        ("dead", "failure_mode_deny: true, status_on_error: {code: 502},"),
        ("dead", "rate_limited_as_resource_exhausted: true,"),
        ("rls", "request_type: internal, rate_limited_as_resource_exhausted: true,"),
    ] {
        same("", &hosts, &filter(cluster, more), &clusters, &asks).await;
    }
    task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_internal() {
    let backend = Backend::start("a").await;
    let hosts = r#"[{name: v, domains: ['*'], routes: [{match: {prefix: "/"}, route: {cluster: a, retry_policy: {retry_on: connect-failure}}}]}]"#;
    let mut asks = Vec::new();
    for forwarded in
        [None, Some("127.0.0.1"), Some("10.1.1.1"), Some("10.1.1.1, 10.1.1.2"), Some("8.8.8.8"), Some("junk")]
    {
        for mesh in [false, true] {
            let mut headers = vec![];
            headers.extend(forwarded.map(|list| ("x-forwarded-for", list)));
            if mesh {
                headers.push(("x-envoy-internal", "true"));
                headers.push(("x-envoy-upstream-rq-timeout-ms", "12500"));
                headers.push(("x-envoy-max-retries", "1"));
                headers.push(("x-envoy-retriable-status-codes", "418"));
                headers.push(("x-envoy-original-path", "/o"));
                headers.push(("x-envoy-force-trace", "1"));
            }
            asks.push(Ask::get("/", &headers));
        }
    }
    let inside = "internal_address_config: {cidr_ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}, {address_prefix: 10.0.0.0, prefix_len: 8}]},";
    for manager in [
        String::new(),
        inside.to_string(),
        format!("{inside} use_remote_address: true,"),
        format!(
            "{inside} use_remote_address: true, xff_num_trusted_hops: 1, skip_xff_append: true, preserve_external_request_id: true,"
        ),
        format!("{inside} xff_num_trusted_hops: 1,"),
        "use_remote_address: true,".to_string(),
    ] {
        same(&manager, hosts, "", &[("a", backend.addr, "")], &asks).await;
    }
}

/// A server that keeps the heads of the requests it gets.
async fn recorder() -> (SocketAddr, Arc<Mutex<Vec<Vec<String>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let seen: Arc<Mutex<Vec<Vec<String>>>> = Arc::default();
    let kept = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let kept = kept.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let kept = kept.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let length = body.collect().await.map_or(0, |b| b.to_bytes().len());
                    let hidden = ["x-twin", "x-request-id", "content-length", "transfer-encoding"];
                    let shown = parts.headers.iter().filter(|(name, _)| !hidden.contains(&name.as_str()));
                    let mut lines: Vec<String> = shown
                        .map(|(name, value)| match name.as_str() {
                            // The machine's own address is at the end.
                            "x-forwarded-for" => {
                                let list = value.to_str().unwrap();
                                format!("{name}: {}OWN", list.rsplit_once(',').map_or("", |(before, _)| before))
                            }
                            _ => format!("{name}: {}", value.to_str().unwrap()),
                        })
                        .collect();
                    lines.sort();
                    lines.push(format!("{} {} {length}", parts.method, parts.uri));
                    kept.lock().unwrap().push(lines);
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (addr, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_get_the_same_copies() {
    let backend = Backend::start("a").await;
    let (shadow, seen) = recorder().await;
    let policies = [
        "{cluster: m}",
        "{cluster: m, disable_shadow_host_suffix_append: true}",
        "{cluster: m, host_rewrite_literal: 'lit:81'}",
        "{cluster_header: x-mirror}",
        "{cluster: m, request_headers_mutations: [{remove: x-gone}, {append: {header: {key: x-new, value: '%REQ(x-b)%'}}}]}",
    ];
    let routes: Vec<String> = policies
        .iter()
        .enumerate()
        .map(|(i, policy)| {
            format!("{{match: {{prefix: '/{i}'}}, route: {{cluster: a, request_mirror_policies: [{policy}]}}}}")
        })
        .collect();
    let hosts =
        format!("[{{name: v, domains: ['*'], include_request_attempt_count: true, routes: [{}]}}]", routes.join(", "));
    let file = bootstrap::plain("", &hosts, "", &[("a", backend.addr, ""), ("m", shadow, "")]);
    let Some(twin) = Twin::start(&file).await else { return };
    let headers = [("x-mirror", "m"), ("x-gone", "1"), ("x-b", "b"), ("x-forwarded-for", "1.2.3.4")];
    for i in 0..policies.len() {
        for ask in [Ask::get(&format!("/{i}"), &headers), Ask::get(&format!("/{i}/p"), &headers).with("POST", "body")] {
            seen.lock().unwrap().clear();
            let found = twin.compare_over(Version::HTTP_11, std::slice::from_ref(&ask)).await;
            assert!(found.is_empty(), "{}", found.join("\n"));
            let end = Instant::now() + Duration::from_secs(30);
            while seen.lock().unwrap().len() < 2 && Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let copies = seen.lock().unwrap().clone();
            assert_eq!(copies.len(), 2, "{ask:?}: {copies:#?}");
            assert_eq!(copies[0], copies[1], "{ask:?}");
        }
    }
}

async fn envoy_stats(admin: u16, filter: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", admin)).await.unwrap();
    let ask = format!("GET /stats?filter={filter} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn circuit_breakers_tell_the_same() {
    let backend = Backend::start("a").await;
    let breakers = "circuit_breakers: {thresholds: [{track_remaining: true, max_connections: 7, max_pending_requests: 1, max_requests: 4294967295, max_retries: 0}, {priority: HIGH, max_connections: 2, max_requests: 0}]},";
    let hosts = r#"[{name: v, domains: ['*'], routes: [{match: {prefix: "/high"}, route: {cluster: a, priority: HIGH}}, {match: {prefix: "/"}, route: {cluster: a}}]}]"#;
    let admin = twin::free_port();
    let file = bootstrap::plain("", hosts, "", &[("a", backend.addr, breakers)]);
    let file = format!("admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}\n{file}");
    let Some(twin) = Twin::start(&file).await else { return };
    let found = twin.compare_over(Version::HTTP_11, &[Ask::get("/", &[]), Ask::get("/high", &[])]).await;
    assert!(found.is_empty(), "{}", found.join("\n"));
    // How many pools there are is Envoy's own matter.
    let is_told = |line: &&str| line.starts_with("cluster.a.circuit_breakers.") && !line.contains("remaining_cx_pools");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let theirs = envoy_stats(admin, "circuit_breakers").await;
        let mut theirs: Vec<&str> = theirs.lines().map(str::trim).filter(is_told).collect();
        let ours = weft_telemetry::render::text(twin.handle.registry(), |_| true);
        let mut ours: Vec<&str> = ours.lines().filter(is_told).collect();
        theirs.sort_unstable();
        ours.sort_unstable();
        if theirs == ours && !ours.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "envoy {theirs:#?}\nweft {ours:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_choose_subsets() {
    let mut backends = Vec::new();
    for name in ["prod-1", "prod-2", "dev-1"] {
        backends.push(Backend::start(name).await);
    }
    let endpoint = |at: usize, stage: &str, version: &str| {
        format!(
            "{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}, metadata: {{filter_metadata: {{envoy.lb: {{stage: {stage}, version: '{version}'}}}}}}}}",
            backends[at].addr.port()
        )
    };
    let endpoints = [endpoint(0, "prod", "1"), endpoint(1, "prod", "2"), endpoint(2, "dev", "1")].join(", ");
    let selectors = "subset_selectors: [{keys: [stage, version], fallback_policy: KEYS_SUBSET, fallback_keys_subset: [version]}, {keys: [stage]}, {keys: [version], fallback_policy: NO_FALLBACK}]";
    let labels = |list: &str| format!("metadata_match: {{filter_metadata: {{envoy.lb: {{{list}}}}}}}");
    // Each choice is of one endpoint, or of none: which of several is taken is a matter of chance.
    let choices = [
        "stage: prod, version: '2'",
        "version: '1', stage: dev",
        "stage: none, version: '2'",
        "stage: dev",
        "stage: none",
        "version: '9'",
        "other: x",
    ];
    let routes: Vec<String> = choices
        .iter()
        .enumerate()
        .map(|(i, list)| format!("{{match: {{prefix: '/{i}'}}, route: {{cluster: s, {}}}}}", labels(list)))
        .collect();
    let hosts = format!("[{{name: v, domains: ['*'], routes: [{}]}}]", routes.join(", "));
    let asks: Vec<Ask> = (0..choices.len()).map(|i| Ask::get(&format!("/{i}"), &[])).collect();
    for fallback in ["fallback_policy: NO_FALLBACK", "fallback_policy: DEFAULT_SUBSET, default_subset: {stage: dev}"] {
        let file = bootstrap::plain("", &hosts, "", &[]);
        let file = format!(
            "{file}  - {{name: s, type: STATIC, connect_timeout: 20s, lb_subset_config: {{{fallback}, {selectors}}}, load_assignment: {{cluster_name: s, endpoints: [{{lb_endpoints: [{endpoints}]}}]}}}}\n"
        );
        if let Some(twin) = Twin::start(&file).await {
            let found = twin.compare_over(Version::HTTP_11, &asks).await;
            assert!(found.is_empty(), "{fallback}: {}", found.join("\n"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_by_rate() {
    let backend = Backend::start("a").await;
    let hosts = r#"[{name: v, domains: ['*'], routes: [{match: {prefix: "/"}, route: {cluster: a}}]}]"#;
    let file = bootstrap::plain("", hosts, "", &[("a", backend.addr, "")]);
    let limit = "    - filters:\n      - {name: l, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit, stat_prefix: l, token_bucket: {max_tokens: 2, fill_interval: 600s}}}\n";
    let Some(twin) = Twin::start(&file.replacen("    - filters:\n", limit, 1)).await else { return };
    // The first connection asked whether somebody is there.
    for status in [200, 0, 0] {
        let (mut envoy, mut weft) = twin.sides(Version::HTTP_11);
        let (theirs, ours) = (envoy.ask(&Ask::get("/", &[])).await, weft.ask(&Ask::get("/", &[])).await);
        assert_eq!((theirs.status, ours.status), (status, status), "{theirs:?} {ours:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_endpoints_are_left_out_by_their_rate() {
    let mut backends = Vec::new();
    for name in ["one", "two", "three"] {
        backends.push(Backend::start(name).await);
    }
    let endpoints: Vec<String> = backends
        .iter()
        .map(|b| {
            format!(
                "{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}",
                b.addr.port()
            )
        })
        .collect();
    // Half of the answers of each endpoint are errors: nobody is worse than the others, but all fail too often.
    let hosts = r#"[{name: v, domains: ['*'], routes: [{match: {prefix: "/"}, route: {cluster: s}}]}]"#;
    let detection = "outlier_detection: {interval: 2s, consecutive_5xx: 1000, consecutive_gateway_failure: 1000, enforcing_success_rate: 0, failure_percentage_threshold: 40, failure_percentage_minimum_hosts: 3, failure_percentage_request_volume: 4, enforcing_failure_percentage: 100, max_ejection_percent: 50, base_ejection_time: 100s}, common_lb_config: {healthy_panic_threshold: {value: 0}}";
    let admin = twin::free_port();
    let file = bootstrap::plain("", hosts, "", &[]);
    let file = format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}\n{file}  - {{name: s, type: STATIC, connect_timeout: 20s, {detection}, load_assignment: {{cluster_name: s, endpoints: [{{lb_endpoints: [{}]}}]}}}}\n",
        endpoints.join(", ")
    );
    let Some(twin) = Twin::start(&file).await else { return };
    let names = ["ejections_active", "ejections_enforced_failure_percentage", "ejections_enforced_success_rate"];
    let wanted: Vec<String> =
        names.iter().zip([1, 1, 0]).map(|(name, n)| format!("cluster.s.outlier_detection.{name}: {n}")).collect();
    let (mut envoy, mut weft) = twin.sides(Version::HTTP_11);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        for _ in 0..30 {
            for path in ["/status/200", "/status/500"] {
                envoy.ask(&Ask::get(path, &[])).await;
                weft.ask(&Ask::get(path, &[])).await;
            }
        }
        let theirs = envoy_stats(admin, "outlier").await;
        let ours = weft_telemetry::render::text(twin.handle.registry(), |name| name.contains("outlier"));
        let has = |text: &str| wanted.iter().all(|line| text.lines().any(|l| l.trim() == line));
        if has(&theirs) && has(&ours) {
            return;
        }
        assert!(Instant::now() < deadline, "{wanted:?}\nenvoy {theirs}\nweft {ours}");
    }
}
