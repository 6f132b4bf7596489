//! Active health checks: one task for each endpoint of a cluster that has them, in one worker of the process. What they find
//! out all workers heed ([`crate::health`]).

use crate::cluster::LiveCluster;
use crate::connect::{self, Alpn, Plan};
use crate::hosts::{Host, HostSet};
use crate::probe::{Finding, Kept, probe};
use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;
use weft_codec::Io;
use weft_core::Strng;
use weft_proxy_config::{EndpointAddress, HealthCheck};
use weft_telemetry::{Counter, Gauge, Shard};

/// The checks of one state of a cluster.
#[derive(Debug)]
pub struct Checks {
    config: Arc<HealthCheck>,
    stats: CheckStats,
    /// Its tasks know each other by it.
    round: u64,
    /// Endpoints without any result yet.
    waiting: Cell<usize>,
}

#[derive(Debug)]
struct CheckStats {
    attempt: Counter,
    success: Counter,
    failure: Counter,
    network_failure: Counter,
    healthy: Gauge,
}

/// The results in a row about one endpoint.
#[derive(Debug, Default)]
struct Row {
    any: bool,
    successes: u32,
    failures: u32,
}

/// What follows from a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Verdict {
    /// It is unhealthy from now on.
    failed: bool,
    /// It has just begun to be otherwise than it was, or became so.
    edge: bool,
}

impl Row {
    /// Envoy's rule: the first result decides alone, further ones in a row; who says no is believed at once.
    fn judge(&mut self, config: &HealthCheck, finding: Finding, failed: bool) -> Verdict {
        let first = !std::mem::replace(&mut self.any, true);
        match finding {
            Finding::Well => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                let recovers = failed && (first || self.successes >= config.healthy_threshold);
                Verdict { failed: failed && !recovers, edge: failed }
            }
            Finding::NoAnswer | Finding::Retriable | Finding::SaysNo => {
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                let at_once = first || finding == Finding::SaysNo;
                let falls = !failed && (at_once || self.failures >= config.unhealthy_threshold);
                Verdict { failed: failed || falls, edge: !failed }
            }
        }
    }
}

impl Checks {
    /// Checks as `config` says, counted in `shard`.
    pub(crate) fn new(config: Arc<HealthCheck>, shard: &Shard, name: &Strng) -> Self {
        thread_local!(static ROUNDS: Cell<u64> = const { Cell::new(0) });
        let round = ROUNDS.with(|rounds| {
            rounds.set(rounds.get() + 1);
            rounds.get()
        });
        let label = [("cluster_name", name.clone())];
        let counter = |n: &'static str| shard.counter(n, &label);
        let stats = CheckStats {
            attempt: counter("envoy_cluster_health_check_attempt"),
            success: counter("envoy_cluster_health_check_success"),
            failure: counter("envoy_cluster_health_check_failure"),
            network_failure: counter("envoy_cluster_health_check_network_failure"),
            healthy: shard.gauge("envoy_cluster_health_check_healthy", &label),
        };
        Self { config, stats, round, waiting: Cell::new(0) }
    }

    /// Checks these endpoints from now on.
    pub(crate) fn follow(&self, cluster: &Rc<LiveCluster>, hosts: &HostSet) {
        for host in hosts.all.iter().filter(|host| host.checked.get()) {
            if host.checker.replace(self.round) != self.round {
                self.waiting.set(self.waiting.get() + 1);
                tokio::task::spawn_local(watch(Rc::downgrade(cluster), host.clone(), self.round));
            }
        }
        if self.waiting.get() == 0 {
            cluster.health.set_checked();
        }
        self.count_healthy(hosts);
    }

    fn count_healthy(&self, hosts: &HostSet) {
        let healthy = hosts.all.iter().filter(|host| !host.fails_checks()).count();
        self.stats.healthy.set(i64::try_from(healthy).unwrap_or(i64::MAX));
    }

    fn note_first(&self, cluster: &LiveCluster) {
        self.waiting.set(self.waiting.get().saturating_sub(1));
        if self.waiting.get() == 0 {
            cluster.health.set_checked();
        }
    }

    /// Makes a check and notes what it says; how long to wait for the next.
    async fn once(&self, cluster: &LiveCluster, host: &Rc<Host>, row: &mut Row, kept: &mut Option<Kept>) -> Duration {
        self.stats.attempt.inc();
        let checked = tokio::time::timeout(self.config.timeout, self.ask(cluster, host, kept));
        let finding = match checked.await {
            Ok(Ok(finding)) => finding,
            Ok(Err(why)) => {
                tracing::debug!(cluster = %cluster.config.name, host = %host.name, %why, "health check failed");
                Finding::NoAnswer
            }
            Err(_elapsed) => Finding::NoAnswer,
        };
        if finding == Finding::NoAnswer {
            self.stats.network_failure.inc();
        }
        (if finding == Finding::Well { &self.stats.success } else { &self.stats.failure }).inc();
        if finding != Finding::Well || !self.config.reuse_connection {
            *kept = None;
        }
        let first = !row.any;
        let health = host.outlier.health();
        let verdict = row.judge(&self.config, finding, health.failed_check());
        if cluster.health.note_check(health, verdict.failed) {
            tracing::info!(cluster = %cluster.config.name, host = %host.name, healthy = !verdict.failed, "health check");
        }
        if finding == Finding::Well && !verdict.failed {
            cluster.pardon(host);
        }
        cluster.follow_health();
        let hosts = cluster.hosts.borrow().clone();
        self.count_healthy(&hosts);
        if first {
            self.note_first(cluster);
        }
        self.pause(cluster.health.had_traffic(), verdict)
    }

    fn pause(&self, traffic: bool, verdict: Verdict) -> Duration {
        let intervals = &self.config.intervals;
        let base = match (traffic, verdict.failed, verdict.edge) {
            (false, failed, _) => intervals.no_traffic[usize::from(!failed)],
            (true, false, true) => intervals.healthy_edge,
            (true, false, false) => intervals.healthy,
            (true, true, true) => intervals.unhealthy_edge,
            (true, true, false) => intervals.unhealthy,
        };
        let share = base.mul_f64(f64::from(self.config.jitter_percent.min(100)) / 100.0);
        base + (self.config.jitter + share).mul_f64(fastrand::f64())
    }

    /// What the endpoint answers. A connection that an endpoint closed between two checks says nothing: another is made.
    async fn ask(&self, cluster: &LiveCluster, host: &Rc<Host>, kept: &mut Option<Kept>) -> Result<Finding, String> {
        if let Some(old) = kept.take()
            && let Some(still) = old.still_open()
        {
            *kept = Some(still);
        }
        probe(&self.config.probe, host, kept, async || self.connect(cluster, host).await).await
    }

    async fn connect(&self, cluster: &LiveCluster, host: &Host) -> Result<Io, String> {
        let plan = Plan {
            cluster,
            transport: cluster.transport(host),
            alpn: if self.config.probe.needs_http2() { Alpn::Http2 } else { Alpn::Http1 },
            sni: None,
            nameless: true,
            client: None,
            source: None,
        };
        let made = match (&host.address, host.check.get().port) {
            (EndpointAddress::Ip(address), Some(port)) => {
                let other = EndpointAddress::Ip((address.ip(), port).into());
                connect::connect_untimed(&Host::new(other, host.locality.clone(), host.priority), plan).await
            }
            _ => connect::connect_untimed(host, plan).await,
        };
        made.map(|(io, _)| io).map_err(|error| error.detail.as_deref().unwrap_or(error.reason.details()).to_string())
    }
}

/// Checks one endpoint for as long as it belongs to the cluster.
async fn watch(cluster: Weak<LiveCluster>, host: Rc<Host>, round: u64) {
    let (mut row, mut kept) = (Row::default(), None);
    let mut pause = match cluster.upgrade().as_ref().and_then(|cluster| cluster.checks.as_ref()) {
        Some(checks) => checks.config.initial_jitter.mul_f64(fastrand::f64()),
        None => return,
    };
    loop {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let Some(cluster) = cluster.upgrade() else { return };
        let Some(checks) = &cluster.checks else { return };
        if host.removed.get() || host.checker.get() != round {
            if !row.any {
                checks.note_first(&cluster);
            }
            return;
        }
        pause = checks.once(&cluster, &host, &mut row, &mut kept).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proxy_config::{CheckIntervals, Probe};

    fn config() -> HealthCheck {
        let seconds = Duration::from_secs;
        HealthCheck {
            timeout: seconds(1),
            intervals: CheckIntervals {
                healthy: seconds(1),
                unhealthy: seconds(2),
                healthy_edge: seconds(3),
                unhealthy_edge: seconds(4),
                no_traffic: [seconds(5), seconds(6)],
            },
            initial_jitter: Duration::ZERO,
            jitter: Duration::ZERO,
            jitter_percent: 0,
            unhealthy_threshold: 2,
            healthy_threshold: 2,
            reuse_connection: true,
            probe: Probe::Tcp { send: Vec::new(), receive: Vec::new() },
        }
    }

    #[test]
    fn verdicts() {
        use Finding::{NoAnswer as Failed, Retriable, SaysNo, Well};
        // Findings in a row from the first, and whether the endpoint is unhealthy after each.
        for (findings, want) in [
            (&[Well][..], &[false][..]),
            (&[Failed, Well, Well], &[true, true, false]),
            (&[Failed, Well, Failed, Well, Well], &[true, true, true, true, false]),
            (&[Well, Failed, Well, Failed, Failed], &[false, false, false, false, true]),
            (&[Well, SaysNo, Well], &[false, true, true]),
            (&[Well, Retriable, Failed], &[false, false, true]),
        ] {
            let (mut row, mut failed) = (Row::default(), true);
            let got: Vec<bool> = findings
                .iter()
                .map(|finding| {
                    failed = row.judge(&config(), *finding, failed).failed;
                    failed
                })
                .collect();
            assert_eq!(got, want, "{findings:?}");
        }
    }

    #[test]
    fn pauses() {
        let registry = weft_telemetry::Registry::default();
        let checks = Checks::new(Arc::new(config()), &registry.shard(), &"c".into());
        for (traffic, failed, edge, want) in [
            (true, false, false, 1),
            (true, true, false, 2),
            (true, false, true, 3),
            (true, true, true, 4),
            (false, true, true, 5),
            (false, false, false, 6),
        ] {
            assert_eq!(checks.pause(traffic, Verdict { failed, edge }), Duration::from_secs(want));
        }
        let jittered = HealthCheck { jitter: Duration::from_secs(1), jitter_percent: 50, ..config() };
        let checks = Checks::new(Arc::new(jittered), &registry.shard(), &"c".into());
        for _ in 0..50 {
            let pause = checks.pause(true, Verdict { failed: true, edge: false });
            assert!((2.0..=4.0).contains(&pause.as_secs_f64()), "{pause:?}");
        }
    }
}
