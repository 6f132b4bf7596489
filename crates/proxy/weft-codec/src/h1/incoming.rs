//! A body that is read from a connection.

use super::wire::{SharedWire, WireError};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use std::fmt;
use std::task::{Context, Poll, ready};

/// The body of the message whose head was read last.
pub struct WireBody {
    wire: SharedWire,
    /// The connection may serve others by now.
    ended: bool,
}

impl WireBody {
    /// The body of the message whose head was read last from `wire`.
    pub fn new(wire: &SharedWire) -> Self {
        Self { ended: wire.borrow().has_read_body(), wire: wire.clone() }
    }

    /// The next frame; `None` at the end.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let mut wire = self.wire.borrow_mut();
        let frame = ready!(wire.poll_frame(cx));
        self.ended = wire.has_read_body() || !matches!(frame, Some(Ok(_)));
        Poll::Ready(frame)
    }

    /// Nothing more will come.
    pub fn is_end_stream(&self) -> bool {
        self.ended
    }

    /// Bytes that are left.
    pub fn size_hint(&self) -> SizeHint {
        let left = if self.ended { Some(0) } else { self.wire.borrow().body_left() };
        left.map(SizeHint::with_exact).unwrap_or_default()
    }
}

impl fmt::Debug for WireBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireBody").field("ended", &self.ended).finish_non_exhaustive()
    }
}
