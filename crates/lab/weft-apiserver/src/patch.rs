//! Applying a patch's body to an object, by its content type.

use crate::status::ApiError;
use bytes::Bytes;
use serde_json::Value;
use weft_k8s_api::KindInfo;
use weft_store::merge::{Lists, strategic_patch, three_way};

/// Operations in a JSON patch at most.
const MAX_OPERATIONS: usize = 10_000;

/// Bytes that the copy operations of a JSON patch may make.
const MAX_COPIED: usize = 3 << 20;
/// Deepest nesting of a patched object; what a JSON reader takes too.
const MAX_DEPTH: usize = 127;

/// A patch that has been read.
#[derive(Debug)]
pub(crate) enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
    /// Server-side apply: creates the object when there is none.
    Apply(Value),
}

const OFFERED: &str = "application/json-patch+json, application/merge-patch+json, \
                       application/strategic-merge-patch+json, application/apply-patch+yaml";

impl Patch {
    pub(crate) fn read(kind: &KindInfo, content_type: &str, body: &Bytes) -> Result<Self, ApiError> {
        let wrong = |e: &dyn std::fmt::Display| ApiError::bad_request(format!("the patch cannot be read: {e}"));
        let json = || serde_json::from_slice::<Value>(body).map_err(|e| wrong(&e));
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Self::read_operations(body).map(Self::Json),
            "application/merge-patch+json" => json().map(Self::Merge),
            // Custom resources have no merge keys, and Kubernetes refuses this type for them.
            "application/strategic-merge-patch+json" if has_merge_keys(kind) => json().map(Self::Strategic),
            "application/apply-patch+yaml" | "application/apply-patch" => read_yaml(body).map(Self::Apply),
            other => Err(ApiError::unsupported_media_type(other, OFFERED)),
        }
    }

    /// Reads the operations of a JSON patch (RFC 6902).
    pub(crate) fn read_operations(body: &[u8]) -> Result<json_patch::Patch, ApiError> {
        let patch: json_patch::Patch = serde_json::from_slice(body)
            .map_err(|e| ApiError::bad_request(format!("the patch cannot be read: {e}")))?;
        if patch.0.len() > MAX_OPERATIONS {
            return Err(ApiError::bad_request(format!("more than {MAX_OPERATIONS} operations")));
        }
        Ok(patch)
    }

    /// The patched object.
    pub(crate) fn apply(&self, kind: &KindInfo, current: &Value) -> Result<Value, ApiError> {
        match self {
            Self::Json(patch) => {
                let value = apply_operations(current.clone(), patch)?;
                Ok(value)
            }
            Self::Merge(patch) => {
                let mut value = current.clone();
                weft_store::merge::merge_patch(&mut value, patch);
                Ok(value)
            }
            Self::Strategic(patch) => strategic_patch(current, patch).map_err(ApiError::bad_request),
            // Of parts such as `scale`, which nobody manages by field; whole objects are merged in `managed`.
            Self::Apply(wanted) => {
                let lists = if has_merge_keys(kind) { Lists::ByKey } else { Lists::Replace };
                Ok(three_way(lists, &Value::Null, current, wanted))
            }
        }
    }
}

/// Only Kubernetes' own kinds say in their types how lists are merged.
fn has_merge_keys(kind: &KindInfo) -> bool {
    kind.versions.iter().any(|version| crate::types::of_kind(kind.group, version, kind.kind).is_some())
}

/// Copies can double a document with every operation, and additions can nest it without end: both are bounded.
pub(crate) fn apply_operations(mut value: Value, patch: &json_patch::Patch) -> Result<Value, ApiError> {
    let mut copied = 0;
    for operation in &patch.0 {
        if let json_patch::PatchOperation::Copy(copy) = operation {
            copied += value.pointer(copy.from.as_str()).map_or(0, |v| v.to_string().len());
            if copied > MAX_COPIED {
                return Err(ApiError::too_large(MAX_COPIED));
            }
        }
        json_patch::patch(&mut value, std::slice::from_ref(operation))
            .map_err(|e| ApiError::bad_request(format!("the patch does not fit the object: {e}")))?;
    }
    if is_deeper(&value, MAX_DEPTH) {
        return Err(ApiError::bad_request(format!("the patched object is nested deeper than {MAX_DEPTH} levels")));
    }
    Ok(value)
}

fn is_deeper(value: &Value, levels: usize) -> bool {
    let Some(below) = levels.checked_sub(1) else { return true };
    match value {
        Value::Array(items) => items.iter().any(|v| is_deeper(v, below)),
        Value::Object(fields) => fields.values().any(|v| is_deeper(v, below)),
        _ => false,
    }
}

/// Reads JSON or YAML.
pub(crate) fn read_yaml(body: &Bytes) -> Result<Value, ApiError> {
    if let Ok(value) = serde_json::from_slice(body) {
        return Ok(value);
    }
    let text =
        std::str::from_utf8(body).map_err(|_| ApiError::bad_request("the body is neither JSON nor UTF-8 text"))?;
    serde_saphyr::from_str(text).map_err(|e| ApiError::bad_request(format!("the body is not YAML: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use weft_k8s_api::kinds::by_any_name;

    #[test]
    fn types() {
        let current = json!({"spec": {"containers": [{"name": "a", "image": "1"}], "x": 1}});
        let table = [
            (
                "pods",
                "application/json-patch+json",
                json!([{"op": "replace", "path": "/spec/x", "value": 2}]),
                Some(json!({"spec": {"containers": [{"name": "a", "image": "1"}], "x": 2}})),
            ),
            (
                "pods",
                "application/json-patch+json; charset=utf-8",
                json!([{"op": "test", "path": "/spec/x", "value": 2}]),
                None,
            ),
            (
                "pods",
                "application/merge-patch+json",
                json!({"spec": {"containers": [{"name": "b"}], "x": null}}),
                Some(json!({"spec": {"containers": [{"name": "b"}]}})),
            ),
            (
                "pods",
                "application/strategic-merge-patch+json",
                json!({"spec": {"containers": [{"name": "a", "image": "2"}]}}),
                Some(json!({"spec": {"containers": [{"name": "a", "image": "2"}], "x": 1}})),
            ),
            ("vs", "application/strategic-merge-patch+json", json!({}), None),
            (
                "pods",
                "application/apply-patch+yaml",
                json!({"spec": {"containers": [{"name": "b"}]}}),
                Some(json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b"}], "x": 1}})),
            ),
            ("pods", "text/plain", json!({}), None),
        ];
        for (name, content_type, patch, want) in table {
            let kind = by_any_name(name).unwrap();
            let body = Bytes::from(patch.to_string());
            let got = Patch::read(kind, content_type, &body).and_then(|p| p.apply(kind, &current)).ok();
            assert_eq!(got, want, "{name} {content_type} {patch}");
        }
        let pods = by_any_name("pods").unwrap();
        let json =
            |patch: Value| Patch::read(pods, "application/json-patch+json", &Bytes::from(patch.to_string())).unwrap();
        let doubling: Vec<Value> =
            (0..40).map(|n| json!({"op": "copy", "from": "", "path": format!("/c{n}")})).collect();
        assert_eq!(json(doubling.into()).apply(pods, &current).unwrap_err().code, 413);
        let nesting: Vec<Value> = (1..200).map(|n| json!({"op": "add", "path": "/a".repeat(n), "value": {}})).collect();
        assert_eq!(json(nesting.into()).apply(pods, &current).unwrap_err().code, 400);
        assert_eq!(read_yaml(&Bytes::from("a:\n- 1\n")).unwrap(), json!({"a": [1]}));
        assert!(read_yaml(&Bytes::from("a: [")).is_err());
    }
}
