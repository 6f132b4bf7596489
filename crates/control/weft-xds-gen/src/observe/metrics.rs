//! Metrics of Weft's proxies: the extension filters, with the changes that Telemetry objects make.

use super::{Bound, Side};
use crate::pb::{self, hcm, http_filter, listener, network_filter};
use std::collections::BTreeMap;
use weft_k8s_api::istio::{IstioMetric, MetricSelector, MetricsOverrides, TagOperation, WorkloadMode};
use weft_proto::weft::v1 as weft;

/// Name of the filter for requests.
pub(crate) const HTTP_FILTER: &str = "weft.filters.http.telemetry";
/// Name of the filter for connections.
pub(crate) const NETWORK_FILTER: &str = "weft.filters.network.telemetry";

/// The filter for requests. Hosts that no service has become labels where applications of the mesh ask for them, and nowhere
/// else, as in Istio's proxies (`disable_host_header_fallback` inbound and at gateways).
pub(super) fn http(bound: &[Bound], side: Side, gateway: bool) -> hcm::HttpFilter {
    let overrides = overrides(bound, side);
    let message = weft::Telemetry {
        reporter: reporter(side),
        disabled: is_off(&overrides),
        disable_host_header_fallback: gateway || side == Side::Server,
        overrides,
        ..Default::default()
    };
    http_filter(HTTP_FILTER, &message)
}

/// The filter for connections.
pub(super) fn tcp(bound: &[Bound], side: Side) -> listener::Filter {
    let interval = bound.iter().rev().flat_map(|p| &p.spec.metrics).find_map(|m| m.reporting_interval);
    let message = weft::TcpTelemetry {
        reporter: reporter(side),
        report_interval: interval.map(|d| pb::duration(d.get())),
        disabled: is_off(&overrides(bound, side)),
    };
    network_filter(NETWORK_FILTER, &message)
}

fn reporter(side: Side) -> i32 {
    match side {
        Side::Client => weft::telemetry::Reporter::Source as i32,
        Side::Server => weft::telemetry::Reporter::Destination as i32,
    }
}

/// Changes from wide to narrow: a later one holds over an earlier one.
fn overrides(bound: &[Bound], side: Side) -> Vec<weft::MetricOverride> {
    let all = bound.iter().flat_map(|p| &p.spec.metrics).flat_map(|m| &m.overrides);
    all.filter(|o| side.is(o.r#match.as_ref().map_or(WorkloadMode::ClientAndServer, |m| m.mode))).map(message).collect()
}

fn message(change: &MetricsOverrides) -> weft::MetricOverride {
    let tag = |(name, over): (&String, &weft_k8s_api::istio::TagOverride)| {
        let expression = match over.operation {
            TagOperation::Upsert => over.value.clone(),
            TagOperation::Remove => String::new(),
        };
        (name.clone(), expression)
    };
    weft::MetricOverride {
        metric: change.r#match.as_ref().map(metric_name).unwrap_or_default(),
        disabled: change.disabled == Some(true),
        tags: change.tag_overrides.iter().map(tag).collect::<BTreeMap<_, _>>(),
    }
}

/// Name without the prefix `istio_`; empty for all.
fn metric_name(selector: &MetricSelector) -> String {
    if let Some(name) = &selector.custom_metric {
        return name.strip_prefix("istio_").unwrap_or(name).to_string();
    }
    match selector.metric.unwrap_or_default() {
        IstioMetric::AllMetrics => "",
        IstioMetric::RequestCount => "requests_total",
        IstioMetric::RequestDuration => "request_duration_milliseconds",
        IstioMetric::RequestSize => "request_bytes",
        IstioMetric::ResponseSize => "response_bytes",
        IstioMetric::TcpOpenedConnections => "tcp_connections_opened_total",
        IstioMetric::TcpClosedConnections => "tcp_connections_closed_total",
        IstioMetric::TcpSentBytes => "tcp_sent_bytes_total",
        IstioMetric::TcpReceivedBytes => "tcp_received_bytes_total",
        IstioMetric::GrpcRequestMessages => "request_messages_total",
        IstioMetric::GrpcResponseMessages => "response_messages_total",
    }
    .into()
}

/// The last word about all metrics is "off".
fn is_off(overrides: &[weft::MetricOverride]) -> bool {
    let last = overrides.iter().rfind(|o| o.metric.is_empty() && (o.disabled || o.tags.is_empty()));
    last.is_some_and(|o| o.disabled)
}
