//! The state-of-the-world protocol, as functions of the state.

use crate::state::{States, TypeState};
use crate::types::{Health, Outcome, Resource, Wanted};
use prost::Message as _;
use prost_types::Any;
use weft_proto::envoy::config::cluster::v3::Cluster;
use weft_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use weft_proto::envoy::config::listener::v3::Listener;
use weft_proto::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use weft_proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use weft_proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, Resource as Wrapped};
use weft_proto::google::rpc::Status;
use weft_proto::type_url;

/// gRPC status INVALID_ARGUMENT, as Envoy puts it into a NACK.
const INVALID_ARGUMENT: i32 = 3;

fn request(type_url: &str, state: &TypeState) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: type_url.into(),
        version_info: state.version.clone(),
        response_nonce: state.nonce.clone(),
        resource_names: state.interest.names.keys().cloned().collect(),
        ..Default::default()
    }
}

/// The first requests of a stream.
pub(crate) fn opening(states: &States) -> Vec<DiscoveryRequest> {
    states.wanted().into_iter().map(|(type_url, state)| request(type_url, state)).collect()
}

/// The request that a change of interest asks for, if any.
pub(crate) fn change(states: &mut States, type_url: &str, interest: Wanted) -> Option<DiscoveryRequest> {
    let state = states.get_mut(type_url);
    let (subscribe, unsubscribe) = state.change_interest(interest);
    (!subscribe.is_empty() || !unsubscribe.is_empty()).then(|| request(type_url, state))
}

/// The request that says how the workload is. It has no answer.
pub(crate) fn health(health: Health) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: type_url::HEALTH_INFORMATION.into(),
        error_detail: health.into_error(),
        ..Default::default()
    }
}

/// What a response brings. Listeners and clusters that it leaves out are gone; of other types nothing can be concluded.
/// An `Err` names a resource that does not decode.
pub(crate) fn received(
    states: &mut States,
    response: DiscoveryResponse,
) -> Result<(Vec<Resource>, Vec<String>), String> {
    let whole = matches!(response.type_url.as_str(), type_url::LISTENER | type_url::CLUSTER);
    let mut upserts = Vec::new();
    for any in response.resources {
        let any = unwrapped(any)?;
        let name = name_of(&any)?;
        upserts.push(Resource { name, version: response.version_info.clone(), any });
    }
    let held = &states.get_mut(&response.type_url).held;
    let gone = |name: &&String| whole && !upserts.iter().any(|r| r.name == **name);
    let removals = held.keys().filter(gone).cloned().collect();
    Ok((upserts, removals))
}

fn unwrapped(any: Any) -> Result<Any, String> {
    if any.type_url != "type.googleapis.com/envoy.service.discovery.v3.Resource" {
        return Ok(any);
    }
    let inner = Wrapped::decode(any.value.as_slice()).map_err(|e| e.to_string())?;
    inner.resource.ok_or_else(|| format!("resource {} has no body", inner.name))
}

fn name_of(any: &Any) -> Result<String, String> {
    let bytes = any.value.as_slice();
    let name = match any.type_url.as_str() {
        type_url::LISTENER => Listener::decode(bytes).map(|m| m.name),
        type_url::CLUSTER => Cluster::decode(bytes).map(|m| m.name),
        type_url::ENDPOINT => ClusterLoadAssignment::decode(bytes).map(|m| m.cluster_name),
        type_url::ROUTE => RouteConfiguration::decode(bytes).map(|m| m.name),
        type_url::VIRTUAL_HOST => VirtualHost::decode(bytes).map(|m| m.name),
        type_url::SECRET => Secret::decode(bytes).map(|m| m.name),
        type_url::NAME_TABLE => Ok(String::new()),
        other => return Err(format!("resource of unknown type {other}")),
    };
    name.map_err(|e| format!("{}: {e}", any.type_url))
}

/// Notes what was accepted, and makes the ACK or NACK: a NACK repeats the version that is in force.
pub(crate) fn answer(
    states: &mut States,
    type_url: &str,
    (version, nonce): (String, String),
    upserts: Vec<(String, String)>,
    removals: &[String],
    outcome: &Outcome,
) -> DiscoveryRequest {
    let state = states.get_mut(type_url);
    state.nonce = nonce;
    let error = outcome.error();
    if error.is_none() {
        state.version = version;
        removals.iter().for_each(|name| drop(state.held.remove(name)));
        state.held.extend(upserts);
    }
    let error_detail = error.map(|message| Status { code: INVALID_ARGUMENT, message, details: Vec::new() });
    DiscoveryRequest { error_detail, ..request(type_url, state) }
}
