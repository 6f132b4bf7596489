//! From objects to the immutable [`MeshSnapshot`]. Knows Kubernetes and Istio objects; knows nothing of xDS.
//!
//! Reading order: [`snapshot`] (what is built), `inputs` (what it is built from), `build` (the steps), then the sections in
//! the order of data: `parsed`, `kubernetes`, `workloads`, `services`, `service_entries`, `endpoints`, `virtual_services`,
//! `destination_rules`, `gateway_api` (which stands for Gateways, virtual services and destination rules), `policies`,
//! `certificates`, `secrets`, `warnings`; last `lookup` and `scope`: the questions that the generator asks.

pub mod authorizers;
mod build;
mod certificates;
pub mod codes;
mod destination_rules;
mod endpoints;
mod gateway_api;
mod gateway_conflicts;
pub mod hosts;
mod inputs;
pub mod jwks;
mod kubernetes;
mod lookup;
pub mod memo;
mod parsed;
mod policies;
mod protocol;
mod scope;
mod secrets;
mod service_entries;
mod services;
pub mod snapshot;
#[cfg(test)]
mod tests;
mod trim;
mod virtual_services;
mod warnings;
mod workloads;

pub use build::build;
pub use gateway_api::{StatusUpdate, UNSERVED};
pub use inputs::{Inputs, KINDS};
pub use jwks::{FetchedKeys, KeyRequest, KeySource};
pub use lookup::ServiceInstance;
pub use scope::{EgressScope, HostPattern, SidecarScope, stands_for_all_ports};
pub use secrets::CA_SUFFIX;
pub use snapshot::*;
pub use trim::{kept, trim};
pub use virtual_services::MESH_GATEWAY;

/// Reads the spec of an Istio object whose shape passes validation. (Unknown fields were reported when it was accepted; they do
/// not stop it here. Neither do patches whose values are wrong: each is left out by itself, `memo::PATCHES`.)
fn istio_spec<T>(object: &weft_k8s_api::Object) -> Result<T, parsed::Unreadable>
where
    T: serde::de::DeserializeOwned + Default,
{
    if let Some(problem) = weft_k8s_api::validate_shape(object).errors.into_iter().next() {
        return Err(parsed::Unreadable { path: problem.path, message: problem.message });
    }
    weft_k8s_api::parse_spec(object).map_err(|p| parsed::Unreadable { path: p.path, message: p.message })
}
