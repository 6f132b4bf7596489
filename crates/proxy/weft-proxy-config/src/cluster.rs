//! Compiled clusters and endpoints. Made to be small: 5000 clusters with 15 000 endpoints fit in a few megabytes, and
//! nothing else is kept for a cluster before its first use.

use crate::ClientTls;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method};
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use weft_core::Strng;

/// A compiled cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Name.
    pub name: Strng,
    /// Name in statistics, when it differs.
    pub alt_stat_name: Option<Strng>,
    /// How endpoints are found.
    pub discovery: Discovery,
    /// Load balancing.
    pub lb: LbPolicy,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Transport of endpoints that match none of `transport_matches`.
    pub transport: UpstreamTransport,
    /// Transports by endpoint metadata (`tlsMode: istio` → mutual TLS): labels that must match, transport.
    pub transport_matches: Vec<(Vec<(Strng, Strng)>, UpstreamTransport)>,
    /// Protocol towards endpoints.
    pub protocol: UpstreamProtocol,
    /// Limits.
    pub limits: Arc<ConnectionLimits>,
    /// Outlier detection.
    pub outlier: Option<Arc<OutlierDetection>>,
    /// Active health checks.
    pub health_check: Option<Arc<HealthCheck>>,
    /// Facts for telemetry.
    pub metadata: Arc<ClusterMetadata>,
    /// Which addresses of looked-up names are used.
    pub lookup: LookupFamily,
    /// Share of healthy hosts (percent) below which health is ignored.
    pub panic_threshold: u8,
    /// Locality weights are used.
    pub locality_weighted: bool,
    /// Labels of requests choose among the endpoints.
    pub subsets: Option<Arc<Subsets>>,
    /// New endpoints get their share little by little.
    pub slow_start: Option<SlowStart>,
    /// Version of the PROXY protocol by which endpoints are told who the client is.
    pub proxy_protocol: Option<u8>,
    /// Address to connect from (`upstream_bind_config`); Istio's inbound clusters use 127.0.0.6, which marks traffic that the
    /// proxy itself sends to its workload.
    pub source_address: Option<std::net::IpAddr>,
    /// Others, for destinations of another family (`extra_source_addresses`).
    pub more_source_addresses: Vec<std::net::IpAddr>,
    /// Hash of the message: equal hash, equal cluster — its pools are kept.
    pub fingerprint: u64,
}

/// Subsets of the endpoints, by labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Subsets {
    /// What is used when labels choose nothing.
    pub fallback: SubsetFallback,
    /// Labels of the default subset, sorted.
    pub default: Vec<(Strng, Strng)>,
    /// Sets of keys by which subsets are made.
    pub selectors: Vec<SubsetSelector>,
}

/// Keys by which subsets are made.
#[derive(Debug, Clone, PartialEq)]
pub struct SubsetSelector {
    /// Sorted.
    pub keys: Vec<Strng>,
    /// In place of the cluster's fallback.
    pub fallback: Option<SubsetFallback>,
}

/// What is used when labels choose nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum SubsetFallback {
    /// No endpoint.
    None,
    /// Any endpoint.
    Any,
    /// The default subset.
    Default,
    /// What these of the keys choose.
    Keys(Vec<Strng>),
}

/// The warm-up of new endpoints (`slow_start_config`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlowStart {
    /// How long it lasts.
    pub window: Duration,
    /// The share grows as time to the power of one over this; 1 = evenly.
    pub aggression: f64,
    /// Least share, 0 to 1.
    pub least: f64,
}

/// Retries under way at once, as a share of the requests under way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Share in percent.
    pub percent: f64,
    /// So many always.
    pub least: u32,
}

/// Limits of one routing priority.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    /// Open connections.
    pub max_connections: u32,
    /// Requests waiting for a connection.
    pub max_pending: u32,
    /// Requests under way.
    pub max_requests: u32,
    /// Retries under way.
    pub max_retries: u32,
    /// Takes the place of `max_retries`.
    pub retry_budget: Option<RetryBudget>,
    /// Statistics say how much is left.
    pub track_remaining: bool,
}

/// Which addresses of a name are used (`dns_lookup_family`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LookupFamily {
    /// Those of IPv6; those of IPv4 where there are none.
    #[default]
    Auto,
    /// Those of IPv4.
    V4Only,
    /// Those of IPv6.
    V6Only,
    /// Those of IPv4; those of IPv6 where there are none.
    V4Preferred,
    /// All.
    All,
}

impl LookupFamily {
    /// Those of the addresses that are used, in their order.
    pub fn choose(self, addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
        let has = |six: bool| addresses.iter().any(|address| address.is_ipv6() == six);
        let six = match self {
            Self::Auto => Some(has(true)),
            Self::V4Only => Some(false),
            Self::V6Only => Some(true),
            Self::V4Preferred => Some(!has(false)),
            Self::All => None,
        };
        addresses.iter().copied().filter(move |address| six.is_none_or(|six| address.is_ipv6() == six))
    }
}

/// How endpoints are found.
#[derive(Debug, Clone)]
pub enum Discovery {
    /// In the message.
    Static(Arc<EndpointSet>),
    /// By EDS, under this name.
    Eds(Strng),
    /// Resolved by name; all addresses are used.
    StrictDns(Arc<EndpointSet>, Duration),
    /// Resolved by name; one address at a time.
    LogicalDns(Arc<EndpointSet>, Duration),
    /// The connection's original destination; port overridden when set.
    OriginalDst(Option<u16>),
    /// The host of each request.
    DynamicForward(Option<u16>),
}

/// Load balancing.
#[derive(Debug, Clone, PartialEq)]
pub enum LbPolicy {
    /// In turn, weighted.
    RoundRobin,
    /// The one with fewer requests of some picked at random.
    LeastRequest {
        /// How many are picked; 2 unless set.
        choices: u32,
    },
    /// At random.
    Random,
    /// Ring hash.
    RingHash {
        /// Least size of the ring.
        min_size: u64,
        /// Greatest size of the ring.
        max_size: u64,
    },
    /// Maglev.
    Maglev {
        /// Table size, a prime.
        table_size: u64,
    },
    /// The cluster decides (original destination).
    ClusterProvided,
}

/// Transport towards endpoints.
#[derive(Debug, Clone)]
pub enum UpstreamTransport {
    /// Plain.
    Plain,
    /// TLS.
    Tls(Arc<ClientTls>),
}

/// Protocol towards endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge, or by ALPN.
    Http2,
    /// What the client's side speaks.
    UseDownstream,
    /// What ALPN agrees on.
    Auto,
}

/// Limits towards a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct ConnectionLimits {
    /// Of requests of the default priority.
    pub default: Thresholds,
    /// Of requests of the high priority.
    pub high: Thresholds,
    /// Open connections to one endpoint; `u32::MAX` = no limit.
    pub max_connections_per_host: u32,
    /// Requests on one connection; 0 = no limit.
    pub max_requests_per_connection: u32,
    /// Idle time of a connection; 1 h unless set.
    pub idle_timeout: Option<Duration>,
    /// Longest life of a connection.
    pub max_connection_duration: Option<Duration>,
    /// TCP keep-alive: probes, time, interval in seconds.
    pub keepalive: Option<(u32, u32, u32)>,
    /// Concurrent streams of an HTTP/2 connection.
    pub max_concurrent_streams: u32,
}

/// Outlier detection.
#[derive(Debug, Clone, PartialEq)]
pub struct OutlierDetection {
    /// 5xx in a row; 0 = off.
    pub consecutive_5xx: u32,
    /// Gateway errors (502, 503, 504) in a row; 0 = off.
    pub consecutive_gateway: u32,
    /// Local errors in a row; 0 = off.
    pub consecutive_local: u32,
    /// Share of detections that lead to an ejection, in percent: 5xx, gateway and local errors in a row, success rate,
    /// failure percentage, and those two of local errors.
    pub enforcing: [u32; 7],
    /// Who succeeds less often than the others.
    pub success: SuccessRule,
    /// Who fails too often.
    pub failure: FailureRule,
    /// Statuses that count as errors; `None`: 500 and above.
    pub statuses: Option<Vec<u16>>,
    /// Local errors are counted apart.
    pub split_local: bool,
    /// Between sweeps.
    pub interval: Duration,
    /// First ejection.
    pub base_ejection: Duration,
    /// Longest ejection.
    pub max_ejection: Duration,
    /// Share that may be ejected.
    pub max_ejection_percent: u32,
    /// One endpoint may be ejected whatever that share is.
    pub always_one: bool,
    /// An active check that finds an ejected endpoint well takes it back.
    pub check_takes_back: bool,
}

/// Active health checks of a cluster's endpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct HealthCheck {
    /// Time for one check.
    pub timeout: Duration,
    /// Between two checks of an endpoint, as Envoy distinguishes them.
    pub intervals: CheckIntervals,
    /// Up to so much is added before the first check.
    pub initial_jitter: Duration,
    /// Up to so much is added to each interval.
    pub jitter: Duration,
    /// Up to so many percent of it are added to each interval.
    pub jitter_percent: u32,
    /// Failures in a row by which a healthy endpoint becomes unhealthy.
    pub unhealthy_threshold: u32,
    /// Successes in a row by which an unhealthy endpoint becomes healthy; the first check alone decides.
    pub healthy_threshold: u32,
    /// A connection serves for several checks.
    pub reuse_connection: bool,
    /// What is asked.
    pub probe: Probe,
}

/// Times between two checks of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckIntervals {
    /// Of a healthy one.
    pub healthy: Duration,
    /// Of an unhealthy one.
    pub unhealthy: Duration,
    /// After the first success of an unhealthy one.
    pub healthy_edge: Duration,
    /// After the first failure of a healthy one.
    pub unhealthy_edge: Duration,
    /// While the cluster has had no connection: of an unhealthy endpoint, and of a healthy one.
    pub no_traffic: [Duration; 2],
}

/// What a check asks an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub enum Probe {
    /// An HTTP request.
    Http(HttpProbe),
    /// Bytes over TCP, and those that must come back, in this order. Without any, connecting is enough.
    Tcp {
        /// Sent.
        send: Vec<u8>,
        /// Looked for in what comes back.
        receive: Vec<Vec<u8>>,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// The service that is asked about; empty: the whole server.
        service: String,
        /// `:authority`; the cluster's name unless set.
        authority: HeaderValue,
        /// Further headers.
        headers: Vec<(HeaderName, HeaderValue)>,
    },
}

impl Probe {
    /// It can only be asked over HTTP/2.
    pub fn needs_http2(&self) -> bool {
        match self {
            Probe::Http(http) => http.http2,
            Probe::Grpc { .. } => true,
            Probe::Tcp { .. } => false,
        }
    }
}

/// An HTTP request that checks an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpProbe {
    /// Host; the endpoint's own host name unless set, else the cluster's name.
    pub host: Option<HeaderValue>,
    /// What stands in for a host that is not set.
    pub cluster: HeaderValue,
    /// Path.
    pub path: PathAndQuery,
    /// Method.
    pub method: Method,
    /// Further headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Statuses of an endpoint that is well.
    pub expected: Vec<Range<u16>>,
    /// Statuses that count towards `unhealthy_threshold`; others are failures at once.
    pub retriable: Vec<Range<u16>>,
    /// Over HTTP/2.
    pub http2: bool,
    /// Looked for in the body, in this order.
    pub receive: Vec<Vec<u8>>,
    /// Bytes of the body that are looked at.
    pub most: usize,
}

/// Ejection by success rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SuccessRule {
    /// So many endpoints must have had enough requests.
    pub min_hosts: u32,
    /// Requests of an interval that are enough.
    pub volume: u32,
    /// Standard deviations below the mean.
    pub factor: f64,
}

/// Ejection by the share of failures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FailureRule {
    /// So many endpoints must have had enough requests.
    pub min_hosts: u32,
    /// Requests of an interval that are enough.
    pub volume: u32,
    /// Failures in percent.
    pub threshold: f64,
}

/// Facts of a cluster for telemetry (filter metadata `istio`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ClusterMetadata {
    /// Service host, name, namespace behind the cluster.
    pub service_host: String,
    /// Service name.
    pub service_name: String,
    /// Service namespace.
    pub service_namespace: String,
    /// External or default, `MESH_EXTERNAL`.
    pub external: bool,
}

/// Endpoints of a cluster.
#[derive(Debug, Default, PartialEq)]
pub struct EndpointSet {
    /// By locality, in order of priority.
    pub localities: Vec<LocalityEndpoints>,
    /// Share of traffic to drop, in parts per million.
    pub drop: u32,
    /// Overprovisioning factor in percent; 140 unless set.
    pub overprovisioning: u32,
}

/// Endpoints of one locality.
#[derive(Debug, PartialEq)]
pub struct LocalityEndpoints {
    /// `region/zone/subzone`.
    pub locality: Strng,
    /// Priority; 0 is used first.
    pub priority: u32,
    /// Weight; 0 = none.
    pub weight: u32,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Debug, PartialEq)]
pub struct Endpoint {
    /// Where.
    pub address: EndpointAddress,
    /// Weight; 1 unless set.
    pub weight: u32,
    /// Health as the control plane says.
    pub health: EndpointHealth,
    /// Host name, for rewriting and for ring hash.
    pub hostname: Option<Strng>,
    /// What the mesh knows of it; shared between endpoints of equal metadata.
    pub metadata: Arc<EndpointMetadata>,
    /// How it is checked.
    pub check: EndpointCheck,
}

/// How an endpoint is checked, where its cluster has active checks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EndpointCheck {
    /// Port in place of the endpoint's.
    pub port: Option<u16>,
    /// It is not checked, and taken to be well.
    pub off: bool,
}

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointAddress {
    /// IP and port.
    Ip(SocketAddr),
    /// Name and port.
    Name(Strng, u16),
    /// Unix domain socket.
    Unix(Strng),
}

/// Health as the control plane says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EndpointHealth {
    /// Use it.
    #[default]
    Healthy,
    /// Only what is pinned to it.
    Draining,
    /// Do not use it.
    Unhealthy,
}

/// Endpoint metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct EndpointMetadata {
    /// `envoy.transport_socket_match`, sorted.
    pub transport: Vec<(Strng, Strng)>,
    /// `envoy.lb`, sorted (subset labels).
    pub labels: Vec<(Strng, Strng)>,
    /// `istio.workload`: `name;namespace;canonical name;canonical revision;cluster`.
    pub workload: String,
}

/// Source-address ranges, for bind configuration.
pub type Ranges = Vec<IpNet>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_of_names() {
        use LookupFamily::{All, Auto, V4Only, V4Preferred, V6Only};
        let (four, six) = ("10.0.0.1", "fd00::1");
        let both = &[four, six][..];
        for (family, addresses, want) in [
            (Auto, both, &[six][..]),
            (Auto, &[four], &[four]),
            (V4Only, both, &[four]),
            (V4Only, &[six], &[]),
            (V6Only, both, &[six]),
            (V6Only, &[four], &[]),
            (V4Preferred, both, &[four]),
            (V4Preferred, &[six], &[six]),
            (All, both, both),
            (All, &[], &[]),
        ] {
            let parse = |all: &[&str]| all.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
            assert_eq!(family.choose(&parse(addresses)).collect::<Vec<_>>(), parse(want), "{family:?} {addresses:?}");
        }
    }
}
