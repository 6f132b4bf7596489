//! What is handed out: the SVID and the roots, as PEM and ready for handshakes.

use weft_identity::Svid;
use weft_tls::{CertifiedKey, TlsError, TrustAnchors, pem};

/// The secrets of a workload at one time. Immutable: a rotation makes new ones.
#[derive(Debug, Clone)]
pub struct WorkloadSecrets {
    /// The identity document, PEM.
    pub svid: Svid,
    /// The same, ready for handshakes.
    pub certificate: CertifiedKey,
    /// Roots under which peers are checked.
    pub trust: TrustAnchors,
    /// The same, PEM.
    pub roots_pem: String,
    /// Roots that came with the SVID; those of the file are added to them.
    pub(crate) received_roots: String,
    /// Grows with each change.
    pub version: u64,
}

impl WorkloadSecrets {
    /// The same SVID under the roots that came with it and those of the file.
    pub(crate) fn with_file_roots(&self, file_roots: &str) -> Result<Self, TlsError> {
        let roots_pem = union(&self.received_roots, file_roots)?;
        let trust = TrustAnchors::from_pem(roots_pem.as_bytes())?;
        Ok(Self { trust, roots_pem, version: self.version + 1, ..self.clone() })
    }
}

/// The certificates of both texts, each once.
pub(crate) fn union(a: &str, b: &str) -> Result<String, TlsError> {
    let mut all = Vec::new();
    for text in [a, b].into_iter().filter(|text| !text.trim().is_empty()) {
        for der in pem::certificates("root certificates", text.as_bytes())? {
            if !all.contains(&der) {
                all.push(der);
            }
        }
    }
    Ok(pem::encode_chain(&all))
}
