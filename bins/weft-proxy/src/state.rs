//! Where the proxy stands: starting, live, draining. One small value that ports, drain and admin share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::watch;
use weft_runtime::Readiness;

/// Where the proxy stands.
#[derive(Debug, Clone)]
pub struct ProxyState {
    /// What is waited for.
    pub readiness: Readiness,
    /// When it started.
    pub started: Instant,
    draining: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    failed_by_hand: Arc<AtomicBool>,
}

/// A phase, in Envoy's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for identity, configuration or sockets.
    Initializing,
    /// Serving.
    Live,
    /// On the way out.
    Draining,
}

impl Phase {
    /// Envoy's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Initializing => "INITIALIZING",
            Phase::Live => "LIVE",
            Phase::Draining => "DRAINING",
        }
    }
}

impl Default for ProxyState {
    fn default() -> Self {
        Self {
            readiness: Readiness::default(),
            started: Instant::now(),
            draining: watch::Sender::new(false),
            stop: watch::Sender::new(false),
            failed_by_hand: Arc::default(),
        }
    }
}

impl ProxyState {
    /// The phase.
    pub fn phase(&self) -> Phase {
        match (*self.draining.borrow() || self.failed_by_hand.load(Ordering::Relaxed), self.readiness.is_ready()) {
            (true, _) => Phase::Draining,
            (false, true) => Phase::Live,
            (false, false) => Phase::Initializing,
        }
    }

    /// From now on the proxy is draining: readiness says no.
    pub fn start_draining(&self) {
        self.draining.send_replace(true);
    }

    /// Asks the process to stop.
    pub fn ask_to_stop(&self) {
        self.stop.send_replace(true);
    }

    /// Returns when the process was asked to stop.
    pub async fn stop_asked(&self) {
        // The sender is part of self, so the channel cannot close while this waits.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    /// `/healthcheck/fail` and `/healthcheck/ok`: readiness by hand.
    pub fn fail_by_hand(&self, failed: bool) {
        self.failed_by_hand.store(failed, Ordering::Relaxed);
    }

    /// Ready, or a sentence why not.
    pub fn ready(&self) -> Result<(), String> {
        match self.phase() {
            Phase::Live => Ok(()),
            Phase::Draining => Err("draining".to_owned()),
            Phase::Initializing => Err(format!("waiting for {}", self.readiness.reasons().join("; and for "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases() {
        let state = ProxyState::default();
        let block = state.readiness.block("an identity");
        assert_eq!((state.phase(), state.ready()), (Phase::Initializing, Err("waiting for an identity".to_owned())));
        drop(block);
        assert_eq!((state.phase(), state.ready()), (Phase::Live, Ok(())));
        state.fail_by_hand(true);
        assert_eq!(state.phase(), Phase::Draining);
        state.fail_by_hand(false);
        state.start_draining();
        assert_eq!(state.phase(), Phase::Draining);
        state.ask_to_stop();
        state.stop_asked().await;
    }
}
