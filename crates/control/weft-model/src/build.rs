//! The build: from lists of objects to the snapshot, section by section, each made again only when something it is made of
//! changed.

use crate::gateway_api::{Source, Translated};
use crate::jwks::KeySets;
use crate::memo::{Memo, State};
use crate::services::{export_to, kubernetes_services, resolve_aliases};
use crate::{
    ExportTo, Inputs, MeshSnapshot, Registry, Sections, Service, certificates, destination_rules, endpoints, policies,
    secrets, service_entries, virtual_services, warnings, workloads,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use weft_core::Strng;

/// Builds the snapshot of `inputs`. `previous` is the snapshot before it: what did not change since is taken from there,
/// the same `Arc`s, and [`MeshSnapshot::sections`] says what did. Without it all is new.
pub fn build(inputs: &Inputs, previous: Option<&MeshSnapshot>) -> MeshSnapshot {
    let empty = MeshSnapshot::default();
    let old = previous.unwrap_or(&empty);
    let mut next = Build::start(inputs, old, previous.is_none());
    next.namespaces();
    next.workloads();
    next.services_and_endpoints();
    next.secrets(inputs.now);
    next.gateway_api();
    next.virtual_services();
    next.destination_rules();
    next.gateways_and_sidecars();
    next.security(inputs);
    next.telemetry_and_filters();
    next.finish()
}

struct Build<'a> {
    old: &'a MeshSnapshot,
    new: MeshSnapshot,
    state: State,
    defaults: Defaults,
    /// This build.
    version: u64,
    /// Settings or mesh config are not what they were.
    mesh_changed: bool,
    /// What the Gateway API's objects stand for is not what it was.
    translated: Changed,
}

/// Which parts of a translation are new.
#[derive(Default)]
struct Changed {
    rules: bool,
    gateways: bool,
    routes: bool,
}

/// Mesh-wide defaults of `exportTo`.
struct Defaults {
    service: ExportTo,
    virtual_service: ExportTo,
    destination_rule: ExportTo,
}

impl<'a> Build<'a> {
    fn start(inputs: &Inputs, old: &'a MeshSnapshot, first: bool) -> Self {
        let version = old.version + 1;
        let mesh_changed = first || *inputs.mesh != *old.mesh || *inputs.settings != *old.settings;
        let default = |list: &[String]| export_to(list, ".", &ExportTo::All);
        let defaults = Defaults {
            service: default(&inputs.mesh.default_service_export_to),
            virtual_service: default(&inputs.mesh.default_virtual_service_export_to),
            destination_rule: default(&inputs.mesh.default_destination_rule_export_to),
        };
        let mut state = (*old.memo.0).clone();
        // Read with one schema, however many there are.
        let patches_known = state.kinds.patch_problems.is_of(inputs.of("networking.istio.io", "EnvoyFilter"));
        let _schema = (!patches_known).then(weft_k8s_api::validate::envoy_schema);
        state.kinds = state.kinds.refresh(inputs, version);
        // Everything starts as it was; the steps replace what changed.
        let mut new = old.clone();
        new.version = version;
        if mesh_changed {
            new.mesh = inputs.mesh.clone();
            new.settings = inputs.settings.clone();
            new.sections.mesh = version;
        }
        if first {
            new.sections = Sections { mesh: version, ..Sections::default() };
        }
        Self { old, new, state, defaults, version, mesh_changed, translated: Changed::default() }
    }

    /// True when one of these changed in this build.
    fn any(&self, changed: &[u64]) -> bool {
        changed.contains(&self.version)
    }

    fn namespaces(&mut self) {
        if self.any(&[self.state.kinds.namespaces.changed]) {
            let all = self.state.kinds.namespaces.items.iter();
            self.new.namespaces = all.map(|n| (n.meta.name.clone(), (*n.meta.labels).clone())).collect();
            self.new.sections.namespaces = self.version;
        }
    }

    fn workloads(&mut self) {
        let kinds = &self.state.kinds;
        if !self.mesh_changed && !self.any(&[kinds.pods.changed, kinds.nodes.changed, kinds.workload_entries.changed]) {
            return;
        }
        let entries = service_entries::entry_workloads(&kinds.workload_entries.items, &self.new.settings);
        let built = workloads::build(
            &kinds.pods.items,
            entries,
            &kinds.nodes.items,
            &self.new.settings,
            &self.old.workloads_by_name,
        );
        let same = same_map(&built.by_name, &self.old.workloads_by_name)
            && same_map(&built.by_address, &self.old.workloads)
            && self.state.workloads.pods.len() == built.pods.len();
        if !same {
            self.new.workloads.clone_from(&built.by_address);
            self.new.workloads_by_name.clone_from(&built.by_name);
            self.state.workloads = Arc::new(built);
            self.new.sections.workloads = self.version;
        }
    }

    /// Services first without the identities of who runs them, then the endpoints, then the identities from those.
    fn services_and_endpoints(&mut self) {
        let kinds = &self.state.kinds;
        let declared = self.mesh_changed || self.any(&[kinds.services.changed, kinds.service_entries.changed]);
        if declared {
            let settings = &self.new.settings;
            let mut all = kubernetes_services(&kinds.services.items, settings, &self.defaults.service);
            all.extend(service_entries::services(&kinds.service_entries.items, settings, &self.defaults.service));
            let mut all = by_host(all);
            resolve_aliases(&mut all);
            self.state.services = Arc::new(all);
            self.state.entry_statuses = service_entries::statuses(
                &kinds.service_entries.items,
                &self.state.services,
                settings,
                &self.state.entry_statuses,
            );
        }
        let behind = self.any(&[
            kinds.slices.changed,
            kinds.legacy_endpoints.changed,
            kinds.workload_entries.changed,
            self.new.sections.workloads,
        ]);
        if !declared && !behind {
            return;
        }
        let backends = service_entries::Backends::new(
            &kinds.service_entries.items,
            &kinds.workload_entries.items,
            &self.new.settings,
        );
        let sources = endpoints::Sources::new(
            &kinds.slices.items,
            &kinds.legacy_endpoints.items,
            &self.state.workloads,
            &backends,
        );
        let table = endpoints::build(&self.state.services, &sources, &self.state.endpoints);
        if !same_map(&table.owned, &self.old.endpoints) || !same_map(&table.others, &self.old.other_endpoints) {
            self.new.endpoints.clone_from(&table.owned);
            self.new.other_endpoints.clone_from(&table.others);
            self.state.endpoints = Arc::new(table);
            self.new.sections.endpoints = self.version;
        }
        self.identities();
    }

    fn identities(&mut self) {
        let mut services: BTreeMap<Strng, Vec<Arc<Service>>> = BTreeMap::new();
        let mut changed = self.state.services.len() != self.old.services.len();
        for (host, list) in self.state.services.iter() {
            let before = self.old.services.get(host);
            changed |= before.is_none_or(|b| b.len() != list.len());
            let mut finished = Vec::with_capacity(list.len());
            for (i, base) in list.iter().enumerate() {
                let mut service = base.clone();
                service.identities = run_by(&service, &self.new);
                let old = before.and_then(|b| b.get(i));
                let service = crate::parsed::reuse(old, service);
                changed |= old.is_none_or(|o| !Arc::ptr_eq(o, &service));
                finished.push(service);
            }
            services.insert(host.clone(), finished);
        }
        if changed {
            let mut by_namespace: BTreeMap<String, Vec<Arc<Service>>> = BTreeMap::new();
            for service in services.values().flatten() {
                by_namespace.entry(service.namespace.clone()).or_default().push(service.clone());
            }
            self.new.services = services;
            self.new.services_by_namespace = by_namespace;
            self.new.sections.services = self.version;
        }
    }

    /// What the Gateway API's objects and Ingresses stand for; the steps after this one add it to what they read.
    fn gateway_api(&mut self) {
        let s = self.new.sections;
        let k = &self.state.kinds;
        let referred = [k.services.changed, k.service_entries.changed, k.reference_grants.changed, s.services];
        let references_changed = self.mesh_changed || self.any(&referred);
        let around = [s.workloads, s.namespaces, s.secrets];
        if !references_changed && !self.any(&k.gateway_api_changed()) && !self.any(&around) {
            return;
        }
        let source = Source {
            kinds: k,
            services: &self.state.services,
            workloads: &self.new.workloads_by_name,
            namespaces: &self.new.namespaces,
            secrets: &self.new.secrets,
            secret_problems: &self.new.secret_problems,
            authorities: &self.new.authorities,
            mesh: &self.new.mesh,
            settings: &self.new.settings,
            references_changed,
        };
        let old = self.state.translated.clone();
        let new = if source.is_empty() { Translated::default() } else { source.translate(&old) };
        self.translated = Changed {
            rules: new.destination_rules != old.destination_rules,
            gateways: !same_list(&new.gateways, &old.gateways),
            routes: !same_list(&new.virtual_services, &old.virtual_services),
        };
        self.state.translated = Arc::new(new);
    }

    fn virtual_services(&mut self) {
        let kind = &self.state.kinds.virtual_services;
        if !self.mesh_changed && !self.any(&[kind.changed]) && !self.translated.routes {
            return;
        }
        let resolved = virtual_services::resolve(
            &kind.items,
            &self.new.settings,
            &self.defaults.virtual_service,
            &self.state.virtual_services,
            !self.mesh_changed,
        );
        let mut outputs: Vec<_> = resolved.iter().map(|r| r.output.clone()).collect();
        if !self.state.translated.virtual_services.is_empty() {
            outputs.extend(self.state.translated.virtual_services.iter().cloned());
            outputs.sort_by(|a, b| (a.created, &a.name, &a.namespace).cmp(&(b.created, &b.name, &b.namespace)));
        }
        if !same_list(&outputs, &self.old.virtual_services) {
            self.new.virtual_services = outputs;
            self.new.sections.virtual_services = self.version;
        }
        self.state.virtual_services = resolved.into_iter().map(|r| (r.key(), r)).collect();
    }

    fn destination_rules(&mut self) {
        let kind = &self.state.kinds.destination_rules;
        if !self.mesh_changed && !self.any(&[kind.changed]) && !self.translated.rules {
            return;
        }
        // What the user says of a host himself counts before what policies say.
        let translated = self.state.translated.destination_rules.iter();
        let all: Vec<_> = kind.items.iter().chain(translated).cloned().collect();
        let rules = destination_rules::build(
            &all,
            &self.new.settings,
            &self.defaults.destination_rule,
            &self.old.destination_rules,
        );
        self.new.destination_rules = rules.merged;
        self.state.rule_warnings = Arc::new(rules.warnings);
        self.new.sections.destination_rules = self.version;
    }

    fn gateways_and_sidecars(&mut self) {
        let kinds = &self.state.kinds;
        if self.any(&[kinds.gateways.changed]) || self.translated.gateways {
            let mut gateways = policies::gateways(&kinds.gateways.items, &self.new.settings);
            gateways.extend(self.state.translated.gateways.iter().cloned());
            gateways.sort_by(|a, b| (a.created, &a.name, &a.namespace).cmp(&(b.created, &b.name, &b.namespace)));
            self.new.gateways = gateways;
            self.new.sections.gateways = self.version;
        }
        if self.any(&[kinds.sidecars.changed]) {
            // The warnings of all policies are taken together below.
            self.new.sidecars = policies::sidecars(&kinds.sidecars.items, &mut Vec::new());
            self.new.sections.sidecars = self.version;
        }
    }

    fn security(&mut self, inputs: &Inputs) {
        let kinds = &self.state.kinds;
        let parts =
            [kinds.peer_authentication.changed, kinds.authorization.changed, kinds.request_authentication.changed];
        let policies_changed = self.any(&parts);
        if self.new.jwks != inputs.jwks {
            self.new.jwks = inputs.jwks.clone();
            self.new.sections.security = self.version;
        }
        if policies_changed || self.mesh_changed {
            let ignore = &mut Vec::new();
            let peers = policies::peer_authentication(&kinds.peer_authentication.items, &self.new.settings, ignore);
            self.new.peer_auth = Arc::new(peers);
            self.new.authorization = policies::index(&kinds.authorization.items, ignore);
            self.new.request_auth = policies::index(&kinds.request_authentication.items, ignore);
            self.new.sections.security = self.version;
        }
        if self.any(&[self.new.sections.security]) {
            self.new.key_sets = KeySets::of(&self.new, &self.old.key_sets);
        }
        let [filters, patches] = [kinds.envoy_filters.changed, kinds.patch_problems.changed];
        let all = [kinds.sidecars.changed, kinds.telemetry.changed, filters, patches];
        if policies_changed || self.mesh_changed || self.any(&all) {
            let mut found = Vec::new();
            policies::sidecars(&kinds.sidecars.items, &mut found);
            policies::peer_authentication(&kinds.peer_authentication.items, &self.new.settings, &mut found);
            policies::index(&kinds.authorization.items, &mut found);
            policies::index(&kinds.request_authentication.items, &mut found);
            policies::index(&kinds.telemetry.items, &mut found);
            policies::envoy_filters(&kinds.envoy_filters.items, &mut found);
            policies::patch_problems(&kinds.patch_problems.items, &mut found);
            self.state.policy_warnings = Arc::new(found);
        }
    }

    fn telemetry_and_filters(&mut self) {
        let kinds = &self.state.kinds;
        if self.any(&[kinds.telemetry.changed]) {
            self.new.telemetry = policies::index(&kinds.telemetry.items, &mut Vec::new());
            self.new.sections.telemetry = self.version;
        }
        if self.any(&[kinds.envoy_filters.changed]) {
            self.new.envoy_filters = policies::envoy_filters(&kinds.envoy_filters.items, &mut Vec::new());
            self.new.sections.envoy_filters = self.version;
        }
    }

    fn secrets(&mut self, now: Option<i64>) {
        if self.any(&[self.state.kinds.secrets.changed]) {
            self.new.secrets = secrets::credentials(&self.state.kinds.secrets.items, &self.old.secrets);
            self.new.sections.secrets = self.version;
        }
        if self.any(&[self.state.kinds.config_maps.changed]) {
            let authorities = secrets::credentials(&self.state.kinds.config_maps.items, &self.old.authorities);
            if !same_tree(&authorities, &self.old.authorities) {
                self.new.authorities = authorities;
                self.new.sections.secrets = self.version;
            }
        }
        let (problems, next) = certificates::problems(&self.state.kinds.secrets, now);
        if problems != self.old.secret_problems {
            self.new.secret_problems = problems;
            self.new.sections.secrets = self.version;
        }
        self.new.next_validity_change = next;
    }

    fn references(&mut self) {
        let s = self.new.sections;
        if self.any(&[s.mesh, s.services, s.virtual_services, s.destination_rules, s.gateways]) {
            self.state.route_warnings = Arc::new(warnings::of_routes(&self.new));
        }
        if self.any(&[s.mesh, s.services, s.security]) {
            self.state.security_warnings = Arc::new(warnings::of_security(&self.new));
        }
        if self.any(&[s.mesh, s.gateways, s.workloads, s.secrets]) {
            self.state.gateway_warnings = Arc::new(warnings::of_gateways(&self.new));
        }
    }

    fn finish(mut self) -> MeshSnapshot {
        let mut found: Vec<crate::Warning> = self.state.kinds.errors().cloned().collect();
        found.extend(self.state.virtual_services.values().flat_map(|r| r.warnings.iter().cloned()));
        found.extend(self.state.rule_warnings.iter().cloned());
        found.extend(self.state.policy_warnings.iter().cloned());
        found.extend(self.state.translated.warnings.iter().cloned());
        let statuses = self.state.translated.statuses.iter().chain(&self.state.entry_statuses).cloned();
        let statuses: Vec<_> = statuses.collect();
        if !same_list(&statuses, &self.old.statuses) {
            self.new.statuses = Arc::new(statuses);
        }
        self.references();
        let referring = [&self.state.security_warnings, &self.state.route_warnings, &self.state.gateway_warnings];
        found.extend(referring.into_iter().flat_map(|list| list.iter().cloned()));
        found.sort();
        found.dedup();
        self.new.warnings = found;
        self.new.memo = Memo(Arc::new(self.state));
        self.new
    }
}

/// Services by host; where several namespaces declare one, the cluster's own comes first, then the oldest.
fn by_host(all: Vec<Service>) -> BTreeMap<Strng, Vec<Service>> {
    let mut out: BTreeMap<Strng, Vec<Service>> = BTreeMap::new();
    for service in all {
        out.entry(service.host.clone()).or_default().push(service);
    }
    for list in out.values_mut() {
        list.sort_by(|a, b| {
            let key = |s: &Service| (s.registry != Some(Registry::Kubernetes), s.created);
            key(a).cmp(&key(b)).then_with(|| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)))
        });
    }
    out
}

/// Who runs a service: the identities of its endpoints.
fn run_by(service: &Service, snapshot: &MeshSnapshot) -> BTreeSet<String> {
    let ports = service.ports.iter().filter_map(|p| snapshot.endpoints_of(service, p.number));
    let identities = ports.flat_map(|list| list.iter().map(|e| e.identity.as_str()));
    // A set of borrowed names first: there are many endpoints, and few accounts.
    let distinct: BTreeSet<&str> = identities.filter(|i| !i.is_empty()).collect();
    distinct.into_iter().map(str::to_string).collect()
}

fn same_map<K: std::hash::Hash + Eq, V>(a: &HashMap<K, Arc<V>>, b: &HashMap<K, Arc<V>>) -> bool {
    a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|other| Arc::ptr_eq(v, other)))
}

fn same_tree<K: Ord, V>(a: &BTreeMap<K, Arc<V>>, b: &BTreeMap<K, Arc<V>>) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|((k, v), (l, w))| k == l && Arc::ptr_eq(v, w))
}

fn same_list<T>(a: &[Arc<T>], b: &[Arc<T>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| Arc::ptr_eq(x, y))
}
