//! The application of the soak: HTTP/1.1 and HTTP/2 on ports 8080 and 8081 (`/bytes/N`, gRPC's unary echo, else `ok`), and
//! an echo of bytes on port 9000. After SIGTERM it serves on for a while, as one does whose clients learn of it later.

use anyhow::Result;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// How long it serves on.
const LINGER: Duration = Duration::from_secs(6);

/// Serves until SIGTERM.
///
/// # Errors
/// When a port is in use.
pub async fn run() -> Result<()> {
    let (http, grpc) = (TcpListener::bind("0.0.0.0:8080").await?, TcpListener::bind("0.0.0.0:8081").await?);
    let tcp = TcpListener::bind("0.0.0.0:9000").await?;
    let mut end = signal(SignalKind::terminate())?;
    let serving = async {
        loop {
            tokio::select! {
                accepted = http.accept() => if let Ok((stream, _)) = accepted { tokio::spawn(serve(stream)); },
                accepted = grpc.accept() => if let Ok((stream, _)) = accepted { tokio::spawn(serve(stream)); },
                accepted = tcp.accept() => if let Ok((stream, _)) = accepted { tokio::spawn(echo(stream)); },
            }
        }
    };
    tokio::select! {
        () = serving => {}
        () = async { end.recv().await; tokio::time::sleep(LINGER).await; } => {}
    }
    Ok(())
}

async fn serve(stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(async |request| Ok::<_, Infallible>(answer(request).await));
    // A client that goes away is no concern of the application.
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_string();
    if let Some(count) = path.strip_prefix("/bytes/").and_then(|n| n.parse::<usize>().ok()) {
        return Response::new(full(Bytes::from(vec![b'w'; count.min(16 << 20)])));
    }
    if !path.starts_with("/soak.Echo/") {
        return Response::new(full(Bytes::from_static(b"ok")));
    }
    let message = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let trailers: HeaderMap =
        [(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))].into_iter().collect();
    let frames = [Ok(Frame::data(message)), Ok(Frame::trailers(trailers))];
    let mut response =
        Response::new(http_body_util::StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).boxed_unsync()
}

async fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    while let Ok(read) = stream.read_buf(&mut buffer).await {
        if read == 0 || stream.write_all(&buffer).await.is_err() {
            return;
        }
        buffer.clear();
    }
}

/// A message of gRPC, framed.
pub fn message(text: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + text.len());
    out.put_u8(0);
    out.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    out.put_slice(text);
    out.freeze()
}
