//! Outlier detection and limits of a cluster.

use super::Ctx;
use crate::{ConnectionLimits, FailureRule, OutlierDetection, RetryBudget, SuccessRule, Thresholds};
use std::time::Duration;
use weft_proto::envoy::config::cluster::v3 as proto;
use weft_proto::envoy::config::cluster::v3::circuit_breakers as breakers;
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
            enforcing_success_rate,
            success_rate_minimum_hosts,
            success_rate_request_volume,
            success_rate_stdev_factor,
            consecutive_gateway_failure,
            enforcing_consecutive_gateway_failure,
            split_external_local_origin_errors,
            consecutive_local_origin_failure,
            enforcing_consecutive_local_origin_failure,
            enforcing_local_origin_success_rate,
            failure_percentage_threshold,
            enforcing_failure_percentage,
            enforcing_failure_percentage_local_origin,
            failure_percentage_minimum_hosts,
            failure_percentage_request_volume,
            max_ejection_time,
            max_ejection_time_jitter,
            successful_active_health_check_uneject_host,
            monitors,
            always_eject_one_host,
            detect_degraded_hosts,
        } = message;
        refuse_set!(self.c.errors, path, monitors, detect_degraded_hosts);
        self.leave_out(max_ejection_time_jitter.is_some(), &path.field("max_ejection_time_jitter"));
        let base = self.c.duration(base_ejection_time.as_ref(), &path.field("base_ejection_time"));
        let base = base.unwrap_or(Duration::from_secs(30));
        let max = self.c.duration(max_ejection_time.as_ref(), &path.field("max_ejection_time"));
        let interval = self.c.duration(interval.as_ref(), &path.field("interval"));
        let percent = |set: &Option<u32>, default: u32| set.unwrap_or(default).min(100);
        OutlierDetection {
            consecutive_5xx: consecutive_5xx.unwrap_or(5),
            consecutive_gateway: consecutive_gateway_failure.unwrap_or(5),
            consecutive_local: consecutive_local_origin_failure.unwrap_or(5),
            enforcing: [
                percent(enforcing_consecutive_5xx, 100),
                percent(enforcing_consecutive_gateway_failure, 0),
                percent(enforcing_consecutive_local_origin_failure, 100),
                percent(enforcing_success_rate, 100),
                percent(enforcing_failure_percentage, 0),
                percent(enforcing_local_origin_success_rate, 100),
                percent(enforcing_failure_percentage_local_origin, 0),
            ],
            success: SuccessRule {
                min_hosts: success_rate_minimum_hosts.unwrap_or(5),
                volume: success_rate_request_volume.unwrap_or(100),
                factor: f64::from(success_rate_stdev_factor.unwrap_or(1900)) / 1000.0,
            },
            failure: FailureRule {
                min_hosts: failure_percentage_minimum_hosts.unwrap_or(5),
                volume: failure_percentage_request_volume.unwrap_or(50),
                threshold: f64::from(percent(failure_percentage_threshold, 85)),
            },
            statuses: None,
            split_local: *split_external_local_origin_errors,
            interval: interval.unwrap_or(Duration::from_secs(10)).max(Duration::from_millis(1)),
            base_ejection: base,
            max_ejection: max.unwrap_or(Duration::from_secs(300)).max(base),
            max_ejection_percent: percent(max_ejection_percent, 10),
            always_one: always_eject_one_host.unwrap_or(false),
            check_takes_back: successful_active_health_check_uneject_host.unwrap_or(true),
        }
    }

    /// Limits; Envoy's defaults where nothing is said.
    pub(crate) fn limits(&mut self, cluster: &proto::Cluster, path: &Path<'_>) -> ConnectionLimits {
        let keepalive = cluster.upstream_connection_options.as_ref().and_then(|o| o.tcp_keepalive.as_ref());
        let path = path.field("circuit_breakers");
        let none = proto::CircuitBreakers::default();
        let breakers = cluster.circuit_breakers.as_ref().unwrap_or(&none);
        let [default, high] = [core::RoutingPriority::Default, core::RoutingPriority::High].map(|priority| {
            let found = breakers.thresholds.iter().enumerate().find(|(_, t)| t.priority == priority as i32);
            match found {
                Some((i, thresholds)) => self.thresholds(thresholds, &path.item("thresholds", i)),
                None => self.thresholds(&breakers::Thresholds::default(), &path),
            }
        });
        ConnectionLimits {
            default,
            high,
            max_connections_per_host: self.per_host(&breakers.per_host_thresholds, &path),
            max_requests_per_connection: 0,
            idle_timeout: Some(DEFAULT_IDLE),
            max_connection_duration: None,
            keepalive: keepalive.map(keepalive_of),
            max_concurrent_streams: u32::MAX,
        }
    }

    fn thresholds(&mut self, message: &breakers::Thresholds, path: &Path<'_>) -> Thresholds {
        let breakers::Thresholds {
            priority: _,
            max_connections,
            max_pending_requests,
            max_requests,
            max_retries,
            retry_budget,
            track_remaining,
            max_connection_pools,
        } = message;
        refuse_set!(self.c.errors, path, max_connection_pools);
        Thresholds {
            max_connections: max_connections.unwrap_or(DEFAULT_LIMIT),
            max_pending: max_pending_requests.unwrap_or(DEFAULT_LIMIT),
            max_requests: max_requests.unwrap_or(DEFAULT_LIMIT),
            max_retries: max_retries.unwrap_or(DEFAULT_RETRIES),
            retry_budget: retry_budget.as_ref().map(|budget| {
                // Over an interval a burst would count longer; without it the budget follows what is under way now.
                self.leave_out(budget.budget_interval.is_some(), &path.field("retry_budget").field("budget_interval"));
                RetryBudget {
                    percent: budget.budget_percent.as_ref().map_or(DEFAULT_BUDGET, |p| p.value.clamp(0.0, 100.0)),
                    least: budget.min_retry_concurrency.unwrap_or(DEFAULT_RETRIES),
                }
            }),
            track_remaining: *track_remaining,
        }
    }

    /// Limits of single endpoints: as Envoy, their connections alone, and of the default priority.
    fn per_host(&mut self, list: &[breakers::Thresholds], path: &Path<'_>) -> u32 {
        let mut most = u32::MAX;
        for (i, message) in list.iter().enumerate() {
            let path = path.item("per_host_thresholds", i);
            let breakers::Thresholds {
                priority,
                max_connections,
                max_pending_requests,
                max_requests,
                max_retries,
                retry_budget,
                track_remaining,
                max_connection_pools,
            } = message;
            refuse_set!(
                self.c.errors,
                path,
                priority,
                max_pending_requests,
                max_requests,
                max_retries,
                retry_budget,
                track_remaining,
                max_connection_pools
            );
            most = most.min(max_connections.unwrap_or(u32::MAX));
        }
        most
    }
}

/// Probes, time and interval; 0 = the system's.
fn keepalive_of(message: &core::TcpKeepalive) -> (u32, u32, u32) {
    let or_system = |n: Option<u32>| n.unwrap_or(0);
    (or_system(message.keepalive_probes), or_system(message.keepalive_time), or_system(message.keepalive_interval))
}
