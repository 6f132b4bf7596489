//! The control plane's process: settings, start, signals, end.

use anyhow::Context;
use clap::Parser;
use weft_runtime::{logging, signal};
use weftd::Settings;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    let format = if settings.log_json { logging::Format::Json } else { logging::Format::Text };
    // The client library shouts at every failed connection; what is waited for and why is said once in a while.
    let filter = format!("{},kube_client=off", settings.log_level);
    logging::init(&filter, format).map_err(anyhow::Error::msg).context("--log-level")?;
    // A signal while it comes up ends it at once: nothing is served yet.
    let mut running = tokio::select! {
        started = weftd::start(settings) => started?,
        stop = signal::stop() => {
            stop.context("signals")?;
            return Ok(());
        }
    };
    let failure = tokio::select! {
        failed = running.failed() => failed,
        stop = signal::stop() => {
            tracing::info!("{:?}: stopping", stop.context("signals")?);
            Ok(())
        }
    };
    running.stop().await;
    failure
}
