//! Which filter chain a connection gets: by first bytes, by SNI, by PROXY header; and protocols in which the server speaks
//! first.

#![allow(clippy::unwrap_used)]

mod common;
use common::*;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Greets, then sends back what it gets.
async fn greeter(greeting: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(greeting.as_bytes()).await;
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    addr
}

fn tcp_chain(matcher: &str, cluster: &str) -> String {
    format!(
        r#"{{filter_chain_match: {{{matcher}}}, filters: [{{name: envoy.filters.network.tcp_proxy, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: {cluster}}}}}]}}"#
    )
}

fn http_chain(matcher: &str, cluster: &str) -> String {
    format!(
        r#"{{filter_chain_match: {{{matcher}}}, filters: [{{name: envoy.filters.network.http_connection_manager, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: h, use_remote_address: true, route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: "/"}}, route: {{cluster: {cluster}}}}}]}}]}}, http_filters: [{{name: envoy.filters.http.router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}"#
    )
}

fn inspectors(names: &[&str]) -> String {
    let one = |name: &&str| {
        let kind = name.split('_').map(|w| w[..1].to_uppercase() + &w[1..]).collect::<String>();
        format!(
            r#"{{name: envoy.filters.listener.{name}, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.{name}.v3.{kind}}}}}"#
        )
    };
    names.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Longer than any test: what is decided was decided by what came, not because nothing more did.
const LONG: &str = "60s";

fn bootstrap(filters: &[&str], chains: &[String], clusters: &[(&str, SocketAddr)], limit: &str) -> String {
    let clusters: String = clusters.iter().map(|(name, addr)| cluster(name, &[*addr], "")).collect();
    format!(
        "static_resources:\n  listeners:\n  - {{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, listener_filters: [{}], listener_filters_timeout: {limit}, continue_on_listener_filters_timeout: true, filter_chains: [{}]}}\n  clusters:\n{clusters}",
        inspectors(filters),
        chains.join(", ")
    )
}

async fn read_some(stream: &mut TcpStream, length: usize) -> String {
    let mut buffer = vec![0; length];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut buffer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&buffer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn http_is_told_from_other_protocols() {
    let (app, raw_app) = (Backend::echo("web").await, greeter("220 hello\r\n").await);
    let chains = [
        http_chain(r#"transport_protocol: raw_buffer, application_protocols: ["http/1.1", "h2c"]"#, "web"),
        tcp_chain("transport_protocol: raw_buffer", "raw"),
    ];
    let clusters = [("web", app.addr), ("raw", raw_app)];
    let config = |limit| bootstrap(&["tls_inspector", "http_inspector"], &chains, &clusters, limit);
    let proxy = Proxy::start(&config(LONG)).await;
    assert_eq!(get(proxy.addr(), "/x").await.backend(), "web");
    let mut client = http2(proxy.addr()).await;
    let request = http::Request::get("http://a.example/").body(Default::default()).unwrap();
    assert_eq!(read(client.send_request(request).await.unwrap()).await.unwrap().backend(), "web");
    // A request that comes in pieces is still HTTP.
    let mut slow = TcpStream::connect(proxy.addr()).await.unwrap();
    for part in ["GE", "T / HT", "TP/1.1\r\nHo", "st: a\r\n\r\n"] {
        slow.write_all(part.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(read_some(&mut slow, 12).await, "HTTP/1.1 200");
    // Something else goes to the other chain at once, and byte by byte as it was sent.
    let mut other = TcpStream::connect(proxy.addr()).await.unwrap();
    other.write_all(b"EHLO me\r\n").await.unwrap();
    let said = "220 hello\r\nEHLO me\r\n";
    assert_eq!(read_some(&mut other, said.len()).await, said);
    // A client that waits for the server to speak waits no longer than the limit.
    let proxy = Proxy::start(&config("0.3s")).await;
    let mut quiet = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(read_some(&mut quiet, 11).await, "220 hello\r\n");
}

/// A ClientHello for a server name: enough of one to be told apart.
fn client_hello(name: &str) -> Vec<u8> {
    let mut sni = vec![0, 0];
    sni.extend((name.len() as u16 + 5).to_be_bytes());
    sni.extend((name.len() as u16 + 3).to_be_bytes());
    sni.push(0);
    sni.extend((name.len() as u16).to_be_bytes());
    sni.extend(name.as_bytes());
    // supported_versions, supported_groups, signature_algorithms, key_share: what a TLS library wants to see.
    sni.extend([0, 43, 0, 3, 2, 3, 4, 0, 10, 0, 4, 0, 2, 0, 29, 0, 13, 0, 4, 0, 2, 4, 3]);
    sni.extend([0, 51, 0, 38, 0, 36, 0, 29, 0, 32]);
    sni.extend([9; 32]);
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend((sni.len() as u16).to_be_bytes());
    body.extend(sni);
    let mut message = vec![1, 0];
    message.extend((body.len() as u16).to_be_bytes());
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend((message.len() as u16).to_be_bytes());
    record.extend(message);
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_passes_through_by_server_name() {
    let (one, two) = (greeter("one").await, greeter("two").await);
    let chains =
        [tcp_chain(r#"server_names: ["one.example"]"#, "one"), tcp_chain(r#"server_names: ["*.two.example"]"#, "two")];
    let config = bootstrap(&["tls_inspector"], &chains, &[("one", one), ("two", two)], LONG);
    let proxy = Proxy::start(&config).await;
    for (name, want) in [
        ("one.example", Some("one")),
        ("ONE.example", Some("one")),
        ("a.two.example", Some("two")),
        ("three.example", None),
    ] {
        let hello = client_hello(name);
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        let (first, rest) = hello.split_at(40);
        stream.write_all(first).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        stream.write_all(rest).await.unwrap();
        let mut got = Vec::new();
        let enough = want.map_or(1, |w| w.len() + hello.len());
        while got.len() < enough {
            let mut buffer = [0; 1024];
            match tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap() {
                Ok(n) if n > 0 => got.extend_from_slice(&buffer[..n]),
                _ => break,
            }
        }
        match want {
            Some(want) => assert_eq!(got, [want.as_bytes(), &hello].concat(), "{name}"),
            None => assert_eq!(got, b"", "{name}: no chain, no bytes"),
        }
    }
    assert_eq!(proxy.metric("envoy_listener_no_filter_chain_match", &[]), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_headers_say_who_asks() {
    let app = Backend::echo("web").await;
    let config = bootstrap(&["proxy_protocol"], &[http_chain("", "web")], &[("web", app.addr)], LONG);
    let proxy = Proxy::start(&config).await;
    let answer = raw(proxy.addr(), b"PROXY TCP4 9.8.7.6 5.4.3.2 1000 80\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(answer.contains("x-forwarded-for: 9.8.7.6\n"), "{answer}");
    // Without it, or with nonsense in it, nobody is served.
    for bytes in [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], b"PROXY TCP4 x y 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"]
    {
        assert_eq!(raw(proxy.addr(), bytes).await, "");
    }
    assert_eq!(app.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_hello_that_is_too_long_is_not_plain_text() {
    let app = greeter("").await;
    let chains = [tcp_chain("transport_protocol: raw_buffer", "raw")];
    let proxy = Proxy::start(&bootstrap(&["tls_inspector"], &chains, &[("raw", app)], LONG)).await;
    // A ClientHello of 60000 bytes, in records of 8192.
    let mut hello = Vec::new();
    for n in 0..8 {
        hello.extend([0x16, 3, 1, 0x20, 0]);
        let mut record = vec![0; 8192];
        if n == 0 {
            record[..4].copy_from_slice(&[1, 0, 0xea, 0x60]);
        }
        hello.extend(record);
    }
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    // It may be closed before all of it is there.
    let _ = stream.write_all(&hello).await;
    let mut back = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut back)).await.expect("it is closed");
    assert_eq!(back, b"", "the application heard nothing of it");
    assert_eq!(proxy.metric("envoy_tls_inspector_client_hello_too_large", &[]), 1.0);
}
