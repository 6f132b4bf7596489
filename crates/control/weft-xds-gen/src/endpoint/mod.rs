//! Load assignments: the endpoints of a cluster, by locality, with what clients must know of each.
//!
//! [`locality`] turns localities into priorities and weights.

mod locality;

use crate::cluster::{self, Target};
use crate::pb::cluster::cluster::DiscoveryType;
use crate::pb::endpoint::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint};
use crate::pb::{address, core, value};
use crate::resource::{Resource, Resources, by_name};
use crate::scope::View;
use crate::shared::Pool;
use crate::traffic;
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_core::names::ClusterName;
use weft_model::{Endpoint as ModelEndpoint, EndpointAddress, Health, MtlsMode, Protocol, Service, Workload};

pub(crate) use locality::HOSTNAME_LABEL;

/// Metadata key by which a cluster chooses the transport socket of an endpoint.
const TRANSPORT_MATCH_KEY: &str = "envoy.transport_socket_match";

/// Which kinds of addresses an assignment may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Addresses {
    /// IP addresses and sockets: what EDS takes.
    Resolved,
    /// Names too: what the proxy resolves itself.
    All,
}

/// Load assignments of all clusters of the scope that are found by EDS, and what each was made of.
#[derive(Debug, Default)]
pub(crate) struct Assignments {
    /// By name of the cluster.
    pub resources: Arc<Resources>,
    /// Mark of everything but the endpoints.
    base: Vec<u64>,
    made_of: Vec<Source>,
}

/// Endpoints of a port of a service, as they were.
#[derive(Debug)]
struct Source {
    service: Arc<Service>,
    port: u16,
    endpoints: Option<Arc<Vec<ModelEndpoint>>>,
}

/// The load assignments of the scope; `sni`: of clusters by server name too. `base` says what all but the endpoints is;
/// where it is what it was for `old`, only ports are looked at whose endpoints are others.
pub(crate) fn assignments(
    view: View<'_>,
    sni: bool,
    old: Option<&Assignments>,
    base: Vec<u64>,
    pool: &Pool,
) -> Assignments {
    let endpoints = |service: &Service, port| view.snapshot.endpoints_of(service, port).cloned();
    if let Some(old) = old.filter(|old| old.base == base) {
        let mut resources = (*old.resources).clone();
        let now = |source: &Source| {
            let Source { service, port, .. } = source;
            let endpoints = endpoints(service, *port);
            let same = match (&endpoints, &source.endpoints) {
                (Some(new), Some(old)) => Arc::ptr_eq(new, old),
                (None, None) => true,
                _ => false,
            };
            if !same {
                for new in of_port(view, service, *port, sni) {
                    let known = resources.get(&new.name).filter(|known| known.hash == new.hash);
                    if known.is_none() {
                        resources.insert(new.name.clone(), pool.shared(&new));
                    }
                }
            }
            Source { service: service.clone(), port: *port, endpoints }
        };
        let made_of = old.made_of.iter().map(now).collect();
        return Assignments { resources: Arc::new(resources), base, made_of };
    }
    let ports = view.scope.services().flat_map(|service| carried(service).map(move |port| (service, port)));
    let source = |(service, port): (&Arc<Service>, u16)| Source {
        service: service.clone(),
        port,
        endpoints: endpoints(service, port),
    };
    let resources = pool.reuse(old.map_or(&Resources::new(), |old| &old.resources), all(view, sni));
    Assignments { resources, base, made_of: ports.map(source).collect() }
}

/// Load assignments of all clusters of the scope that are found by EDS.
fn all(view: View<'_>, sni_dnat: bool) -> Resources {
    let services = view.scope.services();
    by_name(services.flat_map(|s| carried(s).flat_map(move |port| of_port(view, s, port, sni_dnat))))
}

/// Ports that are carried by streams.
fn carried(service: &Service) -> impl Iterator<Item = u16> {
    service.ports.iter().filter(|p| p.protocol != Protocol::Udp).map(|p| p.number)
}

/// Load assignments of the clusters of one port.
fn of_port(view: View<'_>, service: &Service, number: u16, sni_dnat: bool) -> Vec<Arc<Resource>> {
    let rule = view.rule(service);
    let mut found = Vec::new();
    for port in service.ports.iter().filter(|p| p.number == number && p.protocol != Protocol::Udp) {
        let subsets = rule.iter().flat_map(|r| r.spec.subsets.iter().map(|s| s.name.as_str()));
        for subset in std::iter::once("").chain(subsets) {
            let target = cluster::target(view, service, port, subset, rule.as_ref());
            if cluster::discovery_type(view, &target) != DiscoveryType::Eds {
                continue;
            }
            let name = target.name();
            found.push(resource(view, &target, name.to_string()));
            if sni_dnat && !service.mesh_external {
                found.push(resource(view, &target, name.sni()));
            }
        }
    }
    found
}

/// The load assignment of one cluster, by its name or by the SNI that stands for it; `None` when the scope has no such
/// cluster found by EDS.
pub(crate) fn by_cluster_name(view: View<'_>, name: &str) -> Option<Arc<Resource>> {
    let parts = ClusterName::parse(name).or_else(|| parse_sni(name))?;
    let service = view.scope.service(parts.host)?;
    let port = service.ports.iter().find(|p| p.number == parts.port && p.protocol != Protocol::Udp)?;
    let rule = view.rule(service);
    if !parts.subset.is_empty() {
        traffic::subset_labels(rule.as_ref(), parts.subset)?;
    }
    let target = cluster::target(view, service, port, parts.subset, rule.as_ref());
    (cluster::discovery_type(view, &target) == DiscoveryType::Eds).then(|| resource(view, &target, name.to_string()))
}

/// `outbound_.<port>_.<subset>_.<host>`
fn parse_sni(name: &str) -> Option<ClusterName<'_>> {
    let mut parts = name.strip_prefix("outbound_.")?.splitn(3, "_.");
    Some(ClusterName::outbound(parts.next()?.parse().ok()?, parts.next()?, parts.next()?))
}

fn resource(view: View<'_>, target: &Target<'_>, name: String) -> Arc<Resource> {
    let mut assignment = assignment(view, target, Addresses::Resolved);
    if name.starts_with("outbound_.") {
        // What arrives under this name is mutual TLS that is passed on unopened.
        keep_mutual_tls(&mut assignment);
    }
    assignment.cluster_name.clone_from(&name);
    Resource::new(name, &assignment)
}

/// The endpoints of a target, by locality.
pub(crate) fn assignment(view: View<'_>, target: &Target<'_>, addresses: Addresses) -> ClusterLoadAssignment {
    let subset = traffic::subset_labels(target.rule, target.subset);
    let endpoints = view.snapshot.endpoints_of(target.service, target.port.number);
    let eligible = endpoints.into_iter().flat_map(|all| all.iter()).filter(|endpoint| {
        endpoint.health == Health::Healthy
            && subset.is_none_or(|labels| labels.iter().all(|(k, v)| endpoint.labels.get(k) == Some(v)))
            && (addresses == Addresses::All || !matches!(endpoint.address, EndpointAddress::Name(..)))
            && (!target.service.node_local || endpoint.node == view.scope.key.node)
    });
    let mut by_locality: BTreeMap<&str, Vec<&ModelEndpoint>> = BTreeMap::new();
    for endpoint in eligible {
        by_locality.entry(&endpoint.locality).or_default().push(endpoint);
    }
    let mut groups: Vec<locality::Group<'_>> =
        by_locality.into_iter().map(|(name, endpoints)| locality::Group::new(name, endpoints)).collect();
    let own = target.policy.load_balancer.as_ref().is_some_and(|lb| lb.locality_lb_setting.is_some());
    if let Some(near) = target.service.near.filter(|_| !own) {
        locality::apply(&mut groups, &view.scope.key, &locality::nearest(near), true);
    } else if let Some(setting) = traffic::locality_setting(view.mesh(), &target.policy) {
        let failover = target.policy.outlier_detection.is_some();
        locality::apply(&mut groups, &view.scope.key, setting, failover);
    }
    ClusterLoadAssignment {
        cluster_name: target.name().to_string(),
        endpoints: groups.into_iter().map(|group| message(view, target, group)).collect(),
        ..Default::default()
    }
}

/// A name that resolves to one address at a time takes one endpoint only.
pub(crate) fn keep_first(assignment: &mut ClusterLoadAssignment) {
    assignment.endpoints.truncate(1);
    for group in &mut assignment.endpoints {
        group.lb_endpoints.truncate(1);
        group.load_balancing_weight = group.lb_endpoints.first().and_then(|e| e.load_balancing_weight);
        group.priority = 0;
    }
}

fn keep_mutual_tls(assignment: &mut ClusterLoadAssignment) {
    for group in &mut assignment.endpoints {
        group.lb_endpoints.retain(|endpoint| {
            endpoint.metadata.as_ref().is_some_and(|m| m.filter_metadata.contains_key(TRANSPORT_MATCH_KEY))
        });
        group.load_balancing_weight = Some(group.lb_endpoints.iter().filter_map(|e| e.load_balancing_weight).sum());
    }
    assignment.endpoints.retain(|group| !group.lb_endpoints.is_empty());
}

fn message(view: View<'_>, target: &Target<'_>, group: locality::Group<'_>) -> LocalityLbEndpoints {
    let mut parts = group.name.splitn(3, '/').map(str::to_string);
    let mut part = || parts.next().unwrap_or_default();
    let locality = core::Locality { region: part(), zone: part(), sub_zone: part() };
    LocalityLbEndpoints {
        locality: (!group.name.is_empty()).then_some(locality),
        lb_endpoints: group.endpoints.iter().map(|e| lb_endpoint(view, target, e)).collect(),
        load_balancing_weight: Some(group.weight),
        priority: group.priority,
        ..Default::default()
    }
}

fn lb_endpoint(view: View<'_>, target: &Target<'_>, endpoint: &ModelEndpoint) -> LbEndpoint {
    let at = match &endpoint.address {
        EndpointAddress::Ip(ip, port) => address::socket(&ip.to_string(), *port),
        EndpointAddress::Name(name, port) => address::socket(name, *port),
        EndpointAddress::Unix(path) => address::pipe(path),
    };
    let mut metadata = core::Metadata::default();
    if let Some(workload) = &endpoint.workload {
        let facts = workload_facts(workload, &view.snapshot.settings.cluster_id);
        metadata.filter_metadata.insert(value::ISTIO_KEY.into(), value::fields([("workload", value::text(facts))]));
    }
    if takes_mutual_tls(view, target, endpoint) {
        let mode = value::fields([("tlsMode", value::text("istio"))]);
        metadata.filter_metadata.insert(TRANSPORT_MATCH_KEY.into(), mode);
    }
    LbEndpoint {
        health_status: core::HealthStatus::Healthy as i32,
        metadata: (!metadata.filter_metadata.is_empty()).then_some(metadata),
        load_balancing_weight: Some(locality::weight_of(endpoint)),
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(Endpoint {
            address: Some(at),
            ..Default::default()
        })),
    }
}

/// Name, namespace, canonical name and revision, cluster: what telemetry says of the server before it has spoken.
fn workload_facts(workload: &Workload, cluster: &str) -> String {
    let Workload { workload_name, namespace, canonical_name, canonical_revision, .. } = workload;
    format!("{workload_name};{namespace};{canonical_name};{canonical_revision};{cluster}")
}

/// Has a proxy in front, which does not refuse mutual TLS on that port.
fn takes_mutual_tls(view: View<'_>, target: &Target<'_>, endpoint: &ModelEndpoint) -> bool {
    let port = match &endpoint.address {
        EndpointAddress::Ip(_, port) | EndpointAddress::Name(_, port) => *port,
        EndpointAddress::Unix(_) => 0,
    };
    let namespace = endpoint.workload.as_ref().map_or(target.service.namespace.as_str(), |w| &w.namespace);
    endpoint.mtls && view.snapshot.mtls_mode(namespace, &endpoint.labels, port) != MtlsMode::Disable
}
