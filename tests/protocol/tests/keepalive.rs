//! No 503 by race: servers that close connections at once, after a moment, and after a few requests, under 1000 requests a
//! second. A connection that is about to be closed carries no request that could not be sent again, and one that the server
//! has not seen is sent again.
//!
//! Each case runs for 3 s; with `WEFT_LONG=1` for a minute, as the promise has it, and then release programs
//! (`WEFT_BIN_DIR=…/release`) must reach the whole rate.
#![allow(clippy::expect_used)]

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use weft_protocol_tests::proxy::Proxy;
use weft_test_ports::free_port;

/// Requests a second.
const RATE: u64 = 1000;
/// Connections to the proxy.
const CLIENTS: u64 = 8;

/// How long after its end a load goes on for what it owes.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it goes on for what it owes at least, on a machine that has no time for it.
const LAST: Duration = Duration::from_secs(60);

fn is_long() -> bool {
    std::env::var_os("WEFT_LONG").is_some()
}

fn seconds() -> Duration {
    Duration::from_secs(if is_long() { 60 } else { 3 })
}

/// A server in a process of its own; killed with the value.
struct Server {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(folder: tempfile::TempDir, port: u16, command: &mut Command) -> Result<Self> {
        let log = std::fs::File::create(folder.path().join("log"))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let child = child.with_context(|| format!("{command:?}"))?;
        let mut server = Self { child, port, _folder: folder };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = || std::fs::read_to_string(server._folder.path().join("log")).unwrap_or_default();
            ensure!(begun.elapsed() < Duration::from_secs(30), "{command:?} does not listen: {}", log());
            if let Some(status) = server.child.try_wait()? {
                anyhow::bail!("{command:?} ended: {status}: {}", log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// nginx: connections end after a second without a request, and after `requests` requests.
    fn nginx(requests: u32) -> Result<Self> {
        let (folder, port) = (tempfile::tempdir()?, free_port());
        let config = format!(
            "daemon off; master_process off; pid {0}/pid; error_log {0}/error crit; events {{ worker_connections 1024; }}
             http {{ access_log off; client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0};
                     uwsgi_temp_path {0}; scgi_temp_path {0};
                     server {{ listen 127.0.0.1:{port}; keepalive_timeout 1s; keepalive_requests {requests};
                               location / {{ return 200 'ok'; }} }} }}",
            folder.path().display()
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, config)?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&file).arg("-p").arg(folder.path());
        Self::start(folder, port, &mut command)
    }

    /// asyncio of Python: a connection on which no further request comes is closed after `idle`, as node and uvicorn close
    /// theirs: counted from the answer, and without a word before it.
    fn python(idle: Duration) -> Result<Self> {
        let (folder, port) = (tempfile::tempdir()?, free_port());
        let file = folder.path().join("server.py");
        std::fs::write(&file, PYTHON)?;
        let mut command = Command::new("python3");
        command.arg(&file).arg(port.to_string()).arg(idle.as_secs_f64().to_string());
        Self::start(folder, port, &mut command)
    }

    /// node's own HTTP server: connections end `idle` ms after an answer. Where `says_so`, its answers carry the hint
    /// `keep-alive: timeout=…`, as they do unless the application sets `connection` itself.
    fn node(idle: u32, says_so: bool) -> Result<Self> {
        let (folder, port) = (tempfile::tempdir()?, free_port());
        let headers = if says_so { "{'content-length': 2}" } else { "{'content-length': 2, connection: 'keep-alive'}" };
        // Newer versions close a second later than they say, unless told not to.
        let script = format!(
            "const server = require('http').createServer((_, answer) => {{ answer.writeHead(200, {headers}); answer.end('ok'); }});
             server.keepAliveTimeout = {idle}; server.keepAliveTimeoutBuffer = 0; server.listen({port}, '127.0.0.1');"
        );
        let mut command = Command::new("node");
        command.arg("-e").arg(script);
        Self::start(folder, port, &mut command)
    }

    /// haproxy answers by itself; connections end `idle` ms after an answer.
    fn haproxy(idle: u32) -> Result<Self> {
        let (folder, port) = (tempfile::tempdir()?, free_port());
        let config = format!(
            "global\n  nbthread 1\ndefaults\n  mode http\n  timeout client 30s\n  timeout http-request 30s
             timeout http-keep-alive {idle}ms\nfrontend f\n  bind 127.0.0.1:{port}
  http-request return status 200 content-type text/plain string ok\n"
        );
        let file = folder.path().join("haproxy.cfg");
        std::fs::write(&file, config)?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&file);
        Self::start(folder, port, &mut command)
    }
}

const PYTHON: &str = r#"
import asyncio, sys
port, idle = int(sys.argv[1]), float(sys.argv[2])
async def serve(reader, writer):
    limit = 10
    try:
        while True:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), limit)
            limit = idle
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            if length:
                await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            await writer.drain()
    except (asyncio.TimeoutError, asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    await server.serve_forever()
asyncio.run(main())
"#;

/// Statuses and failures, and how often.
type Tally = Arc<Mutex<BTreeMap<String, u64>>>;

/// Requests at [`RATE`], in bursts, so that connections to the server lie idle between them for about as long as it keeps
/// them. The schedule does not wait for answers: who is late catches up without pauses.
fn load(proxy: SocketAddr, pause: Duration, request: &str) -> Result<BTreeMap<String, u64>> {
    let tally = Tally::default();
    let begun = Instant::now();
    let end = begun + seconds();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let tally = tally.clone();
            scope.spawn(move || {
                let mut connection: Option<BufReader<TcpStream>> = None;
                let mut done = 0;
                loop {
                    // The last burst is that of the end, so that none is missing from the schedule.
                    let now = Instant::now().min(end);
                    let due = u64::try_from((now - begun).as_micros()).unwrap_or(u64::MAX) * RATE / CLIENTS / 1_000_000;
                    if done >= due {
                        if now == end {
                            return;
                        }
                        let pause = pause + Duration::from_micros((client * 7919 + done * 104_729) % 3000);
                        std::thread::sleep(pause.min(end - now));
                        continue;
                    }
                    // A machine that is far behind is not made to catch up for minutes.
                    if end.elapsed() > PATIENCE && (done >= least() / CLIENTS || end.elapsed() > LAST) {
                        return;
                    }
                    let outcome = one(proxy, &mut connection, request);
                    let word = outcome.unwrap_or_else(|error| {
                        connection = None;
                        format!("failed: {error:#}")
                    });
                    *tally.lock().expect("no thread panics with it").entry(word).or_default() += 1;
                    done += 1;
                }
            });
        }
    });
    let tally = tally.lock().expect("no thread panics with it").clone();
    Ok(tally)
}

/// Requests that a case must have made. Debug programs, or a loaded machine, do not reach the rate; what they do must race all
/// the same.
fn least() -> u64 {
    let due = RATE * seconds().as_secs() / CLIENTS * CLIENTS;
    if Proxy::is_optimised() && is_long() { due } else { due / 10 / CLIENTS * CLIENTS }
}

/// One request on a connection that is kept; the status and the reason.
fn one(proxy: SocketAddr, connection: &mut Option<BufReader<TcpStream>>, request: &str) -> Result<String> {
    let reader = match connection {
        Some(reader) => reader,
        None => {
            let stream = TcpStream::connect(proxy)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            connection.insert(BufReader::new(stream))
        }
    };
    reader.get_mut().write_all(request.as_bytes())?;
    let (mut status, mut length) = (String::new(), 0);
    reader.read_line(&mut status)?;
    ensure!(!status.is_empty(), "closed without an answer");
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let header = header.trim_end().to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        if header.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let status = status.split(' ').nth(1).unwrap_or_default().to_string();
    Ok(if status == "200" { status } else { format!("{status}: {}", String::from_utf8_lossy(&body)) })
}

fn without_a_503(case: &str, server: &Server, pause: Duration) -> Result<()> {
    let retries = json!({"route_config": {"name": "r", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
        {"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s", "retry_policy": {
            "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes", "num_retries": 2}}}]}]}});
    let proxy = Proxy::start(server.port, &retries)?;
    let begun = Instant::now();
    let tally = load(proxy.address(), pause, "GET / HTTP/1.1\r\nhost: a\r\n\r\n")?;
    let elapsed = begun.elapsed();
    let all: u64 = tally.values().sum();
    let stat = |name: &str| proxy.cluster_stat(name);
    let (retries, sent) = (stat("upstream_rq_retry")?, stat("upstream_rq_total")?);
    let (made, ended) = (stat("upstream_cx_total")?, stat("upstream_cx_destroy_remote")?);
    let failed: u64 = tally.iter().filter(|(word, _)| word.starts_with("503")).map(|(_, count)| count).sum();
    println!(
        "{case}: {all} requests in {:.1} s ({:.0}/s), {failed} answered 503, {retries} retries, {} sent again on another \
         connection, {made} connections of which the server ended {ended} unasked; {tally:?}",
        elapsed.as_secs_f64(),
        all as f64 / elapsed.as_secs_f64(),
        sent.saturating_sub(all + retries),
    );
    ensure!(tally.len() == 1 && tally.contains_key("200"), "{case}: {tally:?}");
    ensure!(made > 1, "{case}: the server has closed no connection");
    ensure!(all >= least(), "{case}: {all} requests; {} were due", least());
    Ok(())
}

/// One at a time: the rate is for one server alone.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn nginx_that_closes_after_a_few_requests() -> Result<()> {
    let _alone = alone();
    without_a_503("nginx, 5 requests a connection", &Server::nginx(5)?, Duration::from_millis(1))
}

#[test]
fn nginx_that_closes_idle_connections() -> Result<()> {
    let _alone = alone();
    without_a_503("nginx, 1 s idle", &Server::nginx(100_000)?, Duration::from_millis(997))
}

#[test]
fn a_python_server_that_closes_without_a_word() -> Result<()> {
    let _alone = alone();
    without_a_503("asyncio, 5 ms idle", &Server::python(Duration::from_millis(5))?, Duration::from_millis(4))?;
    without_a_503("asyncio, 50 ms idle", &Server::python(Duration::from_millis(50))?, Duration::from_millis(49))
}

#[test]
fn a_node_server_that_closes_without_a_word() -> Result<()> {
    let _alone = alone();
    without_a_503("node, 5 ms idle", &Server::node(5, false)?, Duration::from_millis(4))?;
    without_a_503("node, 50 ms idle", &Server::node(50, false)?, Duration::from_millis(49))
}

#[test]
fn a_node_server_that_says_how_long_it_waits() -> Result<()> {
    let _alone = alone();
    without_a_503("node, 2 s idle, said so", &Server::node(2000, true)?, Duration::from_millis(1995))
}

#[test]
fn haproxy_that_closes_idle_connections() -> Result<()> {
    let _alone = alone();
    without_a_503("haproxy, 20 ms idle", &Server::haproxy(20)?, Duration::from_millis(19))
}
