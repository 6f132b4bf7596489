//! Circuit breakers. A limit counts over all workers of the process, so finite limits are kept in shared atomics; where a
//! limit is infinite (the mesh's default) nothing is counted.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use weft_proxy_config::{ConnectionLimits, RetryBudget};

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

/// The counts of one cluster, shared by the workers.
#[derive(Debug, Default)]
pub struct Counts([AtomicU32; 4]);

/// The breaker of a cluster, as one worker sees it.
#[derive(Debug, Clone)]
pub struct Breaker {
    counts: Arc<Counts>,
    limits: Arc<ConnectionLimits>,
}

/// A place under a limit; given back on drop.
#[derive(Debug)]
pub struct Permit(Option<(Arc<Counts>, Limit)>);

impl Breaker {
    /// A breaker over `counts`.
    pub fn new(counts: Arc<Counts>, limits: Arc<ConnectionLimits>) -> Self {
        Self { counts, limits }
    }

    /// The counts, to carry over to a changed cluster.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    fn limit(&self, what: Limit) -> u32 {
        match what {
            Limit::Connections => self.limits.max_connections,
            Limit::Pending => self.limits.max_pending,
            Limit::Requests => self.limits.max_requests,
            Limit::Retries => match self.limits.retry_budget {
                Some(budget) => self.budget(budget),
                None => self.limits.max_retries,
            },
        }
    }

    /// Retries that the requests under way allow.
    fn budget(&self, budget: RetryBudget) -> u32 {
        let count = |what: Limit| self.counts.0[what as usize].load(Relaxed);
        let active = count(Limit::Requests).saturating_add(count(Limit::Pending));
        ((f64::from(active) * budget.percent / 100.0) as u32).max(budget.least)
    }

    /// Nothing is to be counted: there is no limit, and no budget that depends on the count.
    fn is_free(&self, what: Limit, limit: u32) -> bool {
        limit == UNLIMITED && (self.limits.retry_budget.is_none() || !matches!(what, Limit::Requests | Limit::Pending))
    }

    /// Takes a place, or `None` when the limit is reached.
    pub fn take(&self, what: Limit) -> Option<Permit> {
        let limit = self.limit(what);
        if self.is_free(what, limit) {
            return Some(Permit(None));
        }
        let cell = &self.counts.0[what as usize];
        // Add first, then look: two workers at the limit may both be refused, never both be let in.
        if cell.fetch_add(1, Relaxed) >= limit {
            cell.fetch_sub(1, Relaxed);
            return None;
        }
        Some(Permit(Some((self.counts.clone(), what))))
    }

    /// Takes a place even beyond the limit: an endpoint without any connection gets one, else it could never serve.
    pub fn force(&self, what: Limit) -> Permit {
        if self.is_free(what, self.limit(what)) {
            return Permit(None);
        }
        self.counts.0[what as usize].fetch_add(1, Relaxed);
        Permit(Some((self.counts.clone(), what)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some((counts, what)) = self.0.take() {
            counts.0[what as usize].fetch_sub(1, Relaxed);
        }
    }
}

/// A breaker shared inside a worker.
pub type SharedBreaker = Rc<Breaker>;

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(n: u32) -> Arc<ConnectionLimits> {
        Arc::new(ConnectionLimits {
            max_connections: n,
            max_pending: UNLIMITED,
            max_requests: UNLIMITED,
            max_retries: 0,
            retry_budget: None,
            max_requests_per_connection: 0,
            idle_timeout: None,
            max_connection_duration: None,
            keepalive: None,
            max_concurrent_streams: 100,
        })
    }

    #[test]
    fn places_are_given_back() {
        let counts = Arc::new(Counts::default());
        let (a, b) = (Breaker::new(counts.clone(), limits(1)), Breaker::new(counts, limits(1)));
        let held = a.take(Limit::Connections).unwrap();
        assert!(b.take(Limit::Connections).is_none(), "counted over workers");
        let forced = b.force(Limit::Connections);
        drop(held);
        assert!(b.take(Limit::Connections).is_none());
        drop(forced);
        assert!(b.take(Limit::Connections).is_some());
        assert!(a.take(Limit::Retries).is_none(), "a limit of 0 lets nothing through");
        assert!(a.take(Limit::Pending).is_some());
    }

    #[test]
    fn retries_by_budget() {
        let budget = RetryBudget { percent: 20.0, least: 1 };
        let limits = ConnectionLimits { retry_budget: Some(budget), max_requests: UNLIMITED, ..(*limits(9)).clone() };
        let breaker = Breaker::new(Arc::default(), Arc::new(limits));
        let first = breaker.take(Limit::Retries);
        assert!(first.is_some() && breaker.take(Limit::Retries).is_none(), "one always, and no more when idle");
        let requests: Vec<_> = (0..10).map(|_| breaker.take(Limit::Requests).unwrap()).collect();
        assert!(breaker.take(Limit::Retries).is_some(), "a fifth of ten is two");
        drop(requests);
        assert!(breaker.take(Limit::Retries).is_none());
    }
}
