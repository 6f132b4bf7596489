//! Warnings go to the status of the objects they are about (`status.validationMessages`), and away again.

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use weft_k8s_api::ObjectKey;
use weft_k8s_api::kinds::by_kind;
use weft_model::{KINDS, MeshSnapshot, Warning};
use weft_store::{ApiClient, Cache, ClientError};

/// Pause before writing, so that what is mended at once is never written.
const SETTLE: Duration = Duration::from_millis(500);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(5);
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
        let mut failed = false;
        for key in marked.union(&wanted.keys().cloned().collect()).cloned().collect::<Vec<_>>() {
            let messages = wanted.get(&key).cloned().unwrap_or_default();
            let written = put(&client, &cache, &key, &messages).await;
            match &written {
                // Messages that could not be taken away are still to be.
                Ok(()) if messages.is_empty() => drop(marked.remove(&key)),
                _ => drop(marked.insert(key.clone())),
            }
            if let Err(error) = written {
                tracing::warn!("status of {key}: {error}");
                failed = true;
                if error.is_unreachable() {
                    break;
                }
            }
        }
        let pause = async {
            match failed {
                true => tokio::time::sleep(RETRY).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            more = snapshots.changed() => if more.is_err() { return },
            () = pause => {}
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

async fn put(client: &ApiClient, cache: &Cache, key: &ObjectKey, messages: &[Value]) -> Result<(), ClientError> {
    let (Some(object), Some(kind)) = (cache.get(key), by_kind(&key.group, &key.kind)) else { return Ok(()) };
    if messages_of(&object.body) == messages {
        return Ok(());
    }
    let list = if messages.is_empty() { Value::Null } else { Value::Array(messages.to_vec()) };
    let status = json!({ "validationMessages": list });
    match client.patch_status(kind, &key.namespace, &key.name, &status).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;
    use weft_apiserver::{AdminToken, ApiServer, ApiServerOptions};
    use weft_store::MemoryStore;

    #[tokio::test]
    async fn old_messages_go_once_the_api_server_is_back() {
        const TOKEN: &str = "administrator-of-the-test";
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let client = ApiClient::connect(&format!("http://{address}"), Some(TOKEN)).unwrap();
        let options = ApiServerOptions {
            admin_tokens: vec![AdminToken { token: TOKEN.into(), user: "admin".into() }],
            ..ApiServerOptions::default()
        };
        let server = ApiServer::new(MemoryStore::new(), options).unwrap();
        let object = serde_json::from_value(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "a", "namespace": "default"},
            "spec": {"hosts": ["a"]}, "status": {"validationMessages": [{"message": "old"}]},
        }));
        let object = server.store().create(object.unwrap()).unwrap();
        let key = object.key();
        let cache = Arc::new(Cache::from_objects([(*object).clone()]));
        let (_snapshots, receiver) = watch::channel(Arc::<MeshSnapshot>::default());
        let writer = tokio::spawn(write(client, cache, receiver));
        // Past the first try.
        tokio::time::sleep(SETTLE * 2).await;
        let listener = TcpListener::bind(address).await.unwrap();
        let serving = server.clone();
        let served = tokio::spawn(async move { serving.serve(listener, std::future::pending()).await });
        let clean = async {
            while !messages_of(&server.store().get(&key).unwrap().body).is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(RETRY * 3, clean).await.expect("the messages go");
        writer.abort();
        served.abort();
    }
}
