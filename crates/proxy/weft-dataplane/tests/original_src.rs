//! Endpoints that see the client's own address (`original_src`), in a network namespace made without privilege. Skipped, saying so,
//! where the kernel permits none.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../weft-capture/tests/harness/mod.rs"]
mod harness;

use common::*;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const POD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const FILTER: &str = "listener_filters: [{name: o, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.original_src.v3.OriginalSrc, mark: 1337}}]";

#[test]
fn clients_addresses_reach_the_endpoints() {
    harness::run_inner(&["ip", "nft", "nsenter", "bash"]);
}

/// Runs only when started by the test above; alone it has nothing to check.
#[test]
fn inner() {
    if !harness::is_inner() {
        return;
    }
    harness::ip("link set lo up");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        http().await;
        bytes().await;
        redirected().await;
    });
    harness::done();
}

/// A server that answers each request with its client's address, and remembers these, one for each connection.
async fn server() -> (SocketAddr, Arc<Mutex<Vec<IpAddr>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let connections = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, peer)) = listener.accept().await {
            connections.lock().unwrap().push(peer.ip());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while stream.read_buf(&mut head).await.is_ok_and(|n| n > 0) {
                    if !head.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    head.clear();
                    let body = peer.ip().to_string();
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
        }
    });
    (address, seen)
}

/// Asks the proxy from an address; the body of the answer.
async fn ask(proxy: SocketAddr, from: &str) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    let mut stream: TcpStream = socket.connect(proxy).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        let mut buffer = [0; 1024];
        // A proxy of bytes leaves the connection open: the body is what is waited for.
        while !String::from_utf8_lossy(&answer).contains(from) {
            match stream.read(&mut buffer).await {
                Ok(n) if n > 0 => answer.extend_from_slice(&buffer[..n]),
                _ => break,
            }
        }
    };
    let _ = tokio::time::timeout(PATIENCE, read).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    text.rsplit("\r\n\r\n").next().unwrap_or_default().to_string()
}

async fn http() {
    let (address, seen) = server().await;
    let yaml = http_bootstrap("", &all(r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#), &[("a", address, "")]);
    let yaml = yaml.replacen("filter_chains:", &format!("{FILTER}\n    filter_chains:"), 1);
    assert!(yaml.contains("original_src"), "{yaml}");
    let proxy = Proxy::start(&yaml).await;
    // A kept connection is of its client alone: the third request finds that of the first.
    for from in ["127.0.0.7", "127.0.0.8", "127.0.0.7"] {
        assert_eq!(ask(proxy.addr(), from).await, from);
    }
    let seen = seen.lock().unwrap().clone();
    let count = |from: &str| seen.iter().filter(|ip| ip.to_string() == from).count();
    assert!((1..=2).contains(&count("127.0.0.7")) && count("127.0.0.8") == 1, "{seen:?}");
}

async fn bytes() {
    let (address, _) = server().await;
    let filters = "filters: [{name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: a}}]";
    let place = "address: {socket_address: {address: 127.0.0.1, port_value: 0}}";
    let listener = format!("{{name: l, {place}, {FILTER}, filter_chains: [{{{filters}}}]}}");
    let clusters = cluster("a", &[address], "");
    let yaml = format!("static_resources:\n  listeners:\n  - {listener}\n  clusters:\n{clusters}");
    let proxy = Proxy::start(&yaml).await;
    for from in ["127.0.0.7", "127.0.0.8"] {
        assert_eq!(ask(proxy.address("l"), from).await, from);
    }
}

/// A pod whose inbound traffic is handed over by `TPROXY`: its application sees the client, and answers it.
async fn redirected() {
    let client = harness::Neighbour::start(POD, CLIENT);
    let config = weft_capture::CaptureConfig {
        owner: weft_capture::ProxyOwner::Mark(1337),
        inbound_mode: weft_capture::InboundMode::TPROXY,
        ..weft_capture::CaptureConfig::default()
    };
    if let Err(error) = weft_capture::apply(&config) {
        // The only reason that is none of ours: a kernel without the modules.
        assert!(error.to_string().contains("No such file or directory"), "{error}");
        println!("skipped: this kernel has no tproxy: {error}");
        return;
    }
    let application = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9080)).await.unwrap();
    let filters = "filters: [{name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: o}}]";
    let before = "{name: d, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}}";
    let listener_filters = FILTER.replacen('[', &format!("[{before}, "), 1);
    let place = "address: {socket_address: {address: 0.0.0.0, port_value: 15006}}, transparent: true";
    let listener = format!("{{name: l, {place}, {listener_filters}, filter_chains: [{{{filters}}}]}}");
    let clusters = "  - {name: o, type: ORIGINAL_DST, connect_timeout: 5s, lb_policy: CLUSTER_PROVIDED}\n";
    let yaml = format!("static_resources:\n  listeners:\n  - {listener}\n  clusters:\n{clusters}");
    let _proxy = Proxy::start(&yaml).await;
    let script = format!("exec 3<>/dev/tcp/{POD}/9080; printf ping >&3; timeout 60 head -c 4 <&3");
    let asked = client.enter().args(["bash", "-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let accepted = tokio::time::timeout(PATIENCE, application.accept()).await;
    let (mut stream, from) = accepted.expect("the application is called").unwrap();
    assert_eq!(from.ip(), IpAddr::from(CLIENT));
    let mut ping = [0; 4];
    stream.read_exact(&mut ping).await.unwrap();
    stream.write_all(b"pong").await.unwrap();
    let answer = tokio::task::spawn_blocking(move || asked.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "pong");
}
