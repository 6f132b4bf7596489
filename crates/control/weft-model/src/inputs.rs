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
    ("discovery.k8s.io", "EndpointSlice"),
    ("networking.istio.io", "ServiceEntry"),
    ("networking.istio.io", "WorkloadEntry"),
    ("networking.istio.io", "VirtualService"),
    ("networking.istio.io", "DestinationRule"),
    ("networking.istio.io", "Gateway"),
    ("networking.istio.io", "Sidecar"),
    ("networking.istio.io", "EnvoyFilter"),
    ("security.istio.io", "PeerAuthentication"),
    ("security.istio.io", "AuthorizationPolicy"),
    ("security.istio.io", "RequestAuthentication"),
    ("telemetry.istio.io", "Telemetry"),
];

/// Everything that a build reads. Lists that did not change since the last build should hold the same `Arc`s: they are
/// not read again.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Objects by kind, for the kinds of [`KINDS`].
    objects: BTreeMap<&'static str, Vec<Arc<Object>>>,
    /// Mesh-wide settings, defaults filled in.
    pub mesh: Arc<istio::MeshConfig>,
    /// Settings of the control plane.
    pub settings: Arc<Settings>,
}

impl Inputs {
    /// Inputs with these settings and no objects.
    pub fn new(mesh: Arc<istio::MeshConfig>, settings: Arc<Settings>) -> Self {
        Self { objects: BTreeMap::new(), mesh, settings }
    }

    /// Sets the whole list of one kind; kinds that a build does not read are left out.
    pub fn set(&mut self, group: &str, kind: &str, objects: Vec<Arc<Object>>) {
        if let Some(known) = known_kind(group, kind) {
            self.objects.insert(known, objects);
        }
    }

    /// Adds one object to the list of its kind.
    pub fn push(&mut self, object: Arc<Object>) {
        if let Some(known) = known_kind(object.group(), &object.kind) {
            self.objects.entry(known).or_default().push(object);
        }
    }

    /// The objects of a kind.
    pub fn of(&self, kind: &str) -> &[Arc<Object>] {
        self.objects.get(kind).map_or(&[], Vec::as_slice)
    }
}

fn known_kind(group: &str, kind: &str) -> Option<&'static str> {
    KINDS.iter().find(|(g, k)| *g == group && *k == kind).map(|(_, k)| *k)
}
