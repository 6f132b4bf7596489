//! Load balancing.

use super::Draft;
use crate::pb::cluster::cluster::{self as c, LbConfig, LbPolicy, common_lb_config::LocalityConfigSpecifier};
use crate::pb::{self, core, envoy_type};
use crate::traffic::{self, Effective};
use weft_k8s_api::istio::{self, MeshConfig, SimpleLb};

/// Points on a hash ring when nothing else is said.
const DEFAULT_RING_SIZE: u64 = 1024;
/// The message asks for the name of a run-time setting; nothing ever sets it, so the default value holds.
const AGGRESSION_KEY: &str = "upstream.slow_start.aggression";

/// Sets the policy.
pub(super) fn apply(mesh: &MeshConfig, draft: &mut Draft, policy: &Effective) {
    if draft.cluster.lb_policy == LbPolicy::ClusterProvided as i32 {
        return;
    }
    by_locality(mesh, draft, policy);
    if draft.is_original_dst() {
        draft.cluster.lb_policy = LbPolicy::ClusterProvided as i32;
        return;
    }
    let lb = policy.load_balancer.as_ref();
    match lb.and_then(|lb| lb.simple).unwrap_or_default() {
        SimpleLb::Random => draft.cluster.lb_policy = LbPolicy::Random as i32,
        SimpleLb::RoundRobin => round_robin(draft, lb),
        _ => least_request(draft, lb),
    }
    if let Some(hash) = lb.and_then(|lb| lb.consistent_hash.as_ref()) {
        consistent_hash(draft, hash);
    }
}

/// Localities are weighed only where the endpoints carry weights or priorities that the user asked for.
fn by_locality(mesh: &MeshConfig, draft: &mut Draft, policy: &Effective) {
    let Some(setting) = traffic::locality_setting(mesh, policy) else { return };
    let failover =
        policy.outlier_detection.is_some() && (!setting.failover.is_empty() || !setting.failover_priority.is_empty());
    if failover || !setting.distribute.is_empty() {
        let config = draft.cluster.common_lb_config.get_or_insert_default();
        config.locality_config_specifier =
            Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(c::common_lb_config::LocalityWeightedLbConfig {}));
    }
}

fn round_robin(draft: &mut Draft, lb: Option<&istio::LoadBalancerSettings>) {
    draft.cluster.lb_policy = LbPolicy::RoundRobin as i32;
    if let Some(slow_start_config) = slow_start(lb) {
        let config = c::RoundRobinLbConfig { slow_start_config: Some(slow_start_config) };
        draft.cluster.lb_config = Some(LbConfig::RoundRobinLbConfig(config));
    }
}

fn least_request(draft: &mut Draft, lb: Option<&istio::LoadBalancerSettings>) {
    draft.cluster.lb_policy = LbPolicy::LeastRequest as i32;
    if let Some(slow_start_config) = slow_start(lb) {
        let config = c::LeastRequestLbConfig { slow_start_config: Some(slow_start_config), ..Default::default() };
        draft.cluster.lb_config = Some(LbConfig::LeastRequestLbConfig(config));
    }
}

fn slow_start(lb: Option<&istio::LoadBalancerSettings>) -> Option<c::SlowStartConfig> {
    let lb = lb?;
    if let Some(warmup) = &lb.warmup {
        return Some(c::SlowStartConfig {
            slow_start_window: warmup.duration.map(|d| pb::duration(d.get())),
            aggression: Some(core::RuntimeDouble {
                default_value: warmup.aggression.unwrap_or(1.0),
                runtime_key: AGGRESSION_KEY.into(),
            }),
            min_weight_percent: Some(envoy_type::Percent { value: warmup.minimum_percent.unwrap_or(10.0) }),
        });
    }
    let window = lb.warmup_duration_secs?;
    Some(c::SlowStartConfig { slow_start_window: Some(pb::duration(window.get())), ..Default::default() })
}

fn consistent_hash(draft: &mut Draft, hash: &istio::ConsistentHashLb) {
    if let Some(maglev) = &hash.maglev {
        draft.cluster.lb_policy = LbPolicy::Maglev as i32;
        let table_size = (maglev.table_size > 0).then_some(maglev.table_size);
        draft.cluster.lb_config =
            table_size.map(|size| LbConfig::MaglevLbConfig(c::MaglevLbConfig { table_size: Some(size) }));
        return;
    }
    draft.cluster.lb_policy = LbPolicy::RingHash as i32;
    let asked = hash.ring_hash.as_ref().map_or(hash.minimum_ring_size, |ring| ring.minimum_ring_size);
    let size = if asked == 0 { DEFAULT_RING_SIZE } else { asked };
    draft.cluster.lb_config =
        Some(LbConfig::RingHashLbConfig(c::RingHashLbConfig { minimum_ring_size: Some(size), ..Default::default() }));
}
