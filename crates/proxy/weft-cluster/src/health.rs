//! What the workers of a process know together of a cluster's endpoints: who fails in a row or more often than the others, who
//! is left out, and what active checks say. A worker adds what it saw; whoever notices first judges for all. Nothing here is
//! written by a request that succeeded, except rates, which each worker counts in memory of its own.

use crate::outlier::Rate;
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};
use weft_core::Strng;
use weft_proxy_config::EndpointAddress;
use weft_telemetry::Report;

/// How far back before its first use the process's clock begins.
const BEFORE: Duration = Duration::from_secs(3600);

/// A cluster's endpoints, as all workers see them.
#[derive(Debug, Default)]
pub struct ClusterHealth {
    hosts: Mutex<HashMap<EndpointAddress, Weak<HostHealth>, foldhash::fast::RandomState>>,
    ejected: AtomicUsize,
    changes: AtomicU64,
    judging: Mutex<()>,
    next_sweep: Moment,
    rates_end: Moment,
    checked: AtomicBool,
    /// Some worker has made a connection for a request.
    used: AtomicBool,
    /// Name in statistics, endpoints, and those of them that are healthy.
    told: Mutex<Option<(Strng, usize, usize)>>,
}

/// One endpoint, as all workers see it.
#[derive(Debug)]
pub struct HostHealth {
    /// 5xx, gateway and local errors in a row.
    pub(crate) rows: [AtomicU32; 3],
    counted: Mutex<Vec<Weak<Counted>>>,
    pub(crate) ejections: AtomicU32,
    pub(crate) until: Moment,
    pub(crate) returned: Moment,
    /// An active check has not found it well (yet).
    failed_check: AtomicBool,
}

/// What one worker has counted of an endpoint in this interval; on a line of the cache by itself.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Counted {
    answers: [AtomicU32; 2],
    locals: [AtomicU32; 2],
}

/// A moment that may not be set.
#[derive(Debug, Default)]
pub(crate) struct Moment(AtomicU64);

/// Nanoseconds since a time before anything here was used; never 0.
fn nanos(at: Instant) -> u64 {
    let since = at.saturating_duration_since(begin()).as_nanos();
    u64::try_from(since).unwrap_or(u64::MAX).max(1)
}

fn begin() -> Instant {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    *BEGIN.get_or_init(|| {
        let now = Instant::now();
        now.checked_sub(BEFORE).unwrap_or(now)
    })
}

impl Moment {
    pub fn get(&self) -> Option<Instant> {
        match self.0.load(Relaxed) {
            0 => None,
            nanos => Some(begin() + Duration::from_nanos(nanos)),
        }
    }

    pub fn set(&self, at: Option<Instant>) {
        self.0.store(at.map_or(0, nanos), Relaxed);
    }

    /// True for one caller alone once the moment has come; it is `next` from then on.
    pub fn pass(&self, now: Instant, next: Option<Instant>) -> bool {
        let at = self.0.load(Relaxed);
        at != 0 && at <= nanos(now) && self.0.compare_exchange(at, next.map_or(0, nanos), Relaxed, Relaxed).is_ok()
    }

    /// Unsets it; true when it was set, for one caller alone.
    pub fn clear(&self) -> bool {
        self.0.swap(0, Relaxed) != 0
    }

    fn set_if_unset(&self, at: Instant) {
        if self.0.load(Relaxed) == 0 {
            let _ = self.0.compare_exchange(0, nanos(at), Relaxed, Relaxed);
        }
    }
}

impl Default for HostHealth {
    fn default() -> Self {
        Self {
            rows: Default::default(),
            counted: Mutex::default(),
            ejections: AtomicU32::new(0),
            until: Moment::default(),
            returned: Moment::default(),
            // What was never checked is not known to be well; only clusters with checks ask.
            failed_check: AtomicBool::new(true),
        }
    }
}

impl HostHealth {
    /// Memory for what one worker counts.
    pub(crate) fn counted(&self) -> Arc<Counted> {
        let counted = Arc::new(Counted::default());
        locked(&self.counted).push(Arc::downgrade(&counted));
        counted
    }

    /// The rates of the interval that ends now, over all workers: answers, and local outcomes.
    pub(crate) fn take_rates(&self) -> (Rate, Rate) {
        let (mut answers, mut locals) = (Rate::default(), Rate::default());
        locked(&self.counted).retain(|counted| {
            let Some(counted) = counted.upgrade() else { return false };
            for (sum, cells) in [(&mut answers, &counted.answers), (&mut locals, &counted.locals)] {
                sum.total = sum.total.saturating_add(cells[0].swap(0, Relaxed));
                sum.good = sum.good.saturating_add(cells[1].swap(0, Relaxed));
            }
            true
        });
        (answers, locals)
    }

    /// An active check has not found it well.
    pub fn failed_check(&self) -> bool {
        self.failed_check.load(Relaxed)
    }
}

impl Counted {
    pub fn answer(&self, good: bool) {
        Self::add(&self.answers, good);
    }

    pub fn local(&self, good: bool) {
        Self::add(&self.locals, good);
    }

    fn add(cells: &[AtomicU32; 2], good: bool) {
        cells[0].fetch_add(1, Relaxed);
        if good {
            cells[1].fetch_add(1, Relaxed);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ClusterHealth {
    /// What is known of the endpoint with that address; the same for all workers.
    pub fn host(&self, address: &EndpointAddress) -> Arc<HostHealth> {
        let mut hosts = locked(&self.hosts);
        if let Some(known) = hosts.get(address).and_then(Weak::upgrade) {
            return known;
        }
        if hosts.len() == hosts.capacity() {
            hosts.retain(|_, host| host.strong_count() > 0);
        }
        let host = Arc::default();
        hosts.insert(address.clone(), Arc::downgrade(&host));
        host
    }

    /// Grows whenever an endpoint becomes healthy or ceases to be.
    pub fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Relaxed);
    }

    /// Endpoints that are left out.
    pub fn ejected(&self) -> usize {
        self.ejected.load(Relaxed)
    }

    /// Sets their number, while nobody else judges ([`ClusterHealth::judging`]).
    pub(crate) fn set_ejected(&self, count: usize) {
        if self.ejected() != count {
            self.ejected.store(count, Relaxed);
        }
    }

    /// Nobody else judges meanwhile.
    pub(crate) fn judging(&self) -> MutexGuard<'_, ()> {
        locked(&self.judging)
    }

    /// One more is left out; looked at again at `sweep`.
    pub(crate) fn note_ejected(&self, sweep: Instant) {
        self.ejected.fetch_add(1, Relaxed);
        self.next_sweep.set(Some(sweep));
        self.changed();
    }

    /// So many have come back.
    pub(crate) fn note_returned(&self, count: usize) {
        let _ = self.ejected.fetch_update(Relaxed, Relaxed, |ejected| Some(ejected.saturating_sub(count)));
        self.changed();
    }

    /// It is time to look who comes back, and this worker is the one to do it.
    pub(crate) fn sweeps(&self, now: Instant, again: Duration) -> bool {
        self.next_sweep.set_if_unset(now);
        self.next_sweep.pass(now, Some(now + again))
    }

    /// An interval of rates is over, and this worker is the one to judge.
    pub(crate) fn rates_are_due(&self, now: Instant, interval: Duration) -> bool {
        self.rates_end.set_if_unset(now + interval);
        self.rates_end.pass(now, Some(now + interval))
    }

    /// Notes what an active check says; true when that is news.
    pub(crate) fn note_check(&self, host: &HostHealth, failed: bool) -> bool {
        let changed = host.failed_check.swap(failed, Relaxed) != failed;
        if changed {
            self.changed();
        }
        changed
    }

    /// All endpoints that there were at first have been checked.
    pub fn is_checked(&self) -> bool {
        self.checked.load(Relaxed)
    }

    pub(crate) fn set_checked(&self) {
        self.checked.store(true, Relaxed);
    }

    /// Notes that a connection is made that is none of a check.
    pub(crate) fn note_traffic(&self) {
        if !self.had_traffic() {
            self.used.store(true, Relaxed);
        }
    }

    /// A worker of the process has made connections for requests.
    pub(crate) fn had_traffic(&self) -> bool {
        self.used.load(Relaxed)
    }

    /// Notes how many endpoints there are, for statistics.
    pub(crate) fn tell(&self, name: &Strng, all: usize, healthy: usize) {
        *locked(&self.told) = Some((name.clone(), all, healthy));
    }

    /// Gauges of the process.
    pub(crate) fn report(&self, report: &mut Report<'_>) {
        let Some((name, all, healthy)) = locked(&self.told).clone() else { return };
        let label = [("cluster_name", name)];
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        report.gauge("envoy_cluster_membership_total", &label, number(all));
        report.gauge("envoy_cluster_membership_healthy", &label, number(healthy));
        report.gauge("envoy_cluster_outlier_detection_ejections_active", &label, number(self.ejected()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> EndpointAddress {
        EndpointAddress::Ip(([10, 0, 0, 1], port).into())
    }

    #[test]
    fn workers_share_an_endpoint_while_one_has_it() {
        let health = ClusterHealth::default();
        let (one, two) = (health.host(&address(1)), health.host(&address(1)));
        assert!(Arc::ptr_eq(&one, &two) && !Arc::ptr_eq(&one, &health.host(&address(2))));
        one.ejections.store(3, Relaxed);
        drop((one, two));
        assert_eq!(health.host(&address(1)).ejections.load(Relaxed), 0, "forgotten with its last holder");
    }

    #[test]
    fn rates_are_those_of_all_workers() {
        let host = HostHealth::default();
        let (one, two) = (host.counted(), host.counted());
        one.answer(true);
        two.answer(false);
        two.local(true);
        assert_eq!(host.take_rates(), (Rate { total: 2, good: 1 }, Rate { total: 1, good: 1 }));
        drop(one);
        two.answer(true);
        assert_eq!(host.take_rates().0, Rate { total: 1, good: 1 });
        assert_eq!(locked(&host.counted).len(), 1);
    }

    #[test]
    fn a_moment_passes_for_one_alone() {
        let (health, now) = (ClusterHealth::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert!(!health.rates_are_due(now, second));
        assert!(!health.rates_are_due(now + second / 2, second));
        assert!(health.rates_are_due(now + second, second));
        assert!(!health.rates_are_due(now + second, second), "another worker at the same time");
        assert!(health.rates_are_due(now + second * 2, second));
    }
}
