//! What every namespace has: an active phase and a `default` ServiceAccount. And what a removed Service leaves behind: its
//! Endpoints.

use super::objects::{is_deleting, list, now, write_status};
use super::{Controller, PodMaker};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, json};
use weft_k8s_api::Object;
use weft_store::{DeleteOptions, MemoryStore};

/// The controller.
pub struct Namespaces;

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

/// The lab's only node.
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
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let capacity = json!({"cpu": processors.to_string(), "pods": "250"});
    node.body.insert("spec".into(), json!({"podCIDR": "10.244.0.0/16"}));
    node.body.insert(
        "status".into(),
        json!({
            "capacity": capacity, "allocatable": capacity,
            "addresses": [{"type": "InternalIP", "address": crate::network::GATEWAY},
                          {"type": "Hostname", "address": super::NODE}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "LabReady", "message": "the lab runs",
                            "lastTransitionTime": now(), "lastHeartbeatTime": now()}],
            "nodeInfo": {"kubeletVersion": concat!("v1.32.0-weft.", env!("CARGO_PKG_VERSION")), "operatingSystem": "linux",
                         "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
                         "osImage": "Weft lab", "containerRuntimeVersion": "weft://0.1.0", "kernelVersion": kernel(),
                         "machineID": "", "systemUUID": "", "bootID": "", "kubeProxyVersion": ""},
        }),
    );
    node
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_string()
}
