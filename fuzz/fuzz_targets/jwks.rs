//! Key sets from anywhere: no panic, and a set that is accepted has keys. What proxies are given of it is a set again, without
//! what is nobody's business.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_proxy_config::Jwks;
use weft_tls::jwks::{for_envoy, only_usable};

fuzz_target!(|text: &str| {
    if let Ok(given) = for_envoy(text) {
        let set: serde_json::Value = serde_json::from_str(&given).expect("JSON");
        for key in set["keys"].as_array().expect("a list") {
            assert!(["d", "p", "q", "dp", "dq", "qi", "oth", "k"].iter().all(|name| key.get(name).is_none()), "{given}");
        }
        assert_eq!(for_envoy(&given).as_deref(), Ok(&*given), "one form");
    }
    if let Ok(given) = only_usable(text) {
        assert!(Jwks::parse(&given).is_ok(), "{given}");
    }
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
