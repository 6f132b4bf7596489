//! Questions that are posted and answered at once: whose token, who am I, may I.

use crate::auth::User;
use crate::rbac::{self, Wish};
use crate::route::Review;
use crate::server::Context;
use crate::status::ApiError;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode};
use serde_json::{Value, json};

/// Answers a review.
pub(crate) async fn handle(
    context: &Context,
    review: Review,
    request: http::Request<Body>,
) -> Result<Response, ApiError> {
    if request.method() != Method::POST {
        return Err(ApiError::method_not_allowed());
    }
    let about_self = matches!(review, Review::SelfSubject | Review::SelfAccess | Review::SelfRules);
    let (group, what) = match review {
        Review::Token => ("authentication.k8s.io", "tokenreviews"),
        _ => ("authorization.k8s.io", "subjectaccessreviews"),
    };
    let wish = Wish { verb: "create", group, resource: what, ..Wish::default() };
    if !about_self && context.server.decide(&context.user, &wish).is_none() {
        return Err(ApiError::forbidden(format!("{what} is forbidden: User {:?} cannot create it", context.user.name)));
    }
    let mut body: Value = context.read_json(request).await?;
    let spec = body.get("spec").cloned().unwrap_or(Value::Null);
    let status = match review {
        Review::Token => token(context, &spec)?,
        Review::SelfSubject => json!({"userInfo": context.user.to_value()}),
        Review::SelfAccess => access(context, &context.user, &spec)?,
        Review::Access => access(context, &user_in(&spec)?, &spec)?,
        Review::SelfRules => rules(context, &spec),
    };
    let Some(fields) = body.as_object_mut() else { return Err(ApiError::bad_request("an object is expected")) };
    fields.insert("status".into(), status);
    fields.entry("metadata").or_insert_with(|| json!({}));
    // The answer does not repeat the token.
    if review == Review::Token
        && let Some(spec) = fields.get_mut("spec").and_then(Value::as_object_mut)
    {
        spec.shift_remove("token");
    }
    Ok((StatusCode::CREATED, axum::Json(body)).into_response())
}

fn token(context: &Context, spec: &Value) -> Result<Value, ApiError> {
    let token = spec.get("token").and_then(Value::as_str).unwrap_or_default();
    if token.is_empty() {
        return Err(ApiError::bad_request("TokenReview: spec.token is required"));
    }
    let own = [Value::from(context.server.tokens().audience())];
    let asked = match spec.get("audiences").and_then(Value::as_array) {
        Some(audiences) if !audiences.is_empty() => audiences.as_slice(),
        _ => &own,
    };
    Ok(match context.server.user_of(token) {
        Err(why) => json!({"authenticated": false, "error": why}),
        Ok((user, audiences)) => {
            let fit: Vec<_> = audiences.into_iter().filter(|a| asked.iter().any(|x| x == a.as_str())).collect();
            if fit.is_empty() {
                json!({"authenticated": false, "error": "the token is for other audiences"})
            } else {
                json!({"authenticated": true, "user": user.to_value(), "audiences": fit})
            }
        }
    })
}

fn access(context: &Context, user: &User, spec: &Value) -> Result<Value, ApiError> {
    let part = |name: &str| spec.get(name).filter(|v| v.is_object());
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
    let decision = match (part("resourceAttributes"), part("nonResourceAttributes")) {
        (Some(wanted), None) => {
            let [verb, group, resource, sub, namespace, name] =
                ["verb", "group", "resource", "subresource", "namespace", "name"].map(|field| text(wanted, field));
            let wish = Wish {
                verb: &verb,
                group: &group,
                resource: &resource,
                sub: &sub,
                namespace: &namespace,
                name: &name,
                path: "",
            };
            context.server.decide(user, &wish)
        }
        (None, Some(wanted)) => {
            let (verb, path) = (text(wanted, "verb"), text(wanted, "path"));
            // Discovery is open to everybody who is somebody.
            let open = ["/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz"];
            let is_open = verb == "get" && open.iter().any(|o| path == *o || path.starts_with(&format!("{o}/")));
            let wish = Wish { verb: &verb, path: &path, ..Wish::default() };
            if is_open { Some("discovery is open".into()) } else { context.server.decide(user, &wish) }
        }
        _ => {
            let message = "spec: exactly one of resourceAttributes or nonResourceAttributes is expected";
            return Err(ApiError::bad_request(message));
        }
    };
    Ok(match decision {
        Some(reason) => json!({"allowed": true, "reason": reason}),
        None => json!({"allowed": false, "reason": "no role allows it"}),
    })
}

fn user_in(spec: &Value) -> Result<User, ApiError> {
    let name = spec.get("user").and_then(Value::as_str).unwrap_or_default();
    let groups = spec.get("groups").and_then(Value::as_array).into_iter().flatten();
    let groups: Vec<String> = groups.filter_map(|g| g.as_str().map(str::to_string)).collect();
    if name.is_empty() && groups.is_empty() {
        return Err(ApiError::bad_request("SubjectAccessReview: spec.user or spec.groups is required"));
    }
    Ok(User { name: name.into(), groups, ..User::default() })
}

fn rules(context: &Context, spec: &Value) -> Value {
    let namespace = spec.get("namespace").and_then(Value::as_str).unwrap_or_default();
    let all = vec![
        json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}),
        json!({"verbs": ["*"], "nonResourceURLs": ["*"]}),
    ];
    let found = match context.server.allows(&context.user) {
        true => all,
        false => rbac::rules(context.server.store(), &context.user, namespace),
    };
    let (paths, resources): (Vec<Value>, Vec<Value>) =
        found.into_iter().partition(|rule| rule.get("nonResourceURLs").is_some());
    let open = json!({"verbs": ["get"], "nonResourceURLs": ["/api", "/api/*", "/apis", "/apis/*", "/version"]});
    let own = json!({
        "verbs": ["create"], "apiGroups": ["authorization.k8s.io"],
        "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
    });
    let resources: Vec<Value> = std::iter::once(own).chain(resources).collect();
    let paths: Vec<Value> = std::iter::once(open).chain(paths).collect();
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
}
