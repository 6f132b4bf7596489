//! Protocols: HTTP/1.0, HTTP/2 and gRPC with trailers, upgrades, long bodies with back-pressure.

#![allow(clippy::unwrap_used)]

mod common;
use bytes::Bytes;
use common::*;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A gRPC-like server: sends the request's body back, then trailers.
async fn grpc_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
                let headers_only = request.uri().path() == "/refuse";
                let te = request.headers().get("te").cloned();
                let mut builder = Response::builder().header("content-type", "application/grpc");
                if headers_only {
                    builder = builder.header("grpc-status", "5");
                }
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                trailers.insert("x-te", te.unwrap_or_else(|| "none".parse().unwrap()));
                let tail = (!headers_only).then(|| Ok(Frame::trailers(trailers)));
                let mut body = request.into_body();
                let frames =
                    futures_stream(async move |tx: tokio::sync::mpsc::Sender<Result<Frame<Bytes>, Infallible>>| {
                        while let Some(Ok(frame)) = body.frame().await {
                            if let Ok(data) = frame.into_data() {
                                tx.send(Ok(Frame::data(data))).await.unwrap();
                            }
                        }
                        if let Some(tail) = tail {
                            tx.send(tail).await.unwrap();
                        }
                    });
                Ok::<_, Infallible>(builder.body(StreamBody::new(frames)).unwrap())
            });
            tokio::spawn(async move {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    addr
}

/// A stream fed by a task.
fn futures_stream<F, R>(feed: F) -> tokio_stream::wrappers::ReceiverStream<Result<Frame<Bytes>, Infallible>>
where
    F: FnOnce(tokio::sync::mpsc::Sender<Result<Frame<Bytes>, Infallible>>) -> R,
    R: Future<Output = ()> + Send + 'static,
{
    let (tx, rx) = tokio::sync::mpsc::channel(1);
    tokio::spawn(feed(tx));
    tokio_stream::wrappers::ReceiverStream::new(rx)
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_with_trailers_over_shared_connections() {
    let server = grpc_server().await;
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a, timeout: 0s}}]"#);
    let proxy = Proxy::start(&http_bootstrap("", &routes, &[("a", server, HTTP2)])).await;
    let client = http2(proxy.addr()).await;
    let mut calls = Vec::new();
    for n in 0..50 {
        let mut client = client.clone();
        calls.push(tokio::spawn(async move {
            let request = Request::post("http://a.example/svc/Method")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(Full::from(vec![n as u8; 1000 + n]))
                .unwrap();
            let got = read(client.send_request(request).await.unwrap()).await.unwrap();
            assert_eq!((got.status, !got.body.is_empty()), (200, true));
            let trailers = got.trailers.unwrap();
            assert_eq!(
                (trailers["grpc-status"].as_bytes(), trailers["x-te"].as_bytes()),
                (&b"0"[..], &b"trailers"[..])
            );
        }));
    }
    for call in calls {
        call.await.unwrap();
    }
    assert!(proxy.metric("envoy_cluster_upstream_cx_http2_total", &[]) <= 2.0, "one connection for each worker");
    let mut client = client;
    let request = Request::post("http://a.example/refuse").header("content-type", "application/grpc");
    let got = read(client.send_request(request.body(Full::default()).unwrap()).await.unwrap()).await.unwrap();
    assert_eq!(got.header("grpc-status"), "5");
}

/// The answer to a HEAD has a length and no bytes, whoever gives it.
#[tokio::test(flavor = "multi_thread")]
async fn heads_over_http2_have_no_body() {
    let backend = Backend::echo("a").await;
    let routes = all(r#"[{match: {prefix: "/direct"}, direct_response: {status: 200, body: {inline_string: "hello"}}},
        {match: {prefix: "/none"}, route: {cluster: none}}, {match: {prefix: "/h2"}, route: {cluster: two}},
        {match: {prefix: "/"}, route: {cluster: one}}]"#);
    let clusters =
        [("one", backend.addr, ""), ("two", backend.addr, HTTP2), ("none", "127.0.0.1:1".parse().unwrap(), "")];
    let proxy = Proxy::start(&http_bootstrap("", &routes, &clusters)).await;
    let mut client = http2(proxy.addr()).await;
    for (path, status) in [("/direct", 200), ("/none", 503), ("/one", 200), ("/h2", 200), ("/direct", 200)] {
        let head = Request::head(format!("http://a.example{path}")).body(Full::default()).unwrap();
        let got = read(client.send_request(head).await.unwrap()).await.unwrap();
        assert_eq!((got.status, got.body.len()), (status, 0), "{path}");
        assert_ne!(got.header("content-length"), "0", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_translated() {
    let backend = Backend::echo("a").await;
    let routes =
        all(r#"[{match: {prefix: "/h2"}, route: {cluster: two}}, {match: {prefix: "/"}, route: {cluster: one}}]"#);
    let clusters = [("one", backend.addr, ""), ("two", backend.addr, HTTP2)];
    let proxy =
        Proxy::start(&http_bootstrap("http_protocol_options: {accept_http_10: true},", &routes, &clusters)).await;
    // HTTP/2 to HTTP/1: the authority becomes the host.
    let mut client = http2(proxy.addr()).await;
    let request = Request::get("http://b.example/x").body(Full::default()).unwrap();
    let got = read(client.send_request(request).await.unwrap()).await.unwrap();
    assert_eq!((got.status, got.seen("host")), (200, Some("b.example")));
    // HTTP/1 to HTTP/2 and back.
    let got = get(proxy.addr(), "/h2/x").await;
    assert_eq!((got.status, got.seen("host")), (200, Some("a.example")), "{}", got.body);
    // HTTP/1.0, with and without keep-alive.
    let answer = raw(proxy.addr(), b"GET /x HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Pipelined requests are answered in order.
    let two = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = raw_answers(proxy.addr(), two, 2).await;
    let (one, two) = (answer.find("GET /1").unwrap(), answer.find("GET /2").unwrap());
    assert!(one < two);
    // HEAD has no body, whatever the endpoint's length says.
    let answer = raw(proxy.addr(), b"HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
}

/// To a client of HTTP/1.0 the end of the connection is the end of the body: one that broke off must not look like that.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_does_not_end_in_order() {
    for (end, whole) in [("0\r\n\r\n", true), ("", false)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    assert!(stream.read_buf(&mut request).await.unwrap() > 0);
                }
                let answer = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n{end}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: one}}]"#);
        let hcm = "http_protocol_options: {accept_http_10: true},";
        let proxy = Proxy::start(&http_bootstrap(hcm, &routes, &[("one", addr, "")])).await;
        let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        let read = tokio::time::timeout(PATIENCE, client.read_to_string(&mut answer)).await.unwrap();
        match read {
            Ok(_) => assert!(whole && answer.ends_with("abc"), "{answer}"),
            Err(error) => assert!(!whole && error.kind() == std::io::ErrorKind::ConnectionReset, "{error}"),
        }
    }
}

/// Agrees to a WebSocket and sends back what it gets.
async fn websocket_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read(&mut byte).await.unwrap_or(0) == 0 {
                        return;
                    }
                    head.push(byte[0]);
                }
                let text = String::from_utf8_lossy(&head).to_lowercase();
                assert!(text.contains("upgrade: websocket") && text.contains("connection: upgrade"), "{text}");
                assert!(text.contains("sec-websocket-key: "), "{text}");
                let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n";
                stream.write_all(answer).await.unwrap();
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets() {
    let server = websocket_server().await;
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#);
    let hcm = "upgrade_configs: [{upgrade_type: websocket}],";
    let proxy = Proxy::start(&http_bootstrap(hcm, &routes, &[("a", server, "")])).await;
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    let ask = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).await.unwrap(), 1, "{}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).to_lowercase();
    assert!(text.starts_with("http/1.1 101") && text.contains("upgrade: websocket"), "{text}");
    for message in [&b"hello"[..], b"again"] {
        stream.write_all(message).await.unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back, message);
    }
    drop(stream);
    eventually("the tunnel ends", || proxy.handle.active_connections() == 0).await;

    // Where it is not allowed, it is refused.
    let proxy = Proxy::start(&http_bootstrap("", &routes, &[("a", server, "")])).await;
    let answer = raw(proxy.addr(), ask).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_over_http2() {
    let server = websocket_server().await;
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#);
    let hcm = "upgrade_configs: [{upgrade_type: websocket}],";
    let proxy = Proxy::start(&http_bootstrap(hcm, &routes, &[("a", server, "")])).await;
    let mut client = http2(proxy.addr()).await;
    // The server's SETTINGS must be in before extended CONNECT may be used.
    let warm = Request::get("http://a.example/").body(Full::default()).unwrap();
    let _ = client.send_request(warm).await;
    let mut request = Request::connect("http://a.example/chat").body(Full::<Bytes>::default()).unwrap();
    request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    let response = tokio::time::timeout(PATIENCE, client.send_request(request)).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_bodies_pass_whole_and_with_back_pressure() {
    let backend = Backend::start(|request| async move {
        let mut body = request.into_body();
        let mut n = 0;
        while let Some(Ok(frame)) = body.frame().await {
            n += frame.data_ref().map_or(0, Bytes::len);
        }
        let mut response = reply(200, "");
        *response.body_mut() = Full::from(vec![b'x'; n]);
        response
    })
    .await;
    let routes =
        all(r#"[{match: {prefix: "/h2"}, route: {cluster: two}}, {match: {prefix: "/"}, route: {cluster: one}}]"#);
    let clusters = [("one", backend.addr, ""), ("two", backend.addr, HTTP2)];
    let proxy = Proxy::start(&http_bootstrap("", &routes, &clusters)).await;
    const SIZE: usize = 5_000_000;
    for path in ["/h1", "/h2"] {
        let request = Request::post(path).header("host", "a").body(Full::from(vec![b'y'; SIZE])).unwrap();
        let got = send(proxy.addr(), request).await;
        assert_eq!((got.status, got.body.len()), (200, SIZE), "{path}");
    }
    // A chunked body stays chunked.
    let answer =
        raw(proxy.addr(), b"POST /h1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
            .await;
    assert!(answer.ends_with("xxx"), "{answer}");
    // Expect: 100-continue is answered here.
    let answer =
        raw(proxy.addr(), b"POST /h1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc")
            .await;
    assert!(answer.starts_with("HTTP/1.1 100") && answer.ends_with("xxx"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_ends_the_request() {
    let backend = Backend::start(|_| async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        reply(200, "late")
    })
    .await;
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a, timeout: 0s}}]"#);
    let proxy = Proxy::start(&http_bootstrap("", &routes, &[("a", backend.addr, "")])).await;
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    eventually("the endpoint was asked", || backend.count() == 1).await;
    drop(stream);
    eventually("nothing is left", || {
        proxy.handle.active_connections() == 0
            && proxy.metric("envoy_cluster_upstream_rq_active", &[]) == 0.0
            && proxy.metric("envoy_cluster_upstream_cx_active", &[]) == 0.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn class_memory_of_many_small_headers() {
    let a = Backend::echo("a").await;
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#);
    let hcm = "common_http_protocol_options: {max_headers_count: 20},";
    let proxy = Proxy::start(&http_bootstrap(hcm, &routes, &[("a", a.addr, "")])).await;
    let mut h2 = http2(proxy.addr()).await;
    for (count, want) in [(20, 200), (21, 431), (20, 200)] {
        let names: Vec<String> = (0..count).map(|n| format!("x-{n}")).collect();
        let mut ask = http::Request::get("http://a/");
        for name in &names {
            ask = ask.header(name, "1");
        }
        let answer = h2.send_request(ask.body(http_body_util::Full::default()).unwrap());
        let answer = tokio::time::timeout(PATIENCE, answer).await.expect("in time").unwrap();
        assert_eq!(answer.status(), want, "{count} over HTTP/2");
        // There the host is one of them.
        let names: Vec<(&str, &str)> = names[1..].iter().map(|name| (name.as_str(), "1")).collect();
        assert_eq!(get_with(proxy.addr(), "/", &names).await.status, want, "{count} over HTTP/1.1");
    }
    assert_eq!(a.count(), 4);
}

/// Requests that are given up as soon as an endpoint has them: each is cheap for the client alone.
#[tokio::test(flavor = "multi_thread")]
async fn class_http2_who_gives_up_most_requests_is_asked_to_go() {
    const MANY: usize = 500;
    let (slow, mut asked, _never) = slow(|| reply(200, "")).await;
    let routes = all(r#"[{match: {prefix: "/"}, route: {cluster: a, timeout: 0s}}]"#);
    let proxy = Proxy::start(&http_bootstrap("", &routes, &[("a", slow.addr, HTTP2)])).await;
    let stream = TcpStream::connect(proxy.addr()).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut given_up = 0;
    let asked_to_go = |error: h2::Error| {
        assert!(error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR), "{error}");
    };
    loop {
        client = match client.ready().await {
            Ok(client) => client,
            Err(error) => break asked_to_go(error),
        };
        assert!(given_up < 2 * MANY, "it goes on");
        let request = http::Request::get("http://a/").body(()).unwrap();
        let (mut answer, mut stream) = match client.send_request(request, true) {
            Ok(sent) => sent,
            Err(error) => break asked_to_go(error),
        };
        let come = async {
            tokio::select! {
                asked = asked.recv() => asked.unwrap(),
                // It crossed the word that asks to go.
                answer = &mut answer => assert!(answer.is_err()),
            }
        };
        tokio::time::timeout(PATIENCE, come).await.expect("the endpoint has it");
        stream.send_reset(h2::Reason::CANCEL);
        given_up += 1;
    }
    assert!(given_up >= MANY, "{given_up}");
}
