//! Bodies: bytes to frames, by length, in chunks (RFC 9112 §7.1), or until the connection ends.

use super::head::{self, Framing};
use super::scan::Scan;
use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;

/// Longest line of a chunk's framing.
const MAX_CHUNK_LINE: usize = 4096;
/// Bytes of chunk extensions in one body. Nobody uses them, so that more of them is an attack.
const MAX_EXTENSIONS: usize = 16 * 1024;
/// Bytes of trailers.
const MAX_TRAILERS: usize = 16 * 1024;
const LINE_END: &[u8] = b"\r\n";

/// Why a body cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyFault {
    /// A chunk is malformed.
    #[error("invalid chunked body")]
    Chunk,
    /// Trailers are malformed or too long.
    #[error("invalid trailers")]
    Trailers,
    /// The connection ended before the body.
    #[error("the body is cut short")]
    Short,
}

/// Where in a body the next byte stands.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    extensions: usize,
    /// Progress within a line of framing, or the trailers.
    seen: usize,
    scan: Scan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Done,
    /// Bytes left.
    Length(u64),
    /// At a chunk's size.
    Size,
    /// In a chunk; bytes left.
    Chunk(u64),
    /// At the line end behind a chunk.
    ChunkEnd,
    Trailers,
    UntilClose,
}

/// What a step through the framing of chunks led to.
enum Step {
    Again,
    MoreBytes,
    Trailers(HeaderMap),
}

impl Decoder {
    /// For a body of that framing.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, extensions: 0, seen: 0, scan: Scan::default() }
    }

    /// Nothing more of the body will come.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The connection has ended.
    ///
    /// # Errors
    /// When the body has not.
    pub fn close(&mut self) -> Result<(), BodyFault> {
        match self.state {
            State::Done | State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(BodyFault::Short),
        }
    }

    /// Bytes that are left, where that is known.
    pub fn left(&self) -> Option<u64> {
        match self.state {
            State::Done => Some(0),
            State::Length(left) => Some(left),
            _ => None,
        }
    }

    /// Bytes of data that are to come next.
    pub fn expected(&self) -> u64 {
        match self.state {
            State::Length(left) | State::Chunk(left) => left,
            State::UntilClose => u64::MAX,
            _ => 0,
        }
    }

    /// The next frame in `bytes`; `None` when more bytes are needed, or the body is done.
    ///
    /// # Errors
    /// When the body is malformed. It stays so.
    pub fn next(&mut self, bytes: &mut BytesMut) -> Result<Option<Frame<Bytes>>, BodyFault> {
        loop {
            match self.state {
                State::Done => return Ok(None),
                _ if bytes.is_empty() => return Ok(None),
                State::UntilClose => return Ok(Some(Frame::data(bytes.split().freeze()))),
                State::Length(left) => {
                    let (data, left) = take(bytes, left);
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                    return Ok(Some(Frame::data(data)));
                }
                State::Chunk(left) => {
                    let (data, left) = take(bytes, left);
                    self.state = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
                    self.look_ahead(bytes);
                    return Ok(Some(Frame::data(data)));
                }
                State::Size | State::ChunkEnd | State::Trailers => match self.step(bytes)? {
                    Step::Again => {}
                    Step::MoreBytes => return Ok(None),
                    Step::Trailers(trailers) => return Ok(Some(Frame::trailers(trailers))),
                },
            }
        }
    }

    /// Goes through framing that is there already, so that the end is known with the last of the data. What is wrong with it
    /// is found again by the next call.
    fn look_ahead(&mut self, bytes: &mut BytesMut) {
        while matches!(self.state, State::ChunkEnd | State::Size)
            || (self.state == State::Trailers && bytes.starts_with(LINE_END))
        {
            if !matches!(self.step(bytes), Ok(Step::Again)) {
                return;
            }
        }
    }

    /// One step through the framing of chunks.
    fn step(&mut self, bytes: &mut BytesMut) -> Result<Step, BodyFault> {
        match self.state {
            State::ChunkEnd => {
                let there = bytes.len().min(2);
                if bytes[..there] != LINE_END[..there] {
                    return Err(BodyFault::Chunk);
                }
                if there < 2 {
                    return Ok(Step::MoreBytes);
                }
                bytes.advance(2);
                self.state = State::Size;
            }
            State::Size => {
                let Some(at) = memchr::memchr(b'\n', &bytes[self.seen..]) else {
                    self.seen = bytes.len();
                    return if self.seen > MAX_CHUNK_LINE { Err(BodyFault::Chunk) } else { Ok(Step::MoreBytes) };
                };
                let end = self.seen + at;
                let (size, extension) = chunk_line(&bytes[..end]).ok_or(BodyFault::Chunk)?;
                self.extensions += extension;
                if end > MAX_CHUNK_LINE || self.extensions > MAX_EXTENSIONS {
                    return Err(BodyFault::Chunk);
                }
                bytes.advance(end + 1);
                self.seen = 0;
                self.state = if size == 0 { State::Trailers } else { State::Chunk(size) };
            }
            State::Trailers if bytes.starts_with(LINE_END) => {
                bytes.advance(2);
                self.state = State::Done;
            }
            State::Trailers if **bytes == LINE_END[..1] => return Ok(Step::MoreBytes),
            State::Trailers => return self.trailers(bytes),
            _ => {}
        }
        Ok(Step::Again)
    }

    fn trailers(&mut self, bytes: &mut BytesMut) -> Result<Step, BodyFault> {
        match self.scan.find(bytes).map_err(|_| BodyFault::Trailers)? {
            Some((_, end)) if end <= MAX_TRAILERS => {
                let trailers = head::trailers(&bytes[..end]).map_err(|_| BodyFault::Trailers)?;
                bytes.advance(end);
                self.state = State::Done;
                Ok(if trailers.is_empty() { Step::Again } else { Step::Trailers(trailers) })
            }
            None if bytes.len() <= MAX_TRAILERS => Ok(Step::MoreBytes),
            _ => Err(BodyFault::Trailers),
        }
    }
}

/// Up to `left` bytes, and how many are left then.
fn take(bytes: &mut BytesMut, left: u64) -> (Bytes, u64) {
    let n = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    let data = if n == bytes.len() { std::mem::take(bytes) } else { bytes.split_to(n) };
    (data.freeze(), left - n as u64)
}

/// Size of a chunk, and bytes of its extension, from its line without the line feed.
fn chunk_line(line: &[u8]) -> Option<(u64, usize)> {
    let line = line.strip_suffix(b"\r")?;
    let digits = match memchr::memchr(b';', line) {
        Some(at) => &line[..at],
        None => line,
    };
    if line.contains(&b'\r') || line.contains(&0) {
        return None;
    }
    let extension = line.len() - digits.len();
    let digits = digits.trim_ascii_end();
    if digits.is_empty() || digits.len() > 15 {
        return None;
    }
    let mut size = 0u64;
    for digit in digits {
        size = size << 4 | u64::from(char::from(*digit).to_digit(16)?);
    }
    Some((size, extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data, trailers and rest; whole, and byte by byte.
    fn read(framing: Framing, bytes: &str) -> Result<(String, usize, String, bool), BodyFault> {
        let whole = read_in(framing, &[bytes.as_bytes()]);
        let singly: Vec<&[u8]> = bytes.as_bytes().chunks(1).collect();
        assert_eq!(whole, read_in(framing, &singly), "{bytes:?}");
        whole
    }

    fn read_in(framing: Framing, pieces: &[&[u8]]) -> Result<(String, usize, String, bool), BodyFault> {
        let (mut decoder, mut buffer) = (Decoder::new(framing), BytesMut::new());
        let (mut data, mut trailers) = (String::new(), 0);
        for piece in pieces {
            buffer.extend_from_slice(piece);
            while let Some(frame) = decoder.next(&mut buffer)? {
                match frame.into_data() {
                    Ok(bytes) => data.push_str(std::str::from_utf8(&bytes).unwrap()),
                    Err(frame) => trailers += frame.into_trailers().unwrap().len(),
                }
            }
        }
        Ok((data, trailers, String::from_utf8(buffer.to_vec()).unwrap(), decoder.is_done()))
    }

    #[test]
    fn whole_bodies() {
        for (framing, bytes, data, trailers, rest, done) in [
            (Framing::Length(5), "hellomore", "hello", 0, "more", true),
            (Framing::Length(5), "hel", "hel", 0, "", false),
            (Framing::None, "more", "", 0, "more", true),
            (Framing::UntilClose, "hello", "hello", 0, "", false),
            (Framing::Chunked, "5\r\nhello\r\n0\r\n\r\nmore", "hello", 0, "more", true),
            (
                Framing::Chunked,
                "5;a=b\r\na\nb\nc\r\nA \r\n0123456789\r\n0\r\nx: 1\r\n\r\nGET",
                "a\nb\nc0123456789",
                1,
                "GET",
                true,
            ),
            (Framing::Chunked, "1\r\nx\r\n0\r\nhost: a\r\n\r\n", "x", 0, "", true),
            (Framing::Chunked, "0\r\n\r\n", "", 0, "", true),
        ] {
            let got = read(framing, bytes).unwrap_or_else(|fault| panic!("{bytes:?}: {fault}"));
            assert_eq!(got, (data.into(), trailers, rest.into(), done), "{bytes:?}");
        }
    }

    #[test]
    fn wrong_chunks() {
        for bytes in [
            "\r\nbody\r\n0\r\n\r\n",
            "zz\r\nbody\r\n",
            "+4\r\nbody\r\n",
            "-1\r\n",
            "0x4\r\nbody\r\n",
            "fffffffffffffffff\r\nbody\r\n",
            "4\r\nbodyX0\r\n\r\n",
            "2\r\nbody\r\n0\r\n\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5;a\rb\r\nhello\r\n",
            "0\r\nx: 1\n\r\n",
            "0\r\nno colon\r\n\r\n",
        ] {
            assert!(read(Framing::Chunked, bytes).is_err(), "{bytes:?}");
        }
        let long = format!("4;{}\r\nbody\r\n", "a".repeat(5000));
        assert_eq!(read(Framing::Chunked, &long), Err(BodyFault::Chunk));
        let many = format!("1;{}\r\nx\r\n", "a".repeat(1000)).repeat(20);
        assert_eq!(read(Framing::Chunked, &many), Err(BodyFault::Chunk));
        let trailers = format!("0\r\n{}\r\n", format!("x: {}\r\n", "a".repeat(1000)).repeat(20));
        assert_eq!(read(Framing::Chunked, &trailers), Err(BodyFault::Trailers));
    }

    #[test]
    fn the_end_is_known_with_the_last_data() {
        let (mut decoder, mut bytes) = (Decoder::new(Framing::Chunked), BytesMut::from("5\r\nhello\r\n0\r\n\r\n"));
        assert!(decoder.next(&mut bytes).unwrap().is_some());
        assert!(decoder.is_done() && bytes.is_empty());
        assert_eq!(Decoder::new(Framing::Length(3)).close(), Err(BodyFault::Short));
        assert_eq!(Decoder::new(Framing::UntilClose).close(), Ok(()));
    }
}
