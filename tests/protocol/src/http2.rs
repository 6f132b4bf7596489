//! An HTTP/2 connection on which a test sends what bytes it likes, and learns how the other side takes it.

use crate::frame::{Frame, PREFACE, flag, frame, kind, settings};
use anyhow::{Context as _, Result, bail, ensure};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Longest wait for an answer; a machine under load is slow, not wrong.
pub const ANSWER: Duration = Duration::from_secs(30);
/// Longest wait for the other side to read: one that reads no more has its reasons.
const SENT: Duration = Duration::from_secs(10);

/// Error codes, RFC 9113 section 7.
pub mod code {
    /// NO_ERROR.
    pub const NO_ERROR: u32 = 0;
    /// PROTOCOL_ERROR.
    pub const PROTOCOL: u32 = 1;
    /// FLOW_CONTROL_ERROR.
    pub const FLOW_CONTROL: u32 = 3;
    /// STREAM_CLOSED.
    pub const STREAM_CLOSED: u32 = 5;
    /// FRAME_SIZE_ERROR.
    pub const FRAME_SIZE: u32 = 6;
    /// REFUSED_STREAM.
    pub const REFUSED_STREAM: u32 = 7;
    /// COMPRESSION_ERROR.
    pub const COMPRESSION: u32 = 9;
    /// ENHANCE_YOUR_CALM.
    pub const CALM: u32 = 11;
}

/// How the other side took what was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// The connection was ended: by GOAWAY with that code, or without a word.
    ConnectionEnded(Option<u32>),
    /// The stream was reset with that code.
    Reset(u32),
    /// The stream was answered with that status.
    Answered(u16),
}

/// A connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects and sends nothing.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(SENT))?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Connects, and exchanges prefaces and empty settings.
    ///
    /// # Errors
    /// When the other side does not take part.
    pub fn ready(address: SocketAddr) -> Result<Self> {
        Self::with_settings(address, &[])
    }

    /// As [`Self::ready`], with settings of our own.
    ///
    /// # Errors
    /// When the other side does not take part.
    pub fn with_settings(address: SocketAddr, pairs: &[(u16, u32)]) -> Result<Self> {
        let mut connection = Self::open(address)?;
        connection.send(&[PREFACE, &settings(pairs)].concat())?;
        let (mut theirs, mut acknowledged) = (false, false);
        while !(theirs && acknowledged) {
            let came = connection.frame()?.context("closed while settings are exchanged")?;
            match (came.kind, came.flags & flag::ACK) {
                (kind::SETTINGS, 0) => {
                    theirs = true;
                    connection.send(&frame(kind::SETTINGS, flag::ACK, 0, &[]))?;
                }
                (kind::SETTINGS, _) => acknowledged = true,
                (kind::GOAWAY, _) => bail!("GOAWAY while settings are exchanged"),
                _ => {}
            }
        }
        Ok(connection)
    }

    /// Sends bytes. An error of the socket is none of the test's: what counts is what comes back.
    ///
    /// # Errors
    /// When the other side does not read for too long.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match self.stream.write_all(bytes) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(error).context("the other side does not read")
            }
            _ => Ok(()),
        }
    }

    /// The next frame; `None` when the connection is closed.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn frame(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.take() {
                return Ok(Some(frame));
            }
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(count) => self.buffer.extend(&chunk[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    bail!("no frame within {ANSWER:?}")
                }
                Err(_) => return Ok(None),
            }
        }
    }

    fn take(&mut self) -> Option<Frame> {
        let head = self.buffer.get(..9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        let payload = self.buffer.get(9..9 + length)?.to_vec();
        self.buffer.drain(..9 + length);
        Some(Frame { kind, flags, stream, payload })
    }

    /// What becomes of a stream.
    ///
    /// # Errors
    /// When nothing becomes of it in time.
    pub fn outcome(&mut self, stream: u32) -> Result<Taken> {
        loop {
            let Some(frame) = self.frame()? else { return Ok(Taken::ConnectionEnded(None)) };
            match frame.kind {
                kind::GOAWAY => return Ok(Taken::ConnectionEnded(word(&frame.payload, 4))),
                kind::RST_STREAM if frame.stream == stream => {
                    return Ok(Taken::Reset(word(&frame.payload, 0).unwrap_or(u32::MAX)));
                }
                kind::HEADERS if frame.stream == stream => return Ok(Taken::Answered(status(&frame.payload))),
                _ => {}
            }
        }
    }

    /// Asks with PING whether the other side still lives, and takes everything that comes before its answer.
    ///
    /// # Errors
    /// When it does not, or does not answer.
    pub fn lives(&mut self) -> Result<()> {
        self.send(&frame(kind::PING, 0, 0, b"alive???"))?;
        loop {
            let frame = self.frame()?.context("the connection was closed")?;
            ensure!(frame.kind != kind::GOAWAY, "GOAWAY {:?}", word(&frame.payload, 4));
            if frame.kind == kind::PING && frame.flags & flag::ACK != 0 {
                ensure!(frame.payload == b"alive???", "PING is answered with other bytes");
                return Ok(());
            }
        }
    }

    /// Waits until the connection is ended by the other side; the code of GOAWAY.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn ended(&mut self) -> Result<Option<u32>> {
        let end = Instant::now() + ANSWER;
        while Instant::now() < end {
            let Some(frame) = self.frame()? else { return Ok(None) };
            if frame.kind == kind::GOAWAY {
                return Ok(word(&frame.payload, 4));
            }
        }
        bail!("the connection goes on after {ANSWER:?}")
    }
}

fn word(payload: &[u8], at: usize) -> Option<u32> {
    payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes)
}

/// `:status` of a header block that begins with it, as an index into the static table or as a literal of three digits.
fn status(block: &[u8]) -> u16 {
    // Changes of the dynamic table's size come first.
    let block = &block[block.iter().take_while(|byte| **byte & 0xe0 == 0x20).count()..];
    match block.first() {
        Some(index @ 0x88..=0x8e) => [200, 204, 206, 304, 400, 404, 500][usize::from(index - 0x88)],
        Some(_) => literal_status(block),
        None => 0,
    }
}

fn literal_status(block: &[u8]) -> u16 {
    let digits = match block.get(1) {
        Some(3) => block.get(2..5).map(<[u8]>::to_vec),
        // Huffman: the codes of digits have five bits (0 1 2) or six (3 to 9), RFC 7541 appendix B.
        Some(length @ 0x82..=0x83) => block.get(2..2 + usize::from(length & 0x7f)).map(huffman_digits),
        _ => None,
    };
    digits.and_then(|digits| String::from_utf8(digits).ok()?.parse().ok()).unwrap_or_default()
}

fn huffman_digits(bytes: &[u8]) -> Vec<u8> {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |shift| byte >> shift & 1)).collect();
    let value = |range: &[u8]| range.iter().fold(0, |sum, bit| sum << 1 | bit);
    let (mut at, mut digits) = (0, Vec::new());
    while digits.len() < 3 && at + 5 <= bits.len() {
        let five = value(&bits[at..at + 5]);
        if five <= 2 {
            digits.push(b'0' + five);
            at += 5;
        } else if at + 6 <= bits.len() {
            digits.push(b'3' + value(&bits[at..at + 6]).wrapping_sub(0x19));
            at += 6;
        } else {
            break;
        }
    }
    digits
}
