//! ConfigMap `istio-ca-root-cert` in every namespace: the root certificates that proxies trust the control plane by.

use serde_json::{Map, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use weft_ca::Authority;
use weft_core::well_known::{ROOT_CERT_CONFIG_MAP, ROOT_CERT_KEY};
use weft_k8s_api::Object;
use weft_store::client::WriteOptions;
use weft_store::{ApiClient, Cache};

/// Namespaces that run no workloads of the mesh.
const SKIPPED: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps the ConfigMaps right until the cache or the authority goes away.
pub(crate) async fn publish(client: ApiClient, cache: Arc<Cache>, mut authority: watch::Receiver<Arc<Authority>>) {
    let mut changed = cache.changed();
    loop {
        let root = authority.borrow_and_update().root_pem().to_string();
        let mut failed = false;
        for namespace in cache.list("", "Namespace") {
            if namespace.metadata.deletion_timestamp.is_some() || SKIPPED.contains(&namespace.name()) {
                continue;
            }
            if let Err(error) = ensure(&client, &cache, namespace.name(), &root).await {
                tracing::warn!("ConfigMap {}/{ROOT_CERT_CONFIG_MAP}: {error}", namespace.name());
                failed = true;
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
            more = changed.changed() => if more.is_err() { return },
            more = authority.changed() => if more.is_err() { return },
        }
    }
}

async fn ensure(client: &ApiClient, cache: &Cache, namespace: &str, root: &str) -> Result<(), weft_store::ClientError> {
    let old = cache.find("", "ConfigMap", namespace, ROOT_CERT_CONFIG_MAP);
    let held = old.as_ref().and_then(|o| o.body.get("data")?.get(ROOT_CERT_KEY)?.as_str().map(str::to_string));
    if held.as_deref() == Some(root) {
        return Ok(());
    }
    let options = WriteOptions::default();
    let written = match old {
        None => client.create(&config_map(namespace, root), &options).await,
        Some(old) => {
            let mut object = (*old).clone();
            object.body.insert("data".into(), json!({ ROOT_CERT_KEY: root }));
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

fn config_map(namespace: &str, root: &str) -> Object {
    let mut object = Object {
        api_version: "v1".into(),
        kind: "ConfigMap".into(),
        metadata: Default::default(),
        body: Map::from_iter([("data".to_string(), json!({ ROOT_CERT_KEY: root }))]),
    };
    object.metadata.name = Some(ROOT_CERT_CONFIG_MAP.into());
    object.metadata.namespace = Some(namespace.to_string());
    object.metadata.labels = Some([("istio.io/config".to_string(), "true".to_string())].into());
    object
}
