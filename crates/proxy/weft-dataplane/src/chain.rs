//! A filter chain in use: what the configuration says, with everything that one worker needs to run it at hand. A
//! connection holds the slot, not the chain: when the chain's filters change, requests on open connections obey the new ones.

use crate::log::AccessLogs;
use crate::worker::Worker;
use http::HeaderValue;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::Notify;
use weft_core::Strng;
use weft_filter::limit::ConnectionCount;
use weft_proxy_config::{FilterChain, HttpConnectionManager, HttpFilter, NetworkFilter, Telemetry, Terminal};
use weft_telemetry::{Counter, Gauge, Shard};

/// A place for a chain, which connections hold.
#[derive(Debug)]
pub(crate) struct ChainSlot {
    current: RefCell<Rc<ChainRuntime>>,
    /// The chain is gone, or differs in what an open connection cannot follow (TLS): connections end as they become idle.
    pub retired: Cell<bool>,
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
    pub fn new(worker: &Worker, chain: &Arc<FilterChain>) -> Rc<Self> {
        let runtime = Rc::new(ChainRuntime::new(worker, chain, None));
        Rc::new(Self { current: RefCell::new(runtime), retired: Cell::new(false), changed: Notify::new() })
    }

    pub fn current(&self) -> Rc<ChainRuntime> {
        self.current.borrow().clone()
    }

    /// Goes on with `next`, when open connections can follow; else the slot is retired.
    pub fn follow(&self, worker: &Worker, next: Option<&Arc<FilterChain>>) {
        let before = self.current();
        match next {
            Some(next) if Arc::ptr_eq(next, &before.chain) => return,
            Some(next) if can_follow(&before.chain, next) => {
                self.current.replace(Rc::new(ChainRuntime::new(worker, next, Some(&before))));
            }
            _ => self.retired.set(true),
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
    fn new(worker: &Worker, chain: &Arc<FilterChain>, before: Option<&ChainRuntime>) -> Self {
        let most = chain.filters.iter().find_map(|filter| match filter {
            NetworkFilter::ConnectionLimit(most) => Some(*most),
            _ => None,
        });
        let limit = most.map(|most| {
            let kept = before.and_then(|b| b.limit.as_ref()).map(|(_, count)| count.clone());
            (most, kept.unwrap_or_else(|| worker.connection_count(chain)))
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
        Self {
            logs: AccessLogs::new(&hcm.access_logs, &worker.sinks),
            stats: HttpStats::new(&worker.shard, &hcm.stat_prefix),
            server: text(&hcm.server_name),
            via: text(&hcm.via),
            telemetry,
            hcm: hcm.clone(),
        }
    }
}

impl HttpStats {
    fn new(shard: &Shard, prefix: &Strng) -> Self {
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
            no_route: counter("envoy_http_no_route"),
        }
    }

    pub fn response(&self, status: u16) {
        if let Some(counter) = self.rq_class.get(usize::from(status / 100).wrapping_sub(1)) {
            counter.inc();
        }
    }
}
