//! TCP inside HTTP and HTTP's other clothes: tunnels through an HTTP proxy, `CONNECT` that ends here, the PROXY protocol
//! towards endpoints, endpoints by server name, the gRPC-Web bridge.

#![allow(clippy::unwrap_used)]

mod common;
use common::*;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Takes one connection after another: tells what came first, then sends back what it gets.
async fn first_line() -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (told, seen) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let told = told.clone();
            tokio::spawn(async move {
                let mut first = Vec::with_capacity(16 << 10);
                let is_head = |first: &[u8]| first.starts_with(b"CONNECT ") || first.starts_with(b"POST ");
                let is_over = |first: &[u8]| !is_head(first) || first.windows(4).any(|part| part == b"\r\n\r\n");
                while stream.read_buf(&mut first).await.is_ok_and(|n| n > 0) && !is_over(&first) {}
                let text = String::from_utf8_lossy(&first).into_owned();
                let answer = match text.split(' ').next() {
                    Some("CONNECT") => "HTTP/1.1 200 OK\r\n\r\n".to_string(),
                    Some("POST") => {
                        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".into()
                    }
                    _ => text.clone(),
                };
                let _ = told.send(text);
                let _ = stream.write_all(answer.as_bytes()).await;
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    (addr, seen)
}

fn tcp_listener(filters: &str, tcp: &str, clusters: &str) -> String {
    format!(
        r#"static_resources:
  listeners:
  - {{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, listener_filters: [{{name: tls, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}}}], listener_filters_timeout: 60s, continue_on_listener_filters_timeout: true, filter_chains: [{{filters: [{filters} {{name: envoy.filters.network.tcp_proxy, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: a, {tcp}}}}}]}}]}}
  clusters:
{clusters}"#
    )
}

async fn read(stream: &mut TcpStream, n: usize) -> String {
    let mut buffer = vec![0; n];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut buffer)).await.unwrap().unwrap();
    String::from_utf8(buffer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn through_an_http_proxy() {
    for (post, first) in [(false, "CONNECT target.example:443 HTTP/1.1\r\n"), (true, "POST / HTTP/1.1\r\n")] {
        let (addr, mut seen) = first_line().await;
        let tcp = format!("tunneling_config: {{hostname: 'target.example:443', use_post: {post}}}");
        let proxy = Proxy::start(&tcp_listener("", &tcp, &cluster("a", &[addr], ""))).await;
        let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
        client.write_all(b"hello").await.unwrap();
        assert_eq!(read(&mut client, 5).await, "hello", "post: {post}");
        let asked = seen.recv().await.unwrap();
        assert!(asked.starts_with(first) && asked.contains("host: target.example:443"), "{asked}");
    }
}

/// The proxy is one of ours: it ends `CONNECT` and goes on as TCP.
#[tokio::test(flavor = "multi_thread")]
async fn connect_that_ends_here() {
    for http2 in [false, true] {
        let (addr, mut seen) = first_line().await;
        let routes = all(
            r#"[{match: {connect_matcher: {}}, route: {cluster: a, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}}]"#,
        );
        let far = Proxy::start(&http_bootstrap(
            "http2_protocol_options: {allow_connect: true}, upgrade_configs: [{upgrade_type: CONNECT}],",
            &routes,
            &[("a", addr, "")],
        ))
        .await;
        let options = if http2 { HTTP2 } else { "" };
        let tcp = "tunneling_config: {hostname: 'target.example:443'}";
        let near = Proxy::start(&tcp_listener("", tcp, &cluster("a", &[far.addr()], options))).await;
        let mut client = TcpStream::connect(near.addr()).await.unwrap();
        client.write_all(b"ping").await.unwrap();
        assert_eq!(read(&mut client, 4).await, "ping", "http2: {http2}");
        client.write_all(b"more").await.unwrap();
        assert_eq!(read(&mut client, 4).await, "more");
        assert_eq!(seen.recv().await.unwrap(), "ping");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_are_told_who_the_client_is() {
    let socket = |version: &str| {
        format!(
            r#"transport_socket: {{name: p, typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport, config: {{version: {version}}}, transport_socket: {{name: envoy.transport_sockets.raw_buffer, typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}}}}},"#
        )
    };
    let (addr, mut seen) = first_line().await;
    let proxy = Proxy::start(&tcp_listener("", "", &cluster("a", &[addr], &socket("V1")))).await;
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    client.write_all(b"x").await.unwrap();
    let own = client.local_addr().unwrap();
    let first = seen.recv().await.unwrap();
    let line = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", own.port(), proxy.addr().port());
    assert!(first.starts_with(&line), "{first:?}, not {line:?}");

    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a, timeout: 0.3s}}]"#);
    let (addr, mut seen) = first_line().await;
    let proxy = Proxy::start(&http_bootstrap("", &routes, &[("a", addr, &socket("V2"))])).await;
    get(proxy.addr(), "/").await;
    let first = seen.recv().await.unwrap();
    assert!(first.starts_with("\r\n\r\n\0\r\nQUIT\n"), "{first:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_by_server_name() {
    let (addr, mut seen) = first_line().await;
    let filter = format!(
        r#"{{name: s, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig, dns_cache_config: {{name: c}}, port_value: {}}}}},"#,
        addr.port()
    );
    let clusters = "  - {name: a, lb_policy: CLUSTER_PROVIDED, connect_timeout: 20s, cluster_type: {name: envoy.clusters.dynamic_forward_proxy, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, dns_cache_config: {name: c, dns_lookup_family: V4_ONLY}}}}\n";
    let proxy = Proxy::start(&tcp_listener(&filter, "", clusters)).await;
    let roots = weft_tls::TrustAnchors::from_pem(Pki::new().root().as_bytes()).unwrap();
    let verification = weft_tls::ServerVerification::WebPki { anchors: roots, san: None };
    let params = weft_tls::ClientParams { sni: Some("localhost".into()), ..weft_tls::ClientParams::new(verification) };
    let context = weft_tls::ClientContext::build(params).unwrap();
    let stream = TcpStream::connect(proxy.addr()).await.unwrap();
    // Nobody at the other end speaks TLS: what counts is where the first flight arrives.
    let handshake = tokio::spawn(async move { context.connect(stream).await.is_ok() });
    let first = tokio::time::timeout(PATIENCE, seen.recv()).await.unwrap().unwrap();
    assert!(first.contains("localhost"), "the client's first flight");
    assert!(!handshake.await.unwrap());
}

/// Two names at one address share no connection: it was made, and its certificate checked, for one of them.
#[tokio::test(flavor = "multi_thread")]
async fn endpoints_by_host() {
    let backend = Backend::echo("a").await;
    let port = backend.addr.port();
    let filter = r#"http_filters: [{name: d, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig, dns_cache_config: {name: c, dns_lookup_family: V4_ONLY}}},"#;
    let clusters = "  - {name: a, lb_policy: CLUSTER_PROVIDED, connect_timeout: 20s, cluster_type: {name: envoy.clusters.dynamic_forward_proxy, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, dns_cache_config: {name: c, dns_lookup_family: V4_ONLY}}}}\n";
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#);
    let file = http_bootstrap_raw("", &routes, clusters).replace("http_filters: [", filter);
    let proxy = Proxy::start_with(&file, |options| options.concurrency = std::num::NonZeroUsize::MIN).await;
    let ask = async |name: &str| {
        let host = format!("{name}:{port}");
        let got = get_with(proxy.addr(), "/", &[("host", host.as_str())]).await;
        assert_eq!((got.status, got.seen("host")), (200, Some(host.as_str())), "{}", got.body);
        backend.connections.load(std::sync::atomic::Ordering::SeqCst)
    };
    assert_eq!(ask("localhost").await, 1);
    assert_eq!(ask("localhost").await, 1);
    assert_eq!(ask("127.0.0.1").await, 2);
    assert_eq!(ask("127.0.0.1").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_speak_to_grpc_services() {
    use http_body_util::{BodyExt, Full};
    let backend = Backend::start(|request| async move {
        let kind = request.headers()["content-type"].to_str().unwrap().to_string();
        let te = request.headers()["te"].to_str().unwrap().to_string();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut response = http::Response::new(Full::from(format!("{kind} {te} {}", String::from_utf8_lossy(&body))));
        response.headers_mut().insert("content-type", "application/grpc+proto".parse().unwrap());
        response
    })
    .await;
    let filter = r#"http_filters: [{name: envoy.filters.http.grpc_web, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb}},"#;
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#);
    let file = http_bootstrap("", &routes, &[("a", backend.addr, "")]).replace("http_filters: [", filter);
    let proxy = Proxy::start(&file).await;
    for (kind, accept, sent, back, body) in [
        (
            "application/grpc-web+proto",
            "*/*",
            "hello",
            "application/grpc-web+proto",
            "application/grpc+proto trailers hello",
        ),
        (
            "application/grpc-web-text",
            "*/*",
            "aGVsbG8=",
            "application/grpc-web+proto",
            "application/grpc trailers hello",
        ),
        (
            "application/grpc-web",
            "application/grpc-web-text",
            "x",
            "application/grpc-web-text+proto",
            "YXBwbGljYXRpb24vZ3JwYyB0cmFpbGVycyB4",
        ),
    ] {
        let got = send(proxy.addr(), request("POST", "/", &[("content-type", kind), ("accept", accept)], sent)).await;
        assert_eq!((got.status, got.header("content-type"), got.body.as_str()), (200, back, body), "{kind}");
    }
    // An answer of the proxy's own is in the client's words too.
    backend.stop().await;
    let got = send(proxy.addr(), request("POST", "/", &[("content-type", "application/grpc-web")], "x")).await;
    assert_eq!((got.status, got.header("content-type")), (200, "application/grpc-web+proto"));
    assert_eq!(got.header("grpc-status"), "14");
}
