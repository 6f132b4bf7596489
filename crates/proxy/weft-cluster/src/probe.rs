//! What an active health check asks an endpoint, and what it makes of the answer: HTTP, gRPC or bytes over TCP.

use crate::connect::ConnectionFacts;
use crate::hosts::Host;
use crate::http2::{Http2, Rest};
use http::header::{CONTENT_TYPE, HOST, TE, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use std::future::poll_fn;
use std::ops::Range;
use std::task::{Context, Waker};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use weft_codec::h1::{SharedWire, Wire, WireBody, encode};
use weft_codec::{Io, ProxyBody, grpc};
use weft_proxy_config::{HttpProbe, Probe};

/// Who asks, as Envoy says it.
const AGENT: HeaderValue = HeaderValue::from_static("Envoy/HC");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
const GRPC_PATH: PathAndQuery = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
/// Longest answer of gRPC, and of TCP, that is read.
const MAX_ANSWER: usize = 64 * 1024;
/// `ServingStatus` of an endpoint that is well.
const SERVING: u64 = 1;

/// What one check says of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    /// It is well.
    Well,
    /// There is no answer.
    NoAnswer,
    /// It answers with a status that may be tried again: that counts towards the threshold, as no answer does.
    Retriable,
    /// It says itself that it is not well, and is believed at once.
    SaysNo,
}

impl Finding {
    fn of(is_well: bool) -> Self {
        if is_well { Finding::Well } else { Finding::SaysNo }
    }
}

/// An answer, or as much of it as is looked at.
struct Answer {
    status: StatusCode,
    body: Vec<u8>,
    grpc_status: Option<u32>,
}

/// A connection kept for the next check.
pub(crate) enum Kept {
    Http1(SharedWire),
    Http2(Http2),
}

impl Kept {
    /// Itself, unless its endpoint has closed it.
    pub fn still_open(self) -> Option<Self> {
        let open = match &self {
            Kept::Http1(wire) => {
                let mut wire = wire.borrow_mut();
                wire.is_reusable() && wire.poll_stale(&mut Context::from_waker(Waker::noop())).is_pending()
            }
            Kept::Http2(connection) => !connection.is_closed(),
        };
        open.then_some(self)
    }
}

/// Asks, and says what the answer means.
///
/// # Errors
/// Why there is no answer.
pub(crate) async fn probe(
    what: &Probe,
    host: &Host,
    kept: &mut Option<Kept>,
    connect: impl AsyncFn() -> Result<Io, String>,
) -> Result<Finding, String> {
    match what {
        Probe::Tcp { send, receive } => tcp(connect().await?, send, receive).await.map(Finding::of),
        Probe::Http(http) => {
            let name = http.host.clone().or_else(|| HeaderValue::from_str(host.hostname.as_deref()?).ok());
            let name = name.unwrap_or_else(|| http.cluster.clone());
            let mut request = request(&http.method, &http.path, &name, &http.headers, http.http2);
            request.headers_mut().entry(USER_AGENT).or_insert(AGENT);
            let answer = exchange(request, http.http2, http.most, kept, connect).await?;
            Ok(judge(http, &answer))
        }
        Probe::Grpc { service, authority, headers } => {
            let mut request = request(&Method::POST, &GRPC_PATH, authority, headers, true);
            request.headers_mut().insert(CONTENT_TYPE, GRPC);
            request.headers_mut().insert(TE, TRAILERS);
            request.headers_mut().entry(USER_AGENT).or_insert(AGENT);
            *request.body_mut() = ProxyBody::full(question(service));
            let answer = exchange(request, true, MAX_ANSWER, kept, connect).await?;
            // Envoy's rule: whatever it answers but that it serves is a no.
            let is_fine = answer.status == StatusCode::OK && answer.grpc_status == Some(0);
            Ok(Finding::of(is_fine && serving_status(&answer.body) == Some(SERVING)))
        }
    }
}

fn judge(http: &HttpProbe, answer: &Answer) -> Finding {
    let among = |ranges: &[Range<u16>]| ranges.iter().any(|range| range.contains(&answer.status.as_u16()));
    match (among(&http.expected), among(&http.retriable)) {
        (true, _) => Finding::of(contains_all(&answer.body, &http.receive)),
        (false, true) => Finding::Retriable,
        (false, false) => Finding::SaysNo,
    }
}

fn request(
    method: &Method,
    path: &PathAndQuery,
    host: &HeaderValue,
    headers: &[(http::HeaderName, HeaderValue)],
    http2: bool,
) -> Request<ProxyBody> {
    let mut request = Request::new(ProxyBody::empty());
    *request.method_mut() = method.clone();
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(path.clone());
    if http2 {
        parts.scheme = Some(Scheme::HTTP);
        // A cluster's name need not be an authority.
        parts.authority =
            Authority::try_from(host.as_bytes()).ok().or_else(|| Some(Authority::from_static("health-check")));
    } else {
        request.headers_mut().insert(HOST, host.clone());
    }
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    for (name, value) in headers {
        request.headers_mut().append(name, value.clone());
    }
    request
}

/// The answer, with `most` bytes of its body. The connection is kept where it can serve again; not when the answer is so long
/// that reading the rest of it costs more than another connection.
async fn exchange(
    request: Request<ProxyBody>,
    http2: bool,
    most: usize,
    kept: &mut Option<Kept>,
    connect: impl AsyncFn() -> Result<Io, String>,
) -> Result<Answer, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let connection = match kept.take() {
        Some(kept) => kept,
        None if http2 => Kept::Http2(start_http2(connect().await?).await?),
        None => Kept::Http1(Wire::client(connect().await?).shared()),
    };
    // What goes on of the question must, until the answer has been read.
    let (head, mut body, _rest) = match &connection {
        Kept::Http1(wire) => {
            let (parts, _) = request.into_parts();
            encode::request(wire.borrow_mut().out_buffer(), encode::Asking::from(&parts), Some(0));
            poll_fn(|cx| wire.borrow_mut().poll_flush(cx)).await.map_err(|e| text(&e))?;
            let answer = poll_fn(|cx| wire.borrow_mut().poll_response(cx, &parts.method)).await;
            let head = answer.map_err(|e| text(&e))?;
            (head.response.into_parts().0, ProxyBody::from(WireBody::new(wire)), Rest::Nothing)
        }
        Kept::Http2(connection) => {
            let sent = connection.send(request).await;
            let (response, rest) = sent.map_err(|failure| text(&failure.error))?;
            let (head, body) = response.into_parts();
            (head, body, rest)
        }
    };
    let mut grpc_status = grpc::status(&head.headers);
    let (mut bytes, mut read) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        if let Some(data) = frame.data_ref() {
            let room = most.saturating_sub(bytes.len()).min(data.len());
            bytes.extend_from_slice(&data[..room]);
            read += data.len();
            if read > most.max(MAX_ANSWER) {
                return Ok(Answer { status: head.status, body: bytes, grpc_status });
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            grpc_status = grpc::status(trailers).or(grpc_status);
        }
    }
    *kept = connection.still_open();
    Ok(Answer { status: head.status, body: bytes, grpc_status })
}

async fn start_http2(io: Io) -> Result<Http2, String> {
    let facts = ConnectionFacts { local: None, remote: None, tls: None, local_uri: None, meter: io.meter() };
    Http2::start(io, facts.into(), 0, None).await.map_err(|error| error.to_string())
}

async fn tcp(mut io: Io, send: &[u8], receive: &[Vec<u8>]) -> Result<bool, String> {
    io.write_all(send).await.map_err(|error| error.to_string())?;
    io.flush().await.map_err(|error| error.to_string())?;
    let mut got = Vec::new();
    while !contains_all(&got, receive) {
        let n = io.read_buf(&mut got).await.map_err(|error| error.to_string())?;
        if n == 0 {
            return Err("the connection ended before all was received".into());
        }
        if got.len() > MAX_ANSWER {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The pieces are there, in this order, whatever stands between them.
fn contains_all(bytes: &[u8], pieces: &[Vec<u8>]) -> bool {
    let mut rest = bytes;
    pieces.iter().filter(|piece| !piece.is_empty()).all(|piece| {
        let found = rest.windows(piece.len()).position(|window| window == &piece[..]);
        rest = found.map_or(&[][..], |at| &rest[at + piece.len()..]);
        found.is_some()
    })
}

/// `HealthCheckRequest` with its frame: field 1 is the service.
fn question(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        push_varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut framed = vec![0];
    framed.extend_from_slice(&length.to_be_bytes());
    framed.append(&mut message);
    framed
}

fn push_varint(out: &mut Vec<u8>, mut n: u64) {
    while n > 0x7f {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Field 1 of a `HealthCheckResponse` in its frame; 0 when it is not there.
fn serving_status(framed: &[u8]) -> Option<u64> {
    let (head, message) = framed.split_at_checked(5)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if head[0] != 0 || message.len() != length {
        return None;
    }
    match message {
        [] => Some(0),
        [0x08, value @ 0..=0x7f] => Some(u64::from(*value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_in_order() {
        for (bytes, pieces, want) in [
            (&b"hello world"[..], &["hello", "world"][..], true),
            (b"hello world", &["world", "hello"], false),
            (b"aa", &["a", "a"], true),
            (b"a", &["a", "a"], false),
            (b"", &[], true),
            (b"", &["x"], false),
        ] {
            let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.as_bytes().to_vec()).collect();
            assert_eq!(contains_all(bytes, &pieces), want, "{pieces:?}");
        }
    }

    #[test]
    fn messages_of_grpc() {
        assert_eq!(question(""), [0, 0, 0, 0, 0]);
        assert_eq!(question("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(question(&"x".repeat(300))[5..8], [0x0a, 0xac, 0x02]);
        for (bytes, want) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], Some(1)),
            (&[0, 0, 0, 0, 2, 8, 2], Some(2)),
            (&[0, 0, 0, 0, 0], Some(0)),
            (&[1, 0, 0, 0, 2, 8, 1], None),
            (&[0, 0, 0, 0, 9, 8, 1], None),
            (&[0, 0], None),
        ] {
            assert_eq!(serving_status(bytes), want, "{bytes:?}");
        }
    }
}
