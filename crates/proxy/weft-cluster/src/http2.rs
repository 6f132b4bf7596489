//! One HTTP/2 connection to an endpoint, shared by requests. A task of its own reads and writes frames; a request and its
//! response pass in the task of whoever has the request, without a queue between them.

use crate::connect::ConnectionFacts;
use crate::error::UpstreamError;
use crate::http1::client_failed;
use crate::pool::{OpenGuard, SendFailure};
use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use tokio::task::AbortHandle;
use weft_codec::h2::{Outgoing, PumpError, StreamBody, head};
use weft_codec::{Io, ProxyBody, Reason};

/// HTTP/2 window of a stream: enough for 1 Gbit/s at 8 ms, and no more, since an endpoint may fill them all.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// That of a connection: so many clients that read nothing of their answers leave room for the others'.
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;
/// Longest head of a response.
const MAX_HEAD: u32 = 64 * 1024;
/// Bytes of one stream that wait to be written, beside the frame that its body has in hand.
const MAX_SEND_BUFFER: usize = 400 * 1024;
/// Streams that this side resets for the endpoint's errors before the connection goes too.
const MAX_LOCAL_RESETS: usize = 1024;
/// Streams until the endpoint's SETTINGS say how many.
const FIRST_STREAMS: usize = 100;

/// What of a request goes on when its response's head is there. The stream ends when it is dropped before its end.
#[derive(Debug)]
pub(crate) enum Rest {
    /// Nothing.
    Nothing,
    /// The way to the endpoint, which was asked to connect.
    Way(SendStream<Bytes>),
    /// The body.
    Body { _upload: Upload },
}

/// A body that a task of its own sends. No more of it is sent when this is dropped, at once: with its response a request is over,
/// for its client and for the place that it has among the connection's streams; and another try must not find another reader of
/// the body.
#[derive(Debug)]
pub(crate) struct Upload {
    outgoing: Rc<RefCell<Option<Outgoing>>>,
    task: AbortHandle,
}

/// A connection; closed when it is dropped and its last stream has ended.
pub(crate) struct Http2 {
    /// `None` only while it is dropped.
    sender: RefCell<Option<SendRequest<Bytes>>>,
    state: Rc<State>,
    pub facts: Rc<ConnectionFacts>,
    /// The secrets it was made with.
    pub secrets: usize,
    pub created: Instant,
    pub idle_since: Cell<Instant>,
    pub active: Cell<u32>,
    pub served: Cell<u32>,
}

/// What the connection's task and its users tell each other.
#[derive(Debug, Default)]
struct State {
    /// No further request can go on it.
    closed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl fmt::Debug for Http2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2").field("active", &self.active.get()).finish_non_exhaustive()
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.sender.replace(None);
        // Without streams and users the connection ends; its task has to look.
        if let Some(waker) = self.state.waker.take() {
            waker.wake();
        }
    }
}

impl Http2 {
    /// A connection on `io`, with its task.
    ///
    /// # Errors
    /// When its beginning could not be written.
    pub async fn start(
        io: Io,
        facts: Rc<ConnectionFacts>,
        secrets: usize,
        guard: Option<OpenGuard>,
    ) -> Result<Self, UpstreamError> {
        let mut builder = Builder::new();
        builder
            .initial_max_send_streams(FIRST_STREAMS)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD)
            .max_send_buffer_size(MAX_SEND_BUFFER)
            .max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
            .enable_push(false);
        let begun = builder.handshake::<_, Bytes>(io).await;
        let (sender, connection) =
            begun.map_err(|error| UpstreamError::unsent(Reason::ConnectionFailure).with_detail(error.to_string()))?;
        let state = Rc::new(State::default());
        tokio::task::spawn_local(run(connection, state.clone(), guard));
        let now = Instant::now();
        Ok(Self {
            sender: RefCell::new(Some(sender)),
            state,
            facts,
            secrets,
            created: now,
            idle_since: Cell::new(now),
            active: Cell::new(0),
            served: Cell::new(0),
        })
    }

    /// No further request can go on it, as far as is known.
    pub fn is_closed(&self) -> bool {
        self.state.closed.get()
    }

    /// Streams that the endpoint lets be open at once.
    pub fn max_streams(&self) -> usize {
        self.sender.borrow().as_ref().map_or(0, SendRequest::current_max_send_streams)
    }

    /// The endpoint takes extended CONNECT (RFC 8441).
    pub fn takes_extended_connect(&self) -> bool {
        self.sender.borrow().as_ref().is_some_and(SendRequest::is_extended_connect_protocol_enabled)
    }

    /// Sends a request; returns when the response's head is there, with what goes on of the request.
    ///
    /// # Errors
    /// With the request, when it was not touched.
    pub async fn send(&self, request: Request<ProxyBody>) -> Result<(Response<ProxyBody>, Rest), SendFailure> {
        if let Err(error) = self.ready() {
            let error = UpstreamError::from_h2(&error, true);
            return Err(SendFailure { error, request: Some(Box::new(request)) });
        }
        let (mut parts, body) = request.into_parts();
        let is_connect = parts.method == Method::CONNECT;
        let is_head = parts.method == Method::HEAD;
        let ended = !is_connect && body.is_end_stream();
        let length = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        head::request(&mut parts.headers, &parts.method, length.filter(|_| !is_connect));
        let opened = self.open(Request::from_parts(parts, ()), ended);
        let failed = |error| SendFailure { error, request: None };
        let (answer, stream) = opened.map_err(|error| failed(UpstreamError::from_h2(&error, false)))?;
        let (response, rest) = match (ended, is_connect) {
            (false, false) => with_body(answer, Outgoing::new(body, stream)).await.map_err(failed)?,
            _ => {
                let response = answer.await.map_err(|error| failed(UpstreamError::from_h2(&error, false)))?;
                (response, if is_connect { Rest::Way(stream) } else { Rest::Nothing })
            }
        };
        let (parts, body) = response.into_parts();
        // Some servers send bytes where a message has none (RFC 9110 §6.4.1): they are not waited for.
        let is_empty = is_head || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let body = if is_empty { ProxyBody::empty() } else { StreamBody::new(body, &parts.headers).into() };
        Ok((Response::from_parts(parts, body), rest))
    }

    /// It takes another request: its endpoint has not said that it goes, which may long be before its end.
    pub fn takes_requests(&self) -> bool {
        self.ready().is_ok()
    }

    /// Whether a request can be sent now; if not, none ever can again. The pool sees to it that there are no more streams than
    /// the endpoint wants: should there be, in the moment in which it wants fewer, they wait in the connection.
    fn ready(&self) -> Result<(), h2::Error> {
        let mut sender = self.sender.borrow_mut();
        let Some(sender) = sender.as_mut() else { return Err(h2::Reason::NO_ERROR.into()) };
        match sender.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => outcome.inspect_err(|_| self.state.closed.set(true)),
            Poll::Pending => {
                // It waits for its last stream to open; a copy does not.
                *sender = sender.clone();
                Ok(())
            }
        }
    }

    fn open(&self, request: Request<()>, ended: bool) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        match self.sender.borrow_mut().as_mut() {
            Some(sender) => sender.send_request(request, ended),
            None => Err(h2::Reason::NO_ERROR.into()),
        }
    }
}

/// The connection, until it ends.
async fn run(mut connection: Connection<Io, Bytes>, state: Rc<State>, guard: Option<OpenGuard>) {
    let outcome = poll_fn(|cx| {
        {
            let mut known = state.waker.borrow_mut();
            if !known.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *known = Some(cx.waker().clone());
            }
        }
        Pin::new(&mut connection).poll(cx)
    })
    .await;
    if let Err(error) = outcome {
        tracing::debug!(%error, "upstream connection ended");
    }
    state.closed.set(true);
    // Somebody still has it: it was not this side that let it go.
    if let Some(guard) = guard.filter(|_| Rc::strong_count(&state) > 1) {
        guard.ended_by_endpoint();
    }
}

/// Sends the body and waits for the response's head, which may come before the body's end.
async fn with_body(
    mut answer: ResponseFuture,
    outgoing: Outgoing,
) -> Result<(Response<RecvStream>, Rest), UpstreamError> {
    let mut outgoing = Some(outgoing);
    let response = poll_fn(|cx| {
        if let Some(sending) = &mut outgoing {
            match sending.poll(cx) {
                Poll::Pending => {}
                Poll::Ready(Err(PumpError::Body(error))) => return Poll::Ready(Err(client_failed(&error))),
                // Whoever wants no more of a request may have answered it; if not, the answer says why.
                Poll::Ready(Ok(()) | Err(PumpError::Reset(_) | PumpError::Stream(_))) => outgoing = None,
            }
        }
        Pin::new(&mut answer).poll(cx).map_err(|error| UpstreamError::from_h2(&error, false))
    })
    .await?;
    Ok((response, outgoing.map_or(Rest::Nothing, |outgoing| Rest::Body { _upload: Upload::start(outgoing) })))
}

impl Upload {
    fn start(outgoing: Outgoing) -> Self {
        let outgoing = Rc::new(RefCell::new(Some(outgoing)));
        let sending = outgoing.clone();
        let task = tokio::task::spawn_local(async move {
            let sent = poll_fn(|cx| match &mut *sending.borrow_mut() {
                Some(outgoing) => outgoing.poll(cx),
                None => Poll::Ready(Ok(())),
            });
            if let Err(error) = sent.await {
                tracing::debug!(%error, "the rest of a request was not sent");
            }
            sending.take();
        });
        Self { outgoing, task: task.abort_handle() }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.task.abort();
        // Not while it is being polled, which may be what drops this: then it goes with its task.
        let outgoing = self.outgoing.try_borrow_mut().ok().and_then(|mut outgoing| outgoing.take());
        drop(outgoing);
    }
}
