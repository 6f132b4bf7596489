//! Pods against those that Istio's injector makes of the same manifests, where its test data is at hand: the folder
//! `$WEFT_ORACLES/inject`. What is compared is what a user or a cluster sees; images and the program's name are ours.
#![allow(clippy::unwrap_used)]

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use weft_inject::documents::Options;
use weft_inject::{Config, Injector, Values, inject_text};

/// Variables of Go programs.
const FOREIGN: [&str; 2] = ["GOMEMLIMIT", "GODEBUG"];

fn put(tree: &mut Value, path: &str, value: Value) {
    let place = path.split('.').fold(tree, |tree, name| &mut tree[name]);
    *place = value;
}

fn settings(case: &Value, folder: &std::path::Path) -> Value {
    let mut tree = json!({});
    if let Some(file) = case["operator_file"].as_str() {
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        let documents = text.split("\n---").map(|text| weft_k8s_api::yaml::value(text).unwrap());
        tree = documents.map(|document| document["spec"].clone()).find(|spec| !spec.is_null()).unwrap_or(json!({}));
    }
    for set in case["set"].as_array().unwrap() {
        let (path, value) = set.as_str().unwrap().split_once('=').unwrap();
        put(&mut tree, path, serde_json::from_str(value).unwrap_or_else(|_| value.into()));
    }
    tree
}

/// What the data set does not say, but its source does.
fn mesh(want: &str) -> Value {
    match want {
        "hello-tproxy.yaml.injected" => json!({"defaultConfig": {"interceptionMode": "TPROXY"}}),
        "traffic-annotations.yaml.injected" => {
            let key = "/etc/identity/client/keys/client-key.pem";
            json!({"defaultConfig": {"proxyMetadata": {"ISTIO_META_TLS_CLIENT_KEY": key}}})
        }
        "hello-otel-semconv.yaml.injected" => json!({"extensionProviders": [{"name": "otel", "opentelemetry": {
            "service": "otel-collector.observability.svc.cluster.local", "port": 4317,
            "serviceAttributeEnrichment": "OTEL_SEMANTIC_CONVENTIONS"}}]}),
        _ => Value::Null,
    }
}

/// The pod, or the template of one, in the first object that has it.
fn pod(text: &str) -> Value {
    let documents = weft_k8s_api::yaml::documents(text, "oracle").unwrap();
    let mut value = documents.into_iter().next().unwrap().object.to_value();
    // Istio puts the labels and annotations of a CronJob's pods on its Jobs, where they do nothing; here they are the pods'.
    let of_job = value["spec"]["jobTemplate"]["metadata"].clone();
    if of_job["annotations"].is_object() {
        value["spec"]["jobTemplate"]["spec"]["template"]["metadata"] = of_job;
    }
    for pointer in ["/spec/jobTemplate/spec/template", "/spec/template"] {
        if let Some(template) = value.pointer(pointer) {
            return template.clone();
        }
    }
    value
}

/// A quantity in its smallest unit, so that 2 and 2000m are the same.
fn quantity(text: &str) -> String {
    let units = [("m", 1_i64), ("Ki", 1024 * 1000), ("Mi", 1024 * 1024 * 1000), ("Gi", 1024 * 1024 * 1024 * 1000)];
    let found = units.iter().find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<i64>().ok()? * factor));
    found.or_else(|| Some(text.parse::<i64>().ok()? * 1000)).map_or_else(|| text.to_string(), |n| n.to_string())
}

/// Without what means nothing: nulls, empty maps, zeros of probes; quantities and program names in one form.
fn plain(name: &str, value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.clone(), plain(name, value)));
            let kept = fields.filter(|(name, value)| {
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                // A volume in memory says something; one with nothing in it is what a volume is anyway.
                !(empty || (name == "initialDelaySeconds" && value == 0))
            });
            let mut kept: Map<String, Value> = kept.collect();
            kept.sort_keys();
            kept.into()
        }
        Value::Array(items) => items.iter().map(|item| plain("", item)).collect(),
        Value::String(text) if matches!(name, "cpu" | "memory") => quantity(text).into(),
        Value::String(text) if text == "pilot-agent" => "weft-proxy".into(),
        Value::Number(number) if matches!(name, "cpu" | "memory") => quantity(&number.to_string()).into(),
        other => other.clone(),
    }
}

fn by<'a>(list: &'a Value, key: &str) -> BTreeMap<String, &'a Value> {
    let items = list.as_array().into_iter().flatten();
    items.map(|item| (item[key].as_str().unwrap_or_default().to_string(), item)).collect()
}

fn names(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|item| item["name"].as_str().unwrap().to_string()).collect()
}

fn compare(what: &str, got: &Value, want: &Value, wrong: &mut Vec<String>) {
    let empty = |value: &Value| value.is_null() || value.as_object().is_some_and(Map::is_empty);
    let (got, want) = (plain(what, got), plain(what, want));
    if got != want && !(empty(&got) && empty(&want)) {
        wrong.push(format!("{what}:\n      got  {got}\n      want {want}"));
    }
}

/// JSON in a text, compared as JSON.
fn read(text: &Value) -> Value {
    text.as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_else(|| text.clone())
}

fn env(container: &Value) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for variable in container["env"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().unwrap();
        if !FOREIGN.contains(&name) {
            let value = if variable["valueFrom"].is_object() { &variable["valueFrom"] } else { &variable["value"] };
            // Go leaves an empty value out.
            let value = if value.is_null() { json!("") } else { read(value) };
            all.insert(name.to_string(), plain("", &value));
        }
    }
    all
}

fn compare_container(name: &str, got: &Value, want: &Value, wrong: &mut Vec<String>) {
    let injected = name.starts_with("istio-");
    for field in [
        "readinessProbe",
        "livenessProbe",
        "startupProbe",
        "lifecycle",
        "securityContext",
        "restartPolicy",
        "resources",
        "args",
        "tty",
    ] {
        compare(&format!("{name}.{field}"), &got[field], &want[field], wrong);
    }
    compare(&format!("{name}.imagePullPolicy"), &got["imagePullPolicy"], &want["imagePullPolicy"], wrong);
    for (field, key) in [("volumeMounts", "mountPath"), ("ports", "name")] {
        let list = |container: &Value| json!(by(&container[field], key));
        compare(&format!("{name}.{field}"), &list(got), &list(want), wrong);
    }
    let (got_env, want_env) = (env(got), env(want));
    if got_env != want_env {
        for name in got_env.keys().chain(want_env.keys()).collect::<std::collections::BTreeSet<_>>() {
            if got_env.get(name) != want_env.get(name) {
                wrong.push(format!(
                    "env {name}:\n      got  {:?}\n      want {:?}",
                    got_env.get(name),
                    want_env.get(name)
                ));
            }
        }
    }
    if injected {
        // Hub, tag and the usual name are ours; a name that was asked for is not.
        let own = |image: &Value| {
            image.as_str().unwrap_or_default().replace("registry.istio.io/testing", "").replace("latest", "")
        };
        let wanted = own(&want["image"]);
        let asked = !wanted.contains("proxyv2");
        if asked && !got["image"].as_str().unwrap_or_default().contains(wanted.trim_matches([':', '/'])) {
            wrong.push(format!("{name}.image: got {} want {}", got["image"], want["image"]));
        }
    } else {
        compare(&format!("{name}.image"), &got["image"], &want["image"], wrong);
    }
}

fn differences(got: &Value, want: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    for field in ["containers", "initContainers"] {
        let (got, want) = (&got["spec"][field], &want["spec"][field]);
        if names(got) != names(want) {
            wrong.push(format!("{field}: got {:?} want {:?}", names(got), names(want)));
        }
        let wanted = by(want, "name");
        for (name, container) in by(got, "name") {
            if let Some(want) = wanted.get(&name) {
                compare_container(&name, container, want, &mut wrong);
            }
        }
    }
    compare(
        "volumes",
        &json!(by(&got["spec"]["volumes"], "name")),
        &json!(by(&want["spec"]["volumes"], "name")),
        &mut wrong,
    );
    compare("securityContext", &got["spec"]["securityContext"], &want["spec"]["securityContext"], &mut wrong);
    compare("labels", &got["metadata"]["labels"], &want["metadata"]["labels"], &mut wrong);
    let annotations = |pod: &Value| {
        let mut all = pod["metadata"]["annotations"].clone();
        let mut status = read(&all["sidecar.istio.io/status"]);
        let mut volumes = status["volumes"].as_array().cloned().unwrap_or_default();
        volumes.sort_by_key(Value::to_string);
        status["volumes"] = volumes.into();
        all["sidecar.istio.io/status"] = status;
        // Kept for the injector itself; its form is nobody's business, but that something is kept is.
        let kept = all["proxy.istio.io/overrides"].is_string();
        all["proxy.istio.io/overrides"] = kept.into();
        all
    };
    compare("annotations", &annotations(got), &annotations(want), &mut wrong);
    wrong
}

/// Where another result is wanted, and why:
///
/// - The pod of `merge-probers` was injected before, by an older injector and as an ordinary container. Istio carries fields of
///   that container along when the proxy moves to the init containers; here a second injection starts from the user's pod.
/// - `only-proxy-container` as a native sidecar has no container left, and the API server refuses such a pod; here the proxy
///   stays where it is.
fn left_over(want: &str, wrong: &str) -> bool {
    const CARRIED: [&str; 6] = [
        "istio-proxy.readinessProbe:",
        "istio-proxy.lifecycle:",
        "istio-proxy.args:",
        "env ISTIO_META_APP_CONTAINERS:",
        "env ISTIO_META_POD_PORTS:",
        "env JWT_POLICY:",
    ];
    // The annotation that lists them differs as the lists do.
    const PLACED: [&str; 3] = ["containers:", "initContainers:", "annotations:"];
    let fields: &[&str] = match want {
        "merge-probers.yaml.injected" => &CARRIED,
        "only-proxy-container.yaml.injected" => &PLACED,
        _ => &[],
    };
    fields.iter().any(|field| wrong.starts_with(field))
}

#[test]
fn pods_are_those_of_istio() {
    let Some(folder) = std::env::var_os("WEFT_ORACLES").map(PathBuf::from) else {
        eprintln!("skipped: WEFT_ORACLES does not say where the data of Istio's injector is");
        return;
    };
    let folder = folder.join("inject");
    let cases: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("cases.json")).unwrap()).unwrap();
    let (mut all, mut seen) = (Vec::new(), 0);
    for case in cases.as_array().unwrap() {
        let input = std::fs::read_to_string(folder.join(case["in"].as_str().unwrap())).unwrap();
        let want_name = case["want"].as_str().unwrap_or_default();
        let want = case["want"].as_str().map(|name| std::fs::read_to_string(folder.join(name)).unwrap());
        let mut tree = settings(case, &folder);
        if want_name.contains("fips") {
            put(&mut tree, "values.pilot.env.COMPLIANCE_POLICY", "fips-140-3".into());
        }
        let values = Values::from_installation(&tree);
        let injector = Injector { config: Config::from_values(&values).unwrap(), values, mesh: mesh(want_name) };
        // Whether the cluster runs native sidecars is in the expected pod, where it is not in the input.
        let native_sidecars = want.as_deref().is_none_or(|want| want.contains("restartPolicy: Always"));
        let mut options = Options { native_sidecars, ..Options::default() };
        if want_name.contains("openshift") {
            let range = [("openshift.io/sa.scc.uid-range".to_string(), "1000620000/10000".to_string())];
            options.namespace_annotations.insert("test-ns".into(), range.into());
        }
        let made = inject_text(&injector, &input, &options);
        let wrong = match (case["error_contains"].as_str(), made, want) {
            (Some(text), Err(error), _) if error.to_lowercase().contains(text) => Vec::new(),
            (Some(text), made, _) => vec![format!("should be refused with {text}: {made:?}")],
            (None, Ok(made), Some(want)) => {
                let mut wrong = differences(&pod(&made.text), &pod(&want));
                wrong.retain(|wrong| !left_over(want_name, wrong));
                wrong
            }
            (None, made, _) => vec![format!("{made:?}")],
        };
        seen += 1;
        if !wrong.is_empty() {
            all.push(format!("{} → {want_name}\n    {}", case["in"], wrong.join("\n    ")));
        }
    }
    assert!(all.is_empty(), "{} of {seen} differ:\n{}", all.len(), all.join("\n"));
    println!("{seen} pods are the same");
}
