//! A connection, or a stream of one, that becomes something else: bytes, whichever version of HTTP carried it before.

use crate::h2::Tunnel;
use crate::io::Io;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// One side's promise of its bytes, for when HTTP is through with them.
#[derive(Debug)]
pub enum Upgrading {
    /// An HTTP/1 connection, which comes when its last head has been written.
    Http1(oneshot::Receiver<Io>),
    /// An HTTP/1 connection that is there already.
    Ready(Box<Io>),
    /// A stream of HTTP/2, which comes when its head has been sent.
    Http2(oneshot::Receiver<Tunnel>),
    /// A stream of HTTP/2 that is there already.
    Stream(Box<Tunnel>),
}

/// The bytes of one side.
#[derive(Debug)]
pub enum Upgraded {
    /// An HTTP/1 connection.
    Http1(Box<Io>),
    /// A stream of HTTP/2.
    Http2(Box<Tunnel>),
}

impl Upgrading {
    /// Waits for the bytes.
    ///
    /// # Errors
    /// When HTTP ended otherwise.
    pub async fn done(self) -> io::Result<Upgraded> {
        match self {
            Upgrading::Http1(io) => {
                let io = io.await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
                Ok(Upgraded::Http1(Box::new(io)))
            }
            Upgrading::Ready(io) => Ok(Upgraded::Http1(io)),
            Upgrading::Http2(stream) => {
                let stream = stream.await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
                Ok(Upgraded::Http2(Box::new(stream)))
            }
            Upgrading::Stream(stream) => Ok(Upgraded::Http2(stream)),
        }
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Upgraded::Http1(io) => Pin::new(&mut **io).poll_read(cx, buf),
            Upgraded::Http2(io) => Pin::new(&mut **io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Upgraded::Http1(io) => Pin::new(&mut **io).poll_write(cx, buf),
            Upgraded::Http2(io) => Pin::new(&mut **io).poll_write(cx, buf),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Upgraded::Http1(io) => Pin::new(&mut **io).poll_flush(cx),
            Upgraded::Http2(io) => Pin::new(&mut **io).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Upgraded::Http1(io) => Pin::new(&mut **io).poll_shutdown(cx),
            Upgraded::Http2(io) => Pin::new(&mut **io).poll_shutdown(cx),
        }
    }
}
