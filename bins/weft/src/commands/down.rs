//! `weft down`: ends the lab that runs, wherever it was started.

use crate::{connect, output};
use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use weft_node::host::StateFolder;

/// How long the lab gets to end by itself.
const END: Duration = Duration::from_secs(10);

/// Stop the lab.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// State directory [default: $WEFT_HOME, else $XDG_STATE_HOME/weft, else ~/.local/state/weft]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// Stops the lab. That none runs is no error.
///
/// # Errors
/// When it cannot be stopped.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let state = StateFolder::open(&args.state.unwrap_or_else(connect::home))?;
    let Some(running) = state.running()? else {
        output::line("No lab is running.")?;
        return Ok(ExitCode::SUCCESS);
    };
    let pid = i32::try_from(running.pid).ok().filter(|pid| *pid > 1);
    let pid = Pid::from_raw(pid.context("the lock file names no process; the lab is just starting: try again")?);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        match kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => bail!("cannot stop process {pid}: {errno}"),
        }
        // The lock, not the process, says that the lab is over: the kernel frees it last.
        let deadline = Instant::now() + END;
        while Instant::now() < deadline {
            if state.running()?.is_none() {
                output::line("The lab has stopped.")?;
                return Ok(ExitCode::SUCCESS);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    bail!("process {pid} does not end")
}
