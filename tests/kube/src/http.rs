//! Small HTTP/1.1 requests to ports of loopback: plain, or over TLS with a given root.

use anyhow::{Context as _, Result};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use weft_tls::{ClientContext, ClientParams, ServerVerification, TrustAnchors};

/// Time for one request.
const LIMIT: Duration = Duration::from_secs(10);

/// A GET without TLS: status and body.
///
/// # Errors
/// When nobody answers.
pub async fn get(port: u16, path: &str) -> Result<(u16, String)> {
    let exchange = async { ask(TcpStream::connect(("127.0.0.1", port)).await?, path, None).await };
    tokio::time::timeout(LIMIT, exchange).await.context("no answer in time")?
}

/// A GET over TLS with one trusted root: status and body.
///
/// # Errors
/// When nobody answers, or someone else does.
pub async fn get_tls(port: u16, path: &str, root: &str, token: Option<&str>) -> Result<(u16, String)> {
    let exchange = async {
        let roots = TrustAnchors::from_pem(root.as_bytes())?;
        let verification = ServerVerification::WebPki { anchors: roots, san: None };
        let params = ClientParams { sni: Some("127.0.0.1".into()), ..ClientParams::new(verification) };
        let connection = TcpStream::connect(("127.0.0.1", port)).await?;
        let connected = ClientContext::build(params)?.connect(connection).await?;
        ask(connected.stream, path, token).await
    };
    tokio::time::timeout(LIMIT, exchange).await.context("no answer in time")?
}

async fn ask(stream: impl AsyncRead + AsyncWrite + Unpin, path: &str, token: Option<&str>) -> Result<(u16, String)> {
    let token = token.map(|t| format!("authorization: Bearer {t}\r\n")).unwrap_or_default();
    tell(stream, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{token}connection: close\r\n\r\n")).await
}

/// A request to an API server: status and JSON. HTTP/1.0, so that the answer ends with the connection.
///
/// # Errors
/// When nobody answers.
pub async fn rest(
    url: &str,
    root: &str,
    token: &str,
    (method, path): (&str, &str),
    body: Option<(&str, &str)>,
) -> Result<(u16, serde_json::Value)> {
    let (scheme, address) = url.split_once("://").context("a URL")?;
    let (content_type, body) = body.unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.0\r\nhost: {address}\r\nauthorization: Bearer {token}\r\ncontent-type: {content_type}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let exchange = async {
        let connection = TcpStream::connect(address).await?;
        if scheme == "http" {
            return tell(connection, &request).await;
        }
        let roots = TrustAnchors::from_pem(root.as_bytes())?;
        let verification = ServerVerification::WebPki { anchors: roots, san: None };
        let params = ClientParams { sni: Some("127.0.0.1".into()), ..ClientParams::new(verification) };
        tell(ClientContext::build(params)?.connect(connection).await?.stream, &request).await
    };
    let (status, body) = tokio::time::timeout(LIMIT, exchange).await.context("no answer in time")??;
    Ok((status, serde_json::from_str(&body).with_context(|| format!("{method} {path}: {status} {body}"))?))
}

async fn tell(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Result<(u16, String)> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // Some servers end TLS without a farewell.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("not an HTTP status")?;
    Ok((status, body.to_string()))
}
