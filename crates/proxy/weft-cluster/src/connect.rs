//! One connection to one endpoint: TCP (or Unix), then TLS when its transport says so, within the cluster's time.

use crate::cluster::LiveCluster;
use crate::error::UpstreamError;
use crate::hosts::Host;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{IpBindAddressNoPort, Mark};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use weft_codec::io::IoMeter;
use weft_codec::{Io, Reason, Stream, proxy_protocol};
use weft_core::Strng;
use weft_proxy_config::{AutoSni, ClientTls, EndpointAddress, UpstreamTransport};
use weft_tls::TlsFacts;

/// The ALPN prefix by which meshes of Istio's kind tell proxies from applications.
const MESH_ALPN: &str = "istio";

/// What is offered by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// What the cluster's TLS context says.
    Configured,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// What is known of a connection to an endpoint.
#[derive(Debug)]
pub struct ConnectionFacts {
    /// Our end.
    pub local: Option<SocketAddr>,
    /// Their end.
    pub remote: Option<SocketAddr>,
    /// TLS, when there is any.
    pub tls: Option<TlsFacts>,
    /// URI name of the certificate that this proxy has for the connection.
    pub local_uri: Option<Strng>,
    /// Bytes that passed.
    pub meter: Arc<IoMeter>,
}

impl ConnectionFacts {
    /// The protocol that ALPN agreed on is HTTP/2.
    pub fn is_h2(&self) -> bool {
        let alpn = self.tls.as_ref().and_then(|tls| tls.alpn.as_deref());
        matches!(alpn, Some(b"h2" | b"istio-h2"))
    }

    /// The first URI name of the server's certificate.
    pub fn peer_uri(&self) -> Option<&str> {
        self.tls.as_ref()?.peer.as_ref()?.uris.first().map(|uri| &**uri)
    }
}

/// An address of someone else, from which an endpoint is called (`IP_TRANSPARENT`). Needs `CAP_NET_ADMIN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source {
    /// The address; port 0 is any.
    pub address: SocketAddr,
    /// Mark of the packets, by which routes bring the answers back; 0 = that of the process.
    pub mark: u32,
}

/// How a connection is to be made.
pub struct Plan<'a> {
    /// The cluster.
    pub cluster: &'a LiveCluster,
    /// The transport chosen for the endpoint.
    pub transport: &'a UpstreamTransport,
    /// What to offer.
    pub alpn: Alpn,
    /// SNI by the request's host (`auto_sni`), or that of the client's connection.
    pub sni: Option<&'a str>,
    /// What is sent names no host: bytes, and probes. The server's chain is enough where its name would be the request's.
    pub nameless: bool,
    /// Source and destination that the endpoint is told, where the cluster speaks the PROXY protocol.
    pub client: Option<(SocketAddr, SocketAddr)>,
    /// Where it is to come from, when not from this machine's address.
    pub source: Option<Source>,
}

/// Connects, within the cluster's connect timeout.
///
/// # Errors
/// A typed error; nothing of a request was sent.
pub async fn connect(host: &Host, plan: Plan<'_>) -> Result<(Io, Rc<ConnectionFacts>), UpstreamError> {
    let stats = plan.cluster.stats.clone();
    let limit = plan.cluster.config.connect_timeout;
    crate::stats::bump(&host.counts.cx_total);
    stats.cx_total.inc();
    plan.cluster.health.note_traffic();
    let outcome = tokio::time::timeout(limit, connect_untimed(host, plan)).await;
    let error = match outcome {
        Ok(Ok(made)) => return Ok(made),
        Ok(Err(error)) => error,
        Err(_elapsed) => {
            stats.cx_connect_timeout.inc();
            UpstreamError::unsent(Reason::ConnectTimeout)
        }
    };
    stats.cx_connect_fail.inc();
    crate::stats::bump(&host.counts.cx_connect_fail);
    tracing::debug!(cluster = %host.name, %error, "connect failed");
    Err(error)
}

pub(crate) async fn connect_untimed(host: &Host, plan: Plan<'_>) -> Result<(Io, Rc<ConnectionFacts>), UpstreamError> {
    let refused = |error: &io::Error| {
        UpstreamError::unsent(Reason::ConnectionFailure).with_detail(format!("delayed connect error: {}", text(error)))
    };
    let mut tcp = match &host.address {
        EndpointAddress::Ip(address) => tcp(*address, &plan).await.map_err(|e| refused(&e))?,
        EndpointAddress::Unix(path) => {
            let stream = UnixStream::connect(&**path).await.map_err(|e| refused(&e))?;
            return Ok(facts(Stream::Unix(stream), None, None, None, None));
        }
        EndpointAddress::Name(name, _) => {
            return Err(UpstreamError::unsent(Reason::NoHealthyUpstream)
                .with_detail(format!("the name {name} is not resolved")));
        }
    };
    if let Some(version) = plan.cluster.config.proxy_protocol {
        introduce(&mut tcp, version, plan.client).await.map_err(|e| refused(&e))?;
    }
    let (local, remote) = (tcp.local_addr().ok(), tcp.peer_addr().ok());
    let UpstreamTransport::Tls(tls) = plan.transport else {
        return Ok(facts(Stream::Tcp(tcp), local, remote, None, None));
    };
    let context = context(tls, plan.alpn)?;
    let own = context.certificate().and_then(|key| key.facts().uris.first().cloned());
    let endpoint = host.hostname.as_deref().filter(|_| tls.spec.auto_sni == AutoSni::Endpoint);
    let connected = match plan.sni.or(endpoint) {
        Some(sni) => context.connect_to(tcp, sni).await,
        None if plan.nameless => context.connect_unnamed(tcp).await,
        None => context.connect(tcp).await,
    };
    match connected {
        Ok(connected) => {
            plan.cluster.stats.ssl_handshake.inc();
            Ok(facts(Stream::ClientTls(Box::new(connected.stream)), local, remote, Some(connected.facts), own))
        }
        Err(error) => {
            plan.cluster.stats.ssl_connection_error.inc();
            Err(UpstreamError::unsent(Reason::ConnectionFailure).with_detail(format!("TLS_error:|{error}")))
        }
    }
}

/// Tells the endpoint who the client is, before anything else.
async fn introduce(tcp: &mut TcpStream, version: u8, client: Option<(SocketAddr, SocketAddr)>) -> io::Result<()> {
    let header = match (client, version) {
        (None, version) => proxy_protocol::write_own(version),
        (Some((source, destination)), 1) => proxy_protocol::write_v1(source, destination),
        (Some((source, destination)), _) => proxy_protocol::write_v2(source, destination),
    };
    tcp.write_all(&header).await
}

fn facts(
    stream: Stream,
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
    tls: Option<TlsFacts>,
    local_uri: Option<Strng>,
) -> (Io, Rc<ConnectionFacts>) {
    let io = Io::new(stream);
    let facts = ConnectionFacts { local, remote, tls, local_uri, meter: io.meter() };
    (io, Rc::new(facts))
}

async fn tcp(address: SocketAddr, plan: &Plan<'_>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Redirection must know our own connections, or they come back to us.
    weft_runtime::net::mark(&socket)?;
    socket.set_nodelay(true)?;
    let cluster = &plan.cluster.config;
    if let Some((probes, time, interval)) = cluster.limits.keepalive {
        let seconds = |n: u32| Duration::from_secs(u64::from(n.max(1)));
        let mut keepalive = socket2::TcpKeepalive::new();
        if time > 0 {
            keepalive = keepalive.with_time(seconds(time));
        }
        if interval > 0 {
            keepalive = keepalive.with_interval(seconds(interval));
        }
        if probes > 0 {
            keepalive = keepalive.with_retries(probes);
        }
        socket2::SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
    }
    if let Some(source) = plan.source.filter(|source| source.address.is_ipv4() == address.is_ipv4()) {
        from(&socket, source)?;
    } else if let Some(source) = source_for(cluster.source_address, &cluster.more_source_addresses, address.ip()) {
        // Without this each connection would hold a local port of its own, whatever its destination.
        setsockopt(&socket, IpBindAddressNoPort, &true).map_err(io::Error::from)?;
        socket.bind(SocketAddr::new(source, 0))?;
    }
    socket.connect(address).await
}

/// Binds a socket to an address that is not this machine's.
fn from(socket: &TcpSocket, source: Source) -> io::Result<()> {
    let options = socket2::SockRef::from(socket);
    match source.address {
        SocketAddr::V4(_) => options.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => options.set_ip_transparent_v6(true)?,
    }
    if source.mark != 0 {
        setsockopt(socket, Mark, &source.mark).map_err(io::Error::from)?;
    }
    if source.address.port() == 0 {
        setsockopt(socket, IpBindAddressNoPort, &true).map_err(io::Error::from)?;
    } else {
        options.set_reuse_address(true)?;
    }
    socket.bind(source.address)
}

/// The source address of the destination's family, when one is configured.
fn source_for(configured: Option<IpAddr>, more: &[IpAddr], destination: IpAddr) -> Option<IpAddr> {
    let mut all = configured.into_iter().chain(more.iter().copied());
    all.find(|source| source.is_ipv4() == destination.is_ipv4())
}

/// `Connection refused`, without Rust's `(os error 111)`.
fn text(error: &io::Error) -> String {
    let full = error.to_string();
    match full.find(" (os error") {
        Some(end) => full[..end].to_string(),
        None => full,
    }
}

/// The TLS context, with ALPN for the protocol that will be spoken.
fn context(tls: &Arc<ClientTls>, alpn: Alpn) -> Result<weft_tls::ClientContext, UpstreamError> {
    let context = tls
        .context()
        .map_err(|why| UpstreamError::unsent(Reason::ConnectionFailure).with_detail(format!("TLS_error:|{why}")))?;
    let names: &[&str] = match alpn_override(&tls.spec.alpn, alpn) {
        None => return Ok((*context).clone()),
        Some(names) => names,
    };
    Ok(context.with_alpn(names.iter().map(|n| n.as_bytes().to_vec()).collect()))
}

/// Between proxies of a mesh, ALPN carries the protocol of the request inside (Istio's `istio-http/1.1` and `istio-h2`), so
/// that the far side needs no sniffing. A context without ALPN offers what will be spoken.
fn alpn_override(configured: &[weft_core::Strng], alpn: Alpn) -> Option<&'static [&'static str]> {
    let mesh = configured.iter().any(|name| &**name == MESH_ALPN);
    match (alpn, mesh, configured.is_empty()) {
        (Alpn::Http1, true, _) => Some(&["istio-http/1.1", "istio", "http/1.1"]),
        (Alpn::Http2, true, _) => Some(&["istio-h2", "istio", "h2"]),
        (Alpn::Http1, false, true) => Some(&["http/1.1"]),
        (Alpn::Http2, false, true) => Some(&["h2"]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpn_names_the_protocol_inside() {
        let mesh = ["istio-peer-exchange".into(), "istio".into()];
        assert_eq!(alpn_override(&mesh, Alpn::Http1), Some(&["istio-http/1.1", "istio", "http/1.1"][..]));
        assert_eq!(alpn_override(&mesh, Alpn::Configured), None);
        assert_eq!(alpn_override(&["h2".into()], Alpn::Http2), None);
        assert_eq!(alpn_override(&[], Alpn::Http2), Some(&["h2"][..]));
    }

    #[test]
    fn source_of_the_same_family_only() {
        let six = Some(IpAddr::from([127, 0, 0, 6]));
        let more = ["::6".parse().unwrap()];
        assert_eq!(source_for(six, &[], IpAddr::from([10, 0, 0, 1])), six);
        assert_eq!(source_for(six, &[], "::1".parse().unwrap()), None);
        assert_eq!(source_for(six, &more, "::1".parse().unwrap()), Some(more[0]));
    }
}
