//! What a sidecar sees: the Sidecar resource that holds for it, and the services and virtual services of each of its
//! outbound listeners.

use crate::lookup::choose;
use crate::parsed::selects;
use crate::policies::sidecar_selector;
use crate::{Labels, MeshSnapshot, Service, Sidecar, VirtualService, hosts};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weft_core::Strng;
use weft_k8s_api::istio;

/// What a sidecar sees.
#[derive(Debug, Clone)]
pub struct SidecarScope {
    /// The resource that says so; `None` = everything that is exported to the namespace.
    pub sidecar: Option<Arc<Sidecar>>,
    /// By outbound listener; at least one.
    pub egress: Vec<EgressScope>,
}

/// What one outbound listener sees.
#[derive(Debug, Clone)]
pub struct EgressScope {
    /// Position in `spec.egress`; `None` when there is no such list.
    pub listener: Option<usize>,
    /// The port that the listener is for; `None` = all that no other listener names, or all ([`stands_for_all_ports`]).
    pub port: Option<u16>,
    /// The patterns of its `hosts`.
    pub patterns: Vec<HostPattern>,
    /// Services it sees, one for each host, in the order of hosts, with the ports that matter to it. Those that visible
    /// virtual services send to are among them.
    pub services: Vec<Arc<Service>>,
    /// Virtual services of sidecars it sees, in the order of [`MeshSnapshot::virtual_services_seen`].
    pub virtual_services: Vec<Arc<VirtualService>>,
}

/// `namespace/host` in a Sidecar's `hosts`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPattern {
    /// A namespace, written out; `*` = any; `~` = none.
    pub namespace: String,
    /// A host or wildcard.
    pub host: Strng,
}

impl HostPattern {
    /// Reads one of `hosts`, as written in an object that holds for proxies of `namespace`.
    pub fn read(text: &str, namespace: &str, domain: &str) -> Self {
        let (of, host) = text.split_once('/').unwrap_or(("*", text));
        let of = if of == "." { namespace } else { of };
        let short_of = if of == "*" { namespace } else { of };
        Self { namespace: of.to_string(), host: hosts::complete(host, short_of, domain) }
    }

    fn admits(&self, namespace: &str) -> bool {
        self.namespace == "*" || self.namespace == namespace
    }
}

/// Whether an outbound listener with a port of its own takes requests to all ports: a Unix socket, which has no port, and a
/// proxy that clients are told to use (`HTTP_PROXY`). The requests say which port they mean.
pub fn stands_for_all_ports(listener: &istio::IstioEgressListener) -> bool {
    let is_proxy = |port: &istio::Port| port.number == 0 || port.protocol.eq_ignore_ascii_case("HTTP_PROXY");
    listener.port.as_ref().is_some_and(is_proxy)
}

impl MeshSnapshot {
    /// The Sidecar resource that holds for a workload: one that selects it, then its namespace's, then the root
    /// namespace's; of each the oldest.
    pub fn sidecar_for(&self, namespace: &str, labels: &Labels) -> Option<&Arc<Sidecar>> {
        let own = self.sidecars.get(namespace).map_or(&[][..], Vec::as_slice);
        let holds = |s: &&Arc<Sidecar>| sidecar_selector(s).is_none_or(|selector| selects(selector, labels));
        let root = self.sidecars.get(&self.settings.root_namespace).map_or(&[][..], Vec::as_slice);
        // Those with a selector stand first in the list.
        own.iter().find(holds).or_else(|| root.iter().find(|s| sidecar_selector(s).is_none()))
    }

    /// What the sidecar of a workload sees. Equal for all workloads of a namespace that the same Sidecar resource holds for.
    pub fn sidecar_scope(&self, namespace: &str, labels: &Labels) -> SidecarScope {
        let sidecar = self.sidecar_for(namespace, labels).cloned();
        let listeners = sidecar.as_ref().map_or(&[][..], |s| s.spec.egress.as_slice());
        if listeners.is_empty() {
            let all = HostPattern { namespace: "*".into(), host: "*".into() };
            return SidecarScope { egress: vec![self.egress(None, None, vec![all], namespace)], sidecar };
        }
        let domain = &self.settings.domain;
        let egress = listeners.iter().enumerate().map(|(i, listener)| {
            let patterns = listener.hosts.iter().map(|h| HostPattern::read(h, namespace, domain)).collect();
            let port = listener.port.as_ref().filter(|_| !stands_for_all_ports(listener));
            let port = port.and_then(|p| u16::try_from(p.number).ok());
            self.egress(Some(i), port, patterns, namespace)
        });
        SidecarScope { egress: egress.collect(), sidecar }
    }

    fn egress(
        &self,
        listener: Option<usize>,
        port: Option<u16>,
        patterns: Vec<HostPattern>,
        namespace: &str,
    ) -> EgressScope {
        let mut seen = self.services_matching(&patterns, namespace);
        let mut virtual_services = self.mesh_virtual_services(namespace);
        virtual_services.retain(|vs| {
            patterns.iter().any(|p| p.admits(&vs.namespace) && vs.hosts.iter().any(|h| hosts::overlap(&p.host, h)))
        });
        // A route leads nowhere without the service it sends to.
        for host in virtual_services.iter().flat_map(|vs| destinations(vs)) {
            if !seen.contains_key(host)
                && let Some(service) = self.service_for(host, namespace)
            {
                seen.insert(service.host.clone(), service.clone());
            }
        }
        let aliases = seen.values().filter_map(|service| service.alias_of.clone());
        for host in aliases.collect::<Vec<_>>() {
            if !seen.contains_key(&host)
                && let Some(service) = self.service_for(&host, namespace)
            {
                seen.insert(host, service.clone());
            }
        }
        let services = match port {
            None => seen.into_values().collect(),
            Some(port) => seen.into_values().filter_map(|s| with_port_only(&s, port)).collect(),
        };
        EgressScope { listener, port, patterns, services, virtual_services }
    }

    fn services_matching(&self, patterns: &[HostPattern], namespace: &str) -> BTreeMap<Strng, Arc<Service>> {
        let mut found: BTreeMap<Strng, Vec<&Arc<Service>>> = BTreeMap::new();
        for pattern in patterns {
            let mut add = |service| {
                let service: &Arc<Service> = service;
                if hosts::covers(&pattern.host, &service.host) {
                    found.entry(service.host.clone()).or_default().push(service);
                }
            };
            match (pattern.namespace.as_str(), hosts::is_wildcard(&pattern.host)) {
                ("~", _) => {}
                ("*", true) => self.services.values().flatten().for_each(&mut add),
                ("*", false) => self.services.get(&pattern.host).into_iter().flatten().for_each(&mut add),
                (of, _) => self.services_by_namespace.get(of).into_iter().flatten().for_each(&mut add),
            }
        }
        let chosen = found.into_iter().filter_map(|(host, list)| {
            let service = choose(list.into_iter(), namespace)?.clone();
            Some((host, service))
        });
        chosen.collect()
    }
}

/// The service with this port alone; `None` when it has none such.
fn with_port_only(service: &Arc<Service>, port: u16) -> Option<Arc<Service>> {
    if service.alias_of.is_some() {
        // It is called at the ports of the service that it is a name of.
        return Some(service.clone());
    }
    let kept: Vec<_> = service.ports.iter().filter(|p| p.number == port).cloned().collect();
    match kept.len() {
        0 => None,
        n if n == service.ports.len() => Some(service.clone()),
        _ => Some(Arc::new(Service { ports: kept, ..(**service).clone() })),
    }
}

/// Hosts that a virtual service sends to.
fn destinations(vs: &VirtualService) -> BTreeSet<&str> {
    let http = vs.spec.http.iter().flat_map(|r| {
        let routes = r.route.iter().filter_map(|d| d.destination.as_ref());
        let mirrors = r.mirrors.iter().filter_map(|m| m.destination.as_ref());
        routes.chain(&r.mirror).chain(mirrors)
    });
    let tls = vs.spec.tls.iter().flat_map(|r| &r.route).filter_map(|d| d.destination.as_ref());
    let tcp = vs.spec.tcp.iter().flat_map(|r| &r.route).filter_map(|d| d.destination.as_ref());
    http.chain(tls).chain(tcp).map(|d| d.host.as_str()).collect()
}
