//! WebSockets: a server that sends back what it gets, under the port and paths of the usual tornado sample, and a client that
//! says a few words.

use crate::serve;
use anyhow::{Context as _, bail, ensure};
use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Html;
use axum::routing::get;
use clap::Args as ClapArgs;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Largest head of an answer.
const MAX_HEAD: usize = 16 << 10;
/// Time for a whole conversation.
const LIMIT: Duration = Duration::from_secs(20);
const PAGE: &str = "<!DOCTYPE html><title>tornado WebSocket example</title><pre id=log></pre><script>\
                    const socket = new WebSocket((location.protocol === 'https:' ? 'wss://' : 'ws://') + location.host + '/ws');\
                    socket.onmessage = event => document.getElementById('log').textContent += event.data + '\\n';\
                    socket.onopen = () => socket.send('hello');</script>";

pub async fn run(listen: serve::Listen) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        .route("/ws", get(|upgrade: WebSocketUpgrade| async { upgrade.on_upgrade(echo) }));
    serve::http(listen, 8888, router).await
}

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let answer = match message {
            Message::Text(_) | Message::Binary(_) => message,
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => continue,
        };
        if socket.send(answer).await.is_err() {
            return;
        }
    }
}

#[derive(ClapArgs)]
pub struct ClientArgs {
    /// HOST:PORT/PATH
    address: String,
    /// What is said, one message each; the answers are printed
    words: Vec<String>,
    /// Host header; the address unless given
    #[arg(long)]
    host: Option<String>,
}

pub async fn client(args: ClientArgs) -> anyhow::Result<()> {
    tokio::time::timeout(LIMIT, talk(args)).await.context("the conversation took too long")?
}

async fn talk(args: ClientArgs) -> anyhow::Result<()> {
    let (authority, path) = args.address.split_once('/').context("an address is HOST:PORT/PATH")?;
    let mut stream = TcpStream::connect(authority).await.with_context(|| authority.to_string())?;
    let host = args.host.as_deref().unwrap_or(authority);
    let ask = format!(
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(ask.as_bytes()).await?;
    let head = head(&mut stream).await?;
    let status = head.lines().next().unwrap_or_default();
    println!("{status}");
    if !status.contains(" 101 ") {
        bail!("not upgraded: {status}");
    }
    for word in &args.words {
        stream.write_all(&frame(word.as_bytes())?).await?;
        println!("{}", message(&mut stream).await?);
    }
    Ok(())
}

async fn head(stream: &mut TcpStream) -> anyhow::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < MAX_HEAD, "the answer's head is too long");
        head.push(stream.read_u8().await.with_context(|| String::from_utf8_lossy(&head).into_owned())?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// A text of up to 125 bytes, masked with nothing, as clients have to mask (RFC 6455, 5.3).
fn frame(text: &[u8]) -> anyhow::Result<Vec<u8>> {
    let length = u8::try_from(text.len()).ok().filter(|length| *length < 126).context("words of up to 125 bytes")?;
    Ok([&[0x81, 0x80 | length, 0, 0, 0, 0], text].concat())
}

async fn message(stream: &mut TcpStream) -> anyhow::Result<String> {
    let (kind, length) = (stream.read_u8().await?, stream.read_u8().await?);
    ensure!(kind == 0x81 && length < 126, "not a short text: {kind:#x}, {length} bytes");
    let mut text = vec![0; usize::from(length)];
    stream.read_exact(&mut text).await?;
    Ok(String::from_utf8(text)?)
}
