//! TCP through an HTTP proxy: a connection becomes one `CONNECT` (or `POST`) request, over HTTP/1.1 or HTTP/2 as the cluster
//! speaks. What passes through it is the caller's matter.

use crate::downstream::Downstream;
use crate::http::target::address;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, Uri};
use http_body::Frame;
use http_body_util::BodyExt;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf, split,
};
use tokio::sync::mpsc;
use weft_cluster::{ConnectionFacts, Host, Lease, LiveCluster, Retry, UpstreamError, Want};
use weft_codec::upgrade::Upgraded;
use weft_codec::{BodyError, ProxyBody, Reason};
use weft_proxy_config::{Tunnel, UpstreamProtocol};

/// Bytes on their way in a `POST` at once, and frames of them.
const BUFFER: usize = 32 * 1024;
const FRAMES: usize = 4;

/// A stream through the HTTP proxy.
pub(crate) enum Stream {
    /// `CONNECT`.
    Connected(Upgraded),
    /// `POST`: request and response bodies, joined.
    Posted(DuplexStream),
}

type Frames = mpsc::Sender<Result<Frame<Bytes>, BodyError>>;

/// Asks an endpoint for a way to the tunnel's target; it has the cluster's connect timeout for its answer.
///
/// # Errors
/// When the endpoint cannot be reached or does not agree in time.
pub(crate) async fn open(
    cluster: &Rc<LiveCluster>,
    host: &Rc<Host>,
    tunnel: &Tunnel,
    downstream: &Downstream,
) -> Result<(Stream, Rc<ConnectionFacts>, Option<Lease>), UpstreamError> {
    let target = HeaderValue::from_str(&tunnel.target).map_err(|_| UpstreamError::unsent(Reason::LocalReset))?;
    let want = Want {
        http2: cluster.config.protocol == UpstreamProtocol::Http2,
        // Over HTTP/1.1 the connection is the tunnel, and is nothing else afterwards.
        fresh: cluster.config.protocol != UpstreamProtocol::Http2,
        careful: true,
        host: Some(&tunnel.target),
        client: Some((downstream.source, downstream.destination)),
        source: downstream.from,
        own: Some(&downstream.own),
        priority: weft_route::Priority::Default,
    };
    let limit = cluster.config.connect_timeout;
    let lease = cluster.acquire(host, want).await?;
    let asked = ask(cluster, tunnel, &target, lease);
    tokio::time::timeout(limit, asked).await.unwrap_or_else(|_elapsed| {
        cluster.stats.cx_connect_timeout.inc();
        Err(UpstreamError::unsent(Reason::ConnectTimeout).with_detail("the HTTP proxy did not answer to the tunnel"))
    })
}

async fn ask(
    cluster: &Rc<LiveCluster>,
    tunnel: &Tunnel,
    target: &HeaderValue,
    mut lease: Lease,
) -> Result<(Stream, Rc<ConnectionFacts>, Option<Lease>), UpstreamError> {
    let facts = lease.facts.clone();
    let (mut request, sender) = request(tunnel.post);
    for (name, value) in &tunnel.headers {
        request.headers_mut().append(name, value.clone());
    }
    address(&mut request, target, "http", lease.is_http2());
    cluster.stats.rq_total.inc();
    let mut response = lease.send(request).await.map_err(|failure| failure.error)?;
    cluster.stats.response(response.status().as_u16());
    if !response.status().is_success() {
        return Err(refused(&response));
    }
    let stream = match sender {
        Some(sender) => Stream::Posted(joined(sender, response.into_body())),
        None => {
            let closed = || UpstreamError::unsent(Reason::ConnectionTermination);
            let upgrading = lease.upgrade(&mut response).ok_or_else(closed)?;
            Stream::Connected(upgrading.done().await.map_err(|_| closed())?)
        }
    };
    Ok((stream, facts, Some(lease)))
}

fn request(post: bool) -> (Request<ProxyBody>, Option<Frames>) {
    if !post {
        let mut request = Request::new(ProxyBody::empty());
        *request.method_mut() = Method::CONNECT;
        // Without a path: that would make it an extended CONNECT. The target is written by `address`.
        *request.uri_mut() = Uri::from_static("tunnel:0");
        return (request, None);
    }
    let (sender, frames) = mpsc::channel(FRAMES);
    let mut request = Request::new(ProxyBody::channel(frames));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from(PathAndQuery::from_static("/"));
    request.headers_mut().remove(CONTENT_LENGTH);
    request.headers_mut().remove(TRANSFER_ENCODING);
    (request, Some(sender))
}

fn refused(response: &Response<ProxyBody>) -> UpstreamError {
    let detail = format!("the HTTP proxy answered {} to the tunnel", response.status().as_u16());
    UpstreamError { reason: Reason::ConnectionFailure, retry: Retry::Unsent, detail: Some(detail.into()) }
}

/// One stream of what goes into a request's body and comes out of its response's.
fn joined(sender: Frames, response: ProxyBody) -> DuplexStream {
    let (near, far) = tokio::io::duplex(BUFFER);
    let (read, write) = split(far);
    tokio::task::spawn_local(upwards(read, sender));
    tokio::task::spawn_local(downwards(response, write));
    near
}

async fn upwards(mut read: ReadHalf<DuplexStream>, sender: Frames) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(n) = read.read(&mut buffer).await {
        let frame = Frame::data(Bytes::copy_from_slice(&buffer[..n]));
        if n == 0 || sender.send(Ok(frame)).await.is_err() {
            return;
        }
    }
}

async fn downwards(mut response: ProxyBody, mut write: WriteHalf<DuplexStream>) {
    while let Some(Ok(frame)) = response.frame().await {
        if let Some(data) = frame.data_ref()
            && write.write_all(data).await.is_err()
        {
            return;
        }
    }
    let _ = write.shutdown().await;
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Connected(io) => Pin::new(io).poll_read(cx, buf),
            Stream::Posted(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Connected(io) => Pin::new(io).poll_write(cx, buf),
            Stream::Posted(io) => Pin::new(io).poll_write(cx, buf),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Connected(io) => Pin::new(io).poll_flush(cx),
            Stream::Posted(io) => Pin::new(io).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Connected(io) => Pin::new(io).poll_shutdown(cx),
            Stream::Posted(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
