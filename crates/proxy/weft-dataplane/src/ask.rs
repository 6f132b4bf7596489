//! Questions to clusters, asked on behalf of a filter: one request, one short answer, in time.

use crate::worker::Worker;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::rc::Rc;
use std::time::Duration;
use weft_cluster::outlier::Outcome;
use weft_cluster::{LiveCluster, PickContext, Want};
use weft_codec::ProxyBody;
use weft_route::Priority;

/// An answer: head, body, trailers.
pub(crate) struct Answer {
    pub head: response::Parts,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

/// A question.
pub(crate) struct Ask<'a> {
    /// Who is asked.
    pub cluster: &'a str,
    /// Host that is named to them.
    pub host: &'a HeaderValue,
    /// Only HTTP/2 will do.
    pub http2: bool,
    /// Time for the whole answer.
    pub timeout: Option<Duration>,
    /// Longest answer that is read.
    pub most: usize,
}

/// Asks.
///
/// # Errors
/// Why there is no answer.
pub(crate) async fn ask(worker: &Rc<Worker>, how: Ask<'_>, request: Request<Bytes>) -> Result<Answer, String> {
    let snapshot = worker.snapshot();
    let Some(cluster) = worker.clusters.get(&snapshot.config, how.cluster) else {
        return Err(format!("there is no cluster {}", how.cluster));
    };
    let asked = once(&cluster, &how, request);
    match how.timeout {
        Some(longest) => match tokio::time::timeout(longest, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {longest:?}")),
        },
        None => asked.await,
    }
}

async fn once(cluster: &Rc<LiveCluster>, how: &Ask<'_>, request: Request<Bytes>) -> Result<Answer, String> {
    cluster.ready().await;
    let endpoint = cluster.pick(&PickContext::default()).map_err(|error| error.reason.details().to_string())?;
    let want = Want {
        http2: how.http2,
        fresh: false,
        careful: true,
        host: how.host.to_str().ok(),
        client: None,
        source: None,
        own: None,
        priority: Priority::Default,
    };
    let failed = |why: String| {
        cluster.report(&endpoint, Outcome::LocalError);
        why
    };
    let mut lease = cluster
        .acquire(&endpoint, want)
        .await
        .map_err(|error| failed(error.detail.as_deref().unwrap_or(error.reason.details()).to_string()))?;
    if how.http2 && !lease.is_http2() {
        return Err(format!("cluster {} does not speak HTTP/2", how.cluster));
    }
    let mut request = request.map(ProxyBody::full);
    crate::http::target::address(&mut request, how.host, "http", lease.is_http2());
    cluster.stats.rq_total.inc();
    let response = lease.send(request).await.map_err(|failure| failed(failure.error.reason.details().to_string()))?;
    let status = response.status().as_u16();
    cluster.stats.response(status);
    cluster.report(&endpoint, Outcome::of_status(status));
    let (head, body) = response.into_parts();
    let body = Limited::new(body, how.most).collect().await.map_err(|error| {
        let long = error.downcast_ref::<LengthLimitError>().is_some();
        if long { format!("the answer is longer than {} bytes", how.most) } else { error.to_string() }
    })?;
    lease.give_back();
    let trailers = body.trailers().cloned();
    Ok(Answer { head, body: body.to_bytes(), trailers })
}
