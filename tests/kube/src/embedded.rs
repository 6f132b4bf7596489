//! The embedded API server, in this process, with TLS and tokens as the real one has them.

use crate::pki::{ADMIN_TOKEN, Pki};
use anyhow::{Context as _, Result};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use weft_apiserver::{AdminToken, ApiServer, ApiServerOptions};
use weft_store::MemoryStore;
use weft_tls::{ServerContext, ServerParams};

/// Time in which its port must be free again.
const BIND_LIMIT: Duration = Duration::from_secs(10);

/// A running embedded server; its objects outlive the connections.
pub struct Embedded {
    server: ApiServer,
    address: SocketAddr,
    task: Option<JoinHandle<std::io::Result<()>>>,
}

impl Embedded {
    /// Starts it on a free port of loopback.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start(pki: &Pki) -> Result<Self> {
        let tls = ServerContext::build(ServerParams {
            certificates: vec![pki.server()?],
            alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            ..ServerParams::default()
        })?;
        let options = ApiServerOptions {
            admin_tokens: vec![AdminToken { token: ADMIN_TOKEN.into(), user: "admin".into() }],
            privileged_accounts: Vec::new(),
            tls: Some(tls),
            // What an object means is checked by the webhooks, as on the real one.
            validate: false,
            ..ApiServerOptions::default()
        };
        let server = ApiServer::new(MemoryStore::new(), options).map_err(|e| anyhow::anyhow!("{e:?}"))?;
        let mut embedded = Self { server, address: ([127, 0, 0, 1], 0).into(), task: None };
        embedded.restart().await?;
        Ok(embedded)
    }

    /// Address.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Breaks every connection and stops listening, at once.
    pub async fn kill(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let _ = task.await;
        }
    }

    /// Listens again where it was.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn restart(&mut self) -> Result<()> {
        let end = Instant::now() + BIND_LIMIT;
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(error) if Instant::now() > end => return Err(error).context("the embedded server's port"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        self.address = listener.local_addr()?;
        let server = self.server.clone();
        self.task = Some(tokio::spawn(async move { server.serve(listener, std::future::pending()).await }));
        Ok(())
    }
}
