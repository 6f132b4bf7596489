//! Tokens from anywhere: no panic, bounded work, and what is accepted is three parts of base64url. Without a key that fits
//! nothing is ever verified.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_filter::jwt::token::{MAX_TOKEN, Token};
use weft_proxy_config::Jwks;

fuzz_target!(|text: &str| {
    if let Ok(token) = Token::parse(text) {
        assert!(text.len() <= MAX_TOKEN && text.split('.').count() == 3);
        assert!(!text.contains(['=', '+', '/', ' ']));
        assert!(token.signed_by(&Jwks::default()).is_err());
        let _ = token.audiences().count();
    }
    // The same bytes as claims.
    let claims = weft_filter::jwt::claims::object(text.as_bytes(), weft_filter::jwt::token::JwtFailure::PayloadJson);
    if let Ok(claims) = claims {
        let _ = weft_filter::jwt::claims::json(&claims).to_string();
    }
});
