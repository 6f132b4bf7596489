//! Reads server name and ALPN from a TLS ClientHello that has been peeked at, not consumed. It authenticates nothing: the
//! handshake proper comes later, from the same bytes.

use std::sync::Arc;

/// Bytes of a ClientHello looked at before giving up: the longest that TLS stacks in use send, twice over.
pub const MAX_HELLO: usize = 16 * 1024;
/// Application protocols kept; more are ignored.
const MAX_ALPN: usize = 16;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// Not TLS.
    NotTls,
    /// TLS as far as it goes; more bytes are needed.
    Partial,
    /// A whole ClientHello.
    Tls {
        /// Server name, lower case.
        server_name: Option<Arc<str>>,
        /// Application protocols, as offered.
        alpn: Vec<Arc<str>>,
    },
}

/// Looks at the first bytes of a connection.
pub fn sniff(bytes: &[u8]) -> Hello {
    let Some(handshake) = handshake_bytes(bytes) else { return Hello::NotTls };
    let Some(&kind) = handshake.first() else { return Hello::Partial };
    if kind != 1 {
        return Hello::NotTls;
    }
    let Some(length) =
        handshake.get(1..4).map(|l| usize::from(l[0]) << 16 | usize::from(l[1]) << 8 | usize::from(l[2]))
    else {
        return Hello::Partial;
    };
    if length > MAX_HELLO {
        return Hello::NotTls;
    }
    match handshake.get(4..4 + length) {
        None if bytes.len() >= MAX_HELLO => Hello::NotTls,
        None => Hello::Partial,
        Some(hello) => extensions(hello).unwrap_or(Hello::NotTls),
    }
}

/// The payload of the handshake records at the start, joined. `None` when this is not TLS.
fn handshake_bytes(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut joined = Vec::new();
    while let [kind, rest @ ..] = bytes {
        // Record type 22 (handshake), version 3.x (RFC 8446 §5.1).
        if *kind != 22 || rest.first().is_some_and(|major| *major != 3) {
            return None;
        }
        let Some(head) = bytes.get(3..5) else { break };
        let length = usize::from(head[0]) << 8 | usize::from(head[1]);
        if length == 0 || length > 16_640 {
            return None;
        }
        let body = &bytes[5..];
        joined.extend_from_slice(&body[..length.min(body.len())]);
        bytes = body.get(length..).unwrap_or(&[]);
        // Only the first message matters; what follows a whole ClientHello is not looked at.
        if let [_, a, b, c, ..] = joined[..]
            && joined.len() >= 4 + (usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c))
        {
            break;
        }
    }
    Some(joined)
}

/// A reader over bytes with lengths in front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }
    fn u8(&mut self) -> Option<usize> {
        self.take(1).map(|b| usize::from(b[0]))
    }
    fn u16(&mut self) -> Option<usize> {
        self.take(2).map(|b| usize::from(b[0]) << 8 | usize::from(b[1]))
    }
}

/// Walks a ClientHello (RFC 8446 §4.1.2) to its extensions. `None` when lengths contradict each other.
fn extensions(hello: &[u8]) -> Option<Hello> {
    let mut reader = Reader(hello);
    reader.take(2 + 32)?;
    let session = reader.u8()?;
    reader.take(session)?;
    let ciphers = reader.u16()?;
    reader.take(ciphers)?;
    let compression = reader.u8()?;
    reader.take(compression)?;
    let (mut server_name, mut alpn) = (None, Vec::new());
    if reader.0.is_empty() {
        return Some(Hello::Tls { server_name, alpn });
    }
    let all = reader.u16()?;
    let mut list = Reader(reader.take(all)?);
    while !list.0.is_empty() {
        let kind = list.u16()?;
        let length = list.u16()?;
        let body = list.take(length)?;
        match kind {
            0 => server_name = host_name(body)?,
            16 => alpn = protocols(body)?,
            _ => {}
        }
    }
    Some(Hello::Tls { server_name, alpn })
}

/// The `host_name` of a server_name extension (RFC 6066 §3).
fn host_name(body: &[u8]) -> Option<Option<Arc<str>>> {
    let mut reader = Reader(body);
    let length = reader.u16()?;
    let mut list = Reader(reader.take(length)?);
    while !list.0.is_empty() {
        let kind = list.u8()?;
        let length = list.u16()?;
        let name = list.take(length)?;
        if kind == 0 {
            let text = std::str::from_utf8(name).ok()?;
            return Some((!text.is_empty() && !text.contains('\0')).then(|| Arc::from(text.to_ascii_lowercase())));
        }
    }
    Some(None)
}

/// The list of an ALPN extension (RFC 7301 §3.1). Names that are not text are left out.
fn protocols(body: &[u8]) -> Option<Vec<Arc<str>>> {
    let mut reader = Reader(body);
    let length = reader.u16()?;
    let mut list = Reader(reader.take(length)?);
    let mut found = Vec::new();
    while !list.0.is_empty() {
        let length = list.u8()?;
        let name = list.take(length)?;
        if found.len() < MAX_ALPN
            && let Ok(text) = std::str::from_utf8(name)
        {
            found.push(Arc::from(text));
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ClientHello with the given extensions.
    fn hello(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        let mut message = vec![1, 0];
        message.extend((body.len() as u16).to_be_bytes());
        message.extend(body);
        message
    }

    fn record(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![22, 3, 1];
        bytes.extend((payload.len() as u16).to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn sni_and_alpn() -> Vec<u8> {
        let name = b"Reviews.Example";
        let mut ext = vec![0, 0, 0, name.len() as u8 + 5, 0, name.len() as u8 + 3, 0, 0, name.len() as u8];
        ext.extend(name);
        ext.extend([0, 16, 0, 5, 0, 3, 2, b'h', b'2']);
        ext
    }

    #[test]
    fn whole_split_and_partial() {
        let message = hello(&sni_and_alpn());
        let want = Hello::Tls { server_name: Some("reviews.example".into()), alpn: vec!["h2".into()] };
        assert_eq!(sniff(&record(&message)), want);
        let (a, b) = message.split_at(20);
        let split = [record(a), record(b)].concat();
        assert_eq!(sniff(&split), want, "over two records");
        let whole = record(&message);
        for n in 0..whole.len() {
            assert_eq!(sniff(&whole[..n]), Hello::Partial, "{n} bytes");
        }
        assert_eq!(sniff(&record(&hello(&[]))), Hello::Tls { server_name: None, alpn: vec![] });
    }

    #[test]
    fn other_protocols_and_nonsense() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"SSH-2.0-x", &[22, 9, 0], &record(&[2, 0, 0, 0]), &[22, 3, 1, 0, 0]]
        {
            assert_eq!(sniff(bytes), Hello::NotTls, "{bytes:?}");
        }
        // Lengths that point outside.
        assert_eq!(sniff(&record(&hello(&[0, 0, 0, 200, 1]))), Hello::NotTls);
    }
}
