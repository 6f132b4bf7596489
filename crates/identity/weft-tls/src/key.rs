//! A certificate chain with its private key, ready for handshakes.

use crate::settings::default_provider;
use crate::{CertificateFacts, TlsError, pem};
use rustls_pki_types::CertificateDer;
use std::fmt;
use std::sync::Arc;

/// Longest chain that is sent.
const MAX_CHAIN: usize = 16;

/// A certificate chain with its private key. The key lives in the crypto library; its bytes are not kept. A clone is one
/// reference count.
#[derive(Clone)]
pub struct CertifiedKey {
    inner: Arc<Inner>,
}

struct Inner {
    rustls: Arc<rustls::sign::CertifiedKey>,
    facts: CertificateFacts,
}

impl CertifiedKey {
    /// From PEM: the chain, leaf first, and the leaf's key.
    ///
    /// # Errors
    /// When either is not PEM of the kind, the leaf cannot be read, or the key is not the leaf's.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain = pem::certificates("certificate chain", chain)?;
        if chain.len() > MAX_CHAIN {
            let reason = format!("{} certificates are too many; the limit is {MAX_CHAIN}", chain.len());
            return Err(TlsError::Certificate { what: "certificate chain", reason });
        }
        let facts = CertificateFacts::from_der("certificate chain, first certificate", &chain[0])?;
        // The library takes the bytes over and wipes its own copy; the PEM is the caller's to wipe.
        let key = default_provider().key_provider.load_private_key(pem::private_key(key)?).map_err(key_error)?;
        // Compared here and not by the library, which reads no certificate of version 1: `openssl x509 -req` makes such.
        if key.public_key().is_some_and(|public| !is_key_of(&public, &chain[0])) {
            return Err(TlsError::Key("it does not belong to the certificate; the two must be made together".into()));
        }
        let certified = rustls::sign::CertifiedKey::new(chain, key);
        Ok(Self { inner: Arc::new(Inner { rustls: Arc::new(certified), facts }) })
    }

    /// Facts of the leaf.
    pub fn facts(&self) -> &CertificateFacts {
        &self.inner.facts
    }

    /// The chain, DER, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.inner.rustls.cert
    }

    /// The chain, PEM, leaf first.
    pub fn chain_pem(&self) -> String {
        pem::encode_chain(self.chain())
    }

    pub(crate) fn rustls(&self) -> &Arc<rustls::sign::CertifiedKey> {
        &self.inner.rustls
    }
}

/// Whether a certificate is for the public key (SubjectPublicKeyInfo, DER).
fn is_key_of(public: &[u8], certificate: &[u8]) -> bool {
    let parsed = x509_parser::parse_x509_certificate(certificate);
    parsed.is_ok_and(|(_, certificate)| certificate.tbs_certificate.subject_pki.raw == public)
}

fn key_error(error: rustls::Error) -> TlsError {
    TlsError::Key(format!("it cannot be used: {error}; use RSA (2048 bits or more), ECDSA P-256 or P-384"))
}

impl fmt::Debug for CertifiedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertifiedKey").field("facts", &self.inner.facts).finish_non_exhaustive()
    }
}

impl PartialEq for CertifiedKey {
    /// Equal chains: a chain names its key.
    fn eq(&self, other: &Self) -> bool {
        self.chain() == other.chain()
    }
}
