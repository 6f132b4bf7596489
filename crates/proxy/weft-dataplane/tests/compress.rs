//! Compression along a request: what clients and endpoints say on several lines, and what is no body.

#![allow(clippy::unwrap_used)]

mod common;
use common::*;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const COMPRESSOR: &str = r#"http_filters: [{name: c, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.compressor.v3.Compressor, compressor_library: {name: g, typed_config: {"@type": type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip}}}},"#;

async fn compressing(hcm: &str, routes: &str, endpoint: SocketAddr, extra: &str) -> Proxy {
    let yaml = http_bootstrap(hcm, &all(routes), &[("a", endpoint, extra)]);
    Proxy::start(&yaml.replace("http_filters: [", COMPRESSOR)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_on_several_lines() {
    let app = Backend::start(|_| async {
        let mut response = reply(200, &"text ".repeat(100));
        for name in ["Origin", "Cookie"] {
            response.headers_mut().append("vary", name.parse().unwrap());
        }
        response
    })
    .await;
    let proxy = compressing("", r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#, app.addr, "").await;
    let accept = [("accept-encoding", "identity;q=0.1"), ("accept-encoding", "gzip")];
    let got = get_with(proxy.addr(), "/", &accept).await;
    assert_eq!((got.status, got.header("content-encoding")), (200, "gzip"));
    assert_eq!(got.header("vary"), "Origin, Cookie, Accept-Encoding", "caches are told all of it");
}

/// Agrees to each `CONNECT`, and sends back what it gets.
async fn agreeing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut first = Vec::new();
                let is_head = |first: &[u8]| first.starts_with(b"CONNECT");
                while stream.read_buf(&mut first).await.is_ok_and(|n| n > 0)
                    && is_head(&first)
                    && !first.ends_with(b"\r\n\r\n")
                {}
                let answer = if is_head(&first) { b"HTTP/1.1 200 OK\r\n\r\n" } else { &first[..] };
                let _ = stream.write_all(answer).await;
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_is_no_body() {
    let connect = |config: &str| {
        format!(
            "[{{match: {{connect_matcher: {{}}}}, route: {{cluster: a, upgrade_configs: [{{upgrade_type: CONNECT{config}}}]}}}}]"
        )
    };
    let hcm = "http2_protocol_options: {allow_connect: true}, upgrade_configs: [{upgrade_type: CONNECT}],";
    let end = agreeing().await;
    let far = Proxy::start(&http_bootstrap(hcm, &all(&connect(", connect_config: {}")), &[("a", end, "")])).await;
    for (what, endpoint, extra) in [("HTTP/1.1", end, ""), ("HTTP/2", far.addr(), HTTP2)] {
        let near = compressing(hcm, &connect(""), endpoint, extra).await;
        let mut client = TcpStream::connect(near.addr()).await.unwrap();
        let ask = b"CONNECT target.example:443 HTTP/1.1\r\nHost: target.example:443\r\nAccept-Encoding: gzip\r\n\r\n";
        client.write_all(ask).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = tokio::time::timeout(PATIENCE, client.read_u8()).await.unwrap().unwrap();
            head.push(byte);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{what}: {head}");
        assert!(!head.contains("content-encoding") && !head.contains("vary"), "{what}: {head}");
        client.write_all(b"ping").await.unwrap();
        let mut back = [0; 4];
        tokio::time::timeout(PATIENCE, client.read_exact(&mut back)).await.unwrap().unwrap();
        assert_eq!(&back, b"ping", "{what}");
    }
}
