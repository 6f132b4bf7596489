//! The node: takes pods over as they appear in the store, tells them when they are to go, and reaches into them for the API
//! server (logs, commands, ports).

use super::images::ImageTable;
use super::proxy::Engines;
use super::volumes::TokenIssuer;
use super::worker::Worker;
use crate::controllers::scheduling::node_of;
use crate::network::addresses::AddressPool;
use crate::network::links::Links;
use crate::outside::Outside;
use futures_util::StreamExt as _;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use weft_k8s_api::Object;
use weft_store::{EventType, MemoryStore, WatchQuery};

/// What all pods of the node share.
pub struct Node {
    /// The objects.
    pub store: MemoryStore,
    /// The network.
    pub links: Links,
    /// Pods' addresses.
    pub addresses: Mutex<AddressPool>,
    /// Addresses of hosts outside the cluster.
    pub outside_addresses: Mutex<AddressPool>,
    /// Their certificates.
    pub outside: Outside,
    /// Which program an image is.
    pub images: ImageTable,
    /// Which programs proxies can be.
    pub engines: Engines,
    /// Tokens of service accounts.
    pub tokens: Arc<dyn TokenIssuer>,
    /// The lab's tmpfs: volumes.
    pub run_folder: PathBuf,
    /// An empty folder on which containers' file trees are mounted, each in its own namespace.
    pub mount_point: PathBuf,
    /// Containers see the lab's `/proc` (where no new one can be mounted).
    pub keep_proc: bool,
    /// The pods, by uid.
    pub workers: Mutex<HashMap<String, Arc<Worker>>>,
}

impl Node {
    /// A pod that runs here.
    pub fn worker(&self, uid: &str) -> Option<Arc<Worker>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// Follows the store until the task is dropped.
    pub async fn run(self: Arc<Self>) {
        loop {
            // A watch that has fallen behind starts again from the present state; pods already here are not taken over twice.
            let Ok(mut events) = self.store.watch(WatchQuery::all("", "Pod")) else { continue };
            while let Some(Ok(event)) = events.next().await {
                match event.event {
                    EventType::Added | EventType::Modified => self.see(&event.object),
                    EventType::Deleted => self.gone(&event.object),
                    EventType::Bookmark => {}
                }
            }
            self.forget_missing();
        }
    }

    fn see(self: &Arc<Self>, pod: &Object) {
        if node_of(pod).is_empty() {
            return;
        }
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let leaving = pod.metadata.deletion_timestamp.is_some();
        let seconds = u64::try_from(pod.metadata.deletion_grace_period_seconds.unwrap_or(0)).unwrap_or(0);
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = workers.get(uid) {
            if leaving {
                worker.remove(seconds);
            }
            return;
        }
        match Worker::new(Arc::clone(self), pod) {
            Ok(worker) => {
                let worker = Arc::new(worker);
                if leaving {
                    worker.remove(0);
                }
                workers.insert(uid.into(), Arc::clone(&worker));
                let (node, uid) = (Arc::clone(self), uid.to_string());
                tokio::spawn(async move {
                    worker.run().await;
                    node.workers.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
                });
            }
            Err(error) => tracing::warn!(%error, "{} cannot be read", pod.key()),
        }
    }

    fn gone(&self, pod: &Object) {
        if let Some(worker) = self.worker(pod.metadata.uid.as_deref().unwrap_or_default()) {
            worker.remove(0);
        }
    }

    fn forget_missing(&self) {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        for (uid, worker) in workers.iter() {
            let stored = self.store.find("", "Pod", worker.namespace(), worker.name());
            if stored.is_none_or(|pod| pod.metadata.uid.as_deref() != Some(uid)) {
                worker.remove(0);
            }
        }
    }
}
