//! The controllers of workloads and services. Each compares what the store holds with what should be, and makes one step;
//! all of them run again whenever the store has changed, until nothing changes any more.
//!
//! Level-triggered on purpose: no event can be missed, because none is looked at. A pass over a lab of hundreds of objects
//! costs about a millisecond.
//!
//! Reading order: [`objects`] (helpers), [`deployment`], [`replicaset`], [`statefulset`], [`daemonset`], [`job`],
//! [`endpoints`], [`mirroring`], [`balancers`], [`namespaces`].

pub mod balancers;
pub mod daemonset;
pub mod deployment;
pub mod endpoints;
pub mod job;
pub mod mirroring;
pub mod namespaces;
pub mod objects;
pub mod replicaset;
pub mod statefulset;

use std::sync::Arc;
use std::time::Duration;
use weft_k8s_api::Object;
use weft_store::{MemoryStore, StoreError};

/// Name of the lab's node.
pub const NODE: &str = "weft-lab";
/// Region of the lab's node.
pub const REGION: &str = "lab";
/// Zone of the lab's node.
pub const ZONE: &str = "lab-a";
/// Changes that come together are handled together.
const SETTLE: Duration = Duration::from_millis(3);
/// A pass without any change, for what depends on time alone (deadlines of Jobs).
const IDLE_PASS: Duration = Duration::from_secs(1);

/// Creates pods the way a user's request does: with injection and defaults.
pub trait PodMaker: Send + Sync {
    /// Creates a pod.
    ///
    /// # Errors
    /// Those of the store.
    fn create(&self, pod: Object) -> Result<Arc<Object>, Box<StoreError>>;
}

/// One controller.
pub trait Controller: Send {
    /// Makes one step towards what should be.
    fn reconcile(&mut self, store: &MemoryStore, maker: &dyn PodMaker);
}

/// All of them. `published` are the Services (namespace, name) that ports of the machine lead to.
pub fn all(published: Vec<(String, String)>) -> Vec<Box<dyn Controller>> {
    vec![
        Box::new(balancers::LoadBalancers { published }),
        Box::new(namespaces::Namespaces),
        Box::new(deployment::Deployments),
        Box::new(replicaset::ReplicaSets),
        Box::new(statefulset::StatefulSets),
        Box::new(daemonset::DaemonSets),
        Box::new(job::Jobs),
        Box::new(endpoints::Endpoints),
        Box::new(mirroring::Mirroring),
    ]
}

/// Runs the controllers until the task is dropped.
pub async fn run(store: MemoryStore, maker: Arc<dyn PodMaker>, published: Vec<(String, String)>) {
    let mut controllers = all(published);
    let mut changed = store.changed();
    loop {
        changed.mark_unchanged();
        controllers.iter_mut().for_each(|controller| controller.reconcile(&store, &*maker));
        let _ = tokio::time::timeout(IDLE_PASS, changed.changed()).await;
        tokio::time::sleep(SETTLE).await;
    }
}

#[cfg(test)]
mod tests;
