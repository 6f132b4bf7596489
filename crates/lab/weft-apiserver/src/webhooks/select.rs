//! Which webhooks see a request: rules, namespace selector, object selector. Pure but for the namespace's labels.

use super::{Request, Webhook};
use serde_json::Value;
use std::collections::BTreeMap;
use weft_k8s_api::Object;
use weft_store::LabelSelector;

/// The version in which the webhook wants the object; `None` when it does not want it at all.
pub(super) fn version<'a>(request: &Request<'a>, hook: &Webhook, object: Option<&Object>) -> Option<&'a str> {
    let rules = hook.spec.get("rules").and_then(Value::as_array)?;
    let exact = hook.text("matchPolicy") == "Exact";
    let served: &'static [&'static str] = request.kind.versions;
    let others = served.iter().copied().filter(|v| !exact && *v != request.version);
    let version =
        std::iter::once(request.version).chain(others).find(|v| rules.iter().any(|rule| fits(rule, request, v)))?;
    (namespace_fits(request, hook, object) && object_fits(request, hook, object)).then_some(version)
}

fn fits(rule: &Value, request: &Request<'_>, version: &str) -> bool {
    let any = |field: &str, wanted: &dyn Fn(&str) -> bool| {
        let entries = rule.get(field).and_then(Value::as_array).into_iter().flatten();
        entries.filter_map(Value::as_str).any(wanted)
    };
    let is = |value: &str| {
        let value = value.to_string();
        move |entry: &str| entry == "*" || entry == value
    };
    let scope = rule.get("scope").and_then(Value::as_str).unwrap_or("*");
    let in_scope = match scope {
        // A Namespace is cluster-scoped.
        "Cluster" => !request.kind.namespaced,
        "Namespaced" => request.kind.namespaced,
        _ => true,
    };
    in_scope
        && any("operations", &is(request.operation))
        && any("apiGroups", &is(request.kind.group))
        && any("apiVersions", &is(version))
        && any("resources", &|entry| resource_fits(entry, request.kind.plural, request.sub))
}

/// `pods`, `pods/status`, `pods/*`, `*/status`, `*` (no subresources), `*/*`.
fn resource_fits(entry: &str, plural: &str, sub: Option<&str>) -> bool {
    let (resource, part) = entry.split_once('/').map_or((entry, None), |(r, p)| (r, Some(p)));
    let sub_fits = match (part, sub) {
        (None, None) | (Some("*"), _) => true,
        (None, Some(_)) => false,
        (Some(part), sub) => sub == Some(part),
    };
    sub_fits && (resource == "*" || resource == plural)
}

type Labels = BTreeMap<String, String>;

fn selector(hook: &Webhook, field: &str) -> Option<LabelSelector> {
    let value = hook.spec.get(field).filter(|v| !v.is_null())?;
    LabelSelector::from_json(value).ok()
}

fn namespace_fits(request: &Request<'_>, hook: &Webhook, object: Option<&Object>) -> bool {
    let Some(selector) = selector(hook, "namespaceSelector") else { return true };
    let subject = object.or(request.old);
    if request.kind.kind == "Namespace" && request.kind.group.is_empty() {
        return selector.matches(subject.and_then(|o| o.metadata.labels.as_ref()));
    }
    if !request.kind.namespaced {
        return true;
    }
    let namespace = subject.map(Object::namespace).unwrap_or_default();
    let found = request.server.store().find("", "Namespace", "", namespace);
    selector.matches(found.as_ref().and_then(|n| n.metadata.labels.as_ref()))
}

/// The new or the old object decides: one that leaves the selection is still seen.
fn object_fits(request: &Request<'_>, hook: &Webhook, object: Option<&Object>) -> bool {
    let Some(selector) = selector(hook, "objectSelector") else { return true };
    let labels = |o: &Object| -> Option<Labels> { o.metadata.labels.clone() };
    [object, request.old].into_iter().flatten().any(|o| selector.matches(labels(o).as_ref()))
}

/// Selectors that cannot be read: field and reason.
pub(super) fn check(spec: &Value) -> Result<(), (String, String)> {
    for field in ["namespaceSelector", "objectSelector"] {
        if let Some(value) = spec.get(field).filter(|v| !v.is_null()) {
            LabelSelector::from_json(value).map_err(|e| (field.to_string(), e.to_string()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources() {
        let table = [
            ("pods", None, true),
            ("pods", Some("status"), false),
            ("pods/status", Some("status"), true),
            ("pods/status", None, false),
            ("pods/*", None, true),
            ("pods/*", Some("exec"), true),
            ("*", None, true),
            ("*", Some("status"), false),
            ("*/*", Some("status"), true),
            ("*/scale", Some("status"), false),
            ("services", None, false),
        ];
        for (entry, sub, want) in table {
            assert_eq!(resource_fits(entry, "pods", sub), want, "{entry} {sub:?}");
        }
    }
}
