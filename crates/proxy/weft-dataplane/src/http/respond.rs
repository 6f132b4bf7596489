//! Back to the client: the upstream's response made fit for it, or an answer of the proxy's own.

use crate::http::compress;
use crate::http::exchange::{Exchange, ResponseObserver};
use crate::http::filters::Marks;
use crate::http::format;
use crate::http::place::Place;
use crate::log::LoggedRequest;
use http::header::{CONNECTION, SERVER, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use std::rc::Rc;
use weft_cluster::Lease;
use weft_codec::{HeaderMarks, LocalReply, ProxyBody, grpc, hop};
use weft_filter::peer::{Facts, PEER_METADATA, PEER_METADATA_ID};
use weft_filter::{cors, grpc_web};
use weft_proxy_config::{HttpFilter, ServerHeader};
use weft_route::HeaderEdit;

const UPSTREAM_SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// An answer of the proxy's own.
pub(crate) fn local(exchange: &Rc<Exchange>, reply: LocalReply) -> Response<ProxyBody> {
    let is_grpc = {
        let mut facts = exchange.facts.borrow_mut();
        facts.flags |= reply.flags;
        facts.details = reply.details.clone();
        // Browsers send preflights, whatever the request behind them is to be.
        facts.is_grpc && reply.details != cors::DETAILS
    };
    let mut response = reply.into_response(is_grpc);
    compress::response(exchange, &mut response);
    if let Some(web) = exchange.facts.borrow().web {
        grpc_web::answer(web, response.headers_mut());
    }
    finish(exchange, response.headers_mut(), true);
    note(exchange, response.status(), response.headers());
    let observer = ResponseObserver { exchange: exchange.clone(), lease: None, _place: None, web: None };
    response.map(|body| body.observed(Box::new(observer)))
}

/// The agreement to a `CONNECT` that ends here.
pub(crate) fn agreed(exchange: &Rc<Exchange>) -> Response<ProxyBody> {
    let mut response = Response::new(ProxyBody::empty());
    finish(exchange, response.headers_mut(), true);
    note(exchange, StatusCode::OK, response.headers());
    response
}

/// The upstream's response, ready for the client but for its body.
pub(crate) fn upstream_head<'e>(
    exchange: &Rc<Exchange>,
    response: &mut Response<ProxyBody>,
    found: HeaderMarks,
    lease: &mut Lease,
    millis: u64,
    edits: impl Iterator<Item = &'e HeaderEdit>,
    marks: Marks,
) {
    let status = response.status();
    let headers = response.headers_mut();
    if found.has(HeaderMarks::KEEP_ALIVE)
        && let Some(hint) = headers.get(KEEP_ALIVE).and_then(keep_alive_seconds)
    {
        lease.heed_keep_alive(hint);
    }
    hop::strip(headers, found);
    meet_peer(exchange, headers);
    if !exchange.http.hcm.suppress_envoy_headers {
        headers.insert(UPSTREAM_SERVICE_TIME, service_time(millis));
    }
    answered(exchange, status);
    for edit in edits {
        format::edit_response(exchange, headers, edit);
    }
    filters(exchange, headers);
    compress::response(exchange, response);
    let headers = response.headers_mut();
    mark(headers, marks);
    finish(exchange, headers, false);
    note(exchange, status, headers);
    let web = exchange.facts.borrow().web;
    if web.is_some_and(|web| !grpc_web::answer(web, headers)) {
        // Whatever it is, it is no gRPC that could be translated.
        exchange.facts.borrow_mut().web = None;
    }
}

/// The body of an upstream's response, counted as it passes; the connection goes back when it has.
pub(crate) fn upstream_body(exchange: &Rc<Exchange>, body: ProxyBody, lease: Lease, place: Place) -> ProxyBody {
    let web = exchange.facts.borrow().web;
    let exchange = exchange.clone();
    let observer = ResponseObserver { exchange, lease: Some(lease), _place: Some(place), web };
    body.observed(Box::new(observer))
}

/// Time between sending a request and receiving its response's head. The usual values need no allocation.
fn service_time(millis: u64) -> HeaderValue {
    const SMALL: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    match SMALL.get(millis as usize) {
        Some(text) => HeaderValue::from_static(text),
        None => {
            let mut value = HeaderValue::from(millis);
            // One of very many: not worth a place in the tables of HTTP/2's header compression.
            value.set_sensitive(true);
            value
        }
    }
}

/// Applies the configuration's operations.
pub(crate) fn edit<'e>(exchange: &Exchange, headers: &mut HeaderMap, edits: impl Iterator<Item = &'e HeaderEdit>) {
    for edit in edits {
        format::edit_response(exchange, headers, edit);
    }
}

/// What filters do to every response.
pub(crate) fn filters(exchange: &Exchange, headers: &mut HeaderMap) {
    for filter in &exchange.http.hcm.filters {
        if let HttpFilter::HeaderMutation(edits) = filter {
            format::edit_response(exchange, headers, &edits.response);
        }
    }
}

/// What filters want on the response.
pub(crate) fn mark(headers: &mut HeaderMap, marks: Marks) {
    if let Some((policy, origin)) = marks.cors {
        cors::response(&policy, origin, headers);
    }
    for (name, value, how) in marks.response {
        weft_route::rewrite::put(headers, &name, value, how);
    }
}

/// What operations may ask for.
fn answered(exchange: &Exchange, status: StatusCode) {
    let mut facts = exchange.facts.borrow_mut();
    facts.code = status.as_u16();
    if facts.details.is_empty() {
        facts.details = "via_upstream".into();
    }
}

fn note(exchange: &Exchange, status: StatusCode, headers: &HeaderMap) {
    answered(exchange, status);
    let mut facts = exchange.facts.borrow_mut();
    if facts.is_grpc {
        facts.grpc_status = grpc::status(headers);
    }
    if let Some(logged) = &mut facts.logged {
        LoggedRequest::keep(&mut logged.response_headers, headers, exchange.http.logs.response_headers());
    }
}

/// Headers that every response gets.
fn finish(exchange: &Exchange, headers: &mut HeaderMap, own: bool) {
    let http = &exchange.http;
    if let Some(server) = &http.server {
        match http.hcm.server_header {
            ServerHeader::Overwrite => {
                headers.insert(SERVER, server.clone());
            }
            ServerHeader::AppendIfAbsent => {
                headers.entry(SERVER).or_insert_with(|| server.clone());
            }
            ServerHeader::PassThrough if own => {
                headers.insert(SERVER, server.clone());
            }
            ServerHeader::PassThrough => {}
        }
    }
    if let Some(via) = &http.via {
        headers.append(VIA, via.clone());
    }
    if exchange.conn.entry().is_draining() && exchange.conn.is_http1() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Workload facts travel between proxies only: a client's proxy takes them out, a server's proxy puts its own in.
fn meet_peer(exchange: &Exchange, headers: &mut HeaderMap) {
    let Some(telemetry) = &exchange.http.telemetry else { return };
    let told = headers.remove(PEER_METADATA);
    headers.remove(PEER_METADATA_ID);
    let parties = &exchange.conn.worker.parties;
    if telemetry.destination {
        if exchange.conn.downstream.is_mutual_tls() {
            parties.introduce(headers);
        }
        return;
    }
    let mut facts = exchange.facts.borrow_mut();
    let principal = facts.upstream.as_ref().and_then(|u| u.peer_uri().map(str::to_string));
    // Only a peer with a certificate is believed.
    if let (Some(told), Some(principal)) = (told, principal) {
        facts.peer = Some(parties.party(Facts::Header(told.as_bytes()), Some(&principal)));
    }
}

/// `timeout=5` of a `keep-alive` header.
fn keep_alive_seconds(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok()?;
    text.split(',').find_map(|part| part.trim().strip_prefix("timeout=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keep_alive_hints() {
        for (text, want) in
            [("timeout=5", Some(5)), ("max=10, timeout=75", Some(75)), ("max=1", None), ("timeout=x", None)]
        {
            assert_eq!(keep_alive_seconds(&HeaderValue::from_static(text)), want, "{text}");
        }
    }
}
