//! Places for streams: so many at once, and none of them may all go to one identity.

use crate::auth::Caller;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Streams that an identity may always have, when there is a place at all.
const ALWAYS: usize = 64;

/// The places, and who has how many.
#[derive(Debug)]
pub(crate) struct Places {
    all: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by: HashMap<(String, String), usize>,
}

impl Places {
    pub fn new(all: usize) -> Arc<Self> {
        Arc::new(Self { all, taken: Mutex::default() })
    }

    /// A place for a stream of `caller`; given back on drop. One identity may have half of all places, and once three
    /// quarters of all are taken no more than a few: a large workload finds its place, and a runaway one leaves room.
    pub fn take(self: &Arc<Self>, caller: &Caller) -> Result<Place, &'static str> {
        let who = match caller {
            Caller::Account { namespace, service_account } => (namespace.clone(), service_account.clone()),
            Caller::Unproven => Default::default(),
        };
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by.get(&who).copied().unwrap_or_default();
        if taken.all >= self.all {
            return Err("too many proxies are connected to this instance");
        }
        let scarce = taken.all >= self.all - self.all / 4;
        if own >= ALWAYS.min(self.all.div_ceil(2)) && (scarce || own >= self.all / 2) {
            return Err("this identity has as many streams to this instance as one may have");
        }
        taken.all += 1;
        *taken.by.entry(who.clone()).or_default() += 1;
        Ok(Place { places: self.clone(), who })
    }
}

/// A place that is taken.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    who: (String, String),
}

impl Drop for Place {
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
