//! From a change of resources to the next snapshot, in two steps: first everything is compiled, which may refuse resources
//! one by one; then what was accepted goes into a new snapshot, and the rest of it is shared with the last one.

use crate::compile::listener::compile_listener;
use crate::compile::{Ctx, Shared, cluster::decode_cluster, fingerprint};
use crate::raw::{Raw, RawStore};
use crate::{
    Cluster, Discovery, FilterChain, Listener, ProxySnapshot, RouteSource, Secret, Terminal, UpstreamTransport,
};
use prost::{Message, Name};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weft_core::Strng;
use weft_proto::Any;
use weft_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use weft_proto::envoy::config::listener::v3 as listener;
use weft_proto::envoy::config::route::v3 as route;
use weft_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use weft_proto::istio::networking::nds::v1::NameTable;
use weft_proto::type_url;
use weft_route::compile::CompiledTable;
use weft_route::error::Path;
use weft_route::{ConfigError, Pool, RouteTable, VirtualHost, compile_table, compile_virtual_host};

/// Applied changes between two sweeps of what is shared.
const SWEEP_EVERY: u64 = 64;

/// A change of one type's resources.
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// Type of all of them.
    pub type_url: String,
    /// New and changed ones.
    pub upserts: Vec<Upsert>,
    /// Names of those that are gone.
    pub removals: Vec<String>,
}

/// A new or changed resource.
#[derive(Debug, Clone)]
pub struct Upsert {
    /// Name.
    pub name: String,
    /// Version that the control plane gave it.
    pub version: String,
    /// The message.
    pub any: Any,
}

/// What came of an update.
#[derive(Debug)]
pub struct Applied {
    /// The snapshot that holds it.
    pub snapshot: Arc<ProxySnapshot>,
    /// Refused resources, and why: the text of a NACK.
    pub refused: Vec<(String, String)>,
    /// Everything that could not be used as it stands, also in accepted resources.
    pub errors: Vec<ConfigError>,
}

/// What the configuration needs, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Route configurations.
    pub routes: BTreeSet<String>,
    /// Collections of virtual hosts, `<route>/*`.
    pub virtual_hosts: BTreeSet<String>,
    /// Endpoints.
    pub endpoints: BTreeSet<String>,
    /// Secrets.
    pub secrets: BTreeSet<String>,
}

/// Holds the resources and makes snapshots of them.
#[derive(Debug, Default)]
pub struct ConfigBuilder {
    pool: Pool,
    shared: Shared,
    snapshot: Arc<ProxySnapshot>,
    /// Accepted listeners, those that still wait for routes among them.
    listeners: BTreeMap<Strng, Arc<Listener>>,
    tables: BTreeMap<String, Table>,
    name_table: Arc<NameTable>,
    raw: RawStore,
    applied: u64,
}

/// A route configuration and the virtual hosts that VHDS brought for it.
#[derive(Debug, Default)]
struct Table {
    base: Option<CompiledTable>,
    extra: BTreeMap<Strng, Arc<VirtualHost>>,
}

/// The next snapshot while it is made.
struct Draft {
    next: ProxySnapshot,
    refused: Vec<(String, String)>,
    errors: Vec<ConfigError>,
    /// Route tables to put together again, once each.
    dirty: BTreeSet<String>,
}

impl ConfigBuilder {
    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<ProxySnapshot> {
        self.snapshot.clone()
    }

    /// Names and addresses for the DNS proxy.
    pub fn name_table(&self) -> Arc<NameTable> {
        self.name_table.clone()
    }

    /// Accepted resources of a type, by name: a copy, for dumps.
    pub fn raw(&self, type_url: &str) -> Option<BTreeMap<String, Raw>> {
        self.raw.of_type(type_url)
    }

    /// Accepted listeners that wait for their routes.
    pub fn warming_listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.listeners.values().filter(|l| self.snapshot.listeners.get(&l.name).is_none_or(|s| !Arc::ptr_eq(s, l)))
    }

    /// Applies a change. Refused resources leave what was there before; everything else takes effect.
    pub fn apply(&mut self, update: &Update) -> Applied {
        let mut draft = self.draft();
        for upsert in &update.upserts {
            self.upsert(&update.type_url, upsert, &mut draft);
        }
        for name in &update.removals {
            self.remove(&update.type_url, name, &mut draft);
        }
        if update.type_url == type_url::CLUSTER && !update.removals.is_empty() {
            let used = endpoint_names(&draft.next);
            draft.next.endpoints.retain(|name, _| used.contains(name));
        }
        if update.type_url == type_url::SECRET {
            rebind_clusters(&mut draft.next);
            self.rebind_listeners(&mut draft.next);
        }
        self.finish(draft)
    }

    /// Puts in a secret of the agent's own: the workload's certificate, the mesh's roots.
    pub fn set_secret(&mut self, name: &str, secret: Secret) -> Arc<ProxySnapshot> {
        let mut draft = self.draft();
        draft.next.secrets.insert(self.pool.text(name), Arc::new(secret));
        rebind_clusters(&mut draft.next);
        self.rebind_listeners(&mut draft.next);
        self.finish(draft).snapshot
    }

    fn draft(&self) -> Draft {
        let next = (*self.snapshot).clone();
        Draft { next, refused: Vec::new(), errors: Vec::new(), dirty: BTreeSet::new() }
    }

    fn finish(&mut self, mut draft: Draft) -> Applied {
        for table in std::mem::take(&mut draft.dirty) {
            self.rebuild_table(&table, &mut draft);
        }
        self.promote_listeners(&mut draft.next);
        draft.next.version = self.snapshot.version + 1;
        self.snapshot = Arc::new(draft.next);
        self.applied += 1;
        if self.applied.is_multiple_of(SWEEP_EVERY) {
            self.pool.sweep();
            self.shared.sweep();
        }
        Applied { snapshot: self.snapshot.clone(), refused: draft.refused, errors: draft.errors }
    }

    fn upsert(&mut self, type_url: &str, upsert: &Upsert, draft: &mut Draft) {
        let accepted = match type_url {
            type_url::LISTENER => self.listener(upsert, draft),
            type_url::CLUSTER => self.cluster(upsert, draft),
            type_url::ENDPOINT => self.endpoints(upsert, draft),
            type_url::ROUTE => self.route(upsert, draft),
            type_url::VIRTUAL_HOST => self.virtual_host(upsert, draft),
            type_url::SECRET => self.secret(upsert, draft),
            type_url::NAME_TABLE => self.names(upsert, draft),
            other => draft.refuse(&upsert.name, format!("resource type {other} is not used by weft-proxy")),
        };
        if accepted && type_url != type_url::SECRET {
            // Secrets are not kept for dumps: a dump shows the parsed certificate, never the key.
            let (name, version) = (self.pool.text(&upsert.name), self.pool.text(&upsert.version));
            self.raw.insert(type_url, name, version, &upsert.any.value);
        }
    }

    fn remove(&mut self, type_url: &str, name: &str, draft: &mut Draft) {
        self.raw.remove(type_url, name);
        match type_url {
            type_url::LISTENER => {
                self.listeners.remove(name);
                draft.next.listeners.remove(name);
            }
            type_url::CLUSTER => drop(draft.next.clusters.remove(name)),
            type_url::ENDPOINT => drop(draft.next.endpoints.remove(name)),
            type_url::SECRET => drop(draft.next.secrets.remove(name)),
            type_url::ROUTE => {
                if let Some(table) = self.tables.get_mut(name) {
                    table.base = None;
                }
                draft.dirty.insert(name.to_string());
            }
            type_url::VIRTUAL_HOST => {
                let Some((table_name, _)) = name.split_once('/') else { return };
                if let Some(table) = self.tables.get_mut(table_name) {
                    table.extra.remove(name);
                }
                draft.dirty.insert(table_name.to_string());
            }
            _ => {}
        }
    }

    fn listener(&mut self, upsert: &Upsert, draft: &mut Draft) -> bool {
        let Some(message) = draft.decode::<listener::Listener>(upsert) else { return false };
        let print = fingerprint(&upsert.any.value);
        if self.listeners.get(upsert.name.as_str()).is_some_and(|l| l.fingerprint == print) {
            return true;
        }
        let mut ctx =
            Ctx::new(format!("listener {}", upsert.name), &mut self.pool, &mut self.shared, &draft.next.secrets);
        let before = self.listeners.get(upsert.name.as_str());
        let compiled = compile_listener(&message, print, before.map(|l| &**l), &mut ctx);
        let errors = ctx.c.errors.into_list();
        let Some(compiled) = compiled else { return draft.refuse_with(&upsert.name, errors) };
        if *compiled.name != *upsert.name {
            return draft.misnamed(&upsert.name, &compiled.name);
        }
        draft.errors.extend(errors);
        self.listeners.insert(compiled.name.clone(), Arc::new(compiled));
        true
    }

    fn cluster(&mut self, upsert: &Upsert, draft: &mut Draft) -> bool {
        if !draft.is_type::<weft_proto::envoy::config::cluster::v3::Cluster>(upsert) {
            return false;
        }
        let print = fingerprint(&upsert.any.value);
        if draft.next.clusters.get(upsert.name.as_str()).is_some_and(|c| c.fingerprint == print) {
            return true;
        }
        let mut ctx =
            Ctx::new(format!("cluster {}", upsert.name), &mut self.pool, &mut self.shared, &draft.next.secrets);
        let compiled = decode_cluster(&upsert.any, &mut ctx);
        let errors = ctx.c.errors.into_list();
        let Some(compiled) = compiled else { return draft.refuse_with(&upsert.name, errors) };
        if *compiled.name != *upsert.name {
            return draft.misnamed(&upsert.name, &compiled.name);
        }
        draft.errors.extend(errors);
        draft.next.clusters.insert(compiled.name.clone(), Arc::new(compiled));
        true
    }

    fn endpoints(&mut self, upsert: &Upsert, draft: &mut Draft) -> bool {
        let Some(message) = draft.decode::<ClusterLoadAssignment>(upsert) else { return false };
        let secrets = crate::Map::default();
        let mut ctx = Ctx::new(format!("endpoints {}", upsert.name), &mut self.pool, &mut self.shared, &secrets);
        let set = ctx.endpoints(&message, &Path::ROOT);
        let errors = ctx.c.errors.into_list();
        if errors.iter().any(|e| e.severity == weft_route::Severity::Refused) {
            return draft.refuse_with(&upsert.name, errors);
        }
        draft.errors.extend(errors);
        let name = self.pool.text(&upsert.name);
        if draft.next.endpoints.get(&name).is_none_or(|old| **old != set) {
            draft.next.endpoints.insert(name, Arc::new(set));
        }
        true
    }

    fn route(&mut self, upsert: &Upsert, draft: &mut Draft) -> bool {
        let Some(message) = draft.decode::<route::RouteConfiguration>(upsert) else { return false };
        let (compiled, errors) = compile_table(&message, &mut self.pool);
        let Some(compiled) = compiled else { return draft.refuse_with(&upsert.name, errors) };
        draft.errors.extend(errors);
        self.tables.entry(upsert.name.clone()).or_default().base = Some(compiled);
        draft.dirty.insert(upsert.name.clone());
        true
    }

    fn virtual_host(&mut self, upsert: &Upsert, draft: &mut Draft) -> bool {
        let Some((table, _)) = upsert.name.split_once('/') else {
            return draft.refuse(&upsert.name, "a virtual host by VHDS is named ROUTE/NAME".into());
        };
        let Some(message) = draft.decode::<route::VirtualHost>(upsert) else { return false };
        let (host, errors) = compile_virtual_host(&upsert.name, &message, &mut self.pool);
        draft.errors.extend(errors);
        let name = self.pool.text(&upsert.name);
        self.tables.entry(table.to_string()).or_default().extra.insert(name, host);
        draft.dirty.insert(table.to_string());
        true
    }

    fn secret(&mut self, upsert: &Upsert, draft: &mut Draft) -> bool {
        let Some(message) = draft.decode::<tls::Secret>(upsert) else { return false };
        let secrets = crate::Map::default();
        let mut ctx = Ctx::new(format!("secret {}", upsert.name), &mut self.pool, &mut self.shared, &secrets);
        let secret = ctx.secret(&message, &Path::ROOT);
        let secret = secret.filter(|_| !ctx.c.errors.refused());
        let errors = ctx.c.errors.into_list();
        let Some(secret) = secret else { return draft.refuse_with(&upsert.name, errors) };
        draft.next.secrets.insert(self.pool.text(&upsert.name), Arc::new(secret));
        true
    }

    fn names(&mut self, upsert: &Upsert, draft: &mut Draft) -> bool {
        let Some(table) = draft.decode::<NameTable>(upsert) else { return false };
        self.name_table = Arc::new(table);
        true
    }

    /// Puts a table together again from its settings and all of its virtual hosts.
    fn rebuild_table(&mut self, name: &str, draft: &mut Draft) {
        let Some(table) = self.tables.get(name) else { return };
        let Some(base) = &table.base else {
            draft.next.routes.remove(name);
            if table.extra.is_empty() {
                self.tables.remove(name);
            }
            return;
        };
        let hosts = base.virtual_hosts.iter().cloned().chain(table.extra.values().cloned());
        let (built, errors) = RouteTable::build(base.settings.clone(), hosts);
        draft.errors.extend(errors);
        draft.next.routes.insert(self.pool.text(name), Arc::new(built));
    }

    /// Listeners take effect when all routes that they name are there; until then what was there before serves on.
    fn promote_listeners(&mut self, next: &mut ProxySnapshot) {
        for (name, listener) in &self.listeners {
            let ready = route_names(listener).all(|route| self.table_is_ready(route, next));
            let current = next.listeners.get(name);
            if ready && current.is_none_or(|c| !Arc::ptr_eq(c, listener)) {
                next.listeners.insert(name.clone(), listener.clone());
            }
        }
    }

    fn table_is_ready(&self, name: &str, next: &ProxySnapshot) -> bool {
        let waits_for_hosts = self
            .tables
            .get(name)
            .is_some_and(|t| t.extra.is_empty() && t.base.as_ref().is_some_and(|b| b.settings.vhds));
        next.routes.contains_key(name) && !waits_for_hosts
    }

    /// Listeners whose contexts use secrets that changed get new contexts: those that are to come, and those in force, which
    /// may be older ones that serve until what the new ones name has arrived.
    fn rebind_listeners(&mut self, next: &mut ProxySnapshot) {
        let (secrets, in_force) = (&next.secrets, &mut next.listeners);
        let find = |name: &str| secrets.get(name).cloned();
        for (name, listener) in &mut self.listeners {
            let serving = in_force.get_mut(name).filter(|serving| Arc::ptr_eq(serving, listener));
            if let Some(new) = rebound_listener(listener, &find) {
                *listener = Arc::new(new);
                serving.into_iter().for_each(|serving| *serving = listener.clone());
            }
        }
        for (name, serving) in in_force {
            let is_newest = self.listeners.get(name).is_some_and(|newest| Arc::ptr_eq(newest, serving));
            if let Some(new) = rebound_listener(serving, &find).filter(|_| !is_newest) {
                *serving = Arc::new(new);
            }
        }
    }

    /// What the configuration needs now, by name: to be subscribed to.
    pub fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        // Those in force too: they serve until what the new ones name has arrived.
        for listener in self.listeners.values().chain(self.snapshot.listeners.values()) {
            wanted.routes.extend(route_names(listener).map(str::to_string));
            for chain in listener.chains.iter().chain(&listener.default_chain) {
                wanted.secrets.extend(chain.tls.iter().flat_map(|t| t.secret_names()).map(ToString::to_string));
            }
        }
        let vhds = self.tables.iter().filter(|(_, t)| t.base.as_ref().is_some_and(|b| b.settings.vhds));
        wanted.virtual_hosts.extend(vhds.map(|(name, _)| format!("{name}/*")));
        wanted.endpoints = endpoint_names(&self.snapshot).iter().map(ToString::to_string).collect();
        for cluster in self.snapshot.clusters.values() {
            for tls in transports(cluster) {
                wanted.secrets.extend(tls.secret_names().map(ToString::to_string));
            }
        }
        wanted
    }

    /// What is named by the configuration and has not arrived: what a start waits for.
    pub fn missing(&self) -> Vec<String> {
        let wanted = self.wanted();
        let routes = wanted.routes.iter().filter(|name| !self.table_is_ready(name, &self.snapshot));
        let endpoints = wanted.endpoints.iter().filter(|name| !self.snapshot.endpoints.contains_key(name.as_str()));
        let secrets = wanted.secrets.iter().filter(|name| !self.snapshot.secrets.contains_key(name.as_str()));
        let routes = routes.map(|name| format!("route {name}"));
        let endpoints = endpoints.map(|name| format!("endpoints {name}"));
        routes.chain(endpoints).chain(secrets.map(|name| format!("secret {name}"))).collect()
    }
}

impl Draft {
    fn decode<M: Message + Name + Default>(&mut self, upsert: &Upsert) -> Option<M> {
        match weft_proto::unpack::<M>(&upsert.any) {
            Ok(message) => Some(message),
            Err(error) => {
                self.refuse(&upsert.name, error.to_string());
                None
            }
        }
    }

    fn is_type<M: Message + Name + Default>(&mut self, upsert: &Upsert) -> bool {
        let want = M::full_name();
        let got = upsert.any.type_url.rsplit('/').next().unwrap_or_default();
        got == want || self.refuse(&upsert.name, format!("expected {want}, got {got}"))
    }

    /// A resource that goes by two names could never be removed.
    fn misnamed(&mut self, name: &str, inside: &str) -> bool {
        self.refuse(name, format!("the message inside is named {inside:?}; both names must be the same"))
    }

    /// Always false: what was refused is not accepted.
    fn refuse(&mut self, name: &str, reason: String) -> bool {
        self.refused.push((name.to_string(), reason));
        false
    }

    fn refuse_with(&mut self, name: &str, errors: Vec<ConfigError>) -> bool {
        let reasons: Vec<String> = errors
            .iter()
            .filter(|e| e.severity == weft_route::Severity::Refused)
            .map(|e| if e.path.is_empty() { e.message.clone() } else { format!("{}: {}", e.path, e.message) })
            .collect();
        self.errors.extend(errors);
        self.refuse(name, reasons.join("; "))
    }
}

/// Names of the route configurations that a listener takes by RDS.
fn route_names(listener: &Listener) -> impl Iterator<Item = &str> {
    listener.chains.iter().chain(&listener.default_chain).filter_map(|chain| match &chain.terminal {
        Terminal::Http(hcm) => match &hcm.routes {
            RouteSource::Rds(name) => Some(&**name),
            RouteSource::Inline(_) => None,
        },
        Terminal::Tcp(_) => None,
    })
}

fn endpoint_names(snapshot: &ProxySnapshot) -> BTreeSet<Strng> {
    let eds = |cluster: &Arc<Cluster>| match &cluster.discovery {
        Discovery::Eds(name) => Some(name.clone()),
        _ => None,
    };
    snapshot.clusters.values().filter_map(eds).collect()
}

fn transports(cluster: &Cluster) -> impl Iterator<Item = &Arc<crate::ClientTls>> {
    let all = cluster.transport_matches.iter().map(|(_, t)| t).chain([&cluster.transport]);
    all.filter_map(|transport| match transport {
        UpstreamTransport::Tls(tls) => Some(tls),
        UpstreamTransport::Plain => None,
    })
}

fn rebound_listener(listener: &Listener, find: &dyn Fn(&str) -> Option<Arc<Secret>>) -> Option<Listener> {
    let chains = rebound_chains(&listener.chains, find);
    let default = listener.default_chain.as_ref().and_then(|chain| rebound_chain(chain, find));
    if chains.is_none() && default.is_none() {
        return None;
    }
    let mut new = listener.clone();
    new.chains = chains.unwrap_or(new.chains);
    new.default_chain = default.or(new.default_chain);
    Some(new)
}

/// Clusters whose contexts use secrets that changed get new contexts; the others stay the same.
fn rebind_clusters(next: &mut ProxySnapshot) {
    let secrets = &next.secrets;
    let find = |name: &str| secrets.get(name).cloned();
    let rebound = |transport: &UpstreamTransport| match transport {
        UpstreamTransport::Tls(tls) => tls.rebound(&find).map(|new| UpstreamTransport::Tls(Arc::new(new))),
        UpstreamTransport::Plain => None,
    };
    for cluster in next.clusters.values_mut() {
        let transport = rebound(&cluster.transport);
        let matches: Vec<_> = cluster.transport_matches.iter().map(|(_, t)| rebound(t)).collect();
        if transport.is_none() && matches.iter().all(Option::is_none) {
            continue;
        }
        let mut new = (**cluster).clone();
        new.transport = transport.unwrap_or(new.transport);
        for ((_, slot), fresh) in new.transport_matches.iter_mut().zip(matches) {
            if let Some(fresh) = fresh {
                *slot = fresh;
            }
        }
        *cluster = Arc::new(new);
    }
}

fn rebound_chain(chain: &Arc<FilterChain>, find: &dyn Fn(&str) -> Option<Arc<Secret>>) -> Option<Arc<FilterChain>> {
    let tls = chain.tls.as_ref()?.rebound(find)?;
    let mut new = (**chain).clone();
    new.tls = Some(Arc::new(tls));
    Some(Arc::new(new))
}

/// The chains with new contexts; `None` when none changes.
fn rebound_chains(
    chains: &[Arc<FilterChain>],
    find: &dyn Fn(&str) -> Option<Arc<Secret>>,
) -> Option<Vec<Arc<FilterChain>>> {
    let mut any = false;
    let new = chains
        .iter()
        .map(|chain| {
            let rebound = rebound_chain(chain, find);
            any |= rebound.is_some();
            rebound.unwrap_or_else(|| chain.clone())
        })
        .collect();
    any.then_some(new)
}
