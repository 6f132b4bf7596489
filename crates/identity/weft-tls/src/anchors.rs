//! Whom to trust: root certificates, by trust domain where that is wanted, and revocation lists.

use crate::revocation::{Chain, Coverage};
use crate::settings::default_provider;
use crate::{CertificateFacts, TlsError, pem};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;
use weft_identity::TrustDomain;

/// Where distributions keep their roots.
pub const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Most lists of one issuer's name: each is looked at in every handshake with a peer of that issuer.
const MAX_CRLS_OF_NAME: usize = 16;

/// Roots and revocation lists. A clone is one reference count.
#[derive(Clone, Default)]
pub struct TrustAnchors {
    inner: Arc<Inner>,
}

#[derive(Clone, Default)]
struct Inner {
    roots: Roots,
    by_trust_domain: BTreeMap<TrustDomain, Roots>,
    crls: Vec<Arc<webpki::CertRevocationList<'static>>>,
    /// DER of `crls`, to tell two sets apart.
    crl_der: Vec<Vec<u8>>,
}

#[derive(Clone, Default)]
struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

/// Reads revocation lists without using them.
///
/// # Errors
/// As [`TrustAnchors::with_crls`]: who is given what passes here can use it.
pub fn check_crls(crls: &[u8]) -> Result<(), TlsError> {
    TrustAnchors::default().with_crls(crls).map(drop)
}

/// When the first of some revocation lists (PEM) ends (`nextUpdate`); `None` when there is no list, or none that can be read.
pub fn crls_until(crls: &[u8]) -> Option<SystemTime> {
    use x509_parser::prelude::{CertificateRevocationList, FromDer};
    let end = |der: &rustls_pki_types::CertificateRevocationListDer<'_>| {
        let (_, list) = CertificateRevocationList::from_der(der).ok()?;
        let seconds = u64::try_from(list.next_update()?.timestamp()).unwrap_or(0);
        Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
    };
    pem::revocation_lists(crls).ok()?.iter().filter_map(end).min()
}

/// Whether one of the roots (PEM) gives one of the lists (PEM): by name; the signature is a verifier's matter.
pub fn crls_of_roots(roots: &[u8], crls: &[u8]) -> bool {
    use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};
    let (Ok(roots), Ok(lists)) = (pem::certificates("root certificates", roots), pem::revocation_lists(crls)) else {
        return false;
    };
    let subjects: Vec<_> = roots.iter().filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1)).collect();
    lists.iter().any(|der| {
        CertificateRevocationList::from_der(der)
            .is_ok_and(|(_, list)| subjects.iter().any(|root| root.subject().as_raw() == list.issuer().as_raw()))
    })
}

impl TrustAnchors {
    /// Roots from PEM.
    ///
    /// # Errors
    /// When there is no certificate, or one cannot be read.
    pub fn from_pem(roots: &[u8]) -> Result<Self, TlsError> {
        Ok(Self { inner: Arc::new(Inner { roots: Roots::from_pem(roots)?, ..Inner::default() }) })
    }

    /// The roots of the operating system.
    ///
    /// # Errors
    /// When there is no bundle in the usual places, or none of its certificates can be read.
    pub fn system() -> Result<Self, TlsError> {
        let what = "system root certificates";
        for path in SYSTEM_BUNDLES {
            let Ok(text) = std::fs::read(path) else { continue };
            let certificates = pem::certificates(what, &text)?;
            // Distributions carry roots that a strict parser refuses; one of them must not take the others along.
            let (certificates, anchors): (Vec<_>, Vec<_>) =
                certificates.into_iter().filter_map(|der| anchor(&der).ok().map(|anchor| (der, anchor))).unzip();
            if !anchors.is_empty() {
                return Ok(Self {
                    inner: Arc::new(Inner { roots: Roots { certificates, anchors }, ..Inner::default() }),
                });
            }
        }
        let reason = format!("none found in {}; install the ca-certificates package", SYSTEM_BUNDLES.join(", "));
        Err(TlsError::Pem { what, reason })
    }

    /// Adds roots for one trust domain alone: peers with a SPIFFE ID of that domain are checked against these and no others.
    /// Peers of domains that are not added, the own one included, are refused then; those without a SPIFFE ID are checked
    /// against the general roots.
    ///
    /// # Errors
    /// As [`from_pem`](Self::from_pem).
    pub fn with_trust_domain(mut self, domain: TrustDomain, roots: &[u8]) -> Result<Self, TlsError> {
        let roots = Roots::from_pem(roots)?;
        Arc::make_mut(&mut self.inner).by_trust_domain.insert(domain, roots);
        Ok(self)
    }

    /// Adds revocation lists. When an issuer in a peer's chain has a list, each certificate of the chain must be covered by one
    /// that has not expired: what cannot be known to be unrevoked is refused. Chains of whose issuers none has a list, such as
    /// those of another mesh, are not subject to revocation by list. (An Envoy refuses these as well.)
    ///
    /// # Errors
    /// When there is no list, one cannot be read, or there are more than 16 of one issuer's name.
    pub fn with_crls(mut self, crls: &[u8]) -> Result<Self, TlsError> {
        let inner = Arc::make_mut(&mut self.inner);
        for der in pem::revocation_lists(crls)? {
            let list = webpki::OwnedCertRevocationList::from_der(&der)
                .map_err(|e| TlsError::Pem { what: "certificate revocation list", reason: e.to_string() })?;
            let list: webpki::CertRevocationList<'static> = list.into();
            let of_name = inner.crls.iter().filter(|known| known.issuer() == list.issuer()).count();
            if of_name >= MAX_CRLS_OF_NAME {
                let reason = format!("an issuer has more than {MAX_CRLS_OF_NAME} lists; keep those that are in force");
                return Err(TlsError::Pem { what: "certificate revocation list", reason });
            }
            inner.crls.push(Arc::new(list));
            inner.crl_der.push(der.as_ref().to_vec());
        }
        Ok(self)
    }

    /// The certificates of the general roots, DER.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.inner.roots.certificates
    }

    /// The general roots as PEM.
    pub fn pem(&self) -> String {
        pem::encode_chain(self.certificates())
    }

    /// Facts of every root, those of trust domains included.
    pub fn facts(&self) -> Vec<CertificateFacts> {
        let domains = self.inner.by_trust_domain.values();
        std::iter::once(&self.inner.roots)
            .chain(domains)
            .flat_map(|roots| &roots.certificates)
            .filter_map(|der| CertificateFacts::from_der("root certificate", der).ok())
            .collect()
    }

    /// Trust domains that have roots of their own.
    pub fn trust_domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.inner.by_trust_domain.keys()
    }

    /// Whether a chain (leaf first) leads to one of the roots and is valid at `now`, for any purpose. Revocation lists are not
    /// looked at.
    ///
    /// # Errors
    /// Why not.
    pub fn verify_chain(&self, chain: &[CertificateDer<'static>], now: SystemTime) -> Result<(), TlsError> {
        self.verify(chain, now, &Self::default())
    }

    /// The same, and whether each certificate of the chain is covered by a revocation list that has not expired and does not
    /// name it.
    ///
    /// # Errors
    /// Why not.
    pub fn verify_unrevoked(&self, chain: &[CertificateDer<'static>], now: SystemTime) -> Result<(), TlsError> {
        self.verify(chain, now, self)
    }

    fn verify(&self, chain: &[CertificateDer<'static>], now: SystemTime, lists: &Self) -> Result<(), TlsError> {
        let what = "certificate chain";
        let wrong = |reason: String| TlsError::Certificate { what, reason };
        let Some((leaf, intermediates)) = chain.split_first() else { return Err(wrong("it is empty".into())) };
        let facts = CertificateFacts::from_der(what, leaf)?;
        let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|e| wrong(e.to_string()))?;
        let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        let algorithms = default_provider().signature_verification_algorithms.all;
        let roots = self.roots_for(facts.spiffe_id().as_ref().map(|id| id.trust_domain()));
        let chain = Chain { leaf: &leaf, intermediates, roots, now, usage: webpki::KeyUsage::client_auth() };
        match chain.verify(lists, Coverage::Full, algorithms) {
            Ok(()) => Ok(()),
            Err(webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey) => {
                Err(wrong(format!("it leads to no trusted root; its issuer is {:?}", facts.issuer)))
            }
            Err(error) => Err(wrong(error.to_string())),
        }
    }

    /// The roots for a peer of the trust domain (`None` = it has no SPIFFE ID). Where domains have roots of their own, a domain
    /// that is not among them has none, as with Envoy's SPIFFE validator.
    pub(crate) fn roots_for(&self, domain: Option<&TrustDomain>) -> &[TrustAnchor<'static>] {
        match domain.filter(|_| self.has_trust_domains()) {
            Some(domain) => self.inner.by_trust_domain.get(domain).map_or(&[], |own| &own.anchors),
            None => &self.inner.roots.anchors,
        }
    }

    pub(crate) fn has_trust_domains(&self) -> bool {
        !self.inner.by_trust_domain.is_empty()
    }

    pub(crate) fn crls(&self) -> &[Arc<webpki::CertRevocationList<'static>>] {
        &self.inner.crls
    }
}

impl Roots {
    fn from_pem(text: &[u8]) -> Result<Self, TlsError> {
        let certificates = pem::certificates("root certificates", text)?;
        let anchors = certificates.iter().map(anchor).collect::<Result<_, _>>()?;
        Ok(Self { certificates, anchors })
    }
}

fn anchor(der: &CertificateDer<'static>) -> Result<TrustAnchor<'static>, TlsError> {
    webpki::anchor_from_trusted_cert(der).map(|anchor| anchor.to_owned()).map_err(|error| TlsError::Certificate {
        what: "root certificates",
        reason: format!("a certificate cannot be used as a root: {error}"),
    })
}

impl PartialEq for TrustAnchors {
    fn eq(&self, other: &Self) -> bool {
        let domains = |a: &Self| {
            a.inner.by_trust_domain.iter().map(|(d, r)| (d.clone(), r.certificates.clone())).collect::<Vec<_>>()
        };
        self.certificates() == other.certificates()
            && self.inner.crl_der == other.inner.crl_der
            && domains(self) == domains(other)
    }
}

impl fmt::Debug for TrustAnchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustAnchors")
            .field("roots", &self.inner.roots.certificates.len())
            .field("trust_domains", &self.inner.by_trust_domain.keys().collect::<Vec<_>>())
            .field("crls", &self.inner.crls.len())
            .finish()
    }
}
