//! Which of several objects for one host a client goes by.

use super::{inputs, labels, mesh, warnings_of};
use crate::{DestinationRule, Labels, MeshSnapshot, VirtualService};
use std::sync::Arc;

/// A destination rule; of two, the one with the later minute is younger.
fn rule(minute: u8, namespace: &str, name: &str, host: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {namespace}, \
         creationTimestamp: \"2026-01-01T00:{minute:02}:00Z\"}}\nspec: {{host: \"{host}\"{more}}}\n---\n"
    )
}

/// A virtual service without rules of interest.
fn virtual_service(minute: u8, namespace: &str, name: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: {namespace}, \
         creationTimestamp: \"2026-01-01T00:{minute:02}:00Z\"}}\nspec: {{hosts: [x.example.com]{more}, \
         http: [{{route: [{{destination: {{host: x.example.com}}}}]}}]}}\n---\n"
    )
}

fn service(namespace: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: db, namespace: {namespace}}}\n\
         spec: {{clusterIP: 10.0.0.1, ports: [{{port: 80}}]}}\n---\n"
    )
}

/// The rule for `host` as a client sees it that runs in `namespace` with `labels`.
fn found<'a>(mesh: &'a MeshSnapshot, host: &str, namespace: &str, labels: &Labels) -> Option<&'a Arc<DestinationRule>> {
    let service = mesh.service_for(host, namespace).map(|s| &**s);
    mesh.destination_rule_for_workload(host, namespace, labels, service)
}

fn names(list: &[Arc<VirtualService>]) -> Vec<&str> {
    list.iter().map(|vs| vs.name.as_str()).collect()
}

/// A rule of the root namespace for `*.local` is meant as a default for the mesh. Gateways often run in that namespace: they go
/// by what a service says of itself all the same, unless a rule there is for that namespace alone.
#[test]
fn clients_in_the_root_namespace_see_a_services_own_rule() {
    let mesh = mesh(
        &[
            service("shop"),
            service("quiet"),
            service("bare"),
            service("istio-system"),
            rule(0, "istio-system", "for-all", "*.local", ""),
            rule(1, "istio-system", "private", "db.quiet.svc.cluster.local", ", exportTo: [\".\"]"),
            rule(2, "istio-system", "of-root", "db", ""),
            rule(3, "shop", "own", "db", ""),
            rule(4, "quiet", "quiet", "db", ""),
        ]
        .concat(),
    );
    for (host, client, want) in [
        ("db.shop.svc.cluster.local", "istio-system", "own"),
        ("db.shop.svc.cluster.local", "elsewhere", "own"),
        ("db.quiet.svc.cluster.local", "istio-system", "private"),
        ("db.quiet.svc.cluster.local", "elsewhere", "quiet"),
        ("db.bare.svc.cluster.local", "istio-system", "for-all"),
        ("db.bare.svc.cluster.local", "elsewhere", "for-all"),
        ("db.istio-system.svc.cluster.local", "istio-system", "of-root"),
        ("db.istio-system.svc.cluster.local", "elsewhere", "of-root"),
    ] {
        let rule = found(&mesh, host, client, &Labels::new());
        assert_eq!(rule.map(|r| r.name.as_str()), Some(want), "{host} from {client}");
    }
}

#[test]
fn a_clients_own_virtual_services_come_before_older_ones_of_all() {
    let gateway = ", gateways: [mesh, edge/gw]";
    let mesh = mesh(
        &[
            virtual_service(0, "a", "of-all", gateway),
            virtual_service(1, "c", "for-some", &format!("{gateway}, exportTo: [b, d]")),
            virtual_service(2, "b", "own-of-all", gateway),
            virtual_service(3, "b", "own", &format!("{gateway}, exportTo: [\".\", d]")),
            virtual_service(4, "b", "younger-own", &format!("{gateway}, exportTo: [\".\"]")),
        ]
        .concat(),
    );
    for (client, want) in [
        ("a", vec!["of-all", "own-of-all"]),
        ("b", vec!["own", "younger-own", "for-some", "of-all", "own-of-all"]),
        ("d", vec!["for-some", "own", "of-all", "own-of-all"]),
    ] {
        assert_eq!(names(&mesh.mesh_virtual_services(client)), want, "sidecars in {client}");
        assert_eq!(names(&mesh.virtual_services_for("edge/gw", client)), want, "gateways in {client}");
        assert_eq!(names(&mesh.sidecar_scope(client, &labels(&[])).egress[0].virtual_services), want, "{client}");
    }
    let told: Vec<&str> = mesh.warnings.iter().filter(|w| w.code == "IST0109").map(|w| w.message.as_str()).collect();
    let of_all = "host x.example.com already belongs to VirtualService a/of-all for sidecars, whose rules are used";
    assert!(told.iter().any(|message| message.starts_with(of_all)), "{told:?}");
    let apart = "host x.example.com also belongs to VirtualService a/of-all for sidecars; where both are seen";
    assert!(told.iter().any(|message| message.starts_with(apart)), "{told:?}");
}

/// A route of the Gateway API that a namespace's owner wrote for its own clients.
#[test]
fn gateway_routes_of_the_clients_namespace_come_before_others_of_all() {
    let mut mesh = mesh(&[virtual_service(0, "a", "older", ""), virtual_service(1, "b", "route", "")].concat());
    let route = Arc::make_mut(&mut mesh.virtual_services[1]);
    route.whole_path_elements = true;
    assert_eq!(names(&mesh.mesh_virtual_services("b")), ["route", "older"]);
    assert_eq!(names(&mesh.mesh_virtual_services("c")), ["older", "route"]);
}

#[test]
fn destination_rules_for_different_clients_are_not_merged() {
    let tls = ", trafficPolicy: {tls: {mode: SIMPLE}}";
    let subsets = |name: &str| format!(", subsets: [{{name: {name}, labels: {{version: {name}}}}}]");
    let mesh = mesh(
        &[
            service("a"),
            service("b"),
            service("c"),
            rule(0, "a", "private", "db", &format!("{tls}, exportTo: [\".\"]")),
            rule(1, "a", "public", "db", &subsets("v1")),
            rule(2, "a", "more", "db", &subsets("v2")),
            // Younger than what is for all: the namespace's own clients go by it.
            rule(3, "b", "public", "db", &subsets("v1")),
            rule(4, "b", "private", "db", &format!("{tls}, exportTo: [\".\"]")),
            rule(5, "b", "private-too", "db", &format!("{}, exportTo: [b]", subsets("v3"))),
            rule(6, "c", "for-others", "db", ", exportTo: [b]"),
            rule(7, "istio-system", "for-all", "*.local", ""),
        ]
        .concat(),
    );
    // host, client, name of the oldest, has TLS, subsets
    for (host, client, name, tls, subsets) in [
        ("db.a.svc.cluster.local", "elsewhere", "public", false, vec!["v1", "v2"]),
        ("db.a.svc.cluster.local", "a", "public", false, vec!["v1", "v2"]),
        ("db.b.svc.cluster.local", "elsewhere", "public", false, vec!["v1"]),
        ("db.b.svc.cluster.local", "b", "private", true, vec!["v3"]),
        ("db.c.svc.cluster.local", "b", "for-others", false, vec![]),
        ("db.c.svc.cluster.local", "c", "for-all", false, vec![]),
        ("db.c.svc.cluster.local", "elsewhere", "for-all", false, vec![]),
    ] {
        let rule = found(&mesh, host, client, &Labels::new()).unwrap_or_else(|| panic!("{host} from {client}"));
        let own: Vec<&str> = rule.spec.subsets.iter().map(|s| s.name.as_str()).collect();
        let got = (rule.name.as_str(), rule.spec.traffic_policy.is_some(), own);
        assert_eq!(got, (name, tls, subsets), "{host} from {client}");
    }
    // Who sees both is told that one of them does nothing there.
    for (name, count) in [("public", 1), ("private", 1), ("more", 0), ("for-others", 0)] {
        let found = warnings_of(&mesh, "DestinationRule", name);
        let conflicts = found.iter().filter(|w| *w == "DestinationRuleConflict spec.exportTo").count();
        assert_eq!(conflicts, count, "{name}: {found:?}");
    }
}

/// A mesh whose rules are for nobody unless they say so is one whose rules are for their own namespace.
#[test]
fn without_export_to_a_namespace_sees_its_own_rules() {
    for (default, seen) in [(vec!["."], false), (vec!["b"], true), (vec!["*"], true)] {
        let mut inputs = inputs(&[service("a"), rule(0, "a", "own", "db", "")].concat());
        let config = Arc::make_mut(&mut inputs.mesh);
        config.default_destination_rule_export_to = default.iter().map(ToString::to_string).collect();
        let mesh = crate::build(&inputs, None);
        let from = |client: &str| found(&mesh, "db.a.svc.cluster.local", client, &Labels::new()).is_some();
        assert!(from("a"), "{default:?}");
        assert_eq!(from("b"), seen, "{default:?}");
    }
}

#[test]
fn an_exact_host_comes_before_a_selected_wildcard() {
    let subset = |name: &str| format!(", subsets: [{{name: {name}, labels: {{version: {name}}}}}]");
    let chosen = |app: &str| format!(", workloadSelector: {{matchLabels: {{app: {app}}}}}");
    let mesh = mesh(
        &[
            service("a"),
            service("b"),
            service("c"),
            rule(0, "a", "selected-wide", "*.local", &chosen("x")),
            rule(1, "a", "exact", "db", &subset("v1")),
            rule(2, "a", "wide", "*.b.svc.cluster.local", ""),
            rule(3, "a", "selected-b", "db.b.svc.cluster.local", &(chosen("x") + &subset("v1"))),
            rule(4, "a", "more-b", "db.b.svc.cluster.local", &(chosen("x") + &subset("v2"))),
            rule(5, "a", "other-b", "db.b.svc.cluster.local", &(chosen("w") + &subset("v3"))),
            rule(6, "a", "equal", "db.c.svc.cluster.local", ""),
            rule(7, "a", "equal-selected", "db.c.svc.cluster.local", &chosen("x")),
        ]
        .concat(),
    );
    // host, label `app` of the client, rule, subsets
    for (host, app, name, subsets) in [
        ("db.a.svc.cluster.local", "x", "exact", vec!["v1"]),
        ("db.b.svc.cluster.local", "x", "selected-b", vec!["v1", "v2"]),
        ("db.b.svc.cluster.local", "w", "other-b", vec!["v3"]),
        ("db.b.svc.cluster.local", "z", "wide", vec![]),
        ("db.c.svc.cluster.local", "x", "equal-selected", vec![]),
        ("db.c.svc.cluster.local", "z", "equal", vec![]),
        ("db.elsewhere.svc.cluster.local", "x", "selected-wide", vec![]),
    ] {
        let rule = found(&mesh, host, "a", &labels(&[("app", app)])).unwrap_or_else(|| panic!("{host} from {app}"));
        let own: Vec<&str> = rule.spec.subsets.iter().map(|s| s.name.as_str()).collect();
        assert_eq!((rule.name.as_str(), own), (name, subsets), "{host} from {app}");
    }
    let other = found(&mesh, "db.b.svc.cluster.local", "elsewhere", &labels(&[("app", "x")]));
    assert_eq!(other.map(|r| &r.name), None, "a rule with a selector is for its own namespace");
}
