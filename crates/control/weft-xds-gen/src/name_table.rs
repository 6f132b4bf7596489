//! The names that a proxy's DNS server answers: services that are seen, with their addresses.

use crate::pb::address::is_host;
use crate::resource::Resource;
use crate::scope::View;
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_model::{EndpointAddress, Health, Registry, Resolution, Service};
use weft_proto::istio::networking::nds::v1::{NameTable, name_table::NameInfo};
use weft_proto::type_url;

/// The table of a scope, named by its type as there is one only.
pub(crate) fn build(view: View<'_>) -> Arc<Resource> {
    packed(&names(view))
}

/// A table, named by its type.
pub(crate) fn packed(table: &NameTable) -> Arc<Resource> {
    Resource::new(type_url::NAME_TABLE, table)
}

/// The names of a scope.
pub(crate) fn names(view: View<'_>) -> NameTable {
    let mut table: BTreeMap<String, NameInfo> = BTreeMap::new();
    for service in view.scope.services() {
        if headless(service) {
            add_pods(view, service, &mut table);
        }
        let ips = addresses(view, service);
        if !ips.is_empty() {
            table.insert(service.host.to_string(), entry(service, ips, &service.name));
        }
    }
    NameTable { table }
}

fn headless(service: &Service) -> bool {
    service.addresses.is_empty() && service.resolution == Resolution::Passthrough
}

fn entry(service: &Service, ips: Vec<String>, short_name: &str) -> NameInfo {
    let kubernetes = service.registry == Some(Registry::Kubernetes);
    NameInfo {
        ips,
        registry: if kubernetes { "Kubernetes" } else { "External" }.into(),
        shortname: if kubernetes { short_name.into() } else { String::new() },
        namespace: if kubernetes { service.namespace.clone() } else { String::new() },
        alt_hosts: Vec::new(),
    }
}

/// Virtual addresses, else those the mesh gave, else those of the pods.
fn addresses(view: View<'_>, service: &Service) -> Vec<String> {
    let own: Vec<String> = service.addresses.iter().filter(|n| is_host(n)).map(|n| n.addr().to_string()).collect();
    if !own.is_empty() {
        return own;
    }
    if !service.auto_addresses.is_empty() {
        let key = &view.scope.key;
        return service.auto_addresses.iter().filter(|ip| key.speaks(ip)).map(ToString::to_string).collect();
    }
    let mut ips = Vec::new();
    if headless(service) {
        for_pods(view, service, |ip, _| {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        });
    }
    ips
}

/// Pods of a headless service have names of their own below the service's.
fn add_pods(view: View<'_>, service: &Service, table: &mut BTreeMap<String, NameInfo>) {
    for_pods(view, service, |ip, pod| {
        let name = format!("{pod}.{}", service.host);
        let short = format!("{pod}.{}", service.name);
        let known = table.entry(name).or_insert_with(|| entry(service, Vec::new(), &short));
        if !known.ips.contains(&ip) {
            known.ips.push(ip);
        }
    });
}

fn for_pods(view: View<'_>, service: &Service, mut each: impl FnMut(String, &str)) {
    for port in &service.ports {
        let endpoints = view.snapshot.endpoints_of(service, port.number);
        for endpoint in endpoints.into_iter().flat_map(|all| all.iter()).filter(|e| e.health == Health::Healthy) {
            if let (EndpointAddress::Ip(ip, _), Some(workload)) = (&endpoint.address, &endpoint.workload) {
                each(ip.to_string(), &workload.name);
            }
        }
    }
}
