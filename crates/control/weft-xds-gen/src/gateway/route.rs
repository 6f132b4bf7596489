//! Route configurations of gateways: virtual hosts from the virtual services whose hosts a server shares.
//!
//! A gateway may have thousands of hosts, and they change one by one: a virtual host is made again only when the virtual
//! services that it is made of are others than before ([`KeptHosts`]).

use super::merge::{GatewayServer, Merged, PortServers, bare};
use crate::host::intersection;
use crate::pb::address::{bracketed, host_port};
use crate::pb::route::{DirectResponseAction, Route, VirtualHost, route::Action, virtual_host::TlsRequirementType};
use crate::pb::value;
use crate::resource::Resource;
use crate::route::convert::{Conversion, is_catch_all};
use crate::route::{Routes, any_path, shell};
use crate::scope::View;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use weft_core::Provenance;
use weft_model::VirtualService;
use weft_model::hosts::{covers, is_wildcard};

/// Status of requests on a connection that was opened for another host.
const MISDIRECTED: u32 = 421;

/// Virtual hosts by route configuration and host, as they were made last.
pub(crate) type KeptHosts = HashMap<(String, String), Arc<KeptHost>>;

/// A virtual host, and what it was made of.
#[derive(Debug)]
pub(crate) struct KeptHost {
    made_of: Vec<Share>,
    resource: Arc<Resource>,
}

/// A virtual service's part in a virtual host, through one server.
#[derive(Debug, Clone)]
struct Share {
    /// Place of the server among those of the route configuration.
    server: usize,
    /// `None`: the server itself, which redirects.
    vs: Option<Arc<VirtualService>>,
}

impl Share {
    fn is(&self, other: &Self) -> bool {
        let same = match (&self.vs, &other.vs) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        same && self.server == other.server
    }
}

/// The route configurations of all servers that read HTTP. `old` are the virtual hosts that were made from the same
/// servers, services and rules; the second value is what to keep.
pub(crate) fn routes(view: View<'_>, merged: &Merged, old: &KeptHosts) -> (Routes, KeptHosts) {
    let mut routes = Routes::default();
    let mut kept = KeptHosts::new();
    let bound = by_gateway(view);
    for (name, servers) in merged.by_route() {
        let mut hosts = Vec::new();
        let mut taken = BTreeSet::new();
        for (host, shares) in shares(&servers, &bound) {
            let key = (name.to_string(), host);
            let same = |k: &&Arc<KeptHost>| {
                k.made_of.len() == shares.len() && k.made_of.iter().zip(&shares).all(|(a, b)| a.is(b))
            };
            let host = match old.get(&key).filter(same) {
                Some(host) => host.clone(),
                None => match virtual_host(view, &servers, &key.1, &shares) {
                    Some(host) => Arc::new(KeptHost { resource: routes.name_host(name, &host), made_of: shares }),
                    None => continue,
                },
            };
            hosts.push(host.resource.clone());
            taken.insert(key.1.clone());
            kept.insert(key, host);
        }
        let others = match hosts.is_empty() {
            true => vec![black_hole(&servers)],
            false => misdirected(&servers, merged, &taken),
        };
        hosts.extend(others.iter().map(|host| routes.name_host(name, host)));
        hosts.sort_by(|a, b| a.name.cmp(&b.name));
        routes.add_packed(shell(name.to_string(), Vec::new()), &hosts, view.scope.key.weft);
    }
    (routes, kept)
}

/// Virtual services that the gateway sees, by the gateways they are bound to, in the order of
/// [`weft_model::MeshSnapshot::virtual_services_seen`].
fn by_gateway<'a>(view: View<'a>) -> HashMap<&'a str, Vec<&'a Arc<VirtualService>>> {
    let mut bound: HashMap<&str, Vec<&Arc<VirtualService>>> = HashMap::new();
    for vs in view.snapshot.virtual_services_seen(&view.scope.key.namespace) {
        for gateway in &vs.gateways {
            let list = bound.entry(gateway).or_default();
            if list.last().is_none_or(|last| !Arc::ptr_eq(last, vs)) {
                list.push(vs);
            }
        }
    }
    bound
}

/// Who has a part in which host, in the order in which routes are tried.
fn shares(
    servers: &[&GatewayServer],
    bound: &HashMap<&str, Vec<&Arc<VirtualService>>>,
) -> BTreeMap<String, Vec<Share>> {
    let mut hosts: BTreeMap<String, Vec<Share>> = BTreeMap::new();
    for (index, server) in servers.iter().enumerate() {
        for vs in bound.get(server.gateway.as_str()).into_iter().flatten() {
            for host in intersection(&server.hosts_for(&vs.namespace), &vs.hosts) {
                hosts.entry(host).or_default().push(Share { server: index, vs: Some((*vs).clone()) });
            }
        }
        if server.redirects() {
            // Hosts of a server that redirects need no virtual service.
            for host in server.hosts.iter().map(|h| bare(h)) {
                hosts.entry(host.to_string()).or_default().push(Share { server: index, vs: None });
            }
        }
    }
    hosts
}

/// The virtual host; `None` when no rule has a route for its servers.
fn virtual_host(view: View<'_>, servers: &[&GatewayServer], host: &str, shares: &[Share]) -> Option<VirtualHost> {
    let mut out: Option<VirtualHost> = None;
    let mut met: HashSet<*const VirtualService> = HashSet::new();
    for share in shares {
        let server = servers.get(share.server)?;
        let Some(vs) = &share.vs else {
            let known = out.get_or_insert_with(|| empty(view, host, server.declared_port, &server.origin));
            known.require_tls = TlsRequirementType::All as i32;
            continue;
        };
        let tls = server.tls_mode().is_some();
        let conversion = Conversion { view, vs, port: server.declared_port, gateway: &server.gateway, tls };
        let routes = conversion.routes();
        if routes.is_empty() {
            continue;
        }
        let known = out.get_or_insert_with(|| empty(view, host, server.declared_port, &vs.provenance));
        add_routes(known, &routes, !met.insert(Arc::as_ptr(vs)));
        if server.redirects() {
            known.require_tls = TlsRequirementType::All as i32;
        }
    }
    out
}

/// Routes of several virtual services for one host: the first one's first, those that match everything last of all. `again`
/// when the virtual service was met before, by another Gateway of the same proxy: what is the same is not repeated.
fn add_routes(host: &mut VirtualHost, more: &[Route], again: bool) {
    let known = std::mem::take(&mut host.routes);
    let new: Vec<Route> = more.iter().filter(|r| !again || !known.contains(r)).cloned().collect();
    let all = known.into_iter().chain(new);
    let (last, mut first): (Vec<Route>, Vec<Route>) = all.partition(is_catch_all);
    first.extend(last);
    host.routes = first;
}

fn empty(view: View<'_>, host: &str, port: u16, origin: &Provenance) -> VirtualHost {
    VirtualHost {
        name: host_port(host, port),
        domains: vec![bracketed(host)],
        include_request_attempt_count: !view.scope.key.headers.no_attempt_count,
        metadata: Some(value::provenance(origin)),
        ..Default::default()
    }
}

/// Requests that came over a connection whose server name is not that of their host: it was opened to another server of
/// the port, and is used for this host because the certificate has its name too. The client is told to open one of its
/// own (421, RFC 9110 §15.5.20). Hosts of the servers themselves that no rule is for are not among them: they are answered
/// 404, as is every host without any rule.
fn misdirected(servers: &[&GatewayServer], merged: &Merged, taken: &BTreeSet<String>) -> Vec<VirtualHost> {
    let own: Vec<String> = servers.iter().flat_map(|s| s.names()).collect();
    let opens = servers.iter().all(|s| s.tls_mode().is_some());
    if !opens || own.iter().any(|name| name == "*") {
        return Vec::new();
    }
    let mut domains = BTreeSet::from(["*".to_string()]);
    let wide: Vec<&String> = own.iter().filter(|name| is_wildcard(name)).collect();
    let here = |port: &&PortServers| port.servers.iter().any(|s| servers.iter().any(|own| own.origin == s.origin));
    for other in merged.ports.iter().filter(here).flat_map(|p| &p.servers).filter(|_| !wide.is_empty()) {
        let names = other.names().into_iter().filter(|name| !own.contains(name) && !taken.contains(name));
        domains.extend(names.filter(|name| wide.iter().any(|wide| covers(wide, name))));
    }
    let port = servers.first().map_or(0, |s| s.declared_port);
    let answer = DirectResponseAction { status: MISDIRECTED, ..Default::default() };
    let route = Route {
        name: "misdirected".into(),
        r#match: Some(any_path()),
        action: Some(Action::DirectResponse(answer)),
        ..Default::default()
    };
    let without_rules: BTreeSet<&String> = own.iter().filter(|name| !taken.contains(*name)).collect();
    let host = |name: &str, domains: Vec<String>, routes| VirtualHost {
        name: host_port(name, port),
        domains,
        routes,
        ..Default::default()
    };
    let misdirected = host("misdirected", domains.iter().map(|host| bracketed(host)).collect(), vec![route]);
    let unrouted = host("unrouted", without_rules.into_iter().map(|host| bracketed(host)).collect(), Vec::new());
    std::iter::once(misdirected).chain(Some(unrouted).filter(|host| !host.domains.is_empty())).collect()
}

/// Without any host, every request is answered 404.
fn black_hole(servers: &[&GatewayServer]) -> VirtualHost {
    let port = servers.first().map_or(0, |s| s.declared_port);
    VirtualHost { name: host_port("blackhole", port), domains: vec!["*".into()], ..Default::default() }
}
