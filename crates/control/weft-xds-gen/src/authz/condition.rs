//! The attributes that rules of AuthorizationPolicies ask about, and the RBAC matchers that ask the same.

// The newer form of metadata conditions says where the metadata is from; the older one, which Envoy 1.40 still takes, is what
// all proxies of the mesh read.
#![allow(deprecated)]

use super::{Layer, TrustDomains};
use crate::pb::envoy_matcher as m;
use crate::pb::rbac::{Permission, Principal, permission, principal};
use crate::pb::route::HeaderMatcher;
use crate::pb::{address, extension, matcher};
use weft_k8s_api::istio;
use weft_proto::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;

/// Filter whose dynamic metadata holds the claims of a verified token.
const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";

/// Whether a condition is about who asks or about what is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Attribute {
    DestinationIp,
    DestinationPort,
    Sni,
    EnvoyFilter { filter: String, key: String },
    Host,
    Method,
    Path,
    SourceIp,
    RemoteIp,
    Namespace,
    TrustDomain,
    ServiceAccount,
    Principal,
    RequestPrincipal,
    Claims(Vec<String>),
    Header(String),
}

/// An attribute and the values that it must, or must not, have.
#[derive(Debug, Clone)]
pub(super) struct Condition {
    attribute: Attribute,
    pub values: Vec<String>,
    pub not_values: Vec<String>,
}

impl Condition {
    /// A `when` entry; `None` when the key is not known.
    pub fn when(key: &str, values: &[String], not_values: &[String]) -> Option<Self> {
        let attribute = match key {
            "destination.ip" => Attribute::DestinationIp,
            "destination.port" => Attribute::DestinationPort,
            "connection.sni" => Attribute::Sni,
            "source.ip" => Attribute::SourceIp,
            "remote.ip" => Attribute::RemoteIp,
            "source.namespace" => Attribute::Namespace,
            "source.trustDomain" => Attribute::TrustDomain,
            "source.serviceAccount" => Attribute::ServiceAccount,
            "source.principal" => Attribute::Principal,
            "request.auth.principal" => Attribute::RequestPrincipal,
            "request.auth.audiences" => Attribute::Claims(vec!["aud".into()]),
            "request.auth.presenter" => Attribute::Claims(vec!["azp".into()]),
            _ => Self::keyed(key)?,
        };
        Some(Self { attribute, values: values.to_vec(), not_values: not_values.to_vec() })
    }

    /// Attributes that name a header, claim or filter in brackets.
    fn keyed(key: &str) -> Option<Attribute> {
        if let Some(name) = key.strip_prefix("request.headers") {
            return Some(Attribute::Header(in_brackets(name)?.to_string()));
        }
        if let Some(path) = key.strip_prefix("request.auth.claims") {
            return Some(Attribute::Claims(nested_brackets(path)?));
        }
        let (filter, rest) = key.strip_prefix("experimental.")?.split_once('[')?;
        filter.starts_with("envoy.filters.").then(|| Attribute::EnvoyFilter {
            filter: filter.to_string(),
            key: rest.strip_suffix(']').unwrap_or(rest).to_string(),
        })
    }

    /// Everything that a `source` asks; unset fields are left out.
    pub fn of_source(source: &istio::Source) -> Vec<Self> {
        set([
            (Attribute::Principal, &source.principals, &source.not_principals),
            (Attribute::RequestPrincipal, &source.request_principals, &source.not_request_principals),
            (Attribute::ServiceAccount, &source.service_accounts, &source.not_service_accounts),
            (Attribute::TrustDomain, &source.trust_domains, &source.not_trust_domains),
            (Attribute::Namespace, &source.namespaces, &source.not_namespaces),
            (Attribute::RemoteIp, &source.remote_ip_blocks, &source.not_remote_ip_blocks),
            (Attribute::SourceIp, &source.ip_blocks, &source.not_ip_blocks),
        ])
    }

    /// Everything that an `operation` asks; unset fields are left out.
    pub fn of_operation(operation: &istio::Operation) -> Vec<Self> {
        set([
            (Attribute::Host, &operation.hosts, &operation.not_hosts),
            (Attribute::Method, &operation.methods, &operation.not_methods),
            (Attribute::Path, &operation.paths, &operation.not_paths),
            (Attribute::DestinationPort, &operation.ports, &operation.not_ports),
        ])
    }

    /// Who asks, or what for.
    pub fn side(&self) -> Side {
        match self.attribute {
            Attribute::DestinationIp | Attribute::DestinationPort | Attribute::Sni | Attribute::EnvoyFilter { .. } => {
                Side::Destination
            }
            Attribute::Host | Attribute::Method | Attribute::Path => Side::Destination,
            _ => Side::Source,
        }
    }

    /// Any of `parts`: those of list attributes ask about all values at once already.
    pub fn combine<T>(&self, mut parts: Vec<T>, or: fn(Vec<T>) -> T) -> Option<T> {
        let at_once = matches!(self.attribute, Attribute::Claims(_) | Attribute::EnvoyFilter { .. });
        let request_principal = self.attribute == Attribute::RequestPrincipal;
        match parts.len() {
            0 => None,
            1 if at_once || request_principal => parts.pop(),
            _ => Some(or(parts)),
        }
    }

    /// One permission for each of `values` (or one for all); `None` in the list for what cannot be asked.
    pub fn permissions(&self, values: &[String], layer: Layer) -> Vec<Option<Permission>> {
        if let Attribute::EnvoyFilter { filter, key } = &self.attribute {
            return at_once(values, |values| {
                Some(permission::Rule::Metadata(metadata(
                    filter,
                    std::slice::from_ref(key),
                    any_of(values, bracketed_value),
                )))
            })
            .into_iter()
            .map(|rule| rule.map(|rule| Permission { rule: Some(rule) }))
            .collect();
        }
        let rule = |value: &String| Some(Permission { rule: Some(self.permission(value, layer)?) });
        values.iter().map(rule).collect()
    }

    fn permission(&self, value: &str, layer: Layer) -> Option<permission::Rule> {
        let http_only = matches!(self.attribute, Attribute::Host | Attribute::Method | Attribute::Path);
        if http_only && layer == Layer::Tcp {
            return None;
        }
        Some(match &self.attribute {
            Attribute::DestinationIp => permission::Rule::DestinationIp(address::cidr(address::parse_net(value)?)),
            Attribute::DestinationPort => permission::Rule::DestinationPort(value.parse::<u16>().ok()?.into()),
            Attribute::Sni => permission::Rule::RequestedServerName(string_matcher(value, "")),
            Attribute::Host => permission::Rule::Header(header_matcher(":authority", value, true)),
            Attribute::Method => permission::Rule::Header(header_matcher(":method", value, false)),
            Attribute::Path => path_rule(value),
            _ => return None,
        })
    }

    /// The principals that callers of the own mesh alone have, for an attribute that names no trust domain, where other meshes
    /// may connect; `None` when there is nothing to add.
    pub fn own_mesh(&self, trust: &TrustDomains) -> Option<Principal> {
        let names = trust.own_among_others()?;
        if !matches!(self.attribute, Attribute::Namespace | Attribute::ServiceAccount) {
            return None;
        }
        let of = |domain: &String| Principal {
            identifier: Some(authenticated(matcher::prefix(format!("spiffe://{domain}/")))),
        };
        let ids = names.iter().map(of).collect();
        Some(Principal { identifier: Some(principal::Identifier::OrIds(principal::Set { ids })) })
    }

    /// One principal for each of `values` (or one for all); `None` in the list for what cannot be asked.
    pub fn principals(
        &self,
        values: &[String],
        namespace: &str,
        layer: Layer,
        trust: &TrustDomains,
    ) -> Vec<Option<Principal>> {
        let http_only =
            matches!(self.attribute, Attribute::RequestPrincipal | Attribute::Claims(_) | Attribute::Header(_));
        if http_only && layer == Layer::Tcp {
            return if values.is_empty() { Vec::new() } else { vec![None] };
        }
        let wrap = |identifier: Option<principal::Identifier>| identifier.map(|i| Principal { identifier: Some(i) });
        match &self.attribute {
            Attribute::Claims(path) => {
                at_once(values, |values| Some(claim(path, values))).into_iter().map(wrap).collect()
            }
            Attribute::Principal => {
                trust.expand_principals(values).iter().map(|v| wrap(self.principal(v, namespace))).collect()
            }
            Attribute::TrustDomain => {
                trust.expand_domains(values).iter().map(|v| wrap(self.principal(v, namespace))).collect()
            }
            _ => values.iter().map(|v| wrap(self.principal(v, namespace))).collect(),
        }
    }

    fn principal(&self, value: &str, namespace: &str) -> Option<principal::Identifier> {
        Some(match &self.attribute {
            Attribute::SourceIp => principal::Identifier::DirectRemoteIp(address::cidr(address::parse_net(value)?)),
            Attribute::RemoteIp => principal::Identifier::RemoteIp(address::cidr(address::parse_net(value)?)),
            Attribute::Namespace => {
                let pattern = value.split('*').map(matcher::quote).collect::<Vec<_>>().join(".*");
                authenticated(matcher::regex(format!(".*/ns/{pattern}/.*")))
            }
            Attribute::ServiceAccount => {
                let (ns, account) = value.split_once('/').unwrap_or((namespace, value));
                let (ns, account) = (matcher::quote(ns), matcher::quote(account));
                authenticated(matcher::regex(format!("spiffe://.+/ns/{ns}/(.+/|)sa/{account}(/.+)?")))
            }
            Attribute::TrustDomain => authenticated(trust_domain_matcher(value)),
            Attribute::Principal => authenticated(string_matcher(value, "spiffe://")),
            Attribute::RequestPrincipal => request_principal(value),
            Attribute::Header(name) => principal::Identifier::Header(header_matcher(name, value, false)),
            _ => return None,
        })
    }
}

fn set<const N: usize>(fields: [(Attribute, &Vec<String>, &Vec<String>); N]) -> Vec<Condition> {
    fields
        .into_iter()
        .filter(|(_, values, not_values)| !values.is_empty() || !not_values.is_empty())
        .map(|(attribute, values, not_values)| Condition {
            attribute,
            values: values.clone(),
            not_values: not_values.clone(),
        })
        .collect()
}

fn at_once<T>(values: &[String], one: impl FnOnce(&[String]) -> Option<T>) -> Vec<Option<T>> {
    if values.is_empty() { Vec::new() } else { vec![one(values)] }
}

fn authenticated(name: m::StringMatcher) -> principal::Identifier {
    principal::Identifier::Authenticated(principal::Authenticated { principal_name: Some(name) })
}

/// `*`: any text that is there; `*x`, `x*`: ending, beginning; else equal. `prefix` goes before the value.
fn string_matcher(value: &str, prefix: &str) -> m::StringMatcher {
    if value == "*" {
        return matcher::regex(".+");
    }
    match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(ending), _) if prefix.is_empty() => matcher::suffix(ending),
        (Some(ending), _) => matcher::regex(format!("{prefix}.*{}", matcher::quote(ending))),
        (None, Some(beginning)) => matcher::prefix(format!("{prefix}{beginning}")),
        (None, None) => matcher::exact(format!("{prefix}{value}")),
    }
}

fn header_matcher(name: &str, value: &str, ignore_case: bool) -> HeaderMatcher {
    if value == "*" {
        return matcher::header_present(name);
    }
    let test = string_matcher(value, "");
    matcher::header(name, if ignore_case { matcher::ignoring_case(test) } else { test })
}

/// A path, or a template with `{*}` (one segment) and `{**}` (any number).
fn path_rule(value: &str) -> permission::Rule {
    if value.contains("{*}") || value.contains("{**}") {
        let path_template = value.replace("{**}", "**").replace("{*}", "*");
        return permission::Rule::UriTemplate(extension("uri-template", &UriTemplateMatchConfig { path_template }));
    }
    permission::Rule::UrlPath(m::PathMatcher { rule: Some(m::path_matcher::Rule::Path(string_matcher(value, ""))) })
}

fn trust_domain_matcher(value: &str) -> m::StringMatcher {
    match value.split_once('*') {
        _ if value == "*" => matcher::prefix("spiffe://"),
        None => matcher::prefix(format!("spiffe://{value}/")),
        Some((before, after)) => {
            matcher::regex(format!("spiffe://{}[^/]*{}/.*", matcher::quote(before), matcher::quote(after)))
        }
    }
}

/// `iss/sub` of a verified token; either may be a wildcard.
fn request_principal(value: &str) -> principal::Identifier {
    let any = || matcher::regex(".+");
    let (iss, sub) = match value.rsplit_once('/') {
        _ if value == "*" => (any(), any()),
        None => match (value.strip_prefix('*'), value.strip_suffix('*')) {
            (Some(ending), _) => (any(), matcher::suffix(ending)),
            (None, Some(beginning)) => (matcher::prefix(beginning), any()),
            (None, None) => (matcher::exact(value), matcher::exact("")),
        },
        Some((iss, sub)) if value.starts_with('*') => {
            (if iss == "*" { any() } else { matcher::suffix(&iss[1..]) }, matcher::exact(sub))
        }
        Some((iss, sub)) => match sub.strip_suffix('*') {
            Some("") => (matcher::exact(iss), any()),
            Some(beginning) => (matcher::exact(iss), matcher::prefix(beginning)),
            None => (matcher::exact(iss), matcher::exact(sub)),
        },
    };
    let of_claim = |name: &str, test: m::StringMatcher| Principal {
        identifier: Some(principal::Identifier::Metadata(metadata(
            JWT_FILTER,
            &["payload".into(), name.into()],
            string_value(test),
        ))),
    };
    principal::Identifier::AndIds(principal::Set { ids: vec![of_claim("iss", iss), of_claim("sub", sub)] })
}

/// A claim that has, or whose list holds, any of `values`.
fn claim(path: &[String], values: &[String]) -> principal::Identifier {
    let mut keys = vec!["payload".to_string()];
    keys.extend(path.iter().cloned());
    let one = any_of(values, |v| string_value(string_matcher(v, "")));
    let value = or_value(vec![list_holds(one.clone()), one]);
    principal::Identifier::Metadata(metadata(JWT_FILTER, &keys, value))
}

fn metadata(filter: &str, keys: &[String], value: m::ValueMatcher) -> m::MetadataMatcher {
    let segment = |key: &String| m::metadata_matcher::PathSegment {
        segment: Some(m::metadata_matcher::path_segment::Segment::Key(key.clone())),
    };
    m::MetadataMatcher {
        filter: filter.into(),
        path: keys.iter().map(segment).collect(),
        value: Some(value),
        invert: false,
    }
}

fn string_value(test: m::StringMatcher) -> m::ValueMatcher {
    m::ValueMatcher { match_pattern: Some(m::value_matcher::MatchPattern::StringMatch(test)) }
}

fn list_holds(value: m::ValueMatcher) -> m::ValueMatcher {
    let list = m::ListMatcher { match_pattern: Some(m::list_matcher::MatchPattern::OneOf(Box::new(value))) };
    m::ValueMatcher { match_pattern: Some(m::value_matcher::MatchPattern::ListMatch(Box::new(list))) }
}

fn or_value(value_matchers: Vec<m::ValueMatcher>) -> m::ValueMatcher {
    m::ValueMatcher { match_pattern: Some(m::value_matcher::MatchPattern::OrMatch(m::OrMatcher { value_matchers })) }
}

fn any_of(values: &[String], one: impl Fn(&str) -> m::ValueMatcher) -> m::ValueMatcher {
    match values {
        [single] => one(single),
        _ => or_value(values.iter().map(|v| one(v)).collect()),
    }
}

/// `[x]` asks whether a list holds `x`; `x` asks for the value itself.
fn bracketed_value(value: &str) -> m::ValueMatcher {
    match in_brackets(value) {
        Some(inner) => list_holds(string_value(string_matcher(inner, ""))),
        None => string_value(string_matcher(value, "")),
    }
}

fn in_brackets(text: &str) -> Option<&str> {
    text.strip_prefix('[')?.strip_suffix(']')
}

/// `[a][b]` → `a`, `b`. A name that holds brackets itself is taken whole.
fn nested_brackets(text: &str) -> Option<Vec<String>> {
    let whole = in_brackets(text)?;
    let parts: Vec<&str> = whole.split("][").collect();
    if parts.iter().any(|part| part.contains(['[', ']'])) {
        return Some(vec![whole.to_string()]);
    }
    Some(parts.into_iter().map(str::to_string).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets() {
        for (text, want) in [
            ("[iss]", Some(vec!["iss"])),
            ("[a][b]", Some(vec!["a", "b"])),
            ("[a[b]]", Some(vec!["a[b]"])),
            ("iss", None),
        ] {
            assert_eq!(nested_brackets(text).map(|v| v.join(",")), want.map(|v| v.join(",")), "{text}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        for key in ["", "request.headers", "source.port", "experimental.x[y]", "request.auth.claims"] {
            assert!(Condition::when(key, &["x".into()], &[]).is_none(), "{key}");
        }
        assert!(Condition::when("request.headers[x]", &["x".into()], &[]).is_some());
    }
}
