//! Servers of all Gateway objects that select a proxy, put together by port. The older object keeps what it has: a server
//! whose protocol does not fit its port, or whose hosts are taken there, is left out.

use super::protocol;
use crate::proxy::ProxyView;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weft_core::Provenance;
use weft_k8s_api::istio::{Server, ServerTlsMode};
use weft_model::{Gateway, MeshSnapshot, Protocol};

/// Label of a service whose ports gateways do not translate.
const NO_PORT_TRANSLATION: &str = "experimental.istio.io/disable-gateway-port-translation";

/// One server of one Gateway, on one port of the proxy.
#[derive(Debug, Clone)]
pub(crate) struct GatewayServer {
    /// `namespace/name` of the Gateway.
    pub gateway: String,
    pub server: Server,
    pub protocol: Protocol,
    /// Port that the server declares: the one clients dial.
    pub declared_port: u16,
    /// Name of its route configuration; `None` when it has no HTTP that is read.
    pub route: Option<String>,
    /// Hosts with `./` written out: `[namespace/]host`.
    pub hosts: Vec<String>,
    pub origin: Provenance,
}

impl GatewayServer {
    /// TLS mode; `None` without TLS.
    pub fn tls_mode(&self) -> Option<ServerTlsMode> {
        self.server.tls.as_ref().filter(|_| self.has_tls()).map(|tls| tls.mode)
    }

    /// A redirect to https is the only thing that plain servers have TLS settings for.
    fn has_tls(&self) -> bool {
        self.protocol.is_tls() || (self.server.tls.is_some() && !self.protocol.is_http())
    }

    /// TLS that is passed on unopened.
    pub fn passes_tls(&self) -> bool {
        matches!(self.tls_mode(), Some(ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough))
    }

    /// Answers plain HTTP with a redirect.
    pub fn redirects(&self) -> bool {
        self.server.tls.as_ref().is_some_and(|tls| tls.https_redirect)
    }

    /// Hosts without namespaces: the server names that TLS clients send.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.hosts.iter().map(|h| bare(h).to_string()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Hosts that virtual services of `namespace` may bind to, without namespaces.
    pub fn hosts_for(&self, namespace: &str) -> Vec<String> {
        let open = |host: &&String| match host.split_once('/') {
            Some((ns, _)) => ns == "*" || ns == namespace,
            None => true,
        };
        self.hosts.iter().filter(open).map(|h| bare(h).to_string()).collect()
    }
}

/// The host of `[namespace/]host`.
pub(crate) fn bare(host: &str) -> &str {
    host.split_once('/').map_or(host, |(_, host)| host)
}

/// Servers that share a port of the proxy.
#[derive(Debug, Clone)]
pub(crate) struct PortServers {
    /// Address that is bound; empty for all.
    pub bind: String,
    /// Port of the proxy.
    pub port: u16,
    /// One plain HTTP connection manager serves all of them.
    pub plain_http: bool,
    /// Oldest Gateway first.
    pub servers: Vec<GatewayServer>,
}

/// Everything that a gateway proxy listens on, by port and address.
#[derive(Debug, Clone, Default)]
pub(crate) struct Merged {
    pub ports: Vec<PortServers>,
}

impl Merged {
    /// Servers by route configuration.
    pub fn by_route(&self) -> BTreeMap<&str, Vec<&GatewayServer>> {
        let mut routes: BTreeMap<&str, Vec<&GatewayServer>> = BTreeMap::new();
        for server in self.ports.iter().flat_map(|p| &p.servers) {
            if let Some(name) = &server.route {
                routes.entry(name).or_default().push(server);
            }
        }
        routes
    }

    /// True when no server is routed as bytes or as unopened TLS: the listeners do not depend on virtual services.
    pub fn reads_all_as_http(&self) -> bool {
        self.ports.iter().flat_map(|p| &p.servers).all(|s| s.route.is_some())
    }

    /// True when mutual TLS is passed on by the cluster that its server name encodes.
    pub fn passes_automatically(&self) -> bool {
        self.ports.iter().flat_map(|p| &p.servers).any(|s| s.tls_mode() == Some(ServerTlsMode::AutoPassthrough))
    }
}

/// The servers for `proxy`.
pub(crate) fn merge(snapshot: &MeshSnapshot, proxy: &ProxyView) -> Merged {
    let translation = Translation::of(snapshot, proxy);
    let mut ports: BTreeMap<(u16, String), PortServers> = BTreeMap::new();
    let mut taken = Taken::default();
    for gateway in snapshot.gateways_for(proxy.namespace(), &proxy.labels) {
        for (index, server) in gateway.spec.servers.iter().enumerate() {
            let Some(declared) = server.port.as_ref().and_then(|p| u16::try_from(p.number).ok()) else { continue };
            let port = translation.port(declared);
            let candidate = candidate(&gateway, index, server, declared, port);
            add(&mut ports, &mut taken, port, candidate);
        }
    }
    Merged { ports: ports.into_values().collect() }
}

fn candidate(gateway: &Arc<Gateway>, index: usize, server: &Server, declared: u16, port: u16) -> GatewayServer {
    let protocol = protocol(server.port.as_ref().map_or("", |p| p.protocol.as_str()));
    let own = |host: &String| match host.strip_prefix("./") {
        Some(host) => format!("{}/{}", gateway.namespace, host.to_ascii_lowercase()),
        None => match host.strip_prefix("*/") {
            Some(host) => host.to_ascii_lowercase(),
            None => host.to_ascii_lowercase(),
        },
    };
    let mut candidate = GatewayServer {
        gateway: format!("{}/{}", gateway.namespace, gateway.name),
        server: server.clone(),
        protocol,
        declared_port: declared,
        route: None,
        hosts: server.hosts.iter().map(own).collect(),
        origin: gateway.provenance.at(format!("spec.servers[{index}]")),
    };
    candidate.route = route_name(&candidate, gateway, port);
    candidate
}

/// Plain HTTP of a port shares one route configuration; each server that opens TLS has its own.
fn route_name(server: &GatewayServer, gateway: &Gateway, port: u16) -> Option<String> {
    let bind = if server.server.bind.is_empty() { String::new() } else { format!(".{}", server.server.bind) };
    if server.protocol.is_http() {
        return Some(format!("http.{port}{bind}"));
    }
    if server.protocol != Protocol::Https || server.passes_tls() {
        return None;
    }
    let name = server.server.port.as_ref().map_or("", |p| p.name.as_str());
    Some(format!("https.{}.{name}.{}.{}{bind}", server.declared_port, gateway.name, gateway.namespace))
}

/// What is taken: hosts of TLS servers by port and address, and names of route configurations of TLS servers.
#[derive(Default)]
struct Taken {
    hosts: BTreeSet<(u16, String, String)>,
    routes: BTreeSet<String>,
}

fn add(ports: &mut BTreeMap<(u16, String), PortServers>, taken: &mut Taken, port: u16, server: GatewayServer) {
    let bind = server.server.bind.clone();
    let plain_http = server.protocol.is_http();
    if let Some(known) = ports.get(&(port, bind.clone())) {
        // Plain TCP is told from nothing; HTTP shares with HTTP, TLS with TLS.
        let fits = known.plain_http == plain_http
            && (plain_http || (server.tls_mode().is_some() && known.servers.iter().all(|s| s.tls_mode().is_some())));
        if !fits {
            return;
        }
    }
    if server.tls_mode().is_some() {
        let hosts: Vec<(u16, String, String)> =
            server.hosts.iter().map(|host| (port, bind.clone(), bare(host).to_string())).collect();
        if hosts.iter().any(|host| taken.hosts.contains(host)) {
            return;
        }
        if let Some(route) = &server.route
            && !taken.routes.insert(format!("{route} {port}"))
        {
            return;
        }
        taken.hosts.extend(hosts);
    }
    ports
        .entry((port, bind.clone()))
        .or_insert_with(|| PortServers { bind, port, plain_http, servers: Vec::new() })
        .servers
        .push(server);
}

/// From the port that clients dial at the gateway's service to the port of the proxy.
struct Translation(BTreeMap<u16, u16>);

impl Translation {
    fn of(snapshot: &MeshSnapshot, proxy: &ProxyView) -> Self {
        let mut ports = BTreeMap::new();
        let instances = proxy.workload.as_ref().map(|w| snapshot.service_instances(w)).unwrap_or_default();
        for instance in instances {
            if !instance.service.labels.contains_key(NO_PORT_TRANSLATION) {
                ports.entry(instance.port.number).or_insert(instance.target_port);
            }
        }
        Self(ports)
    }

    fn port(&self, declared: u16) -> u16 {
        self.0.get(&declared).copied().unwrap_or(declared)
    }
}
