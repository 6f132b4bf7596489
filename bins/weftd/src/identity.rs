//! The parts of identity, wired: who signs, who is believed, what is published, and what keeps each of them current.

use crate::auth::{self, Callers};
use crate::authority;
use crate::federation::{self, Trust};
use crate::mesh::model_settings;
use crate::settings::Settings;
use crate::transport::{self, ServerTls};
use crate::{dns_certs, done, leader, lists_alarm, root_cert};
use anyhow::Context;
use arc_swap::ArcSwap;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;
use weft_ca::{CertificateService, LiveTrust, Signing};
use weft_identity::TrustDomain;
use weft_k8s_api::istio::MeshConfig;
use weft_store::{ApiClient, Cache};

/// Mesh config, and each that follows.
pub(crate) type Meshes = watch::Receiver<Arc<MeshConfig>>;

/// The parts of identity.
pub(crate) struct Identity {
    pub callers: Callers,
    pub certificates: CertificateService,
    pub tls: ServerTls,
    trust_domain: TrustDomain,
    names: LiveTrust,
    meshes: Meshes,
    current: watch::Sender<Signing>,
    signing: watch::Receiver<Signing>,
}

/// Finds or makes what signs, and certifies this process by it.
///
/// # Errors
/// When there is no usable authority, or the mesh config's trust domain is none.
pub(crate) async fn begin(client: &ApiClient, settings: &Arc<Settings>, meshes: Meshes) -> anyhow::Result<Identity> {
    let mesh = meshes.borrow().clone();
    let (own, aliases) =
        auth::names(&mesh, &model_settings(settings, &mesh).trust_domain).map_err(anyhow::Error::msg)?;
    let signing = authority::load_or_create(client, settings, &mesh, &own).await?;
    let names = LiveTrust::new(own.clone(), aliases);
    let callers = Callers::new(client, &names, meshes.clone(), &settings.namespace);
    let certificates = CertificateService::with_trust(signing.clone(), names.clone(), callers.authenticators.clone());
    let options = transport::tls_settings(settings.compliance_policy);
    let context = transport::context(&signing, &settings.server_names(), options).await;
    let tls = Arc::new(ArcSwap::from_pointee(context.context("the server's own certificate")?));
    let (current, signing) = watch::channel(signing);
    Ok(Identity { callers, certificates, tls, trust_domain: own, names, meshes, current, signing })
}

impl Identity {
    /// What signs, now and later.
    pub fn signing(&self) -> watch::Receiver<Signing> {
        self.signing.clone()
    }

    /// Keeps all of it current, for as long as `tasks` live. What is written to the API server is written by the leader.
    pub fn run(
        self,
        tasks: &mut JoinSet<anyhow::Result<()>>,
        client: &ApiClient,
        cache: &Arc<Cache>,
        settings: &Arc<Settings>,
        leading: &watch::Receiver<bool>,
    ) {
        let Self { certificates, tls, trust_domain, names, meshes, current, signing, .. } = self;
        let options = transport::tls_settings(settings.compliance_policy);
        tasks.spawn(done(transport::renew(tls, signing.clone(), settings.server_names(), options)));
        tasks.spawn(done(lists_alarm::watch(signing.clone())));
        tasks.spawn(done(auth::follow_names(settings.clone(), meshes.clone(), names)));
        let (trust, trusted) = watch::channel(Arc::<Trust>::default());
        let known = root_cert::bundles(client.clone(), settings.namespace.clone());
        let (ours, now, config) = (settings.clone(), signing.clone(), meshes.clone());
        tasks.spawn(done(async move {
            federation::follow(ours, now, config, trust, known.await, weft_tls::TrustAnchors::system).await;
        }));
        let roots = (client.clone(), cache.clone(), trusted, settings.crl_config_map.clone());
        let publish = move || root_cert::publish(roots.0.clone(), roots.1.clone(), roots.2.clone(), roots.3.clone());
        tasks.spawn(done(leader::while_leader(leading.clone(), publish)));
        let dns = (client.clone(), cache.clone(), settings.clone(), signing, meshes.clone());
        let keep = move || dns_certs::keep(dns.0.clone(), dns.1.clone(), dns.2.clone(), dns.3.clone(), dns.4.clone());
        tasks.spawn(done(leader::while_leader(leading.clone(), keep)));
        let settings = settings.clone();
        match settings.external_ca {
            Some(_) => {
                tasks.spawn(done(authority::follow_elsewhere(client.clone(), settings, meshes, certificates, current)))
            }
            None => {
                let cache = cache.clone();
                tasks.spawn(done(authority::follow(cache, settings, trust_domain, certificates, current)))
            }
        };
    }
}
