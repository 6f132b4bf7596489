//! The span of a request: begun when the request is let in, named when its route is known, finished with the exchange. What
//! is not sampled costs the headers that say so; where spans have nowhere to go, only the route's name is told the next hop; where
//! tracing is off, nothing is done at all.

use crate::http::exchange::{Exchange, ExchangeFacts};
use crate::http::filters::Destination;
use crate::http::intake::Head;
use crate::http::report::Reporter;
use crate::log::{LogFacts, LoggedRequest, protocol};
use crate::worker::Worker;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::borrow::Cow;
use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;
use weft_codec::grpc;
use weft_core::Strng;
use weft_filter::trace::{self, Context, Span, SpanKind};
use weft_proxy_config::{HttpConnectionManager, TagSource, TraceProvider, Tracing, TrafficDirection};
use weft_route::metadata::{self, DynamicMetadata, MetadataValue};
use weft_telemetry::Record;

const DECORATOR: HeaderName = HeaderName::from_static("x-envoy-decorator-operation");
const DOWNSTREAM_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-downstream-service-cluster");
/// Longest header value in a tag, in bytes.
const MAX_VALUE: usize = 1024;

/// Tracing of a connection manager: its settings, and where finished spans go.
#[derive(Debug)]
pub(crate) struct Tracer {
    settings: Arc<Tracing>,
    provider: Arc<TraceProvider>,
    reporter: Reporter,
}

impl Tracer {
    /// The tracer of a connection manager, when it has one.
    pub fn new(worker: &Worker, hcm: &HttpConnectionManager) -> Option<Self> {
        let settings = hcm.tracing.clone()?;
        let provider = settings.provider.clone()?;
        let reporter = Reporter::new(&worker.shard, provider.clone(), &worker.parties.local_workload().node_cluster);
        Some(Self { settings, provider, reporter })
    }
}

/// A span under way; only of a request that is sampled.
#[derive(Debug)]
pub(crate) struct ActiveSpan {
    context: Context,
    /// The upstream's side, where it has a span of its own.
    child: Option<Context>,
    kind: SpanKind,
    began: SystemTime,
    name: String,
    request: LoggedRequest,
    metadata: DynamicMetadata,
}

/// Begins the span, and writes the headers by which the next hop knows its trace.
pub(crate) fn begin(exchange: &Exchange, head: &mut Head) {
    let Some(tracer) = &exchange.http.tracer else { return };
    let (settings, protocol) = (&tracer.settings, tracer.provider.protocol);
    let kind = match exchange.conn.downstream.direction {
        TrafficDirection::Outbound if !settings.spawn_upstream_span => SpanKind::Client,
        _ => SpanKind::Server,
    };
    let context = trace::begin(settings, protocol, kind, &mut head.headers);
    let child = settings.spawn_upstream_span.then(|| context.child());
    if settings.propagate {
        trace::write(protocol, child.as_ref().unwrap_or(&context), &mut head.headers);
    }
    if !context.sampled {
        return;
    }
    tracer.reporter.start(&exchange.conn.worker);
    let request = LoggedRequest {
        method: head.method.clone(),
        path: head.uri.path_and_query().map(|p| p.as_str().to_string()).unwrap_or_default(),
        authority: head.host.to_str().unwrap_or_default().to_string(),
        scheme: head.scheme,
        version: head.version,
        client: Some(head.client),
        headers: HeaderMap::clone(&head.headers),
        ..LoggedRequest::default()
    };
    let span = ActiveSpan {
        context,
        child,
        kind,
        began: SystemTime::now(),
        name: request.authority.clone(),
        request,
        metadata: DynamicMetadata::new(),
    };
    exchange.span.replace(Some(Box::new(span)));
}

/// Names the span by its route, and tells the next hop that name; or takes the name that the hop before told.
pub(crate) fn routed(exchange: &Exchange, head: &mut Head, destination: Destination<'_>) {
    // As in Envoy the name is told wherever tracing is on, whether spans have somewhere to go or not.
    if exchange.http.hcm.tracing.is_none() {
        return;
    }
    let operation = destination.route.and_then(|route| route.operation.as_ref());
    let mut span = exchange.span.borrow_mut();
    let mut name = |text: &str| {
        if let Some(span) = &mut *span {
            span.name = text.to_string();
        }
    };
    if let Some(operation) = operation {
        name(operation);
    }
    if exchange.conn.downstream.direction == TrafficDirection::Outbound {
        if let Some(value) = operation.and_then(|operation| HeaderValue::from_str(operation).ok()) {
            head.headers.insert(DECORATOR, value);
        }
    } else if let Some(told) = head.headers.remove(DECORATOR) {
        told.to_str().ok().filter(|told| !told.is_empty()).into_iter().for_each(name);
    }
}

/// Notes what filters said of the request, for tags.
pub(crate) fn said(exchange: &Exchange, metadata: &DynamicMetadata) {
    if let Some(span) = &mut *exchange.span.borrow_mut() {
        span.metadata.clone_from(metadata);
    }
}

/// Finishes the span and hands it on.
pub(crate) fn finish(exchange: &Exchange, span: ActiveSpan, facts: &ExchangeFacts, log: &LogFacts<'_>) {
    let Some(tracer) = &exchange.http.tracer else { return };
    let failed = facts.code >= 500 || facts.code == 0 || facts.grpc_status.is_some_and(|status| status != 0);
    let mut tags = tags(exchange, tracer, &span, facts, log);
    if failed {
        tags.push(("error".into(), "true".into()));
    }
    let ActiveSpan { context, child, kind, began, name, .. } = span;
    if let Some(context) = child {
        let cluster = facts.cluster.as_ref().map(|c| c.config.name.to_string()).unwrap_or_default();
        tracer.reporter.send(Span {
            context,
            name: format!("router {cluster} egress"),
            kind: SpanKind::Client,
            began,
            duration: log.duration,
            failed,
            tags: upstream_tags(facts, log),
        });
    }
    tracer.reporter.send(Span { context, name, kind, began, duration: log.duration, failed, tags });
}

type Tags = Vec<(Cow<'static, str>, String)>;

/// The tags that Envoy gives every span, and those of the configuration.
fn tags(exchange: &Exchange, tracer: &Tracer, span: &ActiveSpan, facts: &ExchangeFacts, log: &LogFacts<'_>) -> Tags {
    let request = &span.request;
    let header = |name: HeaderName| header(&request.headers, &name);
    let path = cut(&request.path, tracer.settings.max_path_length);
    let mut tags: Tags = upstream_tags(facts, log);
    let mut put = |name: &'static str, value: String| tags.push((name.into(), value));
    put("node_id", exchange.conn.worker.parties.local_workload().node_id.clone());
    if let Some(id) = header(HeaderName::from_static("x-request-id")) {
        put("guid:x-request-id", id);
    }
    put("http.url", format!("{}://{}{path}", request.scheme, request.authority));
    put("http.method", request.method.to_string());
    put("http.protocol", protocol(request.version).into());
    put("downstream_cluster", header(DOWNSTREAM_CLUSTER).unwrap_or_else(|| "-".into()));
    put("user_agent", header(http::header::USER_AGENT).unwrap_or_else(|| "-".into()));
    put("peer.address", exchange.conn.downstream.peer.ip().to_string());
    put("request_size", log.received.to_string());
    put("response_size", log.sent.to_string());
    if let Some(id) = header(HeaderName::from_static("x-client-trace-id")) {
        put("guid:x-client-trace-id", id);
    }
    if facts.is_grpc {
        put("grpc.path", path.to_string());
        put("grpc.authority", request.authority.clone());
        put("grpc.content_type", header(http::header::CONTENT_TYPE).unwrap_or_default());
        if let Some(limit) = grpc::timeout(&request.headers) {
            put("grpc.timeout", format!("{}m", limit.as_millis()));
        }
        if let Some(status) = facts.grpc_status {
            put("grpc.status_code", status.to_string());
        }
    }
    for tag in &tracer.settings.tags {
        let found = match &tag.source {
            TagSource::Format(format) => formatted(exchange, format, log),
            TagSource::Metadata(filter, keys) => metadata::find(&span.metadata, filter, keys).and_then(text),
        };
        if let Some(value) = found.or_else(|| tag.default.as_ref().map(ToString::to_string)) {
            tags.push((tag.name.to_string().into(), value));
        }
    }
    tags
}

/// Tags of what came of the request.
fn upstream_tags(facts: &ExchangeFacts, log: &LogFacts<'_>) -> Tags {
    let cluster = facts.cluster.as_ref().map_or("-", |c| &*c.config.name).to_string();
    let mut tags: Tags = vec![
        ("component".into(), "proxy".into()),
        ("upstream_cluster".into(), cluster.clone()),
        ("upstream_cluster.name".into(), cluster),
        ("http.status_code".into(), facts.code.to_string()),
    ];
    let mut flags = String::new();
    let _ = write!(flags, "{}", facts.flags);
    tags.push(("response_flags".into(), if flags.is_empty() { "-".into() } else { flags }));
    if let Some(host) = &log.upstream.host {
        tags.push(("upstream_address".into(), host.to_string()));
    }
    tags
}

/// A format's text; `None` when nothing of it has a value.
fn formatted(exchange: &Exchange, format: &Strng, log: &LogFacts<'_>) -> Option<String> {
    let format = exchange.conn.worker.format(format)?;
    let found = std::cell::Cell::new(false);
    let text = format.header_text(&Watched { log, found: &found });
    let is_literal = format.commands().next().is_none();
    (is_literal || found.get()).then_some(text)
}

/// Notices whether a command has a value.
struct Watched<'a> {
    log: &'a LogFacts<'a>,
    found: &'a std::cell::Cell<bool>,
}

impl Record for Watched<'_> {
    fn value(&self, command: &weft_telemetry::Command, out: &mut String) -> bool {
        let has = self.log.value(command, out);
        self.found.set(self.found.get() || has);
        has
    }
}

fn header(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).map(|value| cut(&String::from_utf8_lossy(value.as_bytes()), MAX_VALUE).to_string())
}

/// The first bytes of a text, whole characters.
fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn text(value: &MetadataValue) -> Option<String> {
    match value {
        MetadataValue::String(text) => Some(text.to_string()),
        MetadataValue::Number(number) => Some(number.to_string()),
        MetadataValue::Bool(yes) => Some(yes.to_string()),
        MetadataValue::Null | MetadataValue::List(_) | MetadataValue::Struct(_) => None,
    }
}

impl ActiveSpan {
    /// The request, for values of formats.
    pub fn request(&self) -> &LoggedRequest {
        &self.request
    }
}

/// A worker's tracer for a connection manager.
pub(crate) type SharedTracer = Option<Rc<Tracer>>;
