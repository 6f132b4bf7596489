//! Manifests: what is there by setting, that it is what Kubernetes takes, and that it says what it must.

use super::*;
use weft_k8s_api::{Object, validate};

fn settings(file: Option<&str>, sets: &[&str]) -> anyhow::Result<Settings> {
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_string()).collect();
    let files = file.map(|text| ("file".to_string(), weft_k8s_api::yaml::value(text).unwrap()));
    Settings::new(&Operator::merge(&files.into_iter().collect::<Vec<_>>(), &sets, None)?)
}

fn made(sets: &[&str]) -> Vec<Value> {
    objects(&settings(None, sets).unwrap()).unwrap()
}

fn made_of(file: &str) -> Vec<Value> {
    objects(&settings(Some(file), &[]).unwrap()).unwrap()
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
        (vec!["components.ingressGateways[0].enabled=false"], vec!["istiod"], vec!["istio-ingressgateway"]),
        (
            vec!["components.egressGateways.[name:istio-egressgateway].enabled=true"],
            vec!["istio-egressgateway"],
            vec![],
        ),
        (
            vec!["components.ingressGateways[1].name=ilb", "components.ingressGateways[1].namespace=edge"],
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
        ("components.ingressGateways[1].enabled=true", "components.ingressGateways[1]: the name is missing"),
        ("meshConfig.accessLogFil=x", "did you mean accessLogFile"),
        ("values.global.monitoringPort=none", "must be a port"),
        ("values.pilot.keepaliveMaxServerConnectionAge=soon", "keepaliveMaxServerConnectionAge"),
        ("values.pilot.traceSampling=101", "from 0 to 100"),
        ("profile=external", "remotePilotAddress"),
    ] {
        let error = settings(None, &[bad]).and_then(|s| objects(&s)).map(|all| all.len()).map_err(|e| format!("{e:#}"));
        assert!(error.as_ref().err().is_some_and(|e| e.contains(said)), "{bad}: {error:?}");
    }
}

#[test]
fn everything_is_valid() {
    for sets in [
        vec!["profile=demo"],
        vec!["revision=canary", "profile=demo", "namespace=mesh"],
        vec!["profile=external", "values.global.remotePilotAddress=10.0.0.9"],
        vec!["profile=preview"],
        vec!["profile=openshift"],
    ] {
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

#[test]
fn the_documents_patch() {
    let all = made_of(include_str!("../../../../samples/operator/patched-pilot.yaml"));
    let deployment = find(&all, "Deployment", "istiod");
    assert_eq!(deployment["metadata"]["namespace"], "istio-control");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let arguments: Vec<&str> = container["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
    assert!(arguments.contains(&"60m") && !arguments.contains(&"30m"), "{arguments:?}");
    let ports: Vec<u64> =
        container["ports"].as_array().unwrap().iter().map(|p| p["containerPort"].as_u64().unwrap()).collect();
    assert!(ports.contains(&1234) && !ports.contains(&8080), "{ports:?}");
    let env = container["env"].as_array().unwrap();
    let namespace = env.iter().find(|e| e["name"] == "POD_NAMESPACE").unwrap();
    assert_eq!(namespace["valueFrom"], json!({"fieldRef": {"apiVersion": "v2", "fieldPath": "metadata.myPath"}}));
    assert!(env.iter().all(|e| e["name"] != "REVISION") && container["securityContext"].is_null());
    assert_eq!(container["image"], "docker.io/istio/weftd:1.1.6");
    let ports = &find(&all, "Service", "istiod")["spec"]["ports"];
    assert_eq!(ports[0], json!({"name": "https-dns", "port": 11111, "targetPort": 15012, "protocol": "TCP"}));
}

#[test]
fn what_the_flags_say_reaches_weftd_and_the_mesh() {
    let container =
        |sets: &[&str]| find(&made(sets), "Deployment", "istiod")["spec"]["template"]["spec"]["containers"][0].clone();
    let arguments = |sets: &[&str]| container(sets)["args"].to_string();
    assert!(arguments(&[]).contains(r#""--keepaliveMaxServerConnectionAge","30m""#));
    assert!(!container(&[])["env"].to_string().contains("WEFT_LOG"));
    let level = container(&["values.global.logging.level=debug"])["env"].to_string();
    assert!(level.contains(r#"{"name":"WEFT_LOG","value":"debug"}"#), "{level}");
    // What the injector mounts is what weftd writes.
    assert!(!container(&[])["env"].to_string().contains("PILOT_CRL_CONFIGMAP"));
    let lists = container(&["values.pilot.crlConfigMapName=lists"])["env"].to_string();
    assert!(lists.contains(r#"{"name":"PILOT_CRL_CONFIGMAP","value":"lists"}"#), "{lists}");
    assert!(arguments(&["values.global.monitoringPort=15099"]).contains("0.0.0.0:15099"));
    let mesh = |sets: &[&str]| {
        let all = made(sets);
        weft_k8s_api::yaml::value(find(&all, "ConfigMap", "istio")["data"]["mesh"].as_str().unwrap()).unwrap()
    };
    assert_eq!(mesh(&["values.pilot.traceSampling=0.1"])["defaultConfig"]["tracing"]["sampling"], 0.1);
    let own = ["values.pilot.traceSampling=0.1", "meshConfig.defaultConfig.tracing.sampling=7"];
    assert_eq!(mesh(&own)["defaultConfig"]["tracing"]["sampling"], 7);
    let capture = mesh(&["meshConfig.defaultConfig.proxyMetadata.ISTIO_META_DNS_CAPTURE=true"]);
    assert_eq!(capture["defaultConfig"]["proxyMetadata"]["ISTIO_META_DNS_CAPTURE"], "true");
}

#[test]
fn gateways_of_ones_own() {
    let all = made_of(
        "spec:\n  profile: empty\n  revision: 1-8-0\n  components:\n    ingressGateways:\n    - name: ilb-gateway\n      namespace: user-ns\n      \
         enabled: true\n      tag: '9'\n      k8s:\n        resources: {requests: {cpu: 200m}}\n        serviceAnnotations: {lb: internal}\n        \
         service: {ports: [{port: 8060, targetPort: 8060, name: tcp-citadel-grpc-tls}, {port: 5353, name: tcp-dns}]}\n  \
         values: {gateways: {istio-ingressgateway: {debug: error, injectionTemplate: mine}}}\nkind: IstioOperator\napiVersion: install.istio.io/v1alpha1\n",
    );
    assert!(all.iter().all(|object| object["metadata"]["namespace"] == "user-ns"));
    let service = find(&all, "Service", "ilb-gateway");
    assert_eq!(
        (&service["metadata"]["annotations"]["lb"], &service["spec"]["ports"][1]["port"]),
        (&json!("internal"), &json!(5353))
    );
    let template = &find(&all, "Deployment", "ilb-gateway")["spec"]["template"];
    assert_eq!(template["spec"]["containers"][0]["resources"], json!({"requests": {"cpu": "200m"}}));
    for (name, value) in [
        ("inject.istio.io/templates", "mine"),
        ("sidecar.istio.io/logLevel", "error"),
        ("sidecar.istio.io/proxyImage", "localhost/weft/weft-proxy:9"),
    ] {
        assert_eq!(template["metadata"]["annotations"][name], value, "{name}");
    }
    assert_eq!(template["metadata"]["labels"]["service.istio.io/canonical-revision"], "1-8-0");
}

#[test]
fn a_profile_of_a_folder_is_as_a_file_before_the_others() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("profiles")).unwrap();
    let custom = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  tag: mine\n  components:\n    pilot: {k8s: {replicaCount: 3}}\n  meshConfig: {accessLogFile: /a}\n";
    let file = folder.path().join("profiles/custom1.yaml");
    std::fs::write(&file, custom).unwrap();
    let user = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  meshConfig: {accessLogFile: /b, accessLogEncoding: JSON}\n  values: {global: {network: net1}}\n";
    let read = |text: &str| ("f".to_string(), weft_k8s_api::yaml::value(text).unwrap());
    let written = |files: &[(String, Value)], sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|s| (*s).to_string()).collect();
        let made =
            objects(&Settings::new(&Operator::merge(files, &sets, Some(folder.path())).unwrap()).unwrap()).unwrap();
        weft_k8s_api::yaml::write(&made).unwrap()
    };
    let by_name = written(&[read(user)], &["profile=custom1"]);
    assert_eq!(by_name, written(&[read(custom), read(user)], &[]));
    assert!(by_name.contains("replicas: 3") && by_name.contains("weftd:mine") && by_name.contains("/b"));
}

#[test]
fn lists_of_the_command_line_reach_the_objects() {
    let all = made(&[
        "values.revisionTags={prod,stage}",
        "values.global.imagePullSecrets={regcred}",
        "profile=demo",
        "components.cni.enabled=true",
    ]);
    for tag in ["prod", "stage"] {
        assert!(has(&all, "MutatingWebhookConfiguration", &format!("istio-revision-tag-{tag}")), "{tag}");
    }
    let accounts: Vec<&Value> = all.iter().filter(|object| object["kind"] == "ServiceAccount").collect();
    assert_eq!(accounts.len(), 4);
    for account in accounts {
        assert_eq!(account["imagePullSecrets"], json!([{"name": "regcred"}]), "{account}");
    }
    assert!(made(&[]).iter().all(|object| object["imagePullSecrets"].is_null()));
}

#[test]
fn tags_with_the_revision() {
    let all = made_of(
        "kind: IstioOperator\napiVersion: install.istio.io/v1alpha1\nspec:\n  values: {revision: 1-8-0, revisionTags: [prod]}\n",
    );
    assert!(has(&all, "Deployment", "istiod-1-8-0"));
    let hooks = &find(&all, "MutatingWebhookConfiguration", "istio-revision-tag-prod")["webhooks"];
    assert_eq!(hooks[0]["clientConfig"]["service"]["name"], "istiod-1-8-0");
    assert!(has(&all, "ClusterRoleBinding", "istio-revision-tag-prod"));
}
