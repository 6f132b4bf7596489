//! One worker: a thread with its own runtime, listening sockets, connection pools and counters. Nothing of a connection ever
//! leaves the worker that accepted it.

use crate::accept::{self, Accepted};
use crate::demand::{Asks, Demands};
use crate::listener::Listeners;
use crate::log::LogSinks;
use crate::sockets::Listening;
use crate::standing::Standing;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::Instant;
use weft_cluster::{ClusterManager, ClusterShared, ClusterStatus};
use weft_core::Strng;
use weft_filter::limit::{ConnectionCount, ConnectionPlace, WeakCount};
use weft_filter::{LocalWorkload, MeshMetrics, Parties};
use weft_proxy_config::{FilterChain, ListenAddress, Listener, ProxySnapshot, TrafficDirection};
use weft_telemetry::{Format, Registry, Shard};

/// How often idle connections and unused clusters are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// Time left to idle clients of a filter chain that is gone.
const GRACE: Duration = Duration::from_secs(5);
/// Pause when the process has no file descriptors left.
const OUT_OF_FILES: Duration = Duration::from_millis(50);
/// Formats of header values kept parsed.
const MAX_FORMATS: usize = 4096;

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub clusters: Arc<ClusterShared>,
    pub registry: Registry,
    pub sinks: Arc<LogSinks>,
    pub local: LocalWorkload,
    limits: Mutex<HashMap<CountKey, WeakCount>>,
    open: ConnectionCount,
    max_connections: u64,
    retired_time: Duration,
    demands: Option<Demands>,
}

/// Whose connections are counted: a listener's, or those of one of its filter chains.
#[derive(Debug, PartialEq, Eq, Hash)]
struct CountKey {
    listener: Strng,
    chain: Option<Strng>,
}

/// What a worker is told.
pub(crate) enum Command {
    /// Follow this configuration; accept on these sockets too, and no more on those.
    Update {
        snapshot: Arc<ProxySnapshot>,
        open: Vec<(ListenAddress, Listening)>,
        close: Vec<ListenAddress>,
        done: oneshot::Sender<()>,
    },
    /// Ask clients to go: `connection: close`, GOAWAY. Connections are still accepted.
    Drain,
    /// The same, for listeners of the inbound side.
    DrainInbound,
    /// Accept no more on listeners of the inbound side.
    CloseInbound,
    /// Close connections as soon as they are idle.
    CloseIdle,
    /// Accept no more.
    CloseListeners,
    /// Tell what is known of clusters.
    Status(oneshot::Sender<Vec<ClusterStatus>>),
    /// End now.
    Stop,
}

/// Numbers that others read while the worker runs.
#[derive(Debug, Default)]
pub(crate) struct WorkerGauges {
    pub connections: AtomicU64,
}

/// A configuration with the listeners in use. Requests hold the one they began with.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub config: Arc<ProxySnapshot>,
    pub listeners: Listeners,
}

/// One worker's state.
#[derive(Debug)]
pub(crate) struct Worker {
    snapshot: RefCell<Rc<Snapshot>>,
    /// Rung after each change of it.
    changed: Notify,
    /// What is asked for, when the proxy takes only what it uses.
    pub asks: Option<Asks>,
    pub clusters: ClusterManager,
    pub metrics: MeshMetrics,
    pub parties: Parties,
    pub shard: Shard,
    pub sinks: Arc<LogSinks>,
    pub draining: Cell<bool>,
    draining_inbound: Cell<bool>,
    shared: Arc<Shared>,
    gauges: Arc<WorkerGauges>,
    connections: RefCell<HashMap<u64, Rc<ConnectionEntry>, foldhash::fast::RandomState>>,
    accepting: RefCell<HashMap<ListenAddress, Rc<Notify>>>,
    formats: RefCell<HashMap<Strng, Option<Rc<Format>>, foldhash::fast::RandomState>>,
    next_id: Cell<u64>,
}

impl Shared {
    pub fn new(
        clusters: Arc<ClusterShared>,
        registry: Registry,
        local: LocalWorkload,
        max_connections: u64,
        retired_time: Duration,
        demands: Option<Demands>,
    ) -> Arc<Self> {
        let (sinks, limits, open) = (Arc::default(), Mutex::default(), ConnectionCount::default());
        Arc::new(Self { clusters, registry, sinks, local, limits, open, max_connections, retired_time, demands })
    }

    /// What all workers count under `key`, for as long as one of them, or an open connection, holds it.
    fn count(&self, key: CountKey) -> ConnectionCount {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = limits.get(&key).and_then(WeakCount::upgrade) {
            return known;
        }
        limits.retain(|_, count| count.upgrade().is_some());
        let count = ConnectionCount::default();
        limits.insert(key, count.downgrade());
        count
    }
}

impl Worker {
    fn new(index: usize, shared: Arc<Shared>, gauges: Arc<WorkerGauges>) -> Rc<Self> {
        let shard = shared.registry.shard();
        Rc::new(Self {
            snapshot: RefCell::default(),
            changed: Notify::new(),
            asks: shared.demands.clone().map(Asks::new),
            clusters: ClusterManager::new(shared.clusters.clone(), shard.clone(), index == 0),
            metrics: MeshMetrics::new(shard.clone()),
            parties: Parties::new(shared.local.clone()),
            shard,
            sinks: shared.sinks.clone(),
            draining: Cell::new(false),
            draining_inbound: Cell::new(false),
            shared,
            gauges,
            connections: RefCell::default(),
            accepting: RefCell::default(),
            formats: RefCell::default(),
            next_id: Cell::new((index as u64) << 48 | 1),
        })
    }

    /// The configuration in force.
    pub fn snapshot(&self) -> Rc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// Returns when the configuration in force is `version` or a later one.
    pub async fn followed(&self, version: u64) {
        loop {
            // Nothing can happen on this thread between the look and the wait.
            let changed = self.changed.notified();
            if self.snapshot.borrow().config.version >= version {
                return;
            }
            changed.await;
        }
    }

    /// A number for a connection.
    pub fn next_connection_id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    /// Open connections of a listener's chain over all workers. A chain without a name is known by what it matches.
    pub fn connection_count(&self, listener: &Strng, chain: &FilterChain) -> ConnectionCount {
        let chain = match chain.name.is_empty() {
            true => Strng::from(format!("{:?}", chain.matcher)),
            false => chain.name.clone(),
        };
        self.shared.count(CountKey { listener: listener.clone(), chain: Some(chain) })
    }

    /// Open connections of a listener over all workers.
    pub fn listener_count(&self, listener: &Strng) -> ConnectionCount {
        self.shared.count(CountKey { listener: listener.clone(), chain: None })
    }

    /// Time left to connections of a filter chain that is gone.
    pub fn retired_time(&self) -> Duration {
        self.shared.retired_time
    }

    /// A place under the limit of the whole process: `Some(None)` when the listener is exempt, `None` when it is reached.
    pub fn process_place(&self, listener: &Listener) -> Option<Option<ConnectionPlace>> {
        match listener.exempt {
            true => Some(None),
            false => self.shared.open.take(self.shared.max_connections).map(Some),
        }
    }

    /// A header format, parsed once. `None` when it does not parse; that was reported when the configuration was compiled.
    pub fn format(&self, text: &Strng) -> Option<Rc<Format>> {
        if let Some(known) = self.formats.borrow().get(text) {
            return known.clone();
        }
        let parsed = Format::parse(text).ok().map(Rc::new);
        let mut formats = self.formats.borrow_mut();
        if formats.len() >= MAX_FORMATS {
            formats.clear();
        }
        formats.insert(text.clone(), parsed.clone());
        parsed
    }

    fn follow(&self, config: Arc<ProxySnapshot>) {
        let before = self.snapshot();
        let listeners = before.listeners.follow(self, &config);
        self.clusters.apply(&config);
        self.snapshot.replace(Rc::new(Snapshot { config, listeners }));
        self.changed.notify_waiters();
        for entry in self.connections.borrow().values() {
            entry.standing.seat.follow(self);
            if let Some(ends_at) = entry.standing.seat.ends_at()
                && !entry.retiring.replace(true)
            {
                entry.drain();
                spawn_local(close_later(Rc::downgrade(entry), ends_at));
            }
            if entry.standing.is_in_question() {
                entry.wake();
            }
        }
    }

    fn drain_inbound(&self) {
        self.draining_inbound.set(true);
        for entry in self.connections.borrow().values().filter(|entry| entry.direction == TrafficDirection::Inbound) {
            entry.drain();
        }
    }

    fn close_inbound(&self) {
        let snapshot = self.snapshot();
        let inbound = |address: &ListenAddress| {
            let listener = snapshot.listeners.at(address);
            listener.is_some_and(|l| l.config.direction == TrafficDirection::Inbound)
        };
        let all: Vec<ListenAddress> = self.accepting.borrow().keys().filter(|a| inbound(a)).cloned().collect();
        all.iter().for_each(|address| self.stop_accepting(address));
    }

    fn drain(&self) {
        self.draining.set(true);
        for entry in self.connections.borrow().values() {
            entry.drain();
        }
    }
}

/// Runs a worker until it is stopped.
pub(crate) fn run(
    index: usize,
    shared: Arc<Shared>,
    gauges: Arc<WorkerGauges>,
    commands: mpsc::UnboundedReceiver<Command>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        let worker = Worker::new(index, shared, gauges);
        spawn_local(sweep(Rc::downgrade(&worker)));
        obey(&worker, commands).await;
    });
    Ok(())
}

async fn obey(worker: &Rc<Worker>, mut commands: mpsc::UnboundedReceiver<Command>) {
    while let Some(command) = commands.recv().await {
        match command {
            Command::Update { snapshot, open, close, done } => {
                worker.follow(snapshot);
                for address in close {
                    worker.stop_accepting(&address);
                }
                for (address, listening) in open {
                    worker.start_accepting(address, listening);
                }
                let _ = done.send(());
            }
            Command::Drain => worker.drain(),
            Command::DrainInbound => worker.drain_inbound(),
            Command::CloseInbound => worker.close_inbound(),
            Command::CloseIdle => worker.connections.borrow().values().for_each(|entry| entry.close_idle()),
            Command::CloseListeners => {
                let all: Vec<ListenAddress> = worker.accepting.borrow().keys().cloned().collect();
                all.iter().for_each(|address| worker.stop_accepting(address));
            }
            Command::Status(answer) => {
                let _ = answer.send(worker.clusters.status());
            }
            Command::Stop => return,
        }
    }
}

/// A connection whose filter chain is gone ends when its client has had time to go by itself, and is cut at `ends_at`.
async fn close_later(entry: Weak<ConnectionEntry>, ends_at: Instant) {
    tokio::time::sleep_until(ends_at.min(Instant::now() + GRACE)).await;
    if let Some(entry) = entry.upgrade() {
        entry.close_idle();
    }
    tokio::time::sleep_until(ends_at).await;
    if let Some(entry) = entry.upgrade() {
        entry.wake();
    }
}

async fn sweep(worker: Weak<Worker>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(worker) = worker.upgrade() else { return };
        let snapshot = worker.snapshot();
        worker.clusters.sweep(&snapshot.config);
        worker.asks.iter().for_each(Asks::sweep);
    }
}

impl Worker {
    fn start_accepting(self: &Rc<Self>, address: ListenAddress, listening: Listening) {
        let stop = Rc::new(Notify::new());
        self.accepting.borrow_mut().insert(address.clone(), stop.clone());
        let worker = self.clone();
        spawn_local(async move {
            if let Err(error) = accept_on(&worker, &address, listening, &stop).await {
                tracing::error!(?address, %error, "stopped accepting connections");
            }
        });
    }

    fn stop_accepting(&self, address: &ListenAddress) {
        if let Some(stop) = self.accepting.borrow_mut().remove(address) {
            stop.notify_one();
        }
    }
}

/// Accepts until told to stop; connections that the kernel has queued by then are still served.
async fn accept_on(
    worker: &Rc<Worker>,
    address: &ListenAddress,
    listening: Listening,
    stop: &Notify,
) -> io::Result<()> {
    enum Socket {
        Tcp(TcpListener),
        Unix(UnixListener),
    }
    let socket = match listening {
        Listening::Tcp(listener) => Socket::Tcp(TcpListener::from_std(listener)?),
        Listening::Unix(listener) => Socket::Unix(UnixListener::from_std(listener)?),
    };
    let accept = async || match &socket {
        Socket::Tcp(listener) => listener.accept().await.map(|(stream, peer)| Accepted::Tcp(stream, peer)),
        Socket::Unix(listener) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
    };
    let mut stopping = false;
    loop {
        let accepted = if stopping {
            match tokio::time::timeout(Duration::ZERO, accept()).await {
                Ok(accepted) => accepted,
                Err(_nothing_queued) => return Ok(()),
            }
        } else {
            tokio::select! {
                biased;
                accepted = accept() => accepted,
                () = stop.notified() => {
                    stopping = true;
                    continue;
                }
            }
        };
        match accepted {
            Ok(accepted) => {
                spawn_local(accept::serve(worker.clone(), address.clone(), accepted));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(?address, %error, "accept failed");
                tokio::time::sleep(OUT_OF_FILES).await;
            }
        }
    }
}

/// The client went away between the kernel's accept and ours.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// An open connection, as the worker knows it.
#[derive(Debug)]
pub(crate) struct ConnectionEntry {
    pub standing: Standing,
    direction: TrafficDirection,
    /// Its filter chain is gone, and its end is seen to.
    retiring: Cell<bool>,
    drain: Cell<bool>,
    close_idle: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Keeps a connection on the worker's list.
#[derive(Debug)]
pub(crate) struct Registered {
    pub entry: Rc<ConnectionEntry>,
    worker: Rc<Worker>,
    id: u64,
}

impl ConnectionEntry {
    /// Puts a connection on the list.
    pub fn register(worker: &Rc<Worker>, standing: Standing, direction: TrafficDirection) -> Registered {
        let inbound = worker.draining_inbound.get() && direction == TrafficDirection::Inbound;
        let drain = worker.draining.get() || inbound;
        let entry = Rc::new(Self {
            standing,
            direction,
            retiring: Cell::new(false),
            drain: Cell::new(drain),
            close_idle: Cell::new(false),
            waker: RefCell::default(),
        });
        let id = worker.next_connection_id();
        worker.connections.borrow_mut().insert(id, entry.clone());
        worker.report_connections();
        Registered { entry, worker: worker.clone(), id }
    }

    /// Asks the client to go with its next answer. An idle HTTP/1 connection stays: a close that crosses a request would
    /// lose it.
    pub fn drain(&self) {
        self.drain.set(true);
        self.wake();
    }

    /// Ends the connection as soon as it is idle.
    pub fn close_idle(&self) {
        self.close_idle.set(true);
        self.drain();
    }

    /// True when the connection is to end as soon as it is idle.
    pub fn closes_idle(&self) -> bool {
        self.close_idle.get()
    }

    /// True when the client is asked to go.
    pub fn is_draining(&self) -> bool {
        self.drain.get()
    }

    /// Wakes the connection's task.
    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Whom to wake.
    pub fn set_waker(&self, waker: &Waker) {
        let mut known = self.waker.borrow_mut();
        if !known.as_ref().is_some_and(|k| k.will_wake(waker)) {
            *known = Some(waker.clone());
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.worker.connections.borrow_mut().remove(&self.id);
        self.worker.report_connections();
    }
}

impl Worker {
    fn report_connections(&self) {
        self.gauges.connections.store(self.connections.borrow().len() as u64, Relaxed);
    }
}

#[cfg(test)]
impl Worker {
    /// One that accepts nothing.
    pub(crate) fn idle(retired_time: Duration) -> Rc<Self> {
        let clusters = ClusterShared::new(weft_cluster::Resolver::new(tokio::runtime::Handle::current()));
        let local = LocalWorkload::default();
        let shared = Shared::new(clusters, Registry::default(), local, u64::MAX, retired_time, None);
        Worker::new(0, shared, Arc::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn counts_last_as_long_as_somebody_counts_by_them() {
        let clusters = ClusterShared::new(weft_cluster::Resolver::new(tokio::runtime::Handle::current()));
        let local = LocalWorkload::default();
        let shared = Shared::new(clusters, Registry::default(), local, u64::MAX, Duration::ZERO, None);
        let key =
            |listener: &str, chain: Option<&str>| CountKey { listener: listener.into(), chain: chain.map(Strng::from) };
        let place = shared.count(key("l", Some("c"))).take(1);
        assert!(place.is_some() && shared.count(key("l", Some("c"))).take(1).is_none(), "workers share a count");
        assert!(shared.count(key("m", Some("c"))).take(1).is_some(), "another listener's chain is another");
        assert!(shared.count(key("l", None)).take(1).is_some(), "a listener is not its chain");
        drop(place);
        for n in 0..100 {
            shared.count(key(&n.to_string(), None));
        }
        assert_eq!(
            shared.limits.lock().unwrap_or_else(PoisonError::into_inner).len(),
            1,
            "only the last is still there"
        );
    }
}
