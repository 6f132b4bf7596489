//! A gateway: a Deployment whose only container is filled in by the injector (template `gateway`), its account and Service.

use super::scaling::Scaling;
use super::settings::{Gateway, Settings};
use serde_json::{Value, json};

/// Its objects.
pub(super) fn objects(settings: &Settings, gateway: &Gateway) -> Vec<Value> {
    let name = gateway.name.as_str();
    let account = format!("{name}-service-account");
    let metadata = |name: &str| json!({"name": name, "namespace": gateway.namespace, "labels": gateway.labels});
    let api = "rbac.authorization.k8s.io/v1";
    let secrets = format!("{name}-sds");
    let mut all = vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(&account)}),
        // The control plane asks whether the gateway's account may read a Secret before it hands it out.
        json!({"apiVersion": api, "kind": "Role", "metadata": metadata(&secrets),
               "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch"]}]}),
        json!({"apiVersion": api, "kind": "RoleBinding", "metadata": metadata(&secrets),
               "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": secrets},
               "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": gateway.namespace}]}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": service_metadata(gateway),
               "spec": {"type": service_type(gateway), "selector": gateway.labels, "ports": ports(gateway)}}),
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata(name),
               "spec": {"minAvailable": 1, "selector": {"matchLabels": gateway.labels}}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(name),
               "spec": deployment(settings, gateway, &account)}),
    ];
    all.extend(scaling(settings, gateway).object(metadata(name)));
    all
}

fn scaling<'a>(settings: &'a Settings, gateway: &'a Gateway) -> Scaling<'a> {
    // The values are of all gateways of a kind.
    let path = if gateway.ingress { "gateways.istio-ingressgateway" } else { "gateways.istio-egressgateway" };
    Scaling { k8s: &gateway.k8s, values: settings.values.get(path), by_default: settings.autoscale }
}

fn service_metadata(gateway: &Gateway) -> Value {
    let mut metadata = json!({"name": gateway.name, "namespace": gateway.namespace, "labels": gateway.labels});
    if let Some(annotations) = gateway.k8s["serviceAnnotations"].as_object() {
        metadata["annotations"] = annotations.clone().into();
    }
    metadata
}

fn service_type(gateway: &Gateway) -> Value {
    let usual = if gateway.ingress { "LoadBalancer" } else { "ClusterIP" };
    gateway.k8s["service"]["type"].as_str().unwrap_or(usual).into()
}

fn ports(gateway: &Gateway) -> Value {
    if let Some(own) = gateway.k8s["service"]["ports"].as_array() {
        return own.clone().into();
    }
    let port = |name: &str, port: u16, target: u16| json!({"name": name, "port": port, "targetPort": target, "protocol": "TCP"});
    let mut ports = vec![port("http2", 80, 8080), port("https", 443, 8443)];
    if gateway.ingress {
        ports.insert(0, port("status-port", 15021, 15021));
        ports.extend([port("tcp", 31400, 31400), port("tls", 15443, 15443)]);
    }
    ports.into()
}

fn deployment(settings: &Settings, gateway: &Gateway, account: &str) -> Value {
    let mut labels = gateway.labels.clone();
    labels.insert("sidecar.istio.io/inject".into(), "true".into());
    if !settings.revision.is_empty() {
        labels.insert("istio.io/rev".into(), settings.revision.as_str().into());
    }
    let resources = match &gateway.k8s["resources"] {
        Value::Null => {
            json!({"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "2000m", "memory": "1024Mi"}})
        }
        own => own.clone(),
    };
    let mut spec = json!({
        "selector": {"matchLabels": gateway.labels},
        "strategy": {"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": "25%"}},
        "template": {
            "metadata": {"labels": labels, "annotations": {"inject.istio.io/templates": "gateway"}},
            "spec": {
                "serviceAccountName": account,
                "containers": [{
                    "name": "istio-proxy", "image": "auto", "resources": resources,
                    "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                                        "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]}},
                }],
            },
        },
    });
    if let Some(replicas) = scaling(settings, gateway).replicas() {
        spec["replicas"] = replicas.into();
    }
    spec
}
