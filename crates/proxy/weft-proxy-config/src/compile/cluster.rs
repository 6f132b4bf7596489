//! Clusters.

use super::{Ctx, fingerprint};
use crate::{
    Cluster, ClusterMetadata, Discovery, LbPolicy, LookupFamily, SlowStart, UpstreamProtocol, UpstreamTransport,
};
use prost::Message as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use weft_core::Strng;
use weft_proto::Any;
use weft_proto::any::TypeUrl as _;
use weft_proto::envoy::config::cluster::v3::{self as proto, cluster as c};
use weft_proto::envoy::config::common::matcher::v3::{MatchPredicate, match_predicate};
use weft_proto::envoy::config::core::v3 as core;
use weft_proto::envoy::config::route::v3::{HeaderMatcher, header_matcher};
use weft_proto::envoy::extensions::clusters::dynamic_forward_proxy::v3::ClusterConfig;
use weft_proto::envoy::extensions::clusters::dynamic_forward_proxy::v3::cluster_config::ClusterImplementationSpecifier;
use weft_proto::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use weft_proto::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use weft_proto::envoy::extensions::upstreams::http::v3::{HttpProtocolOptions, http_protocol_options as http};
use weft_route::error::Path;
use weft_route::refuse_set;

/// Key of the HTTP options among a cluster's extension options.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Envoy's time to connect unless set.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between look-ups of a name unless set.
const DNS_REFRESH: Duration = Duration::from_secs(5);

/// Compiles a cluster. `None`: it was refused.
pub fn compile_cluster(message: &proto::Cluster, bytes: &[u8], ctx: &mut Ctx<'_>) -> Option<Cluster> {
    let from = ctx.c.errors.len();
    let cluster = ctx.cluster(message, fingerprint(bytes));
    let refused = ctx.c.errors.refused_since(from).is_some();
    cluster.filter(|_| !refused)
}

impl Ctx<'_> {
    fn cluster(&mut self, message: &proto::Cluster, fingerprint: u64) -> Option<Cluster> {
        let path = Path::ROOT;
        self.refuse_cluster_fields(message, &path);
        let (message, proxy_protocol) = &self.without_proxy_protocol(message, &path);
        if message.name.is_empty() {
            self.c.errors.refuse(&path.field("name"), "must not be empty");
        }
        let mut limits = self.limits(message, &path);
        let mut protocol = UpstreamProtocol::Http1;
        let mut auto_sni = false;
        if let Some(any) = message.typed_extension_protocol_options.get(HTTP_OPTIONS) {
            (protocol, auto_sni) =
                self.http_options(any, &mut limits, &path.key("typed_extension_protocol_options", HTTP_OPTIONS));
        } else if self.old_http2(message) {
            protocol = UpstreamProtocol::Http2;
        }
        if let Some(n) = self.old_max_requests(message) {
            limits.max_requests_per_connection = n;
        }
        let transport = match &message.transport_socket {
            Some(socket) => self.transport(socket, auto_sni, &path.field("transport_socket")),
            None => UpstreamTransport::Plain,
        };
        let outlier = message.outlier_detection.as_ref();
        let statuses = self.error_statuses(message, &path);
        let outlier = outlier.map(|o| {
            let mut detection = self.outlier(o, &path.field("outlier_detection"));
            detection.statuses = statuses;
            Arc::new(detection)
        });
        let common = message.common_lb_config.as_ref();
        let connect_timeout = self.c.duration(message.connect_timeout.as_ref(), &path.field("connect_timeout"));
        Some(Cluster {
            name: self.c.pool.text(&message.name),
            alt_stat_name: (!message.alt_stat_name.is_empty()).then(|| self.c.pool.text(&message.alt_stat_name)),
            discovery: self.discovery(message, &path)?,
            lb: self.lb(message, &path),
            connect_timeout: connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            transport,
            transport_matches: self.transport_matches(message, auto_sni, &path),
            protocol,
            limits: self.shared.limits(limits),
            outlier,
            lookup: lookup_family(message),
            health_check: self.health_check(&message.health_checks, &message.name, &path),
            metadata: self.cluster_metadata(message.metadata.as_ref()),
            panic_threshold: common
                .and_then(|c| c.healthy_panic_threshold.as_ref())
                .map_or(50, |percent| percent.value.clamp(0.0, 100.0) as u8),
            locality_weighted: common.is_some_and(|c| {
                matches!(
                    c.locality_config_specifier,
                    Some(c::common_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig(_))
                )
            }),
            subsets: message.lb_subset_config.as_ref().and_then(|config| self.subsets(config, &path)),
            slow_start: self.slow_start(message, &path),
            proxy_protocol: *proxy_protocol,
            source_address: self.source_address(message.upstream_bind_config.as_ref(), &path),
            more_source_addresses: self.more_source_addresses(message.upstream_bind_config.as_ref(), &path),
            fingerprint,
        })
    }

    /// Fields that nothing here does. Taken apart whole, so that a new field of the message is noticed; those used elsewhere
    /// in this file, and those tolerated, are named.
    #[allow(deprecated)]
    fn refuse_cluster_fields(&mut self, message: &proto::Cluster, path: &Path<'_>) {
        let proto::Cluster {
            transport_socket_matches: _,
            transport_socket_matcher,
            name: _,
            alt_stat_name: _,
            // Only statistics.
            stats_matcher: _,
            lrs_server,
            lrs_report_endpoint_metrics: _,
            track_timeout_budgets: _,
            track_cluster_stats: _,
            eds_cluster_config: _,
            connect_timeout: _,
            // Bounds of buffers; this proxy has bounds of its own.
            per_connection_buffer_limit_bytes: _,
            per_connection_buffer_high_watermark_timeout: _,
            lb_policy: _,
            load_assignment: _,
            // Compiled.
            health_checks: _,
            max_requests_per_connection: _,
            circuit_breakers: _,
            upstream_http_protocol_options,
            common_http_protocol_options,
            http_protocol_options: _,
            http2_protocol_options: _,
            typed_extension_protocol_options,
            dns_refresh_rate: _,
            dns_jitter: _,
            dns_failure_refresh_rate: _,
            // The resolver's own rules hold: the least of the record's lifetime and the refresh rate.
            respect_dns_ttl: _,
            // Compiled.
            dns_lookup_family: _,
            dns_resolvers,
            use_tcp_for_dns_lookups: _,
            dns_resolution_config,
            typed_dns_resolver_config,
            // A cluster serves as soon as its endpoints are there.
            wait_for_warm_on_init: _,
            outlier_detection: _,
            cleanup_interval: _,
            upstream_bind_config: _,
            lb_subset_config: _,
            common_lb_config: _,
            transport_socket: _,
            metadata: _,
            protocol_selection,
            // Keepalive is used; the rest concerns the choice between address families and interface names.
            upstream_connection_options: _,
            close_connections_on_host_health_failure,
            // Health comes from the control plane alone, so a removed endpoint is removed.
            ignore_health_on_host_removal: _,
            filters,
            load_balancing_policy,
            upstream_config,
            // Connections made ahead of need.
            preconnect_policy: _,
            connection_pool_per_downstream_connection,
            queuing_policies,
            cluster_discovery_type: _,
            lb_config: _,
        } = message;
        refuse_set!(
            self.c.errors,
            path,
            transport_socket_matcher,
            lrs_server,
            upstream_http_protocol_options,
            common_http_protocol_options,
            dns_resolvers,
            dns_resolution_config,
            typed_dns_resolver_config,
            protocol_selection,
            filters,
            load_balancing_policy,
            upstream_config,
            connection_pool_per_downstream_connection,
            queuing_policies
        );
        let path_of_flag = path.field("close_connections_on_host_health_failure");
        self.leave_out(*close_connections_on_host_health_failure, &path_of_flag);
        for key in typed_extension_protocol_options.keys().filter(|key| *key != HTTP_OPTIONS) {
            let message = "options of this extension are not supported by weft-proxy";
            self.c.errors.refuse(&path.key("typed_extension_protocol_options", key), message);
        }
        self.refuse_balancing_fields(message, path);
    }

    /// Of balancing, what is left out: the balancer then works as if it had not been set.
    fn refuse_balancing_fields(&mut self, message: &proto::Cluster, path: &Path<'_>) {
        let Some(common) = &message.common_lb_config else { return };
        let path = path.field("common_lb_config");
        let c::CommonLbConfig {
            healthy_panic_threshold: _,
            // Changes take effect at once.
            update_merge_window: _,
            // Endpoints that were not checked yet are counted as unhealthy.
            ignore_new_hosts_until_first_hc: _,
            close_connections_on_host_set_change,
            consistent_hashing_lb_config,
            override_host_status,
            // Zone-aware routing needs a local cluster, which the bootstrap cannot name here.
            locality_config_specifier: _,
        } = common;
        refuse_set!(self.c.errors, path, override_host_status);
        let path_of_flag = path.field("close_connections_on_host_set_change");
        self.leave_out(*close_connections_on_host_set_change, &path_of_flag);
        self.leave_out(consistent_hashing_lb_config.is_some(), &path.field("consistent_hashing_lb_config"));
    }

    /// Warm-up of new endpoints.
    fn slow_start(&mut self, message: &proto::Cluster, path: &Path<'_>) -> Option<SlowStart> {
        let config = match &message.lb_config {
            Some(c::LbConfig::RoundRobinLbConfig(config)) => config.slow_start_config.as_ref(),
            Some(c::LbConfig::LeastRequestLbConfig(config)) => config.slow_start_config.as_ref(),
            _ => None,
        }?;
        let path = path.field("slow_start_config");
        let window = self.c.limit(config.slow_start_window.as_ref(), &path.field("slow_start_window"))?;
        let aggression = config.aggression.as_ref().map_or(1.0, |a| a.default_value);
        if aggression.is_nan() || aggression <= 0.0 {
            self.c.errors.refuse(&path.field("aggression"), "must be above 0");
        }
        let least = config.min_weight_percent.as_ref().map_or(10.0, |p| p.value).clamp(0.0, 100.0) / 100.0;
        Some(SlowStart { window, aggression, least })
    }

    /// The cluster as it would be without the PROXY protocol around its transports, and the version of that.
    fn without_proxy_protocol(&mut self, message: &proto::Cluster, path: &Path<'_>) -> (proto::Cluster, Option<u8>) {
        let mut plain = message.clone();
        let mut found = Vec::new();
        let matches = plain.transport_socket_matches.iter_mut().map(|m| &mut m.transport_socket);
        for socket in matches.chain(std::iter::once(&mut plain.transport_socket)) {
            if let Some(version) = socket.as_ref().and_then(|s| self.proxy_protocol(s, path)) {
                found.push(version.0);
                *socket = version.1;
            } else if socket.is_some() || message.transport_socket_matches.is_empty() {
                found.push(None);
            }
        }
        let version = found.first().copied().flatten();
        if found.iter().any(|v| *v != version) {
            let why = "the PROXY protocol must be the same for all transports of a cluster";
            self.c.errors.refuse(&path.field("transport_socket"), why);
        }
        (plain, version)
    }

    /// Version and inner transport, when a transport is the PROXY protocol's.
    fn proxy_protocol(
        &mut self,
        socket: &core::TransportSocket,
        path: &Path<'_>,
    ) -> Option<(Option<u8>, Option<core::TransportSocket>)> {
        let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else { return None };
        if any.type_url != ProxyProtocolUpstreamTransport::type_url_of() {
            return None;
        }
        let path = path.field("transport_socket");
        let message: ProxyProtocolUpstreamTransport = self.c.unpacked(any, &path)?;
        let config = message.config.unwrap_or_default();
        self.leave_out(config.pass_through_tlvs.is_some() || !config.added_tlvs.is_empty(), &path.field("config"));
        let v1 = core::proxy_protocol_config::Version::V1 as i32;
        Some((Some(if config.version == v1 { 1 } else { 2 }), message.transport_socket))
    }

    /// The statuses that count as errors of an endpoint (`outlier_detection.error_matcher` of the HTTP options).
    fn error_statuses(&mut self, message: &proto::Cluster, path: &Path<'_>) -> Option<Vec<u16>> {
        let any = message.typed_extension_protocol_options.get(HTTP_OPTIONS)?;
        let options: HttpProtocolOptions = weft_proto::unpack(any).ok()?;
        let matcher = options.outlier_detection?.error_matcher?;
        let mut statuses = Vec::new();
        if !collect_statuses(&matcher, &mut statuses, 0) {
            let path = path.key("typed_extension_protocol_options", HTTP_OPTIONS);
            let why = "weft-proxy takes exact matches of :status, alone or in or_match";
            self.c.errors.refuse(&path.field("outlier_detection").field("error_matcher"), why);
        }
        Some(statuses)
    }

    #[allow(deprecated)]
    fn old_http2(&self, message: &proto::Cluster) -> bool {
        message.http2_protocol_options.is_some()
    }

    #[allow(deprecated)]
    fn old_max_requests(&self, message: &proto::Cluster) -> Option<u32> {
        message.max_requests_per_connection
    }

    /// HTTP options: version towards endpoints, idle time, requests per connection; whether SNI follows the host.
    fn http_options(
        &mut self,
        any: &Any,
        limits: &mut crate::ConnectionLimits,
        path: &Path<'_>,
    ) -> (UpstreamProtocol, bool) {
        let Some(options) = self.c.unpacked::<HttpProtocolOptions>(any, path) else {
            return (UpstreamProtocol::Http1, false);
        };
        let HttpProtocolOptions {
            common_http_protocol_options,
            upstream_http_protocol_options,
            http_filters,
            header_validation_config,
            // Read where outlier detection is.
            outlier_detection: _,
            request_mirror_policies,
            hash_policy,
            retry_policy,
            upstream_protocol_options,
        } = &options;
        refuse_set!(self.c.errors, path, header_validation_config, request_mirror_policies, hash_policy, retry_policy);
        if http_filters.iter().any(|f| {
            !matches!(f.name.as_str(), "envoy.filters.http.upstream_codec" | "istio.metadata_exchange_upstream")
        }) {
            self.c.errors.refuse(&path.field("http_filters"), "upstream HTTP filters are not supported by weft-proxy");
        }
        if let Some(common) = common_http_protocol_options {
            let path = path.field("common_http_protocol_options");
            if let Some(idle) = &common.idle_timeout {
                limits.idle_timeout = self.c.limit(Some(idle), &path.field("idle_timeout"));
            }
            if let Some(n) = common.max_requests_per_connection {
                limits.max_requests_per_connection = n;
            }
            limits.max_connection_duration =
                self.c.limit(common.max_connection_duration.as_ref(), &path.field("max_connection_duration"));
        }
        let auto_sni = upstream_http_protocol_options.as_ref().is_some_and(|o| o.auto_sni);
        let http2 = |h2: Option<&core::Http2ProtocolOptions>, limits: &mut crate::ConnectionLimits| {
            if let Some(n) = h2.and_then(|h| h.max_concurrent_streams) {
                limits.max_concurrent_streams = n.max(1);
            }
        };
        let protocol = match upstream_protocol_options {
            Some(http::UpstreamProtocolOptions::ExplicitHttpConfig(config)) => match &config.protocol_config {
                Some(http::explicit_http_config::ProtocolConfig::Http2ProtocolOptions(h2)) => {
                    http2(Some(h2), limits);
                    UpstreamProtocol::Http2
                }
                Some(http::explicit_http_config::ProtocolConfig::Http3ProtocolOptions(_)) => {
                    self.c.errors.refuse(path, "HTTP/3 towards endpoints is not supported by weft-proxy");
                    UpstreamProtocol::Http1
                }
                _ => UpstreamProtocol::Http1,
            },
            Some(http::UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => {
                http2(config.http2_protocol_options.as_ref(), limits);
                UpstreamProtocol::UseDownstream
            }
            Some(http::UpstreamProtocolOptions::AutoConfig(config)) => {
                http2(config.http2_protocol_options.as_ref(), limits);
                UpstreamProtocol::Auto
            }
            None => UpstreamProtocol::Http1,
        };
        (protocol, auto_sni)
    }

    fn discovery(&mut self, message: &proto::Cluster, path: &Path<'_>) -> Option<Discovery> {
        let kind = match &message.cluster_discovery_type {
            Some(c::ClusterDiscoveryType::ClusterType(custom)) => return self.custom(custom, path),
            Some(c::ClusterDiscoveryType::Type(kind)) => c::DiscoveryType::try_from(*kind).ok(),
            None => Some(c::DiscoveryType::Static),
        };
        let refresh = self.dns_refresh(message, path);
        let set = |this: &mut Self| {
            let path = path.field("load_assignment");
            let endpoints = message.load_assignment.as_ref().map(|a| this.endpoints(a, &path));
            Arc::new(endpoints.unwrap_or_default())
        };
        Some(match kind {
            Some(c::DiscoveryType::Static) => Discovery::Static(set(self)),
            Some(c::DiscoveryType::StrictDns) => Discovery::StrictDns(set(self), refresh),
            Some(c::DiscoveryType::LogicalDns) => Discovery::LogicalDns(set(self), refresh),
            Some(c::DiscoveryType::Eds) => {
                let service = message.eds_cluster_config.as_ref().map(|e| e.service_name.as_str());
                let name = service.filter(|s| !s.is_empty()).unwrap_or(&message.name);
                Discovery::Eds(self.c.pool.text(name))
            }
            Some(c::DiscoveryType::OriginalDst) => Discovery::OriginalDst(self.original_dst_port(message, path)),
            None => {
                self.c.errors.refuse(&path.field("type"), "is not a discovery type that weft-proxy knows");
                return None;
            }
        })
    }

    #[allow(deprecated)]
    fn dns_refresh(&mut self, message: &proto::Cluster, path: &Path<'_>) -> Duration {
        let set = self.c.duration(message.dns_refresh_rate.as_ref(), &path.field("dns_refresh_rate"));
        set.unwrap_or(DNS_REFRESH).max(Duration::from_millis(100))
    }

    fn original_dst_port(&mut self, message: &proto::Cluster, path: &Path<'_>) -> Option<u16> {
        let Some(c::LbConfig::OriginalDstLbConfig(config)) = &message.lb_config else { return None };
        if config.use_http_header || config.metadata_key.is_some() {
            let path = path.field("original_dst_lb_config");
            self.c.errors.refuse(&path, "use_http_header and metadata_key are not supported by weft-proxy");
        }
        config.upstream_port_override.and_then(|port| u16::try_from(port).ok())
    }

    fn custom(&mut self, custom: &c::CustomClusterType, path: &Path<'_>) -> Option<Discovery> {
        let path = path.field("cluster_type");
        let Some(any) = custom.typed_config.as_ref().filter(|_| custom.name == "envoy.clusters.dynamic_forward_proxy")
        else {
            self.c.errors.refuse(&path, format!("cluster type {:?} is not supported by weft-proxy", custom.name));
            return None;
        };
        self.c.unpacked::<ClusterConfig>(any, &path.field("typed_config"))?;
        Some(Discovery::DynamicForward(None))
    }

    fn lb(&mut self, message: &proto::Cluster, path: &Path<'_>) -> LbPolicy {
        match c::LbPolicy::try_from(message.lb_policy) {
            Ok(c::LbPolicy::RoundRobin) => LbPolicy::RoundRobin,
            Ok(c::LbPolicy::LeastRequest) => {
                let choices = match &message.lb_config {
                    Some(c::LbConfig::LeastRequestLbConfig(config)) => config.choice_count.unwrap_or(2),
                    _ => 2,
                };
                LbPolicy::LeastRequest { choices: choices.max(2) }
            }
            Ok(c::LbPolicy::Random) => LbPolicy::Random,
            Ok(c::LbPolicy::RingHash) => {
                let (min, max) = match &message.lb_config {
                    Some(c::LbConfig::RingHashLbConfig(ring)) => (ring.minimum_ring_size, ring.maximum_ring_size),
                    _ => (None, None),
                };
                LbPolicy::RingHash { min_size: min.unwrap_or(1024), max_size: max.unwrap_or(8 << 20) }
            }
            Ok(c::LbPolicy::Maglev) => {
                let size = match &message.lb_config {
                    Some(c::LbConfig::MaglevLbConfig(maglev)) => maglev.table_size,
                    _ => None,
                };
                LbPolicy::Maglev { table_size: size.unwrap_or(65537) }
            }
            Ok(c::LbPolicy::ClusterProvided) => LbPolicy::ClusterProvided,
            _ => {
                self.c.errors.refuse(&path.field("lb_policy"), "is not a policy that weft-proxy knows");
                LbPolicy::RoundRobin
            }
        }
    }

    fn transport_matches(
        &mut self,
        message: &proto::Cluster,
        auto_sni: bool,
        path: &Path<'_>,
    ) -> Vec<(Vec<(Strng, Strng)>, UpstreamTransport)> {
        let mut matches = Vec::with_capacity(message.transport_socket_matches.len());
        for (i, entry) in message.transport_socket_matches.iter().enumerate() {
            let path = path.item("transport_socket_matches", i);
            let labels = entry.r#match.as_ref().map(|fields| self.texts(fields)).unwrap_or_default();
            let transport = match &entry.transport_socket {
                Some(socket) => self.transport(socket, auto_sni, &path.field("transport_socket")),
                None => UpstreamTransport::Plain,
            };
            matches.push((labels, transport));
        }
        matches
    }

    fn transport(&mut self, socket: &core::TransportSocket, auto_sni: bool, path: &Path<'_>) -> UpstreamTransport {
        let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
            if socket.name != "envoy.transport_sockets.raw_buffer" {
                self.c.errors.refuse(&path.field("typed_config"), "must be set");
            }
            return UpstreamTransport::Plain;
        };
        let path = path.field("typed_config");
        match any.type_url.rsplit('/').next().unwrap_or_default() {
            "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => UpstreamTransport::Plain,
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" => {
                match self.c.unpacked::<UpstreamTlsContext>(any, &path) {
                    Some(context) => UpstreamTransport::Tls(Arc::new(self.client_tls(&context, auto_sni, &path))),
                    None => UpstreamTransport::Plain,
                }
            }
            other => {
                self.c.errors.refuse(&path, format!("transport socket {other} is not supported by weft-proxy"));
                UpstreamTransport::Plain
            }
        }
    }

    fn source_address(&mut self, bind: Option<&core::BindConfig>, path: &Path<'_>) -> Option<IpAddr> {
        let source = bind?.source_address.as_ref()?;
        let path = path.field("upstream_bind_config");
        Some(self.socket_address(source, &path.field("source_address"))?.ip())
    }

    fn more_source_addresses(&mut self, bind: Option<&core::BindConfig>, path: &Path<'_>) -> Vec<IpAddr> {
        let path = path.field("upstream_bind_config");
        let path = path.field("extra_source_addresses");
        let given = bind.map_or(&[][..], |bind| bind.extra_source_addresses.as_slice());
        let addresses = given.iter().filter_map(|extra| extra.address.as_ref());
        addresses.filter_map(|address| Some(self.socket_address(address, &path)?.ip())).collect()
    }

    /// Service facts from filter metadata `istio`: `services: [{host, name, namespace}]`, `external`.
    fn cluster_metadata(&mut self, metadata: Option<&core::Metadata>) -> Arc<ClusterMetadata> {
        use prost_types::value::Kind;
        let mut facts = ClusterMetadata::default();
        let istio = metadata.and_then(|m| m.filter_metadata.get("istio"));
        if let Some(istio) = istio {
            facts.external = matches!(istio.fields.get("external").map(|v| &v.kind), Some(Some(Kind::BoolValue(true))));
            let services = istio.fields.get("services").and_then(|v| v.kind.as_ref());
            if let Some(Kind::ListValue(list)) = services
                && let Some(Kind::StructValue(first)) = list.values.first().and_then(|v| v.kind.as_ref())
            {
                let text = |key: &str| first.fields.get(key).and_then(super::endpoint::text_of).unwrap_or_default();
                facts.service_host = text("host").into();
                facts.service_name = text("name").into();
                facts.service_namespace = text("namespace").into();
            }
        }
        self.shared.cluster_metadata(facts)
    }
}

/// Deepest nesting of conditions on an answer.
const MAX_DEPTH: usize = 16;

/// Collects the statuses that a condition names; false when it is more than a list of statuses.
fn collect_statuses(predicate: &MatchPredicate, statuses: &mut Vec<u16>, depth: usize) -> bool {
    match &predicate.rule {
        _ if depth > MAX_DEPTH => false,
        Some(match_predicate::Rule::OrMatch(set)) => {
            set.rules.iter().all(|rule| collect_statuses(rule, statuses, depth + 1))
        }
        Some(match_predicate::Rule::HttpResponseHeadersMatch(headers)) => match &headers.headers[..] {
            [only] if only.name == ":status" && !only.invert_match => {
                let status: Option<u16> = exact_text(only).and_then(|text| text.parse().ok());
                statuses.extend(status);
                status.is_some()
            }
            _ => false,
        },
        _ => false,
    }
}

#[allow(deprecated)]
fn exact_text(header: &HeaderMatcher) -> Option<&str> {
    use weft_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
    match header.header_match_specifier.as_ref()? {
        header_matcher::HeaderMatchSpecifier::ExactMatch(text) => Some(text),
        header_matcher::HeaderMatchSpecifier::StringMatch(text) => match text.match_pattern.as_ref()? {
            MatchPattern::Exact(text) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

/// Compiles a cluster from its encoded form.
pub fn decode_cluster(any: &Any, ctx: &mut Ctx<'_>) -> Option<Cluster> {
    match proto::Cluster::decode(any.value.as_slice()) {
        Ok(message) => compile_cluster(&message, &any.value, ctx),
        Err(error) => {
            ctx.c.errors.refuse(&Path::ROOT, format!("does not decode: {error}"));
            None
        }
    }
}

/// Which addresses of names are used: the cluster's own word, or that of the cache by which it forwards to any host. What is no
/// family is refused with the message.
fn lookup_family(message: &proto::Cluster) -> LookupFamily {
    let family = match &message.cluster_discovery_type {
        Some(c::ClusterDiscoveryType::ClusterType(custom)) => {
            let any = custom.typed_config.as_ref();
            let config = any.and_then(|any| weft_proto::unpack::<ClusterConfig>(any).ok());
            let cache = config.and_then(|config| match config.cluster_implementation_specifier? {
                ClusterImplementationSpecifier::DnsCacheConfig(cache) => Some(cache),
                ClusterImplementationSpecifier::SubClustersConfig(_) => None,
            });
            cache.map_or(0, |cache| cache.dns_lookup_family)
        }
        _ => message.dns_lookup_family,
    };
    match c::DnsLookupFamily::try_from(family) {
        Ok(c::DnsLookupFamily::V4Only) => LookupFamily::V4Only,
        Ok(c::DnsLookupFamily::V6Only) => LookupFamily::V6Only,
        Ok(c::DnsLookupFamily::V4Preferred) => LookupFamily::V4Preferred,
        Ok(c::DnsLookupFamily::All) => LookupFamily::All,
        Ok(c::DnsLookupFamily::Auto) | Err(_) => LookupFamily::Auto,
    }
}
