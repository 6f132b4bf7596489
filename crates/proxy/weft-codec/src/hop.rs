//! Headers that belong to one hop (RFC 9110 §7.6.1) and must not be passed on.

use crate::marks::HeaderMarks;
use http::header::{CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const OF_ONE_HOP: HeaderMarks = HeaderMarks::hop();
/// Options that one `connection` header may name; a request with more is not honest.
const MAX_OPTIONS: usize = 16;

/// Removes hop-by-hop headers, and those that `connection` names. `te: trailers` stays, since both sides pass trailers.
/// The upgrade headers go too: an upgrade is put back by whoever carries it out. `marks` are those of `headers`.
pub fn strip(headers: &mut HeaderMap, marks: HeaderMarks) {
    if !marks.has(OF_ONE_HOP) {
        return;
    }
    if marks.has(HeaderMarks::CONNECTION) {
        strip_named(headers);
        headers.remove(CONNECTION);
    }
    if marks.has(HeaderMarks::KEEP_ALIVE) {
        headers.remove(KEEP_ALIVE);
    }
    if marks.has(HeaderMarks::PROXY_CONNECTION) {
        headers.remove(PROXY_CONNECTION);
    }
    if marks.has(HeaderMarks::TRANSFER_ENCODING) {
        headers.remove(TRANSFER_ENCODING);
    }
    if marks.has(HeaderMarks::UPGRADE) {
        headers.remove(UPGRADE);
        headers.remove(HTTP2_SETTINGS);
    }
    if !marks.has(HeaderMarks::TE) {
        return;
    }
    if headers.contains_key(TE) {
        let trailers = headers.get_all(TE).iter().any(|v| has_token(v, "trailers"));
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// Removes what `connection` names. Headers that carry identity or routing are not for a client to remove.
fn strip_named(headers: &mut HeaderMap) {
    let mut named: smallvec::SmallVec<[HeaderName; 4]> = smallvec::SmallVec::new();
    for value in headers.get_all(CONNECTION) {
        if [b"keep-alive".as_slice(), b"close"].iter().any(|usual| value.as_bytes().eq_ignore_ascii_case(usual)) {
            continue;
        }
        // An option that is no name hides none beside it.
        for option in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).take(MAX_OPTIONS) {
            let usual = ["keep-alive", "close", ""].iter().any(|usual| option.eq_ignore_ascii_case(usual.as_bytes()));
            if usual {
                continue;
            }
            if let Ok(name) = HeaderName::from_bytes(option)
                && !is_protected(&name)
                && name != TE
                && name != TRAILER
            {
                named.push(name);
            }
        }
    }
    for name in named {
        headers.remove(name);
    }
}

fn is_protected(name: &HeaderName) -> bool {
    let text = name.as_str();
    text == "host"
        || text == "authorization"
        || text == "cookie"
        || text == "content-length"
        || text.starts_with("x-forwarded-")
        || text.starts_with("x-envoy-")
        || text == "x-request-id"
}

/// True when the comma-separated `value` holds `token`, ignoring case and parameters.
pub fn has_token(value: &HeaderValue, token: &str) -> bool {
    let is_token = |part: &[u8]| {
        let name = part.split(|byte| *byte == b';').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(token.as_bytes())
    };
    value.as_bytes().split(|byte| *byte == b',').any(is_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_what_is_of_one_hop() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Foo, x-forwarded-for, authorization"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("te", "gzip, trailers;q=1"),
            ("x-foo", "1"),
            ("x-bar", "2"),
            ("x-forwarded-for", "1.1.1.1"),
            ("authorization", "secret"),
            ("trailer", "x-sum"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let marks = HeaderMarks::of(&headers);
        strip(&mut headers, marks);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "te", "trailer", "x-bar", "x-forwarded-for"]);
        assert_eq!(headers["te"], "trailers");
    }

    #[test]
    fn class_header_whitespace_an_option_that_is_no_name_hides_none() {
        let mut headers: HeaderMap =
            [(HeaderName::from_static("x-foo"), HeaderValue::from_static("1"))].into_iter().collect();
        headers.insert(CONNECTION, HeaderValue::from_bytes(b"\xff, x-foo").unwrap());
        let marks = HeaderMarks::of(&headers);
        strip(&mut headers, marks);
        assert!(headers.is_empty(), "{headers:?}");
        assert!(has_token(&HeaderValue::from_bytes(b"\xff, Trailers;q=1").unwrap(), "trailers"));
    }
}
