//! Changes of the configuration bind connections that are there already: those whose first bytes are still awaited, those that
//! wait for an authorizer or an endpoint, open tunnels, and all whose filter chain is gone.

#![allow(clippy::unwrap_used)]

mod common;
use common::*;
use http_body_util::{BodyExt, Full};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use weft_dataplane::Options;
use weft_proto::envoy::config::listener::v3::Listener;

const DENY: &str = r#"{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: t, rules: {action: DENY, policies: {"ns[a]-policy[all of it]": {permissions: [{any: true}], principals: [{any: true}]}}}}},"#;
const ALLOW: &str = r#"{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: t, rules: {action: ALLOW, policies: {p: {permissions: [{any: true}], principals: [{any: true}]}}}}},"#;
const DENIED: &str = "rbac_access_denied_matched_policy[ns[a]-policy[all_of_it]]";
const HTTP_INSPECTOR: &str = r#"listener_filters: [{name: h, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}], listener_filters_timeout: 60s,"#;

/// A TCP listener `l`; `tcp` are more fields of the TCP proxy.
fn tcp_listener(more: &str, filters: &str, tcp: &str) -> String {
    format!(
        r#"{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, {more} filter_chains: [{{filters: [{filters} {{name: t, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: a, {tcp}}}}}]}}]}}"#
    )
}

async fn start(listener: &str, clusters: &str) -> Proxy {
    start_with(listener, clusters, |_| {}).await
}

async fn start_with(listener: &str, clusters: &str, set: impl FnOnce(&mut Options)) -> Proxy {
    Proxy::start_with(&format!("static_resources:\n  listeners:\n  - {listener}\n  clusters:\n{clusters}"), set).await
}

/// Tells what each connection says first, and sends back what it gets.
async fn echo() -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (told, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let told = told.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(n) = stream.read(&mut buffer).await
                    && n > 0
                {
                    let _ = told.send(String::from_utf8_lossy(&buffer[..n]).into_owned());
                    let _ = stream.write_all(&buffer[..n]).await;
                }
            });
        }
    });
    (addr, seen)
}

/// What comes until the connection ends, in time.
async fn until_end(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    // A reset is an end too.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("the connection ends");
    all
}

async fn echoes(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut back = vec![0; text.len()];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(back, text.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_its_time_gets_the_rules_in_force() {
    let more = [("denied", Some(tcp_listener(HTTP_INSPECTOR, DENY, ""))), ("gone", None)];
    for (what, change) in more {
        let (app, mut seen) = echo().await;
        let mut proxy = start(&tcp_listener(HTTP_INSPECTOR, "", ""), &cluster("a", &[app], "")).await;
        let mut slow = TcpStream::connect(proxy.addr()).await.unwrap();
        slow.write_all(b"G").await.unwrap();
        let label = [("listener_address", "127.0.0.1_0")];
        let active = || proxy.metric("envoy_listener_downstream_cx_active", &label);
        eventually("it is looked at", || active() == 1.0).await;
        match &change {
            Some(listener) => proxy.change::<Listener>(&[("l", listener)], &[]).await,
            None => proxy.change::<Listener>(&[], &["l"]).await,
        }
        slow.write_all(b"ET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(until_end(&mut slow).await, b"", "{what}");
        assert!(seen.try_recv().is_err(), "{what}: the application heard nothing of it");
    }
    // Who was in time, and is let in by the rules in force, gets through.
    let (app, _seen) = echo().await;
    let mut proxy = start(&tcp_listener(HTTP_INSPECTOR, DENY, ""), &cluster("a", &[app], "")).await;
    let mut slow = TcpStream::connect(proxy.addr()).await.unwrap();
    slow.write_all(b"G").await.unwrap();
    proxy.change::<Listener>(&[("l", &tcp_listener(HTTP_INSPECTOR, "", ""))], &[]).await;
    slow.write_all(b"E").await.unwrap();
    echoes_after(&mut slow, b"GE").await;
    // It is one of the new listener's: what changes then concerns it as well.
    proxy.change::<Listener>(&[("l", &tcp_listener(HTTP_INSPECTOR, DENY, ""))], &[]).await;
    assert_eq!(until_end(&mut slow).await, b"");
}

/// Sends the rest of something that an inspector can tell, and reads all of it back.
async fn echoes_after(stream: &mut TcpStream, before: &[u8]) {
    stream.write_all(b"HLO\r\n").await.unwrap();
    let all = [before, b"HLO\r\n"].concat();
    let mut back = vec![0; all.len()];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(back, all);
}

/// An HTTP proxy that tells of each CONNECT and answers when it is let.
async fn slow_connect() -> (SocketAddr, mpsc::UnboundedReceiver<()>, Arc<Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (told, asked) = mpsc::unbounded_channel();
    let answer = Arc::new(Notify::new());
    let go = answer.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (told, go) = (told.clone(), go.clone());
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = told.send(());
                go.notified().await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello").await;
                let _ = stream.read(&mut [0; 1024]).await;
            });
        }
    });
    (addr, asked, answer)
}

const THROUGH: &str = "tunneling_config: {hostname: 'target.example:443'}";

fn patient(addr: SocketAddr) -> String {
    cluster("a", &[addr], "").replace("connect_timeout: 20s", "connect_timeout: 600s")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_comes_while_an_endpoint_is_awaited() {
    let (addr, mut asked, answer) = slow_connect().await;
    let mut proxy = start(&tcp_listener("", "", THROUGH), &patient(addr)).await;
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    client.write_all(b"hi").await.unwrap();
    asked.recv().await.unwrap();
    proxy.change::<Listener>(&[("l", &tcp_listener("", DENY, THROUGH))], &[]).await;
    assert_eq!(until_end(&mut client).await, b"", "it does not wait for the endpoint's answer");
    answer.notify_waiters();
    eventually("nothing is left", || proxy.handle.active_connections() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_never_answers_and_a_client_that_leaves() {
    // The cluster's connect timeout bounds the CONNECT.
    let (addr, _asked, _answer) = slow_connect().await;
    let hasty = cluster("a", &[addr], "").replace("connect_timeout: 20s", "connect_timeout: 0.2s");
    let proxy = start(&tcp_listener("", "", THROUGH), &hasty).await;
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(until_end(&mut client).await, b"");
    assert_eq!(proxy.metric("envoy_cluster_upstream_cx_connect_timeout", &[("cluster_name", "a")]), 1.0);

    let (addr, mut asked, _answer) = slow_connect().await;
    let proxy = start(&tcp_listener("", "", THROUGH), &patient(addr)).await;
    let client = TcpStream::connect(proxy.addr()).await.unwrap();
    asked.recv().await.unwrap();
    client.set_zero_linger().unwrap();
    drop(client);
    eventually("a broken connection ends", || proxy.handle.active_connections() == 0).await;

    // A client that merely has nothing more to say still gets its answer.
    let (addr, mut asked, answer) = slow_connect().await;
    let proxy = start(&tcp_listener("", "", THROUGH), &patient(addr)).await;
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    client.shutdown().await.unwrap();
    asked.recv().await.unwrap();
    answer.notify_one();
    assert_eq!(until_end(&mut client).await, b"hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_comes_while_an_authorizer_is_asked() {
    let (app, mut seen) = echo().await;
    let (authorizer, mut asked, go) = slow(assent).await;
    let ask = r#"{name: e, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.ext_authz.v3.ExtAuthz, stat_prefix: e, transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: authz}, timeout: 60s}}},"#;
    let clusters = cluster("a", &[app], "") + &cluster("authz", &[authorizer.addr], HTTP2);
    let mut proxy = start(&tcp_listener("", ask, ""), &clusters).await;
    let mut first = TcpStream::connect(proxy.addr()).await.unwrap();
    asked.recv().await.unwrap();
    go.notify_one();
    echoes(&mut first, "let in").await;
    seen.recv().await.unwrap();
    let mut second = TcpStream::connect(proxy.addr()).await.unwrap();
    second.write_all(b"secret").await.unwrap();
    asked.recv().await.unwrap();
    proxy.change::<Listener>(&[("l", &tcp_listener("", &format!("{DENY} {ask}"), ""))], &[]).await;
    go.notify_one();
    assert_eq!(until_end(&mut second).await, b"");
    assert_eq!(until_end(&mut first).await, b"");
    assert!(seen.try_recv().is_err(), "the application heard nothing of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn denials_are_logged_with_their_policy() {
    let (app, _seen) = echo().await;
    let file = std::env::temp_dir().join(format!("weft-denied-{}.log", std::process::id()));
    let _ = std::fs::remove_file(&file);
    let log = format!(
        r#"access_log: [{{name: f, typed_config: {{"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: "{}", log_format: {{text_format_source: {{inline_string: "%RESPONSE_FLAGS% %CONNECTION_TERMINATION_DETAILS% %BYTES_SENT%\n"}}}}}}}}]"#,
        file.display()
    );
    let mut proxy = start(&tcp_listener("", "", &log), &cluster("a", &[app], "")).await;
    let mut open = TcpStream::connect(proxy.addr()).await.unwrap();
    echoes(&mut open, "hello").await;
    proxy.change::<Listener>(&[("l", &tcp_listener("", DENY, &log))], &[]).await;
    until_end(&mut open).await;
    let lines = || std::fs::read_to_string(&file).unwrap_or_default();
    eventually("the end of an open connection is logged", || lines() == format!("- {DENIED} 5\n")).await;
    until_end(&mut TcpStream::connect(proxy.addr()).await.unwrap()).await;
    let both = format!("- {DENIED} 5\n- {DENIED} 0\n");
    eventually("a denial is logged", || lines() == both).await;
    std::fs::remove_file(file).unwrap();
}

/// Agrees to anything that asks to become a tunnel, and sends back what it gets then. Other requests get a response that never
/// ends.
async fn endless() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let upgrades = String::from_utf8_lossy(&head).to_lowercase().contains("upgrade: websocket");
                let answer: &[u8] = if upgrades {
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"
                } else {
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
                };
                let _ = stream.write_all(answer).await;
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    addr
}

/// An HTTP listener `l`; `chain` are more fields of its filter chain.
fn http_listener(chain: &str, network: &str, hcm: &str, filters: &str, route: &str) -> String {
    format!(
        r#"{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{{chain} filters: [{network} {{name: h, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: t, upgrade_configs: [{{upgrade_type: websocket}}], {hcm} route_config: {{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: "/"}}, route: {{cluster: a, timeout: 0s, {route}}}}}]}}]}}, http_filters: [{filters} {{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}"#
    )
}

async fn websocket(addr: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let ask = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).await.unwrap(), 1, "{}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    echoes(&mut stream, "hello").await;
    stream
}

fn deny_path(path: &str) -> String {
    format!(
        r#"{{name: r, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {{action: DENY, policies: {{p: {{permissions: [{{url_path: {{path: {{exact: "{path}"}}}}}}], principals: [{{any: true}}]}}}}}}}}}},"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_bind_open_tunnels() {
    let app = endless().await;
    let plain = http_listener("", "", "", "", "prefix_rewrite: /rewritten");
    for (what, denying) in [
        ("its request", http_listener("", "", "", &deny_path("/chat"), "prefix_rewrite: /rewritten")),
        ("its connection", http_listener("", DENY, "", "", "")),
    ] {
        let mut proxy = start(&plain, &cluster("a", &[app], "")).await;
        let mut tunnel = websocket(proxy.addr()).await;
        let dry = "shadow_rules: {action: DENY, policies: {s: {permissions: [{any: true}], principals: [{any: true}]}}}, rules:";
        let others = deny_path("/other").replacen("rules:", dry, 1);
        let other = http_listener("", ALLOW, "", &others, "prefix_rewrite: /rewritten");
        proxy.change::<Listener>(&[("l", &other)], &[]).await;
        echoes(&mut tunnel, "a policy for others").await;
        proxy.change::<Listener>(&[("l", &denying)], &[]).await;
        assert_eq!(until_end(&mut tunnel).await, b"", "{what} is denied");
        eventually("nothing is left", || proxy.handle.active_connections() == 0).await;
        // That it might stay is no request or connection let in; that it had to go is one refused.
        let count = |what: &str| proxy.metric(&format!("envoy_{what}"), &[]);
        let allowed = ["http_rbac_allowed", "http_rbac_shadow_denied", "tcp_rbac_allowed"].map(count);
        assert_eq!(allowed, [0.0; 3], "{what}");
        assert_eq!(count("http_rbac_denied") + count("tcp_rbac_denied"), 1.0, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_for_connections_bind_open_http_connections() {
    let app = Backend::echo("a").await;
    let mut proxy = start(&http_listener("", "", "", "", ""), &cluster("a", &[app.addr], "")).await;
    let mut idle = TcpStream::connect(proxy.addr()).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    idle.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    let mut h2 = http2(proxy.addr()).await;
    let ask = || http::Request::get("http://a/").body(Full::default()).unwrap();
    assert_eq!(h2.send_request(ask()).await.unwrap().status(), 200);
    proxy.change::<Listener>(&[("l", &http_listener("", DENY, "", "", ""))], &[]).await;
    until_end(&mut idle).await;
    assert!(h2.send_request(ask()).await.is_err());
    assert_eq!(app.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outlives_a_chain_that_is_gone_for_long() {
    let app = endless().await;
    let set = |options: &mut Options| options.retired_time = Duration::from_millis(300);
    let old = "http_protocol_options: {accept_http_10: true},";
    let mut proxy = start_with(&http_listener("", "", old, "", ""), &cluster("a", &[app], ""), set).await;
    let mut tunnel = websocket(proxy.addr()).await;
    let mut h1 = TcpStream::connect(proxy.addr()).await.unwrap();
    h1.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut h2 = http2(proxy.addr()).await;
    let response = h2.send_request(http::Request::get("http://a/").body(Full::default()).unwrap()).await.unwrap();
    let mut body = response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
    let mut h10 = TcpStream::connect(proxy.addr()).await.unwrap();
    h10.write_all(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"hello") {
        assert!(h10.read_buf(&mut head).await.unwrap() > 0);
    }
    eventually("four are open", || proxy.handle.active_connections() == 4).await;
    // The same chain for other connections is another chain.
    let other = http_listener("filter_chain_match: {transport_protocol: raw_buffer},", "", "", "", "");
    proxy.change::<Listener>(&[("l", &other)], &[]).await;
    until_end(&mut tunnel).await;
    let seen = until_end(&mut h1).await;
    assert!(!seen.ends_with(b"0\r\n\r\n"), "a response that is cut does not look whole");
    let end = tokio::time::timeout(PATIENCE, h10.read_to_end(&mut head)).await.expect("it ends");
    assert!(end.is_err(), "where the end of the connection is the response's end, it is broken: {end:?}");
    let rest = tokio::time::timeout(PATIENCE, body.collect()).await.expect("the stream ends");
    assert!(rest.is_err(), "a response that is cut does not look whole");
    eventually("nothing is left", || proxy.handle.active_connections() == 0).await;
    websocket(proxy.addr()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_have_a_longest_life() {
    let app = endless().await;
    // Long enough for the tunnel to be made in.
    let one = async |what: &str, hcm: &str, route: &str| {
        let proxy = start(&http_listener("", "", hcm, "", route), &cluster("a", &[app], "")).await;
        let mut tunnel = websocket(proxy.addr()).await;
        assert_eq!(until_end(&mut tunnel).await, b"", "{what}");
    };
    tokio::join!(
        one("of the stream", "", "max_stream_duration: {max_stream_duration: 4s}"),
        one("of the connection", "common_http_protocol_options: {max_connection_duration: 4s},", ""),
    );
}

/// Frames of HTTP/2 as (type, flags, payload), until the connection ends. Each PING is answered when `polite`.
async fn frames(stream: &mut TcpStream, polite: bool) -> Vec<(u8, u8, Vec<u8>)> {
    let mut all = Vec::new();
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return all;
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        if stream.read_exact(&mut payload).await.is_err() {
            return all;
        }
        if polite && (head[3], head[4]) == (6, 0) {
            let pong = [&[0, 0, 8, 6, 1, 0, 0, 0, 0], &payload[..]].concat();
            let _ = stream.write_all(&pong).await;
        }
        all.push((head[3], head[4], payload));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_http2_connections_end_in_order() {
    let app = Backend::echo("a").await;
    let hcm = "request_headers_timeout: 2s, common_http_protocol_options: {idle_timeout: 4s},";
    let proxy = start(&http_listener("", "", hcm, "", ""), &cluster("a", &[app.addr], "")).await;
    let one = async |polite: bool| {
        let began = Instant::now();
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        // The preface, SETTINGS, its acknowledgement, a PING: bytes that belong to no request.
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        stream.write_all(b"\0\0\0\x04\x01\0\0\0\0\0\0\x08\x06\0\0\0\0\0weft1234").await.unwrap();
        let seen = tokio::time::timeout(PATIENCE, frames(&mut stream, polite)).await.expect("it ends");
        assert!(seen.iter().any(|(kind, ..)| *kind == 7), "GOAWAY comes before the end: {seen:?}");
        assert!(began.elapsed() >= Duration::from_secs(4), "not before its idle time is over: {:?}", began.elapsed());
    };
    // Who does not heed it is cut.
    tokio::join!(one(true), one(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn chains_of_different_listeners_count_for_themselves() {
    let (app, _seen) = echo().await;
    let limit = r#"{name: c, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit, stat_prefix: l, max_connections: 1}},"#;
    let one = tcp_listener("", limit, "");
    let two = one.replacen("name: l", "name: m", 1).replacen("127.0.0.1", "127.0.0.2", 1);
    let proxy = start(&format!("{one}\n  - {two}"), &cluster("a", &[app], "")).await;
    let mut first = TcpStream::connect(proxy.addr()).await.unwrap();
    echoes(&mut first, "one").await;
    let mut second = TcpStream::connect(proxy.address("m")).await.unwrap();
    echoes(&mut second, "two").await;
    for listener in ["l", "m"] {
        let mut third = TcpStream::connect(proxy.address(listener)).await.unwrap();
        assert_eq!(until_end(&mut third).await, b"", "the limit of {listener} holds");
    }
}
