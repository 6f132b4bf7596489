//! The built-in template `sidecar`: the proxy beside an application, the container that sets up or checks its redirection,
//! and their volumes. Its parts serve the template `gateway` too.
//!
//! Source: Istio's injection template (chart `istio-discovery`, `injection-template.yaml`).

use crate::annotations::{EXCLUDE_INTERFACES, INIT, PROXY, REROUTED, STATUS_PORT, VALIDATION};
use crate::inject::Facts;
use crate::pod::Pod;
use serde_json::{Map, Value, json};
use weft_core::well_known::annotation as names;
use weft_core::well_known::{DEFAULT_CLUSTER_ID, DEFAULT_TRUST_DOMAIN, ROOT_CERT_CONFIG_MAP, label, port};

const CRL_CONFIG_MAP: &str = "istio-ca-crl";

/// What is laid over the pod.
pub(crate) fn overlay(facts: &Facts<'_>) -> Value {
    let mode = facts.proxy.interception_mode(facts.pod).to_string();
    let (mut init, mut containers) = (Vec::new(), Vec::new());
    if mode != "NONE" {
        init.push(redirection(facts, &mode));
    }
    let proxy = proxy(facts, &mode);
    if facts.native {
        init.push(proxy)
    } else {
        containers.push(proxy)
    }
    let mut spec = json!({"volumes": volumes(facts, true)});
    for (field, list) in [("initContainers", init), ("containers", containers)] {
        if !list.is_empty() {
            spec[field] = list.into();
        }
    }
    pull_secrets(facts, &mut spec);
    let mut annotations = annotations(facts);
    if cni(facts) {
        annotations.extend(cni_annotations(facts, &mode));
    }
    json!({"metadata": {"labels": labels(facts, true), "annotations": annotations}, "spec": spec})
}

/// Whether a node agent sets up the redirection.
fn cni(facts: &Facts<'_>) -> bool {
    facts.values.is_true("pilot.cni.enabled")
}

/// Labels of the pod; those that it has stay.
pub(crate) fn labels(facts: &Facts<'_>, sidecar: bool) -> Map<String, Value> {
    let first = |names: &[&str]| names.iter().find_map(|name| facts.pod.label(name)).map(str::to_string);
    let name =
        first(&[label::CANONICAL_NAME, "app.kubernetes.io/name", "app"]).unwrap_or_else(|| facts.owner.name.clone());
    let version = first(&[label::CANONICAL_REVISION, "app.kubernetes.io/version", "version"]);
    // A label's value has at most 63 characters and ends with a letter or digit.
    let name: String = name.chars().take(63).collect();
    let name = name.trim_matches(['-', '_', '.']).to_string();
    let mut labels = Map::new();
    if sidecar {
        labels.insert(label::TLS_MODE.into(), first(&[label::TLS_MODE]).unwrap_or_else(|| "istio".into()).into());
    }
    labels.insert(label::CANONICAL_NAME.into(), name.into());
    labels.insert(label::CANONICAL_REVISION.into(), version.unwrap_or_else(|| "latest".into()).into());
    // `kubectl get pods -l istio.io/rev=canary` shows who has moved to a control plane beside the default one ("Canary
    // Upgrades"); for the default one the annotation is enough.
    if !matches!(&*facts.revision, "" | "default") {
        let revision = first(&[label::REVISION]).unwrap_or_else(|| facts.revision.to_string());
        labels.insert(label::REVISION.into(), revision.into());
    }
    labels
}

/// Annotations of every injected pod.
pub(crate) fn annotations(facts: &Facts<'_>) -> Map<String, Value> {
    let revision = if facts.revision.is_empty() { "default" } else { &facts.revision };
    let mut annotations = Map::from_iter([(label::REVISION.to_string(), json!(revision))]);
    if let Some(first) = facts.app_containers().first() {
        for name in ["kubectl.kubernetes.io/default-logs-container", "kubectl.kubernetes.io/default-container"] {
            if facts.pod.annotation(name).is_none() {
                annotations.insert(name.into(), json!(first));
            }
        }
    }
    annotations
}

/// What the node agent reads: the settings of the redirection, whoever gave them.
fn cni_annotations(facts: &Facts<'_>, mode: &str) -> Map<String, Value> {
    let mut found = Map::new();
    if facts.values.text("pilot.cni.provider") == "multus" {
        let networks = "k8s.v1.cni.cncf.io/networks";
        let own = facts.pod.annotation(networks).unwrap_or_default();
        found.insert(networks.into(), with_network(own, "default", "istio-cni").into());
    }
    found.insert("sidecar.istio.io/interceptionMode".into(), mode.into());
    let always = [names::INCLUDE_INBOUND_PORTS, names::EXCLUDE_INBOUND_PORTS];
    let values = [
        (
            names::INCLUDE_OUTBOUND_RANGES,
            facts.annotated(names::INCLUDE_OUTBOUND_RANGES, "global.proxy.includeIPRanges"),
        ),
        (
            names::EXCLUDE_OUTBOUND_RANGES,
            facts.annotated(names::EXCLUDE_OUTBOUND_RANGES, "global.proxy.excludeIPRanges"),
        ),
        (
            names::INCLUDE_INBOUND_PORTS,
            facts.annotated(names::INCLUDE_INBOUND_PORTS, "global.proxy.includeInboundPorts"),
        ),
        (names::EXCLUDE_INBOUND_PORTS, excluded_inbound(facts)),
        (
            names::INCLUDE_OUTBOUND_PORTS,
            facts.annotated(names::INCLUDE_OUTBOUND_PORTS, "global.proxy.includeOutboundPorts"),
        ),
        (
            names::EXCLUDE_OUTBOUND_PORTS,
            facts.annotated(names::EXCLUDE_OUTBOUND_PORTS, "global.proxy.excludeOutboundPorts"),
        ),
    ];
    for (name, value) in values {
        if !value.is_empty() || always.contains(&name) {
            found.insert(name.into(), value.into());
        }
    }
    found
}

/// The list of networks of a pod (Multus), with one more: in the form that it has, words or JSON.
fn with_network(own: &str, namespace: &str, name: &str) -> String {
    let word = format!("{namespace}/{name}");
    if own.trim().is_empty() {
        return word;
    }
    if own.contains(']') {
        let Ok(Value::Array(mut all)) = serde_json::from_str::<Value>(own) else { return own.to_string() };
        if !all.iter().any(|network| network["name"] == name && network["namespace"] == namespace) {
            all.push(json!({"name": name, "namespace": namespace}));
        }
        return Value::Array(all).to_string();
    }
    if own.split(',').any(|network| network.trim() == word) { own.to_string() } else { format!("{own}, {word}") }
}

/// Ports that are never redirected: the pod's own list and the agent's port.
fn excluded_inbound(facts: &Facts<'_>) -> String {
    let own = facts.annotated(names::EXCLUDE_INBOUND_PORTS, "global.proxy.excludeInboundPorts");
    let status = status_port(facts);
    let mut ports: Vec<&str> = own.split(',').map(str::trim).filter(|port| !port.is_empty()).collect();
    if status != "0" && !status.is_empty() && !ports.contains(&status.as_str()) {
        ports.push(&status);
    }
    ports.join(",")
}

fn status_port(facts: &Facts<'_>) -> String {
    facts.annotated(STATUS_PORT, "global.proxy.statusPort").trim().to_string()
}

/// The container that sets up the redirection, or checks what a node agent has set up.
fn redirection(facts: &Facts<'_>, mode: &str) -> Value {
    let (cni, privileged) = (cni(facts), facts.values.is_true("global.proxy.privileged"));
    let security = if cni {
        let (uid, gid) = if mode == "TPROXY" { (1337, 1337) } else { (facts.uid, facts.gid) };
        json!({"allowPrivilegeEscalation": privileged, "privileged": privileged, "capabilities": {"drop": ["ALL"]},
               "readOnlyRootFilesystem": true, "runAsGroup": gid, "runAsUser": uid, "runAsNonRoot": true})
    } else {
        json!({"allowPrivilegeEscalation": privileged, "privileged": privileged,
               "capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]},
               "readOnlyRootFilesystem": false, "runAsGroup": 0, "runAsUser": 0, "runAsNonRoot": false})
    };
    let mut container = json!({
        "name": if cni { VALIDATION } else { INIT },
        "image": init_image(facts),
        "args": redirection_arguments(facts, mode),
        "resources": resources(facts),
        "securityContext": with_seccomp(facts, security),
    });
    let variables = facts.proxy.metadata();
    if !variables.is_empty() {
        container["env"] = variables.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    }
    pull_policy(facts, &mut container);
    container
}

fn redirection_arguments(facts: &Facts<'_>, mode: &str) -> Value {
    let mesh_port =
        |field: &str, usual: u16| facts.mesh[field].as_u64().filter(|p| *p > 0).unwrap_or(u64::from(usual)).to_string();
    let uid = if mode == "TPROXY" { 1337 } else { facts.uid };
    let excluded = excluded_inbound(facts);
    let excluded = if excluded.is_empty() { String::new() } else { format!(",{excluded}") };
    let mut args: Vec<String> = vec!["istio-iptables".into()];
    let mut put = |flag: &str, value: String| args.extend([flag.to_string(), value]);
    put("-p", mesh_port("proxyListenPort", port::OUTBOUND));
    put("-z", mesh_port("proxyInboundListenPort", port::INBOUND));
    put("-u", uid.to_string());
    put("-m", mode.to_string());
    put("-i", facts.annotated(names::INCLUDE_OUTBOUND_RANGES, "global.proxy.includeIPRanges"));
    put("-x", facts.annotated(names::EXCLUDE_OUTBOUND_RANGES, "global.proxy.excludeIPRanges"));
    put("-b", facts.annotated(names::INCLUDE_INBOUND_PORTS, "global.proxy.includeInboundPorts"));
    put("-d", format!("{},{}{excluded}", port::PROXY_METRICS, port::READINESS));
    for (flag, name, path) in [
        ("-q", names::INCLUDE_OUTBOUND_PORTS, "global.proxy.includeOutboundPorts"),
        ("-o", names::EXCLUDE_OUTBOUND_PORTS, "global.proxy.excludeOutboundPorts"),
    ] {
        let value = facts.annotated(name, path);
        if facts.pod.annotation(name).is_some() || !value.is_empty() {
            put(flag, value);
        }
    }
    if let Some(rerouted) = REROUTED.iter().find_map(|name| facts.pod.annotation(name)) {
        put("-k", rerouted.to_string());
    }
    if let Some(interfaces) = facts.pod.annotation(EXCLUDE_INTERFACES) {
        put("-c", interfaces.to_string());
    }
    args.push(format!(
        "--log_output_level={}",
        facts.annotated("sidecar.istio.io/agentLogLevel", "global.logging.level")
    ));
    if facts.values.is_true("global.logAsJson") {
        args.push("--log_as_json".into());
    }
    if cni(facts) {
        args.extend(["--run-validation".into(), "--skip-rule-apply".into()]);
    } else if facts.values.is_true("global.proxy_init.forceApplyIptables") {
        args.push("--force-apply".into());
    }
    args.into()
}

fn proxy(facts: &Facts<'_>, mode: &str) -> Value {
    let mut container = json!({
        "name": PROXY,
        "image": proxy_image(facts),
        "ports": [{"containerPort": port::PROXY_METRICS, "protocol": "TCP", "name": "http-envoy-prom"}],
        "args": arguments(facts, "sidecar"),
        "env": environment(facts, true),
        "securityContext": with_seccomp(facts, security(facts, mode)),
        "resources": resources(facts),
        "volumeMounts": mounts(facts, true),
    });
    if facts.native {
        container["restartPolicy"] = "Always".into();
    }
    if let Some(hooks) = hooks(facts) {
        container["lifecycle"] = hooks;
    }
    pull_policy(facts, &mut container);
    if status_port(facts) != "0" {
        if facts.values.is_true("global.proxy.startupProbe.enabled") {
            container["startupProbe"] = json!({
                "httpGet": {"path": "/healthz/ready", "port": port::READINESS},
                "initialDelaySeconds": 0, "periodSeconds": 1, "timeoutSeconds": 3,
                "failureThreshold": facts.values.get("global.proxy.startupProbe.failureThreshold"),
            });
        }
        container["readinessProbe"] = readiness(facts, true);
    }
    container
}

/// Hooks of the proxy: the installer's; else it holds the application back, or drains first where it ends last.
fn hooks(facts: &Facts<'_>) -> Option<Value> {
    let own = facts.values.get("global.proxy.lifecycle");
    let holds = facts.proxy.holds() || facts.values.is_true("global.proxy.holdApplicationUntilProxyStarts");
    if own.is_object() {
        return Some(own.clone());
    }
    if facts.native {
        let port = format!("--debug-port={}", status_port(facts));
        return Some(json!({"preStop": {"exec": {"command": ["weft-proxy", "request", port, "POST", "drain"]}}}));
    }
    holds.then(|| json!({"postStart": {"exec": {"command": ["weft-proxy", "wait"]}}}))
}

fn security(facts: &Facts<'_>, mode: &str) -> Value {
    let transparent = mode == "TPROXY";
    let low_ports = facts.annotated("sidecar.istio.io/capNetBindService", "global.proxy.capNetBindService") == "true";
    let privileged = facts.values.is_true("global.proxy.privileged");
    let mut capabilities = json!({"drop": ["ALL"]});
    let wanted = [(transparent, "NET_ADMIN"), (low_ports, "NET_BIND_SERVICE")];
    let added: Vec<&str> = wanted.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect();
    let root = !added.is_empty();
    if root {
        capabilities["add"] = added.into();
    }
    let (uid, gid) = if root { (0, 1337) } else { (facts.uid, facts.gid) };
    json!({"allowPrivilegeEscalation": privileged, "capabilities": capabilities, "privileged": privileged,
           "readOnlyRootFilesystem": true, "runAsGroup": gid, "runAsUser": uid, "runAsNonRoot": !root})
}

fn with_seccomp(facts: &Facts<'_>, mut security: Value) -> Value {
    let profile = facts.values.get("global.proxy.seccompProfile");
    if profile.as_object().is_some_and(|fields| !fields.is_empty()) {
        security["seccompProfile"] = profile.clone();
    }
    security
}

/// Resources: those of the annotations where there is one of them, else the installer's.
fn resources(facts: &Facts<'_>) -> Value {
    let named = [
        ("requests", "cpu", "sidecar.istio.io/proxyCPU"),
        ("requests", "memory", "sidecar.istio.io/proxyMemory"),
        ("limits", "cpu", "sidecar.istio.io/proxyCPULimit"),
        ("limits", "memory", "sidecar.istio.io/proxyMemoryLimit"),
    ];
    let mut own = json!({});
    for (kind, resource, name) in named {
        if let Some(quantity) = facts.pod.annotation(name) {
            own[kind][resource] = quantity.into();
        }
    }
    if own.as_object().is_some_and(|fields| !fields.is_empty()) {
        return own;
    }
    match facts.values.get("global.proxy.resources") {
        Value::Object(fields) => fields.clone().into(),
        _ => json!({}),
    }
}

/// `hub/image:tag`, the tag with the type of image that is asked for.
pub(crate) fn image(facts: &Facts<'_>, path: &str, typed: bool) -> String {
    const TYPES: [&str; 2] = ["distroless", "debug"];
    let (hub, tag) = (facts.values.text("global.hub"), facts.values.text("global.tag"));
    let configured = facts.proxy.get("image")["imageType"].as_str().filter(|kind| typed && !kind.is_empty());
    let variant = facts.values.text("global.variant");
    let kind = facts.pod.annotation("sidecar.istio.io/proxyImageType").or(configured).unwrap_or(&variant);
    let plain = TYPES.iter().find_map(|known| tag.strip_suffix(&format!("-{known}"))).unwrap_or(&tag);
    let tag = match kind {
        "" => tag.clone(),
        "default" => plain.to_string(),
        kind => format!("{plain}-{kind}"),
    };
    format!("{hub}/{}:{tag}", facts.values.text(path))
}

/// The proxy's image: a whole reference where one is given, else one of the hub.
pub(crate) fn proxy_image(facts: &Facts<'_>) -> String {
    whole_image(facts, "global.proxy.image").unwrap_or_else(|| image(facts, "global.proxy.image", true))
}

fn init_image(facts: &Facts<'_>) -> String {
    whole_image(facts, "global.proxy_init.image").unwrap_or_else(|| image(facts, "global.proxy_init.image", false))
}

fn whole_image(facts: &Facts<'_>, path: &str) -> Option<String> {
    Some(facts.annotated("sidecar.istio.io/proxyImage", path)).filter(|image| image.contains('/'))
}

pub(crate) fn pull_policy(facts: &Facts<'_>, container: &mut Value) {
    let policy = facts.values.text("global.imagePullPolicy");
    if !policy.is_empty() {
        container["imagePullPolicy"] = policy.into();
    }
}

pub(crate) fn pull_secrets(facts: &Facts<'_>, spec: &mut Value) {
    let names = facts.values.get("global.imagePullSecrets").as_array().into_iter().flatten();
    let secrets: Vec<Value> = names.map(|name| json!({"name": name})).collect();
    if !secrets.is_empty() {
        spec["imagePullSecrets"] = secrets.into();
    }
}

/// Arguments of the proxy as `sidecar` or `router`.
pub(crate) fn arguments(facts: &Facts<'_>, role: &str) -> Value {
    let level = |flag: &str, name: &str, path: &str| format!("--{flag}={}", facts.annotated(name, path));
    let mut args = vec![
        "proxy".to_string(),
        role.to_string(),
        "--domain".into(),
        format!("$(POD_NAMESPACE).svc.{}", facts.values.text("global.proxy.clusterDomain")),
        level("proxyLogLevel", "sidecar.istio.io/logLevel", "global.proxy.logLevel"),
        level("proxyComponentLogLevel", "sidecar.istio.io/componentLogLevel", "global.proxy.componentLogLevel"),
        level("log_output_level", "sidecar.istio.io/agentLogLevel", "global.logging.level"),
    ];
    if facts.values.is_true("global.logAsJson") {
        args.push("--log_as_json".into());
    }
    args.into()
}

/// The proxy's variables.
pub(crate) fn environment(facts: &Facts<'_>, sidecar: bool) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let plain = |name: &str, value: String| json!({"name": name, "value": value});
    let cpu = json!({"resource": "limits.cpu", "divisor": "1"});
    let mut env = Vec::new();
    if sidecar && facts.mesh["inboundTrafficPolicy"]["mode"] == "LOCALHOST" {
        env.push(plain("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", "true".into()));
    }
    env.extend([
        plain("PILOT_CERT_PROVIDER", facts.values.text("global.pilotCertProvider")),
        plain("CA_ADDR", ca_address(facts)),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("INSTANCE_IP", "status.podIP"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("HOST_IP", "status.hostIP"),
        json!({"name": "ISTIO_CPU_LIMIT", "valueFrom": {"resourceFieldRef": cpu}}),
        plain("PROXY_CONFIG", facts.proxy.for_proxy()),
        plain("ISTIO_META_POD_PORTS", pod_ports(facts)),
        plain("ISTIO_META_APP_CONTAINERS", facts.app_containers().join(",")),
    ]);
    let policy = facts.values.text("pilot.env.COMPLIANCE_POLICY");
    if !policy.is_empty() {
        env.push(plain("COMPLIANCE_POLICY", policy));
    }
    env.extend(about_the_workload(facts, sidecar));
    if let Some(attributes) = resource_attributes(facts).filter(|_| sidecar) {
        env.push(plain("OTEL_RESOURCE_ATTRIBUTES", attributes));
    }
    for (name, value) in facts.proxy.metadata() {
        env.retain(|known| known["name"] != name.as_str());
        env.push(plain(&name, value));
    }
    env.into()
}

/// Where the workload is and what it belongs to.
fn about_the_workload(facts: &Facts<'_>, sidecar: bool) -> Vec<Value> {
    let plain = |name: &str, value: String| json!({"name": name, "value": value});
    let cluster = facts.values.text("global.multiCluster.clusterName");
    let trust_domain =
        facts.mesh["trustDomain"].as_str().filter(|domain| !domain.is_empty()).unwrap_or(DEFAULT_TRUST_DOMAIN);
    let mesh = facts.values.text("global.meshID");
    let workload = facts.pod.label("service.istio.io/workload-name").filter(|_| sidecar);
    let workload = workload.unwrap_or(&facts.owner.name).to_string();
    let mode = if sidecar { facts.proxy.interception_mode(facts.pod) } else { "REDIRECT" };
    let mut env = vec![
        plain("ISTIO_META_CLUSTER_ID", if cluster.is_empty() { DEFAULT_CLUSTER_ID.into() } else { cluster }),
        json!({"name": "ISTIO_META_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}),
        plain("ISTIO_META_INTERCEPTION_MODE", mode.into()),
    ];
    if !workload.is_empty() {
        env.push(plain("ISTIO_META_WORKLOAD_NAME", workload));
    }
    env.extend(facts.owner.url().map(|owner| plain("ISTIO_META_OWNER", owner)));
    env.push(plain("ISTIO_META_MESH_ID", if mesh.is_empty() { trust_domain.into() } else { mesh }));
    env.push(plain("TRUST_DOMAIN", trust_domain.into()));
    env
}

fn ca_address(facts: &Facts<'_>) -> String {
    let own = facts.values.text("global.caAddress");
    if !own.is_empty() {
        return own;
    }
    let revision = if facts.revision.is_empty() { String::new() } else { format!("-{}", facts.revision) };
    format!("istiod{revision}.{}.svc:{}", facts.values.namespace(), port::XDS)
}

fn pod_ports(facts: &Facts<'_>) -> String {
    let containers = facts.pod.list("containers").iter().filter_map(|container| container["ports"].as_array());
    Value::Array(containers.flatten().cloned().collect()).to_string()
}

/// The application's resource attributes for traces, where a tracing provider wants them by OpenTelemetry's conventions.
fn resource_attributes(facts: &Facts<'_>) -> Option<String> {
    let providers = facts.mesh["extensionProviders"].as_array()?;
    let wants =
        |provider: &Value| provider["opentelemetry"]["serviceAttributeEnrichment"] == "OTEL_SEMANTIC_CONVENTIONS";
    if !providers.iter().any(wants) {
        return None;
    }
    let given =
        |name: &str| facts.pod.annotation(&format!("resource.opentelemetry.io/{name}")).filter(|text| !text.is_empty());
    let namespace = Some(facts.owner.namespace.as_str()).filter(|namespace| !namespace.is_empty());
    let containers = facts.pod.list("containers");
    let mut attributes = Vec::new();
    if let Some(value) = given("service.namespace").or(namespace) {
        attributes.push(format!("service.namespace={value}"));
    }
    let label = facts.pod.label("app.kubernetes.io/version").map(str::to_string);
    let image =
        || containers.first().filter(|_| containers.len() == 1).and_then(|c| image_version(c["image"].as_str()?));
    if let Some(value) = given("service.version").map(str::to_string).or(label).or_else(image) {
        attributes.push(format!("service.version={value}"));
    }
    let first = containers.first().and_then(|container| container["name"].as_str());
    let instance = || first.map(|name| format!("{}.$(POD_NAME).{name}", facts.owner.namespace));
    if let Some(value) = given("service.instance.id").map(str::to_string).or_else(instance) {
        attributes.push(format!("service.instance.id={value}"));
    }
    Some(attributes.join(","))
}

/// Tag and digest of an image reference.
fn image_version(image: &str) -> Option<String> {
    let (rest, digest) = image.split_once('@').map_or((image, None), |(rest, digest)| (rest, Some(digest)));
    let tag = rest.rsplit('/').next().and_then(|name| name.split_once(':')).map(|(_, tag)| tag);
    match (tag, digest) {
        (Some(tag), Some(digest)) => Some(format!("{tag}@{digest}")),
        (tag, digest) => digest.or(tag).map(str::to_string),
    }
}

pub(crate) fn readiness(facts: &Facts<'_>, annotated: bool) -> Value {
    let number = |name: &str, path: &str| {
        let own = facts.pod.annotation(&format!("readiness.status.sidecar.istio.io/{name}")).filter(|_| annotated);
        own.and_then(|text| text.parse::<u32>().ok()).map_or_else(|| facts.values.get(path).clone(), Value::from)
    };
    json!({
        "httpGet": {"path": "/healthz/ready", "port": port::READINESS},
        "initialDelaySeconds": number("initialDelaySeconds", "global.proxy.readinessInitialDelaySeconds"),
        "periodSeconds": number("periodSeconds", "global.proxy.readinessPeriodSeconds"),
        "timeoutSeconds": 3,
        "failureThreshold": number("failureThreshold", "global.proxy.readinessFailureThreshold"),
    })
}

/// JSON of an annotation that maps names to objects; nothing where it is none.
fn user_map(facts: &Facts<'_>, name: &str) -> Map<String, Value> {
    let text = facts.pod.annotation(name).unwrap_or("{}");
    serde_json::from_str(text).unwrap_or_default()
}

const BOOTSTRAP: &str = "sidecar.istio.io/bootstrapOverride";

/// Where the proxy finds its files.
pub(crate) fn mounts(facts: &Facts<'_>, sidecar: bool) -> Value {
    let mut mounts = vec![
        json!({"name": "workload-socket", "mountPath": "/var/run/secrets/workload-spiffe-uds"}),
        json!({"name": "credential-socket", "mountPath": "/var/run/secrets/credential-uds"}),
        json!({"name": "workload-certs", "mountPath": "/var/run/secrets/workload-spiffe-credentials"}),
    ];
    if facts.values.text("global.pilotCertProvider") == "istiod" {
        mounts.push(json!({"name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio"}));
        if sidecar {
            mounts.push(json!({"name": "istio-ca-crl", "mountPath": "/var/run/secrets/istio/crl"}));
        }
    }
    mounts.push(json!({"name": "istio-data", "mountPath": "/var/lib/istio/data"}));
    if facts.pod.annotation(BOOTSTRAP).is_some() {
        mounts.push(json!({"name": "custom-bootstrap-volume", "mountPath": "/etc/istio/custom-bootstrap"}));
    }
    mounts.push(json!({"name": "istio-envoy", "mountPath": "/etc/istio/proxy"}));
    mounts.push(json!({"name": "istio-token", "mountPath": "/var/run/secrets/tokens"}));
    if facts.values.is_true("global.mountMtlsCerts") {
        mounts.push(json!({"name": "istio-certs", "mountPath": "/etc/certs/", "readOnly": true}));
    }
    mounts.push(json!({"name": "istio-podinfo", "mountPath": "/etc/istio/pod"}));
    if sidecar {
        for (name, mut mount) in user_map(facts, "sidecar.istio.io/userVolumeMount") {
            if mount.is_object() {
                mount["name"] = name.into();
                mounts.push(mount);
            }
        }
    }
    mounts.into()
}

/// The volumes behind the mounts.
pub(crate) fn volumes(facts: &Facts<'_>, sidecar: bool) -> Value {
    // Named alone, so that a later template can put another source behind them.
    let mut volumes: Vec<Value> =
        ["workload-socket", "credential-socket", "workload-certs"].iter().map(|name| json!({"name": name})).collect();
    if let Some(name) = facts.pod.annotation(BOOTSTRAP) {
        volumes.push(json!({"name": "custom-bootstrap-volume", "configMap": {"name": name}}));
    }
    let item = |path: &str| json!({"path": path, "fieldRef": {"fieldPath": format!("metadata.{path}")}});
    let audience = facts.values.text("global.sds.token.aud");
    let token = json!({"path": "istio-token", "expirationSeconds": 43200, "audience": audience});
    volumes.extend([
        json!({"name": "istio-envoy", "emptyDir": {"medium": "Memory"}}),
        json!({"name": "istio-data", "emptyDir": {}}),
        json!({"name": "istio-podinfo", "downwardAPI": {"items": [item("labels"), item("annotations")]}}),
        json!({"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": token}]}}),
    ]);
    let or = |path: &str, usual: &str| {
        Some(facts.values.text(path)).filter(|t| !t.is_empty()).unwrap_or_else(|| usual.into())
    };
    if facts.values.text("global.pilotCertProvider") == "istiod" {
        let name = or("global.trustBundleName", ROOT_CERT_CONFIG_MAP);
        volumes.push(json!({"name": "istiod-ca-cert", "configMap": {"name": name}}));
    }
    if sidecar {
        let name = or("pilot.crlConfigMapName", CRL_CONFIG_MAP);
        volumes.push(json!({"name": "istio-ca-crl", "configMap": {"name": name, "optional": true}}));
    }
    if facts.values.is_true("global.mountMtlsCerts") {
        let account =
            facts.pod["spec"]["serviceAccountName"].as_str().filter(|name| !name.is_empty()).unwrap_or("default");
        volumes.push(
            json!({"name": "istio-certs", "secret": {"optional": true, "secretName": format!("istio.{account}")}}),
        );
    }
    if sidecar {
        for (name, mut volume) in user_map(facts, "sidecar.istio.io/userVolume") {
            if volume.is_object() {
                volume["name"] = name.into();
                volumes.push(volume);
            }
        }
    }
    volumes.into()
}
