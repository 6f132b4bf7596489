//! ConfigMap `istio-ca-root-cert` in every namespace: the root certificates that proxies trust the control plane and each other
//! by; revocation lists, and roots of other trust domains, when there are any. Agents take all three from there, so that they
//! change together. Beside it `istio-ca-crl` (or as the settings name it) with the revocation lists, for agents of Istio's, which look for them there.

use crate::federation::Trust;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use weft_core::well_known::{ROOT_CERT_CONFIG_MAP, ROOT_CERT_KEY};
use weft_k8s_api::Object;
use weft_store::client::WriteOptions;
use weft_store::{ApiClient, Cache};

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
/// when there are lists, and emptied when there are none any more.
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
    loop {
        let wanted = contents(&trust.borrow_and_update().clone(), &crl_map);
        let mut failed = false;
        for namespace in cache.list("", "Namespace") {
            if namespace.metadata.deletion_timestamp.is_some() || SKIPPED.contains(&namespace.name()) {
                continue;
            }
            for content in &wanted {
                if let Err(error) = ensure(&client, &cache, namespace.name(), content).await {
                    tracing::warn!("ConfigMap {}/{}: {error}", namespace.name(), content.name);
                    failed = true;
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
            () = pause => {}
            more = changed.changed() => match more {
                Ok(()) => tokio::time::sleep(GATHER).await,
                Err(_) => return,
            },
            more = trust.changed() => if more.is_err() { return },
        }
    }
}

/// The roots of other trust domains that workloads have by now; empty when there are none. Asks until there is an answer: who
/// cannot tell must not publish fewer than there are.
pub(crate) async fn bundles(client: ApiClient, namespace: String) -> String {
    let Some(kind) = weft_k8s_api::kinds::by_kind("", "ConfigMap") else { return String::new() };
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

async fn ensure(
    client: &ApiClient,
    cache: &Cache,
    namespace: &str,
    content: &Content,
) -> Result<(), weft_store::ClientError> {
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
        Some(old) => {
            let mut object = (*old).clone();
            object.body.insert("data".into(), Value::Object(content.data.clone()));
            object.metadata.annotations.get_or_insert_default().insert(DIGEST.into(), content.digest.clone());
            client.replace(&object, &options).await
        }
    };
    match written {
        // Someone else wrote it, or the namespace went away: what is right now comes with the next change.
        Err(weft_store::ClientError::AlreadyExists(_)) => Ok(()),
        Err(error) if error.is_conflict() || error.is_not_found() => Ok(()),
        other => other.map(|_| ()),
    }
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
