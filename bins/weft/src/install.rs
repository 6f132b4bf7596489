//! What an installation on Kubernetes consists of, and how it comes onto a cluster.
//!
//! Reading order is the way of the data: [`operator`] (files and `--set` over a [`profile`]; [`fields`] says what may stand there,
//! [`path`] how places are named), [`settings`] (what that means), the objects (`rbac`, `control_plane`, `cni`, `remote`, `webhooks`,
//! `gateways`, with `k8s` and `scaling` for all of them), `overlay` (the user's changes to objects). Up to there everything is
//! pure, and `weft manifest generate` prints it. [`cluster`] knows whose an object on a cluster is, [`apply`] brings an
//! installation there, [`version`] says which one may follow which; [`tags`] are further names of revisions;
//! [`reconcile`] is the operator.

pub mod apply;
pub mod cluster;
mod cni;
mod control_plane;
pub mod difference;
pub mod fields;
mod gateways;
mod k8s;
pub mod operator;
mod overlay;
pub mod path;
pub mod profile;
mod rbac;
pub mod reconcile;
mod remote;
mod scaling;
pub mod settings;
pub mod tags;
pub mod version;
pub mod webhooks;

pub use operator::Operator;
pub use settings::Settings;

use anyhow::Context;
use serde_json::{Value, json};
use weft_k8s_api::crd;

/// A part of an installation.
#[derive(Debug, Clone)]
pub struct Component {
    /// Its name in the progress: `Istiod`.
    pub title: &'static str,
    /// Its name on labels: `Pilot`.
    pub name: &'static str,
    /// Its objects, in the order in which they can be created.
    pub objects: Vec<Value>,
}

/// The parts of an installation, in the order in which they are made; those that are off are left out. Their namespaces are not
/// among the objects, as with Istio: they may hold more than this, and would go when the manifest is deleted.
///
/// # Errors
/// Settings that cannot be fulfilled, overlays that fit nothing.
pub fn components(settings: &Settings) -> anyhow::Result<Vec<Component>> {
    let mut all = Vec::new();
    if settings.base {
        let mut objects: Vec<Value> = crd::defined().filter_map(crd::definition).collect();
        overlay::apply(&mut objects, &settings.components["base"]["k8s"]["overlays"], "components.base")?;
        all.push(Component { title: "Istio core", name: "Base", objects });
    }
    if settings.pilot {
        let mut objects = rbac::objects(settings);
        objects.extend(control_plane::objects(settings)?);
        objects.extend(webhooks::objects(settings));
        objects.extend(tags(settings, &objects)?);
        overlay::apply(&mut objects, &settings.pilot_k8s()["overlays"], "components.pilot")?;
        all.push(Component { title: "Istiod", name: "Pilot", objects });
    }
    if settings.cni {
        let mut objects = cni::objects(settings);
        overlay::apply(&mut objects, &settings.components["cni"]["k8s"]["overlays"], "components.cni")?;
        all.push(Component { title: "CNI", name: "Cni", objects });
    }
    if settings.remote {
        let mut objects = remote::objects(settings)?;
        overlay::apply(
            &mut objects,
            &settings.components["istiodRemote"]["k8s"]["overlays"],
            "components.istiodRemote",
        )?;
        all.push(Component { title: "Istiod remote", name: "IstiodRemote", objects });
    }
    for (title, name, ingress) in
        [("Egress gateways", "EgressGateways", false), ("Ingress gateways", "IngressGateways", true)]
    {
        let mut objects = Vec::new();
        for gateway in settings.gateways.iter().filter(|gateway| gateway.ingress == ingress) {
            let mut own = gateways::objects(settings, gateway);
            overlay::apply(&mut own, &gateway.k8s["overlays"], &gateway.place)?;
            objects.extend(own);
        }
        if !objects.is_empty() {
            all.push(Component { title, name, objects });
        }
    }
    Ok(all)
}

/// The objects of `values.revisionTags`: further names of this revision.
fn tags(settings: &Settings, objects: &[Value]) -> anyhow::Result<Vec<Value>> {
    let mut made = Vec::new();
    let injector = objects.iter().find(|object| object["kind"] == "MutatingWebhookConfiguration");
    let names = settings.values.get("revisionTags").as_array().into_iter().flatten().filter_map(Value::as_str);
    for (name, injector) in names.zip(std::iter::repeat(injector)) {
        let injector = serde_json::from_value(injector.context("the injector's webhooks")?.clone())?;
        made.extend(tags::objects(name, &injector, false)?);
    }
    Ok(made)
}

/// All objects of an installation.
///
/// # Errors
/// As [`components`].
pub fn objects(settings: &Settings) -> anyhow::Result<Vec<Value>> {
    Ok(components(settings)?.into_iter().flat_map(|component| component.objects).collect())
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
pub mod testing;
#[cfg(test)]
mod tests;
