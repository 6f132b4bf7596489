//! Route configurations of sidecars, outbound.
//!
//! Reading order: this file (what configurations have in common), `outbound` (which holds which virtual hosts), [`vhosts`] (services and virtual services to
//! virtual hosts), [`domains`] (the names a client may use for a service), [`convert`] (the rules of a virtual service),
//! and its parts: [`matching`], [`action`], [`headers`], [`retry`], [`hash`], [`filters`]; last [`inbound`].

mod action;
pub(crate) mod convert;
mod domains;
mod filters;
mod hash;
mod headers;
pub(crate) mod inbound;
mod matching;
mod outbound;
mod retry;
mod vhosts;

pub(crate) use hash::by_source_ip;
pub(crate) use outbound::{KeptRoutes, outbound};

use crate::pb;
use crate::pb::route::{
    self as envoy, DirectResponseAction, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
    route::Action, route_action::ClusterSpecifier, route_match::PathSpecifier,
};
use crate::resource::{Resource, Resources, by_name};
use crate::scope::{Egress, Scope};
use std::sync::Arc;
use weft_core::names;

/// Longest body of a direct response, bytes.
const MAX_DIRECT_RESPONSE: u32 = 1024 * 1024;
/// Status for hosts that nothing is known of, when these are refused.
const UNKNOWN_HOST_STATUS: u32 = 502;

/// Field of a route configuration that holds its virtual hosts.
const VIRTUAL_HOSTS_TAG: u32 = 2;

/// Which requests an outbound route configuration is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OutboundRoute {
    /// All HTTP of a port: `9080`.
    Port(u16),
    /// HTTP found on a port of one service whose protocol is not known: `host:port`.
    Sniffed(String, u16),
    /// All HTTP of a Unix socket: its path, as `unix:///path`.
    Socket(String),
}

impl OutboundRoute {
    /// Name by which listeners ask for it.
    pub fn name(&self) -> String {
        match self {
            OutboundRoute::Port(port) => port.to_string(),
            OutboundRoute::Sniffed(host, port) => format!("{host}:{port}"),
            OutboundRoute::Socket(path) => path.clone(),
        }
    }

    /// The Sidecar's listener that it is for: the one for the port or socket, else the one for all that no other names.
    pub fn egress<'a>(&self, scope: &'a Scope) -> Option<&'a Egress> {
        let declared = |e: &&Egress, number: u16| {
            e.listener.as_ref().and_then(|l| l.port.as_ref()).is_some_and(|p| p.number == u32::from(number))
        };
        match self {
            OutboundRoute::Port(port) | OutboundRoute::Sniffed(_, port) => {
                let for_rest = |e: &&Egress| e.listener.as_ref().is_none_or(|l| l.port.is_none());
                let of_port = scope.egress.iter().find(|e| declared(e, *port));
                of_port.or_else(|| scope.egress.iter().find(for_rest))
            }
            OutboundRoute::Socket(path) => {
                let binds = |e: &&Egress| e.listener.as_ref().is_some_and(|l| l.bind == *path) && declared(e, 0);
                scope.egress.iter().find(binds)
            }
        }
    }

    /// The port of the requests; zero for a socket.
    pub fn port(&self) -> u16 {
        match self {
            OutboundRoute::Port(port) | OutboundRoute::Sniffed(_, port) => *port,
            OutboundRoute::Socket(_) => 0,
        }
    }
}

/// Route configurations and, for Weft proxies, their virtual hosts apart.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    pub configurations: Resources,
    pub virtual_hosts: Resources,
}

impl Routes {
    /// Adds a configuration: whole, or as a shell whose virtual hosts come by VHDS.
    pub fn add_packed(&mut self, mut shell: RouteConfiguration, hosts: &[Arc<Resource>], vhds: bool) {
        let resource = if vhds {
            self.virtual_hosts.extend(by_name(hosts.iter().cloned()));
            shell.vhds = Some(envoy::Vhds { config_source: Some(pb::ads()) });
            Resource::new(shell.name.as_str(), &shell)
        } else {
            Resource::with_messages(shell.name.as_str(), &shell, VIRTUAL_HOSTS_TAG, hosts.iter().map(|h| &h.any))
        };
        self.configurations.insert(resource.name.clone(), resource);
    }

    /// A virtual host as VHDS names it.
    pub fn name_host(&self, configuration: &str, host: &VirtualHost) -> Arc<Resource> {
        Resource::new(format!("{configuration}/{}", host.name), host)
    }
}

/// A configuration with the settings that all have.
pub(crate) fn shell(name: String, virtual_hosts: Vec<VirtualHost>) -> RouteConfiguration {
    RouteConfiguration {
        name,
        virtual_hosts,
        // A rule may name a subset or host that does not exist: that rule alone answers 503.
        validate_clusters: Some(false),
        max_direct_response_body_size_bytes: Some(MAX_DIRECT_RESPONSE),
        ignore_port_in_host_matching: true,
        ..Default::default()
    }
}

/// What happens to requests for unknown hosts.
pub(super) fn catch_all(scope: &Scope) -> VirtualHost {
    let (name, action) = if scope.outbound.allow_any {
        let cluster = match &scope.outbound.egress_proxy {
            Some(proxy) => convert::cluster_of(scope, proxy, 0),
            None => names::PASSTHROUGH_CLUSTER.into(),
        };
        let action = RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
            append_x_forwarded_host: scope.key.headers.forwarded_host,
            ..timed(pb::zero())
        };
        (names::ALLOW_ANY_VIRTUAL_HOST, Action::Route(action))
    } else {
        let refused = DirectResponseAction { status: UNKNOWN_HOST_STATUS, ..Default::default() };
        (names::BLOCK_ALL_VIRTUAL_HOST, Action::DirectResponse(refused))
    };
    let route = Route { name: name.into(), r#match: Some(any_path()), action: Some(action), ..Default::default() };
    VirtualHost {
        name: name.into(),
        domains: vec!["*".into()],
        routes: vec![route],
        include_request_attempt_count: !scope.key.headers.no_attempt_count,
        ..Default::default()
    }
}

/// An action with a time limit, which holds for gRPC too; zero is none.
#[allow(deprecated)] // the newer field limits what the older one does, but under another clock
pub(crate) fn timed(limit: prost_types::Duration) -> RouteAction {
    RouteAction { timeout: Some(limit), max_grpc_timeout: Some(limit), ..Default::default() }
}

/// Matches every request.
pub(crate) fn any_path() -> RouteMatch {
    RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".into())), ..Default::default() }
}
