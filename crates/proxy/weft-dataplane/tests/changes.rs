//! Changes of configuration under load, drains, and listeners that cannot be opened.

#![allow(clippy::unwrap_used)]

mod common;
use common::*;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_dataplane::ListenerStatus;
use weft_proto::envoy::config::cluster::v3::Cluster;
use weft_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use weft_proto::envoy::config::listener::v3::Listener;

const FORWARD: &str = r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#;

/// Clients on kept connections that stop at the first failure.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<(usize, usize)>>,
}

impl Load {
    fn start(addr: SocketAddr, clients: usize) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let run = |seen: Arc<AtomicBool>, answered: Arc<AtomicUsize>| async move {
            let (mut ok, mut connections) = (0, 0);
            while !seen.load(Ordering::SeqCst) {
                let stream = TcpStream::connect(addr).await.unwrap();
                connections += 1;
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
                tokio::spawn(connection);
                while !seen.load(Ordering::SeqCst) && sender.ready().await.is_ok() {
                    let response = sender.send_request(request("GET", "/", &[], "")).await.unwrap();
                    let closes = response.headers().get("connection").is_some_and(|v| v == "close");
                    let got = read(response).await.unwrap();
                    assert_eq!(got.status, 200, "{}", got.body);
                    ok += 1;
                    answered.fetch_add(1, Ordering::SeqCst);
                    if closes {
                        break;
                    }
                }
            }
            (ok, connections)
        };
        let clients = (0..clients).map(|_| tokio::spawn(run(stop.clone(), answered.clone()))).collect();
        Self { stop, answered, clients }
    }

    /// Waits until so many further requests were answered.
    async fn goes_on(&self, more: usize) {
        let wanted = self.answered.load(Ordering::SeqCst) + more;
        // A client that failed says why when it is asked for its counts.
        let failed = || self.clients.iter().any(|client| client.is_finished());
        eventually("answers", || failed() || self.answered.load(Ordering::SeqCst) >= wanted).await;
    }

    /// Requests answered, and connections used for them.
    async fn finish(self) -> (usize, usize) {
        self.stop.store(true, Ordering::SeqCst);
        let mut sum = (0, 0);
        for client in self.clients {
            let (ok, connections) = client.await.expect("no request failed");
            sum = (sum.0 + ok, sum.1 + connections);
        }
        sum
    }
}

fn eds_cluster(name: &str) -> String {
    format!(
        "  - {{name: {name}, type: EDS, connect_timeout: 20s, eds_cluster_config: {{eds_config: {{ads: {{}}}}}}}}\n"
    )
}

fn assignment(addresses: &[SocketAddr]) -> String {
    let endpoints: Vec<String> = addresses.iter().map(endpoint).collect();
    format!("{{cluster_name: a, endpoints: [{{lb_endpoints: [{}]}}]}}", endpoints.join(", "))
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_come_and_go_under_load() {
    let backends = [Backend::echo("0").await, Backend::echo("1").await, Backend::echo("2").await];
    let addr = |i: usize| backends[i].addr;
    let mut proxy = Proxy::start(&http_bootstrap_raw("", &all(FORWARD), &eds_cluster("a"))).await;
    proxy.change::<ClusterLoadAssignment>(&[("a", &assignment(&[addr(0), addr(1), addr(2)]))], &[]).await;
    let load = Load::start(proxy.addr(), 8);
    for set in [&[0, 1][..], &[1], &[1, 2], &[0, 2], &[2], &[0, 1, 2], &[0]].repeat(6) {
        let addresses: Vec<SocketAddr> = set.iter().map(|i| addr(*i)).collect();
        proxy.change::<ClusterLoadAssignment>(&[("a", &assignment(&addresses))], &[]).await;
        load.goes_on(16).await;
    }
    let (ok, _) = load.finish().await;
    assert!(ok > 100, "{ok}");
    let before = backends[1].count();
    for _ in 0..10 {
        assert_eq!(get(proxy.addr(), "/").await.backend(), "0");
    }
    assert_eq!(backends[1].count(), before);
    assert!(backends.iter().all(|b| b.count() > 0));
}

/// The listener of the tests, answering by cluster `name`, on the address it has.
fn listener_to(address: SocketAddr, name: &str, extra: &str) -> String {
    let routes = all(&format!(r#"[{{match: {{prefix: "/"}}, route: {{cluster: {name}}}}}]"#));
    let place = format!("address: {}, port_value: {}", address.ip(), address.port());
    listener("l", extra, &routes, "").replace("address: 127.0.0.1, port_value: 0", &place)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_changes_and_keeps_its_connections() {
    let (a, b) = (Backend::echo("a").await, Backend::echo("b").await);
    let start = listener_to(SocketAddr::from(([127, 0, 0, 1], 0)), "a", "");
    let yaml =
        format!("static_resources:\n  clusters:\n{}{}", cluster("a", &[a.addr], ""), cluster("b", &[b.addr], ""));
    let mut proxy = Proxy::start(&yaml).await;
    proxy.change::<Listener>(&[("l", &start)], &[]).await;
    let addr = proxy.addr();
    let load = Load::start(addr, 4);
    for n in 0..20 {
        let name = if n % 2 == 0 { "b" } else { "a" };
        proxy.change::<Listener>(&[("l", &listener_to(SocketAddr::from(([127, 0, 0, 1], 0)), name, ""))], &[]).await;
        assert_eq!(proxy.addr(), addr, "the socket stays");
        assert_eq!(get(addr, "/").await.backend(), name, "a new connection obeys the new configuration");
        load.goes_on(8).await;
    }
    let (ok, connections) = load.finish().await;
    assert!(ok > 100, "{ok}");
    assert_eq!(connections, 4, "no client had to connect again");
    // Requests on an open connection obey it too.
    let (mut sender, connection) = {
        let stream = TcpStream::connect(addr).await.unwrap();
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap()
    };
    tokio::spawn(connection);
    for name in ["a", "b", "a"] {
        proxy.change::<Listener>(&[("l", &listener_to(SocketAddr::from(([127, 0, 0, 1], 0)), name, ""))], &[]).await;
        let got = read(sender.send_request(request("GET", "/", &[], "")).await.unwrap()).await.unwrap();
        assert_eq!(got.backend(), name);
        sender.ready().await.unwrap();
    }
    // A listener that goes: its port is closed, idle connections end.
    proxy.change::<Listener>(&[], &["l"]).await;
    eventually("the port is closed", || std::net::TcpStream::connect(addr).is_err()).await;
    eventually("connections ended", || proxy.handle.active_connections() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_change_under_load() {
    let (a, b) = (Backend::echo("a").await, Backend::echo("b").await);
    let mut proxy = Proxy::start(&http_bootstrap("", &all(FORWARD), &[("a", a.addr, "")])).await;
    let load = Load::start(proxy.addr(), 4);
    for n in 0..20 {
        let to = if n % 2 == 0 { b.addr } else { a.addr };
        let text = cluster("a", &[to], if n % 3 == 0 { "lb_policy: RANDOM," } else { "" });
        proxy.change::<Cluster>(&[("a", text.trim().trim_start_matches("- "))], &[]).await;
        load.goes_on(8).await;
    }
    assert!(load.finish().await.0 > 100);
    assert!(a.count() > 0 && b.count() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_loses_no_request() {
    let backend = Backend::start(|_| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        reply(200, "ok")
    })
    .await;
    let proxy = Proxy::start(&http_bootstrap("", &all(FORWARD), &[("a", backend.addr, "")])).await;
    let addr = proxy.addr();
    let load = Load::start(addr, 4);
    let mut h2 = http2(addr).await;
    let warm = http::Request::get("http://a.example/").body(Default::default()).unwrap();
    assert_eq!(h2.send_request(warm).await.unwrap().status(), 200);
    eventually("load is on", || backend.count() > 20).await;
    proxy.handle.start_drain();
    // Clients are told to go, and new connections still work.
    let got = get(addr, "/").await;
    assert_eq!((got.status, got.header("connection")), (200, "close"));
    let gone = async {
        while h2.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the HTTP/2 client got a GOAWAY");
    let (ok, _) = load.finish().await;
    assert!(ok > 20, "{ok}");
    assert!(proxy.handle.drain(Duration::from_millis(10), PATIENCE).await, "nothing is left");
    assert!(std::net::TcpStream::connect(addr).is_err(), "the port is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_and_tried_again() {
    // An address of its own: on that of the other tests somebody might take the port when it is let go.
    let taken = std::net::TcpListener::bind("127.0.0.9:0").unwrap();
    let address = taken.local_addr().unwrap();
    let backend = Backend::echo("a").await;
    let mut proxy =
        Proxy::start(&format!("static_resources:\n  clusters:\n{}", cluster("a", &[backend.addr], ""))).await;
    proxy.change::<Listener>(&[("l", &listener_to(address, "a", ""))], &[]).await;
    let states = proxy.handle.listeners();
    assert_eq!((&*states[0].name, states[0].address.as_str()), ("l", address.to_string().as_str()));
    assert!(matches!(&states[0].status, ListenerStatus::Failed(why) if why.contains("in use")), "{states:?}");
    drop(taken);
    eventually("it is tried again", || matches!(proxy.handle.listeners()[0].status, ListenerStatus::Bound(_))).await;
    assert_eq!(get(address, "/").await.backend(), "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn access_logs() {
    let backend = Backend::echo("a").await;
    let file = std::env::temp_dir().join(format!("weft-access-{}.log", std::process::id()));
    let _ = std::fs::remove_file(&file);
    let log = format!(
        r#"access_log: [{{name: f, typed_config: {{"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: "{}", log_format: {{text_format_source: {{inline_string: "%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %BYTES_RECEIVED% %REQ(X-ID)% %UPSTREAM_CLUSTER% %UPSTREAM_HOST% %ROUTE_NAME% %RESP(SERVER)%\n"}}}}}}}}],"#,
        file.display()
    );
    let routes = all(
        r#"[{match: {prefix: "/down"}, name: downward, route: {cluster: down}}, {match: {prefix: "/ok"}, name: fine, route: {cluster: a}}]"#,
    );
    let dead = "127.0.0.1:1".parse().unwrap();
    let proxy = Proxy::start(&http_bootstrap(&log, &routes, &[("a", backend.addr, ""), ("down", dead, "")])).await;
    let lines = || std::fs::read_to_string(&file).unwrap_or_default();
    // Workers log for themselves: only who waits for a line knows which one comes next.
    let logged = async |count: usize| {
        let all = || lines().matches('\n').count();
        eventually(&format!("{count} lines"), || all() == count).await;
    };
    send(proxy.addr(), request("POST", "/ok?x", &[("x-id", "7")], "hello")).await;
    logged(1).await;
    get(proxy.addr(), "/down").await;
    logged(2).await;
    get(proxy.addr(), "/none").await;
    logged(3).await;
    let mut gone = TcpStream::connect(proxy.addr()).await.unwrap();
    gone.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let _ = gone.read(&mut [0; 512]).await;
    logged(4).await;
    let text = lines();
    let lines: Vec<&str> = text.lines().collect();
    let upstream = backend.addr;
    assert_eq!(lines[0], format!("POST /ok?x HTTP/1.1 200 - via_upstream 5 7 a {upstream} fine envoy"));
    assert_eq!(
        lines[1],
        "GET /down HTTP/1.1 503 UF upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused} 0 - down 127.0.0.1:1 downward envoy"
    );
    assert_eq!(lines[2], "GET /none HTTP/1.1 404 NR route_not_found 0 - - - - envoy");
    assert_eq!(lines[3], "GET / HTTP/1.1 400 DPE missing_host_header 0 - - - - envoy");
    std::fs::remove_file(file).unwrap();
}
