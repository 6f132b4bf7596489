//! Who asks: a caller is authenticated by its client certificate or by a service-account token, and by nothing it says.

use http::HeaderMap;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Semaphore;
use weft_identity::{SpiffeId, TrustDomain};
use weft_tls::PeerCertificate;

/// A future that is boxed, so that authenticators can be kept in a list.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How long an answer about a token is believed.
const TOKEN_CACHE_TTL: Duration = Duration::from_secs(60);
/// Answers kept.
const TOKEN_CACHE_SIZE: usize = 10_000;
/// Largest token.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Reviews under way at once: strangers must not be able to flood the API server through us.
const MAX_REVIEWS: usize = 32;
/// How long one review may take.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Its identity.
    pub identity: SpiffeId,
    /// How it proved it: `certificate` or `token`.
    pub method: &'static str,
}

/// Why a caller is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthFailure {
    /// What it showed is not good.
    #[error("{0}")]
    Refused(String),
    /// It cannot be told at the moment; try again.
    #[error("{0}")]
    Unavailable(String),
}

/// Finds out who asks.
pub trait CallerAuthenticator: Send + Sync {
    /// The caller; `None` when it shows nothing that this authenticator looks at.
    fn authenticate<'a>(
        &'a self,
        headers: &'a HeaderMap,
        peer: Option<&'a PeerCertificate>,
    ) -> BoxFuture<'a, Result<Option<Caller>, AuthFailure>>;
}

/// Asks each authenticator in turn. What one refuses, the others are still asked; nobody's answer means refusal.
///
/// # Errors
/// That one could not tell, when there is such a one: another try may succeed. Else the first refusal, or that the caller
/// showed nothing.
pub async fn authenticate(
    authenticators: &[Arc<dyn CallerAuthenticator>],
    headers: &HeaderMap,
    peer: Option<&PeerCertificate>,
) -> Result<Caller, AuthFailure> {
    let mut failure = None;
    for authenticator in authenticators {
        match authenticator.authenticate(headers, peer).await {
            Ok(Some(caller)) => return Ok(caller),
            Ok(None) => {}
            Err(error) => {
                failure = match failure {
                    Some(first @ AuthFailure::Unavailable(_)) => Some(first),
                    Some(first) if matches!(error, AuthFailure::Refused(_)) => Some(first),
                    _ => Some(error),
                };
            }
        }
    }
    Err(failure.unwrap_or_else(|| {
        AuthFailure::Refused("neither a client certificate of the mesh nor a bearer token was shown".into())
    }))
}

/// Knows callers by the client certificate, which the TLS handshake has verified.
#[derive(Debug)]
pub struct CertificateAuthenticator {
    trust_domains: Vec<TrustDomain>,
}

impl CertificateAuthenticator {
    /// Accepts identities of these trust domains.
    pub fn new(trust_domains: Vec<TrustDomain>) -> Self {
        Self { trust_domains }
    }

    fn caller(&self, peer: &PeerCertificate) -> Result<Caller, AuthFailure> {
        let refused = |text: String| Err(AuthFailure::Refused(text));
        let Some(identity) = peer.spiffe_id() else {
            return refused("the client certificate has no SPIFFE ID (exactly one URI name spiffe://…)".into());
        };
        // A connection may outlive the certificate that opened it.
        if peer.not_after <= SystemTime::now() {
            return refused(format!("the client certificate of {identity} has expired"));
        }
        if !self.trust_domains.contains(identity.trust_domain()) {
            return refused(format!("the trust domain of {identity} is not ours"));
        }
        Ok(Caller { identity, method: "certificate" })
    }
}

impl CallerAuthenticator for CertificateAuthenticator {
    fn authenticate<'a>(
        &'a self,
        _headers: &'a HeaderMap,
        peer: Option<&'a PeerCertificate>,
    ) -> BoxFuture<'a, Result<Option<Caller>, AuthFailure>> {
        Box::pin(async move { peer.map(|peer| self.caller(peer)).transpose() })
    }
}

/// What a review says of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenIdentity {
    /// Namespace of the service account.
    pub namespace: String,
    /// Its name.
    pub service_account: String,
}

/// Reviews a token (a Kubernetes TokenReview for the audience `istio-ca`).
pub type TokenReview = Arc<dyn Fn(String) -> BoxFuture<'static, Result<TokenIdentity, AuthFailure>> + Send + Sync>;

/// Knows callers by `authorization: Bearer`. Good answers are kept for a minute; the token itself is not.
pub struct TokenAuthenticator {
    trust_domain: TrustDomain,
    review: TokenReview,
    slots: Semaphore,
    cache: Mutex<HashMap<[u8; 32], (Instant, TokenIdentity)>>,
}

impl TokenAuthenticator {
    /// Identities are in `trust_domain`.
    pub fn new(trust_domain: TrustDomain, review: TokenReview) -> Self {
        Self { trust_domain, review, slots: Semaphore::new(MAX_REVIEWS), cache: Mutex::default() }
    }

    async fn caller(&self, token: &str) -> Result<Caller, AuthFailure> {
        let digest = weft_tls::sha256(token.as_bytes());
        let who = match self.cached(&digest) {
            Some(who) => who,
            None => self.reviewed(token, digest).await?,
        };
        let identity = SpiffeId::workload(&self.trust_domain, &who.namespace, &who.service_account)
            .map_err(|error| AuthFailure::Refused(format!("the token's service account gives no identity: {error}")))?;
        Ok(Caller { identity, method: "token" })
    }

    async fn reviewed(&self, token: &str, digest: [u8; 32]) -> Result<TokenIdentity, AuthFailure> {
        let late = || AuthFailure::Unavailable("the token could not be reviewed in time; try again".into());
        let review = async {
            let _slot = self.slots.acquire().await.map_err(|_| late())?;
            (self.review)(token.to_owned()).await
        };
        let who = tokio::time::timeout(REVIEW_TIMEOUT, review).await.map_err(|_| late())??;
        self.remember(digest, who.clone());
        Ok(who)
    }

    fn cached(&self, digest: &[u8; 32]) -> Option<TokenIdentity> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(digest).filter(|(until, _)| *until > Instant::now()).map(|(_, who)| who.clone())
    }

    fn remember(&self, digest: [u8; 32], who: TokenIdentity) {
        let now = Instant::now();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= TOKEN_CACHE_SIZE {
            cache.retain(|_, (until, _)| *until > now);
        }
        // When all are fresh, the newcomer is reviewed again next time.
        if cache.len() < TOKEN_CACHE_SIZE {
            cache.insert(digest, (now + TOKEN_CACHE_TTL, who));
        }
    }
}

impl CallerAuthenticator for TokenAuthenticator {
    fn authenticate<'a>(
        &'a self,
        headers: &'a HeaderMap,
        _peer: Option<&'a PeerCertificate>,
    ) -> BoxFuture<'a, Result<Option<Caller>, AuthFailure>> {
        Box::pin(async move {
            match bearer(headers)? {
                Some(token) => self.caller(token).await.map(Some),
                None => Ok(None),
            }
        })
    }
}

/// The token of the one `authorization` header; several are refused, since others may read another one.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, AuthFailure> {
    let refused = |text: &str| Err(AuthFailure::Refused(text.into()));
    let mut values = headers.get_all(http::header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return refused("there are several authorization headers");
    }
    let Some((scheme, token)) = value.to_str().ok().and_then(|text| text.split_once(' ')) else {
        return refused("the authorization header is not 'Bearer TOKEN'");
    };
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return refused("the authorization header is not 'Bearer TOKEN'");
    }
    if token.len() > MAX_TOKEN_BYTES {
        return refused("the token is larger than 16 KiB");
    }
    Ok(Some(token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(http::header::AUTHORIZATION, value.parse().unwrap());
        }
        headers
    }

    fn authenticator(calls: Arc<AtomicUsize>) -> Vec<Arc<dyn CallerAuthenticator>> {
        let review: TokenReview = Arc::new(move |token| {
            calls.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                let (namespace, account) =
                    token.split_once('.').ok_or_else(|| AuthFailure::Refused("not one of ours".into()))?;
                Ok(TokenIdentity { namespace: namespace.into(), service_account: account.into() })
            })
        });
        vec![Arc::new(TokenAuthenticator::new(TrustDomain::new("td").unwrap(), review))]
    }

    #[tokio::test]
    async fn answers_are_kept_and_refusals_are_not() {
        let calls = Arc::new(AtomicUsize::new(0));
        let authenticators = authenticator(calls.clone());
        for _ in 0..3 {
            let caller = authenticate(&authenticators, &headers(&["Bearer default.reviews"]), None).await.unwrap();
            assert_eq!(caller.identity.to_string(), "spiffe://td/ns/default/sa/reviews");
        }
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        for _ in 0..2 {
            assert!(authenticate(&authenticators, &headers(&["Bearer stranger"]), None).await.is_err());
        }
        assert_eq!(calls.load(Ordering::Relaxed), 3);
    }

    /// Fails in one way.
    struct Fails(AuthFailure);

    impl CallerAuthenticator for Fails {
        fn authenticate<'a>(
            &'a self,
            _headers: &'a HeaderMap,
            _peer: Option<&'a PeerCertificate>,
        ) -> BoxFuture<'a, Result<Option<Caller>, AuthFailure>> {
            Box::pin(async { Err(self.0.clone()) })
        }
    }

    #[tokio::test]
    async fn who_may_be_known_later_is_not_refused_now() {
        let refused = |text: &str| AuthFailure::Refused(text.into());
        let later = || AuthFailure::Unavailable("later".into());
        for (failures, want) in [
            (vec![refused("expired"), later()], later()),
            (vec![later(), refused("expired")], later()),
            (vec![refused("first"), refused("second")], refused("first")),
        ] {
            let list: Vec<Arc<dyn CallerAuthenticator>> =
                failures.into_iter().map(|f| Arc::new(Fails(f)) as Arc<dyn CallerAuthenticator>).collect();
            assert_eq!(authenticate(&list, &HeaderMap::new(), None).await, Err(want));
        }
    }

    #[tokio::test]
    async fn headers_that_are_not_one_token_are_refused() {
        let calls = Arc::new(AtomicUsize::new(0));
        let authenticators = authenticator(calls.clone());
        let long = format!("Bearer {}", "a".repeat(MAX_TOKEN_BYTES + 1));
        for bad in [
            &[][..],
            &["Basic abc"],
            &["Bearer"],
            &["Bearer "],
            &["Bearer a.b", "Bearer c.d"],
            &[long.as_str()],
            &["a.b"],
        ] {
            assert!(authenticate(&authenticators, &headers(bad), None).await.is_err(), "{bad:?}");
        }
        assert_eq!(calls.load(Ordering::Relaxed), 0);
        // A service account whose name would reach into another identity.
        assert!(authenticate(&authenticators, &headers(&["Bearer a.b/../c"]), None).await.is_err());
    }
}
