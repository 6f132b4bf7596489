//! Connections to one endpoint, kept for further requests. HTTP/1 (`http1`): a stack of idle connections, the warmest on top.
//! HTTP/2: few connections, each shared up to its number of streams. A request takes a [`Lease`]; what it does not give back
//! in order is closed.

use crate::cluster::LiveCluster;
use crate::connect::{self, Alpn, ConnectionFacts, Plan, Source};
use crate::error::UpstreamError;
use crate::hosts::Host;
use crate::http1::Http1;
use crate::http2::{Http2, Rest};
use crate::limits::{Limit, Permit};
use crate::stats::ClusterStats;
use http::{Request, Response};
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use weft_codec::h1::encode::Asking;
use weft_codec::h2::Tunnel;
use weft_codec::upgrade::Upgrading;
use weft_codec::{HeaderMarks, ProxyBody, Reason};
use weft_core::Strng;
use weft_proxy_config::{AutoSni, ClientTls, ConnectionLimits, UpstreamProtocol, UpstreamTransport};
use weft_route::Priority;

mod parties;
use parties::Party;
pub use parties::{HostPools, OwnPools};

/// Idle time of a connection unless the cluster says otherwise.
const DEFAULT_IDLE: Duration = Duration::from_secs(3600);
/// A request that could not be sent again is not put on a connection idle for longer: many servers close idle connections
/// after few seconds, and a close that crosses the request loses it.
const CAREFUL_IDLE: Duration = Duration::from_secs(2);
/// Longest idle time of a connection that serves one client alone: there may be as many of them as there are clients.
const OWN_IDLE: Duration = Duration::from_secs(5);
/// Connections made with TLS secrets that were replaced meanwhile go within this time, and twice this at most.
const RETIRE_AFTER: Duration = Duration::from_secs(10);

/// What a request asks of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    /// The client's side speaks HTTP/2 (for clusters that follow it), or the request needs it.
    pub http2: bool,
    /// Only a new connection will do.
    pub fresh: bool,
    /// The request cannot be sent twice: no connection that may be about to close.
    pub careful: bool,
    /// The request's host, for clusters that derive SNI from it.
    pub host: Option<&'a str>,
    /// The client and where it wanted to go, for clusters whose endpoints are told.
    pub client: Option<(SocketAddr, SocketAddr)>,
    /// Where the connection is to come from, when not from this machine's address.
    pub source: Option<Source>,
    /// Where connections that serve this client alone are noted; they go with it.
    pub own: Option<&'a OwnPools>,
    /// Which limits of the cluster hold.
    pub priority: Priority,
}

/// Connections of one kind.
#[derive(Debug)]
pub struct Pool {
    alpn: Alpn,
    sni: Option<Strng>,
    party: Option<Party>,
    /// The newest context; older connections carry the one they were made with.
    transport: RefCell<UpstreamTransport>,
    changed: Cell<Option<Instant>>,
    // Boxed, because a lease takes the same box along: a connection moves between the two without being copied.
    #[allow(clippy::vec_box)]
    idle: RefCell<Vec<Box<Http1>>>,
    /// The task that notices when idle connections are closed by their endpoint.
    watcher: RefCell<Option<Waker>>,
    watched: Cell<bool>,
    shared: RefCell<Vec<Rc<Http2>>>,
    open: Cell<u32>,
    connecting_shared: Cell<bool>,
    failures: Cell<u64>,
    last_failure: RefCell<Option<UpstreamError>>,
    freed: Notify,
    drained: Cell<bool>,
}

/// A request's place on a connection.
#[derive(Debug)]
pub struct Lease {
    /// The endpoint.
    pub host: Rc<Host>,
    /// The connection.
    pub facts: Rc<ConnectionFacts>,
    /// The connection has served before.
    pub reused: bool,
    /// When the place was taken: the request goes out at once.
    pub taken: Instant,
    pool: Rc<Pool>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Http1(Option<Box<Http1>>),
    /// With what goes on of the request.
    Http2(Rc<Http2>, Rest),
}

/// A request that got no response.
#[derive(Debug)]
pub struct SendFailure {
    /// Why.
    pub error: UpstreamError,
    /// The request, when it came back untouched.
    pub request: Option<Box<Request<ProxyBody>>>,
}

/// Identity of a TLS context: two connections of equal identity were made with the same secrets.
fn secrets_of(transport: &UpstreamTransport) -> usize {
    match transport {
        UpstreamTransport::Plain => 0,
        UpstreamTransport::Tls(tls) => Arc::as_ptr(tls) as usize,
    }
}

/// Equal but for secrets.
fn same_kind(a: &UpstreamTransport, b: &UpstreamTransport) -> bool {
    match (a, b) {
        (UpstreamTransport::Plain, UpstreamTransport::Plain) => true,
        (UpstreamTransport::Tls(a), UpstreamTransport::Tls(b)) => Arc::ptr_eq(a, b) || a.spec == b.spec,
        _ => false,
    }
}

fn wants_host_sni(transport: &UpstreamTransport) -> bool {
    let auto = |tls: &Arc<ClientTls>| tls.spec.auto_sni == AutoSni::Request;
    matches!(transport, UpstreamTransport::Tls(tls) if auto(tls))
}

/// The name of a server in an authority: without port, in lower case (names do not differ by case, and pools must not).
fn server_name(authority: &str) -> Cow<'_, str> {
    let name = weft_route::normalize::without_port(authority);
    let name = name.strip_suffix('.').unwrap_or(name);
    match name.bytes().any(|b| b.is_ascii_uppercase()) {
        true => Cow::Owned(name.to_ascii_lowercase()),
        false => Cow::Borrowed(name),
    }
}

impl Pool {
    fn new(transport: &UpstreamTransport, alpn: Alpn, sni: Option<&str>, party: Option<Party>) -> Rc<Self> {
        Rc::new(Self {
            alpn,
            sni: sni.map(Strng::from),
            party,
            transport: RefCell::new(transport.clone()),
            changed: Cell::new(None),
            idle: RefCell::default(),
            watcher: RefCell::default(),
            watched: Cell::new(false),
            shared: RefCell::default(),
            open: Cell::new(0),
            connecting_shared: Cell::new(false),
            failures: Cell::new(0),
            last_failure: RefCell::default(),
            freed: Notify::new(),
            drained: Cell::new(false),
        })
    }

    /// Closes what is idle; what is not goes as it becomes idle.
    fn drain(&self) {
        self.drained.set(true);
        self.idle.borrow_mut().clear();
        self.shared.borrow_mut().clear();
        self.freed.notify_waiters();
    }

    /// How long a connection may be idle.
    fn idle_limit(&self, limits: &ConnectionLimits) -> Duration {
        let idle = limits.idle_timeout.unwrap_or(DEFAULT_IDLE);
        if self.party.is_some() { idle.min(OWN_IDLE) } else { idle }
    }

    /// Notes a change of secrets.
    fn follow(&self, transport: &UpstreamTransport) {
        let changed = secrets_of(&self.transport.borrow()) != secrets_of(transport);
        if changed {
            self.transport.replace(transport.clone());
            self.changed.set(Some(Instant::now()));
        }
    }

    /// Connections made with earlier secrets go one by one, not all at once.
    fn is_outdated(&self, secrets: usize, created: Instant, now: Instant) -> bool {
        let Some(changed) = self.changed.get() else { return false };
        if secrets == secrets_of(&self.transport.borrow()) {
            return false;
        }
        let spread = Duration::from_nanos((changed - created).as_nanos() as u64 % RETIRE_AFTER.as_nanos() as u64);
        now.duration_since(changed) > RETIRE_AFTER + spread
    }

    fn is_worn(&self, served: u32, created: Instant, limits: &ConnectionLimits, now: Instant) -> bool {
        let most = limits.max_requests_per_connection;
        (most > 0 && served >= most)
            || limits.max_connection_duration.is_some_and(|longest| now.duration_since(created) >= longest)
    }

    fn is_stale_http1(&self, conn: &Http1, limits: &ConnectionLimits, now: Instant) -> bool {
        now.duration_since(conn.idle_since) >= conn.idle_limit
            || self.is_worn(conn.served, conn.created, limits, now)
            || self.is_outdated(conn.secrets, conn.created, now)
    }

    fn is_stale_http2(&self, conn: &Http2, limits: &ConnectionLimits, now: Instant) -> bool {
        let idle = self.idle_limit(limits);
        conn.is_closed()
            || (conn.active.get() == 0 && now.duration_since(conn.idle_since.get()) >= idle)
            || self.is_worn(conn.served.get(), conn.created, limits, now)
            || self.is_outdated(conn.secrets, conn.created, now)
    }

    /// A place on a connection that is there, without waiting.
    fn take(self: &Rc<Self>, host: &Rc<Host>, want: Want<'_>, limits: &ConnectionLimits) -> Option<Lease> {
        if want.fresh {
            return None;
        }
        let now = Instant::now();
        if let Some(conn) = self.take_shared(limits, now) {
            return Some(Lease::shared(host, self, conn, Some(now)));
        }
        let mut idle = self.idle.borrow_mut();
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            let conn = &idle[at];
            if self.is_stale_http1(conn, limits, now) {
                idle.remove(at);
                continue;
            }
            if want.careful && now.duration_since(conn.idle_since) > CAREFUL_IDLE {
                return None;
            }
            let conn = idle.remove(at);
            if conn.is_open() {
                return Some(Lease::exclusive(host, self, conn, Some(now)));
            }
        }
        None
    }

    /// Closes the connection that has been idle longest; false when none is.
    fn drop_idle(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        let oldest = (!idle.is_empty()).then(|| idle.remove(0));
        drop(idle);
        oldest.is_some()
    }

    fn take_shared(&self, limits: &ConnectionLimits, now: Instant) -> Option<Rc<Http2>> {
        let mut shared = self.shared.borrow_mut();
        if shared.is_empty() {
            return None;
        }
        shared.retain(|conn| !self.is_stale_http2(conn, limits, now));
        let has_room = |conn: &&Rc<Http2>| {
            let most = limits.max_concurrent_streams.max(1) as usize;
            (conn.active.get() as usize) < most.min(conn.max_streams())
        };
        shared.iter().filter(has_room).min_by_key(|conn| conn.active.get()).cloned()
    }
}

/// The pool that serves a request to `host`, and whether its requests share one connection.
fn serving(cluster: &LiveCluster, host: &Host, want: &Want<'_>) -> (Rc<Pool>, bool) {
    let transport = cluster.transport(host);
    let (alpn, one_connection) = match cluster.config.protocol {
        UpstreamProtocol::Http2 => (Alpn::Http2, true),
        UpstreamProtocol::UseDownstream if want.http2 => (Alpn::Http2, true),
        UpstreamProtocol::Auto if want.http2 => (Alpn::Configured, true),
        UpstreamProtocol::Auto => (Alpn::Configured, false),
        _ => (Alpn::Http1, false),
    };
    let sni = want.host.filter(|_| wants_host_sni(transport)).map(server_name);
    let client = want.client.filter(|_| cluster.config.proxy_protocol.is_some());
    let pool = host.pools.pool(transport, alpn, sni.as_deref(), Party::of(client, want.source), want.own);
    (pool, one_connection)
}

/// A place on a connection to `host` that is there; `None` when there is none.
pub fn take(cluster: &LiveCluster, host: &Rc<Host>, want: &Want<'_>) -> Option<Lease> {
    serving(cluster, host, want).0.take(host, *want, &cluster.config.limits)
}

/// A place on a connection to `host` for one request; makes a connection when none is free.
///
/// # Errors
/// When connecting failed, or a limit is reached. Nothing was sent.
pub async fn acquire(cluster: &Rc<LiveCluster>, host: &Rc<Host>, want: Want<'_>) -> Result<Lease, UpstreamError> {
    let (pool, one_connection) = serving(cluster, host, &want);
    let limits = &cluster.config.limits;
    while let Some(lease) = pool.take(host, want, limits) {
        if lease.takes_requests() {
            return Ok(lease);
        }
    }
    let _waiting = Waiting::start(cluster, want.priority)?;
    let mut failures = pool.failures.get();
    loop {
        if one_connection && pool.connecting_shared.get() {
            // Another request is connecting already, and this one can share its connection.
            pool.freed.notified().await;
            if pool.failures.get() != failures {
                failures = pool.failures.get();
                if let Some(error) = pool.last_failure.borrow().clone() {
                    cluster.stats.rq_pending_failure_eject.inc();
                    return Err(error);
                }
            }
        } else if let Some(permit) = connection_permit(cluster, host, &pool, want.priority) {
            let made = pool.connect(cluster, host, permit, one_connection).await;
            return made.inspect_err(|_| cluster.stats.rq_pending_failure_eject.inc());
        } else if pool.drop_idle() {
            // Not good enough for this request; its place is.
            continue;
        } else {
            cluster.stats.cx_overflow.inc();
            pool.freed.notified().await;
        }
        while let Some(lease) = pool.take(host, Want { fresh: false, ..want }, limits) {
            if lease.takes_requests() {
                return Ok(lease);
            }
        }
    }
}

/// An endpoint without any connection gets one even beyond the limit.
fn connection_permit(cluster: &LiveCluster, host: &Host, pool: &Pool, priority: Priority) -> Option<Permit> {
    let permit = cluster.breaker.connection(host, priority);
    if permit.is_none() && pool.open.get() == 0 {
        return Some(cluster.breaker.force_connection(host, priority));
    }
    permit
}

/// A request that waits for a connection.
struct Waiting {
    stats: Rc<ClusterStats>,
    _permit: Permit,
}

impl Waiting {
    fn start(cluster: &LiveCluster, priority: Priority) -> Result<Self, UpstreamError> {
        let Some(permit) = cluster.breaker.take(Limit::Pending, priority) else {
            cluster.stats.rq_pending_overflow.inc();
            return Err(UpstreamError::unsent(Reason::Overflow));
        };
        cluster.stats.rq_pending_total.inc();
        cluster.stats.rq_pending_active.add(1);
        Ok(Self { stats: cluster.stats.clone(), _permit: permit })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.stats.rq_pending_active.add(-1);
    }
}

/// Clears the mark of a shared attempt, also when the request that made it is cancelled.
struct Attempt<'a>(&'a Pool, bool);

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.1 {
            self.0.connecting_shared.set(false);
            self.0.freed.notify_waiters();
        }
    }
}

impl Pool {
    async fn connect(
        self: &Rc<Self>,
        cluster: &Rc<LiveCluster>,
        host: &Rc<Host>,
        permit: Permit,
        one_connection: bool,
    ) -> Result<Lease, UpstreamError> {
        self.connecting_shared.set(one_connection);
        let attempt = Attempt(self, one_connection);
        let transport = self.transport.borrow().clone();
        let alpn = self.alpn;
        let (client, source) = self.party.map_or((None, None), |party| (party.client, party.source));
        let sni = self.sni.as_deref();
        let plan = Plan { cluster, transport: &transport, alpn, sni, nameless: false, client, source };
        let outcome = connect::connect(host, plan).await;
        let (io, facts) = outcome.inspect_err(|error| {
            self.failures.set(self.failures.get() + 1);
            self.last_failure.replace(Some(error.clone()));
        })?;
        let guard = OpenGuard::new(self, host, cluster, &facts, permit);
        let http2 = match (self.alpn, &facts.tls) {
            (Alpn::Http2, _) => true,
            (Alpn::Configured, Some(_)) => facts.is_h2(),
            _ => false,
        };
        let secrets = secrets_of(&transport);
        let lease = if http2 {
            cluster.stats.cx_http2_total.inc();
            let conn = Rc::new(Http2::start(io, facts, secrets, Some(guard)).await?);
            if !self.drained.get() {
                self.shared.borrow_mut().push(conn.clone());
            }
            Lease::shared(host, self, conn, None)
        } else {
            cluster.stats.cx_http1_total.inc();
            let idle_limit = self.idle_limit(&cluster.config.limits);
            Lease::exclusive(host, self, Http1::new(io, facts, secrets, guard, idle_limit), None)
        };
        drop(attempt);
        Ok(lease)
    }
}

impl Pool {
    /// Keeps a connection for the next request, unless its endpoint has closed it.
    fn keep(self: &Rc<Self>, conn: Box<Http1>) {
        if !self.watched.replace(true) {
            tokio::task::spawn_local(watch(Rc::downgrade(self)));
        }
        let open = match &*self.watcher.borrow() {
            Some(watcher) => conn.poll_stale(&mut Context::from_waker(watcher)).is_pending(),
            // The task looks at all of them when it starts.
            None => conn.is_open(),
        };
        if open {
            self.idle.borrow_mut().push(conn);
            self.freed.notify_one();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(watcher) = self.watcher.get_mut().take() {
            watcher.wake();
        }
    }
}

/// Lets go of idle connections that their endpoint closes. One task for all: an endpoint closes seldom, and then often many.
async fn watch(pool: Weak<Pool>) {
    std::future::poll_fn(|cx| {
        let Some(pool) = pool.upgrade() else { return Poll::Ready(()) };
        pool.watcher.replace(Some(cx.waker().clone()));
        pool.idle.borrow_mut().retain(|conn| conn.poll_stale(cx).is_pending());
        Poll::Pending
    })
    .await;
}

/// Counts a connection as open until its task ends.
pub(crate) struct OpenGuard {
    pool: Weak<Pool>,
    host: Weak<Host>,
    stats: Rc<ClusterStats>,
    facts: Rc<ConnectionFacts>,
    ended_remotely: Cell<bool>,
    _permit: Permit,
}

impl OpenGuard {
    fn new(
        pool: &Rc<Pool>,
        host: &Rc<Host>,
        cluster: &LiveCluster,
        facts: &Rc<ConnectionFacts>,
        permit: Permit,
    ) -> Self {
        pool.open.set(pool.open.get() + 1);
        let mut guard = Self::unpooled(host, cluster, facts, permit);
        guard.pool = Rc::downgrade(pool);
        guard
    }

    /// For a connection that is no pool's.
    pub(crate) fn unpooled(
        host: &Rc<Host>,
        cluster: &LiveCluster,
        facts: &Rc<ConnectionFacts>,
        permit: Permit,
    ) -> Self {
        crate::stats::bump(&host.counts.cx_active);
        cluster.stats.cx_active.add(1);
        Self {
            pool: Weak::new(),
            host: Rc::downgrade(host),
            stats: cluster.stats.clone(),
            facts: facts.clone(),
            ended_remotely: Cell::new(false),
            _permit: permit,
        }
    }

    /// It is the endpoint that ends the connection.
    pub(crate) fn ended_by_endpoint(&self) {
        self.ended_remotely.set(true);
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.stats.cx_active.add(-1);
        self.stats.cx_destroy.inc();
        if self.ended_remotely.get() {
            self.stats.cx_destroy_remote.inc();
        }
        self.stats.cx_rx_bytes.add(self.facts.meter.read());
        self.stats.cx_tx_bytes.add(self.facts.meter.written());
        if let Some(host) = self.host.upgrade() {
            host.counts.cx_active.set(host.counts.cx_active.get().saturating_sub(1));
        }
        if let Some(pool) = self.pool.upgrade() {
            pool.open.set(pool.open.get().saturating_sub(1));
            pool.freed.notify_one();
        }
    }
}

impl Lease {
    /// `reused`: the time now, when the connection has served before.
    fn exclusive(host: &Rc<Host>, pool: &Rc<Pool>, conn: Box<Http1>, reused: Option<Instant>) -> Self {
        Self::new(host, pool, conn.facts.clone(), Kind::Http1(Some(conn)), reused)
    }

    fn shared(host: &Rc<Host>, pool: &Rc<Pool>, conn: Rc<Http2>, reused: Option<Instant>) -> Self {
        conn.active.set(conn.active.get() + 1);
        conn.served.set(conn.served.get().saturating_add(1));
        Self::new(host, pool, conn.facts.clone(), Kind::Http2(conn, Rest::Nothing), reused)
    }

    fn new(host: &Rc<Host>, pool: &Rc<Pool>, facts: Rc<ConnectionFacts>, kind: Kind, reused: Option<Instant>) -> Self {
        host.active.set(host.active.get() + 1);
        let taken = reused.unwrap_or_else(Instant::now);
        Self { host: host.clone(), facts, reused: reused.is_some(), taken, pool: pool.clone(), kind }
    }

    /// The connection speaks HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self.kind, Kind::Http2(..))
    }

    /// The endpoint takes extended CONNECT (RFC 8441).
    pub fn takes_extended_connect(&self) -> bool {
        match &self.kind {
            Kind::Http2(conn, _) => conn.takes_extended_connect(),
            Kind::Http1(_) => false,
        }
    }

    /// The connection is not one whose endpoint has said that it goes (GOAWAY) while requests are still under way on it. Such a
    /// one is not found again.
    fn takes_requests(&self) -> bool {
        match &self.kind {
            Kind::Http2(conn, _) => conn.takes_requests(),
            Kind::Http1(_) => true,
        }
    }

    /// Sends the request; returns when the response's head is there.
    ///
    /// # Errors
    /// With the request, when it was not touched.
    pub async fn send(&mut self, request: Request<ProxyBody>) -> Result<Response<ProxyBody>, SendFailure> {
        crate::stats::bump(&self.host.counts.rq_total);
        match &mut self.kind {
            Kind::Http1(Some(conn)) if conn.may_begin() => {
                let (parts, body) = request.into_parts();
                let sent = conn.send(Asking::from(&parts), body).await;
                weft_codec::h1::pool::keep_map(parts.headers);
                sent.map(|(response, _)| response).map_err(|error| SendFailure { error, request: None })
            }
            Kind::Http1(_) => {
                let error = UpstreamError::unsent(Reason::ConnectionTermination);
                Err(SendFailure { error, request: Some(Box::new(request)) })
            }
            Kind::Http2(conn, rest) => {
                let (response, goes_on) = conn.send(request).await?;
                *rest = goes_on;
                Ok(response)
            }
        }
    }

    /// A request may be sent: the endpoint has not closed the connection, as far as is known.
    pub fn may_begin(&self) -> bool {
        match &self.kind {
            Kind::Http1(conn) => conn.as_ref().is_some_and(|conn| conn.may_begin()),
            Kind::Http2(..) => true,
        }
    }

    /// As [`Self::send`], over HTTP/1.1, which needs no request of its own; also the marks of the response's headers.
    ///
    /// # Errors
    /// When no response comes; nothing was sent when the connection is none of HTTP/1.1.
    pub async fn send_http1(
        &mut self,
        head: Asking<'_>,
        body: ProxyBody,
    ) -> Result<(Response<ProxyBody>, HeaderMarks), UpstreamError> {
        crate::stats::bump(&self.host.counts.rq_total);
        match &mut self.kind {
            Kind::Http1(Some(conn)) => conn.send(head, body).await,
            _ => Err(UpstreamError::unsent(Reason::ConnectionTermination)),
        }
    }

    /// The endpoint's side of what `response` agreed to.
    pub fn upgrade(&mut self, response: &mut Response<ProxyBody>) -> Option<Upgrading> {
        match &mut self.kind {
            Kind::Http1(conn) => Some(Upgrading::Ready(Box::new(conn.as_ref()?.take_stream()?))),
            Kind::Http2(_, rest) => {
                let receive = std::mem::take(response.body_mut()).into_stream()?;
                let Rest::Way(send) = std::mem::replace(rest, Rest::Nothing) else { return None };
                Some(Upgrading::Stream(Box::new(Tunnel::new(send, receive))))
            }
        }
    }

    /// Heeds `keep-alive: timeout=N` of a response: the connection is not used in the last second before its server may
    /// close it.
    pub fn heed_keep_alive(&mut self, seconds: u64) {
        if let Kind::Http1(Some(conn)) = &mut self.kind {
            conn.idle_limit = conn.idle_limit.min(Duration::from_secs(seconds.saturating_sub(1)));
        }
    }

    /// Gives the connection back: request and response have passed in order.
    pub fn give_back(mut self) {
        if let Kind::Http1(conn) = &mut self.kind
            && let Some(mut conn) = conn.take()
            && !self.pool.drained.get()
            && !self.host.removed.get()
            && !conn.idle_limit.is_zero()
            && conn.is_reusable()
        {
            conn.idle_since = Instant::now();
            self.pool.keep(conn);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.host.active.set(self.host.active.get().saturating_sub(1));
        if let Kind::Http2(conn, _) = &self.kind {
            conn.active.set(conn.active.get().saturating_sub(1));
            if conn.active.get() == 0 {
                conn.idle_since.set(Instant::now());
            }
            self.pool.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_servers() {
        for (authority, want) in [
            ("a.example", "a.example"),
            ("A.Example:50051", "a.example"),
            ("a.example.:443", "a.example"),
            ("1.2.3.4:80", "1.2.3.4"),
            ("[::1]:80", "[::1]"),
        ] {
            assert_eq!(server_name(authority), want);
        }
    }
}
