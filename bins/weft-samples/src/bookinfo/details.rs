//! details: facts about the book.

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use serde_json::json;

pub fn router() -> Router {
    Router::new()
        .route("/details/{id}", get(details))
        .route("/health", get(|| async { Json(json!({"status": "Details is healthy"})) }))
}

async fn details(Path(id): Path<String>) -> Response {
    let Ok(id) = id.parse::<u64>() else {
        return (StatusCode::BAD_REQUEST, Json(json!({"error": "please provide numeric product id"}))).into_response();
    };
    Json(json!({
        "id": id,
        "author": "William Shakespeare",
        "year": 1595,
        "type": "paperback",
        "pages": 200,
        "publisher": "PublisherA",
        "language": "English",
        "ISBN-10": "1234567890",
        "ISBN-13": "123-1234567890",
    }))
    .into_response()
}
