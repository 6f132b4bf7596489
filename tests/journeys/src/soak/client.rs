//! The load of the soak: kinds of requests side by side, each at a rate of its own on connections that stay open.

use crate::Lab;
use crate::soak::server::message;
use anyhow::{Result, ensure};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Time for one request.
const LIMIT: Duration = Duration::from_secs(15);
/// Bytes of a large body.
const LARGE: usize = 1 << 20;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Bookinfo's page: HTTP/1.1 through five workloads.
    Page,
    /// HTTP/1.1 with a body of 1 MB.
    Large,
    /// HTTP/2, several streams on a connection.
    Http2,
    /// gRPC, unary.
    Grpc,
    /// A line there and back on a TCP connection that stays open.
    Bytes,
    /// The same on a connection of its own.
    Connections,
}

/// Kinds, with the part of the whole rate that each has, in percent.
const KINDS: [(Kind, u32); 6] = [
    (Kind::Page, 100),
    (Kind::Large, 20),
    (Kind::Http2, 100),
    (Kind::Grpc, 100),
    (Kind::Bytes, 100),
    (Kind::Connections, 20),
];

/// What came of a load.
#[derive(Debug)]
pub struct Outcome {
    name: String,
    /// Requests that were answered as they should be.
    pub ok: u64,
    /// Others: the reason, and how often.
    pub failures: BTreeMap<String, u64>,
    slowest: Duration,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:12} {:7} ok, failures {:?}, slowest {:?}", self.name, self.ok, self.failures, self.slowest)
    }
}

/// A running load.
pub struct Load {
    kind: Kind,
    stop: Arc<AtomicBool>,
    ok: Arc<AtomicU64>,
    failures: Arc<Mutex<BTreeMap<String, u64>>>,
    thread: JoinHandle<Result<Duration>>,
}

/// Starts all kinds.
pub fn start(lab: &Lab, rate: u32) -> Vec<Load> {
    KINDS.iter().map(|(kind, share)| Load::start(*kind, target(lab, *kind), (rate * share / 100).max(1))).collect()
}

/// One request of each kind.
///
/// # Errors
/// What the first says that does not get through.
pub fn probe(lab: &Lab) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for (kind, _) in KINDS {
        let mut channel = Channel::new(kind, target(lab, kind));
        let done = runtime.block_on(async { tokio::time::timeout(LIMIT, channel.ask()).await });
        ensure!(matches!(done, Ok(Ok(()))), "{kind:?}: {done:?}");
    }
    Ok(())
}

fn target(lab: &Lab, kind: Kind) -> SocketAddr {
    let port = if matches!(kind, Kind::Bytes | Kind::Connections) { lab.tcp_port } else { lab.port };
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl Load {
    fn start(kind: Kind, target: SocketAddr, rate: u32) -> Self {
        let (stop, ok) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let failures: Arc<Mutex<BTreeMap<String, u64>>> = Arc::default();
        let (flag, count, failed) = (stop.clone(), ok.clone(), failures.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(pace(kind, target, rate, &flag, &count, &failed)))
        });
        Self { kind, stop, ok, failures, thread }
    }

    /// How it goes, in a few words.
    pub fn line(&self) -> String {
        let failed: u64 = self.failures.lock().unwrap_or_else(PoisonError::into_inner).values().sum();
        format!("{:?} {} ok {failed} failed  ", self.kind, self.ok.load(Ordering::Relaxed))
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it could not run at all.
    pub fn stop(self) -> Result<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        let slowest = self.thread.join().map_err(|_| anyhow::anyhow!("a load panicked"))??;
        let failures = std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Outcome { name: format!("{:?}", self.kind), ok: self.ok.load(Ordering::Relaxed), failures, slowest })
    }
}

/// Asks on schedule; a request that is late makes the next ones leave at once. The longest time of one.
async fn pace(
    kind: Kind,
    target: SocketAddr,
    rate: u32,
    stop: &AtomicBool,
    ok: &AtomicU64,
    failures: &Mutex<BTreeMap<String, u64>>,
) -> Duration {
    let mut channel = Channel::new(kind, target);
    let (mut due, mut slowest) = (Instant::now(), Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep_until(due.into()).await;
        due = (due + Duration::from_secs(1) / rate).max(Instant::now() - Duration::from_secs(1));
        let begun = Instant::now();
        let done = tokio::time::timeout(LIMIT, channel.ask()).await;
        match done.unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}"))) {
            Ok(()) => drop(ok.fetch_add(1, Ordering::Relaxed)),
            Err(why) => {
                *failures.lock().unwrap_or_else(PoisonError::into_inner).entry(why).or_default() += 1;
                channel = Channel::new(kind, target);
            }
        }
        slowest = slowest.max(begun.elapsed());
    }
    slowest
}

/// The connection of a load.
struct Channel {
    kind: Kind,
    target: SocketAddr,
    open: Open,
}

enum Open {
    None,
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
    Tcp(TcpStream),
}

impl Channel {
    fn new(kind: Kind, target: SocketAddr) -> Self {
        Self { kind, target, open: Open::None }
    }

    async fn ask(&mut self) -> Result<(), String> {
        let said = |what: &'static str| move |error: hyper::Error| format!("{what}: {error}");
        self.connect().await?;
        let response = match &mut self.open {
            Open::Http1(sender) => sender.send_request(request(self.kind)).await.map_err(said("request"))?,
            Open::Http2(sender) => sender.send_request(request(self.kind)).await.map_err(said("request"))?,
            Open::Tcp(stream) => {
                echoed(stream).await.map_err(|error| format!("bytes: {error}"))?;
                if self.kind == Kind::Connections {
                    self.open = Open::None;
                }
                return Ok(());
            }
            Open::None => return Err("not connected".into()),
        };
        let status = response.status();
        let body = response.into_body().collect().await.map_err(said("body"))?;
        let grpc = body.trailers().and_then(|t| t.get("grpc-status")).cloned();
        let bytes = body.to_bytes();
        if status != StatusCode::OK {
            return Err(format!("status {status}: {}", String::from_utf8_lossy(&bytes[..bytes.len().min(100)])));
        }
        match self.kind {
            Kind::Large if bytes.len() != LARGE => Err(format!("{} bytes instead of {LARGE}", bytes.len())),
            Kind::Grpc if grpc.as_ref().is_none_or(|status| status != "0") => Err(format!("grpc-status {grpc:?}")),
            _ => Ok(()),
        }
    }

    async fn connect(&mut self) -> Result<(), String> {
        let ready = match &mut self.open {
            Open::None => false,
            Open::Http1(sender) => sender.ready().await.is_ok(),
            Open::Http2(sender) => sender.ready().await.is_ok(),
            Open::Tcp(_) => true,
        };
        if ready {
            return Ok(());
        }
        let stream = TcpStream::connect(self.target).await.map_err(|error| format!("connect: {error}"))?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let failed = |error: hyper::Error| format!("handshake: {error}");
        self.open = match self.kind {
            Kind::Bytes | Kind::Connections => Open::Tcp(stream),
            Kind::Page | Kind::Large => {
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
                tokio::spawn(connection);
                Open::Http1(sender)
            }
            Kind::Http2 | Kind::Grpc => {
                let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
                let (sender, connection) = handshake.await.map_err(failed)?;
                tokio::spawn(connection);
                Open::Http2(sender)
            }
        };
        Ok(())
    }
}

/// A line there and back.
async fn echoed(stream: &mut TcpStream) -> std::io::Result<()> {
    let line = [b'x'; 512];
    stream.write_all(&line).await?;
    let mut back = [0; 512];
    stream.read_exact(&mut back).await?;
    if back == line { Ok(()) } else { Err(std::io::Error::other("other bytes came back")) }
}

fn request(kind: Kind) -> Request<Full<Bytes>> {
    let (host, path) = match kind {
        Kind::Page => ("bookinfo.example", "/productpage".to_string()),
        Kind::Large => ("soak.example", format!("/bytes/{LARGE}")),
        Kind::Grpc => ("soak.example", "/soak.Echo/Say".into()),
        Kind::Http2 | Kind::Bytes | Kind::Connections => ("soak.example", "/get".into()),
    };
    let body = if kind == Kind::Grpc { message(b"hello") } else { Bytes::new() };
    let mut request = Request::new(Full::new(body));
    let whole = matches!(kind, Kind::Http2 | Kind::Grpc);
    let uri = if whole { format!("http://{host}{path}") } else { path };
    *request.uri_mut() = uri.parse().unwrap_or_default();
    let headers = request.headers_mut();
    if !whole {
        headers.insert("host", http::HeaderValue::from_static(host));
    }
    if kind == Kind::Grpc {
        *request.method_mut() = http::Method::POST;
        let headers = request.headers_mut();
        headers.insert("content-type", http::HeaderValue::from_static("application/grpc"));
        headers.insert("te", http::HeaderValue::from_static("trailers"));
    }
    request
}
