//! fortio: a client that shows one answer (`curl`) or makes load with so many connections (`load`), under the command line
//! and with the output that the circuit-breaking journey reads. Without a command it waits: a pod to run commands in.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::{Args as ClapArgs, Subcommand};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// Time for one request.
const LIMIT: Duration = Duration::from_secs(30);
const USER_AGENT: &str = "fortio.org/fortio-1.3.1";

#[derive(ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// One request: its answer with headers
    Curl(CurlArgs),
    /// Many requests, each connection's one after the other
    Load(LoadArgs),
    /// Wait for ever
    Server,
}

#[derive(ClapArgs)]
struct CurlArgs {
    /// Accepted: the answer is all that is shown
    #[arg(long)]
    quiet: bool,
    url: Uri,
}

#[derive(ClapArgs)]
struct LoadArgs {
    /// Connections
    #[arg(short, default_value_t = 4)]
    c: u32,
    /// Requests a second of all connections together; 0 = as many as they can
    #[arg(long, default_value_t = 8.0)]
    qps: f64,
    /// Requests in all
    #[arg(short, default_value_t = 100)]
    n: u64,
    /// `Warning` shows each answer that is no 200
    #[arg(long, default_value = "Info")]
    loglevel: String,
    /// Accepted: the answers are all that is shown
    #[arg(long)]
    quiet: bool,
    url: Uri,
}

/// The original's options have one dash: `-qps 0`, `-loglevel Warning`.
pub fn with_two_dashes(argument: String) -> String {
    let long = ["-qps", "-loglevel", "-quiet"].iter().any(|name| argument.split('=').next() == Some(name));
    if long { format!("-{argument}") } else { argument }
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Some(Command::Curl(args)) => curl(&args.url).await,
        Some(Command::Load(args)) => load(args).await,
        Some(Command::Server) | None => {
            weft_runtime::signal::stop().await?;
            Ok(())
        }
    }
}

async fn curl(url: &Uri) -> anyhow::Result<()> {
    let mut connection = connect(url).await?;
    let response = connection.send_request(request(url)?).await?;
    let (head, body) = response.into_parts();
    println!("{:?} {}", head.version, head.status);
    for (name, value) in &head.headers {
        println!("{name}: {}", String::from_utf8_lossy(value.as_bytes()));
    }
    print!("\n{}", String::from_utf8_lossy(&body.collect().await?.to_bytes()));
    Ok(())
}

async fn load(args: LoadArgs) -> anyhow::Result<()> {
    let args = Arc::new(args);
    let next = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let workers: Vec<_> =
        (0..args.c).map(|_| tokio::spawn(work(Arc::clone(&args), Arc::clone(&next), start))).collect();
    let (mut codes, mut sockets, mut busy) = (BTreeMap::<i32, u64>::new(), 0, Duration::ZERO);
    for worker in workers {
        let done = worker.await?;
        done.codes.iter().for_each(|(code, count)| *codes.entry(*code).or_default() += count);
        sockets += done.sockets;
        busy += done.busy;
    }
    println!("Sockets used: {sockets} (for perfect keepalive, would be {})", args.c);
    for (code, count) in &codes {
        println!("Code {code:3} : {count} ({:.1} %)", *count as f64 * 100.0 / args.n.max(1) as f64);
    }
    let average = busy.as_secs_f64() * 1000.0 / args.n.max(1) as f64;
    let rate = args.n as f64 / start.elapsed().as_secs_f64().max(1e-6);
    println!("All done {} calls (plus 0 warmup) {average:.3} ms avg, {rate:.1} qps", args.n);
    Ok(())
}

#[derive(Default)]
struct Done {
    /// Status codes; -1 for requests without an answer.
    codes: BTreeMap<i32, u64>,
    sockets: u64,
    busy: Duration,
}

async fn work(args: Arc<LoadArgs>, next: Arc<AtomicU64>, start: Instant) -> Done {
    let mut done = Done::default();
    let mut connection = None;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= args.n {
            return done;
        }
        if args.qps > 0.0 {
            let due = start + Duration::from_secs_f64(number as f64 / args.qps);
            tokio::time::sleep_until(due.into()).await;
        }
        let begun = Instant::now();
        let answer = tokio::time::timeout(LIMIT, one(&args.url, &mut connection, &mut done.sockets)).await;
        done.busy += begun.elapsed();
        let code = match answer {
            Ok(Ok(status)) => i32::from(status.as_u16()),
            _ => -1,
        };
        if code != 200 && args.loglevel == "Warning" {
            println!("W http_client.go] Parsed non ok code {code} (HTTP/1.1 {code})");
        }
        if code == -1 {
            connection = None;
        }
        *done.codes.entry(code).or_default() += 1;
    }
}

type Connection = SendRequest<Empty<Bytes>>;

async fn one(url: &Uri, kept: &mut Option<Connection>, sockets: &mut u64) -> anyhow::Result<StatusCode> {
    let mut ready = None;
    if let Some(mut connection) = kept.take() {
        ready = connection.ready().await.is_ok().then_some(connection);
    }
    let mut connection = match ready {
        Some(connection) => connection,
        None => {
            *sockets += 1;
            connect(url).await?
        }
    };
    let response = connection.send_request(request(url)?).await?;
    let status = response.status();
    response.into_body().collect().await?;
    *kept = Some(connection);
    Ok(status)
}

fn request(url: &Uri) -> anyhow::Result<Request<Empty<Bytes>>> {
    let host = url.authority().context("the URL needs a host")?.as_str();
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    Ok(Request::get(path).header("host", host).header("user-agent", USER_AGENT).body(Empty::new())?)
}

async fn connect(url: &Uri) -> anyhow::Result<Connection> {
    if url.scheme_str().is_some_and(|scheme| scheme != "http") {
        bail!("{url}: only http URLs are known");
    }
    let host = url.host().context("the URL needs a host")?;
    let stream = TcpStream::connect((host, url.port_u16().unwrap_or(80))).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}
