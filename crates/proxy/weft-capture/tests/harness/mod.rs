//! Tests in network namespaces made without privilege. A test process re-runs itself in them: a test harness has many threads,
//! and only a process with one may enter a user namespace.
#![allow(dead_code)]

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Bound of one wait.
pub const BOUND: Duration = Duration::from_secs(10);
const INNER: &str = "WEFT_NAMESPACES_INNER";
/// What the inner test says last.
const DONE: &str = "inner checks done";

/// Whether this process runs in the new namespaces.
pub fn is_inner() -> bool {
    std::env::var_os(INNER).is_some()
}

/// Ends the inner test.
pub fn done() {
    println!("{DONE}");
}

/// Runs the test `inner` of this file in new namespaces; says so and does nothing where the machine forbids it or lacks a
/// program.
pub fn run_inner(tools: &[&str]) {
    if is_inner() {
        return;
    }
    let works = Command::new("unshare").args(["-Urn", "true"]).status().is_ok_and(|s| s.success());
    if !works || tools.iter().any(|tool| weft_capture::find_tool(tool).is_none()) {
        eprintln!("skipped: needs unshare, user namespaces and {}", tools.join(", "));
        return;
    }
    let output = Command::new("unshare")
        .args(["-Urn"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "inner", "--nocapture", "--test-threads=1"])
        .env(INNER, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains(DONE), "{text}");
    if let Some(line) = text.lines().find(|line| line.starts_with("skipped")) {
        eprintln!("{line}");
    }
}

/// Runs `ip` here.
pub fn ip(line: &str) {
    let program = weft_capture::find_tool("ip").expect("ip is installed where the tests run");
    assert!(Command::new(program).args(line.split(' ')).status().unwrap().success(), "ip {line}");
}

/// A network namespace beside this one, joined with it by a cable. It goes with this value.
pub struct Neighbour(Child);

impl Neighbour {
    /// `here` is this end's address, `there` the other's; both in one /24.
    pub fn start(here: Ipv4Addr, there: Ipv4Addr) -> Self {
        // Named by a process; it ends by itself should this one be killed.
        let made = Self(Command::new("unshare").args(["-n", "sleep", "60"]).spawn().unwrap());
        let (own, begun) = (std::fs::read_link("/proc/self/ns/net").unwrap(), Instant::now());
        while std::fs::read_link(made.path()).is_ok_and(|namespace| namespace == own) {
            assert!(begun.elapsed() < BOUND, "unshare never came to its namespace");
            std::thread::sleep(Duration::from_millis(5));
        }
        ip("link set lo up");
        ip("link add near0 type veth peer name far0");
        ip(&format!("link set far0 netns {}", made.0.id()));
        ip(&format!("addr add {here}/24 dev near0"));
        ip("link set near0 up");
        for line in ["link set lo up", &format!("addr add {there}/24 dev far0"), "link set far0 up"] {
            assert!(made.enter().arg("ip").args(line.split(' ')).status().unwrap().success(), "ip {line}");
        }
        made
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }

    /// A command in it, its words to be added.
    pub fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-n", "-t", &self.0.id().to_string()]);
        command
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
