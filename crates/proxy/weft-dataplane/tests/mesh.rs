//! A pair of proxies with mutual TLS between them, as in a mesh: identities, `x-forwarded-client-cert`, authorization,
//! the standard metrics, TCP.

#![allow(clippy::unwrap_used)]

mod common;
use common::*;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_proto::weft::v1::PeerMetadata;

const FORWARD: &str = r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#;

fn telemetry(reporter: &str) -> String {
    format!(
        r#"{{name: weft.telemetry, typed_config: {{"@type": type.googleapis.com/weft.v1.Telemetry, reporter: {reporter}}}}}"#
    )
}

/// The server's side: mutual TLS, `x-forwarded-client-cert`, GET by `client` only, metrics.
fn server_config(pki: &Pki, backend: SocketAddr) -> String {
    let rbac = r#"{name: envoy.filters.http.rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: ALLOW, policies: {"ns[default]-policy[p]-rule[0]": {permissions: [{header: {name: ":method", string_match: {exact: GET}}}], principals: [{authenticated: {principal_name: {exact: "spiffe://cluster.local/ns/default/sa/client"}}}]}}}}}"#;
    let hcm = "forward_client_cert_details: APPEND_FORWARD, set_current_client_cert_details: {subject: true, uri: true, dns: true},";
    let listener = listener("l", hcm, &all(FORWARD), &pki.server("server", "istio-peer-exchange, h2, http/1.1"))
        .replace("http_filters: [", &format!("http_filters: [{rbac}, {}, ", telemetry("DESTINATION")));
    bootstrap(&listener, &cluster("a", &[backend], ""))
}

fn client_config(pki: &Pki, server: SocketAddr, expected: &str, sa: &str) -> String {
    let listener = listener("l", "", &all(FORWARD), "")
        .replace("http_filters: [", &format!("http_filters: [{}, ", telemetry("SOURCE")));
    bootstrap(&listener, &cluster("a", &[server], &pki.client(sa, expected, "istio-peer-exchange, istio")))
}

fn bootstrap(listener: &str, clusters: &str) -> String {
    format!("static_resources:\n  listeners:\n  - {}\n  clusters:\n{clusters}", listener.replace('\n', "\n    "))
}

fn workload(name: &str) -> weft_dataplane::LocalWorkload {
    let metadata = PeerMetadata {
        name: format!("{name}-v1-abc"),
        workload_name: format!("{name}-v1"),
        namespace: "default".into(),
        canonical_service: name.into(),
        canonical_revision: "v1".into(),
        app: name.into(),
        ..PeerMetadata::default()
    };
    weft_dataplane::LocalWorkload {
        metadata,
        node_id: format!("sidecar~10.0.0.1~{name}.default~default.svc.cluster.local"),
        node_cluster: format!("{name}.default"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_authorization_and_metrics() {
    let pki = Pki::new();
    let backend = Backend::echo("app").await;
    let server = Proxy::start_with(&server_config(&pki, backend.addr), |o| o.local = workload("reviews")).await;
    let client = Proxy::start_with(&client_config(&pki, server.addr(), "server", "client"), |o| {
        o.local = workload("productpage")
    })
    .await;
    let got = get_with(client.addr(), "/x", &[("x-envoy-peer-metadata", "forged")]).await;
    assert_eq!((got.status, got.backend()), (200, "app"), "{}", got.body);
    let xfcc = got.seen("x-forwarded-client-cert").unwrap();
    let parts: Vec<&str> = xfcc.split(';').collect();
    assert_eq!(parts[0], "By=spiffe://cluster.local/ns/default/sa/server");
    assert!(parts[1].starts_with("Hash=") && parts[1].len() == 5 + 64, "{xfcc}");
    assert!(parts[2].starts_with("Subject=\""), "{xfcc}");
    assert_eq!(parts[3], "URI=spiffe://cluster.local/ns/default/sa/client");
    assert_eq!(got.seen("x-forwarded-proto"), Some("http"), "as the first proxy saw it");
    for hidden in ["x-envoy-peer-metadata", "x-envoy-peer-metadata-id"] {
        assert_eq!(got.seen(hidden), None, "the application does not see {hidden}");
        assert_eq!(got.header(hidden), "", "nor does the client see {hidden}");
    }
    let got = send(client.addr(), request("POST", "/x", &[], "hello")).await;
    assert_eq!((got.status, got.body.as_str()), (403, "RBAC: access denied"));
    assert_eq!(backend.count(), 1);
    let seen = [
        ("source_workload", "productpage-v1"),
        ("destination_workload", "reviews-v1"),
        ("source_principal", "cluster.local/ns/default/sa/client"),
        ("destination_principal", "cluster.local/ns/default/sa/server"),
    ];
    for (proxy, reporter, security) in [(&client, "source", "unknown"), (&server, "destination", "mutual_tls")] {
        for code in ["200", "403"] {
            let mut labels =
                vec![("reporter", reporter), ("connection_security_policy", security), ("response_code", code)];
            if code == "200" {
                labels.extend(seen);
            }
            eventually(&format!("{reporter} {code}"), || proxy.metric("istio_requests_total", &labels) == 1.0).await;
        }
        assert_eq!(proxy.metric("istio_request_duration_milliseconds", &[("reporter", reporter)]), 2.0);
    }
}

/// Who the caller is is told to proxies of the mesh alone, not to every server that TLS is spoken with.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_outside_the_mesh_is_not_told_who_calls() {
    let pki = Pki::new();
    let backend = Backend::echo("app").await;
    // No filter of theirs takes the headers away before the application.
    for (socket, told) in [(pki.server("server", "http/1.1"), true), (pki.outside("server.example"), false)] {
        let config = bootstrap(&listener("l", "", &all(FORWARD), &socket), &cluster("a", &[backend.addr], ""));
        let server = Proxy::start(&config).await;
        let config = match told {
            true => client_config(&pki, server.addr(), "server", "client"),
            false => client_config(&pki, server.addr(), "server", "client").replace(
                "san_type: URI, matcher: {exact: \"spiffe://cluster.local/ns/default/sa/server\"}",
                "san_type: DNS, matcher: {exact: server.example}",
            ),
        };
        let client = Proxy::start_with(&config, |o| o.local = workload("productpage")).await;
        let got = get_with(client.addr(), "/x", &[]).await;
        assert_eq!((got.status, got.backend()), (200, "app"), "{}", got.body);
        for header in ["x-envoy-peer-metadata", "x-envoy-peer-metadata-id"] {
            assert_eq!(got.seen(header).is_some(), told, "{header}: {}", got.body);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_peer_is_refused() {
    let (pki, other) = (Pki::new(), Pki::new());
    let backend = Backend::echo("app").await;
    let server = Proxy::start(&server_config(&pki, backend.addr)).await;
    for (what, config, status) in [
        ("another server's name", client_config(&pki, server.addr(), "somebody", "client"), 503),
        ("another mesh's roots", client_config(&other, server.addr(), "server", "client"), 503),
        ("a client that is not allowed", client_config(&pki, server.addr(), "server", "stranger"), 403),
    ] {
        let client = Proxy::start(&config).await;
        let got = get(client.addr(), "/x").await;
        assert_eq!(got.status, status, "{what}: {}", got.body);
        if status == 503 {
            assert!(got.body.contains("transport failure reason: TLS_error"), "{what}: {}", got.body);
        }
    }
    // Plain text to a port that wants TLS is closed without an answer.
    assert_eq!(raw(server.addr(), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.find("200 OK"), None);
    assert_eq!(backend.count(), 0);
}

async fn tcp_echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // The server speaks first.
                let _ = stream.write_all(b"hello ").await;
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
            });
        }
    });
    addr
}

fn tcp_listener(transport: &str, filters: &str) -> String {
    format!(
        r#"name: l
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
filter_chains:
- {transport}
  filters: [{filters} {{name: envoy.filters.network.tcp_proxy, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: a}}}}]"#
    )
    .replace("- \n  filters", "- filters")
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_through_a_pair() {
    let pki = Pki::new();
    let app = tcp_echo().await;
    let rbac = r#"{name: envoy.filters.network.rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: t, rules: {action: ALLOW, policies: {p: {permissions: [{any: true}], principals: [{authenticated: {principal_name: {exact: "spiffe://cluster.local/ns/default/sa/client"}}}]}}}}},"#;
    let server = Proxy::start(&bootstrap(
        &tcp_listener(&pki.server("server", "istio-peer-exchange, istio"), rbac),
        &cluster("a", &[app], ""),
    ))
    .await;
    let upstream = pki.client("client", "server", "istio-peer-exchange, istio");
    let client = Proxy::start(&bootstrap(&tcp_listener("", ""), &cluster("a", &[server.addr()], &upstream))).await;
    let mut stream = TcpStream::connect(client.addr()).await.unwrap();
    let mut first = [0; 6];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut first)).await.unwrap().unwrap();
    assert_eq!(&first, b"hello ");
    let sent = vec![b'z'; 1_000_000];
    let (mut reader, mut writer) = stream.split();
    let write = async {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let (read, ()) = tokio::join!(reader.read_to_end(&mut back), write);
    read.unwrap();
    assert_eq!(back.len(), sent.len(), "half-close passes, and nothing is lost");
    eventually("the connection ended", || client.handle.active_connections() == 0).await;
    assert!(client.metric("envoy_tcp_downstream_cx_rx_bytes_total", &[]) >= 1_000_000.0);

    // A client without the right identity gets nothing.
    let upstream = pki.client("stranger", "server", "istio-peer-exchange, istio");
    let stranger = Proxy::start(&bootstrap(&tcp_listener("", ""), &cluster("a", &[server.addr()], &upstream))).await;
    let mut stream = TcpStream::connect(stranger.addr()).await.unwrap();
    let mut got = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_without_dropping_connections() {
    let pki = Pki::new();
    let backend = Backend::echo("app").await;
    let mut server = Proxy::start(&server_config(&pki, backend.addr)).await;
    let mut client = Proxy::start(&client_config(&pki, server.addr(), "server", "client")).await;
    let addr = client.addr();
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (seen, count) = (stop.clone(), answered.clone());
    let load = tokio::spawn(async move {
        while !seen.load(Ordering::SeqCst) {
            let got = get(addr, "/x").await;
            assert_eq!(got.status, 200, "{}", got.body);
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    for _ in 0..5 {
        let server_listener = yaml_listener(&server_config(&pki, backend.addr));
        server.change::<weft_proto::envoy::config::listener::v3::Listener>(&[("l", &server_listener)], &[]).await;
        let upstream = cluster("a", &[server.addr()], &pki.client("client", "server", "istio-peer-exchange, istio"));
        let upstream = upstream.trim().trim_start_matches("- ");
        client.change::<weft_proto::envoy::config::cluster::v3::Cluster>(&[("a", upstream)], &[]).await;
        let wanted = answered.load(Ordering::SeqCst) + 3;
        eventually("answers", || load.is_finished() || answered.load(Ordering::SeqCst) >= wanted).await;
    }
    stop.store(true, Ordering::SeqCst);
    load.await.unwrap();
    assert!(answered.load(Ordering::SeqCst) > 10);
}

/// The listener of a bootstrap, as YAML of its own.
fn yaml_listener(bootstrap: &str) -> String {
    let start = bootstrap.find("  - ").unwrap() + 4;
    let end = bootstrap.find("\n  clusters:").unwrap();
    bootstrap[start..end].replace("\n    ", "\n")
}

/// The first certificate in a transport socket's text, DER.
fn shown_by(transport: &str) -> Vec<u8> {
    use base64::Engine as _;
    let text = transport.split("certificate_chain: {inline_string: ").nth(1).unwrap();
    let pem: String = serde_json::Deserializer::from_str(text).into_iter().next().unwrap().unwrap();
    let lines: String = pem.lines().skip(1).take_while(|line| !line.starts_with("-----")).collect();
    base64::engine::general_purpose::STANDARD.decode(lines).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_certificates_alone_are_let_in() {
    let pki = Pki::new();
    let backend = Backend::echo("app").await;
    let transport = pki.client("client", "server", "http/1.1");
    let hash: String = weft_tls::sha256(&shown_by(&transport)).iter().map(|b| format!("{b:02X}")).collect();
    for (pins, status) in [
        (format!("verify_certificate_hash: [\"{}\", \"{hash}\"]", "00".repeat(32)), 200),
        (format!("verify_certificate_hash: [\"{}\"]", "00".repeat(32)), 503),
        // SHA-256 of something else, in base64.
        ("verify_certificate_spki: [\"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\"]".to_string(), 503),
    ] {
        let server = pki
            .server("server", "http/1.1")
            .replace("validation_context: {", &format!("validation_context: {{{pins}, "));
        let server =
            Proxy::start(&bootstrap(&listener("l", "", &all(FORWARD), &server), &cluster("a", &[backend.addr], "")))
                .await;
        let clusters = cluster("a", &[server.addr()], &transport);
        let client = Proxy::start(&bootstrap(&listener("l", "", &all(FORWARD), ""), &clusters)).await;
        assert_eq!(get(client.addr(), "/").await.status, status, "{pins}");
    }
}
