//! Programs that a test starts: output in a file, ended with the test whatever becomes of it.

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Time that a program gets to end by itself.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A running program.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program`; what it prints goes to the end of `log`. It is killed when the thread that started it ends
    /// (`setpriv --pdeathsig`), so that an aborted test leaves nothing behind.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(program: &Path, args: &[String], env: &[(&str, String)], log: &Path) -> Result<Self> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let output = File::options().create(true).append(true).open(log)?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .args(args)
            .env_remove("KUBECONFIG")
            .envs(env.iter().map(|(k, v)| (*k, v)))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("setpriv (Debian package util-linux)")?;
        Ok(Self { name, child, log: log.to_path_buf() })
    }

    /// Process id; it is the program's own (`setpriv` replaces itself).
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Fails with the end of the output when the program is not running any more.
    ///
    /// # Errors
    /// When it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let output = self.output();
                let tail: Vec<&str> = output.lines().rev().take(20).collect();
                let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
                bail!("{} ended: {status}\n{tail}", self.name)
            }
        }
    }

    /// `kill -9`, and waits for the end.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end and waits; true when it ended by itself.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn stop(&mut self) -> Result<bool> {
        if self.child.try_wait()?.is_some() {
            return Ok(true);
        }
        kill(self.pid(), Signal::SIGTERM)?;
        let end = Instant::now() + STOP_LIMIT;
        while Instant::now() < end {
            if self.child.try_wait()?.is_some() {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill()?;
        Ok(false)
    }

    /// Resident memory in MiB, as the system counts it.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn memory_mib(&self) -> Result<u64> {
        self.status_mib("VmRSS:")
    }

    /// The most resident memory it ever had, in MiB.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn peak_memory_mib(&self) -> Result<u64> {
        self.status_mib("VmHWM:")
    }

    fn status_mib(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix(field)).context("/proc/PID/status")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib / 1024)
    }

    /// Processor time used so far.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let rest = stat.rsplit_once(')').context("/proc/PID/stat")?.1;
        let field = |i: usize| rest.split_whitespace().nth(i).and_then(|t| t.parse::<u64>().ok()).unwrap_or_default();
        // utime and stime, in ticks of 10 ms.
        Ok(Duration::from_millis((field(11) + field(12)) * 10))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
        if std::env::var_os("WEFT_TEST_LOGS").is_some() {
            eprintln!("---- {} ({}) ----\n{}", self.name, self.child.id(), self.output());
        }
    }
}
