//! The system calls that no safe wrapper offers: process handles, capability bounds, recursive read-only mounts, and the
//! steps between fork and exec. The only `unsafe` code of this crate.
#![allow(unsafe_code)]

use nix::libc;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Capabilities by number (`linux/capability.h`).
pub mod cap {
    /// Network administration: needed to set `SO_MARK`, so only proxies get it.
    pub const NET_ADMIN: u32 = 12;
    /// What containers usually hold: file ownership and modes, kill, set ids, bind low ports, raw sockets, chroot.
    pub const CONTAINER: [u32; 14] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];
    /// Highest number tried when bounding; unknown ones are refused by the kernel and skipped.
    pub const LAST_TRIED: u32 = 63;
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opens a handle on a child, which never means another process, even after the child is gone.
///
/// # Errors
/// When there is no such process.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers, touches no memory; the returned descriptor is new and owned by no one else.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as libc::c_int))
    }
}

/// Sends a signal through a process handle.
///
/// # Errors
/// When the process has ended.
pub fn pidfd_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    let none: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: integers and a null pointer, which the call permits for its third argument.
    unsafe { check(libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0)).map(drop) }
}

/// Makes a mount and everything below it read-only, without set-user-id programs.
///
/// # Errors
/// When the path is no mount, or the kernel is older than 5.12.
pub fn mount_read_only(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a C string that outlives the call, the struct is fully set and its size is passed.
    unsafe {
        check(libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        ))
        .map(drop)
    }
}

/// What a process does between fork and exec.
#[derive(Debug, Clone)]
pub struct Hardening {
    /// Mount a new `/proc` (it shows the namespace of the mounting process, so only the child can do it).
    pub mount_proc: bool,
    /// Capabilities to keep; all others are dropped for good.
    pub keep: Vec<u32>,
    /// Make standard input the controlling terminal of a new session.
    pub terminal: bool,
}

/// Adds the steps of `hardening` to `command`.
pub fn harden(command: &mut Command, hardening: Hardening) {
    let mut drops: Vec<u32> = (0..=cap::LAST_TRIED).filter(|c| !hardening.keep.contains(c)).collect();
    drops.shrink_to_fit();
    let steps = move || {
        if hardening.mount_proc {
            mount_proc()?;
        }
        if hardening.terminal {
            take_terminal()?;
        }
        for &capability in &drops {
            // SAFETY: integers only. A number the kernel does not know gives EINVAL, and there is nothing to drop.
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability as libc::c_ulong, 0, 0, 0) };
        }
        // SAFETY: integers only.
        unsafe { check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into()).map(drop) }
    };
    // SAFETY: the closure runs after fork in a process that may hold others' locks: it makes system calls on memory prepared
    // before the fork, and allocates nothing (`io::Error` from an errno does not).
    unsafe {
        command.pre_exec(steps);
    }
}

/// Mounts `/proc` for the new process's own namespace, with the files that change the whole machine out of reach.
fn mount_proc() -> io::Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(c"proc", c"/proc", Some(c"proc"), flags)?;
    mount(c"/proc/sys", c"/proc/sys", None, libc::MS_BIND)?;
    mount(c"none", c"/proc/sys", None, flags | libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY)?;
    match mount(c"/dev/null", c"/proc/sysrq-trigger", None, libc::MS_BIND) {
        // Kernels built without the key have no such file.
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

fn mount(
    source: &std::ffi::CStr,
    target: &std::ffi::CStr,
    kind: Option<&std::ffi::CStr>,
    flags: u64,
) -> io::Result<()> {
    let kind = kind.map_or(std::ptr::null(), std::ffi::CStr::as_ptr);
    // SAFETY: C strings of static storage; a null data argument is permitted.
    unsafe { check(libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, std::ptr::null()).into()).map(drop) }
}

fn take_terminal() -> io::Result<()> {
    // SAFETY: no arguments; fails only for a group leader, which a forked child is not.
    unsafe { check(libc::setsid().into())? };
    // SAFETY: integers only; descriptor 0 is the terminal that the parent gave.
    unsafe { check(libc::ioctl(0, libc::TIOCSCTTY, 0).into()).map(drop) }
}

/// Sets the size of a terminal.
///
/// # Errors
/// When the descriptor is no terminal.
pub fn set_terminal_size(terminal: impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the struct is fully set and outlives the call.
    unsafe { check(libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size).into()).map(drop) }
}

/// Takes over a descriptor that the parent process left open for this one.
///
/// # Errors
/// When it is not open.
pub fn inherited_fd(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD reads a flag of the descriptor and tells whether it is open.
    unsafe { check(libc::fcntl(number, libc::F_GETFD).into())? };
    // SAFETY: open, as just checked; the parent names each number once in the options, so no one else owns it here.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Registers a descriptor with the runtime, to wait until it can be read or written.
///
/// # Errors
/// Outside a runtime, or when the descriptor cannot be waited for.
pub fn watch_fd(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open file for as long as it lives, and `AsyncFd` keeps it until it is dropped.
    unsafe { tokio::io::unix::AsyncFd::register(fd).map_err(Into::into) }
}
