//! Header operations of the configuration, whose values may be made of what is known of the exchange.

use crate::http::exchange::{Exchange, ExchangeFacts};
use crate::http::intake::Head;
use crate::log::{LogFacts, LoggedRequest, LoggedUpstream};
use http::{HeaderMap, HeaderValue};
use std::net::SocketAddr;
use std::time::SystemTime;
use weft_core::Strng;
use weft_route::HeaderEdit;
use weft_telemetry::{Command, Record};

/// Applies operations to a request. A new `:authority` changes the host that goes to the endpoint; routing is done already.
pub(crate) fn edit_request(exchange: &Exchange, head: &mut Head, edit: &HeaderEdit) {
    if edit.is_empty() {
        return;
    }
    let mut headers = head.headers.take();
    let host = edit_copy(exchange, head, &mut headers, edit);
    head.headers = headers.into();
    if let Some(host) = host {
        head.host = host;
    }
}

/// Applies operations to headers that are those of a request, or a copy of them; a new host, when there is one.
pub(crate) fn edit_copy(
    exchange: &Exchange,
    head: &Head,
    headers: &mut HeaderMap,
    edit: &HeaderEdit,
) -> Option<HeaderValue> {
    if edit.is_empty() {
        return None;
    }
    let mut host = None;
    let shown = Shown {
        method: head.method.clone(),
        path: head.uri.path_and_query().map(|p| p.as_str().to_string()).unwrap_or_default(),
        authority: head.authority().to_string(),
        scheme: head.scheme,
        version: head.version,
        client: head.client,
    };
    edit.apply(
        headers,
        |format, headers| {
            value(exchange, format, &Source { shown: Some(&shown), request: Some(headers), response: None })
        },
        |new| host = Some(new),
    );
    host
}

/// Keeps what values of response headers may be made of.
pub(crate) fn remember(exchange: &Exchange, head: &Head) {
    let shown = LoggedRequest {
        method: head.method.clone(),
        path: head.uri.path_and_query().map(|p| p.as_str().to_string()).unwrap_or_default(),
        authority: head.host.to_str().unwrap_or_default().to_string(),
        scheme: head.scheme,
        version: head.version,
        client: Some(head.client),
        headers: HeaderMap::clone(&head.headers),
        ..LoggedRequest::default()
    };
    exchange.facts.borrow_mut().shown = Some(Box::new(shown));
}

/// Applies operations to a response.
pub(crate) fn edit_response(exchange: &Exchange, headers: &mut HeaderMap, edit: &HeaderEdit) {
    if edit.is_empty() {
        return;
    }
    edit.apply(
        headers,
        |format, headers| value(exchange, format, &Source { shown: None, request: None, response: Some(headers) }),
        |_| {},
    );
}

struct Shown {
    method: http::Method,
    path: String,
    authority: String,
    scheme: &'static str,
    version: http::Version,
    client: SocketAddr,
}

struct Source<'a> {
    shown: Option<&'a Shown>,
    request: Option<&'a HeaderMap>,
    response: Option<&'a HeaderMap>,
}

fn value(exchange: &Exchange, format: &Strng, source: &Source<'_>) -> Option<HeaderValue> {
    let format = exchange.conn.worker.format(format)?;
    let facts = exchange.facts.borrow();
    let text = format.header_text(&Values { exchange, facts: &facts, source });
    HeaderValue::from_str(&text).ok()
}

/// Values of commands while an exchange is under way.
struct Values<'a> {
    exchange: &'a Exchange,
    facts: &'a ExchangeFacts,
    source: &'a Source<'a>,
}

impl Record for Values<'_> {
    fn value(&self, command: &Command, out: &mut String) -> bool {
        let from = |headers: Option<&HeaderMap>, name: &str, out: &mut String| {
            let Some(value) = headers.and_then(|h| h.get(name)) else { return false };
            out.push_str(&String::from_utf8_lossy(value.as_bytes()));
            true
        };
        match command {
            Command::Req(name, other) if self.source.request.is_some() && !name.starts_with(':') => {
                let other = other.as_deref();
                from(self.source.request, name, out) || other.is_some_and(|o| from(self.source.request, o, out))
            }
            Command::Req(name, other) if !name.starts_with(':') && self.facts.shown.is_some() => {
                let headers = self.facts.shown.as_ref().map(|shown| &shown.headers);
                let other = other.as_deref();
                from(headers, name, out) || other.is_some_and(|o| from(headers, o, out))
            }
            Command::Resp(name, other) => {
                let other = other.as_deref();
                from(self.source.response, name, out) || other.is_some_and(|o| from(self.source.response, o, out))
            }
            other => self.as_logged(other, out),
        }
    }
}

impl Values<'_> {
    /// What a log line would say at this point.
    fn as_logged(&self, command: &Command, out: &mut String) -> bool {
        let shown = self.source.shown.map(|shown| LoggedRequest {
            method: shown.method.clone(),
            path: shown.path.clone(),
            authority: shown.authority.clone(),
            scheme: shown.scheme,
            version: shown.version,
            client: Some(shown.client),
            ..LoggedRequest::default()
        });
        let upstream = LoggedUpstream {
            cluster: self.facts.cluster.as_ref().map(|c| c.config.name.clone()),
            host: self.facts.host.as_ref().map(|h| h.name.clone()),
            connection: self.facts.upstream.clone(),
        };
        let elapsed = self.exchange.began.elapsed();
        let log = LogFacts {
            downstream: &self.exchange.conn.downstream,
            request: shown.as_ref().or(self.facts.shown.as_deref()).or(self.facts.logged.as_deref()),
            upstream: &upstream,
            start: SystemTime::now() - elapsed,
            duration: elapsed,
            request_duration: None,
            response_duration: None,
            code: self.facts.code,
            flags: self.facts.flags,
            details: &self.facts.details,
            termination: None,
            transport_failure: self.facts.transport_failure.as_deref(),
            received: 0,
            sent: 0,
            route: self.facts.route.as_ref().map(|r| &*r.name),
            attempts: self.facts.attempts,
            grpc_status: self.facts.grpc_status,
            workload: &self.exchange.conn.worker.parties.local_workload().metadata.name,
        };
        log.value(command, out)
    }
}
