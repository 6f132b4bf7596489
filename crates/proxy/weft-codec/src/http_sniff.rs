//! Tells HTTP from other protocols by the first bytes of a connection.

/// The HTTP/2 connection preface (RFC 9113 §3.4).
pub const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest request line waited for.
pub const MAX_LINE: usize = 8 * 1024;
/// Longest method name that still looks like HTTP.
const MAX_METHOD: usize = 24;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sniffed {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Something else.
    Other,
    /// More bytes are needed.
    Partial,
}

/// Looks at the first bytes of a connection. Decides against HTTP at the first byte that cannot be HTTP.
pub fn sniff(bytes: &[u8]) -> Sniffed {
    if bytes.is_empty() {
        return Sniffed::Partial;
    }
    if H2_PREFACE.starts_with(&bytes[..bytes.len().min(H2_PREFACE.len())]) {
        return if bytes.len() >= H2_PREFACE.len() { Sniffed::Http2 } else { Sniffed::Partial };
    }
    let Some(space) = bytes.iter().position(|b| *b == b' ') else {
        return if bytes.len() > MAX_METHOD || !bytes.iter().all(|b| is_method_byte(*b)) {
            Sniffed::Other
        } else {
            Sniffed::Partial
        };
    };
    if space == 0 || space > MAX_METHOD || !bytes[..space].iter().all(|b| is_method_byte(*b)) {
        return Sniffed::Other;
    }
    let rest = &bytes[space + 1..];
    match rest.iter().position(|b| *b == b'\n') {
        Some(end) => version(rest[..end].trim_ascii_end()),
        None if rest.iter().any(|b| *b < 0x20 && *b != b'\r') => Sniffed::Other,
        // A request line this long is one that only the HTTP codec may refuse.
        None if bytes.len() >= MAX_LINE => Sniffed::Http11,
        None => Sniffed::Partial,
    }
}

fn is_method_byte(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte == b'-' || byte == b'_'
}

fn version(line: &[u8]) -> Sniffed {
    if line.ends_with(b" HTTP/1.1") {
        Sniffed::Http11
    } else if line.ends_with(b" HTTP/1.0") {
        Sniffed::Http10
    } else {
        Sniffed::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        for (bytes, want) in [
            (&b"GET / HTTP/1.1\r\nHost: a\r\n"[..], Sniffed::Http11),
            (b"GET / HTTP/1.0\r\n", Sniffed::Http10),
            (b"M-SEARCH * HTTP/1.1\r\n", Sniffed::Http11),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrest", Sniffed::Http2),
            (b"PRI * HT", Sniffed::Partial),
            (b"", Sniffed::Partial),
            (b"GET", Sniffed::Partial),
            (b"GET /lo", Sniffed::Partial),
            (b"hello\n", Sniffed::Other),
            (b"\x16\x03", Sniffed::Other),
            (b"SSH-2.0-OpenSSH_9.0\r\n", Sniffed::Other),
            (b"QUIT now\r\n", Sniffed::Other),
            (b"GET \x01", Sniffed::Other),
            (b" x", Sniffed::Other),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Sniffed::Other),
        ] {
            assert_eq!(sniff(bytes), want, "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
