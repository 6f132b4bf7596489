//! Outlier detection and limits of a cluster.

use super::Ctx;
use crate::{ConnectionLimits, OutlierDetection, RetryBudget};
use std::time::Duration;
use weft_proto::envoy::config::cluster::v3 as proto;
use weft_proto::envoy::config::core::v3 as core;
use weft_route::error::Path;
use weft_route::refuse_set;

/// Envoy's defaults for a cluster without thresholds.
const DEFAULT_LIMIT: u32 = 1024;
const DEFAULT_RETRIES: u32 = 3;
/// Envoy's share of a retry budget that sets none, in percent.
const DEFAULT_BUDGET: f64 = 20.0;
/// Idle time of an upstream connection unless set.
const DEFAULT_IDLE: Duration = Duration::from_secs(3600);

impl Ctx<'_> {
    pub(crate) fn outlier(&mut self, message: &proto::OutlierDetection, path: &Path<'_>) -> OutlierDetection {
        let proto::OutlierDetection {
            consecutive_5xx,
            interval,
            base_ejection_time,
            max_ejection_percent,
            enforcing_consecutive_5xx,
            // Success-rate and failure-percentage ejection need the volumes of whole clusters; Istio switches them off.
            enforcing_success_rate,
            success_rate_minimum_hosts: _,
            success_rate_request_volume: _,
            success_rate_stdev_factor: _,
            consecutive_gateway_failure,
            enforcing_consecutive_gateway_failure,
            split_external_local_origin_errors,
            consecutive_local_origin_failure,
            enforcing_consecutive_local_origin_failure,
            enforcing_local_origin_success_rate: _,
            failure_percentage_threshold: _,
            enforcing_failure_percentage,
            enforcing_failure_percentage_local_origin: _,
            failure_percentage_minimum_hosts: _,
            failure_percentage_request_volume: _,
            max_ejection_time,
            max_ejection_time_jitter: _,
            successful_active_health_check_uneject_host: _,
            monitors,
            always_eject_one_host: _,
            detect_degraded_hosts: _,
        } = message;
        refuse_set!(self.c.errors, path, monitors);
        if enforcing_success_rate.is_some_and(|n| n > 0) || enforcing_failure_percentage.is_some_and(|n| n > 0) {
            self.c.errors.degrade(path, "ejection by success rate or failure percentage is not done by weft-proxy");
        }
        // An enforcement of 0 % switches a detector off; in between, Envoy tosses a coin, which nobody asks for.
        let enforced = |count: Option<u32>, default: u32, percent: Option<u32>, on: u32| {
            if percent.unwrap_or(on) == 0 { 0 } else { count.unwrap_or(default) }
        };
        let base = self.c.duration(base_ejection_time.as_ref(), &path.field("base_ejection_time"));
        let base = base.unwrap_or(Duration::from_secs(30));
        let max = self.c.duration(max_ejection_time.as_ref(), &path.field("max_ejection_time"));
        let interval = self.c.duration(interval.as_ref(), &path.field("interval"));
        OutlierDetection {
            consecutive_5xx: enforced(*consecutive_5xx, 5, *enforcing_consecutive_5xx, 100),
            consecutive_gateway: enforced(*consecutive_gateway_failure, 5, *enforcing_consecutive_gateway_failure, 0),
            consecutive_local: enforced(
                *consecutive_local_origin_failure,
                5,
                *enforcing_consecutive_local_origin_failure,
                100,
            ),
            statuses: None,
            split_local: *split_external_local_origin_errors,
            interval: interval.unwrap_or(Duration::from_secs(10)).max(Duration::from_millis(1)),
            base_ejection: base,
            max_ejection: max.unwrap_or(Duration::from_secs(300)).max(base),
            max_ejection_percent: max_ejection_percent.unwrap_or(10).min(100),
        }
    }

    /// Limits of the default priority; Envoy's defaults where nothing is said.
    pub(crate) fn limits(&mut self, cluster: &proto::Cluster, path: &Path<'_>) -> ConnectionLimits {
        let breakers = cluster.circuit_breakers.as_ref();
        let path = path.field("circuit_breakers");
        if breakers.is_some_and(|b| !b.per_host_thresholds.is_empty()) {
            self.c.errors.degrade(&path.field("per_host_thresholds"), "is not enforced by weft-proxy");
        }
        let default = breakers.and_then(|b| b.thresholds.iter().find(|t| t.priority == 0));
        let of = |pick: fn(&proto::circuit_breakers::Thresholds) -> Option<u32>, or: u32| {
            default.and_then(pick).unwrap_or(or)
        };
        let keepalive = cluster.upstream_connection_options.as_ref().and_then(|o| o.tcp_keepalive.as_ref());
        ConnectionLimits {
            max_connections: of(|t| t.max_connections, DEFAULT_LIMIT),
            max_pending: of(|t| t.max_pending_requests, DEFAULT_LIMIT),
            max_requests: of(|t| t.max_requests, DEFAULT_LIMIT),
            max_retries: of(|t| t.max_retries, DEFAULT_RETRIES),
            retry_budget: default.and_then(|t| t.retry_budget.as_ref()).map(|budget| {
                // Over an interval a burst would count longer; without it the budget follows what is under way now.
                self.leave_out(budget.budget_interval.is_some(), &path.field("retry_budget").field("budget_interval"));
                RetryBudget {
                    percent: budget.budget_percent.as_ref().map_or(DEFAULT_BUDGET, |p| p.value.clamp(0.0, 100.0)),
                    least: budget.min_retry_concurrency.unwrap_or(DEFAULT_RETRIES),
                }
            }),
            max_requests_per_connection: 0,
            idle_timeout: Some(DEFAULT_IDLE),
            max_connection_duration: None,
            keepalive: keepalive.map(keepalive_of),
            max_concurrent_streams: u32::MAX,
        }
    }
}

/// Probes, time and interval; 0 = the system's.
fn keepalive_of(message: &core::TcpKeepalive) -> (u32, u32, u32) {
    let or_system = |n: Option<u32>| n.unwrap_or(0);
    (or_system(message.keepalive_probes), or_system(message.keepalive_time), or_system(message.keepalive_interval))
}
