//! What a proxy costs in a mesh of 100, 1000 and 10 000 services, with all of the configuration and with what it uses alone
//! (`weft.dev/on-demand`): weftd as users get it, one real proxy, and requests to twenty services.
//!
//! Requests come to a listener of a Sidecar with a socket of its own, so that nothing has to be redirected.

use crate::child::Program;
use crate::report::Metric;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use weft_kube_tests::{Cluster, Kind, Weftd, http, proxy};
use weft_store::client::WriteOptions;

/// Services that the application calls.
const USED: usize = 20;
/// Requests to services that were called before.
const WARM: usize = 200;
/// Objects created at the same time.
const WRITERS: usize = 16;
/// Longest time until a proxy is ready.
const READY: Duration = Duration::from_secs(120);
const NAMESPACE: &str = "calls";

/// Sizes of the mesh, smallest first.
pub const SIZES: [usize; 3] = [100, 1000, 10_000];

const FIGURES: [[[Metric; 3]; 2]; 3] = [
    [
        figures("all of 100 services: memory", "all of 100 services: bytes received", "all of 100 services: ready"),
        figures(
            "on demand, 100 services: memory",
            "on demand, 100 services: bytes received",
            "on demand, 100 services: ready",
        ),
    ],
    [
        figures("all of 1000 services: memory", "all of 1000 services: bytes received", "all of 1000 services: ready"),
        figures(
            "on demand, 1000 services: memory",
            "on demand, 1000 services: bytes received",
            "on demand, 1000 services: ready",
        ),
    ],
    [
        figures(
            "all of 10 000 services: memory",
            "all of 10 000 services: bytes received",
            "all of 10 000 services: ready",
        ),
        figures(
            "on demand, 10 000 services: memory",
            "on demand, 10 000 services: bytes received",
            "on demand, 10 000 services: ready",
        ),
    ],
];
const FIRST: Metric = Metric { name: "first request to a service, on demand, median", unit: "ms" };
const KNOWN: Metric = Metric { name: "further requests, on demand, median", unit: "ms" };

const fn figures(memory: &'static str, bytes: &'static str, ready: &'static str) -> [Metric; 3] {
    [Metric { name: memory, unit: "MB" }, Metric { name: bytes, unit: "kB" }, Metric { name: ready, unit: "s" }]
}

/// Measures all of it once, in meshes of the sizes up to `largest`.
pub fn run(program: &Path, folder: &Path, backend: u16, largest: usize) -> Result<Vec<(Metric, f64)>> {
    let measured = measure(program, folder, backend, largest);
    tokio::runtime::Runtime::new()?.block_on(measured)
}

async fn measure(program: &Path, folder: &Path, backend: u16, largest: usize) -> Result<Vec<(Metric, f64)>> {
    let cluster = Cluster::start(Kind::Embedded).await?;
    let ports = Ports::free();
    prepare(&cluster, &ports).await?;
    let weftd = Weftd::start(&cluster, "weftd").await?;
    let (mut all, mut there, mut latencies) = (Vec::new(), 0, None);
    for (size, names) in SIZES.into_iter().zip(FIGURES).filter(|(size, _)| *size <= largest) {
        fill(&cluster, there..size, &ports, backend).await?;
        there = size;
        known(&weftd, size).await?;
        for (on_demand, names) in [false, true].into_iter().zip(names) {
            let relay = Relay::start(weftd.secure)?;
            let proxy = Proxy::start(program, folder, &cluster, &ports, &relay, on_demand).await?;
            let [memory, bytes, ready] = names;
            let (first, warm) = proxy.use_some(ports.calls)?;
            all.push((memory, proxy.program.resident()? as f64 / 1e6));
            all.push((bytes, relay.received.load(Relaxed) as f64 / 1e3));
            all.push((ready, proxy.ready.as_secs_f64()));
            if on_demand {
                latencies = Some((first, warm));
            }
        }
    }
    let (first, warm) = latencies.context("no size was measured")?;
    all.extend([(FIRST, first), (KNOWN, warm)]);
    Ok(all)
}

/// Ports of the proxy, which must be others than those of a proxy that runs on this machine.
struct Ports {
    calls: u16,
    outbound: u16,
    inbound: u16,
    agent: [u16; 4],
}

impl Ports {
    fn free() -> Self {
        let port = weft_test_ports::free_port;
        Self { calls: port(), outbound: port(), inbound: port(), agent: std::array::from_fn(|_| port()) }
    }
}

/// The namespace of the caller, whose calls go to a socket; and the mesh's ports.
async fn prepare(cluster: &Cluster, ports: &Ports) -> Result<()> {
    cluster.namespace(NAMESPACE, &[]).await?;
    let mesh = format!("proxyListenPort: {}\nproxyInboundListenPort: {}\n", ports.outbound, ports.inbound);
    cluster
        .apply_value(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-system"},
            "data": {"mesh": mesh},
        }))
        .await?;
    let listener = json!({
        "port": {"number": ports.calls, "protocol": "HTTP", "name": "http"},
        "bind": "127.0.0.1", "captureMode": "NONE", "hosts": ["*/*"],
    });
    cluster
        .create(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "Sidecar",
            "metadata": {"name": "default", "namespace": NAMESPACE}, "spec": {"egress": [listener]},
        }))
        .await?;
    Ok(())
}

fn host(index: usize) -> String {
    format!("service-{index}.mesh.example")
}

/// Services with three endpoints each; those that are called lead to the application.
async fn fill(cluster: &Cluster, which: std::ops::Range<usize>, ports: &Ports, backend: u16) -> Result<()> {
    let entry = move |index: usize, port: u16| -> Value {
        let endpoints: Vec<Value> = match index < USED {
            true => vec![json!({"address": "127.0.0.1", "ports": {"http": backend}})],
            false => (0..3).map(|n| json!({"address": weft_kube_tests::objects::address(3 * index + n)})).collect(),
        };
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": {"name": format!("service-{index}"), "namespace": "default"},
            "spec": {
                "hosts": [host(index)], "location": "MESH_EXTERNAL", "resolution": "STATIC",
                "ports": [{"number": port, "name": "http", "protocol": "HTTP"}], "endpoints": endpoints,
            },
        })
    };
    let mut tasks = JoinSet::new();
    for first in 0..WRITERS {
        let (client, port, which) = (cluster.client.clone(), ports.calls, which.clone());
        tasks.spawn(async move {
            for index in which.skip(first).step_by(WRITERS) {
                client.create(&serde_json::from_value(entry(index, port))?, &WriteOptions::default()).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Waits until weftd knows all services.
async fn known(weftd: &Weftd, size: usize) -> Result<()> {
    let end = Instant::now() + READY;
    while weftd.metric("pilot_services").await? < size as f64 {
        ensure!(Instant::now() < end, "weftd does not know {size} services within {READY:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Stands between proxy and control plane, and counts what comes from there.
struct Relay {
    port: u16,
    received: Arc<AtomicU64>,
}

impl Relay {
    fn start(to: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (port, received) = (listener.local_addr()?.port(), Arc::new(AtomicU64::new(0)));
        let count = received.clone();
        // Ends with this program: a few threads for each proxy that was measured.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let (Ok(up), Ok(back)) = (client.try_clone(), server.try_clone()) else { continue };
                std::thread::spawn(move || pass(up, server, &AtomicU64::new(0)));
                let count = count.clone();
                std::thread::spawn(move || pass(back, client, &count));
            }
        });
        Ok(Self { port, received })
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length) = from.read(&mut buffer) {
        count.fetch_add(length as u64, Relaxed);
        if length == 0 || to.write_all(buffer.get(..length).unwrap_or_default()).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

struct Proxy {
    program: Program,
    /// Time from its start.
    ready: Duration,
}

impl Proxy {
    async fn start(
        program: &Path,
        folder: &Path,
        cluster: &Cluster,
        ports: &Ports,
        relay: &Relay,
        on_demand: bool,
    ) -> Result<Self> {
        let folder = folder.join(format!("on-demand-{}-{on_demand}", relay.port));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("root.pem"), proxy::root(cluster, NAMESPACE).await?)?;
        std::fs::write(folder.join("token"), cluster.token(NAMESPACE, "default", &["istio-ca"]).await?)?;
        let [admin, status, readiness, metrics] = ports.agent;
        let config = json!({
            "discoveryAddress": format!("127.0.0.1:{}", relay.port), "statusPort": status, "proxyAdminPort": admin,
            "concurrency": 1,
        });
        let mut command = Command::new(program);
        command.args(["proxy", "sidecar", "--domain", &format!("{NAMESPACE}.svc.cluster.local")]).env_clear().envs([
            ("POD_NAME", "caller"),
            ("POD_NAMESPACE", NAMESPACE),
            ("SERVICE_ACCOUNT", "default"),
            ("INSTANCE_IP", "127.0.0.1"),
            ("PROXY_CONFIG", &config.to_string()),
            ("ENVOY_STATUS_PORT", &readiness.to_string()),
            ("ENVOY_PROMETHEUS_PORT", &metrics.to_string()),
            ("ISTIO_META_WEFT_ON_DEMAND", if on_demand { "true" } else { "false" }),
        ]);
        for (name, file) in [("WEFT_ROOT_CERT", "root.pem"), ("WEFT_TOKEN", "token"), ("WEFT_SDS_SOCKET", "sds.sock")] {
            command.env(name, folder.join(file));
        }
        let begun = Instant::now();
        let program = Program::start("weft-proxy", &folder, &mut command)?;
        while http::get(readiness, "/healthz/ready").await.map_or(0, |(status, _)| status) != 200 {
            if begun.elapsed() > READY {
                let log = std::fs::read_to_string(folder.join("weft-proxy.log")).unwrap_or_default();
                bail!("the proxy is not ready within {READY:?}:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(Self { program, ready: begun.elapsed() })
    }

    /// Calls some services: milliseconds of the first request to each, and of further ones (medians).
    fn use_some(&self, port: u16) -> Result<(f64, f64)> {
        let mut connection = Connection::open(port).or_else(|_| {
            // What made it ready was on its way to the sockets still.
            std::thread::sleep(Duration::from_millis(200));
            Connection::open(port)
        })?;
        let first: Vec<Duration> = (0..USED).map(|index| connection.get(&host(index))).collect::<Result<_>>()?;
        let warm: Vec<Duration> = (0..WARM).map(|n| connection.get(&host(n % USED))).collect::<Result<_>>()?;
        Ok((median(first), median(warm)))
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// A client's connection, HTTP/1.1.
struct Connection(TcpStream);

impl Connection {
    fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self(stream))
    }

    /// One request, which must be answered with 200; how long that took.
    fn get(&mut self, host: &str) -> Result<Duration> {
        let begun = Instant::now();
        write!(self.0, "GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")?;
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let length = self.0.read(&mut buffer).with_context(|| format!("no answer for {host}"))?;
            ensure!(length > 0, "the proxy closed the connection at the request for {host}");
            answer.extend_from_slice(buffer.get(..length).unwrap_or_default());
            if complete(&answer) {
                break;
            }
        }
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "{host}: {}", String::from_utf8_lossy(&answer));
        Ok(begun.elapsed())
    }
}

/// The head and as much body as it announces are there.
fn complete(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    body.len() >= length.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole() {
        for (answer, whole) in [
            ("HTTP/1.1 200 OK\r\n", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", false),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", true),
            ("HTTP/1.1 204 No\r\n\r\n", true),
        ] {
            assert_eq!(complete(answer.as_bytes()), whole, "{answer:?}");
        }
    }
}
