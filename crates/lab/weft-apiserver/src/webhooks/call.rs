//! One question to one webhook, of admission or of conversion: where it is, TLS to it, and the answer, bounded in time and
//! size. A service is reached at its ready endpoints, as `10.96.0.0/16` leads nowhere outside of the lab.

use crate::server::ApiServer;
use base64::Engine;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::time::Duration;
use tokio::net::TcpStream;
use weft_store::ListQuery;
use weft_tls::{ClientContext, ClientParams, ServerVerification, TrustAnchors};

/// What one call may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) seconds: u64,
    /// Longest answer in bytes.
    pub(crate) answer: usize,
}

/// Where a webhook is.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// What is dialled: `host:port`.
    address: String,
    /// The name that its certificate is for.
    host: String,
    path: String,
    /// For messages.
    url: String,
}

/// What is wrong with a `clientConfig`: the field within it, empty for the whole, and why.
pub(crate) fn check(config: &Value) -> Vec<(String, String)> {
    let wrong = |field: &str, why: &str| vec![(field.to_string(), why.to_string())];
    match (config.get("url").and_then(Value::as_str), config.get("service").filter(|s| !s.is_null())) {
        (Some(url), None) if url.starts_with("https://") => Vec::new(),
        (Some(url), None) => wrong("url", &format!("Invalid value: {url:?}: 'https' is the only allowed URL scheme")),
        (None, Some(service)) => {
            let missing = |name: &&str| service.get(*name).and_then(Value::as_str).is_none_or(str::is_empty);
            let all = ["name", "namespace"].into_iter().filter(missing);
            all.flat_map(|name| wrong(&format!("service.{name}"), "Required value")).collect()
        }
        _ => wrong("", "Required value: exactly one of url or service is required"),
    }
}

/// Sends a review to where a `clientConfig` leads; returns the answer's JSON, or why there is none.
pub(crate) async fn post(server: &ApiServer, config: &Value, limits: Limits, review: &Value) -> Result<Value, String> {
    let place = place(server, config)?;
    let url = place.url.clone();
    let exchange = exchange(place, config, limits.answer, review);
    let answer = tokio::time::timeout(Duration::from_secs(limits.seconds), exchange).await;
    let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {} s", limits.seconds)));
    answer.map_err(|why| format!("Post {url:?}: {why}"))
}

fn place(server: &ApiServer, config: &Value) -> Result<Place, String> {
    if let Some(url) = config.get("url").and_then(Value::as_str) {
        let uri: http::Uri = url.parse().map_err(|e| format!("clientConfig.url {url:?}: {e}"))?;
        let host = uri.host().ok_or("clientConfig.url has no host")?.to_string();
        let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_string();
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_string();
        return Ok(Place {
            address: format!("{host}:{}", uri.port_u16().unwrap_or(443)),
            host: bare,
            path,
            url: url.into(),
        });
    }
    let service = config.get("service").ok_or("clientConfig has neither url nor service")?;
    let text = |name: &str| service.get(name).and_then(Value::as_str).unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    let port = service.get("port").and_then(Value::as_u64).unwrap_or(443);
    let path = format!("/{}", text("path").trim_start_matches('/'));
    let host = format!("{name}.{namespace}.svc");
    let url = format!("https://{host}:{port}{path}");
    let address = endpoint(server, namespace, name, port).map_err(|why| format!("Post {url:?}: {why}"))?;
    Ok(Place { address, host, path, url })
}

/// A ready endpoint of a service's port, at random.
fn endpoint(server: &ApiServer, namespace: &str, name: &str, port: u64) -> Result<String, String> {
    let store = server.store();
    let service = store.find("", "Service", namespace, name);
    let service = service.ok_or_else(|| format!("service {name:?} not found in namespace {namespace:?}"))?;
    let ports = service.spec().get("ports").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let found = ports.iter().find(|p| p.get("port").and_then(Value::as_u64) == Some(port));
    let found = found.ok_or_else(|| format!("service {namespace}/{name} has no port {port}"))?;
    if let Some(external) = service.spec().get("externalName").and_then(Value::as_str) {
        return Ok(format!("{external}:{port}"));
    }
    let port_name = found.get("name").and_then(Value::as_str).unwrap_or_default();
    let query = ListQuery::namespaced("discovery.k8s.io", "EndpointSlice", namespace);
    let slices = store.list(&query).map_err(|e| e.to_string())?;
    let mut addresses = Vec::new();
    for slice in slices.items.iter().filter(|s| s.label("kubernetes.io/service-name") == Some(name)) {
        let list = |field: &str| slice.body.get(field).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let named = |p: &&Value| p.get("name").and_then(Value::as_str).unwrap_or_default() == port_name;
        let Some(target) = list("ports").iter().find(named).and_then(|p| p.get("port")?.as_u64()) else { continue };
        let is_ready = |e: &&Value| e.pointer("/conditions/ready").and_then(Value::as_bool) != Some(false);
        for endpoint in list("endpoints").iter().filter(is_ready) {
            let all = endpoint.get("addresses").and_then(Value::as_array).into_iter().flatten();
            addresses.extend(all.filter_map(Value::as_str).map(|a| match a.contains(':') {
                true => format!("[{a}]:{target}"),
                false => format!("{a}:{target}"),
            }));
        }
    }
    match addresses.len() {
        0 => Err(format!("no endpoints available for service {name:?}")),
        n => Ok(addresses.swap_remove(fastrand::usize(..n))),
    }
}

async fn exchange(place: Place, config: &Value, limit: usize, review: &Value) -> Result<Value, String> {
    let context = context(config, &place.host)?;
    let stream = TcpStream::connect(&place.address).await.map_err(|e| format!("dial tcp {}: {e}", place.address))?;
    let _ = stream.set_nodelay(true);
    let secured = context.connect_to(stream, &place.host).await.map_err(|e| e.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(secured.stream)).await.map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let request = http::Request::post(place.path.as_str())
        .header("host", place.host.as_str())
        .header("content-type", "application/json")
        .header("accept", "application/json")
        .header("user-agent", concat!("weft-apiserver/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::from(review.to_string())))
        .map_err(|e| e.to_string())?;
    let result = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, limit).collect().await.map_err(|e| format!("the answer: {e}"))?.to_bytes();
        if !head.status.is_success() {
            return Err(format!("the server responded with status {}", head.status));
        }
        serde_json::from_slice(&body).map_err(|e| format!("the answer is no review: {e}"))
    }
    .await;
    driver.abort();
    result
}

fn context(config: &Value, host: &str) -> Result<ClientContext, String> {
    let bundle = config.get("caBundle").and_then(Value::as_str).filter(|b| !b.is_empty());
    let anchors = match bundle {
        Some(bundle) => {
            let pem = base64::engine::general_purpose::STANDARD.decode(bundle);
            let pem = pem.map_err(|_| "clientConfig.caBundle is not base64".to_string())?;
            TrustAnchors::from_pem(&pem)
        }
        None => TrustAnchors::system(),
    };
    let anchors = anchors.map_err(|e| format!("clientConfig.caBundle: {e}"))?;
    let mut params = ClientParams::new(ServerVerification::WebPki { anchors, san: None });
    params.sni = Some(host.into());
    params.alpn = vec![b"http/1.1".to_vec()];
    ClientContext::build(params).map_err(|e| e.to_string())
}
