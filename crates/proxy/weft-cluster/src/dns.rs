//! Names to addresses, for clusters that are found by DNS: resolved on the control thread, refreshed while somebody watches,
//! kept when a later lookup fails.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use weft_core::Strng;

/// Lookups under way at once, and as many again for names that requests brought.
const MAX_LOOKUPS: usize = 16;
/// Names kept that requests brought; as Envoy's DNS cache (`max_hosts`).
const MAX_DYNAMIC: usize = 1024;
/// How long such a name stays resolved.
const DYNAMIC_REFRESH: Duration = Duration::from_secs(60);
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
    /// Of the configuration.
    configured: Names,
    /// That requests brought: whoever may send them must neither fill the process with names nor hold up the others' lookups.
    dynamic: Names,
}

/// Names that are looked up.
#[derive(Debug)]
struct Names {
    known: Mutex<HashMap<Strng, watch::Sender<Resolution>>>,
    permits: Arc<Semaphore>,
    most: usize,
}

impl Resolver {
    /// A resolver whose lookups run on `runtime`.
    pub fn new(runtime: tokio::runtime::Handle) -> Arc<Self> {
        Arc::new(Self { runtime, configured: Names::new(usize::MAX), dynamic: Names::new(MAX_DYNAMIC) })
    }

    /// Watches a name. The first watcher starts its lookups; they end when nobody watches any more. An IP address is
    /// resolved already.
    pub fn watch(self: &Arc<Self>, name: &str, refresh: Duration) -> watch::Receiver<Resolution> {
        if let Some(known) = literal(name) {
            return known;
        }
        let begin = |key: Strng, sender: watch::Sender<Resolution>| {
            let this = self.clone();
            self.runtime.spawn(async move { this.configured.refresh(key, sender, refresh.max(MIN_REFRESH)).await });
        };
        // There is no bound, so there is a receiver.
        self.configured.watch(name, begin).unwrap_or_else(|| watch::channel(Resolution::default()).1)
    }

    /// Watches a name that a request brought. `None` when there are too many of them.
    pub fn watch_dynamic(self: &Arc<Self>, name: &str) -> Option<watch::Receiver<Resolution>> {
        literal(name).or_else(|| {
            self.dynamic.watch(name, |key, sender| {
                let this = self.clone();
                self.runtime.spawn(async move { this.dynamic.refresh_while_wanted(key, sender).await });
            })
        })
    }
}

/// An IP address is resolved already.
fn literal(name: &str) -> Option<watch::Receiver<Resolution>> {
    let ip = name.trim_matches(['[', ']']).parse().ok()?;
    Some(watch::channel(Resolution { addresses: vec![ip], done: true }).1)
}

impl Names {
    fn new(most: usize) -> Self {
        Self { known: Mutex::default(), permits: Arc::new(Semaphore::new(MAX_LOOKUPS)), most }
    }

    /// Watches a name; `begin` starts its lookups when nobody watched it before. `None` when there are too many names.
    fn watch(
        &self,
        name: &str,
        begin: impl FnOnce(Strng, watch::Sender<Resolution>),
    ) -> Option<watch::Receiver<Resolution>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = known.get(name) {
            return Some(sender.subscribe());
        }
        if known.len() >= self.most {
            return None;
        }
        let key = Strng::from(name);
        let (sender, receiver) = watch::channel(Resolution::default());
        known.insert(key.clone(), sender.clone());
        drop(known);
        begin(key, sender);
        Some(receiver)
    }

    async fn refresh(&self, name: Strng, sender: watch::Sender<Resolution>, every: Duration) {
        loop {
            let permit = self.permits.clone().acquire_owned().await;
            look_up(&name, &sender, permit.ok()).await;
            tokio::time::sleep(every).await;
            if self.forget(&name, &sender) {
                return;
            }
        }
    }

    /// The same for a name that requests brought. It is not looked up when nobody waits for it any more; one that resolves
    /// stays known for the next request, one that does not is forgotten soon.
    async fn refresh_while_wanted(&self, name: Strng, sender: watch::Sender<Resolution>) {
        loop {
            let permit = tokio::select! {
                biased;
                () = sender.closed() => None,
                permit = self.permits.clone().acquire_owned() => Some(permit.ok()),
            };
            if let Some(permit) = permit {
                look_up(&name, &sender, permit).await;
                let resolves = !sender.borrow().addresses.is_empty();
                tokio::time::sleep(if resolves { DYNAMIC_REFRESH } else { MIN_REFRESH }).await;
            }
            if self.forget(&name, &sender) {
                return;
            }
        }
    }

    /// Forgets a name that nobody watches; false when somebody does.
    fn forget(&self, name: &Strng, sender: &watch::Sender<Resolution>) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let unwatched = sender.receiver_count() == 0;
        if unwatched {
            known.remove(name);
        }
        unwatched
    }
}

async fn look_up(name: &Strng, sender: &watch::Sender<Resolution>, permit: Option<OwnedSemaphorePermit>) {
    let found = ask(name, permit).await;
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
}

/// Asks the system's resolver. It cannot be interrupted: `permit` is held until it has answered, even when nobody waits any
/// more.
async fn ask(name: &str, permit: Option<OwnedSemaphorePermit>) -> io::Result<Vec<IpAddr>> {
    let host = (name.to_string(), 0);
    let asked = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let found = host.to_socket_addrs()?;
        io::Result::Ok(found.map(|address| address.ip()).take(MAX_ADDRESSES).collect::<Vec<IpAddr>>())
    });
    let mut addresses = tokio::time::timeout(LOOKUP_TIMEOUT, asked).await???;
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
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

    #[tokio::test]
    async fn names_of_requests_are_bounded_and_forgotten() {
        let resolver = Resolver::new(tokio::runtime::Handle::current());
        let count = || resolver.dynamic.known.lock().unwrap().len();
        // Nothing is looked up while this test does not wait.
        let name = |n: usize| format!("no-such-name-{n}.invalid");
        let watched: Vec<_> = (0..MAX_DYNAMIC).map(|n| resolver.watch_dynamic(&name(n)).unwrap()).collect();
        assert!(resolver.watch_dynamic("one-more.invalid").is_none(), "there are enough");
        assert!(resolver.watch_dynamic(&name(0)).is_some(), "known names are watched on");
        assert!(resolver.watch_dynamic("10.1.2.3").is_some(), "addresses are no names");
        assert!(!resolver.watch("cluster.invalid", MIN_REFRESH).borrow().done, "the configuration's own are others");
        drop(watched);
        // None of them waits for its turn, let alone for an answer.
        let forgotten = async {
            while count() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), forgotten).await.expect("names that nobody waits for go");
        assert!(resolver.watch_dynamic("one-more.invalid").is_some());
    }
}
