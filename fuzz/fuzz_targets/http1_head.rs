//! Bytes of an HTTP/1 connection, heads and bodies one after another: no panic, and what is read does not depend on where the
//! bytes were cut. What is read of a request, written and read again is the same.

#![no_main]

use bytes::{Bytes, BytesMut};
use http::Method;
use libfuzzer_sys::fuzz_target;
use weft_codec::h1::body::Decoder;
use weft_codec::h1::scan::Scan;
use weft_codec::h1::{Framing, HeadLimits, encode, head};

const LIMITS: HeadLimits = HeadLimits { bytes: 8192, headers: 32 };

/// What the requests in `pieces` are, up to the first that is refused or incomplete.
fn read(pieces: &[&[u8]]) -> String {
    let (mut scan, mut buffer, mut body) = (Scan::default(), BytesMut::new(), None::<Decoder>);
    let mut seen = String::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            if let Some(decoder) = &mut body {
                match decoder.next(&mut buffer) {
                    Err(fault) => return seen + &format!("[{fault}]"),
                    Ok(Some(frame)) => match frame.into_data() {
                        Ok(data) => seen.extend(data.iter().map(|byte| char::from(*byte))),
                        Err(frame) => seen += &format!("{:?}", frame.trailers_ref().map(|map| map.len())),
                    },
                    Ok(None) if decoder.is_done() => body = None,
                    Ok(None) => break,
                }
                continue;
            }
            match scan.find(&buffer) {
                Err(_) => return seen + "[refused]",
                Ok(None) => break,
                Ok(Some((first, end))) => {
                    scan.restart();
                    let bytes = buffer.split_to(end).freeze().slice(first..);
                    let Ok(request) = head::request(&bytes, LIMITS) else { return seen + "[refused]" };
                    again(&request);
                    seen += &format!("<{} {:?}>", request.request.uri(), request.framing);
                    body = Some(Decoder::new(request.framing));
                }
            }
        }
    }
    seen
}

/// A request that was let in reads the same behind this proxy.
fn again(request: &head::RequestHead) {
    let (mut parts, ()) = {
        let mut copy = http::Request::new(());
        *copy.method_mut() = request.request.method().clone();
        *copy.uri_mut() = request.request.uri().clone();
        *copy.headers_mut() = request.request.headers().clone();
        copy.into_parts()
    };
    parts.headers.remove("transfer-encoding");
    if parts.method == Method::CONNECT || parts.uri.authority().is_some() || parts.uri.path_and_query().is_none() {
        return;
    }
    let length = match request.framing {
        Framing::None => Some(0),
        Framing::Length(length) => Some(length),
        _ => None,
    };
    let mut out = Vec::new();
    encode::request(&mut out, encode::Asking::from(&parts), length);
    let bytes = Bytes::from(out);
    assert_eq!(Scan::default().find(&bytes).expect("written"), Some((0, bytes.len())));
    let written = head::request(&bytes, HeadLimits { bytes: usize::MAX, headers: 64 }).expect("read again");
    assert_eq!(written.framing, request.framing);
    assert_eq!(written.request.uri(), request.request.uri());
}

fuzz_target!(|bytes: &[u8]| {
    let singly: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(read(&[bytes]), read(&singly));
    if let Ok(Some((first, end))) = Scan::response().find(bytes) {
        let _ = head::response(&Bytes::copy_from_slice(&bytes[first..end]), &Method::GET, HeadLimits::RESPONSE);
    }
});
