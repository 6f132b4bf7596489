//! The server: what it is made of, how connections are taken and bounded, and the way of a request to its handler.

use crate::admission::Admission;
use crate::auth::User;
use crate::collect;
use crate::kinds::{DEFINITION, Kinds};
use crate::metrics::Looks;
use crate::params::{Params, Shape, shape};
use crate::pods::PodBackend;
use crate::route::{Route, route};
use crate::status::ApiError;
use crate::tokens::TokenTable;
use crate::{discovery, openapi, resources, reviews, types};
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::{Method, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use weft_k8s_api::Object;
use weft_store::{MemoryStore, StoreError};
use weft_tls::ServerContext;

/// Longest wait of a request for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that connections get to finish when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Time in which a client must have sent the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// First byte of a TLS connection: a handshake record (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 22;
/// Time that a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time in which a client must have sent the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A token that may everything, for a kubeconfig.
#[derive(Clone)]
pub struct AdminToken {
    /// The bearer token; at least 16 bytes.
    pub token: String,
    /// Name of the user.
    pub user: String,
}

/// Settings of a server.
#[derive(Clone)]
pub struct ApiServerOptions {
    /// Tokens that may everything. Default none.
    pub admin_tokens: Vec<AdminToken>,
    /// Service accounts (namespace, name) that may everything. Default `istio-system/istiod`.
    pub privileged_accounts: Vec<(String, String)>,
    /// Hooks before objects are stored, in their order. Default none.
    pub admission: Vec<Arc<dyn Admission>>,
    /// What runs pods. Default nothing: logs, exec and port-forward answer 503.
    pub pods: Option<Arc<dyn PodBackend>>,
    /// Audience of tokens for this server. Default `https://kubernetes.default.svc`.
    pub audience: String,
    /// Namespaces that exist from the start. Default `default` and `kube-system`.
    pub namespaces: Vec<String>,
    /// TLS. With it, each connection may be TLS or plain: its first byte tells. Default none: plain HTTP only. kubectl sends
    /// tokens over TLS alone.
    pub tls: Option<ServerContext>,
    /// Whether objects are validated. Default true.
    pub validate: bool,
    /// Longest body in bytes. Default 3 MiB.
    pub max_body: usize,
    /// Requests that are worked on at the same time. Default 256.
    pub max_requests: usize,
    /// Watches, logs, commands and forwards that are open at the same time. Default 4096.
    pub max_streams: usize,
    /// Connections that are open at the same time. Default 8192.
    pub max_connections: usize,
    /// Pause between bookmarks of a watch. Default 15 s.
    pub bookmark_interval: Duration,
}

impl Default for ApiServerOptions {
    fn default() -> Self {
        Self {
            admin_tokens: Vec::new(),
            privileged_accounts: vec![("istio-system".into(), "istiod".into())],
            admission: Vec::new(),
            pods: None,
            audience: "https://kubernetes.default.svc".into(),
            namespaces: vec!["default".into(), "kube-system".into()],
            tls: None,
            validate: true,
            max_body: 3 << 20,
            max_requests: 256,
            max_streams: 4096,
            max_connections: 8192,
            bookmark_interval: Duration::from_secs(15),
        }
    }
}

/// A Kubernetes API server over a memory store. Clones are handles to the same server.
#[derive(Clone)]
pub struct ApiServer {
    shared: Arc<Shared>,
}

struct Shared {
    store: MemoryStore,
    options: ApiServerOptions,
    tokens: TokenTable,
    kinds: RwLock<Arc<Kinds>>,
    looks: Looks,
    requests: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    closing: watch::Sender<bool>,
    collecting: AtomicBool,
}

/// What every handler gets of a request.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) server: ApiServer,
    pub(crate) user: User,
    pub(crate) kinds: Arc<Kinds>,
    /// First word of the client's name: who manages fields when `fieldManager` does not say.
    pub(crate) agent: String,
    pub(crate) params: Arc<Params>,
    pub(crate) shape: Shape,
}

impl ApiServer {
    /// Sets up a server and creates the namespaces that exist from the start.
    ///
    /// # Errors
    /// When an administrator's token is too short to be a secret, or a namespace cannot be created.
    pub fn new(store: MemoryStore, options: ApiServerOptions) -> Result<Self, ApiError> {
        if let Some(admin) = options.admin_tokens.iter().find(|a| a.token.len() < 16) {
            return Err(ApiError::internal(format!("the token of {} is shorter than 16 bytes", admin.user)));
        }
        let kinds = Kinds::read(&store, options.pods.is_some());
        let shared = Shared {
            store,
            tokens: TokenTable::new(&options.audience),
            kinds: RwLock::new(Arc::new(kinds)),
            looks: Looks::default(),
            requests: Arc::new(Semaphore::new(options.max_requests)),
            streams: Arc::new(Semaphore::new(options.max_streams)),
            connections: Arc::new(Semaphore::new(options.max_connections)),
            closing: watch::Sender::new(false),
            collecting: AtomicBool::new(false),
            options,
        };
        let server = Self { shared: Arc::new(shared) };
        for name in &server.options().namespaces {
            server.ensure_namespace(name)?;
        }
        server.ensure_roles()?;
        Ok(server)
    }

    /// The objects.
    pub fn store(&self) -> &MemoryStore {
        &self.shared.store
    }

    /// Tokens of service accounts.
    pub fn tokens(&self) -> &TokenTable {
        &self.shared.tokens
    }

    /// The kinds that are served now.
    pub fn kinds(&self) -> Arc<Kinds> {
        let revision = self.store().kind_revision(DEFINITION.0, DEFINITION.1);
        let known = self.shared.kinds.read().unwrap_or_else(PoisonError::into_inner).clone();
        if known.revision == revision {
            return known;
        }
        let fresh = Arc::new(Kinds::read(self.store(), self.options().pods.is_some()));
        *self.shared.kinds.write().unwrap_or_else(PoisonError::into_inner) = fresh.clone();
        fresh
    }

    pub(crate) fn options(&self) -> &ApiServerOptions {
        &self.shared.options
    }

    pub(crate) fn pods(&self) -> Option<Arc<dyn PodBackend>> {
        self.shared.options.pods.clone()
    }

    pub(crate) fn looks(&self) -> &Looks {
        &self.shared.looks
    }

    /// Turns true when the server stops: endless answers end then.
    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.shared.closing.subscribe()
    }

    /// Creates a namespace, unless it exists, with its `default` service account.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn ensure_namespace(&self, name: &str) -> Result<(), ApiError> {
        let Some(kind) = weft_k8s_api::kinds::by_kind("", "Namespace") else { return Ok(()) };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let mut namespace: Object = serde_json::from_value(namespace).map_err(|e| ApiError::internal(e.to_string()))?;
        crate::defaults::fill(kind, &mut namespace);
        crate::defaults::first_status(kind, &mut namespace);
        match self.store().create(namespace) {
            Ok(_) | Err(StoreError::AlreadyExists(_)) => self.default_account(name),
            Err(error) => Err(ApiError::from_store(kind, error)),
        }
    }

    /// The `default` service account of a namespace.
    pub(crate) fn default_account(&self, namespace: &str) -> Result<(), ApiError> {
        let Some(kind) = weft_k8s_api::kinds::by_kind("", "ServiceAccount") else { return Ok(()) };
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace},
        });
        let account = serde_json::from_value(account).map_err(|e| ApiError::internal(e.to_string()))?;
        match self.store().create(account) {
            Ok(_) | Err(StoreError::AlreadyExists(_)) => Ok(()),
            Err(error) => Err(ApiError::from_store(kind, error)),
        }
    }

    /// The whole API as a service.
    pub fn router(&self) -> axum::Router {
        axum::Router::new().fallback(handle).with_state(self.clone())
    }

    /// Serves connections until `shutdown`; then ends watches and streams and returns within 2 s. Also runs the collector of
    /// owned objects and of deleted namespaces. May be called for several listeners, which then stop together. A stopped
    /// server stays stopped: make another one on the same store.
    ///
    /// # Errors
    /// Never after it has begun to accept; a full table of open files is waited out.
    pub async fn serve(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let mut tasks = JoinSet::new();
        if !self.shared.collecting.swap(true, Ordering::SeqCst) {
            tasks.spawn(collect::run(self.store().clone()));
        }
        let service = TowerToHyperService::new(self.router());
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                Some(_) = tasks.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match (accepted, self.shared.connections.clone().try_acquire_owned()) {
                (Ok((stream, _)), Ok(permit)) => {
                    let tls = self.options().tls.clone();
                    let connection = connection(stream, tls, service.clone(), self.closing());
                    tasks.spawn(async move {
                        connection.await;
                        drop(permit);
                    });
                }
                // Too many connections: this one is closed at once.
                (Ok(_), Err(_)) => {}
                (Err(error), _) => {
                    tracing::debug!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(listener);
        self.shared.closing.send_replace(true);
        self.shared.collecting.store(false, Ordering::SeqCst);
        let _ = tokio::time::timeout(STOP_TIMEOUT, async { while tasks.join_next().await.is_some() {} }).await;
        tasks.shutdown().await;
        Ok(())
    }
}

/// Decides between TLS and plain HTTP, and serves.
async fn connection(
    stream: TcpStream,
    tls: Option<ServerContext>,
    service: TowerToHyperService<axum::Router>,
    closing: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else { return requests(stream, service, closing).await };
    let mut first = [0];
    match tokio::time::timeout(HEAD_TIMEOUT, stream.peek(&mut first)).await {
        Ok(Ok(1)) if first == [TLS_HANDSHAKE] => {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
                Ok(Ok(accepted)) => requests(accepted.stream, service, closing).await,
                Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                Err(_) => tracing::debug!("a TLS handshake took too long"),
            }
        }
        Ok(Ok(1)) => requests(stream, service, closing).await,
        _ => {}
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: TowerToHyperService<axum::Router>,
    mut closing: watch::Receiver<bool>,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(256);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = closed(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::trace!(%error, "a connection ended");
    }
}

/// Returns when the server stops.
pub(crate) async fn closed(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|c| *c).await;
}

/// The way of every request.
async fn handle(State(server): State<ApiServer>, request: Request) -> Response {
    dispatch(server, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn dispatch(server: ApiServer, request: Request) -> Result<Response, ApiError> {
    let kinds = server.kinds();
    let place = route(&kinds, request.uri().path());
    match (&place, request.method()) {
        (Some(Route::Health), &Method::GET) => return Ok((StatusCode::OK, "ok").into_response()),
        (Some(Route::Version), &Method::GET) => return Ok(axum::Json(version()).into_response()),
        _ => {}
    }
    let user = server.authenticate(request.headers())?;
    let place = place.ok_or_else(ApiError::no_such_path)?;
    let turn = server.shared.requests.clone().acquire_owned();
    let _turn = tokio::time::timeout(TURN_TIMEOUT, turn).await.map_err(|_| ApiError::too_many_requests())?;
    let params = Arc::new(Params::read(request.uri())?);
    let accept = request.headers().get(ACCEPT).and_then(|a| a.to_str().ok()).unwrap_or_default().to_string();
    if let Some(answer) = discovery::answer(&kinds, &place, request.method(), &accept) {
        return answer;
    }
    if let Some(answer) = openapi::answer(&kinds, &place, request.method(), &accept) {
        return answer;
    }
    // A log is text, whatever the client would take as JSON.
    let text = matches!(&place, Route::Resource(t) if matches!(t.sub.as_deref(), Some("log" | "exec" | "attach" | "portforward")));
    let shape = if text { Shape::Full } else { shape(request.headers())? };
    let agent = request.headers().get(USER_AGENT).and_then(|a| a.to_str().ok()).unwrap_or_default();
    let agent = agent.split('/').next().unwrap_or_default().chars().take(128).collect();
    let context = Context { server, user, kinds, agent, params, shape };
    match place {
        Route::Review(review) => reviews::handle(&context, review, request).await,
        Route::Resource(target) => resources::handle(context, target, request).await,
        _ => Err(ApiError::no_such_path()),
    }
}

/// What `kubectl version` shows. The minor version says which API the answers follow.
fn version() -> Value {
    json!({
        "major": "1", "minor": "32", "gitVersion": concat!("v1.32.0+weft-", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none",
        "compiler": "rustc", "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

impl Context {
    /// Reads a bounded body and its content type.
    pub(crate) async fn read_body(&self, request: http::Request<Body>) -> Result<(String, Bytes), ApiError> {
        let limit = self.server.options().max_body;
        let content_type = request.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let content_type = content_type.to_string();
        let body = tokio::time::timeout(BODY_TIMEOUT, to_bytes(request.into_body(), limit)).await;
        let body = body.map_err(|_| ApiError::bad_request("the body did not arrive in time"))?;
        let body = body.map_err(|e| {
            let cut = std::error::Error::source(&e).is_some_and(|s| s.to_string().contains("length limit"));
            if cut { ApiError::too_large(limit) } else { ApiError::bad_request(format!("the body broke off: {e}")) }
        })?;
        Ok((content_type, body))
    }

    /// Reads a body that is JSON or YAML.
    pub(crate) async fn read_json(&self, request: http::Request<Body>) -> Result<Value, ApiError> {
        let (content_type, body) = self.read_body(request).await?;
        self.parse(&content_type, &body)
    }

    /// Reads a body by its content type.
    pub(crate) fn parse(&self, content_type: &str, body: &Bytes) -> Result<Value, ApiError> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            types::protobuf::CONTENT_TYPE => types::protobuf::read(body)
                .map_err(|why| ApiError::bad_request(format!("the protobuf body cannot be read: {why}"))),
            "" | "application/json" => {
                serde_json::from_slice(body).map_err(|e| ApiError::bad_request(format!("the body is not JSON: {e}")))
            }
            "application/yaml" | "text/yaml" => crate::patch::read_yaml(body),
            other => Err(ApiError::unsupported_media_type(
                other,
                "application/json, application/yaml, application/vnd.kubernetes.protobuf",
            )),
        }
    }

    /// The right to keep an endless answer open.
    pub(crate) fn stream_permit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.server.shared.streams.clone().try_acquire_owned().map_err(|_| ApiError::too_many_requests())
    }
}
