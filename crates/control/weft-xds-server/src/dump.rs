//! What a proxy may have, in the form of Envoy's own config dump. Keys of certificates are left out.

use crate::kind::Kind;
use crate::offer::Offer;
use serde_json::Value;
use weft_proto::envoy::admin::v3::{
    ClustersConfigDump, ConfigDump, EndpointsConfigDump, ListenersConfigDump, RoutesConfigDump, SecretsConfigDump,
    clusters_config_dump::DynamicCluster, endpoints_config_dump::DynamicEndpointConfig,
    listeners_config_dump::DynamicListener, listeners_config_dump::DynamicListenerState,
    routes_config_dump::DynamicRouteConfig, secrets_config_dump::DynamicSecret,
};
use weft_proto::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use weft_proto::json::JsonError;
use weft_proto::{Any, pack, unpack};
use weft_xds_gen::Resource;

/// The dump of an offer.
///
/// # Errors
/// When a resource is not of the generated schema.
pub(crate) fn config_dump(offer: &Offer) -> Result<Value, JsonError> {
    let version = |r: &Resource| format!("{:x}", r.hash);
    let clusters = offer.of(Kind::Cluster).iter().map(|r| DynamicCluster {
        version_info: version(r),
        cluster: Some(r.any.clone()),
        ..Default::default()
    });
    let listeners = offer.of(Kind::Listener).iter().map(|r| DynamicListener {
        name: r.name.to_string(),
        active_state: Some(DynamicListenerState {
            version_info: version(r),
            listener: Some(r.any.clone()),
            ..Default::default()
        }),
        ..Default::default()
    });
    let routes = offer.of(Kind::Route).iter().map(|r| DynamicRouteConfig {
        version_info: version(r),
        route_config: Some(whole_route(r, offer)),
        ..Default::default()
    });
    let endpoints = offer.of(Kind::Endpoint).iter().map(|r| DynamicEndpointConfig {
        version_info: version(r),
        endpoint_config: Some(r.any.clone()),
        ..Default::default()
    });
    let secrets = offer.of(Kind::Secret).iter().map(|r| DynamicSecret {
        name: r.name.to_string(),
        version_info: version(r),
        ..Default::default()
    });
    let configs = vec![
        pack(&ClustersConfigDump { dynamic_active_clusters: clusters.collect(), ..Default::default() }),
        pack(&EndpointsConfigDump { dynamic_endpoint_configs: endpoints.collect(), ..Default::default() }),
        pack(&ListenersConfigDump { dynamic_listeners: listeners.collect(), ..Default::default() }),
        pack(&RoutesConfigDump { dynamic_route_configs: routes.collect(), ..Default::default() }),
        pack(&SecretsConfigDump { dynamic_active_secrets: secrets.collect(), ..Default::default() }),
    ];
    weft_proto::json::to_json(&ConfigDump { configs }, true)
}

/// A route configuration with the virtual hosts in it that the proxy takes one by one.
fn whole_route(route: &Resource, offer: &Offer) -> Any {
    let prefix = format!("{}/", route.name);
    let mut hosts = offer.of(Kind::VirtualHost).iter().filter(|v| v.name.starts_with(&prefix)).peekable();
    if hosts.peek().is_none() {
        return route.any.clone();
    }
    let Ok(mut whole) = unpack::<RouteConfiguration>(&route.any) else { return route.any.clone() };
    whole.virtual_hosts.extend(hosts.filter_map(|v| unpack::<VirtualHost>(&v.any).ok()));
    pack(&whole)
}
