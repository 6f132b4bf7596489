//! What two programs could read in two ways is refused, and never reaches an endpoint.

#![allow(clippy::unwrap_used)]

mod common;
use common::*;

#[tokio::test(flavor = "multi_thread")]
async fn class_smuggling_what_two_could_read_in_two_ways() {
    let backend = Backend::echo("a").await;
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#);
    let hcm = "normalize_path: true, path_with_escaped_slashes_action: REJECT_REQUEST,";
    let proxy = Proxy::start(&http_bootstrap(hcm, &routes, &[("a", backend.addr, "")])).await;
    let addr = proxy.addr();
    let mut passed = backend.count();
    for (what, bytes) in [
        ("no host", "GET / HTTP/1.1\r\n\r\n"),
        ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        ("bad host", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
        ("user in host", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
        ("space in path", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("NUL in header", "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
        ("space before colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
        ("folded header", "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n"),
        ("bad length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello"),
        ("two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
        ("unknown coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        (
            "coding twice",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("chunked is not last", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        ("coding in 1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("escaped slash", "GET /a%2fb HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("escaped NUL", "GET /a%00b HTTP/1.1\r\nHost: a\r\n\r\n"),
        (
            "body before upgrade",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\nhello",
        ),
        ("asterisk", "GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("other scheme", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("no version", "GET /\r\n\r\n"),
    ] {
        let answer = raw(addr, bytes.as_bytes()).await;
        let status = answer.get(9..12).unwrap_or("");
        assert!(status.starts_with('4') || status.starts_with("50") || answer.is_empty(), "{what}: {answer}");
        assert_eq!(backend.count(), passed, "{what} reached the endpoint: {answer}");
    }
    // The proxy is none the worse for it.
    assert_eq!(get(addr, "/").await.status, 200);
    passed += 1;
    // A head that pretends to be two: the endpoint sees one request.
    let one = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 35\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n\r\n";
    let answer = raw(addr, one.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(backend.count(), passed + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_path_for_all() {
    let backend = Backend::echo("a").await;
    let routes = all(
        r#"[{match: {prefix: "/admin"}, direct_response: {status: 403}}, {match: {prefix: "/"}, route: {cluster: a}}]"#,
    );
    let hcm = "normalize_path: true, merge_slashes: true,";
    let proxy = Proxy::start(&http_bootstrap(hcm, &routes, &[("a", backend.addr, "")])).await;
    for path in ["/admin", "/x/../admin", "/%61dmin", "//admin", "/./admin", "/x/..//admin/", "\\admin"] {
        let answer = raw(proxy.addr(), format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await;
        let status = answer.get(9..12).unwrap_or("");
        assert!(status == "403" || status == "400", "{path}: {answer}");
    }
    assert_eq!(backend.count(), 0);
    assert!(get(proxy.addr(), "/a/./b//c?x=//y").await.body.contains("GET /a/b/c?x=//y\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds_on_headers() {
    let backend = Backend::echo("a").await;
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#);
    let hcm = "max_request_headers_kb: 8, common_http_protocol_options: {max_headers_count: 20},";
    let proxy = Proxy::start(&http_bootstrap(hcm, &routes, &[("a", backend.addr, "")])).await;
    let many: String = (0..30).map(|i| format!("x-{i}: 1\r\n")).collect();
    let answer = raw(proxy.addr(), format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let long = "x".repeat(20_000);
    let answer = raw(proxy.addr(), format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(backend.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_edge_believes_nobody() {
    let backend = Backend::echo("a").await;
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#);
    let hcm = "use_remote_address: true,";
    let proxy = Proxy::start(&http_bootstrap(hcm, &routes, &[("a", backend.addr, "")])).await;
    let got = get_with(
        proxy.addr(),
        "/",
        &[
            ("x-envoy-upstream-rq-timeout-ms", "1"),
            ("x-envoy-retry-on", "5xx"),
            ("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/default/sa/admin"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
        ],
    )
    .await;
    assert_eq!(got.status, 200);
    for gone in ["x-envoy-upstream-rq-timeout-ms", "x-envoy-retry-on", "x-forwarded-client-cert"] {
        assert_eq!(got.seen(gone), None, "{gone}");
    }
    assert_eq!(got.seen("x-forwarded-for"), Some("1.2.3.4,127.0.0.1"));
    assert_eq!(got.seen("x-forwarded-proto"), Some("http"));
    assert_eq!(got.seen("x-envoy-external-address"), Some("127.0.0.1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ambiguous_request_after_a_good_one() {
    let backend = Backend::echo("a").await;
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#);
    let proxy = Proxy::start(&http_bootstrap("", &routes, &[("a", backend.addr, "")])).await;
    let bytes = b"POST /good HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloPOST /bad HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /third HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = raw_answers(proxy.addr(), bytes, 2).await;
    assert!(answer.contains("POST /good") && answer.contains("body=5"), "{answer}");
    assert!(answer.contains("HTTP/1.1 400"), "{answer}");
    assert_eq!(backend.count(), 1, "{answer}");
}
