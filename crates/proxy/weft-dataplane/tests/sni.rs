//! Server names of TLS inside the mesh's TLS: `forward_downstream_sni` on the way out, `sni_verifier` on the way in.

#![allow(clippy::unwrap_used)]

mod common;
use common::*;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const INSPECTOR: &str = r#"listener_filters: [{name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}]
    listener_filters_timeout: 60s
    continue_on_listener_filters_timeout: true"#;
const FORWARD: &str = r#"{name: forward_downstream_sni, typed_config: {"@type": type.googleapis.com/io.istio.tcp.forward_downstream_sni.v1.Config}},"#;
const VERIFY: &str =
    r#"{name: sni_verifier, typed_config: {"@type": type.googleapis.com/io.istio.tcp.sni_verifier.v1.Config}},"#;

fn config(more: &str, filters: &str, transport: &str, cluster: &str) -> String {
    format!(
        r#"static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    {more}
    filter_chains: [{{filters: [{filters} {{name: envoy.filters.network.tcp_proxy, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: a}}}}]{transport}}}]
  clusters:
{cluster}"#
    )
}

/// Tells of each connection what came first.
async fn site() -> (SocketAddr, UnboundedReceiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (told, seen) = unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let told = told.clone();
            tokio::spawn(async move {
                // One record of TLS, in however many pieces it comes.
                let mut head = [0; 5];
                if stream.read_exact(&mut head).await.is_ok() {
                    let mut first = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
                    let _ = stream.read_exact(&mut first).await;
                    let _ = told.send(first);
                }
            });
        }
    });
    (addr, seen)
}

/// The two proxies, with or without the filter that makes the outer name the inner one.
async fn pair(site: SocketAddr, forward: &str) -> (Proxy, Proxy) {
    let pki = Pki::new();
    let transport = format!(", {}", pki.server("server", "istio"));
    let server = Proxy::start(&config("", VERIFY, &transport, &cluster("a", &[site], ""))).await;
    let upstream = pki.client("client", "server", "istio");
    let client = Proxy::start(&config(INSPECTOR, forward, "", &cluster("a", &[server.addr()], &upstream))).await;
    (server, client)
}

async fn hello(proxy: &Proxy, name: &str) {
    let roots = weft_tls::TrustAnchors::from_pem(Pki::new().root().as_bytes()).unwrap();
    let verification = weft_tls::ServerVerification::WebPki { anchors: roots, san: None };
    let params = weft_tls::ClientParams { sni: Some(name.into()), ..weft_tls::ClientParams::new(verification) };
    let context = weft_tls::ClientContext::build(params).unwrap();
    let stream = TcpStream::connect(proxy.addr()).await.unwrap();
    assert!(context.connect(stream).await.is_err(), "nobody at the other end speaks TLS");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_name_inside_and_outside() {
    let (site, mut seen) = site().await;
    let (server, client) = pair(site, FORWARD).await;
    hello(&client, "en.wikipedia.org").await;
    let first = tokio::time::timeout(PATIENCE, seen.recv()).await.unwrap().unwrap();
    assert!(first.windows(16).any(|part| part == b"en.wikipedia.org"), "the client's first flight, whole");
    assert_eq!(server.metric("envoy_sni_verifier_inner_sni_found", &[]), 1.0);
    assert_eq!(server.metric("envoy_sni_verifier_snis_do_not_match", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_names_and_no_tls_are_refused() {
    let (site, mut seen) = site().await;
    let (server, client) = pair(site, "").await;
    hello(&client, "en.wikipedia.org").await;
    eventually("names differ", || server.metric("envoy_sni_verifier_snis_do_not_match", &[]) == 1.0).await;
    let mut plain = TcpStream::connect(client.addr()).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(plain.read(&mut [0; 16]).await.unwrap_or(0), 0);
    eventually("no TLS", || server.metric("envoy_sni_verifier_inner_sni_not_found", &[]) == 1.0).await;
    assert!(seen.try_recv().is_err(), "the site heard nothing of it");
}
