//! Inbound: the listener that captured connections to the workload come to, with the chains of each port by its
//! mutual-TLS mode, and those for ports that no service leads to.

use super::chain::{Chain, MESH_ANY, MESH_HTTP, MESH_TCP, PLAIN_HTTP, RAW_BUFFER, TLS};
use super::hcm::{self, Options, Place, RouteSource};
use super::{Maker, inspect, tcp};
use crate::authn::{self, AuthnPolicy};
use crate::authz::{self, AuthzPolicy, TrustDomains};
use crate::cluster::inbound::InboundPort;
use crate::cluster::tls::{mesh_mtls_params, of_trust_domains};
use crate::observe::Side;
use crate::pb::core::TrafficDirection;
use crate::pb::hcm::HttpFilter;
use crate::pb::listener::{Filter, Listener};
use crate::pb::{address, secret, tls, value};
use crate::proxy::ProxyView;
use crate::resource::{Resource, Resources, by_name};
use crate::route;
use std::sync::Arc;
use weft_core::names::{BLACK_HOLE_CLUSTER, INBOUND_PASSTHROUGH_CLUSTER};
use weft_model::{MtlsMode, Protocol};

/// Name of the listener.
pub(crate) const NAME: &str = "virtualInbound";
/// Port of the listener unless the mesh config says otherwise.
const DEFAULT_PORT: u16 = weft_core::well_known::port::INBOUND;
/// ALPN that HTTP chains agree to. `istio` is the last resort for clients that offer no protocol.
const HTTP_ALPN: [&str; 3] = ["h2", "http/1.1", "istio"];
/// ALPN that TCP chains agree to.
const TCP_ALPN: [&str; 3] = ["istio", "h2", "http/1.1"];

/// What is spoken on a port, as far as chains differ by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spoken {
    Http,
    Tcp,
    /// Told by ALPN and first bytes.
    Unknown,
}

impl From<Protocol> for Spoken {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            p if p.is_http() => Spoken::Http,
            Protocol::Unknown => Spoken::Unknown,
            _ => Spoken::Tcp,
        }
    }
}

/// One chain of a port: what it matches, whether it opens mutual TLS, and whether it reads HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Variant {
    protocols: &'static [&'static str],
    transport: &'static str,
    opens: bool,
    http: bool,
}

const fn variant(protocols: &'static [&'static str], transport: &'static str, opens: bool, http: bool) -> Variant {
    Variant { protocols, transport, opens, http }
}

/// The chains of a port.
fn variants(mode: MtlsMode, spoken: Spoken) -> &'static [Variant] {
    const NONE: &[&str] = &[];
    match (mode, spoken) {
        (MtlsMode::Strict, Spoken::Http) => const { &[variant(NONE, TLS, true, true)] },
        (MtlsMode::Strict, Spoken::Tcp) => const { &[variant(NONE, TLS, true, false)] },
        (MtlsMode::Strict, Spoken::Unknown) => {
            const { &[variant(&MESH_HTTP, TLS, true, true), variant(NONE, TLS, true, false)] }
        }
        (MtlsMode::Permissive, Spoken::Http) => {
            const { &[variant(&MESH_ANY, TLS, true, true), variant(NONE, RAW_BUFFER, false, true)] }
        }
        (MtlsMode::Permissive, Spoken::Tcp) => {
            const {
                &[
                    variant(&MESH_ANY, TLS, true, false),
                    // TLS of the application's own.
                    variant(NONE, TLS, false, false),
                    variant(NONE, RAW_BUFFER, false, false),
                ]
            }
        }
        (MtlsMode::Permissive, Spoken::Unknown) => {
            const {
                &[
                    variant(&MESH_HTTP, TLS, true, true),
                    variant(&PLAIN_HTTP, RAW_BUFFER, false, true),
                    variant(&MESH_TCP, TLS, true, false),
                    variant(NONE, RAW_BUFFER, false, false),
                    variant(NONE, TLS, false, false),
                ]
            }
        }
        (MtlsMode::Disable, Spoken::Http) => const { &[variant(NONE, "", false, true)] },
        (MtlsMode::Disable, Spoken::Tcp) => const { &[variant(NONE, "", false, false)] },
        (MtlsMode::Disable, Spoken::Unknown) => {
            const { &[variant(&PLAIN_HTTP, RAW_BUFFER, false, true), variant(NONE, "", false, false)] }
        }
    }
}

/// What the inbound listeners of one workload are made of.
pub(crate) struct Inbound<'a> {
    pub maker: Maker<'a>,
    pub proxy: &'a ProxyView,
    pub ports: &'a [InboundPort],
    pub policies: Vec<Arc<AuthzPolicy>>,
    pub tokens: Vec<Arc<AuthnPolicy>>,
}

impl Inbound<'_> {
    /// The virtual inbound listener, and those that a Sidecar gives sockets of their own.
    pub fn listeners(&self) -> Resources {
        let (own, captured): (Vec<&InboundPort>, Vec<&InboundPort>) =
            self.ports.iter().partition(|port| port.bind.is_some());
        let mut listeners = Vec::new();
        if self.proxy.intercepts() {
            let mut chains = self.passthrough_chains();
            chains.extend(captured.iter().flat_map(|port| self.port_chains(port, true)));
            listeners.push(self.listener(NAME.into(), self.proxy.wildcard(), self.listen_port(), true, chains));
        }
        for port in own {
            let bind = port.bind.as_deref().unwrap_or_else(|| self.proxy.wildcard());
            let chains = self.port_chains(port, false);
            listeners.push(self.listener(format!("{bind}_{}", port.port), bind, port.port, false, chains));
        }
        by_name(listeners.iter().map(|l| Resource::new(l.name.as_str(), l)))
    }

    fn listen_port(&self) -> u16 {
        let mesh = self.maker.view.mesh();
        u16::try_from(mesh.proxy_inbound_listen_port).ok().filter(|p| *p != 0).unwrap_or(DEFAULT_PORT)
    }

    fn listener(&self, name: String, bind: &str, port: u16, captured: bool, chains: Vec<Chain>) -> Listener {
        let mut filters = Vec::new();
        if captured {
            filters.push(inspect::original_dst());
        }
        if captured && self.proxy.transparent() {
            filters.push(inspect::original_src());
        }
        filters.extend(inspect::inbound(&chains));
        Listener {
            name,
            address: Some(address::socket(bind, port)),
            additional_addresses: address::other_family(bind, port, self.proxy.dual()),
            transparent: (captured && self.proxy.transparent()).then_some(true),
            traffic_direction: TrafficDirection::Inbound as i32,
            listener_filters: filters,
            listener_filters_timeout: Some(self.maker.detection_timeout()),
            continue_on_listener_filters_timeout: true,
            filter_chains: chains.into_iter().map(Chain::build).collect(),
            access_log: self.maker.observe.side(Side::Server).listener_logs.clone(),
            ..Default::default()
        }
    }

    /// Ports that no service leads to, each with a mode of its own where a policy names it; and the trap for connections
    /// to the listener's own port, which would come back to it for ever.
    fn passthrough_chains(&self) -> Vec<Chain> {
        let trap = tcp::to_cluster(BLACK_HOLE_CLUSTER);
        let mut chains = vec![Chain {
            name: format!("{NAME}-blackhole"),
            port: Some(self.listen_port()),
            filters: self.maker.tcp_filters(Side::Server, trap, Vec::new()),
            ..Chain::default()
        }];
        for port in self.ports_with_a_mode() {
            chains.extend(self.unserved_chains(Some(port)));
        }
        chains.extend(self.unserved_chains(None));
        chains
    }

    /// Ports that a peer authentication names and no service leads to.
    fn ports_with_a_mode(&self) -> Vec<u16> {
        let snapshot = self.maker.view.snapshot;
        let policies = snapshot.peer_auth.workloads.get(self.proxy.namespace()).into_iter().flatten();
        let selecting = policies.filter(|p| p.selector.iter().all(|(k, v)| self.proxy.labels.get(k) == Some(v)));
        let named = selecting.take(1).flat_map(|p| p.spec.port_level_mtls.keys().copied());
        let mut ports: Vec<u16> = named
            .filter_map(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0 && self.ports.iter().all(|p| p.port != *port))
            .collect();
        ports.sort_unstable();
        ports
    }

    fn unserved_chains(&self, port: Option<u16>) -> Vec<Chain> {
        let mode = self.mode(port.unwrap_or_default());
        let chain = |v: &Variant| {
            let (name, filters) = if v.http {
                let routes = route::inbound::passthrough();
                let filters = vec![self.http_filter(INBOUND_PASSTHROUGH_CLUSTER.into(), routes, Protocol::Unknown)];
                (format!("{NAME}-catchall-http"), filters)
            } else {
                (NAME.to_string(), self.tcp_filters(INBOUND_PASSTHROUGH_CLUSTER))
            };
            self.chain(name, port, v, None, filters)
        };
        variants(mode, Spoken::Unknown).iter().map(chain).collect()
    }

    fn mode(&self, port: u16) -> MtlsMode {
        self.maker.view.snapshot.mtls_mode(self.proxy.namespace(), &self.proxy.labels, port)
    }

    /// The chains of a port. In a listener of its own the port is no condition.
    fn port_chains(&self, port: &InboundPort, shared: bool) -> Vec<Chain> {
        let mode = self.mode(port.port);
        // TLS of the listener's own and mutual TLS of the mesh exclude each other: the policy decides.
        let own_tls = port.tls.as_ref().filter(|_| mode == MtlsMode::Disable);
        let name = format!("{}_{}", self.proxy.wildcard(), port.port);
        let number = shared.then_some(port.port);
        let spoken = Spoken::from(port.protocol);
        let filters = |http: bool| {
            if http {
                let prefix = format!("inbound_{name}");
                vec![self.http_filter(prefix, route::inbound::for_port(port), port.protocol)]
            } else {
                self.tcp_filters(&port.cluster())
            }
        };
        let mut chains: Vec<Chain> = match own_tls {
            Some(settings) => {
                let context = crate::gateway::tls::server_context(settings, spoken == Spoken::Http);
                let v = variant(&[], TLS, true, spoken == Spoken::Http);
                vec![self.chain(name.clone(), number, &v, context, filters(v.http))]
            }
            None => variants(mode, spoken)
                .iter()
                .map(|v| self.chain(name.clone(), number, v, None, filters(v.http)))
                .collect(),
        };
        for chain in &mut chains {
            chain.metadata = Some(value::provenance(&port.origin));
        }
        chains
    }

    fn chain(
        &self,
        name: String,
        port: Option<u16>,
        v: &Variant,
        own_tls: Option<tls::DownstreamTlsContext>,
        filters: Vec<Filter>,
    ) -> Chain {
        Chain {
            name,
            port,
            protocols: v.protocols.to_vec(),
            transport: v.transport,
            tls: v.opens.then(|| own_tls.unwrap_or_else(|| self.mutual_tls(v.http))),
            filters,
            ..Chain::default()
        }
    }

    /// Mutual TLS with the mesh's certificates: a client without one is refused.
    fn mutual_tls(&self, http: bool) -> tls::DownstreamTlsContext {
        let alpn: &[&str] = if http { &HTTP_ALPN } else { &TCP_ALPN };
        tls::DownstreamTlsContext {
            common_tls_context: Some(tls::CommonTlsContext {
                tls_params: Some(mesh_mtls_params(self.maker.view)),
                alpn_protocols: alpn.iter().map(|p| p.to_string()).collect(),
                tls_certificate_sds_secret_configs: vec![secret::from_agent(secret::SVID)],
                validation_context_type: Some(of_trust_domains(
                    secret::from_agent(secret::ROOTS),
                    &self.trust().believed(),
                )),
                ..Default::default()
            }),
            require_client_certificate: Some(true),
            ..Default::default()
        }
    }

    fn http_filter(
        &self,
        stat_prefix: String,
        routes: crate::pb::route::RouteConfiguration,
        protocol: Protocol,
    ) -> Filter {
        let options = Options {
            place: Place::Inbound,
            stat_prefix,
            routes: RouteSource::Inline(Box::new(routes)),
            protocol,
            authz: self.security(),
            extra: Vec::new(),
        };
        hcm::filter(self.maker.view.mesh(), self.maker.observe, options)
    }

    /// Tokens first: authorization asks about their claims.
    fn security(&self) -> Vec<HttpFilter> {
        let tokens =
            authn::http_filter_for(self.maker.view.snapshot, &self.tokens, false, self.maker.view.scope.key.weft);
        let authz = authz::http_filters(self.maker.view, &self.bound(), &self.trust());
        tokens.into_iter().chain(authz).collect()
    }

    fn tcp_filters(&self, cluster: &str) -> Vec<Filter> {
        let authz = authz::network_filters(self.maker.view, &self.bound(), &self.trust());
        self.maker.tcp_filters(Side::Server, tcp::to_cluster(cluster), authz)
    }

    fn bound(&self) -> Vec<&AuthzPolicy> {
        self.policies.iter().map(|p| &**p).collect()
    }

    fn trust(&self) -> TrustDomains {
        TrustDomains::of(self.maker.view.snapshot)
    }
}
