//! StatefulSets: pods with stable names and host names, made and replaced one after another.

use super::objects::{
    delete, hash, is_active, is_controlled_by, is_deleting, is_ready, list, owned, pod_from_template, spec_number,
    string_map, write_status,
};
use super::{Controller, PodMaker};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_k8s_api::Object;
use weft_store::MemoryStore;

const REVISION: &str = "controller-revision-hash";

/// The controller.
pub struct StatefulSets;

impl Controller for StatefulSets {
    fn reconcile(&mut self, store: &MemoryStore, maker: &dyn PodMaker) {
        let asked = maker.asked();
        let pods = list(store, "", "Pod");
        for set in list(store, "apps", "StatefulSet") {
            if is_deleting(&set) {
                continue;
            }
            let own: BTreeMap<i64, Arc<Object>> = pods
                .iter()
                .filter(|pod| is_controlled_by(pod, &set))
                .filter_map(|pod| Some((ordinal(pod)?, Arc::clone(pod))))
                .collect();
            let revision = format!("{}-{}", set.name(), hash(&set.spec()["template"]));
            // One that is on its way has its name already.
            if asked.pods(&set) == 0 {
                advance(store, maker, &set, &own, &revision);
            }
            status(store, &set, &own, &revision);
        }
    }
}

fn ordinal(pod: &Object) -> Option<i64> {
    pod.name().rsplit_once('-')?.1.parse().ok()
}

/// One step: make what is missing, remove what is too much, replace what is old. With the usual policy each step waits until
/// the pods before it are ready.
fn advance(store: &MemoryStore, maker: &dyn PodMaker, set: &Object, own: &BTreeMap<i64, Arc<Object>>, revision: &str) {
    let parallel = set.spec()["podManagementPolicy"] == "Parallel";
    let wanted = spec_number(set, "replicas", 1).clamp(0, 1000);
    for number in 0..wanted {
        match own.get(&number) {
            None => {
                make(store, maker, set, number, revision);
                if !parallel {
                    return;
                }
            }
            // A finished pod of a StatefulSet is replaced under the same name.
            Some(pod) if !is_active(pod) && !is_deleting(pod) => return delete(store, pod),
            Some(pod) if !is_ready(pod) && !parallel => {
                // A pod that never gets ready would block its own repair.
                if pod.label(REVISION) != Some(revision) && !is_deleting(pod) {
                    delete(store, pod);
                }
                return;
            }
            Some(_) => {}
        }
    }
    if let Some((_, last)) = own.iter().rev().find(|(number, _)| **number >= wanted) {
        if !is_deleting(last) {
            delete(store, last);
        }
        return;
    }
    if set.spec()["updateStrategy"]["type"] == "OnDelete" || own.values().any(|pod| !is_ready(pod)) {
        return;
    }
    let first = set.spec()["updateStrategy"]["rollingUpdate"]["partition"].as_i64().unwrap_or(0);
    let stale = own.range(first.max(0)..).rev().find(|(_, pod)| pod.label(REVISION) != Some(revision));
    if let Some((_, pod)) = stale {
        delete(store, pod);
    }
}

fn make(store: &MemoryStore, maker: &dyn PodMaker, set: &Object, number: i64, revision: &str) {
    let name = format!("{}-{number}", set.name());
    let labels = [
        ("statefulset.kubernetes.io/pod-name", name.as_str()),
        ("apps.kubernetes.io/pod-index", &number.to_string()),
        (REVISION, revision),
    ];
    let mut pod = pod_from_template(set, &set.spec()["template"], &labels);
    if let Some(spec) = pod.body.get_mut("spec") {
        spec["hostname"] = name.clone().into();
        spec["subdomain"] = set.spec()["serviceName"].clone();
        claims(store, set, &name, spec);
    }
    pod.metadata.name = Some(name);
    maker.create(set, pod);
}

/// Gives the pod its own claims, which outlive it.
fn claims(store: &MemoryStore, set: &Object, pod: &str, spec: &mut Value) {
    for template in set.spec()["volumeClaimTemplates"].as_array().into_iter().flatten() {
        let Some(volume) = template["metadata"]["name"].as_str() else { continue };
        let claim = format!("{volume}-{pod}");
        let mut object = owned("v1", "PersistentVolumeClaim", set, string_map(&template["metadata"]["labels"]));
        object.metadata.owner_references = None;
        object.metadata.name = Some(claim.clone());
        object.body.insert("spec".into(), template["spec"].clone());
        object.body.insert("status".into(), json!({"phase": "Bound"}));
        // It is there already when the pod is made again.
        let _ = store.create(object);
        let volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
        let mut volumes: Vec<Value> = volumes.into_iter().filter(|v| v["name"] != volume).collect();
        volumes.push(json!({"name": volume, "persistentVolumeClaim": {"claimName": claim}}));
        spec["volumes"] = volumes.into();
    }
}

fn status(store: &MemoryStore, set: &Object, own: &BTreeMap<i64, Arc<Object>>, revision: &str) {
    let count = |test: &dyn Fn(&Object) -> bool| own.values().filter(|pod| test(pod)).count();
    let updated = count(&|pod| is_active(pod) && pod.label(REVISION) == Some(revision));
    let ready = count(&is_ready);
    let done = updated as i64 == spec_number(set, "replicas", 1);
    let old = set.body.get("status").and_then(|status| status["currentRevision"].as_str()).unwrap_or(revision);
    let current = if done { revision } else { old };
    let status = json!({
        "observedGeneration": set.metadata.generation,
        "replicas": count(&is_active), "readyReplicas": ready, "availableReplicas": ready,
        "updatedReplicas": updated, "currentReplicas": count(&|pod| pod.label(REVISION) == Some(current)),
        "currentRevision": current, "updateRevision": revision, "collisionCount": 0,
    });
    write_status(store, set, status);
}
