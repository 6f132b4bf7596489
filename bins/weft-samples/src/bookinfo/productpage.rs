//! productpage: the page, the login that sets `end-user`, and a small API.
//!
//! The time limit for reviews is part of the sample: 3 s, and one more try (spec 1:T-FI-03).

use axum::extract::{DefaultBodyLimit, Form, Path, Query};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use http::header::{COOKIE, REFERER, SET_COOKIE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(3);
const TITLE: &str = "The Comedy of Errors";
const ABOUT: &str = "Two pairs of twins, parted by a shipwreck, come to the same town on the same day; nobody is told.";

pub fn router() -> Router {
    Router::new()
        .route("/", get(index))
        .route("/index.html", get(index))
        .route("/health", get(|| async { "Product page is healthy" }))
        .route("/login", post(login))
        .route("/logout", get(logout))
        .route("/productpage", get(page))
        .route("/api/v1/products", get(|| async { Json(json!([product()])) }))
        .route("/api/v1/products/{id}", get(api_details))
        .route("/api/v1/products/{id}/reviews", get(api_reviews))
        .route("/api/v1/products/{id}/ratings", get(api_ratings))
        .route("/static/style.css", get(|| async { ([("content-type", "text/css")], STYLE) }))
        .layer(DefaultBodyLimit::max(super::MAX_BODY))
}

fn product() -> Value {
    json!({"id": 0, "title": TITLE, "descriptionHtml": ABOUT})
}

async fn index() -> Html<String> {
    let links = "<p>Hello! This is a simple bookstore application consisting of three services as shown below</p>\
<p><a href=\"/productpage?u=normal\">Normal user</a></p><p><a href=\"/productpage?u=test\">Test user</a></p>";
    Html(document(None, links))
}

#[derive(Deserialize)]
struct Login {
    username: String,
}

async fn login(headers: HeaderMap, Form(login): Form<Login>) -> Response {
    let cookie = format!("session={}; HttpOnly; Path=/; SameSite=Lax", BASE64.encode(login.username));
    with_cookie(back(&headers), &cookie)
}

async fn logout(headers: HeaderMap) -> Response {
    with_cookie(back(&headers), "session=; HttpOnly; Path=/; Max-Age=0")
}

/// Back to the page the visitor came from, never to another site.
fn back(headers: &HeaderMap) -> Response {
    let from = headers.get(REFERER).and_then(|v| v.to_str().ok()).and_then(|url| url.parse::<http::Uri>().ok());
    let path = from.and_then(|uri| uri.path_and_query().map(ToString::to_string));
    let local = path.filter(|p| p.starts_with('/') && !p.starts_with("//"));
    Redirect::to(&local.unwrap_or_else(|| "/productpage".into())).into_response()
}

fn with_cookie(mut response: Response, cookie: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(SET_COOKIE, value);
    }
    *response.status_mut() = StatusCode::FOUND;
    response
}

/// The logged-in user, from the session cookie.
fn user(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(';'));
    let session = cookies.filter_map(|c| c.trim().strip_prefix("session=")).find(|v| !v.is_empty())?;
    String::from_utf8(BASE64.decode(session).ok()?).ok().filter(|name| !name.is_empty())
}

/// What is passed on: trace context, and the user as `end-user`.
fn outgoing(headers: &HeaderMap) -> HeaderMap {
    let mut out = super::propagate(headers);
    if let Some(value) = user(headers).and_then(|name| HeaderValue::from_str(&name).ok()) {
        out.insert("end-user", value);
    }
    out
}

async fn details(id: &str, headers: &HeaderMap) -> (StatusCode, Value) {
    let answer = super::call("details", &format!("/details/{id}"), headers, LIMIT).await;
    read(answer, "Sorry, product details are currently unavailable for this book.")
}

async fn reviews(id: &str, headers: &HeaderMap) -> (StatusCode, Value) {
    let sorry = "Sorry, product reviews are currently unavailable for this book.";
    let path = format!("/reviews/{id}");
    let first = read(super::call("reviews", &path, headers, LIMIT).await, sorry);
    if first.0 == StatusCode::OK {
        return first;
    }
    read(super::call("reviews", &path, headers, LIMIT).await, sorry)
}

fn read(answer: anyhow::Result<(StatusCode, bytes::Bytes)>, sorry: &str) -> (StatusCode, Value) {
    match answer {
        Ok((StatusCode::OK, body)) => match serde_json::from_slice(&body) {
            Ok(value) => (StatusCode::OK, value),
            Err(_) => (StatusCode::BAD_GATEWAY, json!({"error": sorry})),
        },
        Ok((status, _)) => (status, json!({"error": sorry})),
        Err(error) => {
            println!("{error:#}");
            (StatusCode::INTERNAL_SERVER_ERROR, json!({"error": sorry}))
        }
    }
}

async fn api_details(Path(id): Path<u64>, headers: HeaderMap) -> (StatusCode, Json<Value>) {
    let (status, value) = details(&id.to_string(), &outgoing(&headers)).await;
    (status, Json(value))
}

async fn api_reviews(Path(id): Path<u64>, headers: HeaderMap) -> (StatusCode, Json<Value>) {
    let (status, value) = reviews(&id.to_string(), &outgoing(&headers)).await;
    (status, Json(value))
}

async fn api_ratings(Path(id): Path<u64>, headers: HeaderMap) -> (StatusCode, Json<Value>) {
    let answer = super::call("ratings", &format!("/ratings/{id}"), &outgoing(&headers), LIMIT).await;
    let (status, value) = read(answer, "Sorry, product ratings are currently unavailable for this book.");
    (status, Json(value))
}

#[derive(Deserialize)]
struct PageQuery {
    u: Option<String>,
}

async fn page(Query(query): Query<PageQuery>, headers: HeaderMap) -> Html<String> {
    // `u` is accepted for the links of the index page; it changes nothing.
    drop(query.u);
    let out = outgoing(&headers);
    let (details, reviews) = tokio::join!(details("0", &out), reviews("0", &out));
    let mut body = format!("<h1>{TITLE}</h1>\n<p><b>Summary:</b> {ABOUT}</p>\n<div class=\"columns\">\n");
    details_html(&mut body, &details);
    reviews_html(&mut body, &reviews);
    body.push_str("</div>\n");
    Html(document(user(&headers).as_deref(), &body))
}

fn details_html(out: &mut String, (status, details): &(StatusCode, Value)) {
    out.push_str("<section>\n");
    if *status == StatusCode::OK {
        out.push_str("<h2>Book Details</h2>\n<dl>\n");
        for (label, key) in [
            ("Type", "type"),
            ("Pages", "pages"),
            ("Publisher", "publisher"),
            ("Language", "language"),
            ("ISBN-10", "ISBN-10"),
            ("ISBN-13", "ISBN-13"),
        ] {
            let _ = writeln!(out, "<dt>{label}:</dt><dd>{}</dd>", text(&details[key]));
        }
        out.push_str("</dl>\n");
    } else {
        let _ = writeln!(out, "<h2>Error fetching product details!</h2>\n<p>{}</p>", text(&details["error"]));
    }
    out.push_str("</section>\n");
}

fn reviews_html(out: &mut String, (status, reviews): &(StatusCode, Value)) {
    out.push_str("<section>\n");
    if *status == StatusCode::OK {
        out.push_str("<h2>Book Reviews</h2>\n");
        for review in reviews["reviews"].as_array().into_iter().flatten() {
            let _ = writeln!(
                out,
                "<blockquote>\n<p>{}</p>\n<small>{}</small>",
                text(&review["text"]),
                text(&review["reviewer"])
            );
            stars_html(out, &review["rating"]);
            out.push_str("</blockquote>\n");
        }
        let _ = writeln!(out, "<p class=\"served\">Reviews served by: <u>{}</u></p>", text(&reviews["podname"]));
    } else {
        let _ = writeln!(out, "<h2>Error fetching product reviews!</h2>\n<p>{}</p>", text(&reviews["error"]));
    }
    out.push_str("</section>\n");
}

fn stars_html(out: &mut String, rating: &Value) {
    if let Some(stars) = rating["stars"].as_u64() {
        let _ = write!(out, "<div class=\"stars\" style=\"color:{}\">", text(&rating["color"]));
        for i in 0..5 {
            let (class, sign) = if i < stars { ("glyphicon-star", "★") } else { ("glyphicon-star-empty", "☆") };
            let _ = write!(out, "<span class=\"glyphicon {class}\">{sign}</span>");
        }
        out.push_str("</div>\n");
    } else if let Some(error) = rating["error"].as_str() {
        let _ = writeln!(out, "<p><i>{}</i></p>", escape(error));
    }
}

/// The whole page around `body`.
fn document(user: Option<&str>, body: &str) -> String {
    let account = match user {
        Some(name) => format!("<span>{} (<a href=\"/logout\">sign out</a>)</span>", escape(name)),
        None => "<form method=\"post\" action=\"/login\"><input name=\"username\" placeholder=\"User name\" required>\
<input name=\"passwd\" type=\"password\" placeholder=\"Password\"><button>Sign in</button></form>"
            .to_string(),
    };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>Simple Bookstore App</title>\n\
<link rel=\"stylesheet\" href=\"/static/style.css\">\n</head>\n<body>\n\
<nav><b>Bookinfo Sample</b>{account}</nav>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
}

/// A JSON value as HTML text.
fn text(value: &Value) -> String {
    match value {
        Value::String(s) => escape(s),
        other => escape(&other.to_string()),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:0;color:#222}\
nav{display:flex;justify-content:space-between;align-items:center;background:#123;color:#fff;padding:.6rem 1.2rem}\
nav a{color:#9cf}nav input{margin-right:.4rem}main{max-width:60rem;margin:1.5rem auto;padding:0 1rem}\
.columns{display:grid;grid-template-columns:1fr 1fr;gap:2rem}dt{font-weight:600;float:left;clear:left;width:7rem}\
dd{margin:0 0 .3rem 7rem}blockquote{border-left:4px solid #ccd;margin:1rem 0;padding:.2rem 1rem}\
.stars{font-size:1.3rem}.served{color:#666;font-size:.9rem}@media(max-width:40rem){.columns{grid-template-columns:1fr}}";

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn user_comes_from_the_cookie_and_goes_out_as_end_user() {
        let jason = headers("cookie", &format!("a=b; session={}", BASE64.encode("jason")));
        assert_eq!(user(&jason).as_deref(), Some("jason"));
        assert_eq!(outgoing(&jason)["end-user"], "jason");
        assert_eq!(user(&headers("cookie", "session=%%%")), None);
        let newline = headers("cookie", &format!("session={}", BASE64.encode("a\nb")));
        assert!(!outgoing(&newline).contains_key("end-user"), "a user name may not break the header");
    }

    #[test]
    fn login_never_redirects_elsewhere() {
        for (from, to) in [
            ("http://x/productpage?u=normal", "/productpage?u=normal"),
            ("http://x//evil.example", "/productpage"),
            ("nonsense", "/productpage"),
        ] {
            assert_eq!(back(&headers("referer", from)).headers()["location"], to, "{from}");
        }
    }

    #[test]
    fn names_are_escaped() {
        assert!(document(Some("<script>"), "").contains("&lt;script&gt;"));
    }

    #[test]
    fn stars_show_color_and_number() {
        let mut out = String::new();
        stars_html(&mut out, &json!({"stars": 4, "color": "red"}));
        assert_eq!(out.matches("glyphicon-star\"").count(), 4);
        assert!(out.contains("color:red"));
    }
}
