//! The configuration files of a pair: one Envoy bootstrap for Envoy and weft-proxy alike, and the nearest that nginx and
//! haproxy have.

use crate::pki;
use anyhow::Result;
use serde_json::{Value, json};
use std::path::Path;

/// What passes through the pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Traffic {
    /// HTTP/1.1 all the way.
    #[default]
    Http1,
    /// HTTP/2 all the way, gRPC included.
    Http2,
    /// Bytes.
    Tcp,
}

/// What the proxies do besides forwarding over mutual TLS.
#[derive(Clone, Copy, Default)]
pub struct Features {
    /// The server's side decides by method and SPIFFE ID.
    pub authorization: bool,
    /// Both write a line for each request, to `/dev/null`.
    pub access_log: bool,
    /// Both keep the mesh's standard metrics; only weft-proxy has the filter.
    pub metrics: bool,
    /// Both make a span for one request of a hundred, and send it to a collector (Zipkin's API).
    pub tracing: bool,
    /// The server's side asks for a JSON Web Token; see [`crate::jwt`].
    pub jwt: bool,
    /// The rules of the server's side are those of a thousand policies of ten rules each.
    pub many_policies: bool,
}

/// The ports of a pair.
#[derive(Clone, Copy)]
pub struct Ports {
    /// The client's side takes plain traffic here.
    pub entry: u16,
    /// The server's side takes mutual TLS here.
    pub tls: u16,
    /// The application.
    pub app: u16,
}

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network";
const HTTP: &str = "type.googleapis.com/envoy.extensions.filters.http";

/// Bootstrap of the client's side.
pub fn client(folder: &Path, ports: Ports, traffic: Traffic, features: Features) -> Result<Value> {
    let route = json!({"cluster": "peer", "timeout": "0s",
        "retry_policy": {"retry_on": "connect-failure,refused-stream,unavailable,cancelled", "num_retries": 2}});
    let filters = http_filters(vec![fault()], features);
    let chain = json!({"filters": [network_filter("outbound", "peer", &route, filters, traffic, features)]});
    let mut cluster = cluster("peer", ports.tls, traffic);
    cluster["lb_policy"] = "LEAST_REQUEST".into();
    cluster["transport_socket"] = upstream_tls(folder, traffic);
    Ok(bootstrap(ports.entry, chain, with_collector(vec![cluster], ports, features)))
}

/// Bootstrap of the server's side.
pub fn server(folder: &Path, ports: Ports, traffic: Traffic, features: Features) -> Result<Value> {
    let mut filters = Vec::new();
    if features.jwt {
        filters.push(crate::jwt::filter(folder)?);
    }
    if features.authorization {
        filters.push(rbac(features.many_policies));
    }
    let filters = http_filters(filters, features);
    let route = json!({"cluster": "app", "timeout": "0s"});
    let mut chain = json!({"filters": [network_filter("inbound", "app", &route, filters, traffic, features)]});
    let hcm = &mut chain["filters"][0]["typed_config"];
    if traffic != Traffic::Tcp {
        hcm["forward_client_cert_details"] = "APPEND_FORWARD".into();
        hcm["set_current_client_cert_details"] = json!({"subject": true, "dns": true, "uri": true});
    }
    chain["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": format!("{TLS}.DownstreamTlsContext"), "require_client_certificate": true,
        "common_tls_context": common_tls(folder, "server", &alpn(traffic))}});
    let clusters = vec![cluster("app", ports.app, traffic)];
    Ok(bootstrap(ports.tls, chain, with_collector(clusters, ports, features)))
}

/// The application takes spans too: it answers whatever it is asked.
fn with_collector(mut clusters: Vec<Value>, ports: Ports, features: Features) -> Vec<Value> {
    if features.tracing {
        clusters.push(cluster("collector", ports.app, Traffic::Http1));
    }
    clusters
}

fn tracing() -> Value {
    json!({"random_sampling": {"value": 1}, "provider": {"name": "envoy.tracers.zipkin", "typed_config": {
        "@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig", "collector_cluster": "collector",
        "collector_endpoint": "/api/v2/spans", "collector_endpoint_version": "HTTP_JSON",
        "trace_id_128bit": true, "shared_span_context": false}}})
}

/// A bootstrap with that many services, for the size of configuration: each a cluster with mutual TLS and three endpoints,
/// and a virtual host with six domains.
pub fn services(folder: &Path, entry: u16, count: usize) -> Value {
    let name = |index: usize| format!("service-{index}.namespace-{}.svc.cluster.local", index % 50);
    let clusters = (0..count).map(|index| {
        let mut cluster = cluster(&format!("outbound|80||{}", name(index)), 1, Traffic::Http1);
        let address = |host: usize| format!("10.{}.{}.{}", index / 250 % 250, index % 250, host);
        let endpoint = |host| json!({"endpoint": {"address": socket(&address(host), 8080)}});
        cluster["load_assignment"]["endpoints"] = json!([{"lb_endpoints": [endpoint(1), endpoint(2), endpoint(3)]}]);
        cluster["transport_socket"] = upstream_tls(folder, Traffic::Http1);
        cluster
    });
    let hosts: Vec<Value> = (0..count)
        .map(|index| {
            let (short, space) = (format!("service-{index}"), format!("namespace-{}", index % 50));
            let domains = [name(index), format!("{short}.{space}"), format!("{short}.{space}.svc")];
            let domains: Vec<String> =
                domains.iter().flat_map(|domain| [domain.clone(), format!("{domain}:80")]).collect();
            json!({"name": name(index), "domains": domains, "routes": [{"match": {"prefix": "/"},
                "route": {"cluster": format!("outbound|80||{}", name(index))}}]})
        })
        .collect();
    let route = json!({"cluster": "none"});
    let filters = http_filters(Vec::new(), Features::default());
    let mut hcm = network_filter("outbound", "none", &route, filters, Traffic::Http1, Features::default());
    hcm["typed_config"]["route_config"] = json!({"name": "80", "virtual_hosts": hosts});
    bootstrap(entry, json!({"filters": [hcm]}), clusters.collect())
}

fn bootstrap(port: u16, chain: Value, clusters: Vec<Value>) -> Value {
    json!({"node": {"id": "bench", "cluster": "bench"}, "static_resources": {
        "listeners": [{"name": "listener", "address": socket("127.0.0.1", port), "filter_chains": [chain]}],
        "clusters": clusters}})
}

fn socket(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

fn network_filter(
    name: &str,
    cluster: &str,
    route: &Value,
    filters: Vec<Value>,
    traffic: Traffic,
    features: Features,
) -> Value {
    let log = match features.access_log {
        true => json!([{"name": "envoy.access_loggers.file", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/dev/null"}}]),
        false => json!([]),
    };
    if traffic == Traffic::Tcp {
        return json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": {
            "@type": format!("{NETWORK}.tcp_proxy.v3.TcpProxy"), "stat_prefix": name, "cluster": cluster,
            "access_log": log}});
    }
    let hosts = json!([{"name": name, "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}]);
    let mut manager = json!({
        "@type": format!("{NETWORK}.http_connection_manager.v3.HttpConnectionManager"), "stat_prefix": name,
        "generate_request_id": true, "normalize_path": true, "access_log": log,
        "route_config": {"name": "routes", "virtual_hosts": hosts}, "http_filters": filters});
    if features.tracing {
        manager["tracing"] = tracing();
    }
    json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager})
}

fn http_filters(mut filters: Vec<Value>, features: Features) -> Vec<Value> {
    if features.metrics {
        filters.push(json!({"name": "weft.filters.http.telemetry", "typed_config": {
            "@type": "type.googleapis.com/weft.v1.Telemetry"}}));
    }
    filters.push(
        json!({"name": "envoy.filters.http.router", "typed_config": {"@type": format!("{HTTP}.router.v3.Router")}}),
    );
    filters
}

fn fault() -> Value {
    json!({"name": "envoy.filters.http.fault", "typed_config": {"@type": format!("{HTTP}.fault.v3.HTTPFault")}})
}

/// Policies and rules of each for [`Features::many_policies`].
const POLICIES: usize = 1000;
const RULES: usize = 10;

fn rbac(many: bool) -> Value {
    let get = json!({"header": {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|POST"}}}});
    let client = json!({"authenticated": {"principal_name": {"exact": pki::spiffe("client")}}});
    // Its name is the last in order: who tries one policy after the other tries all.
    let mut policies =
        json!({"policy-of-callers": {"permissions": [{"and_rules": {"rules": [get]}}], "principals": [client]}});
    for policy in 0..if many { POLICIES } else { 0 } {
        for rule in 0..RULES {
            policies[format!("ns[default]-policy[policy-{policy}]-rule[{rule}]")] = rule_for_others(policy, rule);
        }
    }
    json!({"name": "envoy.filters.http.rbac", "typed_config": {"@type": format!("{HTTP}.rbac.v3.RBAC"), "rules": {
        "action": "ALLOW",
        "policies": policies}}})
}

/// A rule as Istio's policies become them, which does not hold for the requests of the measurement: by path, by beginning of
/// a path, by host, by caller, by the caller's namespace. One policy of ten names the caller, for another path.
fn rule_for_others(policy: usize, rule: usize) -> Value {
    let text = |exact: String| json!({"exact": exact});
    let header = |name: &str, value: String| json!({"header": {"name": name, "string_match": text(value)}});
    let path = json!({"url_path": {"path": text(format!("/service-{policy}/{rule}"))}});
    let what = match rule {
        0..4 => path,
        4 => json!({"url_path": {"path": {"prefix": format!("/service-{policy}/")}}}),
        5 | 6 => header(":authority", format!("service-{policy}.example")),
        _ => header(":method", "DELETE".into()),
    };
    let caller = match rule {
        0..4 if policy.is_multiple_of(10) => text(pki::spiffe("client")),
        7 => json!({"safe_regex": {"regex": format!(".*/ns/namespace-{policy}/.*")}}),
        _ => text(pki::spiffe(&format!("caller-{policy}"))),
    };
    let get = header(":method", "GET".into());
    let rules = json!([{"or_rules": {"rules": [what]}}, {"or_rules": {"rules": [get]}}]);
    let ids = json!([{"or_ids": {"ids": [{"authenticated": {"principal_name": caller}}]}}]);
    json!({"permissions": [{"and_rules": {"rules": rules}}], "principals": [{"and_ids": {"ids": ids}}]})
}

fn cluster(name: &str, port: u16, traffic: Traffic) -> Value {
    let endpoints = json!([{"lb_endpoints": [{"endpoint": {"address": socket("127.0.0.1", port)}}]}]);
    let mut cluster = json!({"name": name, "type": "STATIC", "connect_timeout": "10s",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints}});
    if traffic == Traffic::Http2 {
        cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}}}});
    }
    let threshold = json!({"max_connections": u32::MAX, "max_pending_requests": u32::MAX, "max_requests": u32::MAX,
        "max_retries": u32::MAX});
    cluster["circuit_breakers"] = json!({"thresholds": [threshold]});
    cluster
}

fn alpn(traffic: Traffic) -> Vec<&'static str> {
    match traffic {
        Traffic::Http1 => vec!["http/1.1"],
        Traffic::Http2 => vec!["h2"],
        Traffic::Tcp => vec!["istio"],
    }
}

fn upstream_tls(folder: &Path, traffic: Traffic) -> Value {
    let mut common = common_tls(folder, "client", &alpn(traffic));
    common["validation_context"]["match_typed_subject_alt_names"] =
        json!([{"san_type": "URI", "matcher": {"exact": pki::spiffe("server")}}]);
    json!({"name": "envoy.transport_sockets.tls", "typed_config": {"@type": format!("{TLS}.UpstreamTlsContext"),
        "common_tls_context": common, "sni": "outbound_.80_._.app.default.svc.cluster.local"}})
}

fn common_tls(folder: &Path, side: &str, alpn: &[&str]) -> Value {
    let file = |name: String| json!({"filename": folder.join(name)});
    json!({"alpn_protocols": alpn, "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificates": [{"certificate_chain": file(format!("{side}.crt")), "private_key": file(format!("{side}.key"))}],
        "validation_context": {"trusted_ca": file("ca.crt".into())}})
}

/// haproxy's file for one side.
pub fn haproxy(folder: &Path, ports: Ports, traffic: Traffic, client_side: bool, files: usize) -> String {
    let folder = folder.display();
    let (mode, proto, alpn) = match traffic {
        Traffic::Http1 => ("http", "", "alpn http/1.1"),
        Traffic::Http2 => ("http", "proto h2", "alpn h2"),
        Traffic::Tcp => ("tcp", "", ""),
    };
    // Two files for each connection, and some to spare.
    let most = (files - 200) / 2;
    let reuse = if traffic == Traffic::Tcp { "" } else { "option http-keep-alive\n  http-reuse always" };
    let (entry, tls, app) = (ports.entry, ports.tls, ports.app);
    let (bind, server) = match client_side {
        true => (
            format!("127.0.0.1:{entry} {proto}"),
            format!("127.0.0.1:{tls} ssl crt {folder}/client.pem ca-file {folder}/ca.crt verify none {alpn} {proto}"),
        ),
        false => (
            format!(
                "127.0.0.1:{tls} ssl crt {folder}/server.pem ca-file {folder}/ca.crt verify required {alpn} {proto}"
            ),
            format!("127.0.0.1:{app} {proto}"),
        ),
    };
    format!(
        "global\n  nbthread 1\n  maxconn {most}\ndefaults\n  mode {mode}\n  timeout connect 5s\n  timeout client 600s\n  \
         timeout server 600s\n  {reuse}\nfrontend f\n  bind {bind}\n  default_backend b\nbackend b\n  server s {server}\n"
    )
}

/// nginx's file for one side, HTTP/1.1 only: it has no HTTP/2 to its upstream.
pub fn nginx(folder: &Path, ports: Ports, client_side: bool) -> String {
    let (side, entry, next) =
        if client_side { ("client", ports.entry, ports.tls) } else { ("server", ports.tls, ports.app) };
    let files = folder.display();
    let crt = format!("{files}/{side}.crt");
    let key = format!("{files}/{side}.key");
    let (listen, listen_tls, pass, pass_tls);
    if client_side {
        (listen, listen_tls) = ("", String::new());
        (pass, pass_tls) = (
            "https",
            format!("proxy_ssl_certificate {crt}; proxy_ssl_certificate_key {key}; proxy_ssl_session_reuse on;"),
        );
    } else {
        (listen, listen_tls) = (
            "ssl",
            format!(
                "ssl_certificate {crt}; ssl_certificate_key {key}; ssl_client_certificate {files}/ca.crt; \
                 ssl_verify_client on;"
            ),
        );
        (pass, pass_tls) = ("http", String::new());
    }
    let head = format!(
        "worker_processes 1; daemon off; master_process off; pid {files}/nginx-{side}.pid; error_log {files}/nginx-{side}.err;\n\
         worker_rlimit_nofile 60000;\nevents {{ worker_connections 50000; }}\n"
    );
    format!(
        "{head}http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 600s; client_body_temp_path {files}/nt; \
         proxy_temp_path {files}/np-{side}; fastcgi_temp_path {files}/nf; uwsgi_temp_path {files}/nu; scgi_temp_path {files}/ns;\n\
         upstream up {{ server 127.0.0.1:{next}; keepalive 128; keepalive_requests 100000000; }}\n\
         server {{ listen 127.0.0.1:{entry} {listen} backlog=4096; {listen_tls}\n location / {{ proxy_http_version 1.1; \
         proxy_set_header Connection \"\"; proxy_buffering on; proxy_max_temp_file_size 0; proxy_pass {pass}://up; {pass_tls} }} }} }}\n"
    )
}
