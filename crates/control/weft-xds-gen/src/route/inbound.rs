//! The route of an inbound chain: everything goes to the workload.

use super::{any_path, retry, shell};
use crate::cluster::inbound::InboundPort;
use crate::pb::route::route_action::{ClusterSpecifier, MaxStreamDuration};
use crate::pb::route::{Decorator, Route, RouteAction, RouteConfiguration, VirtualHost, route::Action};
use crate::pb::{self, value};
use weft_core::names::INBOUND_PASSTHROUGH_CLUSTER;
use weft_model::Protocol;

/// The route of a port that a service leads to.
pub(crate) fn for_port(port: &InboundPort) -> RouteConfiguration {
    let cluster = port.cluster();
    let operation = format!("{}:{}/*", port.host(), port.service_port());
    let grpc = port.protocol == Protocol::Grpc;
    let mut host = virtual_host(port.service_port(), route(&cluster, operation, grpc));
    host.metadata = Some(value::provenance(&port.origin));
    configuration(cluster, host)
}

/// The route of ports that none leads to.
pub(crate) fn passthrough() -> RouteConfiguration {
    let cluster = INBOUND_PASSTHROUGH_CLUSTER.to_string();
    let host = virtual_host(0, route(&cluster, ":0/*".into(), false));
    configuration(cluster, host)
}

fn configuration(name: String, host: VirtualHost) -> RouteConfiguration {
    RouteConfiguration {
        max_direct_response_body_size_bytes: None,
        ignore_port_in_host_matching: false,
        ..shell(name, vec![host])
    }
}

fn virtual_host(port: u16, route: Route) -> VirtualHost {
    VirtualHost {
        name: format!("inbound|http|{port}"),
        domains: vec!["*".into()],
        routes: vec![route],
        ..Default::default()
    }
}

/// No time limit: the client's side has set one, if there is one. gRPC statuses are the workload's own word: no retry.
fn route(cluster: &str, operation: String, grpc: bool) -> Route {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.into())),
        timeout: Some(pb::zero()),
        max_stream_duration: Some(MaxStreamDuration {
            max_stream_duration: Some(pb::zero()),
            grpc_timeout_header_max: Some(pb::zero()),
            ..Default::default()
        }),
        retry_policy: (!grpc).then(retry::inbound_policy),
        ..Default::default()
    };
    Route {
        name: "default".into(),
        r#match: Some(any_path()),
        action: Some(Action::Route(action)),
        decorator: Some(Decorator { operation, propagate: None }),
        ..Default::default()
    }
}
