//! The order of containers. The proxy stands last, so that `kubectl exec` means the application; first where the application
//! waits for it. Redirection is set up after the user's init containers, whose traffic then still passes; before them where
//! the proxy runs already.

use crate::annotations::{INIT, PROXY, VALIDATION};
use crate::inject::Facts;
use crate::pod::{Pod, list};
use serde_json::Value;

/// A proxy that the user wrote among the containers goes where the templates put theirs.
pub(crate) fn follow_proxy(merged: &mut Value, added: &Value) {
    let is_proxy = |container: &Value| container["name"] == PROXY;
    if !added.list("initContainers").iter().any(is_proxy) {
        return;
    }
    let Some(at) = merged.list("containers").iter().position(is_proxy) else { return };
    let proxy = list(merged, "containers").remove(at);
    list(merged, "initContainers").push(proxy);
}

/// Puts the containers into their order.
pub(crate) fn arrange(merged: &mut Value, facts: &Facts<'_>) {
    let holds = facts.proxy.holds() || facts.values.is_true("global.proxy.holdApplicationUntilProxyStarts");
    let containers = list(merged, "containers");
    move_to(containers, PROXY, holds);
    if !merged["spec"]["initContainers"].is_null() {
        arrange_init(merged);
    }
    // A volume without a source is an empty one; the API says so itself, but not every reader waits for it.
    for volume in merged["spec"]["volumes"].as_array_mut().into_iter().flatten() {
        if volume.as_object().is_some_and(|fields| fields.len() == 1) {
            volume["emptyDir"] = serde_json::json!({});
        }
    }
}

fn arrange_init(merged: &mut Value) {
    let native = merged.list("initContainers").iter().any(|container| container["name"] == PROXY);
    let init = list(merged, "initContainers");
    if native {
        [PROXY, VALIDATION, INIT].into_iter().for_each(|name| move_to(init, name, true));
    } else {
        // Nothing of the user's may run before the check.
        move_to(init, VALIDATION, true);
        move_to(init, INIT, false);
    }
}

fn move_to(containers: &mut Vec<Value>, name: &str, first: bool) {
    let Some(at) = containers.iter().position(|container| container["name"] == name) else { return };
    let container = containers.remove(at);
    containers.insert(if first { 0 } else { containers.len() }, container);
}
