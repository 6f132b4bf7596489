//! Watches the framing of an HTTP/1 client before the codec sees its bytes, and refuses what two programs could frame in two
//! ways: a bare line feed, `content-length` beside `transfer-encoding` (RFC 9112 §6.1, §2.2). The codec would take one
//! meaning and go on; this proxy refuses both.
//!
//! It follows heads, bodies by length, and chunked bodies. A request that asks for an upgrade is framed like any other: what
//! follows is another protocol only when the proxy has agreed, which the stream is told ([`crate::io::IoMeter::set_upgraded`]).
//! After CONNECT the bytes are no HTTP any more and pass.

/// Longest line of a chunked body's framing.
const MAX_CHUNK_LINE: usize = 4096;

/// Where in the stream of requests the next byte stands.
#[derive(Debug)]
pub struct FramingGuard {
    state: State,
    /// The beginning of a line whose end has not arrived; names and lengths need no more.
    line: Vec<u8>,
    /// Of that line something was left out.
    cut: bool,
    /// What was left out, or is kept, holds a `#`.
    hash: bool,
    head: Head,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before or in the lines of a head.
    Head,
    /// In a body; bytes left.
    Body(u64),
    /// At a chunk's size.
    ChunkSize,
    /// In a chunk; bytes left, its line end included.
    Chunk(u64),
    /// In the trailers.
    Trailers,
    /// Not HTTP any more: behind CONNECT.
    Upgraded,
}

/// What is known of the head under way.
#[derive(Debug, Default)]
struct Head {
    /// A request line has been seen.
    begun: bool,
    connect: bool,
    length: Option<u64>,
    coding: bool,
}

/// The bytes are ambiguous; nothing of the request may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ambiguous HTTP/1 framing")]
pub struct Ambiguous {
    /// Where in the bytes the head begins that is ambiguous (0 when it began earlier); `None` when it is a chunk.
    pub head: Option<usize>,
}

/// A line that cannot be.
struct BadLine;

/// Bytes kept of a line that is not complete.
const KEPT: usize = 64;

impl Default for FramingGuard {
    fn default() -> Self {
        Self { state: State::Head, line: Vec::new(), cut: false, hash: false, head: Head::default() }
    }
}

impl FramingGuard {
    /// Follows the next bytes of the connection.
    ///
    /// # Errors
    /// When they are ambiguous.
    pub fn follow(&mut self, mut bytes: &[u8]) -> Result<(), Ambiguous> {
        let all = bytes.len();
        let mut head = 0;
        while !bytes.is_empty() {
            if self.state == State::Head && !self.head.begun && self.line.is_empty() {
                head = all - bytes.len();
            }
            let ambiguous = Ambiguous { head: (self.state == State::Head).then_some(head) };
            match self.state {
                State::Upgraded => return Ok(()),
                State::Body(left) | State::Chunk(left) => {
                    let n = left.min(bytes.len() as u64);
                    bytes = &bytes[n as usize..];
                    self.state = match (self.state, left - n) {
                        (State::Body(_), 0) => State::Head,
                        (State::Body(_), left) => State::Body(left),
                        (_, 0) => State::ChunkSize,
                        (_, left) => State::Chunk(left),
                    };
                }
                State::Head | State::ChunkSize | State::Trailers => {
                    let Some(end) = memchr::memchr(b'\n', bytes) else {
                        return self.keep(bytes).map_err(|BadLine| ambiguous);
                    };
                    let (line, rest) = bytes.split_at(end);
                    bytes = &rest[1..];
                    if self.line.is_empty() {
                        self.end_of_line(line).map_err(|BadLine| ambiguous)?;
                    } else {
                        let mut whole = std::mem::take(&mut self.line);
                        whole.extend_from_slice(line);
                        self.end_of_line(&whole).map_err(|BadLine| ambiguous)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A part of a line. Its end is needed to tell `\r\n`, its beginning to tell which header it is.
    fn keep(&mut self, part: &[u8]) -> Result<(), BadLine> {
        self.line.extend_from_slice(part);
        self.hash |= part.contains(&b'#');
        if self.state == State::ChunkSize && self.line.len() > MAX_CHUNK_LINE {
            return Err(BadLine);
        }
        if self.line.len() > 2 * KEPT {
            // A framing header this long is refused when its end comes; the last byte still says how a line ends.
            let last = self.line.last().copied();
            self.cut = true;
            self.line.truncate(KEPT);
            self.line.extend(last);
        }
        Ok(())
    }

    /// A whole line, without its line feed.
    fn end_of_line(&mut self, line: &[u8]) -> Result<(), BadLine> {
        let (cut, hash) = (std::mem::take(&mut self.cut), std::mem::take(&mut self.hash) || line.contains(&b'#'));
        let long = cut || line.len() > 2 * KEPT;
        let Some(line) = line.strip_suffix(b"\r") else { return Err(BadLine) };
        match self.state {
            State::ChunkSize => {
                let digits = line.split(|b| *b == b';').next().unwrap_or_default().trim_ascii_end();
                let size = chunk_size(digits).ok_or(BadLine)?;
                self.state = if size == 0 { State::Trailers } else { State::Chunk(size.saturating_add(2)) };
            }
            State::Trailers => {
                if line.is_empty() {
                    self.state = State::Head;
                }
            }
            _ if !self.head.begun => {
                // Empty lines before a request are let pass (RFC 9112 §2.2).
                // A target has no fragment (RFC 9112 §3.2); who drops one and who keeps it read two paths.
                if hash {
                    return Err(BadLine);
                }
                if !line.is_empty() {
                    self.head = Head { begun: true, connect: line.starts_with(b"CONNECT "), ..Head::default() };
                }
            }
            _ if line.is_empty() => self.end_of_head()?,
            _ => self.header(line, long)?,
        }
        Ok(())
    }

    /// `long`: more than a framing header needs, and perhaps not whole.
    fn header(&mut self, line: &[u8], long: bool) -> Result<(), BadLine> {
        // Only few headers matter, and they begin with few letters.
        if !matches!(line.first(), Some(b'c' | b'C' | b't' | b'T')) {
            return Ok(());
        }
        let Some(colon) = line.iter().position(|b| *b == b':') else { return Ok(()) };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let length = name.eq_ignore_ascii_case(b"content-length");
        let coding = name.eq_ignore_ascii_case(b"transfer-encoding");
        if (length || coding) && long {
            return Err(BadLine);
        }
        if length {
            let length = decimal(value).ok_or(BadLine)?;
            if self.head.length.is_some_and(|before| before != length) {
                return Err(BadLine);
            }
            self.head.length = Some(length);
        } else if coding {
            self.head.coding = true;
        }
        Ok(())
    }

    fn end_of_head(&mut self) -> Result<(), BadLine> {
        let head = std::mem::take(&mut self.head);
        self.state = match (head.length, head.coding) {
            (Some(_), true) => return Err(BadLine),
            _ if head.connect => State::Upgraded,
            (_, true) => State::ChunkSize,
            (Some(0) | None, false) => State::Head,
            (Some(length), false) => State::Body(length),
        };
        Ok(())
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

fn chunk_size(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.len() <= 15 && text.iter().all(u8::is_ascii_hexdigit);
    digits.then(|| u64::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole, and byte by byte: the outcome must be the same.
    fn outcome(bytes: &[u8]) -> Result<(), Option<usize>> {
        let whole = FramingGuard::default().follow(bytes);
        let mut guard = FramingGuard::default();
        let split = bytes.iter().try_for_each(|byte| guard.follow(std::slice::from_ref(byte)));
        assert_eq!(whole.is_ok(), split.is_ok(), "{}", String::from_utf8_lossy(bytes));
        whole.map_err(|ambiguous| ambiguous.head)
    }

    #[test]
    fn plain_framing_passes() {
        for bytes in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\na\nb\ncGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\na\nb\nc\r\n0\r\nT: x\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "CONNECT a:1 HTTP/1.1\r\n\r\n\n\n",
            "POST / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        ] {
            assert_eq!(outcome(bytes.as_bytes()), Ok(()), "{bytes}");
        }
        let long = format!("GET / HTTP/1.1\r\nCookie: {}\r\n\r\nGET / HTTP/1.1\r\n\r\n", "x".repeat(10_000));
        assert_eq!(outcome(long.as_bytes()), Ok(()));
    }

    #[test]
    fn two_meanings_do_not() {
        for (bytes, head) in [
            ("GET / HTTP/1.1\nHost: a\n\n", Some(0)),
            ("GET /#/admin HTTP/1.1\r\n\r\n", Some(0)),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", Some(0)),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", Some(0)),
            ("POST / HTTP/1.1\r\nTRANSFER-ENCODING: chunked\r\ncontent-length: 5\r\n\r\n", Some(0)),
            ("POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n", Some(0)),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", Some(0)),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\n\r\n", Some(43)),
            ("GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\nGET / HTTP/1.1\n\n", Some(38)),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", None),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", None),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", None),
        ] {
            assert_eq!(outcome(bytes.as_bytes()), Err(head), "{bytes}");
        }
    }

    #[test]
    fn class_smuggling_long_lines_in_pieces_are_read_like_whole_ones() {
        let (many, spaces) = ("x".repeat(200), " ".repeat(200));
        for (bytes, head) in [
            // Found by fuzzing: what was left out of a long line that came in pieces was not looked at.
            (format!("GET /{many}#{many} HTTP/1.1\r\n\r\n"), Err(Some(0))),
            (format!("POST / HTTP/1.1\r\nContent-Length:{spaces}5\r\n\r\nhello"), Err(Some(0))),
            (format!("POST / HTTP/1.1\r\nContent-Length: {}5\r\n\r\nhello", "0".repeat(200)), Err(Some(0))),
            (format!("POST / HTTP/1.1\r\nTransfer-Encoding:{spaces}chunked\r\n\r\n0\r\n\r\n"), Err(Some(0))),
            (format!("GET / HTTP/1.1\r\nCookie: {many}#{many}\r\n\r\n"), Ok(())),
            (format!("GET / HTTP/1.1\r\nContent-Length-{many}: x\r\n\r\n"), Ok(())),
            (format!("GET /{many} HTTP/1.1\r\nX: #\r\n\r\nGET /{many} HTTP/1.1\r\n\r\n"), Ok(())),
        ] {
            assert_eq!(outcome(bytes.as_bytes()), head, "{bytes}");
        }
    }
}
