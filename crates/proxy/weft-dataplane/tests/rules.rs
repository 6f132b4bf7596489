//! Rules bind what was begun under earlier ones: requests that wait at a filter, that are under way, that reuse a connection;
//! connections that no filter chain would take any more. And upgrades are judged as what an endpoint gets of them.

#![allow(clippy::unwrap_used)]

mod common;
use bytes::Bytes;
use common::*;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use weft_dataplane::Options;
use weft_proto::envoy::config::listener::v3::Listener;

async fn start(listener: &str, clusters: &str) -> Proxy {
    start_with(listener, clusters, |_| {}).await
}

async fn start_with(listener: &str, clusters: &str, set: impl FnOnce(&mut Options)) -> Proxy {
    Proxy::start_with(&format!("static_resources:\n  listeners:\n  - {listener}\n  clusters:\n{clusters}"), set).await
}

/// An HTTP listener `l` that allows WebSocket and rewrites paths; `filters` come before the router.
fn http_rules(filters: &str) -> String {
    format!(
        r#"{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{filters: [{{name: h, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: t, upgrade_configs: [{{upgrade_type: websocket}}], route_config: {{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: "/"}}, route: {{cluster: a, timeout: 0s, prefix_rewrite: /rewritten}}}}]}}]}}, http_filters: [{filters} {{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}"#
    )
}

fn deny(permission: &Value) -> String {
    let policies = json!({"p": {"permissions": [permission], "principals": [{"any": true}]}});
    let rbac = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "rules": {"action": "DENY", "policies": policies},
    });
    format!("{{name: r, typed_config: {rbac}}},")
}

fn deny_path(path: &str) -> String {
    deny(&json!({"url_path": {"path": {"exact": path}}}))
}

fn header_is(name: &str, value: &str) -> Value {
    json!({"header": {"name": name, "string_match": {"exact": value}}})
}

/// What comes until the connection ends, in time.
async fn until_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    // A reset is an end too.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("the connection ends");
    all
}

/// Reads until this is among the bytes.
async fn read_to(stream: &mut (impl AsyncReadExt + Unpin), end: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    while !all.windows(end.len()).any(|part| part == end) {
        let n = tokio::time::timeout(PATIENCE, stream.read_buf(&mut all)).await.expect("in time").unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&all));
    }
    all
}

/// Sends back what it gets.
async fn echo() -> SocketAddr {
    serve(&[]).await
}

/// Answers with a response that never ends.
async fn endless() -> SocketAddr {
    serve(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await
}

/// Says this to the first bytes, and sends back what comes after them; without an answer all that comes.
async fn serve(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                if !answer.is_empty() {
                    let _ = stream.read(&mut [0; 4096]).await;
                    let _ = stream.write_all(answer).await;
                }
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_comes_while_a_request_waits_at_a_filter() {
    let app = Backend::echo("a").await;
    let (authorizer, mut asked, go) = slow(|| reply(200, "")).await;
    let ask = format!(
        r#"{{name: e, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz, transport_api_version: V3, http_service: {{server_uri: {{uri: "http://{}", cluster: authz, timeout: 60s}}}}}}}},"#,
        authorizer.addr
    );
    let clusters = cluster("a", &[app.addr], "") + &cluster("authz", &[authorizer.addr], "");
    for (rules, want, count) in [(deny_path("/other"), 200, 1), (deny_path("/"), 403, 1)] {
        let mut proxy = start(&http_rules(&ask), &clusters).await;
        let addr = proxy.addr();
        let waits = tokio::spawn(async move { get(addr, "/").await.status });
        asked.recv().await.unwrap();
        proxy.change::<Listener>(&[("l", &http_rules(&format!("{rules} {ask}")))], &[]).await;
        go.notify_one();
        assert_eq!((waits.await.unwrap(), app.count()), (want, count), "{rules}");
    }
}

/// Opens a stream of HTTP/2 whose body goes on, and returns it with the first bytes of its answer read.
async fn open_stream(
    addr: SocketAddr,
    lines: &[(&str, &str)],
) -> (mpsc::Sender<Bytes>, http::Response<hyper::body::Incoming>) {
    let (send, answer) = upload(addr, lines).await;
    let mut response = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap().unwrap();
    assert_eq!(response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
    (send, response)
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_bind_requests_under_way() {
    let app = endless().await;
    let others = deny_path("/other");
    for (what, before) in [("where there was none", ""), ("where there was one", others.as_str())] {
        let mut proxy = start(&http_rules(before), &cluster("a", &[app], "")).await;
        let (_up, upload) = open_stream(proxy.addr(), &[]).await;
        let (_call, call) = open_stream(proxy.addr(), &[("content-type", "application/grpc")]).await;
        let mut events = TcpStream::connect(proxy.addr()).await.unwrap();
        events.write_all(b"GET /chat HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n").await.unwrap();
        let mut elsewhere = TcpStream::connect(proxy.addr()).await.unwrap();
        elsewhere.write_all(b"GET /news HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n").await.unwrap();
        for stream in [&mut events, &mut elsewhere] {
            read_to(stream, b"hello\r\n").await;
        }
        let denying = format!("{others} {}", deny_path("/chat"));
        proxy.change::<Listener>(&[("l", &http_rules(&denying))], &[]).await;
        for stream in [upload, call] {
            let rest = tokio::time::timeout(PATIENCE, stream.into_body().collect()).await.expect("the stream ends");
            assert!(rest.is_err(), "{what}: a response that is cut does not look whole");
        }
        let rest = until_end(&mut events).await;
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{what}: a response that is cut does not look whole");
        assert_eq!(proxy.metric("envoy_http_rbac_denied", &[]), 3.0, "{what}");
        let still = tokio::time::timeout(Duration::from_millis(200), elsewhere.read(&mut [0; 64])).await;
        assert!(still.is_err(), "{what}: the policy is for others: {still:?}");
    }
}

/// A request is judged again as it was judged: not as the filters after the rules left it.
#[tokio::test(flavor = "multi_thread")]
async fn what_filters_after_the_rules_change_does_not_count() {
    let app = endless().await;
    let allowed = r#"{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: ALLOW, policies: {p: {permissions: [{header: {name: x-token, string_match: {exact: admin}}}], principals: [{any: true}]}}}}},"#;
    let removes = r#"{name: m, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation, mutations: {request_mutations: [{remove: x-token}]}}},"#;
    let rules = |more: &str| http_rules(&format!("{more} {allowed} {removes}"));
    let mut proxy = start(&rules(""), &cluster("a", &[app], "")).await;
    let (_up, call) = open_stream(proxy.addr(), &[("x-token", "admin")]).await;
    proxy.change::<Listener>(&[("l", &rules(&deny_path("/other")))], &[]).await;
    let mut body = call.into_body();
    let still = tokio::time::timeout(Duration::from_millis(200), body.frame()).await;
    assert!(still.is_err(), "it goes on: {still:?}");
    proxy.change::<Listener>(&[("l", &rules(&deny_path("/chat")))], &[]).await;
    let end = tokio::time::timeout(PATIENCE, body.collect()).await.expect("the stream ends");
    assert!(end.is_err(), "a response that is cut does not look whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_no_chain_would_take_any_more_ends() {
    let app = echo().await;
    let set = |options: &mut Options| options.retired_time = Duration::from_millis(300);
    let chain = |matcher: &str| {
        format!(
            r#"{{filter_chain_match: {{{matcher}}}, filters: [{{name: t, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: a}}}}]}}"#
        )
    };
    let listener = |chains: &[String]| {
        format!(
            r#"{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{}]}}"#,
            chains.join(", ")
        )
    };
    let rest = chain("transport_protocol: raw_buffer");
    let mut proxy = start_with(&listener(std::slice::from_ref(&rest)), &cluster("a", &[app], ""), set).await;
    let mut open = TcpStream::connect(proxy.addr()).await.unwrap();
    open.write_all(b"hello").await.unwrap();
    read_to(&mut open, b"hello").await;
    let port = proxy.addr().port();
    let with = |port: u16, transport: &str| {
        listener(&[rest.clone(), chain(&format!("destination_port: {port}, transport_protocol: {transport}"))])
    };
    // One for another port, and one for the port that takes such connections as well.
    for chains in [with(port ^ 1, "tls"), with(port, "raw_buffer")] {
        proxy.change::<Listener>(&[("l", &chains)], &[]).await;
        open.write_all(b"more").await.unwrap();
        read_to(&mut open, b"more").await;
    }
    proxy.change::<Listener>(&[("l", &with(port, "tls"))], &[]).await;
    assert_eq!(until_end(&mut open).await, b"", "the port takes TLS alone");
    eventually("nothing is left", || proxy.handle.active_connections() == 0).await;
}
/// A filter chain over mutual TLS that answers by itself.
fn chain(pki: &Pki, name: &str, matcher: &str) -> String {
    format!(
        r#"
- filter_chain_match: {{{matcher}}}
  {}
  filters:
  - name: hcm
    typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: t, route_config: {{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: "/"}}, direct_response: {{status: 200, body: {{inline_string: {name}}}}}}}]}}]}}, http_filters: [{{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}"#,
        pki.server("server", "h2, http/1.1")
    )
}

/// A listener `l` that chooses by server name.
fn tls_listener(chains: &[String]) -> String {
    format!(
        "name: l\naddress: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\nlistener_filters: [{{name: tls, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}}}]\nfilter_chains:{}\n",
        chains.concat()
    )
}

fn tls_bootstrap(listener: &str) -> String {
    format!("static_resources:\n  listeners:\n  - {}\n", listener.trim_end().replace('\n', "\n    "))
}

/// An HTTP/2 or HTTP/1.1 connection over TLS that asks for this name.
async fn secured(pki: &Pki, addr: SocketAddr, name: Option<&str>, alpn: &[u8]) -> weft_tls::ClientStream<TcpStream> {
    let (certificate, key) = pki.leaf("client");
    let params = weft_tls::ClientParams {
        certificate: Some(weft_tls::CertifiedKey::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()),
        sni: name.map(Into::into),
        alpn: vec![alpn.to_vec()],
        ..weft_tls::ClientParams::new(weft_tls::ServerVerification::Insecure)
    };
    let stream = TcpStream::connect(addr).await.unwrap();
    weft_tls::ClientContext::build(params).unwrap().connect(stream).await.unwrap().stream
}

type Http2 = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

async fn over_http2(pki: &Pki, addr: SocketAddr, name: Option<&str>) -> Http2 {
    let io = TokioIo::new(secured(pki, addr, name, b"h2").await);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// The status of the answer to a request for that host.
async fn status(open: &mut Http2, host: &str) -> u16 {
    let request = http::Request::get(format!("https://{host}/")).body(Full::default()).unwrap();
    tokio::time::timeout(PATIENCE, open.send_request(request)).await.unwrap().unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn class_http2_coalescing_to_a_host_that_gets_a_chain_of_its_own() {
    let pki = Pki::new();
    let named = |name: &str| chain(&pki, name, &format!(r#"server_names: ["{name}.example"]"#));
    let before = tls_listener(&[named("a"), named("b")]);
    // The certificates stay the same: only the name of the other chain changes.
    let after = before.replace("b.example", "c.example");
    let mut proxy = Proxy::start(&tls_bootstrap(&before)).await;
    let mut open = over_http2(&pki, proxy.addr(), Some("a.example")).await;
    let mut ask = async |host: &str| status(&mut open, host).await;
    assert_eq!((ask("a.example").await, ask("b.example").await, ask("c.example").await), (200, 421, 200));
    proxy.change::<Listener>(&[("l", &after)], &[]).await;
    assert_eq!((ask("a.example").await, ask("b.example").await, ask("c.example").await), (200, 200, 421));
}

/// A connection stays on the chain that it came by: what the listener has for its host by now is another's.
#[tokio::test(flavor = "multi_thread")]
async fn class_http2_coalescing_on_a_chain_that_is_gone() {
    let pki = Pki::new();
    let wild = chain(&pki, "wild", r#"server_names: ["*.example"]"#);
    let other = chain(&pki, "other", r#"server_names: ["other.test"]"#);
    let mut proxy = Proxy::start(&tls_bootstrap(&tls_listener(&[wild, other.clone()]))).await;
    let ask = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let mut connections = Vec::new();
    for host in ["x.example", "y.example"] {
        let mut stream = secured(&pki, proxy.addr(), Some("x.example"), b"http/1.1").await;
        stream.write_all(ask(host).as_bytes()).await.unwrap();
        assert!(read_to(&mut stream, b"wild").await.starts_with(b"HTTP/1.1 200"), "{host}");
        connections.push((host, stream));
    }
    // The other chain, with rules of its own, has its hosts now.
    let takes_all = other.replace(r#""other.test""#, r#""other.test", "*.example""#);
    proxy.change::<Listener>(&[("l", &tls_listener(&[takes_all]))], &[]).await;
    for (host, mut stream) in connections {
        stream.write_all(ask(host).as_bytes()).await.unwrap();
        let head = read_to(&mut stream, b"\r\n\r\n").await;
        // For the host that it was made for it has the time that is left to it.
        let want: &[u8] = if host == "x.example" { b"HTTP/1.1 200" } else { b"HTTP/1.1 421" };
        assert!(head.starts_with(want), "{host}: {}", String::from_utf8_lossy(&head));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn class_http2_coalescing_with_a_host_that_leaves_a_wildcard() {
    let pki = Pki::new();
    let wild = chain(&pki, "wild", r#"server_names: ["*.example"]"#);
    let mut proxy = Proxy::start(&tls_bootstrap(&tls_listener(std::slice::from_ref(&wild)))).await;
    let mut open = over_http2(&pki, proxy.addr(), Some("a.example")).await;
    assert_eq!((status(&mut open, "a.example").await, status(&mut open, "b.example").await), (200, 200));
    let own = chain(&pki, "a", r#"server_names: ["a.example"]"#);
    proxy.change::<Listener>(&[("l", &tls_listener(&[wild, own]))], &[]).await;
    assert_eq!((status(&mut open, "a.example").await, status(&mut open, "b.example").await), (421, 200));
}

/// One that comes for a port or an address says nothing of hosts: who is connected stays (and goes on under its own rules).
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_comes_for_the_port_takes_no_open_connection() {
    let pki = Pki::new();
    let rest = chain(&pki, "rest", "");
    let mut proxy = Proxy::start(&tls_bootstrap(&tls_listener(std::slice::from_ref(&rest)))).await;
    let mut open = over_http2(&pki, proxy.addr(), Some("a.example")).await;
    assert_eq!(status(&mut open, "a.example").await, 200);
    let of_port = chain(&pki, "port", &format!("destination_port: {}", proxy.addr().port()));
    proxy.change::<Listener>(&[("l", &tls_listener(&[rest, of_port]))], &[]).await;
    assert_eq!((status(&mut open, "a.example").await, status(&mut open, "b.example").await), (200, 200));
}

/// Who says no server name must not get past the rules of those that have a chain of their own.
#[tokio::test(flavor = "multi_thread")]
async fn class_http2_coalescing_without_a_server_name() {
    let pki = Pki::new();
    let chains = [chain(&pki, "one", r#"server_names: ["a.example"]"#), chain(&pki, "rest", "")];
    let proxy = Proxy::start(&tls_bootstrap(&tls_listener(&chains))).await;
    for (host, want) in [("a.example", "421"), ("A.EXAMPLE.:443", "421"), ("b.example", "200"), ("127.0.0.1", "200")] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let mut stream = secured(&pki, proxy.addr(), None, b"http/1.1").await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut status)).await.expect("in time").unwrap();
        assert_eq!(std::str::from_utf8(&status[9..]), Ok(want), "{host}");
    }
}

/// A wish for a WebSocket is a `GET` to the endpoint, whichever protocol it comes by, and has its headers; so it is to routes
/// and policies. (Envoy makes the one of the other before anything looks at it.)
#[tokio::test(flavor = "multi_thread")]
async fn class_upgrades_over_http2_are_judged_as_what_the_endpoint_gets() {
    let a = Backend::echo("a").await;
    let h1 = "GET /admin HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    for (rule, denied) in [
        (header_is(":method", "GET"), true),
        (header_is("upgrade", "websocket"), true),
        (header_is(":method", "CONNECT"), false),
    ] {
        let proxy = start(&http_rules(&deny(&rule)), &cluster("a", &[a.addr], "")).await;
        let before = a.count();
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        stream.write_all(h1.as_bytes()).await.unwrap();
        let answer = read_to(&mut stream, b"\r\n\r\n").await;
        assert_eq!(answer.starts_with(b"HTTP/1.1 403"), denied, "{rule}");
        let mut h2 = http2(proxy.addr()).await;
        // The server's settings, which allow it, are there with the first answer.
        let plain = http::Request::put("http://a/").body(Full::default()).unwrap();
        assert_eq!(h2.send_request(plain).await.unwrap().status(), 200);
        let mut wish = http::Request::connect("http://a/admin").body(Full::default()).unwrap();
        wish.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
        // An endpoint that answers with a body does not agree, and CONNECT has no answer for that: the stream breaks.
        let answer = tokio::time::timeout(PATIENCE, h2.send_request(wish)).await.unwrap();
        assert_eq!(answer.is_ok_and(|answer| answer.status() == 403), denied, "{rule}");
        assert_eq!(a.count() - before, if denied { 1 } else { 3 }, "{rule}");
    }
}
