//! The application behind every pair: HTTP/1.1 and HTTP/2 on one port, and bytes on another. It runs in a thread of this
//! program, so that its time never counts as a proxy's.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

/// The usual answer: 131 bytes, as a small JSON document has.
const SMALL: &[u8] = &[b'w'; 131];
/// A gRPC message of 16 bytes with its prefix.
const GRPC: &[u8] = &[0, 0, 0, 0, 16, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

/// Where it listens, and what it has received.
#[derive(Clone)]
pub struct Backend {
    /// Port for HTTP/1.1 and HTTP/2 without TLS.
    pub http: u16,
    /// Port that reads and throws away.
    pub sink: u16,
    /// Bytes that [`Backend::sink`] has read.
    pub received: Arc<AtomicU64>,
}

/// Starts it.
pub fn start() -> Result<Backend> {
    let (sender, ports) = std::sync::mpsc::channel();
    let received = Arc::new(AtomicU64::new(0));
    let counter = received.clone();
    std::thread::Builder::new().name("backend".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Ok(runtime) = runtime {
            runtime.block_on(serve(&sender, counter));
        }
    })?;
    let (http, sink) = ports.recv().context("the backend did not start")?;
    Ok(Backend { http, sink, received })
}

async fn serve(ports: &std::sync::mpsc::Sender<(u16, u16)>, received: Arc<AtomicU64>) {
    let (Ok(http), Ok(sink)) = (TcpListener::bind("127.0.0.1:0").await, TcpListener::bind("127.0.0.1:0").await) else {
        return;
    };
    let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port()).unwrap_or_default();
    if ports.send((port(&http), port(&sink))).is_err() {
        return;
    }
    loop {
        tokio::select! {
            Ok((stream, _)) = http.accept() => drop(tokio::spawn(answer_all(stream))),
            Ok((stream, _)) = sink.accept() => drop(tokio::spawn(drain(stream, received.clone()))),
        }
    }
}

async fn answer_all(stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
}

async fn answer(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let grpc = request.headers().get(http::header::CONTENT_TYPE).is_some_and(|kind| kind == "application/grpc");
    let size = request.uri().path().strip_prefix("/bytes/").and_then(|count| count.parse().ok());
    // A body that is sent must be read to its end: the connection is used again.
    let mut body = request.into_body();
    while body.frame().await.is_some() {}
    let mut response = Response::new(match size {
        Some(size) => Full::new(Bytes::from(vec![b'w'; size])).boxed(),
        None if grpc => Full::new(Bytes::from_static(GRPC)).with_trailers(async { Some(Ok(grpc_ok())) }).boxed(),
        None => Full::new(Bytes::from_static(SMALL)).boxed(),
    });
    let kind = if grpc { "application/grpc" } else { "text/plain" };
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

fn grpc_ok() -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))])
}

async fn drain(mut stream: TcpStream, received: Arc<AtomicU64>) {
    let mut buffer = vec![0; 256 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        received.fetch_add(count as u64, Ordering::Relaxed);
    }
}
