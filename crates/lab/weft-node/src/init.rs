//! The life of the lab's processes: how `weft up` starts the lab in namespaces of its own, and why nothing survives it.
//!
//! ```text
//! weft up ── spawns ──▶ keeper (enters new user, net, mount, pid … namespaces; waits)
//!                          └── spawns ──▶ lab (process 1 of the new pid namespace) ──▶ containers
//! ```
//! Keeper and lab ask the kernel to be killed when their parent dies; when process 1 of a pid namespace dies, the kernel
//! kills everything in it, and interfaces, mounts and addresses go with the last process. So whichever of the three is
//! killed, by whatever signal, nothing remains and nothing has to run in order to clean up.

use crate::sandbox::sys;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

/// Hidden command of the `weft` program under which keeper and lab run.
pub const COMMAND: &str = "lab-init";
/// How keeper and lab are called in a list of processes.
const PROGRAM: &str = "weft";
const STAGE: &str = "WEFT_LAB_STAGE";
const PARENT: &str = "WEFT_LAB_PARENT";
const OPTIONS: &str = "WEFT_LAB_OPTIONS";

/// Why the lab cannot have its namespaces.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The kernel forbids user namespaces.
    #[error("this machine does not permit user namespaces ({cause}); {remedy}")]
    Forbidden {
        /// The failed step.
        cause: String,
        /// Which setting to change, and how.
        remedy: String,
    },
    /// Anything else.
    #[error("cannot {step}: {cause}")]
    Failed {
        /// The step.
        step: String,
        /// The system's words.
        cause: String,
    },
}

/// Starts the keeper, which starts the lab. Call it from a thread that lives as long as the process: the kernel ties the
/// keeper's life to the thread that made it.
///
/// `options` reach the lab through [`run`]; `inherit` are descriptors that it gets under the same numbers; the lab's
/// standard output is a pipe to the caller.
///
/// # Errors
/// When this very program cannot be started again.
pub fn start<T: Serialize>(options: &T, inherit: &[&OwnedFd], errors: Stdio) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(PROGRAM);
    for fd in inherit {
        nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
    }
    let child = command
        .arg(COMMAND)
        .env(STAGE, "keeper")
        .env(PARENT, std::process::id().to_string())
        .env(OPTIONS, serde_json::to_string(options)?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        // Ctrl-C on a terminal goes to the whole group; the lab is to end only when `weft up` says so.
        .process_group(0)
        .spawn();
    for fd in inherit {
        nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    }
    child
}

/// The hidden command's `main`. Must be called before the program has started any thread.
///
/// `lab` runs in the new namespaces, as process 1, on a runtime of its own. What it returns is the exit code. Errors of this
/// function itself go to standard output as one JSON line `{"error": …}`.
pub fn run<T: for<'a> Deserialize<'a>>(lab: impl FnOnce(T) -> ExitCode) -> ExitCode {
    // Started through /proc/self/exe, the process would be called `exe` in every list; a failure here changes nothing else.
    let _ = nix::sys::prctl::set_name(c"weft");
    let result = match std::env::var(STAGE).as_deref() {
        Ok("keeper") => keep(),
        Ok("lab") => become_lab().and_then(|()| Ok(lab(options()?))),
        _ => Err(failed("start the lab", &"this command is for weft's own use; run: weft up")),
    };
    result.unwrap_or_else(|error| {
        let line = serde_json::json!({ "error": error.to_string() });
        let _ = writeln!(io::stdout(), "{line}");
        ExitCode::FAILURE
    })
}

fn options<T: for<'a> Deserialize<'a>>() -> Result<T, InitError> {
    let text = std::env::var(OPTIONS).map_err(|error| failed("read the lab's options", &error))?;
    serde_json::from_str(&text).map_err(|error| failed("read the lab's options", &error))
}

fn keep() -> Result<ExitCode, InitError> {
    tie_to_parent()?;
    enter_namespaces()?;
    // Changing credentials made the kernel forget the wish.
    tie_to_parent()?;
    let mut lab = Command::new("/proc/self/exe")
        .arg0(PROGRAM)
        .arg(COMMAND)
        .env(STAGE, "lab")
        .spawn()
        .map_err(|error| failed("start the lab's first process", &error))?;
    let status = lab.wait().map_err(|error| failed("wait for the lab", &error))?;
    Ok(ExitCode::from(u8::try_from(crate::sandbox::exit_code(status)).unwrap_or(1)))
}

fn tie_to_parent() -> Result<(), InitError> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|errno| failed("follow the parent process", &errno))?;
    let parent = std::env::var(PARENT).ok().and_then(|pid| pid.parse().ok());
    // A parent that died before the wish was made sends no signal: then the process is already another's child.
    if parent.is_some_and(|pid: i32| nix::unistd::getppid().as_raw() != pid) {
        return Err(failed("start the lab", &"weft up has ended"));
    }
    Ok(())
}

/// New namespaces for the calling process, which must have one thread. Root needs no user namespace, unless its
/// capabilities were taken away, as in many containers.
fn enter_namespaces() -> Result<(), InitError> {
    let rest = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if uid.is_root() && unshare(rest).is_ok() {
        return Ok(());
    }
    unshare(rest | CloneFlags::CLONE_NEWUSER).map_err(|errno| refused("enter a user namespace", errno))?;
    let write = |file: &str, text: String| {
        std::fs::write(format!("/proc/self/{file}"), text)
            .map_err(|error| refused(&format!("write /proc/self/{file}"), errno_of(&error)))
    };
    write("setgroups", "deny".into())?;
    write("uid_map", format!("0 {uid} 1"))?;
    write("gid_map", format!("0 {gid} 1"))
}

/// First steps of process 1: private mounts, a `/proc` of its own where that is permitted, a name.
fn become_lab() -> Result<(), InitError> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|errno| failed("follow the parent process", &errno))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(|errno| refused("make mounts private", errno))?;
    // Refused inside some containers; then the outer /proc serves, and pods see that one too.
    let _ = mount_proc();
    let _ = nix::unistd::sethostname("weft-lab");
    raise_file_limit();
    Ok(())
}

/// Mounts `/proc` for this process's pid namespace.
fn mount_proc() -> nix::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>)
}

/// True when a new `/proc` can be mounted here, so that every container gets its own.
pub fn can_mount_proc() -> bool {
    std::fs::read_link("/proc/self").is_ok_and(|own| own == Path::new(&std::process::id().to_string()))
}

/// Every pod costs the lab a handful of descriptors; the usual soft limit of 1024 would end at some fifty pods.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Mounts the tmpfs under which pods' volumes live, on `folder`, which must exist. Only the lab sees it.
///
/// # Errors
/// When the mount is refused.
pub fn mount_run_folder(folder: &Path) -> Result<(), InitError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("weft-lab"), folder, Some("tmpfs"), flags, Some("mode=700"))
        .map_err(|errno| refused(&format!("mount {}", folder.display()), errno))
}

/// Takes over a descriptor that [`start`] passed on, and keeps it from the lab's own children.
///
/// # Errors
/// When it is not open.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    let fd = sys::inherited_fd(number)?;
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

fn failed(step: &str, cause: &dyn std::fmt::Display) -> InitError {
    InitError::Failed { step: step.into(), cause: cause.to_string() }
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn refused(step: &str, errno: Errno) -> InitError {
    let read = |path: &str| std::fs::read_to_string(format!("/proc/sys/{path}")).ok();
    let cause = format!("cannot {step}: {errno}");
    match errno {
        Errno::EPERM | Errno::EACCES | Errno::ENOSPC | Errno::EUSERS => {
            InitError::Forbidden { cause, remedy: remedy(read) }
        }
        _ => failed(step, &errno),
    }
}

/// The setting that forbids user namespaces, found by reading the settings that can (`read` gets a path below `/proc/sys`).
fn remedy(read: impl Fn(&str) -> Option<String>) -> String {
    let is = |path: &str, value: &str| read(path).is_some_and(|text| text.trim() == value);
    let set = |name: &str, value: &str| format!("set it with: sudo sysctl -w {name}={value}");
    if is("kernel/unprivileged_userns_clone", "0") {
        return set("kernel.unprivileged_userns_clone", "1");
    }
    if is("user/max_user_namespaces", "0") {
        return set("user.max_user_namespaces", "15000");
    }
    if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        return set("kernel.apparmor_restrict_unprivileged_userns", "0");
    }
    "the sysctls kernel.unprivileged_userns_clone, user.max_user_namespaces and \
     kernel.apparmor_restrict_unprivileged_userns permit them, so a container runtime or security module forbids it; \
     run as root, or outside the container"
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_setting_that_forbids() {
        for (setting, value, said) in [
            ("kernel/unprivileged_userns_clone", "0\n", "kernel.unprivileged_userns_clone=1"),
            ("user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
            ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
        ] {
            let text = remedy(|path| (path == setting).then(|| value.to_string()));
            assert!(text.contains("sudo sysctl -w") && text.contains(said), "{text}");
        }
        assert!(remedy(|_| None).contains("user.max_user_namespaces"));
        let error = refused("enter a user namespace", Errno::EPERM).to_string();
        assert!(error.contains("does not permit user namespaces"), "{error}");
    }
}
