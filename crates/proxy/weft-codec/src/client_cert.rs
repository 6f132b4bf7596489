//! `x-forwarded-client-cert`: how a hop writes down whose certificate it saw, and how that joins what the hops before said.
//! Pure text; who is believed is decided by the caller.
//!
//! A value is a list of elements, one for each hop, of `Key=value` pairs (Envoy, "HTTP header manipulation",
//! x-forwarded-client-cert): `,` between elements, `;` between pairs. Names in a certificate are chosen by whoever asked for
//! it, so a value with a character that has a meaning here is quoted, and nothing in a certificate makes the element
//! disappear.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use std::sync::Arc;

/// `x-forwarded-client-cert`
pub const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// Longest value passed on, in bytes; a chain of hops does not get there.
pub const MAX_CLIENT_CERT: usize = 32 * 1024;

/// What one hop tells of its peer; `None`: it does not tell.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hop<'a> {
    /// URI of the certificate that the hop itself showed.
    pub by: Option<&'a str>,
    /// SHA-256 of the peer's certificate, hex.
    pub hash: &'a str,
    /// The peer's certificate, URL-encoded PEM.
    pub cert: Option<&'a str>,
    /// The peer's chain, URL-encoded PEM.
    pub chain: Option<&'a str>,
    /// The peer's subject, as RFC 2253 writes it.
    pub subject: Option<&'a str>,
    /// The peer's URI names.
    pub uris: Option<&'a [Arc<str>]>,
    /// The peer's DNS names.
    pub dns: &'a [Arc<str>],
}

impl Hop<'_> {
    /// `By=…;Hash=…;Cert="…";Chain="…";Subject="…";URI=…;DNS=…`, in Envoy's order. There is one for every peer, whatever its
    /// names are made of: else what the peer said of itself would stand in its place.
    pub fn element(&self) -> HeaderValue {
        let mut parts: Vec<String> = self.by.map(|own| pair("By", own)).into_iter().collect();
        parts.push(pair("Hash", self.hash));
        parts.extend(self.cert.map(|cert| format!("Cert={}", quoted(cert))));
        parts.extend(self.chain.map(|chain| format!("Chain={}", quoted(chain))));
        parts.extend(self.subject.map(|subject| format!("Subject={}", quoted(subject))));
        match self.uris {
            None => {}
            Some([]) => parts.push("URI=".into()),
            Some(uris) => parts.extend(uris.iter().map(|uri| pair("URI", uri))),
        }
        parts.extend(self.dns.iter().map(|name| pair("DNS", name)));
        let text = parts.join(";");
        // Without control characters (see `clean`) all bytes of UTF-8 are good in a value.
        HeaderValue::from_bytes(text.as_bytes()).unwrap_or_else(|_| HeaderValue::from_static("Hash="))
    }
}

fn pair(key: &str, value: &str) -> String {
    match value.contains([',', ';', '=', '"', '\\']) {
        true => format!("{key}={}", quoted(value)),
        false => format!("{key}={}", clean(value)),
    }
}

fn quoted(value: &str) -> String {
    // A quote inside would end the value early for whoever parses it.
    format!("\"{}\"", clean(value).replace('\\', "\\\\").replace('"', "\\\""))
}

/// No control characters, which a header cannot carry.
fn clean(value: &str) -> String {
    value.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Replaces whatever was told by this hop's element.
pub fn set(headers: &mut HeaderMap, element: &HeaderValue) {
    headers.insert(X_FORWARDED_CLIENT_CERT, element.clone());
}

/// Appends this hop's element to what was told. What is no list of whole elements (a quote that is not closed would hide this
/// hop's element from those who parse it) is dropped, and so is what would make the value longer than [`MAX_CLIENT_CERT`].
pub fn append(headers: &mut HeaderMap, element: &HeaderValue) {
    let mut joined = Vec::new();
    for line in headers.get_all(X_FORWARDED_CLIENT_CERT) {
        if !is_closed(line.as_bytes()) {
            joined.clear();
            break;
        }
        joined.extend_from_slice(line.as_bytes());
        joined.push(b',');
    }
    joined.extend_from_slice(element.as_bytes());
    let value = match joined.len() <= MAX_CLIENT_CERT {
        true => HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)).unwrap_or_else(|_| element.clone()),
        false => element.clone(),
    };
    headers.insert(X_FORWARDED_CLIENT_CERT, value);
}

/// Every quote is closed, and no backslash is left over that would take the next character's meaning.
fn is_closed(value: &[u8]) -> bool {
    let (mut inside, mut escaped) = (false, false);
    for byte in value {
        match (escaped, byte) {
            (true, _) => escaped = false,
            (false, b'\\') => escaped = true,
            (false, b'"') => inside = !inside,
            _ => {}
        }
    }
    !inside && !escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &HeaderValue) -> &str {
        std::str::from_utf8(value.as_bytes()).unwrap()
    }

    #[test]
    fn elements() {
        let uris: [Arc<str>; 1] = ["spiffe://td/ns/a/sa/b".into()];
        let dns: [Arc<str>; 2] = ["a.example".into(), "b.example".into()];
        let plain = Hop { by: Some("spiffe://td/ns/c/sa/d"), hash: "ab", ..Hop::default() };
        for (hop, want) in [
            (plain, "By=spiffe://td/ns/c/sa/d;Hash=ab"),
            (
                Hop { subject: Some(""), uris: Some(&uris), ..plain },
                "By=spiffe://td/ns/c/sa/d;Hash=ab;Subject=\"\";URI=spiffe://td/ns/a/sa/b",
            ),
            (Hop { by: None, uris: Some(&[]), dns: &dns, ..plain }, "Hash=ab;URI=;DNS=a.example;DNS=b.example"),
            (Hop { by: None, cert: Some("c%0A"), chain: Some("d"), ..plain }, "Hash=ab;Cert=\"c%0A\";Chain=\"d\""),
        ] {
            assert_eq!(text(&hop.element()), want);
        }
    }

    #[test]
    fn class_client_certificate_names_forge_no_element() {
        for (name, want) in [
            (
                "a,By=spiffe://td/ns/a/sa/root",
                "Hash=ab;Subject=\"a,By=spiffe://td/ns/a/sa/root\";URI=\"a,By=spiffe://td/ns/a/sa/root\"",
            ),
            ("a;URI=x", "Hash=ab;Subject=\"a;URI=x\";URI=\"a;URI=x\""),
            ("a\";URI=x", "Hash=ab;Subject=\"a\\\";URI=x\";URI=\"a\\\";URI=x\""),
            ("a\\", "Hash=ab;Subject=\"a\\\\\";URI=\"a\\\\\""),
            // Neither makes the element impossible: the peer's own words would be left in its place.
            ("a\r\nx: y", "Hash=ab;Subject=\"a??x: y\";URI=a??x: y"),
            ("O=Ünï", "Hash=ab;Subject=\"O=Ünï\";URI=\"O=Ünï\""),
        ] {
            let uris: [Arc<str>; 1] = [name.into()];
            let hop = Hop { hash: "ab", subject: Some(name), uris: Some(&uris), ..Hop::default() };
            assert_eq!(text(&hop.element()), want, "{name:?}");
        }
    }

    #[test]
    fn class_client_certificate_header_cannot_hide_the_hop_after_it() {
        let own = HeaderValue::from_static("Hash=own");
        for (told, want) in [
            (&["By=a;Hash=b"][..], "By=a;Hash=b,Hash=own"),
            (&["By=a", "By=b"], "By=a,By=b,Hash=own"),
            (&["Subject=\"a,\\\"b\""], "Subject=\"a,\\\"b\",Hash=own"),
            (&["Subject=\"open"], "Hash=own"),
            (&["By=a", "x\\"], "Hash=own"),
            (&[], "Hash=own"),
        ] {
            let mut headers = HeaderMap::new();
            for line in told {
                headers.append(X_FORWARDED_CLIENT_CERT, HeaderValue::from_str(line).unwrap());
            }
            append(&mut headers, &own);
            let values: Vec<_> = headers.get_all(X_FORWARDED_CLIENT_CERT).iter().map(text).collect();
            assert_eq!(values, [want], "{told:?}");
        }
        let mut long = HeaderMap::new();
        long.insert(X_FORWARDED_CLIENT_CERT, HeaderValue::from_str(&"x".repeat(MAX_CLIENT_CERT)).unwrap());
        append(&mut long, &own);
        assert_eq!(long[X_FORWARDED_CLIENT_CERT], "Hash=own");
        set(&mut long, &HeaderValue::from_static("Hash=other"));
        assert_eq!(long[X_FORWARDED_CLIENT_CERT], "Hash=other");
    }
}
