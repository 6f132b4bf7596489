//! The controllers of workloads and services. Each compares what the store holds with what should be, and makes one step;
//! all of them run again whenever the store has changed, until nothing changes any more.
//!
//! Level-triggered on purpose: no event can be missed, because none is looked at. A pass over a lab of hundreds of objects
//! costs about a millisecond.
//!
//! Reading order: [`objects`] (helpers), [`deployment`], [`replicaset`], [`statefulset`], [`daemonset`], [`cronjob`], [`job`],
//! [`endpoints`], [`mirroring`], [`balancers`], [`namespaces`],
//! [`scheduling`].

pub mod balancers;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod endpoints;
pub mod job;
pub mod mirroring;
pub mod namespaces;
pub mod objects;
pub mod replicaset;
pub mod scheduling;
pub mod statefulset;

use self::objects::uid;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use weft_k8s_api::Object;
use weft_store::MemoryStore;

/// Name of the node that every lab has.
pub const NODE: &str = "weft-lab";
/// Its region.
pub const REGION: &str = "lab";
/// Its zone.
pub const ZONE: &str = "lab-a";
/// Changes that come together are handled together.
const SETTLE: Duration = Duration::from_millis(3);
/// A pass without any change, for what depends on time alone (deadlines of Jobs).
const IDLE_PASS: Duration = Duration::from_secs(1);

/// Creates pods the way a user's request does: with defaults, hooks and webhooks.
pub trait PodMaker: Send + Sync {
    /// Asks for a pod of `owner`. It is there a moment later, or is refused: then `freed` tells when to ask again.
    fn create(&self, owner: &Object, pod: Object);

    /// What has been asked for and is not there yet. Read it before the pods: then a pod that comes meanwhile is counted
    /// twice, and never not at all.
    fn asked(&self) -> Asked;

    /// Tells when a request has come to its end.
    fn freed(&self) -> &Notify;
}

/// Pods asked for, and what was said of those that were refused, by the uid of their owner.
#[derive(Debug, Clone, Default)]
pub struct Asked(pub HashMap<String, (usize, Option<String>)>);

impl Asked {
    /// How many pods of `owner` are on their way.
    pub fn pods(&self, owner: &Object) -> usize {
        self.0.get(uid(owner)).map_or(0, |(count, _)| *count)
    }

    /// Why pods of `owner` have been refused for some time.
    pub fn refusal(&self, owner: &Object) -> Option<String> {
        self.0.get(uid(owner))?.1.clone()
    }
}

/// One controller.
pub trait Controller: Send {
    /// Makes one step towards what should be.
    fn reconcile(&mut self, store: &MemoryStore, maker: &dyn PodMaker);
}

/// What controllers are told of the lab.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Services (namespace, name) that ports of the machine lead to.
    pub published: Vec<(String, String)>,
    /// The API server's authority, PEM.
    pub root_ca: Option<String>,
}

/// All of them.
pub fn all(around: Surroundings) -> Vec<Box<dyn Controller>> {
    vec![
        Box::new(balancers::LoadBalancers { published: around.published }),
        Box::new(namespaces::Namespaces { root_ca: around.root_ca }),
        Box::new(scheduling::Scheduling),
        Box::new(deployment::Deployments),
        Box::new(replicaset::ReplicaSets),
        Box::new(statefulset::StatefulSets),
        Box::new(daemonset::DaemonSets),
        Box::new(cronjob::CronJobs),
        Box::new(job::Jobs),
        Box::new(endpoints::Endpoints),
        Box::new(mirroring::Mirroring),
    ]
}

/// Runs the controllers until the task is dropped.
pub async fn run(store: MemoryStore, maker: Arc<dyn PodMaker>, around: Surroundings) {
    let mut controllers = all(around);
    let mut changed = store.changed();
    loop {
        changed.mark_unchanged();
        controllers.iter_mut().for_each(|controller| controller.reconcile(&store, &*maker));
        let news = async {
            tokio::select! {
                changed = changed.changed() => changed.is_ok(),
                () = maker.freed().notified() => true,
            }
        };
        let _ = tokio::time::timeout(IDLE_PASS, news).await;
        tokio::time::sleep(SETTLE).await;
    }
}

#[cfg(test)]
mod tests;
