//! Warnings go to the status of the objects they are about (`status.validationMessages`), and away again.

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use weft_k8s_api::ObjectKey;
use weft_k8s_api::kinds::by_kind;
use weft_model::{KINDS, MeshSnapshot, Warning};
use weft_store::{ApiClient, Cache};

/// Pause before writing, so that what is mended at once is never written.
const SETTLE: Duration = Duration::from_millis(500);
/// Most messages of one object.
const MAX_MESSAGES: usize = 20;

/// Writes the warnings of each snapshot until the sender goes away.
pub(crate) async fn write(client: ApiClient, cache: Arc<Cache>, mut snapshots: watch::Receiver<Arc<MeshSnapshot>>) {
    // Objects whose status was written by this process, or found with messages at the start.
    let mut marked: BTreeSet<ObjectKey> = with_messages(&cache);
    loop {
        tokio::time::sleep(SETTLE).await;
        let snapshot = snapshots.borrow_and_update().clone();
        let wanted = by_object(&snapshot.warnings);
        for key in marked.union(&wanted.keys().cloned().collect()).cloned().collect::<Vec<_>>() {
            let messages = wanted.get(&key).cloned().unwrap_or_default();
            if messages.is_empty() {
                marked.remove(&key);
            } else {
                marked.insert(key.clone());
            }
            put(&client, &cache, &key, &messages).await;
        }
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

fn with_messages(cache: &Cache) -> BTreeSet<ObjectKey> {
    let istio = KINDS.iter().filter(|(group, _)| group.ends_with("istio.io"));
    let objects = istio.flat_map(|(group, kind)| cache.list(group, kind));
    objects.filter(|o| !messages_of(&o.body).is_empty()).map(|o| o.key()).collect()
}

fn messages_of(body: &serde_json::Map<String, Value>) -> Vec<Value> {
    let messages = body.get("status").and_then(|s| s.get("validationMessages")).and_then(Value::as_array);
    messages.cloned().unwrap_or_default()
}

/// Messages by object, for Istio's kinds alone: the status of others is not ours.
fn by_object(warnings: &[Warning]) -> BTreeMap<ObjectKey, Vec<Value>> {
    let mut out: BTreeMap<ObjectKey, Vec<Value>> = BTreeMap::new();
    for warning in warnings {
        let Some((group, kind)) = KINDS.iter().find(|(g, k)| g.ends_with("istio.io") && *k == warning.at.kind) else {
            continue;
        };
        let key = ObjectKey {
            group: (*group).to_string(),
            kind: (*kind).to_string(),
            namespace: warning.at.namespace.clone(),
            name: warning.at.name.clone(),
        };
        let messages = out.entry(key).or_default();
        if messages.len() < MAX_MESSAGES {
            let level = if warning.code == "IST0106" { "ERROR" } else { "WARNING" };
            let message = match warning.at.path.as_str() {
                "" => warning.message.clone(),
                path => format!("{path}: {}", warning.message),
            };
            messages.push(json!({ "type": { "code": warning.code }, "level": level, "message": message }));
        }
    }
    out
}

async fn put(client: &ApiClient, cache: &Cache, key: &ObjectKey, messages: &[Value]) {
    let (Some(object), Some(kind)) = (cache.get(key), by_kind(&key.group, &key.kind)) else { return };
    if messages_of(&object.body) == messages {
        return;
    }
    let list = if messages.is_empty() { Value::Null } else { Value::Array(messages.to_vec()) };
    let status = json!({ "validationMessages": list });
    match client.patch_status(kind, &key.namespace, &key.name, &status).await {
        Ok(_) => {}
        Err(error) if error.is_not_found() => {}
        // The next snapshot brings the next try; warnings are also at /debug/push_status.
        Err(error) => tracing::warn!("status of {key}: {error}"),
    }
}
