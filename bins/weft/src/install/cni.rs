//! The CNI agent (`components.cni`): a DaemonSet that keeps the plugin on every node, so that pods need no init container with
//! capabilities. One for a cluster, whatever revisions there are.
//!
//! Source: Istio's "Install Istio with the Istio CNI plugin"; the agent is `weft-cni`.

use super::Settings;
use serde_json::{Map, Value, json};
use weft_k8s_api::kinds::KindInfo;

/// Multus' kind for a network that pods name beside the cluster's. It is not among the mesh's kinds: who has Multus has it.
pub static NETWORK: KindInfo = KindInfo {
    group: "k8s.cni.cncf.io",
    versions: &["v1"],
    kind: "NetworkAttachmentDefinition",
    plural: "network-attachment-definitions",
    singular: "network-attachment-definition",
    short: &["net-attach-def"],
    namespaced: true,
    categories: &[],
};
/// The network that injected pods name, `default/istio-cni`: the name that the plugin's file has.
const NETWORK_NAME: &str = "istio-cni";
const NAME: &str = "istio-cni-node";
const ACCOUNT: &str = "istio-cni";

/// Its objects.
pub(super) fn objects(settings: &Settings) -> Vec<Value> {
    let own = &settings.components["cni"];
    let values = settings.values.get("cni");
    let namespace = own["namespace"].as_str().unwrap_or(&settings.namespace);
    let metadata = |name: &str| json!({"name": name, "namespace": namespace, "labels": labels()});
    let cluster = |name: &str| json!({"name": name, "labels": labels()});
    let rbac = "rbac.authorization.k8s.io";
    let reference = json!({"apiGroup": rbac, "kind": "ClusterRole", "name": ACCOUNT});
    let subjects = json!([{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}]);
    let mut verbs = vec!["get", "list", "watch"];
    if repairs(values) {
        // Pods that started before the plugin are made anew.
        verbs.push("delete");
    }
    let mut account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(ACCOUNT)});
    settings.pull_secrets(&mut account);
    let mut rules = vec![json!({"apiGroups": [""], "resources": ["pods"], "verbs": verbs})];
    if is_openshift(settings) {
        // Its folders of the node are closed to accounts that may not use this.
        rules.push(json!({"apiGroups": ["security.openshift.io"], "resources": ["securitycontextconstraints"],
                          "resourceNames": ["privileged"], "verbs": ["use"]}));
    }
    let mut all = vec![
        account,
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": cluster(ACCOUNT), "rules": rules}),
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": cluster(ACCOUNT),
               "roleRef": reference, "subjects": subjects}),
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata(NAME), "spec": daemon(settings, own, values)}),
    ];
    if settings.values.text("pilot.cni.provider") == "multus" {
        // Without a configuration of its own: Multus takes the plugin's file, which has this name.
        all.push(json!({"apiVersion": "k8s.cni.cncf.io/v1", "kind": NETWORK.kind,
                        "metadata": {"name": NETWORK_NAME, "namespace": "default", "labels": labels()}}));
    }
    all
}

fn is_openshift(settings: &Settings) -> bool {
    settings.values.text("global.platform") == "openshift"
}

fn labels() -> Value {
    json!({"k8s-app": NAME, "app.kubernetes.io/name": ACCOUNT, "app.kubernetes.io/part-of": "weft"})
}

fn repairs(values: &Value) -> bool {
    values["repair"]["enabled"] != false
}

fn daemon(settings: &Settings, own: &Value, values: &Value) -> Value {
    let mut spec = json!({
        "selector": {"matchLabels": {"k8s-app": NAME}},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
        "template": {
            "metadata": {"labels": {"k8s-app": NAME, "sidecar.istio.io/inject": "false"}},
            "spec": {
                "serviceAccountName": ACCOUNT,
                "priorityClassName": "system-node-critical",
                "nodeSelector": {"kubernetes.io/os": "linux"},
                // Every node: also those that take no other pods yet.
                "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}, {"operator": "Exists", "effect": "NoExecute"},
                                {"operator": "Exists", "key": "CriticalAddonsOnly"}],
                // It takes its line out of the node's configuration before it goes; killed before that, it leaves it there.
                "terminationGracePeriodSeconds": 30,
                "containers": [container(settings, own, values)],
                "volumes": [
                    {"name": "cni-bin-dir", "hostPath": {"path": folder(values, "cniBinDir", "/opt/cni/bin")}},
                    {"name": "cni-net-dir", "hostPath": {"path": folder(values, "cniConfDir", "/etc/cni/net.d")}},
                ],
            },
        },
    });
    let component = super::k8s::Component { k8s: &own["k8s"], values: &Value::Null, all: &settings.values };
    component.deployment(&mut spec);
    // It has a strategy of its own kind, and its class is what keeps it on full nodes.
    if let Some(strategy) = spec.as_object_mut().and_then(|spec| spec.shift_remove("strategy")) {
        spec["updateStrategy"] = strategy;
    }
    if own["k8s"]["priorityClassName"].is_null() {
        spec["template"]["spec"]["priorityClassName"] = "system-node-critical".into();
    }
    spec
}

fn folder(values: &Value, name: &str, usual: &str) -> String {
    values[name].as_str().filter(|path| !path.is_empty()).unwrap_or(usual).to_string()
}

fn container(settings: &Settings, own: &Value, values: &Value) -> Value {
    let mut env = Map::new();
    env.insert("CNI_CONF_DIR_ON_HOST".into(), folder(values, "cniConfDir", "/etc/cni/net.d").into());
    env.insert("REPAIR_ENABLED".into(), repairs(values).to_string().into());
    // A network of its own instead, for Multus.
    env.insert("CHAINED_CNI_PLUGIN".into(), (values["chained"] != false).to_string().into());
    let name = folder(values, "cniConfFileName", "");
    if !name.is_empty() {
        env.insert("CNI_CONF_NAME".into(), name.into());
    }
    let excluded: Vec<&str> = match values["excludeNamespaces"].as_array() {
        Some(names) => names.iter().filter_map(Value::as_str).collect(),
        None => vec!["kube-system"],
    };
    env.insert("EXCLUDE_NAMESPACES".into(), excluded.join(",").into());
    let mut env: Vec<Value> = env.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    env.push(json!({"name": "KUBERNETES_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}));
    let mut container = json!({
        "name": "install-cni",
        "image": super::settings::image_of(&settings.values, values["image"].as_str().unwrap_or("weft-cni"), [own, values]),
        "args": ["install"],
        "env": env,
        "readinessProbe": {"exec": {"command": ["weft-cni", "ready"]}, "initialDelaySeconds": 1, "periodSeconds": 5},
        "resources": if values["resources"].is_object() { values["resources"].clone() } else { json!({"requests": {"cpu": "50m", "memory": "64Mi"}}) },
        // It writes into folders of the node that belong to root; it needs nothing else of it.
        "securityContext": {"runAsUser": 0, "runAsGroup": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                            "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE"]}},
        "volumeMounts": [{"name": "cni-bin-dir", "mountPath": "/host/opt/cni/bin"},
                         {"name": "cni-net-dir", "mountPath": "/host/etc/cni/net.d"}],
    });
    if is_openshift(settings) {
        // SELinux lets no other container write there.
        container["securityContext"]["seLinuxOptions"] = json!({"type": "spc_t"});
    }
    container
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::{Operator, objects};

    fn made(sets: &[&str]) -> anyhow::Result<Vec<Value>> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_string()).collect();
        objects(&Settings::new(&Operator::merge(&[], &sets, None)?)?)
    }

    #[test]
    fn the_agent_on_every_node() {
        let sets = [
            "profile=empty",
            "components.cni.enabled=true",
            "components.cni.namespace=kube-system",
            "values.cni.cniBinDir=/home/kubernetes/bin",
            "values.cni.cniConfFileName=10-net.conflist",
            "values.cni.repair.enabled=false",
        ];
        let all = made(&sets).unwrap();
        let daemon = all.iter().find(|object| object["kind"] == "DaemonSet").unwrap();
        assert_eq!(
            (&daemon["metadata"]["name"], &daemon["metadata"]["namespace"]),
            (&json!(NAME), &json!("kube-system"))
        );
        let pod = &daemon["spec"]["template"]["spec"];
        assert_eq!(pod["terminationGracePeriodSeconds"], 30);
        assert_eq!(
            (&pod["priorityClassName"], &pod["volumes"][0]["hostPath"]["path"]),
            (&json!("system-node-critical"), &json!("/home/kubernetes/bin"))
        );
        let env = pod["containers"][0]["env"].to_string();
        for part in [r#""CNI_CONF_NAME","value":"10-net.conflist""#, r#""REPAIR_ENABLED","value":"false""#] {
            assert!(env.contains(part), "{env}");
        }
        let role = all.iter().find(|object| object["kind"] == "ClusterRole").unwrap();
        assert!(!role["rules"].to_string().contains("delete"));
        // Pods of a mesh with it have no init container that captures.
        let all = made(&["components.cni.enabled=true"]).unwrap();
        let map = all
            .iter()
            .find(|object| object["metadata"]["name"] == "istio-sidecar-injector" && object["kind"] == "ConfigMap")
            .unwrap();
        let values: Value = serde_json::from_str(map["data"]["values"].as_str().unwrap()).unwrap();
        assert_eq!(values["pilot"]["cni"]["enabled"], true);
        let sets = ["profile=empty", "components.cni.enabled=true", "values.cni.chained=false"];
        let daemon = made(&sets).unwrap().into_iter().find(|object| object["kind"] == "DaemonSet").unwrap().to_string();
        assert!(daemon.contains(r#""CHAINED_CNI_PLUGIN","value":"false""#), "{daemon}");
    }

    #[test]
    fn a_network_for_multus() {
        let network = |sets: &[&str]| made(sets).unwrap().into_iter().find(|object| object["kind"] == NETWORK.kind);
        assert!(network(&["components.cni.enabled=true"]).is_none());
        for sets in [
            &["profile=openshift"][..],
            &["components.cni.enabled=true", "values.cni.provider=multus"],
            &["components.cni.enabled=true", "values.pilot.cni.provider=multus"],
        ] {
            let found = network(sets).unwrap_or_else(|| panic!("{sets:?}"));
            assert_eq!(
                (&found["metadata"]["namespace"], &found["metadata"]["name"]),
                (&json!("default"), &json!("istio-cni"))
            );
        }
        let all = made(&["profile=openshift"]).unwrap();
        let text =
            |kind: &str| all.iter().filter(|object| object["kind"] == kind).map(Value::to_string).collect::<String>();
        let daemon = text("DaemonSet");
        for part in [
            "/var/lib/cni/bin",
            "/etc/cni/multus/net.d",
            r#""CNI_CONF_NAME","value":"istio-cni.conf""#,
            "spc_t",
            r#""CHAINED_CNI_PLUGIN","value":"false""#,
            r#""namespace":"kube-system""#,
        ] {
            assert!(daemon.contains(part), "{part}: {daemon}");
        }
        assert!(text("ClusterRole").contains("securitycontextconstraints"));
        let map = text("ConfigMap");
        assert!(map.contains(r#"\"provider\": \"multus\""#), "{map}");
    }

    #[test]
    fn it_is_valid() {
        for value in
            made(&["profile=empty", "components.cni.enabled=true", "components.cni.k8s.resources.limits.cpu=1"])
                .unwrap()
        {
            let object: weft_k8s_api::Object = serde_json::from_value(value).unwrap();
            let found = weft_k8s_api::validate(&object);
            assert!(found.is_valid() && found.unknown_fields.is_empty(), "{}: {found:?}", object.key());
        }
    }
}
