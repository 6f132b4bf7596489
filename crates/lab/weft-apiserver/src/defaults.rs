//! Values that Kubernetes fills in when an object leaves them out, as far as clients and controllers read them. Nothing that
//! needs state: addresses are the lab's hook's business.
//!
//! Source: the defaulting functions of Kubernetes' core, apps and batch API groups.

use base64::Engine;
use serde_json::{Map, Value, json};
use weft_k8s_api::{KindInfo, Object};

/// Fills an object that is created or changed.
pub fn fill(kind: &KindInfo, object: &mut Object) {
    match (kind.group, kind.kind) {
        ("", "Namespace") => namespace(object),
        ("", "Pod") => {
            if let Some(spec) = spec(object) {
                pod_spec(spec, "Always");
            }
        }
        ("", "Service") => {
            if let Some(spec) = spec(object) {
                service(spec);
            }
        }
        ("", "Secret") => secret(object),
        ("apps", _) => {
            if let Some(spec) = spec(object) {
                workload(kind.kind, spec);
            }
        }
        ("batch", "Job") => {
            let name = object.name().to_string();
            if let Some(spec) = spec(object) {
                job(spec, &name);
            }
        }
        ("discovery.k8s.io", "EndpointSlice") => {
            for port in object.body.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
                set(port.as_object_mut(), "protocol", "TCP");
            }
        }
        _ => {}
    }
}

/// The status of a new object; whatever the user sent as status is dropped for kinds that have one.
pub(crate) fn first_status(kind: &KindInfo, object: &mut Object) {
    if !has_status(kind) {
        return;
    }
    let status = match kind.kind {
        "Namespace" => json!({"phase": "Active"}),
        "Pod" => json!({"phase": "Pending"}),
        "Service" => json!({"loadBalancer": {}}),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" | "CronJob" => json!({}),
        _ => {
            object.body.shift_remove("status");
            return;
        }
    };
    object.body.insert("status".into(), status);
}

/// Whether the kind has a status that is written apart from the rest.
pub fn has_status(kind: &KindInfo) -> bool {
    !matches!(
        kind.kind,
        "ConfigMap" | "Secret" | "ServiceAccount" | "Endpoints" | "EndpointSlice" | "Event" | "Lease" | "IngressClass"
    )
}

type Fields = Map<String, Value>;

fn spec(object: &mut Object) -> Option<&mut Fields> {
    object.body.get_mut("spec").and_then(Value::as_object_mut)
}

fn set(fields: Option<&mut Fields>, name: &str, value: impl Into<Value>) {
    if let Some(fields) = fields {
        let missing = fields.get(name).is_none_or(Value::is_null);
        if missing {
            fields.insert(name.into(), value.into());
        }
    }
}

fn namespace(object: &mut Object) {
    let name = object.name().to_string();
    let labels = object.metadata.labels.get_or_insert_default();
    labels.insert("kubernetes.io/metadata.name".into(), name);
    let new = object.metadata.uid.is_none();
    if new {
        object.body.insert("spec".into(), json!({"finalizers": ["kubernetes"]}));
    }
}

fn secret(object: &mut Object) {
    let body = &mut object.body;
    if let Some(Value::Object(texts)) = body.shift_remove("stringData") {
        let data = body.entry("data").or_insert_with(|| json!({}));
        if let Some(data) = data.as_object_mut() {
            for (name, text) in texts {
                let bytes = text.as_str().unwrap_or_default().as_bytes();
                data.insert(name, base64::engine::general_purpose::STANDARD.encode(bytes).into());
            }
        }
    }
    set(Some(body), "type", "Opaque");
}

fn service(spec: &mut Fields) {
    set(Some(spec), "type", "ClusterIP");
    set(Some(spec), "sessionAffinity", "None");
    let external = spec.get("type").and_then(Value::as_str) == Some("ExternalName");
    if !external {
        set(Some(spec), "internalTrafficPolicy", "Cluster");
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let number = port.get("port").cloned().unwrap_or(Value::Null);
        set(port.as_object_mut(), "protocol", "TCP");
        set(port.as_object_mut(), "targetPort", number);
    }
}

fn pod_spec(spec: &mut Fields, restart: &str) {
    set(Some(spec), "restartPolicy", restart);
    set(Some(spec), "dnsPolicy", "ClusterFirst");
    set(Some(spec), "terminationGracePeriodSeconds", 30);
    set(Some(spec), "securityContext", json!({}));
    set(Some(spec), "schedulerName", "default-scheduler");
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                container_defaults(container);
            }
        }
    }
}

fn container_defaults(container: &mut Fields) {
    let latest = container.get("image").and_then(Value::as_str).is_some_and(|image| {
        let tag = image.rsplit('/').next().unwrap_or_default();
        tag.ends_with(":latest") || !tag.contains([':', '@'])
    });
    set(Some(container), "imagePullPolicy", if latest { "Always" } else { "IfNotPresent" });
    set(Some(container), "resources", json!({}));
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        set(port.as_object_mut(), "protocol", "TCP");
    }
    for probe in ["readinessProbe", "livenessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(probe).and_then(Value::as_object_mut) else { continue };
        for (name, value) in
            [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
        {
            set(Some(probe), name, value);
        }
        if let Some(get) = probe.get_mut("httpGet").and_then(Value::as_object_mut) {
            set(Some(get), "path", "/");
            set(Some(get), "scheme", "HTTP");
        }
    }
}

fn template(spec: &mut Fields, restart: &str) {
    if let Some(spec) = spec.get_mut("template").and_then(|t| t.get_mut("spec")).and_then(Value::as_object_mut) {
        pod_spec(spec, restart);
    }
}

fn workload(kind: &str, spec: &mut Fields) {
    template(spec, "Always");
    if kind != "DaemonSet" {
        set(Some(spec), "replicas", 1);
    }
    if kind != "ReplicaSet" {
        set(Some(spec), "revisionHistoryLimit", 10);
    }
    match kind {
        "Deployment" => {
            set(Some(spec), "progressDeadlineSeconds", 600);
            set(Some(spec), "strategy", json!({}));
            if let Some(strategy) = spec.get_mut("strategy").and_then(Value::as_object_mut) {
                set(Some(strategy), "type", "RollingUpdate");
                if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
                    set(Some(strategy), "rollingUpdate", json!({}));

                    for name in ["maxSurge", "maxUnavailable"] {
                        set(strategy.get_mut("rollingUpdate").and_then(Value::as_object_mut), name, "25%");
                    }
                }
            }
        }
        "StatefulSet" => {
            set(Some(spec), "podManagementPolicy", "OrderedReady");
            set(Some(spec), "updateStrategy", json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}));
        }
        "DaemonSet" => {
            let rolling = json!({"maxSurge": 0, "maxUnavailable": 1});
            set(Some(spec), "updateStrategy", json!({"type": "RollingUpdate", "rollingUpdate": rolling}));
        }
        _ => {}
    }
}

fn job(spec: &mut Fields, name: &str) {
    own_pods(spec, name);
    template(spec, "Never");
    set(Some(spec), "parallelism", 1);
    if spec.get("parallelism") == Some(&json!(1)) {
        set(Some(spec), "completions", 1);
    }
    set(Some(spec), "backoffLimit", 6);
}

/// A job's pods are told by its name, unless it chooses them itself.
fn own_pods(spec: &mut Fields, name: &str) {
    if name.is_empty() || spec.get("manualSelector").and_then(Value::as_bool) == Some(true) {
        return;
    }
    set(Some(spec), "selector", json!({"matchLabels": {"batch.kubernetes.io/job-name": name}}));
    let template = spec.get_mut("template").and_then(Value::as_object_mut);
    let meta = template.map(|t| t.entry("metadata").or_insert_with(|| json!({})));
    let labels = meta.and_then(Value::as_object_mut).map(|m| m.entry("labels").or_insert_with(|| json!({})));
    if let Some(labels) = labels.and_then(Value::as_object_mut) {
        for label in ["batch.kubernetes.io/job-name", "job-name"] {
            labels.entry(label).or_insert_with(|| name.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_k8s_api::kinds::by_any_name;

    fn filled(name: &str, value: Value) -> Object {
        let kind = by_any_name(name).unwrap();
        let mut object: Object = serde_json::from_value(value).unwrap();
        fill(kind, &mut object);
        let once = object.clone();
        fill(kind, &mut object);
        assert_eq!(object, once, "filling twice changes nothing");
        object
    }

    #[test]
    fn core_kinds() {
        let secret = filled(
            "secret",
            json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"},
                "data": {"x": "eA=="}, "stringData": {"y": "y"},
            }),
        );
        assert_eq!(secret.body.get("data"), Some(&json!({"x": "eA==", "y": "eQ=="})));
        assert_eq!(secret.body.get("type"), Some(&json!("Opaque")));
        let service = filled(
            "svc",
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"},
                "spec": {"ports": [{"port": 80}, {"port": 81, "targetPort": "web", "protocol": "UDP"}]},
            }),
        );
        assert_eq!(
            service.spec()["ports"],
            json!([
                {"port": 80, "protocol": "TCP", "targetPort": 80}, {"port": 81, "targetPort": "web", "protocol": "UDP"},
            ])
        );
        let deployment = filled(
            "deploy",
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
                "spec": {"replicas": 0, "template": {"spec": {"containers": [{"name": "c", "image": "r:80/i:1"}]}}},
            }),
        );
        assert_eq!(deployment.spec()["replicas"], json!(0));
        assert_eq!(deployment.spec()["strategy"]["rollingUpdate"]["maxSurge"], json!("25%"));
        let container = &deployment.spec()["template"]["spec"]["containers"][0];
        assert_eq!(container["imagePullPolicy"], json!("IfNotPresent"));
        let namespace = filled("ns", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}));
        assert_eq!(namespace.label("kubernetes.io/metadata.name"), Some("a"));
        assert_eq!(namespace.spec()["finalizers"], json!(["kubernetes"]));
    }
}
