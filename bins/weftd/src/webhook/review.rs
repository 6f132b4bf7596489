//! `AdmissionReview`: the API server's questions, and the form of the answers.

use super::injection::Source;
use super::{Metrics, injection, validation};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// Most warnings of an answer, and characters of each; clients shorten what is longer.
const MAX_WARNINGS: (usize, usize) = (16, 240);

/// Objects that are looked into at once. A large one takes seconds, and pods must not wait for it: their answers are made on the
/// webhooks' own thread, which is kept free.
const LOOKED_INTO: usize = 2;

/// What answers are made of.
#[derive(Clone)]
pub(super) struct Answers {
    pub source: Arc<Source>,
    pub metrics: Arc<Metrics>,
    /// Turns to look into an object.
    turns: Arc<Semaphore>,
}

impl Answers {
    pub fn new(source: Arc<Source>, metrics: Arc<Metrics>) -> Self {
        Self { source, metrics, turns: Arc::new(Semaphore::new(LOOKED_INTO)) }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    /// As it is.
    Allowed { warnings: Vec<String> },
    /// With changes (RFC 6902).
    Patched { patch: Value },
    /// Not at all, and why.
    Denied { message: String },
}

/// A question of `admission.k8s.io`.
pub(super) struct Review {
    api_version: String,
    pub request: Value,
}

impl Review {
    /// Reads a question.
    ///
    /// # Errors
    /// The HTTP status, and what is wrong.
    pub(super) fn read(headers: &HeaderMap, body: &[u8]) -> Result<Self, (StatusCode, String)> {
        if body.is_empty() {
            return Err((StatusCode::BAD_REQUEST, "no body found\n".into()));
        }
        let content = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        if content.split(';').next().map(str::trim) != Some("application/json") {
            let message = format!("Content-Type {content:?} is not application/json\n");
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        let wrong = |message: String| (StatusCode::BAD_REQUEST, format!("the body is no AdmissionReview: {message}\n"));
        let mut review: Value = serde_json::from_slice(body).map_err(|error| wrong(error.to_string()))?;
        let api_version = review["apiVersion"].as_str().unwrap_or_default().to_string();
        if !matches!(api_version.as_str(), "admission.k8s.io/v1" | "admission.k8s.io/v1beta1") {
            return Err(wrong(format!("apiVersion {api_version:?} is not admission.k8s.io/v1")));
        }
        let request = review["request"].take();
        if !request["uid"].is_string() {
            return Err(wrong("request.uid is missing".into()));
        }
        Ok(Self { api_version, request })
    }

    fn answer(&self, verdict: Verdict) -> Response {
        let mut response = json!({"uid": self.request["uid"], "allowed": true});
        match verdict {
            Verdict::Allowed { warnings } => {
                let short = |text: String| text.chars().take(MAX_WARNINGS.1).collect::<String>();
                let warnings: Vec<String> = warnings.into_iter().take(MAX_WARNINGS.0).map(short).collect();
                if !warnings.is_empty() {
                    response["warnings"] = warnings.into();
                }
            }
            Verdict::Patched { patch } => {
                response["patchType"] = "JSONPatch".into();
                response["patch"] = STANDARD.encode(patch.to_string()).into();
            }
            Verdict::Denied { message } => {
                response["allowed"] = false.into();
                response["status"] = json!({"message": message, "reason": "Invalid", "code": 422});
            }
        }
        let review = json!({"apiVersion": self.api_version, "kind": "AdmissionReview", "response": response});
        ([("content-type", "application/json")], review.to_string()).into_response()
    }
}

/// Answers questions about pods. The path may carry variables for the proxy: `/inject/cluster/NAME/net/NAME`.
pub(super) async fn inject(State(answers): State<Answers>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let begun = Instant::now();
    let metrics = &answers.metrics;
    metrics.injection_asked();
    let review = match Review::read(&headers, &body) {
        Ok(review) => review,
        Err(refused) => {
            metrics.injection_failed();
            return refused.into_response();
        }
    };
    let variables = injection::variables(uri.path());
    let verdict = injection::answer(&answers.source, &review.request, variables, metrics);
    metrics.injection_took(begun.elapsed());
    review.answer(verdict)
}

/// Answers questions about objects of our kinds.
pub(super) async fn validate(State(answers): State<Answers>, headers: HeaderMap, body: Bytes) -> Response {
    let Ok(turn) = answers.turns.acquire_owned().await else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    let looked_into = spawn_blocking(move || {
        // Also when nobody waits for the answer any more.
        let _turn = turn;
        match Review::read(&headers, &body) {
            Ok(review) => {
                let verdict = validation::answer(&review.request, &answers.metrics);
                review.answer(verdict)
            }
            Err(refused) => {
                answers.metrics.validation_http_error(refused.0.as_u16());
                refused.into_response()
            }
        }
    });
    let failed = |error| (StatusCode::INTERNAL_SERVER_ERROR, format!("the object could not be looked into: {error}\n"));
    looked_into.await.unwrap_or_else(|error| failed(error).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use clap::Parser;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn pods_do_not_wait_for_objects() {
        let source = Source::new(Arc::default(), Arc::new(Settings::parse_from(["weftd"])));
        let answers = Answers::new(Arc::new(source), Arc::default());
        let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, "application/json".parse().unwrap())]);
        let question = |object: Value| {
            let request = json!({"uid": "u", "operation": "CREATE", "namespace": "default", "object": object});
            Bytes::from(json!({"apiVersion": "admission.k8s.io/v1", "request": request}).to_string())
        };
        let object = question(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": {"name": "a"}, "spec": {},
        }));
        let pod = question(json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a", "image": "i"}]}}));
        // As many as there may be are large.
        let busy = answers.turns.clone().acquire_many_owned(u32::try_from(LOOKED_INTO).unwrap()).await.unwrap();
        let waiting = validate(State(answers.clone()), headers.clone(), object);
        tokio::pin!(waiting);
        assert!(timeout(Duration::from_millis(50), &mut waiting).await.is_err(), "it waits for its turn");
        let injected = inject(State(answers), Uri::from_static("/inject"), headers, pod);
        let injected = timeout(Duration::from_secs(60), injected).await.expect("the pod does not");
        assert_eq!(injected.status(), StatusCode::OK);
        drop(busy);
        assert_eq!(timeout(Duration::from_secs(60), waiting).await.unwrap().status(), StatusCode::OK);
    }
}
