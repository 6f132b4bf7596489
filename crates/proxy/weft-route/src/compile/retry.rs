//! Retry policies.

use super::Compiler;
use crate::error::Path;
use crate::{RetryOn, RetryPolicy, refuse_set};
use http::StatusCode;
use prost::Message as _;
use std::sync::Arc;
use std::time::Duration;
use weft_proto::envoy::config::route::v3 as proto;

/// First back-off unless set.
const BASE_INTERVAL: Duration = Duration::from_millis(25);

impl Compiler<'_> {
    /// A retry policy; equal ones are stored once.
    pub(super) fn retry_policy(&mut self, message: &proto::RetryPolicy, path: &Path<'_>) -> Arc<RetryPolicy> {
        let bytes = message.encode_to_vec();
        if let Some(found) = self.pool.retry(&bytes) {
            return found;
        }
        let from = self.errors.len();
        let policy = self.new_retry_policy(message, path);
        if self.errors.len() == from {
            self.pool.share_retry(bytes, &policy);
        }
        policy
    }

    fn new_retry_policy(&mut self, message: &proto::RetryPolicy, path: &Path<'_>) -> Arc<RetryPolicy> {
        let proto::RetryPolicy {
            retry_on,
            num_retries,
            per_try_timeout,
            per_try_idle_timeout,
            // Which priority is tried next; this proxy always takes the first one that is healthy.
            retry_priority,
            retry_host_predicate,
            retry_options_predicates,
            host_selection_retry_max_attempts,
            retriable_status_codes,
            retry_back_off,
            rate_limited_retry_back_off,
            retriable_headers,
            retriable_request_headers,
            refresh_cluster_on_retry,
        } = message;
        refuse_set!(self.errors, path, retry_options_predicates, rate_limited_retry_back_off, refresh_cluster_on_retry);
        if per_try_idle_timeout.is_some() {
            let message = "is left out by weft-proxy; per_try_timeout and the route's idle_timeout hold";
            self.errors.degrade(&path.field("per_try_idle_timeout"), message);
        }
        if let Some(priority) = retry_priority
            && priority.name != "envoy.retry_priorities.previous_priorities"
        {
            self.errors
                .refuse(&path.field("retry_priority"), format!("{:?} is not supported by weft-proxy", priority.name));
        }
        let (base_interval, max_interval) = self.back_off(retry_back_off.as_ref(), &path.field("retry_back_off"));
        let statuses = self.statuses(retriable_status_codes, &path.field("retriable_status_codes"));
        let headers = retriable_headers
            .iter()
            .enumerate()
            .filter_map(|(i, h)| self.header_matcher(h, &path.item("retriable_headers", i)))
            .collect();
        let request_headers = retriable_request_headers
            .iter()
            .enumerate()
            .filter_map(|(i, h)| self.header_matcher(h, &path.item("retriable_request_headers", i)))
            .collect();
        Arc::new(RetryPolicy {
            on: self.retry_on(retry_on, &path.field("retry_on")),
            statuses,
            attempts: num_retries.unwrap_or(1),
            per_try_timeout: self.limit(per_try_timeout.as_ref(), &path.field("per_try_timeout")),
            base_interval,
            max_interval,
            avoid_previous_hosts: self.host_predicates(retry_host_predicate, path),
            // Envoy counts the first choice; below one there would be none.
            host_attempts: u32::try_from(*host_selection_retry_max_attempts).unwrap_or(1).max(1),
            headers,
            request_headers,
        })
    }

    fn back_off(
        &mut self,
        message: Option<&proto::retry_policy::RetryBackOff>,
        path: &Path<'_>,
    ) -> (Duration, Duration) {
        let Some(message) = message else { return (BASE_INTERVAL, BASE_INTERVAL * 10) };
        let base = self.limit(message.base_interval.as_ref(), &path.field("base_interval")).unwrap_or(BASE_INTERVAL);
        let max = self.limit(message.max_interval.as_ref(), &path.field("max_interval"));
        let max = max.unwrap_or_else(|| base.saturating_mul(10));
        if max < base {
            self.errors.refuse(&path.field("max_interval"), "must not be below base_interval");
        }
        (base, max.max(base))
    }

    fn statuses(&mut self, codes: &[u32], path: &Path<'_>) -> Vec<StatusCode> {
        let mut list = Vec::with_capacity(codes.len());
        for code in codes {
            match u16::try_from(*code).ok().and_then(|c| StatusCode::from_u16(c).ok()) {
                Some(status) => list.push(status),
                None => self.errors.refuse(path, format!("{code} is not an HTTP status; it must be 100 to 599")),
            }
        }
        list
    }

    fn host_predicates(&mut self, list: &[proto::retry_policy::RetryHostPredicate], path: &Path<'_>) -> bool {
        let mut avoid = false;
        for (i, predicate) in list.iter().enumerate() {
            if predicate.name == "envoy.retry_host_predicates.previous_hosts" {
                avoid = true;
            } else {
                let message = format!(
                    "{:?} is not supported by weft-proxy; use envoy.retry_host_predicates.previous_hosts",
                    predicate.name
                );
                self.errors.refuse(&path.item("retry_host_predicate", i), message);
            }
        }
        avoid
    }

    /// Conditions as a list of words. A word that is not known never causes a retry, so the policy stays safe without it.
    fn retry_on(&mut self, text: &str, path: &Path<'_>) -> RetryOn {
        let mut on = RetryOn::default();
        for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            match word {
                "5xx" => on.server_error = true,
                "gateway-error" => on.gateway_error = true,
                "reset" => on.reset = true,
                "reset-before-request" => on.reset_before_request = true,
                "connect-failure" => on.connect_failure = true,
                "refused-stream" => on.refused_stream = true,
                "retriable-4xx" => on.retriable_4xx = true,
                "retriable-status-codes" => on.status_codes = true,
                "retriable-headers" => on.headers = true,
                "cancelled" => on.grpc_cancelled = true,
                "deadline-exceeded" => on.grpc_deadline = true,
                "internal" => on.grpc_internal = true,
                "resource-exhausted" => on.grpc_exhausted = true,
                "unavailable" => on.grpc_unavailable = true,
                // There is no HTTP/3 upstream.
                "http3-post-connect-failure" => {}
                other => self.errors.degrade(path, format!("{other:?} is not a retry condition; it is left out")),
            }
        }
        on
    }
}
