//! The compiled JWT filter: who may issue tokens, where they are looked for, and which requests need one.

use crate::Jwks;
use http::HeaderName;
use std::sync::Arc;
use std::time::Duration;
use weft_core::Strng;
use weft_route::{RouteMatcher, StringMatcher};

/// A compiled JWT filter.
#[derive(Debug)]
pub struct JwtAuthn {
    /// Issuers; requirements name them by their place.
    pub providers: Vec<Arc<JwtProvider>>,
    /// What requests need; the first rule that matches counts, and a request that none matches needs nothing.
    pub rules: Vec<JwtRule>,
    /// CORS preflight requests need nothing.
    pub bypass_cors_preflight: bool,
    /// Failures say nothing of themselves to the client.
    pub strip_failure_response: bool,
}

/// What some requests need.
#[derive(Debug)]
pub struct JwtRule {
    /// Which requests.
    pub matcher: RouteMatcher,
    /// What they need; `None` = nothing.
    pub requirement: Option<JwtRequirement>,
}

/// What a request needs. Numbers are places in [`JwtAuthn::providers`].
#[derive(Debug)]
pub enum JwtRequirement {
    /// A token of this issuer.
    Provider(usize),
    /// A token of this issuer for one of these audiences.
    Audiences(usize, Vec<Strng>),
    /// Any of these.
    Any(Vec<JwtRequirement>),
    /// All of these.
    All(Vec<JwtRequirement>),
    /// No token, or valid ones, in the places where these issuers have theirs.
    AllowMissing(Vec<usize>),
    /// As above, and tokens that are not valid count as missing.
    AllowFailed(Vec<usize>),
}

/// An issuer.
#[derive(Debug)]
pub struct JwtProvider {
    /// Name.
    pub name: Strng,
    /// `iss` of its tokens; `None` = any.
    pub issuer: Option<Strng>,
    /// Accepted audiences without scheme and trailing slash; empty = any.
    pub audiences: Vec<Strng>,
    /// Accepted `sub`.
    pub subjects: Option<StringMatcher>,
    /// Tokens must expire.
    pub require_expiration: bool,
    /// Longest time left until a token expires.
    pub max_lifetime: Option<Duration>,
    /// The token is sent on.
    pub forward: bool,
    /// Headers that carry a token, with what stands before it.
    pub headers: Vec<(HeaderName, Strng)>,
    /// Query parameters that carry a token.
    pub params: Vec<Strng>,
    /// Cookies that carry a token.
    pub cookies: Vec<Strng>,
    /// Header that gets the payload in base64url, and whether it is padded.
    pub payload_header: Option<(HeaderName, bool)>,
    /// Headers that get single claims, by the claim's path.
    pub claim_headers: Vec<(HeaderName, Vec<Strng>)>,
    /// Metadata key of the payload.
    pub payload_key: Option<Strng>,
    /// Metadata key of the token's header.
    pub header_key: Option<Strng>,
    /// Metadata key of the reason of a failure.
    pub failure_key: Option<Strng>,
    /// Claims whose text becomes a list at its blanks, in metadata.
    pub space_delimited: Vec<Strng>,
    /// Difference of clocks that is put up with, in seconds; 60 unless set.
    pub clock_skew: u64,
    /// The route is chosen again, with the claims known.
    pub reroute: bool,
    /// Its keys; the text says why there are none, and then no token is valid.
    pub jwks: Result<Jwks, String>,
}
