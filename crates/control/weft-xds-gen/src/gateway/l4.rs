//! Chains of servers that read no HTTP: TCP, opened TLS, and TLS that is passed on by server name.

use super::merge::GatewayServer;
use crate::host::intersection;
use crate::listener::Maker;
use crate::listener::chain::{Chain, MESH_ANY};
use crate::listener::l4::origin;
use crate::pb::value;
use crate::route::convert::names_gateway;
use std::sync::Arc;
use weft_core::names::ClusterName;
use weft_k8s_api::istio::ServerTlsMode;
use weft_model::{Protocol, VirtualService, hosts};

/// The chains of a server, in order.
pub(super) fn chains(maker: Maker<'_>, server: &GatewayServer) -> Vec<Chain> {
    match server.tls_mode() {
        Some(ServerTlsMode::AutoPassthrough) => by_cluster_name(maker, server),
        Some(ServerTlsMode::Passthrough) => by_server_name(maker, server),
        _ => opened(maker, server),
    }
}

/// Virtual services of the server's gateway that share a host with it, oldest first.
fn bound(maker: Maker<'_>, server: &GatewayServer) -> Vec<Arc<VirtualService>> {
    let namespace = &maker.view.scope.key.namespace;
    let mut rules = maker.view.snapshot.virtual_services_for(&server.gateway, namespace);
    rules.retain(|vs| !intersection(&server.hosts_for(&vs.namespace), &vs.hosts).is_empty());
    rules
}

/// Bytes, plain or behind TLS that is opened here: the first TCP rule that is for this server.
fn opened(maker: Maker<'_>, server: &GatewayServer) -> Vec<Chain> {
    for vs in bound(maker, server) {
        for (index, route) in vs.spec.tcp.iter().enumerate() {
            let concerns = route.matches.is_empty()
                || route.matches.iter().any(|m| is_for(&m.gateways, m.port, server, &vs.namespace));
            if !concerns {
                continue;
            }
            let Some(filters) = maker.rule_filters(&route.route, server.declared_port, (&vs.name, &vs.namespace))
            else {
                continue;
            };
            let tls = super::listener::server_context(maker, server, false);
            return vec![Chain {
                sni: if tls.is_some() { server.names() } else { Vec::new() },
                tls,
                filters,
                metadata: Some(origin(&vs, "tcp", index)),
                ..Chain::default()
            }];
        }
    }
    Vec::new()
}

/// TLS passed on unopened, by the TLS rules, in order: of two for one server name the first holds.
fn by_server_name(maker: Maker<'_>, server: &GatewayServer) -> Vec<Chain> {
    let mut chains = Vec::new();
    for vs in bound(maker, server) {
        for (index, route) in vs.spec.tls.iter().enumerate() {
            for condition in &route.matches {
                if !is_for(&condition.gateways, condition.port, server, &vs.namespace) {
                    continue;
                }
                let rule = (vs.name.as_str(), vs.namespace.as_str());
                let Some(filters) = maker.tls_rule_filters(&route.route, server.declared_port, rule) else { continue };
                chains.push(Chain {
                    sni: condition.sni_hosts.clone(),
                    filters,
                    metadata: Some(origin(&vs, "tls", index)),
                    ..Chain::default()
                });
            }
        }
    }
    chains
}

/// The mesh's mutual TLS passed on to the cluster that its server name encodes.
fn by_cluster_name(maker: Maker<'_>, server: &GatewayServer) -> Vec<Chain> {
    let names = server.names();
    let mut chains = Vec::new();
    for service in maker.view.scope.services().filter(|s| !s.mesh_external) {
        if !names.iter().any(|name| hosts::covers(name, &service.host)) {
            continue;
        }
        let rule = maker.view.rule(service);
        for port in service.ports.iter().filter(|p| p.protocol != Protocol::Udp) {
            let subsets = rule.iter().flat_map(|r| r.spec.subsets.iter().map(|s| s.name.as_str()));
            for subset in std::iter::once("").chain(subsets) {
                let name = ClusterName::outbound(port.number, subset, &service.host).sni();
                let proxy = crate::listener::tcp::to_cluster(&name);
                chains.push(Chain {
                    sni: vec![name],
                    protocols: MESH_ANY.to_vec(),
                    filters: maker.tcp_filters(crate::observe::Side::Client, proxy, Vec::new()),
                    metadata: Some(value::provenance(&server.origin)),
                    ..Chain::default()
                });
            }
        }
    }
    chains
}

/// Whether a condition is for the server's gateway and port.
fn is_for(gateways: &[String], port: u32, server: &GatewayServer, namespace: &str) -> bool {
    (gateways.is_empty() || gateways.iter().any(|g| names_gateway(g, &server.gateway, namespace)))
        && (port == 0 || port == u32::from(server.declared_port))
}
