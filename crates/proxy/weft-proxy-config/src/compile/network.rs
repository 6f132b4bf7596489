//! Network filters, and the TCP proxy that ends a chain.

use super::Ctx;
use crate::{NetworkFilter, TcpCluster, TcpProxy, Telemetry, Terminal, Tunnel};
use std::sync::Arc;
use std::time::Duration;
use weft_proto::Any;
use weft_proto::any::TypeUrl as _;
use weft_proto::envoy::config::listener::v3 as proto;
use weft_proto::envoy::extensions::filters::network as network_filters;
use weft_proto::envoy::r#type::v3::hash_policy;
use weft_proto::io::istio::tcp;
use weft_proto::weft::v1 as weft;
use weft_route::error::Path;
use weft_route::refuse_set;

/// Idle time of a TCP connection unless set, as in Envoy.
const TCP_IDLE: Duration = Duration::from_secs(3600);

impl Ctx<'_> {
    /// The filters before the last, and the last, which must be one that ends the chain.
    pub(super) fn network_filters(
        &mut self,
        list: &[proto::Filter],
        path: &Path<'_>,
    ) -> Option<(Vec<NetworkFilter>, Terminal)> {
        let Some((last, before)) = list.split_last() else {
            self.c.errors.refuse(&path.field("filters"), "must end in an HTTP connection manager or a TCP proxy");
            return None;
        };
        let mut filters = Vec::with_capacity(before.len());
        for (i, filter) in before.iter().enumerate() {
            filters.extend(self.network_filter(filter, &path.item("filters", i)));
        }
        let path = path.item("filters", before.len());
        let terminal = self.terminal(last, &path)?;
        if filters.iter().any(|f| matches!(f, NetworkFilter::VerifySni)) && matches!(terminal, Terminal::Http(_)) {
            self.c.errors.refuse(&path, "must be a TCP proxy: sni_verifier stands before it");
        }
        Some((filters, terminal))
    }

    fn network_config<'f>(&mut self, filter: &'f proto::Filter, path: &Path<'_>) -> Option<&'f Any> {
        match &filter.config_type {
            Some(proto::filter::ConfigType::TypedConfig(any)) => Some(any),
            Some(proto::filter::ConfigType::ConfigDiscovery(_)) => {
                self.c.errors.refuse(&path.field("config_discovery"), "is not supported by weft-proxy");
                None
            }
            None => {
                self.c.errors.refuse(&path.field("typed_config"), "must be set");
                None
            }
        }
    }

    fn network_filter(&mut self, filter: &proto::Filter, path: &Path<'_>) -> Option<NetworkFilter> {
        let any = self.network_config(filter, path)?;
        let path = path.field("typed_config");
        match any.type_url.as_str() {
            url if url == network_filters::rbac::v3::Rbac::type_url_of() => {
                let message = self.c.unpacked(any, &path)?;
                Some(NetworkFilter::Rbac(Arc::new(weft_authz::compile_network(&message, &mut self.c, &path))))
            }
            url if url == network_filters::ext_authz::v3::ExtAuthz::type_url_of() => {
                let message = self.c.unpacked(any, &path)?;
                self.network_ext_authz(&message, &path).map(|ask| NetworkFilter::ExtAuthz(Arc::new(ask)))
            }
            url if url == network_filters::connection_limit::v3::ConnectionLimit::type_url_of() => {
                let message = self.c.unpacked(any, &path)?;
                self.connection_limit(&message, &path)
            }
            url if url == network_filters::local_ratelimit::v3::LocalRateLimit::type_url_of() => {
                let message = self.c.unpacked(any, &path)?;
                self.connection_rate(&message, &path).map(|rate| NetworkFilter::ConnectionRate(Arc::new(rate)))
            }
            url if url == network_filters::sni_cluster::v3::SniCluster::type_url_of() => {
                Some(NetworkFilter::SniCluster)
            }
            url if url == network_filters::sni_dynamic_forward_proxy::v3::FilterConfig::type_url_of() => {
                let message = self.c.unpacked(any, &path)?;
                self.sni_forward(&message, &path)
            }
            url if url == tcp::forward_downstream_sni::v1::Config::type_url_of() => Some(NetworkFilter::ForwardSni),
            url if url == tcp::sni_verifier::v1::Config::type_url_of() => Some(NetworkFilter::VerifySni),
            url if url == weft::TcpTelemetry::type_url_of() => {
                let message: weft::TcpTelemetry = self.c.unpacked(any, &path)?;
                Some(NetworkFilter::Telemetry(Arc::new(Telemetry {
                    destination: message.reporter == weft::telemetry::Reporter::Destination as i32,
                    disabled: message.disabled,
                    host_is_label: false,
                    report_interval: self.c.limit(message.report_interval.as_ref(), &path.field("report_interval")),
                    overrides: Vec::new(),
                })))
            }
            url => {
                let name = &filter.name;
                let message = format!("network filter {name:?} ({url}) is not supported by weft-proxy before the last");
                self.c.errors.refuse(&path, message);
                None
            }
        }
    }

    fn sni_forward(
        &mut self,
        message: &network_filters::sni_dynamic_forward_proxy::v3::FilterConfig,
        path: &Path<'_>,
    ) -> Option<NetworkFilter> {
        use network_filters::sni_dynamic_forward_proxy::v3::filter_config::PortSpecifier;
        let network_filters::sni_dynamic_forward_proxy::v3::FilterConfig {
            // Names are kept by the one resolver of the proxy, whatever the cache is called.
            dns_cache_config: _,
            save_upstream_address: _,
            port_specifier,
        } = message;
        let port = match port_specifier {
            None => Some(443),
            Some(PortSpecifier::PortValue(port)) => u16::try_from(*port).ok().filter(|port| *port != 0),
        };
        if port.is_none() {
            self.c.errors.refuse(&path.field("port_value"), "must be 1 to 65535");
        }
        port.map(NetworkFilter::SniForward)
    }

    /// A tunnel through an HTTP proxy.
    fn tunnel(
        &mut self,
        message: &network_filters::tcp_proxy::v3::tcp_proxy::TunnelingConfig,
        path: &Path<'_>,
    ) -> Option<Tunnel> {
        let network_filters::tcp_proxy::v3::tcp_proxy::TunnelingConfig {
            hostname,
            use_post,
            headers_to_add,
            // For other filters' eyes.
            propagate_response_headers: _,
            propagate_response_trailers: _,
            post_path,
            request_id_extension,
            request_id_header,
            request_id_metadata_key,
            ..
        } = message;
        let path = path.field("tunneling_config");
        refuse_set!(self.c.errors, path, post_path, request_id_extension, request_id_header, request_id_metadata_key);
        if hostname.parse::<http::uri::Authority>().is_err() {
            let message = format!("{hostname:?} is not HOST:PORT; commands are not supported by weft-proxy");
            self.c.errors.refuse(&path.field("hostname"), message);
            return None;
        }
        let mut headers = Vec::with_capacity(headers_to_add.len());
        for (i, option) in headers_to_add.iter().enumerate() {
            let path = path.item("headers_to_add", i);
            let header = option.header.clone().unwrap_or_default();
            let name = http::HeaderName::from_bytes(header.key.to_ascii_lowercase().as_bytes()).ok();
            let bytes = if header.raw_value.is_empty() { header.value.into_bytes() } else { header.raw_value };
            let value = http::HeaderValue::from_bytes(&bytes).ok().filter(|_| !bytes.contains(&b'%'));
            match name.zip(value) {
                Some(pair) => headers.push(pair),
                None => self.c.errors.refuse(&path, "must be a header and a text; commands are not supported here"),
            }
        }
        Some(Tunnel { target: self.c.pool.text(hostname), post: *use_post, headers })
    }

    fn connection_limit(
        &mut self,
        message: &network_filters::connection_limit::v3::ConnectionLimit,
        path: &Path<'_>,
    ) -> Option<NetworkFilter> {
        let network_filters::connection_limit::v3::ConnectionLimit {
            stat_prefix: _,
            max_connections,
            delay,
            runtime_enabled,
        } = message;
        self.leave_out(delay.is_some(), &path.field("delay"));
        // There is no runtime: the default of the flag counts, and it is on unless it says otherwise.
        if runtime_enabled.as_ref().and_then(|f| f.default_value) == Some(false) {
            return None;
        }
        match max_connections {
            Some(most) if *most > 0 => Some(NetworkFilter::ConnectionLimit(*most)),
            _ => {
                self.c.errors.refuse(&path.field("max_connections"), "must be at least 1");
                None
            }
        }
    }

    fn terminal(&mut self, filter: &proto::Filter, path: &Path<'_>) -> Option<Terminal> {
        let any = self.network_config(filter, path)?;
        let path = path.field("typed_config");
        match any.type_url.as_str() {
            url if url == network_filters::http_connection_manager::v3::HttpConnectionManager::type_url_of() => {
                let message = self.c.unpacked(any, &path)?;
                self.http_connection_manager(&message, &path).map(|m| Terminal::Http(Arc::new(m)))
            }
            url if url == network_filters::tcp_proxy::v3::TcpProxy::type_url_of() => {
                let message = self.c.unpacked(any, &path)?;
                self.tcp_proxy(&message, &path).map(|p| Terminal::Tcp(Arc::new(p)))
            }
            url => {
                let name = &filter.name;
                let what = "the last filter must be an HTTP connection manager or a TCP proxy";
                self.c.errors.refuse(&path, format!("network filter {name:?} ({url}): {what}"));
                None
            }
        }
    }

    #[allow(deprecated)]
    fn tcp_proxy(&mut self, message: &network_filters::tcp_proxy::v3::TcpProxy, path: &Path<'_>) -> Option<TcpProxy> {
        let network_filters::tcp_proxy::v3::TcpProxy {
            stat_prefix,
            on_demand,
            metadata_match,
            idle_timeout,
            downstream_idle_timeout,
            upstream_idle_timeout,
            access_log,
            max_connect_attempts,
            backoff_options,
            hash_policy,
            tunneling_config,
            max_downstream_connection_duration,
            max_downstream_connection_duration_jitter_percentage,
            access_log_flush_interval,
            flush_access_log_on_connected,
            access_log_options,
            proxy_protocol_tlvs,
            // Only with the field above.
            proxy_protocol_tlv_merge_policy: _,
            upstream_connect_mode,
            max_early_data_bytes: _,
            check_drain_close: _,
            cluster_specifier,
        } = message;
        refuse_set!(
            self.c.errors,
            path,
            on_demand,
            metadata_match,
            downstream_idle_timeout,
            upstream_idle_timeout,
            proxy_protocol_tlvs,
            upstream_connect_mode
        );
        self.leave_out(backoff_options.is_some(), &path.field("backoff_options"));
        let jitter = "max_downstream_connection_duration_jitter_percentage";
        self.leave_out(max_downstream_connection_duration_jitter_percentage.is_some(), &path.field(jitter));
        let flush =
            access_log_flush_interval.is_some() || *flush_access_log_on_connected || access_log_options.is_some();
        self.leave_out(flush, &path.field("access_log_options"));
        let cluster = self.tcp_cluster(cluster_specifier.as_ref(), path)?;
        let max_duration = max_downstream_connection_duration.as_ref();
        Some(TcpProxy {
            stat_prefix: self.c.pool.text(stat_prefix),
            cluster,
            idle_timeout: match self.c.duration(idle_timeout.as_ref(), &path.field("idle_timeout")) {
                None => Some(TCP_IDLE),
                Some(Duration::ZERO) => None,
                set => set,
            },
            max_duration: self.c.limit(max_duration, &path.field("max_downstream_connection_duration")),
            max_connect_attempts: max_connect_attempts.unwrap_or(1).max(1),
            access_logs: self.access_logs(access_log, path),
            tunnel: tunneling_config.as_ref().and_then(|t| self.tunnel(t, path)),
            hash_source_ip: self.tcp_hash(hash_policy, path),
        })
    }

    fn tcp_cluster(
        &mut self,
        message: Option<&network_filters::tcp_proxy::v3::tcp_proxy::ClusterSpecifier>,
        path: &Path<'_>,
    ) -> Option<TcpCluster> {
        use network_filters::tcp_proxy::v3::tcp_proxy::ClusterSpecifier as Spec;
        match message {
            // Empty when a filter before names the cluster (sni_cluster).
            Some(Spec::Cluster(name)) => Some(TcpCluster::One(self.c.pool.text(name))),
            Some(Spec::WeightedClusters(list)) => {
                let path = path.field("weighted_clusters");
                let mut clusters = Vec::with_capacity(list.clusters.len());
                for (i, cluster) in list.clusters.iter().enumerate() {
                    let metadata_match = &cluster.metadata_match;
                    refuse_set!(self.c.errors, path.item("clusters", i), metadata_match);
                    clusters.push((self.c.pool.text(&cluster.name), cluster.weight));
                }
                let total: u64 = clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
                match u32::try_from(total) {
                    Ok(total) if total > 0 => Some(TcpCluster::Weighted(clusters, total)),
                    _ => {
                        self.c
                            .errors
                            .refuse(&path, format!("the weights add up to {total}; it must be 1 to {}", u32::MAX));
                        None
                    }
                }
            }
            None => {
                self.c.errors.refuse(path, "must name a cluster: cluster or weighted_clusters");
                None
            }
        }
    }

    fn tcp_hash(&mut self, list: &[weft_proto::envoy::r#type::v3::HashPolicy], path: &Path<'_>) -> bool {
        let mut by_source = false;
        for (i, policy) in list.iter().enumerate() {
            match &policy.policy_specifier {
                Some(hash_policy::PolicySpecifier::SourceIp(_)) => by_source = true,
                _ => self.c.errors.refuse(&path.item("hash_policy", i), "must be source_ip"),
            }
        }
        by_source
    }
}
