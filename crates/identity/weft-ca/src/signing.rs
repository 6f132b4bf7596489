//! What signs: an authority of our own, or one elsewhere that we register workloads with.

use crate::{Authority, Registration, SignError, SignedChain, Token};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use weft_identity::{SpiffeId, TrustDomain};
use weft_tls::{CertificateFacts, CertifiedKey, TrustAnchors, Zeroizing};

/// What signs. A clone is one reference count.
#[derive(Debug, Clone)]
pub enum Signing {
    /// An authority of our own.
    Own(Arc<Authority>),
    /// One elsewhere.
    Elsewhere(Arc<Registration>),
}

/// What is asked for beside the request itself.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Lifetime; zero asks for the default.
    pub ttl: Duration,
    /// Signer, as the workload asks; only an authority elsewhere has several.
    pub signer: Option<String>,
    /// The caller's token, when it showed one.
    pub token: Option<Token>,
    /// Trust domains in which the request may name the caller's account beside its own.
    pub domains: Arc<[TrustDomain]>,
}

impl Signing {
    /// Signs `csr` (PEM) for `caller`'s own identity.
    ///
    /// # Errors
    /// Why not.
    pub async fn sign(&self, caller: &SpiffeId, csr: &[u8], wish: Wish) -> Result<SignedChain, SignError> {
        match self {
            Self::Own(_) if wish.signer.is_some() => {
                let text = "this mesh has one signer, its own authority; leave CertSigner out, or set up EXTERNAL_CA";
                Err(SignError::BadRequest(text.into()))
            }
            Self::Own(authority) => authority.sign(caller, &wish.domains, csr, wish.ttl, SystemTime::now()),
            Self::Elsewhere(registration) => registration.sign(caller, csr, wish.ttl, wish.signer, wish.token).await,
        }
    }

    /// A certificate for a server of our own, PEM: the chain without roots, and the key.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn server_certificate_pem(
        &self,
        dns: &[&str],
        ttl: Duration,
    ) -> Result<(String, Zeroizing<String>), SignError> {
        match self {
            Self::Own(authority) => Ok(authority.server_certificate_pem(dns, None, ttl, SystemTime::now())?),
            Self::Elsewhere(registration) => registration.server_certificate_pem(dns, ttl).await,
        }
    }

    /// The same, ready for handshakes.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn server_certificate(&self, dns: &[&str], ttl: Duration) -> Result<CertifiedKey, SignError> {
        let (chain, key) = self.server_certificate_pem(dns, ttl).await?;
        Ok(CertifiedKey::from_pem(chain.as_bytes(), key.as_bytes())?)
    }

    /// The roots that workloads trust.
    pub fn roots(&self) -> &TrustAnchors {
        match self {
            Self::Own(authority) => authority.roots(),
            Self::Elsewhere(registration) => registration.roots(),
        }
    }

    /// The same, PEM: the content of `istio-ca-root-cert`. The root of what is signed now comes first.
    pub fn root_pem(&self) -> String {
        match self {
            Self::Own(authority) => authority.root_pem().to_owned(),
            Self::Elsewhere(registration) => registration.roots().pem(),
        }
    }

    /// Revocation lists that workloads check peers by, PEM; empty when there are none.
    pub fn crl_pem(&self) -> &str {
        match self {
            Self::Own(authority) => &authority.material().crl,
            Self::Elsewhere(_) => "",
        }
    }

    /// The end of the revocation list that ends first; `None` without lists.
    pub fn lists_until(&self) -> Option<SystemTime> {
        match self {
            Self::Own(authority) => authority.lists_until(),
            Self::Elsewhere(_) => None,
        }
    }

    /// Facts of the certificate that signs, when it is ours.
    pub fn facts(&self) -> Option<&CertificateFacts> {
        match self {
            Self::Own(authority) => Some(authority.facts()),
            Self::Elsewhere(_) => None,
        }
    }

    /// The earliest end of a root.
    pub fn root_not_after(&self) -> SystemTime {
        let earliest = self.roots().facts().iter().map(|facts| facts.not_after).min();
        // There is no bundle without a root.
        earliest.unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

impl From<Arc<Authority>> for Signing {
    fn from(authority: Arc<Authority>) -> Self {
        Self::Own(authority)
    }
}

impl From<Registration> for Signing {
    fn from(registration: Registration) -> Self {
        Self::Elsewhere(Arc::new(registration))
    }
}
