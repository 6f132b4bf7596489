//! Listeners of gateways: one for each port, with sockets of their own.

use super::merge::{GatewayServer, Merged, PortServers};
use super::{l4, tls};
use crate::authn::{self, AuthnPolicy};
use crate::authz::{self, AuthzPolicy, TrustDomains};
use crate::listener::Maker;
use crate::listener::chain::{Chain, add_without_collision};
use crate::listener::hcm::{self, Options, Place, RouteSource};
use crate::listener::inspect;
use crate::listener::outbound;
use crate::observe::Side;
use crate::pb::core::TrafficDirection;
use crate::pb::hcm::HttpFilter;
use crate::pb::listener::{Filter, Listener};
use crate::pb::{self, address, value};
use crate::resource::{Resource, Resources, by_name};
use std::sync::Arc;
use weft_core::Strng;
use weft_model::Protocol;

/// What the listeners of one gateway are made of.
pub(crate) struct GatewayMaker<'a> {
    pub maker: Maker<'a>,
    pub merged: &'a Merged,
    /// Authorization that binds the gateway's workload.
    pub policies: Vec<Arc<AuthzPolicy>>,
    /// Request authentication that binds it.
    pub tokens: Vec<Arc<AuthnPolicy>>,
}

impl GatewayMaker<'_> {
    /// All listeners.
    pub fn listeners(&self) -> Resources {
        let listeners = self.merged.ports.iter().filter_map(|port| self.listener(port));
        by_name(listeners.map(|l| Resource::new(l.name.as_str(), &l)))
    }

    /// SDS names of the certificates that they refer to.
    pub fn credentials(&self) -> Vec<Strng> {
        let settings = self.merged.ports.iter().flat_map(|p| &p.servers).filter_map(|s| s.server.tls.as_ref());
        let mut names: Vec<Strng> = settings.flat_map(tls::credentials).map(Strng::from).collect();
        names.sort();
        names.dedup();
        names
    }

    fn listener(&self, port: &PortServers) -> Option<Listener> {
        let bind = if port.bind.is_empty() { self.maker.view.scope.key.wildcard() } else { &port.bind };
        let name = format!("{bind}_{}", port.port);
        let chains = if port.plain_http { self.plain_http(port, &name) } else { self.tls_and_tcp(port, &name) };
        if chains.is_empty() {
            return None;
        }
        let mut filters = Vec::new();
        let topology = self.maker.observe.proxy_config.gateway_topology.as_ref();
        if topology.is_some_and(|t| t.proxy_protocol.is_some()) {
            filters.push(inspect::proxy_protocol());
        }
        if inspect::wants_tls(&chains) {
            filters.push(inspect::tls());
        }
        let buffer = self.maker.observe.proxy_config.connection_settings.as_ref();
        let buffer =
            buffer.and_then(|c| c.listener_per_connection_buffer_limit_bytes).and_then(|b| u32::try_from(b).ok());
        Some(Listener {
            name,
            address: Some(match bind.strip_prefix("unix://") {
                Some(path) => address::pipe(path),
                None => address::socket(bind, port.port),
            }),
            additional_addresses: address::other_family(bind, port.port, self.maker.view.scope.key.dual),
            traffic_direction: TrafficDirection::Outbound as i32,
            listener_filters: filters,
            listener_filters_timeout: Some(pb::zero()),
            filter_chains: chains.into_iter().map(Chain::build).collect(),
            per_connection_buffer_limit_bytes: buffer,
            access_log: self.maker.observe.side(Side::Client).listener_logs.clone(),
            metadata: port.servers.first().map(|s| value::provenance(&s.origin)),
            ..Default::default()
        })
    }

    /// One connection manager for all plain HTTP of the port.
    fn plain_http(&self, port: &PortServers, listener: &str) -> Vec<Chain> {
        let Some(first) = port.servers.first() else { return Vec::new() };
        let route = first.route.clone().unwrap_or_default();
        let filters = vec![self.http_filter(format!("outbound_{listener}"), route, first.protocol)];
        vec![Chain { filters, metadata: Some(value::provenance(&first.origin)), ..Chain::default() }]
    }

    fn tls_and_tcp(&self, port: &PortServers, listener: &str) -> Vec<Chain> {
        let mut chains = Vec::new();
        for server in &port.servers {
            let own = match &server.route {
                Some(route) => vec![self.https(server, route, listener)],
                None => self.guarded(l4::chains(self.maker, server)),
            };
            add_without_collision(&mut chains, own);
        }
        chains
    }

    /// Chains with authorization of connections before all else.
    fn guarded(&self, mut chains: Vec<Chain>) -> Vec<Chain> {
        let snapshot = self.maker.view.snapshot;
        let trust = TrustDomains::of(snapshot);
        let bound: Vec<&AuthzPolicy> = self.policies.iter().map(|p| &**p).collect();
        let filters = authz::network_filters(self.maker.view, &bound, &trust);
        for chain in &mut chains {
            chain.filters.splice(0..0, filters.iter().cloned());
        }
        chains
    }

    fn https(&self, server: &GatewayServer, route: &str, listener: &str) -> Chain {
        let prefix = match server.server.name.as_str() {
            "" => format!("outbound_{listener}"),
            name => name.to_string(),
        };
        Chain {
            sni: server.names(),
            tls: self.context(server, true),
            filters: vec![self.http_filter(prefix, route.to_string(), server.protocol)],
            metadata: Some(value::provenance(&server.origin)),
            ..Chain::default()
        }
    }

    /// Requests may be routed to services that are found by the name of each request.
    fn dynamic(&self) -> Vec<HttpFilter> {
        let names = self.maker.view.scope.services().flat_map(|service| outbound::own_name(service));
        names.map(|host| outbound::dynamic_forward(self.maker, &host)).collect()
    }

    fn context(&self, server: &GatewayServer, http: bool) -> Option<pb::tls::DownstreamTlsContext> {
        server_context(self.maker, server, http)
    }

    fn http_filter(&self, stat_prefix: String, route: String, protocol: Protocol) -> Filter {
        let snapshot = self.maker.view.snapshot;
        let trust = TrustDomains::of(snapshot);
        let bound: Vec<&AuthzPolicy> = self.policies.iter().map(|p| &**p).collect();
        let tokens = authn::http_filter_for(
            snapshot,
            &self.tokens,
            authn::claims_route(snapshot),
            self.maker.view.scope.key.weft,
        );
        let options = Options {
            place: Place::Gateway,
            stat_prefix,
            routes: RouteSource::Rds(route),
            protocol,
            authz: tokens.into_iter().chain(authz::http_filters(self.maker.view, &bound, &trust)).collect(),
            extra: self.dynamic(),
        };
        hcm::filter(self.maker.view.mesh(), self.maker.observe, options)
    }
}

/// TLS of a server, with the mesh's defaults.
pub(super) fn server_context(
    maker: Maker<'_>,
    server: &GatewayServer,
    http: bool,
) -> Option<pb::tls::DownstreamTlsContext> {
    let settings = server.server.tls.as_ref()?;
    let mut context = tls::server_context(settings, http)?;
    tls::add_mesh_defaults(&mut context, settings, maker.view.mesh());
    Some(context)
}
