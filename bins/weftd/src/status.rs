//! Warnings go to the status of the objects they are about, as Istio writes it: `validationMessages`, a condition, the
//! generation that was looked at (Istio's reference, "Configuration Status Field"); what is new also becomes an event. Away
//! again when the object is mended. Objects without a problem have no status written: there are many of them.

use crate::events;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::mem::{Discriminant, discriminant};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use weft_k8s_api::kinds::by_kind;
use weft_k8s_api::{Object, ObjectKey};
use weft_model::{KINDS, MeshSnapshot, Settings, Warning, codes};
use weft_store::{ApiClient, Cache, ClientError};

/// Pause before writing, so that what is mended at once is never written.
const SETTLE: Duration = Duration::from_millis(500);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// Most messages of one object.
const MAX_MESSAGES: usize = 20;
/// Longest message of a condition, in bytes.
const MAX_CONDITION: usize = 4096;
/// The condition: whether the object is in force.
const CONDITION: &str = "Reconciled";

/// What is wrong with an object, as Istio's analyzers name it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    code: &'static str,
    text: String,
}

/// The name of a code, and how the status calls its weight: an object that is in force has no error, whatever it refers to in
/// vain.
fn analyzer(code: &str) -> (&'static str, &'static str) {
    let refused = matches!(code, "IST0106" | "IST0145");
    (codes::about(code).0, if refused { "ERROR" } else { "WARNING" })
}

impl Message {
    fn is_error(&self) -> bool {
        analyzer(self.code).1 == "ERROR"
    }

    fn to_value(&self) -> Value {
        let (name, level) = analyzer(self.code);
        let mut out = json!({"type": {"code": self.code, "name": name}, "level": level, "message": self.text});
        if let Some(page) = codes::page(self.code) {
            out["documentationUrl"] = page.into();
        }
        out
    }
}

/// Writes the warnings of each snapshot until the sender goes away.
pub(crate) async fn write(client: ApiClient, cache: Arc<Cache>, mut snapshots: watch::Receiver<Arc<MeshSnapshot>>) {
    // Objects whose status was written by this process, or found with messages at the start.
    let mut marked: BTreeSet<ObjectKey> = with_messages(&cache, &snapshots.borrow().settings.clone());
    let mut told = Told::default();
    loop {
        tokio::time::sleep(SETTLE).await;
        let snapshot = snapshots.borrow_and_update().clone();
        let wanted = by_object(&snapshot.warnings);
        let mut again = None;
        for key in marked.union(&wanted.keys().cloned().collect()).cloned().collect::<Vec<_>>() {
            let messages = wanted.get(&key).cloned().unwrap_or_default();
            let written = put(&client, &cache, &key, &messages).await;
            match &written {
                // Messages that could not be taken away are still to be.
                Ok(()) if messages.is_empty() => drop(marked.remove(&key)),
                _ => drop(marked.insert(key.clone())),
            }
            if let Err(error) = written {
                again = again.max(Some(told.pause_after(&key, &error)));
                if error.is_unreachable() {
                    break;
                }
            }
        }
        told.end_of_round(again.is_some());
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

/// Which failures were told of. One right that is missing fails for every object of a kind, and again with every try.
#[derive(Debug, Default)]
pub(crate) struct Told(BTreeMap<(String, String), Discriminant<ClientError>>);

impl Told {
    /// When to try again what could not be written. That somebody else wrote first is nothing to tell: the cache has it soon.
    pub fn pause_after(&mut self, key: &ObjectKey, error: &ClientError) -> Duration {
        if error.is_conflict() {
            return SETTLE;
        }
        if self.is_new(key, error) {
            tracing::warn!("status of {key}: {error}");
        }
        RETRY
    }

    /// Whether it is the first failure of its sort for objects of that kind in that namespace.
    fn is_new(&mut self, key: &ObjectKey, error: &ClientError) -> bool {
        let sort = discriminant(error);
        self.0.insert((key.kind.clone(), key.namespace.clone()), sort) != Some(sort)
    }

    /// Forgets them when all could be written.
    pub fn end_of_round(&mut self, failed: bool) {
        if !failed {
            self.0.clear();
        }
    }
}

/// Those of other revisions are theirs to mend.
fn with_messages(cache: &Cache, settings: &Settings) -> BTreeSet<ObjectKey> {
    let istio = KINDS.iter().filter(|(group, _)| is_istio(group));
    let objects = istio.flat_map(|(group, kind)| cache.list(group, kind));
    objects.filter(|o| settings.reads(o) && !messages_of(&o.body).is_empty()).map(|o| o.key()).collect()
}

fn messages_of(body: &serde_json::Map<String, Value>) -> Vec<Value> {
    let messages = body.get("status").and_then(|s| s.get("validationMessages")).and_then(Value::as_array);
    messages.cloned().unwrap_or_default()
}

fn is_istio(group: &str) -> bool {
    group.ends_with(".istio.io")
}

/// Messages by object, for Istio's kinds alone: the status of others is not ours.
fn by_object(warnings: &[Warning]) -> BTreeMap<ObjectKey, Vec<Message>> {
    let mut out: BTreeMap<ObjectKey, Vec<Message>> = BTreeMap::new();
    for warning in warnings {
        let Some((group, kind)) = KINDS.iter().find(|(g, k)| is_istio(g) && *k == warning.at.kind) else {
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
            let text = match warning.at.path.as_str() {
                "" => warning.message.clone(),
                path => format!("{path}: {}", warning.message),
            };
            messages.push(Message { code: warning.code, text });
        }
    }
    out
}

async fn put(client: &ApiClient, cache: &Cache, key: &ObjectKey, messages: &[Message]) -> Result<(), ClientError> {
    let (Some(object), Some(kind)) = (cache.get(key), by_kind(&key.group, &key.kind)) else { return Ok(()) };
    let values: Vec<Value> = messages.iter().map(Message::to_value).collect();
    let old = messages_of(&object.body);
    let conditions = conditions(&object, messages);
    if old == values && conditions.is_none() {
        return Ok(());
    }
    let list = if values.is_empty() { Value::Null } else { Value::Array(values.clone()) };
    let mut status = json!({"validationMessages": list});
    if let Some(conditions) = conditions {
        status["conditions"] = conditions;
        status["observedGeneration"] = json!(object.metadata.generation);
    }
    match client.patch_status_of(kind, &object, &status).await {
        Err(error) if error.is_not_found() => return Ok(()),
        written => written?,
    };
    if let Some((new, _)) = messages.iter().zip(&values).find(|(_, value)| !old.contains(value)) {
        events::warn(client, &object, analyzer(new.code).0, &new.text).await;
    }
    Ok(())
}

/// The object's conditions with ours among them, when they are not so already.
fn conditions(object: &Object, messages: &[Message]) -> Option<Value> {
    let held = object.body.get("status").and_then(|s| s.get("conditions")).and_then(Value::as_array);
    let mut all = held.cloned().unwrap_or_default();
    let ours = all.iter().position(|c| c.get("type").and_then(Value::as_str) == Some(CONDITION));
    let mut wanted = condition(messages);
    let old = ours.map(|at| all.remove(at));
    let same = |field: &str| old.as_ref().and_then(|o| o.get(field)) == wanted.get(field);
    if old.is_none() && messages.is_empty() || ["status", "reason", "message"].into_iter().all(same) {
        return None;
    }
    let since = old.as_ref().filter(|_| same("status")).and_then(|o| o.get("lastTransitionTime")).cloned();
    let now = json!(format!("{:.0}", jiff::Timestamp::now()));
    wanted.insert("lastTransitionTime".into(), since.unwrap_or_else(|| now.clone()));
    wanted.insert("lastProbeTime".into(), now);
    all.push(Value::Object(wanted));
    Some(Value::Array(all))
}

/// An object with errors is not in force; one with warnings is, and what it refers to in vain is told.
fn condition(messages: &[Message]) -> Map<String, Value> {
    let refused = messages.iter().any(Message::is_error);
    let reason = messages.iter().max_by_key(|m| m.is_error()).map_or("Accepted", |m| analyzer(m.code).0);
    let texts: Vec<&str> = messages.iter().map(|m| m.text.as_str()).collect();
    let text = texts.join("\n");
    let message = events::shortened(&text, MAX_CONDITION);
    let fields = [
        ("type", json!(CONDITION)),
        ("status", json!(if refused { "False" } else { "True" })),
        ("reason", json!(reason)),
        ("message", json!(message)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tokio::net::TcpListener;
    use weft_apiserver::{AdminToken, ApiServer, ApiServerOptions};
    use weft_store::MemoryStore;

    #[test]
    fn a_condition_says_whether_the_object_is_in_force() {
        let message = |code, text: &str| Message { code, text: text.into() };
        let object = |status: Value| -> Object {
            let fields = json!({"apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "status": status});
            serde_json::from_value(fields).unwrap()
        };
        assert_eq!(conditions(&object(json!({})), &[]), None, "nothing wrong, nothing written");
        let other = json!({"type": "Other", "status": "True"});
        let found = object(json!({"conditions": [other]}));
        let written = conditions(&found, &[message("IST0101", "a"), message("IST0106", "b")]).unwrap();
        assert_eq!(written[0], other, "conditions of others stay");
        assert_eq!((&written[1]["status"], &written[1]["message"]), (&json!("False"), &json!("a\nb")));
        assert_eq!(written[1]["reason"], "SchemaValidationError");
        let held = object(json!({"conditions": written}));
        assert_eq!(conditions(&held, &[message("IST0101", "a"), message("IST0106", "b")]), None, "already so");
        let mended = conditions(&held, &[]).unwrap();
        assert_eq!((&mended[1]["status"], &mended[1]["reason"]), (&json!("True"), &json!("Accepted")));
        let warned = conditions(&object(json!({})), &[message("IST0101", "a")]).unwrap();
        assert_eq!(warned[0]["status"], "True", "what only warns is in force");
    }

    #[test]
    fn a_missing_right_is_told_of_once() {
        let key = |namespace: &str, name: &str| ObjectKey {
            group: "networking.istio.io".into(),
            kind: "Sidecar".into(),
            namespace: namespace.into(),
            name: name.into(),
        };
        let refused = |name: &str| ClientError::Forbidden(format!("sidecars {name:?} is forbidden"));
        let mut told = Told::default();
        assert!(told.is_new(&key("n", "a"), &refused("a")));
        assert!(!told.is_new(&key("n", "b"), &refused("b")) && !told.is_new(&key("n", "a"), &refused("a")));
        assert!(told.is_new(&key("m", "a"), &refused("a")), "rights are of namespaces");
        assert!(told.is_new(&key("n", "a"), &ClientError::Conflict(String::new())), "another failure");
        told.end_of_round(true);
        assert!(!told.is_new(&key("m", "a"), &refused("a")));
        told.end_of_round(false);
        assert!(told.is_new(&key("m", "a"), &refused("a")));
    }

    #[tokio::test]
    async fn old_messages_go_once_the_api_server_is_back() {
        const TOKEN: &str = "administrator-of-the-test";
        let address = SocketAddr::from(([127, 0, 0, 1], weft_test_ports::free_port()));
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
        tokio::time::timeout(Duration::from_secs(60), clean).await.expect("the messages go");
        writer.abort();
        served.abort();
    }
}
