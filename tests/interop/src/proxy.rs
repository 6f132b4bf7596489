//! weft-proxy as a process, on a bootstrap file that a test writes.

use crate::process::weft;
use crate::{backend, eventually};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command, Stdio};
pub use weft_test_ports::free_port;

/// A running weft-proxy; ended with the value.
pub struct Proxy {
    child: Child,
    folder: tempfile::TempDir,
}

impl Proxy {
    /// Starts one on that bootstrap.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(bootstrap: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("proxy.json");
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(weft("weft-proxy"))
            .args(["--concurrency", "1", "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    /// Waits until that port of it takes connections.
    ///
    /// # Panics
    /// With its log, when it does not.
    pub fn until_listening(&mut self, port: u16) {
        eventually("the proxy listens", || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("weft-proxy ended: {status}\n{}", self.log());
            }
            std::net::TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|e| format!("{e}\n{}", self.log()))
        });
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A counter or gauge of an admin port.
///
/// # Errors
/// When there is none of that name.
pub fn stat(admin: u16, name: &str) -> Result<u64, String> {
    let (_, text) = backend::get(admin, "admin", "/stats", &[])?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.and_then(|value| value.trim().parse().ok()).ok_or_else(|| format!("no {name} in\n{text}"))
}

/// An address of 127.0.0.1 in Envoy's words.
pub fn socket(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

/// An address of an admin port in Envoy's words.
pub fn admin(port: u16) -> Value {
    json!({"address": socket(port)})
}

/// A static cluster of one endpoint; `more` is merged into it.
pub fn cluster(name: &str, port: u16, more: &Value) -> Value {
    let mut cluster = json!({"name": name, "type": "STATIC", "connect_timeout": "20s", "load_assignment": {
        "cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(port)}}]}]}});
    merge(&mut cluster, more);
    cluster
}

/// What makes a cluster speak HTTP/2.
pub fn http2() -> Value {
    json!({"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}}}}})
}

/// A listener with one HTTP connection manager; `manager` is merged into that, `chain` into the filter chain.
pub fn listener(name: &str, port: u16, manager: &Value, chain: &Value) -> Value {
    let mut hcm = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]});
    merge(&mut hcm, manager);
    let mut whole =
        json!({"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": hcm}]});
    merge(&mut whole, chain);
    json!({"name": name, "address": socket(port), "filter_chains": [whole]})
}

/// Routes that lead everything to a cluster, without a time limit.
pub fn all_to(cluster: &str) -> Value {
    json!({"route_config": {"name": "r", "virtual_hosts": [{"name": "all", "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}]}]}})
}

/// The two sides of a pair over mutual TLS: bootstraps of client and server, in front of an application that speaks HTTP/2.
/// `client` and `server` are merged into the connection managers.
pub fn pair(folder: &Path, [entry, tls, app]: [u16; 3], client: &Value, server: &Value) -> [Value; 2] {
    let context = |side: &str| {
        let file = |name: String| json!({"filename": folder.join(name)});
        json!({"alpn_protocols": ["h2"], "validation_context": {"trusted_ca": file("ca.crt".into())},
            "tls_certificates": [{"certificate_chain": file(format!("{side}.crt")),
                                  "private_key": file(format!("{side}.key"))}]})
    };
    let socket_of = |kind: &str, more: Value| {
        let mut typed =
            json!({"@type": format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}")});
        merge(&mut typed, &more);
        json!({"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": typed}})
    };
    let upstream = socket_of("UpstreamTlsContext", json!({"common_tls_context": context("client"), "sni": "app"}));
    let downstream = json!({"common_tls_context": context("server"), "require_client_certificate": true});
    let downstream = socket_of("DownstreamTlsContext", downstream);
    let mut peer = http2();
    merge(&mut peer, &upstream);
    let of = |name: &str, port: u16, to: &str, manager: &Value, chain: &Value, cluster: Value| {
        let mut all = all_to(to);
        merge(&mut all, manager);
        json!({"static_resources": {"listeners": [listener(name, port, &all, chain)], "clusters": [cluster]}})
    };
    [
        of("outbound", entry, "peer", client, &json!({}), cluster("peer", tls, &peer)),
        of("inbound", tls, "app", server, &downstream, cluster("app", app, &http2())),
    ]
}

/// Puts the fields of one object into another.
pub fn merge(into: &mut Value, from: &Value) {
    for (key, value) in from.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}
