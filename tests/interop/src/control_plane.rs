//! Envoy's go-control-plane as a process (`tests/interop/go/control-plane`): it is told its resources line by line, and says
//! what its clients ask for.

use crate::process::{Process, go};
use serde_json::Value;
use std::process::Command;

/// A running go-control-plane; ended with the value.
pub struct ControlPlane {
    process: Process,
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    _folder: tempfile::TempDir,
}

impl ControlPlane {
    /// Starts it, without resources.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = go("control-plane");
        let log = folder.path().join("log");
        let mut process = Process::start("go-control-plane", &mut Command::new(program), &log);
        let port = process.line("an address", |line| {
            let event: Value = serde_json::from_str(line).ok()?;
            event["address"].as_str()?.rsplit_once(':')?.1.parse().ok()
        });
        Self { process, port, _folder: folder }
    }

    /// Serves these resources from now on.
    pub fn set(&mut self, snapshot: &Value) {
        self.process.say(&snapshot.to_string());
    }

    /// The first request from now on for which `pick` has something.
    pub fn request<T>(&mut self, what: &str, pick: impl Fn(&Value) -> Option<T>) -> T {
        self.process.line(what, |line| pick(&serde_json::from_str(line).ok()?))
    }

    /// Ends it now.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}
