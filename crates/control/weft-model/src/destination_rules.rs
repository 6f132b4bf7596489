//! Destination rules by namespace and host; rules of one namespace for one host and the same clients (`exportTo`,
//! `workloadSelector`) are one rule.
//!
//! The oldest rule's top-level traffic policy counts, and the first definition of a subset; what a younger rule says
//! otherwise is reported.

use crate::gateway_api::is_policy;
use crate::parsed::Parsed;
use crate::services::export_to;
use crate::{DestinationRule, ExportTo, Labels, Settings, Warning, hosts};
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_core::Provenance;
use weft_k8s_api::istio::{self, PortSelector, PortTrafficPolicy};

type Object = Arc<Parsed<istio::DestinationRule>>;

/// By namespace of the rules, then by host; several of one host are for different clients, oldest first.
type RulesByHost = BTreeMap<String, BTreeMap<String, Vec<Arc<DestinationRule>>>>;

/// All destination rules.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub merged: RulesByHost,
    pub warnings: Vec<Warning>,
}

/// Merges rules, oldest first; those equal to one of `old` are that one.
pub(crate) fn build(objects: &[Object], settings: &Settings, default_export: &ExportTo, old: &RulesByHost) -> Rules {
    let mut rules = Rules::default();
    let mut merged: BTreeMap<String, BTreeMap<String, Vec<DestinationRule>>> = BTreeMap::new();
    for object in objects {
        let rule = from_object(object, settings, default_export);
        let of_host = merged.entry(rule.namespace.clone()).or_default().entry(rule.host.to_string()).or_default();
        let policy = is_policy(&rule.name);
        if policy {
            for own in of_host.iter_mut() {
                fill(own, &rule, &mut rules.warnings);
            }
        }
        match of_host.iter_mut().find(|older| same_clients(older, &rule)) {
            Some(_) if policy => {}
            Some(older) => merge(older, rule, &mut rules.warnings),
            // For clients that see none of the user's rules, in which the policy is by now.
            None if policy => of_host.insert(0, rule),
            None => of_host.push(rule),
        }
    }
    for (namespace, of_namespace) in merged {
        let before = old.get(&namespace);
        let shared = of_namespace.into_iter().map(|(host, list)| {
            let known = before.and_then(|b| b.get(&host)).map_or(&[][..], Vec::as_slice);
            rules.warnings.extend(list.iter().enumerate().filter_map(|(i, rule)| hidden(rule, &list[i + 1..])));
            let list = list.into_iter().map(|rule| {
                let old = known.iter().find(|old| same_clients(old, &rule));
                crate::parsed::reuse(old, rule)
            });
            (host, list.collect())
        });
        let shared = shared.collect();
        rules.merged.insert(namespace, shared);
    }
    rules
}

fn from_object(object: &Object, settings: &Settings, default_export: &ExportTo) -> DestinationRule {
    let (meta, spec) = (&object.meta, &object.spec);
    DestinationRule {
        host: hosts::complete(&spec.host, &meta.namespace, &settings.domain),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        // What is for certain workloads is for those of the rule's own namespace.
        export_to: match selector(spec) {
            Some(_) => ExportTo::Namespaces([meta.namespace.clone()].into()),
            None => seen_by(&spec.export_to, &meta.namespace, default_export),
        },
        spec: spec.clone(),
        origins: vec![meta.provenance.clone()],
    }
}

/// Labels of the client workloads that a rule is for; `None` = all.
pub(crate) fn selector(spec: &istio::DestinationRule) -> Option<&Labels> {
    spec.workload_selector.as_ref().map(|s| &s.match_labels).filter(|labels| !labels.is_empty())
}

fn same_clients(a: &DestinationRule, b: &DestinationRule) -> bool {
    a.export_to == b.export_to && selector(&a.spec) == selector(&b.spec)
}

/// A rule that does not say who sees it is seen in its own namespace, whatever the mesh's default is.
fn seen_by(list: &[String], namespace: &str, default: &ExportTo) -> ExportTo {
    match export_to(list, namespace, default) {
        ExportTo::Namespaces(mut set) if list.is_empty() => {
            set.insert(namespace.to_string());
            ExportTo::Namespaces(set)
        }
        ExportTo::Nobody if list.is_empty() => ExportTo::Namespaces([namespace.to_string()].into()),
        other => other,
    }
}

/// Of rules for one host that a client sees, the youngest group holds (as in Istio): says so of an older one.
fn hidden(rule: &DestinationRule, younger: &[DestinationRule]) -> Option<Warning> {
    let for_all = |rule: &DestinationRule| selector(&rule.spec).is_none();
    let hides = |other: &&DestinationRule| for_all(other) && rule.export_to.overlaps(&other.export_to);
    let by = younger.iter().find(hides).filter(|_| for_all(rule) && !is_policy(&rule.name))?;
    let message = format!(
        "clients that see DestinationRule {} go by it for host {}, and not by this one; give both the same exportTo to have them merged",
        by.name, rule.host
    );
    let at = rule.origins.first().cloned().unwrap_or_default().at("spec.exportTo");
    Some(Warning { at, code: "DestinationRuleConflict", message })
}

/// Adds the TLS that policies of the Gateway API ask for, wherever a user's rule for the host has none: what it sets beside
/// TLS is no word against it.
fn fill(own: &mut DestinationRule, policy: &DestinationRule, warnings: &mut Vec<Warning>) {
    let Some(asked) = &policy.spec.traffic_policy else { return };
    let mut spec = (*own.spec).clone();
    let traffic = spec.traffic_policy.get_or_insert_default();
    let mut overruled = traffic.tls.is_some() && asked.tls.is_some();
    let whole = if traffic.tls.is_none() { asked.tls.as_ref() } else { None };
    traffic.tls = traffic.tls.take().or_else(|| whole.cloned());
    let at = |port: &Option<PortSelector>| {
        let of_port = asked.port_level_settings.iter().find(|p| p.port == *port);
        of_port.map_or(whole, |p| p.tls.as_ref()).cloned()
    };
    for known in &mut traffic.port_level_settings {
        overruled |= known.tls.is_some() && at(&known.port).is_some();
        known.tls = known.tls.take().or_else(|| at(&known.port));
    }
    for of_port in &asked.port_level_settings {
        if traffic.port_level_settings.iter().all(|known| known.port != of_port.port) {
            // Port settings replace the rule's: the rest of the rule goes with them.
            traffic.port_level_settings.push(PortTrafficPolicy {
                load_balancer: traffic.load_balancer.clone(),
                connection_pool: traffic.connection_pool.clone(),
                outlier_detection: traffic.outlier_detection.clone(),
                ..of_port.clone()
            });
        }
    }
    for subset in spec.subsets.iter_mut().filter_map(|s| s.traffic_policy.as_mut()) {
        overruled |= subset.tls.is_some();
        for known in subset.port_level_settings.iter_mut().filter(|known| known.tls.is_none() && subset.tls.is_none()) {
            known.tls = at(&known.port);
        }
    }
    if overruled {
        let origin = policy.origins.first().cloned().unwrap_or_default();
        warnings.push(conflict(own, origin.at("spec.validation"), "tls"));
    }
    own.spec = Arc::new(spec);
}

fn conflict(older: &DestinationRule, at: Provenance, what: &str) -> Warning {
    let (host, name) = (&older.host, &older.name);
    let message = format!("{what} for host {host} is already set by older DestinationRule {name}; ignored");
    Warning { at, code: "DestinationRuleConflict", message }
}

fn merge(older: &mut DestinationRule, newer: DestinationRule, warnings: &mut Vec<Warning>) {
    let at = newer.origins.first().cloned().unwrap_or_default();
    let mut conflict = |path: &str, what: String| warnings.push(conflict(older, at.at(path), &what));
    let mut spec = (*older.spec).clone();
    match (&spec.traffic_policy, &newer.spec.traffic_policy) {
        (None, policy) => spec.traffic_policy.clone_from(policy),
        (Some(_), None) => {}
        (Some(_), Some(_)) => conflict("spec.trafficPolicy", "trafficPolicy".into()),
    }
    for (i, subset) in newer.spec.subsets.iter().enumerate() {
        if spec.subsets.iter().any(|s| s.name == subset.name) {
            conflict(&format!("spec.subsets[{i}]"), format!("subset {}", subset.name));
        } else {
            spec.subsets.push(subset.clone());
        }
    }
    older.spec = Arc::new(spec);
    older.origins.extend(newer.origins);
}
