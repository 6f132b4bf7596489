//! ReplicaSets: as many pods as asked for.

use super::objects::{
    condition, delete, is_active, is_controlled_by, is_deleting, is_ready, list, pod_from_template, spec_number,
    without_zeros, write_status,
};
use super::{Asked, Controller, PodMaker};
use serde_json::json;
use std::sync::Arc;
use weft_k8s_api::Object;
use weft_store::MemoryStore;

/// Pods created for one ReplicaSet in one pass.
const BURST: usize = 50;

/// Condition of a ReplicaSet, and of its Deployment, whose pods are refused.
pub(super) const REPLICA_FAILURE: &str = "ReplicaFailure";

/// The controller.
pub struct ReplicaSets;

impl Controller for ReplicaSets {
    fn reconcile(&mut self, store: &MemoryStore, maker: &dyn PodMaker) {
        let asked = maker.asked();
        let pods = list(store, "", "Pod");
        for set in list(store, "apps", "ReplicaSet") {
            if is_deleting(&set) {
                continue;
            }
            let own: Vec<_> =
                pods.iter().filter(|pod| is_controlled_by(pod, &set) && is_active(pod)).cloned().collect();
            scale(store, maker, &set, &own, asked.pods(&set));
            status(store, &set, &own, &asked);
        }
    }
}

fn scale(store: &MemoryStore, maker: &dyn PodMaker, set: &Object, own: &[Arc<Object>], asked: usize) {
    let wanted = usize::try_from(spec_number(set, "replicas", 1)).unwrap_or(0);
    for _ in own.len() + asked..wanted.min(own.len() + BURST) {
        let mut pod = pod_from_template(set, &set.spec()["template"], &[]);
        pod.metadata.generate_name = Some(format!("{}-", set.name()));
        maker.create(set, pod);
    }
    let surplus = own.len().saturating_sub(wanted);
    let mut doomed = own.to_vec();
    // First those that serve nobody, then the youngest: the pods that have been relied on longest stay.
    doomed.sort_by_key(|pod| (is_ready(pod), -pod.created()));
    doomed.iter().take(surplus).for_each(|pod| delete(store, pod));
}

fn status(store: &MemoryStore, set: &Object, own: &[Arc<Object>], asked: &Asked) {
    let ready = own.iter().filter(|pod| is_ready(pod)).count();
    let status = json!({"replicas": own.len(), "fullyLabeledReplicas": own.len(), "readyReplicas": ready,
                        "availableReplicas": ready, "observedGeneration": set.metadata.generation});
    let mut status = without_zeros(status);
    status["replicas"] = own.len().into();
    if let Some(why) = asked.refusal(set) {
        status["conditions"] = json!([condition(set, REPLICA_FAILURE, true, "FailedCreate", &why)]);
    }
    write_status(store, set, status);
}
