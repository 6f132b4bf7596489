//! The life of a request, in the order of events.

use crate::demand;
use crate::http::conn::HttpConnection;
use crate::http::exchange::Exchange;
use crate::http::filters::{self, Admitted, Destination, Marks};
use crate::http::forward::{self, Forwarding};
use crate::http::intake::{self, Head};
use crate::http::{compress, format, respond, upgrade};
use http::header::LOCATION;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use weft_codec::upgrade::Upgrading;
use weft_codec::{Flags, HeaderMarks, LocalReply, ProxyBody, Reason, grpc};
use weft_proxy_config::RouteSource;
use weft_route::rewrite;
use weft_route::{
    Action, ClusterChoice, DirectResponse, Forward, HeaderEdit, Redirect, Route, RouteTable, Routed, WeightedCluster,
};

/// Serves one request, whose headers have `marks`. Whatever happens, there is an answer. `client`: the HTTP/1 client's connection,
/// when it asks for it to become something else.
pub(crate) async fn serve(
    conn: Rc<HttpConnection>,
    request: Request<ProxyBody>,
    marks: HeaderMarks,
    client: Option<Upgrading>,
) -> Response<ProxyBody> {
    let Some(http) = conn.slot.current().http.clone() else {
        return LocalReply::new(Reason::NoRoute).into_response(false);
    };
    let exchange = Exchange::begin(&conn, http);
    if marks.has(HeaderMarks::CONTENT_TYPE) {
        exchange.facts.borrow_mut().is_grpc = grpc::is_grpc(request.headers());
    }
    let outcome = tokio::select! {
        biased;
        outcome = handle(&exchange, request, client, marks) => outcome,
        reason = exchange.cancelled() => {
            Err(Box::new(LocalReply::new(reason).with_details(exchange.details_of(reason))))
        }
    };
    match outcome {
        Ok(response) => response,
        Err(reply) => respond::local(&exchange, *reply),
    }
}

/// The steps.
async fn handle(
    exchange: &Rc<Exchange>,
    request: Request<ProxyBody>,
    client: Option<Upgrading>,
    marks: HeaderMarks,
) -> Result<Response<ProxyBody>, Box<LocalReply>> {
    let upgrade = upgrade::asked_for(&request, client, marks, &exchange.http.hcm);
    let (parts, mut body) = request.into_parts();
    let has_body = !body.is_end_stream();
    if !has_body {
        exchange.complete_request();
    }
    let mut head = intake::admit(exchange, parts, marks, has_body, upgrade)?;
    if exchange.conn.is_misdirected_to(&head.authority) {
        return Err(Box::new(LocalReply::new(Reason::Misdirected)));
    }
    if exchange.conn.worker.asks.is_some() {
        // In a box, so that other requests do not carry the room for it.
        exchange.hold(Box::pin(demand::of_request(exchange, head.authority())).await?);
    }
    let table = route_table(exchange);
    let mut marks = Marks::default();
    let mut next = 0;
    // The route is known to the filters; one that learns more of the request may have it chosen again.
    let (destination, wants_tls) = loop {
        let (destination, wants_tls) = choose(exchange, table, &head);
        match filters::run(exchange, &mut head, &mut body, destination, &mut marks, next).await {
            Ok(Some(after)) => next = after,
            Ok(None) => break (destination, wants_tls),
            Err(reply) => return Ok(turned_away(exchange, *reply, table, destination, &head, marks)),
        }
    };
    if let Err(reply) = filters::recheck(exchange, &mut head, destination) {
        return Ok(turned_away(exchange, *reply, table, destination, &head, marks));
    }
    if wants_tls {
        return Ok(refused(exchange, to_https(&head), table, destination, marks));
    }
    if exchange.facts.borrow().admitted.is_none() && Admitted::is_wanted(exchange, &head, &body) {
        exchange.facts.borrow_mut().admitted = Some(Box::new(Admitted::new(&head, destination)));
    }
    remember(exchange, table, destination, &head);
    let cluster = destination.cluster.map(Cow::Borrowed).or_else(|| cluster_by_header(destination.route, &head));
    let (Some(table), Some(host), Some(route)) = (table, destination.host, destination.route) else {
        exchange.http.stats.no_route.inc();
        return Ok(refused(exchange, LocalReply::new(Reason::NoRoute), table, destination, marks));
    };
    match &route.action {
        Action::Forward(forward) => {
            let cors = marks.cors.clone();
            let forwarding = Forwarding {
                table,
                host,
                route,
                forward,
                weighted: destination.weighted,
                cluster: cluster.as_deref().unwrap_or_default(),
                marks,
            };
            let marks = Marks { cors, ..Marks::default() };
            let outcome = forward::run(exchange, &mut head, body, forwarding).await;
            outcome.or_else(|reply| Ok(refused(exchange, *reply, Some(table), destination, marks)))
        }
        Action::Redirect(redirect) => {
            Ok(answer(exchange, redirected(redirect, route, &head), table, host, route, marks))
        }
        Action::Direct(direct) => Ok(answer(exchange, directly(direct), table, host, route, marks)),
        Action::Unusable(why) => {
            tracing::debug!(route = %route.name, %why, "route cannot be carried out");
            let reply = LocalReply::new(Reason::UnusableRoute);
            Ok(refused(exchange, reply, Some(table), destination, marks))
        }
    }
}

/// Keeps what values of response headers are made of, where any are.
fn remember(exchange: &Exchange, table: Option<&RouteTable>, to: Destination<'_>, head: &Head) {
    if table.is_some_and(|table| makes_values(table, to)) {
        exchange.facts.borrow_mut().route = to.route.cloned();
        format::remember(exchange, head);
    }
}

/// Header values are made of what is known of the exchange.
fn makes_values(table: &RouteTable, to: Destination<'_>) -> bool {
    let (Some(host), Some(route)) = (to.host, to.route) else { return false };
    let sides = [rewrite::Side::Request, rewrite::Side::Response];
    sides.into_iter().any(|side| rewrite::edits(table, host, route, to.weighted, side).any(|e| e.has_commands()))
}

/// A filter's answer. What is said of the request (logs, metrics, header values) names the cluster of its route, though nobody
/// there was asked.
fn turned_away(
    exchange: &Rc<Exchange>,
    reply: LocalReply,
    table: Option<&RouteTable>,
    to: Destination<'_>,
    head: &Head,
    marks: Marks,
) -> Response<ProxyBody> {
    remember(exchange, table, to, head);
    if let Some(name) = to.cluster.map(Cow::Borrowed).or_else(|| cluster_by_header(to.route, head)) {
        let cluster = exchange.conn.worker.clusters.get(&exchange.snapshot().config, &name);
        exchange.facts.borrow_mut().cluster = cluster;
    }
    compress::pass_over(exchange, to);
    refused(exchange, reply, table, to, marks)
}

/// An answer of this proxy in place of an endpoint's: the operations of a route that forwards apply to it all the same,
/// but for the answer to a CORS preflight.
fn refused(
    exchange: &Rc<Exchange>,
    reply: LocalReply,
    table: Option<&RouteTable>,
    to: Destination<'_>,
    marks: Marks,
) -> Response<ProxyBody> {
    let preflight = reply.details == weft_filter::cors::DETAILS;
    // It has its answer, whatever rules come.
    exchange.facts.borrow_mut().admitted = None;
    let response = respond::local(exchange, reply);
    let edits = match (table, to.host, to.route) {
        (Some(table), Some(host), Some(route)) if matches!(route.action, Action::Forward(_)) && !preflight => {
            Some(rewrite::edits(table, host, route, to.weighted, rewrite::Side::Response))
        }
        _ => None,
    };
    adorned(exchange, response, edits.into_iter().flatten(), marks)
}

/// An own answer with what the route and the filters add to it. It has no status yet for values that ask for one (as in Envoy).
fn adorned<'e>(
    exchange: &Exchange,
    mut response: Response<ProxyBody>,
    edits: impl Iterator<Item = &'e HeaderEdit>,
    marks: Marks,
) -> Response<ProxyBody> {
    let status = std::mem::take(&mut exchange.facts.borrow_mut().code);
    respond::edit(exchange, response.headers_mut(), edits);
    respond::filters(exchange, response.headers_mut());
    exchange.facts.borrow_mut().code = status;
    respond::mark(response.headers_mut(), marks);
    response
}

/// The table that the configuration in force names. Lives as long as the exchange.
fn route_table(exchange: &Exchange) -> Option<&RouteTable> {
    match &exchange.http.hcm.routes {
        RouteSource::Inline(table) => Some(table),
        RouteSource::Rds(name) => exchange.snapshot().config.routes.get(name).map(|table| &**table),
    }
}

/// Where the request would go, as far as it is known by now; and whether it goes nowhere, because its host is for TLS alone. Then
/// no route's settings hold, and the filters are asked all the same: who may not come in is not told where to go (as in Envoy).
fn choose<'a>(exchange: &Exchange, table: Option<&'a RouteTable>, head: &Head) -> (Destination<'a>, bool) {
    let routed = table.map(|table| table.find(&head.view(), fastrand::u64(..)));
    let (host, route) = match routed {
        Some(Routed::Route(host, route)) => (Some(host), Some(route)),
        Some(Routed::NoRoute(host)) => (Some(host), None),
        _ => (None, None),
    };
    if exchange.is_logged() {
        exchange.facts.borrow_mut().route = route.cloned();
        intake::log_headers(exchange, head);
    }
    if host.is_some_and(|h| h.require_tls) && !head.by_tls {
        return (Destination::default(), true);
    }
    (destination(host, route, fastrand::u64(..)), false)
}

/// The cluster of a route, one random number deciding among weighted clusters.
fn destination<'a>(
    host: Option<&'a Arc<weft_route::VirtualHost>>,
    route: Option<&'a Arc<Route>>,
    random: u64,
) -> Destination<'a> {
    let forward: Option<&'a Forward> = route.and_then(|route| match &route.action {
        Action::Forward(forward) => Some(&**forward),
        _ => None,
    });
    let (weighted, cluster): (Option<&'a WeightedCluster>, Option<&'a str>) = match forward.map(|f| &f.cluster) {
        Some(ClusterChoice::One(name)) => (None, Some(name)),
        Some(ClusterChoice::Weighted(clusters)) => {
            let chosen = clusters.pick(random);
            (chosen, chosen.map(|c| &*c.name))
        }
        Some(ClusterChoice::Header(_)) | None => (None, None),
    };
    Destination { host, route, weighted, cluster }
}

fn cluster_by_header(route: Option<&Arc<Route>>, head: &Head) -> Option<Cow<'static, str>> {
    let Action::Forward(forward) = &route?.action else { return None };
    let ClusterChoice::Header(name) = &forward.cluster else { return None };
    head.headers.get(name)?.to_str().ok().map(|name| Cow::Owned(name.to_string()))
}

fn redirected(redirect: &Redirect, route: &Route, head: &Head) -> LocalReply {
    // The host as it was written; routing alone does not care for case.
    let host = head.host.to_str().unwrap_or_default();
    let location =
        rewrite::location(redirect, &route.matcher, &weft_route::RequestView { authority: host, ..head.view() });
    let mut reply = plain_reply(redirect.status, "direct_response");
    if let Ok(value) = HeaderValue::from_str(&location) {
        reply.headers.insert(LOCATION, value);
    }
    reply
}

fn directly(direct: &DirectResponse) -> LocalReply {
    LocalReply { body: direct.body.clone(), ..plain_reply(direct.status, "direct_response") }
}

fn plain_reply(status: StatusCode, details: &'static str) -> LocalReply {
    LocalReply {
        status,
        details: Cow::Borrowed(details),
        flags: Flags::NONE,
        body: bytes::Bytes::new(),
        headers: http::HeaderMap::new(),
        grpc_status: None,
    }
}

/// The same place by TLS. The host stands as it was written, its port too.
fn to_https(head: &Head) -> LocalReply {
    let authority = head.host.to_str().unwrap_or_default();
    let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
    let mut reply = plain_reply(StatusCode::MOVED_PERMANENTLY, "direct_response");
    if let Ok(value) = HeaderValue::from_str(&format!("https://{authority}{path}")) {
        reply.headers.insert(LOCATION, value);
    }
    reply
}

/// An answer of the route itself: the route's operations on responses apply to it.
fn answer(
    exchange: &Rc<Exchange>,
    reply: LocalReply,
    table: &RouteTable,
    host: &weft_route::VirtualHost,
    route: &Route,
    marks: Marks,
) -> Response<ProxyBody> {
    let edits = rewrite::edits(table, host, route, None, rewrite::Side::Response);
    adorned(exchange, respond::local(exchange, reply), edits, marks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accept::new_downstream;
    use crate::standing::Standing;
    use crate::standing::tests::{config, seat};
    use crate::worker::{ConnectionEntry, Worker};
    use http::{HeaderMap, Method, Uri, Version};
    use std::net::SocketAddr;
    use std::time::Duration;
    use weft_route::DynamicMetadata;

    /// A connection manager with these HTTP filters.
    fn manager(filters: &str) -> String {
        format!(
            r#"{{name: h, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: t, route_config: {{name: r}}, http_filters: [{filters} {{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}"#
        )
    }

    fn head(client: SocketAddr) -> Head {
        Head {
            method: Method::GET,
            version: Version::HTTP_11,
            uri: Uri::from_static("/"),
            headers: HeaderMap::new().into(),
            host: HeaderValue::from_static("a"),
            authority: HeaderValue::from_static("a"),
            scheme: "http",
            by_tls: false,
            client,
            internal: false,
            metadata: DynamicMetadata::new(),
            upgrade: None,
        }
    }

    #[tokio::test]
    async fn a_request_is_denied_once_and_not_when_it_has_its_answer() {
        const DENY: &str = r#"{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: DENY, policies: {p: {permissions: [{any: true}], principals: [{any: true}]}}}}},"#;
        let worker = Worker::idle(Duration::from_secs(60));
        let (seat, listener, listeners) = seat(&worker, &config(&manager("")));
        let slot = seat.slot.clone();
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let downstream = new_downstream(&worker, &listener, address, address, address);
        let standing = Standing::new(&seat, Some(slot.current()));
        let entry = ConnectionEntry::register(&worker, standing, downstream.direction);
        let http = slot.current().http.clone().unwrap();
        let limits = &http.hcm.limits;
        let conn = HttpConnection::new(worker.clone(), listener, slot.clone(), entry, downstream, false, limits);
        let begun = || {
            let exchange = Exchange::begin(&conn, http.clone());
            let admitted = Admitted::new(&head(address), Destination::default());
            exchange.facts.borrow_mut().admitted = Some(Box::new(admitted));
            exchange
        };
        let (open, answered) = (begun(), begun());
        let reply = LocalReply::new(Reason::NoHealthyUpstream);
        let _response = refused(&answered, reply, None, Destination::default(), Marks::default());
        listeners.follow(&worker, &config(&manager(DENY)));
        let denying = slot.current().http.clone().unwrap();
        for _ in 0..2 {
            [&open, &answered].into_iter().for_each(|exchange| exchange.judge_again(&denying));
        }
        assert_eq!(denying.stats.rbac_denied.get(), 1);
        assert!(open.facts.borrow().admitted.is_some(), "who goes on before he notices is judged by it");
        assert_eq!((open.facts.borrow().denied.is_some(), answered.facts.borrow().denied.is_some()), (true, false));
    }
}
