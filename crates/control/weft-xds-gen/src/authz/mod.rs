//! AuthorizationPolicies to RBAC filters: AUDIT, then DENY, then ALLOW, and before them CUSTOM.
//!
//! A policy binds by namespace and selector; which ones bind a workload is the model's business. CUSTOM policies hand a
//! request to an external authorizer ([`external`]); where that cannot be asked, what they match is denied.

mod condition;
mod external;
mod policy;
mod trust_domain;

pub(crate) use trust_domain::TrustDomains;

use crate::pb::{hcm, http_filter, listener, network_filter, rbac};
use crate::scope::View;
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
    /// Prefix under which the outcome of the shadow rules is reported, when it is not that of a dry run.
    prefix: Option<&'static str>,
}

/// HTTP filters that enforce `policies`, in order.
pub(crate) fn http_filters(view: View<'_>, policies: &[&AuthzPolicy], trust: &TrustDomains) -> Vec<hcm::HttpFilter> {
    let mut out = Vec::new();
    for (name, policies) in external::by_provider(&of_action(policies, Action::Custom)) {
        let rules = build(&policies, Action::Custom, rbac::rbac::Action::Deny, Layer::Http, trust);
        match external::provider(view, name) {
            Some(provider) => {
                out.push(http_rbac(asking(rules)));
                out.push(http_filter(external::HTTP, &provider.http));
            }
            None => out.push(http_rbac(denying(rules))),
        }
    }
    out.extend(own_rules(policies, Layer::Http, trust).into_iter().map(http_rbac));
    out
}

fn http_rbac(rules: Rules) -> hcm::HttpFilter {
    let config = HttpRbac {
        shadow_rules_stat_prefix: shadow_prefix(&rules),
        rules: rules.enforced,
        shadow_rules: rules.shadow,
        ..Default::default()
    };
    http_filter(HTTP_FILTER, &config)
}

/// Network filters that enforce `policies`, in order. A provider that knows only HTTP is not asked about connections, as in
/// Istio.
pub(crate) fn network_filters(
    view: View<'_>,
    policies: &[&AuthzPolicy],
    trust: &TrustDomains,
) -> Vec<listener::Filter> {
    let mut out = Vec::new();
    for (name, policies) in external::by_provider(&of_action(policies, Action::Custom)) {
        let rules = build(&policies, Action::Custom, rbac::rbac::Action::Deny, Layer::Tcp, trust);
        match external::provider(view, name) {
            Some(external::Provider { tcp: Some(ask), .. }) => {
                out.push(network_rbac(asking(rules)));
                out.push(network_filter(external::NETWORK, &ask));
            }
            Some(_) => {}
            None => out.push(network_rbac(denying(rules))),
        }
    }
    out.extend(own_rules(policies, Layer::Tcp, trust).into_iter().map(network_rbac));
    out
}

fn network_rbac(rules: Rules) -> listener::Filter {
    let config = NetworkRbac {
        shadow_rules_stat_prefix: shadow_prefix(&rules),
        rules: rules.enforced,
        shadow_rules: rules.shadow,
        stat_prefix: "tcp.".into(),
        ..Default::default()
    };
    network_filter(NETWORK_FILTER, &config)
}

fn of_action<'p>(policies: &[&'p AuthzPolicy], action: Action) -> Vec<&'p AuthzPolicy> {
    policies.iter().copied().filter(|p| p.spec.action == action).collect()
}

/// Rules of the policies that this proxy decides itself.
fn own_rules(policies: &[&AuthzPolicy], layer: Layer, trust: &TrustDomains) -> Vec<Rules> {
    let steps = [
        (Action::Audit, rbac::rbac::Action::Log),
        (Action::Deny, rbac::rbac::Action::Deny),
        (Action::Allow, rbac::rbac::Action::Allow),
    ];
    let rules_of = |(action, effect)| {
        let of_action = of_action(policies, action);
        (!of_action.is_empty()).then(|| build(&of_action, action, effect, layer, trust))
    };
    steps.into_iter().filter_map(rules_of).collect()
}

/// Rules that say which requests a provider is asked about.
fn asking(rules: Rules) -> Rules {
    Rules { enforced: None, shadow: rules.enforced, prefix: Some(external::SHADOW_PREFIX) }
}

/// Rules that deny, under names that say why.
fn denying(mut rules: Rules) -> Rules {
    if let Some(enforced) = &mut rules.enforced {
        let named = std::mem::take(&mut enforced.policies).into_iter();
        enforced.policies = named.map(|(name, policy)| (format!("{name}{BAD_CUSTOM}"), policy)).collect();
    }
    rules
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
    Rules { enforced: enforced.map(message), shadow: shadow.map(message), prefix: None }
}

fn rule_name(policy: &AuthzPolicy, index: usize, action: Action) -> String {
    let name = format!("ns[{}]-policy[{}]-rule[{index}]", policy.namespace, policy.name);
    if action != Action::Custom {
        return name;
    }
    let provider = policy.spec.provider.as_ref().map_or("", |p| p.name.as_str());
    format!("{}{name}", external::rule_prefix(provider))
}

fn is_dry_run(policy: &AuthzPolicy) -> bool {
    policy.annotations.get(DRY_RUN).is_some_and(|v| matches!(v.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
}

/// Prefix under which the outcome of dry-run rules is reported. Without such rules it says nothing, and is what an ALLOW
/// filter has.
fn shadow_prefix(rules: &Rules) -> String {
    if let Some(prefix) = rules.prefix {
        return prefix.into();
    }
    let action = rules.shadow.as_ref().map_or(0, |shadow| shadow.action);
    match rbac::rbac::Action::try_from(action) {
        Ok(rbac::rbac::Action::Allow) => "istio_dry_run_allow_".into(),
        Ok(rbac::rbac::Action::Deny) => "istio_dry_run_deny_".into(),
        _ => String::new(),
    }
}
