//! The route configurations of a sidecar. A mesh may have thousands of virtual services, and they change one by one: when
//! nothing but the routes of some of them is new, only the virtual hosts made of those are made again.

use super::vhosts::{self, Made};
use super::{OutboundRoute, Routes, VIRTUAL_HOSTS_TAG, catch_all, shell};
use crate::pb::route::VirtualHost;
use crate::resource::{Resource, Resources};
use crate::scope::{Egress, View};
use crate::shared::Pool;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weft_core::Strng;
use weft_model::VirtualService;

/// Route configurations, and virtual hosts apart; with what they were made of.
#[derive(Debug, Default)]
pub(crate) struct KeptRoutes {
    pub configurations: Arc<Resources>,
    pub virtual_hosts: Arc<Resources>,
    /// Mark of everything but the virtual services.
    base: Vec<u64>,
    by_route: BTreeMap<OutboundRoute, KeptRoute>,
}

/// One route configuration.
#[derive(Debug, Clone)]
struct KeptRoute {
    /// Virtual services that it may be made of, as the listener has them, each with the virtual hosts made of it.
    rules: Arc<Vec<Arc<VirtualService>>>,
    made: Arc<Vec<KeptRule>>,
    /// All virtual hosts, by name; empty where they go out apart.
    hosts: Vec<Arc<Resource>>,
}

/// What came of a virtual service.
#[derive(Debug, Default)]
struct KeptRule {
    /// It has routes for this port and these clients.
    routed: bool,
    /// Names of the virtual hosts' resources.
    hosts: Vec<Strng>,
}

/// The route configurations that outbound listeners ask for. `base` says what all but the virtual services is; where it is
/// what it was for `old`, virtual services that are others take the places of those that were there.
pub(crate) fn outbound(
    view: View<'_>,
    wanted: &BTreeSet<OutboundRoute>,
    old: Option<&KeptRoutes>,
    base: Vec<u64>,
    pool: &Pool,
) -> KeptRoutes {
    if let Some(old) = old.filter(|old| old.base == base && old.by_route.keys().eq(wanted)) {
        let mut next = Next { view, old, configurations: None, virtual_hosts: None, pool };
        let updated: Option<BTreeMap<_, _>> =
            old.by_route.iter().map(|(route, kept)| Some((route.clone(), next.route(route, kept)?))).collect();
        if let Some(by_route) = updated {
            return KeptRoutes {
                configurations: next.configurations.map_or_else(|| old.configurations.clone(), Arc::new),
                virtual_hosts: next.virtual_hosts.map_or_else(|| old.virtual_hosts.clone(), Arc::new),
                base,
                by_route,
            };
        }
    }
    let mut routes = Routes::default();
    let by_route = wanted.iter().map(|route| (route.clone(), make(view, route, &mut routes))).collect();
    let none = KeptRoutes::default();
    let old = old.unwrap_or(&none);
    KeptRoutes {
        configurations: pool.reuse(&old.configurations, routes.configurations),
        virtual_hosts: pool.reuse(&old.virtual_hosts, routes.virtual_hosts),
        base,
        by_route,
    }
}

/// Makes a route configuration from nothing.
fn make(view: View<'_>, route: &OutboundRoute, routes: &mut Routes) -> KeptRoute {
    let egress = route.egress(view.scope);
    let all_ports = egress.is_some_and(Egress::for_all_ports);
    let rules = egress.map(|egress| egress.virtual_services.clone()).unwrap_or_default();
    let Made { mut hosts, routed } = match (route, egress) {
        (OutboundRoute::Port(_) | OutboundRoute::Socket(_), Some(egress)) if all_ports => {
            vhosts::for_all_ports(view, egress)
        }
        (OutboundRoute::Port(port), Some(egress)) => vhosts::for_port(view, egress, *port),
        (OutboundRoute::Sniffed(host, port), Some(egress)) => {
            vhosts::for_service(view, egress, host, *port).unwrap_or_default()
        }
        (OutboundRoute::Socket(_), _) | (_, None) => Made::default(),
    };
    if !matches!(route, OutboundRoute::Sniffed(..)) {
        hosts.push((catch_all(view.scope), None));
    }
    let name = route.name();
    let mut made: Vec<KeptRule> = Vec::new();
    made.resize_with(rules.len(), KeptRule::default);
    for place in routed {
        made.get_mut(place).into_iter().for_each(|rule| rule.routed = true);
    }
    let mut packed = Vec::new();
    for (host, place) in hosts {
        let resource = routes.name_host(&name, &host);
        if let Some(rule) = place.and_then(|place| made.get_mut(place)) {
            rule.hosts.push(resource.name.clone());
        }
        packed.push(resource);
    }
    // Virtual hosts that come apart are named after the route, which must have no slash for that.
    let apart = view.scope.key.weft && !matches!(route, OutboundRoute::Socket(_));
    let mut shell = shell(name, Vec::new());
    shell.ignore_port_in_host_matching = !all_ports;
    routes.add_packed(shell, &packed, apart);
    KeptRoute { rules, made: Arc::new(made), hosts: if apart { Vec::new() } else { packed } }
}

/// The route configurations while virtual services take the places of others.
struct Next<'a> {
    view: View<'a>,
    old: &'a KeptRoutes,
    configurations: Option<Resources>,
    virtual_hosts: Option<Resources>,
    pool: &'a Pool,
}

impl Next<'_> {
    /// One configuration; `None` when more changed than the routes of virtual services.
    fn route(&mut self, route: &OutboundRoute, kept: &KeptRoute) -> Option<KeptRoute> {
        let egress = route.egress(self.view.scope);
        let rules = egress.map(|e| e.virtual_services.clone()).unwrap_or_default();
        let same = || rules.iter().map(Arc::as_ptr).eq(kept.rules.iter().map(Arc::as_ptr));
        if rules.len() != kept.rules.len() || (egress.is_some_and(Egress::for_all_ports) && !same()) {
            return None;
        }
        let mut hosts = kept.hosts.clone();
        let mut any = false;
        for ((new, old), made) in rules.iter().zip(kept.rules.iter()).zip(kept.made.iter()) {
            if Arc::ptr_eq(new, old) {
                continue;
            }
            let routes = vhosts::routes(self.view, new, route.port());
            if new.hosts != old.hosts || routes.is_empty() == made.routed {
                return None;
            }
            for name in &made.hosts {
                let before = self.before(name, &hosts)?;
                let known: VirtualHost = weft_proto::unpack(&before.any).ok()?;
                let host = vhosts::virtual_host(self.view, known.name, known.domains, routes.clone(), &new.provenance);
                let resource = Resource::new(name.clone(), &host);
                if resource.hash != before.hash {
                    self.replace(self.pool.shared(&resource), &mut hosts);
                    any = true;
                }
            }
        }
        if any && !self.view.scope.key.weft {
            let shell = shell(route.name(), Vec::new());
            let all = hosts.iter().map(|host| &host.any);
            let whole = Resource::with_messages(shell.name.as_str(), &shell, VIRTUAL_HOSTS_TAG, all);
            let configurations = self.configurations.get_or_insert_with(|| (*self.old.configurations).clone());
            configurations.insert(whole.name.clone(), self.pool.shared(&whole));
        }
        Some(KeptRoute { rules, made: kept.made.clone(), hosts })
    }

    /// The virtual host as it was.
    fn before(&self, name: &str, hosts: &[Arc<Resource>]) -> Option<Arc<Resource>> {
        if self.view.scope.key.weft {
            return self.old.virtual_hosts.get(name).cloned();
        }
        hosts.iter().find(|host| *host.name == *name).cloned()
    }

    fn replace(&mut self, new: Arc<Resource>, hosts: &mut [Arc<Resource>]) {
        if self.view.scope.key.weft {
            let all = self.virtual_hosts.get_or_insert_with(|| (*self.old.virtual_hosts).clone());
            all.insert(new.name.clone(), new);
        } else if let Some(place) = hosts.iter_mut().find(|host| host.name == new.name) {
            *place = new;
        }
    }
}
