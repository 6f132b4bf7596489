//! Cross-origin requests (Fetch standard): preflights are answered here, answers to allowed origins are marked.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    ORIGIN,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use std::borrow::Cow;
use weft_codec::{Flags, LocalReply};
use weft_route::CorsPolicy;

const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");
const TRUE: HeaderValue = HeaderValue::from_static("true");

/// Details word of the answer to a preflight.
pub const DETAILS: &str = "cors_response";

/// What the filter makes of a request.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing to do.
    Pass,
    /// Mark the response for this origin.
    Allowed(HeaderValue),
    /// The answer to a preflight.
    Reply(Box<LocalReply>),
}

/// Looks at a request.
pub fn request(policy: &CorsPolicy, method: &Method, headers: &HeaderMap) -> Outcome {
    let Some(origin) = headers.get(ORIGIN).filter(|o| !o.is_empty()) else { return Outcome::Pass };
    let allowed = policy.origins.iter().any(|matcher| matcher.matches(origin.as_bytes()));
    let preflight =
        method == Method::OPTIONS && headers.get(ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|m| !m.is_empty());
    match (allowed, preflight) {
        (true, true) => Outcome::Reply(Box::new(preflight_reply(policy, Some(origin), headers))),
        (true, false) => Outcome::Allowed(origin.clone()),
        (false, true) if !policy.forward_unmatched_preflights => {
            Outcome::Reply(Box::new(preflight_reply(policy, None, headers)))
        }
        (false, _) => Outcome::Pass,
    }
}

fn empty_reply() -> LocalReply {
    LocalReply {
        status: StatusCode::OK,
        details: Cow::Borrowed(DETAILS),
        flags: Flags::NONE,
        body: bytes::Bytes::new(),
        headers: HeaderMap::new(),
        grpc_status: None,
    }
}

/// The answer to a preflight. Without an `origin` that may read anything it says, as Envoy's, what others may do: no browser
/// lets the script on then.
fn preflight_reply(policy: &CorsPolicy, origin: Option<&HeaderValue>, request: &HeaderMap) -> LocalReply {
    let mut reply = empty_reply();
    let headers = &mut reply.headers;
    if let Some(origin) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
    if policy.credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
    }
    let optional = [
        (ACCESS_CONTROL_ALLOW_METHODS, &policy.methods),
        (ACCESS_CONTROL_ALLOW_HEADERS, &policy.headers),
        (ACCESS_CONTROL_MAX_AGE, &policy.max_age),
        (ACCESS_CONTROL_EXPOSE_HEADERS, origin.map_or(&None, |_| &policy.expose)),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            headers.insert(name, value.clone());
        }
    }
    if policy.private_network && request.get(REQUEST_PRIVATE_NETWORK).is_some_and(|v| v == "true") {
        headers.insert(ALLOW_PRIVATE_NETWORK, TRUE);
    }
    reply
}

/// Marks the response to an allowed origin.
pub fn response(policy: &CorsPolicy, origin: HeaderValue, headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    if policy.credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
    }
    if let Some(expose) = &policy.expose {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_route::StringMatcher;

    fn policy() -> CorsPolicy {
        CorsPolicy {
            origins: vec![StringMatcher::Exact("https://a.example".into())],
            methods: Some(HeaderValue::from_static("GET,POST")),
            max_age: Some(HeaderValue::from_static("86400")),
            credentials: true,
            forward_unmatched_preflights: true,
            ..CorsPolicy::default()
        }
    }

    fn headers(origin: &'static str, preflight: bool) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ORIGIN, HeaderValue::from_static(origin));
        if preflight {
            headers.insert(ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("POST"));
        }
        headers
    }

    #[test]
    fn preflights_are_answered() {
        let Outcome::Reply(reply) = request(&policy(), &Method::OPTIONS, &headers("https://a.example", true)) else {
            panic!("no reply");
        };
        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(reply.headers[ACCESS_CONTROL_ALLOW_METHODS], "GET,POST");
        assert_eq!(reply.headers[ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
    }

    #[test]
    fn other_origins_pass_unmarked() {
        let strange = headers("https://b.example", true);
        assert!(matches!(request(&policy(), &Method::OPTIONS, &strange), Outcome::Pass));
        let strict = CorsPolicy { forward_unmatched_preflights: false, ..policy() };
        let Outcome::Reply(reply) = request(&strict, &Method::OPTIONS, &strange) else { panic!("no reply") };
        assert!(!reply.headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
        assert_eq!(reply.headers[ACCESS_CONTROL_ALLOW_METHODS], "GET,POST");
        assert!(matches!(request(&policy(), &Method::GET, &HeaderMap::new()), Outcome::Pass));
    }

    #[test]
    fn answers_are_marked() {
        let Outcome::Allowed(origin) = request(&policy(), &Method::GET, &headers("https://a.example", false)) else {
            panic!("not allowed");
        };
        let mut response_headers = HeaderMap::new();
        response(&policy(), origin, &mut response_headers);
        assert_eq!(response_headers[ACCESS_CONTROL_ALLOW_ORIGIN], "https://a.example");
    }
}
