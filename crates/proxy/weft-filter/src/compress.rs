//! Compression of bodies: which responses, in which coding, and the work itself. The rules are those of Envoy's compressor
//! and decompressor. What a compressed body may become is bounded: few bytes can stand for many.

use bytes::Bytes;
use flate2::write::{GzEncoder, MultiGzDecoder};
use http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use std::io::{self, Write};
use weft_codec::{BodyError, BodyMap};
use weft_proxy_config::{Coding, Compressor, Decompressor};
use zstd::stream::raw::{DParameter, Operation as _};

/// A body may become so long whatever its ratio is.
const FREE: u64 = 64 * 1024;
/// Window of a zstd frame at most, in bits: 8 MiB.
const ZSTD_WINDOW: u32 = 23;
const BUFFER: usize = 4096;
/// Codings in one `accept-encoding` that are looked at.
const MAX_CODINGS: usize = 32;

/// The coding that a client wants most of those that are offered, which stand in the order of the filters. `None`: none.
pub fn choose(accept: &str, offered: &[(Coding, bool)]) -> Option<Coding> {
    let mut best: Option<(f32, &str)> = None;
    let mut refused = Vec::new();
    let known = |name: &str| offered.iter().find(|(coding, _)| names(name, *coding)).copied();
    for part in accept.split(',').take(MAX_CODINGS) {
        let mut words = part.split(';').map(str::trim);
        let name = words.next().unwrap_or_default();
        let quality = words.find_map(|word| word.strip_prefix("q=").or_else(|| word.strip_prefix("Q=")));
        let quality = quality.map_or(1.0, |text| text.trim().parse::<f32>().unwrap_or(0.0)).clamp(0.0, 1.0);
        if known(name).is_none() && name != "*" && !name.eq_ignore_ascii_case("identity") {
            continue;
        }
        if quality == 0.0 {
            refused.push(name);
        }
        let first = |name: &str| known(name).is_some_and(|(_, first)| first);
        let wins = best.is_none_or(|(most, by)| quality > most || (quality == most && first(name) && !first(by)));
        if quality > 0.0 && wins {
            best = Some((quality, name));
        }
    }
    match best?.1 {
        // What is refused by name is not meant by any other word.
        "*" => {
            let welcome = |coding: &Coding| !refused.iter().any(|name| names(name, *coding));
            offered.iter().map(|(coding, _)| *coding).find(welcome)
        }
        name => known(name).map(|(coding, _)| coding),
    }
}

fn names(name: &str, coding: Coding) -> bool {
    name.eq_ignore_ascii_case(coding.name())
}

/// This response is of a kind that is compressed, whoever asks for it.
pub fn suits(filter: &Compressor, status: StatusCode, headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH).map(|value| value.to_str().ok().and_then(|text| text.parse::<u64>().ok()));
    let spares_tag = filter.spares_etag && headers.contains_key(ETAG);
    length.is_none_or(|length| length.is_some_and(|length| length >= filter.min_length))
        && suits_type(filter, headers)
        && !headers.contains_key(CONTENT_ENCODING)
        && !forbids_changes(headers)
        && !spares_tag
        && !filter.spared.contains(&status.as_u16())
        && status != StatusCode::SWITCHING_PROTOCOLS
}

/// This response is of a media type that is compressed; one that does not say its type is.
pub fn suits_type(filter: &Compressor, headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else { return true };
    let kind = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    filter.types.iter().any(|known| known.eq_ignore_ascii_case(kind))
}

/// `cache-control: no-transform`.
fn forbids_changes(headers: &HeaderMap) -> bool {
    has_token(headers, &CACHE_CONTROL, "no-transform")
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|text| text.split(',')).any(|word| word.trim().eq_ignore_ascii_case(token))
}

/// The list that a header's lines make together, in their order (RFC 9110 §5.3). `None`: it is not there, or empty.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let mut lines = headers.get_all(name).into_iter().filter(|line| !line.is_empty());
    let first = lines.next()?;
    let mut rest = lines.peekable();
    if rest.peek().is_none() {
        return Some(first.clone());
    }
    let all = rest.fold(first.as_bytes().to_vec(), |all, line| [&all[..], b", ", line.as_bytes()].concat());
    HeaderValue::from_bytes(&all).ok()
}

/// What a client says that it takes, on however many lines it says so.
pub fn accepted(headers: &HeaderMap) -> Option<HeaderValue> {
    joined(headers, &ACCEPT_ENCODING)
}

/// Puts one more element at the end of a header that is a list; its lines become one.
fn add(headers: &mut HeaderMap, name: HeaderName, element: &'static str, separator: &str) {
    let value = match joined(headers, &name) {
        Some(told) => {
            HeaderValue::from_bytes(&[told.as_bytes(), separator.as_bytes(), element.as_bytes()].concat()).ok()
        }
        None => Some(HeaderValue::from_static(element)),
    };
    if let Some(value) = value {
        headers.insert(name, value);
    }
}

/// Tells caches that another client may get the response otherwise.
pub fn vary(headers: &mut HeaderMap) {
    if !has_token(headers, &VARY, ACCEPT_ENCODING.as_str()) {
        add(headers, VARY, "Accept-Encoding", ", ");
    }
}

/// The head of a response whose body is compressed.
pub fn compressed(filter: &Compressor, headers: &mut HeaderMap) {
    headers.remove(CONTENT_LENGTH);
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(filter.coding.name()));
    // A strong tag names these bytes, and they are others now.
    if let Some(tag) = headers.get(ETAG).filter(|tag| !matches!(tag.as_bytes(), [b'w' | b'W', b'/', ..])) {
        let weak = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()).ok().filter(|_| filter.weakens_etag);
        match weak {
            Some(weak) => headers.insert(ETAG, weak),
            None => headers.remove(ETAG),
        };
    }
}

/// Takes the coding off the head of a message that is to be taken apart; false when the message stays as it is.
pub fn opens(filter: &Decompressor, ignores: bool, headers: &mut HeaderMap) -> bool {
    let told = joined(headers, &CONTENT_ENCODING);
    let told = told.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default();
    // The last coding was applied last; Envoy, too, looks at one alone.
    let (rest, outer) = told.rsplit_once(',').map_or(("", told), |(rest, outer)| (rest.trim(), outer));
    if !names(outer.trim(), filter.coding) || (!ignores && forbids_changes(headers)) {
        return false;
    }
    let rest = HeaderValue::from_str(rest).ok().filter(|rest| !rest.is_empty());
    headers.remove(CONTENT_LENGTH);
    match rest {
        Some(rest) => headers.insert(CONTENT_ENCODING, rest),
        None => headers.remove(CONTENT_ENCODING),
    };
    true
}

/// Says to an endpoint that a coding is welcome.
pub fn advertise(filter: &Decompressor, headers: &mut HeaderMap) {
    if !has_token(headers, &ACCEPT_ENCODING, filter.coding.name()) {
        add(headers, ACCEPT_ENCODING, filter.coding.name(), ",");
    }
}

/// Compresses a body. Each piece goes out as it comes, so that a stream stays one.
pub enum Encoder {
    /// gzip.
    Gzip(GzEncoder<Vec<u8>>),
    /// brotli.
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    /// zstd.
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    /// It is done.
    Done,
}

impl Encoder {
    /// For one body.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(filter: &Compressor) -> io::Result<Self> {
        let level = u32::try_from(filter.level).unwrap_or_default();
        Ok(match filter.coding {
            Coding::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), flate2::Compression::new(level))),
            Coding::Brotli => {
                Self::Brotli(Box::new(brotli::CompressorWriter::new(Vec::new(), BUFFER, level, filter.window)))
            }
            Coding::Zstd => Self::Zstd(zstd::stream::write::Encoder::new(Vec::new(), filter.level)?),
        })
    }

    fn push(&mut self, data: &[u8]) -> io::Result<Vec<u8>> {
        fn through(writer: &mut impl Write, data: &[u8]) -> io::Result<()> {
            writer.write_all(data)?;
            writer.flush()
        }
        Ok(match self {
            Self::Gzip(writer) => {
                through(writer, data)?;
                std::mem::take(writer.get_mut())
            }
            Self::Brotli(writer) => {
                through(&mut **writer, data)?;
                std::mem::take(writer.get_mut())
            }
            Self::Zstd(writer) => {
                through(writer, data)?;
                std::mem::take(writer.get_mut())
            }
            Self::Done => Vec::new(),
        })
    }

    fn end(&mut self) -> io::Result<Vec<u8>> {
        match std::mem::replace(self, Self::Done) {
            Self::Gzip(writer) => writer.finish(),
            Self::Brotli(writer) => Ok(writer.into_inner()),
            Self::Zstd(writer) => writer.finish(),
            Self::Done => Ok(Vec::new()),
        }
    }
}

impl BodyMap for Encoder {
    fn data(&mut self, data: &[u8]) -> Result<Bytes, BodyError> {
        self.push(data).map(Bytes::from).map_err(|_| BodyError::Aborted("compression_failed"))
    }

    fn finish(&mut self) -> Result<Bytes, BodyError> {
        self.end().map(Bytes::from).map_err(|_| BodyError::Aborted("compression_failed"))
    }
}

/// Where a decoder writes to: no more than it may.
#[derive(Default)]
pub struct Bounded {
    bytes: Vec<u8>,
    left: u64,
}

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let length = data.len() as u64;
        self.left = self.left.checked_sub(length).ok_or(io::ErrorKind::FileTooLarge)?;
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes a body apart.
pub struct Decoder {
    kind: DecoderKind,
    max_ratio: u64,
    read: u64,
    made: u64,
}

enum DecoderKind {
    Gzip(Box<MultiGzDecoder<Bounded>>),
    Brotli(Box<brotli::DecompressorWriter<Bounded>>),
    Zstd(Box<ZstdDecoder>),
}

/// zstd, which tells whether a frame is over: the crate's own writer does not say that one is not.
struct ZstdDecoder {
    raw: zstd::stream::raw::Decoder<'static>,
    sink: Bounded,
    buffer: [u8; BUFFER],
    /// A frame has begun and is not over.
    open: bool,
}

impl ZstdDecoder {
    fn new() -> io::Result<Self> {
        let mut raw = zstd::stream::raw::Decoder::new()?;
        raw.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW))?;
        Ok(Self { raw, sink: Bounded::default(), buffer: [0; BUFFER], open: false })
    }

    fn write(&mut self, mut data: &[u8]) -> io::Result<()> {
        let mut more = false;
        while !data.is_empty() || more {
            let status = self.raw.run_on_buffers(data, &mut self.buffer)?;
            self.sink.write_all(&self.buffer[..status.bytes_written])?;
            data = &data[status.bytes_read..];
            self.open = status.remaining > 0;
            // Room left in the buffer says that nothing is held back.
            more = self.open && status.bytes_written == BUFFER;
        }
        Ok(())
    }

    fn end(&self) -> io::Result<()> {
        if self.open { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

impl DecoderKind {
    fn sink(&mut self) -> &mut Bounded {
        match self {
            Self::Gzip(writer) => writer.get_mut(),
            Self::Brotli(writer) => writer.get_mut(),
            Self::Zstd(decoder) => &mut decoder.sink,
        }
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Gzip(writer) => writer.write_all(data).and_then(|()| writer.flush()),
            Self::Brotli(writer) => writer.write_all(data).and_then(|()| writer.flush()),
            Self::Zstd(decoder) => decoder.write(data),
        }
    }

    /// The body is over; an error when it was not all.
    fn end(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(writer) => writer.try_finish(),
            Self::Brotli(writer) => writer.close(),
            Self::Zstd(decoder) => decoder.end(),
        }
    }
}

impl Decoder {
    /// For one body.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(filter: &Decompressor) -> io::Result<Self> {
        let kind = match filter.coding {
            Coding::Gzip => DecoderKind::Gzip(Box::new(MultiGzDecoder::new(Bounded::default()))),
            Coding::Brotli => {
                DecoderKind::Brotli(Box::new(brotli::DecompressorWriter::new(Bounded::default(), BUFFER)))
            }
            Coding::Zstd => DecoderKind::Zstd(Box::new(ZstdDecoder::new()?)),
        };
        Ok(Self { kind, max_ratio: u64::from(filter.max_ratio), read: 0, made: 0 })
    }

    fn run(&mut self, step: impl FnOnce(&mut DecoderKind) -> io::Result<()>) -> Result<Bytes, BodyError> {
        let most = self.read.saturating_mul(self.max_ratio).max(FREE);
        self.kind.sink().left = most.saturating_sub(self.made);
        let outcome = step(&mut self.kind);
        let bytes = std::mem::take(&mut self.kind.sink().bytes);
        self.made = self.made.saturating_add(bytes.len() as u64);
        match outcome {
            Ok(()) => Ok(bytes.into()),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                Err(BodyError::Aborted("decompression_ratio_exceeded"))
            }
            Err(_) => Err(BodyError::Aborted("decompression_failed")),
        }
    }
}

impl BodyMap for Decoder {
    fn data(&mut self, data: &[u8]) -> Result<Bytes, BodyError> {
        self.read = self.read.saturating_add(data.len() as u64);
        self.run(|kind| kind.write(data))
    }

    fn finish(&mut self) -> Result<Bytes, BodyError> {
        self.run(DecoderKind::end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Coding; 3] = [Coding::Gzip, Coding::Brotli, Coding::Zstd];

    fn compressor(coding: Coding) -> Compressor {
        Compressor {
            name: "c".into(),
            coding,
            level: 3,
            window: 18,
            min_length: 30,
            types: vec!["text/plain".into()],
            spares_etag: false,
            weakens_etag: false,
            hides_accept: false,
            spared: vec![206],
            choose_first: false,
        }
    }

    fn decompressor(coding: Coding) -> Decompressor {
        let name = "d".into();
        Decompressor { name, coding, max_ratio: 100, request: Some(false), response: Some(false), advertises: true }
    }

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn lines(name: HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn what_clients_want() {
        use Coding::{Brotli, Gzip};
        for (accept, offered, want) in [
            ("gzip", &[(Gzip, false)][..], Some(Gzip)),
            ("x-gzip", &[(Gzip, false)], None),
            ("GZIP", &[(Gzip, false)], Some(Gzip)),
            ("br", &[(Gzip, false)], None),
            ("", &[(Gzip, false)], None),
            ("gzip;q=0", &[(Gzip, false)], None),
            ("gzip;q=0, *", &[(Gzip, false)], None),
            ("gzip;q=0, *", &[(Gzip, false), (Brotli, false)], Some(Brotli)),
            ("identity, gzip", &[(Gzip, false)], None),
            ("identity;q=0.5, gzip", &[(Gzip, false)], Some(Gzip)),
            ("gzip;q=0.5, br;q=0.8", &[(Gzip, false), (Brotli, false)], Some(Brotli)),
            ("br, gzip", &[(Gzip, false), (Brotli, false)], Some(Brotli)),
            ("br, gzip", &[(Gzip, true), (Brotli, false)], Some(Gzip)),
            ("*", &[(Brotli, false), (Gzip, false)], Some(Brotli)),
            ("deflate, gzip;q=1.0, *;q=0.5", &[(Gzip, false)], Some(Gzip)),
            ("gzip;q=nonsense", &[(Gzip, false)], None),
        ] {
            assert_eq!(choose(accept, offered), want, "{accept} of {offered:?}");
        }
    }

    #[test]
    fn which_responses() {
        let filter = compressor(Coding::Gzip);
        for (list, status, want) in [
            (&[("content-type", "text/plain"), ("content-length", "30")][..], 200, true),
            (&[("content-type", "text/plain; charset=utf-8")], 200, true),
            (&[], 200, true),
            (&[("content-length", "29")], 200, false),
            (&[("content-length", "x")], 200, false),
            (&[("content-type", "image/png")], 200, false),
            (&[("content-encoding", "br")], 200, false),
            (&[("cache-control", "max-age=1, no-transform")], 200, false),
            (&[("content-type", "text/plain")], 206, false),
            (&[("etag", "\"a\"")], 200, true),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(suits(&filter, status, &headers(list)), want, "{list:?}");
        }
        let filter = Compressor { spares_etag: true, ..filter };
        assert!(!suits(&filter, StatusCode::OK, &headers(&[("etag", "\"a\"")])));
    }

    #[test]
    fn heads() {
        for (weakens, tag, want) in
            [(false, "\"a\"", None), (true, "\"a\"", Some("W/\"a\"")), (false, "W/\"a\"", Some("W/\"a\""))]
        {
            let mut got = headers(&[("etag", tag), ("content-length", "100")]);
            compressed(&Compressor { weakens_etag: weakens, ..compressor(Coding::Brotli) }, &mut got);
            assert_eq!(got.get(ETAG).map(|v| v.to_str().unwrap()), want);
            assert!(got[CONTENT_ENCODING] == "br" && !got.contains_key(CONTENT_LENGTH));
        }
        for (told, want) in [
            (&[][..], "Accept-Encoding"),
            (&["origin"], "origin, Accept-Encoding"),
            (&["accept-encoding"], "accept-encoding"),
            (&["Origin", "Cookie"], "Origin, Cookie, Accept-Encoding"),
            (&["", "Cookie"], "Cookie, Accept-Encoding"),
        ] {
            let mut got = lines(VARY, told);
            vary(&mut got);
            assert!(got.get_all(VARY).iter().eq([want]), "{told:?}: {got:?}");
        }
        for (told, want) in [(&[][..], "br"), (&["gzip", "deflate;q=0.5"], "gzip, deflate;q=0.5,br")] {
            let mut got = lines(ACCEPT_ENCODING, told);
            advertise(&decompressor(Coding::Brotli), &mut got);
            assert!(got.get_all(ACCEPT_ENCODING).iter().eq([want]), "{told:?}: {got:?}");
        }
        let told = lines(ACCEPT_ENCODING, &["identity;q=0.5", "gzip"]);
        assert_eq!(accepted(&told).unwrap(), "identity;q=0.5, gzip");
        for (told, want, rest) in [
            (&["gzip"][..], true, &[][..]),
            (&["br, gzip"], true, &["br"]),
            (&["gzip, br"], false, &["gzip, br"]),
            (&[""], false, &[""]),
            (&["br", "gzip"], true, &["br"]),
            (&["br", "zstd", "gzip"], true, &["br, zstd"]),
            (&["gzip", "br"], false, &["gzip", "br"]),
        ] {
            let mut got = lines(CONTENT_ENCODING, told);
            assert_eq!(opens(&decompressor(Coding::Gzip), false, &mut got), want, "{told:?}");
            assert!(got.get_all(CONTENT_ENCODING).iter().eq(rest), "{told:?}: {got:?}");
        }
    }

    #[test]
    fn there_and_back_again_in_pieces() {
        let pieces: Vec<Vec<u8>> = (0..20).map(|i| format!("piece {i} ").repeat(i * 20).into_bytes()).collect();
        for coding in ALL {
            let (mut encoder, mut decoder) =
                (Encoder::new(&compressor(coding)).unwrap(), Decoder::new(&decompressor(coding)).unwrap());
            let (mut passed, mut small) = (Vec::new(), 0);
            for piece in &pieces {
                let bytes = encoder.data(piece).unwrap();
                small += bytes.len();
                let before = passed.len();
                passed.extend_from_slice(&decoder.data(&bytes).unwrap());
                assert_eq!(passed.len() - before, piece.len(), "{coding:?}: a piece is not kept back");
            }
            let last = encoder.finish().unwrap();
            passed.extend_from_slice(&decoder.data(&last).unwrap());
            passed.extend_from_slice(&decoder.finish().unwrap());
            assert!(passed == pieces.concat() && small < passed.len() / 4, "{coding:?}: {small} of {}", passed.len());
        }
    }

    #[test]
    fn few_bytes_that_stand_for_many() {
        for coding in ALL {
            let mut encoder = Encoder::new(&Compressor { level: 9, ..compressor(coding) }).unwrap();
            let mut bomb = encoder.data(&vec![0; 8 << 20]).unwrap().to_vec();
            bomb.extend_from_slice(&encoder.finish().unwrap());
            let mut decoder = Decoder::new(&decompressor(coding)).unwrap();
            let mut made = 0;
            let stopped = bomb.chunks(1000).any(|piece| match decoder.data(piece) {
                Ok(bytes) => {
                    made += bytes.len();
                    false
                }
                Err(error) => error.to_string() == "decompression_ratio_exceeded",
            });
            assert!(stopped && made as u64 <= (bomb.len() as u64 * 100).max(FREE), "{coding:?}: {made}");
        }
    }

    #[test]
    fn bodies_that_break_off() {
        let text: Vec<u8> = (0..60_000_u32).flat_map(|i| (i * i).to_le_bytes()).collect();
        for coding in ALL {
            let mut encoder = Encoder::new(&compressor(coding)).unwrap();
            let mut whole = encoder.data(&text).unwrap().to_vec();
            whole.extend_from_slice(&encoder.finish().unwrap());
            for cut in [1, 5, whole.len() / 2, whole.len() - 1] {
                let mut decoder = Decoder::new(&decompressor(coding)).unwrap();
                assert!(decoder.data(&whole[..cut]).is_err() || decoder.finish().is_err(), "{coding:?}: {cut}");
            }
            let mut decoder = Decoder::new(&decompressor(coding)).unwrap();
            assert!(decoder.data(&whole).unwrap() == text && decoder.finish().is_ok(), "{coding:?}");
        }
        // A body may be of several frames; each must be whole.
        let frame = zstd::encode_all(&text[..4096], 3).unwrap();
        let twice = [&frame[..], &frame[..]].concat();
        for (bytes, is_whole) in [(&twice[..], true), (&twice[..frame.len() + 6], false)] {
            let mut decoder = Decoder::new(&decompressor(Coding::Zstd)).unwrap();
            let length = decoder.data(bytes).unwrap().len();
            assert!(decoder.finish().is_ok() == is_whole && (length == 8192) == is_whole, "{}", bytes.len());
        }
    }

    #[test]
    fn what_is_no_such_body() {
        for coding in ALL {
            let mut decoder = Decoder::new(&decompressor(coding)).unwrap();
            let rubbish = vec![0xa5; 4000];
            assert!(decoder.data(&rubbish).is_err() || decoder.finish().is_err(), "{coding:?}");
        }
    }
}
