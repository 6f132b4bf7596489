//! Which ports a workload serves: those that services lead to, or those that its Sidecar declares.

use crate::cluster::inbound::{InboundEndpoint, InboundPort};
use crate::proxy::ProxyView;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use weft_k8s_api::istio::{CaptureMode, ConnectionPoolSettings, IstioIngressListener};
use weft_model::{MeshSnapshot, Protocol, Sidecar};

/// The ports, by number. Of two services that lead to one port, the older says what is spoken there.
pub(crate) fn of(snapshot: &MeshSnapshot, proxy: &ProxyView, sidecar: Option<&Sidecar>) -> Vec<InboundPort> {
    let limits = sidecar.and_then(|s| s.spec.inbound_connection_pool.as_ref());
    let by_service = of_services(snapshot, proxy, limits);
    match sidecar.filter(|s| !s.spec.ingress.is_empty()) {
        Some(sidecar) => of_sidecar(proxy, sidecar, by_service),
        None if proxy.intercepts() => by_service.into_values().collect(),
        None => Vec::new(),
    }
}

fn of_services(
    snapshot: &MeshSnapshot,
    proxy: &ProxyView,
    limits: Option<&ConnectionPoolSettings>,
) -> BTreeMap<u16, InboundPort> {
    let Some(workload) = &proxy.workload else { return BTreeMap::new() };
    let mut instances = snapshot.service_instances(workload);
    instances.sort_by(|a, b| {
        let age = |i: &weft_model::ServiceInstance| (i.service.created, i.service.host.clone(), i.port.number);
        age(a).cmp(&age(b))
    });
    let mut ports: BTreeMap<u16, InboundPort> = BTreeMap::new();
    for instance in instances.into_iter().filter(|i| i.port.protocol != Protocol::Udp) {
        let port = ports.entry(instance.target_port).or_insert_with(|| InboundPort {
            port: instance.target_port,
            protocol: instance.port.protocol,
            services: Vec::new(),
            endpoint: None,
            tls: None,
            pool: limits.cloned(),
            bind: None,
            origin: instance.service.provenance.clone(),
        });
        port.services.push((instance.service, instance.port.number));
    }
    ports
}

/// Ingress listeners replace what services say; services still give the ports their names.
fn of_sidecar(proxy: &ProxyView, sidecar: &Sidecar, mut by_service: BTreeMap<u16, InboundPort>) -> Vec<InboundPort> {
    let mut ports: BTreeMap<u16, InboundPort> = BTreeMap::new();
    let pool = sidecar.spec.inbound_connection_pool.as_ref();
    for (index, ingress) in sidecar.spec.ingress.iter().enumerate() {
        let Some(number) = ingress.port.as_ref().and_then(|p| u16::try_from(p.number).ok()) else { continue };
        let services = by_service.remove(&number).map(|p| p.services).unwrap_or_default();
        let declared = ingress.port.as_ref().map(|p| p.protocol.as_str()).unwrap_or_default();
        ports.entry(number).or_insert_with(|| InboundPort {
            port: number,
            protocol: protocol(declared, ingress.tls.is_some()),
            services,
            endpoint: endpoint(proxy, ingress),
            tls: ingress.tls.clone(),
            pool: ingress.connection_pool.as_ref().or(pool).cloned(),
            bind: own_socket(proxy, ingress),
            origin: sidecar.provenance.at(format!("spec.ingress[{index}]")),
        });
    }
    ports.into_values().collect()
}

/// What is spoken behind the TLS that the listener opens itself.
fn protocol(declared: &str, opens_tls: bool) -> Protocol {
    match (crate::gateway::protocol(declared), opens_tls) {
        (Protocol::Https, true) => Protocol::Http,
        (Protocol::Tls, true) => Protocol::Tcp,
        (other, _) => other,
    }
}

/// The address that the listener binds itself: when nothing is captured for it.
fn own_socket(proxy: &ProxyView, ingress: &IstioIngressListener) -> Option<String> {
    let captured = match ingress.capture_mode {
        CaptureMode::Default => proxy.intercepts(),
        CaptureMode::Iptables => true,
        CaptureMode::None => false,
    };
    if captured {
        return None;
    }
    Some(if ingress.bind.is_empty() { proxy.wildcard().to_string() } else { ingress.bind.clone() })
}

/// `127.0.0.1:PORT`, `0.0.0.0:PORT` (the workload's address), `[::1]:PORT`, `unix://…`.
fn endpoint(proxy: &ProxyView, ingress: &IstioIngressListener) -> Option<InboundEndpoint> {
    let text = ingress.default_endpoint.as_str();
    if let Some(path) = text.strip_prefix("unix://") {
        return Some(InboundEndpoint::Unix(path.to_string()));
    }
    let at: SocketAddr = text.parse().ok()?;
    let ip = if at.ip().is_unspecified() {
        proxy.addresses().into_iter().find(|ip| ip.is_ipv4() == at.is_ipv4())?
    } else {
        at.ip()
    };
    let ip = if at.ip() == IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]) && proxy.node.ip.is_ipv4() {
        [127, 0, 0, 1].into()
    } else {
        ip
    };
    Some(InboundEndpoint::Tcp(SocketAddr::new(ip, at.port())))
}
