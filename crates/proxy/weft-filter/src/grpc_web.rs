//! The gRPC-Web bridge: a browser's gRPC-Web request becomes gRPC for the service, and its answer gRPC-Web again. Trailers
//! become a last frame of the body; the text form is base64. (gRPC's `PROTOCOL-WEB.md`.)

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderName, HeaderValue};
use weft_codec::BodyError;

const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const WEB: &str = "application/grpc-web";
const TEXT: &str = "application/grpc-web-text";
/// First byte of the frame that holds trailers.
const TRAILERS: u8 = 0x80;

/// How the two bodies of a gRPC-Web call are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Web {
    /// The request is base64.
    pub text_request: bool,
    /// The answer is to be base64.
    pub text_answer: bool,
}

fn starts(value: Option<&HeaderValue>, with: &str) -> bool {
    value.is_some_and(|v| v.as_bytes().starts_with(with.as_bytes()))
}

/// Turns a gRPC-Web request's head into gRPC; `None` when it is not gRPC-Web.
pub fn request(headers: &mut HeaderMap) -> Option<Web> {
    let content_type = headers.get(CONTENT_TYPE)?;
    let text_request = starts(Some(content_type), TEXT);
    let rest = content_type.as_bytes().strip_prefix(if text_request { TEXT } else { WEB }.as_bytes())?;
    if !matches!(rest, b"" | b"+proto") {
        return None;
    }
    let web = Web { text_request, text_answer: starts(headers.get(ACCEPT), TEXT) };
    let grpc = if rest.is_empty() { "application/grpc" } else { "application/grpc+proto" };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(grpc));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(GRPC_ACCEPT_ENCODING, HeaderValue::from_static("identity,deflate,gzip"));
    if text_request {
        headers.remove(CONTENT_LENGTH);
    }
    Some(web)
}

/// Turns an answer's head into gRPC-Web; false when the answer is not gRPC and passes as it is.
pub fn answer(web: Web, headers: &mut HeaderMap) -> bool {
    if !starts(headers.get(CONTENT_TYPE), "application/grpc") {
        return false;
    }
    let name = if web.text_answer { "application/grpc-web-text+proto" } else { "application/grpc-web+proto" };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(name));
    headers.remove(CONTENT_LENGTH);
    true
}

/// A piece of the answer's body.
pub fn encode(web: Web, data: Bytes) -> Bytes {
    if web.text_answer { STANDARD.encode(&data).into() } else { data }
}

/// Trailers as the last piece of the body.
pub fn encode_trailers(web: Web, trailers: &HeaderMap) -> Bytes {
    let mut lines = Vec::new();
    for (name, value) in trailers {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.push(b':');
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    let length = u32::try_from(lines.len()).unwrap_or(u32::MAX).to_be_bytes();
    encode(web, [&[TRAILERS], &length[..], &lines[..]].concat().into())
}

/// Decodes the text form of a request, piece by piece.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Up to three characters of a group of four that is not complete.
    left: BytesMut,
}

impl Decoder {
    /// What `piece` completes.
    ///
    /// # Errors
    /// When it is not base64.
    pub fn decode(&mut self, piece: &[u8]) -> Result<Bytes, BodyError> {
        self.left.extend_from_slice(piece);
        let whole = self.left.len() / 4 * 4;
        let groups = self.left.split_to(whole);
        let mut out = Vec::with_capacity(whole / 4 * 3);
        let mut rest = &groups[..];
        while !rest.is_empty() {
            // Each message may end in padding of its own.
            let padded = rest.iter().position(|b| *b == b'=').map_or(rest.len(), |at| (at / 4 + 1) * 4);
            let (part, after) = rest.split_at(padded.min(rest.len()));
            let decoded = STANDARD.decode(part);
            out.extend(decoded.map_err(|_| BodyError::Aborted("the body is not base64"))?);
            rest = after;
        }
        Ok(out.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn heads() {
        for (kind, want) in [
            ("application/grpc-web", Some((false, "application/grpc"))),
            ("application/grpc-web+proto", Some((false, "application/grpc+proto"))),
            ("application/grpc-web-text", Some((true, "application/grpc"))),
            ("application/grpc-webby", None),
            ("application/grpc", None),
            ("text/html", None),
        ] {
            let mut head = headers(&[("content-type", kind), ("content-length", "8")]);
            let web = request(&mut head);
            assert_eq!(web.map(|w| w.text_request), want.map(|w| w.0), "{kind}");
            if let Some((text, grpc)) = want {
                assert_eq!(head["content-type"], grpc);
                assert_eq!(head["te"], "trailers");
                assert_eq!(head.contains_key("content-length"), !text);
            }
        }
        let web = Web { text_request: false, text_answer: true };
        let mut head = headers(&[("content-type", "application/grpc")]);
        assert!(answer(web, &mut head));
        assert_eq!(head["content-type"], "application/grpc-web-text+proto");
        assert!(!answer(web, &mut headers(&[("content-type", "text/html")])));
    }

    #[test]
    fn bodies() {
        let trailers = headers(&[("grpc-status", "0")]);
        let binary = Web { text_request: false, text_answer: false };
        assert_eq!(encode_trailers(binary, &trailers), &b"\x80\0\0\0\x0fgrpc-status:0\r\n"[..]);
        let mut decoder = Decoder::default();
        let mut all = Vec::new();
        // Two messages, each padded, in pieces that fit no group.
        for piece in [&b"aGVsb"[..], b"G8=d29", b"ybGQ="] {
            all.extend(decoder.decode(piece).unwrap());
        }
        assert_eq!(all, b"helloworld");
        assert!(Decoder::default().decode(b"!!!!").is_err());
    }
}
