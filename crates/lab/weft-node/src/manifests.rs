//! The objects that a lab starts with, and how files of objects are put into it.

use crate::network::{API_PORT, API_SERVICE, DNS_SERVICE, GATEWAY};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tower::ServiceExt as _;
use weft_apiserver::ApiServer;
use weft_core::well_known::label;
use weft_k8s_api::{Object, kinds};

/// Control plane, gateway and the mesh's settings.
const MESH: &str = include_str!("../manifests/mesh.yaml");
const BOOKINFO: [(&str, &str); 2] = [
    ("bookinfo.yaml", include_str!("../../../../samples/bookinfo/platform/kube/bookinfo.yaml")),
    ("bookinfo-gateway.yaml", include_str!("../../../../samples/bookinfo/networking/bookinfo-gateway.yaml")),
];
/// Hosts of the world outside.
const OUTSIDE: &str = include_str!("../../../../samples/outside/outside.yaml");
/// Largest file and largest answer.
const MAX_SIZE: u64 = 16 << 20;

/// Why objects could not be put into the lab.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// The file.
        path: String,
        /// The system's words.
        cause: std::io::Error,
    },
    /// A text is no YAML of objects.
    #[error(transparent)]
    Yaml(#[from] weft_k8s_api::yaml::YamlError),
    /// The API server refused an object.
    #[error("{place}: {object}: {message}")]
    Refused {
        /// File and line.
        place: String,
        /// The object.
        object: String,
        /// The server's words.
        message: String,
    },
}

/// Puts objects into the lab through its own API server, so that they are validated, completed and injected as a user's are.
pub struct Applier {
    server: ApiServer,
    token: String,
}

impl Applier {
    /// `token` is an administrator's.
    pub fn new(server: ApiServer, token: String) -> Self {
        Self { server, token }
    }

    /// The objects of every lab: namespaces, API and DNS services, mesh.
    ///
    /// # Errors
    /// When one is refused.
    pub async fn base(&self) -> Result<(), ManifestError> {
        for object in cluster_objects() {
            self.apply(&object, "the lab").await?;
        }
        self.text(MESH, "mesh.yaml").await
    }

    /// Hosts of the world outside, such as `httpbin.org`, in namespace `outside`.
    ///
    /// # Errors
    /// When an object is refused.
    pub async fn outside(&self) -> Result<(), ManifestError> {
        self.text(OUTSIDE, "outside.yaml").await
    }

    /// The Bookinfo application and its way in, in namespace `default`.
    ///
    /// # Errors
    /// When an object is refused.
    pub async fn bookinfo(&self) -> Result<(), ManifestError> {
        for (name, text) in BOOKINFO {
            self.text(text, name).await?;
        }
        Ok(())
    }

    /// A user's file, or all `.yaml`, `.yml` and `.json` files of a folder.
    ///
    /// # Errors
    /// With file and line of what cannot be read or is refused.
    pub async fn path(&self, path: &Path) -> Result<(), ManifestError> {
        let failed = |cause| ManifestError::Read { path: path.display().to_string(), cause };
        let mut files: Vec<PathBuf> = vec![path.to_path_buf()];
        if std::fs::metadata(path).map_err(failed)?.is_dir() {
            let entries = std::fs::read_dir(path).map_err(failed)?.flatten().map(|entry| entry.path());
            let is_manifest = |p: &PathBuf| p.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
            files = entries.filter(is_manifest).collect();
            files.sort();
        }
        for file in files {
            let failed = |cause| ManifestError::Read { path: file.display().to_string(), cause };
            if std::fs::metadata(&file).map_err(failed)?.len() > MAX_SIZE {
                return Err(failed(std::io::Error::other("the file is larger than 16 MiB")));
            }
            let text = std::fs::read_to_string(&file).map_err(failed)?;
            self.text(&text, &file.display().to_string()).await?;
        }
        Ok(())
    }

    async fn text(&self, text: &str, name: &str) -> Result<(), ManifestError> {
        for document in weft_k8s_api::yaml::documents(text, name)? {
            self.apply(&document.object, &document.location.to_string()).await?;
        }
        Ok(())
    }

    /// Creates an object, or replaces what there is under its name.
    async fn apply(&self, object: &Object, place: &str) -> Result<(), ManifestError> {
        let refused =
            |message: String| ManifestError::Refused { place: place.into(), object: object.key().to_string(), message };
        let Some(kind) = kinds::by_kind(object.group(), &object.kind) else {
            return Err(refused(format!("kind {} of {} is not one that the lab has", object.kind, object.api_version)));
        };
        let namespace = if object.namespace().is_empty() { "default" } else { object.namespace() };
        let prefix = if object.group().is_empty() { "/api/".into() } else { format!("/apis/{}/", object.group()) };
        let scope = if kind.namespaced { format!("/namespaces/{namespace}") } else { String::new() };
        let collection = format!("{prefix}{}{scope}/{}", object.version(), kind.plural);
        let (status, answer) = self.send(Method::POST, &collection, &object.to_value()).await.map_err(refused)?;
        if status.is_success() {
            return Ok(());
        }
        if status != StatusCode::CONFLICT {
            return Err(refused(message(&answer)));
        }
        let own = format!("{collection}/{}", object.name());
        let (_, there) = self.send(Method::GET, &own, &Value::Null).await.map_err(refused)?;
        let mut object = object.clone();
        // Kinds that other clients write too are overwritten by those alone who say what they have seen.
        object.metadata.resource_version = there["metadata"]["resourceVersion"].as_str().map(str::to_string);
        let (status, answer) = self.send(Method::PUT, &own, &object.to_value()).await.map_err(refused)?;
        if status.is_success() { Ok(()) } else { Err(refused(message(&answer))) }
    }

    async fn send(&self, method: Method, path: &str, body: &Value) -> Result<(StatusCode, Value), String> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|error| error.to_string())?;
        let Ok(response) = self.server.router().oneshot(request).await;
        let status = response.status();
        let limit = usize::try_from(MAX_SIZE).unwrap_or(usize::MAX);
        let body = Limited::new(response.into_body(), limit).collect().await.map_err(|error| error.to_string())?;
        Ok((status, serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null)))
    }
}

fn message(answer: &Value) -> String {
    answer["message"].as_str().unwrap_or("refused without a reason").to_string()
}

/// What no manifest could say, because it is the lab itself.
fn cluster_objects() -> Vec<Object> {
    let namespace = |name: &str, labels: Value| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
    let service = |name: &str, namespace: &str, address: String, ports: Value| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
               "spec": {"clusterIP": address, "ports": ports}})
    };
    let objects = vec![
        namespace("default", json!({label::INJECTION: "enabled"})),
        namespace("istio-system", json!({})),
        service(
            "kubernetes",
            "default",
            API_SERVICE.to_string(),
            json!([{"name": "https", "port": 443, "targetPort": API_PORT}]),
        ),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
               "metadata": {"name": "kubernetes", "namespace": "default", "labels": {label::SERVICE_NAME: "kubernetes"}},
               "ports": [{"name": "https", "port": API_PORT, "protocol": "TCP"}],
               "endpoints": [{"addresses": [GATEWAY], "conditions": {"ready": true}}]}),
        service(
            "kube-dns",
            "kube-system",
            DNS_SERVICE.to_string(),
            json!([
            {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]),
        ),
    ];
    // All are literals of this file; one that did not read would be missed by the first test that starts a lab.
    objects.into_iter().filter_map(|value| serde_json::from_value(value).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_apiserver::{AdminToken, ApiServerOptions};
    use weft_store::MemoryStore;

    #[tokio::test]
    async fn everything_shipped_is_accepted_and_errors_have_a_place() {
        let store = MemoryStore::new();
        let token = "0123456789abcdef0123".to_string();
        let admin_tokens = vec![AdminToken { token: token.clone(), user: "lab".into() }];
        let options = ApiServerOptions { admin_tokens, ..ApiServerOptions::default() };
        let applier = Applier::new(ApiServer::new(store.clone(), options).unwrap(), token);
        applier.base().await.unwrap();
        applier.bookinfo().await.unwrap();
        applier.base().await.unwrap();
        assert!(store.find("apps", "Deployment", "default", "productpage-v1").is_some());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bad.yaml");
        std::fs::write(&file, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: none/v1\nkind: Thing\nmetadata: {name: b}\n").unwrap();
        let error = applier.path(folder.path()).await.unwrap_err().to_string();
        assert!(error.contains("bad.yaml:") && error.contains("Thing"), "{error}");
        assert!(store.find("", "ConfigMap", "default", "a").is_some());
    }
}
