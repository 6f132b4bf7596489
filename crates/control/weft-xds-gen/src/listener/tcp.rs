//! The TCP proxy, and the filters before it.

use super::Maker;
use super::outbound::sni_forward;
use crate::observe::Side;
use crate::pb::envoy_type::{HashPolicy, hash_policy};
use crate::pb::tcp::TcpProxy;
use crate::pb::tcp::tcp_proxy::{ClusterSpecifier, TunnelingConfig, WeightedCluster, weighted_cluster::ClusterWeight};
use crate::pb::{self, listener, network_filter};
use crate::route::{by_source_ip, convert};
use crate::traffic::{self, Effective};
use weft_core::names::ClusterName;
use weft_k8s_api::istio::{RouteDestination, TunnelSettings};
use weft_model::Resolution;

/// Name of the network filter.
pub(crate) const FILTER: &str = "envoy.filters.network.tcp_proxy";

/// A TCP proxy to one cluster, whose name is also the prefix of its statistics.
pub(crate) fn to_cluster(cluster: &str) -> TcpProxy {
    TcpProxy {
        stat_prefix: cluster.into(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.into())),
        ..Default::default()
    }
}

impl Maker<'_> {
    /// The network filters of a chain that ends in `proxy`.
    pub fn tcp_filters(&self, side: Side, mut proxy: TcpProxy, authz: Vec<listener::Filter>) -> Vec<listener::Filter> {
        let reports = self.observe.side(side);
        proxy.access_log.clone_from(&reports.logs);
        let mut filters: Vec<listener::Filter> = reports.tcp_metrics.clone().into_iter().collect();
        filters.extend(authz);
        filters.push(network_filter(FILTER, &proxy));
        filters
    }

    /// Connections of the workload to one service.
    pub fn service_filters(&self, host: &str, subset: &str, port: u16) -> Vec<listener::Filter> {
        let cluster = ClusterName::outbound(port, subset, host).to_string();
        let mut proxy = to_cluster(&cluster);
        apply_policy(&mut proxy, &self.policy(host, subset, port));
        self.tcp_filters(Side::Client, proxy, Vec::new())
    }

    /// As [`Self::rule_filters`], for TLS that is not opened: a destination that is found by name takes the server name.
    pub fn tls_rule_filters(
        &self,
        routes: &[RouteDestination],
        called_port: u16,
        rule: (&str, &str),
    ) -> Option<Vec<listener::Filter>> {
        let mut filters = self.rule_filters(routes, called_port, rule)?;
        let destination = match routes {
            [only] => only.destination.as_ref(),
            _ => None,
        };
        if let Some(to) = destination
            && let Some(service) = self.view.scope.meant(&to.host)
            && service.resolution == Resolution::DynamicDns
        {
            let port = to.port.as_ref().and_then(|p| u16::try_from(p.number).ok()).unwrap_or(called_port);
            insert_before_last(&mut filters, sni_forward(*self, &service.host, port));
        }
        Some(filters)
    }

    /// Connections to the destinations of a rule, by weight; `None` when there is none to send to.
    pub fn rule_filters(
        &self,
        routes: &[RouteDestination],
        called_port: u16,
        rule: (&str, &str),
    ) -> Option<Vec<listener::Filter>> {
        let scope = self.view.scope;
        let only = if routes.len() == 1 { routes.first() } else { None };
        let named = |route: &RouteDestination| {
            let destination = route.destination.as_ref()?;
            Some((convert::cluster_of(scope, destination, called_port), route.weight))
        };
        let first = routes.iter().find_map(|r| r.destination.as_ref())?;
        let mut proxy = match only {
            Some(route) => to_cluster(&named(route)?.0),
            None => {
                let clusters: Vec<ClusterWeight> = routes
                    .iter()
                    .filter_map(named)
                    .filter(|(_, weight)| *weight > 0)
                    .map(|(name, weight)| ClusterWeight { name, weight, ..Default::default() })
                    .collect();
                if clusters.is_empty() {
                    return None;
                }
                TcpProxy {
                    stat_prefix: format!("{}.{}", rule.0, rule.1),
                    cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster { clusters })),
                    ..Default::default()
                }
            }
        };
        let subset = if only.is_some() { first.subset.as_str() } else { "" };
        let port = first.port.as_ref().and_then(|p| u16::try_from(p.number).ok()).unwrap_or(called_port);
        apply_policy(&mut proxy, &self.policy(&first.host, subset, port));
        Some(self.tcp_filters(Side::Client, proxy, Vec::new()))
    }

    fn policy(&self, host: &str, subset: &str, port: u16) -> Effective {
        let Some(rule) = self.view.rule_for_host(host) else { return Effective::default() };
        match subset {
            "" => traffic::for_port(self.view.mesh(), Some(&rule), port),
            _ => traffic::for_subset(self.view.mesh(), &rule, port, subset),
        }
    }
}

/// The TCP proxy is last: what has to happen before it forwards comes just before it.
pub(super) fn insert_before_last(filters: &mut Vec<listener::Filter>, filter: listener::Filter) {
    filters.insert(filters.len().saturating_sub(1), filter);
}

/// What of a traffic policy is the business of the connection from the client.
fn apply_policy(proxy: &mut TcpProxy, policy: &Effective) {
    let settings = policy.connection_pool.as_ref().and_then(|p| p.tcp.as_ref());
    proxy.idle_timeout = settings.and_then(|t| t.idle_timeout).map(|d| pb::duration(d.get()));
    proxy.max_downstream_connection_duration =
        settings.and_then(|t| t.max_connection_duration).map(|d| pb::duration(d.get()));
    if by_source_ip(policy) {
        proxy.hash_policy = vec![HashPolicy {
            policy_specifier: Some(hash_policy::PolicySpecifier::SourceIp(hash_policy::SourceIp {})),
        }];
    }
    proxy.tunneling_config = policy.tunnel.as_ref().map(tunnel);
}

fn tunnel(settings: &TunnelSettings) -> TunnelingConfig {
    // Refused when it is no port.
    let port = u16::try_from(settings.target_port).unwrap_or_default();
    TunnelingConfig {
        hostname: pb::address::host_port(&settings.target_host, port),
        use_post: settings.protocol.eq_ignore_ascii_case("POST"),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tunnels() {
        for (settings, want) in [
            (json!({"targetHost": "a.example", "targetPort": 443}), ("a.example:443", false)),
            (json!({"protocol": "CONNECT", "targetHost": "10.1.2.3", "targetPort": 80}), ("10.1.2.3:80", false)),
            (json!({"protocol": "POST", "targetHost": "fd00::1", "targetPort": 443}), ("[fd00::1]:443", true)),
        ] {
            let settings: TunnelSettings = serde_json::from_value(settings).unwrap();
            let made = tunnel(&settings);
            assert_eq!((made.hostname.as_str(), made.use_post), want);
        }
    }
}
