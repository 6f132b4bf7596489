//! `weft up` and `weft down` as a user types them: one lab at a time, ports that are taken, Ctrl-C, the background. Without
//! Bookinfo, and without waiting for the gateway: what the mesh does is tested elsewhere.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(60);

fn weft(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.args(arguments).env("WEFT_HOME", home).current_dir(home).stdin(Stdio::null());
    command
}

fn run(home: &Path, arguments: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } = weft(home, arguments).output().unwrap();
    let text = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
    (status.code().unwrap_or(-1), text)
}

/// Whether a lab can run here at all; says so when not.
fn permitted() -> bool {
    let tools = weft_capture::find_tool("nft").is_some();
    let flags = if nix::unistd::geteuid().is_root() { "-n" } else { "-Urn" };
    let unshare = Command::new("unshare").args([flags, "true"]).stderr(Stdio::null()).status();
    let permitted = tools && unshare.is_ok_and(|status| status.success());
    if !permitted {
        eprintln!("skipped: needs nft, and permission to make namespaces");
    }
    permitted
}

/// A `weft up` in the foreground, up to the line that says that its objects are applied.
fn up(home: &Path) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = weft(home, &["up", "--no-bookinfo", "--port", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("the objects are applied") {
        line.clear();
        if output.read_line(&mut line).unwrap() == 0 {
            let mut errors = String::new();
            child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
            panic!("the lab did not start: {errors}");
        }
    }
    (child, output)
}

fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

/// Processes that have a file of this lab open or were started by it are gone when its folder is named by none.
fn nothing_left(home: &Path) {
    let end = Instant::now() + BOUND;
    loop {
        let left: Vec<String> = std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
            .filter(|entry| {
                let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
                String::from_utf8_lossy(&environment).contains(&*home.to_string_lossy())
            })
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < end, "processes of the lab are left: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&*home.to_string_lossy()), "{mounts}");
    assert!(!Path::new("/sys/class/net/weft0").exists());
}

#[test]
fn one_lab_at_a_time_and_ctrl_c() {
    if !permitted() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let (mut child, mut output) = up(home.path());
    let (code, text) = run(home.path(), &["up"]);
    assert_eq!(code, 1);
    assert!(text.contains(&child.id().to_string()) && text.contains("weft down"), "{text}");
    let (code, text) = run(home.path(), &["get", "services", "-n", "istio-system"]);
    assert!(code == 0 && text.contains("istio-ingressgateway"), "{text}");
    signal(&child, nix::sys::signal::Signal::SIGINT);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{rest}");
    nothing_left(home.path());
    let (code, text) = run(home.path(), &["down"]);
    assert!(code == 0 && text.contains("No lab"), "{text}");
}

#[test]
fn a_killed_lab_is_cleaned_up_by_the_next() {
    if !permitted() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let (mut child, _output) = up(home.path());
    signal(&child, nix::sys::signal::Signal::SIGKILL);
    child.wait().unwrap();
    nothing_left(home.path());
    let (mut child, _output) = up(home.path());
    let (code, text) = run(home.path(), &["down"]);
    assert!(code == 0 && text.contains("has stopped"), "{text}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    nothing_left(home.path());
}

#[test]
fn mistakes_are_named_before_anything_starts() {
    if !permitted() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port().to_string();
    let config = home.path().join("lab.yaml");
    std::fs::write(&config, "image:\n  a: b\n").unwrap();
    let config = config.display().to_string();
    for (arguments, said) in [
        (vec!["up", "--port", port.as_str()], vec![port.as_str(), "--port", "process"]),
        (vec!["up", "--port", "0", "--config", &config], vec!["lab.yaml", "images:"]),
        (vec!["up", "--port", "0", "-f", "/no/such/file.yaml"], vec!["/no/such/file.yaml"]),
        (vec!["up", "--publish", "nonsense"], vec!["HOST-PORT:SERVICE"]),
    ] {
        let (code, text) = run(home.path(), &arguments);
        assert_ne!(code, 0, "{arguments:?}");
        for word in said {
            assert!(text.contains(word), "{arguments:?}: {word} not in: {text}");
        }
    }
    nothing_left(home.path());
}
