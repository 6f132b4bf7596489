//! Our own data plane: its start, and what it tells the admin port.

use crate::admin::live::{ClusterView, HostView, LimitsView, ListenerView, Live};
use crate::plane::Plane;
use crate::state::ProxyState;
use futures_util::future::BoxFuture;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;
use weft_dataplane::control::ListenerStatus;
use weft_dataplane::demand::Demands;
use weft_dataplane::{ClusterStatus, DataPlane, Handle, HostStatus, LocalWorkload, Options};
use weft_proxy_config::{
    Cluster, Discovery, Endpoint, EndpointAddress, EndpointHealth, EndpointSet, ProxySnapshot, Thresholds,
};
use weft_runtime::{ReadyBlock, files};
use weft_telemetry::Registry;

/// Workers for a setting: 0 = one per core.
pub fn workers(concurrency: usize) -> NonZeroUsize {
    NonZeroUsize::new(concurrency).or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN)
}

/// Starts the workers on what `plane` publishes. `drain`: time left to connections of filter chains that are gone.
///
/// # Errors
/// When no thread can be started.
pub fn start(
    plane: &Plane,
    registry: Registry,
    local: LocalWorkload,
    concurrency: usize,
    drain: Duration,
    demands: Option<Demands>,
) -> std::io::Result<Handle> {
    let options = Options {
        concurrency: workers(concurrency),
        registry,
        local,
        demands,
        retired_time: drain,
        max_connections: files::connections_for(files::raise_limit()),
        ..Options::new(tokio::runtime::Handle::current())
    };
    DataPlane::start(plane.snapshot(), plane.versions(), options)
}

/// Which listeners must be bound for readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// All: a sidecar without one of its two listeners breaks its pod.
    All,
    /// Any, when there are some: one port in use must not take a gateway's other hosts down.
    Any,
}

/// Keeps readiness at whether listeners are bound, from the first configuration on.
pub async fn watch_listeners(handle: Handle, plane: Plane, state: ProxyState, block: ReadyBlock, needs: Needs) {
    let mut block = Some(block);
    let mut versions = plane.versions();
    loop {
        let version = *versions.borrow_and_update();
        handle.wait_version(version).await;
        block = match unbound(&handle, needs) {
            None => None,
            Some(reason) => {
                let block = block.unwrap_or_else(|| state.readiness.block("listeners"));
                block.set_reason(reason);
                Some(block)
            }
        };
        tokio::select! {
            changed = versions.changed() => if changed.is_err() { return },
            // A port that was in use is tried again without a new version.
            () = tokio::time::sleep(Duration::from_millis(200)), if block.is_some() => {}
        }
    }
}

/// Why listeners are not bound; `None` when those that are needed are.
pub fn unbound(handle: &Handle, needs: Needs) -> Option<String> {
    let states = handle.listeners();
    let failed = states.iter().find_map(|state| match &state.status {
        ListenerStatus::Failed(why) => Some(format!("listener {} on {} ({why})", state.name, state.address)),
        _ => None,
    })?;
    let bound = states.iter().any(|state| matches!(state.status, ListenerStatus::Bound(_)));
    (needs == Needs::All || !bound).then_some(failed)
}

/// What the data plane tells the admin port.
pub struct WeftLive {
    /// The data plane.
    pub handle: Handle,
    /// Its configuration.
    pub plane: Plane,
    /// Time of a graceful drain.
    pub drain_time: Duration,
}

impl Live for WeftLive {
    fn listeners(&self) -> Vec<ListenerView> {
        let mut views: Vec<ListenerView> = Vec::new();
        for state in self.handle.listeners() {
            if views.last().is_none_or(|last| last.name != *state.name) {
                views.push(ListenerView { name: state.name.to_string(), addresses: Vec::new(), error: None });
            }
            let Some(view) = views.last_mut() else { continue };
            match state.status {
                ListenerStatus::Bound(address) => view.addresses.push(address.map_or(state.address, |a| a.to_string())),
                ListenerStatus::HandedOver => view.addresses.push(state.address),
                ListenerStatus::Failed(why) => view.error = Some(why),
            }
        }
        views
    }

    fn clusters(&self) -> BoxFuture<'_, Vec<ClusterView>> {
        Box::pin(async {
            let running: BTreeMap<_, _> =
                self.handle.clusters().await.into_iter().map(|status| (status.name.clone(), status)).collect();
            let snapshot = self.plane.snapshot().load_full();
            let mut names: Vec<_> = snapshot.clusters.keys().collect();
            names.sort();
            names
                .into_iter()
                .filter_map(|name| Some(view(&snapshot, snapshot.clusters.get(name)?, running.get(name))))
                .collect()
        })
    }

    fn drain_listeners(&self, inbound_only: bool, graceful: bool) {
        let (handle, time) = (self.handle.clone(), self.drain_time);
        let close = move |handle: &Handle| match inbound_only {
            true => handle.close_inbound_listeners(),
            false => handle.close_listeners(),
        };
        match inbound_only {
            true => handle.start_drain_inbound(),
            false => handle.start_drain(),
        }
        if !graceful {
            close(&handle);
            return;
        }
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            close(&handle);
        });
    }
}

fn view(snapshot: &ProxySnapshot, cluster: &Cluster, running: Option<&ClusterStatus>) -> ClusterView {
    let eds_name = match &cluster.discovery {
        Discovery::Eds(name) => Some(name.to_string()),
        _ => None,
    };
    let configured = match &cluster.discovery {
        Discovery::Static(set) => Some(set),
        Discovery::Eds(name) => snapshot.endpoints.get(name),
        _ => None,
    };
    // A cluster that nothing was sent to yet runs nowhere: its endpoints are shown with counts of zero.
    let hosts = match running {
        Some(status) => status.hosts.iter().map(running_host).collect(),
        None => configured.map(|set| idle_hosts(set)).unwrap_or_default(),
    };
    let limits = &cluster.limits;
    ClusterView {
        name: cluster.name.to_string(),
        eds_name,
        limits: limits_view(&limits.default),
        high_limits: limits_view(&limits.high),
        hosts,
    }
}

fn limits_view(of: &Thresholds) -> LimitsView {
    LimitsView {
        max_connections: of.max_connections,
        max_pending: of.max_pending,
        max_requests: of.max_requests,
        max_retries: of.max_retries,
    }
}

fn counts(host: Option<&HostStatus>) -> [(&'static str, u64); 8] {
    let count = |read: fn(&HostStatus) -> u64| host.map_or(0, read);
    [
        ("cx_active", count(|h| h.cx_active)),
        ("cx_connect_fail", count(|h| h.cx_connect_fail)),
        ("cx_total", count(|h| h.cx_total)),
        ("rq_active", count(|h| h.rq_active)),
        ("rq_error", count(|h| h.rq_error)),
        ("rq_success", count(|h| h.rq_success)),
        ("rq_timeout", 0),
        ("rq_total", count(|h| h.rq_total)),
    ]
}

fn running_host(host: &HostStatus) -> HostView {
    HostView {
        address: host.address.to_string(),
        hostname: host.hostname.as_deref().unwrap_or_default().to_owned(),
        locality: host.locality.to_string(),
        priority: host.priority,
        weight: host.weight,
        healthy: host.healthy,
        ejected: host.ejected,
        fails_checks: host.fails_checks,
        counts: counts(Some(host)),
    }
}

fn idle_hosts(set: &EndpointSet) -> Vec<HostView> {
    let of_locality = |locality: &weft_proxy_config::LocalityEndpoints| {
        let (name, priority) = (locality.locality.to_string(), locality.priority);
        locality.endpoints.iter().map(|endpoint| idle_host(endpoint, &name, priority)).collect::<Vec<_>>()
    };
    set.localities.iter().flat_map(of_locality).collect()
}

fn idle_host(endpoint: &Endpoint, locality: &str, priority: u32) -> HostView {
    HostView {
        address: match &endpoint.address {
            EndpointAddress::Ip(address) => address.to_string(),
            EndpointAddress::Name(name, port) => format!("{name}:{port}"),
            EndpointAddress::Unix(path) => path.to_string(),
        },
        hostname: endpoint.hostname.as_deref().unwrap_or_default().to_owned(),
        locality: locality.to_owned(),
        priority,
        weight: endpoint.weight,
        healthy: endpoint.health == EndpointHealth::Healthy,
        ejected: false,
        fails_checks: false,
        counts: counts(None),
    }
}
