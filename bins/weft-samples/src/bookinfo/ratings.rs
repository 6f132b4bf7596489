//! ratings: stars by reviewer, kept in memory; `POST` replaces them.

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Books whose ratings may be stored.
const MAX_BOOKS: usize = 1000;

type Stars = BTreeMap<String, u8>;
type Books = Arc<Mutex<BTreeMap<u64, Stars>>>;

pub fn router() -> Router {
    Router::new()
        .route("/ratings/{id}", get(read).post(write))
        .route("/health", get(|| async { Json(json!({"status": "Ratings is healthy"})) }))
        .layer(DefaultBodyLimit::max(super::MAX_BODY))
        .with_state(Books::default())
}

fn not_a_number() -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({"error": "please provide numeric product ID"}))).into_response()
}

fn shown(id: u64, stars: &Stars) -> Json<Value> {
    Json(json!({"id": id, "ratings": stars}))
}

async fn read(State(books): State<Books>, Path(id): Path<String>) -> Response {
    let Ok(id) = id.parse() else { return not_a_number() };
    let books = books.lock().unwrap_or_else(PoisonError::into_inner);
    let default = || Stars::from([("Reviewer1".into(), 5), ("Reviewer2".into(), 4)]);
    shown(id, &books.get(&id).cloned().unwrap_or_else(default)).into_response()
}

async fn write(State(books): State<Books>, Path(id): Path<String>, Json(stars): Json<Stars>) -> Response {
    let Ok(id) = id.parse() else { return not_a_number() };
    let mut books = books.lock().unwrap_or_else(PoisonError::into_inner);
    if books.len() >= MAX_BOOKS && !books.contains_key(&id) {
        return (StatusCode::INSUFFICIENT_STORAGE, Json(json!({"error": "too many books"}))).into_response();
    }
    let answer = shown(id, &stars);
    books.insert(id, stars);
    answer.into_response()
}
