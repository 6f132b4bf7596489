//! A lab's life: it starts quickly, is alone, and leaves nothing behind, however it ends.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};
use weft_journeys::lab::{text, weft};
use weft_journeys::processes::{descendants, host_state};
use weft_journeys::{Lab, eventually};
use weft_test_ports::free_port;

const GONE: Duration = Duration::from_secs(60);

/// Every process below `weft up` at this moment.
fn processes(lab: &Lab) -> Result<Vec<Pid>> {
    let all = descendants(lab.pid(), "")?;
    ensure!(all.len() > 10, "a lab has more processes than {}", all.len());
    Ok(all)
}

fn all_gone(pids: &[Pid]) -> Result<()> {
    eventually(GONE, || {
        let left: Vec<_> = pids.iter().filter(|pid| kill(**pid, None).is_ok()).collect();
        ensure!(left.is_empty(), "{} processes are left", left.len());
        Ok(())
    })
}

#[test]
fn ctrl_c_leaves_nothing_behind() -> Result<()> {
    let before = host_state()?;
    let start = Instant::now();
    let mut lab = Lab::start(&[])?;
    println!("weft up was ready after {:.2?}", start.elapsed());
    ensure!(lab.greeting.contains(&lab.url("/productpage")), "{}", lab.greeting);
    let pids = processes(&lab)?;
    let status = lab.stop(Signal::SIGINT)?;
    ensure!(status.success(), "weft up ended with {status}");
    all_gone(&pids)?;
    // The kernel takes namespaces apart after their last process has ended.
    eventually(GONE, || {
        ensure!(host_state()? == before, "mounts or interfaces are left");
        Ok(())
    })
}

#[test]
fn kill_9_is_cleaned_up() -> Result<()> {
    let before = host_state()?;
    let mut lab = Lab::start(&[])?;
    let pids = processes(&lab)?;
    lab.stop(Signal::SIGKILL)?;
    all_gone(&pids)?;
    eventually(GONE, || {
        ensure!(host_state()? == before, "mounts or interfaces are left");
        Ok(())
    })?;
    // The same state folder serves again.
    let out = weft(lab.home(), &["status"]).output()?;
    ensure!(text(&out.stdout).contains("weft up") || text(&out.stderr).contains("weft up"), "status names the way on");
    Ok(())
}

#[test]
fn kill_9_of_the_inner_process_ends_the_lab() -> Result<()> {
    let mut lab = Lab::start(&[])?;
    let pids = processes(&lab)?;
    let inner = descendants(lab.pid(), "weft")?.into_iter().min().context("no inner process")?;
    kill(inner, Signal::SIGKILL)?;
    all_gone(&pids)?;
    eventually(GONE, || {
        ensure!(kill(lab.pid(), None).is_err() || lab.stop(Signal::SIGINT).is_ok(), "weft up is still there");
        Ok(())
    })
}

#[test]
fn a_second_up_says_that_one_is_running() -> Result<()> {
    let lab = Lab::start(&[])?;
    let out = weft(lab.home(), &["up", "--port", &free_port().to_string()]).output()?;
    let said = text(&out.stderr) + &text(&out.stdout);
    ensure!(!out.status.success(), "a second lab started");
    ensure!(said.contains("running") && said.contains("weft down"), "{said}");
    let down = lab.try_weft(&["down"])?;
    ensure!(down.status.success(), "{}", text(&down.stderr));
    eventually(GONE, || {
        ensure!(!lab.try_weft(&["get", "pods"])?.status.success(), "still answers");
        Ok(())
    })
}

#[test]
fn a_port_in_use_is_named() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port().to_string();
    let home = tempfile::tempdir()?;
    let out = weft(home.path(), &["up", "--port", &port]).output()?;
    let said = text(&out.stderr) + &text(&out.stdout);
    ensure!(!out.status.success() && said.contains(&port) && said.contains("--port"), "{said}");
    Ok(())
}
