//! A body that is written to a connection: as it comes, together with the head where it is there already, and no faster than
//! the other side takes it.

use super::encode::Sending;
use super::wire::SharedWire;
use crate::body::{BodyError, ProxyBody};
use http_body::Body;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Why a message was not sent to its end.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The body broke off.
    #[error(transparent)]
    Body(BodyError),
    /// The body is longer or shorter than was said.
    #[error("the body is not of its length")]
    Length,
}

/// A message on its way out, from when its head is in the connection's buffer.
#[derive(Debug)]
pub struct Outgoing {
    body: ProxyBody,
    sending: Sending,
    ended: bool,
}

impl Outgoing {
    /// Sends `body` in that way.
    pub fn new(body: ProxyBody, sending: Sending) -> Self {
        Self { body, sending, ended: false }
    }

    /// Goes on; ready when all of it is written.
    ///
    /// # Errors
    /// When it cannot be sent to its end. The connection is then of no more use.
    pub fn poll(&mut self, wire: &SharedWire, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        while !self.ended {
            if wire.borrow().is_full() {
                let flushed = wire.borrow_mut().poll_flush(cx)?;
                if flushed.is_pending() {
                    // Who does not take a message does not keep it from being cut.
                    return match self.body.poll_abort(cx) {
                        Some(error) => Poll::Ready(Err(PumpError::Body(error))),
                        None => Poll::Pending,
                    };
                }
            }
            // The connection is not borrowed while the body, which may come from anywhere, is asked.
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let more = wire.borrow_mut().put_frame(frame, &mut self.sending)?;
                    if !more {
                        self.ended = true;
                    } else if self.body.is_end_stream() {
                        self.end(wire)?;
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(PumpError::Body(error))),
                Poll::Ready(None) => self.end(wire)?,
                // A body that nobody wants is not waited for.
                Poll::Pending if self.sending == Sending::Nothing => self.ended = true,
                Poll::Pending => {
                    ready!(wire.borrow_mut().poll_flush(cx))?;
                    return Poll::Pending;
                }
            }
        }
        wire.borrow_mut().poll_flush(cx).map_err(Into::into)
    }

    fn end(&mut self, wire: &SharedWire) -> Result<(), PumpError> {
        self.ended = true;
        match self.sending {
            Sending::Length(left) if left > 0 => Err(PumpError::Length),
            Sending::Chunked => {
                wire.borrow_mut().put_last_chunk();
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
