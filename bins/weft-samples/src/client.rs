//! A small HTTP client: one connection a request, a time limit for the whole of it.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::net::TcpStream;

/// Largest response body read.
const MAX_BODY: usize = 4 << 20;

/// Fetches `http://host:port/path` with `headers`; the answer's status and body.
pub async fn get(
    host: &str,
    port: u16,
    path: &str,
    headers: &HeaderMap,
    limit: Duration,
) -> anyhow::Result<(StatusCode, Bytes)> {
    match tokio::time::timeout(limit, fetch(host, port, path, headers)).await {
        Ok(answer) => answer,
        Err(_) => bail!("no answer from {host}:{port} within {limit:?}"),
    }
}

async fn fetch(host: &str, port: u16, path: &str, headers: &HeaderMap) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect((host, port)).await.with_context(|| format!("connect to {host}:{port}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut request = Request::get(path).header("host", format!("{host}:{port}")).body(Empty::<Bytes>::new())?;
    for (name, value) in headers {
        request.headers_mut().append(name, value.clone());
    }
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    driver.abort();
    Ok((status, body.map_err(|e| anyhow::anyhow!("{e}"))?.to_bytes()))
}
