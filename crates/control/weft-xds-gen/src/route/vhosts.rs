//! Virtual hosts of one port: those that virtual services claim, then those of the services that none claims.

use super::convert::{self, Conversion};
use super::domains;
use crate::gateway;
use crate::pb::address::host_port;
use crate::pb::route::{Route, VirtualHost};
use crate::pb::value;
use crate::scope::{Egress, View};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use weft_core::Provenance;
use weft_model::{MESH_GATEWAY, Protocol, Service, ServicePort, VirtualService, hosts};

/// A virtual service with the routes it has for this port and these clients.
struct Rule<'a> {
    /// Its place among those of the listener.
    place: usize,
    vs: &'a Arc<VirtualService>,
    routes: Vec<Route>,
}

/// Which virtual services are of use for services of a port.
type Wanted = fn(&VirtualService, &BTreeMap<&str, Arc<Service>>) -> bool;

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
    with_rules(view, egress, port, |_, _| true)
}

/// Those of a port, by the rules that are `wanted` there.
fn with_rules(view: View<'_>, egress: &Egress, port: u16, wanted: Wanted) -> Made {
    let services = http_services(egress, port);
    let rules = rules_for(view, egress, port, |vs| wanted(vs, &services));
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
                let host = taken.host(view, &host, port, rule.routes.clone(), &rule.vs.provenance);
                out.extend(host.map(|host| (host, Some(rule.place))));
            }
        }
        for service in claimed {
            let host = taken.service(view, service, port, rule.routes.clone(), &rule.vs.provenance);
            out.extend(host.map(|host| (host, Some(rule.place))));
        }
    }
    for service in services.values().filter(|s| !claims.contains_key(&*s.host)) {
        let route = convert::default_route(view, view.scope.meant(&service.host).unwrap_or(service), port);
        let host = taken.service(view, service, port, vec![route], &service.provenance);
        out.extend(host.map(|host| (host, None)));
    }
    out.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    Made { hosts: out, routed: rules.iter().map(|rule| rule.place).collect() }
}

/// All virtual hosts of all ports, for requests that come to one place and say in their host which port they mean. A host
/// without a port is that of port 80, else of the only port that it has.
pub(super) fn for_all_ports(view: View<'_>, egress: &Egress) -> Made {
    let speaks = |p: &&ServicePort| p.protocol.is_http() || p.protocol.is_unknown();
    let ports = egress.services.iter().flat_map(|s| s.ports.iter().filter(speaks)).map(|p| p.number);
    // Hosts that no service has are known at port 80.
    let ports: BTreeSet<u16> = ports.chain([80]).collect();
    // A rule is converted for the ports of the services that it may be for, not for every port of the mesh.
    let of_one = |port| with_rules(view, egress, port, if port == 80 { |_, _| true } else { names_one });
    let made: Vec<(u16, Made)> = ports.into_iter().map(|port| (port, of_one(port))).collect();
    let mut ports_of: BTreeMap<String, Vec<u16>> = BTreeMap::new();
    for (port, host) in made.iter().flat_map(|(port, made)| made.hosts.iter().map(move |(host, _)| (*port, host))) {
        host.domains.iter().for_each(|domain| ports_of.entry(domain.clone()).or_default().push(port));
    }
    let mut out = Made::default();
    for (port, made) in made {
        let without_port = |domain: &String| domain != "*" && (port == 80 || ports_of.get(domain) == Some(&vec![port]));
        for (mut host, place) in made.hosts {
            let mut domains: Vec<String> = host.domains.iter().filter(|d| without_port(d)).cloned().collect();
            domains.extend(host.domains.iter().map(|domain| format!("{domain}:{port}")));
            host.domains = domains;
            out.hosts.push((host, place));
        }
        out.routed.extend(made.routed);
    }
    out.hosts.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    out
}

/// The virtual host of one service, for a configuration of its own: any host name is the service's.
pub(super) fn for_service(view: View<'_>, egress: &Egress, host: &str, port: u16) -> Option<Made> {
    let services = http_services(egress, port);
    let service = services.get(host)?;
    let rules = rules_for(view, egress, port, |_| true);
    let claim = claims(&rules, &services).get(host).copied();
    let (routes, origin, place) = match claim.and_then(|index| rules.get(index)) {
        Some(rule) => (rule.routes.clone(), &rule.vs.provenance, Some(rule.place)),
        None => (vec![convert::default_route(view, service, port)], &service.provenance, None),
    };
    let host = virtual_host(view, host_port(host, port), vec!["*".into()], routes, origin);
    Some(Made { hosts: vec![(host, place)], routed: rules.iter().map(|rule| rule.place).collect() })
}

/// Services that speak, or may speak, HTTP on the port, by host; and their other names. Where the Sidecar's listener has the port
/// and says that it is HTTP, that counts and not what the service says.
fn http_services(egress: &Egress, port: u16) -> BTreeMap<&str, Arc<Service>> {
    let own = egress.listener.as_ref().and_then(|l| l.port.as_ref()).filter(|own| own.number == u32::from(port));
    let declared = own.is_some_and(|own| gateway::protocol(&own.protocol).is_http()) && !egress.for_all_ports();
    let is_http =
        |p: &ServicePort| p.protocol.is_http() || p.protocol.is_unknown() || (declared && p.protocol != Protocol::Udp);
    let speaks = |s: &&Arc<Service>| s.ports.iter().any(|p| p.number == port && is_http(p));
    let own = egress.services.iter().filter(|s| s.alias_of.is_none());
    let mut found: BTreeMap<&str, Arc<Service>> = own.filter(speaks).map(|s| (&*s.host, s.clone())).collect();
    let known = |s: &&Arc<Service>| s.alias_of.as_ref().is_some_and(|host| found.contains_key(&**host));
    let aliases: Vec<&Arc<Service>> = egress.services.iter().filter(known).collect();
    found.extend(aliases.into_iter().map(|s| (&*s.host, s.clone())));
    found
}

/// Whether a rule has a host that one of the services has.
fn names_one(vs: &VirtualService, services: &BTreeMap<&str, Arc<Service>>) -> bool {
    vs.hosts.iter().any(|host| match hosts::is_wildcard(host) {
        true => services.keys().any(|service| hosts::covers(host, service)),
        false => services.contains_key(&**host),
    })
}

/// Virtual services, of those that are `wanted`, that have a route for the port and these clients.
fn rules_for<'a>(
    view: View<'_>,
    egress: &'a Egress,
    port: u16,
    wanted: impl Fn(&VirtualService) -> bool,
) -> Vec<Rule<'a>> {
    let convert = |(place, vs): (usize, &'a Arc<VirtualService>)| {
        if !wanted(vs) {
            return None;
        }
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
/// Another name of a service goes by a rule for that name, else with the service.
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
    let mut claims: BTreeMap<&str, usize> = services.keys().filter_map(claim).collect();
    for (alias, host) in services.iter().filter_map(|(name, s)| Some((*name, s.alias_of.as_deref()?))) {
        match names.get(alias).or_else(|| claims.get(host)) {
            Some(index) => claims.insert(alias, *index),
            None => claims.remove(alias),
        };
    }
    claims
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
        } else if services.contains_key(&***host) {
            false
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

    fn host(
        &mut self,
        view: View<'_>,
        host: &str,
        port: u16,
        routes: Vec<Route>,
        origin: &Provenance,
    ) -> Option<VirtualHost> {
        let domains = vec![crate::pb::address::bracketed(host)];
        self.add((view, host_port(host, port)), domains, &[], routes, origin)
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
        self.add((view, host_port(&service.host, port)), domains, &short, routes, origin)
    }

    fn add(
        &mut self,
        (view, name): (View<'_>, String),
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
        (!domains.is_empty()).then(|| virtual_host(view, name, domains, routes, origin))
    }
}

pub(super) fn virtual_host(
    view: View<'_>,
    name: String,
    domains: Vec<String>,
    routes: Vec<Route>,
    origin: &Provenance,
) -> VirtualHost {
    VirtualHost {
        name,
        domains,
        routes,
        include_request_attempt_count: !view.scope.key.headers.no_attempt_count,
        metadata: Some(value::provenance(origin)),
        ..Default::default()
    }
}
