//! Running other programs, with their output shown and their failure named.

use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The root of the project.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Where cargo builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Runs cargo in the project's root.
pub fn cargo(args: &[&str]) -> Result<()> {
    with_env(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()), args, &[])
}

/// Runs a program in the project's root.
pub fn command(program: &str, args: &[&str]) -> Result<()> {
    with_env(program, args, &[])
}

/// Runs a program with more environment, and says how long it took.
pub fn with_env(program: &str, args: &[&str], env: &[(&str, &Path)]) -> Result<()> {
    let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned();
    println!("==> {name} {}", args.join(" "));
    let start = Instant::now();
    let mut command = Command::new(program);
    command.args(args).current_dir(root()).stdin(Stdio::null()).envs(env.iter().copied());
    let status = command.status().with_context(|| format!("cannot start {program}"))?;
    println!("    {:.1}s", start.elapsed().as_secs_f64());
    if !status.success() {
        bail!("{name} {} failed: {status}", args.join(" "));
    }
    Ok(())
}

/// True when `program` answers `args` with success.
pub fn works(program: &Path, args: &[&str]) -> bool {
    let done =
        Command::new(program).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}
