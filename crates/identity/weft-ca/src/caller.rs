//! Who asks: a caller is authenticated by its client certificate or by a service-account token, and by nothing it says.

use crate::LiveTrust;
use crate::rate::RateLimiter;
use http::HeaderMap;
use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Semaphore;
use weft_identity::SpiffeId;
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
/// Of these, reviews for callers of one address.
const MAX_REVIEWS_PER_ADDRESS: usize = 8;
/// Tokens from one address that may turn out bad at once.
const BAD_TOKENS: u32 = 20;
/// And a second, in the long run. Beyond that its tokens are not reviewed: a flood of them must not delay the good.
const BAD_TOKENS_PER_SECOND: u32 = 1;
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

/// What a caller shows.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// Headers of its request.
    pub headers: &'a HeaderMap,
    /// Its certificate, as the handshake verified it.
    pub peer: Option<&'a PeerCertificate>,
    /// Where it calls from; `None` = unknown, which counts as one place.
    pub remote: Option<IpAddr>,
}

/// Finds out who asks.
pub trait CallerAuthenticator: Send + Sync {
    /// The caller; `None` when it shows nothing that this authenticator looks at.
    fn authenticate<'a>(&'a self, evidence: Evidence<'a>) -> BoxFuture<'a, Result<Option<Caller>, AuthFailure>>;
}

/// Asks each authenticator in turn. What one refuses, the others are still asked; nobody's answer means refusal.
///
/// # Errors
/// That one could not tell, when there is such a one: another try may succeed. Else the first refusal, or that the caller
/// showed nothing.
pub async fn authenticate(
    authenticators: &[Arc<dyn CallerAuthenticator>],
    evidence: Evidence<'_>,
) -> Result<Caller, AuthFailure> {
    let mut failure = None;
    for authenticator in authenticators {
        match authenticator.authenticate(evidence).await {
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
    trust: LiveTrust,
}

impl CertificateAuthenticator {
    /// Accepts identities of these trust domains.
    pub fn new(trust: impl Into<LiveTrust>) -> Self {
        Self { trust: trust.into() }
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
        if !self.trust.trusts(identity.trust_domain()) {
            return refused(format!("the trust domain of {identity} is not ours"));
        }
        Ok(Caller { identity, method: "certificate" })
    }
}

impl CallerAuthenticator for CertificateAuthenticator {
    fn authenticate<'a>(&'a self, evidence: Evidence<'a>) -> BoxFuture<'a, Result<Option<Caller>, AuthFailure>> {
        Box::pin(async move { evidence.peer.map(|peer| self.caller(peer)).transpose() })
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
    trust: LiveTrust,
    review: TokenReview,
    slots: Semaphore,
    cache: Mutex<HashMap<[u8; 32], (Instant, TokenIdentity)>>,
    addresses: Mutex<Addresses>,
}

/// What each address is doing at the moment.
struct Addresses {
    under_way: HashMap<Option<IpAddr>, usize>,
    bad: RateLimiter<Option<IpAddr>>,
}

impl TokenAuthenticator {
    /// Identities are in the trust domain that is `trust`'s own at the time.
    pub fn new(trust: impl Into<LiveTrust>, review: TokenReview) -> Self {
        let bad = RateLimiter::new(BAD_TOKENS, BAD_TOKENS_PER_SECOND);
        let addresses = Mutex::new(Addresses { under_way: HashMap::new(), bad });
        let slots = Semaphore::new(MAX_REVIEWS);
        Self { trust: trust.into(), review, slots, cache: Mutex::default(), addresses }
    }

    async fn caller(&self, token: &str, remote: Option<IpAddr>) -> Result<Caller, AuthFailure> {
        let digest = weft_tls::sha256(token.as_bytes());
        let who = match self.cached(&digest) {
            Some(who) => who,
            None => self.reviewed(token, digest, remote).await?,
        };
        let Some(domain) = self.trust.own() else {
            return Err(AuthFailure::Unavailable("the trust domain is not known yet".into()));
        };
        let identity = SpiffeId::workload(&domain, &who.namespace, &who.service_account)
            .map_err(|error| AuthFailure::Refused(format!("the token's service account gives no identity: {error}")))?;
        Ok(Caller { identity, method: "token" })
    }

    async fn reviewed(
        &self,
        token: &str,
        digest: [u8; 32],
        remote: Option<IpAddr>,
    ) -> Result<TokenIdentity, AuthFailure> {
        let late = || AuthFailure::Unavailable("the token could not be reviewed in time; try again".into());
        let _turn = Turn::take(self, remote)?;
        let review = async {
            let _slot = self.slots.acquire().await.map_err(|_| late())?;
            (self.review)(token.to_owned()).await
        };
        let who = match tokio::time::timeout(REVIEW_TIMEOUT, review).await.map_err(|_| late())? {
            Ok(who) => who,
            Err(failure) => {
                if matches!(failure, AuthFailure::Refused(_)) {
                    self.addresses().bad.allow(&remote, Instant::now());
                }
                return Err(failure);
            }
        };
        self.remember(digest, who.clone());
        Ok(who)
    }

    fn addresses(&self) -> MutexGuard<'_, Addresses> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A review under way for an address; given back when it ends, however that is.
struct Turn<'a> {
    authenticator: &'a TokenAuthenticator,
    remote: Option<IpAddr>,
}

impl<'a> Turn<'a> {
    fn take(authenticator: &'a TokenAuthenticator, remote: Option<IpAddr>) -> Result<Self, AuthFailure> {
        let mut addresses = authenticator.addresses();
        if !addresses.bad.has(&remote, Instant::now()) {
            let text = "too many tokens from this address were not good; it has to wait";
            return Err(AuthFailure::Unavailable(text.into()));
        }
        let under_way = addresses.under_way.entry(remote).or_default();
        if *under_way >= MAX_REVIEWS_PER_ADDRESS {
            return Err(AuthFailure::Unavailable("too many tokens from this address are being reviewed; wait".into()));
        }
        *under_way += 1;
        drop(addresses);
        Ok(Self { authenticator, remote })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut addresses = self.authenticator.addresses();
        if let Some(under_way) = addresses.under_way.get_mut(&self.remote) {
            *under_way -= 1;
            if *under_way == 0 {
                addresses.under_way.remove(&self.remote);
            }
        }
    }
}

impl CallerAuthenticator for TokenAuthenticator {
    fn authenticate<'a>(&'a self, evidence: Evidence<'a>) -> BoxFuture<'a, Result<Option<Caller>, AuthFailure>> {
        Box::pin(async move {
            match bearer(evidence.headers)? {
                Some(token) => self.caller(token, evidence.remote).await.map(Some),
                None => Ok(None),
            }
        })
    }
}

/// The token of the one `authorization` header; several are refused, since others may read another one.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<Option<&str>, AuthFailure> {
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
    use weft_identity::TrustDomain;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(http::header::AUTHORIZATION, value.parse().unwrap());
        }
        headers
    }

    fn shows(headers: &HeaderMap) -> Evidence<'_> {
        Evidence { headers, peer: None, remote: None }
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
            let caller = authenticate(&authenticators, shows(&headers(&["Bearer default.reviews"]))).await.unwrap();
            assert_eq!(caller.identity.to_string(), "spiffe://td/ns/default/sa/reviews");
        }
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        for _ in 0..2 {
            assert!(authenticate(&authenticators, shows(&headers(&["Bearer stranger"]))).await.is_err());
        }
        assert_eq!(calls.load(Ordering::Relaxed), 3);
    }

    /// Fails in one way.
    struct Fails(AuthFailure);

    impl CallerAuthenticator for Fails {
        fn authenticate<'a>(&'a self, _: Evidence<'a>) -> BoxFuture<'a, Result<Option<Caller>, AuthFailure>> {
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
            assert_eq!(authenticate(&list, shows(&HeaderMap::new())).await, Err(want));
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
            assert!(authenticate(&authenticators, shows(&headers(bad))).await.is_err(), "{bad:?}");
        }
        assert_eq!(calls.load(Ordering::Relaxed), 0);
        // A service account whose name would reach into another identity.
        assert!(authenticate(&authenticators, shows(&headers(&["Bearer a.b/../c"]))).await.is_err());
    }

    #[tokio::test]
    async fn a_flood_of_bad_tokens_does_not_delay_good_ones() {
        // Reviews of bad tokens never end by themselves; good ones end at once.
        let review: TokenReview = Arc::new(|token| {
            Box::pin(async move {
                if token.starts_with("bad") {
                    std::future::pending::<()>().await;
                }
                Ok(TokenIdentity { namespace: "a".into(), service_account: token })
            })
        });
        let domain = TrustDomain::new("td").unwrap();
        let list: Arc<Vec<Arc<dyn CallerAuthenticator>>> =
            Arc::new(vec![Arc::new(TokenAuthenticator::new(domain, review))]);
        let attacker: Option<IpAddr> = Some([10, 0, 0, 66].into());
        let flood: Vec<_> = (0..500)
            .map(|i| {
                let list = list.clone();
                tokio::spawn(async move {
                    let headers = headers(&[&format!("Bearer bad-{i}")]);
                    authenticate(&list, Evidence { headers: &headers, peer: None, remote: attacker }).await
                })
            })
            .collect();
        tokio::task::yield_now().await;
        let headers = headers(&["Bearer good"]);
        let evidence = Evidence { headers: &headers, peer: None, remote: Some([10, 0, 0, 1].into()) };
        let caller = tokio::time::timeout(Duration::from_secs(30), authenticate(&list, evidence)).await;
        assert_eq!(caller.expect("at once").unwrap().identity.to_string(), "spiffe://td/ns/a/sa/good");
        let refused = async {
            while flood.iter().filter(|task| !task.is_finished()).count() > MAX_REVIEWS_PER_ADDRESS {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), refused).await.expect("all but a few are refused at once");
        flood.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn an_address_whose_tokens_are_bad_has_to_wait() {
        let calls = Arc::new(AtomicUsize::new(0));
        let authenticators = authenticator(calls.clone());
        let begun = Instant::now();
        for i in 0..BAD_TOKENS * 3 {
            let headers = headers(&[&format!("Bearer stranger{i}")]);
            assert!(authenticate(&authenticators, shows(&headers)).await.is_err());
        }
        let asked = calls.load(Ordering::Relaxed);
        // Those that it may send at once, and those for which it has waited meanwhile.
        let waited = usize::try_from(begun.elapsed().as_secs() + 1).unwrap() * BAD_TOKENS_PER_SECOND as usize;
        assert!((BAD_TOKENS as usize..=BAD_TOKENS as usize + waited).contains(&asked), "{asked}");
        // Others are not concerned.
        let headers = headers(&["Bearer default.reviews"]);
        let elsewhere = Evidence { headers: &headers, peer: None, remote: Some([10, 0, 0, 1].into()) };
        assert!(authenticate(&authenticators, elsewhere).await.is_ok());
    }
}
