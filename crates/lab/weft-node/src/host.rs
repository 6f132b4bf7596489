//! The machine's side of a lab: its state directory, the lock that lets one lab run at a time, the sockets it listens on, and
//! who holds a port that is taken.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

const LOCK: &str = "lab.lock";
/// Largest lock file that is read.
const MAX_LOCK: u64 = 64 << 10;

/// What a running lab says of itself in its lock file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Running {
    /// Process of `weft up`.
    pub pid: u32,
    /// URL of the gateway.
    pub url: String,
    /// URL of the API.
    pub api: String,
    /// Everything that was to start has started.
    pub ready: bool,
}

/// Why a lab cannot be started here.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Another one runs.
    #[error("a lab is running already (process {}, {}); stop it with: weft down", .0.pid, .0.url)]
    AlreadyRunning(Running),
    /// The state directory cannot be used.
    #[error("cannot use {path}: {cause}; set WEFT_HOME to a folder that you can write to")]
    Folder {
        /// The path.
        path: String,
        /// The system's words.
        cause: io::Error,
    },
    /// A port is taken.
    #[error("port {port} of 127.0.0.1 is in use{owner}; choose another one with {option}")]
    PortTaken {
        /// The port.
        port: u16,
        /// ` by NAME (process PID)`, or empty.
        owner: String,
        /// The option that sets it.
        option: String,
    },
    /// A port cannot be listened on for another reason.
    #[error("cannot listen on port {port} of 127.0.0.1: {cause}; choose another one with {option}")]
    Port {
        /// The port.
        port: u16,
        /// The system's words.
        cause: io::Error,
        /// The option that sets it.
        option: String,
    },
}

/// The state directory of labs.
#[derive(Debug, Clone)]
pub struct StateFolder {
    path: PathBuf,
}

/// Held while a lab runs; the kernel releases it when the process ends, however it ends.
pub struct Lock {
    file: Flock<File>,
}

impl StateFolder {
    /// Opens the directory, making it where there is none; only its owner may look inside.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(path: &Path) -> Result<Self, HostError> {
        let failed = |cause| HostError::Folder { path: path.display().to_string(), cause };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let path = std::fs::canonicalize(path).map_err(failed)?;
        for folder in ["run", "logs"] {
            let folder = path.join(folder);
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
            std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
        }
        Ok(Self { path })
    }

    /// An empty folder that the lab mounts on.
    pub fn run(&self) -> PathBuf {
        self.path.join("run")
    }

    /// The kubeconfig of the running lab.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path.join("kubeconfig")
    }

    /// Folder of the objects that outlive the lab.
    pub fn objects(&self) -> PathBuf {
        self.path.join("objects")
    }

    /// The lab's own log.
    pub fn log(&self) -> PathBuf {
        self.path.join("logs/lab.log")
    }

    fn open_lock(&self) -> Result<File, HostError> {
        let path = self.path.join(LOCK);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        open.map_err(|cause| HostError::Folder { path: path.display().to_string(), cause })
    }

    /// Takes the lock. What a lab that was killed left in the directory is removed; nothing else of it can be left.
    ///
    /// # Errors
    /// [`HostError::AlreadyRunning`] when another lab holds it.
    pub fn lock(&self) -> Result<Lock, HostError> {
        match Flock::lock(self.open_lock()?, FlockArg::LockExclusiveNonblock) {
            Ok(file) => {
                let _ = std::fs::remove_file(self.kubeconfig());
                Ok(Lock { file })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => Err(HostError::AlreadyRunning(read(&mut file))),
            Err((_, errno)) => {
                Err(HostError::Folder { path: self.path.join(LOCK).display().to_string(), cause: errno.into() })
            }
        }
    }

    /// The lab that runs, if one does.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn running(&self) -> Result<Option<Running>, HostError> {
        match Flock::lock(self.open_lock()?, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(None),
            Err((mut file, _)) => Ok(Some(read(&mut file))),
        }
    }
}

fn read(file: &mut File) -> Running {
    let mut text = String::new();
    let _ = file.rewind();
    let _ = file.take(MAX_LOCK).read_to_string(&mut text);
    serde_json::from_str(&text).unwrap_or_default()
}

impl Lock {
    /// Says what runs, for `weft down` and for a second `weft up`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&mut self, running: &Running) -> io::Result<()> {
        self.file.rewind()?;
        self.file.set_len(0)?;
        self.file.write_all(serde_json::to_string(running)?.as_bytes())
    }

    /// Removes what a lab that has ended needs no more.
    pub fn clean_up(mut self, folder: &StateFolder) {
        let _ = std::fs::remove_file(folder.kubeconfig());
        let _ = self.file.set_len(0);
        let _ = self.file.flush();
    }
}

/// Listens on a port of the machine's loopback; 0 is any free one. `option` is what sets the port, for the message.
///
/// # Errors
/// When the port is taken, with its owner where the system tells.
pub fn listen(port: u16, option: &str) -> Result<TcpListener, HostError> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).map_err(|cause| match cause.kind() {
        io::ErrorKind::AddrInUse => {
            let owner = owner_of(port).map(|(pid, name)| format!(" by {name} (process {pid})")).unwrap_or_default();
            HostError::PortTaken { port, owner, option: option.into() }
        }
        _ => HostError::Port { port, cause, option: option.into() },
    })
}

/// Process that listens on a TCP port. The system tells it of one's own processes only (or to root).
pub fn owner_of(port: u16) -> Option<(u32, String)> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .collect();
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let holds = descriptors.flatten().any(|descriptor| {
            let target = std::fs::read_link(descriptor.path());
            target.is_ok_and(|target| links.iter().any(|link| target.as_os_str() == link.as_str()))
        });
        if holds {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some((pid, name.trim().to_string()));
        }
    }
    None
}

/// Inodes of the listening sockets on a port, from `/proc/net/tcp`.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    let wanted = format!(":{port:04X}");
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let listening = rows.filter(|row| row.get(1).is_some_and(|a| a.ends_with(&wanted)) && row.get(3) == Some(&"0A"));
    listening.filter_map(|row| row.get(9).map(ToString::to_string)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lab_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(&folder.path().join("weft")).unwrap();
        assert_eq!(state.running().unwrap(), None);
        let mut lock = state.lock().unwrap();
        let running = Running { pid: 42, url: "http://127.0.0.1:8080".into(), ..Running::default() };
        lock.write(&running).unwrap();
        let error = state.lock().err().unwrap().to_string();
        assert!(error.contains("process 42") && error.contains("weft down"), "{error}");
        assert_eq!(state.running().unwrap(), Some(running));
        std::fs::write(state.kubeconfig(), "left over").unwrap();
        drop(lock);
        // As after a kill: the lock is free, and the next lab removes what was left.
        let lock = state.lock().unwrap();
        assert!(!state.kubeconfig().exists());
        lock.clean_up(&state);
    }

    #[test]
    fn a_taken_port_is_named_with_its_owner() {
        let held = listen(0, "--port").unwrap();
        let port = held.local_addr().unwrap().port();
        let error = listen(port, "--port").unwrap_err().to_string();
        let pid = std::process::id().to_string();
        assert!(error.contains(&port.to_string()) && error.contains(&pid) && error.contains("--port"), "{error}");
    }
}
