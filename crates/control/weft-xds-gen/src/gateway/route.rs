//! Route configurations of gateways: virtual hosts from the virtual services whose hosts a server shares.

use super::merge::{GatewayServer, Merged, bare};
use crate::host::intersection;
use crate::pb::address::{bracketed, host_port};
use crate::pb::route::{Route, VirtualHost, virtual_host::TlsRequirementType};
use crate::pb::value;
use crate::route::convert::{Conversion, is_catch_all};
use crate::route::{Routes, shell};
use crate::scope::View;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use weft_model::VirtualService;

/// The route configurations of all servers that read HTTP.
pub(crate) fn routes(view: View<'_>, merged: &Merged) -> Routes {
    let mut routes = Routes::default();
    for (name, servers) in merged.by_route() {
        let hosts = virtual_hosts(view, &servers);
        routes.add(shell(name.to_string(), hosts), view.scope.key.weft);
    }
    routes
}

/// Virtual hosts by host. Without any, every request is answered 404.
fn virtual_hosts(view: View<'_>, servers: &[&GatewayServer]) -> Vec<VirtualHost> {
    let mut hosts: BTreeMap<String, VirtualHost> = BTreeMap::new();
    let mut met: HashSet<(*const VirtualService, String)> = HashSet::new();
    for server in servers {
        let namespace = &view.scope.key.namespace;
        for vs in view.snapshot.virtual_services_for(&server.gateway, namespace) {
            let common = intersection(&server.hosts_for(&vs.namespace), &vs.hosts);
            if common.is_empty() {
                continue;
            }
            let tls = server.tls_mode().is_some();
            let conversion = Conversion { view, vs: &vs, port: server.declared_port, gateway: &server.gateway, tls };
            let routes = conversion.routes();
            if routes.is_empty() {
                continue;
            }
            for host in common {
                let known = hosts.entry(host.clone()).or_insert_with(|| VirtualHost {
                    metadata: Some(value::provenance(&vs.provenance)),
                    ..empty(&host, server.declared_port)
                });
                let again = !met.insert((Arc::as_ptr(&vs), host));
                add_routes(known, &routes, again);
                if server.redirects() {
                    known.require_tls = TlsRequirementType::All as i32;
                }
            }
        }
        if server.redirects() {
            redirect_all(&mut hosts, server);
        }
    }
    if hosts.is_empty() {
        let port = servers.first().map_or(0, |s| s.declared_port);
        return vec![VirtualHost {
            name: host_port("blackhole", port),
            domains: vec!["*".into()],
            ..Default::default()
        }];
    }
    let mut hosts: Vec<VirtualHost> = hosts.into_values().collect();
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    hosts
}

/// Routes of several virtual services for one host: the older's first, those that match everything last of all. `again`
/// when the virtual service was met before, by another Gateway of the same proxy: what is the same is not repeated.
fn add_routes(host: &mut VirtualHost, more: &[Route], again: bool) {
    let known = std::mem::take(&mut host.routes);
    let new: Vec<Route> = more.iter().filter(|r| !again || !known.contains(r)).cloned().collect();
    let all = known.into_iter().chain(new);
    let (last, mut first): (Vec<Route>, Vec<Route>) = all.partition(is_catch_all);
    first.extend(last);
    host.routes = first;
}

/// Hosts of a server that redirects need no virtual service.
fn redirect_all(hosts: &mut BTreeMap<String, VirtualHost>, server: &GatewayServer) {
    for host in server.hosts.iter().map(|h| bare(h)) {
        let known = hosts.entry(host.to_string()).or_insert_with(|| VirtualHost {
            metadata: Some(value::provenance(&server.origin)),
            ..empty(host, server.declared_port)
        });
        known.require_tls = TlsRequirementType::All as i32;
    }
}

fn empty(host: &str, port: u16) -> VirtualHost {
    VirtualHost {
        name: host_port(host, port),
        domains: vec![bracketed(host)],
        include_request_attempt_count: true,
        ..Default::default()
    }
}
