//! AuthorizationPolicies to RBAC filters: AUDIT, then DENY, then ALLOW, and before them CUSTOM.
//!
//! A policy binds by namespace and selector; which ones bind a workload is the model's business. CUSTOM policies hand a
//! request to an external authorizer. No filter for that is generated yet, so what a CUSTOM policy matches is denied: closed,
//! not open.

mod condition;
mod policy;
mod trust_domain;

pub(crate) use trust_domain::TrustDomains;

use crate::pb::{hcm, http_filter, listener, network_filter, rbac};
use policy::translate_rule;
use std::collections::BTreeMap;
use weft_k8s_api::istio::{self, AuthorizationAction as Action};
use weft_model::Policy;
use weft_proto::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use weft_proto::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;

/// Annotation that turns a policy into a dry run: evaluated and reported, not enforced.
const DRY_RUN: &str = "istio.io/dry-run";
/// Name of the filter for HTTP.
pub(crate) const HTTP_FILTER: &str = "envoy.filters.http.rbac";
/// Name of the filter for TCP.
pub(crate) const NETWORK_FILTER: &str = "envoy.filters.network.rbac";
/// Ending of the names of rules that deny because their action cannot be carried out.
const BAD_CUSTOM: &str = "-deny-due-to-bad-CUSTOM-action";

/// What is being guarded: HTTP knows requests, TCP only connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    /// Requests.
    Http,
    /// Connections.
    Tcp,
}

/// A policy as the model holds it.
pub(crate) type AuthzPolicy = Policy<istio::AuthorizationPolicy>;

/// The rules of one filter: enforced ones and dry-run ones.
#[derive(Debug, Default, PartialEq)]
struct Rules {
    enforced: Option<rbac::Rbac>,
    shadow: Option<rbac::Rbac>,
}

/// HTTP filters that enforce `policies`, in order.
pub(crate) fn http_filters(policies: &[&AuthzPolicy], trust: &TrustDomains) -> Vec<hcm::HttpFilter> {
    all_rules(policies, Layer::Http, trust)
        .into_iter()
        .map(|rules| {
            let prefix = shadow_prefix(&rules);
            let config = HttpRbac {
                rules: rules.enforced,
                shadow_rules: rules.shadow,
                shadow_rules_stat_prefix: prefix,
                ..Default::default()
            };
            http_filter(HTTP_FILTER, &config)
        })
        .collect()
}

/// Network filters that enforce `policies`, in order.
pub(crate) fn network_filters(policies: &[&AuthzPolicy], trust: &TrustDomains) -> Vec<listener::Filter> {
    all_rules(policies, Layer::Tcp, trust)
        .into_iter()
        .map(|rules| {
            let prefix = shadow_prefix(&rules);
            let config = NetworkRbac {
                rules: rules.enforced,
                shadow_rules: rules.shadow,
                shadow_rules_stat_prefix: prefix,
                stat_prefix: "tcp.".into(),
                ..Default::default()
            };
            network_filter(NETWORK_FILTER, &config)
        })
        .collect()
}

fn all_rules(policies: &[&AuthzPolicy], layer: Layer, trust: &TrustDomains) -> Vec<Rules> {
    let steps = [
        (Action::Custom, rbac::rbac::Action::Deny),
        (Action::Audit, rbac::rbac::Action::Log),
        (Action::Deny, rbac::rbac::Action::Deny),
        (Action::Allow, rbac::rbac::Action::Allow),
    ];
    let rules_of = |(action, effect)| {
        let of_action: Vec<&AuthzPolicy> = policies.iter().copied().filter(|p| p.spec.action == action).collect();
        (!of_action.is_empty()).then(|| build(&of_action, action, effect, layer, trust))
    };
    steps.into_iter().filter_map(rules_of).collect()
}

/// The rules of all policies of one action.
fn build(
    policies: &[&AuthzPolicy],
    action: Action,
    effect: rbac::rbac::Action,
    layer: Layer,
    trust: &TrustDomains,
) -> Rules {
    let mut enforced: Option<BTreeMap<String, rbac::Policy>> = None;
    let mut shadow: Option<BTreeMap<String, rbac::Policy>> = None;
    for policy in policies {
        let side = if is_dry_run(policy) { &mut shadow } else { &mut enforced };
        let rules = side.get_or_insert_default();
        for (index, rule) in policy.spec.rules.iter().enumerate() {
            if let Some(translated) = translate_rule(rule, &policy.namespace, effect, layer, trust) {
                rules.insert(rule_name(policy, index, action), translated);
            }
        }
        if policy.spec.rules.is_empty() {
            rules.insert(rule_name(policy, 0, action), policy::match_never());
        }
    }
    let message = |policies| rbac::Rbac { action: effect as i32, policies, ..Default::default() };
    Rules { enforced: enforced.map(message), shadow: shadow.map(message) }
}

fn rule_name(policy: &AuthzPolicy, index: usize, action: Action) -> String {
    let name = format!("ns[{}]-policy[{}]-rule[{index}]", policy.namespace, policy.name);
    if action != Action::Custom {
        return name;
    }
    let provider = policy.spec.provider.as_ref().map_or("", |p| p.name.as_str());
    let prefix = if provider.is_empty() { "istio-ext-authz".into() } else { format!("istio-ext-authz-{provider}") };
    format!("{prefix}-{name}{BAD_CUSTOM}")
}

fn is_dry_run(policy: &AuthzPolicy) -> bool {
    policy.annotations.get(DRY_RUN).is_some_and(|v| matches!(v.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
}

/// Prefix under which the outcome of dry-run rules is reported. Without such rules it says nothing, and is what an ALLOW
/// filter has.
fn shadow_prefix(rules: &Rules) -> String {
    let action = rules.shadow.as_ref().map_or(0, |shadow| shadow.action);
    match rbac::rbac::Action::try_from(action) {
        Ok(rbac::rbac::Action::Allow) => "istio_dry_run_allow_".into(),
        Ok(rbac::rbac::Action::Deny) => "istio_dry_run_deny_".into(),
        _ => String::new(),
    }
}
