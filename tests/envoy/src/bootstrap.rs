//! A bootstrap file of generated resources: what would come over streams is put where it is named.

use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use weft_proto::envoy::config::cluster::v3::Cluster;
use weft_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use weft_proto::envoy::config::listener::v3::Listener;
use weft_proto::envoy::config::route::v3::RouteConfiguration;
use weft_proto::{json::to_json, unpack};
use weft_xds_gen::{ProxyResources, ResourceMap};

fn messages<M: prost::Message + prost::Name + Default>(map: &ResourceMap) -> Vec<Value> {
    map.iter().map(|r| to_json(&unpack::<M>(&r.any).unwrap(), true).unwrap()).collect()
}

fn named(values: Vec<Value>, key: &str) -> Map<String, Value> {
    values.into_iter().map(|v| (v[key].as_str().unwrap().to_string(), v)).collect()
}

/// The listeners and clusters of `resources`, routes and endpoints inside; the listener of `port` listens on loopback, on
/// the twin's port, whatever it was made for. `None` where there is no such listener.
pub fn of_proxy(resources: &ProxyResources, port: u16) -> Option<String> {
    let routes = named(messages::<RouteConfiguration>(&resources.routes), "name");
    let endpoints = named(messages::<ClusterLoadAssignment>(&resources.endpoints), "cluster_name");
    let mut listeners = messages::<Listener>(&resources.listeners);
    listeners.retain(|l| l["address"]["socket_address"]["port_value"] == port);
    assert!(listeners.len() < 2, "one listener on port {port}");
    if listeners.is_empty() {
        return None;
    }
    for listener in &mut listeners {
        inline_routes(listener, &routes);
        if let Some(listener) = listener.as_object_mut() {
            listener.remove("bind_to_port");
        }
        listener["address"] = json!({"socket_address": {"address": "127.0.0.1", "port_value": crate::twin::PORT}});
        quiet(listener);
    }
    let mut clusters = messages::<Cluster>(&resources.clusters);
    clusters.iter_mut().for_each(|cluster| inline_endpoints(cluster, &endpoints));
    let of_own = ["BlackHoleCluster", "PassthroughCluster"];
    clusters.retain(|c| c["name"].as_str().is_some_and(|name| name.starts_with("outbound|") || of_own.contains(&name)));
    let file = json!({
        "node": {"id": "twin", "cluster": "twin"},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    });
    // A port is a number, also where a name stands for it.
    Some(file.to_string().replace(&format!("\"{}\"", crate::twin::PORT), crate::twin::PORT))
}

/// Takes out what needs clusters that are not there (tracing), or writes to the terminal (logs).
fn quiet(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("access_log");
            map.remove("tracing");
            map.values_mut().for_each(quiet);
        }
        Value::Array(items) => items.iter_mut().for_each(quiet),
        _ => {}
    }
}

/// Replaces every `rds` by the configuration that it names.
fn inline_routes(value: &mut Value, routes: &Map<String, Value>) {
    match value {
        Value::Object(map) => {
            if let Some(rds) = map.remove("rds") {
                let name = rds["route_config_name"].as_str().unwrap();
                let route = routes.get(name).unwrap_or_else(|| panic!("route {name} is not generated"));
                map.insert("route_config".into(), route.clone());
            }
            map.values_mut().for_each(|v| inline_routes(v, routes));
        }
        Value::Array(items) => items.iter_mut().for_each(|v| inline_routes(v, routes)),
        _ => {}
    }
}

/// Makes a static cluster of one that is found by EDS.
fn inline_endpoints(cluster: &mut Value, endpoints: &Map<String, Value>) {
    if cluster["type"] != "EDS" {
        return;
    }
    let name = cluster["name"].as_str().unwrap().to_string();
    let Some(map) = cluster.as_object_mut() else { return };
    map.remove("eds_cluster_config");
    map.insert("type".into(), json!("STATIC"));
    let none = json!({"cluster_name": name});
    map.insert("load_assignment".into(), endpoints.get(&name).cloned().unwrap_or(none));
}

/// One HTTP listener on the twin's port with these fields of the connection manager, virtual hosts and HTTP filters before
/// the router, and clusters as given.
pub fn plain(manager: &str, virtual_hosts: &str, filters: &str, clusters: &[(&str, SocketAddr, &str)]) -> String {
    let clusters: Vec<String> = clusters.iter().map(|(name, addr, extra)| cluster(name, *addr, extra)).collect();
    format!(
        r#"static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: 127.0.0.1, port_value: @PORT@}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: t, {manager} route_config: {{name: r, validate_clusters: false, virtual_hosts: {virtual_hosts}}}, http_filters: [{filters} {{name: envoy.filters.http.router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}
  clusters:
{}"#,
        clusters.concat()
    )
}

/// A static cluster of one endpoint.
pub fn cluster(name: &str, addr: SocketAddr, extra: &str) -> String {
    format!(
        "  - {{name: {name}, type: STATIC, connect_timeout: 20s, {extra} load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}]}}]}}}}\n",
        addr.ip(),
        addr.port()
    )
}
