//! Where tokens are in a request: headers, query parameters, cookies.

use http::header::COOKIE;
use http::{HeaderName, HeaderValue};
use smallvec::SmallVec;
use std::borrow::Cow;
use weft_core::Strng;
use weft_proxy_config::JwtAuthn;
use weft_route::RequestView;

/// Most tokens looked at in one request: each costs a signature.
const MAX_TOKENS: usize = 16;

/// Where a token was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A header.
    Header(HeaderName),
    /// A query parameter.
    Param(Strng),
    /// A cookie.
    Cookie,
}

/// A token, or what stands where one is expected.
#[derive(Debug)]
pub struct Found {
    /// Its text.
    pub token: String,
    /// Where it was.
    pub place: Place,
    /// Issuers whose tokens may be there.
    pub providers: SmallVec<[usize; 2]>,
}

/// All tokens in the places of these providers. Of more than can be looked at the last is kept as a text that is no token,
/// so that the request is refused.
pub fn find(filter: &JwtAuthn, providers: &[usize], request: &RequestView<'_>) -> Vec<Found> {
    let mut all = Vec::new();
    for number in providers {
        let Some(provider) = filter.providers.get(*number) else { continue };
        for (name, prefix) in &provider.headers {
            for value in request.headers.get_all(name) {
                if let Some(token) = in_header(value, prefix) {
                    add(&mut all, *number, Place::Header(name.clone()), token);
                }
            }
        }
        for name in &provider.params {
            for pair in request.query.unwrap_or_default().split('&').filter(|pair| param_name(pair) == **name) {
                let value = pair.split_once('=').map_or("", |(_, value)| value);
                add(&mut all, *number, Place::Param(name.clone()), decoded(value).into_owned());
            }
        }
        for name in &provider.cookies {
            for value in request.headers.get_all(COOKIE) {
                for token in in_cookies(value, name) {
                    add(&mut all, *number, Place::Cookie, token);
                }
            }
        }
    }
    all
}

fn add(all: &mut Vec<Found>, provider: usize, place: Place, token: String) {
    if let Some(known) = all.iter_mut().find(|found| found.place == place && found.token == token) {
        if !known.providers.contains(&provider) {
            known.providers.push(provider);
        }
        return;
    }
    let token = if all.len() >= MAX_TOKENS { String::from("too many tokens") } else { token };
    if all.len() <= MAX_TOKENS {
        all.push(Found { token, place, providers: SmallVec::from_slice(&[provider]) });
    }
}

/// What follows the prefix, as far as it has the characters of a token. Without a prefix it is the whole value. A value that
/// is not text is there, and no token.
fn in_header(value: &HeaderValue, prefix: &str) -> Option<String> {
    let Ok(text) = value.to_str() else { return Some(String::from("not text")) };
    if prefix.is_empty() {
        return Some(text.trim().to_string());
    }
    let after = &text[text.find(prefix)? + prefix.len()..];
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let start = after.trim_start_matches(|c| !is_part(c));
    let end = start.find(|c| !is_part(c)).unwrap_or(start.len());
    Some(start[..end].to_string())
}

/// The values of all cookies of that name, whatever the others hold. One that is not text is there, and no token.
fn in_cookies(value: &HeaderValue, name: &str) -> Vec<String> {
    let pairs = value.as_bytes().split(|byte| *byte == b';').filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        Some((pair[..at].trim_ascii(), pair[at + 1..].trim_ascii()))
    });
    let text = |value| std::str::from_utf8(value).unwrap_or("not text").trim_matches('"').to_string();
    pairs.filter(|(key, _)| *key == name.as_bytes()).map(|(_, value)| text(value)).collect()
}

/// Name of a `name=value` pair, decoded: the endpoint decodes it too.
pub(crate) fn param_name(pair: &str) -> Cow<'_, str> {
    decoded(pair.split_once('=').map_or(pair, |(name, _)| name))
}

/// `%xx` and `+` decoded; what is not UTF-8 then is left as it was.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match (first, code.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = &after[2..];
            }
            (b'+', _) => {
                out.push(b' ');
                rest = after;
            }
            (byte, _) => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8(out).map_or(Cow::Borrowed(text), Cow::Owned)
}
