//! Metrics without contention: each worker writes to a shard of its own, and a scrape adds the shards up.
//!
//! A cell has one writer, so an increment is a plain load and store (no locked instruction); readers see whole values
//! because the cell is atomic. Metrics are created on first use: a cluster that is never called costs nothing. Looking a
//! metric up takes a lock and a hash; callers keep the handle.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use weft_core::Strng;

/// Upper bounds of histogram buckets, in milliseconds or bytes: Envoy's defaults.
pub const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10000.0,
    30000.0,
    60000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// Name and value of a label.
pub type Label = (&'static str, Strng);

/// Series a shard may hold before further ones are folded into one overflow series per name: a bound on memory when label
/// values come from outside.
pub const MAX_SERIES: usize = 100_000;

/// All shards of a process.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    shards: Arc<Mutex<Vec<Arc<Mutex<Series>>>>>,
    sources: Arc<Mutex<Vec<Weak<dyn Source>>>>,
}

/// Somebody who knows values that are made only when they are asked for.
pub trait Source: std::fmt::Debug + Send + Sync {
    /// Adds them to what is collected.
    fn report(&self, report: &mut Report<'_>);
}

/// What has been collected, for a [`Source`] to read and to add to.
#[derive(Debug)]
pub struct Report<'a>(&'a mut std::collections::BTreeMap<Key, Value>);

impl Report<'_> {
    /// Adds a gauge.
    pub fn gauge(&mut self, name: &'static str, labels: &[Label], value: i64) {
        self.0.insert(Key { name, labels: labels.to_vec() }, Value::Gauge(value));
    }

    /// Adds a counter.
    pub fn counter(&mut self, name: &'static str, labels: &[Label], value: u64) {
        self.0.insert(Key { name, labels: labels.to_vec() }, Value::Counter(value));
    }

    /// The counter or gauge of that name and those labels, summed up over the workers; 0 when there is none.
    pub fn value(&self, name: &'static str, labels: &[Label]) -> i64 {
        match self.0.get(&Key { name, labels: labels.to_vec() }) {
            Some(Value::Gauge(n)) => *n,
            Some(Value::Counter(n)) => i64::try_from(*n).unwrap_or(i64::MAX),
            _ => 0,
        }
    }
}

/// One worker's metrics. Clone handles freely inside the worker; give each thread its own shard.
#[derive(Debug, Clone)]
pub struct Shard {
    series: Arc<Mutex<Series>>,
}

/// Identity of a series.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) labels: Vec<Label>,
}

#[derive(Debug, Default)]
pub(crate) struct Series {
    map: HashMap<Key, Metric, foldhash::fast::RandomState>,
}

#[derive(Debug, Clone)]
pub(crate) enum Metric {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

/// Only grows.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

/// Grows and shrinks.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicI64>);

/// Distribution over [`BUCKETS`].
#[derive(Debug, Clone, Default)]
pub struct Histogram(Arc<HistogramCells>);

#[derive(Debug, Default)]
struct HistogramCells {
    /// Observations at or below each bound, and above all of them; not cumulative.
    buckets: [AtomicU64; BUCKETS.len() + 1],
    /// Sum in thousandths.
    sum_milli: AtomicU64,
}

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }
    /// Adds `n`. One writer per cell: load and store, not read-modify-write.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }
    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Gauge {
    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }
    /// Sets the value.
    pub fn set(&self, n: i64) {
        self.0.store(n, Relaxed);
    }
    /// The value.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

impl Histogram {
    /// Records one value, in the unit of the metric.
    pub fn observe(&self, value: f64) {
        let slot = BUCKETS.partition_point(|bound| *bound < value);
        if let Some(cell) = self.0.buckets.get(slot) {
            cell.store(cell.load(Relaxed) + 1, Relaxed);
        }
        let milli = (value * 1000.0).max(0.0) as u64;
        self.0.sum_milli.store(self.0.sum_milli.load(Relaxed).wrapping_add(milli), Relaxed);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// A new shard, for one thread.
    pub fn shard(&self) -> Shard {
        let series = Arc::default();
        locked(&self.shards).push(Arc::clone(&series));
        Shard { series }
    }

    /// Asks `source` too whenever values are collected, for as long as it lives.
    pub fn add_source(&self, source: Weak<dyn Source>) {
        locked(&self.sources).push(source);
    }

    /// Sets all counters and histograms to zero. A worker that counts at the same moment may win: the reset is best effort.
    pub fn reset(&self) {
        for shard in locked(&self.shards).iter() {
            for metric in locked(shard).map.values() {
                match metric {
                    Metric::Counter(c) => c.0.store(0, Relaxed),
                    Metric::Gauge(_) => {}
                    Metric::Histogram(h) => {
                        h.0.buckets.iter().for_each(|b| b.store(0, Relaxed));
                        h.0.sum_milli.store(0, Relaxed);
                    }
                }
            }
        }
    }

    /// Every series, summed over shards, in order of name and labels.
    pub(crate) fn collect(&self) -> std::collections::BTreeMap<Key, Value> {
        let mut all = std::collections::BTreeMap::new();
        for shard in locked(&self.shards).iter() {
            for (key, metric) in &locked(shard).map {
                let value = Value::of(metric);
                all.entry(key.clone()).and_modify(|sum: &mut Value| sum.add(&value)).or_insert(value);
            }
        }
        let sources: Vec<_> = locked(&self.sources).iter().filter_map(Weak::upgrade).collect();
        sources.iter().for_each(|source| source.report(&mut Report(&mut all)));
        all
    }

    /// The summed value of the counter or gauge of that name and those labels; `None` when nothing counted yet.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found = None;
        for (key, value) in self.collect() {
            let matches = |(n, v): &(&str, &str)| key.labels.iter().any(|(kn, kv)| kn == n && &**kv == *v);
            if key.name == name && labels.iter().all(matches) {
                *found.get_or_insert(0.0) += value.as_number();
            }
        }
        found
    }
}

/// A summed value.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Counter(u64),
    Gauge(i64),
    Histogram { buckets: Vec<u64>, sum: f64 },
}

impl Value {
    fn of(metric: &Metric) -> Self {
        match metric {
            Metric::Counter(c) => Value::Counter(c.get()),
            Metric::Gauge(g) => Value::Gauge(g.get()),
            Metric::Histogram(h) => Value::Histogram {
                buckets: h.0.buckets.iter().map(|b| b.load(Relaxed)).collect(),
                sum: h.0.sum_milli.load(Relaxed) as f64 / 1000.0,
            },
        }
    }

    fn add(&mut self, other: &Value) {
        match (self, other) {
            (Value::Counter(a), Value::Counter(b)) => *a += b,
            (Value::Gauge(a), Value::Gauge(b)) => *a += b,
            (Value::Histogram { buckets, sum }, Value::Histogram { buckets: b, sum: s }) => {
                buckets.iter_mut().zip(b).for_each(|(x, y)| *x += y);
                *sum += s;
            }
            _ => {}
        }
    }

    fn as_number(&self) -> f64 {
        match self {
            Value::Counter(n) => *n as f64,
            Value::Gauge(n) => *n as f64,
            Value::Histogram { buckets, .. } => buckets.iter().sum::<u64>() as f64,
        }
    }
}

impl Shard {
    /// The counter of that name and those labels. Prometheus names: `envoy_cluster_upstream_rq_total`, `istio_requests_total`.
    pub fn counter(&self, name: &'static str, labels: &[Label]) -> Counter {
        match self.metric(name, labels, || Metric::Counter(Counter::default())) {
            Metric::Counter(counter) => counter,
            _ => Counter::default(),
        }
    }

    /// The gauge of that name and those labels.
    pub fn gauge(&self, name: &'static str, labels: &[Label]) -> Gauge {
        match self.metric(name, labels, || Metric::Gauge(Gauge::default())) {
            Metric::Gauge(gauge) => gauge,
            _ => Gauge::default(),
        }
    }

    /// The histogram of that name and those labels.
    pub fn histogram(&self, name: &'static str, labels: &[Label]) -> Histogram {
        match self.metric(name, labels, || Metric::Histogram(Histogram::default())) {
            Metric::Histogram(histogram) => histogram,
            _ => Histogram::default(),
        }
    }

    fn metric(&self, name: &'static str, labels: &[Label], new: impl FnOnce() -> Metric) -> Metric {
        let mut series = locked(&self.series);
        let mut key = Key { name, labels: labels.to_vec() };
        if series.map.len() >= MAX_SERIES && !series.map.contains_key(&key) {
            key.labels = vec![("overflow", Strng::from("true"))];
        }
        series.map.entry(key).or_insert_with(new).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_summed() {
        let registry = Registry::default();
        let label = |v: &str| [("cluster_name", Strng::from(v))];
        for shard in [registry.shard(), registry.shard()] {
            shard.counter("rq", &label("a")).add(2);
            shard.counter("rq", &label("b")).inc();
        }
        assert_eq!(registry.value("rq", &[("cluster_name", "a")]), Some(4.0));
        assert_eq!(registry.value("rq", &[]), Some(6.0));
        assert_eq!(registry.value("none", &[]), None);
        registry.reset();
        assert_eq!(registry.value("rq", &[]), Some(0.0));
    }

    #[test]
    fn same_name_and_labels_is_one_cell() {
        let shard = Registry::default().shard();
        shard.counter("x", &[]).inc();
        assert_eq!(shard.counter("x", &[]).get(), 1);
    }
}
