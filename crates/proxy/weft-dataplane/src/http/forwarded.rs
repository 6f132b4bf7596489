//! Headers that say who asked: `x-forwarded-for`, `x-forwarded-proto`, `x-forwarded-client-cert`, `x-request-id`. What an
//! untrusted client says about itself is taken out here, before anything reads it.

use crate::downstream::Downstream;
use crate::http::conn::HttpConnection;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::net::{IpAddr, SocketAddr};
use weft_codec::HeaderMarks;
use weft_codec::client_cert::{self, X_FORWARDED_CLIENT_CERT};
use weft_proxy_config::{ClientCertDetails, ForwardClientCert, HttpConnectionManager};

pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_ENVOY_EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
/// Prefix of headers by which proxies of one mesh steer each other.
const INTERNAL_PREFIX: &str = "x-envoy-";

/// Sets all of them; returns the client's address as far as it can be trusted, and the scheme it used.
pub(crate) fn apply(
    conn: &HttpConnection,
    hcm: &HttpConnectionManager,
    headers: &mut HeaderMap,
    marks: HeaderMarks,
) -> (SocketAddr, &'static str) {
    let downstream = &conn.downstream;
    if hcm.use_remote_address && marks.has(HeaderMarks::INTERNAL) {
        strip_internal(headers);
    }
    let client = match marks.has(HeaderMarks::FORWARDED_FOR) {
        true => client_address(downstream, hcm, headers),
        false => downstream.source,
    };
    if hcm.use_remote_address {
        if !hcm.skip_xff_append {
            append_address(headers, downstream.source.ip());
        }
        if let Ok(value) = HeaderValue::from_str(&client.ip().to_string()) {
            headers.insert(X_ENVOY_EXTERNAL_ADDRESS, value);
        }
    }
    if hcm.use_remote_address
        && hcm.append_x_forwarded_port
        && (hcm.xff_trusted_hops == 0 || !headers.contains_key(X_FORWARDED_PORT))
    {
        headers.insert(X_FORWARDED_PORT, HeaderValue::from(downstream.destination.port()));
    }
    let own_word = hcm.use_remote_address && hcm.xff_trusted_hops == 0;
    let told = if own_word || !marks.has(HeaderMarks::FORWARDED_PROTO) { None } else { scheme(headers) };
    let scheme = told.unwrap_or_else(|| {
        let own = downstream.scheme();
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(own));
        own
    });
    tell_client_cert(conn, hcm, headers, marks);
    request_id(hcm, headers, marks);
    (client, scheme)
}

/// The scheme that the proxy in front saw.
fn scheme(headers: &HeaderMap) -> Option<&'static str> {
    match headers.get(X_FORWARDED_PROTO)?.as_bytes() {
        b"http" => Some("http"),
        b"https" => Some("https"),
        _ => None,
    }
}

/// At the edge nobody outside may steer this proxy or those behind it.
fn strip_internal(headers: &mut HeaderMap) {
    let internal: smallvec::SmallVec<[HeaderName; 4]> =
        headers.keys().filter(|name| name.as_str().starts_with(INTERNAL_PREFIX)).cloned().collect();
    for name in internal {
        headers.remove(name);
    }
}

/// The client behind trusted proxies: counted from the right of `x-forwarded-for`, as Envoy does.
fn client_address(downstream: &Downstream, hcm: &HttpConnectionManager, headers: &HeaderMap) -> SocketAddr {
    let hops = hcm.xff_trusted_hops as usize;
    let skip = match (hcm.use_remote_address, hops) {
        // The connection's own address is the answer.
        (true, 0) => return downstream.source,
        (true, hops) => hops - 1,
        (false, hops) => hops,
    };
    from_right(headers, skip).map_or(downstream.source, |ip| SocketAddr::new(ip, 0))
}

fn from_right(headers: &HeaderMap, skip: usize) -> Option<IpAddr> {
    // Repeated headers are one list; the last line is nearest to us.
    let lines: smallvec::SmallVec<[&HeaderValue; 2]> = headers.get_all(X_FORWARDED_FOR).iter().collect();
    let mut left = skip;
    for line in lines.iter().rev() {
        for entry in line.to_str().ok()?.rsplit(',') {
            if left == 0 {
                return entry.trim().parse().ok();
            }
            left -= 1;
        }
    }
    None
}

fn append_address(headers: &mut HeaderMap, address: IpAddr) {
    let own = address.to_string();
    let mut lines = headers.get_all(X_FORWARDED_FOR).iter().filter_map(|v| v.to_str().ok());
    let joined = match lines.next() {
        None => own,
        Some(first) => {
            let mut all = first.to_string();
            for line in lines {
                all.push(',');
                all.push_str(line);
            }
            all.push(',');
            all.push_str(&own);
            all
        }
    };
    if let Ok(value) = HeaderValue::from_str(&joined) {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

fn tell_client_cert(conn: &HttpConnection, hcm: &HttpConnectionManager, headers: &mut HeaderMap, marks: HeaderMarks) {
    if hcm.xff_cert == ForwardClientCert::AlwaysForwardOnly {
        return;
    }
    let told = marks.has(HeaderMarks::CLIENT_CERT);
    if !conn.downstream.is_mutual_tls() || hcm.xff_cert == ForwardClientCert::Sanitize {
        if told {
            headers.remove(X_FORWARDED_CLIENT_CERT);
        }
        return;
    }
    let append = match hcm.xff_cert {
        ForwardClientCert::AppendForward => true,
        ForwardClientCert::SanitizeSet => false,
        _ => return,
    };
    let element = conn.cert_element.get_or_init(|| element(&conn.downstream, hcm.xff_cert_details));
    match element {
        Some(element) if told && append => client_cert::append(headers, element),
        Some(element) => client_cert::set(headers, element),
        // Mutual TLS without a peer: nobody to tell of, and nobody to believe.
        None => drop(headers.remove(X_FORWARDED_CLIENT_CERT)),
    }
}

/// This hop.
fn element(downstream: &Downstream, details: ClientCertDetails) -> Option<HeaderValue> {
    let peer = downstream.tls.as_ref()?.peer.as_ref()?;
    let cert = details.cert.then(|| peer.pem_url_encoded());
    let chain = details.chain.then(|| peer.chain_pem_url_encoded());
    let hop = client_cert::Hop {
        by: downstream.local_uri.as_deref(),
        hash: peer.sha256(),
        cert: cert.as_deref(),
        chain: chain.as_deref(),
        subject: details.subject.then_some(&peer.subject),
        uris: details.uri.then_some(&peer.uris),
        dns: if details.dns { &peer.dns } else { &[] },
    };
    Some(hop.element())
}

fn request_id(hcm: &HttpConnectionManager, headers: &mut HeaderMap, marks: HeaderMarks) {
    let keep = marks.has(HeaderMarks::REQUEST_ID) && (!hcm.use_remote_address || hcm.preserve_external_request_id);
    if marks.has(HeaderMarks::REQUEST_ID) && !keep {
        headers.remove(X_REQUEST_ID);
    }
    if hcm.generate_request_id && !keep {
        headers.insert(X_REQUEST_ID, new_request_id());
    }
}

/// A random UUID, version 4 (RFC 9562 §5.4).
fn new_request_id() -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut bits = fastrand::u128(..).to_be_bytes();
    bits[6] = bits[6] & 0x0f | 0x40;
    bits[8] = bits[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (i, byte) in bits.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_uuids() {
        let id = new_request_id();
        let text = id.to_str().unwrap();
        assert_eq!(text.len(), 36);
        let parts: Vec<usize> = text.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert!(text.as_bytes()[14] == b'4' && b"89ab".contains(&text.as_bytes()[19]), "{text}");
        assert_ne!(id, new_request_id());
    }

    #[test]
    fn addresses_from_the_right() {
        let mut headers = HeaderMap::new();
        headers.append(X_FORWARDED_FOR, HeaderValue::from_static("1.1.1.1, 2.2.2.2"));
        headers.append(X_FORWARDED_FOR, HeaderValue::from_static("3.3.3.3"));
        for (skip, want) in [(0, Some("3.3.3.3")), (1, Some("2.2.2.2")), (2, Some("1.1.1.1")), (3, None)] {
            assert_eq!(from_right(&headers, skip), want.map(|ip| ip.parse().unwrap()), "{skip}");
        }
        append_address(&mut headers, "4.4.4.4".parse().unwrap());
        assert_eq!(headers[X_FORWARDED_FOR], "1.1.1.1, 2.2.2.2,3.3.3.3,4.4.4.4");
        let nonsense: HeaderMap = [(X_FORWARDED_FOR, HeaderValue::from_static("unknown"))].into_iter().collect();
        assert_eq!(from_right(&nonsense, 0), None);
    }

    #[test]
    fn internal_headers_go() {
        let mut headers = HeaderMap::new();
        for name in ["x-envoy-upstream-rq-timeout-ms", "x-envoy-retry-on", "x-other"] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        strip_internal(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-other"]);
    }
}
