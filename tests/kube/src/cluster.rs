//! A cluster as tests see it: an API server with an administrator's client, accounts, namespaces, and its deaths.

use crate::embedded::Embedded;
use crate::pki::{ADMIN_TOKEN, Pki};
use crate::real::Real;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use weft_k8s_api::kinds::by_any_name;
use weft_k8s_api::{KindInfo, Object, yaml};
use weft_store::client::{ApplyOptions, ListOptions, TokenRequest, WriteOptions};
use weft_store::{ApiClient, ClientError};

/// Which API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The one that the lab serves.
    Embedded,
    /// Kubernetes' own.
    Real,
}

enum Server {
    Embedded(Embedded),
    Real(Box<Real>),
}

/// A running API server.
pub struct Cluster {
    /// Which.
    pub kind: Kind,
    /// The administrator's client.
    pub client: ApiClient,
    pki: Pki,
    server: Server,
    /// Goes last: the servers use it.
    dir: TempDir,
}

impl Cluster {
    /// Starts one of its own.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(kind: Kind) -> Result<Self> {
        Self::with_quota(kind, None).await
    }

    /// As [`Self::start`], with a real one's etcd taking at most `quota` bytes.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn with_quota(kind: Kind, quota: Option<u64>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("weft-kube-").tempdir()?;
        let pki = Pki::create(dir.path())?;
        let server = match kind {
            Kind::Embedded => Server::Embedded(Embedded::start(&pki).await?),
            Kind::Real => Server::Real(Box::new(Real::start(&pki, quota).await?)),
        };
        let url = match &server {
            Server::Embedded(server) => server.url(),
            Server::Real(server) => server.url(),
        };
        let kubeconfig = pki.kubeconfig("admin", &url, ADMIN_TOKEN)?;
        let client = ApiClient::from_kubeconfig(&kubeconfig, None).await?;
        let cluster = Self { kind, client, pki, server, dir };
        for namespace in ["default", "istio-system"] {
            cluster.namespace(namespace, &[]).await?;
        }
        Ok(cluster)
    }

    /// Folder of its files; gone with it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.pki.file("admin.kubeconfig")
    }

    /// A kubeconfig of a service account.
    ///
    /// # Errors
    /// When there is no such account.
    pub async fn account(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self.token(namespace, name, &[]).await?;
        self.pki.kubeconfig(&format!("{namespace}-{name}"), self.client.url(), &token)
    }

    /// A token of a service account for some audiences.
    ///
    /// # Errors
    /// When there is no such account.
    pub async fn token(&self, namespace: &str, name: &str, audiences: &[&str]) -> Result<String> {
        let audiences = audiences.iter().map(ToString::to_string).collect();
        let request = TokenRequest { audiences, ..TokenRequest::default() };
        Ok(self.client.token_request(namespace, name, &request).await?.token)
    }

    /// A namespace with its `default` account: with an API server alone, no controller makes that.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let labels: serde_json::Map<String, Value> =
            labels.iter().map(|(k, v)| ((*k).to_string(), Value::from(*v))).collect();
        let namespace = serde_json::json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
        });
        self.apply_value(namespace).await?;
        self.service_account(name, "default").await
    }

    /// A service account.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn service_account(&self, namespace: &str, name: &str) -> Result<()> {
        let account = serde_json::json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace},
        });
        match self.create(account).await {
            Err(ClientError::AlreadyExists(_)) => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    /// Creates one object.
    ///
    /// # Errors
    /// What the server says.
    pub async fn create(&self, value: Value) -> Result<Object, ClientError> {
        let object = object(value)?;
        Ok(self.client.create(&object, &WriteOptions::default()).await?.object)
    }

    /// Applies one object.
    ///
    /// # Errors
    /// What the server says.
    pub async fn apply_value(&self, value: Value) -> Result<Object, ClientError> {
        let object = object(value)?;
        Ok(self.client.apply(&object, &ApplyOptions::default()).await?.object)
    }

    /// Applies every document of a text, in its order.
    ///
    /// # Errors
    /// What the server says of the first that it refuses.
    pub async fn apply(&self, text: &str) -> Result<()> {
        for document in yaml::documents(text, "test").map_err(|e| anyhow::anyhow!("{e:?}"))? {
            let object = document.object;
            let done = self.client.apply(&object, &ApplyOptions::default()).await;
            done.with_context(|| format!("{}", object.key()))?;
        }
        Ok(())
    }

    /// A request as the administrator: status and JSON. `body` is its type and text.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn rest(&self, method: &str, path: &str, body: Option<(&str, &str)>) -> Result<(u16, Value)> {
        let root = std::fs::read_to_string(self.pki.file("ca.crt")).unwrap_or_default();
        crate::http::rest(self.client.url(), &root, ADMIN_TOKEN, (method, path), body).await
    }

    /// Merges a patch into an object, as soon as the server takes it: one whose storage is back may refuse for a while still.
    ///
    /// # Errors
    /// What the server says at last.
    pub async fn patch_soon(&self, kind_name: &str, namespace: &str, name: &str, patch: &Value) -> Result<()> {
        crate::eventually("the patch is taken", async || {
            self.client.merge_patch(kind(kind_name)?, namespace, name, patch).await?;
            Ok(())
        })
        .await
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// What the server says.
    pub async fn delete(&self, kind_name: &str, namespace: &str, name: &str) -> Result<()> {
        self.client.delete(kind(kind_name)?, namespace, name, &Default::default()).await?;
        Ok(())
    }

    /// One object.
    ///
    /// # Errors
    /// What the server says.
    pub async fn get(&self, kind_name: &str, namespace: &str, name: &str) -> Result<Object> {
        Ok(self.client.get(kind(kind_name)?, namespace, name).await?)
    }

    /// All objects of a kind in a namespace.
    ///
    /// # Errors
    /// What the server says.
    pub async fn list(&self, kind_name: &str, namespace: &str) -> Result<Vec<Object>> {
        let list = self.client.list(kind(kind_name)?, Some(namespace), &ListOptions::default()).await?;
        Ok(list.items)
    }

    /// Kills the API server without a word to anyone.
    ///
    /// # Errors
    /// When the system refuses.
    pub async fn kill_api(&mut self) -> Result<()> {
        match &mut self.server {
            Server::Embedded(server) => server.kill().await,
            Server::Real(server) => server.kill_server()?,
        }
        Ok(())
    }

    /// Starts it again, with the objects that it had.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart_api(&mut self) -> Result<()> {
        match &mut self.server {
            Server::Embedded(server) => server.restart().await,
            Server::Real(server) => server.restart_server().await,
        }
    }

    /// Kills a real one's etcd and starts it again on its files; the embedded one loses its connections.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn crash_storage(&mut self) -> Result<()> {
        match &mut self.server {
            Server::Embedded(server) => {
                server.kill().await;
                server.restart().await
            }
            Server::Real(server) => {
                server.kill_etcd()?;
                server.restart_etcd().await
            }
        }
    }

    /// The processes, when it is the real one.
    pub fn real(&self) -> Option<&Real> {
        match &self.server {
            Server::Real(real) => Some(real),
            Server::Embedded(_) => None,
        }
    }
}

/// A kind by any of its names.
///
/// # Errors
/// When Weft knows no such kind.
pub fn kind(name: &str) -> Result<&'static KindInfo> {
    by_any_name(name).with_context(|| format!("kind {name}"))
}

fn object(value: Value) -> Result<Object, ClientError> {
    serde_json::from_value(value)
        .map_err(|e| ClientError::Invalid { message: format!("the test's object: {e}"), causes: Vec::new() })
}
