//! Sidecar injection in the lab: who gets a proxy, as the API server of a cluster asks it by the webhooks' selectors, and the
//! injector of the control plane ([`weft_inject`]) with what a lab has to add. The rules and the shape are that crate's.
//!
//! In one thing the lab differs: the application's containers start only when the proxy is ready, always. The node sees to
//! that, not the pod's spec; and it sets up the redirection, whose container is there to be seen only.

use crate::pods::state::PROXY_CONTAINER;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use weft_core::well_known::{PROXY_UID, annotation, port};
use weft_inject::{Decision, Injector, Request, decide::chosen};
use weft_k8s_api::Object;

/// What the lab knows beside the pod.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// The injector's settings, as the lab's ConfigMaps have them.
    pub injector: Injector,
    /// Labels of the pod's namespace.
    pub namespace_labels: BTreeMap<String, String>,
    /// Revisions that have a control plane of their own (a Service `istiod-REVISION`).
    pub revisions: Vec<String>,
    /// Path of a real Envoy, for pods that ask for it.
    pub envoy: Option<String>,
    /// Pods whose annotation names no engine get Envoy.
    pub envoy_by_default: bool,
    /// `ProxyConfig` objects of the root namespace and of the pod's, the weaker ones first.
    pub proxy_configs: Vec<Value>,
}

/// Why a pod that is to have a proxy cannot get one: the field and what would be right.
pub use weft_inject::Refusal;

/// The revision that injects a pod; `None` when it gets no proxy.
pub fn decide(pod: &Object, context: &Context) -> Option<String> {
    let value = pod.to_value();
    let default_on = context.injector.values.is_true("sidecarInjectorWebhook.enableNamespacesByDefault");
    let revision = chosen(&context.namespace_labels, &value, default_on)?;
    let known = revision == "default" || context.revisions.iter().any(|known| known == revision);
    let wanted = known && context.injector.decide(&value, pod.namespace()) == Decision::Inject;
    wanted.then(|| revision.to_string())
}

/// Adds the proxy.
///
/// # Errors
/// What of the pod cannot be followed.
pub fn inject(pod: &mut Object, context: &Context, revision: &str) -> Result<(), Refusal> {
    let mut injector = context.injector.clone();
    if revision != "default" {
        let mut tree = injector.values.tree().clone();
        tree["revision"] = revision.into();
        injector.values = weft_inject::Values::new(&tree);
        let address = format!("istiod-{revision}.istio-system.svc:{}", port::XDS);
        injector.mesh["defaultConfig"]["discoveryAddress"] = address.into();
    }
    let namespace = pod.namespace().to_string();
    let request = Request {
        pod: pod.to_value(),
        namespace: &namespace,
        proxy_configs: &context.proxy_configs,
        ..Request::default()
    };
    let mut made = injector.inject(&request)?;
    adapt(&mut made, pod, context)?;
    let wrong = |error: serde_json::Error| Refusal { field: "spec".into(), message: error.to_string() };
    *pod = serde_json::from_value(made).map_err(wrong)?;
    Ok(())
}

/// Volume that a cluster mounts inside another one's folder. The lab's folders are read-only as a whole, and its authority
/// revokes through [`weft_core::well_known::ROOT_CERT_CONFIG_MAP`].
const CRL: &str = "istio-ca-crl";

/// What the lab adds: the mark by which its one user's proxy is known, and the engine that a pod asks for.
fn adapt(made: &mut Value, pod: &Object, context: &Context) -> Result<(), Refusal> {
    let usual = if context.envoy_by_default { "envoy" } else { "weft" };
    let envoy = pod.annotation(annotation::ENGINE).unwrap_or(usual) == "envoy";
    if envoy && context.envoy.is_none() {
        let message = "the lab does not know where Envoy is; start it with: weft up --envoy /path/to/envoy".into();
        return Err(Refusal { field: format!("metadata.annotations[{}]", annotation::ENGINE), message });
    }
    let without = |list: &mut Value| {
        if let Some(items) = list.as_array_mut() {
            items.retain(|item| item["name"] != CRL);
        }
    };
    without(&mut made["spec"]["volumes"]);
    for field in ["containers", "initContainers"] {
        for container in made["spec"][field].as_array_mut().into_iter().flatten() {
            if container["name"] != PROXY_CONTAINER {
                continue;
            }
            without(&mut container["volumeMounts"]);
            if let Some(env) = container["env"].as_array_mut() {
                env.retain(|known| known["name"] != "WEFT_SOCKET_MARK");
                env.push(json!({"name": "WEFT_SOCKET_MARK", "value": PROXY_UID.to_string()}));
            }
            if let (Some(args), Some(path), true) = (container["args"].as_array_mut(), &context.envoy, envoy) {
                args.extend(["--engine", "envoy", "--envoy-path", path].map(Value::from));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(labels: Value, annotations: Value) -> Object {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"generateName": "web-5d4f-", "namespace": "n", "labels": labels, "annotations": annotations,
                         "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f", "uid": "u", "controller": true}]},
            "spec": {"containers": [{"name": "web", "image": "x", "ports": [{"containerPort": 80}]}]}}))
        .unwrap()
    }

    fn context(namespace: &[(&str, &str)]) -> Context {
        let labels = namespace.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string()));
        Context { namespace_labels: labels.collect(), revisions: vec!["canary".into()], ..Context::default() }
    }

    #[test]
    fn who_gets_a_proxy() {
        let inject = |value: &str| json!({"sidecar.istio.io/inject": value});
        for (namespace, labels, annotations, expected) in [
            (vec![], json!({}), json!({}), None),
            (vec![("istio-injection", "enabled")], json!({}), json!({}), Some("default")),
            (vec![("istio-injection", "enabled")], inject("false"), json!({}), None),
            (vec![("istio-injection", "enabled")], json!({}), inject("false"), None),
            (vec![("istio-injection", "disabled")], inject("true"), json!({}), None),
            (vec![], inject("true"), json!({}), Some("default")),
            (vec![("istio.io/rev", "canary")], json!({}), json!({}), Some("canary")),
            (vec![("istio.io/rev", "unknown")], json!({}), json!({}), None),
        ] {
            let decided = decide(&pod(labels.clone(), annotations), &context(&namespace));
            assert_eq!(decided.as_deref(), expected, "{namespace:?} {labels}");
        }
    }

    #[test]
    fn shape_mark_and_revision() {
        let mut pod = pod(json!({"app": "web", "pod-template-hash": "5d4f"}), json!({}));
        let mut context = context(&[]);
        context.injector.mesh = json!({"defaultConfig": {"discoveryAddress": "istiod.istio-system.svc:15012"}});
        inject(&mut pod, &context, "canary").unwrap();
        let names = |list: &str| -> Vec<String> {
            let all = pod.spec()[list].as_array().unwrap();
            all.iter().map(|c| c["name"].as_str().unwrap().to_string()).collect()
        };
        assert_eq!(
            (names("initContainers"), names("containers")),
            (vec!["istio-init".into()], vec!["web".into(), "istio-proxy".into()])
        );
        let env = pod.spec()["containers"][1]["env"].to_string();
        for part in [
            r#"{"name":"WEFT_SOCKET_MARK","value":"1337"}"#,
            r#"{"name":"ISTIO_META_WORKLOAD_NAME","value":"web"}"#,
            r#"{"name":"CA_ADDR","value":"istiod-canary.istio-system.svc:15012"}"#,
            r#"\"discoveryAddress\":\"istiod-canary.istio-system.svc:15012\""#,
        ] {
            assert!(env.contains(part), "{part} not in {env}");
        }
        let once = pod.clone();
        inject(&mut pod, &context, "canary").unwrap();
        assert_eq!(pod, once, "twice is once");
    }

    #[test]
    fn the_engine_is_the_annotation_s_or_the_lab_s() {
        for (by_default, annotation, envoy) in
            [(false, None, false), (true, None, true), (true, Some("weft"), false), (false, Some("envoy"), true)]
        {
            let annotations = annotation.map_or(json!({}), |engine| json!({"weft.dev/proxy-engine": engine}));
            let mut pod = pod(json!({}), annotations);
            let context = Context { envoy: Some("/envoy".into()), envoy_by_default: by_default, ..context(&[]) };
            inject(&mut pod, &context, "default").unwrap();
            let args = pod.spec()["containers"][1]["args"].to_string();
            assert_eq!(args.contains("/envoy"), envoy, "{by_default} {annotation:?}: {args}");
        }
        let mut pod = pod(json!({}), json!({"weft.dev/proxy-engine": "envoy"}));
        assert!(inject(&mut pod, &context(&[]), "default").unwrap_err().message.contains("--envoy"));
    }
}
