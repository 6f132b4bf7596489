//! What a build keeps for the next one: every kind as it was read, and the resolved virtual services.

use crate::endpoints::Table;
use crate::kubernetes as k8s;
use crate::parsed::{Kind, Reader};
use crate::virtual_services::Resolved;
use crate::workloads::Workloads;
use crate::{Inputs, Service, Warning};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use weft_core::Strng;
use weft_k8s_api::{Object, istio};

/// What the next build may reuse; only [`crate::build`] looks inside.
#[derive(Debug, Clone, Default)]
pub struct Memo(pub(crate) Arc<State>);

/// The state behind a [`Memo`].
#[derive(Debug, Default, Clone)]
pub(crate) struct State {
    pub kinds: Kinds,
    pub workloads: Arc<Workloads>,
    /// Services without identities, by host.
    pub services: Arc<BTreeMap<Strng, Vec<Service>>>,
    pub endpoints: Arc<Table>,
    pub virtual_services: HashMap<(String, String), Arc<Resolved>>,
    pub rule_warnings: Arc<Vec<Warning>>,
    pub policy_warnings: Arc<Vec<Warning>>,
    pub route_warnings: Arc<Vec<Warning>>,
    pub gateway_warnings: Arc<Vec<Warning>>,
}

macro_rules! kinds {
    ($($field:ident: $kind:literal => $ty:ty = $reader:expr;)*) => {
        /// Every kind that a build reads.
        #[derive(Debug, Default, Clone)]
        pub(crate) struct Kinds {
            $(pub $field: Arc<Kind<$ty>>,)*
        }

        impl Kinds {
            /// All kinds after build `version`.
            pub fn refresh(&self, inputs: &Inputs, version: u64) -> Self {
                Self { $($field: self.$field.refresh(inputs.of($kind), version, $reader),)* }
            }

            /// Why objects could not be read, over all kinds.
            pub fn errors(&self) -> impl Iterator<Item = &Warning> {
                std::iter::empty()$(.chain(self.$field.errors.iter()))*
            }
        }
    };
}

kinds! {
    namespaces: "Namespace" => k8s::Namespace = k8s::NAMESPACE;
    nodes: "Node" => k8s::Node = k8s::NODE;
    pods: "Pod" => k8s::Pod = k8s::POD;
    services: "Service" => k8s::ServiceSpec = k8s::SERVICE;
    legacy_endpoints: "Endpoints" => Vec<k8s::Slice> = k8s::ENDPOINTS;
    slices: "EndpointSlice" => k8s::Slice = k8s::ENDPOINT_SLICE;
    secrets: "Secret" => Option<crate::Credential> = k8s::SECRET;
    service_entries: "ServiceEntry" => istio::ServiceEntry = spec_reader();
    workload_entries: "WorkloadEntry" => istio::WorkloadEntry = spec_reader();
    virtual_services: "VirtualService" => istio::VirtualService = spec_reader();
    destination_rules: "DestinationRule" => istio::DestinationRule = spec_reader();
    gateways: "Gateway" => istio::Gateway = spec_reader();
    sidecars: "Sidecar" => istio::Sidecar = spec_reader();
    envoy_filters: "EnvoyFilter" => istio::EnvoyFilter = spec_reader();
    peer_authentication: "PeerAuthentication" => istio::PeerAuthentication = spec_reader();
    authorization: "AuthorizationPolicy" => istio::AuthorizationPolicy = spec_reader();
    request_authentication: "RequestAuthentication" => istio::RequestAuthentication = spec_reader();
    telemetry: "Telemetry" => istio::Telemetry = spec_reader();
}

/// Reads the spec of an Istio kind. An object that does not pass validation is not read: it slipped past admission, and
/// half of a rule may be worse than none.
fn spec_reader<T: DeserializeOwned + Default>() -> Reader<T> {
    |object: &Object| crate::istio_spec(object)
}
