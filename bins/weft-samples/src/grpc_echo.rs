//! gRPC without a schema: service `samples.Echo` sends messages back as they are, and a client that calls it. Method `Unary`
//! takes one message; `Stream` sends each back when it comes; `Repeat` sends the first one back three times; `Refuse` ends with
//! status 5 and no message; `Flaky` ends two calls of three with status 14.

use crate::serve;
use anyhow::{Context as _, ensure};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request};
use axum::response::Response;
use bytes::{Buf as _, Bytes};
use clap::Args as ClapArgs;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_stream::wrappers::ReceiverStream;

/// Most bytes of an answer.
const MAX_ANSWER: usize = 1 << 20;
/// Time for a whole call.
const LIMIT: Duration = Duration::from_secs(20);

pub async fn run(listen: serve::Listen) -> anyhow::Result<()> {
    serve::http(listen, 7070, Router::new().route("/samples.Echo/{method}", axum::routing::post(call))).await
}

async fn call(Path(method): Path<String>, request: Request) -> Response {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let refused = match method.as_str() {
        "Refuse" => Some("5"),
        "Flaky" if CALLS.fetch_add(1, Ordering::Relaxed) % 3 < 2 => Some("14"),
        "Unary" | "Stream" | "Repeat" | "Flaky" => None,
        _ => Some("12"),
    };
    println!("{method}: {}", refused.unwrap_or("0"));
    let answer = Response::builder().header("content-type", "application/grpc");
    // Without a message the status stands in the head.
    let built = match refused {
        Some(status) => answer.header("grpc-status", status).header("grpc-message", "refused").body(Body::empty()),
        None => answer.body(Body::new(StreamBody::new(echo(request.into_body(), method == "Repeat")))),
    };
    built.unwrap_or_default()
}

/// The body's bytes as they come, or the whole of it three times; then the status.
fn echo(body: Body, repeat: bool) -> ReceiverStream<Result<Frame<Bytes>, Infallible>> {
    let (send, frames) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        let mut pieces = body.into_data_stream();
        let mut whole = Vec::new();
        while let Some(Ok(piece)) = pieces.next().await {
            if repeat {
                whole.extend_from_slice(&piece);
            } else if send.send(Ok(Frame::data(piece))).await.is_err() {
                return;
            }
        }
        for _ in 0..if repeat { 3 } else { 0 } {
            let _ = send.send(Ok(Frame::data(Bytes::from(whole.clone())))).await;
        }
        let trailers = HeaderMap::from_iter([
            (http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0")),
            (http::HeaderName::from_static("x-tail"), HeaderValue::from_static("told")),
        ]);
        let _ = send.send(Ok(Frame::trailers(trailers))).await;
    });
    ReceiverStream::new(frames)
}

#[derive(ClapArgs)]
pub struct ClientArgs {
    /// HOST:PORT
    address: String,
    /// Method
    method: String,
    /// Messages; each is sent when the answer to the one before is there, as far as the method answers
    words: Vec<String>,
    /// Authority; the address unless given
    #[arg(long)]
    host: Option<String>,
}

/// Prints the answer's messages, `status N`, and `tail TEXT` for the trailer `x-tail`.
pub async fn client(args: ClientArgs) -> anyhow::Result<()> {
    tokio::time::timeout(LIMIT, ask(args)).await.context("the call took too long")?
}

async fn ask(args: ClientArgs) -> anyhow::Result<()> {
    let stream = TcpStream::connect(&args.address).await.with_context(|| args.address.clone())?;
    let executor = TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (send, frames) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let host = args.host.as_deref().unwrap_or(&args.address);
    let request = http::Request::post(format!("http://{host}/samples.Echo/{}", args.method))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(ReceiverStream::new(frames)))?;
    let mut words = args.words.iter();
    let next = |words: &mut std::slice::Iter<'_, String>| words.next().map(|word| Ok(Frame::data(message(word))));
    if let Some(first) = next(&mut words) {
        send.send(first).await?;
    }
    // Only a stream is held open for an answer to each message.
    let mut send = Some(send).filter(|_| args.method == "Stream");
    let response = sender.send_request(request).await?;
    let (head, mut body) = response.into_parts();
    let mut trailers = head.headers;
    let mut answer = bytes::BytesMut::new();
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => {
                answer.extend_from_slice(&data);
                ensure!(answer.len() <= MAX_ANSWER, "the answer is too long");
                while let Some(text) = taken(&mut answer) {
                    println!("{text}");
                    match next(&mut words).zip(send.as_ref()) {
                        Some((word, send)) => send.send(word).await?,
                        None => send = None,
                    }
                }
            }
            Err(frame) => trailers.extend(frame.into_trailers().ok().into_iter().flatten()),
        }
    }
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("-");
    println!("status {}\ntail {}", text("grpc-status"), text("x-tail"));
    Ok(())
}

/// A message as gRPC frames it: not compressed, its length, its bytes.
fn message(text: &str) -> Bytes {
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0], &length[..], text.as_bytes()].concat().into()
}

/// Takes the first message when it is there whole.
fn taken(buffer: &mut bytes::BytesMut) -> Option<String> {
    let length = u32::from_be_bytes(buffer.get(1..5)?.try_into().ok()?) as usize;
    if buffer.len() < 5 + length {
        return None;
    }
    buffer.advance(5);
    Some(String::from_utf8_lossy(&buffer.split_to(length)).into_owned())
}
