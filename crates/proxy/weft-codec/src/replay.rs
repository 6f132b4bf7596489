//! A request body that can be sent again: the first try streams and keeps what passed, up to a bound; a later try sends what
//! was kept and goes on with the stream.

use crate::body::{BodyError, ProxyBody};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

/// Bytes kept for further tries; Envoy's default `per_connection_buffer_limit_bytes`.
pub const DEFAULT_LIMIT: usize = 1024 * 1024;
/// Frames kept at most: each costs memory besides its bytes.
const MAX_FRAMES: usize = 16 * 1024;

/// Keeps the body between tries. One try reads at a time.
#[derive(Clone)]
pub struct Replay(Rc<RefCell<State>>);

struct State {
    source: ProxyBody,
    kept: Vec<Kept>,
    bytes: usize,
    limit: usize,
    /// More passed than may be kept: no further try.
    overflown: bool,
    ended: bool,
    failed: bool,
    /// What the source said about its size before the first byte.
    size: SizeHint,
}

enum Kept {
    Data(Bytes),
    Trailers(http::HeaderMap),
}

/// One try's view of the body.
pub struct ReplayBody {
    state: Rc<RefCell<State>>,
    at: usize,
    sent: u64,
}

impl Replay {
    /// Keeps up to `limit` bytes of `source`.
    pub fn new(source: ProxyBody, limit: usize) -> Self {
        let size = source.size_hint();
        let ended = source.is_end_stream();
        Self(Rc::new(RefCell::new(State {
            source,
            kept: Vec::new(),
            bytes: 0,
            limit,
            overflown: false,
            ended,
            failed: false,
            size,
        })))
    }

    /// True while a further try could send the whole body.
    pub fn can_replay(&self) -> bool {
        let state = self.0.borrow();
        !state.overflown && !state.failed
    }

    /// True when the client has sent all of it.
    pub fn is_complete(&self) -> bool {
        self.0.borrow().ended
    }

    /// The body for one try. The previous try's body must be gone.
    pub fn body(&self) -> ReplayBody {
        ReplayBody { state: self.0.clone(), at: 0, sent: 0 }
    }

    /// Gives up keeping: what was kept is freed, and no further try is possible.
    pub fn forget(&self) {
        let mut state = self.0.borrow_mut();
        state.overflown = true;
    }
}

impl State {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        if self.overflown {
            return;
        }
        if let Some(data) = frame.data_ref() {
            self.bytes += data.len();
            if self.bytes > self.limit || self.kept.len() >= MAX_FRAMES {
                self.overflown = true;
                self.kept = Vec::new();
                return;
            }
            self.kept.push(Kept::Data(data.clone()));
        } else if let Some(trailers) = frame.trailers_ref() {
            self.kept.push(Kept::Trailers(trailers.clone()));
        }
    }
}

impl Body for ReplayBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let mut state = this.state.borrow_mut();
        if let Some(kept) = state.kept.get(this.at) {
            this.at += 1;
            let frame = match kept {
                Kept::Data(data) => Frame::data(data.clone()),
                Kept::Trailers(trailers) => Frame::trailers(trailers.clone()),
            };
            this.sent += frame.data_ref().map_or(0, |d| d.len() as u64);
            return Poll::Ready(Some(Ok(frame)));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        match ready!(Pin::new(&mut state.source).poll_frame(cx)) {
            Some(Ok(frame)) => {
                state.keep(&frame);
                state.ended |= state.source.is_end_stream();
                this.at = state.kept.len();
                this.sent += frame.data_ref().map_or(0, |d| d.len() as u64);
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                state.failed = true;
                state.ended = true;
                Poll::Ready(Some(Err(error)))
            }
            None => {
                state.ended = true;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = self.state.borrow();
        state.ended && self.at >= state.kept.len()
    }

    fn size_hint(&self) -> SizeHint {
        match self.state.borrow().size.exact() {
            Some(total) => SizeHint::with_exact(total.saturating_sub(self.sent)),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use tokio::sync::mpsc;

    fn source(chunks: &[&'static str]) -> ProxyBody {
        let (tx, rx) = mpsc::channel(16);
        for chunk in chunks {
            tx.try_send(Ok(Frame::data(Bytes::from_static(chunk.as_bytes())))).unwrap();
        }
        ProxyBody::channel(rx)
    }

    #[tokio::test]
    async fn a_second_try_sends_the_same() {
        let replay = Replay::new(source(&["ab", "cd", "ef"]), 100);
        let mut first = replay.body();
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), "ab");
        drop(first);
        assert!(replay.can_replay() && !replay.is_complete());
        assert_eq!(replay.body().collect().await.unwrap().to_bytes(), "abcdef");
        assert!(replay.is_complete());
        assert_eq!(replay.body().collect().await.unwrap().to_bytes(), "abcdef");
    }

    #[tokio::test]
    async fn too_long_a_body_goes_once() {
        let replay = Replay::new(source(&["ab", "cd"]), 3);
        assert_eq!(replay.body().collect().await.unwrap().to_bytes(), "abcd");
        assert!(!replay.can_replay());
    }

    #[tokio::test]
    async fn sizes_are_kept() {
        let replay = Replay::new(ProxyBody::full("hello"), 100);
        assert_eq!(replay.body().size_hint().exact(), Some(5));
        assert_eq!(replay.body().collect().await.unwrap().to_bytes(), "hello");
        assert_eq!(replay.body().size_hint().exact(), Some(5));
    }
}
