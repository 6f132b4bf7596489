//! What a build keeps for the next one: every kind as it was read, and the resolved virtual services.

use crate::endpoints::Table;
use crate::gateway_api::{Translated, read};
use crate::kubernetes as k8s;
use crate::parsed::{Kind, Reader};
use crate::service_entries::{self, Declared};
use crate::virtual_services::Resolved;
use crate::workloads::Workloads;
use crate::{Inputs, Service, Warning};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use weft_core::Strng;
use weft_k8s_api::{Object, gateway_api, istio};

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
    pub security_warnings: Arc<Vec<Warning>>,
    pub route_warnings: Arc<Vec<Warning>>,
    pub gateway_warnings: Arc<Vec<Warning>>,
    /// What the Gateway API's objects and Ingresses stand for.
    pub translated: Arc<Translated>,
    /// Statuses of service entries.
    pub entry_statuses: Vec<Arc<crate::StatusUpdate>>,
}

macro_rules! kinds {
    ($($field:ident: $group:literal, $kind:literal => $ty:ty = $reader:expr;)*) => {
        /// Every kind that a build reads.
        #[derive(Debug, Default, Clone)]
        pub(crate) struct Kinds {
            $(pub $field: Arc<Kind<$ty>>,)*
        }

        impl Kinds {
            /// All kinds after build `version`.
            pub fn refresh(&self, inputs: &Inputs, version: u64) -> Self {
                Self { $($field: self.$field.refresh(inputs.of($group, $kind), version, $reader),)* }
            }

            /// Why objects could not be read, over all kinds.
            pub fn errors(&self) -> impl Iterator<Item = &Warning> {
                std::iter::empty()$(.chain(self.$field.errors.iter()))*
            }
        }
    };
}

kinds! {
    namespaces: "", "Namespace" => k8s::Namespace = k8s::NAMESPACE;
    nodes: "", "Node" => k8s::Node = k8s::NODE;
    pods: "", "Pod" => k8s::Pod = k8s::POD;
    services: "", "Service" => k8s::ServiceSpec = k8s::SERVICE;
    legacy_endpoints: "", "Endpoints" => Vec<k8s::Slice> = k8s::ENDPOINTS;
    slices: "discovery.k8s.io", "EndpointSlice" => k8s::Slice = k8s::ENDPOINT_SLICE;
    secrets: "", "Secret" => Option<crate::Credential> = k8s::SECRET;
    service_entries: "networking.istio.io", "ServiceEntry" => istio::ServiceEntry = spec_reader();
    workload_entries: "networking.istio.io", "WorkloadEntry" => Declared = service_entries::WORKLOAD_ENTRY;
    virtual_services: "networking.istio.io", "VirtualService" => istio::VirtualService = spec_reader();
    destination_rules: "networking.istio.io", "DestinationRule" => istio::DestinationRule = spec_reader();
    gateways: "networking.istio.io", "Gateway" => istio::Gateway = spec_reader();
    sidecars: "networking.istio.io", "Sidecar" => istio::Sidecar = spec_reader();
    envoy_filters: "networking.istio.io", "EnvoyFilter" => istio::EnvoyFilter = spec_reader();
    patch_problems: "networking.istio.io", "EnvoyFilter" => Vec<(String, String)> = PATCHES;
    peer_authentication: "security.istio.io", "PeerAuthentication" => istio::PeerAuthentication = spec_reader();
    authorization: "security.istio.io", "AuthorizationPolicy" => istio::AuthorizationPolicy = spec_reader();
    request_authentication: "security.istio.io", "RequestAuthentication" => istio::RequestAuthentication = spec_reader();
    telemetry: "telemetry.istio.io", "Telemetry" => istio::Telemetry = spec_reader();
    config_maps: "", "ConfigMap" => Option<crate::Credential> = k8s::CONFIG_MAP;
    ingresses: "networking.k8s.io", "Ingress" => gateway_api::ingress::Ingress = read::INGRESS;
    ingress_classes: "networking.k8s.io", "IngressClass" => gateway_api::ingress::IngressClass = read::INGRESS_CLASS;
    gateway_classes: "gateway.networking.k8s.io", "GatewayClass" => read::ClassSpec = read::CLASS;
    kubernetes_gateways: "gateway.networking.k8s.io", "Gateway" => read::GatewaySpec = read::GATEWAY;
    http_routes: "gateway.networking.k8s.io", "HTTPRoute" => read::RouteSpec = read::HTTP_ROUTE;
    grpc_routes: "gateway.networking.k8s.io", "GRPCRoute" => read::RouteSpec = read::GRPC_ROUTE;
    tls_routes: "gateway.networking.k8s.io", "TLSRoute" => read::RouteSpec = read::TLS_ROUTE;
    tcp_routes: "gateway.networking.k8s.io", "TCPRoute" => read::RouteSpec = read::TCP_ROUTE;
    reference_grants: "gateway.networking.k8s.io", "ReferenceGrant" => gateway_api::ReferenceGrant = read::GRANT;
    backend_tls: "gateway.networking.k8s.io", "BackendTLSPolicy" => gateway_api::BackendTlsPolicy = read::BACKEND_TLS;
    old_gateway_classes: "networking.x-k8s.io", "GatewayClass" => read::ClassSpec = read::OLD_CLASS;
    old_gateways: "networking.x-k8s.io", "Gateway" => read::GatewaySpec = read::OLD_GATEWAY;
    old_http_routes: "networking.x-k8s.io", "HTTPRoute" => read::RouteSpec = read::OLD_HTTP_ROUTE;
    old_tls_routes: "networking.x-k8s.io", "TLSRoute" => read::RouteSpec = read::OLD_TLS_ROUTE;
    old_tcp_routes: "networking.x-k8s.io", "TCPRoute" => read::RouteSpec = read::OLD_TCP_ROUTE;
}

impl Kinds {
    /// In which builds the kinds of the Gateway API, and Ingresses, last changed.
    pub fn gateway_api_changed(&self) -> [u64; 14] {
        [
            self.gateway_classes.changed,
            self.kubernetes_gateways.changed,
            self.http_routes.changed,
            self.grpc_routes.changed,
            self.tls_routes.changed,
            self.tcp_routes.changed,
            self.backend_tls.changed,
            self.old_gateway_classes.changed,
            self.old_gateways.changed,
            self.old_http_routes.changed,
            self.old_tls_routes.changed,
            self.old_tcp_routes.changed,
            self.ingresses.changed,
            self.ingress_classes.changed,
        ]
    }
}

/// The patches of an EnvoyFilter that are left out, each with its place and the reason: what Envoy's schema does not know, or
/// reads otherwise. The siblings of such a patch may be what keeps strangers out, and stay.
const PATCHES: Reader<Vec<(String, String)>> = |object: &Object| {
    let problems = weft_k8s_api::patch_problems(object).into_iter();
    Ok(problems.map(|problem| (problem.path, problem.message)).collect())
};

/// Reads the spec of an Istio kind. An object that does not pass validation is not read: it slipped past admission, and
/// half of a rule may be worse than none.
fn spec_reader<T: DeserializeOwned + Default>() -> Reader<T> {
    |object: &Object| crate::istio_spec(object)
}
