//! Who a proxy says it is: the node id and the metadata keys of the xDS `Node` message, in Istio's spelling.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What kind of proxy a node is; the first part of its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeType {
    /// Beside one workload.
    Sidecar,
    /// A gateway.
    Router,
}

impl NodeType {
    /// `sidecar` or `router`.
    pub fn as_str(self) -> &'static str {
        match self {
            NodeType::Sidecar => "sidecar",
            NodeType::Router => "router",
        }
    }
}

/// `<type>~<ip>~<pod>.<namespace>~<namespace>.svc.<domain>`, the id of a proxy node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeId {
    /// Sidecar or gateway.
    pub node_type: NodeType,
    /// First address of the workload.
    pub ip: IpAddr,
    /// Pod name.
    pub pod: String,
    /// Pod namespace.
    pub namespace: String,
    /// DNS suffix of the namespace, e.g. `default.svc.cluster.local`.
    pub dns_domain: String,
}

impl NodeId {
    /// Reads a node id.
    ///
    /// # Errors
    /// A sentence that says which part is wrong.
    pub fn parse(id: &str) -> Result<Self, String> {
        let parts: Vec<&str> = id.split('~').collect();
        let [kind, ip, name, domain] = parts.as_slice() else {
            return Err(format!("node id {id:?} must have the form TYPE~IP~POD.NAMESPACE~DNS-DOMAIN"));
        };
        let node_type = match *kind {
            "sidecar" => NodeType::Sidecar,
            "router" => NodeType::Router,
            other => return Err(format!("node id {id:?}: type {other:?} must be sidecar or router")),
        };
        let ip = ip.parse().map_err(|_| format!("node id {id:?}: {ip:?} is not an IP address"))?;
        let (pod, namespace) =
            name.rsplit_once('.').ok_or_else(|| format!("node id {id:?}: {name:?} must be POD.NAMESPACE"))?;
        Ok(Self { node_type, ip, pod: pod.into(), namespace: namespace.into(), dns_domain: (*domain).into() })
    }
}

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}~{}~{}.{}~{}", self.node_type.as_str(), self.ip, self.pod, self.namespace, self.dns_domain)
    }
}

/// Metadata of a proxy node. Unknown keys of other agents are ignored.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE", default)]
pub struct NodeMetadata {
    /// Pod name.
    pub name: String,
    /// Namespace of the workload.
    pub namespace: String,
    /// Labels of the workload.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the workload that concern the proxy.
    pub annotations: BTreeMap<String, String>,
    /// Service account.
    pub service_account: String,
    /// Workload (Deployment …) name.
    pub workload_name: String,
    /// URL of the owning object, `kubernetes://apis/apps/v1/namespaces/…`.
    pub owner: String,
    /// Cluster the node is in.
    pub cluster_id: String,
    /// Network the node is in.
    pub network: String,
    /// Mesh id, for telemetry.
    pub mesh_id: String,
    /// Addresses, comma separated.
    pub instance_ips: String,
    /// `REDIRECT`, `TPROXY` or `NONE`.
    pub interception_mode: String,
    /// Version of the proxy.
    pub istio_version: String,
    /// Node the pod runs on.
    pub node_name: String,
    /// `"true"` when DNS queries are captured.
    pub dns_capture: String,
    /// Ports of the application's containers, JSON.
    pub app_containers: String,
    /// WorkloadGroup that the workload registers itself with.
    pub auto_register_group: String,
    /// Set by weft-proxy alone: the version of its extension messages (VHDS by wildcard, telemetry). Empty = plain Envoy.
    pub weft: String,
    /// `"true"` when the proxy takes only the configuration that it asks for (`weft.v1.Demand`).
    pub weft_on_demand: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_id_round_trip() {
        let id = "sidecar~10.244.0.5~reviews-v1-abc.default~default.svc.cluster.local";
        let parsed = NodeId::parse(id).unwrap();
        assert_eq!((parsed.pod.as_str(), parsed.namespace.as_str()), ("reviews-v1-abc", "default"));
        assert_eq!(parsed.to_string(), id);
        for bad in ["", "x~1.1.1.1~a.b~c", "sidecar~1.1.1~a.b~c", "sidecar~1.1.1.1~ab~c"] {
            assert!(NodeId::parse(bad).is_err(), "{bad}");
        }
    }
}
