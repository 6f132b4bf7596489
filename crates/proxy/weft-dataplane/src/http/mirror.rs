//! Mirrors: a copy of a request for another cluster, whose answer nobody waits for.

use crate::http::exchange::{Copies, Exchange};
use crate::http::intake::Head;
use http::{HeaderValue, Request};
use http_body_util::BodyExt;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use weft_cluster::outlier::Outcome;
use weft_cluster::{LiveCluster, PickContext, Want};
use weft_codec::ProxyBody;
use weft_route::Mirror;

/// Frames that a slow mirror may lag behind; a mirror that lags more is dropped.
const LAG: usize = 64;
/// Time for a mirrored request when its route has none.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Mirrored requests under way at once in one worker, so that a slow mirror cannot gather memory.
const MAX_UNDER_WAY: usize = 1024;

thread_local! {
    static UNDER_WAY: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Starts the mirrors that the dice say; returns where copies of the body go.
pub(crate) fn start(
    exchange: &Exchange,
    head: &Head,
    mirrors: &[Mirror],
    has_body: bool,
    timeout: Option<Duration>,
) -> Copies {
    let mut copies = Copies::new();
    for mirror in mirrors {
        if fastrand::u32(..1_000_000) >= mirror.fraction || UNDER_WAY.get() >= MAX_UNDER_WAY {
            continue;
        }
        let worker = &exchange.conn.worker;
        let Some(cluster) = worker.clusters.get(&exchange.snapshot.config, &mirror.cluster) else { continue };
        let body = if has_body {
            let (copy, frames) = mpsc::channel(LAG + 1);
            copies.push(copy);
            ProxyBody::channel(frames)
        } else {
            ProxyBody::empty()
        };
        let host = if mirror.keep_host { head.host.clone() } else { shadow_host(&head.host) };
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = head.uri.clone();
        *request.headers_mut() = head.headers.clone();
        UNDER_WAY.set(UNDER_WAY.get() + 1);
        tokio::task::spawn_local(async move {
            let send = send(cluster, request, host);
            let _ = tokio::time::timeout(timeout.unwrap_or(TIMEOUT), send).await;
            UNDER_WAY.set(UNDER_WAY.get().saturating_sub(1));
        });
    }
    copies
}

/// `host-shadow`, before the port.
fn shadow_host(host: &HeaderValue) -> HeaderValue {
    let text = host.to_str().unwrap_or_default();
    let name = weft_route::normalize::without_port(text);
    let port = &text[name.len()..];
    HeaderValue::from_str(&format!("{name}-shadow{port}")).unwrap_or_else(|_| host.clone())
}

async fn send(cluster: Rc<LiveCluster>, mut request: Request<ProxyBody>, host: HeaderValue) {
    cluster.ready().await;
    let Ok(endpoint) = cluster.pick(&PickContext::default()) else { return };
    let want = Want { http2: false, fresh: false, careful: true, host: host.to_str().ok(), client: None };
    let Ok(mut lease) = cluster.acquire(&endpoint, want).await else {
        cluster.report(&endpoint, Outcome::LocalError);
        return;
    };
    crate::http::forward::address(&mut request, &host, "http", lease.is_http2());
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
