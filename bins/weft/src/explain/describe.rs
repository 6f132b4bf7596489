//! What of the mesh's objects concerns a pod or a service: its services, subsets, routes, and the policies that bind it.

use crate::authz::World;
use serde_json::{Value, json};
use std::sync::Arc;
use weft_core::Strng;
use weft_k8s_api::istio::{Destination, RouteDestination};
use weft_model::hosts::{covers, is_wildcard};
use weft_model::{MtlsMode, Service, VirtualService, Workload};

/// A workload's place in the mesh.
pub fn workload(world: &World, workload: &Workload) -> Value {
    let snapshot = &world.snapshot;
    let ports: Vec<Value> =
        workload.container_ports.iter().map(|(number, name)| json!({"port": number, "name": name})).collect();
    let mut services: Vec<Value> = Vec::new();
    for instance in snapshot.service_instances(workload) {
        let port = json!({
            "name": instance.port.name, "port": instance.port.number,
            "protocol": format!("{:?}", instance.port.protocol), "targetPort": instance.target_port,
        });
        match services.iter_mut().find(|known| known["host"] == *instance.service.host) {
            Some(known) => known["ports"].as_array_mut().into_iter().for_each(|ports| ports.push(port.clone())),
            None => {
                let mut described = service(world, &instance.service, Some(workload));
                described["ports"] = json!([port]);
                services.push(described);
            }
        }
    }
    let (namespace, labels) = (&workload.namespace, &workload.labels);
    let named = |kind: &str, namespace: &str, name: &str| json!(format!("{kind} {namespace}/{name}"));
    let mut policies: Vec<Value> = Vec::new();
    for policy in snapshot.authorization_for(namespace, labels) {
        policies.push(named("AuthorizationPolicy", &policy.namespace, &policy.name));
    }
    for policy in snapshot.request_auth_for(namespace, labels) {
        policies.push(named("RequestAuthentication", &policy.namespace, &policy.name));
    }
    for policy in snapshot.envoy_filters_for(namespace, labels) {
        policies.push(named("EnvoyFilter", &policy.namespace, &policy.name));
    }
    for policy in snapshot.telemetry_for(namespace, labels) {
        policies.push(named("Telemetry", &policy.namespace, &policy.name));
    }
    json!({
        "pod": workload.name, "namespace": namespace, "workload": workload.workload_name, "ports": ports,
        "inMesh": workload.in_mesh || crate::authz::is_gateway(workload), "identity": workload.identity,
        "services": services, "policies": policies,
        "mtlsMode": match snapshot.mtls_mode(namespace, labels, 0) {
            MtlsMode::Disable => "DISABLE",
            MtlsMode::Permissive => "PERMISSIVE",
            MtlsMode::Strict => "STRICT",
        },
    })
}

/// A service's rules and routes; with a workload, which of the subsets it belongs to.
pub fn service(world: &World, service: &Service, workload: Option<&Workload>) -> Value {
    let snapshot = &world.snapshot;
    let rule = snapshot.destination_rule_for(&service.host, &service.namespace, Some(service));
    let rule = rule.map(|rule| {
        let belongs = |labels: &std::collections::BTreeMap<String, String>| {
            workload.is_none_or(|w| labels.iter().all(|(name, value)| w.labels.get(name) == Some(value)))
        };
        let (of_it, others): (Vec<_>, Vec<_>) = rule.spec.subsets.iter().partition(|subset| belongs(&subset.labels));
        let names = |subsets: Vec<&weft_k8s_api::istio::Subset>| -> Vec<String> {
            subsets.into_iter().map(|subset| subset.name.clone()).collect()
        };
        json!({
            "name": rule.name, "namespace": rule.namespace, "host": rule.host.to_string(), "subsets": names(of_it),
            "otherSubsets": names(others), "trafficPolicy": rule.spec.traffic_policy.is_some(),
        })
    });
    let about = |vs: &&Arc<VirtualService>| concerns(vs, &service.host);
    let routes: Vec<Value> = snapshot
        .virtual_services
        .iter()
        .filter(about)
        .map(|vs| {
            let (http, tcp) = (vs.spec.http.len(), vs.spec.tcp.len() + vs.spec.tls.len());
            json!({"name": vs.name, "namespace": vs.namespace, "gateways": vs.gateways, "http": http, "tcp": tcp})
        })
        .collect();
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|p| json!({"name": p.name, "port": p.number, "protocol": format!("{:?}", p.protocol)}))
        .collect();
    json!({
        "service": service.name, "namespace": service.namespace, "host": service.host.to_string(), "ports": ports,
        "destinationRule": rule, "virtualServices": routes,
    })
}

/// Whether a virtual service routes what is sent to a host, or leads to it.
fn concerns(vs: &VirtualService, service: &str) -> bool {
    let to_it = |destination: &Option<Destination>| destination.as_ref().is_some_and(|to| to.host == service);
    let of_bytes = |route: &[RouteDestination]| route.iter().any(|to| to_it(&to.destination));
    let leads = vs.spec.http.iter().flat_map(|http| &http.route).any(|to| to_it(&to.destination))
        || vs.spec.tcp.iter().any(|tcp| of_bytes(&tcp.route))
        || vs.spec.tls.iter().any(|tls| of_bytes(&tls.route));
    // At gateways alone, a wildcard is for what comes from outside.
    let in_mesh = vs.gateways.iter().any(|gateway| gateway == "mesh");
    let named = |host: &Strng| **host == *service || (in_mesh && is_wildcard(host) && covers(host, service));
    leads || vs.hosts.iter().any(named)
}

/// The same in lines, in the order of `istioctl experimental describe`.
pub fn lines(described: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    if described["pod"].is_string() {
        out.push(format!("Pod: {}", text(&described["pod"])));
        let ports = list(&described["ports"]).iter().map(|p| format!("{} ({})", p["port"], text(&p["name"])));
        let ports: Vec<String> = ports.map(|port| port.trim_end_matches(" ()").to_string()).collect();
        out.push(format!("   Pod Ports: {}", if ports.is_empty() { "none".into() } else { ports.join(", ") }));
        match described["inMesh"] == true {
            true => out.push(format!("   Identity: {}", text(&described["identity"]))),
            false => out.push("   No proxy: the pod is not part of the mesh".into()),
        }
        for service in list(&described["services"]) {
            out.push("--------------------".into());
            out.extend(service_lines(service));
        }
        out.push("--------------------".into());
        out.push("Effective PeerAuthentication:".into());
        out.push(format!("   Workload mTLS mode: {}", text(&described["mtlsMode"])));
        out.extend(list(&described["policies"]).iter().map(|policy| format!("Bound by: {}", text(policy))));
    } else {
        out.extend(service_lines(described));
    }
    out
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn service_lines(service: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let words = |value: &Value| list(value).iter().map(text).collect::<Vec<_>>().join(", ");
    let mut out = vec![format!("Service: {}", text(&service["service"]))];
    for port in list(&service["ports"]) {
        let target = port["targetPort"].as_u64().map(|n| format!(" targets pod port {n}")).unwrap_or_default();
        let protocol = text(&port["protocol"]).to_uppercase();
        out.push(format!("   Port: {} {}/{protocol}{target}", text(&port["name"]), port["port"]));
    }
    let rule = &service["destinationRule"];
    if rule.is_object() {
        out.push(format!("DestinationRule: {}.{} for {}", text(&rule["name"]), text(&rule["namespace"]), rule["host"]));
        if !list(&rule["subsets"]).is_empty() || !list(&rule["otherSubsets"]).is_empty() {
            out.push(format!("   Matching subsets: {}", words(&rule["subsets"])));
        }
        if !list(&rule["otherSubsets"]).is_empty() {
            out.push(format!("      (Non-matching subsets {})", words(&rule["otherSubsets"])));
        }
        out.push(format!("   {}Traffic Policy", if rule["trafficPolicy"] == true { "" } else { "No " }));
    }
    for vs in list(&service["virtualServices"]) {
        out.push(format!("VirtualService: {}.{}", text(&vs["name"]), text(&vs["namespace"])));
        let other = if vs["tcp"] == 0 { String::new() } else { format!(", {} TCP and TLS route(s)", vs["tcp"]) };
        out.push(format!("   {} HTTP route(s){other}, for {}", vs["http"], words(&vs["gateways"])));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::tests::bookinfo;

    #[test]
    fn every_kind_of_route_is_told() {
        let rule = |name: &str, spec: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
            )
        };
        let to = |kind: &str, host: &str| {
            let matches = if kind == "tls" { "match: [{port: 443, sniHosts: [a.example]}], " } else { "" };
            format!("{{hosts: [a.example], {kind}: [{{{matches}route: [{{destination: {{host: {host}}}}}]}}]}}")
        };
        let all = [
            rule("http", &to("http", "ratings")),
            rule("tcp", &to("tcp", "ratings")),
            rule("tls", &to("tls", "ratings")),
            rule("other", &to("tcp", "details")),
            rule(
                "wild",
                "{hosts: ['*.default.svc.cluster.local'], http: [{timeout: 1s, route: [{destination: {host: details}}]}]}",
            ),
            rule(
                "outside",
                "{hosts: ['*'], gateways: [bookinfo-gateway], http: [{route: [{destination: {host: details}}]}]}",
            ),
        ];
        let world = bookinfo(&all.concat());
        let found = service(&world, &world.service("ratings", "default").unwrap(), None);
        let names: Vec<&str> = list(&found["virtualServices"]).iter().filter_map(|vs| vs["name"].as_str()).collect();
        assert_eq!(names, ["http", "tcp", "tls", "wild"]);
    }
}
