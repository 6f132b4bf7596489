//! Fault injection: for a share of requests a delay, an abort, or both. Random numbers are arguments.

use http::{HeaderMap, StatusCode};
use std::borrow::Cow;
use std::time::Duration;
use weft_codec::{Flags, LocalReply, Reason};
use weft_route::{Fault, FaultAbort, FaultShare, RequestView};

/// The longest delay that a request may ask for: its place in memory is held so long.
const MAX_ASKED_DELAY: Duration = Duration::from_secs(3600);
/// Shares are in parts per million.
const MILLION: u64 = 1_000_000;

/// What is done to a request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Injection {
    /// Wait so long.
    pub delay: Option<Duration>,
    /// Then answer so.
    pub abort: Option<FaultAbort>,
}

/// Decides about a request that goes to `cluster`.
pub fn decide(fault: &Fault, request: &RequestView<'_>, cluster: Option<&str>, random: [u64; 2]) -> Injection {
    let other_cluster = fault.upstream_cluster.as_deref().is_some_and(|wanted| Some(wanted) != cluster);
    if other_cluster || !fault.headers.iter().all(|header| header.matches(request)) {
        return Injection::default();
    }
    let hit = |share: u32, random: u64| random % MILLION < u64::from(share);
    let delay = fault.delay.or_else(|| asked_delay(fault.header_delay?, request.headers));
    let abort = fault.abort.or_else(|| asked_abort(fault.header_abort?, request.headers));
    Injection {
        delay: delay.filter(|(_, share)| hit(*share, random[0])).map(|(delay, _)| delay),
        abort: abort.filter(|(_, share)| hit(*share, random[1])).map(|(abort, _)| abort),
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// The share that a request asks for, within what the configuration allows.
fn share(allowed: FaultShare, headers: &HeaderMap, name: &str) -> u32 {
    let asked = number(headers, name).map(|n| u32::try_from(n).unwrap_or(u32::MAX).saturating_mul(allowed.unit));
    asked.map_or(allowed.most, |asked| asked.min(allowed.most))
}

fn asked_delay(allowed: FaultShare, headers: &HeaderMap) -> Option<(Duration, u32)> {
    let delay = Duration::from_millis(number(headers, "x-envoy-fault-delay-request")?).min(MAX_ASKED_DELAY);
    Some((delay, share(allowed, headers, "x-envoy-fault-delay-request-percentage")))
}

fn asked_abort(allowed: FaultShare, headers: &HeaderMap) -> Option<(FaultAbort, u32)> {
    let http = number(headers, "x-envoy-fault-abort-request").filter(|code| (200..600).contains(code));
    let http = http.and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok()).map(FaultAbort::Http);
    let grpc = || number(headers, "x-envoy-fault-abort-grpc-request").filter(|n| *n <= 16);
    let abort = http.or_else(|| grpc().and_then(|n| u32::try_from(n).ok()).map(FaultAbort::Grpc))?;
    Some((abort, share(allowed, headers, "x-envoy-fault-abort-request-percentage")))
}

/// The answer of an abort.
pub fn reply(abort: FaultAbort) -> LocalReply {
    let mut reply = LocalReply::new(Reason::FaultAbort);
    match abort {
        FaultAbort::Http(status) => reply.status = status,
        FaultAbort::Grpc(status) => {
            // A client that does not speak gRPC sees what gRPC looks like to it.
            reply.status = StatusCode::OK;
            reply.grpc_status = Some(status);
        }
    }
    reply.details = Cow::Borrowed("fault_filter_abort");
    reply.flags = Flags::FI;
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, Method};
    use weft_route::{HeaderKey, HeaderMatcher, HeaderTest, StringMatcher};

    #[test]
    fn shares_headers_and_clusters() {
        let mut headers = HeaderMap::new();
        headers.insert("end-user", "jason".parse().unwrap());
        let fault = Fault {
            delay: Some((Duration::from_secs(7), 500_000)),
            abort: Some((FaultAbort::Http(StatusCode::IM_A_TEAPOT), 1_000_000)),
            headers: vec![HeaderMatcher {
                key: HeaderKey::Name("end-user".parse().unwrap()),
                test: HeaderTest::Value(StringMatcher::Exact("jason".into())),
                invert: false,
                missing_as_empty: false,
            }],
            upstream_cluster: Some("a".into()),
            ..Fault::default()
        };
        let none = HeaderMap::new();
        for (headers, cluster, random, delay, abort) in [
            (&headers, Some("a"), 499_999, true, true),
            (&headers, Some("a"), 500_000, false, true),
            (&headers, Some("b"), 0, false, false),
            (&none, Some("a"), 0, false, false),
        ] {
            let method = Method::GET;
            let view = RequestView {
                method: &method,
                authority: "x",
                path: "/",
                query: None,
                scheme: "http",
                headers,
                metadata: &[],
            };
            let injection = decide(&fault, &view, cluster, [random, random]);
            assert_eq!((injection.delay.is_some(), injection.abort.is_some()), (delay, abort), "{cluster:?} {random}");
        }
        assert_eq!(reply(FaultAbort::Grpc(14)).grpc_status, Some(14));
        assert_eq!(reply(FaultAbort::Http(StatusCode::IM_A_TEAPOT)).status, StatusCode::IM_A_TEAPOT);
    }
}
