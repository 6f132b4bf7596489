//! Outlier detection: endpoints that fail in a row are left out for a while. Each worker judges by what it saw itself.

use std::cell::Cell;
use std::time::{Duration, Instant};
use weft_proxy_config::OutlierDetection;

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

/// What is known of one endpoint.
#[derive(Debug, Default)]
pub struct OutlierState {
    server_errors: Cell<u32>,
    gateway_errors: Cell<u32>,
    local_errors: Cell<u32>,
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

    /// Notes an outcome; true when the endpoint should be ejected now.
    pub fn note(&self, policy: &OutlierDetection, outcome: Outcome) -> bool {
        let reset = |cell: &Cell<u32>| cell.set(0);
        let reached = |cell: &Cell<u32>, limit: u32| {
            cell.set(cell.get().saturating_add(1));
            limit > 0 && cell.get() >= limit
        };
        // Without split, a local error counts as a gateway error (Envoy: local origin failures are mapped to 503).
        let outcome = match outcome {
            Outcome::LocalError if !policy.split_local => Outcome::GatewayError,
            other => other,
        };
        let eject = match outcome {
            Outcome::Success => {
                reset(&self.server_errors);
                reset(&self.gateway_errors);
                reset(&self.local_errors);
                false
            }
            Outcome::ServerError => {
                reset(&self.gateway_errors);
                reset(&self.local_errors);
                reached(&self.server_errors, policy.consecutive_5xx)
            }
            Outcome::GatewayError => {
                reset(&self.local_errors);
                let gateway = reached(&self.gateway_errors, policy.consecutive_gateway);
                reached(&self.server_errors, policy.consecutive_5xx) || gateway
            }
            Outcome::LocalError => reached(&self.local_errors, policy.consecutive_local),
        };
        eject && !self.is_ejected()
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

/// True when one more of `total` endpoints may be left out, `ejected` being out already. One always may.
pub fn may_eject(policy: &OutlierDetection, ejected: usize, total: usize) -> bool {
    policy.max_ejection_percent > 0
        && (ejected == 0 || (ejected + 1) * 100 <= total * policy.max_ejection_percent as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> OutlierDetection {
        OutlierDetection {
            consecutive_5xx: 3,
            consecutive_gateway: 2,
            consecutive_local: 2,
            statuses: None,
            split_local: false,
            interval: Duration::from_secs(1),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(50),
            max_ejection_percent: 50,
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
        for (outcomes, ejected) in [
            (&[ServerError, ServerError, ServerError][..], true),
            (&[ServerError, ServerError, Success, ServerError], false),
            (&[GatewayError, GatewayError], true),
            (&[GatewayError, ServerError, GatewayError], true),
            (&[LocalError, LocalError], true),
            (&[LocalError, Success, LocalError], false),
        ] {
            let state = OutlierState::default();
            let result = outcomes.iter().fold(false, |_, outcome| state.note(&policy(), *outcome));
            assert_eq!(result, ejected, "{outcomes:?}");
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
        for (ejected, total, want) in [(0, 1, true), (1, 2, false), (1, 4, true), (2, 4, false), (0, 100, true)] {
            assert_eq!(may_eject(&policy(), ejected, total), want, "{ejected} of {total}");
        }
    }
}
