//! Endpoints of services: from endpoint slices for Kubernetes services, inline or selected for service entries.

use crate::kubernetes::{Slice, SliceEndpoint};
use crate::parsed::Parsed;
use crate::service_entries::Backends;
use crate::workloads::{Workloads, key};
use crate::{Endpoint, EndpointAddress, Health, Labels, Registry, Service, ServicePort, Workload, services};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use weft_core::Strng;

/// Endpoints by host and port, and those of namespaces that do not own the host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    pub owned: HashMap<(Strng, u16), Arc<Vec<Endpoint>>>,
    pub others: HashMap<(String, Strng, u16), Arc<Vec<Endpoint>>>,
}

/// Where endpoints of Kubernetes services are read from.
pub(crate) struct Sources<'a> {
    by_service: HashMap<(&'a str, &'a str), Vec<&'a Slice>>,
    workloads: &'a Workloads,
    backends: &'a Backends,
}

impl<'a> Sources<'a> {
    /// Indexes the slices. `Endpoints` objects count only for services that have no slice.
    pub fn new(
        slices: &'a [Arc<Parsed<Slice>>],
        legacy: &'a [Arc<Parsed<Vec<Slice>>>],
        workloads: &'a Workloads,
        backends: &'a Backends,
    ) -> Self {
        let mut by_service: HashMap<(&str, &str), Vec<&Slice>> = HashMap::new();
        for slice in slices {
            let of = (slice.meta.namespace.as_str(), slice.spec.service.as_str());
            by_service.entry(of).or_default().push(&slice.spec);
        }
        for object in legacy {
            let of = (object.meta.namespace.as_str(), object.meta.name.as_str());
            by_service.entry(of).or_insert_with(|| object.spec.iter().collect());
        }
        Self { by_service, workloads, backends }
    }
}

/// Builds the table; lists that are equal to those of `old` are those. Services of one namespace for one host (a service
/// entry that adds to a Kubernetes service) share their endpoints.
pub(crate) fn build(by_host: &BTreeMap<Strng, Vec<Service>>, sources: &Sources<'_>, old: &Table) -> Table {
    let mut owned: HashMap<(Strng, u16), Vec<Endpoint>> = HashMap::new();
    let mut others: HashMap<(String, Strng, u16), Vec<Endpoint>> = HashMap::new();
    for (host, list) in by_host {
        let owner = list.first().map_or("", |s| s.namespace.as_str());
        for service in list {
            for port in service.ports.iter().filter(|p| services::carried(p)) {
                let endpoints = endpoints_of(service, port, sources);
                if service.namespace == owner {
                    owned.entry((host.clone(), port.number)).or_default().extend(endpoints);
                } else {
                    let slot = (service.namespace.clone(), host.clone(), port.number);
                    others.entry(slot).or_default().extend(endpoints);
                }
            }
        }
    }
    Table { owned: settle(owned, &old.owned), others: settle(others, &old.others) }
}

/// Puts each list in order, and takes the old one where nothing changed.
fn settle<K: std::hash::Hash + Eq>(
    lists: HashMap<K, Vec<Endpoint>>,
    old: &HashMap<K, Arc<Vec<Endpoint>>>,
) -> HashMap<K, Arc<Vec<Endpoint>>> {
    let mut out = HashMap::with_capacity(lists.len());
    for (key, mut list) in lists {
        // One order for one set: equal sets give equal resources. Two slices may list one address while it moves between
        // them; the healthier one counts.
        list.sort_by(|a, b| a.address.cmp(&b.address).then_with(|| (a.health as u8).cmp(&(b.health as u8))));
        list.dedup_by(|later, earlier| later.address == earlier.address);
        let list = crate::parsed::reuse(old.get(&key), list);
        out.insert(key, list);
    }
    out
}

fn endpoints_of(service: &Service, port: &ServicePort, sources: &Sources<'_>) -> Vec<Endpoint> {
    match (service.registry, &service.external_name) {
        (Some(Registry::External), _) => sources.backends.endpoints(service, port, sources.workloads),
        (_, Some(name)) => vec![external_name(name, port.number)],
        _ => {
            let mut out = from_slices(service, port, sources);
            out.extend(sources.backends.of_kubernetes(service, port, sources.workloads));
            out
        }
    }
}

fn external_name(name: &str, port: u16) -> Endpoint {
    let address = match name.parse::<IpAddr>() {
        Ok(ip) => EndpointAddress::Ip(ip, port),
        Err(_) => EndpointAddress::Name(name.to_string(), port),
    };
    bare(address)
}

/// An endpoint of which nothing but the address is known.
pub(crate) fn bare(address: EndpointAddress) -> Endpoint {
    Endpoint {
        address,
        labels: Arc::default(),
        workload: None,
        identity: String::new(),
        mtls: false,
        locality: String::new(),
        network: String::new(),
        weight: 0,
        health: Health::Healthy,
        node: String::new(),
    }
}

fn from_slices(service: &Service, port: &ServicePort, sources: &Sources<'_>) -> Vec<Endpoint> {
    let slices = sources.by_service.get(&(service.namespace.as_str(), service.name.as_str()));
    let mut out = Vec::new();
    for slice in slices.into_iter().flatten() {
        let number = slice.ports.iter().find(|(name, _)| *name == port.name).map(|(_, number)| *number);
        let Some(number) = number else { continue };
        // Those that are neither ready nor draining get no traffic: clients need not know them.
        for endpoint in slice.endpoints.iter().filter(|e| e.ready || e.draining) {
            for address in &endpoint.addresses {
                out.push(from_slice(service, endpoint, address, number, sources.workloads));
            }
        }
    }
    out
}

fn from_slice(service: &Service, from: &SliceEndpoint, address: &str, port: u16, workloads: &Workloads) -> Endpoint {
    let ip = address.parse::<IpAddr>().ok();
    // By name first: an address is reused sooner than a pod's name.
    let by_name = from.pod.as_ref().and_then(|pod| workloads.by_name.get(&key(&service.namespace, pod)));
    let workload = by_name.or_else(|| ip.and_then(|ip| workloads.by_address.get(&ip))).cloned();
    let address = match ip {
        Some(ip) => EndpointAddress::Ip(ip, port),
        None => EndpointAddress::Name(address.to_ascii_lowercase(), port),
    };
    let health = if from.ready { Health::Healthy } else { Health::Draining };
    match workload {
        Some(workload) => Endpoint { health, ..of_workload(address, &workload) },
        None => Endpoint { health, node: from.node.clone(), locality: zone_locality(&from.zone), ..bare(address) },
    }
}

fn zone_locality(zone: &str) -> String {
    if zone.is_empty() { String::new() } else { format!("/{zone}") }
}

/// An endpoint with all the facts of its workload.
pub(crate) fn of_workload(address: EndpointAddress, workload: &Arc<Workload>) -> Endpoint {
    Endpoint {
        labels: workload.labels.clone(),
        identity: workload.identity.clone(),
        mtls: workload.in_mesh,
        locality: workload.locality.clone(),
        network: workload.network.clone(),
        node: workload.node.clone(),
        workload: Some(workload.clone()),
        ..bare(address)
    }
}

/// The port of `workload` that `port` leads to: its number, or the container port of that name.
pub(crate) fn target_port(port: &ServicePort, workload: &Workload) -> Option<u16> {
    if port.target_port_name.is_empty() {
        return Some(port.target_port.unwrap_or(port.number));
    }
    workload.container_ports.iter().find(|(_, name)| *name == port.target_port_name).map(|(number, _)| *number)
}

/// Labels with nothing in them select nothing here: a service without selector has its endpoints given by hand.
pub(crate) fn selected_by(selector: &Labels, labels: &Labels) -> bool {
    !selector.is_empty() && crate::parsed::selects(selector, labels)
}
