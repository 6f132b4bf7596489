//! The proxies of one measurement: a client's side and a server's side of one peer, started, watched and ended together.

use crate::child::{Program, local};
use crate::config::{self, Features, Ports, Traffic};
use crate::instructions;
use anyhow::{Context as _, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Whose proxies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Peer {
    /// Ours.
    Weft,
    /// Envoy, with the very files that ours gets.
    Envoy,
    /// haproxy; it does not check the server's SPIFFE ID.
    Haproxy,
    /// nginx; it does not check the server's certificate.
    Nginx,
}

impl Peer {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weft => "weft",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }
}

/// Where the programs are.
pub struct Programs {
    /// `weft-proxy`.
    pub weft: PathBuf,
    /// `envoy`.
    pub envoy: PathBuf,
    /// Files that each may have open.
    pub files: usize,
    /// `weft-proxy` runs under callgrind.
    pub counting: bool,
}

impl Programs {
    /// The command that runs that file with one worker.
    pub fn run(&self, peer: Peer, file: &Path) -> Command {
        let (program, words): (OsString, &[&str]) = match peer {
            Peer::Weft if self.counting => {
                let mut command = instructions::counting(&self.weft);
                command.args(["--concurrency", "1", "-c"]).arg(file);
                return command;
            }
            Peer::Weft => (self.weft.clone().into(), &["--concurrency", "1", "-c"]),
            Peer::Envoy => {
                (self.envoy.clone().into(), &["--concurrency", "1", "--disable-hot-restart", "-l", "error", "-c"])
            }
            Peer::Haproxy => ("haproxy".into(), &["-f"]),
            Peer::Nginx => ("nginx".into(), &["-c"]),
        };
        let mut command = Command::new(program);
        command.args(words).arg(file);
        // Debian keeps servers where an ordinary user's path does not lead.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        command
    }
}

/// A running pair.
pub struct Pair {
    client: Program,
    server: Program,
    /// Where it is listening.
    pub ports: Ports,
}

impl Pair {
    /// Starts both sides in front of the application's port and waits until both listen.
    pub fn start(
        programs: &Programs,
        peer: Peer,
        folder: &Path,
        app: u16,
        traffic: Traffic,
        features: Features,
    ) -> Result<Self> {
        let ports = Ports { entry: weft_test_ports::free_port(), tls: weft_test_ports::free_port(), app };
        let side = |name: &str, client_side: bool| -> Result<Program> {
            let text = match peer {
                Peer::Haproxy => config::haproxy(folder, ports, traffic, client_side, programs.files),
                Peer::Nginx => config::nginx(folder, ports, client_side),
                Peer::Weft | Peer::Envoy if client_side => {
                    config::client(folder, ports, traffic, features)?.to_string()
                }
                Peer::Weft | Peer::Envoy => config::server(folder, ports, traffic, features)?.to_string(),
            };
            let name = format!("{}-{name}", peer.name());
            let extension = if matches!(peer, Peer::Weft | Peer::Envoy) { "json" } else { "conf" };
            let file = folder.join(format!("{name}.{extension}"));
            std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
            Program::start(&name, folder, &mut programs.run(peer, &file))
        };
        let mut pair = Self { server: side("server", false)?, client: side("client", true)?, ports };
        pair.server.until_listening(local(ports.tls))?;
        pair.client.until_listening(local(ports.entry))?;
        Ok(pair)
    }

    /// CPU time of both.
    pub fn cpu(&self) -> Result<Duration> {
        Ok(self.client.cpu()? + self.server.cpu()?)
    }

    /// The numbers of both: the client's side, the server's side.
    pub fn pids(&self) -> [u32; 2] {
        [self.client.pid(), self.server.pid()]
    }

    /// CPU time of the server's side.
    pub fn server_cpu(&self) -> Result<Duration> {
        self.server.cpu()
    }

    /// Resident memory of both, bytes.
    pub fn resident(&self) -> Result<u64> {
        Ok(self.client.resident()? + self.server.resident()?)
    }
}
