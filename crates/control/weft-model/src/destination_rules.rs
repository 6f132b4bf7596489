//! Destination rules by namespace and host; rules of one namespace for one host are one rule.
//!
//! The oldest rule's top-level traffic policy counts, and the first definition of a subset; what a younger rule says
//! otherwise is reported. Rules with a workload selector stay by themselves.

use crate::parsed::Parsed;
use crate::services::export_to;
use crate::{DestinationRule, ExportTo, Settings, Warning, hosts};
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_k8s_api::istio;

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
        match of_namespace.get_mut(&*rule.host) {
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

fn merge(older: &mut DestinationRule, newer: DestinationRule, warnings: &mut Vec<Warning>) {
    let at = newer.origins.first().cloned().unwrap_or_default();
    let host = &older.host;
    let mut conflict = |path: &str, what: String| {
        let message = format!("{what} for host {host} is already set by older DestinationRule {}; ignored", older.name);
        warnings.push(Warning { at: at.at(path), code: "DestinationRuleConflict", message });
    };
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
