//! A container's process: started in the pod's namespaces and its own mount and process namespaces, waited for, signalled.

use crate::sandbox::logs::ContainerLog;
use crate::sandbox::netns::NetNs;
use crate::sandbox::rootfs::{OWN_PROGRAMS, RootFs};
use crate::sandbox::sys::{self, Hardening, cap};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::{oneshot, watch};

/// The namespaces that the containers of one pod share, and the machine's side of it.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Network.
    pub net: NetNs,
    /// Host name.
    pub uts: Arc<OwnedFd>,
    /// System V and POSIX message queues and shared memory.
    pub ipc: Arc<OwnedFd>,
}

impl Sandbox {
    /// New namespaces with this host name.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(hostname: &str) -> io::Result<Self> {
        // Linux takes at most 64 bytes; pod names may be longer, and Kubernetes cuts them to 63 too.
        let hostname = hostname.get(..63).unwrap_or(hostname).trim_end_matches(['-', '.']).to_string();
        let made = std::thread::spawn(move || -> io::Result<Self> {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)?;
            nix::unistd::sethostname(&hostname)?;
            let own = |kind: &str| Ok(Arc::new(File::open(format!("/proc/thread-self/ns/{kind}"))?.into()));
            let own: [io::Result<Arc<OwnedFd>>; 2] = [own("uts"), own("ipc")];
            let [uts, ipc] = own;
            Ok(Self { net: NetNs::current()?, uts: uts?, ipc: ipc? })
        });
        made.join().unwrap_or_else(|_| Err(io::Error::other("the thread that made the namespaces panicked")))
    }
}

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct ProcessSpec {
    /// Program and arguments; the program is looked up in the container's `PATH`.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory; default `/`.
    pub working_dir: Option<PathBuf>,
    /// The file tree.
    pub root: RootFs,
    /// May set socket marks and change the pod's network (proxies).
    pub net_admin: bool,
}

/// A started process.
#[derive(Debug, Clone)]
pub struct Process {
    /// Process id as the lab sees it.
    pub pid: u32,
    handle: Arc<OwnedFd>,
    exited: watch::Receiver<Option<ExitStatus>>,
}

/// Exit code as Kubernetes shows it: that of the program, or 128 plus the signal that ended it.
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

impl Process {
    /// Starts a container's process; its output goes to `log`, line by line, until it and all its children are gone.
    ///
    /// # Errors
    /// When the tree cannot be built or the program cannot be started.
    pub async fn start(
        sandbox: &Sandbox,
        spec: ProcessSpec,
        mount_point: &Path,
        log: Arc<ContainerLog>,
        restart: u32,
    ) -> io::Result<Self> {
        let (output, writer) = std::io::pipe()?;
        let (sandbox, mount_point) = (sandbox.clone(), mount_point.to_path_buf());
        let process = launch(move || {
            enter_new(&sandbox, &spec.root, &mount_point)?;
            let mut command = command(&spec.argv, &spec.env)?;
            let folder = spec.working_dir.as_deref().unwrap_or(Path::new("/"));
            command.current_dir(folder).stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
            let mut keep = cap::CONTAINER.to_vec();
            keep.extend(spec.net_admin.then_some(cap::NET_ADMIN));
            sys::harden(&mut command, Hardening { mount_proc: !spec.root.keep_proc, keep, terminal: false });
            Ok(command)
        })
        .await?;
        tokio::spawn(copy_log(OwnedFd::from(output), log, restart));
        Ok(process)
    }

    /// Runs a further program in the namespaces of this process, with these three standard descriptors.
    ///
    /// # Errors
    /// When the process has ended or the program cannot be started.
    pub async fn exec(
        &self,
        argv: Vec<String>,
        env: Vec<(String, String)>,
        stdio: [Option<OwnedFd>; 3],
        terminal: bool,
    ) -> io::Result<Self> {
        let target = Arc::clone(&self.handle);
        launch(move || {
            // Mount namespaces can be changed only by a thread that shares no working directory with others.
            unshare(CloneFlags::CLONE_FS)?;
            let all = CloneFlags::CLONE_NEWNET
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWPID
                | CloneFlags::CLONE_NEWNS;
            setns(&*target, all)?;
            let mut command = command(&argv, &env)?;
            let [input, output, errors] = stdio.map(|fd| fd.map_or_else(Stdio::null, Stdio::from));
            command.current_dir("/").stdin(input).stdout(output).stderr(errors);
            sys::harden(&mut command, Hardening { mount_proc: false, keep: cap::CONTAINER.to_vec(), terminal });
            Ok(command)
        })
        .await
    }

    /// Sends a signal; nothing happens when the process has ended.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let _ = sys::pidfd_signal(&self.handle, signal as i32);
    }

    /// Waits for the end.
    pub async fn wait(&self) -> ExitStatus {
        let mut exited = self.exited.clone();
        // The sender lives until it has sent; a lost thread counts as killed.
        exited.wait_for(Option::is_some).await.ok().and_then(|status| *status).unwrap_or(ExitStatus::from_raw(9))
    }

    /// Exit status, when it has ended.
    pub fn ended(&self) -> Option<ExitStatus> {
        *self.exited.borrow()
    }
}

/// Prepares and starts a command on a thread of its own, which then waits for it: threads may live in other namespaces than
/// the rest of the process, and a child inherits those of the thread that made it.
async fn launch(prepare: impl FnOnce() -> io::Result<Command> + Send + 'static) -> io::Result<Process> {
    let (started, on_start) = oneshot::channel();
    let (ended, exited) = watch::channel(None);
    std::thread::Builder::new().name("container".into()).stack_size(512 << 10).spawn(move || {
        let spawned = prepare().and_then(|mut command| {
            let child = command.spawn().map_err(|error| describe(&command, error))?;
            // `command` holds our copies of the output pipe: it must be dropped before the wait, or the log never ends.
            drop(command);
            let handle = sys::pidfd_open(child.id())?;
            Ok((child, handle))
        });
        match spawned {
            Err(error) => drop(started.send(Err(error))),
            Ok((mut child, handle)) => {
                let _ = started.send(Ok((child.id(), handle)));
                let status = child.wait().unwrap_or(ExitStatus::from_raw(9));
                ended.send_replace(Some(status));
            }
        }
    })?;
    let (pid, handle) = on_start.await.map_err(|_| io::Error::other("the thread of the container panicked"))??;
    Ok(Process { pid, handle: Arc::new(handle), exited })
}

fn enter_new(sandbox: &Sandbox, root: &RootFs, mount_point: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
    sandbox.net.enter()?;
    setns(&*sandbox.uts, CloneFlags::CLONE_NEWUTS)?;
    setns(&*sandbox.ipc, CloneFlags::CLONE_NEWIPC)?;
    root.enter(mount_point)?;
    // Last, because it only concerns children: the first of them is process 1 of the container.
    Ok(unshare(CloneFlags::CLONE_NEWPID)?)
}

fn command(argv: &[String], env: &[(String, String)]) -> io::Result<Command> {
    let [program, arguments @ ..] = argv else { return Err(io::Error::other("the command is empty")) };
    let path = env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_str());
    let mut command = Command::new(look_up(program, path));
    command.args(arguments).env_clear().envs(env.iter().map(|(name, value)| (name, value)));
    Ok(command)
}

/// Looks a program up in the container's own `PATH`: the thread already lives in its file tree. A path at which an image has
/// its program (`/usr/local/bin/pilot-agent`) stands for the lab's own program of that name.
fn look_up(program: &str, path: Option<&str>) -> PathBuf {
    if let Some((_, name)) = program.rsplit_once('/') {
        let own = Path::new(OWN_PROGRAMS).join(name);
        let stands_in = !Path::new(program).exists() && !name.is_empty() && own.exists();
        return if stands_in { own } else { program.into() };
    }
    let found = path.and_then(|path| std::env::split_paths(path).map(|f| f.join(program)).find(|p| p.is_file()));
    found.unwrap_or_else(|| program.into())
}

fn describe(command: &Command, error: io::Error) -> io::Error {
    let program = Path::new(command.get_program()).display();
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(error.kind(), format!("{program}: no such program in the container")),
        _ => io::Error::new(error.kind(), format!("cannot start {program}: {error}")),
    }
}

/// Longest run of bytes without a line end that is held before it is logged as a line.
const LINE_BUFFER: u64 = 64 << 10;

async fn copy_log(output: OwnedFd, log: Arc<ContainerLog>, restart: u32) {
    let Ok(receiver) = tokio::net::unix::pipe::Receiver::from_owned_fd(output) else { return };
    let mut reader = BufReader::new(receiver);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(LINE_BUFFER).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                while line.last().is_some_and(|end| matches!(end, b'\n' | b'\r')) {
                    line.pop();
                }
                log.push(restart, &line);
            }
        }
    }
}
