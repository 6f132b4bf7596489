//! What the server's CustomResourceDefinitions say: which kinds there are, in which versions, and in which of them objects
//! are stored. Reading in that version spares the server a conversion of every object.

use crate::cache::Cache;
use crate::source::{KindState, SourceState};
use serde_json::Value;
use std::sync::Arc;
use tokio::sync::watch;
use weft_k8s_api::{Kept, KindInfo, Object};

/// The kind of definitions.
pub(crate) static DEFINITION: KindInfo = KindInfo {
    group: "apiextensions.k8s.io",
    versions: &["v1"],
    kind: "CustomResourceDefinition",
    plural: "customresourcedefinitions",
    singular: "customresourcedefinition",
    short: &[],
    namespaced: false,
    categories: &[],
};

/// What of them is read: schemas are large, and of no use here.
pub(crate) const KEPT: Kept = Kept::Fields(&[("spec", Kept::Fields(&[("versions", VERSION)]))]);
const VERSION: Kept = Kept::Fields(&[("name", Kept::All), ("served", Kept::All), ("storage", Kept::All)]);

/// The definitions as they are now.
#[derive(Clone)]
pub(crate) struct Definitions {
    cache: Arc<Cache>,
    state: watch::Receiver<SourceState>,
}

/// What the definitions say of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Defined {
    /// Read it in this version.
    In(&'static str),
    /// There is no definition of it. (Built-in kinds have none.)
    No,
    /// It is served, but in no version that is known here: the versions.
    Unknown(Vec<String>),
}

impl Definitions {
    pub(crate) fn new(cache: Arc<Cache>, state: watch::Receiver<SourceState>) -> Self {
        Self { cache, state }
    }

    /// What is said of `kind`.
    pub(crate) fn of(&self, kind: &KindInfo) -> Defined {
        let name = format!("{}.{}", kind.plural, kind.group);
        match self.cache.find(DEFINITION.group, DEFINITION.kind, "", &name) {
            Some(definition) => choose(kind.versions, &definition),
            None => Defined::No,
        }
    }

    /// Whether the definitions are read now, so that the absence of one means something.
    pub(crate) fn reliable(&self) -> bool {
        self.state.borrow().kinds.values().all(|state| *state == KindState::Watching)
    }

    /// Whether the server certainly has no such kind. (A server says "forbidden" of kinds that it does not have, too.)
    pub(crate) fn deny(&self, kind: &KindInfo) -> bool {
        !is_built_in(kind.group) && self.reliable() && self.of(kind) == Defined::No
    }

    /// Returns when the definitions have been asked for once, whatever the answer.
    pub(crate) async fn asked(&self) {
        let mut state = self.state.clone();
        let asked = |s: &SourceState| !s.kinds.values().any(|k| *k == KindState::Pending(None));
        let _ = state.wait_for(asked).await;
    }

    /// Tells of changes of any definition.
    pub(crate) fn changed(&self) -> watch::Receiver<u64> {
        self.cache.changed()
    }
}

/// Groups that are part of every server; they have no definitions.
pub fn is_built_in(group: &str) -> bool {
    const OF_K8S_IO: &[&str] = &[
        "networking",
        "discovery",
        "coordination",
        "rbac.authorization",
        "admissionregistration",
        "apiextensions",
        "authentication",
        "authorization",
        "certificates",
        "events",
        "flowcontrol.apiserver",
        "node",
        "resource",
        "scheduling",
        "storage",
    ];
    matches!(group, "" | "apps" | "batch" | "autoscaling" | "policy")
        || group.strip_suffix(".k8s.io").is_some_and(|name| OF_K8S_IO.contains(&name))
}

/// The stored version where it is served and known, else the first known one that is served.
fn choose(known: &'static [&'static str], definition: &Object) -> Defined {
    let versions = definition.spec().get("versions").and_then(Value::as_array);
    let is = |v: &&Value, field: &str| v.get(field).and_then(Value::as_bool) == Some(true);
    let served: Vec<&Value> = versions.into_iter().flatten().filter(|v| is(v, "served")).collect();
    let name = |v: &&Value| v.get("name").and_then(Value::as_str).unwrap_or_default().to_string();
    let stored = served.iter().copied().find(|v| is(v, "storage")).map(|v| name(&v));
    let names: Vec<String> = served.iter().map(name).collect();
    let by_name = |wanted: &str| known.iter().copied().find(|k| *k == wanted);
    let first = || known.iter().copied().find(|k| names.iter().any(|n| n == k));
    match stored.as_deref().and_then(by_name).or_else(first) {
        Some(version) => Defined::In(version),
        None if names.is_empty() => Defined::No,
        None => Defined::Unknown(names),
    }
}

/// Takes the rest from one that a watch has brought.
pub(crate) fn trim(object: &mut Object) {
    let mut body = Value::Object(std::mem::take(&mut object.body));
    KEPT.apply(&mut body);
    if let Value::Object(fields) = body {
        object.body = fields;
    }
    object.metadata.managed_fields = None;
    object.metadata.annotations = None;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn definition(versions: &[(&str, bool, bool)]) -> Object {
        let version = |(name, served, storage): &(&str, bool, bool)| json!({"name": name, "served": served, "storage": storage, "schema": {"openAPIV3Schema": {}}});
        let versions: Vec<Value> = versions.iter().map(version).collect();
        let mut object = serde_json::from_value(json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "a"},
            "spec": {"group": "g", "versions": versions}, "status": {"storedVersions": ["v1"]},
        }))
        .unwrap();
        trim(&mut object);
        assert!(!object.to_value().to_string().contains("openAPIV3Schema"));
        object
    }

    #[test]
    fn groups_of_every_server() {
        for group in ["", "apps", "discovery.k8s.io", "rbac.authorization.k8s.io"] {
            assert!(is_built_in(group), "{group}");
        }
        for group in ["gateway.networking.k8s.io", "networking.x-k8s.io", "networking.istio.io"] {
            assert!(!is_built_in(group), "{group}");
        }
    }

    #[test]
    fn the_stored_version_is_read() {
        const KNOWN: &[&str] = &["v1", "v1beta1", "v1alpha3"];
        /// Name, served, stored.
        type Versions = &'static [(&'static str, bool, bool)];
        let table: &[(Versions, Defined)] = &[
            (&[("v1", true, true), ("v1beta1", true, false)], Defined::In("v1")),
            (&[("v1", true, false), ("v1beta1", true, true)], Defined::In("v1beta1")),
            (&[("v1alpha3", true, false), ("v1beta1", false, true)], Defined::In("v1alpha3")),
            (&[("v2", true, true), ("v1", true, false)], Defined::In("v1")),
            (&[("v2", true, true)], Defined::Unknown(vec!["v2".into()])),
            (&[("v1", false, true)], Defined::No),
        ];
        for (versions, want) in table {
            assert_eq!(choose(KNOWN, &definition(versions)), *want, "{versions:?}");
        }
    }
}
