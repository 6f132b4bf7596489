//! What every namespace has: an active phase, a `default` ServiceAccount, and the authority by which pods know the API server.
//! And what a removed Service leaves behind: its
//! Endpoints.

use super::objects::{is_deleting, list, now, write_status};
use super::{Controller, PodMaker};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};
use weft_k8s_api::Object;
use weft_store::{DeleteOptions, MemoryStore};

/// ConfigMap with the API server's authority, in every namespace; as on a cluster it is mounted beside the account's token.
pub const ROOT_CA: &str = "kube-root-ca.crt";
/// Its key, and the name of the file.
pub const ROOT_CA_KEY: &str = "ca.crt";

/// The controller.
#[derive(Default)]
pub struct Namespaces {
    /// The API server's authority, PEM; none is published without.
    pub root_ca: Option<String>,
}

impl Namespaces {
    /// Publishes the authority; one of an earlier lab is overwritten.
    fn publish(&self, store: &MemoryStore, namespace: &str) {
        let Some(root_ca) = &self.root_ca else { return };
        match store.find("", "ConfigMap", namespace, ROOT_CA) {
            Some(map) if map.body.get("data").is_some_and(|data| data[ROOT_CA_KEY] == root_ca.as_str()) => {}
            Some(map) => {
                let data = json!({ROOT_CA_KEY: root_ca});
                let _ = store.modify(&map.key(), |map| drop(map.body.insert("data".into(), data.clone())));
            }
            None => {
                let mut map = plain("ConfigMap", namespace, ROOT_CA);
                map.body.insert("data".into(), json!({ROOT_CA_KEY: root_ca}));
                let _ = store.create(map);
            }
        }
    }
}

impl Controller for Namespaces {
    fn reconcile(&mut self, store: &MemoryStore, _: &dyn PodMaker) {
        for namespace in list(store, "", "Namespace") {
            if is_deleting(&namespace) {
                continue;
            }
            if namespace.body.get("status").is_none() {
                write_status(store, &namespace, json!({"phase": "Active"}));
            }
            if store.find("", "ServiceAccount", namespace.name(), "default").is_none() {
                let _ = store.create(plain("ServiceAccount", namespace.name(), "default"));
            }
            self.publish(store, namespace.name());
        }
        for endpoints in list(store, "", "Endpoints") {
            let service = store.find("", "Service", endpoints.namespace(), endpoints.name());
            // Endpoints made by hand for a service yet to come have no pods in them.
            let of_pods = endpoints.body.get("subsets").is_some_and(|s| s.to_string().contains("targetRef"));
            if service.is_none() && of_pods {
                let _ = store.delete(&endpoints.key(), &DeleteOptions::default());
            }
        }
    }
}

fn plain(kind: &str, namespace: &str, name: &str) -> Object {
    let metadata = ObjectMeta { name: Some(name.into()), namespace: Some(namespace.into()), ..ObjectMeta::default() };
    Object { api_version: "v1".into(), kind: kind.into(), metadata, body: Map::new() }
}

/// The node that every lab has.
pub fn node() -> Object {
    let labels = [
        ("kubernetes.io/hostname", super::NODE),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
        ("topology.kubernetes.io/region", super::REGION),
        ("topology.kubernetes.io/zone", super::ZONE),
        ("node-role.kubernetes.io/control-plane", ""),
    ];
    let labels = labels.into_iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let metadata = ObjectMeta { name: Some(super::NODE.into()), labels: Some(labels), ..ObjectMeta::default() };
    let mut node = Object { api_version: "v1".into(), kind: "Node".into(), metadata, body: Map::new() };
    node.body.insert("spec".into(), json!({"podCIDR": "10.244.0.0/16"}));
    node.body.insert("status".into(), node_status(super::NODE));
    node
}

/// Status of a node: this machine, ready, under that name.
pub fn node_status(name: &str) -> Value {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut capacity = json!({"cpu": processors.to_string(), "pods": "250"});
    if let Some(memory) = memory() {
        capacity["memory"] = format!("{memory}Ki").into();
    }
    json!({
            "capacity": capacity, "allocatable": capacity,
            // The external one is as the machine sees it: node ports of the lab are ports of its loopback.
            "addresses": [{"type": "InternalIP", "address": crate::network::GATEWAY},
                          {"type": "ExternalIP", "address": "127.0.0.1"},
                          {"type": "Hostname", "address": name}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "LabReady", "message": "the lab runs",
                            "lastTransitionTime": now(), "lastHeartbeatTime": now()}],
            "nodeInfo": {"kubeletVersion": concat!("v1.32.0-weft.", env!("CARGO_PKG_VERSION")), "operatingSystem": "linux",
                         "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
                         "osImage": "Weft lab", "containerRuntimeVersion": "weft://0.1.0", "kernelVersion": kernel(),
                         "machineID": "", "systemUUID": "", "bootID": "", "kubeProxyVersion": ""},
    })
}

/// Memory of this machine in KiB.
fn memory() -> Option<u64> {
    let told = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = told.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_string()
}
