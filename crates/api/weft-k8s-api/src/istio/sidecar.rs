//! `Sidecar`: what a workload's proxy sees and listens on.

use super::common::WorkloadSelector;
use super::destination_rule::ConnectionPoolSettings;
use super::gateway::{Port, ServerTlsSettings};
use super::virtual_service::Destination;
use crate::macros::{spec, words};

spec! {
    /// Scope and listeners of sidecars.
    pub struct Sidecar {
        /// Which workloads. Default: all of the namespace (in the root namespace: of the mesh).
        workload_selector: Option<WorkloadSelector>,
        /// Inbound listeners. Default: from the services that select the workload.
        ingress: Vec<IstioIngressListener>,
        /// Outbound listeners and visible hosts. Default: everything that is exported to the namespace.
        egress: Vec<IstioEgressListener>,
        /// Limits of inbound connections.
        inbound_connection_pool: Option<ConnectionPoolSettings>,
        /// Traffic to unknown hosts. Default: mesh config's.
        outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    }

    /// An inbound listener.
    pub struct IstioIngressListener {
        /// Port.
        port: Option<Port>,
        /// Address. Default: the workload's.
        bind: String,
        /// How traffic reaches the listener.
        capture_mode: CaptureMode,
        /// Where it goes on: `127.0.0.1:PORT`, `0.0.0.0:PORT`, `[::1]:PORT`, `unix:///path` or `unix://@name`.
        default_endpoint: String,
        /// TLS.
        tls: Option<ServerTlsSettings>,
        /// Limits.
        connection_pool: Option<ConnectionPoolSettings>,
    }

    /// An outbound listener.
    pub struct IstioEgressListener {
        /// Port. Not set: all ports that no other listener names.
        port: Option<Port>,
        /// Address.
        bind: String,
        /// How traffic reaches the listener.
        capture_mode: CaptureMode,
        /// Visible hosts, each `namespace/host`; namespace may be `.`, `*` or `~`.
        hosts: Vec<String>,
    }

    /// Traffic to unknown hosts.
    pub struct OutboundTrafficPolicy {
        /// Mode.
        mode: OutboundTrafficPolicyMode,
        /// Proxy that takes traffic to unknown hosts.
        egress_proxy: Option<Destination>,
    }
}

words! {
    /// How traffic reaches a listener.
    pub enum CaptureMode {
        /// As the proxy does it elsewhere.
        #[default]
        Default,
        /// Redirected.
        Iptables,
        /// The application dials the listener.
        None,
    }

    /// Traffic to unknown hosts.
    pub enum OutboundTrafficPolicyMode {
        /// Refused.
        #[default]
        RegistryOnly,
        /// Passed on.
        AllowAny,
        /// Passed on, HTTP and TLS by the name that the request or the handshake carries (mesh config only).
        #[serde(rename = "ALLOW_ANY_DYNAMIC_DNS")]
        AllowAnyDynamicDns,
    }
}
