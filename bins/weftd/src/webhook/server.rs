//! Connections of the webhook port: TLS with a certificate of our own authority, and bounds for everything a caller can make
//! large, slow or many.

use super::injection::Source;
use super::intake::{Asker, Intake, MAX_BODY, bounded};
use super::{Parts, review};
use crate::idle::Quiet;
use crate::transport;
use anyhow::Context;
use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tower::Service as _;
use weft_ca::Signing;
use weft_tls::{ClientAuth, ServerContext, ServerParams};
use weft_xds_server::places::Places;

/// Connections at once. API servers are few, and keep theirs.
const MAX_CONNECTIONS: usize = 512;
/// Time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for the head of a request over HTTP/1.1.
const HEAD: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
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
    Router::new()
        .route("/inject", post(review::inject))
        .route("/inject/{*variables}", post(review::inject))
        .route("/validate", post(review::validate))
        .route("/validate/{*rest}", post(review::validate))
        .route("/httpsReady", get(|| async { "" }))
        .with_state(answers)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(Intake::new(), bounded))
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
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let places = Places::new(MAX_CONNECTIONS);
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, remote)) => {
                let address = remote.ip().to_canonical();
                let Ok(place) = places.take_for(address) else { continue };
                let served = connection(stream, address, tls.load_full(), router.clone(), closing.clone());
                tokio::spawn(async move {
                    served.await;
                    drop((slot, place));
                });
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
    address: IpAddr,
    tls: Arc<ServerContext>,
    router: Router,
    mut closing: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let accepted = match timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(error)) => return tracing::debug!("webhook port: TLS handshake: {error}"),
        Err(_) => return tracing::debug!("webhook port: a TLS handshake took too long"),
    };
    // What was agreed on is spoken: to find it out from the first bytes would mean to wait for them.
    let http2 = accepted.facts.alpn.as_deref() == Some(b"h2");
    let stream = Quiet::new(accepted.stream);
    let requests = stream.requests().clone();
    let asker = Asker { address, requests: requests.clone() };
    let answer = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(asker.clone());
        router.clone().call(request)
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut builder = if http2 { builder.http2_only() } else { builder.http1_only() };
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    let alive = (Duration::from_secs(60), Duration::from_secs(20));
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(alive.0).keep_alive_timeout(alive.1);
    builder.http2().max_concurrent_streams(100);
    let served = builder.serve_connection(TokioIo::new(stream), answer);
    tokio::pin!(served);
    // A question that is on its way while an idle connection ends would be lost: the other side is told first.
    let stop = async move {
        tokio::select! {
            _ = closing.wait_for(|closing| *closing) => {}
            () = requests.quiet() => {}
        }
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::io::AsyncReadExt;
    use weft_ca::{Authority, CaPolicy};
    use weft_identity::TrustDomain;
    use weft_tls::{ClientContext, ClientParams, ServerVerification, TlsSettings};

    #[tokio::test]
    async fn class_idle_connections_of_strangers_to_the_webhooks_are_closed() {
        weft_tls::install_provider();
        let domain = TrustDomain::new("td").unwrap();
        let authority = Arc::new(Authority::self_signed(domain, CaPolicy::default(), SystemTime::now()).unwrap());
        let roots = authority.roots().clone();
        let certificate = Signing::Own(authority).server_certificate(&["istiod"], CERTIFICATE).await.unwrap();
        let context = ServerContext::build(ServerParams {
            certificates: vec![certificate],
            client_auth: ClientAuth::None,
            alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            settings: TlsSettings::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { "" }));
        let (_close, closing) = watch::channel(false);
        let tls = Arc::new(ArcSwap::from_pointee(context.unwrap()));
        let server = tokio::spawn(accept(listener, tls, router, closing));
        for alpn in [vec![b"h2".to_vec()], vec![b"http/1.1".to_vec()], vec![]] {
            let client = ClientContext::build(ClientParams {
                sni: Some("istiod".into()),
                alpn: alpn.clone(),
                ..ClientParams::new(ServerVerification::WebPki { anchors: roots.clone(), san: None })
            });
            let mut silent = client.unwrap().connect(TcpStream::connect(address).await.unwrap()).await.unwrap();
            let mut said = Vec::new();
            // Whatever it says, it goes.
            let ended = timeout(Duration::from_secs(60), silent.stream.read_to_end(&mut said)).await;
            assert!(ended.is_ok(), "{alpn:?}: the connection stays");
        }
        server.abort();
    }
}
