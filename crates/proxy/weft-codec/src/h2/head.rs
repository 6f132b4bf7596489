//! Heads on their way into HTTP/2: without headers of one connection, and with the length of the body where it is known. And on
//! their way out of it: with the cookies in one piece.

use crate::h1::date;
use crate::hop;
use crate::marks::HeaderMarks;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, COOKIE, DATE};
use http::{HeaderMap, HeaderValue, Method};
use std::cell::RefCell;

/// Their values are others in each request.
const OF_ONE_REQUEST: HeaderMarks = HeaderMarks::REQUEST_ID.and(HeaderMarks::TRACE);

thread_local! {
    static NOW: RefCell<Option<HeaderValue>> = const { RefCell::new(None) };
}

/// Makes the headers of a request fit. `length`: that of its body, when it is known.
pub fn request(headers: &mut HeaderMap, method: &Method, length: Option<u64>) {
    let mut marks = HeaderMarks::default();
    for (name, value) in headers.iter_mut() {
        let mark = HeaderMarks::of_name(name.as_str());
        marks = marks | mark;
        if mark.has(OF_ONE_REQUEST) {
            // The compression's table would fill with values that never come again, and each further one be compared with all of
            // them (RFC 7541 §7.1.3 has a form for what is not worth a place).
            value.set_sensitive(true);
        }
    }
    // Headers of one connection are malformed in HTTP/2 (RFC 9113 §8.2.2).
    hop::strip(headers, marks);
    // RFC 9110 §8.6: no length means no body, unless the method expects one.
    let expects = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
    if let Some(length) = length.filter(|length| *length > 0 || expects) {
        say_length(headers, length);
    }
}

/// Makes the headers of a response fit. `length`: that of its body, when it is known and there is one.
pub fn response(headers: &mut HeaderMap, length: Option<u64>) {
    let marks = HeaderMarks::of(headers);
    hop::strip(headers, marks);
    if let Some(length) = length {
        say_length(headers, length);
    }
    if !headers.contains_key(DATE) {
        headers.insert(DATE, now());
    }
}

/// Makes one line of the cookies, which clients cut into pieces for the sake of compression: whoever looks at them here, and an
/// endpoint that speaks HTTP/1, knows no pieces (RFC 9113 §8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut pieces = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (pieces.next(), pieces.next()) else { return };
    let mut all = first.as_bytes().to_vec();
    for piece in [second].into_iter().chain(pieces) {
        if !all.is_empty() && !piece.is_empty() {
            all.extend_from_slice(b"; ");
        }
        all.extend_from_slice(piece.as_bytes());
    }
    // What pieces may hold, all of them may.
    if let Ok(all) = HeaderValue::from_maybe_shared(Bytes::from(all)) {
        headers.insert(COOKIE, all);
    }
}

fn say_length(headers: &mut HeaderMap, length: u64) {
    if !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// The date now, made once a second.
fn now() -> HeaderValue {
    let mut text = Vec::with_capacity(32);
    date::append(&mut text);
    NOW.with_borrow_mut(|known| match known {
        Some(value) if value.as_bytes() == text => value.clone(),
        _ => {
            let value = HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""));
            known.insert(value).clone()
        }
    })
}

/// The length that a message says its body has; `None` when it says none, or contradicts itself.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let first = values.next()?;
    if values.any(|value| value != first) || !first.as_bytes().iter().all(u8::is_ascii_digit) {
        return None;
    }
    first.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let mut map = HeaderMap::new();
        lines.iter().map(line).for_each(|(name, value)| {
            map.append(name, value);
        });
        map
    }

    #[test]
    fn headers_of_one_connection_go() {
        let mut headers = map(&[
            ("connection", "close, x-mine"),
            ("x-mine", "1"),
            ("keep-alive", "1"),
            ("upgrade", "websocket"),
            ("te", "trailers"),
            ("x-other", "1"),
        ]);
        request(&mut headers, &Method::GET, None);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["te", "x-other"]);
    }

    #[test]
    fn cookies_are_one_line() {
        for (pieces, want) in [
            (&[][..], None),
            (&["a=1; b=2"], Some("a=1; b=2")),
            (&["a=1", "b=2", "c=3"], Some("a=1; b=2; c=3")),
            (&["", "a=1", "", "b=2"], Some("a=1; b=2")),
        ] {
            let lines: Vec<_> = pieces.iter().map(|piece| ("cookie", *piece)).chain([("x-other", "1")]).collect();
            let mut headers = map(&lines);
            join_cookies(&mut headers);
            let got: Vec<_> = headers.get_all(COOKIE).iter().collect();
            assert!(got.iter().copied().eq(want), "{pieces:?}: {got:?}");
            assert_eq!(headers["x-other"], "1");
        }
    }

    #[test]
    fn what_is_of_one_request_takes_no_place_in_the_table() {
        let mut headers = map(&[("x-request-id", "1"), ("traceparent", "2"), ("user-agent", "3")]);
        request(&mut headers, &Method::GET, None);
        let listed = |name: &str| !headers[name].is_sensitive();
        assert!(!listed("x-request-id") && !listed("traceparent") && listed("user-agent"));
    }

    #[test]
    fn lengths_are_said_where_they_mean_something() {
        for (method, length, want) in [
            (Method::GET, Some(0), None),
            (Method::GET, Some(3), Some("3")),
            (Method::POST, Some(0), Some("0")),
            (Method::POST, None, None),
        ] {
            let mut headers = HeaderMap::new();
            request(&mut headers, &method, length);
            assert_eq!(headers.get(CONTENT_LENGTH).map(|value| value.to_str().unwrap()), want, "{method} {length:?}");
        }
        let mut said = map(&[("content-length", "7")]);
        response(&mut said, Some(9));
        assert_eq!(said[CONTENT_LENGTH], "7", "what the endpoint said stays");
    }

    #[test]
    fn responses_have_a_date() {
        let mut headers = map(&[("date", "then")]);
        response(&mut headers, None);
        assert_eq!(headers[DATE], "then");
        let mut headers = HeaderMap::new();
        response(&mut headers, None);
        assert_eq!(headers[DATE].as_bytes().len(), "Sun, 06 Nov 1994 08:49:37 GMT".len());
    }

    #[test]
    fn lengths_that_are_said() {
        for (lines, want) in [
            (&[][..], None),
            (&[("content-length", "12")][..], Some(12)),
            (&[("content-length", "12"), ("content-length", "12")][..], Some(12)),
            (&[("content-length", "12"), ("content-length", "13")][..], None),
            (&[("content-length", "+12")][..], None),
            (&[("content-length", "")][..], None),
            (&[("content-length", "99999999999999999999999")][..], None),
        ] {
            assert_eq!(length(&map(lines)), want, "{lines:?}");
        }
    }
}
