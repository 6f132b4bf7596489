//! `ApiClient`: any Kubernetes API, on untyped objects. Owns connection, paths and error words; a local copy of the state is
//! [`crate::cache`]'s business.
//!
//! Reading order: this file (connection, get/list/create/replace/patch/delete), `apply`, `table` (lists for people to read),
//! `stream` (watch, logs), `pods` (exec, port-forward), `tokens`, `error`.

mod apply;
mod error;
mod page;
mod pods;
mod stream;
mod table;
mod tokens;

pub use apply::{Applied, ApplyOptions, Outcome};
pub use error::{Cause, ClientError};
pub use pods::{ExecOptions, ExecOutput, ExecSession, PortForward, TerminalResizer};
pub use stream::{EventStream, LogOptions, LogStream, WatchOptions};
pub use table::{Column, Row, Table};
pub use tokens::{IssuedToken, TokenIdentity, TokenRequest};

use crate::memory::{DeleteOptions, Propagation};
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use http::{Method, Request};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use kube::client::Body;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Duration;
use weft_k8s_api::kinds::{self, KindInfo};
use weft_k8s_api::{Kept, Object, ObjectKey};

/// Largest answer that is read into memory, in bytes.
const MAX_ANSWER: usize = 256 << 20;
/// Media type of answers.
const ACCEPT_JSON: &str = "application/json";
/// Longest wait for an answer that is not a stream.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// `labelSelector`.
    pub labels: Option<String>,
    /// `fieldSelector`.
    pub fields: Option<String>,
    /// At most that many; `None` for all.
    pub limit: Option<usize>,
    /// Token of an earlier, shortened list.
    pub continue_token: Option<String>,
    /// Version to read them in; `None` for the kind's own.
    pub version: Option<&'static str>,
    /// What to read of their bodies, without managed fields; `None` for everything.
    pub kept: Option<Kept>,
    /// Longest answer that is read, in bytes. Default: 256 MiB.
    pub most_bytes: Option<usize>,
}

/// Objects as a server listed them.
#[derive(Debug, Clone, Default)]
pub struct Listed {
    /// The objects, with their API version and kind filled in.
    pub items: Vec<Object>,
    /// Resource version to watch from.
    pub resource_version: String,
    /// Set when the list was shortened.
    pub continue_token: Option<String>,
}

/// An object that the server has written, and what it said about it.
#[derive(Debug, Clone)]
pub struct Written {
    /// The object as stored.
    pub object: Object,
    /// Texts of the `Warning` headers.
    pub warnings: Vec<String>,
}

/// Parameters of a write.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// Check everything, change nothing.
    pub dry_run: bool,
    /// Who writes, for `managedFields`.
    pub field_manager: Option<String>,
}

/// How a patch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' merge of keyed lists; core kinds only.
    Strategic,
}

impl PatchType {
    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
        }
    }
}

/// A connection to an API server. Cheap to clone.
#[derive(Clone)]
pub struct ApiClient {
    client: kube::Client,
    url: String,
    namespace: String,
}

impl ApiClient {
    /// Uses a kubeconfig file; `context` of `None` is the current one.
    ///
    /// # Errors
    /// [`ClientError::Config`] names the file and what is wrong with it.
    pub async fn from_kubeconfig(path: &Path, context: Option<&str>) -> Result<Self, ClientError> {
        let wrong = |e: &dyn std::error::Error| {
            ClientError::Config(format!("kubeconfig {}: {}", path.display(), error::chain(e)))
        };
        let file = Kubeconfig::read_from(path).map_err(|e| wrong(&e))?;
        let options = KubeConfigOptions { context: context.map(str::to_string), ..KubeConfigOptions::default() };
        let config = Config::from_custom_kubeconfig(file, &options).await.map_err(|e| wrong(&e))?;
        Self::from_config(config)
    }

    /// Uses the service account that Kubernetes gives to a pod.
    ///
    /// # Errors
    /// [`ClientError::Config`] when this is no pod.
    pub fn in_cluster() -> Result<Self, ClientError> {
        let config = Config::incluster().map_err(|e| {
            ClientError::Config(format!("not running in a pod with a service account: {}", error::chain(&e)))
        })?;
        Self::from_config(config)
    }

    /// `$KUBECONFIG`, `~/.kube/config`, or the pod's service account, whichever is there first.
    ///
    /// # Errors
    /// [`ClientError::Config`] when none can be used.
    pub async fn infer() -> Result<Self, ClientError> {
        let config = Config::infer().await.map_err(|e| ClientError::Config(error::chain(&e)))?;
        Self::from_config(config)
    }

    /// Uses an address (`http://127.0.0.1:6443`) and a bearer token.
    ///
    /// # Errors
    /// [`ClientError::Config`] when the address is not a URL.
    pub fn connect(url: &str, token: Option<&str>) -> Result<Self, ClientError> {
        let mut config = Config::new(parse_url(url)?);
        config.auth_info.token = token.map(|t| t.to_string().into());
        Self::from_config(config)
    }

    /// Uses an address and a file that holds the bearer token and is read again when it changes (projected tokens).
    ///
    /// # Errors
    /// [`ClientError::Config`] when the address is not a URL or the file cannot be read.
    pub fn connect_with_token_file(url: &str, token_file: &Path) -> Result<Self, ClientError> {
        let mut config = Config::new(parse_url(url)?);
        config.auth_info.token_file = Some(token_file.to_string_lossy().into_owned());
        Self::from_config(config)
    }

    fn from_config(mut config: Config) -> Result<Self, ClientError> {
        config.connect_timeout = Some(Duration::from_secs(5));
        // Repeating is for the caller to decide; a hidden repetition only makes failures slow.
        config.default_retry = false;
        let url = config.cluster_url.to_string().trim_end_matches('/').to_string();
        let namespace = config.default_namespace.clone();
        let client = kube::Client::try_from(config)
            .map_err(|e| ClientError::Config(format!("{url}: cannot set up a client: {}", error::chain(&e))))?;
        Ok(Self { client, url, namespace })
    }

    /// Address of the server.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Namespace for objects that name none.
    pub fn default_namespace(&self) -> &str {
        &self.namespace
    }

    /// The same connection with another default namespace.
    #[must_use]
    pub fn with_default_namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// The server's `/version`.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] and its kin.
    pub async fn version(&self) -> Result<Value, ClientError> {
        let answer = self.call(Method::GET, "/version", None).await?;
        self.parse("/version", &answer.body)
    }

    /// An object; `namespace` is ignored for cluster-scoped kinds.
    ///
    /// # Errors
    /// [`ClientError::NotFound`], [`ClientError::NoSuchKind`], [`ClientError::Unreachable`] and their kin.
    pub async fn get(&self, kind: &KindInfo, namespace: &str, name: &str) -> Result<Object, ClientError> {
        let path = object_path(kind, None, namespace, name);
        let answer = self.call(Method::GET, &path, None).await?;
        self.parse(&path, &answer.body)
    }

    /// Objects of a kind; `namespace` of `None` is all namespaces.
    ///
    /// # Errors
    /// [`ClientError::NoSuchKind`], [`ClientError::TooLarge`], [`ClientError::Unreachable`] and their kin.
    pub async fn list(
        &self,
        kind: &KindInfo,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<Listed, ClientError> {
        let mut query = Query::default();
        query.add("labelSelector", options.labels.as_deref());
        query.add("fieldSelector", options.fields.as_deref());
        query.add("limit", options.limit.map(|l| l.to_string()).as_deref());
        query.add("continue", options.continue_token.as_deref());
        let path = query.on(&collection_path(kind, options.version, namespace));
        let most = options.most_bytes.unwrap_or(MAX_ANSWER);
        let answer = self.call_accepting(ACCEPT_JSON, Method::GET, &path, None, most).await?;
        let page = page::Page::read(&answer.body, options.kept)
            .map_err(|e| ClientError::Protocol { url: self.url.clone(), message: format!("{path}: {e}") })?;
        Ok(page.listed(kind))
    }

    /// Creates an object.
    ///
    /// # Errors
    /// [`ClientError::AlreadyExists`], [`ClientError::Invalid`], [`ClientError::NotFound`] (namespace) and their kin.
    pub async fn create(&self, object: &Object, options: &WriteOptions) -> Result<Written, ClientError> {
        let kind = known_kind(object)?;
        let object = self.placed(kind, object);
        let path = write_query(options).on(&collection_path(kind, Some(object.version()), Some(object.namespace())));
        self.write(Method::POST, &path, "application/json", &object.to_value()).await
    }

    /// Replaces an object. With `metadata.resourceVersion` set, only when nobody else changed it.
    ///
    /// # Errors
    /// [`ClientError::Conflict`], [`ClientError::NotFound`], [`ClientError::Invalid`] and their kin.
    pub async fn replace(&self, object: &Object, options: &WriteOptions) -> Result<Written, ClientError> {
        self.put(object, "", options).await
    }

    /// Replaces the `status` of an object; everything else stays.
    ///
    /// # Errors
    /// As [`Self::replace`].
    pub async fn replace_status(&self, object: &Object) -> Result<Written, ClientError> {
        self.put(object, "/status", &WriteOptions::default()).await
    }

    /// Replaces the approval of a CertificateSigningRequest: the conditions of its status.
    ///
    /// # Errors
    /// As [`Self::replace`]; [`ClientError::Forbidden`] without the right to approve for the request's signer.
    pub async fn replace_approval(&self, object: &Object) -> Result<Written, ClientError> {
        self.put(object, "/approval", &WriteOptions::default()).await
    }

    async fn put(&self, object: &Object, sub: &str, options: &WriteOptions) -> Result<Written, ClientError> {
        let kind = known_kind(object)?;
        let object = self.placed(kind, object);
        let path = object_path(kind, Some(object.version()), object.namespace(), object.name());
        let path = write_query(options).on(&format!("{path}{sub}"));
        self.write(Method::PUT, &path, "application/json", &object.to_value()).await
    }

    /// Patches an object.
    ///
    /// # Errors
    /// [`ClientError::NotFound`], [`ClientError::Invalid`], [`ClientError::Conflict`] and their kin.
    pub async fn patch(
        &self,
        kind: &KindInfo,
        namespace: &str,
        name: &str,
        patch_type: PatchType,
        patch: &Value,
    ) -> Result<Written, ClientError> {
        let path = object_path(kind, None, namespace, name);
        self.write(Method::PATCH, &path, patch_type.content_type(), patch).await
    }

    /// Patches with RFC 7386: `null` removes a field.
    ///
    /// # Errors
    /// As [`Self::patch`].
    pub async fn merge_patch(
        &self,
        kind: &KindInfo,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Written, ClientError> {
        self.patch(kind, namespace, name, PatchType::Merge, patch).await
    }

    /// Patches with RFC 6902 operations.
    ///
    /// # Errors
    /// As [`Self::patch`].
    pub async fn json_patch(
        &self,
        kind: &KindInfo,
        namespace: &str,
        name: &str,
        patch: &json_patch::Patch,
    ) -> Result<Written, ClientError> {
        let patch = serde_json::to_value(patch).unwrap_or(Value::Null);
        self.patch(kind, namespace, name, PatchType::Json, &patch).await
    }

    /// Server-side apply: what `manager` wants of an object, all of it. What it set before and leaves out now goes; fields of
    /// others are taken over where they differ. Fields that the kind does not have are refused.
    ///
    /// # Errors
    /// As [`Self::create`] and [`Self::patch`].
    pub async fn server_side_apply(
        &self,
        kind: &KindInfo,
        object: &Object,
        manager: &str,
        dry_run: bool,
    ) -> Result<Written, ClientError> {
        let object = self.placed(kind, object);
        let options = WriteOptions { dry_run, field_manager: Some(manager.to_string()) };
        let mut query = write_query(&options);
        query.add("force", Some("true"));
        query.add("fieldValidation", Some("Strict"));
        let path = query.on(&object_path(kind, Some(object.version()), object.namespace(), object.name()));
        self.write(Method::PATCH, &path, "application/apply-patch+yaml", &object.to_value()).await
    }

    /// Asks the server whether the caller may do something with a resource anywhere (SelfSubjectAccessReview).
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] and its kin.
    pub async fn may_i(&self, verb: &str, group: &str, resource: &str) -> Result<bool, ClientError> {
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let body = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"verb": verb, "group": group, "resource": resource}},
        });
        let answer = self.call(Method::POST, path, Some(("application/json", body.to_string().into_bytes()))).await?;
        let answer: Value = self.parse(path, &answer.body)?;
        Ok(answer.pointer("/status/allowed").and_then(Value::as_bool) == Some(true))
    }

    /// Merges `{"status": status}` into the object's status.
    ///
    /// # Errors
    /// As [`Self::patch`].
    pub async fn patch_status(
        &self,
        kind: &KindInfo,
        namespace: &str,
        name: &str,
        status: &Value,
    ) -> Result<Written, ClientError> {
        let version = kind.versions.first().copied().unwrap_or("v1");
        self.merge_status(kind, version, namespace, name, &json!({ "status": status })).await
    }

    /// Merges `{"status": status}` into the status of the object that was read, in the version that it was read in: a cluster
    /// may not serve the newest. Lists such as `conditions` are replaced as a whole, so nothing is written when somebody
    /// else wrote meanwhile.
    ///
    /// # Errors
    /// As [`Self::patch`]; [`ClientError::Conflict`] when the object is not as it was read: read again.
    pub async fn patch_status_of(
        &self,
        kind: &KindInfo,
        object: &Object,
        status: &Value,
    ) -> Result<Written, ClientError> {
        let patch = json!({"metadata": {"resourceVersion": object.metadata.resource_version}, "status": status});
        self.merge_status(kind, object.version(), object.namespace(), object.name(), &patch).await
    }

    async fn merge_status(
        &self,
        kind: &KindInfo,
        version: &str,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Written, ClientError> {
        let path = format!("{}/status", object_path(kind, Some(version), namespace, name));
        self.write(Method::PATCH, &path, PatchType::Merge.content_type(), patch).await
    }

    /// Deletes an object. `true`: it is gone; `false`: it goes when its finalizers (or its pod) are done.
    ///
    /// # Errors
    /// [`ClientError::NotFound`], [`ClientError::Conflict`] when a precondition does not hold, and their kin.
    pub async fn delete(
        &self,
        kind: &KindInfo,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<bool, ClientError> {
        let path = object_path(kind, None, namespace, name);
        let body = serde_json::to_vec(&delete_body(options)).unwrap_or_default();
        let answer = self.call(Method::DELETE, &path, Some(("application/json", body))).await?;
        let answer: Value = self.parse(&path, &answer.body)?;
        Ok(answer.pointer("/metadata/deletionTimestamp").is_none())
    }

    /// The object with the namespace that it will live in.
    fn placed(&self, kind: &KindInfo, object: &Object) -> Object {
        let mut object = object.clone();
        if kind.namespaced && object.namespace().is_empty() {
            object.metadata.namespace = Some(self.namespace.clone());
        }
        object
    }

    async fn write(&self, method: Method, path: &str, kind: &str, body: &Value) -> Result<Written, ClientError> {
        let body = serde_json::to_vec(body).unwrap_or_default();
        let answer = self.call(method, path, Some((kind, body))).await?;
        Ok(Written { object: self.parse(path, &answer.body)?, warnings: answer.warnings })
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, path: &str, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body)
            .map_err(|e| ClientError::Protocol { url: self.url.clone(), message: format!("{path}: {e}") })
    }

    /// One request and its whole answer.
    async fn call(&self, method: Method, path: &str, body: Option<(&str, Vec<u8>)>) -> Result<Answer, ClientError> {
        self.call_accepting(ACCEPT_JSON, method, path, body, MAX_ANSWER).await
    }

    async fn call_accepting(
        &self,
        accept: &str,
        method: Method,
        path: &str,
        body: Option<(&str, Vec<u8>)>,
        most: usize,
    ) -> Result<Answer, ClientError> {
        let exchange = async {
            let response = self.start_accepting(accept, method, path, body).await?;
            let warnings = warnings(response.headers());
            let body = Limited::new(response.into_body(), most).collect().await;
            let failed = |e: Box<dyn std::error::Error + Send + Sync>| match e.is::<LengthLimitError>() {
                true => ClientError::TooLarge { path: path.to_string(), most },
                false => self.unreachable(&*e),
            };
            let body = body.map_err(failed)?.to_bytes();
            Ok(Answer { body, warnings })
        };
        tokio::time::timeout(CALL_TIMEOUT, exchange).await.map_err(|_| ClientError::Unreachable {
            url: self.url.clone(),
            cause: format!("no answer to {path} within {} s", CALL_TIMEOUT.as_secs()),
        })?
    }

    /// One request up to the head of its answer; an error answer is read and turned into an error.
    async fn start(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<http::Response<Body>, ClientError> {
        self.start_accepting(ACCEPT_JSON, method, path, body).await
    }

    async fn start_accepting(
        &self,
        accept: &str,
        method: Method,
        path: &str,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<http::Response<Body>, ClientError> {
        let mut request = Request::builder().method(method).uri(path).header(ACCEPT, accept);
        if let Some((kind, _)) = &body {
            request = request.header(CONTENT_TYPE, *kind);
        }
        let body = body.map_or_else(Body::empty, |(_, bytes)| Body::from(bytes));
        let request = request
            .body(body)
            .map_err(|e| ClientError::Protocol { url: self.url.clone(), message: format!("{path}: {e}") })?;
        let response = self.client.send(request).await.map_err(|e| ClientError::from_kube(&self.url, path, e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let body = Limited::new(response.into_body(), 1 << 20).collect().await;
        let body = body.map_err(|e| self.unreachable(&*e))?.to_bytes();
        let mut status: kube::core::Status = serde_json::from_slice(&body).unwrap_or_else(|_| {
            kube::core::Status::failure(&String::from_utf8_lossy(&body).chars().take(500).collect::<String>(), "")
        });
        status.code = code;
        Err(ClientError::from_status(&self.url, path, status))
    }

    fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> ClientError {
        ClientError::Unreachable { url: self.url.clone(), cause: error::chain(error) }
    }
}

struct Answer {
    body: Bytes,
    warnings: Vec<String>,
}

fn parse_url(url: &str) -> Result<http::Uri, ClientError> {
    let uri: http::Uri = url
        .parse()
        .map_err(|e| ClientError::Config(format!("{url:?} is not a URL like http://127.0.0.1:6443: {e}")))?;
    match uri.scheme_str() {
        Some("http" | "https") => Ok(uri),
        _ => Err(ClientError::Config(format!("{url:?} must begin with http:// or https://"))),
    }
}

/// Texts of the `Warning: 299 - "text"` headers (RFC 7234, 5.5).
fn warnings(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(http::header::WARNING).iter().filter_map(|v| std::str::from_utf8(v.as_bytes()).ok());
    values
        .filter_map(|v| {
            let (_, quoted) = v.split_once('"')?;
            let (text, _) = quoted.rsplit_once('"')?;
            Some(text.replace("\\\"", "\"").replace("\\\\", "\\"))
        })
        .collect()
}

fn known_kind(object: &Object) -> Result<&'static KindInfo, ClientError> {
    kinds::by_kind(object.group(), &object.kind)
        .ok_or_else(|| ClientError::NoSuchKind(format!("kind {} of {}", object.kind, object.api_version)))
}

/// The table's entry for a key's kind.
pub fn kind_of(key: &ObjectKey) -> Option<&'static KindInfo> {
    kinds::by_kind(&key.group, &key.kind)
}

fn write_query(options: &WriteOptions) -> Query {
    let mut query = Query::default();
    query.add("dryRun", options.dry_run.then_some("All"));
    query.add("fieldManager", options.field_manager.as_deref());
    query
}

fn delete_body(options: &DeleteOptions) -> Value {
    let mut body = Map::new();
    body.insert("apiVersion".into(), "v1".into());
    body.insert("kind".into(), "DeleteOptions".into());
    let propagation = match options.propagation {
        // Said in any case: some old kinds leave what they own behind when nothing is asked for.
        Propagation::Unspecified | Propagation::Background => "Background",
        Propagation::Foreground => "Foreground",
        Propagation::Orphan => "Orphan",
    };
    body.insert("propagationPolicy".into(), propagation.into());
    if let Some(seconds) = options.grace_period_seconds {
        body.insert("gracePeriodSeconds".into(), seconds.into());
    }
    let expect = &options.preconditions;
    if expect.uid.is_some() || expect.resource_version.is_some() {
        let mut preconditions = Map::new();
        preconditions.extend(expect.uid.clone().map(|u| ("uid".to_string(), u.into())));
        preconditions.extend(expect.resource_version.clone().map(|v| ("resourceVersion".to_string(), v.into())));
        body.insert("preconditions".into(), preconditions.into());
    }
    if options.dry_run {
        body.insert("dryRun".into(), json!(["All"]));
    }
    body.into()
}

/// Path of a collection. `version` of `None` is the kind's storage version.
fn collection_path(kind: &KindInfo, version: Option<&str>, namespace: Option<&str>) -> String {
    let version = version.unwrap_or_else(|| kind.versions.first().copied().unwrap_or("v1"));
    let root =
        if kind.group.is_empty() { format!("/api/{version}") } else { format!("/apis/{}/{version}", kind.group) };
    match namespace.filter(|n| kind.namespaced && !n.is_empty()) {
        Some(namespace) => format!("{root}/namespaces/{}/{}", encode(namespace), kind.plural),
        None => format!("{root}/{}", kind.plural),
    }
}

fn object_path(kind: &KindInfo, version: Option<&str>, namespace: &str, name: &str) -> String {
    format!("{}/{}", collection_path(kind, version, Some(namespace)), encode(name))
}

/// Percent-encodes everything but unreserved characters (RFC 3986, 2.3).
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A query string in the making.
#[derive(Default)]
struct Query(String);

impl Query {
    fn add(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            let separator = if self.0.is_empty() { '?' } else { '&' };
            self.0.push_str(&format!("{separator}{name}={}", encode(value)));
        }
    }

    fn on(&self, path: &str) -> String {
        format!("{path}{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_k8s_api::kinds::by_any_name;

    #[test]
    fn paths() {
        let table = [
            ("pods", Some("a"), "/api/v1/namespaces/a/pods"),
            ("pods", None, "/api/v1/pods"),
            ("namespaces", Some("a"), "/api/v1/namespaces"),
            ("deploy", Some("a/b"), "/apis/apps/v1/namespaces/a%2Fb/deployments"),
            ("vs", Some("a"), "/apis/networking.istio.io/v1/namespaces/a/virtualservices"),
        ];
        for (name, namespace, want) in table {
            assert_eq!(collection_path(by_any_name(name).unwrap(), None, namespace), want);
        }
        let path = object_path(by_any_name("vs").unwrap(), Some("v1alpha3"), "n", "r?x");
        assert_eq!(path, "/apis/networking.istio.io/v1alpha3/namespaces/n/virtualservices/r%3Fx");
    }

    #[test]
    fn warning_headers() {
        let mut headers = HeaderMap::new();
        headers.append("warning", r#"299 - "host \"a\" is unknown""#.parse().unwrap());
        headers.append("warning", r#"299 weft "b" "Sat, 01 Jan 2000 00:00:00 GMT""#.parse().unwrap());
        headers.append("warning", "nonsense".parse().unwrap());
        assert_eq!(warnings(&headers).first().map(String::as_str), Some("host \"a\" is unknown"));
        assert_eq!(warnings(&headers).len(), 2);
    }

    #[tokio::test]
    async fn nobody_listens() {
        let url = "http://127.0.0.1:1";
        let client = ApiClient::connect(url, Some("t")).unwrap();
        let error = client.version().await.unwrap_err();
        assert!(error.is_unreachable(), "{error}");
        assert!(error.to_string().contains(url), "{error}");
        assert!(ApiClient::connect("127.0.0.1:1", None).is_err());
    }
}
