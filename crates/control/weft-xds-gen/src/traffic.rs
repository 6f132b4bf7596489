//! Traffic policies: what of a destination rule holds for one port of a service, or of one of its subsets.

use std::sync::Arc;
use weft_k8s_api::istio;
use weft_model::{DestinationRule, Labels};

/// The policy that holds, after all overriding.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Effective {
    pub load_balancer: Option<istio::LoadBalancerSettings>,
    pub connection_pool: Option<istio::ConnectionPoolSettings>,
    pub outlier_detection: Option<istio::OutlierDetection>,
    pub tls: Option<istio::ClientTlsSettings>,
    pub tunnel: Option<istio::TunnelSettings>,
    pub proxy_protocol: Option<istio::ProxyProtocol>,
    pub retry_budget: Option<istio::RetryBudget>,
}

/// The policy of `rule` for a service port, without subset.
pub(crate) fn for_port(mesh: &istio::MeshConfig, rule: Option<&Arc<DestinationRule>>, port: u16) -> Effective {
    with_mesh_defaults(mesh, port_policy(rule, port))
}

/// The policy of a subset of `rule` for a service port: what the subset says, else what the rule says.
pub(crate) fn for_subset(mesh: &istio::MeshConfig, rule: &Arc<DestinationRule>, port: u16, subset: &str) -> Effective {
    let mut policy = with_mesh_defaults(mesh, port_policy(Some(rule), port));
    let of_subset = rule.spec.subsets.iter().find(|s| s.name == subset).and_then(|s| s.traffic_policy.as_ref());
    if let Some(over) = of_subset {
        lay_over(&mut policy, over, port);
    }
    policy
}

/// Labels of a subset's endpoints; `None` when the rule has no such subset.
pub(crate) fn subset_labels<'a>(rule: Option<&'a Arc<DestinationRule>>, subset: &str) -> Option<&'a Labels> {
    rule?.spec.subsets.iter().find(|s| s.name == subset).map(|s| &s.labels)
}

fn port_policy(rule: Option<&Arc<DestinationRule>>, port: u16) -> Effective {
    let Some(policy) = rule.and_then(|r| r.spec.traffic_policy.as_ref()) else {
        return Effective::default();
    };
    let whole = Effective {
        load_balancer: policy.load_balancer.clone(),
        connection_pool: policy.connection_pool.clone(),
        outlier_detection: policy.outlier_detection.clone(),
        tls: policy.tls.clone(),
        tunnel: policy.tunnel.clone(),
        proxy_protocol: policy.proxy_protocol.clone(),
        retry_budget: policy.retry_budget.clone(),
    };
    match policy.port(port) {
        Some(of_port) => at_port(whole, of_port),
        None => whole,
    }
}

/// Port settings replace the whole of what they can set: what they leave out has its default, not the rule's value.
fn at_port(policy: Effective, of_port: &istio::PortTrafficPolicy) -> Effective {
    Effective {
        load_balancer: of_port.load_balancer.clone(),
        connection_pool: of_port.connection_pool.clone(),
        outlier_detection: of_port.outlier_detection.clone(),
        tls: of_port.tls.clone(),
        ..policy
    }
}

fn lay_over(policy: &mut Effective, over: &istio::TrafficPolicy, port: u16) {
    fn set<T: Clone>(field: &mut Option<T>, over: &Option<T>) {
        if over.is_some() {
            field.clone_from(over);
        }
    }
    set(&mut policy.load_balancer, &over.load_balancer);
    set(&mut policy.connection_pool, &over.connection_pool);
    set(&mut policy.outlier_detection, &over.outlier_detection);
    set(&mut policy.tls, &over.tls);
    set(&mut policy.tunnel, &over.tunnel);
    set(&mut policy.proxy_protocol, &over.proxy_protocol);
    set(&mut policy.retry_budget, &over.retry_budget);
    if let Some(of_port) = over.port(port) {
        *policy = at_port(std::mem::take(policy), of_port);
    }
}

fn with_mesh_defaults(mesh: &istio::MeshConfig, mut policy: Effective) -> Effective {
    if let Some(defaults) = &mesh.default_traffic_policy {
        policy.connection_pool = policy.connection_pool.or_else(|| defaults.connection_pool.clone());
        policy.outlier_detection = policy.outlier_detection.or_else(|| defaults.outlier_detection.clone());
    }
    policy
}

/// Locality settings that hold: those of the policy, else the mesh's. `None` when switched off.
pub(crate) fn locality_setting<'a>(
    mesh: &'a istio::MeshConfig,
    policy: &'a Effective,
) -> Option<&'a istio::LocalityLoadBalancerSetting> {
    let of_policy = policy.load_balancer.as_ref().and_then(|lb| lb.locality_lb_setting.as_ref());
    of_policy.or(mesh.locality_lb_setting.as_ref()).filter(|setting| setting.enabled != Some(false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::Provenance;

    fn rule(spec: serde_json::Value) -> Arc<DestinationRule> {
        Arc::new(DestinationRule {
            host: "a.b".into(),
            namespace: "b".into(),
            name: "r".into(),
            export_to: Default::default(),
            spec: Arc::new(serde_json::from_value(spec).unwrap()),
            origins: vec![Provenance::default()],
        })
    }

    #[test]
    fn narrower_wins() {
        let rule = rule(serde_json::json!({
            "host": "a.b",
            "trafficPolicy": {
                "loadBalancer": {"simple": "RANDOM"},
                "tls": {"mode": "SIMPLE"},
                "portLevelSettings": [{"port": {"number": 80}, "loadBalancer": {"simple": "ROUND_ROBIN"}}],
            },
            "subsets": [
                {"name": "plain"},
                {"name": "own", "trafficPolicy": {"loadBalancer": {"simple": "LEAST_REQUEST"}}},
                {"name": "port", "trafficPolicy": {
                    "portLevelSettings": [{"port": {"number": 80}, "tls": {"mode": "DISABLE"}}]}},
            ],
        }));
        let mesh = istio::MeshConfig::default();
        use istio::{ClientTlsMode as Tls, SimpleLb as Lb};
        // port, subset, load balancer, TLS
        for (port, subset, lb, tls) in [
            (81, "", Some(Lb::Random), Some(Tls::Simple)),
            (80, "", Some(Lb::RoundRobin), None),
            (81, "plain", Some(Lb::Random), Some(Tls::Simple)),
            (81, "own", Some(Lb::LeastRequest), Some(Tls::Simple)),
            (80, "own", Some(Lb::LeastRequest), None),
            (80, "port", None, Some(Tls::Disable)),
            (81, "port", Some(Lb::Random), Some(Tls::Simple)),
        ] {
            let policy = match subset {
                "" => for_port(&mesh, Some(&rule), port),
                _ => for_subset(&mesh, &rule, port, subset),
            };
            assert_eq!(policy.load_balancer.and_then(|l| l.simple), lb, "{port} {subset}");
            assert_eq!(policy.tls.map(|t| t.mode), tls, "{port} {subset}");
        }
    }
}
