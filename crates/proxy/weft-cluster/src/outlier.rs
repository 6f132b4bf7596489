//! Outlier detection: endpoints that fail in a row, or more often than the others, are left out for a while. Each worker
//! judges by what it saw itself.

use std::cell::Cell;
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
    fn add(cell: &Cell<Self>, good: bool) {
        let Rate { total, good: before } = cell.get();
        cell.set(Rate { total: total.saturating_add(1), good: before.saturating_add(u32::from(good)) });
    }

    fn percent(self) -> f64 {
        f64::from(self.good) * 100.0 / f64::from(self.total.max(1))
    }
}

/// What is known of one endpoint.
#[derive(Debug, Default)]
pub struct OutlierState {
    server_errors: Cell<u32>,
    gateway_errors: Cell<u32>,
    local_errors: Cell<u32>,
    /// Answers of this interval; connections too where they are not counted apart.
    answers: Cell<Rate>,
    /// Whether there was an answer at all, where that is counted apart.
    locals: Cell<Rate>,
    ejections: Cell<u32>,
    until: Cell<Option<Instant>>,
    /// When it came back the last time.
    returned: Cell<Option<Instant>>,
}

impl OutlierState {
    /// Left out now.
    pub fn is_ejected(&self) -> bool {
        self.until.get().is_some()
    }

    /// When it comes back.
    pub fn ejected_until(&self) -> Option<Instant> {
        self.until.get()
    }

    /// Notes an outcome; the rows of errors that are full now.
    pub fn note(&self, policy: &OutlierDetection, outcome: Outcome) -> smallvec::SmallVec<[Cause; 2]> {
        let reached = |cell: &Cell<u32>, limit: u32| {
            cell.set(cell.get().saturating_add(1));
            limit > 0 && cell.get() >= limit
        };
        // Without split, a local error counts as a gateway error (Envoy: local origin failures are mapped to 503).
        let outcome = match outcome {
            Outcome::LocalError if !policy.split_local => Outcome::GatewayError,
            other => other,
        };
        if policy.split_local {
            Rate::add(&self.locals, outcome != Outcome::LocalError);
        }
        if outcome != Outcome::LocalError {
            Rate::add(&self.answers, outcome == Outcome::Success);
        }
        let mut full = smallvec::SmallVec::new();
        let mut check = |cause, is_full: bool| {
            if is_full {
                full.push(cause);
            }
        };
        match outcome {
            Outcome::Success => {
                for cell in [&self.server_errors, &self.gateway_errors, &self.local_errors] {
                    cell.set(0);
                }
            }
            Outcome::ServerError => {
                self.gateway_errors.set(0);
                self.local_errors.set(0);
                check(Cause::Consecutive5xx, reached(&self.server_errors, policy.consecutive_5xx));
            }
            Outcome::GatewayError => {
                self.local_errors.set(0);
                check(Cause::ConsecutiveGateway, reached(&self.gateway_errors, policy.consecutive_gateway));
                check(Cause::Consecutive5xx, reached(&self.server_errors, policy.consecutive_5xx));
            }
            Outcome::LocalError => {
                check(Cause::ConsecutiveLocal, reached(&self.local_errors, policy.consecutive_local));
            }
        }
        full
    }

    /// Begins a row of errors anew: it was judged.
    pub fn restart(&self, cause: Cause) {
        match cause {
            Cause::Consecutive5xx => self.server_errors.set(0),
            Cause::ConsecutiveGateway => self.gateway_errors.set(0),
            Cause::ConsecutiveLocal => self.local_errors.set(0),
            _ => {}
        }
    }

    /// The rates of the interval that ends now: answers, and local outcomes.
    pub fn take_rates(&self) -> (Rate, Rate) {
        (self.answers.take(), self.locals.take())
    }

    /// Leaves the endpoint out: the longer, the more often it happened. Each interval that it has served well since it came
    /// back forgives one time, as in Envoy.
    pub fn eject(&self, policy: &OutlierDetection, now: Instant) {
        let served = self.returned.get().map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let forgiven = served.as_millis() / policy.interval.as_millis().max(1);
        let forgiven = u32::try_from(forgiven).unwrap_or(u32::MAX);
        let times = self.ejections.get().saturating_sub(forgiven).saturating_add(1);
        self.ejections.set(times);
        let length = policy.base_ejection.saturating_mul(times).min(policy.max_ejection.max(policy.base_ejection));
        self.until.set(Some(now + length.min(Duration::from_secs(7 * 24 * 3600))));
        for cell in [&self.server_errors, &self.gateway_errors, &self.local_errors] {
            cell.set(0);
        }
    }

    /// Takes the endpoint back when its time is over; true when it came back.
    pub fn sweep(&self, now: Instant) -> bool {
        match self.until.get() {
            Some(until) if until <= now => {
                self.until.set(None);
                self.returned.set(Some(now));
                true
            }
            _ => false,
        }
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
            always_one: false,
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
