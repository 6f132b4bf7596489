//! Keeps a [`Cache`] equal to an API server, kind by kind. While the server is away the cache keeps its last state; kinds that
//! the server does not have, or that the account may not read, do not hold up the others. What is built from the cache is
//! not known here.
//!
//! How one kind is followed is [`follow`](crate::follow)'s business, which version of it is read [`definitions`]'.
//!
//! [`definitions`]: crate::definitions

use crate::cache::Cache;
use crate::client::ApiClient;
use crate::definitions::{DEFINITION, Definitions};
use crate::follow::Follower;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use weft_k8s_api::{Kept, KindInfo, Object};

/// How a source works.
#[derive(Clone)]
pub struct SourceOptions {
    /// Pause before a kind that the server does not have, or that the account may not read, is tried again. Default 30 s;
    /// a definition that appears ends the pause at once.
    pub missing_kind_interval: Duration,
    /// First pause after a failure; doubles. Default 100 ms.
    pub backoff_min: Duration,
    /// Longest pause after a failure. Default 5 s.
    pub backoff_max: Duration,
    /// After this time (at most twice it, so that not all kinds do it together) the server ends a watch and a new one goes
    /// on where it ended. Default 5 min.
    pub watch_length: Duration,
    /// A watch that brings nothing for so long, not even a bookmark (Kubernetes sends one a minute), is begun anew.
    /// Default 150 s.
    pub watch_silence: Duration,
    /// Largest page of a list, in bytes: of a kind whose objects are large, fewer are asked for at once. Default 64 MiB.
    pub page_bytes: usize,
    /// Age of a list at which the next watch begins with a new one, whatever the watches have brought since. Default 30 min.
    pub resync: Duration,
    /// Whether nothing may be built without that kind: as long as the account may not read it, the source is not synced.
    /// Default: no kind.
    pub required: fn(&KindInfo) -> bool,
    /// What is read of the bodies of listed objects, so that the rest needs no memory even for a moment. Default: everything.
    pub kept: fn(&KindInfo) -> Kept,
    /// Takes from an object what no reader of the cache uses. Default: nothing.
    pub trim: Trim,
}

/// Takes from an object what is not to be kept.
pub type Trim = Arc<dyn Fn(&mut Object) + Send + Sync>;

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            missing_kind_interval: Duration::from_secs(30),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            watch_length: Duration::from_secs(300),
            watch_silence: Duration::from_secs(150),
            page_bytes: 64 << 20,
            resync: Duration::from_secs(30 * 60),
            required: |_| false,
            kept: |_| Kept::All,
            trim: Arc::new(|_| {}),
        }
    }
}

/// How one kind stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KindState {
    /// Not listed yet; the text says why when there was a failure.
    Pending(Option<String>),
    /// Listed, and watched now.
    Watching,
    /// Listed before; the connection is lost. The text says why.
    Disconnected(String),
    /// The server does not have this kind (in a version that is known here).
    Missing,
    /// The account may not read this kind, which is not required: it is as if there were no objects of it, or those read
    /// before. The text is the server's.
    Forbidden(String),
}

/// How all kinds stand, by group and kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceState {
    /// The kinds.
    pub kinds: BTreeMap<(String, String), KindState>,
}

impl SourceState {
    /// Whether every kind has been listed once (or cannot be): what is built now is as complete as it gets.
    pub fn synced(&self) -> bool {
        !self.kinds.values().any(|k| matches!(k, KindState::Pending(_)))
    }

    /// Whether every kind is watched now (or cannot be).
    pub fn connected(&self) -> bool {
        self.kinds.values().all(|k| !matches!(k, KindState::Pending(_) | KindState::Disconnected(_)))
    }

    /// Why it is not connected, in one line.
    pub fn problem(&self) -> Option<String> {
        self.kinds.iter().find_map(|((_, kind), state)| match state {
            KindState::Pending(Some(why)) | KindState::Disconnected(why) => Some(format!("{kind}: {why}")),
            _ => None,
        })
    }

    /// The kinds that the account may not read, and the server's words.
    pub fn forbidden(&self) -> impl Iterator<Item = (&str, &str)> {
        self.kinds.iter().filter_map(|((_, kind), state)| match state {
            KindState::Forbidden(why) => Some((kind.as_str(), why.as_str())),
            _ => None,
        })
    }
}

/// A running source. Dropping it stops it; the cache stays.
pub struct KubeSource {
    cache: Arc<Cache>,
    state: watch::Receiver<SourceState>,
    _tasks: JoinSet<()>,
}

impl KubeSource {
    /// Starts to list and watch these kinds, in all namespaces.
    pub fn start(client: &ApiClient, kinds: &[&'static KindInfo], options: &SourceOptions) -> Self {
        let cache = Arc::new(Cache::new());
        let initial = SourceState { kinds: kinds.iter().map(|k| (name(k), KindState::Pending(None))).collect() };
        let (sender, state) = watch::channel(initial);
        let sender = Arc::new(sender);
        let mut tasks = JoinSet::new();
        let definitions = follow_definitions(client, options, &mut tasks);
        for kind in kinds {
            let follower = Follower {
                client: client.clone(),
                kind,
                cache: cache.clone(),
                state: sender.clone(),
                options: options.clone(),
                definitions: Some(definitions.clone()),
                required: (options.required)(kind),
            };
            tasks.spawn(follower.run());
        }
        Self { cache, state, _tasks: tasks }
    }

    /// The local copy.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// How the kinds stand, and a notification when that changes.
    pub fn state(&self) -> watch::Receiver<SourceState> {
        self.state.clone()
    }

    /// Whether every kind is watched now.
    pub fn connected(&self) -> bool {
        self.state.borrow().connected()
    }

    /// Waits until every kind has been listed once.
    pub async fn synced(&self) {
        let mut state = self.state.clone();
        // The sender lives in the tasks, which live as long as this value.
        let _ = state.wait_for(SourceState::synced).await;
    }

    /// Waits until one kind has been listed once.
    pub async fn kind_synced(&self, group: &str, kind: &str) {
        let name = (group.to_string(), kind.to_string());
        let mut state = self.state.clone();
        let _ = state.wait_for(|s| !matches!(s.kinds.get(&name), Some(KindState::Pending(_)))).await;
    }
}

/// Follows the definitions in a cache of their own: no reader of the other objects has to know of them.
fn follow_definitions(client: &ApiClient, options: &SourceOptions, tasks: &mut JoinSet<()>) -> Definitions {
    let kinds = [(name(&DEFINITION), KindState::Pending(None))].into();
    let (sender, state) = watch::channel(SourceState { kinds });
    let cache = Arc::new(Cache::new());
    let definitions = Definitions::new(cache.clone(), state);
    let follower = Follower {
        client: client.clone(),
        kind: &DEFINITION,
        cache,
        state: Arc::new(sender),
        options: SourceOptions {
            kept: |_| crate::definitions::KEPT,
            trim: Arc::new(crate::definitions::trim),
            ..options.clone()
        },
        definitions: None,
        required: false,
    };
    tasks.spawn(follower.run());
    definitions
}

/// Key of a kind in [`SourceState`].
pub(crate) fn name(kind: &KindInfo) -> (String, String) {
    (kind.group.to_string(), kind.kind.to_string())
}
