//! Which node a pod runs on. All nodes of a lab are this machine: [`NODE`] is always there, and a Node that somebody applies
//! is a further name for it, with labels of its own (regions and zones above all). Owns `nodeSelector`, required node affinity,
//! `unschedulable`; preferred affinity, taints and capacity are not looked at.
//!
//! Rules: <https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/>.

use super::namespaces::node_status;
use super::objects::{condition, has_condition, is_deleting, list, write_status};
use super::{Controller, NODE, PodMaker};
use serde_json::{Value, json};
use std::borrow::Borrow;
use weft_k8s_api::Object;
use weft_store::MemoryStore;

/// The controller: binds pods that had no node when they were made, and says of applied nodes that they are ready.
pub struct Scheduling;

impl Controller for Scheduling {
    fn reconcile(&mut self, store: &MemoryStore, _: &dyn PodMaker) {
        let nodes = list(store, "", "Node");
        for node in nodes.iter().filter(|node| !has_condition(node, "Ready")) {
            write_status(store, node, node_status(node.name()));
        }
        for pod in list(store, "", "Pod") {
            if !node_of(&pod).is_empty() || is_deleting(&pod) {
                continue;
            }
            match choose(&pod, &nodes) {
                Some(node) => {
                    let _ = store.modify(&pod.key(), |pod| {
                        if let Some(spec) = pod.body.get_mut("spec") {
                            spec["nodeName"] = node.into();
                        }
                    });
                }
                None => wait(store, &pod, nodes.len()),
            }
        }
    }
}

/// Name of the pod's node; empty as long as it has none.
pub fn node_of(pod: &Object) -> &str {
    pod.spec()["nodeName"].as_str().unwrap_or_default()
}

/// The node for a pod: the one that it names, else the lab's own if it fits, else the first that fits. `None`: none fits.
pub fn choose<'a, N: Borrow<Object>>(pod: &Object, nodes: &'a [N]) -> Option<&'a str> {
    let spec = pod.spec();
    let named = node_of(pod);
    let fits = |node: &&Object| {
        let selected = spec["nodeSelector"].as_object().into_iter().flatten();
        let mut selected = selected.map(|(name, want)| node.label(name) == want.as_str());
        let required = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        let open = node.spec()["unschedulable"] != true;
        (named == node.name() || named.is_empty() && open) && selected.all(|fits| fits) && affine(required, node)
    };
    let fitting = || nodes.iter().map(Borrow::borrow).filter(fits);
    let own = fitting().find(|node| node.name() == NODE);
    own.or_else(|| fitting().min_by_key(|node| node.name())).map(Object::name)
}

/// Terms are alternatives; the expressions of one hold together; an empty one selects nothing.
fn affine(required: &Value, node: &Object) -> bool {
    let Some(terms) = required["nodeSelectorTerms"].as_array() else { return true };
    let expressions = |term: &'_ Value, list: &str| term[list].as_array().cloned().unwrap_or_default();
    terms.iter().any(|term| {
        let (labels, fields) = (expressions(term, "matchExpressions"), expressions(term, "matchFields"));
        let holds = |expression: &Value| {
            let key = expression["key"].as_str().unwrap_or_default();
            holds(expression, node.label(key))
        };
        let of_name =
            |expression: &Value| expression["key"] == "metadata.name" && self::holds(expression, Some(node.name()));
        (!labels.is_empty() || !fields.is_empty()) && labels.iter().all(holds) && fields.iter().all(of_name)
    })
}

fn holds(expression: &Value, found: Option<&str>) -> bool {
    let values: Vec<&str> = expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let compared = number(found).zip(number(values.first().copied()));
    match expression["operator"].as_str().unwrap_or_default() {
        "In" => found.is_some_and(|found| values.contains(&found)),
        "NotIn" => found.is_none_or(|found| !values.contains(&found)),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compared.is_some_and(|(found, bound)| found > bound),
        "Lt" => compared.is_some_and(|(found, bound)| found < bound),
        _ => false,
    }
}

/// Says in the pod's status, once, what it waits for.
fn wait(store: &MemoryStore, pod: &Object, nodes: usize) {
    let message = format!(
        "0/{nodes} nodes are available: {nodes} node(s) didn't match Pod's node affinity/selector. Apply a Node with the \
         labels; every Node of a lab is this machine."
    );
    let mut status = pod.body.get("status").cloned().unwrap_or_else(|| json!({}));
    let said = |condition: &&Value| condition["type"] == "PodScheduled" && condition["message"] == message.as_str();
    if status["conditions"].as_array().into_iter().flatten().any(|condition| said(&condition)) {
        return;
    }
    status["phase"] = "Pending".into();
    status["conditions"] = json!([condition(pod, "PodScheduled", false, "Unschedulable", &message)]);
    write_status(store, pod, status);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        serde_json::from_value(value).unwrap()
    }

    fn node(name: &str, zone: &str) -> Object {
        let labels = json!({"topology.kubernetes.io/zone": zone, "cores": "8"});
        object(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {}}))
    }

    fn chosen(spec: Value) -> Option<String> {
        let nodes = [node("east", "b"), node(NODE, "a"), node("west", "c")];
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n"}, "spec": spec});
        choose(&object(pod), &nodes).map(str::to_string)
    }

    fn required(term: Value) -> Value {
        let terms = json!({"nodeSelectorTerms": [term]});
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}})
    }

    #[test]
    fn selectors_and_affinity() {
        let zone = "topology.kubernetes.io/zone";
        let by = |operator: &str, key: &str, values: Value| {
            required(json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]}))
        };
        for (spec, want) in [
            (json!({}), Some(NODE)),
            (json!({"nodeSelector": {zone: "b"}}), Some("east")),
            (json!({"nodeSelector": {zone: "b", "cores": "9"}}), None),
            (json!({"nodeName": "west"}), Some("west")),
            (json!({"nodeName": "gone"}), None),
            (by("In", zone, json!(["b", "c"])), Some("east")),
            (by("NotIn", zone, json!(["a", "b"])), Some("west")),
            (by("NotIn", "absent", json!(["a"])), Some(NODE)),
            (by("Exists", "cores", json!([])), Some(NODE)),
            (by("DoesNotExist", "cores", json!([])), None),
            (by("Gt", "cores", json!(["7"])), Some(NODE)),
            (by("Lt", "cores", json!(["7"])), None),
            (by("Like", "cores", json!(["8"])), None),
            (required(json!({})), None),
            (
                required(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["west"]}]})),
                Some("west"),
            ),
        ] {
            assert_eq!(chosen(spec.clone()).as_deref(), want, "{spec}");
        }
    }

    #[test]
    fn a_pod_waits_for_its_node() {
        struct Nobody(tokio::sync::Notify);
        impl PodMaker for Nobody {
            fn create(&self, _: &Object, _: Object) {}
            fn asked(&self) -> super::super::Asked {
                super::super::Asked::default()
            }
            fn freed(&self) -> &tokio::sync::Notify {
                &self.0
            }
        }
        let (store, nobody) = (MemoryStore::new(), Nobody(tokio::sync::Notify::new()));
        store.create(node(NODE, "a")).unwrap();
        store.create(object(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}))).unwrap();
        let spec = json!({"nodeSelector": {"topology.kubernetes.io/zone": "b"}});
        let pod = object(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n"}, "spec": spec}),
        );
        store.create(pod).unwrap();
        let seen = || store.find("", "Pod", "n", "p").unwrap();
        Scheduling.reconcile(&store, &nobody);
        assert_eq!(node_of(&seen()), "");
        assert_eq!(seen().body["status"]["conditions"][0]["reason"], "Unschedulable");
        let version = seen().metadata.resource_version.clone();
        Scheduling.reconcile(&store, &nobody);
        assert_eq!(seen().metadata.resource_version, version, "it is said once");
        store.create(node("east", "b")).unwrap();
        Scheduling.reconcile(&store, &nobody);
        assert_eq!(node_of(&seen()), "east");
        assert!(has_condition(&store.find("", "Node", "", "east").unwrap(), "Ready"));
    }
}
