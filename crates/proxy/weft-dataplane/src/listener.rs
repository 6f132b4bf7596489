//! Listeners of one worker: which one a connection belongs to, which filter chain, and what happens to open connections when
//! the configuration changes.

use crate::chain::ChainSlot;
use crate::log::AccessLogs;
use crate::worker::Worker;
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use weft_core::Strng;
use weft_filter::limit::{ConnectionCount, ConnectionPlace};
use weft_proxy_config::{ConnectionFacts, FilterChain, ListenAddress, Listener, ProxySnapshot};
use weft_telemetry::{Counter, Gauge};

/// A listener in use.
#[derive(Debug)]
pub(crate) struct LiveListener {
    pub config: Arc<Listener>,
    /// Slots of chains that were used, by the chain's address in memory; the slot keeps the chain alive.
    slots: RefCell<HashMap<usize, Rc<ChainSlot>, foldhash::fast::RandomState>>,
    pub stats: ListenerStats,
    logs: OnceCell<AccessLogs>,
    /// Open connections, when the listener limits them.
    open: OnceCell<ConnectionCount>,
}

/// Counters of a listener.
#[derive(Debug, Clone)]
pub(crate) struct ListenerStats {
    pub cx_total: Counter,
    pub cx_active: Gauge,
    pub cx_overflow: Counter,
    pub cx_global_overflow: Counter,
    pub no_filter_chain_match: Counter,
    pub ssl_handshake: Counter,
    pub ssl_connection_error: Counter,
    pub rbac_allowed: Counter,
    pub rbac_denied: Counter,
}

/// The listeners of one snapshot.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    by_name: HashMap<Strng, Rc<LiveListener>, foldhash::fast::RandomState>,
    /// Listeners by what they listen on, also those that open no socket.
    by_address: HashMap<ListenAddress, Rc<LiveListener>, foldhash::fast::RandomState>,
}

impl LiveListener {
    /// Logs of connections that match no filter chain.
    pub fn logs(&self, worker: &Worker) -> &AccessLogs {
        self.logs.get_or_init(|| AccessLogs::new(&self.config.access_logs, &worker.sinks))
    }

    /// A place under the listener's own limit: `Some(None)` when it has none, `None` when it is reached.
    pub fn place(&self, worker: &Worker) -> Option<Option<ConnectionPlace>> {
        let Some(most) = self.config.max_connections else { return Some(None) };
        let open = self.open.get_or_init(|| worker.listener_count(&self.config.name));
        open.take(u64::from(most)).map(Some)
    }

    /// The slot of the chain for a connection; `None` when no chain matches.
    pub fn slot(&self, worker: &Worker, facts: &ConnectionFacts<'_>) -> Option<Rc<ChainSlot>> {
        let chain = self.config.find_chain(facts)?;
        let key = Arc::as_ptr(chain) as usize;
        if let Some(slot) = self.slots.borrow().get(&key) {
            return Some(slot.clone());
        }
        let slot = ChainSlot::new(worker, &self.config.name, chain);
        self.slots.borrow_mut().insert(key, slot.clone());
        Some(slot)
    }
}

impl Listeners {
    /// The listeners of `snapshot`. Those that did not change stay; of those that changed, slots go on with the chain that
    /// took the place of theirs; slots of chains that are gone are retired.
    pub fn follow(&self, worker: &Worker, snapshot: &ProxySnapshot) -> Self {
        let mut next = Listeners::default();
        for (name, config) in &snapshot.listeners {
            let live = match self.by_name.get(name) {
                Some(live) if Arc::ptr_eq(&live.config, config) => live.clone(),
                Some(live) => Rc::new(live.changed(worker, config)),
                None => Rc::new(LiveListener {
                    config: config.clone(),
                    slots: RefCell::default(),
                    stats: ListenerStats::new(worker, config),
                    logs: OnceCell::new(),
                    open: OnceCell::new(),
                }),
            };
            for address in &config.addresses {
                next.by_address.entry(address.clone()).or_insert_with(|| live.clone());
            }
            next.by_name.insert(name.clone(), live);
        }
        for (name, live) in &self.by_name {
            if !next.by_name.contains_key(name) {
                live.slots.borrow().values().for_each(|slot| slot.follow(worker, None));
            }
        }
        next
    }

    /// The listener of that name.
    pub fn named(&self, name: &Strng) -> Option<&Rc<LiveListener>> {
        self.by_name.get(name)
    }

    /// The listener that accepts on `address`.
    pub fn at(&self, address: &ListenAddress) -> Option<&Rc<LiveListener>> {
        self.by_address.get(address)
    }

    /// The listener for a connection that was redirected from `destination`: its address exactly, then its port on any
    /// address.
    pub fn for_destination(&self, destination: SocketAddr) -> Option<&Rc<LiveListener>> {
        let any: IpAddr = match destination {
            SocketAddr::V4(_) => [0; 4].into(),
            SocketAddr::V6(_) => [0u16; 8].into(),
        };
        let exact = ListenAddress::Tcp(destination);
        self.by_address
            .get(&exact)
            .or_else(|| self.by_address.get(&ListenAddress::Tcp(SocketAddr::new(any, destination.port()))))
    }
}

impl LiveListener {
    fn changed(&self, worker: &Worker, config: &Arc<Listener>) -> Self {
        let mut slots: HashMap<usize, Rc<ChainSlot>, foldhash::fast::RandomState> = HashMap::default();
        for slot in self.slots.borrow().values() {
            let before = slot.current();
            let next = successor(&before.chain, config);
            slot.follow(worker, next);
            if let Some(next) = next
                && !slot.is_retired()
            {
                slots.insert(Arc::as_ptr(next) as usize, slot.clone());
            }
        }
        Self {
            config: config.clone(),
            slots: RefCell::new(slots),
            stats: self.stats.clone(),
            logs: OnceCell::new(),
            open: self.open.clone(),
        }
    }
}

/// The chain that takes the place of `chain`: the same object, else one that matches the same connections.
fn successor<'l>(chain: &Arc<FilterChain>, listener: &'l Listener) -> Option<&'l Arc<FilterChain>> {
    let all = || listener.chains.iter().chain(&listener.default_chain);
    all().find(|next| Arc::ptr_eq(next, chain)).or_else(|| all().find(|next| next.matcher == chain.matcher))
}

impl ListenerStats {
    fn new(worker: &Worker, config: &Listener) -> Self {
        let address = match config.addresses.first() {
            Some(ListenAddress::Tcp(address)) => address.to_string().replace([':'], "_"),
            Some(ListenAddress::Unix(path)) => path.to_string(),
            None => config.name.to_string(),
        };
        let label = [("listener_address", Strng::from(address))];
        let counter = |name: &'static str| worker.shard.counter(name, &label);
        Self {
            cx_total: counter("envoy_listener_downstream_cx_total"),
            cx_active: worker.shard.gauge("envoy_listener_downstream_cx_active", &label),
            cx_overflow: counter("envoy_listener_downstream_cx_overflow"),
            cx_global_overflow: counter("envoy_listener_downstream_global_cx_overflow"),
            no_filter_chain_match: counter("envoy_listener_no_filter_chain_match"),
            ssl_handshake: counter("envoy_listener_ssl_handshake"),
            ssl_connection_error: counter("envoy_listener_ssl_connection_error"),
            rbac_allowed: counter("envoy_tcp_rbac_allowed"),
            rbac_denied: counter("envoy_tcp_rbac_denied"),
        }
    }
}
