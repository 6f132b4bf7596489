//! Commands that ask the proxy in this pod: `request` and `wait`.

use crate::http::fetch;
use anyhow::{anyhow, bail};
use http::{HeaderMap, Method, StatusCode};
use std::io::Write;
use std::time::{Duration, Instant};

/// Largest answer shown.
const MAX_ANSWER: usize = 256 * 1024 * 1024;
/// Time for one answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Asks the admin port and prints the answer.
///
/// # Errors
/// When there is no proxy, or it refuses.
pub async fn request(method: &str, path: &str, port: u16) -> anyhow::Result<()> {
    let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes())
        .map_err(|_| anyhow!("{method:?} is no HTTP method; use GET or POST"))?;
    let path = format!("/{}", path.trim_start_matches('/'));
    let address = format!("127.0.0.1:{port}");
    let answer =
        fetch(method, &address, &path, HeaderMap::new(), TIMEOUT, MAX_ANSWER).await.map_err(|error| anyhow!(error))?;
    std::io::stdout().write_all(&answer.body)?;
    match answer.status.is_success() {
        true => Ok(()),
        false => bail!("{path} answers {}", answer.status),
    }
}

/// Waits until `url` answers 200.
///
/// # Errors
/// When it does not in time; the text has the last reason.
pub async fn wait(url: &str, limit: Duration) -> anyhow::Result<()> {
    let plain = url.strip_prefix("http://").ok_or_else(|| anyhow!("{url:?} must begin with http://"))?;
    let (address, path) = plain.split_once('/').unwrap_or((plain, ""));
    let path = format!("/{path}");
    let end = Instant::now() + limit;
    loop {
        let second = Duration::from_secs(1);
        let reason = match fetch(Method::GET, address, &path, HeaderMap::new(), second, 64 * 1024).await {
            Ok(answer) if answer.status == StatusCode::OK => return Ok(()),
            Ok(answer) => String::from_utf8_lossy(&answer.body).trim().to_owned(),
            Err(error) => error,
        };
        if Instant::now() >= end {
            bail!("the proxy is not ready after {limit:?}: {reason}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
