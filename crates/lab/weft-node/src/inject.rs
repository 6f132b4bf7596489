//! Sidecar injection: who gets a proxy, and what a pod looks like with one. Pure functions of the pod, its namespace and the
//! mesh's settings; the rules and the shape are those of Istio's injector.
//!
//! In one thing the lab differs: the application's containers start only when the proxy is ready, always. The node sees to
//! that, not the pod's spec.

use crate::controllers::objects::{controller_of, string_map};
use crate::pods::state::{CAPTURE_CONTAINER, PROXY_CONTAINER};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use weft_capture::CaptureConfig;
use weft_core::well_known::{
    DEFAULT_CLUSTER_ID, DEFAULT_TRUST_DOMAIN, PROXY_UID, ROOT_CERT_CONFIG_MAP, TOKEN_AUDIENCE, annotation, label, port,
};
use weft_k8s_api::Object;

/// Namespaces that never get a proxy.
const SPARED: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];
const STATUS: &str = "sidecar.istio.io/status";
const NATIVE: &str = "sidecar.istio.io/nativeSidecar";

/// What the lab knows beside the pod.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// `mesh` of ConfigMap `istio`, read.
    pub mesh: Value,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Path of the field.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// The revision that injects a pod; `None` when it gets no proxy.
pub fn decide(pod: &Object, context: &Context) -> Option<String> {
    if SPARED.contains(&pod.namespace()) || pod.spec()["hostNetwork"] == true || pod.annotation(STATUS).is_some() {
        return None;
    }
    let asked = pod.label(label::INJECT).or_else(|| pod.annotation(annotation::INJECT));
    let namespace = context.namespace_labels.get(label::INJECTION).map(String::as_str);
    if matches!(asked, Some("false" | "no" | "n" | "off")) || namespace == Some("disabled") {
        return None;
    }
    let known = |revision: &str| revision == "default" || context.revisions.iter().any(|known| known == revision);
    // The namespace's plain label beats its revision label.
    let by_namespace = match namespace {
        Some("enabled") => Some("default".to_string()),
        _ => context.namespace_labels.get(label::REVISION).cloned(),
    };
    let by_pod = pod.label(label::REVISION).map(str::to_string);
    let by_request = matches!(asked, Some("true" | "yes" | "y" | "on")).then(|| "default".to_string());
    // The pod chooses among revisions only where nothing chose for it.
    by_namespace.or(by_pod).or(by_request).filter(|revision| known(revision))
}

/// Adds the proxy.
///
/// # Errors
/// When an annotation cannot be followed.
pub fn inject(pod: &mut Object, context: &Context, revision: &str) -> Result<(), Refusal> {
    let templates = pod.annotation(annotation::TEMPLATES).unwrap_or("sidecar").to_string();
    let templates: Vec<&str> = templates.split(',').map(str::trim).collect();
    let gateway = templates.contains(&"gateway");
    if let Some(unknown) = templates.iter().find(|name| !["sidecar", "gateway"].contains(name)) {
        let message = format!("template {unknown:?} does not exist; the lab has sidecar and gateway");
        return Err(Refusal { field: format!("metadata.annotations[{}]", annotation::TEMPLATES), message });
    }
    let check = CaptureConfig::default().annotated(|name| pod.annotation(name));
    check.map_err(|message| Refusal { field: "metadata.annotations".into(), message })?;
    let config = proxy_config(pod, context, revision)?;
    let proxy = proxy_container(pod, context, &config, gateway)?;
    let added_init = !gateway;
    label_pod(pod, gateway);
    annotate(pod, context, revision, gateway);
    let native = pod.annotation(NATIVE) == Some("true");
    let Some(spec) = pod.body.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    if added_init {
        prepend(spec, "initContainers", capture_container());
    }
    place(spec, proxy, native && !gateway);
    append(spec, "volumes", volumes());
    Ok(())
}

fn list<'a>(spec: &'a mut Map<String, Value>, field: &str) -> &'a mut Vec<Value> {
    let value = spec.entry(field).or_insert_with(|| json!([]));
    if !value.is_array() {
        *value = json!([]);
    }
    match value {
        Value::Array(items) => items,
        _ => unreachable!("made an array just above"),
    }
}

fn prepend(spec: &mut Map<String, Value>, field: &str, item: Value) {
    list(spec, field).insert(0, item);
}

fn append(spec: &mut Map<String, Value>, field: &str, items: Vec<Value>) {
    let all = list(spec, field);
    for item in items {
        if !all.iter().any(|known| known["name"] == item["name"]) {
            all.push(item);
        }
    }
}

/// Puts the proxy last, or among the init containers; one that the user has declared gives its fields to it and goes.
fn place(spec: &mut Map<String, Value>, mut proxy: Value, native: bool) {
    for field in ["containers", "initContainers"] {
        let containers = list(spec, field);
        if let Some(at) = containers.iter().position(|c| c["name"] == PROXY_CONTAINER) {
            let own = containers.remove(at);
            override_by(&mut proxy, own);
        }
    }
    if native {
        proxy["restartPolicy"] = "Always".into();
        // The capture comes first, the proxy right after it.
        list(spec, "initContainers").insert(1, proxy);
    } else {
        list(spec, "containers").push(proxy);
    }
}

/// What the user wrote wins; lists of named things are merged by name. `image: auto` means the template's.
fn override_by(proxy: &mut Value, own: Value) {
    let Value::Object(own) = own else { return };
    for (field, value) in own {
        match (field.as_str(), value) {
            ("image", Value::String(image)) if image == "auto" => {}
            ("env" | "ports" | "volumeMounts", Value::Array(items)) => {
                let key = if field == "volumeMounts" { "mountPath" } else { "name" };
                let mut all = proxy[&field].as_array().cloned().unwrap_or_default();
                for item in items {
                    all.retain(|known| known[key].is_null() || known[key] != item[key]);
                    all.push(item);
                }
                proxy[&field] = all.into();
            }
            ("resources" | "securityContext" | "lifecycle", Value::Object(fields)) => {
                for (name, value) in fields {
                    proxy[&field][name] = value;
                }
            }
            (_, value) => proxy[&field] = value,
        }
    }
}

/// The `ProxyConfig` objects that hold for a pod, as fields of the mesh's `defaultConfig`: those without a selector, then
/// those that select the pod.
fn selected_configs(pod: &Object, context: &Context) -> Vec<Map<String, Value>> {
    let selector = |config: &Value| string_map(&config["selector"]["matchLabels"]);
    let holds = |config: &&Value| selector(config).iter().all(|(name, value)| pod.label(name) == Some(value));
    let mut chosen: Vec<&Value> = context.proxy_configs.iter().filter(holds).collect();
    chosen.sort_by_key(|config| !selector(config).is_empty());
    let fields = chosen.into_iter().map(|config| {
        let named = [("concurrency", "concurrency"), ("environmentVariables", "proxyMetadata")];
        let set = named.into_iter().filter(|(from, _)| !config[*from].is_null());
        set.map(|(from, to)| (to.to_string(), config[from].clone())).collect()
    });
    fields.collect()
}

/// Puts fields over others; objects are merged, everything else is replaced.
fn put_over(config: &mut Map<String, Value>, over: Map<String, Value>) {
    for (field, value) in over {
        match (config.get_mut(&field), value) {
            (Some(Value::Object(old)), Value::Object(new)) => old.extend(new),
            (_, value) => drop(config.insert(field, value)),
        }
    }
}

/// The mesh's `defaultConfig`, the `ProxyConfig` objects that hold for the pod over it, and the pod's annotation over all.
fn proxy_config(pod: &Object, context: &Context, revision: &str) -> Result<Map<String, Value>, Refusal> {
    let mut config = context.mesh["defaultConfig"].as_object().cloned().unwrap_or_default();
    if revision != "default" {
        config.insert("discoveryAddress".into(), format!("istiod-{revision}.istio-system.svc:{}", port::XDS).into());
    }
    selected_configs(pod, context).into_iter().for_each(|own| put_over(&mut config, own));
    if let Some(text) = pod.annotation(annotation::PROXY_CONFIG) {
        let wrong = |message: String| Refusal {
            field: format!("metadata.annotations[{}]", annotation::PROXY_CONFIG),
            message: format!("{message}; write the fields of ProxyConfig as YAML, such as concurrency: 2"),
        };
        let own: Value = weft_k8s_api::yaml::value(text).map_err(wrong)?;
        let Value::Object(own) = own else { return Err(wrong("is not an object".into())) };
        put_over(&mut config, own);
    }
    config.entry("discoveryAddress").or_insert_with(|| format!("istiod.istio-system.svc:{}", port::XDS).into());
    Ok(config)
}

fn label_pod(pod: &mut Object, gateway: bool) {
    let (name, version) = (canonical_name(pod), canonical_revision(pod));
    let labels = pod.metadata.labels.get_or_insert_default();
    // A gateway's ports are what its Gateway objects say: callers must not take it for a sidecar that takes the mesh's TLS.
    let tls = (label::TLS_MODE, "istio".to_string());
    let own = [(label::CANONICAL_NAME, name), (label::CANONICAL_REVISION, version)];
    for (key, value) in own.into_iter().chain((!gateway).then_some(tls)) {
        labels.entry(key.into()).or_insert(value);
    }
}

fn first_label(pod: &Object, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| pod.label(name)).map(str::to_string)
}

fn canonical_name(pod: &Object) -> String {
    let given = first_label(pod, &[label::CANONICAL_NAME, "app.kubernetes.io/name", "app"]);
    let name = given.unwrap_or_else(|| workload(pod).1);
    // A label's value has at most 63 characters and ends with a letter or digit.
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.', '_']).to_string()
}

fn canonical_revision(pod: &Object) -> String {
    let given = first_label(pod, &[label::CANONICAL_REVISION, "app.kubernetes.io/version", "version"]);
    given.unwrap_or_else(|| "latest".into())
}

/// Kind (plural, with its API path) and name of the workload that a pod belongs to. A ReplicaSet of a Deployment stands for
/// the Deployment.
fn workload(pod: &Object) -> (String, String) {
    let own_name = || {
        let generated = pod.metadata.generate_name.as_deref().map(|prefix| prefix.trim_end_matches('-').to_string());
        generated.unwrap_or_else(|| pod.name().to_string())
    };
    let Some(owner) = controller_of(pod) else { return ("api/v1/pods".into(), own_name()) };
    let hash = pod.label("pod-template-hash").map(|hash| format!("-{hash}")).unwrap_or_default();
    match owner.name.strip_suffix(&hash).filter(|_| owner.kind == "ReplicaSet" && !hash.is_empty()) {
        Some(deployment) => ("apis/apps/v1/deployments".into(), deployment.into()),
        None => (format!("apis/{}/{}s", owner.api_version, owner.kind.to_lowercase()), owner.name.clone()),
    }
}

fn owner_url(pod: &Object) -> String {
    let (kind, name) = workload(pod);
    let (api, plural) = kind.rsplit_once('/').unwrap_or(("", &kind));
    format!("kubernetes://{api}/namespaces/{}/{plural}/{name}", pod.namespace())
}

/// Whether the proxy serves the application's metrics with its own.
fn merges_metrics(pod: &Object, context: &Context) -> bool {
    let by_mesh = context.mesh["enablePrometheusMerge"].as_bool().unwrap_or(true);
    by_mesh && pod.annotation("prometheus.istio.io/merge-metrics") != Some("false")
}

fn annotate(pod: &mut Object, context: &Context, revision: &str, gateway: bool) {
    let app = app_containers(pod);
    let merged = merges_metrics(pod, context) && pod.annotation(annotation::PROMETHEUS_SCRAPE) != Some("false");
    let annotations = pod.metadata.annotations.get_or_insert_default();
    let init = if gateway { json!(null) } else { json!([CAPTURE_CONTAINER]) };
    let names: Vec<Value> = volumes().iter().map(|volume| volume["name"].clone()).collect();
    let status = json!({"initContainers": init, "containers": [PROXY_CONTAINER], "volumes": names,
                        "imagePullSecrets": null, "revision": revision});
    annotations.insert(STATUS.into(), status.to_string());
    annotations.insert(label::REVISION.into(), revision.into());
    if let Some(first) = app.first() {
        for name in ["kubectl.kubernetes.io/default-container", "kubectl.kubernetes.io/default-logs-container"] {
            annotations.entry(name.into()).or_insert_with(|| first.clone());
        }
    }
    if merged {
        for (name, value) in [
            (annotation::PROMETHEUS_SCRAPE, "true".to_string()),
            (annotation::PROMETHEUS_PORT, port::MERGED_METRICS.to_string()),
            (annotation::PROMETHEUS_PATH, "/stats/prometheus".to_string()),
        ] {
            annotations.insert(name.into(), value);
        }
    }
}

fn app_containers(pod: &Object) -> Vec<String> {
    let containers = pod.spec()["containers"].as_array().into_iter().flatten();
    let names = containers.filter_map(|container| container["name"].as_str());
    names.filter(|name| *name != PROXY_CONTAINER).map(str::to_string).collect()
}

/// Shows what a cluster would do; in the lab the node sets up redirection before any container starts.
fn capture_container() -> Value {
    let excluded = format!("{},{},{}", port::PROXY_METRICS, port::READINESS, port::MERGED_METRICS);
    let (outbound, inbound, uid) = (port::OUTBOUND.to_string(), port::INBOUND.to_string(), PROXY_UID.to_string());
    json!({
        "name": CAPTURE_CONTAINER, "image": "weft-proxy",
        "args": ["istio-iptables", "-p", outbound, "-z", inbound, "-u", uid, "-m", "REDIRECT",
                 "-i", "*", "-x", "", "-b", "*", "-d", excluded],
    })
}

/// A number of the proxy's readiness probe, by `readiness.status.sidecar.istio.io/NAME`.
fn readiness(pod: &Object, name: &str, usual: u32) -> Result<u32, Refusal> {
    let key = format!("readiness.status.sidecar.istio.io/{name}");
    let Some(text) = pod.annotation(&key) else { return Ok(usual) };
    let wrong = || Refusal {
        field: format!("metadata.annotations[{key}]"),
        message: format!("{text:?} is not a whole number from 1; the default is {usual}"),
    };
    text.parse().ok().filter(|number| *number > 0).ok_or_else(wrong)
}

fn proxy_container(
    pod: &Object,
    context: &Context,
    config: &Map<String, Value>,
    gateway: bool,
) -> Result<Value, Refusal> {
    let role = if gateway { "router" } else { "sidecar" };
    let mut args = vec![json!(role), json!("--domain"), json!("$(POD_NAMESPACE).svc.cluster.local")];
    let usual = if context.envoy_by_default { "envoy" } else { "weft" };
    if pod.annotation(annotation::ENGINE).unwrap_or(usual) == "envoy" {
        let Some(path) = &context.envoy else {
            let message = "the lab does not know where Envoy is; start it with: weft up --envoy /path/to/envoy".into();
            return Err(Refusal { field: format!("metadata.annotations[{}]", annotation::ENGINE), message });
        };
        args.extend([json!("--engine"), json!("envoy"), json!("--envoy-path"), json!(path)]);
    }
    let probe = json!({"path": "/healthz/ready", "port": port::READINESS});
    let (period, failures) = (readiness(pod, "periodSeconds", 15)?, readiness(pod, "failureThreshold", 4)?);
    let mut container = json!({
        "name": PROXY_CONTAINER, "image": "weft-proxy", "args": args,
        "env": environment(pod, context, config),
        "ports": [{"containerPort": port::PROXY_METRICS, "name": "http-envoy-prom", "protocol": "TCP"}],
        "readinessProbe": {"httpGet": probe, "periodSeconds": period, "timeoutSeconds": 3, "failureThreshold": failures},
        "volumeMounts": mounts(),
    });
    if !gateway {
        container["startupProbe"] =
            json!({"httpGet": probe, "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 600});
    }
    Ok(container)
}

fn environment(pod: &Object, context: &Context, config: &Map<String, Value>) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let plain = |name: &str, value: String| json!({"name": name, "value": value});
    let trust_domain = context.mesh["trustDomain"].as_str().unwrap_or(DEFAULT_TRUST_DOMAIN).to_string();
    let discovery = config["discoveryAddress"].as_str().unwrap_or_default().to_string();
    let mut env = vec![
        plain("PILOT_CERT_PROVIDER", "istiod".into()),
        plain("CA_ADDR", discovery),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("INSTANCE_IP", "status.podIP"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("HOST_IP", "status.hostIP"),
        plain("PROXY_CONFIG", Value::Object(config.clone()).to_string()),
        plain("ISTIO_META_POD_PORTS", pod_ports(pod).to_string()),
        plain("ISTIO_META_APP_CONTAINERS", app_containers(pod).join(",")),
        plain("ISTIO_META_CLUSTER_ID", DEFAULT_CLUSTER_ID.into()),
        field("ISTIO_META_NODE_NAME", "spec.nodeName"),
        plain("ISTIO_META_INTERCEPTION_MODE", "REDIRECT".into()),
        plain("ISTIO_META_WORKLOAD_NAME", workload(pod).1),
        plain("ISTIO_META_OWNER", owner_url(pod)),
        plain("ISTIO_META_MESH_ID", trust_domain.clone()),
        plain("TRUST_DOMAIN", trust_domain),
        plain("WEFT_SOCKET_MARK", PROXY_UID.to_string()),
    ];
    if let Some(scrape) = own_metrics(pod, context) {
        env.push(plain("ISTIO_PROMETHEUS_ANNOTATIONS", scrape.to_string()));
    }
    for (name, value) in string_map(config.get("proxyMetadata").unwrap_or(&Value::Null)) {
        env.retain(|known| known["name"] != name.as_str());
        env.push(plain(&name, value));
    }
    env.into()
}

/// Where the application's own metrics are, when the proxy is to merge them.
fn own_metrics(pod: &Object, context: &Context) -> Option<Value> {
    let get = |name: &str| pod.annotation(name).unwrap_or_default();
    let wanted = merges_metrics(pod, context) && get(annotation::PROMETHEUS_SCRAPE) == "true";
    wanted.then(|| {
        json!({"scrape": "true", "path": get(annotation::PROMETHEUS_PATH), "port": get(annotation::PROMETHEUS_PORT)})
    })
}

fn pod_ports(pod: &Object) -> Value {
    let containers = pod.spec()["containers"].as_array().into_iter().flatten();
    let ports = containers.filter(|c| c["name"] != PROXY_CONTAINER).filter_map(|c| c["ports"].as_array()).flatten();
    ports.cloned().collect()
}

fn mounts() -> Value {
    json!([
        {"name": "workload-socket", "mountPath": "/var/run/secrets/workload-spiffe-uds"},
        {"name": "credential-socket", "mountPath": "/var/run/secrets/credential-uds"},
        {"name": "workload-certs", "mountPath": "/var/run/secrets/workload-spiffe-credentials"},
        {"name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio"},
        {"name": "istio-data", "mountPath": "/var/lib/istio/data"},
        {"name": "istio-envoy", "mountPath": "/etc/istio/proxy"},
        {"name": "istio-token", "mountPath": "/var/run/secrets/tokens"},
        {"name": "istio-podinfo", "mountPath": "/etc/istio/pod"},
    ])
}

fn volumes() -> Vec<Value> {
    let mut volumes: Vec<Value> =
        ["workload-socket", "credential-socket", "workload-certs", "istio-envoy", "istio-data"]
            .iter()
            .map(|name| json!({"name": name, "emptyDir": {}}))
            .collect();
    let field = |path: &str, field: &str| json!({"path": path, "fieldRef": {"fieldPath": field}});
    let token = json!({"path": "istio-token", "audience": TOKEN_AUDIENCE, "expirationSeconds": 43200});
    volumes.extend([
        json!({"name": "istio-podinfo", "downwardAPI": {"items": [
            field("labels", "metadata.labels"), field("annotations", "metadata.annotations")]}}),
        json!({"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": token}]}}),
        json!({"name": "istiod-ca-cert", "configMap": {"name": ROOT_CERT_CONFIG_MAP}}),
    ]);
    volumes
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

    fn context(namespace: Value) -> Context {
        Context { namespace_labels: string_map(&namespace), revisions: vec!["canary".into()], ..Context::default() }
    }

    #[test]
    fn who_gets_a_proxy() {
        // namespace labels, pod labels, pod annotations → revision
        let (none, on, off) =
            (json!({}), json!({"istio-injection": "enabled"}), json!({"istio-injection": "disabled"}));
        let inject = |value: &str| json!({"sidecar.istio.io/inject": value});
        let rev = |value: &str| json!({"istio.io/rev": value});
        for (namespace, labels, annotations, expected) in [
            (&none, none.clone(), none.clone(), None),
            (&on, none.clone(), none.clone(), Some("default")),
            (&on, inject("false"), none.clone(), None),
            (&on, none.clone(), inject("false"), None),
            (&off, inject("true"), none.clone(), None),
            (&none, inject("true"), none.clone(), Some("default")),
            (&rev("canary"), none.clone(), none.clone(), Some("canary")),
            (&rev("unknown"), none.clone(), none.clone(), None),
            (&none, rev("canary"), none.clone(), Some("canary")),
            (
                &json!({"istio-injection": "enabled", "istio.io/rev": "canary"}),
                none.clone(),
                none.clone(),
                Some("default"),
            ),
        ] {
            let decided = decide(&pod(labels.clone(), annotations), &context(namespace.clone()));
            assert_eq!(decided.as_deref(), expected, "{namespace} {labels}");
        }
    }

    #[test]
    fn sidecar_shape() {
        let mut pod = pod(
            json!({"app": "web", "pod-template-hash": "5d4f"}),
            json!({"prometheus.io/scrape": "true", "prometheus.io/port": "80"}),
        );
        inject(&mut pod, &context(json!({})), "default").unwrap();
        let spec = pod.spec();
        let names = |list: &str| -> Vec<&str> {
            spec[list].as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect()
        };
        assert_eq!((names("initContainers"), names("containers")), (vec!["istio-init"], vec!["web", "istio-proxy"]));
        let env = |name: &str| {
            let env = spec["containers"][1]["env"].as_array().unwrap();
            env.iter().find(|e| e["name"] == name).map(|e| e["value"].as_str().unwrap_or_default().to_string())
        };
        assert_eq!(env("ISTIO_META_WORKLOAD_NAME").unwrap(), "web");
        assert_eq!(env("ISTIO_META_OWNER").unwrap(), "kubernetes://apis/apps/v1/namespaces/n/deployments/web");
        assert_eq!(env("CA_ADDR").unwrap(), "istiod.istio-system.svc:15012");
        assert!(env("ISTIO_PROMETHEUS_ANNOTATIONS").unwrap().contains("\"port\":\"80\""));
        assert_eq!((pod.annotation("prometheus.io/port"), pod.label(label::TLS_MODE)), (Some("15020"), Some("istio")));
        assert_eq!(
            (pod.label(label::CANONICAL_NAME), pod.label(label::CANONICAL_REVISION)),
            (Some("web"), Some("latest"))
        );
        assert!(decide(&pod, &context(json!({"istio-injection": "enabled"}))).is_none(), "never twice");
    }

    #[test]
    fn gateways_overrides_and_refusals() {
        let gateway = json!({"inject.istio.io/templates": "gateway"});
        let mut pod = pod(json!({}), gateway.clone());
        pod.body["spec"]["containers"] = json!([{"name": "istio-proxy", "image": "auto",
            "ports": [{"name": "http2", "containerPort": 8080}], "env": [{"name": "TRUST_DOMAIN", "value": "mine"}]}]);
        inject(&mut pod, &context(json!({})), "default").unwrap();
        let containers = pod.spec()["containers"].as_array().unwrap();
        assert_eq!(
            (containers.len(), &containers[0]["args"][0], &containers[0]["image"]),
            (1, &json!("router"), &json!("weft-proxy"))
        );
        assert!(containers[0]["env"].as_array().unwrap().contains(&json!({"name": "TRUST_DOMAIN", "value": "mine"})));
        assert_eq!(containers[0]["ports"].as_array().unwrap().len(), 2);
        assert!(pod.spec()["initContainers"].as_array().unwrap().is_empty());
        assert_eq!(pod.label(label::TLS_MODE), None);
        for (annotations, said) in [
            (json!({"weft.dev/proxy-engine": "envoy"}), "--envoy"),
            (json!({"inject.istio.io/templates": "none-such"}), "none-such"),
            (json!({"traffic.sidecar.istio.io/excludeInboundPorts": "bad"}), "excludeInboundPorts"),
            (json!({"proxy.istio.io/config": "- a"}), "ProxyConfig"),
            (json!({"readiness.status.sidecar.istio.io/periodSeconds": "0"}), "from 1"),
        ] {
            let mut pod = super::tests::pod(json!({}), annotations);
            let refusal = inject(&mut pod, &context(json!({})), "default").unwrap_err();
            assert!(refusal.message.contains(said), "{refusal:?}");
        }
    }

    #[test]
    fn the_engine_is_the_annotation_s_or_the_lab_s() {
        for (by_default, annotation, envoy) in
            [(false, None, false), (true, None, true), (true, Some("weft"), false), (false, Some("envoy"), true)]
        {
            let annotations = annotation.map_or(json!({}), |engine| json!({"weft.dev/proxy-engine": engine}));
            let mut pod = pod(json!({}), annotations);
            let context = Context { envoy: Some("/envoy".into()), envoy_by_default: by_default, ..context(json!({})) };
            inject(&mut pod, &context, "default").unwrap();
            let args = pod.spec()["containers"][1]["args"].to_string();
            assert_eq!(args.contains("/envoy"), envoy, "{by_default} {annotation:?}: {args}");
        }
    }

    #[test]
    fn pod_config_overrides_the_mesh() {
        let mesh = json!({"defaultConfig": {"concurrency": 1, "proxyMetadata": {"A": "1", "B": "1"}}});
        let proxy_configs = vec![
            json!({"selector": {"matchLabels": {"app": "web"}}, "environmentVariables": {"C": "own"}}),
            json!({"concurrency": 2, "environmentVariables": {"C": "all", "D": "all"}}),
            json!({"selector": {"matchLabels": {"app": "other"}}, "environmentVariables": {"D": "other"}}),
        ];
        let annotations = json!({"proxy.istio.io/config": "concurrency: 3\nproxyMetadata: {B: '2'}"});
        let mut pod = pod(json!({"app": "web"}), annotations);
        inject(&mut pod, &Context { mesh, proxy_configs, ..Context::default() }, "canary").unwrap();
        let text = pod.spec()["containers"][1]["env"].to_string();
        for part in [
            r#"\"concurrency\":3"#,
            "istiod-canary.istio-system.svc:15012",
            r#"{"name":"A","value":"1"}"#,
            r#"{"name":"B","value":"2"}"#,
            r#"{"name":"C","value":"own"}"#,
            r#"{"name":"D","value":"all"}"#,
        ] {
            assert!(text.contains(part), "{part} not in {text}");
        }
    }
}
