//! A small world for tests: manifests in, a snapshot out. Deployments get pods with addresses, services get virtual
//! addresses and endpoint slices, as a cluster's controllers would give them.

#![allow(clippy::unwrap_used, dead_code)] // each test binary uses its part

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weft_k8s_api::{Object, de, istio};
use weft_model::{Inputs, MeshSnapshot, Settings};
use weft_proto::envoy::config::core::v3::Node;
use weft_xds_gen::ProxyView;

/// Manifests, and what the controllers of a cluster make of them.
pub struct World {
    pub objects: Vec<Object>,
    pub mesh: Value,
    /// Hands the objects over in the opposite order.
    pub backwards: bool,
}

/// Root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..")
}

/// The documents of a YAML text.
pub fn documents(text: &str) -> Vec<Value> {
    let mut parts = vec![String::new()];
    for line in text.lines() {
        if line.trim_end() == "---" {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push_str(line);
            part.push('\n');
        }
    }
    let read = |part: &String| serde_saphyr::from_str::<Value>(part).unwrap_or_else(|e| panic!("{e}:\n{part}"));
    parts.iter().map(read).filter(|v| !v.is_null()).collect()
}

impl World {
    pub fn new() -> Self {
        Self { objects: Vec::new(), mesh: json!({}), backwards: false }
    }

    /// Head and world of a golden file: samples and the ingress gateway by name, then the file's own objects.
    pub fn of_case(text: &str) -> (Value, Self) {
        let mut documents = documents(text).into_iter();
        let head = documents.next().expect("a head");
        let mut world = Self::new();
        if head["mesh"].is_object() {
            world.mesh = head["mesh"].clone();
        }
        for file in head["samples"].as_array().into_iter().flatten() {
            world.add_sample(file.as_str().unwrap());
        }
        if head["ingress"] == true {
            world.add(INGRESS);
        }
        documents.for_each(|document| world.add_object(document));
        (head, world)
    }

    /// Adds the objects of a YAML text; those without namespace are of `default`.
    pub fn add(&mut self, text: &str) -> &mut Self {
        documents(text).into_iter().for_each(|document| self.add_object(document));
        self
    }

    /// Adds a file of the samples.
    pub fn add_sample(&mut self, name: &str) -> &mut Self {
        let path = repository().join("samples").join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        self.add(&text)
    }

    pub fn add_object(&mut self, mut document: Value) {
        let (group, kind) = (document["apiVersion"].as_str().unwrap_or_default(), document["kind"].as_str());
        let group = group.rsplit_once('/').map_or("", |(group, _)| group);
        let info = weft_k8s_api::kinds::by_kind(group, kind.unwrap_or_default());
        let namespaced = info.is_none_or(|info| info.namespaced);
        let metadata = document["metadata"].as_object_mut().unwrap();
        if namespaced {
            metadata.entry("namespace").or_insert(json!("default"));
        }
        let age = format!("2026-01-01T00:{:02}:{:02}Z", self.objects.len() / 60, self.objects.len() % 60);
        metadata.entry("creationTimestamp").or_insert(json!(age));
        self.objects.push(serde_json::from_value(document).unwrap());
    }

    /// What a control plane would see.
    pub fn inputs(&self) -> Inputs {
        let merged = istio::MeshConfig::overlay(&self.mesh);
        let mesh = de::read(&merged, "mesh", de::Dialect::ProtoJson, &mut Vec::new()).unwrap();
        let mut settings = Settings::default();
        if let Some(domain) = self.mesh["trustDomain"].as_str() {
            settings.trust_domain = domain.into();
        }
        let mut inputs = Inputs::new(Arc::new(mesh), Arc::new(settings));
        let mut objects = self.with_pods();
        if self.backwards {
            objects.reverse();
        }
        objects.into_iter().for_each(|object| inputs.push(Arc::new(object)));
        inputs
    }

    /// The objects, and those that controllers make of them.
    fn with_pods(&self) -> Vec<Object> {
        let mut objects = self.objects.clone();
        let pods = pods(&objects);
        let services: Vec<Object> = objects.iter().filter(|o| o.kind == "Service").cloned().collect();
        objects.extend(slices(&services, &pods));
        objects.extend(pods);
        give_addresses(&mut objects);
        objects
    }

    pub fn snapshot(&self) -> MeshSnapshot {
        weft_model::build(&self.inputs(), None)
    }
}

/// One pod for each replica, addresses in order.
fn pods(objects: &[Object]) -> Vec<Object> {
    let mut pods: Vec<Object> = Vec::new();
    for deployment in objects.iter().filter(|o| o.kind == "Deployment") {
        let template = &deployment.spec()["template"];
        for replica in 0..deployment.spec()["replicas"].as_u64().unwrap_or(1) {
            let ip = format!("10.244.0.{}", pods.len() + 1);
            let mut spec = template["spec"].clone();
            let annotations = template["metadata"]["annotations"].clone();
            if annotations["sidecar.istio.io/inject"] != "false" {
                let containers = spec["containers"].as_array_mut().unwrap();
                containers.push(json!({"name": "istio-proxy", "image": "auto"}));
            }
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": format!("{}-{replica}", deployment.name()),
                    "namespace": deployment.namespace(),
                    "labels": template["metadata"]["labels"],
                    "annotations": annotations,
                },
                "spec": spec,
                "status": {
                    "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            });
            pods.push(serde_json::from_value(strip_nulls(pod)).unwrap());
        }
    }
    pods
}

fn strip_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept: Map<String, Value> =
                map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, strip_nulls(v))).collect();
            Value::Object(kept)
        }
        other => other,
    }
}

fn slices(services: &[Object], pods: &[Object]) -> Vec<Object> {
    let of = |service: &Object| {
        let selector: BTreeMap<String, String> =
            serde_json::from_value(service.spec()["selector"].clone()).unwrap_or_default();
        let selected: Vec<&Object> = pods
            .iter()
            .filter(|p| !selector.is_empty() && p.namespace() == service.namespace())
            .filter(|p| selector.iter().all(|(k, v)| p.label(k) == Some(v)))
            .collect();
        let endpoints: Vec<Value> = selected
            .iter()
            .map(|pod| {
                json!({
                    "addresses": [pod.body["status"]["podIP"]],
                    "conditions": {"ready": true},
                    "targetRef": {"kind": "Pod", "name": pod.name(), "namespace": pod.namespace()},
                })
            })
            .collect();
        let ports: Vec<Value> = service.spec()["ports"].as_array().into_iter().flatten().map(slice_port).collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": service.name(), "namespace": service.namespace(),
                "labels": {"kubernetes.io/service-name": service.name()},
            },
            "addressType": "IPv4", "endpoints": endpoints, "ports": ports,
        });
        serde_json::from_value(slice).unwrap()
    };
    services.iter().filter(|s| s.spec()["selector"].is_object()).map(of).collect()
}

fn slice_port(port: &Value) -> Value {
    let target = if port["targetPort"].is_number() { &port["targetPort"] } else { &port["port"] };
    json!({"name": port["name"].as_str().unwrap_or_default(), "port": target, "protocol": "TCP"})
}

/// Virtual addresses, in order, for services that have none and are not headless.
fn give_addresses(objects: &mut [Object]) {
    let mut next = 1;
    for service in objects.iter_mut().filter(|o| o.kind == "Service") {
        let spec = service.body.get_mut("spec").unwrap();
        if spec["clusterIP"].is_null() && spec["type"] != "ExternalName" {
            spec["clusterIP"] = json!(format!("10.96.0.{next}"));
            next += 1;
        }
    }
}

/// The proxy of a pod. Gateways are pods whose label `istio` says so.
pub fn proxy(snapshot: &MeshSnapshot, pod: &str, weft: bool, more: &Value) -> ProxyView {
    let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
    let workload = snapshot.workloads_by_name.get(&format!("{namespace}/{name}"));
    let workload = workload.unwrap_or_else(|| panic!("no pod {namespace}/{name}"));
    let kind = if workload.labels.contains_key("istio") { "router" } else { "sidecar" };
    let mut metadata = json!({"NAMESPACE": namespace, "LABELS": *workload.labels, "CLUSTER_ID": "Kubernetes"});
    if weft {
        metadata["WEFT"] = json!("1");
    }
    for (key, value) in more.as_object().into_iter().flatten() {
        metadata[key] = value.clone();
    }
    let node = json!({
        "id": format!("{kind}~{}~{name}.{namespace}~{namespace}.svc.cluster.local", workload.addresses[0]),
        "cluster": format!("{}.{namespace}", workload.canonical_name),
        "metadata": metadata,
    });
    ProxyView::new(&weft_proto::json::from_json::<Node>(&node).unwrap()).unwrap()
}

/// Ingress gateway: service and deployment.
pub const INGRESS: &str = "
apiVersion: v1
kind: Service
metadata: {name: istio-ingressgateway, namespace: istio-system, labels: {istio: ingressgateway}}
spec:
  selector: {istio: ingressgateway}
  ports:
  - {name: http2, port: 80, targetPort: 8080}
  - {name: https, port: 443, targetPort: 8443}
  - {name: tcp, port: 31400, targetPort: 31400}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: istio-ingressgateway, namespace: istio-system}
spec:
  template:
    metadata: {labels: {istio: ingressgateway, app: istio-ingressgateway}}
    spec:
      serviceAccountName: istio-ingressgateway
      containers: [{name: istio-proxy, image: auto}]
";
