//! Circuit breakers. A limit counts over all workers of the process, so finite limits are kept in shared atomics; where a
//! limit is infinite (the mesh's default) nothing is counted. Each routing priority has limits and counts of its own.

use crate::hosts::Host;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use weft_core::Strng;
use weft_proxy_config::{ConnectionLimits, EndpointAddress, RetryBudget, Thresholds};
use weft_route::Priority;
use weft_telemetry::Report;

/// No limit, in configuration.
const UNLIMITED: u32 = u32::MAX;

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Open connections.
    Connections,
    /// Requests that wait for a connection.
    Pending,
    /// Requests under way.
    Requests,
    /// Retries under way.
    Retries,
}

/// Statistics of one limit: whether it is reached and what is left of it, by priority; and the gauge that tells how much is
/// taken where nothing is counted for the limit.
struct Told {
    limit: Limit,
    open: [&'static str; 2],
    remaining: [&'static str; 2],
    taken: Option<&'static str>,
}

const TOLD: [Told; 4] = [
    Told {
        limit: Limit::Connections,
        open: ["envoy_cluster_circuit_breakers_default_cx_open", "envoy_cluster_circuit_breakers_high_cx_open"],
        remaining: [
            "envoy_cluster_circuit_breakers_default_remaining_cx",
            "envoy_cluster_circuit_breakers_high_remaining_cx",
        ],
        taken: Some("envoy_cluster_upstream_cx_active"),
    },
    Told {
        limit: Limit::Pending,
        open: [
            "envoy_cluster_circuit_breakers_default_rq_pending_open",
            "envoy_cluster_circuit_breakers_high_rq_pending_open",
        ],
        remaining: [
            "envoy_cluster_circuit_breakers_default_remaining_pending",
            "envoy_cluster_circuit_breakers_high_remaining_pending",
        ],
        taken: Some("envoy_cluster_upstream_rq_pending_active"),
    },
    Told {
        limit: Limit::Requests,
        open: ["envoy_cluster_circuit_breakers_default_rq_open", "envoy_cluster_circuit_breakers_high_rq_open"],
        remaining: [
            "envoy_cluster_circuit_breakers_default_remaining_rq",
            "envoy_cluster_circuit_breakers_high_remaining_rq",
        ],
        taken: Some("envoy_cluster_upstream_rq_active"),
    },
    Told {
        limit: Limit::Retries,
        open: [
            "envoy_cluster_circuit_breakers_default_rq_retry_open",
            "envoy_cluster_circuit_breakers_high_rq_retry_open",
        ],
        remaining: [
            "envoy_cluster_circuit_breakers_default_remaining_retries",
            "envoy_cluster_circuit_breakers_high_remaining_retries",
        ],
        taken: None,
    },
];

/// Pools are made as endpoints need them: this one never opens.
const POOLS_OPEN: [&str; 2] =
    ["envoy_cluster_circuit_breakers_default_cx_pool_open", "envoy_cluster_circuit_breakers_high_cx_pool_open"];

/// The counts of one cluster, shared by the workers.
#[derive(Debug, Default)]
pub struct Counts {
    taken: [[AtomicU32; 4]; 2],
    /// Name in statistics, and the limits in force.
    described: Mutex<Option<(Strng, Arc<ConnectionLimits>)>>,
    /// Connections by endpoint, where they are limited.
    hosts: Mutex<HashMap<EndpointAddress, Weak<AtomicU32>, foldhash::fast::RandomState>>,
}

impl Counts {
    /// Says whose counts they are.
    pub(crate) fn describe(&self, name: &Strng, limits: &Arc<ConnectionLimits>) {
        let mut described = self.described.lock().unwrap_or_else(PoisonError::into_inner);
        *described = Some((name.clone(), limits.clone()));
    }

    fn cell(&self, what: Limit, priority: Priority) -> &AtomicU32 {
        &self.taken[priority as usize][what as usize]
    }

    /// Connections to `host` in the whole process.
    fn of_host<'h>(&self, host: &'h Host) -> &'h Arc<AtomicU32> {
        host.connections.get_or_init(|| {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = hosts.get(&host.address).and_then(Weak::upgrade) {
                return known;
            }
            hosts.retain(|_, count| count.strong_count() > 0);
            let count = Arc::default();
            hosts.insert(host.address.clone(), Arc::downgrade(&count));
            count
        })
    }

    /// Tells whether limits are reached, and what is left of them where that is asked for. A limit is told as open when
    /// something took the last of it; as in Envoy, a limit of 0 never is.
    pub(crate) fn report(&self, report: &mut Report<'_>) {
        let described = self.described.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((name, limits)) = described else { return };
        let label = [("cluster_name", name)];
        for priority in [Priority::Default, Priority::High] {
            let thresholds = thresholds(&limits, priority);
            let at = priority as usize;
            report.gauge(POOLS_OPEN[at], &label, 0);
            for told in &TOLD {
                let limit = self.limit(thresholds, told.limit, priority);
                let counted = self.cell(told.limit, priority).load(Relaxed);
                let taken = match told.taken {
                    Some(gauge) if self.is_free(thresholds, told.limit, limit) && priority == Priority::Default => {
                        u32::try_from(report.value(gauge, &label)).unwrap_or(0)
                    }
                    _ => counted,
                };
                report.gauge(told.open[at], &label, i64::from(taken > 0 && taken >= limit));
                if thresholds.track_remaining {
                    // With a budget the number depends on what else is under way; Envoy says nothing is left.
                    let budget = told.limit == Limit::Retries && thresholds.retry_budget.is_some();
                    let left = if budget { 0 } else { limit.saturating_sub(taken) };
                    report.gauge(told.remaining[at], &label, i64::from(left));
                }
            }
        }
    }

    fn limit(&self, thresholds: &Thresholds, what: Limit, priority: Priority) -> u32 {
        match what {
            Limit::Connections => thresholds.max_connections,
            Limit::Pending => thresholds.max_pending,
            Limit::Requests => thresholds.max_requests,
            Limit::Retries => match thresholds.retry_budget {
                Some(budget) => self.budget(budget, priority),
                None => thresholds.max_retries,
            },
        }
    }

    /// Retries that the requests under way allow.
    fn budget(&self, budget: RetryBudget, priority: Priority) -> u32 {
        let count = |what: Limit| self.cell(what, priority).load(Relaxed);
        let active = count(Limit::Requests).saturating_add(count(Limit::Pending));
        ((f64::from(active) * budget.percent / 100.0) as u32).max(budget.least)
    }

    /// Nothing is to be counted: there is no limit, and no budget that depends on the count.
    fn is_free(&self, thresholds: &Thresholds, what: Limit, limit: u32) -> bool {
        limit == UNLIMITED && (thresholds.retry_budget.is_none() || !matches!(what, Limit::Requests | Limit::Pending))
    }
}

fn thresholds(limits: &ConnectionLimits, priority: Priority) -> &Thresholds {
    match priority {
        Priority::Default => &limits.default,
        Priority::High => &limits.high,
    }
}

/// The breaker of a cluster, as one worker sees it.
#[derive(Debug, Clone)]
pub struct Breaker {
    counts: Arc<Counts>,
    limits: Arc<ConnectionLimits>,
}

/// A place under a limit; given back on drop.
#[derive(Debug)]
pub struct Permit {
    counted: Option<(Arc<Counts>, Limit, Priority)>,
    /// The endpoint's count, where connections to single endpoints are limited.
    host: Option<Arc<AtomicU32>>,
}

impl Permit {
    const FREE: Permit = Permit { counted: None, host: None };
}

impl Breaker {
    /// A breaker over `counts`.
    pub fn new(counts: Arc<Counts>, limits: Arc<ConnectionLimits>) -> Self {
        Self { counts, limits }
    }

    /// The counts, to carry over to a changed cluster.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Takes a place, or `None` when the limit is reached.
    pub fn take(&self, what: Limit, priority: Priority) -> Option<Permit> {
        let thresholds = thresholds(&self.limits, priority);
        let limit = self.counts.limit(thresholds, what, priority);
        if self.counts.is_free(thresholds, what, limit) {
            return Some(Permit::FREE);
        }
        let cell = self.counts.cell(what, priority);
        // Add first, then look: two workers at the limit may both be refused, never both be let in.
        if cell.fetch_add(1, Relaxed) >= limit {
            cell.fetch_sub(1, Relaxed);
            return None;
        }
        Some(Permit { counted: Some((self.counts.clone(), what, priority)), host: None })
    }

    /// Takes a place for a connection to `host`: under the cluster's limit and the endpoint's own.
    pub fn connection(&self, host: &Host, priority: Priority) -> Option<Permit> {
        let mut permit = self.take(Limit::Connections, priority)?;
        let most = self.limits.max_connections_per_host;
        if most != UNLIMITED {
            let count = self.counts.of_host(host);
            if count.fetch_add(1, Relaxed) >= most {
                count.fetch_sub(1, Relaxed);
                return None;
            }
            permit.host = Some(count.clone());
        }
        Some(permit)
    }

    /// The same even beyond the limits: an endpoint without any connection gets one, else it could never serve.
    pub fn force_connection(&self, host: &Host, priority: Priority) -> Permit {
        let thresholds = thresholds(&self.limits, priority);
        let mut permit = Permit::FREE;
        if !self.counts.is_free(thresholds, Limit::Connections, thresholds.max_connections) {
            self.counts.cell(Limit::Connections, priority).fetch_add(1, Relaxed);
            permit.counted = Some((self.counts.clone(), Limit::Connections, priority));
        }
        if self.limits.max_connections_per_host != UNLIMITED {
            let count = self.counts.of_host(host);
            count.fetch_add(1, Relaxed);
            permit.host = Some(count.clone());
        }
        permit
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some((counts, what, priority)) = self.counted.take() {
            counts.cell(what, priority).fetch_sub(1, Relaxed);
        }
        if let Some(host) = self.host.take() {
            host.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use weft_telemetry::{Registry, Source};

    const USUAL: Priority = Priority::Default;

    pub(crate) fn thresholds(n: u32) -> Thresholds {
        Thresholds {
            max_connections: n,
            max_pending: UNLIMITED,
            max_requests: UNLIMITED,
            max_retries: 0,
            retry_budget: None,
            track_remaining: true,
        }
    }

    pub(crate) fn limits(default: Thresholds) -> Arc<ConnectionLimits> {
        Arc::new(ConnectionLimits {
            high: Thresholds { track_remaining: false, ..default.clone() },
            default,
            max_connections_per_host: UNLIMITED,
            max_requests_per_connection: 0,
            idle_timeout: None,
            max_connection_duration: None,
            keepalive: None,
            max_concurrent_streams: 100,
        })
    }

    fn host(port: u16) -> Host {
        Host::new(EndpointAddress::Ip(([10, 0, 0, 1], port).into()), "".into(), 0)
    }

    #[test]
    fn places_are_given_back() {
        let counts = Arc::new(Counts::default());
        let (a, b) = (Breaker::new(counts.clone(), limits(thresholds(1))), Breaker::new(counts, limits(thresholds(1))));
        let there = host(1);
        let held = a.connection(&there, USUAL).unwrap();
        assert!(b.connection(&there, USUAL).is_none(), "counted over workers");
        assert!(b.connection(&there, Priority::High).is_some(), "each priority by itself");
        let forced = b.force_connection(&there, USUAL);
        drop(held);
        assert!(b.connection(&there, USUAL).is_none());
        drop(forced);
        assert!(b.connection(&there, USUAL).is_some());
        assert!(a.take(Limit::Retries, USUAL).is_none(), "a limit of 0 lets nothing through");
        assert!(a.take(Limit::Pending, USUAL).is_some());
    }

    #[test]
    fn endpoints_have_limits_of_their_own() {
        let counts = Arc::new(Counts::default());
        let per_host = ConnectionLimits { max_connections_per_host: 1, ..(*limits(thresholds(9))).clone() };
        let breaker = Breaker::new(counts.clone(), Arc::new(per_host));
        // Two workers have a host each for the same endpoint.
        let (one, same, other) = (host(1), host(1), host(2));
        let held = breaker.connection(&one, USUAL).unwrap();
        assert!(breaker.connection(&same, USUAL).is_none());
        assert!(breaker.connection(&other, USUAL).is_some());
        assert_eq!(counts.cell(Limit::Connections, USUAL).load(Relaxed), 1, "a refusal takes no place");
        drop(held);
        assert!(breaker.connection(&same, USUAL).is_some());
    }

    #[test]
    fn retries_by_budget() {
        let budget = RetryBudget { percent: 20.0, least: 1 };
        let limits = limits(Thresholds { retry_budget: Some(budget), ..thresholds(9) });
        let breaker = Breaker::new(Arc::default(), limits);
        let first = breaker.take(Limit::Retries, USUAL);
        assert!(first.is_some() && breaker.take(Limit::Retries, USUAL).is_none(), "one always, and no more when idle");
        let requests: Vec<_> = (0..10).map(|_| breaker.take(Limit::Requests, USUAL).unwrap()).collect();
        assert!(breaker.take(Limit::Retries, USUAL).is_some(), "a fifth of ten is two");
        drop(requests);
        assert!(breaker.take(Limit::Retries, USUAL).is_none());
    }

    #[test]
    fn statistics_tell_what_is_left() {
        #[derive(Debug)]
        struct Of(Arc<Counts>);
        impl Source for Of {
            fn report(&self, report: &mut Report<'_>) {
                self.0.report(report);
            }
        }
        let (registry, counts) = (Registry::default(), Arc::new(Counts::default()));
        let source: Arc<dyn Source> = Arc::new(Of(counts.clone()));
        registry.add_source(Arc::downgrade(&source));
        let limits = limits(thresholds(2));
        counts.describe(&"c".into(), &limits);
        let breaker = Breaker::new(counts, limits);
        let label = [("cluster_name", Strng::from("c"))];
        registry.shard().gauge("envoy_cluster_upstream_rq_active", &label).add(5);
        let told = |name: &str| registry.value(&format!("envoy_cluster_circuit_breakers_{name}"), &[]);
        let there = host(1);
        let held = [breaker.connection(&there, USUAL), breaker.connection(&there, USUAL)];
        for (name, want) in [
            ("default_cx_open", Some(1.0)),
            ("default_remaining_cx", Some(0.0)),
            ("default_rq_open", Some(0.0)),
            ("default_remaining_rq", Some(f64::from(UNLIMITED - 5))),
            ("default_rq_retry_open", Some(0.0)),
            ("high_cx_open", Some(0.0)),
            ("high_remaining_cx", None),
        ] {
            assert_eq!(told(name), want, "{name}");
        }
        drop(held);
        assert_eq!(told("default_cx_open"), Some(0.0));
        let text = weft_telemetry::render::text(&registry, |name| name.ends_with("remaining_cx"));
        assert_eq!(text, "cluster.c.circuit_breakers.default.remaining_cx: 2\n");
    }
}
