//! Names of headers. Looking at one byte by byte costs more than anything else about a header, and one that is not of the
//! standard would cost an allocation each time: a thread remembers the names it saw last, and what they mean to a proxy.

use crate::marks::HeaderMarks;
use http::HeaderName;
use http::header::InvalidHeaderName;
use std::cell::RefCell;

/// Names remembered.
const SLOTS: usize = 256;
/// Longest name that is remembered; bounds what a client can make a thread keep.
const LONGEST: usize = 40;

/// A name as it was written, and what it is.
struct Slot {
    spelled: Box<[u8]>,
    name: HeaderName,
    mark: HeaderMarks,
}

thread_local! {
    static SEEN: RefCell<Vec<Option<Slot>>> = const { RefCell::new(Vec::new()) };
}

/// The name that `bytes` spell, in any case, and its mark.
///
/// # Errors
/// When it is no token (RFC 9110 §5.6.2).
pub fn name(bytes: &[u8]) -> Result<(HeaderName, HeaderMarks), InvalidHeaderName> {
    if bytes.len() > LONGEST {
        let name = HeaderName::from_bytes(bytes)?;
        let mark = HeaderMarks::of_name(name.as_str());
        return Ok((name, mark));
    }
    SEEN.with(|seen| {
        let mut seen = seen.borrow_mut();
        if seen.is_empty() {
            seen.resize_with(SLOTS, || None);
        }
        let slot = &mut seen[place(bytes)];
        match slot {
            Some(known) if *known.spelled == *bytes => Ok((known.name.clone(), known.mark)),
            _ => {
                let name = HeaderName::from_bytes(bytes)?;
                let mark = HeaderMarks::of_name(name.as_str());
                *slot = Some(Slot { spelled: bytes.into(), name: name.clone(), mark });
                Ok((name, mark))
            }
        }
    })
}

/// Where a name is remembered. It needs no more than to set the usual ones apart.
fn place(bytes: &[u8]) -> usize {
    let at = |index: usize| bytes.get(index).copied().map_or(0, usize::from);
    let length = bytes.len();
    let mixed =
        length * 31 + at(2) * 7 + at(length / 2) * 13 + at(length.wrapping_sub(1)) * 5 + at(length.wrapping_sub(4));
    mixed % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_each_time() {
        for spelled in
            ["Host", "X-Request-Id", "x-request-id", "x-b3-traceid", "content-length", "x-envoy-upstream-rq-timeout-ms"]
        {
            for _ in 0..2 {
                let (name, mark) = name(spelled.as_bytes()).unwrap();
                assert_eq!(name.as_str(), spelled.to_ascii_lowercase());
                assert_eq!(mark, HeaderMarks::of_name(name.as_str()));
            }
        }
        let long = format!("x-{}", "a".repeat(100));
        assert_eq!(name(long.as_bytes()).unwrap().0.as_str(), long);
        for wrong in ["", "x y", "x-\0", "x-y:"] {
            assert!(name(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
