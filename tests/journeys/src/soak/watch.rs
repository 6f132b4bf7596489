//! What the soak measures of the processes of a lab: memory, descriptors, threads, every few seconds. Judged are those that
//! lived from the end of the warm-up to the end of the run.

use crate::{Lab, processes};
use anyhow::{Context as _, Result};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between measurements.
const EVERY: Duration = Duration::from_secs(5);
/// Programs that are watched.
const PROGRAMS: [&str; 2] = ["weft-proxy", "weftd"];
/// Growth over the judged time that is not called a leak, bytes: pages that one more connection or certificate touches.
const ALLOWED: f64 = 3e6;
/// The same as a share of what there was.
const ALLOWED_SHARE: f64 = 0.15;
/// Descriptors that may be more at the end than after the warm-up.
const ALLOWED_FILES: usize = 16;
/// Threads that may be there besides: look-ups of names and reads of files run on some that come and go.
const ALLOWED_THREADS: usize = 4;

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Duration,
    resident: f64,
    files: usize,
    threads: usize,
}

type Samples = BTreeMap<(&'static str, i32), Vec<Sample>>;

/// A watch over a lab's processes.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Samples>,
}

/// What a process did over the judged time.
#[derive(Debug)]
pub struct Growth {
    program: &'static str,
    pid: i32,
    /// Means of the first and of the last quarter, bytes.
    resident: (f64, f64),
    /// Slope of the straight line through all samples, bytes per hour.
    slope: f64,
    files: (usize, usize),
    threads: (usize, usize),
}

impl Growth {
    /// It holds more and more; `memory`: of that, too.
    pub fn is_leak(&self, memory: bool) -> bool {
        let (first, last) = self.resident;
        (memory && last - first > ALLOWED.max(first * ALLOWED_SHARE))
            || self.files.1 > self.files.0 + ALLOWED_FILES
            || self.threads.1 > self.threads.0 + ALLOWED_THREADS
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((first, last), hour) = (self.resident, self.slope / 1e6);
        write!(
            f,
            "{:10} {:7}: {:.1} → {:.1} MB ({hour:+.2} MB/h), {} → {} descriptors, {} → {} threads",
            self.program,
            self.pid,
            first / 1e6,
            last / 1e6,
            self.files.0,
            self.files.1,
            self.threads.0,
            self.threads.1
        )
    }
}

impl Watch {
    /// Starts to watch.
    ///
    /// # Errors
    /// When the processes cannot be listed.
    pub fn start(lab: &Lab) -> Result<Self> {
        let ancestor = lab.pid();
        processes::descendants(ancestor, PROGRAMS[0])?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = std::thread::spawn(move || {
            let (begun, mut all) = (Instant::now(), Samples::new());
            while !flag.load(Ordering::Relaxed) {
                for program in PROGRAMS {
                    for pid in processes::descendants(ancestor, program).unwrap_or_default() {
                        // A pod that is taken away ends while it is looked at.
                        if let Ok(sample) = measure(pid, begun.elapsed()) {
                            all.entry((program, pid.as_raw())).or_default().push(sample);
                        }
                    }
                }
                std::thread::sleep(EVERY);
            }
            all
        });
        Ok(Self { stop, thread })
    }

    /// Ends the watch; what is left of it when the first `warm_up` is left out.
    ///
    /// # Errors
    /// When no process lived long enough.
    pub fn stop(self, warm_up: Duration) -> Result<Vec<Growth>> {
        self.stop.store(true, Ordering::Relaxed);
        let all = self.thread.join().map_err(|_| anyhow::anyhow!("the watch panicked"))?;
        let end = all.values().flatten().map(|s| s.at).max().context("nothing was measured")?;
        let judged = all.into_iter().filter_map(|((program, pid), samples)| {
            let whole = samples.first()?.at <= warm_up && samples.last()?.at + 3 * EVERY >= end;
            let samples: Vec<Sample> = samples.into_iter().filter(|s| s.at >= warm_up).collect();
            (whole && samples.len() >= 4).then(|| growth(program, pid, &samples))
        });
        let judged: Vec<Growth> = judged.collect();
        anyhow::ensure!(
            PROGRAMS.iter().all(|p| judged.iter().any(|g| g.program == *p)),
            "too few processes: {judged:?}"
        );
        Ok(judged)
    }
}

fn measure(pid: Pid, at: Duration) -> Result<Sample> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let number = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        Ok(line.split_whitespace().next().context("empty")?.parse()?)
    };
    let files = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let threads = usize::try_from(number("Threads:")?)?;
    Ok(Sample { at, resident: number("VmRSS:")? as f64 * 1024.0, files, threads })
}

fn growth(program: &'static str, pid: i32, samples: &[Sample]) -> Growth {
    let quarter = (samples.len() / 4).max(1);
    let (first, last) = (&samples[..quarter], &samples[samples.len() - quarter..]);
    let mean = |part: &[Sample]| part.iter().map(|s| s.resident).sum::<f64>() / part.len() as f64;
    let most = |part: &[Sample], of: fn(&Sample) -> usize| part.iter().map(of).max().unwrap_or_default();
    let end = samples.last().copied();
    Growth {
        program,
        pid,
        resident: (mean(first), mean(last)),
        slope: slope(samples),
        files: (most(first, |s| s.files), end.map_or(0, |s| s.files)),
        threads: (most(first, |s| s.threads), end.map_or(0, |s| s.threads)),
    }
}

/// Slope of the line of least squares, bytes per hour.
fn slope(samples: &[Sample]) -> f64 {
    let count = samples.len() as f64;
    let hours = |s: &Sample| s.at.as_secs_f64() / 3600.0;
    let mean_x = samples.iter().map(hours).sum::<f64>() / count;
    let mean_y = samples.iter().map(|s| s.resident).sum::<f64>() / count;
    let above: f64 = samples.iter().map(|s| (hours(s) - mean_x) * (s.resident - mean_y)).sum();
    let below: f64 = samples.iter().map(|s| (hours(s) - mean_x).powi(2)).sum();
    if below > 0.0 { above / below } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(resident: impl Fn(u64) -> f64) -> Vec<Sample> {
        let sample = |n: u64| Sample { at: Duration::from_secs(n * 60), resident: resident(n), files: 10, threads: 4 };
        (0..30).map(sample).collect()
    }

    #[test]
    fn growth_is_seen_and_noise_is_not() {
        let steady = growth("p", 1, &samples(|n| 20e6 + (n % 3) as f64 * 1e5));
        assert!(!steady.is_leak(true) && steady.slope.abs() < 2e5, "{steady}");
        let leaking = growth("p", 1, &samples(|n| 20e6 + n as f64 * 2e5));
        assert!(leaking.is_leak(true) && (leaking.slope - 12e6).abs() < 1e4, "{leaking}");
    }
}
