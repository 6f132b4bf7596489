//! The mesh's standard metrics (`istio_requests_total` and its kin), under the names and labels that Istio's dashboards look
//! for. One request costs a hash and a few stores: the cells of a set of labels are made once.

use crate::peer::Party;
use foldhash::fast::RandomState;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use weft_codec::Flags;
use weft_core::Strng;
use weft_proxy_config::{ClusterMetadata, MetricOverride, Telemetry};
use weft_telemetry::{Counter, Histogram, Label, Shard};

/// Sets of labels kept at hand by one worker; beyond that all are looked up anew (the series stay registered).
const MAX_CACHED: usize = 10_000;
/// Tag names that configuration may invent.
const MAX_TAG_NAMES: usize = 256;

/// How the connection is secured, as far as the reporter can vouch for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Security {
    /// The client's side does not know.
    Unknown,
    /// Plain text.
    None,
    /// Mutual TLS.
    MutualTls,
}

/// Protocol of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP.
    Http,
    /// gRPC.
    Grpc,
    /// TCP.
    Tcp,
}

/// The labels of a request or connection.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a> {
    /// Settings.
    pub telemetry: &'a Arc<Telemetry>,
    /// The client's workload.
    pub source: &'a Rc<Party>,
    /// The server's workload.
    pub destination: &'a Rc<Party>,
    /// The service called.
    pub service: Option<&'a ClusterMetadata>,
    /// Name of the cluster chosen; empty when there is none.
    pub cluster: &'a str,
    /// The host asked for; empty for bytes.
    pub host: &'a str,
    /// Protocol.
    pub protocol: Protocol,
    /// Status; 0 for TCP.
    pub code: u16,
    /// gRPC status.
    pub grpc_status: Option<u32>,
    /// Response flags.
    pub flags: Flags,
    /// Security of the connection.
    pub security: Security,
}

/// What of a request is measured.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// From first to last byte.
    pub duration: Duration,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the response's body.
    pub response_bytes: u64,
}

#[derive(Debug)]
struct Cells {
    key: Key,
    requests: Option<Counter>,
    duration: Option<Histogram>,
    request_bytes: Option<Histogram>,
    response_bytes: Option<Histogram>,
}

/// The cells of TCP connections with the same labels.
#[derive(Debug)]
pub struct TcpCells {
    key: Key,
    opened: Option<Counter>,
    closed: Option<Counter>,
    sent: Option<Counter>,
    received: Option<Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    telemetry: usize,
    source: u64,
    destination: u64,
    service: Strng,
    service_name: Strng,
    protocol: Protocol,
    code: u16,
    grpc_status: Option<u32>,
    flags: u32,
    security: Security,
}

/// The metrics of one worker.
#[derive(Debug)]
pub struct MeshMetrics {
    shard: Shard,
    hasher: RandomState,
    requests: RefCell<HashMap<u64, Rc<Cells>, RandomState>>,
    connections: RefCell<HashMap<u64, Rc<TcpCells>, RandomState>>,
    /// Keeps settings alive while cells are known by their address.
    settings: RefCell<Vec<Arc<Telemetry>>>,
    last: RefCell<Option<Rc<Cells>>>,
}

impl MeshMetrics {
    /// Metrics counted in `shard`.
    pub fn new(shard: Shard) -> Self {
        Self {
            shard,
            hasher: RandomState::default(),
            requests: RefCell::default(),
            connections: RefCell::default(),
            settings: RefCell::default(),
            last: RefCell::default(),
        }
    }

    /// Counts a request.
    pub fn request(&self, labels: &Labels<'_>, measured: &Measured) {
        if labels.telemetry.disabled {
            return;
        }
        let cells = self.request_cells(labels);
        if let Some(counter) = &cells.requests {
            counter.inc();
        }
        if let Some(histogram) = &cells.duration {
            histogram.observe(measured.duration.as_secs_f64() * 1000.0);
        }
        if let Some(histogram) = &cells.request_bytes {
            histogram.observe(measured.request_bytes as f64);
        }
        if let Some(histogram) = &cells.response_bytes {
            histogram.observe(measured.response_bytes as f64);
        }
    }

    /// The cells of a TCP connection; `None` when switched off.
    pub fn connection(&self, labels: &Labels<'_>) -> Option<Rc<TcpCells>> {
        if labels.telemetry.disabled {
            return None;
        }
        let hash = self.hash(labels);
        if let Some(cells) = self.connections.borrow().get(&hash)
            && cells.key.is(labels)
        {
            return Some(cells.clone());
        }
        let counter = |name: &'static str| self.counter(name, labels);
        let cells = Rc::new(TcpCells {
            key: self.key(labels),
            opened: counter("istio_tcp_connections_opened_total"),
            closed: counter("istio_tcp_connections_closed_total"),
            sent: counter("istio_tcp_sent_bytes_total"),
            received: counter("istio_tcp_received_bytes_total"),
        });
        bounded(&mut self.connections.borrow_mut());
        self.connections.borrow_mut().insert(hash, cells.clone());
        Some(cells)
    }

    fn request_cells(&self, labels: &Labels<'_>) -> Rc<Cells> {
        // Requests with equal labels come in rows.
        if let Some(last) = &*self.last.borrow()
            && last.key.is(labels)
        {
            return last.clone();
        }
        let hash = self.hash(labels);
        let known = self.requests.borrow().get(&hash).filter(|cells| cells.key.is(labels)).cloned();
        let cells = known.unwrap_or_else(|| {
            let cells = Rc::new(self.make_cells(labels));
            bounded(&mut self.requests.borrow_mut());
            self.requests.borrow_mut().insert(hash, cells.clone());
            cells
        });
        self.last.replace(Some(cells.clone()));
        cells
    }

    fn make_cells(&self, labels: &Labels<'_>) -> Cells {
        Cells {
            key: self.key(labels),
            requests: self.counter("istio_requests_total", labels),
            duration: self.histogram("istio_request_duration_milliseconds", labels),
            request_bytes: self.histogram("istio_request_bytes", labels),
            response_bytes: self.histogram("istio_response_bytes", labels),
        }
    }

    fn counter(&self, name: &'static str, labels: &Labels<'_>) -> Option<Counter> {
        Some(self.shard.counter(name, &series(name, labels)?))
    }

    fn histogram(&self, name: &'static str, labels: &Labels<'_>) -> Option<Histogram> {
        Some(self.shard.histogram(name, &series(name, labels)?))
    }

    fn hash(&self, labels: &Labels<'_>) -> u64 {
        let service = (service_host(labels), service_name(labels));
        self.hasher.hash_one((
            Arc::as_ptr(labels.telemetry) as usize,
            labels.source.id,
            labels.destination.id,
            service,
            (labels.protocol, labels.code, labels.grpc_status, labels.flags.bits(), labels.security),
        ))
    }

    fn key(&self, labels: &Labels<'_>) -> Key {
        let mut settings = self.settings.borrow_mut();
        if !settings.iter().any(|known| Arc::ptr_eq(known, labels.telemetry)) {
            // A new configuration. Cells are known by the address of their settings, so those of settings that go must go.
            let before = settings.len();
            settings.retain(|known| Arc::strong_count(known) > 1);
            if settings.len() < before {
                self.requests.borrow_mut().clear();
                self.connections.borrow_mut().clear();
                self.last.replace(None);
            }
            settings.push(labels.telemetry.clone());
        }
        Key {
            telemetry: Arc::as_ptr(labels.telemetry) as usize,
            source: labels.source.id,
            destination: labels.destination.id,
            service: Strng::from(service_host(labels)),
            service_name: Strng::from(service_name(labels)),
            protocol: labels.protocol,
            code: labels.code,
            grpc_status: labels.grpc_status,
            flags: labels.flags.bits(),
            security: labels.security,
        }
    }
}

impl Key {
    fn is(&self, labels: &Labels<'_>) -> bool {
        self.source == labels.source.id
            && self.destination == labels.destination.id
            && self.code == labels.code
            && self.flags == labels.flags.bits()
            && self.protocol == labels.protocol
            && self.grpc_status == labels.grpc_status
            && self.security == labels.security
            && self.telemetry == Arc::as_ptr(labels.telemetry) as usize
            && *self.service == *service_host(labels)
            && *self.service_name == *service_name(labels)
    }
}

impl TcpCells {
    /// A connection began.
    pub fn opened(&self) {
        if let Some(counter) = &self.opened {
            counter.inc();
        }
    }
    /// A connection ended.
    pub fn closed(&self) {
        if let Some(counter) = &self.closed {
            counter.inc();
        }
    }
    /// Bytes went by: to the client (`sent`), from the client (`received`).
    pub fn bytes(&self, sent: u64, received: u64) {
        if let Some(counter) = &self.sent {
            counter.add(sent);
        }
        if let Some(counter) = &self.received {
            counter.add(received);
        }
    }
}

fn bounded<V>(map: &mut HashMap<u64, V, RandomState>) {
    if map.len() >= MAX_CACHED {
        map.clear();
    }
}

/// The service's host, else the host asked for where that may be a label.
fn service_host<'a>(labels: &Labels<'a>) -> &'a str {
    match labels.service {
        Some(service) if !service.service_host.is_empty() => &service.service_host,
        _ if labels.telemetry.host_is_label => labels.host,
        _ => "",
    }
}

/// The service's name; clusters that stand for no service stand for themselves, as in Istio's metrics.
fn service_name<'a>(labels: &Labels<'a>) -> &'a str {
    const NO_SERVICES: [&str; 5] = [
        "BlackHoleCluster",
        "PassthroughCluster",
        "InboundPassthroughCluster",
        "InboundPassthroughClusterIpv4",
        "InboundPassthroughClusterIpv6",
    ];
    match labels.service {
        Some(service) if !service.service_host.is_empty() => &service.service_name,
        _ if NO_SERVICES.contains(&labels.cluster) => labels.cluster,
        _ => service_host(labels),
    }
}

/// All labels of a series, in Istio's order; `None` when configuration switched the metric off.
fn series(name: &'static str, labels: &Labels<'_>) -> Option<Vec<Label>> {
    let short = name.trim_start_matches("istio_").trim_end_matches("_total");
    let applies = |o: &&MetricOverride| o.metric.is_empty() || is_metric(&o.metric, short);
    let overrides: Vec<&MetricOverride> = labels.telemetry.overrides.iter().filter(applies).collect();
    if overrides.iter().any(|o| o.disabled) {
        return None;
    }
    let mut all = standard_labels(labels);
    for (tag, expression) in overrides.iter().flat_map(|o| &o.tags) {
        all.retain(|(name, _)| *name != &**tag);
        if let Some(value) = literal(expression)
            && let Some(name) = tag_name(tag)
        {
            all.push((name, Strng::from(value)));
        }
    }
    Some(all)
}

/// Istio's API spells metrics in capitals (`REQUEST_COUNT`); series have names of their own.
fn is_metric(configured: &str, short: &str) -> bool {
    let known = match configured {
        "REQUEST_COUNT" => "requests",
        "REQUEST_DURATION" => "request_duration_milliseconds",
        "REQUEST_SIZE" => "request_bytes",
        "RESPONSE_SIZE" => "response_bytes",
        "TCP_OPENED_CONNECTIONS" => "tcp_connections_opened",
        "TCP_CLOSED_CONNECTIONS" => "tcp_connections_closed",
        "TCP_SENT_BYTES" => "tcp_sent_bytes",
        "TCP_RECEIVED_BYTES" => "tcp_received_bytes",
        "ALL_METRICS" => return true,
        other => other.trim_start_matches("istio_").trim_end_matches("_total"),
    };
    known == short
}

/// The text of a quoted literal; other expressions give no tag.
fn literal(expression: &str) -> Option<&str> {
    let quoted = |q: char| expression.strip_prefix(q)?.strip_suffix(q);
    quoted('\'').or_else(|| quoted('"'))
}

/// A tag's name as a static string: names come from configuration, are few, and are kept for the life of the process.
fn tag_name(name: &str) -> Option<&'static str> {
    static NAMES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.iter().find(|known| **known == name) {
        return Some(known);
    }
    if names.len() >= MAX_TAG_NAMES {
        return None;
    }
    let kept: &'static str = Box::leak(Box::from(name));
    names.push(kept);
    Some(kept)
}

fn standard_labels(labels: &Labels<'_>) -> Vec<Label> {
    let (source, destination) = (labels.source, labels.destination);
    let word = |text: &str| Strng::from(if text.is_empty() { "unknown" } else { text });
    let host = service_host(labels);
    let service = labels.service.filter(|s| !s.service_host.is_empty());
    let reporter = if labels.telemetry.destination { "destination" } else { "source" };
    let protocol = match labels.protocol {
        Protocol::Http => "http",
        Protocol::Grpc => "grpc",
        Protocol::Tcp => "tcp",
    };
    let security = match labels.security {
        Security::Unknown => "unknown",
        Security::None => "none",
        Security::MutualTls => "mutual_tls",
    };
    let service_namespace = service.map_or(&*destination.namespace, |s| &s.service_namespace);
    let mut all: Vec<Label> = vec![
        ("reporter", word(reporter)),
        ("source_workload", word(&source.workload)),
        ("source_canonical_service", word(&source.canonical_service)),
        ("source_canonical_revision", word(&source.canonical_revision)),
        ("source_workload_namespace", word(&source.namespace)),
        ("source_principal", word(&source.principal)),
        ("source_app", word(&source.app)),
        ("source_version", word(&source.version)),
        ("source_cluster", word(&source.cluster)),
        ("destination_workload", word(&destination.workload)),
        ("destination_workload_namespace", word(&destination.namespace)),
        ("destination_principal", word(&destination.principal)),
        ("destination_app", word(&destination.app)),
        ("destination_version", word(&destination.version)),
        ("destination_service", word(host)),
        ("destination_canonical_service", word(&destination.canonical_service)),
        ("destination_canonical_revision", word(&destination.canonical_revision)),
        ("destination_service_name", word(service_name(labels))),
        ("destination_service_namespace", word(service_namespace)),
        ("destination_cluster", word(&destination.cluster)),
        ("request_protocol", word(protocol)),
    ];
    if labels.protocol != Protocol::Tcp {
        all.push(("response_code", Strng::from(labels.code.to_string())));
        let grpc = labels.grpc_status.map(|s| s.to_string()).unwrap_or_default();
        all.push(("grpc_response_status", Strng::from(grpc)));
    }
    all.push(("response_flags", Strng::from(labels.flags.to_string())));
    all.push(("connection_security_policy", word(security)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_telemetry::Registry;

    fn party(id: u64, workload: &str) -> Rc<Party> {
        Rc::new(Party { id, workload: workload.into(), ..Party::default() })
    }

    fn count(registry: &Registry, labels: &[(&str, &str)]) -> Option<f64> {
        registry.value("istio_requests_total", labels)
    }

    #[test]
    fn counted_under_istios_labels() {
        let registry = Registry::default();
        let metrics = MeshMetrics::new(registry.shard());
        let telemetry = Arc::new(Telemetry { destination: true, ..Telemetry::default() });
        let (source, destination) = (party(1, "productpage-v1"), party(2, "reviews-v2"));
        let service = ClusterMetadata {
            service_host: "reviews.default.svc.cluster.local".into(),
            service_name: "reviews".into(),
            service_namespace: "default".into(),
            external: false,
        };
        let measured = Measured { duration: Duration::from_millis(7), request_bytes: 10, response_bytes: 20 };
        let mut labels = Labels {
            telemetry: &telemetry,
            source: &source,
            destination: &destination,
            service: Some(&service),
            cluster: "inbound|9080||",
            host: "reviews:9080",
            protocol: Protocol::Http,
            code: 200,
            grpc_status: None,
            flags: Flags::NONE,
            security: Security::MutualTls,
        };
        for _ in 0..3 {
            metrics.request(&labels, &measured);
        }
        labels.code = 503;
        labels.flags = Flags::UF;
        metrics.request(&labels, &measured);
        let want = [
            ("reporter", "destination"),
            ("source_workload", "productpage-v1"),
            ("destination_workload", "reviews-v2"),
            ("destination_service", "reviews.default.svc.cluster.local"),
            ("connection_security_policy", "mutual_tls"),
            ("source_app", "unknown"),
        ];
        assert_eq!(count(&registry, &want), Some(4.0));
        assert_eq!(count(&registry, &[("response_code", "200"), ("response_flags", "-")]), Some(3.0));
        assert_eq!(count(&registry, &[("response_code", "503"), ("response_flags", "UF")]), Some(1.0));
        assert_eq!(registry.value("istio_request_duration_milliseconds", &[]), Some(4.0));
    }

    #[test]
    fn hosts_of_strangers_are_no_labels() {
        let someone = party(1, "a");
        let measured = Measured { duration: Duration::ZERO, request_bytes: 0, response_bytes: 0 };
        for (host_is_label, cluster, service, name) in [
            (true, "", "x.example", "x.example"),
            (true, "PassthroughCluster", "x.example", "PassthroughCluster"),
            (false, "", "unknown", "unknown"),
            (false, "InboundPassthroughClusterIpv4", "unknown", "InboundPassthroughClusterIpv4"),
        ] {
            let registry = Registry::default();
            let metrics = MeshMetrics::new(registry.shard());
            let telemetry = Arc::new(Telemetry { host_is_label, ..Telemetry::default() });
            let labels = Labels {
                telemetry: &telemetry,
                source: &someone,
                destination: &someone,
                service: None,
                cluster,
                host: "x.example",
                protocol: Protocol::Http,
                code: 404,
                grpc_status: None,
                flags: Flags::NONE,
                security: Security::Unknown,
            };
            metrics.request(&labels, &measured);
            let want = [("destination_service", service), ("destination_service_name", name)];
            assert_eq!(count(&registry, &want), Some(1.0), "{host_is_label} {cluster}");
        }
    }

    #[test]
    fn overrides() {
        let registry = Registry::default();
        let metrics = MeshMetrics::new(registry.shard());
        let rule = |metric: &str, disabled, tags: &[(&str, &str)]| MetricOverride {
            metric: metric.into(),
            disabled,
            tags: tags.iter().map(|(k, v)| (Strng::from(*k), Strng::from(*v))).collect(),
        };
        let telemetry = Arc::new(Telemetry {
            overrides: vec![
                rule("REQUEST_SIZE", true, &[]),
                rule("REQUEST_COUNT", false, &[("source_app", ""), ("team", "'blue'")]),
            ],
            ..Telemetry::default()
        });
        let someone = party(1, "a");
        let labels = Labels {
            telemetry: &telemetry,
            source: &someone,
            destination: &someone,
            service: None,
            cluster: "",
            host: "x",
            protocol: Protocol::Http,
            code: 200,
            grpc_status: None,
            flags: Flags::NONE,
            security: Security::Unknown,
        };
        metrics.request(&labels, &Measured { duration: Duration::ZERO, request_bytes: 0, response_bytes: 0 });
        assert_eq!(count(&registry, &[("team", "blue")]), Some(1.0));
        assert_eq!(count(&registry, &[("source_app", "unknown")]), None);
        assert_eq!(registry.value("istio_request_bytes", &[]), None);
        assert_eq!(registry.value("istio_response_bytes", &[]), Some(1.0));
    }
}
