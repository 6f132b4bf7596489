//! Any Kubernetes object: the envelope typed, the rest as JSON.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

/// An object as the store keeps it. Serialises to exactly what a Kubernetes API serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Object {
    /// `v1`, `apps/v1`, `networking.istio.io/v1` …
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name, namespace, labels, resource version …
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Everything else: `spec`, `data`, `status` …
    #[serde(flatten)]
    pub body: Map<String, Value>,
}

impl Object {
    /// Group of the API version; empty for the core group.
    pub fn group(&self) -> &str {
        self.api_version.rsplit_once('/').map_or("", |(group, _)| group)
    }

    /// Version without the group.
    pub fn version(&self) -> &str {
        self.api_version.rsplit_once('/').map_or(self.api_version.as_str(), |(_, version)| version)
    }

    /// Name, or empty.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// Namespace, or empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Identity of the object in the store.
    pub fn key(&self) -> ObjectKey {
        ObjectKey {
            group: self.group().into(),
            kind: self.kind.clone(),
            namespace: self.namespace().into(),
            name: self.name().into(),
        }
    }

    /// Unix seconds of creation; 0 when not set.
    pub fn created(&self) -> i64 {
        self.metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second())
    }

    /// A label's value.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// An annotation's value.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// `body.spec`, or null.
    pub fn spec(&self) -> &Value {
        self.body.get("spec").unwrap_or(&Value::Null)
    }

    /// The whole object as JSON.
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }

    /// Reads the whole object as a typed Kubernetes struct, e.g. `k8s_openapi::api::core::v1::Service`.
    ///
    /// # Errors
    /// When the object is not of that shape.
    pub fn typed<T: serde::de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        use serde::de::Error;
        crate::de::read(&self.to_value(), "", crate::de::Dialect::Kubernetes, &mut Vec::new())
            .map_err(|e| serde_json::Error::custom(format!("{}: {e}", self.key())))
    }

    /// Turns a typed Kubernetes struct into an object.
    ///
    /// # Errors
    /// When it has no `apiVersion` and `kind`.
    pub fn from_typed<T: Serialize>(typed: &T) -> Result<Self, serde_json::Error> {
        serde_json::from_value(serde_json::to_value(typed)?)
    }
}

/// Group, kind, namespace and name. The version is left out: all versions of a kind are one object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// API group; empty for core.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}
