//! What is known of each connected proxy, for the debug endpoints.

use crate::kind::{KINDS, Kind};
use crate::offer::Offer;
use crate::session::{Answer, Push};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};
use weft_xds_gen::ProxyView;

/// A connected proxy.
#[derive(Debug)]
pub struct ProxyStatus {
    /// Number of the connection.
    pub id: u64,
    /// `pod.namespace`.
    pub name: String,
    /// Node id as given.
    pub node_id: String,
    /// `sidecar` or `router`.
    pub node_type: &'static str,
    /// Cluster it says it is in.
    pub cluster_id: String,
    /// Version of the proxy.
    pub proxy_version: String,
    /// Speaks Weft's extensions.
    pub weft: bool,
    /// Delta variant.
    pub delta: bool,
    /// Where it connects from.
    pub remote: Option<SocketAddr>,
    /// When it connected.
    pub since: SystemTime,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    types: BTreeMap<Kind, TypeStatus>,
    offer: Option<Arc<Offer>>,
    /// Build of which everything was sent that can be sent now; `None` while it is not known what there is to send.
    pushed: Option<u64>,
    subscribed: BTreeMap<Kind, bool>,
}

#[derive(Debug, Default, Clone)]
struct TypeStatus {
    sent: String,
    acked: String,
    error: Option<String>,
    version: u64,
    sent_at: Option<Instant>,
}

/// All connected proxies.
#[derive(Debug, Default)]
pub struct Registry {
    next: AtomicU64,
    proxies: Mutex<BTreeMap<u64, Arc<ProxyStatus>>>,
}

impl Registry {
    /// Adds a proxy; it is listed until it is removed.
    pub(crate) fn add(&self, view: &ProxyView, delta: bool, remote: Option<SocketAddr>) -> Arc<ProxyStatus> {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let status = Arc::new(ProxyStatus {
            id,
            name: format!("{}.{}", view.node.pod, view.node.namespace),
            node_id: view.node.to_string(),
            node_type: view.node.node_type.as_str(),
            cluster_id: view.metadata.cluster_id.clone(),
            proxy_version: view.metadata.istio_version.clone(),
            weft: view.is_weft,
            delta,
            remote,
            since: SystemTime::now(),
            inner: Mutex::default(),
        });
        self.lock().insert(id, status.clone());
        status
    }

    pub(crate) fn remove(&self, id: u64) {
        self.lock().remove(&id);
    }

    /// All, in the order in which they connected.
    pub fn list(&self) -> Vec<Arc<ProxyStatus>> {
        self.lock().values().cloned().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<ProxyStatus>>> {
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProxyStatus {
    pub(crate) fn offered(&self, offer: Arc<Offer>) {
        let mut inner = self.lock();
        (inner.offer, inner.pushed) = (Some(offer), None);
    }

    /// Nothing of this build is left to be sent before the proxy says something.
    pub(crate) fn pushed(&self, version: u64) {
        self.lock().pushed = Some(version);
    }

    pub(crate) fn subscribed(&self, kind: Kind) {
        self.lock().subscribed.insert(kind, true);
    }

    pub(crate) fn sent(&self, push: &Push) {
        let mut inner = self.lock();
        let state = inner.types.entry(push.kind).or_default();
        state.sent.clone_from(&push.nonce);
        state.version = push.version;
        state.sent_at = Some(Instant::now());
    }

    /// Records an answer; gives the time since the push.
    pub(crate) fn answered(&self, answer: &Answer) -> Option<std::time::Duration> {
        let mut inner = self.lock();
        // What was held back until now may follow.
        inner.pushed = None;
        let (kind, nonce, error) = match answer {
            Answer::Ack { kind, nonce } => (kind, nonce, None),
            Answer::Nack { kind, nonce, message } => (kind, nonce, Some(message.clone())),
        };
        let state = inner.types.entry(*kind).or_default();
        if error.is_none() {
            state.acked.clone_from(nonce);
        }
        state.error = error;
        state.sent_at.map(|at| at.elapsed())
    }

    /// What it may have at the moment.
    pub fn offer(&self) -> Option<Arc<Offer>> {
        self.lock().offer.clone()
    }

    /// The form of `/debug/config_distribution`: the build that the proxy was sent, types that it has not answered, and those
    /// that it refused. One that has acknowledged nothing yet has nothing yet.
    pub fn distribution(&self) -> Value {
        let inner = self.lock();
        let each = || inner.types.iter().map(|(kind, state)| (kind.short(), state));
        let some = each().any(|(_, state)| !state.acked.is_empty());
        let late = each().filter(|(_, state)| state.error.is_none() && state.sent != state.acked);
        let refused = each().filter_map(|(kind, state)| Some((kind.to_string(), Value::from(state.error.clone()?))));
        json!({
            "proxy": self.name,
            "version": inner.pushed.filter(|_| some).unwrap_or(0),
            "waiting": late.map(|(kind, _)| kind).collect::<Vec<_>>(),
            "refused": refused.collect::<serde_json::Map<_, _>>(),
        })
    }

    /// The form of `/debug/syncz`.
    pub fn to_json(&self, server: &str) -> Value {
        let inner = self.lock();
        let types: serde_json::Map<String, Value> = KINDS
            .into_iter()
            .map(|kind| {
                let state = inner.types.get(&kind).cloned().unwrap_or_default();
                let asked = inner.subscribed.contains_key(&kind);
                let value = json!({
                    "status": state.word(asked),
                    "version": state.version,
                    "sent": state.sent,
                    "acked": state.acked,
                    "error": state.error.unwrap_or_default(),
                });
                (kind.short().to_string(), value)
            })
            .collect();
        let not_applied: Vec<String> =
            inner.offer.iter().flat_map(|o| o.not_applied().map(ToString::to_string)).collect();
        let on_demand = inner.offer.as_ref().and_then(|offer| offer.answered());
        json!({
            "not_applied": not_applied,
            "on_demand": on_demand.map(|asked| json!({"asked": asked})),
            "proxy": self.name,
            "node_id": self.node_id,
            "proxy_type": self.node_type,
            "cluster_id": self.cluster_id,
            "version": self.proxy_version,
            "engine": if self.weft { "weft" } else { "envoy" },
            "protocol": if self.delta { "delta" } else { "sotw" },
            "istiod": server,
            "connected_seconds": self.since.elapsed().map_or(0, |d| d.as_secs()),
            "types": types,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TypeStatus {
    /// One word, as `istioctl proxy-status` says it.
    fn word(&self, asked: bool) -> &'static str {
        match () {
            () if self.error.is_some() => "ERROR",
            () if self.sent.is_empty() && asked => "NOT SENT",
            () if self.sent.is_empty() => "IGNORED",
            () if self.sent == self.acked => "SYNCED",
            () => "STALE",
        }
    }
}
