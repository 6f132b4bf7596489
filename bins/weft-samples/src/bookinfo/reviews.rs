//! reviews: v1 without stars, v2 with black ones, v3 with red ones.
//!
//! The time limit for ratings is part of the sample: 10 s in v2, 2.5 s in v3 (spec 1:T-FI-03).

use crate::serve;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

const TEXTS: [(&str, &str); 2] = [
    ("Reviewer1", "Twins, storms and mistaken names: three acts in I gave up keeping count and simply laughed."),
    ("Reviewer2", "A short play that rewards being read aloud. The jokes have aged better than the plot."),
];

/// What the versions differ in. Each version of the image has its own; the environment overrides it.
#[derive(clap::Args)]
pub struct Args {
    /// v1: no stars, v2: black stars, v3: red stars
    #[arg(long, default_value = "v1")]
    version: String,
    /// Ask ratings for stars
    #[arg(long, env = "ENABLE_RATINGS")]
    enable_ratings: Option<bool>,
    /// Colour of the stars
    #[arg(long, env = "STAR_COLOR")]
    star_color: Option<String>,
    #[command(flatten)]
    listen: serve::Listen,
}

struct Settings {
    ratings: bool,
    color: String,
    pod: String,
    cluster: String,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let env = |name: &str| std::env::var(name).unwrap_or_else(|_| "null".to_string());
    let color = if args.version == "v3" { "red" } else { "black" };
    let settings = Settings {
        ratings: args.enable_ratings.unwrap_or(args.version != "v1"),
        color: args.star_color.unwrap_or_else(|| color.to_string()),
        pod: env("HOSTNAME"),
        cluster: env("CLUSTER_NAME"),
    };
    let router = Router::new()
        .route("/reviews/{id}", get(reviews))
        .route("/health", get(|| async { Json(json!({"status": "Reviews is healthy"})) }))
        .with_state(Arc::new(settings));
    serve::http(args.listen, 9080, router).await
}

async fn reviews(State(settings): State<Arc<Settings>>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let Ok(product) = id.parse::<u64>() else {
        return (StatusCode::BAD_REQUEST, Json(json!({"error": "please provide numeric product id"}))).into_response();
    };
    let stars = if settings.ratings { Some(ratings(&settings, product, &headers).await) } else { None };
    let reviews: Vec<Value> = TEXTS.iter().map(|(who, text)| review(&settings, who, text, stars.as_ref())).collect();
    Json(json!({"id": id, "podname": settings.pod, "clustername": settings.cluster, "reviews": reviews}))
        .into_response()
}

/// The stars by reviewer, or `None` when ratings cannot be had.
async fn ratings(settings: &Settings, product: u64, headers: &HeaderMap) -> Option<Map<String, Value>> {
    let limit = if settings.color == "black" { Duration::from_secs(10) } else { Duration::from_millis(2500) };
    let answer = super::call("ratings", &format!("/ratings/{product}"), &super::propagate(headers), limit).await;
    match answer {
        Ok((status, body)) if status == StatusCode::OK => {
            serde_json::from_slice::<Value>(&body).ok()?.get("ratings")?.as_object().cloned()
        }
        Ok((status, _)) => {
            println!("Error: unable to contact ratings, got status of {status}");
            None
        }
        Err(error) => {
            println!("Error: unable to contact ratings: {error:#}");
            None
        }
    }
}

fn review(settings: &Settings, who: &str, text: &str, stars: Option<&Option<Map<String, Value>>>) -> Value {
    let mut review = json!({"reviewer": who, "text": text});
    let rating = stars.map(|stars| match stars.as_ref().and_then(|s| s.get(who)) {
        Some(number) => json!({"stars": number, "color": settings.color}),
        None => json!({"error": "Ratings service is currently unavailable"}),
    });
    if let (Some(rating), Some(fields)) = (rating, review.as_object_mut()) {
        fields.insert("rating".into(), rating);
    }
    review
}
