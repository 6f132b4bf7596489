//! Which endpoints are left out, and that all workers agree: active health checks over HTTP, gRPC and TCP, and ejections.

#![allow(clippy::unwrap_used)]

mod common;
use bytes::Bytes;
use common::*;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const QUICK: &str =
    "timeout: 20s, interval: 0.02s, no_traffic_interval: 0.02s, unhealthy_threshold: 2, healthy_threshold: 2";

/// One route to a cluster of these endpoints, with 4 workers.
async fn proxy(endpoints: &[SocketAddr], extra: &str) -> Proxy {
    checked_at(endpoints, None, extra).await
}

/// The same, the endpoints being checked at that port.
async fn checked_at(endpoints: &[SocketAddr], port: Option<u16>, extra: &str) -> Proxy {
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: app}}]"#);
    let mut app = cluster("app", endpoints, extra);
    if let Some(port) = port {
        let with = format!("endpoint: {{health_check_config: {{port_value: {port}}}, address");
        app = app.replace("endpoint: {address", &with);
    }
    let bootstrap = http_bootstrap_raw("", &routes, &app);
    Proxy::start_with(&bootstrap, |options| options.concurrency = NonZeroUsize::new(4).unwrap()).await
}

/// Statuses of as many requests, each on a connection of its own, so that all workers get some.
async fn ask(proxy: &Proxy, count: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..count {
        statuses.push(get(proxy.addr(), "/x").await.status);
    }
    statuses
}

fn healthy(proxy: &Proxy) -> f64 {
    proxy.metric("envoy_cluster_membership_healthy", &[("cluster_name", "app")])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_worker_finds_out_all_of_them_heed() {
    let bad = Backend::start(|_| async { reply(500, "no") }).await;
    let good = Backend::echo("good").await;
    let extra =
        "outlier_detection: {consecutive_5xx: 8, interval: 0.1s, base_ejection_time: 60s, max_ejection_percent: 100},";
    let proxy = proxy(&[bad.addr, good.addr], extra).await;
    // Eight errors in all, not eight for each of four workers.
    for _ in 0..200 {
        get(proxy.addr(), "/x").await;
        if proxy.metric("envoy_cluster_outlier_detection_ejections_active", &[("cluster_name", "app")]) > 0.0 {
            break;
        }
    }
    let errors = bad.count();
    assert!((8..=11).contains(&errors), "{errors}: a request may be under way in each other worker");
    assert_eq!(ask(&proxy, 40).await, [200; 40]);
    assert_eq!(bad.count(), errors);
    assert_eq!(proxy.metric("envoy_cluster_outlier_detection_ejections_enforced_total", &[]), 1.0);
    assert_eq!(healthy(&proxy), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_are_those_of_all_workers() {
    let half = Arc::new(AtomicUsize::new(0));
    let bad = Backend::start(move |_| {
        let n = half.fetch_add(1, Ordering::SeqCst);
        async move { reply(if n.is_multiple_of(2) { 500 } else { 200 }, "half") }
    })
    .await;
    let good = Backend::echo("good").await;
    // Ten requests of an interval, which no worker of four has by itself.
    let extra = "lb_policy: ROUND_ROBIN, outlier_detection: {consecutive_5xx: 0, interval: 2s, base_ejection_time: 60s, max_ejection_percent: 100, enforcing_success_rate: 0, enforcing_failure_percentage: 100, failure_percentage_minimum_hosts: 2, failure_percentage_request_volume: 10, failure_percentage_threshold: 40},";
    let proxy = proxy(&[bad.addr, good.addr], extra).await;
    let begun = std::time::Instant::now();
    while healthy(&proxy) > 1.0 || proxy.metric("envoy_cluster_membership_total", &[]) == 0.0 {
        ask(&proxy, 10).await;
        assert!(begun.elapsed() < PATIENCE, "not ejected");
    }
    let before = bad.count();
    ask(&proxy, 20).await;
    assert_eq!(bad.count(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn http_checks() {
    let well = Arc::new(AtomicBool::new(false));
    let says = well.clone();
    let flaky = Backend::start(move |request| {
        let status = match request.uri().path() {
            "/healthz" => {
                assert_eq!(request.headers()["host"], "checks.example");
                assert_eq!(
                    (&request.headers()["x-check"], &request.headers()["user-agent"]),
                    (&"1".parse().unwrap(), &"Envoy/HC".parse().unwrap())
                );
                if says.load(Ordering::SeqCst) { 204 } else { 503 }
            }
            _ => 201,
        };
        async move { reply(status, "flaky") }
    })
    .await;
    let good =
        Backend::start(
            |request| async move { reply(if request.uri().path() == "/healthz" { 204 } else { 200 }, "good") },
        )
        .await;
    let check = r#"http_health_check: {path: /healthz, host: checks.example, expected_statuses: [{start: 200, end: 300}], request_headers_to_add: [{header: {key: x-check, value: "1"}}]}"#;
    let extra =
        format!("common_lb_config: {{healthy_panic_threshold: {{value: 0}}}}, health_checks: [{{{QUICK}, {check}}}],");
    let proxy = proxy(&[flaky.addr, good.addr], &extra).await;
    // The first request waits for the first results.
    assert_eq!(ask(&proxy, 20).await, [200; 20]);
    assert_eq!(healthy(&proxy), 1.0);
    well.store(true, Ordering::SeqCst);
    eventually("the endpoint comes back", || healthy(&proxy) == 2.0).await;
    assert!(ask(&proxy, 40).await.contains(&201));
    well.store(false, Ordering::SeqCst);
    eventually("the endpoint is left out", || healthy(&proxy) == 1.0).await;
    assert_eq!(ask(&proxy, 20).await, [200; 20]);
    assert!(proxy.metric("envoy_cluster_health_check_success", &[]) >= 4.0);
    assert!(proxy.metric("envoy_cluster_health_check_failure", &[]) >= 2.0);
    assert_eq!(proxy.metric("envoy_cluster_health_check_healthy", &[]), 1.0);
    assert!(good.connections.load(Ordering::SeqCst) < 15, "one connection serves for all checks");
    good.stop().await;
    eventually("nobody answers", || healthy(&proxy) == 0.0).await;
    assert_eq!(ask(&proxy, 4).await, [503; 4]);
    assert!(proxy.metric("envoy_cluster_health_check_network_failure", &[]) >= 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_answers_and_statuses_that_may_be_tried_again() {
    let long = Backend::start(|_| async { reply(200, &"x".repeat(300 * 1024)) }).await;
    let busy = Backend::start(|_| async { reply(503, "busy") }).await;
    let check = r#"http_health_check: {path: /healthz, receive: [{text: "7878"}], retriable_statuses: [{start: 500, end: 600}]}"#;
    let extra =
        format!("common_lb_config: {{healthy_panic_threshold: {{value: 0}}}}, health_checks: [{{{QUICK}, {check}}}],");
    let proxy = proxy(&[long.addr, busy.addr], &extra).await;
    assert_eq!(ask(&proxy, 8).await, [200; 8]);
    let count = |what: &str| proxy.metric(&format!("envoy_cluster_health_check_{what}"), &[]);
    eventually("checked often", || count("success") >= 3.0 && count("failure") >= 3.0).await;
    assert_eq!((healthy(&proxy), count("network_failure")), (1.0, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_checks() {
    // Says the word as long as it is well.
    let well = Arc::new(AtomicBool::new(true));
    let says = well.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let says = says.clone();
            tokio::spawn(async move {
                let mut question = [0; 4];
                stream.read_exact(&mut question).await.unwrap();
                assert_eq!(&question, b"ping");
                let word = if says.load(Ordering::SeqCst) { "..pong" } else { "..pung" };
                let _ = stream.write_all(word.as_bytes()).await;
            });
        }
    });
    let backend = Backend::echo("a").await;
    let check = r#"tcp_health_check: {send: {text: "70696e67"}, receive: [{text: "706f6e67"}]}"#;
    let extra =
        format!("common_lb_config: {{healthy_panic_threshold: {{value: 0}}}}, health_checks: [{{{QUICK}, {check}}}],");
    let proxy = checked_at(&[backend.addr], Some(port), &extra).await;
    assert_eq!(ask(&proxy, 4).await, [200; 4]);
    well.store(false, Ordering::SeqCst);
    eventually("left out", || healthy(&proxy) == 0.0).await;
    assert_eq!(ask(&proxy, 4).await, [503; 4]);
    well.store(true, Ordering::SeqCst);
    eventually("taken back", || healthy(&proxy) == 1.0).await;
    assert_eq!(ask(&proxy, 4).await, [200; 4]);
}

/// `grpc.health.v1.Health` that answers with this status; from 12 on: with this status of gRPC.
async fn grpc_health(status: Arc<AtomicU8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let status = status.clone();
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let status = status.load(Ordering::SeqCst);
                async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    assert_eq!(request.uri().authority().unwrap().as_str(), "health.example");
                    let asked = request.into_body().collect().await.unwrap().to_bytes();
                    assert_eq!(asked, &b"\0\0\0\0\x05\x0a\x03app"[..]);
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", u16::from(if status >= 12 { status } else { 0 }).into());
                    let data = Bytes::from(vec![0, 0, 0, 0, 2, 8, status]);
                    let body = Full::new(data).with_trailers(async move { Some(Ok::<_, Infallible>(trailers)) });
                    Ok::<_, Infallible>(
                        Response::builder().header("content-type", "application/grpc").body(body).unwrap(),
                    )
                }
            });
            tokio::spawn(async move {
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_checks() {
    let status = Arc::new(AtomicU8::new(1));
    let health = grpc_health(status.clone()).await;
    let backend = Backend::echo("a").await;
    let check = "grpc_health_check: {service_name: app, authority: health.example}";
    let extra = format!(
        "{HTTP2} common_lb_config: {{healthy_panic_threshold: {{value: 0}}}}, health_checks: [{{{QUICK}, {check}}}],"
    );
    // Whatever it answers but that it serves is believed at once.
    let extra = extra.replace("unhealthy_threshold: 2", "unhealthy_threshold: 1000000");
    let proxy = checked_at(&[backend.addr], Some(health.port()), &extra).await;
    assert_eq!(ask(&proxy, 4).await, [200; 4]);
    for (says, want) in [(2, 0.0), (1, 1.0), (14, 0.0), (1, 1.0), (12, 0.0)] {
        status.store(says, Ordering::SeqCst);
        eventually("health follows", || healthy(&proxy) == want).await;
    }
    assert_eq!(ask(&proxy, 2).await, [503; 2]);
    assert_eq!(proxy.metric("envoy_cluster_health_check_network_failure", &[]), 0.0, "there were answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_takes_an_ejected_endpoint_back() {
    let backend =
        Backend::start(|request| async move { reply(if request.uri().path() == "/healthz" { 200 } else { 500 }, "") })
            .await;
    let good = Backend::echo("good").await;
    let extra = format!(
        "outlier_detection: {{consecutive_5xx: 2, base_ejection_time: 600s, max_ejection_percent: 100}}, health_checks: [{{{QUICK}, http_health_check: {{path: /healthz}}}}],"
    );
    let proxy = proxy(&[backend.addr, good.addr], &extra).await;
    let ejections = || proxy.metric("envoy_cluster_outlier_detection_ejections_enforced_total", &[]);
    let begun = std::time::Instant::now();
    // Out, back by a check, and out again.
    while ejections() < 3.0 {
        ask(&proxy, 4).await;
        assert!(begun.elapsed() < PATIENCE, "{} ejections", ejections());
    }
}
