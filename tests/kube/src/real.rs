//! Kubernetes' own API server with etcd, on loopback, as processes.

use crate::http;
use crate::pki::Pki;
use crate::process::Process;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use weft_test_ports::free_port;

/// Time for each of the two to come up.
const START_LIMIT: Duration = Duration::from_secs(90);

/// etcd and kube-apiserver.
pub struct Real {
    dir: PathBuf,
    etcd: Process,
    server: Process,
    etcd_port: u16,
    port: u16,
    quota: Option<u64>,
}

/// The API server's program: `WEFT_KUBE_APISERVER`, else where `cargo xtask kube-apiserver` puts it.
pub fn program() -> Result<PathBuf> {
    let named = std::env::var_os("WEFT_KUBE_APISERVER").map(PathBuf::from);
    let path = named.unwrap_or_else(|| crate::target().join("kube/kube-apiserver"));
    if !path.is_file() {
        bail!("{} is not there; build it with: cargo xtask kube-apiserver", path.display());
    }
    Ok(path)
}

fn etcd_program() -> PathBuf {
    std::env::var_os("WEFT_ETCD").map_or_else(|| PathBuf::from("etcd"), PathBuf::from)
}

impl Real {
    /// Starts both in `pki`'s folder; `quota` is the size in bytes at which etcd takes no more.
    ///
    /// # Errors
    /// When one of them is not installed or does not come up.
    pub async fn start(pki: &Pki, quota: Option<u64>) -> Result<Self> {
        let (etcd_port, peer_port, port) = (free_port(), free_port(), free_port());
        let etcd = start_etcd(&pki.dir, etcd_port, peer_port, quota)?;
        let server = start_server(&pki.dir, etcd_port, port)?;
        let mut real = Self { dir: pki.dir.clone(), etcd, server, etcd_port, port, quota };
        real.wait().await?;
        Ok(real)
    }

    /// Address.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Waits until the API server says that it is ready.
    async fn wait(&mut self) -> Result<()> {
        let end = Instant::now() + START_LIMIT;
        let ca = std::fs::read_to_string(self.dir.join("ca.crt"))?;
        loop {
            self.etcd.check()?;
            self.server.check()?;
            let answer = http::get_tls(self.port, "/readyz", &ca, Some(crate::pki::ADMIN_TOKEN)).await;
            match answer {
                Ok((200, _)) => return Ok(()),
                _ if Instant::now() > end => {
                    bail!("kube-apiserver was not ready within {START_LIMIT:?}: {answer:?}\n{}", self.server.output())
                }
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// `kill -9` of the API server.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill_server(&mut self) -> Result<()> {
        self.server.kill()
    }

    /// Starts the API server again where it was.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart_server(&mut self) -> Result<()> {
        self.server = start_server(&self.dir, self.etcd_port, self.port)?;
        self.wait().await
    }

    /// `kill -9` of etcd.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill_etcd(&mut self) -> Result<()> {
        self.etcd.kill()
    }

    /// Starts etcd again on what is on the disk.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart_etcd(&mut self) -> Result<()> {
        self.etcd = start_etcd(&self.dir, self.etcd_port, free_port(), self.quota)?;
        self.wait().await
    }

    /// The API server's process.
    pub fn server(&self) -> &Process {
        &self.server
    }
}

fn start_etcd(dir: &Path, port: u16, peer_port: u16, quota: Option<u64>) -> Result<Process> {
    let client = format!("http://127.0.0.1:{port}");
    let peer = format!("http://127.0.0.1:{peer_port}");
    let mut args = vec![
        format!("--data-dir={}", dir.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--quota-backend-bytes={}", quota.unwrap_or(4 << 30)),
        "--logger=zap".into(),
    ];
    args.push("--log-level=warn".into());
    // Processes are killed here, machines are not: what the kernel has been given is not lost.
    args.push("--unsafe-no-fsync".into());
    Process::start(&etcd_program(), &args, &[], &dir.join("etcd.log"))
        .context("etcd (Debian package etcd-server, or WEFT_ETCD)")
}

fn start_server(dir: &Path, etcd_port: u16, port: u16) -> Result<Process> {
    let file = |name: &str| dir.join(name).display().to_string();
    let args = [
        format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
        "--bind-address=127.0.0.1".into(),
        format!("--secure-port={port}"),
        format!("--cert-dir={}", file("apiserver")),
        format!("--tls-cert-file={}", file("server.crt")),
        format!("--tls-private-key-file={}", file("server.key")),
        format!("--token-auth-file={}", file("tokens.csv")),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", file("sa.pub")),
        format!("--service-account-signing-key-file={}", file("sa.key")),
        "--service-cluster-ip-range=10.96.0.0/12".into(),
        "--authorization-mode=RBAC".into(),
        "--endpoint-reconciler-type=none".into(),
        "--shutdown-delay-duration=0s".into(),
        "--v=1".into(),
    ];
    Process::start(&program()?, &args, &[], &dir.join("kube-apiserver.log"))
}
