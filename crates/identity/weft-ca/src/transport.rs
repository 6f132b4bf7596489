//! A TLS connection as tonic's server wants it: a stream that tells each request who is at the other end.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use weft_tls::{Accepted, PeerCertificate, ServerStream, TlsFacts};

/// Who is at the other end; in the extensions of every request.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// Address of the client.
    pub remote: SocketAddr,
    /// Its certificate, verified; `None` when it showed none.
    pub peer: Option<Arc<PeerCertificate>>,
}

/// A TLS connection after its handshake, for [`tonic::transport::Server::serve_with_incoming`].
pub struct TlsConnection<S> {
    stream: ServerStream<S>,
    facts: TlsFacts,
    remote: SocketAddr,
}

impl<S> TlsConnection<S> {
    /// From an accepted connection and the client's address.
    pub fn new(accepted: Accepted<S>, remote: SocketAddr) -> Self {
        Self { stream: accepted.stream, facts: accepted.facts, remote }
    }
}

/// The client certificate of the connection that a request came on.
pub fn peer_of(extensions: &http::Extensions) -> Option<Arc<PeerCertificate>> {
    extensions.get::<ConnectionInfo>().and_then(|info| info.peer.clone())
}

/// Address of the client that a request came from.
pub fn remote_of(extensions: &http::Extensions) -> Option<IpAddr> {
    extensions.get::<ConnectionInfo>().map(|info| info.remote.ip().to_canonical())
}

impl<S> Connected for TlsConnection<S> {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        ConnectionInfo { remote: self.remote, peer: self.facts.peer.clone() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsConnection<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsConnection<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
