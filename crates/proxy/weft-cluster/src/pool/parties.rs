//! Which pool of an endpoint serves a request: those that serve everybody, and those that serve one client alone, which are found
//! by it and end with its connection. What a pool does is not here.

use super::{Pool, same_kind};
use crate::connect::{Alpn, Source};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Instant;
use weft_proxy_config::{ConnectionLimits, UpstreamTransport};

/// All pools of an endpoint: one for each kind of transport that was asked for, and for each client that has its own.
#[derive(Debug, Default)]
pub struct HostPools {
    common: RefCell<Pools>,
    own: RefCell<HashMap<Party, Pools, foldhash::fast::RandomState>>,
}

type Pools = SmallVec<[Rc<Pool>; 1]>;

/// Whom the connections of a pool serve, when not everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Party {
    /// Connections that name a client serve that client alone.
    pub client: Option<(SocketAddr, SocketAddr)>,
    /// So do connections that come from a client's address.
    pub source: Option<Source>,
}

impl Party {
    pub fn of(client: Option<(SocketAddr, SocketAddr)>, source: Option<Source>) -> Option<Self> {
        (client.is_some() || source.is_some()).then_some(Self { client, source })
    }

    /// It is one connection of a client, not all that come from its address.
    fn is_one_connection(&self) -> bool {
        self.client.is_some() || self.source.is_some_and(|source| source.address.port() != 0)
    }
}

/// The pools that serve one connection of a client and no other: they end with it.
#[derive(Debug, Default)]
pub struct OwnPools(RefCell<Vec<Weak<Pool>>>);

impl OwnPools {
    fn note(&self, pool: &Rc<Pool>) {
        let mut pools = self.0.borrow_mut();
        if pools.len() == pools.capacity() {
            pools.retain(|known| known.strong_count() > 0);
        }
        pools.push(Rc::downgrade(pool));
    }
}

impl Drop for OwnPools {
    fn drop(&mut self) {
        self.0.get_mut().drain(..).filter_map(|pool| pool.upgrade()).for_each(|pool| pool.drain());
    }
}

impl HostPools {
    /// The pool for that transport, made when missing.
    pub(super) fn pool(
        &self,
        transport: &UpstreamTransport,
        alpn: Alpn,
        sni: Option<&str>,
        party: Option<Party>,
        own: Option<&OwnPools>,
    ) -> Rc<Pool> {
        let Some(party) = party else {
            let mut pools = self.common.borrow_mut();
            return find(&pools, transport, alpn, sni).unwrap_or_else(|| {
                let pool = Pool::new(transport, alpn, sni, None);
                pools.push(pool.clone());
                pool
            });
        };
        let mut all = self.own.borrow_mut();
        let pools = all.entry(party).or_default();
        // One that ended with its client's connection; the client has another connection from the same port now.
        pools.retain(|pool| !pool.drained.get());
        find(pools, transport, alpn, sni).unwrap_or_else(|| {
            let pool = Pool::new(transport, alpn, sni, Some(party));
            pools.push(pool.clone());
            if let Some(own) = own.filter(|_| party.is_one_connection()) {
                own.note(&pool);
            }
            pool
        })
    }

    /// Closes what is idle, and lets go of the rest as it becomes idle.
    pub fn drain(&self) {
        let own = std::mem::take(&mut *self.own.borrow_mut());
        let common = std::mem::take(&mut *self.common.borrow_mut());
        own.into_values().flatten().chain(common).for_each(|pool| pool.drain());
    }

    /// Closes what has been idle for too long; forgets pools without connections.
    pub fn sweep(&self, limits: &ConnectionLimits, now: Instant) {
        let keep = |pool: &mut Rc<Pool>| {
            pool.idle.borrow_mut().retain(|conn| !pool.is_stale_http1(conn, limits, now));
            pool.shared.borrow_mut().retain(|conn| !pool.is_stale_http2(conn, limits, now));
            pool.open.get() > 0 || Rc::strong_count(pool) > 1
        };
        self.common.borrow_mut().retain(keep);
        self.own.borrow_mut().retain(|_, pools| {
            pools.retain(keep);
            !pools.is_empty()
        });
    }
}

/// The pool for that transport; it follows changes of secrets.
fn find(pools: &Pools, transport: &UpstreamTransport, alpn: Alpn, sni: Option<&str>) -> Option<Rc<Pool>> {
    let fits = |pool: &&Rc<Pool>| {
        pool.alpn == alpn && pool.sni.as_deref() == sni && same_kind(&pool.transport.borrow(), transport)
    };
    let pool = pools.iter().find(fits)?;
    pool.follow(transport);
    Some(pool.clone())
}

#[cfg(test)]
mod tests {
    use super::super::{DEFAULT_IDLE, OWN_IDLE};
    use super::*;
    use crate::limits;

    #[test]
    fn pools_of_one_client() {
        let (pools, limits) = (HostPools::default(), limits::tests::limits(limits::tests::thresholds(9)));
        let source = |port: u16| Some(Source { address: ([192, 0, 2, 1], port).into(), mark: 0 });
        let get = |source: Option<Source>, own: Option<&OwnPools>| {
            pools.pool(&UpstreamTransport::Plain, Alpn::Http1, None, Party::of(None, source), own)
        };
        let common = get(None, None);
        assert_eq!(common.idle_limit(&limits), DEFAULT_IDLE);
        let clients: Vec<(OwnPools, Rc<Pool>)> = (1..=1000)
            .map(|port| {
                let own = OwnPools::default();
                let pool = get(source(port), Some(&own));
                (own, pool)
            })
            .collect();
        // Not in the way of others, nor of each other.
        assert_eq!((pools.common.borrow().len(), pools.own.borrow().len()), (1, 1000));
        assert!(pools.own.borrow().values().all(|pools| pools.len() == 1));
        for (port, (own, pool)) in (1..).zip(&clients) {
            assert!(Rc::ptr_eq(pool, &get(source(port), Some(own))) && pool.idle_limit(&limits) == OWN_IDLE);
        }
        // A client's connection ends: what served it alone does too, and another one from that port gets its own.
        let first = clients[0].1.clone();
        drop(clients);
        assert!(first.drained.get() && !common.drained.get());
        let own = OwnPools::default();
        let second = get(source(1), Some(&own));
        assert!(!second.drained.get() && Rc::ptr_eq(&second, &get(source(1), Some(&own))));
        // What serves all connections from an address does not end with one of them.
        let shared = get(source(0), Some(&own));
        drop((own, first));
        assert!(second.drained.get() && !shared.drained.get());
        drop((second, common));
        pools.sweep(&limits, Instant::now());
        assert_eq!((pools.common.borrow().len(), pools.own.borrow().len()), (0, 1));
        pools.drain();
        assert!(shared.drained.get() && pools.own.borrow().is_empty());
    }
}
