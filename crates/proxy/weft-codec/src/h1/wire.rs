//! One HTTP/1 connection: its stream, what was read of it and not used yet, and what is to be written. Both sides of the proxy
//! have the same. While nothing passes it holds no buffer.
//!
//! Request and response share it by reference: a body reads from it while its driver watches whether the other side is still
//! there. Nothing here calls out while the connection is borrowed.

use super::body::{BodyFault, Decoder};
use super::encode;
use super::head::{self, Framing, HeadFault, HeadLimits, RequestHead, ResponseHead};
use super::pool;
use super::scan::Scan;
use super::{PumpError, Sending};
use crate::io::{Io, Stream};
use bytes::{Buf, Bytes, BytesMut};
use http::Method;
use http_body::Frame;
use std::cell::RefCell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncReadExt, AsyncWrite, ReadBuf};

/// Bytes of a body from which on it is read into memory of its own.
const LARGE: u64 = 8 * 1024;
/// Least and most of a body that is read at once.
const FIRST_ROOM: usize = 16 * 1024;
const MOST_ROOM: usize = 128 * 1024;
/// Data up to so many bytes is written together with what stands before it.
const SMALL: usize = 4 * 1024;
/// So much may wait to be written before the body is asked for more.
const FULL: usize = 16 * 1024;
/// Answers before the answer (1xx) to one request.
const MAX_INTERIM: u32 = 32;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
const LINE_END: &[u8] = b"\r\n";
/// The end of a chunk, and of the body.
const LAST_TAIL: &[u8] = b"\r\n0\r\n\r\n";

/// A connection, as its users share it.
pub type SharedWire = Rc<RefCell<Wire>>;

/// Why nothing more is to be had from a connection.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It ended within or before a message.
    #[error("connection closed before message completed")]
    Closed,
    /// A head is malformed.
    #[error("invalid HTTP head: {0}")]
    Head(#[from] HeadFault),
    /// A body is malformed.
    #[error(transparent)]
    Body(#[from] BodyFault),
}

/// A connection.
#[derive(Debug)]
pub struct Wire {
    /// `None` when the connection is closed, or has become something else.
    io: Option<Io>,
    read: BytesMut,
    scan: Scan,
    decoder: Decoder,
    /// How much of a body to read at once.
    room: usize,
    /// To be written, in this order: the rest of `out`, `data`, `tail`.
    out: Vec<u8>,
    written: usize,
    data: Bytes,
    tail: &'static [u8],
    unflushed: bool,
    /// The other side waits for `100 Continue`.
    owes_continue: bool,
    continuing: bool,
    /// The other side ended the connection or broke the protocol.
    gone: bool,
    /// A body of ours is on its way out.
    sending: bool,
    keep_alive: bool,
    interim: u32,
    /// Wants to know when the body has been read.
    watcher: Option<Waker>,
    /// Sends the rest of a body.
    pump: Option<Waker>,
    /// Reads the body.
    reader: Option<Waker>,
    /// Nobody is to read the rest of the body.
    abandoned: bool,
}

impl Wire {
    /// For a client's connection.
    pub fn server(io: Io) -> Self {
        Self::new(io, Scan::default())
    }

    /// For a connection to an endpoint.
    pub fn client(io: Io) -> Self {
        Self::new(io, Scan::response())
    }

    fn new(io: Io, scan: Scan) -> Self {
        Self {
            io: Some(io),
            read: BytesMut::new(),
            scan,
            decoder: Decoder::new(Framing::None),
            room: FIRST_ROOM,
            out: Vec::new(),
            written: 0,
            data: Bytes::new(),
            tail: &[],
            unflushed: false,
            owes_continue: false,
            continuing: false,
            gone: false,
            sending: false,
            keep_alive: true,
            interim: 0,
            watcher: None,
            pump: None,
            reader: None,
            abandoned: false,
        }
    }

    /// Shared among its users.
    pub fn shared(self) -> SharedWire {
        Rc::new(RefCell::new(self))
    }

    /// Reads what is there; 0 at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(io) = &mut self.io else { return Poll::Ready(Ok(0)) };
        let expected = self.decoder.expected().saturating_sub(self.read.len() as u64);
        if expected < LARGE {
            let read = &mut self.read;
            return pool::scratch(|scratch| {
                let mut buffer = ReadBuf::new(scratch);
                ready!(tokio::io::AsyncRead::poll_read(Pin::new(io), cx, &mut buffer))?;
                let bytes = buffer.filled();
                if read.is_empty() {
                    *read = pool::cut(bytes);
                } else {
                    read.extend_from_slice(bytes);
                }
                Poll::Ready(Ok(bytes.len()))
            });
        }
        let room = self.room.min(usize::try_from(expected).unwrap_or(usize::MAX));
        self.read.reserve(room);
        let outcome = pin!(io.read_buf(&mut self.read)).poll(cx);
        if let Poll::Ready(Ok(n)) = &outcome {
            if *n >= self.room {
                self.room = (self.room * 2).min(MOST_ROOM);
            } else if self.read.len() < room / 4 {
                // What is kept must not keep a large piece of memory for few bytes: a body can come byte by byte.
                self.read = pool::cut(&self.read);
                self.room = FIRST_ROOM;
            }
        }
        if self.read.is_empty() {
            self.read = BytesMut::new();
        }
        outcome
    }

    /// The next request; `None` when the client ended the connection between two.
    ///
    /// # Errors
    /// When there can be no further request on the connection.
    pub fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        limits: HeadLimits,
    ) -> Poll<Result<Option<RequestHead>, WireError>> {
        loop {
            if let Some(bytes) = self.take_head(limits)? {
                let head = head::request(&bytes, limits)?;
                self.keep_alive = head.keep_alive;
                self.begin_body(head.framing);
                self.owes_continue = head.expects_continue;
                return Poll::Ready(Ok(Some(head)));
            }
            if ready!(self.poll_fill(cx))? == 0 {
                self.gone = true;
                let clean = self.read.iter().all(|byte| LINE_END.contains(byte));
                return Poll::Ready(if clean { Ok(None) } else { Err(WireError::Closed) });
            }
        }
    }

    /// The head of the answer to a request of method `asked`; interim answers are passed over.
    ///
    /// # Errors
    /// When there is none.
    pub fn poll_response(&mut self, cx: &mut Context<'_>, asked: &Method) -> Poll<Result<ResponseHead, WireError>> {
        let limits = HeadLimits::RESPONSE;
        loop {
            if let Some(bytes) = self.take_head(limits)? {
                let head = head::response(&bytes, asked, limits)?;
                let status = head.response.status();
                if status.is_informational() && status != http::StatusCode::SWITCHING_PROTOCOLS {
                    self.interim += 1;
                    if self.interim > MAX_INTERIM {
                        return Poll::Ready(Err(HeadFault::Malformed("too_many_interim_responses").into()));
                    }
                    continue;
                }
                self.interim = 0;
                self.keep_alive = head.keep_alive;
                self.begin_body(head.framing);
                return Poll::Ready(Ok(head));
            }
            if ready!(self.poll_fill(cx))? == 0 {
                self.gone = true;
                return Poll::Ready(Err(WireError::Closed));
            }
        }
    }

    /// The bytes of the next head, when they are all there.
    fn take_head(&mut self, limits: HeadLimits) -> Result<Option<Bytes>, HeadFault> {
        if self.read.is_empty() {
            return Ok(None);
        }
        match self.scan.find(&self.read)? {
            Some((_, end)) if end > limits.bytes => Err(HeadFault::TooLarge),
            None if self.read.len() > limits.bytes => Err(HeadFault::TooLarge),
            None => Ok(None),
            Some((first, end)) => {
                self.scan.restart();
                let whole = end == self.read.len();
                let head = if whole { std::mem::take(&mut self.read) } else { self.read.split_to(end) }.freeze();
                Ok(Some(if first > 0 { head.slice(first..) } else { head }))
            }
        }
    }

    fn begin_body(&mut self, framing: Framing) {
        self.decoder = Decoder::new(framing);
        self.room = FIRST_ROOM;
    }

    /// The next frame of the body; `None` when it is over.
    ///
    /// # Errors
    /// When it breaks off.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        if self.abandoned {
            return Poll::Ready(Some(Err(WireError::Closed)));
        }
        if std::mem::take(&mut self.owes_continue) {
            self.continuing = true;
            self.out_buffer().extend_from_slice(CONTINUE);
        }
        if self.continuing {
            match self.poll_flush(cx) {
                Poll::Ready(Ok(())) => self.continuing = false,
                Poll::Ready(Err(error)) => return self.fail(error.into()),
                Poll::Pending => return Poll::Pending,
            }
        }
        loop {
            match self.decoder.next(&mut self.read) {
                Ok(Some(frame)) => {
                    self.notice_end();
                    return Poll::Ready(Some(Ok(frame)));
                }
                Ok(None) if self.decoder.is_done() => {
                    self.notice_end();
                    return Poll::Ready(None);
                }
                Ok(None) => {}
                Err(fault) => return self.fail(fault.into()),
            }
            let filled = self.poll_fill(cx);
            if filled.is_pending() && !self.reader.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                self.reader = Some(cx.waker().clone());
            }
            match ready!(filled) {
                Ok(0) => match self.decoder.close() {
                    Ok(()) => {
                        self.gone = true;
                        self.notice_end();
                        return Poll::Ready(None);
                    }
                    Err(fault) => return self.fail(fault.into()),
                },
                Ok(_) => {}
                Err(error) => return self.fail(error.into()),
            }
        }
    }

    fn fail(&mut self, error: WireError) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        self.keep_alive = false;
        // A malformed body is answered; to who has gone there is nothing to say.
        self.gone |= !matches!(error, WireError::Body(BodyFault::Chunk | BodyFault::Trailers));
        if let Some(watcher) = self.watcher.take() {
            watcher.wake();
        }
        Poll::Ready(Some(Err(error)))
    }

    fn notice_end(&mut self) {
        if self.decoder.is_done()
            && let Some(watcher) = self.watcher.take()
        {
            watcher.wake();
        }
    }

    /// Ready when the other side has ended the connection. While a body is being read its reader finds out.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.gone || self.io.is_none() {
            return Poll::Ready(());
        }
        if !self.decoder.is_done() {
            if !self.watcher.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                self.watcher = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        // What comes before its turn is read once, and no more.
        while self.read.is_empty() {
            match ready!(self.poll_fill(cx)) {
                Ok(n) if n > 0 => {}
                _ => {
                    self.gone = true;
                    return Poll::Ready(());
                }
            }
        }
        Poll::Pending
    }

    /// An idle connection may be used, as far as has been noticed.
    pub fn is_quiet(&self) -> bool {
        self.read.is_empty() && self.io.as_ref().is_some_and(|io| !io.is_readable())
    }

    /// Ready when an idle connection must not be used any more: it ended, or said something unasked.
    pub fn poll_stale(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.read.is_empty() || self.io.is_none() {
            return Poll::Ready(());
        }
        let filled = ready!(self.poll_fill(cx));
        self.gone |= !matches!(filled, Ok(n) if n > 0);
        Poll::Ready(())
    }

    /// Memory to write a head to.
    pub fn out_buffer(&mut self) -> &mut Vec<u8> {
        if self.out.capacity() == 0 {
            self.out = pool::buffer();
        }
        &mut self.out
    }

    /// Adds a frame of a body; false when that was its last.
    ///
    /// # Errors
    /// When it is longer than its length.
    pub(super) fn put_frame(&mut self, frame: Frame<Bytes>, sending: &mut Sending) -> Result<bool, PumpError> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                if *sending == Sending::Chunked {
                    let trailers = frame.into_trailers().ok();
                    encode::last_chunk(self.out_buffer(), trailers.as_ref());
                    return Ok(false);
                }
                return Ok(true);
            }
        };
        if data.is_empty() {
            return Ok(true);
        }
        match sending {
            Sending::Nothing => return Ok(true),
            Sending::Length(left) => *left = left.checked_sub(data.len() as u64).ok_or(PumpError::Length)?,
            Sending::Chunked => encode::chunk_size(self.out_buffer(), data.len()),
            Sending::UntilClose => {}
        }
        let tail = if *sending == Sending::Chunked { LINE_END } else { &[] };
        if data.len() <= SMALL {
            let out = self.out_buffer();
            out.extend_from_slice(&data);
            out.extend_from_slice(tail);
        } else {
            self.data = data;
            self.tail = tail;
        }
        Ok(true)
    }

    /// Adds the end of a chunked body.
    pub(super) fn put_last_chunk(&mut self) {
        if self.tail.is_empty() {
            encode::last_chunk(self.out_buffer(), None);
        } else {
            // Data waits that is not copied: what comes behind it cannot go where the heads are.
            self.tail = LAST_TAIL;
        }
    }

    /// What waits must be written before there is room for more.
    pub(super) fn is_full(&self) -> bool {
        !self.data.is_empty() || !self.tail.is_empty() || self.out.len() - self.written > FULL
    }

    /// Writes all that waits.
    ///
    /// # Errors
    /// When the stream fails.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(io) = &mut self.io else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        loop {
            let rest = &self.out[self.written..];
            if rest.is_empty() && self.data.is_empty() && self.tail.is_empty() {
                break;
            }
            let n = if self.data.is_empty() && self.tail.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, rest))?
            } else {
                let parts = [IoSlice::new(rest), IoSlice::new(&self.data), IoSlice::new(self.tail)];
                let from = parts.iter().position(|part| !part.is_empty()).unwrap_or(0);
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &parts[from..]))?
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            let of_out = n.min(rest.len());
            self.written += of_out;
            let of_data = (n - of_out).min(self.data.len());
            self.data.advance(of_data);
            self.tail = &self.tail[n - of_out - of_data..];
        }
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        self.written = 0;
        if self.out.capacity() > 0 {
            pool::keep_buffer(std::mem::take(&mut self.out));
        }
        // The last of the data keeps its memory otherwise.
        self.data = Bytes::new();
        Poll::Ready(Ok(()))
    }

    /// Ends what is written, in order.
    ///
    /// # Errors
    /// When the stream fails.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        match &mut self.io {
            Some(io) => Pin::new(io).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Reads and forgets; ready at the end, or after `most` bytes.
    pub fn poll_discard(&mut self, cx: &mut Context<'_>, most: &mut usize) -> Poll<()> {
        loop {
            self.read = BytesMut::new();
            match ready!(self.poll_fill(cx)) {
                Ok(n) if n > 0 && n < *most => *most -= n,
                _ => return Poll::Ready(()),
            }
        }
    }

    /// Skips what has arrived of a body that nobody reads; true when that was all of it.
    pub fn skip_body(&mut self) -> bool {
        while let Ok(Some(_)) = self.decoder.next(&mut self.read) {}
        self.decoder.is_done()
    }

    /// The answer begins: `100 Continue` is not said any more.
    pub fn begin_answer(&mut self) {
        self.owes_continue = false;
        self.continuing = false;
    }

    /// Nobody is to read the body any more; a reader that is still there hears that it broke off.
    pub fn abandon_body(&mut self) {
        self.abandoned = !self.decoder.is_done();
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// The body has been read to its end.
    pub fn has_read_body(&self) -> bool {
        self.decoder.is_done()
    }

    /// Bytes left of the body that is being read, where that is known.
    pub fn body_left(&self) -> Option<u64> {
        self.decoder.left()
    }

    /// The message before said that the connection stays, and nothing has happened since.
    pub fn keeps_alive(&self) -> bool {
        self.keep_alive && !self.gone
    }

    /// A message of ours is under way, or over.
    pub fn set_sending(&mut self, sending: bool) {
        self.sending = sending;
    }

    /// Can carry another request: both messages have passed in order, and nothing is left of them.
    pub fn is_reusable(&self) -> bool {
        self.keeps_alive()
            && self.io.is_some()
            && !self.sending
            && self.decoder.is_done()
            && self.read.is_empty()
            && self.out.is_empty()
    }

    /// Somebody sends the rest of a body, and is to be woken when the connection is closed.
    pub fn set_pump(&mut self, waker: &Waker) {
        if !self.pump.as_ref().is_some_and(|known| known.will_wake(waker)) {
            self.pump = Some(waker.clone());
        }
    }

    /// The other side has ended the connection, or failed.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// The connection is closed, or has become something else.
    pub fn is_closed(&self) -> bool {
        self.io.is_none()
    }

    /// The stream, for another protocol, with what was read of that already.
    pub fn take_stream(&mut self) -> Option<Io> {
        let mut io = self.io.take()?;
        let read = std::mem::take(&mut self.read);
        if !read.is_empty() {
            io.unread(read.freeze());
        }
        Some(io)
    }

    /// A further message has begun to arrive.
    pub fn has_read_ahead(&self) -> bool {
        self.read.iter().any(|byte| !LINE_END.contains(byte))
    }

    /// Breaks the connection, so that what was written of a message does not look like all of it: the end of a connection
    /// may be the end of a body (RFC 9112 §6.3).
    pub fn abort(&mut self) {
        if let Some(io) = self.io.take() {
            io.reset_when_dropped();
        }
        self.close();
    }

    /// Closes the connection.
    pub fn close(&mut self) {
        self.abandon_body();
        if let Some(pump) = self.pump.take() {
            pump.wake();
        }
        if let Some(mut io) = self.io.take()
            && matches!(io.stream(), Stream::ServerTls(_) | Stream::ClientTls(_))
        {
            // Says goodbye where TLS wants it, if there is room for that.
            let _ = Pin::new(&mut io).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
        self.read = BytesMut::new();
        self.data = Bytes::new();
        self.out = Vec::new();
        self.written = 0;
        self.tail = &[];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProxyBody;
    use crate::h1::{Outgoing, WireBody};
    use http_body_util::BodyExt;
    use std::future::poll_fn;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    const LIMITS: HeadLimits = HeadLimits { bytes: 8192, headers: 100 };

    fn pair() -> (SharedWire, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (Wire::server(Io::new(Stream::Unix(near))).shared(), far)
    }

    async fn next(wire: &SharedWire) -> Result<Option<RequestHead>, WireError> {
        poll_fn(|cx| wire.borrow_mut().poll_request(cx, LIMITS)).await
    }

    #[tokio::test]
    async fn requests_one_after_another() {
        let (wire, mut far) = pair();
        far.write_all(b"POST /1 HTTP/1.1\r\nContent-Length: 5\r\n\r\nhelloGET /2 HTTP/1.1\r\n\r\n").await.unwrap();
        let head = next(&wire).await.unwrap().unwrap();
        assert_eq!((head.request.uri().path(), head.framing), ("/1", Framing::Length(5)));
        let body = ProxyBody::from(WireBody::new(&wire));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "hello");
        assert_eq!(next(&wire).await.unwrap().unwrap().request.uri().path(), "/2");
        assert!(wire.borrow().is_reusable());
        drop(far);
        assert!(next(&wire).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn bounds() {
        let (wire, mut far) = pair();
        let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(9000));
        far.write_all(long.as_bytes()).await.unwrap();
        assert!(matches!(next(&wire).await, Err(WireError::Head(HeadFault::TooLarge))));
        let (wire, mut far) = pair();
        far.write_all(b"GET / HTTP").await.unwrap();
        drop(far);
        assert!(matches!(next(&wire).await, Err(WireError::Closed)));
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_noticed() {
        let (wire, mut far) = pair();
        far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        next(&wire).await.unwrap().unwrap();
        drop(far);
        poll_fn(|cx| wire.borrow_mut().poll_gone(cx)).await;
        assert!(!wire.borrow().keeps_alive());
    }

    #[tokio::test]
    async fn continue_is_said_when_the_body_is_wanted() {
        let (wire, mut far) = pair();
        far.write_all(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").await.unwrap();
        next(&wire).await.unwrap().unwrap();
        let read = async {
            let body = ProxyBody::from(WireBody::new(&wire));
            assert_eq!(body.collect().await.unwrap().to_bytes(), "ok");
        };
        let client = async {
            let mut said = vec![0; CONTINUE.len()];
            far.read_exact(&mut said).await.unwrap();
            assert_eq!(said, CONTINUE);
            far.write_all(b"ok").await.unwrap();
        };
        tokio::join!(read, client);
    }

    #[tokio::test]
    async fn a_reader_hears_when_nobody_may_read_on() {
        for close in [false, true] {
            let (wire, mut far) = pair();
            far.write_all(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5").await.unwrap();
            next(&wire).await.unwrap().unwrap();
            let body = ProxyBody::from(WireBody::new(&wire));
            let abandon = async {
                tokio::task::yield_now().await;
                if close { wire.borrow_mut().close() } else { wire.borrow_mut().abandon_body() }
            };
            let (read, ()) = tokio::join!(body.collect(), abandon);
            assert!(read.is_err(), "the body broke off");
        }
    }

    #[tokio::test]
    async fn few_bytes_of_a_large_body_hold_little_memory() {
        let (wire, mut far) = pair();
        far.write_all(b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n").await.unwrap();
        next(&wire).await.unwrap().unwrap();
        far.write_all(b"x").await.unwrap();
        let read = poll_fn(|cx| wire.borrow_mut().poll_fill(cx)).await.unwrap();
        assert_eq!((read, wire.borrow().read.len()), (1, 1));
        assert!(wire.borrow().read.capacity() < FIRST_ROOM / 2, "{}", wire.borrow().read.capacity());
    }

    #[tokio::test]
    async fn bodies_are_written_with_back_pressure() {
        let (wire, mut far) = pair();
        let data = Bytes::from(vec![b'x'; 3_000_000]);
        for sending in [Sending::Length(data.len() as u64), Sending::Chunked] {
            let mut outgoing = Outgoing::new(ProxyBody::full(data.clone()), sending);
            let write = poll_fn(|cx| outgoing.poll(&wire, cx));
            let read = async {
                let mut got = vec![0; data.len() + if sending == Sending::Chunked { 8 + 2 + 5 } else { 0 }];
                far.read_exact(&mut got).await.unwrap();
                if sending == Sending::Chunked {
                    assert!(got.starts_with(b"2dc6c0\r\nx") && got.ends_with(b"x\r\n0\r\n\r\n"));
                }
                assert_eq!(got.iter().filter(|byte| **byte == b'x').count(), data.len());
            };
            let (written, ()) = tokio::join!(write, read);
            written.unwrap();
        }
    }

    #[tokio::test]
    async fn bodies_of_a_wrong_length_are_errors() {
        let (wire, _far) = pair();
        for (length, wrong) in [(3, "long"), (9, "short")] {
            let mut outgoing = Outgoing::new(ProxyBody::full(wrong), Sending::Length(length));
            assert!(poll_fn(|cx| outgoing.poll(&wire, cx)).await.is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn interim_responses_are_passed_over() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let wire = Wire::client(Io::new(Stream::Unix(near))).shared();
        far.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .await
            .unwrap();
        let head = poll_fn(|cx| wire.borrow_mut().poll_response(cx, &Method::GET)).await.unwrap();
        assert_eq!(head.response.status(), 200);
        assert!(wire.borrow().is_reusable());
        far.write_all(&b"HTTP/1.1 100 Continue\r\n\r\n".repeat(40)).await.unwrap();
        assert!(poll_fn(|cx| wire.borrow_mut().poll_response(cx, &Method::GET)).await.is_err());
    }
}
