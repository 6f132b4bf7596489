//! OpenAPI, v3 per group version and v2 as a whole: the shapes of all kinds, for `kubectl explain` and for clients that are made
//! from it; and that writes take `fieldValidation`, so that fields are checked here and not by the client.
//!
//! The shapes come from where the server has them itself: the table of Kubernetes' structs, Istio's types, definitions.

use crate::kinds::Kinds;
use crate::render;
use crate::route::Route;
use crate::status::ApiError;
use crate::types::{Base, Field, Message, Plain, Shape, message, of_kind, plain};
use axum::response::{IntoResponse, Response};
use http::Method;
use http::header::CONTENT_TYPE;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use weft_k8s_api::KindInfo;
use weft_k8s_api::kinds::api_version;

const REFERENCE: &str = "#/components/schemas/";
const METADATA: &str = "meta.v1.ObjectMeta";

/// The answer, when the route is one of OpenAPI.
pub(crate) fn answer(
    kinds: &Kinds,
    route: &Route,
    method: &Method,
    accept: &str,
) -> Option<Result<Response, ApiError>> {
    if !matches!(route, Route::OpenApi | Route::OpenApiV2 | Route::OpenApiOf(..)) {
        return None;
    }
    if method != Method::GET {
        return Some(Err(ApiError::method_not_allowed()));
    }
    let json = accept.is_empty() || accept.split(',').any(|a| a.contains("json") || a.trim().starts_with("*/*"));
    if *route == Route::OpenApiV2 && accept.contains(V2_PROTOBUF) {
        return Some(Ok(([(CONTENT_TYPE, V2_ANSWER)], empty_v2()).into_response()));
    }
    if !json {
        return Some(Err(ApiError::not_acceptable()));
    }
    let value = match route {
        Route::OpenApi => index(kinds),
        Route::OpenApiV2 => swagger(kinds),
        Route::OpenApiOf(group, version) => document(kinds, group, version),
        _ => return None,
    };
    Some(Ok(render::value(&value)))
}

fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The URLs change with the definitions, as clients keep what they have read.
fn index(kinds: &Kinds) -> Value {
    let mut paths = Map::new();
    for (group, versions) in kinds.group_versions() {
        for version in versions {
            let root = root(group, version);
            let url = format!("/openapi/v3/{root}?hash={}-{}", env!("CARGO_PKG_VERSION"), kinds.revision);
            paths.insert(root, json!({"serverRelativeURL": url}));
        }
    }
    json!({ "paths": paths })
}

fn document(kinds: &Kinds, group: &str, version: &str) -> Value {
    let root = root(group, version);
    let parameter =
        |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    let parameters: Vec<Value> = ["dryRun", "fieldManager", "fieldValidation", "force"].map(parameter).into();
    let mut paths = Map::new();
    let mut schemas = BTreeMap::new();
    for kind in kinds.of(group, version) {
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
        paths.insert(collection.clone(), json!({"get": operation("list"), "post": operation("post")}));
        let one = json!({"get": operation("get"), "patch": operation("patch"), "put": operation("put")});
        paths.insert(format!("{collection}/{{name}}"), one);
        add_kind(kinds, kind, version, who, &mut schemas);
    }
    json!({
        "openapi": "3.0.0", "info": {"title": "Weft", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths, "components": {"schemas": schemas},
    })
}

/// All groups in the form of Swagger 2.0.
fn swagger(kinds: &Kinds) -> Value {
    let (mut paths, mut definitions) = (Map::new(), Map::new());
    for (group, versions) in kinds.group_versions() {
        for version in versions {
            let mut part = document(kinds, group, version);
            let mut take = |place: &str, into: &mut Map<String, Value>| {
                if let Some(Value::Object(found)) = part.pointer_mut(place).map(Value::take) {
                    into.extend(found);
                }
            };
            take("/paths", &mut paths);
            take("/components/schemas", &mut definitions);
        }
    }
    for parameter in paths.values_mut().flat_map(|p| p.as_object_mut()).flat_map(|p| p.values_mut()) {
        for entry in parameter.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
            *entry = json!({"name": entry["name"], "in": "query", "type": "string", "uniqueItems": true});
        }
    }
    let mut definitions = Value::Object(definitions);
    retarget(&mut definitions);
    json!({
        "swagger": "2.0", "info": {"title": "Weft", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths, "definitions": definitions,
    })
}

fn retarget(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get_mut("$ref") {
                *reference = reference.replace(REFERENCE, "#/definitions/");
            }
            fields.values_mut().for_each(retarget);
        }
        Value::Array(items) => items.iter_mut().for_each(retarget),
        _ => {}
    }
}

/// What kubectl asks for before it applies a `List`.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// The same as Kubernetes answers: with the `@` it is no media type that clients can read.
const V2_ANSWER: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// A Swagger document in protobuf (gnostic's `openapi.v2.Document`: `swagger` and `info`) that describes no kind: clients then
/// check nothing themselves, and leave it to the server, which looks at every object.
fn empty_v2() -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| {
        let length = u8::try_from(bytes.len()).unwrap_or(0);
        [&[number << 3 | 2, length][..], bytes.get(..usize::from(length)).unwrap_or_default()].concat()
    };
    let info = [field(1, b"Weft"), field(2, env!("CARGO_PKG_VERSION").as_bytes())].concat();
    [field(1, b"2.0"), field(2, &info)].concat()
}

type Schemas = BTreeMap<String, Value>;

/// The schema of a kind, and of all structs that it uses.
fn add_kind(kinds: &Kinds, kind: &KindInfo, version: &str, who: Value, schemas: &mut Schemas) {
    if let Some(known) = of_kind(kind.group, version, kind.kind) {
        add_message(known, schemas);
        if let Some(schema) = schemas.get_mut(&schema_name(known.name)).and_then(Value::as_object_mut) {
            schema.insert("x-kubernetes-group-version-kind".into(), json!([who]));
        }
        return;
    }
    let custom = kinds.custom(kind).and_then(|c| c.version(version)).map(|v| (*v.schema).clone());
    let mut schema = custom
        .or_else(|| istio(kind))
        .unwrap_or_else(|| json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
    if let Some(schema) = schema.as_object_mut() {
        schema
            .entry("description")
            .or_insert_with(|| format!("{} of {}", kind.kind, api_version(kind.group, version)).into());
        schema.insert("x-kubernetes-group-version-kind".into(), json!([who]));
        let properties = schema.entry("properties").or_insert_with(|| json!({}));
        if let Some(properties) = properties.as_object_mut() {
            let text = json!({"type": "string"});
            properties.insert("apiVersion".into(), text.clone());
            properties.insert("kind".into(), text);
            properties.insert("metadata".into(), reference(METADATA));
        }
    }
    schemas.insert(format!("{}.{version}.{}", reversed(kind.group), kind.kind), schema);
    if let Some(metadata) = message(METADATA) {
        add_message(metadata, schemas);
    }
}

/// The whole object of an Istio kind; made once.
fn istio(kind: &KindInfo) -> Option<Value> {
    static MADE: Mutex<Option<HashMap<String, Arc<Value>>>> = Mutex::new(None);
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let made = made.get_or_insert_default();
    let name = format!("{}.{}", kind.kind, kind.group);
    if let Some(known) = made.get(&name) {
        return Some((**known).clone());
    }
    let spec = weft_k8s_api::crd::spec_schema(kind)?;
    let whole = json!({"type": "object", "properties": {
        "spec": spec, "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    }});
    made.insert(name, Arc::new(whole.clone()));
    Some(whole)
}

/// `networking.istio.io` → `io.istio.networking`.
fn reversed(group: &str) -> String {
    group.split('.').rev().collect::<Vec<_>>().join(".")
}

/// The name that Kubernetes gives a struct.
fn schema_name(name: &str) -> String {
    let prefix = match name.split('.').next() {
        Some("meta") => "io.k8s.apimachinery.pkg.apis",
        Some("apiextensions") => "io.k8s.apiextensions-apiserver.pkg.apis",
        _ => "io.k8s.api",
    };
    format!("{prefix}.{name}")
}

fn reference(name: &str) -> Value {
    json!({"allOf": [{"$ref": format!("{REFERENCE}{}", schema_name(name))}]})
}

fn add_message(known: &'static Message, schemas: &mut Schemas) {
    let mut todo = vec![known];
    while let Some(next) = todo.pop() {
        let name = schema_name(next.name);
        if schemas.contains_key(&name) {
            continue;
        }
        let fields = next.json_fields();
        let is_object = of_object(next);
        let mut properties = Map::new();
        if is_object {
            properties.insert("apiVersion".into(), json!({"type": "string"}));
            properties.insert("kind".into(), json!({"type": "string"}));
        }
        properties.extend(fields.iter().map(|f| (f.name.to_string(), field_schema(f))));
        let required: Vec<&str> = fields.iter().filter(|f| f.required).map(|f| f.name).collect();
        let mut schema = json!({"type": "object", "properties": properties});
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if next.atomic {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        schemas.insert(name, schema);
        todo.extend(fields.iter().filter_map(|f| f.message()).filter(|m| plain(m.name).is_none()));
    }
}

/// Whole objects have a type of their own, which protobuf keeps outside of them.
fn of_object(known: &Message) -> bool {
    known.field("metadata").is_some_and(|f| matches!(f.base, Base::Message(METADATA | "meta.v1.ListMeta")))
        && !known.name.ends_with("TemplateSpec")
        && known.name != "core.v1.PersistentVolumeClaimTemplate"
}

fn field_schema(field: &Field) -> Value {
    let one = || match field.base {
        Base::Text => json!({"type": "string"}),
        Base::Bool => json!({"type": "boolean"}),
        Base::Integer => json!({"type": "integer", "format": "int64"}),
        Base::Double => json!({"type": "number", "format": "double"}),
        Base::Bytes => json!({"type": "string", "format": "byte"}),
        Base::Message(name) => plain(name).map_or_else(|| reference(name), plain_schema),
    };
    let mut schema = match field.shape {
        Shape::One => one(),
        Shape::List => json!({"type": "array", "items": one()}),
        Shape::Map => json!({"type": "object", "additionalProperties": one()}),
    };
    use crate::types::Merge;
    match &field.merge {
        Merge::Keys(keys) => {
            schema["x-kubernetes-list-type"] = "map".into();
            schema["x-kubernetes-list-map-keys"] = json!(keys);
        }
        Merge::Set => schema["x-kubernetes-list-type"] = "set".into(),
        Merge::Atomic if field.shape == Shape::List => schema["x-kubernetes-list-type"] = "atomic".into(),
        Merge::Atomic if field.shape == Shape::Map => schema["x-kubernetes-map-type"] = "atomic".into(),
        _ => {}
    }
    if let Some(key) = field.patch_key {
        schema["x-kubernetes-patch-strategy"] = "merge".into();
        if !key.is_empty() {
            schema["x-kubernetes-patch-merge-key"] = key.into();
        }
    }
    schema
}

fn plain_schema(kind: Plain) -> Value {
    match kind {
        Plain::Time | Plain::MicroTime => json!({"type": "string", "format": "date-time"}),
        Plain::Quantity | Plain::Seconds => json!({"type": "string"}),
        Plain::IntOrString => json!({"type": "string", "format": "int-or-string", "x-kubernetes-int-or-string": true}),
        Plain::Words => json!({"type": "array", "items": {"type": "string"}}),
        Plain::Json => json!({"type": "object"}),
        // One of several forms; clients make nothing of it.
        Plain::SchemaOrBool | Plain::SchemaOrArray | Plain::SchemaOrWords => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_string));
                fields.values().for_each(|v| references(v, found));
            }
            Value::Array(items) => items.iter().for_each(|v| references(v, found)),
            _ => {}
        }
    }

    #[test]
    fn documents_are_closed() {
        let kinds = Kinds::default();
        for (group, versions) in kinds.group_versions() {
            for version in versions {
                let document = document(&kinds, group, version);
                let schemas = &document["components"]["schemas"];
                let mut found = Vec::new();
                references(&document, &mut found);
                for reference in found {
                    let name = reference.strip_prefix(REFERENCE).unwrap();
                    assert!(schemas.get(name).is_some(), "{group}/{version}: {name}");
                }
                for kind in kinds.of(group, version) {
                    let named = |s: &Value| s["x-kubernetes-group-version-kind"][0]["kind"] == kind.kind;
                    assert!(schemas.as_object().unwrap().values().any(named), "{group}/{version} {}", kind.kind);
                }
            }
        }
    }

    #[test]
    fn swagger_is_closed_too() {
        let all = swagger(&Kinds::default());
        let mut found = Vec::new();
        references(&all, &mut found);
        assert!(found.len() > 500);
        assert!(found.iter().all(|r| all["definitions"].get(r.trim_start_matches("#/definitions/")).is_some()));
    }
}
