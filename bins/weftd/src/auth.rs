//! Who calls: client certificates of the mesh, and service-account tokens that the API server reviews.

use http::HeaderMap;
use std::sync::Arc;
use tonic::Status;
use tonic::metadata::MetadataMap;
use weft_ca::caller::BoxFuture;
use weft_ca::{
    AuthFailure, Caller as Proven, CallerAuthenticator, CertificateAuthenticator, TokenAuthenticator, TokenIdentity,
    TokenReview, authenticate,
};
use weft_core::well_known::TOKEN_AUDIENCE;
use weft_identity::TrustDomain;
use weft_store::{ApiClient, ClientError};
use weft_xds_server::{Authenticator, Caller};

/// All ways to prove who one is.
#[derive(Clone)]
pub(crate) struct Callers {
    pub authenticators: Vec<Arc<dyn CallerAuthenticator>>,
    root_namespace: String,
}

impl Callers {
    /// Certificates of the trust domain (and its other names), and tokens that `client`'s API server knows.
    pub fn new(client: &ApiClient, trust_domain: &TrustDomain, aliases: &[String], root_namespace: &str) -> Self {
        let mut trusted = vec![trust_domain.clone()];
        trusted.extend(aliases.iter().filter_map(|alias| TrustDomain::new(alias).ok()));
        let certificates = CertificateAuthenticator::new(trusted);
        let tokens = TokenAuthenticator::new(trust_domain.clone(), review(client.clone()));
        Self {
            authenticators: vec![Arc::new(certificates), Arc::new(tokens)],
            root_namespace: root_namespace.to_string(),
        }
    }

    /// True for callers that may see the whole mesh's configuration: service accounts of the root namespace.
    pub async fn may_debug(&self, headers: HeaderMap) -> bool {
        let Ok(caller) = authenticate(&self.authenticators, &headers, None).await else { return false };
        caller.identity.namespace_and_account().is_some_and(|(namespace, _)| namespace == self.root_namespace)
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
            let proven = authenticate(&self.authenticators, headers.as_ref(), peer.as_deref()).await;
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
