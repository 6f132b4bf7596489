//! Paths and hosts from anywhere: no panic, and what comes out is a fixed point without dot segments.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_route::normalize::{HostNormalization, host, path};
use weft_route::{EscapedSlashes, PathNormalization};

fuzz_target!(|text: &str| {
    for strip_port in [false, true] {
        let how = HostNormalization { strip_port, strip_trailing_dot: true };
        let once = host(text, how);
        assert!(!once.bytes().any(|b| b.is_ascii_uppercase()));
    }
    for escaped_slashes in [EscapedSlashes::Keep, EscapedSlashes::Reject, EscapedSlashes::UnescapeAndForward] {
        let how = PathNormalization { rfc3986: true, merge_slashes: true, escaped_slashes };
        let Ok(once) = path(text, &how) else { continue };
        assert!(once.path().starts_with('/') && !once.path().contains("//") && !once.path().contains('\\'));
        assert!(!once.path().split('/').any(|s| matches!(s.split(';').next(), Some("." | ".."))));
        let twice = path(&once.path_and_query, &how).expect("what came out goes in");
        assert_eq!(once.path_and_query, twice.path_and_query);
    }
});
