//! The other way: heads and the framing of bodies as bytes (RFC 9112 §3–§7). Names and values have been checked when they
//! were made, and cannot hold a line end.

use super::date;
use super::head::may_trail;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use http::request;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};

/// How a body is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// There is none; what comes is dropped.
    Nothing,
    /// So many bytes are left of it.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Until the connection closes.
    UntilClose,
}

/// What a response's framing depends on besides itself.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The request was HEAD.
    pub is_head: bool,
    /// The request was CONNECT.
    pub is_connect: bool,
    /// The client speaks HTTP/1.0.
    pub is_old: bool,
    /// The connection stays open afterwards, as far as the request and this proxy go.
    pub keep_alive: bool,
}

/// A response's body and connection, once its head is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// How its body is sent.
    pub sending: Sending,
    /// The connection stays open afterwards.
    pub keep_alive: bool,
    /// What follows is another protocol.
    pub is_tunnel: bool,
}

/// Writes a response's head. `body`: the body's length, when it is known.
pub fn response(
    out: &mut Vec<u8>,
    status: StatusCode,
    headers: &HeaderMap,
    body: Option<u64>,
    asked: Asked,
) -> Answered {
    let is_tunnel = status == StatusCode::SWITCHING_PROTOCOLS || (asked.is_connect && status.is_success());
    // Other 1xx are no answers.
    let status = if status.is_informational() && !is_tunnel { StatusCode::INTERNAL_SERVER_ERROR } else { status };
    status_line(out, status, asked.is_old);
    let without_length = is_tunnel || status == StatusCode::NO_CONTENT;
    let stated = header_lines(out, headers, without_length);
    let bodiless = is_tunnel || asked.is_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let sending = match (stated.length, body) {
        _ if bodiless => Sending::Nothing,
        (Some(length), _) => Sending::Length(length),
        (None, Some(length)) => {
            content_length(out, length);
            Sending::Length(length)
        }
        (None, None) if asked.is_old => Sending::UntilClose,
        (None, None) => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            Sending::Chunked
        }
    };
    let keep_alive = asked.keep_alive && !stated.close && sending != Sending::UntilClose;
    if !is_tunnel && !keep_alive && !stated.close {
        out.extend_from_slice(b"connection: close\r\n");
    } else if keep_alive && asked.is_old && !stated.connection {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    if !stated.date {
        out.extend_from_slice(b"date: ");
        date::append(out);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    let sending = if sending == Sending::Length(0) { Sending::Nothing } else { sending };
    Answered { sending, keep_alive, is_tunnel }
}

/// Methods whose requests have no body unless they say so.
const BODILESS: [Method; 5] = [Method::GET, Method::HEAD, Method::DELETE, Method::TRACE, Method::CONNECT];

/// A request's head that stays with whoever sends it.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// Method.
    pub method: &'a Method,
    /// Target: a path, or an authority for `CONNECT`.
    pub uri: &'a Uri,
    /// Headers, the host among them.
    pub headers: &'a HeaderMap,
}

impl<'a> From<&'a request::Parts> for Asking<'a> {
    fn from(parts: &'a request::Parts) -> Self {
        Self { method: &parts.method, uri: &parts.uri, headers: &parts.headers }
    }
}

/// Writes a request's head. `body`: the body's length, when it is known.
pub fn request(out: &mut Vec<u8>, head: Asking<'_>, body: Option<u64>) -> Sending {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    match (head.uri.path_and_query(), head.uri.authority()) {
        (None, Some(authority)) => out.extend_from_slice(authority.as_str().as_bytes()),
        (Some(path), _) if *head.method != Method::CONNECT => out.extend_from_slice(path.as_str().as_bytes()),
        (_, Some(authority)) => out.extend_from_slice(authority.as_str().as_bytes()),
        _ => out.push(b'/'),
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let stated = header_lines(out, head.headers, false);
    let sending = match (stated.length, body) {
        (Some(length), _) => Sending::Length(length),
        // As Envoy does (HeaderUtility::requestShouldHaveNoBody): some servers answer 411 without it.
        (None, Some(0)) if !BODILESS.contains(head.method) => {
            content_length(out, 0);
            Sending::Nothing
        }
        (None, Some(0)) => Sending::Nothing,
        (None, Some(length)) => {
            content_length(out, length);
            Sending::Length(length)
        }
        (None, None) => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            Sending::Chunked
        }
    };
    out.extend_from_slice(b"\r\n");
    if sending == Sending::Length(0) { Sending::Nothing } else { sending }
}

fn status_line(out: &mut Vec<u8>, status: StatusCode, is_old: bool) {
    if status == StatusCode::OK && !is_old {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    out.extend_from_slice(if is_old { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("Unknown").as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// What was among the headers.
#[derive(Default)]
struct Stated {
    length: Option<u64>,
    connection: bool,
    close: bool,
    date: bool,
}

/// Writes the headers, but for those that frame the body of this hop.
fn header_lines(out: &mut Vec<u8>, headers: &HeaderMap, without_length: bool) -> Stated {
    let mut stated = Stated::default();
    for (name, value) in headers {
        if *name == CONTENT_LENGTH {
            let length = std::str::from_utf8(value.as_bytes()).ok().and_then(|text| text.parse().ok());
            if without_length || stated.length.is_some() || length.is_none() {
                continue;
            }
            stated.length = length;
        } else if *name == TRANSFER_ENCODING {
            continue;
        } else if *name == CONNECTION {
            stated.connection = true;
            stated.close |= value.as_bytes().eq_ignore_ascii_case(b"close");
        } else if *name == DATE {
            stated.date = true;
        }
        line(out, name, value);
    }
    stated
}

fn line(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
    let (begin, length) = (out.len(), name.len() + value.len() + 4);
    // Room is made once for the whole line, which costs half of what four appends do.
    out.resize(begin + length, b'\n');
    let (of_name, rest) = out[begin..].split_at_mut(name.len());
    of_name.copy_from_slice(name);
    let (of_value, end) = rest[2..].split_at_mut(value.len());
    of_value.copy_from_slice(value);
    end[0] = b'\r';
    rest[0] = b':';
    rest[1] = b' ';
}

fn content_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"content-length: ");
    number(out, length, 10);
    out.extend_from_slice(b"\r\n");
}

/// The line before a chunk.
pub fn chunk_size(out: &mut Vec<u8>, size: usize) {
    number(out, size as u64, 16);
    out.extend_from_slice(b"\r\n");
}

/// The end of a chunked body, with trailers.
pub fn last_chunk(out: &mut Vec<u8>, trailers: Option<&HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        if may_trail(name.as_str()) {
            line(out, name, value);
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn number(out: &mut Vec<u8>, mut n: u64, base: u64) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 20];
    let mut at = text.len();
    loop {
        at -= 1;
        text[at] = DIGITS[(n % base) as usize];
        n /= base;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&text[at..]);
}

/// A short answer to a head that cannot be served: no headers but the necessary.
pub fn refusal(out: &mut Vec<u8>, status: StatusCode) {
    let asked = Asked { is_head: false, is_connect: false, is_old: false, keep_alive: false };
    response(out, status, &HeaderMap::new(), Some(0), asked);
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    const ASKED: Asked = Asked { is_head: false, is_connect: false, is_old: false, keep_alive: true };

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn responses() {
        use Sending::{Chunked, Length, Nothing, UntilClose};
        let old = Asked { is_old: true, ..ASKED };
        let connect = Asked { is_connect: true, ..ASKED };
        for (status, headers, body, asked, text, sending, keep) in [
            (200, &[][..], Some(5), ASKED, "HTTP/1.1 200 OK|content-length: 5|", Length(5), true),
            (200, &[("content-length", "5")], None, ASKED, "HTTP/1.1 200 OK|content-length: 5|", Length(5), true),
            (200, &[], None, ASKED, "HTTP/1.1 200 OK|transfer-encoding: chunked|", Chunked, true),
            (
                200,
                &[("connection", "close")],
                Some(0),
                ASKED,
                "HTTP/1.1 200 OK|connection: close|content-length: 0|",
                Nothing,
                false,
            ),
            (
                200,
                &[],
                Some(0),
                Asked { keep_alive: false, ..ASKED },
                "HTTP/1.1 200 OK|content-length: 0|connection: close|",
                Nothing,
                false,
            ),
            (
                200,
                &[("content-length", "9")],
                Some(0),
                Asked { is_head: true, ..ASKED },
                "HTTP/1.1 200 OK|content-length: 9|",
                Nothing,
                true,
            ),
            (204, &[("content-length", "0")], Some(0), ASKED, "HTTP/1.1 204 No Content|", Nothing, true),
            (
                304,
                &[("content-length", "7")],
                Some(0),
                ASKED,
                "HTTP/1.1 304 Not Modified|content-length: 7|",
                Nothing,
                true,
            ),
            (299, &[], Some(0), ASKED, "HTTP/1.1 299 Unknown|content-length: 0|", Nothing, true),
            (103, &[], Some(0), ASKED, "HTTP/1.1 500 Internal Server Error|content-length: 0|", Nothing, true),
            (200, &[], None, old, "HTTP/1.0 200 OK|connection: close|", UntilClose, false),
            (200, &[], Some(1), old, "HTTP/1.0 200 OK|content-length: 1|connection: keep-alive|", Length(1), true),
            (200, &[("content-length", "0")], Some(0), connect, "HTTP/1.1 200 OK|", Nothing, true),
            (101, &[("upgrade", "x")], Some(0), ASKED, "HTTP/1.1 101 Switching Protocols|upgrade: x|", Nothing, true),
            (
                200,
                &[("transfer-encoding", "gzip")],
                Some(1),
                ASKED,
                "HTTP/1.1 200 OK|content-length: 1|",
                Length(1),
                true,
            ),
        ] {
            let mut out = Vec::new();
            let mut headers = map(headers);
            headers.insert(DATE, HeaderValue::from_static("now"));
            let answered = response(&mut out, StatusCode::from_u16(status).unwrap(), &headers, body, asked);
            let got = String::from_utf8(out).unwrap().replace("date: now\r\n", "").replace("\r\n", "|");
            assert_eq!(got, format!("{text}|"));
            assert_eq!((answered.sending, answered.keep_alive), (sending, keep), "{text}");
            assert_eq!(answered.is_tunnel, status == 101 || asked.is_connect);
        }
        let mut out = Vec::new();
        refusal(&mut out, StatusCode::BAD_REQUEST);
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.starts_with("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\ndate: "),
            "{text}"
        );
    }

    #[test]
    fn requests() {
        for (method, uri, headers, body, text, sending) in [
            ("GET", "/a?b", &[("host", "a")][..], Some(0), "GET /a?b HTTP/1.1|host: a||", Sending::Nothing),
            ("POST", "/", &[], None, "POST / HTTP/1.1|transfer-encoding: chunked||", Sending::Chunked),
            ("POST", "/", &[], Some(3), "POST / HTTP/1.1|content-length: 3||", Sending::Length(3)),
            ("POST", "/", &[("content-length", "0")], Some(0), "POST / HTTP/1.1|content-length: 0||", Sending::Nothing),
            ("CONNECT", "a:1", &[("host", "a:1")], Some(0), "CONNECT a:1 HTTP/1.1|host: a:1||", Sending::Nothing),
            ("OPTIONS", "*", &[], Some(0), "OPTIONS * HTTP/1.1|content-length: 0||", Sending::Nothing),
            ("POST", "/", &[], Some(0), "POST / HTTP/1.1|content-length: 0||", Sending::Nothing),
        ] {
            let (mut parts, ()) = Request::builder().method(method).uri(uri).body(()).unwrap().into_parts();
            parts.headers = map(headers);
            let mut out = Vec::new();
            assert_eq!(request(&mut out, Asking::from(&parts), body), sending);
            assert_eq!(String::from_utf8(out).unwrap().replace("\r\n", "|"), text);
        }
    }

    #[test]
    fn chunks() {
        let mut out = Vec::new();
        chunk_size(&mut out, 0xabc);
        last_chunk(&mut out, Some(&map(&[("x", "1"), ("content-length", "5")])));
        assert_eq!(out, b"abc\r\n0\r\nx: 1\r\n\r\n");
    }
}
