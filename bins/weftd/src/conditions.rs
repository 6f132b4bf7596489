//! Statuses that the model computes are written to their objects: conditions of the Gateway API, addresses of Ingresses and
//! service entries. Only what differs from what the object says is written; an object that changed meanwhile, or that was made
//! anew, is looked at again.

use crate::status::Told;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use weft_k8s_api::kinds::by_kind;
use weft_k8s_api::{Object, ObjectKey};
use weft_model::{MeshSnapshot, StatusUpdate};
use weft_store::{ApiClient, Cache, ClientError};

/// Pause before writing, so that what is mended at once is never written.
const SETTLE: Duration = Duration::from_millis(200);
/// Pause before a status that somebody wrote over is written again, doubled with each time until [`LONGEST`]: another control plane
/// may think otherwise of the same object, and two that never tire would wear out the API server.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

/// What became of a status.
struct Looked {
    status: Arc<StatusUpdate>,
    /// The object that it was compared with.
    object: Arc<Object>,
    /// When to write what could not be written, or was written over; nothing for what is right.
    again: Option<Instant>,
    /// How often it was written over.
    undone: u32,
}

/// How long a status rests that was written over so many times.
fn rest(undone: u32) -> Duration {
    FIRST.saturating_mul(1 << undone.saturating_sub(1).min(16)).min(LONGEST)
}

/// Writes the statuses of each snapshot until the sender goes away. An object is looked at again when its status or the object
/// itself changes: somebody may have written over it, or made it anew as it was.
pub(crate) async fn write(client: ApiClient, cache: Arc<Cache>, mut snapshots: watch::Receiver<Arc<MeshSnapshot>>) {
    let mut changed = cache.changed();
    let mut looked: HashMap<ObjectKey, Looked> = HashMap::new();
    let mut told = Told::default();
    loop {
        tokio::time::sleep(SETTLE).await;
        let statuses = snapshots.borrow_and_update().statuses.clone();
        changed.mark_unchanged();
        looked.retain(|key, _| cache.get(key).is_some());
        for status in statuses.iter() {
            let Some(object) = cache.get(&status.object) else { continue };
            let before = looked.get(&status.object).filter(|before| {
                Arc::ptr_eq(&before.status, status) && before.object.metadata.uid == object.metadata.uid
            });
            let (again, mut undone) = before.map_or((None, 0), |before| (before.again, before.undone));
            let is_known = before.is_some_and(|before| Arc::ptr_eq(&before.object, &object));
            let resting = again.is_some_and(|at| Instant::now() < at);
            if is_known && (resting || again.is_none()) {
                continue;
            }
            let mut next = again;
            if before.is_some() && !is_known && wanted(&object, status).is_some() {
                if again.is_none() {
                    undone = undone.saturating_add(1);
                    next = Some(Instant::now() + rest(undone));
                }
                if next.is_some_and(|at| Instant::now() < at) {
                    looked
                        .insert(status.object.clone(), Looked { status: status.clone(), object, again: next, undone });
                    continue;
                }
            }
            let failure = put(&client, &object, status).await.err();
            let again = failure.as_ref().map(|error| Instant::now() + told.pause_after(&status.object, error));
            looked.insert(status.object.clone(), Looked { status: status.clone(), object, again, undone });
            if failure.is_some_and(|error| error.is_unreachable()) {
                break;
            }
        }
        let next = looked.values().filter_map(|one| one.again).min();
        told.end_of_round(next.is_some());
        let pause = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            more = snapshots.changed() => if more.is_err() { return },
            more = changed.changed() => if more.is_err() { return },
            () = pause => {}
        }
    }
}

/// The status that an object should have, when it has another one and the update is about the object's present spec.
fn wanted(object: &Object, update: &StatusUpdate) -> Option<Value> {
    if object.metadata.generation.is_some_and(|g| g != update.generation) {
        // The snapshot is about an older spec; the one about this spec is on its way.
        return None;
    }
    let current = object.body.get("status").cloned().unwrap_or(Value::Null);
    update.onto(&current, &format!("{:.0}", jiff::Timestamp::now()))
}

async fn put(client: &ApiClient, object: &Object, update: &StatusUpdate) -> Result<(), ClientError> {
    let Some(kind) = by_kind(&update.object.group, &update.object.kind) else { return Ok(()) };
    let Some(next) = wanted(object, update) else { return Ok(()) };
    // Fields that are not ours are left out.
    let own = update.status.as_object().into_iter().flat_map(|fields| fields.keys());
    let patch: Map<String, Value> =
        own.map(|name| (name.clone(), next.get(name).cloned().unwrap_or(Value::Null))).collect();
    let patch = Value::Object(patch);
    match client.patch_status_of(kind, object, &patch).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use weft_apiserver::{AdminToken, ApiServer, ApiServerOptions};
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
        let theirs = json!({"conditions": [{"type": "Theirs", "status": "True"}]});
        let kind = by_kind("gateway.networking.k8s.io", "GatewayClass").unwrap();
        client.patch_status(kind, "", "edge", &theirs).await.unwrap();
        let refused = put(&client, &object, &snapshot.statuses[0]).await;
        assert!(refused.is_err_and(|error| error.is_conflict()));
        let held = server.store().get(&object.key()).unwrap();
        assert_eq!(held.body["status"], theirs);
        put(&client, &held, &snapshot.statuses[0]).await.unwrap();
        let conditions = server.store().get(&object.key()).unwrap().body["status"]["conditions"].clone();
        let types: Vec<_> = conditions.as_array().unwrap().iter().map(|c| c["type"].clone()).collect();
        assert_eq!(types, ["Theirs", "Accepted"]);
    }

    /// The object once it has the condition of the class, and its conditions.
    async fn accepted(server: &ApiServer, key: &ObjectKey) -> Arc<Object> {
        let arrived = async {
            loop {
                if let Some(object) = server.store().get(key)
                    && object.body.get("status").is_some_and(|status| status["conditions"][0]["type"] == "Accepted")
                {
                    return object;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), arrived).await.expect("the condition")
    }

    #[test]
    fn who_is_written_over_rests_longer_each_time() {
        let seconds: Vec<u64> = [1, 2, 3, 8, 9, 10, u32::MAX].map(|undone| rest(undone).as_secs()).into();
        assert_eq!(seconds, [1, 2, 4, 128, 256, 300, 300]);
    }

    #[tokio::test]
    async fn conditions_arrive_and_come_back() {
        let (server, client, object, snapshot) = served().await;
        let cache = Arc::new(Cache::from_objects([(*object).clone()]));
        let (_sender, receiver) = watch::channel(Arc::new(snapshot));
        let writer = tokio::spawn(write(client.clone(), cache.clone(), receiver));
        let key = object.key();
        let first = accepted(&server, &key).await;
        let condition = &first.body["status"]["conditions"][0];
        assert_eq!(condition["status"], "True");
        assert!(condition["lastTransitionTime"].as_str().is_some_and(|t| t.ends_with('Z')), "{condition}");
        cache.put(first);
        // Written over by somebody else.
        let kind = by_kind("gateway.networking.k8s.io", "GatewayClass").unwrap();
        client.patch_status(kind, "", "edge", &json!({"conditions": []})).await.unwrap();
        cache.put(server.store().get(&key).unwrap());
        cache.put(accepted(&server, &key).await);
        // Deleted and made anew, as it was.
        client.delete(kind, "", "edge", &weft_store::DeleteOptions::default()).await.unwrap();
        cache.put(server.store().create(class("edge")).unwrap());
        accepted(&server, &key).await;
        writer.abort();
    }
}
