//! `istio.v1.auth.IstioCertificateService`: authenticate, limit, sign, answer.

use crate::rate::RateLimiter;
use crate::transport::peer_of;
use crate::{AuthFailure, Authority, Caller, CallerAuthenticator, SignError, authenticate};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};
use tonic::{Request, Response, Status};
use weft_identity::SpiffeId;
use weft_proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use weft_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};

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
    /// Requests refused for what they ask, or too many.
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
    authority: RwLock<Arc<Authority>>,
    authenticators: Vec<Arc<dyn CallerAuthenticator>>,
    limiter: Mutex<RateLimiter<SpiffeId>>,
    stats: Arc<ServiceStats>,
}

impl CertificateService {
    /// Signs with `authority` for those whom one of `authenticators` knows.
    pub fn new(authority: Arc<Authority>, authenticators: Vec<Arc<dyn CallerAuthenticator>>) -> Self {
        let limiter = Mutex::new(RateLimiter::new(BURST, PER_SECOND));
        let authority = RwLock::new(authority);
        Self { inner: Arc::new(Inner { authority, authenticators, limiter, stats: Arc::default() }) }
    }

    /// The service for a tonic server, with its bounds set.
    pub fn into_server(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Signs with another authority from now on (a rotated or plugged-in one).
    pub fn set_authority(&self, authority: Arc<Authority>) {
        *self.inner.authority.write().unwrap_or_else(PoisonError::into_inner) = authority;
    }

    /// The authority that signs.
    pub fn authority(&self) -> Arc<Authority> {
        self.inner.authority.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts.
    pub fn stats(&self) -> Arc<ServiceStats> {
        self.inner.stats.clone()
    }

    fn sign(&self, caller: &Caller, request: &IstioCertificateRequest) -> Result<Vec<String>, Status> {
        let allowed = {
            let mut limiter = self.inner.limiter.lock().unwrap_or_else(PoisonError::into_inner);
            limiter.allow(&caller.identity, Instant::now())
        };
        if !allowed {
            return Err(Status::resource_exhausted(format!("{} asks too often; wait a second", caller.identity)));
        }
        let seconds = u64::try_from(request.validity_duration).map_err(|_| {
            Status::invalid_argument("validity_duration is negative; give seconds, or 0 for the default")
        })?;
        let ttl = Duration::from_secs(seconds);
        let signed = self.authority().sign(&caller.identity, request.csr.as_bytes(), ttl, SystemTime::now());
        let signed = signed.map_err(|error| match &error {
            SignError::BadRequest(_) => Status::invalid_argument(error.to_string()),
            SignError::NotYours { .. } => Status::permission_denied(error.to_string()),
            SignError::Authority(_) => Status::internal(error.to_string()),
        })?;
        tracing::debug!(
            identity = %caller.identity,
            by = caller.method,
            serial = signed.facts.serial,
            ttl_seconds = ttl.as_secs(),
            "certificate signed"
        );
        Ok(signed.chain)
    }

    fn count(&self, outcome: &Result<Vec<String>, Status>) {
        let stats = &self.inner.stats;
        let counter = match outcome {
            Ok(_) => &stats.signed,
            Err(status) if status.code() == tonic::Code::Internal => &stats.failures,
            Err(_) => &stats.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
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
        let peer = peer_of(request.extensions());
        let (metadata, _, message) = request.into_parts();
        let caller = authenticate(&self.inner.authenticators, metadata.as_ref(), peer.as_deref()).await;
        let caller = caller.map_err(|error| {
            stats.authentication_failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%error, "certificate request of an unknown caller refused");
            match error {
                AuthFailure::Refused(text) => Status::unauthenticated(text),
                AuthFailure::Unavailable(text) => Status::unavailable(text),
            }
        })?;
        let outcome = self.sign(&caller, &message);
        self.count(&outcome);
        let cert_chain = outcome.inspect_err(|status| {
            tracing::warn!(identity = %caller.identity, error = status.message(), "certificate request refused");
        })?;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}
