//! Who gets a proxy.
//!
//! Two questions, asked one after the other: does the pod come to this revision's injector at all ([`chosen`]; in a cluster
//! the API server asks it, by the selectors of the webhook configuration), and does the injector itself take it ([`decide`]).

use crate::config::{Config, Policy};
use crate::pod::Pod;
use serde_json::Value;
use std::collections::BTreeMap;
use weft_core::well_known::{annotation, label};

/// Namespaces that never get a proxy.
pub const SPARED: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// What the injector says to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It gets a proxy.
    Inject,
    /// It gets none, and why.
    Skip(&'static str),
}

/// What the injector says to a pod that came to it. The label beats the annotation; both beat the selectors of the
/// configuration, of which those for `never` beat those for `always`; where nothing is said, the policy holds.
pub fn decide(config: &Config, pod: &Value, namespace: &str) -> Decision {
    // The redirection of a pod that shares its node's network would be the node's.
    if pod["spec"]["hostNetwork"] == true {
        return Decision::Skip("it uses the network of its node (hostNetwork)");
    }
    if SPARED.contains(&namespace) {
        return Decision::Skip("its namespace belongs to Kubernetes");
    }
    let asked = pod.label(label::INJECT).or_else(|| pod.annotation(annotation::INJECT));
    let labels = &pod["metadata"]["labels"];
    match asked {
        Some("true") => return Decision::Inject,
        Some("false") => return Decision::Skip("it declines (sidecar.istio.io/inject)"),
        _ => {}
    }
    if config.never_inject_selector.iter().any(|selector| selector.matches(labels)) {
        return Decision::Skip("its labels match neverInjectSelector");
    }
    if config.always_inject_selector.iter().any(|selector| selector.matches(labels)) {
        return Decision::Inject;
    }
    match config.policy {
        Policy::Enabled => Decision::Inject,
        Policy::Disabled => Decision::Skip("the injector's policy is disabled and the pod does not ask for a proxy"),
    }
}

/// The revision whose injector a pod comes to, out of the labels of its namespace and its own: the selectors of the webhook
/// configurations. `default_on` is `enableNamespacesByDefault`.
pub fn chosen<'a>(namespace: &'a BTreeMap<String, String>, pod: &'a Value, default_on: bool) -> Option<&'a str> {
    let of_namespace = |name: &str| namespace.get(name).map(String::as_str);
    let inject = pod.label(label::INJECT);
    if inject == Some("false") {
        return None;
    }
    // The namespace's plain label beats its revision label.
    match (of_namespace(label::INJECTION), of_namespace(label::REVISION)) {
        (Some("enabled"), _) => Some("default"),
        (Some(_), _) => None,
        (None, Some(revision)) => Some(revision),
        (None, None) => match (pod.label(label::REVISION), inject) {
            (Some(revision), _) => Some(revision),
            (None, Some("true")) => Some("default"),
            (None, None) if default_on => Some("default"),
            _ => None,
        },
    }
}
