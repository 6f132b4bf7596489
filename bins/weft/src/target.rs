//! Which pod a user means: `POD`, `POD.NAMESPACE`, `pod/NAME`, `deploy/NAME`, `deploy/NAME.NAMESPACE`, `svc/NAME` …

use anyhow::{Context, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use weft_k8s_api::Object;
use weft_k8s_api::kinds::{self, KindInfo};
use weft_store::ApiClient;
use weft_store::client::ListOptions;

/// What was typed, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Kind; pods when none was named.
    pub kind: &'static KindInfo,
    /// Name.
    pub name: String,
    /// Namespace, when it was named.
    pub namespace: Option<String>,
}

/// Takes a target apart. `dotted`: what follows the last dot is a namespace, as `istioctl` reads it.
///
/// # Errors
/// When the kind is not known or has no pods.
pub fn parse(text: &str, namespace: Option<&str>, dotted: bool) -> anyhow::Result<Target> {
    const WITH_PODS: [&str; 7] = ["Pod", "Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "Service"];
    let (kind, name) = match text.split_once('/') {
        Some((kind, name)) => (kind, name),
        None => ("pod", text),
    };
    let info = kinds::by_any_name(kind).filter(|k| WITH_PODS.contains(&k.kind));
    let Some(info) = info else {
        bail!("{kind:?} has no pods; name a pod, or deploy/NAME, sts/NAME, ds/NAME, job/NAME, svc/NAME");
    };
    let (name, named) = match name.rsplit_once('.') {
        Some((name, namespace)) if dotted => (name, Some(namespace.to_string())),
        _ => (name, None),
    };
    if name.is_empty() {
        bail!("{text:?} names nothing; write POD or deploy/NAME");
    }
    Ok(Target { kind: info, name: name.into(), namespace: named.or_else(|| namespace.map(Into::into)) })
}

/// The pod that a target means: itself, or the best pod of what owns it (ready before running before the rest).
///
/// # Errors
/// When it does not exist, or has no pod.
pub async fn resolve(client: &ApiClient, target: &Target) -> anyhow::Result<Object> {
    let namespace = target.namespace.as_deref().unwrap_or_else(|| client.default_namespace()).to_string();
    let object = match client.get(target.kind, &namespace, &target.name).await {
        Err(error) if error.is_not_found() => return Err(missing(client, target, &namespace).await),
        object => object.with_context(|| format!("{} {}/{}", target.kind.singular, namespace, target.name))?,
    };
    if target.kind.kind == "Pod" {
        return Ok(object);
    }
    let selector = selector(&object)
        .with_context(|| format!("{} {namespace}/{} selects no pods by labels", target.kind.singular, target.name))?;
    let mut pods = pods(client, Some(&namespace), &selector).await?;
    pods.sort_by_key(|pod| (!is_ready(pod), phase(pod) != "Running", pod.name().to_string()));
    let name = format!("{} {namespace}/{}", target.kind.singular, target.name);
    pods.into_iter()
        .next()
        .with_context(|| format!("{name} has no pods; `weft get pods -n {namespace}` shows what runs"))
}

/// Says that a target is not there, and what the user may have meant: the workload of that name.
async fn missing(client: &ApiClient, target: &Target, namespace: &str) -> anyhow::Error {
    let Target { kind, name, .. } = target;
    for (word, owner) in [("deploy", "Deployment"), ("sts", "StatefulSet"), ("ds", "DaemonSet")] {
        if let Ok(owner) = known(owner)
            && kind.kind == "Pod"
            && client.get(owner, namespace, name).await.is_ok()
        {
            return anyhow::anyhow!("there is no pod {namespace}/{name}; did you mean {word}/{name}?");
        }
    }
    let (singular, plural) = (kind.singular, kind.plural);
    anyhow::anyhow!("there is no {singular} {namespace}/{name}; `weft get {plural} -n {namespace}` shows what there is")
}

/// Pods by a label selector.
///
/// # Errors
/// When the server does not answer.
pub async fn pods(client: &ApiClient, namespace: Option<&str>, labels: &str) -> anyhow::Result<Vec<Object>> {
    let kind = known("Pod")?;
    let options = ListOptions { labels: Some(labels.to_string()), ..ListOptions::default() };
    let list = client.list(kind, namespace, &options).await.context("cannot list pods")?;
    Ok(list.items)
}

/// A core kind by its name.
///
/// # Errors
/// Never for kinds of the table.
pub fn known(kind: &str) -> anyhow::Result<&'static KindInfo> {
    kinds::KINDS.iter().find(|k| k.kind == kind).with_context(|| format!("the kind {kind} is not known"))
}

/// The label selector of a workload or service, as text.
fn selector(object: &Object) -> Option<String> {
    let spec = object.spec();
    let labels = spec.pointer("/selector/matchLabels").or_else(|| spec.get("selector"))?;
    let labels: BTreeMap<String, String> = serde_json::from_value(labels.clone()).ok()?;
    let parts: Vec<String> = labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    (!parts.is_empty()).then(|| parts.join(","))
}

/// `status.phase`.
pub fn phase(pod: &Object) -> &str {
    pod.body.get("status").and_then(|s| s["phase"].as_str()).unwrap_or_default()
}

/// Whether the pod's `Ready` condition is true.
pub fn is_ready(pod: &Object) -> bool {
    let conditions = pod.body.get("status").and_then(|s| s["conditions"].as_array());
    let ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
    conditions.is_some_and(|list| list.iter().any(ready)) && pod.metadata.deletion_timestamp.is_none()
}

/// Names of the pod's containers.
pub fn containers(pod: &Object) -> Vec<&str> {
    names(pod, "containers")
}

/// Whether the pod has a sidecar or is a gateway: container `istio-proxy`, which as a native sidecar stands among the init
/// containers (those with `restartPolicy: Always`, which live as long as the pod).
pub fn has_proxy(pod: &Object) -> bool {
    ["containers", "initContainers"].iter().any(|list| names(pod, list).contains(&"istio-proxy"))
}

fn names<'a>(pod: &'a Object, list: &str) -> Vec<&'a str> {
    let list = pod.spec()[list].as_array().map_or(&[][..], Vec::as_slice);
    list.iter().filter_map(|c| c["name"].as_str()).collect()
}

/// The container to use: the given one, the annotated default, or the first that is not the proxy.
///
/// # Errors
/// When the pod has no container of the given name.
pub fn container(pod: &Object, given: Option<&str>) -> anyhow::Result<String> {
    let (names, init) = (containers(pod), names(pod, "initContainers"));
    if let Some(given) = given {
        if !names.contains(&given) && !init.contains(&given) {
            bail!("pod {} has no container {given:?}; it has {}", pod.name(), [names, init].concat().join(", "));
        }
        return Ok(given.to_string());
    }
    let annotated = pod.annotation("kubectl.kubernetes.io/default-container").filter(|name| names.contains(name));
    let first = names.iter().copied().find(|name| *name != "istio-proxy").or(names.first().copied());
    annotated.or(first).map(str::to_string).with_context(|| format!("pod {} has no containers", pod.name()))
}

/// Seconds since the object was made, in kubectl's short form.
pub fn age(object: &Object) -> String {
    let now = jiff::Timestamp::now().as_second();
    let seconds = match object.created() {
        0 => return "<unknown>".into(),
        created => (now - created).max(0),
    };
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn targets_are_taken_apart() {
        let plain = |text, namespace| {
            let t = parse(text, namespace, false).unwrap();
            (t.kind.kind, t.name, t.namespace)
        };
        assert_eq!(plain("a-1", None), ("Pod", "a-1".into(), None));
        assert_eq!(plain("a.b", Some("n")), ("Pod", "a.b".into(), Some("n".into())));
        assert_eq!(plain("deploy/a", Some("n")), ("Deployment", "a".into(), Some("n".into())));
        assert_eq!(plain("svc/a", None).0, "Service");
        let dotted = parse("deploy/httpbin.foo", Some("bar"), true).unwrap();
        assert_eq!((dotted.name.as_str(), dotted.namespace.as_deref()), ("httpbin", Some("foo")));
        for bad in ["secret/x", "pod/", "nonsense/x"] {
            assert!(parse(bad, None, true).is_err(), "{bad}");
        }
    }

    #[test]
    fn containers_are_chosen() {
        let pod: Object = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "istio-proxy"}, {"name": "app"}], "initContainers": [{"name": "i"}]},
        }))
        .unwrap();
        assert_eq!(container(&pod, None).unwrap(), "app");
        assert_eq!(container(&pod, Some("istio-proxy")).unwrap(), "istio-proxy");
        assert_eq!(container(&pod, Some("i")).unwrap(), "i");
        let error = container(&pod, Some("x")).unwrap_err().to_string();
        assert!(error.contains("istio-proxy, app, i"), "{error}");
    }

    #[test]
    fn proxies_are_seen_wherever_they_stand() {
        for (spec, has) in [
            (json!({"containers": [{"name": "app"}, {"name": "istio-proxy"}]}), true),
            (
                json!({"containers": [{"name": "app"}],
                    "initContainers": [{"name": "istio-proxy", "restartPolicy": "Always"}]}),
                true,
            ),
            (json!({"containers": [{"name": "app"}], "initContainers": [{"name": "istio-init"}]}), false),
            (json!({}), false),
        ] {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec});
            assert_eq!(has_proxy(&serde_json::from_value(pod.clone()).unwrap()), has, "{pod}");
        }
    }

    #[test]
    fn selectors_of_workloads_and_services() {
        let object = |spec: Value| -> Object {
            serde_json::from_value(json!({"apiVersion": "v1", "kind": "X", "metadata": {}, "spec": spec})).unwrap()
        };
        assert_eq!(selector(&object(json!({"selector": {"a": "b", "c": "d"}}))).as_deref(), Some("a=b,c=d"));
        assert_eq!(selector(&object(json!({"selector": {"matchLabels": {"a": "b"}}}))).as_deref(), Some("a=b"));
        assert_eq!(selector(&object(json!({}))), None);
    }
}
