//! The command line of journeys: which to run, with which proxy. Runs as `cargo xtask journey`.

use anyhow::{Result, bail};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use weft_journeys::catalogue;
use weft_journeys::coverage;
use weft_journeys::journey::{Engine, Journey, Tally};

const HELP: &str = "cargo xtask journey [ID…] [OPTION…]

  ID                  a journey (1:J-MIR) or all of a spec file (1:); none means all
  --list              list the journeys and what each proves
  --uncovered         list what of the spec no journey proves and no row of tests/journeys/README.md names (WEFT_SPEC: its folder)
  --engine ENGINE     weft (default) or envoy: which proxy runs beside workloads and in gateways
  --jobs N            how many labs at once (1)
";

struct Options {
    ids: Vec<String>,
    list: bool,
    uncovered: bool,
    engine: Engine,
    jobs: usize,
}

fn read(args: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options { ids: Vec::new(), list: false, uncovered: false, engine: Engine::Weft, jobs: 1 };
    let mut args = args.peekable();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--list" => options.list = true,
            "--uncovered" => options.uncovered = true,
            "--engine" => {
                options.engine = match args.next().as_deref() {
                    Some("weft") => Engine::Weft,
                    Some("envoy") => Engine::Envoy,
                    other => bail!("--engine is weft or envoy, not {other:?}"),
                }
            }
            "--jobs" => match args.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0) {
                Some(jobs) => options.jobs = jobs,
                None => bail!("--jobs needs a number from 1"),
            },
            "-h" | "--help" => bail!("{HELP}"),
            id if id.starts_with('-') => bail!("no option {id}\n\n{HELP}"),
            id => options.ids.push(id.into()),
        }
    }
    Ok(options)
}

fn chosen(options: &Options) -> Result<Vec<Journey>> {
    let all = catalogue::all();
    let fits = |journey: &Journey, id: &str| journey.id == id || (id.ends_with(':') && journey.id.starts_with(id));
    for id in &options.ids {
        if !all.iter().any(|journey| fits(journey, id)) {
            bail!("no journey {id}; cargo xtask journey --list shows them");
        }
    }
    let wanted = |journey: &Journey| options.ids.is_empty() || options.ids.iter().any(|id| fits(journey, id));
    Ok(all.into_iter().filter(wanted).collect())
}

fn list(journeys: &[Journey]) {
    for journey in journeys {
        let engines = journey.not_with_envoy.map_or("weft, envoy".into(), |why| format!("weft (not envoy: {why})"));
        println!("{:<10} {} [{engines}]\n           {}", journey.id, journey.title, journey.proves.join(" "));
    }
    println!("{} journeys", journeys.len());
}

/// A journey that has ended: what came of it, and how long it took.
type Done = (&'static str, Tally, Duration);

fn run_all(journeys: &[Journey], options: &Options) -> Vec<Done> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                while let Some(journey) = journeys.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begun = Instant::now();
                    let tally = journey.run(options.engine);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((journey.id, tally, begun.elapsed()));
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// The journeys with their times, the longest first, and what came of all; whether nothing failed.
fn conclude(mut done: Vec<Done>, begun: Instant) -> bool {
    done.sort_by_key(|(_, _, time)| std::cmp::Reverse(*time));
    for (id, tally, time) in &done {
        let failed = if tally.failed > 0 { format!(", {} FAILED", tally.failed) } else { String::new() };
        println!("{:7.1} s  {id:<16} {} passed{failed}", time.as_secs_f64(), tally.passed);
    }
    let sum = |of: fn(&Tally) -> u32| done.iter().map(|(_, tally, _)| of(tally)).sum::<u32>();
    let (passed, failed) = (sum(|tally| tally.passed), sum(|tally| tally.failed));
    println!("{} journeys in {:.0} s: {passed} passed, {failed} failed", done.len(), begun.elapsed().as_secs_f64());
    failed == 0
}

fn main() -> Result<ExitCode> {
    let options = read(std::env::args().skip(1))?;
    if options.uncovered {
        let left = coverage::uncovered(&coverage::folder(), &catalogue::all(), &options.ids)?;
        left.iter().for_each(|id| println!("{id}"));
        println!("{} capabilities that nobody answers for", left.len());
        return Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let mut journeys = chosen(&options)?;
    if options.list {
        list(&journeys);
        return Ok(ExitCode::SUCCESS);
    }
    if options.engine == Engine::Envoy {
        for (journey, why) in journeys.iter().filter_map(|journey| Some((journey, journey.not_with_envoy?))) {
            println!("{}: not with Envoy: {why}", journey.id);
        }
        journeys.retain(|journey| journey.not_with_envoy.is_none());
    }
    let begun = Instant::now();
    let all_hold = conclude(run_all(&journeys, &options), begun);
    Ok(if all_hold { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
