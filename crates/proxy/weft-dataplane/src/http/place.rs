//! A request's place among those under way in its cluster.

use std::rc::Rc;
use weft_cluster::LiveCluster;
use weft_cluster::limits::{Limit, Permit};
use weft_route::Priority;

/// A request's place in its cluster: counted as under way, also against the limit, until its response has passed.
pub(crate) struct Place {
    cluster: Rc<LiveCluster>,
    _permit: Permit,
}

impl Place {
    /// A place; `None` when a circuit breaker is open.
    pub fn take(cluster: &Rc<LiveCluster>, priority: Priority) -> Option<Self> {
        let permit = cluster.breaker.take(Limit::Requests, priority)?;
        cluster.stats.rq_active.add(1);
        Some(Self { cluster: cluster.clone(), _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.cluster.stats.rq_active.add(-1);
    }
}
