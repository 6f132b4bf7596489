//! What an installation on Kubernetes consists of: settings → objects. Pure; `weft manifest generate` prints them.
//!
//! Reading order: [`settings`] (what can be set), `crds`, `rbac`, `webhooks`, `control_plane`, `gateways`, `scaling` (the
//! objects).

mod control_plane;
mod gateways;
mod rbac;
mod scaling;
pub mod settings;
mod webhooks;

pub use settings::Settings;

use serde_json::{Value, json};
use weft_k8s_api::crd;

/// All objects, in the order in which they can be created. Their namespaces are not among them, as with Istio: they may hold
/// more than this, and would go when the manifest is deleted.
pub fn objects(settings: &Settings) -> Vec<Value> {
    let mut all = Vec::new();
    if settings.base {
        all.extend(crd::defined().filter_map(crd::definition));
    }
    if settings.pilot {
        all.extend(rbac::objects(settings));
        all.extend(control_plane::objects(settings));
        all.extend(webhooks::objects(settings));
    }
    all.extend(settings.gateways.iter().flat_map(|gateway| gateways::objects(settings, gateway)));
    all
}

/// Metadata of an object of the control plane.
fn metadata(settings: &Settings, name: &str, namespaced: bool) -> Value {
    let mut metadata = json!({"name": name, "labels": {
        "app": "istiod", "istio.io/rev": settings.revision_label(),
        "app.kubernetes.io/name": "istiod", "app.kubernetes.io/part-of": "weft",
    }});
    if namespaced {
        metadata["namespace"] = settings.namespace.as_str().into();
    }
    metadata
}

#[cfg(test)]
mod tests;
