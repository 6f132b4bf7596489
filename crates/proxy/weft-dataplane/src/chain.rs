//! A filter chain in use: what the configuration says, with everything that one worker needs to run it at hand. A
//! connection holds the slot, not the chain: when the chain's filters change, requests on open connections obey the new ones.

use crate::http::ratelimit::LocalStats;
use crate::http::trace::{SharedTracer, Tracer};
use crate::log::AccessLogs;
use crate::worker::Worker;
use http::HeaderValue;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;
use tokio::time::Instant;
use weft_core::Strng;
use weft_filter::limit::ConnectionCount;
use weft_proxy_config::{FilterChain, HttpConnectionManager, HttpFilter, NetworkFilter, Telemetry, Terminal};
use weft_telemetry::{Counter, Gauge, Shard};

/// A place for a chain, which connections hold.
#[derive(Debug)]
pub(crate) struct ChainSlot {
    current: RefCell<Rc<ChainRuntime>>,
    /// The chain is gone, or differs in what an open connection cannot follow (TLS): connections end as they become idle, and
    /// at this time in any case.
    ends_at: Cell<Option<Instant>>,
    /// Name of the listener.
    listener: Strng,
    /// Rung after each change.
    pub changed: Notify,
}

/// A chain and what one worker needs for it.
#[derive(Debug)]
pub(crate) struct ChainRuntime {
    pub chain: Arc<FilterChain>,
    /// For HTTP chains.
    pub http: Option<Rc<HttpRuntime>>,
    /// For TCP chains.
    pub tcp: Option<TcpRuntime>,
    /// Open connections, when the chain limits them.
    pub limit: Option<(u64, ConnectionCount)>,
}

/// A connection manager and what one worker needs for it.
#[derive(Debug)]
pub(crate) struct HttpRuntime {
    pub hcm: Arc<HttpConnectionManager>,
    pub logs: AccessLogs,
    pub stats: HttpStats,
    pub server: Option<HeaderValue>,
    pub via: Option<HeaderValue>,
    /// Settings of the standard metrics, when a filter asks for them.
    pub telemetry: Option<Arc<Telemetry>>,
    /// Makes spans, when the configuration says where they go.
    pub tracer: SharedTracer,
    /// Counters of rate limits, by prefix.
    local_limits: RefCell<Vec<(Strng, Rc<LocalStats>)>>,
}

/// Counters of a connection manager.
#[derive(Debug)]
pub(crate) struct HttpStats {
    pub rq_total: Counter,
    pub rq_active: Gauge,
    pub rq_class: [Counter; 5],
    pub rq_timeout: Counter,
    pub rq_idle_timeout: Counter,
    pub cx_total: Counter,
    pub cx_active: Gauge,
    pub cx_http1_total: Counter,
    pub cx_http2_total: Counter,
    pub cx_upgrades_total: Counter,
    pub cx_upgrades_active: Gauge,
    pub cx_rx_bytes: Counter,
    pub cx_tx_bytes: Counter,
    pub rbac_allowed: Counter,
    pub rbac_denied: Counter,
    pub rbac_shadow_denied: Counter,
    pub jwt_allowed: Counter,
    pub jwt_denied: Counter,
    pub ext_authz_ok: Counter,
    pub ext_authz_denied: Counter,
    pub ext_authz_error: Counter,
    pub ext_authz_failure_mode_allowed: Counter,
    /// Outcomes of dry runs: of ALLOW and of DENY policies, allowed and denied.
    dry_run: Option<[[Counter; 2]; 2]>,
    pub no_route: Counter,
}

/// A TCP proxy's counters and logs.
#[derive(Debug)]
pub(crate) struct TcpRuntime {
    pub logs: AccessLogs,
    pub cx_total: Counter,
    pub cx_no_route: Counter,
    pub rx_bytes: Counter,
    pub tx_bytes: Counter,
    pub telemetry: Option<Arc<Telemetry>>,
}

impl ChainSlot {
    pub fn new(worker: &Worker, listener: &Strng, chain: &Arc<FilterChain>) -> Rc<Self> {
        let runtime = Rc::new(ChainRuntime::new(worker, listener, chain, None));
        Rc::new(Self {
            current: RefCell::new(runtime),
            ends_at: Cell::new(None),
            listener: listener.clone(),
            changed: Notify::new(),
        })
    }

    pub fn current(&self) -> Rc<ChainRuntime> {
        self.current.borrow().clone()
    }

    /// `chain` is the one in force.
    pub fn is_current(&self, chain: &Rc<ChainRuntime>) -> bool {
        Rc::ptr_eq(&self.current.borrow(), chain)
    }

    /// When the last connection ends, once the chain is gone.
    pub fn ends_at(&self) -> Option<Instant> {
        self.ends_at.get()
    }

    /// The chain is gone.
    pub fn is_retired(&self) -> bool {
        self.ends_at.get().is_some()
    }

    /// Goes on with `next`, when open connections can follow; else the slot is retired.
    pub fn follow(&self, worker: &Worker, next: Option<&Arc<FilterChain>>) {
        let before = self.current();
        match next {
            Some(next) if Arc::ptr_eq(next, &before.chain) => return,
            Some(next) if can_follow(&before.chain, next) => {
                self.current.replace(Rc::new(ChainRuntime::new(worker, &self.listener, next, Some(&before))));
            }
            _ if self.is_retired() => return,
            _ => self.ends_at.set(Some(Instant::now() + worker.retired_time())),
        }
        self.changed.notify_waiters();
    }
}

/// Open connections can go on under `next`: TLS asks for the same (certificates may differ), and the protocol stays.
fn can_follow(chain: &FilterChain, next: &FilterChain) -> bool {
    let same_tls = match (&chain.tls, &next.tls) {
        (None, None) => true,
        (Some(a), Some(b)) => a.spec == b.spec,
        _ => false,
    };
    let same_kind = matches!(
        (&chain.terminal, &next.terminal),
        (Terminal::Http(_), Terminal::Http(_)) | (Terminal::Tcp(_), Terminal::Tcp(_))
    );
    same_tls && same_kind
}

impl ChainRuntime {
    fn new(worker: &Worker, listener: &Strng, chain: &Arc<FilterChain>, before: Option<&ChainRuntime>) -> Self {
        let most = chain.filters.iter().find_map(|filter| match filter {
            NetworkFilter::ConnectionLimit(most) => Some(*most),
            _ => None,
        });
        let limit = most.map(|most| {
            let kept = before.and_then(|b| b.limit.as_ref()).map(|(_, count)| count.clone());
            (most, kept.unwrap_or_else(|| worker.connection_count(listener, chain)))
        });
        let network_telemetry = chain.filters.iter().find_map(|filter| match filter {
            NetworkFilter::Telemetry(telemetry) => Some(telemetry.clone()),
            _ => None,
        });
        let (http, tcp) = match &chain.terminal {
            Terminal::Http(hcm) => (Some(Rc::new(HttpRuntime::new(worker, hcm))), None),
            Terminal::Tcp(tcp) => {
                let label = [("tcp_prefix", tcp.stat_prefix.clone())];
                let counter = |name: &'static str| worker.shard.counter(name, &label);
                let runtime = TcpRuntime {
                    logs: AccessLogs::new(&tcp.access_logs, &worker.sinks),
                    cx_total: counter("envoy_tcp_downstream_cx_total"),
                    cx_no_route: counter("envoy_tcp_downstream_cx_no_route"),
                    rx_bytes: counter("envoy_tcp_downstream_cx_rx_bytes_total"),
                    tx_bytes: counter("envoy_tcp_downstream_cx_tx_bytes_total"),
                    telemetry: network_telemetry,
                };
                (None, Some(runtime))
            }
        };
        Self { chain: chain.clone(), http, tcp, limit }
    }
}

impl HttpRuntime {
    fn new(worker: &Worker, hcm: &Arc<HttpConnectionManager>) -> Self {
        let text = |text: &Option<Strng>| text.as_ref().and_then(|t| HeaderValue::from_str(t).ok());
        let telemetry = hcm.filters.iter().find_map(|filter| match filter {
            HttpFilter::Telemetry(telemetry) => Some(telemetry.clone()),
            _ => None,
        });
        let dry_runs = hcm.filters.iter().any(|filter| match filter {
            HttpFilter::Rbac(rbac) => rbac.shadow.is_some() && DRY_RUNS.iter().any(|(p, _)| *p == rbac.shadow_prefix),
            _ => false,
        });
        Self {
            logs: AccessLogs::new(&hcm.access_logs, &worker.sinks),
            stats: HttpStats::new(&worker.shard, &hcm.stat_prefix, dry_runs),
            server: text(&hcm.server_name),
            via: text(&hcm.via),
            telemetry,
            tracer: Tracer::new(worker, hcm).map(Rc::new),
            local_limits: RefCell::default(),
            hcm: hcm.clone(),
        }
    }

    /// The counters of rate limits of that prefix.
    pub fn local_limits(&self, shard: &Shard, prefix: &Strng) -> Rc<LocalStats> {
        let mut known = self.local_limits.borrow_mut();
        if let Some((_, stats)) = known.iter().find(|(name, _)| name == prefix) {
            return stats.clone();
        }
        let stats = Rc::new(LocalStats::new(shard, prefix));
        known.push((prefix.clone(), stats.clone()));
        stats
    }
}

/// Prefixes of the shadow rules that are dry runs, and the action of their policies.
const DRY_RUNS: [(&str, &str); 2] = [("istio_dry_run_allow_", "allow"), ("istio_dry_run_deny_", "deny")];
/// Most names of metrics made from names of connection managers; more share one.
const MAX_NAMES: usize = 1024;

/// `envoy_http_PREFIX_rbac`: dashboards have the connection manager in the metric's name. Names live as long as the process.
fn dry_run_metric(prefix: &str) -> &'static str {
    static NAMES: Mutex<BTreeMap<String, &'static str>> = Mutex::new(BTreeMap::new());
    let clean = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name = format!("envoy_http_{}_rbac", prefix.chars().map(clean).collect::<String>());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(&name) {
        return known;
    }
    if names.len() >= MAX_NAMES {
        return "envoy_http_rbac_dry_run";
    }
    let leaked: &'static str = Box::leak(name.clone().into_boxed_str());
    names.insert(name, leaked);
    leaked
}

impl HttpStats {
    fn new(shard: &Shard, prefix: &Strng, dry_runs: bool) -> Self {
        let label = [("http_conn_manager_prefix", prefix.clone())];
        let counter = |name: &'static str| shard.counter(name, &label);
        let gauge = |name: &'static str| shard.gauge(name, &label);
        let class = |class: &str| {
            let labels = [("http_conn_manager_prefix", prefix.clone()), ("response_code_class", Strng::from(class))];
            shard.counter("envoy_http_downstream_rq_xx", &labels)
        };
        Self {
            rq_total: counter("envoy_http_downstream_rq_total"),
            rq_active: gauge("envoy_http_downstream_rq_active"),
            rq_class: [class("1xx"), class("2xx"), class("3xx"), class("4xx"), class("5xx")],
            rq_timeout: counter("envoy_http_downstream_rq_timeout"),
            rq_idle_timeout: counter("envoy_http_downstream_rq_idle_timeout"),
            cx_total: counter("envoy_http_downstream_cx_total"),
            cx_active: gauge("envoy_http_downstream_cx_active"),
            cx_http1_total: counter("envoy_http_downstream_cx_http1_total"),
            cx_http2_total: counter("envoy_http_downstream_cx_http2_total"),
            cx_upgrades_total: counter("envoy_http_downstream_cx_upgrades_total"),
            cx_upgrades_active: gauge("envoy_http_downstream_cx_upgrades_active"),
            cx_rx_bytes: counter("envoy_http_downstream_cx_rx_bytes_total"),
            cx_tx_bytes: counter("envoy_http_downstream_cx_tx_bytes_total"),
            rbac_allowed: counter("envoy_http_rbac_allowed"),
            rbac_denied: counter("envoy_http_rbac_denied"),
            rbac_shadow_denied: counter("envoy_http_rbac_shadow_denied"),
            jwt_allowed: counter("envoy_http_jwt_authn_allowed"),
            jwt_denied: counter("envoy_http_jwt_authn_denied"),
            ext_authz_ok: counter("envoy_http_ext_authz_ok"),
            ext_authz_denied: counter("envoy_http_ext_authz_denied"),
            ext_authz_error: counter("envoy_http_ext_authz_error"),
            ext_authz_failure_mode_allowed: counter("envoy_http_ext_authz_failure_mode_allowed"),
            dry_run: dry_runs.then(|| {
                let name = dry_run_metric(prefix);
                DRY_RUNS.map(|(_, action)| {
                    ["allowed", "denied"].map(|result| {
                        let label = |name, value| (name, Strng::from(value));
                        let action = label("authz_dry_run_action", action);
                        shard.counter(name, &[action, label("authz_dry_run_result", result)])
                    })
                })
            }),
            no_route: counter("envoy_http_no_route"),
        }
    }

    /// Counts the outcome of a dry run.
    pub fn dry_run(&self, prefix: &str, allowed: bool) {
        let place = DRY_RUNS.iter().position(|(known, _)| *known == prefix);
        if let (Some(counters), Some(place)) = (&self.dry_run, place) {
            counters[place][usize::from(!allowed)].inc();
        }
    }

    pub fn response(&self, status: u16) {
        if let Some(counter) = self.rq_class.get(usize::from(status / 100).wrapping_sub(1)) {
            counter.inc();
        }
    }
}
