//! Services, endpoints and workloads that are declared by hand: service entries and workload entries.

use crate::endpoints::{bare, of_workload, selected_by};
use crate::parsed::{Parsed, Reader, reuse};
use crate::services::{export_to, near};
use crate::workloads::{self, Workloads};
use crate::{
    Endpoint, EndpointAddress, ExportTo, Labels, Protocol, Registry, Resolution, Service, ServicePort, Settings,
    StatusUpdate, Workload, hosts, protocol,
};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use weft_core::Strng;
use weft_core::well_known::annotation::HEALTH_CHECKED;
use weft_core::well_known::label;
use weft_k8s_api::{Object, ObjectKey, istio};

type Entry = Arc<Parsed<istio::ServiceEntry>>;
type WorkloadEntry = Arc<Parsed<Declared>>;

/// A workload entry, and whether its status says that it takes traffic.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Declared {
    spec: istio::WorkloadEntry,
    /// False when a probe was asked for and does not say `Healthy`.
    healthy: bool,
}

impl std::ops::Deref for Declared {
    type Target = istio::WorkloadEntry;

    fn deref(&self) -> &istio::WorkloadEntry {
        &self.spec
    }
}

pub(crate) const WORKLOAD_ENTRY: Reader<Declared> = |object| {
    let spec = crate::istio_spec(object)?;
    let probed = object.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(HEALTH_CHECKED));
    Ok(Declared { spec, healthy: !probed || says_healthy(object) })
};

/// Condition `Healthy` of the status: what the proxy beside the workload found by its probe.
fn says_healthy(object: &Object) -> bool {
    let conditions = object.body.get("status").and_then(|s| s.get("conditions")).and_then(Value::as_array);
    conditions.into_iter().flatten().any(|c| c["type"] == "Healthy" && c["status"] == "True")
}

/// One service for each namespace and host. Entries of one namespace for one host are one service: the oldest decides
/// how it is resolved, ports and addresses add up.
pub(crate) fn services(entries: &[Entry], settings: &Settings, default_export: &ExportTo) -> Vec<Service> {
    let mut by_host: BTreeMap<(String, Strng), Service> = BTreeMap::new();
    for entry in entries {
        for host in &entry.spec.hosts {
            let host = hosts::complete(host, &entry.meta.namespace, &settings.domain);
            let service = from_entry(entry, host.clone(), default_export);
            match by_host.get_mut(&(entry.meta.namespace.clone(), host.clone())) {
                Some(older) => merge(older, service),
                None => {
                    by_host.insert((entry.meta.namespace.clone(), host), service);
                }
            }
        }
    }
    let mut services: Vec<Service> = by_host.into_values().collect();
    allocate_addresses(&mut services);
    services
}

fn merge(older: &mut Service, newer: Service) {
    for port in newer.ports {
        if older.ports.iter().all(|p| p.number != port.number) {
            older.ports.push(port);
        }
    }
    for address in newer.addresses {
        if !older.addresses.contains(&address) {
            older.addresses.push(address);
        }
    }
}

fn from_entry(entry: &Parsed<istio::ServiceEntry>, host: Strng, default_export: &ExportTo) -> Service {
    let (meta, spec) = (&entry.meta, &*entry.spec);
    Service {
        host,
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        registry: Some(Registry::External),
        addresses: spec.addresses.iter().filter_map(|a| address_block(a)).collect(),
        ports: spec.ports.iter().filter_map(port).collect(),
        resolution: match spec.resolution {
            istio::ServiceEntryResolution::None => Resolution::Passthrough,
            istio::ServiceEntryResolution::Static => Resolution::Static,
            istio::ServiceEntryResolution::Dns => Resolution::Dns,
            istio::ServiceEntryResolution::DnsRoundRobin => Resolution::DnsRoundRobin,
            istio::ServiceEntryResolution::DynamicDns => Resolution::DynamicDns,
        },
        mesh_external: spec.location == istio::ServiceEntryLocation::MeshExternal,
        selector: spec.workload_selector.as_ref().map(|s| s.labels.clone()).unwrap_or_default(),
        subject_alt_names: spec.subject_alt_names.clone(),
        export_to: export_to(&spec.export_to, &meta.namespace, default_export),
        near: near(meta, ""),
        created: meta.created,
        labels: (*meta.labels).clone(),
        provenance: meta.provenance.clone(),
        ..Service::default()
    }
}

/// An address or a CIDR; anything else was refused by validation.
pub(crate) fn address_block(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn port(port: &istio::ServiceEntryPort) -> Option<ServicePort> {
    let number = u16::try_from(port.number).ok().filter(|n| *n != 0)?;
    let protocol = match port.protocol.as_str() {
        // Detected, whatever the port's name is; not where the server is known to speak first.
        "" => protocol::of_service_port(number, "", "TCP", None),
        // A word that stands for no known protocol: bytes, since there may be no client whose first bytes tell.
        word => Some(protocol::of_name(word)).filter(|said| *said != Protocol::Unknown).unwrap_or(Protocol::Tcp),
    };
    Some(ServicePort {
        number,
        name: port.name.clone(),
        protocol,
        target_port: Some(u16::try_from(port.target_port).ok().filter(|n| *n != 0).unwrap_or(number)),
        target_port_name: String::new(),
    })
}

/// How many addresses 240.240.0.0/16 gives, without those that end in 0 or 255.
const AUTO_ADDRESSES: u32 = 256 * 254;
/// Seed of the hash that gives a service its place; a constant, so that every control plane gives the same address.
const AUTO_SEED: u64 = 0x5745_4654_4950;

/// Gives addresses, one of 240.240.0.0/16 and one of 2001:2::/112, to each service that has none and whose name can be resolved by the proxy's DNS: its place is a hash
/// of namespace and host; when that is taken, by an older service, the next free one.
fn allocate_addresses(services: &mut [Service]) {
    let mut wanting: Vec<&mut Service> = services.iter_mut().filter(|s| wants_address(s)).collect();
    wanting.sort_by(|a, b| (a.created, &a.namespace, &a.host).cmp(&(b.created, &b.namespace, &b.host)));
    let mut taken: HashSet<u32> = HashSet::new();
    for service in wanting {
        let mut hasher = foldhash::quality::FixedState::with_seed(AUTO_SEED).build_hasher();
        hasher.write(service.namespace.as_bytes());
        hasher.write(b"/");
        hasher.write(service.host.as_bytes());
        let first = (hasher.finish() % u64::from(AUTO_ADDRESSES)) as u32;
        let free = (0..AUTO_ADDRESSES).map(|step| (first + step) % AUTO_ADDRESSES).find(|slot| taken.insert(*slot));
        let Some(slot) = free else { return };
        let (third, fourth) = ((slot / 254) as u8, (slot % 254 + 1) as u8);
        let low = u16::from_be_bytes([third, fourth]);
        service.auto_addresses = vec![
            IpAddr::V4(Ipv4Addr::new(240, 240, third, fourth)),
            IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, low)),
        ];
    }
}

/// What the statuses of service entries say: the addresses that the mesh gave to their hosts. Entries without one have no
/// status from here.
pub(crate) fn statuses(
    entries: &[Entry],
    services: &BTreeMap<Strng, Vec<Service>>,
    settings: &Settings,
    old: &[Arc<StatusUpdate>],
) -> Vec<Arc<StatusUpdate>> {
    let known: HashMap<&ObjectKey, &Arc<StatusUpdate>> = old.iter().map(|s| (&s.object, s)).collect();
    let mut out = Vec::new();
    for entry in entries {
        let mut addresses = Vec::new();
        for host in &entry.spec.hosts {
            let host = hosts::complete(host, &entry.meta.namespace, &settings.domain);
            let own = services.get(&host).into_iter().flatten().find(|s| s.namespace == entry.meta.namespace);
            let given = own.into_iter().flat_map(|s| &s.auto_addresses);
            addresses.extend(given.map(|ip| json!({"value": ip.to_string(), "host": host.to_string()})));
        }
        if addresses.is_empty() {
            continue;
        }
        let object = ObjectKey {
            group: "networking.istio.io".into(),
            kind: "ServiceEntry".into(),
            namespace: entry.meta.namespace.clone(),
            name: entry.meta.name.clone(),
        };
        let status = json!({"addresses": addresses});
        let update = StatusUpdate { object, generation: entry.meta.generation, status };
        let before = known.get(&update.object).copied();
        out.push(reuse(before, update));
    }
    out
}

fn wants_address(service: &Service) -> bool {
    service.addresses.is_empty()
        && service.resolution != Resolution::Passthrough
        && !hosts::is_wildcard(&service.host)
        && service.host.parse::<IpAddr>().is_err()
}

/// What stands behind the services of service entries.
#[derive(Debug, Default)]
pub(crate) struct Backends {
    by_service: HashMap<(String, Strng), Vec<Entry>>,
    entries: HashMap<String, Vec<WorkloadEntry>>,
    trust_domain: String,
}

impl Backends {
    pub fn new(entries: &[Entry], workload_entries: &[WorkloadEntry], settings: &Settings) -> Self {
        let mut out = Self { trust_domain: settings.trust_domain.clone(), ..Self::default() };
        for entry in entries {
            for host in &entry.spec.hosts {
                let host = hosts::complete(host, &entry.meta.namespace, &settings.domain);
                out.by_service.entry((entry.meta.namespace.clone(), host)).or_default().push(entry.clone());
            }
        }
        for entry in workload_entries {
            out.entries.entry(entry.meta.namespace.clone()).or_default().push(entry.clone());
        }
        out
    }

    /// The workload entries that a Kubernetes service selects, at the port that it leads to.
    pub fn of_kubernetes(&self, service: &Service, port: &ServicePort, workloads: &Workloads) -> Vec<Endpoint> {
        let mut out = Vec::new();
        for entry in self.entries.get(&service.namespace).into_iter().flatten() {
            let labels = entry_labels(entry);
            if !entry.spec.healthy || !selected_by(&service.selector, &labels) {
                continue;
            }
            let named = entry.spec.ports.get(&port.name).or_else(|| entry.spec.ports.get(&port.target_port_name));
            let named = named.and_then(|n| u16::try_from(*n).ok()).filter(|n| *n != 0);
            let Some(number) = named.or(port.target_port) else { continue };
            let Ok(ip) = entry.spec.address.parse::<IpAddr>() else { continue };
            let address = EndpointAddress::Ip(ip, number);
            let workload = workloads.by_name.get(&workloads::key(&service.namespace, &entry.meta.name));
            out.push(match workload {
                Some(workload) => Endpoint { weight: entry.spec.weight, ..of_workload(address, workload) },
                None => self.declared(&entry.spec, &labels, &service.namespace, address),
            });
        }
        out
    }

    /// The endpoints of one port of such a service.
    pub fn endpoints(&self, service: &Service, port: &ServicePort, workloads: &Workloads) -> Vec<Endpoint> {
        let mut out = Vec::new();
        let entries = self.by_service.get(&(service.namespace.clone(), service.host.clone()));
        for entry in entries.into_iter().flatten() {
            let Some(own) = entry.spec.ports.iter().find(|p| p.number == u32::from(port.number)) else { continue };
            match &entry.spec.workload_selector {
                Some(selector) => self.selected(&mut out, &entry.meta.namespace, &selector.labels, own, workloads),
                None if entry.spec.endpoints.is_empty() => out.extend(by_own_name(service, own)),
                None => out.extend(
                    entry.spec.endpoints.iter().filter_map(|e| self.inline(e, &entry.meta.namespace, own, workloads)),
                ),
            }
        }
        out
    }

    fn selected(
        &self,
        out: &mut Vec<Endpoint>,
        namespace: &str,
        selector: &Labels,
        port: &istio::ServiceEntryPort,
        workloads: &Workloads,
    ) {
        let pods = workloads.pods.get(namespace).into_iter().flatten();
        for pod in pods.filter(|p| p.ready && selected_by(selector, &p.labels)) {
            if let (Some(ip), Some(number)) = (pod.addresses.first(), target(port)) {
                out.push(of_workload(EndpointAddress::Ip(*ip, number), pod));
            }
        }
        for entry in self.entries.get(namespace).into_iter().flatten() {
            if !entry.spec.healthy || !selected_by(selector, &entry_labels(entry)) {
                continue;
            }
            let Some(address) = address(&entry.spec, port) else { continue };
            let workload = workloads.by_name.get(&workloads::key(namespace, &entry.meta.name));
            match (workload, &address) {
                (Some(workload), EndpointAddress::Ip(..)) => {
                    out.push(Endpoint { weight: entry.spec.weight, ..of_workload(address, workload) });
                }
                _ => out.push(self.declared(&entry.spec, &entry_labels(entry), namespace, address)),
            }
        }
    }

    fn inline(
        &self,
        spec: &istio::WorkloadEntry,
        namespace: &str,
        port: &istio::ServiceEntryPort,
        workloads: &Workloads,
    ) -> Option<Endpoint> {
        let address = address(spec, port)?;
        let mut endpoint = self.declared(spec, &spec.labels, namespace, address);
        if let EndpointAddress::Ip(ip, _) = &endpoint.address {
            endpoint.workload = workloads.by_address.get(ip).cloned();
        }
        Some(endpoint)
    }

    /// An endpoint of which everything is known by declaration.
    fn declared(
        &self,
        spec: &istio::WorkloadEntry,
        labels: &Labels,
        namespace: &str,
        address: EndpointAddress,
    ) -> Endpoint {
        let identity = match spec.service_account.as_str() {
            "" => String::new(),
            account => format!("spiffe://{}/ns/{namespace}/sa/{account}", self.trust_domain),
        };
        Endpoint {
            mtls: takes_mtls(spec, labels),
            labels: Arc::new(labels.clone()),
            identity,
            locality: locality(spec, labels),
            network: spec.network.clone(),
            weight: spec.weight,
            ..bare(address)
        }
    }
}

/// Without endpoints, a service that is resolved by DNS is found under its own name.
fn by_own_name(service: &Service, port: &istio::ServiceEntryPort) -> Option<Endpoint> {
    let by_dns = matches!(service.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    if !by_dns || hosts::is_wildcard(&service.host) {
        return None;
    }
    let number = target(port)?;
    Some(bare(match service.host.parse::<IpAddr>() {
        Ok(ip) => EndpointAddress::Ip(ip, number),
        Err(_) => EndpointAddress::Name(service.host.to_string(), number),
    }))
}

fn target(port: &istio::ServiceEntryPort) -> Option<u16> {
    let number = if port.target_port == 0 { port.number } else { port.target_port };
    u16::try_from(number).ok().filter(|n| *n != 0)
}

fn address(spec: &istio::WorkloadEntry, port: &istio::ServiceEntryPort) -> Option<EndpointAddress> {
    if let Some(path) = spec.address.strip_prefix("unix://") {
        return Some(EndpointAddress::Unix(path.to_string()));
    }
    let number = match spec.ports.get(&port.name) {
        Some(number) => u16::try_from(*number).ok().filter(|n| *n != 0)?,
        None => target(port)?,
    };
    Some(match spec.address.parse::<IpAddr>() {
        Ok(ip) => EndpointAddress::Ip(ip, number),
        Err(_) if spec.address.is_empty() => return None,
        Err(_) => EndpointAddress::Name(spec.address.to_ascii_lowercase(), number),
    })
}

/// A declared workload takes mutual TLS when its label says so, else when it has a service account to prove.
fn takes_mtls(spec: &istio::WorkloadEntry, labels: &Labels) -> bool {
    workloads::tls_mode(labels).unwrap_or(!spec.service_account.is_empty())
}

fn locality(spec: &istio::WorkloadEntry, labels: &Labels) -> String {
    match (spec.locality.as_str(), labels.get(label::LOCALITY)) {
        ("", Some(label)) => workloads::dotted_locality(label),
        (given, _) => given.to_string(),
    }
}

/// Labels of the workload: those of the object, and those of the spec that the object does not have.
fn entry_labels(entry: &Parsed<Declared>) -> Labels {
    let mut labels = entry.spec.labels.clone();
    labels.extend((*entry.meta.labels).clone());
    labels
}

/// Workload entries with an IP address, as workloads.
pub(crate) fn entry_workloads(entries: &[WorkloadEntry], settings: &Settings) -> Vec<Workload> {
    entries.iter().filter_map(|entry| entry_workload(entry, settings)).collect()
}

fn entry_workload(entry: &Parsed<Declared>, settings: &Settings) -> Option<Workload> {
    let (meta, spec) = (&entry.meta, &*entry.spec);
    let ip: IpAddr = spec.address.parse().ok()?;
    let labels = entry_labels(entry);
    let account = spec.service_account.clone();
    Some(Workload {
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        addresses: vec![ip],
        identity: if account.is_empty() {
            String::new()
        } else {
            workloads::identity(settings, &meta.namespace, &account)
        },
        service_account: account,
        workload_name: meta.name.clone(),
        owner_kind: "WorkloadEntry".into(),
        canonical_name: workloads::canonical_name(&labels, &meta.name),
        canonical_revision: workloads::canonical_revision(&labels),
        in_mesh: takes_mtls(spec, &labels),
        node: String::new(),
        locality: locality(spec, &labels),
        network: if spec.network.is_empty() { settings.network.clone() } else { spec.network.clone() },
        ready: spec.healthy,
        container_ports: Vec::new(),
        annotations: meta.annotations.clone(),
        labels: Arc::new(labels),
    })
}
