//! What scopes have in common, kept once: resources of the same bytes, and whole parts that come out the same because they
//! are made of the same services and rules.

use crate::resource::{Resource, Resources, hash_bytes};
use crate::scope::ScopeKey;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Size at which what nobody has any more is looked for, the first time.
const SWEEP_AT: usize = 1024;

/// Resources by what they are: equal ones of different scopes are the same `Arc`.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    by_hash: HashMap<u64, Weak<Resource>>,
    sweep_at: usize,
}

impl Pool {
    /// Of `new` resources those that are the same in `old`, or in any other scope, as the same `Arc`s.
    pub fn reuse(&self, old: &Resources, mut new: Resources) -> Arc<Resources> {
        for (name, resource) in &mut new {
            match old.get(name).filter(|known| known.hash == resource.hash && known.any == resource.any) {
                Some(same) => *resource = same.clone(),
                None => *resource = self.shared(resource),
            }
        }
        Arc::new(new)
    }

    /// The resource that is equal to this one, and that others may have too.
    pub fn shared(&self, resource: &Arc<Resource>) -> Arc<Resource> {
        let key = hash_bytes(resource.name.as_bytes()) ^ resource.hash.rotate_left(1);
        let mut known = lock(&self.0);
        let same = known.by_hash.get(&key).and_then(Weak::upgrade);
        if let Some(same) =
            same.filter(|same| same.hash == resource.hash && same.name == resource.name && same.any == resource.any)
        {
            return same;
        }
        if known.by_hash.len() >= known.sweep_at.max(SWEEP_AT) {
            known.by_hash.retain(|_, resource| resource.strong_count() > 0);
            known.sweep_at = known.by_hash.len() * 2;
        }
        known.by_hash.insert(key, Arc::downgrade(resource));
        resource.clone()
    }
}

/// What a part of a scope is made of, when nothing of it is the scope's alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PartKey {
    traits: ScopeKey,
    mark: Vec<u64>,
}

impl PartKey {
    /// For a part that depends on what its mark says, and on the client, but on the client's namespace only by which services
    /// and rules it sees.
    pub fn new(scope: &ScopeKey, mark: &[u64]) -> Self {
        let traits = ScopeKey { namespace: String::new(), dns_domain: String::new(), sidecar: None, ..scope.clone() };
        Self { traits, mark: mark.to_vec() }
    }
}

/// Parts by what they are made of, for as long as a scope has them.
#[derive(Debug)]
pub(crate) struct Parts<T>(Mutex<HashMap<PartKey, Arc<Mutex<Weak<T>>>>>);

impl<T> Default for Parts<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Parts<T> {
    /// As [`Self::get`]; without a key the part is made for one scope.
    pub fn get_or(&self, key: Option<PartKey>, make: impl FnOnce() -> Arc<T>) -> Arc<T> {
        match key {
            Some(key) => self.get(key, make),
            None => make(),
        }
    }

    /// The part that another scope has already, or the one that is made now, while others who want it wait.
    fn get(&self, key: PartKey, make: impl FnOnce() -> Arc<T>) -> Arc<T> {
        let slot = {
            let mut all = lock(&self.0);
            if !all.contains_key(&key) {
                let in_use = |slot: &Arc<Mutex<Weak<T>>>| {
                    Arc::strong_count(slot) > 1 || slot.try_lock().map_or(true, |part| part.strong_count() > 0)
                };
                all.retain(|_, slot| in_use(slot));
            }
            all.entry(key).or_default().clone()
        };
        let mut slot = lock(&slot);
        if let Some(known) = slot.upgrade() {
            return known;
        }
        let made = make();
        *slot = Arc::downgrade(&made);
        made
    }
}

/// A thread that died inside left a value that is whole: values are set when they are finished.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
