//! Services of the mesh from Kubernetes Services. (Those from service entries: `service_entries`.)

use crate::kubernetes::{IntOrName, ServicePortSpec, ServiceSpec};
use crate::parsed::{Meta, Parsed};
use crate::{ExportTo, Near, Protocol, Registry, Resolution, Service, ServicePort, Settings, protocol};
use ipnet::IpNet;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use weft_core::Strng;
use weft_core::well_known::annotation;

/// The mesh's view of one Kubernetes Service. Who runs it (`identities`) is filled in when its endpoints are known.
pub(crate) fn from_kubernetes(object: &Parsed<ServiceSpec>, settings: &Settings, default_export: &ExportTo) -> Service {
    let (meta, spec) = (&object.meta, &*object.spec);
    let external = spec.r#type == "ExternalName";
    let headless = !external && spec.cluster_ip == "None";
    Service {
        host: format!("{}.{}.svc.{}", meta.name, meta.namespace, settings.domain).into(),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        registry: Some(Registry::Kubernetes),
        addresses: if external { Vec::new() } else { cluster_ips(spec) },
        auto_addresses: Vec::new(),
        ports: spec.ports.iter().map(port).collect(),
        resolution: match (external, headless) {
            (true, _) => Resolution::Dns,
            (_, true) => Resolution::Passthrough,
            _ => Resolution::Static,
        },
        headless,
        mesh_external: external,
        selector: spec.selector.clone().unwrap_or_default(),
        external_name: (external && !spec.external_name.is_empty()).then(|| spec.external_name.to_ascii_lowercase()),
        export_to: annotated_export(meta, default_export),
        node_local: spec.internal_traffic_policy == "Local",
        near: near(meta, &spec.traffic_distribution),
        created: meta.created,
        labels: (*meta.labels).clone(),
        provenance: meta.provenance.clone(),
        ..Service::default()
    }
}

/// Annotation that says what `spec.trafficDistribution` says, also for service entries.
const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// What the annotation says, else the field.
pub(crate) fn near(meta: &Meta, field: &str) -> Option<Near> {
    match meta.annotations.get(TRAFFIC_DISTRIBUTION).map_or(field, String::as_str) {
        "PreferClose" | "PreferSameZone" => Some(Near::Zone),
        "PreferSameNode" => Some(Near::Node),
        _ => None,
    }
}

fn cluster_ips(spec: &ServiceSpec) -> Vec<IpNet> {
    let mut addresses: Vec<IpNet> = Vec::new();
    for text in std::iter::once(&spec.cluster_ip).chain(&spec.cluster_ips) {
        if let Ok(ip) = text.parse::<IpAddr>()
            && !addresses.contains(&IpNet::from(ip))
        {
            addresses.push(IpNet::from(ip));
        }
    }
    addresses
}

fn port(spec: &ServicePortSpec) -> ServicePort {
    let (target_port, target_port_name) = match &spec.target_port {
        None => (Some(spec.port), String::new()),
        // Zero is how an absent target port is written by some tools.
        Some(IntOrName::Number(0)) => (Some(spec.port), String::new()),
        Some(IntOrName::Number(number)) => (Some(*number), String::new()),
        Some(IntOrName::Name(name)) => match name.parse::<u16>() {
            Ok(number) => (Some(number), String::new()),
            Err(_) => (None, name.clone()),
        },
    };
    ServicePort {
        number: spec.port,
        name: spec.name.clone(),
        protocol: protocol::of_service_port(spec.port, &spec.name, &spec.protocol, spec.app_protocol.as_deref()),
        target_port,
        target_port_name,
    }
}

fn annotated_export(meta: &Meta, default: &ExportTo) -> ExportTo {
    match meta.annotations.get(annotation::EXPORT_TO) {
        None => localise(default, &meta.namespace),
        Some(text) => export_to(text.split(','), &meta.namespace, default),
    }
}

/// Reads an `exportTo` list of an object in `namespace`: `*` all, `.` its own namespace, `~` nobody, else names. An empty
/// list is the mesh's default.
pub(crate) fn export_to<S: AsRef<str>>(
    list: impl IntoIterator<Item = S>,
    namespace: &str,
    default: &ExportTo,
) -> ExportTo {
    let mut names = std::collections::BTreeSet::new();
    let mut nobody = false;
    for item in list {
        match item.as_ref().trim() {
            "" => {}
            "*" => return ExportTo::All,
            "." => {
                names.insert(namespace.to_string());
            }
            "~" => nobody = true,
            other => {
                names.insert(other.to_string());
            }
        }
    }
    match (nobody, names.is_empty()) {
        (true, _) => ExportTo::Nobody,
        (false, true) => localise(default, namespace),
        (false, false) => ExportTo::Namespaces(names),
    }
}

/// A mesh-wide default may name `.`: it stands for the namespace of each object.
fn localise(default: &ExportTo, namespace: &str) -> ExportTo {
    match default {
        ExportTo::Namespaces(set) if set.contains(".") => {
            ExportTo::Namespaces(set.iter().map(|n| if n == "." { namespace.to_string() } else { n.clone() }).collect())
        }
        other => other.clone(),
    }
}

/// The services, those that were equal in the last build as the same `Arc`s.
pub(crate) fn kubernetes_services(
    objects: &[Arc<Parsed<ServiceSpec>>],
    settings: &Settings,
    default_export: &ExportTo,
) -> Vec<Service> {
    objects.iter().map(|o| from_kubernetes(o, settings, default_export)).collect()
}

/// Most services of type ExternalName that one leads to another through. More are taken for a loop.
const MAX_HOPS: usize = 16;

/// Finds out which services of type ExternalName are other names of services of the mesh.
pub(crate) fn resolve_aliases(services: &mut BTreeMap<Strng, Vec<Service>>) {
    let next = |s: &Service| s.external_name.as_deref().map(|name| Strng::from(name.trim_end_matches('.')));
    let names: HashMap<Strng, Strng> =
        services.iter().filter_map(|(host, list)| Some((host.clone(), next(list.first()?)?))).collect();
    let target = |mut host: Strng| {
        for _ in 0..MAX_HOPS {
            match names.get(&host) {
                Some(next) => host = next.clone(),
                None => return services.contains_key(&host).then_some(host),
            }
        }
        None
    };
    let found: Vec<(Strng, Strng)> =
        names.keys().filter_map(|alias| Some((alias.clone(), target(alias.clone())?))).collect();
    for (alias, host) in found {
        let list = services.get_mut(&alias).into_iter().flatten();
        list.filter(|s| s.external_name.is_some()).for_each(|s| s.alias_of = Some(host.clone()));
    }
}

/// True for ports that proxies carry.
pub(crate) fn carried(port: &ServicePort) -> bool {
    port.protocol != Protocol::Udp
}

#[cfg(test)]
mod tests {
    use crate::tests::{labels, mesh, warnings_of};

    #[test]
    fn other_names_of_services() {
        let mesh = mesh(
            r#"
{apiVersion: v1, kind: Service, metadata: {name: a, namespace: x}, spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 9080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: b, namespace: x}, spec: {type: ExternalName, externalName: a.x.svc.cluster.local, ports: [{name: http, port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: c, namespace: far}, spec: {type: ExternalName, externalName: B.x.svc.cluster.local.}}
---
{apiVersion: v1, kind: Service, metadata: {name: out, namespace: x}, spec: {type: ExternalName, externalName: www.example.com}}
---
{apiVersion: v1, kind: Service, metadata: {name: self, namespace: x}, spec: {type: ExternalName, externalName: self.x.svc.cluster.local}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: narrow, namespace: far}
spec: {egress: [{port: {number: 9080, protocol: HTTP, name: h}, hosts: ["./*"]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: far}
spec: {hosts: [v.example], http: [{route: [{destination: {host: c, port: {number: 9080}}, weight: 1}, {destination: {host: c, port: {number: 80}}, weight: 1}]}]}
"#,
        );
        let alias_of = |host: &str| mesh.services[host][0].alias_of.as_deref();
        let a = "a.x.svc.cluster.local";
        assert_eq!((alias_of("b.x.svc.cluster.local"), alias_of("c.far.svc.cluster.local")), (Some(a), Some(a)));
        assert_eq!((alias_of("out.x.svc.cluster.local"), alias_of("self.x.svc.cluster.local")), (None, None));
        // Who sees the name sees what it stands for, at the ports that it has.
        let seen = mesh.sidecar_scope("far", &labels(&[]));
        let hosts: Vec<&str> = seen.egress[0].services.iter().map(|s| &*s.host).collect();
        assert_eq!(hosts, [a, "c.far.svc.cluster.local"]);
        assert_eq!(
            warnings_of(&mesh, "VirtualService", "v"),
            ["IST0101 spec.http[0].route[1].destination.port.number"]
        );
    }
}
