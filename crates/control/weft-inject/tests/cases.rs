//! The table of `cases.yaml`. A case says what is asked for (`kind`, `labels`, `annotations`, `containers`, `initContainers`,
//! `volumes`, `spec`, `owner`) and the settings (`set`: installer's values by path, `mesh`, `native`, `variables`, `namespace`,
//! `namespaceAnnotations`, `proxyConfigs`), and what comes out: `want`, `refused` or `skipped` (a part of the reason).
//!
//! Every pod that is injected is injected once more, and must stay as it is.
#![allow(clippy::unwrap_used)]

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use weft_inject::documents::Options;
use weft_inject::{Config, Decision, Injector, Owner, Request, Values, inject_text, patch};

fn put(tree: &mut Value, path: &str, value: &Value) {
    *path.split('.').fold(tree, |tree, name| &mut tree[name]) = value.clone();
}

fn strings(value: &Value) -> BTreeMap<String, String> {
    let fields = value.as_object().into_iter().flatten();
    fields.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_string())).collect()
}

fn pod(case: &Value) -> Value {
    let mut metadata = json!({"name": "app", "namespace": namespace(case)});
    for field in ["labels", "annotations"] {
        if case[field].is_object() {
            metadata[field] = case[field].clone();
        }
    }
    if let Some(owner) = case["owner"].as_object() {
        let mut reference = owner.clone();
        reference.extend([("controller".to_string(), json!(true)), ("uid".to_string(), json!("u"))]);
        metadata["ownerReferences"] = json!([reference]);
        metadata["generateName"] = format!("{}-", owner["name"].as_str().unwrap()).into();
        metadata.as_object_mut().unwrap().shift_remove("name");
    }
    let mut spec = json!({"containers": [{"name": "app", "image": "app:1"}]});
    for field in ["containers", "initContainers", "volumes"] {
        if case[field].is_array() {
            spec[field] = case[field].clone();
        }
    }
    for (field, value) in case["spec"].as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
}

fn namespace(case: &Value) -> &str {
    case["namespace"].as_str().unwrap_or("shop")
}

fn injector(case: &Value) -> Result<Injector, String> {
    let mut tree = json!({});
    for (path, value) in case["set"].as_object().into_iter().flatten() {
        put(&mut tree, path, value);
    }
    let values = Values::new(&tree);
    Ok(Injector { config: Config::from_values(&values)?, values, mesh: case["mesh"].clone() })
}

fn request<'a>(case: &'a Value, pod: Value) -> Request<'a> {
    let owner = case["kind"].as_str().map(|kind| Owner {
        api_version: if kind == "Job" { "batch/v1" } else { "apps/v1" }.into(),
        kind: kind.into(),
        name: "app".into(),
        namespace: namespace(case).into(),
    });
    Request {
        pod,
        namespace: namespace(case),
        namespace_annotations: strings(&case["namespaceAnnotations"]),
        owner,
        proxy_configs: case["proxyConfigs"].as_array().map_or(&[], Vec::as_slice),
        native_sidecars: case["native"] == true,
        variables: strings(&case["variables"]),
    }
}

fn named<'a>(pod: &'a Value, lists: &[&str], names: &[&str]) -> &'a Value {
    let all = lists.iter().flat_map(|list| pod["spec"][*list].as_array().into_iter().flatten());
    all.into_iter().find(|item| names.iter().any(|name| item["name"] == *name)).unwrap_or(&Value::Null)
}

/// What stands at a place of `want`; nothing is null.
fn at(pod: &Value, place: &str) -> Value {
    let lists = ["containers", "initContainers"];
    let proxy = named(pod, &lists, &["istio-proxy"]);
    let init = named(pod, &lists, &["istio-init", "istio-validation"]);
    let (what, rest) = place.split_once('/').unwrap_or((place, ""));
    let within = |value: &Value| value.pointer(&format!("/{rest}")).cloned().unwrap_or(Value::Null);
    let variable = |name: &str| {
        let found = proxy["env"].as_array().into_iter().flatten().find(|variable| variable["name"] == name)?;
        Some(found["value"].clone())
            .filter(|value| !value.is_null())
            .or(Some(found["valueFrom"]["fieldRef"]["fieldPath"].clone()))
    };
    let json = |text: Option<Value>| {
        text.and_then(|text| serde_json::from_str::<Value>(text.as_str()?).ok()).unwrap_or(Value::Null)
    };
    let args = || init["args"].as_array().cloned().unwrap_or_default();
    match what {
        "names" => match pod["spec"][rest].as_array() {
            Some(items) => items.iter().map(|item| item["name"].clone()).collect(),
            None => Value::Null,
        },
        "labels" | "annotations" => pod["metadata"][what][rest].clone(),
        "spec" => within(&pod["spec"]),
        "proxy" => within(proxy),
        "init" => within(init),
        "app" => within(named(pod, &lists, &["app"])),
        "env" => variable(rest).unwrap_or(Value::Null),
        "config" => json(variable("PROXY_CONFIG"))[rest].clone(),
        "probers" => variable("ISTIO_KUBE_APP_PROBERS").unwrap_or(Value::Null),
        "status" => json(Some(pod["metadata"]["annotations"]["sidecar.istio.io/status"].clone()))[rest].clone(),
        "arg" => {
            args().iter().position(|arg| arg == rest).and_then(|at| args().get(at + 1).cloned()).unwrap_or(Value::Null)
        }
        "flag" => args().contains(&json!(rest)).into(),
        "volume" => {
            let mut volume = named(pod, &["volumes"], &[rest]).clone();
            if let Some(fields) = volume.as_object_mut() {
                fields.shift_remove("name");
            }
            volume
        }
        "mount" => {
            let mounts = proxy["volumeMounts"].as_array().into_iter().flatten();
            mounts
                .into_iter()
                .find(|mount| mount["mountPath"] == rest)
                .map_or(Value::Null, |mount| mount["name"].clone())
        }
        other => panic!("no place {other:?}"),
    }
}

/// Texts that are JSON are compared as JSON: the order of fields means nothing.
fn same(got: &Value, want: &Value) -> bool {
    let read = |value: &Value| {
        value.as_str().filter(|t| t.starts_with(['{', '['])).and_then(|t| serde_json::from_str::<Value>(t).ok())
    };
    match (read(got), read(want)) {
        (Some(got), Some(want)) => got == want,
        _ => got == want,
    }
}

fn check(case: &Value) -> Result<(), String> {
    let injector = match (injector(case), case["refused"].as_str()) {
        (Ok(injector), _) => injector,
        (Err(error), Some(said)) if error.contains(said) => return Ok(()),
        (Err(error), _) => return Err(error),
    };
    let before = pod(case);
    let decision = injector.decide(&before, namespace(case));
    match (&decision, case["skipped"].as_str()) {
        (Decision::Skip(why), Some(said)) if why.contains(said) => return Ok(()),
        (Decision::Inject, None) => {}
        _ => return Err(format!("decided {decision:?}")),
    }
    let made = injector.inject(&request(case, before.clone()));
    if let Some(said) = case["refused"].as_str() {
        return match made {
            Err(refusal) if refusal.to_string().contains(said) => Ok(()),
            other => Err(format!("should be refused with {said}: {other:?}")),
        };
    }
    let made = made.map_err(|refusal| refusal.to_string())?;
    let typed: Result<weft_k8s_api::k8s_openapi::api::core::v1::Pod, _> = serde_json::from_value(made.clone());
    typed.map_err(|error| format!("is no pod: {error}"))?;
    for (place, want) in case["want"].as_object().ok_or("wants nothing")? {
        let got = at(&made, place);
        if !same(&got, want) {
            return Err(format!("{place}: got {got} want {want}"));
        }
    }
    // The patch makes the same pod, and a second injection nothing new.
    let mut patched = before.clone();
    apply(&mut patched, &patch(&before, &made));
    if patched != made {
        return Err("the patch makes another pod".into());
    }
    let again = injector.inject(&request(case, made.clone())).map_err(|refusal| format!("again: {refusal}"))?;
    if again != made {
        return Err(format!("a second injection changes the pod:\n{}\n{}", sorted(&made), sorted(&again)));
    }
    Ok(())
}

fn apply(target: &mut Value, patch: &Value) {
    for operation in patch.as_array().unwrap() {
        let path: Vec<String> = operation["path"].as_str().unwrap()[1..].split('/').map(str::to_string).collect();
        let (last, parents) = path.split_last().unwrap();
        let place = parents.iter().fold(&mut *target, |place, name| &mut place[name.as_str()]).as_object_mut().unwrap();
        match operation["op"].as_str().unwrap() {
            "add" => drop(place.insert(last.clone(), operation["value"].clone())),
            "remove" => drop(place.shift_remove(last)),
            other => panic!("{other}"),
        }
    }
}

fn sorted(value: &Value) -> String {
    let mut fields: Map<String, Value> = value.as_object().unwrap().clone();
    fields.sort_keys();
    Value::Object(fields).to_string()
}

#[test]
fn every_case() {
    let text = include_str!("cases.yaml");
    let cases = weft_k8s_api::yaml::value(text).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 120, "{}", cases.len());
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| check(case).err().map(|error| format!("{}: {error}", case["name"].as_str().unwrap())))
        .collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn by_hand_the_policy_and_the_selectors_do_not_count() {
    let case = json!({"set": {
        "global.proxy.autoInject": "disabled",
        "sidecarInjectorWebhook.neverInjectSelector": [{"matchLabels": {"app": "never"}}],
    }});
    let injector = injector(&case).unwrap();
    let pod = |name: &str, inject: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}{inject}}}\n\
             spec:\n  containers: [{{name: app, image: app}}]\n"
        )
    };
    for (name, inject, injected) in
        [("plain", "", true), ("never", "", true), ("declines", ", sidecar.istio.io/inject: 'false'", false)]
    {
        let made = inject_text(&injector, &pod(name, inject), &Options::default()).unwrap();
        assert_eq!(made.text.contains("istio-proxy"), injected, "{name}: {:?}", made.warnings);
    }
}
