//! A client's HTTP/1 connection: one request after another, each answered before the next is looked at. Reading a request,
//! serving it and writing the answer are one task, without a queue between them.

use crate::http::conn::HttpConnection;
use crate::http::serve;
use http::{Method, Request, Response, Version};
use http_body::Body;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::oneshot;
use weft_codec::h1::encode::{self, Asked, Sending};
use weft_codec::h1::{HeadLimits, Outgoing, PumpError, RequestHead, SharedWire, Wire, WireBody, WireError, pool};
use weft_codec::upgrade::Upgrading;
use weft_codec::{HeaderMarks, Io, ProxyBody};

/// How long, and how much, is read of a client that still sends after its last answer. Closing at once would destroy the
/// answer on its way (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 * 1024;

/// Serves requests until the connection ends.
///
/// # Errors
/// Why it ended out of order.
pub(crate) async fn serve(connection: Rc<HttpConnection>, io: Io, limits: HeadLimits) -> Result<(), WireError> {
    let wire = Wire::server(io).shared();
    loop {
        match next(&connection, &wire, limits).await {
            Ok(Some(head)) => {
                if !one(&connection, &wire, head).await? {
                    break;
                }
            }
            Ok(None) => break,
            Err(WireError::Head(fault)) => {
                tracing::debug!(peer = %connection.downstream.peer, %fault, "request refused");
                encode::refusal(wire.borrow_mut().out_buffer(), fault.status());
                break;
            }
            Err(error) => return Err(error),
        }
    }
    end(&wire).await
}

/// The next request's head; `None` when there is none, or the connection is to end.
async fn next(
    connection: &HttpConnection,
    wire: &SharedWire,
    limits: HeadLimits,
) -> Result<Option<RequestHead>, WireError> {
    poll_fn(|cx| {
        if connection.is_cut() {
            return Poll::Ready(Ok(None));
        }
        let mut wire = wire.borrow_mut();
        let polled = wire.poll_request(cx, limits);
        if polled.is_ready() {
            return polled;
        }
        // What came while the request before was served may be all that ever comes of a head.
        if wire.has_read_ahead() {
            connection.head_began();
        }
        if connection.is_ending() { Poll::Ready(Ok(None)) } else { Poll::Pending }
    })
    .await
}

/// Serves one request; true when another may follow.
async fn one(connection: &Rc<HttpConnection>, wire: &SharedWire, head: RequestHead) -> Result<bool, WireError> {
    let asked = Asked {
        is_head: *head.request.method() == Method::HEAD,
        is_connect: *head.request.method() == Method::CONNECT,
        is_old: head.request.version() == Version::HTTP_10,
        keep_alive: head.keep_alive,
    };
    let (hand_over, client) = match head.asks_upgrade {
        true => {
            let (sender, receiver) = oneshot::channel();
            (Some(sender), Some(Upgrading::Http1(receiver)))
        }
        false => (None, None),
    };
    let marks = head.marks;
    let request = head.request.map(|()| ProxyBody::from(WireBody::new(wire)));
    let Some(response) = answer(connection, wire, request, marks, client).await else { return Ok(false) };
    let (parts, body) = response.into_parts();
    let answered = {
        // The request's body is read by nobody any more: what has arrived of it is skipped, and if that was not all, no
        // further request can be found. What follows a CONNECT that was refused may have been meant for the other end.
        let abandoned = Rc::strong_count(wire) == 1;
        let mut wire = wire.borrow_mut();
        wire.begin_answer();
        let torn = abandoned && !wire.skip_body();
        let keep_alive =
            asked.keep_alive && !asked.is_connect && wire.keeps_alive() && !torn && !connection.is_ending();
        let length = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        encode::response(wire.out_buffer(), parts.status, &parts.headers, length, Asked { keep_alive, ..asked })
    };
    pool::keep_map(parts.headers);
    if answered.is_tunnel {
        poll_fn(|cx| wire.borrow_mut().poll_flush(cx)).await?;
        if let (Some(hand_over), Some(io)) = (hand_over, wire.borrow_mut().take_stream()) {
            // When nobody waits for it any more, it is closed.
            let _ = hand_over.send(io);
        }
        return Ok(false);
    }
    if !send(connection, wire, body, answered.sending).await? {
        return Ok(false);
    }
    // Who still holds the request's body (an endpoint over HTTP/2 that has answered early) must not come upon the next one's.
    let held = Rc::strong_count(wire) > 1;
    let mut wire = wire.borrow_mut();
    Ok(answered.keep_alive && wire.keeps_alive() && (wire.has_read_body() || (!held && wire.skip_body())))
}

/// The response; `None` when the client left, or was cut, before there was one.
async fn answer(
    connection: &Rc<HttpConnection>,
    wire: &SharedWire,
    request: Request<ProxyBody>,
    marks: HeaderMarks,
    client: Option<Upgrading>,
) -> Option<Response<ProxyBody>> {
    // In a box, so that an idle connection does not hold the room for it.
    let mut serving = Box::pin(serve::serve(connection.clone(), request, marks, client));
    poll_fn(|cx| {
        if connection.is_cut() {
            return Poll::Ready(None);
        }
        match serving.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => wire.borrow_mut().poll_gone(cx).map(|()| None),
        }
    })
    .await
}

/// Writes the response; false when the client left or was cut meanwhile, or the body broke off, which the client learns by the
/// connection's end, and where that could be the body's end too, by its breaking.
async fn send(
    connection: &HttpConnection,
    wire: &SharedWire,
    body: ProxyBody,
    sending: Sending,
) -> Result<bool, WireError> {
    let mut outgoing = Outgoing::new(body, sending);
    let sent = poll_fn(|cx| {
        if connection.is_cut() {
            return Poll::Ready(None);
        }
        match outgoing.poll(wire, cx) {
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
            Poll::Pending => wire.borrow_mut().poll_gone(cx).map(|()| None),
        }
    })
    .await;
    drop(outgoing);
    match sent {
        Some(Ok(())) => Ok(true),
        Some(Err(PumpError::Io(error))) => Err(error.into()),
        Some(Err(PumpError::Body(_))) | None if sending == Sending::UntilClose => {
            wire.borrow_mut().abort();
            Ok(false)
        }
        Some(Err(PumpError::Body(_) | PumpError::Length)) | None => {
            wire.borrow_mut().close();
            Ok(false)
        }
    }
}

/// Ends the connection so that what was written arrives.
async fn end(wire: &SharedWire) -> Result<(), WireError> {
    if wire.borrow().is_closed() {
        return Ok(());
    }
    wire.borrow_mut().abandon_body();
    poll_fn(|cx| wire.borrow_mut().poll_shutdown(cx)).await?;
    if !wire.borrow().is_gone() {
        let mut most = LINGER_BYTES;
        let rest = poll_fn(|cx| wire.borrow_mut().poll_discard(cx, &mut most));
        let _ = tokio::time::timeout(LINGER, rest).await;
    }
    wire.borrow_mut().close();
    Ok(())
}
