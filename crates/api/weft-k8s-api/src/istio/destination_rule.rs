//! `DestinationRule`: what happens to traffic after routing: subsets, load balancing, pools, outlier detection, TLS.

use super::common::{Duration, PolicySelector, PortSelector};
use crate::macros::{spec, words};
use std::collections::BTreeMap;

spec! {
    /// Policies for traffic to a service.
    pub struct DestinationRule {
        /// Service host; may be short or a `*.` wildcard.
        host: String,
        /// Policy for all subsets and ports that do not say otherwise.
        traffic_policy: Option<TrafficPolicy>,
        /// Named versions of the service.
        subsets: Vec<Subset>,
        /// Namespaces that see it: names, `.` (own) or `*` (all). Default: mesh config's `defaultDestinationRuleExportTo`.
        export_to: Vec<String>,
        /// Client workloads it applies to. Default: all.
        workload_selector: Option<PolicySelector>,
    }

    /// A named version of a service.
    pub struct Subset {
        /// Name, used by virtual services.
        name: String,
        /// Labels of its endpoints.
        labels: BTreeMap<String, String>,
        /// Policy that overrides the rule's own.
        traffic_policy: Option<TrafficPolicy>,
    }

    /// Policy for connections to a service.
    pub struct TrafficPolicy {
        /// Load balancing.
        load_balancer: Option<LoadBalancerSettings>,
        /// Limits of connections and requests.
        connection_pool: Option<ConnectionPoolSettings>,
        /// Ejection of bad endpoints.
        outlier_detection: Option<OutlierDetection>,
        /// TLS towards the service. Default: mutual TLS when the endpoint has a sidecar.
        tls: Option<ClientTlsSettings>,
        /// Overrides per service port.
        port_level_settings: Vec<PortTrafficPolicy>,
        /// Tunnel of TCP or TLS through a proxy.
        tunnel: Option<TunnelSettings>,
        /// PROXY protocol towards the service.
        proxy_protocol: Option<ProxyProtocol>,
        /// Limit of concurrent retries.
        retry_budget: Option<RetryBudget>,
    }

    /// Policy of one service port.
    pub struct PortTrafficPolicy {
        /// Service port.
        port: Option<PortSelector>,
        /// Load balancing.
        load_balancer: Option<LoadBalancerSettings>,
        /// Limits of connections and requests.
        connection_pool: Option<ConnectionPoolSettings>,
        /// Ejection of bad endpoints.
        outlier_detection: Option<OutlierDetection>,
        /// TLS towards the service.
        tls: Option<ClientTlsSettings>,
    }

    /// Tunnel of TCP or TLS.
    pub struct TunnelSettings {
        /// `CONNECT` (default) or `POST`.
        protocol: String,
        /// Host that the tunnel leads to.
        target_host: String,
        /// Port that the tunnel leads to.
        target_port: u32,
    }

    /// PROXY protocol.
    pub struct ProxyProtocol {
        /// Version of the header. Default: V1.
        version: ProxyProtocolVersion,
    }

    /// Limit of concurrent retries relative to concurrent requests.
    pub struct RetryBudget {
        /// Percent of active and pending requests. Default: 20.
        percent: Option<f64>,
        /// The API's name for how far back requests count; has no counterpart in Envoy.
        budget_interval: Option<Duration>,
        /// Retries always allowed. Default: 3.
        min_retry_concurrency: Option<u32>,
    }

    /// Load balancing; `simple` or `consistentHash`, not both.
    pub struct LoadBalancerSettings {
        /// A policy without parameters.
        simple: Option<SimpleLb>,
        /// Same key, same endpoint.
        consistent_hash: Option<ConsistentHashLb>,
        /// By locality.
        locality_lb_setting: Option<LocalityLoadBalancerSetting>,
        /// By zone, in proportion to where the clients are.
        zone_aware_lb_setting: Option<ZoneAwareLoadBalancerSetting>,
        /// Older spelling of `warmup.duration`.
        warmup_duration_secs: Option<Duration>,
        /// Slow start of new endpoints.
        warmup: Option<WarmupConfiguration>,
    }

    /// Slow start of new endpoints.
    pub struct WarmupConfiguration {
        /// How long.
        duration: Option<Duration>,
        /// Share of traffic at the start, in percent. Default: 10.
        minimum_percent: Option<f64>,
        /// Shape of the ramp; 1 (default) is linear.
        aggression: Option<f64>,
    }

    /// Consistent hashing; one key and at most one algorithm.
    pub struct ConsistentHashLb {
        /// Key: a header.
        http_header_name: Option<String>,
        /// Key: a cookie, made when missing if it has a `ttl`.
        http_cookie: Option<HttpCookie>,
        /// Key: the caller's address.
        use_source_ip: Option<bool>,
        /// Key: a query parameter.
        http_query_parameter_name: Option<String>,
        /// Algorithm: ring hash (default).
        ring_hash: Option<RingHash>,
        /// Algorithm: Maglev.
        maglev: Option<Maglev>,
        /// Older spelling of `ringHash.minimumRingSize`.
        minimum_ring_size: u64,
    }

    /// A cookie as hash key.
    pub struct HttpCookie {
        /// Name.
        name: String,
        /// Path of a made cookie.
        path: String,
        /// Life of a made cookie; `0s` = session cookie; not set = none is made.
        ttl: Option<Duration>,
        /// More attributes of a made cookie.
        attributes: Vec<CookieAttribute>,
    }

    /// An attribute of a cookie.
    pub struct CookieAttribute {
        /// Name.
        name: String,
        /// Value; empty for flags.
        value: String,
    }

    /// Ring hash.
    pub struct RingHash {
        /// Least points on the ring. Default: 1024.
        minimum_ring_size: u64,
    }

    /// Maglev.
    pub struct Maglev {
        /// Size of the table, a prime. Default: 65537.
        table_size: u64,
    }

    /// Load balancing by locality; `distribute`, or `failover` and `failoverPriority`.
    pub struct LocalityLoadBalancerSetting {
        /// Shares by locality.
        distribute: Vec<LocalityDistribute>,
        /// Which region takes over from which.
        failover: Vec<LocalityFailover>,
        /// Labels in the order in which they must be equal to the caller's for an endpoint to be preferred.
        failover_priority: Vec<String>,
        /// Default: true.
        enabled: Option<bool>,
    }

    /// Shares for callers of a locality.
    pub struct LocalityDistribute {
        /// Caller's locality `region/zone/subzone`, with `*` at its end.
        from: String,
        /// Percent by locality, 100 in all.
        to: BTreeMap<String, u32>,
    }

    /// A failover.
    pub struct LocalityFailover {
        /// Region.
        from: String,
        /// Region.
        to: String,
    }

    /// Zone-aware load balancing.
    pub struct ZoneAwareLoadBalancerSetting {
        /// Default: true.
        enabled: Option<bool>,
        /// Least endpoints for it to apply.
        min_cluster_size: Option<u32>,
        /// Which region takes over from which.
        failover: Vec<LocalityFailover>,
        /// Labels in order of preference.
        failover_priority: Vec<String>,
    }

    /// Limits.
    pub struct ConnectionPoolSettings {
        /// For all connections.
        tcp: Option<TcpSettings>,
        /// For HTTP.
        http: Option<HttpSettings>,
    }

    /// Limits of connections.
    pub struct TcpSettings {
        /// Most connections to the service. Default: 2^32-1.
        max_connections: u32,
        /// Time to connect. Default: mesh config's `connectTimeout`, 10s.
        connect_timeout: Option<Duration>,
        /// Keepalive.
        tcp_keepalive: Option<TcpKeepalive>,
        /// Longest life of a connection. Default: no limit.
        max_connection_duration: Option<Duration>,
        /// Longest idleness of a connection. Default: 1h; `0s` = no limit.
        idle_timeout: Option<Duration>,
    }

    /// Keepalive.
    pub struct TcpKeepalive {
        /// Probes without answer until the connection is dead. Default: the kernel's.
        probes: u32,
        /// Idleness until the first probe. Default: the kernel's.
        time: Option<Duration>,
        /// Between probes. Default: the kernel's.
        interval: Option<Duration>,
    }

    /// Limits of requests.
    pub struct HttpSettings {
        /// Most requests that wait for a connection. Default: 2^32-1.
        http1_max_pending_requests: u32,
        /// Most active requests. Default: 2^32-1.
        http2_max_requests: u32,
        /// Most requests per connection; 0 = no limit.
        max_requests_per_connection: u32,
        /// Most outstanding retries. Default: 2^32-1.
        max_retries: u32,
        /// Longest idleness of a connection. Default: 1h; `0s` = no limit.
        idle_timeout: Option<Duration>,
        /// Whether HTTP/1.1 is upgraded to HTTP/2.
        h2_upgrade_policy: H2UpgradePolicy,
        /// Use the protocol that the client spoke. Default: false.
        use_client_protocol: bool,
        /// Most concurrent streams of an HTTP/2 connection. Default: 2^31-1.
        max_concurrent_streams: u32,
        /// HTTP/2 keepalive.
        http2_keep_alive: Option<Http2KeepAlive>,
    }

    /// HTTP/2 keepalive.
    pub struct Http2KeepAlive {
        /// Between pings.
        interval: Option<Duration>,
        /// Wait for the answer.
        timeout: Option<Duration>,
    }

    /// Ejection of bad endpoints.
    pub struct OutlierDetection {
        /// Older spelling of `consecutive5xxErrors`.
        consecutive_errors: u32,
        /// Count failures to connect apart from answers.
        split_external_local_origin_errors: bool,
        /// Failures to connect until ejection. Default: 5.
        consecutive_local_origin_failures: Option<u32>,
        /// 502, 503 and 504 in a row until ejection. Default: off.
        consecutive_gateway_errors: Option<u32>,
        /// 5xx in a row until ejection; 0 = off. Default: 5.
        #[serde(rename = "consecutive5xxErrors")]
        consecutive_5xx_errors: Option<u32>,
        /// Between sweeps. Default: 10s.
        interval: Option<Duration>,
        /// First ejection; each one more is longer. Default: 30s.
        base_ejection_time: Option<Duration>,
        /// Most endpoints ejected, in percent. Default: 10.
        max_ejection_percent: u32,
        /// Detection is off while fewer are healthy, in percent. Default: 0.
        min_health_percent: u32,
        /// Status codes that count as errors.
        outlier_detection_http_error_codes: Vec<u32>,
    }

    /// TLS towards a service.
    pub struct ClientTlsSettings {
        /// Mode.
        mode: ClientTlsMode,
        /// File of the client certificate (`MUTUAL`).
        client_certificate: String,
        /// File of its key (`MUTUAL`).
        private_key: String,
        /// File of the CA certificates. Default: the system's.
        ca_certificates: String,
        /// Secret with key, certificate and CA (gateways, and workloads the rule selects).
        credential_name: String,
        /// Accepted names of the server.
        subject_alt_names: Vec<String>,
        /// Server name to send.
        sni: String,
        /// Do not verify the server. Default: false.
        insecure_skip_verify: Option<bool>,
        /// File of the revocation list.
        ca_crl: String,
    }
}

words! {
    /// TLS towards a service.
    pub enum ClientTlsMode {
        /// None.
        #[default]
        Disable,
        /// TLS without client certificate.
        Simple,
        /// TLS with the given client certificate.
        Mutual,
        /// Mutual TLS with the mesh's certificates.
        IstioMutual,
    }

    /// Policies without parameters.
    pub enum SimpleLb {
        /// As the mesh's default: least request.
        #[default]
        Unspecified,
        /// Older spelling of `LEAST_REQUEST`.
        LeastConn,
        /// Any endpoint.
        Random,
        /// The address that the caller dialled.
        Passthrough,
        /// In turn.
        RoundRobin,
        /// Of two random endpoints the one with fewer requests.
        LeastRequest,
    }

    /// Whether HTTP/1.1 is upgraded to HTTP/2.
    pub enum H2UpgradePolicy {
        /// As the mesh's default.
        #[default]
        Default,
        /// No.
        DoNotUpgrade,
        /// Yes.
        Upgrade,
    }

    /// Version of the PROXY protocol's header.
    pub enum ProxyProtocolVersion {
        /// Text.
        #[default]
        V1,
        /// Binary.
        V2,
    }
}

impl OutlierDetection {
    /// 5xx in a row until ejection, from either spelling. Default: 5.
    pub fn consecutive_5xx(&self) -> u32 {
        match self.consecutive_5xx_errors {
            Some(count) => count,
            None if self.consecutive_errors > 0 => self.consecutive_errors,
            None => 5,
        }
    }
}

impl TrafficPolicy {
    /// The overrides of a service port.
    pub fn port(&self, number: u16) -> Option<&PortTrafficPolicy> {
        self.port_level_settings.iter().find(|p| p.port.as_ref().is_some_and(|p| p.number == u32::from(number)))
    }
}
