//! The TCP proxy: chooses a cluster and an endpoint, connects, and passes bytes both ways.

use crate::accept;
use crate::chain::{ChainRuntime, TcpRuntime};
use crate::downstream::Downstream;
use crate::listener::LiveListener;
use crate::record::ConnectionRecord;
use crate::sni;
use crate::standing::Standing;
use crate::through;
use crate::tunnel::{self, Ended, Traffic};
use crate::worker::{Registered, Worker};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use weft_cluster::cluster::TcpGuard;
use weft_cluster::{ConnectionFacts, Host, Lease, LiveCluster, PickContext, UpstreamError};
use weft_codec::{Flags, Io, Reason, Stream};
use weft_core::Strng;
use weft_filter::metrics::{Labels, Protocol, Security, TcpCells};
use weft_filter::peer::{Facts, Party};
use weft_proxy_config::{NetworkFilter, TcpCluster, TcpProxy, Telemetry, Terminal};

/// How often byte counters of long connections are brought up to date.
const REPORT: Duration = Duration::from_secs(5);

/// Serves a connection whose last filter is the TCP proxy.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    listener: Rc<LiveListener>,
    entry: Registered,
    mut io: Io,
    downstream: Downstream,
) {
    let standing = &entry.entry.standing;
    let chain = standing.seat.slot.current();
    let (Terminal::Tcp(proxy), Some(runtime)) = (&chain.chain.terminal, &chain.tcp) else { return };
    runtime.cx_total.inc();
    let mut record = ConnectionRecord::new(&worker, &runtime.logs);
    // From here on to its last byte; asked first whenever something happens.
    let mut end = pin!(must_end(&listener, standing, &downstream, proxy));
    let made = tokio::select! {
        biased;
        end = &mut end => Err(Failure::Ended(end)),
        made = make(&worker, &chain, &mut io, &downstream, &mut record) => made,
    };
    match made {
        Ok(upstream) => pass(&worker, &chain, io, &downstream, upstream, end, &mut record).await,
        Err(Failure::Ended((details, flags))) => {
            record.close(flags, &details);
            unconnected(&worker, runtime, &downstream, record.flags);
        }
        Err(Failure::Refused(details)) => {
            let name = downstream.server_name.as_deref();
            tracing::debug!(peer = %downstream.peer, server_name = name, details, "closed");
            record.fail(Flags::NONE, details);
        }
        Err(Failure::Gone) => {
            record.fail(Flags::DC, Reason::DownstreamDisconnect.details());
            unconnected(&worker, runtime, &downstream, record.flags);
        }
        Err(Failure::Upstream(error)) => {
            let detail = error.detail.as_deref().map(str::to_string);
            record.transport_failure = detail;
            record.fail(error.reason.flag(), error.reason.details());
            unconnected(&worker, runtime, &downstream, record.flags);
        }
    }
    record.emit(&downstream, &runtime.logs);
}

/// Counts a connection that got no endpoint.
fn unconnected(worker: &Worker, runtime: &TcpRuntime, downstream: &Downstream, flags: Flags) {
    if let Some(telemetry) = &runtime.telemetry
        && let Some(cells) = cells(worker, telemetry, downstream, None, flags)
    {
        cells.opened();
        cells.closed();
    }
}

/// Why a connection got no endpoint.
enum Failure {
    /// It had to end before.
    Ended(Ending),
    /// What its client says first is not what it must be; the details word.
    Refused(&'static str),
    /// Its client broke it off.
    Gone,
    /// No endpoint was reached.
    Upstream(UpstreamError),
}

/// Details word and flags of a connection that this proxy ends.
type Ending = (Cow<'static, str>, Flags);

/// Finds out what has to be known of the client, and connects to an endpoint.
async fn make(
    worker: &Rc<Worker>,
    chain: &ChainRuntime,
    io: &mut Io,
    downstream: &Downstream,
    record: &mut ConnectionRecord,
) -> Result<Upstream, Failure> {
    sni::verified(worker, chain, io, downstream).await.map_err(Failure::Refused)?;
    tokio::select! {
        biased;
        () = gone(io) => Err(Failure::Gone),
        connected = connect(worker, chain, downstream, record) => connected.map_err(Failure::Upstream),
    }
}

/// Returns when the client has broken its connection off. That it sends no more does not mean that it wants no answer.
async fn gone(io: &Io) {
    let socket = match io.stream() {
        Stream::Tcp(socket) => socket,
        Stream::ServerTls(tls) => tls.get_ref().0,
        Stream::ClientTls(_) | Stream::Unix(_) => return std::future::pending().await,
    };
    // An error is a broken connection too.
    let _ = socket.ready(Interest::ERROR).await;
}

/// A connection to an endpoint.
struct Upstream {
    cluster: Rc<LiveCluster>,
    host: Rc<Host>,
    io: Endpoint,
    facts: Rc<ConnectionFacts>,
    _open: Open,
}

/// The way to the endpoint.
enum Endpoint {
    Direct(Box<Io>),
    Tunnel(through::Stream),
}

/// Counts the connection as open.
enum Open {
    Direct { _guard: TcpGuard },
    Tunnel { _lease: Option<Lease> },
}

async fn connect(
    worker: &Rc<Worker>,
    chain: &ChainRuntime,
    downstream: &Downstream,
    record: &mut ConnectionRecord,
) -> Result<Upstream, UpstreamError> {
    let (Terminal::Tcp(proxy), Some(runtime)) = (&chain.chain.terminal, &chain.tcp) else {
        return Err(UpstreamError::unsent(Reason::NoCluster));
    };
    let name = cluster_name(chain, proxy, downstream);
    let snapshot = worker.snapshot();
    record.upstream.cluster = Some(name.clone());
    let Some(cluster) = worker.clusters.get(&snapshot.config, &name) else {
        runtime.cx_no_route.inc();
        return Err(UpstreamError::unsent(Reason::NoCluster));
    };
    cluster.ready().await;
    let hash =
        proxy.hash_source_ip.then(|| weft_route::xxhash::xxhash64(downstream.source.ip().to_string().as_bytes()));
    let mut failed: SmallVec<[Rc<Host>; 2]> = SmallVec::new();
    let mut last = None;
    for _ in 0..proxy.max_connect_attempts.max(1) {
        let context = PickContext {
            hash,
            avoid: &failed,
            attempts: u32::from(!failed.is_empty()) * 3,
            labels: &[],
            destination: Some(downstream.destination),
            authority: None,
        };
        let host = match sni::forward(chain) {
            Some(port) => sni::named_host(worker, &cluster, downstream, port).await?,
            None => cluster.pick(&context)?,
        };
        record.attempts += 1;
        record.upstream.host = Some(host.name.clone());
        let connected = match &proxy.tunnel {
            None => directly(&cluster, &host, sni::upstream(chain, downstream), downstream).await,
            Some(tunnel) => through::open(&cluster, &host, tunnel, downstream)
                .await
                .map(|(stream, facts, lease)| (Endpoint::Tunnel(stream), facts, Open::Tunnel { _lease: lease })),
        };
        match connected {
            Ok((io, facts, open)) => {
                record.upstream.connection = Some(facts.clone());
                cluster.report(&host, weft_cluster::outlier::Outcome::Success);
                return Ok(Upstream { cluster, host, io, facts, _open: open });
            }
            Err(error) => {
                cluster.report(&host, weft_cluster::outlier::Outcome::LocalError);
                failed.push(host);
                last = Some(error);
            }
        }
    }
    record.flags |= if proxy.max_connect_attempts > 1 { Flags::URX } else { Flags::NONE };
    Err(last.unwrap_or_else(|| UpstreamError::unsent(Reason::NoHealthyUpstream)))
}

async fn directly(
    cluster: &Rc<LiveCluster>,
    host: &Rc<Host>,
    sni: Option<&str>,
    downstream: &Downstream,
) -> Result<(Endpoint, Rc<ConnectionFacts>, Open), UpstreamError> {
    let client = Some((downstream.source, downstream.destination));
    let (io, facts, guard) = cluster.connect_tcp(host, sni, client, downstream.from).await?;
    Ok((Endpoint::Direct(Box::new(io)), facts, Open::Direct { _guard: guard }))
}

fn cluster_name(chain: &ChainRuntime, proxy: &TcpProxy, downstream: &Downstream) -> Strng {
    if chain.chain.filters.iter().any(|filter| matches!(filter, NetworkFilter::SniCluster))
        && let Some(name) = &downstream.server_name
    {
        return name.clone();
    }
    match &proxy.cluster {
        TcpCluster::One(name) => name.clone(),
        TcpCluster::Weighted(clusters, total) => {
            let mut point = fastrand::u32(..(*total).max(1));
            let chosen = clusters.iter().find(|(_, weight)| {
                let hit = point < *weight;
                point = point.saturating_sub(*weight);
                hit
            });
            chosen.or(clusters.last()).map_or_else(|| Strng::from(""), |(name, _)| name.clone())
        }
    }
}

/// Passes bytes until the connection ends by itself, or has to.
async fn pass(
    worker: &Rc<Worker>,
    chain: &ChainRuntime,
    io: Io,
    downstream: &Downstream,
    upstream: Upstream,
    end: Pin<&mut impl Future<Output = Ending>>,
    record: &mut ConnectionRecord,
) {
    let (Terminal::Tcp(proxy), Some(runtime)) = (&chain.chain.terminal, &chain.tcp) else { return };
    let cells = runtime.telemetry.as_ref().and_then(|telemetry| {
        let peer = Some((&*upstream.cluster, &*upstream.host, &*upstream.facts));
        cells(worker, telemetry, downstream, peer, Flags::NONE)
    });
    if let Some(cells) = &cells {
        cells.opened();
    }
    let reporter = Reporter { traffic: Traffic::default(), runtime, cells, reported: Cell::new((0, 0)) };
    let ended = tokio::select! {
        biased;
        (details, flags) = end => {
            record.close(flags, &details);
            None
        }
        ended = run(io, upstream.io, proxy, &reporter.traffic) => Some(ended),
        () = reporter.now_and_then() => None,
    };
    match ended {
        Some(Ended::Failed(error)) => tracing::debug!(%error, "TCP connection broke off"),
        Some(Ended::Idle) => record.fail(Flags::SI, "idle_timeout"),
        _ => {}
    }
    reporter.report();
    record.received = reporter.traffic.received();
    record.sent = reporter.traffic.sent();
    if let Some(cells) = &reporter.cells {
        cells.closed();
    }
}

async fn run(client: Io, endpoint: Endpoint, proxy: &TcpProxy, traffic: &Traffic) -> Ended {
    match endpoint {
        Endpoint::Direct(io) => tunnel::run(client, *io, proxy.idle_timeout, traffic).await,
        Endpoint::Tunnel(stream) => tunnel::run(client, stream, proxy.idle_timeout, traffic).await,
    }
}

/// Brings counters up to date while a connection lasts.
struct Reporter<'a> {
    traffic: Traffic,
    runtime: &'a TcpRuntime,
    cells: Option<Rc<TcpCells>>,
    reported: Cell<(u64, u64)>,
}

impl Reporter<'_> {
    fn report(&self) {
        let (sent, received) = (self.traffic.sent(), self.traffic.received());
        let before = self.reported.replace((sent, received));
        let (sent, received) = (sent - before.0, received - before.1);
        self.runtime.tx_bytes.add(sent);
        self.runtime.rx_bytes.add(received);
        if let Some(cells) = &self.cells {
            cells.bytes(sent, received);
        }
    }

    async fn now_and_then(&self) {
        loop {
            tokio::time::sleep(REPORT).await;
            self.report();
        }
    }
}

/// Returns when the connection must end: its longest life is over, its chain is gone, or authorization would now say no.
async fn must_end(listener: &LiveListener, standing: &Standing, downstream: &Downstream, proxy: &TcpProxy) -> Ending {
    let lifetime = async {
        match proxy.max_duration {
            Some(longest) => tokio::time::sleep(longest).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        end = standing.ended(|chain| accept::denied(chain, downstream)) => {
            (accept::counted(listener, end).details(), Flags::NONE)
        }
        () = lifetime => (Cow::Borrowed("max_duration_timeout"), Flags::DT),
    }
}

/// The metrics of a connection.
fn cells(
    worker: &Worker,
    telemetry: &Arc<Telemetry>,
    downstream: &Downstream,
    upstream: Option<(&LiveCluster, &Host, &ConnectionFacts)>,
    flags: Flags,
) -> Option<Rc<TcpCells>> {
    let parties = &worker.parties;
    let service = upstream.map(|(cluster, ..)| cluster.config.metadata.clone());
    let (source, destination, security): (Rc<Party>, Rc<Party>, Security) = if telemetry.destination {
        let security = if downstream.is_mutual_tls() { Security::MutualTls } else { Security::None };
        let source = parties.party(Facts::Unknown, downstream.peer_uri());
        (source, parties.local(downstream.local_uri.as_deref()), security)
    } else {
        let facts = upstream.map(|(_, host, facts)| (host.metadata.borrow().workload.clone(), facts));
        let destination = match &facts {
            Some((workload, facts)) => parties.party(Facts::Endpoint(workload), facts.peer_uri()),
            None => parties.party(Facts::Unknown, None),
        };
        let own = facts.and_then(|(_, facts)| facts.local_uri.clone());
        (parties.local(own.as_deref()), destination, Security::Unknown)
    };
    worker.metrics.connection(&Labels {
        telemetry,
        source: &source,
        destination: &destination,
        service: service.as_deref(),
        cluster: upstream.map_or("", |(cluster, ..)| &cluster.config.name),
        host: "",
        protocol: Protocol::Tcp,
        code: 0,
        grpc_status: None,
        flags,
        security,
    })
}
