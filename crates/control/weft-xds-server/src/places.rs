//! Places: so many at once, and none of them may all go to one who asks. For streams that is an identity.

use crate::auth::Caller;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Places that anyone may always have, when there is one at all.
const ALWAYS: usize = 64;

/// The places, and who has how many. Without `K`: places of identities (namespace, service account).
#[derive(Debug)]
pub struct Places<K: Eq + Hash = (String, String)> {
    all: usize,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    all: usize,
    by: HashMap<K, usize>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// All are taken.
    All,
    /// Who asks has as many as one may have.
    Own,
}

impl<K: Eq + Hash + Clone> Places<K> {
    /// So many, all free.
    pub fn new(all: usize) -> Arc<Self> {
        Arc::new(Self { all, taken: Mutex::new(Taken { all: 0, by: HashMap::new() }) })
    }

    /// A place for `who`; given back on drop. One may have half of all places, and once three quarters of all are taken no more than
    /// a few: a large workload finds its place, and a runaway one leaves room.
    ///
    /// # Errors
    /// When there is none.
    pub fn take_for(self: &Arc<Self>, who: K) -> Result<Place<K>, Full> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by.get(&who).copied().unwrap_or_default();
        if taken.all >= self.all {
            return Err(Full::All);
        }
        let scarce = taken.all >= self.all - self.all / 4;
        if own >= ALWAYS.min(self.all.div_ceil(2)) && (scarce || own >= self.all / 2) {
            return Err(Full::Own);
        }
        taken.all += 1;
        *taken.by.entry(who.clone()).or_default() += 1;
        Ok(Place { places: self.clone(), who })
    }
}

impl Places {
    /// A place for a stream of `caller`.
    pub(crate) fn take(self: &Arc<Self>, caller: &Caller) -> Result<Place, &'static str> {
        let who = match caller {
            Caller::Account { namespace, service_account } => (namespace.clone(), service_account.clone()),
            Caller::Unproven => Default::default(),
        };
        self.take_for(who).map_err(|full| match full {
            Full::All => "too many proxies are connected to this instance",
            Full::Own => "this identity has as many streams to this instance as one may have",
        })
    }
}

/// A place that is taken.
#[derive(Debug)]
pub struct Place<K: Eq + Hash = (String, String)> {
    places: Arc<Places<K>>,
    who: K,
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(own) = taken.by.get_mut(&self.who) {
            *own -= 1;
            if *own == 0 {
                taken.by.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str) -> Caller {
        Caller::Account { namespace: "default".into(), service_account: name.into() }
    }

    #[test]
    fn one_identity_cannot_take_all_places() {
        let places = Places::new(1000);
        let greedy: Vec<Place> = (0..1000).map_while(|_| places.take(&account("greedy")).ok()).collect();
        assert_eq!(greedy.len(), 500);
        // A second greedy one gets less, and what is left is for everyone else.
        let second: Vec<Place> = (0..1000).map_while(|_| places.take(&account("second")).ok()).collect();
        assert_eq!(second.len(), 250);
        let others: Vec<Place> =
            (0..1000).map_while(|i| places.take(&account(&format!("other-{}", i % 10))).ok()).collect();
        assert_eq!(others.len(), 250);
        assert!(places.take(&account("late")).is_err());
        drop(greedy);
        assert!(places.take(&account("late")).is_ok());
        drop((second, others));
        assert_eq!(places.taken.lock().unwrap().by.len(), 0, "nothing is remembered of those who left");
    }
}
