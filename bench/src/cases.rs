//! What is measured, in the order of the table. Each case starts its own pair, warms it up, measures, and ends it.

use crate::backend::Backend;
use crate::child::{Program, local};
use crate::config::{self, Features, Traffic};
use crate::load::{self, Outcome, Plan};
use crate::pair::{Pair, Peer, Programs};
use crate::pki::Pki;
use crate::report::Metric;
use crate::{control_plane, on_demand};
use anyhow::{Context as _, Result, bail};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use weft_tls::{ClientContext, ClientParams, ServerVerification};

const CPU: Metric = Metric { name: "CPU of both proxies", unit: "µs/request" };
const ADDED: Metric = Metric { name: "CPU that the policies add", unit: "µs/request" };
const RATE: Metric = Metric { name: "throughput", unit: "requests/s" };
const P50: Metric = Metric { name: "latency p50", unit: "ms" };
const P99: Metric = Metric { name: "latency p99", unit: "ms" };
const RSS: Metric = Metric { name: "memory of both proxies", unit: "MB" };
const GBIT: Metric = Metric { name: "bytes per CPU second of both", unit: "Gbit" };
const HANDSHAKES: Metric = Metric { name: "connections per CPU second", unit: "1/s" };
const PER_CONNECTION: Metric = Metric { name: "memory per open connection, both proxies", unit: "kB" };
const READY: Metric = Metric { name: "ready after", unit: "s" };
const RSS_ONE: Metric = Metric { name: "memory of one proxy", unit: "MB" };

const ALL: &[Peer] = &[Peer::Weft, Peer::Envoy, Peer::Haproxy, Peer::Nginx];
const NO_NGINX: &[Peer] = &[Peer::Weft, Peer::Envoy, Peer::Haproxy];
const ENVOY: &[Peer] = &[Peer::Weft, Peer::Envoy];
pub const OURS: &[Peer] = &[Peer::Weft];

pub const MESH: Features = Features {
    authorization: true,
    access_log: false,
    metrics: false,
    tracing: false,
    jwt: false,
    many_policies: false,
};

/// What a case runs with.
pub struct Bench {
    /// Files of this run.
    pub folder: PathBuf,
    /// Certificates of this run.
    pub pki: Pki,
    /// Programs measured.
    pub programs: Programs,
    /// The application.
    pub backend: Backend,
    /// Time of one measurement.
    pub duration: Duration,
    /// Sizes as in the goals; smaller otherwise.
    pub full: bool,
    /// Size of the simulated mesh.
    pub mesh: control_plane::Size,
}

pub type Figures = Vec<(Metric, f64)>;

/// One thing to measure.
pub struct Case {
    /// Its name, also for `--only`.
    pub name: &'static str,
    /// What it does, for the reader of the table.
    pub about: &'static str,
    /// Who can do it.
    pub peers: &'static [Peer],
    /// Measures one peer once.
    pub run: fn(&Bench, Peer) -> Result<Figures>,
}

/// All cases.
pub const CASES: &[Case] = &[
    Case {
        name: "http1",
        about: "HTTP/1.1, 64 connections, 131 bytes; authorization on.",
        peers: ALL,
        run: |bench, peer| http(bench, peer, Traffic::Http1, MESH, &closed(false, 64, 1)),
    },
    Case {
        name: "http1-plain-forwarding",
        about: "The same without authorization: what the features below are compared with.",
        peers: ENVOY,
        run: |bench, peer| http(bench, peer, Traffic::Http1, Features::default(), &closed(false, 64, 1)),
    },
    Case {
        name: "http1-metrics",
        about: "With `istio_requests_total`, its sizes and its durations on both sides.",
        peers: OURS,
        run: |bench, peer| {
            let features = Features { metrics: true, ..MESH };
            http(bench, peer, Traffic::Http1, features, &closed(false, 64, 1))
        },
    },
    Case {
        name: "http1-access-log",
        about: "With an access log line on both sides.",
        peers: ENVOY,
        run: |bench, peer| {
            let features = Features { access_log: true, ..MESH };
            http(bench, peer, Traffic::Http1, features, &closed(false, 64, 1))
        },
    },
    Case {
        name: "http1-tracing",
        about: "With a span of Zipkin's for one request of a hundred on both sides.",
        peers: ENVOY,
        run: |bench, peer| {
            let features = Features { tracing: true, ..MESH };
            http(bench, peer, Traffic::Http1, features, &closed(false, 64, 1))
        },
    },
    Case {
        name: "http1-jwt",
        about: "With a JSON Web Token (RS256) checked for each request.",
        peers: ENVOY,
        run: |bench, peer| {
            let token = format!("Bearer {}", crate::jwt::token(&bench.folder)?);
            let plan = Plan { headers: vec![("authorization".into(), token)], ..closed(false, 64, 1) };
            http(bench, peer, Traffic::Http1, Features { jwt: true, ..MESH }, &plan)
        },
    },
    Case {
        name: "http1-1000-policies",
        about: "With 1000 policies of 10 rules each on the server's side, beside one policy of one rule.",
        peers: ENVOY,
        run: many_policies,
    },
    Case {
        name: "http2",
        about: "HTTP/2 all the way, 4 connections with 16 streams each.",
        peers: NO_NGINX,
        run: |bench, peer| http(bench, peer, Traffic::Http2, MESH, &closed(true, 4, 16)),
    },
    Case {
        name: "grpc",
        about: "gRPC unary calls, 4 connections with 16 streams each.",
        peers: NO_NGINX,
        run: |bench, peer| {
            let plan = Plan { grpc: true, path: "/bench.Echo/Say".into(), ..closed(true, 4, 16) };
            http(bench, peer, Traffic::Http2, MESH, &plan)
        },
    },
    Case {
        name: "large-bodies",
        about: "HTTP/1.1 answers of 1 MB, 8 connections.",
        peers: ALL,
        run: |bench, peer| {
            let plan = Plan { path: "/bytes/1048576".into(), ..closed(false, 8, 1) };
            http(bench, peer, Traffic::Http1, MESH, &plan)
        },
    },
    Case {
        name: "latency",
        about: "HTTP/1.1 at 1000 requests/s on 16 connections; a late answer counts from when its request was due.",
        peers: ALL,
        run: |bench, peer| http(bench, peer, Traffic::Http1, MESH, &Plan { rate: Some(1000), ..closed(false, 16, 1) }),
    },
    Case {
        name: "tcp-1",
        about: "Bytes over one connection.",
        peers: NO_NGINX,
        run: |bench, peer| tcp(bench, peer, 1),
    },
    Case {
        name: "tcp-16",
        about: "Bytes over 16 connections.",
        peers: NO_NGINX,
        run: |bench, peer| tcp(bench, peer, 16),
    },
    Case {
        name: "handshakes",
        about: "New mutual TLS connections to the server's side, one request each.",
        peers: ALL,
        run: handshakes,
    },
    Case { name: "idle", about: "Keep-alive connections, open and idle.", peers: ALL, run: idle },
    Case {
        name: "configuration",
        about: "Services in the configuration, each a cluster with mutual TLS and 3 endpoints, and a virtual host.",
        peers: ENVOY,
        run: configuration,
    },
    Case {
        name: "control-plane",
        about: "weftd with simulated proxies that subscribe to everything: 1000 services and 500 proxies (with --quick 300 \
                and 60); choose with --services and --proxies.",
        peers: OURS,
        run: |bench, _| control_plane::run(bench.mesh),
    },
    Case {
        name: "on-demand",
        about: "weftd and one proxy in a mesh of 100, 1000 and 10 000 services (with --quick up to 1000), of which 20 are called: \
                with all of the configuration, and with what is used alone.",
        peers: OURS,
        run: |bench, _| {
            let largest = on_demand::SIZES.into_iter().rev().find(|size| bench.full || *size <= 1000).unwrap_or(100);
            on_demand::run(&bench.programs.weft, &bench.folder, bench.backend.http, largest)
        },
    },
];

pub fn closed(http2: bool, connections: usize, streams: usize) -> Plan {
    Plan {
        target: local(0),
        http2,
        connections,
        streams,
        path: "/".into(),
        grpc: false,
        headers: Vec::new(),
        duration: Duration::ZERO,
        rate: None,
    }
}

fn http(bench: &Bench, peer: Peer, traffic: Traffic, features: Features, plan: &Plan) -> Result<Figures> {
    let pair = Pair::start(&bench.programs, peer, &bench.folder, bench.backend.http, traffic, features)?;
    let target = local(pair.ports.entry);
    let warm = Plan { target, duration: Duration::from_millis(500), ..plan.clone() };
    load::run(&warm).context("warm-up")?;
    let before = pair.cpu()?;
    let outcome = load::run(&Plan { target, duration: bench.duration, ..plan.clone() })?;
    let cpu = pair.cpu()? - before;
    if outcome.failed > 0 {
        bail!("{} of {} requests failed", outcome.failed, outcome.failed + outcome.answered);
    }
    Ok(figures(&outcome, cpu, pair.resident()?, plan.rate.is_none()))
}

/// The same requests with few and with many policies; what the many add.
fn many_policies(bench: &Bench, peer: Peer) -> Result<Figures> {
    let plan = closed(false, 64, 1);
    let cpu = |figures: &Figures| figures.iter().find(|(metric, _)| metric.name == CPU.name).map_or(0.0, |(_, n)| *n);
    let few = http(bench, peer, Traffic::Http1, MESH, &plan)?;
    let mut many = http(bench, peer, Traffic::Http1, Features { many_policies: true, ..MESH }, &plan)?;
    many.push((ADDED, cpu(&many) - cpu(&few)));
    Ok(many)
}

fn figures(outcome: &Outcome, cpu: Duration, resident: u64, closed: bool) -> Figures {
    let milliseconds = |share| outcome.percentile(share).as_secs_f64() * 1e3;
    let mut figures = vec![
        (CPU, cpu.as_secs_f64() * 1e6 / outcome.answered as f64),
        (P50, milliseconds(50.0)),
        (P99, milliseconds(99.0)),
        (RSS, resident as f64 / 1e6),
    ];
    if closed {
        figures.push((RATE, outcome.answered as f64 / outcome.elapsed.as_secs_f64()));
    }
    figures
}

fn tcp(bench: &Bench, peer: Peer, streams: usize) -> Result<Figures> {
    let pair =
        Pair::start(&bench.programs, peer, &bench.folder, bench.backend.sink, Traffic::Tcp, Features::default())?;
    let (before, bytes) = (pair.cpu()?, bench.backend.received.load(Ordering::Relaxed));
    let end = Instant::now() + bench.duration;
    let writers: Vec<_> =
        (0..streams).map(|_| std::thread::spawn(move || write_until(local(pair.ports.entry), end))).collect();
    for writer in writers {
        writer.join().map_err(|_| anyhow::anyhow!("a writer ended badly"))??;
    }
    let bytes = bench.backend.received.load(Ordering::Relaxed) - bytes;
    let cpu = pair.cpu()? - before;
    if bytes == 0 {
        bail!("no byte came through");
    }
    Ok(vec![(GBIT, bytes as f64 * 8.0 / 1e9 / cpu.as_secs_f64()), (RSS, pair.resident()? as f64 / 1e6)])
}

fn write_until(target: SocketAddr, end: Instant) -> Result<()> {
    let mut stream = TcpStream::connect(target)?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let chunk = vec![b'w'; 128 * 1024];
    while Instant::now() < end {
        stream.write_all(&chunk)?;
    }
    Ok(())
}

fn handshakes(bench: &Bench, peer: Peer) -> Result<Figures> {
    let traffic = Traffic::Http1;
    let pair = Pair::start(&bench.programs, peer, &bench.folder, bench.backend.http, traffic, MESH)?;
    let verification = ServerVerification::Chain { anchors: bench.pki.anchors.clone(), san: None };
    let mut params = ClientParams::new(verification);
    params.certificate = Some(bench.pki.client.clone());
    params.alpn = vec![b"http/1.1".to_vec()];
    let target = local(pair.ports.tls);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let before = pair.server_cpu()?;
    let end = Instant::now() + bench.duration;
    let mut count = 0_u32;
    while Instant::now() < end {
        // A context of its own each time: no session is resumed.
        let context = ClientContext::build(params.clone())?;
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), one(&context, target)).await })??;
        count += 1;
    }
    let cpu = pair.server_cpu()? - before;
    Ok(vec![(HANDSHAKES, f64::from(count) / cpu.as_secs_f64())])
}

async fn one(context: &ClientContext, target: SocketAddr) -> Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let stream = tokio::net::TcpStream::connect(target).await?;
    let mut stream = context.connect(stream).await.map_err(|error| anyhow::anyhow!("{error}"))?.stream;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: app.example\r\nconnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    // A peer may close without a TLS goodbye.
    let _ = stream.read_to_end(&mut answer).await;
    if !answer.starts_with(b"HTTP/1.1 200") {
        bail!("{}", String::from_utf8_lossy(&answer[..answer.len().min(80)]));
    }
    Ok(())
}

/// Opens connections that were used once, and looks at what they cost.
fn idle(bench: &Bench, peer: Peer) -> Result<Figures> {
    let count = if bench.full { 20_000.min(bench.programs.files - 1000) } else { 1000 };
    let traffic = Traffic::Http1;
    let pair = Pair::start(&bench.programs, peer, &bench.folder, bench.backend.http, traffic, MESH)?;
    let open = || -> Result<TcpStream> {
        let mut stream = TcpStream::connect(local(pair.ports.entry))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: app.example\r\n\r\n")?;
        let mut answer = [0; 4096];
        let length = stream.read(&mut answer)?;
        if !answer[..length].starts_with(b"HTTP/1.1 200") {
            bail!("connection refused by the proxy");
        }
        Ok(stream)
    };
    let mut connections = vec![open()?];
    let before = pair.resident()?;
    for _ in 1..count {
        connections.push(open()?);
    }
    let grown = pair.resident()?.saturating_sub(before);
    Ok(vec![(PER_CONNECTION, grown as f64 / 1e3 / count as f64), (RSS, pair.resident()? as f64 / 1e6)])
}

fn configuration(bench: &Bench, peer: Peer) -> Result<Figures> {
    let count = if bench.full { 5000 } else { 1000 };
    let port = weft_test_ports::free_port();
    let file = bench.folder.join(format!("{}-services.json", peer.name()));
    std::fs::write(&file, config::services(&bench.folder, port, count).to_string())?;
    let begun = Instant::now();
    let mut program =
        Program::start(&format!("{}-services", peer.name()), &bench.folder, &mut bench.programs.run(peer, &file))?;
    program.until_listening(local(port))?;
    // It answers by its routes: the host is none of them.
    let mut stream = TcpStream::connect(local(port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: nobody.example\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let ready = begun.elapsed();
    if !answer.starts_with("HTTP/1.1 404") {
        bail!("expected 404 for an unknown host, got {answer:.40}");
    }
    // What a start needed is given back soon after.
    std::thread::sleep(Duration::from_secs(1));
    Ok(vec![(READY, ready.as_secs_f64()), (RSS_ONE, program.resident()? as f64 / 1e6)])
}
