//! Events: what went wrong with an object, told where `kubectl describe` shows it. The same thing told again has a new date.

use crate::mesh;
use crate::settings::Settings;
use serde_json::{Value, json};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use weft_k8s_api::Object;
use weft_k8s_api::kinds::by_kind;
use weft_store::client::WriteOptions;
use weft_store::{ApiClient, Cache, ClientError};

/// Longest message that the API takes, in bytes.
const MAX_MESSAGE: usize = 1024;
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Tells of a problem of an object. An event that cannot be written is no reason to stop anything.
pub(crate) async fn warn(client: &ApiClient, about: &Object, reason: &str, message: &str) {
    if let Err(error) = write(client, about, reason, message).await {
        tracing::debug!(object = %about.key(), %error, "event not written");
    }
}

async fn write(client: &ApiClient, about: &Object, reason: &str, message: &str) -> Result<(), ClientError> {
    let event = event(about, reason, message);
    match client.create(&event, &WriteOptions::default()).await {
        Err(ClientError::AlreadyExists(_)) => again(client, &event).await,
        other => other.map(drop),
    }
}

/// Dates an event anew that is there. (How often it was told is not counted: that takes the right to read events.)
async fn again(client: &ApiClient, event: &Object) -> Result<(), ClientError> {
    let Some(kind) = by_kind("", "Event") else { return Ok(()) };
    let patch = json!({"lastTimestamp": event.body.get("lastTimestamp")});
    client.merge_patch(kind, event.namespace(), event.name(), &patch).await.map(drop)
}

fn event(about: &Object, reason: &str, message: &str) -> Object {
    let message = shortened(message, MAX_MESSAGE);
    let mut hash = DefaultHasher::new();
    (about.key(), about.metadata.uid.as_deref(), reason, message).hash(&mut hash);
    // Objects without a namespace have their events in `default`, as Kubernetes does it.
    let namespace = if about.namespace().is_empty() { "default" } else { about.namespace() };
    let now = format!("{:.0}", jiff::Timestamp::now());
    let mut event = Object {
        api_version: "v1".into(),
        kind: "Event".into(),
        metadata: Default::default(),
        body: serde_json::Map::new(),
    };
    event.metadata.namespace = Some(namespace.to_string());
    event.metadata.name = Some(format!("{}.{:016x}", shortened(about.name(), 200), hash.finish()));
    let fields = json!({
        "involvedObject": {
            "apiVersion": about.api_version, "kind": about.kind, "namespace": about.namespace(), "name": about.name(),
            "uid": about.metadata.uid, "resourceVersion": about.metadata.resource_version,
        },
        "type": "Warning", "reason": reason, "message": message, "count": 1,
        "firstTimestamp": now, "lastTimestamp": now,
        "source": {"component": "weftd"}, "reportingComponent": "weft.dev/weftd", "reportingInstance": "weftd",
    });
    if let Value::Object(fields) = fields {
        event.body = fields;
    }
    event
}

/// The text, cut between characters to at most `limit` bytes.
pub(crate) fn shortened(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

/// Tells of a mesh config that is refused, once for each state of its ConfigMap.
pub(crate) async fn of_mesh_config(client: ApiClient, cache: Arc<Cache>, settings: Arc<Settings>) {
    let mut changed = cache.changed();
    let mut seen: Option<Arc<Object>> = None;
    loop {
        let now = mesh::config_map(&cache, &settings);
        let same = match (&seen, &now) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        if let Some(map) = now.as_ref().filter(|_| !same)
            && let Err(problem) = mesh::parse(map)
        {
            warn(&client, map, "MeshConfigRefused", &problem).await;
            tokio::time::sleep(RETRY).await;
        }
        seen = now;
        if changed.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_thing_has_the_same_name() {
        let object: Object = serde_json::from_value(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "a", "namespace": "n", "uid": "u"},
        }))
        .unwrap();
        let first = event(&object, "R", "m");
        assert_eq!(first.key(), event(&object, "R", "m").key());
        assert_ne!(first.key(), event(&object, "R", "other").key());
        assert_eq!(first.namespace(), "n");
        assert_eq!(first.body["involvedObject"]["uid"], "u");
        let long = event(&object, "R", &"ä".repeat(2000));
        let message = long.body["message"].as_str().unwrap();
        assert!(message.len() <= MAX_MESSAGE && message.len() > MAX_MESSAGE - 4);
        assert!(first.body["firstTimestamp"].as_str().unwrap().ends_with('Z'));
    }
}
