//! Peers for the tests of `tests/interop` and `tests/protocol`, from published Go modules: Envoy's go-control-plane, a
//! collector of spans, and h2spec.
//! Built once, kept in the target folder.

use crate::{kube, run};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::PathBuf;

/// The Go module of ours that names the versions.
const MODULE: &str = "tests/interop/go";
/// Its commands.
const COMMANDS: [&str; 3] = ["control-plane", "collector", "h2spec"];

/// The folder of the programs; they are built when they are not there, or when the module has changed since.
pub fn programs() -> Result<PathBuf> {
    let folder = run::target().join("interop");
    let (stamp, module) = (folder.join("built-from"), run::root().join(MODULE));
    let mains = COMMANDS.map(|command| format!("{command}/main.go"));
    let mut source = String::new();
    for name in ["go.mod", "go.sum"].into_iter().chain(mains.iter().map(String::as_str)) {
        source += &fs::read_to_string(module.join(name)).with_context(|| format!("{MODULE}/{name}"))?;
    }
    let built = fs::read_to_string(&stamp).is_ok_and(|from| from == source);
    if built && COMMANDS.iter().all(|command| folder.join(command).is_file()) {
        return Ok(folder);
    }
    fs::create_dir_all(&folder)?;
    println!("building {}: a minute, once", COMMANDS.join(", "));
    // With a slash at its end the place of the output is a folder.
    let out = format!("{}/", folder.to_str().context("the target directory's path is not UTF-8")?);
    let packages = COMMANDS.map(|command| format!("./{command}"));
    let flags = ["-C", MODULE, "build", "-trimpath", "-ldflags=-s -w", "-o", &out];
    let arguments: Vec<&str> = flags.into_iter().chain(packages.iter().map(String::as_str)).collect();
    let go = kube::go()?;
    run::with_env(go.to_str().context("path")?, &arguments, &kube::go_env())?;
    fs::write(&stamp, source)?;
    Ok(folder)
}
