//! Which routes attach to which listeners, and under which hosts.

use super::Problem;
use super::listeners::{GatewayState, ListenerState};
use super::read::{GatewaySpec, Parents, RouteSpec};
use crate::parsed::Parsed;
use crate::{Labels, hosts};
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_k8s_api::gateway_api::{self as api, ParentReference};
use weft_k8s_api::istio::LabelSelector;

/// A listener that a route is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attachment {
    /// Place of the Gateway, and of the listener in it.
    pub listener: (usize, usize),
    /// Hosts that both serve; `*` for all. None when other listeners of the Gateway have all of them.
    pub hosts: Vec<String>,
}

/// What came of one parent of a route.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    /// As the route says it, defaults filled in.
    pub parent: ParentReference,
    pub attached: Result<Vec<Attachment>, Problem>,
}

/// Parents of a route that are Weft's Gateways, and what came of each.
pub(crate) fn outcomes(
    route: &Parsed<RouteSpec>,
    gateways: &[GatewayState],
    namespaces: &BTreeMap<String, Labels>,
) -> Vec<Outcome> {
    match &route.spec.parents {
        Parents::Named(parents) => {
            let named = parents.iter().filter_map(|p| outcome(route, p, gateways, namespaces));
            named.collect()
        }
        Parents::Selecting(allowed) => {
            let may = |g: &Parsed<GatewaySpec>| match allowed.allow.as_str() {
                "All" => true,
                "FromList" => {
                    allowed.gateway_refs.iter().any(|r| r.name == g.meta.name && r.namespace == g.meta.namespace)
                }
                _ => g.meta.namespace == route.meta.namespace,
            };
            let every = gateways.iter().enumerate().filter(|(_, g)| g.object.spec.old && may(&g.object));
            every.filter_map(|(index, gateway)| selected(route, index, gateway, namespaces)).collect()
        }
    }
}

fn parent_of(gateway: &GatewayState) -> ParentReference {
    ParentReference {
        group: Some(if gateway.object.spec.old { api::v1alpha1::GROUP } else { api::GROUP }.into()),
        kind: Some("Gateway".into()),
        namespace: Some(gateway.object.meta.namespace.clone()),
        name: gateway.object.meta.name.clone(),
        ..Default::default()
    }
}

/// `None` for parents that are not Weft's: their controllers speak for them.
fn outcome(
    route: &Parsed<RouteSpec>,
    to: &ParentReference,
    gateways: &[GatewayState],
    namespaces: &BTreeMap<String, Labels>,
) -> Option<Outcome> {
    if !is_gateway(to) {
        return None;
    }
    let namespace = to.namespace.as_deref().unwrap_or(&route.meta.namespace);
    let of =
        |g: &GatewayState| !g.object.spec.old && g.object.meta.namespace == namespace && g.object.meta.name == to.name;
    let (index, gateway) = gateways.iter().enumerate().find(|(_, g)| of(g))?;
    let wanted = |l: &ListenerState| {
        to.section_name.as_ref().is_none_or(|s| *s == l.spec.name)
            && to.port.is_none_or(|p| p == u32::from(l.spec.port))
    };
    let attached = attach(route, index, gateway, namespaces, &wanted);
    Some(Outcome { parent: to.clone(), attached })
}

/// True for a reference to a Gateway of the Gateway API.
pub(crate) fn is_gateway(to: &ParentReference) -> bool {
    to.group.as_deref().unwrap_or(api::GROUP) == api::GROUP && to.kind.as_deref().unwrap_or("Gateway") == "Gateway"
}

/// `None` for Gateways that do not select the route: it is nothing to them.
fn selected(
    route: &Parsed<RouteSpec>,
    index: usize,
    gateway: &GatewayState,
    namespaces: &BTreeMap<String, Labels>,
) -> Option<Outcome> {
    let wanted = |l: &ListenerState| l.spec.routes.as_ref().is_none_or(|s| matches(s, &route.meta.labels));
    let attached = attach(route, index, gateway, namespaces, &wanted);
    match &attached {
        Err(problem) if matches!(problem.reason, "NoMatchingParent" | "NotAllowedByListeners") => None,
        _ => Some(Outcome { parent: parent_of(gateway), attached }),
    }
}

/// The reason that is closest to success wins: a listener that only lacks the host says more than one that was not meant.
fn attach(
    route: &Parsed<RouteSpec>,
    index: usize,
    gateway: &GatewayState,
    namespaces: &BTreeMap<String, Labels>,
    wanted: &dyn Fn(&ListenerState) -> bool,
) -> Result<Vec<Attachment>, Problem> {
    let mut attached = Vec::new();
    let mut problem = Problem::new("NoMatchingParent", "no listener has that name or port".to_string());
    for (at, listener) in gateway.listeners.iter().enumerate().filter(|(_, l)| wanted(l)) {
        if !listener.kinds.contains(&route.spec.kind) || !admits(listener, route, &gateway.object, namespaces) {
            if problem.reason == "NoMatchingParent" {
                let message = format!(
                    "listener {} does not allow routes of kind {} from namespace {}",
                    listener.spec.name,
                    route.spec.kind.name(),
                    route.meta.namespace
                );
                problem = Problem::new("NotAllowedByListeners", message);
            }
            continue;
        }
        match common(&listener.spec.hostname, &route.spec.hostnames) {
            hosts if hosts.is_empty() => {
                let message = format!(
                    "listener {} is for {}, which has no host in common with {}",
                    listener.spec.name,
                    listener.spec.hostname,
                    route.spec.hostnames.join(", ")
                );
                problem = Problem::new("NoMatchingListenerHostname", message);
            }
            mut hosts => {
                hosts.retain(|host| match narrower(gateway, listener, host) {
                    None => true,
                    Some(other) => {
                        let (own, other) = (&listener.spec.name, &other.spec.name);
                        let message =
                            format!("host {host} is not listener {own}'s, but that of the narrower one {other}");
                        problem = Problem::new("NoMatchingListenerHostname", message);
                        false
                    }
                });
                attached.push(Attachment { listener: (index, at), hosts });
            }
        }
    }
    if attached.iter().all(|to| to.hosts.is_empty()) { Err(problem) } else { Ok(attached) }
}

/// Another listener of the Gateway that `host` belongs to: of those of one port and protocol the one with the narrowest
/// hostname has it, whatever is attached there (listener isolation, `spec.listeners`).
fn narrower<'a>(gateway: &'a GatewayState, own: &ListenerState, host: &str) -> Option<&'a ListenerState> {
    fn pattern(listener: &ListenerState) -> &str {
        if listener.spec.hostname.is_empty() { "*" } else { &listener.spec.hostname }
    }
    gateway.listeners.iter().find(|other| {
        (other.spec.port, &other.spec.protocol) == (own.spec.port, &own.spec.protocol)
            && other.usable()
            && hosts::covers(pattern(other), host)
            && hosts::by_specificity(pattern(other), pattern(own)).is_lt()
    })
}

fn admits(
    listener: &ListenerState,
    route: &Parsed<RouteSpec>,
    gateway: &Parsed<GatewaySpec>,
    namespaces: &BTreeMap<String, Labels>,
) -> bool {
    let from = &listener.spec.namespaces;
    match from.from.as_str() {
        "All" => true,
        "Selector" => {
            let none = Labels::new();
            let labels = namespaces.get(&route.meta.namespace).unwrap_or(&none);
            from.selector.as_ref().is_some_and(|s| matches(s, labels))
        }
        "None" => false,
        _ => route.meta.namespace == gateway.meta.namespace,
    }
}

/// Hosts that a listener and a route share.
fn common(listener: &str, route: &[String]) -> Vec<String> {
    let all = |host: &str| host.is_empty();
    if route.is_empty() {
        return vec![if all(listener) { "*".into() } else { listener.into() }];
    }
    let mut out: Vec<String> = Vec::new();
    for host in route {
        let narrower = match host.as_str() {
            host if all(listener) || hosts::covers(listener, host) => host,
            host if hosts::covers(host, listener) => listener,
            _ => continue,
        };
        if !out.iter().any(|known| known == narrower) {
            out.push(narrower.to_string());
        }
    }
    out
}

/// Whether labels are as a selector of Kubernetes asks.
pub(crate) fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    crate::parsed::selects(&selector.match_labels, labels)
        && selector.match_expressions.iter().all(|e| {
            let value = labels.get(&e.key);
            match e.operator.as_str() {
                "In" => value.is_some_and(|v| e.values.contains(v)),
                "NotIn" => value.is_none_or(|v| !e.values.contains(v)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// A route with what came of its parents.
#[derive(Debug)]
pub(crate) struct Attached {
    pub route: Arc<Parsed<RouteSpec>>,
    pub outcomes: Arc<Vec<Outcome>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_in_common() {
        for (listener, route, want) in [
            ("", &[][..], &["*"][..]),
            ("*.a.com", &[], &["*.a.com"]),
            ("", &["b.com", "*.c.com"], &["b.com", "*.c.com"]),
            ("*.a.com", &["x.a.com", "b.com", "a.com"], &["x.a.com"]),
            ("x.a.com", &["*.a.com", "*.com"], &["x.a.com"]),
            ("x.a.com", &["y.a.com"], &[]),
        ] {
            let route: Vec<String> = route.iter().map(ToString::to_string).collect();
            assert_eq!(common(listener, &route), want, "{listener} {route:?}");
        }
    }

    #[test]
    fn selectors() {
        let labels = Labels::from([("a".to_string(), "1".to_string())]);
        for (selector, want) in [
            (serde_json::json!({}), true),
            (serde_json::json!({"matchLabels": {"a": "1"}}), true),
            (serde_json::json!({"matchLabels": {"a": "2"}}), false),
            (serde_json::json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}), true),
            (serde_json::json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}), false),
            (serde_json::json!({"matchExpressions": [{"key": "b", "operator": "Exists"}]}), false),
            (serde_json::json!({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}), true),
            (serde_json::json!({"matchExpressions": [{"key": "b", "operator": "Perhaps"}]}), false),
        ] {
            assert_eq!(matches(&serde_json::from_value(selector.clone()).unwrap(), &labels), want, "{selector}");
        }
    }
}
