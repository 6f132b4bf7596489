//! Name → live cluster, for one worker. Clusters come to life on first use, follow the configuration, and go when it drops
//! them or nobody used them for long.

use crate::check::Checks;
use crate::cluster::LiveCluster;
use crate::dns::{Resolution, Resolver};
use crate::health::ClusterHealth;
use crate::limits::{Breaker, Counts};
use crate::stats::ClusterStats;
use crate::status::ClusterStatus;
use futures_util::future::select_all;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use weft_core::Strng;
use weft_proxy_config::{Cluster, Discovery, EndpointAddress, EndpointSet, ProxySnapshot};
use weft_telemetry::{Report, Shard, Source};

/// How often a name's watcher looks whether its cluster still lives.
const LIVENESS: Duration = Duration::from_secs(5);

/// What the workers of a process share.
#[derive(Debug)]
pub struct ClusterShared {
    /// Names to addresses.
    pub resolver: Arc<Resolver>,
    clusters: Mutex<HashMap<Strng, Together>>,
}

impl ClusterShared {
    /// Shared state over `resolver`.
    pub fn new(resolver: Arc<Resolver>) -> Arc<Self> {
        Arc::new(Self { resolver, clusters: Mutex::default() })
    }

    fn of(&self, name: &Strng) -> Together {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.entry(name.clone()).or_default().clone()
    }

    fn forget(&self, name: &str) {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        // Another worker, or a request under way, may still count on it.
        if clusters.get(name).is_some_and(|shared| Arc::strong_count(&shared.counts) == 1) {
            clusters.remove(name);
        }
    }
}

/// The state of circuit breakers and of endpoints, as Envoy tells it.
impl Source for ClusterShared {
    fn report(&self, report: &mut Report<'_>) {
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        for shared in clusters.values() {
            shared.counts.report(report);
            shared.health.report(report);
        }
    }
}

/// What the workers share of one cluster.
#[derive(Debug, Clone, Default)]
struct Together {
    counts: Arc<Counts>,
    health: Arc<ClusterHealth>,
}

/// The clusters of one worker.
#[derive(Debug)]
pub struct ClusterManager {
    live: RefCell<HashMap<Strng, Rc<LiveCluster>, foldhash::fast::RandomState>>,
    shared: Arc<ClusterShared>,
    shard: Shard,
    primary: bool,
}

impl ClusterManager {
    /// A manager that counts in `shard`. Exactly one worker is `primary`: it checks endpoints for the whole process.
    pub fn new(shared: Arc<ClusterShared>, shard: Shard, primary: bool) -> Self {
        Self { live: RefCell::default(), shared, shard, primary }
    }

    /// The resolver.
    pub fn resolver(&self) -> &Arc<Resolver> {
        &self.shared.resolver
    }

    /// The cluster of that name, alive; `None` when the configuration does not have it.
    pub fn get(&self, snapshot: &ProxySnapshot, name: &str) -> Option<Rc<LiveCluster>> {
        if let Some(live) = self.live.borrow().get(name) {
            return Some(live.clone());
        }
        let config = snapshot.clusters.get(name)?;
        let live = self.start(snapshot, config, None);
        self.live.borrow_mut().insert(config.name.clone(), live.clone());
        Some(live)
    }

    /// Follows a new snapshot: clusters that changed are replaced, keeping endpoints and connections that stay.
    pub fn apply(&self, snapshot: &ProxySnapshot) {
        let mut gone = Vec::new();
        let mut changed = Vec::new();
        for (name, live) in self.live.borrow().iter() {
            match snapshot.clusters.get(name) {
                None => gone.push(name.clone()),
                Some(config) if !Arc::ptr_eq(config, &live.config) => changed.push((config.clone(), live.clone())),
                Some(_) => follow_endpoints(snapshot, live),
            }
        }
        for (config, earlier) in changed {
            let live = self.start(snapshot, &config, Some(&earlier));
            self.live.borrow_mut().insert(config.name.clone(), live);
        }
        for name in gone {
            if let Some(live) = self.live.borrow_mut().remove(&name) {
                live.drain();
            }
            self.shared.forget(&name);
        }
        if self.primary {
            // Endpoints are checked before the first request wants one.
            let checked = snapshot.clusters.values().filter(|cluster| cluster.health_check.is_some());
            checked.for_each(|cluster| drop(self.get(snapshot, &cluster.name)));
        }
    }

    fn start(
        &self,
        snapshot: &ProxySnapshot,
        config: &Arc<Cluster>,
        earlier: Option<&Rc<LiveCluster>>,
    ) -> Rc<LiveCluster> {
        let Together { counts, health } = match earlier {
            Some(earlier) => Together { counts: earlier.breaker.counts().clone(), health: earlier.health.clone() },
            None => self.shared.of(&config.name),
        };
        let stat_name = config.alt_stat_name.as_ref().unwrap_or(&config.name);
        let stats = match earlier {
            Some(earlier) => earlier.stats.clone(),
            None => Rc::new(ClusterStats::new(&self.shard, stat_name)),
        };
        counts.describe(stat_name, &config.limits);
        let breaker = Breaker::new(counts, config.limits.clone());
        let checks = config.health_check.as_ref().filter(|_| self.primary);
        let checks = checks.map(|check| Checks::new(check.clone(), &self.shard, stat_name));
        let live = Rc::new(LiveCluster::new(config.clone(), stats, breaker, health, checks));
        if let Some(earlier) = earlier {
            live.inherit(earlier);
        }
        match &config.discovery {
            Discovery::StrictDns(endpoints, every) => self.follow_names(&live, endpoints, *every, usize::MAX),
            Discovery::LogicalDns(endpoints, every) => self.follow_names(&live, endpoints, *every, 1),
            _ => follow_endpoints(snapshot, &live),
        }
        live
    }

    /// Resolves the cluster's names for as long as the cluster lives; `most` addresses of each are used.
    fn follow_names(&self, live: &Rc<LiveCluster>, endpoints: &Arc<EndpointSet>, every: Duration, most: usize) {
        let all = endpoints.localities.iter().flat_map(|l| &l.endpoints);
        let mut names: HashMap<Strng, watch::Receiver<Resolution>> = HashMap::new();
        for endpoint in all {
            if let EndpointAddress::Name(name, _) = &endpoint.address {
                let resolver = &self.shared.resolver;
                names.entry(name.clone()).or_insert_with(|| resolver.watch(name, every));
            }
        }
        let follow = follow_names(Rc::downgrade(live), endpoints.clone(), names, most);
        tokio::task::spawn_local(follow);
    }

    /// Closes idle connections whose time is over, and lets clusters go that only an old request wanted. Call now and then.
    pub fn sweep(&self, snapshot: &ProxySnapshot) {
        let now = Instant::now();
        self.live.borrow_mut().retain(|name, live| {
            live.sweep(now);
            let keep = snapshot.clusters.contains_key(name) || live.used.replace(false);
            if !keep {
                live.drain();
            }
            keep
        });
    }

    /// What is known of all live clusters.
    pub fn status(&self) -> Vec<ClusterStatus> {
        self.live.borrow().values().map(|live| ClusterStatus::of(live)).collect()
    }
}

/// Gives a cluster the endpoints of `snapshot`, when they are others than it has.
fn follow_endpoints(snapshot: &ProxySnapshot, live: &Rc<LiveCluster>) {
    let next = match &live.config.discovery {
        Discovery::Static(endpoints) => Some(endpoints),
        Discovery::Eds(name) => snapshot.endpoints.get(name),
        _ => return,
    };
    let Some(next) = next else { return };
    let same = live.source.borrow().as_ref().is_some_and(|source| Arc::ptr_eq(source, next));
    if !same {
        live.set_endpoints(next, &|address| vec![address.clone()]);
    }
}

async fn follow_names(
    live: Weak<LiveCluster>,
    endpoints: Arc<EndpointSet>,
    mut names: HashMap<Strng, watch::Receiver<Resolution>>,
    most: usize,
) {
    loop {
        let Some(cluster) = live.upgrade() else { return };
        let done = names.values_mut().all(|receiver| receiver.borrow_and_update().done);
        let addresses = |address: &EndpointAddress| match address {
            EndpointAddress::Name(name, port) => {
                let known = names.get(name).map(|known| known.borrow().addresses.clone()).unwrap_or_default();
                let used = cluster.config.lookup.choose(&known).take(most);
                used.map(|ip| EndpointAddress::Ip(SocketAddr::new(ip, *port))).collect()
            }
            other => vec![other.clone()],
        };
        if done {
            cluster.resolved.set(true);
            cluster.set_endpoints(&endpoints, &addresses);
        }
        drop(cluster);
        if !wait_for_change(&live, &mut names).await {
            return;
        }
    }
}

/// False when the cluster is gone or nothing can change any more.
async fn wait_for_change(live: &Weak<LiveCluster>, names: &mut HashMap<Strng, watch::Receiver<Resolution>>) -> bool {
    // A name that is an address has no lookups behind it.
    names.retain(|_, receiver| receiver.has_changed().is_ok());
    while !names.is_empty() && live.strong_count() > 0 {
        let changes = names.values_mut().map(|receiver| Box::pin(receiver.changed()));
        tokio::select! {
            (changed, _, _) = select_all(changes) => return changed.is_ok(),
            () = tokio::time::sleep(LIVENESS) => {}
        }
    }
    false
}
