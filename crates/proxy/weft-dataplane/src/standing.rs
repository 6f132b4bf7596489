//! Whether an open connection may stay: its filter chain is still there, its listener would still take such a connection, and
//! the chain's authorization, as it is now, lets it in. Asked again after each change of the configuration, so that policies
//! bind connections that are open already. What an authorizer outside the proxy said once stands.

use crate::accept::Way;
use crate::chain::{ChainRuntime, ChainSlot};
use crate::listener::LiveListener;
use crate::worker::Worker;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use tokio::time::Instant;
use weft_core::Strng;
use weft_proxy_config::{ConnectionFacts, Transport};

/// Why a connection must end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Its filter chain is gone, or there is none for its like any more, and so is the time left to it.
    Removed,
    /// Authorization now says no; the details word.
    Denied(String),
}

impl End {
    /// As access logs have it.
    pub fn details(self) -> Cow<'static, str> {
        match self {
            End::Removed => Cow::Borrowed("filter_chain_removed"),
            End::Denied(details) => Cow::Owned(details),
        }
    }
}

/// What a connection's filter chain was chosen by.
#[derive(Debug)]
pub(crate) struct Met {
    pub way: Way,
    pub destination: SocketAddr,
    pub source: SocketAddr,
    pub peer: IpAddr,
    pub server_name: Option<Strng>,
    pub transport: Transport,
    pub protocols: Vec<Strng>,
}

impl Met {
    /// The same, to ask a listener with.
    pub fn facts(&self) -> ConnectionFacts<'_> {
        ConnectionFacts {
            destination: self.destination,
            source: self.source,
            server_name: self.server_name.as_deref(),
            transport: self.transport,
            application_protocols: &self.protocols,
            direct_source: self.peer,
        }
    }
}

/// A connection's place in the configuration; it and its requests share it.
#[derive(Debug)]
pub(crate) struct Seat {
    pub slot: Rc<ChainSlot>,
    met: Met,
    /// The listener as it was when it last had a chain for such connections.
    listener: RefCell<Rc<LiveListener>>,
    /// It has none any more: when the connection ends, though its own chain is there for others.
    unwanted: Cell<Option<Instant>>,
}

impl Seat {
    pub fn new(slot: Rc<ChainSlot>, met: Met, listener: Rc<LiveListener>) -> Rc<Self> {
        Rc::new(Self { slot, met, listener: RefCell::new(listener), unwanted: Cell::new(None) })
    }

    /// What its filter chain was chosen by.
    pub fn facts(&self) -> ConnectionFacts<'_> {
        self.met.facts()
    }

    /// The listener as it is, or was when it was there last.
    pub fn listener(&self) -> Rc<LiveListener> {
        self.listener.borrow().clone()
    }

    /// When it ends in any case; `None` while there is no reason for it. The first reason counts: its connection is not looked
    /// at again when that time has passed.
    pub fn ends_at(&self) -> Option<Instant> {
        self.unwanted.get().or(self.slot.ends_at())
    }

    /// Looks at what the listener has become: the connection has its time to go when no chain would take it now. (That another
    /// chain would is no reason: it may be one that came with a new service.)
    pub fn follow(&self, worker: &Worker) {
        if self.ends_at().is_some() {
            return;
        }
        let Some(now) = self.met.way.listener(worker) else { return };
        if Rc::ptr_eq(&now, &self.listener.borrow()) {
            return;
        }
        if now.config.find_chain(&self.met.facts()).is_none() {
            self.unwanted.set(Some(Instant::now() + worker.retired_time()));
            self.slot.changed.notify_waiters();
        }
        self.listener.replace(now);
    }
}

/// The permission of an open connection, or of a request that became a tunnel.
#[derive(Debug)]
pub(crate) struct Standing {
    pub seat: Rc<Seat>,
    /// The chain that let it in last; `None` = to be asked.
    judged: RefCell<Option<Rc<ChainRuntime>>>,
}

impl Standing {
    /// Of one that `judged` let in.
    pub fn new(seat: &Rc<Seat>, judged: Option<Rc<ChainRuntime>>) -> Self {
        Self { seat: seat.clone(), judged: RefCell::new(judged) }
    }

    /// The chain is another than the one that let it in.
    pub fn is_in_question(&self) -> bool {
        !self.judged.borrow().as_ref().is_some_and(|judged| self.seat.slot.is_current(judged))
    }

    /// Why the connection must end now, if it must. `denied` asks a chain, and returns its details word when it says no; a
    /// chain that has let the connection in is not asked twice.
    pub fn now(&self, denied: impl Fn(&ChainRuntime) -> Option<String>) -> Option<End> {
        if let Some(ends_at) = self.seat.ends_at()
            && Instant::now() >= ends_at
        {
            return Some(End::Removed);
        }
        // Also of a chain that is gone: its last rules may have come just before.
        if !self.is_in_question() {
            return None;
        }
        let current = self.seat.slot.current();
        if let Some(details) = denied(&current) {
            return Some(End::Denied(details));
        }
        self.judged.replace(Some(current));
        None
    }

    /// Returns when the connection must end.
    pub async fn ended(&self, denied: impl Fn(&ChainRuntime) -> Option<String>) -> End {
        loop {
            // Listens before it looks: a change between the two would otherwise be missed.
            let mut changed = pin!(self.seat.slot.changed.notified());
            changed.as_mut().enable();
            if let Some(end) = self.now(&denied) {
                return end;
            }
            match self.seat.ends_at() {
                Some(ends_at) => tokio::select! {
                    () = tokio::time::sleep_until(ends_at) => {}
                    () = changed => {}
                },
                None => changed.await,
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::listener::Listeners;
    use std::sync::Arc;
    use std::time::Duration;
    use weft_proxy_config::bootstrap::{apply_static, load_bootstrap};
    use weft_proxy_config::{ConfigBuilder, NetworkFilter, ProxySnapshot};

    const TCP: &str = r#"{name: t, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: a}}"#;

    /// A listener `l` whose chain has these network filters; none without them.
    pub(crate) fn config(filters: &str) -> Arc<ProxySnapshot> {
        let listener = match filters {
            "" => String::new(),
            _ => format!(
                "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}, filter_chains: [{{filters: [{filters}]}}]}}"
            ),
        };
        let bootstrap = load_bootstrap(&format!("static_resources: {{listeners: [{listener}]}}")).unwrap();
        let mut builder = ConfigBuilder::default();
        assert_eq!(apply_static(&bootstrap, &mut builder), Vec::<String>::new());
        builder.snapshot()
    }

    /// The place of a connection under `config`, its listener, and all listeners.
    pub(crate) fn seat(worker: &Worker, config: &ProxySnapshot) -> (Rc<Seat>, Rc<LiveListener>, Listeners) {
        let listeners = Listeners::default().follow(worker, config);
        let listener = listeners.named(&"l".into()).unwrap().clone();
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let met = Met {
            way: Way::to(address),
            destination: address,
            source: address,
            peer: address.ip(),
            server_name: None,
            transport: Transport::RawBuffer,
            protocols: Vec::new(),
        };
        let slot = listener.slot(worker, &met.facts()).unwrap();
        (Seat::new(slot, met, listener.clone()), listener, listeners)
    }

    #[tokio::test]
    async fn the_last_rules_of_a_chain_that_is_gone_hold() {
        let worker = Worker::idle(Duration::from_secs(60));
        let (seat, _, listeners) = seat(&worker, &config(TCP));
        let standing = Standing::new(&seat, Some(seat.slot.current()));
        let denied = |chain: &ChainRuntime| {
            let is_rule = |filter: &NetworkFilter| matches!(filter, NetworkFilter::Rbac(_));
            chain.chain.filters.iter().any(is_rule).then(|| "by a rule".to_string())
        };
        let rule = r#"{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: t, rules: {action: DENY}}}"#;
        // Both before the connection is looked at.
        let listeners = listeners.follow(&worker, &config(&format!("{rule}, {TCP}")));
        listeners.follow(&worker, &config(""));
        assert!(seat.slot.is_retired());
        assert_eq!(standing.now(denied), Some(End::Denied("by a rule".into())));
    }

    #[tokio::test]
    async fn the_first_reason_to_end_counts() {
        let worker = Worker::idle(Duration::from_secs(60));
        let (seat, _, listeners) = seat(&worker, &config(TCP));
        let soon = Instant::now() + Duration::from_secs(1);
        seat.unwanted.set(Some(soon));
        listeners.follow(&worker, &config(""));
        assert!(seat.slot.is_retired());
        assert_eq!(seat.ends_at(), Some(soon));
    }
}
