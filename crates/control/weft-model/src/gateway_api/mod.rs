//! The Kubernetes Gateway API and Ingress, as what the rest of the model knows: Gateways, virtual services, destination
//! rules; and what their statuses should say.
//!
//! Each listener is one Gateway of Istio's API; all routes of one listener and host are one virtual service.
//!
//! Reading order: [`read`] (objects of both groups in one form), [`backends`] (references and grants), [`http`] (rules for
//! requests), [`listeners`] (Gateways), [`attach`] (which route to which listener), [`routes`] (virtual services),
//! [`backend_tls`], [`report`] and [`status`] (conditions); beside them [`ingress`].

mod attach;
mod backend_tls;
mod backends;
mod http;
pub(crate) mod ingress;
mod listeners;
pub(crate) mod read;
mod report;
mod routes;
pub(crate) mod status;

pub use backend_tls::UNSERVED;
pub(crate) use backend_tls::is_policy;
pub(crate) use backends::INVALID_HOST;
pub(crate) use listeners::GATEWAY_NAME;
pub use status::StatusUpdate;

use crate::certificates::Problems;
use crate::memo::Kinds;
use crate::parsed::{Parsed, age_order};
use crate::{Credential, Gateway, Labels, Service, Settings, VirtualService, Warning, Workload};
use attach::Attached;
use backend_tls::Targets;
use backends::References;
use listeners::{GatewayState, Surroundings};
use read::{GatewaySpec, RouteSpec};
use routes::{Converted, RouteKey};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use weft_core::Strng;
use weft_k8s_api::istio::{self, MeshConfig};

/// What is wrong with a part of an object: a reason of the API, and a sentence for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub reason: &'static str,
    pub message: String,
}

impl Problem {
    pub fn new(reason: &'static str, message: String) -> Self {
        Self { reason, message }
    }

    /// The same, with the place before the sentence.
    pub fn at(self, path: &str) -> Self {
        Self { message: format!("{path}: {}", self.message), ..self }
    }
}

/// What a translation is made from.
pub(crate) struct Source<'a> {
    pub kinds: &'a Kinds,
    pub services: &'a BTreeMap<Strng, Vec<Service>>,
    pub workloads: &'a HashMap<String, Arc<Workload>>,
    pub namespaces: &'a BTreeMap<String, Labels>,
    pub secrets: &'a BTreeMap<(String, String), Arc<Credential>>,
    /// Why what a secret says is not, or should not be, shown to clients.
    pub secret_problems: &'a Problems,
    pub authorities: &'a BTreeMap<(String, String), Arc<Credential>>,
    pub mesh: &'a MeshConfig,
    pub settings: &'a Settings,
    /// References have to be looked up again: services, grants or service entries are not what they were.
    pub references_changed: bool,
}

/// What the objects stand for, and what the next translation may reuse.
#[derive(Debug, Default)]
pub(crate) struct Translated {
    pub gateways: Vec<Arc<Gateway>>,
    /// Oldest first.
    pub virtual_services: Vec<Arc<VirtualService>>,
    pub destination_rules: Vec<Arc<Parsed<istio::DestinationRule>>>,
    pub statuses: Vec<Arc<StatusUpdate>>,
    pub warnings: Vec<Warning>,
    routes: HashMap<RouteKey, KnownRoute>,
    /// Controllers by class: statuses name them.
    controllers: BTreeMap<String, String>,
    by_slot: routes::BySlot,
    ingress: ingress::Kept,
}

/// A route as it was translated last.
#[derive(Debug)]
struct KnownRoute {
    object: Arc<Parsed<RouteSpec>>,
    rules: Arc<Converted>,
    outcomes: Arc<Vec<attach::Outcome>>,
    report: Arc<report::Report>,
}

impl Source<'_> {
    /// True when there is nothing to translate.
    pub fn is_empty(&self) -> bool {
        let k = self.kinds;
        k.kubernetes_gateways.items.is_empty()
            && k.old_gateways.items.is_empty()
            && k.gateway_classes.items.is_empty()
            && k.old_gateway_classes.items.is_empty()
            && k.backend_tls.items.is_empty()
            && k.ingresses.items.is_empty()
            && self.routes().is_empty()
    }

    /// Routes of all kinds, oldest first.
    fn routes(&self) -> Vec<&Arc<Parsed<RouteSpec>>> {
        let k = self.kinds;
        let lists = [
            &k.http_routes,
            &k.grpc_routes,
            &k.tls_routes,
            &k.tcp_routes,
            &k.old_http_routes,
            &k.old_tls_routes,
            &k.old_tcp_routes,
        ];
        let mut all: Vec<_> = lists.into_iter().flat_map(|kind| kind.items.iter()).collect();
        all.sort_by(|a, b| age_order(&a.meta).cmp(&age_order(&b.meta)));
        all
    }

    fn gateways(&self) -> Vec<Arc<Parsed<GatewaySpec>>> {
        self.kinds.kubernetes_gateways.items.iter().chain(self.kinds.old_gateways.items.iter()).cloned().collect()
    }

    fn references(&self) -> References<'_> {
        let entries = self.kinds.service_entries.items.iter().map(|e| {
            let host = |host: &String| crate::hosts::complete(host, &e.meta.namespace, &self.settings.domain);
            ((e.meta.namespace.clone(), e.meta.name.clone()), e.spec.hosts.iter().map(host).collect())
        });
        References {
            services: self.services,
            grants: &self.kinds.reference_grants.items,
            entries: entries.collect(),
            settings: self.settings,
        }
    }

    /// Classes that are Weft's, each with whether it is of the older group.
    fn classes(&self) -> BTreeSet<(bool, &str)> {
        let all = self.kinds.gateway_classes.items.iter().chain(self.kinds.old_gateway_classes.items.iter());
        let ours = all.filter(|c| listeners::CONTROLLERS.contains(&c.spec.controller.as_str()));
        ours.map(|c| (c.spec.old, c.meta.name.as_str())).collect()
    }

    /// Translates all of it; what did not change is taken from `old`.
    pub fn translate(&self, old: &Translated) -> Translated {
        let references = self.references();
        let around = Surroundings {
            classes: self.classes(),
            services: &self.kinds.services.items,
            workloads: self.workloads,
            secrets: self.secrets,
            secret_problems: self.secret_problems,
            served: listeners::certificates_of(&old.gateways),
            authorities: self.authorities,
            references: &references,
            mesh: self.mesh,
        };
        let gateways = listeners::states(&self.gateways(), &around);
        let mut out = Translated::default();
        let attached = self.attached(&gateways);
        let mut found = HashMap::new();
        for route in &attached {
            let key = routes::key(&route.route);
            let known = old.routes.get(&key);
            let rules = match known.filter(|k| !self.references_changed && Arc::ptr_eq(&k.object, &route.route)) {
                Some(known) => known.rules.clone(),
                None => {
                    let rules = routes::convert(&references, &route.route);
                    crate::parsed::reuse(known.map(|known| &known.rules), rules)
                }
            };
            found.insert(key, rules);
        }
        out.by_slot = routes::virtual_services(&attached, &found, &gateways, &references, &old.by_slot);
        out.gateways = gateways.iter().flat_map(|g| &g.listeners).filter_map(|l| l.gateway.clone()).collect();
        out.virtual_services = out.by_slot.values().map(|(_, service)| service.clone()).collect();
        self.add_backend_tls(&references, &mut out);
        ingress::add(self, &mut out, &old.ingress);
        report::add(self, &references, (&gateways, &attached), found, old, &mut out);
        out.virtual_services
            .sort_by(|a, b| (a.created, &a.namespace, &a.name).cmp(&(b.created, &b.namespace, &b.name)));
        out.gateways.sort_by(|a, b| (a.created, &a.namespace, &a.name).cmp(&(b.created, &b.namespace, &b.name)));
        out.reuse_gateways(old);
        out
    }

    fn attached(&self, gateways: &[GatewayState]) -> Vec<Attached> {
        let one = |route: &Arc<Parsed<RouteSpec>>| {
            let outcomes = attach::outcomes(route, gateways, self.namespaces);
            Attached { route: route.clone(), outcomes: Arc::new(outcomes) }
        };
        self.routes().into_iter().map(one).collect()
    }

    fn add_backend_tls(&self, references: &References<'_>, out: &mut Translated) {
        let targets = Targets {
            references,
            services: &self.kinds.services.items,
            entries: &self.kinds.service_entries.items,
            authorities: self.authorities,
            secrets: self.secrets,
        };
        let tls = backend_tls::rules(&self.kinds.backend_tls.items, &targets);
        out.destination_rules = tls.rules;
        out.statuses.extend(tls.statuses.into_iter().map(Arc::new));
        out.warnings.extend(tls.problems.iter().map(|(at, problem)| status::warning(at, "", problem)));
    }
}

impl Translated {
    /// Gateways that are equal to those of the last translation are those.
    fn reuse_gateways(&mut self, old: &Translated) {
        let known: HashMap<(&str, &str), &Arc<Gateway>> =
            old.gateways.iter().map(|g| ((g.namespace.as_str(), g.name.as_str()), g)).collect();
        for gateway in &mut self.gateways {
            if let Some(same) = known.get(&(gateway.namespace.as_str(), gateway.name.as_str()))
                && ***same == **gateway
            {
                *gateway = (*same).clone();
            }
        }
    }
}
