//! The pick: which endpoint of a group gets a request. Functions of values; the random number, or the hash that stands for it,
//! is an argument.

use crate::hosts::Host;
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use weft_proxy_config::LbPolicy;
use weft_route::xxhash::xxhash64_seeded as xxhash64;

/// Largest ring or table built, whatever the configuration says: 8 Mi entries, Envoy's own bound.
const MAX_TABLE: u64 = 8 * 1024 * 1024;

/// The policy leads a request to its endpoint by a hash.
pub fn is_hashed(policy: &LbPolicy) -> bool {
    matches!(policy, LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. })
}

/// Endpoints that are picked from together, with the state of their balancing.
#[derive(Debug)]
pub struct Group {
    hosts: Vec<Rc<Host>>,
    /// Running sums of weights; empty when all are equal.
    cumulative: Vec<u64>,
    /// Each one's part of ring or table, where that is not its weight's.
    shares: Option<Vec<f64>>,
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
        let (current, ring, table) = (RefCell::default(), OnceCell::new(), OnceCell::new());
        Self { hosts, cumulative, shares: None, next, current, ring, table }
    }

    /// A group for hashing over localities of these weights: within one, hosts share by their own.
    pub fn of_localities(localities: Vec<(u32, Vec<Rc<Host>>)>) -> Self {
        let all: f64 = localities.iter().map(|(weight, _)| f64::from(*weight)).sum();
        let (mut hosts, mut shares) = (Vec::new(), Vec::new());
        for (weight, members) in localities.into_iter().filter(|(weight, _)| *weight > 0) {
            let sum = sum_of_weights(&members);
            shares.extend(members.iter().map(|host| f64::from(host.weight.get()) * (f64::from(weight) / all) / sum));
            hosts.extend(members);
        }
        Self { shares: Some(shares), ..Self::new(hosts) }
    }

    /// The hosts.
    pub fn hosts(&self) -> &[Rc<Host>] {
        &self.hosts
    }

    /// Picks a host by a random number, or by a hash in its place where the policy is one of hashes. `attempt`: how many hosts
    /// picked for the same request with the same hash were not wanted; it leads to others.
    pub fn pick(&self, policy: &LbPolicy, random: u64, attempt: u32) -> Option<&Rc<Host>> {
        if let [only] = &self.hosts[..] {
            return Some(only);
        }
        match policy {
            LbPolicy::RoundRobin => self.round_robin(),
            LbPolicy::LeastRequest { choices } => self.least_request(*choices, random),
            LbPolicy::Random | LbPolicy::ClusterProvided => self.hosts.get(self.weighted(random)),
            LbPolicy::RingHash { min_size, max_size } => self.on_ring(random, attempt, *min_size, *max_size),
            LbPolicy::Maglev { table_size } => self.in_table(random, attempt, *table_size),
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

    /// Each one's part of all weight.
    fn shares(&self) -> Vec<f64> {
        self.shares.clone().unwrap_or_else(|| {
            let sum = sum_of_weights(&self.hosts);
            self.hosts.iter().map(|host| f64::from(host.weight.get()) / sum).collect()
        })
    }

    /// The host at the hash's place; each further attempt goes on by one point, as Envoy's does.
    fn on_ring(&self, hash: u64, attempt: u32, min_size: u64, max_size: u64) -> Option<&Rc<Host>> {
        let ring = self.ring.get_or_init(|| self.build_ring(min_size, max_size));
        let found = ring.partition_point(|(point, _)| *point < hash);
        let at = if found < ring.len() { found } else { 0 };
        let (_, host) = ring.get((at + attempt as usize).checked_rem(ring.len())?)?;
        self.hosts.get(*host as usize)
    }

    /// Points in proportion to weight, placed by the hash of `ADDRESS_N`, as Envoy does.
    fn build_ring(&self, min_size: u64, max_size: u64) -> Vec<(u64, u32)> {
        let shares = self.shares();
        let least = shares.iter().copied().fold(1.0, f64::min);
        let max_size = max_size.clamp(1, MAX_TABLE);
        // Large enough that the lightest host has a point, and at least the least size.
        let size = ((least * min_size as f64).ceil() / least).clamp(1.0, max_size as f64);
        let mut ring = Vec::with_capacity(size as usize);
        let (mut target, mut done) = (0.0, 0.0);
        for (i, (host, share)) in self.hosts.iter().zip(shares).enumerate() {
            target += size * share;
            let mut n = 0u64;
            while done < target {
                ring.push((xxhash64(format!("{}_{n}", host.name).as_bytes(), 0), i as u32));
                n += 1;
                done += 1.0;
            }
        }
        ring.sort_unstable();
        ring
    }

    /// The host in the hash's slot; each further attempt asks by a hash that differs in many bits, the one that Envoy asks by.
    fn in_table(&self, hash: u64, attempt: u32, table_size: u64) -> Option<&Rc<Host>> {
        let table = self.table.get_or_init(|| self.build_table(table_size.clamp(1, MAX_TABLE)));
        let hash = hash ^ 0_u64.wrapping_sub(u64::from(attempt));
        self.hosts.get(*table.get((hash % table.len() as u64) as usize)? as usize)
    }

    /// Maglev's table: hosts take turns, in the order of their names, to claim their next preferred free slot, heavier ones more
    /// turns. All claim one in the first round; what is counted is what Envoy counts, in the same numbers, so that a table of
    /// ours and one of Envoy's lead a client to the same endpoint.
    fn build_table(&self, size: u64) -> Vec<u32> {
        let mut table = vec![u32::MAX; size as usize];
        let hosts = self.hosts.iter().zip(self.shares()).enumerate();
        let mut turns: Vec<Turn<'_>> = hosts.map(|(i, (host, share))| Turn::new(i, host, share, size)).collect();
        turns.sort_unstable_by_key(|turn| turn.key);
        let heaviest = turns.iter().map(|turn| turn.share).fold(0.0, f64::max);
        let (mut filled, mut round) = (0, 0.0);
        while filled < size && !turns.is_empty() {
            round += 1.0;
            for turn in &mut turns {
                if round * turn.share < turn.due || filled == size {
                    continue;
                }
                turn.due += heaviest;
                // `size` is a prime, so the walk meets every slot; the bound is for a size that is not.
                for _ in 0..=size {
                    let slot = ((turn.offset + turn.next * turn.skip) % size) as usize;
                    turn.next = (turn.next + 1) % size;
                    if table[slot] == u32::MAX {
                        table[slot] = turn.host;
                        filled += 1;
                        break;
                    }
                }
            }
        }
        table
    }
}

fn sum_of_weights(hosts: &[Rc<Host>]) -> f64 {
    hosts.iter().map(|host| u64::from(host.weight.get())).sum::<u64>() as f64
}

/// A host that claims slots of Maglev's table.
struct Turn<'a> {
    key: &'a str,
    host: u32,
    /// Its part of all weight.
    share: f64,
    /// It claims its next slot in the round in which its share has grown to this.
    due: f64,
    offset: u64,
    skip: u64,
    next: u64,
}

impl<'a> Turn<'a> {
    fn new(at: usize, host: &'a Host, share: f64, size: u64) -> Self {
        let key = &*host.name;
        let (offset, skip) = (xxhash64(key.as_bytes(), 0) % size, xxhash64(key.as_bytes(), 1) % (size - 1).max(1) + 1);
        Self { key, host: at as u32, share, due: 0.0, offset, skip, next: 0 }
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

    fn shares(group: &Group, policy: &LbPolicy) -> Vec<f64> {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut hits: HashMap<Strng, u32> = HashMap::new();
        const N: u32 = 20_000;
        for _ in 0..N {
            let host = group.pick(policy, rng.u64(..), 0).unwrap();
            *hits.entry(host.name.clone()).or_default() += 1;
        }
        group.hosts().iter().map(|h| f64::from(hits.get(&h.name).copied().unwrap_or(0)) / f64::from(N)).collect()
    }

    #[test]
    fn shares_follow_weights() {
        let policies = [
            (LbPolicy::RoundRobin, 0.001),
            (LbPolicy::Random, 0.02),
            (LbPolicy::LeastRequest { choices: 2 }, 0.02),
            (LbPolicy::RingHash { min_size: 4096, max_size: 1 << 20 }, 0.06),
            (LbPolicy::Maglev { table_size: 65_537 }, 0.02),
        ];
        for weights in [&[1, 1, 1][..], &[1, 2, 5]] {
            let total: u32 = weights.iter().sum();
            for (policy, tolerance) in &policies {
                for (share, weight) in shares(&group(weights), policy).iter().zip(weights) {
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
            let host = group.pick(&LbPolicy::LeastRequest { choices: 2 }, random, 0).unwrap();
            assert_eq!(host.active.get(), 0);
        }
    }

    /// Every proxy that is told of the same endpoints, in whatever order, makes the same table.
    #[test]
    fn a_table_does_not_depend_on_the_order_of_endpoints() {
        let one = group(&[3, 1, 5, 2, 4]);
        let other = Group::new(one.hosts().iter().rev().cloned().collect());
        for slot in 0..65_537 {
            let [a, b] = [&one, &other].map(|group| group.pick(&LbPolicy::Maglev { table_size: 65_537 }, slot, 0));
            assert_eq!(a.unwrap().name, b.unwrap().name, "{slot}");
        }
        // Also the lightest has its turn in the first round: in a small table it has a slot.
        let few = group(&[1, 1000]);
        let seen = |slot| few.pick(&LbPolicy::Maglev { table_size: 7 }, slot, 0).unwrap().name.clone();
        assert!((0..7).any(|slot| seen(slot) == few.hosts()[0].name));
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
                let before = four.pick(&policy, hash, 0).unwrap().name.clone();
                let after = three.pick(&policy, hash, 0).unwrap().name.clone();
                if before != four.hosts()[3].name && before != after {
                    moved += 1;
                }
            }
            assert!(moved < 150, "{policy:?} moved {moved}");
        }
    }

    /// What is not wanted is left by the hash, not by chance: the same request meets the same endpoints in the same order.
    #[test]
    fn further_attempts_lead_to_others() {
        for policy in
            [LbPolicy::RingHash { min_size: 1024, max_size: 1 << 20 }, LbPolicy::Maglev { table_size: 65_537 }]
        {
            let group = group(&[1; 4]);
            let mut seen = 0;
            for n in 0..1000_u64 {
                let hash = xxhash64(&n.to_le_bytes(), 0);
                let names = |attempt| group.pick(&policy, hash, attempt).unwrap().name.clone();
                assert_eq!(names(3), names(3));
                seen += (0..6).map(names).collect::<std::collections::HashSet<_>>().len();
            }
            // Six attempts at one of four: 3.29 of them on the average.
            assert!((3000..3600).contains(&seen), "{policy:?}: {seen}");
        }
    }

    /// Localities share by their weights whatever they hold, and the hash still decides alone.
    #[test]
    fn hashes_over_localities() {
        let all = group(&[1, 1, 3]);
        let (heavy, light) = all.hosts().split_at(1);
        let group = Group::of_localities(vec![(80, heavy.to_vec()), (20, light.to_vec()), (0, vec![])]);
        for policy in
            [LbPolicy::RingHash { min_size: 4096, max_size: 1 << 20 }, LbPolicy::Maglev { table_size: 65_537 }]
        {
            let mut hits = [0_u32; 3];
            for n in 0..20_000_u64 {
                let host = group.pick(&policy, xxhash64(&n.to_le_bytes(), 0), 0).unwrap();
                let at = group.hosts().iter().position(|known| Rc::ptr_eq(known, host)).unwrap();
                hits[at] += 1;
            }
            for (hits, want) in hits.iter().zip([0.8, 0.05, 0.15]) {
                assert!((f64::from(*hits) / 20_000.0 - want).abs() < 0.05, "{policy:?}: {hits} for {want}");
            }
        }
    }
}
