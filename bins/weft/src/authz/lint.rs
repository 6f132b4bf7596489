//! Rules that can never match, and policies that bind nothing: what a policy names is looked for among the live workloads.
//! Only exact values are judged; a wildcard may yet find something.

use super::{World, is_gateway};
use std::collections::BTreeSet;
use std::sync::Arc;
use weft_core::well_known::DEFAULT_TRUST_DOMAIN;
use weft_k8s_api::istio::{self, AuthorizationPolicy, Condition, Operation, Source};
use weft_model::{MtlsMode, Policy, Workload};

/// A finding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// `NAMESPACE/NAME` of the policy.
    pub policy: String,
    /// Place in it.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

/// What live workloads offer a policy to match.
struct Live {
    accounts: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    /// Trust domains whose identities are believed, partners' included.
    domains: Vec<String>,
    /// Those of this mesh, whose workloads are known.
    own: Vec<String>,
}

/// Findings about the policies of a namespace (`None` = all).
pub fn findings(world: &World, namespace: Option<&str>) -> Vec<Finding> {
    let live = live(world);
    let all = world.snapshot.authorization.values().flatten();
    let mut out: Vec<Finding> =
        all.filter(|p| namespace.is_none_or(|ns| ns == p.namespace)).flat_map(|p| of_policy(world, &live, p)).collect();
    out.sort();
    out.dedup();
    out
}

fn live(world: &World) -> Live {
    let snapshot = &world.snapshot;
    let workloads = || snapshot.workloads_by_name.values().filter(|w| w.in_mesh || is_gateway(w));
    let mut own = vec![snapshot.settings.trust_domain.clone()];
    own.extend(snapshot.mesh.trust_domain_aliases.iter().cloned());
    let partners = || snapshot.mesh.ca_certificates.iter().flat_map(|partner| &partner.trust_domains);
    // It stands for the own domain whatever that is called, unless a partner is called so.
    if !partners().any(|partner| partner == DEFAULT_TRUST_DOMAIN) {
        own.push(DEFAULT_TRUST_DOMAIN.to_string());
    }
    let domains = own.iter().chain(partners()).cloned().collect();
    Live {
        accounts: workloads().map(|w| format!("{}/{}", w.namespace, w.service_account)).collect(),
        namespaces: snapshot.namespaces.keys().cloned().collect(),
        domains,
        own,
    }
}

fn of_policy(world: &World, live: &Live, policy: &Arc<Policy<AuthorizationPolicy>>) -> Vec<Finding> {
    let bound = bound(world, policy);
    let mut out = Findings { policy: format!("{}/{}", policy.namespace, policy.name), found: Vec::new() };
    if bound.is_empty() {
        out.add("spec.selector", "no live workload with a proxy is selected; the policy guards nothing".into());
    }
    let tcp_only = !bound.is_empty() && bound.iter().all(|w| only_tcp(world, w));
    let tokens = bound.iter().any(|w| !world.snapshot.request_auth_for(&w.namespace, &w.labels).is_empty());
    let plain = !bound.is_empty()
        && bound.iter().all(|w| world.snapshot.mtls_mode(&w.namespace, &w.labels, 0) == MtlsMode::Disable);
    let ports: BTreeSet<u16> = bound.iter().flat_map(|w| ports(world, w)).collect();
    let facts = Bound { tcp_only, tokens, plain, ports, any: !bound.is_empty() };
    for (i, rule) in policy.spec.rules.iter().enumerate() {
        for (j, from) in rule.from.iter().enumerate() {
            if let Some(source) = &from.source {
                of_source(&mut out, live, &facts, source, &format!("spec.rules[{i}].from[{j}].source"));
            }
        }
        for (j, to) in rule.to.iter().enumerate() {
            if let Some(operation) = &to.operation {
                of_operation(&mut out, &facts, operation, &format!("spec.rules[{i}].to[{j}].operation"));
            }
        }
        for (j, condition) in rule.when.iter().enumerate() {
            of_condition(&mut out, &facts, condition, &format!("spec.rules[{i}].when[{j}]"));
        }
    }
    out.found
}

/// What is known of the workloads that a policy binds.
struct Bound {
    tcp_only: bool,
    tokens: bool,
    plain: bool,
    ports: BTreeSet<u16>,
    any: bool,
}

struct Findings {
    policy: String,
    found: Vec<Finding>,
}

impl Findings {
    fn add(&mut self, path: impl Into<String>, message: String) {
        self.found.push(Finding { policy: self.policy.clone(), path: path.into(), message });
    }

    /// A value that is wanted and refused at once.
    fn contradiction(&mut self, path: &str, name: &str, wanted: &[String], refused: &[String]) {
        let all_refused = !wanted.is_empty()
            && wanted.iter().all(|value| refused.contains(value) || refused.iter().any(|r| r == "*"));
        if all_refused {
            self.add(
                format!("{path}.{name}"),
                "everything that is listed is excluded beside it; the rule can never match".into(),
            );
        }
    }
}

fn bound(world: &World, policy: &Policy<AuthorizationPolicy>) -> Vec<Arc<Workload>> {
    let snapshot = &world.snapshot;
    let everywhere = policy.namespace == snapshot.settings.root_namespace && !policy.own_namespace_only;
    let selects = |w: &&Arc<Workload>| {
        let place = everywhere || w.namespace == policy.namespace;
        place
            && (w.in_mesh || is_gateway(w))
            && policy.selector.iter().all(|(key, value)| w.labels.get(key) == Some(value))
    };
    snapshot.workloads_by_name.values().filter(selects).cloned().collect()
}

fn only_tcp(world: &World, workload: &Workload) -> bool {
    let instances = world.snapshot.service_instances(workload);
    !instances.is_empty() && instances.iter().all(|i| i.port.protocol.is_tcp())
}

fn ports(world: &World, workload: &Workload) -> Vec<u16> {
    let of_services = world.snapshot.service_instances(workload).into_iter().map(|i| i.target_port);
    of_services.chain(workload.container_ports.iter().map(|(port, _)| *port)).collect()
}

fn is_exact(value: &str) -> bool {
    !value.contains('*')
}

fn of_source(out: &mut Findings, live: &Live, bound: &Bound, source: &Source, path: &str) {
    for (i, principal) in source.principals.iter().enumerate().filter(|(_, value)| is_exact(value)) {
        let at = format!("{path}.principals[{i}]");
        match principal.strip_prefix("spiffe://").unwrap_or(principal).split('/').collect::<Vec<_>>()[..] {
            [domain, "ns", ns, "sa", account] => {
                if !live.domains.iter().any(|known| known == domain) {
                    out.add(at, format!("trust domain {domain} is not one of the mesh ({})", live.domains.join(", ")));
                } else if live.own.iter().any(|own| own == domain)
                    && !live.accounts.contains(&format!("{ns}/{account}"))
                {
                    out.add(at, format!("no live workload runs as service account {ns}/{account}"));
                }
            }
            _ => out.add(
                at,
                format!("{principal:?} is no principal; write TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT, without spiffe://"),
            ),
        }
        if principal.starts_with("spiffe://") {
            out.add(format!("{path}.principals[{i}]"), "leave out spiffe://: as written it can never match".into());
        }
    }
    for (i, namespace) in source.namespaces.iter().enumerate().filter(|(_, value)| is_exact(value)) {
        if !live.namespaces.contains(namespace) {
            out.add(format!("{path}.namespaces[{i}]"), format!("there is no namespace {namespace}"));
        }
    }
    let policy_namespace = out.policy.split_once('/').map_or("", |(ns, _)| ns).to_string();
    for (i, account) in source.service_accounts.iter().enumerate() {
        let full = if account.contains('/') { account.clone() } else { format!("{policy_namespace}/{account}") };
        if is_exact(&full) && !live.accounts.contains(&full) {
            out.add(format!("{path}.serviceAccounts[{i}]"), format!("no live workload runs as service account {full}"));
        }
    }
    let needs_identity =
        !source.principals.is_empty() || !source.namespaces.is_empty() || !source.service_accounts.is_empty();
    if needs_identity && bound.plain {
        out.add(path, "mutual TLS is switched off here (PeerAuthentication DISABLE): no caller has an identity".into());
    }
    if !source.request_principals.is_empty() && bound.any && !bound.tokens {
        out.add(
            format!("{path}.requestPrincipals"),
            "no RequestAuthentication binds the workloads: no request has a principal".into(),
        );
    }
    if bound.tcp_only && !source.request_principals.is_empty() {
        out.add(path, "only TCP is spoken here; fields of HTTP requests never match in ALLOW rules".into());
    }
    out.contradiction(path, "principals", &source.principals, &source.not_principals);
    out.contradiction(path, "namespaces", &source.namespaces, &source.not_namespaces);
    out.contradiction(path, "serviceAccounts", &source.service_accounts, &source.not_service_accounts);
    out.contradiction(path, "remoteIpBlocks", &source.remote_ip_blocks, &source.not_remote_ip_blocks);
    out.contradiction(path, "ipBlocks", &source.ip_blocks, &source.not_ip_blocks);
    out.contradiction(path, "requestPrincipals", &source.request_principals, &source.not_request_principals);
}

fn of_operation(out: &mut Findings, bound: &Bound, operation: &Operation, path: &str) {
    let of_http = [&operation.hosts, &operation.methods, &operation.paths];
    if bound.tcp_only && of_http.iter().any(|list| !list.is_empty()) {
        out.add(path, "only TCP is spoken here; hosts, methods and paths never match in ALLOW rules".into());
    }
    for (i, port) in operation.ports.iter().enumerate() {
        let served = port.parse::<u16>().is_ok_and(|port| bound.ports.contains(&port));
        if bound.any && !bound.ports.is_empty() && !served {
            out.add(
                format!("{path}.ports[{i}]"),
                format!("no selected workload serves port {port} (the workload's own port counts, not the service's)"),
            );
        }
    }
    for (i, value) in operation.paths.iter().enumerate() {
        if is_exact(value) && !value.starts_with('/') {
            out.add(format!("{path}.paths[{i}]"), format!("{value:?} does not begin with '/'; no path is like that"));
        }
    }
    for (i, value) in operation.methods.iter().enumerate() {
        if *value != value.to_ascii_uppercase() {
            out.add(format!("{path}.methods[{i}]"), format!("methods are upper case: {}", value.to_ascii_uppercase()));
        }
    }
    out.contradiction(path, "hosts", &operation.hosts, &operation.not_hosts);
    out.contradiction(path, "methods", &operation.methods, &operation.not_methods);
    out.contradiction(path, "paths", &operation.paths, &operation.not_paths);
    out.contradiction(path, "ports", &operation.ports, &operation.not_ports);
}

fn of_condition(out: &mut Findings, bound: &Bound, condition: &Condition, path: &str) {
    if condition.key.starts_with("request.auth.") && !condition.values.is_empty() && bound.any && !bound.tokens {
        out.add(
            path,
            format!("{}: no RequestAuthentication binds the workloads: no request has claims", condition.key),
        );
    }
    if bound.tcp_only && condition.key.starts_with("request.") && !condition.values.is_empty() {
        out.add(path, format!("{}: only TCP is spoken here", condition.key));
    }
    out.contradiction(path, "values", &condition.values, &condition.not_values);
}

/// The action as users write it.
pub fn action(policy: &AuthorizationPolicy) -> &'static str {
    match policy.action {
        istio::AuthorizationAction::Allow => "ALLOW",
        istio::AuthorizationAction::Deny => "DENY",
        istio::AuthorizationAction::Audit => "AUDIT",
        istio::AuthorizationAction::Custom => "CUSTOM",
    }
}
