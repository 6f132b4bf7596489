//! `istio.v1.auth.IstioCertificateService`: authenticate, limit, sign, answer.

use crate::caller::bearer;
use crate::rate::RateLimiter;
use crate::transport::{peer_of, remote_of};
use crate::{
    AuthFailure, Caller, CallerAuthenticator, Evidence, LiveTrust, SignError, Signing, Token, Wish, authenticate,
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tonic::{Request, Response, Status};
use weft_identity::SpiffeId;
use weft_proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use weft_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use weft_tls::Zeroizing;

/// Largest message: a request with some metadata.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Requests at once of one identity: a few hundred replicas of a workload start together.
const BURST: u32 = 500;
/// Requests a second of one identity in the long run.
const PER_SECOND: u32 = 50;

/// Counts since start, for the monitoring port.
#[derive(Debug, Default)]
pub struct ServiceStats {
    /// Requests received.
    pub requests: AtomicU64,
    /// Requests whose caller is not known.
    pub authentication_failures: AtomicU64,
    /// Requests that cannot be read.
    pub unreadable: AtomicU64,
    /// Requests that ask for another's identity.
    pub not_theirs: AtomicU64,
    /// Requests refused for other reasons: too many, or nothing that is given.
    pub refused: AtomicU64,
    /// Requests on which the authority failed.
    pub failures: AtomicU64,
    /// Certificates signed.
    pub signed: AtomicU64,
}

/// The service. A clone shares all state.
#[derive(Clone)]
pub struct CertificateService {
    inner: Arc<Inner>,
}

struct Inner {
    signing: RwLock<Signing>,
    /// The mesh's names.
    trust: Option<LiveTrust>,
    authenticators: Vec<Arc<dyn CallerAuthenticator>>,
    limiter: Mutex<RateLimiter<SpiffeId>>,
    stats: Arc<ServiceStats>,
    source_missing: AtomicBool,
}

impl CertificateService {
    /// Signs with `signing` for those whom one of `authenticators` knows.
    pub fn new(signing: impl Into<Signing>, authenticators: Vec<Arc<dyn CallerAuthenticator>>) -> Self {
        Self::build(signing.into(), None, authenticators)
    }

    /// As [`new`](Self::new); a request may name its caller's account under any name of the mesh.
    pub fn with_trust(
        signing: impl Into<Signing>,
        trust: LiveTrust,
        authenticators: Vec<Arc<dyn CallerAuthenticator>>,
    ) -> Self {
        Self::build(signing.into(), Some(trust), authenticators)
    }

    fn build(signing: Signing, trust: Option<LiveTrust>, authenticators: Vec<Arc<dyn CallerAuthenticator>>) -> Self {
        let limiter = Mutex::new(RateLimiter::new(BURST, PER_SECOND));
        let signing = RwLock::new(signing);
        let (stats, source_missing) = Default::default();
        Self { inner: Arc::new(Inner { signing, trust, authenticators, limiter, stats, source_missing }) }
    }

    /// The service for a tonic server, with its bounds set.
    pub fn into_server(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Signs with another authority from now on (a rotated or plugged-in one).
    pub fn set_signing(&self, signing: impl Into<Signing>) {
        *self.inner.signing.write().unwrap_or_else(PoisonError::into_inner) = signing.into();
    }

    /// What signs.
    pub fn signing(&self) -> Signing {
        self.inner.signing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes whether what signs is still where it was found: when not, a restart would find another authority.
    pub fn set_source_missing(&self, missing: bool) {
        self.inner.source_missing.store(missing, Ordering::Relaxed);
    }

    /// Whether the Secret or the files of what signs are gone.
    pub fn source_missing(&self) -> bool {
        self.inner.source_missing.load(Ordering::Relaxed)
    }

    /// Counts.
    pub fn stats(&self) -> Arc<ServiceStats> {
        self.inner.stats.clone()
    }

    async fn sign(
        &self,
        caller: &Caller,
        request: &IstioCertificateRequest,
        token: Option<Token>,
    ) -> Result<Vec<String>, SignError> {
        let refused = |text: String| SignError::BadRequest(text);
        let seconds = u64::try_from(request.validity_duration)
            .map_err(|_| refused("validity_duration is negative; give seconds, or 0 for the default".into()))?;
        let domains = self.inner.trust.as_ref().map(LiveTrust::all).unwrap_or_default();
        let wish = Wish { ttl: Duration::from_secs(seconds), signer: signer(request)?, token, domains };
        // Under the name that was proven and no other: an alias of our trust domain may be a partner's name.
        let identity = &caller.identity;
        let signed = self.signing().sign(identity, request.csr.as_bytes(), wish).await?;
        tracing::debug!(
            %identity,
            by = caller.method,
            serial = signed.facts.serial,
            ttl_seconds = seconds,
            "certificate signed"
        );
        Ok(signed.chain)
    }

    fn allowed(&self, caller: &Caller) -> bool {
        let mut limiter = self.inner.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.allow(&caller.identity, Instant::now())
    }

    fn count(&self, outcome: &Result<Vec<String>, SignError>) {
        let stats = &self.inner.stats;
        let counter = match outcome {
            Ok(_) => &stats.signed,
            Err(SignError::BadRequest(_)) => &stats.unreadable,
            Err(SignError::NotYours { .. }) => &stats.not_theirs,
            Err(_) => &stats.failures,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The signer that the request's metadata names, as Istio's agent does. Asking for somebody else (`ImpersonatedIdentity`,
/// which node proxies use) is refused: nobody is trusted to.
fn signer(request: &IstioCertificateRequest) -> Result<Option<String>, SignError> {
    use prost_types::value::Kind;
    let fields = request.metadata.iter().flat_map(|metadata| &metadata.fields);
    let mut signer = None;
    for (name, value) in fields {
        let text = match &value.kind {
            Some(Kind::StringValue(text)) => text.as_str(),
            _ => "",
        };
        match name.as_str() {
            "CertSigner" if text.len() <= 253 => signer = Some(text.to_owned()).filter(|text| !text.is_empty()),
            "CertSigner" => return Err(SignError::BadRequest("CertSigner is longer than 253 bytes".into())),
            "ImpersonatedIdentity" => {
                let text = "ImpersonatedIdentity is not accepted: a caller gets a certificate for itself alone";
                return Err(SignError::BadRequest(text.into()));
            }
            _ => {}
        }
    }
    Ok(signer)
}

fn status_of(error: &SignError) -> Status {
    match error {
        SignError::BadRequest(_) => Status::invalid_argument(error.to_string()),
        SignError::NotYours { .. } => Status::permission_denied(error.to_string()),
        SignError::Unavailable(_) => Status::unavailable(error.to_string()),
        SignError::Authority(_) | SignError::Elsewhere(_) => Status::internal(error.to_string()),
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let stats = &self.inner.stats;
        stats.requests.fetch_add(1, Ordering::Relaxed);
        let (peer, remote) = (peer_of(request.extensions()), remote_of(request.extensions()));
        let (metadata, _, message) = request.into_parts();
        let evidence = Evidence { headers: metadata.as_ref(), peer: peer.as_deref(), remote };
        let caller = authenticate(&self.inner.authenticators, evidence).await.map_err(|error| {
            stats.authentication_failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%error, "certificate request of an unknown caller refused");
            match error {
                AuthFailure::Refused(text) => Status::unauthenticated(text),
                AuthFailure::Unavailable(text) => Status::unavailable(text),
            }
        })?;
        if !self.allowed(&caller) {
            stats.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Status::resource_exhausted(format!("{} asks too often; wait a second", caller.identity)));
        }
        let token = bearer(metadata.as_ref()).ok().flatten().map(|text| Token(Zeroizing::new(text.to_owned())));
        let outcome = self.sign(&caller, &message, token).await;
        self.count(&outcome);
        let cert_chain = outcome.map_err(|error| {
            tracing::warn!(identity = %caller.identity, %error, "certificate request refused");
            status_of(&error)
        })?;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}
