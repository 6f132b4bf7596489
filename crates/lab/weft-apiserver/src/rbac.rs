//! Role-based access: whether roles and bindings in the store let somebody do something, and what somebody may do. The
//! store is asked anew for every decision, so that a binding counts from the moment that it is stored.
//!
//! Source: the Kubernetes documentation, "Using RBAC Authorization".

use crate::auth::User;
use crate::server::ApiServer;
use crate::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;
use weft_k8s_api::Object;
use weft_store::{LabelSelector, ListQuery, MemoryStore, StoreError};

pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";
/// Rules of one answer to "what may I?".
const MAX_RULES: usize = 1000;

/// What somebody wants to do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wish<'a> {
    pub(crate) verb: &'a str,
    pub(crate) group: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) sub: &'a str,
    /// Empty for cluster-scoped objects and for all namespaces.
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    /// A path that is no object, such as `/healthz`; the fields above are empty then.
    pub(crate) path: &'a str,
}

/// Whether a binding allows it; the sentence says which.
pub(crate) fn allows(store: &MemoryStore, user: &User, wish: &Wish<'_>) -> Option<String> {
    let fits = |rules: &[Value]| rules.iter().any(|rule| rule_fits(rule, wish));
    for (binding, rules) in bound(store, user, "") {
        if fits(&rules) {
            return Some(format!("RBAC: allowed by ClusterRoleBinding {:?}", binding.name()));
        }
    }
    if wish.namespace.is_empty() || !wish.path.is_empty() {
        return None;
    }
    let found = bound(store, user, wish.namespace).into_iter().find(|(_, rules)| fits(rules));
    found.map(|(binding, _)| format!("RBAC: allowed by RoleBinding \"{}/{}\"", wish.namespace, binding.name()))
}

/// All rules that hold for somebody in a namespace.
pub(crate) fn rules(store: &MemoryStore, user: &User, namespace: &str) -> Vec<Value> {
    let mut all: Vec<Value> = bound(store, user, "").into_iter().flat_map(|(_, rules)| rules).collect();
    if !namespace.is_empty() {
        all.extend(bound(store, user, namespace).into_iter().flat_map(|(_, rules)| rules));
    }
    all.truncate(MAX_RULES);
    all
}

/// The bindings of somebody, with the rules of their roles: those of a namespace, or (empty) of the cluster.
fn bound(store: &MemoryStore, user: &User, namespace: &str) -> Vec<(Arc<Object>, Vec<Value>)> {
    let query = match namespace {
        "" => ListQuery::all(GROUP, "ClusterRoleBinding"),
        namespace => ListQuery::namespaced(GROUP, "RoleBinding", namespace),
    };
    let Ok(list) = store.list(&query) else { return Vec::new() };
    let mine = list.items.into_iter().filter(|binding| {
        let subjects = binding.body.get("subjects").and_then(Value::as_array).into_iter().flatten();
        subjects.into_iter().any(|subject| is_subject(subject, user, namespace))
    });
    mine.map(|binding| {
        let rules = role_rules(store, binding.body.get("roleRef").unwrap_or(&Value::Null), namespace);
        (binding, rules)
    })
    .collect()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn is_subject(subject: &Value, user: &User, namespace: &str) -> bool {
    let name = text(subject, "name");
    match text(subject, "kind") {
        "User" => name == user.name,
        "Group" => user.groups.iter().any(|g| g == name),
        "ServiceAccount" => {
            let place = match text(subject, "namespace") {
                "" => namespace,
                place => place,
            };
            user.service_account() == Some((place, name))
        }
        _ => false,
    }
}

fn role_rules(store: &MemoryStore, reference: &Value, namespace: &str) -> Vec<Value> {
    let name = text(reference, "name");
    let role = match text(reference, "kind") {
        "Role" if !namespace.is_empty() => store.find(GROUP, "Role", namespace, name),
        "ClusterRole" => store.find(GROUP, "ClusterRole", "", name),
        _ => None,
    };
    let Some(role) = role else { return Vec::new() };
    let own = |role: &Object| role.body.get("rules").and_then(Value::as_array).cloned().unwrap_or_default();
    let Some(aggregation) = role.body.get("aggregationRule") else { return own(&role) };
    let selectors = aggregation.get("clusterRoleSelectors").and_then(Value::as_array).into_iter().flatten();
    let selectors: Vec<LabelSelector> = selectors.filter_map(|s| LabelSelector::from_json(s).ok()).collect();
    let Ok(all) = store.list(&ListQuery::all(GROUP, "ClusterRole")) else { return Vec::new() };
    let chosen = |role: &&Arc<Object>| selectors.iter().any(|s| s.matches(role.metadata.labels.as_ref()));
    all.items.iter().filter(chosen).flat_map(|role| own(role)).collect()
}

fn rule_fits(rule: &Value, wish: &Wish<'_>) -> bool {
    let any = |field: &str, fits: &dyn Fn(&str) -> bool| {
        let entries = rule.get(field).and_then(Value::as_array).into_iter().flatten();
        entries.filter_map(Value::as_str).any(fits)
    };
    if !any("verbs", &|entry| entry == "*" || entry == wish.verb) {
        return false;
    }
    if !wish.path.is_empty() {
        return any("nonResourceURLs", &|entry| match entry.strip_suffix('*') {
            Some(prefix) => wish.path.starts_with(prefix),
            None => entry == wish.path,
        });
    }
    let names = rule.get("resourceNames").and_then(Value::as_array).filter(|n| !n.is_empty());
    any("apiGroups", &|entry| entry == "*" || entry == wish.group)
        && any("resources", &|entry| resource_fits(entry, wish.resource, wish.sub))
        && names.is_none_or(|names| names.iter().any(|n| n.as_str() == Some(wish.name)))
}

/// `pods`, `pods/log`, `*/scale`, `*`.
fn resource_fits(entry: &str, resource: &str, sub: &str) -> bool {
    match entry.split_once('/') {
        _ if entry == "*" => true,
        Some(("*", part)) => part == sub,
        Some((name, part)) => name == resource && part == sub,
        None => entry == resource && sub.is_empty(),
    }
}

impl ApiServer {
    /// The roles that every cluster has.
    pub(crate) fn ensure_roles(&self) -> Result<(), ApiError> {
        let rule = |groups: Value, resources: Value, verbs: Value| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
        let (read, all) = (json!(["get", "list", "watch"]), json!(["*"]));
        let work = json!([
            "pods",
            "pods/log",
            "pods/exec",
            "pods/attach",
            "pods/portforward",
            "pods/status",
            "services",
            "endpoints",
            "configmaps",
            "serviceaccounts",
            "persistentvolumeclaims",
            "events",
        ]);
        let groups = json!([
            "apps",
            "batch",
            "autoscaling",
            "policy",
            "networking.k8s.io",
            "discovery.k8s.io",
            "networking.istio.io",
            "security.istio.io",
            "telemetry.istio.io",
            "extensions.istio.io",
            "gateway.networking.k8s.io",
        ]);
        let core = json!([""]);
        let view = vec![rule(core.clone(), work.clone(), read.clone()), rule(groups.clone(), all.clone(), read)];
        let edit = vec![
            rule(core.clone(), work, all.clone()),
            rule(core, json!(["secrets"]), all.clone()),
            rule(groups, all.clone(), all.clone()),
        ];
        let roles = rule(json!([GROUP]), json!(["roles", "rolebindings"]), all.clone());
        let admin = edit.iter().cloned().chain([roles]).collect();
        let everything =
            vec![rule(all.clone(), all.clone(), all.clone()), json!({"nonResourceURLs": all, "verbs": all})];
        for (name, rules) in [("cluster-admin", everything), ("admin", admin), ("edit", edit), ("view", view)] {
            self.ensure(json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}}, "rules": rules,
            }))?;
        }
        self.ensure(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "cluster-admin", "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"apiGroup": GROUP, "kind": "Group", "name": crate::auth::ADMIN_GROUP}],
        }))
    }

    /// Creates an object that the server itself needs, unless it exists.
    fn ensure(&self, value: Value) -> Result<(), ApiError> {
        let object: Object = serde_json::from_value(value).map_err(|e| ApiError::internal(e.to_string()))?;
        match self.store().create(object) {
            Ok(_) | Err(StoreError::AlreadyExists(_)) => Ok(()),
            Err(error) => Err(ApiError::internal(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_store::StoreOptions;

    fn store(objects: &[Value]) -> MemoryStore {
        let store = MemoryStore::with_options(StoreOptions { require_namespaces: false, ..StoreOptions::default() });
        for object in objects {
            store.create(serde_json::from_value(object.clone()).unwrap()).unwrap();
        }
        store
    }

    fn role(kind: &str, namespace: &str, name: &str, rules: Value) -> Value {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
               "metadata": {"name": name, "namespace": namespace, "labels": {"part": "whole"}}, "rules": rules})
    }

    fn binding(kind: &str, namespace: &str, role: (&str, &str), subject: Value) -> Value {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
               "metadata": {"name": format!("b-{}", role.1), "namespace": namespace}, "subjects": [subject],
               "roleRef": {"apiGroup": GROUP, "kind": role.0, "name": role.1}})
    }

    #[test]
    fn decisions() {
        let reader = json!([{"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]}]);
        let one = json!([{"apiGroups": ["apps"], "resources": ["*"], "verbs": ["*"], "resourceNames": ["web"]}]);
        let paths = json!([{"nonResourceURLs": ["/healthz", "/metrics/*"], "verbs": ["get"]}]);
        let account = json!({"kind": "ServiceAccount", "name": "a", "namespace": "n"});
        let store = store(&[
            role("Role", "n", "reader", reader.clone()),
            role("ClusterRole", "", "one", one),
            role("ClusterRole", "", "paths", paths),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "sum"},
                   "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"part": "whole"}}]}}),
            binding("RoleBinding", "n", ("Role", "reader"), account.clone()),
            binding("RoleBinding", "n", ("ClusterRole", "one"), json!({"kind": "User", "name": "jane"})),
            binding("ClusterRoleBinding", "", ("ClusterRole", "paths"), json!({"kind": "Group", "name": "ops"})),
            binding("ClusterRoleBinding", "", ("ClusterRole", "sum"), json!({"kind": "User", "name": "sum"})),
        ]);
        let user = |name: &str, group: &str| User { name: name.into(), groups: vec![group.into()], ..User::default() };
        let sa = user("system:serviceaccount:n:a", "");
        let wish = |verb, group, resource, sub, namespace, name| Wish {
            verb,
            group,
            resource,
            sub,
            namespace,
            name,
            path: "",
        };
        let table = [
            (&sa, wish("get", "", "pods", "", "n", "p"), true),
            (&sa, wish("get", "", "pods", "log", "n", "p"), true),
            (&sa, wish("get", "", "pods", "exec", "n", "p"), false),
            (&sa, wish("list", "", "pods", "", "m", ""), false),
            (&sa, wish("list", "", "pods", "", "", ""), false),
            (&sa, wish("delete", "", "pods", "", "n", "p"), false),
            (&user("jane", ""), wish("delete", "apps", "deployments", "scale", "n", "web"), true),
            (&user("jane", ""), wish("delete", "apps", "deployments", "", "n", "other"), false),
            (&user("jane", ""), wish("delete", "apps", "deployments", "", "m", "web"), false),
            (&user("sum", ""), wish("update", "apps", "deployments", "", "m", "web"), true),
            (&user("x", "ops"), Wish { verb: "get", path: "/metrics/a", ..Wish::default() }, true),
            (&user("x", "ops"), Wish { verb: "post", path: "/healthz", ..Wish::default() }, false),
            (&user("x", "dev"), Wish { verb: "get", path: "/healthz", ..Wish::default() }, false),
        ];
        for (user, wish, want) in table {
            assert_eq!(allows(&store, user, &wish).is_some(), want, "{} {wish:?}", user.name);
        }
        assert_eq!(rules(&store, &sa, "n"), reader.as_array().unwrap().clone());
    }
}
