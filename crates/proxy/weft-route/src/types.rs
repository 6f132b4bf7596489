//! Compiled routes. Strings are shared, regular expressions compiled, header names parsed; nothing is parsed per request.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use weft_core::{Provenance, Strng};

pub use crate::pool::Regex;

/// A compiled RouteConfiguration.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// Name of the route configuration.
    pub name: Strng0,
    /// Virtual hosts, in the order of the configuration.
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
    /// Exact domains → index into `virtual_hosts`.
    pub exact: HashMap<Strng, u32, foldhash::fast::RandomState>,
    /// `*.suffix` domains (without the star).
    pub suffixes: WildcardIndex,
    /// `prefix.*` domains (without the star).
    pub prefixes: WildcardIndex,
    /// Virtual host of `*`.
    pub catch_all: Option<u32>,
    /// Header operations for every request and response of the table.
    pub headers: HeaderOps,
    /// Match domains without the port of the authority.
    pub ignore_port_in_host: bool,
    /// The most specific header operations (route) are applied last and so win; otherwise the table's are.
    pub most_specific_wins: bool,
    /// Virtual hosts come one by one (VHDS).
    pub vhds: bool,
}

/// Wildcard domains: looked up by hash, once per distinct length, so that thousands of them cost no scan.
#[derive(Debug, Default)]
pub struct WildcardIndex {
    /// Distinct lengths, longest first.
    pub lengths: Vec<u16>,
    /// Domain without its star → index of the virtual host.
    pub domains: HashMap<Strng, u32, foldhash::fast::RandomState>,
}

/// A name that defaults to empty.
pub type Strng0 = String;

/// A compiled virtual host.
#[derive(Debug, Default)]
pub struct VirtualHost {
    /// Name, e.g. `reviews.default.svc.cluster.local:9080`.
    pub name: Strng0,
    /// Domains, lower case.
    pub domains: Vec<Strng>,
    /// Routes; the first that matches wins.
    pub routes: Vec<Arc<Route>>,
    /// Retry policy of routes that have none.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Header operations for this host.
    pub headers: HeaderOps,
    /// Add `x-envoy-attempt-count` to requests.
    pub include_attempt_count: bool,
    /// Add `x-envoy-attempt-count` to responses.
    pub include_attempt_count_in_response: bool,
    /// Redirect plain HTTP to HTTPS.
    pub require_tls: bool,
    /// Rate limits for this host.
    pub rate_limits: Vec<crate::RateLimit>,
    /// Filter settings for this host.
    pub filters: FilterOverrides,
    /// Where it came from.
    pub origin: Option<Arc<Provenance>>,
}

/// A compiled route.
#[derive(Debug)]
pub struct Route {
    /// Name; shown in access logs.
    pub name: Strng,
    /// When it applies.
    pub matcher: RouteMatcher,
    /// What it does.
    pub action: Action,
    /// Header operations of this route.
    pub headers: HeaderOps,
    /// Filter settings for this route.
    pub filters: FilterOverrides,
    /// Trace decorator: operation name.
    pub operation: Option<Strng>,
    /// Where it came from.
    pub origin: Option<Arc<Provenance>>,
}

/// Conditions, all of which must hold.
#[derive(Debug, Default)]
pub struct RouteMatcher {
    /// Path condition.
    pub path: PathMatcher,
    /// Path conditions ignore ASCII case.
    pub ignore_case: bool,
    /// Header conditions, including `:method`, `:authority`, `:scheme`, `:path`.
    pub headers: Vec<HeaderMatcher>,
    /// Query parameter conditions.
    pub query: Vec<QueryMatcher>,
    /// Conditions on what filters said of the request, such as claims of its token.
    pub metadata: Vec<crate::MetadataMatcher>,
    /// Only gRPC requests.
    pub grpc: bool,
    /// Share of requests in parts per million; `None` = all.
    pub fraction: Option<u32>,
}

/// How the path (without query) is matched.
#[derive(Debug, Default)]
pub enum PathMatcher {
    /// Any path.
    #[default]
    Any,
    /// The whole path.
    Exact(Strng),
    /// Starts with.
    Prefix(Strng),
    /// Starts with, and the next character is `/` or the end.
    SegmentPrefix(Strng),
    /// The whole path matches.
    Regex(Regex),
    /// `CONNECT` requests.
    Connect,
    /// `{name}`, `*`, `**` templates, compiled to an anchored expression.
    Template(Regex),
}

/// A condition on a string.
#[derive(Debug, Clone)]
pub enum StringMatcher {
    /// Equal.
    Exact(Strng),
    /// Starts with.
    Prefix(Strng),
    /// Ends with.
    Suffix(Strng),
    /// Contains.
    Contains(Strng),
    /// Matches as a whole.
    Regex(Regex),
    /// The inner one, ignoring ASCII case.
    IgnoreCase(Box<StringMatcher>),
}

/// Which header a matcher looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderKey {
    /// An ordinary header.
    Name(HeaderName),
    /// `:method`
    Method,
    /// `:authority`
    Authority,
    /// `:path`, with the query
    Path,
    /// `:scheme`
    Scheme,
}

/// A condition on a header. Of a repeated header one value is enough, as in Envoy.
#[derive(Debug, Clone)]
pub struct HeaderMatcher {
    /// The header.
    pub key: HeaderKey,
    /// The condition on its value.
    pub test: HeaderTest,
    /// Turns the result round.
    pub invert: bool,
    /// A missing header counts as empty.
    pub missing_as_empty: bool,
}

/// What must hold of a header's value.
#[derive(Debug, Clone)]
pub enum HeaderTest {
    /// Present (`true`) or absent (`false`).
    Present(bool),
    /// Value condition.
    Value(StringMatcher),
    /// An integer in `[start, end)`.
    Range(i64, i64),
}

/// A condition on a query parameter.
#[derive(Debug, Clone)]
pub struct QueryMatcher {
    /// Parameter name.
    pub name: Strng,
    /// Value condition; `None` = present.
    pub value: Option<StringMatcher>,
    /// The parameter must be absent (`value` is `None` then).
    pub absent: bool,
}

/// What a route does.
#[derive(Debug)]
pub enum Action {
    /// Sends the request to a cluster.
    Forward(Box<Forward>),
    /// Answers with a redirect.
    Redirect(Box<Redirect>),
    /// Answers by itself.
    Direct(DirectResponse),
    /// The inbound side's `non_forwarding_action`, or an action this proxy could not compile: answers 500/404 and says why.
    Unusable(Strng),
}

/// Forwarding.
#[derive(Debug)]
pub struct Forward {
    /// Which cluster.
    pub cluster: ClusterChoice,
    /// Status when the cluster does not exist (503 unless set).
    pub cluster_not_found: StatusCode,
    /// Whole-request timeout, from the end of the request to the end of the response; `None` = no limit. 15 s unless set.
    pub timeout: Option<Duration>,
    /// Idle timeout of the stream; `None` = the connection manager's, zero = off.
    pub idle_timeout: Option<Duration>,
    /// Requests may set their timeout by `grpc-timeout`, up to this (zero = without bound); `None` = the header is ignored.
    pub max_grpc_timeout: Option<Duration>,
    /// Longest life of the stream; `None` = no limit.
    pub max_stream_duration: Option<Duration>,
    /// Retry policy.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Path rewrite.
    pub path_rewrite: PathRewrite,
    /// Host rewrite.
    pub host_rewrite: HostRewrite,
    /// Keep the original host in `x-forwarded-host`.
    pub append_x_forwarded_host: bool,
    /// Mirrors.
    pub mirrors: Vec<Mirror>,
    /// How to derive a hash for consistent balancing.
    pub hash: Vec<HashPolicy>,
    /// CORS policy of the route (older place; `filters.cors` wins).
    pub cors: Option<Arc<CorsPolicy>>,
    /// Upgrades allowed here, lower case; `None` = the connection manager's list.
    pub upgrades: Option<Vec<(Strng, bool)>>,
    /// `CONNECT` ends here: its bytes go on as plain TCP.
    pub terminate_connect: bool,
    /// Which limits of the cluster hold.
    pub priority: Priority,
    /// Rate limits of the route.
    pub rate_limits: Vec<crate::RateLimit>,
    /// Those of its virtual host hold too.
    pub include_host_limits: bool,
    /// Labels that choose a subset of the cluster's endpoints, name → value.
    pub metadata_match: Vec<(Strng, Strng)>,
}

/// Routing priority: each has limits of its own in a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// `DEFAULT`
    #[default]
    Default,
    /// `HIGH`
    High,
}

/// Which cluster a request goes to.
#[derive(Debug)]
pub enum ClusterChoice {
    /// This one.
    One(Strng),
    /// By weight.
    Weighted(WeightedClusters),
    /// Named by a request header.
    Header(HeaderName),
}

/// Clusters by weight.
#[derive(Debug)]
pub struct WeightedClusters {
    /// Sum of weights, never 0 (a table of weights that add up to nothing is unusable).
    pub total: u32,
    /// Entries.
    pub clusters: Vec<WeightedCluster>,
}

/// One of several clusters.
#[derive(Debug)]
pub struct WeightedCluster {
    /// Cluster.
    pub name: Strng,
    /// Weight.
    pub weight: u32,
    /// Header operations for requests that go there.
    pub headers: HeaderOps,
    /// Host rewrite for requests that go there.
    pub host_rewrite: Option<HeaderValue>,
    /// Filter settings for requests that go there.
    pub filters: FilterOverrides,
}

/// Path rewriting.
#[derive(Debug, Default)]
pub enum PathRewrite {
    /// None.
    #[default]
    Keep,
    /// Replaces the matched prefix (or the whole matched exact path).
    Prefix(Strng),
    /// Replaces each match by a substitution, written as the `regex` crate does (`${1}`).
    Regex(Regex, Strng),
    /// Replaces the whole path (query kept, unless a redirect's path brings its own).
    Full(Strng),
}

/// Host rewriting.
#[derive(Debug, Default)]
pub enum HostRewrite {
    /// None.
    #[default]
    Keep,
    /// This host.
    Literal(HeaderValue),
    /// The endpoint's own name.
    Auto,
    /// From this header.
    Header(HeaderName),
    /// Made of the path (without query), by expression and substitution.
    PathRegex(Regex, Strng),
}

/// A mirror.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// Cluster that gets the copy; empty: the one that `cluster_header` names.
    pub cluster: Strng,
    /// Header of the request that names the cluster.
    pub cluster_header: Option<HeaderName>,
    /// Share in parts per million.
    pub fraction: u32,
    /// Do not add `-shadow` to the host.
    pub keep_host: bool,
    /// Host of the copy in place of the request's.
    pub host: Option<HeaderValue>,
    /// Changes to the headers of the copy.
    pub edit: HeaderEdit,
}

/// A source of the balancing hash.
#[derive(Debug)]
pub struct HashPolicy {
    /// What is hashed.
    pub source: HashSource,
    /// Stop when this one gave a hash.
    pub terminal: bool,
}

/// What is hashed.
#[derive(Debug)]
pub enum HashSource {
    /// A header.
    Header(HeaderName),
    /// A cookie; generated with this lifetime and path when missing and a lifetime is set.
    Cookie(Strng, Option<Duration>, Strng),
    /// The client's address.
    SourceIp,
    /// A query parameter.
    Query(Strng),
}

/// When and how a request is tried again.
#[derive(Debug, Clone, Default)]
pub struct RetryPolicy {
    /// Conditions.
    pub on: RetryOn,
    /// Statuses that are retriable under `retriable-status-codes`.
    pub statuses: Vec<StatusCode>,
    /// Further tries.
    pub attempts: u32,
    /// Time for each try.
    pub per_try_timeout: Option<Duration>,
    /// First back-off; 25 ms unless set.
    pub base_interval: Duration,
    /// Longest back-off; ten times the base unless set.
    pub max_interval: Duration,
    /// Do not choose a host that failed already.
    pub avoid_previous_hosts: bool,
    /// How often to choose anew for that.
    pub host_attempts: u32,
    /// Retriable response headers.
    pub headers: Vec<HeaderMatcher>,
    /// The conditions hold for requests with one of these alone; empty: for all.
    pub request_headers: Vec<HeaderMatcher>,
}

/// Retry conditions, as in `x-envoy-retry-on`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetryOn {
    /// `5xx`
    pub server_error: bool,
    /// `gateway-error`
    pub gateway_error: bool,
    /// `reset`
    pub reset: bool,
    /// `reset-before-request`
    pub reset_before_request: bool,
    /// `connect-failure`
    pub connect_failure: bool,
    /// `refused-stream`
    pub refused_stream: bool,
    /// `retriable-4xx`
    pub retriable_4xx: bool,
    /// `retriable-status-codes`
    pub status_codes: bool,
    /// `retriable-headers`
    pub headers: bool,
    /// gRPC `cancelled`
    pub grpc_cancelled: bool,
    /// gRPC `deadline-exceeded`
    pub grpc_deadline: bool,
    /// gRPC `internal`
    pub grpc_internal: bool,
    /// gRPC `resource-exhausted`
    pub grpc_exhausted: bool,
    /// gRPC `unavailable`
    pub grpc_unavailable: bool,
}

/// A redirect.
#[derive(Debug)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// New scheme.
    pub scheme: Option<Strng>,
    /// New host.
    pub host: Option<Strng>,
    /// New port.
    pub port: Option<u16>,
    /// New path.
    pub path: PathRewrite,
    /// Drop the query.
    pub strip_query: bool,
}

/// A response of the route's own.
#[derive(Debug)]
pub struct DirectResponse {
    /// Status.
    pub status: StatusCode,
    /// Body, shared.
    pub body: Bytes,
}

/// Header operations for request and response.
#[derive(Debug, Default, Clone)]
pub struct HeaderOps {
    /// On the request.
    pub request: HeaderEdit,
    /// On the response.
    pub response: HeaderEdit,
}

/// Removals, then additions.
#[derive(Debug, Default, Clone)]
pub struct HeaderEdit {
    /// Headers to remove.
    pub remove: Vec<HeaderName>,
    /// Headers to add, set or keep.
    pub add: Vec<HeaderAdd>,
}

/// One header to put in.
#[derive(Debug, Clone)]
pub struct HeaderAdd {
    /// Name; `HeaderKey::Authority` sets the host.
    pub key: HeaderKey,
    /// Value: a literal, or a format with `%COMMAND%`s.
    pub value: HeaderFormat,
    /// What to do when it is there already.
    pub append: AppendAction,
    /// Put it in even when its value turns out empty.
    pub keep_empty: bool,
}

/// A header value.
#[derive(Debug, Clone)]
pub enum HeaderFormat {
    /// As it is.
    Literal(HeaderValue),
    /// With commands, as in access logs (`%DOWNSTREAM_REMOTE_ADDRESS%`, `%REQ(x)%` …), parsed by the telemetry crate.
    Command(Strng),
}

/// What to do when a header exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AppendAction {
    /// Add another value.
    #[default]
    AppendOrAdd,
    /// Leave it.
    AddIfAbsent,
    /// Replace it; add when absent.
    OverwriteOrAdd,
    /// Replace it only when there.
    OverwriteIfExists,
}

impl AppendAction {
    /// One value takes the place of those that are there.
    pub fn overwrites(self) -> bool {
        matches!(self, Self::OverwriteOrAdd | Self::OverwriteIfExists)
    }
}

impl HeaderAdd {
    /// Whether it is put into headers like these.
    pub fn is_wanted(&self, headers: &http::HeaderMap) -> bool {
        match (&self.key, self.append) {
            (HeaderKey::Name(name), AppendAction::AddIfAbsent) => !headers.contains_key(name),
            (HeaderKey::Name(name), AppendAction::OverwriteIfExists) => headers.contains_key(name),
            _ => true,
        }
    }
}

/// Settings of HTTP filters that a virtual host, route or weighted cluster overrides.
#[derive(Debug, Default, Clone)]
pub struct FilterOverrides {
    /// Fault injection.
    pub fault: Option<Arc<Fault>>,
    /// CORS.
    pub cors: Option<Arc<CorsPolicy>>,
    /// Rate limits by buckets.
    pub local_rate_limit: Option<Arc<crate::LocalRateLimit>>,
    /// Rate limits by a service.
    pub rate_limit: Option<Arc<crate::RateLimitPerRoute>>,
    /// Filters of which something is said here, by name: whether they are on. The most specific level that speaks of a filter
    /// decides, and settings without a switch say "on" (Envoy's `typed_per_filter_config`).
    pub switched: Vec<(Strng, bool)>,
    /// What no field above stands for: filter name and its message, for filters compiled elsewhere.
    pub other: Vec<(Strng, prost_types::Any)>,
}

/// Fault injection.
#[derive(Debug, Default, Clone)]
pub struct Fault {
    /// Delay and its share in parts per million.
    pub delay: Option<(Duration, u32)>,
    /// Abort and its share in parts per million.
    pub abort: Option<(FaultAbort, u32)>,
    /// Requests ask for a delay themselves (`x-envoy-fault-delay-request`), for this share at most.
    pub header_delay: Option<FaultShare>,
    /// Requests ask for an abort themselves (`x-envoy-fault-abort-request`), for this share at most.
    pub header_abort: Option<FaultShare>,
    /// Only for requests with these headers.
    pub headers: Vec<HeaderMatcher>,
    /// Only for these upstream clusters; empty = all.
    pub upstream_cluster: Option<Strng>,
}

/// The share of requests that may ask for a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultShare {
    /// In parts per million.
    pub most: u32,
    /// What a request's own percentage is multiplied by.
    pub unit: u32,
}

/// How a fault aborts.
#[derive(Debug, Clone, Copy)]
pub enum FaultAbort {
    /// HTTP status.
    Http(StatusCode),
    /// gRPC status number.
    Grpc(u32),
}

/// Cross-origin policy.
#[derive(Debug, Default, Clone)]
pub struct CorsPolicy {
    /// Origins allowed.
    pub origins: Vec<StringMatcher>,
    /// `access-control-allow-methods`
    pub methods: Option<HeaderValue>,
    /// `access-control-allow-headers`
    pub headers: Option<HeaderValue>,
    /// `access-control-expose-headers`
    pub expose: Option<HeaderValue>,
    /// `access-control-max-age`
    pub max_age: Option<HeaderValue>,
    /// `access-control-allow-credentials`
    pub credentials: bool,
    /// Pass preflights of origins that do not match on to the upstream; yes unless set (Istio's default `FORWARD`).
    pub forward_unmatched_preflights: bool,
    /// `access-control-allow-private-network`
    pub private_network: bool,
}

/// What routing sees of a request: normalised once, before (path, host) and never again.
#[derive(Debug, Clone, Copy)]
pub struct RequestView<'a> {
    /// Method.
    pub method: &'a Method,
    /// Authority as sent, lower case.
    pub authority: &'a str,
    /// Path without query, normalised.
    pub path: &'a str,
    /// Query without `?`, when there is one.
    pub query: Option<&'a str>,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Headers.
    pub headers: &'a http::HeaderMap,
    /// What filters said of it; empty before they ran.
    pub metadata: &'a [(Strng, crate::MetadataValue)],
}

/// The outcome of routing.
#[derive(Debug, Clone, Copy)]
pub enum Routed<'t> {
    /// A route.
    Route(&'t Arc<VirtualHost>, &'t Arc<Route>),
    /// The host is known, but no route matches.
    NoRoute(&'t Arc<VirtualHost>),
    /// No virtual host.
    NoHost,
}
