//! Which requests are refused before anything looks at them: what two programs could read in two ways, is refused here
//! (RFC 9112 §3.2, §6; RFC 9113 §8.3). The codec has refused malformed header lines already.

use crate::marks::HeaderMarks;
use crate::reason::Reason;
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{Method, Version};
use std::cell::RefCell;

/// Why a request is refused: the reason, and the details word for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal(pub Reason, pub &'static str);

const fn bad(details: &'static str) -> Refusal {
    Refusal(Reason::BadRequest, details)
}

/// What may be accepted beyond the strict rules.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lenience {
    /// Accept HTTP/1.0 (and its missing `Host`).
    pub http10: bool,
}

/// Checks a request's head, whose headers have `marks`; returns the authority to route by (RFC 9112 §3.2.2: the target's own, else `Host`).
///
/// # Errors
/// The first rule that the request breaks.
pub fn check(parts: &Parts, marks: HeaderMarks, has_body: bool, lenience: Lenience) -> Result<&str, Refusal> {
    if parts.version < Version::HTTP_11 && !lenience.http10 {
        return Err(Refusal(Reason::LowVersion, "low_version"));
    }
    check_target(parts)?;
    let framed = HeaderMarks::TRANSFER_ENCODING | HeaderMarks::CONTENT_LENGTH;
    if parts.version <= Version::HTTP_11 && (has_body || marks.has(framed)) {
        check_framing(parts, has_body)?;
    }
    authority(parts, lenience)
}

/// The request target: its form must fit the method (RFC 9112 §3.2).
fn check_target(parts: &Parts) -> Result<(), Refusal> {
    let uri = &parts.uri;
    if parts.method == Method::CONNECT {
        let extended = parts.extensions.get::<h2::ext::Protocol>().is_some();
        if extended && !uri.path_and_query().is_some_and(|target| target.as_str().starts_with('/')) {
            return Err(bad("invalid_path"));
        }
        let plain_target = uri.authority().is_some() && uri.scheme().is_none() && uri.path_and_query().is_none();
        return if extended || plain_target || parts.version == Version::HTTP_2 {
            Ok(())
        } else {
            Err(bad("invalid_connect_target"))
        };
    }
    let Some(target) = uri.path_and_query() else { return Err(bad("invalid_path")) };
    let text = target.as_str();
    if text == "*" {
        return if parts.method == Method::OPTIONS { Ok(()) } else { Err(bad("invalid_path")) };
    }
    if !text.starts_with('/') {
        // `http://host?query` has an empty path, which is `/` (RFC 9110 §4.2.3); the codec has put the slash in.
        return Err(bad("invalid_path"));
    }
    if !text.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
        return Err(bad("path_has_forbidden_bytes"));
    }
    if let Some(scheme) = uri.scheme_str()
        && !scheme.eq_ignore_ascii_case("http")
        && !scheme.eq_ignore_ascii_case("https")
    {
        return Err(bad("invalid_scheme"));
    }
    Ok(())
}

/// Body framing of HTTP/1. The codec takes `transfer-encoding` over `content-length` and closes afterwards; here only what
/// cannot be passed on in one meaning is left to refuse.
fn check_framing(parts: &Parts, has_body: bool) -> Result<(), Refusal> {
    let headers = &parts.headers;
    if let Some(first) = headers.get(TRANSFER_ENCODING) {
        let one = headers.get_all(TRANSFER_ENCODING).iter().nth(1).is_none();
        if !one || !first.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err(Refusal(Reason::NotSupported, "unsupported_transfer_encoding"));
        }
        if headers.contains_key(CONTENT_LENGTH) {
            return Err(bad("content_length_and_transfer_encoding"));
        }
    }
    if let Some(length) = headers.get(CONTENT_LENGTH) {
        // `+5`, `5, 5` and an empty value mean different things to different programs.
        let digits = length.as_bytes();
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err(bad("invalid_content_length"));
        }
    }
    // Bytes sent before the answer to an upgrade would be read as a body by one side and as the new protocol by the other.
    // `h2c` is never agreed to: such a request is served as it is.
    let upgrades = headers.get_all(UPGRADE).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"h2c"));
    if has_body && (parts.method == Method::CONNECT || upgrades) {
        return Err(bad("body_before_upgrade"));
    }
    Ok(())
}

fn authority(parts: &Parts, lenience: Lenience) -> Result<&str, Refusal> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(bad("duplicate_host"));
    }
    let host = match host {
        Some(value) => Some(value.to_str().map_err(|_| bad("invalid_host"))?),
        None => None,
    };
    let chosen = match (parts.uri.authority(), host) {
        (Some(authority), Some(host))
            if parts.version == Version::HTTP_2 && !host.eq_ignore_ascii_case(authority.as_str()) =>
        {
            return Err(bad("authority_and_host_differ"));
        }
        (Some(authority), _) => authority.as_str(),
        (None, Some(host)) => host,
        (None, None) if parts.version == Version::HTTP_10 && lenience.http10 => "",
        (None, None) => return Err(Refusal(Reason::MissingHost, "missing_host_header")),
    };
    if chosen.is_empty() && parts.version != Version::HTTP_10 {
        return Err(Refusal(Reason::MissingHost, "missing_host_header"));
    }
    if is_valid_authority(chosen) { Ok(chosen) } else { Err(bad("invalid_host")) }
}

/// Bytes that a host may have (RFC 3986 §3.2.2), and those that set its port off.
const HOST_BYTE: [bool; 256] = {
    let mut table = [false; 256];
    let allowed = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=%:[]";
    let mut i = 0;
    while i < allowed.len() {
        table[allowed[i] as usize] = true;
        i += 1;
    }
    table
};

thread_local! {
    /// The last one that was found valid: most requests of a connection, and many of a proxy, ask for the same host.
    static VALID: RefCell<String> = const { RefCell::new(String::new()) };
}

fn is_valid_authority(text: &str) -> bool {
    VALID.with_borrow_mut(|last| {
        if *last == text {
            return true;
        }
        let valid = has_authority_form(text);
        if valid {
            last.clear();
            last.push_str(text);
        }
        valid
    })
}

/// `host`, `host:port`, `[v6]:port`; no user information (RFC 9110 §7.2).
fn has_authority_form(text: &str) -> bool {
    if text.len() > 1024 || !text.bytes().all(|b| HOST_BYTE[usize::from(b)]) {
        return false;
    }
    let port = if let Some(rest) = text.strip_prefix('[') {
        let Some((inside, after)) = rest.split_once(']') else { return false };
        if !inside.bytes().all(|b| b.is_ascii_hexdigit() || b":.%".contains(&b)) {
            return false;
        }
        match after.strip_prefix(':') {
            Some(port) => port,
            None => return after.is_empty(),
        }
    } else {
        if text.contains(['[', ']']) {
            return false;
        }
        match text.split_once(':') {
            Some((_, port)) => port,
            None => return true,
        }
    };
    port.bytes().all(|b| b.is_ascii_digit()) && port.len() <= 5
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn parts(method: &str, target: &str, version: Version, headers: &[(&str, &str)]) -> Parts {
        let mut builder = Request::builder().method(method).uri(target).version(version);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn accepted() {
        for (method, target, headers, want) in [
            ("GET", "/", &[("host", "a.example:80")][..], "a.example:80"),
            ("GET", "http://b.example/x?y", &[("host", "a")], "b.example"),
            ("OPTIONS", "*", &[("host", "a")], "a"),
            ("CONNECT", "c.example:443", &[("host", "c.example:443")], "c.example:443"),
            ("GET", "/", &[("host", "[::1]:80")], "[::1]:80"),
            ("POST", "/", &[("host", "a"), ("content-length", "5")], "a"),
            ("POST", "/", &[("host", "a"), ("transfer-encoding", "Chunked")], "a"),
        ] {
            let parts = parts(method, target, Version::HTTP_11, headers);
            assert_eq!(check(&parts, HeaderMarks::ALL, false, Lenience::default()), Ok(want), "{method} {target}");
        }
        let h2 = parts("GET", "https://a.example/x", Version::HTTP_2, &[]);
        assert_eq!(check(&h2, HeaderMarks::ALL, false, Lenience::default()), Ok("a.example"));
        let old = parts("GET", "/", Version::HTTP_10, &[]);
        assert_eq!(check(&old, HeaderMarks::ALL, false, Lenience { http10: true }), Ok(""));
    }

    #[test]
    fn refused() {
        for (method, target, headers, details) in [
            ("GET", "/", &[][..], "missing_host_header"),
            ("GET", "/", &[("host", "")], "missing_host_header"),
            ("GET", "/", &[("host", "a"), ("host", "b")], "duplicate_host"),
            ("GET", "/", &[("host", "a b")], "invalid_host"),
            ("GET", "/", &[("host", "a/b")], "invalid_host"),
            ("GET", "/", &[("host", "a@b")], "invalid_host"),
            ("GET", "/", &[("host", "a:b")], "invalid_host"),
            ("GET", "/", &[("host", "[::1")], "invalid_host"),
            ("GET", "*", &[("host", "a")], "invalid_path"),
            ("GET", "ftp://a/", &[("host", "a")], "invalid_scheme"),
            ("CONNECT", "/", &[("host", "a")], "invalid_connect_target"),
            ("POST", "/", &[("host", "a"), ("transfer-encoding", "gzip, chunked")], "unsupported_transfer_encoding"),
            (
                "POST",
                "/",
                &[("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
                "unsupported_transfer_encoding",
            ),
            (
                "POST",
                "/",
                &[("host", "a"), ("transfer-encoding", "chunked"), ("content-length", "5")],
                "content_length_and_transfer_encoding",
            ),
            ("POST", "/", &[("host", "a"), ("content-length", "+5")], "invalid_content_length"),
            ("POST", "/", &[("host", "a"), ("content-length", "5, 5")], "invalid_content_length"),
        ] {
            let parts = parts(method, target, Version::HTTP_11, headers);
            let refusal = check(&parts, HeaderMarks::ALL, false, Lenience::default()).unwrap_err();
            assert_eq!(refusal.1, details, "{method} {target} {headers:?}");
        }
        let upgrade = parts("GET", "/", Version::HTTP_11, &[("host", "a"), ("upgrade", "websocket")]);
        assert_eq!(check(&upgrade, HeaderMarks::ALL, true, Lenience::default()).unwrap_err().1, "body_before_upgrade");
        let h2 = parts("GET", "https://a.example/x", Version::HTTP_2, &[("host", "b.example")]);
        assert_eq!(
            check(&h2, HeaderMarks::ALL, false, Lenience::default()).unwrap_err().1,
            "authority_and_host_differ"
        );
        let old = parts("GET", "/", Version::HTTP_10, &[("host", "a")]);
        assert_eq!(check(&old, HeaderMarks::ALL, false, Lenience::default()).unwrap_err().0, Reason::LowVersion);
    }
}
