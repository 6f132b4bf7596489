//! httpbin: echoes requests and answers as asked, on the paths that journeys use. Writes an access log in the common form.

use crate::serve;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, DefaultBodyLimit, OriginalUri, Path, Query, Request};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{any, delete, get, patch, post, put};
use base64::Engine as _;
use clap::Args as ClapArgs;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, COOKIE, REFERER, SET_COOKIE, USER_AGENT, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// Largest request body.
const MAX_BODY: usize = 16 << 20;
/// Longest delay, seconds.
const MAX_DELAY: f64 = 10.0;
/// Largest body made by `/bytes` and `/stream-bytes`.
const MAX_BYTES: usize = 10 << 20;

#[derive(ClapArgs)]
pub struct Args {
    #[command(flatten)]
    listen: serve::Listen,
    /// Folder with tls.crt and tls.key: HTTPS on port 443 too
    #[arg(long)]
    tls: Option<std::path::PathBuf>,
}

/// The command line of the usual image: `gunicorn --access-logfile - -b 0.0.0.0:80 httpbin:app`.
#[derive(ClapArgs)]
pub struct GunicornArgs {
    /// Address to listen on; only its port counts
    #[arg(short, long, default_value = "0.0.0.0:80")]
    bind: String,
    /// Accepted and ignored: the access log always goes to standard output
    #[arg(long)]
    access_logfile: Option<String>,
    /// Accepted and ignored
    #[arg(short = 'k', long)]
    worker_class: Option<String>,
    /// Application; ignored
    app: Option<String>,
}

impl From<GunicornArgs> for Args {
    fn from(args: GunicornArgs) -> Self {
        let port = args.bind.rsplit(':').next().and_then(|p| p.parse().ok());
        Args { listen: serve::Listen { port }, tls: None }
    }
}

/// Serves until SIGTERM.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let router = router().layer(middleware::from_fn(access_log));
    match &args.tls {
        Some(folder) => {
            tokio::try_join!(serve::http(args.listen, 80, router.clone()), serve::https(folder, 443, router)).map(drop)
        }
        None => serve::http(args.listen, 80, router).await,
    }
}

fn router() -> Router {
    Router::new()
        .route(
            "/",
            get(|| async {
                Html("<title>httpbin</title><h1>httpbin</h1><p>A simple HTTP request and response service.</p>")
            }),
        )
        .route("/get", get(echo))
        .route("/post", post(echo))
        .route("/put", put(echo))
        .route("/patch", patch(echo))
        .route("/delete", delete(echo))
        .route("/anything", any(echo_anything))
        .route("/anything/{*rest}", any(echo_anything))
        .route(
            "/headers",
            get(|headers: HeaderMap| async move { json_body(&json!({"headers": shown_headers(&headers)})) }),
        )
        .route("/ip", get(ip))
        .route(
            "/user-agent",
            get(|h: HeaderMap| async move { json_body(&json!({"user-agent": header(&h, &USER_AGENT)})) }),
        )
        .route("/status/{codes}", any(status))
        .route("/delay/{seconds}", any(delay))
        .route(
            "/html",
            get(|| async {
                Html("<!DOCTYPE html>\n<html>\n<body>\n<h1>Herman Melville - Moby-Dick</h1>\n</body>\n</html>\n")
            }),
        )
        .route(
            "/json",
            get(|| async { json_body(&json!({"slideshow": {"author": "Yours Truly", "title": "Sample Slide Show"}})) }),
        )
        .route("/robots.txt", get(|| async { "User-agent: *\nDisallow: /deny\n" }))
        .route("/deny", get(|| async { "You should not be here.\n" }))
        .route("/uuid", get(|| async { json_body(&json!({"uuid": uuid()})) }))
        .route(
            "/hostname",
            get(|| async { json_body(&json!({"hostname": std::env::var("HOSTNAME").unwrap_or_default()})) }),
        )
        .route("/redirect/{n}", get(redirect))
        .route("/relative-redirect/{n}", get(redirect))
        .route("/redirect-to", any(redirect_to))
        .route("/cookies", get(|h: HeaderMap| async move { json_body(&json!({"cookies": cookies(&h)})) }))
        .route("/cookies/set", get(set_cookies))
        .route("/basic-auth/{user}/{password}", get(basic_auth))
        .route("/bearer", get(bearer))
        .route("/base64/{value}", get(from_base64))
        .route("/response-headers", any(response_headers))
        .route("/bytes/{n}", get(bytes))
        .route("/stream/{n}", get(stream))
        .route("/drip", get(drip))
        .route("/encoding/utf8", get(|| async { Html("<h1>Unicode</h1><p>∮ E⋅da = Q, äöü, 日本語</p>") }))
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

/// One line a request, as web servers write it.
async fn access_log(ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request, next: Next) -> Response {
    let asked = asked(&request);
    let response = next.run(request).await;
    let size = http_body::Body::size_hint(response.body()).exact().map_or_else(|| "-".into(), |n| n.to_string());
    let now = jiff::Timestamp::now().strftime("%d/%b/%Y:%H:%M:%S +0000").to_string();
    let [line, referer, agent] = asked;
    let code = response.status().as_u16();
    println!("{} - - [{now}] \"{line}\" {code} {size} \"{referer}\" \"{agent}\"", peer.ip().to_canonical());
    response
}

/// Request line, referer and user agent.
fn asked(request: &Request) -> [String; 3] {
    let of = |name: &HeaderName| header(request.headers(), name).as_str().map_or_else(|| "-".into(), str::to_string);
    let line = format!("{} {} {:?}", request.method(), request.uri(), request.version());
    [line, of(&REFERER), of(&USER_AGENT)]
}

fn json_body(value: &Value) -> Response {
    let text = serde_json::to_string_pretty(value).unwrap_or_default() + "\n";
    (
        [
            (CONTENT_TYPE, "application/json"),
            (HeaderName::from_static("access-control-allow-origin"), "*"),
            (HeaderName::from_static("access-control-allow-credentials"), "true"),
        ],
        text,
    )
        .into_response()
}

fn header(headers: &HeaderMap, name: &HeaderName) -> Value {
    headers.get(name).map_or(Value::Null, |v| String::from_utf8_lossy(v.as_bytes()).into())
}

/// Headers by name in Title-Case, repeated ones joined by commas, in order of name.
fn shown_headers(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut shown = BTreeMap::<String, String>::new();
    for (name, value) in headers {
        let text = String::from_utf8_lossy(value.as_bytes());
        shown
            .entry(title_case(name.as_str()))
            .and_modify(|v| {
                v.push(',');
                v.push_str(&text);
            })
            .or_insert_with(|| text.to_string());
    }
    shown
}

fn title_case(name: &str) -> String {
    let word = |w: &str| w.get(..1).map_or_else(String::new, |c| c.to_ascii_uppercase() + &w[1..]);
    name.split('-').map(word).collect::<Vec<_>>().join("-")
}

/// Parameters by name; a name given more than once has a list.
fn shown_args(query: Option<&str>) -> Map<String, Value> {
    let mut args = Map::new();
    for pair in query.unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decode(name), Value::from(decode(value)));
        match args.get_mut(&name) {
            Some(Value::Array(list)) => list.push(value),
            Some(one) => *one = json!([one.clone(), value]),
            None => {
                args.insert(name, value);
            }
        }
    }
    args
}

/// Percent-decoding of a form value; bytes that are not UTF-8 are replaced.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while let Some(byte) = bytes.get(i) {
        let hex = bytes
            .get(i + 1..i + 3)
            .and_then(|h| std::str::from_utf8(h).ok())
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match (byte, hex) {
            (b'%', Some(value)) => {
                out.push(value);
                i += 3;
            }
            (b'+', _) => {
                out.push(b' ');
                i += 1;
            }
            (other, _) => {
                out.push(*other);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn origin(headers: &HeaderMap, peer: SocketAddr) -> String {
    let forwarded = headers.get("x-forwarded-for").and_then(|v| v.to_str().ok());
    forwarded.map_or_else(|| peer.ip().to_canonical().to_string(), str::to_string)
}

fn url(headers: &HeaderMap, uri: &Uri) -> String {
    let scheme = headers.get("x-forwarded-proto").and_then(|v| v.to_str().ok()).unwrap_or("http");
    let host = headers.get("host").and_then(|v| v.to_str().ok()).or(uri.host()).unwrap_or("localhost");
    format!("{scheme}://{host}{}", uri.path_and_query().map_or("/", |p| p.as_str()))
}

async fn echo(
    method: Method,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    json_body(&described(&method, peer, &uri, &headers, &body, method != Method::GET))
}

async fn echo_anything(
    method: Method,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut all = described(&method, peer, &uri, &headers, &body, true);
    all["method"] = method.as_str().into();
    json_body(&all)
}

fn described(
    _method: &Method,
    peer: SocketAddr,
    uri: &Uri,
    headers: &HeaderMap,
    body: &Bytes,
    with_body: bool,
) -> Value {
    let mut out = Map::new();
    out.insert("args".into(), shown_args(uri.query()).into());
    if with_body {
        let text = String::from_utf8_lossy(body).into_owned();
        let form =
            header(headers, &CONTENT_TYPE).as_str().is_some_and(|t| t.starts_with("application/x-www-form-urlencoded"));
        out.insert("data".into(), if form { "".into() } else { text.clone().into() });
        out.insert("files".into(), json!({}));
        out.insert("form".into(), if form { shown_args(Some(&text)).into() } else { json!({}) });
    }
    out.insert("headers".into(), json!(shown_headers(headers)));
    if with_body {
        out.insert("json".into(), serde_json::from_slice(body).unwrap_or(Value::Null));
    }
    out.insert("origin".into(), origin(headers, peer).into());
    out.insert("url".into(), url(headers, uri).into());
    out.into()
}

async fn ip(ConnectInfo(peer): ConnectInfo<SocketAddr>, headers: HeaderMap) -> Response {
    json_body(&json!({"origin": origin(&headers, peer)}))
}

/// `/status/418`, `/status/200,500` (at random), `/status/200:9,500:1` (weighted).
async fn status(Path(codes): Path<String>) -> Response {
    let parse = |part: &str| {
        let (code, weight) = part.split_once(':').unwrap_or((part, "1"));
        let weight: f64 = weight.trim().parse().ok().filter(|w: &f64| w.is_finite() && *w >= 0.0)?;
        Some((StatusCode::from_u16(code.trim().parse().ok()?).ok().filter(|s| s.as_u16() >= 200)?, weight))
    };
    let Some(choices) = codes.split(',').map(parse).collect::<Option<Vec<_>>>() else {
        return (StatusCode::BAD_REQUEST, "Invalid status code").into_response();
    };
    let mut at = fastrand::f64() * choices.iter().map(|(_, w)| w).sum::<f64>();
    let chosen = choices
        .iter()
        .find(|(_, weight)| {
            at -= weight;
            at < 0.0
        })
        .or(choices.last());
    let code = chosen.map_or(StatusCode::BAD_REQUEST, |(code, _)| *code);
    match code.as_u16() {
        418 => (code, "\n    -=[ teapot ]=-\n\n       _...._\n     .'  _ _ `.\n    | .\"` ^ `\". _,\n    \\_;`\"---\"`|//\n      |       ;/\n      \\_     _/\n        `\"\"\"`\n").into_response(),
        301 | 302 | 303 | 307 | 308 => (code, [("location", "/redirect/1")]).into_response(),
        401 => (code, [(WWW_AUTHENTICATE, "Basic realm=\"Fake Realm\"")]).into_response(),
        _ => code.into_response(),
    }
}

async fn delay(
    method: Method,
    Path(seconds): Path<f64>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let seconds = if seconds.is_finite() { seconds.clamp(0.0, MAX_DELAY) } else { 0.0 };
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    json_body(&described(&method, peer, &uri, &headers, &body, true))
}

async fn redirect(Path(n): Path<u32>) -> Response {
    let to = if n <= 1 { "/get".to_string() } else { format!("/relative-redirect/{}", n - 1) };
    (StatusCode::FOUND, [("location", to)]).into_response()
}

async fn redirect_to(Query(query): Query<BTreeMap<String, String>>) -> Response {
    let code = query.get("status_code").and_then(|c| c.parse().ok()).and_then(|c| StatusCode::from_u16(c).ok());
    match query.get("url") {
        Some(url) => {
            let mut response = Redirect::to(url).into_response();
            *response.status_mut() = code.filter(|c| c.is_redirection()).unwrap_or(StatusCode::FOUND);
            response
        }
        None => (StatusCode::BAD_REQUEST, "url is missing").into_response(),
    }
}

fn cookies(headers: &HeaderMap) -> BTreeMap<String, String> {
    let all = headers.get_all(COOKIE).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(';'));
    all.filter_map(|c| c.trim().split_once('=')).map(|(n, v)| (n.to_string(), v.to_string())).collect()
}

async fn set_cookies(Query(query): Query<BTreeMap<String, String>>) -> Response {
    let mut response = (StatusCode::FOUND, [("location", "/cookies")]).into_response();
    for (name, value) in query {
        if let Ok(cookie) = HeaderValue::from_str(&format!("{name}={value}; Path=/")) {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
    }
    response
}

async fn basic_auth(Path((user, password)): Path<(String, String)>, headers: HeaderMap) -> Response {
    let wanted = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    let given = header(&headers, &AUTHORIZATION);
    if given.as_str().and_then(|v| v.strip_prefix("Basic ")) == Some(&wanted) {
        return json_body(&json!({"authenticated": true, "user": user}));
    }
    (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Basic realm=\"Fake Realm\"")]).into_response()
}

/// What a base64url text stands for.
async fn from_base64(Path(value): Path<String>) -> Response {
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    match engine.decode(value.trim_end_matches('=')) {
        Ok(bytes) => bytes.into_response(),
        Err(_) => "Incorrect Base64 data try: SFRUUEJJTiBpcyBhd2Vzb21l".into_response(),
    }
}

async fn bearer(headers: HeaderMap) -> Response {
    match header(&headers, &AUTHORIZATION).as_str().and_then(|v| v.strip_prefix("Bearer ")) {
        Some(token) => json_body(&json!({"authenticated": true, "token": token})),
        None => (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")]).into_response(),
    }
}

async fn response_headers(OriginalUri(uri): OriginalUri) -> Response {
    let args = shown_args(uri.query());
    let mut response = json_body(&args.clone().into());
    for (name, value) in &args {
        let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        for value in values.iter().filter_map(Value::as_str) {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
                response.headers_mut().append(name, value);
            }
        }
    }
    response
}

async fn bytes(Path(n): Path<usize>) -> Response {
    let body: Vec<u8> = (0..n.min(MAX_BYTES)).map(|_| fastrand::u8(..)).collect();
    ([(CONTENT_TYPE, "application/octet-stream")], body).into_response()
}

async fn stream(
    Path(n): Path<u64>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Response {
    let base = described(&Method::GET, peer, &uri, &headers, &Bytes::new(), false);
    let lines = (0..n.min(100)).map(move |id| {
        let mut line = base.clone();
        line["id"] = id.into();
        Ok::<_, std::convert::Infallible>(format!("{line}\n"))
    });
    ([(CONTENT_TYPE, "application/json")], Body::from_stream(futures_util::stream::iter(lines))).into_response()
}

/// `numbytes` bytes over `duration` seconds, after `delay` seconds, with status `code`.
async fn drip(Query(query): Query<BTreeMap<String, String>>) -> Response {
    let number = |name: &str, default: f64| {
        query.get(name).and_then(|v| v.parse::<f64>().ok()).filter(|v| v.is_finite() && *v >= 0.0).unwrap_or(default)
    };
    let count = (number("numbytes", 10.0) as usize).min(MAX_BYTES);
    let pause = Duration::from_secs_f64(number("duration", 2.0).min(60.0) / count.max(1) as f64);
    let code = StatusCode::from_u16(number("code", 200.0) as u16).unwrap_or(StatusCode::OK);
    tokio::time::sleep(Duration::from_secs_f64(number("delay", 0.0).min(MAX_DELAY))).await;
    let drops = futures_util::stream::unfold(0, move |sent| async move {
        if sent == count {
            return None;
        }
        tokio::time::sleep(pause).await;
        Some((Ok::<_, std::convert::Infallible>("*"), sent + 1))
    });
    (code, [(CONTENT_TYPE, "application/octet-stream"), (ACCEPT_ENCODING, "identity")], Body::from_stream(drops))
        .into_response()
}

fn uuid() -> String {
    let n = fastrand::u128(..) & !(0xf << 76) | (4 << 76);
    let n = n & !(0x3 << 62) | (0x2 << 62);
    let hex = format!("{n:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_and_args() {
        assert_eq!(title_case("x-forwarded-for"), "X-Forwarded-For");
        assert_eq!(Value::from(shown_args(Some("a=1&a=2&b=x%20y+z"))), json!({"a": ["1", "2"], "b": "x y z"}));
    }

    #[tokio::test]
    async fn statuses() {
        for (codes, want) in [("418", 418), ("503", 503), ("200:0,500:1", 500), ("99", 400), ("x", 400), ("", 400)] {
            assert_eq!(status(Path(codes.into())).await.status().as_u16(), want, "{codes}");
        }
    }

    #[test]
    fn uuid_is_version_4() {
        let id = uuid();
        assert_eq!((id.len(), &id[14..15]), (36, "4"));
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"), "{id}");
    }
}
