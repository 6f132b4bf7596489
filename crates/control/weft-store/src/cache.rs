//! A local copy of some kinds, with a log of which objects changed. What fills it from a server is [`crate::source`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::watch;
use weft_k8s_api::{Object, ObjectKey};

/// Changed keys that are remembered. A reader further behind builds everything anew.
const LOG_LIMIT: usize = 65_536;

/// What changed since a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Revision up to which these changes go; ask from here the next time.
    pub revision: u64,
    /// The changed objects; `None` when too much has changed to say: take everything as changed.
    pub keys: Option<BTreeSet<ObjectKey>>,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.keys.as_ref().is_some_and(BTreeSet::is_empty)
    }

    /// Whether an object of that kind changed (or may have).
    pub fn touches(&self, group: &str, kind: &str) -> bool {
        self.keys.as_ref().is_none_or(|keys| keys.iter().any(|k| k.group == group && k.kind == kind))
    }
}

/// Objects by kind and key. Readers get shared, immutable objects.
pub struct Cache {
    state: RwLock<State>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    revision: u64,
    kinds: BTreeMap<(String, String), Kind>,
    log: VecDeque<(u64, ObjectKey)>,
    /// Revision of the newest entry that was dropped from the log.
    floor: u64,
}

/// Objects by namespace and name.
type Kind = BTreeMap<(String, String), Arc<Object>>;

impl Default for Cache {
    fn default() -> Self {
        Self { state: RwLock::default(), changed: watch::Sender::new(0) }
    }
}

impl Cache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// A cache that holds these objects: for building offline and for tests.
    pub fn from_objects(objects: impl IntoIterator<Item = Object>) -> Self {
        let cache = Self::new();
        for object in objects {
            cache.put(Arc::new(object));
        }
        cache
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Objects of a kind, ordered by namespace and name.
    pub fn list(&self, group: &str, kind: &str) -> Vec<Arc<Object>> {
        let state = self.read();
        let objects = state.kinds.get(&(group.to_string(), kind.to_string()));
        objects.into_iter().flat_map(|k| k.values().cloned()).collect()
    }

    /// Objects of a kind in a namespace, ordered by name.
    pub fn list_namespace(&self, group: &str, kind: &str, namespace: &str) -> Vec<Arc<Object>> {
        let state = self.read();
        let Some(objects) = state.kinds.get(&(group.to_string(), kind.to_string())) else { return Vec::new() };
        let first = (namespace.to_string(), String::new());
        objects.range(first..).take_while(|((n, _), _)| n == namespace).map(|(_, o)| o.clone()).collect()
    }

    /// An object.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        let state = self.read();
        let kind = state.kinds.get(&(key.group.clone(), key.kind.clone()))?;
        kind.get(&(key.namespace.clone(), key.name.clone())).cloned()
    }

    /// An object by group, kind, namespace (empty for cluster-scoped kinds) and name.
    pub fn find(&self, group: &str, kind: &str, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.get(&crate::memory::key(group, kind, namespace, name))
    }

    /// Every object of every kind.
    pub fn all(&self) -> Vec<Arc<Object>> {
        self.read().kinds.values().flat_map(|k| k.values().cloned()).collect()
    }

    /// Counts changes; 0 for a cache that never held anything.
    pub fn revision(&self) -> u64 {
        self.read().revision
    }

    /// Tells of changes by the newest revision. Many changes may be one notification.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Objects that were added, changed or removed after a revision.
    pub fn changes_since(&self, revision: u64) -> Changes {
        let state = self.read();
        if revision < state.floor || revision > state.revision {
            return Changes { revision: state.revision, keys: None };
        }
        let start = state.log.partition_point(|(r, _)| *r <= revision);
        let keys = state.log.range(start..).map(|(_, key)| key.clone()).collect();
        Changes { revision: state.revision, keys: Some(keys) }
    }

    /// Adds or replaces an object. `false` when it was already so (same content, or same resource version).
    pub fn put(&self, object: Arc<Object>) -> bool {
        let mut state = self.write();
        let changed = put(&mut state, object);
        self.notify(&state, changed)
    }

    /// Removes an object. `false` when there was none.
    pub fn remove(&self, key: &ObjectKey) -> bool {
        let mut state = self.write();
        let changed = remove(&mut state, key);
        self.notify(&state, changed)
    }

    /// Makes these objects all there are of a kind, as after a list; only real differences become changes. Returns how many
    /// there were.
    pub fn replace(&self, group: &str, kind: &str, objects: Vec<Arc<Object>>) -> usize {
        let mut state = self.write();
        let listed: BTreeSet<ObjectKey> = objects.iter().map(|o| o.key()).collect();
        let held = state.kinds.get(&(group.to_string(), kind.to_string()));
        let gone: Vec<ObjectKey> =
            held.into_iter().flat_map(|k| k.values().map(|o| o.key())).filter(|k| !listed.contains(k)).collect();
        let mut changes = 0;
        for key in &gone {
            changes += usize::from(remove(&mut state, key));
        }
        for object in objects {
            changes += usize::from(put(&mut state, object));
        }
        self.notify(&state, changes > 0);
        changes
    }

    fn notify(&self, state: &State, changed: bool) -> bool {
        if changed {
            self.changed.send_replace(state.revision);
        }
        changed
    }
}

fn put(state: &mut State, object: Arc<Object>) -> bool {
    let key = object.key();
    let kind = state.kinds.entry((key.group.clone(), key.kind.clone())).or_default();
    let place = (key.namespace.clone(), key.name.clone());
    if kind.get(&place).is_some_and(|old| same(old, &object)) {
        return false;
    }
    kind.insert(place, object);
    log(state, key);
    true
}

fn remove(state: &mut State, key: &ObjectKey) -> bool {
    let kind = state.kinds.get_mut(&(key.group.clone(), key.kind.clone()));
    if kind.is_none_or(|k| k.remove(&(key.namespace.clone(), key.name.clone())).is_none()) {
        return false;
    }
    log(state, key.clone());
    true
}

/// Equal resource versions of one object mean equal content, read in the same version of its kind; objects without one are
/// compared.
fn same(old: &Object, new: &Object) -> bool {
    let (a, b) = (&old.metadata, &new.metadata);
    match (&a.resource_version, &b.resource_version) {
        (Some(x), Some(y)) if a.uid == b.uid => x == y && old.api_version == new.api_version,
        _ => old == new,
    }
}

fn log(state: &mut State, key: ObjectKey) {
    state.revision += 1;
    state.log.push_back((state.revision, key));
    if state.log.len() > LOG_LIMIT {
        state.floor = state.log.pop_front().map_or(state.floor, |(revision, _)| revision);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(name: &str, version: Option<&str>, data: &str) -> Object {
        let mut object: Object = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "n"}, "data": {"k": data},
        }))
        .unwrap();
        object.metadata.resource_version = version.map(str::to_string);
        object
    }

    fn names(changes: &Changes) -> Vec<&str> {
        changes.keys.as_ref().unwrap().iter().map(|k| k.name.as_str()).collect()
    }

    #[test]
    fn offline() {
        let cache = Cache::from_objects([map("b", None, "1"), map("a", None, "1")]);
        let listed = cache.list("", "ConfigMap");
        assert_eq!(listed.iter().map(|o| o.name()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(cache.list_namespace("", "ConfigMap", "n").len(), 2);
        assert!(cache.list_namespace("", "ConfigMap", "m").is_empty());
        assert!(cache.list("", "Secret").is_empty());
        assert!(cache.find("", "ConfigMap", "n", "a").is_some());
        assert!(!cache.put(Arc::new(map("a", None, "1"))), "equal content is no change");
        assert!(cache.put(Arc::new(map("a", None, "2"))));
        let mut other = map("c", Some("1"), "1");
        assert!(cache.put(Arc::new(other.clone())) && !cache.put(Arc::new(other.clone())));
        other.api_version = "v2".into();
        assert!(cache.put(Arc::new(other)), "another version of the kind is another text");
    }

    #[test]
    fn changes_and_relist() {
        let cache = Cache::from_objects([map("a", Some("1"), ""), map("b", Some("2"), "")]);
        let start = cache.changes_since(0);
        assert_eq!(names(&start), ["a", "b"]);
        assert!(cache.changes_since(start.revision).is_empty());
        let relist = |list: &[(&str, &str)]| {
            cache.replace("", "ConfigMap", list.iter().map(|(n, v)| Arc::new(map(n, Some(v), ""))).collect())
        };
        let mut told = cache.changed();
        told.mark_unchanged();
        assert_eq!(relist(&[("a", "1"), ("b", "2")]), 0, "an equal list changes nothing");
        assert!(!told.has_changed().unwrap());
        assert_eq!(relist(&[("b", "3"), ("c", "4")]), 3);
        assert!(told.has_changed().unwrap());
        let after = cache.changes_since(start.revision);
        assert_eq!(names(&after), ["a", "b", "c"]);
        assert!(after.touches("", "ConfigMap") && !after.touches("", "Secret"));
        assert!(!cache.remove(&map("a", None, "").key()));
        assert!(cache.remove(&map("c", None, "").key()));
        assert_eq!(names(&cache.changes_since(after.revision)), ["c"]);
    }

    #[test]
    fn the_log_is_bounded() {
        let cache = Cache::new();
        for round in 0..=LOG_LIMIT {
            cache.put(Arc::new(map("a", Some(&round.to_string()), "")));
        }
        assert_eq!(cache.changes_since(0).keys, None);
        assert_eq!(cache.changes_since(LOG_LIMIT as u64 * 2).keys, None, "a revision of another cache");
        assert_eq!(names(&cache.changes_since(cache.revision() - 1)), ["a"]);
    }
}
