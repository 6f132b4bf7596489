//! Chains of connections that are not HTTP: by the TCP and TLS rules of virtual services, else to the service.

use super::Maker;
use super::chain::Chain;
use super::outbound::sni_forward;
use super::tcp::insert_before_last;
use crate::pb::{address, core, value};
use crate::route::convert::{client_is, names_gateway};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::sync::Arc;
use weft_k8s_api::istio::{L4MatchAttributes, TlsMatchAttributes};
use weft_model::{MESH_GATEWAY, Resolution, Service, ServicePort, VirtualService, hosts};

/// Connections to a port of a service.
pub(super) struct Call<'a> {
    pub service: &'a Service,
    pub port: &'a ServicePort,
    /// Port of the listener.
    pub listen_port: u16,
    /// Address ranges that connections must be for; empty = the listener's own address says it.
    pub destinations: Vec<IpNet>,
    /// The listener is for all addresses.
    pub wildcard: bool,
}

impl Maker<'_> {
    /// The chains of a call, in order.
    pub(super) fn l4_chains(&self, call: &Call<'_>, rules: &[Arc<VirtualService>]) -> Vec<Chain> {
        let rules: Vec<&Arc<VirtualService>> =
            rules.iter().filter(|vs| vs.hosts.iter().any(|host| hosts::overlap(host, &call.service.host))).collect();
        if call.port.protocol.is_tls() { self.tls_chains(call, &rules) } else { self.tcp_chains(call, &rules) }
    }

    fn tls_chains(&self, call: &Call<'_>, rules: &[&Arc<VirtualService>]) -> Vec<Chain> {
        let mut chains = Vec::new();
        let mut seen: BTreeSet<String> = BTreeSet::new();
        for vs in rules {
            for (index, route) in vs.spec.tls.iter().enumerate() {
                for condition in route.matches.iter().filter(|m| self.tls_concerns(m, vs, call.listen_port)) {
                    let what = format!("{:?} {:?}", condition.sni_hosts, condition.destination_subnets);
                    if !seen.insert(what) {
                        continue;
                    }
                    let rule = (vs.name.as_str(), vs.namespace.as_str());
                    let Some(filters) = self.tls_rule_filters(&route.route, call.listen_port, rule) else { continue };
                    chains.push(Chain {
                        sni: condition.sni_hosts.clone(),
                        destinations: ranges(&condition.destination_subnets, &call.destinations),
                        filters,
                        metadata: Some(origin(vs, "tls", index)),
                        ..Chain::default()
                    });
                }
            }
        }
        if chains.is_empty() {
            chains.push(self.tls_to_service(call));
        }
        chains
    }

    /// Without a rule the server name tells services apart where the address does not.
    fn tls_to_service(&self, call: &Call<'_>) -> Chain {
        let by_name =
            !call.destinations.is_empty() || call.wildcard || call.service.resolution == Resolution::DynamicDns;
        let names = std::iter::once(&call.service.host);
        let names = names.chain(self.view.scope.aliases_of(&call.service.host).map(|alias| &alias.host));
        let sni = if by_name { names.map(ToString::to_string).collect() } else { Vec::new() };
        let mut chain = Chain { sni, ..self.service_chain(call) };
        if call.service.resolution == Resolution::DynamicDns {
            insert_before_last(&mut chain.filters, sni_forward(*self, &call.service.host, call.port.number));
        }
        chain
    }

    fn tcp_chains(&self, call: &Call<'_>, rules: &[&Arc<VirtualService>]) -> Vec<Chain> {
        let mut chains = Vec::new();
        for vs in rules {
            for (index, route) in vs.spec.tcp.iter().enumerate() {
                let matching: Vec<&L4MatchAttributes> =
                    route.matches.iter().filter(|m| self.tcp_concerns(m, vs, call.listen_port)).collect();
                if matching.is_empty() && !route.matches.is_empty() {
                    continue;
                }
                let Some(filters) = self.rule_filters(&route.route, call.listen_port, (&vs.name, &vs.namespace)) else {
                    continue;
                };
                let always = matching.is_empty() || matching.iter().any(|m| m.destination_subnets.is_empty());
                let subnets: Vec<String> = if always {
                    Vec::new()
                } else {
                    matching.iter().flat_map(|m| m.destination_subnets.iter().cloned()).collect()
                };
                chains.push(Chain {
                    destinations: ranges(&subnets, &call.destinations),
                    filters,
                    metadata: Some(origin(vs, "tcp", index)),
                    ..Chain::default()
                });
                if always {
                    return chains;
                }
            }
        }
        chains.push(self.service_chain(call));
        chains
    }

    fn service_chain(&self, call: &Call<'_>) -> Chain {
        let service = call.service;
        let port = if service.ports.len() == 1 { call.port.number } else { call.listen_port };
        let metadata = value::provenance(&service.provenance);
        Chain {
            destinations: call.destinations.clone(),
            filters: self.service_filters(&service.host, "", port),
            metadata: Some(metadata),
            ..Chain::default()
        }
    }

    fn tls_concerns(&self, condition: &TlsMatchAttributes, vs: &VirtualService, port: u16) -> bool {
        let gateways = &condition.gateways;
        (gateways.is_empty() || gateways.iter().any(|g| names_gateway(g, MESH_GATEWAY, &vs.namespace)))
            && (condition.port == 0 || condition.port == u32::from(port))
            && client_is(&self.view, &condition.source_labels, &condition.source_namespace)
    }

    fn tcp_concerns(&self, condition: &L4MatchAttributes, vs: &VirtualService, port: u16) -> bool {
        let gateways = &condition.gateways;
        (gateways.is_empty() || gateways.iter().any(|g| names_gateway(g, MESH_GATEWAY, &vs.namespace)))
            && (condition.port == 0 || condition.port == u32::from(port))
            && client_is(&self.view, &condition.source_labels, &condition.source_namespace)
    }
}

/// The subnets of a rule, else those of the listener.
fn ranges(subnets: &[String], of_listener: &[IpNet]) -> Vec<IpNet> {
    let own: Vec<IpNet> = subnets.iter().filter_map(|text| address::parse_net(text)).collect();
    if own.is_empty() { of_listener.to_vec() } else { own }
}

/// The rule that a chain came from.
pub(crate) fn origin(vs: &VirtualService, kind: &str, index: usize) -> core::Metadata {
    value::provenance(&vs.provenance.at(format!("spec.{kind}[{index}]")))
}
