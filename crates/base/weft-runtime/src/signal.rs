//! Signals: one future that ends when the process is asked to stop.

use tokio::signal::unix::{SignalKind, signal};

/// Which signal asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM: drain and go.
    Terminate,
}

/// Returns when SIGINT or SIGTERM arrives.
///
/// # Errors
/// When no handler can be installed.
pub async fn stop() -> std::io::Result<Stop> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => Stop::Terminate,
        _ = interrupt.recv() => Stop::Interrupt,
    })
}
