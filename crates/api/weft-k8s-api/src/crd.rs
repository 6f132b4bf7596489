//! CustomResourceDefinitions of the kinds in [`crate::istio`]: names, versions, schemas, printer columns.

use crate::kinds::{KINDS, KindInfo};
use crate::{istio, schema};
use serde_json::{Value, json};

/// The kinds that have a definition: Istio's.
pub fn defined() -> impl Iterator<Item = &'static KindInfo> {
    KINDS.iter().filter(|kind| kind.group.ends_with(".istio.io"))
}

/// The schema of a kind's `spec`; `None` for kinds that are not Istio's.
pub fn spec_schema(kind: &KindInfo) -> Option<Value> {
    if !kind.group.ends_with(".istio.io") {
        return None;
    }
    let schema = match kind.kind {
        "VirtualService" => schema::of::<istio::VirtualService>(),
        "DestinationRule" => schema::of::<istio::DestinationRule>(),
        "Gateway" => schema::of::<istio::Gateway>(),
        "ServiceEntry" => schema::of::<istio::ServiceEntry>(),
        "Sidecar" => schema::of::<istio::Sidecar>(),
        "WorkloadEntry" => schema::of::<istio::WorkloadEntry>(),
        "WorkloadGroup" => schema::of::<istio::WorkloadGroup>(),
        "EnvoyFilter" => schema::of::<istio::EnvoyFilter>(),
        "ProxyConfig" => schema::of::<istio::ProxyConfig>(),
        "PeerAuthentication" => schema::of::<istio::PeerAuthentication>(),
        "RequestAuthentication" => schema::of::<istio::RequestAuthentication>(),
        "AuthorizationPolicy" => schema::of::<istio::AuthorizationPolicy>(),
        "Telemetry" => schema::of::<istio::Telemetry>(),
        "WasmPlugin" => schema::of::<istio::WasmPlugin>(),
        "TrafficExtension" => schema::of::<istio::TrafficExtension>(),
        _ => return None,
    };
    Some(schema)
}

/// The definition of a kind; `None` for kinds that are not Istio's.
pub fn definition(kind: &KindInfo) -> Option<Value> {
    let open = json!({
        "type": "object",
        "properties": {
            "spec": spec_schema(kind)?,
            "status": {
                "type": "object", "description": "What the control plane found.",
                "x-kubernetes-preserve-unknown-fields": true,
            },
        },
    });
    let versions: Vec<Value> = kind
        .versions
        .iter()
        .enumerate()
        .map(|(at, version)| {
            json!({
                "name": version, "served": true, "storage": at == 0,
                "schema": {"openAPIV3Schema": open},
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns(kind.kind),
            })
        })
        .collect();
    let mut names = json!({
        "kind": kind.kind, "listKind": format!("{}List", kind.kind),
        "plural": kind.plural, "singular": kind.singular, "categories": kind.categories,
    });
    // A short name that is the singular too is refused.
    let short: Vec<&str> = kind.short.iter().copied().filter(|s| *s != kind.singular && *s != kind.plural).collect();
    if !short.is_empty() {
        names["shortNames"] = short.into();
    }
    Some(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{}", kind.plural, kind.group),
            "labels": {"app": "istio-pilot", "app.kubernetes.io/part-of": "weft"},
        },
        "spec": {
            "group": kind.group, "names": names, "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
            "versions": versions,
        },
    }))
}

/// What `kubectl get` shows of a kind beside the name.
fn columns(kind: &str) -> Value {
    let column = |name: &str, path: &str, kind: &str, text: &str| json!({"name": name, "jsonPath": path, "type": kind, "description": text});
    let own = match kind {
        "VirtualService" => vec![
            column("Gateways", ".spec.gateways", "string", "Gateways that the routes hold for"),
            column("Hosts", ".spec.hosts", "string", "Hosts that the routes are for"),
        ],
        "DestinationRule" => vec![column("Host", ".spec.host", "string", "Service that the rule is for")],
        "ServiceEntry" => vec![
            column("Hosts", ".spec.hosts", "string", "Hosts of the service"),
            column("Location", ".spec.location", "string", "Inside the mesh or outside"),
            column("Resolution", ".spec.resolution", "string", "How endpoints are found"),
        ],
        "WorkloadEntry" => vec![column("Address", ".spec.address", "string", "Address of the workload")],
        "PeerAuthentication" => vec![column("Mode", ".spec.mtls.mode", "string", "Mutual TLS of the workloads")],
        "AuthorizationPolicy" => vec![column("Action", ".spec.action", "string", "What matching requests get")],
        _ => Vec::new(),
    };
    let age = column("Age", ".metadata.creationTimestamp", "date", "When it was created");
    own.into_iter().chain([age]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_complete() {
        let all: Vec<Value> = defined().map(|kind| definition(kind).unwrap()).collect();
        assert!(all.len() >= 15, "{}", all.len());
        for one in &all {
            let stored = one["spec"]["versions"].as_array().unwrap().iter().filter(|v| v["storage"] == true).count();
            assert_eq!(stored, 1, "{}", one["metadata"]["name"]);
            let typed: Result<
                k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
                _,
            > = serde_json::from_value(one.clone());
            assert!(typed.is_ok(), "{}: {:?}", one["metadata"]["name"], typed.err());
        }
    }
}
