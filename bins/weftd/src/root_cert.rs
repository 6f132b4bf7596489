//! ConfigMap `istio-ca-root-cert` in every namespace: the root certificates that proxies trust the control plane and each other
//! by; revocation lists, and roots of other trust domains, when there are any. Agents take all three from there, so that they
//! change together. Beside it `istio-ca-crl` with the revocation lists, for agents of Istio's, which look for them there.

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
/// ConfigMap of the revocation lists, by Istio's name. It is made when there are lists, and emptied when there are none any more.
const CRL_CONFIG_MAP: &str = "istio-ca-crl";
/// Key of the roots of single trust domains.
const BUNDLES_KEY: &str = "trust-bundles.json";
/// Annotation with a digest of all that was written: the cache keeps of a ConfigMap only what the model reads.
const DIGEST: &str = "weft.dev/content-sha256";
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(2);
/// Pause after a change: where hundreds of pods change each second, the namespaces need not be looked at as often.
const GATHER: Duration = Duration::from_millis(50);

/// Keeps the ConfigMaps right until the cache or the source of trust goes away.
pub(crate) async fn publish(client: ApiClient, cache: Arc<Cache>, mut trust: watch::Receiver<Arc<Trust>>) {
    let mut changed = cache.changed();
    // Nothing is known yet: what an earlier process has published stays until it is.
    if trust.wait_for(|trust| !trust.roots.is_empty()).await.is_err() {
        return;
    }
    loop {
        let wanted = contents(&trust.borrow_and_update().clone());
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

/// The roots of other trust domains that workloads have by now; empty when there are none, or they cannot be told soon.
pub(crate) async fn bundles(client: ApiClient, namespace: String) -> String {
    let Some(kind) = weft_k8s_api::kinds::by_kind("", "ConfigMap") else { return String::new() };
    let read = client.get(kind, &namespace, ROOT_CERT_CONFIG_MAP);
    match tokio::time::timeout(RETRY, read).await {
        Ok(Ok(object)) => {
            object.body.get("data").and_then(|data| data[BUNDLES_KEY].as_str()).unwrap_or_default().to_owned()
        }
        _ => String::new(),
    }
}

/// What is to be in a ConfigMap, and the digest of it.
struct Content {
    name: &'static str,
    data: Map<String, Value>,
    digest: String,
}

impl Content {
    fn new(name: &'static str, all: &[(&str, &String)]) -> Self {
        let some = all.iter().filter(|(_, text)| !text.is_empty());
        let data: Map<String, Value> = some.map(|(key, text)| (key.to_string(), json!(text))).collect();
        let digest = weft_tls::hex(&weft_tls::sha256(&serde_json::to_vec(&data).unwrap_or_default()));
        Self { name, data, digest }
    }
}

fn contents(trust: &Trust) -> [Content; 2] {
    let all = [(ROOT_CERT_KEY, &trust.roots), (CRL_KEY, &trust.crl), (BUNDLES_KEY, &trust.bundles)];
    [Content::new(ROOT_CERT_CONFIG_MAP, &all), Content::new(CRL_CONFIG_MAP, &[(CRL_KEY, &trust.crl)])]
}

async fn ensure(
    client: &ApiClient,
    cache: &Cache,
    namespace: &str,
    content: &Content,
) -> Result<(), weft_store::ClientError> {
    let old = cache.find("", "ConfigMap", namespace, content.name);
    if old.is_none() && content.data.is_empty() {
        return Ok(());
    }
    let right = |object: &Arc<Object>| {
        let roots = object.body.get("data").and_then(|data| data.get(ROOT_CERT_KEY));
        roots == content.data.get(ROOT_CERT_KEY) && object.annotation(DIGEST) == Some(&content.digest)
    };
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
    object.metadata.name = Some(content.name.into());
    object.metadata.namespace = Some(namespace.to_string());
    object.metadata.labels = Some([("istio.io/config".to_string(), "true".to_string())].into());
    object.metadata.annotations = Some([(DIGEST.to_string(), content.digest.clone())].into());
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_apiserver::{AdminToken, ApiServer, ApiServerOptions};
    use weft_store::MemoryStore;

    const TOKEN: &str = "token of an administrator";

    /// A process that has just started knows nothing, and must not say so to workloads.
    #[tokio::test]
    async fn nothing_is_taken_back_before_something_is_known() {
        let namespaces = vec!["shop".into()];
        let admin_tokens = vec![AdminToken { token: TOKEN.into(), user: "admin".into() }];
        let options = ApiServerOptions { namespaces, admin_tokens, ..ApiServerOptions::default() };
        let api = ApiServer::new(MemoryStore::new(), options).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = ApiClient::connect(&format!("http://{}", listener.local_addr().unwrap()), Some(TOKEN)).unwrap();
        let server = tokio::spawn(async move { api.serve(listener, std::future::pending()).await });
        let trust = |roots: &str, crl: &str| Trust { roots: roots.into(), crl: crl.into(), ..Trust::default() };
        let before = Content::new(ROOT_CERT_CONFIG_MAP, &[(ROOT_CERT_KEY, &"before".to_string())]);
        let before = client.create(&config_map("shop", &before), &WriteOptions::default()).await.unwrap().object;
        let namespace = weft_k8s_api::kinds::by_kind("", "Namespace").unwrap();
        let shop = client.get(namespace, "", "shop").await.unwrap();
        let cache = Arc::new(Cache::from_objects([before, shop]));
        let (tell, told) = watch::channel(Arc::new(Trust::default()));
        let task = tokio::spawn(publish(client.clone(), cache.clone(), told));
        let kind = weft_k8s_api::kinds::by_kind("", "ConfigMap").unwrap();
        let now = async |name: &str| client.get(kind, "shop", name).await.ok().map(|map| map.body["data"].clone());
        // Time for many requests, of which it would need one.
        for _ in 0..30 {
            assert_eq!(now(ROOT_CERT_CONFIG_MAP).await.unwrap()[ROOT_CERT_KEY], "before");
        }
        tell.send_replace(Arc::new(trust("now", "list")));
        let end = tokio::time::Instant::now() + Duration::from_secs(10);
        while now(CRL_CONFIG_MAP).await.is_none_or(|data| data[CRL_KEY] != "list") {
            assert!(tokio::time::Instant::now() < end, "the lists are published");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let data = now(ROOT_CERT_CONFIG_MAP).await.unwrap();
        assert_eq!((&data[ROOT_CERT_KEY], &data[CRL_KEY]), (&json!("now"), &json!("list")));
        task.abort();
        server.abort();
    }
}
