//! A request and its response, as known so far. Shared by whatever still has to do with it: the code that serves it, and the
//! bodies on their way. When the last of them lets go, log lines are written and metrics counted.

use crate::chain::HttpRuntime;
use crate::demand::Answered;
use crate::http::compress::Codings;
use crate::http::conn::HttpConnection;
use crate::http::filters::Admitted;
use crate::http::place::Place;
use crate::http::trace::{self, ActiveSpan};
use crate::log::{LogFacts, LoggedRequest, LoggedUpstream};
use crate::worker::Snapshot;
use bytes::Bytes;
use http::HeaderValue;
use http_body::Frame;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;
use weft_cluster::{ConnectionFacts, Host, Lease, LiveCluster};
use weft_codec::{BodyError, BodyObserver, Flags, Reason, grpc};
use weft_filter::grpc_web::{self, Web};
use weft_filter::metrics::{Labels, Measured, Protocol, Security};
use weft_filter::peer::{Facts, Party};
use weft_route::Route;

/// One request with its response.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub conn: Rc<HttpConnection>,
    pub http: Rc<HttpRuntime>,
    /// The configuration in force when its routes were looked up.
    snapshot: OnceCell<Rc<Snapshot>>,
    /// What it asked the control plane for is in use while it lasts.
    asked: RefCell<Option<Rc<Answered>>>,
    pub began: Instant,
    /// By the clock on the wall; only when something is logged.
    started: SystemTime,
    moved: Cell<Instant>,
    idle: Cell<Option<Duration>>,
    longest: Cell<Option<Duration>>,
    /// Time for the whole response, from when the request has arrived (Envoy's `route.timeout`).
    time: Cell<Option<Duration>>,
    /// That time is over, and there is no response yet.
    late: Cell<bool>,
    cancelled: Cell<Option<Reason>>,
    waker: RefCell<Option<Waker>>,
    /// The whole request has arrived.
    pub request_done: Cell<bool>,
    request_done_at: Cell<Option<Instant>>,
    received: Cell<u64>,
    sent: Cell<u64>,
    pub facts: RefCell<ExchangeFacts>,
    /// The span, when the request is traced.
    pub span: RefCell<Option<Box<ActiveSpan>>>,
}

/// What becomes known of an exchange.
#[derive(Debug, Default)]
pub(crate) struct ExchangeFacts {
    /// Status; 0 while there is no response.
    pub code: u16,
    pub flags: Flags,
    pub details: Cow<'static, str>,
    pub is_grpc: bool,
    /// The client speaks gRPC-Web, and a bridge is in force.
    pub web: Option<Web>,
    pub grpc_status: Option<u32>,
    pub cluster: Option<Rc<LiveCluster>>,
    pub host: Option<Rc<Host>>,
    pub upstream: Option<Rc<ConnectionFacts>>,
    pub attempts: u32,
    pub response_at: Option<Instant>,
    pub transport_failure: Option<Box<str>>,
    /// The response has gone out whole.
    pub finished: bool,
    /// The route; only when something is logged.
    pub route: Option<Arc<Route>>,
    /// For log lines; only when something is logged.
    pub logged: Option<Box<LoggedRequest>>,
    /// The request, for values of response headers that are made of it.
    pub shown: Option<Box<LoggedRequest>>,
    /// The other side's workload, for the standard metrics.
    pub peer: Option<Rc<Party>>,
    /// The request as authorization saw it: policies that come later bind it too.
    pub admitted: Option<Box<Admitted>>,
    /// What policy it was that came later and denied it; the details word.
    pub denied: Option<String>,
    /// One has, and is not asked again. The record stays: what goes on before it notices is judged by it.
    pub is_denied: bool,
    /// What compressors noted for the response.
    pub codings: Option<Box<Codings>>,
    /// Host asked for, for the standard metrics.
    pub authority: Option<HeaderValue>,
}

impl Exchange {
    /// An exchange that begins now, under the connection's present filter chain and the configuration in force.
    pub fn begin(conn: &Rc<HttpConnection>, http: Rc<HttpRuntime>) -> Rc<Self> {
        let now = Instant::now();
        let started = if http.logs.is_empty() { SystemTime::UNIX_EPOCH } else { SystemTime::now() };
        http.stats.rq_total.inc();
        http.stats.rq_active.add(1);
        let exchange = Rc::new(Self {
            conn: conn.clone(),
            snapshot: OnceCell::new(),
            asked: RefCell::default(),
            began: now,
            started,
            moved: Cell::new(now),
            idle: Cell::new(http.hcm.limits.stream_idle_timeout.filter(|d| !d.is_zero())),
            longest: Cell::new(None),
            time: Cell::new(None),
            late: Cell::new(false),
            cancelled: Cell::new(None),
            waker: RefCell::default(),
            request_done: Cell::new(false),
            request_done_at: Cell::new(None),
            received: Cell::new(0),
            sent: Cell::new(0),
            facts: RefCell::default(),
            span: RefCell::default(),
            http,
        });
        conn.begin(&exchange);
        exchange
    }

    /// The configuration that it goes by.
    pub fn snapshot(&self) -> &Rc<Snapshot> {
        self.snapshot.get_or_init(|| self.conn.worker.snapshot())
    }

    /// Keeps in use what was asked for.
    pub fn hold(&self, asked: Option<Rc<Answered>>) {
        if asked.is_some() {
            self.asked.replace(asked);
        }
    }

    /// Something is logged, and facts for that are worth keeping.
    pub fn is_logged(&self) -> bool {
        !self.http.logs.is_empty()
    }

    /// When something last moved.
    pub fn moved(&self) -> Instant {
        self.moved.get()
    }

    /// How long nothing may move.
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.idle.get()
    }

    /// Longest life of the exchange.
    pub fn longest_life(&self) -> Option<Duration> {
        self.longest.get()
    }

    /// Sets the route's own limits.
    pub fn set_limits(&self, idle: Option<Duration>, longest: Option<Duration>) {
        if let Some(idle) = idle {
            self.idle.set(Some(idle).filter(|d| !d.is_zero()));
            if !idle.is_zero() {
                self.conn.watch_every(idle);
            }
        }
        if let Some(longest) = longest.filter(|d| !d.is_zero()) {
            self.longest.set(Some(longest));
            self.conn.watch_every(longest);
        }
    }

    /// No limits: for what became a tunnel with one of its own.
    pub fn clear_limits(&self) {
        self.idle.set(None);
        self.time.set(None);
    }

    /// Sets the time for the whole response. It is watched with the connection's other limits, which costs a request
    /// nothing as long as it is in time.
    pub fn set_time(&self, limit: Option<Duration>) {
        self.time.set(limit);
        if let Some(limit) = limit {
            self.conn.watch_every(limit);
        }
    }

    /// When that time began, and how long it is.
    pub fn time(&self) -> Option<(Instant, Duration)> {
        Some((self.request_done_time()?, self.time.get()?))
    }

    /// That time is over. A response that has begun is cut.
    pub fn time_is_over(&self) {
        self.time.set(None);
        if self.facts.borrow().response_at.is_some() {
            return self.cancel(Reason::RequestTimeout);
        }
        self.late.set(true);
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Returns when that time is over before there is a response.
    pub async fn late(&self) {
        std::future::poll_fn(|cx| {
            if self.late.get() {
                return Poll::Ready(());
            }
            self.set_waker(cx);
            Poll::Pending
        })
        .await;
    }

    /// Cuts the exchange short.
    pub fn cancel(&self, reason: Reason) {
        if self.cancelled.get().is_none() {
            self.cancelled.set(Some(reason));
            if let Some(waker) = &*self.waker.borrow() {
                waker.wake_by_ref();
            }
        }
    }

    /// Judges a request that was let in by the rules of `http`, which have come since; cuts it short when they say no.
    pub fn judge_again(&self, http: &Rc<HttpRuntime>) {
        if Rc::ptr_eq(http, &self.http) {
            return;
        }
        let mut facts = self.facts.borrow_mut();
        if facts.is_denied {
            return;
        }
        let Some(admitted) = &facts.admitted else { return };
        if let Some(details) = admitted.denied(&self.conn.downstream, http) {
            facts.denied = Some(details);
            facts.is_denied = true;
            drop(facts);
            self.cancel(Reason::AccessDenied);
        }
    }

    /// The details word of the end for that reason.
    pub fn details_of(&self, reason: Reason) -> Cow<'static, str> {
        match (reason, self.facts.borrow_mut().denied.take()) {
            (Reason::AccessDenied, Some(details)) => Cow::Owned(details),
            _ => Cow::Borrowed(reason.details()),
        }
    }

    /// The connection ends, and the exchange with it.
    pub fn cut(&self, details: Cow<'static, str>) {
        let mut facts = self.facts.borrow_mut();
        facts.finished = true;
        facts.details = details;
    }

    /// Returns when the exchange is cut short. It is then for the caller to answer, and that answer is not cut.
    pub async fn cancelled(&self) -> Reason {
        let reason = std::future::poll_fn(|cx| self.poll_cancelled(cx)).await;
        self.cancelled.set(None);
        reason
    }

    fn poll_cancelled(&self, cx: &mut Context<'_>) -> Poll<Reason> {
        match self.cancelled.get() {
            Some(reason) => Poll::Ready(reason),
            None => {
                self.set_waker(cx);
                Poll::Pending
            }
        }
    }

    fn set_waker(&self, cx: &Context<'_>) {
        let mut known = self.waker.borrow_mut();
        if !known.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *known = Some(cx.waker().clone());
        }
    }

    /// The whole request has arrived.
    pub fn complete_request(&self) {
        if !self.request_done.replace(true) {
            // A request without a body is complete when it begins.
            if self.is_logged() || self.received.get() > 0 {
                self.request_done_at.set(Some(Instant::now()));
            }
            if let Some(waker) = &*self.waker.borrow() {
                waker.wake_by_ref();
            }
        }
    }

    /// When the whole request had arrived.
    pub fn request_done_time(&self) -> Option<Instant> {
        self.request_done.get().then(|| self.request_done_at.get().unwrap_or(self.began))
    }

    /// Notes why there is no better answer.
    pub fn note(&self, flags: Flags, details: impl Into<Cow<'static, str>>) {
        let mut facts = self.facts.borrow_mut();
        facts.flags |= flags;
        facts.details = details.into();
    }

    /// Counts bytes that passed through a tunnel.
    pub fn count(&self, received: u64, sent: u64) {
        self.received.set(self.received.get() + received);
        self.sent.set(self.sent.get() + sent);
    }

    /// Something moved.
    pub fn step(&self) {
        self.moved.set(Instant::now());
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let facts = self.facts.get_mut();
        if !facts.finished && !facts.flags.contains(Flags::DC) && self.cancelled.get().is_none() && facts.code == 0 {
            facts.flags |= Flags::DC;
            facts.details = Cow::Borrowed(Reason::DownstreamDisconnect.details());
        }
        self.http.stats.rq_active.add(-1);
        self.http.stats.response(facts.code);
        self.conn.end();
        self.measure();
        if self.is_logged() {
            let facts = self.facts.borrow();
            self.with_log_facts(facts.logged.as_deref(), &facts, |log| self.http.logs.write(log));
        }
        if let Some(span) = self.span.take() {
            let facts = self.facts.borrow();
            let request = span.request().clone();
            self.with_log_facts(Some(&request), &facts, |log| trace::finish(self, *span, &facts, log));
        }
    }
}

impl Exchange {
    /// Everything that log lines and spans are made from.
    fn with_log_facts(&self, request: Option<&LoggedRequest>, facts: &ExchangeFacts, then: impl FnOnce(&LogFacts<'_>)) {
        let worker = &self.conn.worker;
        let upstream = LoggedUpstream {
            cluster: facts.cluster.as_ref().map(|c| c.config.name.clone()),
            host: facts.host.as_ref().map(|h| h.name.clone()),
            connection: facts.upstream.clone(),
        };
        then(&LogFacts {
            downstream: &self.conn.downstream,
            request,
            upstream: &upstream,
            start: self.started,
            duration: self.began.elapsed(),
            request_duration: self.request_done_at.get().map(|at| at - self.began),
            response_duration: facts.response_at.map(|at| at - self.began),
            code: facts.code,
            flags: facts.flags,
            details: &facts.details,
            termination: None,
            transport_failure: facts.transport_failure.as_deref(),
            received: self.received.get(),
            sent: self.sent.get(),
            route: facts.route.as_ref().map(|r| &*r.name),
            attempts: facts.attempts,
            grpc_status: facts.grpc_status,
            workload: &worker.parties.local_workload().metadata.name,
        });
    }

    /// The mesh's standard metrics.
    fn measure(&self) {
        let Some(telemetry) = &self.http.telemetry else { return };
        let facts = self.facts.borrow();
        let (downstream, parties) = (&self.conn.downstream, &self.conn.worker.parties);
        let upstream = facts.upstream.as_deref();
        let (source, destination, security) = if telemetry.destination {
            let security = if downstream.is_mutual_tls() { Security::MutualTls } else { Security::None };
            let peer = facts.peer.clone().unwrap_or_else(|| parties.party(Facts::Unknown, downstream.peer_uri()));
            (peer, parties.local(downstream.local_uri.as_deref()), security)
        } else {
            let peer = facts.peer.clone().unwrap_or_else(|| match &facts.host {
                Some(host) => {
                    let workload = &host.metadata.borrow().workload;
                    parties.party(Facts::Endpoint(workload), upstream.and_then(ConnectionFacts::peer_uri))
                }
                None => parties.party(Facts::Unknown, None),
            });
            let own = upstream.and_then(|u| u.local_uri.as_deref());
            (parties.local(own), peer, Security::Unknown)
        };
        let host = facts.authority.as_ref().and_then(|a| a.to_str().ok()).unwrap_or_default();
        let labels = Labels {
            telemetry,
            source: &source,
            destination: &destination,
            service: facts.cluster.as_ref().map(|c| &*c.config.metadata),
            cluster: facts.cluster.as_ref().map_or("", |c| &c.config.name),
            host,
            protocol: if facts.is_grpc { Protocol::Grpc } else { Protocol::Http },
            code: facts.code,
            grpc_status: facts.grpc_status.filter(|_| facts.is_grpc),
            flags: facts.flags,
            security,
        };
        let measured = Measured {
            duration: self.began.elapsed(),
            request_bytes: self.received.get(),
            response_bytes: self.sent.get(),
        };
        self.conn.worker.metrics.request(&labels, &measured);
    }
}

/// Where copies of a request's body go.
pub(crate) type Copies = SmallVec<[mpsc::Sender<Result<Frame<Bytes>, BodyError>>; 1]>;

/// Gives a frame to a copy; false when the copy is given up. The request itself never waits: a mirror that cannot keep up
/// loses the request, and the last place in its queue is kept for saying so, because a queue that merely ends would make a
/// torn request look whole.
fn passed_on(copy: &mpsc::Sender<Result<Frame<Bytes>, BodyError>>, frame: Frame<Bytes>) -> bool {
    if copy.capacity() > 1 {
        return copy.try_send(Ok(frame)).is_ok();
    }
    let _ = copy.try_send(Err(BodyError::Aborted("the mirror did not keep up")));
    false
}

/// Sees the request's body pass.
pub(crate) struct RequestObserver {
    pub exchange: Rc<Exchange>,
    pub copies: Copies,
    /// Decodes the text form of gRPC-Web.
    pub decoder: Option<grpc_web::Decoder>,
}

impl BodyObserver for RequestObserver {
    fn resizes(&self) -> bool {
        self.decoder.is_some()
    }

    fn frame(&mut self, frame: &mut Frame<Bytes>) {
        self.exchange.step();
        if let (Some(decoder), Some(data)) = (&mut self.decoder, frame.data_ref()) {
            match decoder.decode(data) {
                Ok(decoded) => *frame = Frame::data(decoded),
                Err(_) => self.exchange.cancel(Reason::BadRequest),
            }
        }
        if let Some(data) = frame.data_ref() {
            self.exchange.received.set(self.exchange.received.get() + data.len() as u64);
            self.copies.retain(|copy| passed_on(copy, Frame::data(data.clone())));
        } else if let Some(trailers) = frame.trailers_ref() {
            self.copies.retain(|copy| passed_on(copy, Frame::trailers(trailers.clone())));
        }
    }

    fn end(&mut self, error: Option<&BodyError>) {
        match error {
            None => {
                self.copies.clear();
                self.exchange.complete_request();
            }
            Some(_) => {
                self.tear_copies();
                // Whoever answers already will not get the rest, and must not be waited for.
                if self.exchange.facts.borrow().response_at.is_some() {
                    self.exchange.cancel(Reason::DownstreamDisconnect);
                }
            }
        }
    }
}

impl RequestObserver {
    /// The copies get no more, and must not look whole: a queue that merely ends would make them.
    fn tear_copies(&mut self) {
        for copy in self.copies.drain(..) {
            let _ = copy.try_send(Err(BodyError::Aborted("the mirrored request broke off")));
        }
    }
}

impl Drop for RequestObserver {
    fn drop(&mut self) {
        // Nobody read the body to its end: it has no endpoint, or that has answered already.
        self.tear_copies();
    }
}

/// Sees the response's body pass, and gives the upstream connection back when it has.
pub(crate) struct ResponseObserver {
    pub exchange: Rc<Exchange>,
    pub lease: Option<Lease>,
    /// The request's place in its cluster.
    pub _place: Option<Place>,
    /// The client gets gRPC-Web.
    pub web: Option<Web>,
}

impl BodyObserver for ResponseObserver {
    fn resizes(&self) -> bool {
        self.web.is_some()
    }

    fn poll_abort(&mut self, cx: &mut Context<'_>) -> Option<BodyError> {
        match self.exchange.poll_cancelled(cx) {
            Poll::Ready(reason) => {
                self.exchange.note(reason.flag(), self.exchange.details_of(reason));
                Some(BodyError::Aborted(reason.details()))
            }
            Poll::Pending => None,
        }
    }

    fn frame(&mut self, frame: &mut Frame<Bytes>) {
        self.exchange.step();
        if let Some(data) = frame.data_ref() {
            self.exchange.sent.set(self.exchange.sent.get() + data.len() as u64);
        } else if let Some(trailers) = frame.trailers_ref() {
            let mut facts = self.exchange.facts.borrow_mut();
            if facts.is_grpc {
                facts.grpc_status = grpc::status(trailers).or(facts.grpc_status);
            }
            if let Some(logged) = &mut facts.logged {
                LoggedRequest::keep(&mut logged.trailers, trailers, self.exchange.http.logs.trailers());
            }
        }
        if let Some(web) = self.web {
            let piece = match frame.data_ref() {
                Some(data) => Some(grpc_web::encode(web, data.clone())),
                None => frame.trailers_ref().map(|trailers| grpc_web::encode_trailers(web, trailers)),
            };
            piece.into_iter().for_each(|piece| *frame = Frame::data(piece));
        }
    }

    fn end(&mut self, error: Option<&BodyError>) {
        let mut facts = self.exchange.facts.borrow_mut();
        facts.finished = true;
        match error {
            None => {
                if let Some(lease) = self.lease.take()
                    && self.exchange.request_done.get()
                {
                    lease.give_back();
                }
            }
            Some(error @ (BodyError::Stream(_) | BodyError::Wire(_))) => {
                facts.flags |= Flags::UC;
                facts.details = Cow::Borrowed("upstream_reset_after_response_started{connection_termination}");
                tracing::debug!(%error, "the endpoint broke off its response");
            }
            Some(BodyError::Aborted(_)) => {}
        }
    }
}

impl Drop for ResponseObserver {
    fn drop(&mut self) {
        let mut facts = self.exchange.facts.borrow_mut();
        if !facts.finished {
            facts.finished = true;
            facts.flags |= Flags::DC;
            facts.details = Cow::Borrowed(Reason::DownstreamDisconnect.details());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_that_lags_is_told_so() {
        let (copy, mut frames) = mpsc::channel(3);
        let frame = || Frame::data(Bytes::from_static(b"x"));
        assert!(passed_on(&copy, frame()) && passed_on(&copy, frame()));
        assert!(!passed_on(&copy, frame()), "only the last place is left");
        drop(copy);
        assert!(frames.try_recv().is_ok_and(|f| f.is_ok()) && frames.try_recv().is_ok_and(|f| f.is_ok()));
        assert!(frames.try_recv().is_ok_and(|f| f.is_err()), "the copy must not look whole");
    }
}
