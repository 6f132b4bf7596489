//! Files of manifests: every workload in them gets its proxy, every other document stays byte for byte as it is.

use crate::config::Config;
use crate::decide::{Decision, decide};
use crate::inject::{Injector, Request};
use crate::owner::Owner;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Largest text, bytes.
pub const MAX_BYTES: usize = weft_k8s_api::yaml::MAX_BYTES;
/// Most levels of lists in lists.
const MAX_DEPTH: usize = 8;

/// What an injection of files needs beside the injector.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Namespace of objects that name none.
    pub namespace: String,
    /// As in [`Request`].
    pub native_sidecars: bool,
    /// As in [`Request`], by namespace.
    pub proxy_configs: BTreeMap<String, Vec<Value>>,
    /// As in [`Request`], by namespace.
    pub namespace_annotations: BTreeMap<String, BTreeMap<String, String>>,
}

/// A text of manifests, injected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Injected {
    /// The text.
    pub text: String,
    /// What was passed over, and why.
    pub warnings: Vec<String>,
}

/// Injects every workload of a text: Pods, Deployments, ReplicaSets, StatefulSets, DaemonSets, ReplicationControllers, Jobs,
/// CronJobs, and everything else with a pod template, alone or in Lists.
///
/// # Errors
/// The document that cannot be read, or what of a pod cannot be followed; named by kind and name.
pub fn inject_text(injector: &Injector, text: &str, options: &Options) -> Result<Injected, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("the text is larger than {MAX_BYTES} bytes; split it"));
    }
    let mut injected = Injected::default();
    for (separator, document) in split(text) {
        injected.text.push_str(separator);
        let Some(value) = workload(document)? else {
            injected.text.push_str(document);
            continue;
        };
        let before = value.clone();
        let after = object(injector, value, options, &mut injected.warnings, 0)?;
        // A workload that declines is no other than before.
        if after == before {
            injected.text.push_str(document);
        } else {
            injected.text.push_str(&weft_k8s_api::yaml::write(&after)?);
        }
    }
    Ok(injected)
}

/// The documents of a text, each after the separator lines that stand before it.
fn split(text: &str) -> Vec<(&str, &str)> {
    let mut parts = Vec::new();
    let (mut separator, mut start, mut at) = ("", 0, 0);
    for line in text.split_inclusive('\n') {
        let plain = line.trim_end();
        if plain == "---" || plain.starts_with("--- #") {
            parts.push((separator, &text[start..at]));
            separator = &text[at..at + line.len()];
            start = at + line.len();
        }
        at += line.len();
    }
    parts.push((separator, &text[start..]));
    parts
}

/// The document's value, when it is of a kind that holds pods.
fn workload(document: &str) -> Result<Option<Value>, String> {
    // Most documents are not: they need not even be read.
    if document.trim().is_empty() || !document.contains("containers") {
        return Ok(None);
    }
    let value = weft_k8s_api::yaml::value(document)?;
    Ok(holds_pods(&value, 0).then_some(value))
}

fn holds_pods(value: &Value, depth: usize) -> bool {
    match kind(value) {
        "List" if depth < MAX_DEPTH => items(value).iter().any(|item| holds_pods(item, depth + 1)),
        "List" => false,
        _ => template(value).is_some(),
    }
}

fn kind(value: &Value) -> &str {
    value["kind"].as_str().unwrap_or_default()
}

fn items(value: &Value) -> &[Value] {
    value["items"].as_array().map_or(&[], Vec::as_slice)
}

/// Where the pod, or its template, stands in an object.
fn template(value: &Value) -> Option<&'static str> {
    let pointer = match kind(value) {
        "Pod" => "",
        "CronJob" => "/spec/jobTemplate/spec/template",
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "ReplicationController" | "Job" => "/spec/template",
        _ => return None,
    };
    let api = value["apiVersion"].as_str().unwrap_or_default();
    let known = matches!(api.split('/').next(), Some("v1" | "apps" | "batch" | "extensions"));
    (known && value.pointer(pointer)?["spec"]["containers"].is_array()).then_some(pointer)
}

fn object(
    injector: &Injector,
    mut value: Value,
    options: &Options,
    warnings: &mut Vec<String>,
    depth: usize,
) -> Result<Value, String> {
    if kind(&value) == "List" && depth < MAX_DEPTH {
        let list = value["items"].as_array_mut().into_iter().flatten();
        for item in list {
            *item = object(injector, item.take(), options, warnings, depth + 1)?;
        }
        return Ok(value);
    }
    let Some(pointer) = template(&value) else { return Ok(value) };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let own = text(&value["metadata"]["namespace"]);
    let namespace = if own.is_empty() { options.namespace.clone() } else { own };
    let name = format!("{} {}", kind(&value), text(&value["metadata"]["name"]));
    let whole = value.pointer(pointer).unwrap_or(&Value::Null);
    let pod = json!({"metadata": whole["metadata"].as_object().cloned().unwrap_or_default(), "spec": whole["spec"]});
    // Whoever runs this asks for a proxy: the policy and the selectors are for pods that nobody asked about.
    if let Decision::Skip(why) = decide(&Config::default(), &pod, &namespace) {
        warnings.push(format!("{name} gets no proxy: {why}"));
        return Ok(value);
    }
    let owner = (!pointer.is_empty()).then(|| Owner {
        api_version: text(&value["apiVersion"]),
        kind: kind(&value).to_string(),
        name: text(&value["metadata"]["name"]),
        namespace: namespace.clone(),
    });
    let request = Request {
        pod,
        namespace: &namespace,
        owner,
        proxy_configs: options.proxy_configs.get(&namespace).map_or(&[], Vec::as_slice),
        namespace_annotations: options.namespace_annotations.get(&namespace).cloned().unwrap_or_default(),
        native_sidecars: options.native_sidecars,
        ..Request::default()
    };
    let pod = injector.inject(&request).map_err(|refusal| format!("{name}: {refusal}"))?;
    if let Some(place) = value.pointer_mut(pointer) {
        place["metadata"] = pod["metadata"].clone();
        place["spec"] = pod["spec"].clone();
    }
    Ok(value)
}
