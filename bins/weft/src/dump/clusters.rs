//! Clusters: one row each, its name taken apart.

use super::{Dump, field, origin, path, text};
use crate::output::Table;
use serde_json::Value;
use weft_core::names::ClusterName;

const SECTION: &str = "ClustersConfigDump";

/// Which clusters.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Host.
    pub fqdn: Option<String>,
    /// Port.
    pub port: Option<u16>,
    /// Subset.
    pub subset: Option<String>,
    /// `inbound` or `outbound`.
    pub direction: Option<String>,
}

impl Filter {
    fn takes(&self, name: &str) -> bool {
        let parts = ClusterName::parse(name);
        let host = parts.as_ref().map_or(name, |p| p.host);
        self.fqdn.as_ref().is_none_or(|wanted| wanted == host)
            && self.port.is_none_or(|wanted| parts.as_ref().is_some_and(|p| p.port == wanted))
            && self.subset.as_ref().is_none_or(|wanted| parts.as_ref().is_some_and(|p| p.subset == wanted))
            && self.direction.as_ref().is_none_or(|wanted| {
                parts.as_ref().is_some_and(|p| p.direction.to_string().eq_ignore_ascii_case(wanted))
            })
    }
}

/// The clusters in use.
pub fn items<'a>(dump: &'a Dump, filter: &Filter) -> Vec<&'a Value> {
    let mut found = dump.items(SECTION, &["static_clusters", "dynamic_active_clusters"], &["cluster"]);
    found.retain(|cluster| filter.takes(text(cluster, "name")));
    found
}

/// `SERVICE FQDN, PORT, SUBSET, DIRECTION, TYPE, DESTINATION RULE`.
pub fn table(dump: &Dump, filter: &Filter) -> Table {
    let mut table = Table::new(["SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "DESTINATION RULE"]);
    for cluster in items(dump, filter) {
        let name = text(cluster, "name");
        let rule = origin(cluster, "DestinationRule").unwrap_or_default();
        let kind = cluster_type(cluster);
        let dash = |text: &str| if text.is_empty() { "-".to_string() } else { text.to_string() };
        match ClusterName::parse(name) {
            Some(p) => {
                table.row([dash(p.host), p.port.to_string(), dash(p.subset), p.direction.to_string(), kind, rule]);
            }
            None => table.row([name.to_string(), "-".into(), "-".into(), "-".into(), kind, rule]),
        }
    }
    table.sort();
    table
}

fn cluster_type(cluster: &Value) -> String {
    let custom = path(cluster, &["cluster_type", "name"]).as_str();
    match (custom, text(cluster, "type")) {
        (Some(name), _) => name.rsplit('.').next().unwrap_or(name).to_ascii_uppercase(),
        // The zero value is not written.
        (None, "") => "STATIC".into(),
        (None, kind) => field(cluster, "type").as_str().unwrap_or(kind).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::dump;
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_taken_apart() {
        let rule = json!({"filter_metadata": {"istio":
            {"config": "/apis/networking.istio.io/v1/namespaces/default/destination-rule/reviews"}}});
        let dump = dump(
            SECTION,
            json!({
                "static_clusters": [{"cluster": {"name": "prometheus_stats", "type": "STATIC"}}],
                "dynamic_active_clusters": [
                    {"cluster": {"name": "outbound|9080|v1|reviews.default.svc.cluster.local", "type": "EDS", "metadata": rule}},
                    {"cluster": {"name": "outbound|9080||reviews.default.svc.cluster.local", "type": "EDS"}},
                    {"cluster": {"name": "inbound|9080||", "type": "ORIGINAL_DST"}},
                    {"cluster": {"name": "BlackHoleCluster"}},
                    {"cluster": {"name": "dfp", "cluster_type": {"name": "envoy.clusters.dynamic_forward_proxy"}}},
                ],
            }),
        );
        let text = table(&dump, &Filter::default());
        let rows: Vec<String> = text.rows().iter().map(|r| r.join(" ").trim_end().to_string()).collect();
        assert_eq!(
            rows,
            [
                "- 9080 - inbound ORIGINAL_DST",
                "BlackHoleCluster - - - STATIC",
                "dfp - - - DYNAMIC_FORWARD_PROXY",
                "prometheus_stats - - - STATIC",
                "reviews.default.svc.cluster.local 9080 - outbound EDS",
                "reviews.default.svc.cluster.local 9080 v1 outbound EDS reviews.default",
            ]
        );
        let count = |filter: Filter| items(&dump, &filter).len();
        assert_eq!(count(Filter { fqdn: Some("reviews.default.svc.cluster.local".into()), ..Filter::default() }), 2);
        assert_eq!(count(Filter { subset: Some("v1".into()), ..Filter::default() }), 1);
        assert_eq!(count(Filter { port: Some(9080), direction: Some("INBOUND".into()), ..Filter::default() }), 1);
    }
}
