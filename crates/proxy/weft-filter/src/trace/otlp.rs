//! Spans as OpenTelemetry takes them: `opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest`, of which only the
//! fields that are sent stand here.

use super::{Span, SpanKind};
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use std::time::{SystemTime, UNIX_EPOCH};
use weft_proto::opentelemetry::proto::common::v1::{AnyValue, KeyValue, any_value::Value};

/// Type of a report's body over HTTP.
pub const CONTENT_TYPE: &str = "application/x-protobuf";
/// `Status.StatusCode.STATUS_CODE_ERROR`
const ERROR: i32 = 2;
/// Bytes before a message of gRPC: compressed or not, and its length.
const PREFIX: usize = 5;

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<SpanMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct SpanMessage {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    /// `SpanKind`
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

/// The body of a report over HTTP.
pub fn report(service: &str, spans: &[Span]) -> Vec<u8> {
    request(service, spans).encode_to_vec()
}

/// The body of a report over gRPC.
pub fn framed(service: &str, spans: &[Span]) -> Bytes {
    let message = request(service, spans);
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // The buffer grows as it must.
    let _ = message.encode(&mut out);
    out.freeze()
}

fn request(service: &str, spans: &[Span]) -> Request {
    let resource = Resource { attributes: vec![attribute("service.name", service)] };
    let spans = spans.iter().map(of).collect();
    Request {
        resource_spans: vec![ResourceSpans { resource: Some(resource), scope_spans: vec![ScopeSpans { spans }] }],
    }
}

fn of(span: &Span) -> SpanMessage {
    let began = nanos(span.began);
    SpanMessage {
        trace_id: span.context.trace.to_be_bytes().to_vec(),
        span_id: span.context.span.to_be_bytes().to_vec(),
        parent_span_id: span.context.parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
        name: span.name.clone(),
        kind: match span.kind {
            SpanKind::Server => 2,
            SpanKind::Client => 3,
        },
        start_time_unix_nano: began,
        end_time_unix_nano: began.saturating_add(u64::try_from(span.duration.as_nanos()).unwrap_or(u64::MAX)),
        attributes: span.tags.iter().map(|(name, value)| attribute(name, value)).collect(),
        status: span.failed.then_some(Status { code: ERROR }),
    }
}

fn nanos(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.into())) });
    KeyValue { key: key.into(), value, ..Default::default() }
}
