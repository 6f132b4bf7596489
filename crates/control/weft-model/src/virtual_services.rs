//! Virtual services: full host names, gateways as `namespace/name`, delegates put in place of the routes that name them.
//!
//! Merging of delegates, as Istio merges them (`mergeHTTPRoute`, pilot/pkg/model/virtualservice.go): the root's conditions and
//! the delegate's must both hold, and a route of the delegate with a condition that lies within none of the root's is left out
//! whole. Of what both set beside the conditions the delegate's wins; what it does not set is the root's. A delegate of a
//! delegate is not followed.

use crate::parsed::Parsed;
use crate::services::export_to;
use crate::{ExportTo, Settings, VirtualService, Warning, hosts};
use std::collections::HashMap;
use std::sync::Arc;
use weft_core::Provenance;
use weft_k8s_api::istio::{self, HttpMatchRequest, HttpRoute, StringMatch};

type Object = Arc<Parsed<istio::VirtualService>>;

/// The name that stands for all sidecars in lists of gateways.
pub const MESH_GATEWAY: &str = "mesh";

/// One virtual service with what it was made of.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    root: Object,
    delegates: Vec<Option<Object>>,
    pub output: Arc<VirtualService>,
    pub warnings: Vec<Warning>,
}

/// Resolves all, oldest first. Those whose parts did not change are taken from `old`, when `reusable` (settings and mesh
/// config are as they were).
pub(crate) fn resolve(
    objects: &[Object],
    settings: &Settings,
    default_export: &ExportTo,
    old: &HashMap<(String, String), Arc<Resolved>>,
    reusable: bool,
) -> Vec<Arc<Resolved>> {
    let by_name: HashMap<(&str, &str), &Object> =
        objects.iter().map(|o| ((o.meta.namespace.as_str(), o.meta.name.as_str()), o)).collect();
    let mut out = Vec::new();
    // A virtual service without hosts is a delegate: it has no effect by itself.
    for root in objects.iter().filter(|o| !o.spec.hosts.is_empty()) {
        let delegates: Vec<Option<Object>> = root
            .spec
            .http
            .iter()
            .filter_map(|route| Some(delegate_of(root, route.delegate.as_ref()?, &by_name)))
            .collect();
        let before = old.get(&(root.meta.namespace.clone(), root.meta.name.clone()));
        match before.filter(|b| reusable && b.is_made_of(root, &delegates)) {
            Some(before) => out.push(before.clone()),
            None => out.push(Arc::new(resolve_one(root, delegates, settings, default_export))),
        }
    }
    out
}

impl Resolved {
    /// Namespace and name of the root.
    pub fn key(&self) -> (String, String) {
        (self.root.meta.namespace.clone(), self.root.meta.name.clone())
    }

    fn is_made_of(&self, root: &Object, delegates: &[Option<Object>]) -> bool {
        let same = |a: &Option<Object>, b: &Option<Object>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        Arc::ptr_eq(&self.root, root)
            && self.delegates.len() == delegates.len()
            && self.delegates.iter().zip(delegates).all(|(a, b)| same(a, b))
    }
}

fn delegate_of(root: &Object, to: &istio::Delegate, by_name: &HashMap<(&str, &str), &Object>) -> Option<Object> {
    let namespace = if to.namespace.is_empty() { root.meta.namespace.as_str() } else { to.namespace.as_str() };
    by_name.get(&(namespace, to.name.as_str())).map(|o| (*o).clone())
}

fn resolve_one(root: &Object, delegates: Vec<Option<Object>>, settings: &Settings, default: &ExportTo) -> Resolved {
    let mut warnings = Vec::new();
    let mut http = Vec::new();
    let mut http_origin = Vec::new();
    let mut next = delegates.iter();
    for (i, route) in root.spec.http.iter().enumerate() {
        let at = root.meta.provenance.at(format!("spec.http[{i}]"));
        let Some(to) = &route.delegate else {
            http.push(complete_route(route, &root.meta.namespace, settings));
            http_origin.push(at);
            continue;
        };
        let delegate = next.next().and_then(Option::as_ref);
        match usable(delegate, root, to, default) {
            Ok(delegate) => {
                for (own, merged) in merge_delegate(route, delegate, root, settings) {
                    let own = delegate.meta.provenance.at(format!("spec.http[{own}]"));
                    match merged {
                        Some(merged) => {
                            http.push(merged);
                            http_origin.push(own);
                        }
                        None => warnings.push(left_out(&own, &at)),
                    }
                }
            }
            Err(message) => {
                warnings.push(Warning { at: at.at(format!("spec.http[{i}].delegate")), code: "IST0101", message });
            }
        }
    }
    let spec = istio::VirtualService {
        hosts: root.spec.hosts.clone(),
        gateways: root.spec.gateways.clone(),
        http,
        tls: root.spec.tls.iter().map(|r| complete_tls(r, &root.meta.namespace, settings)).collect(),
        tcp: root.spec.tcp.iter().map(|r| complete_tcp(r, &root.meta.namespace, settings)).collect(),
        export_to: root.spec.export_to.clone(),
    };
    let output = VirtualService {
        hosts: spec.hosts.iter().map(|h| hosts::complete(h, &root.meta.namespace, &settings.domain)).collect(),
        gateways: gateways(&spec.gateways, &root.meta.namespace),
        namespace: root.meta.namespace.clone(),
        name: root.meta.name.clone(),
        export_to: export_to(&spec.export_to, &root.meta.namespace, default),
        created: root.meta.created,
        spec: Arc::new(spec),
        http_origin,
        whole_path_elements: false,
        provenance: root.meta.provenance.clone(),
    };
    Resolved { root: root.clone(), delegates, output: Arc::new(output), warnings }
}

fn usable<'a>(
    delegate: Option<&'a Object>,
    root: &Object,
    to: &istio::Delegate,
    default: &ExportTo,
) -> Result<&'a Object, String> {
    let namespace = if to.namespace.is_empty() { &root.meta.namespace } else { &to.namespace };
    let name = format!("{namespace}/{}", to.name);
    let Some(delegate) = delegate else {
        return Err(format!("delegate VirtualService {name} does not exist; the route is left out"));
    };
    if !delegate.spec.hosts.is_empty() {
        return Err(format!("VirtualService {name} has hosts, so it cannot be a delegate; the route is left out"));
    }
    if !export_to(&delegate.spec.export_to, &delegate.meta.namespace, default).visible_in(&root.meta.namespace) {
        let root_namespace = &root.meta.namespace;
        return Err(format!(
            "delegate VirtualService {name} is not exported to {root_namespace}; the route is left out"
        ));
    }
    Ok(delegate)
}

/// The routes of a delegate by their places, merged with the route that names it; `None` for one that cannot be.
fn merge_delegate(
    route: &HttpRoute,
    delegate: &Object,
    root: &Object,
    settings: &Settings,
) -> Vec<(usize, Option<HttpRoute>)> {
    let route = complete_route(route, &root.meta.namespace, settings);
    // A delegate of a delegate is not followed: such a route has no destination to give.
    let routes = delegate.spec.http.iter().enumerate().filter(|(_, own)| own.delegate.is_none());
    let merge = |own: &HttpRoute| merge_route(&route, complete_route(own, &delegate.meta.namespace, settings));
    routes.map(|(place, own)| (place, merge(own))).collect()
}

fn left_out(own: &Provenance, root: &Provenance) -> Warning {
    let message = format!("a condition lies within none of {root}, which delegates to it; the route is left out there");
    Warning { at: own.at(format!("{}.match", own.path)), code: "DelegateConflict", message }
}

fn merge_route(root: &HttpRoute, own: HttpRoute) -> Option<HttpRoute> {
    let matches = merge_matches(&root.matches, &own.matches)?;
    let name = match (root.name.as_str(), own.name.as_str()) {
        ("", own) => own.to_string(),
        (root, "") => root.to_string(),
        (root, own) => format!("{root}-{own}"),
    };
    Some(HttpRoute {
        name,
        matches,
        delegate: None,
        rewrite: own.rewrite.or_else(|| root.rewrite.clone()),
        direct_response: own.direct_response.or_else(|| root.direct_response.clone()),
        timeout: own.timeout.or(root.timeout),
        retries: own.retries.or_else(|| root.retries.clone()),
        fault: own.fault.or_else(|| root.fault.clone()),
        mirror: own.mirror.or_else(|| root.mirror.clone()),
        mirrors: if own.mirrors.is_empty() { root.mirrors.clone() } else { own.mirrors },
        mirror_percent: own.mirror_percent.or(root.mirror_percent),
        mirror_percentage: own.mirror_percentage.or_else(|| root.mirror_percentage.clone()),
        cors_policy: own.cors_policy.or_else(|| root.cors_policy.clone()),
        headers: own.headers.or_else(|| root.headers.clone()),
        route: own.route,
        redirect: own.redirect,
    })
}

/// For each condition of the delegate those of the root that it lies within, both together; `None` when there is none such for
/// one of them.
fn merge_matches(root: &[HttpMatchRequest], own: &[HttpMatchRequest]) -> Option<Vec<HttpMatchRequest>> {
    if root.is_empty() || own.is_empty() {
        return Some(if root.is_empty() { own.to_vec() } else { root.to_vec() });
    }
    let mut merged = Vec::new();
    for own in own {
        let known = merged.len();
        merged.extend(root.iter().filter(|root| !conflict(root, own)).map(|root| merge_match(root, own)));
        if merged.len() == known {
            return None;
        }
    }
    Some(merged)
}

fn conflict(root: &HttpMatchRequest, own: &HttpMatchRequest) -> bool {
    let singles = [
        (&root.uri, &own.uri),
        (&root.scheme, &own.scheme),
        (&root.method, &own.method),
        (&root.authority, &own.authority),
    ];
    let maps = [
        (&root.headers, &own.headers),
        (&root.without_headers, &own.without_headers),
        (&root.query_params, &own.query_params),
    ];
    let differ = |a: &str, b: &str| !a.is_empty() && !b.is_empty() && a != b;
    singles.iter().any(|(r, o)| string_conflict(r.as_ref(), o.as_ref()))
        || maps.iter().any(|(r, o)| o.iter().any(|(name, m)| string_conflict(r.get(name), Some(m))))
        || (root.uri.is_some() && own.uri.is_some() && root.ignore_uri_case != own.ignore_uri_case)
        || (root.port != 0 && own.port != 0 && root.port != own.port)
        || differ(&root.source_namespace, &own.source_namespace)
        || own.source_labels.iter().any(|(name, v)| root.source_labels.get(name).is_some_and(|r| r != v))
        || (!root.gateways.is_empty()
            && !own.gateways.is_empty()
            && !own.gateways.iter().all(|g| root.gateways.contains(g)))
}

/// The delegate's match must lie within the root's: the same value, or a longer path under the root's prefix.
fn string_conflict(root: Option<&StringMatch>, own: Option<&StringMatch>) -> bool {
    let (Some(root), Some(own)) = (root, own) else { return false };
    match (root, own) {
        (StringMatch::Present, _) | (_, StringMatch::Present) => false,
        (StringMatch::Exact(root), StringMatch::Exact(own)) => root != own,
        (StringMatch::Prefix(root), StringMatch::Exact(own) | StringMatch::Prefix(own)) => {
            !own.starts_with(root.as_str())
        }
        // An exact root is narrower than a delegate's prefix, and of expressions no one can tell.
        (StringMatch::Exact(_), StringMatch::Prefix(_)) | (StringMatch::Regex(_), _) | (_, StringMatch::Regex(_)) => {
            true
        }
    }
}

fn merge_match(root: &HttpMatchRequest, own: &HttpMatchRequest) -> HttpMatchRequest {
    let text = |own: &str, root: &str| if own.is_empty() { root.to_string() } else { own.to_string() };
    let mut merged = root.clone();
    merged.name = match (root.name.as_str(), own.name.as_str()) {
        ("", own) => own.to_string(),
        (root, "") => root.to_string(),
        (root, own) => format!("{root}-{own}"),
    };
    merged.uri = narrower(&own.uri, &root.uri);
    merged.scheme = narrower(&own.scheme, &root.scheme);
    merged.method = narrower(&own.method, &root.method);
    merged.authority = narrower(&own.authority, &root.authority);
    for (into, from) in [
        (&mut merged.headers, &own.headers),
        (&mut merged.without_headers, &own.without_headers),
        (&mut merged.query_params, &own.query_params),
    ] {
        for (name, own) in from {
            let both = narrower(&Some(own.clone()), &into.get(name).cloned());
            into.extend(both.map(|m| (name.clone(), m)));
        }
    }
    merged.source_labels.extend(own.source_labels.clone());
    merged.source_namespace = text(&own.source_namespace, &root.source_namespace);
    merged.stat_prefix = text(&own.stat_prefix, &root.stat_prefix);
    merged.port = if own.port == 0 { root.port } else { own.port };
    merged.ignore_uri_case = root.ignore_uri_case || own.ignore_uri_case;
    merged.gateways = if own.gateways.is_empty() { root.gateways.clone() } else { own.gateways.clone() };
    merged
}

/// Of two matches that do not conflict, the delegate's, unless it only asks for presence.
fn narrower(own: &Option<StringMatch>, root: &Option<StringMatch>) -> Option<StringMatch> {
    match (own, root) {
        (None | Some(StringMatch::Present), Some(root)) => Some(root.clone()),
        (own, _) => own.clone(),
    }
}

/// `mesh`, `namespace/name`, `name` and `./name` (of this namespace), and the old `name.namespace.svc.domain`.
pub(crate) fn gateway_name(text: &str, namespace: &str) -> String {
    match text.split_once('/') {
        _ if text == MESH_GATEWAY => text.to_string(),
        Some((".", name)) => format!("{namespace}/{name}"),
        Some(_) => text.to_string(),
        None => match text.split_once(".svc") {
            Some((name_and_namespace, _)) => match name_and_namespace.split_once('.') {
                Some((name, namespace)) => format!("{namespace}/{name}"),
                None => format!("{namespace}/{text}"),
            },
            None => format!("{namespace}/{text}"),
        },
    }
}

fn gateways(list: &[String], namespace: &str) -> Vec<String> {
    if list.is_empty() {
        return vec![MESH_GATEWAY.to_string()];
    }
    list.iter().map(|g| gateway_name(g, namespace)).collect()
}

fn complete_destination(destination: &mut Option<istio::Destination>, namespace: &str, settings: &Settings) {
    if let Some(destination) = destination {
        destination.host = hosts::complete(&destination.host, namespace, &settings.domain).to_string();
    }
}

fn complete_gateways(list: &mut [String], namespace: &str) {
    for gateway in list {
        *gateway = gateway_name(gateway, namespace);
    }
}

fn complete_route(route: &HttpRoute, namespace: &str, settings: &Settings) -> HttpRoute {
    let mut route = route.clone();
    for to in &mut route.route {
        complete_destination(&mut to.destination, namespace, settings);
    }
    complete_destination(&mut route.mirror, namespace, settings);
    for mirror in &mut route.mirrors {
        complete_destination(&mut mirror.destination, namespace, settings);
    }
    for condition in &mut route.matches {
        complete_gateways(&mut condition.gateways, namespace);
    }
    route
}

fn complete_tls(route: &istio::TlsRoute, namespace: &str, settings: &Settings) -> istio::TlsRoute {
    let mut route = route.clone();
    for to in &mut route.route {
        complete_destination(&mut to.destination, namespace, settings);
    }
    for condition in &mut route.matches {
        complete_gateways(&mut condition.gateways, namespace);
    }
    route
}

fn complete_tcp(route: &istio::TcpRoute, namespace: &str, settings: &Settings) -> istio::TcpRoute {
    let mut route = route.clone();
    for to in &mut route.route {
        complete_destination(&mut to.destination, namespace, settings);
    }
    for condition in &mut route.matches {
        complete_gateways(&mut condition.gateways, namespace);
    }
    route
}
