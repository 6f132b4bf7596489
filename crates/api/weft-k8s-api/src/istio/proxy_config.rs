//! `ProxyConfig`: settings of proxies, as a kind and (larger) as part of the mesh config and of the annotation
//! `proxy.istio.io/config`.

use super::common::{Duration, PolicySelector};
use super::destination_rule::{ClientTlsSettings, TcpKeepalive};
use super::workload::ReadinessProbe;
use crate::macros::{spec, words};
use serde_json::Value;
use std::collections::BTreeMap;

spec! {
    /// Settings of the selected workloads' proxies. Read when the proxy starts.
    pub struct ProxyConfig {
        /// Which workloads. Default: all of the namespace (in the root namespace: of the mesh).
        selector: Option<PolicySelector>,
        /// Worker threads; 0 = one per core. Default: from the CPU limit.
        concurrency: Option<i32>,
        /// Environment of the proxy.
        environment_variables: BTreeMap<String, String>,
        /// Image of the proxy.
        image: Option<ProxyImage>,
    }

    /// Image of the proxy.
    pub struct ProxyImage {
        /// `default`, `debug`, `distroless` …
        image_type: String,
    }

    /// Settings of proxies in mesh config (`defaultConfig`) and in the annotation `proxy.istio.io/config`.
    pub struct MeshProxyConfig {
        /// Directory of generated files. Default: `./etc/istio/proxy`.
        config_path: String,
        /// Program of the proxy. Default: `/usr/local/bin/envoy`.
        binary_path: String,
        /// Service name in traces. Default: `istio-proxy`.
        service_cluster: String,
        /// How the service name in traces is made.
        tracing_service_name: Option<TracingServiceName>,
        /// Drain of connections on restart. Default: 45s.
        drain_duration: Option<Duration>,
        /// Address of the control plane. Default: `istiod.istio-system.svc:15012`.
        discovery_address: String,
        /// Older field; has no effect.
        discovery_refresh_delay: Option<Duration>,
        /// Older spelling of `tracing.zipkin.address`.
        zipkin_address: String,
        /// Address of a statsd listener.
        statsd_udp_address: String,
        /// Older spelling of `envoyMetricsService`.
        envoy_metrics_service_address: String,
        /// Admin port. Default: 15000.
        proxy_admin_port: u32,
        /// Older field; has no effect.
        availability_zone: String,
        /// Authentication towards the control plane. Default: MUTUAL_TLS.
        control_plane_auth_policy: AuthenticationPolicy,
        /// Bootstrap file of the user's own.
        custom_config_file: String,
        /// Longest name of a statistic. Default: 189.
        stat_name_length: u32,
        /// Worker threads; 0 = one per core. Default: from the CPU limit, else 2.
        concurrency: Option<i32>,
        /// Bootstrap template of the user's own.
        proxy_bootstrap_template_path: String,
        /// How traffic is captured. Default: REDIRECT.
        interception_mode: InboundInterceptionMode,
        /// Traces.
        tracing: Option<ProxyTracing>,
        /// Older field; has no effect.
        sds: Option<Sds>,
        /// Access-log service.
        envoy_access_log_service: Option<RemoteService>,
        /// Metrics service.
        envoy_metrics_service: Option<RemoteService>,
        /// Variables: `ISTIO_META_…` become node metadata, others the proxy's environment.
        proxy_metadata: BTreeMap<String, String>,
        /// Envoy runtime flags.
        runtime_values: BTreeMap<String, String>,
        /// Agent's status port. Default: 15020.
        status_port: u32,
        /// More labels that become tags of statistics.
        extra_stat_tags: Vec<String>,
        /// What is in front of a gateway.
        gateway_topology: Option<Topology>,
        /// Drain on shutdown. Default: 5s.
        termination_drain_duration: Option<Duration>,
        /// Name of the mesh. Default: the trust domain.
        mesh_id: String,
        /// Probe of the application (workloads that are not pods).
        readiness_probe: Option<ReadinessProbe>,
        /// More statistics.
        proxy_stats_matcher: Option<ProxyStatsMatcher>,
        /// Start the application after the proxy. Default: false.
        hold_application_until_proxy_starts: Option<bool>,
        /// More CA certificates.
        ca_certificates_pem: Vec<String>,
        /// Image of the proxy.
        image: Option<ProxyImage>,
        /// Hardware for TLS keys.
        private_key_provider: Option<PrivateKeyProvider>,
        /// Which headers the proxy adds.
        proxy_headers: Option<ProxyHeaders>,
        /// How often access-log files are flushed. Default: 10s.
        file_flush_interval: Option<Duration>,
        /// Buffer of access-log files, KiB. Default: 64.
        file_flush_min_size_kb: u32,
        /// Offer compressed statistics. Default: true.
        stats_compression: Option<bool>,
        /// Buffers, limits and time-outs of connections.
        connection_settings: Option<ConnectionSettings>,
    }

    /// Traces; one tracer.
    pub struct ProxyTracing {
        /// Zipkin.
        zipkin: Option<TracerAddress>,
        /// Lightstep.
        lightstep: Option<Lightstep>,
        /// Datadog.
        datadog: Option<TracerAddress>,
        /// Stackdriver.
        stackdriver: Option<Value>,
        /// OpenCensus.
        open_census_agent: Option<OpenCensusAgent>,
        /// Tags by name.
        custom_tags: BTreeMap<String, super::telemetry::CustomTag>,
        /// Longest path in a tag. Default: 256.
        max_path_tag_length: u32,
        /// Share of requests, percent. Default: 1.
        sampling: f64,
        /// TLS towards the tracer.
        tls_settings: Option<ClientTlsSettings>,
        /// Whether spans carry Istio's own tags. Default: true.
        enable_istio_tags: Option<bool>,
    }

    /// A tracer by its address.
    pub struct TracerAddress {
        /// `host:port`.
        address: String,
    }

    /// Lightstep.
    pub struct Lightstep {
        /// `host:port`.
        address: String,
        /// Token.
        access_token: String,
    }

    /// OpenCensus.
    pub struct OpenCensusAgent {
        /// Address.
        address: String,
        /// Header formats.
        context: Vec<String>,
    }

    /// Older field; has no effect.
    pub struct Sds {
        /// Has no effect.
        enabled: bool,
        /// Has no effect.
        k8s_sa_jwt_path: String,
    }

    /// A service of the user's own.
    pub struct RemoteService {
        /// `host:port`.
        address: String,
        /// TLS.
        tls_settings: Option<ClientTlsSettings>,
        /// Keepalive.
        tcp_keepalive: Option<TcpKeepalive>,
    }

    /// What is in front of a gateway.
    pub struct Topology {
        /// Trusted proxies in front: `X-Forwarded-For` is read this many from the right.
        num_trusted_proxies: u32,
        /// What happens to `X-Forwarded-Client-Cert`. Default at gateways: SANITIZE_SET.
        forward_client_cert_details: ForwardClientCertDetails,
        /// Present: the PROXY protocol is expected.
        proxy_protocol: Option<Empty>,
    }

    /// Present or not.
    pub struct Empty {}

    /// Statistics to keep besides the usual.
    pub struct ProxyStatsMatcher {
        /// By prefix.
        inclusion_prefixes: Vec<String>,
        /// By suffix.
        inclusion_suffixes: Vec<String>,
        /// By RE2 expression.
        inclusion_regexps: Vec<String>,
    }

    /// Hardware for TLS keys; one of the two.
    pub struct PrivateKeyProvider {
        /// CryptoMB.
        cryptomb: Option<PollingProvider>,
        /// QAT.
        qat: Option<PollingProvider>,
    }

    /// Hardware for TLS keys.
    pub struct PollingProvider {
        /// Wait for a full batch.
        poll_delay: Option<Duration>,
        /// Fall back to software.
        fallback: Option<bool>,
    }

    /// Which headers the proxy adds.
    pub struct ProxyHeaders {
        /// What happens to `X-Forwarded-Client-Cert`. Default: APPEND_FORWARD for sidecars.
        forwarded_client_cert: ForwardClientCertDetails,
        /// What is put into it.
        set_current_client_cert_details: Option<SetCurrentClientCertDetails>,
        /// `X-Request-Id`.
        request_id: Option<HeaderSwitch>,
        /// `Server`.
        server: Option<ServerHeader>,
        /// `X-Envoy-Attempt-Count`.
        attempt_count: Option<HeaderSwitch>,
        /// `X-Envoy-…` of debugging.
        envoy_debug_headers: Option<HeaderSwitch>,
        /// Headers of metadata exchange.
        metadata_exchange_headers: Option<MetadataExchangeHeaders>,
        /// Keep the case of HTTP/1.1 header names. Default: false.
        #[serde(rename = "preserveHttp1HeaderCase")]
        preserve_http1_header_case: Option<bool>,
        /// `X-Forwarded-Host`.
        x_forwarded_host: Option<HeaderEnabled>,
        /// `X-Forwarded-Port`.
        x_forwarded_port: Option<HeaderEnabled>,
    }

    /// What is put into `X-Forwarded-Client-Cert`.
    pub struct SetCurrentClientCertDetails {
        /// Subject. Default: true.
        subject: Option<bool>,
        /// Certificate.
        cert: Option<bool>,
        /// Chain.
        chain: Option<bool>,
        /// DNS names. Default: true.
        dns: Option<bool>,
        /// URIs. Default: true.
        uri: Option<bool>,
    }

    /// A header that is on by default.
    pub struct HeaderSwitch {
        /// Turn off.
        disabled: Option<bool>,
    }

    /// A header that is off by default.
    pub struct HeaderEnabled {
        /// Turn on.
        enabled: Option<bool>,
    }

    /// The `Server` header.
    pub struct ServerHeader {
        /// Turn off.
        disabled: Option<bool>,
        /// Value. Default: `istio-envoy`.
        value: String,
    }

    /// Headers of metadata exchange.
    pub struct MetadataExchangeHeaders {
        /// Where they are sent.
        mode: MetadataExchangeMode,
    }

    /// Buffers, limits and time-outs of connections. What is not set is the proxy's default.
    pub struct ConnectionSettings {
        /// Set of defaults: inside the mesh or at its edge.
        profile: ConnectionProfile,
        /// Buffer per downstream connection, bytes.
        listener_per_connection_buffer_limit_bytes: Option<i32>,
        /// Buffer per upstream connection, bytes.
        cluster_per_connection_buffer_limit_bytes: Option<i32>,
        /// Longest idleness of an HTTP connection.
        http_idle_timeout: Option<Duration>,
        /// Longest life of an HTTP connection.
        http_max_connection_duration: Option<Duration>,
        /// Time to drain an HTTP connection.
        http_drain_timeout: Option<Duration>,
        /// Time for a whole request to arrive.
        http_request_timeout: Option<Duration>,
        /// Time for a request's headers to arrive.
        http_request_headers_timeout: Option<Duration>,
        /// Longest idleness of a stream.
        http_stream_idle_timeout: Option<Duration>,
        /// Longest life of a stream.
        http_max_stream_duration: Option<Duration>,
        /// Most concurrent streams.
        http_max_concurrent_streams: Option<i32>,
        /// HTTP/2 window of a stream, bytes.
        #[serde(rename = "http2InitialStreamWindowSize")]
        http2_initial_stream_window_size: Option<i32>,
        /// HTTP/2 window of a connection, bytes.
        #[serde(rename = "http2InitialConnectionWindowSize")]
        http2_initial_connection_window_size: Option<i32>,
        /// What happens to headers with underscores.
        http_headers_with_underscores_action: HeadersWithUnderscoresAction,
        /// Merge slashes in paths.
        http_merge_slashes: Option<bool>,
        /// What happens to escaped slashes in paths.
        http_path_with_escaped_slashes_action: PathWithEscapedSlashesAction,
        /// Most connections of a listener.
        listener_connection_limit: Option<i32>,
        /// Most downstream connections in all.
        global_downstream_connection_limit: Option<i32>,
    }
}

words! {
    /// How the service name in traces is made.
    pub enum TracingServiceName {
        /// `app` label and namespace.
        #[default]
        AppLabelAndNamespace,
        /// Canonical name.
        CanonicalNameOnly,
        /// Canonical name and namespace.
        CanonicalNameAndNamespace,
    }

    /// Authentication towards the control plane.
    pub enum AuthenticationPolicy {
        /// None.
        #[default]
        None,
        /// Mutual TLS.
        MutualTls,
        /// From the mesh.
        Inherit,
    }

    /// How traffic is captured.
    pub enum InboundInterceptionMode {
        /// Redirected; the caller's address is lost to the application.
        #[default]
        Redirect,
        /// Transparent; the caller's address stays.
        Tproxy,
        /// Not.
        None,
    }

    /// What happens to `X-Forwarded-Client-Cert`.
    pub enum ForwardClientCertDetails {
        /// As the proxy's default.
        #[default]
        Undefined,
        /// Removed.
        Sanitize,
        /// Kept when the connection is mutual TLS.
        ForwardOnly,
        /// Kept and added to when the connection is mutual TLS.
        AppendForward,
        /// Replaced when the connection is mutual TLS.
        SanitizeSet,
        /// Kept.
        AlwaysForwardOnly,
    }

    /// Where headers of metadata exchange are sent.
    pub enum MetadataExchangeMode {
        /// Everywhere.
        #[default]
        Undefined,
        /// Inside the mesh only.
        InMesh,
    }

    /// A set of defaults.
    pub enum ConnectionProfile {
        /// Inside the mesh.
        #[default]
        Sidecar,
        /// At its edge.
        Edge,
    }

    /// What happens to headers with underscores.
    pub enum HeadersWithUnderscoresAction {
        /// As the profile says.
        #[default]
        HeadersWithUnderscoresUnspecified,
        /// Kept.
        HeadersWithUnderscoresAllow,
        /// The request is refused.
        HeadersWithUnderscoresRejectRequest,
        /// Removed.
        HeadersWithUnderscoresDropHeader,
    }

    /// What happens to escaped slashes in paths.
    pub enum PathWithEscapedSlashesAction {
        /// As mesh config's `pathNormalization` says.
        #[default]
        PathWithEscapedSlashesUnspecified,
        /// Kept.
        KeepUnchanged,
        /// The request is refused.
        RejectRequest,
        /// Redirected to the unescaped path.
        UnescapeAndRedirect,
        /// Unescaped.
        UnescapeAndForward,
    }
}
