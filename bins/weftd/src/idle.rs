//! Connections on which nothing is asked: counted by their open requests, and ended when there has been none for a while.
//! Pings keep a connection open at the level of HTTP/2, so bytes alone do not tell; an attacker could hold all places.
//!
//! Nor does a request tell: one that is never finished, or refused, costs a stranger nothing. A request counts from the head of an
//! answer that is no refusal.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tower::{Layer, Service};
use weft_ca::ConnectionInfo;
use weft_xds_server::RemoteAddr;

/// Longest time without an open request.
pub(crate) const IDLE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 60 });

/// The open requests of one connection.
#[derive(Debug)]
pub(crate) struct Requests {
    open: AtomicUsize,
    /// When the last one ended; at first, when the connection began.
    ended: Mutex<Instant>,
}

impl Default for Requests {
    fn default() -> Self {
        Self { open: AtomicUsize::new(0), ended: Mutex::new(Instant::now()) }
    }
}

impl Requests {
    /// How much longer the connection may stay as it is; `None` = its time is over.
    pub fn time_left(&self) -> Option<Duration> {
        if self.open.load(Ordering::Acquire) > 0 {
            return Some(IDLE);
        }
        let ended = *self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        IDLE.checked_sub(ended.elapsed()).filter(|left| !left.is_zero())
    }

    /// Comes back when the connection is about to be ended for that nothing is asked on it, while there is still time to say so
    /// in order.
    pub async fn quiet(&self) {
        let notice = IDLE / 6;
        while let Some(left) = self.time_left().and_then(|left| left.checked_sub(notice)).filter(|left| !left.is_zero())
        {
            tokio::time::sleep(left).await;
        }
    }

    pub fn begin(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::AcqRel);
        Open(self.clone())
    }
}

/// An open request.
#[derive(Debug)]
pub(crate) struct Open(Arc<Requests>);

impl Drop for Open {
    fn drop(&mut self) {
        *self.0.ended.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A connection that ends when nothing is asked on it.
#[derive(Debug)]
pub(crate) struct Quiet<S> {
    stream: S,
    requests: Arc<Requests>,
    /// When to look whether anything is asked.
    look: Pin<Box<Sleep>>,
}

impl<S> Quiet<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, requests: Arc::default(), look: Box::pin(tokio::time::sleep(IDLE)) }
    }

    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// What is asked on it.
    pub fn requests(&self) -> &Arc<Requests> {
        &self.requests
    }

    /// Ready when nothing has been asked for too long.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while self.look.as_mut().poll(cx).is_ready() {
            match self.requests.time_left() {
                Some(left) => self.look.as_mut().reset(Instant::now() + left),
                None => {
                    let text = "nothing was asked on the connection";
                    return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, text));
                }
            }
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Quiet<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Pending => this.poll_idle(cx).map(Err),
            ready => ready,
        }
    }
}

/// Who takes no bytes of an answer holds a connection as well as who sends none.
impl<S: AsyncWrite + Unpin> AsyncWrite for Quiet<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match Pin::new(&mut this.stream).poll_write(cx, buf) {
            Poll::Pending => this.poll_idle(cx).map(Err),
            ready => ready,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.stream).poll_flush(cx) {
            Poll::Pending => this.poll_idle(cx).map(Err),
            ready => ready,
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Who is connected, and what is asked on the connection; in the extensions of every request.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub info: ConnectionInfo,
    pub requests: Arc<Requests>,
}

/// Counts requests, and tells those behind it who is connected.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CountRequests;

impl<S> Layer<S> for CountRequests {
    type Service = Counting<S>;

    fn layer(&self, inner: S) -> Counting<S> {
        Counting { inner }
    }
}

/// See [`CountRequests`].
#[derive(Debug, Clone)]
pub(crate) struct Counting<S> {
    inner: S,
}

type Answer<S, B> = Pin<Box<dyn Future<Output = Result<http::Response<Counted<B>>, S>> + Send>>;

impl<S, A, B> Service<http::Request<A>> for Counting<S>
where
    S: Service<http::Request<A>, Response = http::Response<B>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Counted<B>>;
    type Error = S::Error;
    type Future = Answer<S::Error, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<A>) -> Self::Future {
        let guest = request.extensions_mut().remove::<Guest>();
        let requests = guest.map(|Guest { info, requests }| {
            request.extensions_mut().insert(RemoteAddr(info.remote));
            request.extensions_mut().insert(info);
            requests
        });
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            let open = requests.filter(|_| !is_refusal(&answer)).map(|requests| requests.begin());
            Ok(answer.map(|body| Counted { body, open }))
        })
    }
}

/// Whether an answer says no. What fails later, in the trailers, had been let in.
fn is_refusal<B>(answer: &http::Response<B>) -> bool {
    let failed = |status: &http::HeaderValue| status != "0";
    !answer.status().is_success() || answer.headers().get("grpc-status").is_some_and(failed)
}

/// A body with which its request ends.
#[derive(Debug)]
pub(crate) struct Counted<B> {
    body: B,
    open: Option<Open>,
}

impl<B: http_body::Body + Unpin> http_body::Body for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) {
            self.open = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service whose requests have each a connection of their own.
    async fn left_after<F, A>(answer: F) -> Option<Duration>
    where
        F: FnMut(http::Request<()>) -> A + Send + 'static,
        A: Future<Output = Result<http::Response<http_body_util::Empty<bytes::Bytes>>, io::Error>> + Send + 'static,
    {
        let requests = Arc::<Requests>::default();
        let info = ConnectionInfo { remote: ([10, 0, 0, 1], 1).into(), peer: None };
        let mut request = http::Request::new(());
        request.extensions_mut().insert(Guest { info, requests: requests.clone() });
        let mut service = CountRequests.layer(tower::service_fn(answer));
        let answered = tokio::spawn(service.call(request));
        tokio::time::sleep(IDLE).await;
        let left = requests.time_left();
        answered.abort();
        left
    }

    #[tokio::test(start_paused = true)]
    async fn class_idle_connections_are_those_of_strangers_too() {
        let with = |status: &'static str| {
            move |_| async move {
                Ok(http::Response::builder().header("grpc-status", status).body(Default::default()).unwrap())
            }
        };
        let plain = |_| async { Ok(http::Response::new(Default::default())) };
        assert_eq!(left_after(|_| std::future::pending()).await, None, "a request that is never finished");
        assert_eq!(left_after(with("16")).await, None, "one that is refused");
        assert_eq!(left_after(with("0")).await, Some(IDLE), "one that is answered");
        assert_eq!(left_after(plain).await, Some(IDLE), "a stream");
    }

    #[tokio::test(start_paused = true)]
    async fn time_runs_only_while_nothing_is_asked() {
        let requests = Arc::new(Requests::default());
        tokio::time::advance(IDLE / 2).await;
        assert_eq!(requests.time_left(), Some(IDLE / 2));
        let (one, two) = (requests.begin(), requests.begin());
        tokio::time::advance(IDLE * 3).await;
        drop(one);
        assert_eq!(requests.time_left(), Some(IDLE), "one is still open");
        tokio::time::advance(IDLE).await;
        drop(two);
        assert_eq!(requests.time_left(), Some(IDLE));
        tokio::time::advance(IDLE).await;
        assert_eq!(requests.time_left(), None);
    }
}
