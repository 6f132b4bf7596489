//! What a journey is, and how one is run: in a lab of its own, step by step, each step proving capabilities of the spec by
//! their ids. Which journeys there are stands in [`catalogue`](crate::catalogue).

use crate::Lab;
use anyhow::{Context as _, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A journey of the spec.
#[derive(Clone, Copy)]
pub struct Journey {
    /// Number of the spec's file and id there: `1:J-MIR`.
    pub id: &'static str,
    /// What it is about.
    pub title: &'static str,
    /// Capabilities of the spec that it proves; a run that leaves one unproven has failed.
    pub proves: &'static [&'static str],
    /// Why real Envoy cannot be the proxy; `None`: it can.
    pub not_with_envoy: Option<&'static str>,
    /// Further options of `weft up`, and [`WITH_ENVOY`].
    pub options: &'static [&'static str],
    /// The steps. An error ends the journey; a failed [`Run::check`] lets it go on.
    pub run: fn(&mut Run) -> Result<()>,
}

/// Among a journey's options: the lab knows real Envoy, whichever proxy runs beside the workloads.
pub const WITH_ENVOY: &str = "with Envoy";

/// Capabilities that do not hold yet, with which proxy (`None`: with both), and what is missing. Their checks are told as
/// gaps and fail nothing; an entry leaves this list with the change that closes it.
pub const GAPS: &[(&str, Option<Engine>, &str)] = &[(
    "2:WH-14",
    Some(Engine::Envoy),
    "sni_verifier was of Istio's own build of Envoy, up to 1.18; Envoy as published has nothing that compares two server names",
)];

fn gap(id: &str, engine: Engine) -> Option<&'static str> {
    let known =
        |(known, with, _): &&(&str, Option<Engine>, &str)| *known == id && with.is_none_or(|with| with == engine);
    GAPS.iter().find(known).map(|(_, _, missing)| *missing)
}

/// Which proxy runs beside the workloads and in the gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Weft's own.
    Weft,
    /// Real Envoy.
    Envoy,
}

/// A journey under way.
pub struct Run {
    /// Its lab.
    pub lab: Lab,
    /// The proxy.
    pub engine: Engine,
    id: &'static str,
    proven: BTreeSet<&'static str>,
    passed: u32,
    failed: u32,
}

/// What came of journeys: how many checks passed, how many failed.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Checks that held.
    pub passed: u32,
    /// Checks that did not, journeys that broke off, and capabilities left unproven.
    pub failed: u32,
}

/// Real Envoy: `$ENVOY`, else where the build machines have it.
///
/// # Errors
/// When it is not there.
pub fn envoy() -> Result<PathBuf> {
    let path = std::env::var_os("ENVOY").map_or_else(|| PathBuf::from("/opt/weft-peers/bin/envoy"), PathBuf::from);
    anyhow::ensure!(path.exists(), "Envoy is not at {}; cargo xtask peers installs it, ENVOY names it", path.display());
    Ok(path)
}

impl Journey {
    /// Runs the journey with an engine, and tells of each step.
    pub fn run(&self, engine: Engine) -> Tally {
        let start = Instant::now();
        let with = if engine == Engine::Envoy { ", with Envoy" } else { "" };
        println!("{}: {}{with}", self.id, self.title);
        if self.options.contains(&"dual") && !Path::new("/proc/sys/net/ipv6").exists() {
            println!("{}: skipped: this machine's kernel has no IPv6", self.id);
            return Tally::default();
        }
        let tally = match self.start(engine) {
            Ok(run) => self.steps(run),
            Err(error) => {
                println!("{}: FAILED to start: {error:#}", self.id);
                Tally { passed: 0, failed: 1 }
            }
        };
        println!(
            "{}: {} passed, {} failed in {:.1}s",
            self.id,
            tally.passed,
            tally.failed,
            start.elapsed().as_secs_f64()
        );
        tally
    }

    fn start(&self, engine: Engine) -> Result<Run> {
        let (known, others): (Vec<&str>, Vec<&str>) = self.options.iter().partition(|option| **option == WITH_ENVOY);
        let mut options: Vec<String> = others.into_iter().map(str::to_string).collect();
        if engine == Engine::Envoy || !known.is_empty() {
            let path = envoy()?.to_str().context("Envoy's path is not UTF-8")?.to_string();
            options.extend(["--envoy".into(), path]);
        }
        if engine == Engine::Envoy {
            options.extend(["--engine".into(), "envoy".into()]);
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let lab = Lab::start(&options)?;
        Ok(Run { lab, engine, id: self.id, proven: BTreeSet::new(), passed: 0, failed: 0 })
    }

    fn steps(&self, mut run: Run) -> Tally {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (self.run)(&mut run)));
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => run.fail("the journey broke off", &error),
            Err(_) => run.fail("the journey panicked", &anyhow::anyhow!("see above")),
        }
        let unproven: Vec<_> =
            self.proves.iter().filter(|id| !run.proven.contains(*id) && gap(id, run.engine).is_none()).collect();
        for id in unproven {
            run.fail(id, &anyhow::anyhow!("is left unproven"));
        }
        Tally { passed: run.passed, failed: run.failed }
    }
}

impl Run {
    /// One step: what it shows, the ids that it proves, and the proof. The journey goes on when it fails.
    pub fn check(&mut self, ids: &[&'static str], what: &str, proof: impl FnOnce(&Lab) -> Result<()>) -> bool {
        let start = Instant::now();
        let proven = proof(&self.lab);
        match &proven {
            Ok(()) => {
                self.passed += 1;
                self.proven.extend(ids);
                let time = start.elapsed().as_secs_f64();
                println!("{}: ok      {what} [{}] {time:.1}s", self.id, ids.join(" "));
            }
            Err(error) => match ids.iter().find_map(|id| gap(id, self.engine)) {
                Some(missing) => println!("{}: GAP     {what} [{}]: {missing}", self.id, ids.join(" ")),
                None => self.fail(&format!("{what} [{}]", ids.join(" ")), error),
            },
        }
        proven.is_ok()
    }

    /// A line about what was seen.
    pub fn note(&self, text: &str) {
        println!("{}:         {text}", self.id);
    }

    fn fail(&mut self, what: &str, error: &anyhow::Error) {
        self.failed += 1;
        println!("{}: FAILED  {what}: {error:#}", self.id);
    }
}
