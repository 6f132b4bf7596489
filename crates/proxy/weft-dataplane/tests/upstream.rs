//! What happens when endpoints fail: retries, timeouts, outlier detection, circuit breakers, connections that close.

#![allow(clippy::unwrap_used)]

mod common;
use bytes::Bytes;
use common::*;
use http_body_util::BodyExt as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// A server that fails with `status` the first `times` times.
async fn flaky(status: u16, times: usize) -> Backend {
    let seen = Arc::new(AtomicUsize::new(0));
    Backend::start(move |request| {
        let seen = seen.clone();
        async move {
            let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
            match seen.fetch_add(1, Ordering::SeqCst) < times {
                true => reply(status, "flaky"),
                false => reply(200, &format!("backend=ok\nbody={}\n", body.len())),
            }
        }
    })
    .await
}

fn with_retry(policy: &str) -> String {
    all(&format!(r#"[{{match: {{prefix: "/"}}, route: {{cluster: a, retry_policy: {{{policy}}}}}}}]"#))
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_by_policy() {
    for (status, times, policy, want, tries) in [
        (503, 2, "retry_on: 5xx, num_retries: 2", 200, 3),
        (503, 3, "retry_on: 5xx, num_retries: 2", 503, 3),
        (500, 1, "retry_on: gateway-error, num_retries: 2", 500, 1),
        (418, 1, "retry_on: retriable-status-codes, retriable_status_codes: [418], num_retries: 1", 200, 2),
        (503, 1, "retry_on: connect-failure, num_retries: 2", 503, 1),
    ] {
        let backend = flaky(status, times).await;
        let proxy = Proxy::start(&http_bootstrap("", &with_retry(policy), &[("a", backend.addr, "")])).await;
        let got = send(proxy.addr(), request("POST", "/", &[], "hello")).await;
        assert_eq!((got.status, backend.count()), (want, tries), "{policy}: {}", got.body);
        if want == 200 {
            assert!(got.body.contains("body=5"), "the body was sent again: {}", got.body);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_endpoint_after_a_refused_connection() {
    let backend = Backend::echo("ok").await;
    let dead = "127.0.0.1:1".parse().unwrap();
    let policy = "retry_on: connect-failure, num_retries: 2, host_selection_retry_max_attempts: 5, retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}]";
    let clusters = cluster("a", &[dead, backend.addr], "");
    let proxy = Proxy::start(&http_bootstrap_raw("", &with_retry(policy), &clusters)).await;
    for _ in 0..20 {
        assert_eq!(get(proxy.addr(), "/").await.status, 200);
    }
    assert!(proxy.metric("envoy_cluster_upstream_rq_retry", &[("cluster_name", "a")]) > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn timeouts() {
    let slow = Backend::start(|request| async move {
        // Longer than anybody waits for an answer here: it is the proxy that ends the wait.
        let pause = if request.uri().path() == "/fast" { 0 } else { 60 };
        tokio::time::sleep(Duration::from_secs(pause)).await;
        reply(200, "ok")
    })
    .await;
    let routes = all(
        r#"[{match: {prefix: "/try"}, route: {cluster: a, timeout: 0s, retry_policy: {retry_on: 5xx, num_retries: 1, per_try_timeout: 0.1s, retry_back_off: {base_interval: 0.001s}}}},
            {match: {prefix: "/idle"}, route: {cluster: a, timeout: 0s, idle_timeout: 0.2s}},
            {match: {prefix: "/own"}, route: {cluster: a, timeout: 0s}},
            {match: {prefix: "/fast"}, route: {cluster: a, timeout: 15s, idle_timeout: 15s}},
            {match: {prefix: "/"}, route: {cluster: a, timeout: 0.2s}}]"#,
    );
    let inside = "use_remote_address: true, internal_address_config: {cidr_ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}]},";
    let proxy = Proxy::start(&http_bootstrap(inside, &routes, &[("a", slow.addr, "")])).await;
    for (path, headers, status, body) in [
        ("/slow", &[][..], 504, "upstream request timeout"),
        ("/fast", &[], 200, "ok"),
        ("/try", &[], 504, "upstream request timeout"),
        ("/idle", &[], 408, "stream timeout"),
        ("/own", &[("x-envoy-upstream-rq-timeout-ms", "150")], 504, "upstream request timeout"),
    ] {
        let got = get_with(proxy.addr(), path, headers).await;
        assert_eq!((got.status, got.body.as_str()), (status, body), "{path}");
    }
}

/// Closes each connection after its first answer, without saying so. Counts those that it has closed.
async fn closing() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, closed) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = closed.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                let is_whole = |request: &[u8]| {
                    request.ends_with(b"\r\n\r\nhello")
                        || (request.starts_with(b"GET") && request.ends_with(b"\r\n\r\n"))
                };
                while stream.read_buf(&mut request).await.is_ok_and(|n| n > 0) && !is_whole(&request) {}
                if is_whole(&request) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                    drop(stream);
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    (addr, closed)
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_connections_that_close_lose_no_request() {
    let (addr, closed) = closing().await;
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#);
    let proxy = Proxy::start_with(&http_bootstrap("", &routes, &[("a", addr, "")]), |o| {
        o.concurrency = std::num::NonZeroUsize::MIN;
    })
    .await;
    let mut sent = 0;
    for pause in [0, 0, 1, 5, 20, 0] {
        for (method, body) in [("GET", ""), ("POST", "hello")] {
            // A GET that meets the end of a connection is sent again. A POST may not be: for it the end must have been there
            // before it, as it nearly always is, and still nobody tells the proxy.
            if method == "POST" {
                eventually("connections are closed", || closed.load(Ordering::SeqCst) == sent).await;
            }
            sent += 1;
            let got = send(proxy.addr(), request(method, "/", &[], body)).await;
            assert_eq!((got.status, got.body.as_str()), (200, "ok"), "{method}");
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn circuit_breakers() {
    let (open, gate) = tokio::sync::watch::channel(true);
    let slow = Backend::start(move |_| {
        let mut gate = gate.clone();
        async move {
            let _ = gate.wait_for(|open| *open).await;
            reply(200, "ok")
        }
    })
    .await;
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#);
    let limits = "circuit_breakers: {thresholds: [{max_connections: 1, max_pending_requests: 1}]},";
    let proxy = Proxy::start_with(&http_bootstrap("", &routes, &[("a", slow.addr, limits)]), |o| {
        o.concurrency = std::num::NonZeroUsize::MIN;
    })
    .await;
    let addr = proxy.addr();
    // A connection that is being made counts as pending: begin with one that is there.
    assert_eq!(get(addr, "/").await.status, 200);
    open.send_replace(false);
    let ask = || tokio::spawn(async move { get(addr, "/").await });
    // One has the connection, one waits for it, and the others are too many.
    let mut all = vec![ask()];
    eventually("the first is with the endpoint", || slow.count() == 2).await;
    all.push(ask());
    eventually("the second waits", || proxy.metric("envoy_cluster_upstream_rq_pending_active", &[]) == 1.0).await;
    all.extend((0..4).map(|_| ask()));
    eventually("too many", || proxy.metric("envoy_cluster_upstream_rq_pending_overflow", &[]) == 4.0).await;
    open.send_replace(true);
    let mut statuses = Vec::new();
    for one in all {
        let got = one.await.unwrap();
        if got.status == 503 {
            assert_eq!(got.header("x-envoy-overloaded"), "true");
            assert!(got.body.contains("overflow"), "{}", got.body);
        }
        statuses.push(got.status);
    }
    assert_eq!(statuses, [200, 200, 503, 503, 503, 503]);
    assert_eq!(slow.connections.load(Ordering::SeqCst), 1);
}

/// A connection that has been idle for long is not good enough for a request that cannot be repeated; with a limit of one
/// connection its place is needed all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_does_not_wait_beside_an_idle_connection() {
    let backend = Backend::echo("ok").await;
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#);
    let limits = "circuit_breakers: {thresholds: [{max_connections: 1, max_pending_requests: 1}]},";
    let proxy = Proxy::start_with(&http_bootstrap("", &routes, &[("a", backend.addr, limits)]), |o| {
        o.concurrency = std::num::NonZeroUsize::MIN;
    })
    .await;
    assert_eq!(get(proxy.addr(), "/").await.status, 200);
    // Longer than a connection may be idle for such a request.
    tokio::time::sleep(Duration::from_millis(2300)).await;
    let post = send(proxy.addr(), request("POST", "/", &[], "hello"));
    let got = tokio::time::timeout(Duration::from_secs(20), post).await.expect("it waits for ever");
    assert_eq!(got.status, 200, "{}", got.body);
    assert_eq!(backend.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_fail_are_left_out() {
    let (good, bad) = (Backend::echo("good").await, flaky(503, usize::MAX).await);
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#);
    let extra = "outlier_detection: {consecutive_5xx: 3, base_ejection_time: 60s, max_ejection_percent: 100}, lb_policy: ROUND_ROBIN,";
    let clusters = cluster("a", &[good.addr, bad.addr], extra);
    let proxy = Proxy::start_with(&http_bootstrap_raw("", &routes, &clusters), |o| {
        o.concurrency = std::num::NonZeroUsize::MIN;
    })
    .await;
    for _ in 0..20 {
        get(proxy.addr(), "/").await;
    }
    let failed = bad.count();
    assert!((3..6).contains(&failed), "{failed}");
    for _ in 0..20 {
        assert_eq!(get(proxy.addr(), "/").await.status, 200);
    }
    assert_eq!(bad.count(), failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_kept_and_counted() {
    let backend = Backend::echo("a").await;
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#);
    let proxy = Proxy::start_with(&http_bootstrap("", &routes, &[("a", backend.addr, "")]), |o| {
        o.concurrency = std::num::NonZeroUsize::MIN;
    })
    .await;
    for _ in 0..10 {
        assert_eq!(get(proxy.addr(), "/").await.status, 200);
    }
    assert_eq!(backend.connections.load(Ordering::SeqCst), 1);
    let cluster = [("cluster_name", "a")];
    // An answer is counted when the client may have it already.
    eventually("all are counted", || {
        proxy.metric("envoy_cluster_upstream_rq_active", &cluster) == 0.0
            && proxy.metric("envoy_cluster_upstream_rq_xx", &[("response_code_class", "2xx")]) == 10.0
    })
    .await;
    assert_eq!(proxy.metric("envoy_cluster_upstream_rq_total", &cluster), 10.0);
    assert_eq!(proxy.metric("envoy_cluster_upstream_cx_active", &cluster), 1.0);
    assert_eq!(proxy.metric("envoy_cluster_upstream_rq_active", &cluster), 0.0);
    assert_eq!(proxy.metric("envoy_cluster_upstream_rq_xx", &[("response_code_class", "2xx")]), 10.0);
    let clusters = proxy.handle.clusters().await;
    assert_eq!((clusters[0].hosts[0].rq_total, clusters[0].hosts[0].rq_success), (10, 10));
    eventually("no request is under way", || proxy.metric("envoy_http_downstream_rq_active", &[]) == 0.0).await;
}

/// A request as the `h2` crate gives it to a server.
type Stream = (http::Request<h2::RecvStream>, h2::server::SendResponse<Bytes>);

/// A server of HTTP/2 that wants `streams` at once, and hands them over.
async fn streams(streams: u32) -> (SocketAddr, mpsc::UnboundedReceiver<Stream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (hand_over, come) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let hand_over = hand_over.clone();
            tokio::spawn(async move {
                let mut builder = h2::server::Builder::new();
                // Whatever is not read of one stream leaves room for the others.
                builder.max_concurrent_streams(streams).initial_connection_window_size(16 << 20);
                let mut connection = builder.handshake(stream).await.unwrap();
                while let Some(Ok(stream)) = connection.accept().await {
                    let _ = hand_over.send(stream);
                }
            });
        }
    });
    (addr, come)
}

fn answer(respond: &mut h2::server::SendResponse<Bytes>, status: u16, body: &str) {
    let head = http::Response::builder().status(status).body(()).unwrap();
    let mut sending = respond.send_response(head, body.is_empty()).unwrap();
    if !body.is_empty() {
        sending.send_data(Bytes::from(body.to_string()), true).unwrap();
    }
}

/// Reads until so many bytes have come; false when the stream ends before.
async fn read(body: &mut h2::RecvStream, bytes: usize) -> bool {
    let mut left = bytes;
    while left > 0 {
        let Some(Ok(data)) = body.data().await else { return false };
        // Of a stream that was reset there is none.
        let _ = body.flow_control().release_capacity(data.len());
        left = left.saturating_sub(data.len());
    }
    true
}

async fn one_worker(routes: &str, clusters: &[(&str, SocketAddr, &str)]) -> Proxy {
    let set = |options: &mut weft_dataplane::Options| options.concurrency = std::num::NonZeroUsize::MIN;
    Proxy::start_with(&http_bootstrap("", routes, clusters), set).await
}

/// With its answer a request is over, however much of it has been sent: a client that goes on for ever must not keep others
/// from the endpoint's streams.
#[tokio::test(flavor = "multi_thread")]
async fn class_http2_streams_of_answered_requests_are_free() {
    let (addr, mut come) = streams(1).await;
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a, timeout: 0s}}]"#);
    let proxy = one_worker(&routes, &[("a", addr, HTTP2)]).await;
    let (frames, answered) = upload(proxy.addr(), &[]).await;
    frames.send(Bytes::from_static(b"hello")).await.unwrap();
    // Held, and not read: the endpoint does not end it.
    let (_request, mut respond) = come.recv().await.unwrap();
    answer(&mut respond, 200, "");
    let response = tokio::time::timeout(PATIENCE, answered).await.unwrap().unwrap().unwrap();
    assert_eq!(response.status(), 200);
    tokio::time::timeout(PATIENCE, frames.closed()).await.expect("the client hears that nobody reads on");
    let others = tokio::spawn(async move {
        let (_, mut respond) = come.recv().await.unwrap();
        answer(&mut respond, 200, "ok");
    });
    assert_eq!(get(proxy.addr(), "/").await.body, "ok");
    others.await.unwrap();
}

/// A body goes to one try at a time: what an earlier one would still read, a later one would miss.
#[tokio::test(flavor = "multi_thread")]
async fn a_try_that_is_over_reads_no_more_of_the_body() {
    const FIRST: usize = 100_000;
    let (addr, mut come) = streams(100).await;
    let proxy = one_worker(&with_retry("retry_on: 5xx, num_retries: 1"), &[("a", addr, HTTP2)]).await;
    let (frames, answered) = upload(proxy.addr(), &[]).await;
    let more = async |bytes: usize| frames.send(Bytes::from(vec![b'x'; bytes])).await.unwrap();
    for _ in 0..10 {
        more(FIRST / 10).await;
    }
    let (request, mut respond) = come.recv().await.unwrap();
    // More has come than the stream's window has room for.
    answer(&mut respond, 503, "");
    let (again, mut respond) = tokio::time::timeout(PATIENCE, come.recv()).await.expect("another try").unwrap();
    let (mut first, mut second) = (request.into_body(), again.into_body());
    assert!(read(&mut second, FIRST).await, "what had come before");
    assert!(!tokio::time::timeout(PATIENCE, read(&mut first, FIRST)).await.unwrap(), "the first try is over");
    more(1).await;
    drop(frames);
    assert!(tokio::time::timeout(PATIENCE, read(&mut second, 1)).await.expect("the rest in time"));
    answer(&mut respond, 200, "all of it");
    let response = tokio::time::timeout(PATIENCE, answered).await.unwrap().unwrap().unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "all of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn class_http2_answers_that_nobody_reads_hold_up_nobody() {
    const UNREAD: usize = 8;
    let (addr, mut come) = streams(100).await;
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a, timeout: 0s}}]"#);
    let proxy = one_worker(&routes, &[("a", addr, HTTP2)]).await;
    let endpoint = tokio::spawn(async move {
        // More than a stream has room for.
        let large = "x".repeat(2 * 1024 * 1024);
        for body in [large.as_str(); UNREAD].into_iter().chain(["ok"]) {
            let (_, mut respond) = come.recv().await.unwrap();
            answer(&mut respond, 200, body);
        }
    });
    let stream = tokio::net::TcpStream::connect(proxy.addr()).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut unread = Vec::new();
    for _ in 0..UNREAD {
        client = client.ready().await.unwrap();
        let request = http::Request::get("http://a.example/").body(()).unwrap();
        let (answered, _) = client.send_request(request, true).unwrap();
        unread.push(tokio::time::timeout(PATIENCE, answered).await.expect("in time").unwrap());
    }
    assert_eq!(get(proxy.addr(), "/").await.body, "ok");
    endpoint.await.unwrap();
    assert_eq!(unread.len(), UNREAD);
}
