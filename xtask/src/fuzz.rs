//! Fuzzing: builds the targets of `fuzz/` with coverage counters and runs them. `fuzz/README.md` says what each tries.
//!
//! Stable Rust has no sanitizers, but the compiler's passes that count coverage are at hand as code-generation options; that is
//! all libFuzzer needs to find its way. `cargo fuzz` works in that folder too, where a nightly compiler is.

use crate::run;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What makes the compiler count edges, and note what is compared with what.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                        -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Named, so that build scripts and macros are built without the counters.
const TRIPLE: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };
/// Seconds for each target, unless said otherwise.
const SECONDS: u64 = 60;
/// Targets at once.
const AT_ONCE: usize = 2;

struct Options {
    targets: Vec<String>,
    seconds: u64,
    build_only: bool,
}

/// `[TARGET…] [--seconds N] [--build] [--list]`.
pub fn run(arguments: &[&str]) -> Result<()> {
    let all = targets()?;
    if arguments == ["--list"] {
        all.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let options = read(arguments, &all)?;
    let folder = run::root().join("fuzz");
    let built = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| folder.join("target"), PathBuf::from);
    build(&folder, &built)?;
    if options.build_only {
        return Ok(());
    }
    let mut failed = Vec::new();
    for group in options.targets.chunks(AT_ONCE) {
        let start = |name: &String| Ok((name.clone(), start(&folder, &built, name, options.seconds)?));
        let running: Vec<(String, Child)> = group.iter().map(start).collect::<Result<_>>()?;
        for (name, mut child) in running {
            let status = child.wait().with_context(|| name.clone())?;
            println!("{name}: {}", if status.success() { "no finding" } else { "FOUND something, see above" });
            failed.extend((!status.success()).then_some(name));
        }
    }
    if !failed.is_empty() {
        bail!("findings in {}; the inputs are under fuzz/artifacts", failed.join(", "));
    }
    Ok(())
}

/// The names of all targets: the files of `fuzz/fuzz_targets`.
fn targets() -> Result<Vec<String>> {
    let folder = run::root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn read(arguments: &[&str], all: &[String]) -> Result<Options> {
    let mut options = Options { targets: Vec::new(), seconds: SECONDS, build_only: false };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match *argument {
            "--build" => options.build_only = true,
            "--seconds" => match rest.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0) {
                Some(seconds) => options.seconds = seconds,
                None => bail!("--seconds needs a number from 1"),
            },
            name if all.iter().any(|known| known == name) => options.targets.push(name.into()),
            other => bail!("no fuzz target {other:?}; there are {}", all.join(", ")),
        }
    }
    if options.targets.is_empty() {
        options.targets = all.to_vec();
    }
    Ok(options)
}

fn build(folder: &Path, built: &Path) -> Result<()> {
    println!("==> building the fuzz targets");
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    cargo.args(["build", "--release", "--bins", "--target", TRIPLE]).current_dir(folder).stdin(Stdio::null());
    cargo.env("RUSTFLAGS", COVERAGE).env("CARGO_TARGET_DIR", built);
    let status = cargo.status().context("cargo")?;
    if !status.success() {
        bail!("the fuzz targets do not build: {status}");
    }
    Ok(())
}

/// Starts a target: what it finds goes to `fuzz/artifacts`, what it learns to `fuzz/corpus`, beginning with `fuzz/seeds`.
fn start(folder: &Path, built: &Path, name: &str, seconds: u64) -> Result<Child> {
    let (corpus, artifacts) = (folder.join("corpus").join(name), folder.join("artifacts").join(name));
    for made in [&corpus, &artifacts] {
        std::fs::create_dir_all(made).with_context(|| made.display().to_string())?;
    }
    let seeds = folder.join("seeds").join(name);
    let mut command = Command::new(built.join(TRIPLE).join("release").join(name));
    command.arg(&corpus).args(seeds.exists().then_some(&seeds)).stdin(Stdio::null());
    command.args([format!("-max_total_time={seconds}"), format!("-artifact_prefix={}/", artifacts.display())]);
    // One input may take ten seconds and 2 GB; more is a finding too.
    command.args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=1"]);
    println!("==> {name} for {seconds} s");
    command.spawn().with_context(|| format!("cannot start {name}"))
}
