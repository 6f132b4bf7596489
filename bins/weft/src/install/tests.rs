//! Manifests: what is there by setting, that it is what Kubernetes takes, and that it says what it must.

use super::*;
use weft_k8s_api::{Object, validate};

fn made(sets: &[&str]) -> Vec<Value> {
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_string()).collect();
    objects(&Settings::read(&[], &sets).unwrap())
}

fn find<'a>(all: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = all.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn has(all: &[Value], kind: &str, name: &str) -> bool {
    all.iter().any(|o| o["kind"] == kind && o["metadata"]["name"] == name)
}

#[test]
fn profiles_and_components() {
    for (sets, present, absent) in [
        (vec![], vec!["istiod", "istio-ingressgateway"], vec!["istio-egressgateway"]),
        (vec!["profile=demo"], vec!["istiod", "istio-ingressgateway", "istio-egressgateway"], vec![]),
        (vec!["profile=minimal"], vec!["istiod"], vec!["istio-ingressgateway"]),
        (vec!["profile=empty"], vec![], vec!["istiod", "istio-ingressgateway"]),
        (vec!["components.pilot.enabled=false"], vec!["istio-ingressgateway"], vec!["istiod"]),
        (
            vec![
                "components.ingressGateways[0].name=istio-ingressgateway",
                "components.ingressGateways[0].enabled=false",
            ],
            vec!["istiod"],
            vec!["istio-ingressgateway"],
        ),
        (
            vec!["components.ingressGateways[0].name=ilb", "components.ingressGateways[0].namespace=edge"],
            vec!["ilb", "istio-ingressgateway"],
            vec![],
        ),
        (vec!["revision=canary"], vec!["istiod-canary"], vec!["istiod"]),
    ] {
        let all = made(&sets);
        present.iter().for_each(|name| assert!(has(&all, "Deployment", name), "{sets:?}: {name}"));
        absent.iter().for_each(|name| assert!(!has(&all, "Deployment", name), "{sets:?}: {name}"));
    }
    for (bad, said) in [
        ("profile=none", "demo"),
        ("colour=red", "profile"),
        ("components.mixer.enabled=true", "pilot"),
        ("revision=A b", "lower-case"),
        ("hub", "path=value"),
        ("components.ingressGateways[9999].name=x", "larger"),
        ("components.ingressGateways[0].enabled=true", "name"),
    ] {
        let sets = [bad.to_string()];
        let error = Settings::read(&[], &sets).map(|s| objects(&s).len()).map_err(|e| format!("{e:#}"));
        // A gateway without name stands beside the named one.
        assert!(error.as_ref().err().is_some_and(|e| e.contains(said)), "{bad}: {error:?}");
    }
}

#[test]
fn everything_is_valid() {
    for sets in [vec!["profile=demo"], vec!["revision=canary", "profile=demo", "namespace=mesh"]] {
        for value in made(&sets) {
            let object: Object = serde_json::from_value(value).unwrap();
            let found = validate(&object);
            assert!(found.is_valid() && found.unknown_fields.is_empty(), "{}: {found:?}", object.key());
            // Deleting the manifest must not delete what else is in a namespace.
            assert_ne!(object.kind, "Namespace");
        }
    }
}

#[test]
fn ports_and_security() {
    let all = made(&[]);
    let ports = |all: &[Value]| find(all, "Service", "istiod")["spec"]["ports"].to_string();
    assert!(!ports(&all).contains("15010") && ports(&all).contains(r#""port":443,"targetPort":15017"#));
    assert!(ports(&made(&["values.pilot.env.WEFT_PLAINTEXT_XDS=true"])).contains("15010"));
    let container = &find(&all, "Deployment", "istiod")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["securityContext"]["capabilities"]["drop"][0], "ALL");
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/ready");
    let role = find(&all, "ClusterRole", "istiod-clusterrole-istio-system").to_string();
    assert!(!role.contains("certificates.k8s.io"));
    let elsewhere = made(&["values.pilot.env.EXTERNAL_CA=ISTIOD_RA_KUBERNETES_API"]);
    let more = find(&elsewhere, "ClusterRole", "istiod-clusterrole-istio-system").to_string();
    assert!(more.contains("certificatesigningrequests/approval"), "{more}");
    assert!(!role.contains(r#""verbs":["*"]"#) && !role.contains("pods/exec"), "{role}");
    // Workloads that have registered themselves and are gone; nothing else is deleted.
    let rules = find(&all, "ClusterRole", "istiod-clusterrole-istio-system")["rules"].as_array().unwrap();
    let deleting: Vec<&Value> = rules.iter().filter(|rule| rule["verbs"].to_string().contains("delete")).collect();
    assert!(deleting.iter().all(|rule| rule["resources"] == json!(["workloadentries"])), "{deleting:?}");
}

#[test]
fn autoscalers_as_they_are_asked_for() {
    let scaler = |sets: &[&str], name: &str| {
        let all = made(sets);
        let found = all.iter().find(|o| o["kind"] == "HorizontalPodAutoscaler" && o["metadata"]["name"] == name);
        found.map(|o| (o["spec"]["minReplicas"].clone(), o["spec"]["maxReplicas"].clone()))
    };
    assert_eq!(scaler(&[], "istiod"), Some((json!(1), json!(5))));
    assert_eq!(scaler(&["profile=demo"], "istiod"), None);
    let own = ["components.pilot.k8s.hpaSpec.minReplicas=2", "components.pilot.k8s.hpaSpec.maxReplicas=10"];
    assert_eq!(scaler(&own, "istiod"), Some((json!(2), json!(10))));
    assert_eq!(scaler(&["values.gateways.istio-ingressgateway.autoscaleEnabled=false"], "istio-ingressgateway"), None);
    // Applied again, the manifest must not undo what the autoscaler did.
    assert!(find(&made(&[]), "Deployment", "istiod")["spec"]["replicas"].is_null());
    assert_eq!(find(&made(&["profile=demo"]), "Deployment", "istiod")["spec"]["replicas"], 1);
}

#[test]
fn webhooks_choose_pods() {
    let all = made(&[]);
    let hooks =
        find(&all, "MutatingWebhookConfiguration", "istio-sidecar-injector")["webhooks"].as_array().unwrap().clone();
    let names: Vec<&str> = hooks.iter().map(|h| h["name"].as_str().unwrap()).collect();
    let wanted =
        ["rev.namespace.", "rev.object.", "namespace.", "object."].map(|p| format!("{p}sidecar-injector.istio.io"));
    assert_eq!(names, wanted);
    let canary = made(&["revision=canary"]);
    let hooks = &find(&canary, "MutatingWebhookConfiguration", "istio-sidecar-injector-canary")["webhooks"];
    assert_eq!(hooks.as_array().unwrap().len(), 2);
    assert!(hooks.to_string().contains("istiod-canary"));
    assert!(!has(&canary, "ValidatingWebhookConfiguration", "istiod-default-validator"));
    let auto = made(&["values.sidecarInjectorWebhook.enableNamespacesByDefault=true"]);
    let hooks = &find(&auto, "MutatingWebhookConfiguration", "istio-sidecar-injector")["webhooks"];
    assert_eq!(hooks.as_array().unwrap().len(), 5);
    let validator = find(&all, "ValidatingWebhookConfiguration", "istiod-default-validator");
    assert!(validator["webhooks"][0]["rules"][0]["apiGroups"].to_string().contains("security.istio.io"));
}

#[test]
fn mesh_config_and_values_reach_their_config_maps() {
    let all =
        made(&["meshConfig.accessLogFile=/dev/stdout", "values.global.proxy.logLevel=debug", "hub=h.example", "tag=9"]);
    let mesh = find(&all, "ConfigMap", "istio")["data"]["mesh"].as_str().unwrap();
    let mesh = weft_k8s_api::yaml::value(mesh).unwrap();
    assert_eq!((&mesh["accessLogFile"], &mesh["rootNamespace"]), (&json!("/dev/stdout"), &json!("istio-system")));
    let values = find(&all, "ConfigMap", "istio-sidecar-injector")["data"]["values"].as_str().unwrap();
    let values: Value = serde_json::from_str(values).unwrap();
    assert_eq!(values["global"]["proxy"]["logLevel"], "debug");
    let deployment = find(&all, "Deployment", "istiod").to_string();
    assert!(deployment.contains("h.example/weftd:9"), "{deployment}");
}
