//! `x-forwarded-client-cert`: whatever a certificate's names and the client's header are made of, the value stays a list whose
//! last element is this hop's, with this hop's keys and no others.
//!
//! Input: lines. The first byte of each says what it is: a header line of the client, or a name of the certificate.

#![no_main]

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use weft_codec::client_cert::{Hop, MAX_CLIENT_CERT, X_FORWARDED_CLIENT_CERT, append, set};

/// Elements of a value, each its pairs; quotes as the format has them.
fn parse(value: &str) -> Vec<Vec<(String, String)>> {
    let mut elements = vec![vec![]];
    let (mut key, mut text, mut in_value) = (String::new(), String::new(), false);
    let (mut inside, mut escaped) = (false, false);
    for c in value.chars().chain([',']) {
        match c {
            c if escaped => {
                text.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => inside = !inside,
            '=' if !inside && !in_value => {
                key = std::mem::take(&mut text);
                in_value = true;
            }
            ',' | ';' if !inside => {
                let pair = (std::mem::take(&mut key), std::mem::take(&mut text));
                elements.last_mut().unwrap().push(pair);
                in_value = false;
                if c == ',' {
                    elements.push(vec![]);
                }
            }
            c => text.push(c),
        }
    }
    assert!(!inside && !escaped, "{value:?}");
    elements.pop();
    elements
}

fuzz_target!(|text: &str| {
    let (mut headers, mut uris, mut dns, mut subject, mut by) = (HeaderMap::new(), vec![], vec![], None, None);
    for line in text.split('\x1e') {
        let mut chars = line.chars();
        let (Some(what), rest) = (chars.next(), chars.as_str()) else { continue };
        match what as u32 % 5 {
            0 => {
                let Ok(value) = HeaderValue::from_bytes(rest.as_bytes()) else { continue };
                headers.append(X_FORWARDED_CLIENT_CERT, value);
            }
            1 => uris.push(Arc::<str>::from(rest)),
            2 => dns.push(Arc::<str>::from(rest)),
            3 => subject = Some(rest),
            _ => by = Some(rest),
        }
    }
    let hop = Hop { by, hash: "ab", subject, uris: Some(&uris), dns: &dns, ..Hop::default() };
    let clean = |text: &str| text.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>();
    let mut want: Vec<(String, String)> = Vec::new();
    want.extend(by.map(|v| ("By".to_string(), clean(v))));
    want.push(("Hash".into(), "ab".into()));
    want.extend(subject.map(|v| ("Subject".to_string(), clean(v))));
    want.extend(uris.iter().map(|v| ("URI".to_string(), clean(v))));
    if uris.is_empty() {
        want.push(("URI".into(), String::new()));
    }
    want.extend(dns.iter().map(|v| ("DNS".to_string(), clean(v))));

    let element = hop.element();
    let shown = |headers: &HeaderMap| {
        let mut values = headers.get_all(X_FORWARDED_CLIENT_CERT).iter();
        let value = String::from_utf8(values.next().expect("one").as_bytes().to_vec()).expect("text");
        assert!(values.next().is_none());
        value
    };
    let mut appended = headers.clone();
    append(&mut appended, &element);
    let value = shown(&appended);
    assert!(value.len() <= MAX_CLIENT_CERT.max(element.len()));
    assert_eq!(parse(&value).last(), Some(&want), "{value:?}");
    set(&mut headers, &element);
    assert_eq!(parse(&shown(&headers)), [want]);
});
