//! One rule of an AuthorizationPolicy to one RBAC policy: any `from` with all `when`s of the source, and any `to` with all
//! `when`s of the destination.

use super::condition::{Condition, Side};
use super::{Layer, TrustDomains};
use crate::pb::rbac::{Permission, Policy, Principal, permission, principal, rbac::Action};
use weft_k8s_api::istio;

/// The RBAC policy of `rule`; `None` when an ALLOW rule says something that cannot be asked at this layer, or that is not
/// understood. A DENY rule then leaves out the part that cannot be asked, and denies more rather than less.
pub(super) fn translate_rule(
    rule: &istio::Rule,
    namespace: &str,
    effect: Action,
    layer: Layer,
    trust: &TrustDomains,
) -> Option<Policy> {
    let mut of_source = Vec::new();
    let mut of_destination = Vec::new();
    for when in &rule.when {
        let Some(condition) = Condition::when(&when.key, &when.values, &when.not_values) else {
            if effect == Action::Allow {
                return None;
            }
            continue;
        };
        match condition.side() {
            Side::Source => of_source.push(condition),
            Side::Destination => of_destination.push(condition),
        }
    }
    let mut sources: Vec<Vec<Condition>> = Vec::new();
    for from in &rule.from {
        let mut all = from.source.as_ref().map_or_else(Vec::new, Condition::of_source);
        all.extend(of_source.iter().cloned());
        sources.push(all);
    }
    if sources.is_empty() {
        sources.push(of_source);
    }
    let mut destinations: Vec<Vec<Condition>> = Vec::new();
    for to in &rule.to {
        let mut all = to.operation.as_ref().map_or_else(Vec::new, Condition::of_operation);
        all.extend(of_destination.iter().cloned());
        destinations.push(all);
    }
    if destinations.is_empty() {
        destinations.push(of_destination);
    }
    let strict = effect == Action::Allow;
    let permissions = destinations.iter().map(|all| permission_of(all, layer, strict)).collect::<Option<Vec<_>>>()?;
    let principals =
        sources.iter().map(|all| principal_of(all, namespace, layer, strict, trust)).collect::<Option<Vec<_>>>()?;
    Some(Policy { permissions, principals, ..Default::default() })
}

/// A policy that nothing matches: what a policy without rules means.
pub(super) fn match_never() -> Policy {
    Policy {
        permissions: vec![not_permission(any_permission())],
        principals: vec![not_principal(any_principal())],
        ..Default::default()
    }
}

fn permission_of(conditions: &[Condition], layer: Layer, strict: bool) -> Option<Permission> {
    let mut all = Vec::new();
    for condition in conditions {
        for (values, negated) in [(&condition.values, false), (&condition.not_values, true)] {
            let asked = gather(condition.permissions(values, layer), strict)?;
            if let Some(one) = condition.combine(asked, or_permissions) {
                all.push(if negated { not_permission(one) } else { one });
            }
        }
    }
    if all.is_empty() {
        all.push(any_permission());
    }
    Some(Permission { rule: Some(permission::Rule::AndRules(permission::Set { rules: all })) })
}

fn principal_of(
    conditions: &[Condition],
    namespace: &str,
    layer: Layer,
    strict: bool,
    trust: &TrustDomains,
) -> Option<Principal> {
    let mut all = Vec::new();
    for condition in conditions {
        for (values, negated) in [(&condition.values, false), (&condition.not_values, true)] {
            let asked = gather(condition.principals(values, namespace, layer, trust), strict)?;
            let Some(mut one) = condition.combine(asked, or_principals) else { continue };
            // A name without a trust domain allows callers of the own mesh alone. Where it denies, another mesh's caller of that
            // name is meant as well: of two readings the one that lets less through.
            if let Some(own) = condition.own_mesh(trust).filter(|_| strict != negated) {
                one = and_principals(vec![own, one]);
            }
            all.push(if negated { not_principal(one) } else { one });
        }
    }
    if all.is_empty() {
        all.push(any_principal());
    }
    Some(and_principals(all))
}

/// What could be translated; `None` when something could not and that must not be overlooked.
fn gather<T>(translated: Vec<Option<T>>, strict: bool) -> Option<Vec<T>> {
    if strict { translated.into_iter().collect() } else { Some(translated.into_iter().flatten().collect()) }
}

fn any_permission() -> Permission {
    Permission { rule: Some(permission::Rule::Any(true)) }
}

fn any_principal() -> Principal {
    Principal { identifier: Some(principal::Identifier::Any(true)) }
}

fn not_permission(inner: Permission) -> Permission {
    Permission { rule: Some(permission::Rule::NotRule(Box::new(inner))) }
}

fn not_principal(inner: Principal) -> Principal {
    Principal { identifier: Some(principal::Identifier::NotId(Box::new(inner))) }
}

fn or_permissions(rules: Vec<Permission>) -> Permission {
    Permission { rule: Some(permission::Rule::OrRules(permission::Set { rules })) }
}

fn or_principals(ids: Vec<Principal>) -> Principal {
    Principal { identifier: Some(principal::Identifier::OrIds(principal::Set { ids })) }
}

fn and_principals(ids: Vec<Principal>) -> Principal {
    Principal { identifier: Some(principal::Identifier::AndIds(principal::Set { ids })) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_is_not_understood_allows_nothing_and_hides_no_denial() {
        let when = |key: &str| istio::Condition { key: key.into(), values: vec!["x".into()], ..Default::default() };
        let rule = istio::Rule { when: vec![when("request.headers]"), when("source.namespace")], ..Default::default() };
        let trust = TrustDomains::of(&weft_model::MeshSnapshot::default());
        let translated = |effect| translate_rule(&rule, "ns", effect, Layer::Http, &trust);
        assert_eq!(translated(Action::Allow), None);
        // CUSTOM asks by the rules of a denial as well.
        let known = istio::Rule { when: vec![when("source.namespace")], ..Default::default() };
        let without = translate_rule(&known, "ns", Action::Deny, Layer::Http, &trust);
        assert!(without.is_some());
        assert_eq!(translated(Action::Deny), without);
    }
}
