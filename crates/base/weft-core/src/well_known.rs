//! Names, labels, annotations and ports that users and their tools rely on (spec 1:§3.5–3.8).

/// Default trust domain of SPIFFE identities.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// Default suffix of service names in DNS.
pub const DEFAULT_DOMAIN: &str = "cluster.local";
/// Namespace whose policies bind the whole mesh, and where the control plane lives.
pub const ROOT_NAMESPACE: &str = "istio-system";
/// Identifies the cluster to the control plane.
pub const DEFAULT_CLUSTER_ID: &str = "Kubernetes";
/// ConfigMap, one per namespace, whose key [`ROOT_CERT_KEY`] holds the mesh root certificates.
pub const ROOT_CERT_CONFIG_MAP: &str = "istio-ca-root-cert";
/// Key of [`ROOT_CERT_CONFIG_MAP`], and the file name it is mounted under.
pub const ROOT_CERT_KEY: &str = "root-cert.pem";
/// Audience of the service-account tokens that proxies present to the control plane.
pub const TOKEN_AUDIENCE: &str = "istio-ca";

/// Files as mounted into a pod.
pub mod path {
    /// Projected service-account token with audience [`super::TOKEN_AUDIENCE`].
    pub const TOKEN: &str = "/var/run/secrets/tokens/istio-token";
    /// Mesh root certificates.
    pub const ROOT_CERT: &str = "/var/run/secrets/istio/root-cert.pem";
    /// Socket on which the agent serves SDS to an Envoy beside it.
    pub const SDS_SOCKET: &str = "/var/run/secrets/workload-spiffe-uds/socket";
    /// The pod's labels, one `key="value"` a line (downward API).
    pub const POD_LABELS: &str = "/etc/istio/pod/labels";
    /// The pod's annotations, same form.
    pub const POD_ANNOTATIONS: &str = "/etc/istio/pod/annotations";
}

/// Labels.
pub mod label {
    /// On a namespace: `enabled` or `disabled`.
    pub const INJECTION: &str = "istio-injection";
    /// On a namespace or pod: revision or tag.
    pub const REVISION: &str = "istio.io/rev";
    /// On a pod: `"true"` or `"false"`.
    pub const INJECT: &str = "sidecar.istio.io/inject";
    /// Overrides `app` in telemetry.
    pub const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
    /// Overrides `version` in telemetry.
    pub const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
    /// `istio` on endpoints that accept mutual TLS.
    pub const TLS_MODE: &str = "security.istio.io/tlsMode";
    /// Locality of a workload, `region.zone.subzone`.
    pub const LOCALITY: &str = "istio-locality";
    /// Region of a node.
    pub const REGION: &str = "topology.kubernetes.io/region";
    /// Zone of a node.
    pub const ZONE: &str = "topology.kubernetes.io/zone";
    /// Service that an EndpointSlice belongs to.
    pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
}

/// Annotations.
pub mod annotation {
    /// Opt-out of injection (older form of the label).
    pub const INJECT: &str = "sidecar.istio.io/inject";
    /// Comma-separated injection templates.
    pub const TEMPLATES: &str = "inject.istio.io/templates";
    /// Namespaces a Service is visible in.
    pub const EXPORT_TO: &str = "networking.istio.io/exportTo";
    /// On workload entries that a probe is asked for: they take traffic when their status says `Healthy`.
    pub const HEALTH_CHECKED: &str = "proxy.istio.io/health-checks-enabled";
    /// Per-pod ProxyConfig, YAML.
    pub const PROXY_CONFIG: &str = "proxy.istio.io/config";
    /// `weft` (default) or `envoy`.
    pub const ENGINE: &str = "weft.dev/proxy-engine";
    /// `true`: the proxy takes only the configuration that it uses. weft-proxy alone.
    pub const ON_DEMAND: &str = "weft.dev/on-demand";
    /// Outbound IP ranges to capture; default `*`.
    pub const INCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
    /// Outbound IP ranges not to capture.
    pub const EXCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
    /// Outbound ports to capture.
    pub const INCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
    /// Outbound ports not to capture.
    pub const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
    /// Inbound ports to capture; default `*`.
    pub const INCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeInboundPorts";
    /// Inbound ports not to capture.
    pub const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
    /// Prometheus' own scrape annotations.
    pub const PROMETHEUS_SCRAPE: &str = "prometheus.io/scrape";
    /// Port of the application's metrics.
    pub const PROMETHEUS_PORT: &str = "prometheus.io/port";
    /// Path of the application's metrics.
    pub const PROMETHEUS_PATH: &str = "prometheus.io/path";
}

/// Ports.
pub mod port {
    /// Proxy admin, loopback only.
    pub const ADMIN: u16 = 15000;
    /// Virtual outbound listener.
    pub const OUTBOUND: u16 = 15001;
    /// Traps redirect loops.
    pub const OUTBOUND_LOOP: u16 = 15002;
    /// Virtual inbound listener.
    pub const INBOUND: u16 = 15006;
    /// Control plane: plain-text xDS, off by default.
    pub const XDS_PLAIN: u16 = 15010;
    /// Control plane: xDS and CA over TLS.
    pub const XDS: u16 = 15012;
    /// Control plane: monitoring.
    pub const MONITORING: u16 = 15014;
    /// Control plane: webhooks.
    pub const WEBHOOK: u16 = 15017;
    /// Merged metrics of proxy and application.
    pub const MERGED_METRICS: u16 = 15020;
    /// Readiness.
    pub const READINESS: u16 = 15021;
    /// DNS proxy.
    pub const DNS: u16 = 15053;
    /// Proxy metrics for Prometheus.
    pub const PROXY_METRICS: u16 = 15090;
}

/// User and group id of the proxy: its own traffic is not captured.
pub const PROXY_UID: u32 = 1337;
