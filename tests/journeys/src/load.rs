//! Load at a constant rate: requests leave on schedule whether or not earlier ones have been answered, and each is either a
//! 200 or a failure with its reason.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time for one request.
const LIMIT: Duration = Duration::from_secs(10);

/// Requests a second: 500, or what `WEFT_RATE` says (a debug build on a busy machine does not serve so many).
pub fn rate() -> u32 {
    std::env::var("WEFT_RATE").ok().and_then(|rate| rate.parse().ok()).unwrap_or(500)
}

/// A load that runs until stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    worker: JoinHandle<Result<Report>>,
}

/// What came of a load.
#[derive(Debug, Default)]
pub struct Report {
    /// Requests sent.
    pub sent: u64,
    /// Answers with status 200.
    pub ok: u64,
    /// Failures: reason and how often.
    pub failures: BTreeMap<String, u64>,
    /// Time from schedule to answer, milliseconds, sorted.
    pub latencies: Vec<u32>,
    /// How long it ran.
    pub elapsed: Duration,
}

impl Report {
    /// The latency that `share` (0…1) of requests did not exceed, in milliseconds.
    pub fn percentile(&self, share: f64) -> u32 {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get((last as f64 * share) as usize).copied().unwrap_or_default()
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = self.sent as f64 / self.elapsed.as_secs_f64().max(0.001);
        write!(
            f,
            "{} requests at {rate:.0}/s, {} ok, failures {:?}, p50 {} ms, p99 {} ms",
            self.sent,
            self.ok,
            self.failures,
            self.percentile(0.5),
            self.percentile(0.99)
        )
    }
}

impl Load {
    /// Starts `rate` requests a second to `url`.
    pub fn start(url: &str, rate: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (url, flag) = (url.to_string(), Arc::clone(&stop));
        let worker = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            tokio::task::LocalSet::new().block_on(&runtime, run(url, rate, flag))
        });
        Self { stop, worker }
    }

    /// Stops the load, waits for what is under way, and reports.
    pub fn stop(self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        self.worker.join().map_err(|_| anyhow::anyhow!("the load panicked"))?
    }
}

/// Connections that wait for their next request.
type Idle = Rc<std::cell::RefCell<Vec<SendRequest<Empty<Bytes>>>>>;

async fn run(url: String, rate: u32, stop: Arc<AtomicBool>) -> Result<Report> {
    let uri: Uri = url.parse()?;
    let authority = uri.authority().context("URL without host")?.to_string();
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_string();
    let idle = Idle::default();
    let (results, mut done) = tokio::sync::mpsc::unbounded_channel::<(Result<(), String>, u32)>();
    let start = Instant::now();
    let mut report = Report::default();
    let pace = Duration::from_secs(1) / rate.max(1);
    while !stop.load(Ordering::Relaxed) {
        let due = start + pace * u32::try_from(report.sent).unwrap_or(u32::MAX);
        tokio::time::sleep_until(due.into()).await;
        report.sent += 1;
        let (idle, results, authority, path) = (idle.clone(), results.clone(), authority.clone(), path.clone());
        tokio::task::spawn_local(async move {
            let outcome = tokio::time::timeout(LIMIT, one(&idle, &authority, &path)).await;
            let outcome = outcome.unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}")));
            let millis = u32::try_from(due.elapsed().as_millis()).unwrap_or(u32::MAX);
            let _ = results.send((outcome, millis));
        });
    }
    report.elapsed = start.elapsed();
    drop(results);
    while let Some((outcome, millis)) = done.recv().await {
        report.latencies.push(millis);
        match outcome {
            Ok(()) => report.ok += 1,
            Err(reason) => *report.failures.entry(reason).or_default() += 1,
        }
    }
    report.latencies.sort_unstable();
    Ok(report)
}

async fn one(idle: &Idle, authority: &str, path: &str) -> Result<(), String> {
    let ready = loop {
        let next = idle.borrow_mut().pop();
        match next {
            Some(sender) if sender.is_closed() => {}
            other => break other,
        }
    };
    let mut sender = match ready {
        Some(sender) => sender,
        None => connect(authority).await.map_err(|e| format!("connect: {e}"))?,
    };
    sender.ready().await.map_err(|e| format!("connection: {e}"))?;
    let request = Request::get(path).header("host", authority).body(Empty::new()).map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| format!("request: {e}"))?;
    let status = response.status();
    let flags = response.headers().get("x-weft-reason").and_then(|v| v.to_str().ok()).map(str::to_string);
    let body = response.into_body().collect().await.map_err(|e| format!("body: {e}"))?.to_bytes();
    idle.borrow_mut().push(sender);
    if status != http::StatusCode::OK {
        let text: String = crate::lab::text(&body).chars().take(120).collect();
        return Err(format!("status {status} {} {text:?}", flags.unwrap_or_default()));
    }
    Ok(())
}

async fn connect(authority: &str) -> Result<SendRequest<Empty<Bytes>>> {
    let stream = tokio::net::TcpStream::connect(authority).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    Ok(sender)
}
