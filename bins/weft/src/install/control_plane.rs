//! The control plane itself: configuration, Deployment, Service, disruption budget, autoscaler.

use super::scaling::Scaling;
use super::{Settings, metadata};
use serde_json::{Map, Value, json};

/// Its objects.
pub(super) fn objects(settings: &Settings) -> Vec<Value> {
    let name = settings.named("istiod");
    let mut all = vec![
        mesh_config(settings),
        injector_config(settings),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata(settings, &name, true), "spec": {
            "ports": service_ports(settings), "selector": selector(settings),
        }}),
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata(settings, &name, true),
               "spec": {"minAvailable": 1, "selector": {"matchLabels": selector(settings)}}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(settings, &name, true),
               "spec": deployment(settings)}),
    ];
    all.extend(scaling(settings).object(metadata(settings, &name, true)));
    all
}

fn scaling(settings: &Settings) -> Scaling<'_> {
    Scaling { k8s: &settings.pilot_k8s, values: settings.values.get("pilot"), by_default: settings.autoscale }
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
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(settings, &settings.named("istio"), true),
           "data": {"mesh": yaml(&settings.mesh), "meshNetworks": "networks: {}\n"}})
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
    let values: Map<String, Value> = carried.iter().map(|name| ((*name).to_string(), tree[*name].clone())).collect();
    let values = serde_json::to_string_pretty(&values).unwrap_or_default();
    json!({"apiVersion": "v1", "kind": "ConfigMap",
           "metadata": metadata(settings, &settings.named("istio-sidecar-injector"), true),
           "data": {"config": yaml(&config), "values": values}})
}

fn service_ports(settings: &Settings) -> Value {
    let port = |name: &str, port: u16, target: u16| json!({"name": name, "port": port, "targetPort": target, "protocol": "TCP"});
    let mut ports =
        vec![port("https-dns", 15012, 15012), port("https-webhook", 443, 15017), port("http-monitoring", 15014, 15014)];
    if plaintext(settings) {
        ports.insert(0, port("grpc-xds", 15010, 15010));
    }
    ports.into()
}

fn deployment(settings: &Settings) -> Value {
    let k8s = &settings.pilot_k8s;
    let mut spec = json!({
        "strategy": {"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": "25%"}},
        "selector": {"matchLabels": selector(settings)},
        "template": {
            "metadata": {
                // Istio's Service of the default revision selects `istio: pilot`: pods of others must not be behind it.
                "labels": {"app": "istiod", "istio": if settings.revision.is_empty() { "pilot" } else { "istiod" },
                           "istio.io/rev": settings.revision_label(),
                           "sidecar.istio.io/inject": "false", "app.kubernetes.io/name": "istiod"},
                "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "15014", "prometheus.io/path": "/metrics"},
            },
            "spec": {
                "serviceAccountName": settings.named("istiod"),
                "securityContext": {"runAsNonRoot": true, "runAsUser": 1337, "runAsGroup": 1337, "fsGroup": 1337,
                                    "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [container(settings)],
            },
        },
    });
    if let Some(replicas) = scaling(settings).replicas() {
        spec["replicas"] = replicas.into();
    }
    let pod = &mut spec["template"]["spec"];
    for (from, to) in [
        ("nodeSelector", "nodeSelector"),
        ("affinity", "affinity"),
        ("tolerations", "tolerations"),
        ("priorityClassName", "priorityClassName"),
    ] {
        if !k8s[from].is_null() {
            pod[to] = k8s[from].clone();
        }
    }
    spec
}

fn container(settings: &Settings) -> Value {
    let port = |name: &str, number: u16| json!({"name": name, "containerPort": number, "protocol": "TCP"});
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mut args = vec![json!("--domain"), json!(settings.values.text("global.proxy.clusterDomain"))];
    if plaintext(settings) {
        args.push(json!("--plaintext-xds"));
    }
    if settings.values.is_true("global.logAsJson") {
        args.push(json!("--log-json"));
    }
    let cluster = settings.values.text("global.multiCluster.clusterName");
    let cluster = if cluster.is_empty() { "Kubernetes".to_string() } else { cluster };
    let mut env = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        json!({"name": "REVISION", "value": settings.revision_label()}),
        json!({"name": "CLUSTER_ID", "value": cluster}),
    ];
    let more = settings.values.get("pilot.env").as_object().cloned().unwrap_or_default();
    env.extend(more.iter().map(|(name, value)| json!({"name": name, "value": text(value)})));
    env.extend(settings.pilot_k8s["env"].as_array().into_iter().flatten().cloned());
    let resources = match &settings.pilot_k8s["resources"] {
        Value::Null => json!({"requests": {"cpu": "500m", "memory": "512Mi"}}),
        own => own.clone(),
    };
    let mut container = json!({
        "name": "discovery", "image": settings.image("weftd"), "args": args, "env": env,
        "ports": [port("tls-xds", 15012), port("https-webhooks", 15017), port("http-monitoring", 15014)],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 15014}, "initialDelaySeconds": 1, "periodSeconds": 3, "timeoutSeconds": 5},
        // Alive is who accepts connections; who waits for the API server is alive and not ready.
        "livenessProbe": {"tcpSocket": {"port": 15014}, "initialDelaySeconds": 10, "periodSeconds": 10, "failureThreshold": 6},
        "resources": resources,
        "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true,
                            "capabilities": {"drop": ["ALL"]}},
    });
    let policy = settings.values.text("global.imagePullPolicy");
    if !policy.is_empty() {
        container["imagePullPolicy"] = policy.into();
    }
    container
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}
