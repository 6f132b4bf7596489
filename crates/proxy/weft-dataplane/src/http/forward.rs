//! Towards the endpoint: what the route does to the request, then one try after another until there is a response for the
//! client.

use crate::http::exchange::{Exchange, RequestObserver};
use crate::http::filters::Marks;
use crate::http::forwarded::X_FORWARDED_HOST;
use crate::http::intake::Head;
use crate::http::limits::{self, Limits};
use crate::http::mirror::Mirrored;
use crate::http::place::Place;
use crate::http::retry::{self, Retries};
use crate::http::upgrade::{self, Upgrade, UpgradeKind};
use crate::http::{compress, format, mirror, respond, target};
use http::header::{CONTENT_LENGTH, HOST, VIA};
use http::uri::{PathAndQuery, Uri};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use smallvec::SmallVec;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use weft_cluster::limits::{Limit, Permit};
use weft_cluster::outlier::Outcome;
use weft_cluster::{Host, Lease, LiveCluster, PickContext, Retry, SendFailure, UpstreamError, Want};
use weft_codec::h1::encode::Asking;
use weft_codec::replay::{self, Replay};
use weft_codec::{Flags, HeaderMarks, LocalReply, ProxyBody, Reason, grpc};
use weft_proxy_config::Discovery;
use weft_route::rewrite::{self, Side};
use weft_route::{Forward, HostRewrite, Route, RouteTable, VirtualHost, WeightedCluster};

pub(crate) const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
/// How often a request that came back untouched is put on another connection within one try.
const MAX_RESENDS: u32 = 3;

/// The body is gone with an earlier try.
const NOTHING_TO_SEND: UpstreamError =
    UpstreamError { reason: Reason::LocalReset, retry: Retry::Pointless, detail: None };

/// Where a request goes, and what the configuration says about it.
pub(crate) struct Forwarding<'a> {
    pub table: &'a RouteTable,
    pub host: &'a VirtualHost,
    pub route: &'a Arc<Route>,
    pub forward: &'a Forward,
    pub weighted: Option<&'a WeightedCluster>,
    pub cluster: &'a str,
    pub marks: Marks,
}

/// A request's body, as far as tries need to know.
enum Payload {
    None,
    Once(Option<ProxyBody>),
    Again(Replay),
}

/// A response with the connection it comes on.
struct Answer {
    response: Response<ProxyBody>,
    /// Those of the response.
    marks: HeaderMarks,
    lease: Lease,
    place: Place,
    sent_at: Instant,
}

/// Forwards a request.
///
/// # Errors
/// The answer when no endpoint gave one.
pub(crate) async fn run(
    exchange: &Rc<Exchange>,
    head: &mut Head,
    body: ProxyBody,
    mut forwarding: Forwarding<'_>,
) -> Result<Response<ProxyBody>, Box<LocalReply>> {
    let forward = forwarding.forward;
    if let Some(upgrade) = &head.upgrade
        && !upgrade.is_allowed(forward.upgrades.as_deref())
    {
        return Err(Upgrade::refusal());
    }
    let worker = exchange.conn.worker.clone();
    let Some(cluster) = worker.clusters.get(&exchange.snapshot().config, forwarding.cluster) else {
        let mut reply = LocalReply::new(Reason::NoCluster);
        reply.status = forward.cluster_not_found;
        return Err(Box::new(reply));
    };
    exchange.facts.borrow_mut().cluster = Some(cluster.clone());
    exchange.set_limits(forward.idle_timeout, forward.max_stream_duration);
    cluster.ready().await;
    if forward.terminate_connect && head.upgrade.as_ref().is_some_and(|u| u.kind == UpgradeKind::Connect) {
        return Box::pin(terminate(exchange, head, &cluster, forward)).await;
    }
    let client_key = head.upgrade.as_ref().and_then(|_| upgrade::websocket_key_of(&head.headers));
    let (wish, limits) = limits::wishes(exchange, forward, &mut head.headers, head.internal);
    let policy = forward.retry.as_deref().or(forwarding.host.retry.as_deref());
    let per_try = limits.per_try.or(policy.and_then(|p| p.per_try_timeout)).filter(|d| !d.is_zero());
    let limits = Limits { per_try, ..limits };
    let retries = Retries::new(policy, wish.as_ref(), &head.view());
    shape(exchange, head, &forwarding, limits);
    // Of the request as it goes out: the route may have changed what its endpoint is found by (as in Envoy).
    let mut cookies = Vec::new();
    let hash = balancing_hash(forward, head, &mut cookies);
    let upgrade = head.upgrade.take();
    let counts = forwarding.host.include_attempt_count;
    let payload = payload(exchange, head, body, forward, limits, retries.is_possible(), counts);
    let mut tries = Tries {
        exchange,
        cluster: &cluster,
        head,
        payload,
        retries,
        limits,
        hash,
        upgrade: upgrade.as_ref(),
        count_header: counts,
        auto_host: matches!(forward.host_rewrite, HostRewrite::Auto),
        forward,
        failed: SmallVec::new(),
        answer: None,
    };
    exchange.set_time(limits.whole);
    let outcome = {
        let (mut running, mut late) = (pin!(tries.run()), pin!(exchange.late()));
        poll_fn(|cx| match running.as_mut().poll(cx) {
            Poll::Ready(outcome) => Poll::Ready(outcome),
            Poll::Pending => late.as_mut().poll(cx).map(|()| Err(timed_out(exchange, &cluster))),
        })
        .await
    };
    outcome.map_err(|reply| with_attempts(exchange, &forwarding, reply))?;
    let Some(answer) = tries.answer.take() else { return Err(Box::new(LocalReply::new(Reason::LocalReset))) };
    drop(tries);
    let attempts = exchange.facts.borrow().attempts;
    let marks = std::mem::take(&mut forwarding.marks);
    let mut response = finish(exchange, &forwarding, answer, upgrade, client_key, marks);
    if forwarding.host.include_attempt_count_in_response {
        response.headers_mut().insert(ATTEMPT_COUNT, HeaderValue::from(attempts));
    }
    for cookie in cookies {
        response.headers_mut().append(http::header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// Says how many tries there were, where the virtual host wants it said.
fn with_attempts(exchange: &Exchange, forwarding: &Forwarding<'_>, mut reply: Box<LocalReply>) -> Box<LocalReply> {
    if forwarding.host.include_attempt_count_in_response {
        let attempts = exchange.facts.borrow().attempts;
        reply.headers.insert(ATTEMPT_COUNT, HeaderValue::from(attempts));
    }
    reply
}

/// Ends `CONNECT` here: what comes through it goes to an endpoint as plain TCP.
async fn terminate(
    exchange: &Rc<Exchange>,
    head: &mut Head,
    cluster: &Rc<LiveCluster>,
    forward: &Forward,
) -> Result<Response<ProxyBody>, Box<LocalReply>> {
    let Some(upgrade) = head.upgrade.take() else { return Err(Upgrade::refusal()) };
    let downstream = &exchange.conn.downstream;
    let failed = |error: UpstreamError| Box::new(LocalReply::upstream(error.reason, error.detail.as_deref(), false));
    let context = PickContext {
        labels: &forward.metadata_match,
        destination: Some(downstream.destination),
        ..PickContext::default()
    };
    let host = cluster.pick(&context).map_err(failed)?;
    {
        let mut facts = exchange.facts.borrow_mut();
        facts.attempts = 1;
        facts.host = Some(host.clone());
    }
    let client = Some((downstream.source, downstream.destination));
    let connected = cluster.connect_tcp(&host, None, client, downstream.from).await;
    cluster.report(&host, if connected.is_ok() { Outcome::Success } else { Outcome::LocalError });
    let (io, facts, open) = connected.map_err(failed)?;
    exchange.facts.borrow_mut().upstream = Some(facts);
    let response = respond::agreed(exchange);
    upgrade::tunnel_to(exchange.clone(), upgrade.client, (io, open), exchange.idle_timeout());
    Ok(response)
}

fn timed_out(exchange: &Exchange, cluster: &LiveCluster) -> Box<LocalReply> {
    cluster.stats.rq_timeout.inc();
    exchange.http.stats.rq_timeout.inc();
    if let Some(host) = exchange.facts.borrow().host.clone() {
        cluster.report(&host, Outcome::LocalError);
    }
    Box::new(LocalReply::new(Reason::RequestTimeout))
}

/// The response on its way back.
fn finish(
    exchange: &Rc<Exchange>,
    forwarding: &Forwarding<'_>,
    answer: Answer,
    upgrade: Option<Upgrade>,
    client_key: Option<HeaderValue>,
    marks: Marks,
) -> Response<ProxyBody> {
    let Answer { mut response, marks: found, mut lease, place, sent_at } = answer;
    let now = Instant::now();
    exchange.facts.borrow_mut().response_at = Some(now);
    let millis = u64::try_from((now - sent_at).as_millis()).unwrap_or(u64::MAX);
    let is_http2 = lease.is_http2();
    let agreed = upgrade.filter(|u| u.is_agreed(response.status(), is_http2));
    let endpoint = agreed.as_ref().and_then(|_| lease.upgrade(&mut response));
    if endpoint.is_some() {
        compress::forget(exchange);
    }
    let edits =
        rewrite::edits(forwarding.table, forwarding.host, forwarding.route, forwarding.weighted, Side::Response);
    respond::upstream_head(exchange, &mut response, found, &mut lease, millis, edits, marks);
    if let (Some(upgrade), Some(endpoint)) = (agreed, endpoint) {
        let (mut parts, _) = response.into_parts();
        upgrade.tell_client(&mut parts.status, &mut parts.headers, client_key.as_ref());
        parts.version = Version::HTTP_11;
        parts.extensions = http::Extensions::new();
        let idle = exchange.idle_timeout();
        upgrade::tunnel(exchange.clone(), upgrade.client, endpoint, (lease, place), idle);
        return Response::from_parts(parts, ProxyBody::empty());
    }
    let (mut parts, body) = response.into_parts();
    parts.version = Version::HTTP_11;
    parts.extensions = http::Extensions::new();
    Response::from_parts(parts, respond::upstream_body(exchange, body, lease, place))
}

/// The hash by which an endpoint is chosen; cookies to set for it.
fn balancing_hash(forward: &Forward, head: &Head, cookies: &mut Vec<HeaderValue>) -> Option<u64> {
    if forward.hash.is_empty() {
        return None;
    }
    // Behind trusted proxies it is the client that counts, as for logs and rules.
    let source = head.client.ip();
    rewrite::compute_hash(&forward.hash, &head.view(), Some(source), |name, lifetime, path| {
        let value = format!("{:016x}", fastrand::u64(..));
        let path = if path.is_empty() { String::new() } else { format!("; Path={path}") };
        let age = if lifetime.is_zero() { String::new() } else { format!("; Max-Age={}", lifetime.as_secs()) };
        if let Ok(cookie) = HeaderValue::from_str(&format!("{name}=\"{value}\"{age}{path}; HttpOnly")) {
            cookies.push(cookie);
        }
        value
    })
}

/// What the route does to headers, host and path, in Envoy's order: a rewrite sees the headers that were edited.
fn shape(exchange: &Exchange, head: &mut Head, forwarding: &Forwarding<'_>, limits: Limits) {
    let forward = forwarding.forward;
    if let Some(via) = &exchange.http.via {
        head.headers.append(VIA, via.clone());
    }
    let edits = rewrite::edits(forwarding.table, forwarding.host, forwarding.route, forwarding.weighted, Side::Request);
    for edit in edits {
        format::edit_request(exchange, head, edit);
    }
    // That of a weighted cluster leaves no trace, and gives way to the route's.
    if let Some(host) = forwarding.weighted.and_then(|weighted| weighted.host_rewrite.clone()) {
        head.host = host;
    }
    let new_host = rewrite::rewrite_host(&forward.host_rewrite, &head.headers, head.uri.path());
    let new_path = match head.method {
        Method::CONNECT => None,
        _ => rewrite::rewrite_path(&forward.path_rewrite, &forwarding.route.matcher, head.uri.path(), head.uri.query()),
    };
    if let Some(path) = new_path.and_then(|path| PathAndQuery::try_from(path).ok()) {
        if !exchange.http.hcm.suppress_envoy_headers
            && let Some(before) = head.uri.path_and_query()
            && let Ok(before) = HeaderValue::from_str(before.as_str())
        {
            head.headers.insert(ORIGINAL_PATH, before);
        }
        head.uri = Uri::from(path);
    }
    if let Some(host) = new_host {
        if forward.append_x_forwarded_host {
            head.headers.append(X_FORWARDED_HOST, head.host.clone());
        }
        if !exchange.http.hcm.suppress_envoy_headers && head.host != host {
            head.headers.insert(ORIGINAL_HOST, head.host.clone());
        }
        head.host = host;
    }
    if exchange.facts.borrow().shown.is_some() {
        format::remember(exchange, head);
    }
    limits.tell(exchange, &mut head.headers, forward, Duration::ZERO);
}

/// The body, with copies for mirrors, kept for further tries when there may be some.
fn payload(
    exchange: &Rc<Exchange>,
    head: &Head,
    body: ProxyBody,
    forward: &Forward,
    limits: Limits,
    may_retry: bool,
    counts: bool,
) -> Payload {
    let empty = body.is_end_stream();
    let copies = match &forward.mirrors[..] {
        [] => Default::default(),
        mirrors => {
            let timeout = limits.whole;
            mirror::start(&Mirrored { exchange, head, mirrors, has_body: !empty, timeout, counts })
        }
    };
    if empty {
        return Payload::None;
    }
    let decoder = exchange.facts.borrow().web.filter(|web| web.text_request).map(|_| Default::default());
    let body = body.observed(Box::new(RequestObserver { exchange: exchange.clone(), copies, decoder }));
    if may_retry { Payload::Again(Replay::new(body, replay::DEFAULT_LIMIT)) } else { Payload::Once(Some(body)) }
}

impl Payload {
    /// The body for a try.
    fn next(&mut self) -> Option<ProxyBody> {
        match self {
            Payload::None => Some(ProxyBody::empty()),
            Payload::Once(body) => body.take(),
            Payload::Again(replay) => Some(ProxyBody::replay(replay.body())),
        }
    }

    /// Another try could send it all.
    fn can_repeat(&self) -> bool {
        match self {
            Payload::None => true,
            Payload::Once(body) => body.is_some(),
            Payload::Again(replay) => replay.can_replay(),
        }
    }
}

/// The tries of one request.
struct Tries<'a> {
    exchange: &'a Rc<Exchange>,
    cluster: &'a Rc<LiveCluster>,
    head: &'a mut Head,
    payload: Payload,
    retries: Retries<'a>,
    limits: Limits,
    hash: Option<u64>,
    upgrade: Option<&'a Upgrade>,
    count_header: bool,
    auto_host: bool,
    forward: &'a Forward,
    failed: SmallVec<[Rc<Host>; 2]>,
    /// What the last try brought. Kept here: moving it through every return would cost as much as parsing it.
    answer: Option<Answer>,
}

impl Tries<'_> {
    /// Tries until there is a response to pass on, or no further try is due.
    async fn run(&mut self) -> Result<(), Box<LocalReply>> {
        let mut retrying: Option<Permit> = None;
        loop {
            let outcome = self.one_try().await;
            drop(retrying.take());
            match outcome {
                Ok(status) => {
                    let headers = self.answer.as_ref().map(|answer| answer.response.headers());
                    let again = headers.is_some_and(|headers| self.retries.wants_after_response(status, headers));
                    if again && let Some(permit) = self.may_repeat() {
                        retrying = Some(permit);
                        // Dropping the response closes its connection, or resets its stream.
                        self.answer = None;
                        self.pause().await;
                        continue;
                    }
                    if self.retries.done() > 0 {
                        if status.is_server_error() {
                            self.note_limit();
                        } else {
                            self.cluster.stats.rq_retry_success.inc();
                        }
                    }
                    return Ok(());
                }
                Err((error, timed_out)) => {
                    self.exchange.facts.borrow_mut().transport_failure = error.detail.clone();
                    if self.retries.wants_after(&error, timed_out)
                        && let Some(permit) = self.may_repeat()
                    {
                        retrying = Some(permit);
                        self.pause().await;
                        continue;
                    }
                    self.note_limit();
                    let reason = if timed_out { Reason::PerTryTimeout } else { error.reason };
                    let retried = self.retries.done() > 0;
                    return Err(Box::new(LocalReply::upstream(reason, error.detail.as_deref(), retried)));
                }
            }
        }
    }

    fn note_limit(&self) {
        if self.retries.is_used_up() {
            self.cluster.stats.rq_retry_limit.inc();
            self.exchange.facts.borrow_mut().flags |= Flags::URX;
        }
    }

    /// A place for a retry, when the body can be sent again and not too many retries are under way.
    fn may_repeat(&self) -> Option<Permit> {
        if !self.payload.can_repeat() {
            return None;
        }
        let permit = self.cluster.breaker.take(Limit::Retries, self.forward.priority);
        if permit.is_none() {
            self.cluster.stats.rq_retry_overflow.inc();
        }
        permit
    }

    async fn pause(&mut self) {
        self.cluster.stats.rq_retry.inc();
        let pause = self.retries.start(fastrand::f64());
        if !pause.is_zero() {
            Box::pin(tokio::time::sleep(pause)).await;
        }
        let elapsed = self.exchange.request_done_time().map_or(Duration::ZERO, |at| at.elapsed());
        self.limits.tell(self.exchange, &mut self.head.headers, self.forward, elapsed);
    }

    /// One try: the response's status. An error says whether its own time limit was the cause.
    async fn one_try(&mut self) -> Result<StatusCode, (UpstreamError, bool)> {
        let host = self.pick().await.map_err(|error| (error, false))?;
        {
            let mut facts = self.exchange.facts.borrow_mut();
            facts.attempts += 1;
            facts.host = Some(host.clone());
        }
        let Some(place) = Place::take(self.cluster, self.forward.priority) else {
            self.cluster.stats.rq_pending_overflow.inc();
            return Err((UpstreamError::unsent(Reason::Overflow), false));
        };
        let cluster = self.cluster.clone();
        let limit = self.limits.per_try;
        let sent = match limit {
            None => Ok(self.send(&host, place).await),
            Some(limit) => Box::pin(tokio::time::timeout(limit, self.send(&host, place))).await,
        };
        let Ok(outcome) = sent else {
            cluster.stats.rq_per_try_timeout.inc();
            cluster.report(&host, Outcome::LocalError);
            self.failed.push(host);
            let error = UpstreamError { reason: Reason::PerTryTimeout, retry: Retry::MayBeProcessed, detail: None };
            return Err((error, true));
        };
        match outcome {
            Ok(status) => {
                cluster.stats.response(status.as_u16());
                let listed = cluster.config.outlier.as_ref().and_then(|o| o.statuses.as_deref());
                let judged = match (self.grpc_status().filter(|_| status.is_success()), listed) {
                    (_, Some(listed)) => Outcome::of_listed(status.as_u16(), listed),
                    (Some(grpc), None) => Outcome::of_status(grpc::to_http(grpc).as_u16()),
                    (None, None) => Outcome::of_status(status.as_u16()),
                };
                cluster.report(&host, judged);
                if judged != Outcome::Success {
                    self.failed.push(host);
                }
                Ok(status)
            }
            Err(error) => {
                if error.retry != Retry::Pointless && error.reason != Reason::Overflow {
                    cluster.report(&host, Outcome::LocalError);
                    self.failed.push(host);
                }
                if matches!(error.reason, Reason::RemoteReset | Reason::ConnectionTermination) {
                    cluster.stats.rq_rx_reset.inc();
                }
                Err((error, false))
            }
        }
    }

    async fn pick(&self) -> Result<Rc<Host>, UpstreamError> {
        if let Discovery::DynamicForward(port) = &self.cluster.config.discovery {
            return Box::pin(self.named_host(*port)).await;
        }
        let policy = self.retries.policy();
        let avoid: &[Rc<Host>] = match policy {
            Some(policy) if policy.avoid_previous_hosts => &self.failed,
            _ => &[],
        };
        let attempts = if avoid.is_empty() { 0 } else { policy.map_or(1, |p| p.host_attempts.clamp(1, 16)) };
        self.cluster.pick(&PickContext {
            hash: self.hash,
            avoid,
            attempts,
            labels: &self.forward.metadata_match,
            destination: Some(self.exchange.conn.downstream.destination),
            authority: None,
        })
    }

    /// The endpoint that the request's host names.
    async fn named_host(&self, port: Option<u16>) -> Result<Rc<Host>, UpstreamError> {
        let text = self.head.host.to_str().unwrap_or_default();
        let name = weft_route::normalize::without_port(text);
        let asked = text[name.len()..].strip_prefix(':').and_then(|p| p.parse().ok());
        let default = if self.head.scheme == "https" { 443 } else { 80 };
        let port = port.or(asked).unwrap_or(default);
        let resolver = self.exchange.conn.worker.clusters.resolver();
        self.cluster.resolve(resolver, name, port).await
    }

    /// Sends the request on a connection. A request that came back untouched, or that may be repeated by its nature and met
    /// a connection which its endpoint had just closed, goes on another connection at once: that is not a retry.
    async fn send(&mut self, host: &Rc<Host>, place: Place) -> Result<StatusCode, UpstreamError> {
        let mut fresh = false;
        let mut returned: Option<Box<Request<ProxyBody>>> = None;
        for resend in 0..=MAX_RESENDS {
            let mut lease = match self.cluster.take(host, &self.want(fresh)) {
                Some(lease) => lease,
                // In a box, as all that few requests do: each request would carry the room for it otherwise.
                None => Box::pin(self.cluster.acquire(host, self.want(fresh))).await?,
            };
            if !lease.may_begin() {
                fresh = true;
                continue;
            }
            self.exchange.facts.borrow_mut().upstream = Some(lease.facts.clone());
            let repeatable = lease.reused && self.is_repeatable();
            let sent_at = lease.taken;
            self.cluster.stats.rq_total.inc();
            let sent = if self.goes_as_it_is(&lease) && returned.is_none() {
                let Some(body) = self.payload.next() else { return Err(NOTHING_TO_SEND) };
                self.prepare(host, &lease);
                let head = Asking { method: &self.head.method, uri: &self.head.uri, headers: &self.head.headers };
                lease.send_http1(head, body).await.map_err(|error| SendFailure { error, request: None })
            } else {
                let request = self.request(host, &lease, returned.take())?;
                let sent = Box::pin(lease.send(request)).await;
                sent.map(|response| {
                    let marks = HeaderMarks::of(response.headers());
                    (response, marks)
                })
            };
            match sent {
                Ok((response, marks)) => {
                    let status = response.status();
                    self.answer = Some(Answer { response, marks, lease, place, sent_at });
                    return Ok(status);
                }
                Err(failure) if resend < MAX_RESENDS && failure.request.is_some() => {
                    returned = failure.request;
                    fresh = true;
                }
                Err(failure)
                    if resend < MAX_RESENDS
                        && repeatable
                        && failure.error.reason == Reason::ConnectionTermination
                        && self.payload.can_repeat() =>
                {
                    fresh = true;
                }
                Err(failure) => return Err(failure.error),
            }
        }
        Err(UpstreamError::unsent(Reason::ConnectionTermination))
    }

    /// What it asks of a connection.
    fn want(&self, fresh: bool) -> Want<'_> {
        let downstream = &self.exchange.conn.downstream;
        Want {
            http2: self.head.version == Version::HTTP_2,
            fresh,
            careful: !self.is_repeatable(),
            host: self.head.host.to_str().ok(),
            client: Some((downstream.source, downstream.destination)),
            source: downstream.from,
            own: Some(&downstream.own),
            priority: self.forward.priority,
        }
    }

    /// Over HTTP/1.1 an ordinary request is written from its head: it needs no copy of it, and another try finds it there.
    fn goes_as_it_is(&self, lease: &Lease) -> bool {
        !lease.is_http2() && self.upgrade.is_none() && self.head.method != Method::CONNECT
    }

    /// Puts into the head what the connection's endpoint is told.
    fn prepare(&mut self, host: &Host, lease: &Lease) {
        let named = self.named(host);
        let head = &mut *self.head;
        if head.uri.authority().is_some() {
            let path = head.uri.path_and_query().cloned();
            head.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        }
        let host = named.as_ref().unwrap_or(&head.host);
        if head.headers.get(HOST) != Some(host) {
            head.headers.insert(HOST, host.clone());
        }
        self.tell(lease);
    }

    /// Headers of one try.
    fn tell(&mut self, lease: &Lease) {
        let headers = &mut self.head.headers;
        if self.count_header {
            let attempt = self.exchange.facts.borrow().attempts;
            headers.insert(ATTEMPT_COUNT, HeaderValue::from(attempt));
        }
        if let Some(telemetry) = &self.exchange.http.telemetry
            && !telemetry.destination
        {
            let parties = &self.exchange.conn.worker.parties;
            match leads_into_mesh(lease) {
                true => parties.introduce(headers),
                // What an earlier try told another endpoint.
                false if self.exchange.facts.borrow().attempts > 1 => parties.forget(headers),
                false => {}
            }
        }
    }

    /// The endpoint's own name, where requests go by that.
    fn named(&self, host: &Host) -> Option<HeaderValue> {
        let name = self.auto_host.then_some(host.hostname.as_deref()).flatten()?;
        HeaderValue::from_str(name).ok()
    }

    /// The gRPC status in the response's headers.
    fn grpc_status(&self) -> Option<u32> {
        let answer = self.answer.as_ref().filter(|answer| answer.marks.has(HeaderMarks::GRPC_STATUS))?;
        grpc::status(answer.response.headers())
    }

    fn is_repeatable(&self) -> bool {
        self.upgrade.is_none() && retry::is_idempotent(&self.head.method) && self.payload.can_repeat()
    }

    /// The request for one try, or the one that came back from another connection.
    fn request(
        &mut self,
        host: &Host,
        lease: &Lease,
        returned: Option<Box<Request<ProxyBody>>>,
    ) -> Result<Request<ProxyBody>, UpstreamError> {
        let named = self.named(host);
        let mut request = match returned {
            Some(request) => *request,
            None => {
                let keep = self.retries.is_possible() || (lease.reused && self.is_repeatable());
                self.build(lease, keep)?
            }
        };
        let head = &*self.head;
        target::address(&mut request, named.as_ref().unwrap_or(&head.host), head.scheme, lease.is_http2());
        Ok(request)
    }

    /// `keep`: the head must stay for another try.
    fn build(&mut self, lease: &Lease, keep: bool) -> Result<Request<ProxyBody>, UpstreamError> {
        let Some(body) = self.payload.next() else { return Err(NOTHING_TO_SEND) };
        self.tell(lease);
        let head = &mut *self.head;
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = head.uri.clone();
        *request.headers_mut() = if keep { HeaderMap::clone(&head.headers) } else { head.headers.take() };
        if let Some(upgrade) = self.upgrade {
            request.headers_mut().remove(CONTENT_LENGTH);
            upgrade.ask_endpoint(&mut request, lease.is_http2());
        }
        Ok(request)
    }
}

/// Whether the endpoint is a proxy of a mesh, by its certificate: nobody else is told who the caller is.
pub(super) fn leads_into_mesh(lease: &Lease) -> bool {
    lease.facts.peer_uri().is_some_and(|uri| uri.starts_with("spiffe://"))
}
