//! The HTTP rules of a virtual service to routes, in order; and the route of a service that has none.

use super::{action, any_path, filters, matching, retry, timed};
use crate::pb::route::{Decorator, Route, RouteAction, route::Action, route_action::ClusterSpecifier};
use crate::pb::route::{RouteMatch, route_match::PathSpecifier};
use crate::pb::{self, value};
use crate::scope::{Scope, View};
use std::collections::BTreeMap;
use weft_core::Provenance;
use weft_core::names::ClusterName;
use weft_k8s_api::istio::{Destination, HttpMatchRequest, HttpRoute};
use weft_model::{MESH_GATEWAY, Service, VirtualService};

/// Name of the route of a service without rules, as access logs show it.
const DEFAULT_ROUTE: &str = "default";

/// One virtual service, for the requests of one port of one gateway.
#[derive(Clone, Copy)]
pub(crate) struct Conversion<'a> {
    pub view: View<'a>,
    pub vs: &'a VirtualService,
    /// Port the request was addressed to.
    pub port: u16,
    /// `mesh`, or `namespace/name` of a gateway.
    pub gateway: &'a str,
    /// The requests came over TLS.
    pub tls: bool,
}

impl Conversion<'_> {
    /// Routes that may match; nothing after one that always does.
    pub fn routes(&self) -> Vec<Route> {
        let mut routes = Vec::new();
        for (index, http) in self.vs.spec.http.iter().enumerate() {
            let none = [None];
            let some: Vec<Option<&HttpMatchRequest>> = http.matches.iter().map(Some).collect();
            let matches: &[Option<&HttpMatchRequest>] = if some.is_empty() { &none } else { &some };
            for condition in matches {
                if !self.concerns(*condition) {
                    continue;
                }
                let route = self.route(index, http, *condition);
                let always = matches_all(&route);
                routes.push(route);
                if always {
                    return routes;
                }
            }
        }
        routes
    }

    /// Whether requests of this port, gateway and client can match.
    fn concerns(&self, condition: Option<&HttpMatchRequest>) -> bool {
        let Some(condition) = condition else { return true };
        if condition.port != 0 && condition.port != u32::from(self.port) {
            return false;
        }
        if !condition.gateways.is_empty() {
            return condition.gateways.iter().any(|g| self.names_gateway(g));
        }
        self.client_is(&condition.source_labels, &condition.source_namespace)
    }

    /// `name` in a rule stands for a gateway of the rule's own namespace.
    fn names_gateway(&self, name: &str) -> bool {
        names_gateway(name, self.gateway, &self.vs.namespace)
    }

    fn client_is(&self, labels: &BTreeMap<String, String>, namespace: &str) -> bool {
        client_is(&self.view, labels, namespace)
    }

    fn route(&self, index: usize, http: &HttpRoute, condition: Option<&HttpMatchRequest>) -> Route {
        let mut name = http.name.clone();
        if let Some(of_match) = condition.map(|c| c.name.as_str()).filter(|n| !n.is_empty()) {
            name = format!("{name}.{of_match}");
        }
        let mut route = Route {
            name,
            r#match: Some(condition.map_or_else(any_path, |c| matching::route_match(c, self.vs.whole_path_elements))),
            metadata: Some(value::provenance(&self.origin(index))),
            stat_prefix: condition.map(|c| c.stat_prefix.clone()).unwrap_or_default(),
            ..Default::default()
        };
        action::apply(self, &mut route, http);
        filters::apply(&mut route, http);
        route.decorator = Some(Decorator { operation: operation(&route, &self.vs.name, self.port), propagate: None });
        route
    }

    fn origin(&self, index: usize) -> Provenance {
        match self.vs.http_origin.get(index) {
            Some(origin) if !origin.path.is_empty() => origin.clone(),
            Some(origin) => origin.at(format!("spec.http[{index}]")),
            None => self.vs.provenance.at(format!("spec.http[{index}]")),
        }
    }
}

/// Whether `name`, in a rule of `namespace`, stands for `gateway`.
pub(crate) fn names_gateway(name: &str, gateway: &str, namespace: &str) -> bool {
    if name == gateway {
        return true;
    }
    name != MESH_GATEWAY && !name.contains('/') && gateway == format!("{namespace}/{name}")
}

/// Whether the clients of the view have these labels and are of that namespace (empty = any).
pub(crate) fn client_is(view: &View<'_>, labels: &BTreeMap<String, String>, namespace: &str) -> bool {
    let key = &view.scope.key;
    (namespace.is_empty() || namespace == key.namespace) && labels.iter().all(|(k, v)| key.labels.get(k) == Some(v))
}

/// A route that no request passes by.
fn matches_all(route: &Route) -> bool {
    let Some(m) = &route.r#match else { return true };
    let any_path = match &m.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => prefix == "/",
        Some(PathSpecifier::SafeRegex(regex)) => regex.regex == ".*",
        _ => false,
    };
    any_path && m.headers.is_empty() && m.query_parameters.is_empty() && m.dynamic_metadata.is_empty()
}

/// True for routes that match all requests: they are tried last where the routes of several rules meet.
pub(crate) fn is_catch_all(route: &Route) -> bool {
    matches_all(route)
}

/// The route to a service that no rule is about.
pub(crate) fn default_route(view: View<'_>, service: &Service, port: u16) -> Route {
    let cluster = ClusterName::outbound(port, "", &service.host).to_string();
    let hash_policy = super::hash::for_service(view, service, port);
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
        retry_policy: retry::default_policy(view.mesh(), !hash_policy.is_empty()),
        hash_policy,
        ..timed(pb::zero())
    };
    Route {
        name: DEFAULT_ROUTE.into(),
        r#match: Some(any_path()),
        action: Some(Action::Route(action)),
        decorator: Some(Decorator { operation: format!("{}:{port}/*", service.host), propagate: None }),
        metadata: Some(value::provenance(&service.provenance)),
        ..Default::default()
    }
}

/// The cluster of a destination. A port that is left out is the service's only one, else the one that was called.
pub(crate) fn cluster_of(scope: &Scope, destination: &Destination, called_port: u16) -> String {
    let service = scope.meant(&destination.host);
    let named = destination.port.as_ref().and_then(|p| u16::try_from(p.number).ok()).filter(|p| *p != 0);
    let only = service.filter(|s| s.ports.len() == 1).and_then(|s| s.ports.first()).map(|p| p.number);
    let port = named.or(only).unwrap_or(called_port);
    let host = service.map_or(destination.host.as_str(), |service| &service.host);
    ClusterName::outbound(port, &destination.subset, host).to_string()
}

/// What a span of the route is called: where it leads, and the path it is for.
fn operation(route: &Route, rule: &str, port: u16) -> String {
    let path = route.r#match.as_ref().map_or_else(|| "/*".into(), path_text);
    let cluster = match &route.action {
        Some(Action::Route(RouteAction { cluster_specifier: Some(ClusterSpecifier::Cluster(name)), .. })) => {
            ClusterName::parse(name)
        }
        _ => None,
    };
    match cluster {
        Some(parts) => format!("{}:{}{path}", parts.host, parts.port),
        None => format!("{rule}:{port}{path}"),
    }
}

fn path_text(condition: &RouteMatch) -> String {
    match &condition.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => format!("{prefix}*"),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => format!("{prefix}/*"),
        Some(PathSpecifier::Path(path)) => path.clone(),
        Some(PathSpecifier::SafeRegex(regex)) => regex.regex.clone(),
        _ => "/*".into(),
    }
}
