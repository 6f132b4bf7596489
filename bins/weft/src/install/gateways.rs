//! A gateway: a Deployment whose only container is filled in by the injector (template `gateway`), its account and Service.

use super::k8s::Component;
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
    let mut own = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(&account)});
    settings.pull_secrets(&mut own);
    let mut all = vec![
        own,
        // The control plane asks whether the gateway's account may read a Secret before it hands it out.
        json!({"apiVersion": api, "kind": "Role", "metadata": metadata(&secrets),
               "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch"]}]}),
        json!({"apiVersion": api, "kind": "RoleBinding", "metadata": metadata(&secrets),
               "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": secrets},
               "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": gateway.namespace}]}),
        service(settings, gateway, metadata(name)),
    ];
    if let Some(mut budget) = component(settings, gateway).budget() {
        budget["selector"] = json!({"matchLabels": gateway.labels});
        all.push(json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata(name), "spec": budget}));
    }
    all.push(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(name),
                    "spec": deployment(settings, gateway, &account)}));
    all.extend(scaling(settings, gateway).object(metadata(name)));
    all
}

/// The values are of all gateways of a kind.
fn values<'a>(settings: &'a Settings, gateway: &Gateway) -> &'a Value {
    settings.values.get(if gateway.ingress { "gateways.istio-ingressgateway" } else { "gateways.istio-egressgateway" })
}

fn component<'a>(settings: &'a Settings, gateway: &'a Gateway) -> Component<'a> {
    Component { k8s: &gateway.k8s, values: values(settings, gateway), all: &settings.values }
}

fn scaling<'a>(settings: &'a Settings, gateway: &'a Gateway) -> Scaling<'a> {
    Scaling { k8s: &gateway.k8s, values: values(settings, gateway) }
}

fn service(settings: &Settings, gateway: &Gateway, metadata: Value) -> Value {
    let values = values(settings, gateway);
    let usual = if gateway.ingress { "LoadBalancer" } else { "ClusterIP" };
    let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {
        "type": values["type"].as_str().unwrap_or(usual), "selector": gateway.labels, "ports": ports(gateway, values),
    }});
    for name in ["externalTrafficPolicy", "loadBalancerIP", "loadBalancerSourceRanges"] {
        if values[name].as_str().is_some_and(|text| !text.is_empty()) || values[name].is_array() {
            service["spec"][name] = values[name].clone();
        }
    }
    component(settings, gateway).service(&mut service);
    service
}

fn ports(gateway: &Gateway, values: &Value) -> Value {
    if values["ports"].as_array().is_some_and(|ports| !ports.is_empty()) {
        return values["ports"].clone();
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
    let values = values(settings, gateway);
    let mut labels = gateway.labels.clone();
    labels.insert("sidecar.istio.io/inject".into(), "true".into());
    let version = if settings.revision.is_empty() { "latest" } else { &settings.revision };
    labels.insert("service.istio.io/canonical-name".into(), gateway.name.as_str().into());
    labels.insert("service.istio.io/canonical-revision".into(), version.into());
    if !settings.revision.is_empty() {
        labels.insert("istio.io/rev".into(), settings.revision.as_str().into());
    }
    let template = values["injectionTemplate"].as_str().filter(|name| !name.is_empty()).unwrap_or("gateway");
    let mut annotations = json!({"inject.istio.io/templates": template});
    if let Some(image) = &gateway.image {
        annotations["sidecar.istio.io/proxyImage"] = image.as_str().into();
    }
    if let Some(level) = values["debug"].as_str().filter(|level| !level.is_empty()) {
        annotations["sidecar.istio.io/logLevel"] = level.into();
    }
    let mut spec = json!({
        "selector": {"matchLabels": gateway.labels},
        "strategy": {"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": "25%"}},
        "template": {
            "metadata": {"labels": labels, "annotations": annotations},
            "spec": {
                "serviceAccountName": account,
                "containers": [{
                    "name": "istio-proxy", "image": "auto",
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "2000m", "memory": "1024Mi"}},
                    "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                                        "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]}},
                }],
            },
        },
    });
    if let Some(replicas) = scaling(settings, gateway).replicas() {
        spec["replicas"] = replicas.into();
    }
    component(settings, gateway).deployment(&mut spec);
    spec
}
