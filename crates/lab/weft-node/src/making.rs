//! How the controllers' pods come into being: by the way of every request, with the hooks of the lab and the webhooks that are
//! registered. A webhook may take its time, or not be there yet: the controllers do not wait for it. They ask, go on, and
//! see the pod when it is there.
//!
//! A pod that is refused is asked for again after a pause that grows. So the order of a cluster holds in the lab too: pods
//! that are to have a proxy wait for the control plane, whose webhook says `failurePolicy: Fail`.

use crate::controllers::objects::uid;
use crate::controllers::{Asked, PodMaker};
use crate::pods::events::{self, ObjectEvent};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore};
use weft_apiserver::{ApiError, ApiServer, Strictness, User};
use weft_k8s_api::Object;

/// Pause after a refusal, and the longest one. The first are short: when a lab starts, the webhook is about to come.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(2));
/// How long a webhook may be missing before that is worth an event.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pods that are made at the same time: each may be a connection to a webhook.
const AT_ONCE: usize = 16;

/// The controllers' way to the API server.
pub struct LabPods {
    shared: Arc<Shared>,
}

struct Shared {
    server: ApiServer,
    /// By the uid of the owner.
    owners: Mutex<HashMap<String, Owner>>,
    turns: Semaphore,
    freed: Notify,
}

/// How the requests for one owner stand.
#[derive(Default)]
struct Owner {
    /// Pods asked for and not there yet.
    asked: usize,
    /// Since when it has been refused, how long the next pause is, and what was said last.
    refused: Option<Refused>,
}

struct Refused {
    since: Instant,
    pause: Duration,
    message: String,
    /// Somebody has said no, or nobody could be asked for longer than is usual at a start.
    settled: bool,
}

impl LabPods {
    /// Over this server.
    pub fn new(server: ApiServer) -> Self {
        let (owners, turns, freed) = (Mutex::default(), Semaphore::new(AT_ONCE), Notify::new());
        Self { shared: Arc::new(Shared { server, owners, turns, freed }) }
    }
}

impl PodMaker for LabPods {
    fn create(&self, owner: &Object, pod: Object) {
        let uid = uid(owner).to_string();
        self.shared.owners().entry(uid.clone()).or_default().asked += 1;
        let (shared, owner) = (Arc::clone(&self.shared), owner.clone());
        tokio::spawn(async move { shared.make(&uid, &owner, pod).await });
    }

    fn asked(&self) -> Asked {
        let owners = self.shared.owners();
        let refused = |owner: &Owner| owner.refused.as_ref().filter(|r| r.settled).map(|r| r.message.clone());
        Asked(owners.iter().map(|(uid, owner)| (uid.clone(), (owner.asked, refused(owner)))).collect())
    }

    fn freed(&self) -> &Notify {
        &self.shared.freed
    }
}

impl Shared {
    fn owners(&self) -> MutexGuard<'_, HashMap<String, Owner>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn make(&self, uid: &str, owner: &Object, pod: Object) {
        let made = {
            // The semaphore is never closed.
            let _turn = self.turns.acquire().await;
            self.server.create(&controller(&owner.kind), pod, false, Strictness::Ignore).await
        };
        match made {
            Ok(_) => drop(self.owners().remove_refusal(uid)),
            Err(error) => {
                let pause = self.refused(uid, owner, &error);
                tokio::time::sleep(pause).await;
            }
        }
        self.owners().done(uid);
        self.freed.notify_one();
    }

    /// Notes a refusal; returns how long to wait before the next try.
    fn refused(&self, uid: &str, owner: &Object, error: &ApiError) -> Duration {
        let message = format!("Error creating: {}", error.message);
        let (pause, news) = {
            let mut owners = self.owners();
            let known = owners.entry(uid.to_string()).or_default();
            let refused = known.refused.get_or_insert_with(|| Refused {
                since: Instant::now(),
                pause: PAUSES.0,
                message: String::new(),
                settled: false,
            });
            let pause = refused.pause;
            refused.pause = (pause * 3 / 2).min(PAUSES.1);
            let settled = error.code < 500 || refused.since.elapsed() > PATIENCE;
            let news = settled && (!refused.settled || refused.message != message);
            refused.settled |= settled;
            refused.message.clone_from(&message);
            (pause, news)
        };
        // Once for each reason: an event is a change of the store, and wakes everybody up.
        if news {
            tracing::warn!("{} has no pod: {message}", owner.key());
            let event = ObjectEvent { warning: true, reason: "FailedCreate", message: &message, container: None };
            events::record(self.server.store(), owner, &event);
        }
        pause
    }
}

/// What is done to the table of owners in one place each.
trait Owners {
    fn remove_refusal(&mut self, uid: &str) -> Option<Refused>;
    fn done(&mut self, uid: &str);
}

impl Owners for HashMap<String, Owner> {
    fn remove_refusal(&mut self, uid: &str) -> Option<Refused> {
        self.get_mut(uid)?.refused.take()
    }

    /// One request less. An owner that is refused stays known, for its pause; one that is gone is asked for no more, and is
    /// forgotten when there are many.
    fn done(&mut self, uid: &str) {
        if let Some(owner) = self.get_mut(uid) {
            owner.asked = owner.asked.saturating_sub(1);
        }
        let old = |refused: &Refused| refused.since.elapsed() > Duration::from_secs(600);
        let many = self.len() > 256;
        self.retain(|_, owner| owner.asked > 0 || owner.refused.as_ref().is_some_and(|r| !many || !old(r)));
    }
}

/// The account that acts for a kind of owner, under Kubernetes' name.
fn controller(kind: &str) -> User {
    let name = format!("{}-controller", kind.to_lowercase());
    let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"];
    User {
        name: format!("system:serviceaccount:kube-system:{name}"),
        groups: groups.map(String::from).to_vec(),
        ..User::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::objects::{list, owned};
    use serde_json::{Value, json};
    use weft_apiserver::ApiServerOptions;
    use weft_store::MemoryStore;

    fn object(value: Value) -> Object {
        serde_json::from_value(value).unwrap()
    }

    fn set() -> Object {
        object(json!({"apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": "web-5d4f", "namespace": "default", "uid": "u1"}}))
    }

    fn pod() -> Object {
        let mut pod = owned("v1", "Pod", &set(), [("app".to_string(), "web".to_string())].into());
        pod.metadata.generate_name = Some("web-5d4f-".into());
        pod.body.insert("spec".into(), json!({"containers": [{"name": "web", "image": "web"}]}));
        pod
    }

    /// A webhook of a service that does not exist.
    fn webhook() -> Object {
        object(json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "injector"}, "webhooks": [{
                "name": "pods.injector.example", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"service": {"name": "injector", "namespace": "default"}}, "failurePolicy": "Fail",
                "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]}]}))
    }

    async fn until(what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn pods_wait_for_the_webhook_and_say_so() {
        let store = MemoryStore::new();
        let server = ApiServer::new(store.clone(), ApiServerOptions::default()).unwrap();
        let user = User::admin("test");
        let (made, _) = server.create(&user, webhook(), false, Strictness::Strict).await.unwrap();
        let maker = LabPods::new(server);
        let said = || list(&store, "", "Event").first().map(|event| event.body.clone());
        let begun = Instant::now();
        // As a controller does: whenever nothing is under way, ask again.
        until("the event", || {
            if maker.asked().pods(&set()) == 0 {
                maker.create(&set(), pod());
            }
            said().is_some()
        })
        .await;
        assert!(begun.elapsed() >= PATIENCE, "what is missing at the start may be about to come");
        let event = said().unwrap();
        assert_eq!(
            (&event["reason"], &event["involvedObject"]["kind"]),
            (&json!("FailedCreate"), &json!("ReplicaSet"))
        );
        let message = event["message"].as_str().unwrap();
        assert!(message.contains("pods.injector.example") && message.contains(r#"service "injector""#), "{message}");
        assert_eq!(maker.asked().refusal(&set()).as_deref(), Some(message));
        assert!(list(&store, "", "Pod").is_empty());
        // The webhook goes, the pod comes, and nothing is left of the refusal.
        store.delete(&made.key(), &weft_store::DeleteOptions::default()).unwrap();
        until("the pod", || {
            if maker.asked().pods(&set()) == 0 && list(&store, "", "Pod").is_empty() {
                maker.create(&set(), pod());
            }
            list(&store, "", "Pod").len() == 1
        })
        .await;
        until("the table is empty", || maker.asked().0.is_empty()).await;
        assert_eq!(list(&store, "", "Pod").len(), 1);
    }
}
