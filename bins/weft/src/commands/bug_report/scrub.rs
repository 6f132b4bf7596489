//! What must not leave the cluster is taken out of everything that a report holds: Secrets' data, keys, tokens, and values of
//! variables of containers that are not the mesh's. Pure.

use serde_json::{Value, json};
use weft_k8s_api::Object;

/// What stands in place of what was taken out.
pub const REMOVED: &str = "[removed]";
/// Annotation with an object as `kubectl apply` was given it.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Containers of the mesh: what their variables say is configuration, and no secret.
const OF_THE_MESH: [&str; 7] =
    ["istio-proxy", "istio-init", "istio-validation", "discovery", "install-cni", "istio-operator", "operator"];
/// Fields with lists of containers, and where templates of pods are.
const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
const POD_SPECS: [&str; 3] = ["/spec", "/spec/template/spec", "/spec/jobTemplate/spec/template/spec"];
/// Begin and end of a key in PEM.
const PEM_BEGIN: &str = "-----BEGIN ";
const PEM_KEY: &str = "PRIVATE KEY-----";
const PEM_END: &str = "-----END ";
/// Beginning of a JSON web token: `{"` in base64url.
const JWT: &str = "eyJ";
/// The word before a token in headers, but for its first letter, which may be large.
const EARER: &str = "earer ";
/// Shorter words after it are no tokens, but prose.
const SHORTEST_TOKEN: usize = 16;

/// An object fit to be shown to strangers.
pub fn object(object: &Object) -> Value {
    let mut value = object.to_value();
    let metadata = &mut value["metadata"];
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.shift_remove("managedFields");
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.shift_remove(LAST_APPLIED);
        }
    }
    if object.group().is_empty() && object.kind == "Secret" {
        for field in ["data", "stringData"] {
            for (_, item) in value[field].as_object_mut().into_iter().flatten() {
                *item = REMOVED.into();
            }
        }
        if value["stringData"].is_null()
            && let Some(fields) = value.as_object_mut()
        {
            fields.shift_remove("stringData");
        }
    }
    for place in POD_SPECS {
        if let Some(spec) = value.pointer_mut(place) {
            variables(spec);
        }
    }
    strings(&mut value);
    value
}

/// Takes the values of variables out of the containers of a pod that are not the mesh's.
fn variables(spec: &mut Value) {
    for list in CONTAINERS {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        let others = containers.filter(|c| !c["name"].as_str().is_some_and(|name| OF_THE_MESH.contains(&name)));
        for container in others {
            let variables = container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten();
            variables.filter(|v| v["value"].is_string()).for_each(|variable| variable["value"] = json!(REMOVED));
        }
    }
}

fn strings(value: &mut Value) {
    match value {
        Value::String(found) => {
            if let Some(clean) = changed(found) {
                *found = clean;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(strings),
        Value::Object(fields) => fields.values_mut().for_each(strings),
        _ => {}
    }
}

/// A text without private keys and tokens.
pub fn text(found: &str) -> String {
    changed(found).unwrap_or_else(|| found.to_string())
}

/// The clean text; `None` where there is nothing to take out.
fn changed(found: &str) -> Option<String> {
    let suspicious = found.contains(PEM_KEY) || found.contains(JWT) || found.contains(EARER);
    suspicious.then(|| bearers(&tokens(&keys(found))))
}

/// Without private keys; one that is cut off goes to its end.
fn keys(found: &str) -> String {
    let mut out = String::with_capacity(found.len());
    let mut rest = found;
    while let Some(at) = rest.find(PEM_BEGIN) {
        let (before, block) = rest.split_at(at);
        out.push_str(before);
        // The label stands on the line that begins the block.
        let head =
            block.get(PEM_BEGIN.len()..).and_then(|label| label.find("-----")).map(|end| PEM_BEGIN.len() + end + 5);
        let head = head.unwrap_or(block.len());
        if !block[..head].ends_with(PEM_KEY) {
            out.push_str(&block[..head]);
            rest = &block[head..];
            continue;
        }
        out.push_str(REMOVED);
        let end = block[head..].find(PEM_END).map(|at| head + at);
        let end = end.and_then(|at| block[at..].find(PEM_KEY).map(|more| at + more + PEM_KEY.len()));
        rest = &block[end.unwrap_or(block.len())..];
    }
    out.push_str(rest);
    out
}

fn of_base64url(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// Without JSON web tokens: three words of base64url with dots between, of which the first is an object.
fn tokens(found: &str) -> String {
    let mut out = String::with_capacity(found.len());
    let mut rest = found;
    while let Some(at) = rest.find(JWT) {
        let (before, word) = rest.split_at(at);
        out.push_str(before);
        let end = word.find(|c| !of_base64url(c) && c != '.').unwrap_or(word.len());
        let is_token = word[..end].split('.').filter(|part| !part.is_empty()).count() >= 2;
        out.push_str(if is_token { REMOVED } else { &word[..end] });
        rest = &word[end..];
    }
    out.push_str(rest);
    out
}

/// Without what follows the word Bearer.
fn bearers(found: &str) -> String {
    let mut out = String::with_capacity(found.len());
    let mut rest = found;
    let first = |text: &str| {
        let mut found = text.match_indices(EARER);
        found
            .find(|(at, _)| text.as_bytes().get(at.wrapping_sub(1)).is_some_and(|b| matches!(b, b'B' | b'b')))
            .map(|(at, _)| at)
    };
    while let Some(at) = first(rest) {
        let (before, after) = rest.split_at(at + EARER.len());
        out.push_str(before);
        let of_token = |c: char| of_base64url(c) || "._~+/=".contains(c);
        let end = after.find(|c| !of_token(c)).unwrap_or(after.len());
        out.push_str(if end >= SHORTEST_TOKEN { REMOVED } else { &after[..end] });
        rest = &after[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let key = "-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----";
        let certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----";
        let token = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.c2ln";
        for (found, left) in [
            ("nothing".to_string(), "nothing".to_string()),
            (format!("a {key} b {certificate}"), format!("a {REMOVED} b {certificate}")),
            (format!("{certificate}\n{key}\n{key}"), format!("{certificate}\n{REMOVED}\n{REMOVED}")),
            (format!("cut {}", &key[..36]), format!("cut {REMOVED}")),
            ("-----BEGIN PRIVATE KEY-----".into(), REMOVED.into()),
            ("-----BEGIN ".into(), "-----BEGIN ".into()),
            (format!("token={token}, {token}"), format!("token={REMOVED}, {REMOVED}")),
            ("eyJust a word".into(), "eyJust a word".into()),
            ("authorization: Bearer 0123456789abcdef/+=, x".into(), format!("authorization: Bearer {REMOVED}, x")),
            ("needs Bearer TOKEN of a service account".into(), "needs Bearer TOKEN of a service account".into()),
            ("größer bearer 0123456789abcdefß".into(), format!("größer bearer {REMOVED}ß")),
        ] {
            assert_eq!(text(&found), left, "{found}");
        }
    }

    #[test]
    fn objects() {
        let shown = |value: Value| object(&serde_json::from_value::<Object>(value).unwrap());
        let secret = shown(json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": {"password": "c2VjcmV0"}, "stringData": {"p": "secret"},
            "metadata": {"name": "s", "managedFields": [{}], "annotations": {LAST_APPLIED: "c2VjcmV0", "a": "b"}},
        }));
        assert!(!secret.to_string().contains("\"secret\"") && !secret.to_string().contains("c2VjcmV0"), "{secret}");
        assert_eq!(
            (&secret["data"]["password"], &secret["metadata"]["annotations"]),
            (&json!(REMOVED), &json!({"a": "b"}))
        );
        let variables = json!([{"name": "PASSWORD", "value": "hunter2"}, {"name": "N", "valueFrom": {"fieldRef": {}}}]);
        let pod = json!({"containers": [{"name": "app", "env": variables}, {"name": "istio-proxy", "env": [{"name": "A", "value": "b"}]}]});
        for spec in [
            pod.clone(),
            json!({"template": {"spec": pod}}),
            json!({"jobTemplate": {"spec": {"template": {"spec": pod}}}}),
        ] {
            let shown =
                shown(json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": "x"}, "spec": spec})).to_string();
            assert!(
                !shown.contains("hunter2") && shown.contains(r#""value":"b""#) && shown.contains("fieldRef"),
                "{shown}"
            );
        }
        let filter = shown(
            json!({"apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter", "metadata": {"name": "f"},
            "spec": {"key": "-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----"}}),
        );
        assert_eq!(filter["spec"]["key"], REMOVED);
    }
}
