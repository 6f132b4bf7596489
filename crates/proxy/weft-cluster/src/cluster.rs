//! A cluster with its live state in one worker: hosts, limits, counters. Its configuration never changes: a changed cluster
//! is a new [`LiveCluster`] that takes over hosts, connections and counters.

use crate::check::Checks;
use crate::connect::{self, Alpn, ConnectionFacts, Plan, Source};
use crate::dns::Resolver;
use crate::error::UpstreamError;
use crate::health::ClusterHealth;
use crate::hosts::{Host, HostSet, Localities};
use crate::lb;
use crate::limits::Breaker;
use crate::outlier::{self, Cause, Outcome, may_eject};
use crate::pool::{self, Lease, OpenGuard, Want};
use crate::stats::ClusterStats;
use crate::subsets::SubsetCache;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use weft_codec::{Io, Reason};
use weft_core::Strng;
use weft_proxy_config::{Cluster, Discovery, EndpointAddress, EndpointSet, OutlierDetection, UpstreamTransport};
use weft_route::Priority;

/// How long a first request waits for a name to be resolved.
const RESOLVE_WAIT: Duration = Duration::from_secs(5);
/// How often a request looks whether endpoints have been checked.
const CHECKED_WAIT: Duration = Duration::from_millis(5);
/// How often it is looked who comes back, while endpoints are left out.
const SWEEP: Duration = Duration::from_millis(100);
/// In how many steps a new endpoint gets its share, and the bounds of a step.
const WARM_STEPS: u32 = 50;
const WARM_FASTEST: Duration = Duration::from_millis(20);
const WARM_SLOWEST: Duration = Duration::from_secs(2);
/// Longest name that is looked up, in bytes (RFC 1035 §2.3.4, with the dot at the end).
const MAX_NAME: usize = 254;
/// Destinations kept of a cluster that forwards to where the client wanted to go.
const MAX_DESTINATIONS: usize = 4096;

/// A cluster in use.
#[derive(Debug)]
pub struct LiveCluster {
    /// Its configuration.
    pub config: Arc<Cluster>,
    /// Its counters.
    pub stats: Rc<ClusterStats>,
    /// Its limits.
    pub breaker: Breaker,
    pub(crate) hosts: RefCell<Rc<HostSet>>,
    /// What `hosts` was built from.
    pub(crate) source: RefCell<Option<Arc<EndpointSet>>>,
    /// Hosts by name and address, for clusters that have no list. Names that share an address share no connection: each was
    /// made for its name.
    pub(crate) destinations: RefCell<HashMap<Destination, Rc<Host>, foldhash::fast::RandomState>>,
    pub(crate) subsets: SubsetCache,
    pub(crate) resolved: Cell<bool>,
    pub(crate) changed: Notify,
    /// What all workers know of its endpoints.
    pub(crate) health: Arc<ClusterHealth>,
    /// Changes of health that this worker has followed.
    followed: Cell<u64>,
    pub(crate) checks: Option<Checks>,
    next_warm: Cell<Option<Instant>>,
    pub(crate) used: Cell<bool>,
}

/// Where a client wanted to go: the name that it said, if any, and the address.
pub(crate) type Destination = (Option<Strng>, SocketAddr);

/// What a pick is made by.
#[derive(Debug, Default)]
pub struct PickContext<'a> {
    /// For consistent balancing.
    pub hash: Option<u64>,
    /// Endpoints that failed this request already.
    pub avoid: &'a [Rc<Host>],
    /// How often to choose anew to avoid them.
    pub attempts: u32,
    /// Labels that choose a subset, where the cluster has subsets.
    pub labels: &'a [(Strng, Strng)],
    /// The connection's original destination.
    pub destination: Option<SocketAddr>,
    /// The request's host, for dynamic forwarding.
    pub authority: Option<&'a str>,
}

impl LiveCluster {
    /// `checks`: this worker checks the endpoints.
    pub(crate) fn new(
        config: Arc<Cluster>,
        stats: Rc<ClusterStats>,
        breaker: Breaker,
        health: Arc<ClusterHealth>,
        checks: Option<Checks>,
    ) -> Self {
        let resolved = !matches!(config.discovery, Discovery::StrictDns(..) | Discovery::LogicalDns(..));
        Self {
            config,
            stats,
            breaker,
            hosts: RefCell::default(),
            source: RefCell::default(),
            destinations: RefCell::default(),
            subsets: SubsetCache::default(),
            resolved: Cell::new(resolved),
            changed: Notify::new(),
            followed: Cell::new(health.changes()),
            health,
            checks,
            next_warm: Cell::new(None),
            used: Cell::new(true),
        }
    }

    /// Takes over hosts and their connections from an earlier state of the same cluster.
    pub(crate) fn inherit(&self, earlier: &LiveCluster) {
        self.hosts.replace(earlier.hosts.borrow().clone());
        self.destinations.replace(std::mem::take(&mut *earlier.destinations.borrow_mut()));
        self.source.replace(None);
        self.hosts.borrow().all.iter().for_each(|host| self.say_whether_checked(host));
        self.hosts.borrow().invalidate();
        // What was resolved stays good until the new state has resolved again.
        self.resolved.set(self.resolved.get() || (earlier.resolved.get() && !self.hosts.borrow().all.is_empty()));
    }

    /// Also when nothing is checked (any more): a host that an earlier state of the cluster found unwell would stay out for ever.
    fn say_whether_checked(&self, host: &Host) {
        host.checked.set(self.config.health_check.is_some() && !host.check.get().off);
    }

    /// Counts anew how many of its hosts are left out, while nobody leaves one out or takes one back.
    fn count_ejected(&self, _judging: &MutexGuard<'_, ()>) {
        let hosts = self.hosts.borrow();
        self.health.set_ejected(hosts.all.iter().filter(|host| host.outlier.is_ejected()).count());
    }

    /// Replaces the hosts by those of `endpoints`; hosts that stay keep their connections.
    pub(crate) fn set_endpoints(
        self: &Rc<Self>,
        endpoints: &Arc<EndpointSet>,
        resolve: &dyn Fn(&EndpointAddress) -> Vec<EndpointAddress>,
    ) {
        let before = self.hosts.borrow().clone();
        let next = Rc::new(HostSet::build(endpoints, &before, resolve));
        before.retire_missing(&next);
        let is_shared = self.config.outlier.is_some() || self.config.health_check.is_some();
        for host in &next.all {
            if is_shared {
                host.outlier.join(|| self.health.host(&host.address));
            }
            self.say_whether_checked(host);
        }
        self.hosts.replace(next.clone());
        self.count_ejected(&self.health.judging());
        if let Some(checks) = &self.checks {
            checks.follow(self, &next);
        }
        self.subsets.clear();
        self.source.replace(Some(endpoints.clone()));
        self.next_warm.set(None);
        self.report_membership();
        self.changed.notify_waiters();
    }

    pub(crate) fn report_membership(&self) {
        let hosts = self.hosts.borrow();
        let name = self.config.alt_stat_name.as_ref().unwrap_or(&self.config.name);
        self.health.tell(name, hosts.all.len(), hosts.all.iter().filter(|h| h.is_usable()).count());
    }

    /// Heeds what this worker or another has found out about endpoints.
    pub(crate) fn follow_health(&self) {
        let changes = self.health.changes();
        if self.followed.replace(changes) != changes {
            self.hosts.borrow().invalidate();
            self.subsets.invalidate();
            self.report_membership();
        }
    }

    /// Waits until names have been resolved, and endpoints checked, for the first time; at once for clusters that need none,
    /// and for those that have no endpoints: there is nothing to be found out about these.
    pub async fn ready(&self) {
        let has_list = !matches!(self.config.discovery, Discovery::OriginalDst(_) | Discovery::DynamicForward(_));
        let is_checked = has_list && self.config.health_check.is_some();
        let unchecked = || is_checked && !self.health.is_checked() && !self.hosts.borrow().all.is_empty();
        if self.resolved.get() && !unchecked() {
            return;
        }
        let wait = async {
            while !self.resolved.get() {
                self.changed.notified().await;
            }
            // Another worker may be the one that checks.
            while unchecked() {
                tokio::time::sleep(CHECKED_WAIT).await;
            }
        };
        // In a box: nearly nobody waits, and everybody would carry the room for it.
        let _ = Box::pin(tokio::time::timeout(RESOLVE_WAIT, wait)).await;
    }

    /// Chooses an endpoint.
    ///
    /// # Errors
    /// `NoHealthyUpstream` when there is none, `DropOverload` for the share that is to be dropped.
    pub fn pick(&self, context: &PickContext<'_>) -> Result<Rc<Host>, UpstreamError> {
        self.used.set(true);
        match &self.config.discovery {
            Discovery::OriginalDst(port) => self.pick_destination(context, *port),
            _ => self.pick_listed(context),
        }
    }

    fn pick_listed(&self, context: &PickContext<'_>) -> Result<Rc<Host>, UpstreamError> {
        if self.health.ejected() > 0 {
            self.take_back(Instant::now());
        }
        self.follow_health();
        let hosts = self.hosts.borrow();
        if hosts.drop > 0 && fastrand::u32(..1_000_000) < hosts.drop {
            return Err(UpstreamError::unsent(Reason::DropOverload));
        }
        if self.config.slow_start.is_some() {
            self.warm_up(&hosts);
        }
        let hosts = match &self.config.subsets {
            Some(config) => self.subsets.choose(config, &hosts, context.labels).ok_or_else(|| self.none_healthy())?,
            None => hosts.clone(),
        };
        let usable = hosts.usable(self.config.panic_threshold, self.localities());
        let fits = |host: &Rc<Host>| !context.avoid.iter().any(|failed| Rc::ptr_eq(failed, host));
        let by_hash = lb::is_hashed(&self.config.lb);
        let mut point = context.hash.filter(|_| by_hash).unwrap_or_else(|| fastrand::u64(..));
        let mut last = None;
        for attempt in 0..=context.attempts {
            let Some(group) = usable.group(point) else { break };
            let Some(host) = group.pick(&self.config.lb, point, attempt) else { break };
            if fits(host) {
                return Ok(host.clone());
            }
            last = Some(host.clone());
            if !by_hash {
                point = fastrand::u64(..);
            }
        }
        last.ok_or_else(|| self.none_healthy())
    }

    fn localities(&self) -> Localities {
        match self.config.locality_weighted {
            false => Localities::Alike,
            true if lb::is_hashed(&self.config.lb) => Localities::Hashed,
            true => Localities::Weighted,
        }
    }

    /// While endpoints are new their shares grow: the groups are made anew now and then.
    fn warm_up(&self, hosts: &HostSet) {
        let Some(slow_start) = &self.config.slow_start else { return };
        let now = Instant::now();
        if self.next_warm.get().is_some_and(|at| now < at) {
            return;
        }
        self.next_warm.set(Some(now + (slow_start.window / WARM_STEPS).clamp(WARM_FASTEST, WARM_SLOWEST)));
        let mut changed = false;
        for host in &hosts.all {
            changed |= host.warm(slow_start, now);
        }
        if changed {
            hosts.invalidate();
            self.subsets.invalidate();
        }
    }

    fn none_healthy(&self) -> UpstreamError {
        self.stats.cx_none_healthy.inc();
        UpstreamError::unsent(Reason::NoHealthyUpstream)
    }

    fn pick_destination(&self, context: &PickContext<'_>, port: Option<u16>) -> Result<Rc<Host>, UpstreamError> {
        let Some(mut destination) = context.destination else { return Err(self.none_healthy()) };
        if let Some(port) = port {
            destination.set_port(port);
        }
        Ok(self.destination(None, destination))
    }

    /// The host of a destination.
    fn destination(&self, name: Option<Strng>, address: SocketAddr) -> Rc<Host> {
        let key = (name, address);
        let mut known = self.destinations.borrow_mut();
        if let Some(host) = known.get(&key) {
            return host.clone();
        }
        if known.len() >= MAX_DESTINATIONS {
            known.retain(|_, host| host.active.get() > 0 || host.counts.cx_active.get() > 0);
        }
        let host = Host::new(EndpointAddress::Ip(address), Strng::from(""), 0);
        let host = Rc::new(Host { hostname: key.0.clone(), ..host });
        known.insert(key, host.clone());
        host
    }

    /// The endpoint that a name resolves to, for clusters that forward to where the client says.
    ///
    /// # Errors
    /// `NoHealthyUpstream` when the name does not resolve in time, `Overflow` when too many names are looked up already.
    pub async fn resolve(&self, resolver: &Arc<Resolver>, name: &str, port: u16) -> Result<Rc<Host>, UpstreamError> {
        let none = || UpstreamError::unsent(Reason::NoHealthyUpstream).with_detail("dns_resolution_failure");
        if name.len() > MAX_NAME {
            return Err(none());
        }
        let overflow = || UpstreamError::unsent(Reason::Overflow).with_detail("dns_cache_overflow");
        let name = name.to_ascii_lowercase();
        let mut known = resolver.watch_dynamic(&name).ok_or_else(overflow)?;
        let resolved = tokio::time::timeout(RESOLVE_WAIT, known.wait_for(|r| r.done)).await;
        let address = match resolved {
            // What needs no lookup is of the family that it is of.
            Ok(Ok(resolution)) if resolution.addresses.len() == 1 && is_address(&name) => {
                resolution.addresses.first().copied()
            }
            Ok(Ok(resolution)) => self.config.lookup.choose(&resolution.addresses).next(),
            _ => None,
        };
        Ok(self.dynamic_host(&name, SocketAddr::new(address.ok_or_else(none)?, port)))
    }

    /// The host of a name that a request brought and of the address that it resolved to.
    pub fn dynamic_host(&self, name: &str, address: SocketAddr) -> Rc<Host> {
        self.destination(Some(Strng::from(name)), address)
    }

    /// The transport for an endpoint: the first match of its metadata, else the cluster's own.
    pub fn transport(&self, host: &Host) -> &UpstreamTransport {
        if self.config.transport_matches.is_empty() {
            return &self.config.transport;
        }
        let metadata = host.metadata.borrow();
        let fits = |labels: &[(Strng, Strng)]| labels.iter().all(|label| metadata.transport.contains(label));
        let found = self.config.transport_matches.iter().find(|(labels, _)| fits(labels));
        found.map_or(&self.config.transport, |(_, transport)| transport)
    }

    /// A place for an HTTP request on a connection that is there.
    pub fn take(&self, host: &Rc<Host>, want: &Want<'_>) -> Option<Lease> {
        pool::take(self, host, want)
    }

    /// A place on a connection for an HTTP request.
    ///
    /// # Errors
    /// Nothing was sent.
    pub async fn acquire(self: &Rc<Self>, host: &Rc<Host>, want: Want<'_>) -> Result<Lease, UpstreamError> {
        pool::acquire(self, host, want).await
    }

    /// A connection of its own, for TCP.
    ///
    /// # Errors
    /// When connecting failed or the limit of connections is reached.
    pub async fn connect_tcp(
        self: &Rc<Self>,
        host: &Rc<Host>,
        sni: Option<&str>,
        client: Option<(SocketAddr, SocketAddr)>,
        source: Option<Source>,
    ) -> Result<(Io, Rc<ConnectionFacts>, TcpGuard), UpstreamError> {
        let Some(permit) = self.breaker.connection(host, Priority::Default) else {
            self.stats.cx_overflow.inc();
            return Err(UpstreamError::unsent(Reason::Overflow));
        };
        let transport = self.transport(host);
        let plan = Plan { cluster: self, transport, alpn: Alpn::Configured, sni, nameless: true, client, source };
        let (io, facts) = connect::connect(host, plan).await?;
        host.active.set(host.active.get() + 1);
        let guard = OpenGuard::unpooled(host, self, &facts, permit);
        Ok((io, facts, TcpGuard { host: host.clone(), _open: guard }))
    }

    /// Notes what a try said about its endpoint.
    pub fn report(&self, host: &Rc<Host>, outcome: Outcome) {
        let counts = &host.counts;
        crate::stats::bump(if outcome == Outcome::Success { &counts.rq_success } else { &counts.rq_error });
        let Some(policy) = self.config.outlier.clone() else { return };
        for cause in host.outlier.note(&policy, outcome) {
            host.outlier.restart(cause);
            self.detected(&policy, host, cause);
        }
        if self.health.rates_are_due(Instant::now(), policy.interval) {
            self.judge_rates(&policy);
        }
    }

    /// Compares the endpoints' rates of the interval that ends.
    fn judge_rates(&self, policy: &OutlierDetection) {
        let hosts = self.hosts.borrow().clone();
        let (answers, locals): (Vec<_>, Vec<_>) = hosts.all.iter().map(|host| host.outlier.take_rates()).unzip();
        for (rates, success, failure) in [
            (&answers, Cause::SuccessRate, Cause::FailurePercentage),
            (&locals, Cause::LocalSuccessRate, Cause::LocalFailurePercentage),
        ] {
            for at in outlier::below_the_others(&policy.success, rates) {
                self.detected(policy, &hosts.all[at], success);
            }
            for at in outlier::failing(&policy.failure, rates) {
                self.detected(policy, &hosts.all[at], failure);
            }
        }
    }

    /// Leaves an endpoint out, when the dice say so and not too many are out already.
    fn detected(&self, policy: &OutlierDetection, host: &Rc<Host>, cause: Cause) {
        // Requests may still be under way to an endpoint that is gone: it takes no place among those left out.
        let listed = || self.hosts.borrow().all.iter().any(|known| Rc::ptr_eq(known, host));
        let _one_at_a_time = self.health.judging();
        if host.outlier.is_ejected() || host.removed.get() || !listed() {
            return;
        }
        self.stats.outlier.detected[cause as usize].inc();
        let share = policy.enforcing[cause as usize];
        if share < 100 && fastrand::u32(..100) >= share {
            return;
        }
        let total = self.hosts.borrow().all.len();
        if !may_eject(policy, self.health.ejected(), total) {
            self.stats.outlier.overflow.inc();
            return;
        }
        let now = Instant::now();
        host.outlier.eject(policy, now);
        self.stats.outlier.enforced[cause as usize].inc();
        self.stats.outlier.total.inc();
        self.health.note_ejected(now + policy.interval.min(Duration::from_secs(1)));
        self.follow_health();
        tracing::info!(cluster = %self.config.name, host = %host.name, ?cause, "endpoint ejected");
    }

    /// Takes back ejected endpoints whose time is over.
    fn take_back(&self, now: Instant) {
        if !self.health.sweeps(now, SWEEP) {
            return;
        }
        let judging = self.health.judging();
        let back = self.hosts.borrow().all.iter().filter(|host| host.outlier.sweep(now)).count();
        if back > 0 {
            self.health.note_returned(back);
        }
        self.count_ejected(&judging);
    }

    /// An active check found it well: it need not wait for its time to be over.
    pub(crate) fn pardon(&self, host: &Host) {
        if self.config.outlier.as_ref().is_some_and(|policy| policy.check_takes_back) && host.outlier.is_ejected() {
            let _one_at_a_time = self.health.judging();
            if host.outlier.pardon(Instant::now()) {
                self.health.note_returned(1);
            }
        }
    }

    /// Closes idle connections whose time is over; takes endpoints back though nobody asks for them.
    pub(crate) fn sweep(&self, now: Instant) {
        // Whatever the count says: it is the workers' together, and they need not have the same endpoints at each moment.
        if self.hosts.borrow().all.iter().any(|host| host.outlier.is_ejected()) {
            self.take_back(now);
        }
        self.follow_health();
        for host in &self.hosts.borrow().all {
            host.pools.sweep(&self.config.limits, now);
        }
        let mut destinations = self.destinations.borrow_mut();
        destinations.retain(|_, host| {
            host.pools.sweep(&self.config.limits, now);
            host.active.get() > 0 || host.counts.cx_active.get() > 0 || Rc::strong_count(host) > 1
        });
    }

    /// Lets go of all connections as they become idle.
    pub(crate) fn drain(&self) {
        for host in &self.hosts.borrow().all {
            host.removed.set(true);
            host.pools.drain();
        }
        for host in self.destinations.borrow().values() {
            host.removed.set(true);
            host.pools.drain();
        }
    }
}

/// Counts a TCP connection until it ends.
pub struct TcpGuard {
    host: Rc<Host>,
    _open: OpenGuard,
}

impl Drop for TcpGuard {
    fn drop(&mut self) {
        self.host.active.set(self.host.active.get().saturating_sub(1));
    }
}

/// A host that is an address, in brackets or not.
fn is_address(host: &str) -> bool {
    host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests;
