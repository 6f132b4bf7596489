//! The way out: say that we go, let clients and connections go, leave.

use crate::state::ProxyState;
use std::time::Duration;
use weft_dataplane::Handle;
use weft_runtime::signal::{self, Stop};

/// No drain is longer: a process that waits for ever is never replaced.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Times of the way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Connections are accepted at least so long: until it has gone round that we go.
    pub least: Duration,
    /// Connections may end within so long.
    pub most: Duration,
}

impl Times {
    /// Of a mesh proxy: half of `terminationDrainDuration` goes by before listeners close; with
    /// `EXIT_ON_ZERO_ACTIVE_CONNECTIONS` at least `minimum` goes by, and connections may take as long as they do.
    pub fn of_mesh(termination: Duration, exit_on_zero: bool, minimum: Duration) -> Self {
        match exit_on_zero {
            true => Self { least: minimum, most: LONGEST },
            false => Self { least: termination / 2, most: termination },
        }
    }

    /// Of a run from a bootstrap file: nobody has to hear of it.
    pub fn of_bootstrap(seconds: u64) -> Self {
        Self { least: Duration::ZERO, most: Duration::from_secs(seconds).min(LONGEST) }
    }
}

/// Why the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// SIGTERM.
    Terminate,
    /// Ctrl-C.
    Interrupt,
    /// The admin or status port.
    Asked,
}

/// Returns when the process is asked to end.
///
/// # Errors
/// When no signal handler can be installed.
pub async fn cause(state: &ProxyState) -> std::io::Result<Cause> {
    tokio::select! {
        stop = signal::stop() => Ok(match stop? {
            Stop::Terminate => Cause::Terminate,
            Stop::Interrupt => Cause::Interrupt,
        }),
        () = state.stop_asked() => Ok(Cause::Asked),
    }
}

/// Drains our own data plane. Ctrl-C, and a second signal, cut it short.
pub async fn data_plane(cause: Cause, state: &ProxyState, handle: &Handle, times: Times) {
    state.start_draining();
    if cause == Cause::Interrupt {
        return;
    }
    let connections = handle.active_connections();
    tracing::info!(?cause, connections, most_seconds = times.most.as_secs(), "draining");
    tokio::select! {
        done = handle.drain(times.least, times.most) => match done {
            true => tracing::info!("drained"),
            false => tracing::warn!(connections = handle.active_connections(), "leaving with open connections"),
        },
        _ = signal::stop() => tracing::warn!("a second signal: leaving at once"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let five = Duration::from_secs(5);
        let usual = Times::of_mesh(five, false, Duration::from_secs(9));
        assert_eq!((usual.least, usual.most), (five / 2, five));
        let patient = Times::of_mesh(five, true, Duration::from_secs(9));
        assert_eq!((patient.least.as_secs(), patient.most), (9, LONGEST));
    }
}
