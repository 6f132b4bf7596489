//! Headers that say who asked: `x-forwarded-for`, `x-forwarded-proto`, `x-forwarded-client-cert`, `x-request-id`. What an
//! untrusted client says about itself is taken out here, before anything reads it.

use crate::downstream::Downstream;
use crate::http::conn::HttpConnection;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::OnceLock;
use weft_codec::HeaderMarks;
use weft_codec::client_cert::{self, X_FORWARDED_CLIENT_CERT};
use weft_proxy_config::{ClientCertDetails, ForwardClientCert, HttpConnectionManager};

pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const X_ENVOY_INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const X_ENVOY_EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
/// Prefix of headers by which proxies of one mesh steer each other.
const INTERNAL_PREFIX: &str = "x-envoy-";

/// Who asks.
pub(crate) struct Asker {
    /// The client's address as far as it can be trusted.
    pub client: SocketAddr,
    /// The scheme of what it asks for: its own word, else what the proxy in front says, else the connection's.
    pub scheme: &'static str,
    /// It came by TLS, as far as is known.
    pub by_tls: bool,
    /// It stands inside: what it says about retries and time limits is heeded.
    pub internal: bool,
}

/// Sets all of them. `asked`: the scheme that the request itself names.
pub(crate) fn apply(
    conn: &HttpConnection,
    hcm: &HttpConnectionManager,
    headers: &mut HeaderMap,
    marks: HeaderMarks,
    asked: Option<&'static str>,
) -> Asker {
    let downstream = &conn.downstream;
    let told = marks.has(HeaderMarks::FORWARDED_FOR);
    let client = if told { client_address(downstream, hcm, headers) } else { downstream.source };
    let internal = is_internal(hcm, headers, told, client.ip());
    let edge = hcm.use_remote_address && !internal;
    if marks.has(HeaderMarks::INTERNAL) {
        strip(headers, internal, edge, hcm.xff_trusted_hops == 0);
    }
    if internal {
        headers.insert(X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
    }
    if hcm.use_remote_address && !hcm.skip_xff_append {
        append_address(headers, downstream.source.ip());
    }
    if edge && let Ok(value) = HeaderValue::from_str(&client.ip().to_string()) {
        headers.insert(X_ENVOY_EXTERNAL_ADDRESS, value);
    }
    if hcm.use_remote_address
        && hcm.append_x_forwarded_port
        && (hcm.xff_trusted_hops == 0 || !headers.contains_key(X_FORWARDED_PORT))
    {
        headers.insert(X_FORWARDED_PORT, HeaderValue::from(downstream.destination.port()));
    }
    let own_word = hcm.use_remote_address && hcm.xff_trusted_hops == 0;
    let (own, mut proto) = (downstream.scheme(), None);
    if own_word || !marks.has(HeaderMarks::FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(own));
    } else {
        proto = headers.get(X_FORWARDED_PROTO);
    }
    let by_tls = proto.map_or(own == "https", |proto| proto == "https");
    let scheme = asked.or_else(|| proto.and_then(scheme)).unwrap_or(own);
    tell_client_cert(conn, hcm, headers, marks);
    request_id(hcm, headers, marks);
    Asker { client, scheme, by_tls, internal }
}

/// Envoy's rule: the request has one address and no more, and that is one of those named as internal. Where the connection
/// counts, nobody may have come before; where the header counts, it must be there.
fn is_internal(hcm: &HttpConnectionManager, headers: &HeaderMap, told: bool, client: IpAddr) -> bool {
    if hcm.internal_addresses.is_empty() || !hcm.internal_addresses.iter().any(|range| range.contains(&client)) {
        return false;
    }
    match hcm.use_remote_address {
        true => !told,
        false => told && hcm.xff_trusted_hops == 0 && is_single(headers),
    }
}

/// `x-forwarded-for` holds one address.
fn is_single(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(X_FORWARDED_FOR).iter();
    let first = lines.next().and_then(|line| line.to_str().ok());
    lines.next().is_none() && first.is_some_and(|line| !line.contains(',') && line.trim().parse::<IpAddr>().is_ok())
}

/// An address of this machine: the one that it would speak to others from, else loopback. Nothing is sent to find out.
pub(crate) fn own_address() -> IpAddr {
    static OWN: OnceLock<IpAddr> = OnceLock::new();
    let ask = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        // RFC 5737: an address that belongs to nobody.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
        socket.local_addr().ok().map(|own| own.ip())
    };
    *OWN.get_or_init(|| ask().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)))
}

/// Adds the address of the hop before to `x-forwarded-for`.
pub(crate) fn append_hop(headers: &mut HeaderMap, address: IpAddr) {
    append_address(headers, address);
}

/// The scheme that the proxy in front saw.
fn scheme(proto: &HeaderValue) -> Option<&'static str> {
    match proto.as_bytes() {
        b"http" => Some("http"),
        b"https" => Some("https"),
        _ => None,
    }
}

/// Headers by which only requests from inside steer a proxy.
const OF_INSIDE: [&str; 12] = [
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
];
/// Headers that nobody brings along across the edge.
const OF_MESH: [&str; 5] = [
    "x-envoy-decorator-operation",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-original-path",
    "x-envoy-original-host",
];

/// Takes out what the client may not say. `first`: no trusted proxy stands before this one; then nothing that a client says
/// about the mesh goes in, whatever its name.
fn strip(headers: &mut HeaderMap, internal: bool, edge: bool, first: bool) {
    headers.remove(X_ENVOY_INTERNAL);
    if internal {
        return;
    }
    let goes = |name: &str| {
        name.starts_with(INTERNAL_PREFIX)
            && ((edge && first) || OF_INSIDE.contains(&name) || (edge && OF_MESH.contains(&name)))
    };
    let names: smallvec::SmallVec<[HeaderName; 4]> =
        headers.keys().filter(|name| goes(name.as_str())).cloned().collect();
    for name in names {
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
        // What stands left of the entry may be anything: the client wrote it.
        for entry in line.as_bytes().rsplit(|byte| *byte == b',') {
            if left == 0 {
                return std::str::from_utf8(entry).ok()?.trim().parse().ok();
            }
            left -= 1;
        }
    }
    None
}

fn append_address(headers: &mut HeaderMap, address: IpAddr) {
    let mut joined = Vec::new();
    for line in headers.get_all(X_FORWARDED_FOR) {
        joined.extend_from_slice(line.as_bytes());
        joined.push(b',');
    }
    joined.extend_from_slice(address.to_string().as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
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

    /// A byte that is no text takes nothing from what a trusted proxy says after it: else the client were taken for that proxy.
    #[test]
    fn class_trusted_internal_headers_a_client_cannot_hide_its_address() {
        for (written, skip, want) in [
            (&b"\xff, 203.0.113.9"[..], 0, Some("203.0.113.9")),
            (b"\xff", 0, None),
            (b"203.0.113.9, \xff", 0, None),
            (b"203.0.113.9, \xff", 1, Some("203.0.113.9")),
        ] {
            let line = HeaderValue::from_bytes(written).unwrap();
            let mut headers: HeaderMap = [(X_FORWARDED_FOR, line)].into_iter().collect();
            assert_eq!(from_right(&headers, skip), want.map(|ip| ip.parse().unwrap()), "{written:?}");
            append_address(&mut headers, "4.4.4.4".parse().unwrap());
            assert_eq!(headers[X_FORWARDED_FOR].as_bytes(), [written, b",4.4.4.4"].concat());
            assert_eq!(from_right(&headers, skip + 1), want.map(|ip| ip.parse().unwrap()), "the next hop: {written:?}");
        }
    }

    #[test]
    fn internal_headers_go() {
        let mut headers = HeaderMap::new();
        for name in ["x-envoy-upstream-rq-timeout-ms", "x-envoy-retry-on", "x-envoy-any", "x-other", "x-envoy-internal"]
        {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        for (internal, edge, first, left) in
            [(true, false, true, 4), (false, false, true, 2), (false, true, false, 2), (false, true, true, 1)]
        {
            let mut headers = headers.clone();
            strip(&mut headers, internal, edge, first);
            assert_eq!(headers.len(), left, "{internal} {edge} {first}: {headers:?}");
        }
    }
}
