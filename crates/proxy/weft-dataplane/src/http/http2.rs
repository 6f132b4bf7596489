//! A client's HTTP/2 connection: one task reads and writes its frames, and each stream has one that serves its request and sends
//! the answer.

use crate::http::conn::HttpConnection;
use crate::http::serve;
use bytes::Bytes;
use h2::server::{Builder, Connection, Handshake, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::sync::oneshot;
use weft_codec::h2::{Outgoing, StreamBody, Tunnel, head};
use weft_codec::upgrade::Upgrading;
use weft_codec::{HeaderMarks, Io, ProxyBody};
use weft_proxy_config::HttpLimits;

/// Window of a stream at most, whatever the configuration says: an endpoint slower than its client fills it.
const MAX_WINDOW: u32 = 16 * 1024 * 1024;
/// The window that a stream begins with (RFC 9113 §6.9.2).
const LEAST_WINDOW: u32 = 65_535;
/// Bytes of one stream that wait to be written, beside the frame that its body has in hand.
const MAX_SEND_BUFFER: usize = 400 * 1024;
/// Streams that this side resets for the client's errors before the connection goes too.
const MAX_LOCAL_RESETS: usize = 1024;

/// A connection.
pub(crate) struct Http2 {
    connection: Rc<HttpConnection>,
    state: State,
    /// Headers that a request may have. (Their bytes are bounded where they are decoded.)
    max_headers: usize,
    /// It is to end as soon as it has begun.
    ending: bool,
}

enum State {
    Beginning(Box<Handshake<Io, Bytes>>),
    Serving(Box<Connection<Io, Bytes>>),
}

impl Http2 {
    /// Serves requests on `io`. `extended`: clients may open tunnels by extended CONNECT (RFC 8441).
    pub fn new(connection: Rc<HttpConnection>, io: Io, limits: &HttpLimits, extended: bool) -> Self {
        let mut builder = Builder::new();
        builder
            .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
            .max_concurrent_streams(limits.http2_max_streams)
            .initial_window_size(limits.http2_stream_window.clamp(LEAST_WINDOW, MAX_WINDOW))
            .initial_connection_window_size(limits.http2_connection_window.clamp(LEAST_WINDOW, 2 * MAX_WINDOW))
            .max_send_buffer_size(MAX_SEND_BUFFER)
            .max_local_error_reset_streams(Some(MAX_LOCAL_RESETS));
        if extended {
            builder.enable_connect_protocol();
        }
        let (state, max_headers) = (State::Beginning(Box::new(builder.handshake(io))), limits.max_headers);
        Self { connection, state, max_headers, ending: false }
    }

    /// Ends it as soon as no stream is open.
    pub fn graceful(&mut self) {
        self.ending = true;
        if let State::Serving(frames) = &mut self.state {
            frames.graceful_shutdown();
        }
    }

    /// Goes on until the connection ends.
    ///
    /// # Errors
    /// Why it ended out of order.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            match &mut self.state {
                State::Beginning(handshake) => {
                    let mut frames = ready!(Pin::new(&mut **handshake).poll(cx))?;
                    if self.ending {
                        frames.graceful_shutdown();
                    }
                    self.state = State::Serving(Box::new(frames));
                }
                State::Serving(frames) => match ready!(frames.poll_accept(cx)) {
                    Some(Ok((mut request, respond))) => {
                        head::join_cookies(request.headers_mut());
                        if request.headers().len() > self.max_headers {
                            too_large(respond);
                            continue;
                        }
                        // In a box: the runtime would move the whole of it several times.
                        tokio::task::spawn_local(Box::pin(stream(self.connection.clone(), request, respond)));
                    }
                    Some(Err(error)) => return Poll::Ready(Err(error)),
                    None => return Poll::Ready(Ok(())),
                },
            }
        }
    }
}

/// The answer to a request with too many headers, as the codec gives it to one with too many bytes of them.
fn too_large(mut respond: SendResponse<Bytes>) {
    let mut answer = Response::new(());
    *answer.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    // Fails when the stream is gone.
    let _ = respond.send_response(answer, true);
}

/// One stream from its request's head to the end of its answer.
async fn stream(connection: Rc<HttpConnection>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (parts, receive) = request.into_parts();
    let (body, client, tunnel) = match parts.method == Method::CONNECT {
        true => {
            let (sender, receiver) = oneshot::channel();
            (ProxyBody::empty(), Some(Upgrading::Http2(receiver)), Some((sender, receive)))
        }
        false => (ProxyBody::from(StreamBody::new(receive, &parts.headers)), None, None),
    };
    let marks = HeaderMarks::of(&parts.headers);
    let is_head = parts.method == Method::HEAD;
    let request = Request::from_parts(parts, body);
    let Some(response) = answer(connection.clone(), request, marks, client, &mut respond).await else {
        return connection.gave_up();
    };
    let (mut parts, mut body) = response.into_parts();
    let is_tunnel = tunnel.is_some() && parts.status.is_success();
    // RFC 9110 §6.4.1; what this proxy says by itself has its text all the same.
    let bodiless = is_head || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let ended = !is_tunnel && (bodiless || body.is_end_stream());
    head::response(&mut parts.headers, body.size_hint().exact().filter(|_| !ended && !is_tunnel));
    let sending = match respond.send_response(Response::from_parts(parts, ()), ended) {
        Ok(sending) => sending,
        Err(error) => {
            tracing::debug!(%error, "a response could not be sent");
            return respond.send_reset(Reason::INTERNAL_ERROR);
        }
    };
    if let Some((hand_over, receive)) = tunnel.filter(|_| is_tunnel) {
        // When nobody waits for it any more, it is closed.
        let _ = hand_over.send(Tunnel::new(sending, receive));
    } else if ended {
        // Nobody takes it, nobody waits for it.
        poll_fn(|cx| {
            while let Poll::Ready(Some(Ok(_))) = Pin::new(&mut body).poll_frame(cx) {}
            Poll::Ready(())
        })
        .await;
    } else {
        let mut outgoing = Outgoing::new(body, sending);
        if let Err(error) = poll_fn(|cx| outgoing.poll(cx)).await {
            tracing::debug!(%error, "a response was not sent to its end");
        }
    }
}

/// The response; `None` when the client gave up its stream before there was one.
async fn answer(
    connection: Rc<HttpConnection>,
    request: Request<ProxyBody>,
    marks: HeaderMarks,
    client: Option<Upgrading>,
    respond: &mut SendResponse<Bytes>,
) -> Option<Response<ProxyBody>> {
    let mut serving = pin!(serve::serve(connection, request, marks, client));
    poll_fn(|cx| match serving.as_mut().poll(cx) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        Poll::Pending => respond.poll_reset(cx).map(|_| None),
    })
    .await
}
