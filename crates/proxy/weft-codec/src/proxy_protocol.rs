//! PROXY protocol, versions 1 and 2 (haproxy's `proxy-protocol.txt`): parsed from peeked bytes, so that the caller consumes
//! exactly the header; and written towards upstreams.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Signature of version 2.
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest version 1 line, from the specification.
const V1_MAX: usize = 107;
/// Longest version 2 header accepted, TLVs included.
const V2_MAX: usize = 4096;

/// The outcome of looking for a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// A header of `length` bytes. Addresses are `None` for `LOCAL`, `UNKNOWN` and families other than IP.
    Header {
        /// Bytes to consume.
        length: usize,
        /// Source and destination.
        addresses: Option<(SocketAddr, SocketAddr)>,
    },
    /// More bytes are needed.
    Partial,
    /// There is no PROXY header here.
    Absent,
    /// It begins like a PROXY header and is wrong.
    Invalid,
}

/// Looks for a header at the start of `bytes`.
pub fn parse(bytes: &[u8]) -> Parsed {
    let seen = bytes.len().min(V2_SIGNATURE.len());
    if bytes[..seen] == V2_SIGNATURE[..seen] {
        return if seen < V2_SIGNATURE.len() { Parsed::Partial } else { parse_v2(bytes) };
    }
    let seen = bytes.len().min(6);
    if bytes[..seen] == b"PROXY "[..seen] {
        return if seen < 6 { Parsed::Partial } else { parse_v1(bytes) };
    }
    Parsed::Absent
}

fn parse_v1(bytes: &[u8]) -> Parsed {
    let window = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = window.windows(2).position(|w| w == b"\r\n") else {
        return if window.len() == V1_MAX { Parsed::Invalid } else { Parsed::Partial };
    };
    let Ok(line) = std::str::from_utf8(&window[..end]) else { return Parsed::Invalid };
    let mut words = line.split(' ').skip(1);
    let family = words.next();
    if family == Some("UNKNOWN") {
        return Parsed::Header { length: end + 2, addresses: None };
    }
    let parts: Vec<&str> = words.collect();
    let [source, destination, source_port, destination_port] = parts[..] else { return Parsed::Invalid };
    let address = |ip: &str, port: &str| -> Option<SocketAddr> {
        let ip: IpAddr = ip.parse().ok()?;
        let right_family = matches!((family, ip), (Some("TCP4"), IpAddr::V4(_)) | (Some("TCP6"), IpAddr::V6(_)));
        // `+80` is a number to Rust and not to the specification.
        let port = port.bytes().all(|b| b.is_ascii_digit()).then(|| port.parse().ok()).flatten()?;
        right_family.then_some(SocketAddr::new(ip, port))
    };
    match (address(source, source_port), address(destination, destination_port)) {
        (Some(source), Some(destination)) => Parsed::Header { length: end + 2, addresses: Some((source, destination)) },
        _ => Parsed::Invalid,
    }
}

fn parse_v2(bytes: &[u8]) -> Parsed {
    let Some(head) = bytes.get(12..16) else { return Parsed::Partial };
    let (command, family) = (head[0], head[1]);
    let length = usize::from(head[2]) << 8 | usize::from(head[3]);
    if command >> 4 != 2 || command & 0x0f > 1 || length > V2_MAX {
        return Parsed::Invalid;
    }
    let Some(body) = bytes.get(16..16 + length) else { return Parsed::Partial };
    let length = 16 + length;
    if command & 0x0f == 0 {
        return Parsed::Header { length, addresses: None };
    }
    let port = |at: usize| body.get(at..at + 2).map(|p| u16::from_be_bytes([p[0], p[1]]));
    let addresses = match family {
        0x11 => (|| {
            let ip = |at: usize| body.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(Ipv4Addr::from);
            Some((SocketAddr::new(ip(0)?.into(), port(8)?), SocketAddr::new(ip(4)?.into(), port(10)?)))
        })(),
        0x21 => (|| {
            let ip = |at: usize| body.get(at..at + 16).and_then(|b| <[u8; 16]>::try_from(b).ok()).map(Ipv6Addr::from);
            Some((SocketAddr::new(ip(0)?.into(), port(32)?), SocketAddr::new(ip(16)?.into(), port(34)?)))
        })(),
        // Unspecified, UDP, Unix: carried through without addresses.
        _ => return Parsed::Header { length, addresses: None },
    };
    match addresses {
        Some(addresses) => Parsed::Header { length, addresses: Some(addresses) },
        None => Parsed::Invalid,
    }
}

/// A version 1 line that says `source` connected to `destination`; of different families: `UNKNOWN`.
pub fn write_v1(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let family = match (source.ip(), destination.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => "TCP4",
        (IpAddr::V6(_), IpAddr::V6(_)) => "TCP6",
        _ => return b"PROXY UNKNOWN\r\n".to_vec(),
    };
    let (from, to) = (source.ip(), destination.ip());
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
}

/// The header of a connection that this proxy makes for itself.
pub fn write_own(version: u8) -> Vec<u8> {
    match version {
        1 => b"PROXY UNKNOWN\r\n".to_vec(),
        _ => [&V2_SIGNATURE[..], &[0x20, 0, 0, 0]].concat(),
    }
}

/// A version 2 header that says `source` connected to `destination`.
pub fn write_v2(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut out = V2_SIGNATURE.to_vec();
    out.push(0x21);
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            out.extend([0x11, 0, 12]);
            out.extend(s.octets());
            out.extend(d.octets());
        }
        (s, d) => {
            let wide = |ip: IpAddr| match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            out.extend([0x21, 0, 36]);
            out.extend(wide(s));
            out.extend(wide(d));
        }
    }
    out.extend(source.port().to_be_bytes());
    out.extend(destination.port().to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1() {
        let ok = b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\nGET";
        let want = Parsed::Header {
            length: ok.len() - 3,
            addresses: Some(("1.2.3.4:1000".parse().unwrap(), "5.6.7.8:80".parse().unwrap())),
        };
        assert_eq!(parse(ok), want);
        for n in 1..ok.len() - 3 {
            assert_eq!(parse(&ok[..n]), Parsed::Partial, "{n}");
        }
        assert_eq!(parse(b"PROXY UNKNOWN\r\n"), Parsed::Header { length: 15, addresses: None });
        for bad in [
            &b"PROXY TCP4 ::1 ::1 1 2\r\n"[..],
            b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 80\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 70000 80\r\n",
            b"PROXY  TCP4 1.2.3.4 5.6.7.8 1 80\r\n",
            &[&b"PROXY "[..], &[b'x'; 200]].concat(),
        ] {
            assert_eq!(parse(bad), Parsed::Invalid, "{:?}", String::from_utf8_lossy(bad));
        }
        assert_eq!(parse(b"GET / HTTP/1.1"), Parsed::Absent);
    }

    #[test]
    fn version_2() {
        for (source, destination) in [("1.2.3.4:5", "6.7.8.9:10"), ("[::1]:5", "[2001:db8::2]:10")] {
            let addresses = (source.parse().unwrap(), destination.parse().unwrap());
            let mut bytes = write_v2(addresses.0, addresses.1);
            let length = bytes.len();
            bytes.extend(b"payload");
            assert_eq!(parse(&bytes), Parsed::Header { length, addresses: Some(addresses) });
            for n in 1..length {
                assert_eq!(parse(&bytes[..n]), Parsed::Partial, "{n}");
            }
        }
        let mut local = V2_SIGNATURE.to_vec();
        local.extend([0x20, 0, 0, 0]);
        assert_eq!(parse(&local), Parsed::Header { length: 16, addresses: None });
        local[12] = 0x31;
        assert_eq!(parse(&local), Parsed::Invalid);
        let mut short = V2_SIGNATURE.to_vec();
        short.extend([0x21, 0x11, 0, 2, 1, 1]);
        assert_eq!(parse(&short), Parsed::Invalid);
    }
}
