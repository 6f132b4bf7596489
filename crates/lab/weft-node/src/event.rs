//! What the lab tells the `weft up` that started it: one JSON object a line, on the lab's standard output.

use serde::{Deserialize, Serialize};
use std::io::Write as _;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "event")]
pub enum Event {
    /// A step is done.
    Step {
        /// What now is, e.g. `the network is up`.
        text: String,
    },
    /// How the pods stand; told whenever it changes.
    Pods {
        /// All pods.
        pods: Vec<PodLine>,
    },
    /// Something did not work, and the lab goes on without it.
    Warning {
        /// What.
        text: String,
    },
    /// The lab cannot start.
    Failed {
        /// Why.
        text: String,
    },
}

/// One pod, as shown to the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLine {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Containers that are ready.
    pub ready: usize,
    /// All containers.
    pub containers: usize,
    /// Address, or empty.
    pub address: String,
    /// Phase, or the reason why a container waits.
    pub status: String,
    /// Why the pod is not ready, or empty.
    pub message: String,
}

impl PodLine {
    /// Whether every container is ready.
    pub fn is_ready(&self) -> bool {
        self.ready == self.containers || self.status == "Succeeded"
    }
}

impl Event {
    /// Tells it. When nobody listens any more the lab is about to end anyway.
    pub fn tell(&self) {
        if let Ok(line) = serde_json::to_string(self) {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    }
}
