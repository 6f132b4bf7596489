//! Rate limits of requests: the limits of a route and its virtual host, the buckets of this proxy, and the service that
//! counts for many proxies.

use crate::ask::{Ask, ask};
use crate::http::exchange::Exchange;
use crate::http::filters::{Destination, Marks};
use crate::http::format;
use crate::http::intake::Head;
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderValue, Method, Request, Uri};
use std::rc::Rc;
use weft_codec::{LocalReply, grpc};
use weft_core::Strng;
use weft_filter::ratelimit::{self, MAX_ANSWER, Verdict};
use weft_proxy_config::{RateLimitService, RequestType};
use weft_route::ratelimit::{Asked, Entry, descriptors};
use weft_route::{Action, AppendAction, HostLimits, LocalRateLimit, RateLimit};
use weft_telemetry::{Counter, Shard};

/// Counters of buckets with one prefix.
#[derive(Debug)]
pub(crate) struct LocalStats {
    enabled: Counter,
    enforced: Counter,
    limited: Counter,
    ok: Counter,
}

impl LocalStats {
    pub fn new(shard: &Shard, prefix: &Strng) -> Self {
        let label = [("envoy_local_http_ratelimit_prefix", prefix.clone())];
        Self {
            enabled: shard.counter("envoy_http_local_rate_limit_enabled", &label),
            enforced: shard.counter("envoy_http_local_rate_limit_enforced", &label),
            limited: shard.counter("envoy_http_local_rate_limit_rate_limited", &label),
            ok: shard.counter("envoy_http_local_rate_limit_ok", &label),
        }
    }
}

/// The dice fall on a share in parts per million.
fn falls_on(share: u32) -> bool {
    share >= 1_000_000 || fastrand::u32(..1_000_000) < share
}

/// The descriptors of a request: those of `own` limits when there are any, else those of the route and its virtual host.
fn described(head: &Head, to: Destination<'_>, own: &[RateLimit], stage: u32, host: HostLimits) -> Vec<Vec<Entry>> {
    let asked = Asked { view: head.view(), cluster: to.cluster, client: head.client.ip() };
    if !own.is_empty() {
        return descriptors(own.iter(), stage, &asked);
    }
    let (of_route, include): (&[RateLimit], bool) = match to.route.map(|route| &route.action) {
        Some(Action::Forward(forward)) => (&forward.rate_limits, forward.include_host_limits),
        _ => (&[], false),
    };
    let with_host = match host {
        HostLimits::Ignore => include,
        HostLimits::Include => true,
        HostLimits::Override => include || of_route.is_empty(),
    };
    let of_host = to.host.map(|host| &host.rate_limits[..]).filter(|_| with_host).unwrap_or_default();
    descriptors(of_route.iter().chain(of_host), stage, &asked)
}

/// Takes from the buckets of this proxy.
///
/// # Errors
/// The answer to a request that is one too many.
pub(crate) fn local(
    exchange: &Exchange,
    head: &mut Head,
    to: Destination<'_>,
    filter: &LocalRateLimit,
) -> Result<(), Box<LocalReply>> {
    if !falls_on(filter.enabled) {
        return Ok(());
    }
    let stats = exchange.http.local_limits(&exchange.conn.worker.shard, &filter.stat_prefix);
    stats.enabled.inc();
    let described = described(head, to, &filter.limits, filter.stage, filter.host);
    if filter.passes(&described, ratelimit::now()) {
        stats.ok.inc();
        return Ok(());
    }
    stats.limited.inc();
    if !falls_on(filter.enforced) {
        format::edit_request(exchange, head, &filter.request_headers);
        return Ok(());
    }
    stats.enforced.inc();
    let mut reply = ratelimit::refusal(filter);
    format::edit_response(exchange, &mut reply.headers, &filter.response_headers);
    Err(Box::new(reply))
}

/// Asks the service.
///
/// # Errors
/// The answer to a request that is one too many, or about which nobody knows.
pub(crate) async fn service(
    exchange: &Exchange,
    head: &mut Head,
    to: Destination<'_>,
    marks: &mut Marks,
    filter: &RateLimitService,
) -> Result<(), Box<LocalReply>> {
    let wrong = match filter.whose {
        RequestType::Both => false,
        RequestType::Internal => !head.internal,
        RequestType::External => head.internal,
    };
    if wrong || !falls_on(filter.enabled) {
        return Ok(());
    }
    let route = to.rate_limit();
    let own = route.map(|r| &r.limits[..]).filter(|own| !own.is_empty()).unwrap_or(&filter.limits);
    let host = route.map(|r| r.host).unwrap_or_default();
    let described = described(head, to, own, filter.stage, host);
    if described.is_empty() {
        return Ok(());
    }
    let domain = route.map(|r| r.domain.as_str()).filter(|d| !d.is_empty()).unwrap_or(&filter.domain);
    let count = |name: &'static str| {
        let cluster = Strng::from(to.cluster.unwrap_or_default());
        exchange.conn.worker.shard.counter(name, &[("cluster_name", cluster)]).inc();
    };
    match verdict(exchange, filter, domain, described).await {
        Verdict::Passes(request, response) => {
            count("envoy_cluster_ratelimit_ok");
            for (name, value) in request {
                head.headers.append(name, value);
            }
            marks.response.extend(response.into_iter().map(|(name, value)| (name, value, AppendAction::AppendOrAdd)));
            Ok(())
        }
        Verdict::OverLimit(headers, body) => {
            count("envoy_cluster_ratelimit_over_limit");
            if !falls_on(filter.enforced) {
                return Ok(());
            }
            let mut reply = ratelimit::over_limit(filter, headers, body);
            format::edit_response(exchange, &mut reply.headers, &filter.response_headers);
            Err(Box::new(reply))
        }
        Verdict::Failed(why) => {
            count("envoy_cluster_ratelimit_error");
            let denied = filter.deny_on_failure > 0 && falls_on(filter.deny_on_failure);
            tracing::debug!(target: "ratelimit", %why, denied, "the rate limit service was not heard");
            if denied {
                return Err(Box::new(ratelimit::failed(filter)));
            }
            count("envoy_cluster_ratelimit_failure_mode_allowed");
            Ok(())
        }
    }
}

async fn verdict(exchange: &Exchange, filter: &RateLimitService, domain: &str, of: Vec<Vec<Entry>>) -> Verdict {
    let mut request = match ratelimit::question(domain, of) {
        Ok(question) => Request::new(question),
        Err(why) => return Verdict::Failed(why),
    };
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static(ratelimit::PATH);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    let how = Ask {
        cluster: &filter.cluster,
        host: &filter.authority,
        http2: true,
        timeout: filter.timeout,
        most: MAX_ANSWER,
    };
    match ask(&Rc::clone(&exchange.conn.worker), how, request).await {
        Ok(answer) => {
            let status = answer.trailers.as_ref().and_then(grpc::status);
            ratelimit::verdict(status.or_else(|| grpc::status(&answer.head.headers)), &answer.body)
        }
        Err(why) => Verdict::Failed(why),
    }
}
