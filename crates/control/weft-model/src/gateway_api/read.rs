//! The Gateway API's objects, read into one form whatever their group and version: what later steps know no more is which
//! spelling an object had. Meaning across objects (who attaches to whom) is not looked at here.

use crate::parsed::{Reader, Unreadable};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use weft_k8s_api::de::{self, Dialect};
use weft_k8s_api::gateway_api::v1alpha1 as old;
use weft_k8s_api::gateway_api::{self as api, ingress};
use weft_k8s_api::istio::{HttpMatchRequest, LabelSelector, StringMatch};
use weft_k8s_api::{Object, validate};

/// A class.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct ClassSpec {
    pub controller: String,
    /// Of the older group.
    pub old: bool,
}

/// A Gateway.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct GatewaySpec {
    pub old: bool,
    pub class: String,
    pub addresses: Vec<api::GatewayAddress>,
    pub listeners: Vec<ListenerSpec>,
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct ListenerSpec {
    pub name: String,
    /// Lower case; empty = all.
    pub hostname: String,
    pub port: u16,
    pub protocol: String,
    pub tls: Option<api::ListenerTls>,
    pub validation: Option<api::FrontendValidation>,
    pub namespaces: api::RouteNamespaces,
    /// Kinds of routes that may attach; empty = those of the protocol.
    pub kinds: Vec<api::RouteGroupKind>,
    /// Labels of routes (older group).
    pub routes: Option<LabelSelector>,
}

/// Kinds of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum RouteKind {
    Http,
    Grpc,
    Tls,
    Tcp,
}

impl RouteKind {
    /// As objects write it.
    pub fn name(self) -> &'static str {
        match self {
            RouteKind::Http => "HTTPRoute",
            RouteKind::Grpc => "GRPCRoute",
            RouteKind::Tls => "TLSRoute",
            RouteKind::Tcp => "TCPRoute",
        }
    }

    /// Rules for requests; the others are for connections.
    pub fn is_of_requests(self) -> bool {
        matches!(self, RouteKind::Http | RouteKind::Grpc)
    }
}

/// A route of any kind.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RouteSpec {
    pub kind: RouteKind,
    pub old: bool,
    pub parents: Parents,
    /// Lower case.
    pub hostnames: Vec<String>,
    pub http: Vec<HttpRule>,
    pub l4: Vec<ConnectionRule>,
}

/// What a route attaches to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Parents {
    /// Those it names.
    Named(Vec<api::ParentReference>),
    /// The Gateways that select it, of those it allows (older group).
    Selecting(old::RouteGateways),
}

/// One rule for requests.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct HttpRule {
    pub name: String,
    pub matches: Vec<HttpMatchRequest>,
    pub filters: Vec<api::HttpRouteFilter>,
    pub backends: Vec<api::HttpBackendRef>,
    pub timeouts: Option<api::HttpRouteTimeouts>,
    pub retry: Option<api::HttpRouteRetry>,
    /// It asks for sessions that stay with a backend.
    pub sessions: bool,
}

/// One rule for connections.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct ConnectionRule {
    /// Server names that it is for (older group); empty = those of the route.
    pub names: Vec<String>,
    pub backends: Vec<api::BackendRef>,
}

/// The spec of an object that passes validation.
fn spec<T: DeserializeOwned + Default>(object: &Object) -> Result<T, Unreadable> {
    if let Some(problem) = validate(object).errors.into_iter().next() {
        return Err(Unreadable { path: problem.path, message: problem.message });
    }
    if object.spec().is_null() {
        return Ok(T::default());
    }
    de::read(object.spec(), "spec", Dialect::Kubernetes, &mut Vec::new())
        .map_err(|e| Unreadable { path: e.path, message: e.message })
}

fn lower(hosts: Vec<String>) -> Vec<String> {
    hosts.into_iter().map(|h| h.trim_end_matches('.').to_ascii_lowercase()).collect()
}

pub(crate) const INGRESS: Reader<ingress::Ingress> = |object| spec(object);
pub(crate) const INGRESS_CLASS: Reader<ingress::IngressClass> = |object| spec(object);
pub(crate) const GRANT: Reader<api::ReferenceGrant> = |object| spec(object);
pub(crate) const BACKEND_TLS: Reader<api::BackendTlsPolicy> = |object| spec(object);

pub(crate) const CLASS: Reader<ClassSpec> = |object| {
    let class: api::GatewayClass = spec(object)?;
    Ok(ClassSpec { controller: class.controller_name, old: false })
};

pub(crate) const OLD_CLASS: Reader<ClassSpec> = |object| {
    let class: old::GatewayClass = spec(object)?;
    Ok(ClassSpec { controller: class.controller, old: true })
};

pub(crate) const GATEWAY: Reader<GatewaySpec> = |object| {
    let gateway: api::Gateway = spec(object)?;
    let frontend = gateway.tls.and_then(|tls| tls.frontend).unwrap_or_default();
    let validation = |port: u32| {
        let of_port = frontend.per_port.iter().find(|p| p.port == port).map(|p| &p.tls);
        of_port.unwrap_or(&frontend.default).validation.clone()
    };
    let listener = |l: api::Listener| {
        let allowed = l.allowed_routes.unwrap_or_default();
        let own = l.tls.as_ref().and_then(|t| t.frontend_validation.clone());
        ListenerSpec {
            name: l.name,
            hostname: l.hostname.to_ascii_lowercase(),
            port: u16::try_from(l.port).unwrap_or_default(),
            validation: if l.protocol == "HTTPS" { own.or_else(|| validation(l.port)) } else { own },
            protocol: l.protocol,
            tls: l.tls,
            namespaces: allowed.namespaces.unwrap_or_default(),
            kinds: allowed.kinds,
            routes: None,
        }
    };
    Ok(GatewaySpec {
        old: false,
        class: gateway.gateway_class_name,
        addresses: gateway.addresses,
        listeners: gateway.listeners.into_iter().map(listener).collect(),
    })
};

pub(crate) const OLD_GATEWAY: Reader<GatewaySpec> = |object| {
    let gateway: old::Gateway = spec(object)?;
    let listener = |(index, l): (usize, old::Listener)| ListenerSpec {
        // Listeners had no names; the port and the place make one.
        name: format!("{}-{index}", l.port),
        hostname: if l.hostname == "*" { String::new() } else { l.hostname.to_ascii_lowercase() },
        port: u16::try_from(l.port).unwrap_or_default(),
        protocol: l.protocol,
        tls: l.tls.map(|tls| api::ListenerTls {
            mode: tls.mode,
            certificate_refs: tls.certificate_ref.into_iter().map(same_namespace).collect(),
            ..Default::default()
        }),
        validation: None,
        namespaces: l.routes.namespaces.unwrap_or_default(),
        kinds: vec![api::RouteGroupKind { group: Some(old::GROUP.into()), kind: l.routes.kind }],
        routes: l.routes.selector,
    };
    Ok(GatewaySpec {
        old: true,
        class: gateway.gateway_class_name,
        addresses: gateway.addresses,
        listeners: gateway.listeners.into_iter().enumerate().map(listener).collect(),
    })
};

fn same_namespace(to: old::LocalReference) -> api::ObjectReference {
    let group = if to.group == "core" { String::new() } else { to.group };
    api::ObjectReference { group, kind: to.kind, name: to.name, namespace: String::new() }
}

pub(crate) const HTTP_ROUTE: Reader<RouteSpec> = |object| {
    let route: api::HttpRoute = spec(object)?;
    let rule = |r: api::HttpRouteRule| HttpRule {
        name: r.name,
        matches: r.matches.iter().map(http_match).collect(),
        filters: r.filters,
        backends: r.backend_refs,
        timeouts: r.timeouts,
        retry: r.retry,
        sessions: r.session_persistence.is_some(),
    };
    Ok(RouteSpec {
        kind: RouteKind::Http,
        old: false,
        parents: Parents::Named(route.parent_refs),
        hostnames: lower(route.hostnames),
        http: route.rules.into_iter().map(rule).collect(),
        l4: Vec::new(),
    })
};

pub(crate) const GRPC_ROUTE: Reader<RouteSpec> = |object| {
    let route: api::GrpcRoute = spec(object)?;
    let rule = |r: api::GrpcRouteRule| HttpRule {
        name: r.name,
        matches: r.matches.iter().map(grpc_match).collect(),
        filters: r.filters,
        backends: r.backend_refs,
        sessions: r.session_persistence.is_some(),
        ..HttpRule::default()
    };
    Ok(RouteSpec {
        kind: RouteKind::Grpc,
        old: false,
        parents: Parents::Named(route.parent_refs),
        hostnames: lower(route.hostnames),
        http: route.rules.into_iter().map(rule).collect(),
        l4: Vec::new(),
    })
};

fn connections(
    kind: RouteKind,
    parents: Vec<api::ParentReference>,
    hosts: Vec<String>,
    rules: Vec<api::L4Rule>,
) -> RouteSpec {
    let rule = |r: api::L4Rule| ConnectionRule { names: Vec::new(), backends: r.backend_refs };
    RouteSpec {
        kind,
        old: false,
        parents: Parents::Named(parents),
        hostnames: lower(hosts),
        http: Vec::new(),
        l4: rules.into_iter().map(rule).collect(),
    }
}

pub(crate) const TLS_ROUTE: Reader<RouteSpec> = |object| {
    let route: api::TlsRoute = spec(object)?;
    Ok(connections(RouteKind::Tls, route.parent_refs, route.hostnames, route.rules))
};

pub(crate) const TCP_ROUTE: Reader<RouteSpec> = |object| {
    let route: api::TcpRoute = spec(object)?;
    Ok(connections(RouteKind::Tcp, route.parent_refs, Vec::new(), route.rules))
};

pub(crate) const OLD_HTTP_ROUTE: Reader<RouteSpec> = |object| {
    let route: old::HttpRoute = spec(object)?;
    let rule = |r: old::HttpRouteRule| HttpRule {
        matches: r.matches.iter().map(old_http_match).collect(),
        filters: r.filters.into_iter().map(old_filter).collect(),
        backends: r.forward_to.into_iter().map(old_forward).collect(),
        ..HttpRule::default()
    };
    Ok(RouteSpec {
        kind: RouteKind::Http,
        old: true,
        parents: Parents::Selecting(route.gateways),
        hostnames: lower(route.hostnames),
        http: route.rules.into_iter().map(rule).collect(),
        l4: Vec::new(),
    })
};

fn old_connections(kind: RouteKind, gateways: old::RouteGateways, rules: Vec<ConnectionRule>) -> RouteSpec {
    let parents = Parents::Selecting(gateways);
    RouteSpec { kind, old: true, parents, hostnames: Vec::new(), http: Vec::new(), l4: rules }
}

fn old_backends(all: Vec<old::ForwardTo>) -> Vec<api::BackendRef> {
    all.into_iter().map(old_forward).map(|b| backend(&b)).collect()
}

pub(crate) const OLD_TLS_ROUTE: Reader<RouteSpec> = |object| {
    let route: old::TlsRoute = spec(object)?;
    let rule = |r: old::TlsRouteRule| ConnectionRule {
        names: lower(r.matches.into_iter().flat_map(|m| m.snis).collect()),
        backends: old_backends(r.forward_to),
    };
    Ok(old_connections(RouteKind::Tls, route.gateways, route.rules.into_iter().map(rule).collect()))
};

pub(crate) const OLD_TCP_ROUTE: Reader<RouteSpec> = |object| {
    let route: old::TcpRoute = spec(object)?;
    let rule = |r: old::TcpRouteRule| ConnectionRule { names: Vec::new(), backends: old_backends(r.forward_to) };
    Ok(old_connections(RouteKind::Tcp, route.gateways, route.rules.into_iter().map(rule).collect()))
};

/// The destination without its filters.
pub(crate) fn backend(of: &api::HttpBackendRef) -> api::BackendRef {
    api::BackendRef {
        group: of.group.clone(),
        kind: of.kind.clone(),
        name: of.name.clone(),
        namespace: of.namespace.clone(),
        port: of.port,
        weight: of.weight,
    }
}

/// A path prefix stands for whole path elements: `/a` and `/a/` are the same. `/` is every path.
fn path(kind: &str, value: Option<&str>) -> Option<StringMatch> {
    let value = value.unwrap_or("/");
    match kind {
        "Exact" => Some(StringMatch::Exact(value.into())),
        "RegularExpression" => Some(StringMatch::Regex(value.into())),
        _ => Some(value.trim_end_matches('/')).filter(|p| !p.is_empty()).map(|p| StringMatch::Prefix(p.into())),
    }
}

fn named(kind: &str, value: &str) -> StringMatch {
    match kind {
        "RegularExpression" => StringMatch::Regex(value.into()),
        _ => StringMatch::Exact(value.into()),
    }
}

/// Conditions by name; of two for one name the first counts.
fn all_named(conditions: &[api::NamedMatch], lower: bool) -> BTreeMap<String, StringMatch> {
    let mut out = BTreeMap::new();
    for c in conditions {
        let name = if lower { c.name.to_ascii_lowercase() } else { c.name.clone() };
        out.entry(name).or_insert_with(|| named(&c.kind, &c.value));
    }
    out
}

fn http_match(condition: &api::HttpRouteMatch) -> HttpMatchRequest {
    HttpMatchRequest {
        uri: condition.path.as_ref().and_then(|p| path(&p.kind, p.value.as_deref())),
        method: (!condition.method.is_empty()).then(|| StringMatch::Exact(condition.method.clone())),
        headers: all_named(&condition.headers, true),
        query_params: all_named(&condition.query_params, false),
        ..Default::default()
    }
}

fn old_http_match(condition: &old::HttpRouteMatch) -> HttpMatchRequest {
    let all = |values: &Option<old::ValuesMatch>, lower: bool| {
        let one = |kind: &str, (name, value): (&String, &String)| {
            (if lower { name.to_ascii_lowercase() } else { name.clone() }, named(kind, value))
        };
        values.iter().flat_map(|v| v.values.iter().map(|pair| one(&v.kind, pair))).collect()
    };
    HttpMatchRequest {
        uri: condition.path.as_ref().and_then(|p| path(&p.kind, p.value.as_deref())),
        headers: all(&condition.headers, true),
        query_params: all(&condition.query_params, false),
        ..Default::default()
    }
}

/// A call is a request for `/service/method`.
fn grpc_match(condition: &api::GrpcRouteMatch) -> HttpMatchRequest {
    let uri = condition.method.as_ref().and_then(|m| {
        let regex = m.kind == "RegularExpression";
        match (m.service.as_str(), m.method.as_str()) {
            ("", "") => None,
            (service, "") if regex => Some(StringMatch::Regex(format!("/{service}/.+"))),
            ("", method) if regex => Some(StringMatch::Regex(format!("/[^/]+/{method}"))),
            (service, method) if regex => Some(StringMatch::Regex(format!("/{service}/{method}"))),
            (service, "") => Some(StringMatch::Prefix(format!("/{service}"))),
            // A method's name is an identifier: nothing in it has a meaning to an expression.
            ("", method) => Some(StringMatch::Regex(format!("/[^/]+/{method}"))),
            (service, method) => Some(StringMatch::Exact(format!("/{service}/{method}"))),
        }
    });
    HttpMatchRequest { uri, headers: all_named(&condition.headers, true), ..Default::default() }
}

fn old_filter(filter: old::HttpRouteFilter) -> api::HttpRouteFilter {
    let headers =
        |map: BTreeMap<String, String>| map.into_iter().map(|(name, value)| api::HttpHeader { name, value }).collect();
    api::HttpRouteFilter {
        kind: filter.kind,
        request_header_modifier: filter.request_header_modifier.map(|m| api::HeaderModifier {
            set: headers(m.set),
            add: headers(m.add),
            remove: m.remove,
        }),
        request_mirror: filter.request_mirror.map(|mirror| api::RequestMirror {
            backend_ref: backend(&old_target(mirror.service_name, mirror.backend_ref, mirror.port)),
            ..Default::default()
        }),
        extension_ref: filter.extension_ref.map(same_namespace),
        ..Default::default()
    }
}

fn old_forward(to: old::ForwardTo) -> api::HttpBackendRef {
    api::HttpBackendRef {
        weight: to.weight,
        filters: to.filters.into_iter().map(old_filter).collect(),
        ..old_target(to.service_name, to.backend_ref, to.port)
    }
}

fn old_target(service: Option<String>, other: Option<old::LocalReference>, port: Option<u32>) -> api::HttpBackendRef {
    match (service, other) {
        (Some(name), _) => api::HttpBackendRef { name, port, ..Default::default() },
        (None, Some(other)) => {
            let other = same_namespace(other);
            api::HttpBackendRef { group: other.group, kind: other.kind, name: other.name, port, ..Default::default() }
        }
        (None, None) => api::HttpBackendRef { port, ..Default::default() },
    }
}
