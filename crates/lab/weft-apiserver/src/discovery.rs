//! Discovery: which groups, versions and kinds are served. Pure answers from the table of kinds.

use crate::kinds::Kinds;
use crate::metrics::is_measured;
use crate::render;
use crate::route::Route;
use crate::status::ApiError;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use weft_k8s_api::KindInfo;
use weft_k8s_api::kinds::api_version;

/// Of kinds that are measured.
const ASKED: &[&str] = &["get", "list"];
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// What a client says that takes all groups in one answer.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The answer, when the route is one of discovery.
pub(crate) fn answer(
    kinds: &Kinds,
    route: &Route,
    method: &Method,
    accept: &str,
) -> Option<Result<Response, ApiError>> {
    let aggregated = accept.split(',').any(|a| a.trim() == AGGREGATED);
    let value = match route {
        Route::Core if aggregated => aggregate(kinds, |group| group.is_empty()),
        Route::Groups if aggregated => aggregate(kinds, |group| !group.is_empty()),
        Route::Core => json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
        Route::Groups => {
            let groups: Vec<Value> = kinds.group_versions().iter().filter(|(g, _)| !g.is_empty()).map(group).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        Route::Group(name) => {
            let mut found = kinds.group_versions().iter().find(|(g, _)| g == name).map(group)?;
            found["kind"] = "APIGroup".into();
            found["apiVersion"] = "v1".into();
            found
        }
        Route::GroupVersion(group, version) => resources(kinds, group, version),
        _ => return None,
    };
    if method != Method::GET {
        return Some(Err(ApiError::method_not_allowed()));
    }
    if aggregated && matches!(route, Route::Core | Route::Groups) {
        let body = value.to_string();
        return Some(Ok((StatusCode::OK, [(CONTENT_TYPE, AGGREGATED)], body).into_response()));
    }
    Some(Ok(render::value(&value)))
}

fn group((name, versions): &(&str, Vec<&str>)) -> Value {
    let version = |v: &&str| json!({"groupVersion": api_version(name, v), "version": v});
    let all: Vec<Value> = versions.iter().map(version).collect();
    json!({"name": name, "versions": all, "preferredVersion": versions.first().map(version)})
}

fn verbs(kind: &KindInfo) -> &'static [&'static str] {
    if is_measured(kind) { ASKED } else { VERBS }
}

/// A part of an object with a path of its own: name, kind of its body (group, version, kind), verbs.
type Part = (&'static str, (&'static str, &'static str, &'static str), &'static [&'static str]);

fn parts(kinds: &Kinds, kind: &KindInfo, version: &str) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    if is_measured(kind) {
        return parts;
    }
    let custom = kinds.custom(kind).and_then(|c| c.version(version));
    if custom.map_or_else(|| kinds.has_status(kind), |v| v.status) {
        parts.push(("status", ("", "", ""), &["get", "patch", "update"]));
    }
    if custom.is_some_and(|v| v.scale.is_some()) {
        parts.push(("scale", ("autoscaling", "v1", "Scale"), &["get", "patch", "update"]));
    }
    if kinds.custom(kind).is_some() {
        return parts;
    }
    match kind.kind {
        "Pod" => parts.extend([
            ("log", ("", "", ""), &["get"] as &[_]),
            ("attach", ("", "v1", "PodAttachOptions"), &["create", "get"]),
            ("exec", ("", "v1", "PodExecOptions"), &["create", "get"]),
            ("portforward", ("", "v1", "PodPortForwardOptions"), &["create", "get"]),
            ("eviction", ("policy", "v1", "Eviction"), &["create"]),
        ]),
        "ServiceAccount" => parts.push(("token", ("authentication.k8s.io", "v1", "TokenRequest"), &["create"])),
        "CertificateSigningRequest" => parts.push(("approval", ("", "", ""), &["get", "patch", "update"])),
        "Namespace" => parts.push(("finalize", ("", "", ""), &["update"])),
        "Deployment" | "ReplicaSet" | "StatefulSet" => {
            parts.push(("scale", ("autoscaling", "v1", "Scale"), &["get", "patch", "update"]));
        }
        _ => {}
    }
    parts
}

/// Questions of a group: plural and kind.
fn reviews(group: &str) -> &'static [(&'static str, &'static str)] {
    match group {
        "authentication.k8s.io" => &[("selfsubjectreviews", "SelfSubjectReview"), ("tokenreviews", "TokenReview")],
        "authorization.k8s.io" => &[
            ("selfsubjectaccessreviews", "SelfSubjectAccessReview"),
            ("selfsubjectrulesreviews", "SelfSubjectRulesReview"),
            ("subjectaccessreviews", "SubjectAccessReview"),
            ("localsubjectaccessreviews", "LocalSubjectAccessReview"),
        ],
        _ => &[],
    }
}

fn resources(kinds: &Kinds, group: &str, version: &str) -> Value {
    let mut list = Vec::new();
    for kind in kinds.of(group, version) {
        list.push(json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": verbs(kind), "shortNames": kind.short, "categories": kind.categories,
        }));
        for (name, (group, version, part), verbs) in parts(kinds, kind, version) {
            let mut entry = json!({
                "name": format!("{}/{name}", kind.plural), "singularName": "", "namespaced": kind.namespaced,
                "kind": if part.is_empty() { kind.kind } else { part }, "verbs": verbs,
            });
            if !part.is_empty() {
                entry["group"] = group.into();
                entry["version"] = version.into();
            }
            list.push(entry);
        }
    }
    for (plural, kind) in reviews(group) {
        let singular = kind.to_lowercase();
        list.push(json!({
            "name": plural, "singularName": singular, "namespaced": plural.starts_with("local"), "kind": kind, "verbs": ["create"],
        }));
    }
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version(group, version), "resources": list,
    })
}

/// All groups that `wanted` picks, in one answer (`apidiscovery.k8s.io/v2`).
fn aggregate(served: &Kinds, wanted: impl Fn(&str) -> bool) -> Value {
    let mut items = Vec::new();
    for (group, versions) in served.group_versions().into_iter().filter(|(g, _)| wanted(g)) {
        let versions: Vec<Value> = versions
            .iter()
            .map(|version| {
                let kinds = served.of(group, version).map(|k| aggregated_kind(served, k, version));
                let reviews = reviews(group).iter().map(|(plural, kind)| {
                    json!({
                        "resource": plural, "responseKind": {"group": group, "version": version, "kind": kind},
                        "scope": if plural.starts_with("local") { "Namespaced" } else { "Cluster" }, "singularResource": kind.to_lowercase(), "verbs": ["create"],
                    })
                });
                let resources: Vec<Value> = kinds.chain(reviews).collect();
                json!({"version": version, "resources": resources, "freshness": "Current"})
            })
            .collect();
        items.push(json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions}));
    }
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_kind(kinds: &Kinds, kind: &KindInfo, version: &str) -> Value {
    let own = json!({"group": kind.group, "version": version, "kind": kind.kind});
    let parts: Vec<Value> = parts(kinds, kind, version)
        .into_iter()
        .map(|(name, (group, version, part), verbs)| {
            let response =
                if part.is_empty() { own.clone() } else { json!({"group": group, "version": version, "kind": part}) };
            json!({"subresource": name, "responseKind": response, "verbs": verbs})
        })
        .collect();
    json!({
        "resource": kind.plural, "responseKind": own, "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular, "verbs": verbs(kind), "shortNames": kind.short, "categories": kind.categories,
        "subresources": parts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_k8s_api::kinds::KINDS;

    #[test]
    fn every_kind_is_discoverable() {
        for kind in KINDS {
            for version in kind.versions {
                let list = resources(&Kinds::default(), kind.group, version);
                let names: Vec<_> = list["resources"].as_array().unwrap().iter().map(|r| r["name"].clone()).collect();
                assert!(names.contains(&kind.plural.into()), "{} {version}", kind.plural);
            }
        }
        let all = aggregate(&Kinds::default(), |_| true).to_string();
        assert!(KINDS.iter().all(|k| all.contains(&format!("\"resource\":\"{}\"", k.plural))));
    }
}
