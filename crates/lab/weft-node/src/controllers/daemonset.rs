//! DaemonSets: one pod, because the lab is one node.

use super::objects::{
    delete, hash, is_active, is_controlled_by, is_deleting, is_ready, list, pod_from_template, write_status,
};
use super::{Controller, PodMaker};
use serde_json::json;
use weft_store::MemoryStore;

const REVISION: &str = "controller-revision-hash";

/// The controller.
pub struct DaemonSets;

impl Controller for DaemonSets {
    fn reconcile(&mut self, store: &MemoryStore, maker: &dyn PodMaker) {
        let asked = maker.asked();
        let pods = list(store, "", "Pod");
        for set in list(store, "apps", "DaemonSet") {
            if is_deleting(&set) {
                continue;
            }
            let revision = hash(&set.spec()["template"]);
            let own: Vec<_> = pods.iter().filter(|pod| is_controlled_by(pod, &set)).collect();
            let active: Vec<_> = own.iter().filter(|pod| is_active(pod)).collect();
            // The old pod must be gone first: the two might want the same port of the node.
            if own.is_empty() && asked.pods(&set) == 0 {
                let mut pod = pod_from_template(&set, &set.spec()["template"], &[(REVISION, &revision)]);
                pod.metadata.generate_name = Some(format!("{}-", set.name()));
                maker.create(&set, pod);
            }
            let on_delete = set.spec()["updateStrategy"]["type"] == "OnDelete";
            for pod in &own {
                let stale = pod.label(REVISION) != Some(&revision) && !on_delete;
                if !is_deleting(pod) && (stale || !is_active(pod)) {
                    delete(store, pod);
                }
            }
            let ready = active.iter().filter(|pod| is_ready(pod)).count();
            let updated = active.iter().filter(|pod| pod.label(REVISION) == Some(&revision)).count();
            let status = json!({
                "observedGeneration": set.metadata.generation,
                "desiredNumberScheduled": 1, "currentNumberScheduled": active.len(), "numberMisscheduled": 0,
                "numberReady": ready, "numberAvailable": ready, "updatedNumberScheduled": updated,
                "numberUnavailable": 1 - ready.min(1),
            });
            write_status(store, &set, status);
        }
    }
}
