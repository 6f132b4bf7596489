//! Settings of HTTP filters by route: injected faults and cross-origin policy.

use crate::pb::envoy_matcher::StringMatcher;
use crate::pb::route::Route;
use crate::pb::{self, matcher};
use weft_k8s_api::istio::{
    CorsPolicy, FaultAbort, FaultDelay, HttpFaultInjection, HttpRoute, StringMatch, UnmatchedPreflights,
};
use weft_proto::envoy::extensions::filters::common::fault::v3 as common_fault;
use weft_proto::envoy::extensions::filters::http::cors::v3 as cors;
use weft_proto::envoy::extensions::filters::http::fault::v3 as fault;
use weft_proto::pack;

/// Name of the fault filter.
pub(crate) const FAULT: &str = "envoy.filters.http.fault";
/// Name of the cross-origin filter.
pub(crate) const CORS: &str = "envoy.filters.http.cors";

/// gRPC statuses by number.
const GRPC_STATUS: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Adds what the rule sets.
pub(super) fn apply(route: &mut Route, http: &HttpRoute) {
    if let Some(message) = http.fault.as_ref().and_then(faults) {
        route.typed_per_filter_config.insert(FAULT.into(), pack(&message));
    }
    if let Some(policy) = &http.cors_policy {
        route.typed_per_filter_config.insert(CORS.into(), pack(&cross_origin(policy)));
    }
}

fn faults(injection: &HttpFaultInjection) -> Option<fault::HttpFault> {
    let delay = injection.delay.as_ref().and_then(delay);
    let abort = injection.abort.as_ref().and_then(abort);
    (delay.is_some() || abort.is_some()).then(|| fault::HttpFault { delay, abort, ..Default::default() })
}

fn delay(delay: &FaultDelay) -> Option<common_fault::FaultDelay> {
    let fixed = pb::duration(delay.fixed_delay?.get());
    Some(common_fault::FaultDelay {
        percentage: Some(pb::fraction(delay.share())),
        fault_delay_secifier: Some(common_fault::fault_delay::FaultDelaySecifier::FixedDelay(fixed)),
    })
}

fn abort(abort: &FaultAbort) -> Option<fault::FaultAbort> {
    let error = match (&abort.http_status, &abort.grpc_status) {
        (Some(status), _) => fault::fault_abort::ErrorType::HttpStatus(*status),
        (None, Some(name)) => fault::fault_abort::ErrorType::GrpcStatus(grpc_status(name)?),
        (None, None) => return None,
    };
    Some(fault::FaultAbort {
        percentage: Some(pb::fraction(abort.share())),
        error_type: Some(error),
        ..Default::default()
    })
}

/// Number of a gRPC status, by name or number.
fn grpc_status(name: &str) -> Option<u32> {
    let by_name = GRPC_STATUS.iter().position(|known| known.eq_ignore_ascii_case(name));
    let number = by_name.or_else(|| name.parse::<usize>().ok().filter(|n| *n < GRPC_STATUS.len()))?;
    u32::try_from(number).ok()
}

fn cross_origin(policy: &CorsPolicy) -> cors::CorsPolicy {
    let origins: Vec<StringMatcher> = if policy.allow_origins.is_empty() {
        policy.allow_origin.iter().map(exact_origin).collect()
    } else {
        policy.allow_origins.iter().map(origin).collect()
    };
    cors::CorsPolicy {
        allow_origin_string_match: origins,
        allow_methods: policy.allow_methods.join(","),
        allow_headers: policy.allow_headers.join(","),
        expose_headers: policy.expose_headers.join(","),
        max_age: policy.max_age.map(|age| age.get().as_secs().to_string()).unwrap_or_default(),
        allow_credentials: policy.allow_credentials,
        filter_enabled: Some(pb::runtime_fraction(100.0)),
        forward_not_matching_preflights: Some(policy.unmatched_preflights != UnmatchedPreflights::Ignore),
        ..Default::default()
    }
}

/// In the older list `*` means any.
fn exact_origin(text: &String) -> StringMatcher {
    if text == "*" { matcher::regex(".*") } else { matcher::exact(text.clone()) }
}

fn origin(value: &StringMatch) -> StringMatcher {
    match value {
        StringMatch::Exact(text) => exact_origin(text),
        StringMatch::Prefix(text) => matcher::prefix(text.clone()),
        StringMatch::Regex(regex) => matcher::regex(regex.clone()),
        StringMatch::Present => matcher::regex(".*"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_statuses() {
        for (name, want) in [("UNAVAILABLE", Some(14)), ("ok", Some(0)), ("16", Some(16)), ("17", None), ("X", None)] {
            assert_eq!(grpc_status(name), want, "{name}");
        }
    }

    #[test]
    fn shares_and_empty_faults() {
        let injection = |json: serde_json::Value| serde_json::from_value::<HttpFaultInjection>(json).unwrap();
        assert_eq!(faults(&injection(serde_json::json!({}))), None);
        let got = faults(&injection(serde_json::json!({
            "delay": {"fixedDelay": "7s", "percentage": {"value": 0.1}},
            "abort": {"httpStatus": 500, "percent": 50},
        })))
        .unwrap();
        assert_eq!(got.delay.unwrap().percentage.unwrap().numerator, 1_000);
        assert_eq!(got.abort.unwrap().percentage.unwrap().numerator, 500_000);
    }
}
