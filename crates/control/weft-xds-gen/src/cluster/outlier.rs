//! Ejection of endpoints that fail.

use super::Draft;
use crate::pb::cluster::OutlierDetection;
use crate::pb::{self, envoy_type, matcher, upstream_http};
use weft_k8s_api::istio;
use weft_proto::envoy::config::common::matcher::v3 as predicate;

/// Sets outlier detection as the policy says. What it leaves out is Envoy's default, except that success rates are not
/// looked at: they eject without anything having been set.
pub(super) fn apply(draft: &mut Draft, outlier: Option<&istio::OutlierDetection>) {
    let Some(outlier) = outlier else { return };
    let mut out = OutlierDetection { enforcing_success_rate: Some(0), ..Default::default() };
    let consecutive =
        outlier.consecutive_5xx_errors.or((outlier.consecutive_errors > 0).then_some(outlier.consecutive_errors));
    if let Some(count) = consecutive {
        out.consecutive_5xx = Some(count);
        out.enforcing_consecutive_5xx = Some(enforced(count));
    }
    if let Some(count) = outlier.consecutive_gateway_errors {
        out.consecutive_gateway_failure = Some(count);
        out.enforcing_consecutive_gateway_failure = Some(enforced(count));
    }
    out.interval = outlier.interval.map(|d| pb::duration(d.get()));
    out.base_ejection_time = outlier.base_ejection_time.map(|d| pb::duration(d.get()));
    out.max_ejection_percent = (outlier.max_ejection_percent > 0).then_some(outlier.max_ejection_percent);
    if outlier.split_external_local_origin_errors {
        out.split_external_local_origin_errors = true;
        out.enforcing_local_origin_success_rate = Some(0);
        if let Some(count) = outlier.consecutive_local_origin_failures.filter(|count| *count > 0) {
            out.consecutive_local_origin_failure = Some(count);
            out.enforcing_consecutive_local_origin_failure = Some(100);
        }
    }
    draft.cluster.outlier_detection = Some(out);
    let panic = envoy_type::Percent { value: outlier.min_health_percent.into() };
    draft.cluster.common_lb_config.get_or_insert_default().healthy_panic_threshold = Some(panic);
    error_codes(draft, &outlier.outlier_detection_http_error_codes);
}

/// A count of 0 switches the check off.
fn enforced(count: u32) -> u32 {
    if count > 0 { 100 } else { 0 }
}

/// Status codes that count as errors instead of 5xx.
fn error_codes(draft: &mut Draft, codes: &[u32]) {
    if codes.is_empty() {
        return;
    }
    let status = |code: &u32| predicate::MatchPredicate {
        rule: Some(predicate::match_predicate::Rule::HttpResponseHeadersMatch(predicate::HttpHeadersMatch {
            headers: vec![matcher::header(":status", matcher::exact(code.to_string()))],
        })),
    };
    let mut rules: Vec<_> = codes.iter().map(status).collect();
    let error_matcher = if rules.len() == 1 {
        rules.pop()
    } else {
        let any = predicate::match_predicate::MatchSet { rules };
        Some(predicate::MatchPredicate { rule: Some(predicate::match_predicate::Rule::OrMatch(any)) })
    };
    draft.http.outlier = Some(upstream_http::http_protocol_options::OutlierDetection { error_matcher });
}
