//! A pair: real Envoy and our data plane on the same bootstrap file, but for the port.

use crate::backend::TWIN;
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use weft_dataplane::{DataPlane, Handle, Options};
use weft_proxy_config::ConfigBuilder;
use weft_proxy_config::bootstrap::{apply_static, load_bootstrap};
pub use weft_test_ports::free_port;

/// Stands in a bootstrap file for the port of the twin.
pub const PORT: &str = "@PORT@";
/// Longest that any single step may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Response headers that differ from answer to answer, or say only how a body is framed. Envoy closes a connection whose
/// request it answered without reading it whole; we read on, within bounds.
const RANDOM: [&str; 6] =
    ["date", "x-request-id", "x-envoy-upstream-service-time", "transfer-encoding", "content-length", "connection"];

/// The Envoy program: `$ENVOY`, else where `cargo xtask peers` puts it; `None` where there is none.
pub fn envoy() -> Option<PathBuf> {
    let named = std::env::var_os("ENVOY").map(PathBuf::from);
    named.or_else(|| Some("/opt/weft-peers/bin/envoy".into())).filter(|path| path.is_file())
}

/// A request for both.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// Method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Headers; `host` is `a.example`, and for HTTP/2 `:scheme` is `http`, unless it is among them.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: String,
}

impl Ask {
    /// `GET path` with these headers.
    pub fn get(path: &str, headers: &[(&str, &str)]) -> Self {
        let own = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        Self {
            method: "GET".into(),
            path: path.into(),
            headers: headers.iter().map(own).collect(),
            body: String::new(),
        }
    }

    /// The same with another method and a body.
    #[must_use]
    pub fn with(mut self, method: &str, body: &str) -> Self {
        (self.method, self.body) = (method.into(), body.into());
        self
    }
}

/// What came back, without what differs by chance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers, sorted.
    pub headers: BTreeMap<String, Vec<String>>,
    /// Body.
    pub body: String,
    /// Trailers, sorted.
    pub trailers: BTreeMap<String, Vec<String>>,
}

/// One side of the pair: an address, and the connection that is kept to it.
pub struct Side {
    name: &'static str,
    addr: SocketAddr,
    version: Version,
    sender: Option<Sender>,
    again: bool,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    async fn connect(addr: SocketAddr, version: Version) -> Result<Self, hyper::Error> {
        let stream = TcpStream::connect(addr).await.unwrap();
        let _ = stream.set_nodelay(true);
        if version == Version::HTTP_2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            return Ok(Self::Http2(sender));
        }
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self::Http1(sender))
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, hyper::Error> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

/// The pair.
pub struct Twin {
    /// Address of Envoy's listener.
    pub envoy: SocketAddr,
    /// Address of ours.
    pub weft: SocketAddr,
    /// Metrics of ours.
    pub handle: Handle,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Twin {
    /// Starts both on `template`, in which [`PORT`] stands for the port to listen on. `None` where there is no Envoy.
    pub async fn start(template: &str) -> Option<Self> {
        let Some(program) = envoy() else {
            eprintln!("skipped: no Envoy at $ENVOY or /opt/weft-peers/bin/envoy");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let (theirs, ours) = (free_port(), free_port());
        let file = folder.path().join("bootstrap.yaml");
        std::fs::write(&file, template.replace(PORT, &theirs.to_string())).unwrap();
        let log = folder.path().join("envoy.log");
        let child = Command::new(program)
            .args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "error", "-c"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let handle = weft(&template.replace(PORT, &ours.to_string())).await;
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let mut twin = Self { envoy: at(theirs), weft: at(ours), handle, child, _folder: folder };
        twin.wait(&log).await;
        Some(twin)
    }

    async fn wait(&mut self, log: &std::path::Path) {
        let end = tokio::time::Instant::now() + PATIENCE;
        for addr in [self.envoy, self.weft] {
            while TcpStream::connect(addr).await.is_err() {
                let gone = self.child.try_wait().unwrap();
                let said = || std::fs::read_to_string(log).unwrap_or_default();
                assert!(gone.is_none() && tokio::time::Instant::now() < end, "{addr} is not there: {}", said());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Connections to both, in that version of HTTP: Envoy's, then ours.
    pub fn sides(&self, version: Version) -> (Side, Side) {
        let side = |name, addr| Side { name, addr, version, sender: None, again: false };
        (side("envoy", self.envoy), side("weft", self.weft))
    }

    /// Asks both the same, over both versions of HTTP; the differences, in words.
    pub async fn compare(&self, asks: &[Ask]) -> Vec<String> {
        let mut differences = self.compare_over(Version::HTTP_11, asks).await;
        differences.extend(self.compare_over(Version::HTTP_2, asks).await);
        differences
    }

    /// Asks both the same, over that version of HTTP; the differences, in words.
    pub async fn compare_over(&self, version: Version, asks: &[Ask]) -> Vec<String> {
        let (mut envoy, mut weft) = self.sides(version);
        let mut differences = Vec::new();
        for ask in asks {
            let difference = difference(ask, &envoy.ask(ask).await, &weft.ask(ask).await);
            differences.extend(difference.map(|text| format!("{version:?} {text}")));
        }
        differences
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let handle = self.handle.clone();
        let _ = std::thread::spawn(move || handle.stop()).join();
    }
}

/// What two answers to one request differ in.
pub fn difference(ask: &Ask, envoy: &Answer, weft: &Answer) -> Option<String> {
    if envoy == weft {
        return None;
    }
    let mut text = format!("{} {} {:?} ({})\n", ask.method, ask.path, ask.headers, envoy.status);
    if envoy.status != weft.status {
        text.push_str(&format!("  status: envoy {} weft {}\n", envoy.status, weft.status));
    }
    for (what, a, b) in [("header", &envoy.headers, &weft.headers), ("trailer", &envoy.trailers, &weft.trailers)] {
        let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
        for name in names.into_iter().filter(|name| a.get(*name) != b.get(*name)) {
            text.push_str(&format!("  {what} {name}: envoy {:?} weft {:?}\n", a.get(name), b.get(name)));
        }
    }
    if envoy.body != weft.body {
        let only =
            |a: &str, b: &str| a.lines().filter(|line| !b.lines().any(|l| l == *line)).collect::<Vec<_>>().join(" | ");
        let (theirs, ours) = (only(&envoy.body, &weft.body), only(&weft.body, &envoy.body));
        text.push_str(&format!("  body: envoy {theirs:?} weft {ours:?}\n"));
    }
    Some(text)
}

async fn weft(yaml: &str) -> Handle {
    let bootstrap = load_bootstrap(yaml).unwrap_or_else(|e| panic!("{e}"));
    let mut builder = ConfigBuilder::default();
    assert_eq!(apply_static(&bootstrap, &mut builder), Vec::<String>::new());
    let current = Arc::new(ArcSwap::from(builder.snapshot()));
    let (_changes, seen) = watch::channel(0);
    let mut options = Options::new(tokio::runtime::Handle::current());
    options.concurrency = NonZeroUsize::MIN;
    let handle = DataPlane::start(current, seen, options).unwrap();
    handle.wait_ready().await;
    handle
}

impl Side {
    /// A request was sent twice.
    pub fn again(&self) -> bool {
        self.again
    }

    /// Asks on the kept connection, or on a new one.
    pub async fn ask(&mut self, ask: &Ask) -> Answer {
        let kept = self.sender.is_some();
        let mut outcome = tokio::time::timeout(PATIENCE, self.exchange(ask)).await;
        if kept && matches!(outcome, Ok(Err(_))) {
            // A kept connection may be closed at any time.
            (self.sender, self.again) = (None, true);
            outcome = tokio::time::timeout(PATIENCE, self.exchange(ask)).await;
        }
        match outcome {
            Ok(Ok(answer)) => answer,
            failed => {
                self.sender = None;
                let body = match failed {
                    Ok(Err(_)) => "the connection broke off".to_string(),
                    _ => "no answer in time".to_string(),
                };
                Answer { status: 0, headers: BTreeMap::new(), body, trailers: BTreeMap::new() }
            }
        }
    }

    async fn exchange(&mut self, ask: &Ask) -> Result<Answer, hyper::Error> {
        if self.sender.as_ref().is_none_or(Sender::is_closed) {
            self.sender = Some(Sender::connect(self.addr, self.version).await?);
        }
        let is_http2 = self.version == Version::HTTP_2;
        let named = |wanted: &str| ask.headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        let host = named("host").unwrap_or("a.example");
        let mut builder = Request::builder().method(ask.method.as_str()).header(TWIN, self.name);
        builder = match is_http2 {
            true => builder.uri(format!("{}://{host}{}", named(":scheme").unwrap_or("http"), ask.path)),
            false => builder.uri(ask.path.as_str()).header("host", host),
        };
        // HTTP/2 has no headers of one connection.
        let of_hop = |name: &str| is_http2 && matches!(name, "connection" | "upgrade" | "transfer-encoding");
        let own = |name: &str| name == "host" || name.starts_with(':');
        for (name, value) in ask.headers.iter().filter(|(name, _)| !own(name) && !of_hop(name)) {
            builder = builder.header(name, value);
        }
        let request = builder.body(Full::from(ask.body.clone())).unwrap();
        let Some(sender) = &mut self.sender else { unreachable!("made above") };
        let (parts, body) = sender.send(request).await?.into_parts();
        let collected = body.collect().await?;
        let trailers = collected.trailers().map(sorted).unwrap_or_default();
        let body = collected.to_bytes();
        let body = opened(&parts.headers, &body).unwrap_or_else(|| b"not of its coding".to_vec());
        let body = plain(&String::from_utf8_lossy(&body));
        Ok(Answer { status: parts.status.as_u16(), headers: sorted(&parts.headers), body, trailers })
    }
}

/// The body without its coding: two programs need not compress it to the same bytes.
fn opened(headers: &HeaderMap, body: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    match headers.get("content-encoding").map(http::HeaderValue::as_bytes) {
        Some(b"gzip") => flate2::read::MultiGzDecoder::new(body).read_to_end(&mut plain).ok()?,
        Some(b"br") => brotli::Decompressor::new(body, 4096).read_to_end(&mut plain).ok()?,
        Some(b"zstd") => zstd::stream::read::Decoder::new(body).ok()?.read_to_end(&mut plain).ok()?,
        _ => return Some(body.to_vec()),
    };
    Some(plain)
}

/// The body without what Envoy does for reasons of its own: it takes a client on loopback to be on the machine's own
/// address, and says `content-length: 0` where HTTP needs no length.
pub fn plain(body: &str) -> String {
    let mut text = String::with_capacity(body.len());
    // Who is told the reason of a refused connection is a matter of taste.
    let body = body.replace(", transport failure reason: delayed connect error: Connection refused", "");
    for line in body.lines().filter(|line| *line != "content-length: 0") {
        match line.strip_prefix("x-forwarded-for: ") {
            Some(list) => {
                let before = list.rsplit_once(',').map_or("", |(before, _)| before);
                text.push_str(&format!("x-forwarded-for: {before},CLIENT"));
            }
            None if line.starts_with("x-forwarded-port: ") => text.push_str("x-forwarded-port: PORT"),
            None => text.push_str(&about(line)),
        }
        text.push('\n');
    }
    text
}

/// How long an endpoint has, about: of later tries both take off what earlier ones took, which is little, or two seconds on a
/// machine that did something else.
fn about(line: &str) -> Cow<'_, str> {
    for (name, unit) in [("x-envoy-expected-rq-timeout-ms: ", ""), ("grpc-timeout: ", "m")] {
        let millis = line.strip_prefix(name).and_then(|value| value.strip_suffix(unit)?.parse::<u64>().ok());
        if let Some(millis) = millis {
            return format!("{name}{}{unit}", millis.div_ceil(2500) * 2500).into();
        }
    }
    line.into()
}

fn sorted(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers.iter().filter(|(name, _)| !RANDOM.contains(&name.as_str())) {
        all.entry(name.to_string()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    all
}
