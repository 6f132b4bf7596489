//! The built-in template `gateway`: a pod whose only container is a proxy that is no application's.

use crate::inject::Facts;
use crate::sidecar;
use serde_json::{Value, json};

/// What is laid over the pod.
pub(crate) fn overlay(facts: &Facts<'_>) -> Value {
    let own = facts.values.get("gateways.securityContext");
    let security = match own.as_object() {
        Some(fields) if !fields.is_empty() => own.clone(),
        // Ports below 1024 without a capability.
        _ => json!({"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]}),
    };
    let mut container = json!({
        "name": crate::annotations::PROXY,
        "image": sidecar::proxy_image(facts),
        "ports": [{"containerPort": 15090, "protocol": "TCP", "name": "http-envoy-prom"}],
        "args": sidecar::arguments(facts, "router"),
        "securityContext": {"runAsUser": facts.uid, "runAsGroup": facts.gid},
        "env": sidecar::environment(facts, false),
        "readinessProbe": sidecar::readiness(facts, false),
        "volumeMounts": sidecar::mounts(facts, false),
    });
    sidecar::pull_policy(facts, &mut container);
    let lifecycle = facts.values.get("global.proxy.lifecycle");
    if lifecycle.is_object() {
        container["lifecycle"] = lifecycle.clone();
    }
    let mut spec =
        json!({"securityContext": security, "containers": [container], "volumes": sidecar::volumes(facts, false)});
    sidecar::pull_secrets(facts, &mut spec);
    json!({"metadata": {"labels": sidecar::labels(facts, false), "annotations": sidecar::annotations(facts)}, "spec": spec})
}
