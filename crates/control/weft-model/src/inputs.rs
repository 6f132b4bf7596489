//! What a build reads: lists of objects by kind, the mesh config, and the settings of the control plane.

use crate::Settings;
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_k8s_api::{Object, istio};

/// The kinds that a build reads, as (group, kind). A control plane watches these.
pub const KINDS: &[(&str, &str)] = &[
    ("", "Namespace"),
    ("", "Node"),
    ("", "Pod"),
    ("", "Service"),
    ("", "Endpoints"),
    ("", "Secret"),
    ("", "ConfigMap"),
    ("discovery.k8s.io", "EndpointSlice"),
    ("networking.istio.io", "ServiceEntry"),
    ("networking.istio.io", "WorkloadEntry"),
    ("networking.istio.io", "WorkloadGroup"),
    ("networking.istio.io", "VirtualService"),
    ("networking.istio.io", "DestinationRule"),
    ("networking.istio.io", "Gateway"),
    ("networking.istio.io", "Sidecar"),
    ("networking.istio.io", "EnvoyFilter"),
    ("security.istio.io", "PeerAuthentication"),
    ("security.istio.io", "AuthorizationPolicy"),
    ("security.istio.io", "RequestAuthentication"),
    ("telemetry.istio.io", "Telemetry"),
    ("networking.k8s.io", "Ingress"),
    ("networking.k8s.io", "IngressClass"),
    ("gateway.networking.k8s.io", "GatewayClass"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "HTTPRoute"),
    ("gateway.networking.k8s.io", "GRPCRoute"),
    ("gateway.networking.k8s.io", "TLSRoute"),
    ("gateway.networking.k8s.io", "TCPRoute"),
    ("gateway.networking.k8s.io", "ReferenceGrant"),
    ("gateway.networking.k8s.io", "BackendTLSPolicy"),
    ("networking.x-k8s.io", "GatewayClass"),
    ("networking.x-k8s.io", "Gateway"),
    ("networking.x-k8s.io", "HTTPRoute"),
    ("networking.x-k8s.io", "TLSRoute"),
    ("networking.x-k8s.io", "TCPRoute"),
];

/// Everything that a build reads. Lists that did not change since the last build should hold the same `Arc`s: they are
/// not read again.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Objects by group and kind, for the kinds of [`KINDS`].
    objects: BTreeMap<(&'static str, &'static str), Vec<Arc<Object>>>,
    /// Those that another revision of the control plane reads.
    elsewhere: BTreeMap<(&'static str, &'static str), Vec<Arc<Object>>>,
    /// Mesh-wide settings, defaults filled in.
    pub mesh: Arc<istio::MeshConfig>,
    /// Settings of the control plane.
    pub settings: Arc<Settings>,
    /// Key sets that were fetched so far.
    pub jwks: crate::FetchedKeys,
    /// The time, Unix seconds; without it no certificate is found to have expired.
    pub now: Option<i64>,
}

impl Inputs {
    /// Inputs with these settings and no objects.
    pub fn new(mesh: Arc<istio::MeshConfig>, settings: Arc<Settings>) -> Self {
        Self { mesh, settings, ..Self::default() }
    }

    /// Sets the whole list of one kind; kinds that a build does not read are left out, and so are objects of other revisions
    /// ([`Settings::reads`]).
    pub fn set(&mut self, group: &str, kind: &str, objects: Vec<Arc<Object>>) {
        if let Some(known) = known_kind(group, kind) {
            let (own, others) = objects.into_iter().partition(|object| self.settings.reads(object));
            self.objects.insert(known, own);
            self.elsewhere.insert(known, others);
        }
    }

    /// Adds one object to the list of its kind.
    pub fn push(&mut self, object: Arc<Object>) {
        if let Some(known) = known_kind(object.group(), &object.kind) {
            let list = if self.settings.reads(&object) { &mut self.objects } else { &mut self.elsewhere };
            list.entry(known).or_default().push(object);
        }
    }

    /// Objects that no build reads: they are labelled with another revision of the control plane.
    pub fn of_other_revisions(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.elsewhere.values().flatten()
    }

    /// The objects of a kind, those of other revisions too.
    pub fn of_all_revisions(&self, group: &str, kind: &str) -> impl Iterator<Item = &Arc<Object>> {
        let others = known_kind(group, kind).and_then(|known| self.elsewhere.get(&known));
        self.of(group, kind).iter().chain(others.into_iter().flatten())
    }

    /// The objects of a kind.
    pub fn of(&self, group: &str, kind: &str) -> &[Arc<Object>] {
        let known = known_kind(group, kind);
        known.and_then(|known| self.objects.get(&known)).map_or(&[], Vec::as_slice)
    }
}

fn known_kind(group: &str, kind: &str) -> Option<(&'static str, &'static str)> {
    KINDS.iter().find(|(g, k)| *g == group && *k == kind).copied()
}
