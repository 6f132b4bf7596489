//! Ports over WebSockets: two channels per port, 2i for its bytes and 2i+1 for an error. Each channel begins with the port's
//! number, little-endian. The end of a connection is the end of the WebSocket when it was the last one.

use super::exec::{CLOSE_TIMEOUT, QUEUE, message, upgrade, write};
use super::{PodBackend, PodRef, backend, reference, spdy_streams};
use crate::server::{Context, closed};
use crate::status::ApiError;
use axum::body::Body;
use axum::extract::ws::{Message, WebSocket};
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::SplitStream;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::timeout;
use weft_k8s_api::Object;

/// SPDY inside a WebSocket: what kubectl asks for.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Ports of one WebSocket at most.
const MAX_PORTS: usize = 16;
/// Bytes per message to the client.
const CHUNK: usize = 32 * 1024;

pub(super) async fn handle(context: Context, pod: &Object, request: http::Request<Body>) -> Result<Response, ApiError> {
    let backend = backend(&context)?;
    if spdy_streams::is_wanted(&request) {
        let pod = reference(pod);
        let run = move |connection| spdy_streams::ports(connection, backend, pod);
        return spdy_streams::upgrade(&context, request, &["portforward.k8s.io"], run);
    }
    if spdy_streams::is_tunnel(&request, TUNNEL) {
        let upgrade = upgrade(request, &[TUNNEL]).await?;
        let permit = context.stream_permit()?;
        let (pod, mut closing) = (reference(pod), context.server.closing());
        return Ok(upgrade.on_upgrade(move |socket| async move {
            tokio::select! {
                () = spdy_streams::tunnel(socket, |pipe| spdy_streams::ports(pipe, backend, pod)) => {}
                () = closed(&mut closing) => {}
            }
            drop(permit);
        }));
    }
    let ports = ports(&context)?;
    let upgrade = upgrade(request, &["v4.channel.k8s.io", "v5.channel.k8s.io"]).await?;
    let permit = context.stream_permit()?;
    let pod = reference(pod);
    let mut closing = context.server.closing();
    Ok(upgrade.on_upgrade(move |socket| async move {
        tokio::select! {
            () = run(socket, backend, pod, ports) => {}
            () = closed(&mut closing) => {}
        }
        drop(permit);
    }))
}

fn ports(context: &Context) -> Result<Vec<u16>, ApiError> {
    let wrong = || ApiError::bad_request(format!("ports: 1 to {MAX_PORTS} numbers from 1 to 65535 are expected"));
    let texts = context.params.all("ports").flat_map(|p| p.split(','));
    let ports: Vec<u16> =
        texts.map(|t| t.trim().parse::<u16>().ok().filter(|p| *p > 0)).collect::<Option<_>>().ok_or_else(wrong)?;
    if ports.is_empty() || ports.len() > MAX_PORTS { Err(wrong()) } else { Ok(ports) }
}

async fn run(socket: WebSocket, backend: Arc<dyn PodBackend>, pod: PodRef, ports: Vec<u16>) {
    let (sink, source) = socket.split();
    let (outbox, queue) = mpsc::channel(QUEUE);
    let mut inboxes = Vec::new();
    let mut forwards = Vec::new();
    for (port, channel) in ports.into_iter().zip((0_u8..).step_by(2)) {
        let (inbox, received) = mpsc::channel(QUEUE);
        inboxes.push(inbox);
        forwards.push(forward(backend.clone(), pod.clone(), port, channel, received, outbox.clone()));
    }
    drop(outbox);
    let sending = async { tokio::join!(join_all(forwards), write(sink, queue)) };
    let mut sending = std::pin::pin!(sending);
    let reading = read(source, inboxes);
    let mut reading = std::pin::pin!(reading);
    let left = tokio::select! {
        () = &mut reading => true,
        _ = &mut sending => false,
    };
    // The client has gone: what it sent before still reaches the pod. Or all ports have ended: the client closes too.
    if left {
        let _ = timeout(CLOSE_TIMEOUT, sending).await;
    } else {
        let _ = timeout(CLOSE_TIMEOUT, reading).await;
    }
}

/// Hands the client's bytes to their ports. Ends when the client closes; the ports see that as the end of their input.
async fn read(mut source: SplitStream<WebSocket>, inboxes: Vec<Sender<Bytes>>) {
    while let Some(Ok(message)) = source.next().await {
        let mut bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            Message::Close(_) => return,
            _ => continue,
        };
        if bytes.len() < 2 {
            continue;
        }
        let channel = usize::from(bytes.split_to(1).first().copied().unwrap_or(u8::MAX));
        if channel % 2 == 0
            && let Some(inbox) = inboxes.get(channel / 2)
        {
            // A port that has ended takes nothing more.
            let _ = inbox.send(bytes).await;
        }
    }
}

async fn forward(
    backend: Arc<dyn PodBackend>,
    pod: PodRef,
    port: u16,
    channel: u8,
    mut inbox: Receiver<Bytes>,
    outbox: Sender<Message>,
) {
    for channel in [channel, channel + 1] {
        if outbox.send(message(channel, &port.to_le_bytes())).await.is_err() {
            return;
        }
    }
    let name = format!("{}/{}", pod.namespace, pod.name);
    let stream = match backend.connect(pod, port).await {
        Ok(stream) => stream,
        Err(error) => {
            let text = format!("cannot reach port {port} of pod {name}: {error}");
            let _ = outbox.send(message(channel + 1, text.as_bytes())).await;
            return;
        }
    };
    let (mut from_pod, mut to_pod) = tokio::io::split(stream);
    let inward = async {
        while let Some(bytes) = inbox.recv().await {
            if to_pod.write_all(&bytes).await.is_err() || to_pod.flush().await.is_err() {
                return;
            }
        }
        let _ = to_pod.shutdown().await;
    };
    let outward = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(read) = from_pod.read(&mut buffer).await {
            let Some(data) = buffer.get(..read).filter(|d| !d.is_empty()) else { return };
            if outbox.send(message(channel, data)).await.is_err() {
                return;
            }
        }
    };
    let mut outward = std::pin::pin!(outward);
    tokio::select! {
        () = &mut outward => {}
        // The end of the client's bytes is not the end of the pod's.
        () = inward => outward.await,
    }
}
