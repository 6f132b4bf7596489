//! What an installation on Kubernetes consists of: settings → objects. Pure; `weft manifest generate` prints them.
//!
//! Reading order: [`settings`] (what can be set), `crds`, `rbac`, `webhooks`, `control_plane`, `gateways` (the objects).

mod control_plane;
mod gateways;
mod rbac;
pub mod settings;
mod webhooks;

pub use settings::Settings;

use serde_json::{Value, json};
use weft_k8s_api::crd;

/// All objects, in the order in which they can be created.
pub fn objects(settings: &Settings) -> Vec<Value> {
    let mut all = Vec::new();
    if settings.base {
        all.push(namespace(&settings.namespace));
        all.extend(crd::defined().filter_map(crd::definition));
    }
    if settings.pilot {
        all.extend(rbac::objects(settings));
        all.extend(control_plane::objects(settings));
        all.extend(webhooks::objects(settings));
    }
    let others: Vec<&str> = settings.gateways.iter().map(|gateway| gateway.namespace.as_str()).collect();
    let mut seen = vec![settings.namespace.as_str()];
    for name in others {
        if !seen.contains(&name) {
            seen.push(name);
            all.push(namespace(name));
        }
    }
    all.extend(settings.gateways.iter().flat_map(|gateway| gateways::objects(settings, gateway)));
    all
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
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
