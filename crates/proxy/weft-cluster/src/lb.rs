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

    /// Maglev's table: hosts take turns, in the order of their names, to claim their next preferred free slot, heavier ones more
    /// turns. All claim one in the first round; what is counted is what Envoy counts, in the same numbers, so that a table of
    /// ours and one of Envoy's lead a client to the same endpoint.
    fn build_table(&self, size: u64) -> Vec<u32> {
        let mut table = vec![u32::MAX; size as usize];
        let total = self.hosts.iter().map(|h| u64::from(h.weight.get())).sum::<u64>() as f64;
        let mut turns: Vec<Turn<'_>> =
            self.hosts.iter().enumerate().map(|(i, host)| Turn::new(i, host, total, size)).collect();
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
    fn new(at: usize, host: &'a Host, total: f64, size: u64) -> Self {
        let key = host.hostname.as_deref().unwrap_or(&host.name);
        let (offset, skip) = (xxhash64(key.as_bytes(), 0) % size, xxhash64(key.as_bytes(), 1) % (size - 1).max(1) + 1);
        Self { key, host: at as u32, share: f64::from(host.weight.get()) / total, due: 0.0, offset, skip, next: 0 }
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

    /// Every proxy that is told of the same endpoints, in whatever order, makes the same table.
    #[test]
    fn a_table_does_not_depend_on_the_order_of_endpoints() {
        let one = group(&[3, 1, 5, 2, 4]);
        let other = Group::new(one.hosts().iter().rev().cloned().collect());
        for slot in 0..65_537 {
            let [a, b] =
                [&one, &other].map(|group| group.pick(&LbPolicy::Maglev { table_size: 65_537 }, Some(slot), 0));
            assert_eq!(a.unwrap().name, b.unwrap().name, "{slot}");
        }
        // Also the lightest has its turn in the first round: in a small table it has a slot.
        let few = group(&[1, 1000]);
        let seen = |slot| few.pick(&LbPolicy::Maglev { table_size: 7 }, Some(slot), 0).unwrap().name.clone();
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
