//! Routes as clients meet them: forwarding, weights, rewrites, redirects, direct responses, and the answers of the proxy
//! itself.

#![allow(clippy::unwrap_used)]

mod common;
use bytes::Bytes;
use common::*;
use http::HeaderName;
use std::net::SocketAddr;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

const NOBODY: &str = "127.0.0.1:1";

fn nobody() -> SocketAddr {
    NOBODY.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn forwards_with_the_meshs_headers() {
    let backend = Backend::echo("a").await;
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#);
    let proxy = Proxy::start(&http_bootstrap("generate_request_id: true,", &routes, &[("a", backend.addr, "")])).await;
    let got = get_with(proxy.addr(), "/x?y=1", &[("connection", "x-hop"), ("x-hop", "1"), ("te", "trailers")]).await;
    assert_eq!((got.status, got.backend()), (200, "a"));
    assert!(got.body.contains("GET /x?y=1\n"), "{}", got.body);
    assert_eq!(got.seen("host"), Some("a.example"));
    assert_eq!(got.seen("x-forwarded-proto"), Some("http"));
    assert_eq!(got.seen("x-request-id").map(str::len), Some(36));
    assert_eq!(got.seen("te"), Some("trailers"));
    for gone in ["x-hop", "connection", "x-forwarded-for"] {
        assert_eq!(got.seen(gone), None, "{gone}: {}", got.body);
    }
    assert_eq!(got.header("server"), "envoy");
    assert!(got.header("x-envoy-upstream-service-time").parse::<u64>().is_ok());
    assert!(!got.header("date").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_headers_and_hosts() {
    let (a, b) = (Backend::echo("a").await, Backend::echo("b").await);
    let hosts = r#"[
      {name: special, domains: ["special.example", "special.example:*"], routes: [{match: {prefix: "/"}, route: {cluster: b}}]},
      {name: v, domains: ['*'], routes: [
        {match: {prefix: "/", headers: [{name: end-user, string_match: {exact: jason}}]}, route: {cluster: b}},
        {match: {path: "/exact"}, route: {cluster: b}},
        {match: {prefix: "/split"}, route: {weighted_clusters: {clusters: [{name: a, weight: 50}, {name: b, weight: 50}]}}},
        {match: {prefix: "/all"}, route: {weighted_clusters: {clusters: [{name: a, weight: 100}, {name: b, weight: 0}]}}},
        {match: {prefix: "/"}, route: {cluster: a}}]}]"#;
    let proxy = Proxy::start(&http_bootstrap("", hosts, &[("a", a.addr, ""), ("b", b.addr, "")])).await;
    let addr = proxy.addr();
    for (path, headers, want) in [
        ("/", &[][..], "a"),
        ("/", &[("end-user", "jason")], "b"),
        ("/exact", &[], "b"),
        ("/exact/not", &[], "a"),
        ("/", &[("host", "SPECIAL.example")], "b"),
        ("/", &[("host", "special.example:8080")], "b"),
    ] {
        assert_eq!(get_with(addr, path, headers).await.backend(), want, "{path} {headers:?}");
    }
    let mut hits = 0;
    for _ in 0..400 {
        hits += usize::from(get(addr, "/split").await.backend() == "a");
        assert_eq!(get(addr, "/all").await.backend(), "a");
    }
    assert!((140..=260).contains(&hits), "{hits} of 400 at 50/50");
}

#[tokio::test(flavor = "multi_thread")]
async fn rewrites_redirects_and_direct_responses() {
    let backend = Backend::echo("a").await;
    let routes = all(r#"[
        {match: {prefix: "/api/"}, route: {cluster: a, prefix_rewrite: "/v2/", host_rewrite_literal: "inner.example"},
         request_headers_to_add: [{header: {key: x-added, value: "%REQ(x-kept)%-%PROTOCOL%"}}, {header: {key: x-addr, value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}}],
         request_headers_to_remove: [x-in], response_headers_to_add: [{header: {key: x-out, value: "1"}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}], response_headers_to_remove: [x-backend]},
        {match: {prefix: "/old"}, redirect: {host_redirect: "new.example", path_redirect: "/here", response_code: FOUND}},
        {match: {prefix: "/tls"}, redirect: {https_redirect: true}},
        {match: {prefix: "/direct"}, direct_response: {status: 418, body: {inline_string: "short and stout"}}, response_headers_to_add: [{header: {key: x-direct, value: "yes"}}]},
        {match: {safe_regex: {regex: "/re/[0-9]+"}}, route: {cluster: a, regex_rewrite: {pattern: {regex: "^/re/([0-9]+)$"}, substitution: "/n/\\1"}}}]"#);
    let proxy = Proxy::start(&http_bootstrap("", &routes, &[("a", backend.addr, "")])).await;
    let addr = proxy.addr();
    let got = get_with(addr, "/api/x?q", &[("x-in", "1"), ("x-kept", "in")]).await;
    assert!(got.body.contains("GET /v2/x?q\n"), "{}", got.body);
    assert_eq!(got.seen("host"), Some("inner.example"));
    assert_eq!(got.seen("x-added"), Some("in-HTTP/1.1"));
    assert_eq!(got.seen("x-addr"), Some("127.0.0.1"));
    assert_eq!((got.seen("x-in"), got.header("x-out")), (None, "1"));
    assert_eq!(got.seen("x-envoy-original-path"), Some("/api/x?q"));
    let got = get(addr, "/old/x").await;
    assert_eq!((got.status, got.header("location")), (302, "http://new.example/here"));
    let got = get(addr, "/tls?x").await;
    assert_eq!((got.status, got.header("location")), (301, "https://a.example/tls?x"));
    let got = get(addr, "/direct").await;
    assert_eq!((got.status, got.body.as_str(), got.header("x-direct")), (418, "short and stout", "yes"));
    assert!(get(addr, "/re/42").await.body.contains("GET /n/42\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_the_proxy_itself() {
    let backend = Backend::echo("a").await;
    let hosts = r#"[{name: v, domains: ["a.example"], routes: [
        {match: {prefix: "/down"}, route: {cluster: down}},
        {match: {prefix: "/none"}, route: {cluster: empty}},
        {match: {prefix: "/missing"}, route: {cluster_header: x-cluster}},
        {match: {prefix: "/ok"}, route: {cluster: a}}]}]"#;
    let clusters = cluster("a", &[backend.addr], "") + &cluster("down", &[nobody()], "") + &cluster("empty", &[], "");
    let proxy = Proxy::start(&http_bootstrap_raw("", hosts, &clusters)).await;
    let addr = proxy.addr();
    for (path, host, status, body) in [
        ("/nowhere", "a.example", 404, ""),
        ("/ok", "other.example", 404, ""),
        ("/none", "a.example", 503, "no healthy upstream"),
        ("/missing", "a.example", 503, ""),
        (
            "/down",
            "a.example",
            503,
            "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure, \
             transport failure reason: delayed connect error: Connection refused",
        ),
    ] {
        let got = get_with(addr, path, &[("host", host), ("x-cluster", "not-there")]).await;
        assert_eq!((got.status, got.body.as_str()), (status, body), "{path}");
        assert_eq!(got.header("server"), "envoy");
    }
    // The same in gRPC's words: always 200, the status in the headers.
    for (path, status) in [("/nowhere", "12"), ("/none", "14"), ("/down", "14")] {
        let got = get_with(addr, path, &[("content-type", "application/grpc")]).await;
        assert_eq!((got.status, got.header("grpc-status"), got.body.as_str()), (200, status, ""), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cors_and_faults() {
    let backend = Backend::echo("a").await;
    let routes = all(r#"[
        {match: {prefix: "/cors"}, route: {cluster: a}, typed_per_filter_config: {envoy.filters.http.cors: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy, allow_origin_string_match: [{exact: "https://x.example"}], allow_methods: "GET", max_age: "600"}}},
        {match: {prefix: "/abort"}, route: {cluster: a}, typed_per_filter_config: {envoy.filters.http.fault: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: 555, percentage: {numerator: 100}}}}},
        {match: {prefix: "/delay"}, route: {cluster: a}, typed_per_filter_config: {envoy.filters.http.fault: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, delay: {fixed_delay: 0.3s, percentage: {numerator: 100}}}}}]"#);
    let proxy = Proxy::start(&http_bootstrap("", &routes, &[("a", backend.addr, "")])).await;
    let addr = proxy.addr();
    let origin = HeaderName::from_static("access-control-allow-origin");
    let got = get_with(addr, "/cors", &[("origin", "https://x.example")]).await;
    assert_eq!((got.status, got.headers[&origin].to_str().unwrap()), (200, "https://x.example"));
    assert!(!get_with(addr, "/cors", &[("origin", "https://y.example")]).await.headers.contains_key(&origin));
    let preflight = [("origin", "https://x.example"), ("access-control-request-method", "GET")];
    let got = send(addr, request("OPTIONS", "/cors", &preflight, "")).await;
    assert_eq!((got.status, got.header("access-control-max-age"), got.body.as_str()), (200, "600", ""));
    let got = get(addr, "/abort").await;
    assert_eq!((got.status, got.body.as_str()), (555, "fault filter abort"));
    let before = std::time::Instant::now();
    assert_eq!(get(addr, "/delay").await.status, 200);
    assert!(before.elapsed() >= std::time::Duration::from_millis(300));
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_get_a_copy() {
    let (a, b) = (Backend::echo("a").await, Backend::echo("b").await);
    let routes = all(
        r#"[{match: {prefix: "/"}, route: {cluster: a, request_mirror_policies: [{cluster: b, runtime_fraction: {default_value: {numerator: 100}}}]}}]"#,
    );
    let proxy = Proxy::start(&http_bootstrap("", &routes, &[("a", a.addr, ""), ("b", b.addr, "")])).await;
    let got = send(proxy.addr(), request("POST", "/x", &[], "hello")).await;
    assert_eq!((got.backend(), got.body.contains("body=5")), ("a", true));
    eventually("the mirror was called", || b.count() == 1).await;
}

/// A body of which an endpoint takes a part is no whole one for a mirror.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_gets_no_torn_request_for_a_whole_one() {
    let (endpoint, mirror) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let clusters = [("a", endpoint.local_addr().unwrap(), ""), ("b", mirror.local_addr().unwrap(), "")];
    let routes = all(
        r#"[{match: {prefix: "/"}, route: {cluster: a, timeout: 60s, request_mirror_policies: [{cluster: b, runtime_fraction: {default_value: {numerator: 100}}}]}}]"#,
    );
    let proxy = Proxy::start(&http_bootstrap("", &routes, &clusters)).await;
    let (begun, seen) = oneshot::channel();
    let copy = tokio::spawn(async move {
        let (mut stream, _) = mirror.accept().await.unwrap();
        let (mut all, mut begun) = (Vec::new(), Some(begun));
        // To the end of the request, or of the connection.
        while !all.ends_with(b"0\r\n\r\n") && stream.read_buf(&mut all).await.is_ok_and(|n| n > 0) {
            if all.ends_with(b"hello\r\n") {
                let _ = begun.take().map(|begun| begun.send(()));
            }
        }
        String::from_utf8(all).unwrap()
    });
    let (frames, answered) = upload(proxy.addr(), &[]).await;
    frames.send(Bytes::from_static(b"hello")).await.unwrap();
    let (stream, _) = endpoint.accept().await.unwrap();
    tokio::time::timeout(PATIENCE, seen).await.expect("the mirror has a part").unwrap();
    drop(stream);
    assert_eq!(answered.await.unwrap().unwrap().status(), 503);
    let copy = tokio::time::timeout(PATIENCE, copy).await.expect("the copy ends").unwrap();
    assert!(copy.ends_with("5\r\nhello\r\n"), "{copy}");
}

/// Filters have their say about every answer, also where no route has one.
#[tokio::test(flavor = "multi_thread")]
async fn filters_see_the_answers_of_the_proxy_itself() {
    let backend = Backend::echo("a").await;
    let hosts = r#"[
        {name: s, domains: [s.example], require_tls: ALL, routes: [{match: {prefix: "/"}, route: {cluster: a}}]},
        {name: v, domains: [a.example], routes: [{match: {prefix: "/a"}, route: {cluster: a}}, {match: {prefix: "/direct"}, direct_response: {status: 204}}, {match: {prefix: "/none"}, route: {cluster: none}}]}]"#;
    let filter = r#"http_filters: [{name: m, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation, mutations: {response_mutations: [{append: {header: {key: x-of-all, value: "1"}}}]}}}, "#;
    let bootstrap = http_bootstrap("", hosts, &[("a", backend.addr, "")]).replace("http_filters: [", filter);
    let proxy = Proxy::start(&bootstrap).await;
    for (host, path, status) in [
        ("a.example", "/a", 200),
        ("a.example", "/direct", 204),
        ("a.example", "/none", 503),
        ("a.example", "/nowhere", 404),
        ("other.example", "/", 404),
        ("s.example", "/", 301),
    ] {
        let got = get_with(proxy.addr(), path, &[("host", host)]).await;
        assert_eq!((got.status, got.header("x-of-all")), (status, "1"), "{host}{path}");
    }
}
