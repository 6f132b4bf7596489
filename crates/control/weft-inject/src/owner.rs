//! The workload that a pod belongs to: the Deployment behind a ReplicaSet, the CronJob behind a Job, else the controller
//! itself, else the pod.

use crate::pod::Pod;
use serde_json::Value;

/// A workload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owner {
    /// `apps/v1` …; empty when it is not known.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name; empty when it is not known.
    pub name: String,
    /// Namespace; empty when it is not known.
    pub namespace: String,
}

impl Owner {
    /// As the pod's owner references say. Only pods with a generated name are asked for them: one that was named by hand
    /// stands for itself.
    pub fn of_pod(pod: &Value, namespace: &str) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let itself = Self {
            api_version: "v1".into(),
            kind: "Pod".into(),
            name: text(&pod["metadata"]["name"]),
            namespace: namespace.into(),
        };
        let references = pod["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        let controller = references.into_iter().find(|reference| reference["controller"] == true);
        let generated = pod["metadata"]["generateName"].as_str().is_some_and(|prefix| !prefix.is_empty());
        let Some(controller) = controller.filter(|_| generated) else { return itself };
        let found = Self {
            api_version: text(&controller["apiVersion"]),
            kind: text(&controller["kind"]),
            name: text(&controller["name"]),
            namespace: namespace.into(),
        };
        found.behind(pod)
    }

    /// What stands behind a controller that another one made.
    fn behind(self, pod: &Value) -> Self {
        let named = |name: String, kind: &str, api_version: &str| Self {
            api_version: api_version.into(),
            kind: kind.into(),
            name,
            namespace: self.namespace.clone(),
        };
        let without_hash = |label: &str| {
            let hash = pod.label(label).filter(|hash| !hash.is_empty())?;
            self.name.strip_suffix(&format!("-{hash}")).map(str::to_string)
        };
        match self.kind.as_str() {
            "ReplicaSet" => match (without_hash("pod-template-hash"), without_hash("rollouts-pod-template-hash")) {
                (Some(name), _) => named(name, "Deployment", &self.api_version),
                (None, Some(name)) => named(name, "Rollout", "v1alpha1"),
                (None, None) => self,
            },
            "ReplicationController" => match pod.label("deploymentconfig") {
                Some(name) => named(name.to_string(), "DeploymentConfig", &self.api_version),
                None => self,
            },
            // A CronJob names its Jobs by their time.
            "Job" => match self.name.rsplit_once('-') {
                Some((name, time)) if (8..=10).contains(&time.len()) && time.bytes().all(|b| b.is_ascii_digit()) => {
                    named(name.to_string(), "CronJob", "batch/v1")
                }
                _ => self,
            },
            _ => self,
        }
    }

    /// The owner as the proxy tells it, in a form that names API and object.
    pub(crate) fn url(&self) -> Option<String> {
        if self.api_version.is_empty() || self.name.is_empty() {
            return None;
        }
        let namespace = if self.namespace.is_empty() { "default" } else { &self.namespace };
        let (api, kind, name) = (&self.api_version, self.kind.to_lowercase(), &self.name);
        Some(format!("kubernetes://apis/{api}/namespaces/{namespace}/{kind}s/{name}"))
    }
}
