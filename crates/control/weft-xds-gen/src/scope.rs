//! What proxies of equal view share: the services, virtual services and destination rules that they see.
//!
//! A [`ScopeKey`] holds everything that outbound clusters, endpoints, routes and listeners depend on besides the snapshot;
//! proxies with equal keys get the same resources. Only facts that some rule asks about get into it, so that two pods of
//! different labels still share.

use crate::proxy::ProxyView;
use foldhash::quality::FixedState;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use weft_core::Strng;
use weft_k8s_api::istio::{self, OutboundTrafficPolicyMode as Mode};
use weft_model::{
    DestinationRule, ExportTo, Labels, MESH_GATEWAY, MeshSnapshot, Near, Resolution, Service, ServicePort, Sidecar,
    VirtualService, stands_for_all_ports,
};

/// What the outbound configuration of a proxy depends on, besides the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScopeKey {
    /// Namespace of the proxy.
    pub namespace: String,
    /// `<namespace>.svc.<domain>`, for short names.
    pub dns_domain: String,
    /// The Sidecar object that applies: namespace and name.
    pub sidecar: Option<(String, String)>,
    /// Gateway instead of sidecar.
    pub gateway: bool,
    /// Understands Weft's extensions.
    pub weft: bool,
    /// Addresses are IPv6; of both families, the first is.
    pub ipv6: bool,
    /// There are addresses of both families.
    pub dual: bool,
    /// Answers DNS, so that addresses given by the mesh can be used.
    pub dns_capture: bool,
    /// Network of the proxy.
    pub network: String,
    /// Locality of the proxy; empty when nothing balances by locality.
    pub locality: String,
    /// Those labels that some rule asks about.
    pub labels: BTreeMap<String, String>,
    /// Node of the proxy; empty when no service is served on its own node only.
    pub node: String,
    /// Settings of the proxy about headers.
    pub headers: HeaderSettings,
}

/// What `proxyHeaders` of a proxy's settings say of routes and clusters. The defaults are Istio's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeaderSettings {
    /// No `x-envoy-attempt-count`.
    pub no_attempt_count: bool,
    /// `x-forwarded-host` where a rule changes the host.
    pub forwarded_host: bool,
    /// Names of headers of HTTP/1.1 stay in upper and lower case as they are. Envoys only.
    pub keeps_case: bool,
}

/// What is seen by the proxies of one key.
#[derive(Debug)]
pub struct Scope {
    /// What it was made for.
    pub key: ScopeKey,
    /// The Sidecar object that applies.
    pub sidecar: Option<Arc<Sidecar>>,
    /// Outbound listeners of the Sidecar, or one that stands for all.
    pub(crate) egress: Vec<Egress>,
    /// What happens to traffic to unknown hosts.
    pub(crate) outbound: OutboundPolicy,
    /// The clusters or listeners of some service hold endpoints themselves.
    pub(crate) holds_endpoints: bool,
    /// Build in which the services last changed.
    pub(crate) services_changed: u64,
    /// All services seen, by host, aliases too.
    services: Arc<BTreeMap<Strng, Arc<Service>>>,
    /// Those of them that are other names of services.
    aliases: Arc<Vec<Arc<Service>>>,
}

/// An outbound listener and what it may reach.
#[derive(Debug)]
pub(crate) struct Egress {
    /// As the Sidecar says; `None` for the one that stands for all.
    pub listener: Option<istio::IstioEgressListener>,
    /// Services, oldest first.
    pub services: Arc<Vec<Arc<Service>>>,
    /// Virtual services of the mesh gateway, in the order of [`MeshSnapshot::virtual_services_seen`].
    pub virtual_services: Arc<Vec<Arc<VirtualService>>>,
}

/// What happens to traffic to unknown hosts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OutboundPolicy {
    /// Passed on.
    pub allow_any: bool,
    /// Where to, instead of the address dialled.
    pub egress_proxy: Option<istio::Destination>,
}

/// The snapshot as seen from a scope.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub snapshot: &'a MeshSnapshot,
    pub scope: &'a Scope,
}

impl<'a> View<'a> {
    /// Mesh-wide settings.
    pub fn mesh(&self) -> &'a istio::MeshConfig {
        &self.snapshot.mesh
    }

    /// The destination rule for `service`, as clients of this scope see it.
    pub fn rule(&self, service: &Service) -> Option<Arc<DestinationRule>> {
        let key = &self.scope.key;
        self.snapshot.destination_rule_for_workload(&service.host, &key.namespace, &key.labels, Some(service)).cloned()
    }

    /// The destination rule for a host, which need not be that of a service.
    pub fn rule_for_host(&self, host: &str) -> Option<Arc<DestinationRule>> {
        let key = &self.scope.key;
        let service = self.scope.meant(host).map(|s| &**s);
        let host = service.map_or(host, |service| &service.host);
        self.snapshot.destination_rule_for_workload(host, &key.namespace, &key.labels, service).cloned()
    }
}

impl Egress {
    /// Takes requests to all ports at a port or socket of its own.
    pub fn for_all_ports(&self) -> bool {
        self.listener.as_ref().is_some_and(stands_for_all_ports)
    }
}

impl ScopeKey {
    /// The key of `proxy`. `asked` are the facts that rules of the snapshot ask about.
    pub fn new(snapshot: &MeshSnapshot, proxy: &ProxyView, asked: &AskedFacts) -> Self {
        let sidecar = if proxy.is_gateway() { None } else { snapshot.sidecar_for(proxy.namespace(), &proxy.labels) };
        let labels = proxy.labels.iter().filter(|(key, _)| asked.labels.contains(*key));
        Self {
            namespace: proxy.namespace().into(),
            dns_domain: proxy.node.dns_domain.clone(),
            sidecar: sidecar.map(|s| (s.namespace.clone(), s.name.clone())),
            gateway: proxy.is_gateway(),
            weft: proxy.is_weft,
            ipv6: proxy.node.ip.is_ipv6(),
            dual: proxy.dual(),
            dns_capture: proxy.dns_capture(),
            network: proxy.network.clone(),
            locality: if asked.locality { proxy.locality.clone() } else { String::new() },
            labels: labels.map(|(k, v)| (k.clone(), v.clone())).collect(),
            node: if asked.node { proxy.node_name().into() } else { String::new() },
            headers: crate::observe::header_settings(snapshot, proxy),
        }
    }

    /// Address that stands for all.
    pub(crate) fn wildcard(&self) -> &'static str {
        if self.ipv6 { "::" } else { "0.0.0.0" }
    }

    /// Whether the proxy has addresses of the family of `ip`.
    pub(crate) fn speaks(&self, ip: &std::net::IpAddr) -> bool {
        self.dual || ip.is_ipv6() == self.ipv6
    }
}

/// Which facts of a client the rules of a snapshot ask about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AskedFacts {
    /// Label names.
    pub labels: BTreeSet<String>,
    /// The locality.
    pub locality: bool,
    /// The node.
    pub node: bool,
    /// Some rule sends requests on to whatever address they were for: such clusters depend on the endpoints.
    pub dialled: bool,
    /// Namespaces with a service whose endpoints are listed and not selected: whom it leads to depends on them.
    pub listed: BTreeSet<String>,
    /// The virtual services of sidecars, oldest first, when all namespaces but those of `own_order` see all of them in this order.
    pub rules_of_all: Option<Arc<Vec<Arc<VirtualService>>>>,
    /// Namespaces that see virtual services in an order of their own: their own routes of the Gateway API first.
    pub own_order: BTreeSet<String>,
}

impl AskedFacts {
    /// Looks through all rules of `snapshot`.
    pub fn of(snapshot: &MeshSnapshot) -> Self {
        let mut asked = Self::default();
        for vs in &snapshot.virtual_services {
            let http = vs.spec.http.iter().flat_map(|r| &r.matches).map(|m| &m.source_labels);
            let tls = vs.spec.tls.iter().flat_map(|r| &r.matches).map(|m| &m.source_labels);
            let tcp = vs.spec.tcp.iter().flat_map(|r| &r.matches).map(|m| &m.source_labels);
            asked.labels.extend(http.chain(tls).chain(tcp).flat_map(|labels| labels.keys().cloned()));
        }
        for rule in snapshot.all_destination_rules() {
            let selector = rule.spec.workload_selector.iter().flat_map(|s| s.match_labels.keys().cloned());
            asked.labels.extend(selector);
            let policies = rule.spec.subsets.iter().map(|s| &s.traffic_policy).chain([&rule.spec.traffic_policy]);
            policies.flatten().for_each(|policy| asked.add_policy(policy));
        }
        asked.add_locality(snapshot.mesh.locality_lb_setting.as_ref());
        asked.locality |= snapshot.mesh.default_traffic_policy.as_ref().is_some_and(|p| p.outlier_detection.is_some());
        let services = || snapshot.services.values().flatten();
        asked.node |= services().any(|s| s.node_local || s.near == Some(Near::Node));
        asked.locality |= services().any(|s| s.near.is_some());
        asked.listed.extend(services().filter(|s| s.selector.is_empty()).map(|s| s.namespace.clone()));
        let of_mesh = |vs: &&Arc<VirtualService>| vs.gateways.iter().any(|g| g == MESH_GATEWAY);
        let rules = || snapshot.virtual_services.iter().filter(of_mesh);
        if rules().all(|vs| vs.export_to == ExportTo::All) {
            asked.own_order = rules().filter(|vs| vs.whole_path_elements).map(|vs| vs.namespace.clone()).collect();
            asked.rules_of_all = Some(Arc::new(rules().cloned().collect()));
        }
        asked
    }

    fn add_policy(&mut self, policy: &istio::TrafficPolicy) {
        // Failover needs outlier detection; distribution does not.
        let ports = &policy.port_level_settings;
        self.locality |= policy.outlier_detection.is_some() || ports.iter().any(|p| p.outlier_detection.is_some());
        for lb in policy.load_balancer.iter().chain(ports.iter().filter_map(|p| p.load_balancer.as_ref())) {
            self.dialled |= lb.simple == Some(istio::SimpleLb::Passthrough);
            self.add_locality(lb.locality_lb_setting.as_ref());
        }
    }

    fn add_locality(&mut self, setting: Option<&istio::LocalityLoadBalancerSetting>) {
        let Some(setting) = setting else { return };
        self.locality |= !setting.distribute.is_empty() || !setting.failover.is_empty();
        let names = setting.failover_priority.iter().map(|label| label.split('=').next().unwrap_or_default());
        for name in names {
            self.node |= name == crate::endpoint::HOSTNAME_LABEL;
            self.locality = true;
            self.labels.insert(name.to_string());
        }
    }
}

impl Scope {
    /// Everything that proxies of `key` see. `labels` are those of one such proxy: all of them have the same Sidecar.
    pub fn new(snapshot: &MeshSnapshot, key: ScopeKey, labels: &Labels) -> Self {
        let (sidecar, egress) = if key.gateway {
            (None, vec![gateway_egress(snapshot, &key)])
        } else {
            sidecar_egress(snapshot, &key, labels)
        };
        let mut services: BTreeMap<Strng, Arc<Service>> = BTreeMap::new();
        for service in egress.iter().flat_map(|e| e.services.iter()) {
            services
                .entry(service.host.clone())
                .and_modify(|known| add_ports(known, service))
                .or_insert_with(|| service.clone());
        }
        let outbound = outbound_policy(snapshot, sidecar.as_deref());
        let holds = |r| matches!(r, Resolution::Dns | Resolution::DnsRoundRobin | Resolution::Passthrough);
        let (aliases, own): (Vec<_>, Vec<_>) = services.values().partition(|s| s.alias_of.is_some());
        let holds_endpoints = own.iter().any(|s| holds(s.resolution));
        let aliases = Arc::new(aliases.into_iter().cloned().collect());
        let services = Arc::new(services);
        Self { key, sidecar, egress, outbound, holds_endpoints, services_changed: 0, services, aliases }
    }

    /// The scope after a change of virtual services alone. Without a Sidecar these do not say which services are seen.
    pub(crate) fn with_rules(&self, snapshot: &MeshSnapshot, asked: &AskedFacts) -> Option<Self> {
        let [egress] = self.egress.as_slice() else { return None };
        if self.sidecar.is_some() {
            return None;
        }
        let seen_here = || Arc::new(snapshot.mesh_virtual_services(&self.key.namespace));
        let of_all = asked.rules_of_all.clone().filter(|_| !asked.own_order.contains(&self.key.namespace));
        let virtual_services = of_all.unwrap_or_else(seen_here);
        let egress = Egress { listener: None, services: egress.services.clone(), virtual_services };
        Some(Self {
            key: self.key.clone(),
            sidecar: None,
            egress: vec![egress],
            outbound: self.outbound.clone(),
            holds_endpoints: self.holds_endpoints,
            services_changed: self.services_changed,
            services: self.services.clone(),
            aliases: self.aliases.clone(),
        })
    }

    /// Says which services and destination rules are seen: with equal numbers, proxies of one snapshot see the very same,
    /// wherever they are. `None` where a Sidecar may have cut services to its own measure.
    pub(crate) fn print(&self, snapshot: &MeshSnapshot) -> Option<u64> {
        if self.sidecar.is_some() {
            return None;
        }
        let view = View { snapshot, scope: self };
        let mut hasher = FixedState::with_seed(11).build_hasher();
        for service in self.services.values() {
            hasher.write_usize(Arc::as_ptr(service).addr());
            hasher.write_usize(view.rule(service).map_or(0, |rule| Arc::as_ptr(&rule).addr()));
        }
        Some(hasher.finish())
    }

    /// The scope of build `version`, after `old`: says since when its services are what they are.
    pub(crate) fn since(mut self, version: u64, old: Option<&Scope>) -> Self {
        let same = |old: &&Scope| {
            old.services.len() == self.services.len()
                && old.services.values().zip(self.services.values()).all(|(a, b)| Arc::ptr_eq(a, b) || a == b)
        };
        self.services_changed = old.filter(same).map_or(version, |old| old.services_changed);
        self
    }

    /// The service of that host, as this scope sees it.
    pub fn service(&self, host: &str) -> Option<&Arc<Service>> {
        self.services.get(host)
    }

    /// The service that is meant by that host: where it is another name of one, that one.
    pub(crate) fn meant(&self, host: &str) -> Option<&Arc<Service>> {
        let named = self.service(host)?;
        named.alias_of.as_ref().and_then(|host| self.service(host)).or(Some(named))
    }

    /// Services that are other names of the one of that host.
    pub(crate) fn aliases_of(&self, host: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.aliases.iter().filter(move |alias| alias.alias_of.as_deref() == Some(host))
    }

    /// All services seen, by host, without those that are but other names of one.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values().filter(|service| service.alias_of.is_none())
    }
}

/// Listeners of a Sidecar may each see some ports of a service: together they see all of those.
fn add_ports(known: &mut Arc<Service>, other: &Arc<Service>) {
    let missing = |port: &&ServicePort| known.ports.iter().all(|p| p.number != port.number);
    let more: Vec<ServicePort> = other.ports.iter().filter(missing).cloned().collect();
    if !more.is_empty() {
        Arc::make_mut(known).ports.extend(more);
    }
}

fn sidecar_egress(snapshot: &MeshSnapshot, key: &ScopeKey, labels: &Labels) -> (Option<Arc<Sidecar>>, Vec<Egress>) {
    let seen = snapshot.sidecar_scope(&key.namespace, labels);
    let listener_at = |index: usize| seen.sidecar.as_ref().and_then(|s| s.spec.egress.get(index)).cloned();
    let egress = seen.egress.into_iter().map(|scope| Egress {
        listener: scope.listener.and_then(listener_at),
        services: Arc::new(oldest_first(scope.services)),
        virtual_services: Arc::new(scope.virtual_services),
    });
    let egress = egress.collect();
    (seen.sidecar, egress)
}

/// Gateways see all that is exported to them; virtual services bind to them by the gateway's name.
fn gateway_egress(snapshot: &MeshSnapshot, key: &ScopeKey) -> Egress {
    let services = oldest_first(snapshot.services_visible_to(&key.namespace));
    Egress { listener: None, services: Arc::new(services), virtual_services: Arc::default() }
}

/// Where two services want one listener, the older has it.
fn oldest_first(mut services: Vec<Arc<Service>>) -> Vec<Arc<Service>> {
    services.sort_by(|a, b| (a.created, &a.host, &a.namespace).cmp(&(b.created, &b.host, &b.namespace)));
    services
}

fn outbound_policy(snapshot: &MeshSnapshot, sidecar: Option<&Sidecar>) -> OutboundPolicy {
    match sidecar.and_then(|s| s.spec.outbound_traffic_policy.as_ref()) {
        Some(policy) => {
            OutboundPolicy { allow_any: policy.mode != Mode::RegistryOnly, egress_proxy: policy.egress_proxy.clone() }
        }
        None => {
            let mode = snapshot.mesh.outbound_traffic_policy.as_ref().map(|p| p.mode);
            OutboundPolicy { allow_any: mode != Some(Mode::RegistryOnly), egress_proxy: None }
        }
    }
}
