//! Watches on the memory store: events of one kind from a revision on, through selectors.
//!
//! A watcher has no queue of its own. It reads the bounded history of its kind from its own position, so a slow watcher
//! costs nothing and, once the history has moved past it, ends with [`StoreError::Gone`].

use crate::error::StoreError;
use crate::memory::{Change, ChangeType, MemoryStore, State};
use crate::selector::{FieldSelector, LabelSelector};
use futures_util::Stream;
use futures_util::StreamExt;
use serde_json::Map;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio_stream::wrappers::WatchStream;
use weft_k8s_api::Object;
use weft_k8s_api::kinds::api_version;

/// Events taken from the history at once.
const BATCH: usize = 256;

/// Type of a watch event, as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// The object exists now (or now matches the selector).
    Added,
    /// The object changed.
    Modified,
    /// The object is gone (or no longer matches the selector).
    Deleted,
    /// Nothing happened up to this revision; the object has only a resource version.
    Bookmark,
}

impl EventType {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark => "BOOKMARK",
        }
    }
}

/// One event.
#[derive(Debug, Clone)]
pub struct WatchEvent {
    /// What happened.
    pub event: EventType,
    /// The object after the change; for `DELETED` its last state, with the revision of the deletion.
    pub object: Arc<Object>,
}

/// What to watch.
#[derive(Debug, Clone, Default)]
pub struct WatchQuery {
    /// API group; empty for core.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Only this namespace; `None` for all.
    pub namespace: Option<String>,
    /// Label selector.
    pub labels: LabelSelector,
    /// Field selector.
    pub fields: FieldSelector,
    /// Events after this revision; `None` begins with the present state as `ADDED` events.
    pub from: Option<u64>,
    /// Whether a bookmark (annotated `k8s.io/initial-events-end`) follows the present state. Only with `from: None`.
    pub initial_bookmark: bool,
}

impl WatchQuery {
    /// All objects of a kind, beginning with the present state.
    pub fn all(group: &str, kind: &str) -> Self {
        Self { group: group.into(), kind: kind.into(), ..Self::default() }
    }

    fn matches(&self, object: &Object) -> bool {
        self.namespace.as_deref().is_none_or(|n| n == object.namespace())
            && self.labels.matches(object.metadata.labels.as_ref())
            && self.fields.matches(object)
    }
}

/// A stream of events. Ends after an error.
pub struct Watch {
    store: MemoryStore,
    query: WatchQuery,
    /// Everything up to this revision has been read into `pending`.
    position: u64,
    pending: VecDeque<WatchEvent>,
    wake: WatchStream<u64>,
    ended: bool,
}

impl MemoryStore {
    /// Watches a kind.
    ///
    /// # Errors
    /// [`StoreError::Gone`] when the history no longer has the revision asked for.
    pub fn watch(&self, query: WatchQuery) -> Result<Watch, StoreError> {
        let wake = WatchStream::from_changes(self.wake(&query.group, &query.kind));
        let mut watch = Watch { store: self.clone(), query, position: 0, pending: VecDeque::new(), wake, ended: false };
        let state = self.read();
        match watch.query.from {
            Some(from) => {
                watch.position = from;
                watch.check_position(&state)?;
            }
            None => watch.take_present_state(&state),
        }
        drop(state);
        Ok(watch)
    }
}

impl Watch {
    /// Revision up to which the reader has seen every event; what a bookmark may say.
    pub fn revision(&self) -> Option<u64> {
        self.pending.is_empty().then_some(self.position)
    }

    /// A bookmark for the present position, when nothing is left to read.
    pub fn bookmark(&self) -> Option<WatchEvent> {
        self.revision().map(|revision| bookmark(&self.query, revision, false))
    }

    fn check_position(&self, state: &State) -> Result<(), StoreError> {
        let oldest = state.kind(&self.query.group, &self.query.kind).map_or(state.first, |k| k.floor);
        if self.position < oldest || self.position > state.revision {
            return Err(StoreError::Gone { asked: self.position, oldest, newest: state.revision });
        }
        Ok(())
    }

    fn take_present_state(&mut self, state: &State) {
        self.position = state.revision;
        if let Some(kind) = state.kind(&self.query.group, &self.query.kind) {
            let matching = kind.objects.values().filter(|o| self.query.matches(o));
            self.pending = matching.map(|o| WatchEvent { event: EventType::Added, object: o.clone() }).collect();
        }
        if self.query.initial_bookmark {
            self.pending.push_back(bookmark(&self.query, self.position, true));
        }
    }

    /// Reads the next events of the history.
    fn refill(&mut self) -> Result<(), StoreError> {
        let store = self.store.clone();
        let state = store.read();
        self.check_position(&state)?;
        let Some(kind) = state.kind(&self.query.group, &self.query.kind) else { return Ok(()) };
        let start = kind.history.partition_point(|c| c.revision <= self.position);
        for change in kind.history.range(start..) {
            if self.pending.len() >= BATCH {
                return Ok(());
            }
            self.position = change.revision;
            self.pending.extend(event(&self.query, change));
        }
        self.position = state.revision;
        Ok(())
    }
}

impl Stream for Watch {
    type Item = Result<WatchEvent, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            if let Err(error) = self.refill() {
                self.ended = true;
                return Poll::Ready(Some(Err(error)));
            }
            if !self.pending.is_empty() {
                continue;
            }
            match self.wake.poll_next_unpin(context) {
                Poll::Ready(Some(_)) => {}
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// The event that this watcher sees of a change: an object that leaves the selection is deleted for it, one that enters
/// is added.
fn event(query: &WatchQuery, change: &Change) -> Option<WatchEvent> {
    let before = change.old.as_ref().is_some_and(|o| query.matches(o));
    let after = change.change != ChangeType::Deleted && query.matches(&change.new);
    let (event, object) = match (before, after) {
        (false, false) => return None,
        (false, true) => (EventType::Added, change.new.clone()),
        (true, true) => (EventType::Modified, change.new.clone()),
        (true, false) if change.change == ChangeType::Deleted => (EventType::Deleted, change.new.clone()),
        (true, false) => {
            let mut last = change.old.as_deref().cloned()?;
            last.metadata.resource_version = Some(change.revision.to_string());
            (EventType::Deleted, Arc::new(last))
        }
    };
    Some(WatchEvent { event, object })
}

fn bookmark(query: &WatchQuery, revision: u64, initial_end: bool) -> WatchEvent {
    let mut object = Object {
        api_version: api_version(&query.group, "v1"),
        kind: query.kind.clone(),
        metadata: Default::default(),
        body: Map::new(),
    };
    object.metadata.resource_version = Some(revision.to_string());
    if initial_end {
        object.metadata.annotations = Some([("k8s.io/initial-events-end".to_string(), "true".to_string())].into());
    }
    WatchEvent { event: EventType::Bookmark, object: Arc::new(object) }
}
