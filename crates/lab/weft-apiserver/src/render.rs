//! Answers: objects and lists as JSON in the version that the client speaks, whole, as tables, or reduced to their metadata.

use crate::params::Shape;
use crate::route::Target;
use crate::server::Context;
use crate::status::ApiError;
use crate::table;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, WARNING};
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value, json};
use weft_k8s_api::Object;
use weft_k8s_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use weft_store::ObjectList;

/// An object without a copy, in another version.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Served<'a> {
    api_version: &'a str,
    kind: &'a str,
    metadata: &'a ObjectMeta,
    #[serde(flatten)]
    body: Option<&'a Map<String, Value>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServedList<'a> {
    api_version: &'a str,
    kind: String,
    metadata: Value,
    items: Vec<Served<'a>>,
}

/// The form of one object inside any answer.
pub(crate) fn object_json(object: &Object, api_version: &str, shape: Shape) -> Result<Vec<u8>, ApiError> {
    let served = match shape {
        Shape::Metadata => Served {
            api_version: "meta.k8s.io/v1",
            kind: "PartialObjectMetadata",
            metadata: &object.metadata,
            body: None,
        },
        _ => Served { api_version, kind: &object.kind, metadata: &object.metadata, body: Some(&object.body) },
    };
    serde_json::to_vec(&served).map_err(|e| ApiError::internal(e.to_string()))
}

/// One object.
pub(crate) fn object(
    context: &Context,
    target: &Target,
    code: StatusCode,
    object: &Object,
    warnings: &[String],
) -> Result<Response, ApiError> {
    let body = match context.shape {
        Shape::Table => {
            let list = [object];
            let include = context.params.get("includeObject");
            table::table(&context.kinds, target, &list, table_meta(object), include).to_string().into_bytes()
        }
        shape => object_json(object, &target.api_version(), shape)?,
    };
    Ok(with_warnings(json_response(code, body), warnings))
}

/// List metadata of a table of one object.
pub(crate) fn table_meta(object: &Object) -> Value {
    json!({"resourceVersion": object.metadata.resource_version.clone().unwrap_or_default()})
}

/// A list.
pub(crate) fn list(context: &Context, target: &Target, list: &ObjectList) -> Result<Response, ApiError> {
    let mut meta = json!({"resourceVersion": list.revision.to_string()});
    if let Some(token) = &list.continue_token {
        meta["continue"] = token.clone().into();
        meta["remainingItemCount"] = list.remaining.into();
    }
    let api_version = target.api_version();
    let body = match context.shape {
        Shape::Table => {
            let objects: Vec<&Object> = list.items.iter().map(AsRef::as_ref).collect();
            table::table(&context.kinds, target, &objects, meta, context.params.get("includeObject"))
                .to_string()
                .into_bytes()
        }
        shape => {
            let partial = shape == Shape::Metadata;
            let kind = if partial { "PartialObjectMetadataList".into() } else { format!("{}List", target.kind.kind) };
            let version = if partial { "meta.k8s.io/v1" } else { api_version.as_str() };
            let items = list.items.iter().map(|o| Served {
                api_version: version,
                kind: if partial { "PartialObjectMetadata" } else { &o.kind },
                metadata: &o.metadata,
                body: (!partial).then_some(&o.body),
            });
            let list = ServedList { api_version: version, kind, metadata: meta, items: items.collect() };
            serde_json::to_vec(&list).map_err(|e| ApiError::internal(e.to_string()))?
        }
    };
    Ok(json_response(StatusCode::OK, body))
}

/// `Status: Success` after a deletion.
pub(crate) fn deleted(target: &Target, object: &Object) -> Response {
    let mut details = json!({"name": object.name(), "kind": target.kind.plural});
    if !target.kind.group.is_empty() {
        details["group"] = target.kind.group.into();
    }
    if let Some(uid) = &object.metadata.uid {
        details["uid"] = uid.clone().into();
    }
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    json_response(StatusCode::OK, status.to_string().into_bytes())
}

/// Any JSON.
pub(crate) fn value(value: &Value) -> Response {
    json_response(StatusCode::OK, value.to_string().into_bytes())
}

fn json_response(code: StatusCode, body: Vec<u8>) -> Response {
    (code, [(CONTENT_TYPE, "application/json")], body).into_response()
}

/// `Warning: 299 - "text"` (RFC 7234, 5.5). Control characters are left out; long texts are cut.
pub(crate) fn with_warnings(mut response: Response, warnings: &[String]) -> Response {
    for warning in warnings.iter().take(32) {
        let text: String = warning.chars().filter(|c| !c.is_control()).take(512).collect();
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(WARNING, value);
        }
    }
    response
}
