//! Bytes both ways between two streams, with half-close, counted, and cut when nothing moved for too long. Used for TCP and
//! for upgraded HTTP.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Buffer for each direction.
const BUFFER: usize = 32 * 1024;

/// What passed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traffic(Rc<Cells>);

#[derive(Debug)]
struct Cells {
    /// From the client.
    received: Cell<u64>,
    /// To the client.
    sent: Cell<u64>,
    moved: Cell<Instant>,
}

impl Default for Cells {
    fn default() -> Self {
        Self { received: Cell::new(0), sent: Cell::new(0), moved: Cell::new(Instant::now()) }
    }
}

impl Traffic {
    /// Bytes from the client.
    pub fn received(&self) -> u64 {
        self.0.received.get()
    }
    /// Bytes to the client.
    pub fn sent(&self) -> u64 {
        self.0.sent.get()
    }
}

/// How a tunnel ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Both sides closed.
    Closed,
    /// One side failed.
    Failed(io::Error),
    /// Nothing moved for too long.
    Idle,
}

/// Copies until both sides have closed, one fails, or nothing moves for `idle`.
pub(crate) async fn run<A, B>(client: A, endpoint: B, idle: Option<Duration>, traffic: &Traffic) -> Ended
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut client = Metered { inner: client, cells: traffic.0.clone(), is_client: true };
    let mut endpoint = Metered { inner: endpoint, cells: traffic.0.clone(), is_client: false };
    traffic.0.moved.set(Instant::now());
    let copy = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut endpoint, BUFFER, BUFFER);
    tokio::select! {
        biased;
        outcome = copy => match outcome {
            Ok(_) => Ended::Closed,
            Err(error) => Ended::Failed(error),
        },
        () = idle_for(&traffic.0, idle) => Ended::Idle,
    }
}

async fn idle_for(cells: &Cells, idle: Option<Duration>) {
    let Some(idle) = idle else { return std::future::pending().await };
    loop {
        let quiet = cells.moved.get().elapsed();
        match idle.checked_sub(quiet) {
            Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
            _ => return,
        }
    }
}

/// Counts what passes through one side.
struct Metered<T> {
    inner: T,
    cells: Rc<Cells>,
    is_client: bool,
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.inner).poll_read(cx, buf);
        let n = (buf.filled().len() - before) as u64;
        if n > 0 {
            let cell = if self.is_client { &self.cells.received } else { &self.cells.sent };
            cell.set(cell.get() + n);
            self.cells.moved.set(Instant::now());
        }
        outcome
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test(start_paused = true)]
    async fn half_close_and_counts() {
        let (mut client, near) = duplex(64);
        let (far, mut server) = duplex(64);
        let traffic = Traffic::default();
        let tunnel = run(near, far, Some(Duration::from_secs(10)), &traffic);
        let talk = async {
            client.write_all(b"hello").await.unwrap();
            client.shutdown().await.unwrap();
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"hello");
            server.write_all(b"goodbye").await.unwrap();
            server.shutdown().await.unwrap();
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"goodbye");
        };
        let (ended, ()) = tokio::join!(tunnel, talk);
        assert!(matches!(ended, Ended::Closed));
        assert_eq!((traffic.received(), traffic.sent()), (5, 7));
    }

    #[tokio::test]
    async fn idle_tunnels_are_cut() {
        let (_client, near) = duplex(64);
        let (far, _server) = duplex(64);
        let ended = run(near, far, Some(Duration::from_millis(20)), &Traffic::default()).await;
        assert!(matches!(ended, Ended::Idle));
    }
}
