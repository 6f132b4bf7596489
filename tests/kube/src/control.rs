//! weftd as a process of a test: on its own ports of loopback, with a kubeconfig as the cluster gives it.

use crate::cluster::Cluster;
use crate::process::Process;
use crate::{eventually, http, target};
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};
use weft_test_ports::free_port;

/// A running weftd.
pub struct Weftd {
    /// The process.
    pub process: Process,
    /// Port of xDS and CA.
    pub secure: u16,
    /// Port of readiness and metrics.
    pub monitoring: u16,
    /// Port of the webhooks.
    pub webhook: u16,
}

/// Where weftd is: `WEFT_BIN_DIR`, else the debug build.
fn program() -> PathBuf {
    std::env::var_os("WEFT_BIN_DIR").map_or_else(|| target().join("debug"), PathBuf::from).join("weftd")
}

impl Weftd {
    /// Starts one as the administrator, and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in time.
    pub async fn start(cluster: &Cluster, name: &str) -> Result<Self> {
        let mut weftd = Self::spawn(cluster, name, &cluster.kubeconfig(), &[])?;
        weftd.ready().await?;
        Ok(weftd)
    }

    /// Starts one named `name` that uses `kubeconfig`; `more` are further flags.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(cluster: &Cluster, name: &str, kubeconfig: &Path, more: &[&str]) -> Result<Self> {
        Self::spawn_on(free_port(), cluster, name, kubeconfig, more)
    }

    /// As [`Self::spawn`], with the webhooks on a given port: where they were before.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_on(webhook: u16, cluster: &Cluster, name: &str, kubeconfig: &Path, more: &[&str]) -> Result<Self> {
        let (secure, monitoring) = (free_port(), free_port());
        let mut args = vec![
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--pod-name={name}"),
            format!("--secure-grpc-addr=127.0.0.1:{secure}"),
            format!("--monitoring-addr=127.0.0.1:{monitoring}"),
            format!("--https-addr=127.0.0.1:{webhook}"),
            "--drain=100ms".into(),
        ];
        args.extend(more.iter().map(ToString::to_string));
        let log = cluster.dir().join(format!("{name}.log"));
        let process = Process::start(&program(), &args, &[], &log)
            .with_context(|| format!("{}: build it with: cargo build -p weftd", program().display()))?;
        Ok(Self { process, secure, monitoring, webhook })
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// When it ends, or the time is over: what it waits for, and its log.
    pub async fn ready(&mut self) -> Result<()> {
        let (process, monitoring) = (&mut self.process, self.monitoring);
        let ready = eventually("weftd ready", async || {
            // One that has ended will not be ready: the error in the answer ends the wait.
            if let Err(ended) = process.check() {
                return Ok(Err(ended));
            }
            let (status, body) = http::get(monitoring, "/ready").await?;
            ensure!(status == 200, "{status}: {body}");
            Ok(Ok(()))
        });
        ready.await.with_context(|| self.process.output())?
    }

    /// What readiness says now: status and reasons.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn readiness(&self) -> Result<(u16, String)> {
        http::get(self.monitoring, "/ready").await
    }

    /// Waits until readiness refuses with a text that contains `reason`.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn not_ready(&self, reason: &str) -> Result<()> {
        eventually("readiness says why not", async || {
            let (status, body) = self.readiness().await?;
            ensure!(status == 503 && body.contains(reason), "{status}: {body}");
            Ok(())
        })
        .await
        .with_context(|| self.process.output())
    }

    /// Waits until its log contains a text.
    ///
    /// # Errors
    /// When it does not in time, or the process has ended.
    pub async fn says(&mut self, text: &str) -> Result<()> {
        let said = eventually(text, async || {
            ensure!(self.process.output().contains(text), "not said yet");
            Ok(())
        });
        said.await.with_context(|| self.process.output())?;
        self.process.check()
    }

    /// A value of its metrics.
    ///
    /// # Errors
    /// When there is none of that name.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let (_, body) = http::get(self.monitoring, "/metrics").await?;
        let line = body.lines().find(|l| l.split([' ', '{']).next() == Some(name)).with_context(|| name.to_string())?;
        Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
    }
}
