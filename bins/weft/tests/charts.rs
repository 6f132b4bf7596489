//! The Helm charts of `manifests/charts`: what of them follows from the code is current, and real Helm makes the same objects
//! of them as `weft manifest generate`.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use weft_k8s_api::yaml;

/// Set by `cargo xtask charts`: write the files instead of comparing them.
const UPDATE: &str = "WEFT_UPDATE_CHARTS";
const NOTE: &str = "# Written by cargo xtask charts.\n";
const CHARTS: [&str; 5] =
    ["base", "istio-control/istio-discovery", "gateways/istio-ingress", "gateways/istio-egress", "gateway"];

fn chart(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/charts").join(name)
}

fn output(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {said}");
    String::from_utf8(out.stdout).unwrap()
}

/// The objects of a text of YAML.
fn objects(text: &str) -> Vec<Value> {
    let documents = text.split("\n---").map(|text| yaml::value(text.trim_start_matches("---")).unwrap());
    documents.filter(|object| object["kind"].is_string()).collect()
}

fn generated(sets: &[&str]) -> Vec<Value> {
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let text = output(Command::new(env!("CARGO_BIN_EXE_weft")).args(["manifest", "generate"]).args(sets));
    // A Namespace is made by whoever runs Helm.
    objects(&text).into_iter().filter(|object| object["kind"] != "Namespace").collect()
}

/// Real Helm: the one that `cargo xtask` names, else the one that it has built, else the machine's.
fn helm() -> Command {
    let target = Path::new(env!("CARGO_BIN_EXE_weft")).ancestors().nth(2).unwrap();
    let built = target.join("kube/helm");
    let program = std::env::var_os("WEFT_HELM").map(PathBuf::from).or_else(|| built.is_file().then_some(built));
    let mut command = Command::new(program.unwrap_or_else(|| "helm".into()));
    command.env_remove("KUBECONFIG");
    command
}

/// What `helm template` makes of a chart; an error is what it says.
fn template(name: &str, sets: &[&str]) -> Result<Vec<Value>, String> {
    let mut command = helm();
    command.args(["template", "release", "-n", "istio-system", "--include-crds"]).arg(chart(name));
    let out = command
        .args(sets.iter().flat_map(|set| ["--set", set]))
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}; cargo xtask helm builds it"));
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned());
    }
    Ok(objects(&String::from_utf8(out.stdout).unwrap()))
}

/// Objects by kind, namespace and name; the texts in ConfigMaps as what they mean.
fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let named = |mut object: Value| {
        let metadata = &object["metadata"];
        let name = format!("{} {}/{}", object["kind"], metadata["namespace"], metadata["name"]);
        if object["kind"] == "ConfigMap" {
            for (_, text) in object["data"].as_object_mut().unwrap() {
                *text = yaml::value(text.as_str().unwrap()).unwrap();
            }
        }
        (name, object)
    };
    objects.into_iter().map(named).collect()
}

/// Where two values differ first.
fn difference(path: &str, ours: &Value, theirs: &Value) -> Option<String> {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            names.into_iter().find_map(|name| difference(&format!("{path}.{name}"), &ours[name], &theirs[name]))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let pairs = a.iter().zip(b).enumerate();
            pairs.into_iter().find_map(|(at, (a, b))| difference(&format!("{path}[{at}]"), a, b))
        }
        // Helm reads all numbers as such of floating point.
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => None,
        _ if ours == theirs => None,
        _ => Some(format!("{path}: weft manifest generate has {ours}, the charts have {theirs}")),
    }
}

fn assert_same(generated: Vec<Value>, charts: Vec<Value>, what: &str) {
    let (ours, theirs) = (by_name(generated), by_name(charts));
    let names = |of: &BTreeMap<String, Value>| of.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs), "{what}");
    for (name, object) in &ours {
        if let Some(difference) = difference("", object, &theirs[name]) {
            panic!("{what}: {name}{difference}");
        }
    }
}

#[test]
fn what_follows_from_the_code_is_current() {
    let all = generated(&["profile=minimal"]);
    let of_kind = |kind: &'static str| all.iter().filter(move |object| object["kind"] == kind);
    let definitions: Vec<String> =
        of_kind("CustomResourceDefinition").map(|object| yaml::write(object).unwrap()).collect();
    let role = of_kind("ClusterRole").next().unwrap();
    // The rule with names depends on the revision; the chart has it itself.
    let rules: Vec<&Value> =
        role["rules"].as_array().unwrap().iter().filter(|rule| rule["resourceNames"].is_null()).collect();
    for (path, text) in [
        ("base/crds/crd-all.gen.yaml", definitions.join("---\n")),
        ("istio-control/istio-discovery/files/clusterrole.gen.yaml", yaml::write(&rules).unwrap()),
    ] {
        let (path, text) = (chart(path), format!("{NOTE}{text}"));
        if std::env::var_os(UPDATE).is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap();
        assert!(found == text, "{} is not what the code says; run: cargo xtask charts", path.display());
    }
    for name in CHARTS {
        let about = yaml::value(&std::fs::read_to_string(chart(name).join("Chart.yaml")).unwrap()).unwrap();
        let version = json!(env!("CARGO_PKG_VERSION"));
        assert_eq!((&about["version"], &about["appVersion"]), (&version, &version), "{name}");
    }
}

#[test]
fn charts_and_generated_manifests_are_the_same() {
    let together = |sets: &[&str], charts: &[&str]| {
        charts.iter().flat_map(|name| template(name, sets).unwrap_or_else(|e| panic!("{name}: {e}"))).collect()
    };
    let (base, pilot, ingress) = ("base", "istio-control/istio-discovery", "gateways/istio-ingress");
    assert_same(generated(&[]), together(&[], &[base, pilot, ingress]), "defaults");
    // A further control plane shares the definitions; both ways make it without them and without the common validator.
    let further = ["revision=canary", "components.base.enabled=false"];
    assert_same(generated(&further), together(&["revision=canary"], &[pilot, ingress]), "revision canary");
    // The egress gateway is of profile demo, whose components have no autoscaler.
    let demo = generated(&["profile=demo"]);
    let of_egress = |object: &Value| object["metadata"]["name"].as_str().unwrap().starts_with("istio-egressgateway");
    let egress = together(&["gateways.istio-egressgateway.autoscaleEnabled=false"], &["gateways/istio-egress"]);
    assert_same(demo.into_iter().filter(of_egress).collect(), egress, "egress gateway");
}

/// The same setting by both ways: the path of `weft manifest generate`, the chart's, and the value.
#[test]
fn values_mean_the_same_both_ways() {
    for (own, value) in [
        ("global.hub", "registry.example/weft"),
        ("global.tag", "v9"),
        ("global.imagePullPolicy", "Always"),
        ("global.logAsJson", "true"),
        ("global.logging.level", "default:warn"),
        ("global.monitoringPort", "15099"),
        ("global.imagePullSecrets", "{regcred,other}"),
        ("global.proxy.logLevel", "debug"),
        ("global.proxy.clusterDomain", "mesh.example"),
        ("global.multiCluster.clusterName", "east"),
        ("global.network", "net1"),
        ("global.meshID", "mesh1"),
        ("global.configValidation", "false"),
        ("pilot.autoscaleEnabled", "false"),
        ("pilot.autoscaleMax", "9"),
        ("pilot.cni.enabled", "true"),
        ("istio_cni.enabled", "true"),
        ("pilot.env.PILOT_ENABLE_STATUS", "false"),
        ("pilot.env.CLUSTER_ID", "east"),
        ("pilot.rollingMaxUnavailable", "0"),
        ("pilot.rollingMaxSurge", "1"),
        ("pilot.volumes[0].name", "certs"),
        ("pilot.volumeMounts[0].mountPath", "/certs"),
        ("pilot.env.WEFT_PLAINTEXT_XDS", "true"),
        ("pilot.env.EXTERNAL_CA", "ISTIOD_RA_KUBERNETES_API"),
        ("sidecarInjectorWebhook.enableNamespacesByDefault", "true"),
        ("sidecarInjectorWebhook.reinvocationPolicy", "IfNeeded"),
        ("meshConfig.accessLogFile", "/dev/stdout"),
    ] {
        let (ours, theirs) = (format!("values.{own}={value}"), format!("{own}={value}"));
        let pilot = |objects: Vec<Value>| -> Vec<Value> {
            let common = |o: &Value| {
                o["kind"] == "CustomResourceDefinition" || o["metadata"]["name"] == "istiod-default-validator"
            };
            objects.into_iter().filter(|object| !common(object)).collect()
        };
        let made = template("istio-control/istio-discovery", &[&theirs]).unwrap();
        assert_same(pilot(generated(&["profile=minimal", &ours])), made, own);
    }
    for (own, value) in [
        ("global.imagePullSecrets", "{regcred}"),
        ("gateways.istio-ingressgateway.debug", "trace"),
        ("gateways.istio-ingressgateway.rollingMaxUnavailable", "0"),
    ] {
        let (ours, theirs) = (format!("values.{own}={value}"), format!("{own}={value}"));
        let mut made = generated(&[&ours]);
        made.retain(|object| object["metadata"]["name"].as_str().unwrap().starts_with("istio-ingressgateway"));
        assert_same(made, template("gateways/istio-ingress", &[&theirs]).unwrap(), own);
    }
}

#[test]
fn a_setting_that_says_no_is_heard() {
    let deployment = |sets: &[&str]| {
        let all = by_name(template("istio-control/istio-discovery", sets).unwrap());
        all[r#""Deployment" "istio-system"/"istiod""#]["spec"].clone()
    };
    let made = deployment(&["pilot.rollingMaxUnavailable=0", "pilot.env.CLUSTER_ID=east", "pilot.env.REVISION=r"]);
    assert_eq!(made["strategy"]["rollingUpdate"]["maxUnavailable"], json!(0));
    let env = made["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
    let own: Vec<&Value> =
        env.iter().filter(|env| ["CLUSTER_ID", "REVISION"].iter().any(|n| env["name"] == *n)).collect();
    assert_eq!(own, [&json!({"name": "REVISION", "value": "r"}), &json!({"name": "CLUSTER_ID", "value": "east"})]);
    assert_eq!(deployment(&[])["strategy"]["rollingUpdate"]["maxUnavailable"], json!("25%"));
}

#[test]
fn values_that_nobody_knows_are_refused() {
    for (name, set, said) in [
        ("base", "colour=red", "chart base has no value \"colour\"; the names at the top are defaultRevision"),
        ("istio-control/istio-discovery", "colour=red", "has no value colour; the names at the top are"),
        ("istio-control/istio-discovery", "pilot.replicas=2", "no value pilot.replicas; the names of pilot are"),
        ("istio-control/istio-discovery", "global.hubb=x", "no value global.hubb; the names of global are"),
        ("istio-control/istio-discovery", "revision=1.0", "revision \"1.0\": use lower-case letters"),
        ("istio-control/istio-discovery", "global.jwtPolicy=first-party-jwt", "leave it out"),
        ("gateways/istio-ingress", "gateways.other.type=NodePort", "no gateway other"),
        ("gateways/istio-egress", "gateways.istio-egressgateway.port=1", "there are affinity, autoscaleEnabled"),
        ("gateway", "colour=red", "chart gateway has no value colour"),
    ] {
        let error = template(name, &[set]).expect_err(set);
        assert!(error.contains(said), "{name} {set}: {error}");
    }
}

#[test]
fn values_that_only_charts_have() {
    let pilot = |sets: &[&str]| by_name(template("istio-control/istio-discovery", sets).unwrap());
    let deployment = r#""Deployment" "istio-system"/"istiod""#;
    for (set, pointer, wanted) in [
        ("pilot.replicaCount=3", "/spec/replicas", json!(3)),
        ("replicaCount=3", "/spec/replicas", json!(3)),
        ("pilot.resources.requests.cpu=2", "/spec/template/spec/containers/0/resources/requests/cpu", json!(2)),
        ("pilot.image=reg.example/x:1", "/spec/template/spec/containers/0/image", json!("reg.example/x:1")),
        ("pilot.nodeSelector.disk=ssd", "/spec/template/spec/nodeSelector/disk", json!("ssd")),
        ("pilot.podLabels.team=mesh", "/spec/template/metadata/labels/team", json!("mesh")),
        ("global.logging.level=all:debug", "/spec/template/spec/containers/0/env/5/value", json!("debug")),
        ("global.priorityClassName=high", "/spec/template/spec/priorityClassName", json!("high")),
    ] {
        let made = pilot(&[set]);
        let found = made[deployment].pointer(pointer).cloned().unwrap_or_default();
        assert!(difference(set, &wanted, &found).is_none(), "{set}: {found}");
    }
    let account = &pilot(&["global.imagePullSecrets={regcred}"])[r#""ServiceAccount" "istio-system"/"istiod""#];
    assert_eq!(account["imagePullSecrets"], json!([{"name": "regcred"}]));
    let mesh = &pilot(&["pilot.traceSampling=0.1"])[r#""ConfigMap" "istio-system"/"istio""#]["data"]["mesh"];
    assert_eq!(mesh["defaultConfig"]["tracing"]["sampling"], json!(0.1));
    let base = by_name(template("base", &["defaultRevision=1-10-0"]).unwrap());
    let validator = &base[r#""ValidatingWebhookConfiguration" null/"istiod-default-validator""#];
    assert_eq!(validator["webhooks"][0]["clientConfig"]["service"]["name"], "istiod-1-10-0");
    assert!(
        !template("base", &["defaultRevision="]).unwrap().iter().any(|o| o["kind"] == "ValidatingWebhookConfiguration")
    );
    let gateway = by_name(template("gateway", &["labels.istio=edge", "service.type=NodePort"]).unwrap());
    let service = &gateway[r#""Service" "istio-system"/"release""#]["spec"];
    assert_eq!((&service["type"], &service["selector"]["istio"]), (&json!("NodePort"), &json!("edge")));
}

#[test]
fn tags_by_template() {
    let tags = template("istio-control/istio-discovery", &["revisionTags={prod,default}", "revision=1-10-0"]).unwrap();
    let tag = |name: &str| {
        let of_tag =
            |o: &&Value| o["kind"] == "MutatingWebhookConfiguration" && o["metadata"]["labels"]["istio.io/tag"] == name;
        tags.iter().find(of_tag).unwrap_or_else(|| panic!("no tag {name}")).clone()
    };
    for (name, hooks) in [("prod", 2), ("default", 4)] {
        let made = tag(name);
        assert_eq!(made["metadata"]["name"], format!("istio-revision-tag-{name}"));
        assert_eq!(made["metadata"]["labels"]["istio.io/rev"], "1-10-0");
        let made = made["webhooks"].as_array().unwrap();
        assert_eq!(made.len(), hooks, "{name}");
        assert!(made.iter().all(|hook| hook["clientConfig"]["service"]["name"] == "istiod-1-10-0"), "{name}");
        assert_eq!(made[0]["namespaceSelector"]["matchExpressions"][0]["values"], json!([name]));
    }
}
