//! TLS from clients to services (`BackendTLSPolicy`), as destination rules.

use super::Problem;
use super::backends::{ISTIO, References};
use super::listeners::CONTROLLERS;
use super::status::{StatusUpdate, conditions, finding};
use crate::Credential;
use crate::kubernetes::ServiceSpec;
use crate::parsed::{Meta, Parsed};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weft_core::{Provenance, Strng};
use weft_k8s_api::ObjectKey;
use weft_k8s_api::gateway_api as api;
use weft_k8s_api::istio::{self, ClientTlsMode, ClientTlsSettings, PortSelector, PortTrafficPolicy};

/// The field that names the authorities.
const CA_FIELD: &str = "caCertificateRefs";
/// Beginning of the name of authorities that are not to be had: nothing is served under it, and nobody is to be asked for it.
pub const UNSERVED: &str = "unserved://";
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

/// What policies are about, and what they refer to.
pub(crate) struct Targets<'a> {
    pub references: &'a References<'a>,
    pub services: &'a [Arc<Parsed<ServiceSpec>>],
    pub entries: &'a [Arc<Parsed<istio::ServiceEntry>>],
    pub authorities: &'a BTreeMap<(String, String), Arc<Credential>>,
    pub secrets: &'a BTreeMap<(String, String), Arc<Credential>>,
}

/// Reads all policies. Of two of one namespace for one port of a host the older counts. Service entries of several namespaces may
/// declare one host: none of these decides for the others.
pub(crate) fn rules(policies: &[Policy], targets: &Targets<'_>) -> BackendTls {
    let mut out = BackendTls::default();
    let mut taken: BTreeSet<(&str, Strng, Option<u16>)> = BTreeSet::new();
    let mut rules = Rules::default();
    for policy in policies {
        let (settings, missing) = targets.settings(policy);
        out.problems.extend(missing.iter().map(|problem| (policy.meta.provenance.clone(), problem.clone())));
        let mut outcomes: Vec<Result<(), Problem>> = Vec::new();
        for (i, to) in policy.spec.target_refs.iter().enumerate() {
            let at = policy.meta.provenance.at(format!("spec.targetRefs[{i}]"));
            let outcome = targets.find(policy, to).and_then(|(hosts, port)| {
                let mut conflict = None;
                for host in hosts {
                    if taken.insert((policy.meta.namespace.as_str(), host.clone(), port)) {
                        rules.add(policy, &host, port, settings.clone());
                    } else {
                        conflict = Some(format!("an older BackendTLSPolicy is already for {host}"));
                    }
                }
                conflict.map_or(Ok(()), |message| Err(Problem::new("Conflicted", message)))
            });
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

/// One destination rule for each namespace and host, while policies are added.
#[derive(Default)]
struct Rules {
    /// Places in the list.
    by_host: BTreeMap<(String, Strng), usize>,
    list: Vec<Parsed<istio::DestinationRule>>,
}

impl Rules {
    /// Adds TLS of a whole host, or of a port of it. The rule has the name of the oldest policy.
    fn add(&mut self, policy: &Policy, host: &Strng, port: Option<u16>, tls: ClientTlsSettings) {
        let key = (policy.meta.namespace.clone(), host.clone());
        let index = *self.by_host.entry(key).or_insert(self.list.len());
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

impl Targets<'_> {
    /// The hosts of a target, and the port that it names.
    fn find(&self, policy: &Policy, to: &api::PolicyTarget) -> Result<(Vec<Strng>, Option<u16>), Problem> {
        if !matches!((to.group.as_str(), to.kind.as_str()), ("" | "core", "Service") | (ISTIO, "ServiceEntry")) {
            let message =
                format!("kind {} of group {:?} is not supported; use a Service or a ServiceEntry", to.kind, to.group);
            return Err(Problem::new("InvalidKind", message));
        }
        let namespace = &policy.meta.namespace;
        let named = format!("{} {namespace}/{}", to.kind, to.name);
        let hosts = self.references.hosts_of(&to.group, &to.kind, namespace, &to.name);
        if hosts.is_empty() {
            return Err(Problem::new("TargetNotFound", format!("{named} does not exist")));
        }
        let Some(section) = &to.section_name else { return Ok((hosts, None)) };
        match self.port(to, namespace, section) {
            Some(port) => Ok((hosts, Some(port))),
            None => Err(Problem::new("TargetNotFound", format!("{named} has no port {section}"))),
        }
    }

    /// The port of that name.
    fn port(&self, to: &api::PolicyTarget, namespace: &str, section: &str) -> Option<u16> {
        let is = |meta: &Meta| meta.namespace == namespace && meta.name == to.name;
        if to.kind == "ServiceEntry" {
            let entry = self.entries.iter().find(|e| is(&e.meta))?;
            let port = entry.spec.ports.iter().find(|p| p.name == section)?;
            return u16::try_from(port.number).ok();
        }
        let service = self.services.iter().find(|s| is(&s.meta))?;
        service.spec.ports.iter().find(|p| p.name == section).map(|p| p.port)
    }

    /// TLS as the policy asks for it. Authorities that are not to be had are named as [`UNSERVED`], by which proxies take no
    /// server's certificate: what asked for TLS never goes out in the clear, nor to a server that nobody vouched for.
    fn settings(&self, policy: &Policy) -> (ClientTlsSettings, Option<Problem>) {
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
        let unserved = format!("{UNSERVED}{}/{}", key.0, key.1);
        let (scheme, found) = match to.kind.as_str() {
            "ConfigMap" => ("configmap", self.authorities.get(&key)),
            "Secret" => ("kubernetes-gateway", self.secrets.get(&key)),
            other => {
                out.credential_name = unserved;
                let message = format!("{CA_FIELD}: kind {other:?} is not supported; use a ConfigMap");
                return (out, Some(Problem::new("InvalidKind", message)));
            }
        };
        let is_missing = found.is_none_or(|c| c.ca.is_none());
        out.credential_name = if is_missing { unserved } else { format!("{scheme}://{}/{}", key.0, key.1) };
        let missing = is_missing.then(|| {
            let message = format!(
                "{CA_FIELD}: {} {}/{} does not exist, or has no ca.crt; connections fail until it is there",
                to.kind, key.0, key.1
            );
            Problem::new("InvalidCACertificateRef", message)
        });
        (out, missing)
    }
}
