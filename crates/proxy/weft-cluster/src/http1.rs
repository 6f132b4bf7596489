//! One HTTP/1 connection to an endpoint: a request, then its response, then the next. Whoever has the request drives it; a
//! task of its own there is only for the rest of a body whose response has begun already.

use crate::connect::ConnectionFacts;
use crate::error::{Retry, UpstreamError};
use crate::pool::OpenGuard;
use http::header::UPGRADE;
use http::{Method, Response, StatusCode};
use http_body::Body;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use weft_codec::h1::encode::{self, Asking};
use weft_codec::h1::{Outgoing, PumpError, ResponseHead, SharedWire, Wire, WireBody, WireError};
use weft_codec::{BodyError, HeaderMarks, Io, ProxyBody, Reason};

/// A connection; closed when dropped.
pub(crate) struct Http1 {
    wire: SharedWire,
    pub facts: Rc<ConnectionFacts>,
    /// The secrets it was made with.
    pub secrets: usize,
    pub created: Instant,
    pub idle_since: Instant,
    pub idle_limit: Duration,
    pub served: u32,
    guard: OpenGuard,
}

impl fmt::Debug for Http1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http1").field("served", &self.served).finish_non_exhaustive()
    }
}

impl Drop for Http1 {
    fn drop(&mut self) {
        if let Ok(mut wire) = self.wire.try_borrow_mut() {
            if wire.is_gone() {
                self.guard.ended_by_endpoint();
            }
            wire.close();
        }
    }
}

impl Http1 {
    pub fn new(
        io: Io,
        facts: Rc<ConnectionFacts>,
        secrets: usize,
        guard: OpenGuard,
        idle_limit: Duration,
    ) -> Box<Self> {
        let now = Instant::now();
        let wire = Wire::client(io).shared();
        Box::new(Self { wire, facts, secrets, created: now, idle_since: now, idle_limit, served: 0, guard })
    }

    /// Ready when the idle connection must not be used any more; else the waker is told when that changes.
    pub fn poll_stale(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.wire.borrow_mut().poll_stale(cx)
    }

    /// The endpoint has not closed it, as far as is known at this moment.
    pub fn is_open(&self) -> bool {
        self.wire.borrow().is_quiet() || self.poll_stale(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Request and response have passed in order, and the endpoint keeps the connection.
    pub fn is_reusable(&self) -> bool {
        self.wire.borrow().is_reusable()
    }

    /// The stream, for what both sides have agreed on.
    pub fn take_stream(&self) -> Option<Io> {
        self.wire.borrow_mut().take_stream()
    }

    /// The first request may be sent. Later ones may, since [`Http1::is_open`] was asked when the connection was taken.
    pub fn may_begin(&self) -> bool {
        self.served > 0 || self.is_open()
    }

    /// Sends a request; returns when the response's head is there.
    ///
    /// # Errors
    /// When none comes.
    pub async fn send(
        &mut self,
        head: Asking<'_>,
        body: ProxyBody,
    ) -> Result<(Response<ProxyBody>, HeaderMarks), UpstreamError> {
        self.served = self.served.saturating_add(1);
        let length = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        let sending = {
            let mut wire = self.wire.borrow_mut();
            wire.set_sending(true);
            encode::request(wire.out_buffer(), head, length)
        };
        let mut outgoing = Some(Outgoing::new(body, sending));
        let mut broken = None;
        let answer = poll_fn(|cx| self.poll_answer(cx, head.method, &mut outgoing, &mut broken)).await?;
        let asks_upgrade = || *head.method != Method::CONNECT && head.headers.contains_key(UPGRADE);
        if answer.response.status() == StatusCode::SWITCHING_PROTOCOLS && !asks_upgrade() {
            return Err(broke_protocol("an upgrade that nobody asked for".to_string()));
        }
        if let Some(outgoing) = outgoing.filter(|_| broken.is_none()) {
            tokio::task::spawn_local(send_rest(self.wire.clone(), outgoing));
        }
        Ok((answer.response.map(|()| ProxyBody::from(WireBody::new(&self.wire))), answer.marks))
    }

    /// Sends what there is to send, and reads the answer's head. An answer may come before the request has been sent, and
    /// even though the endpoint takes no more of it.
    fn poll_answer(
        &self,
        cx: &mut Context<'_>,
        method: &Method,
        outgoing: &mut Option<Outgoing>,
        broken: &mut Option<io::Error>,
    ) -> Poll<Result<ResponseHead, UpstreamError>> {
        if broken.is_none()
            && let Some(sending) = outgoing
        {
            match sending.poll(&self.wire, cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => {
                    *outgoing = None;
                    self.wire.borrow_mut().set_sending(false);
                }
                Poll::Ready(Err(PumpError::Io(error))) => *broken = Some(error),
                Poll::Ready(Err(PumpError::Body(error))) => return Poll::Ready(Err(client_failed(&error))),
                Poll::Ready(Err(PumpError::Length)) => {
                    return Poll::Ready(Err(pointless(Reason::DownstreamDisconnect)));
                }
            }
        }
        match self.wire.borrow_mut().poll_response(cx, method) {
            Poll::Ready(Ok(head)) => Poll::Ready(Ok(head)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(failed(error, broken.take()))),
            Poll::Pending => match broken.take() {
                Some(error) => Poll::Ready(Err(terminated(Some(error)))),
                None => Poll::Pending,
            },
        }
    }
}

/// Sends the rest of a body while its response is on its way already.
async fn send_rest(wire: SharedWire, mut outgoing: Outgoing) {
    poll_fn(|cx| {
        {
            let mut wire = wire.borrow_mut();
            if wire.is_closed() {
                return Poll::Ready(());
            }
            wire.set_pump(cx.waker());
        }
        match outgoing.poll(&wire, cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                wire.borrow_mut().set_sending(false);
                Poll::Ready(())
            }
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "the rest of a request was not sent");
                Poll::Ready(())
            }
        }
    })
    .await;
}

fn pointless(reason: Reason) -> UpstreamError {
    UpstreamError { reason, retry: Retry::Pointless, detail: None }
}

/// The body that failed came from the client.
pub(crate) fn client_failed(error: &BodyError) -> UpstreamError {
    match error {
        BodyError::Wire(WireError::Body(fault)) if *fault != weft_codec::h1::BodyFault::Short => {
            pointless(Reason::BadRequest)
        }
        _ => pointless(Reason::DownstreamDisconnect),
    }
}

fn broke_protocol(detail: String) -> UpstreamError {
    UpstreamError { reason: Reason::UpstreamProtocol, retry: Retry::MayBeProcessed, detail: Some(detail.into()) }
}

fn terminated(error: Option<io::Error>) -> UpstreamError {
    let detail = error.map(|error| error.to_string().into());
    UpstreamError { reason: Reason::ConnectionTermination, retry: Retry::MayBeProcessed, detail }
}

/// Why there is no answer. What was wrong with sending comes first.
fn failed(error: WireError, broken: Option<io::Error>) -> UpstreamError {
    match error {
        WireError::Head(_) | WireError::Body(_) => broke_protocol(error.to_string()),
        WireError::Io(error) => terminated(Some(broken.unwrap_or(error))),
        WireError::Closed => terminated(broken),
    }
}
