//! What the statuses of the Gateway API's objects and of Ingresses say.

use super::attach::Attached;
use super::backends::References;
use super::listeners::{CONTROLLERS, GatewayState};
use super::read::{Parents, RouteSpec};
use super::routes::{Converted, RouteKey, is_mesh, key, mesh_hosts};
use super::status::{Finding, StatusUpdate, conditions, finding, warning};
use super::{KnownRoute, Problem, Source, Translated};
use crate::Warning;
use crate::parsed::{Meta, Parsed};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use weft_k8s_api::ObjectKey;
use weft_k8s_api::gateway_api as api;

/// What is said of one route.
#[derive(Debug)]
pub(super) struct Report {
    status: Arc<StatusUpdate>,
    warnings: Vec<Warning>,
}

/// Adds the statuses of all objects, and warnings for what they say no to. Routes of which nothing changed keep theirs.
pub(super) fn add(
    source: &Source<'_>,
    references: &References<'_>,
    (gateways, routes): (&[GatewayState], &[Attached]),
    mut converted: HashMap<RouteKey, Arc<Converted>>,
    old: &Translated,
    out: &mut Translated,
) {
    classes(source, out);
    let mut attached: HashMap<(usize, usize), usize> = HashMap::new();
    for route in routes {
        // Several parents of a route may lead to one listener.
        let to = route.outcomes.iter().filter_map(|o| o.attached.as_ref().ok()).flatten();
        for listener in to.map(|to| to.listener).collect::<BTreeSet<_>>() {
            *attached.entry(listener).or_default() += 1;
        }
    }
    for (index, gateway) in gateways.iter().enumerate() {
        of_gateway(index, gateway, &attached, out);
    }
    let classes = source.kinds.gateway_classes.items.iter();
    out.controllers = classes.map(|c| (c.meta.name.clone(), c.spec.controller.clone())).collect();
    let same_services = !source.references_changed && out.controllers == old.controllers;
    for route in routes {
        let key = key(&route.route);
        let Some(rules) = converted.remove(&key) else { continue };
        let same = |k: &&KnownRoute| {
            same_services
                && Arc::ptr_eq(&k.object, &route.route)
                && Arc::ptr_eq(&k.rules, &rules)
                && k.outcomes == route.outcomes
        };
        let report = match old.routes.get(&key).filter(same) {
            Some(known) => known.report.clone(),
            None => Arc::new(of_route(references, route, &rules, gateways, &out.controllers)),
        };
        out.statuses.push(report.status.clone());
        out.warnings.extend(report.warnings.iter().cloned());
        let known = KnownRoute { object: route.route.clone(), rules, outcomes: route.outcomes.clone(), report };
        out.routes.insert(key, known);
    }
    reuse_statuses(old, out);
}

/// Statuses that are equal to those of the last translation are those.
fn reuse_statuses(old: &Translated, out: &mut Translated) {
    let known: HashMap<&ObjectKey, &Arc<StatusUpdate>> = old.statuses.iter().map(|s| (&s.object, s)).collect();
    for status in &mut out.statuses {
        if let Some(same) = known.get(&status.object)
            && (Arc::ptr_eq(same, status) || ***same == **status)
        {
            *status = (*same).clone();
        }
    }
}

fn object(group: &str, kind: &str, meta: &Meta) -> ObjectKey {
    ObjectKey { group: group.into(), kind: kind.into(), namespace: meta.namespace.clone(), name: meta.name.clone() }
}

fn group(old: bool) -> &'static str {
    if old { api::v1alpha1::GROUP } else { api::GROUP }
}

fn classes(source: &Source<'_>, out: &mut Translated) {
    let all = source.kinds.gateway_classes.items.iter().chain(source.kinds.old_gateway_classes.items.iter());
    for class in all.filter(|c| CONTROLLERS.contains(&c.spec.controller.as_str())) {
        let kind = if class.spec.old { "Admitted" } else { "Accepted" };
        let found = [Finding::good(kind, kind, "handled by Weft")];
        out.statuses.push(Arc::new(StatusUpdate {
            object: object(group(class.spec.old), "GatewayClass", &class.meta),
            generation: class.meta.generation,
            status: json!({"conditions": conditions(&found, class.meta.generation)}),
        }));
    }
}

fn of_gateway(index: usize, state: &GatewayState, attached: &HashMap<(usize, usize), usize>, out: &mut Translated) {
    let (meta, old) = (&state.object.meta, state.object.spec.old);
    let bad = state.listeners.iter().filter(|l| !l.usable()).count();
    let none = || Problem::new("ListenersNotValid", "no listener can be served; see their conditions".to_string());
    let refused = state.problem.clone().or_else(|| (bad > 0 && bad == state.listeners.len()).then(none));
    let accepted = match (&refused, bad) {
        (Some(problem), _) => Finding::bad(name_of(old, "Accepted"), problem),
        (None, 0) => Finding::good(name_of(old, "Accepted"), name_of(old, "Accepted"), "gateway is accepted"),
        _ => Finding::good(name_of(old, "Accepted"), "ListenersNotValid", "some listeners cannot be served"),
    };
    let down = refused.clone().map(|p| Problem::new("Invalid", p.message)).or_else(|| state.unserved.clone());
    let good = (name_of(old, "Programmed"), "gateway is served");
    let programmed = finding(name_of(old, "Programmed"), good, down.as_ref());
    for problem in refused.iter().chain(&state.unserved) {
        out.warnings.push(warning(&meta.provenance, "", problem));
    }
    let mut listeners = Vec::new();
    for (at, listener) in state.listeners.iter().enumerate() {
        let path = format!("spec.listeners[{at}]");
        for problem in
            [&listener.accepted, &listener.conflicted, &listener.resolved, &listener.advice].into_iter().flatten()
        {
            out.warnings.push(warning(&meta.provenance, &path, problem));
        }
        let attached = attached.get(&(index, at)).copied().unwrap_or_default();
        let shown = conditions(&listener.findings(), meta.generation);
        listeners.push(if old {
            json!({"port": listener.spec.port, "hostname": listener.spec.hostname, "name": listener.spec.name,
                   "protocol": listener.spec.protocol, "conditions": shown})
        } else {
            let kinds: Vec<Value> =
                listener.kinds.iter().map(|k| json!({"group": api::GROUP, "kind": k.name()})).collect();
            json!({"name": listener.spec.name, "supportedKinds": kinds, "attachedRoutes": attached, "conditions": shown})
        });
    }
    let address = |a: &String| {
        let kind = if a.parse::<IpAddr>().is_ok() { "IPAddress" } else { "Hostname" };
        json!({"type": kind, "value": a})
    };
    let addresses: Vec<Value> = state.addresses.iter().map(address).collect();
    out.statuses.push(Arc::new(StatusUpdate {
        object: object(group(old), "Gateway", meta),
        generation: meta.generation,
        status: json!({
            "addresses": addresses, "listeners": listeners,
            "conditions": conditions(&[accepted, programmed], meta.generation),
        }),
    }));
}

/// What a condition was called in the older group.
fn name_of(old: bool, name: &'static str) -> &'static str {
    match (old, name) {
        (true, "Accepted") => "Scheduled",
        (true, "Programmed") => "Ready",
        _ => name,
    }
}

fn of_route(
    references: &References<'_>,
    attached: &Attached,
    rules: &Converted,
    gateways: &[GatewayState],
    controllers: &BTreeMap<String, String>,
) -> Report {
    let mut warnings = Vec::new();
    let route = &attached.route;
    let (meta, old) = (&route.meta, route.spec.old);
    if let Some(problem) = &rules.partly {
        warnings.push(warning(&meta.provenance, "", problem));
    }
    if let Some(problem) = &rules.unresolved {
        warnings.push(warning(&meta.provenance, "", problem));
    }
    let resolved = finding("ResolvedRefs", ("ResolvedRefs", "all references are resolved"), rules.unresolved.as_ref());
    let kind = if old { "Admitted" } else { "Accepted" };
    let mut parents = Vec::new();
    for outcome in attached.outcomes.iter() {
        let refused = outcome.attached.as_ref().err().or(rules.refused.as_ref());
        if let Some(problem) = refused {
            warnings.push(warning(&meta.provenance, "", problem));
        }
        let accepted = finding(kind, (kind, "route is accepted"), refused);
        let mut shown = vec![accepted, resolved.clone()];
        shown.extend(partly(rules));
        let shown = conditions(&shown, meta.generation);
        let parent = &outcome.parent;
        parents.push(if old {
            let reference = json!({"name": parent.name, "namespace": parent.namespace});
            json!({"gatewayRef": reference, "conditions": shown})
        } else {
            json!({"controllerName": controller(outcome, gateways, controllers), "parentRef": parent, "conditions": shown})
        });
    }
    parents.extend(mesh_parents(references, route, rules, meta.generation));
    let list = if old { "gateways" } else { "parents" };
    let status = StatusUpdate {
        object: object(group(old), route.spec.kind.name(), meta),
        generation: meta.generation,
        status: json!({list: parents}),
    };
    Report { status: Arc::new(status), warnings }
}

/// Condition `PartiallyInvalid`, on routes of which a part is left out alone.
fn partly(rules: &Converted) -> Option<Finding> {
    rules.partly.as_ref().map(|problem| Finding { status: true, ..Finding::bad("PartiallyInvalid", problem) })
}

/// The controller that the Gateway's class names.
fn controller(
    outcome: &super::attach::Outcome,
    gateways: &[GatewayState],
    controllers: &BTreeMap<String, String>,
) -> String {
    let class =
        outcome.attached.as_ref().ok().and_then(|a| a.first()).map(|a| &gateways[a.listener.0].object.spec.class);
    class.and_then(|class| controllers.get(class)).cloned().unwrap_or_else(|| CONTROLLERS[0].to_string())
}

/// Services and service entries in the mesh whose callers the route is for.
fn mesh_parents(
    references: &References<'_>,
    route: &Parsed<RouteSpec>,
    rules: &Converted,
    generation: i64,
) -> Vec<Value> {
    let Parents::Named(parents) = &route.spec.parents else { return Vec::new() };
    let one = |parent: &api::ParentReference| {
        let missing = mesh_hosts(parent, &route.meta.namespace, references).is_empty().then(|| {
            let kind = parent.kind.as_deref().unwrap_or_default();
            let namespace = parent.namespace.as_deref().unwrap_or(&route.meta.namespace);
            Problem::new("NoMatchingParent", format!("{kind} {namespace}/{} does not exist", parent.name))
        });
        let accepted =
            finding("Accepted", ("Accepted", "route is accepted"), missing.as_ref().or(rules.refused.as_ref()));
        let good = ("ResolvedRefs", "all references are resolved");
        let resolved = finding("ResolvedRefs", good, rules.unresolved.as_ref());
        json!({
            "controllerName": CONTROLLERS[0], "parentRef": parent,
            "conditions": conditions(&[accepted, resolved].into_iter().chain(partly(rules)).collect::<Vec<_>>(), generation),
        })
    };
    parents.iter().filter(|p| is_mesh(p)).map(one).collect()
}
