//! Who a proxy is, as far as its configuration depends on it.

use crate::generate::Own;
use crate::pb::core::Node;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use weft_core::node::{NodeId, NodeMetadata, NodeType};
use weft_model::{Labels, MeshSnapshot, Workload};

/// A proxy as the generator sees it.
#[derive(Debug, Clone)]
pub struct ProxyView {
    /// Type, address, pod and namespace.
    pub node: NodeId,
    /// What the proxy says about itself.
    pub metadata: NodeMetadata,
    /// Understands Weft's extension messages and takes virtual hosts by VHDS.
    pub is_weft: bool,
    /// The pod or workload entry at its address, once known.
    pub workload: Option<Arc<Workload>>,
    /// Labels of the workload; policies and gateways select by them.
    pub labels: Labels,
    /// `region/zone/subzone`; empty when unknown.
    pub locality: String,
    /// Network; empty for the default.
    pub network: String,
    /// Cluster of the node message: `<app>.<namespace>` by convention, the service name in traces.
    pub service_cluster: String,
    /// What was made for this proxy alone.
    pub(crate) own: Arc<Mutex<Own>>,
}

impl ProxyView {
    /// Reads the node message that a proxy sends.
    ///
    /// # Errors
    /// A sentence that says which part of the node is wrong.
    pub fn new(node: &Node) -> Result<Self, String> {
        let id = NodeId::parse(&node.id)?;
        let metadata = match &node.metadata {
            Some(fields) => read_metadata(fields)?,
            None => NodeMetadata::default(),
        };
        let locality =
            node.locality.as_ref().map_or_else(String::new, |l| join_locality(&l.region, &l.zone, &l.sub_zone));
        Ok(Self {
            is_weft: !metadata.weft.is_empty(),
            labels: metadata.labels.clone(),
            network: metadata.network.clone(),
            service_cluster: node.cluster.clone(),
            workload: None,
            locality,
            node: id,
            metadata,
            own: Arc::default(),
        })
    }

    /// The same proxy, with what `snapshot` knows of its workload. Labels and locality of the workload are the newer
    /// ones: a proxy sends its own once, when it connects.
    pub fn with_workload(&self, snapshot: &MeshSnapshot) -> Self {
        let mut view = self.clone();
        view.workload = snapshot.proxy_workload(&self.node.namespace, &self.node.pod, self.node.ip).cloned();
        if let Some(workload) = &view.workload {
            if !workload.labels.is_empty() {
                view.labels = (*workload.labels).clone();
            }
            if view.locality.is_empty() {
                view.locality.clone_from(&workload.locality);
            }
            if view.network.is_empty() {
                view.network.clone_from(&workload.network);
            }
        }
        view
    }

    /// Namespace of the workload.
    pub fn namespace(&self) -> &str {
        &self.node.namespace
    }

    /// True for gateways.
    pub fn is_gateway(&self) -> bool {
        self.node.node_type == NodeType::Router
    }

    /// True when the proxy answers DNS for its workload.
    pub fn dns_capture(&self) -> bool {
        self.metadata.dns_capture == "true"
    }

    /// It takes only what it asks for. A proxy without interception has a socket for every port, and so needs all of them.
    pub fn on_demand(&self) -> bool {
        self.is_weft && !self.is_gateway() && self.intercepts() && self.metadata.weft_on_demand == "true"
    }

    /// `REDIRECT` unless said otherwise: traffic reaches the proxy by redirection.
    pub fn intercepts(&self) -> bool {
        self.metadata.interception_mode != "NONE"
    }

    /// `TPROXY`: redirection keeps the client's address.
    pub fn transparent(&self) -> bool {
        self.metadata.interception_mode == "TPROXY"
    }

    /// Addresses of the workload, the main one first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut all = vec![self.node.ip];
        let listed = self.metadata.instance_ips.split(',').filter_map(|ip| ip.trim().parse().ok());
        let known = self.workload.iter().flat_map(|w| w.addresses.iter().copied());
        for ip in listed.chain(known) {
            if !all.contains(&ip) {
                all.push(ip);
            }
        }
        all
    }

    /// Whether there are addresses of both families.
    pub fn dual(&self) -> bool {
        self.addresses().iter().any(|ip| ip.is_ipv6() != self.node.ip.is_ipv6())
    }

    /// Node that the workload runs on.
    pub fn node_name(&self) -> &str {
        let known = self.workload.as_ref().map(|w| w.node.as_str()).filter(|node| !node.is_empty());
        known.unwrap_or(&self.metadata.node_name)
    }

    /// Address that stands for all of the node's.
    pub fn wildcard(&self) -> &'static str {
        if self.node.ip.is_ipv6() { "::" } else { "0.0.0.0" }
    }

    /// Loopback address of the node's family.
    pub fn loopback(&self) -> &'static str {
        if self.node.ip.is_ipv6() { "::1" } else { "127.0.0.1" }
    }

    /// Source address of connections from the proxy to its own workload: redirection leaves it alone.
    pub fn inbound_bind_address(&self) -> &'static str {
        if self.node.ip.is_ipv6() { "::6" } else { "127.0.0.6" }
    }

    /// The same of the other family, when there are addresses of both.
    pub fn other_inbound_bind_address(&self) -> Option<&'static str> {
        self.dual().then_some(if self.node.ip.is_ipv6() { "127.0.0.6" } else { "::6" })
    }

    /// Value of an annotation, from the workload or the proxy's own metadata.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        let known = self.workload.as_ref().and_then(|w| w.annotations.get(name));
        known.or_else(|| self.metadata.annotations.get(name)).map(String::as_str)
    }
}

/// `region/zone/subzone` without empty tails.
pub fn join_locality(region: &str, zone: &str, sub_zone: &str) -> String {
    format!("{region}/{zone}/{sub_zone}").trim_end_matches('/').to_string()
}

/// Reads the metadata keys that Weft knows. A key of the wrong shape is refused by name; keys that only other agents use
/// are never looked at.
fn read_metadata(fields: &weft_proto::Struct) -> Result<NodeMetadata, String> {
    let value = crate::pb::value::struct_to_json(fields);
    serde_json::from_value(value).map_err(|error| format!("node metadata: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::value;

    fn node(metadata: serde_json::Value) -> Node {
        Node {
            id: "sidecar~10.244.0.5~reviews-v1.default~default.svc.cluster.local".into(),
            metadata: Some(value::json_to_struct(&metadata)),
            ..Default::default()
        }
    }

    #[test]
    fn reads_what_it_knows() {
        let view = ProxyView::new(&node(serde_json::json!({
            "NAMESPACE": "default", "WEFT": "1", "LABELS": {"app": "reviews"}, "INSTANCE_IPS": "10.244.0.5,10.244.0.9",
            "PROXY_CONFIG": {"concurrency": 2}, "DNS_CAPTURE": "true",
        })))
        .unwrap();
        assert!(view.is_weft && view.dns_capture() && view.intercepts() && !view.is_gateway());
        assert_eq!(view.labels["app"], "reviews");
        assert_eq!(view.addresses().len(), 2);
        assert_eq!(view.namespace(), "default");
    }

    #[test]
    fn says_what_is_wrong() {
        let error = ProxyView::new(&node(serde_json::json!({"LABELS": "x"}))).unwrap_err();
        assert!(error.contains("node metadata"), "{error}");
        assert!(ProxyView::new(&Node::default()).is_err());
    }

    #[test]
    fn localities_have_no_empty_tail() {
        for (parts, want) in [(["r", "z", "s"], "r/z/s"), (["r", "", ""], "r"), (["", "", ""], "")] {
            assert_eq!(join_locality(parts[0], parts[1], parts[2]), want);
        }
    }
}
