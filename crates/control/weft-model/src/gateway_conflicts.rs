//! Servers of Gateways that the same workloads serve and that cannot be served together: the older one keeps port and hosts.
//! The generator leaves the others out; here is said which, and why. So it is with server names that two of them want.

use crate::virtual_services::MESH_GATEWAY;
use crate::{Gateway, GatewayWorkloads, VirtualService, Warning, hosts};
use std::collections::HashMap;
use std::sync::Arc;
use weft_core::Provenance;
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

/// Where a name is asked for: workloads, port, address.
type Slot<'a> = (&'a [GatewayWorkloads], u32, &'a str);

/// Server names that several servers or TLS rules ask for at one port: the first has them, as a listener has one chain for a
/// name. `gateways` and `rules` are oldest first.
pub(crate) fn server_names<'a>(
    gateways: impl Iterator<Item = &'a Gateway>,
    rules: &'a [Arc<VirtualService>],
) -> Vec<Warning> {
    let mut by_gateway: HashMap<&str, Vec<&VirtualService>> = HashMap::new();
    for vs in rules.iter().filter(|vs| !vs.spec.tls.is_empty()) {
        vs.gateways.iter().for_each(|gateway| by_gateway.entry(gateway).or_default().push(vs));
    }
    by_gateway.remove(MESH_GATEWAY);
    let mut found = Vec::new();
    if by_gateway.is_empty() {
        return found;
    }
    let mut taken: HashMap<(Slot<'_>, String), &Provenance> = HashMap::new();
    for gateway in gateways {
        let id = format!("{}/{}", gateway.namespace, gateway.name);
        let bound = by_gateway.get(id.as_str()).map_or(&[][..], Vec::as_slice);
        for (index, server) in gateway.spec.servers.iter().enumerate().filter(|(_, server)| opens_or_passes(server)) {
            let slot =
                (gateway.workloads.as_slice(), server.port.as_ref().map_or(0, |p| p.number), server.bind.as_str());
            let asked = match server.tls.as_ref().map(|tls| tls.mode) {
                Some(ServerTlsMode::Passthrough) => {
                    bound.iter().flat_map(|vs| passed_on(vs, &id, server, slot.1)).collect()
                }
                Some(ServerTlsMode::AutoPassthrough) | None => Vec::new(),
                Some(_) => {
                    let at = |host: &String| {
                        (bare(host).to_ascii_lowercase(), &gateway.provenance, format!("spec.servers[{index}].hosts"))
                    };
                    server.hosts.iter().map(at).collect()
                }
            };
            for (name, by, path) in asked {
                let first = *taken.entry((slot, name.clone())).or_insert(by);
                if first != by {
                    let message = format!(
                        "server name {name} on port {} already belongs to {} {}/{}, which has it; the other names are served",
                        slot.1, first.kind, first.namespace, first.name
                    );
                    // Of objects of the Gateway API the fields are others.
                    let own = matches!(by.kind.as_str(), "VirtualService" | "Gateway");
                    found.push(Warning { at: if own { by.at(path) } else { by.clone() }, code: CONFLICT, message });
                }
            }
        }
    }
    found
}

/// Server names that the rules of `vs` pass on through a server, each with its place.
fn passed_on<'a>(
    vs: &'a VirtualService,
    gateway: &str,
    server: &Server,
    port: u32,
) -> Vec<(String, &'a Provenance, String)> {
    let mut found = Vec::new();
    if !server.hosts.iter().any(|host| vs.hosts.iter().any(|own| hosts::overlap(&bare(host).to_ascii_lowercase(), own)))
    {
        return found;
    }
    for (i, route) in vs.spec.tls.iter().enumerate() {
        for (j, condition) in route.matches.iter().enumerate() {
            let here = condition.gateways.is_empty() || condition.gateways.iter().any(|g| g == gateway);
            if here && (condition.port == 0 || condition.port == port) {
                let path = format!("spec.tls[{i}].match[{j}].sniHosts");
                found.extend(condition.sni_hosts.iter().map(|name| (name.clone(), &vs.provenance, path.clone())));
            }
        }
    }
    found
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

    #[test]
    fn a_server_name_belongs_to_the_first_that_asks_for_it() {
        let gateway = |name: &str, protocol: &str, hosts: &str, tls: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: a}}\nspec: {{selector: \
                 {{istio: x}}, servers: [{{port: {{number: 443, name: p, protocol: {protocol}}}, hosts: {hosts}, tls: {tls}}}]}}\n---\n"
            )
        };
        let rule = |name: &str, hosts: &str, names: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: a}}\nspec: \
                 {{hosts: {hosts}, gateways: [a, b], tls: [{{match: [{{sniHosts: {names}}}], route: [{{destination: {{host: h}}}}]}}]}}\n---\n"
            )
        };
        let pass = "{mode: PASSTHROUGH}";
        let mesh = mesh(&format!(
            "{}{}{}{}{}",
            gateway("a", "TLS", r#"["*.x.com"]"#, pass),
            gateway("b", "TLS", "[b.x.com]", pass),
            gateway("c", "HTTPS", "[c.x.com, d.x.com]", "{mode: SIMPLE, credentialName: c}"),
            rule("one", r#"["*.x.com"]"#, "[a.x.com, b.x.com, c.x.com]"),
            rule("two", "[b.x.com]", "[b.x.com]"),
        ));
        let of = |kind, name| {
            warnings_of(&mesh, kind, name).into_iter().filter(|w| w.starts_with(CONFLICT)).collect::<Vec<_>>()
        };
        assert_eq!(of("VirtualService", "one"), Vec::<String>::new(), "bound twice, it is the same rule");
        assert_eq!(of("VirtualService", "two"), ["IST0145 spec.tls[0].match[0].sniHosts"]);
        assert_eq!(of("Gateway", "c"), ["IST0145 spec.servers[0].hosts"]);
    }
}
