//! An installation on a cluster: who owns which object, what is there, and what goes.
//!
//! Source: Istio's "Managing Gateways with Multiple Revisions": objects belong to the IstioOperator and the revision on their
//! labels, and an installation touches no others.

use super::operator::{KIND, Operator, UNNAMED};
use super::settings::Settings;
use crate::target::known;
use anyhow::Context;
use serde_json::{Value, json};
use weft_k8s_api::Object;
use weft_k8s_api::kinds::{KindInfo, by_kind};
use weft_store::client::ListOptions;
use weft_store::memory::DeleteOptions;
use weft_store::{ApiClient, ClientError};

/// Label with the name of the IstioOperator that an object belongs to.
pub const OWNER: &str = "install.operator.istio.io/owning-resource";
/// Label with the revision.
pub const REVISION: &str = "istio.io/rev";
/// Label with the component.
const COMPONENT: &str = "operator.istio.io/component";
/// Label of all that the installer made.
pub const MANAGED: &str = "operator.istio.io/managed=Reconcile";
/// Kinds of which an installation has objects, in the order in which they go: first what would hold up others. Definitions are
/// not among them: with them all configuration goes.
const KINDS: [(&str, &str); 14] = [
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
    ("autoscaling", "HorizontalPodAutoscaler"),
    ("apps", "Deployment"),
    ("apps", "DaemonSet"),
    ("policy", "PodDisruptionBudget"),
    ("", "Service"),
    ("discovery.k8s.io", "EndpointSlice"),
    ("", "ConfigMap"),
    ("rbac.authorization.k8s.io", "RoleBinding"),
    ("rbac.authorization.k8s.io", "Role"),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io", "ClusterRole"),
    ("", "ServiceAccount"),
];

/// Whose an object is.
#[derive(Debug, Clone)]
pub struct Owner {
    /// Name of the IstioOperator.
    pub name: String,
    /// Revision, `default` for the one without a name.
    pub revision: String,
    /// Version that is installed.
    pub version: String,
}

impl Owner {
    /// Of an installation.
    pub fn new(operator: &Operator, settings: &Settings) -> Self {
        Self { name: operator.name.clone(), revision: settings.revision_label().to_string(), version: settings.tag() }
    }

    /// The selector of its objects.
    pub fn selector(&self) -> String {
        format!("{OWNER}={},{REVISION}={}", self.name, self.revision)
    }

    /// An object with the labels that say whose it is.
    ///
    /// # Errors
    /// When overlays have made something else of it than an object.
    pub fn mark(&self, mut value: Value, component: &str) -> anyhow::Result<Object> {
        for (name, text) in [
            (REVISION, self.revision.as_str()),
            (OWNER, &self.name),
            (COMPONENT, component),
            ("operator.istio.io/managed", "Reconcile"),
            ("operator.istio.io/version", &self.version),
        ] {
            value["metadata"]["labels"][name] = text.into();
        }
        let shown = format!("{} {}", value["kind"], value["metadata"]["name"]);
        serde_json::from_value(value).with_context(|| format!("{shown} is no object after its overlays"))
    }

    /// Name of the object that keeps what was installed.
    pub fn state_name(&self) -> String {
        let mut name = UNNAMED.to_string();
        for part in
            [(self.name != UNNAMED).then_some(&self.name), (self.revision != "default").then_some(&self.revision)]
        {
            name.extend(part.map(|part| format!("-{part}")));
        }
        name
    }
}

/// An object of a cluster and its kind.
pub type Found = (&'static KindInfo, Object);

/// Objects of an installation by their labels, in the order in which they go. Those that a controller made are left to it.
///
/// # Errors
/// When the server does not answer or the caller may not look.
pub async fn find(client: &ApiClient, selector: &str) -> anyhow::Result<Vec<Found>> {
    let mut found = Vec::new();
    for (group, kind) in KINDS {
        let Some(kind) = by_kind(group, kind) else { continue };
        let options = ListOptions { labels: Some(selector.to_string()), ..ListOptions::default() };
        match client.list(kind, None, &options).await {
            Ok(list) => found.extend(list.items.into_iter().filter(|o| !is_made(o)).map(|object| (kind, object))),
            Err(ClientError::NoSuchKind(_)) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot list {}", kind.plural)),
        }
    }
    Ok(found)
}

/// Slices of endpoints carry the labels of their Service.
fn is_made(object: &Object) -> bool {
    object.metadata.owner_references.as_ref().is_some_and(|owners| !owners.is_empty())
        || object.label("endpointslice.kubernetes.io/managed-by").is_some()
}

/// Those of these objects, known by their names, that are on the cluster and do not say that they are another revision's.
///
/// # Errors
/// As [`find`].
pub async fn find_named(client: &ApiClient, objects: &[Value], revision: &str) -> anyhow::Result<Vec<Found>> {
    let mut found = Vec::new();
    for (group, kind) in KINDS {
        let Some(kind) = by_kind(group, kind) else { continue };
        for object in objects.iter().filter(|object| object["kind"] == kind.kind) {
            let word = |value: &Value| value.as_str().unwrap_or_default().to_string();
            let (namespace, name) = (word(&object["metadata"]["namespace"]), word(&object["metadata"]["name"]));
            match client.get(kind, &namespace, &name).await {
                Ok(object) if object.label(REVISION).is_none_or(|own| own == revision) => found.push((kind, object)),
                Ok(_) | Err(ClientError::NotFound(_) | ClientError::NoSuchKind(_)) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot read {} {namespace}/{name}", kind.singular));
                }
            }
        }
    }
    Ok(found)
}

/// Deletes objects; `told` hears of each.
///
/// # Errors
/// When one cannot be deleted.
pub async fn remove(
    client: &ApiClient,
    found: &[Found],
    dry_run: bool,
    mut told: impl FnMut(&Object) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let options = DeleteOptions { dry_run, ..DeleteOptions::default() };
    for (kind, object) in found {
        match client.delete(kind, object.namespace(), object.name(), &options).await {
            Ok(_) => told(object)?,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error).with_context(|| format!("cannot delete {}", object.key())),
        }
    }
    Ok(())
}

/// Deployments of control planes in a namespace.
///
/// # Errors
/// As [`find`].
pub async fn control_planes(client: &ApiClient, namespace: Option<&str>) -> anyhow::Result<Vec<Object>> {
    let options = ListOptions { labels: Some("app=istiod".into()), ..ListOptions::default() };
    let list = client.list(known("Deployment")?, namespace, &options).await.context("cannot list deployments")?;
    Ok(list.items)
}

/// Revision of a control plane's object.
pub fn revision_of(object: &Object) -> &str {
    object.label(REVISION).unwrap_or("default")
}

/// Image of the control plane's container.
pub fn image_of(deployment: &Object) -> String {
    let containers = &deployment.spec()["template"]["spec"]["containers"];
    let own = containers.as_array().into_iter().flatten().find(|container| container["name"] == "discovery");
    own.and_then(|container| container["image"].as_str()).unwrap_or_default().to_string()
}

/// What was installed, as it was kept; all of a namespace, `None` for all namespaces.
///
/// # Errors
/// As [`find`].
pub async fn states(client: &ApiClient, namespace: Option<&str>) -> anyhow::Result<Vec<Object>> {
    match client.list(&KIND, namespace, &ListOptions::default()).await {
        Ok(list) => Ok(list.items.into_iter().filter(|object| object.name().starts_with(UNNAMED)).collect()),
        Err(ClientError::NoSuchKind(_) | ClientError::NotFound(_)) => Ok(Vec::new()),
        Err(error) => Err(error).context("cannot list what was installed"),
    }
}

/// Deletes the object that kept what was installed.
///
/// # Errors
/// When it cannot be deleted.
pub async fn forget(client: &ApiClient, namespace: &str, name: &str) -> anyhow::Result<()> {
    match client.delete(&KIND, namespace, name, &DeleteOptions::default()).await {
        Ok(_) | Err(ClientError::NotFound(_) | ClientError::NoSuchKind(_)) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot delete IstioOperator {namespace}/{name}")),
    }
}

/// The object that keeps what was installed. Nobody acts on it.
pub fn state(operator: &Operator, owner: &Owner, namespace: &str) -> anyhow::Result<Object> {
    let mut value = operator.object(&owner.state_name(), namespace);
    value["metadata"]["labels"] = json!({REVISION: owner.revision, OWNER: owner.name});
    value["metadata"]["annotations"] = json!({"install.istio.io/ignoreReconcile": "true"});
    serde_json::from_value(value).context("the state of the installation")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners() {
        for (name, revision, state) in [
            (UNNAMED, "default", "installed-state"),
            (UNNAMED, "canary", "installed-state-canary"),
            ("gateways", "1-8-0", "installed-state-gateways-1-8-0"),
            ("gateways", "default", "installed-state-gateways"),
        ] {
            let owner = Owner { name: name.into(), revision: revision.into(), version: "1".into() };
            assert_eq!(owner.state_name(), state);
            let object =
                owner.mark(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}}), "Pilot").unwrap();
            assert_eq!((object.label(OWNER), revision_of(&object)), (Some(name), revision));
        }
    }

    #[test]
    fn what_controllers_made_is_theirs() {
        let object = |labels: Value| {
            serde_json::from_value::<Object>(json!({"apiVersion": "v1", "kind": "X", "metadata": labels})).unwrap()
        };
        assert!(is_made(&object(json!({"name": "a", "labels": {"endpointslice.kubernetes.io/managed-by": "c"}}))));
        assert!(is_made(&object(
            json!({"name": "a", "ownerReferences": [{"apiVersion": "v1", "kind": "Y", "name": "b", "uid": "u"}]})
        )));
        assert!(!is_made(&object(json!({"name": "a"}))));
    }
}
