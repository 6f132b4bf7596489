//! What is known of a pod while it runs, and how that reads as a Kubernetes pod status. Pure but for the clock.

use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};
use std::net::IpAddr;

/// What a container is in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next container starts.
    Init,
    /// Starts before the application and ends after it.
    Sidecar,
    /// The application.
    Main,
}

/// How a run of a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Exit code.
    pub code: i32,
    /// `Completed`, `Error`, `StartError`.
    pub reason: String,
    /// The last words, for failures.
    pub message: String,
    /// When the run began, RFC 3339.
    pub started: String,
    /// When it ended.
    pub finished: String,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// Not running, and why.
    Waiting {
        /// One word.
        reason: String,
        /// A sentence.
        message: String,
    },
    /// Running since then.
    Running {
        /// RFC 3339.
        since: String,
    },
    /// Ended, and not waiting for a restart.
    Terminated(Ended),
}

/// One container.
#[derive(Debug, Clone)]
pub struct ContainerState {
    /// Its spec.
    pub spec: Container,
    /// What it is in the pod.
    pub role: Role,
    /// Listed under `initContainers`.
    pub listed_as_init: bool,
    /// Where it is in its life.
    pub life: Life,
    /// The run before this one.
    pub last: Option<Ended>,
    /// Restarts so far.
    pub restarts: u32,
    /// Readiness probe succeeds (or there is none and it runs).
    pub ready: bool,
    /// Startup probe has succeeded (or there is none and it runs).
    pub started: bool,
    /// What the last failed probe said.
    pub probe_failure: Option<String>,
}

/// A pod.
#[derive(Debug, Clone)]
pub struct PodState {
    /// Addresses, once it has them, the one of IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// When the node took it over, RFC 3339.
    pub started: String,
    /// Its containers: init containers first, each list in the spec's order.
    pub containers: Vec<ContainerState>,
    /// All init containers are through and the sidecars have started.
    pub initialized: bool,
    /// The pod has failed as a whole: reason and message.
    pub failed: Option<(String, String)>,
    /// No container of the application will ever start again.
    pub finished: bool,
}

/// Name of the proxy's container; it is a sidecar wherever the spec lists it.
pub const PROXY_CONTAINER: &str = "istio-proxy";
/// Name of the init container that sets up redirection; the node does its work.
pub const CAPTURE_CONTAINER: &str = "istio-init";

impl PodState {
    /// The state of a pod that has just been taken over.
    pub fn new(pod: &Pod) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let inits = spec.init_containers.unwrap_or_default();
        let waiting = if inits.is_empty() { "ContainerCreating" } else { "PodInitializing" };
        let alone = spec.containers.len() == 1;
        let mut containers = Vec::new();
        for container in inits {
            let role = if container.restart_policy.as_deref() == Some("Always") { Role::Sidecar } else { Role::Init };
            containers.push(ContainerState::new(container, role, true, waiting));
        }
        for container in spec.containers {
            let is_proxy = container.name == PROXY_CONTAINER && !alone;
            let role = if is_proxy { Role::Sidecar } else { Role::Main };
            containers.push(ContainerState::new(container, role, false, waiting));
        }
        Self {
            addresses: Vec::new(),
            started: crate::controllers::objects::now(),
            containers,
            initialized: false,
            failed: None,
            finished: false,
        }
    }

    /// A container by name.
    pub fn container(&mut self, name: &str) -> Option<&mut ContainerState> {
        self.containers.iter_mut().find(|container| container.spec.name == name)
    }

    fn phase(&self) -> &'static str {
        let mains: Vec<_> = self.containers.iter().filter(|c| c.role == Role::Main).collect();
        let ended_badly = |c: &&ContainerState| matches!(&c.life, Life::Terminated(ended) if ended.code != 0);
        if self.failed.is_some() {
            return "Failed";
        }
        if self.finished {
            return if mains.iter().any(ended_badly) { "Failed" } else { "Succeeded" };
        }
        let has_run = |c: &&ContainerState| !matches!(c.life, Life::Waiting { .. }) || c.last.is_some();
        if self.initialized && mains.iter().any(has_run) { "Running" } else { "Pending" }
    }

    /// The pod's `status`. `old` is the earlier one: times of conditions that did not change are kept.
    pub fn status(&self, old: &Value) -> Value {
        let phase = self.phase();
        let finished = matches!(phase, "Succeeded" | "Failed");
        let unready: Vec<&str> =
            self.containers.iter().filter(|c| c.role != Role::Init && !c.ready).map(|c| c.spec.name.as_str()).collect();
        let all_ready = unready.is_empty() && self.initialized && !finished;
        let why = if finished { "PodCompleted" } else { "ContainersNotReady" };
        let message = format!("containers with unready status: [{}]", unready.join(" "));
        let condition = |kind: &str, holds: bool, reason: &str, message: &str| {
            let status = if holds { "True" } else { "False" };
            let before = old["conditions"].as_array().into_iter().flatten();
            let before = before.into_iter().find(|c| c["type"] == kind && c["status"] == status);
            let since =
                before.map_or_else(|| crate::controllers::objects::now().into(), |c| c["lastTransitionTime"].clone());
            let mut condition =
                json!({"type": kind, "status": status, "lastTransitionTime": since, "lastProbeTime": null});
            if !holds && !reason.is_empty() {
                condition["reason"] = reason.into();
                condition["message"] = message.into();
            }
            condition
        };
        let statuses = |init: bool| -> Vec<Value> {
            self.containers.iter().filter(|c| c.listed_as_init == init).map(ContainerState::status).collect()
        };
        let host_ips = crate::network::all(crate::network::GATEWAY, self.addresses.len() > 1);
        let host_ips: Vec<Value> = host_ips.map(|address| json!({"ip": address})).collect();
        let mut status = json!({
            "phase": phase,
            "conditions": [
                condition("PodReadyToStartContainers", !self.addresses.is_empty() && !finished, "", ""),
                condition("Initialized", self.initialized, "ContainersNotInitialized", "containers with incomplete status"),
                condition("Ready", all_ready, why, &message),
                condition("ContainersReady", all_ready, why, &message),
                condition("PodScheduled", true, "", ""),
            ],
            "hostIP": crate::network::GATEWAY,
            "hostIPs": host_ips,
            "startTime": self.started,
            "qosClass": "BestEffort",
            "containerStatuses": statuses(false),
        });
        let inits = statuses(true);
        if !inits.is_empty() {
            status["initContainerStatuses"] = inits.into();
        }
        if let Some(address) = self.addresses.first() {
            let all: Vec<Value> = self.addresses.iter().map(|address| json!({"ip": address})).collect();
            status["podIP"] = address.to_string().into();
            status["podIPs"] = all.into();
        }
        if let Some((reason, message)) = &self.failed {
            status["reason"] = reason.as_str().into();
            status["message"] = message.as_str().into();
        }
        status
    }
}

impl ContainerState {
    fn new(spec: Container, role: Role, listed_as_init: bool, waiting: &str) -> Self {
        let life = Life::Waiting { reason: waiting.into(), message: String::new() };
        let (last, probe_failure) = (None, None);
        Self { spec, role, listed_as_init, life, last, restarts: 0, ready: false, started: false, probe_failure }
    }

    fn status(&self) -> Value {
        let image = self.spec.image.as_deref().unwrap_or_default();
        // An init container counts as ready once it has done its work.
        let done = self.role == Role::Init && matches!(&self.life, Life::Terminated(ended) if ended.code == 0);
        json!({
            "name": self.spec.name, "image": image, "imageID": image,
            "containerID": format!("weft://{}-{}", self.spec.name, self.restarts),
            "ready": self.ready || done, "started": self.started, "restartCount": self.restarts,
            "state": self.life.status(),
            "lastState": self.last.as_ref().map_or_else(|| json!({}), |ended| json!({"terminated": ended.status()})),
        })
    }
}

impl Life {
    fn status(&self) -> Value {
        match self {
            Self::Waiting { reason, message } if message.is_empty() => json!({"waiting": {"reason": reason}}),
            Self::Waiting { reason, message } => json!({"waiting": {"reason": reason, "message": message}}),
            Self::Running { since } => json!({"running": {"startedAt": since}}),
            Self::Terminated(ended) => json!({"terminated": ended.status()}),
        }
    }
}

impl Ended {
    fn status(&self) -> Value {
        let mut status = json!({"exitCode": self.code, "reason": self.reason, "startedAt": self.started, "finishedAt": self.finished});
        if !self.message.is_empty() {
            status["message"] = self.message.as_str().into();
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> PodState {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a", "image": "x"}, {"name": "istio-proxy"}]}});
        PodState::new(&serde_json::from_value(pod).unwrap())
    }

    fn ended(code: i32) -> Life {
        let text = String::new;
        Life::Terminated(Ended { code, reason: text(), message: text(), started: text(), finished: text() })
    }

    #[test]
    fn phases() {
        let running = Life::Running { since: "2026-01-01T00:00:00Z".into() };
        let mut pod = state();
        assert_eq!(pod.containers[2].role, Role::Sidecar, "the proxy is a sidecar wherever it is listed");
        assert_eq!(pod.status(&Value::Null)["phase"], "Pending");
        pod.initialized = true;
        for (life, finished, expected) in [
            (running.clone(), false, "Running"),
            (ended(0), false, "Running"),
            (ended(0), true, "Succeeded"),
            (ended(3), true, "Failed"),
        ] {
            pod.containers[1].life = life;
            pod.finished = finished;
            // The sidecar still runs: it does not keep the pod from being finished.
            pod.containers[2].life = running.clone();
            assert_eq!(pod.status(&Value::Null)["phase"], expected);
        }
    }

    #[test]
    fn conditions_keep_their_times() {
        let mut pod = state();
        pod.initialized = true;
        let ready = |status: &Value| {
            status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap().clone()
        };
        let first =
            pod.status(&json!({"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "then"}]}));
        assert_eq!(ready(&first)["lastTransitionTime"], "then");
        assert!(ready(&first)["message"].as_str().unwrap().contains("[a istio-proxy]"));
        pod.containers[1].ready = true;
        pod.containers[2].ready = true;
        let second = ready(&pod.status(&first));
        assert_eq!(second["status"], "True");
        assert_ne!(second["lastTransitionTime"], "then");
    }
}
