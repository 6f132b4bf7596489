//! As much OpenAPI v3 as kubectl asks for before it sends an object: that PATCH takes `fieldValidation`, so that fields are
//! checked here and not by the client. Schemas of the kinds are not described.

use crate::render;
use crate::route::{Route, group_versions, kinds_of};
use crate::status::ApiError;
use axum::response::Response;
use http::Method;
use serde_json::{Map, Value, json};
use weft_k8s_api::kinds::api_version;

/// The answer, when the route is one of OpenAPI.
pub(crate) fn answer(route: &Route, method: &Method) -> Option<Result<Response, ApiError>> {
    let value = match route {
        Route::OpenApi => index(),
        Route::OpenApiOf(group, version) => document(group, version),
        _ => return None,
    };
    Some(if method == Method::GET { Ok(render::value(&value)) } else { Err(ApiError::method_not_allowed()) })
}

fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn index() -> Value {
    let mut paths = Map::new();
    for (group, versions) in group_versions() {
        for version in versions {
            let root = root(group, version);
            let url = format!("/openapi/v3/{root}?hash={}", env!("CARGO_PKG_VERSION"));
            paths.insert(root, json!({"serverRelativeURL": url}));
        }
    }
    json!({ "paths": paths })
}

fn document(group: &str, version: &str) -> Value {
    let root = root(group, version);
    let parameter =
        |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    let parameters: Vec<Value> = ["dryRun", "fieldManager", "fieldValidation", "force"].map(parameter).into();
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for kind in kinds_of(group, version) {
        let who = json!({"group": group, "version": version, "kind": kind.kind});
        let place = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
        let operation = |action: &str| {
            json!({
                "operationId": format!("{action}{}", kind.kind), "parameters": parameters,
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-action": action, "x-kubernetes-group-version-kind": who,
            })
        };
        let collection = format!("/{root}{place}/{}", kind.plural);
        paths.insert(collection.clone(), json!({"post": operation("post")}));
        paths.insert(format!("{collection}/{{name}}"), json!({"patch": operation("patch"), "put": operation("put")}));
        let schema = json!({
            "type": "object", "x-kubernetes-preserve-unknown-fields": true, "x-kubernetes-group-version-kind": [who],
            "description": format!("{} of {}", kind.kind, api_version(group, version)),
        });
        schemas.insert(format!("{}.{version}.{}", group.replace('.', "-"), kind.kind), schema);
    }
    json!({
        "openapi": "3.0.0", "info": {"title": "Weft", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths, "components": {"schemas": schemas},
    })
}
