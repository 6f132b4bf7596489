//! Outlier detection: endpoints that fail in a row, or more often than the others, are left out for a while. What counts is
//! what all workers of the process saw ([`crate::health`]).

use crate::health::{Counted, HostHealth};
use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};
use weft_proxy_config::{FailureRule, OutlierDetection, SuccessRule};

/// What a try said about its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Any answer below 500.
    Success,
    /// 500, 501, 505 ….
    ServerError,
    /// 502, 503, 504 from the endpoint.
    GatewayError,
    /// No answer: connect failure, timeout, reset.
    LocalError,
}

/// Why an endpoint is left out. The order is that of [`crate::stats::OutlierStats`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Server errors in a row.
    Consecutive5xx,
    /// Gateway errors in a row.
    ConsecutiveGateway,
    /// Local errors in a row.
    ConsecutiveLocal,
    /// A success rate far below that of the others.
    SuccessRate,
    /// Too large a part of failures.
    FailurePercentage,
    /// The same two of local errors, where they are counted apart.
    LocalSuccessRate,
    /// See [`Cause::LocalSuccessRate`].
    LocalFailurePercentage,
}

impl Cause {
    /// Number of causes.
    pub const COUNT: usize = 7;
}

impl Outcome {
    /// The outcome that a status stands for, when `errors` are the statuses that count as errors.
    pub fn of_listed(status: u16, errors: &[u16]) -> Self {
        match (errors.contains(&status), status) {
            (false, _) => Outcome::Success,
            (true, 502..=504) => Outcome::GatewayError,
            (true, _) => Outcome::ServerError,
        }
    }

    /// The outcome that a status stands for.
    pub fn of_status(status: u16) -> Self {
        match status {
            502..=504 => Outcome::GatewayError,
            500.. => Outcome::ServerError,
            _ => Outcome::Success,
        }
    }
}

/// Requests of an interval, and how many of them succeeded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rate {
    /// All.
    pub total: u32,
    /// Those that succeeded.
    pub good: u32,
}

impl Rate {
    fn percent(self) -> f64 {
        f64::from(self.good) * 100.0 / f64::from(self.total.max(1))
    }
}

/// What is known of one endpoint: this worker's view of what all of them know.
#[derive(Debug, Default)]
pub struct OutlierState(OnceCell<Joined>);

#[derive(Debug)]
struct Joined {
    health: Arc<HostHealth>,
    counted: Arc<Counted>,
}

/// Places of the rows of errors.
const SERVER: usize = 0;
const GATEWAY: usize = 1;
const LOCAL: usize = 2;

impl OutlierState {
    /// Shares what is known with the other workers. Without it the endpoint is this worker's alone.
    pub(crate) fn join(&self, health: impl FnOnce() -> Arc<HostHealth>) {
        self.0.get_or_init(|| Joined::new(health()));
    }

    fn joined(&self) -> &Joined {
        self.0.get_or_init(|| Joined::new(Arc::default()))
    }

    /// What all workers know.
    pub fn health(&self) -> &HostHealth {
        &self.joined().health
    }

    /// Left out now.
    pub fn is_ejected(&self) -> bool {
        self.ejected_until().is_some()
    }

    /// When it comes back.
    pub fn ejected_until(&self) -> Option<Instant> {
        self.0.get()?.health.until.get()
    }

    /// Notes an outcome; the rows of errors that are full now.
    pub fn note(&self, policy: &OutlierDetection, outcome: Outcome) -> smallvec::SmallVec<[Cause; 2]> {
        let Joined { health, counted } = self.joined();
        let [server, gateway, local] = &health.rows;
        let reached = |row: &AtomicU32, limit: u32| {
            let errors = row.fetch_add(1, Relaxed).saturating_add(1);
            limit > 0 && errors >= limit
        };
        // Without split, a local error counts as a gateway error (Envoy: local origin failures are mapped to 503).
        let outcome = match outcome {
            Outcome::LocalError if !policy.split_local => Outcome::GatewayError,
            other => other,
        };
        if policy.split_local {
            counted.local(outcome != Outcome::LocalError);
        }
        if outcome != Outcome::LocalError {
            counted.answer(outcome == Outcome::Success);
        }
        let mut full = smallvec::SmallVec::new();
        let mut check = |cause, is_full: bool| {
            if is_full {
                full.push(cause);
            }
        };
        match outcome {
            Outcome::Success => health.rows.iter().for_each(clear),
            Outcome::ServerError => {
                clear(gateway);
                clear(local);
                check(Cause::Consecutive5xx, reached(server, policy.consecutive_5xx));
            }
            Outcome::GatewayError => {
                clear(local);
                check(Cause::ConsecutiveGateway, reached(gateway, policy.consecutive_gateway));
                check(Cause::Consecutive5xx, reached(server, policy.consecutive_5xx));
            }
            Outcome::LocalError => {
                check(Cause::ConsecutiveLocal, reached(local, policy.consecutive_local));
            }
        }
        full
    }

    /// Begins a row of errors anew: it was judged.
    pub fn restart(&self, cause: Cause) {
        let row = match cause {
            Cause::Consecutive5xx => SERVER,
            Cause::ConsecutiveGateway => GATEWAY,
            Cause::ConsecutiveLocal => LOCAL,
            _ => return,
        };
        clear(&self.joined().health.rows[row]);
    }

    /// The rates of the interval that ends now, over all workers: answers, and local outcomes.
    pub fn take_rates(&self) -> (Rate, Rate) {
        self.joined().health.take_rates()
    }

    /// Leaves the endpoint out: the longer, the more often it happened. Each interval that it has served well since it came
    /// back forgives one time, as in Envoy.
    pub fn eject(&self, policy: &OutlierDetection, now: Instant) {
        let health = &self.joined().health;
        let served = health.returned.get().map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let forgiven = served.as_millis() / policy.interval.as_millis().max(1);
        let forgiven = u32::try_from(forgiven).unwrap_or(u32::MAX);
        let times = health.ejections.load(Relaxed).saturating_sub(forgiven).saturating_add(1);
        health.ejections.store(times, Relaxed);
        let length = policy.base_ejection.saturating_mul(times).min(policy.max_ejection.max(policy.base_ejection));
        health.until.set(Some(now + length.min(Duration::from_secs(7 * 24 * 3600))));
        health.rows.iter().for_each(clear);
    }

    /// Takes the endpoint back when its time is over; true when it came back, for one caller alone.
    pub fn sweep(&self, now: Instant) -> bool {
        let health = &self.joined().health;
        let back = health.until.pass(now, None);
        if back {
            health.returned.set(Some(now));
        }
        back
    }

    /// Takes the endpoint back before its time; true when it was out, for one caller alone.
    pub(crate) fn pardon(&self, now: Instant) -> bool {
        let health = &self.joined().health;
        let out = health.until.clear();
        if out {
            health.returned.set(Some(now));
        }
        out
    }
}

impl Joined {
    fn new(health: Arc<HostHealth>) -> Self {
        let counted = health.counted();
        Self { health, counted }
    }
}

/// Ends a row of errors. Seldom is there one: what nobody writes, all workers can read at no cost.
fn clear(row: &AtomicU32) {
    if row.load(Relaxed) != 0 {
        row.store(0, Relaxed);
    }
}

/// True when one more of `total` endpoints may be left out, `ejected` being out already: with it, no more may be out than the
/// policy's share. As in Envoy 1.40, that may be none of a few.
pub fn may_eject(policy: &OutlierDetection, ejected: usize, total: usize) -> bool {
    (policy.always_one && ejected == 0) || (ejected + 1) * 100 <= total * policy.max_ejection_percent as usize
}

/// Which of these endpoints have a success rate far below the others': lower than the mean by so many standard deviations.
pub fn below_the_others(rule: &SuccessRule, rates: &[Rate]) -> Vec<usize> {
    let counted = |rate: &Rate| rate.total >= rule.volume.max(1);
    let percents: Vec<f64> = rates.iter().filter(|r| counted(r)).map(|r| r.percent()).collect();
    if percents.is_empty() || percents.len() < rule.min_hosts as usize {
        return Vec::new();
    }
    let count = percents.len() as f64;
    let mean = percents.iter().sum::<f64>() / count;
    let variance = percents.iter().map(|percent| (percent - mean).powi(2)).sum::<f64>() / count;
    let least = mean - rule.factor * variance.sqrt();
    (0..rates.len()).filter(|i| counted(&rates[*i]) && rates[*i].percent() < least).collect()
}

/// Which of these endpoints fail too large a part of their requests.
pub fn failing(rule: &FailureRule, rates: &[Rate]) -> Vec<usize> {
    let counted = |rate: &Rate| rate.total >= rule.volume.max(1);
    let enough = rates.iter().filter(|r| counted(r)).count();
    if enough == 0 || enough < rule.min_hosts as usize {
        return Vec::new();
    }
    (0..rates.len()).filter(|i| counted(&rates[*i]) && 100.0 - rates[*i].percent() >= rule.threshold).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> OutlierDetection {
        OutlierDetection {
            consecutive_5xx: 3,
            consecutive_gateway: 2,
            consecutive_local: 2,
            enforcing: [100; 7],
            success: SuccessRule { min_hosts: 3, volume: 10, factor: 1.0 },
            failure: FailureRule { min_hosts: 2, volume: 10, threshold: 50.0 },
            statuses: None,
            split_local: false,
            interval: Duration::from_secs(1),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(50),
            max_ejection_percent: 50,
            check_takes_back: true,
            always_one: false,
        }
    }

    #[test]
    fn one_pardon_is_one() {
        let health: Arc<HostHealth> = Arc::default();
        let pardon = |barrier: &std::sync::Barrier| {
            let state = OutlierState::default();
            state.join(|| health.clone());
            barrier.wait();
            state.pardon(Instant::now())
        };
        for _ in 0..300 {
            health.until.set(Some(Instant::now()));
            let barrier = std::sync::Barrier::new(3);
            let pardons = std::thread::scope(|scope| {
                let all: Vec<_> = (0..3).map(|_| scope.spawn(|| pardon(&barrier))).collect();
                all.into_iter().map(|one| one.join().unwrap()).filter(|out| *out).count()
            });
            assert_eq!(pardons, 1);
        }
    }

    #[test]
    fn listed_statuses_alone_are_errors() {
        let listed = [500, 503];
        for (status, want) in [
            (500, Outcome::ServerError),
            (503, Outcome::GatewayError),
            (502, Outcome::Success),
            (200, Outcome::Success),
        ] {
            assert_eq!(Outcome::of_listed(status, &listed), want, "{status}");
        }
    }

    #[test]
    fn in_a_row() {
        use Outcome::*;
        for (outcomes, split, cause) in [
            (&[ServerError, ServerError, ServerError][..], false, Some(Cause::Consecutive5xx)),
            (&[ServerError, ServerError, Success, ServerError], false, None),
            (&[GatewayError, GatewayError], false, Some(Cause::ConsecutiveGateway)),
            (&[GatewayError, ServerError, GatewayError], false, Some(Cause::Consecutive5xx)),
            (&[LocalError, LocalError], false, Some(Cause::ConsecutiveGateway)),
            (&[LocalError, LocalError], true, Some(Cause::ConsecutiveLocal)),
            (&[LocalError, Success, LocalError], false, None),
        ] {
            let state = OutlierState::default();
            let policy = OutlierDetection { split_local: split, ..policy() };
            let mut last = None;
            for outcome in outcomes {
                last = state.note(&policy, *outcome).first().copied();
            }
            assert_eq!(last, cause, "{outcomes:?}");
        }
    }

    #[test]
    fn rates_of_an_interval() {
        let state = OutlierState::default();
        let split = OutlierDetection { split_local: true, ..policy() };
        for outcome in [Outcome::Success, Outcome::ServerError, Outcome::LocalError] {
            state.note(&split, outcome);
        }
        assert_eq!(state.take_rates(), (Rate { total: 2, good: 1 }, Rate { total: 3, good: 2 }));
        assert_eq!(state.take_rates(), (Rate::default(), Rate::default()));
        state.note(&policy(), Outcome::LocalError);
        assert_eq!(state.take_rates(), (Rate { total: 1, good: 0 }, Rate::default()));
    }

    #[test]
    fn judged_beside_the_others() {
        let rate = |good| Rate { total: 20, good };
        let few = Rate { total: 9, good: 0 };
        for (rates, below, fails) in [
            (vec![rate(20), rate(20), rate(4), few], vec![2], vec![2]),
            (vec![rate(20), rate(20), rate(20)], vec![], vec![]),
            (vec![rate(20), rate(4), few], vec![], vec![1]),
            (vec![rate(9), few], vec![], vec![]),
            (vec![rate(10), rate(11), rate(12), rate(12)], vec![0], vec![0]),
        ] {
            assert_eq!(below_the_others(&policy().success, &rates), below, "{rates:?}");
            assert_eq!(failing(&policy().failure, &rates), fails, "{rates:?}");
        }
    }

    #[test]
    fn longer_each_time_up_to_the_limit() {
        let (state, now) = (OutlierState::default(), Instant::now());
        state.eject(&policy(), now);
        assert_eq!(state.ejected_until(), Some(now + Duration::from_secs(30)));
        assert!(!state.sweep(now + Duration::from_secs(29)));
        assert!(state.sweep(now + Duration::from_secs(30)));
        state.eject(&policy(), now + Duration::from_secs(30));
        assert_eq!(state.ejected_until(), Some(now + Duration::from_secs(30 + 50)));
    }

    #[test]
    fn good_service_is_forgiven() {
        let (state, now) = (OutlierState::default(), Instant::now());
        state.eject(&policy(), now);
        let back = now + Duration::from_secs(30);
        assert!(state.sweep(back));
        let later = back + policy().interval * 2;
        state.eject(&policy(), later);
        assert_eq!(state.ejected_until(), Some(later + Duration::from_secs(30)), "as the first time");
    }

    #[test]
    fn share_that_may_be_out() {
        for (percent, always_one, ejected, total, want) in [
            (50, false, 0, 1, false),
            (100, false, 0, 1, true),
            (50, false, 1, 2, false),
            (50, false, 1, 3, false),
            (50, false, 1, 4, true),
            (50, false, 2, 4, false),
            (10, false, 0, 100, true),
            (10, false, 0, 4, false),
            (0, false, 0, 4, false),
            (0, true, 0, 4, true),
            (0, true, 1, 4, false),
        ] {
            let policy = OutlierDetection { max_ejection_percent: percent, always_one, ..policy() };
            assert_eq!(may_eject(&policy, ejected, total), want, "{ejected} of {total} at {percent}");
        }
    }
}
