//! What the tests of the data plane share: a proxy under test, and servers and clients that are real ones.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test that cannot go on fails.
#![allow(dead_code)] // Each test uses its part.

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use weft_dataplane::{DataPlane, Handle, ListenerStatus, Options};
use weft_proto::any::TypeUrl;
use weft_proxy_config::bootstrap::{apply_static, load_bootstrap};
use weft_proxy_config::{ConfigBuilder, ProxySnapshot, Update, Upsert};

/// Longest that any single step of a test may take.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// What comes within this time after a whole answer is looked at too.
const MOMENT: Duration = Duration::from_millis(400);

/// A proxy under test.
pub struct Proxy {
    pub handle: Handle,
    pub builder: ConfigBuilder,
    current: Arc<ArcSwap<ProxySnapshot>>,
    changes: watch::Sender<u64>,
}

impl Proxy {
    /// Starts a proxy on an Envoy bootstrap with static resources; its listeners take any port.
    pub async fn start(yaml: &str) -> Self {
        Self::start_with(yaml, |_| {}).await
    }

    pub async fn start_with(yaml: &str, set: impl FnOnce(&mut Options)) -> Self {
        let bootstrap = load_bootstrap(yaml).unwrap_or_else(|e| panic!("{yaml}: {e}"));
        let mut builder = ConfigBuilder::default();
        let refused = apply_static(&bootstrap, &mut builder);
        assert_eq!(refused, Vec::<String>::new());
        let current = Arc::new(ArcSwap::from(builder.snapshot()));
        let (changes, seen) = watch::channel(0);
        let mut options = Options::new(tokio::runtime::Handle::current());
        options.concurrency = NonZeroUsize::new(2).unwrap();
        set(&mut options);
        let handle = DataPlane::start(current.clone(), seen, options).unwrap();
        handle.wait_ready().await;
        Self { handle, builder, current, changes }
    }

    /// The address of a listener.
    pub fn address(&self, listener: &str) -> SocketAddr {
        let states = self.handle.listeners();
        match states.iter().find(|s| &*s.name == listener).map(|s| &s.status) {
            Some(ListenerStatus::Bound(Some(address))) => *address,
            other => panic!("listener {listener}: {other:?}; there are {states:?}"),
        }
    }

    /// The address of the listener called `l`.
    pub fn addr(&self) -> SocketAddr {
        self.address("l")
    }

    /// Applies a change and waits until it is in force.
    pub async fn change<M>(&mut self, resources: &[(&str, &str)], removals: &[&str])
    where
        M: prost::Message + prost::Name + Default,
    {
        let update = update::<M>(resources, removals);
        let applied = self.builder.apply(&update);
        assert_eq!(applied.refused, vec![]);
        let version = applied.snapshot.version;
        self.current.store(applied.snapshot);
        self.changes.send_replace(version);
        tokio::time::timeout(PATIENCE, self.handle.wait_version(version)).await.expect("a change in force");
    }

    /// The value of a metric.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.handle.registry().value(name, labels).unwrap_or(0.0)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let handle = self.handle.clone();
        std::thread::spawn(move || handle.stop()).join().unwrap();
    }
}

/// An update of one type from YAML documents, each with its name.
pub fn update<M>(resources: &[(&str, &str)], removals: &[&str]) -> Update
where
    M: prost::Message + prost::Name + Default,
{
    let upsert = |(name, yaml): &(&str, &str)| {
        let message: M = weft_proto::json::from_yaml(yaml).unwrap_or_else(|e| panic!("{yaml}: {e}"));
        Upsert { name: name.to_string(), version: "1".into(), any: weft_proto::pack(&message) }
    };
    Update {
        type_url: M::type_url_of(),
        upserts: resources.iter().map(upsert).collect(),
        removals: removals.iter().map(ToString::to_string).collect(),
    }
}

/// A bootstrap with one HTTP listener `l` and clusters as given.
pub fn http_bootstrap(hcm: &str, virtual_hosts: &str, clusters: &[(&str, SocketAddr, &str)]) -> String {
    let clusters: String = clusters.iter().map(|(name, addr, extra)| cluster(name, &[*addr], extra)).collect();
    http_bootstrap_raw(hcm, virtual_hosts, &clusters)
}

pub fn http_bootstrap_raw(hcm: &str, virtual_hosts: &str, clusters: &str) -> String {
    format!(
        "static_resources:\n  listeners:\n  - {}\n  clusters:\n{clusters}",
        listener("l", hcm, virtual_hosts, "").replace('\n', "\n    ")
    )
}

/// An HTTP listener on any port of loopback.
pub fn listener(name: &str, hcm: &str, virtual_hosts: &str, transport: &str) -> String {
    format!(
        r#"name: {name}
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
filter_chains:
- {transport}
  filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: t, {hcm} route_config: {{name: r, virtual_hosts: {virtual_hosts}}}, http_filters: [{{name: envoy.filters.http.fault, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}}}}, {{name: envoy.filters.http.cors, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}}}, {{name: envoy.filters.http.router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}"#
    )
    .replace("- \n  filters", "- filters")
}

/// A virtual host for everything, with these routes.
pub fn all(routes: &str) -> String {
    format!("[{{name: v, domains: ['*'], routes: {routes}}}]")
}

/// A static cluster.
pub fn cluster(name: &str, addresses: &[SocketAddr], extra: &str) -> String {
    let endpoints: Vec<String> = addresses.iter().map(endpoint).collect();
    format!(
        "  - {{name: {name}, type: STATIC, connect_timeout: 20s, {extra} load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{}]}}]}}}}\n",
        endpoints.join(", ")
    )
}

pub fn endpoint(address: &SocketAddr) -> String {
    format!(
        "{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}",
        address.ip(),
        address.port()
    )
}

/// HTTP/2 towards a cluster's endpoints.
pub const HTTP2: &str = r#"typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}},"#;

/// An HTTP server: HTTP/1.1 and HTTP/2, each request answered by a function.
pub struct Backend {
    pub addr: SocketAddr,
    pub requests: Arc<AtomicUsize>,
    pub connections: Arc<AtomicUsize>,
    end: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Backend {
    pub async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (requests, connections) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (seen, open) = (requests.clone(), connections.clone());
        let (end, mut ended) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut all = tokio::task::JoinSet::new();
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    _ = &mut ended => break,
                };
                open.fetch_add(1, Ordering::SeqCst);
                let (answer, seen) = (answer.clone(), seen.clone());
                all.spawn(async move {
                    let service = service_fn(move |request| {
                        seen.fetch_add(1, Ordering::SeqCst);
                        let answer = answer(request);
                        async move { Ok::<_, Infallible>(answer.await) }
                    });
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
            drop(listener);
            all.shutdown().await;
        });
        Self { addr, requests, connections, end: Some(end), task }
    }

    /// Ends it: when this returns, its port and its connections are closed.
    pub async fn stop(mut self) {
        drop(self.end.take());
        tokio::time::timeout(PATIENCE, &mut self.task).await.expect("a server that ends").unwrap();
    }

    /// Answers 200 with its name and what it saw of the request.
    pub async fn echo(name: &'static str) -> Self {
        Self::start(move |request| async move { echo(name, request).await }).await
    }

    pub fn count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn echo(name: &str, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let mut text =
        format!("backend={name}\n{} {}\n", parts.method, parts.uri.path_and_query().map_or("", |p| p.as_str()));
    if let Some(authority) = parts.uri.authority() {
        text.push_str(&format!("host: {authority}\n"));
    }
    for (name, value) in &parts.headers {
        text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    if let Ok(body) = body.collect().await {
        let bytes = body.to_bytes();
        text.push_str(&format!("body={}\n", bytes.len()));
    }
    Response::new(Full::from(text))
}

/// A plain answer.
pub fn reply(status: u16, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// A response, read whole.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: String,
    pub trailers: Option<http::HeaderMap>,
}

impl Got {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
    }

    /// A line `name: value` that the echo server wrote.
    pub fn seen(&self, name: &str) -> Option<&str> {
        self.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub fn backend(&self) -> &str {
        self.body.lines().find_map(|line| line.strip_prefix("backend=")).unwrap_or("")
    }
}

/// One request on a connection of its own.
pub async fn send(addr: SocketAddr, request: Request<Full<Bytes>>) -> Got {
    try_send(addr, request).await.unwrap()
}

pub async fn try_send(addr: SocketAddr, request: Request<Full<Bytes>>) -> Result<Got, String> {
    let work = async {
        let stream = TcpStream::connect(addr).await.map_err(|e| e.to_string())?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        read(response).await
    };
    tokio::time::timeout(PATIENCE, work).await.map_err(|e| e.to_string())?
}

pub async fn read(response: Response<Incoming>) -> Result<Got, String> {
    let (parts, body) = response.into_parts();
    let collected = body.collect().await.map_err(|e| e.to_string())?;
    let trailers = collected.trailers().cloned();
    let body = String::from_utf8_lossy(&collected.to_bytes()).into_owned();
    Ok(Got { status: parts.status.as_u16(), headers: parts.headers, body, trailers })
}

/// `GET path`, host `a.example`.
pub async fn get(addr: SocketAddr, path: &str) -> Got {
    get_with(addr, path, &[]).await
}

pub async fn get_with(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Got {
    send(addr, request("GET", path, headers, "")).await
}

pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &'static str) -> Request<Full<Bytes>> {
    let mut builder = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        builder = builder.header("host", "a.example");
    }
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Full::from(body)).unwrap()
}

/// An HTTP/2 connection with prior knowledge.
pub async fn http2(addr: SocketAddr) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Frames of a request's body, and the answer to the request.
pub type Upload = (mpsc::Sender<Bytes>, tokio::task::JoinHandle<hyper::Result<Response<Incoming>>>);

/// A POST to `http://a/chat` over HTTP/2, on a connection of its own, whose body goes on as long as its frames are sent.
pub async fn upload(addr: SocketAddr, lines: &[(&str, &str)]) -> Upload {
    let (frames, body) = mpsc::channel(1);
    let body = tokio_stream::StreamExt::map(ReceiverStream::new(body), |data| Ok::<_, Infallible>(Frame::data(data)));
    let stream = TokioIo::new(TcpStream::connect(addr).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::post("http://a/chat");
    for (name, value) in lines {
        request = request.header(*name, *value);
    }
    let request = request.body(StreamBody::new(body)).unwrap();
    (frames, tokio::spawn(async move { sender.send_request(request).await }))
}

/// A server, for authorizers, that tells of each request and answers when it is let.
pub async fn slow(answer: fn() -> Response<Full<Bytes>>) -> (Backend, mpsc::UnboundedReceiver<()>, Arc<Notify>) {
    let (told, asked) = mpsc::unbounded_channel();
    let go = Arc::new(Notify::new());
    let gate = go.clone();
    let server = Backend::start(move |_| {
        let (told, gate) = (told.clone(), gate.clone());
        async move {
            let _ = told.send(());
            gate.notified().await;
            answer()
        }
    });
    (server.await, asked, go)
}

/// The answer of an authorizer by gRPC that assents: a CheckResponse whose status is OK.
pub fn assent() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(&[0, 0, 0, 0, 2, 0x0a, 0])));
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    response.headers_mut().insert("grpc-status", "0".parse().unwrap());
    response
}

/// Sends bytes and reads one whole answer, or until the other side closes.
pub async fn raw(addr: SocketAddr, bytes: &[u8]) -> String {
    raw_answers(addr, bytes, 1).await
}

/// Sends bytes and reads so many whole answers, or until the other side closes.
pub async fn raw_answers(addr: SocketAddr, bytes: &[u8], wanted: usize) -> String {
    let is_head = bytes.starts_with(b"HEAD ");
    exchange(addr, bytes, |answer| whole_answers(answer, is_head) >= wanted).await
}

/// Sends HTTP/2 as bytes and reads until stream 1 has ended, or the connection.
pub async fn raw_http2(addr: SocketAddr, bytes: &[u8]) -> String {
    exchange(addr, bytes, stream_one_ended).await
}

/// Sends bytes and reads until the answer is whole, however long that takes, in however many pieces it comes; what follows
/// within a moment belongs to it, since a test may want nothing to follow.
async fn exchange(addr: SocketAddr, bytes: &[u8], is_whole: impl Fn(&[u8]) -> bool) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // One that has refused may have closed before all was sent.
    let _ = stream.write_all(bytes).await;
    let mut all = Vec::new();
    loop {
        let done = is_whole(&all);
        let wait = if done { MOMENT } else { PATIENCE };
        match tokio::time::timeout(wait, stream.read_buf(&mut all)).await {
            Ok(Ok(1..)) => {}
            Ok(_) => break,
            Err(_) if done => break,
            Err(_) => panic!("no whole answer in time: {:?}", String::from_utf8_lossy(&all)),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Answers that are there with their bodies. Those of 1xx, but for 101, only announce one.
fn whole_answers(mut bytes: &[u8], is_head: bool) -> usize {
    let mut count = 0;
    while let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        bytes = &bytes[end + 4..];
        let status = head.get(9..12).unwrap_or("");
        if status.starts_with('1') && status != "101" {
            continue;
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
        let length = match length {
            _ if is_head || matches!(status, "101" | "204" | "304") => Some(0),
            None if head.contains("transfer-encoding: chunked") => chunked_length(bytes),
            // Without a length, the end of the connection is that of the body.
            length => length,
        };
        match length {
            Some(length) if bytes.len() >= length => bytes = &bytes[length..],
            _ => return count,
        }
        count += 1;
    }
    count
}

/// Bytes of a chunked body without trailers, once its last chunk is there.
fn chunked_length(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = bytes[at..].windows(2).position(|part| part == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..at + line]).ok()?, 16).ok()?;
        at += line + 2 + size + 2;
        if at > bytes.len() {
            return None;
        }
        if size == 0 {
            return Some(at);
        }
    }
}

/// Stream 1 was answered to its end or reset, or the connection is given up.
fn stream_one_ended(mut bytes: &[u8]) -> bool {
    while let [a, b, c, kind, flags, s0, s1, s2, s3, rest @ ..] = bytes {
        let (length, stream) = (u32::from_be_bytes([0, *a, *b, *c]) as usize, u32::from_be_bytes([*s0, *s1, *s2, *s3]));
        let Some(after) = rest.get(length..) else { return false };
        match (kind, stream) {
            (0 | 1, 1) if flags & 1 == 1 => return true,
            (3, 1) | (7, 0) => return true,
            _ => bytes = after,
        }
    }
    false
}

/// Waits for a condition, with a bound.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A root and certificates under it.
pub struct Pki {
    issuer: weft_tls::Issuer,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Pki {
    pub fn new() -> Self {
        let now = SystemTime::now();
        let (not_before, not_after) = (now - Duration::from_secs(60), now + Duration::from_secs(3600));
        let issuer = weft_tls::Issuer::self_signed(&weft_tls::RootParams {
            organization: "cluster.local".into(),
            key: weft_tls::KeyKind::default(),
            not_before,
            not_after,
        })
        .unwrap();
        Self { issuer, not_before, not_after }
    }

    pub fn root(&self) -> String {
        self.issuer.certificate_pem()
    }

    /// Chain and key of a workload.
    pub fn leaf(&self, sa: &str) -> (String, String) {
        self.leaf_of(weft_tls::San::Uri(format!("spiffe://cluster.local/ns/default/sa/{sa}")))
    }

    fn leaf_of(&self, name: weft_tls::San) -> (String, String) {
        let key = weft_tls::PrivateKey::generate(weft_tls::KeyKind::default()).unwrap();
        let names = vec![name];
        let leaf = weft_tls::LeafParams { names, not_before: self.not_before, not_after: self.not_after };
        let issued = self.issuer.sign_key(&key, &leaf).unwrap();
        (issued.pem, key.to_pem().to_string())
    }

    /// `common_tls_context` as JSON, with more fields inside.
    fn context(&self, sa: &str, more: &str) -> String {
        let (chain, key) = self.leaf(sa);
        let quote = |text: &str| serde_json::Value::from(text).to_string();
        format!(
            "{{tls_certificates: [{{certificate_chain: {{inline_string: {}}}, private_key: {{inline_string: {}}}}}], validation_context: {{trusted_ca: {{inline_string: {}}}}}{more}}}",
            quote(&chain),
            quote(&key),
            quote(&self.root())
        )
    }

    /// Transport socket of a listener that requires client certificates.
    pub fn server(&self, sa: &str, alpn: &str) -> String {
        format!(
            r#"transport_socket: {{name: envoy.transport_sockets.tls, typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, require_client_certificate: true, common_tls_context: {}}}}}"#,
            self.context(sa, &format!(", alpn_protocols: [{alpn}]"))
        )
    }

    /// Transport socket of a listener outside of the mesh: its certificate is of a DNS name, and clients show none.
    pub fn outside(&self, host: &str) -> String {
        let (chain, key) = self.leaf_of(weft_tls::San::Dns(host.into()));
        let quote = |text: &str| serde_json::Value::from(text).to_string();
        format!(
            r#"transport_socket: {{name: envoy.transport_sockets.tls, typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {{tls_certificates: [{{certificate_chain: {{inline_string: {}}}, private_key: {{inline_string: {}}}}}]}}}}}}"#,
            quote(&chain),
            quote(&key)
        )
    }

    /// Transport socket of a cluster.
    pub fn client(&self, sa: &str, expected: &str, alpn: &str) -> String {
        let context = self.context(sa, &format!(", alpn_protocols: [{alpn}]")).replace(
            "validation_context: {",
            &format!(
                "validation_context: {{match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: \"spiffe://cluster.local/ns/default/sa/{expected}\"}}}}], "
            ),
        );
        format!(
            r#"transport_socket: {{name: envoy.transport_sockets.tls, typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: server.example, common_tls_context: {context}}}}},"#
        )
    }
}
