//! A small HTTP/1 server for the agent's own ports, and a client for one request: bounded in connections, sizes and time.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections at once on one port.
const MAX_CONNECTIONS: usize = 256;
/// Largest request body; no endpoint needs one.
const MAX_BODY: usize = 64 * 1024;
/// Time for a request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// A request as handlers see it.
#[derive(Debug)]
pub struct Asked {
    /// Method.
    pub method: Method,
    /// Path, without the query.
    pub path: String,
    /// Query, decoded, in order.
    pub query: Vec<(String, String)>,
    /// Headers.
    pub headers: HeaderMap,
    /// Who asks.
    pub client: SocketAddr,
}

impl Asked {
    /// The value of a query parameter; empty when it has none.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// An answer.
pub type Answer = Response<Full<Bytes>>;
/// Answers requests.
pub type Handler = Arc<dyn Fn(Asked) -> BoxFuture<'static, Answer> + Send + Sync>;

/// A handler from an async function.
pub fn handler<F, Fut>(answer: F) -> Handler
where
    F: Fn(Asked) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    Arc::new(move |asked| Box::pin(answer(asked)))
}

/// Plain text.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    reply(status, "text/plain; charset=UTF-8", body)
}

/// JSON.
pub fn json(value: &serde_json::Value) -> Answer {
    let body = serde_json::to_vec_pretty(value).unwrap_or_default();
    reply(StatusCode::OK, "application/json", body)
}

/// Any kind.
pub fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    headers.insert(http::header::CACHE_CONTROL, http::HeaderValue::from_static("no-cache, max-age=0"));
    headers.insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
    answer
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, handler: Handler) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, client)) => {
                let handler = handler.clone();
                tokio::spawn(async move {
                    let _slot = slot;
                    let service = hyper::service::service_fn(move |request| answer(request, client, handler.clone()));
                    // A client that breaks off is its own affair.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEADER_TIMEOUT)
                        .max_buf_size(MAX_BODY)
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting on a port of the agent failed; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(request: Request<Incoming>, client: SocketAddr, handler: Handler) -> Result<Answer, Infallible> {
    let (parts, body) = request.into_parts();
    if Limited::new(body, MAX_BODY).collect().await.is_err() {
        return Ok(text(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 64 KiB\n"));
    }
    let asked = Asked {
        path: parts.uri.path().to_owned(),
        query: query(parts.uri.query().unwrap_or_default()),
        method: parts.method,
        headers: parts.headers,
        client,
    };
    let head = asked.method == Method::HEAD;
    let mut answered = handler(asked).await;
    if head {
        *answered.body_mut() = Full::default();
    }
    Ok(answered)
}

fn query(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(name), percent_decode(value))
        })
        .collect()
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = bytes.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok());
        match (bytes[at], escaped.and_then(|pair| u8::from_str_radix(pair, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (b'+', _) => {
                out.push(b' ');
                at += 1;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What one request brought back.
#[derive(Debug)]
pub struct Fetched {
    /// Status.
    pub status: StatusCode,
    /// Body.
    pub body: Bytes,
}

/// One request to `HOST:PORT`.
///
/// # Errors
/// A sentence: no connection, no answer in time, an answer larger than `limit` bytes.
pub async fn fetch(
    method: Method,
    address: &str,
    path: &str,
    headers: HeaderMap,
    time: Duration,
    limit: usize,
) -> Result<Fetched, String> {
    let exchange = async {
        let stream = weft_runtime::net::connect(address).await.map_err(|error| format!("{address}: {error}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("{address}: {error}"))?;
        let mut request = Request::new(Full::<Bytes>::default());
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|error| format!("path {path:?}: {error}"))?;
        *request.headers_mut() = headers;
        let host = http::HeaderValue::from_str(address).map_err(|error| format!("{address}: {error}"))?;
        request.headers_mut().insert(http::header::HOST, host);
        let answered = async {
            let answer = sender.send_request(request).await.map_err(|error| format!("{address}: {error}"))?;
            let (parts, body) = answer.into_parts();
            let body =
                Limited::new(body, limit).collect().await.map_err(|error| format!("{address}{path}: {error}"))?;
            Ok(Fetched { status: parts.status, body: body.to_bytes() })
        };
        tokio::pin!(answered);
        tokio::select! {
            done = &mut answered => done,
            // The connection's own end comes first only when it failed; the request then says why.
            _ = connection => answered.await,
        }
    };
    tokio::time::timeout(time, exchange)
        .await
        .map_err(|_| format!("{address}{path} does not answer within {time:?}"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        assert_eq!(
            query("filter=a%7Cb+c&usedonly&x=%zz"),
            [("filter", "a|b c"), ("usedonly", ""), ("x", "%zz")].map(|(k, v)| (k.to_owned(), v.to_owned()))
        );
    }

    #[tokio::test]
    async fn serves_and_fetches_within_bounds() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(serve(
            listener,
            handler(|asked: Asked| async move { text(StatusCode::OK, format!("{} {}", asked.method, asked.path)) }),
        ));
        let long = Duration::from_secs(30);
        let get = |limit| fetch(Method::GET, &address, "/a?b=c", HeaderMap::new(), long, limit);
        let fetched = get(100).await.unwrap();
        assert_eq!((fetched.status, &fetched.body[..]), (StatusCode::OK, &b"GET /a"[..]));
        assert!(get(3).await.is_err(), "an answer over the limit is refused");
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let late = fetch(Method::GET, &address, "/", HeaderMap::new(), Duration::from_millis(50), 10).await;
        assert!(late.unwrap_err().contains("does not answer"));
    }
}
