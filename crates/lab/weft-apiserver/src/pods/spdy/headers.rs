//! The header blocks of SPDY/3.1: pairs of names and values, in one zlib stream per direction with a dictionary that both sides
//! know. Reading is by a real inflater; what is written is stored blocks, which every inflater reads.
//!
//! Source: SPDY Protocol, Draft 3.1, sections 2.6.10 (name/value block) and 2.6.10.1 (its compression); RFC 1950, RFC 1951.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use std::collections::BTreeMap;

/// What both sides of the stream begin with.
const DICTIONARY: &[u8] = include_bytes!("dictionary.bin");
/// Adler-32 of the dictionary, as it stands in the stream.
const DICTIONARY_ID: [u8; 4] = [0xe3, 0xc6, 0xa7, 0xc2];
/// The inflater's window (RFC 1951).
const WINDOW: usize = 32 * 1024;
/// Longest header block, in bytes.
const MAX_BLOCK: usize = 16 * 1024;
/// Headers of one stream at most.
const MAX_HEADERS: u32 = 64;
/// Longest stored block (RFC 1951, 3.2.4).
const MAX_STORED: usize = 0xffff;

/// Names and values; names are lower-case.
pub(crate) type Headers = BTreeMap<String, String>;

/// Reads the header blocks of one direction, in their order.
pub(crate) struct Reader {
    inflater: Box<DecompressorOxide>,
    window: Vec<u8>,
    at: usize,
    begun: bool,
}

impl Reader {
    pub(crate) fn new() -> Self {
        let mut window = vec![0; WINDOW];
        window.iter_mut().zip(DICTIONARY).for_each(|(to, from)| *to = *from);
        Self { inflater: Box::default(), window, at: DICTIONARY.len(), begun: false }
    }

    /// Reads a block.
    ///
    /// # Errors
    /// What is wrong with it; nothing can be read after that.
    pub(crate) fn read(&mut self, mut block: &[u8]) -> Result<Headers, String> {
        if !self.begun {
            block = begin(block)?;
            self.begun = true;
        }
        let text = self.inflate(block)?;
        pairs(&text)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, String> {
        let mut text = Vec::new();
        loop {
            let flags = inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
            let (status, taken, made) = decompress(&mut self.inflater, block, &mut self.window, self.at, flags);
            block = block.get(taken..).unwrap_or_default();
            text.extend_from_slice(self.window.get(self.at..self.at + made).unwrap_or_default());
            self.at = (self.at + made) % WINDOW;
            if text.len() > MAX_BLOCK {
                return Err(format!("a header block is longer than {MAX_BLOCK} bytes"));
            }
            match status {
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::NeedsMoreInput if block.is_empty() => return Ok(text),
                // A client that ends its compression with every block cannot be followed.
                _ => return Err("a header block is not zlib".into()),
            }
        }
    }
}

/// The head of the zlib stream (RFC 1950, 2.2), with or without the dictionary.
fn begin(block: &[u8]) -> Result<&[u8], String> {
    let ([method, flags], rest) = block.split_first_chunk().ok_or("a header block is empty")?;
    if method & 0x0f != 8 || (u16::from(*method) * 256 + u16::from(*flags)) % 31 != 0 {
        return Err("a header block is not zlib".into());
    }
    if flags & 0x20 == 0 {
        return Ok(rest);
    }
    let (id, rest) = rest.split_first_chunk().ok_or("a header block is cut off")?;
    if *id == DICTIONARY_ID { Ok(rest) } else { Err("headers are compressed with another dictionary".into()) }
}

fn pairs(mut text: &[u8]) -> Result<Headers, String> {
    let number = |text: &mut &[u8]| -> Result<u32, String> {
        let (head, rest) = text.split_first_chunk().ok_or("a header block is cut off")?;
        *text = rest;
        Ok(u32::from_be_bytes(*head))
    };
    let string = |text: &mut &[u8]| -> Result<String, String> {
        let length = usize::try_from(number(text)?).map_err(|_| "a header is too long")?;
        let (head, rest) = text.split_at_checked(length).ok_or("a header block is cut off")?;
        *text = rest;
        String::from_utf8(head.to_vec()).map_err(|_| "a header is not UTF-8".into())
    };
    let count = number(&mut text)?;
    if count > MAX_HEADERS {
        return Err(format!("more than {MAX_HEADERS} headers"));
    }
    let mut headers = Headers::new();
    for _ in 0..count {
        let (name, value) = (string(&mut text)?, string(&mut text)?);
        headers.insert(name.to_ascii_lowercase(), value);
    }
    Ok(headers)
}

/// Writes the header blocks of one direction.
#[derive(Default)]
pub(crate) struct Writer {
    begun: bool,
}

impl Writer {
    pub(crate) fn write(&mut self, headers: &Headers) -> Vec<u8> {
        let mut text = Vec::new();
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
        text.extend(number(headers.len()));
        for (name, value) in headers {
            for part in [name, value] {
                text.extend(number(part.len()));
                text.extend_from_slice(part.as_bytes());
            }
        }
        let mut block = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            block.extend([0x78, 0x01]);
        }
        for stored in text.chunks(MAX_STORED) {
            let length = u16::try_from(stored.len()).unwrap_or(u16::MAX);
            block.push(0);
            block.extend(length.to_le_bytes());
            block.extend((!length).to_le_bytes());
            block.extend_from_slice(stored);
        }
        // An empty block, as a flush ends: some inflaters (Go's) hand out what they have only then.
        block.extend([0, 0, 0, 0xff, 0xff]);
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two blocks as zlib writes them with the dictionary, flushed after each.
    const FIRST: &str =
        "78f9e3c6a7c202253a50120fc82f02a555260b0320c9098dad4c502a66048970059714a526e6428b1ad654504400000000ffff";
    const SECOND: &str = "224b2ba8944a04000000ffff";

    fn bytes(hex: &str) -> Vec<u8> {
        let hex = hex.trim();
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    fn headers(list: &[(&str, &str)]) -> Headers {
        list.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect()
    }

    #[test]
    fn blocks_of_a_real_client() {
        let mut reader = Reader::new();
        assert_eq!(
            reader.read(&bytes(FIRST)).unwrap(),
            headers(&[("port", "80"), ("requestid", "0"), ("streamtype", "error")])
        );
        assert_eq!(
            reader.read(&bytes(SECOND)).unwrap(),
            headers(&[("port", "80"), ("requestid", "0"), ("streamtype", "data")])
        );
        assert!(Reader::new().read(&bytes(SECOND)).is_err(), "the second depends on the first");
    }

    #[test]
    fn own_blocks_are_read() {
        let (mut writer, mut reader) = (Writer::default(), Reader::new());
        assert!(Writer::default().write(&Headers::new()).ends_with(&[0, 0, 0, 0xff, 0xff]), "flushed");
        for n in 0..2000 {
            let sent = headers(&[("a", &n.to_string()), ("b", "x"), ("long", &"y".repeat(n))]);
            assert_eq!(reader.read(&writer.write(&sent)).unwrap(), sent, "{n}");
        }
        assert!(reader.read(&writer.write(&headers(&[("a", &"x".repeat(MAX_BLOCK))]))).unwrap_err().contains("longer"));
    }

    #[test]
    fn broken_blocks() {
        let whole = bytes(FIRST);
        for cut in 0..whole.len() {
            let _ = Reader::new().read(&whole[..cut]);
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x55;
            let _ = Reader::new().read(&changed);
        }
        assert!(Reader::new().read(b"GET / HTTP/1.1").is_err());
    }
}
