//! The measurements beside peers: installs them, builds what is measured, and runs `weft-bench`.

use crate::{peers, run};
use anyhow::Result;

/// Runs all measurements, or what the arguments choose (`weft-bench --help`); the figures are left under the target folder.
pub fn run(arguments: &[&str]) -> Result<()> {
    let peers = peers::install()?;
    run::cargo(&["build", "--release", "--quiet", "-p", "weft-proxy", "-p", "weftd", "-p", "weft-bench"])?;
    let release = run::target().join("release");
    let (json, markdown) = (run::target().join("bench.json"), run::target().join("bench.md"));
    let program = release.join("weft-bench");
    let (json_text, markdown_text) = (json.to_string_lossy(), markdown.to_string_lossy());
    let mut all = vec!["--json", &*json_text, "--markdown", &*markdown_text];
    all.extend(arguments);
    let env = [("ENVOY", peers.envoy.as_path()), ("WEFT_BIN_DIR", release.as_path())];
    run::with_env(&program.to_string_lossy(), &all, &env)?;
    println!("figures: {} and {}", json.display(), markdown.display());
    Ok(())
}
