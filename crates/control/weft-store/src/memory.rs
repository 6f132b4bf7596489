//! Objects in memory with Kubernetes' rules: revisions, uids, generations, optimistic updates, finalizers, namespaces.
//! Events for watchers are written here and read in [`crate::watch`]; REST, admission and garbage collection are not here.

use crate::definitions::is_built_in;
use crate::error::StoreError;
use crate::selector::{FieldSelector, LabelSelector};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::watch;
use weft_k8s_api::{Object, ObjectKey};

/// Told of every change, in order, while the store is locked: must be quick and must not call the store.
pub type Listener = Arc<dyn Fn(&Change) + Send + Sync>;

/// Sizes and hooks of a store.
#[derive(Clone)]
pub struct StoreOptions {
    /// Events kept per kind for watchers. A watcher that falls further behind must list again. Default 4096.
    pub history: usize,
    /// Objects that the store holds at most. Default 200 000.
    pub max_objects: usize,
    /// Whether creating an object in a namespace that does not exist is refused. Default true.
    pub require_namespaces: bool,
    /// Told of every change. Default none.
    pub listener: Option<Listener>,
    /// Revision that the store begins with. Default: the clock in microseconds, so that a store that replaces another one
    /// begins beyond it, and a watcher of that other one is told to list again instead of missing what it did not see.
    pub first_revision: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            history: 4096,
            max_objects: 200_000,
            require_namespaces: true,
            listener: None,
            first_revision: u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0),
        }
    }
}

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeType {
    /// Created.
    Added,
    /// Updated.
    Modified,
    /// Removed.
    Deleted,
}

/// One committed change.
#[derive(Debug, Clone)]
pub struct Change {
    /// Revision of the store after the change.
    pub revision: u64,
    /// What happened.
    pub change: ChangeType,
    /// State before; `None` for [`ChangeType::Added`].
    pub old: Option<Arc<Object>>,
    /// State after; for [`ChangeType::Deleted`] the last state, with the revision of the deletion.
    pub new: Arc<Object>,
}

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// API group; empty for core.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Only this namespace; `None` for all.
    pub namespace: Option<String>,
    /// Label selector.
    pub labels: LabelSelector,
    /// Field selector.
    pub fields: FieldSelector,
    /// At most that many objects; `None` or 0 for all.
    pub limit: Option<usize>,
    /// Token of an earlier, shortened list.
    pub continue_token: Option<String>,
}

impl ListQuery {
    /// All objects of a kind, in all namespaces.
    pub fn all(group: &str, kind: &str) -> Self {
        Self { group: group.into(), kind: kind.into(), ..Self::default() }
    }

    /// All objects of a kind in a namespace.
    pub fn namespaced(group: &str, kind: &str, namespace: &str) -> Self {
        Self { namespace: Some(namespace.into()), ..Self::all(group, kind) }
    }

    fn matches(&self, object: &Object) -> bool {
        self.namespace.as_deref().is_none_or(|n| n == object.namespace())
            && self.labels.matches(object.metadata.labels.as_ref())
            && self.fields.matches(object)
    }
}

/// Result of a list, in the order of namespace and name.
#[derive(Debug, Clone, Default)]
pub struct ObjectList {
    /// The objects.
    pub items: Vec<Arc<Object>>,
    /// Revision to watch from.
    pub revision: u64,
    /// Set when the list was shortened: pass it on to get the rest.
    pub continue_token: Option<String>,
    /// How many more there are.
    pub remaining: usize,
}

/// What must hold for a deletion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preconditions {
    /// The object's uid.
    pub uid: Option<String>,
    /// The object's resource version.
    pub resource_version: Option<String>,
}

/// What happens to the objects that a deleted object owns. The store only marks; the collector acts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Propagation {
    /// As the object's finalizers say from an earlier deletion; else as `Background`.
    #[default]
    Unspecified,
    /// The object goes at once, what it owns later.
    Background,
    /// What it owns goes first (finalizer `foregroundDeletion`).
    Foreground,
    /// What it owns stays (finalizer `orphan`).
    Orphan,
}

/// How to delete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// What must hold.
    pub preconditions: Preconditions,
    /// What happens to owned objects.
    pub propagation: Propagation,
    /// Seconds that a pod gets to stop; `None` takes the pod's own, 0 removes the pod at once.
    pub grace_period_seconds: Option<i64>,
    /// Check everything, change nothing.
    pub dry_run: bool,
}

/// Result of a deletion.
#[derive(Debug, Clone)]
pub struct Deleted {
    /// Last state.
    pub object: Arc<Object>,
    /// `false`: the object is marked (`deletionTimestamp`) and goes when its finalizers are gone or its pod has stopped.
    pub gone: bool,
}

/// A Kubernetes-shaped store. Clones are handles to the same store.
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

struct Inner {
    options: StoreOptions,
    state: RwLock<State>,
    revision: watch::Sender<u64>,
    deletions: watch::Sender<u64>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) revision: u64,
    /// Revision of the empty store: a watch cannot start from before it.
    pub(crate) first: u64,
    count: usize,
    kinds: BTreeMap<KindKey, KindState>,
}

type KindKey = (String, String);

pub(crate) struct KindState {
    pub(crate) objects: BTreeMap<(String, String), Arc<Object>>,
    pub(crate) history: VecDeque<Change>,
    /// Revision of the newest event that is no longer kept: the oldest revision that a watch can start from.
    pub(crate) floor: u64,
    pub(crate) wake: watch::Sender<u64>,
}

impl KindState {
    fn new(floor: u64) -> Self {
        Self { objects: BTreeMap::new(), history: VecDeque::new(), floor, wake: watch::Sender::new(floor) }
    }
}

impl KindState {
    /// The objects as they were at a revision that the history still reaches back to.
    fn at(&self, revision: u64) -> Cow<'_, BTreeMap<(String, String), Arc<Object>>> {
        let mut objects = Cow::Borrowed(&self.objects);
        for change in self.history.iter().rev().take_while(|change| change.revision > revision) {
            let place = (change.new.namespace().to_string(), change.new.name().to_string());
            match &change.old {
                Some(old) => drop(objects.to_mut().insert(place, old.clone())),
                None => drop(objects.to_mut().remove(&place)),
            }
        }
        objects
    }
}

impl State {
    pub(crate) fn kind(&self, group: &str, kind: &str) -> Option<&KindState> {
        self.kinds.get(&(group.to_string(), kind.to_string()))
    }

    fn kind_mut(&mut self, group: &str, kind: &str) -> &mut KindState {
        let first = self.first;
        self.kinds.entry((group.to_string(), kind.to_string())).or_insert_with(|| KindState::new(first))
    }

    fn find(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.kind(&key.group, &key.kind)?.objects.get(&(key.namespace.clone(), key.name.clone()))
    }

    fn current(&self, key: &ObjectKey) -> Result<Arc<Object>, StoreError> {
        self.find(key).cloned().ok_or_else(|| StoreError::NotFound(key.clone()))
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store with default options.
    pub fn new() -> Self {
        Self::with_options(StoreOptions::default())
    }

    /// An empty store.
    pub fn with_options(options: StoreOptions) -> Self {
        let first = options.first_revision;
        let inner = Inner {
            options,
            state: RwLock::new(State { revision: first, first, ..State::default() }),
            revision: watch::Sender::new(first),
            deletions: watch::Sender::new(first),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.inner.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.inner.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Revision of the newest change; [`StoreOptions::first_revision`] when there was none.
    pub fn revision(&self) -> u64 {
        self.read().revision
    }

    /// Revision of the newest change of a kind; the store's first revision when there was none.
    pub fn kind_revision(&self, group: &str, kind: &str) -> u64 {
        let state = self.read();
        state.kind(group, kind).map_or(state.first, |k| k.history.back().map_or(k.floor, |c| c.revision))
    }

    /// Tells of every change of any kind, by the newest revision.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.revision.subscribe()
    }

    /// Tells when an object was removed or marked for deletion, by revision.
    pub fn deletions(&self) -> watch::Receiver<u64> {
        self.inner.deletions.subscribe()
    }

    /// Number of objects of all kinds.
    pub fn len(&self) -> usize {
        self.read().count
    }

    /// Whether the store holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An object by its key.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        self.read().find(key).cloned()
    }

    /// An object by group, kind, namespace (empty for cluster-scoped kinds) and name.
    pub fn find(&self, group: &str, kind: &str, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.get(&key(group, kind, namespace, name))
    }

    /// Adds an object: sets uid, creation time, generation and resource version; makes the name from `generateName` when
    /// there is none.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`], [`StoreError::NamespaceNotFound`], [`StoreError::NamespaceTerminating`],
    /// [`StoreError::Invalid`], [`StoreError::Full`].
    pub fn create(&self, object: Object) -> Result<Arc<Object>, StoreError> {
        self.create_with(object, false)
    }

    /// As [`Self::create`]; with `dry_run` everything is checked and filled, but nothing is kept.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn create_with(&self, mut object: Object, dry_run: bool) -> Result<Arc<Object>, StoreError> {
        let mut state = self.write();
        name_from_prefix(&state, &mut object);
        check_name(&object)?;
        self.check_namespace(&state, &object)?;
        let key = object.key();
        if state.find(&key).is_some() {
            return Err(StoreError::AlreadyExists(key));
        }
        if state.count >= self.inner.options.max_objects {
            return Err(StoreError::Full(state.count));
        }
        fill_new(&mut object);
        if dry_run {
            return Ok(Arc::new(object));
        }
        Ok(self.commit(&mut state, ChangeType::Added, None, object))
    }

    /// Replaces an object. Set `metadata.resourceVersion` to refuse to overwrite what another has written meanwhile; leave
    /// it out to overwrite. Removes the object when it is marked for deletion and its last finalizer goes. An update that
    /// changes nothing keeps the resource version.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Conflict`].
    pub fn update(&self, object: Object) -> Result<Arc<Object>, StoreError> {
        self.update_with(object, false)
    }

    /// As [`Self::update`]; with `dry_run` everything is checked and filled, but nothing is kept.
    ///
    /// # Errors
    /// As [`Self::update`].
    pub fn update_with(&self, mut object: Object, dry_run: bool) -> Result<Arc<Object>, StoreError> {
        let mut state = self.write();
        let key = object.key();
        let old = state.current(&key)?;
        check_version(&key, &old, object.metadata.uid.as_deref(), object.metadata.resource_version.as_deref())?;
        keep_system_fields(&mut object, &old);
        if object == *old {
            return Ok(old);
        }
        check_finalizers(&object, &old)?;
        if has_spec_changed(&object, &old) {
            object.metadata.generation = Some(old.metadata.generation.unwrap_or(0) + 1);
        }
        if dry_run {
            return Ok(Arc::new(object));
        }
        let last = object.metadata.deletion_timestamp.is_some()
            && !has_finalizers(&object)
            && object.metadata.deletion_grace_period_seconds.unwrap_or(0) == 0;
        let change = if last { ChangeType::Deleted } else { ChangeType::Modified };
        Ok(self.commit(&mut state, change, Some(old), object))
    }

    /// Reads, changes and writes an object, and repeats when another writer was quicker (16 times at most).
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or [`StoreError::Conflict`] when the repetitions did not help.
    pub fn modify(&self, key: &ObjectKey, mut change: impl FnMut(&mut Object)) -> Result<Arc<Object>, StoreError> {
        for _ in 0..16 {
            let mut object = Object::clone(&*self.read().current(key)?);
            change(&mut object);
            match self.update(object) {
                Err(StoreError::Conflict { .. }) => {}
                result => return result,
            }
        }
        Err(StoreError::Conflict { key: key.clone(), reason: "16 writers in a row were quicker".into() })
    }

    /// Deletes an object. With finalizers (or owners' propagation) it is only marked, and [`Self::update`] removes it with
    /// the last finalizer. A pod that is on a node is marked too: the node stops it and deletes it again with
    /// `grace_period_seconds: Some(0)`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Conflict`] when a precondition does not hold.
    pub fn delete(&self, key: &ObjectKey, options: &DeleteOptions) -> Result<Deleted, StoreError> {
        let mut state = self.write();
        let old = state.current(key)?;
        let expect = &options.preconditions;
        check_version(key, &old, expect.uid.as_deref(), expect.resource_version.as_deref())?;
        let mut object = Object::clone(&old);
        set_propagation_finalizer(&mut object, options.propagation);
        let grace = grace_period(&object, options.grace_period_seconds);
        let gone = !has_finalizers(&object) && grace == 0;
        if options.dry_run {
            return Ok(Deleted { object: old, gone });
        }
        if gone {
            return Ok(Deleted { object: self.commit(&mut state, ChangeType::Deleted, Some(old), object), gone });
        }
        mark_deleted(&mut object, grace);
        if object == *old {
            return Ok(Deleted { object: old, gone });
        }
        Ok(Deleted { object: self.commit(&mut state, ChangeType::Modified, Some(old), object), gone })
    }

    /// Lists objects of a kind in the order of namespace and name.
    ///
    /// # Errors
    /// [`StoreError::BadContinue`], or [`StoreError::Gone`] when a continued list is too old to be watched from.
    pub fn list(&self, query: &ListQuery) -> Result<ObjectList, StoreError> {
        let state = self.read();
        let (revision, after) = match &query.continue_token {
            Some(token) => parse_continue(token)?,
            None => (state.revision, None),
        };
        let mut list = ObjectList { revision, ..ObjectList::default() };
        let Some(kind) = state.kind(&query.group, &query.kind) else { return Ok(list) };
        if revision < kind.floor || revision > state.revision {
            return Err(StoreError::Gone { asked: revision, oldest: kind.floor, newest: state.revision });
        }
        let limit = query.limit.filter(|l| *l > 0).unwrap_or(usize::MAX);
        for (place, object) in kind.at(revision).iter() {
            if after.as_ref().is_some_and(|a| place <= a) || !query.matches(object) {
                continue;
            }
            if list.items.len() < limit {
                list.items.push(object.clone());
            } else {
                list.remaining += 1;
            }
        }
        if list.remaining > 0 {
            list.continue_token = list.items.last().map(|o| continue_token(revision, o));
        }
        Ok(list)
    }

    /// Puts objects back that another store held: they keep uid, age and generation, and get new resource versions. Objects that
    /// are there already stay. Returns how many were put back.
    pub fn restore(&self, objects: impl IntoIterator<Item = Object>) -> usize {
        let mut state = self.write();
        let mut count = 0;
        for object in objects {
            let full = state.count >= self.inner.options.max_objects;
            if !full && check_name(&object).is_ok() && state.find(&object.key()).is_none() {
                self.commit(&mut state, ChangeType::Added, None, object);
                count += 1;
            }
        }
        count
    }

    /// Every object of every kind.
    pub fn all(&self) -> Vec<Arc<Object>> {
        self.read().kinds.values().flat_map(|k| k.objects.values().cloned()).collect()
    }

    pub(crate) fn wake(&self, group: &str, kind: &str) -> watch::Receiver<u64> {
        let mut state = self.write();
        state.kind_mut(group, kind).wake.subscribe()
    }

    fn check_namespace(&self, state: &State, object: &Object) -> Result<(), StoreError> {
        let namespace = object.namespace();
        if namespace.is_empty() || !self.inner.options.require_namespaces {
            return Ok(());
        }
        match state.find(&key("", "Namespace", "", namespace)) {
            None => Err(StoreError::NamespaceNotFound { key: object.key(), namespace: namespace.into() }),
            Some(n) if n.metadata.deletion_timestamp.is_some() => {
                Err(StoreError::NamespaceTerminating { key: object.key(), namespace: namespace.into() })
            }
            Some(_) => Ok(()),
        }
    }

    /// Gives the change its revision, applies it, and writes it into the history of its kind.
    fn commit(
        &self,
        state: &mut State,
        change: ChangeType,
        old: Option<Arc<Object>>,
        mut object: Object,
    ) -> Arc<Object> {
        state.revision += 1;
        let revision = state.revision;
        object.metadata.resource_version = Some(revision.to_string());
        let object = Arc::new(object);
        let place = (object.namespace().to_string(), object.name().to_string());
        let kind = state.kind_mut(object.group(), &object.kind);
        let (added, removed) = match change {
            ChangeType::Deleted => (0, usize::from(kind.objects.remove(&place).is_some())),
            _ => (usize::from(kind.objects.insert(place, object.clone()).is_none()), 0),
        };
        state.count = state.count + added - removed;
        let kind = state.kind_mut(object.group(), &object.kind);
        let marked = object.metadata.deletion_timestamp.is_some();
        let change = Change { revision, change, old, new: object.clone() };
        if let Some(listener) = &self.inner.options.listener {
            listener(&change);
        }
        if marked || change.change == ChangeType::Deleted {
            self.inner.deletions.send_replace(revision);
        }
        kind.history.push_back(change);
        while kind.history.len() > self.inner.options.history.max(1) {
            kind.floor = kind.history.pop_front().map_or(kind.floor, |c| c.revision);
        }
        kind.wake.send_replace(revision);
        self.inner.revision.send_replace(revision);
        object
    }
}

/// Key from its parts.
pub fn key(group: &str, kind: &str, namespace: &str, name: &str) -> ObjectKey {
    ObjectKey { group: group.into(), kind: kind.into(), namespace: namespace.into(), name: name.into() }
}

/// Kubernetes' alphabet for generated names: no vowels, so no words.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

fn name_from_prefix(state: &State, object: &mut Object) {
    let Some(prefix) = object.metadata.generate_name.clone() else { return };
    if prefix.is_empty() || !object.name().is_empty() {
        return;
    }
    let prefix: String = prefix.chars().take(58).collect();
    for _ in 0..8 {
        let suffix: String = (0..5)
            .map(|_| char::from(SUFFIX_ALPHABET.get(fastrand::usize(..SUFFIX_ALPHABET.len())).copied().unwrap_or(b'b')))
            .collect();
        object.metadata.name = Some(format!("{prefix}{suffix}"));
        if state.find(&object.key()).is_none() {
            return;
        }
    }
}

fn check_name(object: &Object) -> Result<(), StoreError> {
    let name = object.name();
    let invalid =
        |message: String| StoreError::Invalid { key: Box::new(object.key()), field: "metadata.name".into(), message };
    if name.is_empty() {
        return Err(invalid("a name (or generateName) is required".into()));
    }
    if object.group() == "rbac.authorization.k8s.io" {
        // One segment of a path is all that Kubernetes asks of these.
        let fine = name.len() <= 253 && !name.contains(['/', '%']) && !matches!(name, "." | "..");
        return if fine { Ok(()) } else { Err(invalid(format!("{name:?} is not a name: use no '/' and no '%'"))) };
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let fine = name.chars().all(allowed) && edge(name.chars().next()) && edge(name.chars().last());
    if name.len() > 253 || !fine {
        return Err(invalid(format!(
            "{name:?} is not a DNS subdomain: use up to 253 lower case letters, digits, '-' and '.', beginning and ending \
             with a letter or digit"
        )));
    }
    Ok(())
}

fn fill_new(object: &mut Object) {
    let has_generation = has_generation(object);
    let meta = &mut object.metadata;
    meta.uid = Some(new_uid());
    meta.creation_timestamp = Some(now());
    meta.generation = has_generation.then_some(1);
    meta.resource_version = None;
    meta.deletion_timestamp = None;
    meta.deletion_grace_period_seconds = None;
    meta.self_link = None;
}

/// A random uid (RFC 9562, version 4).
pub fn new_uid() -> String {
    let value = fastrand::u128(..);
    let version = (value & !(0xf << 76)) | (0x4 << 76);
    let hex = format!("{:032x}", (version & !(0x3 << 62)) | (0x2 << 62));
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default().to_string();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

/// The clock in whole seconds, as the wire format has it.
fn now() -> Time {
    let now = jiff::Timestamp::now();
    Time(jiff::Timestamp::from_second(now.as_second()).unwrap_or(now))
}

fn check_version(key: &ObjectKey, old: &Object, uid: Option<&str>, version: Option<&str>) -> Result<(), StoreError> {
    let conflict = |what: &str, asked: &str, found: &Option<String>| StoreError::Conflict {
        key: key.clone(),
        reason: format!("{what} {asked} was expected, it is {}", found.as_deref().unwrap_or("none")),
    };
    if let Some(asked) = uid.filter(|u| !u.is_empty() && Some(*u) != old.metadata.uid.as_deref()) {
        return Err(conflict("uid", asked, &old.metadata.uid));
    }
    if let Some(asked) = version.filter(|v| !v.is_empty() && Some(*v) != old.metadata.resource_version.as_deref()) {
        return Err(conflict("resource version", asked, &old.metadata.resource_version));
    }
    Ok(())
}

/// Fields that only the store sets keep their values, whatever the caller sent.
fn keep_system_fields(object: &mut Object, old: &Object) {
    let (meta, old): (&mut ObjectMeta, &ObjectMeta) = (&mut object.metadata, &old.metadata);
    meta.uid.clone_from(&old.uid);
    meta.creation_timestamp.clone_from(&old.creation_timestamp);
    meta.generation = old.generation;
    meta.generate_name.clone_from(&old.generate_name);
    meta.resource_version.clone_from(&old.resource_version);
    meta.deletion_timestamp.clone_from(&old.deletion_timestamp);
    meta.deletion_grace_period_seconds = old.deletion_grace_period_seconds;
    meta.self_link = None;
}

/// What is on its way out is held back by those only who held it when it was deleted.
fn check_finalizers(object: &Object, old: &Object) -> Result<(), StoreError> {
    let of = |object: &Object| object.metadata.finalizers.clone().unwrap_or_default();
    let before = of(old);
    let new: Vec<String> = of(object).into_iter().filter(|name| !before.contains(name)).collect();
    if old.metadata.deletion_timestamp.is_none() || new.is_empty() {
        return Ok(());
    }
    Err(StoreError::Invalid {
        key: Box::new(object.key()),
        field: "metadata.finalizers".into(),
        message: format!(
            "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers {new:?}"
        ),
    })
}

/// Kinds whose desired state is not in a `spec` alone have a generation all the same.
fn has_generation(object: &Object) -> bool {
    let group = object.group();
    object.body.contains_key("spec") || group == "admissionregistration.k8s.io" || !is_built_in(group)
}

fn has_spec_changed(object: &Object, old: &Object) -> bool {
    let other = |name: &&String| !matches!(name.as_str(), "spec" | "status");
    let differs = |name: &String| object.body.get(name) != old.body.get(name);
    let whole = has_generation(object) && (!is_built_in(object.group()) || !object.body.contains_key("spec"));
    (object.body.contains_key("spec") && object.body.get("spec") != old.body.get("spec"))
        || (whole && object.body.keys().chain(old.body.keys()).filter(other).any(differs))
}

fn has_finalizers(object: &Object) -> bool {
    let named = object.metadata.finalizers.as_ref().is_some_and(|f| !f.is_empty());
    // A Namespace keeps its finalizers in the spec as well.
    let spec = object.kind == "Namespace"
        && object.spec().get("finalizers").and_then(Value::as_array).is_some_and(|f| !f.is_empty());
    named || spec
}

/// What is asked for takes the place of what an earlier deletion asked for.
fn set_propagation_finalizer(object: &mut Object, propagation: Propagation) {
    const ALL: [&str; 2] = ["foregroundDeletion", "orphan"];
    let wanted = match propagation {
        Propagation::Unspecified => return,
        Propagation::Background => None,
        Propagation::Foreground => Some("foregroundDeletion"),
        Propagation::Orphan => Some("orphan"),
    };
    let finalizers = object.metadata.finalizers.get_or_insert_default();
    finalizers.retain(|known| Some(known.as_str()) == wanted || !ALL.contains(&known.as_str()));
    if let Some(wanted) = wanted.filter(|wanted| !finalizers.iter().any(|known| known == wanted)) {
        finalizers.push(wanted.into());
    }
    if finalizers.is_empty() {
        object.metadata.finalizers = None;
    }
}

/// Seconds until the object may go; 0 for everything but a pod that runs on a node.
fn grace_period(object: &Object, asked: Option<i64>) -> i64 {
    let on_node = object.spec().get("nodeName").and_then(Value::as_str).is_some_and(|n| !n.is_empty());
    if object.kind != "Pod" || !on_node {
        return 0;
    }
    let phase = object.body.get("status").and_then(|s| s.get("phase")).and_then(Value::as_str).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return 0;
    }
    let own = object.spec().get("terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(30);
    asked.unwrap_or(own).max(0)
}

fn mark_deleted(object: &mut Object, grace: i64) {
    let meta = &mut object.metadata;
    let shorter = meta.deletion_grace_period_seconds.is_none_or(|before| grace < before);
    if meta.deletion_timestamp.is_none() || shorter {
        let now = now();
        let end = now.0.as_second().saturating_add(grace);
        meta.deletion_timestamp = Some(jiff::Timestamp::from_second(end).map_or(now, Time));
        meta.deletion_grace_period_seconds = Some(grace);
        meta.generation = meta.generation.map(|g| g + 1);
    }
    if object.kind == "Namespace" {
        let status = object.body.entry("status").or_insert_with(|| Value::Object(serde_json::Map::new()));
        if let Some(status) = status.as_object_mut() {
            status.insert("phase".into(), "Terminating".into());
        }
    }
}

fn continue_token(revision: u64, last: &Object) -> String {
    format!("{revision}:{}:{}", last.namespace(), last.name())
}

type Place = (String, String);

fn parse_continue(token: &str) -> Result<(u64, Option<Place>), StoreError> {
    let mut parts = token.splitn(3, ':');
    let revision = parts.next().and_then(|r| r.parse().ok()).ok_or(StoreError::BadContinue)?;
    match (parts.next(), parts.next()) {
        (Some(namespace), Some(name)) if !name.is_empty() => Ok((revision, Some((namespace.into(), name.into())))),
        _ => Err(StoreError::BadContinue),
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
