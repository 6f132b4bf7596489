//! ConfigMap `istio-ca-root-cert` in every namespace: the root certificates that proxies trust the control plane and each other
//! by; revocation lists, and roots of other trust domains, when there are any. Agents take all three from there, so that they
//! change together. Beside it `istio-ca-crl` (or as the settings name it) with the revocation lists, for agents of Istio's, which look for them there.

use crate::federation::Trust;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use weft_core::well_known::{ROOT_CERT_CONFIG_MAP, ROOT_CERT_KEY};
use weft_k8s_api::Object;
use weft_k8s_api::kinds::by_kind;
use weft_store::client::WriteOptions;
use weft_store::{ApiClient, Cache, ClientError};

/// Namespaces that run no workloads of the mesh.
const SKIPPED: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// Key of the revocation lists.
const CRL_KEY: &str = "ca-crl.pem";
/// Key of the roots of single trust domains.
const BUNDLES_KEY: &str = "trust-bundles.json";
/// Keys that are ours.
const KEYS: [&str; 3] = [ROOT_CERT_KEY, CRL_KEY, BUNDLES_KEY];
/// Annotation with a digest of all that was written. In the cache, which keeps of a ConfigMap only what the model reads, it is
/// that of what is there ([`note_content`]).
const DIGEST: &str = "weft.dev/content-sha256";
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(2);
/// Time for the API server to answer.
const READ: Duration = Duration::from_secs(2);
/// Pause after a change: where hundreds of pods change each second, the namespaces need not be looked at as often.
const GATHER: Duration = Duration::from_millis(50);

/// Keeps the ConfigMaps right until the cache or the source of trust goes away. That of the revocation lists, `crl_map`, is made
/// when there are lists, and emptied when there are none any more. A ConfigMap of that name that somebody else made for something
/// else is left as it is.
pub(crate) async fn publish(
    client: ApiClient,
    cache: Arc<Cache>,
    mut trust: watch::Receiver<Arc<Trust>>,
    crl_map: String,
) {
    let mut changed = cache.changed();
    // Nothing is known yet: what an earlier process has published stays until it is.
    if trust.wait_for(|trust| !trust.roots.is_empty()).await.is_err() {
        return;
    }
    let mut seen = Seen::default();
    loop {
        let wanted = contents(&trust.borrow_and_update().clone(), &crl_map);
        let again = seen.look(&client, &cache, &wanted).await;
        let pause = async {
            match again {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = pause => {}
            more = changed.changed() => match more {
                Ok(()) => tokio::time::sleep(GATHER).await,
                Err(_) => return,
            },
            more = trust.changed() => if more.is_err() { return },
        }
    }
}

/// What is remembered from one look to the next.
#[derive(Debug, Default)]
struct Seen {
    /// What could not be written, by namespace and name: when it is tried again, and why.
    failed: BTreeMap<(String, String), (Instant, String)>,
    /// Versions of ConfigMaps that have the name of ours and are not, by namespace.
    foreign: BTreeMap<String, Option<String>>,
}

impl Seen {
    /// Puts right what is wrong in any namespace. Returns when what failed is to be tried again; until then changes elsewhere are
    /// no reason to try it. Each failure is told of once.
    async fn look(&mut self, client: &ApiClient, cache: &Cache, wanted: &[Content]) -> Option<Instant> {
        let begun = Instant::now();
        let namespaces = cache.list("", "Namespace");
        // They come in the order of their names.
        let is_there = |name: &str| namespaces.binary_search_by(|namespace| namespace.name().cmp(name)).is_ok();
        self.failed.retain(|(namespace, _), _| is_there(namespace));
        self.foreign.retain(|namespace, _| is_there(namespace));
        for namespace in &namespaces {
            let name = namespace.name();
            if namespace.metadata.deletion_timestamp.is_some() || SKIPPED.contains(&name) {
                continue;
            }
            for content in wanted {
                let key = (name.to_owned(), content.name.clone());
                if self.failed.get(&key).is_some_and(|(again, _)| *again > Instant::now()) {
                    continue;
                }
                let Err(error) = self.ensure(client, cache, name, content).await else {
                    self.failed.remove(&key);
                    continue;
                };
                let why = error.to_string();
                if self.failed.get(&key).is_none_or(|(_, said)| *said != why) {
                    tracing::warn!("ConfigMap {name}/{}: {why}", content.name);
                }
                let again = Instant::now() + RETRY;
                self.failed.insert(key, (again, why));
                if error.is_unreachable() {
                    // Nor is it for the other namespaces: each would wait as long for no answer.
                    return Some(again);
                }
            }
        }
        // What was due and is not wanted any more, as in a namespace that is on its way out, is no failure any more.
        self.failed.retain(|_, (again, _)| *again > begun);
        self.failed.values().map(|(again, _)| *again).min()
    }

    async fn ensure(
        &mut self,
        client: &ApiClient,
        cache: &Cache,
        namespace: &str,
        content: &Content,
    ) -> Result<(), ClientError> {
        let old = cache.find("", "ConfigMap", namespace, &content.name);
        if old.is_none() && content.data.is_empty() {
            return Ok(());
        }
        let right = |object: &Arc<Object>| object.annotation(DIGEST) == Some(&content.digest);
        if old.as_ref().is_some_and(right) {
            return Ok(());
        }
        let options = WriteOptions::default();
        let written = match old {
            None => client.create(&config_map(namespace, content), &options).await,
            Some(old) => match self.is_foreign(client, &old, content).await {
                Ok(true) => return Ok(()),
                Ok(false) => client.replace(&changed(&old, content), &options).await,
                Err(error) => Err(error),
            },
        };
        match written {
            // Someone else wrote it, or the namespace went away: what is right now comes with the next change.
            Err(ClientError::AlreadyExists(_)) => Ok(()),
            Err(error) if error.is_conflict() || error.is_not_found() => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Whether a ConfigMap is somebody else's. The name of the lists is the operator's choice, and may by mistake be one that is
    /// taken: ours says so, and Istio's has the lists alone. The cache has not all that is in it, so the API server is asked.
    async fn is_foreign(&mut self, client: &ApiClient, old: &Object, content: &Content) -> Result<bool, ClientError> {
        if content.name == ROOT_CERT_CONFIG_MAP || old.annotation(DIGEST).is_some() {
            return Ok(false);
        }
        let (namespace, version) = (old.namespace(), &old.metadata.resource_version);
        if self.foreign.get(namespace).is_some_and(|known| known == version && version.is_some()) {
            return Ok(true);
        }
        let kind = by_kind("", "ConfigMap").ok_or_else(|| ClientError::NoSuchKind("configmaps".into()))?;
        let held = client.get(kind, namespace, old.name()).await?;
        let data = held.body.get("data").and_then(Value::as_object);
        let lists_alone = data.is_some_and(|data| data.keys().eq([CRL_KEY])) && !held.body.contains_key("binaryData");
        if lists_alone {
            self.foreign.remove(namespace);
            return Ok(false);
        }
        if self.foreign.insert(namespace.to_owned(), version.clone()).is_none() {
            let name = old.name();
            tracing::warn!(
                "ConfigMap {namespace}/{name} is not ours and stays as it is: the revocation lists are not published \
                 there; name another one with PILOT_CRL_CONFIGMAP"
            );
        }
        Ok(true)
    }
}

/// The roots of other trust domains that workloads have by now; empty when there are none. Asks until there is an answer: who
/// cannot tell must not publish fewer than there are.
pub(crate) async fn bundles(client: ApiClient, namespace: String) -> String {
    let Some(kind) = by_kind("", "ConfigMap") else { return String::new() };
    loop {
        let read = client.get(kind, &namespace, ROOT_CERT_CONFIG_MAP);
        match tokio::time::timeout(READ, read).await {
            Ok(Ok(object)) => {
                let held = object.body.get("data").and_then(|data| data[BUNDLES_KEY].as_str());
                return held.unwrap_or_default().to_owned();
            }
            Ok(Err(error)) if error.is_not_found() => return String::new(),
            Ok(Err(error)) => tracing::warn!("ConfigMap {namespace}/{ROOT_CERT_CONFIG_MAP}: {error}; trying again"),
            Err(_) => tracing::warn!("ConfigMap {namespace}/{ROOT_CERT_CONFIG_MAP}: no answer; trying again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Puts in place of what a ConfigMap of ours says of its content the digest of what is there: whoever edits it changes the one
/// and not the other.
pub(crate) fn note_content(object: &mut Object) {
    if object.kind != "ConfigMap" || object.annotation(DIGEST).is_none() {
        return;
    }
    let now = digest(object.body.get("data").and_then(Value::as_object));
    object.metadata.annotations.get_or_insert_default().insert(DIGEST.into(), now);
}

/// The digest of what is under our keys, in whatever order.
fn digest(data: Option<&Map<String, Value>>) -> String {
    let held: Vec<_> = KEYS.iter().map(|key| data.and_then(|data| data.get(*key))).collect();
    weft_tls::hex(&weft_tls::sha256(&serde_json::to_vec(&held).unwrap_or_default()))
}

/// What is to be in a ConfigMap, and the digest of it.
struct Content {
    name: String,
    data: Map<String, Value>,
    digest: String,
}

impl Content {
    fn new(name: &str, all: &[(&str, &String)]) -> Self {
        let some = all.iter().filter(|(_, text)| !text.is_empty());
        let data: Map<String, Value> = some.map(|(key, text)| (key.to_string(), json!(text))).collect();
        let digest = digest(Some(&data));
        Self { name: name.to_owned(), data, digest }
    }
}

fn contents(trust: &Trust, crl_map: &str) -> [Content; 2] {
    let all = [(ROOT_CERT_KEY, &trust.roots), (CRL_KEY, &trust.crl), (BUNDLES_KEY, &trust.bundles)];
    [Content::new(ROOT_CERT_CONFIG_MAP, &all), Content::new(crl_map, &[(CRL_KEY, &trust.crl)])]
}

/// The ConfigMap with our content in place of what is there.
fn changed(old: &Object, content: &Content) -> Object {
    let mut object = old.clone();
    object.body.insert("data".into(), Value::Object(content.data.clone()));
    object.metadata.annotations.get_or_insert_default().insert(DIGEST.into(), content.digest.clone());
    object
}

fn config_map(namespace: &str, content: &Content) -> Object {
    let mut object = Object {
        api_version: "v1".into(),
        kind: "ConfigMap".into(),
        metadata: Default::default(),
        body: Map::from_iter([("data".to_string(), Value::Object(content.data.clone()))]),
    };
    object.metadata.name = Some(content.name.clone());
    object.metadata.namespace = Some(namespace.to_string());
    object.metadata.labels = Some([("istio.io/config".to_string(), "true".to_string())].into());
    object.metadata.annotations = Some([(DIGEST.to_string(), content.digest.clone())].into());
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;
    use weft_apiserver::{AdminToken, ApiServer, ApiServerOptions};
    use weft_store::MemoryStore;

    const TOKEN: &str = "token of an administrator";
    const CRL_MAP: &str = "lists";

    /// An API server with namespace `shop`; it answers from when the listener is served.
    async fn api() -> (TcpListener, ApiClient, impl FnOnce(TcpListener) -> JoinHandle<()>) {
        let namespaces = vec!["shop".into()];
        let admin_tokens = vec![AdminToken { token: TOKEN.into(), user: "admin".into() }];
        let options = ApiServerOptions { namespaces, admin_tokens, ..ApiServerOptions::default() };
        let api = ApiServer::new(MemoryStore::new(), options).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = ApiClient::connect(&format!("http://{}", listener.local_addr().unwrap()), Some(TOKEN)).unwrap();
        let serve = move |listener| {
            tokio::spawn(async move {
                let _ = api.serve(listener, std::future::pending()).await;
            })
        };
        (listener, client, serve)
    }

    async fn data(client: &ApiClient, name: &str) -> Option<Value> {
        let kind = weft_k8s_api::kinds::by_kind("", "ConfigMap").unwrap();
        client.get(kind, "shop", name).await.ok().map(|map| map.body["data"].clone())
    }

    async fn eventually(client: &ApiClient, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) {
        let end = tokio::time::Instant::now() + Duration::from_secs(30);
        while !data(client, name).await.is_some_and(|data| wanted(&data)) {
            assert!(tokio::time::Instant::now() < end, "{what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn trust(roots: &str, crl: &str) -> Trust {
        Trust { roots: roots.into(), crl: crl.into(), ..Trust::default() }
    }

    /// A process that has just started knows nothing, and must not say so to workloads.
    #[tokio::test]
    async fn nothing_is_taken_back_before_something_is_known() {
        let (listener, client, serve) = api().await;
        let server = serve(listener);
        let before = Content::new(ROOT_CERT_CONFIG_MAP, &[(ROOT_CERT_KEY, &"before".to_string())]);
        let before = client.create(&config_map("shop", &before), &WriteOptions::default()).await.unwrap().object;
        let namespace = weft_k8s_api::kinds::by_kind("", "Namespace").unwrap();
        let shop = client.get(namespace, "", "shop").await.unwrap();
        let cache = Arc::new(Cache::from_objects([before, shop]));
        let (tell, told) = watch::channel(Arc::new(Trust::default()));
        let task = tokio::spawn(publish(client.clone(), cache.clone(), told, CRL_MAP.into()));
        // Time for many requests, of which it would need one.
        for _ in 0..30 {
            assert_eq!(data(&client, ROOT_CERT_CONFIG_MAP).await.unwrap()[ROOT_CERT_KEY], "before");
        }
        tell.send_replace(Arc::new(trust("now", "list")));
        eventually(&client, CRL_MAP, "the lists are published", |data| data[CRL_KEY] == "list").await;
        let data = data(&client, ROOT_CERT_CONFIG_MAP).await.unwrap();
        assert_eq!((&data[ROOT_CERT_KEY], &data[CRL_KEY]), (&json!("now"), &json!("list")));
        task.abort();
        server.abort();
    }

    /// As the cache sees them: trimmed. What is trimmed away is compared all the same.
    #[tokio::test]
    async fn lists_that_somebody_edits_or_deletes_come_back() {
        let (listener, client, serve) = api().await;
        let server = serve(listener);
        let namespace = weft_k8s_api::kinds::by_kind("", "Namespace").unwrap();
        let shop = client.get(namespace, "", "shop").await.unwrap();
        let cache = Arc::new(Cache::from_objects([shop]));
        let wanted = trust("roots", "list");
        let contents = contents(&wanted, CRL_MAP);
        let (_tell, told) = watch::channel(Arc::new(wanted.clone()));
        let task = tokio::spawn(publish(client.clone(), cache.clone(), told, CRL_MAP.into()));
        for content in &contents {
            eventually(&client, &content.name, "it is made", |data| data[CRL_KEY] == "list").await;
        }
        let kind = weft_k8s_api::kinds::by_kind("", "ConfigMap").unwrap();
        for edited in [Some("strange"), None] {
            for content in &contents {
                let mut object = client.get(kind, "shop", &content.name).await.unwrap();
                let data = object.body["data"].as_object_mut().unwrap();
                match edited {
                    Some(text) => _ = data.insert(CRL_KEY.into(), json!(text)),
                    None => _ = data.shift_remove(CRL_KEY),
                }
                let mut held = client.replace(&object, &WriteOptions::default()).await.unwrap().object;
                crate::source::trim(&mut held, "istio-system");
                assert!(held.body.get("data").is_none_or(|data| data[CRL_KEY].is_null()), "the cache has no lists");
                cache.put(Arc::new(held));
                eventually(&client, &content.name, "it is put right", |data| data[CRL_KEY] == "list").await;
            }
        }
        // What is right is left alone, whatever the order of its keys.
        let mut right = client.get(kind, "shop", ROOT_CERT_CONFIG_MAP).await.unwrap();
        let data: Map<String, Value> =
            right.body["data"].as_object().unwrap().iter().rev().map(|(k, v)| (k.clone(), v.clone())).collect();
        right.body.insert("data".into(), Value::Object(data));
        crate::source::trim(&mut right, "istio-system");
        assert_eq!(right.annotation(DIGEST), Some(contents[0].digest.as_str()));
        task.abort();
        server.abort();
    }

    /// The name that the operator gave for the lists is that of something else; or of Istio's, which has no digest.
    #[tokio::test]
    async fn what_is_somebody_elses_stays() {
        let (listener, client, serve) = api().await;
        let server = serve(listener);
        let kind = |kind: &str| by_kind("", kind).unwrap();
        let shop = client.get(kind("Namespace"), "", "shop").await.unwrap();
        for (there, stays) in [
            (json!({"data": {"settings": "theirs"}}), true),
            (json!({"data": {CRL_KEY: "old", "settings": "theirs"}}), true),
            (json!({"data": {CRL_KEY: "old"}, "binaryData": {"theirs": "AA=="}}), true),
            (json!({"data": {}}), true),
            (json!({"data": {CRL_KEY: "old"}}), false),
        ] {
            let mut object = config_map("shop", &Content::new(CRL_MAP, &[]));
            object.metadata.annotations = None;
            object.body = there.as_object().unwrap().clone();
            let written = client.create(&object, &WriteOptions::default()).await.unwrap().object;
            let mut held = written.clone();
            crate::source::trim(&mut held, "istio-system");
            let cache = Cache::from_objects([shop.clone(), held]);
            let mut seen = Seen::default();
            let lists = &contents(&trust("roots", "list"), CRL_MAP)[1..];
            for _ in 0..2 {
                assert_eq!(seen.look(&client, &cache, lists).await, None, "{there}");
            }
            let now = client.get(kind("ConfigMap"), "shop", CRL_MAP).await.unwrap();
            assert_eq!((now == written, seen.foreign.len()), (stays, usize::from(stays)), "{there}");
            assert!(stays || now.body["data"] == json!({CRL_KEY: "list"}), "{now:?}");
            client.delete(kind("ConfigMap"), "shop", CRL_MAP, &Default::default()).await.unwrap();
        }
        server.abort();
    }

    /// What is refused is tried again in time, not with every change of a busy cluster, and holds nothing else up.
    #[tokio::test]
    async fn what_fails_is_not_tried_with_every_change() {
        let (listener, client, serve) = api().await;
        let server = serve(listener);
        let shop = client.get(by_kind("", "Namespace").unwrap(), "", "shop").await.unwrap();
        // No name of a ConfigMap.
        let wanted =
            [Content::new("No Name", &[(CRL_KEY, &"list".into())]), Content::new("good", &[(CRL_KEY, &"list".into())])];
        let cache = Cache::from_objects([shop]);
        let mut seen = Seen::default();
        seen.look(&client, &cache, &wanted).await.unwrap();
        assert!(data(&client, "good").await.is_some());
        let again = Instant::now() + Duration::from_secs(600);
        seen.failed.values_mut().for_each(|(at, _)| *at = again);
        assert_eq!(seen.look(&client, &cache, &wanted).await, Some(again), "it was not tried");
        seen.failed.values_mut().for_each(|(again, _)| *again = Instant::now());
        assert_eq!(seen.look(&client, &cache, &wanted[1..]).await, None, "it is not wanted any more");
        server.abort();
    }

    /// An API server that does not answer has not said that there are no other domains.
    #[tokio::test]
    async fn what_workloads_have_is_asked_for_until_there_is_an_answer() {
        let (listener, client, serve) = api().await;
        let asked = tokio::spawn(bundles(client.clone(), "shop".into()));
        tokio::time::sleep(READ + RETRY / 2).await;
        assert!(!asked.is_finished(), "nobody has answered");
        let server = serve(listener);
        let held = Content::new(ROOT_CERT_CONFIG_MAP, &[(BUNDLES_KEY, &"theirs".to_string())]);
        assert_eq!(asked.await.unwrap(), "", "there is none");
        client.create(&config_map("shop", &held), &WriteOptions::default()).await.unwrap();
        let asked = tokio::time::timeout(Duration::from_secs(60), bundles(client, "shop".into()));
        assert_eq!(asked.await.unwrap(), "theirs");
        server.abort();
    }
}
