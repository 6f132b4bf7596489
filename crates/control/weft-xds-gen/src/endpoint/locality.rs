//! Load balancing by locality: shares (`distribute`), or priorities by nearness (`failover`, `failoverPriority`).

use crate::scope::ScopeKey;
use std::collections::BTreeMap;
use weft_k8s_api::istio::LocalityLoadBalancerSetting;
use weft_model::{Endpoint, Labels, Near};

/// Label name under which `failoverPriority` asks for the node.
pub(crate) const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";

/// Endpoints of one locality (and, when priorities differ inside it, of one priority).
#[derive(Debug, Clone)]
pub(super) struct Group<'a> {
    /// `region/zone/subzone`.
    pub name: &'a str,
    pub endpoints: Vec<&'a Endpoint>,
    pub weight: u32,
    pub priority: u32,
}

impl<'a> Group<'a> {
    pub fn new(name: &'a str, endpoints: Vec<&'a Endpoint>) -> Self {
        let weight = endpoints.iter().fold(0_u32, |sum, e| sum.saturating_add(weight_of(e)));
        Self { name, endpoints, weight, priority: 0 }
    }
}

/// Weight of an endpoint; 1 when none is given.
pub(super) fn weight_of(endpoint: &Endpoint) -> u32 {
    endpoint.weight.max(1)
}

/// Applies `setting` as seen from a client. Priorities are for clusters that can tell when to fail over: those with
/// outlier detection.
pub(super) fn apply(
    groups: &mut Vec<Group<'_>>,
    client: &ScopeKey,
    setting: &LocalityLoadBalancerSetting,
    failover: bool,
) {
    if !setting.distribute.is_empty() {
        distribute(groups, &client.locality, setting);
    } else if failover {
        if !setting.failover_priority.is_empty() {
            by_labels(groups, client, &setting.failover_priority);
        }
        if setting.failover_priority.is_empty() || !setting.failover.is_empty() {
            by_distance(groups, &client.locality, setting);
        }
        close_gaps(groups);
    }
}

/// The order of preference that a service itself asks for.
pub(super) fn nearest(near: Near) -> LocalityLoadBalancerSetting {
    let mut labels = vec!["topology.istio.io/network", "topology.kubernetes.io/region", "topology.kubernetes.io/zone"];
    if near == Near::Node {
        labels.push(HOSTNAME_LABEL);
    }
    let failover_priority = labels.into_iter().map(str::to_string).collect();
    LocalityLoadBalancerSetting { failover_priority, ..Default::default() }
}

/// Shares of the traffic of clients in a locality. Localities that get no share get no traffic.
fn distribute(groups: &mut Vec<Group<'_>>, client: &str, setting: &LocalityLoadBalancerSetting) {
    let Some(shares) = setting.distribute.iter().find(|d| covers(&d.from, client)) else { return };
    let mut weights: Vec<Option<u32>> = vec![None; groups.len()];
    for (to, percent) in &shares.to {
        let of_share: Vec<usize> =
            (0..groups.len()).filter(|i| weights[*i].is_none() && covers(to, groups[*i].name)).collect();
        let total: u64 = of_share.iter().map(|i| u64::from(groups[*i].weight)).sum();
        for index in of_share {
            let share = (u64::from(groups[index].weight) * u64::from(*percent)).div_ceil(total.max(1));
            weights[index] = Some(u32::try_from(share).unwrap_or(u32::MAX));
        }
    }
    let mut given = weights.into_iter();
    groups.retain_mut(|group| match given.next().flatten() {
        Some(weight) if weight > 0 => {
            group.weight = weight;
            true
        }
        _ => false,
    });
}

/// Nearest first: same subzone, zone, region; then the region that a failover names; then the rest.
fn by_distance(groups: &mut [Group<'_>], client: &str, setting: &LocalityLoadBalancerSetting) {
    let region = |locality: &str| locality.split('/').next().unwrap_or_default().to_string();
    let from = region(client);
    let target = setting.failover.iter().find(|f| f.from == from).map(|f| f.to.as_str());
    for group in groups {
        let distance = match shared_parts(client, group.name) {
            3 => 0,
            2 => 1,
            1 => 2,
            _ if target.is_none_or(|to| to == region(group.name)) => 3,
            _ => 4,
        };
        group.priority = group.priority * 5 + distance;
    }
}

/// How many leading parts of two localities are equal; all three when both are unknown.
fn shared_parts(a: &str, b: &str) -> usize {
    let (a, b) = (parts(a), parts(b));
    a.iter().zip(&b).take_while(|(x, y)| x == y).count()
}

fn parts(locality: &str) -> [&str; 3] {
    let mut parts = locality.splitn(3, '/');
    let mut next = || parts.next().unwrap_or_default();
    [next(), next(), next()]
}

/// By labels in order: the more of them an endpoint shares with the client, from the first on, the sooner it is used.
fn by_labels(groups: &mut Vec<Group<'_>>, client: &ScopeKey, labels: &[String]) {
    let mut split: Vec<Group<'_>> = Vec::new();
    for group in groups.drain(..) {
        let mut by_priority: BTreeMap<usize, Vec<&Endpoint>> = BTreeMap::new();
        for endpoint in group.endpoints {
            let shared = labels.iter().take_while(|label| shares(client, endpoint, label)).count();
            by_priority.entry(labels.len() - shared).or_default().push(endpoint);
        }
        for (priority, endpoints) in by_priority {
            let mut part = Group::new(group.name, endpoints);
            part.priority = u32::try_from(priority).unwrap_or(u32::MAX);
            split.push(part);
        }
    }
    *groups = split;
}

/// `label` or `label=value`: the value then stands for the client's.
fn shares(client: &ScopeKey, endpoint: &Endpoint, label: &str) -> bool {
    let (name, given) = label.split_once('=').map_or((label, None), |(name, value)| (name, Some(value)));
    let of_endpoint = fact(name, &endpoint.labels, &endpoint.locality, &endpoint.network, &endpoint.node);
    let of_client = fact(name, &client.labels, &client.locality, &client.network, &client.node);
    of_endpoint.unwrap_or_default() == given.or(of_client).unwrap_or_default()
}

/// A label, or what the mesh knows under its name.
fn fact<'a>(name: &str, labels: &'a Labels, locality: &'a str, network: &'a str, node: &'a str) -> Option<&'a str> {
    let [region, zone, subzone] = parts(locality);
    match name {
        weft_core::well_known::label::REGION => Some(region),
        weft_core::well_known::label::ZONE => Some(zone),
        "topology.istio.io/subzone" => Some(subzone),
        "topology.istio.io/network" => Some(network),
        HOSTNAME_LABEL => Some(node),
        _ => labels.get(name).map(String::as_str),
    }
}

/// Priorities are counted without gaps: Envoy refuses them otherwise.
fn close_gaps(groups: &mut [Group<'_>]) {
    let mut used: Vec<u32> = groups.iter().map(|g| g.priority).collect();
    used.sort_unstable();
    used.dedup();
    for group in groups {
        let rank = used.iter().position(|p| *p == group.priority).unwrap_or_default();
        group.priority = u32::try_from(rank).unwrap_or(u32::MAX);
    }
}

/// `pattern` is a locality, or ends in `*`; fewer parts stand for all below them.
fn covers(pattern: &str, locality: &str) -> bool {
    if pattern == "*" || pattern == locality {
        return true;
    }
    let stem = pattern.strip_suffix("/*").unwrap_or(pattern);
    locality == stem || locality.strip_prefix(stem).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use weft_model::{EndpointAddress, Health};

    fn endpoint(locality: &str, labels: &[(&str, &str)]) -> Endpoint {
        Endpoint {
            address: EndpointAddress::Ip([10, 0, 0, 1].into(), 80),
            labels: Arc::new(labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()),
            workload: None,
            identity: String::new(),
            mtls: false,
            locality: locality.into(),
            network: String::new(),
            weight: 0,
            health: Health::Healthy,
            node: String::new(),
        }
    }

    fn client(locality: &str, labels: &[(&str, &str)]) -> ScopeKey {
        ScopeKey {
            namespace: "d".into(),
            dns_domain: String::new(),
            sidecar: None,
            gateway: false,
            weft: false,
            ipv6: false,
            dual: false,
            dns_capture: false,
            network: String::new(),
            locality: locality.into(),
            labels: labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            node: String::new(),
            headers: Default::default(),
        }
    }

    fn run(setting: serde_json::Value, from: &ScopeKey, all: &[Endpoint]) -> Vec<(String, u32, u32)> {
        let mut groups: Vec<_> = all.iter().map(|e| Group::new(&e.locality, vec![e])).collect();
        apply(&mut groups, from, &serde_json::from_value(setting).unwrap(), true);
        groups.iter().map(|g| (g.name.to_string(), g.weight, g.priority)).collect()
    }

    #[test]
    fn nearest_first_without_gaps() {
        let all = ["r1/z1/s1", "r1/z2/s1", "r2/z1/s1", "r3/z1/s1"].map(|l| endpoint(l, &[]));
        let from = client("r1/z1/s1", &[]);
        let priorities = |setting| run(setting, &from, &all).iter().map(|g| g.2).collect::<Vec<_>>();
        assert_eq!(priorities(serde_json::json!({})), [0, 1, 2, 2]);
        let failover = serde_json::json!({"failover": [{"from": "r1", "to": "r3"}]});
        assert_eq!(priorities(failover), [0, 1, 3, 2]);
    }

    #[test]
    fn shares_leave_the_rest_without_traffic() {
        let all = ["r1/z1", "r1/z2", "r2/z1"].map(|l| endpoint(l, &[]));
        let setting = serde_json::json!({"distribute": [{"from": "r1/z1/*", "to": {"r1/z1/*": 80, "r1/z2/*": 20}}]});
        let got = run(setting.clone(), &client("r1/z1", &[]), &all);
        assert_eq!(got, [("r1/z1".into(), 80, 0), ("r1/z2".into(), 20, 0)]);
        assert_eq!(run(setting, &client("r2/z1", &[]), &all).len(), 3, "other clients are not concerned");
    }

    #[test]
    fn labels_in_order() {
        let all =
            [endpoint("r", &[("v", "1"), ("c", "a")]), endpoint("r", &[("v", "1")]), endpoint("r", &[("v", "2")])];
        let from = client("r", &[("v", "1"), ("c", "a")]);
        let mut got = run(serde_json::json!({"failoverPriority": ["v", "c"]}), &from, &all);
        got.sort();
        assert_eq!(got.iter().map(|g| g.2).collect::<Vec<_>>(), [0, 1, 2]);
        let over = run(serde_json::json!({"failoverPriority": ["v=2"]}), &from, &all);
        assert_eq!(over.iter().map(|g| g.2).collect::<Vec<_>>(), [1, 1, 0]);
    }
}
