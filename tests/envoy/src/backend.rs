//! A server that says what it got: method, path and headers, sorted, and the length of the body. `/status/NNN` is answered
//! with that status; `x-fail: N` fails with 503 until it was asked N times.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

/// Which of the twins a request came through; never shown.
pub const TWIN: &str = "x-twin";
/// Headers that differ from request to request.
const RANDOM: [&str; 3] = [TWIN, "x-request-id", "x-b3-traceid"];

type Counts = Arc<Mutex<HashMap<String, u32>>>;
/// What came, by twin.
type Seen = Arc<Mutex<HashMap<String, Vec<String>>>>;

/// A running server.
pub struct Backend {
    /// Its address.
    pub addr: SocketAddr,
    seen: Seen,
    task: tokio::task::JoinHandle<()>,
}

impl Backend {
    /// Starts a server that calls itself `name`.
    pub async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (counts, seen) = (Counts::default(), Seen::default());
        let all = seen.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let (counts, all) = (counts.clone(), all.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let (counts, all) = (counts.clone(), all.clone());
                        async move { Ok::<_, Infallible>(answer(name, request, &counts, &all).await) }
                    });
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { addr, seen, task }
    }

    /// Takes what came through one of the twins since the last time: each request as its answer shows it.
    pub fn take_seen(&self, twin: &str) -> Vec<String> {
        self.seen.lock().unwrap().remove(twin).unwrap_or_default()
    }

    /// How many requests that would be.
    pub fn count_seen(&self, twin: &str) -> usize {
        self.seen.lock().unwrap().get(twin).map_or(0, Vec::len)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(name: &str, request: Request<Incoming>, counts: &Counts, seen: &Seen) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("", |p| p.as_str()).to_string();
    let length = body.collect().await.map_or(0, |b| b.to_bytes().len());
    let text_of = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut status = 200;
    if let Some(wanted) = path.split("/status/").nth(1).and_then(|rest| rest.get(..3)) {
        status = wanted.parse().unwrap_or(200);
    }
    // A copy that is mirrored does not take the failure that is meant for the request.
    let host = parts.uri.authority().map_or(text_of("host"), |authority| authority.as_str());
    let is_copy = host.contains("-shadow");
    if let Ok(fails) = text_of("x-fail").parse::<u32>() {
        let mut counts = counts.lock().unwrap();
        let seen = counts.entry(format!("{} {path} {}", text_of(TWIN), is_copy)).or_default();
        *seen += 1;
        if *seen <= fails {
            status = 503;
        }
    }
    let mut lines: Vec<String> = parts
        .headers
        .iter()
        .filter(|(name, _)| !RANDOM.contains(&name.as_str()))
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    lines.extend(parts.uri.authority().map(|authority| format!("host: {authority}")));
    lines.sort();
    let (method, version) = (&parts.method, parts.version);
    let text = format!("backend={name}\n{method} {path} {version:?}\n{}\nbody={length}\n", lines.join("\n"));
    seen.lock().unwrap().entry(text_of(TWIN).to_string()).or_default().push(text.clone());
    let said = text.len();
    // The library would send it, too.
    let bodiless = parts.method == Method::HEAD || matches!(status, 204 | 304);
    let mut response = Response::new(if bodiless { Full::default() } else { Full::from(text) });
    if parts.method == Method::HEAD {
        response.headers_mut().insert("content-length", said.into());
    }
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    response.headers_mut().insert("x-backend", name.parse().unwrap());
    response.headers_mut().insert("server", "backend".parse().unwrap());
    response
}
