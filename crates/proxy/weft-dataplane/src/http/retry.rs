//! Whether a try that failed is made again: by the route's policy, by the request's own wish inside the mesh, and never when
//! the endpoint may have acted on something that must not happen twice.

use http::{HeaderMap, HeaderName, Method, StatusCode};
use std::time::Duration;
use weft_cluster::{Retry, UpstreamError};
use weft_codec::{Reason, grpc};
use weft_route::{RequestView, RetryOn, RetryPolicy};

/// Further tries at most, whatever a request asks for.
const MAX_RETRIES: u32 = 50;
const RATELIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
/// First back-off unless the policy says otherwise.
const BASE: Duration = Duration::from_millis(25);

/// The retries of one request.
#[derive(Debug)]
pub(crate) struct Retries<'a> {
    policy: Option<&'a RetryPolicy>,
    on: RetryOn,
    statuses: Vec<u16>,
    left: u32,
    done: u32,
}

impl<'a> Retries<'a> {
    /// Under `policy`, changed by what a trusted request asks for.
    pub fn new(policy: Option<&'a RetryPolicy>, wish: Option<&HeaderMap>, request: &RequestView<'_>) -> Self {
        let fits = |p: &&RetryPolicy| {
            p.request_headers.is_empty() || p.request_headers.iter().any(|header| header.matches(request))
        };
        let on = policy.filter(fits).map(|p| p.on).unwrap_or_default();
        let mut retries = Self { policy, on, statuses: Vec::new(), left: policy.map_or(0, |p| p.attempts), done: 0 };
        if let Some(headers) = wish {
            retries.heed(headers);
        }
        retries.left = retries.left.min(MAX_RETRIES);
        retries
    }

    fn heed(&mut self, headers: &HeaderMap) {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let conditions = [text("x-envoy-retry-on"), text("x-envoy-retry-grpc-on")];
        let mut wished = false;
        for word in conditions.into_iter().flatten().flat_map(|list| list.split(',')) {
            wished |= enable(&mut self.on, word.trim());
        }
        if wished && self.left == 0 {
            self.left = 1;
        }
        if let Some(most) = text("x-envoy-max-retries").and_then(|n| n.parse().ok()) {
            self.left = most;
        }
        if let Some(list) = text("x-envoy-retriable-status-codes") {
            self.statuses = list.split(',').filter_map(|n| n.trim().parse().ok()).collect();
        }
    }

    /// The policy.
    pub fn policy(&self) -> Option<&'a RetryPolicy> {
        self.policy
    }

    /// Another try may come: what it needs must be kept.
    pub fn is_possible(&self) -> bool {
        self.left > 0
    }

    /// Retries made.
    pub fn done(&self) -> u32 {
        self.done
    }

    /// There is a policy, and it is used up.
    pub fn is_used_up(&self) -> bool {
        self.left == 0 && self.done > 0
    }

    /// Counts a retry; how long to wait before it.
    pub fn start(&mut self, random: f64) -> Duration {
        self.left = self.left.saturating_sub(1);
        self.done += 1;
        let base = self.policy.map(|p| p.base_interval).filter(|d| !d.is_zero()).unwrap_or(BASE);
        let most = self.policy.map(|p| p.max_interval).filter(|d| !d.is_zero()).unwrap_or(base * 10);
        // Fully jittered: anything from nothing to the exponential bound, so that retries of many clients do not line up.
        let bound = base.saturating_mul((1_u32 << self.done.min(16)) - 1).min(most);
        bound.mul_f64(random)
    }

    /// A try without response should be made again.
    pub fn wants_after(&self, error: &UpstreamError, timed_out: bool) -> bool {
        if self.left == 0 || error.retry == Retry::Pointless {
            return false;
        }
        let on = &self.on;
        let any = on.reset || on.server_error || on.gateway_error;
        if timed_out {
            return any;
        }
        match error.reason {
            Reason::Overflow | Reason::NoHealthyUpstream | Reason::NoCluster | Reason::DropOverload => false,
            Reason::ConnectionFailure | Reason::ConnectTimeout => on.connect_failure || any,
            Reason::RefusedStream => on.refused_stream || on.connect_failure || any,
            _ if error.retry == Retry::Unsent => on.connect_failure || on.reset_before_request || any,
            _ => any,
        }
    }

    /// A response should be thrown away for another try.
    pub fn wants_after_response(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        if self.left == 0 {
            return false;
        }
        let (on, code) = (&self.on, status.as_u16());
        let by_status = (on.server_error && (500..600).contains(&code))
            || (on.gateway_error && (502..=504).contains(&code))
            || (on.retriable_4xx && code == 409)
            || (on.status_codes
                && (self.statuses.contains(&code) || self.policy.is_some_and(|p| p.statuses.contains(&status))));
        let by_headers =
            || on.headers && self.policy.is_some_and(|p| p.headers.iter().any(|h| h.matches_response(headers)));
        let by_grpc = || {
            matches!(
                grpc::status(headers),
                Some(n) if (n == 1 && on.grpc_cancelled)
                    || (n == 4 && on.grpc_deadline)
                    || (n == 8 && on.grpc_exhausted)
                    || (n == 13 && on.grpc_internal)
                    || (n == 14 && on.grpc_unavailable)
            )
        };
        (by_status || by_headers() || by_grpc()) && !headers.contains_key(&RATELIMITED)
    }
}

/// Switches a condition on by its name; false when there is no such condition.
fn enable(on: &mut RetryOn, word: &str) -> bool {
    let flag = match word {
        "5xx" => &mut on.server_error,
        "gateway-error" => &mut on.gateway_error,
        "reset" => &mut on.reset,
        "reset-before-request" => &mut on.reset_before_request,
        "connect-failure" => &mut on.connect_failure,
        "refused-stream" => &mut on.refused_stream,
        "retriable-4xx" => &mut on.retriable_4xx,
        "retriable-status-codes" => &mut on.status_codes,
        "retriable-headers" => &mut on.headers,
        "cancelled" => &mut on.grpc_cancelled,
        "deadline-exceeded" => &mut on.grpc_deadline,
        "internal" => &mut on.grpc_internal,
        "resource-exhausted" => &mut on.grpc_exhausted,
        "unavailable" => &mut on.grpc_unavailable,
        _ => return false,
    };
    *flag = true;
    true
}

/// A request that an HTTP client may repeat by itself when a kept connection turns out closed (RFC 9110 §9.2.2).
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(on: &[&str]) -> RetryPolicy {
        let mut policy = RetryPolicy { attempts: 2, ..RetryPolicy::default() };
        on.iter().for_each(|word| assert!(enable(&mut policy.on, word), "{word}"));
        policy.statuses = vec![StatusCode::SERVICE_UNAVAILABLE];
        policy
    }

    fn view(headers: &HeaderMap) -> RequestView<'_> {
        let (method, scheme) = (&Method::GET, "http");
        RequestView { method, authority: "a", path: "/", query: None, scheme, headers, metadata: &[] }
    }

    fn error(reason: Reason, retry: Retry) -> UpstreamError {
        UpstreamError { reason, retry, detail: None }
    }

    #[test]
    fn errors() {
        use Retry::{MayBeProcessed, Pointless, Unsent};
        for (on, reason, retry, want) in [
            (&["connect-failure"][..], Reason::ConnectionFailure, Unsent, true),
            (&["connect-failure"], Reason::ConnectionTermination, MayBeProcessed, false),
            (&["connect-failure"], Reason::ConnectionTermination, Unsent, true),
            (&["reset"], Reason::ConnectionTermination, MayBeProcessed, true),
            (&["5xx"], Reason::RemoteReset, MayBeProcessed, true),
            (&["5xx"], Reason::Overflow, Unsent, false),
            (&["5xx"], Reason::DownstreamDisconnect, Pointless, false),
            (&["refused-stream"], Reason::RefusedStream, Unsent, true),
            (&["reset-before-request"], Reason::ConnectionTermination, Unsent, true),
            (&["reset-before-request"], Reason::ConnectionTermination, MayBeProcessed, false),
            (&["unavailable"], Reason::RemoteReset, MayBeProcessed, false),
        ] {
            let policy = policy(on);
            let retries = Retries::new(Some(&policy), None, &view(&HeaderMap::new()));
            assert_eq!(retries.wants_after(&error(reason, retry), false), want, "{on:?} {reason:?} {retry:?}");
        }
    }

    #[test]
    fn responses() {
        for (on, status, header, want) in [
            (&["5xx"][..], 500, None, true),
            (&["gateway-error"], 500, None, false),
            (&["gateway-error"], 502, None, true),
            (&["retriable-4xx"], 409, None, true),
            (&["retriable-status-codes"], 503, None, true),
            (&["retriable-status-codes"], 500, None, false),
            (&["unavailable"], 200, Some(("grpc-status", "14")), true),
            (&["unavailable"], 200, Some(("grpc-status", "5")), false),
            (&["5xx"], 503, Some(("x-envoy-ratelimited", "true")), false),
        ] {
            let policy = policy(on);
            let mut headers = HeaderMap::new();
            if let Some((name, value)) = header {
                headers.insert(name, value.parse().unwrap());
            }
            let retries = Retries::new(Some(&policy), None, &view(&HeaderMap::new()));
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(retries.wants_after_response(status, &headers), want, "{on:?} {status} {header:?}");
        }
    }

    #[test]
    fn bounded_and_jittered() {
        let policy = policy(&["5xx"]);
        let mut retries = Retries::new(Some(&policy), None, &view(&HeaderMap::new()));
        assert_eq!(retries.start(1.0), BASE);
        assert_eq!(retries.start(1.0), BASE * 3);
        assert!(retries.is_used_up() && !retries.is_possible());
        assert_eq!(retries.start(0.0), Duration::ZERO);
    }

    #[test]
    fn a_requests_own_wish() {
        let mut headers = HeaderMap::new();
        headers.insert("x-envoy-retry-on", "retriable-status-codes,nonsense".parse().unwrap());
        headers.insert("x-envoy-retriable-status-codes", "418".parse().unwrap());
        headers.insert("x-envoy-max-retries", "4000000000".parse().unwrap());
        let retries = Retries::new(None, Some(&headers), &view(&HeaderMap::new()));
        assert_eq!(retries.left, MAX_RETRIES);
        assert!(retries.wants_after_response(StatusCode::IM_A_TEAPOT, &HeaderMap::new()));
    }
}
