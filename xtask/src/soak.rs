//! The soak: builds the programs as users get them, and runs `weft-soak`.

use crate::{peers, run};
use anyhow::Result;

/// Mixed load through a lab while everything changes; half an hour unless the arguments say otherwise.
pub fn run(arguments: &[&str]) -> Result<()> {
    peers::install()?;
    run::cargo(&["build", "--release", "--quiet"])?;
    run::cargo(&["build", "--release", "--quiet", "-p", "weft-journeys", "--bin", "weft-soak"])?;
    let release = run::target().join("release");
    run::with_env(&release.join("weft-soak").to_string_lossy(), arguments, &[("WEFT_BIN_DIR", release.as_path())])
}
