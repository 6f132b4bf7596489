//! The byte stream under HTTP and TCP: plain, TLS or Unix, with bytes put back that were read too early. A closed enum: the
//! read path has no virtual call.

use bytes::{Buf, Bytes};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use weft_tls::{ClientStream, ServerStream};

/// A connection of one of the kinds that this proxy speaks.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// TLS, this proxy being the server.
    ServerTls(Box<ServerStream<TcpStream>>),
    /// TLS, this proxy being the client.
    ClientTls(Box<ClientStream<TcpStream>>),
    /// Unix domain socket.
    Unix(UnixStream),
}

/// Bytes that passed, and whether any arrived since somebody asked. Written by the connection's own thread only; atomic
/// so that an [`Io`] may be moved to another one.
#[derive(Debug, Default)]
pub struct IoMeter {
    read: AtomicU64,
    written: AtomicU64,
    touched: AtomicBool,
}

impl IoMeter {
    /// Bytes read so far.
    pub fn read(&self) -> u64 {
        self.read.load(Relaxed)
    }
    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }
    /// True when bytes arrived since the last call.
    pub fn take_touched(&self) -> bool {
        let touched = self.touched.load(Relaxed);
        self.touched.store(false, Relaxed);
        touched
    }
    fn add_read(&self, n: usize) {
        self.read.store(self.read.load(Relaxed).wrapping_add(n as u64), Relaxed);
        self.touched.store(true, Relaxed);
    }
    fn add_written(&self, n: usize) {
        self.written.store(self.written.load(Relaxed).wrapping_add(n as u64), Relaxed);
    }
}

/// A stream, its meter, and bytes to read first.
#[derive(Debug)]
pub struct Io {
    stream: Stream,
    prefix: Bytes,
    meter: Arc<IoMeter>,
}

impl Io {
    /// Wraps `stream`.
    pub fn new(stream: Stream) -> Self {
        Self { stream, prefix: Bytes::new(), meter: Arc::default() }
    }

    /// Puts `bytes` back in front of what is still to be read.
    pub fn unread(&mut self, bytes: Bytes) {
        if self.prefix.is_empty() {
            self.prefix = bytes;
        } else {
            self.prefix = [bytes, std::mem::take(&mut self.prefix)].concat().into();
        }
    }

    /// The meter, shared.
    pub fn meter(&self) -> Arc<IoMeter> {
        self.meter.clone()
    }

    /// The stream itself.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// There is something to read, or the end, as far as has been noticed. Asking costs next to nothing, and nobody is told when
    /// that changes.
    pub fn is_readable(&self) -> bool {
        let noticed = |tcp: &TcpStream| tcp.try_io(Interest::READABLE, || Ok(())).is_ok();
        !self.prefix.is_empty()
            || match &self.stream {
                Stream::Tcp(tcp) => noticed(tcp),
                Stream::ServerTls(tls) => !tls.get_ref().1.wants_read() || noticed(tls.get_ref().0),
                Stream::ClientTls(tls) => !tls.get_ref().1.wants_read() || noticed(tls.get_ref().0),
                Stream::Unix(unix) => unix.try_io(Interest::READABLE, || Ok(())).is_ok(),
            }
    }

    /// When it is dropped the other side hears of a broken connection (RST), not of its end; what is not yet sent is lost.
    pub fn reset_when_dropped(&self) {
        // An error means that it is broken already. A Unix socket has no such thing.
        let _ = match &self.stream {
            Stream::Tcp(s) => s.set_zero_linger(),
            Stream::ServerTls(s) => s.get_ref().0.set_zero_linger(),
            Stream::ClientTls(s) => s.get_ref().0.set_zero_linger(),
            Stream::Unix(_) => Ok(()),
        };
    }

    /// Gives the stream back; bytes that were put back are lost.
    pub fn into_stream(self) -> Stream {
        self.stream
    }
}

/// Pending when TLS finds certainly nothing to read, not even the end; the waker is told when that may have changed. Going
/// through all of TLS to find nothing costs many times as much. What is decrypted already does not make the socket readable.
fn poll_tls(tcp: &TcpStream, wants_more: bool, cx: &mut Context<'_>) -> Poll<()> {
    if wants_more { tcp.poll_read_ready(cx).map(drop) } else { Poll::Ready(()) }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Stream::ServerTls(s) => {
                ready!(poll_tls(s.get_ref().0, s.get_ref().1.wants_read(), cx));
                Pin::new(s).poll_read(cx, buf)
            }
            Stream::ClientTls(s) => {
                ready!(poll_tls(s.get_ref().0, s.get_ref().1.wants_read(), cx));
                Pin::new(s).poll_read(cx, buf)
            }
            Stream::Unix(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Stream::ServerTls(s) => Pin::new(s).poll_write(cx, buf),
            Stream::ClientTls(s) => Pin::new(s).poll_write(cx, buf),
            Stream::Unix(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Stream::ServerTls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Stream::ClientTls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Stream::Unix(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Tcp(s) => s.is_write_vectored(),
            Stream::ServerTls(s) => s.is_write_vectored(),
            Stream::ClientTls(s) => s.is_write_vectored(),
            Stream::Unix(s) => s.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_flush(cx),
            Stream::ServerTls(s) => Pin::new(s).poll_flush(cx),
            Stream::ClientTls(s) => Pin::new(s).poll_flush(cx),
            Stream::Unix(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Stream::ServerTls(s) => Pin::new(s).poll_shutdown(cx),
            Stream::ClientTls(s) => Pin::new(s).poll_shutdown(cx),
            Stream::Unix(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.prefix.is_empty() {
            let n = this.prefix.len().min(buf.remaining());
            buf.put_slice(&this.prefix[..n]);
            this.prefix.advance(n);
            this.meter.add_read(n);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let outcome = Pin::new(&mut this.stream).poll_read(cx, buf);
        let n = buf.filled().len() - before;
        if n > 0 {
            this.meter.add_read(n);
        }
        outcome
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = outcome {
            this.meter.add_written(n);
        }
        outcome
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(n)) = outcome {
            this.meter.add_written(n);
        }
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
