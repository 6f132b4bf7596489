//! Bytes of an HTTP/1 connection: no panic, and the outcome does not depend on where they were cut.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_codec::guard::FramingGuard;

fuzz_target!(|bytes: &[u8]| {
    let whole = FramingGuard::default().follow(bytes).is_ok();
    let mut guard = FramingGuard::default();
    let split = bytes.iter().try_for_each(|byte| guard.follow(std::slice::from_ref(byte))).is_ok();
    assert_eq!(whole, split);
});
