//! Limits of connections and requests.

use super::Draft;
use crate::pb::cluster::{
    CircuitBreakers, UpstreamConnectionOptions, circuit_breakers::Thresholds, circuit_breakers::thresholds,
};
use crate::pb::core::{HttpProtocolOptions, KeepaliveSettings, TcpKeepalive};
use crate::pb::{self, envoy_type};
use crate::traffic::Effective;
use weft_k8s_api::istio::{self, MeshConfig};

/// Share of active requests that may be retries, when a budget is set without saying it.
const DEFAULT_RETRY_BUDGET_PERCENT: f64 = 20.0;
/// Retries that a budget always allows.
const DEFAULT_MIN_RETRY_CONCURRENCY: u32 = 3;

/// Sets limits, time-outs and keepalive.
pub(super) fn apply(mesh: &MeshConfig, draft: &mut Draft, policy: &Effective) {
    let tcp = policy.connection_pool.as_ref().and_then(|p| p.tcp.as_ref());
    let http = policy.connection_pool.as_ref().and_then(|p| p.http.as_ref());
    let connect = tcp.and_then(|t| t.connect_timeout).or(mesh.connect_timeout);
    draft.cluster.connect_timeout = Some(pb::duration(connect.map_or(std::time::Duration::from_secs(10), |d| d.get())));
    let mut limits = unlimited();
    if let Some(tcp) = tcp {
        limit(&mut limits.max_connections, tcp.max_connections);
    }
    if let Some(http) = http {
        limit(&mut limits.max_requests, http.http2_max_requests);
        limit(&mut limits.max_pending_requests, http.http1_max_pending_requests);
        limit(&mut limits.max_retries, http.max_retries);
    }
    limits.retry_budget = policy.retry_budget.as_ref().map(|budget| thresholds::RetryBudget {
        budget_percent: Some(envoy_type::Percent { value: budget.percent.unwrap_or(DEFAULT_RETRY_BUDGET_PERCENT) }),
        budget_interval: budget.budget_interval.map(|d| pb::duration(d.get())),
        min_retry_concurrency: Some(budget.min_retry_concurrency.unwrap_or(DEFAULT_MIN_RETRY_CONCURRENCY)),
    });
    draft.cluster.circuit_breakers = Some(CircuitBreakers { thresholds: vec![limits], ..Default::default() });
    draft.cluster.upstream_connection_options = keepalive(mesh, tcp);
    http_limits(draft, tcp, http);
}

/// No limit that anything reaches: the default of the mesh, where Envoy's own is 1024.
pub(super) fn unlimited() -> Thresholds {
    Thresholds {
        max_connections: Some(u32::MAX),
        max_pending_requests: Some(u32::MAX),
        max_requests: Some(u32::MAX),
        max_retries: Some(u32::MAX),
        track_remaining: true,
        ..Default::default()
    }
}

/// Zero is "not set".
fn limit(field: &mut Option<u32>, value: u32) {
    if value > 0 {
        *field = Some(value);
    }
}

fn keepalive(mesh: &MeshConfig, tcp: Option<&istio::TcpSettings>) -> Option<UpstreamConnectionOptions> {
    let of_policy = tcp.and_then(|t| t.tcp_keepalive.as_ref());
    let of_mesh = mesh.tcp_keepalive.as_ref();
    if of_policy.is_none() && of_mesh.is_none() {
        return None;
    }
    let both = || of_policy.into_iter().chain(of_mesh);
    let seconds = |d: istio::Duration| u32::try_from(d.get().as_secs()).unwrap_or(u32::MAX);
    let settings = TcpKeepalive {
        keepalive_probes: both().map(|k| k.probes).find(|p| *p > 0),
        keepalive_time: both().find_map(|k| k.time).map(seconds),
        keepalive_interval: both().find_map(|k| k.interval).map(seconds),
    };
    Some(UpstreamConnectionOptions { tcp_keepalive: Some(settings), ..Default::default() })
}

fn http_limits(draft: &mut Draft, tcp: Option<&istio::TcpSettings>, http: Option<&istio::HttpSettings>) {
    let idle = http.and_then(|h| h.idle_timeout).or(tcp.and_then(|t| t.idle_timeout));
    let life = tcp.and_then(|t| t.max_connection_duration);
    let requests = http.map_or(0, |h| h.max_requests_per_connection);
    if idle.is_some() || life.is_some() || requests > 0 {
        draft.http.common = Some(HttpProtocolOptions {
            idle_timeout: idle.map(|d| pb::duration(d.get())),
            max_connection_duration: life.map(|d| pb::duration(d.get())),
            max_requests_per_connection: (requests > 0).then_some(requests),
            ..Default::default()
        });
    }
    let Some(http) = http else { return };
    if http.max_concurrent_streams > 0 {
        draft.http.http2.max_concurrent_streams = Some(http.max_concurrent_streams);
    }
    if let Some(ping) = &http.http2_keep_alive {
        draft.http.http2.connection_keepalive = Some(KeepaliveSettings {
            interval: ping.interval.map(|d| pb::duration(d.get())),
            timeout: ping.timeout.map(|d| pb::duration(d.get())),
            ..Default::default()
        });
    }
    if http.use_client_protocol {
        draft.http.use_downstream();
    }
}
