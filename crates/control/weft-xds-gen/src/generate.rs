//! The steps from a snapshot and a proxy to its resources, and the cache by which proxies share them.
//!
//! What is kept for a scope is kept part by part. Each part has a mark: the builds in which the sections of the snapshot that
//! it depends on last changed. A part is made anew when its mark is another; what comes out equal stays the same `Arc`.

use crate::cluster::{self, fixed, inbound};
use crate::endpoint::Assignments;
use crate::gateway::listener::GatewayMaker;
use crate::gateway::{merge, route as route_of_gateway};
use crate::listener::inbound::Inbound;
use crate::listener::outbound::{self, Outbound};
use crate::listener::{Maker, ports};
use crate::observe::{Observability, ObserveKey};
use crate::on_demand::{self, Addresses, Directory, Hosts, Names, Standing};
use crate::proxy::ProxyView;
use crate::resource::{ProxyResources, Resource, ResourceMap, Resources};
use crate::route::{self, KeptRoutes};
use crate::scope::{AskedFacts, Egress, Scope, ScopeKey, View};
use crate::shared::{PartKey, Parts, Pool, lock};
use crate::{endpoint, envoy_filter, name_table};
use std::cell::LazyCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use weft_core::Strng;
use weft_model::{Labels, MeshSnapshot, Sections, VirtualService, Workload};

/// Scopes that no proxy asked for in so many builds are dropped.
const KEEP_BUILDS: u64 = 16;
/// Scopes kept at most that nobody is at work on.
const MAX_SCOPES: usize = 2048;
/// Values of one part of a scope that are kept at most.
const MAX_SLOTS: usize = 1024;

/// Everything for one proxy.
pub fn generate(snapshot: &MeshSnapshot, proxy: &ProxyView) -> ProxyResources {
    GenCache::default().generate(snapshot, proxy)
}

/// The load assignment of one cluster, for the proxies of a scope; `None` when it has no such cluster found by EDS.
pub fn generate_endpoints(snapshot: &MeshSnapshot, scope: &Scope, cluster: &str) -> Option<Arc<Resource>> {
    endpoint::by_cluster_name(View { snapshot, scope }, cluster)
}

/// Keeps what was generated, so that proxies of equal view share it and the next snapshot reuses what did not change.
/// All snapshots given to one cache must come from one series of builds.
#[derive(Debug, Default)]
pub struct GenCache {
    asked: Mutex<Option<(Mark, Arc<AskedFacts>)>>,
    scopes: Mutex<HashMap<ScopeKey, Arc<Mutex<Kept>>>>,
    patched: envoy_filter::Memo,
    pool: Pool,
    clusters: Parts<ClusterPart>,
    endpoints: Parts<Assignments>,
    sni_endpoints: Parts<Assignments>,
}

/// Builds in which the sections that a part depends on last changed.
type Mark = Vec<u64>;

/// What is kept for one scope.
#[derive(Debug, Default)]
struct Kept {
    last_used: u64,
    scope: Option<(Mark, Arc<Scope>)>,
    /// See [`Scope::print`].
    print: Option<(Mark, Option<u64>)>,
    /// Virtual services that outbound listeners are made of, and the build since which these are they.
    l4_rules: Option<(Mark, (Rules, u64))>,
    clusters: Option<(Mark, Arc<ClusterPart>)>,
    endpoints: Option<(Mark, Arc<Assignments>)>,
    /// With those of clusters by server name.
    sni_endpoints: Option<(Mark, Arc<Assignments>)>,
    outbound: HashMap<OutboundKey, (Mark, Arc<Outbound>)>,
    routes: Option<(Mark, Arc<KeptRoutes>)>,
    names: Option<(Mark, Arc<Resource>)>,
    /// For proxies that take what they ask for.
    addresses: Option<(Mark, Arc<Addresses>)>,
    asked_names: Option<(Mark, Arc<Names>)>,
    /// With the virtual hosts that they are of.
    asked_hosts: Option<(Arc<Resources>, Arc<Hosts>)>,
    gateways: HashMap<GatewayKey, (Mark, Arc<GatewayPart>)>,
}

type Rules = Arc<Vec<Arc<VirtualService>>>;

/// Clusters, and the SDS names that they refer to and the control plane serves.
#[derive(Debug, Default)]
struct ClusterPart {
    clusters: Arc<Resources>,
    credentials: Vec<Strng>,
}

/// What is made for one proxy alone, kept with it.
#[derive(Debug, Default)]
pub(crate) struct Own(Option<(Mark, Option<Arc<Workload>>, OwnPart)>);

/// Towards the workload.
#[derive(Debug, Clone, Default)]
struct OwnPart {
    listeners: Resources,
    clusters: Resources,
}

/// What outbound listeners depend on besides the scope.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct OutboundKey {
    observe: ObserveKey,
    intercepts: bool,
    transparent: bool,
}

/// What listeners and routes of a gateway depend on besides the scope.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct GatewayKey {
    observe: ObserveKey,
    labels: Labels,
    container_ports: Vec<(u16, String)>,
}

/// Listeners and routes of gateways of one key.
#[derive(Debug, Default)]
struct GatewayPart {
    listeners: Arc<Resources>,
    configurations: Arc<Resources>,
    virtual_hosts: Arc<Resources>,
    credentials: Vec<Strng>,
    /// Clusters and endpoints for mutual TLS that is passed on by server name.
    sni_clusters: Resources,
    sni_endpoints: bool,
    /// For the next time: the servers, their virtual hosts, and the mark of everything but virtual services.
    merged: Arc<merge::Merged>,
    hosts: route_of_gateway::KeptHosts,
    base: Mark,
}

impl GenCache {
    /// Everything for one proxy.
    pub fn generate(&self, snapshot: &MeshSnapshot, proxy: &ProxyView) -> ProxyResources {
        let proxy = proxy.with_workload(snapshot);
        let asked = self.asked(snapshot);
        let (kept, scope) = self.kept(snapshot, &proxy, &asked);
        let mut kept = lock(&kept);
        let step = Step { view: View { snapshot, scope: &scope }, proxy: &proxy, asked: &asked, cache: self };
        let mut resources = if proxy.is_gateway() { step.gateway(&mut kept) } else { step.sidecar(&mut kept) };
        let bound = envoy_filter::bound(snapshot, &proxy);
        if !bound.is_empty() {
            let before = resources.directory.is_some().then(|| resources.clone());
            envoy_filter::apply(snapshot, &proxy, &bound, &mut resources, &self.patched);
            if let (Some(before), Some(mut directory)) = (before, resources.directory.take()) {
                Arc::make_mut(&mut directory.standing).add_patched(&before, &resources);
                resources.directory = Some(directory);
            }
        }
        resources
    }

    /// The scope of a proxy.
    pub fn scope(&self, snapshot: &MeshSnapshot, proxy: &ProxyView) -> Arc<Scope> {
        self.kept(snapshot, &proxy.with_workload(snapshot), &self.asked(snapshot)).1
    }

    /// How many scopes are kept.
    pub fn len(&self) -> usize {
        lock(&self.scopes).len()
    }

    /// True when none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The scope of `proxy`, and what is kept for it.
    fn kept(&self, snapshot: &MeshSnapshot, proxy: &ProxyView, asked: &AskedFacts) -> (Arc<Mutex<Kept>>, Arc<Scope>) {
        let key = ScopeKey::new(snapshot, proxy, asked);
        let kept = {
            let mut scopes = lock(&self.scopes);
            let now = snapshot.version;
            if !scopes.contains_key(&key) {
                scopes.retain(|_, kept| {
                    kept.try_lock().map_or(true, |kept| kept.last_used.saturating_add(KEEP_BUILDS) >= now)
                });
                // Parts of a key are what proxies say of themselves: they must not fill the memory between two builds.
                if scopes.len() >= MAX_SCOPES {
                    scopes.retain(|_, kept| Arc::strong_count(kept) > 1);
                }
            }
            scopes.entry(key.clone()).or_default().clone()
        };
        let mut inside = lock(&kept);
        inside.last_used = snapshot.version;
        let s = &snapshot.sections;
        // Gateways see all services, whatever virtual services say.
        let virtual_services = if key.gateway { 0 } else { s.virtual_services };
        let mark = vec![virtual_services, s.mesh, s.services, s.sidecars, s.namespaces];
        let only_rules = inside.scope.as_ref().is_some_and(|(known, _)| known.get(1..) == mark.get(1..));
        let scope = remember(&mut inside.scope, mark, |old| {
            let old = old.map(|scope| &**scope);
            let patched = old.filter(|_| only_rules).and_then(|old| old.with_rules(snapshot, asked));
            let whole = || Scope::new(snapshot, key, &proxy.labels).since(snapshot.version, old);
            Arc::new(patched.unwrap_or_else(whole))
        });
        drop(inside);
        (kept, scope)
    }

    fn asked(&self, snapshot: &MeshSnapshot) -> Arc<AskedFacts> {
        let s = &snapshot.sections;
        let mark = vec![s.mesh, s.services, s.virtual_services, s.destination_rules];
        remember(&mut lock(&self.asked), mark, |_| Arc::new(AskedFacts::of(snapshot)))
    }
}

/// One proxy, in one snapshot.
struct Step<'a> {
    view: View<'a>,
    proxy: &'a ProxyView,
    asked: &'a AskedFacts,
    cache: &'a GenCache,
}

impl Step<'_> {
    fn sidecar(&self, kept: &mut Kept) -> ProxyResources {
        let observe_key = ObserveKey::new(self.view.snapshot, self.proxy);
        // Most of the time nothing is made that reports.
        let observe = LazyCell::new(|| Observability::new(self.view, self.proxy, &observe_key));
        let outbound = self.outbound(kept, observe_key.clone(), || &*observe);
        let routes = self.routes(kept, &outbound);
        let clusters = self.clusters(kept);
        let own = self.own(|| &*observe);
        // Who may be asked for any host of any port has no questions.
        let asks = self.proxy.on_demand() && !self.view.scope.egress.iter().any(Egress::for_all_ports);
        let directory = asks.then(|| self.directory(kept, &outbound, &routes, &own));

        ProxyResources {
            listeners: ResourceMap::new(self.without_own(&outbound), own.listeners),
            routes: ResourceMap::new(routes.configurations.clone(), Resources::new()),
            virtual_hosts: ResourceMap::new(routes.virtual_hosts.clone(), Resources::new()),
            clusters: ResourceMap::new(clusters.clusters.clone(), own.clusters),
            endpoints: ResourceMap::new(self.endpoints(kept, false).resources.clone(), Resources::new()),
            // Who takes what it asks for gets a table of the names that it asked for.
            name_table: (self.proxy.dns_capture() && directory.is_none()).then(|| self.names(kept)),
            credentials: clusters.credentials.clone(),
            directory,
            ..ProxyResources::default()
        }
    }

    fn directory(&self, kept: &mut Kept, outbound: &Outbound, routes: &KeptRoutes, own: &OwnPart) -> Directory {
        let mark = self.mark(&[]);
        let addresses = remember(&mut kept.addresses, mark, |_| Arc::new(on_demand::addresses(self.view)));
        let listeners = outbound.bound.iter().chain(own.listeners.keys()).cloned().collect();
        let names = || {
            let mark = self.mark(&[self.endpoints_inside()]);
            remember(&mut kept.asked_names, mark, |_| Arc::new(Names::new(name_table::names(self.view))))
        };
        let names = self.proxy.dns_capture().then(names);
        let clusters = own.clusters.keys().cloned().collect();
        let standing = Arc::new(Standing { listeners, clusters, ..Standing::default() });
        let hosts = match kept.asked_hosts.as_ref().filter(|(of, _)| Arc::ptr_eq(of, &routes.virtual_hosts)) {
            Some((_, hosts)) => hosts.clone(),
            None => Arc::new(Hosts::new(&routes.virtual_hosts)),
        };
        kept.asked_hosts = Some((routes.virtual_hosts.clone(), hosts.clone()));
        Directory { addresses, hosts, names, standing, dns_domain: self.view.scope.key.dns_domain.clone() }
    }

    /// Listeners and clusters towards the workload.
    fn own<'o>(&self, observe: impl FnOnce() -> &'o Observability) -> OwnPart {
        let (snapshot, proxy, s) = (self.view.snapshot, self.proxy, self.sections());
        let tokens = snapshot.request_auth_for(proxy.namespace(), &proxy.labels);
        let listed = self.asked.listed.contains(proxy.namespace());
        let mark = vec![
            s.mesh,
            s.services,
            s.sidecars,
            s.namespaces,
            s.security,
            s.telemetry,
            s.destination_rules,
            if listed { s.endpoints } else { 0 },
            // Routes may ask for claims of tokens.
            if tokens.is_empty() { 0 } else { s.virtual_services },
        ];
        let mut own = lock(&proxy.own);
        let same_workload = |known: &Option<Arc<Workload>>| match (known, &proxy.workload) {
            (Some(known), Some(now)) => Arc::ptr_eq(known, now),
            (None, None) => true,
            _ => false,
        };
        if let Some((known, workload, part)) = &own.0
            && *known == mark
            && same_workload(workload)
        {
            return part.clone();
        }
        let maker = Maker { view: self.view, observe: observe() };
        let served = ports::of(snapshot, proxy, self.view.scope.sidecar.as_deref());
        let policies = snapshot.authorization_for(proxy.namespace(), &proxy.labels);
        let part = OwnPart {
            listeners: Inbound { maker, proxy, ports: &served, policies, tokens }.listeners(),
            clusters: inbound::clusters(self.view, proxy, &served),
        };
        own.0 = Some((mark, proxy.workload.clone(), part.clone()));
        part
    }

    fn gateway(&self, kept: &mut Kept) -> ProxyResources {
        let part = self.gateway_part(kept);
        let endpoints = self.endpoints(kept, part.sni_endpoints);
        let clusters = self.clusters(kept);
        let mut credentials: Vec<Strng> = part.credentials.iter().chain(&clusters.credentials).cloned().collect();
        credentials.sort();
        credentials.dedup();
        ProxyResources {
            listeners: ResourceMap::new(part.listeners.clone(), Resources::new()),
            routes: ResourceMap::new(part.configurations.clone(), Resources::new()),
            virtual_hosts: ResourceMap::new(part.virtual_hosts.clone(), Resources::new()),
            clusters: ResourceMap::new(clusters.clusters.clone(), part.sni_clusters.clone()),
            endpoints: ResourceMap::new(endpoints.resources.clone(), Resources::new()),
            name_table: self.proxy.dns_capture().then(|| self.names(kept)),
            credentials,
            ..ProxyResources::default()
        }
    }

    fn sections(&self) -> &Sections {
        &self.view.snapshot.sections
    }

    /// Sections that every part of a scope depends on. Which services are seen may depend on virtual services; what is
    /// made of virtual services themselves has their section beside these.
    fn mark(&self, more: &[u64]) -> Mark {
        let s = self.sections();
        let seen = self.view.scope.services_changed;
        let mut mark = vec![s.mesh, s.services, seen, s.sidecars, s.namespaces, s.destination_rules];
        mark.extend(more);
        mark
    }

    /// The endpoints' section where some service's clusters or listeners hold endpoints themselves; else nothing.
    fn endpoints_inside(&self) -> u64 {
        if self.view.scope.holds_endpoints { self.sections().endpoints } else { 0 }
    }

    /// As [`Self::mark`] for what depends on the services and destination rules seen, and on nothing else of the scope's own;
    /// and whether others may share it, as they may unless a Sidecar makes the scope one of a kind.
    fn common_mark(&self, kept: &mut Kept, more: &[u64]) -> (Mark, bool) {
        let s = self.sections();
        let seen = vec![self.view.scope.services_changed, s.mesh, s.services, s.destination_rules];
        let print = remember(&mut kept.print, seen, |_| self.view.scope.print(self.view.snapshot));
        let view = print.unwrap_or(self.view.scope.services_changed);
        let mut mark = vec![s.mesh, s.services, view, s.sidecars, s.namespaces, s.destination_rules];
        mark.extend(more);
        (mark, print.is_some())
    }

    fn part_key(&self, mark: &Mark, shares: bool) -> Option<PartKey> {
        shares.then(|| PartKey::new(&self.view.scope.key, mark))
    }

    fn clusters(&self, kept: &mut Kept) -> Arc<ClusterPart> {
        let endpoints = if self.asked.dialled { self.sections().endpoints } else { self.endpoints_inside() };
        let (mark, shares) = self.common_mark(kept, &[self.sections().security, endpoints]);
        remember(&mut kept.clusters, mark.clone(), |old| {
            let make = || {
                let mut all = cluster::outbound(self.view);
                all.extend(fixed::outbound(self.view.mesh(), &self.view.scope.key));
                let none = ClusterPart::default();
                let clusters = self.cache.pool.reuse(&old.map_or(&none, |old| old).clusters, all);
                Arc::new(ClusterPart { clusters, credentials: cluster::credentials(self.view) })
            };
            self.cache.clusters.get_or(self.part_key(&mark, shares), make)
        })
    }

    /// Load assignments; `sni`: of clusters by server name too, as gateways have them that pass the mesh's TLS on.
    fn endpoints(&self, kept: &mut Kept, sni: bool) -> Arc<Assignments> {
        let (base, _) = self.common_mark(kept, &[self.sections().security]);
        let (mark, shares) = self.common_mark(kept, &[self.sections().security, self.sections().endpoints]);
        let (slot, parts) = match sni {
            true => (&mut kept.sni_endpoints, &self.cache.sni_endpoints),
            false => (&mut kept.endpoints, &self.cache.endpoints),
        };
        remember(slot, mark.clone(), |old| {
            let old = old.map(|old| &**old);
            let make = || Arc::new(endpoint::assignments(self.view, sni, old, base, &self.cache.pool));
            parts.get_or(self.part_key(&mark, shares), make)
        })
    }

    fn outbound<'o>(
        &self,
        kept: &mut Kept,
        key: ObserveKey,
        observe: impl FnOnce() -> &'o Observability,
    ) -> Arc<Outbound> {
        let s = self.sections();
        let rules = self.l4_rules(kept);
        let mark = self.mark(&[s.telemetry, rules, self.endpoints_inside()]);
        let (intercepts, transparent) = (self.proxy.intercepts(), self.proxy.transparent());
        let key = OutboundKey { observe: key, intercepts, transparent };
        remember_by(&mut kept.outbound, key, mark, |old| {
            let maker = Maker { view: self.view, observe: observe() };
            let mut out = outbound::listeners(maker, intercepts);
            if intercepts {
                let listener = maker.virtual_outbound(transparent);
                let resource = Resource::new(listener.name.as_str(), &listener);
                out.bound.insert(resource.name.clone());
                Arc::make_mut(&mut out.listeners).insert(resource.name.clone(), resource);
            }
            let known = old.map(|old| old.listeners.clone()).unwrap_or_default();
            out.listeners = self.cache.pool.reuse(&known, std::mem::take(Arc::make_mut(&mut out.listeners)));
            Arc::new(out)
        })
    }

    /// The build since which the virtual services that listeners are made of are what they are: those about TLS and TCP.
    fn l4_rules(&self, kept: &mut Kept) -> u64 {
        let mark = self.mark(&[self.sections().virtual_services]);
        let (_, since) = remember(&mut kept.l4_rules, mark, |old| {
            let all = self.view.scope.egress.iter().flat_map(|egress| egress.virtual_services.iter());
            let made_of = all.filter(|vs| !vs.spec.tls.is_empty() || !vs.spec.tcp.is_empty());
            let rules: Vec<_> = made_of.cloned().collect();
            match old.filter(|(old, _)| old.iter().map(Arc::as_ptr).eq(rules.iter().map(Arc::as_ptr))) {
                Some(same) => same.clone(),
                None => (Arc::new(rules), self.view.snapshot.version),
            }
        });
        since
    }

    fn routes(&self, kept: &mut Kept, outbound: &Outbound) -> Arc<KeptRoutes> {
        // The listeners' wish list depends on the services alone, whatever the workload reports.
        let intercepts = u64::from(self.proxy.intercepts());
        let base = self.mark(&[self.endpoints_inside(), intercepts]);
        let mark = [base.as_slice(), &[self.sections().virtual_services]].concat();
        remember(&mut kept.routes, mark, |old| {
            let old = old.map(|old| &**old);
            Arc::new(route::outbound(self.view, &outbound.routes, old, base, &self.cache.pool))
        })
    }

    fn names(&self, kept: &mut Kept) -> Arc<Resource> {
        let mark = self.mark(&[self.endpoints_inside()]);
        remember(&mut kept.names, mark, |_| name_table::build(self.view))
    }

    /// Outbound listeners without those for the pod's own address: a pod that calls itself is not load balanced.
    fn without_own(&self, outbound: &Arc<Outbound>) -> Arc<Resources> {
        let own = self.proxy.addresses();
        let named: Vec<&String> = own.iter().filter_map(|ip| outbound.of_pods.get(ip)).flatten().collect();
        if named.is_empty() {
            return outbound.listeners.clone();
        }
        let mut listeners = (*outbound.listeners).clone();
        listeners.retain(|name, _| named.iter().all(|own| ***own != **name));
        Arc::new(listeners)
    }

    fn gateway_part(&self, kept: &mut Kept) -> Arc<GatewayPart> {
        let (snapshot, proxy) = (self.view.snapshot, self.proxy);
        let observe_key = ObserveKey::new(snapshot, proxy);
        let key = GatewayKey {
            observe: observe_key.clone(),
            labels: proxy.labels.clone(),
            container_ports: proxy.workload.as_ref().map(|w| w.container_ports.clone()).unwrap_or_default(),
        };
        let s = self.sections();
        // What of the workload matters is in the key.
        let base = self.mark(&[s.telemetry, s.security, s.gateways, self.endpoints_inside()]);
        let mark = [base.as_slice(), &[s.virtual_services]].concat();
        remember_by(&mut kept.gateways, key, mark, |old| {
            let none = GatewayPart::default();
            let old = old.map_or(&none, |old| old);
            let observe = Observability::new(self.view, proxy, &observe_key);
            // Only virtual services are others: servers are what they were, and most virtual hosts.
            let only_rules = old.base == base;
            let merged = if only_rules { old.merged.clone() } else { Arc::new(merge::merge(snapshot, proxy)) };
            let nothing = route_of_gateway::KeptHosts::new();
            let (routes, hosts) =
                route_of_gateway::routes(self.view, &merged, if only_rules { &old.hosts } else { &nothing });
            let policies = snapshot.authorization_for(proxy.namespace(), &proxy.labels);
            let tokens = snapshot.request_auth_for(proxy.namespace(), &proxy.labels);
            let maker = Maker { view: self.view, observe: &observe };
            let maker = GatewayMaker { maker, merged: &merged, policies, tokens };
            let same_listeners = only_rules && merged.reads_all_as_http();
            let automatic = merged.passes_automatically();
            Arc::new(GatewayPart {
                listeners: if same_listeners {
                    old.listeners.clone()
                } else {
                    self.cache.pool.reuse(&old.listeners, maker.listeners())
                },
                configurations: self.cache.pool.reuse(&old.configurations, routes.configurations),
                virtual_hosts: self.cache.pool.reuse(&old.virtual_hosts, routes.virtual_hosts),
                credentials: maker.credentials(),
                sni_clusters: match automatic {
                    true if only_rules => old.sni_clusters.clone(),
                    true => cluster::sni_dnat(self.view),
                    false => Resources::new(),
                },
                sni_endpoints: automatic,
                merged: merged.clone(),
                hosts,
                base: base.clone(),
            })
        })
    }
}

/// The kept value when its mark is `mark`, else a new one, made with the old at hand.
fn remember<T: Clone>(slot: &mut Option<(Mark, T)>, mark: Mark, make: impl FnOnce(Option<&T>) -> T) -> T {
    if let Some((known, value)) = slot
        && *known == mark
    {
        return value.clone();
    }
    let value = make(slot.as_ref().map(|(_, old)| old));
    *slot = Some((mark, value.clone()));
    value
}

/// As [`remember`], for one of several. When the sections moved on, values of the old mark are dropped.
fn remember_by<K: Eq + Hash, T: Clone>(
    slots: &mut HashMap<K, (Mark, T)>,
    key: K,
    mark: Mark,
    make: impl FnOnce(Option<&T>) -> T,
) -> T {
    let mut slot = slots.remove(&key);
    let value = remember(&mut slot, mark.clone(), make);
    // A key that is asked for again is made anew from its old value; others of an old mark may be gone for good.
    if slots.len() > 64 {
        slots.retain(|_, (known, _)| *known == mark);
    }
    if slots.len() > MAX_SLOTS {
        slots.clear();
    }
    if let Some(slot) = slot {
        slots.insert(key, slot);
    }
    value
}
