//! The filter that asks a rate limit service, and the limit of new connections.

use super::Ctx;
use crate::{ConnectionRate, RateLimitService, RequestType};
use http::{HeaderValue, StatusCode};
use std::time::Duration;
use weft_proto::envoy::config::core::v3::grpc_service;
use weft_proto::envoy::extensions::filters::http::ratelimit::v3 as http_filter;
use weft_proto::envoy::extensions::filters::network::local_ratelimit::v3 as network_filter;
use weft_route::compile::ratelimit::limited_status;
use weft_route::error::Path;
use weft_route::refuse_set;

/// Time for an answer unless set; Envoy's default.
const TIMEOUT: Duration = Duration::from_millis(20);
/// All, in parts per million.
const ALL: u32 = 1_000_000;

impl Ctx<'_> {
    pub(super) fn rate_limit_service(
        &mut self,
        message: &http_filter::RateLimit,
        path: &Path<'_>,
    ) -> Option<RateLimitService> {
        let http_filter::RateLimit {
            domain,
            stage,
            request_type,
            timeout,
            failure_mode_deny,
            rate_limited_as_resource_exhausted,
            rate_limit_service,
            enable_x_ratelimit_headers,
            disable_x_envoy_ratelimited_header,
            rate_limited_status,
            response_headers_to_add,
            status_on_error,
            // Only statistics.
            stat_prefix: _,
            filter_enabled,
            filter_enforced,
            failure_mode_deny_percent,
            rate_limits,
            metadata_namespace,
            enable_retry_after_header,
        } = message;
        refuse_set!(self.c.errors, path, enable_x_ratelimit_headers, metadata_namespace, enable_retry_after_header);
        if domain.is_empty() {
            self.c.errors.refuse(&path.field("domain"), "must not be empty");
        }
        let service = path.field("rate_limit_service");
        let service = service.field("grpc_service");
        let grpc = rate_limit_service.as_ref().and_then(|s| s.grpc_service.as_ref());
        let Some(grpc_service::TargetSpecifier::EnvoyGrpc(target)) = grpc.and_then(|g| g.target_specifier.as_ref())
        else {
            self.c.errors.refuse(&service, "must be envoy_grpc");
            return None;
        };
        let authority = if target.authority.is_empty() { &target.cluster_name } else { &target.authority };
        let code = status_on_error.as_ref().and_then(|s| u16::try_from(s.code).ok());
        let code = code.and_then(|code| StatusCode::from_u16(code).ok());
        Some(RateLimitService {
            domain: domain.clone(),
            stage: *stage,
            whose: match request_type.as_str() {
                "" | "both" => RequestType::Both,
                "internal" => RequestType::Internal,
                "external" => RequestType::External,
                _ => {
                    self.c.errors.refuse(&path.field("request_type"), "must be internal, external or both");
                    RequestType::Both
                }
            },
            cluster: self.c.pool.text(&target.cluster_name),
            authority: HeaderValue::from_str(authority).unwrap_or_else(|_| HeaderValue::from_static("ratelimit")),
            timeout: match self.c.duration(timeout.as_ref(), &path.field("timeout")) {
                None => Some(TIMEOUT),
                Some(Duration::ZERO) => None,
                set => set,
            },
            deny_on_failure: match failure_mode_deny_percent {
                None if *failure_mode_deny => ALL,
                None => 0,
                some => self.c.runtime_ppm(some.as_ref(), &path.field("failure_mode_deny_percent")),
            },
            status_on_error: code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            status: limited_status(rate_limited_status.as_ref()),
            exhausted: *rate_limited_as_resource_exhausted,
            tells: !*disable_x_envoy_ratelimited_header,
            response_headers: self.c.edit_of(response_headers_to_add, &path.field("response_headers_to_add")),
            enabled: self.c.runtime_ppm(filter_enabled.as_ref(), &path.field("filter_enabled")),
            enforced: self.c.runtime_ppm(filter_enforced.as_ref(), &path.field("filter_enforced")),
            limits: self.c.rate_limits(rate_limits, path),
        })
    }

    pub(super) fn connection_rate(
        &mut self,
        message: &network_filter::LocalRateLimit,
        path: &Path<'_>,
    ) -> Option<ConnectionRate> {
        let network_filter::LocalRateLimit { stat_prefix, token_bucket, runtime_enabled, share_key, .. } = message;
        refuse_set!(self.c.errors, path, share_key);
        // There is no runtime: the default of the flag counts, and it is on unless it says otherwise.
        if runtime_enabled.as_ref().and_then(|f| f.default_value) == Some(false) {
            return None;
        }
        let path = path.field("token_bucket");
        let Some(bucket) = token_bucket else {
            self.c.errors.refuse(&path, "must be set");
            return None;
        };
        Some(ConnectionRate { stat_prefix: self.c.pool.text(stat_prefix), bucket: self.c.bucket(bucket, &path)? })
    }
}
