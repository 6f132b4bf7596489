//! An authority elsewhere, for which we are only the registration authority: we say who may have which certificate, it
//! signs, and what comes back is believed no further than it can be checked.

use crate::authority::own_names;
use crate::caller::BoxFuture;
use crate::{Authority, CaPolicy, SignError, SignedChain};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use weft_identity::SpiffeId;
use weft_tls::{
    CertificateFacts, CertificateRequest, KeyKind, San, TlsError, TrustAnchors, Zeroizing, generate_key_and_csr, pem,
};

/// Most certificates in an answer.
const MAX_CHAIN: usize = 16;

/// What the authority elsewhere is asked for.
#[derive(Debug, Clone)]
pub struct Errand {
    /// The request, PEM; it asks for the names that were checked and for nothing else.
    pub csr: String,
    /// Lifetime wanted.
    pub ttl: Duration,
    /// Which signer, as the workload asked (`CertSigner`); `None` = the usual one.
    pub signer: Option<String>,
    /// The caller's token, for an authority that asks for it; never printed.
    pub token: Option<Token>,
}

/// A bearer token, wiped on drop and never printed.
#[derive(Clone)]
pub struct Token(pub Zeroizing<String>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Has a request signed elsewhere: the leaf first, then what is above it, PEM.
pub type Delegate = Arc<dyn Fn(Errand) -> BoxFuture<'static, Result<Vec<String>, SignError>> + Send + Sync>;

/// The registration authority.
pub struct Registration {
    delegate: Delegate,
    /// Roots that what it signs leads to.
    signers: TrustAnchors,
    policy: CaPolicy,
    name: String,
    /// Certifies our own servers, when the authority elsewhere signs for workloads alone.
    server: Option<Arc<Authority>>,
    /// All roots that workloads have to trust.
    roots: TrustAnchors,
}

impl Registration {
    /// `name` is what the authority elsewhere is called in logs; what it signs must lead to `roots` (PEM).
    ///
    /// # Errors
    /// When the roots cannot be read.
    pub fn new(
        name: impl Into<String>,
        roots_pem: &str,
        policy: CaPolicy,
        delegate: Delegate,
    ) -> Result<Self, TlsError> {
        let roots = TrustAnchors::from_pem(roots_pem.as_bytes())?;
        Ok(Self { delegate, signers: roots.clone(), roots, policy, name: name.into(), server: None })
    }

    /// Our own servers are certified by `authority`, whose roots workloads then trust as well: for an authority elsewhere
    /// that knows workloads by their tokens and gives servers nothing.
    ///
    /// # Errors
    /// When the roots cannot be put together.
    pub fn with_server(mut self, authority: Arc<Authority>) -> Result<Self, TlsError> {
        let roots = pem::merge("root certificates", &[&self.signers.pem(), authority.root_pem()])?;
        self.roots = TrustAnchors::from_pem(roots.as_bytes())?;
        self.server = Some(authority);
        Ok(self)
    }

    /// The authority that certifies our own servers, when it is another one.
    pub fn server(&self) -> Option<&Arc<Authority>> {
        self.server.as_ref()
    }

    /// What the authority is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Roots that workloads have to trust; that of what signs for them is the first.
    pub fn roots(&self) -> &TrustAnchors {
        &self.roots
    }

    /// Has the caller's request signed. It may ask for the caller's identity and for nothing else, for the authority elsewhere may
    /// grant what it reads: a subject above all (Istio compares the same, security/pkg/pki/ra).
    ///
    /// # Errors
    /// When the request is broken, names another or asks for more, the authority refuses, or its answer cannot be believed.
    pub async fn sign(
        &self,
        caller: &SpiffeId,
        csr: &[u8],
        ttl: Duration,
        signer: Option<String>,
        token: Option<Token>,
    ) -> Result<SignedChain, SignError> {
        let request = CertificateRequest::from_pem(csr).map_err(|error| SignError::BadRequest(error.to_string()))?;
        own_names(&request, caller)?;
        if request.uris.is_empty() {
            let text = "the request must name the caller's own identity: the authority signs what is asked for";
            return Err(SignError::BadRequest(text.into()));
        }
        request.asks_only_for(&caller.to_string()).map_err(|error| SignError::BadRequest(error.to_string()))?;
        let ttl = self.policy.ttl(ttl);
        let chain = (self.delegate)(Errand { csr: request.pem(), ttl, signer, token }).await?;
        let facts = self.believe(&chain, &request, &[San::Uri(caller.to_string())])?;
        Ok(SignedChain { chain: self.with_roots(chain)?, facts })
    }

    /// A certificate for a server of our own: a new key, signed elsewhere. The chain without roots, and the key, PEM.
    ///
    /// # Errors
    /// As [`sign`](Self::sign).
    pub async fn server_certificate_pem(
        &self,
        dns: &[&str],
        ttl: Duration,
    ) -> Result<(String, Zeroizing<String>), SignError> {
        if let Some(authority) = &self.server {
            return Ok(authority.server_certificate_pem(dns, None, ttl, SystemTime::now())?);
        }
        let names: Vec<San> = dns.iter().map(|name| San::Dns((*name).to_owned())).collect();
        let made = generate_key_and_csr(KeyKind::EcdsaP256, &names)?;
        let request = CertificateRequest::from_pem(made.csr_pem.as_bytes())?;
        let errand = Errand { csr: made.csr_pem.clone(), ttl: self.policy.ttl(ttl), signer: None, token: None };
        let chain = (self.delegate)(errand).await?;
        self.believe(&chain, &request, &names)?;
        let text: String = chain.iter().map(|pem| format!("{}\n", pem.trim())).collect();
        Ok((text, made.key_pem))
    }

    /// The answer is for the key and the names that were asked for and no others, has no subject that was not asked for, is no
    /// authority's, and leads to a root.
    fn believe(
        &self,
        chain: &[String],
        request: &CertificateRequest,
        names: &[San],
    ) -> Result<CertificateFacts, SignError> {
        let wrong = |reason: String| {
            let name = &self.name;
            SignError::Elsewhere(format!("the answer of {name} cannot be used: {reason}"))
        };
        let text: String = chain.iter().map(|pem| format!("{}\n", pem.trim())).collect();
        let ders = pem::certificates("certificate chain", text.as_bytes()).map_err(|e| wrong(e.to_string()))?;
        if ders.len() > MAX_CHAIN {
            return Err(wrong(format!("{} certificates are too many; the limit is {MAX_CHAIN}", ders.len())));
        }
        let facts = CertificateFacts::from_der("certificate", &ders[0]).map_err(|e| wrong(e.to_string()))?;
        let given = facts.uris.iter().map(|uri| San::Uri(uri.to_string()));
        let given: Vec<San> = given.chain(facts.dns.iter().map(|dns| San::Dns(dns.to_string()))).collect();
        let same = given.len() == names.len() && names.iter().all(|name| given.contains(name));
        if !same || !facts.ips.is_empty() || !facts.emails.is_empty() {
            return Err(wrong(format!("its names are {given:?}, asked for were {names:?}")));
        }
        // A server of Kubernetes takes a subject for a user and its groups.
        if !facts.subject.is_empty() && facts.subject != request.subject {
            let text = "nobody asked for a subject, and readers of subjects would take it for a name";
            return Err(wrong(format!("its subject is {:?}: {text}", facts.subject)));
        }
        if facts.is_ca {
            return Err(wrong("it may sign other certificates".into()));
        }
        if !request.is_for(&ders[0]) {
            return Err(wrong("it is for another key".into()));
        }
        self.signers.verify_chain(&ders, SystemTime::now()).map_err(|e| wrong(e.to_string()))?;
        Ok(facts)
    }

    /// The chain as agents want it: leaf, intermediates, and all roots as one text at the end.
    fn with_roots(&self, chain: Vec<String>) -> Result<Vec<String>, SignError> {
        let text: String = chain.iter().map(|pem| format!("{}\n", pem.trim())).collect();
        let ders = pem::certificates("certificate chain", text.as_bytes())?;
        let above = ders.iter().filter(|der| !self.signers.certificates().contains(der));
        let mut out: Vec<String> = above.map(|der| pem::encode("CERTIFICATE", der)).collect();
        out.push(self.signers.pem());
        Ok(out)
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("name", &self.name).field("roots", &self.roots).finish_non_exhaustive()
    }
}
