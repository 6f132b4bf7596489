//! Rules for `PeerAuthentication`, `RequestAuthentication` and `AuthorizationPolicy`.

use super::Report;
use super::check::is_header_name;
use crate::istio::{
    AuthorizationAction, AuthorizationPolicy, Condition, JwtRule, Operation, PeerAuthentication, RequestAuthentication,
    Rule, Source,
};
use serde_json::Value;
use std::collections::BTreeSet;

pub(super) fn peer_authentication(spec: &PeerAuthentication, report: &mut Report) {
    report.binding(spec.selector.as_ref(), None, &[]);
    let selects = spec.selector.as_ref().is_some_and(|s| !s.match_labels.is_empty());
    if !spec.port_level_mtls.is_empty() && !selects {
        let message = "needs spec.selector with matchLabels: ports belong to workloads";
        report.error("spec.portLevelMtls", message);
    }
    for port in spec.port_level_mtls.keys() {
        report.port(format_args!("spec.portLevelMtls.{port}"), *port);
    }
}

pub(super) fn request_authentication(spec: &RequestAuthentication, report: &mut Report) {
    report.binding(spec.selector.as_ref(), spec.target_ref.as_ref(), &spec.target_refs);
    for (i, rule) in spec.jwt_rules.iter().enumerate() {
        jwt_rule(rule, &format!("spec.jwtRules[{i}]"), report);
    }
}

fn jwt_rule(rule: &JwtRule, path: &str, report: &mut Report) {
    report.required(format_args!("{path}.issuer"), &rule.issuer, "the iss of the tokens");
    if !rule.jwks.is_empty() && !rule.jwks_uri.is_empty() {
        report.error(path, "has jwks and jwksUri; keep one");
    }
    if !rule.jwks_uri.is_empty()
        && let Some(problem) = url_problem(&rule.jwks_uri, &["http", "https"])
    {
        report.error(format_args!("{path}.jwksUri"), problem);
    }
    if !rule.jwks.is_empty() {
        check_jwks(&rule.jwks, &format!("{path}.jwks"), report);
    }
    report.no_empty(format_args!("{path}.audiences"), &rule.audiences);
    report.no_empty(format_args!("{path}.fromParams"), &rule.from_params);
    report.no_empty(format_args!("{path}.fromCookies"), &rule.from_cookies);
    report.no_empty(format_args!("{path}.spaceDelimitedClaims"), &rule.space_delimited_claims);
    report.duration(format_args!("{path}.timeout"), rule.timeout);
    for (i, header) in rule.from_headers.iter().enumerate() {
        report.header_name(format_args!("{path}.fromHeaders[{i}].name"), &header.name);
    }
    let payload = &rule.output_payload_to_header;
    if !payload.is_empty() && !is_header_name(payload) {
        report.header_name(format_args!("{path}.outputPayloadToHeader"), payload);
    }
    let mut seen = BTreeSet::new();
    for (i, output) in rule.output_claim_to_headers.iter().enumerate() {
        let path = format!("{path}.outputClaimToHeaders[{i}]");
        report.header_name(format_args!("{path}.header"), &output.header);
        report.required(format_args!("{path}.claim"), &output.claim, "the claim to copy");
        if !seen.insert(output.header.to_ascii_lowercase()) {
            report.error(format_args!("{path}.header"), format!("{:?} is there twice", output.header));
        }
    }
}

fn check_jwks(jwks: &str, path: &str, report: &mut Report) {
    match serde_json::from_str::<Value>(jwks) {
        Err(error) => report.error(path, format!("is not JSON: {error}")),
        Ok(value) if !value["keys"].is_array() => report.error(path, "must be a JSON object with a list of keys"),
        Ok(_) => {}
    }
}

/// What is wrong with a URL, if anything. Only scheme and host matter here.
pub(super) fn url_problem(url: &str, schemes: &[&str]) -> Option<String> {
    let remedy = || format!("{url:?} is not a URL; write {}://host/path", schemes.join(":// or "));
    let Some((scheme, rest)) = url.split_once("://") else { return Some(remedy()) };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let bad = host.is_empty() || url.bytes().any(|b| b <= b' ' || b == 0x7f);
    (bad || !schemes.contains(&scheme)).then(remedy)
}

pub(super) fn authorization_policy(spec: &AuthorizationPolicy, report: &mut Report) {
    report.binding(spec.selector.as_ref(), spec.target_ref.as_ref(), &spec.target_refs);
    match (spec.action, &spec.provider) {
        (AuthorizationAction::Custom, None) => {
            report
                .error("spec.provider", "is required for CUSTOM: the name of an extension provider of the mesh config");
        }
        (AuthorizationAction::Custom, Some(provider)) => {
            report.required("spec.provider.name", &provider.name, "the name of an extension provider");
            if spec.rules.is_empty() {
                report.error("spec.rules", "is required for CUSTOM: which requests are asked about; [{}] is all");
            }
        }
        (_, Some(_)) => report.error("spec.provider", "goes with action CUSTOM only; remove it"),
        _ => {}
    }
    if spec.action == AuthorizationAction::Deny && spec.rules.is_empty() {
        report.error("spec.rules", "is empty, so DENY refuses nothing; use [{}] to refuse everything");
    }
    for (i, rule) in spec.rules.iter().enumerate() {
        check_rule(rule, &format!("spec.rules[{i}]"), report);
    }
}

fn check_rule(rule: &Rule, path: &str, report: &mut Report) {
    for (i, from) in rule.from.iter().enumerate() {
        let path = format!("{path}.from[{i}].source");
        match &from.source {
            Some(source) if *source != Source::default() => check_source(source, &path, report),
            _ => report.error(&path, "is empty; name callers, or remove from to mean every caller"),
        }
    }
    for (i, to) in rule.to.iter().enumerate() {
        let path = format!("{path}.to[{i}].operation");
        match &to.operation {
            Some(operation) if *operation != Operation::default() => check_operation(operation, &path, report),
            _ => report.error(&path, "is empty; name operations, or remove to to mean every operation"),
        }
    }
    for (i, condition) in rule.when.iter().enumerate() {
        check_condition(condition, &format!("{path}.when[{i}]"), report);
    }
}

fn check_source(source: &Source, path: &str, report: &mut Report) {
    for (field, list) in [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
    ] {
        patterns(list, &format!("{path}.{field}"), report);
    }
    for (i, principal) in source.principals.iter().chain(&source.not_principals).enumerate() {
        if principal.starts_with("spiffe://") {
            let message = "principals are written without spiffe://, such as cluster.local/ns/default/sa/web";
            report.warn(format_args!("{path}.principals[{i}]"), message);
        }
    }
    for (field, list) in
        [("serviceAccounts", &source.service_accounts), ("notServiceAccounts", &source.not_service_accounts)]
    {
        service_accounts(list, &format!("{path}.{field}"), report);
    }
    let accounts = !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
    let others = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
    if accounts && others.iter().any(|list| !list.is_empty()) {
        report.error(path, "has serviceAccounts beside principals or namespaces; keep one");
    }
    for (field, list) in [
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ] {
        for (i, block) in list.iter().enumerate() {
            report.cidr(format_args!("{path}.{field}[{i}]"), block);
        }
    }
}

fn service_accounts(list: &[String], path: &str, report: &mut Report) {
    if list.len() > 16 {
        report.error(path, "has more than 16 items");
    }
    for (i, account) in list.iter().enumerate() {
        let parts: Vec<_> = account.split('/').collect();
        if parts.len() > 2 || parts.iter().any(|p| p.is_empty()) || account.contains('*') {
            let message =
                format!("{account:?} is not a service account; write name or namespace/name, without wildcards");
            report.error(format_args!("{path}[{i}]"), message);
        }
    }
}

fn check_operation(operation: &Operation, path: &str, report: &mut Report) {
    for (field, list) in [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
    ] {
        patterns(list, &format!("{path}.{field}"), report);
    }
    for (field, list) in [("ports", &operation.ports), ("notPorts", &operation.not_ports)] {
        for (i, port) in list.iter().enumerate() {
            match port.parse::<u32>() {
                Ok(number) => report.port(format_args!("{path}.{field}[{i}]"), number),
                Err(_) => report.error(format_args!("{path}.{field}[{i}]"), format!("{port:?} is not a port number")),
            }
        }
    }
    for (field, list) in [("paths", &operation.paths), ("notPaths", &operation.not_paths)] {
        for (i, pattern) in list.iter().enumerate() {
            path_pattern(pattern, &format!("{path}.{field}[{i}]"), report);
        }
    }
    for (i, method) in operation.methods.iter().enumerate() {
        if method.bytes().any(|b| b.is_ascii_lowercase()) {
            let message = format!("{method:?} never matches: methods are written in capitals");
            report.warn(format_args!("{path}.methods[{i}]"), message);
        }
    }
}

/// Values with `*` at one end: exact, prefix, suffix, presence.
fn patterns(list: &[String], path: &str, report: &mut Report) {
    report.no_empty(path, list);
    for (i, pattern) in list.iter().enumerate() {
        let inner = pattern.strip_prefix('*').unwrap_or(pattern);
        let both = pattern.len() > 1 && pattern.starts_with('*') && pattern.ends_with('*');
        if both || inner.strip_suffix('*').unwrap_or(inner).contains('*') {
            let message = format!("{pattern:?}: a * stands for anything only alone, at the beginning or at the end");
            report.warn(format_args!("{path}[{i}]"), message);
        }
    }
}

/// Paths: as other values, or a template with `{*}` and, once and after them, `{**}`.
fn path_pattern(pattern: &str, path: &str, report: &mut Report) {
    if pattern.is_empty() {
        return report.error(path, "is empty; give a path or remove the item");
    }
    if !pattern.contains("{*}") && !pattern.contains("{**}") {
        return patterns(&[pattern.to_string()], path, report);
    }
    let mut rest_taken = false;
    for segment in pattern.split('/').filter(|s| !s.is_empty()) {
        let template = matches!(segment, "{*}" | "{**}");
        if !template && segment.contains(['*', '{', '}']) {
            let message =
                format!("{pattern:?}: {segment:?} must be {{*}} or {{**}} as a whole, or have no *, {{ or }}");
            report.error(path, message);
        }
        if template && rest_taken {
            report.error(path, format!("{pattern:?}: no {{*}} or {{**}} may come after {{**}}"));
        }
        rest_taken |= segment == "{**}";
    }
}

fn check_condition(condition: &Condition, path: &str, report: &mut Report) {
    if !report.required(format_args!("{path}.key"), &condition.key, "an attribute, such as request.headers[x-user]") {
        return;
    }
    if condition.values.is_empty() && condition.not_values.is_empty() {
        report.error(path, "has no values; add values or notValues");
    }
    if !is_condition_key(&condition.key) {
        let message = format!("{:?} is not known; use one of {}", condition.key, CONDITION_KEYS.join(", "));
        report.error(format_args!("{path}.key"), message);
    }
    for (field, list) in [("values", &condition.values), ("notValues", &condition.not_values)] {
        report.no_empty(format_args!("{path}.{field}"), list);
        for (i, value) in list.iter().enumerate().filter(|(_, v)| !v.is_empty()) {
            match condition.key.as_str() {
                "source.ip" | "remote.ip" | "destination.ip" => {
                    report.cidr(format_args!("{path}.{field}[{i}]"), value);
                }
                "destination.port" => match value.parse::<u32>() {
                    Ok(number) => report.port(format_args!("{path}.{field}[{i}]"), number),
                    Err(_) => report.error(format_args!("{path}.{field}[{i}]"), format!("{value:?} is not a port")),
                },
                _ => {}
            }
        }
    }
}

const CONDITION_KEYS: [&str; 15] = [
    "request.headers[NAME]",
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[NAME]",
    "destination.ip",
    "destination.port",
    "connection.sni",
    "experimental.envoy.filters.NAME[KEY]",
];

fn is_condition_key(key: &str) -> bool {
    let keyed = |prefix: &str| {
        key.strip_prefix(prefix).is_some_and(|rest| rest.len() > 2 && rest.starts_with('[') && rest.ends_with(']'))
    };
    CONDITION_KEYS.contains(&key) && !key.contains('[')
        || keyed("request.headers")
        || keyed("request.auth.claims")
        || key.strip_prefix("experimental.envoy.filters.").is_some_and(|rest| {
            let parts = rest.strip_suffix(']').and_then(|rest| rest.split_once('['));
            parts.is_some_and(|(filter, key)| !filter.is_empty() && !key.is_empty())
        })
}

#[cfg(test)]
mod tests {
    use super::is_condition_key;

    #[test]
    fn keys_of_conditions_have_both_brackets() {
        for (key, known) in [
            ("source.trustDomain", true),
            ("experimental.envoy.filters.a.b[c]", true),
            ("experimental.envoy.filters.a[b][c]", true),
            ("experimental.envoy.filters.x]", false),
            ("experimental.envoy.filters.x[y", false),
            ("experimental.envoy.filters.[y]", false),
            ("experimental.envoy.filters.x[]", false),
            ("request.headers[x]", true),
            ("request.headers]", false),
            ("request.headers[x", false),
            ("request.auth.claims[a][b]", true),
            ("request.auth.claims", false),
            ("source.ip", true),
            ("source.port", false),
        ] {
            assert_eq!(is_condition_key(key), known, "{key}");
        }
    }
}
