//! Virtual hosts of one port: those that virtual services claim, then those of the services that none claims.

use super::convert::{self, Conversion};
use super::domains;
use crate::pb::address::host_port;
use crate::pb::route::{Route, VirtualHost};
use crate::pb::value;
use crate::scope::{Egress, View};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use weft_core::Provenance;
use weft_model::{MESH_GATEWAY, Service, VirtualService, hosts};

/// A virtual service with the routes it has for this port and these clients.
struct Rule<'a> {
    /// Its place among those of the listener.
    place: usize,
    vs: &'a Arc<VirtualService>,
    routes: Vec<Route>,
}

/// Virtual hosts of a route configuration, and what came of virtual services, by their places among the listener's.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// Each with the place of the virtual service that it comes from.
    pub hosts: Vec<(VirtualHost, Option<usize>)>,
    /// Places of those that have routes.
    pub routed: Vec<usize>,
}

/// All virtual hosts of a port, by name.
pub(super) fn for_port(view: View<'_>, egress: &Egress, port: u16) -> Made {
    let services = http_services(egress, port);
    let rules = rules_for(view, egress, port);
    let claims = claims(&rules, &services);
    let mut claimed: Vec<Vec<&Arc<Service>>> = vec![Vec::new(); rules.len()];
    for (host, index) in &claims {
        claimed[*index].extend(services.get(host));
    }
    let mut taken = Taken::new(&services, port);
    let mut out = Vec::new();
    for (rule, claimed) in rules.iter().zip(claimed) {
        for host in hosts_without_service(view, rule, &services, port) {
            if !claimed.is_empty() || port == 80 {
                let host = taken.host(&host, port, rule.routes.clone(), &rule.vs.provenance);
                out.extend(host.map(|host| (host, Some(rule.place))));
            }
        }
        for service in claimed {
            let host = taken.service(view, service, port, rule.routes.clone(), &rule.vs.provenance);
            out.extend(host.map(|host| (host, Some(rule.place))));
        }
    }
    for service in services.values().filter(|s| !claims.contains_key(&*s.host)) {
        let route = convert::default_route(view, service, port);
        let host = taken.service(view, service, port, vec![route], &service.provenance);
        out.extend(host.map(|host| (host, None)));
    }
    out.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    Made { hosts: out, routed: rules.iter().map(|rule| rule.place).collect() }
}

/// The virtual host of one service, for a configuration of its own: any host name is the service's.
pub(super) fn for_service(view: View<'_>, egress: &Egress, host: &str, port: u16) -> Option<Made> {
    let services = http_services(egress, port);
    let service = services.get(host)?;
    let rules = rules_for(view, egress, port);
    let claim = claims(&rules, &services).get(host).copied();
    let (routes, origin, place) = match claim.and_then(|index| rules.get(index)) {
        Some(rule) => (rule.routes.clone(), &rule.vs.provenance, Some(rule.place)),
        None => (vec![convert::default_route(view, service, port)], &service.provenance, None),
    };
    let host = virtual_host(host_port(host, port), vec!["*".into()], routes, origin);
    Some(Made { hosts: vec![(host, place)], routed: rules.iter().map(|rule| rule.place).collect() })
}

/// Services that speak, or may speak, HTTP on the port, by host.
fn http_services(egress: &Egress, port: u16) -> BTreeMap<&str, Arc<Service>> {
    let speaks = |s: &&Arc<Service>| {
        s.ports.iter().any(|p| p.number == port && (p.protocol.is_http() || p.protocol.is_unknown()))
    };
    egress.services.iter().filter(speaks).map(|s| (&*s.host, s.clone())).collect()
}

/// Virtual services that have a route for the port and these clients.
fn rules_for<'a>(view: View<'_>, egress: &'a Egress, port: u16) -> Vec<Rule<'a>> {
    let convert = |(place, vs): (usize, &'a Arc<VirtualService>)| {
        let routes = routes(view, vs, port);
        (!routes.is_empty()).then_some(Rule { place, vs, routes })
    };
    egress.virtual_services.iter().enumerate().filter_map(convert).collect()
}

/// The routes of a virtual service for a port and the clients of the view.
pub(super) fn routes(view: View<'_>, vs: &Arc<VirtualService>, port: u16) -> Vec<Route> {
    Conversion { view, vs, port, gateway: MESH_GATEWAY, tls: false }.routes()
}

/// Which rule each service goes by: the first that names it, else the first of the most specific wildcard.
fn claims<'a>(rules: &[Rule<'_>], services: &BTreeMap<&'a str, Arc<Service>>) -> BTreeMap<&'a str, usize> {
    // Names are looked up and only wildcards tried: there are thousands of the ones and few of the others.
    let (mut names, mut wildcards) = (HashMap::new(), BTreeMap::new());
    for (index, rule) in rules.iter().enumerate() {
        for host in &rule.vs.hosts {
            if hosts::is_wildcard(host) {
                wildcards.entry(&**host).or_insert(index);
            } else {
                names.entry(&**host).or_insert(index);
            }
        }
    }
    let claim = |host: &&'a str| {
        let by_wildcard = || hosts::most_specific(host, wildcards.iter().map(|(pattern, index)| (*pattern, *index)));
        Some((*host, names.get(host).copied().or_else(by_wildcard)?))
    };
    services.keys().filter_map(claim).collect()
}

/// Hosts of a rule that no service has on this port: clients may still call them by name. So a rule for port 80 serves a host
/// whose service declares 443 alone, as the page on egress gateways with TLS origination has it.
fn hosts_without_service(
    view: View<'_>,
    rule: &Rule<'_>,
    services: &BTreeMap<&str, Arc<Service>>,
    port: u16,
) -> Vec<String> {
    let unknown = |host: &&weft_core::Strng| {
        if hosts::is_wildcard(host) {
            services.keys().all(|service| !hosts::covers(host, service))
        } else {
            view.scope.service(host).is_none_or(|service| service.ports.iter().all(|p| p.number != port))
        }
    };
    rule.vs.hosts.iter().filter(unknown).map(ToString::to_string).collect()
}

/// Names and domains that are taken: a configuration with one twice is refused whole.
struct Taken {
    names: BTreeSet<String>,
    domains: BTreeSet<String>,
    full_names: BTreeSet<String>,
}

impl Taken {
    fn new(services: &BTreeMap<&str, Arc<Service>>, port: u16) -> Self {
        let full = services.keys().flat_map(|host| [host.to_string(), host_port(host, port)]);
        Self { names: BTreeSet::new(), domains: BTreeSet::new(), full_names: full.collect() }
    }

    fn host(&mut self, host: &str, port: u16, routes: Vec<Route>, origin: &Provenance) -> Option<VirtualHost> {
        let domains = vec![crate::pb::address::bracketed(host)];
        self.add(host_port(host, port), domains, &[], routes, origin)
    }

    fn service(
        &mut self,
        view: View<'_>,
        service: &Service,
        port: u16,
        routes: Vec<Route>,
        origin: &Provenance,
    ) -> Option<VirtualHost> {
        let (domains, short) = domains::of_service(service, &view.scope.key);
        self.add(host_port(&service.host, port), domains, &short, routes, origin)
    }

    fn add(
        &mut self,
        name: String,
        mut domains: Vec<String>,
        short: &[String],
        routes: Vec<Route>,
        origin: &Provenance,
    ) -> Option<VirtualHost> {
        if !self.names.insert(name.clone()) {
            return None;
        }
        domains.retain(|domain| {
            let gives_way = short.contains(domain) && self.full_names.contains(domain);
            !gives_way && self.domains.insert(domain.to_ascii_lowercase())
        });
        (!domains.is_empty()).then(|| virtual_host(name, domains, routes, origin))
    }
}

pub(super) fn virtual_host(name: String, domains: Vec<String>, routes: Vec<Route>, origin: &Provenance) -> VirtualHost {
    VirtualHost {
        name,
        domains,
        routes,
        include_request_attempt_count: true,
        metadata: Some(value::provenance(origin)),
        ..Default::default()
    }
}
