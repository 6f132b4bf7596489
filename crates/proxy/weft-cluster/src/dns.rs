//! Names to addresses, for clusters that are found by DNS: resolved on the control thread, refreshed while somebody watches,
//! kept when a later lookup fails.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use weft_core::Strng;

/// Lookups under way at once.
const MAX_LOOKUPS: usize = 16;
/// Addresses kept of one name.
const MAX_ADDRESSES: usize = 256;
/// Shortest time between two lookups of a name.
const MIN_REFRESH: Duration = Duration::from_secs(1);
/// Longest time a lookup may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// What is known of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolution {
    /// Addresses, sorted.
    pub addresses: Vec<IpAddr>,
    /// At least one lookup is done.
    pub done: bool,
}

/// Resolves names for all workers of a process.
#[derive(Debug)]
pub struct Resolver {
    runtime: tokio::runtime::Handle,
    names: Mutex<HashMap<Strng, watch::Sender<Resolution>>>,
    permits: Arc<Semaphore>,
}

impl Resolver {
    /// A resolver whose lookups run on `runtime`.
    pub fn new(runtime: tokio::runtime::Handle) -> Arc<Self> {
        Arc::new(Self { runtime, names: Mutex::default(), permits: Arc::new(Semaphore::new(MAX_LOOKUPS)) })
    }

    /// Watches a name. The first watcher starts its lookups; they end when nobody watches any more. An IP address is
    /// resolved already.
    pub fn watch(self: &Arc<Self>, name: &str, refresh: Duration) -> watch::Receiver<Resolution> {
        if let Ok(ip) = name.trim_matches(['[', ']']).parse() {
            return watch::channel(Resolution { addresses: vec![ip], done: true }).1;
        }
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = names.get(name) {
            return sender.subscribe();
        }
        let key = Strng::from(name);
        let (sender, receiver) = watch::channel(Resolution::default());
        names.insert(key.clone(), sender.clone());
        let this = self.clone();
        self.runtime.spawn(async move { this.refresh(key, sender, refresh.max(MIN_REFRESH)).await });
        receiver
    }

    async fn refresh(self: Arc<Self>, name: Strng, sender: watch::Sender<Resolution>, every: Duration) {
        loop {
            let found = self.lookup(&name).await;
            sender.send_if_modified(|known| {
                let addresses = match found {
                    Ok(addresses) => addresses,
                    Err(error) => {
                        tracing::debug!(%name, %error, "name not resolved; keeping what is known");
                        known.addresses.clone()
                    }
                };
                let next = Resolution { addresses, done: true };
                let changed = *known != next;
                *known = next;
                changed
            });
            tokio::time::sleep(every).await;
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            if sender.receiver_count() == 0 {
                names.remove(&name);
                return;
            }
        }
    }

    async fn lookup(&self, name: &str) -> std::io::Result<Vec<IpAddr>> {
        let _permit = self.permits.acquire().await.map_err(std::io::Error::other)?;

        let host = format!("{name}:0");
        let found = tokio::time::timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host(host)).await??;
        let mut addresses: Vec<IpAddr> = found.map(|a| a.ip()).take(MAX_ADDRESSES).collect();
        addresses.sort_unstable();
        addresses.dedup();
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_addresses() {
        let resolver = Resolver::new(tokio::runtime::Handle::current());
        assert_eq!(resolver.watch("10.1.2.3", MIN_REFRESH).borrow().addresses, ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        let mut local = resolver.watch("localhost", MIN_REFRESH);
        let known = local.wait_for(|r| r.done).await.unwrap().clone();
        assert!(known.addresses.iter().all(IpAddr::is_loopback) && !known.addresses.is_empty());
        let mut nowhere = resolver.watch("no-such-name.invalid", MIN_REFRESH);
        assert!(nowhere.wait_for(|r| r.done).await.unwrap().addresses.is_empty());
    }
}
