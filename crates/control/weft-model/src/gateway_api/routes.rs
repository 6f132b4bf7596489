//! Routes as virtual services: the rules of all routes that share a listener and a host are one virtual service, sorted as
//! the API says.

use super::Problem;
use super::attach::Attached;
use super::backends::{ISTIO, References, Referrer};
use super::http;
use super::listeners::GatewayState;
use super::read::{HttpRule, Parents, RouteKind, RouteSpec};
use crate::parsed::{Parsed, age_order, reuse};
use crate::{ExportTo, MESH_GATEWAY, VirtualService};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use weft_core::{Provenance, Strng};
use weft_k8s_api::gateway_api as api;
use weft_k8s_api::istio::{self, HttpRoute};

/// A route with its references looked up.
#[derive(Debug, PartialEq)]
pub(crate) struct Converted {
    /// HTTP rules, each with one condition at most.
    pub http: Vec<(HttpRoute, Provenance)>,
    /// Destinations of connections, by rule, with the server names of the rule.
    pub l4: Vec<(Vec<String>, Vec<istio::RouteDestination>)>,
    /// Why the route is not accepted.
    pub refused: Option<Problem>,
    /// Backends that cannot be used.
    pub unresolved: Option<Problem>,
    /// What is left out of a rule that is in force.
    pub partly: Option<Problem>,
}

/// Name of a route: kind, namespace, name.
pub(crate) type RouteKey = (RouteKind, bool, String, String);

/// The key of a route.
pub(crate) fn key(route: &Parsed<RouteSpec>) -> RouteKey {
    (route.spec.kind, route.spec.old, route.meta.namespace.clone(), route.meta.name.clone())
}

/// Looks up what a route refers to.
pub(crate) fn convert(references: &References<'_>, route: &Parsed<RouteSpec>) -> Converted {
    let group = if route.spec.old { api::v1alpha1::GROUP } else { api::GROUP };
    let from = Referrer { group, kind: route.spec.kind.name(), namespace: &route.meta.namespace };
    let mut out = Converted { http: Vec::new(), l4: Vec::new(), refused: None, unresolved: None, partly: None };
    for (index, rule) in route.spec.http.iter().enumerate() {
        let name = match rule.name.as_str() {
            "" => format!("{}.{}.{index}", route.meta.namespace, route.meta.name),
            name => name.to_string(),
        };
        let origin = route.meta.provenance.at(format!("spec.rules[{index}]"));
        if rule.sessions {
            out.partly.get_or_insert_with(|| without_sessions().at(&origin.path));
        }
        let rules = match http::rule(references, from, name.clone(), rule) {
            Ok(converted) => {
                out.unresolved = out.unresolved.take().or(converted.unresolved);
                converted.routes
            }
            Err(problem) => {
                out.refused = out.refused.take().or(Some(problem.at(&origin.path)));
                http::refused(name, rule)
            }
        };
        out.http.extend(rules.into_iter().map(|r| (r, origin.clone())));
    }
    // Without rules everything matches, and there is nowhere to send it to.
    if route.spec.http.is_empty() && route.spec.kind.is_of_requests() {
        let all = http::refused(String::new(), &HttpRule::default());
        out.http.extend(all.into_iter().map(|r| (r, route.meta.provenance.clone())));
    }
    for rule in &route.spec.l4 {
        let mut destinations = Vec::new();
        for to in &rule.backends {
            let (destination, problem) = references.destination(from, to);
            out.unresolved = out.unresolved.take().or(problem);
            let weight = to.weight.unwrap_or(1);
            destinations.push(istio::RouteDestination { destination: Some(destination), weight });
        }
        destinations.retain(|to| to.weight > 0);
        out.l4.push((rule.names.clone(), destinations));
    }
    out
}

fn without_sessions() -> Problem {
    let message = "Fall Back: sessionPersistence is not supported, the rule works without it; a DestinationRule with \
                   trafficPolicy.loadBalancer.consistentHash.httpCookie keeps a client with its backend";
    Problem::new("UnsupportedValue", message.into())
}

/// What virtual services are kept by from build to build: the listener (or `mesh`) and the host, for connections the route.
type Slot = (String, String);

/// Virtual services by slot, each with what it was made of.
pub(crate) type BySlot = HashMap<Slot, (Vec<Arc<Converted>>, Arc<VirtualService>)>;

/// All virtual services; those that are equal to one of `old` are that one.
pub(crate) fn virtual_services(
    routes: &[Attached],
    converted: &HashMap<RouteKey, Arc<Converted>>,
    gateways: &[GatewayState],
    references: &References<'_>,
    old: &BySlot,
) -> BySlot {
    let mut collected: BTreeMap<Slot, Group<'_>> = BTreeMap::new();
    for attached in routes {
        let Some(rules) = converted.get(&key(&attached.route)) else { continue };
        let to = attached.outcomes.iter().filter_map(|o| o.attached.as_ref().ok()).flatten();
        for to in to.filter(|to| !to.hosts.is_empty()) {
            let gateway = &gateways[to.listener.0];
            let listener = &gateway.listeners[to.listener.1];
            let namespace = gateway.object.meta.namespace.as_str();
            let place = Place { gateway: &listener.id, namespace, hostname: &listener.spec.hostname, port: None };
            let passes =
                listener.spec.protocol == "TLS" && listener.spec.tls.as_ref().is_none_or(|t| t.mode == "Passthrough");
            add(&mut collected, place, attached, rules, &to.hosts, passes);
        }
        for (host, port, export_to) in mesh_parents(&attached.route, references) {
            let namespace = attached.route.meta.namespace.as_str();
            let place = Place { gateway: MESH_GATEWAY, namespace, hostname: "", port };
            let kind = attached.route.spec.kind;
            let slot = (mesh_slot(kind, port), format!("{host} {namespace}{}", seen_by(&export_to)));
            let group = collected.entry(slot).or_insert_with(|| Group::new(place, vec![host.to_string()], export_to));
            group.passes = kind == RouteKind::Tls;
            group.members.push((&attached.route, rules));
        }
    }
    let finish = |(slot, group): (Slot, Group<'_>)| {
        let made_of: Vec<Arc<Converted>> = group.members.iter().map(|(_, rules)| (*rules).clone()).collect();
        let before = old.get(&slot);
        let same = |known: &[Arc<Converted>]| {
            known.len() == made_of.len() && known.iter().zip(&made_of).all(|(a, b)| Arc::ptr_eq(a, b))
        };
        // Rules for connections depend on the names of their routes and listeners too.
        let reusable = group.members.iter().all(|(route, _)| route.spec.kind.is_of_requests());
        let built = group.build(&slot);
        let service = match before {
            Some((known, service)) if reusable && same(known) && service.created == built.created => service.clone(),
            _ => reuse(before.map(|(_, service)| service), built.finish()),
        };
        (slot, (made_of, service))
    };
    collected.into_iter().map(finish).collect()
}

/// Rules for requests and each kind of rules for connections of a service stand by themselves.
fn mesh_slot(kind: RouteKind, port: Option<u32>) -> String {
    let port = port.unwrap_or_default();
    if kind.is_of_requests() {
        format!("{MESH_GATEWAY} {port}")
    } else {
        format!("{MESH_GATEWAY} {} {port}", kind.name())
    }
}

/// Who sees rules, as part of their name: service entries of one namespace for one host may be for different clients.
fn seen_by(export_to: &ExportTo) -> String {
    match export_to {
        ExportTo::All => String::new(),
        ExportTo::Nobody => " ~".into(),
        ExportTo::Namespaces(set) => set.iter().map(|namespace| format!(" {namespace}")).collect(),
    }
}

/// Where virtual services apply.
#[derive(Clone, Copy)]
struct Place<'a> {
    gateway: &'a str,
    /// Of the Gateway; for clients in the mesh, of the route.
    namespace: &'a str,
    /// Of the listener.
    hostname: &'a str,
    /// Port of the service, for clients in the mesh.
    port: Option<u32>,
}

/// Routes that share a place and a host.
struct Group<'a> {
    place: Place<'a>,
    hosts: Vec<String>,
    export_to: ExportTo,
    passes: bool,
    members: Vec<(&'a Arc<Parsed<RouteSpec>>, &'a Arc<Converted>)>,
}

impl<'a> Group<'a> {
    fn new(place: Place<'a>, hosts: Vec<String>, export_to: ExportTo) -> Self {
        Self { place, hosts, export_to, passes: false, members: Vec::new() }
    }

    /// Rules for connections that lead somewhere: of which route, with which server names.
    fn connections(&self) -> impl Iterator<Item = (&RouteSpec, &[String], &[istio::RouteDestination])> {
        let rules = self.members.iter().flat_map(|(route, rules)| rules.l4.iter().map(|rule| (&*route.spec, rule)));
        rules.map(|(route, (names, to))| (route, names.as_slice(), to.as_slice())).filter(|(_, _, to)| !to.is_empty())
    }

    /// The server names of a rule: its own; else at a gateway the hosts that route and listener share, and in the mesh the
    /// route's, as clients need not call the service by its host.
    fn server_names(&self, route: &RouteSpec, names: &[String]) -> Vec<String> {
        let in_mesh = self.place.gateway == MESH_GATEWAY;
        match names {
            [] if in_mesh && !route.hostnames.is_empty() => route.hostnames.clone(),
            [] => self.hosts.clone(),
            names => within(names, self.place.hostname),
        }
    }

    fn build(mut self, slot: &Slot) -> Pending<'a> {
        self.members.sort_by(|(a, _), (b, _)| age_order(&a.meta).cmp(&age_order(&b.meta)));
        let oldest = self.members.first().map(|(route, _)| *route);
        let created = oldest.map_or(0, |r| r.meta.created);
        Pending { name: format!("{}~{}", slot.0.rsplit('/').next().unwrap_or_default(), slot.1), created, group: self }
    }
}

/// A virtual service before its rules are put together.
struct Pending<'a> {
    name: String,
    created: i64,
    group: Group<'a>,
}

fn add<'a>(
    collected: &mut BTreeMap<Slot, Group<'a>>,
    place: Place<'a>,
    attached: &'a Attached,
    rules: &'a Arc<Converted>,
    hosts: &[String],
    passes: bool,
) {
    let route = &attached.route;
    if route.spec.kind.is_of_requests() {
        for host in hosts {
            let slot = (place.gateway.to_string(), host.clone());
            let group = collected.entry(slot).or_insert_with(|| Group::new(place, vec![host.clone()], ExportTo::All));
            group.members.push((route, rules));
        }
        return;
    }
    // Rules for connections are not mixed: the oldest route has the names it asks for.
    let slot =
        (place.gateway.to_string(), format!("{} {}/{}", route.spec.kind.name(), route.meta.namespace, route.meta.name));
    let group = collected.entry(slot).or_insert_with(|| Group::new(place, hosts.to_vec(), ExportTo::All));
    group.passes = passes;
    group.members.push((route, rules));
}

impl Pending<'_> {
    fn finish(self) -> VirtualService {
        let group = self.group;
        let mut spec = istio::VirtualService { hosts: group.hosts.clone(), ..Default::default() };
        let mut http: Vec<(&HttpRoute, &Provenance)> =
            group.members.iter().flat_map(|(_, rules)| rules.http.iter().map(|(r, o)| (r, o))).collect();
        // The sort is stable: of equal conditions the older route's come first, then the earlier rule's.
        http.sort_by_key(|(route, _)| std::cmp::Reverse(http::rank(route)));
        let http_origin = http.iter().map(|(_, origin)| (*origin).clone()).collect();
        spec.http = http.into_iter().map(|(route, _)| with_port(route, group.place.port)).collect();
        for (route, names, destinations) in group.connections() {
            let port = group.place.port.unwrap_or_default();
            if group.passes {
                let condition = istio::TlsMatchAttributes {
                    sni_hosts: group.server_names(route, names),
                    port,
                    ..Default::default()
                };
                spec.tls.push(istio::TlsRoute { matches: vec![condition], route: destinations.to_vec() });
            } else {
                let of_port = istio::L4MatchAttributes { port, ..Default::default() };
                let matches = if port == 0 { Vec::new() } else { vec![of_port] };
                spec.tcp.push(istio::TcpRoute { matches, route: destinations.to_vec() });
            }
        }
        let provenance = match group.members.as_slice() {
            [(only, _)] => only.meta.provenance.clone(),
            [(oldest, _), ..] => oldest.meta.provenance.clone(),
            [] => Provenance::default(),
        };
        VirtualService {
            hosts: group.hosts.iter().map(|h| Strng::from(h.as_str())).collect(),
            gateways: vec![group.place.gateway.to_string()],
            namespace: group.place.namespace.to_string(),
            name: self.name,
            export_to: group.export_to,
            created: self.created,
            spec: Arc::new(spec),
            http_origin,
            whole_path_elements: true,
            provenance,
        }
    }
}

fn within(names: &[String], hostname: &str) -> Vec<String> {
    let inside = |name: &&String| hostname.is_empty() || crate::hosts::covers(hostname, name);
    names.iter().filter(inside).cloned().collect()
}

fn with_port(route: &HttpRoute, port: Option<u32>) -> HttpRoute {
    let mut route = route.clone();
    if let Some(port) = port {
        if route.matches.is_empty() {
            route.matches.push(istio::HttpMatchRequest::default());
        }
        route.matches.iter_mut().for_each(|m| m.port = port);
    }
    route
}

/// Hosts whose callers in the mesh the route is for, with the port that it names: all who see the service when the route
/// stands beside it, else those of its own namespace.
fn mesh_parents(route: &Parsed<RouteSpec>, references: &References<'_>) -> Vec<(Strng, Option<u32>, ExportTo)> {
    let Parents::Named(parents) = &route.spec.parents else { return Vec::new() };
    let mut found = Vec::new();
    for parent in parents.iter().filter(|p| is_mesh(p)) {
        let beside = parent.namespace.as_ref().is_none_or(|namespace| *namespace == route.meta.namespace);
        let own = ExportTo::Namespaces([route.meta.namespace.clone()].into());
        let seen = |host: &Strng| {
            let services = references.services.get(host).filter(|_| beside)?;
            let same = services.iter().find(|service| service.namespace == route.meta.namespace)?;
            Some(same.export_to.clone())
        };
        for host in mesh_hosts(parent, &route.meta.namespace, references) {
            let export_to = seen(&host).unwrap_or_else(|| own.clone());
            found.push((host, parent.port, export_to));
        }
    }
    found
}

/// Hosts of the service, or the service entry, that a route of `namespace` names as a parent.
pub(crate) fn mesh_hosts(parent: &api::ParentReference, namespace: &str, references: &References<'_>) -> Vec<Strng> {
    let (group, kind) = (parent.group.as_deref().unwrap_or_default(), parent.kind.as_deref().unwrap_or_default());
    references.hosts_of(group, kind, parent.namespace.as_deref().unwrap_or(namespace), &parent.name)
}

/// True for a reference to a service or a service entry: the route is for its callers in the mesh.
pub(crate) fn is_mesh(parent: &api::ParentReference) -> bool {
    let of = (parent.group.as_deref(), parent.kind.as_deref());
    matches!(of, (Some("" | "core"), Some("Service")) | (Some(ISTIO), Some("ServiceEntry")))
}
