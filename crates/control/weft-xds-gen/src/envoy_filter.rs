//! Where EnvoyFilter objects are applied: to finished messages, before they are packed.
//!
//! The model keeps the objects ([`MeshSnapshot::envoy_filters_for`]); no patch is applied yet. Whoever adds them starts
//! here: [`bound`] gives the patches of a proxy in the order in which they hold.

use crate::proxy::ProxyView;
use std::sync::Arc;
use weft_k8s_api::istio;
use weft_model::{MeshSnapshot, Policy};

/// Envoy filters that bind a proxy: the root namespace's first, each namespace's by priority, then age.
pub fn bound(snapshot: &MeshSnapshot, proxy: &ProxyView) -> Vec<Arc<Policy<istio::EnvoyFilter>>> {
    snapshot.envoy_filters_for(proxy.namespace(), &proxy.labels)
}
