//! What proxies report: access logs, traces, metrics; from the mesh config, Telemetry objects and the pod's annotation.
//!
//! [`Observability`] holds finished messages for both sides of a proxy, which listeners clone. It depends on the workload,
//! but only through [`ObserveKey`]: workloads of equal key share it, and the listeners made with it.

mod access_log;
pub(crate) mod metrics;
mod proxy_config;
mod tracing;

use crate::pb::{accesslog::AccessLog, hcm, listener};
use crate::proxy::ProxyView;
use crate::scope::{HeaderSettings, View};
use std::sync::Arc;
use weft_k8s_api::istio::{self, WorkloadMode};
use weft_model::{MeshSnapshot, Policy};

/// Which end of a request a proxy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// It forwards what the workload (or the outside) asks for.
    Client,
    /// It hands requests to the workload.
    Server,
}

impl Side {
    /// Whether a rule of that mode is about this side.
    fn is(self, mode: WorkloadMode) -> bool {
        match mode {
            WorkloadMode::ClientAndServer => true,
            WorkloadMode::Client => self == Side::Client,
            WorkloadMode::Server => self == Side::Server,
        }
    }
}

/// What the reporting of a workload depends on, besides the snapshot and the scope.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ObserveKey {
    /// Telemetry objects that bind it: namespace and name.
    policies: Vec<(String, String)>,
    /// Its own proxy settings, as text.
    proxy_config: Option<String>,
    /// Canonical name and revision, and service name: only when spans carry them.
    identity: Option<[String; 3]>,
}

impl ObserveKey {
    /// The key of a proxy's workload.
    pub fn new(snapshot: &MeshSnapshot, proxy: &ProxyView) -> Self {
        let bound = snapshot.telemetry_for(proxy.namespace(), &proxy.labels);
        let traced = tracing::is_possible(snapshot, &bound);
        let identity = || {
            let workload = proxy.workload.as_ref();
            let of = |get: fn(&weft_model::Workload) -> &String| workload.map(|w| get(w).clone()).unwrap_or_default();
            [of(|w| &w.canonical_name), of(|w| &w.canonical_revision), proxy.service_cluster.clone()]
        };
        Self {
            policies: bound.iter().map(|p| (p.namespace.clone(), p.name.clone())).collect(),
            proxy_config: proxy.annotation(weft_core::well_known::annotation::PROXY_CONFIG).map(str::to_string),
            identity: traced.then(identity),
        }
    }
}

/// Finished messages for both sides.
#[derive(Debug, Clone)]
pub(crate) struct Observability {
    client: SideSettings,
    server: SideSettings,
    /// Proxy settings that hold for the workload.
    pub proxy_config: Arc<istio::MeshProxyConfig>,
    /// See [`HeaderSettings::keeps_case`].
    pub keeps_case: bool,
}

/// Finished messages for one side.
#[derive(Debug, Clone, Default)]
pub(crate) struct SideSettings {
    /// Logs of requests and connections.
    pub logs: Vec<AccessLog>,
    /// Logs of connections that no filter chain takes.
    pub listener_logs: Vec<AccessLog>,
    /// Tracing of requests.
    pub tracing: Option<hcm::http_connection_manager::Tracing>,
    /// How request ids and traces go together.
    pub request_id: Option<hcm::RequestIdExtension>,
    /// Metrics of requests; Weft proxies only.
    pub http_metrics: Option<hcm::HttpFilter>,
    /// Metrics of connections; Weft proxies only.
    pub tcp_metrics: Option<listener::Filter>,
}

/// A Telemetry object that binds the workload.
pub(crate) type Bound = Arc<Policy<istio::Telemetry>>;

impl Observability {
    /// For the workload of `proxy`.
    pub fn new(view: View<'_>, proxy: &ProxyView, key: &ObserveKey) -> Self {
        let bound = view.snapshot.telemetry_for(proxy.namespace(), &proxy.labels);
        let config = Arc::new(proxy_config::effective(view.mesh(), key.proxy_config.as_deref()));
        let side = |side: Side| {
            let traces = tracing::configure(view, &bound, side, &config, key.identity.as_ref());
            let (logs, listener_logs) = access_log::configure(view, &bound, side);
            SideSettings {
                logs,
                listener_logs,
                tracing: traces.tracing,
                request_id: traces.request_id,
                http_metrics: view.scope.key.weft.then(|| metrics::http(&bound, side, view.scope.key.gateway)),
                tcp_metrics: view.scope.key.weft.then(|| metrics::tcp(&bound, side)),
            }
        };
        let (client, server) = (side(Side::Client), side(Side::Server));
        Self { client, server, proxy_config: config, keeps_case: view.scope.key.headers.keeps_case }
    }

    /// The messages for a side.
    pub fn side(&self, side: Side) -> &SideSettings {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }
}

/// What the settings of a proxy say of the headers of requests.
pub(crate) fn header_settings(snapshot: &MeshSnapshot, proxy: &ProxyView) -> HeaderSettings {
    let annotation = proxy.annotation(weft_core::well_known::annotation::PROXY_CONFIG);
    let own = annotation.filter(|text| proxy_config::says_of_headers(text));
    let of_mesh = || snapshot.mesh.default_config.as_ref().and_then(|config| config.proxy_headers.clone());
    let headers = match own {
        Some(text) => proxy_config::effective(&snapshot.mesh, Some(text)).proxy_headers,
        None => of_mesh(),
    };
    let Some(headers) = headers else { return HeaderSettings::default() };
    HeaderSettings {
        no_attempt_count: headers.attempt_count.as_ref().is_some_and(|h| h.disabled == Some(true)),
        forwarded_host: headers.x_forwarded_host.as_ref().is_some_and(|h| h.enabled == Some(true)),
        keeps_case: headers.preserve_http1_header_case == Some(true) && !proxy.is_weft,
    }
}

/// Cluster and host of a provider's service: `[namespace/]host` and port. `None` when there is no such service.
pub(crate) fn provider_cluster(view: View<'_>, service: &str, port: u32) -> Option<(String, String)> {
    let found = weft_model::authorizers::service_of(view.snapshot, service)?;
    let port = u16::try_from(port).ok()?;
    let cluster = weft_core::names::ClusterName::outbound(port, "", &found.host).to_string();
    Some((cluster, found.host.to_string()))
}
