//! The file tree of a container: an empty tmpfs with the machine's program folders (read-only), a private `/tmp`, a small
//! `/dev` and `/etc`, and the container's volumes. Built in the mount namespace of the calling thread.

use crate::sandbox::sys;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::pivot_root;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Folders of programs and libraries that every container sees, read-only, where the machine has them.
const SHARED: [&str; 10] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/nix", "/gnu"];
/// Files of `/etc` that programs need to start, read-only, where the machine has them.
const SHARED_ETC: [&str; 8] =
    ["ld.so.cache", "ld.so.conf", "ld.so.conf.d", "pki", "ca-certificates", "alternatives", "localtime", "protocols"];
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nistio-proxy:x:1337:1337::/:/usr/sbin/nologin\n\
                      nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nistio-proxy:x:1337:\nnogroup:x:65534:\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// Where a container finds trusted roots.
pub const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Folder of names for Weft's own programs, last in every container's `PATH`.
pub const OWN_PROGRAMS: &str = "/run/weft/bin";

/// A folder or file of the machine, or of a volume, that appears in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Where it is now.
    pub source: PathBuf,
    /// Where the container sees it; absolute.
    pub target: PathBuf,
    /// Not writable by the container.
    pub read_only: bool,
}

/// What makes one container's tree differ from another's.
#[derive(Debug, Clone, Default)]
pub struct RootFs {
    /// `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// `/etc/hosts`.
    pub hosts: String,
    /// `/etc/hostname`.
    pub hostname: String,
    /// Trusted roots, for [`CA_BUNDLE`]; empty: the machine's own stay.
    pub ca_bundle: PathBuf,
    /// Binds of programs' folders, then volumes, in this order.
    pub binds: Vec<Bind>,
    /// Names in [`OWN_PROGRAMS`] and the programs that they stand for.
    pub links: Vec<(String, PathBuf)>,
    /// The lab's own `/proc` serves the container too (where the kernel forbids mounting a new one).
    pub keep_proc: bool,
}

impl RootFs {
    /// Builds the tree on `mount_point` (any empty folder) and makes it the root of the calling thread, which must be alone
    /// in its mount namespace.
    ///
    /// # Errors
    /// With the step that failed.
    pub fn enter(&self, mount_point: &Path) -> io::Result<()> {
        let none: Option<&str> = None;
        step("make mounts private", mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        step(
            "mount the root",
            mount(Some("weft-root"), mount_point, Some("tmpfs"), flags, Some("mode=755,size=256m")),
        )?;
        self.base(mount_point)?;
        self.etc(&mount_point.join("etc"))?;
        devices(&mount_point.join("dev"))?;
        for bind in &self.binds {
            self.bind(mount_point, bind)?;
        }
        let old = mount_point.join(".old");
        std::fs::create_dir(&old)?;
        step("change the root", pivot_root(mount_point, &old))?;
        std::env::set_current_dir("/")?;
        step("leave the old root", umount2("/.old", MntFlags::MNT_DETACH))?;
        std::fs::remove_dir("/.old")
    }

    fn base(&self, root: &Path) -> io::Result<()> {
        for folder in ["etc", "dev", "proc", "sys", "run", "root", "var/log/nginx", "var/lib/nginx", "home"] {
            std::fs::create_dir_all(root.join(folder))?;
        }
        for folder in ["tmp", "var/tmp"] {
            std::fs::create_dir_all(root.join(folder))?;
            std::fs::set_permissions(root.join(folder), std::fs::Permissions::from_mode(0o1777))?;
        }
        symlink("/run", root.join("var/run"))?;
        // As in nginx's image: what it logs there is the container's log.
        for (log, stream) in [("access.log", "/dev/stdout"), ("error.log", "/dev/stderr")] {
            symlink(stream, root.join("var/log/nginx").join(log))?;
        }
        let own = root.join(OWN_PROGRAMS.trim_start_matches('/'));
        std::fs::create_dir_all(&own)?;
        self.links.iter().try_for_each(|(name, program)| symlink(program, own.join(name)))?;
        for shared in SHARED {
            share(root, Path::new(shared))?;
        }
        // A user namespace may mount a new /proc only where it can see one already: this one, which the new one will cover.
        bind(Path::new("/proc"), &root.join("proc"), false)
    }

    fn etc(&self, etc: &Path) -> io::Result<()> {
        for (name, text) in [
            ("resolv.conf", self.resolv_conf.as_str()),
            ("hosts", &self.hosts),
            ("hostname", &self.hostname),
            ("passwd", PASSWD),
            ("group", GROUP),
            ("nsswitch.conf", NSSWITCH),
        ] {
            std::fs::write(etc.join(name), text)?;
        }
        let root = etc.parent().unwrap_or(etc);
        SHARED_ETC.iter().try_for_each(|name| share(root, &Path::new("/etc").join(name)))?;
        if self.ca_bundle.as_os_str().is_empty() {
            return share(root, Path::new("/etc/ssl"));
        }
        // The folder is the container's own, because the machine's may lack the file.
        share(root, Path::new("/etc/ssl/openssl.cnf"))?;
        let bundle = root.join(CA_BUNDLE.trim_start_matches('/'));
        mount_point_like(&self.ca_bundle, &bundle)?;
        bind(&self.ca_bundle, &bundle, true)
    }

    fn bind(&self, root: &Path, wanted: &Bind) -> io::Result<()> {
        let relative = wanted
            .target
            .strip_prefix("/")
            .map_err(|_| io::Error::other(format!("mount path {} must be absolute", wanted.target.display())))?;
        if relative.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
            return Err(io::Error::other(format!("mount path {} must not contain ..", wanted.target.display())));
        }
        // The container's /var/run is a link to /run: followed here, inside the new tree, not on the machine.
        let relative = relative.strip_prefix("var/run").map_or_else(|_| relative.into(), |r| Path::new("run").join(r));
        let target = root.join(relative);
        let at = |error: io::Error| {
            io::Error::new(error.kind(), format!("cannot mount {}: {error}", wanted.target.display()))
        };
        mount_point_like(&wanted.source, &target).map_err(at)?;
        bind(&wanted.source, &target, wanted.read_only).map_err(at)
    }
}

/// Shows a path of the machine in the new tree at the same place: links are copied, the rest is bound read-only.
fn share(root: &Path, path: &Path) -> io::Result<()> {
    let Ok(kind) = std::fs::symlink_metadata(path) else { return Ok(()) };
    let target = root.join(path.strip_prefix("/").unwrap_or(path));
    if kind.is_symlink() {
        return symlink(std::fs::read_link(path)?, target);
    }
    mount_point_like(path, &target)?;
    bind(path, &target, true)
}

fn mount_point_like(source: &Path, target: &Path) -> io::Result<()> {
    if std::fs::metadata(source)?.is_dir() {
        return std::fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if target.exists() { Ok(()) } else { std::fs::write(target, "") }
}

fn bind(source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    let none: Option<&str> = None;
    mount(Some(source), target, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    if read_only { sys::mount_read_only(target) } else { Ok(()) }
}

fn devices(dev: &Path) -> io::Result<()> {
    for name in DEVICES {
        let source = Path::new("/dev").join(name);
        if source.exists() {
            let target = dev.join(name);
            std::fs::write(&target, "")?;
            bind(&source, &target, false)?;
        }
    }
    for (link, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(to, dev.join(link))?;
    }
    std::fs::create_dir(dev.join("shm"))?;
    std::fs::set_permissions(dev.join("shm"), std::fs::Permissions::from_mode(0o1777))?;
    // Terminals of `exec -t` are the lab's; without them the rest works, so an old kernel's refusal is not fatal.
    std::fs::create_dir(dev.join("pts"))?;
    let _ = bind(Path::new("/dev/pts"), &dev.join("pts"), false);
    Ok(())
}

fn step(what: &str, result: nix::Result<()>) -> io::Result<()> {
    result.map_err(|errno| io::Error::new(io::Error::from(errno).kind(), format!("cannot {what}: {errno}")))
}
