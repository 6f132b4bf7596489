//! Connections on which nothing is asked: counted by their open requests, and ended when there has been none for a while.
//! Pings keep a connection open at the level of HTTP/2, so bytes alone do not tell; an attacker could hold all places.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tower::{Layer, Service};
use weft_ca::ConnectionInfo;
use weft_xds_server::RemoteAddr;

/// Longest time without an open request.
pub(crate) const IDLE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 60 });

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
        let open = guest.as_ref().map(|guest| guest.requests.begin());
        if let Some(Guest { info, .. }) = guest {
            request.extensions_mut().insert(RemoteAddr(info.remote));
            request.extensions_mut().insert(info);
        }
        let answer = self.inner.call(request);
        Box::pin(async move { answer.await.map(|answer| answer.map(|body| Counted { body, open })) })
    }
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
