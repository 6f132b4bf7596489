//! Heads: the bytes of a whole one to a request or a response, with what they say about the body and the connection
//! (RFC 9112 §3, §4, §6, §9.3).
//!
//! Of a request, whatever two programs could frame in two ways is refused here. What remains to be judged of a request's
//! target and host is [`crate::strict`]'s matter.

use super::lines::{Lines, RequestLine};
use super::{names, pool};
use crate::hop::has_token;
use crate::marks::HeaderMarks;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};

/// Trailers at most.
const MAX_TRAILERS: usize = 100;
/// Longest target (`http::Uri` takes no longer one).
const MAX_TARGET: usize = u16::MAX as usize - 1;

/// Bounds of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes, empty lines before it included.
    pub bytes: usize,
    /// Header lines.
    pub headers: usize,
}

impl HeadLimits {
    /// For responses: endpoints are trusted more than clients, but not without bound.
    pub const RESPONSE: Self = Self { bytes: 400 * 1024, headers: 256 };
}

/// Why a head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadFault {
    /// Not HTTP/1, or ambiguous; the word says what.
    #[error("{0}")]
    Malformed(&'static str),
    /// Too many bytes or headers.
    #[error("head_too_large")]
    TooLarge,
    /// The target is too long.
    #[error("target_too_long")]
    TargetTooLong,
}

impl HeadFault {
    /// How a client hears of it.
    pub fn status(self) -> StatusCode {
        match self {
            HeadFault::Malformed(_) => StatusCode::BAD_REQUEST,
            HeadFault::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            HeadFault::TargetTooLong => StatusCode::URI_TOO_LONG,
        }
    }
}

/// How the end of a body is known (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Until the connection ends; of responses only.
    UntilClose,
}

/// A request's head.
#[derive(Debug)]
pub struct RequestHead {
    /// Method, target, version, headers.
    pub request: Request<()>,
    /// How its body ends.
    pub framing: Framing,
    /// The client keeps the connection.
    pub keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// The client wants the connection to become something else.
    pub asks_upgrade: bool,
    /// Of its headers.
    pub marks: HeaderMarks,
}

/// A response's head.
#[derive(Debug)]
pub struct ResponseHead {
    /// Status, version, headers.
    pub response: Response<()>,
    /// How its body ends.
    pub framing: Framing,
    /// The endpoint keeps the connection.
    pub keep_alive: bool,
    /// Of its headers.
    pub marks: HeaderMarks,
}

/// What framing headers say, gathered line by line.
#[derive(Debug, Default)]
struct Seen {
    length: Option<u64>,
    /// `transfer-encoding` lines.
    codings: u32,
    /// The one `transfer-encoding` is `chunked`.
    chunked: bool,
    close: bool,
    keep: bool,
    expects: bool,
    upgrade: bool,
    marks: HeaderMarks,
}

impl Seen {
    /// Takes a header in; true when it is to stand among the headers.
    fn header(&mut self, name: &http::HeaderName, mark: HeaderMarks, value: &HeaderValue) -> Result<bool, HeadFault> {
        // Nearly all headers say nothing about framing.
        if mark.is_empty() {
            return Ok(true);
        }
        self.marks = self.marks | mark;
        if *name == CONTENT_LENGTH {
            let length = decimal(value.as_bytes()).ok_or(HeadFault::Malformed("invalid_content_length"))?;
            return match self.length.replace(length) {
                Some(before) if before != length => Err(HeadFault::Malformed("content_lengths_differ")),
                // The same once more says nothing.
                before => Ok(before.is_none()),
            };
        }
        if *name == TRANSFER_ENCODING {
            self.codings += 1;
            self.chunked = self.codings == 1 && value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
        } else if *name == CONNECTION {
            let keeps = value.as_bytes().eq_ignore_ascii_case(b"keep-alive");
            self.close |= !keeps && has_token(value, "close");
            self.keep |= keeps || has_token(value, "keep-alive");
        } else if *name == EXPECT {
            self.expects |= value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        } else if *name == UPGRADE {
            self.upgrade = true;
        }
        Ok(true)
    }

    fn keep_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::HTTP_11 || self.keep)
    }
}

/// A request's head from all of its bytes, the empty line included.
///
/// # Errors
/// When it must be refused.
pub fn request(bytes: &Bytes, limits: HeadLimits) -> Result<RequestHead, HeadFault> {
    let mut lines = Lines::of(bytes);
    let RequestLine { method, target, version } = lines.request()?;
    if target.len() > MAX_TARGET {
        return Err(HeadFault::TargetTooLong);
    }
    if target.as_bytes().contains(&b'#') {
        // A target has no fragment (RFC 9112 §3.2); who drops one and who keeps it read two paths.
        return Err(HeadFault::Malformed("fragment_in_target"));
    }
    let method = Method::from_bytes(method).map_err(|_| HeadFault::Malformed("invalid_method"))?;
    let target = bytes.slice_ref(target.as_bytes());
    let uri = Uri::from_maybe_shared(target).map_err(|_| HeadFault::Malformed("invalid_target"))?;
    let (headers, seen) = headers(bytes, &mut lines, limits)?;
    let framing = match seen {
        Seen { codings: 1.., .. } if version == Version::HTTP_10 => {
            return Err(HeadFault::Malformed("transfer_encoding_in_http_1_0"));
        }
        Seen { codings: 1.., length: Some(_), .. } => {
            return Err(HeadFault::Malformed("content_length_and_transfer_encoding"));
        }
        Seen { chunked: true, .. } => Framing::Chunked,
        // Refused by `strict`; where its body ends, nobody knows.
        Seen { codings: 1.., .. } => Framing::None,
        Seen { length: Some(0) | None, .. } => Framing::None,
        Seen { length: Some(length), .. } => Framing::Length(length),
    };
    let keep_alive = seen.keep_alive(version) && (seen.codings == 0 || seen.chunked);
    let asks_upgrade = method == Method::CONNECT || (seen.upgrade && version == Version::HTTP_11);
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = version;
    *request.headers_mut() = headers;
    let expects_continue = seen.expects && version == Version::HTTP_11 && framing != Framing::None;
    Ok(RequestHead { request, framing, keep_alive, expects_continue, asks_upgrade, marks: seen.marks })
}

/// A response's head from all of its bytes; `asked` is the method of its request.
///
/// # Errors
/// When it cannot be passed on in one meaning.
pub fn response(bytes: &Bytes, asked: &Method, limits: HeadLimits) -> Result<ResponseHead, HeadFault> {
    let mut lines = Lines::of(bytes);
    let (version, code) = lines.status()?;
    let status = StatusCode::from_u16(code).map_err(|_| HeadFault::Malformed("invalid_status"))?;
    let (headers, seen) = headers(bytes, &mut lines, limits)?;
    let bodiless = *asked == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || (*asked == Method::CONNECT && status.is_success());
    let framing = match seen {
        _ if bodiless => Framing::None,
        Seen { codings: 1.., .. } if version == Version::HTTP_10 => {
            return Err(HeadFault::Malformed("transfer_encoding_in_http_1_0"));
        }
        Seen { codings: 1.., length: Some(_), .. } => {
            return Err(HeadFault::Malformed("content_length_and_transfer_encoding"));
        }
        Seen { chunked: true, .. } => Framing::Chunked,
        Seen { codings: 1.., .. } => return Err(HeadFault::Malformed("unsupported_transfer_encoding")),
        Seen { length: Some(0), .. } => Framing::None,
        Seen { length: Some(length), .. } => Framing::Length(length),
        Seen { length: None, .. } => Framing::UntilClose,
    };
    // What follows a switch is of another protocol, whether or not anybody has agreed to it.
    let switched = status == StatusCode::SWITCHING_PROTOCOLS || (*asked == Method::CONNECT && status.is_success());
    let keep_alive = seen.keep_alive(version) && framing != Framing::UntilClose && !switched;
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = version;
    *response.headers_mut() = headers;
    Ok(ResponseHead { response, framing, keep_alive, marks: seen.marks })
}

fn headers(bytes: &Bytes, lines: &mut Lines<'_>, limits: HeadLimits) -> Result<(HeaderMap, Seen), HeadFault> {
    let mut map = pool::map();
    let mut seen = Seen::default();
    let mut count = 0;
    while let Some((name, value)) = lines.field()? {
        count += 1;
        if count > limits.headers {
            return Err(HeadFault::TooLarge);
        }
        let (name, mark) = names::name(name).map_err(|_| HeadFault::Malformed("invalid_header_name"))?;
        let value = if value.is_empty() {
            HeaderValue::from_static("")
        } else {
            let value = HeaderValue::from_maybe_shared(bytes.slice_ref(value));
            value.map_err(|_| HeadFault::Malformed("invalid_header_value"))?
        };
        if seen.header(&name, mark, &value)? {
            map.try_append(name, value).map_err(|_| HeadFault::TooLarge)?;
        }
    }
    Ok((map, seen))
}

/// Trailers from all of their bytes, the empty line included. Those that would change framing, routing or identity after the
/// fact are dropped (RFC 9110 §6.5.1).
///
/// # Errors
/// When they are malformed or too many.
pub fn trailers(bytes: &[u8]) -> Result<HeaderMap, HeadFault> {
    let mut lines = Lines::of(bytes);
    let mut map = HeaderMap::new();
    let mut count = 0;
    while let Some((name, value)) = lines.field()? {
        count += 1;
        if count > MAX_TRAILERS {
            return Err(HeadFault::TooLarge);
        }
        let (name, _) = names::name(name).map_err(|_| HeadFault::Malformed("invalid_trailer"))?;
        let value = HeaderValue::from_bytes(value).map_err(|_| HeadFault::Malformed("invalid_trailer"))?;
        if may_trail(name.as_str()) {
            map.try_append(name, value).map_err(|_| HeadFault::TooLarge)?;
        }
    }
    Ok(map)
}

/// A header may come after the body.
pub(super) fn may_trail(name: &str) -> bool {
    const NEVER: [&str; 19] = [
        "authorization",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "max-forwards",
        "proxy-authorization",
        "proxy-connection",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let of_the_mesh = name == "forwarded" || name.starts_with("x-forwarded-") || name.starts_with("x-envoy-");
    !NEVER.contains(&name) && !of_the_mesh
}

fn decimal(text: &[u8]) -> Option<u64> {
    // `+5`, `5, 5` and an empty value mean different things to different programs.
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 60 * 1024, headers: 100 };

    fn ask(text: &str) -> Result<RequestHead, HeadFault> {
        request(&Bytes::from(text.replace('\n', "\r\n")), LIMITS)
    }

    #[test]
    fn requests() {
        for (text, framing, keep) in [
            ("GET / HTTP/1.1\nHost: a\n\n", Framing::None, true),
            ("GET / HTTP/1.1\nHost: a\nConnection: x, Close\n\n", Framing::None, false),
            ("GET / HTTP/1.0\n\n", Framing::None, false),
            ("GET / HTTP/1.0\nConnection: keep-alive\n\n", Framing::None, true),
            ("GET / HTTP/1.1\nConnection: close\nConnection: keep-alive\n\n", Framing::None, false),
            ("POST / HTTP/1.1\nContent-Length: 5\n\n", Framing::Length(5), true),
            ("POST / HTTP/1.1\nContent-Length: 5\ncontent-length: 5\n\n", Framing::Length(5), true),
            ("POST / HTTP/1.1\nContent-Length: 0\n\n", Framing::None, true),
            ("POST / HTTP/1.1\nTransfer-Encoding: Chunked\n\n", Framing::Chunked, true),
            // Left to `strict`, and the end of the connection.
            ("POST / HTTP/1.1\nTransfer-Encoding: gzip, chunked\n\n", Framing::None, false),
            ("POST / HTTP/1.1\nTransfer-Encoding: chunked\nTransfer-Encoding: chunked\n\n", Framing::None, false),
            ("CONNECT a:1 HTTP/1.1\nHost: a:1\n\n", Framing::None, true),
            ("OPTIONS * HTTP/1.1\nHost: a\n\n", Framing::None, true),
        ] {
            let head = ask(text).unwrap_or_else(|fault| panic!("{text}: {fault}"));
            assert_eq!((head.framing, head.keep_alive), (framing, keep), "{text}");
        }
        let head = ask(
            "POST /a?b HTTP/1.1\nHost: a\nX-One: 1\nx-one:  2 \nX-Empty:\nExpect: 100-Continue\nContent-Length: 1\nContent-Length: 1\n\n",
        );
        let head = head.unwrap();
        assert!(head.expects_continue);
        assert_eq!(head.request.uri().path_and_query().unwrap().as_str(), "/a?b");
        let ones: Vec<_> = head.request.headers().get_all("x-one").iter().collect();
        assert_eq!(ones, ["1", "2"]);
        assert_eq!(head.request.headers()["x-empty"], "");
        assert_eq!(head.request.headers().get_all("content-length").iter().count(), 1);
    }

    #[test]
    fn refused() {
        for text in [
            "GET /\n\n",
            "GET  / HTTP/1.1\n\n",
            "GET / HTTP/1.1 x\n\n",
            "GET / HTTP/2.0\n\n",
            "GET / http/1.1\n\n",
            "GE(T / HTTP/1.1\n\n",
            "GET /#/admin HTTP/1.1\n\n",
            "GET / HTTP/1.1\nHost : a\n\n",
            "GET / HTTP/1.1\nX: a\n b\n\n",
            "GET / HTTP/1.1\nX: a\0b\n\n",
            "GET / HTTP/1.1\n: b\n\n",
            "GET / HTTP/1.1\nx\n\n",
            "POST / HTTP/1.1\nContent-Length: 5\nTransfer-Encoding: chunked\n\n",
            "POST / HTTP/1.1\nTRANSFER-ENCODING: chunked\ncontent-length: 5\n\n",
            "POST / HTTP/1.1\nContent-Length: +5\n\n",
            "POST / HTTP/1.1\nContent-Length: 5, 5\n\n",
            "POST / HTTP/1.1\nContent-Length:\n\n",
            "POST / HTTP/1.1\nContent-Length: 99999999999999999999999\n\n",
            "POST / HTTP/1.1\nContent-Length: 5\nContent-Length: 6\n\n",
            "POST / HTTP/1.0\nTransfer-Encoding: chunked\n\n",
        ] {
            assert!(matches!(ask(text), Err(HeadFault::Malformed(_))), "{text}");
        }
        let many: String = (0..101).map(|n| format!("x-{n}: 1\n")).collect();
        assert_eq!(ask(&format!("GET / HTTP/1.1\n{many}\n")).unwrap_err(), HeadFault::TooLarge);
        let raised = HeadLimits { headers: 200, ..LIMITS };
        let text = format!("GET / HTTP/1.1\n{many}\n").replace('\n', "\r\n");
        assert_eq!(request(&Bytes::from(text), raised).unwrap().request.headers().len(), 101);
        let long = format!("GET /{} HTTP/1.1\n\n", "a".repeat(70_000));
        assert_eq!(ask(&long).unwrap_err(), HeadFault::TargetTooLong);
    }

    #[test]
    fn class_smuggling_long_lines_in_pieces_are_read_like_whole_ones() {
        let (many, spaces) = ("x".repeat(200), " ".repeat(200));
        for (text, framing) in [
            (format!("GET /{many}#{many} HTTP/1.1\n\n"), None),
            (format!("POST / HTTP/1.1\nContent-Length:{spaces}5\n\n"), Some(Framing::Length(5))),
            (format!("POST / HTTP/1.1\nContent-Length: {}5\n\n", "0".repeat(200)), Some(Framing::Length(5))),
            (format!("POST / HTTP/1.1\nContent-Length: {}5\n\n", "1".repeat(200)), None),
            (format!("POST / HTTP/1.1\nTransfer-Encoding:{spaces}chunked\n\n"), Some(Framing::Chunked)),
            (format!("GET / HTTP/1.1\nCookie: {many}#{many}\n\n"), Some(Framing::None)),
            (format!("GET / HTTP/1.1\nContent-Length-{many}: x\n\n"), Some(Framing::None)),
        ] {
            let bytes = text.replace('\n', "\r\n");
            let (mut scan, mut end) = (crate::h1::scan::Scan::default(), None);
            for n in 1..=bytes.len() {
                assert_eq!(end, None, "{text}");
                end = scan.find(&bytes.as_bytes()[..n]).unwrap();
            }
            assert_eq!(end, Some((0, bytes.len())));
            assert_eq!(ask(&text).ok().map(|head| head.framing), framing, "{text}");
        }
    }

    #[test]
    fn responses() {
        for (text, asked, framing, keep) in [
            ("HTTP/1.1 200 OK\nContent-Length: 5\n\n", Method::GET, Framing::Length(5), true),
            ("HTTP/1.1 200 OK\nContent-Length: 5\n\n", Method::HEAD, Framing::None, true),
            ("HTTP/1.1 304 Not Modified\nContent-Length: 5\n\n", Method::GET, Framing::None, true),
            ("HTTP/1.1 204 No Content\n\n", Method::GET, Framing::None, true),
            ("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", Method::GET, Framing::Chunked, true),
            ("HTTP/1.1 200\n\n", Method::GET, Framing::UntilClose, false),
            ("HTTP/1.0 200 OK\nContent-Length: 5\n\n", Method::GET, Framing::Length(5), false),
            ("HTTP/1.0 200 OK\nConnection: keep-alive\nContent-Length: 5\n\n", Method::GET, Framing::Length(5), true),
            ("HTTP/1.1 200 OK\nConnection: close\nContent-Length: 0\n\n", Method::GET, Framing::None, false),
            ("HTTP/1.1 200 OK\n\n", Method::CONNECT, Framing::None, false),
            ("HTTP/1.1 101 Switching Protocols\n\n", Method::GET, Framing::None, false),
        ] {
            let bytes = Bytes::from(text.replace('\n', "\r\n"));
            let head = response(&bytes, &asked, HeadLimits::RESPONSE).unwrap_or_else(|fault| panic!("{text}: {fault}"));
            assert_eq!((head.framing, head.keep_alive), (framing, keep), "{text}");
        }
        for text in [
            "HTTP/1.1 200 OK\nContent-Length: 5\nContent-Length: 6\n\n",
            "HTTP/1.1 200 OK\nContent-Length: 5\nTransfer-Encoding: chunked\n\n",
            "HTTP/1.0 200 OK\nTransfer-Encoding: chunked\n\n",
            "HTTP/1.1 200 OK\nTransfer-Encoding: gzip\n\n",
            "HTTP/1.1 20 OK\n\n",
            "ICY 200 OK\n\n",
        ] {
            let bytes = Bytes::from(text.replace('\n', "\r\n"));
            assert!(response(&bytes, &Method::GET, HeadLimits::RESPONSE).is_err(), "{text}");
        }
    }

    #[test]
    fn trailers_that_may_not_trail_are_dropped() {
        let map = trailers(b"x-sum: 1\r\nHost: evil\r\nContent-Length: 5\r\n\r\n").unwrap();
        assert_eq!(map.len(), 1);
        assert_eq!(map["x-sum"], "1");
        assert!(trailers(b"no colon\r\n\r\n").is_err());
    }
}
