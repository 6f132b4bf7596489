//! Commands over WebSockets: `v4.channel.k8s.io` and `v5.channel.k8s.io`. Each message begins with the number of its channel:
//! 0 input, 1 output, 2 errors, 3 result (a `Status`), 4 terminal size; in v5, 255 closes the channel named in its body.

use super::{ExecRequest, ExecStreams, LogRequest, PodError, backend, container, reference, spdy_streams};
use crate::server::{Context, closed};
use crate::status::ApiError;
use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures_util::future::BoxFuture;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::timeout;
use weft_k8s_api::Object;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const RESULT: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Longest message from a client, in bytes.
pub(super) const MAX_MESSAGE: usize = 1 << 20;
/// Bytes of output per message.
const CHUNK: usize = 32 * 1024;
/// Messages waiting for a slow client.
pub(super) const QUEUE: usize = 16;
/// After the command's end its output is read as long as some comes within this time: a child that was left behind may hold
/// the pipe open for ever.
const LAST_OUTPUT: Duration = Duration::from_secs(2);
/// Time that the client gets to close its side.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Turns a request into a WebSocket that speaks one of the protocols.
pub(super) async fn upgrade(
    request: http::Request<Body>,
    protocols: &[&'static str],
) -> Result<WebSocketUpgrade, ApiError> {
    let (mut parts, _) = request.into_parts();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
    let upgrade =
        upgrade.map_err(|_| ApiError::bad_request("Upgrade request required: a WebSocket is expected here"))?;
    let upgrade = upgrade.protocols(protocols.iter().copied()).max_message_size(MAX_MESSAGE);
    if upgrade.selected_protocol().is_none() {
        return Err(ApiError::bad_request(format!(
            "no WebSocket protocol in common; offered: {}",
            protocols.join(", ")
        )));
    }
    Ok(upgrade)
}

pub(super) async fn handle(context: Context, pod: &Object, request: http::Request<Body>) -> Result<Response, ApiError> {
    let params = &context.params;
    let exec = ExecRequest {
        pod: reference(pod),
        container: container(pod, params, &["containers", "initContainers"])?,
        command: params.all("command").map(str::to_string).collect(),
        stdin: params.is_set("stdin"),
        tty: params.is_set("tty"),
    };
    if exec.command.is_empty() {
        return Err(ApiError::bad_request("you must specify at least one command for the container"));
    }
    let backend = backend(&context)?;
    if spdy_streams::is_wanted(&request) {
        let wanted = wanted_streams(&context, exec.tty);
        let streams = backend.exec(exec).await.map_err(PodError::into_error)?;
        let run = move |connection| spdy_streams::command(connection, wanted, streams);
        return spdy_streams::upgrade(&context, request, &["v4.channel.k8s.io"], run);
    }
    let upgrade = upgrade(request, &["v5.channel.k8s.io", "v4.channel.k8s.io"]).await?;
    let permit = context.stream_permit()?;
    let streams = backend.exec(exec).await.map_err(PodError::into_error)?;
    let mut closing = context.server.closing();
    Ok(upgrade.on_upgrade(move |socket| async move {
        tokio::select! {
            () = run(socket, streams) => {}
            () = closed(&mut closing) => {}
        }
        drop(permit);
    }))
}

/// The streams that a client opens over SPDY.
fn wanted_streams(context: &Context, tty: bool) -> Vec<&'static str> {
    let asked = [("stdin", "stdin"), ("stdout", "stdout"), ("stderr", "stderr")];
    let asked = asked.into_iter().filter(|(name, _)| context.params.is_set(name) && !(tty && *name == "stderr"));
    let resize = tty.then_some("resize");
    std::iter::once("error").chain(asked.map(|(_, stream)| stream)).chain(resize).collect()
}

/// Joins a container that runs: its output from now on. Containers here have no input that stays open.
pub(super) async fn attach(context: Context, pod: &Object, request: http::Request<Body>) -> Result<Response, ApiError> {
    let params = &context.params;
    if params.is_set("stdin") {
        return Err(ApiError::bad_request("containers have no input here: attach without -i, or use exec"));
    }
    let log = LogRequest {
        pod: reference(pod),
        container: container(pod, params, &["containers", "initContainers"])?,
        follow: true,
        tail_lines: Some(0),
        since_seconds: None,
        previous: false,
        timestamps: false,
        limit_bytes: None,
    };
    let log = backend(&context)?.logs(log).await.map_err(PodError::into_error)?;
    // The container's end is the end of its output.
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    let log = futures_util::stream::unfold((log, Some(ended)), |(mut log, mut ended)| async move {
        let Some(next) = log.next().await else {
            drop(ended.take());
            return None;
        };
        Some((next, (log, ended)))
    });
    let output = tokio_util::io::StreamReader::new(Box::pin(log));
    let streams = ExecStreams {
        stdin: None,
        stdout: Some(Box::new(output)),
        stderr: None,
        resize: None,
        exit: Box::pin(async move {
            let _ = end.await;
            Ok(0)
        }),
    };
    if spdy_streams::is_wanted(&request) {
        let wanted = wanted_streams(&context, false);
        let run = move |connection| spdy_streams::command(connection, wanted, streams);
        return spdy_streams::upgrade(&context, request, &["v4.channel.k8s.io"], run);
    }
    let upgrade = upgrade(request, &["v5.channel.k8s.io", "v4.channel.k8s.io"]).await?;
    let permit = context.stream_permit()?;
    let mut closing = context.server.closing();
    Ok(upgrade.on_upgrade(move |socket| async move {
        tokio::select! {
            () = run(socket, streams) => {}
            () = closed(&mut closing) => {}
        }
        drop(permit);
    }))
}

/// Moves bytes both ways until the command or the client ends.
async fn run(socket: WebSocket, streams: ExecStreams) {
    let (sink, source) = socket.split();
    let (outbox, queue) = mpsc::channel(QUEUE);
    let ExecStreams { stdin, stdout, stderr, resize, exit } = streams;
    let command = async move {
        let moved = AtomicU64::new(0);
        let outputs = async {
            tokio::join!(copy(STDOUT, stdout, &outbox, &moved), copy(STDERR, stderr, &outbox, &moved));
        };
        let result = ended(exit, outputs, &moved).await;
        let _ = outbox.send(message(RESULT, result_status(result).to_string().as_bytes())).await;
    };
    let reading = read(source, stdin, resize);
    let mut reading = std::pin::pin!(reading);
    let finished = tokio::select! {
        () = &mut reading => false,
        _ = async { tokio::join!(command, write(sink, queue)) } => true,
    };
    if finished {
        let _ = timeout(CLOSE_TIMEOUT, reading).await;
    }
}

/// How a command ended, when its output is out too. `moved` counts what `outputs` moves.
pub(super) async fn ended(
    mut exit: BoxFuture<'static, io::Result<i32>>,
    outputs: impl Future<Output = ()>,
    moved: &AtomicU64,
) -> io::Result<i32> {
    let mut outputs = std::pin::pin!(outputs);
    let result = tokio::select! {
        result = &mut exit => result,
        () = &mut outputs => return exit.await,
    };
    let mut seen = u64::MAX;
    while timeout(LAST_OUTPUT, &mut outputs).await.is_err() && seen != moved.load(Ordering::Relaxed) {
        seen = moved.load(Ordering::Relaxed);
    }
    result
}

pub(super) fn message(channel: u8, data: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(data.len() + 1);
    bytes.push(channel);
    bytes.extend_from_slice(data);
    Message::Binary(bytes.into())
}

/// Sends what is queued, then the end.
pub(super) async fn write(mut sink: SplitSink<WebSocket, Message>, mut queue: Receiver<Message>) {
    while let Some(message) = queue.recv().await {
        if sink.send(message).await.is_err() {
            return;
        }
    }
    let _ = sink.send(Message::Close(Some(CloseFrame { code: 1000, reason: "".into() }))).await;
}

type Output = Option<Box<dyn AsyncRead + Send + Unpin>>;

async fn copy(channel: u8, output: Output, outbox: &Sender<Message>, moved: &AtomicU64) {
    let Some(mut output) = output else { return };
    let mut buffer = vec![0; CHUNK];
    while let Ok(read) = output.read(&mut buffer).await {
        let Some(data) = buffer.get(..read).filter(|d| !d.is_empty()) else { return };
        if outbox.send(message(channel, data)).await.is_err() {
            return;
        }
        moved.fetch_add(1, Ordering::Relaxed);
    }
}

type Input = Option<Box<dyn AsyncWrite + Send + Unpin>>;
type Resize = Option<Box<dyn Fn(u16, u16) + Send + Sync>>;

/// Takes what the client sends, until it closes or breaks off.
async fn read(mut source: SplitStream<WebSocket>, mut stdin: Input, resize: Resize) {
    while let Some(Ok(message)) = source.next().await {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            // The Python client sends what is text as text.
            Message::Text(text) => text.into(),
            Message::Close(_) => return,
            _ => continue,
        };
        let Some((channel, data)) = bytes.split_first() else { continue };
        match (*channel, data) {
            (STDIN, data) if !data.is_empty() => {
                if let Some(input) = &mut stdin {
                    let written = input.write_all(data).await.is_ok() && input.flush().await.is_ok();
                    if !written {
                        // The command has closed its input; what follows is dropped.
                        stdin = None;
                    }
                }
            }
            (CLOSE, [STDIN]) => {
                if let Some(mut input) = stdin.take() {
                    let _ = input.shutdown().await;
                }
            }
            (RESIZE, data) => {
                let size: Option<Value> = serde_json::from_slice(data).ok();
                let side = |name: &str| size.as_ref()?.get(name)?.as_u64().and_then(|n| u16::try_from(n).ok());
                if let (Some(resize), Some(width), Some(height)) = (&resize, side("Width"), side("Height")) {
                    resize(width, height);
                }
            }
            _ => {}
        }
    }
}

pub(super) fn result_status(result: io::Result<i32>) -> Value {
    match result {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(error) => json!({
            "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
            "message": format!("the command could not be run: {error}"),
        }),
    }
}
