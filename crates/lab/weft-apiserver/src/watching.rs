//! Watches as endless answers: one JSON object per line, flushed as it happens, ended after the time that the client asked
//! for or when the server stops.

use crate::custom::convert;
use crate::kinds::Kinds;
use crate::params::Shape;
use crate::render;
use crate::resources::selectors;
use crate::route::Target;
use crate::server::{ApiServer, Context, closed};
use crate::status::ApiError;
use crate::table;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use http::header::CONTENT_TYPE;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval_at, sleep};
use weft_store::selector::FieldTerm;
use weft_store::{EventType, StoreError, Watch, WatchEvent, WatchQuery};

/// Length of a watch whose client names none, in seconds; a random part is added so that not all end together.
const DEFAULT_LENGTH: u64 = 1800;
/// Longest watch, in seconds.
const MAX_LENGTH: u64 = 86_400;
/// Events put into one piece of the answer when they are there already.
const EVENTS_PER_CHUNK: usize = 64;

struct Streaming {
    watch: Watch,
    server: ApiServer,
    kinds: Arc<Kinds>,
    target: Target,
    shape: Shape,
    include: Option<String>,
    end: Pin<Box<Sleep>>,
    bookmarks: Option<Interval>,
    told: u64,
    closing: watch::Receiver<bool>,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

/// Begins a watch.
pub(crate) fn watch(context: &Context, target: &Target) -> Result<Response, ApiError> {
    let params = &context.params;
    let (labels, mut fields) = selectors(context, target)?;
    if let Some(name) = &target.name {
        fields.terms.push(FieldTerm { path: "metadata.name".into(), value: name.clone(), negated: false });
    }
    let version: Option<u64> = params.number("resourceVersion")?;
    let initial = params.is_set("sendInitialEvents");
    let bookmarks = params.is_set("allowWatchBookmarks");
    let query = WatchQuery {
        group: target.kind.group.into(),
        kind: target.kind.kind.into(),
        namespace: target.namespace.clone(),
        labels,
        fields,
        from: version.filter(|v| *v > 0 && !initial),
        initial_bookmark: initial && bookmarks,
    };
    let seconds = params.number("timeoutSeconds")?.filter(|s| *s > 0);
    let seconds = seconds.unwrap_or_else(|| DEFAULT_LENGTH + fastrand::u64(..DEFAULT_LENGTH)).min(MAX_LENGTH);
    let permit = context.stream_permit()?;
    let watch = context.server.store().watch(query).map_err(|e| ApiError::from_store(target.kind, e))?;
    let pause = context.server.options().bookmark_interval;
    let streaming = Streaming {
        watch,
        server: context.server.clone(),
        kinds: context.kinds.clone(),
        target: target.clone(),
        shape: context.shape,
        include: params.get("includeObject").map(str::to_string),
        end: Box::pin(sleep(Duration::from_secs(seconds))),
        bookmarks: bookmarks.then(|| {
            let mut interval = interval_at(Instant::now() + pause, pause);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        }),
        told: 0,
        closing: context.server.closing(),
        ended: false,
        _permit: permit,
    };
    let chunks = futures_util::stream::unfold(streaming, |mut streaming| async move {
        let chunk = streaming.next_chunk().await?;
        Some((Ok::<_, Infallible>(chunk), streaming))
    });
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(chunks)).into_response())
}

impl Streaming {
    /// The next piece of the answer; `None` at its end.
    async fn next_chunk(&mut self) -> Option<Bytes> {
        loop {
            if self.ended {
                return None;
            }
            let tick = async {
                match &mut self.bookmarks {
                    Some(interval) => drop(interval.tick().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = closed(&mut self.closing) => return None,
                event = self.watch.next() => return self.events(event).await,
                () = &mut self.end => {
                    self.ended = true;
                    return self.bookmarks.is_some().then(|| self.bookmark()).flatten();
                }
                () = tick => {
                    if let Some(chunk) = self.bookmark() {
                        return Some(chunk);
                    }
                }
            }
        }
    }

    /// This event and those that are there already.
    async fn events(&mut self, first: Option<Result<WatchEvent, StoreError>>) -> Option<Bytes> {
        let (mut events, mut problem) = (Vec::new(), None);
        let mut next = first;
        for count in 1.. {
            match next {
                None => self.ended = true,
                Some(Ok(event)) => events.push(event),
                Some(Err(error)) => problem = Some(ApiError::from_store(self.target.kind, error)),
            }
            if self.ended || problem.is_some() || count >= EVENTS_PER_CHUNK {
                break;
            }
            match self.watch.next().now_or_never() {
                Some(more) => next = more,
                None => break,
            }
        }
        let mut chunk = Vec::new();
        match self.spoken(events).await {
            Ok(events) => events.iter().for_each(|event| self.line(event, &mut chunk)),
            // The client begins anew from what it has seen.
            Err(error) => problem = Some(error),
        }
        if let Some(problem) = problem {
            write_line("ERROR", problem.to_value().to_string().as_bytes(), &mut chunk);
            self.ended = true;
        }
        (!chunk.is_empty()).then(|| chunk.into())
    }

    /// Events with their objects in the version that the client speaks. Bookmarks have nothing but a revision.
    async fn spoken(&self, mut events: Vec<WatchEvent>) -> Result<Vec<WatchEvent>, ApiError> {
        let whole = |event: &&mut WatchEvent| event.event != EventType::Bookmark;
        let objects = events.iter_mut().filter(whole).map(|event| event.object.clone()).collect();
        // The definition may have changed since the watch began.
        let (kinds, target) = (self.server.kinds(), &self.target);
        let objects = convert::all(&self.server, &kinds, target.kind, &target.version, objects).await?;
        events.iter_mut().filter(whole).zip(objects).for_each(|(event, object)| event.object = object);
        Ok(events)
    }

    /// A bookmark, unless the client has been told of this revision already.
    fn bookmark(&mut self) -> Option<Bytes> {
        let revision = self.watch.revision().filter(|r| *r > self.told)?;
        let event = self.watch.bookmark()?;
        let mut chunk = Vec::new();
        self.line(&event, &mut chunk);
        self.told = revision;
        Some(chunk.into())
    }

    fn line(&mut self, event: &WatchEvent, chunk: &mut Vec<u8>) {
        let version = event.object.metadata.resource_version.as_deref().and_then(|v| v.parse().ok());
        self.told = version.unwrap_or(self.told);
        let object = if self.shape == Shape::Table && event.event != EventType::Bookmark {
            let meta = render::table_meta(&event.object);
            let table = table::table(&self.kinds, &self.target, &[&*event.object], meta, self.include.as_deref());
            Ok(table.to_string().into_bytes())
        } else {
            render::object_json(&event.object, &self.target.api_version(), self.shape)
        };
        match object {
            Ok(object) => write_line(event.event.as_str(), &object, chunk),
            Err(error) => write_line("ERROR", error.to_value().to_string().as_bytes(), chunk),
        }
    }
}

fn write_line(event: &str, object: &[u8], chunk: &mut Vec<u8>) {
    chunk.extend_from_slice(b"{\"type\":\"");
    chunk.extend_from_slice(event.as_bytes());
    chunk.extend_from_slice(b"\",\"object\":");
    chunk.extend_from_slice(object);
    chunk.extend_from_slice(b"}\n");
}
