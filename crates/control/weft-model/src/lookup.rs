//! The questions that the generator asks of a snapshot. Pure: the answer depends on the snapshot and the arguments alone.

use crate::endpoints::{selected_by, target_port};
use crate::parsed::selects;
use crate::policies::mtls_mode;
use crate::virtual_services::MESH_GATEWAY;
use crate::{
    DestinationRule, Endpoint, EndpointAddress, ExportTo, Gateway, Labels, MeshSnapshot, MtlsMode, Policy, Service,
    ServicePort, VirtualService, Workload, destination_rules, hosts, services, workloads,
};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use weft_k8s_api::istio;

/// A service port that a workload serves.
#[derive(Debug, Clone)]
pub struct ServiceInstance {
    /// The service.
    pub service: Arc<Service>,
    /// Its port.
    pub port: ServicePort,
    /// Port of the workload that it leads to.
    pub target_port: u16,
}

impl MeshSnapshot {
    /// Endpoints of a service port; `None` when the service has no such port.
    pub fn endpoints_of(&self, service: &Service, port: u16) -> Option<&Arc<Vec<Endpoint>>> {
        if !self.other_endpoints.is_empty() {
            let slot = (service.namespace.clone(), service.host.clone(), port);
            if let Some(own) = self.other_endpoints.get(&slot) {
                return Some(own);
            }
        }
        self.endpoints.get(&(service.host.clone(), port))
    }

    /// The service that a client in `namespace` means by `host`: of several, its own namespace's, else the first.
    pub fn service_for(&self, host: &str, namespace: &str) -> Option<&Arc<Service>> {
        self.services.get(host).and_then(|list| choose(list.iter(), namespace))
    }

    /// The service that a name stands for: itself, unless it is another name of one that clients in `namespace` see.
    pub fn concrete<'a>(&'a self, service: &'a Arc<Service>, namespace: &str) -> &'a Arc<Service> {
        service.alias_of.as_ref().and_then(|host| self.service_for(host, namespace)).unwrap_or(service)
    }

    /// As [`Self::service_for`]; when no service has the name, the one with the most specific wildcard that covers it.
    pub fn service_covering(&self, host: &str, namespace: &str) -> Option<&Arc<Service>> {
        if let Some(exact) = self.service_for(host, namespace) {
            return Some(exact);
        }
        // Wildcards sort before all other names.
        let wildcards = self.services.iter().take_while(|(h, _)| h.as_bytes() <= b"*~".as_slice());
        let visible = wildcards.filter_map(|(h, list)| Some((&**h, choose(list.iter(), namespace)?)));
        hosts::most_specific(host, visible.filter(|(h, _)| hosts::is_wildcard(h)))
    }

    /// Services that clients in `namespace` may see, one for each host, in the order of hosts.
    pub fn services_visible_to(&self, namespace: &str) -> Vec<Arc<Service>> {
        self.services.values().filter_map(|list| choose(list.iter(), namespace)).cloned().collect()
    }

    /// All destination rules.
    pub fn all_destination_rules(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.destination_rules.values().flat_map(|hosts| hosts.values()).flatten()
    }

    /// The destination rule for `host` as clients in `client_namespace` see it; `service` is the service of that host, if
    /// there is one. Looked for in the client's namespace, then the service's, then the root namespace; in each, the exact
    /// host before the most specific wildcard. What the root namespace says to others is a default, also for clients that run
    /// there, as gateways do: of its own rules only those for itself alone come first. Rules with a workload selector are left
    /// out.
    pub fn destination_rule_for(
        &self,
        host: &str,
        client_namespace: &str,
        service: Option<&Service>,
    ) -> Option<&Arc<DestinationRule>> {
        self.destination_rule_for_workload(host, client_namespace, &Labels::new(), service)
    }

    /// As [`Self::destination_rule_for`], for the client workload with `labels`: of the rules of its namespace for one host, one
    /// that selects it comes before the others.
    pub fn destination_rule_for_workload(
        &self,
        host: &str,
        client_namespace: &str,
        labels: &Labels,
        service: Option<&Service>,
    ) -> Option<&Arc<DestinationRule>> {
        let root = self.settings.root_namespace.as_str();
        let visible = |rule: &DestinationRule| rule.export_to.visible_in(client_namespace);
        let own = if client_namespace == root {
            self.rule_in(root, host, labels, |rule| rule.export_to.is_only(root))
        } else {
            self.rule_in(client_namespace, host, labels, visible)
        };
        own.or_else(|| self.rule_in(&service?.namespace, host, labels, visible))
            .or_else(|| self.rule_in(root, host, labels, visible))
    }

    /// The rule of one namespace for `host` and clients with `labels`, of those that `seen` is true of.
    fn rule_in<'a>(
        &'a self,
        namespace: &str,
        host: &str,
        labels: &Labels,
        seen: impl Fn(&DestinationRule) -> bool,
    ) -> Option<&'a Arc<DestinationRule>> {
        let rules = self.destination_rules.get(namespace)?;
        let of_host = |list: &'a Vec<Arc<DestinationRule>>| {
            let mut chosen = None;
            for rule in list.iter().filter(|rule| seen(rule)) {
                match destination_rules::selector(&rule.spec) {
                    Some(selector) if selects(selector, labels) => return Some(rule),
                    Some(_) => {}
                    // Of several the youngest, as in Istio.
                    None => chosen = Some(rule),
                }
            }
            chosen
        };
        if let Some(rule) = rules.get(host).and_then(of_host) {
            return Some(rule);
        }
        // `*` sorts before any name, so wildcards come first.
        let wildcards = rules.iter().take_while(|(h, _)| hosts::is_wildcard(h));
        hosts::most_specific(host, wildcards.filter_map(|(h, list)| Some((h.as_str(), of_host(list)?))))
    }

    /// Virtual services bound to `gateway` (`mesh` or `namespace/name`) that proxies in `namespace` see, in the order of
    /// [`Self::virtual_services_seen`].
    pub fn virtual_services_for(&self, gateway: &str, namespace: &str) -> Vec<Arc<VirtualService>> {
        let bound = |vs: &VirtualService| vs.gateways.iter().any(|g| g == gateway);
        self.in_order(namespace, bound).into_iter().cloned().collect()
    }

    /// All virtual services that proxies in `namespace` see, in the order in which they go by them: of several for one host by
    /// the first. Those for certain namespaces come before those for all, and of the former the namespace's own before others';
    /// of the latter its own routes of the Gateway API come first. Beside that the older is first.
    pub fn virtual_services_seen(&self, namespace: &str) -> Vec<&Arc<VirtualService>> {
        self.in_order(namespace, |_| true)
    }

    fn in_order(&self, namespace: &str, wanted: impl Fn(&VirtualService) -> bool) -> Vec<&Arc<VirtualService>> {
        let seen = |vs: &&Arc<VirtualService>| wanted(vs) && vs.export_to.visible_in(namespace);
        let mut list: Vec<&Arc<VirtualService>> = self.virtual_services.iter().filter(seen).collect();
        list.sort_by_key(|vs| {
            let for_all = vs.export_to == ExportTo::All;
            let own = vs.namespace == namespace && (!for_all || vs.whole_path_elements);
            (for_all, !own)
        });
        list
    }

    /// Those bound to sidecars.
    pub fn mesh_virtual_services(&self, namespace: &str) -> Vec<Arc<VirtualService>> {
        self.virtual_services_for(MESH_GATEWAY, namespace)
    }

    /// Gateways that a gateway workload of `namespace` with `labels` serves, oldest first.
    pub fn gateways_for(&self, namespace: &str, labels: &Labels) -> Vec<Arc<Gateway>> {
        let served = |g: &&Arc<Gateway>| g.workloads.iter().any(|w| w.selects(namespace, labels));
        self.gateways.iter().filter(served).cloned().collect()
    }

    /// Mutual-TLS mode of a workload's port: the oldest policy that selects the workload (its mode for the port, then its
    /// own), then the namespace's, then the mesh's. `UNSET` asks the wider scope.
    pub fn mtls_mode(&self, namespace: &str, labels: &Labels, port: u16) -> MtlsMode {
        let policies = self.peer_auth.workloads.get(namespace).into_iter().flatten();
        let selected = policies.into_iter().find(|p| selects(&p.selector, labels));
        let own = selected.and_then(|p| {
            mtls_mode(p.spec.port_level_mtls.get(&u32::from(port))).or_else(|| mtls_mode(p.spec.mtls.as_ref()))
        });
        own.or_else(|| self.peer_auth.namespaces.get(namespace).copied()).unwrap_or(self.peer_auth.mesh)
    }

    /// Authorization policies that bind a workload, the root namespace's first.
    pub fn authorization_for(&self, namespace: &str, labels: &Labels) -> Vec<Arc<Policy<istio::AuthorizationPolicy>>> {
        self.policies_for(&self.authorization, namespace, labels)
    }

    /// Request authentication that binds a workload, the root namespace's first; all of it holds together.
    pub fn request_auth_for(&self, namespace: &str, labels: &Labels) -> Vec<Arc<Policy<istio::RequestAuthentication>>> {
        self.policies_for(&self.request_auth, namespace, labels)
    }

    /// Envoy filters that bind a workload: the root namespace's first, each namespace's by priority, then age.
    pub fn envoy_filters_for(&self, namespace: &str, labels: &Labels) -> Vec<Arc<Policy<istio::EnvoyFilter>>> {
        self.policies_for(&self.envoy_filters, namespace, labels)
    }

    /// Policies of one kind in the root namespace and in the workload's own that select the workload.
    pub fn policies_for<T>(
        &self,
        by_namespace: &BTreeMap<String, Vec<Arc<Policy<T>>>>,
        namespace: &str,
        labels: &Labels,
    ) -> Vec<Arc<Policy<T>>> {
        let root = self.settings.root_namespace.as_str();
        let of = |ns: &str| by_namespace.get(ns).map_or(&[][..], Vec::as_slice);
        let own = if namespace == root { &[][..] } else { of(namespace) };
        let binds =
            |p: &&Arc<Policy<T>>| (!p.own_namespace_only || p.namespace == namespace) && selects(&p.selector, labels);
        of(root).iter().chain(own).filter(binds).cloned().collect()
    }

    /// Telemetry settings of a workload, widest first: at most one for the mesh, one for the namespace and one that
    /// selects the workload, the oldest of each.
    pub fn telemetry_for(&self, namespace: &str, labels: &Labels) -> Vec<Arc<Policy<istio::Telemetry>>> {
        let root = self.settings.root_namespace.as_str();
        let of = |ns: &str| self.telemetry.get(ns).map_or(&[][..], Vec::as_slice);
        let wide = |ns: &str| of(ns).iter().find(|p| p.selector.is_empty()).cloned();
        let mesh = wide(root);
        let own = if namespace == root { None } else { wide(namespace) };
        let selected = of(namespace).iter().find(|p| selected_by(&p.selector, labels)).cloned();
        mesh.into_iter().chain(own).chain(selected).collect()
    }

    /// The workload of a proxy: the one of its name, else the one of its namespace at its address. One of another namespace
    /// is never it: whoever may write WorkloadEntries somewhere could otherwise choose which policies bind a proxy elsewhere.
    pub fn proxy_workload(&self, namespace: &str, name: &str, address: IpAddr) -> Option<&Arc<Workload>> {
        let at_address = || self.workloads.get(&address).filter(|workload| workload.namespace == namespace);
        self.workloads_by_name.get(&workloads::key(namespace, name)).or_else(at_address)
    }

    /// Service ports that a workload serves: of the services of its namespace that select it, and of those without a
    /// selector that list one of its addresses. In the order of hosts, then ports.
    pub fn service_instances(&self, workload: &Workload) -> Vec<ServiceInstance> {
        let mut found = Vec::new();
        for service in self.services_by_namespace.get(&workload.namespace).into_iter().flatten() {
            for port in service.ports.iter().filter(|p| services::carried(p)) {
                let target = if service.selector.is_empty() {
                    self.listed_port(service, port, workload)
                } else if selected_by(&service.selector, &workload.labels) {
                    target_port(port, workload)
                } else {
                    None
                };
                if let Some(target_port) = target {
                    found.push(ServiceInstance { service: service.clone(), port: port.clone(), target_port });
                }
            }
        }
        found
    }

    fn listed_port(&self, service: &Service, port: &ServicePort, workload: &Workload) -> Option<u16> {
        self.endpoints_of(service, port.number)?.iter().find_map(|endpoint| match &endpoint.address {
            EndpointAddress::Ip(ip, number) if workload.addresses.contains(ip) => Some(*number),
            _ => None,
        })
    }
}

/// Of the services of one host, the one that clients in `namespace` mean: their own, else the first they see.
pub(crate) fn choose<'a>(
    list: impl Iterator<Item = &'a Arc<Service>> + Clone,
    namespace: &str,
) -> Option<&'a Arc<Service>> {
    let visible = list.filter(|s| s.export_to.visible_in(namespace));
    visible.clone().find(|s| s.namespace == namespace).or_else(|| visible.clone().next())
}
