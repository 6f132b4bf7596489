//! Clusters towards the workload itself: `inbound|<port>||` for each port that a service leads to.

use super::{Draft, fixed, pool, protocol, service_facts};
use crate::pb::cluster::cluster::{DiscoveryType, LbPolicy};
use crate::pb::endpoint::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint};
use crate::pb::{address, core, value};
use crate::proxy::ProxyView;
use crate::resource::{Resource, Resources, by_name};
use crate::scope::View;
use crate::traffic::{self, Effective};
use std::net::SocketAddr;
use std::sync::Arc;
use weft_core::names::ClusterName;
use weft_k8s_api::istio::InboundTrafficPolicyMode;
use weft_model::{MeshSnapshot, Service};

/// A port of the workload, and how traffic that comes in for it goes on.
#[derive(Debug, Clone)]
pub(crate) struct InboundPort {
    /// Port that is dialled at the workload's address.
    pub port: u16,
    /// What is spoken.
    pub protocol: weft_model::Protocol,
    /// Services that lead here, oldest first, each with its own port number.
    pub services: Vec<(Arc<Service>, u16)>,
    /// Where it goes instead of the address dialled: `defaultEndpoint` of a Sidecar's ingress listener.
    pub endpoint: Option<InboundEndpoint>,
    /// TLS that a Sidecar's ingress listener opens itself.
    pub tls: Option<weft_k8s_api::istio::ServerTlsSettings>,
    /// Limits that the Sidecar sets.
    pub pool: Option<weft_k8s_api::istio::ConnectionPoolSettings>,
    /// Address that an ingress listener with its own socket binds.
    pub bind: Option<String>,
    /// Where the port was declared.
    pub origin: weft_core::Provenance,
}

/// Where a Sidecar sends inbound traffic on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum InboundEndpoint {
    /// Address and port.
    Tcp(SocketAddr),
    /// Unix domain socket.
    Unix(String),
}

impl InboundPort {
    /// Name of the cluster, and of the inline route that leads to it.
    pub fn cluster(&self) -> String {
        ClusterName::inbound(self.port).to_string()
    }

    /// Host of the oldest service, for names in traces and statistics.
    pub fn host(&self) -> &str {
        self.services.first().map_or("", |(service, _)| &service.host)
    }

    /// Port of the oldest service.
    pub fn service_port(&self) -> u16 {
        self.services.first().map_or(self.port, |(_, port)| *port)
    }
}

/// All of the workload's clusters, and the one for ports that no service leads to.
pub(crate) fn clusters(view: View<'_>, proxy: &ProxyView, ports: &[InboundPort]) -> Resources {
    let mut clusters: Vec<_> = ports.iter().map(|port| cluster(view, proxy, port)).collect();
    if proxy.intercepts() {
        clusters.push(fixed::inbound_passthrough(view.mesh(), proxy, view.scope.key.headers));
    }
    by_name(clusters.iter().map(|c| Resource::new(c.name.as_str(), c)))
}

fn cluster(view: View<'_>, proxy: &ProxyView, port: &InboundPort) -> crate::pb::cluster::Cluster {
    let mesh = view.mesh();
    let mut draft = Draft::new(port.cluster());
    let localhost = mesh.inbound_traffic_policy.as_ref().map(|p| p.mode) == Some(InboundTrafficPolicyMode::Localhost);
    let fixed_address = match &port.endpoint {
        Some(InboundEndpoint::Tcp(at)) => Some(address::socket(&at.ip().to_string(), at.port())),
        Some(InboundEndpoint::Unix(path)) => Some(address::pipe(path)),
        None if localhost => Some(address::socket(proxy.loopback(), port.port)),
        None => None,
    };
    match fixed_address {
        Some(at) => {
            draft.set_type(DiscoveryType::Static);
            draft.cluster.load_assignment = Some(one_endpoint(&draft.cluster.name, at));
        }
        None => {
            // The address dialled is the workload's own: a source that is not captured keeps this from looping.
            draft.set_type(DiscoveryType::OriginalDst);
            draft.cluster.lb_policy = LbPolicy::ClusterProvided as i32;
            draft.cluster.upstream_bind_config = Some(fixed::bind_for_workload(proxy));
        }
    }
    protocol::set_for_port(&mut draft, port.protocol);
    protocol::keep_case(&mut draft, port.protocol, view.scope.key.headers);
    pool::apply(mesh, &mut draft, &limits(view.snapshot, proxy, port));
    draft.cluster.metadata = Some(metadata(port));
    draft.finish()
}

/// Limits of connections to the workload: those of its Sidecar, else those that clients of its service have by the destination
/// rule. A rule with a workload selector is for clients alone.
fn limits(snapshot: &MeshSnapshot, proxy: &ProxyView, port: &InboundPort) -> Effective {
    let service = port.services.first().map(|(service, _)| service);
    let rule = service.and_then(|s| snapshot.destination_rule_for(&s.host, proxy.namespace(), Some(s)));
    let policy = traffic::for_port(&snapshot.mesh, rule, port.service_port());
    Effective {
        connection_pool: port.pool.clone().or(policy.connection_pool),
        retry_budget: policy.retry_budget,
        ..Effective::default()
    }
}

fn one_endpoint(cluster: &str, at: core::Address) -> ClusterLoadAssignment {
    let endpoint = Endpoint { address: Some(at), ..Default::default() };
    let endpoint =
        LbEndpoint { host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)), ..Default::default() };
    ClusterLoadAssignment {
        cluster_name: cluster.into(),
        endpoints: vec![LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() }],
        ..Default::default()
    }
}

fn metadata(port: &InboundPort) -> core::Metadata {
    let services = port.services.iter().map(|(service, _)| service_facts(service)).collect();
    let mut metadata = core::Metadata::default();
    let istio = value::fields([("services", value::list(services))]);
    metadata.filter_metadata.insert(value::ISTIO_KEY.into(), istio);
    value::add_provenance(&mut metadata, &port.origin);
    metadata
}
