//! Start of the data plane, its listening sockets, and the handle by which the rest of the process speaks to it. A change of
//! configuration takes one path: find out which sockets to open and close, tell every worker.

use crate::options::Options;
use crate::sockets::{self, Listening};
use crate::worker::{self, Command, Shared, WorkerGauges};
use arc_swap::ArcSwap;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use weft_cluster::{ClusterShared, ClusterStatus, Resolver};
use weft_core::Strng;
use weft_proxy_config::{ListenAddress, ProxySnapshot};
use weft_telemetry::{Registry, Source};

/// How soon an address that could not be bound is tried again.
const RETRY_BIND: Duration = Duration::from_secs(1);
/// How often a drain looks whether connections are left.
const DRAIN_POLL: Duration = Duration::from_millis(50);
/// Longest time left to connections of a filter chain that is gone, whatever is asked for.
const LONGEST_RETIRED: Duration = Duration::from_secs(24 * 3600);

/// The data plane.
#[derive(Debug)]
pub struct DataPlane;

/// Speaks to a running data plane. Clones speak to the same.
#[derive(Debug, Clone)]
pub struct Handle {
    workers: Arc<Vec<WorkerHandle>>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
    listeners: Arc<Mutex<Vec<ListenerState>>>,
    applied: watch::Receiver<Option<u64>>,
    registry: Registry,
}

#[derive(Debug)]
struct WorkerHandle {
    commands: mpsc::UnboundedSender<Command>,
    gauges: Arc<WorkerGauges>,
}

/// A listener's address and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerState {
    /// Name of the listener.
    pub name: Strng,
    /// Address as configured.
    pub address: String,
    /// What became of it.
    pub status: ListenerStatus,
}

/// What became of a listener's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerStatus {
    /// Connections are accepted; the address, with the real port (`None` for Unix sockets).
    Bound(Option<SocketAddr>),
    /// It opens no socket: connections are handed to it.
    HandedOver,
    /// It cannot be bound; why.
    Failed(String),
}

impl DataPlane {
    /// Starts workers and listening sockets, and follows `config` whenever `changes` says so. Returns at once; see
    /// [`Handle::wait_ready`].
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        config: Arc<ArcSwap<ProxySnapshot>>,
        changes: watch::Receiver<u64>,
        options: Options,
    ) -> io::Result<Handle> {
        let resolver = Resolver::new(options.runtime.clone());
        let clusters = ClusterShared::new(resolver);
        let source: Weak<dyn Source> = Arc::<ClusterShared>::downgrade(&clusters);
        options.registry.add_source(source);
        let (registry, demands) = (options.registry.clone(), options.demands);
        let (most, retired_time) = (options.max_connections, options.retired_time.min(LONGEST_RETIRED));
        let shared = Shared::new(clusters, registry, options.local, most, retired_time, demands);
        let mut workers = Vec::new();
        let mut threads = Vec::new();
        for index in 0..options.concurrency.get() {
            let (commands, receiver) = mpsc::unbounded_channel();
            let gauges = Arc::new(WorkerGauges::default());
            let (shared, seen) = (shared.clone(), gauges.clone());
            let run = move || {
                if let Err(error) = worker::run(index, shared, seen, receiver) {
                    tracing::error!(index, %error, "worker cannot run");
                }
            };
            threads.push(std::thread::Builder::new().name(format!("worker-{index}")).spawn(run)?);
            workers.push(WorkerHandle { commands, gauges });
        }
        let (applied_to, applied) = watch::channel(None);
        let handle = Handle {
            workers: Arc::new(workers),
            threads: Arc::new(Mutex::new(threads)),
            listeners: Arc::default(),
            applied,
            registry: options.registry,
        };
        let controller = Controller {
            config,
            workers: handle.workers.clone(),
            states: handle.listeners.clone(),
            applied: applied_to,
            open: BTreeMap::new(),
            inherited: options.inherited,
        };
        options.runtime.spawn(controller.run(changes));
        Ok(handle)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handle {
    /// Returns when the first configuration is in force in every worker. Addresses that failed are in
    /// [`Handle::listeners`].
    pub async fn wait_ready(&self) {
        let _ = self.applied.clone().wait_for(Option::is_some).await;
    }

    /// Returns when version `version` of the configuration, or a later one, is in force in every worker.
    pub async fn wait_version(&self, version: u64) {
        let _ = self.applied.clone().wait_for(|applied| applied.is_some_and(|v| v >= version)).await;
    }

    /// The version of the configuration in force in every worker.
    pub fn version(&self) -> Option<u64> {
        *self.applied.borrow()
    }

    /// Listeners and what became of their addresses.
    pub fn listeners(&self) -> Vec<ListenerState> {
        locked(&self.listeners).clone()
    }

    /// Open connections of clients.
    pub fn active_connections(&self) -> u64 {
        self.workers.iter().map(|worker| worker.gauges.connections.load(Relaxed)).sum()
    }

    /// Metrics.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What the workers know of clusters in use, summed up, by name.
    pub async fn clusters(&self) -> Vec<ClusterStatus> {
        let mut all: BTreeMap<Strng, ClusterStatus> = BTreeMap::new();
        for worker in self.workers.iter() {
            let (ask, answer) = oneshot::channel();
            if worker.commands.send(Command::Status(ask)).is_err() {
                continue;
            }
            for status in answer.await.unwrap_or_default() {
                match all.get_mut(&status.name) {
                    Some(known) => known.add(&status),
                    None => drop(all.insert(status.name.clone(), status)),
                }
            }
        }
        all.into_values().collect()
    }

    /// Asks clients to go: answers carry `connection: close`, HTTP/2 clients get a GOAWAY. Connections are still accepted,
    /// since routing elsewhere takes time to notice.
    pub fn start_drain(&self) {
        self.tell(|| Command::Drain);
    }

    /// Accepts no further connections; those the kernel has queued are still served.
    pub fn close_listeners(&self) {
        self.tell(|| Command::CloseListeners);
    }

    /// As [`Handle::start_drain`], for connections to the workload alone.
    pub fn start_drain_inbound(&self) {
        self.tell(|| Command::DrainInbound);
    }

    /// As [`Handle::close_listeners`], for listeners of the workload's side alone.
    pub fn close_inbound_listeners(&self) {
        self.tell(|| Command::CloseInbound);
    }

    /// Drains: asks clients to go, for `least`; then accepts no more, closes what is idle, and waits until no connection is
    /// left, at most `most` in all. True when none is left.
    pub async fn drain(&self, least: Duration, most: Duration) -> bool {
        self.start_drain();
        let start = tokio::time::Instant::now();
        tokio::time::sleep(least).await;
        self.close_listeners();
        self.tell(|| Command::CloseIdle);
        loop {
            // A connection accepted a moment ago is not on the list yet: only a second empty look counts.
            tokio::time::sleep(DRAIN_POLL).await;
            if self.active_connections() == 0 {
                return true;
            }
            if start.elapsed() >= most {
                return false;
            }
            // Those accepted from the kernel's queue meanwhile.
            self.tell(|| Command::CloseIdle);
        }
    }

    /// Ends the workers, whatever they are doing, and waits for their threads. Blocks.
    pub fn stop(&self) {
        self.tell(|| Command::Stop);
        for thread in locked(&self.threads).drain(..) {
            let _ = thread.join();
        }
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for worker in self.workers.iter() {
            // A worker that is gone needs not be told.
            let _ = worker.commands.send(command());
        }
    }
}

/// Follows the configuration.
struct Controller {
    config: Arc<ArcSwap<ProxySnapshot>>,
    workers: Arc<Vec<WorkerHandle>>,
    states: Arc<Mutex<Vec<ListenerState>>>,
    applied: watch::Sender<Option<u64>>,
    /// Addresses with open sockets, and where they are really bound.
    open: BTreeMap<ListenAddress, Option<SocketAddr>>,
    inherited: HashMap<SocketAddr, TcpListener>,
}

impl Controller {
    async fn run(mut self, mut changes: watch::Receiver<u64>) {
        loop {
            changes.borrow_and_update();
            let failed = self.apply().await;
            let retry = async {
                match failed {
                    true => tokio::time::sleep(RETRY_BIND).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = retry => {}
            }
        }
    }

    /// Brings sockets and workers to the current configuration. True when an address failed.
    async fn apply(&mut self) -> bool {
        let snapshot = self.config.load_full();
        let mut states = Vec::new();
        let mut wanted: BTreeMap<ListenAddress, Strng> = BTreeMap::new();
        let mut opened: Vec<(ListenAddress, Vec<Listening>)> = Vec::new();
        for (name, listener) in &snapshot.listeners {
            for address in &listener.addresses {
                let status = if !listener.bind {
                    ListenerStatus::HandedOver
                } else if let Some(other) = wanted.get(address) {
                    ListenerStatus::Failed(format!("the address belongs to listener {other:?} already"))
                } else {
                    wanted.insert(address.clone(), name.clone());
                    self.open(address, listener.transparent, &mut opened)
                };
                if let ListenerStatus::Failed(why) = &status {
                    let known = locked(&self.states).iter().any(|s| s.name == *name && s.status == status);
                    if !known {
                        tracing::error!(listener = %name, address = %text(address), "cannot listen: {why}");
                    }
                }
                states.push(ListenerState { name: name.clone(), address: text(address), status });
            }
        }
        let close: Vec<ListenAddress> = self.open.keys().filter(|a| !wanted.contains_key(*a)).cloned().collect();
        for address in &close {
            self.open.remove(address);
        }
        let failed = states.iter().any(|s| matches!(s.status, ListenerStatus::Failed(_)));
        *locked(&self.states) = states;
        self.tell(&snapshot, opened, &close).await;
        self.applied.send_replace(Some(snapshot.version));
        failed
    }

    fn open(
        &mut self,
        address: &ListenAddress,
        transparent: bool,
        opened: &mut Vec<(ListenAddress, Vec<Listening>)>,
    ) -> ListenerStatus {
        if let Some(bound) = self.open.get(address) {
            return ListenerStatus::Bound(*bound);
        }
        let inherited = match address {
            ListenAddress::Tcp(tcp) => self.inherited.remove(tcp),
            ListenAddress::Unix(_) => None,
        };
        let count = self.workers.len();
        let sockets = match inherited {
            Some(socket) => socket.set_nonblocking(true).and_then(|()| sockets::share(Listening::Tcp(socket), count)),
            None => sockets::listen(address, count, transparent),
        };
        match sockets {
            Ok(sockets) => {
                let bound = sockets.first().and_then(|socket| match socket {
                    Listening::Tcp(listener) => listener.local_addr().ok(),
                    Listening::Unix(_) => None,
                });
                self.open.insert(address.clone(), bound);
                opened.push((address.clone(), sockets));
                ListenerStatus::Bound(bound)
            }
            Err(error) => ListenerStatus::Failed(failure(&error)),
        }
    }

    async fn tell(
        &self,
        snapshot: &Arc<ProxySnapshot>,
        mut opened: Vec<(ListenAddress, Vec<Listening>)>,
        close: &[ListenAddress],
    ) {
        let mut answers = Vec::new();
        for worker in self.workers.iter() {
            let take = |(address, sockets): &mut (ListenAddress, Vec<Listening>)| {
                sockets.pop().map(|socket| (address.clone(), socket))
            };
            let open = opened.iter_mut().filter_map(take).collect();
            let (done, answer) = oneshot::channel();
            let update = Command::Update { snapshot: snapshot.clone(), open, close: close.to_vec(), done };
            if worker.commands.send(update).is_ok() {
                answers.push(answer);
            }
        }
        for answer in answers {
            let _ = answer.await;
        }
    }
}

fn text(address: &ListenAddress) -> String {
    match address {
        ListenAddress::Tcp(address) => address.to_string(),
        ListenAddress::Unix(path) => path.to_string(),
    }
}

fn failure(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "the address is in use by another program".into(),
        io::ErrorKind::PermissionDenied => {
            "not permitted; ports below 1024 need CAP_NET_BIND_SERVICE, transparent sockets CAP_NET_ADMIN".into()
        }
        io::ErrorKind::AddrNotAvailable => "this machine does not have the address".into(),
        _ => error.to_string(),
    }
}
