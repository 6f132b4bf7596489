//! Classes of mistakes that hit other proxies, tried from a socket: what an attacker sends must be read in one way by routing,
//! authorization and the endpoint, or be refused.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
use common::*;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A listener `l` that denies by these rules and sends the rest to `a`.
fn guarded(hcm: &str, action: &str, policies: &Value, backend: SocketAddr) -> String {
    let rbac = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "rules": {"action": action, "policies": policies},
    });
    format!(
        r#"static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: t, {hcm} route_config: {{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: "/"}}, route: {{cluster: a}}}}]}}]}}, http_filters: [{{name: envoy.filters.http.rbac, typed_config: {rbac}}}, {{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}
  clusters:
{}"#,
        cluster("a", &[backend], "")
    )
}

fn policy(permission: &Value) -> Value {
    json!({"p": {"permissions": [permission], "principals": [{"any": true}]}})
}

fn path_is(path: &str) -> Value {
    json!({"url_path": {"path": {"exact": path}}})
}

fn header_is(name: &str, value: &str) -> Value {
    json!({"header": {"name": name, "string_match": {"exact": value, "ignore_case": name == ":authority"}}})
}

/// Status of the answer to these bytes; empty when there is none.
async fn status(addr: SocketAddr, bytes: &str) -> String {
    raw(addr, bytes.as_bytes()).await.get(9..12).unwrap_or("").to_string()
}

fn head(target: &str, lines: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

const BASE: &str = "normalize_path: true,";

#[tokio::test(flavor = "multi_thread")]
async fn class_path_not_normalised() {
    let a = Backend::echo("a").await;
    let proxy = Proxy::start(&guarded(BASE, "DENY", &policy(&path_is("/admin")), a.addr)).await;
    for target in [
        "/admin",
        "/x/../admin",
        "/./admin",
        "/%61dmin",
        "/a/b/../../admin",
        "/x/%2e%2e/admin",
        "/%2E/admin",
        "\\admin",
        "/x\\..\\admin",
        "/admin?q",
        "/admin?",
        "http://a/admin",
        "http://a/x/../admin",
    ] {
        let got = status(proxy.addr(), &head(target, "")).await;
        assert!(matches!(got.as_str(), "403" | "400"), "{target}: {got}");
    }
    assert_eq!(a.count(), 0, "the endpoint saw none of them");
    // What is sent on is what was judged.
    let answer = raw(proxy.addr(), head("/x/../y/./z?../admin", "").as_bytes()).await;
    assert!(answer.contains("GET /y/z?../admin\n"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn class_slashes_multiple_and_escaped() {
    let a = Backend::echo("a").await;
    let rules = policy(&path_is("/a/b"));
    // NONE, BASE, MERGE_SLASHES, DECODE_AND_MERGE_SLASHES: what each makes the same as /a/b, and what it leaves apart.
    let decode = "normalize_path: true, merge_slashes: true, path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD,";
    for (hcm, same, apart) in [
        ("", &["/a/b"][..], &["//a/b", "/a//b", "/a/./b", "/a%2fb"][..]),
        (BASE, &["/a/b", "/a/./b", "/x/../a/b", "/a\\b"], &["/a//b", "//a/b", "/a%2Fb", "/a%5cb"]),
        ("normalize_path: true, merge_slashes: true,", &["/a//b", "//a/b", "///a///b", "/a/.//b"], &["/a%2fb"]),
        (decode, &["/a//b", "/a%2fb", "/a%2Fb", "/a%5cb", "/a%5C%2fb", "/%2fa%2f/b"], &["/a%252fb", "/a-b"]),
    ] {
        let proxy = Proxy::start(&guarded(hcm, "DENY", &rules, a.addr)).await;
        for target in same {
            assert_eq!(status(proxy.addr(), &head(target, "")).await, "403", "{hcm} {target}");
        }
        for target in apart {
            let answer = raw(proxy.addr(), head(target, "").as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{hcm} {target}: {answer}");
            let sent = answer.lines().find_map(|l| l.strip_prefix("GET ")).unwrap_or_default();
            assert_ne!(sent, "/a/b", "{hcm} {target} was judged as another path than the endpoint got");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn class_fragment_in_path() {
    let a = Backend::echo("a").await;
    let proxy = Proxy::start(&guarded(BASE, "DENY", &policy(&path_is("/admin")), a.addr)).await;
    for target in ["/admin#", "/admin#x", "/#/admin", "/x#/../admin", "/admin?#", "http://a/admin#x", "#"] {
        let got = status(proxy.addr(), &head(target, "")).await;
        assert!(matches!(got.as_str(), "400" | "403"), "{target}: {got}");
    }
    assert_eq!(a.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn class_query_in_exact_path() {
    let a = Backend::echo("a").await;
    let key = weft_tls::JwsSigner::generate().unwrap();
    let (x, y) = key.point();
    let encode = |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, bytes);
    let keys = json!({"keys": [{"kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y)}]}).to_string();
    let jwt = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": {"p": {"issuer": "me", "local_jwks": {"inline_string": keys}}},
        "rules": [{"match": {"path": "/private"}, "requires": {"provider_name": "p"}}],
    });
    let yaml = guarded(BASE, "DENY", &policy(&path_is("/nothing")), a.addr)
        .replace("http_filters: [", &format!("http_filters: [{{name: jwt, typed_config: {jwt}}}, "));
    let proxy = Proxy::start(&yaml).await;
    for target in ["/private", "/private?", "/private?x=1", "/./private?x", "/%70rivate?/../x"] {
        assert_eq!(status(proxy.addr(), &head(target, "")).await, "401", "{target}");
    }
    assert_eq!(status(proxy.addr(), &head("/public?/private", "")).await, "200");
}

#[tokio::test(flavor = "multi_thread")]
async fn class_host_case_port_and_trailing_dot() {
    let a = Backend::echo("a").await;
    let proxy = Proxy::start(&guarded(BASE, "DENY", &policy(&header_is(":authority", "secret.example")), a.addr)).await;
    for host in [
        "secret.example",
        "SECRET.example",
        "Secret.Example:80",
        "secret.example:8443",
        "secret.example.",
        "secret.EXAMPLE.:80",
    ] {
        for target in ["/", &format!("http://{host}/")] {
            let got = status(proxy.addr(), &format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            assert!(matches!(got.as_str(), "403" | "400"), "{host} {target}: {got}");
        }
    }
    // The target's host counts, as the endpoint reads it (RFC 9112 §3.2.2).
    assert_eq!(status(proxy.addr(), "GET http://secret.example/ HTTP/1.1\r\nHost: other\r\n\r\n").await, "403");
    assert_eq!(a.count(), 0);
    assert_eq!(status(proxy.addr(), "GET / HTTP/1.1\r\nHost: xsecret.example\r\n\r\n").await, "200");
}

#[tokio::test(flavor = "multi_thread")]
async fn class_repeated_headers_are_judged_value_by_value() {
    let a = Backend::echo("a").await;
    let admin = policy(&header_is("x-role", "admin"));
    let allow = Proxy::start(&guarded(BASE, "ALLOW", &admin, a.addr)).await;
    let deny = Proxy::start(&guarded(BASE, "DENY", &admin, a.addr)).await;
    for (lines, allowed, denied) in [
        ("x-role: admin\r\n", "200", "403"),
        ("x-role: admin\r\nx-role: bob\r\n", "403", "403"),
        ("x-role: bob\r\nX-Role: admin\r\n", "403", "403"),
        ("x-role: bob\r\n", "403", "200"),
        ("", "403", "200"),
    ] {
        assert_eq!(status(allow.addr(), &head("/", lines)).await, allowed, "ALLOW {lines:?}");
        assert_eq!(status(deny.addr(), &head("/", lines)).await, denied, "DENY {lines:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn class_header_whitespace_nul_and_case() {
    let a = Backend::echo("a").await;
    let proxy = Proxy::start(&guarded(BASE, "DENY", &policy(&header_is("x-role", "admin")), a.addr)).await;
    for line in ["x-role:admin", "x-role:   admin  ", "X-ROLE:\tadmin\t", "x-Role: admin"] {
        assert_eq!(status(proxy.addr(), &head("/", &format!("{line}\r\n"))).await, "403", "{line:?}");
    }
    for line in [
        "x-role: adm\0in",
        "x-role: a\rb",
        "x-role : admin",
        "x-role\t: admin",
        "x role: admin",
        ": admin",
        "x-ro\0le: a",
    ] {
        let got = status(proxy.addr(), &head("/", &format!("{line}\r\n"))).await;
        assert_eq!(got, "400", "{line:?}");
    }
    assert_eq!(a.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn class_scheme_in_mixed_case() {
    let a = Backend::echo("a").await;
    let proxy = Proxy::start(&guarded(BASE, "DENY", &policy(&header_is(":scheme", "http")), a.addr)).await;
    for scheme in ["http", "HTTP", "hTtP"] {
        let got = status(proxy.addr(), &head(&format!("{scheme}://a/"), "")).await;
        assert!(matches!(got.as_str(), "403" | "400"), "{scheme}: {got}");
    }
    // What a client says of the scheme its proxy saw is one of two words or nothing.
    for told in ["HTTPS", "https,http", "javascript"] {
        let got = status(proxy.addr(), &head("/", &format!("x-forwarded-proto: {told}\r\n"))).await;
        assert_eq!(got, "403", "{told}");
    }
    assert_eq!(a.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn class_trusted_internal_headers_are_taken_from_strangers() {
    let a = Backend::echo("a").await;
    let edge = "normalize_path: true, use_remote_address: true,";
    let proxy = Proxy::start(&guarded(edge, "DENY", &policy(&path_is("/nothing")), a.addr)).await;
    let forged = "x-envoy-original-dst-host: 1.2.3.4:80\r\nX-Envoy-Internal: true\r\nx-envoy-upstream-rq-timeout-ms: 1\r\n\
                  x-envoy-retry-on: 5xx\r\nx-envoy-decorator-operation: x\r\nx-forwarded-client-cert: By=spiffe://td/ns/a/sa/b;URI=spiffe://td/ns/a/sa/root\r\n\
                  x-forwarded-for: 9.9.9.9\r\nx-forwarded-proto: https\r\nx-envoy-peer-metadata: AAAA\r\n";
    let answer = raw(proxy.addr(), head("/", forged).as_bytes()).await.to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 200"), "{answer}");
    for gone in [
        "x-envoy-original-dst-host",
        "x-envoy-internal: true",
        "x-envoy-upstream-rq-timeout-ms",
        "x-envoy-retry-on",
        "x-envoy-decorator-operation",
        "x-forwarded-client-cert",
        "sa/root",
        "x-envoy-peer-metadata",
    ] {
        assert!(!answer.contains(gone), "{gone} reached the endpoint: {answer}");
    }
    assert!(
        answer.contains("x-forwarded-for: 9.9.9.9,127.0.0.1\n") && answer.contains("x-forwarded-proto: http\n"),
        "{answer}"
    );
    // A forged address does not make the client another one.
    let by_address = json!({"remote_ip": {"address_prefix": "9.9.9.9", "prefix_len": 32}});
    let rules = json!({"p": {"permissions": [{"any": true}], "principals": [by_address]}});
    let proxy = Proxy::start(&guarded(edge, "ALLOW", &rules, a.addr)).await;
    assert_eq!(status(proxy.addr(), &head("/", "x-forwarded-for: 9.9.9.9\r\n")).await, "403");
}

#[tokio::test(flavor = "multi_thread")]
async fn class_client_certificate_header_is_taken_from_those_without_certificate() {
    let a = Backend::echo("a").await;
    let inside = "normalize_path: true, forward_client_cert_details: APPEND_FORWARD,";
    let proxy = Proxy::start(&guarded(inside, "DENY", &policy(&path_is("/nothing")), a.addr)).await;
    let answer =
        raw(proxy.addr(), head("/", "x-forwarded-client-cert: URI=spiffe://td/ns/a/sa/root\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("sa/root"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn class_decoded_header_size_counts_every_cookie() {
    let a = Backend::echo("a").await;
    let limits = "normalize_path: true, max_request_headers_kb: 16,";
    let proxy = Proxy::start(&guarded(limits, "DENY", &policy(&path_is("/nothing")), a.addr)).await;
    // Small on the wire, large when decoded: one cookie by reference many times over.
    let mut sender = http2(proxy.addr()).await;
    let mut request = http::Request::get("http://a.example/").body(http_body_util::Full::default()).unwrap();
    for _ in 0..60 {
        request.headers_mut().append("cookie", http::HeaderValue::from_str(&"c".repeat(1000)).unwrap());
    }
    let outcome = tokio::time::timeout(PATIENCE, sender.send_request(request)).await.expect("an answer in time");
    let refused = outcome.as_ref().map_or(true, |response| response.status() == 431);
    assert!(refused, "{outcome:?}");
    assert_eq!(a.count(), 0);
    assert_eq!(get(proxy.addr(), "/").await.status, 200, "others are none the worse");
}

/// Frames of HTTP/2 by hand.
async fn flood(addr: SocketAddr, frames: impl Fn(u32) -> Vec<u8>, count: u32) -> bool {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let drained = tokio::spawn(async move {
        let mut buffer = [0; 65536];
        while let Ok(n) = read.read(&mut buffer).await {
            if n == 0 {
                break;
            }
        }
    });
    let mut ended = false;
    for i in 0..count {
        if write.write_all(&frames(i)).await.is_err() {
            ended = true;
            break;
        }
    }
    ended || tokio::time::timeout(PATIENCE, drained).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn class_http2_floods_end_the_connection() {
    let a = Backend::echo("a").await;
    let proxy = Proxy::start(&guarded(BASE, "DENY", &policy(&path_is("/nothing")), a.addr)).await;
    // `GET / http a` from HPACK's static table, then RST_STREAM (CVE-2023-44487).
    let reset = |i: u32| {
        let id = (i * 2 + 1).to_be_bytes();
        let block = [0x82, 0x86, 0x84, 0x41, 0x01, b'a'];
        let mut frames = vec![0, 0, 6, 1, 5];
        frames.extend(id);
        frames.extend(block);
        frames.extend([0, 0, 4, 3, 0]);
        frames.extend(id);
        frames.extend([0, 0, 0, 8]);
        frames
    };
    assert!(flood(proxy.addr(), reset, 20_000).await, "rapid reset");
    // CONTINUATION without end (CVE-2024-27316).
    let continuation = |i: u32| {
        let mut frames = if i == 0 { vec![0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82] } else { Vec::new() };
        frames.extend([0, 0x10, 0, 9, 0, 0, 0, 0, 1]);
        // A literal without index: name `x`, value of 4090 bytes.
        frames.extend([0, 1, b'x', 0x7f, 0xfb, 0x1e]);
        frames.extend(std::iter::repeat_n(b'v', 4096 - 6));
        frames
    };
    assert!(flood(proxy.addr(), continuation, 5_000).await, "continuation");
    assert_eq!(get(proxy.addr(), "/").await.status, 200, "others are none the worse");
}

#[tokio::test(flavor = "multi_thread")]
async fn class_clients_that_go_away_leave_nothing_behind() {
    let a = Backend::start(|_| async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        reply(200, "")
    })
    .await;
    let proxy = Proxy::start(&guarded(BASE, "DENY", &policy(&path_is("/nothing")), a.addr)).await;
    for n in 0..40 {
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        let request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nbody";
        // Cut at every place: within the request line, the headers, the body, and while the endpoint thinks.
        stream.write_all(&request[..request.len().min(2 + n * 2)]).await.unwrap();
        drop(stream);
    }
    let prefix = [("http_conn_manager_prefix", "t")];
    eventually("no connection is left", || proxy.metric("envoy_http_downstream_cx_active", &prefix) == 0.0).await;
    eventually("no request is left", || proxy.metric("envoy_http_downstream_rq_active", &prefix) == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn class_ipv6_literals_with_scope() {
    let a = Backend::echo("a").await;
    let edge = "normalize_path: true, use_remote_address: true, xff_num_trusted_hops: 1,";
    let proxy = Proxy::start(&guarded(edge, "DENY", &policy(&path_is("/nothing")), a.addr)).await;
    for text in
        ["fe80::1%eth0", "[fe80::1%25eth0]", "[::1", "::1]", "[fe80::1%]:80", "1.2.3.4.5", "::ffff:999.1.1.1", "%"]
    {
        let _ = status(proxy.addr(), &format!("GET / HTTP/1.1\r\nHost: {text}\r\n\r\n")).await;
        let got = status(proxy.addr(), &head("/", &format!("x-forwarded-for: {text}, 1.1.1.1\r\n"))).await;
        assert_eq!(got, "200", "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn class_http2_coalescing_to_another_host() {
    let pki = Pki::new();
    let chain = |name: &str, host: &str| {
        format!(
            r#"
    - filter_chain_match: {{server_names: ["{host}"]}}
      {}
      filters:
      - name: hcm
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: t, route_config: {{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: "/"}}, direct_response: {{status: 200, body: {{inline_string: {name}}}}}}}]}}]}}, http_filters: [{{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}"#,
            pki.server("server", "h2, http/1.1")
        )
    };
    let yaml = format!(
        "static_resources:\n  listeners:\n  - name: l\n    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\n    listener_filters: [{{name: tls, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}}}]\n    filter_chains:{}{}\n",
        chain("one", "a.example"),
        chain("other", "b.example")
    );
    let proxy = Proxy::start(&yaml).await;
    let (certificate, key) = pki.leaf("client");
    let params = weft_tls::ClientParams {
        certificate: Some(weft_tls::CertifiedKey::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()),
        sni: Some("a.example".into()),
        alpn: vec![b"h2".to_vec()],
        ..weft_tls::ClientParams::new(weft_tls::ServerVerification::Insecure)
    };
    let stream = TcpStream::connect(proxy.addr()).await.unwrap();
    let secured = weft_tls::ClientContext::build(params).unwrap().connect(stream).await.unwrap().stream;
    let io = hyper_util::rt::TokioIo::new(secured);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    for (host, want) in [
        ("a.example", 200),
        ("A.example:443", 200),
        ("b.example", 421),
        ("B.EXAMPLE.:8443", 421),
        ("a.example", 200),
        ("c.example", 200),
    ] {
        let request = http::Request::get(format!("https://{host}/"));
        let request = request.body(http_body_util::Full::<bytes::Bytes>::default()).unwrap();
        let response = tokio::time::timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap();
        assert_eq!(response.status().as_u16(), want, "{host}");
    }
}

/// HEADERS of stream 1 with END_STREAM and END_HEADERS: `GET http a`, and this path as a literal.
fn http2_get(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend(path.as_bytes());
    block.extend([0x41, 0x01, b'a']);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    bytes.extend([0, 0, u8::try_from(block.len()).unwrap(), 1, 5, 0, 0, 0, 1]);
    bytes.extend(block);
    bytes
}

/// Over HTTP/2 the library that reads frames cuts a fragment off before anything of ours sees the path, so it cannot be told
/// from a path without one. What matters holds: the path that is judged is the path that the endpoint gets.
#[tokio::test(flavor = "multi_thread")]
async fn class_fragment_in_path_over_http2_is_never_seen_by_anybody() {
    let a = Backend::echo("a").await;
    let proxy = Proxy::start(&guarded(BASE, "DENY", &policy(&path_is("/admin")), a.addr)).await;
    for path in ["/admin#", "/admin#x", "/x/../admin#x", "/%61dmin#/public", "/admin?q#x"] {
        raw_http2(proxy.addr(), &http2_get(path)).await;
        assert_eq!(a.count(), 0, "{path} reached the endpoint");
    }
    for (sent, path) in [("/public#/admin", "/public"), ("/a?b#c", "/a?b"), ("/x#/../admin", "/x"), ("/#", "/")] {
        let before = a.count();
        let answer = raw_http2(proxy.addr(), &http2_get(sent)).await;
        assert!(answer.contains(&format!("GET {path}\n")), "{sent}: {answer:?}");
        assert_eq!(a.count(), before + 1, "{sent}");
    }
}

/// Over TLS with a client certificate: the answer to these bytes.
async fn as_client(pki: &Pki, addr: SocketAddr, bytes: &[u8]) -> String {
    let (certificate, key) = pki.leaf("client");
    let params = weft_tls::ClientParams {
        certificate: Some(weft_tls::CertifiedKey::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()),
        sni: Some("a.example".into()),
        ..weft_tls::ClientParams::new(weft_tls::ServerVerification::Insecure)
    };
    let stream = TcpStream::connect(addr).await.unwrap();
    let mut stream = weft_tls::ClientContext::build(params).unwrap().connect(stream).await.unwrap().stream;
    stream.write_all(bytes).await.unwrap();
    let mut all = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("an answer in time");
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn class_client_certificate_header_is_forged_in_no_mode() {
    let (a, pki) = (Backend::echo("a").await, Pki::new());
    let forged = "URI=spiffe://cluster.local/ns/default/sa/root";
    let own = ";URI=spiffe://cluster.local/ns/default/sa/client";
    let details = "set_current_client_cert_details: {uri: true}";
    // Whether what the client told is left, and whether this hop's own word is there, with and without a certificate.
    for (mode, with, without) in [
        ("SANITIZE", (false, false), (false, false)),
        ("FORWARD_ONLY", (true, false), (false, false)),
        ("APPEND_FORWARD", (true, true), (false, false)),
        ("SANITIZE_SET", (false, true), (false, false)),
        ("ALWAYS_FORWARD_ONLY", (true, false), (true, false)),
    ] {
        let hcm = format!("normalize_path: true, forward_client_cert_details: {mode}, {details},");
        let plain = guarded(&hcm, "DENY", &policy(&path_is("/nothing")), a.addr);
        let tls =
            plain.replace("    - filters:", &format!("    - {}\n      filters:", pki.server("server", "http/1.1")));
        let (plain, tls) = (Proxy::start(&plain).await, Proxy::start(&tls).await);
        for lines in [
            format!("x-forwarded-client-cert: {forged}\r\n"),
            format!("X-Forwarded-Client-Cert: By=x\r\nx-forwarded-client-cert: {forged}\r\n"),
        ] {
            let request = head("/", &format!("{lines}connection: close\r\n"));
            for (answer, (told, said)) in [
                (as_client(&pki, tls.addr(), request.as_bytes()).await, with),
                (raw(plain.addr(), request.as_bytes()).await, without),
            ] {
                assert!(answer.starts_with("HTTP/1.1 200"), "{mode}: {answer}");
                assert_eq!(answer.contains("sa/root"), told, "{mode} {lines:?}: {answer}");
                assert_eq!(answer.contains(own), said, "{mode} {lines:?}: {answer}");
            }
        }
        // A quote that is not closed hides the element after it from those who parse the value.
        let open = head("/", "x-forwarded-client-cert: By=\"x\r\nconnection: close\r\n");
        let answer = as_client(&pki, tls.addr(), open.as_bytes()).await;
        assert!(!with.1 || !answer.contains("By=\"x"), "{mode}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn class_connections_are_capped_for_the_whole_process() {
    let a = Backend::echo("a").await;
    let yaml = guarded(BASE, "DENY", &policy(&path_is("/nothing")), a.addr);
    let exempt = yaml.split("  - name: l\n").nth(1).unwrap().split("  clusters:").next().unwrap();
    let exempt = exempt.replace("address: 127.0.0.1, port_value: 0", "address: 127.0.0.2, port_value: 0");
    let second = format!("  - name: exempt\n    ignore_global_conn_limit: true\n{exempt}  clusters:");
    let proxy = Proxy::start_with(&yaml.replace("  clusters:", &second), |options| options.max_connections = 3).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        stream.write_all(head("/", "").as_bytes()).await.unwrap();
        stream.read_exact(&mut [0; 12]).await.unwrap();
        held.push(stream);
    }
    // The fourth is closed without a word, whatever it sends; a listener that is exempt goes on.
    for _ in 0..5 {
        let mut over = TcpStream::connect(proxy.addr()).await.unwrap();
        let _ = over.write_all(head("/", "").as_bytes()).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, over.read_to_end(&mut answer)).await.expect("closed in time");
        assert_eq!(answer, b"");
    }
    assert_eq!(a.count(), 3);
    assert_eq!(get(proxy.address("exempt"), "/").await.status, 200);
    drop(held.pop());
    let end = tokio::time::Instant::now() + PATIENCE;
    while status(proxy.addr(), &head("/", "")).await != "200" {
        assert!(tokio::time::Instant::now() < end, "a place that is free is given again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn class_log_injection_a_request_is_one_line_with_its_own_fields() {
    let a = Backend::echo("a").await;
    let file = std::env::temp_dir().join(format!("weft-injection-{}.log", std::process::id()));
    let _ = std::fs::remove_file(&file);
    let logger = |format: &str| {
        format!(
            r#"{{name: f, typed_config: {{"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: "{}", log_format: {{{format}}}}}}}"#,
            file.display()
        )
    };
    let text =
        logger(r#"text_format_source: {inline_string: "text \"%REQ(X-NAME)%\" \"%REQ(:PATH)%\" %RESPONSE_CODE%\n"}"#);
    let json = logger(r#"json_format: {name: "%REQ(X-NAME)%", path: "p %REQ(:PATH)%", code: "%RESPONSE_CODE%"}"#);
    let hcm = format!("access_log: [{text}, {json}],");
    let proxy = Proxy::start(&guarded(&hcm, "DENY", &policy(&path_is("/nothing")), a.addr)).await;
    let evil: [&[u8]; 7] = [
        b"plain",
        b"\" \"/admin\" 200",
        b"\\\" \"/admin\" 200",
        b"\\",
        b"a\tb",
        "x\u{2028}text \"root\" \"/\" 200\u{85}y".as_bytes(),
        b"\xff\xfe %REQ(HOST)% \x1b[31m",
    ];
    let mut answered = 0;
    for name in evil {
        let mut request = b"GET /q HTTP/1.1\r\nHost: a\r\nconnection: close\r\nx-name: ".to_vec();
        request.extend(name);
        request.extend(b"\r\n\r\n");
        answered += usize::from(raw(proxy.addr(), &request).await.starts_with("HTTP/1.1 200"));
    }
    assert!(answered >= 6, "{answered}");
    let read = || String::from_utf8(std::fs::read(&file).unwrap_or_default()).expect("the log is UTF-8");
    let lines = || read().matches('\n').count();
    eventually("two lines for each answer", || lines() >= 2 * answered && lines().is_multiple_of(2)).await;
    let log = read();
    assert!(!log.contains(['\x1b', '\t']), "{log:?}");
    let (mut texts, mut jsons) = (0, 0);
    for line in log.lines() {
        match line.strip_prefix("text \"") {
            Some(rest) => {
                assert!(!rest.contains(['\u{2028}', '\u{85}']), "{line:?}");
                // The first quote that no backslash takes the meaning of ends the name; what comes then is the path.
                let mut escaped = false;
                let end = rest.find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                });
                let after = &rest[end.expect("a name ends")..];
                assert!(after.starts_with("\" \"/q\" ") || after.starts_with("\" \"-\" 400"), "{line:?}");
                texts += 1;
            }
            None => {
                let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
                assert_eq!(value.as_object().unwrap().len(), 3, "{line:?}");
                assert!(value["path"] == "p /q" || value["code"].to_string().contains("400"), "{line:?}");
                jsons += 1;
            }
        }
    }
    assert_eq!(texts, jsons);
    std::fs::remove_file(file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn class_decompression_bombs_are_passed_on_or_cut() {
    let a = Backend::echo("a").await;
    let yaml = guarded(BASE, "DENY", &policy(&path_is("/nothing")), a.addr);
    let proxy = Proxy::start(&yaml).await;
    // Stored in 1 KiB, a megabyte when it is unpacked; nothing here unpacks it.
    let mut bomb = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    bomb.resize(1024, 0x55);
    for coding in ["gzip", "br", "zstd", "gzip, gzip, gzip"] {
        let mut request = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nconnection: close\r\ncontent-encoding: {coding}\r\ncontent-length: {}\r\n\r\n",
            bomb.len()
        )
        .into_bytes();
        request.extend(&bomb);
        let answer = raw(proxy.addr(), &request).await;
        assert!(
            answer.contains("body=1024\n") && answer.contains(&format!("content-encoding: {coding}\n")),
            "{answer}"
        );
    }

    // Where it is told to unpack, it stops once the body grows beyond its ratio, while it does so.
    let kind = "type.googleapis.com/envoy.extensions";
    let filter = format!(
        "http_filters: [{{name: envoy.filters.http.decompressor, typed_config: {{\"@type\": {kind}.filters.http.decompressor.v3.Decompressor, \
         decompressor_library: {{name: gzip, typed_config: {{\"@type\": {kind}.compression.gzip.decompressor.v3.Gzip}}}}}}}}, "
    );
    let unpacking = Proxy::start(&yaml.replacen("http_filters: [", &filter, 1)).await;
    for (size, whole) in [(60 << 10, true), (64 << 20, false)] {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut packed, &vec![0; size]).unwrap();
        let packed = packed.finish().unwrap();
        let head = "POST / HTTP/1.1\r\nHost: a\r\nconnection: close\r\ncontent-encoding: gzip\r\n";
        let mut request = format!("{head}content-length: {}\r\n\r\n", packed.len()).into_bytes();
        request.extend(&packed);
        let answer = raw(unpacking.addr(), &request).await;
        assert_eq!(answer.contains(&format!("body={size}\n")), whole, "{size}: {answer}");
        assert_eq!(answer.starts_with("HTTP/1.1 200"), whole, "{size}: {answer}");
    }
}

/// A filter that this proxy does not have is refused by name, not left out.
fn refused(yaml: &str, name: &str, kind: &str) {
    let filter = format!("http_filters: [{{name: {name}, typed_config: {{\"@type\": type.googleapis.com/{kind}}}}}, ");
    let bootstrap = weft_proxy_config::bootstrap::load_bootstrap(&yaml.replace("http_filters: [", &filter));
    let said = match &bootstrap {
        Err(error) => error.to_string(),
        Ok(bootstrap) => {
            let mut builder = weft_proxy_config::ConfigBuilder::default();
            weft_proxy_config::bootstrap::apply_static(bootstrap, &mut builder).join("\n")
        }
    };
    assert!(said.contains(kind), "{name}: {said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn class_cookie_crypto_no_cookie_holds_a_secret() {
    let (a, b) = (Backend::echo("a").await, Backend::echo("b").await);
    // Filters whose cookies are encrypted elsewhere (sessions, OAuth2) are refused by name.
    let yaml = guarded(BASE, "DENY", &policy(&path_is("/nothing")), a.addr);
    for (name, kind) in [
        ("envoy.filters.http.oauth2", "envoy.extensions.filters.http.oauth2.v3.OAuth2"),
        ("envoy.filters.http.stateful_session", "envoy.extensions.filters.http.stateful_session.v3.StatefulSession"),
    ] {
        refused(&yaml, name, kind);
    }
    // The one cookie that is set here is a random number: it is no function of the endpoint, and a forged one is only a key.
    let routes =
        all(r#"[{match: {prefix: "/"}, route: {cluster: ab, hash_policy: [{cookie: {name: session, ttl: 60s}}]}}]"#);
    let clusters = cluster("ab", &[a.addr, b.addr], "lb_policy: RING_HASH,");
    let proxy = Proxy::start(&http_bootstrap_raw("", &routes, &clusters)).await;
    let mut values = std::collections::BTreeSet::new();
    for _ in 0..16 {
        let got = get(proxy.addr(), "/").await;
        let cookie = got.header("set-cookie").to_string();
        let value = cookie.split([';', '=']).nth(1).unwrap_or_default().trim_matches('"').to_string();
        assert!(cookie.starts_with("session=") && cookie.contains("HttpOnly"), "{cookie}");
        for endpoint in [a.addr, b.addr] {
            assert!(!cookie.contains(&endpoint.to_string()), "{cookie}");
        }
        assert!(values.insert(value.clone()), "{value} twice");
        let again = get_with(proxy.addr(), "/", &[("cookie", &format!("session={value}"))]).await;
        assert_eq!(again.backend(), got.backend(), "{cookie}");
    }
    for forged in ["", "\"", "AAAA", "127.0.0.1:1", "\"a;b\"", "=", "%00"] {
        let got = get_with(proxy.addr(), "/", &[("cookie", &format!("session={forged}"))]).await;
        assert!(["a", "b"].contains(&got.backend()), "{forged:?}: {got:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn class_regex_that_explode_elsewhere_take_linear_time() {
    let a = Backend::echo("a").await;
    let routes = all(
        r#"[{match: {safe_regex: {regex: "/(a+)+b"}}, direct_response: {status: 418}}, {match: {prefix: "/"}, route: {cluster: a}}]"#,
    );
    let proxy = Proxy::start(&http_bootstrap("", &routes, &[("a", a.addr, "")])).await;
    let begin = std::time::Instant::now();
    let long = format!("/{}", "a".repeat(7000));
    for _ in 0..5 {
        assert_eq!(get(proxy.addr(), &long).await.status, 200);
    }
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    assert_eq!(get(proxy.addr(), "/aaab").await.status, 418);
}

/// What is sent in pieces is judged like what is sent at once: of a line longer than any framing header nothing is left out.
#[tokio::test(flavor = "multi_thread")]
async fn class_smuggling_long_lines_that_come_in_pieces() {
    let a = Backend::echo("a").await;
    let proxy = Proxy::start(&guarded(BASE, "DENY", &policy(&path_is("/nothing")), a.addr)).await;
    let (long, spaces, zeros) = ("x".repeat(300), " ".repeat(300), "0".repeat(300));
    let inner = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let length = inner.len();
    for (request, refused) in [
        (format!("GET /{long}#{long} HTTP/1.1\r\nHost: a\r\n\r\n"), true),
        (format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:{spaces}{length}\r\n\r\n{inner}"), false),
        (format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {zeros}{length}\r\n\r\n{inner}"), false),
        (format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:{spaces}chunked\r\n\r\n0\r\n\r\n"), false),
    ] {
        let before = a.count();
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for piece in request.as_bytes().chunks(100) {
            // Refused already: nobody reads the rest.
            let _ = stream.write_all(piece).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer in time");
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains("/smuggled"), "{request}: {answer}");
        assert!(a.count() <= before + usize::from(!refused), "{request}: {answer}");
        assert!(!refused || answer.starts_with("HTTP/1.1 400"), "{request}: {answer}");
    }
}

/// Cookies that come in pieces are to rules and to the endpoint what they are in one.
#[tokio::test(flavor = "multi_thread")]
async fn class_repeated_headers_cookies_in_pieces_over_http2() {
    let a = Backend::echo("a").await;
    let rule =
        json!({"header": {"name": "cookie", "string_match": {"safe_regex": {"regex": "^(.*?; )?role=guest(;.*)?$"}}}});
    let proxy = Proxy::start(&guarded("", "DENY", &policy(&rule), a.addr)).await;
    let mut h2 = http2(proxy.addr()).await;
    for (pieces, want) in [(&["a=1", "role=guest", "b=2"][..], 403), (&["a=1", "role=admin", "b=2"], 200)] {
        let mut ask = http::Request::get("http://a/");
        for piece in pieces {
            ask = ask.header("cookie", *piece);
        }
        let answer = h2.send_request(ask.body(http_body_util::Full::default()).unwrap());
        let got = read(tokio::time::timeout(PATIENCE, answer).await.expect("in time").unwrap()).await.unwrap();
        assert_eq!(got.status, want, "{pieces:?}");
        let lines: Vec<&str> = got.body.lines().filter(|line| line.starts_with("cookie: ")).collect();
        assert!(want == 403 || lines == ["cookie: a=1; role=admin; b=2"], "{lines:?}");
    }
}
