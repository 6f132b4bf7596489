//! Traces: the context that travels in a request's headers, whether a request is traced, and a span as it is reported.
//! Sending reports is the data plane's matter.
//!
//! Rules: Envoy's tracers `zipkin` and `opentelemetry`, B3 (github.com/openzipkin/b3-propagation), W3C Trace Context.

mod context;
pub mod otlp;
pub mod zipkin;

pub use context::{Context, Told, read, write};

use http::{HeaderMap, HeaderName, HeaderValue};
use std::borrow::Cow;
use std::time::{Duration, SystemTime};
use weft_proxy_config::{TraceProtocol, Tracing};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CLIENT_TRACE_ID: HeaderName = HeaderName::from_static("x-client-trace-id");
const FORCE_TRACE: HeaderName = HeaderName::from_static("x-envoy-force-trace");
/// Where the decision stands in a UUID: the digit of its version.
const DECISION: usize = 14;

/// Which side of a call a span is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// The caller's.
    Client,
    /// The called one's.
    Server,
}

/// A finished span.
#[derive(Debug, Clone)]
pub struct Span {
    /// Where it belongs.
    pub context: Context,
    /// What was done.
    pub name: String,
    /// Side.
    pub kind: SpanKind,
    /// When it began.
    pub began: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// It ended in an error.
    pub failed: bool,
    /// Tags.
    pub tags: Vec<(Cow<'static, str>, String)>,
}

/// The trace that a request with these headers belongs to. Changes `x-request-id` when the decision is made here.
pub fn begin(tracing: &Tracing, protocol: TraceProtocol, kind: SpanKind, headers: &mut HeaderMap) -> Context {
    let wanted = decide(tracing, headers);
    let told = read(protocol, headers);
    Context::next(protocol, kind, told, wanted)
}

/// Whether the request is traced when its trace has no decision yet.
fn decide(tracing: &Tracing, headers: &mut HeaderMap) -> bool {
    let lucky = |share: u32| share >= 1_000_000 || fastrand::u32(..1_000_000) < share;
    if !tracing.by_request_id {
        return lucky(tracing.random_sampling) && lucky(tracing.overall_sampling);
    }
    // Envoy's digits: 9 by chance, a and b on demand; any other says nothing.
    let digit = headers.get(REQUEST_ID).and_then(|id| id.as_bytes().get(DECISION).copied());
    let found = match digit {
        Some(digit @ (b'9' | b'a' | b'b')) => Some(digit),
        _ if headers.contains_key(CLIENT_TRACE_ID) && lucky(tracing.client_sampling) => Some(b'b'),
        _ if headers.contains_key(FORCE_TRACE) => Some(b'a'),
        _ if lucky(tracing.random_sampling) => Some(b'9'),
        _ => None,
    };
    let found = found.filter(|_| lucky(tracing.overall_sampling));
    note(headers, found.unwrap_or(b'4'));
    found.is_some()
}

/// Writes the decision into `x-request-id`, when that is a UUID.
fn note(headers: &mut HeaderMap, digit: u8) {
    let Some(id) = headers.get_mut(REQUEST_ID) else { return };
    let bytes = id.as_bytes();
    if bytes.len() != 36 || bytes[DECISION] == digit || bytes[8] != b'-' || bytes[13] != b'-' {
        return;
    }
    let mut changed = bytes.to_vec();
    changed[DECISION] = digit;
    if let Ok(value) = HeaderValue::from_bytes(&changed) {
        *id = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracing(random: u32) -> Tracing {
        Tracing {
            random_sampling: random,
            client_sampling: 1_000_000,
            overall_sampling: 1_000_000,
            by_request_id: true,
            provider: None,
            max_path_length: 256,
            tags: Vec::new(),
            spawn_upstream_span: false,
            propagate: true,
        }
    }

    #[test]
    fn decisions() {
        let fresh = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";
        let sampled = "6ba7b810-9dad-91d1-80b4-00c04fd430c8";
        for (random, id, more, want, digit) in [
            (1_000_000, fresh, None, true, b'9'),
            (0, fresh, None, false, b'4'),
            (0, sampled, None, true, b'9'),
            (0, fresh, Some("x-client-trace-id"), true, b'b'),
            (0, fresh, Some("x-envoy-force-trace"), true, b'a'),
            (0, "no-uuid", None, false, b'-'),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_static(id));
            if let Some(name) = more {
                headers.insert(name, HeaderValue::from_static("1"));
            }
            assert_eq!(decide(&tracing(random), &mut headers), want, "{random} {id} {more:?}");
            let found = headers[REQUEST_ID].as_bytes().get(DECISION).copied().unwrap_or(b'-');
            assert_eq!(found, digit, "{random} {id} {more:?}");
        }
        let none = Tracing { overall_sampling: 0, ..tracing(1_000_000) };
        assert!(!decide(&none, &mut HeaderMap::new()), "the upper bound");
    }
}
