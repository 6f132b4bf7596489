//! The compiled HTTP connection manager and its filters.

use crate::AccessLog;
use std::sync::Arc;
use std::time::Duration;
use weft_authz::Rbac;
use weft_core::Strng;
use weft_route::{CorsPolicy, Fault, RouteTable};

pub use weft_route::{EscapedSlashes, PathNormalization};

/// A compiled HTTP connection manager.
#[derive(Debug)]
pub struct HttpConnectionManager {
    /// Prefix of its counters.
    pub stat_prefix: Strng,
    /// Which protocol the client speaks.
    pub codec: Codec,
    /// Where routes come from.
    pub routes: RouteSource,
    /// HTTP filters in order; the router is last and not listed.
    pub filters: Vec<HttpFilter>,
    /// Path normalisation.
    pub normalize: PathNormalization,
    /// Trust `x-forwarded-for` as sent (`false`), or append the client's address (`true`).
    pub use_remote_address: bool,
    /// Trusted proxies in front, for `x-forwarded-for`.
    pub xff_trusted_hops: u32,
    /// Clients that stand inside, by `internal_address_config`; none unless named.
    pub internal_addresses: Vec<ipnet::IpNet>,
    /// Do not append to `x-forwarded-for`.
    pub skip_xff_append: bool,
    /// What to do with `x-forwarded-client-cert`.
    pub xff_cert: ForwardClientCert,
    /// Which details to write into it.
    pub xff_cert_details: ClientCertDetails,
    /// Make an `x-request-id` where there is none.
    pub generate_request_id: bool,
    /// Keep the client's `x-request-id` even at the edge.
    pub preserve_external_request_id: bool,
    /// `server` header: `None` leaves the upstream's.
    pub server_name: Option<Strng>,
    /// How the `server` header is treated.
    pub server_header: ServerHeader,
    /// Upgrades that are allowed, lower case (`websocket`, `connect`).
    pub upgrades: Vec<Strng>,
    /// Accept HTTP/1.0.
    pub accept_http_10: bool,
    /// Strip ports from the host: none, any.
    pub strip_port: bool,
    /// Strip a trailing dot from the host.
    pub strip_trailing_dot: bool,
    /// Bounds.
    pub limits: HttpLimits,
    /// Access logs.
    pub access_logs: Arc<[AccessLog]>,
    /// Tracing; `None` = off.
    pub tracing: Option<Arc<Tracing>>,
    /// Text of the `via` header; `None` adds none.
    pub via: Option<Strng>,
    /// Add `x-forwarded-port` to requests.
    pub append_x_forwarded_port: bool,
    /// Leave out the `x-envoy-*` headers that the router would add.
    pub suppress_envoy_headers: bool,
}

/// Protocol of the client's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Codec {
    /// By ALPN or first bytes.
    #[default]
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Where routes come from.
#[derive(Debug, Clone)]
pub enum RouteSource {
    /// Inline.
    Inline(Arc<RouteTable>),
    /// By name from `ProxySnapshot::routes`.
    Rds(Strng),
}

/// What to do with `x-forwarded-client-cert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForwardClientCert {
    /// Remove it.
    #[default]
    Sanitize,
    /// Pass it on when the client's side is mutual TLS.
    ForwardOnly,
    /// Append this hop when the client's side is mutual TLS.
    AppendForward,
    /// Replace it by this hop when the client's side is mutual TLS.
    SanitizeSet,
    /// Pass it on always.
    AlwaysForwardOnly,
}

/// Details in `x-forwarded-client-cert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientCertDetails {
    /// `Subject`
    pub subject: bool,
    /// `Cert`
    pub cert: bool,
    /// `Chain`
    pub chain: bool,
    /// `DNS`
    pub dns: bool,
    /// `URI`
    pub uri: bool,
}

/// The `server` response header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServerHeader {
    /// Ours always.
    #[default]
    Overwrite,
    /// Ours when the upstream sent none.
    AppendIfAbsent,
    /// The upstream's.
    PassThrough,
}

/// Bounds on the client's side.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Bytes of request headers; 60 KiB unless set.
    pub max_header_bytes: usize,
    /// Number of request headers; 100 unless set.
    pub max_headers: usize,
    /// Idle time of a connection; 1 h unless set.
    pub idle_timeout: Option<Duration>,
    /// Longest life of a connection.
    pub max_connection_duration: Option<Duration>,
    /// Requests on a connection.
    pub max_requests_per_connection: Option<u32>,
    /// Idle time of a stream; 5 min unless set, `None` = off.
    pub stream_idle_timeout: Option<Duration>,
    /// Time for the whole request to arrive.
    pub request_timeout: Option<Duration>,
    /// Time for the request's headers to arrive.
    pub request_headers_timeout: Option<Duration>,
    /// Concurrent HTTP/2 streams; 100 unless set.
    pub http2_max_streams: u32,
    /// HTTP/2 stream window.
    pub http2_stream_window: u32,
    /// HTTP/2 connection window.
    pub http2_connection_window: u32,
}

/// An HTTP filter.
#[derive(Debug, Clone)]
pub enum HttpFilter {
    /// CORS; policies come from routes.
    Cors,
    /// Fault injection; `None` = only by route.
    Fault(Option<Arc<Fault>>),
    /// Authorization.
    Rbac(Arc<Rbac>),
    /// An external authorizer.
    ExtAuthz(Arc<crate::ExtAuthz>),
    /// Rate limits by buckets of this proxy.
    LocalRateLimit(Arc<weft_route::LocalRateLimit>),
    /// Rate limits that a service counts.
    RateLimit(Arc<crate::RateLimitService>),
    /// Tokens.
    Jwt(Arc<crate::JwtAuthn>),
    /// The mesh's standard metrics.
    Telemetry(Arc<Telemetry>),
    /// Rejects what does not look like gRPC-Web …; passes gRPC-Web through a bridge.
    GrpcWeb,
    /// Compresses responses.
    Compressor(Arc<crate::Compressor>),
    /// Takes compressed bodies apart.
    Decompressor(Arc<crate::Decompressor>),
    /// Counts gRPC calls.
    GrpcStats,
    /// Edits headers.
    HeaderMutation(Arc<weft_route::HeaderOps>),
    /// Answers by CORS policy of the filter itself.
    CorsPolicy(Arc<CorsPolicy>),
    /// A filter of another crate: its name and message.
    Other(Strng, prost_types::Any),
}

/// Settings of the mesh's standard metrics.
#[derive(Debug, Clone, Default)]
pub struct Telemetry {
    /// This proxy is the server's side.
    pub destination: bool,
    /// Off.
    pub disabled: bool,
    /// The host asked for stands for the service where none is known.
    pub host_is_label: bool,
    /// How often open connections are reported (TCP); `None` = 5 s.
    pub report_interval: Option<Duration>,
    /// Changes to metrics and tags.
    pub overrides: Vec<MetricOverride>,
}

/// A change to a metric.
#[derive(Debug, Clone, Default)]
pub struct MetricOverride {
    /// Name without prefix; empty = all.
    pub metric: String,
    /// Switched off.
    pub disabled: bool,
    /// Tag → expression; empty = remove.
    pub tags: Vec<(Strng, Strng)>,
}

/// Tracing.
#[derive(Debug, Clone)]
pub struct Tracing {
    /// Share of requests without a decision of their own, in parts per million.
    pub random_sampling: u32,
    /// Share of requests forced by `x-client-trace-id`.
    pub client_sampling: u32,
    /// Upper bound.
    pub overall_sampling: u32,
    /// The decision travels in `x-request-id`, and one found there holds.
    pub by_request_id: bool,
    /// Where spans go; `None`: nothing is traced, and no header of a trace is touched.
    pub provider: Option<Arc<TraceProvider>>,
    /// Longest path in a tag.
    pub max_path_length: usize,
    /// Further tags.
    pub tags: Vec<TraceTag>,
    /// A span of its own for the upstream's side.
    pub spawn_upstream_span: bool,
    /// Tell the upstream of the trace.
    pub propagate: bool,
}

/// A tag of every span.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceTag {
    /// Its name.
    pub name: Strng,
    /// Where its value comes from.
    pub source: TagSource,
    /// The value when there is none there; `None`: then there is no tag.
    pub default: Option<Strng>,
}

/// Where a tag's value comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum TagSource {
    /// A format of access logs.
    Format(Strng),
    /// What a filter said of the request: its name, and keys, outermost first.
    Metadata(Strng, Vec<Strng>),
}

/// Where spans go.
#[derive(Debug, Clone)]
pub struct TraceProvider {
    /// In which form.
    pub protocol: TraceProtocol,
    /// Cluster of the collector.
    pub cluster: Strng,
    /// Path of reports.
    pub path: Strng,
    /// Host that reports name.
    pub host: Strng,
    /// Headers of reports.
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
    /// Time for one report.
    pub timeout: Duration,
    /// Name of the service in spans; empty: the node's cluster.
    pub service: Strng,
}

/// Form of spans, and of the headers by which proxies tell each other of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceProtocol {
    /// Zipkin v2 JSON, B3 headers.
    Zipkin {
        /// A server's span has the id of its client's.
        shared: bool,
        /// New traces have ids of 128 bits, else of 64.
        long_ids: bool,
        /// W3C headers as well as B3.
        w3c: bool,
    },
    /// OpenTelemetry over gRPC, W3C headers.
    OtlpGrpc,
    /// OpenTelemetry over HTTP, W3C headers.
    OtlpHttp,
}
