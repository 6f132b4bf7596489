//! Changes to objects after they are made and before they are used: `components.NAME.k8s.overlays`.
//!
//! Source: Istio's "Customizing the installation configuration", patching the output manifest. Patches are applied in their
//! order, each on what the one before left. A patch without a value deletes; a text of several lines is YAML.

use super::path;
use anyhow::{Context, bail};
use serde_json::Value;

/// Applies the overlays of one component to its objects.
///
/// # Errors
/// An overlay whose object is not among them, or whose path or value makes no sense.
pub(super) fn apply(objects: &mut [Value], overlays: &Value, component: &str) -> anyhow::Result<()> {
    for (at, overlay) in overlays.as_array().into_iter().flatten().enumerate() {
        let place = format!("{component}.k8s.overlays[{at}]");
        let (kind, name) = (text(overlay, "kind", &place)?, text(overlay, "name", &place)?);
        let version = overlay["apiVersion"].as_str();
        let is_meant = |object: &&mut Value| {
            object["kind"] == kind
                && object["metadata"]["name"] == name
                && version.is_none_or(|v| object["apiVersion"] == v)
        };
        let known: Vec<String> =
            objects.iter().map(|o| format!("{} {}", word(&o["kind"]), word(&o["metadata"]["name"]))).collect();
        let Some(object) = objects.iter_mut().find(is_meant) else {
            if overlay["optional"] == true {
                continue;
            }
            bail!("{place}: there is no {kind} {name} of this component; there are {}", known.join(", "));
        };
        for (at, patch) in overlay["patches"].as_array().into_iter().flatten().enumerate() {
            let place = format!("{place}.patches[{at}]");
            change(object, patch, &place)?;
        }
    }
    Ok(())
}

fn change(object: &mut Value, patch: &Value, place: &str) -> anyhow::Result<()> {
    let path = text(patch, "path", place)?;
    match value(&patch["value"]).with_context(|| format!("{place}.value"))? {
        Value::Null => path::remove(object, path).map(drop),
        value => path::put(object, path, value),
    }
    .with_context(|| place.to_string())
}

/// A text of several lines stands for what it says as YAML.
fn value(given: &Value) -> anyhow::Result<Value> {
    match given.as_str() {
        Some(text) if text.trim_end().contains('\n') || text.ends_with('\n') => {
            weft_k8s_api::yaml::value(text).map_err(anyhow::Error::msg)
        }
        _ => Ok(given.clone()),
    }
}

fn text<'a>(value: &'a Value, field: &str, place: &str) -> anyhow::Result<&'a str> {
    value[field].as_str().with_context(|| format!("{place}.{field} is missing"))
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn objects() -> Vec<Value> {
        vec![
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "gw"}, "spec": {"template": {"spec": {
                "containers": [{"name": "istio-proxy", "args": ["30m"], "securityContext": {}}]}}}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "gw"}, "spec": {"ports": [{"name": "https-dns", "port": 1}]}}),
        ]
    }

    #[test]
    fn patches_in_their_order() {
        let overlays = json!([
            {"kind": "Deployment", "name": "gw", "patches": [
                {"path": "spec.template.spec.containers[-1]", "value": "name: sni-proxy\nimage: nginx\n"},
                {"path": "spec.template.spec.volumes[-1]", "value": "name: v\nconfigMap:\n  name: m\n"},
                {"path": "spec.template.spec.containers.[name:istio-proxy].securityContext"},
                {"path": "spec.template.spec.containers.[name:istio-proxy].args.[30m]", "value": "60m"},
                {"path": "spec.template.spec.containers.[name:istio-proxy].args.[60m]", "value": "90m"},
            ]},
            {"kind": "Service", "name": "gw", "patches": [{"path": "spec.ports.[name:https-dns].port", "value": 11111}]},
            {"kind": "Secret", "name": "none", "optional": true, "patches": [{"path": "a", "value": 1}]},
        ]);
        let mut all = objects();
        apply(&mut all, &overlays, "components.egressGateways[0]").unwrap();
        let wanted = json!({"containers": [{"name": "istio-proxy", "args": ["90m"]}, {"name": "sni-proxy", "image": "nginx"}],
                            "volumes": [{"name": "v", "configMap": {"name": "m"}}]});
        assert_eq!(all[0]["spec"]["template"]["spec"], wanted);
        assert_eq!(all[1]["spec"]["ports"][0]["port"], 11111);
    }

    #[test]
    fn what_cannot_be_patched_is_named() {
        for (overlays, said) in [
            (json!([{"kind": "Deployment", "name": "other", "patches": []}]), "there are Deployment gw, Service gw"),
            (json!([{"kind": "Deployment", "patches": []}]), "overlays[0].name is missing"),
            (json!([{"kind": "Service", "name": "gw", "patches": [{"value": 1}]}]), "patches[0].path is missing"),
            (
                json!([{"kind": "Service", "name": "gw", "patches": [{"path": "a", "value": "x: [\n"}]}]),
                "patches[0].value",
            ),
            (
                json!([{"kind": "Service", "name": "gw", "patches": [{"path": "a[9]", "value": 1}]}]),
                "the list has 0 items",
            ),
        ] {
            let error = format!("{:#}", apply(&mut objects(), &overlays, "components.pilot").unwrap_err());
            assert!(error.contains(said), "{overlays}: {error}");
        }
    }
}
