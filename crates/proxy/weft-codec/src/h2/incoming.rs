//! A body that is read from a stream: the other side may send more as soon as a frame has been taken.

use super::head;
use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use std::task::{Context, Poll, ready};

/// The body of a request or response of HTTP/2.
#[derive(Debug)]
pub struct StreamBody {
    stream: RecvStream,
    /// Bytes still to come, where the head says how many there are. That they come is checked with the frames.
    left: Option<u64>,
    /// Nothing more comes, as far as was known when the last frame was taken. Kept here, since each look locks the connection.
    ended: bool,
    data_done: bool,
}

impl StreamBody {
    /// The body that follows a head with those headers. One that has ended with its head has no bytes, whatever the head says
    /// (as in the answer to a HEAD).
    pub fn new(stream: RecvStream, headers: &HeaderMap) -> Self {
        let ended = stream.is_end_stream();
        let left = if ended { Some(0) } else { head::length(headers) };
        Self { stream, left, ended, data_done: false }
    }

    /// The stream itself.
    pub fn into_stream(self) -> RecvStream {
        self.stream
    }

    /// The next frame.
    ///
    /// # Errors
    /// When the stream was reset, or its connection failed, before its end. A reset without an error is the end of a body of
    /// which every byte has come; of one whose length nobody said, what came may be a part (RFC 9113 §8.1 has it only after
    /// the end of the message).
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only for more bytes than came.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    self.ended = self.stream.is_end_stream();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(self.ended(error)),
                None => self.data_done = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => {
                self.ended = true;
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
            Err(error) => Poll::Ready(self.ended(error)),
        }
    }

    fn ended(&self, error: h2::Error) -> Option<Result<Frame<Bytes>, h2::Error>> {
        let whole = self.left == Some(0);
        if error.reason() == Some(Reason::NO_ERROR) && whole { None } else { Some(Err(error)) }
    }

    /// Nothing more comes. One whose end came by itself does not know it before it is asked for a frame.
    pub fn is_end_stream(&self) -> bool {
        self.ended
    }

    /// How much is to come.
    pub fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
