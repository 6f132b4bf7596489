//! `MeshConfig`: settings of the whole mesh, in the ConfigMap `istio`, key `mesh`.

use super::common::{Duration, LabelSelector, Percent};
use super::destination_rule::{
    ClientTlsSettings, ConnectionPoolSettings, LocalityLoadBalancerSetting, OutlierDetection, TcpKeepalive,
    ZoneAwareLoadBalancerSetting,
};
use super::proxy_config::{Empty, MeshProxyConfig};
use super::sidecar::OutboundTrafficPolicyMode;
use super::virtual_service::HttpRetry;
use crate::macros::{spec, words};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

spec! {
    /// Settings of the whole mesh. `Default` is "nothing set"; [`MeshConfig::with_defaults`] has the documented defaults.
    pub struct MeshConfig {
        /// Port that captured outbound connections come to. Default: 15001.
        proxy_listen_port: u32,
        /// Port that captured inbound connections come to. Default: 15006.
        proxy_inbound_listen_port: u32,
        /// Port for HTTP proxy requests. Default: none.
        proxy_http_port: u32,
        /// Time to connect to an endpoint. Default: 10s.
        connect_timeout: Option<Duration>,
        /// Longest idleness of an HBONE connection. Default: 1h.
        hbone_idle_timeout: Option<Duration>,
        /// Time to wait for the first bytes when the protocol is detected; 0s = for ever. Default: 0s.
        protocol_detection_timeout: Option<Duration>,
        /// Keepalive of connections to endpoints.
        tcp_keepalive: Option<TcpKeepalive>,
        /// Ingress class that is served. Default: `istio`.
        ingress_class: String,
        /// Service of the ingress gateway. Default: `istio-ingressgateway`.
        ingress_service: String,
        /// Which Ingress objects are served. Default: STRICT.
        ingress_controller_mode: IngressControllerMode,
        /// Value of the label `istio` of the ingress gateway. Default: `ingressgateway`.
        ingress_selector: String,
        /// Whether traces are made.
        enable_tracing: bool,
        /// File of the access log; empty = none. `/dev/stdout` is usual.
        access_log_file: String,
        /// Format of the access log; empty = Istio's.
        access_log_format: String,
        /// Text or JSON.
        access_log_encoding: AccessLogEncoding,
        /// Send the access log to `defaultConfig.envoyAccessLogService`.
        enable_envoy_access_log_service: bool,
        /// Do not log connections that no filter chain took.
        disable_envoy_listener_log: bool,
        /// Settings of proxies.
        default_config: Option<MeshProxyConfig>,
        /// Traffic to unknown hosts. Default: ALLOW_ANY.
        outbound_traffic_policy: Option<MeshOutboundTrafficPolicy>,
        /// Where inbound traffic goes on. Default: PASSTHROUGH.
        inbound_traffic_policy: Option<InboundTrafficPolicy>,
        /// Where configuration is from.
        config_sources: Vec<ConfigSource>,
        /// Whether proxies use mutual TLS to endpoints that take it. Default: true.
        enable_auto_mtls: Option<bool>,
        /// Trust domain. Default: `cluster.local`.
        trust_domain: String,
        /// Other names of the trust domain.
        trust_domain_aliases: Vec<String>,
        /// More CA certificates.
        ca_certificates: Vec<CertificateData>,
        /// Default of `exportTo` for services. Default: `*`.
        default_service_export_to: Vec<String>,
        /// Default of `exportTo` for virtual services. Default: `*`.
        default_virtual_service_export_to: Vec<String>,
        /// Default of `exportTo` for destination rules. Default: `*`.
        default_destination_rule_export_to: Vec<String>,
        /// Namespace whose policies hold for the mesh. Default: `istio-system`.
        root_namespace: String,
        /// Load balancing by locality.
        locality_lb_setting: Option<LocalityLoadBalancerSetting>,
        /// Load balancing by zone.
        zone_aware_lb_setting: Option<ZoneAwareLoadBalancerSetting>,
        /// How often DNS endpoints are resolved. Default: 60s.
        dns_refresh_rate: Option<Duration>,
        /// Whether HTTP/1.1 is upgraded to HTTP/2. Default: no.
        h2_upgrade_policy: MeshH2UpgradePolicy,
        /// Name of inbound statistics; `%SERVICE%` and others are replaced.
        inbound_cluster_stat_name: String,
        /// Name of outbound statistics; `%SERVICE%` and others are replaced.
        outbound_cluster_stat_name: String,
        /// Older field; has no effect.
        certificates: Vec<Certificate>,
        /// Settings by service host.
        service_settings: Vec<ServiceSettings>,
        /// Scope by service labels (ambient).
        service_scope_configs: Vec<ServiceScopeConfigs>,
        /// Whether the agent merges the application's metrics. Default: true.
        enable_prometheus_merge: Option<bool>,
        /// Whether SIMPLE and MUTUAL TLS without CA certificates verify against the system's. Default: true.
        verify_certificate_at_client: Option<bool>,
        /// An external CA.
        ca: Option<Ca>,
        /// Providers of telemetry and authorization.
        extension_providers: Vec<ExtensionProvider>,
        /// Providers that are used when a resource names none.
        default_providers: Option<DefaultProviders>,
        /// Which namespaces the control plane looks at. Default: all.
        discovery_selectors: Vec<LabelSelector>,
        /// How paths are normalised. Default: BASE.
        path_normalization: Option<ProxyPathNormalization>,
        /// Retry policy of routes that have none.
        default_http_retry_policy: Option<HttpRetry>,
        /// TLS between proxies.
        #[serde(rename = "meshMTLS")]
        mesh_mtls: Option<TlsConfig>,
        /// TLS elsewhere.
        tls_defaults: Option<TlsConfig>,
        /// Traffic policy of services without destination rule.
        default_traffic_policy: Option<DefaultTrafficPolicy>,
        /// Who sees service entries.
        service_entry_visibility: Option<ServiceEntryVisibility>,
    }

    /// Traffic to unknown hosts.
    pub struct MeshOutboundTrafficPolicy {
        /// Mode.
        mode: OutboundTrafficPolicyMode,
        /// TLS of traffic to unknown hosts (dynamic DNS).
        tls: Option<ClientTlsSettings>,
    }

    /// Where inbound traffic goes on.
    pub struct InboundTrafficPolicy {
        /// Mode.
        mode: InboundTrafficPolicyMode,
    }

    /// A source of configuration.
    pub struct ConfigSource {
        /// Address.
        address: String,
        /// TLS.
        tls_settings: Option<ClientTlsSettings>,
        /// What is taken from it.
        subscribed_resources: Vec<String>,
    }

    /// CA certificates; `pem` or `spiffeBundleUrl`.
    pub struct CertificateData {
        /// PEM.
        pem: Option<String>,
        /// Address of a SPIFFE bundle.
        spiffe_bundle_url: Option<String>,
        /// Signers of the Kubernetes CA they belong to.
        cert_signers: Vec<String>,
        /// Trust domains they hold for.
        trust_domains: Vec<String>,
    }

    /// Older field; has no effect.
    pub struct Certificate {
        /// Secret.
        secret_name: String,
        /// Names.
        dns_names: Vec<String>,
    }

    /// Settings by service host.
    pub struct ServiceSettings {
        /// Settings.
        settings: Option<ServiceSettingsValues>,
        /// Hosts, `*.` wildcards allowed.
        hosts: Vec<String>,
    }

    /// Settings of services.
    pub struct ServiceSettingsValues {
        /// Traffic stays in its cluster.
        cluster_local: bool,
    }

    /// Scope by service labels.
    pub struct ServiceScopeConfigs {
        /// Namespaces.
        namespace_selector: Option<LabelSelector>,
        /// Services.
        services_selector: Option<LabelSelector>,
        /// Scope.
        scope: ServiceScope,
    }

    /// An external CA.
    pub struct Ca {
        /// `host:port`.
        address: String,
        /// TLS.
        tls_settings: Option<ClientTlsSettings>,
        /// Time for a request. Default: 10s.
        request_timeout: Option<Duration>,
        /// Whether the control plane, not the proxies, asks it. Default: true.
        istiod_side: bool,
    }

    /// A provider; one of the kinds.
    pub struct ExtensionProvider {
        /// Name that resources refer to.
        name: String,
        /// Authorization by HTTP.
        envoy_ext_authz_http: Option<ExtAuthzHttpProvider>,
        /// Authorization by gRPC.
        envoy_ext_authz_grpc: Option<ExtAuthzGrpcProvider>,
        /// Traces to Zipkin.
        zipkin: Option<ZipkinProvider>,
        /// Traces to Lightstep.
        lightstep: Option<TokenTracingProvider>,
        /// Traces to Datadog.
        datadog: Option<TokenTracingProvider>,
        /// Google Cloud.
        stackdriver: Option<StackdriverProvider>,
        /// Traces to OpenCensus.
        opencensus: Option<OpenCensusProvider>,
        /// Traces to SkyWalking.
        skywalking: Option<TokenTracingProvider>,
        /// Traces by OTLP.
        opentelemetry: Option<OpenTelemetryProvider>,
        /// Metrics for Prometheus.
        prometheus: Option<Empty>,
        /// Access log to a file.
        envoy_file_access_log: Option<FileAccessLogProvider>,
        /// HTTP access log by gRPC.
        envoy_http_als: Option<GrpcLogProvider>,
        /// TCP access log by gRPC.
        envoy_tcp_als: Option<GrpcLogProvider>,
        /// Access log by OTLP.
        envoy_otel_als: Option<OtelLogProvider>,
        /// Certificates by SDS.
        sds: Option<SdsProvider>,
    }

    /// What of the body an authorizer gets.
    pub struct ExtAuthzRequestBody {
        /// Most bytes.
        max_request_bytes: u32,
        /// Send what there is of a larger body; otherwise 413.
        allow_partial_message: bool,
        /// As bytes instead of text.
        pack_as_bytes: bool,
    }

    /// Authorization by HTTP.
    pub struct ExtAuthzHttpProvider {
        /// `[namespace/]host`.
        service: String,
        /// Port.
        port: u32,
        /// Time for an answer. Default: 600s.
        timeout: Option<Duration>,
        /// Put before the path.
        path_prefix: String,
        /// Let requests pass when the authorizer fails.
        fail_open: bool,
        /// Choose the route again after an answer that changes headers.
        clear_route_cache: bool,
        /// Status when the authorizer fails. Default: 403.
        status_on_error: String,
        /// Older spelling of `includeRequestHeadersInCheck`.
        include_headers_in_check: Vec<String>,
        /// Request headers the authorizer gets besides Host, Method, Path, Content-Length and Authorization.
        include_request_headers_in_check: Vec<String>,
        /// More headers for the authorizer.
        include_additional_headers_in_check: BTreeMap<String, String>,
        /// Body.
        include_request_body_in_check: Option<ExtAuthzRequestBody>,
        /// Answer's headers for the service.
        headers_to_upstream_on_allow: Vec<String>,
        /// Answer's headers for the caller, when refused.
        headers_to_downstream_on_deny: Vec<String>,
        /// Answer's headers for the caller, when allowed.
        headers_to_downstream_on_allow: Vec<String>,
    }

    /// Authorization by gRPC.
    pub struct ExtAuthzGrpcProvider {
        /// `[namespace/]host`.
        service: String,
        /// Port.
        port: u32,
        /// Time for an answer. Default: 600s.
        timeout: Option<Duration>,
        /// Let requests pass when the authorizer fails.
        fail_open: bool,
        /// Choose the route again after an answer that changes headers.
        clear_route_cache: bool,
        /// Status when the authorizer fails. Default: 403.
        status_on_error: String,
        /// Body.
        include_request_body_in_check: Option<ExtAuthzRequestBody>,
    }

    /// Traces to Zipkin.
    pub struct ZipkinProvider {
        /// `[namespace/]host`.
        service: String,
        /// Port.
        port: u32,
        /// Longest path in a tag. Default: 256.
        max_tag_length: u32,
        /// 128-bit trace ids when false.
        #[serde(rename = "enable64bitTraceId")]
        enable_64bit_trace_id: bool,
        /// Path. Default: `/api/v2/spans`.
        path: String,
        /// Header formats.
        trace_context_option: TraceContextOption,
        /// Time for a request.
        timeout: Option<Duration>,
        /// Headers.
        headers: Vec<HttpHeader>,
    }

    /// Traces to Lightstep, Datadog or SkyWalking.
    pub struct TokenTracingProvider {
        /// `[namespace/]host`.
        service: String,
        /// Port.
        port: u32,
        /// Token.
        access_token: String,
        /// Longest path in a tag. Default: 256.
        max_tag_length: u32,
    }

    /// Google Cloud.
    pub struct StackdriverProvider {
        /// Older field; has no effect.
        debug: bool,
        /// Older field; has no effect.
        max_number_of_attributes: Option<i64>,
        /// Older field; has no effect.
        max_number_of_annotations: Option<i64>,
        /// Older field; has no effect.
        max_number_of_message_events: Option<i64>,
        /// Longest path in a tag. Default: 256.
        max_tag_length: u32,
        /// Access log.
        logging: Option<StackdriverLogging>,
    }

    /// Access log to Google Cloud.
    pub struct StackdriverLogging {
        /// Labels.
        labels: BTreeMap<String, String>,
    }

    /// Traces to OpenCensus.
    pub struct OpenCensusProvider {
        /// `[namespace/]host`.
        service: String,
        /// Port.
        port: u32,
        /// Header formats.
        context: Vec<String>,
        /// Longest path in a tag. Default: 256.
        max_tag_length: u32,
    }

    /// Traces by OTLP.
    pub struct OpenTelemetryProvider {
        /// `[namespace/]host`.
        service: String,
        /// Port.
        port: u32,
        /// Longest path in a tag. Default: 256.
        max_tag_length: u32,
        /// Over HTTP instead of gRPC.
        http: Option<HttpService>,
        /// Settings of gRPC.
        grpc: Option<GrpcService>,
        /// Where resource attributes are from.
        resource_detectors: Option<ResourceDetectors>,
        /// How the service's attributes are named.
        service_attribute_enrichment: ServiceAttributeEnrichment,
        /// Sampler.
        dynatrace_sampler: Option<DynatraceSampler>,
    }

    /// A sampler.
    pub struct DynatraceSampler {
        /// Tenant.
        tenant: String,
        /// Cluster.
        cluster_id: i32,
        /// Root spans per minute until the configuration is fetched.
        root_spans_per_minute: u32,
        /// Where its configuration is.
        http_service: Option<DynatraceApi>,
    }

    /// Where a sampler's configuration is.
    pub struct DynatraceApi {
        /// `[namespace/]host`.
        service: String,
        /// Port.
        port: u32,
        /// Path and headers.
        http: Option<HttpService>,
    }

    /// Path, time-out and headers of requests.
    pub struct HttpService {
        /// Path.
        path: String,
        /// Time for a request.
        timeout: Option<Duration>,
        /// Headers.
        headers: Vec<HttpHeader>,
    }

    /// A header; `value` or `envName`.
    pub struct HttpHeader {
        /// Name.
        name: String,
        /// Value.
        value: Option<String>,
        /// Environment variable of the proxy that has the value.
        env_name: Option<String>,
    }

    /// Time-out and metadata of calls.
    pub struct GrpcService {
        /// Time for a call.
        timeout: Option<Duration>,
        /// Metadata.
        initial_metadata: Vec<HttpHeader>,
    }

    /// Where resource attributes are from.
    pub struct ResourceDetectors {
        /// `OTEL_RESOURCE_ATTRIBUTES`.
        environment: Option<Empty>,
        /// Dynatrace's files.
        dynatrace: Option<Empty>,
    }

    /// Access log to a file.
    pub struct FileAccessLogProvider {
        /// Path.
        path: String,
        /// Format. Default: Istio's.
        log_format: Option<LogFormat>,
        /// Leave out what has no value.
        omit_empty_values: bool,
    }

    /// Format of an access log; for files one of the two.
    pub struct LogFormat {
        /// A line.
        text: Option<String>,
        /// A JSON object (files) or attributes (OTLP).
        labels: Option<Map<String, Value>>,
    }

    /// Access log by gRPC.
    pub struct GrpcLogProvider {
        /// `[namespace/]host`.
        service: String,
        /// Port.
        port: u32,
        /// Name of the log.
        log_name: String,
        /// Filter state to log.
        filter_state_objects_to_log: Vec<String>,
        /// Request headers to log (HTTP).
        additional_request_headers_to_log: Vec<String>,
        /// Response headers to log (HTTP).
        additional_response_headers_to_log: Vec<String>,
        /// Response trailers to log (HTTP).
        additional_response_trailers_to_log: Vec<String>,
    }

    /// Access log by OTLP.
    pub struct OtelLogProvider {
        /// `[namespace/]host`.
        service: String,
        /// Port.
        port: u32,
        /// Name of the log.
        log_name: String,
        /// Format.
        log_format: Option<LogFormat>,
    }

    /// Certificates by SDS.
    pub struct SdsProvider {
        /// Name of the secret.
        name: String,
        /// `[namespace/]host`.
        service: String,
        /// Port.
        port: u32,
    }

    /// Providers that are used when a resource names none.
    pub struct DefaultProviders {
        /// Traces.
        tracing: Vec<String>,
        /// Metrics.
        metrics: Vec<String>,
        /// Access logs.
        access_logging: Vec<String>,
    }

    /// How paths are normalised.
    pub struct ProxyPathNormalization {
        /// How.
        normalization: NormalizationType,
    }

    /// TLS parameters.
    pub struct TlsConfig {
        /// Least version. Default: TLS 1.2.
        min_protocol_version: MeshTlsProtocol,
        /// Curves.
        ecdh_curves: Vec<String>,
        /// Ciphers of TLS 1.2.
        cipher_suites: Vec<String>,
    }

    /// Traffic policy of services without destination rule.
    pub struct DefaultTrafficPolicy {
        /// Limits.
        connection_pool: Option<ConnectionPoolSettings>,
        /// Ejection of bad endpoints.
        outlier_detection: Option<OutlierDetection>,
    }

    /// Who sees service entries.
    pub struct ServiceEntryVisibility {
        /// When no policy matches.
        default_visibility: Visibility,
        /// Whether it holds for sidecars too.
        apply_to_sidecars: bool,
        /// Policies, in order.
        policies: Vec<VisibilityPolicy>,
    }

    /// A policy of visibility.
    pub struct VisibilityPolicy {
        /// Who sees them.
        visibility: Visibility,
        /// Which ones.
        matching_rules: Vec<VisibilityMatchRule>,
    }

    /// Which service entries.
    pub struct VisibilityMatchRule {
        /// By the labels of their namespace.
        namespace_selector: Option<LabelSelector>,
    }
}

words! {
    /// Which Ingress objects are served.
    pub enum IngressControllerMode {
        /// As STRICT.
        #[default]
        Unspecified,
        /// None.
        Off,
        /// Those of the class, and those without a class.
        Default,
        /// Those of the class.
        Strict,
    }

    /// Text or JSON.
    pub enum AccessLogEncoding {
        /// Text.
        #[default]
        Text,
        /// JSON.
        Json,
    }

    /// Where inbound traffic goes on.
    pub enum InboundTrafficPolicyMode {
        /// To the address that was dialled.
        #[default]
        Passthrough,
        /// To 127.0.0.1.
        Localhost,
    }

    /// Whether HTTP/1.1 is upgraded to HTTP/2.
    pub enum MeshH2UpgradePolicy {
        /// No.
        #[default]
        DoNotUpgrade,
        /// Yes.
        Upgrade,
    }

    /// Scope of a service.
    pub enum ServiceScope {
        /// Its cluster.
        #[default]
        Local,
        /// All clusters.
        Global,
    }

    /// Header formats of traces.
    pub enum TraceContextOption {
        /// B3.
        #[default]
        #[serde(rename = "USE_B3")]
        UseB3,
        /// B3 and W3C.
        #[serde(rename = "USE_B3_WITH_W3C_PROPAGATION")]
        UseB3WithW3cPropagation,
    }

    /// How the service's attributes are named.
    pub enum ServiceAttributeEnrichment {
        /// By Istio's canonical names.
        #[default]
        IstioCanonical,
        /// By OpenTelemetry's conventions.
        OtelSemanticConventions,
    }

    /// How paths are normalised, each more than the one before.
    pub enum NormalizationType {
        /// As BASE.
        #[default]
        Default,
        /// Not at all.
        None,
        /// RFC 3986: `.` and `..`, `\` to `/`.
        Base,
        /// And slashes merged.
        MergeSlashes,
        /// And `%2F`, `%5C` decoded first.
        DecodeAndMergeSlashes,
    }

    /// Least TLS version.
    pub enum MeshTlsProtocol {
        /// The proxy's choice.
        #[default]
        TlsAuto,
        /// 1.2
        #[serde(rename = "TLSV1_2")]
        TlsV1_2,
        /// 1.3
        #[serde(rename = "TLSV1_3")]
        TlsV1_3,
    }

    /// Who sees something.
    pub enum Visibility {
        /// As PUBLIC.
        #[default]
        VisibilityUnspecified,
        /// Nobody.
        None,
        /// The own namespace.
        Namespace,
        /// All.
        Public,
    }
}

impl MeshConfig {
    /// The documented defaults.
    pub fn with_defaults() -> Self {
        use super::*;
        MeshConfig {
            proxy_listen_port: 15001,
            proxy_inbound_listen_port: 15006,
            connect_timeout: Some(Duration::from_secs(10)),
            hbone_idle_timeout: Some(Duration::from_secs(3600)),
            protocol_detection_timeout: Some(Duration::default()),
            ingress_class: "istio".into(),
            ingress_service: "istio-ingressgateway".into(),
            ingress_selector: "ingressgateway".into(),
            ingress_controller_mode: IngressControllerMode::Strict,
            enable_tracing: true,
            default_config: Some(MeshProxyConfig::with_defaults()),
            outbound_traffic_policy: Some(MeshOutboundTrafficPolicy {
                mode: OutboundTrafficPolicyMode::AllowAny,
                tls: None,
            }),
            inbound_traffic_policy: Some(InboundTrafficPolicy::default()),
            enable_auto_mtls: Some(true),
            trust_domain: "cluster.local".into(),
            default_service_export_to: vec!["*".into()],
            default_virtual_service_export_to: vec!["*".into()],
            default_destination_rule_export_to: vec!["*".into()],
            root_namespace: "istio-system".into(),
            locality_lb_setting: Some(LocalityLoadBalancerSetting { enabled: Some(true), ..Default::default() }),
            dns_refresh_rate: Some(Duration::from_secs(60)),
            enable_prometheus_merge: Some(true),
            verify_certificate_at_client: Some(true),
            extension_providers: vec![
                ExtensionProvider {
                    name: "prometheus".into(),
                    prometheus: Some(Empty::default()),
                    ..Default::default()
                },
                ExtensionProvider {
                    name: "envoy".into(),
                    envoy_file_access_log: Some(FileAccessLogProvider {
                        path: "/dev/stdout".into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                },
            ],
            default_providers: Some(DefaultProviders { metrics: vec!["prometheus".into()], ..Default::default() }),
            path_normalization: Some(ProxyPathNormalization { normalization: NormalizationType::Base }),
            default_http_retry_policy: Some(HttpRetry {
                attempts: 2,
                retry_on: "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes".into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Settings given by a user laid over the documented defaults: objects are merged, everything else is replaced;
    /// providers are added to the built-in ones, and one of the same name replaces it.
    pub fn overlay(user: &Value) -> Value {
        let mut merged = json!(Self::with_defaults());
        let mut user = user.clone();
        let given = user.as_object_mut().and_then(|map| map.remove("extensionProviders"));
        merge(&mut merged, user, 0);
        if let (Some(Value::Array(given)), Some(Value::Array(known))) = (given, merged.get_mut("extensionProviders")) {
            known.retain(|provider| given.iter().all(|g| g["name"] != provider["name"]));
            known.extend(given);
        }
        merged
    }

    /// The provider of that name.
    pub fn extension_provider(&self, name: &str) -> Option<&ExtensionProvider> {
        self.extension_providers.iter().find(|p| p.name == name)
    }

    /// Share of requests that are traced, from `defaultConfig.tracing`. Default: 1 percent.
    pub fn sampling(&self) -> Percent {
        let tracing = self.default_config.as_ref().and_then(|c| c.tracing.as_ref());
        Percent { value: tracing.map(|t| t.sampling).filter(|s| *s > 0.0).unwrap_or(1.0) }
    }
}

impl MeshProxyConfig {
    /// The documented defaults.
    pub fn with_defaults() -> Self {
        use super::AuthenticationPolicy;
        MeshProxyConfig {
            config_path: "./etc/istio/proxy".into(),
            binary_path: "/usr/local/bin/envoy".into(),
            service_cluster: "istio-proxy".into(),
            drain_duration: Some(Duration::from_secs(45)),
            termination_drain_duration: Some(Duration::from_secs(5)),
            discovery_address: "istiod.istio-system.svc:15012".into(),
            proxy_admin_port: 15000,
            control_plane_auth_policy: AuthenticationPolicy::MutualTls,
            stat_name_length: 189,
            status_port: 15020,
            ..Default::default()
        }
    }
}

/// Lays `over` on `base`: objects field by field, everything else replaced. Depth is bounded by the readers of both.
fn merge(base: &mut Value, over: Value, depth: usize) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) if depth < 64 => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value, depth + 1);
            }
        }
        (_, Value::Null) => {}
        (base, over) => *base = over,
    }
}
