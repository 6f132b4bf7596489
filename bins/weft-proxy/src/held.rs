//! The configuration as it came: every resource in force with its version and time, and those that were refused with the
//! reason. Kept for dumps; the data plane runs on what is compiled from it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use weft_proto::Any;
use weft_proto::envoy::config::bootstrap::v3::Bootstrap;

/// Most refused resources remembered; the oldest names go first.
const MAX_REFUSED: usize = 1000;

/// A resource in force.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The message.
    pub any: Any,
    /// Version that the control plane gave it.
    pub version: String,
    /// When it came.
    pub updated: SystemTime,
}

/// A resource that was refused.
#[derive(Debug, Clone)]
pub struct Refused {
    /// What was refused.
    pub entry: Entry,
    /// Why.
    pub reason: String,
}

/// Everything held. A clone shares it.
#[derive(Debug, Clone, Default)]
pub struct Held {
    inner: Arc<Mutex<Inner>>,
}

/// Everything held, at one moment.
#[derive(Debug, Default, Clone)]
pub struct Inner {
    /// The bootstrap, and when it was read.
    pub bootstrap: Option<(Bootstrap, Option<SystemTime>)>,
    /// Resources in force, by type URL and name.
    pub types: BTreeMap<String, BTreeMap<String, Entry>>,
    /// Refused resources, by type URL and name.
    pub refused: BTreeMap<(String, String), Refused>,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers the bootstrap.
    pub fn set_bootstrap(&self, bootstrap: Bootstrap) {
        self.lock().bootstrap = Some((bootstrap, Some(SystemTime::now())));
    }

    /// Takes up an update: what came, what is gone, and what of it was refused (name and reason).
    pub fn update(
        &self,
        type_url: &str,
        upserts: Vec<(String, Entry)>,
        removals: &[String],
        refused: &[(String, String)],
    ) {
        let mut inner = self.lock();
        for (name, entry) in upserts {
            let key = (type_url.to_owned(), name);
            match refused.iter().find(|(name, _)| *name == key.1) {
                Some((_, reason)) => {
                    let reason = reason.clone();
                    inner.refused.insert(key, Refused { entry, reason });
                }
                None => {
                    inner.refused.remove(&key);
                    inner.types.entry(key.0).or_default().insert(key.1, entry);
                }
            }
        }
        for name in removals {
            if let Some(resources) = inner.types.get_mut(type_url) {
                resources.remove(name);
            }
            inner.refused.remove(&(type_url.to_owned(), name.clone()));
        }
        while inner.refused.len() > MAX_REFUSED {
            inner.refused.pop_first();
        }
    }

    /// A copy, for a dump: the messages' bytes are copied, which a dump can afford and the path of an update cannot wait for.
    pub fn snapshot(&self) -> Inner {
        self.lock().clone()
    }

    /// Names in force of a type.
    #[cfg(test)]
    pub fn names(&self, type_url: &str) -> Vec<String> {
        self.lock().types.get(type_url).map(|held| held.keys().cloned().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(version: &str) -> Entry {
        Entry { any: Any::default(), version: version.into(), updated: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn a_refused_change_leaves_the_old_one() {
        let held = Held::default();
        let update = |version: &str, refused: &[(String, String)]| {
            held.update("t", vec![("a".into(), entry(version)), ("b".into(), entry(version))], &[], refused);
        };
        update("1", &[]);
        update("2", &[("a".into(), "no such cluster".into())]);
        let now = held.snapshot();
        assert_eq!((now.types["t"]["a"].version.as_str(), now.types["t"]["b"].version.as_str()), ("1", "2"));
        assert_eq!(now.refused[&("t".into(), "a".into())].reason, "no such cluster");
        update("3", &[]);
        assert!(held.snapshot().refused.is_empty());
        held.update("t", Vec::new(), &["a".into()], &[]);
        assert_eq!(held.names("t"), ["b"]);
    }
}
