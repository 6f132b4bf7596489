//! The webhooks, on port 15017: injection of pods and validation of objects, and the trust of the API server in them.
//!
//! They have a thread of their own: a push to ten thousand proxies does not hold up one pod.
//!
//! Reading order: `server` (connections, within bounds), `review` (the questions of the API server), `injection` and
//! `validation` (the answers), `configurations` (what the API server must know), `metrics`.

mod configurations;
mod injection;
mod intake;
mod metrics;
mod review;
mod server;
mod validation;

pub(crate) use configurations::keep as keep_configurations;
pub(crate) use metrics::Metrics;

use crate::settings::Settings;
use anyhow::Context;
use std::sync::Arc;
use tokio::sync::{oneshot, watch};
use weft_ca::Signing;
use weft_store::Cache;

/// What the webhooks work with.
pub(crate) struct Parts {
    pub cache: Arc<Cache>,
    pub settings: Arc<Settings>,
    pub signing: watch::Receiver<Signing>,
    pub metrics: Arc<Metrics>,
    pub closing: watch::Receiver<bool>,
}

/// Starts the thread of the webhooks; the future ends with it.
///
/// # Errors
/// When there is no certificate to begin with, or no thread to be had.
pub(crate) fn start(
    listener: std::net::TcpListener,
    parts: Parts,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + 'static> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("webhooks")?;
    let (ended, end) = oneshot::channel();
    let thread = std::thread::Builder::new().name("webhooks".into());
    thread
        .spawn(move || {
            let result = runtime.block_on(server::run(listener, parts));
            // Whoever waited for it is gone: so is the process.
            let _ = ended.send(result);
        })
        .context("webhooks: no thread")?;
    Ok(async move { end.await.context("the thread of the webhooks panicked")? })
}
