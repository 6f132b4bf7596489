//! Fault injection: for a share of requests a delay, an abort, or both. Random numbers are arguments.

use http::StatusCode;
use std::borrow::Cow;
use std::time::Duration;
use weft_codec::{Flags, LocalReply, Reason, grpc};
use weft_route::{Fault, FaultAbort, RequestView};

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
    Injection {
        delay: fault.delay.filter(|(_, share)| hit(*share, random[0])).map(|(delay, _)| delay),
        abort: fault.abort.filter(|(_, share)| hit(*share, random[1])).map(|(abort, _)| abort),
    }
}

/// The answer of an abort.
pub fn reply(abort: FaultAbort) -> LocalReply {
    let mut reply = LocalReply::new(Reason::FaultAbort);
    match abort {
        FaultAbort::Http(status) => reply.status = status,
        FaultAbort::Grpc(status) => {
            reply.status = grpc::to_http(status);
            reply.grpc_status = Some(status);
            if status == 0 {
                reply.status = StatusCode::OK;
            }
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
        };
        let none = HeaderMap::new();
        for (headers, cluster, random, delay, abort) in [
            (&headers, Some("a"), 499_999, true, true),
            (&headers, Some("a"), 500_000, false, true),
            (&headers, Some("b"), 0, false, false),
            (&none, Some("a"), 0, false, false),
        ] {
            let method = Method::GET;
            let view = RequestView { method: &method, authority: "x", path: "/", query: None, scheme: "http", headers, metadata: &[] };
            let injection = decide(&fault, &view, cluster, [random, random]);
            assert_eq!((injection.delay.is_some(), injection.abort.is_some()), (delay, abort), "{cluster:?} {random}");
        }
        assert_eq!(reply(FaultAbort::Grpc(14)).grpc_status, Some(14));
        assert_eq!(reply(FaultAbort::Http(StatusCode::IM_A_TEAPOT)).status, StatusCode::IM_A_TEAPOT);
    }
}
