//! The programs that the lab runs beside this one. `cargo run` builds only the program that it runs, so under cargo the others
//! are built here.

use super::building;
use crate::output;
use crate::waiting::Waiting;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Programs that must lie beside this one.
const PROGRAMS: [&str; 3] = ["weftd", "weft-proxy", "weft-samples"];

/// The folder of Weft's programs.
///
/// # Errors
/// Which are missing, and how to build them.
pub fn find() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let own = std::fs::canonicalize(&own).unwrap_or(own);
    let folder = own.parent().context("this program's file has no folder")?.to_path_buf();
    if let Some(cargo) = std::env::var_os("CARGO") {
        build(Path::new(&cargo), &folder)?;
    }
    let missing: Vec<&str> = PROGRAMS.into_iter().filter(|name| !folder.join(name).is_file()).collect();
    if missing.is_empty() {
        return Ok(folder);
    }
    bail!(
        "{} must lie beside weft in {}, and {} not; in Weft's source tree build all of them with: cargo build --release",
        PROGRAMS.join(", "),
        folder.display(),
        if missing.len() == 1 { format!("{} does", missing[0]) } else { format!("{} do", missing.join(" and ")) },
    )
}

/// The Envoy to run in pods. A Python package of Envoy installs a small script that starts the program itself from inside the
/// package; pods have no such Python, so the program is looked up here.
///
/// # Errors
/// When the file cannot be read or is no program.
pub fn envoy(path: &Path) -> anyhow::Result<PathBuf> {
    let full = std::fs::canonicalize(path).with_context(|| format!("cannot read {}", path.display()))?;
    if is_elf(&full) {
        return Ok(full);
    }
    // BIN/envoy → LIB/python3.x/site-packages/PACKAGE/…/envoy
    let root = full.parent().and_then(Path::parent).map(|prefix| prefix.join("lib"));
    let found = root.and_then(|root| find_elf(&root, 6));
    found.with_context(|| {
        format!("{} is no program, nor a script beside one; name the envoy program itself", full.display())
    })
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic));
    read.is_ok() && magic == *b"\x7fELF"
}

/// An ELF file named `envoy`, at most `depth` folders down.
fn find_elf(folder: &Path, depth: u32) -> Option<PathBuf> {
    let entries: Vec<PathBuf> = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    let named = |path: &&PathBuf| path.file_name().is_some_and(|name| name == "envoy") && is_elf(path);
    if let Some(found) = entries.iter().find(named) {
        return Some(found.clone());
    }
    let below = entries.iter().filter(|path| depth > 0 && path.is_dir() && !path.is_symlink());
    below.into_iter().find_map(|path| find_elf(path, depth - 1))
}

/// Builds what is missing or out of date, with the profile that this program was built with.
fn build(cargo: &Path, folder: &Path) -> anyhow::Result<()> {
    // A test's or another project's cargo is none of our business: only the tree that this program comes from counts.
    let Some(manifest) =
        std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).filter(|dir| dir.ends_with("bins/weft"))
    else {
        return Ok(());
    };
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    if PROGRAMS.iter().any(|name| !folder.join(name).is_file()) {
        output::note_plain(format!(
            "Building {} (profile {profile}). The first build takes some minutes …",
            PROGRAMS.join(", ")
        ));
    }
    let root = manifest.ancestors().nth(2).context("the folder of this program's package is not in a workspace")?;
    let mut command = cargo_in(cargo, root);
    command.args(["build", "--profile", profile]);
    // By program, not by package: so the features of the libraries are those that the build of this program settled on, and
    // nothing is compiled a second time.
    for name in PROGRAMS {
        command.args(["--bin", name]);
    }
    // Beside this program is where the build must put them, wherever that is.
    if let Some(target) = folder.parent() {
        command.arg("--target-dir").arg(target);
    }
    let mut list = cargo_in(cargo, root);
    list.args(["tree", "--quiet", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"]);
    for name in PROGRAMS {
        list.args(["--package", name]);
    }
    if building::run(command, list, &mut Waiting::on_errors())? {
        return Ok(());
    }
    bail!("{} could not be built; see cargo's messages above", PROGRAMS.join(", "))
}

/// Cargo, without its variables for this program: they would make the other builds look changed.
fn cargo_in(cargo: &Path, root: &Path) -> Command {
    let mut command = Command::new(cargo);
    command.current_dir(root);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "CARGO_BIN_NAME" {
            command.env_remove(&name);
        }
    }
    command
}
