//! The collector of spans as a process (`tests/interop/go/collector`): Zipkin's and OpenTelemetry's own models read what it is
//! sent.

use crate::process::{Process, go};
use serde_json::Value;
use std::process::Command;

/// A running collector; ended with the value.
pub struct Collector {
    process: Process,
    /// Where it listens, on 127.0.0.1, for all protocols.
    pub port: u16,
    _folder: tempfile::TempDir,
}

impl Collector {
    /// Starts it.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut process = Process::start("collector", &mut Command::new(go("collector")), &folder.path().join("log"));
        let port = process.line("an address", |line| {
            let event: Value = serde_json::from_str(line).ok()?;
            event["address"].as_str()?.rsplit_once(':')?.1.parse().ok()
        });
        Self { process, port, _folder: folder }
    }

    /// The first span from now on for which `pick` has something.
    pub fn span<T>(&mut self, what: &str, pick: impl Fn(&Value) -> Option<T>) -> T {
        self.process.line(what, |line| pick(&serde_json::from_str(line).ok()?))
    }
}
