//! Who calls: client certificates of the mesh, and service-account tokens that the API server reviews.

use crate::mesh::model_settings;
use crate::settings::Settings;
use http::HeaderMap;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::watch;
use tonic::Status;
use tonic::metadata::MetadataMap;
use weft_ca::caller::BoxFuture;
use weft_ca::{
    AuthFailure, Caller as Proven, CallerAuthenticator, CertificateAuthenticator, Evidence, LiveTrust,
    TokenAuthenticator, TokenIdentity, TokenReview, authenticate,
};
use weft_core::well_known::TOKEN_AUDIENCE;
use weft_identity::TrustDomain;
use weft_k8s_api::istio::MeshConfig;
use weft_store::{ApiClient, ClientError};
use weft_xds_server::debug::Scope;
use weft_xds_server::{Authenticator, Caller};

/// All ways to prove who one is.
#[derive(Clone)]
pub(crate) struct Callers {
    pub authenticators: Vec<Arc<dyn CallerAuthenticator>>,
    mesh: watch::Receiver<Arc<MeshConfig>>,
    namespace: String,
}

impl Callers {
    /// Certificates of the mesh, and tokens that `client`'s API server knows. `namespace` is the control plane's own, the
    /// root namespace unless the mesh config names another.
    pub fn new(client: &ApiClient, trust: &LiveTrust, mesh: watch::Receiver<Arc<MeshConfig>>, namespace: &str) -> Self {
        let certificates = CertificateAuthenticator::new(trust.clone());
        let tokens = TokenAuthenticator::new(trust.clone(), review(client.clone()));
        Self { authenticators: vec![Arc::new(certificates), Arc::new(tokens)], mesh, namespace: namespace.to_string() }
    }

    /// What the bearer of these headers may see of the debug endpoints: service accounts of the root namespace and of the
    /// control plane's own see everything, others what is of their namespace, strangers nothing.
    pub async fn debug_scope(&self, headers: HeaderMap, remote: Option<IpAddr>) -> Option<Scope> {
        let evidence = Evidence { headers: &headers, peer: None, remote };
        let caller = authenticate(&self.authenticators, evidence).await.ok()?;
        let (namespace, _) = caller.identity.namespace_and_account()?;
        let root = self.mesh.borrow().root_namespace.clone();
        match namespace == self.namespace || (!root.is_empty() && namespace == root) {
            true => Some(Scope::Mesh),
            false => Some(Scope::Namespace(namespace.to_string())),
        }
    }
}

/// The names of the mesh that the config gives it. A trust domain with roots of its own is another mesh: that its accounts
/// count as ours of the same name (`trustDomainAliases`) does not mean that we give certificates in it.
pub(crate) fn names(mesh: &MeshConfig, own: &str) -> Result<(TrustDomain, Vec<TrustDomain>), String> {
    let own = TrustDomain::new(own).map_err(|error| format!("mesh config trustDomain: {error}"))?;
    let others: Vec<&String> = mesh.ca_certificates.iter().flat_map(|data| &data.trust_domains).collect();
    let aliases = mesh.trust_domain_aliases.iter().filter(|alias| !others.contains(alias));
    Ok((own, aliases.filter_map(|alias| TrustDomain::new(alias).ok()).collect()))
}

/// Keeps the names of the mesh at what its config says.
pub(crate) async fn follow_names(
    settings: Arc<Settings>,
    mut meshes: watch::Receiver<Arc<MeshConfig>>,
    trust: LiveTrust,
) {
    while meshes.changed().await.is_ok() {
        let mesh = meshes.borrow_and_update().clone();
        match names(&mesh, &model_settings(&settings, &mesh).trust_domain) {
            Ok((own, aliases)) => {
                if trust.own().as_ref() != Some(&own) {
                    tracing::info!("the trust domain is {own} from now on; pods take it when they are made anew");
                }
                trust.set(own, aliases);
            }
            Err(error) => tracing::error!("{error}; the last good one stays in force"),
        }
    }
}

impl Authenticator for Callers {
    fn authenticate<'a>(
        &'a self,
        headers: &'a MetadataMap,
        extensions: &'a http::Extensions,
    ) -> BoxFuture<'a, Result<Caller, Status>> {
        Box::pin(async move {
            let peer = weft_ca::transport::peer_of(extensions);
            let remote = weft_ca::transport::remote_of(extensions);
            let evidence = Evidence { headers: headers.as_ref(), peer: peer.as_deref(), remote };
            let proven = authenticate(&self.authenticators, evidence).await;
            account(&proven.map_err(|failure| match failure {
                AuthFailure::Refused(message) => Status::unauthenticated(message),
                AuthFailure::Unavailable(message) => Status::unavailable(message),
            })?)
        })
    }
}

fn account(proven: &Proven) -> Result<Caller, Status> {
    match proven.identity.namespace_and_account() {
        Some((namespace, account)) => {
            Ok(Caller::Account { namespace: namespace.to_string(), service_account: account.to_string() })
        }
        None => Err(Status::unauthenticated(format!("{} is no service account", proven.identity))),
    }
}

/// Reviews tokens by the API server.
fn review(client: ApiClient) -> TokenReview {
    Arc::new(move |token| {
        let client = client.clone();
        Box::pin(async move {
            let identity = client.token_review(&token, &[TOKEN_AUDIENCE]).await.map_err(|error| match error {
                ClientError::Unauthorized { message, .. } => AuthFailure::Refused(message),
                other => AuthFailure::Unavailable(format!("the token cannot be reviewed: {other}")),
            })?;
            match identity.service_account() {
                Some((namespace, account)) => {
                    Ok(TokenIdentity { namespace: namespace.to_string(), service_account: account.to_string() })
                }
                None => Err(AuthFailure::Refused("the token is not of a service account".into())),
            }
        })
    })
}
