//! The control plane, wired: objects come from an API server, go through the model and the generator, and leave as xDS;
//! beside it the certificate authority. [`start`] brings it up, [`Running::stop`] takes it down; `main` adds settings and
//! signals.
//!
//! Reading order: [`settings`], `source` (which objects are read), `mesh` (mesh config), `model` (objects → snapshots),
//! `identity` (the parts of it: `authority`, `registration`, `auth`, `federation`, `secret_access`), `transport` and `idle` (the TLS port), `monitoring` (the port of readiness and metrics);
//! `auto_registration` (workloads that are no pods); `leader` (who of several writes), `root_cert`, `dns_certs`, `status`, `conditions` and `events` (what is written back);
//! `webhook` (pods and objects before they are stored).

mod auth;
mod authority;
mod auto_registration;
mod conditions;
mod dns_certs;
mod events;
mod federation;
mod identity;
mod idle;
mod jwks;
mod leader;
mod lists_alarm;
mod mesh;
mod model;
mod monitoring;
mod registration;
mod root_cert;
mod secret_access;
pub mod settings;
mod source;
mod status;
mod transport;
mod webhook;

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
use weft_ca::CertificateService;
use weft_model::MeshSnapshot;
use weft_runtime::ready::Readiness;
use weft_store::source::SourceState;
use weft_store::{ApiClient, KubeSource, Leadership};
use weft_xds_server::debug::{Monitoring, router};
use weft_xds_server::{AdsServer, NoAuthentication, Options};

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
    /// Where the webhooks are served.
    pub webhooks: SocketAddr,
    /// Whether all of it is up.
    pub ready: Readiness,
    ads: AdsServer,
    closing: watch::Sender<bool>,
    servers: JoinSet<anyhow::Result<()>>,
    /// What runs until the process ends: source, build, renewals.
    background: JoinSet<anyhow::Result<()>>,
    drain: Duration,
    leadership: Leadership,
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
    let monitoring_at = listener.local_addr()?;
    let standing: Arc<ArcSwap<Option<Standing>>> = Arc::default();
    let hooks = Arc::new(webhook::Metrics::default());
    let shown = shown(&settings, &ads, &ready, &callers, &signer, &standing, &hooks);
    if let Some(address) = settings.http_addr {
        let listener = bind(address, "--http-addr").await?;
        servers.spawn(monitoring::serve(listener, router(shown.clone()), closing.subscribe()));
    }
    servers.spawn(monitoring::serve(listener, router(shown), closing.subscribe()));

    let client = connect(&settings).await?;
    if settings.secret_access_review {
        ads.set_secret_access(secret_access::by_review(client.clone()));
    }
    let source = source::start(&client, &settings)?;
    let leadership = leader::compete(&client, &settings);
    let leader = leadership.leader();
    standing.store(Arc::new(Some(Standing { source: source.state(), leader: leader.clone() })));
    source::wait_synced(&source, &blocked).await;
    let told = (client.clone(), source.cache().clone(), settings.clone());
    let tell = move || events::of_mesh_config(told.0.clone(), told.1.clone(), told.2.clone());
    background.spawn(done(leader::while_leader(leader.clone(), tell)));
    let mesh = mesh::Mesh::first(source.cache(), &settings, &blocked).await;
    blocked.set_reason("the certificate authority");
    let (told, meshes) = watch::channel(mesh.config.clone());
    let identity = identity::begin(&client, &settings, meshes).await?;
    callers.store(Arc::new(Some(identity.callers.clone())));

    let (registrar, reports) = auto_registration::Registrar::new(client.clone(), source.cache().clone(), &settings);
    if settings.auto_registration {
        ads.set_observer(registrar.clone());
        background.spawn(done(registrar.run(reports)));
    }

    blocked.set_reason("the first snapshot");
    let (latest, mut snapshots) = watch::channel(Arc::<MeshSnapshot>::default());
    let cache = source.cache().clone();
    background.spawn(model::follow(cache.clone(), settings.clone(), mesh, told, ads.clone(), latest));
    if snapshots.changed().await.is_err() {
        bail!("the first snapshot could not be built");
    }

    let certificates = identity.certificates.clone();
    signer.store(Arc::new(Some(certificates.clone())));
    let listener = bind(settings.secure_grpc_addr, "--secure-grpc-addr").await?;
    let secure = listener.local_addr()?;
    let (tls, known) = (identity.tls.clone(), identity.callers.clone());
    servers.spawn(serve_secure(listener, tls, ads.clone(), known, certificates, closing.subscribe()));
    let plain = match settings.plaintext_xds {
        true => Some(serve_plain(&mut servers, &settings, &ads, closing.subscribe()).await?),
        false => None,
    };

    let listener = bind(settings.https_addr, "--https-addr").await?.into_std().context("webhook port")?;
    let webhooks = listener.local_addr()?;
    let parts = webhook::Parts {
        cache: cache.clone(),
        settings: settings.clone(),
        signing: identity.signing(),
        metrics: hooks.clone(),
        closing: closing.subscribe(),
    };
    servers.spawn(webhook::start(listener, parts)?);
    let (known, roots) = (client.clone(), identity.signing());
    background.spawn(done(webhook::keep_configurations(known, settings.clone(), roots, ready.clone(), hooks)));

    identity.run(&mut background, &client, &cache, &settings, &leader);
    background.spawn(done(source::report_loss(settings.clone(), source.state(), ready.clone())));
    if settings.write_status {
        let told = (client.clone(), cache.clone(), snapshots.clone());
        let tell = move || conditions::write(told.0.clone(), told.1.clone(), told.2.clone());
        background.spawn(done(leader::while_leader(leader.clone(), tell)));
        let write = move || status::write(client.clone(), cache.clone(), snapshots.clone());
        background.spawn(done(leader::while_leader(leader, write)));
    }
    drop(blocked);
    tracing::info!(%secure, monitoring = %monitoring_at, "weftd is ready");
    let drain = settings.drain;
    Ok(Running {
        secure,
        plain,
        monitoring: monitoring_at,
        webhooks,
        ready,
        ads,
        closing,
        servers,
        background,
        drain,
        leadership,
        _source: source,
    })
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
        // The writers have stopped: another replica may begin.
        self.leadership.release().await;
        self.servers.shutdown().await;
    }

    /// The server of the proxies.
    pub fn ads(&self) -> &AdsServer {
        &self.ads
    }
}

/// How this process stands to the API server.
struct Standing {
    source: watch::Receiver<SourceState>,
    leader: watch::Receiver<bool>,
}

impl Standing {
    fn metrics(&self) -> String {
        source::metrics(&self.source.borrow(), *self.leader.borrow())
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

fn shown(
    settings: &Settings,
    ads: &AdsServer,
    ready: &Readiness,
    callers: &Arc<ArcSwap<Option<Callers>>>,
    signer: &Arc<ArcSwap<Option<CertificateService>>>,
    standing: &Arc<ArcSwap<Option<Standing>>>,
    hooks: &Arc<webhook::Metrics>,
) -> Monitoring {
    let (ready, callers, signer, standing) = (ready.clone(), callers.clone(), signer.clone(), standing.clone());
    let hooks = hooks.clone();
    Monitoring {
        server: ads.clone(),
        instance: settings.pod_name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        not_ready: Arc::new(move || ready.reasons().iter().map(|r| format!("waiting for {r}")).collect()),
        more_metrics: Arc::new(move || {
            let certificates = signer.load().as_ref().as_ref().map(authority::metrics).unwrap_or_default();
            certificates + &hooks.show() + &standing.load().as_ref().as_ref().map(Standing::metrics).unwrap_or_default()
        }),
        access: Arc::new(move |headers, remote| {
            let callers = callers.load_full();
            Box::pin(async move {
                match &*callers {
                    Some(callers) => callers.debug_scope(headers, remote).await,
                    None => None,
                }
            })
        }),
    }
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
        .layer(idle::CountRequests)
        .add_service(ads.service(Arc::new(callers)))
        .add_service(certificates.into_server())
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop)
        .await
        .context("xDS port")
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
