//! What the balancing hash of a request is made of, as the destination rule says.

use crate::pb;
use crate::pb::route::route_action::HashPolicy;
use crate::pb::route::route_action::hash_policy::{
    ConnectionProperties, Cookie, CookieAttribute, Header, PolicySpecifier, QueryParameter,
};
use crate::scope::View;
use crate::traffic::{self, Effective};
use weft_k8s_api::istio::{ConsistentHashLb, Destination};
use weft_model::Service;

/// For a service as a whole.
pub(super) fn for_service(view: View<'_>, service: &Service, port: u16) -> Vec<HashPolicy> {
    let Some(rule) = view.rule(service) else { return Vec::new() };
    of_policy(&traffic::for_port(view.mesh(), Some(&rule), port))
}

/// For the destination of a rule.
pub(super) fn for_destination(view: View<'_>, destination: &Destination) -> Vec<HashPolicy> {
    let Some(rule) = view.rule_for_host(&destination.host) else { return Vec::new() };
    let port = destination.port.as_ref().and_then(|p| u16::try_from(p.number).ok()).unwrap_or_default();
    let policy = if destination.subset.is_empty() {
        traffic::for_port(view.mesh(), Some(&rule), port)
    } else {
        traffic::for_subset(view.mesh(), &rule, port, &destination.subset)
    };
    of_policy(&policy)
}

fn of_policy(policy: &Effective) -> Vec<HashPolicy> {
    let hash = policy.load_balancer.as_ref().and_then(|lb| lb.consistent_hash.as_ref());
    hash.and_then(specifier)
        .map(|specifier| HashPolicy { policy_specifier: Some(specifier), ..Default::default() })
        .into_iter()
        .collect()
}

fn specifier(hash: &ConsistentHashLb) -> Option<PolicySpecifier> {
    if let Some(name) = &hash.http_header_name {
        return Some(PolicySpecifier::Header(Header { header_name: name.clone(), ..Default::default() }));
    }
    if let Some(cookie) = &hash.http_cookie {
        let attribute =
            |a: &weft_k8s_api::istio::CookieAttribute| CookieAttribute { name: a.name.clone(), value: a.value.clone() };
        return Some(PolicySpecifier::Cookie(Cookie {
            name: cookie.name.clone(),
            ttl: cookie.ttl.map(|t| pb::duration(t.get())),
            path: cookie.path.clone(),
            attributes: cookie.attributes.iter().map(attribute).collect(),
        }));
    }
    if let Some(source_ip) = hash.use_source_ip {
        return source_ip.then_some(PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip }));
    }
    let name = hash.http_query_parameter_name.as_ref()?;
    Some(PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() }))
}

/// True when connections are balanced by the client's address.
pub(crate) fn by_source_ip(policy: &Effective) -> bool {
    let hash = policy.load_balancer.as_ref().and_then(|lb| lb.consistent_hash.as_ref());
    hash.is_some_and(|h| h.use_source_ip == Some(true))
}
