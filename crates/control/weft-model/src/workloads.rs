//! Workloads: pods and workload entries, with the identity, names and locality that the mesh gives them.

use crate::kubernetes::{Node, Pod};
use crate::parsed::{Parsed, reuse};
use crate::{Labels, Settings, Workload};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use weft_core::well_known::label;

/// All workloads, by name and by address.
#[derive(Debug, Clone, Default)]
pub(crate) struct Workloads {
    pub by_address: HashMap<IpAddr, Arc<Workload>>,
    /// By `namespace/name`.
    pub by_name: HashMap<String, Arc<Workload>>,
    /// Pods by namespace, in the order of age.
    pub pods: HashMap<String, Vec<Arc<Workload>>>,
}

/// Localities of nodes by name.
pub(crate) fn localities(nodes: &[Arc<Parsed<Node>>]) -> HashMap<&str, &str> {
    nodes.iter().map(|n| (n.meta.name.as_str(), n.spec.locality.as_str())).collect()
}

/// Builds them; a workload that is equal to one of `old` is that one.
pub(crate) fn build(
    pods: &[Arc<Parsed<Pod>>],
    entries: Vec<Workload>,
    nodes: &[Arc<Parsed<Node>>],
    settings: &Settings,
    old: &HashMap<String, Arc<Workload>>,
) -> Workloads {
    let localities = localities(nodes);
    let mut out = Workloads::default();
    for entry in entries {
        let workload = reuse(old.get(&key(&entry.namespace, &entry.name)), entry);
        out.add(&workload);
    }
    // Pods come after the entries: where both claim an address or a name, the pod is what runs there.
    for pod in pods.iter().filter(|p| !p.spec.finished && !p.spec.addresses.is_empty()) {
        let locality = localities.get(pod.spec.node.as_str()).copied().unwrap_or_default();
        let workload = from_pod(pod, locality, settings);
        let workload = reuse(old.get(&key(&workload.namespace, &workload.name)), workload);
        out.pods.entry(workload.namespace.clone()).or_default().push(workload.clone());
        if pod.spec.host_network {
            // The address is the node's: it says nothing about who is behind it.
            out.by_name.insert(key(&workload.namespace, &workload.name), workload);
        } else {
            out.add(&workload);
        }
    }
    out
}

impl Workloads {
    fn add(&mut self, workload: &Arc<Workload>) {
        for address in &workload.addresses {
            self.by_address.insert(*address, workload.clone());
        }
        self.by_name.insert(key(&workload.namespace, &workload.name), workload.clone());
    }
}

/// `namespace/name`.
pub(crate) fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn from_pod(pod: &Parsed<Pod>, node_locality: &str, settings: &Settings) -> Workload {
    let (meta, spec) = (&pod.meta, &pod.spec);
    let (owner_kind, workload_name) = owner(spec, &meta.name);
    let labels = meta.labels.clone();
    Workload {
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        addresses: spec.addresses.clone(),
        service_account: spec.service_account.clone(),
        identity: identity(settings, &meta.namespace, &spec.service_account),
        canonical_name: canonical_name(&labels, &workload_name),
        canonical_revision: canonical_revision(&labels),
        workload_name,
        owner_kind,
        in_mesh: tls_mode(&labels).unwrap_or(spec.has_proxy),
        node: spec.node.clone(),
        locality: labels.get(label::LOCALITY).map_or_else(|| node_locality.to_string(), |l| dotted_locality(l)),
        network: labels.get("topology.istio.io/network").cloned().unwrap_or_else(|| settings.network.clone()),
        ready: spec.ready,
        container_ports: spec.container_ports.clone(),
        annotations: meta.annotations.clone(),
        labels,
    }
}

/// Kind and name of what the pod belongs to: a ReplicaSet stands for its Deployment, a CronJob's Job for the CronJob.
fn owner(pod: &Pod, name: &str) -> (String, String) {
    let Some((kind, owner)) = &pod.owner else {
        return ("Pod".into(), name.into());
    };
    match kind.as_str() {
        "ReplicaSet" => {
            let stem = match pod.template_hash.as_str() {
                "" => owner.rsplit_once('-').map(|(stem, _)| stem),
                hash => owner.strip_suffix(hash).and_then(|stem| stem.strip_suffix('-')),
            };
            match stem {
                Some(stem) if !stem.is_empty() => ("Deployment".into(), stem.into()),
                _ => ("ReplicaSet".into(), owner.clone()),
            }
        }
        "Job" => match owner.rsplit_once('-') {
            // A CronJob names its Jobs by the minute: eight digits or more.
            Some((stem, digits)) if digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit()) => {
                ("CronJob".into(), stem.into())
            }
            _ => ("Job".into(), owner.clone()),
        },
        _ => (kind.clone(), owner.clone()),
    }
}

/// The SPIFFE id of a service account.
pub(crate) fn identity(settings: &Settings, namespace: &str, service_account: &str) -> String {
    format!("spiffe://{}/ns/{namespace}/sa/{service_account}", settings.trust_domain)
}

/// Name under which telemetry groups a workload.
pub(crate) fn canonical_name(labels: &Labels, workload: &str) -> String {
    let found = [label::CANONICAL_NAME, "app.kubernetes.io/name", "app"].iter().find_map(|l| labels.get(*l));
    found.map_or_else(|| workload.to_string(), Clone::clone)
}

/// Revision under which telemetry groups a workload.
pub(crate) fn canonical_revision(labels: &Labels) -> String {
    let found = [label::CANONICAL_REVISION, "app.kubernetes.io/version", "version"].iter().find_map(|l| labels.get(*l));
    found.map_or_else(|| "latest".to_string(), Clone::clone)
}

/// What `security.istio.io/tlsMode` says: whether the workload takes mutual TLS.
pub(crate) fn tls_mode(labels: &Labels) -> Option<bool> {
    labels.get(label::TLS_MODE).map(|mode| mode == "istio")
}

/// A locality label may be written with dots, as label values cannot hold slashes.
pub(crate) fn dotted_locality(text: &str) -> String {
    if text.contains('/') { text.to_string() } else { text.replace('.', "/") }
}
