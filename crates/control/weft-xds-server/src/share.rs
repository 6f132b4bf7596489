//! What streams have in common, kept once: the difference between two states of the same resources, and sets of names that
//! many clients subscribe to.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use weft_core::Strng;
use weft_xds_gen::resource::Resources;

/// Differences that are kept: proxies of a few hundred views may be on their way from one state to the next.
const DIFFERENCES: usize = 512;
/// Kinds of name sets after which those that nobody has any more are looked for.
const SWEEP_AT: usize = 256;

/// Names that a client subscribed to.
pub(crate) type NameSet = Arc<BTreeSet<Strng>>;

/// What is shared by the streams of a server.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    differences: Mutex<VecDeque<Difference>>,
    names: Mutex<Names>,
}

/// Names whose resource is in one state and not in the other, or is another there.
#[derive(Debug)]
struct Difference {
    /// Weak, and yet no other map can have their addresses while they are kept.
    old: Weak<Resources>,
    new: Weak<Resources>,
    names: Arc<Vec<Strng>>,
}

#[derive(Debug, Default)]
struct Names {
    by_hash: HashMap<u64, Weak<BTreeSet<Strng>>>,
    sweep_at: usize,
}

impl Pools {
    /// Names in which `old` and `new` differ, in order. Found out once for all who go that way.
    pub fn difference(&self, old: &Arc<Resources>, new: &Arc<Resources>) -> Arc<Vec<Strng>> {
        if Arc::ptr_eq(old, new) {
            return Arc::default();
        }
        let is = |known: &Weak<Resources>, asked: &Arc<Resources>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(asked));
        let known = |all: &VecDeque<Difference>| {
            all.iter().rev().find(|d| is(&d.new, new) && is(&d.old, old)).map(|d| d.names.clone())
        };
        if let Some(names) = known(&lock(&self.differences)) {
            return names;
        }
        let names = Arc::new(differing(old, new));
        let mut all = lock(&self.differences);
        if all.len() >= DIFFERENCES {
            all.pop_front();
        }
        all.push_back(Difference { old: Arc::downgrade(old), new: Arc::downgrade(new), names: names.clone() });
        names
    }

    /// The set that is equal to `names`, and that others may have too.
    pub fn names(&self, names: NameSet) -> NameSet {
        let mut hasher = foldhash::quality::FixedState::with_seed(3).build_hasher();
        for name in names.iter() {
            hasher.write(name.as_bytes());
            hasher.write_u8(0xff);
        }
        let hash = hasher.finish();
        let mut pool = lock(&self.names);
        if let Some(same) = pool.by_hash.get(&hash).and_then(Weak::upgrade).filter(|known| **known == *names) {
            return same;
        }
        if pool.by_hash.len() >= pool.sweep_at.max(SWEEP_AT) {
            pool.by_hash.retain(|_, known| known.strong_count() > 0);
            pool.sweep_at = pool.by_hash.len() * 2;
        }
        pool.by_hash.insert(hash, Arc::downgrade(&names));
        names
    }
}

/// Both are in order: one walk along both.
fn differing(old: &Resources, new: &Resources) -> Vec<Strng> {
    let (mut a, mut b) = (old.iter().peekable(), new.iter().peekable());
    let mut names = Vec::new();
    loop {
        match (a.peek(), b.peek()) {
            (Some((x, old)), Some((y, new))) if x == y => {
                if !Arc::ptr_eq(old, new) && old.hash != new.hash {
                    names.push((*y).clone());
                }
                a.next();
                b.next();
            }
            (Some((x, _)), other) if other.is_none_or(|(y, _)| x < y) => {
                names.push((*x).clone());
                a.next();
            }
            (_, Some((y, _))) => {
                names.push((*y).clone());
                b.next();
            }
            (_, None) => return names,
        }
    }
}

/// What is inside is whole at any moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::Any;
    use weft_xds_gen::Resource;
    use weft_xds_gen::resource::by_name;

    fn all(list: &[(&str, u64)]) -> Arc<Resources> {
        let resource =
            |(name, hash): &(&str, u64)| Arc::new(Resource { name: (*name).into(), any: Any::default(), hash: *hash });
        Arc::new(by_name(list.iter().map(resource)))
    }

    #[test]
    fn differences_are_what_differs_and_are_found_out_once() {
        for (old, new, want) in [
            (&[][..], &[][..], &[][..]),
            (&[("a", 1)], &[("a", 1)], &[]),
            (&[("a", 1), ("c", 1)], &[("a", 2), ("b", 1)], &["a", "b", "c"]),
            (&[], &[("a", 1), ("b", 1)], &["a", "b"]),
            (&[("a", 1), ("b", 1)], &[], &["a", "b"]),
            (&[("b", 1)], &[("a", 1), ("b", 1), ("c", 1)], &["a", "c"]),
        ] {
            let (pools, old, new) = (Pools::default(), all(old), all(new));
            let found = pools.difference(&old, &new);
            assert_eq!(found.iter().map(|n| &**n).collect::<Vec<_>>(), want);
            assert!(Arc::ptr_eq(&found, &pools.difference(&old, &new)));
            assert!(pools.difference(&old, &old).is_empty());
        }
    }

    #[test]
    fn equal_sets_of_names_are_one() {
        let pools = Pools::default();
        let set = |names: &[&str]| -> NameSet { Arc::new(names.iter().map(|n| Strng::from(*n)).collect()) };
        let first = pools.names(set(&["a", "b"]));
        assert!(Arc::ptr_eq(&first, &pools.names(set(&["b", "a"]))));
        assert!(!Arc::ptr_eq(&first, &pools.names(set(&["ab"]))));
        for i in 0..2 * SWEEP_AT {
            pools.names(set(&[&i.to_string()]));
        }
        assert!(lock(&pools.names).by_hash.len() <= SWEEP_AT + 1, "what nobody has is forgotten");
    }
}
