//! The rules of signing: which identity, for how long, under which chain. No I/O; the caller says what time it is.

use crate::CaMaterial;
use std::time::{Duration, SystemTime};
use weft_identity::{SpiffeId, TrustBundle, TrustDomain};
use weft_tls::{
    CertificateFacts, CertificateRequest, CertifiedKey, Issuer, KeyKind, LeafParams, PrivateKey, RootParams, San,
    TlsError, TrustAnchors, Zeroizing, pem,
};

/// How long a self-signed root lives: ten years, as Istio's.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Rules of signing.
#[derive(Debug, Clone)]
pub struct CaPolicy {
    /// Lifetime when none is asked for; 24 h.
    pub default_ttl: Duration,
    /// Longest lifetime; a longer one that is asked for is cut to it. 90 days.
    pub max_ttl: Duration,
    /// How far the beginning is set back, for clocks that run behind ours; 2 min.
    pub backdate: Duration,
    /// Kind of key of a new root; ECDSA P-256.
    pub root_key: KeyKind,
}

impl Default for CaPolicy {
    fn default() -> Self {
        Self {
            default_ttl: Duration::from_secs(24 * 3600),
            max_ttl: Duration::from_secs(90 * 24 * 3600),
            backdate: Duration::from_secs(120),
            root_key: KeyKind::EcdsaP256,
        }
    }
}

impl CaPolicy {
    /// The lifetime that is given when `asked` is asked for; zero asks for the default.
    pub fn ttl(&self, asked: Duration) -> Duration {
        if asked.is_zero() { self.default_ttl.min(self.max_ttl) } else { asked.min(self.max_ttl) }
    }
}

/// Why a request is not signed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SignError {
    /// The request is broken, or asks for what is never given. The caller's fault.
    #[error("{0}")]
    BadRequest(String),
    /// The request asks for another's identity.
    #[error("{caller} may not have a certificate for {asked:?}; a request names the caller's own identity or none")]
    NotYours {
        /// Who asks.
        caller: SpiffeId,
        /// What for.
        asked: String,
    },
    /// The authority failed.
    #[error(transparent)]
    Authority(#[from] TlsError),
    /// An authority elsewhere refuses, or its answer cannot be believed.
    #[error("{0}")]
    Elsewhere(String),
    /// An authority elsewhere cannot be asked at the moment.
    #[error("{0}")]
    Unavailable(String),
}

/// A signed certificate and the chain to its root.
#[derive(Debug, Clone)]
pub struct SignedChain {
    /// PEM: the leaf, intermediates if any, the root last, one certificate each; several roots are one text, for agents take
    /// the last one for all there are.
    pub chain: Vec<String>,
    /// Facts of the leaf.
    pub facts: CertificateFacts,
}

/// A certificate authority of one trust domain.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer,
    trust_domain: TrustDomain,
    policy: CaPolicy,
    /// PEM from the signing certificate (exclusive of the root) upwards; empty for a self-signed root.
    intermediates: Vec<String>,
    roots: TrustAnchors,
    material: CaMaterial,
}

impl Authority {
    /// A new self-signed authority.
    ///
    /// # Errors
    /// When the crypto library fails.
    pub fn self_signed(trust_domain: TrustDomain, policy: CaPolicy, now: SystemTime) -> Result<Self, TlsError> {
        let issuer = Issuer::self_signed(&RootParams {
            organization: trust_domain.to_string(),
            key: policy.root_key,
            not_before: now - policy.backdate,
            not_after: now + ROOT_LIFETIME,
        })?;
        let certificate = issuer.certificate_pem();
        let material = CaMaterial {
            ca_cert: certificate.clone(),
            ca_key: issuer.key_pem(),
            root_cert: certificate,
            cert_chain: String::new(),
            crl: String::new(),
        };
        Self::new(issuer, trust_domain, policy, material, now)
    }

    /// From what a Secret holds.
    ///
    /// # Errors
    /// When certificate, key, chain and root do not fit each other, or a certificate has expired.
    pub fn from_material(
        material: CaMaterial,
        trust_domain: TrustDomain,
        policy: CaPolicy,
        now: SystemTime,
    ) -> Result<Self, TlsError> {
        let issuer = Issuer::from_pem(material.ca_cert.as_bytes(), material.ca_key.as_bytes())?;
        Self::new(issuer, trust_domain, policy, material, now)
    }

    fn new(
        issuer: Issuer,
        trust_domain: TrustDomain,
        policy: CaPolicy,
        material: CaMaterial,
        now: SystemTime,
    ) -> Result<Self, TlsError> {
        let roots = TrustAnchors::from_pem(material.root_cert.as_bytes())?;
        if !material.crl.is_empty() {
            roots.clone().with_crls(material.crl.as_bytes())?;
        }
        let intermediates = intermediates(&issuer, &material, &roots)?;
        let authority = Self { issuer, trust_domain, policy, intermediates, roots, material };
        authority.check(now)?;
        Ok(authority)
    }

    /// Whether the revocation lists (`ca-crl.pem`) cover what this authority signs: workloads that get lists refuse a chain of
    /// which a certificate is covered by none, or by one that has expired.
    ///
    /// # Errors
    /// What is wrong with the lists.
    pub fn check_lists(&self, now: SystemTime) -> Result<(), TlsError> {
        if self.material.crl.is_empty() {
            return Ok(());
        }
        let anchors = self.roots.clone().with_crls(self.material.crl.as_bytes())?;
        anchors.verify_unrevoked(&self.chain_for_nobody(now)?, now).map_err(|error| TlsError::Certificate {
            what: "certificate revocation list",
            reason: format!(
                "under ca-crl.pem no workload would be believed: {error}; it needs a list of each authority from the one that \
                 signs up to the root"
            ),
        })
    }

    /// The same authority with other revocation lists, which may be none.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn with_lists(mut self, crl: String) -> Result<Self, TlsError> {
        if !crl.is_empty() {
            weft_tls::check_crls(crl.as_bytes())?;
        }
        self.material.crl = crl;
        Ok(self)
    }

    /// The end of the revocation list that ends first; `None` without lists.
    pub fn lists_until(&self) -> Option<SystemTime> {
        weft_tls::crls_until(self.material.crl.as_bytes())
    }

    /// Signs a certificate for nobody and verifies it, so that a chain that no peer would accept is found at start.
    fn check(&self, now: SystemTime) -> Result<(), TlsError> {
        let wrong = |reason: String| TlsError::Certificate { what: "CA certificate", reason };
        let facts = self.issuer.facts();
        if facts.not_after <= now {
            return Err(wrong(format!("it has expired ({}); plug in a new one", facts.subject)));
        }
        if facts.not_before > now + self.policy.backdate {
            return Err(wrong(format!("it is not valid yet ({}); is the clock right?", facts.subject)));
        }
        let chain = self.chain_for_nobody(now)?;
        self.roots
            .verify_chain(&chain, now)
            .map_err(|error| wrong(format!("what it signs would not be trusted under root-cert.pem: {error}")))?;
        // A verifier does not look at the end of a root; others' do.
        let lasting =
            self.roots.certificates().iter().filter(|der| {
                CertificateFacts::from_der("root certificate", der).is_ok_and(|facts| facts.not_after > now)
            });
        let lasting = pem::encode_chain(lasting);
        let verified = TrustAnchors::from_pem(lasting.as_bytes()).and_then(|roots| roots.verify_chain(&chain, now));
        verified.map_err(|_| wrong("its root in root-cert.pem has expired; a new root is needed".into()))
    }

    /// A certificate for nobody, whose key is thrown away, and those above it.
    fn chain_for_nobody(&self, now: SystemTime) -> Result<Vec<weft_tls::Der>, TlsError> {
        let key = PrivateKey::generate(KeyKind::EcdsaP256)?;
        let names = vec![San::Uri(format!("spiffe://{}/ns/none/sa/none", self.trust_domain))];
        let leaf =
            LeafParams { names, not_before: now - self.policy.backdate, not_after: now + self.policy.default_ttl };
        let signed = self.issuer.sign_key(&key, &leaf)?;
        let chain = std::iter::once(&signed.pem).chain(&self.intermediates).cloned().collect::<String>();
        pem::certificates("certificate chain", chain.as_bytes())
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// What to keep in a Secret.
    pub fn material(&self) -> &CaMaterial {
        &self.material
    }

    /// Root certificates for workloads, PEM: the content of `istio-ca-root-cert`.
    pub fn root_pem(&self) -> &str {
        &self.material.root_cert
    }

    /// The roots, parsed.
    pub fn roots(&self) -> &TrustAnchors {
        &self.roots
    }

    /// The roots as a bundle of the trust domain.
    pub fn bundle(&self) -> TrustBundle {
        TrustBundle::of(self.trust_domain.clone(), self.root_pem())
    }

    /// Facts of the certificate that signs.
    pub fn facts(&self) -> &CertificateFacts {
        self.issuer.facts()
    }

    /// The earliest end of a root.
    pub fn root_not_after(&self) -> SystemTime {
        self.roots.facts().iter().map(|facts| facts.not_after).min().unwrap_or(self.issuer.facts().not_after)
    }

    /// Signs a request for `caller`'s own identity. Nothing but the key is taken from the request; names in it must be the
    /// caller's, or the same account's in one of the `domains`: a pod that began before the mesh got its name asks for what it was,
    /// and gets what it is. `ttl` of zero asks for the default.
    ///
    /// # Errors
    /// When the request is broken, asks for another identity or for an authority's powers, or signing fails.
    pub fn sign(
        &self,
        caller: &SpiffeId,
        domains: &[TrustDomain],
        csr: &[u8],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<SignedChain, SignError> {
        let request = CertificateRequest::from_pem(csr).map_err(|error| SignError::BadRequest(error.to_string()))?;
        own_account(&request, caller, domains)?;
        let names = vec![San::Uri(caller.to_string())];
        let signed = self.issuer.sign_request(&request, &self.leaf(names, self.policy.ttl(ttl), now))?;
        Ok(SignedChain { chain: self.chain_of(signed.pem), facts: signed.facts })
    }

    /// A certificate for a server of our own (weftd itself): DNS names, and the identity it has as a client.
    ///
    /// # Errors
    /// When a name cannot be written into a certificate, or the crypto library fails.
    pub fn server_certificate(
        &self,
        dns: &[&str],
        identity: Option<&SpiffeId>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<CertifiedKey, TlsError> {
        let (chain, key) = self.server_certificate_pem(dns, identity, ttl, now)?;
        CertifiedKey::from_pem(chain.as_bytes(), key.as_bytes())
    }

    /// As [`server_certificate`](Self::server_certificate), as PEM: the chain without the root, and the key.
    ///
    /// # Errors
    /// As [`server_certificate`](Self::server_certificate).
    pub fn server_certificate_pem(
        &self,
        dns: &[&str],
        identity: Option<&SpiffeId>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(String, Zeroizing<String>), TlsError> {
        let key = PrivateKey::generate(KeyKind::EcdsaP256)?;
        let mut names: Vec<San> = identity.iter().map(|id| San::Uri(id.to_string())).collect();
        names.extend(dns.iter().map(|name| San::Dns((*name).to_owned())));
        let signed = self.issuer.sign_key(&key, &self.leaf(names, ttl.min(self.policy.max_ttl), now))?;
        let chain = std::iter::once(signed.pem).chain(self.intermediates.iter().cloned()).collect();
        Ok((chain, key.to_pem()))
    }

    fn leaf(&self, names: Vec<San>, ttl: Duration, now: SystemTime) -> LeafParams {
        LeafParams { names, not_before: now - self.policy.backdate, not_after: now + ttl }
    }

    fn chain_of(&self, leaf: String) -> Vec<String> {
        std::iter::once(leaf).chain(self.intermediates.iter().cloned()).chain([self.roots.pem()]).collect()
    }
}

/// A request may name its caller and nobody else, and asks for no authority's powers.
pub(crate) fn own_names(request: &CertificateRequest, caller: &SpiffeId) -> Result<(), SignError> {
    let identity = caller.to_string();
    names_only(request, caller, |uri| uri == identity)
}

/// As [`own_names`]; the caller's account may be named in one of the `domains` too, where the request's names are not what is
/// signed.
fn own_account(request: &CertificateRequest, caller: &SpiffeId, domains: &[TrustDomain]) -> Result<(), SignError> {
    let account = caller.namespace_and_account();
    let is_own = |id: SpiffeId| {
        let same = account.is_some() && id.namespace_and_account() == account;
        id == *caller || (same && domains.contains(id.trust_domain()))
    };
    names_only(request, caller, |uri| SpiffeId::parse(uri).is_ok_and(is_own))
}

fn names_only(request: &CertificateRequest, caller: &SpiffeId, is_own: impl Fn(&str) -> bool) -> Result<(), SignError> {
    if request.wants_ca {
        return Err(SignError::BadRequest("a certificate that signs others is never given".into()));
    }
    match request.uris.iter().find(|uri| !is_own(uri)).or(request.other_names.first()) {
        Some(asked) => Err(SignError::NotYours { caller: caller.clone(), asked: asked.chars().take(128).collect() }),
        None => Ok(()),
    }
}

/// The signing certificate and those above it, as they are shown; empty when the signing certificate is a root. A root is
/// shown only when cert-chain.pem has it, as Istio does (spec 2:PC-6).
fn intermediates(issuer: &Issuer, material: &CaMaterial, roots: &TrustAnchors) -> Result<Vec<String>, TlsError> {
    let mut chain = pem::certificates("CA certificate", issuer.certificate_pem().as_bytes())?;
    if roots.certificates().contains(&chain[0]) {
        return Ok(Vec::new());
    }
    if !material.cert_chain.trim().is_empty() {
        for above in pem::certificates("cert-chain.pem", material.cert_chain.as_bytes())? {
            if !chain.contains(&above) {
                chain.push(above);
            }
        }
    }
    Ok(chain.iter().map(|der| pem::encode("CERTIFICATE", der)).collect())
}
