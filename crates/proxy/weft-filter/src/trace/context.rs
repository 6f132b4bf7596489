//! The context of a trace in headers: B3 (many headers, or one) and W3C. What is not well formed is as if it were not there.

use super::SpanKind;
use http::{HeaderMap, HeaderName, HeaderValue};
use weft_proxy_config::TraceProtocol;

const B3: HeaderName = HeaderName::from_static("b3");
const TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const PARENT_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Where a span belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub trace: u128,
    /// The trace's id is written with 128 bits.
    pub long: bool,
    /// This span.
    pub span: u64,
    /// The span that it is part of.
    pub parent: Option<u64>,
    /// The span is reported.
    pub sampled: bool,
    /// The span has the id of its client's.
    pub shared: bool,
}

/// What a request says of its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Told {
    /// Trace, whether with 128 bits, and the sender's span and that one's parent.
    pub ids: Option<(u128, bool, u64, Option<u64>)>,
    /// The decision.
    pub sampled: Option<bool>,
}

impl Context {
    /// The context of a span that begins here; `wanted` is the decision when none was told.
    pub fn next(protocol: TraceProtocol, kind: SpanKind, told: Told, wanted: bool) -> Self {
        let sampled = told.sampled.unwrap_or(wanted);
        let TraceProtocol::Zipkin { shared, long_ids, .. } = protocol else {
            return match told.ids {
                Some((trace, _, parent, _)) => {
                    Self { trace, long: true, span: id(), parent: Some(parent), sampled, shared: false }
                }
                None => Self { trace: long_id(), long: true, span: id(), parent: None, sampled, shared: false },
            };
        };
        match told.ids {
            Some((trace, long, span, parent)) if shared && kind == SpanKind::Server => {
                Self { trace, long, span, parent, sampled, shared: true }
            }
            Some((trace, long, parent, _)) => {
                Self { trace, long, span: id(), parent: Some(parent), sampled, shared: false }
            }
            None => {
                // The first span of a trace has the trace's id, as far as it fits.
                let span = id();
                let high = if long_ids { u128::from(id()) << 64 } else { 0 };
                Self { trace: high | u128::from(span), long: long_ids, span, parent: None, sampled, shared: false }
            }
        }
    }

    /// A span within this one.
    pub fn child(&self) -> Self {
        Self { span: id(), parent: Some(self.span), shared: false, ..*self }
    }

    /// The trace's id as it is written.
    pub fn trace_text(&self) -> String {
        if self.long { format!("{:032x}", self.trace) } else { format!("{:016x}", self.trace as u64) }
    }
}

fn id() -> u64 {
    fastrand::u64(1..)
}

fn long_id() -> u128 {
    fastrand::u128(1..)
}

/// What these headers say.
pub fn read(protocol: TraceProtocol, headers: &HeaderMap) -> Told {
    match protocol {
        TraceProtocol::Zipkin { w3c, .. } => {
            let told = read_b3(headers);
            if told.ids.is_none() && w3c { w3c_of(headers).unwrap_or(told) } else { told }
        }
        TraceProtocol::OtlpGrpc | TraceProtocol::OtlpHttp => w3c_of(headers).unwrap_or_default(),
    }
}

fn read_b3(headers: &HeaderMap) -> Told {
    if let Some(single) = headers.get(B3).and_then(|v| v.to_str().ok()) {
        return read_single(single);
    }
    let text = |name: HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
    let sampled = if text(FLAGS) == Some("1") { Some(true) } else { text(SAMPLED).and_then(decision) };
    let trace = text(TRACE_ID).and_then(trace_id);
    let span = text(SPAN_ID).and_then(span_id);
    let ids = trace.zip(span).map(|((trace, long), span)| (trace, long, span, text(PARENT_ID).and_then(span_id)));
    Told { ids, sampled }
}

/// `TRACE-SPAN-SAMPLED-PARENT`, of which the last two may be missing; or the decision alone.
fn read_single(text: &str) -> Told {
    let mut parts = text.split('-');
    let first = parts.next().unwrap_or_default();
    let Some(span) = parts.next() else { return Told { ids: None, sampled: decision(first) } };
    let Some(((trace, long), span)) = trace_id(first).zip(span_id(span)) else { return Told::default() };
    let sampled = parts.next().and_then(decision);
    Told { ids: Some((trace, long, span, parts.next().and_then(span_id))), sampled }
}

fn decision(text: &str) -> Option<bool> {
    match text {
        "1" | "true" | "d" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

fn hex(text: &str) -> Option<u128> {
    let plain = text.bytes().all(|b| b.is_ascii_hexdigit());
    u128::from_str_radix(text, 16).ok().filter(|id| plain && *id != 0)
}

fn trace_id(text: &str) -> Option<(u128, bool)> {
    matches!(text.len(), 16 | 32).then(|| hex(text)).flatten().map(|id| (id, text.len() == 32))
}

fn span_id(text: &str) -> Option<u64> {
    (text.len() == 16).then(|| hex(text)).flatten().and_then(|id| u64::try_from(id).ok())
}

/// `00-TRACE-SPAN-FLAGS`; a later version may have more at its end.
fn w3c_of(headers: &HeaderMap) -> Option<Told> {
    let text = headers.get(TRACEPARENT)?.to_str().ok()?;
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_hex(version) || version == "ff" || !is_hex(flags) || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let (trace, long) = trace_id(trace).filter(|(_, long)| *long)?;
    let flags = u8::from_str_radix(flags, 16).ok()?;
    Some(Told { ids: Some((trace, long, span_id(span)?, None)), sampled: Some(flags & 1 == 1) })
}

/// Tells the next hop: `context` is the span that its own is part of.
pub fn write(protocol: TraceProtocol, context: &Context, headers: &mut HeaderMap) {
    let mut set = |name: HeaderName, text: String| {
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(name, value);
        }
    };
    let w3c = match protocol {
        TraceProtocol::Zipkin { w3c, .. } => {
            set(TRACE_ID, context.trace_text());
            set(SPAN_ID, format!("{:016x}", context.span));
            set(SAMPLED, u8::from(context.sampled).to_string());
            if let Some(parent) = context.parent {
                set(PARENT_ID, format!("{parent:016x}"));
            }
            w3c
        }
        TraceProtocol::OtlpGrpc | TraceProtocol::OtlpHttp => true,
    };
    if w3c {
        let flags = u8::from(context.sampled);
        set(TRACEPARENT, format!("00-{:032x}-{:016x}-{flags:02x}", context.trace, context.span));
    }
    if let TraceProtocol::Zipkin { .. } = protocol {
        if context.parent.is_none() {
            headers.remove(PARENT_ID);
        }
        // One form only: two that differ would tear the trace.
        headers.remove(B3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZIPKIN: TraceProtocol = TraceProtocol::Zipkin { shared: false, long_ids: true, w3c: false };
    const BOTH: TraceProtocol = TraceProtocol::Zipkin { shared: true, long_ids: false, w3c: true };

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn what_headers_say() {
        let ids = |trace, long, span, parent| Some((trace, long, span, parent));
        let told = |ids, sampled| Told { ids, sampled };
        let parent = "00-000000000000000000000000000000ab-00000000000000cd-01";
        for (protocol, all, want) in [
            (ZIPKIN, &[][..], Told::default()),
            (
                ZIPKIN,
                &[("x-b3-traceid", "00000000000000ab"), ("x-b3-spanid", "00000000000000cd"), ("x-b3-sampled", "0")],
                told(ids(0xab, false, 0xcd, None), Some(false)),
            ),
            (ZIPKIN, &[("x-b3-sampled", "1")], told(None, Some(true))),
            (ZIPKIN, &[("x-b3-flags", "1")], told(None, Some(true))),
            (ZIPKIN, &[("x-b3-traceid", "xyz"), ("x-b3-spanid", "00000000000000cd")], Told::default()),
            (ZIPKIN, &[("x-b3-traceid", "+0000000000000ab"), ("x-b3-spanid", "00000000000000cd")], Told::default()),
            (ZIPKIN, &[("x-b3-traceid", "0000000000000000"), ("x-b3-spanid", "00000000000000cd")], Told::default()),
            (ZIPKIN, &[("b3", "0")], told(None, Some(false))),
            (
                ZIPKIN,
                &[("b3", "00000000000000ab-00000000000000cd-1-00000000000000ef")],
                told(ids(0xab, false, 0xcd, Some(0xef)), Some(true)),
            ),
            (ZIPKIN, &[("traceparent", parent)], Told::default()),
            (BOTH, &[("traceparent", parent)], told(ids(0xab, true, 0xcd, None), Some(true))),
            (TraceProtocol::OtlpHttp, &[("traceparent", parent)], told(ids(0xab, true, 0xcd, None), Some(true))),
            (
                TraceProtocol::OtlpGrpc,
                &[("traceparent", "ff-000000000000000000000000000000ab-00000000000000cd-01")],
                Told::default(),
            ),
            (
                TraceProtocol::OtlpGrpc,
                &[("traceparent", "00-000000000000000000000000000000ab-00000000000000cd-01-x")],
                Told::default(),
            ),
            (TraceProtocol::OtlpGrpc, &[("b3", "1")], Told::default()),
        ] {
            assert_eq!(read(protocol, &headers(all)), want, "{all:?}");
        }
    }

    #[test]
    fn what_the_next_hop_is_told() {
        let root = Context::next(ZIPKIN, SpanKind::Client, Told::default(), true);
        assert!(root.parent.is_none() && root.sampled && root.long && root.trace as u64 == root.span);
        let mut sent = headers(&[("b3", "0"), ("x-b3-parentspanid", "00000000000000ff")]);
        write(ZIPKIN, &root, &mut sent);
        assert!(!sent.contains_key("b3") && !sent.contains_key("x-b3-parentspanid") && !sent.contains_key(TRACEPARENT));
        assert_eq!(sent[SAMPLED], "1");
        // The next span is part of ours, and the decision holds whatever the next hop would have wanted.
        let next = Context::next(ZIPKIN, SpanKind::Server, read(ZIPKIN, &sent), false);
        assert_eq!((next.trace, next.parent, next.sampled), (root.trace, Some(root.span), true));
        assert_ne!(next.span, root.span);
        // A shared one is ours, seen from the other side.
        let shared = Context::next(BOTH, SpanKind::Server, read(BOTH, &sent), false);
        assert_eq!((shared.span, shared.shared), (root.span, true));
        let mut w3c = HeaderMap::new();
        write(TraceProtocol::OtlpGrpc, &Context { sampled: false, ..root }, &mut w3c);
        assert_eq!(w3c.len(), 1);
        let read = read(TraceProtocol::OtlpGrpc, &w3c);
        assert_eq!(read.ids, Some((root.trace, true, root.span, None)));
        assert_eq!(read.sampled, Some(false));
        assert_eq!(root.child().parent, Some(root.span));
    }
}
