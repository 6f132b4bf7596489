//! Compiled listeners and filter chains.

use crate::{HttpConnectionManager, ServerTls};
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use weft_authz::Rbac;
use weft_core::Strng;

/// A compiled listener.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Name.
    pub name: Strng,
    /// Where it listens.
    pub addresses: Vec<ListenAddress>,
    /// False: it only receives connections that another listener hands over by original destination.
    pub bind: bool,
    /// Hands a connection to the listener of its original destination, when there is one.
    pub use_original_dst: bool,
    /// Accepts connections to addresses that are not its own (`IP_TRANSPARENT`).
    pub transparent: bool,
    /// Exact balance between workers, by re-use of the port.
    pub reuse_port: bool,
    /// What to look at before a filter chain is chosen.
    pub inspect: Inspect,
    /// Filter chains.
    pub chains: Vec<Arc<FilterChain>>,
    /// Finds a chain without looking at all of them.
    pub index: crate::matching::ChainIndex,
    /// When none matches.
    pub default_chain: Option<Arc<FilterChain>>,
    /// Side of the workload.
    pub direction: TrafficDirection,
    /// Access logs for connections that match no filter chain.
    pub access_logs: Arc<[AccessLog]>,
    /// Hash of the message: equal hash, equal listener — its sockets and connections are left alone.
    pub fingerprint: u64,
    /// Limit of open connections.
    pub max_connections: Option<u32>,
    /// Its connections do not count for the limit of the process.
    pub exempt: bool,
}

/// Where a listener listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListenAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// Unix domain socket.
    Unix(Strng),
}

/// Side of the workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrafficDirection {
    /// Not said.
    #[default]
    Unspecified,
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
}

/// Listener filters, as switches.
#[derive(Debug, Clone, Default)]
pub struct Inspect {
    /// `original_dst`: the destination before redirection is the connection's local address.
    pub original_dst: bool,
    /// `tls_inspector`: look for a ClientHello.
    pub tls: bool,
    /// `http_inspector`: look for HTTP.
    pub http: bool,
    /// `proxy_protocol`: a PROXY header comes first; `true` inside = it may be absent.
    pub proxy_protocol: Option<bool>,
    /// `original_src`: endpoints are called from the client's own address.
    pub original_src: Option<OriginalSource>,
    /// Destination ports on which an inspector is switched off (`filter_disabled`): (port, tls off, http off).
    pub disabled_ports: Vec<(u16, bool, bool)>,
    /// The same for ports that are not listed: (tls off, http off).
    pub off_elsewhere: (bool, bool),
    /// How long to wait for first bytes.
    pub timeout: Option<Duration>,
    /// After the time: go on (`true`) or close.
    pub continue_on_timeout: bool,
}

/// How endpoints are called from a client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginalSource {
    /// Mark of the packets, by which routes bring the answers back; 0 = none.
    pub mark: u32,
    /// From the client's port too.
    pub port: bool,
}

impl Inspect {
    /// What is looked for on a destination port: (ClientHello, HTTP).
    pub fn at(&self, port: u16) -> (bool, bool) {
        let listed = self.disabled_ports.iter().find(|(listed, ..)| *listed == port);
        let (tls_off, http_off) = listed.map_or(self.off_elsewhere, |(_, tls, http)| (*tls, *http));
        (self.tls && !tls_off, self.http && !http_off)
    }
}

/// A compiled filter chain.
#[derive(Debug, Clone)]
pub struct FilterChain {
    /// Name; shown in logs.
    pub name: Strng,
    /// When it applies.
    pub matcher: ChainMatch,
    /// TLS of the client's side; `None` = plain.
    pub tls: Option<Arc<ServerTls>>,
    /// Time for the handshake.
    pub handshake_timeout: Option<Duration>,
    /// Network filters before the last.
    pub filters: Vec<NetworkFilter>,
    /// The last network filter.
    pub terminal: Terminal,
    /// The object it was generated from.
    pub origin: Option<Arc<weft_core::Provenance>>,
    /// Hash of the message: equal hash, equal chain — it is shared between versions of its listener.
    pub fingerprint: u64,
}

/// Conditions of a filter chain; empty lists hold always. Precedence is Envoy's: port, then address, server name,
/// transport protocol, application protocol, direct source, source type, source address, source port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChainMatch {
    /// Destination port.
    pub destination_port: Option<u16>,
    /// Destination ranges.
    pub destination: Vec<IpNet>,
    /// SNI, exact or `*.suffix`.
    pub server_names: Vec<Strng>,
    /// `tls` or `raw_buffer`; `None` = any.
    pub transport: Option<Transport>,
    /// ALPN, or what was sniffed (`http/1.1`, `h2c`).
    pub application_protocols: Vec<Strng>,
    /// Client's ranges.
    pub source: Vec<IpNet>,
    /// Client's ports.
    pub source_ports: Vec<u16>,
    /// Client on this machine (`Some(true)`) or elsewhere (`Some(false)`).
    pub source_local: Option<bool>,
    /// Ranges of the connection's peer, before the PROXY protocol.
    pub direct_source: Vec<IpNet>,
}

/// Transport as detected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Plain.
    RawBuffer,
    /// TLS.
    Tls,
}

/// What is known of a connection when its filter chain is chosen.
#[derive(Debug, Clone)]
pub struct ConnectionFacts<'a> {
    /// Original destination.
    pub destination: SocketAddr,
    /// Client.
    pub source: SocketAddr,
    /// SNI, lower case.
    pub server_name: Option<&'a str>,
    /// Transport.
    pub transport: Transport,
    /// ALPN offered, or `http/1.1` / `h2c` when sniffed.
    pub application_protocols: &'a [Strng],
    /// Client's address without PROXY protocol.
    pub direct_source: IpAddr,
}

/// A network filter before the last one.
#[derive(Debug, Clone)]
pub enum NetworkFilter {
    /// Authorization of the connection.
    Rbac(Arc<Rbac>),
    /// An external authorizer.
    ExtAuthz(Arc<crate::ExtAuthz>),
    /// Bounds new connections in time.
    ConnectionRate(Arc<crate::ConnectionRate>),
    /// Bounds open connections of the chain.
    ConnectionLimit(u64),
    /// Metrics of connections.
    Telemetry(Arc<crate::Telemetry>),
    /// The endpoint is what the SNI resolves to, on this port (`sni_dynamic_forward_proxy`).
    SniForward(u16),
    /// Names the cluster by SNI (`sni_cluster`).
    SniCluster,
    /// TLS to the endpoint asks for the name that the client asked for (`forward_downstream_sni`).
    ForwardSni,
    /// Inside the TLS that ended here the client must ask for the same name once more (`sni_verifier`).
    VerifySni,
}

/// The last network filter.
#[derive(Debug, Clone)]
pub enum Terminal {
    /// HTTP.
    Http(Arc<HttpConnectionManager>),
    /// TCP.
    Tcp(Arc<TcpProxy>),
}

/// The TCP proxy filter.
#[derive(Debug)]
pub struct TcpProxy {
    /// Prefix of its counters.
    pub stat_prefix: Strng,
    /// Where to.
    pub cluster: TcpCluster,
    /// Closes a connection idle for so long; `None` = never. Envoy's default is one hour.
    pub idle_timeout: Option<Duration>,
    /// Longest life of a connection.
    pub max_duration: Option<Duration>,
    /// Tries to connect.
    pub max_connect_attempts: u32,
    /// Access logs.
    pub access_logs: Arc<[AccessLog]>,
    /// Through an HTTP proxy.
    pub tunnel: Option<Tunnel>,
    /// Hash by source address for consistent balancing.
    pub hash_source_ip: bool,
}

/// TCP through an HTTP proxy (`tunneling_config`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// `HOST:PORT` that the proxy is asked for.
    pub target: Strng,
    /// By `POST` instead of `CONNECT`.
    pub post: bool,
    /// Headers of the request for the tunnel.
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
}

/// Where a TCP proxy forwards to.
#[derive(Debug)]
pub enum TcpCluster {
    /// One cluster.
    One(Strng),
    /// By weight: (cluster, weight), and the sum.
    Weighted(Vec<(Strng, u32)>, u32),
}

/// An access log.
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// Where to.
    pub sink: LogSink,
    /// Text of the format; the default of Envoy when `None`. JSON formats are objects of formats.
    pub format: LogFormat,
    /// Only log what this holds for.
    pub filter: Option<Arc<LogFilter>>,
    /// Missing values are left out (JSON) or empty (text) instead of `-`.
    pub omit_empty: bool,
}

/// Where access logs go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogSink {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to.
    File(Strng),
}

/// How a line looks.
#[derive(Debug, Clone)]
pub enum LogFormat {
    /// Envoy's default text.
    Default,
    /// Text with `%COMMAND%`s.
    Text(Strng),
    /// A JSON object whose string leaves are formats.
    Json(Arc<serde_json::Value>),
}

/// Which requests are logged.
#[derive(Debug)]
pub enum LogFilter {
    /// Status compared with the value: `Equal` is `==`, `Greater` is `>=`, `Less` is `<=`; the boolean turns it round
    /// (`Equal, true` is `!=`).
    Status(std::cmp::Ordering, bool, u16),
    /// Duration at least so long.
    Slower(Duration),
    /// One of these response flags; any flag when empty.
    Flags(Vec<Strng>),
    /// Not a health check.
    NotHealthCheck,
    /// Share in parts per million.
    Sample(u32),
    /// All.
    And(Vec<LogFilter>),
    /// Any.
    Or(Vec<LogFilter>),
    /// A header.
    Header(weft_route::HeaderMatcher),
}
