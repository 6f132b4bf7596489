//! From accept to the last filter: original destination, first bytes, filter chain, TLS, network filters.

use crate::chain::{ChainRuntime, ChainSlot};
use crate::demand::{self, Unanswered};
use crate::downstream::Downstream;
use crate::inspect::{self, Found, InspectError};
use crate::listener::LiveListener;
use crate::record::ConnectionRecord;
use crate::standing::{End, Met, Seat, Standing};
use crate::worker::{ConnectionEntry, Worker};
use crate::{http, sockets, tcp};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use weft_cluster::Source;
use weft_codec::{Flags, Io, Reason, Stream};
use weft_core::Strng;
use weft_proxy_config::{ListenAddress, NetworkFilter, ServerTls, Terminal};
use weft_route::DynamicMetadata;

/// Time for a handshake unless the chain says otherwise; Envoy's default.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// A connection as accepted.
pub(crate) enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// Serves one connection from accept to close.
pub(crate) async fn serve(worker: Rc<Worker>, address: ListenAddress, accepted: Accepted) {
    let Some(listener) = worker.snapshot().listeners.at(&address).cloned() else { return };
    // Before anything is read or kept for it.
    let Some(_open) = worker.process_place(&listener.config) else {
        listener.stats.cx_global_overflow.inc();
        return;
    };
    let (mut stream, mut downstream) = match accepted {
        Accepted::Tcp(stream, peer) => {
            // Small answers must not wait for the acknowledgement of the last.
            let _ = stream.set_nodelay(true);
            let Ok(local) = stream.local_addr() else { return };
            let downstream = first_facts(&worker, &listener, peer, local, &stream);
            (Stream::Tcp(stream), downstream)
        }
        Accepted::Unix(stream) => {
            let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            (Stream::Unix(stream), new_downstream(&worker, &listener, nowhere, nowhere, nowhere))
        }
    };
    let _asked = match demand::of_connection(&worker, &listener, downstream.destination, downstream.local).await {
        Ok(asked) => asked,
        Err(why) => return unanswered(&worker, &listener, &downstream, why),
    };
    let way = Way { address, destination: downstream.destination, local: downstream.local };
    let Some(listener) = way.listener(&worker) else { return };
    let counted = Counted::start(&listener);
    let Some(_place) = listener.place(&worker) else {
        listener.stats.cx_overflow.inc();
        return;
    };
    let Some(chosen) = choose(&worker, way, listener, &mut stream, &mut downstream).await else { return };
    let (listener, slot, met) = chosen;
    downstream.direction = listener.config.direction;
    downstream.from = listener.config.inspect.original_src.map(|how| {
        let port = if how.port { downstream.source.port() } else { 0 };
        Source { address: SocketAddr::new(downstream.source.ip(), port), mark: how.mark }
    });
    let chain = slot.current();
    downstream.chain = chain.chain.name.clone();
    let mut io = Io::new(stream);
    if let Some(tls) = chain.chain.tls.clone() {
        let limit = chain.chain.handshake_timeout.filter(|t| !t.is_zero()).unwrap_or(HANDSHAKE_TIMEOUT);
        match tokio::time::timeout(limit, handshake(&tls, io, &mut downstream)).await {
            Ok(Ok(secured)) => {
                listener.stats.ssl_handshake.inc();
                io = secured;
            }
            failed => {
                listener.stats.ssl_connection_error.inc();
                let why = match failed {
                    Ok(Err(why)) => why,
                    _ => String::from("TLS handshake took too long"),
                };
                handshake_failed(&worker, &chain, downstream, &why);
                return;
            }
        }
    }
    downstream.meter = io.meter();
    let seat = Seat::new(slot, met, listener.clone());
    serve_chain(worker, listener, seat, io, downstream).await;
    drop(counted);
}

pub(crate) fn new_downstream(
    worker: &Worker,
    listener: &LiveListener,
    peer: SocketAddr,
    local: SocketAddr,
    destination: SocketAddr,
) -> Downstream {
    Downstream {
        id: worker.next_connection_id(),
        peer,
        source: peer,
        destination,
        local,
        server_name: None,
        tls: None,
        certificate: None,
        local_uri: None,
        from: None,
        own: weft_cluster::OwnPools::default(),
        direction: listener.config.direction,
        chain: Strng::from(""),
        meter: Arc::default(),
    }
}

fn first_facts(
    worker: &Worker,
    listener: &LiveListener,
    peer: SocketAddr,
    local: SocketAddr,
    stream: &TcpStream,
) -> Downstream {
    let (peer, local) = (unmapped(peer), local);
    let wants = listener.config.use_original_dst || listener.config.inspect.original_dst;
    let redirected = if wants { sockets::original_destination(stream, local) } else { None };
    let local = unmapped(local);
    new_downstream(worker, listener, peer, local, redirected.unwrap_or(local))
}

/// `::ffff:10.0.0.1` is an IPv4 client on a dual-stack socket.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// What listener there is for the connection is not known: it is closed.
fn unanswered(worker: &Rc<Worker>, listener: &LiveListener, downstream: &Downstream, why: Unanswered) {
    tracing::debug!(peer = %downstream.peer, destination = %downstream.destination, details = why.details(), "closed");
    let logs = listener.logs(worker);
    let mut record = ConnectionRecord::new(worker, logs);
    record.fail(why.reason().flag(), why.details());
    record.emit(downstream, logs);
}

/// How a connection came: the socket that accepted it, where it wanted to go, where it arrived.
#[derive(Debug)]
pub(crate) struct Way {
    address: ListenAddress,
    destination: SocketAddr,
    local: SocketAddr,
}

impl Way {
    /// Straight to an address.
    #[cfg(test)]
    pub fn to(destination: SocketAddr) -> Self {
        Self { address: ListenAddress::Tcp(destination), destination, local: destination }
    }

    /// The listener that the configuration in force has for it. One that only redirects hands the connection to the listener
    /// of its original destination, when there is one.
    pub fn listener(&self, worker: &Worker) -> Option<Rc<LiveListener>> {
        let snapshot = worker.snapshot();
        let listener = snapshot.listeners.at(&self.address)?;
        if !listener.config.use_original_dst || self.destination == self.local {
            return Some(listener.clone());
        }
        let other = snapshot.listeners.for_destination(self.destination);
        Some(other.filter(|other| !other.config.bind).unwrap_or(listener).clone())
    }
}

/// Looks at the first bytes and finds the filter chain, in the listener as it is when the bytes are there: a client that takes
/// its time must not get rules that are gone meanwhile. `None` means that the connection is to be closed.
async fn choose(
    worker: &Rc<Worker>,
    way: Way,
    mut listener: Rc<LiveListener>,
    stream: &mut Stream,
    downstream: &mut Downstream,
) -> Option<(Rc<LiveListener>, Rc<ChainSlot>, Met)> {
    let found = loop {
        let found = look(worker, &listener, stream, downstream, way.destination.port()).await?;
        let earlier = std::mem::replace(&mut listener, way.listener(worker)?);
        if looks_alike(&earlier, &listener, way.destination.port()) {
            break found;
        }
        let takes_header = |listener: &LiveListener| listener.config.inspect.proxy_protocol.is_some();
        if takes_header(&earlier) || takes_header(&listener) {
            // The header, if there was one, is read already.
            return None;
        }
    };
    if let Some((source, destination)) = found.proxied {
        downstream.source = source;
        downstream.destination = destination;
    }
    downstream.server_name = found.server_name;
    let met = Met {
        way,
        destination: downstream.destination,
        source: downstream.source,
        peer: downstream.peer.ip(),
        server_name: downstream.server_name.clone(),
        transport: found.transport,
        protocols: found.protocols,
    };
    if let Some(slot) = listener.slot(worker, &met.facts()) {
        return Some((listener, slot, met));
    }
    listener.stats.no_filter_chain_match.inc();
    tracing::debug!(listener = %listener.config.name, peer = %downstream.peer, destination = %downstream.destination,
        server_name = downstream.server_name.as_deref(), "no filter chain matches");
    let logs = listener.logs(worker);
    let mut record = ConnectionRecord::new(worker, logs);
    record.fail(Flags::NR, "filter_chain_not_found");
    record.emit(downstream, logs);
    None
}

/// What the listener's inspectors find; `None` when the connection is to be closed.
async fn look(
    worker: &Worker,
    listener: &LiveListener,
    stream: &mut Stream,
    downstream: &Downstream,
    port: u16,
) -> Option<Found> {
    let Stream::Tcp(tcp) = stream else { return Some(Found::default()) };
    let error = match inspect::inspect(tcp, &listener.config.inspect, port).await {
        Ok(found) => return Some(found),
        Err(error) => error,
    };
    if matches!(error, InspectError::HelloTooLong) {
        worker.shard.counter("envoy_tls_inspector_client_hello_too_large", &[]).inc();
    }
    if !matches!(error, InspectError::Io(_)) {
        tracing::debug!(listener = %listener.config.name, peer = %downstream.peer, %error, "closed");
    }
    None
}

/// Two states of a listener look for the same in first bytes.
fn looks_alike(one: &LiveListener, other: &LiveListener, port: u16) -> bool {
    let (one, other) = (&one.config.inspect, &other.config.inspect);
    one.at(port) == other.at(port) && one.proxy_protocol == other.proxy_protocol
}

async fn handshake(tls: &ServerTls, io: Io, downstream: &mut Downstream) -> Result<Io, String> {
    let context = tls.context().map_err(|why| why.to_string())?;
    let Stream::Tcp(tcp) = io.into_stream() else {
        return Err(String::from("TLS is not supported on a Unix socket"));
    };
    let accepted = context.accept(tcp).await.map_err(|error| error.to_string())?;
    let shown = context.certificates().first().and_then(|key| key.facts().uris.first().cloned());
    downstream.secured(accepted.facts, shown);
    Ok(Io::new(Stream::ServerTls(Box::new(accepted.stream))))
}

fn handshake_failed(worker: &Rc<Worker>, chain: &ChainRuntime, downstream: Downstream, why: &str) {
    tracing::debug!(peer = %downstream.peer, chain = %chain.chain.name, why, "TLS handshake failed");
    let logs = match (&chain.http, &chain.tcp) {
        (_, Some(tcp)) => &tcp.logs,
        // Envoy's HTTP connection manager logs requests, and there was none.
        _ => return,
    };
    let mut record = ConnectionRecord::new(worker, logs);
    record.transport_failure = Some(why.to_string());
    record.fail(Reason::TlsHandshake.flag(), Reason::TlsHandshake.details());
    record.emit(&downstream, logs);
}

/// Network filters, then the last one.
async fn serve_chain(worker: Rc<Worker>, listener: Rc<LiveListener>, seat: Rc<Seat>, io: Io, downstream: Downstream) {
    let (chain, place) = loop {
        let chain = seat.slot.current();
        let place = match &chain.limit {
            Some((most, count)) => match count.take(*most) {
                Some(place) => Some(place),
                None => return,
            },
            None => None,
        };
        let mut admitted = admitted(&worker, &chain, &listener, &downstream).await;
        seat.follow(&worker);
        if seat.ends_at().is_some() {
            // It has no successor whose rules could be asked, or is for other connections by now.
            admitted = Err("filter_chain_removed".into());
        }
        if let Err(details) = admitted {
            return denied_at_once(&worker, &chain, &downstream, &details);
        }
        // While an authorizer was asked the rules may have changed.
        if seat.slot.is_current(&chain) {
            break (chain, place);
        }
    };
    let standing = Standing::new(&seat, Some(chain.clone()));
    let entry = ConnectionEntry::register(&worker, standing, downstream.direction);
    match &chain.chain.terminal {
        Terminal::Http(_) => http::serve_connection(worker, listener, seat.slot.clone(), entry, io, downstream).await,
        Terminal::Tcp(_) => tcp::serve(worker, listener, entry, io, downstream).await,
    }
    drop(place);
}

fn denied_at_once(worker: &Rc<Worker>, chain: &ChainRuntime, downstream: &Downstream, details: &str) {
    tracing::debug!(peer = %downstream.peer, details, "connection denied");
    // Envoy's HTTP connection manager logs requests, and there was none.
    let Some(tcp) = &chain.tcp else { return };
    let flags = if details.starts_with("ext_authz") { Flags::UAEX } else { Flags::NONE };
    let mut record = ConnectionRecord::new(worker, &tcp.logs);
    record.close(flags, details);
    record.emit(downstream, &tcp.logs);
}

/// Asks the chain's authorization filters, external ones too.
///
/// # Errors
/// The details word when one says no.
async fn admitted(
    worker: &Rc<Worker>,
    chain: &ChainRuntime,
    listener: &LiveListener,
    downstream: &Downstream,
) -> Result<(), String> {
    let mut metadata = DynamicMetadata::new();
    for filter in &chain.chain.filters {
        match filter {
            NetworkFilter::Rbac(rbac) => {
                let judged = judge(rbac, downstream, &mut metadata);
                (if judged.is_ok() { &listener.stats.rbac_allowed } else { &listener.stats.rbac_denied }).inc();
                judged?;
            }
            NetworkFilter::ExtAuthz(ask) => {
                http::authorize::connection_allowed(worker, downstream, &metadata, ask).await?;
            }
            NetworkFilter::ConnectionRate(rate) if !rate.bucket.take(weft_filter::ratelimit::now()) => {
                let label = [("envoy_local_network_ratelimit_prefix", rate.stat_prefix.clone())];
                worker.shard.counter("envoy_local_rate_limit_rate_limited", &label).inc();
                return Err("local_ratelimit_close_connection".into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Asks the chain's own authorization filters once more; the details word when one says no. Nothing is counted. External
/// authorizers are asked when a connection is made, and not again.
pub(crate) fn denied(chain: &ChainRuntime, downstream: &Downstream) -> Option<String> {
    let mut metadata = DynamicMetadata::new();
    chain.chain.filters.iter().find_map(|filter| {
        let NetworkFilter::Rbac(rbac) = filter else { return None };
        judge(rbac, downstream, &mut metadata).err()
    })
}

/// Counts an end by authorization. That a connection may stay is not counted: it was let in once.
pub(crate) fn counted(listener: &LiveListener, end: End) -> End {
    if matches!(end, End::Denied(_)) {
        listener.stats.rbac_denied.inc();
    }
    end
}

/// Asks one filter, without counting what it says.
fn judge(rbac: &weft_authz::Rbac, downstream: &Downstream, metadata: &mut DynamicMetadata) -> Result<(), String> {
    let facts = weft_authz::Facts {
        peer: downstream.peer,
        remote: downstream.source,
        destination: downstream.destination,
        server_name: downstream.server_name.as_deref(),
        certificate: downstream.certificate.as_ref(),
        request: None,
        metadata,
    };
    let (decision, told) = weft_filter::rbac::decide(rbac, &facts, &weft_filter::rbac::NETWORK_FILTER);
    told.into_iter().for_each(|one| one.put(metadata));
    if decision.allowed { Ok(()) } else { Err(weft_filter::rbac::details(&decision)) }
}

/// Counts a connection of a listener as open.
struct Counted(Rc<LiveListener>);

impl Counted {
    fn start(listener: &Rc<LiveListener>) -> Self {
        listener.stats.cx_total.inc();
        listener.stats.cx_active.add(1);
        Self(listener.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.stats.cx_active.add(-1);
    }
}
