//! Listeners: one row per filter chain, with what it matches and where it leads.

use super::{Dump, address, each, field, path, text, texts, type_is};
use crate::output::Table;
use serde_json::Value;

const SECTION: &str = "ListenersConfigDump";

/// Which listeners.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Port.
    pub port: Option<u16>,
    /// Address.
    pub address: Option<String>,
}

/// The listeners that are in use.
pub fn items<'a>(dump: &'a Dump, filter: &Filter) -> Vec<&'a Value> {
    let mut found = dump.items(SECTION, &["static_listeners"], &["listener"]);
    found.extend(dump.items(SECTION, &["dynamic_listeners"], &["active_state", "listener"]));
    found.retain(|listener| {
        let (ip, port) = address(field(listener, "address"));
        filter.port.is_none_or(|wanted| port == wanted.to_string()) && filter.address.as_ref().is_none_or(|a| *a == ip)
    });
    found
}

/// `ADDRESSES PORT MATCH DESTINATION`.
pub fn table(dump: &Dump, filter: &Filter) -> Table {
    let mut listeners: Vec<(u32, String, &Value)> = items(dump, filter)
        .into_iter()
        .map(|listener| {
            let (ip, port) = address(field(listener, "address"));
            (port.parse().unwrap_or(0), ip, listener)
        })
        .collect();
    listeners.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    let mut table = Table::new(["ADDRESSES", "PORT", "MATCH", "DESTINATION"]);
    for (port, ip, listener) in listeners {
        let more = each(field(listener, "additional_addresses")).map(|a| address(field(a, "address")).0);
        let addresses = [ip].into_iter().chain(more).collect::<Vec<_>>().join(",");
        let default = field(listener, "default_filter_chain");
        let chains = each(field(listener, "filter_chains")).chain((!default.is_null()).then_some(default));
        for chain in chains {
            table.row([addresses.clone(), port.to_string(), chain_match(chain), destination(chain)]);
        }
    }
    table
}

fn chain_match(chain: &Value) -> String {
    let conditions = field(chain, "filter_chain_match");
    let mut parts = Vec::new();
    let names = texts(field(conditions, "server_names"));
    if !names.is_empty() {
        parts.push(format!("SNI: {}", names.join(",")));
    }
    let transport = text(conditions, "transport_protocol");
    if !transport.is_empty() {
        parts.push(format!("Trans: {transport}"));
    }
    let protocols = texts(field(conditions, "application_protocols"));
    if !protocols.is_empty() {
        parts.push(format!("App: {}", protocols.join(",")));
    }
    let ranges: Vec<String> = each(field(conditions, "prefix_ranges")).map(range).collect();
    let port = field(conditions, "destination_port").as_u64();
    match (ranges.is_empty(), port) {
        (true, None) => {}
        (true, Some(port)) => parts.push(format!("Addr: *:{port}")),
        (false, None) => parts.push(format!("Addr: {}", ranges.join(","))),
        (false, Some(port)) => parts.push(format!("Addr: {}:{port}", ranges.join(","))),
    }
    if parts.is_empty() { "ALL".into() } else { parts.join("; ") }
}

fn range(range: &Value) -> String {
    let length = field(range, "prefix_len").as_u64().unwrap_or(0);
    format!("{}/{length}", text(range, "address_prefix"))
}

/// What the first filter that ends the chain does with a connection.
fn destination(chain: &Value) -> String {
    for filter in each(field(chain, "filters")) {
        let config = field(filter, "typed_config");
        if type_is(config, "HttpConnectionManager") {
            return http_destination(config);
        }
        if type_is(config, "TcpProxy") {
            return tcp_destination(config);
        }
    }
    "Non-HTTP/Non-TCP".into()
}

fn cluster(name: &str) -> String {
    // PassthroughCluster and its kin say what they are.
    if name.contains("Cluster") { name.to_string() } else { format!("Cluster: {name}") }
}

fn tcp_destination(config: &Value) -> String {
    let weighted: Vec<String> = each(path(config, &["weighted_clusters", "clusters"]))
        .map(|c| format!("{} ({})", text(c, "name"), field(c, "weight").as_u64().unwrap_or(0)))
        .collect();
    match (text(config, "cluster"), weighted.is_empty()) {
        ("", true) => "TCP".into(),
        ("", false) => format!("Clusters: {}", weighted.join(", ")),
        (name, _) => cluster(name),
    }
}

fn http_destination(config: &Value) -> String {
    let name = path(config, &["rds", "route_config_name"]).as_str().unwrap_or_default();
    if !name.is_empty() {
        return format!("Route: {name}");
    }
    let hosts: Vec<&Value> = each(path(config, &["route_config", "virtual_hosts"])).collect();
    let routes: Vec<&Value> = hosts.iter().flat_map(|host| each(field(host, "routes"))).collect();
    let targets: Vec<&str> =
        routes.iter().map(|r| path(r, &["route", "cluster"]).as_str().unwrap_or_default()).collect();
    if let [first, rest @ ..] = targets.as_slice()
        && !first.is_empty()
        && rest.iter().all(|t| t == first)
        && routes.iter().any(|r| path(r, &["match", "prefix"]) == "/")
    {
        return cluster(first);
    }
    let described: Vec<String> = hosts
        .iter()
        .map(|host| {
            let domains = texts(field(host, "domains")).join(",");
            let routes: Vec<String> = each(field(host, "routes")).map(super::routes::route_match).collect();
            if domains == "*" { routes.join(", ") } else { format!("{domains} {}", routes.join(", ")) }
        })
        .collect();
    if described.is_empty() { "HTTP".into() } else { format!("Inline Route: {}", described.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::dump;
    use super::*;
    use serde_json::json;

    fn rows(listener: Value) -> Vec<Vec<String>> {
        let dump = dump(SECTION, json!({"dynamic_listeners": [{"name": "x", "active_state": {"listener": listener}}]}));
        table(&dump, &Filter::default()).rows().to_vec()
    }

    fn tcp(cluster: &str) -> Value {
        json!({"name": "envoy.filters.network.tcp_proxy", "typed_config":
            {"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "cluster": cluster}})
    }

    fn http(more: Value) -> Value {
        let name =
            "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        let mut config = json!({"@type": name});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": config})
    }

    #[test]
    fn a_row_per_filter_chain() {
        let address = json!({"socket_address": {"address": "0.0.0.0", "port_value": 80}});
        let inline = json!({"route_config": {"virtual_hosts": [{"domains": ["*"], "routes":
            [{"match": {"prefix": "/healthz/ready"}, "route": {"cluster": "agent"}}]}]}});
        let all = json!({"route_config": {"virtual_hosts": [{"domains": ["*"], "routes":
            [{"match": {"prefix": "/"}, "route": {"cluster": "inbound|9080||"}}]}]}});
        let rows = rows(json!({
            "address": address,
            "filter_chains": [
                {"filter_chain_match": {"transport_protocol": "raw_buffer", "application_protocols": ["http/1.1", "h2c"]},
                 "filters": [http(json!({"rds": {"route_config_name": "80"}}))]},
                {"filter_chain_match": {"destination_port": 15006}, "filters": [{"name": "x"}]},
                {"filter_chain_match": {"prefix_ranges": [{"address_prefix": "10.1.2.3", "prefix_len": 32}]},
                 "filters": [tcp("outbound|53||dns")]},
                {"filter_chain_match": {"server_names": ["a.com", "b.com"]}, "filters": [http(inline)]},
                {"filter_chain_match": {"transport_protocol": "tls", "destination_port": 9080}, "filters": [http(all)]},
            ],
            "default_filter_chain": {"filters": [{"name": "stats"}, tcp("PassthroughCluster")]},
        }));
        let wanted = [
            ("Trans: raw_buffer; App: http/1.1,h2c", "Route: 80"),
            ("Addr: *:15006", "Non-HTTP/Non-TCP"),
            ("Addr: 10.1.2.3/32", "Cluster: outbound|53||dns"),
            ("SNI: a.com,b.com", "Inline Route: /healthz/ready*"),
            ("Trans: tls; Addr: *:9080", "Cluster: inbound|9080||"),
            ("ALL", "PassthroughCluster"),
        ];
        assert_eq!(rows.len(), wanted.len());
        for (row, (conditions, destination)) in rows.iter().zip(wanted) {
            assert_eq!(row, &["0.0.0.0", "80", conditions, destination]);
        }
    }

    #[test]
    fn listeners_are_filtered_and_sorted() {
        let listener = |ip: &str, port: u16| json!({"address": {"socketAddress": {"address": ip, "portValue": port}}, "filterChains": [{"filters": [tcp("c")]}]});
        let dump = dump(
            SECTION,
            json!({"staticListeners": [{"listener": listener("0.0.0.0", 15090)}],
                   "dynamicListeners": [{"activeState": {"listener": listener("10.0.0.2", 9080)}},
                                        {"activeState": {"listener": listener("10.0.0.1", 9080)}},
                                        {"warmingState": {"listener": listener("10.0.0.9", 1)}}]}),
        );
        let ports = |filter: Filter| -> Vec<String> {
            table(&dump, &filter).rows().iter().map(|r| format!("{}:{}", r[0], r[1])).collect()
        };
        assert_eq!(ports(Filter::default()), ["10.0.0.1:9080", "10.0.0.2:9080", "0.0.0.0:15090"]);
        assert_eq!(ports(Filter { port: Some(15090), address: None }), ["0.0.0.0:15090"]);
        assert_eq!(ports(Filter { port: None, address: Some("10.0.0.2".into()) }), ["10.0.0.2:9080"]);
    }
}
