//! Clusters of fixed name, and those whose endpoint is the host of each request.

use super::{Draft, Target};
use crate::ProxyView;
use crate::pb::cluster::{CircuitBreakers, Cluster, cluster as c};
use crate::pb::{self, core};
use crate::resource::{Resource, Resources, by_name};
use crate::scope::{HeaderSettings, ScopeKey};
use c::{ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, LbPolicy};
use weft_core::names;
use weft_k8s_api::istio::MeshConfig;
use weft_proto::envoy::extensions::clusters::dynamic_forward_proxy::v3::{ClusterConfig, cluster_config};
use weft_proto::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use weft_proto::pack;

/// `BlackHoleCluster` and, for sidecars, `PassthroughCluster`.
pub(crate) fn outbound(mesh: &MeshConfig, key: &ScopeKey) -> Resources {
    let mut clusters = vec![black_hole(mesh)];
    if !key.gateway {
        clusters.push(passthrough(mesh, names::PASSTHROUGH_CLUSTER, key.headers));
    }
    by_name(clusters.iter().map(|c| Resource::new(c.name.as_str(), c)))
}

/// Has no endpoint: what is sent there is refused.
fn black_hole(mesh: &MeshConfig) -> Cluster {
    Cluster {
        name: names::BLACK_HOLE_CLUSTER.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        connect_timeout: mesh.connect_timeout.map(|d| pb::duration(d.get())),
        lb_policy: LbPolicy::RoundRobin as i32,
        ..Default::default()
    }
}

/// Goes on to the address that was dialled.
fn passthrough(mesh: &MeshConfig, name: &str, settings: HeaderSettings) -> Cluster {
    let mut draft = Draft::new(name.into());
    draft.set_type(DiscoveryType::OriginalDst);
    draft.http.use_downstream();
    draft.http.keeps_case = settings.keeps_case;
    draft.cluster.common_lb_config = None;
    draft.cluster.lb_policy = LbPolicy::ClusterProvided as i32;
    draft.cluster.connect_timeout = mesh.connect_timeout.map(|d| pb::duration(d.get()));
    draft.cluster.circuit_breakers =
        Some(CircuitBreakers { thresholds: vec![super::pool::unlimited()], ..Default::default() });
    draft.finish()
}

/// Goes on to the workload at the port that was dialled, from an address whose connections are not captured again.
pub(crate) fn inbound_passthrough(mesh: &MeshConfig, proxy: &ProxyView, settings: HeaderSettings) -> Cluster {
    let source = Some(bind_for_workload(proxy));
    Cluster { upstream_bind_config: source, ..passthrough(mesh, names::INBOUND_PASSTHROUGH_CLUSTER, settings) }
}

/// Connections to the proxy's own workload: from an address that is not captured, of the family that is dialled.
pub(crate) fn bind_for_workload(proxy: &ProxyView) -> core::BindConfig {
    let more = |source: &str| core::ExtraSourceAddress {
        address: Some(pb::address::socket_address(source, 0)),
        ..Default::default()
    };
    core::BindConfig {
        source_address: Some(pb::address::socket_address(proxy.inbound_bind_address(), 0)),
        extra_source_addresses: proxy.other_inbound_bind_address().map(more).into_iter().collect(),
        ..Default::default()
    }
}

/// Which addresses of a name are used: those of the proxy's own families, IPv4 first where it has both.
pub(crate) fn lookup_family(ipv6: bool, dual: bool) -> DnsLookupFamily {
    match (dual, ipv6) {
        (true, _) => DnsLookupFamily::V4Preferred,
        (false, true) => DnsLookupFamily::V6Only,
        (false, false) => DnsLookupFamily::V4Only,
    }
}

/// The endpoint is the host of each request, or the SNI of each connection (`resolution: DYNAMIC_DNS`).
pub(super) fn dynamic_forward(draft: &mut Draft, target: &Target<'_>, key: &ScopeKey) {
    let config = ClusterConfig {
        // SNI and SAN checks are set up by the destination rule's TLS, not by this cluster type.
        allow_insecure_cluster_options: true,
        cluster_implementation_specifier: Some(cluster_config::ClusterImplementationSpecifier::DnsCacheConfig(
            dns_cache(&target.service.host, key.ipv6, key.dual),
        )),
        ..Default::default()
    };
    draft.cluster.lb_policy = LbPolicy::ClusterProvided as i32;
    draft.cluster.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(c::CustomClusterType {
        name: "envoy.clusters.dynamic_forward_proxy".into(),
        typed_config: Some(pack(&config)),
    }));
}

/// The cache of resolved names that cluster and filter of one service share.
pub(crate) fn dns_cache(host: &str, ipv6: bool, dual: bool) -> DnsCacheConfig {
    DnsCacheConfig {
        name: format!("{}_dfp_dns_cache", host.replace('*', "wildcard")),
        dns_lookup_family: lookup_family(ipv6, dual) as i32,
        ..Default::default()
    }
}
