//! The lines of a head whose end has been found (RFC 9112 §2–§5): start line and fields, each cut out once. What they mean is
//! [`super::head`]'s matter; so is what a name or a value may hold, which is checked where they become one.

use super::head::HeadFault;
use super::scan::find;
use http::Version;

/// Bytes of ` HTTP/1.1`.
const VERSION: usize = 9;

/// What is left of a head.
pub(super) struct Lines<'a>(&'a [u8]);

/// Name and value of a field.
type Field<'a> = (&'a [u8], &'a [u8]);

/// A request's start line.
pub(super) struct RequestLine<'a> {
    pub method: &'a [u8],
    pub target: &'a str,
    pub version: Version,
}

impl<'a> Lines<'a> {
    /// Of the bytes of a whole head, or of trailers.
    pub fn of(head: &'a [u8]) -> Self {
        Self(head)
    }

    /// The next line without its end.
    fn line(&mut self) -> Result<&'a [u8], HeadFault> {
        let at = find(b'\n', self.0).ok_or(HeadFault::Malformed("torn_head"))?;
        let (line, rest) = self.0.split_at(at);
        self.0 = &rest[1..];
        Ok(line.strip_suffix(b"\r").unwrap_or(line))
    }

    /// `METHOD target HTTP/1.1`, with one space between two (RFC 9112 §3).
    ///
    /// # Errors
    /// When it is not that.
    pub fn request(&mut self) -> Result<RequestLine<'a>, HeadFault> {
        const BAD: HeadFault = HeadFault::Malformed("invalid_start_line");
        let line = self.line()?;
        let (line, end) = line.split_at_checked(line.len().wrapping_sub(VERSION)).ok_or(BAD)?;
        let version = version(end.strip_prefix(b" ").ok_or(HeadFault::Malformed("invalid_version"))?)?;
        let space = line.iter().position(|byte| *byte == b' ').ok_or(BAD)?;
        let (method, target) = (&line[..space], &line[space + 1..]);
        if target.is_empty() || target.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
            return Err(BAD);
        }
        let target = std::str::from_utf8(target).map_err(|_| BAD)?;
        Ok(RequestLine { method, target, version })
    }

    /// `HTTP/1.1 200 reason`; the reason may be missing, also with the space before it (RFC 9112 §4).
    ///
    /// # Errors
    /// When it is not that.
    pub fn status(&mut self) -> Result<(Version, u16), HeadFault> {
        const BAD: HeadFault = HeadFault::Malformed("invalid_status");
        let line = self.line()?;
        let (start, rest) = line.split_at_checked(VERSION).ok_or(HeadFault::Malformed("invalid_start_line"))?;
        let version = version(start.strip_suffix(b" ").ok_or(HeadFault::Malformed("invalid_version"))?)?;
        let (code, reason) = rest.split_at_checked(3).ok_or(BAD)?;
        let is_text = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
        let well_formed = code.iter().all(u8::is_ascii_digit) && reason.first().is_none_or(|byte| *byte == b' ');
        if !well_formed || !reason.iter().all(is_text) {
            return Err(BAD);
        }
        let code = code.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
        Ok((version, code))
    }

    /// Name and value of the next field; `None` at the empty line. No space may stand before the colon, and a line that begins
    /// with one is no continuation (RFC 9112 §5.1, §5.2): neither is a name.
    ///
    /// # Errors
    /// When the line is no field.
    pub fn field(&mut self) -> Result<Option<Field<'a>>, HeadFault> {
        let line = self.line()?;
        if line.is_empty() {
            return Ok(None);
        }
        let colon = find(b':', line).ok_or(HeadFault::Malformed("invalid_header_name"))?;
        Ok(Some((&line[..colon], trimmed(&line[colon + 1..]))))
    }
}

fn version(text: &[u8]) -> Result<Version, HeadFault> {
    match text {
        b"HTTP/1.1" => Ok(Version::HTTP_11),
        b"HTTP/1.0" => Ok(Version::HTTP_10),
        _ => Err(HeadFault::Malformed("invalid_version")),
    }
}

/// Without spaces and tabs at both ends, and nothing else that some would call white space.
fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

#[cfg(test)]
mod tests {
    use crate::h1::head::{self, HeadLimits};
    use bytes::Bytes;
    use http::{HeaderName, HeaderValue, Method};

    const LIMITS: HeadLimits = HeadLimits { bytes: 64 * 1024, headers: 32 };

    /// Start line, names and values.
    type Read = (String, Vec<(String, Vec<u8>)>);

    /// What another parser (`httparse`) makes of a head; `None` when it refuses it.
    fn other(bytes: &[u8], is_request: bool) -> Option<Read> {
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let (start, fields) = if is_request {
            let mut parsed = httparse::Request::new(&mut fields);
            parsed.parse(bytes).ok().filter(httparse::Status::is_complete)?;
            (format!("{} {} {}", parsed.method?, parsed.path?, parsed.version?), parsed.headers)
        } else {
            let mut parsed = httparse::Response::new(&mut fields);
            parsed.parse(bytes).ok().filter(httparse::Status::is_complete)?;
            (format!("{} {}", parsed.version?, parsed.code?), parsed.headers)
        };
        let of = |field: &httparse::Header<'_>| (field.name.to_ascii_lowercase(), field.value.to_vec());
        Some((start, fields.iter().map(of).collect()))
    }

    fn ours(bytes: &[u8], is_request: bool) -> Option<Read> {
        let mut lines = super::Lines::of(bytes);
        let minor = |version| u8::from(version == http::Version::HTTP_11);
        let start = if is_request {
            let line = lines.request().ok()?;
            let method = Method::from_bytes(line.method).ok()?;
            format!("{method} {} {}", line.target, minor(line.version))
        } else {
            let (version, code) = lines.status().ok()?;
            format!("{} {code}", minor(version))
        };
        let mut fields = Vec::new();
        while let Some((name, value)) = lines.field().ok()? {
            let name = HeaderName::from_bytes(name).ok()?;
            HeaderValue::from_bytes(value).ok()?;
            fields.push((name.to_string(), value.to_vec()));
        }
        Some((start, fields))
    }

    #[test]
    fn read_as_another_parser_reads_them() {
        const REQUEST: &[u8] =
            b"GET /a?b=c HTTP/1.1\r\nHost: a.example:80\r\nX-One:  1 \t\r\nX-Empty:\r\nCookie: a=b; c=d\r\n\r\n";
        const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length:5\r\nX-Text: \xe4 \t b\r\n\r\n";
        const BYTES: &[u8] = b" \t:\r\n\0\x0b\x0c\x1f\x7f\x80\xc3\xa4/H1x.0?#\"(),;@[]{}";
        let mut random = fastrand::Rng::with_seed(7);
        let mut accepted = 0;
        for round in 0..40_000 {
            let is_request = round % 2 == 0;
            let mut head = if is_request { REQUEST.to_vec() } else { RESPONSE.to_vec() };
            for _ in 0..random.usize(0..4) {
                let at = random.usize(..head.len());
                let byte = BYTES[random.usize(..BYTES.len())];
                match random.u8(..3) {
                    0 => head[at] = byte,
                    1 => head.insert(at, byte),
                    _ => drop(head.remove(at)),
                }
            }
            // Empty lines before a head are the scan's matter.
            if head[0] == b'\r' || head[0] == b'\n' {
                continue;
            }
            let (ours, other) = (ours(&head, is_request), other(&head, is_request));
            accepted += u32::from(ours.is_some());
            assert_eq!(ours, other, "{:?}", String::from_utf8_lossy(&head));
        }
        assert!(accepted > 5000, "{accepted}");
    }

    #[test]
    fn too_many_fields() {
        for (count, fits) in [(32, true), (33, false)] {
            let fields: String = (0..count).map(|n| format!("x-{n}: 1\r\n")).collect();
            let read = head::request(&Bytes::from(format!("GET / HTTP/1.1\r\n{fields}\r\n")), LIMITS);
            assert_eq!(read.is_ok(), fits, "{count}");
        }
    }
}
