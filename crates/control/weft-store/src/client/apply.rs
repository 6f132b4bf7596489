//! Apply: create, or bring an existing object to what a file says, as `kubectl apply` does. What an earlier apply set and the
//! file no longer has is removed; what others set stays.

use super::{ApiClient, ClientError, WriteOptions, known_kind};
use crate::merge::{Lists, three_way};
use serde_json::{Map, Value};
use weft_k8s_api::Object;

/// The annotation that keeps what was applied last; shared with kubectl.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Repetitions when another writer is quicker.
const ATTEMPTS: usize = 8;

/// Parameters of an apply.
#[derive(Debug, Clone, Default)]
pub struct ApplyOptions {
    /// Check everything on the server, change nothing.
    pub dry_run: bool,
    /// Who writes. Default `weft`.
    pub field_manager: Option<String>,
}

/// What an apply did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The object is new.
    Created,
    /// The object was changed.
    Configured,
    /// The object was already so.
    Unchanged,
}

impl Outcome {
    /// The word that kubectl prints.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        }
    }
}

/// Result of an apply.
#[derive(Debug, Clone)]
pub struct Applied {
    /// What was done.
    pub outcome: Outcome,
    /// The object as the server has it now.
    pub object: Object,
    /// The server's warnings.
    pub warnings: Vec<String>,
}

impl ApiClient {
    /// Creates the object or changes the existing one to match.
    ///
    /// # Errors
    /// [`ClientError::Invalid`], [`ClientError::NotFound`] (namespace), [`ClientError::Conflict`] after several tries, and
    /// their kin.
    pub async fn apply(&self, object: &Object, options: &ApplyOptions) -> Result<Applied, ClientError> {
        let kind = known_kind(object)?;
        let wanted = with_annotation(self.placed(kind, object))?;
        let manager = options.field_manager.clone().unwrap_or_else(|| "weft".into());
        let write = WriteOptions { dry_run: options.dry_run, field_manager: Some(manager) };
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let result = match self.read_same_version(&wanted).await {
                Ok(current) => self.change(current, &wanted, &write).await,
                Err(ClientError::NotFound(_)) => self.create(&wanted, &write).await.map(|written| Applied {
                    outcome: Outcome::Created,
                    object: written.object,
                    warnings: written.warnings,
                }),
                Err(error) => Err(error),
            };
            match result {
                // Someone else wrote between our read and our write.
                Err(error @ (ClientError::Conflict(_) | ClientError::AlreadyExists(_))) => last = Some(error),
                result => return result,
            }
        }
        Err(last.unwrap_or_else(|| ClientError::Conflict(format!("{}: too many writers", wanted.key()))))
    }

    async fn read_same_version(&self, wanted: &Object) -> Result<Object, ClientError> {
        let kind = known_kind(wanted)?;
        let path = super::object_path(kind, Some(wanted.version()), wanted.namespace(), wanted.name());
        let answer = self.call(http::Method::GET, &path, None).await?;
        self.parse(&path, &answer.body)
    }

    async fn change(&self, current: Object, wanted: &Object, write: &WriteOptions) -> Result<Applied, ClientError> {
        let merged = merge(&current, wanted)?;
        if merged == current {
            return Ok(Applied { outcome: Outcome::Unchanged, object: current, warnings: Vec::new() });
        }
        let written = self.replace(&merged, write).await?;
        Ok(Applied { outcome: Outcome::Configured, object: written.object, warnings: written.warnings })
    }
}

fn merge(current: &Object, wanted: &Object) -> Result<Object, ClientError> {
    let original = current
        .annotation(LAST_APPLIED)
        .and_then(|text| serde_json::from_str::<Value>(text).ok())
        .unwrap_or_else(|| Value::Object(Map::new()));
    let lists = Lists::of_group(wanted.group());
    let mut merged = three_way(lists, &original, &current.to_value(), &wanted.to_value());
    // Only on the state that was read.
    if let Some(meta) = merged.get_mut("metadata").and_then(Value::as_object_mut)
        && let Some(version) = &current.metadata.resource_version
    {
        meta.insert("resourceVersion".into(), version.clone().into());
    }
    serde_json::from_value(merged)
        .map_err(|e| ClientError::Invalid { message: format!("{}: {e}", wanted.key()), causes: Vec::new() })
}

/// The object without what only servers set, and with itself as annotation.
fn with_annotation(mut object: Object) -> Result<Object, ClientError> {
    object.body.shift_remove("status");
    let meta = &mut object.metadata;
    meta.resource_version = None;
    meta.uid = None;
    meta.creation_timestamp = None;
    meta.generation = None;
    meta.managed_fields = None;
    meta.self_link = None;
    let annotations = meta.annotations.get_or_insert_default();
    annotations.remove(LAST_APPLIED);
    let text = canonical(&object.to_value()).to_string() + "\n";
    object.metadata.annotations.get_or_insert_default().insert(LAST_APPLIED.into(), text);
    if object.name().is_empty() {
        let message = format!("{}: apply needs metadata.name (generateName works with create only)", object.kind);
        return Err(ClientError::Invalid { message, causes: Vec::new() });
    }
    Ok(object)
}

/// Fields in alphabetical order: kubectl writes the annotation so, and the two must agree that nothing changed.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut sorted: Vec<_> = fields.iter().collect();
            sorted.sort_by(|a, b| a.0.cmp(b.0));
            let mut fields: Map<String, Value> = sorted.into_iter().map(|(k, v)| (k.clone(), canonical(v))).collect();
            // Kept even when empty, as kubectl keeps it.
            if let Some(Value::Object(meta)) = fields.get_mut("metadata")
                && !meta.contains_key("annotations")
                && meta.contains_key("name")
            {
                meta.shift_insert(0, "annotations".into(), Value::Object(Map::new()));
            }
            Value::Object(fields)
        }
        Value::Array(items) => Value::Array(items.iter().map(canonical).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn annotation_is_what_kubectl_writes() {
        let object: Object = serde_json::from_value(json!({
            "kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a", "namespace": "n"}, "data": {"k": "v"},
        }))
        .unwrap();
        let annotated = with_annotation(object).unwrap();
        let want = "{\"apiVersion\":\"v1\",\"data\":{\"k\":\"v\"},\"kind\":\"ConfigMap\",\
                    \"metadata\":{\"annotations\":{},\"name\":\"a\",\"namespace\":\"n\"}}\n";
        assert_eq!(annotated.annotation(LAST_APPLIED), Some(want));
        let again = with_annotation(annotated.clone()).unwrap();
        assert_eq!(again, annotated, "the annotation never contains itself");
    }

    #[test]
    fn removed_fields_go_and_foreign_fields_stay() {
        let read = |v: Value| serde_json::from_value::<Object>(v).unwrap();
        let first = with_annotation(read(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"x": "1", "y": "2"}},
            "data": {"k": "v", "old": "1"},
        })))
        .unwrap();
        let mut current = first.clone();
        current.metadata.labels.as_mut().unwrap().insert("theirs".into(), "1".into());
        current.metadata.resource_version = Some("7".into());
        let second = with_annotation(read(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"x": "1"}},
            "data": {"k": "w"},
        })))
        .unwrap();
        let merged = merge(&current, &second).unwrap();
        assert_eq!(merged.body.get("data"), Some(&json!({"k": "w"})));
        assert_eq!(merged.label("theirs"), Some("1"));
        assert_eq!(merged.label("y"), None);
        assert_eq!(merged.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(merge(&merged, &second).unwrap(), merged, "a second apply changes nothing");
    }
}
