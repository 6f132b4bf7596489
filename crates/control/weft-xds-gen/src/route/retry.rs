//! Retry policies.

use crate::pb::route::RetryPolicy;
use crate::pb::route::retry_policy::{
    RetryBackOff, RetryHostPredicate, RetryPriority, retry_host_predicate, retry_priority,
};
use crate::pb::{self};
use weft_k8s_api::istio::{HttpRetry, MeshConfig};
use weft_proto::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use weft_proto::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use weft_proto::pack;

/// Tries after the first, when nothing is said.
const DEFAULT_ATTEMPTS: u32 = 2;
/// Conditions, when nothing is said: the request certainly or very likely did not reach the service, or the answer has one of the
/// statuses that the request itself names (`x-envoy-retriable-status-codes`).
const DEFAULT_RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
/// How often another host is looked for that has not failed yet.
const HOST_SELECTION_ATTEMPTS: i64 = 5;

/// The policy of a rule; what it does not say is the mesh's default. `None`: no retries. With a hash, the host is given:
/// another one is not looked for.
pub(super) fn policy(mesh: &MeshConfig, own: Option<&HttpRetry>, hashed: bool) -> Option<RetryPolicy> {
    let Some(retry) = own.or(mesh.default_http_retry_policy.as_ref()) else {
        return Some(base(hashed));
    };
    if retry.attempts == 0 {
        return None;
    }
    let mut out = base(hashed);
    out.num_retries = Some(retry.attempts);
    if !retry.retry_on.is_empty() {
        (out.retry_on, out.retriable_status_codes) = conditions(&retry.retry_on);
    }
    out.per_try_timeout = retry.per_try_timeout.map(|t| pb::duration(t.get()));
    match retry.retry_ignore_previous_hosts {
        Some(true) => out.retry_host_predicate = vec![other_hosts()],
        Some(false) => out.retry_host_predicate.clear(),
        None => {}
    }
    if retry.retry_remote_localities == Some(true) {
        let config = PreviousPrioritiesConfig { update_frequency: 2 };
        out.retry_priority = Some(RetryPriority {
            name: "envoy.retry_priorities.previous_priorities".into(),
            config_type: Some(retry_priority::ConfigType::TypedConfig(pack(&config))),
        });
    }
    out.retry_back_off =
        retry.backoff.map(|b| RetryBackOff { base_interval: Some(pb::duration(b.get())), ..Default::default() });
    Some(out)
}

/// The policy of routes that no rule makes.
pub(super) fn default_policy(mesh: &MeshConfig, hashed: bool) -> Option<RetryPolicy> {
    policy(mesh, None, hashed)
}

/// Towards the workload: only what it has not seen is sent again.
pub(super) fn inbound_policy() -> RetryPolicy {
    RetryPolicy { num_retries: Some(DEFAULT_ATTEMPTS), retry_on: "reset-before-request".into(), ..Default::default() }
}

fn base(hashed: bool) -> RetryPolicy {
    RetryPolicy {
        num_retries: Some(DEFAULT_ATTEMPTS),
        retry_on: DEFAULT_RETRY_ON.into(),
        host_selection_retry_max_attempts: HOST_SELECTION_ATTEMPTS,
        retry_host_predicate: if hashed { Vec::new() } else { vec![other_hosts()] },
        ..Default::default()
    }
}

fn other_hosts() -> RetryHostPredicate {
    RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".into(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(pack(&PreviousHostsPredicate {}))),
    }
}

/// Splits status codes from the words: they are a condition of their own.
fn conditions(text: &str) -> (String, Vec<u32>) {
    let (mut words, mut codes) = (Vec::new(), Vec::new());
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        match part.parse::<u32>() {
            Ok(code) if (100..600).contains(&code) => codes.push(code),
            _ => words.push(part),
        }
    }
    if !codes.is_empty() && !words.contains(&"retriable-status-codes") {
        words.push("retriable-status-codes");
    }
    (words.join(","), codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(json: serde_json::Value) -> HttpRetry {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn table() {
        let mesh = MeshConfig::with_defaults();
        // rule, tries, conditions, codes
        for (own, tries, on, codes) in [
            (None, 2, DEFAULT_RETRY_ON, vec![]),
            (
                Some(retry(serde_json::json!({"attempts": 3, "retryOn": "5xx, 503,gateway-error"}))),
                3,
                "5xx,gateway-error,retriable-status-codes",
                vec![503],
            ),
            (Some(retry(serde_json::json!({"attempts": 1, "perTryTimeout": "2s"}))), 1, DEFAULT_RETRY_ON, vec![]),
        ] {
            let got = policy(&mesh, own.as_ref(), false).unwrap();
            assert_eq!(got.num_retries, Some(tries));
            assert_eq!(got.retry_on, on);
            assert_eq!(got.retriable_status_codes, codes);
            assert_eq!(got.retry_host_predicate.len(), 1);
        }
        let none = retry(serde_json::json!({"attempts": 0}));
        assert_eq!(policy(&mesh, Some(&none), false), None);
        assert!(policy(&mesh, None, true).unwrap().retry_host_predicate.is_empty());
    }
}
