//! The delta protocol, as functions of the state.

use crate::state::{States, TypeState};
use crate::types::{Health, Outcome, Resource, Wanted};
use prost_types::Any;
use weft_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_proto::google::rpc::Status;
use weft_proto::type_url;

/// gRPC status INVALID_ARGUMENT, as Envoy puts it into a NACK.
const INVALID_ARGUMENT: i32 = 3;

/// The first requests of a stream: one per type, with what is held. The node rides on the first.
pub(crate) fn opening(states: &States) -> Vec<DeltaDiscoveryRequest> {
    states.wanted().into_iter().map(|(type_url, state)| first(type_url, state)).collect()
}

fn first(type_url: &str, state: &TypeState) -> DeltaDiscoveryRequest {
    let mut subscribe: Vec<String> = state.interest.names.keys().cloned().collect();
    if state.interest.wildcard {
        subscribe.push("*".into());
    }
    DeltaDiscoveryRequest {
        type_url: type_url.into(),
        resource_names_subscribe: subscribe,
        initial_resource_versions: state.held.clone(),
        ..Default::default()
    }
}

/// The request that a change of interest asks for, if any.
pub(crate) fn change(states: &mut States, type_url: &str, interest: Wanted) -> Option<DeltaDiscoveryRequest> {
    let (subscribe, unsubscribe) = states.get_mut(type_url).change_interest(interest);
    if subscribe.is_empty() && unsubscribe.is_empty() {
        return None;
    }
    Some(DeltaDiscoveryRequest {
        type_url: type_url.into(),
        resource_names_subscribe: subscribe,
        resource_names_unsubscribe: unsubscribe,
        ..Default::default()
    })
}

/// The request that says how the workload is. It has no answer.
pub(crate) fn health(health: Health) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url::HEALTH_INFORMATION.into(),
        error_detail: health.into_error(),
        ..Default::default()
    }
}

/// What a response brings.
pub(crate) fn received(response: DeltaDiscoveryResponse) -> (Vec<Resource>, Vec<String>) {
    let named = |r: weft_proto::envoy::service::discovery::v3::Resource| {
        // A resource without a body says that the name does not exist.
        let any: Any = r.resource?;
        Some(Resource { name: r.name, version: r.version, any })
    };
    (response.resources.into_iter().filter_map(named).collect(), response.removed_resources)
}

/// Notes what was accepted, and makes the ACK or NACK.
pub(crate) fn answer(
    states: &mut States,
    type_url: &str,
    nonce: String,
    versions: Vec<(String, String)>,
    removals: &[String],
    outcome: &Outcome,
) -> DeltaDiscoveryRequest {
    let state = states.get_mut(type_url);
    for name in removals {
        state.held.remove(name);
    }
    let refused = |name: &str| outcome.refused.iter().any(|(r, _)| r == name);
    state.held.extend(versions.into_iter().filter(|(name, _)| !refused(name)));
    let error_detail = outcome.error().map(|message| Status { code: INVALID_ARGUMENT, message, details: Vec::new() });
    DeltaDiscoveryRequest { type_url: type_url.into(), response_nonce: nonce, error_detail, ..Default::default() }
}
