//! What the admin port needs from whatever moves the traffic.

use futures_util::future::BoxFuture;

/// A listener as it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerView {
    /// Name.
    pub name: String,
    /// Where it listens; empty for a listener that only receives what another hands over.
    pub addresses: Vec<String>,
    /// Why it does not listen; `None` = it does.
    pub error: Option<String>,
}

/// An endpoint as it runs, summed over workers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostView {
    /// `ip:port`.
    pub address: String,
    /// Host name, when it has one.
    pub hostname: String,
    /// `region/zone/subzone`.
    pub locality: String,
    /// Priority.
    pub priority: u32,
    /// Weight.
    pub weight: u32,
    /// Healthy as the control plane says.
    pub healthy: bool,
    /// Left out after errors.
    pub ejected: bool,
    /// Active checks have not found it well.
    pub fails_checks: bool,
    /// Counts, by Envoy's names: `cx_active`, `cx_connect_fail`, `cx_total`, `rq_active`, `rq_error`, `rq_success`,
    /// `rq_timeout`, `rq_total`.
    pub counts: [(&'static str, u64); 8],
}

/// Limits of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LimitsView {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_pending_requests`.
    pub max_pending: u32,
    /// `max_requests`.
    pub max_requests: u32,
    /// `max_retries`.
    pub max_retries: u32,
}

/// A cluster as it runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterView {
    /// Name.
    pub name: String,
    /// Name under which its endpoints are found.
    pub eds_name: Option<String>,
    /// Limits of the default priority.
    pub limits: LimitsView,
    /// Limits of the high priority.
    pub high_limits: LimitsView,
    /// Endpoints.
    pub hosts: Vec<HostView>,
}

/// What moves the traffic.
pub trait Live: Send + Sync {
    /// Listeners.
    fn listeners(&self) -> Vec<ListenerView>;
    /// Clusters, with what all workers know of their endpoints.
    fn clusters(&self) -> BoxFuture<'_, Vec<ClusterView>>;
    /// Stops taking connections; with `graceful`, open ones are told to end.
    fn drain_listeners(&self, inbound_only: bool, graceful: bool);
}
