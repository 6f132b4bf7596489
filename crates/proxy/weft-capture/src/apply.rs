//! Runs `nft`, or where it is missing `iptables`, in the network namespace of the calling thread.

use crate::config::{CaptureConfig, InboundMode};
use crate::{legacy, rules};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Why rules could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The program is not installed.
    #[error("{tool} is not installed or not in PATH; install the package nftables or iptables")]
    Missing {
        /// Its name.
        tool: &'static str,
    },
    /// None of the programs is installed.
    #[error("neither nft nor iptables-restore is installed or in PATH; install the package nftables or iptables")]
    NoTool,
    /// It could not be started or spoken to.
    #[error("cannot run the program that sets rules: {0}")]
    Io(#[from] std::io::Error),
    /// It refused the rules; nothing was changed.
    #[error("the rules were refused: {0}")]
    Refused(String),
}

/// The program that sets the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// `nft`: all rules at once, in a table of their own.
    Nftables,
    /// `iptables-restore` and `ip6tables-restore`, in chains named as Istio names them.
    Iptables,
}

impl Backend {
    /// The one that is installed; `nft` before `iptables`.
    ///
    /// # Errors
    /// When there is none.
    pub fn installed() -> Result<Self, CaptureError> {
        match (find_tool("nft"), find_tool("iptables-restore")) {
            (Some(_), _) => Ok(Self::Nftables),
            (None, Some(_)) => Ok(Self::Iptables),
            (None, None) => Err(CaptureError::NoTool),
        }
    }

    /// The rules as this program is told them.
    pub fn render(self, config: &CaptureConfig) -> String {
        match self {
            Self::Nftables => rules::render(config),
            Self::Iptables => {
                let [v4, v6] = legacy::render(config);
                format!("# iptables-restore --noflush\n{v4}# ip6tables-restore --noflush\n{v6}")
            }
        }
    }
}

/// Applies the rules by `backend` in the calling thread's network namespace, replacing an earlier set.
///
/// # Errors
/// When the program is missing or refuses.
pub fn apply_with(backend: Backend, config: &CaptureConfig) -> Result<(), CaptureError> {
    add_inbound_source();
    route(config)?;
    match backend {
        Backend::Nftables => run_nft(&rules::render(config)),
        Backend::Iptables => {
            remove_with(backend)?;
            let [v4, v6] = legacy::render(config);
            run("iptables-restore", &["--noflush"], &v4)?;
            // A machine without IPv6 has no such traffic either.
            match find_tool("ip6tables-restore") {
                Some(_) if std::path::Path::new("/proc/sys/net/ipv6").exists() => {
                    run("ip6tables-restore", &["--noflush"], &v6)
                }
                _ => Ok(()),
            }
        }
    }
}

/// Removes the rules of `backend`; no error where there are none.
///
/// # Errors
/// When the program is missing or refuses.
pub fn remove_with(backend: Backend) -> Result<(), CaptureError> {
    match backend {
        Backend::Nftables => remove(),
        Backend::Iptables => {
            unroute();
            for (tool, arguments) in legacy::removal() {
                match run(tool, &arguments, "") {
                    // What is not there cannot be removed.
                    Ok(()) | Err(CaptureError::Refused(_)) => {}
                    Err(CaptureError::Missing { .. }) if tool == "ip6tables" => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        }
    }
}

/// Applies the rules in the calling thread's network namespace, replacing an earlier set.
///
/// # Errors
/// When `nft` is missing or refuses; then nothing has changed.
pub fn apply(config: &CaptureConfig) -> Result<(), CaptureError> {
    apply_with(Backend::Nftables, config)
}

/// Whether there are rules, of either program, in the calling thread's network namespace.
///
/// # Errors
/// When none of the programs is installed.
pub fn is_applied() -> Result<bool, CaptureError> {
    let there = |tool: &'static str, arguments: &[&str]| match run(tool, arguments, "") {
        Ok(()) => Ok(true),
        Err(CaptureError::Refused(_) | CaptureError::Missing { .. }) => Ok(false),
        Err(error) => Err(error),
    };
    Backend::installed()?;
    Ok(there("nft", &["list", "table", "inet", rules::TABLE])?
        || there("iptables", &["-t", "nat", "-n", "-L", legacy::OUTPUT])?)
}

/// For `TPROXY`: packets with the mark are for this machine, whatever their destination. Rules and routes of an earlier
/// set-up are found and kept.
fn route(config: &CaptureConfig) -> Result<(), CaptureError> {
    let InboundMode::Tproxy { mark, table } = config.inbound_mode else { return Ok(()) };
    let (mark, table) = (mark.to_string(), table.to_string());
    for (family, all) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
        if family == "-6" && !std::path::Path::new("/proc/sys/net/ipv6").exists() {
            continue;
        }
        // Twice the same rule would be there twice.
        let _ = run("ip", &[family, "rule", "del", "fwmark", &mark, "lookup", &table], "");
        run("ip", &[family, "rule", "add", "fwmark", &mark, "lookup", &table], "")?;
        run("ip", &[family, "route", "replace", "local", all, "dev", "lo", "table", &table], "")?;
    }
    Ok(())
}

/// Removes what [`route`] has made with Istio's numbers; no error where there is nothing.
fn unroute() {
    let InboundMode::Tproxy { mark, table } = InboundMode::TPROXY else { return };
    let (mark, table) = (mark.to_string(), table.to_string());
    for family in ["-4", "-6"] {
        // What is not there cannot be removed; and without `ip` nothing was made.
        let _ = run("ip", &[family, "rule", "del", "fwmark", &mark, "lookup", &table], "");
        let _ = run("ip", &[family, "route", "flush", "table", &table], "");
    }
}

/// Gives the pod the address from which the proxy calls its application over IPv6; all of 127.0.0.0/8 is there by itself.
/// Without it such calls fail, and nothing else does.
fn add_inbound_source() {
    let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
    if disabled.is_ok_and(|text| text.trim() == "0") {
        // It may be there already.
        let _ = run("ip", &["-6", "address", "add", rules::INBOUND_SOURCE_V6, "dev", "lo"], "");
    }
}

/// Removes the rules from the calling thread's network namespace; no error where there are none.
///
/// # Errors
/// When `nft` is missing or refuses.
pub fn remove() -> Result<(), CaptureError> {
    unroute();
    run_nft(&rules::render_removal())
}

/// Gives `text` to `nft -f -` in the calling thread's network namespace: all of it takes effect, or nothing.
///
/// # Errors
/// When `nft` is missing or refuses.
pub fn run_nft(text: &str) -> Result<(), CaptureError> {
    run("nft", &["-f", "-"], text)
}

fn run(tool: &'static str, arguments: &[&str], text: &str) -> Result<(), CaptureError> {
    let program = find_tool(tool).ok_or(CaptureError::Missing { tool })?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A refusal closes the pipe early; what is then said on stderr is the better message.
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
