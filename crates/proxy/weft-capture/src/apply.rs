//! Runs `nft` in the network namespace of the calling thread.

use crate::config::CaptureConfig;
use crate::rules;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Why rules could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The program is not installed.
    #[error("{tool} is not installed or not in PATH; install the package nftables (apt-get install nftables)")]
    Missing {
        /// Its name.
        tool: &'static str,
    },
    /// It could not be started or spoken to.
    #[error("cannot run nft: {0}")]
    Io(#[from] std::io::Error),
    /// It refused the rules; nothing was changed.
    #[error("nft refused the rules: {0}")]
    Refused(String),
}

/// Applies the rules in the calling thread's network namespace, replacing an earlier set.
///
/// # Errors
/// When `nft` is missing or refuses; then nothing has changed.
pub fn apply(config: &CaptureConfig) -> Result<(), CaptureError> {
    run_nft(&rules::render(config))
}

/// Removes the rules from the calling thread's network namespace; no error where there are none.
///
/// # Errors
/// When `nft` is missing or refuses.
pub fn remove() -> Result<(), CaptureError> {
    run_nft(&rules::render_removal())
}

/// Gives `text` to `nft -f -` in the calling thread's network namespace: all of it takes effect, or nothing.
///
/// # Errors
/// When `nft` is missing or refuses.
pub fn run_nft(text: &str) -> Result<(), CaptureError> {
    let nft = find_tool("nft").ok_or(CaptureError::Missing { tool: "nft" })?;
    let mut child = Command::new(nft)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A refusal closes the pipe early; what nft then says on stderr is the better message.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(CaptureError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_string()))
}

/// Finds a program in `PATH` or in the system directories that an ordinary user's `PATH` leaves out.
pub fn find_tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}
