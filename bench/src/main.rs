//! Weft's proxy and its peers, measured side by side in one run: `cargo xtask bench`. Every figure is to be read as a ratio
//! between programs of the same run; rounds go through all peers in turn, so that a busy minute of the machine hits all.
//!
//! Reading order: [`cases`] (what is measured), [`pair`] (the proxies), [`config`] (their files), [`load`] and [`backend`]
//! (both ends of the traffic), [`report`].

mod backend;
mod cases;
mod child;
mod config;
mod control_plane;
mod instructions;
mod jwt;
mod load;
mod on_demand;
mod pair;
mod pki;
mod report;

use anyhow::{Context as _, Result, bail};
use cases::{Bench, CASES, Case};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pair::Programs;
use report::Report;
use std::path::PathBuf;
use std::time::Duration;

/// Open files of this program and of each that it starts: the case of open connections needs two for each.
const FILES: u64 = 60_000;

#[derive(Parser)]
#[command(about = "Measures weft-proxy beside Envoy, haproxy and nginx, and prints tables with ratios.")]
struct Cli {
    /// One round of short measurements, smaller sizes: within three minutes.
    #[arg(long)]
    quick: bool,
    /// Rounds through all peers [default: 3; with --quick 1].
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of one measurement [default: 6; with --quick 2].
    #[arg(long)]
    seconds: Option<u64>,
    /// Only cases whose name contains this; may be given again.
    #[arg(long)]
    only: Vec<String>,
    /// Services of the simulated mesh [default: 1000; with --quick 300].
    #[arg(long)]
    services: Option<usize>,
    /// Proxies of the simulated mesh [default: 500; with --quick 60].
    #[arg(long)]
    proxies: Option<usize>,
    /// Counts the instructions of requests, with valgrind, instead of measuring time. Needs a program with its symbols only to
    /// tell what they are: the numbers are the same without.
    #[arg(long)]
    instructions: bool,
    /// Names the cases.
    #[arg(long)]
    list: bool,
    /// Writes all figures there as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes all tables there as Markdown.
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Folder of weft-proxy, built with --release.
    #[arg(long, env = "WEFT_BIN_DIR")]
    programs: PathBuf,
    /// Envoy's program.
    #[arg(long, env = "ENVOY", default_value = "envoy")]
    envoy: PathBuf,
}

impl Cli {
    fn cases(&self) -> &'static [Case] {
        if self.instructions { instructions::CASES } else { CASES }
    }
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if cli.list {
        cli.cases().iter().for_each(|case| println!("{:24} {}", case.name, case.about));
        return Ok(());
    }
    weft_tls::install_provider();
    let files = raise_files()?;
    // What is measured runs in folders of its own, where a relative path would lead nowhere.
    let programs = cli.programs.canonicalize().with_context(|| format!("--programs {}", cli.programs.display()))?;
    let folder = tempfile::tempdir()?;
    let bench = Bench {
        folder: folder.path().to_path_buf(),
        pki: pki::write(folder.path())?,
        programs: Programs {
            weft: programs.join("weft-proxy"),
            envoy: cli.envoy.clone(),
            files,
            counting: cli.instructions,
        },
        backend: backend::start()?,
        duration: Duration::from_secs(cli.seconds.unwrap_or(if cli.quick { 2 } else { 6 })),
        full: !cli.quick,
        mesh: control_plane::Size {
            services: cli.services.unwrap_or(if cli.quick { 300 } else { 1000 }).max(1),
            proxies: cli.proxies.unwrap_or(if cli.quick { 60 } else { 500 }).max(1),
            changes: if cli.quick { 30 } else { 100 },
        },
    };
    jwt::write(folder.path())?;
    let report = measure(&cli, &bench)?;
    if let Some(file) = &cli.json {
        std::fs::write(file, report.json()?).with_context(|| file.display().to_string())?;
    }
    if let Some(file) = &cli.markdown {
        std::fs::write(file, report.markdown()).with_context(|| file.display().to_string())?;
    }
    if report.weft_failed() {
        bail!("weft-proxy could not be measured everywhere; see above");
    }
    Ok(())
}

/// Raises the limit of open files as far as this machine lets, for the programs started too.
fn raise_files() -> Result<usize> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Root may go beyond, where nothing else forbids it.
    let files = if setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES.max(most)).is_ok() { FILES } else { most };
    setrlimit(Resource::RLIMIT_NOFILE, files, files.max(most)).context("cannot raise the limit of open files")?;
    Ok(usize::try_from(files)?)
}

fn measure(cli: &Cli, bench: &Bench) -> Result<Report> {
    let rounds = cli.rounds.unwrap_or(if cli.quick { 1 } else { 3 }).max(1);
    let chosen = |name: &str| cli.only.is_empty() || cli.only.iter().any(|part| name.contains(part.as_str()));
    let mut report = Report::default();
    for case in cli.cases().iter().filter(|case| chosen(case.name)) {
        report.case(case.name, case.about);
        for round in 0..rounds {
            for peer in case.peers {
                eprintln!("{}: {} (round {} of {rounds})", case.name, peer.name(), round + 1);
                match (case.run)(bench, *peer) {
                    Ok(figures) => report.add(*peer, figures),
                    Err(error) => {
                        let log = last_words(bench, peer.name());
                        report.fail(*peer, format!("{error:#}{log}"));
                    }
                }
            }
        }
        print!("{}", report.last());
    }
    Ok(report)
}

/// The ends of a peer's logs.
fn last_words(bench: &Bench, peer: &str) -> String {
    let mut words = String::new();
    for side in ["client", "server", "services"] {
        let text = std::fs::read_to_string(bench.folder.join(format!("{peer}-{side}.log"))).unwrap_or_default();
        if let Some(line) = text.lines().rfind(|line| !line.trim().is_empty()) {
            words.push_str(&format!("; {side}'s log: {line}"));
        }
    }
    words
}
