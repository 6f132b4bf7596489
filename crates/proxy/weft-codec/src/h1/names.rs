//! Names of headers. Those of the standard cost nothing; others would cost an allocation each time, so that a thread
//! remembers the ones it saw last.

use http::HeaderName;
use http::header::InvalidHeaderName;
use std::cell::RefCell;

/// Names remembered.
const SLOTS: usize = 128;
/// Longest name that is remembered; bounds what a client can make a thread keep.
const LONGEST: usize = 40;

/// As it was written, and what it is.
type Slot = Option<(Box<[u8]>, HeaderName)>;

thread_local! {
    static SEEN: RefCell<Vec<Slot>> = const { RefCell::new(Vec::new()) };
}

/// The name that `bytes` spell, in any case.
///
/// # Errors
/// When it is no token (RFC 9110 §5.6.2).
pub fn name(bytes: &[u8]) -> Result<HeaderName, InvalidHeaderName> {
    let is_own = matches!(bytes, [b'x' | b'X', b'-', ..]) || bytes.len() > 20;
    if !is_own || bytes.len() > LONGEST {
        return HeaderName::from_bytes(bytes);
    }
    SEEN.with(|seen| {
        let mut seen = seen.borrow_mut();
        if seen.is_empty() {
            seen.resize_with(SLOTS, || None);
        }
        let slot = &mut seen[place(bytes)];
        match slot {
            Some((spelled, name)) if **spelled == *bytes => Ok(name.clone()),
            _ => {
                let name = HeaderName::from_bytes(bytes)?;
                *slot = Some((bytes.into(), name.clone()));
                Ok(name)
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
                assert_eq!(name(spelled.as_bytes()).unwrap().as_str(), spelled.to_ascii_lowercase());
            }
        }
        let long = format!("x-{}", "a".repeat(100));
        assert_eq!(name(long.as_bytes()).unwrap().as_str(), long);
        for wrong in ["", "x y", "x-\0", "x-y:"] {
            assert!(name(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
