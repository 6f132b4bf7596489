//! Counters of a cluster and of its endpoints, under Envoy's names. Made when the cluster is first used.

use crate::outlier::Cause;
use std::cell::Cell;
use weft_core::Strng;
use weft_telemetry::{Counter, Gauge, Shard};

/// Counters of one cluster in one worker.
#[derive(Debug)]
pub struct ClusterStats {
    /// Requests sent.
    pub rq_total: Counter,
    /// Requests under way.
    pub rq_active: Gauge,
    /// Responses by class, 1xx to 5xx.
    pub rq_class: [Counter; 5],
    /// Requests that found no connection and were refused.
    pub rq_pending_overflow: Counter,
    /// Requests that waited for a connection.
    pub rq_pending_total: Counter,
    /// Requests whose connection could not be made.
    pub rq_pending_failure_eject: Counter,
    /// Requests waiting now.
    pub rq_pending_active: Gauge,
    /// Timeouts of whole requests.
    pub rq_timeout: Counter,
    /// Timeouts of single tries.
    pub rq_per_try_timeout: Counter,
    /// Retries.
    pub rq_retry: Counter,
    /// Retries that succeeded.
    pub rq_retry_success: Counter,
    /// Retries not made because too many were under way.
    pub rq_retry_overflow: Counter,
    /// Retries not made because the policy was used up.
    pub rq_retry_limit: Counter,
    /// Requests reset by us.
    pub rq_tx_reset: Counter,
    /// Requests reset by the endpoint.
    pub rq_rx_reset: Counter,
    /// Requests to no healthy endpoint.
    pub cx_none_healthy: Counter,
    /// Connections made.
    pub cx_total: Counter,
    /// Connections open.
    pub cx_active: Gauge,
    /// Connections that failed.
    pub cx_connect_fail: Counter,
    /// Connections that took too long.
    pub cx_connect_timeout: Counter,
    /// Connections refused by the breaker.
    pub cx_overflow: Counter,
    /// Connections over HTTP/1.
    pub cx_http1_total: Counter,
    /// Connections over HTTP/2.
    pub cx_http2_total: Counter,
    /// Bytes received.
    pub cx_rx_bytes: Counter,
    /// Bytes sent.
    pub cx_tx_bytes: Counter,
    /// Connections closed.
    pub cx_destroy: Counter,
    /// Of HTTP connections, those that their endpoints ended.
    pub cx_destroy_remote: Counter,
    /// Outlier detection.
    pub outlier: OutlierStats,
    /// TLS handshakes that failed.
    pub ssl_connection_error: Counter,
    /// TLS handshakes.
    pub ssl_handshake: Counter,
}

/// Counters of outlier detection.
#[derive(Debug)]
pub struct OutlierStats {
    /// Ejections.
    pub total: Counter,
    /// Ejections not made because too many endpoints were out.
    pub overflow: Counter,
    /// What was found, by [`crate::outlier::Cause`].
    pub detected: [Counter; Cause::COUNT],
    /// What led to an ejection, by cause.
    pub enforced: [Counter; Cause::COUNT],
}

const DETECTED: [&str; Cause::COUNT] = [
    "envoy_cluster_outlier_detection_ejections_detected_consecutive_5xx",
    "envoy_cluster_outlier_detection_ejections_detected_consecutive_gateway_failure",
    "envoy_cluster_outlier_detection_ejections_detected_consecutive_local_origin_failure",
    "envoy_cluster_outlier_detection_ejections_detected_success_rate",
    "envoy_cluster_outlier_detection_ejections_detected_failure_percentage",
    "envoy_cluster_outlier_detection_ejections_detected_local_origin_success_rate",
    "envoy_cluster_outlier_detection_ejections_detected_local_origin_failure_percentage",
];
const ENFORCED: [&str; Cause::COUNT] = [
    "envoy_cluster_outlier_detection_ejections_enforced_consecutive_5xx",
    "envoy_cluster_outlier_detection_ejections_enforced_consecutive_gateway_failure",
    "envoy_cluster_outlier_detection_ejections_enforced_consecutive_local_origin_failure",
    "envoy_cluster_outlier_detection_ejections_enforced_success_rate",
    "envoy_cluster_outlier_detection_ejections_enforced_failure_percentage",
    "envoy_cluster_outlier_detection_ejections_enforced_local_origin_success_rate",
    "envoy_cluster_outlier_detection_ejections_enforced_local_origin_failure_percentage",
];

impl ClusterStats {
    /// The counters of the cluster called `name`.
    pub fn new(shard: &Shard, name: &Strng) -> Self {
        let label = [("cluster_name", name.clone())];
        let counter = |n: &'static str| shard.counter(n, &label);
        let gauge = |n: &'static str| shard.gauge(n, &label);
        let class = |c: &str| {
            shard.counter(
                "envoy_cluster_upstream_rq_xx",
                &[("cluster_name", name.clone()), ("response_code_class", Strng::from(c))],
            )
        };
        Self {
            rq_total: counter("envoy_cluster_upstream_rq_total"),
            rq_active: gauge("envoy_cluster_upstream_rq_active"),
            rq_class: [class("1xx"), class("2xx"), class("3xx"), class("4xx"), class("5xx")],
            rq_pending_overflow: counter("envoy_cluster_upstream_rq_pending_overflow"),
            rq_pending_total: counter("envoy_cluster_upstream_rq_pending_total"),
            rq_pending_failure_eject: counter("envoy_cluster_upstream_rq_pending_failure_eject"),
            rq_pending_active: gauge("envoy_cluster_upstream_rq_pending_active"),
            rq_timeout: counter("envoy_cluster_upstream_rq_timeout"),
            rq_per_try_timeout: counter("envoy_cluster_upstream_rq_per_try_timeout"),
            rq_retry: counter("envoy_cluster_upstream_rq_retry"),
            rq_retry_success: counter("envoy_cluster_upstream_rq_retry_success"),
            rq_retry_overflow: counter("envoy_cluster_upstream_rq_retry_overflow"),
            rq_retry_limit: counter("envoy_cluster_upstream_rq_retry_limit_exceeded"),
            rq_tx_reset: counter("envoy_cluster_upstream_rq_tx_reset"),
            rq_rx_reset: counter("envoy_cluster_upstream_rq_rx_reset"),
            cx_none_healthy: counter("envoy_cluster_upstream_cx_none_healthy"),
            cx_total: counter("envoy_cluster_upstream_cx_total"),
            cx_active: gauge("envoy_cluster_upstream_cx_active"),
            cx_connect_fail: counter("envoy_cluster_upstream_cx_connect_fail"),
            cx_connect_timeout: counter("envoy_cluster_upstream_cx_connect_timeout"),
            cx_overflow: counter("envoy_cluster_upstream_cx_overflow"),
            cx_http1_total: counter("envoy_cluster_upstream_cx_http1_total"),
            cx_http2_total: counter("envoy_cluster_upstream_cx_http2_total"),
            cx_rx_bytes: counter("envoy_cluster_upstream_cx_rx_bytes_total"),
            cx_tx_bytes: counter("envoy_cluster_upstream_cx_tx_bytes_total"),
            cx_destroy: counter("envoy_cluster_upstream_cx_destroy"),
            cx_destroy_remote: counter("envoy_cluster_upstream_cx_destroy_remote"),
            outlier: OutlierStats {
                total: counter("envoy_cluster_outlier_detection_ejections_enforced_total"),
                overflow: counter("envoy_cluster_outlier_detection_ejections_overflow"),
                detected: DETECTED.map(counter),
                enforced: ENFORCED.map(counter),
            },
            ssl_connection_error: counter("envoy_cluster_ssl_connection_error"),
            ssl_handshake: counter("envoy_cluster_ssl_handshake"),
        }
    }

    /// Counts a response by class.
    pub fn response(&self, status: u16) {
        if let Some(counter) = self.rq_class.get(usize::from(status / 100).wrapping_sub(1)) {
            counter.inc();
        }
    }
}

/// Counts of one endpoint in one worker; shown by the admin port.
#[derive(Debug, Default)]
pub struct HostCounts {
    /// Connections made.
    pub cx_total: Cell<u64>,
    /// Connections open.
    pub cx_active: Cell<u64>,
    /// Connections that failed.
    pub cx_connect_fail: Cell<u64>,
    /// Requests sent.
    pub rq_total: Cell<u64>,
    /// Requests answered without a server error.
    pub rq_success: Cell<u64>,
    /// Requests answered with one, or not at all.
    pub rq_error: Cell<u64>,
}

/// Adds one to a cell.
pub fn bump(cell: &Cell<u64>) {
    cell.set(cell.get().wrapping_add(1));
}
