//! EnvoyFilter objects, applied to finished messages: a message that a patch matches is written as JSON, patched, and read
//! back, so that what the proxy would refuse is refused here, by name. Messages that no patch matches are not touched.
//!
//! Reading order: this file (which patches, in which order, to which resources), [`select`] (what a patch matches),
//! [`patch`] (what it does), [`retired`] (filters that Envoy has no more), [`listeners`] and [`routes`] (the way down into listeners and route configurations).

mod listeners;
mod patch;
mod retired;
mod routes;
mod select;

use crate::pb::cluster::Cluster;
use crate::pb::listener::Filter;
use crate::proxy::ProxyView;
use crate::resource::{ProxyResources, Resource, ResourceMap, Resources, by_name, hash_bytes};
use patch::merge;
use prost::{Message, Name};
use select::Facts;
use serde_json::Value;
use std::any::Any;
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weft_core::{Provenance, Strng};
use weft_k8s_api::istio::{self, ApplyTo, EnvoyConfigObjectPatch, PatchOperation as Op};
use weft_model::{MeshSnapshot, Policy};
use weft_proto::json::{self, UnknownFields};
use weft_proto::unpack;

/// Envoy filters that bind a proxy: the root namespace's first, each namespace's by priority, then age.
pub fn bound(snapshot: &MeshSnapshot, proxy: &ProxyView) -> Vec<Arc<Policy<istio::EnvoyFilter>>> {
    snapshot.envoy_filters_for(proxy.namespace(), &proxy.labels)
}

/// One patch of one object, and what came of it.
struct Item<'a> {
    patch: &'a EnvoyConfigObjectPatch,
    origin: Provenance,
    /// Its value as the message that it is, once it was needed; `None` when it is none.
    written: OnceCell<Option<Value>>,
    outcome: RefCell<Outcome>,
}

/// What patches made of messages before: by hash of the patches and of the message, and its name. Proxies of equal view
/// share their messages, and most messages stay what they are from one snapshot to the next.
#[derive(Debug, Default)]
pub(crate) struct Memo {
    known: Mutex<HashMap<(u64, u64, Strng), Remembered>>,
    /// The schema, once it was needed: to read it anew takes longer than to patch.
    schema: Mutex<Option<Arc<dyn Any + Send + Sync>>>,
}

/// Most messages that are remembered; then all are forgotten.
const REMEMBERED: usize = 20_000;

#[derive(Debug, Clone)]
struct Remembered {
    /// `None`: removed.
    after: Option<Arc<Resource>>,
    outcomes: Vec<Outcome>,
}

impl Memo {
    fn hold_schema(&self) {
        let mut held = self.schema.lock().unwrap_or_else(PoisonError::into_inner);
        held.get_or_insert_with(|| json::pool());
    }

    fn known(&self) -> MutexGuard<'_, HashMap<(u64, u64, Strng), Remembered>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It matched nothing so far.
    Idle,
    Applied,
    /// It would have made a message that is none.
    Failed,
}

impl Item<'_> {
    fn op(&self) -> Op {
        self.patch.patch.as_ref().map_or(Op::Invalid, |p| p.operation)
    }

    /// The value as given, but for messages that it carries as plain JSON (`TypedStruct`).
    fn value(&self) -> Value {
        let given = self.patch.patch.as_ref().map_or(Value::Null, |p| Value::Object(p.value.clone()));
        json::expanded(&given).into_owned()
    }

    /// The value as a message of that type writes it: names and words as the schema spells them.
    fn value_of<M: Message + Name + Default>(&self) -> Option<Value> {
        self.once(|| as_written::<M>(&self.value()))
    }

    /// As [`Self::value_of`] for a network filter, said in the words of the proxy.
    fn network_filter(&self, facts: &Facts) -> Option<Value> {
        self.once(|| as_written::<Filter>(&retired::network_filter_for(facts.weft, self.value())?))
    }

    /// What `written` gives, which is asked once: a patch may match thousands of messages.
    fn once(&self, written: impl FnOnce() -> Option<Value>) -> Option<Value> {
        let value = self.written.get_or_init(written).clone();
        if value.is_none() {
            self.failed();
        }
        value
    }

    fn applied(&self) {
        let mut outcome = self.outcome.borrow_mut();
        if *outcome == Outcome::Idle {
            *outcome = Outcome::Applied;
        }
    }

    fn failed(&self) {
        *self.outcome.borrow_mut() = Outcome::Failed;
    }

    fn note(&self, outcome: Outcome) {
        match outcome {
            Outcome::Idle => {}
            Outcome::Applied => self.applied(),
            Outcome::Failed => self.failed(),
        }
    }
}

fn as_written<M: Message + Name + Default>(value: &Value) -> Option<Value> {
    let read = json::from_json_with::<M>(value, UnknownFields::LeftOut);
    read.and_then(|message| json::to_json(&message, true)).ok()
}

/// The patches of some kinds, and what they made before.
#[derive(Clone, Copy)]
struct Work<'a> {
    items: &'a [&'a Item<'a>],
    memo: &'a Memo,
    /// Hash of all that decides what the patches do.
    hash: u64,
}

/// Applies the patches of `filters` to the resources of a proxy. Patches that cannot be applied, and those for this proxy
/// that match nothing, are noted in [`ProxyResources::not_applied`].
pub(crate) fn apply(
    snapshot: &MeshSnapshot,
    proxy: &ProxyView,
    filters: &[Arc<Policy<istio::EnvoyFilter>>],
    resources: &mut ProxyResources,
    memo: &Memo,
) {
    memo.hold_schema();
    let facts = Facts::of(snapshot, proxy);
    let said: Vec<_> = filters.iter().map(|f| (&f.provenance, &f.spec)).collect();
    let hash = hash_bytes(format!("{facts:?} {said:?}").as_bytes());
    let mut items: Vec<Item<'_>> = Vec::new();
    for filter in filters {
        for (i, patch) in filter.spec.config_patches.iter().enumerate() {
            let origin = filter.provenance.at(format!("spec.configPatches[{i}]"));
            if facts.concerns(patch) {
                items.push(Item { patch, origin, written: OnceCell::new(), outcome: RefCell::new(Outcome::Idle) });
            }
        }
    }
    let of = |kinds: &[ApplyTo]| -> Vec<&Item<'_>> {
        items.iter().filter(|item| kinds.contains(&item.patch.apply_to)).collect()
    };
    let to_clusters = of(&[ApplyTo::Cluster]);
    if !to_clusters.is_empty() {
        clusters(&facts, Work { items: &to_clusters, memo, hash }, &mut resources.clusters);
    }
    let inside = [
        ApplyTo::Listener,
        ApplyTo::FilterChain,
        ApplyTo::NetworkFilter,
        ApplyTo::HttpFilter,
        ApplyTo::ListenerFilter,
        ApplyTo::RouteConfiguration,
        ApplyTo::VirtualHost,
        ApplyTo::HttpRoute,
    ];
    let to_listeners = of(&inside);
    if !to_listeners.is_empty() {
        listeners::apply(&facts, Work { items: &to_listeners, memo, hash }, &mut resources.listeners);
    }
    let to_routes = of(&[ApplyTo::RouteConfiguration, ApplyTo::VirtualHost, ApplyTo::HttpRoute]);
    if !to_routes.is_empty() {
        routes::apply(&facts, Work { items: &to_routes, memo, hash }, resources);
    }
    let idle = items.iter().filter(|item| *item.outcome.borrow() != Outcome::Applied);
    resources.not_applied = idle.map(|item| item.origin.clone()).collect();
}

fn clusters(facts: &Facts, work: Work<'_>, map: &mut ResourceMap) {
    rewrite::<Cluster>(map, work, &|name, whole| {
        let mut value: Option<Value> = None;
        for item in work.items.iter().filter(|item| facts.cluster(item.patch, name)) {
            match item.op() {
                Op::Remove => {
                    item.applied();
                    return Rewritten::Removed;
                }
                op @ (Op::Merge | Op::MergeAndReplaceList) => {
                    let Some(more) = item.value_of::<Cluster>() else { continue };
                    merge_checked::<Cluster>(&mut value, whole, &more, op, item);
                }
                _ => {}
            }
        }
        value.map_or(Rewritten::Same, Rewritten::Changed)
    });
    let added = work.items.iter().filter(|item| item.op() == Op::Add);
    add::<Cluster>(map, added, |cluster| cluster.name.clone());
}

/// Merges into the message as it is by now, unless what comes out is none.
fn merge_checked<M: Message + Name + Default>(
    value: &mut Option<Value>,
    whole: &dyn Fn() -> Value,
    more: &Value,
    op: Op,
    item: &Item<'_>,
) {
    let mut next = value.clone().unwrap_or_else(whole);
    merge(&mut next, more, op == Op::MergeAndReplaceList);
    if json::from_json::<M>(&next).is_ok() {
        *value = Some(next);
        item.applied();
    } else {
        item.failed();
    }
}

/// What became of a message.
enum Rewritten {
    Same,
    Changed(Value),
    Removed,
}

/// How one message is rewritten, by its name and, when it is asked for, its JSON.
type Rewrite<'a> = &'a dyn Fn(&str, &dyn Fn() -> Value) -> Rewritten;

/// Rewrites the messages of a map.
fn rewrite<M: Message + Name + Default>(map: &mut ResourceMap, work: Work<'_>, each: Rewrite<'_>) {
    let all: Vec<Arc<Resource>> = map.iter().cloned().collect();
    let after: Vec<Option<Arc<Resource>>> = all.iter().map(|resource| one::<M>(resource, work, each)).collect();
    let same = |(old, new): (&Arc<Resource>, &Option<Arc<Resource>>)| new.as_ref().is_some_and(|n| Arc::ptr_eq(n, old));
    if !all.iter().zip(&after).all(same) {
        *map = ResourceMap::new(Arc::default(), by_name(after.into_iter().flatten()));
    }
}

/// What becomes of one message, remembered or found out; `None`: it is removed.
fn one<M: Message + Name + Default>(
    resource: &Arc<Resource>,
    work: Work<'_>,
    each: Rewrite<'_>,
) -> Option<Arc<Resource>> {
    let key = (work.hash ^ hash_bytes(M::NAME.as_bytes()), resource.hash, resource.name.clone());
    let known = work.memo.known().get(&key).cloned();
    if let Some(known) = known {
        work.items.iter().zip(&known.outcomes).for_each(|(item, outcome)| item.note(*outcome));
        return known.after;
    }
    let before: Vec<Outcome> = work.items.iter().map(|item| item.outcome.replace(Outcome::Idle)).collect();
    let whole = || {
        let message = unpack::<M>(&resource.any).ok();
        message.and_then(|m| json::to_json(&m, true).ok()).unwrap_or(Value::Null)
    };
    let after = match each(&resource.name, &whole) {
        Rewritten::Same => Some(resource.clone()),
        Rewritten::Removed => None,
        Rewritten::Changed(value) => match json::from_json::<M>(&value) {
            Ok(message) => Some(Resource::new(resource.name.clone(), &message)),
            Err(_) => Some(resource.clone()),
        },
    };
    let outcomes: Vec<Outcome> = work.items.iter().map(|item| *item.outcome.borrow()).collect();
    work.items.iter().zip(before).for_each(|(item, outcome)| {
        let of_this = item.outcome.replace(outcome);
        item.note(of_this);
    });
    let mut known = work.memo.known();
    if known.len() >= REMEMBERED {
        known.clear();
    }
    known.insert(key, Remembered { after: after.clone(), outcomes });
    after
}

/// Adds whole messages; one of a name that is there already is left out.
fn add<'a, 'b: 'a, M: Message + Name + Default>(
    map: &mut ResourceMap,
    items: impl Iterator<Item = &'a &'a Item<'b>>,
    name: impl Fn(&M) -> String,
) {
    let mut more = Resources::new();
    for item in items {
        let Ok(message) = json::from_json_with::<M>(&item.value(), UnknownFields::LeftOut) else {
            item.failed();
            continue;
        };
        let name = name(&message);
        if name.is_empty() || map.get(&name).is_some() {
            item.failed();
            continue;
        }
        let resource = Resource::new(name, &message);
        more.insert(resource.name.clone(), resource);
        item.applied();
    }
    if !more.is_empty() {
        let mut own = map.own().clone();
        own.extend(more);
        *map = ResourceMap::new(map.shared().clone(), own);
    }
}
