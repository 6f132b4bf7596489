//! What is redirected and what is left alone. Plain values; their defaults are those of Istio's `istio-init`.

use ipnet::IpNet;
use std::net::IpAddr;
use weft_core::well_known::{PROXY_UID, port};

/// Tunnel port of other data planes (HBONE): never redirected, spec of Istio's inbound rules.
pub const TUNNEL_PORT: u16 = 15008;

/// How the rules tell the proxy's own connections, which must not be redirected to it again, from the application's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyOwner {
    /// By the user and group that the proxy runs as. Needs more than one user in the pod, as Kubernetes gives.
    Ids {
        /// User ids; default 1337.
        uids: Vec<u32>,
        /// Group ids; default 1337.
        gids: Vec<u32>,
    },
    /// By the mark (`SO_MARK`) that the proxy sets on its own sockets. Works where only one user is mapped, as in a user
    /// namespace made without privilege. The application must not hold `CAP_NET_ADMIN`, or it could set the mark too.
    Mark(u32),
}

impl Default for ProxyOwner {
    fn default() -> Self {
        Self::Ids { uids: vec![PROXY_UID], gids: vec![PROXY_UID] }
    }
}

/// Which destination addresses are redirected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum OutboundRanges {
    /// All of them: `*`, the default.
    #[default]
    All,
    /// These only; an empty list redirects nothing.
    Only(Vec<IpNet>),
}

/// Which ports are redirected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Ports {
    /// All of them: `*`, the default.
    #[default]
    All,
    /// These only; an empty list redirects nothing.
    Only(Vec<u16>),
}

/// Redirection of DNS queries to the proxy's DNS server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsCapture {
    /// Port of the proxy's DNS server; default 15053.
    pub port: u16,
    /// Only queries to these servers are redirected; empty means every query on port 53.
    pub servers: Vec<IpAddr>,
}

impl Default for DnsCapture {
    fn default() -> Self {
        Self { port: port::DNS, servers: Vec::new() }
    }
}

/// How the proxy gets what the pod receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InboundMode {
    /// The destination is rewritten (`REDIRECT`): the application sees the proxy's address. The default.
    #[default]
    Redirect,
    /// Packets are handed over as they are (`TPROXY`): with transparent sockets the proxy can call the application from the
    /// client's own address. Needs `CAP_NET_ADMIN` for the proxy.
    Tproxy {
        /// Mark of packets that stay on this machine, and of the proxy's calls from others' addresses; default 1337.
        mark: u32,
        /// Routing table that keeps them here; default 133.
        table: u32,
    },
}

impl InboundMode {
    /// `TPROXY` with the numbers that Istio uses.
    pub const TPROXY: Self = Self::Tproxy { mark: PROXY_UID, table: 133 };
}

/// The whole redirection of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureConfig {
    /// How the proxy's own traffic is known.
    pub owner: ProxyOwner,
    /// The proxy's port for what the pod sends; default 15001.
    pub outbound_port: u16,
    /// The proxy's port for what the pod receives; default 15006.
    pub inbound_port: u16,
    /// Destinations that are redirected.
    pub outbound: OutboundRanges,
    /// Destinations that are not, though [`Self::outbound`] names them.
    pub exclude_outbound: Vec<IpNet>,
    /// Destination ports redirected whatever the address.
    pub include_outbound_ports: Vec<u16>,
    /// Destination ports never redirected.
    pub exclude_outbound_ports: Vec<u16>,
    /// How the proxy gets what the pod receives.
    pub inbound_mode: InboundMode,
    /// Local ports redirected to the proxy.
    pub inbound: Ports,
    /// Local ports never redirected, beside the proxy's own 15020, 15021 and 15090.
    pub exclude_inbound_ports: Vec<u16>,
    /// Network interfaces whose traffic is left alone in both directions.
    pub exclude_interfaces: Vec<String>,
    /// Interfaces of virtual machines inside the pod: what comes in by them counts as sent by the application.
    pub virtual_interfaces: Vec<String>,
    /// DNS redirection; off by default.
    pub dns: Option<DnsCapture>,
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self {
            owner: ProxyOwner::default(),
            outbound_port: port::OUTBOUND,
            inbound_port: port::INBOUND,
            outbound: OutboundRanges::All,
            exclude_outbound: Vec::new(),
            include_outbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            inbound_mode: InboundMode::Redirect,
            inbound: Ports::All,
            exclude_inbound_ports: Vec::new(),
            exclude_interfaces: Vec::new(),
            virtual_interfaces: Vec::new(),
            dns: None,
        }
    }
}
