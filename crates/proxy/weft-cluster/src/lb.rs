//! The pick: which endpoint of a group gets a request. Functions of values; the random number and the hash are arguments.

use crate::hosts::Host;
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use weft_proxy_config::LbPolicy;
use weft_route::xxhash::xxhash64_seeded as xxhash64;

/// Largest ring or table built, whatever the configuration says: 8 Mi entries, Envoy's own bound.
const MAX_TABLE: u64 = 8 * 1024 * 1024;

/// Endpoints that are picked from together, with the state of their balancing.
#[derive(Debug)]
pub struct Group {
    hosts: Vec<Rc<Host>>,
    /// Running sums of weights; empty when all are equal.
    cumulative: Vec<u64>,
    next: Cell<usize>,
    current: RefCell<Vec<i64>>,
    ring: OnceCell<Vec<(u64, u32)>>,
    table: OnceCell<Vec<u32>>,
}

impl Group {
    /// A group of these hosts.
    pub fn new(hosts: Vec<Rc<Host>>) -> Self {
        let equal = hosts.windows(2).all(|pair| pair[0].present_weight() == pair[1].present_weight());
        let mut sum = 0;
        let mut cumulative = Vec::new();
        if !equal {
            for host in &hosts {
                sum += host.present_weight();
                cumulative.push(sum);
            }
        }
        // A start of its own for each worker and each change: else all would begin with the first endpoint.
        let next = Cell::new(fastrand::usize(..hosts.len().max(1)));
        Self { hosts, cumulative, next, current: RefCell::default(), ring: OnceCell::new(), table: OnceCell::new() }
    }

    /// The hosts.
    pub fn hosts(&self) -> &[Rc<Host>] {
        &self.hosts
    }

    /// Picks a host. `hash`: for ring hash and Maglev; without one they pick at random.
    pub fn pick(&self, policy: &LbPolicy, hash: Option<u64>, random: u64) -> Option<&Rc<Host>> {
        if let [only] = &self.hosts[..] {
            return Some(only);
        }
        match policy {
            LbPolicy::RoundRobin => self.round_robin(),
            LbPolicy::LeastRequest { choices } => self.least_request(*choices, random),
            LbPolicy::Random | LbPolicy::ClusterProvided => self.hosts.get(self.weighted(random)),
            LbPolicy::RingHash { min_size, max_size } => match hash {
                Some(hash) => self.on_ring(hash, *min_size, *max_size),
                None => self.hosts.get(self.weighted(random)),
            },
            LbPolicy::Maglev { table_size } => match hash {
                Some(hash) => self.in_table(hash, *table_size),
                None => self.hosts.get(self.weighted(random)),
            },
        }
    }

    /// An index by weight.
    fn weighted(&self, random: u64) -> usize {
        match self.cumulative.last() {
            None => (random % self.hosts.len().max(1) as u64) as usize,
            Some(total) => {
                let point = random % total.max(&1);
                self.cumulative.partition_point(|sum| *sum <= point)
            }
        }
    }

    fn round_robin(&self) -> Option<&Rc<Host>> {
        if self.cumulative.is_empty() {
            let at = self.next.get();
            self.next.set(at.wrapping_add(1));
            return self.hosts.get(at % self.hosts.len().max(1));
        }
        // Smooth weighted round robin: each gains its weight, the richest pays the total.
        let mut current = self.current.borrow_mut();
        current.resize(self.hosts.len(), 0);
        let mut total = 0;
        let mut best = 0;
        for (i, host) in self.hosts.iter().enumerate() {
            let weight = i64::try_from(host.present_weight()).unwrap_or(i64::MAX / 1024);
            total += weight;
            current[i] += weight;
            if current[i] > current[best] {
                best = i;
            }
        }
        current[best] -= total;
        self.hosts.get(best)
    }

    /// The least busy of `choices` picked by weight.
    fn least_request(&self, choices: u32, random: u64) -> Option<&Rc<Host>> {
        let mut seed = random;
        let mut best: Option<&Rc<Host>> = None;
        let mut last = usize::MAX;
        for _ in 0..choices.clamp(1, 8) {
            seed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23) ^ random;
            let mut at = self.weighted(seed >> 8);
            if at == last && self.cumulative.is_empty() {
                at = (at + 1) % self.hosts.len();
            }
            last = at;
            let host = self.hosts.get(at)?;
            if best.is_none_or(|b| host.active.get() < b.active.get()) {
                best = Some(host);
            }
        }
        best
    }

    fn on_ring(&self, hash: u64, min_size: u64, max_size: u64) -> Option<&Rc<Host>> {
        let ring = self.ring.get_or_init(|| self.build_ring(min_size, max_size));
        let at = ring.partition_point(|(point, _)| *point < hash);
        let (_, host) = ring.get(at).or_else(|| ring.first())?;
        self.hosts.get(*host as usize)
    }

    /// Points in proportion to weight, placed by the hash of `ADDRESS_N`, as Envoy does.
    fn build_ring(&self, min_size: u64, max_size: u64) -> Vec<(u64, u32)> {
        let total: u64 = self.hosts.iter().map(|h| u64::from(h.weight.get())).sum();
        let least = self.hosts.iter().map(|h| u64::from(h.weight.get())).min().unwrap_or(1);
        let max_size = max_size.clamp(1, MAX_TABLE);
        // Large enough that the lightest host has a point, and at least the least size.
        let scale = (min_size as f64 * least as f64 / total as f64).ceil() * total as f64 / least as f64;
        let size = (scale as u64).clamp(1, max_size);
        let mut ring = Vec::with_capacity(size as usize);
        let (mut target, mut done) = (0.0, 0.0);
        for (i, host) in self.hosts.iter().enumerate() {
            target += size as f64 * f64::from(host.weight.get()) / total as f64;
            let key = host.hostname.as_deref().unwrap_or(&host.name);
            let mut n = 0u64;
            while done < target {
                ring.push((xxhash64(format!("{key}_{n}").as_bytes(), 0), i as u32));
                n += 1;
                done += 1.0;
            }
        }
        ring.sort_unstable();
        ring
    }

    fn in_table(&self, hash: u64, table_size: u64) -> Option<&Rc<Host>> {
        let table = self.table.get_or_init(|| self.build_table(table_size.clamp(1, MAX_TABLE)));
        self.hosts.get(*table.get((hash % table.len() as u64) as usize)? as usize)
    }

    /// Maglev's table: hosts take turns to claim their next preferred free slot, heavier ones more turns.
    fn build_table(&self, size: u64) -> Vec<u32> {
        let mut table = vec![u32::MAX; size as usize];
        let heaviest = self.hosts.iter().map(|h| h.weight.get()).max().unwrap_or(1);
        let prefs: Vec<(u64, u64)> = self
            .hosts
            .iter()
            .map(|host| {
                let key = host.hostname.as_deref().unwrap_or(&host.name).as_bytes();
                (xxhash64(key, 0) % size, xxhash64(key, 1) % (size - 1).max(1) + 1)
            })
            .collect();
        let mut next = vec![0u64; self.hosts.len()];
        let mut credit = vec![0u64; self.hosts.len()];
        let mut filled = 0;
        while filled < size {
            for (i, host) in self.hosts.iter().enumerate() {
                credit[i] += u64::from(host.weight.get());
                if credit[i] < u64::from(heaviest) || filled == size {
                    continue;
                }
                credit[i] -= u64::from(heaviest);
                let (offset, skip) = prefs[i];
                // `size` is a prime, so the walk meets every slot; the bound is for a size that is not.
                for _ in 0..=size {
                    let slot = ((offset + next[i] * skip) % size) as usize;
                    next[i] = (next[i] + 1) % size;
                    if table[slot] == u32::MAX {
                        table[slot] = i as u32;
                        filled += 1;
                        break;
                    }
                }
            }
            if self.hosts.is_empty() {
                break;
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use weft_core::Strng;
    use weft_proxy_config::EndpointAddress;

    fn group(weights: &[u32]) -> Group {
        let hosts = weights
            .iter()
            .enumerate()
            .map(|(i, weight)| {
                let address = EndpointAddress::Ip(([10, 0, 0, i as u8 + 1], 80).into());
                let host = Host::new(address, Strng::from(""), 0);
                host.weight.set(*weight);
                Rc::new(host)
            })
            .collect();
        Group::new(hosts)
    }

    fn shares(group: &Group, policy: &LbPolicy, hashed: bool) -> Vec<f64> {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut hits: HashMap<Strng, u32> = HashMap::new();
        const N: u32 = 20_000;
        for _ in 0..N {
            let hash = hashed.then(|| rng.u64(..));
            let host = group.pick(policy, hash, rng.u64(..)).unwrap();
            *hits.entry(host.name.clone()).or_default() += 1;
        }
        group.hosts().iter().map(|h| f64::from(hits.get(&h.name).copied().unwrap_or(0)) / f64::from(N)).collect()
    }

    #[test]
    fn shares_follow_weights() {
        let policies = [
            (LbPolicy::RoundRobin, false, 0.001),
            (LbPolicy::Random, false, 0.02),
            (LbPolicy::LeastRequest { choices: 2 }, false, 0.02),
            (LbPolicy::RingHash { min_size: 4096, max_size: 1 << 20 }, true, 0.06),
            (LbPolicy::Maglev { table_size: 65_537 }, true, 0.02),
        ];
        for weights in [&[1, 1, 1][..], &[1, 2, 5]] {
            let total: u32 = weights.iter().sum();
            for (policy, hashed, tolerance) in &policies {
                for (share, weight) in shares(&group(weights), policy, *hashed).iter().zip(weights) {
                    let want = f64::from(*weight) / f64::from(total);
                    assert!((share - want).abs() < *tolerance, "{policy:?} {weights:?}: {share} for {want}");
                }
            }
        }
    }

    #[test]
    fn the_less_busy_of_two() {
        let group = group(&[1, 1]);
        group.hosts()[0].active.set(5);
        for random in 0..100 {
            let host = group.pick(&LbPolicy::LeastRequest { choices: 2 }, None, random).unwrap();
            assert_eq!(host.active.get(), 0);
        }
    }

    #[test]
    fn hashes_stick_when_others_leave() {
        for policy in
            [LbPolicy::RingHash { min_size: 1024, max_size: 1 << 20 }, LbPolicy::Maglev { table_size: 65_537 }]
        {
            let (four, three) = (group(&[1; 4]), group(&[1; 3]));
            let mut moved = 0;
            for n in 0..1000u64 {
                let hash = xxhash64(&n.to_le_bytes(), 0);
                let before = four.pick(&policy, Some(hash), 0).unwrap().name.clone();
                let after = three.pick(&policy, Some(hash), 0).unwrap().name.clone();
                if before != four.hosts()[3].name && before != after {
                    moved += 1;
                }
            }
            assert!(moved < 150, "{policy:?} moved {moved}");
        }
    }
}
