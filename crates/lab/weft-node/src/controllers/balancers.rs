//! Services of type LoadBalancer: those that a port of the machine leads to have the machine's loopback as their address.

use super::objects::{list, write_status};
use super::{Controller, PodMaker};
use serde_json::json;
use weft_store::MemoryStore;

/// The controller.
pub struct LoadBalancers {
    /// Namespace and name of the Services that ports of the machine lead to.
    pub published: Vec<(String, String)>,
}

impl Controller for LoadBalancers {
    fn reconcile(&mut self, store: &MemoryStore, _: &dyn PodMaker) {
        for service in list(store, "", "Service") {
            let published = self.published.iter().any(|(n, s)| n == service.namespace() && s == service.name());
            if published && service.spec()["type"] == "LoadBalancer" {
                write_status(store, &service, json!({"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}]}}));
            }
        }
    }
}
