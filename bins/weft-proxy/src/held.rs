//! The configuration as it came: every resource in force with its version and time, and those that were refused with the
//! reason. Kept for dumps; the data plane runs on what is
//! compiled from it.

use prost::Message as _;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use weft_proto::envoy::config::bootstrap::v3::Bootstrap;
use weft_proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use weft_proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use weft_proto::{Any, type_url};
use weft_proxy_config::{Applied, ConfigBuilder, Update};

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
    /// Compiles, and keeps the messages of what it accepted: they are kept once.
    builder: Arc<Mutex<ConfigBuilder>>,
    notes: Arc<Mutex<Notes>>,
}

#[derive(Debug, Default)]
struct Notes {
    /// The bootstrap's bytes, compressed: it is asked for only by dumps.
    bootstrap: Option<(Vec<u8>, SystemTime)>,
    /// When each resource came, by type URL and name.
    updated: BTreeMap<String, BTreeMap<String, SystemTime>>,
    refused: BTreeMap<(String, String), Refused>,
    /// Secrets that came by SDS, without what is secret in them: the builder keeps none.
    secrets: BTreeMap<String, Entry>,
}

/// Everything held, at one moment.
#[derive(Debug, Default, Clone)]
pub struct Inner {
    /// The bootstrap, and when it was read.
    pub bootstrap: Option<(Bootstrap, SystemTime)>,
    /// Resources in force, by type URL and name.
    pub types: BTreeMap<String, BTreeMap<String, Entry>>,
    /// Refused resources, by type URL and name.
    pub refused: BTreeMap<(String, String), Refused>,
}

/// Types that dumps show.
const SHOWN: [&str; 5] =
    [type_url::LISTENER, type_url::CLUSTER, type_url::ROUTE, type_url::VIRTUAL_HOST, type_url::ENDPOINT];

impl Held {
    /// The builder, for as long as the guard lives.
    pub fn builder(&self) -> MutexGuard<'_, ConfigBuilder> {
        self.builder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers the bootstrap, which is given in its own bytes.
    pub fn set_bootstrap(&self, bootstrap: &[u8]) {
        self.notes().bootstrap = Some((lz4_flex::compress_prepend_size(bootstrap), SystemTime::now()));
    }

    /// Compiles a change and takes it up. Static resources stand in the bootstrap already and are not noted again.
    pub fn apply(&self, update: &Update, fixed: bool) -> Applied {
        let applied = self.builder().apply(update);
        if !fixed {
            self.notes().take(update, &applied.refused);
        }
        applied
    }

    /// A copy, for a dump: the messages' bytes are copied, which a dump can afford.
    pub fn snapshot(&self) -> Inner {
        let builder = self.builder();
        let notes = self.notes();
        let mut types: BTreeMap<String, BTreeMap<String, Entry>> = BTreeMap::new();
        for type_url in SHOWN {
            // A resource that nobody noted is of the bootstrap.
            let Some(updated) = notes.updated.get(type_url) else { continue };
            let raw = builder.raw(type_url).into_iter().flatten();
            let entries = raw.filter_map(|(name, raw)| {
                let entry = Entry { any: raw.any, version: raw.version, updated: *updated.get(&name)? };
                Some((name, entry))
            });
            types.insert(type_url.to_owned(), entries.collect());
        }
        types.insert(type_url::SECRET.to_owned(), notes.secrets.clone());
        let bootstrap = notes.bootstrap.as_ref().and_then(|(bytes, read)| {
            let bytes = lz4_flex::decompress_size_prepended(bytes).ok()?;
            Some((Bootstrap::decode(bytes.as_slice()).ok()?, *read))
        });
        Inner { bootstrap, types, refused: notes.refused.clone() }
    }
}

impl Notes {
    fn take(&mut self, update: &Update, refused: &[(String, String)]) {
        let now = SystemTime::now();
        for upsert in &update.upserts {
            let key = (update.type_url.clone(), upsert.name.clone());
            let entry = || Entry { any: shown(&upsert.any), version: upsert.version.clone(), updated: now };
            if let Some((_, reason)) = refused.iter().find(|(name, _)| *name == upsert.name) {
                self.refused.insert(key, Refused { entry: entry(), reason: reason.clone() });
                continue;
            }
            self.refused.remove(&key);
            if update.type_url == type_url::SECRET {
                self.secrets.insert(upsert.name.clone(), entry());
            }
            self.updated.entry(key.0).or_default().insert(key.1, now);
        }
        for name in &update.removals {
            self.updated.get_mut(&update.type_url).map(|times| times.remove(name));
            self.refused.remove(&(update.type_url.clone(), name.clone()));
            if update.type_url == type_url::SECRET {
                self.secrets.remove(name);
            }
        }
        while self.refused.len() > MAX_REFUSED {
            self.refused.pop_first();
        }
    }
}

/// What stands in a dump instead of a key.
pub const REDACTED: &str = "[redacted]";

/// The message as a dump may show it: a secret without what is secret in it.
fn shown(any: &Any) -> Any {
    match any.type_url == type_url::SECRET {
        false => any.clone(),
        true => weft_proto::unpack::<Secret>(any).map(|secret| weft_proto::pack(&redacted(secret))).unwrap_or_default(),
    }
}

fn redacted(mut secret: Secret) -> Secret {
    match &mut secret.r#type {
        Some(secret::Type::TlsCertificate(certificate)) => {
            for hidden in [&mut certificate.private_key, &mut certificate.password] {
                if hidden.is_some() {
                    *hidden = inline(REDACTED);
                }
            }
        }
        Some(secret::Type::ValidationContext(_)) => {}
        // Ticket keys, generic secrets: all of it.
        other => *other = None,
    }
    secret
}

/// Text as a data source.
pub fn inline(text: &str) -> Option<DataSource> {
    let specifier = Some(Specifier::InlineBytes(text.as_bytes().to_vec()));
    Some(DataSource { specifier, ..DataSource::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::envoy::config::cluster::v3::Cluster;
    use weft_proto::envoy::extensions::transport_sockets::tls::v3::TlsCertificate;
    use weft_proxy_config::Upsert;

    fn update(type_url: &str, version: &str, resources: &[(&str, Any)]) -> Update {
        let upsert =
            |(name, any): &(&str, Any)| Upsert { name: (*name).into(), version: version.into(), any: any.clone() };
        Update { type_url: type_url.into(), upserts: resources.iter().map(upsert).collect(), removals: Vec::new() }
    }

    fn cluster(name: &str) -> Any {
        weft_proto::pack(&Cluster { name: name.into(), ..Cluster::default() })
    }

    #[test]
    fn a_refused_change_leaves_the_old_one() {
        let held = Held::default();
        let broken = Any { type_url: type_url::CLUSTER.into(), value: vec![0xff] };
        held.apply(&update(type_url::CLUSTER, "1", &[("a", cluster("a")), ("b", cluster("b"))]), false);
        let applied = held.apply(&update(type_url::CLUSTER, "2", &[("a", broken), ("b", cluster("b"))]), false);
        assert_eq!(applied.refused.len(), 1);
        let now = held.snapshot();
        let clusters = &now.types[type_url::CLUSTER];
        assert_eq!((clusters["a"].version.as_str(), clusters["b"].version.as_str()), ("1", "2"));
        let key = (type_url::CLUSTER.to_owned(), "a".to_owned());
        assert!(!now.refused[&key].reason.is_empty());
        held.apply(&update(type_url::CLUSTER, "3", &[("a", cluster("a"))]), false);
        assert!(held.snapshot().refused.is_empty());
        held.apply(
            &Update { type_url: type_url::CLUSTER.into(), removals: vec!["a".into()], ..Update::default() },
            false,
        );
        assert_eq!(held.snapshot().types[type_url::CLUSTER].keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn keys_are_not_kept() {
        let certificate = TlsCertificate { private_key: inline("KEY BYTES"), ..TlsCertificate::default() };
        let secret = Secret { name: "s".into(), r#type: Some(secret::Type::TlsCertificate(certificate)) };
        let held = Held::default();
        held.apply(&update(type_url::SECRET, "1", &[("s", weft_proto::pack(&secret))]), false);
        let everything = format!("{:?}", held.snapshot()) + &format!("{:?}", held.notes());
        // Bytes print as numbers.
        let numbers = |text: &str| format!("{:?}", text.as_bytes()).trim_matches(['[', ']']).to_owned();
        assert!(!everything.contains("KEY BYTES") && !everything.contains(&numbers("KEY BYTES")));
        assert!(everything.contains(&numbers(REDACTED)));
    }
}
