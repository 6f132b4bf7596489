//! Outbound clusters: one for each port of each service that is seen, and one for each of its subsets.
//!
//! Reading order: this file (which clusters, of what type), [`protocol`] (HTTP version), [`pool`] (limits), [`lb`] (load
//! balancing), [`outlier`], [`tls`] (towards endpoints), [`inbound`] (towards the workload), [`fixed`] (the named ones).

pub(crate) mod fixed;
pub(crate) mod inbound;
mod lb;
mod outlier;
mod pool;
pub(crate) mod protocol;
pub(crate) mod tls;

use crate::endpoint;
use crate::pb::cluster::{self as envoy, Cluster, cluster::ClusterDiscoveryType, cluster::DiscoveryType};
use crate::pb::{self, core, value};
use crate::resource::{Resource, Resources, by_name};
use crate::scope::View;
use crate::traffic::{self, Effective};
use protocol::HttpOptions;
use std::sync::Arc;
use weft_core::Strng;
use weft_core::names::ClusterName;
use weft_k8s_api::istio::SimpleLb;
use weft_model::{DestinationRule, Protocol, Registry, Resolution, Service, ServicePort};

/// What an outbound cluster is for.
pub(crate) struct Target<'a> {
    pub service: &'a Service,
    pub port: &'a ServicePort,
    /// Empty for the whole service.
    pub subset: &'a str,
    pub rule: Option<&'a Arc<DestinationRule>>,
    pub policy: Effective,
}

impl Target<'_> {
    /// Name of the cluster, by its parts.
    pub fn name(&self) -> ClusterName<'_> {
        ClusterName::outbound(self.port.number, self.subset, &self.service.host)
    }
}

/// A cluster and its HTTP options, which several steps add to before they are packed into it.
pub(crate) struct Draft {
    pub cluster: Cluster,
    pub http: HttpOptions,
}

impl Draft {
    fn new(name: String) -> Self {
        let cluster = Cluster { name, common_lb_config: Some(Default::default()), ..Default::default() };
        Self { cluster, http: HttpOptions::default() }
    }

    fn set_type(&mut self, discovery: DiscoveryType) {
        self.cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(discovery as i32));
    }

    /// True when endpoints are taken from the connection's original destination.
    pub fn is_original_dst(&self) -> bool {
        self.cluster.cluster_discovery_type == Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32))
    }

    fn finish(mut self) -> Cluster {
        if let Some(options) = self.http.pack() {
            let key = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
            self.cluster.typed_extension_protocol_options.insert(key.into(), options);
        }
        self.cluster
    }
}

/// All outbound clusters of the scope.
pub(crate) fn outbound(view: View<'_>) -> Resources {
    let mut clusters = Vec::new();
    for service in view.scope.services() {
        let rule = view.rule(service);
        for port in service.ports.iter().filter(|p| p.protocol != Protocol::Udp) {
            let subsets = rule.iter().flat_map(|r| r.spec.subsets.iter().map(|s| s.name.as_str()));
            for subset in std::iter::once("").chain(subsets) {
                let target = target(view, service, port, subset, rule.as_ref());
                clusters.extend(build(view, target, Mode::Named).map(|c| Resource::new(c.name.as_str(), &c)));
            }
        }
    }
    by_name(clusters)
}

/// SDS names that the clusters refer to and the control plane serves.
pub(crate) fn credentials(view: View<'_>) -> Vec<Strng> {
    let rules = view.scope.services().filter_map(|service| view.rule(service));
    let mut names: Vec<Strng> = rules.flat_map(|rule| tls::credentials(view, &rule)).map(Strng::from).collect();
    names.sort();
    names.dedup();
    names
}

/// The same clusters once more for gateways that pass mutual TLS on unopened: named by the SNI that leads to them, and
/// without TLS of their own.
pub(crate) fn sni_dnat(view: View<'_>) -> Resources {
    let mut clusters = Vec::new();
    for service in view.scope.services().filter(|s| !s.mesh_external) {
        let rule = view.rule(service);
        for port in service.ports.iter().filter(|p| p.protocol != Protocol::Udp) {
            let subsets = rule.iter().flat_map(|r| r.spec.subsets.iter().map(|s| s.name.as_str()));
            for subset in std::iter::once("").chain(subsets) {
                let target = target(view, service, port, subset, rule.as_ref());
                clusters.extend(build(view, target, Mode::SniDnat).map(|c| Resource::new(c.name.as_str(), &c)));
            }
        }
    }
    by_name(clusters)
}

/// The cluster's target, with the policy that holds for it.
pub(crate) fn target<'a>(
    view: View<'_>,
    service: &'a Service,
    port: &'a ServicePort,
    subset: &'a str,
    rule: Option<&'a Arc<DestinationRule>>,
) -> Target<'a> {
    let policy = match (rule, subset) {
        (Some(rule), subset) if !subset.is_empty() => traffic::for_subset(view.mesh(), rule, port.number, subset),
        (rule, _) => traffic::for_port(view.mesh(), rule, port.number),
    };
    Target { service, port, subset, rule, policy }
}

/// How a cluster is reached: by name from routes, or by the SNI of connections that are passed on unopened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Named,
    SniDnat,
}

/// The cluster, or `None` when it could have no endpoint (a DNS service without names).
fn build(view: View<'_>, target: Target<'_>, mode: Mode) -> Option<Cluster> {
    let name = match mode {
        Mode::Named => target.name().to_string(),
        Mode::SniDnat => target.name().sni(),
    };
    let mut draft = Draft::new(name);
    if target.service.resolution == Resolution::DynamicDns {
        fixed::dynamic_forward(&mut draft, &target, &view.scope.key);
    } else {
        discover(view, &mut draft, &target)?;
    }
    protocol::set_for_port(&mut draft, target.port.protocol);
    protocol::keep_case(&mut draft, target.port.protocol, view.scope.key.headers);
    if protocol::upgrades(view.mesh(), target.port.protocol, target.policy.connection_pool.as_ref()) {
        draft.http.use_http2();
    }
    pool::apply(view.mesh(), &mut draft, &target.policy);
    outlier::apply(&mut draft, target.policy.outlier_detection.as_ref());
    lb::apply(view.mesh(), &mut draft, &target.policy);
    if mode == Mode::Named {
        tls::apply(view, &mut draft, &target);
        tls::apply_proxy_protocol(&mut draft, target.policy.proxy_protocol.as_ref());
    }
    draft.cluster.metadata = Some(metadata(&target));
    Some(draft.finish())
}

/// Sets how the endpoints are found.
fn discover(view: View<'_>, draft: &mut Draft, target: &Target<'_>) -> Option<()> {
    let kind = discovery_type(view, target);
    draft.set_type(kind);
    match kind {
        DiscoveryType::Eds => {
            draft.cluster.eds_cluster_config = Some(envoy::cluster::EdsClusterConfig {
                eds_config: Some(pb::ads()),
                service_name: draft.cluster.name.clone(),
            });
        }
        DiscoveryType::StrictDns | DiscoveryType::LogicalDns => {
            let mut assignment = endpoint::assignment(view, target, endpoint::Addresses::All);
            assignment.cluster_name.clone_from(&draft.cluster.name);
            if assignment.endpoints.iter().all(|l| l.lb_endpoints.is_empty()) {
                return None;
            }
            if kind == DiscoveryType::LogicalDns {
                endpoint::keep_first(&mut assignment);
            }
            draft.cluster.load_assignment = Some(assignment);
            resolve_by_dns(view, draft);
        }
        DiscoveryType::OriginalDst => original_dst_port(draft, target),
        DiscoveryType::Static => {}
    }
    Some(())
}

/// How often names are resolved, and to what addresses.
#[allow(deprecated)] // the newer place of these fields is an extension, which fewer proxies know
fn resolve_by_dns(view: View<'_>, draft: &mut Draft) {
    draft.cluster.dns_refresh_rate = view.mesh().dns_refresh_rate.map(|d| pb::duration(d.get()));
    draft.cluster.respect_dns_ttl = true;
    draft.cluster.dns_lookup_family = fixed::lookup_family(view.scope.key.ipv6, view.scope.key.dual) as i32;
}

/// How the endpoints of a target are found.
pub(crate) fn discovery_type(view: View<'_>, target: &Target<'_>) -> DiscoveryType {
    if target.policy.load_balancer.as_ref().and_then(|lb| lb.simple) == Some(SimpleLb::Passthrough) {
        return DiscoveryType::OriginalDst;
    }
    match target.service.resolution {
        Resolution::Static | Resolution::DynamicDns => DiscoveryType::Eds,
        Resolution::Dns => DiscoveryType::StrictDns,
        Resolution::DnsRoundRobin => DiscoveryType::LogicalDns,
        // A gateway's connections end at itself: there is no address that the client dialled.
        Resolution::Passthrough if view.scope.key.gateway => DiscoveryType::Eds,
        Resolution::Passthrough => DiscoveryType::OriginalDst,
    }
}

/// The address that was dialled, at the port of the workload when that is another one.
fn original_dst_port(draft: &mut Draft, target: &Target<'_>) {
    let external = target.service.registry == Some(Registry::External);
    let port = target.port.target_port.filter(|port| external && *port != target.port.number);
    if let Some(port) = port {
        draft.cluster.lb_config =
            Some(envoy::cluster::LbConfig::OriginalDstLbConfig(envoy::cluster::OriginalDstLbConfig {
                upstream_port_override: Some(port.into()),
                ..Default::default()
            }));
    }
}

/// Facts for telemetry, and the objects the cluster came from: the destination rule, else the service.
fn metadata(target: &Target<'_>) -> core::Metadata {
    let service = target.service;
    let mut istio = value::fields([
        ("default_original_port", number(target.port.number)),
        ("services", value::list(vec![service_facts(service)])),
    ]);
    if service.mesh_external {
        istio.fields.insert("external".into(), value::boolean(true));
    }
    if !target.subset.is_empty() {
        istio.fields.insert("subset".into(), value::text(target.subset));
    }
    if let Some(rule) = target.rule {
        let path = format!("/apis/networking.istio.io/v1/namespaces/{}/destination-rule/{}", rule.namespace, rule.name);
        istio.fields.insert("config".into(), value::text(path));
    }
    let mut metadata = core::Metadata::default();
    metadata.filter_metadata.insert(value::ISTIO_KEY.into(), istio);
    let origin = target.rule.and_then(|rule| rule.origins.first()).unwrap_or(&service.provenance);
    value::add_provenance(&mut metadata, origin);
    metadata
}

fn number(value: u16) -> weft_proto::Value {
    weft_proto::Value { kind: Some(prost_types::value::Kind::NumberValue(value.into())) }
}

/// Host, name and namespace of a service, as telemetry reads them.
pub(crate) fn service_facts(service: &Service) -> weft_proto::Value {
    value::object(value::fields([
        ("host", value::text(&*service.host)),
        ("name", value::text(&service.name)),
        ("namespace", value::text(&service.namespace)),
    ]))
}
