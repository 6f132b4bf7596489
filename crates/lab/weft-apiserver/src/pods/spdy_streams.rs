//! Commands and ports over SPDY: how a connection becomes one (an upgraded connection, or a WebSocket that carries its bytes), and
//! what its streams are for. Source: Kubernetes' `remotecommand` (`v4.channel.k8s.io`) and `portforward.k8s.io` protocols.

use super::exec::{MAX_MESSAGE, ended, result_status};
use super::spdy::{self, CHUNK, Output, Stream};
use super::{ExecStreams, PodBackend, PodRef};
use crate::server::{Context, closed};
use crate::status::ApiError;
use axum::body::Body;
use axum::extract::ws::{Message, WebSocket};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, HeaderName, UPGRADE};
use http::{HeaderValue, StatusCode};
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;
use tokio::time::timeout;

const PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Time that a client gets to open the streams of a command, or the second stream of a connection.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// After the client's end, what still goes on over its connections gets this time each.
const LAST_OUTPUT: Duration = Duration::from_secs(2);
/// Connections that are carried at once.
const MAX_CONNECTIONS: usize = 128;
/// Bytes on their way between a WebSocket and the streams that it carries.
const TUNNEL: usize = 256 * 1024;

/// Whether a client wants SPDY.
pub(super) fn is_wanted(request: &http::Request<Body>) -> bool {
    let upgrade = request.headers().get(UPGRADE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    upgrade.eq_ignore_ascii_case("SPDY/3.1")
}

/// Whether a client wants SPDY inside a WebSocket.
pub(super) fn is_tunnel(request: &http::Request<Body>, protocol: &str) -> bool {
    let protocols = request.headers().get_all("sec-websocket-protocol");
    protocols.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).any(|p| p.trim() == protocol)
}

/// Upgrades a connection; `run` gets it until the server stops.
pub(super) fn upgrade<F>(
    context: &Context,
    mut request: http::Request<Body>,
    protocols: &[&'static str],
    run: impl FnOnce(TokioIo<hyper::upgrade::Upgraded>) -> F + Send + 'static,
) -> Result<Response, ApiError>
where
    F: Future<Output = ()> + Send,
{
    let offered = request.headers().get_all(PROTOCOL);
    let offered: Vec<&str> =
        offered.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(str::trim).collect();
    let chosen = protocols.iter().find(|p| offered.contains(*p)).ok_or_else(|| {
        ApiError::forbidden(format!("no stream protocol in common; offered here: {}", protocols.join(", ")))
    })?;
    let permit = context.stream_permit()?;
    let mut closing = context.server.closing();
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(connection) = upgraded.await {
            tokio::select! {
                () = run(TokioIo::new(connection)) => {}
                () = closed(&mut closing) => {}
            }
        }
        drop(permit);
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(PROTOCOL, HeaderValue::from_static(chosen));
    Ok(response)
}

/// Carries the bytes of a WebSocket to one end of a pipe; `run` gets the other.
pub(super) async fn tunnel<F: Future<Output = ()>>(socket: WebSocket, run: impl FnOnce(DuplexStream) -> F) {
    let (near, far) = tokio::io::duplex(TUNNEL);
    let (mut from, mut to) = tokio::io::split(near);
    let (mut sink, mut source) = socket.split();
    let inward = async {
        while let Some(Ok(message)) = source.next().await {
            let bytes = match message {
                Message::Binary(bytes) if bytes.len() <= MAX_MESSAGE => bytes,
                Message::Close(_) => break,
                _ => continue,
            };
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    let outward = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(read) = from.read(&mut buffer).await {
            let Some(data) = buffer.get(..read).filter(|d| !d.is_empty()) else { break };
            if sink.send(Message::Binary(Bytes::copy_from_slice(data))).await.is_err() {
                break;
            }
        }
        let _ = sink.close().await;
    };
    tokio::join!(inward, outward, run(far));
}

/// Runs a command: streams `error`, `stdin`, `stdout`, `stderr`, `resize`, as far as the request asked for them.
pub(super) async fn command<S>(connection: S, wanted: Vec<&'static str>, streams: ExecStreams)
where
    S: AsyncRead + AsyncWrite + Send,
{
    let (opened, work) = spdy::serve(connection);
    let session = async {
        if let Ok(Some(found)) = timeout(OPEN_TIMEOUT, collect(opened, &wanted)).await {
            exchange(found, streams).await;
        }
    };
    tokio::join!(work, session);
}

/// Waits for the streams of a command. The receiver stays with them: without it no further stream is taken.
async fn collect(mut opened: Receiver<Stream>, wanted: &[&'static str]) -> Option<HashMap<String, Stream>> {
    let mut found = HashMap::new();
    while wanted.iter().any(|name| !found.contains_key(*name)) {
        let stream = opened.recv().await?;
        let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
        found.insert(kind, stream);
    }
    Some(found)
}

async fn exchange(mut found: HashMap<String, Stream>, streams: ExecStreams) {
    let ExecStreams { stdin, stdout, stderr, resize, exit } = streams;
    let mut side = |name: &str| found.remove(name);
    let (error, input) = (side("error"), side("stdin"));
    let (out, err, sizes) = (side("stdout"), side("stderr"), side("resize"));
    let mut helpers = JoinSet::new();
    if let (Some(mut input), Some(mut stdin)) = (input, stdin) {
        helpers.spawn(async move {
            while let Some(bytes) = input.input.recv().await {
                if stdin.write_all(&bytes).await.is_err() || stdin.flush().await.is_err() {
                    break;
                }
            }
            let _ = stdin.shutdown().await;
        });
    }
    if let (Some(mut sizes), Some(resize)) = (sizes, resize) {
        helpers.spawn(async move {
            while let Some(bytes) = sizes.input.recv().await {
                let size: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
                let edge = |name: &str| size.get(name)?.as_u64().and_then(|n| u16::try_from(n).ok());
                if let (Some(width), Some(height)) = (edge("Width"), edge("Height")) {
                    resize(width, height);
                }
            }
        });
    }
    let moved = AtomicU64::new(0);
    let outputs = async {
        tokio::join!(copy(stdout, out, &moved), copy(stderr, err, &moved));
    };
    let result = ended(exit, outputs, &moved).await;
    if let Some(error) = error {
        error.output.send(result_status(result).to_string().as_bytes()).await;
        error.output.close().await;
    }
    helpers.shutdown().await;
}

async fn copy(from: Option<Box<dyn AsyncRead + Send + Unpin>>, to: Option<Stream>, moved: &AtomicU64) {
    let Some(to) = to else { return };
    if let Some(mut from) = from {
        let mut buffer = vec![0; CHUNK];
        while let Ok(read) = from.read(&mut buffer).await {
            let Some(data) = buffer.get(..read).filter(|d| !d.is_empty()) else { break };
            if !to.output.send(data).await {
                break;
            }
            moved.fetch_add(1, Ordering::Relaxed);
        }
    }
    to.output.close().await;
}

/// Carries connections: two streams each, `error` and `data`, with the same `requestid`, and the port in both.
pub(super) async fn ports<S>(connection: S, backend: Arc<dyn PodBackend>, pod: PodRef)
where
    S: AsyncRead + AsyncWrite + Send,
{
    let (mut opened, work) = spdy::serve(connection);
    let session = async move {
        let mut waiting: HashMap<String, Stream> = HashMap::new();
        let mut connections = JoinSet::new();
        loop {
            let stream = tokio::select! {
                Some(_) = connections.join_next() => continue,
                stream = opened.recv() => stream,
            };
            let Some(stream) = stream else { break };
            let request = stream.headers.get("requestid").cloned().unwrap_or_default();
            let Some(other) = waiting.remove(&request) else {
                if waiting.len() < MAX_CONNECTIONS {
                    waiting.insert(request, stream);
                }
                continue;
            };
            let is_error = |s: &Stream| s.headers.get("streamtype").is_some_and(|t| t == "error");
            let (error, data) = if is_error(&stream) { (stream, other) } else { (other, stream) };
            if connections.len() < MAX_CONNECTIONS {
                connections.spawn(carry(backend.clone(), pod.clone(), error.output, data, error.headers));
            }
        }
        // What was sent is still carried when the client has said all.
        while timeout(LAST_OUTPUT, connections.join_next()).await.is_ok_and(|done| done.is_some()) {}
    };
    let mut session = std::pin::pin!(session);
    tokio::select! {
        () = work => {}
        () = &mut session => {}
    }
}

async fn carry(
    backend: Arc<dyn PodBackend>,
    pod: PodRef,
    error: Output,
    data: Stream,
    headers: spdy::headers::Headers,
) {
    let name = format!("{}/{}", pod.namespace, pod.name);
    let port = headers.get("port").and_then(|p| p.parse::<u16>().ok()).unwrap_or(0);
    let stream = match backend.connect(pod, port).await {
        Ok(stream) => stream,
        Err(why) => {
            error.send(format!("cannot reach port {port} of pod {name}: {why}").as_bytes()).await;
            error.close().await;
            data.output.close().await;
            return;
        }
    };
    let Stream { mut input, output, .. } = data;
    let (mut from_pod, mut to_pod) = tokio::io::split(stream);
    let inward = async {
        while let Some(bytes) = input.recv().await {
            if to_pod.write_all(&bytes).await.is_err() || to_pod.flush().await.is_err() {
                return;
            }
        }
        let _ = to_pod.shutdown().await;
    };
    let outward = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(read) = from_pod.read(&mut buffer).await {
            let Some(bytes) = buffer.get(..read).filter(|d| !d.is_empty()) else { return };
            if !output.send(bytes).await {
                return;
            }
        }
    };
    {
        let mut outward = std::pin::pin!(outward);
        tokio::select! {
            () = &mut outward => {}
            // The end of the client's bytes is not the end of the pod's.
            () = inward => outward.await,
        }
    }
    output.close().await;
    error.close().await;
}
