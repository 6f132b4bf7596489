//! The one body type of requests and responses. A closed enum: no boxed body on the usual path, and both directions stream
//! with back-pressure.

use crate::h1::{WireBody, WireError};
use crate::h2::StreamBody;
use crate::replay::ReplayBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;

/// A body on its way through.
#[derive(Default)]
pub struct ProxyBody {
    kind: Kind,
    observer: Option<Box<dyn BodyObserver>>,
}

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    Stream(StreamBody),
    Wire(WireBody),
    Replay(ReplayBody),
    Channel(mpsc::Receiver<Result<Frame<Bytes>, BodyError>>),
    /// What was read of a body already, then the rest.
    Read(VecDeque<Frame<Bytes>>, Box<ProxyBody>),
    Mapped(Box<Mapped>),
}

/// Makes other bytes of those of a body.
pub trait BodyMap {
    /// What becomes of some; may be nothing yet.
    ///
    /// # Errors
    /// When the body cannot go on.
    fn data(&mut self, data: &[u8]) -> Result<Bytes, BodyError>;
    /// What is left when the body is over.
    ///
    /// # Errors
    /// When it must not end here.
    fn finish(&mut self) -> Result<Bytes, BodyError>;
}

/// A body of which another is made.
struct Mapped {
    body: ProxyBody,
    /// `None` when it has ended.
    map: Option<Box<dyn BodyMap>>,
    /// Trailers, which come behind the last of the data.
    trailers: Option<Frame<Bytes>>,
}

impl Mapped {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let Some(map) = &mut self.map else { return Poll::Ready(self.trailers.take().map(Ok)) };
            let made = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => map.data(&data),
                    Err(trailers) => {
                        self.trailers = Some(trailers);
                        self.finish()
                    }
                },
                Some(Err(error)) => Err(error),
                None => self.finish(),
            };
            match made {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Err(error) => {
                    (self.map, self.trailers) = (None, None);
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    fn finish(&mut self) -> Result<Bytes, BodyError> {
        self.map.take().map_or_else(|| Ok(Bytes::new()), |mut map| map.finish())
    }
}

/// Sees a body pass: counts it, cuts it short, learns how it ended. Dropped with the body; a drop without
/// [`BodyObserver::end`] means that the receiver went away.
pub trait BodyObserver {
    /// Asked before each frame; an error ends the body with it.
    fn poll_abort(&mut self, _cx: &mut Context<'_>) -> Option<BodyError> {
        None
    }
    /// It changes the length of what passes, so that no length may be promised.
    fn resizes(&self) -> bool {
        false
    }
    /// A frame is passing; trailers may be edited.
    fn frame(&mut self, frame: &mut Frame<Bytes>);
    /// The body ended, in order or with an error. Called once at most.
    fn end(&mut self, error: Option<&BodyError>);
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The HTTP/2 stream it came on was reset, or its connection failed.
    #[error(transparent)]
    Stream(#[from] h2::Error),
    /// The HTTP/1 connection it came on failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// This proxy cut it.
    #[error("{0}")]
    Aborted(&'static str),
}

impl ProxyBody {
    /// No body.
    pub fn empty() -> Self {
        Self::default()
    }

    /// A body at hand.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { kind: if bytes.is_empty() { Kind::Empty } else { Kind::Full(bytes) }, observer: None }
    }

    /// A body fed frame by frame.
    pub fn channel(frames: mpsc::Receiver<Result<Frame<Bytes>, BodyError>>) -> Self {
        Self { kind: Kind::Channel(frames), observer: None }
    }

    /// A body that can be sent again.
    pub fn replay(body: ReplayBody) -> Self {
        Self { kind: Kind::Replay(body), observer: None }
    }

    /// Puts back what was read from the beginning of `rest`.
    pub fn put_back(read: VecDeque<Frame<Bytes>>, rest: ProxyBody) -> Self {
        if read.is_empty() { rest } else { Self { kind: Kind::Read(read, Box::new(rest)), observer: None } }
    }

    /// A body that breaks off before it begins.
    pub fn broken(why: &'static str) -> Self {
        struct Broken(&'static str);
        impl BodyMap for Broken {
            fn data(&mut self, _: &[u8]) -> Result<Bytes, BodyError> {
                Err(BodyError::Aborted(self.0))
            }
            fn finish(&mut self) -> Result<Bytes, BodyError> {
                Err(BodyError::Aborted(self.0))
            }
        }
        Self::empty().mapped(Box::new(Broken(why)))
    }

    /// The body that `map` makes of this one.
    pub fn mapped(self, map: Box<dyn BodyMap>) -> Self {
        Self { kind: Kind::Mapped(Box::new(Mapped { body: self, map: Some(map), trailers: None })), observer: None }
    }

    /// Lets `observer` see the body pass. A body that is already at its end is reported at once.
    pub fn observed(mut self, mut observer: Box<dyn BodyObserver>) -> Self {
        if self.is_end_stream() {
            observer.end(None);
            self.observer = None;
        } else {
            self.observer = Some(observer);
        }
        self
    }

    /// The stream that it comes on, when it is one of HTTP/2 with nothing put before or around it.
    pub fn into_stream(self) -> Option<h2::RecvStream> {
        match self.kind {
            Kind::Stream(body) => Some(body.into_stream()),
            _ => None,
        }
    }

    fn poll_kind(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.kind = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Stream(body) => body.poll_frame(cx).map(|f| f.map(|r| r.map_err(Into::into))),
            Kind::Wire(body) => body.poll_frame(cx).map(|f| f.map(|r| r.map_err(Into::into))),
            Kind::Replay(replay) => Pin::new(replay).poll_frame(cx),
            Kind::Channel(frames) => frames.poll_recv(cx),
            Kind::Read(read, rest) => match read.pop_front() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => Pin::new(&mut **rest).poll_frame(cx),
            },
            Kind::Mapped(mapped) => mapped.poll(cx),
        }
    }

    /// Why it is cut short, if it is: for those who cannot ask for a frame now.
    pub fn poll_abort(&mut self, cx: &mut Context<'_>) -> Option<BodyError> {
        let error = self.observer.as_mut()?.poll_abort(cx)?;
        self.finish(Some(&error));
        self.kind = Kind::Empty;
        Some(error)
    }

    fn finish(&mut self, error: Option<&BodyError>) {
        if let Some(mut observer) = self.observer.take() {
            observer.end(error);
        }
    }
}

impl From<StreamBody> for ProxyBody {
    fn from(body: StreamBody) -> Self {
        Self { kind: if body.is_end_stream() { Kind::Empty } else { Kind::Stream(body) }, observer: None }
    }
}

impl From<WireBody> for ProxyBody {
    fn from(body: WireBody) -> Self {
        Self { kind: if body.is_end_stream() { Kind::Empty } else { Kind::Wire(body) }, observer: None }
    }
}

impl Body for ProxyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(error) = this.poll_abort(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        let mut frame = ready!(this.poll_kind(cx));
        match &mut frame {
            None => this.finish(None),
            Some(Err(error)) => this.finish(Some(error)),
            Some(Ok(frame)) => {
                if let Some(observer) = &mut this.observer {
                    observer.frame(frame);
                }
                // Nobody asks after the last frame of a body of known length.
                if this.observer.is_some() && this.is_end_stream() {
                    this.finish(None);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Stream(body) => body.is_end_stream(),
            Kind::Wire(body) => body.is_end_stream(),
            Kind::Replay(replay) => replay.is_end_stream(),
            Kind::Channel(_) => false,
            Kind::Read(read, rest) => read.is_empty() && rest.is_end_stream(),
            Kind::Mapped(mapped) => mapped.map.is_none() && mapped.trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        if self.observer.as_ref().is_some_and(|observer| observer.resizes()) {
            return SizeHint::default();
        }
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Stream(body) => body.size_hint(),
            Kind::Wire(body) => body.size_hint(),
            Kind::Replay(replay) => replay.size_hint(),
            Kind::Channel(_) | Kind::Mapped(_) => SizeHint::default(),
            Kind::Read(read, rest) => {
                let known: usize = read.iter().filter_map(|f| f.data_ref()).map(Bytes::len).sum();
                let mut hint = rest.size_hint();
                match hint.exact() {
                    Some(exact) => hint.set_exact(exact + known as u64),
                    None => hint.set_lower(hint.lower() + known as u64),
                }
                hint
            }
        }
    }
}

impl fmt::Debug for ProxyBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyBody").field("end", &self.is_end_stream()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::cell::RefCell;
    use std::rc::Rc;

    struct Seen(Rc<RefCell<String>>);
    impl BodyObserver for Seen {
        fn frame(&mut self, frame: &mut Frame<Bytes>) {
            self.0.borrow_mut().push_str(&format!("{} ", frame.data_ref().map_or(0, Bytes::len)));
        }
        fn end(&mut self, error: Option<&BodyError>) {
            self.0.borrow_mut().push_str(if error.is_some() { "error" } else { "end" });
        }
    }

    #[tokio::test]
    async fn observers_see_frames_and_the_end_once() {
        let seen = Rc::new(RefCell::new(String::new()));
        let body = ProxyBody::full("hello").observed(Box::new(Seen(seen.clone())));
        assert_eq!(body.size_hint().exact(), Some(5));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "hello");
        assert_eq!(*seen.borrow(), "5 end");
        seen.borrow_mut().clear();
        drop(ProxyBody::empty().observed(Box::new(Seen(seen.clone()))));
        assert_eq!(*seen.borrow(), "end");
        seen.borrow_mut().clear();
        let (tx, rx) = mpsc::channel(2);
        tx.send(Err(BodyError::Aborted("cut"))).await.unwrap();
        assert!(ProxyBody::channel(rx).observed(Box::new(Seen(seen.clone()))).collect().await.is_err());
        assert_eq!(*seen.borrow(), "error");
    }

    /// Doubles what passes, a piece late.
    #[derive(Default)]
    struct Late(Vec<u8>);
    impl BodyMap for Late {
        fn data(&mut self, data: &[u8]) -> Result<Bytes, BodyError> {
            if data == b"!" {
                return Err(BodyError::Aborted("no"));
            }
            Ok(std::mem::replace(&mut self.0, data.repeat(2)).into())
        }
        fn finish(&mut self) -> Result<Bytes, BodyError> {
            Ok(std::mem::take(&mut self.0).into())
        }
    }

    #[tokio::test]
    async fn a_body_of_a_body() {
        let (tx, rx) = mpsc::channel(4);
        for piece in ["ab", "c"] {
            tx.send(Ok(Frame::data(Bytes::from(piece)))).await.unwrap();
        }
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x", "1".parse().unwrap());
        tx.send(Ok(Frame::trailers(trailers))).await.unwrap();
        drop(tx);
        let body = ProxyBody::channel(rx).mapped(Box::new(Late::default()));
        assert_eq!(body.size_hint().exact(), None);
        let all = body.collect().await.unwrap();
        assert!(all.trailers().is_some_and(|trailers| trailers.contains_key("x")));
        assert_eq!(all.to_bytes(), "ababcc");
        let body = ProxyBody::full("abc").mapped(Box::new(Late::default()));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abcabc");
        assert!(ProxyBody::full("!").mapped(Box::new(Late::default())).collect().await.is_err());
    }

    #[tokio::test]
    async fn what_was_read_comes_first() {
        let read = VecDeque::from([Frame::data(Bytes::from_static(b"ab")), Frame::data(Bytes::from_static(b"c"))]);
        let body = ProxyBody::put_back(read, ProxyBody::full("de"));
        assert_eq!(body.size_hint().exact(), Some(5));
        assert!(!body.is_end_stream());
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abcde");
        assert!(ProxyBody::put_back(VecDeque::new(), ProxyBody::empty()).is_end_stream());
    }
}
