//! Compiled policies, and what they are asked.

use std::net::SocketAddr;
use weft_core::Strng;
use weft_route::Regex;

/// A condition on a string.
pub use weft_route::StringMatcher as Matcher;
pub use weft_route::{MetadataMatcher, MetadataValue, ValueTest};

/// A compiled RBAC filter: enforced rules and, for dry run, shadow rules.
#[derive(Debug, Default)]
pub struct Rbac {
    /// Enforced; `None` allows.
    pub rules: Option<Rules>,
    /// Evaluated and reported only.
    pub shadow: Option<Rules>,
    /// Prefix of shadow statistics.
    pub shadow_prefix: String,
    /// Keys under which the outcome of the shadow rules is told to the filters after this one.
    pub shadow_keys: ShadowKeys,
    /// Prefix of counters (network filter).
    pub stat_prefix: String,
}

/// Keys of dynamic metadata.
#[derive(Debug, Default)]
pub struct ShadowKeys {
    /// Name of the policy that matched.
    pub policy: Strng,
    /// `allowed` or `denied`.
    pub result: Strng,
}

impl ShadowKeys {
    /// The keys with that prefix.
    pub fn new(prefix: &str) -> Self {
        Self {
            policy: format!("{prefix}shadow_effective_policy_id").into(),
            result: format!("{prefix}shadow_engine_result").into(),
        }
    }
}

/// Rules of one action.
#[derive(Debug)]
pub struct Rules {
    /// What a match does.
    pub action: RuleAction,
    /// Policies by name, e.g. `ns[foo]-policy[httpbin]-rule[0]`; a policy matches when any of its permissions and any of
    /// its principals match.
    pub policies: Vec<RulePolicy>,
    index: crate::index::Index,
}

impl Rules {
    /// Rules of one action; their policies in the order in which they are asked.
    pub fn new(action: RuleAction, policies: Vec<RulePolicy>) -> Self {
        let index = crate::index::Index::new(&policies);
        Self { action, policies, index }
    }

    /// Policies that can match; `None` = any can.
    pub(crate) fn candidates(&self, facts: &Facts<'_>) -> Option<crate::index::Candidates> {
        self.index.candidates(facts)
    }
}

/// What a match does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleAction {
    /// Lets through; no match denies.
    Allow,
    /// Denies; no match lets through.
    Deny,
    /// Lets through and marks.
    Log,
}

/// One policy. What its conditions are is private to this crate (`evaluate`).
#[derive(Debug)]
pub struct RulePolicy {
    /// Name.
    pub name: Strng,
    /// Any of these must hold.
    pub permissions: Vec<Condition>,
    /// And any of these.
    pub principals: Vec<Condition>,
}

/// A tree of conditions; leaves are filled in by `compile`.
#[derive(Debug)]
pub enum Condition {
    /// Always.
    Any,
    /// All of them.
    And(Vec<Condition>),
    /// One of them.
    Or(Vec<Condition>),
    /// Not it.
    Not(Box<Condition>),
    /// A leaf.
    Leaf(crate::types::Leaf),
}

/// A single test. Variants carry compiled matchers.
#[derive(Debug)]
pub enum Leaf {
    /// Destination in a range.
    DestinationIp(ipnet::IpNet),
    /// Destination port.
    DestinationPort(u16),
    /// Destination ports `[start, end)`.
    DestinationPortRange(u16, u16),
    /// SNI.
    ServerName(Matcher),
    /// Client certificate's URI or DNS SAN, else its subject; `None` = any verified certificate.
    Principal(Option<Matcher>),
    /// Address of the connection's peer.
    DirectRemoteIp(ipnet::IpNet),
    /// Address of the client after trusted `x-forwarded-for`.
    RemoteIp(ipnet::IpNet),
    /// A header or pseudo-header; value by value.
    Header(HeaderTest),
    /// Path without query.
    Path(Matcher),
    /// Path by template (`/a/{*}/b/{**}`).
    PathTemplate(Regex),
    /// What a filter said of the request (claims of its token).
    Metadata(MetadataMatcher),
    /// Filter state, e.g. `io.istio.peer_principal`.
    FilterState(Strng, Matcher),
    /// Something that this proxy cannot evaluate. It fails closed: where it would let through it does not hold, where it
    /// would deny it holds, also below negations.
    Unsupported(Strng),
}

/// A condition on a header.
#[derive(Debug)]
pub struct HeaderTest {
    /// The header or pseudo-header.
    pub key: weft_route::HeaderKey,
    /// What must hold of the value.
    pub test: HeaderValueTest,
    /// Turns the result round (not that of a missing header).
    pub invert: bool,
    /// A missing header counts as empty.
    pub missing_as_empty: bool,
}

/// What must hold of a header's value.
#[derive(Debug)]
pub enum HeaderValueTest {
    /// Present (`true`) or absent (`false`).
    Present(bool),
    /// Value condition.
    Value(Matcher),
    /// An integer in `[start, end)`.
    Range(i64, i64),
}

/// What a decision is made on.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Peer of the connection.
    pub peer: SocketAddr,
    /// Client after trusted `x-forwarded-for`.
    pub remote: SocketAddr,
    /// Original destination.
    pub destination: SocketAddr,
    /// SNI.
    pub server_name: Option<&'a str>,
    /// Verified client certificate; `None` = no mutual TLS.
    pub certificate: Option<&'a PeerCertificate>,
    /// The request; `None` for TCP.
    pub request: Option<RequestFacts<'a>>,
    /// Dynamic metadata by filter name (`envoy.filters.http.jwt_authn` …).
    pub metadata: &'a [(Strng, MetadataValue)],
}

/// What of a client certificate decides.
#[derive(Debug, Clone, Default)]
pub struct PeerCertificate {
    /// URI SANs.
    pub uris: Vec<Strng>,
    /// DNS SANs.
    pub dns: Vec<Strng>,
    /// Subject, RFC 2253.
    pub subject: String,
}

/// What of a request decides; normalised as routing sees it.
#[derive(Debug, Clone, Copy)]
pub struct RequestFacts<'a> {
    /// Method.
    pub method: &'a str,
    /// Authority, lower case.
    pub authority: &'a str,
    /// Path without query.
    pub path: &'a str,
    /// Path with query.
    pub path_and_query: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Headers.
    pub headers: &'a http::HeaderMap,
}

/// The outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Let through.
    pub allowed: bool,
    /// Policy that matched; `None` when none did.
    pub policy: Option<Strng>,
    /// Outcome of the shadow rules.
    pub shadow: Option<(bool, Option<Strng>)>,
}
