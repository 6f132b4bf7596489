//! Spans as Zipkin takes them: a JSON list, version 2 (zipkin.io/zipkin-api).

use super::{Span, SpanKind};
use serde_json::{Map, Value, json};
use std::time::{Duration, UNIX_EPOCH};

/// Type of a report's body.
pub const CONTENT_TYPE: &str = "application/json";

/// The body of a report.
pub fn report(service: &str, spans: &[Span]) -> Vec<u8> {
    let list: Vec<Value> = spans.iter().map(|span| of(service, span)).collect();
    Value::Array(list).to_string().into_bytes()
}

fn of(service: &str, span: &Span) -> Value {
    let began = span.began.duration_since(UNIX_EPOCH).unwrap_or_default();
    let tags: Map<String, Value> =
        span.tags.iter().map(|(name, value)| (name.to_string(), Value::from(value.as_str()))).collect();
    let mut out = json!({
        "traceId": span.context.trace_text(),
        "id": format!("{:016x}", span.context.span),
        "name": span.name,
        "kind": match span.kind { SpanKind::Client => "CLIENT", SpanKind::Server => "SERVER" },
        "timestamp": micros(began),
        // Zipkin has no span of no length.
        "duration": micros(span.duration).max(1),
        "localEndpoint": {"serviceName": service},
        "tags": tags,
    });
    if let Some(parent) = span.context.parent {
        out["parentId"] = format!("{parent:016x}").into();
    }
    if span.context.shared {
        out["shared"] = true.into();
    }
    out
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Context;

    #[test]
    fn a_span() {
        let context = Context { trace: 0xab, long: false, span: 0xcd, parent: Some(0xef), sampled: true, shared: true };
        let span = Span {
            context,
            name: "web:80/*".into(),
            kind: SpanKind::Server,
            began: UNIX_EPOCH + Duration::from_secs(1),
            duration: Duration::ZERO,
            failed: false,
            tags: vec![("http.method".into(), "GET \"x\"".into())],
        };
        let found: Value = serde_json::from_slice(&report("web.shop", &[span])).unwrap();
        let want = json!([{"traceId": "00000000000000ab", "id": "00000000000000cd", "parentId": "00000000000000ef",
            "name": "web:80/*", "kind": "SERVER", "timestamp": 1_000_000, "duration": 1, "shared": true,
            "localEndpoint": {"serviceName": "web.shop"}, "tags": {"http.method": "GET \"x\""}}]);
        assert_eq!(found, want);
    }
}
