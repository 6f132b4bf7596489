//! Listeners, filter chains and listener filters.

use super::{Ctx, fingerprint};
use crate::matching::ChainIndex;
use crate::{
    ChainMatch, FilterChain, Inspect, ListenAddress, Listener, OriginalSource, SecretSource, ServerTls,
    TrafficDirection, Transport,
};
use ipnet::IpNet;
use prost::Message as _;
use std::sync::Arc;
use weft_core::Strng;
use weft_proto::Any;
use weft_proto::any::TypeUrl;
use weft_proto::envoy::config::core::v3 as core;
use weft_proto::envoy::config::listener::v3 as proto;
use weft_proto::envoy::extensions::filters::listener as listener_filters;
use weft_proto::envoy::extensions::transport_sockets as sockets;
use weft_proto::envoy::r#type::v3::Int32Range;
use weft_route::compile::provenance;
use weft_route::error::Path;
use weft_route::refuse_set;

/// Ports that the conditions of a listener filter may list.
const MAX_LISTED_PORTS: usize = 1024;
/// Deepest nesting of such conditions.
const MAX_DEPTH: usize = 16;

/// Compiles a listener that takes the place of `before`. `None`: it was refused. Filter chains that did not change are the same
/// ones in both, so that their connections are left alone.
pub fn compile_listener(
    message: &proto::Listener,
    fingerprint: u64,
    before: Option<&Listener>,
    ctx: &mut Ctx<'_>,
) -> Option<Listener> {
    let from = ctx.c.errors.len();
    let listener = ctx.listener(message, fingerprint, before);
    let refused = ctx.c.errors.refused_since(from).is_some();
    listener.filter(|_| !refused)
}

impl Ctx<'_> {
    #[allow(deprecated)]
    fn listener(&mut self, message: &proto::Listener, fingerprint: u64, before: Option<&Listener>) -> Option<Listener> {
        let path = Path::ROOT;
        let proto::Listener {
            name,
            address,
            additional_addresses,
            // Only statistics.
            stat_prefix: _,
            stats_matcher: _,
            filter_chains,
            fcds_config,
            filter_chain_matcher,
            use_original_dst,
            default_filter_chain,
            // Bounds of buffers; this proxy has bounds of its own.
            per_connection_buffer_limit_bytes: _,
            per_connection_buffer_high_watermark_timeout: _,
            metadata: _,
            deprecated_v1,
            // Every listener drains when it changes or goes.
            drain_type: _,
            listener_filters,
            listener_filters_timeout,
            continue_on_listener_filters_timeout,
            transparent,
            freebind,
            socket_options,
            // Only speed of connecting.
            tcp_fast_open_queue_length: _,
            traffic_direction,
            udp_listener_config,
            api_listener,
            // Each worker accepts on a socket of its own: the kernel balances.
            connection_balance_config: _,
            reuse_port: _,
            enable_reuse_port,
            access_log,
            tcp_backlog_size: _,
            max_connections_to_accept_per_socket_event: _,
            bind_to_port,
            enable_mptcp,
            ignore_global_conn_limit,
            // There is no overload manager whose limits it could be exempt from.
            bypass_overload_manager: _,
            tcp_keepalive,
            listener_specifier,
        } = message;
        refuse_set!(
            self.c.errors,
            path,
            fcds_config,
            filter_chain_matcher,
            freebind,
            udp_listener_config,
            api_listener,
            enable_mptcp,
            listener_specifier
        );
        self.leave_out(!socket_options.is_empty(), &path.field("socket_options"));
        self.leave_out(tcp_keepalive.is_some(), &path.field("tcp_keepalive"));
        let mut addresses: Vec<_> = self.listen_address(address.as_ref(), &path.field("address")).into_iter().collect();
        for (i, more) in additional_addresses.iter().enumerate() {
            let path = path.item("additional_addresses", i);
            self.leave_out(
                more.socket_options.is_some() || more.tcp_keepalive.is_some(),
                &path.field("socket_options"),
            );
            addresses.extend(self.listen_address(more.address.as_ref(), &path.field("address")));
        }
        if name.is_empty() {
            self.c.errors.refuse(&path.field("name"), "must not be empty");
        }
        let chains = self.chains(filter_chains, before);
        let index = self.chain_index(&chains);
        let default = default_filter_chain.as_ref();
        let old_default = before.and_then(|b| b.default_chain.as_ref());
        let old_default = old_default.map_or(&[][..], std::slice::from_ref);
        let default_chain = default.and_then(|c| self.chain(c, old_default, &path.field("default_filter_chain")));
        if chains.is_empty() && default_chain.is_none() {
            self.c.errors.refuse(&path.field("filter_chains"), "must hold at least one filter chain");
        }
        let mut inspect = self.inspect(listener_filters, &path);
        inspect.timeout = self.c.duration(listener_filters_timeout.as_ref(), &path.field("listener_filters_timeout"));
        inspect.continue_on_timeout = *continue_on_listener_filters_timeout;
        let bind = bind_to_port.or(deprecated_v1.as_ref().and_then(|old| old.bind_to_port)).unwrap_or(true);
        Some(Listener {
            name: self.c.pool.text(name),
            addresses,
            bind,
            use_original_dst: use_original_dst.unwrap_or(false),
            transparent: transparent.unwrap_or(false),
            reuse_port: enable_reuse_port.unwrap_or(true),
            inspect,
            chains,
            index,
            default_chain,
            direction: match core::TrafficDirection::try_from(*traffic_direction) {
                Ok(core::TrafficDirection::Inbound) => TrafficDirection::Inbound,
                Ok(core::TrafficDirection::Outbound) => TrafficDirection::Outbound,
                _ => TrafficDirection::Unspecified,
            },
            access_logs: self.access_logs(access_log, &path),
            fingerprint,
            max_connections: None,
            exempt: *ignore_global_conn_limit,
        })
    }

    /// Reports a field that changes nothing essential, and goes on without it.
    pub(crate) fn leave_out(&mut self, set: bool, path: &Path<'_>) {
        if set {
            self.c.errors.degrade(path, "is not supported by weft-proxy and left out");
        }
    }

    fn listen_address(&mut self, message: Option<&core::Address>, path: &Path<'_>) -> Option<ListenAddress> {
        match message.and_then(|m| m.address.as_ref()) {
            Some(core::address::Address::SocketAddress(socket)) => {
                let path = path.field("socket_address");
                let network_namespace_filepath = &socket.network_namespace_filepath;
                refuse_set!(self.c.errors, path, network_namespace_filepath);
                self.socket_address(socket, &path).map(ListenAddress::Tcp)
            }
            Some(core::address::Address::Pipe(pipe)) => Some(ListenAddress::Unix(self.c.pool.text(&pipe.path))),
            Some(core::address::Address::EnvoyInternalAddress(_)) => {
                self.c.errors.refuse(path, "internal listeners are not supported by weft-proxy");
                None
            }
            None => {
                self.c.errors.refuse(path, "must be set: socket_address or pipe");
                None
            }
        }
    }

    fn chains(&mut self, list: &[proto::FilterChain], before: Option<&Listener>) -> Vec<Arc<FilterChain>> {
        let before = before.map_or(&[][..], |b| b.chains.as_slice());
        list.iter()
            .enumerate()
            .filter_map(|(i, chain)| self.chain(chain, before, &Path::ROOT.item("filter_chains", i)))
            .collect()
    }

    fn chain_index(&mut self, chains: &[Arc<FilterChain>]) -> ChainIndex {
        let (index, errors) = ChainIndex::build(chains.iter().map(|c| &c.matcher));
        for (number, reason) in errors {
            let path = Path::ROOT.item("filter_chains", number);
            self.c.errors.refuse(&path.field("filter_chain_match"), reason);
        }
        index
    }

    fn chain(
        &mut self,
        message: &proto::FilterChain,
        before: &[Arc<FilterChain>],
        path: &Path<'_>,
    ) -> Option<Arc<FilterChain>> {
        let fingerprint = fingerprint(&message.encode_to_vec());
        if let Some(same) = before.iter().find(|c| c.fingerprint == fingerprint && !reads_files(c)) {
            return Some(same.clone());
        }
        self.new_chain(message, fingerprint, path).map(Arc::new)
    }

    #[allow(deprecated)]
    fn new_chain(&mut self, message: &proto::FilterChain, fingerprint: u64, path: &Path<'_>) -> Option<FilterChain> {
        let proto::FilterChain {
            filter_chain_match,
            filters,
            use_proxy_proto,
            metadata,
            transport_socket,
            transport_socket_connect_timeout,
            name,
        } = message;
        refuse_set!(self.c.errors, path, use_proxy_proto);
        let matcher = filter_chain_match.as_ref();
        let matcher = matcher.map(|m| self.chain_match(m, &path.field("filter_chain_match"))).unwrap_or_default();
        let socket = transport_socket.as_ref();
        let tls = socket.and_then(|s| self.server_socket(s, &path.field("transport_socket")));
        let timeout_path = path.field("transport_socket_connect_timeout");
        let handshake_timeout = self.c.limit(transport_socket_connect_timeout.as_ref(), &timeout_path);
        let (filters, terminal) = self.network_filters(filters, path)?;
        Some(FilterChain {
            name: self.c.pool.text(name),
            matcher,
            tls,
            handshake_timeout,
            filters,
            terminal,
            origin: provenance(metadata.as_ref()).map(Arc::new),
            fingerprint,
        })
    }

    fn chain_match(&mut self, message: &proto::FilterChainMatch, path: &Path<'_>) -> ChainMatch {
        use proto::filter_chain_match::ConnectionSourceType as SourceType;
        let proto::FilterChainMatch {
            destination_port,
            prefix_ranges,
            address_suffix,
            suffix_len,
            direct_source_prefix_ranges,
            source_type,
            source_prefix_ranges,
            source_ports,
            server_names,
            transport_protocol,
            application_protocols,
        } = message;
        refuse_set!(self.c.errors, path, address_suffix, suffix_len);
        let port = destination_port.as_ref().and_then(|p| self.one_port(*p, &path.field("destination_port")));
        let names = server_names.iter().enumerate();
        ChainMatch {
            destination_port: port,
            destination: self.ranges(prefix_ranges, "prefix_ranges", path),
            server_names: names.filter_map(|(i, n)| self.server_name(n, &path.item("server_names", i))).collect(),
            transport: match transport_protocol.as_str() {
                "" => None,
                "raw_buffer" => Some(Transport::RawBuffer),
                "tls" => Some(Transport::Tls),
                other => {
                    let message = format!("{other:?} is not supported by weft-proxy; write tls or raw_buffer");
                    self.c.errors.refuse(&path.field("transport_protocol"), message);
                    None
                }
            },
            application_protocols: application_protocols.iter().map(|p| self.c.pool.text(p)).collect(),
            source: self.ranges(source_prefix_ranges, "source_prefix_ranges", path),
            source_ports: source_ports
                .iter()
                .enumerate()
                .filter_map(|(i, p)| self.one_port(*p, &path.item("source_ports", i)))
                .collect(),
            source_local: match SourceType::try_from(*source_type) {
                Ok(SourceType::Any) => None,
                Ok(SourceType::SameIpOrLoopback) => Some(true),
                Ok(SourceType::External) => Some(false),
                Err(_) => {
                    self.c.errors.refuse(&path.field("source_type"), "must be ANY, SAME_IP_OR_LOOPBACK or EXTERNAL");
                    None
                }
            },
            direct_source: self.ranges(direct_source_prefix_ranges, "direct_source_prefix_ranges", path),
        }
    }

    fn ranges(&mut self, list: &[core::CidrRange], field: &str, path: &Path<'_>) -> Vec<IpNet> {
        list.iter().enumerate().filter_map(|(i, r)| self.range(r, &path.item(field, i))).collect()
    }

    fn one_port(&mut self, port: u32, path: &Path<'_>) -> Option<u16> {
        let small = u16::try_from(port).ok().filter(|p| *p != 0);
        if small.is_none() {
            self.c.errors.refuse(path, format!("{port} is not a port; it must be 1 to 65535"));
        }
        small
    }

    fn server_name(&mut self, name: &str, path: &Path<'_>) -> Option<Strng> {
        let rest = name.strip_prefix("*.").unwrap_or(name);
        if rest.is_empty() || rest.contains('*') {
            self.c.errors.refuse(path, format!("{name:?} must be a host name or *.suffix"));
            return None;
        }
        Some(self.c.pool.text(&name.to_ascii_lowercase()))
    }

    fn server_socket(&mut self, message: &core::TransportSocket, path: &Path<'_>) -> Option<Arc<ServerTls>> {
        let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &message.config_type else {
            self.c.errors.refuse(&path.field("typed_config"), "must be set");
            return None;
        };
        let path = path.field("typed_config");
        if any.type_url == sockets::raw_buffer::v3::RawBuffer::type_url_of() {
            return None;
        }
        if any.type_url != sockets::tls::v3::DownstreamTlsContext::type_url_of() {
            let message =
                format!("transport socket {:?} ({}) is not supported by weft-proxy", message.name, any.type_url);
            self.c.errors.refuse(&path, message);
            return None;
        }
        let context = self.c.unpacked(any, &path)?;
        Some(Arc::new(self.server_tls(&context, &path)))
    }

    /// Listener filters, as switches.
    fn inspect(&mut self, list: &[proto::ListenerFilter], path: &Path<'_>) -> Inspect {
        let mut inspect = Inspect::default();
        let (mut tls_off, mut http_off) = (None, None);
        for (i, filter) in list.iter().enumerate() {
            let path = path.item("listener_filters", i);
            let Some(any) = self.listener_filter_config(filter, &path) else { continue };
            let disabled = filter.filter_disabled.as_ref();
            match any.type_url.as_str() {
                url if url == listener_filters::tls_inspector::v3::TlsInspector::type_url_of() => {
                    inspect.tls = true;
                    tls_off = disabled;
                }
                url if url == listener_filters::http_inspector::v3::HttpInspector::type_url_of() => {
                    inspect.http = true;
                    http_off = disabled;
                }
                url => {
                    let filter_disabled = &filter.filter_disabled;
                    refuse_set!(self.c.errors, path, filter_disabled);
                    self.other_listener_filter(url, filter, any, &mut inspect, &path.field("typed_config"));
                }
            }
        }
        self.disabled_ports(tls_off, http_off, &mut inspect, path);
        inspect
    }

    fn listener_filter_config<'f>(&mut self, filter: &'f proto::ListenerFilter, path: &Path<'_>) -> Option<&'f Any> {
        match &filter.config_type {
            Some(proto::listener_filter::ConfigType::TypedConfig(any)) => Some(any),
            Some(proto::listener_filter::ConfigType::ConfigDiscovery(_)) => {
                self.c.errors.refuse(&path.field("config_discovery"), "is not supported by weft-proxy");
                None
            }
            None => {
                self.c.errors.refuse(&path.field("typed_config"), "must be set");
                None
            }
        }
    }

    fn other_listener_filter(
        &mut self,
        url: &str,
        filter: &proto::ListenerFilter,
        any: &Any,
        inspect: &mut Inspect,
        path: &Path<'_>,
    ) {
        if url == listener_filters::original_dst::v3::OriginalDst::type_url_of() {
            inspect.original_dst = true;
            return;
        }
        if url == listener_filters::original_src::v3::OriginalSrc::type_url_of() {
            let Some(message) = self.c.unpacked(any, path) else { return };
            let listener_filters::original_src::v3::OriginalSrc { bind_port, mark } = message;
            inspect.original_src = Some(OriginalSource { mark, port: bind_port });
            return;
        }
        if url != listener_filters::proxy_protocol::v3::ProxyProtocol::type_url_of() {
            let message = format!("listener filter {:?} ({url}) is not supported by weft-proxy", filter.name);
            self.c.errors.refuse(path, message);
            return;
        }
        let Some(message) = self.c.unpacked(any, path) else { return };
        let listener_filters::proxy_protocol::v3::ProxyProtocol {
            rules,
            allow_requests_without_proxy_protocol,
            pass_through_tlvs,
            disallowed_versions,
            stat_prefix: _,
            tlv_location: _,
        } = &message;
        refuse_set!(self.c.errors, path, disallowed_versions);
        self.leave_out(!rules.is_empty(), &path.field("rules"));
        self.leave_out(pass_through_tlvs.is_some(), &path.field("pass_through_tlvs"));
        inspect.proxy_protocol = Some(*allow_requests_without_proxy_protocol);
    }

    /// Evaluates the conditions on every port that they name, and on one that they do not.
    fn disabled_ports(
        &mut self,
        tls: Option<&proto::ListenerFilterChainMatchPredicate>,
        http: Option<&proto::ListenerFilterChainMatchPredicate>,
        inspect: &mut Inspect,
        path: &Path<'_>,
    ) {
        let mut ports = Vec::new();
        for predicate in [tls, http].into_iter().flatten() {
            if let Err(reason) = named_ports(predicate, &mut ports, 0) {
                self.c.errors.refuse(&path.field("listener_filters").field("filter_disabled"), reason);
                return;
            }
        }
        ports.sort_unstable();
        ports.dedup();
        let off = |predicate: Option<&_>, port: Option<u16>| predicate.is_some_and(|p| holds(p, port));
        inspect.off_elsewhere = (off(tls, None), off(http, None));
        inspect.disabled_ports =
            ports.iter().map(|port| (*port, off(tls, Some(*port)), off(http, Some(*port)))).collect();
    }
}

/// A chain whose certificates come from files or inline text: the files may have changed.
fn reads_files(chain: &FilterChain) -> bool {
    let inline = |source: &SecretSource| matches!(source, SecretSource::Inline(..));
    chain.tls.as_ref().is_some_and(|tls| tls.spec.certificates.iter().chain(&tls.spec.validation).any(inline))
}

type Rule = proto::listener_filter_chain_match_predicate::Rule;

/// Collects the ports that a condition names.
fn named_ports(
    predicate: &proto::ListenerFilterChainMatchPredicate,
    ports: &mut Vec<u16>,
    depth: usize,
) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("is nested deeper than {MAX_DEPTH}"));
    }
    match &predicate.rule {
        Some(Rule::OrMatch(set) | Rule::AndMatch(set)) => {
            set.rules.iter().try_for_each(|rule| named_ports(rule, ports, depth + 1))
        }
        Some(Rule::NotMatch(inner)) => named_ports(inner, ports, depth + 1),
        Some(Rule::AnyMatch(_)) => Ok(()),
        Some(Rule::DestinationPortRange(Int32Range { start, end })) => {
            let named = (*start).max(0)..(*end).min(65536);
            if ports.len() + named.len() > MAX_LISTED_PORTS {
                return Err(format!("names more than {MAX_LISTED_PORTS} ports"));
            }
            ports.extend(named.filter_map(|port| u16::try_from(port).ok()));
            Ok(())
        }
        None => Err("must set a rule".into()),
    }
}

/// The condition holds for that port; `None` is a port that no condition names.
fn holds(predicate: &proto::ListenerFilterChainMatchPredicate, port: Option<u16>) -> bool {
    match &predicate.rule {
        Some(Rule::OrMatch(set)) => set.rules.iter().any(|rule| holds(rule, port)),
        Some(Rule::AndMatch(set)) => set.rules.iter().all(|rule| holds(rule, port)),
        Some(Rule::NotMatch(inner)) => !holds(inner, port),
        Some(Rule::AnyMatch(any)) => *any,
        Some(Rule::DestinationPortRange(range)) => {
            port.is_some_and(|port| (range.start..range.end).contains(&i32::from(port)))
        }
        None => false,
    }
}
