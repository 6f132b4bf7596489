//! Mirrors: a copy of a request for another cluster, whose answer nobody waits for.

use crate::http::exchange::{Copies, Exchange};
use crate::http::format;
use crate::http::forward::ATTEMPT_COUNT;
use crate::http::forwarded::{self, X_ENVOY_INTERNAL};
use crate::http::intake::Head;
use crate::worker::Worker;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::BodyExt;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use weft_cluster::outlier::Outcome;
use weft_cluster::{LiveCluster, PickContext, Want};
use weft_codec::ProxyBody;
use weft_route::{Mirror, Priority};

/// Frames that a slow mirror may lag behind; a mirror that lags more is dropped.
const LAG: usize = 64;
/// Time for a mirrored request when its route has none.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Mirrored requests under way at once in one worker, so that a slow mirror cannot gather memory.
const MAX_UNDER_WAY: usize = 1024;

thread_local! {
    static UNDER_WAY: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// What mirrors are made of.
pub(crate) struct Mirrored<'a> {
    pub exchange: &'a Exchange,
    pub head: &'a Head,
    pub mirrors: &'a [Mirror],
    pub has_body: bool,
    /// Time for the whole request.
    pub timeout: Option<Duration>,
    /// Requests say how often they were tried.
    pub counts: bool,
}

/// Starts the mirrors that the dice say; returns where copies of the body go.
pub(crate) fn start(of: &Mirrored<'_>) -> Copies {
    let mut copies = Copies::new();
    for mirror in of.mirrors {
        if fastrand::u32(..1_000_000) >= mirror.fraction || UNDER_WAY.get() >= MAX_UNDER_WAY {
            continue;
        }
        let (exchange, head) = (of.exchange, of.head);
        let worker = exchange.conn.worker.clone();
        let named = mirror.cluster_header.as_ref().and_then(|name| head.headers.get(name)?.to_str().ok());
        let name = named.unwrap_or(&mirror.cluster);
        let Some(cluster) = worker.clusters.get(&exchange.snapshot().config, name) else { continue };
        let body = if of.has_body {
            let (copy, frames) = mpsc::channel(LAG + 1);
            copies.push(copy);
            ProxyBody::channel(frames)
        } else {
            ProxyBody::empty()
        };
        let (headers, host) = shadow(of, mirror);
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = head.uri.clone();
        *request.headers_mut() = headers;
        let introduced = exchange.http.telemetry.as_ref().is_some_and(|t| !t.destination).then_some(worker);
        let timeout = of.timeout.unwrap_or(TIMEOUT);
        UNDER_WAY.set(UNDER_WAY.get() + 1);
        tokio::task::spawn_local(async move {
            let _ = tokio::time::timeout(timeout, send(cluster, request, host, introduced)).await;
            UNDER_WAY.set(UNDER_WAY.get().saturating_sub(1));
        });
    }
    copies
}

/// Headers and host of a copy. As Envoy: it is a request of the proxy's own, so it comes from inside, and this machine is
/// one more hop.
fn shadow(of: &Mirrored<'_>, mirror: &Mirror) -> (HeaderMap, HeaderValue) {
    let mut headers = HeaderMap::clone(&of.head.headers);
    // Nobody would speak the other protocol to a mirror.
    for name in [CONNECTION, UPGRADE] {
        headers.remove(name);
    }
    if of.counts {
        headers.insert(ATTEMPT_COUNT, HeaderValue::from_static("1"));
    }
    let edited = format::edit_copy(of.exchange, of.head, &mut headers, &mirror.edit);
    headers.insert(X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
    forwarded::append_hop(&mut headers, forwarded::own_address());
    // A host of the mirror's own stands as it is.
    let host = mirror.host.clone().unwrap_or_else(|| {
        let host = edited.as_ref().unwrap_or(&of.head.host);
        if mirror.keep_host { host.clone() } else { shadow_host(host) }
    });
    (headers, host)
}

/// `host-shadow`, before the port.
fn shadow_host(host: &HeaderValue) -> HeaderValue {
    let text = host.to_str().unwrap_or_default();
    let name = weft_route::normalize::without_port(text);
    let port = &text[name.len()..];
    HeaderValue::from_str(&format!("{name}-shadow{port}")).unwrap_or_else(|_| host.clone())
}

/// `introduced`: the worker whose workload a proxy at the other end is told of.
async fn send(
    cluster: Rc<LiveCluster>,
    mut request: Request<ProxyBody>,
    host: HeaderValue,
    introduced: Option<Rc<Worker>>,
) {
    cluster.ready().await;
    let Ok(endpoint) = cluster.pick(&PickContext::default()) else { return };
    let want = Want {
        http2: false,
        fresh: false,
        careful: true,
        host: host.to_str().ok(),
        client: None,
        source: None,
        own: None,
        priority: Priority::Default,
    };
    let Ok(mut lease) = cluster.acquire(&endpoint, want).await else {
        cluster.report(&endpoint, Outcome::LocalError);
        return;
    };
    if let Some(worker) = introduced.filter(|_| crate::http::forward::leads_into_mesh(&lease)) {
        worker.parties.introduce(request.headers_mut());
    }
    crate::http::target::address(&mut request, &host, "http", lease.is_http2());
    cluster.stats.rq_total.inc();
    match lease.send(request).await {
        Ok(response) => {
            cluster.stats.response(response.status().as_u16());
            cluster.report(&endpoint, Outcome::of_status(response.status().as_u16()));
            // The answer is read, so that its connection can be used again.
            let mut body = response.into_body();
            while let Some(Ok(_)) = body.frame().await {}
            lease.give_back();
        }
        Err(failure) => {
            cluster.report(&endpoint, Outcome::LocalError);
            tracing::debug!(error = %failure.error, "mirrored request failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shadow_hosts() {
        for (host, want) in [("a.example", "a.example-shadow"), ("a.example:80", "a.example-shadow:80")] {
            assert_eq!(shadow_host(&HeaderValue::from_static(host)), want);
        }
    }
}
