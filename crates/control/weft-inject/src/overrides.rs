//! What the user set in a container that a template adds too (`istio-proxy`, `istio-init`): it wins over the template, and is
//! kept in an annotation, so that an injected pod can be injected again.

use crate::annotations::{INIT, OVERRIDES, PROXY, STATUS, VALIDATION};
use crate::inject::{Facts, Refusal};
use crate::pod::{self, Pod};
use crate::{metrics, probes};
use serde_json::{Map, Value, json};
use weft_store::merge::strategic_patch;

/// The user's containers, by list.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Overrides(Map<String, Value>);

const LISTS: [&str; 2] = ["containers", "initContainers"];

/// The pod as it was before it was injected, and the overrides that were kept of it; a pod that was not is as it is.
///
/// # Errors
/// When the annotations of an earlier injection cannot be read.
pub(crate) fn strip(pod: &Value) -> Result<(Value, Overrides), Refusal> {
    let mut original = pod.clone();
    // Large at times, and of no interest here.
    if let Some(metadata) = original["metadata"].as_object_mut() {
        metadata.shift_remove("managedFields");
    }
    if original["spec"].is_null() {
        original["spec"] = json!({});
    }
    let Some(status) = pod.annotation(STATUS) else { return Ok((original, Overrides::default())) };
    let read = |name: &str, text: &str| -> Result<Value, Refusal> {
        let wrong = |error: serde_json::Error| Refusal::annotation(name, format!("is not JSON ({error}); remove it"));
        serde_json::from_str(text).map_err(wrong)
    };
    let status = read(STATUS, status)?;
    let kept = pod.annotation(OVERRIDES).map(|text| read(OVERRIDES, text)).transpose()?.unwrap_or(json!({}));
    // Both look at the injected proxy.
    probes::restore(&mut original);
    metrics::restore(&mut original);
    for field in ["containers", "initContainers", "volumes", "imagePullSecrets"] {
        let injected = |name: &Value| status[field].as_array().is_some_and(|names| names.contains(name));
        if original["spec"][field].is_array() {
            pod::list(&mut original, field).retain(|item| !injected(&item["name"]));
        }
    }
    for field in LISTS {
        for container in kept[field].as_array().into_iter().flatten() {
            let list = pod::list(&mut original, field);
            if !list.iter().any(|known| known["name"] == container["name"]) {
                list.push(container.clone());
            }
        }
    }
    let annotations = pod::meta(&mut original, "annotations");
    annotations.shift_remove(STATUS);
    annotations.shift_remove(OVERRIDES);
    let kept = kept.as_object().cloned().unwrap_or_default();
    Ok((original, Overrides(kept)))
}

impl Overrides {
    /// The containers of the user that a template adds too.
    pub(crate) fn found(original: &Value, added: &Value, kept: Overrides) -> Self {
        let mut found = Map::new();
        for field in LISTS {
            let mut own = Vec::new();
            for name in added.list(field).iter().map(|container| &container["name"]) {
                let named = |container: &&Value| container["name"] == *name;
                let earlier = kept.0.get(field).and_then(Value::as_array).into_iter().flatten().find(named);
                let mut here = original.list(field).iter().find(named);
                // The user writes the proxy among the containers; where it is to start first it goes to the others.
                if field == "initContainers" {
                    here = here.or_else(|| original.list("containers").iter().find(named));
                }
                if let Some(container) = earlier.or(here) {
                    let mut container = container.clone();
                    if container["image"] == "auto"
                        && let Some(fields) = container.as_object_mut()
                    {
                        fields.shift_remove("image");
                    }
                    own.push(container);
                }
            }
            if !own.is_empty() {
                found.insert(field.to_string(), own.into());
            }
        }
        Self(found)
    }

    /// Puts the user's containers over the injected ones, and keeps them in an annotation.
    ///
    /// # Errors
    /// When they do not fit.
    pub(crate) fn apply(&self, merged: &mut Value, facts: &Facts<'_>) -> Result<(), Refusal> {
        if self.0.is_empty() {
            return Ok(());
        }
        for (field, containers) in &self.0 {
            let overlay = json!({"spec": {field: containers}});
            let failed = |message: String| Refusal { field: format!("spec.{field}"), message };
            *merged = strategic_patch(merged, &overlay).map_err(failed)?;
            for container in pod::list(merged, field).iter_mut() {
                one_handler_each(container, containers);
            }
        }
        let text = Value::Object(self.0.clone()).to_string();
        pod::meta(merged, "annotations").insert(OVERRIDES.into(), text.into());
        self.adjust_users(merged, facts);
        Ok(())
    }

    /// The container that sets up or checks the redirection must know the user that the proxy runs as.
    fn adjust_users(&self, merged: &mut Value, facts: &Facts<'_>) {
        let own = self.0.values().filter_map(Value::as_array).flatten().find(|container| container["name"] == PROXY);
        let Some(security) = own.map(|container| container["securityContext"].clone()) else { return };
        let (user, group) = (security["runAsUser"].as_i64(), security["runAsGroup"].as_i64());
        let transparent = facts.proxy.interception_mode(facts.pod) == "TPROXY";
        if transparent && user.is_some() {
            // Transparent sockets need the capability, which only root keeps.
            if let Some(proxy) = pod::proxy_mut(merged) {
                proxy["securityContext"]["runAsUser"] = 0.into();
            }
        }
        let init = pod::list(merged, "initContainers");
        let Some(init) = init.iter_mut().find(|c| c["name"] == INIT || c["name"] == VALIDATION) else { return };
        if !transparent && init["name"] == VALIDATION {
            for (field, id) in [("runAsUser", user), ("runAsGroup", group)] {
                if let Some(id) = id {
                    init["securityContext"][field] = id.into();
                }
            }
        }
        let Some(user) = user.filter(|user| *user != 0) else { return };
        let args = pod::array(&mut init["args"]);
        if let Some(value) = args.iter().position(|arg| arg == "-u").and_then(|at| args.get_mut(at + 1)) {
            *value = user.to_string().into();
        }
    }
}

/// OpenShift gives every container of a pod the same user. The proxy must have another than the application, or its traffic
/// could not be told apart: where both are the same, the platform has spoken and not the user.
pub(crate) fn drop_platform_user(pod: &mut Value) {
    let user = |container: &Value| container["securityContext"]["runAsUser"].as_i64();
    let others = pod.list("containers").iter().chain(pod.list("initContainers"));
    let of_app = others.filter(|container| container["name"] != PROXY).filter_map(user).next_back();
    let Some(proxy) = pod::proxy_mut(pod).filter(|proxy| user(proxy).is_some() && user(proxy) == of_app) else {
        return;
    };
    if let Some(security) = proxy["securityContext"].as_object_mut() {
        security.shift_remove("runAsUser");
        security.shift_remove("runAsGroup");
    }
}

/// A probe or hook has one handler: the user's replaces the template's.
fn one_handler_each(container: &mut Value, own: &Value) {
    const HANDLERS: [&str; 5] = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
    let name = container["name"].clone();
    let Some(own) = own.as_array().into_iter().flatten().find(|own| own["name"] == name) else { return };
    for path in ["readinessProbe", "livenessProbe", "startupProbe", "lifecycle/preStop", "lifecycle/postStart"] {
        let pointer = format!("/{path}");
        let Some(mine) = own.pointer(&pointer).and_then(Value::as_object) else { continue };
        if !HANDLERS.iter().any(|handler| mine.contains_key(*handler)) {
            continue;
        }
        if let Some(fields) = container.pointer_mut(&pointer).and_then(Value::as_object_mut) {
            fields.retain(|field, _| mine.contains_key(field) || !HANDLERS.contains(&field.as_str()));
        }
    }
}
