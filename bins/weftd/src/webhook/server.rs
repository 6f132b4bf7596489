//! Connections of the webhook port: TLS with a certificate of our own authority, and bounds for everything a caller can make
//! large, slow or many.

use super::injection::Source;
use super::{Parts, review};
use crate::transport;
use anyhow::Context;
use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use weft_ca::Signing;
use weft_tls::{ClientAuth, ServerContext, ServerParams};

/// Largest question, bytes. An object has at most 1.5 MiB in etcd; an update carries it twice.
const MAX_BODY: usize = 8 << 20;
/// Connections at once. API servers are few, and keep theirs.
const MAX_CONNECTIONS: usize = 512;
/// Questions at once; further ones wait.
const MAX_REQUESTS: usize = 64;
/// Time for a handshake, and for the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for a question, from its head to the answer; the API server itself waits no longer than 30 s.
const ANSWER: Duration = Duration::from_secs(25);
/// Lifetime of the certificate; a new one is made at half of it.
const CERTIFICATE: Duration = Duration::from_secs(24 * 3600);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// The context in force.
type Tls = Arc<ArcSwap<ServerContext>>;

/// Serves until `closing`.
///
/// # Errors
/// When there is no certificate to begin with.
pub(super) async fn run(listener: std::net::TcpListener, parts: Parts) -> anyhow::Result<()> {
    listener.set_nonblocking(true).context("webhook port")?;
    let listener = TcpListener::from_std(listener).context("webhook port")?;
    let names = parts.settings.server_names();
    let signing = parts.signing.borrow().clone();
    let first = context(&signing, &names, &parts).await.context("the certificate of the webhooks")?;
    let tls: Tls = Arc::new(ArcSwap::from_pointee(first));
    let source = Arc::new(Source::new(parts.cache.clone(), parts.settings.clone()));
    let answers = review::Answers::new(source.clone(), parts.metrics.clone());
    let mut closing = parts.closing.clone();
    tokio::select! {
        () = source.follow() => {}
        () = renew(tls.clone(), names, &parts) => {}
        () = accept(listener, tls, router(answers), parts.closing.clone()) => {}
        _ = closing.wait_for(|closing| *closing) => {}
    }
    Ok(())
}

fn router(answers: review::Answers) -> Router {
    let places = Arc::new(Semaphore::new(MAX_REQUESTS));
    Router::new()
        .route("/inject", post(review::inject))
        .route("/inject/{*variables}", post(review::inject))
        .route("/validate", post(review::validate))
        .route("/validate/{*rest}", post(review::validate))
        .route("/httpsReady", get(|| async { "" }))
        .with_state(answers)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(places, bounded))
}

/// Lets in as many as there are places for, each for a limited time.
async fn bounded(State(places): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    let answer = async {
        match places.acquire().await {
            Ok(_place) => next.run(request).await,
            Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        }
    };
    match timeout(ANSWER, answer).await {
        Ok(response) => response,
        Err(_) => (StatusCode::GATEWAY_TIMEOUT, "the webhook has no time\n").into_response(),
    }
}

/// A context with a certificate for `names`. The API server shows no certificate, or one that is none of the mesh's.
async fn context(signing: &Signing, names: &[String], parts: &Parts) -> anyhow::Result<ServerContext> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let certificate = signing.server_certificate(&names, CERTIFICATE).await?;
    Ok(ServerContext::build(ServerParams {
        certificates: vec![certificate],
        client_auth: ClientAuth::None,
        alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        settings: transport::tls_settings(parts.settings.compliance_policy),
    })?)
}

/// A new certificate when what signs changes, and at half of the old one's life.
async fn renew(tls: Tls, names: Vec<String>, parts: &Parts) {
    let mut signing = parts.signing.clone();
    loop {
        let end = tls.load().certificates().first().map(|certificate| certificate.facts().not_after);
        let left = end.and_then(|end| end.duration_since(SystemTime::now()).ok()).unwrap_or_default();
        tokio::select! {
            () = sleep((left / 2).clamp(RETRY, CERTIFICATE / 2)) => {}
            changed = signing.changed() => if changed.is_err() { std::future::pending().await },
        }
        let now = signing.borrow_and_update().clone();
        match context(&now, &names, parts).await {
            Ok(new) => tls.store(Arc::new(new)),
            Err(error) => {
                tracing::error!("the certificate of the webhooks could not be renewed, trying again: {error:#}");
                sleep(RETRY).await;
                signing.mark_changed();
            }
        }
    }
}

async fn accept(listener: TcpListener, tls: Tls, router: Router, closing: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, tls.load_full(), router.clone(), closing.clone(), place));
            }
            Err(error) => {
                // Out of file descriptors, mostly: others must end first.
                tracing::warn!("webhook port: accept: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    tls: Arc<ServerContext>,
    router: Router,
    mut closing: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
) {
    let _ = stream.set_nodelay(true);
    let stream = match timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(accepted)) => accepted.stream,
        Ok(Err(error)) => return tracing::debug!("webhook port: TLS handshake: {error}"),
        Err(_) => return tracing::debug!("webhook port: a TLS handshake took too long"),
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE);
    let alive = (Duration::from_secs(60), Duration::from_secs(20));
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(alive.0).keep_alive_timeout(alive.1);
    builder.http2().max_concurrent_streams(100);
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(served);
    let stop = async move { _ = closing.wait_for(|closing| *closing).await };
    let result = tokio::select! {
        result = &mut served => result,
        () = stop => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!("webhook port: {error}");
    }
}
