//! What the control plane may do on the API server: as little as it needs.

use super::{Settings, metadata};
use serde_json::{Value, json};
use weft_k8s_api::crd;

/// Account, roles and bindings.
pub(super) fn objects(settings: &Settings) -> Vec<Value> {
    let (account, namespace) = (settings.named("istiod"), settings.namespace.as_str());
    let cluster = format!("{}-{namespace}", settings.named("istiod-clusterrole"));
    let subjects = json!([{"kind": "ServiceAccount", "name": account, "namespace": namespace}]);
    let reference =
        |kind: &str, name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    let api = "rbac.authorization.k8s.io/v1";
    let mut own = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(settings, &account, true)});
    settings.pull_secrets(&mut own);
    vec![
        own,
        json!({"apiVersion": api, "kind": "ClusterRole", "metadata": metadata(settings, &cluster, false),
               "rules": cluster_rules(settings)}),
        json!({"apiVersion": api, "kind": "ClusterRoleBinding", "metadata": metadata(settings, &cluster, false),
               "roleRef": reference("ClusterRole", &cluster), "subjects": subjects}),
        json!({"apiVersion": api, "kind": "Role", "metadata": metadata(settings, &account, true),
               "rules": own_rules()}),
        json!({"apiVersion": api, "kind": "RoleBinding", "metadata": metadata(settings, &account, true),
               "roleRef": reference("Role", &account), "subjects": subjects}),
    ]
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

const READ: &[&str] = &["get", "list", "watch"];
const WRITE_STATUS: &[&str] = &["patch", "update"];

fn cluster_rules(settings: &Settings) -> Vec<Value> {
    let mut groups: Vec<&str> = crd::defined().map(|kind| kind.group).collect();
    groups.dedup();
    let mut rules = vec![
        // What the model is built from.
        rule(&[""], &["namespaces", "nodes", "pods", "services", "endpoints", "secrets", "configmaps"], READ),
        rule(&["discovery.k8s.io"], &["endpointslices"], READ),
        rule(&["networking.k8s.io"], &["ingresses", "ingressclasses"], READ),
        rule(&["gateway.networking.k8s.io"], &["*"], READ),
        // The Gateway API as it was at version 0.3.
        rule(&["networking.x-k8s.io"], &["*"], READ),
        rule(&["apiextensions.k8s.io"], &["customresourcedefinitions"], READ),
    ];
    for group in &groups {
        let kinds: Vec<&str> = crd::defined().filter(|k| k.group == *group).map(|k| k.plural).collect();
        let status: Vec<String> = kinds.iter().map(|plural| format!("{plural}/status")).collect();
        let status: Vec<&str> = status.iter().map(String::as_str).collect();
        rules.push(rule(&[group], &kinds, READ));
        // What is said back to the user.
        rules.push(rule(&[group], &status, WRITE_STATUS));
    }
    rules.extend([
        rule(&["networking.k8s.io"], &["ingresses/status"], WRITE_STATUS),
        rule(
            &["networking.x-k8s.io"],
            &["gatewayclasses/status", "gateways/status", "httproutes/status", "tcproutes/status", "tlsroutes/status"],
            WRITE_STATUS,
        ),
        rule(
            &["gateway.networking.k8s.io"],
            &[
                "gatewayclasses/status",
                "gateways/status",
                "httproutes/status",
                "grpcroutes/status",
                "tcproutes/status",
                "tlsroutes/status",
                "udproutes/status",
                "backendtlspolicies/status",
                "referencegrants/status",
            ],
            WRITE_STATUS,
        ),
        rule(&["", "events.k8s.io"], &["events"], &["create", "patch"]),
        // Workloads that register themselves.
        rule(&["networking.istio.io"], &["workloadentries"], &["create", "patch", "delete"]),
        // The root certificate in every namespace.
        rule(&[""], &["configmaps"], &["create", "update", "patch"]),
        // Who calls.
        rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
        rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
        // The certificate that the API server must trust.
        rule(&["admissionregistration.k8s.io"], &super::webhooks::RESOURCES, READ),
    ]);
    let mut own = rule(&["admissionregistration.k8s.io"], &super::webhooks::RESOURCES, WRITE_STATUS);
    own["resourceNames"] = super::webhooks::names(settings).into();
    rules.push(own);
    rules.extend(on_request(settings));
    rules
}

/// What only some installations need: an authority elsewhere, and DNS certificates for other namespaces.
fn on_request(settings: &Settings) -> Vec<Value> {
    let mut rules = Vec::new();
    if !settings.values.text("pilot.env.EXTERNAL_CA").is_empty() {
        let group = &["certificates.k8s.io"];
        let requests = ["certificatesigningrequests"];
        rules.push(rule(group, &requests, &["create", "delete", "get", "list", "watch"]));
        rules.push(rule(group, &["certificatesigningrequests/approval"], &["update"]));
        let mut signers = rule(group, &["signers"], &["approve"]);
        signers["resourceNames"] = settings.values.get("global.certSigners").clone();
        if signers["resourceNames"].as_array().is_some_and(|names| !names.is_empty()) {
            rules.push(signers);
        }
    }
    if settings.mesh["certificates"].as_array().is_some_and(|list| !list.is_empty()) {
        rules.push(rule(&[""], &["secrets"], &["create", "patch", "update"]));
    }
    rules
}

/// In the namespace of the control plane.
fn own_rules() -> Vec<Value> {
    vec![
        rule(&[""], &["secrets"], &["create", "get", "list", "patch", "update", "watch"]),
        rule(&["coordination.k8s.io"], &["leases"], &["create", "get", "list", "patch", "update", "watch"]),
    ]
}
