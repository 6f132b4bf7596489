//! The control plane itself: configuration, Deployment, Service, disruption budget, autoscaler.

use super::k8s::Component;
use super::scaling::Scaling;
use super::{Settings, metadata};
use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

/// Its objects.
///
/// # Errors
/// Settings that its program would refuse.
pub(super) fn objects(settings: &Settings) -> anyhow::Result<Vec<Value>> {
    let name = settings.named("istiod");
    let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata(settings, &name, true), "spec": {
        "ports": service_ports(settings)?, "selector": selector(settings),
    }});
    component(settings).service(&mut service);
    let mut all = configuration(settings);
    all.push(service);
    if let Some(mut budget) = component(settings).budget() {
        budget["selector"] = json!({"matchLabels": selector(settings)});
        all.push(json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata(settings, &name, true),
                        "spec": budget}));
    }
    all.push(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(settings, &name, true),
                    "spec": deployment(settings)?}));
    all.extend(scaling(settings).object(metadata(settings, &name, true)));
    Ok(all)
}

/// The ConfigMaps: of the mesh, and of the injector.
pub(super) fn configuration(settings: &Settings) -> Vec<Value> {
    vec![mesh_config(settings), injector_config(settings)]
}

fn component(settings: &Settings) -> Component<'_> {
    Component { k8s: settings.pilot_k8s(), values: settings.values.get("pilot"), all: &settings.values }
}

fn scaling(settings: &Settings) -> Scaling<'_> {
    Scaling { k8s: settings.pilot_k8s(), values: settings.values.get("pilot") }
}

/// `15010` is served only where it is asked for.
fn plaintext(settings: &Settings) -> bool {
    settings.values.text("pilot.env.WEFT_PLAINTEXT_XDS") == "true"
}

fn selector(settings: &Settings) -> Value {
    json!({"app": "istiod", "istio.io/rev": settings.revision_label()})
}

fn yaml(value: &Value) -> String {
    // JSON is YAML; a tree of settings that came from YAML can always be written as such.
    weft_k8s_api::yaml::write(value).unwrap_or_else(|_| value.to_string())
}

fn mesh_config(settings: &Settings) -> Value {
    let networks = match settings.values.get("global.meshNetworks") {
        Value::Object(networks) if !networks.is_empty() => json!({"networks": networks}),
        _ => json!({"networks": {}}),
    };
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(settings, &settings.named("istio"), true),
           "data": {"mesh": yaml(&settings.mesh), "meshNetworks": yaml(&networks)}})
}

fn injector_config(settings: &Settings) -> Value {
    let hook = settings.values.get("sidecarInjectorWebhook");
    let default_templates = match hook["defaultTemplates"].as_array() {
        Some(names) if !names.is_empty() => json!(names),
        _ => json!(["sidecar"]),
    };
    let config = json!({
        "policy": settings.values.text("global.proxy.autoInject"),
        "defaultTemplates": default_templates,
        "alwaysInjectSelector": hook["alwaysInjectSelector"], "neverInjectSelector": hook["neverInjectSelector"],
        "injectedAnnotations": hook["injectedAnnotations"], "templates": hook["templates"],
    });
    let tree = settings.values.tree();
    let carried = ["global", "sidecarInjectorWebhook", "revision", "pilot", "gateways"];
    let mut values: Map<String, Value> =
        carried.iter().map(|name| ((*name).to_string(), tree[*name].clone())).collect();
    // What single gateways are like is in their own objects.
    values.insert("gateways".into(), json!({"securityContext": tree["gateways"]["securityContext"]}));
    let values = serde_json::to_string_pretty(&values).unwrap_or_default();
    json!({"apiVersion": "v1", "kind": "ConfigMap",
           "metadata": metadata(settings, &settings.named("istio-sidecar-injector"), true),
           "data": {"config": yaml(&config), "values": values}})
}

/// Port of metrics and debug endpoints.
fn monitoring(settings: &Settings) -> anyhow::Result<u16> {
    match settings.values.get("global.monitoringPort") {
        Value::Null => Some(15014),
        port => port.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0),
    }
    .with_context(|| {
        format!("values.global.monitoringPort is {}; it must be a port", settings.values.get("global.monitoringPort"))
    })
}

fn service_ports(settings: &Settings) -> anyhow::Result<Value> {
    let port = |name: &str, port: u16, target: u16| json!({"name": name, "port": port, "targetPort": target, "protocol": "TCP"});
    let monitoring = monitoring(settings)?;
    let mut ports = vec![
        port("https-dns", 15012, 15012),
        port("https-webhook", 443, 15017),
        port("http-monitoring", monitoring, monitoring),
    ];
    if plaintext(settings) {
        ports.insert(0, port("grpc-xds", 15010, 15010));
    }
    Ok(ports.into())
}

fn deployment(settings: &Settings) -> anyhow::Result<Value> {
    // OpenShift gives every namespace user ids of its own.
    let security = match settings.values.text("global.platform").as_str() {
        "openshift" => json!({"runAsNonRoot": true}),
        _ => json!({"runAsNonRoot": true, "runAsUser": 1337, "runAsGroup": 1337, "fsGroup": 1337}),
    };
    // Istio's Service of the default revision selects `istio: pilot`: pods of others must not be behind it.
    let mut labels = json!({"app": "istiod", "istio": if settings.revision.is_empty() { "pilot" } else { "istiod" },
                            "istio.io/rev": settings.revision_label(),
                            "sidecar.istio.io/inject": "false", "app.kubernetes.io/name": "istiod"});
    for (name, value) in settings.values.get("pilot.podLabels").as_object().into_iter().flatten() {
        labels[name] = value.clone();
    }
    let mut spec = json!({
        "strategy": {"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": "25%"}},
        "selector": {"matchLabels": selector(settings)},
        "template": {
            "metadata": {
                "labels": labels,
                "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": monitoring(settings)?.to_string(),
                                "prometheus.io/path": "/metrics"},
            },
            "spec": {
                "serviceAccountName": settings.named("istiod"),
                "securityContext": security,
                "containers": [container(settings)?],
            },
        },
    });
    spec["template"]["spec"]["securityContext"]["seccompProfile"] = json!({"type": "RuntimeDefault"});
    if let Some(replicas) = scaling(settings).replicas() {
        spec["replicas"] = replicas.into();
    }
    component(settings).deployment(&mut spec);
    Ok(spec)
}

fn container(settings: &Settings) -> anyhow::Result<Value> {
    let port = |name: &str, number: u16| json!({"name": name, "containerPort": number, "protocol": "TCP"});
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let cluster = settings.values.text("global.multiCluster.clusterName");
    let cluster = if cluster.is_empty() { "Kubernetes".to_string() } else { cluster };
    let monitoring = monitoring(settings)?;
    let mut env = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        json!({"name": "REVISION", "value": settings.revision_label()}),
        json!({"name": "CLUSTER_ID", "value": cluster}),
    ];
    let level = log_level(&settings.values.text("global.logging.level"))?;
    if level != "info" {
        env.push(json!({"name": "WEFT_LOG", "value": level}));
    }
    // What the injector mounts is what weftd writes.
    let lists = settings.values.text("pilot.crlConfigMapName");
    if !lists.is_empty() {
        env.push(json!({"name": "PILOT_CRL_CONFIGMAP", "value": lists}));
    }
    Ok(json!({
        "name": "discovery", "image": settings.pilot_image(), "args": arguments(settings)?,
        "env": env,
        "ports": [port("http-debug", 8080), port("tls-xds", 15012), port("https-webhooks", 15017), port("http-monitoring", monitoring)],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "initialDelaySeconds": 1, "periodSeconds": 3, "timeoutSeconds": 5},
        // Alive is who accepts connections; who waits for the API server is alive and not ready.
        "livenessProbe": {"tcpSocket": {"port": monitoring}, "initialDelaySeconds": 10, "periodSeconds": 10, "failureThreshold": 6},
        "resources": {"requests": {"cpu": "500m", "memory": "2048Mi"}},
        "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true,
                            "capabilities": {"drop": ["ALL"]}},
    }))
}

/// The command line of weftd.
fn arguments(settings: &Settings) -> anyhow::Result<Vec<String>> {
    let values = &settings.values;
    let age = values.get("pilot.keepaliveMaxServerConnectionAge").as_str().unwrap_or("30m");
    weft_core::duration::parse(age)
        .map_err(|e| anyhow::anyhow!("values.pilot.keepaliveMaxServerConnectionAge: {e}"))?;
    let mut arguments = vec!["--domain".to_string(), values.text("global.proxy.clusterDomain")];
    arguments.extend(["--keepaliveMaxServerConnectionAge", age, "--httpAddr", "0.0.0.0:8080"].map(String::from));
    let port = monitoring(settings)?;
    if port != 15014 {
        arguments.extend(["--monitoring-addr".to_string(), format!("0.0.0.0:{port}")]);
    }
    if plaintext(settings) {
        arguments.push("--plaintext-xds".into());
    }
    if values.is_true("global.logAsJson") {
        arguments.push("--log-json".into());
    }
    arguments.extend(values.get("pilot.extraContainerArgs").as_array().into_iter().flatten().map(text));
    Ok(arguments)
}

/// Istio's `scope:level,…` as a filter of weftd.
fn log_level(wanted: &str) -> anyhow::Result<String> {
    const SCOPES: [(&str, &str); 6] = [
        ("ads", "weft_xds_server"),
        ("ca", "weft_ca"),
        ("default", ""),
        ("all", ""),
        ("model", "weft_model"),
        ("validation", "weftd::webhook"),
    ];
    let (mut all, mut parts) = ("info", Vec::new());
    for part in wanted.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (scope, level) = part.split_once(':').unwrap_or(("default", part));
        let level = match level {
            "none" => "off",
            "fatal" | "error" => "error",
            "warn" | "info" | "debug" => level,
            _ => bail!("values.global.logging.level: {level:?} is no level; there are none, error, warn, info, debug"),
        };
        match SCOPES.iter().find(|(name, _)| *name == scope) {
            Some((_, "")) => all = level,
            Some((_, module)) => parts.push(format!("{module}={level}")),
            None => {
                let known: Vec<&str> = SCOPES.iter().map(|(name, _)| *name).collect();
                bail!("values.global.logging.level: {scope:?} is no scope; there are {}", known.join(", "));
            }
        }
    }
    parts.insert(0, all.to_string());
    Ok(parts.join(","))
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

#[cfg(test)]
mod tests {
    use super::log_level;

    #[test]
    fn levels_by_scope() {
        for (given, wanted) in [
            ("", "info"),
            ("default:info", "info"),
            ("debug", "debug"),
            ("default:warn,ads:debug", "warn,weft_xds_server=debug"),
            ("all:none", "off"),
        ] {
            assert_eq!(log_level(given).unwrap(), wanted, "{given}");
        }
        assert!(log_level("loud").unwrap_err().to_string().contains("there are none, error"));
        assert!(log_level("mixer:debug").unwrap_err().to_string().contains("there are ads, ca"));
    }
}
