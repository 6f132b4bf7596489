//! Answers that do not end by themselves: watches and logs.

use super::{ApiClient, ClientError, Query, collection_path, object_path};
use crate::watch::{EventType, WatchEvent};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use http::Method;
use http_body_util::BodyExt;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::io::StreamReader;
use weft_k8s_api::kinds::{self, KindInfo};

/// Longest watch event that is read, in bytes.
const MAX_EVENT: usize = 8 << 20;
/// Longest wait for the head of a stream's answer.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Events of a watch.
pub type EventStream = BoxStream<'static, Result<WatchEvent, ClientError>>;
/// Bytes of a log.
pub type LogStream = BoxStream<'static, Result<Bytes, ClientError>>;

/// What to watch.
#[derive(Debug, Clone, Default)]
pub struct WatchOptions {
    /// `labelSelector`.
    pub labels: Option<String>,
    /// `fieldSelector`.
    pub fields: Option<String>,
    /// Events after this one; empty begins with the present state as `ADDED` events.
    pub resource_version: Option<String>,
    /// Whether the server may send bookmarks.
    pub bookmarks: bool,
    /// After how many seconds the server ends the watch; `None` leaves it to the server.
    pub timeout_seconds: Option<u32>,
    /// Version to read objects in; `None` for the kind's own.
    pub version: Option<&'static str>,
}

/// What to read of a log.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Container; `None` when the pod has only one.
    pub container: Option<String>,
    /// Go on with new lines.
    pub follow: bool,
    /// Only that many last lines.
    pub tail_lines: Option<u64>,
    /// The log of the container's previous run.
    pub previous: bool,
    /// Only lines of the last seconds.
    pub since_seconds: Option<u64>,
    /// Put the time before each line.
    pub timestamps: bool,
}

impl ApiClient {
    /// Watches a kind; `namespace` of `None` is all namespaces. The stream ends when the server ends it.
    ///
    /// # Errors
    /// [`ClientError::Expired`] (also as an item) when the resource version is too old, [`ClientError::NoSuchKind`],
    /// [`ClientError::Unreachable`] and their kin.
    pub async fn watch(
        &self,
        kind: &KindInfo,
        namespace: Option<&str>,
        options: &WatchOptions,
    ) -> Result<EventStream, ClientError> {
        let mut query = Query::default();
        query.add("watch", Some("true"));
        query.add("labelSelector", options.labels.as_deref());
        query.add("fieldSelector", options.fields.as_deref());
        query.add("resourceVersion", options.resource_version.as_deref());
        query.add("allowWatchBookmarks", options.bookmarks.then_some("true"));
        query.add("timeoutSeconds", options.timeout_seconds.map(|s| s.to_string()).as_deref());
        let path = query.on(&collection_path(kind, options.version, namespace));
        let body = self.open(&path).await?;
        let lines = FramedRead::new(StreamReader::new(body), LinesCodec::new_with_max_length(MAX_EVENT));
        let client = self.clone();
        let events = lines.map(move |line| {
            line.map_err(|e| client.broken(&path, e)).and_then(|line| client.read_event(&path, &line))
        });
        // After an error nothing that follows can be trusted.
        let mut failed = false;
        let until_error = events.take_while(move |event| {
            let go_on = !failed;
            failed = event.is_err();
            futures_util::future::ready(go_on)
        });
        Ok(until_error.boxed())
    }

    /// Reads a container's log.
    ///
    /// # Errors
    /// [`ClientError::NotFound`], [`ClientError::Invalid`] (no such container), [`ClientError::Unreachable`] and their kin.
    pub async fn logs(&self, namespace: &str, pod: &str, options: &LogOptions) -> Result<LogStream, ClientError> {
        let Some(kind) = kinds::by_kind("", "Pod") else { return Err(ClientError::NoSuchKind("pods".into())) };
        let mut query = Query::default();
        query.add("container", options.container.as_deref());
        query.add("follow", options.follow.then_some("true"));
        query.add("previous", options.previous.then_some("true"));
        query.add("timestamps", options.timestamps.then_some("true"));
        query.add("tailLines", options.tail_lines.map(|n| n.to_string()).as_deref());
        query.add("sinceSeconds", options.since_seconds.map(|n| n.to_string()).as_deref());
        let path = query.on(&format!("{}/log", object_path(kind, None, namespace, pod)));
        let client = self.clone();
        let body = self.open(&path).await?;
        Ok(body.map_err(move |e| client.broken(&path, LinesCodecError::Io(e))).boxed())
    }

    async fn open(&self, path: &str) -> Result<BoxStream<'static, std::io::Result<Bytes>>, ClientError> {
        let response = tokio::time::timeout(START_TIMEOUT, self.start(Method::GET, path, None));
        let response = response.await.map_err(|_| ClientError::Unreachable {
            url: self.url.clone(),
            cause: format!("no answer to {path} within {} s", START_TIMEOUT.as_secs()),
        })??;
        Ok(response.into_body().into_data_stream().map_err(std::io::Error::other).boxed())
    }

    fn broken(&self, path: &str, error: LinesCodecError) -> ClientError {
        match error {
            LinesCodecError::Io(e) => self.unreachable(&e),
            LinesCodecError::MaxLineLengthExceeded => ClientError::Protocol {
                url: self.url.clone(),
                message: format!("{path}: an event is longer than {MAX_EVENT} bytes"),
            },
        }
    }

    fn read_event(&self, path: &str, line: &str) -> Result<WatchEvent, ClientError> {
        let wrong =
            |message: String| ClientError::Protocol { url: self.url.clone(), message: format!("{path}: {message}") };
        let mut event: Value = serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
        let object = event.get_mut("object").map(Value::take).unwrap_or(Value::Null);
        let event = match event.get("type").and_then(Value::as_str).unwrap_or_default() {
            "ADDED" => EventType::Added,
            "MODIFIED" => EventType::Modified,
            "DELETED" => EventType::Deleted,
            "BOOKMARK" => EventType::Bookmark,
            "ERROR" => {
                let status = serde_json::from_value(object).map_err(|e| wrong(e.to_string()))?;
                return Err(ClientError::from_status(&self.url, path, status));
            }
            other => return Err(wrong(format!("unknown event type {other:?}"))),
        };
        let object = serde_json::from_value(object).map_err(|e| wrong(e.to_string()))?;
        Ok(WatchEvent { event, object: Arc::new(object) })
    }
}
