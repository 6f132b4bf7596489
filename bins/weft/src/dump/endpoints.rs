//! Endpoints: one row per address of a cluster. From the live list of hosts (`/clusters?format=json`) where the proxy has
//! one, which knows of ejections; else from the config dump.

use super::{Dump, address, each, field, path, text};
use crate::output::Table;
use serde_json::Value;

const SECTION: &str = "EndpointsConfigDump";

/// Which endpoints.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Cluster.
    pub cluster: Option<String>,
    /// Address.
    pub address: Option<String>,
    /// Port.
    pub port: Option<u16>,
    /// `healthy`, `unhealthy` …
    pub status: Option<String>,
}

/// An endpoint of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Endpoint {
    cluster: String,
    address: String,
    port: String,
    status: String,
    ejected: bool,
}

impl Endpoint {
    fn place(&self) -> String {
        match self.port.as_str() {
            "-" => self.address.clone(),
            port if self.address.contains(':') => format!("[{}]:{port}", self.address),
            port => format!("{}:{port}", self.address),
        }
    }
}

impl Filter {
    fn takes(&self, endpoint: &Endpoint) -> bool {
        self.cluster.as_ref().is_none_or(|c| *c == endpoint.cluster)
            && self.address.as_ref().is_none_or(|a| *a == endpoint.address)
            && self.port.is_none_or(|p| p.to_string() == endpoint.port)
            && self.status.as_ref().is_none_or(|s| s.eq_ignore_ascii_case(&endpoint.status))
    }
}

/// `ENDPOINT, STATUS, OUTLIER CHECK, CLUSTER`.
pub fn table(dump: &Dump, live: Option<&Value>, filter: &Filter) -> Table {
    let mut found = match live {
        Some(live) => of_hosts(live),
        None => of_dump(dump),
    };
    found.retain(|endpoint| filter.takes(endpoint));
    found.sort_by_key(|e| (e.place(), e.cluster.clone()));
    let mut table = Table::new(["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"]);
    for endpoint in found {
        let check = if endpoint.ejected { "FAILED" } else { "OK" };
        table.row([endpoint.place().as_str(), &endpoint.status, check, &endpoint.cluster]);
    }
    table
}

/// The clusters' hosts (or load assignments), for JSON and YAML.
pub fn items<'a>(dump: &'a Dump, live: Option<&'a Value>, filter: &Filter) -> Vec<&'a Value> {
    let clusters: Vec<&Value> = match live {
        Some(live) => each(field(live, "cluster_statuses")).collect(),
        None => assignments(dump),
    };
    let name =
        |c: &Value| if live.is_some() { text(c, "name").to_string() } else { text(c, "cluster_name").to_string() };
    clusters.into_iter().filter(|c| filter.cluster.as_ref().is_none_or(|wanted| *wanted == name(c))).collect()
}

fn assignments(dump: &Dump) -> Vec<&Value> {
    dump.items(SECTION, &["static_endpoint_configs", "dynamic_endpoint_configs"], &["endpoint_config"])
}

/// True when an answer of `/clusters?format=json` can be used.
pub fn is_live(value: &Value) -> bool {
    field(value, "cluster_statuses").is_array()
}

fn of_hosts(live: &Value) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for cluster in each(field(live, "cluster_statuses")) {
        for host in each(field(cluster, "host_statuses")) {
            let (address, port) = address(field(host, "address"));
            let health = field(host, "health_status");
            let failed = |name: &str| field(health, name).as_bool().unwrap_or(false);
            let status = match text(health, "eds_health_status") {
                _ if failed("failed_active_health_check") => "UNHEALTHY",
                "" | "UNKNOWN" => "HEALTHY",
                word => word,
            };
            found.push(Endpoint {
                cluster: text(cluster, "name").into(),
                address,
                port,
                status: status.into(),
                ejected: failed("failed_outlier_check"),
            });
        }
    }
    found
}

fn of_dump(dump: &Dump) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for assignment in assignments(dump) {
        for locality in each(field(assignment, "endpoints")) {
            for endpoint in each(field(locality, "lb_endpoints")) {
                let (address, port) = address(path(endpoint, &["endpoint", "address"]));
                let status = match text(endpoint, "health_status") {
                    "" | "UNKNOWN" => "HEALTHY",
                    word => word,
                };
                found.push(Endpoint {
                    cluster: text(assignment, "cluster_name").into(),
                    address,
                    port,
                    status: status.into(),
                    ejected: false,
                });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tests::dump;
    use super::*;
    use serde_json::json;

    fn rows(dump: &Dump, live: Option<&Value>, filter: &Filter) -> Vec<String> {
        table(dump, live, filter).rows().iter().map(|r| r.join(" ")).collect()
    }

    #[test]
    fn from_the_dump() {
        let endpoint =
            |address: Value, status: &str| json!({"endpoint": {"address": address}, "health_status": status});
        let socket = |ip: &str| json!({"socket_address": {"address": ip, "port_value": 9080}});
        let dump = dump(
            SECTION,
            json!({
                "dynamic_endpoint_configs": [{"endpoint_config": {"cluster_name": "outbound|9080||a", "endpoints": [
                    {"lb_endpoints": [endpoint(socket("10.0.0.2"), "HEALTHY"), endpoint(socket("10.0.0.1"), "UNHEALTHY")]}]}}],
                "static_endpoint_configs": [{"endpoint_config": {"cluster_name": "sds", "endpoints": [
                    {"lb_endpoints": [endpoint(json!({"pipe": {"path": "/run/s"}}), ""), endpoint(socket("::1"), "")]}]}}],
            }),
        );
        assert_eq!(
            rows(&dump, None, &Filter::default()),
            [
                "10.0.0.1:9080 UNHEALTHY OK outbound|9080||a",
                "10.0.0.2:9080 HEALTHY OK outbound|9080||a",
                "[::1]:9080 HEALTHY OK sds",
                "unix:///run/s HEALTHY OK sds",
            ]
        );
        let unhealthy = Filter { status: Some("unhealthy".into()), ..Filter::default() };
        assert_eq!(rows(&dump, None, &unhealthy).len(), 1);
        let cluster = Filter { cluster: Some("sds".into()), ..Filter::default() };
        assert_eq!(items(&dump, None, &cluster).len(), 1);
    }

    #[test]
    fn from_the_live_list() {
        let live = json!({"cluster_statuses": [{"name": "c", "host_statuses": [
            {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}},
             "health_status": {"eds_health_status": "HEALTHY", "failed_outlier_check": true}},
            {"address": {"socket_address": {"address": "10.0.0.2", "port_value": 80}},
             "health_status": {"failed_active_health_check": true}}]}]});
        assert!(is_live(&live));
        assert!(!is_live(&json!({})));
        let found = rows(&Dump::default(), Some(&live), &Filter::default());
        assert_eq!(found, ["10.0.0.1:80 HEALTHY FAILED c", "10.0.0.2:80 UNHEALTHY OK c"]);
        assert_eq!(items(&Dump::default(), Some(&live), &Filter::default()).len(), 1);
    }
}
