//! The data path of the real program, byte by byte: routes, retries, timeouts, upgrades, and requests that must be refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use support::{PATIENCE, eventually, free_port, http};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

const CONFIG: &str = r#"
static_resources:
  listeners:
  - name: front
    address: {socket_address: {address: 127.0.0.1, port_value: @PORT@}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          normalize_path: true
          use_remote_address: true
          upgrade_configs: [{upgrade_type: websocket}]
          route_config:
            name: r
            virtual_hosts:
            - name: only
              domains: ['known.example', 'known.example:*', 'localhost']
              request_headers_to_add: [{header: {key: x-added, value: added}}]
              routes:
              - {match: {path: /exact}, direct_response: {status: 201, body: {inline_string: exact}}}
              - {match: {prefix: /moved}, redirect: {host_redirect: new.example, path_redirect: /there}}
              - match: {prefix: /by-header, headers: [{name: user, string_match: {exact: jason}}]}
                direct_response: {status: 200, body: {inline_string: jason}}
              - {match: {prefix: /by-header}, direct_response: {status: 200, body: {inline_string: everyone}}}
              - {match: {prefix: /rewrite/}, route: {cluster: up, prefix_rewrite: /rewritten/}}
              - {match: {prefix: /slow}, route: {cluster: up, timeout: 0.3s}}
              - match: {prefix: /flaky}
                route: {cluster: up, retry_policy: {retry_on: 5xx, num_retries: 2}}
              - {match: {prefix: /nowhere}, route: {cluster: no-such-cluster}}
              - {match: {prefix: /dead}, route: {cluster: dead}}
              - {match: {prefix: /up}, route: {cluster: up}}
              - {match: {prefix: /public}, route: {cluster: up}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  - name: tcp
    address: {socket_address: {address: 127.0.0.1, port_value: @TCP@}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tcp
          cluster: echo
  clusters:
  - {name: up, type: STATIC, load_assignment: {cluster_name: up, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: @UP@}}}}]}]}}
  - {name: echo, type: STATIC, load_assignment: {cluster_name: echo, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: @ECHO@}}}}]}]}}
  - {name: dead, type: STATIC, load_assignment: {cluster_name: dead, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}]}}
"#;

struct Proxy {
    _child: Child,
    _folder: tempfile::TempDir,
    port: u16,
    tcp: u16,
}

async fn proxy() -> Proxy {
    let up = upstream().await;
    let echo = echo().await;
    let (port, tcp) = (free_port(), free_port());
    let mut text = CONFIG.to_string();
    for (name, value) in [("@PORT@", port), ("@TCP@", tcp), ("@UP@", up), ("@ECHO@", echo)] {
        text = text.replace(name, &value.to_string());
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bootstrap.yaml");
    std::fs::write(&path, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-proxy"));
    command.args(["--concurrency", "1", "-l", "warning", "-c"]).arg(&path).stderr(Stdio::inherit()).kill_on_drop(true);
    let child = command.spawn().unwrap();
    eventually("an answer", || async { (http("GET", port, "/exact").await?.0 == 201).then_some(()) }).await;
    Proxy { _child: child, _folder: folder, port, tcp }
}

/// Answers each request with its own head as the body; `/slow` late, `/flaky` twice with 503 first, and takes part in
/// WebSocket upgrades by echoing.
async fn upstream() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let flaky = Arc::new(AtomicU32::new(0));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer_all(stream, flaky.clone()));
        }
    });
    port
}

async fn answer_all(mut stream: TcpStream, flaky: Arc<AtomicU32>) {
    loop {
        let Some(head) = read_head(&mut stream).await else { return };
        if head.starts_with("GET /slow") {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        if head.to_ascii_lowercase().contains("upgrade: websocket") {
            let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            stream.write_all(switch.as_bytes()).await.unwrap();
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            return;
        }
        let fails = head.starts_with("GET /flaky") && flaky.fetch_add(1, Ordering::SeqCst) < 2;
        let status = if fails { "503 Service Unavailable" } else { "200 OK" };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{head}", head.len());
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    port
}

/// Sends bytes, and reads until the proxy closes.
async fn raw(port: u16, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    // One that has refused may have closed before all was sent.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    // A reset is an end too.
    let _ = end.unwrap_or_else(|_| panic!("not closed in time: {answer}"));
    answer
}

/// Sends bytes, and reads one answer, and what comes within a moment after it; or to the end.
async fn refusal(port: u16, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    loop {
        // Refusals have no body, and answers that should not be are seen by their heads.
        let done = answer.windows(4).any(|part| part == b"\r\n\r\n");
        let wait = if done { Duration::from_millis(500) } else { PATIENCE };
        match tokio::time::timeout(wait, stream.read_buf(&mut answer)).await {
            Ok(Ok(1..)) => {}
            Ok(_) => break,
            Err(_) if done => break,
            Err(_) => panic!("no answer in time: {}", String::from_utf8_lossy(&answer)),
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

async fn get(port: u16, path: &str, more: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: known.example\r\nconnection: close\r\n{more}\r\n");
    raw(port, request.as_bytes()).await
}

#[tokio::test]
async fn routes_and_what_they_do() {
    let proxy = proxy().await;
    for (path, more, status, has) in [
        ("/exact", "", "201", "exact"),
        ("/exact/not", "", "404", ""),
        ("/a/../exact", "", "201", "exact"),
        ("/%65xact", "", "201", "exact"),
        ("/moved/x", "", "301", "location: http://new.example/there"),
        ("/by-header", "user: jason\r\n", "200", "jason"),
        ("/by-header", "user: james\r\n", "200", "everyone"),
        ("/rewrite/a?b=c", "", "200", "GET /rewritten/a?b=c HTTP/1.1"),
        ("/up", "", "200", "x-added: added"),
        ("/up", "", "200", "x-forwarded-for: 127.0.0.1"),
        ("/up", "", "200", "x-forwarded-proto: http"),
        ("/slow", "", "504", "upstream request timeout"),
        ("/flaky", "", "200", "GET /flaky"),
        ("/nowhere", "", "503", ""),
        ("/dead", "", "503", "upstream connect error or disconnect/reset before headers"),
    ] {
        let answer = get(proxy.port, path, more).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
        assert!(answer.contains(has), "{path}: {has:?} is missing: {answer}");
    }
    let unknown = raw(proxy.port, b"GET /exact HTTP/1.1\r\nhost: other.example\r\nconnection: close\r\n\r\n").await;
    assert!(unknown.starts_with("HTTP/1.1 404 "), "{unknown}");
    let port_in_host =
        raw(proxy.port, b"GET /exact HTTP/1.1\r\nhost: KNOWN.example:80\r\nconnection: close\r\n\r\n").await;
    assert!(port_in_host.starts_with("HTTP/1.1 201 ") || port_in_host.starts_with("HTTP/1.1 404 "), "{port_in_host}");
}

#[tokio::test]
async fn what_is_ambiguous_is_refused() {
    let proxy = proxy().await;
    let long = format!("GET /up HTTP/1.1\r\nhost: known.example\r\nx: {}\r\n\r\n", "a".repeat(200_000));
    let many = format!("GET /up HTTP/1.1\r\nhost: known.example\r\n{}\r\n", "x: y\r\n".repeat(500));
    for (what, request) in [
        ("a line that ends without CR", "GET /up HTTP/1.1\r\nhost: known.example\nx: y\r\n\r\n"),
        (
            "length and chunked",
            "POST /up HTTP/1.1\r\nhost: known.example\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "two lengths",
            "POST /up HTTP/1.1\r\nhost: known.example\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcde",
        ),
        ("a signed length", "POST /up HTTP/1.1\r\nhost: known.example\r\ncontent-length: +4\r\n\r\nabcd"),
        (
            "a coding besides chunked",
            "POST /up HTTP/1.1\r\nhost: known.example\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        ),
        ("a folded header", "GET /up HTTP/1.1\r\nhost: known.example\r\nx: a\r\n b\r\n\r\n"),
        ("a space before the colon", "GET /up HTTP/1.1\r\nhost : known.example\r\n\r\n"),
        ("no host", "GET /up HTTP/1.1\r\n\r\n"),
        ("two hosts", "GET /up HTTP/1.1\r\nhost: known.example\r\nhost: other.example\r\n\r\n"),
        ("a NUL in a header", "GET /up HTTP/1.1\r\nhost: known.example\r\nx: a\0b\r\n\r\n"),
        ("too long a header", &long),
        ("too many headers", &many),
    ] {
        let answer = refusal(proxy.port, request.as_bytes()).await;
        // An unknown coding is 501 (RFC 9112 §6.1), all else is the client's mistake.
        let refused = ["HTTP/1.1 4", "HTTP/1.1 501 "].iter().any(|status| answer.starts_with(status));
        let refused = answer.is_empty() || refused;
        assert!(refused, "{what} went through: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count().max(1), 1, "{what}: more than one answer: {answer}");
    }
    // And the proxy serves on.
    assert!(get(proxy.port, "/exact", "").await.starts_with("HTTP/1.1 201 "));
}

/// A target has no fragment: who drops one and who keeps it would see two paths.
#[tokio::test]
async fn a_fragment_is_refused_before_anything_looks_at_the_path() {
    let proxy = proxy().await;
    for path in ["/exact#/up", "/up/a#/secret"] {
        let answer = get(proxy.port, path, "").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{path}: {answer}");
    }
}

#[tokio::test]
async fn internal_headers_of_strangers_do_not_pass() {
    let proxy = proxy().await;
    let forged =
        "x-forwarded-client-cert: By=a;URI=spiffe://cluster.local/ns/x/sa/admin\r\nx-envoy-peer-metadata: AAAA\r\n";
    let answer = get(proxy.port, "/up", forged).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(!answer.contains("spiffe://cluster.local/ns/x/sa/admin"), "{answer}");
    // A retry or a time limit is not a stranger's to choose at an edge.
    let slow = get(proxy.port, "/up", "x-envoy-upstream-rq-timeout-ms: 1\r\n").await;
    assert!(slow.starts_with("HTTP/1.1 200 ") && !slow.contains("x-envoy-upstream-rq-timeout-ms"), "{slow}");
}

#[tokio::test]
async fn web_sockets_and_plain_tcp_carry_bytes_both_ways() {
    let proxy = proxy().await;
    let mut client = TcpStream::connect(("127.0.0.1", proxy.port)).await.unwrap();
    let upgrade = "GET /up HTTP/1.1\r\nhost: known.example\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n";
    client.write_all(upgrade.as_bytes()).await.unwrap();
    let head = read_head(&mut client).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(echoed(&mut client, b"frames").await, b"frames");

    let mut client = TcpStream::connect(("127.0.0.1", proxy.tcp)).await.unwrap();
    let large = vec![7; 1 << 20];
    assert_eq!(echoed(&mut client, &large).await, large);
}

async fn echoed(stream: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
    let mut back = vec![0; bytes.len()];
    let (mut read, mut write) = stream.split();
    let both = async { tokio::join!(write.write_all(bytes), read.read_exact(&mut back)) };
    let (wrote, got) = tokio::time::timeout(PATIENCE, both).await.expect("an echo");
    wrote.unwrap();
    got.unwrap();
    back
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let proxy = proxy().await;
    let one = "GET /up HTTP/1.1\r\nhost: known.example\r\n\r\n";
    let last = "GET /up HTTP/1.1\r\nhost: known.example\r\nconnection: close\r\n\r\n";
    let answers = raw(proxy.port, format!("{}{last}", one.repeat(19)).as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 20, "{answers}");
}
