//! Key sets from anywhere: no panic, and a set that is accepted has keys.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_proxy_config::Jwks;

fuzz_target!(|text: &str| {
    if let Ok(set) = Jwks::parse(text) {
        assert!(!set.keys.is_empty());
        for key in &set.keys {
            if let Some(algorithm) = key.algorithm {
                assert!(key.key.fits(algorithm));
                assert!(!key.key.verifies(algorithm, b"text", b""));
            }
        }
    }
});
