//! Follows one kind: a list, then watch after watch from where the last one ended; a new list when the server has forgotten
//! that place, when objects are read in another version, and from time to time. Lists are costly: a server that lists and then
//! gives no watch is asked less and less often.

use crate::cache::Cache;
use crate::client::{ApiClient, ClientError, EventStream, ListOptions, WatchOptions};
use crate::definitions::{Defined, Definitions, is_built_in};
use crate::source::{KindState, SourceOptions, SourceState, name};
use crate::watch::{EventType, WatchEvent};
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use weft_k8s_api::{KindInfo, Object};

/// Objects per page of a list, unless they are large.
const PAGE: usize = 500;
/// How often in a row a kind that was there must be denied before its objects go, while the definitions cannot be asked: a
/// server that is just starting does not know of its custom kinds yet.
const DENIALS: u32 = 5;
/// The same for a kind of Kubernetes itself: a server that does not know it is none, or something answers in its place. Some of
/// them end all the same, after years.
const BUILT_IN_DENIALS: u32 = 100;

/// What follows one kind.
pub(crate) struct Follower {
    pub client: ApiClient,
    pub kind: &'static KindInfo,
    pub cache: Arc<Cache>,
    pub state: Arc<watch::Sender<SourceState>>,
    pub options: SourceOptions,
    /// `None` for the definitions themselves.
    pub definitions: Option<Definitions>,
    pub required: bool,
}

/// Where to go on.
#[derive(Debug, Clone, PartialEq)]
struct Place {
    /// Resource version of the newest thing seen.
    revision: String,
    /// Version that objects are read in.
    version: &'static str,
    /// When everything was last listed.
    listed: Instant,
}

/// An error, and the place that is still good.
type Failure = (ClientError, Option<Place>);

/// A lost connection leaves the place as good as it was. Of what the server itself refuses, or sends and cannot be read, no
/// one knows whether it would ever be different from that place on: a new list helps.
fn keep(error: ClientError, place: Place) -> Failure {
    let place = error.is_unreachable().then_some(place);
    (error, place)
}

impl Follower {
    /// Follows until it is dropped.
    pub(crate) async fn run(self) {
        let mut backoff = self.options.backoff_min;
        let mut place: Option<Place> = None;
        let mut denials = 0;
        if let Some(definitions) = &self.definitions {
            definitions.asked().await;
        }
        loop {
            let begun = Instant::now();
            let watched = place.is_some();
            let result = match &place {
                None => self.list().await.map(Some),
                Some(from) => self.watch(from).await,
            };
            // Only a watch that lasts shows that all is well.
            if watched && begun.elapsed() >= self.options.backoff_max {
                backoff = self.options.backoff_min;
            }
            match result {
                Ok(next) => {
                    denials = 0;
                    if watched && next.is_none() {
                        sleep(self.next_pause(&mut backoff)).await;
                    } else if watched && begun.elapsed() < self.options.backoff_min {
                        // A server that ends every watch at once must not be asked without a pause.
                        sleep(self.options.backoff_min).await;
                    }
                    place = next;
                }
                Err((error, kept)) => {
                    place = kept;
                    denials = if matches!(error, ClientError::NoSuchKind(_)) { denials + 1 } else { 0 };
                    let pause = self.failed(&error, denials, &mut backoff);
                    self.pause(pause).await;
                }
            }
        }
    }

    /// Lists everything in the version that is stored, and puts the differences into the cache. Returns the place to watch
    /// from.
    async fn list(&self) -> Result<Place, Failure> {
        let mut last = ClientError::NoSuchKind(format!("{} of {}", self.kind.plural, self.kind.group));
        for version in self.versions()? {
            match self.list_in(version).await {
                // Without a definition to ask, an older version may still be there.
                Err(error @ ClientError::NoSuchKind(_)) => last = error,
                Err(error) => return Err((error, None)),
                Ok(place) => return Ok(place),
            }
        }
        Err((last, None))
    }

    /// The versions to try.
    fn versions(&self) -> Result<Vec<&'static str>, Failure> {
        match self.definitions.as_ref().map_or(Defined::No, |d| d.of(self.kind)) {
            Defined::In(version) => Ok(vec![version]),
            Defined::No => Ok(self.kind.versions.to_vec()),
            Defined::Unknown(served) => {
                tracing::warn!(
                    kind = self.kind.kind,
                    "the server has this kind as {} only; weftd reads {}: upgrade the definition",
                    served.join(", "),
                    self.kind.versions.join(", ")
                );
                Err((ClientError::NoSuchKind(format!("{} of {}", self.kind.plural, self.kind.group)), None))
            }
        }
    }

    async fn list_in(&self, version: &'static str) -> Result<Place, ClientError> {
        let mut objects: Vec<Arc<Object>> = Vec::new();
        let kept = Some((self.options.kept)(self.kind));
        let most_bytes = Some(self.options.page_bytes);
        let mut limit = PAGE;
        let mut options = ListOptions { version: Some(version), kept, most_bytes, ..ListOptions::default() };
        let listed = Instant::now();
        loop {
            options.limit = Some(limit);
            let page = match self.client.list(self.kind, None, &options).await {
                // A token goes on from where the last page ended, whatever the size of the next.
                Err(ClientError::TooLarge { .. }) if limit > 1 => {
                    limit = (limit / 4).max(1);
                    continue;
                }
                page => page?,
            };
            objects.extend(page.items.into_iter().map(|object| self.trimmed(object)));
            match page.continue_token {
                Some(token) => options.continue_token = Some(token),
                None => {
                    self.cache.replace(self.kind.group, self.kind.kind, objects);
                    // Whether a watch that was lost or refused is given again is to be seen.
                    self.change(|now| match now {
                        KindState::Disconnected(_) | KindState::Forbidden(_) => now.clone(),
                        _ => KindState::Watching,
                    });
                    return Ok(Place { revision: page.resource_version, version, listed });
                }
            }
        }
    }

    fn trimmed(&self, mut object: Object) -> Arc<Object> {
        (self.options.trim)(&mut object);
        Arc::new(object)
    }

    /// Watches until the server ends the watch. Returns the place to go on from: `None` when only a list helps. An error
    /// comes with that place too.
    async fn watch(&self, from: &Place) -> Result<Option<Place>, Failure> {
        let mut place = from.clone();
        let length = self.options.watch_length.mul_f64(1.0 + fastrand::f64());
        let options = WatchOptions {
            resource_version: Some(place.revision.clone()),
            bookmarks: true,
            timeout_seconds: Some(u32::try_from(length.as_secs().max(1)).unwrap_or(u32::MAX)),
            version: Some(place.version),
            ..WatchOptions::default()
        };
        let mut events = match self.client.watch(self.kind, None, &options).await {
            Ok(events) => events,
            Err(ClientError::Expired(_)) => return Ok(None),
            Err(error) => return Err(keep(error, place)),
        };
        self.set(KindState::Watching);
        let mut definitions = self.definitions.as_ref().map(Definitions::changed);
        loop {
            let event = tokio::select! {
                event = self.next(&mut events) => event,
                () = changed(&mut definitions) => {
                    if self.another_version(&place) { return Ok(None) }
                    continue;
                }
            };
            match event {
                Some(Ok(event)) => self.take(event, &mut place),
                Some(Err(ClientError::Expired(_))) => return Ok(None),
                Some(Err(error)) => return Err(keep(error, place)),
                None => break,
            }
        }
        Ok((place.listed.elapsed() < self.options.resync).then_some(place))
    }

    /// The next event; `None` at the end of the watch, and when nothing has come for too long: a connection that has died
    /// silently does not even say that.
    async fn next(&self, events: &mut EventStream) -> Option<Result<WatchEvent, ClientError>> {
        timeout(self.options.watch_silence, events.next()).await.unwrap_or(None)
    }

    fn take(&self, event: WatchEvent, place: &mut Place) {
        if let Some(version) = &event.object.metadata.resource_version {
            place.revision.clone_from(version);
        }
        match event.event {
            EventType::Added | EventType::Modified => {
                let object = Arc::unwrap_or_clone(event.object);
                self.cache.put(self.trimmed(object));
            }
            EventType::Deleted => drop(self.cache.remove(&event.object.key())),
            EventType::Bookmark => {}
        }
    }

    fn another_version(&self, place: &Place) -> bool {
        match self.definitions.as_ref().map(|d| d.of(self.kind)) {
            Some(Defined::In(version)) => version != place.version,
            _ => false,
        }
    }

    /// Waits for `pause`, or until the definitions change when that may be what is waited for.
    async fn pause(&self, pause: Duration) {
        let waits_for_definition = self.current() == Some(KindState::Missing);
        let mut definitions = self.definitions.as_ref().filter(|_| waits_for_definition).map(Definitions::changed);
        let before = self.definitions.as_ref().map(|d| d.of(self.kind));
        // What came between the failure and the subscription counts too.
        if waits_for_definition && matches!(before, Some(Defined::In(_))) {
            return sleep(self.options.backoff_min).await;
        }
        let end = sleep(pause);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                () = changed(&mut definitions) => {
                    if self.definitions.as_ref().map(|d| d.of(self.kind)) != before { return }
                }
            }
        }
    }

    /// Notes a failure and returns the pause before the next try.
    fn failed(&self, error: &ClientError, denials: u32, backoff: &mut Duration) -> Duration {
        match error {
            ClientError::NoSuchKind(_) if self.is_gone(denials) => {
                self.cache.replace(self.kind.group, self.kind.kind, Vec::new());
                self.set(KindState::Missing);
                return self.options.missing_kind_interval;
            }
            // A kind that is required is required of every server that could have it.
            ClientError::Forbidden(_)
                if !self.required && self.definitions.as_ref().is_some_and(|d| d.deny(self.kind)) =>
            {
                self.cache.replace(self.kind.group, self.kind.kind, Vec::new());
                self.set(KindState::Missing);
                return self.options.missing_kind_interval;
            }
            ClientError::Forbidden(why) if !self.required => {
                self.forbidden(why);
                return self.options.missing_kind_interval;
            }
            ClientError::Forbidden(why) => self.forbidden_required(why),
            _ => tracing::debug!(kind = self.kind.kind, %error, "list or watch failed"),
        }
        self.set_failed(error.to_string());
        self.next_pause(backoff)
    }

    /// The pause that it is time for; the next one is longer.
    fn next_pause(&self, backoff: &mut Duration) -> Duration {
        let pause = *backoff;
        *backoff = (*backoff * 2).min(self.options.backoff_max);
        // Kinds that fail together do not all come back at once.
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Whether a kind that the server denies is really not there.
    fn is_gone(&self, denials: u32) -> bool {
        let Some(definitions) = &self.definitions else { return true };
        let was_there = matches!(self.current(), Some(KindState::Watching | KindState::Disconnected(_)));
        match definitions.of(self.kind) {
            Defined::In(_) => !was_there,
            Defined::Unknown(_) => true,
            // No definition tells of those: that there is none means nothing.
            Defined::No if is_built_in(self.kind.group) => {
                !self.required && (!was_there || denials >= BUILT_IN_DENIALS)
            }
            Defined::No => !was_there || definitions.reliable() || denials >= DENIALS,
        }
    }

    fn forbidden(&self, why: &str) {
        if !matches!(self.current(), Some(KindState::Forbidden(_))) {
            tracing::warn!(kind = self.kind.kind, "objects of this kind have no effect: {why}");
        }
        self.set(KindState::Forbidden(why.to_string()));
    }

    fn forbidden_required(&self, why: &str) {
        if matches!(self.current(), Some(KindState::Pending(None) | KindState::Watching)) {
            tracing::error!(kind = self.kind.kind, "nothing is served without this kind: {why}");
        }
    }

    fn current(&self) -> Option<KindState> {
        self.state.borrow().kinds.get(&name(self.kind)).cloned()
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
        let name = name(self.kind);
        self.state.send_if_modified(|state| {
            let Some(entry) = state.kinds.get_mut(&name) else { return false };
            let next = to(entry);
            let changed = *entry != next;
            *entry = next;
            changed
        });
    }
}

/// Returns when the receiver has news; never without a receiver, nor after its sender is gone.
async fn changed(receiver: &mut Option<watch::Receiver<u64>>) {
    if let Some(receiver) = receiver
        && receiver.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_lost_connection_keeps_the_place() {
        let place = Place { revision: "7".into(), version: "v1", listed: Instant::now() };
        let lost = ClientError::Unreachable { url: String::new(), cause: String::new() };
        assert_eq!(keep(lost, place.clone()).1, Some(place.clone()));
        for refused in [
            ClientError::Forbidden(String::new()),
            ClientError::NoSuchKind(String::new()),
            ClientError::Protocol { url: String::new(), message: "an event that cannot be read".into() },
            ClientError::Server { code: 504, reason: "Timeout".into(), message: "Too large resource version".into() },
        ] {
            assert_eq!(keep(refused, place.clone()).1, None);
        }
    }
}
