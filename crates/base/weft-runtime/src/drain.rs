//! Drain: one trigger, many watchers; a drain is complete when every guard is dropped.

use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// The owner's side: starts the drain and waits for its end.
#[derive(Debug)]
pub struct Drain {
    start: watch::Sender<bool>,
    done: mpsc::Receiver<()>,
    guard: mpsc::Sender<()>,
}

/// The worker's side: learns of the drain.
#[derive(Debug, Clone)]
pub struct DrainWatch {
    started: watch::Receiver<bool>,
    guard: mpsc::Sender<()>,
}

/// Holds the drain open: one per piece of work that must be finished.
#[derive(Debug, Clone)]
pub struct DrainGuard {
    _guard: mpsc::Sender<()>,
}

impl Default for Drain {
    fn default() -> Self {
        let (guard, done) = mpsc::channel(1);
        Self { start: watch::Sender::new(false), done, guard }
    }
}

impl Drain {
    /// A watcher for a worker.
    pub fn watch(&self) -> DrainWatch {
        DrainWatch { started: self.start.subscribe(), guard: self.guard.clone() }
    }

    /// Starts the drain and waits until all guards and watchers are dropped, at most `limit`. True when it ended in time.
    pub async fn run(mut self, limit: Duration) -> bool {
        self.start.send_replace(true);
        drop(self.guard);
        tokio::time::timeout(limit, self.done.recv()).await.is_ok()
    }
}

impl DrainWatch {
    /// True once the drain has started.
    pub fn is_draining(&self) -> bool {
        *self.started.borrow()
    }

    /// Returns when the drain starts; never, when its owner went away without starting it.
    pub async fn started(&mut self) {
        if self.started.wait_for(|started| *started).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Keeps the drain open until the guard is dropped.
    pub fn guard(&self) -> DrainGuard {
        DrainGuard { _guard: self.guard.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_guards() {
        let drain = Drain::default();
        let mut watch = drain.watch();
        let worker = tokio::spawn(async move {
            let guard = watch.guard();
            watch.started().await;
            drop(watch);
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(guard);
        });
        assert!(drain.run(Duration::from_secs(10)).await);
        worker.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn gives_up_at_the_limit() {
        let drain = Drain::default();
        let _guard = drain.watch().guard();
        assert!(!drain.run(Duration::from_secs(1)).await);
    }
}
