//! From accept to the last filter: original destination, first bytes, filter chain, TLS, network filters.

use crate::chain::{ChainRuntime, ChainSlot};
use crate::demand::{self, Unanswered};
use crate::downstream::Downstream;
use crate::inspect::{self, InspectError};
use crate::listener::LiveListener;
use crate::record::ConnectionRecord;
use crate::worker::{ConnectionEntry, Worker};
use crate::{http, sockets, tcp};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use weft_codec::{Flags, Io, Reason, Stream};
use weft_core::Strng;
use weft_proxy_config::{ConnectionFacts, NetworkFilter, ServerTls, Terminal, Transport};
use weft_route::DynamicMetadata;

/// Time for a handshake unless the chain says otherwise; Envoy's default.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// A connection as accepted.
pub(crate) enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// Serves one connection from accept to close.
pub(crate) async fn serve(worker: Rc<Worker>, listener: Rc<LiveListener>, accepted: Accepted) {
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
    let listener = hand_over(&worker, listener, &downstream);
    downstream.direction = listener.config.direction;
    let counted = Counted::start(&listener);
    let Some(_place) = worker.listener_place(&listener.config) else {
        listener.stats.cx_overflow.inc();
        return;
    };
    let Ok(slot) = choose(&worker, &listener, &mut stream, &mut downstream).await else { return };
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
    serve_chain(worker, listener, slot, io, downstream).await;
    drop(counted);
}

fn new_downstream(
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

/// A listener that only redirects hands the connection to the listener of its original destination, when there is one.
fn hand_over(worker: &Worker, listener: Rc<LiveListener>, downstream: &Downstream) -> Rc<LiveListener> {
    if !listener.config.use_original_dst || downstream.destination == downstream.local {
        return listener;
    }
    let snapshot = worker.snapshot();
    let other = snapshot.listeners.for_destination(downstream.destination);
    other.filter(|other| !other.config.bind).cloned().unwrap_or(listener)
}

/// Looks at the first bytes and finds the filter chain. An error means that the connection is to be closed.
async fn choose(
    worker: &Rc<Worker>,
    listener: &Rc<LiveListener>,
    stream: &mut Stream,
    downstream: &mut Downstream,
) -> Result<Rc<ChainSlot>, ()> {
    let mut transport = Transport::RawBuffer;
    let mut protocols = Vec::new();
    if let Stream::Tcp(tcp) = stream {
        match inspect::inspect(tcp, &listener.config.inspect, downstream.destination.port()).await {
            Ok(found) => {
                if let Some((source, destination)) = found.proxied {
                    downstream.source = source;
                    downstream.destination = destination;
                }
                transport = found.transport;
                downstream.server_name = found.server_name;
                protocols = found.protocols;
            }
            Err(error) => {
                if !matches!(error, InspectError::Io(_)) {
                    tracing::debug!(listener = %listener.config.name, peer = %downstream.peer, %error, "closed");
                }
                return Err(());
            }
        }
    }
    let facts = ConnectionFacts {
        destination: downstream.destination,
        source: downstream.source,
        server_name: downstream.server_name.as_deref(),
        transport,
        application_protocols: &protocols,
        direct_source: downstream.peer.ip(),
    };
    let slot = listener.slot(worker, &facts);
    slot.ok_or_else(|| {
        listener.stats.no_filter_chain_match.inc();
        tracing::debug!(listener = %listener.config.name, peer = %downstream.peer, destination = %downstream.destination,
            server_name = downstream.server_name.as_deref(), "no filter chain matches");
        let logs = listener.logs(worker);
        let mut record = ConnectionRecord::new(worker, logs);
        record.fail(Flags::NR, "filter_chain_not_found");
        record.emit(downstream, logs);
    })
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
async fn serve_chain(
    worker: Rc<Worker>,
    listener: Rc<LiveListener>,
    slot: Rc<ChainSlot>,
    io: Io,
    downstream: Downstream,
) {
    let chain = slot.current();
    let place = match &chain.limit {
        Some((most, count)) => match count.take(*most) {
            Some(place) => Some(place),
            None => return,
        },
        None => None,
    };
    if let Err(details) = admitted(&worker, &chain, &listener, &downstream).await {
        tracing::debug!(peer = %downstream.peer, details, "connection denied");
        if let Some(tcp) = &chain.tcp {
            let mut record = ConnectionRecord::new(&worker, &tcp.logs);
            record.fail(Flags::NONE, &details);
            record.emit(&downstream, &tcp.logs);
        }
        return;
    }
    let entry = ConnectionEntry::register(&worker, &slot, downstream.direction);
    match &chain.chain.terminal {
        Terminal::Http(_) => http::serve_connection(worker, listener, slot, entry, io, downstream).await,
        Terminal::Tcp(_) => tcp::serve(worker, listener, slot, entry, io, downstream).await,
    }
    drop(place);
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
            NetworkFilter::Rbac(rbac) => decide(rbac, listener, downstream, &mut metadata)?,
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

/// Asks the chain's own authorization filters; the details word when one says no. External authorizers are asked when a
/// connection is made, and not again.
pub(crate) fn denied(chain: &ChainRuntime, listener: &LiveListener, downstream: &Downstream) -> Option<String> {
    let mut metadata = DynamicMetadata::new();
    chain.chain.filters.iter().find_map(|filter| {
        let NetworkFilter::Rbac(rbac) = filter else { return None };
        decide(rbac, listener, downstream, &mut metadata).err()
    })
}

fn decide(
    rbac: &weft_authz::Rbac,
    listener: &LiveListener,
    downstream: &Downstream,
    metadata: &mut DynamicMetadata,
) -> Result<(), String> {
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
    let stats = &listener.stats;
    if decision.allowed {
        stats.rbac_allowed.inc();
        return Ok(());
    }
    stats.rbac_denied.inc();
    Err(weft_filter::rbac::details(&decision))
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
