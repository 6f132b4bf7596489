//! `weft up --detach`: the same, in a process of its own.

use super::Args;
use crate::output;
use anyhow::{Context, bail};
use std::fs::File;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use weft_node::host::{HostError, StateFolder};

/// Pause between looks at whether the lab is ready.
const LOOK: Duration = Duration::from_millis(20);

/// Starts the lab in the background and waits until it is ready.
///
/// # Errors
/// When it cannot be started, with its own words.
pub fn run(args: &Args, state: &StateFolder) -> anyhow::Result<ExitCode> {
    if let Some(running) = state.running()? {
        return Err(HostError::AlreadyRunning(running).into());
    }
    let path = state.log().with_file_name("up.log");
    let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let errors = log.try_clone().context("cannot write the log")?;
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let given = std::env::args_os().skip(1).filter(|argument| argument != "--detach" && argument != "-d");
    let mut child = Command::new(own)
        .args(given)
        .arg("--in-background")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .context("cannot start the lab in the background")?;
    let ready = wait(&mut child, state, args.timeout)?;
    output::print(&std::fs::read_to_string(&path).unwrap_or_default().replace("Ctrl-C stops everything.\n", ""))?;
    if !ready && child.try_wait()?.is_some() {
        bail!("the lab did not start; its messages are above and in {}", path.display());
    }
    output::line(format!("The lab runs in the background (process {}). Stop it with: weft down", child.id()))?;
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn wait(child: &mut Child, state: &StateFolder, limit: Duration) -> anyhow::Result<bool> {
    let deadline = Instant::now() + limit + Duration::from_secs(5);
    while Instant::now() < deadline && child.try_wait().context("cannot wait for the lab")?.is_none() {
        if state.running()?.is_some_and(|running| running.ready && running.pid == child.id()) {
            return Ok(true);
        }
        std::thread::sleep(LOOK);
    }
    Ok(false)
}
