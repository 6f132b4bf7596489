//! Server-side apply on Kubernetes' own kinds, on custom ones and on those without a schema.

use super::*;
use weft_k8s_api::kinds::by_any_name;

fn writer(manager: &str) -> Writer {
    Writer {
        manager: manager.into(),
        api_version: "v1".into(),
        sub: String::new(),
        time: "2026-01-01T00:00:00Z".into(),
    }
}

fn kind(name: &str) -> Type<'static> {
    Type::of(by_any_name(name).unwrap(), "v1", None)
}

fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data})
}

fn managers(object: &Value) -> Vec<String> {
    let list = object["metadata"]["managedFields"].as_array().unwrap();
    list.iter()
        .map(|e| format!("{}:{}:{}", e["manager"].as_str().unwrap(), e["operation"].as_str().unwrap(), e["fieldsV1"]))
        .collect()
}

#[test]
fn own_fields_come_and_go() {
    let cm = kind("cm");
    let first = apply(cm, &Value::Null, &map(json!({"a": "1", "b": "1"})), &writer("one"), false).unwrap();
    assert_eq!(managers(&first), [r#"one:Apply:{"f:data":{"f:a":{},"f:b":{}}}"#]);
    let second = apply(cm, &first, &map(json!({"c": "1"})), &writer("two"), false).unwrap();
    assert_eq!(second["data"], json!({"a": "1", "b": "1", "c": "1"}));
    let third = apply(cm, &second, &map(json!({"a": "2"})), &writer("one"), false).unwrap();
    assert_eq!(third["data"], json!({"a": "2", "c": "1"}), "b is no longer wanted; c is another's");
    let none = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    let fourth = apply(cm, &third, &none, &writer("one"), false).unwrap();
    assert_eq!(fourth["data"], json!({"c": "1"}));
    let fifth = apply(cm, &fourth, &none, &writer("two"), false).unwrap();
    assert_eq!(fifth.get("data"), None, "an emptied map goes with its last field");
}

#[test]
fn conflicts() {
    let cm = kind("cm");
    let first = apply(cm, &Value::Null, &map(json!({"a": "1"})), &writer("one"), false).unwrap();
    let same = apply(cm, &first, &map(json!({"a": "1"})), &writer("two"), false).unwrap();
    assert_eq!(managers(&same).len(), 2, "equal values are shared");
    let clash = apply(cm, &first, &map(json!({"a": "2"})), &writer("two"), false).unwrap_err();
    assert_eq!(clash, Refusal::Conflicts(vec![("\"one\"".into(), vec![".data.a".into()])]));
    let forced = apply(cm, &first, &map(json!({"a": "2"})), &writer("two"), true).unwrap();
    assert_eq!(forced["data"]["a"], "2");
    assert_eq!(managers(&forced), [r#"two:Apply:{"f:data":{"f:a":{}}}"#]);
    let shared = apply(cm, &same, &json!({"metadata": {"name": "a"}}), &writer("one"), false).unwrap();
    assert_eq!(shared["data"]["a"], "1", "two still wants it");
}

#[test]
fn lists_by_key() {
    let deploy = kind("deploy");
    let object = |containers: Value| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
               "spec": {"template": {"spec": {"containers": containers}}}})
    };
    let list = |v: &Value| v["spec"]["template"]["spec"]["containers"].clone();
    let app = object(json!([{"name": "app", "image": "1", "ports": [{"containerPort": 80}]}, {"name": "log"}]));
    let first = apply(deploy, &Value::Null, &app, &writer("one"), false).unwrap();
    let sidecar =
        object(json!([{"name": "proxy", "image": "p"}, {"name": "app", "env": [{"name": "X", "value": "1"}]}]));
    let second = apply(deploy, &first, &sidecar, &writer("two"), false).unwrap();
    let names: Vec<_> = list(&second).as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names.len(), 3);
    let third = apply(deploy, &second, &object(json!([{"name": "app", "image": "2"}])), &writer("one"), false).unwrap();
    let containers = list(&third);
    let app = containers.as_array().unwrap().iter().find(|c| c["name"] == "app").unwrap();
    assert_eq!(*app, json!({"name": "app", "image": "2", "env": [{"name": "X", "value": "1"}]}), "ports are gone");
    assert_eq!(containers.as_array().unwrap().len(), 2, "log is gone, proxy is another's");
    let fields = managers(&second).join("\n");
    assert!(fields.contains(r#""k:{\"containerPort\":80,\"protocol\":\"TCP\"}""#), "{fields}");
}

#[test]
fn items_with_the_same_key_stay_until_they_are_applied() {
    let kind = Type::of(by_any_name("deployment").unwrap(), "v1", None);
    let deployment = |env: Value| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"template": {"spec": {
            "containers": [{"name": "c", "env": env}]}}}})
    };
    let env = |object: &Value| object.pointer("/spec/template/spec/containers/0/env").cloned().unwrap();
    let twice = json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]);
    let live = deployment(twice.clone());
    let merged = apply(kind, &live, &deployment(json!([{"name": "B", "value": "3"}])), &writer("me"), false).unwrap();
    assert_eq!(env(&merged).as_array().unwrap()[..2], twice.as_array().unwrap()[..]);
    let one = json!([{"name": "A", "value": "3"}]);
    let mine = apply(kind, &live, &deployment(one.clone()), &writer("me"), true).unwrap();
    assert_eq!(env(&mine), one);
}

#[test]
fn updates_take_fields_over() {
    let cm = kind("cm");
    let object = |v: Value| -> Object { serde_json::from_value(v).unwrap() };
    let mut made = object(map(json!({"a": "1", "b": "1"})));
    note_update(cm, None, &mut made, &writer("create"));
    let mut changed = made.clone();
    changed.body.insert("data".into(), json!({"a": "2"}));
    note_update(cm, Some(&made), &mut changed, &writer("edit"));
    assert_eq!(managers(&made.to_value()), [r#"create:Update:{"f:data":{"f:a":{},"f:b":{}}}"#]);
    assert_eq!(managers(&changed.to_value()), [r#"edit:Update:{"f:data":{"f:a":{}}}"#], "b is gone, a is another's");
    let clash = apply(cm, &changed.to_value(), &map(json!({"a": "3"})), &writer("one"), false).unwrap_err();
    assert_eq!(clash, Refusal::Conflicts(vec![("\"edit\" using v1".into(), vec![".data.a".into()])]));
    let mut same = changed.clone();
    note_update(cm, Some(&changed), &mut same, &writer("third"));
    assert_eq!(same, changed, "nothing changed, nobody noted");
}

#[test]
fn objects_of_nobody_and_unknown_kinds() {
    let vs = kind("vs");
    let live = json!({"metadata": {"name": "a"}, "spec": {"hosts": ["a"], "http": [{"name": "x"}]}});
    let wanted = json!({"metadata": {"name": "a"}, "spec": {"http": [{"name": "y"}]}});
    let clash = apply(vs, &live, &wanted, &writer("one"), false).unwrap_err();
    assert_eq!(clash, Refusal::Conflicts(vec![("\"before-first-apply\" using v1".into(), vec![".spec.http".into()])]));
    let forced = apply(vs, &live, &wanted, &writer("one"), true).unwrap();
    assert_eq!(forced["spec"], json!({"hosts": ["a"], "http": [{"name": "y"}]}), "lists without keys are one value");
}

#[test]
fn many_updaters_are_put_together() {
    let cm = kind("cm");
    let mut object: Object = serde_json::from_value(map(json!({}))).unwrap();
    for n in 0..40 {
        let old = object.clone();
        let data = object.body.get_mut("data").unwrap();
        data[format!("k{n}")] = "1".into();
        note_update(cm, Some(&old), &mut object, &writer(&format!("m{n}")));
    }
    let all = managers(&object.to_value());
    assert_eq!(all.len(), MAX_UPDATERS);
    assert!(all[0].starts_with("ancient-changes") && all[0].contains("f:k0"), "{}", all[0]);
}
