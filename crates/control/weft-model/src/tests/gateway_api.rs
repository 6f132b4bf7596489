//! Objects of the Gateway API: what their routes, listeners and policies come to, and what their statuses say.

use super::{inputs, mesh};
use crate::{MeshSnapshot, VirtualService, build};
use serde_json::Value;
use std::sync::Arc;

fn gateway(listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: default, generation: \
         1}}\nspec: {{gatewayClassName: istio, listeners: {listeners}}}\n---\n"
    )
}

fn route(kind: &str, name: &str, spec: &str) -> String {
    let version = if kind == "TCPRoute" { "v1alpha2" } else { "v1" };
    format!(
        "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: default, \
         generation: 1}}\nspec: {spec}\n---\n"
    )
}

const DB: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: db, namespace: default}
spec: {clusterIP: 10.96.0.9, ports: [{name: tcp, port: 3306}, {name: tcp-admin, port: 3307}, {name: tls, port: 443}, {name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: far, namespace: default}
spec:
  hosts: [a.far.example, b.far.example]
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]
  resolution: DNS
---
"#;

/// The virtual services of a gateway, or of sidecars, that the routes of `mesh` came to.
fn rules<'a>(mesh: &'a MeshSnapshot, host: &str) -> Vec<&'a Arc<VirtualService>> {
    mesh.virtual_services.iter().filter(|vs| vs.hosts.iter().any(|h| **h == *host)).collect()
}

fn status<'a>(mesh: &'a MeshSnapshot, kind: &str, name: &str) -> &'a Value {
    &mesh.statuses.iter().find(|s| s.object.kind == kind && s.object.name == name).unwrap().status
}

/// `Type=Status Reason` of each condition.
fn told(conditions: &Value) -> Vec<String> {
    let one = |c: &Value| format!("{}={} {}", c["type"], c["status"], c["reason"]).replace('"', "");
    conditions.as_array().unwrap().iter().map(one).collect()
}

/// Server names of the TLS rules.
fn server_names(mesh: &MeshSnapshot) -> Vec<String> {
    let rules = mesh.virtual_services.iter().flat_map(|vs| &vs.spec.tls).flat_map(|r| &r.matches);
    rules.flat_map(|m| m.sni_hosts.clone()).collect()
}

#[test]
fn an_edited_tls_route_takes_effect() {
    let world = |listener: &str, names: &str| {
        let backend = "rules: [{backendRefs: [{name: db, port: 443}]}]";
        let listener = format!(
            "[{{name: pass, port: 443, protocol: TLS, hostname: {listener}, tls: {{mode: Passthrough}}, allowedRoutes: {{kinds: [{{kind: TLSRoute}}]}}}}]"
        );
        let spec = format!("{{parentRefs: [{{name: edge}}], hostnames: {names}, {backend}}}");
        inputs(&format!("{DB}{}{}", gateway(&listener), route("TLSRoute", "sealed", &spec)))
    };
    let any = r#""*.example""#;
    let first = build(&world(any, "[a.example]"), None);
    assert_eq!(server_names(&first), ["a.example"]);
    let other = build(&world(any, "[b.example, c.example]"), Some(&first));
    assert_eq!(server_names(&other), ["b.example", "c.example"], "the route's names");
    let narrow = build(&world("c.example", "[b.example, c.example]"), Some(&other));
    assert_eq!(server_names(&narrow), ["c.example"], "the listener's name");
    let same = build(&world("c.example", "[b.example, c.example]"), Some(&narrow));
    assert!(Arc::ptr_eq(&same.virtual_services[0], &narrow.virtual_services[0]), "what is equal is kept");
}

#[test]
fn connections_to_services_of_the_mesh() {
    let parent = |port: &str| format!(r#"parentRefs: [{{group: "", kind: Service, name: db{port}}}]"#);
    let to = |port: u16| format!("rules: [{{backendRefs: [{{name: db, port: {port}}}]}}]");
    let mesh = mesh(&format!(
        "{DB}{}{}{}{}",
        route("TCPRoute", "one", &format!("{{{}, {}}}", parent(", port: 3306"), to(3307))),
        route(
            "TLSRoute",
            "named",
            &format!("{{{}, hostnames: [a.example, b.example], {}}}", parent(", port: 443"), to(443))
        ),
        route("TLSRoute", "own", &format!("{{{}, {}}}", parent(""), to(443))),
        route("HTTPRoute", "web", &format!("{{{}, {}}}", parent(", port: 80"), to(80))),
    ));
    let rules = rules(&mesh, "db.default.svc.cluster.local");
    let of_tcp: Vec<_> = rules.iter().flat_map(|vs| &vs.spec.tcp).collect();
    assert_eq!(of_tcp.len(), 1, "a TLS route is no TCP rule");
    let ports: Vec<u32> = of_tcp[0].matches.iter().map(|m| m.port).collect();
    assert_eq!(ports, [3306], "the other ports are not its");
    let of_tls: Vec<_> = rules.iter().flat_map(|vs| &vs.spec.tls).flat_map(|r| &r.matches).collect();
    let mut found: Vec<(Vec<String>, u32)> = of_tls.iter().map(|m| (m.sni_hosts.clone(), m.port)).collect();
    found.sort();
    let own = "db.default.svc.cluster.local";
    let want = [(vec!["a.example".to_string(), "b.example".into()], 443), (vec![own.to_string()], 0)];
    assert_eq!(found, want);
    assert!(rules.iter().all(|vs| {
        [&vs.spec.http.len(), &vs.spec.tls.len(), &vs.spec.tcp.len()].iter().filter(|n| ***n > 0).count() == 1
    }));
}

#[test]
fn a_host_of_a_narrower_listener_is_that_listeners() {
    let listeners = r#"[
        {name: wide, port: 80, protocol: HTTP, hostname: "*.example"},
        {name: mid, port: 80, protocol: HTTP, hostname: "*.a.example"},
        {name: exact, port: 80, protocol: HTTP, hostname: x.a.example},
        {name: any, port: 80, protocol: HTTP},
        {name: elsewhere, port: 8080, protocol: HTTP, hostname: "*.example"}]"#;
    let to = "rules: [{backendRefs: [{name: db, port: 80}]}]";
    for (section, hostnames, want) in [
        (
            "wide",
            r#"[x.a.example, y.a.example, z.example, "*.a.example", "*.example"]"#,
            Some(vec!["*.example", "z.example"]),
        ),
        ("mid", "[x.a.example, y.a.example]", Some(vec!["y.a.example"])),
        ("exact", "[x.a.example]", Some(vec!["x.a.example"])),
        ("any", "[x.a.example, other.org]", Some(vec!["other.org"])),
        ("elsewhere", "[x.a.example]", Some(vec!["x.a.example"])),
        ("wide", "[x.a.example]", None),
    ] {
        let spec = format!("{{parentRefs: [{{name: edge, sectionName: {section}}}], hostnames: {hostnames}, {to}}}");
        let mesh = mesh(&format!("{DB}{}{}", gateway(listeners), route("HTTPRoute", "web", &spec)));
        let mut hosts: Vec<String> =
            mesh.virtual_services.iter().flat_map(|vs| &vs.hosts).map(ToString::to_string).collect();
        hosts.sort();
        assert_eq!(hosts, want.clone().unwrap_or_default(), "{section} {hostnames}");
        let accepted = told(&status(&mesh, "HTTPRoute", "web")["parents"][0]["conditions"])[0].clone();
        let told = if want.is_some() { "Accepted=True Accepted" } else { "Accepted=False NoMatchingListenerHostname" };
        assert_eq!(accepted, told, "{section} {hostnames}");
    }
    // Without a section it is attached to each listener, and each host is served by one alone.
    let spec = format!("{{parentRefs: [{{name: edge}}], hostnames: [x.a.example], {to}}}");
    let mesh = mesh(&format!("{DB}{}{}", gateway(listeners), route("HTTPRoute", "web", &spec)));
    let mut bound: Vec<&str> =
        mesh.virtual_services.iter().flat_map(|vs| &vs.gateways).map(|g| g.rsplit('-').next().unwrap()).collect();
    bound.sort_unstable();
    assert_eq!(bound.len(), 2, "one for each port: {bound:?}");
}

#[test]
fn service_entries_are_parents_and_targets() {
    let parent = r#"parentRefs: [{group: networking.istio.io, kind: ServiceEntry, name: far, port: 80}, {group: networking.istio.io, kind: ServiceEntry, name: none}]"#;
    let policy = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: far, namespace: default, generation: 1}
spec:
  targetRefs:
  - {group: networking.istio.io, kind: ServiceEntry, name: far, sectionName: tls}
  - {group: networking.istio.io, kind: ServiceEntry, name: far, sectionName: nothing}
  - {group: networking.istio.io, kind: ServiceEntry, name: none}
  validation: {hostname: far.example, wellKnownCACertificates: System}
"#;
    let spec = format!("{{{parent}, rules: [{{backendRefs: [{{name: db, port: 80}}]}}]}}");
    let mesh = mesh(&format!("{DB}{}{policy}", route("HTTPRoute", "web", &spec)));
    for host in ["a.far.example", "b.far.example"] {
        let found = rules(&mesh, host);
        assert_eq!(found.len(), 1, "{host}");
        assert_eq!(found[0].gateways, ["mesh"]);
        assert_eq!(found[0].spec.http[0].matches[0].port, 80);
        let rule = &mesh.destination_rule_for(host, "default", None).unwrap().spec;
        let ports = &rule.traffic_policy.as_ref().unwrap().port_level_settings;
        assert_eq!((ports.len(), ports[0].port.as_ref().unwrap().number), (1, 443), "{host}");
        assert_eq!(ports[0].tls.as_ref().unwrap().sni, "far.example");
    }
    let parents = &status(&mesh, "HTTPRoute", "web")["parents"];
    assert_eq!(told(&parents[0]["conditions"])[0], "Accepted=True Accepted");
    assert_eq!(told(&parents[1]["conditions"])[0], "Accepted=False NoMatchingParent");
    let ancestors = &status(&mesh, "BackendTLSPolicy", "far")["ancestors"];
    let first = |i: usize| told(&ancestors[i]["conditions"])[0].clone();
    let want = ["Accepted=True Accepted", "Accepted=False TargetNotFound", "Accepted=False TargetNotFound"];
    assert_eq!([first(0), first(1), first(2)], want);
}

/// A service entry of a namespace for a host that another namespace's service, or entry, has too.
fn entry(namespace: &str, host: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: far, namespace: {namespace}}}\nspec: {{hosts: \
         [{host}], ports: [{{number: 443, name: tls, protocol: TLS}}], resolution: DNS{more}}}\n---\n"
    )
}

#[test]
fn policies_of_several_namespaces_for_one_host_all_hold() {
    let policy = |namespace: &str, minute: u8, kind: &str, name: &str| {
        let group = if kind == "Service" { "''" } else { "networking.istio.io" };
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: p, namespace: {namespace}, \
             creationTimestamp: \"2026-01-01T00:0{minute}:00Z\"}}\nspec: {{targetRefs: [{{group: {group}, kind: {kind}, name: \
             {name}}}], validation: {{hostname: {namespace}.example, wellKnownCACertificates: System}}}}\n---\n"
        )
    };
    let host = "payments.prod.svc.cluster.local";
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: payments, namespace: prod}\nspec: {clusterIP: 10.96.0.8, \
                   ports: [{name: tls, port: 443}]}\n---\n";
    let yaml = [
        entry("evil", host, ""),
        policy("evil", 0, "ServiceEntry", "far"),
        service.into(),
        policy("prod", 1, "Service", "payments"),
        entry("a", "far.example", ""),
        policy("a", 2, "ServiceEntry", "far"),
        entry("b", "far.example", ", exportTo: ['.']"),
        policy("b", 3, "ServiceEntry", "far"),
    ];
    let mesh = mesh(&yaml.concat());
    for (host, client) in [(host, "prod"), (host, "evil"), ("far.example", "a"), ("far.example", "b")] {
        let rule =
            mesh.destination_rule_for(host, client, None).unwrap_or_else(|| panic!("{client}: {:?}", mesh.warnings));
        let tls = rule.spec.traffic_policy.as_ref().and_then(|policy| policy.tls.as_ref()).unwrap();
        assert_eq!(tls.sni, format!("{client}.example"), "{host}");
    }
    for status in mesh.statuses.iter().filter(|s| s.object.kind == "BackendTLSPolicy") {
        let ancestor = &status.status["ancestors"][0];
        assert_eq!(told(&ancestor["conditions"])[0], "Accepted=True Accepted", "{}", status.object.namespace);
    }
}

#[test]
fn routes_beside_service_entries_of_one_host_are_not_mixed() {
    let to = |namespace: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: {namespace}}}\nspec:\n  \
             parentRefs: [{{group: networking.istio.io, kind: ServiceEntry, name: far, port: 443}}]\n  rules:\n  - filters: \
             [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-of, value: {namespace}}}]}}}}]\n    \
             backendRefs: [{{group: networking.istio.io, kind: ServiceEntry, name: far, port: 443}}]\n---\n"
        )
    };
    let yaml = [
        entry("a", "far.example", ""),
        to("a"),
        entry("b", "far.example", ""),
        to("b"),
        entry("c", "far.example", ", exportTo: ['.']"),
        to("c"),
    ];
    let mesh = mesh(&yaml.concat());
    assert_eq!(rules(&mesh, "far.example").len(), 3);
    for client in ["a", "b", "c"] {
        let first = mesh.mesh_virtual_services(client)[0].clone();
        assert_eq!((first.namespace.as_str(), first.spec.http.len()), (client, 1));
    }
    let of_others: Vec<String> = mesh.mesh_virtual_services("d").iter().map(|vs| vs.namespace.clone()).collect();
    assert_eq!(of_others, ["a", "b"], "an entry of its namespace's own clients is no business of others");
}

#[test]
fn a_policy_without_its_authorities_names_them_once_they_are_there() {
    let policy = "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: p, namespace: default}\nspec: \
                  {targetRefs: [{group: '', kind: Service, name: db}], validation: {hostname: db.example, caCertificateRefs: \
                  [{group: '', kind: ConfigMap, name: ca}]}}\n---\n";
    let (pem, _) = super::pair(&["a"], 0, 4_000_000_000);
    let map = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca", "namespace": "default"}, "data": {"ca.crt": pem},
    });
    let named = |mesh: &MeshSnapshot| {
        let rule = mesh.destination_rule_for("db.default.svc.cluster.local", "default", None).unwrap();
        rule.spec.traffic_policy.as_ref().unwrap().tls.as_ref().unwrap().credential_name.clone()
    };
    let first = build(&inputs(&format!("{DB}{policy}")), None);
    assert_eq!(named(&first), "unserved://default/ca");
    let then = build(&inputs(&format!("{DB}{policy}{map}\n")), Some(&first));
    assert_eq!(named(&then), "configmap://default/ca");
    assert!(then.sections.destination_rules > first.sections.destination_rules, "clusters are made anew");
    let gone = build(&inputs(&format!("{DB}{policy}")), Some(&then));
    assert_eq!(named(&gone), "unserved://default/ca");
}

#[test]
fn a_route_is_counted_once_at_a_listener() {
    let spec =
        "{parentRefs: [{name: edge}, {name: edge, sectionName: http}], rules: [{backendRefs: [{name: db, port: 80}]}]}";
    let listeners = "[{name: http, port: 80, protocol: HTTP}, {name: more, port: 81, protocol: HTTP}]";
    let mesh =
        mesh(&format!("{DB}{}{}{}", gateway(listeners), route("HTTPRoute", "a", spec), route("HTTPRoute", "b", spec)));
    let listeners = &status(&mesh, "Gateway", "edge")["listeners"];
    assert_eq!((&listeners[0]["attachedRoutes"], &listeners[1]["attachedRoutes"]), (&2.into(), &2.into()));
}
