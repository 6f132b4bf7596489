//! A component's settings on Kubernetes (`components.NAME.k8s`), put into its objects. The same for all components.
//!
//! Source: Istio's operator API, `KubernetesResourcesSpec`; the older form in `values` counts where this one says nothing.

use serde_json::{Map, Value, json};
use weft_inject::Values;

/// Where a component's settings are.
#[derive(Clone, Copy)]
pub(super) struct Component<'a> {
    /// `components.NAME.k8s`.
    pub k8s: &'a Value,
    /// `values.pilot` or `values.gateways.NAME`.
    pub values: &'a Value,
    /// What holds for all.
    pub all: &'a Values,
}

impl Component<'_> {
    fn first(&self, name: &str) -> Value {
        let given = |value: &Value| match value {
            Value::Null => false,
            Value::Object(fields) => !fields.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::String(text) => !text.is_empty(),
            _ => true,
        };
        let of_all = match name {
            "nodeSelector" => self.all.get("global.defaultNodeSelector"),
            "tolerations" => self.all.get("global.defaultTolerations"),
            "priorityClassName" => self.all.get("global.priorityClassName"),
            "imagePullPolicy" => self.all.get("global.imagePullPolicy"),
            _ => &Value::Null,
        };
        [&self.k8s[name], &self.values[name], of_all].into_iter().find(|v| given(v)).cloned().unwrap_or_default()
    }

    /// Fills in the `spec` of a Deployment whose first container is the component's.
    pub(super) fn deployment(&self, spec: &mut Value) {
        for (name, of_values) in [("maxSurge", "rollingMaxSurge"), ("maxUnavailable", "rollingMaxUnavailable")] {
            if !self.values[of_values].is_null() {
                spec["strategy"]["rollingUpdate"][name] = self.values[of_values].clone();
            }
        }
        if self.k8s["strategy"].is_object() {
            spec["strategy"] = self.k8s["strategy"].clone();
        }
        for from in [&self.values["podAnnotations"], &self.k8s["podAnnotations"]] {
            if from.is_object() {
                merge(&mut spec["template"]["metadata"]["annotations"], from);
            }
        }
        let pod = &mut spec["template"]["spec"];
        for name in ["affinity", "nodeSelector", "priorityClassName", "tolerations"] {
            let value = self.first(name);
            if !value.is_null() {
                pod[name] = value;
            }
        }
        merge(&mut pod["securityContext"], &self.k8s["securityContext"]);
        if pod["securityContext"].as_object().is_none_or(Map::is_empty) {
            pod.as_object_mut().map(|pod| pod.shift_remove("securityContext"));
        }
        append(&mut pod["volumes"], "name", &[&self.values["volumes"], &self.k8s["volumes"]]);
        if pod["volumes"].is_null() {
            pod.as_object_mut().map(|pod| pod.shift_remove("volumes"));
        }
        self.container(&mut pod["containers"][0]);
    }

    fn container(&self, container: &mut Value) {
        for name in ["resources", "imagePullPolicy", "readinessProbe"] {
            let value = if name == "readinessProbe" { self.k8s[name].clone() } else { self.first(name) };
            if !value.is_null() {
                container[name] = value;
            }
        }
        let of_values = self.values["env"].as_object().cloned().unwrap_or_default();
        let of_values: Vec<Value> = of_values.iter().map(|(name, v)| json!({"name": name, "value": text(v)})).collect();
        append(&mut container["env"], "name", &[&of_values.into(), &self.k8s["env"]]);
        // One volume may be mounted at several places.
        let mounts = [&self.values["volumeMounts"], &self.k8s["volumeMounts"]];
        append(&mut container["volumeMounts"], "mountPath", &mounts);
        for name in ["env", "volumeMounts"] {
            if container[name].is_null() {
                container.as_object_mut().map(|container| container.shift_remove(name));
            }
        }
    }

    /// Fills in a Service: annotations, and fields of its `spec`, of which a list replaces what was there.
    pub(super) fn service(&self, service: &mut Value) {
        for from in [&self.values["serviceAnnotations"], &self.k8s["serviceAnnotations"]] {
            if from.is_object() {
                merge(&mut service["metadata"]["annotations"], from);
            }
        }
        merge(&mut service["spec"], &self.k8s["service"]);
    }

    /// The `spec` of its disruption budget without the selector; none where there is to be none.
    pub(super) fn budget(&self) -> Option<Value> {
        let own = &self.k8s["podDisruptionBudget"];
        if own.as_object().is_some_and(|own| !own.is_empty()) {
            return Some(own.clone());
        }
        (self.all.get("global.defaultPodDisruptionBudget")["enabled"] != false).then(|| json!({"minAvailable": 1}))
    }
}

/// Fields of one map over those of another.
fn merge(into: &mut Value, from: &Value) {
    let Some(from) = from.as_object() else { return };
    if !into.is_object() {
        *into = json!({});
    }
    if let Some(into) = into.as_object_mut() {
        into.extend(from.clone());
    }
}

/// Items of lists behind those of another; one with the same `key` takes its place.
fn append(into: &mut Value, key: &str, from: &[&Value]) {
    let mut all = into.as_array().cloned().unwrap_or_default();
    for item in from.iter().filter_map(|list| list.as_array()).flatten() {
        match all.iter_mut().find(|known| known[key].is_string() && known[key] == item[key]) {
            Some(known) => known.clone_from(item),
            None => all.push(item.clone()),
        }
    }
    *into = if all.is_empty() { Value::Null } else { all.into() };
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Value {
        json!({"strategy": {"rollingUpdate": {"maxSurge": "100%"}},
               "template": {"metadata": {}, "spec": {"containers": [{"name": "c", "env": [{"name": "A", "value": "1"}]}]}}})
    }

    #[test]
    fn every_setting_has_its_place() {
        let all = Values::default();
        for (setting, value, at) in [
            ("resources", json!({"requests": {"cpu": "1"}}), "/template/spec/containers/0/resources"),
            ("readinessProbe", json!({"periodSeconds": 9}), "/template/spec/containers/0/readinessProbe"),
            ("imagePullPolicy", json!("Always"), "/template/spec/containers/0/imagePullPolicy"),
            ("volumeMounts", json!([{"name": "v"}]), "/template/spec/containers/0/volumeMounts"),
            ("volumes", json!([{"name": "v"}]), "/template/spec/volumes"),
            ("podAnnotations", json!({"a": "b"}), "/template/metadata/annotations"),
            ("priorityClassName", json!("high"), "/template/spec/priorityClassName"),
            ("nodeSelector", json!({"a": "b"}), "/template/spec/nodeSelector"),
            ("affinity", json!({"nodeAffinity": {}}), "/template/spec/affinity"),
            ("tolerations", json!([{"key": "k"}]), "/template/spec/tolerations"),
            ("strategy", json!({"type": "Recreate"}), "/strategy"),
            ("env", json!([{"name": "A", "value": "2"}]), "/template/spec/containers/0/env"),
            ("securityContext", json!({"fsGroup": 7}), "/template/spec/securityContext"),
        ] {
            let k8s = json!({setting: value});
            let mut made = spec();
            Component { k8s: &k8s, values: &Value::Null, all: &all }.deployment(&mut made);
            assert_eq!(made.pointer(at), Some(&value), "{setting}: {made}");
            // Nothing else than what the settings say.
            let mut plain = spec();
            Component { k8s: &Value::Null, values: &Value::Null, all: &all }.deployment(&mut plain);
            assert!(
                at == "/strategy" || at.ends_with("env") || plain.pointer(at).is_none_or(|v| *v == json!({})),
                "{plain}"
            );
        }
    }

    #[test]
    fn a_volume_may_be_mounted_twice() {
        let (all, mount) = (Values::default(), |name: &str, path: &str| json!({"name": name, "mountPath": path}));
        let values = json!({"volumeMounts": [mount("certs", "/a"), mount("certs", "/b")], "volumes": [{"name": "certs", "secret": {}}]});
        let k8s = json!({"volumeMounts": [mount("other", "/b"), mount("certs", "/c")], "volumes": [{"name": "certs", "emptyDir": {}}]});
        let mut made = spec();
        Component { k8s: &k8s, values: &values, all: &all }.deployment(&mut made);
        let pod = &made["template"]["spec"];
        let wanted = [mount("certs", "/a"), mount("other", "/b"), mount("certs", "/c")];
        assert_eq!(pod["containers"][0]["volumeMounts"], json!(wanted));
        assert_eq!(pod["volumes"], json!([{"name": "certs", "emptyDir": {}}]));
    }

    #[test]
    fn services_budgets_and_the_older_form() {
        let all = Values::new(&json!({"global": {"priorityClassName": "of-all"}}));
        let k8s = json!({"service": {"type": "NodePort", "ports": [{"port": 1}]}, "serviceAnnotations": {"x": "k8s"}});
        let values = json!({"serviceAnnotations": {"x": "values", "y": "values"}, "env": {"A": 3}, "nodeSelector": {}, "rollingMaxSurge": 2});
        let component = Component { k8s: &k8s, values: &values, all: &all };
        let mut service =
            json!({"metadata": {}, "spec": {"type": "ClusterIP", "ports": [{"port": 2}, {"port": 3}], "selector": {}}});
        component.service(&mut service);
        assert_eq!(service["spec"], json!({"type": "NodePort", "ports": [{"port": 1}], "selector": {}}));
        assert_eq!(service["metadata"]["annotations"], json!({"x": "k8s", "y": "values"}));
        let mut made = spec();
        component.deployment(&mut made);
        assert_eq!(made["template"]["spec"]["containers"][0]["env"], json!([{"name": "A", "value": "3"}]));
        assert_eq!(
            (&made["template"]["spec"]["priorityClassName"], &made["strategy"]["rollingUpdate"]["maxSurge"]),
            (&json!("of-all"), &json!(2))
        );
        assert_eq!(component.budget(), Some(json!({"minAvailable": 1})));
        let own = json!({"podDisruptionBudget": {"maxUnavailable": 1}});
        assert_eq!(Component { k8s: &own, ..component }.budget(), Some(json!({"maxUnavailable": 1})));
        let none = Values::new(&json!({"global": {"defaultPodDisruptionBudget": {"enabled": false}}}));
        assert_eq!(Component { all: &none, ..component }.budget(), None);
    }
}
