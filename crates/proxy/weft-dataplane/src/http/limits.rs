//! A request's time limits: what the route says, what a trusted request asks for, and what the endpoint is told of them.

use crate::http::exchange::Exchange;
use crate::http::headers::Headers;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::time::Duration;
use weft_codec::grpc;
use weft_route::Forward;

const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");
const PER_TRY_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The largest number that `grpc-timeout` takes: eight digits.
const MAX_GRPC_DIGITS: u64 = 99_999_999;

/// A request's time limits.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// Of the request with all of its tries.
    pub whole: Option<Duration>,
    /// Of each try.
    pub per_try: Option<Duration>,
}

impl Limits {
    /// How long the endpoint of a try has, when so much of the request's time is over: the time of a try, unless less than that
    /// is left. Never nothing, which would mean for ever.
    fn expected(&self, elapsed: Duration) -> Option<Duration> {
        let left = self.whole.map(|whole| whole.saturating_sub(elapsed).max(Duration::from_millis(1)));
        match (self.per_try, left) {
            (Some(each), Some(left)) => Some(each.min(left)),
            (each, left) => each.or(left),
        }
    }

    /// Tells the endpoint of a try how long it has.
    pub fn tell(&self, exchange: &Exchange, headers: &mut Headers, forward: &Forward, elapsed: Duration) {
        let Some(expected) = self.expected(elapsed) else { return };
        let millis = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
        if !exchange.http.hcm.suppress_envoy_headers {
            headers.insert(EXPECTED_TIMEOUT, HeaderValue::from(millis));
        }
        if millis <= MAX_GRPC_DIGITS
            && forward.max_grpc_timeout.is_some()
            && exchange.facts.borrow().is_grpc
            && let Ok(value) = HeaderValue::from_str(&format!("{millis}m"))
        {
            headers.insert(GRPC_TIMEOUT, value);
        }
    }
}

/// What the request itself asks for: retries and time limits. At the edge such headers are gone by now.
pub(crate) fn wishes(
    exchange: &Exchange,
    forward: &Forward,
    headers: &mut Headers,
    internal: bool,
) -> (Option<HeaderMap>, Limits) {
    let mut limits = Limits { whole: forward.timeout.filter(|d| !d.is_zero()), per_try: None };
    if let Some(most) = forward.max_grpc_timeout
        && exchange.facts.borrow().is_grpc
        && let Some(asked) = grpc::timeout(headers)
    {
        limits.whole = Some(if most.is_zero() { asked } else { asked.min(most) });
    }
    if !internal {
        return (None, limits);
    }
    let millis =
        |value: Option<HeaderValue>| value.and_then(|v| v.to_str().ok()?.parse().ok()).map(Duration::from_millis);
    if let Some(whole) = millis(headers.remove(TIMEOUT)) {
        limits.whole = Some(whole).filter(|d| !d.is_zero());
    }
    limits.per_try = millis(headers.remove(PER_TRY_TIMEOUT));
    let mut wish = HeaderMap::new();
    for name in ["x-envoy-retry-on", "x-envoy-retry-grpc-on", "x-envoy-max-retries", "x-envoy-retriable-status-codes"] {
        if let Some(value) = headers.remove(name) {
            wish.insert(HeaderName::from_static(name), value);
        }
    }
    (Some(wish), limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_for_a_try() {
        let limits = |whole: Option<u64>, per_try: Option<u64>| Limits {
            whole: whole.map(Duration::from_millis),
            per_try: per_try.map(Duration::from_millis),
        };
        for (whole, per_try, elapsed, want) in [
            (None, None, 0, None),
            (Some(100), None, 0, Some(100)),
            (Some(100), None, 30, Some(70)),
            (Some(100), Some(40), 30, Some(40)),
            (Some(100), Some(40), 70, Some(30)),
            (Some(100), Some(400), 0, Some(100)),
            (None, Some(40), 1000, Some(40)),
            (Some(100), Some(40), 100, Some(1)),
            (Some(100), None, 1000, Some(1)),
        ] {
            let expected = limits(whole, per_try).expected(Duration::from_millis(elapsed));
            assert_eq!(expected, want.map(Duration::from_millis), "{whole:?} {per_try:?} after {elapsed}");
        }
    }
}
