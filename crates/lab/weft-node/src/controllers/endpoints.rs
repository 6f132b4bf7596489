//! EndpointSlices and Endpoints of Services with a selector: which pods serve, and whether they are ready.

use super::objects::{
    addresses_of, has_condition, is_controlled_by, is_deleting, list, owned, phase, report, string_map, uid,
};
use super::scheduling::node_of;
use super::{Controller, PodMaker};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_core::well_known::label;
use weft_k8s_api::Object;
use weft_store::{DeleteOptions, MemoryStore};

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const IPV4: &str = "IPv4";
const MANAGER: &str = "endpointslice-controller.k8s.io";

/// The controller.
pub struct Endpoints;

impl Controller for Endpoints {
    fn reconcile(&mut self, store: &MemoryStore, _: &dyn PodMaker) {
        let pods = list(store, "", "Pod");
        let slices = list(store, "discovery.k8s.io", "EndpointSlice");
        for service in list(store, "", "Service") {
            let selector = string_map(&service.spec()["selector"]);
            if is_deleting(&service) || selector.is_empty() || service.spec()["type"] == "ExternalName" {
                continue;
            }
            let members: Vec<&Object> = pods
                .iter()
                .map(|pod| &**pod)
                .filter(|pod| pod.namespace() == service.namespace())
                .filter(|pod| selector.iter().all(|(name, value)| pod.label(name) == Some(value)))
                .filter(|pod| addresses_of(pod).next().is_some() && !matches!(phase(pod), "Succeeded" | "Failed"))
                .collect();
            let mut own: Vec<_> = slices.iter().filter(|slice| is_controlled_by(slice, &service)).cloned().collect();
            for family in families(&service) {
                let of_family = |slice: &Arc<Object>| slice.body.get("addressType").is_some_and(|kind| kind == family);
                let (these, others) = own.into_iter().partition(of_family);
                own = others;
                write_slices(store, &service, family, &by_ports(&service, &members), these);
            }
            for slice in own {
                let _ = store.delete(&slice.key(), &DeleteOptions::default());
            }
            write_endpoints(store, &service, &members);
        }
    }
}

/// Families of a service's addresses, the main one first.
fn families(service: &Object) -> Vec<&str> {
    let given = service.spec()["ipFamilies"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let given: Vec<&str> = given.collect();
    if given.is_empty() { vec![IPV4] } else { given }
}

/// A pod's address of a family.
fn address<'a>(pod: &'a Object, family: &str) -> Option<&'a str> {
    addresses_of(pod).find(|address| address.contains(':') == (family != IPV4))
}

fn is_ready(service: &Object, pod: &Object) -> bool {
    let early = service.spec()["publishNotReadyAddresses"].as_bool().unwrap_or(false);
    early || (has_condition(pod, "Ready") && !is_deleting(pod))
}

/// Pods grouped by the numbers that the service's ports have on them: a named target port may differ from pod to pod.
fn by_ports<'a>(service: &Object, members: &[&'a Object]) -> BTreeMap<String, (Value, Vec<&'a Object>)> {
    let mut groups: BTreeMap<String, (Value, Vec<&Object>)> = BTreeMap::new();
    for pod in members {
        let ports = target_ports(service, pod);
        groups.entry(ports.to_string()).or_insert_with(|| (ports, Vec::new())).1.push(pod);
    }
    if groups.is_empty() {
        // A service without pods still has a slice, so that a watcher sees "none" and not "unknown".
        groups.insert(String::new(), (json!([]), Vec::new()));
    }
    groups
}

fn target_ports(service: &Object, pod: &Object) -> Value {
    let ports = service.spec()["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let resolved = ports.iter().filter_map(|port| {
        let target = match &port["targetPort"] {
            Value::Number(number) => number.as_i64()?,
            Value::String(name) => name.parse().ok().or_else(|| container_port(pod, name))?,
            _ => port["port"].as_i64()?,
        };
        let mut target = json!({"name": port["name"].as_str().unwrap_or_default(), "port": target,
                                "protocol": port["protocol"].as_str().unwrap_or("TCP")});
        if let Some(protocol) = port["appProtocol"].as_str() {
            target["appProtocol"] = protocol.into();
        }
        Some(target)
    });
    resolved.collect()
}

fn container_port(pod: &Object, name: &str) -> Option<i64> {
    let containers =
        ["containers", "initContainers"].into_iter().flat_map(|list| pod.spec()[list].as_array()).flatten();
    let mut ports = containers.flat_map(|container| container["ports"].as_array()).flatten();
    ports.find(|port| port["name"] == name)?["containerPort"].as_i64()
}

fn endpoint(store: &MemoryStore, service: &Object, pod: &Object, address: &str) -> Value {
    let (ready, leaving) = (has_condition(pod, "Ready"), is_deleting(pod));
    let mut endpoint = json!({
        "addresses": [address],
        "conditions": {"ready": is_ready(service, pod), "serving": ready, "terminating": leaving},
        "nodeName": node_of(pod),
        "targetRef": {"kind": "Pod", "name": pod.name(), "namespace": pod.namespace(), "uid": uid(pod)},
    });
    let node = store.find("", "Node", "", node_of(pod));
    if let Some(zone) = node.as_ref().and_then(|node| node.label(label::ZONE)) {
        endpoint["zone"] = zone.into();
    }
    if pod.spec()["subdomain"] == service.name()
        && let Some(hostname) = pod.spec()["hostname"].as_str()
    {
        endpoint["hostname"] = hostname.into();
    }
    endpoint
}

fn write_slices(
    store: &MemoryStore,
    service: &Object,
    family: &str,
    groups: &BTreeMap<String, (Value, Vec<&Object>)>,
    own: Vec<Arc<Object>>,
) {
    let mut free: Vec<Arc<Object>> = own.into_iter().filter(|slice| !is_deleting(slice)).collect();
    for (ports, pods) in groups.values() {
        let of_pod = |pod: &&Object| Some(endpoint(store, service, pod, address(pod, family)?));
        let mut endpoints: Vec<Value> = pods.iter().filter_map(of_pod).collect();
        endpoints.sort_by_key(|endpoint| endpoint["addresses"][0].as_str().unwrap_or_default().to_string());
        // The slice that has these ports already keeps them: a watcher sees pods come and go, not ports change.
        let same =
            free.iter().position(|slice| slice.body.get("ports") == Some(ports)).or((!free.is_empty()).then_some(0));
        match same.map(|position| free.remove(position)) {
            Some(slice) => {
                let _ = store.modify(&slice.key(), |slice| {
                    slice.body.insert("ports".into(), ports.clone());
                    slice.body.insert("endpoints".into(), endpoints.clone().into());
                });
            }
            None => create_slice(store, service, family, ports, endpoints),
        }
    }
    for slice in free {
        let _ = store.delete(&slice.key(), &DeleteOptions::default());
    }
}

fn create_slice(store: &MemoryStore, service: &Object, family: &str, ports: &Value, endpoints: Vec<Value>) {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(label::SERVICE_NAME.into(), service.name().into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service.spec()["clusterIP"] == "None" {
        labels.insert("service.kubernetes.io/headless".into(), String::new());
    }
    let mut slice = owned("discovery.k8s.io/v1", "EndpointSlice", service, labels);
    slice.metadata.generate_name = Some(format!("{}-", service.name()));
    slice.body.insert("addressType".into(), family.into());
    slice.body.insert("endpoints".into(), endpoints.into());
    slice.body.insert("ports".into(), ports.clone());
    report(service, store.create(slice));
}

/// The older form, one object per service, of its main family.
fn write_endpoints(store: &MemoryStore, service: &Object, members: &[&Object]) {
    let mut subsets = Vec::new();
    let family = families(service).first().copied().unwrap_or(IPV4);
    for (ports, pods) in by_ports(service, members).into_values() {
        if pods.is_empty() {
            continue;
        }
        let (ready, not_ready): (Vec<_>, Vec<_>) = pods.into_iter().partition(|pod| is_ready(service, pod));
        let addresses = |pods: Vec<&Object>| -> Vec<Value> {
            let address = |pod: &&Object| {
                let ip = address(pod, family)?;
                let target = json!({"kind": "Pod", "name": pod.name(), "namespace": pod.namespace(), "uid": uid(pod)});
                Some(json!({"ip": ip, "nodeName": node_of(pod), "targetRef": target}))
            };
            pods.iter().filter_map(address).collect()
        };
        let mut subset = json!({"ports": ports});
        for (field, pods) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
            let found = addresses(pods);
            if !found.is_empty() {
                subset[field] = found.into();
            }
        }
        // Pods may have no address of the service's family.
        if subset.as_object().is_some_and(|subset| subset.len() > 1) {
            subsets.push(subset);
        }
    }
    let mut object = owned("v1", "Endpoints", service, service.metadata.labels.clone().unwrap_or_default());
    object.metadata.name = Some(service.name().into());
    object.metadata.owner_references = None;
    object.body.insert("subsets".into(), subsets.clone().into());
    if let Some(old) = store.find("", "Endpoints", service.namespace(), service.name()) {
        if old.body.get("subsets") != object.body.get("subsets") {
            let _ = store.modify(&old.key(), |old| {
                old.body.insert("subsets".into(), subsets.clone().into());
            });
        }
        return;
    }
    report(service, store.create(object));
}
