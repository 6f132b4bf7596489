//! `ServiceEntry`: services that Kubernetes does not know.

use super::common::WorkloadSelector;
use super::workload::WorkloadEntry;
use crate::macros::{spec, words};

spec! {
    /// A service declared by hand.
    pub struct ServiceEntry {
        /// Names, `*.` wildcards allowed with resolution NONE and DYNAMIC_DNS.
        hosts: Vec<String>,
        /// Virtual addresses or CIDRs.
        addresses: Vec<String>,
        /// Ports.
        ports: Vec<ServiceEntryPort>,
        /// Inside or outside of the mesh. Default: outside.
        location: ServiceEntryLocation,
        /// How its endpoints are found.
        resolution: ServiceEntryResolution,
        /// Endpoints given by hand.
        endpoints: Vec<WorkloadEntry>,
        /// Endpoints: pods and workload entries of the namespace with these labels.
        workload_selector: Option<WorkloadSelector>,
        /// Namespaces that see it: names, `.` (own) or `*` (all). Default: mesh config's `defaultServiceExportTo`.
        export_to: Vec<String>,
        /// Accepted names of the servers.
        subject_alt_names: Vec<String>,
    }

    /// A port of the service.
    pub struct ServiceEntryPort {
        /// 1 to 65535.
        number: u32,
        /// `HTTP`, `HTTPS`, `GRPC`, `HTTP2`, `MONGO`, `TCP`, `TLS`. Default: by name, else TCP.
        protocol: String,
        /// Name.
        name: String,
        /// Port on the endpoint. Default: `number`.
        target_port: u32,
    }
}

words! {
    /// Inside or outside of the mesh.
    pub enum ServiceEntryLocation {
        /// Outside: no mutual TLS by default.
        #[default]
        MeshExternal,
        /// Inside.
        MeshInternal,
    }

    /// How endpoints are found.
    pub enum ServiceEntryResolution {
        /// The caller's address is used as it is.
        #[default]
        None,
        /// From `endpoints` or `workloadSelector`.
        Static,
        /// By DNS, balanced over all addresses.
        Dns,
        /// By DNS, one address at a time.
        DnsRoundRobin,
        /// By DNS, by the host of each request (wildcard names).
        DynamicDns,
    }
}
