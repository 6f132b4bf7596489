//! `VirtualService`: how requests to hosts are routed.

use super::common::{Duration, Percent, PortSelector, StringMatch};
use crate::macros::{spec, words};
use std::collections::BTreeMap;

spec! {
    /// Routing rules for hosts.
    pub struct VirtualService {
        /// Destination hosts the rules apply to: DNS names, short names, `*` and `*.` wildcards, or addresses.
        hosts: Vec<String>,
        /// Gateways (`name`, `namespace/name`) and `mesh`. Default: `mesh`.
        gateways: Vec<String>,
        /// HTTP rules, first match wins.
        http: Vec<HttpRoute>,
        /// Rules for TLS that is not opened, first match wins.
        tls: Vec<TlsRoute>,
        /// Rules for other TCP, first match wins.
        tcp: Vec<TcpRoute>,
        /// Namespaces that see it: names, `.` (own) or `*` (all). Default: mesh config's `defaultVirtualServiceExportTo`.
        export_to: Vec<String>,
    }

    /// One HTTP rule.
    pub struct HttpRoute {
        /// Name for logs.
        name: String,
        /// Conditions, any of which suffices. Empty: every request.
        #[serde(rename = "match")]
        matches: Vec<HttpMatchRequest>,
        /// Destinations by weight.
        route: Vec<HttpRouteDestination>,
        /// Answer with a redirect instead.
        redirect: Option<HttpRedirect>,
        /// Answer with a fixed response instead.
        direct_response: Option<HttpDirectResponse>,
        /// Take the routes of another virtual service.
        delegate: Option<Delegate>,
        /// Change path or authority before forwarding.
        rewrite: Option<HttpRewrite>,
        /// Time for the whole request, retries included. Default: none.
        timeout: Option<Duration>,
        /// Retry policy. Default: mesh config's `defaultHttpRetryPolicy`.
        retries: Option<HttpRetry>,
        /// Injected faults.
        fault: Option<HttpFaultInjection>,
        /// Copy requests here.
        mirror: Option<Destination>,
        /// Copy requests to several places.
        mirrors: Vec<HttpMirrorPolicy>,
        /// Older spelling of `mirrorPercentage`.
        mirror_percent: Option<u32>,
        /// Share of requests that is mirrored. Default: all.
        mirror_percentage: Option<Percent>,
        /// Cross-origin policy.
        cors_policy: Option<CorsPolicy>,
        /// Changes of headers.
        headers: Option<Headers>,
    }

    /// Conditions on a request; all that are set must hold.
    pub struct HttpMatchRequest {
        /// Name for logs.
        name: String,
        /// Path.
        uri: Option<StringMatch>,
        /// `http` or `https`.
        scheme: Option<StringMatch>,
        /// Method.
        method: Option<StringMatch>,
        /// Host header.
        authority: Option<StringMatch>,
        /// Headers, by lower-case name.
        headers: BTreeMap<String, StringMatch>,
        /// Port the request was addressed to.
        port: u32,
        /// Labels of the calling workload.
        source_labels: BTreeMap<String, String>,
        /// Gateways; replaces the top-level list.
        gateways: Vec<String>,
        /// Query parameters.
        query_params: BTreeMap<String, StringMatch>,
        /// Compare `uri` (exact and prefix) without regard to case.
        ignore_uri_case: bool,
        /// Headers that must not match.
        without_headers: BTreeMap<String, StringMatch>,
        /// Namespace of the calling workload.
        source_namespace: String,
        /// Prefix of the statistics of this route.
        stat_prefix: String,
    }

    /// A destination with its share.
    pub struct HttpRouteDestination {
        /// Where to.
        destination: Option<Destination>,
        /// Share relative to the sum of all; with a single destination it does not matter.
        weight: u32,
        /// Changes of headers for this destination.
        headers: Option<Headers>,
    }

    /// A service, a subset of it, a port of it.
    pub struct Destination {
        /// Service host.
        host: String,
        /// Subset that a destination rule defines; empty = the whole service.
        subset: String,
        /// Port; may be left out when the service has one only.
        port: Option<PortSelector>,
    }

    /// Which virtual service has the routes.
    pub struct Delegate {
        /// Name.
        name: String,
        /// Namespace. Default: the root's own.
        namespace: String,
    }

    /// Changes of request and response headers.
    pub struct Headers {
        /// Before forwarding.
        request: Option<HeaderOperations>,
        /// Before answering.
        response: Option<HeaderOperations>,
    }

    /// Changes of headers: set, then add, then remove.
    pub struct HeaderOperations {
        /// Overwrite.
        set: BTreeMap<String, String>,
        /// Append.
        add: BTreeMap<String, String>,
        /// Remove.
        remove: Vec<String>,
    }

    /// A redirect.
    pub struct HttpRedirect {
        /// New path, replacing all of it (or what matched, when it starts with `%PREFIX()%`).
        uri: String,
        /// New path prefix, replacing what matched.
        prefix_rewrite: String,
        /// New host.
        authority: String,
        /// New port.
        port: Option<u32>,
        /// How the port is found when it is not given.
        derive_port: Option<RedirectPort>,
        /// New scheme.
        scheme: String,
        /// 301 (default), 302, 303, 307 or 308.
        redirect_code: u32,
    }

    /// A fixed answer.
    pub struct HttpDirectResponse {
        /// Status, 200 to 599.
        status: u32,
        /// Body. Default: none.
        body: Option<HttpBody>,
    }

    /// A body; one of the two.
    pub struct HttpBody {
        /// Text.
        string: Option<String>,
        /// Base64 of bytes.
        bytes: Option<String>,
    }

    /// A rewrite before forwarding.
    pub struct HttpRewrite {
        /// Replaces the matched prefix, or the whole path for other matches.
        uri: String,
        /// Replaces the host.
        authority: String,
        /// Rewrites the path by an expression.
        uri_regex_rewrite: Option<RegexRewrite>,
    }

    /// A rewrite by regular expression.
    pub struct RegexRewrite {
        /// RE2 expression.
        #[serde(rename = "match")]
        regex: String,
        /// Replacement; `\1` and so on are the captured groups.
        rewrite: String,
    }

    /// When and how often a request is tried again.
    pub struct HttpRetry {
        /// Retries after the first try; 0 = none.
        attempts: u32,
        /// Time for each try. Default: that of the route.
        per_try_timeout: Option<Duration>,
        /// Conditions, comma-separated. Default: `connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes`.
        retry_on: String,
        /// Whether retries may go to other localities.
        retry_remote_localities: Option<bool>,
        /// Whether hosts already tried are left out. Default: true.
        retry_ignore_previous_hosts: Option<bool>,
        /// Least wait between tries. Default: 25 ms.
        backoff: Option<Duration>,
    }

    /// Cross-origin resource sharing.
    pub struct CorsPolicy {
        /// Older spelling of exact `allowOrigins`.
        allow_origin: Vec<String>,
        /// Origins that may call.
        allow_origins: Vec<StringMatch>,
        /// Methods.
        allow_methods: Vec<String>,
        /// Request headers.
        allow_headers: Vec<String>,
        /// Response headers that scripts may read.
        expose_headers: Vec<String>,
        /// How long a preflight answer may be kept.
        max_age: Option<Duration>,
        /// Whether credentials may be sent.
        allow_credentials: Option<bool>,
        /// What happens to a preflight from another origin. Default: forwarded.
        unmatched_preflights: UnmatchedPreflights,
    }

    /// Faults to inject.
    pub struct HttpFaultInjection {
        /// Wait before forwarding.
        delay: Option<FaultDelay>,
        /// Answer instead of forwarding.
        abort: Option<FaultAbort>,
    }

    /// A delay.
    pub struct FaultDelay {
        /// Older spelling of `percentage`: whole percent.
        percent: Option<u32>,
        /// How long.
        fixed_delay: Option<Duration>,
        /// Reserved in the API; has no effect.
        exponential_delay: Option<Duration>,
        /// Share of requests. Not set: none.
        percentage: Option<Percent>,
    }

    /// An abort; one status of the three.
    pub struct FaultAbort {
        /// HTTP status.
        http_status: Option<u32>,
        /// gRPC status by name, such as `UNAVAILABLE`.
        grpc_status: Option<String>,
        /// HTTP/2 error code by name.
        http2_error: Option<String>,
        /// Older spelling of `percentage`: whole percent.
        percent: Option<u32>,
        /// Share of requests. Not set: none.
        percentage: Option<Percent>,
    }

    /// Where to mirror, and how much.
    pub struct HttpMirrorPolicy {
        /// Where to.
        destination: Option<Destination>,
        /// Share of requests. Default: all.
        percentage: Option<Percent>,
    }

    /// One rule for TLS that is not opened.
    pub struct TlsRoute {
        /// Conditions, any of which suffices; at least one.
        #[serde(rename = "match")]
        matches: Vec<TlsMatchAttributes>,
        /// Destinations by weight.
        route: Vec<RouteDestination>,
    }

    /// One rule for TCP.
    pub struct TcpRoute {
        /// Conditions, any of which suffices. Empty: every connection.
        #[serde(rename = "match")]
        matches: Vec<L4MatchAttributes>,
        /// Destinations by weight.
        route: Vec<RouteDestination>,
    }

    /// A destination of a connection with its share.
    pub struct RouteDestination {
        /// Where to.
        destination: Option<Destination>,
        /// Share relative to the sum of all.
        weight: u32,
    }

    /// Conditions on a TLS connection.
    pub struct TlsMatchAttributes {
        /// Server names: full or `*.` wildcards, each within the virtual service's hosts.
        sni_hosts: Vec<String>,
        /// Destination addresses as CIDR.
        destination_subnets: Vec<String>,
        /// Port.
        port: u32,
        /// Labels of the calling workload.
        source_labels: BTreeMap<String, String>,
        /// Gateways; replaces the top-level list.
        gateways: Vec<String>,
        /// Namespace of the calling workload.
        source_namespace: String,
    }

    /// Conditions on a connection.
    pub struct L4MatchAttributes {
        /// Destination addresses as CIDR.
        destination_subnets: Vec<String>,
        /// Port.
        port: u32,
        /// Caller's address as CIDR.
        source_subnet: String,
        /// Labels of the calling workload.
        source_labels: BTreeMap<String, String>,
        /// Gateways; replaces the top-level list.
        gateways: Vec<String>,
        /// Namespace of the calling workload.
        source_namespace: String,
    }
}

words! {
    /// How the port of a redirect is found.
    pub enum RedirectPort {
        /// 80 for http, 443 for https.
        #[default]
        FromProtocolDefault,
        /// The port of the request.
        FromRequestPort,
    }

    /// What happens to a preflight request whose origin is not allowed.
    pub enum UnmatchedPreflights {
        /// As `FORWARD`.
        #[default]
        Unspecified,
        /// Sent on to the service.
        Forward,
        /// Answered here with 200 and without CORS headers.
        Ignore,
    }
}

impl FaultDelay {
    /// Share of requests in percent, from either spelling; 0 when neither is set.
    pub fn share(&self) -> f64 {
        share(self.percentage.as_ref(), self.percent)
    }
}

impl FaultAbort {
    /// Share of requests in percent, from either spelling; 0 when neither is set.
    pub fn share(&self) -> f64 {
        share(self.percentage.as_ref(), self.percent)
    }
}

impl HttpRoute {
    /// Share of requests that `mirror` copies, in percent, from either spelling; 100 when neither is set.
    pub fn mirror_share(&self) -> f64 {
        match (&self.mirror_percentage, self.mirror_percent) {
            (None, None) => 100.0,
            (percentage, percent) => share(percentage.as_ref(), percent),
        }
    }
}

fn share(percentage: Option<&Percent>, percent: Option<u32>) -> f64 {
    percentage.map_or_else(|| f64::from(percent.unwrap_or(0)), |p| p.value)
}
