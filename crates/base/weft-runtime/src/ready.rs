//! Readiness: ready when every block has been lifted. Each block has a reason, so that "not ready" can say why.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Shared view of a process's readiness.
#[derive(Debug, Clone)]
pub struct Readiness {
    blocks: Arc<Mutex<Blocks>>,
    ready: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Blocks {
    next: u64,
    reasons: BTreeMap<u64, String>,
}

/// Keeps the process unready until dropped.
#[derive(Debug)]
pub struct ReadyBlock {
    id: u64,
    owner: Readiness,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { blocks: Arc::default(), ready: watch::Sender::new(true) }
    }
}

impl Readiness {
    /// Blocks readiness; `reason` completes the sentence "waiting for …".
    pub fn block(&self, reason: impl Into<String>) -> ReadyBlock {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.next += 1;
        let id = blocks.next;
        blocks.reasons.insert(id, reason.into());
        self.ready.send_replace(false);
        ReadyBlock { id, owner: self.clone() }
    }

    /// True when nothing blocks.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// What is waited for.
    pub fn reasons(&self) -> Vec<String> {
        let blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.reasons.values().cloned().collect()
    }

    /// Returns when nothing blocks.
    pub async fn wait(&self) {
        // The sender is part of self, so the channel cannot close while this waits.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }
}

impl ReadyBlock {
    /// Changes what is waited for.
    pub fn set_reason(&self, reason: impl Into<String>) {
        let mut blocks = self.owner.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.reasons.insert(self.id, reason.into());
    }
}

impl Drop for ReadyBlock {
    fn drop(&mut self) {
        let mut blocks = self.owner.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.reasons.remove(&self.id);
        self.owner.ready.send_replace(blocks.reasons.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_the_last_block_is_lifted() {
        let ready = Readiness::default();
        let (a, b) = (ready.block("identity"), ready.block("configuration"));
        assert_eq!(ready.reasons(), ["identity", "configuration"]);
        drop(a);
        assert!(!ready.is_ready());
        drop(b);
        assert!(ready.is_ready());
    }
}
