//! `Telemetry`: metrics, traces and access logs of workloads.

use super::common::{Duration, PolicySelector, PolicyTargetReference};
use crate::macros::{spec, words};
use std::collections::BTreeMap;

spec! {
    /// Telemetry of the selected workloads.
    pub struct Telemetry {
        /// Which workloads. Default: all of the namespace (in the root namespace: of the mesh).
        selector: Option<PolicySelector>,
        /// Older, single form of `targetRefs`.
        target_ref: Option<PolicyTargetReference>,
        /// Objects it is bound to instead.
        target_refs: Vec<PolicyTargetReference>,
        /// Traces.
        tracing: Vec<Tracing>,
        /// Metrics.
        metrics: Vec<Metrics>,
        /// Access logs.
        access_logging: Vec<AccessLogging>,
    }

    /// Traces.
    pub struct Tracing {
        /// Which side.
        r#match: Option<TracingSelector>,
        /// Where to; at most one. Default: mesh config's `defaultProviders.tracing`.
        providers: Vec<ProviderRef>,
        /// Share of requests, percent. Default: mesh config's, 1.
        random_sampling_percentage: Option<f64>,
        /// Report no spans.
        disable_span_reporting: Option<bool>,
        /// Tags by name.
        custom_tags: BTreeMap<String, CustomTag>,
        /// Whether spans carry Istio's own tags. Default: true.
        enable_istio_tags: Option<bool>,
        /// Whether the sampling decision is derived from the request id. Default: true.
        use_request_id_for_trace_sampling: Option<bool>,
        /// Do not send trace headers on.
        disable_context_propagation: Option<bool>,
    }

    /// Which side.
    pub struct TracingSelector {
        /// Side.
        mode: WorkloadMode,
    }

    /// A provider, by its name in mesh config's `extensionProviders`.
    pub struct ProviderRef {
        /// Name.
        name: String,
    }

    /// A tag; one of the four.
    pub struct CustomTag {
        /// A fixed value.
        literal: Option<LiteralTag>,
        /// An environment variable of the proxy.
        environment: Option<NamedTag>,
        /// A request header.
        header: Option<NamedTag>,
        /// An access-log format string.
        formatter: Option<LiteralTag>,
    }

    /// A value.
    pub struct LiteralTag {
        /// Value.
        value: String,
    }

    /// A value by name.
    pub struct NamedTag {
        /// Name.
        name: String,
        /// Value when there is none.
        default_value: String,
    }

    /// Metrics.
    pub struct Metrics {
        /// Where to. Default: mesh config's `defaultProviders.metrics`.
        providers: Vec<ProviderRef>,
        /// Changes, in order.
        overrides: Vec<MetricsOverrides>,
        /// Between reports of open TCP connections. Default: 5s.
        reporting_interval: Option<Duration>,
    }

    /// A change of metrics.
    pub struct MetricsOverrides {
        /// Which metrics. Default: all, both sides.
        r#match: Option<MetricSelector>,
        /// Turn off.
        disabled: Option<bool>,
        /// Changes of tags by name.
        tag_overrides: BTreeMap<String, TagOverride>,
    }

    /// Which metrics; `metric` or `customMetric`.
    pub struct MetricSelector {
        /// One of Istio's.
        metric: Option<IstioMetric>,
        /// Another.
        custom_metric: Option<String>,
        /// Which side.
        mode: WorkloadMode,
    }

    /// A change of a tag.
    pub struct TagOverride {
        /// Change.
        operation: TagOperation,
        /// CEL expression, for UPSERT.
        value: String,
    }

    /// Access logs.
    pub struct AccessLogging {
        /// Which side.
        r#match: Option<LogSelector>,
        /// Where to. Default: mesh config's `defaultProviders.accessLogging`.
        providers: Vec<ProviderRef>,
        /// Turn off.
        disabled: Option<bool>,
        /// Which requests. Default: all.
        filter: Option<LogFilter>,
    }

    /// Which side.
    pub struct LogSelector {
        /// Side.
        mode: WorkloadMode,
    }

    /// Which requests.
    pub struct LogFilter {
        /// CEL expression.
        expression: String,
    }
}

words! {
    /// Which side of a request.
    pub enum WorkloadMode {
        /// Both.
        #[default]
        ClientAndServer,
        /// Caller.
        Client,
        /// Callee.
        Server,
    }

    /// A change of a tag.
    pub enum TagOperation {
        /// Add or replace.
        #[default]
        Upsert,
        /// Remove.
        Remove,
    }

    /// Istio's metrics.
    pub enum IstioMetric {
        /// All of them.
        #[default]
        AllMetrics,
        /// `istio_requests_total`
        RequestCount,
        /// `istio_request_duration_milliseconds`
        RequestDuration,
        /// `istio_request_bytes`
        RequestSize,
        /// `istio_response_bytes`
        ResponseSize,
        /// `istio_tcp_connections_opened_total`
        TcpOpenedConnections,
        /// `istio_tcp_connections_closed_total`
        TcpClosedConnections,
        /// `istio_tcp_sent_bytes_total`
        TcpSentBytes,
        /// `istio_tcp_received_bytes_total`
        TcpReceivedBytes,
        /// `istio_request_messages_total`
        GrpcRequestMessages,
        /// `istio_response_messages_total`
        GrpcResponseMessages,
    }
}
