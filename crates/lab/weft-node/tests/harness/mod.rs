//! Runs each test in a lab of its own: `weft_node::init` starts this very program again, and the test is its process 1.
#![allow(dead_code)]

use serde::{Deserialize, Serialize};
use std::future::Future;
use std::io::{Read, Write};
use std::pin::Pin;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// An empty folder on which file trees are mounted.
pub const RUN_FOLDER: &str = "/mnt";
/// No test takes longer.
const BOUND: Duration = Duration::from_secs(20);
const AS_USER: &str = "WEFT_TEST_AS_USER";

/// A test.
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// Its body, run inside the lab.
    pub run: fn() -> Pin<Box<dyn Future<Output = ()>>>,
}

#[derive(Serialize, Deserialize)]
struct Options {
    case: String,
}

/// `main` of a test program.
pub fn main_with(cases: &[Case]) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|a| a == weft_node::init::COMMAND) {
        return weft_node::init::run(|options: Options| inside(cases, &options.case));
    }
    if arguments.iter().any(|a| a == "--list") {
        cases.iter().for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    let filter = arguments.iter().find(|a| !a.starts_with('-')).cloned().unwrap_or_default();
    run_all(cases, &filter)
}

fn run_all(cases: &[Case], filter: &str) -> ExitCode {
    let chosen: Vec<&Case> = cases.iter().filter(|case| case.name.contains(filter)).collect();
    println!("\nrunning {} tests", chosen.len());
    let (mut passed, mut failed) = (0, 0);
    if std::env::var_os(AS_USER).is_none() && nix::unistd::geteuid().is_root() {
        failed += usize::from(!again_as_user(filter));
    }
    for case in chosen {
        let start = Instant::now();
        match outside(case.name) {
            Ok(()) => {
                passed += 1;
                println!("test {} ... ok ({} ms)", case.name, start.elapsed().as_millis());
            }
            Err(text) if text.contains("does not permit user namespaces") || text.contains("nftables") => {
                println!("test {} ... skipped: {text}", case.name);
            }
            Err(text) => {
                failed += 1;
                println!("test {} ... FAILED\n{text}", case.name);
            }
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out\n");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Root skips the user namespace, so root also runs all tests as an ordinary user.
fn again_as_user(filter: &str) -> bool {
    let Ok(exe) = std::env::current_exe() else { return false };
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
    match command.arg(exe).arg(filter).env(AS_USER, "1").current_dir("/").status() {
        Ok(status) => status.success(),
        Err(error) => {
            println!("as an ordinary user: skipped, setpriv cannot be run: {error}");
            true
        }
    }
}

fn outside(case: &str) -> Result<(), String> {
    let options = Options { case: case.into() };
    let mut child = weft_node::init::start(&options, &[], Stdio::inherit()).map_err(|e| e.to_string())?;
    let mut text = String::new();
    let mut output = child.stdout.take().ok_or("no output")?;
    output.read_to_string(&mut text).map_err(|e| e.to_string())?;
    let status = child.wait().map_err(|e| e.to_string())?;
    if status.success() && text.contains("inside ok") { Ok(()) } else { Err(format!("{status}\n{text}")) }
}

fn inside(cases: &[Case], name: &str) -> ExitCode {
    let Some(case) = cases.iter().find(|case| case.name == name) else { return ExitCode::FAILURE };
    std::panic::set_hook(Box::new(|info| {
        let _ = writeln!(std::io::stdout(), "{info}");
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(BOUND, (case.run)()).await.expect("the test takes too long");
    });
    println!("inside ok");
    ExitCode::SUCCESS
}

/// Waits until `condition` holds, at most 30 seconds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(Instant::now() < end, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
