//! Destination rules by namespace and host; rules of one namespace for one host are one rule.
//!
//! The oldest rule's top-level traffic policy counts, and the first definition of a subset; what a younger rule says
//! otherwise is reported. Rules with a workload selector stay by themselves.

use crate::gateway_api::is_policy;
use crate::parsed::Parsed;
use crate::services::export_to;
use crate::{DestinationRule, ExportTo, Settings, Warning, hosts};
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_core::Provenance;
use weft_k8s_api::istio::{self, PortSelector, PortTrafficPolicy};

type Object = Arc<Parsed<istio::DestinationRule>>;

/// All destination rules.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub merged: BTreeMap<String, BTreeMap<String, Arc<DestinationRule>>>,
    pub selected: BTreeMap<String, Vec<Arc<DestinationRule>>>,
    pub warnings: Vec<Warning>,
}

/// Merges rules, oldest first; those equal to one of `old` are that one.
pub(crate) fn build(
    objects: &[Object],
    settings: &Settings,
    default_export: &ExportTo,
    old: &BTreeMap<String, BTreeMap<String, Arc<DestinationRule>>>,
) -> Rules {
    let mut rules = Rules::default();
    let mut merged: BTreeMap<String, BTreeMap<String, DestinationRule>> = BTreeMap::new();
    for object in objects {
        let rule = from_object(object, settings, default_export);
        let has_selector = rule.spec.workload_selector.as_ref().is_some_and(|s| !s.match_labels.is_empty());
        if has_selector {
            rules.selected.entry(rule.namespace.clone()).or_default().push(Arc::new(rule));
            continue;
        }
        let of_namespace = merged.entry(rule.namespace.clone()).or_default();
        if is_policy(&rule.name) {
            let selecting = rules.selected.get_mut(&rule.namespace).into_iter().flatten();
            for own in selecting.filter(|own| own.host == rule.host) {
                fill(Arc::make_mut(own), &rule, &mut rules.warnings);
            }
        }
        match of_namespace.get_mut(&*rule.host) {
            Some(own) if is_policy(&rule.name) => fill(own, &rule, &mut rules.warnings),
            Some(older) => merge(older, rule, &mut rules.warnings),
            None => {
                of_namespace.insert(rule.host.to_string(), rule);
            }
        }
    }
    for (namespace, of_namespace) in merged {
        let before = old.get(&namespace);
        let shared = of_namespace.into_iter().map(|(host, rule)| {
            let rule = crate::parsed::reuse(before.and_then(|b| b.get(&host)), rule);
            (host, rule)
        });
        rules.merged.insert(namespace, shared.collect());
    }
    rules
}

fn from_object(object: &Object, settings: &Settings, default_export: &ExportTo) -> DestinationRule {
    let (meta, spec) = (&object.meta, &object.spec);
    DestinationRule {
        host: hosts::complete(&spec.host, &meta.namespace, &settings.domain),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        export_to: export_to(&spec.export_to, &meta.namespace, default_export),
        spec: spec.clone(),
        origins: vec![meta.provenance.clone()],
    }
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
    if newer.export_to != older.export_to {
        conflict("spec.exportTo", "another exportTo".into());
    }
    older.spec = Arc::new(spec);
    older.origins.extend(newer.origins);
}
