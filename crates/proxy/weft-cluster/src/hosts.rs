//! The endpoints of a cluster as one worker sees them: which are usable now, by priority and locality. Built from an
//! [`EndpointSet`]; an endpoint that stays in the set keeps its connections and its history.

use crate::lb::Group;
use crate::outlier::OutlierState;
use crate::pool::HostPools;
use crate::stats::HostCounts;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Instant;
use weft_core::Strng;
use weft_proxy_config::{EndpointAddress, EndpointCheck, EndpointHealth, EndpointMetadata, EndpointSet, SlowStart};

/// The warmth of an endpoint that is not new.
const WARM: u32 = 1000;

/// One endpoint with its live state.
#[derive(Debug)]
pub struct Host {
    /// Where.
    pub address: EndpointAddress,
    /// The address as text, for logs: `10.0.0.1:9080`.
    pub name: Strng,
    /// Host name given with the endpoint.
    pub hostname: Option<Strng>,
    /// Locality, `region/zone/subzone`.
    pub locality: Strng,
    /// Priority.
    pub priority: u32,
    /// What the mesh knows of it.
    pub metadata: RefCell<Arc<EndpointMetadata>>,
    /// Weight.
    pub weight: Cell<u32>,
    /// Share of its weight while it warms up, in thousandths.
    pub warmth: Cell<u32>,
    /// Since when it is served from.
    pub since: Cell<Instant>,
    /// Health as the control plane says.
    pub health: Cell<EndpointHealth>,
    /// Requests under way in this worker.
    pub active: Cell<u32>,
    /// It is no longer part of the cluster.
    pub removed: Cell<bool>,
    /// Outlier detection.
    pub outlier: OutlierState,
    /// How it is checked.
    pub(crate) check: Cell<EndpointCheck>,
    /// Active checks say whether it is well.
    pub checked: Cell<bool>,
    /// Which round of active checks is on it; 0 = none.
    pub(crate) checker: Cell<u64>,
    /// Counts.
    pub counts: HostCounts,
    /// Connections of the whole process, where the cluster limits them.
    pub connections: OnceCell<Arc<AtomicU32>>,
    /// Connections.
    pub pools: HostPools,
}

impl Host {
    /// A host with nothing going on.
    pub fn new(address: EndpointAddress, locality: Strng, priority: u32) -> Self {
        let name = match &address {
            EndpointAddress::Ip(ip) => Strng::from(ip.to_string()),
            EndpointAddress::Name(name, port) => Strng::from(format!("{name}:{port}")),
            EndpointAddress::Unix(path) => path.clone(),
        };
        Self {
            address,
            name,
            hostname: None,
            locality,
            priority,
            metadata: RefCell::default(),
            weight: Cell::new(1),
            warmth: Cell::new(WARM),
            since: Cell::new(Instant::now()),
            health: Cell::default(),
            active: Cell::new(0),
            removed: Cell::new(false),
            outlier: OutlierState::default(),
            check: Cell::default(),
            checked: Cell::new(false),
            checker: Cell::new(0),
            counts: HostCounts::default(),
            connections: OnceCell::new(),
            pools: HostPools::default(),
        }
    }

    /// IP and port, when it has them.
    pub fn ip(&self) -> Option<SocketAddr> {
        match &self.address {
            EndpointAddress::Ip(ip) => Some(*ip),
            _ => None,
        }
    }

    /// Sets its share by how long it has been there; true when that changed. Envoy's rule: the part of the window that is
    /// over, to the power of one over the aggression, but not below the least share.
    pub(crate) fn warm(&self, how: &SlowStart, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.since.get());
        let share = if age >= how.window {
            1.0
        } else {
            let part = age.as_secs_f64().max(0.001) / how.window.as_secs_f64();
            part.powf(1.0 / how.aggression).max(how.least)
        };
        let warmth = ((share * f64::from(WARM)) as u32).clamp(1, WARM);
        self.warmth.replace(warmth) != warmth
    }

    /// Weight while it warms up.
    pub(crate) fn present_weight(&self) -> u64 {
        u64::from(self.weight.get()) * u64::from(self.warmth.get())
    }

    /// May get new requests.
    pub fn is_usable(&self) -> bool {
        self.health.get() == EndpointHealth::Healthy
            && !self.outlier.is_ejected()
            && !self.fails_checks()
            && !self.removed.get()
    }

    /// Active checks have not found it well.
    pub fn fails_checks(&self) -> bool {
        self.checked.get() && self.outlier.health().failed_check()
    }
}

/// All endpoints of a cluster.
#[derive(Debug, Default)]
pub struct HostSet {
    /// All of them.
    pub all: Vec<Rc<Host>>,
    /// By priority.
    levels: Vec<Vec<LocalityHosts>>,
    /// Share of traffic to drop, in parts per million.
    pub drop: u32,
    overprovisioning: u32,
    usable: RefCell<Option<Rc<Usable>>>,
}

#[derive(Debug)]
struct LocalityHosts {
    weight: u32,
    hosts: Vec<Rc<Host>>,
}

/// What localities mean to the balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Localities {
    /// Nothing: all endpoints of a priority stand together.
    Alike,
    /// Chance chooses one by its weight, then an endpoint in it.
    Weighted,
    /// Their weights are shares of one ring or table, so that the hash alone decides.
    Hashed,
}

/// Which endpoints get traffic now. Made anew after each change of health.
#[derive(Debug, Default)]
pub struct Usable {
    /// Percent of traffic and groups, by priority.
    pub levels: Vec<UsableLevel>,
}

/// One priority.
#[derive(Debug)]
pub struct UsableLevel {
    /// Share of traffic in percent.
    pub load: u32,
    /// Groups by locality with their weights; one group without locality weights.
    pub groups: Vec<(u64, Group)>,
}

impl HostSet {
    /// Builds the set; `known` are hosts to keep, by address. Names must have been resolved by `resolve`, which gives the
    /// addresses of a named endpoint.
    pub fn build(
        endpoints: &EndpointSet,
        known: &HostSet,
        resolve: &dyn Fn(&EndpointAddress) -> Vec<EndpointAddress>,
    ) -> Self {
        let mut kept: HashMap<EndpointAddress, Rc<Host>, foldhash::fast::RandomState> =
            known.all.iter().map(|host| (host.address.clone(), host.clone())).collect();
        let mut set = HostSet { drop: endpoints.drop, overprovisioning: endpoints.overprovisioning, ..Self::default() };
        for locality in &endpoints.localities {
            let level = usize::try_from(locality.priority).unwrap_or(usize::MAX).min(127);
            while set.levels.len() <= level {
                set.levels.push(Vec::new());
            }
            let mut hosts = Vec::with_capacity(locality.endpoints.len());
            for endpoint in &locality.endpoints {
                for address in resolve(&endpoint.address) {
                    let host = match kept.remove(&address) {
                        Some(host) if host.hostname == endpoint.hostname && host.priority == locality.priority => host,
                        _ => {
                            let host = Host::new(address, locality.locality.clone(), locality.priority);
                            Rc::new(Host { hostname: endpoint.hostname.clone(), ..host })
                        }
                    };
                    host.weight.set(endpoint.weight.max(1));
                    host.health.set(endpoint.health);
                    host.check.set(endpoint.check);
                    if **host.metadata.borrow() != *endpoint.metadata {
                        host.metadata.replace(endpoint.metadata.clone());
                    }
                    set.all.push(host.clone());
                    hosts.push(host);
                }
            }
            if !hosts.is_empty() {
                set.levels[level].push(LocalityHosts { weight: locality.weight, hosts });
            }
        }
        set
    }

    /// The hosts that are wanted, with their priorities and localities.
    pub fn filtered(&self, wanted: impl Fn(&Host) -> bool) -> Self {
        let keep = |hosts: &Vec<Rc<Host>>| hosts.iter().filter(|h| wanted(h)).cloned().collect::<Vec<_>>();
        let level = |level: &Vec<LocalityHosts>| {
            let localities = level.iter().map(|l| LocalityHosts { weight: l.weight, hosts: keep(&l.hosts) });
            localities.filter(|l| !l.hosts.is_empty()).collect()
        };
        Self {
            all: keep(&self.all),
            levels: self.levels.iter().map(level).collect(),
            drop: self.drop,
            overprovisioning: self.overprovisioning,
            usable: RefCell::default(),
        }
    }

    /// Hosts of `self` that `next` does not have: their connections are closed as they become idle.
    pub fn retire_missing(&self, next: &HostSet) {
        for host in &self.all {
            if !next.all.iter().any(|kept| Rc::ptr_eq(kept, host)) {
                host.removed.set(true);
                host.pools.drain();
            }
        }
    }

    /// Forgets what is usable: health changed.
    pub fn invalidate(&self) {
        self.usable.replace(None);
    }

    /// What gets traffic now.
    pub fn usable(&self, panic_threshold: u8, localities: Localities) -> Rc<Usable> {
        if let Some(usable) = &*self.usable.borrow() {
            return usable.clone();
        }
        let usable = Rc::new(self.compute(panic_threshold, localities));
        self.usable.replace(Some(usable.clone()));
        usable
    }

    /// Envoy's rule for priorities: a level carries as much as its healthy share times the overprovisioning factor; the
    /// rest spills over to the next. When all together cannot carry 100 %, levels below the panic threshold ignore health.
    fn compute(&self, panic_threshold: u8, localities: Localities) -> Usable {
        let factor = u64::from(if self.overprovisioning == 0 { 140 } else { self.overprovisioning });
        let count = |level: &Vec<LocalityHosts>| {
            let hosts = level.iter().flat_map(|l| &l.hosts);
            let total = hosts.clone().count() as u64;
            (total, hosts.filter(|h| h.is_usable()).count() as u64)
        };
        let counts: Vec<(u64, u64)> = self.levels.iter().map(count).collect();
        let available: Vec<u64> =
            counts.iter().map(|(total, usable)| (usable * factor).checked_div(*total).unwrap_or(0).min(100)).collect();
        let sum: u64 = available.iter().sum::<u64>().min(100);
        let mut left = 100;
        let mut levels = Vec::with_capacity(self.levels.len());
        for (i, level) in self.levels.iter().enumerate() {
            let (total, usable) = counts[i];
            let panic = sum < 100 && total > 0 && usable * 100 < total * u64::from(panic_threshold);
            let share = if sum == 0 {
                // Nothing is healthy anywhere: the first level that has endpoints and may panic takes all.
                if panic { left } else { 0 }
            } else {
                (available[i] * 100).checked_div(sum).unwrap_or(0).min(left)
            };
            left -= share;
            levels.push(UsableLevel { load: share as u32, groups: groups(level, panic, localities, factor) });
        }
        // Rounding leaves a little; it goes to the first level that carries anything.
        if left > 0
            && left < 100
            && let Some(first) = levels.iter_mut().find(|l| l.load > 0)
        {
            first.load += left as u32;
        }
        Usable { levels }
    }
}

fn groups(level: &[LocalityHosts], panic: bool, localities: Localities, factor: u64) -> Vec<(u64, Group)> {
    let chosen =
        |l: &LocalityHosts| -> Vec<Rc<Host>> { l.hosts.iter().filter(|h| panic || h.is_usable()).cloned().collect() };
    if localities == Localities::Alike || level.iter().all(|l| l.weight == 0) {
        let hosts: Vec<Rc<Host>> = level.iter().flat_map(chosen).collect();
        return if hosts.is_empty() { Vec::new() } else { vec![(1, Group::new(hosts))] };
    }
    if localities == Localities::Hashed {
        let group = Group::of_localities(level.iter().map(|l| (l.weight, chosen(l))).collect());
        return if group.hosts().is_empty() { Vec::new() } else { vec![(1, group)] };
    }
    level
        .iter()
        .filter_map(|l| {
            let hosts = chosen(l);
            // A locality that lost endpoints gets less, beyond what overprovisioning makes up for.
            let availability = (hosts.len() as u64 * factor).checked_div(l.hosts.len() as u64).unwrap_or(0).min(100);
            let weight = u64::from(l.weight) * availability;
            (weight > 0 && !hosts.is_empty()).then(|| (weight, Group::new(hosts)))
        })
        .collect()
}

impl Usable {
    /// The group that a request goes to, by a random number. `None` when there is none.
    pub fn group(&self, random: u64) -> Option<&Group> {
        let level = match &self.levels[..] {
            [only] if only.load > 0 => only,
            levels => {
                let mut point = (random % 100) as u32;
                levels.iter().find(|level| {
                    let hit = point < level.load;
                    point = point.saturating_sub(level.load);
                    hit
                })?
            }
        };
        match &level.groups[..] {
            [] => None,
            [(_, only)] => Some(only),
            groups => {
                let total: u64 = groups.iter().map(|(weight, _)| weight).sum();
                let mut point = (random >> 7) % total.max(1);
                let found = groups.iter().find(|(weight, _)| {
                    let hit = point < *weight;
                    point = point.saturating_sub(*weight);
                    hit
                });
                found.map(|(_, group)| group)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use weft_proxy_config::{Endpoint, LocalityEndpoints};

    fn endpoint(port: u16, health: EndpointHealth) -> Endpoint {
        Endpoint {
            address: EndpointAddress::Ip(SocketAddr::from(([10, 0, 0, 1], port))),
            weight: 1,
            health,
            hostname: None,
            check: EndpointCheck::default(),
            metadata: Arc::default(),
        }
    }

    fn locality(priority: u32, weight: u32, base: u16, healthy: usize, sick: usize) -> LocalityEndpoints {
        let endpoints = (0..healthy + sick)
            .map(|i| {
                let health = if i < healthy { EndpointHealth::Healthy } else { EndpointHealth::Unhealthy };
                endpoint(base + i as u16, health)
            })
            .collect();
        LocalityEndpoints { locality: Strng::from(format!("r/{base}")), priority, weight, endpoints }
    }

    fn set(localities: Vec<LocalityEndpoints>) -> HostSet {
        let endpoints = EndpointSet { localities, drop: 0, overprovisioning: 140 };
        HostSet::build(&endpoints, &HostSet::default(), &|a| vec![a.clone()])
    }

    #[test]
    fn priorities_spill_over() {
        // (healthy, sick) at priorities 0 and 1 → load of each, as Envoy's documentation tabulates it.
        for (p0, p1, loads) in [
            ((4, 0), (4, 0), [100, 0]),
            ((3, 1), (4, 0), [100, 0]),
            ((2, 2), (4, 0), [70, 30]),
            ((1, 3), (4, 0), [35, 65]),
            ((0, 4), (4, 0), [0, 100]),
            ((1, 3), (1, 3), [50, 50]),
        ] {
            let set = set(vec![locality(0, 1, 1, p0.0, p0.1), locality(1, 1, 100, p1.0, p1.1)]);
            let usable = set.usable(0, Localities::Alike);
            assert_eq!([usable.levels[0].load, usable.levels[1].load], loads, "{p0:?} {p1:?}");
        }
    }

    #[test]
    fn panic_uses_all() {
        let set = set(vec![locality(0, 1, 1, 0, 3)]);
        assert!(set.usable(0, Localities::Alike).group(5).is_none());
        set.invalidate();
        assert_eq!(set.usable(50, Localities::Alike).group(5).map(|g| g.hosts().len()), Some(3));
    }

    #[test]
    fn localities_by_weight() {
        let set = set(vec![locality(0, 80, 1, 2, 0), locality(0, 20, 10, 2, 0)]);
        let usable = set.usable(0, Localities::Weighted);
        let weights: Vec<u64> = usable.levels[0].groups.iter().map(|(w, _)| *w).collect();
        assert_eq!(weights, [8000, 2000]);
        let in_first = |r: u64| usable.group(r << 7).is_some_and(|g| &*g.hosts()[0].name == "10.0.0.1:1");
        assert_eq!((0..10_000u64).filter(|r| in_first(*r)).count(), 8000);
    }

    #[test]
    fn hashing_over_localities_is_one_group() {
        let set = set(vec![locality(0, 80, 1, 2, 0), locality(0, 20, 10, 2, 1)]);
        let usable = set.usable(0, Localities::Hashed);
        for random in [0, 77, u64::MAX] {
            assert_eq!(usable.group(random).map(|group| group.hosts().len()), Some(4));
        }
    }

    #[test]
    fn new_endpoints_get_their_share_little_by_little() {
        let set = set(vec![locality(0, 1, 1, 1, 0)]);
        let (host, how) = (&set.all[0], SlowStart { window: Duration::from_secs(10), aggression: 1.0, least: 0.1 });
        let begin = host.since.get();
        for (seconds, aggression, thousandths) in
            [(0, 1.0, 100), (1, 1.0, 100), (5, 1.0, 500), (5, 2.0, 707), (10, 1.0, 1000), (99, 1.0, 1000)]
        {
            host.warm(&SlowStart { aggression, ..how }, begin + Duration::from_secs(seconds));
            assert_eq!(host.present_weight(), thousandths, "after {seconds} s at {aggression}");
        }
    }

    #[test]
    fn hosts_that_stay_keep_their_state() {
        let first = set(vec![locality(0, 1, 1, 2, 0)]);
        first.all[0].active.set(7);
        let endpoints = EndpointSet { localities: vec![locality(0, 1, 1, 1, 0)], drop: 0, overprovisioning: 140 };
        let second = HostSet::build(&endpoints, &first, &|a| vec![a.clone()]);
        first.retire_missing(&second);
        assert!(Rc::ptr_eq(&first.all[0], &second.all[0]));
        assert_eq!(second.all[0].active.get(), 7);
        assert!(first.all[1].removed.get() && !first.all[0].removed.get());
    }
}
