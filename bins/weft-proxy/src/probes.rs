//! The application's probes and hooks, asked in the kubelet's stead: the injector points them at `/app-health/…` of the
//! agent's port and says in `ISTIO_KUBE_APP_PROBERS` what is to be asked. The agent asks from inside the pod, past the mesh's
//! rules, so that a probe needs no certificate.

use crate::http::{Answer, Asked, text};
use crate::settings::AgentSettings;
use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use weft_runtime::net;
use weft_tls::{ClientContext, ClientParams, ServerVerification};

/// Variable with the probes.
const VARIABLE: &str = "ISTIO_KUBE_APP_PROBERS";
/// Time for a probe that says none.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most of a probe's answer that is read: only its status counts.
const MAX_ANSWER: usize = 64 * 1024;
/// Address whose connections are not redirected: the proxy's own towards its application.
const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));
/// Headers that belong to one connection.
const OF_CONNECTION: [HeaderName; 5] = [HOST, CONNECTION, TE, TRANSFER_ENCODING, UPGRADE];

/// All probes of the pod.
#[derive(Debug, Clone, Default)]
pub struct Probes(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    by_path: BTreeMap<String, Prober>,
    destination: Option<IpAddr>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Prober {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<Grpc>,
    timeout_seconds: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HttpGet {
    path: String,
    port: u16,
    scheme: String,
    http_headers: Vec<Header>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Header {
    name: String,
    value: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct TcpSocket {
    port: u16,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Grpc {
    port: u16,
    service: Option<String>,
}

impl Probes {
    /// The probes that the environment names.
    ///
    /// # Errors
    /// When the variable is not what the injector writes.
    pub fn of(settings: &AgentSettings) -> Result<Self, String> {
        let env = &settings.environment;
        let by_path = match env.get(VARIABLE) {
            Some(given) => {
                serde_json::from_str(given).map_err(|error| format!("environment variable {VARIABLE}: {error}"))?
            }
            None => BTreeMap::new(),
        };
        // Applications that serve loopback alone are asked there.
        let local = env.flag("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION");
        let destination = if local { None } else { settings.ips.first().copied() };
        Ok(Self(Arc::new(Inner { by_path, destination })))
    }

    /// Asks the application what `asked` stands for.
    pub async fn answer(&self, asked: &Asked) -> Answer {
        let Some(prober) = self.0.by_path.get(&asked.path) else {
            return text(StatusCode::NOT_FOUND, "no probe of this pod has that path\n");
        };
        let destination = self.0.destination.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let limit = match prober.timeout_seconds {
            0 => TIMEOUT,
            seconds => Duration::from_secs(seconds),
        };
        match tokio::time::timeout(limit, prober.ask(destination, asked)).await {
            Ok(Ok(status)) => text(status, ""),
            Ok(Err(reason)) => {
                tracing::debug!(path = asked.path, "probe: {reason}");
                text(StatusCode::INTERNAL_SERVER_ERROR, format!("{reason}\n"))
            }
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("no answer within {limit:?}\n")),
        }
    }
}

impl Prober {
    /// Asks the application.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn ask(&self, destination: IpAddr, asked: &Asked) -> Result<StatusCode, String> {
        if let Some(get) = &self.http_get {
            return get.ask(destination, asked).await;
        }
        if let Some(tcp) = &self.tcp_socket {
            return connect(destination, tcp.port).await.map(|_| StatusCode::OK);
        }
        match &self.grpc {
            Some(grpc) => grpc.ask(destination).await,
            None => Err("the probe names nothing to ask".into()),
        }
    }
}

/// Connects past the redirection of the pod.
async fn connect(destination: IpAddr, port: u16) -> Result<TcpStream, String> {
    let address = SocketAddr::new(destination, port);
    let connected = match destination {
        IpAddr::V4(_) => net::connect_from(SOURCE, address).await,
        IpAddr::V6(_) => net::connect(&address.to_string()).await,
    };
    connected.map_err(|error| format!("{address}: {error}"))
}

impl HttpGet {
    async fn ask(&self, destination: IpAddr, asked: &Asked) -> Result<StatusCode, String> {
        let address = SocketAddr::new(destination, self.port);
        let request = self.request(address, asked)?;
        let stream = connect(destination, self.port).await?;
        if !self.scheme.eq_ignore_ascii_case("https") {
            return exchange(stream, request).await;
        }
        // As the kubelet does: whether the application is alive, not who it is.
        let params =
            ClientParams { alpn: vec![b"http/1.1".to_vec()], ..ClientParams::new(ServerVerification::Insecure) };
        let context = ClientContext::build(params).map_err(|error| error.to_string())?;
        let connected = context.connect(stream).await.map_err(|error| format!("{address}: {error}"))?;
        exchange(connected.stream, request).await
    }

    /// The kubelet's request, with the headers that the probe asks for.
    fn request(&self, address: SocketAddr, asked: &Asked) -> Result<Request<Full<Bytes>>, String> {
        let path = format!("/{}", self.path.trim_start_matches('/'));
        let uri: Uri = path.parse().map_err(|error| format!("path {path:?}: {error}"))?;
        let mut headers = asked.headers.clone();
        OF_CONNECTION.iter().for_each(|name| drop(headers.remove(name)));
        let host = HeaderValue::from_str(&address.to_string()).map_err(|error| error.to_string())?;
        headers.insert(HOST, host);
        for header in &self.http_headers {
            let wrong = || format!("header {:?} of the probe cannot be sent", header.name);
            let name: HeaderName = header.name.parse().map_err(|_| wrong())?;
            headers.insert(name, HeaderValue::from_str(&header.value).map_err(|_| wrong())?);
        }
        let mut request = Request::new(Full::default());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<StatusCode, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let started = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = started.map_err(|error| error.to_string())?;
    let driven = tokio::spawn(connection);
    let answered = sender.send_request(request).await.map_err(|error| error.to_string());
    let status = answered.map(|answer| answer.status());
    // Only the status counts.
    driven.abort();
    status
}

impl Grpc {
    /// `grpc.health.v1.Health/Check`, as the kubelet asks.
    async fn ask(&self, destination: IpAddr) -> Result<StatusCode, String> {
        let stream = connect(destination, self.port).await?;
        let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (mut sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let driven = tokio::spawn(connection);
        let request = self.request(SocketAddr::new(destination, self.port))?;
        let answered = async {
            let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let (parts, body) = answer.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| error.to_string())?;
            let status = body.trailers().unwrap_or(&parts.headers).get("grpc-status").cloned();
            if status.as_ref().is_none_or(|status| status != "0") {
                return Err(format!("the health service answers with grpc-status {}", shown(&parts.headers, status)));
            }
            // One message: five bytes of frame, then field 1 as a number; 1 is SERVING.
            match body.to_bytes().get(5..) {
                Some([0x08, 1, ..]) => Ok(StatusCode::OK),
                _ => Err("the health service does not say SERVING".to_string()),
            }
        };
        let result = answered.await;
        driven.abort();
        result
    }

    fn request(&self, address: SocketAddr) -> Result<Request<Full<Bytes>>, String> {
        let service = self.service.clone().unwrap_or_default();
        let length = u8::try_from(service.len()).ok().filter(|length| *length < 128);
        let length = length.ok_or("the name of the gRPC service is longer than 127 bytes")?;
        let message = if length == 0 { Vec::new() } else { [&[0x0a, length], service.as_bytes()].concat() };
        let size = u32::try_from(message.len()).unwrap_or_default().to_be_bytes();
        let body = [&[0], &size[..], &message].concat();
        let uri = format!("http://{address}/grpc.health.v1.Health/Check");
        Request::post(uri)
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())
    }
}

fn shown(headers: &HeaderMap, status: Option<HeaderValue>) -> String {
    let text = |value: Option<&HeaderValue>| value.and_then(|v| v.to_str().ok()).unwrap_or("none").to_string();
    format!("{} ({})", text(status.as_ref()), text(headers.get("grpc-message")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::MeshArgs;
    use crate::settings::Environment;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use weft_core::node::NodeType;

    fn probes(probers: &serde_json::Value) -> Result<Probes, String> {
        let text = probers.to_string();
        let environment = Environment::of(&[
            ("POD_NAME", "p"),
            ("POD_NAMESPACE", "n"),
            ("INSTANCE_IP", "127.0.0.1"),
            (VARIABLE, &text),
        ]);
        Probes::of(&AgentSettings::read(NodeType::Sidecar, &MeshArgs::default(), environment).unwrap())
    }

    fn asked(path: &str) -> Asked {
        let mut headers = HeaderMap::new();
        headers.insert("user-agent", HeaderValue::from_static("kube-probe/1.34"));
        headers.insert(HOST, HeaderValue::from_static("10.0.0.1:15020"));
        Asked {
            method: Method::GET,
            path: path.into(),
            query: Vec::new(),
            headers,
            client: "10.0.0.9:1".parse().unwrap(),
        }
    }

    /// Answers one connection, and gives what was asked.
    async fn application(answer: &'static [u8]) -> (u16, tokio::task::JoinHandle<(String, IpAddr)>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let (mut stream, peer) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 4096];
            let n = stream.read(&mut buffer).await.unwrap();
            stream.write_all(answer).await.unwrap();
            (String::from_utf8_lossy(&buffer[..n]).into_owned(), peer.ip())
        });
        (port, task)
    }

    #[tokio::test]
    async fn http_is_asked_as_the_kubelet_would() {
        let (port, task) = application(b"HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        let probes = probes(&serde_json::json!({"/app-health/a/readyz": {"httpGet": {
            "path": "ready?x=1", "port": port, "httpHeaders": [{"name": "X-A", "value": "b"}, {"name": "Host", "value": "app.example"}]}}})).unwrap();
        assert_eq!(probes.answer(&asked("/app-health/a/readyz")).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        let (request, from) = task.await.unwrap();
        let request = request.to_lowercase();
        for part in ["get /ready?x=1 http/1.1", "user-agent: kube-probe/1.34", "x-a: b", "host: app.example"] {
            assert!(request.contains(part), "{part} not in {request}");
        }
        assert_eq!(from, SOURCE, "or the redirection would bring it back to the proxy");
        assert_eq!(probes.answer(&asked("/app-health/b/readyz")).await.status(), StatusCode::NOT_FOUND);
        assert_eq!(probes.answer(&asked("/app-health/a/readyz")).await.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[tokio::test]
    async fn tcp_and_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let probes = probes(&serde_json::json!({
            "/app-health/a/livez": {"tcpSocket": {"port": port}},
            "/app-health/a/startupz": {"httpGet": {"port": port}, "timeoutSeconds": 1}}))
        .unwrap();
        assert_eq!(probes.answer(&asked("/app-health/a/livez")).await.status(), StatusCode::OK);
        // It is accepted and never answered.
        assert_eq!(probes.answer(&asked("/app-health/a/startupz")).await.status(), StatusCode::INTERNAL_SERVER_ERROR);
        drop(listener);
        assert_eq!(probes.answer(&asked("/app-health/a/livez")).await.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }

    /// A health service that says `serving` for the service `s`.
    async fn health(serving: u8) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| async move {
                    let path = request.uri().path().to_string();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let known = path == "/grpc.health.v1.Health/Check" && body[..] == [0, 0, 0, 0, 3, 0x0a, 1, b's'];
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static(if known { "0" } else { "5" }));
                    let message = Full::new(Bytes::from(vec![0, 0, 0, 0, 2, 0x08, serving]));
                    let body = message.with_trailers(async move { Some(Ok(trailers)) });
                    Ok::<_, std::convert::Infallible>(http::Response::new(body))
                });
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
            }
        });
        port
    }

    #[tokio::test]
    async fn grpc_health() {
        let (good, bad) = (health(1).await, health(2).await);
        let probes = probes(&serde_json::json!({
            "/app-health/a/readyz": {"grpc": {"port": good, "service": "s"}},
            "/app-health/a/livez": {"grpc": {"port": bad, "service": "s"}},
            "/app-health/a/startupz": {"grpc": {"port": good, "service": "other"}}}))
        .unwrap();
        for (path, status) in [
            ("/app-health/a/readyz", StatusCode::OK),
            ("/app-health/a/livez", StatusCode::INTERNAL_SERVER_ERROR),
            ("/app-health/a/startupz", StatusCode::INTERNAL_SERVER_ERROR),
        ] {
            let answer = probes.answer(&asked(path)).await;
            assert_eq!(answer.status(), status, "{path}: {:?}", answer.body());
        }
    }

    #[test]
    fn a_variable_that_is_none() {
        assert!(
            probes(&serde_json::json!({"/app-health/a/livez": {"tcpSocket": {"port": 70000}}}))
                .unwrap_err()
                .contains(VARIABLE)
        );
        assert!(probes(&serde_json::json!([])).is_err());
    }
}
