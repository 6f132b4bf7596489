//! Statuses that the model computes are written to their objects: conditions of the Gateway API, addresses of Ingresses and
//! service entries. Only what differs from what the object says is written; an object that changed meanwhile is looked at
//! again with the next snapshot.

use crate::status;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use weft_k8s_api::ObjectKey;
use weft_k8s_api::kinds::by_kind;
use weft_model::{MeshSnapshot, StatusUpdate};
use weft_store::{ApiClient, Cache, ClientError};

/// Pause before writing, so that what is mended at once is never written.
const SETTLE: Duration = Duration::from_millis(200);

/// Writes the statuses of each snapshot until the sender goes away.
pub(crate) async fn write(client: ApiClient, cache: Arc<Cache>, mut snapshots: watch::Receiver<Arc<MeshSnapshot>>) {
    let mut written: HashMap<ObjectKey, Arc<StatusUpdate>> = HashMap::new();
    loop {
        tokio::time::sleep(SETTLE).await;
        let statuses = snapshots.borrow_and_update().statuses.clone();
        let mut again = None;
        for update in statuses.iter() {
            if written.get(&update.object).is_some_and(|known| Arc::ptr_eq(known, update)) {
                continue;
            }
            match put(&client, &cache, update).await {
                Ok(()) => drop(written.insert(update.object.clone(), update.clone())),
                Err(error) => {
                    again = again.max(Some(status::pause_after(&update.object, &error)));
                    if error.is_unreachable() {
                        break;
                    }
                }
            }
        }
        written.retain(|key, _| cache.get(key).is_some());
        let pause = async {
            match again {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            more = snapshots.changed() => if more.is_err() { return },
            () = pause => {}
        }
    }
}

async fn put(client: &ApiClient, cache: &Cache, update: &StatusUpdate) -> Result<(), ClientError> {
    let key = &update.object;
    let (Some(object), Some(kind)) = (cache.get(key), by_kind(&key.group, &key.kind)) else { return Ok(()) };
    if object.metadata.generation.is_some_and(|g| g != update.generation) {
        // The snapshot is about an older spec; the one about this spec is on its way.
        return Ok(());
    }
    let current = object.body.get("status").cloned().unwrap_or(Value::Null);
    let now = json!(format!("{:.0}", jiff::Timestamp::now()));
    let Some(next) = update.onto(&current, now.as_str().unwrap_or_default()) else { return Ok(()) };
    // Fields that are not ours are left out.
    let own = update.status.as_object().into_iter().flat_map(|fields| fields.keys());
    let patch: Map<String, Value> =
        own.map(|name| (name.clone(), next.get(name).cloned().unwrap_or(Value::Null))).collect();
    let patch = Value::Object(patch);
    match client.patch_status_of(kind, &object, &patch).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_apiserver::{AdminToken, ApiServer, ApiServerOptions};
    use weft_k8s_api::Object;
    use weft_store::MemoryStore;

    const TOKEN: &str = "administrator-of-the-test";

    fn class(name: &str) -> Object {
        serde_json::from_value(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": name},
            "spec": {"controllerName": "istio.io/gateway-controller"},
        }))
        .unwrap()
    }

    /// An API server with a class, its client, the class as it was made, and what a build says of it.
    async fn served() -> (ApiServer, ApiClient, Arc<Object>, MeshSnapshot) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let options = ApiServerOptions {
            admin_tokens: vec![AdminToken { token: TOKEN.into(), user: "admin".into() }],
            ..ApiServerOptions::default()
        };
        let server = ApiServer::new(MemoryStore::new(), options).unwrap();
        let object = server.store().create(class("edge")).unwrap();
        let serving = server.clone();
        tokio::spawn(async move { serving.serve(listener, std::future::pending()).await });
        let client = ApiClient::connect(&format!("http://{address}"), Some(TOKEN)).unwrap();
        let mut inputs = weft_model::Inputs::default();
        inputs.push(object.clone());
        let snapshot = weft_model::build(&inputs, None);
        assert_eq!(snapshot.statuses.len(), 1);
        (server, client, object, snapshot)
    }

    #[tokio::test]
    async fn what_somebody_else_wrote_meanwhile_is_not_overwritten() {
        let (server, client, object, snapshot) = served().await;
        let old = Cache::from_objects([(*object).clone()]);
        let theirs = json!({"conditions": [{"type": "Theirs", "status": "True"}]});
        let kind = by_kind("gateway.networking.k8s.io", "GatewayClass").unwrap();
        client.patch_status(kind, "", "edge", &theirs).await.unwrap();
        let refused = put(&client, &old, &snapshot.statuses[0]).await;
        assert!(refused.is_err_and(|error| error.is_conflict()));
        let held = server.store().get(&object.key()).unwrap();
        assert_eq!(held.body["status"], theirs);
        put(&client, &Cache::from_objects([(*held).clone()]), &snapshot.statuses[0]).await.unwrap();
        let conditions = server.store().get(&object.key()).unwrap().body["status"]["conditions"].clone();
        let types: Vec<_> = conditions.as_array().unwrap().iter().map(|c| c["type"].clone()).collect();
        assert_eq!(types, ["Theirs", "Accepted"]);
    }

    #[tokio::test]
    async fn conditions_arrive_once() {
        let (server, client, object, snapshot) = served().await;
        let cache = Arc::new(Cache::from_objects([(*object).clone()]));
        let (_sender, receiver) = watch::channel(Arc::new(snapshot));
        let writer = tokio::spawn(write(client, cache, receiver));
        let key = object.key();
        let accepted = async {
            loop {
                let object = server.store().get(&key).unwrap();
                let conditions = object.body.get("status").and_then(|s| s.get("conditions")).cloned();
                if let Some(condition) = conditions.and_then(|c| c.get(0).cloned()) {
                    break condition;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let condition = tokio::time::timeout(Duration::from_secs(60), accepted).await.expect("the condition");
        assert_eq!((condition["type"].as_str(), condition["status"].as_str()), (Some("Accepted"), Some("True")));
        assert!(condition["lastTransitionTime"].as_str().is_some_and(|t| t.ends_with('Z')), "{condition}");
        writer.abort();
    }
}
