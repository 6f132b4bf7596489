//! What a cluster would add to manifests before a proxy could be configured from them: a pod for each workload, with a proxy
//! where the injector would give it one, addresses for services, their endpoints, and pods for gateways that nobody runs.
//! So a request can be explained, and tested, before anything is deployed.

use crate::analyze::put;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weft_core::well_known::ROOT_NAMESPACE;
use weft_inject::Config;
use weft_inject::decide::{Decision, chosen, decide};
use weft_k8s_api::Object;
use weft_k8s_api::yaml::Document;
use weft_model::Inputs;

/// Kinds that make pods from a template.
const WITH_TEMPLATE: [&str; 5] = ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"];
/// First two numbers of the addresses of pods and of services: a range for tests of networks (RFC 2544).
const PODS: &str = "198.18";
const SERVICES: &str = "198.19";
/// Name of the ingress gateway that the profiles make.
const INGRESS: &str = "istio-ingressgateway";

/// A pod that stands in.
struct Pod {
    namespace: String,
    name: String,
    address: String,
    labels: BTreeMap<String, String>,
    /// Name → number of its containers' ports.
    ports: BTreeMap<String, u64>,
}

/// Adds to `inputs`, which hold the objects of `documents`, what a cluster would make of them. A namespace that no document
/// describes gives its pods a proxy.
pub fn complete(inputs: &mut Inputs, documents: &[Document]) {
    let all: Vec<&Object> = documents.iter().map(|document| &document.object).collect();
    namespaces(inputs, &all);
    let mut addresses = Addresses::default();
    let mut pods = Vec::new();
    for object in &all {
        match object.kind.as_str() {
            kind if WITH_TEMPLATE.contains(&kind) => {
                pods.extend(pod(inputs, object, &object.spec()["template"], addresses.next(PODS)));
            }
            "Pod" => pods.extend(pod(inputs, object, &itself(object), addresses.next(PODS))),
            _ => {}
        }
    }
    gateways(inputs, &all, &mut pods, &mut addresses);
    for service in inputs.of("", "Service").to_vec() {
        endpoints(inputs, &service, &pods, &mut addresses);
    }
}

/// Numbers for addresses.
#[derive(Default)]
struct Addresses(u32);

impl Addresses {
    fn next(&mut self, network: &str) -> String {
        self.0 += 1;
        format!("{network}.{}.{}", (self.0 >> 8) & 0xff, self.0 & 0xff)
    }
}

fn object(value: Value) -> Option<Object> {
    serde_json::from_value(value).ok()
}

fn namespaces(inputs: &mut Inputs, all: &[&Object]) {
    let known: BTreeSet<String> = inputs.of("", "Namespace").iter().map(|n| n.name().to_string()).collect();
    let mut used: BTreeSet<String> = all.iter().map(|object| object.namespace().to_string()).collect();
    used.extend([ROOT_NAMESPACE.to_string(), "default".to_string()]);
    for name in used.iter().filter(|name| !name.is_empty() && !known.contains(*name)) {
        let labels = if name == ROOT_NAMESPACE { json!({}) } else { json!({"istio-injection": "enabled"}) };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        object(namespace).into_iter().for_each(|namespace| put(inputs, &namespace));
    }
}

/// A pod of the files as if it were its own template.
fn itself(object: &Object) -> Value {
    json!({
        "metadata": {"labels": object.metadata.labels, "annotations": object.metadata.annotations},
        "spec": object.spec(),
    })
}

/// The pod of a workload, put among the inputs.
fn pod(inputs: &mut Inputs, owner: &Object, template: &Value, address: String) -> Option<Pod> {
    const HASH: &str = "00000000";
    let namespace = owner.namespace().to_string();
    let mut spec = template["spec"].clone();
    let listed = spec["containers"].as_array()?.clone();
    let ports = listed.iter().flat_map(|c| c["ports"].as_array().cloned().unwrap_or_default());
    let ports = ports.filter_map(|p| Some((p["name"].as_str()?.to_string(), p["containerPort"].as_u64()?))).collect();
    let mut metadata = template["metadata"].clone();
    if !metadata.is_object() {
        metadata = json!({});
    }
    let (name, owners) = match owner.kind.as_str() {
        "Pod" => (owner.name().to_string(), json!([])),
        "Deployment" => {
            (format!("{}-{HASH}", owner.name()), reference("ReplicaSet", &format!("{}-{HASH}", owner.name())))
        }
        kind => (format!("{}-0", owner.name()), reference(kind, owner.name())),
    };
    metadata["name"] = name.as_str().into();
    metadata["namespace"] = namespace.as_str().into();
    metadata["ownerReferences"] = owners;
    let labels: BTreeMap<String, String> = serde_json::from_value(metadata["labels"].clone()).unwrap_or_default();
    let whole = json!({"metadata": metadata, "spec": spec});
    if injected(inputs, &namespace, &whole) && !listed.iter().any(|c| c["name"] == "istio-proxy") {
        spec["containers"] = [listed, vec![json!({"name": "istio-proxy", "image": "auto"})]].concat().into();
    }
    let pod = object(
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": running(&address)}),
    )?;
    put(inputs, &pod);
    Some(Pod { namespace, name, address, labels, ports })
}

fn reference(kind: &str, name: &str) -> Value {
    json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": name, "controller": true}])
}

fn running(address: &str) -> Value {
    let ready = json!([{"type": "Ready", "status": "True"}]);
    json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": ready})
}

fn injected(inputs: &Inputs, namespace: &str, pod: &Value) -> bool {
    let found = inputs.of("", "Namespace").iter().find(|object| object.name() == namespace);
    let labels = found.and_then(|object| object.metadata.labels.clone()).unwrap_or_default();
    let comes = chosen(&labels.into_iter().collect(), pod, false).is_some();
    comes && decide(&Config::default(), pod, namespace) == Decision::Inject
}

/// A pod and a service for each selector of Gateways that selects nothing: in the root namespace, as the profiles have it.
fn gateways(inputs: &mut Inputs, all: &[&Object], pods: &mut Vec<Pod>, addresses: &mut Addresses) {
    let mut wanted: BTreeMap<BTreeMap<String, String>, BTreeSet<u64>> = BTreeMap::new();
    for gateway in all.iter().filter(|o| o.kind == "Gateway" && o.group() == "networking.istio.io") {
        let selector = serde_json::from_value(gateway.spec()["selector"].clone()).unwrap_or_default();
        let servers = gateway.spec()["servers"].as_array().cloned().unwrap_or_default();
        wanted.entry(selector).or_default().extend(servers.iter().filter_map(|s| s["port"]["number"].as_u64()));
    }
    let selects =
        |selector: &BTreeMap<String, String>, pod: &Pod| selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v));
    wanted.retain(|selector, _| !selector.is_empty() && !pods.iter().any(|pod| selects(selector, pod)));
    for (labels, ports) in wanted {
        let named = labels
            .get("istio")
            .map(|name| if name == "ingressgateway" { INGRESS.to_string() } else { format!("istio-{name}") });
        let name = named.unwrap_or_else(|| labels.values().next().cloned().unwrap_or_default());
        let address = addresses.next(PODS);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": ROOT_NAMESPACE, "labels": labels},
            "spec": {"serviceAccountName": format!("{name}-service-account"), "containers": [{"name": "istio-proxy", "image": "auto"}]},
            "status": running(&address),
        });
        let ports: Vec<Value> =
            ports.iter().map(|p| json!({"name": format!("port-{p}"), "port": p, "targetPort": p})).collect();
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": ROOT_NAMESPACE},
            "spec": {"selector": labels, "ports": ports},
        });
        [pod, service].into_iter().filter_map(object).for_each(|object| put(inputs, &object));
        pods.push(Pod { namespace: ROOT_NAMESPACE.into(), name, address, labels, ports: BTreeMap::new() });
    }
}

/// Gives a service an address, and an endpoint slice for each of its pods.
fn endpoints(inputs: &mut Inputs, service: &Arc<Object>, pods: &[Pod], addresses: &mut Addresses) {
    let selector: BTreeMap<String, String> =
        serde_json::from_value(service.spec()["selector"].clone()).unwrap_or_default();
    let mut whole = serde_json::to_value(&**service).unwrap_or_default();
    if whole["spec"]["clusterIP"].as_str().unwrap_or_default().is_empty() && whole["spec"]["type"] != "ExternalName" {
        whole["spec"]["clusterIP"] = addresses.next(SERVICES).into();
        object(whole).into_iter().for_each(|service| put(inputs, &service));
    }
    if selector.is_empty() {
        return;
    }
    let of_service =
        |pod: &&Pod| pod.namespace == service.namespace() && selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v));
    for pod in pods.iter().filter(of_service) {
        let listed = service.spec()["ports"].as_array().cloned().unwrap_or_default();
        let ports: Vec<Value> = listed.iter().filter_map(|port| slice_port(port, pod)).collect();
        let name = format!("{}-{}", service.name(), pod.name);
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": ports,
            "metadata": {"name": name, "namespace": pod.namespace, "labels": {"kubernetes.io/service-name": service.name()}},
            "endpoints": [{
                "addresses": [pod.address], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "name": pod.name, "namespace": pod.namespace},
            }],
        });
        object(slice).into_iter().for_each(|slice| put(inputs, &slice));
    }
}

fn slice_port(port: &Value, pod: &Pod) -> Option<Value> {
    let number = match &port["targetPort"] {
        Value::Null => port["port"].as_u64()?,
        Value::String(name) => pod.ports.get(name).copied()?,
        number => number.as_u64()?,
    };
    let protocol = port["protocol"].as_str().unwrap_or("TCP");
    Some(json!({"name": port["name"].as_str().unwrap_or_default(), "port": number, "protocol": protocol}))
}
