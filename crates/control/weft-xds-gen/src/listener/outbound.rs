//! Outbound listeners: one for each port of all HTTP, one for each address and port of other services. They bind no
//! socket: the virtual outbound listener hands connections over by their original destination.
//!
//! Where services want one address and port for different protocols, they share the listener: HTTP is told from the rest
//! by its first bytes, TLS by server name, ranges by address; what still collides goes to the older service.

use super::catch_all::PASSTHROUGH_CHAIN;
use super::chain::{Chain, PLAIN_HTTP, RAW_BUFFER, add_without_collision};
use super::hcm::{self, Options, Place, RouteSource};
use super::l4::Call;
use super::{Maker, inspect};
use crate::gateway;
use crate::pb::core::TrafficDirection;
use crate::pb::listener::{FilterChain, FilterChainMatch, Listener};
use crate::pb::{self, address, http_filter, network_filter, value};
use crate::resource::{Resource, Resources, by_name};
use crate::route::OutboundRoute;
use crate::scope::Egress;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use weft_core::Strng;
use weft_k8s_api::istio::{CaptureMode, IstioEgressListener, Port};
use weft_model::{EndpointAddress, Protocol, Registry, Resolution, Service, ServicePort};
use weft_proto::envoy::extensions::filters::http::dynamic_forward_proxy::v3 as http_dfp;
use weft_proto::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as sni_dfp;

/// Outbound listeners, and what belongs to them.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    pub listeners: Arc<Resources>,
    /// Route configurations that they ask for.
    pub routes: BTreeSet<OutboundRoute>,
    /// Listeners for single pods of headless services: a pod does not get the one for itself.
    pub of_pods: BTreeMap<IpAddr, Vec<String>>,
    /// Listeners with a socket of their own: connections come to them, not from the virtual outbound listener.
    pub bound: BTreeSet<Strng>,
}

/// How the protocol of a listener is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Http,
    Tcp,
    /// By the first bytes.
    Detected,
}

/// A listener while services are added to it.
struct Entry {
    bind: String,
    port: u16,
    bind_to_port: bool,
    kind: Kind,
    protocol: Protocol,
    chains: Vec<Chain>,
    /// It belongs to a listener of the Sidecar with a port of its own: services of the others are not added.
    closed: bool,
}

/// Where the listeners of one egress listener of the Sidecar bind.
#[derive(Debug, Clone, Default)]
struct Binding {
    bind: Option<String>,
    bind_to_port: bool,
}

struct Build<'a> {
    maker: Maker<'a>,
    entries: BTreeMap<(String, u16), Entry>,
    routes: BTreeSet<OutboundRoute>,
    of_pods: BTreeMap<IpAddr, Vec<String>>,
}

/// All of them.
pub(crate) fn listeners(maker: Maker<'_>, intercepts: bool) -> Outbound {
    let mut build = Build { maker, entries: BTreeMap::new(), routes: BTreeSet::new(), of_pods: BTreeMap::new() };
    for egress in &maker.view.scope.egress {
        let binding = binding(egress.listener.as_ref(), intercepts, maker.view.scope.key.ipv6);
        match egress.listener.as_ref().and_then(|l| l.port.as_ref()) {
            Some(own) if egress.for_all_ports() => build.for_all_ports(egress, own, &binding),
            Some(own) => build.of_port(egress, own, &binding),
            None => {
                build.entries.values_mut().for_each(|entry| entry.closed = true);
                build.egress(egress, &binding);
            }
        }
    }
    let sockets = build.entries.values().filter(|entry| entry.bind_to_port);
    let bound = sockets.map(|entry| listener_name(&entry.bind, entry.port).into()).collect();
    let listeners = build.entries.into_values().map(|entry| {
        let listener = message(maker, entry);
        Resource::new(listener.name.clone(), &listener)
    });
    Outbound { listeners: Arc::new(by_name(listeners)), routes: build.routes, of_pods: build.of_pods, bound }
}

fn binding(listener: Option<&IstioEgressListener>, intercepts: bool, ipv6: bool) -> Binding {
    let own = listener.map(|l| l.bind.as_str()).filter(|bind| !bind.is_empty());
    let bind_to_port = !intercepts
        || listener.is_some_and(|l| l.capture_mode == CaptureMode::None)
        || own.is_some_and(|bind| bind.starts_with("unix://"));
    let loopback = || (if ipv6 { "::1" } else { "127.0.0.1" }).to_string();
    Binding { bind: own.map(str::to_string).or_else(|| bind_to_port.then(loopback)), bind_to_port }
}

impl Build<'_> {
    fn egress(&mut self, egress: &Egress, binding: &Binding) {
        for service in own_services(egress) {
            for service_port in service.ports.iter().filter(|p| p.protocol != Protocol::Udp) {
                self.service_port(egress, service, service_port, binding);
            }
        }
    }

    /// The Sidecar's listener says what is spoken on its port.
    fn of_port(&mut self, egress: &Egress, own: &Port, binding: &Binding) {
        for service in own_services(egress) {
            let of_port = |p: &&ServicePort| p.protocol != Protocol::Udp && u32::from(p.number) == own.number;
            for port in service.ports.iter().filter(of_port) {
                let port = ServicePort { protocol: gateway::protocol(&own.protocol), ..port.clone() };
                self.service_port(egress, service, &port, binding);
            }
        }
    }

    /// One listener, whatever port a request is for. Bytes do not say which: they go to the first service that has one port.
    fn for_all_ports(&mut self, egress: &Egress, own: &Port, binding: &Binding) {
        let protocol = gateway::protocol(&own.protocol);
        let Ok(number) = u16::try_from(own.number) else { return };
        let carried = |s: &Service| s.ports.iter().filter(|p| p.protocol != Protocol::Udp).count();
        let first = |s: &&Arc<Service>| protocol.is_http() || carried(s) == 1;
        let Some(service) = own_services(egress).find(first) else { return };
        let bind = binding.bind.clone().unwrap_or_else(|| self.maker.view.scope.key.wildcard().into());
        let (kind, chains) = if protocol.is_http() {
            let route = if number == 0 { OutboundRoute::Socket(bind.clone()) } else { OutboundRoute::Port(number) };
            let port = ServicePort { number, protocol, ..ServicePort::default() };
            let dynamic: Vec<Strng> = egress.services.iter().flat_map(|s| own_name(s)).collect();
            let chain = http_chain(self.maker, &bind, &port, service, &route, (false, &dynamic));
            self.routes.insert(route);
            (Kind::Http, vec![chain])
        } else {
            let of_service = service.ports.iter().find(|p| p.protocol != Protocol::Udp);
            let Some(port) = of_service.map(|port| ServicePort { protocol, ..port.clone() }) else { return };
            let call =
                Call { service, port: &port, listen_port: port.number, destinations: Vec::new(), wildcard: false };
            let mut own = Vec::new();
            add_without_collision(&mut own, self.maker.l4_chains(&call, &egress.virtual_services));
            (Kind::Tcp, own)
        };
        let key = (bind.clone(), number);
        let bind_to_port = binding.bind_to_port;
        let entry = Entry { bind, port: number, bind_to_port, kind, protocol, chains, closed: true };
        self.entries.entry(key).or_insert(entry);
    }

    fn service_port(&mut self, egress: &Egress, service: &Arc<Service>, port: &ServicePort, binding: &Binding) {
        if port.protocol.is_http() {
            self.http(egress, service, port, binding);
            return;
        }
        if binding.bind.is_none()
            && service.resolution == Resolution::Passthrough
            && addresses(self, service).is_empty()
        {
            self.headless(egress, service, port, binding);
            return;
        }
        let wildcard = self.maker.view.scope.key.wildcard();
        if let Some(bind) = &binding.bind {
            self.other(egress, service, port, bind.clone(), Vec::new(), binding.bind_to_port);
            return;
        }
        let vips = addresses(self, service);
        if vips.is_empty() {
            self.other(egress, service, port, wildcard.into(), Vec::new(), false);
        }
        for net in vips.iter().filter(|net| address::is_host(net)) {
            self.other(egress, service, port, net.addr().to_string(), Vec::new(), false);
        }
        let blocks: Vec<IpNet> = vips.into_iter().filter(|net| !address::is_host(net)).collect();
        if !blocks.is_empty() {
            self.other(egress, service, port, wildcard.into(), blocks, false);
        }
    }

    /// Pods of a headless service are dialled at their own addresses. Without known pods, any address will do.
    fn headless(&mut self, egress: &Egress, service: &Arc<Service>, port: &ServicePort, binding: &Binding) {
        let endpoints = self.maker.view.snapshot.endpoints_of(service, port.number);
        let ips: BTreeSet<IpAddr> = endpoints
            .into_iter()
            .flat_map(|all| all.iter())
            .filter_map(|e| match &e.address {
                EndpointAddress::Ip(ip, _) => Some(*ip),
                _ => None,
            })
            .collect();
        if ips.is_empty() && service.registry != Some(Registry::Kubernetes) {
            let wildcard = self.maker.view.scope.key.wildcard();
            self.other(egress, service, port, wildcard.into(), Vec::new(), binding.bind_to_port);
        }
        for ip in ips {
            let bind = ip.to_string();
            self.of_pods.entry(ip).or_default().push(listener_name(&bind, port.number));
            self.other(egress, service, port, bind, Vec::new(), binding.bind_to_port);
        }
    }

    fn http(&mut self, egress: &Egress, service: &Arc<Service>, port: &ServicePort, binding: &Binding) {
        let wildcard = self.maker.view.scope.key.wildcard();
        let bind = binding.bind.clone().unwrap_or_else(|| wildcard.into());
        let key = (bind.clone(), port.number);
        let route = OutboundRoute::Port(port.number);
        let shared = bind == wildcard;
        match self.entries.get_mut(&key) {
            Some(entry) if entry.closed || entry.kind != Kind::Tcp => {}
            Some(entry) if clash(entry.protocol, port.protocol) => {}
            Some(entry) => {
                let dynamic = dynamic_services(egress, port.number);
                let chain = http_chain(self.maker, &bind, port, service, &route, (true, &dynamic));
                add_without_collision(&mut entry.chains, vec![chain]);
                entry.kind = Kind::Detected;
                self.routes.insert(route);
            }
            None => {
                let dynamic = dynamic_services(egress, port.number);
                let chain = http_chain(self.maker, &bind, port, service, &route, (shared, &dynamic));
                self.routes.insert(route);
                let entry = Entry {
                    bind,
                    port: port.number,
                    bind_to_port: binding.bind_to_port,
                    // On the address of all, TCP of others may come to the same port.
                    kind: if shared { Kind::Detected } else { Kind::Http },
                    protocol: port.protocol,
                    chains: vec![chain],
                    closed: false,
                };
                self.entries.insert(key, entry);
            }
        }
    }

    /// TCP, TLS, and what is not known.
    fn other(
        &mut self,
        egress: &Egress,
        service: &Arc<Service>,
        port: &ServicePort,
        bind: String,
        destinations: Vec<IpNet>,
        bind_to_port: bool,
    ) {
        let key = (bind.clone(), port.number);
        let known = self.entries.get(&key);
        if known.is_some_and(|entry| entry.closed || clash(entry.protocol, port.protocol)) {
            return;
        }
        let wildcard = bind == self.maker.view.scope.key.wildcard();
        let call = Call { service, port, listen_port: port.number, destinations, wildcard };
        let mut chains = self.maker.l4_chains(&call, &egress.virtual_services);
        if port.protocol == Protocol::Unknown && known.is_none_or(|entry| entry.kind != Kind::Detected) {
            let route = if wildcard {
                OutboundRoute::Port(port.number)
            } else {
                OutboundRoute::Sniffed(service.host.to_string(), port.number)
            };
            let dynamic = if wildcard { dynamic_services(egress, port.number) } else { own_name(service) };
            chains.push(http_chain(self.maker, &bind, port, service, &route, (true, &dynamic)));
            self.routes.insert(route);
        }
        let kind = if port.protocol == Protocol::Unknown { Kind::Detected } else { Kind::Tcp };
        match self.entries.get_mut(&key) {
            Some(entry) => {
                add_without_collision(&mut entry.chains, chains);
                if entry.kind != kind {
                    entry.kind = Kind::Detected;
                }
            }
            None => {
                let mut own = Vec::new();
                add_without_collision(&mut own, chains);
                let protocol = port.protocol;
                let entry = Entry { bind, port: port.number, bind_to_port, kind, protocol, chains: own, closed: false };
                self.entries.insert(key, entry);
            }
        }
    }
}

/// Who calls a service by another name dials its addresses.
fn own_services(egress: &Egress) -> impl Iterator<Item = &Arc<Service>> {
    egress.services.iter().filter(|service| service.alias_of.is_none())
}

/// Addresses of a service for this scope: its own; those the mesh gave it where the proxy answers DNS.
fn addresses(build: &Build<'_>, service: &Service) -> Vec<IpNet> {
    if !service.addresses.is_empty() || !build.maker.view.scope.key.dns_capture {
        return service.addresses.clone();
    }
    let key = &build.maker.view.scope.key;
    service.auto_addresses.iter().filter(|ip| key.speaks(ip)).map(|ip| IpNet::from(*ip)).collect()
}

/// Protocols in which the server speaks first cannot share a port with ones that are told by the client's first bytes.
fn clash(known: Protocol, new: Protocol) -> bool {
    let server_first = |p| matches!(p, Protocol::Mongo | Protocol::MySql);
    known != new && (server_first(known) || server_first(new))
}

fn listener_name(bind: &str, port: u16) -> String {
    format!("{bind}_{port}")
}

fn http_chain(
    maker: Maker<'_>,
    bind: &str,
    port: &ServicePort,
    service: &Service,
    route: &OutboundRoute,
    (detected, dynamic): (bool, &[Strng]),
) -> Chain {
    let options = Options {
        place: Place::Outbound,
        stat_prefix: format!("outbound_{}", listener_name(bind, port.number)),
        routes: RouteSource::Rds(route.name()),
        protocol: port.protocol,
        authz: Vec::new(),
        extra: dynamic.iter().map(|host| dynamic_forward(maker, host)).collect(),
    };
    Chain {
        protocols: if detected { PLAIN_HTTP.to_vec() } else { Vec::new() },
        transport: if detected { RAW_BUFFER } else { "" },
        filters: vec![hcm::filter(maker.view.mesh(), maker.observe, options)],
        // All services of the port share the chain: it comes from none of them alone.
        metadata: matches!(route, OutboundRoute::Sniffed(..)).then(|| value::provenance(&service.provenance)),
        ..Chain::default()
    }
}

/// Hosts of services of a port that are found by the name of each request: all HTTP of the port shares one chain.
fn dynamic_services(egress: &Egress, port: u16) -> Vec<Strng> {
    let on_port = |s: &&Arc<Service>| s.ports.iter().any(|p| p.number == port);
    egress.services.iter().filter(on_port).flat_map(|s| own_name(s)).collect()
}

/// The host of a service that is found by the name of each request.
pub(crate) fn own_name(service: &Service) -> Vec<Strng> {
    if service.resolution == Resolution::DynamicDns { vec![service.host.clone()] } else { Vec::new() }
}

/// Resolves the host of a request before it is forwarded to it.
pub(crate) fn dynamic_forward(maker: Maker<'_>, host: &str) -> pb::hcm::HttpFilter {
    let cache = crate::cluster::fixed::dns_cache(host, maker.view.scope.key.ipv6, maker.view.scope.key.dual);
    let config = http_dfp::FilterConfig {
        implementation_specifier: Some(http_dfp::filter_config::ImplementationSpecifier::DnsCacheConfig(cache)),
        ..Default::default()
    };
    http_filter("envoy.filters.http.dynamic_forward_proxy", &config)
}

/// Resolves the server name of a TLS connection before it is forwarded to it.
pub(super) fn sni_forward(maker: Maker<'_>, host: &str, port: u16) -> pb::listener::Filter {
    let cache = crate::cluster::fixed::dns_cache(host, maker.view.scope.key.ipv6, maker.view.scope.key.dual);
    let config = sni_dfp::FilterConfig {
        dns_cache_config: Some(cache),
        port_specifier: Some(sni_dfp::filter_config::PortSpecifier::PortValue(port.into())),
        ..Default::default()
    };
    network_filter("envoy.filters.network.sni_dynamic_forward_proxy", &config)
}

fn message(maker: Maker<'_>, entry: Entry) -> Listener {
    let mut filters = Vec::new();
    if inspect::wants_tls(&entry.chains) {
        filters.push(inspect::tls());
    }
    let detects_http = inspect::wants_http(&entry.chains);
    if detects_http {
        filters.push(inspect::http());
    }
    let (all, some): (Vec<Chain>, Vec<Chain>) = entry.chains.into_iter().partition(Chain::matches_all);
    let mut filter_chains: Vec<FilterChain> = some.into_iter().map(Chain::build).collect();
    let mut default = all.into_iter().next().map(Chain::build);
    if filter_chains.is_empty() {
        filter_chains.extend(default.take());
    } else if default.is_none() {
        default = Some(FilterChain {
            filter_chain_match: Some(FilterChainMatch::default()),
            name: PASSTHROUGH_CHAIN.into(),
            filters: maker.unknown_destination(),
            ..Default::default()
        });
    }
    Listener {
        name: listener_name(&entry.bind, entry.port),
        address: Some(match entry.bind.strip_prefix("unix://") {
            Some(path) => address::pipe(path),
            None => address::socket(&entry.bind, entry.port),
        }),
        additional_addresses: address::other_family(&entry.bind, entry.port, maker.view.scope.key.dual),
        bind_to_port: (!entry.bind_to_port).then_some(false),
        traffic_direction: TrafficDirection::Outbound as i32,
        listener_filters: filters,
        listener_filters_timeout: Some(if detects_http { maker.detection_timeout() } else { pb::zero() }),
        continue_on_listener_filters_timeout: true,
        filter_chains,
        default_filter_chain: default,
        ..Default::default()
    }
}
