//! A client's HTTP connection: which version it speaks, its bounds in time and number, and its end.

use crate::accept;
use crate::chain::{ChainRuntime, ChainSlot};
use crate::downstream::Downstream;
use crate::http::exchange::Exchange;
use crate::http::http1;
use crate::http::http2::Http2;
use crate::listener::LiveListener;
use crate::standing::End;
use crate::worker::{ConnectionEntry, Registered, Snapshot, Worker};
use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use weft_codec::h1::{HeadLimits, WireError};
use weft_codec::http_sniff::H2_PREFACE;
use weft_codec::{Io, Reason};
use weft_proxy_config::{Codec, ConnectionFacts, FilterChain, HttpLimits};

/// How long a client may take to send its first bytes when nothing else bounds it.
const FIRST_BYTES: Duration = Duration::from_secs(3600);
/// How often time limits are looked at, at the least often.
const SLOWEST_TICK: Duration = Duration::from_secs(300);
/// … and at the most often.
const FASTEST_TICK: Duration = Duration::from_millis(1);
/// Time left to a client that was told to go, when nothing of it is under way, before it is cut.
const LEAVING: Duration = Duration::from_secs(5);

/// Requests of a connection from which on it counts how many of them its client gives up; Envoy's
/// `overload.premature_reset_total_stream_count`.
const MANY_REQUESTS: u32 = 500;

/// A client's connection.
#[derive(Debug)]
pub(crate) struct HttpConnection {
    pub worker: Rc<Worker>,
    listener: Rc<LiveListener>,
    pub slot: Rc<ChainSlot>,
    pub downstream: Downstream,
    registered: Registered,
    is_http2: bool,
    /// This hop's part of `x-forwarded-client-cert`; the same for all requests.
    pub cert_element: OnceCell<Option<HeaderValue>>,
    created: Instant,
    requests: Cell<u32>,
    /// Those that its client gave up before they had an answer.
    given_up: Cell<u32>,
    active: Cell<u32>,
    /// When the last request ended; of no meaning while there is one.
    quiet_since: Cell<Instant>,
    /// When the first bytes of a request arrived whose headers are not complete. Of HTTP/1 only: HTTP/2 has frames that belong
    /// to no request.
    partial_since: Cell<Option<Instant>>,
    exchanges: RefCell<Vec<Weak<Exchange>>>,
    /// The host that was found to belong here last, and the configuration that said so.
    directed: RefCell<Option<(Weak<Snapshot>, HeaderValue)>>,
    tick: Cell<Duration>,
    /// `tick` became shorter.
    rearm: Cell<bool>,
    /// It ends as soon as it is idle.
    ending: Cell<bool>,
    /// It must not go on.
    cut: Cell<bool>,
    /// Since when the client is told to go and nothing is under way.
    leaving_since: Cell<Option<Instant>>,
}

/// Serves a connection until it ends.
pub(crate) async fn serve_connection(
    worker: Rc<Worker>,
    listener: Rc<LiveListener>,
    slot: Rc<ChainSlot>,
    registered: Registered,
    mut io: Io,
    downstream: Downstream,
) {
    let Some(http) = slot.current().http.clone() else { return };
    let stats = &http.stats;
    stats.cx_total.inc();
    stats.cx_active.add(1);
    let spoken = tokio::select! {
        biased;
        end = registered.entry.standing.ended(|chain| accept::denied(chain, &downstream)) => {
            accept::counted(&listener, end);
            None
        }
        spoken = speaks_http2(&mut io, http.hcm.codec, &downstream, &http.hcm.limits) => spoken.ok(),
    };
    let Some(is_http2) = spoken else {
        stats.cx_active.add(-1);
        return;
    };
    (if is_http2 { &stats.cx_http2_total } else { &stats.cx_http1_total }).inc();
    let meter = downstream.meter.clone();
    let limits = &http.hcm.limits;
    let connection = HttpConnection::new(worker, listener, slot, registered, downstream, is_http2, limits);
    let outcome = if is_http2 {
        drive(&connection, Http2::new(connection.clone(), io, limits, !http.hcm.upgrades.is_empty())).await
    } else {
        let heads = HeadLimits { bytes: limits.max_header_bytes, headers: limits.max_headers };
        drive(&connection, Http1(pin!(http1::serve(connection.clone(), io, heads)), &connection)).await
    };
    if let Err(error) = outcome {
        tracing::debug!(peer = %connection.downstream.peer, %error, "client connection ended");
    }
    stats.cx_active.add(-1);
    stats.cx_rx_bytes.add(meter.read());
    stats.cx_tx_bytes.add(meter.written());
}

/// By ALPN; without it by the first bytes, which are put back.
async fn speaks_http2(io: &mut Io, codec: Codec, downstream: &Downstream, limits: &HttpLimits) -> io::Result<bool> {
    match codec {
        Codec::Http1 => return Ok(false),
        Codec::Http2 => return Ok(true),
        Codec::Auto => {}
    }
    match downstream.tls.as_ref().and_then(|tls| tls.alpn.as_deref()) {
        Some(b"h2" | b"istio-h2") => return Ok(true),
        Some(b"http/1.1" | b"http/1.0" | b"istio-http/1.1" | b"istio-http/1.0") => return Ok(false),
        _ => {}
    }
    let mut first = BytesMut::with_capacity(1024);
    let limit = limits.idle_timeout.unwrap_or(FIRST_BYTES);
    let until = tokio::time::Instant::now() + limit;
    loop {
        let n = tokio::time::timeout_at(until, io.read_buf(&mut first)).await??;
        let seen = first.len().min(H2_PREFACE.len());
        let matches = first[..seen] == H2_PREFACE[..seen];
        if n == 0 || !matches || seen == H2_PREFACE.len() {
            io.unread(Bytes::from(first));
            return Ok(matches && seen == H2_PREFACE.len());
        }
    }
}

/// Why a connection ended out of order.
type Failure = Box<dyn std::error::Error>;

/// A connection of either version.
trait Drive {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>>;
    /// Ends it as soon as it is idle.
    fn graceful(&mut self);
    /// Before a connection that was cut goes: its end must not make a response look whole.
    fn tear(&mut self, cx: &mut Context<'_>);
}

struct Http1<'a, F>(Pin<&'a mut F>, &'a HttpConnection);

impl<F: Future<Output = Result<(), WireError>>> Drive for Http1<'_, F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.0.as_mut().poll(cx).map_err(Into::into)
    }
    fn graceful(&mut self) {
        self.1.ending.set(true);
    }
    fn tear(&mut self, cx: &mut Context<'_>) {
        // It sees that it was cut before it does anything else.
        let _ = self.0.as_mut().poll(cx);
    }
}

impl Drive for Http2 {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Http2::poll(self, cx).map_err(Into::into)
    }
    fn graceful(&mut self) {
        Http2::graceful(self);
    }
    fn tear(&mut self, _: &mut Context<'_>) {
        // A stream says itself that it is whole.
    }
}

/// Runs a connection; lets it end in order when it is drained or its time is over.
async fn drive(connection: &Rc<HttpConnection>, mut served: impl Drive) -> Result<(), Failure> {
    let mut timer = pin!(tokio::time::sleep(connection.tick.get()));
    // It knows whom to wake: until it has gone off, asking it again changes nothing.
    let mut armed = false;
    let mut ending = false;
    std::future::poll_fn(|cx| {
        connection.entry().set_waker(cx.waker());
        if connection.rearm.take() {
            timer.as_mut().reset(tokio::time::Instant::now() + connection.tick.get());
            armed = false;
        }
        if let Some(end) = connection.end_now() {
            connection.cut(end);
            served.tear(cx);
            return Poll::Ready(Ok(()));
        }
        if !ending && connection.must_end() {
            ending = true;
            served.graceful();
        }
        if let Poll::Ready(outcome) = served.poll(cx) {
            return Poll::Ready(outcome);
        }
        while !armed || timer.is_elapsed() {
            if timer.as_mut().poll(cx).is_pending() {
                // A task that has used up its turn was not heard.
                armed = tokio::task::coop::has_budget_remaining();
                break;
            }
            armed = false;
            let next = match connection.watch() {
                Watched::Again(next) => next,
                Watched::Drain => {
                    connection.entry().drain();
                    connection.tick.get()
                }
                Watched::End if !ending => {
                    ending = true;
                    served.graceful();
                    // An idle connection ends at once.
                    if let Poll::Ready(outcome) = served.poll(cx) {
                        return Poll::Ready(outcome);
                    }
                    let left = if connection.is_http1() { None } else { connection.leaving() };
                    left.unwrap_or(connection.tick.get())
                }
                // It did not end within a tick: its client does not take what is written.
                Watched::End if connection.is_http1() && connection.active.get() == 0 => return Poll::Ready(Ok(())),
                // Or does not heed what it was told.
                Watched::End => match connection.leaving() {
                    Some(left) => left,
                    None => return Poll::Ready(Ok(())),
                },
                // A client that is in the middle of its headers would not notice a shutdown in order.
                Watched::Cut => return Poll::Ready(Ok(())),
            };
            timer.as_mut().reset(tokio::time::Instant::now() + next.max(FASTEST_TICK));
        }
        if connection.rearm.get() || (!ending && connection.must_end()) {
            // It became so while requests ran.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await
}

/// What is to be done when a time limit may be over.
enum Watched {
    Again(Duration),
    Drain,
    End,
    Cut,
}

/// How often limits must be looked at so that none is missed: the shortest of them.
fn tick(limits: &HttpLimits) -> Duration {
    let all = [
        limits.idle_timeout,
        limits.max_connection_duration,
        limits.stream_idle_timeout,
        limits.request_timeout,
        limits.request_headers_timeout,
    ];
    all.into_iter().flatten().filter(|d| !d.is_zero()).min().unwrap_or(SLOWEST_TICK).min(SLOWEST_TICK)
}

impl HttpConnection {
    /// One that begins now.
    pub fn new(
        worker: Rc<Worker>,
        listener: Rc<LiveListener>,
        slot: Rc<ChainSlot>,
        registered: Registered,
        downstream: Downstream,
        is_http2: bool,
        limits: &HttpLimits,
    ) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            worker,
            listener,
            slot,
            downstream,
            registered,
            is_http2,
            cert_element: OnceCell::new(),
            created: now,
            requests: Cell::new(0),
            given_up: Cell::new(0),
            active: Cell::new(0),
            quiet_since: Cell::new(now),
            partial_since: Cell::new(None),
            exchanges: RefCell::default(),
            directed: RefCell::default(),
            tick: Cell::new(tick(limits)),
            rearm: Cell::new(false),
            ending: Cell::new(false),
            cut: Cell::new(false),
            leaving_since: Cell::new(None),
        })
    }

    /// The host of a request belongs to another filter chain than the one that this connection is on: its client reuses the
    /// connection where the host has rules, and maybe certificates, of its own (RFC 9110 §7.4).
    fn is_misdirected(&self, authority: &str) -> bool {
        let host = weft_route::normalize::without_port(authority);
        let host = host.strip_suffix('.').unwrap_or(host);
        // Its chain is gone: for the host that it was made for it serves as long as it lasts.
        if self.slot.is_retired() && self.downstream.server_name.as_deref() == Some(host) {
            return false;
        }
        // As it is now: a host may have got a chain of its own since the connection was made.
        let snapshot = self.worker.snapshot();
        let last = self.entry().standing.seat.listener();
        let listener = snapshot.listeners.named(&self.listener.config.name).unwrap_or(&last);
        let facts = ConnectionFacts { server_name: Some(host), ..self.entry().standing.seat.facts() };
        let own = self.slot.current();
        // A chain that came for the same connections, and not for names, says nothing of the host.
        let by_name = |chain: &FilterChain| !chain.matcher.server_names.is_empty();
        listener
            .config
            .find_chain(&facts)
            .is_some_and(|chain| !Arc::ptr_eq(chain, &own.chain) && (by_name(chain) || by_name(&own.chain)))
    }

    /// The same, asked anew only for another host than the last, or after a change of the configuration.
    pub fn is_misdirected_to(&self, authority: &HeaderValue) -> bool {
        if self.downstream.tls.is_none() {
            return false;
        }
        let snapshot = self.worker.snapshot();
        let known =
            |(of, host): &(Weak<Snapshot>, HeaderValue)| of.as_ptr() == Rc::as_ptr(&snapshot) && host == authority;
        if self.directed.borrow().as_ref().is_some_and(known) {
            return false;
        }
        let misdirected = self.is_misdirected(authority.to_str().unwrap_or_default());
        // A copy: the value is part of a head, whose memory is not to be kept.
        if !misdirected && let Ok(host) = HeaderValue::from_bytes(authority.as_bytes()) {
            self.directed.replace(Some((Rc::downgrade(&snapshot), host)));
        }
        misdirected
    }

    /// The worker's entry for it.
    pub fn entry(&self) -> &ConnectionEntry {
        &self.registered.entry
    }

    /// It ends as soon as it is idle.
    pub fn is_ending(&self) -> bool {
        self.ending.get()
    }

    /// It speaks HTTP/1.
    pub fn is_http1(&self) -> bool {
        !self.is_http2
    }

    /// Bytes of the next request's head are there, but not all of it: its time runs.
    pub fn head_began(&self) {
        if self.partial_since.get().is_none() {
            self.partial_since.set(Some(Instant::now()));
        }
    }

    /// Why the connection must end whatever it does: its filter chain is gone, or the chain's authorization of connections
    /// says no now.
    fn end_now(&self) -> Option<End> {
        let standing = &self.entry().standing;
        let changed = standing.is_in_question();
        let end = standing.now(|chain| self.denied(chain)).map(|end| self.counted(end));
        if changed && end.is_none() {
            self.judge_requests_again();
        }
        end
    }

    /// Cuts requests that the rules in force would not let in. Tunnels look for themselves.
    fn judge_requests_again(&self) {
        let Some(http) = self.slot.current().http.clone() else { return };
        let under_way: Vec<_> = self.exchanges.borrow().iter().filter_map(Weak::upgrade).collect();
        under_way.iter().for_each(|exchange| exchange.judge_again(&http));
    }

    /// It must not go on.
    pub fn is_cut(&self) -> bool {
        self.cut.get()
    }

    /// Counts an end by authorization.
    pub fn counted(&self, end: End) -> End {
        accept::counted(&self.listener, end)
    }

    /// Ends what is under way.
    fn cut(&self, end: End) {
        self.cut.set(true);
        let details = end.details();
        tracing::debug!(peer = %self.downstream.peer, %details, "client connection cut");
        for exchange in self.exchanges.borrow().iter().filter_map(Weak::upgrade) {
            exchange.cut(details.clone());
        }
    }

    /// Whether authorization of connections lets it in under `chain`; the details word when it does not.
    pub fn denied(&self, chain: &ChainRuntime) -> Option<String> {
        accept::denied(chain, &self.downstream)
    }

    /// When the longest life of the connection is over, with the time that its client has to go then.
    pub fn longest_life(&self) -> Option<Instant> {
        let limit = self.slot.current().http.as_ref()?.hcm.limits.max_connection_duration?;
        Some(self.created + limit + LEAVING)
    }

    /// Time left to a client that was told to go; `None` when it is over.
    fn leaving(&self) -> Option<Duration> {
        if self.active.get() > 0 {
            self.leaving_since.set(None);
            return Some(self.tick.get());
        }
        let since = self.leaving_since.get().unwrap_or_else(Instant::now);
        self.leaving_since.set(Some(since));
        LEAVING.checked_sub(since.elapsed()).filter(|left| !left.is_zero())
    }

    /// A request begins.
    pub fn begin(&self, exchange: &Rc<Exchange>) {
        self.active.set(self.active.get() + 1);
        self.requests.set(self.requests.get().saturating_add(1));
        self.partial_since.set(None);
        self.exchanges.borrow_mut().push(Rc::downgrade(exchange));
        let limits = &exchange.http.hcm.limits;
        if limits.max_requests_per_connection.is_some_and(|most| most > 0 && self.requests.get() >= most) {
            self.entry().drain();
        }
    }

    /// The client gave up a request that had no answer. Who does so with most of many is asked to go: giving up costs a client
    /// less than it costs the proxy, and endpoints end connections, with others' requests on them, for what is passed on.
    pub fn gave_up(&self) {
        self.given_up.set(self.given_up.get().saturating_add(1));
        if self.requests.get() >= MANY_REQUESTS && self.given_up.get() > self.requests.get() / 2 {
            self.entry().drain();
        }
    }

    /// A request ended.
    pub fn end(&self) {
        self.active.set(self.active.get().saturating_sub(1));
        if self.active.get() == 0 {
            self.quiet_since.set(Instant::now());
        }
        self.downstream.meter.take_touched();
        let mut exchanges = self.exchanges.borrow_mut();
        if let Some(at) = exchanges.iter().position(|exchange| exchange.strong_count() == 0) {
            exchanges.swap_remove(at);
        }
    }

    /// Looks at limits at least so often from now on.
    pub fn watch_every(&self, limit: Duration) {
        if limit < self.tick.get() {
            self.tick.set(limit.max(FASTEST_TICK));
            self.rearm.set(true);
            self.entry().wake();
        }
    }

    /// HTTP/2 is told to end at once, since a GOAWAY loses no request. HTTP/1 learns it with its next answer, and is closed
    /// while idle only when it was given time.
    fn must_end(&self) -> bool {
        if self.is_http2 { self.entry().is_draining() } else { self.entry().closes_idle() }
    }

    /// Looks at all time limits; returns when to look again.
    fn watch(&self) -> Watched {
        let Some(http) = self.slot.current().http.clone() else { return Watched::End };
        let limits = &http.hcm.limits;
        let now = Instant::now();
        if self.active.get() == 0 {
            // What requests have asked for is over with them.
            self.tick.set(tick(limits));
        }
        let mut next = self.tick.get();
        // Time left of a limit that began at `since`; `None` when it is over.
        let mut left = |since: Instant, limit: Duration| -> Option<()> {
            let left = (since + limit).checked_duration_since(now).filter(|left| !left.is_zero())?;
            next = next.min(left);
            Some(())
        };
        if limits.max_connection_duration.is_some_and(|limit| left(self.created, limit).is_none()) {
            // A client that does not heed it is closed when it is idle.
            return if self.entry().is_draining() && self.active.get() == 0 { Watched::End } else { Watched::Drain };
        }
        if self.active.get() == 0 {
            let headers = limits.request_headers_timeout.or(limits.stream_idle_timeout).filter(|d| !d.is_zero());
            if self.is_http1() && self.downstream.meter.take_touched() {
                self.head_began();
            }
            if let (Some(since), Some(limit)) = (self.partial_since.get(), headers)
                && left(since, limit).is_none()
            {
                return Watched::Cut;
            }
            let idle = limits.idle_timeout.filter(|d| !d.is_zero());
            if idle.is_some_and(|limit| left(self.quiet_since.get(), limit).is_none()) {
                return Watched::End;
            }
        }
        for exchange in self.exchanges.borrow().iter().filter_map(Weak::upgrade) {
            if let Some(idle) = exchange.idle_timeout()
                && left(exchange.moved(), idle).is_none()
            {
                http.stats.rq_idle_timeout.inc();
                exchange.cancel(Reason::StreamIdleTimeout);
            }
            let arrival = limits.request_timeout.filter(|d| !d.is_zero() && !exchange.request_done.get());
            if arrival.is_some_and(|limit| left(exchange.began, limit).is_none()) {
                exchange.cancel(Reason::ClientRequestTimeout);
            }
            if let Some((since, limit)) = exchange.time()
                && left(since, limit).is_none()
            {
                exchange.time_is_over();
            }
            if let Some(longest) = exchange.longest_life()
                && left(exchange.began, longest).is_none()
            {
                exchange.cancel(Reason::MaxDuration);
            }
        }
        Watched::Again(next)
    }
}
