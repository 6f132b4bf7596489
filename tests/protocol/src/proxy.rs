//! weft-proxy as a process, with a bootstrap file of one plain listener in front of a backend.

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use weft_test_ports::free_port;

const START: Duration = Duration::from_secs(30);

/// A running proxy; killed with the value.
pub struct Proxy {
    child: Child,
    port: u16,
    admin: u16,
    _folder: tempfile::TempDir,
}

/// Where the programs are: `WEFT_BIN_DIR`, else beside this test's own program.
fn program() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("WEFT_BIN_DIR") {
        return Ok(Path::new(&folder).join("weft-proxy"));
    }
    let exe = std::env::current_exe()?;
    let folder = exe.ancestors().nth(2).context("the test runs outside of a target folder")?;
    Ok(folder.join("weft-proxy"))
}

impl Proxy {
    /// Starts one that leads everything to that port; `more` is merged into the connection manager's settings.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(backend: u16, more: &Value) -> Result<Self> {
        Self::with_upstream(backend, more, &json!({}))
    }

    /// As [`Self::start`]; `upstream` is merged into the cluster.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn with_upstream(backend: u16, more: &Value, upstream: &Value) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (port, admin) = (free_port(), free_port());
        let file = folder.path().join("proxy.json");
        std::fs::write(&file, bootstrap([port, admin], backend, more, upstream).to_string())?;
        let program = program()?;
        let log = std::fs::File::create(folder.path().join("log"))?;
        let child = Command::new(&program)
            .args(["--concurrency", "1", "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{}: build it with: cargo build -p weft-proxy", program.display()))?;
        let mut proxy = Self { child, port, admin, _folder: folder };
        proxy.until_listening()?;
        Ok(proxy)
    }

    fn until_listening(&mut self) -> Result<()> {
        let begun = Instant::now();
        while TcpStream::connect(self.address()).is_err() {
            if let Some(status) = self.child.try_wait()? {
                let log = std::fs::read_to_string(self._folder.path().join("log")).unwrap_or_default();
                bail!("weft-proxy ended: {status}\n{log}");
            }
            if begun.elapsed() > START {
                bail!("weft-proxy does not listen after {START:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// A counter or gauge of the cluster, by Envoy's name of it without `cluster.app.`; 0 when nothing was counted yet.
    ///
    /// # Errors
    /// When the admin port does not answer.
    pub fn cluster_stat(&self, name: &str) -> Result<u64> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin))?;
        stream.set_read_timeout(Some(START))?;
        write!(stream, "GET /stats HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let prefix = format!("cluster.app.{name}: ");
        let found = text.lines().find_map(|line| line.strip_prefix(&prefix));
        found.map_or(Ok(0), |value| value.trim().parse().with_context(|| format!("{name}: {value}")))
    }

    /// The program is an optimised build: figures of speed mean something.
    pub fn is_optimised() -> bool {
        let of =
            |profile| program().is_ok_and(|program| program.parent().is_some_and(|folder| folder.ends_with(profile)));
        of("release") || of("journeys")
    }

    /// Resident memory, bytes.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn resident(&self) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    /// CPU time used so far.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn cpu(&self) -> Result<Duration> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = text.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
        let (user, system) = ticks(11).zip(ticks(12)).context("no times")?;
        // Linux counts in hundredths of a second on every architecture that Weft runs on.
        Ok(Duration::from_millis((user + system) * 10))
    }

    /// Open files.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn files(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bootstrap([port, admin]: [u16; 2], backend: u16, more: &Value, upstream: &Value) -> Value {
    let address = |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {"name": "r", "virtual_hosts": [{"name": "all", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}}]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]});
    merge(&mut manager, more);
    let mut cluster = json!({"name": "app", "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(backend)}}]}]}});
    merge(&mut cluster, upstream);
    json!({"admin": {"address": address(admin)}, "static_resources": {
        "listeners": [{"name": "l", "address": address(port), "filter_chains": [{"filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]}],
        "clusters": [cluster]}})
}

fn merge(into: &mut Value, from: &Value) {
    for (key, value) in from.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}
