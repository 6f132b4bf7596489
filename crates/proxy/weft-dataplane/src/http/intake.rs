//! What is let in: a request is checked, normalised once, and cleaned of what its client must not say. Routing,
//! authorization and the endpoint all see the result, and nothing else.

use crate::http::exchange::Exchange;
use crate::http::forwarded;
use crate::http::headers::Headers;
use crate::http::trace;
use crate::http::upgrade::Upgrade;
use crate::log::LoggedRequest;
use http::header::{EXPECT, HOST, LOCATION};
use http::request::Parts;
use http::uri::{PathAndQuery, Uri};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use std::borrow::Cow;
use std::net::SocketAddr;
use weft_codec::strict::{self, Lenience};
use weft_codec::{HeaderMarks, LocalReply, Reason, hop};
use weft_filter::peer::{Facts, PEER_METADATA, PEER_METADATA_ID};
use weft_route::normalize::{self, HostNormalization};
use weft_route::{DynamicMetadata, RequestView};

/// A request's head, as everything after this sees it.
#[derive(Debug)]
pub(crate) struct Head {
    pub method: Method,
    pub version: Version,
    /// Path and query, normalised; the whole target for `CONNECT`.
    pub uri: Uri,
    pub headers: Headers,
    /// The host, as it goes to the endpoint.
    pub host: HeaderValue,
    /// The host in lower case, as routing and authorization see it.
    pub authority: HeaderValue,
    /// `http` or `https`, as the request names it itself (HTTP/2, absolute form), else as the client's first proxy saw it.
    pub scheme: &'static str,
    /// The client's first proxy was asked by TLS.
    pub by_tls: bool,
    /// The client behind trusted proxies.
    pub client: SocketAddr,
    /// The client stands inside: it may steer retries and time limits.
    pub internal: bool,
    /// What filters said of the request.
    pub metadata: DynamicMetadata,
    /// What the client wants the connection to become.
    pub upgrade: Option<Upgrade>,
}

impl Head {
    /// What routing sees.
    pub fn view(&self) -> RequestView<'_> {
        RequestView {
            method: &self.method,
            authority: self.authority(),
            path: if self.is_pathless() { "" } else { self.uri.path() },
            query: self.uri.query(),
            scheme: self.scheme,
            headers: &self.headers,
            metadata: &self.metadata,
        }
    }

    /// The same, of which nothing becomes a tunnel.
    pub fn copy(&self) -> Head {
        Head {
            method: self.method.clone(),
            version: self.version,
            uri: self.uri.clone(),
            headers: self.headers.clone(),
            host: self.host.clone(),
            authority: self.authority.clone(),
            scheme: self.scheme,
            by_tls: self.by_tls,
            client: self.client,
            internal: self.internal,
            metadata: self.metadata.clone(),
            upgrade: None,
        }
    }

    /// What authorization sees.
    pub fn facts(&self) -> weft_authz::RequestFacts<'_> {
        let path_and_query = self.uri.path_and_query().map_or("", PathAndQuery::as_str);
        weft_authz::RequestFacts {
            method: self.method.as_str(),
            authority: self.authority(),
            path: if self.is_pathless() { "" } else { self.uri.path() },
            path_and_query,
            scheme: self.scheme,
            headers: &self.headers,
        }
    }

    /// The host in lower case.
    pub fn authority(&self) -> &str {
        self.authority.to_str().unwrap_or_default()
    }

    /// `CONNECT host:port` has no path.
    fn is_pathless(&self) -> bool {
        self.method == Method::CONNECT && self.uri.path_and_query().is_none()
    }
}

/// Lets a request in.
///
/// # Errors
/// The answer to a request that is refused.
pub(crate) fn admit(
    exchange: &Exchange,
    parts: Parts,
    marks: HeaderMarks,
    has_body: bool,
    upgrade: Option<Upgrade>,
) -> Result<Head, Box<LocalReply>> {
    let hcm = &exchange.http.hcm;
    log_as_sent(exchange, &parts);
    let lenience = Lenience { http10: hcm.accept_http_10 };
    let text = strict::check(&parts, marks, has_body, lenience)
        .map_err(|refusal| LocalReply::new(refusal.0).with_details(refusal.1))?;
    let (host, authority) = hosts(
        &parts,
        text,
        HostNormalization { strip_port: hcm.strip_port, strip_trailing_dot: hcm.strip_trailing_dot },
    );
    let Parts { mut method, uri, version, mut headers, .. } = parts;
    let asked = uri.scheme_str().map(|scheme| if scheme.eq_ignore_ascii_case("https") { "https" } else { "http" });
    let uri = normalized(exchange, &method, uri)?;
    let forwarded::Asker { client, scheme, by_tls, internal } =
        forwarded::apply(&exchange.conn, hcm, &mut headers, marks, asked);
    hop::strip(&mut headers, marks);
    if let Some(upgrade) = &upgrade {
        upgrade.show(&mut method, &mut headers);
        if let Some(logged) = &mut exchange.facts.borrow_mut().logged {
            logged.method = method.clone();
        }
    }
    if marks.has(HeaderMarks::EXPECT) {
        // 100 Continue is answered here, as soon as the body is asked for.
        headers.remove(EXPECT);
    }
    meet_peer(exchange, &mut headers, &authority);
    let mut head = Head {
        internal,
        method,
        version,
        uri,
        headers: headers.into(),
        host,
        authority,
        scheme,
        by_tls,
        client,
        upgrade,
        metadata: DynamicMetadata::new(),
    };
    trace::begin(exchange, &mut head);
    Ok(head)
}

/// The host to send on, and the host to match by.
fn hosts(parts: &Parts, text: &str, how: HostNormalization) -> (HeaderValue, HeaderValue) {
    let value = |text: &str| HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""));
    // The usual case costs no allocation: the header is what routing wants already.
    let sent = match parts.headers.get(HOST).filter(|_| parts.uri.authority().is_none()) {
        Some(header) => header.clone(),
        None => value(text),
    };
    match normalize::host(text, how) {
        Cow::Borrowed(same) if same.len() == text.len() => (sent.clone(), sent),
        Cow::Borrowed(shorter) => (value(shorter), value(shorter)),
        Cow::Owned(lower) if lower.len() == text.len() => (sent, value(&lower)),
        // What was taken away stood at the end; the rest goes on as it was written.
        Cow::Owned(lower) => (value(text.get(..lower.len()).unwrap_or(&lower)), value(&lower)),
    }
}

fn normalized(exchange: &Exchange, method: &Method, uri: Uri) -> Result<Uri, Box<LocalReply>> {
    let Some(target) = uri.path_and_query() else { return Ok(uri) };
    if method == Method::OPTIONS && target.as_str() == "*" {
        return Ok(uri);
    }
    let found =
        normalize::path(target.as_str(), &exchange.http.hcm.normalize).map_err(|_| LocalReply::new(Reason::BadPath))?;
    if found.redirect {
        return Err(redirect_to(&found.path_and_query));
    }
    let changed = match found.path_and_query {
        Cow::Borrowed(_) if uri.authority().is_none() => return Ok(uri),
        Cow::Borrowed(_) => target.clone(),
        Cow::Owned(new) => PathAndQuery::try_from(new).map_err(|_| LocalReply::new(Reason::BadPath))?,
    };
    Ok(Uri::from(changed))
}

/// The answer to a path with escaped slashes that are to be decoded by the client.
fn redirect_to(path: &str) -> Box<LocalReply> {
    let mut reply = LocalReply::new(Reason::BadPath).with_details("path_normalization_redirect");
    reply.status = StatusCode::TEMPORARY_REDIRECT;
    if let Ok(location) = HeaderValue::from_str(path) {
        reply.headers.insert(LOCATION, location);
    }
    Box::new(reply)
}

/// What the other proxy says of its workload is believed over mutual TLS, and goes no further than this proxy.
fn meet_peer(exchange: &Exchange, headers: &mut HeaderMap, authority: &HeaderValue) {
    let Some(telemetry) = &exchange.http.telemetry else { return };
    let mut facts = exchange.facts.borrow_mut();
    facts.authority = Some(authority.clone());
    let told = headers.remove(PEER_METADATA);
    headers.remove(PEER_METADATA_ID);
    let downstream = &exchange.conn.downstream;
    if telemetry.destination
        && downstream.is_mutual_tls()
        && let Some(told) = told
    {
        let parties = &exchange.conn.worker.parties;
        facts.peer = Some(parties.party(Facts::Header(told.as_bytes()), downstream.peer_uri()));
    }
}

fn log_as_sent(exchange: &Exchange, parts: &Parts) {
    if !exchange.is_logged() {
        return;
    }
    let host = parts.headers.get(HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let logged = LoggedRequest {
        method: parts.method.clone(),
        path: parts.uri.path_and_query().map(|p| p.as_str().to_string()).unwrap_or_default(),
        authority: parts.uri.authority().map_or(host, |a| a.as_str()).to_string(),
        scheme: exchange.conn.downstream.scheme(),
        version: parts.version,
        ..LoggedRequest::default()
    };
    exchange.facts.borrow_mut().logged = Some(Box::new(logged));
}

/// Keeps the headers that log lines need, as they are after all that this proxy did to them.
pub(crate) fn log_headers(exchange: &Exchange, head: &Head) {
    if let Some(logged) = &mut exchange.facts.borrow_mut().logged {
        (logged.scheme, logged.client) = (head.scheme, Some(head.client));
        LoggedRequest::keep(&mut logged.headers, &head.headers, exchange.http.logs.request_headers());
    }
}
