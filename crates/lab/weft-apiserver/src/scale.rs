//! The `scale` part of workloads: the number of replicas as an object of its own.

use crate::patch::Patch;
use crate::render;
use crate::resources::{Change, rewrite};
use crate::route::Target;
use crate::server::Context;
use crate::status::{ApiError, FieldError};
use axum::body::Body;
use axum::response::Response;
use http::Method;
use serde_json::{Value, json};
use weft_k8s_api::Object;
use weft_store::LabelSelector;

/// GET, PUT and PATCH of a scale.
pub(crate) async fn handle(
    context: &Context,
    target: &Target,
    request: http::Request<Body>,
) -> Result<Response, ApiError> {
    let store = context.server.store();
    match *request.method() {
        Method::GET => {
            let found = store.find(target.kind.group, target.kind.kind, target.namespace(), target.name());
            let object = found.ok_or_else(|| ApiError::not_found(target.kind, target.name()))?;
            Ok(render::value(&scale_of(&object)))
        }
        Method::PUT => {
            let wanted = context.read_json(request).await?;
            change(context, target, |_| Ok(wanted.clone())).await
        }
        Method::PATCH => {
            let (content_type, body) = context.read_body(request).await?;
            let patch = Patch::read(target.kind, &content_type, &body)?;
            change(context, target, |old| patch.apply(target.kind, &scale_of(old))).await
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

async fn change(
    context: &Context,
    target: &Target,
    wanted: impl Fn(&Object) -> Result<Value, ApiError>,
) -> Result<Response, ApiError> {
    let change = |old: &Object| {
        let wanted = wanted(old)?;
        let replicas = wanted.pointer("/spec/replicas").map_or(Some(0), Value::as_i64);
        let replicas = replicas.filter(|r| (0..=i64::from(i32::MAX)).contains(r)).ok_or_else(|| {
            let message = "a whole number of at least 0 is expected".to_string();
            ApiError::invalid(target.kind, target.name(), &[FieldError { field: "spec.replicas".into(), message }])
        })?;
        let version = wanted.pointer("/metadata/resourceVersion").and_then(Value::as_str).filter(|v| !v.is_empty());
        let mut object = old.clone();
        let explicit = version.is_some_and(|v| Some(v) != old.metadata.resource_version.as_deref());
        if let Some(version) = version {
            object.metadata.resource_version = Some(version.into());
        }
        if let Some(spec) = object.body.entry("spec").or_insert_with(|| json!({})).as_object_mut() {
            spec.insert("replicas".into(), replicas.into());
        }
        Ok(Change { object, explicit })
    };
    let (new, warnings) = rewrite(context, target, change).await?;
    Ok(render::with_warnings(render::value(&scale_of(&new)), &warnings))
}

/// `autoscaling/v1` `Scale` of a workload.
fn scale_of(object: &Object) -> Value {
    let replicas =
        |part: &str| object.body.get(part).and_then(|p| p.get("replicas")).and_then(Value::as_i64).unwrap_or(0);
    let selector = object.spec().get("selector").map(LabelSelector::from_json);
    let selector = selector.and_then(Result::ok).map(|s| s.to_string()).unwrap_or_default();
    json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale",
        "metadata": {
            "name": object.name(), "namespace": object.namespace(), "uid": object.metadata.uid,
            "resourceVersion": object.metadata.resource_version, "creationTimestamp": object.metadata.creation_timestamp,
        },
        "spec": {"replicas": replicas("spec")},
        "status": {"replicas": replicas("status"), "selector": selector},
    })
}
