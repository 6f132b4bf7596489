//! A browser: one request, its status, headers and body.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use std::time::Duration;

/// Time for one request.
const LIMIT: Duration = Duration::from_secs(20);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body as text.
    pub body: String,
}

/// `GET url` with headers.
pub fn get(url: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    send("GET", url, headers, "")
}

/// Any request, on a connection of its own.
pub fn send(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Result<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async { tokio::time::timeout(LIMIT, exchange(method, url, headers, body)).await });
    answer.with_context(|| format!("{method} {url}: no answer within {LIMIT:?}"))?
}

async fn exchange(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Result<Answer> {
    let uri: Uri = url.parse()?;
    let authority = uri.authority().context("URL without host")?;
    let stream =
        tokio::net::TcpStream::connect(authority.as_str()).await.with_context(|| format!("connect to {authority}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(uri.path_and_query().map_or("/", |p| p.as_str()));
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", authority.as_str());
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Full::new(Bytes::copy_from_slice(body.as_bytes())))?).await?;
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    driver.abort();
    Ok(Answer { status: head.status, headers: head.headers, body: crate::lab::text(&body) })
}

/// The session cookie that Bookinfo's login gives `user`.
pub fn login(base: &str, user: &str) -> Result<String> {
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let answer = send("POST", &format!("{base}/login"), &form, &format!("username={user}&passwd="))?;
    anyhow::ensure!(answer.status == StatusCode::FOUND, "login answered {}: {}", answer.status, answer.body);
    let cookie = answer.headers.get("set-cookie").context("login set no cookie")?.to_str()?;
    Ok(cookie.split(';').next().unwrap_or_default().to_string())
}

/// The stars of a product page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stars {
    /// reviews v1
    None,
    /// reviews v2
    Black,
    /// reviews v3
    Red,
}

/// Loads the product page, which must be whole, and looks at its stars.
pub fn stars(base: &str, cookie: Option<&str>) -> Result<Stars> {
    let headers: Vec<(&str, &str)> = cookie.map(|c| ("cookie", c)).into_iter().collect();
    let page = get(&format!("{base}/productpage"), &headers)?;
    anyhow::ensure!(page.status == StatusCode::OK, "product page answered {}", page.status);
    anyhow::ensure!(
        page.body.contains("Book Reviews") && page.body.contains("Book Details"),
        "page is not whole: {}",
        page.body
    );
    Ok(if page.body.contains("color:red") {
        Stars::Red
    } else if page.body.contains("color:black") {
        Stars::Black
    } else {
        Stars::None
    })
}
