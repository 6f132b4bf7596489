//! An installation on a cluster: who owns which object, what is there, and what goes.
//!
//! Source: Istio's "Managing Gateways with Multiple Revisions": objects belong to the IstioOperator (its name and namespace) and
//! the revision on their labels, and an installation touches no others.

use super::cni::NETWORK;
use super::operator::{KIND, Operator, UNNAMED};
use super::settings::Settings;
use crate::target::known;
use anyhow::Context;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use weft_k8s_api::Object;
use weft_k8s_api::kinds::{KindInfo, by_kind};
use weft_store::client::ListOptions;
use weft_store::memory::DeleteOptions;
use weft_store::{ApiClient, ClientError};

/// Label with the name of the IstioOperator that an object belongs to.
pub const OWNER: &str = "install.operator.istio.io/owning-resource";
/// Label with its namespace: for an installation from the command line, that of the control plane.
pub const OWNER_NAMESPACE: &str = "install.operator.istio.io/owning-resource-namespace";
/// What holds an IstioOperator back until an operator has uninstalled it.
pub const FINALIZER: &str = "istio-finalizer.install.istio.io";
/// Annotation of IstioOperators that nobody acts on.
pub const IGNORED: &str = "install.istio.io/ignoreReconcile";
/// Longest value of a label, bytes.
const MAX_LABEL: usize = 63;
/// Label with the revision.
pub const REVISION: &str = "istio.io/rev";
/// Label with the component.
const COMPONENT: &str = "operator.istio.io/component";
/// Label of all that the installer made.
pub const MANAGED: &str = "operator.istio.io/managed=Reconcile";
/// Kinds of which an installation has objects, in the order in which they go: first what would hold up others. Definitions are
/// not among them: with them all configuration goes.
const KINDS: [(&str, &str); 15] = [
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
    ("autoscaling", "HorizontalPodAutoscaler"),
    ("apps", "Deployment"),
    ("apps", "DaemonSet"),
    ("k8s.cni.cncf.io", "NetworkAttachmentDefinition"),
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
    /// Its namespace; that of the control plane where it is only a file.
    pub namespace: String,
    /// Revision, `default` for the one without a name.
    pub revision: String,
    /// Version that is installed; empty where the image does not say it.
    pub version: String,
}

impl Owner {
    /// Of an installation.
    pub fn new(operator: &Operator, settings: &Settings) -> Self {
        Self {
            name: operator.name.clone(),
            namespace: operator.namespace.clone().unwrap_or_else(|| settings.namespace.clone()),
            revision: settings.revision_label().to_string(),
            version: settings.tag(),
        }
    }

    /// The selector of its objects.
    pub fn selector(&self) -> String {
        format!("{OWNER}={},{OWNER_NAMESPACE}={},{REVISION}={}", self.name, self.namespace, self.revision)
    }

    /// Whether an object with its name and revision may be its own: one that nobody owns is, unless it is Helm's.
    fn may_own(&self, object: &Object) -> bool {
        is_free(object)
            || object.label(OWNER) == Some(&self.name)
                && object.label(OWNER_NAMESPACE).is_none_or(|namespace| namespace == self.namespace)
    }

    /// An object with the labels that say whose it is.
    ///
    /// # Errors
    /// When overlays have made something else of it than an object.
    pub fn mark(&self, mut value: Value, component: &str) -> anyhow::Result<Object> {
        for (name, text) in [
            (REVISION, self.revision.as_str()),
            (OWNER, &self.name),
            (OWNER_NAMESPACE, &self.namespace),
            (COMPONENT, component),
            ("operator.istio.io/managed", "Reconcile"),
        ] {
            value["metadata"]["labels"][name] = text.into();
        }
        // An image by digest, or a tag that no label can hold, says no version.
        if is_label(&self.version) {
            value["metadata"]["labels"]["operator.istio.io/version"] = self.version.as_str().into();
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

/// Whether a text can be a label's value and says something.
fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= MAX_LABEL && text.chars().all(inner) && end(text.chars().next()) && end(text.chars().next_back())
}

/// Whether nobody says that an object is his.
fn is_free(object: &Object) -> bool {
    object.label(OWNER).is_none() && object.label("app.kubernetes.io/managed-by") != Some("Helm")
}

/// The kind of an object of an installation: one that the mesh knows, or another's that it has objects of.
pub fn kind_of(group: &str, kind: &str) -> Option<&'static KindInfo> {
    by_kind(group, kind).or_else(|| (group == NETWORK.group && kind == NETWORK.kind).then_some(&NETWORK))
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
        let Some(kind) = kind_of(group, kind) else { continue };
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

/// Those of these objects, known by their names, that are on the cluster and say neither that they are another revision's nor
/// that they are another owner's; without an owner, those that have none.
///
/// # Errors
/// As [`find`].
pub async fn find_named(
    client: &ApiClient,
    objects: &[Value],
    revision: &str,
    owner: Option<&Owner>,
) -> anyhow::Result<Vec<Found>> {
    let mine = |object: &Object| {
        object.label(REVISION).is_none_or(|own| own == revision)
            && owner.map_or_else(|| is_free(object), |owner| owner.may_own(object))
    };
    let mut found = Vec::new();
    for (group, kind) in KINDS {
        let Some(kind) = kind_of(group, kind) else { continue };
        for object in objects.iter().filter(|object| object["kind"] == kind.kind) {
            let word = |value: &Value| value.as_str().unwrap_or_default().to_string();
            let (namespace, name) = (word(&object["metadata"]["namespace"]), word(&object["metadata"]["name"]));
            match client.get(kind, &namespace, &name).await {
                Ok(object) if mine(&object) => found.push((kind, object)),
                Ok(_) | Err(ClientError::NotFound(_) | ClientError::NoSuchKind(_)) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot read {} {namespace}/{name}", kind.singular));
                }
            }
        }
    }
    Ok(found)
}

/// Those of an installation's objects that belong to a namespace: by their label, else by where they are or lead to. A role of
/// the cluster goes with the binding of its name.
pub fn of_namespace(found: Vec<Found>, namespace: &str) -> Vec<Found> {
    let bound: BTreeMap<String, bool> = found
        .iter()
        .filter(|(kind, _)| kind.kind == "ClusterRoleBinding")
        .map(|(_, object)| (object.name().to_string(), home(object) == Some(namespace)))
        .collect();
    let belongs = |(kind, object): &Found| match home(object) {
        Some(home) => home == namespace,
        None => kind.kind == "ClusterRole" && bound.get(object.name()) == Some(&true),
    };
    found.into_iter().filter(belongs).collect()
}

fn home(object: &Object) -> Option<&str> {
    let leads = |path: &str| object.body.get(path.split('/').next()?)?.pointer(&path[path.find('/')?..])?.as_str();
    let labelled = object.label(OWNER_NAMESPACE);
    labelled
        .or_else(|| Some(object.namespace()).filter(|namespace| !namespace.is_empty()))
        .or_else(|| leads("webhooks/0/clientConfig/service/namespace"))
        .or_else(|| leads("subjects/0/namespace"))
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

/// All IstioOperators of a namespace, `None` for all namespaces; none where the kind is not defined.
///
/// # Errors
/// As [`find`].
async fn operators(client: &ApiClient, namespace: Option<&str>) -> anyhow::Result<Vec<Object>> {
    match client.list(&KIND, namespace, &ListOptions::default()).await {
        Ok(list) => Ok(list.items),
        Err(ClientError::NoSuchKind(_) | ClientError::NotFound(_)) => Ok(Vec::new()),
        Err(error) => Err(error).context("cannot list IstioOperators"),
    }
}

/// What was installed, as it was kept; all of a namespace, `None` for all namespaces.
///
/// # Errors
/// As [`find`].
pub async fn states(client: &ApiClient, namespace: Option<&str>) -> anyhow::Result<Vec<Object>> {
    let all = operators(client, namespace).await?;
    Ok(all.into_iter().filter(is_state).collect())
}

/// What users ask operators for: all IstioOperators but [`states`].
///
/// # Errors
/// As [`find`].
pub async fn requests(client: &ApiClient, namespace: Option<&str>) -> anyhow::Result<Vec<Object>> {
    let all = operators(client, namespace).await?;
    Ok(all.into_iter().filter(|object| !is_state(object)).collect())
}

/// Whether an IstioOperator is one that the installer keeps, not one that a user wrote.
pub fn is_state(object: &Object) -> bool {
    object.annotation(IGNORED) == Some("true") && object.label(OWNER).is_some()
}

/// The revision that an IstioOperator asks for, `default` for the one without a name.
pub fn asked_revision(object: &Object) -> &str {
    object.spec()["revision"].as_str().filter(|revision| !revision.is_empty()).unwrap_or("default")
}

/// Deletes an IstioOperator, also where no operator is left that would let it go.
///
/// # Errors
/// When it cannot be deleted.
pub async fn forget(client: &ApiClient, namespace: &str, name: &str) -> anyhow::Result<()> {
    let place = || format!("cannot delete IstioOperator {namespace}/{name}");
    match client.delete(&KIND, namespace, name, &DeleteOptions::default()).await {
        Ok(true) | Err(ClientError::NotFound(_) | ClientError::NoSuchKind(_)) => return Ok(()),
        Ok(false) => {}
        Err(error) => return Err(error).with_context(place),
    }
    // Marked as deleted before it is let go: an operator that sees it does not take it up again.
    let object = match client.get(&KIND, namespace, name).await {
        Ok(object) => object,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error).with_context(place),
    };
    let all = object.metadata.finalizers.unwrap_or_default();
    let left: Vec<&String> = all.iter().filter(|finalizer| *finalizer != FINALIZER).collect();
    match client.merge_patch(&KIND, namespace, name, &json!({"metadata": {"finalizers": left}})).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error).with_context(place),
    }
}

/// The object that keeps what was installed. Nobody acts on it.
///
/// # Errors
/// When the settings are no object.
pub fn state(operator: &Operator, owner: &Owner) -> anyhow::Result<Object> {
    let mut value = operator.object(&owner.state_name(), &owner.namespace);
    value["metadata"]["labels"] =
        json!({REVISION: owner.revision, OWNER: owner.name, OWNER_NAMESPACE: owner.namespace});
    value["metadata"]["annotations"] = json!({IGNORED: "true"});
    serde_json::from_value(value).context("the state of the installation")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str, namespace: &str, revision: &str) -> Owner {
        Owner { name: name.into(), namespace: namespace.into(), revision: revision.into(), version: "1".into() }
    }

    #[test]
    fn owners() {
        for (name, revision, state) in [
            (UNNAMED, "default", "installed-state"),
            (UNNAMED, "canary", "installed-state-canary"),
            ("gateways", "1-8-0", "installed-state-gateways-1-8-0"),
            ("gateways", "default", "installed-state-gateways"),
        ] {
            let owner = owner(name, "mesh2", revision);
            assert_eq!(owner.state_name(), state);
            let object =
                owner.mark(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}}), "Pilot").unwrap();
            assert_eq!((object.label(OWNER), revision_of(&object)), (Some(name), revision));
            assert_eq!(object.label(OWNER_NAMESPACE), Some("mesh2"));
        }
    }

    #[test]
    fn versions_that_no_label_can_hold_are_left_out() {
        let long = "a".repeat(64);
        for (version, label) in [
            ("1.8.0-rc.1", Some("1.8.0-rc.1")),
            ("", None),
            ("5000/weftd", None),
            ("-1", None),
            (long.as_str(), None),
            ("sha256:00", None),
        ] {
            let owner = Owner { version: version.into(), ..owner("a", "n", "default") };
            let object =
                owner.mark(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}}), "Pilot").unwrap();
            assert_eq!(object.label("operator.istio.io/version"), label, "{version}");
        }
    }

    fn named(kind: &str, metadata: Value, more: (&str, Value)) -> Found {
        let mut value = json!({"apiVersion": "v1", "kind": kind, "metadata": metadata});
        value[more.0] = more.1;
        (known(kind).unwrap(), serde_json::from_value::<Object>(value).unwrap())
    }

    #[test]
    fn where_objects_belong() {
        let hooks = |namespace: &str| json!([{"clientConfig": {"service": {"namespace": namespace}}}]);
        let subjects = |namespace: &str| json!([{"name": "x", "namespace": namespace}]);
        let nothing = || ("spec", json!({}));
        let found = || {
            vec![
                named(
                    "ConfigMap",
                    json!({"name": "labelled", "namespace": "b", "labels": {OWNER_NAMESPACE: "a"}}),
                    nothing(),
                ),
                named("ConfigMap", json!({"name": "there", "namespace": "a"}), nothing()),
                named("ConfigMap", json!({"name": "elsewhere", "namespace": "b"}), nothing()),
                named("MutatingWebhookConfiguration", json!({"name": "leads"}), ("webhooks", hooks("a"))),
                named("MutatingWebhookConfiguration", json!({"name": "leads-away"}), ("webhooks", hooks("b"))),
                named("ClusterRoleBinding", json!({"name": "binds"}), ("subjects", subjects("a"))),
                named("ClusterRoleBinding", json!({"name": "binds-b"}), ("subjects", subjects("b"))),
                named("ClusterRole", json!({"name": "binds"}), nothing()),
                named("ClusterRole", json!({"name": "binds-b"}), nothing()),
                named("ClusterRole", json!({"name": "unbound"}), nothing()),
            ]
        };
        for (namespace, wanted) in [
            ("a", vec!["labelled", "there", "leads", "binds", "binds"]),
            ("b", vec!["elsewhere", "leads-away", "binds-b", "binds-b"]),
            ("c", vec![]),
        ] {
            let names: Vec<String> =
                of_namespace(found(), namespace).iter().map(|(_, o)| o.name().to_string()).collect();
            assert_eq!(names, wanted, "{namespace}");
        }
    }

    #[test]
    fn whose_objects_may_go() {
        let me = owner("me", "a", "default");
        for (labels, mine) in [
            (json!({}), true),
            (json!({OWNER: "me"}), true),
            (json!({OWNER: "me", OWNER_NAMESPACE: "a"}), true),
            (json!({OWNER: "me", OWNER_NAMESPACE: "b"}), false),
            (json!({OWNER: "other", OWNER_NAMESPACE: "a"}), false),
            (json!({"app.kubernetes.io/managed-by": "Helm"}), false),
        ] {
            let (_, object) = named("Service", json!({"name": "x", "labels": labels}), ("spec", json!({})));
            assert_eq!(me.may_own(&object), mine, "{labels}");
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
