//! A measured program: started, asked for its CPU time and memory, and ended with this one.

use anyhow::{Context as _, Result, bail};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Within this time a program takes connections, or the measurement fails.
const START: Duration = Duration::from_secs(60);

/// A running program.
pub struct Program {
    name: String,
    child: Child,
}

impl Program {
    /// Starts it; what it writes goes to `FOLDER/NAME.log`.
    pub fn start(name: &str, folder: &Path, command: &mut Command) -> Result<Self> {
        let log = std::fs::File::create(folder.join(format!("{name}.log")))?;
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        Ok(Self { name: name.to_string(), child })
    }

    /// Waits until it takes connections there.
    pub fn until_listening(&mut self, address: SocketAddr) -> Result<()> {
        let begun = Instant::now();
        while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended before it listened on {address}: {status}; see its log", self.name);
            }
            if begun.elapsed() > START {
                bail!("{} does not listen on {address} after {} s", self.name, START.as_secs());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that it has used, user and system.
    pub fn cpu(&self) -> Result<Duration> {
        cpu_of(self.child.id())
    }

    /// Memory that it has resident, bytes.
    pub fn resident(&self) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line =
            text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("/proc/PID/status has no VmRSS")?;
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kibibytes * 1024)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time that a process has used, user and system.
pub fn cpu_of(pid: u32) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The program's name, in brackets, may hold anything.
    let fields: Vec<&str> = text.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).context("/proc/PID/stat has another layout")?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok(Duration::from_secs_f64((user + system) as f64 / per_second as f64))
}

/// That port of this machine.
pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}
