//! One HTTP request to a port of a pod, over the API server's port-forward.

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::time::Duration;
use weft_k8s_api::Object;
use weft_store::ApiClient;

/// Largest answer, bytes: a config dump of a large mesh.
const MAX_ANSWER: usize = 512 << 20;
/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// GETs a path on a port of a pod.
///
/// # Errors
/// When the pod cannot be reached, nothing listens there, or the answer is not 200.
pub async fn get(client: &ApiClient, pod: &Object, port: u16, path: &str) -> anyhow::Result<Bytes> {
    get_as(client, pod, port, path, None).await
}

/// POSTs to a path on a port of a pod, without a body.
///
/// # Errors
/// As [`get`].
pub async fn post(client: &ApiClient, pod: &Object, port: u16, path: &str) -> anyhow::Result<Bytes> {
    within(pod, port, exchange(client, pod, port, Request::post(path), None)).await
}

/// As [`get`], with a bearer token.
///
/// # Errors
/// As [`get`].
pub async fn get_as(
    client: &ApiClient,
    pod: &Object,
    port: u16,
    path: &str,
    token: Option<&str>,
) -> anyhow::Result<Bytes> {
    within(pod, port, exchange(client, pod, port, Request::get(path), token)).await
}

async fn within(
    pod: &Object,
    port: u16,
    exchange: impl Future<Output = anyhow::Result<Bytes>>,
) -> anyhow::Result<Bytes> {
    let place = || format!("port {port} of pod {}/{}", pod.namespace(), pod.name());
    let answer = tokio::time::timeout(TIMEOUT, exchange).await;
    answer.with_context(|| format!("{} did not answer within {} s", place(), TIMEOUT.as_secs()))?.with_context(place)
}

async fn exchange(
    client: &ApiClient,
    pod: &Object,
    port: u16,
    request: http::request::Builder,
    token: Option<&str>,
) -> anyhow::Result<Bytes> {
    let stream = client.port_forward(pod.namespace(), pod.name(), port).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = request.header(header::HOST, format!("localhost:{port}")).header(header::CONNECTION, "close");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Empty::<Bytes>::new())?;
    let path = request.uri().to_string();
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|e| anyhow::anyhow!("the answer broke off: {e}"))?.to_bytes();
        if !status.is_success() {
            let text: String = String::from_utf8_lossy(&body).chars().take(300).collect();
            bail!("{path} was answered with {status}: {}", text.trim());
        }
        Ok(body)
    };
    tokio::pin!(connection, exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // The end of the connection is often the end of the answer; the exchange then has the last word.
        ended = &mut connection => match exchange.await {
            Err(error) => Err(ended.err().map_or(error, anyhow::Error::from)),
            answer => answer,
        },
    }
}
