//! The life of an SVID: fetch, publish, renew in good time, try again when that fails, and stop showing it when it expires.

use crate::ca_client::{file_trust, request_svid};
use crate::secrets::FileTrust;
use crate::{CaError, SvidConfig, WorkloadSecrets, output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// Between the first tries of all; doubles.
const START_BACKOFF: Duration = Duration::from_millis(100);
/// Longest pause while the workload is starting: others start with it, and what it waits for comes within seconds.
const START_MAX_BACKOFF: Duration = Duration::from_secs(1);
/// How long a workload counts as starting.
const STARTING: Duration = Duration::from_secs(30);
/// Between first tries, later.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
/// Between later tries.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Between log lines that say the same.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Tries for an SVID of the authority that the roots' file puts first, after the file has changed. Several replicas of a
/// control plane do not take up a new authority in the same moment.
const ROTATION_TRIES: u32 = 6;
/// Between these tries at first; doubles.
const ROTATION_BACKOFF: Duration = Duration::from_secs(2);
/// Longest spread of the first of these tries: all workloads see the change at about the same time.
const ROTATION_SPREAD: Duration = Duration::from_secs(5);
/// Shortest sleep: a clock that stands still must not make the loop spin.
const SHORTEST_SLEEP: Duration = Duration::from_millis(10);

/// Where the SVID stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SvidStatus {
    /// There is none; why.
    Waiting(String),
    /// There is one, and it will be renewed in time.
    Ready {
        /// Its end.
        not_after: SystemTime,
    },
    /// There is one, but renewing it fails; why.
    Failing {
        /// Its end.
        not_after: SystemTime,
        /// Why renewing fails.
        reason: String,
    },
}

/// Counts and times, for metrics.
#[derive(Debug, Default)]
pub struct SvidStats {
    /// SVIDs received.
    pub fetched: AtomicU64,
    /// Tries that failed.
    pub failures: AtomicU64,
    /// End of the SVID in hand, seconds since 1970; 0 = there is none.
    pub expires_at: AtomicU64,
    /// Earliest end of a root, seconds since 1970; 0 = there is none.
    pub root_expires_at: AtomicU64,
    /// 1 = renewing is overdue and fails, or the identity is lost. Up from the first failure, which with the usual grace is
    /// half of a life before the end.
    pub alarm: AtomicU64,
}

/// Keeps an SVID at hand. Dropping it ends the renewing.
#[derive(Debug)]
pub struct SvidManager {
    secrets: watch::Receiver<Option<Arc<WorkloadSecrets>>>,
    status: watch::Receiver<SvidStatus>,
    stats: Arc<SvidStats>,
    renew: Arc<Notify>,
    task: JoinHandle<()>,
}

impl SvidManager {
    /// Starts fetching, on the current tokio runtime.
    pub fn start(config: SvidConfig) -> Self {
        let (secrets_out, secrets) = watch::channel(None);
        let (status_out, status) = watch::channel(SvidStatus::Waiting("the first request is under way".into()));
        let stats = Arc::new(SvidStats::default());
        let renew = Arc::new(Notify::new());
        let keeper = Keeper {
            config,
            secrets: secrets_out,
            status: status_out,
            stats: stats.clone(),
            renew: renew.clone(),
            started: Instant::now(),
            failures: 0,
            logged: None,
            files: None,
            rotation_tries: 0,
            next: SystemTime::UNIX_EPOCH,
        };
        let task = tokio::spawn(keeper.run());
        Self { secrets, status, stats, renew, task }
    }

    /// The secrets, now and after each change; `None` before the first and when they have expired.
    pub fn secrets(&self) -> watch::Receiver<Option<Arc<WorkloadSecrets>>> {
        self.secrets.clone()
    }

    /// Where things stand.
    pub fn status(&self) -> watch::Receiver<SvidStatus> {
        self.status.clone()
    }

    /// Counts and times.
    pub fn stats(&self) -> Arc<SvidStats> {
        self.stats.clone()
    }

    /// Fetches a new SVID now.
    pub fn renew_now(&self) {
        self.renew.notify_one();
    }
}

impl Drop for SvidManager {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Keeper {
    config: SvidConfig,
    secrets: watch::Sender<Option<Arc<WorkloadSecrets>>>,
    status: watch::Sender<SvidStatus>,
    stats: Arc<SvidStats>,
    renew: Arc<Notify>,
    started: Instant,
    /// Failures in a row.
    failures: u32,
    /// What was logged last, and when.
    logged: Option<(String, Instant)>,
    /// Whom the files say to trust, as last taken up.
    files: Option<FileTrust>,
    /// Tries left for an SVID of the authority that the roots' file puts first.
    rotation_tries: u32,
    /// When to fetch.
    next: SystemTime,
}

impl Keeper {
    /// Sleeps until something is due and does it. Looks at the wall clock each time, so that a machine that slept or a
    /// clock that was set is noticed within a poll of the roots' file.
    async fn run(mut self) {
        loop {
            let now = SystemTime::now();
            self.expire(now);
            if now >= self.next {
                self.fetch().await;
            }
            self.reload_roots().await;
            let now = SystemTime::now();
            let end = self.current().map_or(self.next, |secrets| secrets.svid.not_after);
            let due = self.next.min(end).duration_since(now).unwrap_or(Duration::ZERO);
            tokio::select! {
                () = tokio::time::sleep(due.min(self.config.root_poll).max(SHORTEST_SLEEP)) => {}
                () = self.renew.notified() => self.next = SystemTime::now(),
            }
        }
    }

    fn current(&self) -> Option<Arc<WorkloadSecrets>> {
        self.secrets.borrow().clone()
    }

    /// Takes an expired SVID back: no peer would accept it, and showing it would look like our peer's fault.
    fn expire(&mut self, now: SystemTime) {
        let Some(secrets) = self.current().filter(|secrets| !secrets.svid.is_valid_at(now)) else { return };
        let reason = match &*self.status.borrow() {
            SvidStatus::Failing { reason, .. } => format!("the SVID has expired and renewing it failed: {reason}"),
            _ => "the SVID has expired".to_owned(),
        };
        tracing::error!(identity = %secrets.svid.id, reason, "identity lost; connections that need it will fail");
        self.stats.expires_at.store(0, Ordering::Relaxed);
        self.stats.alarm.store(1, Ordering::Relaxed);
        if let Some(Err(error)) = self.config.output.as_deref().map(output::remove) {
            tracing::error!(%error, "the files of the lost identity could not be removed");
        }
        self.status.send_replace(SvidStatus::Waiting(reason));
        self.secrets.send_replace(None);
        self.next = self.next.min(now);
    }

    async fn fetch(&mut self) {
        let current = self.current();
        match request_svid(&self.config, current.as_deref()).await {
            Ok(secrets) => self.publish(secrets),
            Err(error) => self.failed(&error, current.as_deref()),
        }
    }

    fn publish(&mut self, secrets: WorkloadSecrets) {
        let now = SystemTime::now();
        let spread = self.config.jitter.clamp(0.0, 0.25) * (fastrand::f64() * 2.0 - 1.0);
        self.next = secrets.svid.rotate_at(now, (self.config.grace_ratio + spread).clamp(0.05, 0.95));
        if self.rotation_tries > 0 {
            self.look_for_the_new_authority(&secrets, now);
        }
        self.failures = 0;
        self.logged = None;
        self.stats.alarm.store(0, Ordering::Relaxed);
        self.stats.fetched.fetch_add(1, Ordering::Relaxed);
        self.stats.expires_at.store(unix(secrets.svid.not_after), Ordering::Relaxed);
        self.note_roots(&secrets);
        let in_seconds = |time: SystemTime| time.duration_since(now).unwrap_or_default().as_secs();
        tracing::info!(
            identity = %secrets.svid.id,
            serial = secrets.certificate.facts().serial,
            expires_in_seconds = in_seconds(secrets.svid.not_after),
            renewed_in_seconds = in_seconds(self.next),
            "identity received"
        );
        self.write_files(&secrets);
        self.status.send_replace(SvidStatus::Ready { not_after: secrets.svid.not_after });
        self.secrets.send_replace(Some(Arc::new(secrets)));
    }

    /// After a change of the roots' file: asks again soon when this SVID is still of the authority before.
    fn look_for_the_new_authority(&mut self, secrets: &WorkloadSecrets, now: SystemTime) {
        let agrees = self.files.as_ref().is_none_or(|files| secrets.agrees_with(&files.roots));
        self.rotation_tries = if agrees { 0 } else { self.rotation_tries - 1 };
        if self.rotation_tries > 0 {
            let tried = ROTATION_TRIES - self.rotation_tries;
            self.next = self.next.min(now + ROTATION_BACKOFF.saturating_mul(1 << tried.min(10)));
        }
    }

    fn write_files(&self, secrets: &WorkloadSecrets) {
        if let Some(folder) = &self.config.output
            && let Err(error) = output::write(folder, secrets)
        {
            tracing::error!(%error, folder = %folder.display(), "the identity could not be written to files");
        }
    }

    fn failed(&mut self, error: &CaError, current: Option<&WorkloadSecrets>) {
        let reason = error.to_string();
        self.stats.failures.fetch_add(1, Ordering::Relaxed);
        let age = (self.stats.fetched.load(Ordering::Relaxed) == 0).then(|| self.started.elapsed());
        let backoff = pause(self.failures, age);
        self.failures = self.failures.saturating_add(1);
        let now = SystemTime::now();
        let left = current.map(|secrets| secrets.svid.not_after.duration_since(now).unwrap_or_default());
        // With little life left, try often enough that a short outage does not cost the identity.
        let backoff = left.map_or(backoff, |left| backoff.min((left / 4).max(FIRST_BACKOFF)));
        self.next = now + backoff.mul_f64(0.75 + 0.25 * fastrand::f64());
        self.stats
            .alarm
            .store(u64::from(current.is_some() || self.stats.fetched.load(Ordering::Relaxed) > 0), Ordering::Relaxed);
        self.log_failure(&reason, left);
        match current {
            Some(secrets) => {
                self.status.send_replace(SvidStatus::Failing { not_after: secrets.svid.not_after, reason })
            }
            None => self.status.send_replace(SvidStatus::Waiting(reason)),
        };
    }

    fn log_failure(&mut self, reason: &str, left: Option<Duration>) {
        let said = self.logged.as_ref().is_some_and(|(text, at)| text == reason && at.elapsed() < LOG_EVERY);
        if said {
            return;
        }
        match left {
            Some(left) => {
                tracing::warn!(reason, left_seconds = left.as_secs(), "renewing the identity failed; trying again")
            }
            None => tracing::warn!(reason, "waiting for an identity; trying again"),
        }
        self.logged = Some((reason.to_owned(), Instant::now()));
    }

    /// Takes up a change of the files without a new SVID; and when the roots changed, asks for one soon: of the authority
    /// that comes first there.
    async fn reload_roots(&mut self) {
        let Some(current) = self.current() else { return };
        let files = match file_trust(&self.config).await {
            Ok(files) => files,
            Err(error) => return self.complain(&format!("{error}; what was trusted before stays")),
        };
        if self.files.as_ref() == Some(&files) {
            return;
        }
        match current.with_file_trust(&files) {
            Ok(next) if next.trust == current.trust => {}
            Ok(next) => {
                tracing::info!(roots = next.trust.certificates().len(), "root certificates changed");
                self.note_roots(&next);
                self.write_files(&next);
                self.secrets.send_replace(Some(Arc::new(next)));
            }
            Err(error) => self.complain(&format!("the changed root certificates cannot be used: {error}")),
        }
        let changed = self.files.as_ref().is_some_and(|before| before.roots != files.roots);
        if changed && !current.agrees_with(&files.roots) {
            self.rotation_tries = ROTATION_TRIES;
            let spread = ROTATION_SPREAD.min(self.config.ttl / 20).mul_f64(fastrand::f64());
            self.next = self.next.min(SystemTime::now() + spread);
        }
        self.files = Some(files);
    }

    fn complain(&mut self, text: &str) {
        let said = self.logged.as_ref().is_some_and(|(before, at)| before == text && at.elapsed() < LOG_EVERY);
        if !said {
            tracing::warn!("{text}");
            self.logged = Some((text.to_owned(), Instant::now()));
        }
    }

    fn note_roots(&self, secrets: &WorkloadSecrets) {
        let earliest = secrets.trust.facts().iter().map(|facts| unix(facts.not_after)).min().unwrap_or(0);
        self.stats.root_expires_at.store(earliest, Ordering::Relaxed);
    }
}

/// Longest pause after a failure, before it is spread: by the failures before it in a row, and by how long this workload has
/// waited for its first SVID (`None` when it has had one).
fn pause(failures: u32, waiting: Option<Duration>) -> Duration {
    let (first, longest) = match waiting {
        Some(age) if age < STARTING => (START_BACKOFF, START_MAX_BACKOFF),
        _ => (FIRST_BACKOFF, MAX_BACKOFF),
    };
    first.saturating_mul(1 << failures.min(10)).min(longest)
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses() {
        let (at, ms) = (|seconds| Some(Duration::from_secs(seconds)), Duration::from_millis);
        let table = [
            (0, at(0), ms(100)),
            (1, at(0), ms(200)),
            (3, at(1), ms(800)),
            (4, at(2), ms(1000)),
            (u32::MAX, at(29), ms(1000)),
            (33, at(30), ms(10_000)),
            (0, at(30), ms(250)),
            (0, None, ms(250)),
            (2, None, ms(1000)),
            (u32::MAX, None, ms(10_000)),
        ];
        for (failures, waiting, want) in table {
            assert_eq!(pause(failures, waiting), want, "{failures} {waiting:?}");
        }
    }

    /// Whatever a starting workload waits for is noticed within a second.
    #[test]
    fn a_starting_workload_asks_often() {
        let (mut waited, mut failures) = (Duration::ZERO, 0);
        while waited < STARTING {
            waited += pause(failures, Some(waited));
            failures += 1;
        }
        assert!(failures >= 30, "{failures} tries in {STARTING:?}");
        assert!(waited < STARTING + START_MAX_BACKOFF);
    }
}
