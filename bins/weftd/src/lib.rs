//! The control plane, wired: objects come from an API server, go through the model and the generator, and leave as xDS;
//! beside it the certificate authority. [`start`] brings it up, [`Running::stop`] takes it down; `main` adds settings and
//! signals.
//!
//! Reading order: [`settings`], `mesh` (mesh config), `model` (objects → snapshots), `authority`, `auth`, `transport` (the TLS
//! port), `root_cert` and `status` (what is written back).

mod auth;
mod authority;
mod mesh;
mod model;
mod root_cert;
pub mod settings;
mod status;
mod transport;

pub use settings::Settings;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use auth::Callers;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::service::InterceptorLayer;
use tonic::{Request, Status};
use weft_ca::{CertificateService, ConnectionInfo};
use weft_identity::TrustDomain;
use weft_k8s_api::KindInfo;
use weft_k8s_api::kinds::by_kind;
use weft_model::MeshSnapshot;
use weft_runtime::ready::Readiness;
use weft_store::{ApiClient, KubeSource, SourceOptions};
use weft_xds_server::debug::{Monitoring, router};
use weft_xds_server::{AdsServer, NoAuthentication, Options, RemoteAddr};

/// Pings on idle connections: a proxy that is gone without a word is noticed within the sum.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// A running control plane.
pub struct Running {
    /// Where xDS and CA are served.
    pub secure: SocketAddr,
    /// Where xDS is served in plain text, when it is.
    pub plain: Option<SocketAddr>,
    /// Where readiness, metrics and debug endpoints are served.
    pub monitoring: SocketAddr,
    /// Whether all of it is up.
    pub ready: Readiness,
    ads: AdsServer,
    closing: watch::Sender<bool>,
    servers: JoinSet<anyhow::Result<()>>,
    /// What runs until the process ends: source, build, renewals.
    background: JoinSet<anyhow::Result<()>>,
    drain: Duration,
    _source: Arc<KubeSource>,
}

/// Brings the control plane up. Returns when it is ready to serve: objects are listed, an authority is there, a first
/// snapshot is built. The monitoring port answers before that.
///
/// # Errors
/// When a port is taken, the API server's address makes no sense, or the CA's Secret is unusable.
pub async fn start(settings: Settings) -> anyhow::Result<Running> {
    weft_tls::install_provider();
    let settings = Arc::new(settings);
    let ready = Readiness::default();
    let blocked = ready.block("the API server's objects");
    let ads = AdsServer::new(weft_xds_gen::GenCache::default(), ads_options(&settings));
    let closing = watch::Sender::new(false);
    let (mut servers, mut background) = (JoinSet::new(), JoinSet::new());

    let callers: Arc<ArcSwap<Option<Callers>>> = Arc::default();
    let signer: Arc<ArcSwap<Option<CertificateService>>> = Arc::default();
    let listener = bind(settings.monitoring_addr, "--monitoring-addr").await?;
    let monitoring = listener.local_addr()?;
    servers.spawn(serve_monitoring(listener, shown(&settings, &ads, &ready, &callers, &signer), closing.subscribe()));

    let client = connect(&settings).await?;
    let source = Arc::new(KubeSource::start(&client, &watched()?, &SourceOptions::default()));
    wait_synced(&source).await;
    let mesh = mesh::Mesh::first(source.cache(), &settings, &blocked).await;
    blocked.set_reason("the certificate authority");
    let model_settings = mesh::model_settings(&settings, &mesh.config);
    let trust_domain = TrustDomain::new(&model_settings.trust_domain).context("mesh config trustDomain")?;
    let authority = authority::load_or_create(&client, &settings, &trust_domain).await?;
    let aliases = &mesh.config.trust_domain_aliases;
    let known = Callers::new(&client, &trust_domain, aliases, &model_settings.root_namespace);
    callers.store(Arc::new(Some(known.clone())));

    blocked.set_reason("the first snapshot");
    let (latest, mut snapshots) = watch::channel(Arc::<MeshSnapshot>::default());
    let cache = source.cache().clone();
    background.spawn(model::follow(cache.clone(), settings.clone(), mesh, ads.clone(), latest));
    if snapshots.changed().await.is_err() {
        bail!("the first snapshot could not be built");
    }

    let (current, authorities) = watch::channel(authority.clone());
    let certificates = CertificateService::new(authority.clone(), known.authenticators.clone());
    signer.store(Arc::new(Some(certificates.clone())));
    let names = settings.server_names();
    let tls = Arc::new(ArcSwap::from_pointee(transport::context(&authority, &names)?));
    let listener = bind(settings.secure_grpc_addr, "--secure-grpc-addr").await?;
    let secure = listener.local_addr()?;
    servers.spawn(serve_secure(listener, tls.clone(), ads.clone(), known, certificates.clone(), closing.subscribe()));
    let plain = match settings.plaintext_xds {
        true => Some(serve_plain(&mut servers, &settings, &ads, closing.subscribe()).await?),
        false => None,
    };

    background.spawn(done(transport::renew(tls, authorities.clone(), names)));
    background.spawn(done(root_cert::publish(client.clone(), cache.clone(), authorities)));
    background.spawn(done(authority::follow(cache.clone(), settings.clone(), trust_domain, certificates, current)));
    if settings.write_status {
        background.spawn(done(status::write(client, cache, snapshots)));
    }
    drop(blocked);
    tracing::info!(%secure, %monitoring, "weftd is ready");
    let drain = settings.drain;
    Ok(Running { secure, plain, monitoring, ready, ads, closing, servers, background, drain, _source: source })
}

impl Running {
    /// Returns when a part has failed; never while all is well.
    ///
    /// # Errors
    /// What failed.
    pub async fn failed(&mut self) -> anyhow::Result<()> {
        let ended = tokio::select! {
            Some(ended) = self.servers.join_next() => ended,
            Some(ended) = self.background.join_next() => ended,
        };
        ended.context("a task of weftd panicked")??;
        bail!("a task of weftd ended by itself")
    }

    /// Stops: takes no new connections, tells the proxies to go elsewhere, waits for them as long as the settings say.
    pub async fn stop(mut self) {
        let _stopping = self.ready.block("the end: weftd is stopping");
        self.closing.send_replace(true);
        self.ads.close();
        let all = async { while self.servers.join_next().await.is_some() {} };
        if tokio::time::timeout(self.drain, all).await.is_err() {
            tracing::warn!("not all connections ended in time");
        }
        self.background.shutdown().await;
        self.servers.shutdown().await;
    }

    /// The server of the proxies.
    pub fn ads(&self) -> &AdsServer {
        &self.ads
    }
}

async fn done(task: impl Future<Output = ()>) -> anyhow::Result<()> {
    task.await;
    Ok(())
}

fn ads_options(settings: &Settings) -> Options {
    Options { instance: settings.pod_name.clone(), max_stream_age: settings.max_connection_age, ..Options::default() }
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{address}: cannot listen (change {flag})"))
}

async fn connect(settings: &Settings) -> anyhow::Result<ApiClient> {
    let client = match (&settings.api_url, &settings.token_file, &settings.kubeconfig) {
        (Some(url), Some(file), _) => ApiClient::connect_with_token_file(url, file),
        (Some(url), None, _) => ApiClient::connect(url, None),
        (None, _, Some(path)) => ApiClient::from_kubeconfig(path, settings.context.as_deref()).await,
        (None, ..) => match ApiClient::in_cluster() {
            Ok(client) => Ok(client),
            Err(_) => ApiClient::infer().await,
        },
    };
    client.context("connection to the API server")
}

/// The kinds of the model, and ConfigMaps.
fn watched() -> anyhow::Result<Vec<&'static KindInfo>> {
    let kinds = weft_model::KINDS.iter().chain(&[("", "ConfigMap")]);
    kinds.map(|(group, kind)| by_kind(group, kind).with_context(|| format!("kind {kind} is not known"))).collect()
}

/// Waits for the first lists, and says what is waited for.
async fn wait_synced(source: &KubeSource) {
    let mut state = source.state();
    loop {
        match tokio::time::timeout(Duration::from_secs(5), source.synced()).await {
            Ok(()) => return,
            Err(_) => {
                let problem = state.borrow_and_update().problem();
                tracing::warn!("waiting for the API server: {}", problem.as_deref().unwrap_or("no answer yet"));
            }
        }
    }
}

fn shown(
    settings: &Settings,
    ads: &AdsServer,
    ready: &Readiness,
    callers: &Arc<ArcSwap<Option<Callers>>>,
    signer: &Arc<ArcSwap<Option<CertificateService>>>,
) -> Monitoring {
    let (ready, callers, signer) = (ready.clone(), callers.clone(), signer.clone());
    Monitoring {
        server: ads.clone(),
        instance: settings.pod_name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        not_ready: Arc::new(move || ready.reasons().iter().map(|r| format!("waiting for {r}")).collect()),
        more_metrics: Arc::new(move || signer.load().as_ref().as_ref().map(authority::metrics).unwrap_or_default()),
        access: Arc::new(move |headers| {
            let callers = callers.load_full();
            Box::pin(async move {
                match &*callers {
                    Some(callers) => callers.may_debug(headers).await,
                    None => false,
                }
            })
        }),
    }
}

async fn serve_monitoring(
    listener: TcpListener,
    shown: Monitoring,
    mut closing: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let app = router(shown).into_make_service_with_connect_info::<SocketAddr>();
    let stop = async move { _ = closing.wait_for(|closing| *closing).await };
    axum::serve(listener, app).with_graceful_shutdown(stop).await.context("monitoring port")
}

async fn serve_secure(
    listener: TcpListener,
    tls: transport::ServerTls,
    ads: AdsServer,
    callers: Callers,
    certificates: CertificateService,
    mut closing: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let connections = transport::accept(listener, tls);
    let stop = async move { _ = closing.wait_for(|closing| *closing).await };
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .max_concurrent_streams(Some(100))
        .layer(InterceptorLayer::new(note_remote))
        .add_service(ads.service(Arc::new(callers)))
        .add_service(certificates.into_server())
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop)
        .await
        .context("xDS port")
}

/// Tells the xDS server where a request came from.
fn note_remote(mut request: Request<()>) -> Result<Request<()>, Status> {
    if let Some(remote) = request.extensions().get::<ConnectionInfo>().map(|info| info.remote) {
        request.extensions_mut().insert(RemoteAddr(remote));
    }
    Ok(request)
}

async fn serve_plain(
    servers: &mut JoinSet<anyhow::Result<()>>,
    settings: &Settings,
    ads: &AdsServer,
    mut closing: watch::Receiver<bool>,
) -> anyhow::Result<SocketAddr> {
    let listener = bind(settings.grpc_addr, "--grpc-addr").await?;
    let address = listener.local_addr()?;
    let service = ads.service(Arc::new(NoAuthentication));
    tracing::warn!(%address, "xDS is served in plain text, to anyone");
    servers.spawn(async move {
        let stop = async move { _ = closing.wait_for(|closing| *closing).await };
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop)
            .await
            .context("plain xDS port")
    });
    Ok(address)
}
