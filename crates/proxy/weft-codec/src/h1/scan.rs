//! Where a head ends, found without reading any byte twice however it arrives. A line of a request ends with `\r\n` and
//! nothing else: a bare line feed means different things to different programs (RFC 9112 §2.2).

use super::head::HeadFault;

/// Progress within a head that may not be complete.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scan {
    /// Where the head begins: after empty lines.
    first: usize,
    /// Where the current line begins.
    line: usize,
    /// Bytes looked at.
    seen: usize,
    /// A line may end with a line feed alone: for responses, whose recipient nobody can cheat.
    lenient: bool,
}

impl Scan {
    /// For a response.
    pub fn response() -> Self {
        Self { lenient: true, ..Self::default() }
    }

    /// Looks at `bytes`, which begin with those of the last call. Beginning and end of the head, when it is complete.
    ///
    /// # Errors
    /// When a line does not end as it must, or the first byte cannot begin a message.
    pub fn find(&mut self, bytes: &[u8]) -> Result<Option<(usize, usize)>, HeadFault> {
        while let Some(at) = bytes.get(self.seen..).and_then(|rest| find(b'\n', rest)) {
            let end = self.seen + at;
            let has_return = end > self.line && bytes[end - 1] == b'\r';
            if !has_return && !self.lenient {
                return Err(HeadFault::Malformed("bare_line_feed"));
            }
            let length = end - self.line - usize::from(has_return);
            self.seen = end + 1;
            let line = std::mem::replace(&mut self.line, end + 1);
            if length > 0 {
                continue;
            }
            if line > self.first {
                return Ok(Some((self.first, end + 1)));
            }
            // Empty lines before a message are let pass (RFC 9112 §2.2).
            self.first = end + 1;
        }
        self.seen = bytes.len();
        match bytes.get(self.first) {
            // What is no HTTP at all need not go on until its line ends.
            Some(byte) if !(0x21..0x7f).contains(byte) && *byte != b'\r' => Err(HeadFault::Malformed("no_http")),
            _ => Ok(None),
        }
    }

    /// Begins again, for the next head.
    pub fn restart(&mut self) {
        *self = Self { lenient: self.lenient, ..Self::default() };
    }
}

/// Where `wanted` stands first: eight bytes at a time, since most lines are over before a search for long ones would have
/// begun; what is longer is left to one of those.
#[inline]
pub(super) fn find(wanted: u8, bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    const SHORT: usize = 48;
    let pattern = ONES * u64::from(wanted);
    let (words, _) = bytes.as_chunks::<8>();
    for (number, word) in words.iter().take(SHORT / 8).enumerate() {
        let differing = u64::from_le_bytes(*word) ^ pattern;
        // The lowest byte whose top bit is set here is the first that is zero in `differing`.
        let found = differing.wrapping_sub(ONES) & !differing & (ONES << 7);
        if found != 0 {
            return Some(number * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    let at = (words.len() * 8).min(SHORT);
    let rest = &bytes[at..];
    let found =
        if rest.len() < 8 { rest.iter().position(|byte| *byte == wanted) } else { memchr::memchr(wanted, rest) };
    found.map(|found| at + found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_byte() {
        for length in 0..120 {
            let mut bytes = vec![b'\x0b'; length];
            assert_eq!(find(b'\n', &bytes), None);
            for at in (0..length).rev() {
                bytes[at] = b'\n';
                assert_eq!(find(b'\n', &bytes), Some(at), "{length}");
                // Neighbours of the byte, and the highest one, are not it.
                bytes[at] = [b'\t', 0x8a, 0xff, 0][at % 4];
                bytes[length - 1] = b'\n';
                assert_eq!(find(b'\n', &bytes), Some(length - 1), "{length}");
                bytes[length - 1] = b'\x0b';
            }
        }
    }

    fn ends(bytes: &[u8], scan: Scan) -> Result<Option<(usize, usize)>, HeadFault> {
        let whole = { scan }.find(bytes);
        let mut split = scan;
        let mut last = Ok(None);
        for n in 1..=bytes.len() {
            last = split.find(&bytes[..n]);
            if !matches!(last, Ok(None)) {
                break;
            }
        }
        assert_eq!(whole.is_err(), last.is_err(), "{}", String::from_utf8_lossy(bytes));
        if let (Ok(whole), Ok(last)) = (whole, last) {
            assert_eq!(whole, last, "{}", String::from_utf8_lossy(bytes));
        }
        whole
    }

    #[test]
    fn requests() {
        for (bytes, want) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\nrest", Some((0, 27))),
            ("\r\n\r\nGET / HTTP/1.1\r\n\r\n", Some((4, 22))),
            ("GET / HTTP/1.1\r\nHost: a\r\n", None),
            ("\r\n", None),
            ("", None),
        ] {
            assert_eq!(ends(bytes.as_bytes(), Scan::default()).unwrap(), want, "{bytes:?}");
        }
        for bytes in ["GET / HTTP/1.1\nHost: a\n\n", "GET / HTTP/1.1\r\nHost: a\n\r\n", "\n", "\0", "\u{16}\u{3}"] {
            assert!(ends(bytes.as_bytes(), Scan::default()).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn responses() {
        assert_eq!(ends(b"HTTP/1.1 200 OK\nx: 1\n\nbody", Scan::response()).unwrap(), Some((0, 22)));
        assert_eq!(ends(b"HTTP/1.1 200 OK\r\n\r\n", Scan::response()).unwrap(), Some((0, 19)));
    }
}
