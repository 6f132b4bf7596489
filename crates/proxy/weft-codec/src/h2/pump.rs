//! A body that is written to a stream, no faster than the other side takes it: one frame is in hand at most, beside what the
//! stream has taken already.

use crate::body::{BodyError, ProxyBody};
use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Why a message was not sent to its end.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The other side wants no more of it.
    #[error("the stream was reset: {0}")]
    Reset(Reason),
    /// The stream or its connection failed.
    #[error(transparent)]
    Stream(h2::Error),
    /// The body broke off. The other side was told.
    #[error(transparent)]
    Body(BodyError),
}

/// A message on its way out, from when its head was sent. Dropped before its end, it takes the stream along.
#[derive(Debug)]
pub struct Outgoing {
    stream: SendStream<Bytes>,
    body: ProxyBody,
    /// Something was sent: the next frame waits for room.
    begun: bool,
    /// A frame that waits for room, and whether it is the last.
    waiting: Option<(Bytes, bool)>,
}

impl Outgoing {
    /// Sends `body` on `stream`.
    pub fn new(body: ProxyBody, stream: SendStream<Bytes>) -> Self {
        Self { stream, body, begun: false, waiting: None }
    }

    /// Goes on; ready when the stream has all of it.
    ///
    /// # Errors
    /// When it cannot be sent to its end.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        loop {
            if let Some((data, last)) = self.waiting.take() {
                if self.poll_room(cx, data.len())?.is_pending() {
                    self.waiting = Some((data, last));
                    // Who does not take a message does not keep it from being cut.
                    return match self.body.poll_abort(cx) {
                        Some(error) => Poll::Ready(Err(self.broken(error))),
                        None => Poll::Pending,
                    };
                }
                self.begun = true;
                self.stream.send_data(data, last).map_err(PumpError::Stream)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.waiting = Some((data, self.body.is_end_stream())),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        return Poll::Ready(self.stream.send_trailers(trailers).map_err(PumpError::Stream));
                    }
                },
                Poll::Ready(None) => {
                    return Poll::Ready(self.stream.send_data(Bytes::new(), true).map_err(PumpError::Stream));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(self.broken(error))),
                // Wakes when the other side resets the stream, too.
                Poll::Pending => {
                    let reason = ready!(self.stream.poll_reset(cx)).map_err(PumpError::Stream)?;
                    return Poll::Ready(Err(PumpError::Reset(reason)));
                }
            }
        }
    }

    /// Ready when the stream takes another frame. The first one it takes at once: that much may stand in every stream. Only a
    /// frame that is there claims any of the connection's window, so that no stream waits for one that has nothing to send.
    fn poll_room(&mut self, cx: &mut Context<'_>, length: usize) -> Poll<Result<(), PumpError>> {
        if !self.begun || length == 0 {
            return Poll::Ready(Ok(()));
        }
        self.stream.reserve_capacity(1);
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(PumpError::Stream(error))),
                // Neither ended nor open: it was reset.
                None => return Poll::Ready(Err(PumpError::Reset(Reason::CANCEL))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The body broke off: so does the stream, by the same word where there is one. One that means no error would make the part
    /// look like the whole.
    fn broken(&mut self, error: BodyError) -> PumpError {
        let reason = match &error {
            BodyError::Stream(error) => error.reason().filter(|reason| *reason != Reason::NO_ERROR),
            _ => None,
        };
        self.stream.send_reset(reason.unwrap_or(Reason::INTERNAL_ERROR));
        PumpError::Body(error)
    }
}
