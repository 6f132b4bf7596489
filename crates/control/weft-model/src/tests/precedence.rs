//! Which of several objects for one host a client goes by.

use super::mesh;
use crate::{DestinationRule, Labels, MeshSnapshot};
use std::sync::Arc;

/// A destination rule; of two, the one with the later minute is younger.
fn rule(minute: u8, namespace: &str, name: &str, host: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {namespace}, \
         creationTimestamp: \"2026-01-01T00:{minute:02}:00Z\"}}\nspec: {{host: \"{host}\"{more}}}\n---\n"
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
