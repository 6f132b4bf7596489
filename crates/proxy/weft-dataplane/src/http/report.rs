//! Reports of spans to a collector: a bounded queue, one report after the other, what finds no place is dropped and counted.
//! A collector that is slow or away costs spans, never requests.

use crate::ask::{Ask, ask};
use crate::worker::Worker;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderValue, Method, Request, Uri};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use weft_codec::grpc;
use weft_filter::trace::{Span, otlp, zipkin};
use weft_proxy_config::{TraceProtocol, TraceProvider};
use weft_telemetry::{Counter, Shard};

/// Spans that wait at most.
const QUEUE: usize = 2048;
/// Spans of one report at most.
const BATCH: usize = 256;
/// Longest time that a span waits for others to go with.
const GATHER: Duration = Duration::from_millis(500);
/// Longest answer of a collector that is read.
const MAX_ANSWER: usize = 64 * 1024;

/// Where the spans of a connection manager go.
#[derive(Debug)]
pub(crate) struct Reporter {
    provider: Arc<TraceProvider>,
    service: String,
    queue: RefCell<Option<Sender<Span>>>,
    stats: Rc<Stats>,
}

#[derive(Debug)]
struct Stats {
    spans_sent: Counter,
    spans_dropped: Counter,
    reports_sent: Counter,
    reports_dropped: Counter,
    reports_failed: Counter,
}

impl Reporter {
    /// A reporter, which does nothing until there is a span. `node_cluster` names the service where the provider does not.
    pub fn new(shard: &Shard, provider: Arc<TraceProvider>, node_cluster: &str) -> Self {
        let service = match (&*provider.service, node_cluster) {
            ("", "") => "unknown",
            ("", cluster) => cluster,
            (named, _) => named,
        };
        let zipkin = matches!(provider.protocol, TraceProtocol::Zipkin { .. });
        let counter = |zipkin_name, otlp_name| shard.counter(if zipkin { zipkin_name } else { otlp_name }, &[]);
        let stats = Stats {
            spans_sent: counter("envoy_tracing_zipkin_spans_sent", "envoy_tracing_opentelemetry_spans_sent"),
            spans_dropped: counter("envoy_tracing_zipkin_spans_dropped", "envoy_tracing_opentelemetry_spans_dropped"),
            reports_sent: counter("envoy_tracing_zipkin_reports_sent", "envoy_tracing_opentelemetry_reports_sent"),
            reports_dropped: counter(
                "envoy_tracing_zipkin_reports_dropped",
                "envoy_tracing_opentelemetry_reports_dropped",
            ),
            reports_failed: counter(
                "envoy_tracing_zipkin_reports_failed",
                "envoy_tracing_opentelemetry_reports_failed",
            ),
        };
        Self { service: service.to_string(), provider, queue: RefCell::default(), stats: Rc::new(stats) }
    }

    /// Starts the task that sends, with the first span. It ends with this value.
    pub fn start(&self, worker: &Rc<Worker>) {
        let mut queue = self.queue.borrow_mut();
        if queue.is_some() {
            return;
        }
        let (sender, spans) = channel(QUEUE);
        let (worker, provider) = (worker.clone(), self.provider.clone());
        tokio::task::spawn_local(run(worker, provider, self.service.clone(), spans, self.stats.clone()));
        *queue = Some(sender);
    }

    /// Takes a span, or drops it when too many wait.
    pub fn send(&self, span: Span) {
        let queue = self.queue.borrow();
        let taken = match queue.as_ref() {
            Some(queue) => queue.try_send(span).is_ok(),
            None => false,
        };
        if !taken {
            self.stats.spans_dropped.inc();
        }
    }
}

async fn run(
    worker: Rc<Worker>,
    provider: Arc<TraceProvider>,
    service: String,
    mut spans: Receiver<Span>,
    stats: Rc<Stats>,
) {
    let mut batch = Vec::new();
    while let Some(first) = spans.recv().await {
        batch.push(first);
        // Those that come soon after go with it.
        let end = tokio::time::Instant::now() + GATHER;
        while batch.len() < BATCH {
            match tokio::time::timeout_at(end, spans.recv()).await {
                Ok(Some(span)) => batch.push(span),
                Ok(None) | Err(_) => break,
            }
        }
        let count = batch.len() as u64;
        match report(&worker, &provider, &service, &batch).await {
            Ok(()) => {
                stats.reports_sent.inc();
                stats.spans_sent.add(count);
            }
            Err(Failure::Refused(why)) => {
                stats.reports_dropped.inc();
                stats.spans_dropped.add(count);
                tracing::debug!(cluster = %provider.cluster, why, "the collector refuses spans");
            }
            Err(Failure::Unreachable(why)) => {
                stats.reports_failed.inc();
                stats.spans_dropped.add(count);
                tracing::debug!(cluster = %provider.cluster, why, "spans could not be sent");
            }
        }
        batch.clear();
    }
}

/// Why a report did not arrive.
enum Failure {
    Refused(String),
    Unreachable(String),
}

async fn report(worker: &Rc<Worker>, provider: &TraceProvider, service: &str, spans: &[Span]) -> Result<(), Failure> {
    let (body, content_type): (Bytes, &'static str) = match provider.protocol {
        TraceProtocol::Zipkin { .. } => (zipkin::report(service, spans).into(), zipkin::CONTENT_TYPE),
        TraceProtocol::OtlpHttp => (otlp::report(service, spans).into(), otlp::CONTENT_TYPE),
        TraceProtocol::OtlpGrpc => (otlp::framed(service, spans), "application/grpc"),
    };
    let is_grpc = provider.protocol == TraceProtocol::OtlpGrpc;
    let failed = Failure::Unreachable;
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::try_from(&*provider.path).map_err(|error| failed(error.to_string()))?;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if is_grpc {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    for (name, value) in &provider.headers {
        headers.insert(name.clone(), value.clone());
    }
    let host = HeaderValue::from_str(&provider.host).map_err(|error| failed(error.to_string()))?;
    let how = Ask {
        cluster: &provider.cluster,
        host: &host,
        http2: is_grpc,
        timeout: Some(provider.timeout),
        most: MAX_ANSWER,
    };
    let answer = ask(worker, how, request).await.map_err(failed)?;
    if !answer.head.status.is_success() {
        return Err(Failure::Refused(answer.head.status.to_string()));
    }
    let status = answer.trailers.as_ref().and_then(grpc::status).or_else(|| grpc::status(&answer.head.headers));
    match status {
        Some(status) if is_grpc && status != 0 => Err(Failure::Refused(format!("grpc-status {status}"))),
        None if is_grpc => Err(Failure::Refused("no grpc-status".into())),
        _ => Ok(()),
    }
}
