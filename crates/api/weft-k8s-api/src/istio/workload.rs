//! `WorkloadEntry` and `WorkloadGroup`: workloads that are not pods.

use crate::macros::spec;
use std::collections::BTreeMap;

spec! {
    /// A workload that is not a pod, or an endpoint of a service entry.
    pub struct WorkloadEntry {
        /// IP address, DNS name or `unix:///path`.
        address: String,
        /// Port by name of the service's port.
        ports: BTreeMap<String, u32>,
        /// Labels.
        labels: BTreeMap<String, String>,
        /// Network.
        network: String,
        /// Locality `region/zone/subzone`.
        locality: String,
        /// Share of traffic. Default: 1.
        weight: u32,
        /// Service account it runs as.
        service_account: String,
    }

    /// A template for workload entries that register themselves.
    pub struct WorkloadGroup {
        /// Labels and annotations of the entries.
        metadata: Option<WorkloadGroupMetadata>,
        /// Template; has no address.
        template: Option<WorkloadEntry>,
        /// Probe of readiness.
        probe: Option<ReadinessProbe>,
    }

    /// Metadata of the entries.
    pub struct WorkloadGroupMetadata {
        /// Labels.
        labels: BTreeMap<String, String>,
        /// Annotations.
        annotations: BTreeMap<String, String>,
    }

    /// A probe; one of the four checks.
    pub struct ReadinessProbe {
        /// Wait before the first check, seconds. Default: 0.
        initial_delay_seconds: u32,
        /// Time for a check, seconds. Default: 1.
        timeout_seconds: u32,
        /// Between checks, seconds. Default: 10.
        period_seconds: u32,
        /// Successes in a row until ready. Default: 1.
        success_threshold: u32,
        /// Failures in a row until not ready. Default: 3.
        failure_threshold: u32,
        /// GET that answers 2xx or 3xx.
        http_get: Option<HttpHealthCheck>,
        /// Connection that opens.
        tcp_socket: Option<TcpHealthCheck>,
        /// Command that ends with 0.
        exec: Option<ExecHealthCheck>,
        /// gRPC health check.
        grpc: Option<GrpcHealthCheck>,
    }

    /// HTTP check.
    pub struct HttpHealthCheck {
        /// Path. Default: `/`.
        path: String,
        /// Port.
        port: u32,
        /// Host. Default: localhost.
        host: String,
        /// `HTTP` (default) or `HTTPS`.
        scheme: String,
        /// Headers.
        http_headers: Vec<HttpHealthCheckHeader>,
    }

    /// A header.
    pub struct HttpHealthCheckHeader {
        /// Name.
        name: String,
        /// Value.
        value: String,
    }

    /// TCP check.
    pub struct TcpHealthCheck {
        /// Host. Default: localhost.
        host: String,
        /// Port.
        port: u32,
    }

    /// Command check.
    pub struct ExecHealthCheck {
        /// Program and arguments.
        command: Vec<String>,
    }

    /// gRPC check.
    pub struct GrpcHealthCheck {
        /// Port.
        port: u32,
        /// Service to ask for. Default: the server as a whole.
        service: String,
    }
}
