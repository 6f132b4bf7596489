//! PROXY headers from anywhere: no panic.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = weft_codec::proxy_protocol::parse(bytes);
});
