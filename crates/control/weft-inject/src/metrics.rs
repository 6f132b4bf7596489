//! The application's metrics, served by the proxy with its own: the pod's `prometheus.io` annotations move into a variable of
//! the proxy, and point at the agent instead.

use crate::annotations::{MERGE_METRICS, as_bool};
use crate::inject::{Facts, Refusal};
use crate::pod::{self, Pod, env, proxy_mut, set_env};
use serde_json::{Value, json};
use weft_core::well_known::annotation::{PROMETHEUS_PATH, PROMETHEUS_PORT, PROMETHEUS_SCRAPE};
use weft_core::well_known::port;

const VARIABLE: &str = "ISTIO_PROMETHEUS_ANNOTATIONS";
const KNOWN: [&str; 3] = [PROMETHEUS_SCRAPE, PROMETHEUS_PORT, PROMETHEUS_PATH];

/// Prometheus does not tell `prometheus.io/port` from `prometheus.io.port` or `prometheus-io_port`.
fn means(name: &str, known: &str) -> bool {
    let plain = |text: &str| text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect::<String>();
    plain(name) == plain(known)
}

fn annotated(pod: &Value, known: &str) -> Option<String> {
    let all = pod["metadata"]["annotations"].as_object()?;
    let (_, value) = all.iter().find(|(name, _)| means(name, known))?;
    value.as_str().map(str::to_string)
}

/// Whether the pod's metrics are merged: it says so itself, or the mesh does; without a word they are.
fn wanted(pod: &Value, facts: &Facts<'_>) -> bool {
    let own = pod.annotation(MERGE_METRICS).and_then(as_bool);
    let merges = own.or_else(|| facts.mesh["enablePrometheusMerge"].as_bool()).unwrap_or(true);
    merges && annotated(pod, PROMETHEUS_SCRAPE).and_then(|text| as_bool(&text)).unwrap_or(true)
}

/// Merges the metrics of a pod.
///
/// # Errors
/// When the application's port is none, or one of the proxy's.
pub(crate) fn merge(merged: &mut Value, facts: &Facts<'_>) -> Result<(), Refusal> {
    if !wanted(merged, facts) {
        return Ok(());
    }
    let target = facts.proxy.status_port().to_string();
    let own = KNOWN.map(|known| annotated(merged, known));
    let [scrape, own_port, path] = &own;
    // Set by the user to what we would set it to: there is nothing of the application's to move.
    if own_port.as_deref() == Some(target.as_str()) {
        return Ok(());
    }
    if let Some(text) = own_port {
        check_port(text)?;
    }
    if own.iter().any(Option::is_some) {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let scrape = json!({"scrape": text(scrape), "path": text(path), "port": text(own_port)});
        if let Some(proxy) = proxy_mut(merged) {
            set_env(proxy, VARIABLE, &scrape.to_string());
        }
    }
    let annotations = pod::meta(merged, "annotations");
    annotations.retain(|name, _| !KNOWN.iter().any(|known| means(name, known)));
    for (name, value) in [
        (PROMETHEUS_PATH, "/stats/prometheus".to_string()),
        (PROMETHEUS_PORT, target),
        (PROMETHEUS_SCRAPE, "true".into()),
    ] {
        annotations.insert(name.into(), value.into());
    }
    Ok(())
}

fn check_port(text: &str) -> Result<(), Refusal> {
    let wrong = |message: String| Err(Refusal::annotation(PROMETHEUS_PORT, message));
    let Some(number) = text.parse::<u16>().ok().filter(|number| *number > 0) else {
        return wrong(format!("{text:?} is not a port; write the number of the application's metrics port"));
    };
    let ours = [port::ADMIN, port::OUTBOUND, port::INBOUND, port::MERGED_METRICS, port::READINESS, port::PROXY_METRICS];
    if ours.contains(&number) {
        return wrong(format!("{number} is a port of the proxy; write the application's, or leave the annotation out"));
    }
    Ok(())
}

/// Gives a pod its own annotations back, out of its proxy's variable.
pub(crate) fn restore(pod: &mut Value) {
    let Some(text) = pod.proxy().and_then(|proxy| env(proxy, VARIABLE)).map(str::to_string) else {
        // Ours alone: they come again.
        let ours = annotated(pod, PROMETHEUS_PATH).as_deref() == Some("/stats/prometheus")
            && annotated(pod, PROMETHEUS_PORT).as_deref() == Some(port::MERGED_METRICS.to_string().as_str());
        if ours {
            pod::meta(pod, "annotations").retain(|name, _| !KNOWN.iter().any(|known| means(name, known)));
        }
        return;
    };
    let Ok(scrape) = serde_json::from_str::<Value>(&text) else { return };
    let annotations = pod::meta(pod, "annotations");
    for (name, field) in KNOWN.iter().zip(["scrape", "port", "path"]) {
        match scrape[field].as_str() {
            Some(value) if !value.is_empty() => drop(annotations.insert((*name).into(), value.into())),
            _ => drop(annotations.shift_remove(*name)),
        }
    }
}
