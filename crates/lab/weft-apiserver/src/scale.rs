//! The `scale` part of workloads and of custom kinds that have one: the number of replicas as an object of its own.

use crate::custom::Scale;
use crate::custom::path::Path;
use crate::patch::Patch;
use crate::render;
use crate::resources::{Change, rewrite, spoken};
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
    let places = places(context, target);
    match *request.method() {
        Method::GET => Ok(render::value(&scale_of(&*spoken(context, target).await?, &places))),
        Method::PUT => {
            let wanted = context.read_json(request).await?;
            change(context, target, &places, |_| Ok(wanted.clone())).await
        }
        Method::PATCH => {
            let (content_type, body) = context.read_body(request).await?;
            let patch = Patch::read(target.kind, &content_type, &body)?;
            change(context, target, &places, |old| patch.apply(target.kind, &scale_of(old, &places))).await
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

async fn change(
    context: &Context,
    target: &Target,
    places: &Places,
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
        let mut body = Value::Object(std::mem::take(&mut object.body));
        if !places.spec.set(&mut body, replicas.into()) {
            return Err(ApiError::internal("specReplicasPath of the definition is no path of fields"));
        }
        object.body = body.as_object().cloned().unwrap_or_default();
        Ok(Change { object, explicit, applied: false })
    };
    let (new, warnings) = rewrite(context, target, change).await?;
    Ok(render::with_warnings(render::value(&scale_of(&new, places)), &warnings))
}

/// Where a kind keeps the numbers.
struct Places {
    spec: Path,
    status: Path,
    selector: Option<Path>,
}

fn places(context: &Context, target: &Target) -> Places {
    let custom = context.kinds.custom(target.kind).and_then(|c| c.version(&target.version)?.scale.clone());
    let scale = custom.unwrap_or_else(|| Scale {
        spec_replicas: ".spec.replicas".into(),
        status_replicas: ".status.replicas".into(),
        selector: Some(".spec.selector".into()),
    });
    let path = |text: &str| Path::parse(text).unwrap_or_default();
    Places {
        spec: path(&scale.spec_replicas),
        status: path(&scale.status_replicas),
        selector: scale.selector.as_deref().map(path),
    }
}

/// `autoscaling/v1` `Scale` of an object.
fn scale_of(object: &Object, places: &Places) -> Value {
    let body = Value::Object(object.body.clone());
    let number = |path: &Path| path.find(&body).first().and_then(|v| v.as_i64()).unwrap_or(0);
    // A label selector, or its text, as custom kinds have it.
    let selector = places.selector.as_ref().and_then(|path| path.find(&body).first().copied().cloned());
    let selector = match selector {
        Some(Value::String(text)) => text,
        Some(value) => LabelSelector::from_json(&value).map(|s| s.to_string()).unwrap_or_default(),
        None => String::new(),
    };
    json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale",
        "metadata": {
            "name": object.name(), "namespace": object.namespace(), "uid": object.metadata.uid,
            "resourceVersion": object.metadata.resource_version, "creationTimestamp": object.metadata.creation_timestamp,
        },
        "spec": {"replicas": number(&places.spec)},
        "status": {"replicas": number(&places.status), "selector": selector},
    })
}
