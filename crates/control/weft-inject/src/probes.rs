//! Probes and hooks of the application: the kubelet has no certificate of the mesh, so it asks the agent, and the agent asks
//! the application. What it is to ask stands in a variable of the proxy, by path.

use crate::annotations::{PROXY, REWRITE_PROBES, STATUS_PORT, as_bool};
use crate::inject::{Facts, Refusal};
use crate::pod::{Pod, env, proxy_mut, set_env};
use serde_json::{Map, Value, json};

const VARIABLE: &str = "ISTIO_KUBE_APP_PROBERS";
/// Each probe and hook: where it stands in a container, and the last word of its path.
const PROBES: [(&str, &str); 5] = [
    ("/readinessProbe", "readyz"),
    ("/livenessProbe", "livez"),
    ("/startupProbe", "startupz"),
    ("/lifecycle/preStop", "prestopz"),
    ("/lifecycle/postStart", "poststartz"),
];
const HANDLERS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];

/// Points probes and hooks at the agent.
///
/// # Errors
/// When the annotation that chooses the agent's port is not a port.
pub(crate) fn rewrite(merged: &mut Value, facts: &Facts<'_>) -> Result<(), Refusal> {
    let by_pod = merged.annotation(REWRITE_PROBES).and_then(as_bool);
    let wanted = by_pod.unwrap_or_else(|| facts.values.is_true("sidecarInjectorWebhook.rewriteAppHTTPProbe"));
    if !wanted || merged.proxy().is_none() {
        return Ok(());
    }
    let port = match merged.annotation(STATUS_PORT) {
        Some(text) => text.trim().parse::<u16>().map_err(|_| Refusal::annotation(STATUS_PORT, "is not a port"))?,
        None => facts.proxy.status_port(),
    };
    let mut moved = Map::new();
    for field in ["initContainers", "containers"] {
        for container in merged["spec"][field].as_array_mut().into_iter().flatten() {
            if container["name"] != PROXY {
                rewrite_container(container, port, &mut moved);
            }
        }
    }
    if !moved.is_empty() {
        moved.sort_keys();
        if let Some(proxy) = proxy_mut(merged) {
            set_env(proxy, VARIABLE, &Value::Object(moved).to_string());
        }
    }
    Ok(())
}

fn rewrite_container(container: &mut Value, port: u16, moved: &mut Map<String, Value>) {
    let name = container["name"].as_str().unwrap_or_default().to_string();
    let ports = container["ports"].clone();
    for (pointer, word) in PROBES {
        let Some(probe) = container.pointer_mut(pointer) else { continue };
        let Some(handler) = HANDLERS.into_iter().find(|handler| probe[*handler].is_object()) else { continue };
        let mut asked = probe[handler].clone();
        // A port by name is the container's own; one that is not there can be asked by nobody.
        if let Some(named) = asked["port"].as_str() {
            let number = ports.as_array().into_iter().flatten().find(|port| port["name"] == named);
            let parsed = named.parse::<u16>().ok().map(Value::from);
            let Some(number) = number.map(|port| port["containerPort"].clone()).or(parsed) else { continue };
            asked["port"] = number;
        }
        if asked["port"] == port {
            continue;
        }
        let path = format!("/app-health/{name}/{word}");
        let mut prober = json!({handler: asked});
        if let Some(seconds) = probe["timeoutSeconds"].as_i64() {
            prober["timeoutSeconds"] = seconds.into();
        }
        moved.insert(path.clone(), prober);
        let mut get = if handler == "httpGet" { probe[handler].clone() } else { json!({}) };
        get["path"] = path.into();
        get["port"] = port.into();
        // The agent itself speaks HTTP; it is the one that then speaks TLS.
        if get["scheme"] == "HTTPS" {
            get["scheme"] = "HTTP".into();
        }
        if let Some(fields) = probe.as_object_mut() {
            fields.shift_remove(handler);
            fields.insert("httpGet".into(), get);
        }
    }
}

/// Gives a pod its own probes back, out of its proxy's variable.
pub(crate) fn restore(pod: &mut Value) {
    let text = pod.proxy().and_then(|proxy| env(proxy, VARIABLE)).map(str::to_string);
    let Some(Value::Object(moved)) = text.and_then(|text| serde_json::from_str(&text).ok()) else { return };
    for field in ["initContainers", "containers"] {
        for container in pod["spec"][field].as_array_mut().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_string();
            for (pointer, word) in PROBES {
                let Some(prober) = moved.get(&format!("/app-health/{name}/{word}")) else { continue };
                let Some(probe) = container.pointer_mut(pointer).and_then(Value::as_object_mut) else { continue };
                probe.shift_remove("httpGet");
                for handler in HANDLERS.into_iter().filter(|handler| prober[*handler].is_object()) {
                    probe.insert(handler.into(), prober[handler].clone());
                }
            }
        }
    }
}
