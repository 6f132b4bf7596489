//! Keeps a [`Cache`] equal to an API server: per kind one list, then watches from there, with reconnects. While the server is
//! away the cache keeps its last state. What is built from the cache is not known here.

use crate::cache::Cache;
use crate::client::{ApiClient, ClientError, ListOptions, WatchOptions};
use crate::watch::EventType;
use futures_util::StreamExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use weft_k8s_api::{KindInfo, Object};

/// Objects per page of a list.
const PAGE: usize = 500;

/// Times of a source.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// Pause before a kind that the server does not have is tried again. Default 30 s.
    pub missing_kind_interval: Duration,
    /// First pause after a failure; doubles. Default 100 ms.
    pub backoff_min: Duration,
    /// Longest pause after a failure. Default 5 s.
    pub backoff_max: Duration,
    /// After this time the server ends a watch and a new one goes on where it ended. Default 5 min.
    pub watch_length: Duration,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            missing_kind_interval: Duration::from_secs(30),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            watch_length: Duration::from_secs(300),
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
    /// The server does not have this kind.
    Missing,
}

/// How all kinds stand, by group and kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceState {
    /// The kinds.
    pub kinds: BTreeMap<(String, String), KindState>,
}

impl SourceState {
    /// Whether every kind has been listed once (or is not there): what is built now is complete.
    pub fn synced(&self) -> bool {
        !self.kinds.values().any(|k| matches!(k, KindState::Pending(_)))
    }

    /// Whether every kind is watched now (or is not there).
    pub fn connected(&self) -> bool {
        self.kinds.values().all(|k| matches!(k, KindState::Watching | KindState::Missing))
    }

    /// Why it is not connected, in one line.
    pub fn problem(&self) -> Option<String> {
        self.kinds.iter().find_map(|((_, kind), state)| match state {
            KindState::Pending(Some(why)) | KindState::Disconnected(why) => Some(format!("{kind}: {why}")),
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
        let name = |k: &KindInfo| (k.group.to_string(), k.kind.to_string());
        let initial = SourceState { kinds: kinds.iter().map(|k| (name(k), KindState::Pending(None))).collect() };
        let (sender, state) = watch::channel(initial);
        let sender = Arc::new(sender);
        let mut tasks = JoinSet::new();
        for kind in kinds {
            let follower = Follower {
                client: client.clone(),
                kind,
                cache: cache.clone(),
                state: sender.clone(),
                options: options.clone(),
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

/// A lost connection leaves the place as good as it was. Of what the server itself refuses, or sends and cannot be read, no
/// one knows whether it would ever be different from that place on: a new list helps.
fn keep(error: ClientError, place: String) -> (ClientError, Option<String>) {
    let place = error.is_unreachable().then_some(place);
    (error, place)
}

/// Follows one kind.
struct Follower {
    client: ApiClient,
    kind: &'static KindInfo,
    cache: Arc<Cache>,
    state: Arc<watch::Sender<SourceState>>,
    options: SourceOptions,
}

impl Follower {
    /// List, then watch after watch from where the last one ended; a new list when the server has forgotten that place.
    async fn run(self) {
        let mut backoff = self.options.backoff_min;
        let mut place: Option<String> = None;
        loop {
            let begun = Instant::now();
            let result = match &place {
                None => self.list().await.map(Some),
                Some(from) => self.watch(from).await,
            };
            match result {
                Ok(next) => {
                    backoff = self.options.backoff_min;
                    // A server that ends every watch at once must not be asked without a pause.
                    if place.is_some() && begun.elapsed() < self.options.backoff_min {
                        sleep(self.options.backoff_min).await;
                    }
                    place = next;
                }
                Err((error, kept)) => {
                    place = kept;
                    sleep(self.failed(&error, &mut backoff)).await;
                }
            }
        }
    }

    /// Lists everything and puts the differences into the cache. Returns the place to watch from.
    async fn list(&self) -> Result<String, (ClientError, Option<String>)> {
        let mut objects: Vec<Arc<Object>> = Vec::new();
        let mut options = ListOptions { limit: Some(PAGE), ..ListOptions::default() };
        loop {
            let page = self.client.list(self.kind, None, &options).await.map_err(|e| (e, None))?;
            objects.extend(page.items.into_iter().map(Arc::new));
            match page.continue_token {
                Some(token) => options.continue_token = Some(token),
                None => {
                    self.cache.replace(self.kind.group, self.kind.kind, objects);
                    self.set(KindState::Watching);
                    return Ok(page.resource_version);
                }
            }
        }
    }

    /// Watches until the server ends the watch. Returns the place to go on from: `None` when only a list helps. An error
    /// comes with that place too.
    async fn watch(&self, from: &str) -> Result<Option<String>, (ClientError, Option<String>)> {
        let mut place = from.to_string();
        let length = self.options.watch_length;
        let options = WatchOptions {
            resource_version: Some(place.clone()),
            bookmarks: true,
            timeout_seconds: Some(u32::try_from(length.as_secs().max(1)).unwrap_or(u32::MAX)),
            ..WatchOptions::default()
        };
        let mut events = match self.client.watch(self.kind, None, &options).await {
            Ok(events) => events,
            Err(ClientError::Expired(_)) => return Ok(None),
            Err(error) => return Err(keep(error, place)),
        };
        self.set(KindState::Watching);
        // A connection that has died silently says nothing, not even the end.
        let limit = length + Duration::from_secs(30);
        loop {
            let event = match timeout(limit, events.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(ClientError::Expired(_)))) => return Ok(None),
                Ok(Some(Err(error))) => return Err(keep(error, place)),
                Ok(None) | Err(_) => return Ok(Some(place)),
            };
            if let Some(version) = &event.object.metadata.resource_version {
                place.clone_from(version);
            }
            match event.event {
                EventType::Added | EventType::Modified => drop(self.cache.put(event.object)),
                EventType::Deleted => drop(self.cache.remove(&event.object.key())),
                EventType::Bookmark => {}
            }
        }
    }

    /// Notes a failure and returns the pause before the next try.
    fn failed(&self, error: &ClientError, backoff: &mut Duration) -> Duration {
        if matches!(error, ClientError::NoSuchKind(_)) {
            self.cache.replace(self.kind.group, self.kind.kind, Vec::new());
            self.set(KindState::Missing);
            return self.options.missing_kind_interval;
        }
        tracing::debug!(kind = self.kind.kind, %error, "list or watch failed");
        self.set_failed(error.to_string());
        let pause = *backoff;
        *backoff = (*backoff * 2).min(self.options.backoff_max);
        // Kinds that fail together do not all come back at once.
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    fn set(&self, to: KindState) {
        self.change(|_| to);
    }

    fn set_failed(&self, why: String) {
        self.change(|now| match now {
            KindState::Pending(_) => KindState::Pending(Some(why)),
            _ => KindState::Disconnected(why),
        });
    }

    fn change(&self, to: impl FnOnce(&KindState) -> KindState) {
        let name = (self.kind.group.to_string(), self.kind.kind.to_string());
        self.state.send_if_modified(|state| {
            let Some(entry) = state.kinds.get_mut(&name) else { return false };
            let next = to(entry);
            let changed = *entry != next;
            *entry = next;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lost_connection_keeps_the_place() {
        let lost = ClientError::Unreachable { url: String::new(), cause: String::new() };
        assert_eq!(keep(lost, "7".into()).1.as_deref(), Some("7"));
        for refused in [
            ClientError::Forbidden(String::new()),
            ClientError::NoSuchKind(String::new()),
            ClientError::Protocol { url: String::new(), message: "an event that cannot be read".into() },
            ClientError::Server { code: 504, reason: "Timeout".into(), message: "Too large resource version".into() },
        ] {
            assert_eq!(keep(refused, "7".into()).1, None);
        }
    }
}
