//! What the network needs to know of Services and their endpoints, read from the store's objects. Pure.

use super::services::{ServicePort, Transport};
use super::{GATEWAY, beside};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use weft_core::well_known::label;
use weft_k8s_api::Object;

/// One Service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Cluster addresses, at most one of a family; none for headless services and for those that are only a name.
    pub addresses: Vec<IpAddr>,
    /// Name elsewhere that this one stands for (type `ExternalName`).
    pub external_name: Option<String>,
    /// Ports.
    pub ports: Vec<PortView>,
    /// Addresses of pods that are ready (or are published before they are).
    pub endpoints: Vec<EndpointView>,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortView {
    /// Name; may be empty when there is but one.
    pub name: String,
    /// Transport; `None` for what the network does not carry (SCTP).
    pub transport: Option<Transport>,
    /// Port of the service.
    pub port: u16,
    /// Port of the node that leads to it, too.
    pub node_port: Option<u16>,
    /// Where it leads, of both families.
    pub endpoints: Vec<SocketAddr>,
}

/// One pod behind a Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointView {
    /// Address.
    pub address: IpAddr,
    /// Host name below the service's name, of a StatefulSet's pod.
    pub hostname: Option<String>,
}

/// Reads all Services with their EndpointSlices.
pub fn read<'a>(
    services: impl Iterator<Item = &'a Object>,
    slices: impl Iterator<Item = &'a Object>,
) -> Vec<ServiceView> {
    let mut by_service: BTreeMap<(&str, &str), Vec<&Object>> = BTreeMap::new();
    for slice in slices {
        if let Some(service) = slice.label(label::SERVICE_NAME) {
            by_service.entry((slice.namespace(), service)).or_default().push(slice);
        }
    }
    let none = Vec::new();
    services
        .map(|service| read_one(service, by_service.get(&(service.namespace(), service.name())).unwrap_or(&none)))
        .collect()
}

fn read_one(service: &Object, slices: &[&Object]) -> ServiceView {
    let spec = service.spec();
    let external = (spec["type"] == "ExternalName").then(|| text(&spec["externalName"])).flatten();
    let mut endpoints: Vec<EndpointView> = slices.iter().flat_map(|slice| ready(slice)).collect();
    endpoints.sort();
    endpoints.dedup();
    let ports = list(&spec["ports"]).iter().filter_map(|port| read_port(port, slices)).collect();
    ServiceView {
        namespace: service.namespace().into(),
        name: service.name().into(),
        addresses: cluster_addresses(spec),
        external_name: external,
        ports,
        endpoints,
    }
}

/// `clusterIPs`, or what older clients write.
fn cluster_addresses(spec: &Value) -> Vec<IpAddr> {
    let all = list(&spec["clusterIPs"]);
    let all = if all.is_empty() { std::slice::from_ref(&spec["clusterIP"]) } else { all };
    all.iter().filter_map(|address| address.as_str()?.parse().ok()).collect()
}

fn read_port(port: &Value, slices: &[&Object]) -> Option<PortView> {
    let name = text(&port["name"]).unwrap_or_default();
    let number = u16::try_from(port["port"].as_u64()?).ok()?;
    let mut endpoints = Vec::new();
    for slice in slices {
        // A slice need not have any.
        let of_slice = slice.body.get("ports").map(list).unwrap_or_default();
        let Some(target) = of_slice.iter().find(|p| p["name"].as_str().unwrap_or_default() == name) else { continue };
        let Some(target) = target["port"].as_u64().and_then(|p| u16::try_from(p).ok()) else { continue };
        endpoints.extend(ready(slice).map(|endpoint| SocketAddr::new(endpoint.address, target)));
    }
    endpoints.sort();
    endpoints.dedup();
    let transport = match port["protocol"].as_str() {
        None | Some("TCP") => Some(Transport::Tcp),
        Some("UDP") => Some(Transport::Udp),
        Some(_) => None,
    };
    let node_port = port["nodePort"].as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    Some(PortView { name, transport, port: number, node_port, endpoints })
}

fn ready(slice: &Object) -> impl Iterator<Item = EndpointView> + '_ {
    let endpoints = slice.body.get("endpoints").map(list).unwrap_or_default();
    // A missing condition means ready, as EndpointSlice's documentation says.
    let is_ready = |endpoint: &&Value| endpoint["conditions"]["ready"].as_bool().unwrap_or(true);
    endpoints.iter().filter(is_ready).flat_map(|endpoint| {
        let hostname = text(&endpoint["hostname"]);
        let addresses = list(&endpoint["addresses"]).iter();
        addresses
            .filter_map(|address| address.as_str()?.parse().ok())
            .map(move |address| EndpointView { address, hostname: hostname.clone() })
    })
}

/// The ports that cluster addresses serve, and those of the node.
pub fn service_ports(services: &[ServiceView]) -> Vec<ServicePort> {
    let mut ports = Vec::new();
    for service in services {
        for (address, port) in service.addresses.iter().flat_map(|a| service.ports.iter().map(move |port| (*a, port))) {
            let Some(transport) = port.transport else { continue };
            let same_family = |endpoint: &&SocketAddr| endpoint.is_ipv6() == address.is_ipv6();
            let endpoints: Vec<_> = port.endpoints.iter().filter(same_family).copied().collect();
            let node = if address.is_ipv6() { beside(GATEWAY).into() } else { IpAddr::from(GATEWAY) };
            let of_node = port.node_port.map(|port| (node, port));
            for (address, number) in [Some((address, port.port)), of_node].into_iter().flatten() {
                ports.push(ServicePort { address, transport, port: number, endpoints: endpoints.clone() });
            }
        }
    }
    ports.sort();
    ports.dedup_by(|a, b| (a.address, a.transport, a.port) == (b.address, b.transport, b.port));
    ports
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn joins_services_and_slices() {
        let object = |value: Value| -> Object { serde_json::from_value(value).unwrap() };
        let service = object(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "reviews", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80, "targetPort": 9080, "nodePort": 30007}]}}));
        let slice = object(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "reviews-1", "namespace": "default", "labels": {label::SERVICE_NAME: "reviews"}},
            "ports": [{"name": "http", "port": 9080}],
            "endpoints": [{"addresses": ["10.244.0.6"], "conditions": {"ready": false}},
                          {"addresses": ["10.244.0.5"], "hostname": "reviews-0"}]}));
        let views = read([&service].into_iter(), [&slice].into_iter());
        let ports = service_ports(&views);
        assert_eq!(ports[0].endpoints, ["10.244.0.5:9080".parse().unwrap()]);
        assert_eq!(
            (ports[1].address, ports[1].port, &ports[1].endpoints),
            (GATEWAY.into(), 30007, &ports[0].endpoints)
        );
        assert_eq!(views[0].endpoints[0].hostname.as_deref(), Some("reviews-0"));

        let bare = object(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "reviews-2", "namespace": "default", "labels": {label::SERVICE_NAME: "reviews"}}}));
        let views = read([&service].into_iter(), [&bare, &slice].into_iter());
        assert_eq!(service_ports(&views)[0].endpoints, ["10.244.0.5:9080".parse().unwrap()], "a slice without ports");
    }

    #[test]
    fn both_families() {
        let object = |value: Value| -> Object { serde_json::from_value(value).unwrap() };
        let service =
            object(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "n"},
            "spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00:10:96::7"],
                     "ports": [{"port": 80, "nodePort": 30007}]}}));
        let slice = |name: &str, address: &str| {
            object(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": name, "namespace": "n", "labels": {label::SERVICE_NAME: "a"}},
                "ports": [{"name": "", "port": 9080}], "endpoints": [{"addresses": [address]}]}))
        };
        let slices = [slice("four", "10.244.0.5"), slice("six", "fd00:10:244::5")];
        let ports = service_ports(&read([&service].into_iter(), slices.iter()));
        let shown: Vec<_> = ports.iter().map(|p| format!("{} {} {:?}", p.address, p.port, p.endpoints)).collect();
        assert_eq!(
            shown,
            [
                "10.96.0.7 80 [10.244.0.5:9080]",
                "10.244.0.1 30007 [10.244.0.5:9080]",
                "fd00:10:96::7 80 [[fd00:10:244::5]:9080]",
                "fd00:10:244::1 30007 [[fd00:10:244::5]:9080]",
            ]
        );
    }
}
