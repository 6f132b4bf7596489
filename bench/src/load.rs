//! Load: closed (each stream asks again when it is answered) or at a constant rate (requests leave on schedule, and a late
//! answer counts from the time at which its request was due, so that a stall is not left out of the figures).

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::LocalSet;

/// Longest time that one answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// What to send.
#[derive(Clone)]
pub struct Plan {
    /// To whom.
    pub target: SocketAddr,
    /// HTTP/2 with prior knowledge instead of HTTP/1.1.
    pub http2: bool,
    /// Connections.
    pub connections: usize,
    /// Requests in flight on each connection; HTTP/1.1 has one.
    pub streams: usize,
    /// Path of each request.
    pub path: String,
    /// A gRPC call instead of a GET.
    pub grpc: bool,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// How long.
    pub duration: Duration,
    /// Requests per second over all connections; `None` = as fast as answers come.
    pub rate: Option<u32>,
}

/// What came of it.
pub struct Outcome {
    /// Requests answered with 200 (and `grpc-status: 0`).
    pub answered: u64,
    /// All others.
    pub failed: u64,
    /// Microseconds from when a request was due to its whole answer.
    pub latency: Histogram<u64>,
    /// Bytes of bodies received.
    pub bytes: u64,
    /// How long it ran.
    pub elapsed: Duration,
}

impl Outcome {
    fn new() -> Result<Self> {
        let latency = Histogram::new_with_bounds(1, 60_000_000, 3).context("histogram")?;
        Ok(Self { answered: 0, failed: 0, latency, bytes: 0, elapsed: Duration::ZERO })
    }

    fn add(&mut self, other: &Self) -> Result<()> {
        self.answered += other.answered;
        self.failed += other.failed;
        self.bytes += other.bytes;
        self.latency.add(&other.latency).context("histogram")
    }

    /// The latency that this share (0…100) of requests did not exceed.
    pub fn percentile(&self, share: f64) -> Duration {
        Duration::from_micros(self.latency.value_at_percentile(share))
    }
}

/// Runs it on this thread.
pub fn run(plan: &Plan) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, all(plan))
}

async fn all(plan: &Plan) -> Result<Outcome> {
    let mut senders = Vec::new();
    for _ in 0..plan.connections {
        senders.extend(connect(plan).await?);
    }
    let plan = Rc::new(plan.clone());
    let begun = Instant::now();
    let count = senders.len();
    let mut tasks = Vec::new();
    let paces = plan.rate.map(|rate| pace(rate, begun + plan.duration, count));
    let mut paces = paces.unwrap_or_default().into_iter();
    for sender in senders {
        tasks.push(tokio::task::spawn_local(stream(plan.clone(), sender, begun + plan.duration, paces.next())));
    }
    let mut outcome = Outcome::new()?;
    for task in tasks {
        outcome.add(&task.await??)?;
    }
    outcome.elapsed = begun.elapsed();
    if outcome.answered == 0 {
        bail!("no request to {} was answered with 200; {} failed", plan.target, outcome.failed);
    }
    Ok(outcome)
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// The streams of one new connection.
async fn connect(plan: &Plan) -> Result<Vec<Sender>> {
    let stream = TcpStream::connect(plan.target).await?;
    stream.set_nodelay(true)?;
    if !plan.http2 {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::task::spawn_local(connection);
        return Ok(vec![Sender::Http1(sender)]);
    }
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    Ok((0..plan.streams).map(|_| Sender::Http2(sender.clone())).collect())
}

/// Tells each of `count` streams in turn when its next request is due. A thread of its own: the runtime's timer counts
/// whole milliseconds.
fn pace(rate: u32, end: Instant, count: usize) -> Vec<UnboundedReceiver<Instant>> {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| unbounded_channel()).unzip();
    let begun = Instant::now();
    std::thread::spawn(move || {
        for (turn, sender) in (0_u32..).zip(senders.iter().cycle()) {
            let due = begun + Duration::from_secs(1) * turn / rate;
            if due >= end {
                return;
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            // A stream that has ended misses nothing.
            let _ = sender.send(due);
        }
    });
    receivers
}

/// One request after the other, as fast as they are answered or when they are due, until time is up.
async fn stream(
    plan: Rc<Plan>,
    mut sender: Sender,
    end: Instant,
    mut pace: Option<UnboundedReceiver<Instant>>,
) -> Result<Outcome> {
    let mut outcome = Outcome::new()?;
    loop {
        let due = match &mut pace {
            None => Some(Instant::now()),
            Some(pace) => pace.recv().await,
        };
        let Some(due) = due.filter(|due| *due < end) else { break };
        match tokio::time::timeout(ANSWER, ask(&plan, &mut sender)).await {
            Ok(Ok(bytes)) => {
                outcome.answered += 1;
                outcome.bytes += bytes;
                outcome.latency.saturating_record((due.elapsed().as_micros() as u64).max(1));
            }
            Ok(Err(_)) | Err(_) => {
                outcome.failed += 1;
                let Some(new) = connect(&plan).await?.pop() else { break };
                sender = new;
            }
        }
    }
    Ok(outcome)
}

/// One request; the bytes of its answer's body.
async fn ask(plan: &Plan, sender: &mut Sender) -> Result<u64> {
    let request = request(plan)?;
    let response = match sender {
        Sender::Http1(sender) => {
            sender.ready().await?;
            sender.send_request(request).await?
        }
        Sender::Http2(sender) => {
            sender.ready().await?;
            sender.send_request(request).await?
        }
    };
    if response.status() != StatusCode::OK {
        bail!("{}", response.status());
    }
    let mut body = response.into_body();
    let (mut bytes, mut grpc_ok) = (0, false);
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
        grpc_ok |= frame.trailers_ref().is_some_and(|trailers| trailers.get("grpc-status").is_some_and(|s| s == "0"));
    }
    if plan.grpc && !grpc_ok {
        bail!("grpc-status is not 0");
    }
    Ok(bytes)
}

fn request(plan: &Plan) -> Result<Request<Full<Bytes>>> {
    let uri = if plan.http2 { format!("http://app.example{}", plan.path) } else { plan.path.clone() };
    let mut builder = Request::builder().method(if plan.grpc { "POST" } else { "GET" }).uri(uri);
    if !plan.http2 {
        builder = builder.header("host", "app.example");
    }
    for (name, value) in &plan.headers {
        builder = builder.header(name, value);
    }
    if !plan.grpc {
        return Ok(builder.body(Full::default())?);
    }
    builder = builder.header("content-type", "application/grpc").header("te", "trailers");
    Ok(builder.body(Full::new(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1])))?)
}
