//! `EnvoyFilter`: patches of generated configuration.

use super::common::{PolicyTargetReference, WorkloadSelector};
use crate::macros::{spec, words};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

spec! {
    /// Patches for the selected proxies.
    pub struct EnvoyFilter {
        /// Which workloads. Default: all of the namespace (in the root namespace: of the mesh).
        workload_selector: Option<WorkloadSelector>,
        /// Gateways it is bound to instead.
        target_refs: Vec<PolicyTargetReference>,
        /// Patches, in order.
        config_patches: Vec<EnvoyConfigObjectPatch>,
        /// Lower is applied first. Default: 0.
        priority: i32,
    }

    /// One patch.
    pub struct EnvoyConfigObjectPatch {
        /// What is patched.
        apply_to: ApplyTo,
        /// Where.
        #[serde(rename = "match")]
        matches: Option<EnvoyConfigObjectMatch>,
        /// How.
        patch: Option<Patch>,
    }

    /// Where a patch applies; at most one of the object matches.
    pub struct EnvoyConfigObjectMatch {
        /// Which kind of proxy and direction.
        context: PatchContext,
        /// Which proxies.
        proxy: Option<ProxyMatch>,
        /// Which listener.
        listener: Option<ListenerMatch>,
        /// Which route configuration.
        route_configuration: Option<RouteConfigurationMatch>,
        /// Which cluster.
        cluster: Option<ClusterMatch>,
        /// Which part of a waypoint.
        waypoint: Option<WaypointMatch>,
    }

    /// Which proxies.
    pub struct ProxyMatch {
        /// RE2 expression over the proxy's Istio version.
        proxy_version: String,
        /// Values of node metadata.
        metadata: BTreeMap<String, String>,
    }

    /// Which listener.
    pub struct ListenerMatch {
        /// Port of the service or gateway.
        port_number: u32,
        /// Has no effect.
        port_name: String,
        /// Filter chain inside it.
        filter_chain: Option<FilterChainMatch>,
        /// Listener filter inside it.
        listener_filter: String,
        /// Name.
        name: String,
    }

    /// Which filter chain.
    pub struct FilterChainMatch {
        /// Name.
        name: String,
        /// Server name.
        sni: String,
        /// `raw_buffer` or `tls`.
        transport_protocol: String,
        /// ALPN, comma-separated.
        application_protocols: String,
        /// Network filter inside it.
        filter: Option<FilterMatch>,
        /// Destination port.
        destination_port: u32,
    }

    /// Which filter.
    pub struct FilterMatch {
        /// Name.
        name: String,
        /// HTTP filter inside the HTTP connection manager.
        sub_filter: Option<SubFilterMatch>,
    }

    /// Which filter inside a filter.
    pub struct SubFilterMatch {
        /// Name.
        name: String,
    }

    /// Which route configuration.
    pub struct RouteConfigurationMatch {
        /// Port of the service or gateway.
        port_number: u32,
        /// Name of the gateway server's port.
        port_name: String,
        /// `namespace/name` of the gateway.
        gateway: String,
        /// Virtual host inside it.
        vhost: Option<VirtualHostMatch>,
        /// Name.
        name: String,
    }

    /// Which virtual host.
    pub struct VirtualHostMatch {
        /// Name.
        name: String,
        /// One of its domains.
        domain_name: String,
        /// Route inside it.
        route: Option<RouteMatch>,
    }

    /// Which route.
    pub struct RouteMatch {
        /// Name.
        name: String,
        /// What it does.
        action: RouteMatchAction,
    }

    /// Which cluster.
    pub struct ClusterMatch {
        /// Service port.
        port_number: u32,
        /// Service host.
        service: String,
        /// Subset.
        subset: String,
        /// Name.
        name: String,
    }

    /// Which part of a waypoint.
    pub struct WaypointMatch {
        /// Service port.
        port_number: u32,
        /// Filter.
        filter: Option<FilterMatch>,
        /// Route.
        route: Option<WaypointRouteMatch>,
    }

    /// Which route of a waypoint.
    pub struct WaypointRouteMatch {
        /// Name.
        name: String,
    }

    /// How something is patched.
    pub struct Patch {
        /// Operation.
        operation: PatchOperation,
        /// Envoy configuration as JSON.
        value: Map<String, Value>,
        /// Where in the order of filters an added one belongs.
        filter_class: FilterClass,
    }
}

words! {
    /// What is patched.
    pub enum ApplyTo {
        /// Not set.
        #[default]
        Invalid,
        /// Listeners.
        Listener,
        /// Filter chains of a listener.
        FilterChain,
        /// Network filters of a filter chain.
        NetworkFilter,
        /// HTTP filters of a connection manager.
        HttpFilter,
        /// Route configurations.
        RouteConfiguration,
        /// Virtual hosts.
        VirtualHost,
        /// Routes.
        HttpRoute,
        /// Clusters.
        Cluster,
        /// Extension configurations.
        ExtensionConfig,
        /// The bootstrap.
        Bootstrap,
        /// Listener filters.
        ListenerFilter,
    }

    /// Which kind of proxy and direction.
    pub enum PatchContext {
        /// All.
        #[default]
        Any,
        /// Inbound of sidecars.
        SidecarInbound,
        /// Outbound of sidecars.
        SidecarOutbound,
        /// Gateways.
        Gateway,
        /// Waypoints.
        Waypoint,
    }

    /// How something is patched.
    pub enum PatchOperation {
        /// Not set.
        #[default]
        Invalid,
        /// Merged into what is there.
        Merge,
        /// Added at the end.
        Add,
        /// Removed.
        Remove,
        /// Added before the matched.
        InsertBefore,
        /// Added after the matched.
        InsertAfter,
        /// Added as first.
        InsertFirst,
        /// Put in its place.
        Replace,
        /// Merged; lists are replaced.
        MergeAndReplaceList,
    }

    /// Where in the order of filters an added one belongs.
    pub enum FilterClass {
        /// As the operation says.
        #[default]
        Unspecified,
        /// After authentication.
        Authn,
        /// After authorization.
        Authz,
        /// Before statistics.
        Stats,
    }

    /// What a route does.
    pub enum RouteMatchAction {
        /// Anything.
        #[default]
        Any,
        /// Forwards.
        Route,
        /// Redirects.
        Redirect,
        /// Answers.
        DirectResponse,
    }
}
