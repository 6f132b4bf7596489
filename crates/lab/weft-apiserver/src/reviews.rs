//! Questions that are posted and answered at once: whose token, who am I, may I.

use crate::auth::User;
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
    if !about_self && !context.server.allows(&context.user) {
        let what = if review == Review::Token { "tokenreviews" } else { "subjectaccessreviews" };
        return Err(ApiError::forbidden(format!("{what} is forbidden: User {:?} cannot create it", context.user.name)));
    }
    let mut body: Value = context.read_json(request).await?;
    let spec = body.get("spec").cloned().unwrap_or(Value::Null);
    let status = match review {
        Review::Token => token(context, &spec)?,
        Review::SelfSubject => json!({"userInfo": context.user.to_value()}),
        Review::SelfAccess => access(context, &context.user),
        Review::Access => access(context, &user_in(&spec)?),
        Review::SelfRules => rules(context),
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

fn access(context: &Context, user: &User) -> Value {
    let allowed = context.server.allows(user);
    let reason = if allowed { "administrators and listed service accounts may everything" } else { "not listed" };
    json!({"allowed": allowed, "reason": reason})
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

fn rules(context: &Context) -> Value {
    let all = json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]);
    let resources = if context.server.allows(&context.user) { all } else { json!([]) };
    let paths = json!([{"verbs": ["get"], "nonResourceURLs": ["/api", "/api/*", "/apis", "/apis/*", "/version"]}]);
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
}
