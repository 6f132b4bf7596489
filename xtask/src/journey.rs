//! `cargo xtask journey`: runs the user journeys of the spec, each in a lab of its own.
//!
//! The programs are built with the profile `journeys`, or those of the folder that `WEFT_BIN_DIR` names.

use crate::{peers, run};
use anyhow::Result;
use std::path::PathBuf;

/// Runs journeys; the arguments are theirs (`--help` shows them).
pub fn run(args: &[&str]) -> Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let talks_only = args.iter().any(|arg| ["--list", "--uncovered", "--help", "-h"].contains(arg));
    let mut bins = std::env::var_os("WEFT_BIN_DIR").map(PathBuf::from);
    if !talks_only && bins.is_none() {
        run::with_env(&cargo, &["build", "--profile", "journeys", "--quiet"], &[])?;
        bins = Some(run::target().join("journeys"));
    }
    let envoy = match std::env::var_os("ENVOY") {
        Some(path) => Some(PathBuf::from(path)),
        None if args.contains(&"envoy") && !talks_only => Some(peers::install()?.envoy),
        None => None,
    };
    let mut env = Vec::new();
    env.extend(bins.as_deref().map(|path| ("WEFT_BIN_DIR", path)));
    env.extend(envoy.as_deref().map(|path| ("ENVOY", path)));
    let fixed = ["run", "--quiet", "--package", "weft-journeys", "--"];
    run::with_env(&cargo, &[&fixed, args].concat(), &env)
}
