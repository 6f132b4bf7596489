//! What routes refer to: services by name, and whether another namespace allows it (ReferenceGrant).

use super::Problem;
use crate::parsed::Parsed;
use crate::{Service, Settings};
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_core::Strng;
use weft_k8s_api::gateway_api as api;
use weft_k8s_api::istio::{Destination, PortSelector};

/// Host of the destination that stands for one that cannot be used. No service has it: its share of the requests is
/// answered 500.
pub(crate) const INVALID_HOST: &str = "invalid-backend.weft.dev";

/// Group of service entries and hostnames.
pub(crate) const ISTIO: &str = "networking.istio.io";

/// Who refers: group, kind and namespace of the object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Referrer<'a> {
    pub group: &'a str,
    pub kind: &'a str,
    pub namespace: &'a str,
}

/// What references are looked up in.
pub(crate) struct References<'a> {
    pub services: &'a BTreeMap<Strng, Vec<Service>>,
    pub grants: &'a [Arc<Parsed<api::ReferenceGrant>>],
    /// Hosts that service entries declare: by namespace and name of the entry.
    pub entries: BTreeMap<(String, String), Vec<Strng>>,
    pub settings: &'a Settings,
}

impl References<'_> {
    /// Hosts of a service, or of a service entry, that an object of `namespace` is for; none when there is no such thing, or
    /// when it is of another kind.
    pub fn hosts_of(&self, group: &str, kind: &str, namespace: &str, name: &str) -> Vec<Strng> {
        match (group, kind) {
            ("" | "core", "Service") => {
                let host = Strng::from(format!("{name}.{namespace}.svc.{}", self.settings.domain));
                if self.services.contains_key(&host) { vec![host] } else { Vec::new() }
            }
            (ISTIO, "ServiceEntry") => {
                self.entries.get(&(namespace.to_string(), name.to_string())).cloned().unwrap_or_default()
            }
            _ => Vec::new(),
        }
    }

    /// Whether `from` may refer to the object of another namespace.
    pub fn allows(&self, from: Referrer<'_>, group: &str, kind: &str, namespace: &str, name: &str) -> bool {
        if from.namespace == namespace {
            return true;
        }
        self.grants.iter().filter(|g| g.meta.namespace == namespace).any(|grant| {
            let who = |f: &api::ReferenceGrantFrom| {
                f.group == from.group && f.kind == from.kind && f.namespace == from.namespace
            };
            let what = |t: &api::ReferenceGrantTo| {
                t.group == group && t.kind == kind && t.name.as_deref().is_none_or(|n| n.is_empty() || n == name)
            };
            grant.spec.from.iter().any(who) && grant.spec.to.iter().any(what)
        })
    }

    /// The destination of a backend, and what is wrong with it; then the destination is one that leads nowhere.
    pub fn destination(&self, from: Referrer<'_>, to: &api::BackendRef) -> (Destination, Option<Problem>) {
        match self.find(from, to) {
            Ok((host, port)) => {
                let port = port.map(|number| PortSelector { number });
                (Destination { host, subset: String::new(), port }, None)
            }
            Err(problem) => (Destination { host: INVALID_HOST.into(), ..Default::default() }, Some(problem)),
        }
    }

    fn find(&self, from: Referrer<'_>, to: &api::BackendRef) -> Result<(String, Option<u32>), Problem> {
        let namespace = if to.namespace.is_empty() { from.namespace } else { &to.namespace };
        let kind = if to.kind.is_empty() { "Service" } else { to.kind.as_str() };
        let host = match (to.group.as_str(), kind) {
            ("" | "core", "Service") => Strng::from(format!("{}.{namespace}.svc.{}", to.name, self.settings.domain)),
            (ISTIO, "Hostname") => Strng::from(to.name.to_ascii_lowercase()),
            (ISTIO, "ServiceEntry") => {
                let known = self.entries.get(&(namespace.to_string(), to.name.clone()));
                known.and_then(|hosts| hosts.first()).cloned().ok_or_else(|| {
                    Problem::new("BackendNotFound", format!("ServiceEntry {namespace}/{} does not exist", to.name))
                })?
            }
            (group, kind) => {
                let message = format!("a backend of kind {kind} of group {group:?} is not supported; use a Service");
                return Err(Problem::new("InvalidKind", message));
            }
        };
        let group = if to.group == "core" { "" } else { to.group.as_str() };
        if !self.allows(from, group, kind, namespace, &to.name) {
            let message = format!(
                "{kind} {namespace}/{} may not be used from namespace {}; it takes a ReferenceGrant in {namespace}",
                to.name, from.namespace
            );
            return Err(Problem::new("RefNotPermitted", message));
        }
        let Some(service) = self.services.get(&host).and_then(|list| list.first()) else {
            return Err(Problem::new("BackendNotFound", format!("backend {host} does not exist")));
        };
        match to.port {
            Some(port) if service.ports.iter().all(|p| u32::from(p.number) != port) => {
                let known: Vec<u16> = service.ports.iter().map(|p| p.number).collect();
                Err(Problem::new("BackendNotFound", format!("service {host} has no port {port}; it has {known:?}")))
            }
            None if service.ports.len() != 1 => {
                Err(Problem::new("UnsupportedValue", format!("backend {host}: port is required")))
            }
            port => Ok((host.to_string(), port)),
        }
    }
}
