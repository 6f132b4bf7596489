//! TLS from clients to services (`BackendTLSPolicy`), as destination rules.

use super::Problem;
use super::listeners::CONTROLLERS;
use super::status::{StatusUpdate, conditions, finding};
use crate::kubernetes::ServiceSpec;
use crate::parsed::{Meta, Parsed};
use crate::{Credential, Service};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weft_core::{Provenance, Strng};
use weft_k8s_api::ObjectKey;
use weft_k8s_api::gateway_api as api;
use weft_k8s_api::istio::{self, ClientTlsMode, ClientTlsSettings, PortSelector, PortTrafficPolicy};

/// The field that names the authorities.
const CA_FIELD: &str = "caCertificateRefs";
/// Beginning of the name of authorities of a kind that is not read: nothing is served under it.
const UNSERVED: &str = "unserved://";
/// Ending of the names of destination rules that stand for policies; no object's name can have it.
const GENERATED: &str = "~backend-tls";
/// Most entries of a policy's status (the API's bound of `status.ancestors`).
const MAX_ANCESTORS: usize = 16;

type Policy = Arc<Parsed<api::BackendTlsPolicy>>;

/// What policies come to.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct BackendTls {
    /// As destination rules, oldest first.
    pub rules: Vec<Arc<Parsed<istio::DestinationRule>>>,
    /// What is wrong with which policy.
    pub problems: Vec<(Provenance, Problem)>,
    /// What is said of each policy.
    pub statuses: Vec<StatusUpdate>,
}

/// Reads all policies. Of two for one port of a service the older counts.
pub(crate) fn rules(
    policies: &[Policy],
    kubernetes: &[Arc<Parsed<ServiceSpec>>],
    services: &BTreeMap<Strng, Vec<Service>>,
    domain: &str,
    authorities: &BTreeMap<(String, String), Arc<Credential>>,
    secrets: &BTreeMap<(String, String), Arc<Credential>>,
) -> BackendTls {
    let mut out = BackendTls::default();
    let mut taken: BTreeSet<(Strng, Option<u16>)> = BTreeSet::new();
    let mut rules = Rules::default();
    for policy in policies {
        let (settings, missing) = settings(policy, authorities, secrets);
        out.problems.extend(missing.iter().map(|problem| (policy.meta.provenance.clone(), problem.clone())));
        let mut outcomes: Vec<Result<(), Problem>> = Vec::new();
        for (i, to) in policy.spec.target_refs.iter().enumerate() {
            let at = policy.meta.provenance.at(format!("spec.targetRefs[{i}]"));
            let outcome = match target(policy, to, kubernetes, services, domain) {
                Ok((host, port)) if taken.insert((host.clone(), port)) => {
                    rules.add(policy, &host, port, settings.clone());
                    Ok(())
                }
                Ok((host, _)) => {
                    let message = format!("an older BackendTLSPolicy is already for {host}");
                    Err(Problem::new("Conflicted", message))
                }
                Err(problem) => Err(problem),
            };
            out.problems.extend(outcome.as_ref().err().map(|problem| (at, problem.clone())));
            outcomes.push(missing.clone().map_or(outcome, Err));
        }
        out.statuses.push(status(policy, &outcomes));
    }
    out.rules = rules.list.into_iter().map(Arc::new).collect();
    out
}

/// Whether a destination rule of this name stands for policies.
pub(crate) fn is_policy(name: &str) -> bool {
    name.ends_with(GENERATED)
}

/// One destination rule for each host, while policies are added.
#[derive(Default)]
struct Rules {
    /// Places in the list.
    by_host: BTreeMap<Strng, usize>,
    list: Vec<Parsed<istio::DestinationRule>>,
}

impl Rules {
    /// Adds TLS of a whole host, or of a port of it. The rule has the name of the oldest policy.
    fn add(&mut self, policy: &Policy, host: &Strng, port: Option<u16>, tls: ClientTlsSettings) {
        let index = *self.by_host.entry(host.clone()).or_insert(self.list.len());
        if index == self.list.len() {
            let meta = Meta { name: format!("{}{GENERATED}", policy.meta.name), ..policy.meta.clone() };
            self.list.push(Parsed {
                meta,
                spec: Arc::new(istio::DestinationRule { host: host.to_string(), ..Default::default() }),
            });
        }
        let traffic = Arc::make_mut(&mut self.list[index].spec).traffic_policy.get_or_insert_default();
        match port {
            None => traffic.tls = Some(tls),
            Some(number) => traffic.port_level_settings.push(PortTrafficPolicy {
                port: Some(PortSelector { number: number.into() }),
                tls: Some(tls),
                ..Default::default()
            }),
        }
    }
}

/// For each target whether the policy is in force there, and whether its authorities were found.
fn status(policy: &Policy, outcomes: &[Result<(), Problem>]) -> StatusUpdate {
    let meta = &policy.meta;
    let of_authorities = ["InvalidCACertificateRef", "InvalidKind"];
    let one = |(to, outcome): (&api::PolicyTarget, &Result<(), Problem>)| {
        let problem = outcome.as_ref().err();
        let unresolved = problem.filter(|p| of_authorities.contains(&p.reason) && p.message.starts_with(CA_FIELD));
        // A policy whose authorities are missing lets nothing through.
        let refused = problem.map(|p| match unresolved {
            Some(p) => Problem::new("NoValidCACertificate", p.message.clone()),
            None => p.clone(),
        });
        let found = [
            finding("Accepted", ("Accepted", "policy is in force"), refused.as_ref()),
            finding("ResolvedRefs", ("ResolvedRefs", "all references are resolved"), unresolved),
        ];
        let mut ancestor = json!({"group": to.group, "kind": to.kind, "name": to.name, "namespace": meta.namespace});
        if let Some(section) = &to.section_name {
            ancestor["sectionName"] = json!(section);
        }
        json!({
            "ancestorRef": ancestor, "controllerName": CONTROLLERS[0],
            "conditions": conditions(&found, meta.generation),
        })
    };
    let ancestors: Vec<Value> = policy.spec.target_refs.iter().zip(outcomes).take(MAX_ANCESTORS).map(one).collect();
    StatusUpdate {
        object: ObjectKey {
            group: api::GROUP.into(),
            kind: "BackendTLSPolicy".into(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
        },
        generation: meta.generation,
        status: json!({"ancestors": ancestors}),
    }
}

fn target(
    policy: &Policy,
    to: &api::PolicyTarget,
    kubernetes: &[Arc<Parsed<ServiceSpec>>],
    services: &BTreeMap<Strng, Vec<Service>>,
    domain: &str,
) -> Result<(Strng, Option<u16>), Problem> {
    if to.kind != "Service" || !matches!(to.group.as_str(), "" | "core") {
        let message = format!("kind {} of group {:?} is not supported; use a Service", to.kind, to.group);
        return Err(Problem::new("InvalidKind", message));
    }
    let namespace = &policy.meta.namespace;
    let host = Strng::from(format!("{}.{namespace}.svc.{domain}", to.name));
    let known = kubernetes.iter().find(|s| s.meta.namespace == *namespace && s.meta.name == to.name);
    let Some(service) = known.filter(|_| services.contains_key(&host)) else {
        return Err(Problem::new("TargetNotFound", format!("Service {namespace}/{} does not exist", to.name)));
    };
    let Some(section) = &to.section_name else { return Ok((host, None)) };
    match service.spec.ports.iter().find(|p| p.name == *section) {
        Some(port) => Ok((host, Some(port.port))),
        None => Err(Problem::new("TargetNotFound", format!("Service {namespace}/{} has no port {section}", to.name))),
    }
}

/// TLS as the policy asks for it. With authorities that are not to be had it names what no proxy is served, so that no
/// connection comes about: what asked for TLS never goes out in the clear, nor to a server that nobody vouched for.
fn settings(
    policy: &Policy,
    authorities: &BTreeMap<(String, String), Arc<Credential>>,
    secrets: &BTreeMap<(String, String), Arc<Credential>>,
) -> (ClientTlsSettings, Option<Problem>) {
    let validation = &policy.spec.validation;
    let mut out = ClientTlsSettings {
        mode: ClientTlsMode::Simple,
        sni: validation.hostname.clone(),
        subject_alt_names: vec![validation.hostname.clone()],
        ..Default::default()
    };
    if !validation.subject_alt_names.is_empty() {
        let name = |n: &api::SubjectAltName| if n.kind == "URI" { n.uri.clone() } else { n.hostname.clone() };
        out.subject_alt_names = validation.subject_alt_names.iter().map(name).collect();
    }
    let Some(to) = validation.ca_certificate_refs.first() else {
        out.ca_certificates = "system".into();
        return (out, None);
    };
    let key = (policy.meta.namespace.clone(), to.name.clone());
    let (scheme, found) = match to.kind.as_str() {
        "ConfigMap" => ("configmap", authorities.get(&key)),
        "Secret" => ("kubernetes-gateway", secrets.get(&key)),
        other => {
            out.credential_name = format!("{UNSERVED}{}/{}", key.0, key.1);
            let message = format!("{CA_FIELD}: kind {other:?} is not supported; use a ConfigMap");
            return (out, Some(Problem::new("InvalidKind", message)));
        }
    };
    out.credential_name = format!("{scheme}://{}/{}", key.0, key.1);
    let missing = found.is_none_or(|c| c.ca.is_none()).then(|| {
        let message = format!(
            "{CA_FIELD}: {} {}/{} does not exist, or has no ca.crt; connections fail until it is there",
            to.kind, key.0, key.1
        );
        Problem::new("InvalidCACertificateRef", message)
    });
    (out, missing)
}
