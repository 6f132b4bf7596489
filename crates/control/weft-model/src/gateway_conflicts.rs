//! Servers of Gateways that the same workloads serve and that cannot be served together: the older one keeps port and hosts.
//! The generator leaves the others out; here is said which, and why.

use crate::{Gateway, GatewayWorkloads, Warning};
use std::collections::HashMap;
use weft_k8s_api::istio::{Server, ServerTlsMode};

/// Code of a server that is left out for that of another Gateway.
const CONFLICT: &str = "IST0145";

/// What is known of one port of one set of workloads.
struct Taken<'a> {
    /// One connection manager reads plain HTTP for all.
    plain_http: bool,
    /// Told apart by server name.
    tls: bool,
    gateway: &'a Gateway,
    hosts: HashMap<String, &'a Gateway>,
}

/// All conflicts; `gateways` are oldest first.
pub(crate) fn find<'a>(gateways: impl Iterator<Item = &'a Gateway>) -> Vec<Warning> {
    let mut found = Vec::new();
    let mut ports: HashMap<(&[GatewayWorkloads], u32, &str), Taken<'_>> = HashMap::new();
    for gateway in gateways {
        for (index, server) in gateway.spec.servers.iter().enumerate() {
            let Some(port) = server.port.as_ref().map(|p| p.number) else { continue };
            let slot = (gateway.workloads.as_slice(), port, server.bind.as_str());
            let (plain_http, tls) = (is_plain_http(server), opens_or_passes(server));
            let taken = ports.entry(slot).or_insert_with(|| Taken { plain_http, tls, gateway, hosts: HashMap::new() });
            let fits = taken.plain_http == plain_http && (plain_http || (taken.tls && tls));
            let first = std::ptr::eq(taken.gateway, gateway) && taken.hosts.is_empty();
            let message = if !fits && !first {
                let protocol = server.port.as_ref().map_or("", |p| p.protocol.as_str());
                let by = name(taken.gateway);
                Some(format!(
                    "port {port} is taken by Gateway {by} for another protocol than {protocol}; the server is left out; use another port"
                ))
            } else if tls {
                claim(taken, gateway, server, port)
            } else {
                taken.hosts.entry(String::new()).or_insert(gateway);
                None
            };
            if let Some(message) = message {
                let path = format!("spec.servers[{index}]");
                let generated = !gateway.provenance.path.is_empty();
                let at = if generated { gateway.provenance.clone() } else { gateway.provenance.at(path) };
                found.push(Warning { at, code: CONFLICT, message });
            }
        }
    }
    found
}

/// Takes the server's hosts; says whose they are when one of them is taken.
fn claim<'a>(taken: &mut Taken<'a>, gateway: &'a Gateway, server: &Server, port: u32) -> Option<String> {
    let hosts: Vec<String> = server.hosts.iter().map(|h| bare(h).to_ascii_lowercase()).collect();
    for host in &hosts {
        if let Some(by) = taken.hosts.get(host) {
            let by = name(by);
            return Some(format!(
                "host {host} on port {port} already belongs to Gateway {by}; the server is left out; remove the host from one of them"
            ));
        }
    }
    taken.hosts.extend(hosts.into_iter().map(|host| (host, gateway)));
    None
}

fn name(gateway: &Gateway) -> String {
    format!("{}/{}", gateway.provenance.namespace, gateway.provenance.name)
}

fn bare(host: &str) -> &str {
    host.split_once('/').map_or(host, |(_, host)| host)
}

fn is_plain_http(server: &Server) -> bool {
    let protocol = server.port.as_ref().map(|p| p.protocol.to_ascii_uppercase()).unwrap_or_default();
    matches!(protocol.as_str(), "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" | "HTTP_PROXY")
}

/// TLS that tells servers apart: opened here, or passed on.
fn opens_or_passes(server: &Server) -> bool {
    let redirects_only = server.tls.as_ref().is_some_and(|t| t.https_redirect && t.mode == ServerTlsMode::Passthrough);
    server.tls.is_some() && !is_plain_http(server) && !redirects_only
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{mesh, warnings_of};

    #[test]
    fn the_older_keeps_what_it_has() {
        let mesh = mesh(
            r#"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: old, namespace: a, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [x.com], tls: {mode: SIMPLE, credentialName: c}}
  - {port: {number: 443, name: pass, protocol: TLS}, hosts: [y.com], tls: {mode: PASSTHROUGH}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: new, namespace: b, creationTimestamp: "2026-01-02T00:00:00Z"}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}
  - {port: {number: 80, name: tcp, protocol: TCP}, hosts: ["*"]}
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: ["b/x.com"], tls: {mode: SIMPLE, credentialName: c}}
  - {port: {number: 443, name: other, protocol: HTTPS}, hosts: [z.com], tls: {mode: SIMPLE, credentialName: c}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: elsewhere, namespace: b, creationTimestamp: "2026-01-03T00:00:00Z"}
spec:
  selector: {istio: egressgateway}
  servers: [{port: {number: 80, name: tcp, protocol: TCP}, hosts: ["*"]}]
"#,
        );
        let of = |name| {
            warnings_of(&mesh, "Gateway", name).into_iter().filter(|w| w.starts_with(CONFLICT)).collect::<Vec<_>>()
        };
        assert_eq!(of("old"), Vec::<String>::new());
        assert_eq!(of("new"), ["IST0145 spec.servers[1]", "IST0145 spec.servers[2]"]);
        assert_eq!(of("elsewhere"), Vec::<String>::new());
    }
}
