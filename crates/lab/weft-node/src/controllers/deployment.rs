//! Deployments: one ReplicaSet per version of the pod template, and the rollout from one to the next.

use super::objects::{
    condition, delete, hash, is_active, is_controlled_by, is_deleting, list, owned, report, spec_number, status_number,
    string_map, without_zeros, write_status,
};
use super::replicaset::REPLICA_FAILURE;
use super::{Controller, PodMaker};
use serde_json::{Value, json};
use std::sync::Arc;
use weft_k8s_api::Object;
use weft_store::MemoryStore;

const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";

/// The controller.
pub struct Deployments;

impl Controller for Deployments {
    fn reconcile(&mut self, store: &MemoryStore, _: &dyn PodMaker) {
        let sets = list(store, "apps", "ReplicaSet");
        let pods = list(store, "", "Pod");
        for deployment in list(store, "apps", "Deployment") {
            if is_deleting(&deployment) {
                continue;
            }
            let own: Vec<_> =
                sets.iter().filter(|s| is_controlled_by(s, &deployment) && !is_deleting(s)).cloned().collect();
            let Some(new) = newest(store, &deployment, &own) else { continue };
            let old: Vec<_> = own.into_iter().filter(|set| set.name() != new.name()).collect();
            roll_out(store, &deployment, &new, &old, &pods);
            status(store, &deployment, &new, &old);
            forget(store, &deployment, &old);
        }
    }
}

/// The ReplicaSet of the present template; made when there is none.
fn newest(store: &MemoryStore, deployment: &Object, own: &[Arc<Object>]) -> Option<Arc<Object>> {
    let hash = hash(&deployment.spec()["template"]);
    let last = own.iter().map(|set| revision(set)).max().unwrap_or(0);
    if let Some(set) = own.iter().find(|set| set.label(HASH) == Some(&hash)) {
        // Going back to an earlier template makes it the latest revision.
        if revision(set) < last {
            set_revision(store, set, last + 1);
        }
        let current = revision(set).max(last);
        if deployment.annotation(REVISION) != Some(&current.to_string()) && revision(set) == last {
            set_revision(store, deployment, current);
        }
        return Some(Arc::clone(set));
    }
    let template = &deployment.spec()["template"];
    let mut labels = string_map(&template["metadata"]["labels"]);
    labels.insert(HASH.into(), hash.clone());
    let mut set = owned("apps/v1", "ReplicaSet", deployment, labels.clone());
    set.metadata.name = Some(format!("{}-{hash}", deployment.name()));
    set.metadata.annotations = Some([(REVISION.to_string(), (last + 1).to_string())].into());
    let mut selector = deployment.spec()["selector"].clone();
    selector["matchLabels"][HASH] = hash.into();
    let mut template = template.clone();
    template["metadata"]["labels"] = json!(labels);
    set.body.insert("spec".into(), json!({"replicas": 0, "selector": selector, "template": template}));
    let made = report(deployment, store.create(set));
    if made.is_some() {
        set_revision(store, deployment, last + 1);
    }
    made
}

fn revision(object: &Object) -> i64 {
    object.annotation(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn set_revision(store: &MemoryStore, object: &Object, revision: i64) {
    let _ = store.modify(&object.key(), |object| {
        let annotations = object.metadata.annotations.get_or_insert_default();
        annotations.insert(REVISION.into(), revision.to_string());
    });
}

fn roll_out(store: &MemoryStore, deployment: &Object, new: &Object, old: &[Arc<Object>], pods: &[Arc<Object>]) {
    let wanted = spec_number(deployment, "replicas", 1);
    let paused = deployment.spec()["paused"].as_bool().unwrap_or(false);
    if paused {
        // Only the size follows while paused; versions stay as they are.
        let current =
            old.iter().chain([&Arc::new(new.clone())]).filter(|s| replicas(s) > 0).max_by_key(|s| revision(s)).cloned();
        if let Some(current) = current {
            scale(store, &current, wanted);
        }
        return;
    }
    if deployment.spec()["strategy"]["type"] == "Recreate" {
        old.iter().for_each(|set| scale(store, set, 0));
        let gone = |set: &Arc<Object>| {
            !pods.iter().any(|pod| is_controlled_by(pod, set) && (is_active(pod) || is_deleting(pod)))
        };
        if old.iter().all(gone) {
            scale(store, new, wanted);
        }
        return;
    }
    let (surge, unavailable) = bounds(deployment, wanted);
    let old_total: i64 = old.iter().map(|set| replicas(set)).sum();
    let grown = grow(wanted, replicas(new), old_total, surge);
    scale(store, new, grown);
    shrink(store, old, wanted - unavailable, new, grown);
}

fn replicas(set: &Object) -> i64 {
    spec_number(set, "replicas", 1)
}

/// Size of the new ReplicaSet: as large as wanted and as the surge allows beside the old ones.
fn grow(wanted: i64, new: i64, old_total: i64, surge: i64) -> i64 {
    if new >= wanted {
        return wanted;
    }
    let room = wanted + surge - new - old_total;
    new + room.clamp(0, wanted - new)
}

/// Takes pods from old ReplicaSets: first such as are not ready anyway, then ready ones while enough stay available.
fn shrink(store: &MemoryStore, old: &[Arc<Object>], must_stay: i64, new: &Object, new_replicas: i64) {
    let available = |set: &Object| status_number(set, "availableReplicas").min(replicas(set));
    let mut sets: Vec<_> = old.iter().filter(|set| replicas(set) > 0).collect();
    sets.sort_by_key(|set| revision(set));
    let old_total: i64 = sets.iter().map(|set| replicas(set)).sum();
    let new_unavailable = new_replicas - available(new);
    let mut removable = (old_total + new_replicas - must_stay - new_unavailable).max(0);
    let mut spare = (sets.iter().map(|set| available(set)).sum::<i64>() + available(new) - must_stay).max(0);
    for set in sets {
        let idle = (replicas(set) - available(set)).min(removable);
        removable -= idle;
        let busy = available(set).min(spare).min(removable);
        spare -= busy;
        removable -= busy;
        scale(store, set, replicas(set) - idle - busy);
    }
}

/// `maxSurge` and `maxUnavailable` as numbers of pods: 25 % by default, the surge rounded up and the other down; never both 0.
fn bounds(deployment: &Object, wanted: i64) -> (i64, i64) {
    let rolling = &deployment.spec()["strategy"]["rollingUpdate"];
    let surge = amount(&rolling["maxSurge"], wanted, true);
    let unavailable = amount(&rolling["maxUnavailable"], wanted, false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable.min(wanted)) }
}

pub(super) fn amount(value: &Value, of: i64, up: bool) -> i64 {
    let percent = match value {
        Value::Number(number) => return number.as_i64().unwrap_or(0).max(0),
        Value::String(text) => text.trim_end_matches('%').parse::<i64>().unwrap_or(25).clamp(0, 1000),
        _ => 25,
    };
    let hundredths = percent * of;
    if up { (hundredths + 99) / 100 } else { hundredths / 100 }
}

fn scale(store: &MemoryStore, set: &Object, size: i64) {
    if replicas(set) == size {
        return;
    }
    let _ = store.modify(&set.key(), |set| {
        if let Some(spec) = set.body.get_mut("spec") {
            spec["replicas"] = size.into();
        }
    });
}

fn status(store: &MemoryStore, deployment: &Object, new: &Object, old: &[Arc<Object>]) {
    let wanted = spec_number(deployment, "replicas", 1);
    let sum = |field: &str| status_number(new, field) + old.iter().map(|set| status_number(set, field)).sum::<i64>();
    let (total, ready, available) = (sum("replicas"), sum("readyReplicas"), sum("availableReplicas"));
    let updated = status_number(new, "replicas");
    let (_, unavailable) = bounds(deployment, wanted);
    let enough = available >= wanted - unavailable;
    let complete = updated == wanted && total == wanted && available == wanted;
    let (enough_reason, enough_text) = match enough {
        true => ("MinimumReplicasAvailable", "Deployment has minimum availability."),
        false => ("MinimumReplicasUnavailable", "Deployment does not have minimum availability."),
    };
    let progress = match complete {
        true => ("NewReplicaSetAvailable", format!("ReplicaSet \"{}\" has successfully progressed.", new.name())),
        false => ("ReplicaSetUpdated", format!("ReplicaSet \"{}\" is progressing.", new.name())),
    };
    let status = json!({
        "observedGeneration": deployment.metadata.generation,
        "replicas": total, "updatedReplicas": updated, "readyReplicas": ready, "availableReplicas": available,
        "unavailableReplicas": (wanted.max(total) - available).max(0),
    });
    let mut status = without_zeros(status);
    let mut conditions = vec![
        condition(deployment, "Available", enough, enough_reason, enough_text),
        condition(deployment, "Progressing", true, progress.0, &progress.1),
    ];
    let of_new = new.body.get("status").and_then(|status| status["conditions"].as_array());
    if let Some(failure) = of_new.into_iter().flatten().find(|c| c["type"] == REPLICA_FAILURE) {
        let why = failure["message"].as_str().unwrap_or_default();
        conditions.push(condition(deployment, REPLICA_FAILURE, true, "FailedCreate", why));
    }
    status["conditions"] = conditions.into();
    write_status(store, deployment, status);
}

/// Deletes old ReplicaSets beyond `revisionHistoryLimit` (10 by default).
fn forget(store: &MemoryStore, deployment: &Object, old: &[Arc<Object>]) {
    let kept = usize::try_from(spec_number(deployment, "revisionHistoryLimit", 10)).unwrap_or(0);
    let mut idle: Vec<_> = old.iter().filter(|s| replicas(s) == 0 && status_number(s, "replicas") == 0).collect();
    idle.sort_by_key(|set| revision(set));
    let surplus = idle.len().saturating_sub(kept);
    idle.iter().take(surplus).for_each(|set| delete(store, set));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_round_as_kubernetes_does() {
        for (value, of, up, expected) in [
            (json!(null), 4, true, 1),
            (json!(null), 3, true, 1),
            (json!(null), 3, false, 0),
            (json!("50%"), 3, true, 2),
            (json!("50%"), 3, false, 1),
            (json!(2), 10, true, 2),
            (json!("0%"), 10, false, 0),
        ] {
            assert_eq!(amount(&value, of, up), expected, "{value} of {of}");
        }
    }

    #[test]
    fn growth_respects_the_surge() {
        // wanted, new, old total, surge → new
        for (wanted, new, old, surge, expected) in [
            (4, 0, 4, 1, 1),
            (4, 1, 4, 1, 1),
            (4, 1, 3, 1, 2),
            (4, 0, 0, 1, 4),
            (2, 5, 0, 1, 2),
            (1, 0, 1, 1, 1),
            (4, 0, 9, 1, 0),
        ] {
            assert_eq!(grow(wanted, new, old, surge), expected, "{wanted} {new} {old} {surge}");
        }
    }
}
