//! kubectl against a lab: which one, how it is run, and whole lines of a shell as the documents have them.

use crate::Lab;
use crate::lab::{bin_dir, text};
use anyhow::{Context as _, Result, bail, ensure};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time for one command.
const LIMIT: Duration = Duration::from_secs(90);

/// A kubectl that speaks to a lab.
pub struct Kubectl {
    program: PathBuf,
    home: tempfile::TempDir,
    /// The kubeconfig.
    pub config: PathBuf,
    /// Whether it is told to use SPDY, as clients before 1.30 do.
    pub spdy: bool,
}

impl Kubectl {
    /// `program` on `lab`.
    ///
    /// # Errors
    /// When there is no folder for its files.
    pub fn new(program: &Path, lab: &Lab) -> Result<Self> {
        let (home, config) = (tempfile::tempdir()?, lab.home().join("kubeconfig"));
        Ok(Self { program: program.into(), home, config, spdy: false })
    }

    /// The newest kubectl that there is, on `lab`.
    ///
    /// # Errors
    /// When there is none.
    pub fn newest(lab: &Lab) -> Result<Self> {
        let (_, program) = programs()?.pop().context("kubectl")?;
        Self::new(&program, lab)
    }

    /// The same on the same lab, with other files, and with SPDY or without.
    ///
    /// # Errors
    /// When there is no folder for its files.
    pub fn another(&self, spdy: bool) -> Result<Self> {
        let (program, config) = (self.program.clone(), self.config.clone());
        Ok(Self { program, home: tempfile::tempdir()?, config, spdy })
    }

    /// Where its files are, and where [`Self::sh`] runs.
    pub fn folder(&self) -> &Path {
        self.home.path()
    }

    /// `kubectl ARGS`, to be started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args);
        self.surround(&mut command);
        command
    }

    fn surround(&self, command: &mut Command) {
        command.env("KUBECONFIG", &self.config).env("HOME", self.home.path()).stdin(Stdio::null());
        if self.spdy {
            command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false").env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
        }
    }

    /// Runs a command to its end, bounded.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn try_run(&self, args: &[&str]) -> Result<Output> {
        let child = self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        bounded(child, &format!("kubectl {}", args.join(" ")))
    }

    /// Runs a command that must succeed; what it printed.
    ///
    /// # Errors
    /// Its exit code and words, when it failed.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        printed(self.try_run(args)?, &format!("kubectl {}", args.join(" ")))
    }

    /// Runs a line of a shell that must succeed, as the documents have it: `kubectl` is this one, `istioctl` is `weft`,
    /// `helm` the one that `cargo xtask helm` builds, and `samples/` and `manifests/` lie where the shell is. What it printed on standard output.
    ///
    /// # Errors
    /// Its exit code and words, when it failed.
    pub fn sh(&self, line: &str) -> Result<String> {
        printed(self.try_sh(line)?, line)
    }

    /// As [`Self::sh`], whatever comes of it.
    ///
    /// # Errors
    /// When the shell cannot be started or the line does not end.
    pub fn try_sh(&self, line: &str) -> Result<Output> {
        let bin = self.home.path().join("bin");
        if !bin.exists() {
            std::fs::create_dir(&bin)?;
            let samples = std::fs::canonicalize(crate::sample(""))?;
            let manifests = std::fs::canonicalize(crate::sample("../manifests"))?;
            let weft = std::fs::canonicalize(bin_dir().join("weft"))?;
            let helm = helm().map(|helm| (helm, bin.join("helm")));
            let links = [
                (std::fs::canonicalize(&self.program)?, bin.join("kubectl")),
                (weft, bin.join("istioctl")),
                (samples, self.home.path().join("samples")),
                (manifests, self.home.path().join("manifests")),
            ];
            for (to, link) in links.into_iter().chain(helm) {
                std::os::unix::fs::symlink(to, link)?;
            }
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let all = std::iter::once(bin).chain(std::env::split_paths(&path));
        let mut command = Command::new("bash");
        command
            .args(["-o", "pipefail", "-c", line])
            .current_dir(self.home.path())
            .env("PATH", std::env::join_paths(all)?);
        self.surround(&mut command);
        bounded(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?, line)
    }

    /// Runs a command line without quotes, which must print exactly this.
    ///
    /// # Errors
    /// What it printed instead.
    pub fn says(&self, line: &str, want: &str) -> Result<()> {
        let args: Vec<&str> = line.split_whitespace().collect();
        let got = self.run(&args)?;
        ensure!(got.trim_end() == want, "kubectl {line} printed\n{got}instead of\n{want}");
        Ok(())
    }

    /// Runs a command line without quotes, which must print all of these somewhere.
    ///
    /// # Errors
    /// What it printed instead.
    pub fn shows(&self, line: &str, wants: &[&str]) -> Result<String> {
        let args: Vec<&str> = line.split_whitespace().collect();
        let got = self.run(&args)?;
        for want in wants {
            ensure!(got.contains(want), "kubectl {line} printed\n{got}which lacks {want:?}");
        }
        Ok(got)
    }

    /// Runs a command line without quotes, which must fail and say this.
    ///
    /// # Errors
    /// What came of it instead.
    pub fn fails(&self, line: &str, want: &str) -> Result<()> {
        let args: Vec<&str> = line.split_whitespace().collect();
        let out = self.try_run(&args)?;
        let said = format!("{}{}", text(&out.stdout), text(&out.stderr));
        ensure!(!out.status.success() && said.contains(want), "kubectl {line}: {}\n{said}", out.status);
        Ok(())
    }

    /// Writes a file into its folder, which is where [`Self::sh`] runs; the path.
    ///
    /// # Errors
    /// The system's.
    pub fn file(&self, name: &str, content: &str) -> Result<String> {
        let path = self.home.path().join(name);
        std::fs::write(&path, content)?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Starts a command and waits for the first line that holds `want`.
    ///
    /// # Errors
    /// When it never says that.
    pub fn start(&self, args: &[&str], want: &str) -> Result<(Running, String)> {
        Self::started(self.command(args), want).with_context(|| format!("kubectl {}", args.join(" ")))
    }

    /// The same of `weft`, which the documents call `istioctl`.
    ///
    /// # Errors
    /// When it never says that.
    pub fn start_istioctl(&self, args: &[&str], want: &str) -> Result<(Running, String)> {
        let mut command = Command::new(bin_dir().join("weft"));
        command.args(args);
        self.surround(&mut command);
        Self::started(command, want).with_context(|| format!("weft {}", args.join(" ")))
    }

    fn started(mut command: Command, want: &str) -> Result<(Running, String)> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let out = child.stdout.take().context("stdout")?;
        let running = Running(child);
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = lines.recv_timeout(left).with_context(|| format!("it never said {want:?}"))?;
            if line.contains(want) {
                // Further lines are read and dropped, so that the program is not held up.
                std::thread::spawn(move || while lines.recv().is_ok() {});
                return Ok((running, line));
            }
        }
    }
}

/// A command that goes on until this is dropped.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn printed(out: Output, what: &str) -> Result<String> {
    ensure!(out.status.success(), "{what}: {}\n{}{}", out.status, text(&out.stdout), text(&out.stderr));
    Ok(text(&out.stdout))
}

/// Waits for a program's end, and reads what it prints meanwhile.
///
/// # Errors
/// When it does not end in time; then it is killed.
pub fn bounded(child: Child, what: &str) -> Result<Output> {
    bounded_by(LIMIT, child, what)
}

/// As [`bounded`], with another time.
///
/// # Errors
/// When it does not end in time; then it is killed.
pub fn bounded_by(limit: Duration, mut child: Child, what: &str) -> Result<Output> {
    let (stdout, stderr) = (Said::by(child.stdout.take()), Said::by(child.stderr.take()));
    let deadline = Instant::now() + limit;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill()?;
                child.wait()?;
                // What it started may live on and hold its outputs open: their end is not waited for.
                bail!(
                    "{what} did not end within {limit:?}; it said {}{}",
                    text(&stdout.so_far()),
                    text(&stderr.so_far())
                );
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    Ok(Output { status, stdout: stdout.all(), stderr: stderr.all() })
}

/// What a program prints, read as it comes.
struct Said {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Said {
    fn by(pipe: Option<impl std::io::Read + Send + 'static>) -> Self {
        let bytes: Arc<Mutex<Vec<u8>>> = Arc::default();
        let kept = bytes.clone();
        let reader = std::thread::spawn(move || {
            let Some(mut pipe) = pipe else { return };
            let mut part = [0; 16_384];
            while let Ok(length @ 1..) = pipe.read(&mut part) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&part[..length]);
            }
        });
        Self { bytes, reader }
    }

    fn so_far(&self) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn all(self) -> Vec<u8> {
        let _ = self.reader.join();
        std::mem::take(&mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Helm: `$WEFT_HELM`, else the one that `cargo xtask helm` has built beside the programs; `None`: the machine's, if it has one.
fn helm() -> Option<PathBuf> {
    let built = || Some(bin_dir().parent()?.join("kube/helm")).filter(|file| file.is_file());
    let helm = std::env::var_os("WEFT_HELM").map(PathBuf::from).or_else(built)?;
    std::fs::canonicalize(helm).ok()
}

/// The kubectls to try, each with a word for it. At least one must be there.
///
/// # Errors
/// When there is none.
pub fn programs() -> Result<Vec<(String, PathBuf)>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::split_paths(&path).map(|dir| dir.join("kubectl")).find(|file| file.is_file());
    let newest = std::env::var_os("WEFT_KUBECTL").map(PathBuf::from);
    let named = [("machine", own), ("newest", newest)];
    let found: Vec<_> = named.into_iter().filter_map(|(name, file)| Some((name.to_string(), file?))).collect();
    ensure!(!found.is_empty(), "no kubectl on the PATH and none named by WEFT_KUBECTL; run: cargo xtask test");
    Ok(found)
}
