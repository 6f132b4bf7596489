//! Refusals as Kubernetes words them: `Status` objects with code, reason and the fields that are wrong.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use serde_json::{Map, Value, json};
use weft_k8s_api::KindInfo;
use weft_store::StoreError;

/// One wrong field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Path such as `spec.http[0].route`; empty for the whole object.
    pub field: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// A refused request.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// Reason word of the Kubernetes API.
    pub reason: &'static str,
    /// A sentence for the user.
    pub message: String,
    details: Map<String, Value>,
}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Map::new() }
    }

    fn about(mut self, kind: &KindInfo, name: &str) -> Self {
        self.details.insert("name".into(), name.into());
        if !kind.group.is_empty() {
            self.details.insert("group".into(), kind.group.into());
        }
        self.details.insert("kind".into(), kind.plural.into());
        self
    }

    /// The path leads nowhere, or to a kind that is not served.
    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// No such object.
    pub fn not_found(kind: &KindInfo, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} {name:?} not found", resource(kind))).about(kind, name)
    }

    /// The request itself is wrong.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// The caller may not do that.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(403, "Forbidden", message)
    }

    /// An object may not be written.
    pub fn forbidden_object(kind: &KindInfo, name: &str, message: &str) -> Self {
        Self::new(403, "Forbidden", format!("{} {name:?} is forbidden: {message}", resource(kind))).about(kind, name)
    }

    /// No token, or none that is known.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized: send `Authorization: Bearer TOKEN` with a token of this server")
    }

    /// A webhook said no, with a code and a reason of its own.
    pub fn denied(code: u16, reason: &str, message: String) -> Self {
        const KNOWN: [&str; 6] = ["Invalid", "Forbidden", "BadRequest", "NotFound", "Conflict", "InternalError"];
        let reason = KNOWN.into_iter().find(|known| *known == reason).unwrap_or_default();
        Self::new(code, reason, message)
    }

    /// That verb is not offered here.
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    /// None of the formats that the client takes can be made.
    pub fn not_acceptable() -> Self {
        Self::new(406, "NotAcceptable", "only application/json and application/yaml are offered")
    }

    /// The body is of a type that cannot be read.
    pub fn unsupported_media_type(found: &str, offered: &str) -> Self {
        let message = format!("the body of the request was in an unknown format {found:?}; accepted: {offered}");
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// The body, or the object that would come of it, is too long.
    pub fn too_large(limit: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("the body or the object is longer than {limit} bytes"))
    }

    /// Another writer was quicker.
    pub fn conflict(kind: &KindInfo, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", resource(kind));
        Self::new(409, "Conflict", message).about(kind, name)
    }

    /// Other managers have the fields that an apply would change: each manager with its fields.
    pub fn apply_conflict(kind: &KindInfo, name: &str, conflicts: &[(String, Vec<String>)]) -> Self {
        let count: usize = conflicts.iter().map(|(_, fields)| fields.len()).sum();
        let mut parts = Vec::new();
        let mut causes = Vec::new();
        for (manager, fields) in conflicts {
            match fields.as_slice() {
                [only] => parts.push(format!("conflict with {manager}: {only}")),
                many => parts.push(format!(
                    "conflicts with {manager}:\n{}",
                    many.iter().map(|f| format!("- {f}")).collect::<Vec<_>>().join("\n")
                )),
            }
            causes.extend(fields.iter().map(|field| {
                json!({"reason": "FieldManagerConflict", "message": format!("conflict with {manager}"), "field": field})
            }));
        }
        let plural = if count == 1 { "conflict" } else { "conflicts" };
        let message = format!("Apply failed with {count} {plural}: {}", parts.join("\n"));
        let mut error = Self::new(409, "Conflict", message).about(kind, name);
        error.details.insert("causes".into(), Value::Array(causes));
        error
    }

    /// An object of that name exists.
    pub fn already_exists(kind: &KindInfo, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} {name:?} already exists", resource(kind))).about(kind, name)
    }

    /// The object is wrong in these fields.
    pub fn invalid(kind: &KindInfo, name: &str, fields: &[FieldError]) -> Self {
        let group = if kind.group.is_empty() { String::new() } else { format!(".{}", kind.group) };
        let texts: Vec<String> = fields
            .iter()
            .map(|f| if f.field.is_empty() { f.message.clone() } else { format!("{}: {}", f.field, f.message) })
            .collect();
        let list = if texts.len() == 1 { texts.concat() } else { format!("[{}]", texts.join(", ")) };
        let message = format!("{}{group} {name:?} is invalid: {list}", kind.kind);
        let mut error = Self::new(422, "Invalid", message).about(kind, name);
        error.details.insert("kind".into(), kind.kind.into());
        let causes = fields
            .iter()
            .map(|f| json!({"reason": cause(&f.message), "message": f.message, "field": f.field}))
            .collect();
        error.details.insert("causes".into(), Value::Array(causes));
        error
    }

    /// The revision asked for is no longer known.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// The server is busy; the client should come again after a second.
    pub fn too_many_requests() -> Self {
        let mut error = Self::new(429, "TooManyRequests", "the server is busy; try again");
        error.details.insert("retryAfterSeconds".into(), 1.into());
        error
    }

    /// Something went wrong on this side.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", message)
    }

    /// What would answer this is not there.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// A refusal by the store of an object of that kind.
    pub fn from_store(kind: &KindInfo, error: StoreError) -> Self {
        match error {
            StoreError::NotFound(key) => Self::not_found(kind, &key.name),
            StoreError::NamespaceNotFound { namespace, .. } => {
                Self::new(404, "NotFound", format!("namespaces {namespace:?} not found"))
                    .about(&NAMESPACE_FOR_DETAILS, &namespace)
            }
            StoreError::AlreadyExists(key) => Self::already_exists(kind, &key.name),
            StoreError::Conflict { key, reason } => {
                let why = format!(
                    "the object has been modified; please apply your changes to the latest version and try again ({reason})"
                );
                Self::conflict(kind, &key.name, &why)
            }
            StoreError::NamespaceTerminating { key, namespace } => {
                let why =
                    format!("unable to create new content in namespace {namespace} because it is being terminated");
                Self::forbidden_object(kind, &key.name, &why)
            }
            StoreError::Invalid { key, field, message } => {
                Self::invalid(kind, &key.name, &[FieldError { field, message }])
            }
            StoreError::Gone { .. } => Self::expired(error.to_string()),
            StoreError::BadContinue => Self::expired(error.to_string()),
            StoreError::Full(_) => Self::new(507, "InsufficientStorage", error.to_string()),
        }
    }

    /// The `Status` object.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_empty() {
            status["details"] = Value::Object(self.details.clone());
        }
        status
    }
}

/// The reason word of a wrong field, by how its message begins.
fn cause(message: &str) -> &'static str {
    const WORDS: [(&str, &str); 7] = [
        ("Required value", "FieldValueRequired"),
        ("Forbidden", "FieldValueForbidden"),
        ("Duplicate value", "FieldValueDuplicate"),
        ("Unsupported value", "FieldValueNotSupported"),
        ("Too many", "FieldValueTooMany"),
        ("Too long", "FieldValueTooLong"),
        ("Internal error", "InternalError"),
    ];
    if message.contains("in body must be of type ") && message.starts_with("Invalid value") {
        return "FieldValueTypeInvalid";
    }
    WORDS.iter().find(|(begin, _)| message.starts_with(begin)).map_or("FieldValueInvalid", |(_, word)| *word)
}

/// Only for the details of a missing namespace.
const NAMESPACE_FOR_DETAILS: KindInfo = KindInfo {
    group: "",
    versions: &["v1"],
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short: &[],
    namespaced: false,
    categories: &[],
};

/// `plural`, or `plural.group`.
pub fn resource(kind: &KindInfo) -> String {
    if kind.group.is_empty() { kind.plural.to_string() } else { format!("{}.{}", kind.plural, kind.group) }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (code, [(CONTENT_TYPE, "application/json")], self.to_value().to_string()).into_response();
        if self.code == 429 {
            response.headers_mut().insert(RETRY_AFTER, http::HeaderValue::from_static("1"));
        }
        response
    }
}
