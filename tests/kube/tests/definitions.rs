//! Kinds that users define: what a definition may say, and what its schema and its rules make of objects; and policies in the
//! same language about kinds of any maker. The same requests go to both servers; they must store the same, refuse the same, and name the same fields with the same words.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use weft_kube_tests::{Cluster, Kind, eventually};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.test/v1/namespaces/default/widgets";

/// Both servers.
struct Pair([Cluster; 2]);

impl Pair {
    async fn start() -> Result<Self> {
        Ok(Self([Cluster::start(Kind::Embedded).await?, Cluster::start(Kind::Real).await?]))
    }

    async fn both(&self, method: &str, path: &str, body: Option<&Value>) -> Result<[(u16, Value); 2]> {
        let text = body.map(Value::to_string);
        let of_patch = if path.contains("fieldManager") { "application/apply-patch+yaml" } else { MERGE };
        let content_type = if method == "PATCH" { of_patch } else { "application/json" };
        let body = text.as_deref().map(|text| (content_type, text));
        let [embedded, real] = &self.0;
        Ok([embedded.rest(method, path, body).await?, real.rest(method, path, body).await?])
    }

    /// Waits until both serve a collection.
    async fn served(&self, path: &str) -> Result<()> {
        for cluster in &self.0 {
            eventually("the kind is served", async || {
                let (status, body) = cluster.rest("GET", path, None).await?;
                ensure!(status == 200, "{body}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}

const MERGE: &str = "application/merge-patch+json";

/// What counts of an answer: the code, and the object's content or the causes of a refusal.
fn verdict((status, body): &(u16, Value), words: bool) -> String {
    if *status < 300 {
        return format!("{status} {} {}", sorted(&body["spec"]), sorted(&body["status"]));
    }
    let causes: Vec<&Value> = body.pointer("/details/causes").and_then(Value::as_array).into_iter().flatten().collect();
    // Ours names the field that fits no alternative; Kubernetes does not, and lists what each alternative would want.
    if causes.iter().any(|cause| cause["message"].to_string().contains(" must validate ")) {
        return format!("{status} {} fits no alternative", body["reason"]);
    }
    let shown: BTreeSet<String> = causes
        .iter()
        .map(|cause| match words {
            true => format!("{} [{}] {}", cause["field"], cause["reason"], cause["message"]),
            false => cause["field"].to_string(),
        })
        .collect();
    format!("{status} {} {shown:#?}", body["reason"])
}

/// The same value with its fields in the order of the alphabet.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let all: std::collections::BTreeMap<_, _> =
                fields.iter().map(|(name, value)| (name.clone(), sorted(value))).collect();
            all.into_iter().collect()
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

/// Where the two differ, in words.
fn difference(what: &str, answers: &[(u16, Value); 2], words: bool) -> Option<String> {
    let [embedded, real] = [verdict(&answers[0], words), verdict(&answers[1], words)];
    let told =
        |answer: &(u16, Value)| answer.1["message"].as_str().unwrap_or_default().chars().take(600).collect::<String>();
    (embedded != real).then(|| {
        format!("{what}:\n  embedded: {embedded}\n    {}\n  real: {real}\n    {}", told(&answers[0]), told(&answers[1]))
    })
}

fn widget(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "example.test/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

/// The schema of a widget's spec.
fn schema() -> Value {
    let text = || json!({"type": "string"});
    json!({"type": "object", "required": ["size"], "properties": {
        "size": {"type": "integer", "minimum": 0, "maximum": 100},
        "max": {"type": "integer", "default": 50},
        "mode": {"type": "string", "enum": ["Fast", "Slow"], "default": "Slow"},
        "port": {"x-kubernetes-int-or-string": true, "x-kubernetes-validations": [
            {"rule": "type(self) == int ? self > 0 : self.endsWith('%')", "message": "a number or a percentage"}]},
        "url": {"type": "string", "x-kubernetes-validations": [{"rule": "isURL(self) && url(self).getScheme() == 'https'"}]},
        "wait": {"type": "string", "format": "duration", "x-kubernetes-validations": [
            {"rule": "self <= duration('1h')", "message": "at most 1h"}]},
        "host": {"type": "string", "maxLength": 20, "x-kubernetes-validations": [
            {"rule": "self.matches('^[a-z]+(\\\\.[a-z]+)*$')", "message": "a host name", "reason": "FieldValueForbidden"}]},
        "memory": {"type": "string", "x-kubernetes-validations": [
            {"rule": "isQuantity(self) && quantity(self).isLessThan(quantity('1Gi'))", "message": "less than 1Gi"}]},
        "address": {"type": "string", "x-kubernetes-validations": [
            {"rule": "isIP(self) && cidr('10.0.0.0/8').containsIP(self)", "message": "in 10.0.0.0/8"}]},
        "class": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "class is immutable"}]},
        "once": {"type": "string", "x-kubernetes-validations": [
            {"rule": "oldSelf.hasValue() || self == 'first'", "optionalOldSelf": true, "message": "must begin as first"}]},
        "x-y": {"type": "integer"}, "namespace": text(),
        "rules": {"type": "array", "maxItems": 4, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "x-kubernetes-validations": [
                {"rule": "self.exists_one(r, r.main)", "message": "one rule is the main one", "reason": "FieldValueRequired"}],
            "items": {"type": "object", "required": ["name"], "properties": {
                "name": {"type": "string", "maxLength": 8}, "main": {"type": "boolean", "default": false},
                "weight": {"type": "integer", "x-kubernetes-validations": [
                    {"rule": "self >= oldSelf", "message": "weights only grow"}]},
            }}},
        "tags": {"type": "array", "maxItems": 5, "x-kubernetes-list-type": "set", "items": {"type": "string", "maxLength": 9}},
        "labels": {"type": "object", "maxProperties": 5, "additionalProperties": {"type": "string", "maxLength": 9,
            "x-kubernetes-validations": [{"rule": "self != 'bad'", "message": "not bad"}]}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "template": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
        "note": {"type": "string", "nullable": true},
    },
    "x-kubernetes-validations": [
        {"rule": "self.size <= self.max", "fieldPath": ".size",
            "messageExpression": "has(self.host) ? 'too large for ' + self.host : ''"},
        {"rule": "!has(self.x__dash__y) || self.x__dash__y > 0", "message": "x-y is positive"},
        {"rule": "!has(self.__namespace__) || self.__namespace__ != 'kube-system'", "message": "not in kube-system"},
        {"rule": "!has(self.tags) || !('forbidden' in self.tags)", "message": "a forbidden tag", "reason": "FieldValueForbidden"},
        {"rule": "!has(self.labels) || self.labels.all(k, k.startsWith('a'))", "message": "names begin with a"},
    ]})
}

fn definition(spec: &Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.test"},
        "spec": {
            "group": "example.test", "scope": "Namespaced",
            "names": {"kind": "Widget", "plural": "widgets", "singular": "widget", "listKind": "WidgetList"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "selectableFields": [{"jsonPath": ".spec.mode"}, {"jsonPath": ".spec.size"}],
                "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": {
                    "spec": spec,
                    "status": {"type": "object", "properties": {"phase": {"type": "string"}}},
                }, "x-kubernetes-validations": [
                    {"rule": "self.metadata.name.size() < 12", "message": "a short name"}]}},
            }],
        },
    })
}

/// Each case: a spec, and what it is changed to.
fn cases() -> Vec<(Value, Option<Value>)> {
    let one = |spec: Value| (spec, None);
    let two = |spec: Value, change: Value| (spec, Some(change));
    vec![
        one(json!({"size": 1})),
        one(json!({})),
        one(json!({"size": 101})),
        one(json!({"size": -1})),
        one(json!({"size": "1"})),
        one(json!({"size": 60})),
        one(json!({"size": 60, "max": 70})),
        one(json!({"size": 60, "host": "a.example"})),
        one(json!({"size": 1, "mode": "Other"})),
        one(json!({"size": 1, "unknown": {"a": 1}, "free": {"b": {"c": [1]}}})),
        one(json!({"size": 1, "port": 80})),
        one(json!({"size": 1, "port": "50%"})),
        one(json!({"size": 1, "port": "50"})),
        one(json!({"size": 1, "port": 0})),
        one(json!({"size": 1, "port": true})),
        one(json!({"size": 1, "url": "https://a.example/x"})),
        one(json!({"size": 1, "url": "http://a.example/x"})),
        one(json!({"size": 1, "url": "a b"})),
        one(json!({"size": 1, "wait": "30m"})),
        one(json!({"size": 1, "wait": "2h"})),
        one(json!({"size": 1, "wait": "soon"})),
        one(json!({"size": 1, "host": "a.example"})),
        one(json!({"size": 1, "host": "A"})),
        one(json!({"size": 1, "host": "a".repeat(21)})),
        one(json!({"size": 1, "memory": "500Mi"})),
        one(json!({"size": 1, "memory": "2Gi"})),
        one(json!({"size": 1, "memory": "much"})),
        one(json!({"size": 1, "address": "10.1.2.3"})),
        one(json!({"size": 1, "address": "192.168.0.1"})),
        one(json!({"size": 1, "address": "x"})),
        two(json!({"size": 1, "class": "a"}), json!({"size": 2, "class": "a"})),
        two(json!({"size": 1, "class": "a"}), json!({"class": "b"})),
        two(json!({"size": 1}), json!({"class": "b"})),
        one(json!({"size": 1, "once": "first"})),
        one(json!({"size": 1, "once": "second"})),
        two(json!({"size": 1, "once": "first"}), json!({"once": "second"})),
        one(json!({"size": 1, "x-y": 1, "namespace": "default"})),
        one(json!({"size": 1, "x-y": 0, "namespace": "kube-system"})),
        one(json!({"size": 1, "rules": [{"name": "a", "main": true}, {"name": "b"}]})),
        one(json!({"size": 1, "rules": [{"name": "a"}]})),
        one(json!({"size": 1, "rules": [{"name": "a", "main": true}, {"name": "a"}]})),
        one(json!({"size": 1, "rules": [{"main": true}]})),
        two(
            json!({"size": 1, "rules": [{"name": "a", "main": true, "weight": 5}, {"name": "b", "weight": 1}]}),
            json!({"rules": [{"name": "b", "weight": 2}, {"name": "a", "main": true, "weight": 4}]}),
        ),
        two(
            json!({"size": 1, "rules": [{"name": "a", "main": true, "weight": 5}]}),
            json!({"rules": [{"name": "b", "weight": 1}, {"name": "a", "main": true, "weight": 6}]}),
        ),
        one(json!({"size": 1, "tags": ["a", "b"]})),
        one(json!({"size": 1, "tags": ["a", "a"]})),
        one(json!({"size": 1, "tags": ["forbidden"]})),
        one(json!({"size": 1, "tags": ["a", "b", "c", "d", "e", "f"]})),
        one(json!({"size": 1, "labels": {"a1": "x"}})),
        one(json!({"size": 1, "labels": {"b1": "x"}})),
        one(json!({"size": 1, "labels": {"a1": "bad"}})),
        one(json!({"size": 1, "labels": {"a1": 1}})),
        one(
            json!({"size": 1, "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"a": 1}}}),
        ),
        one(json!({"size": 1, "note": null})),
        one(json!({"size": 1, "host": null})),
        one(json!({"size": 1, "mode": null})),
        two(json!({"size": 1, "note": "a"}), json!({"note": null, "max": null})),
        one(json!({"size": 101, "labels": {"a1": "bad"}})),
    ]
}

#[tokio::test]
async fn objects_are_judged_alike() -> Result<()> {
    let pair = Pair::start().await?;
    let made = pair.both("POST", DEFINITIONS, Some(&definition(&schema()))).await?;
    ensure!(made.iter().all(|(status, _)| *status == 201), "{:?}", made.map(|answer| answer.1["message"].clone()));
    pair.served(WIDGETS).await?;
    let mut wrong = Vec::new();
    for (at, (spec, change)) in cases().iter().enumerate() {
        let name = format!("w{at}");
        let answers = pair.both("POST", WIDGETS, Some(&widget(&name, spec))).await?;
        wrong.extend(difference(&format!("create {spec}"), &answers, true));
        if let Some(change) = change {
            let path = format!("{WIDGETS}/{name}");
            let answers = pair.both("PATCH", &path, Some(&json!({"spec": change}))).await?;
            wrong.extend(difference(&format!("change {spec} by {change}"), &answers, true));
        }
    }
    let long = widget("a-name-that-is-too-long", &json!({"size": 1}));
    wrong.extend(difference("a long name", &pair.both("POST", WIDGETS, Some(&long)).await?, true));
    // Two managers apply items of one list, and keep their own.
    for (manager, rules) in
        [("one", json!([{"name": "a", "main": true}])), ("two", json!([{"name": "b", "weight": 3}]))]
    {
        let path = format!("{WIDGETS}/applied?fieldManager={manager}");
        let answers = pair.both("PATCH", &path, Some(&widget("applied", &json!({"size": 1, "rules": rules})))).await?;
        ensure!(answers.iter().all(|(status, _)| *status < 300), "{answers:?}");
        wrong.extend(difference(&format!("apply as {manager}"), &answers, true));
    }
    let path = format!("{WIDGETS}/applied?fieldManager=one");
    let answers = pair.both("PATCH", &path, Some(&widget("applied", &json!({"size": 1, "max": 9})))).await?;
    wrong.extend(difference("without its rule", &answers, true));
    // Fields that can be selected by.
    for (selector, want) in
        [("spec.mode%3DFast", 200), ("spec.size%3D60,spec.mode!%3DFast", 200), ("spec.max%3D1", 400)]
    {
        let answers = pair.both("GET", &format!("{WIDGETS}?fieldSelector={selector}"), None).await?;
        let names = |body: &Value| {
            let items = body["items"].as_array().into_iter().flatten();
            items.map(|item| item["metadata"]["name"].to_string()).collect::<Vec<_>>()
        };
        let [embedded, real] = &answers;
        if embedded.0 != want || real.0 != want || names(&embedded.1) != names(&real.1) {
            wrong.push(format!("{selector}: {} {:?}, {} {:?}", embedded.0, names(&embedded.1), real.0, names(&real.1)));
        }
    }
    ensure!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// Specs of a definition that no server takes, or that both do: place by place.
fn specs() -> Vec<Value> {
    let with = |rule: Value| {
        json!({"type": "object", "properties": {
            "a": {"type": "integer", "x-kubernetes-validations": [rule]}, "b": {"type": "string"},
        }})
    };
    let around = |rule: Value| {
        json!({"type": "object", "x-kubernetes-validations": [rule], "properties": {
            "a": {"type": "integer"}, "l": {"type": "array", "maxItems": 5, "items": {"type": "string", "maxLength": 5}},
        }})
    };
    vec![
        with(json!({"rule": "self > 0"})),
        with(json!({"rule": "self >"})),
        with(json!({"rule": ""})),
        with(json!({"rule": "self.x > 0"})),
        with(json!({"rule": "other > 0"})),
        with(json!({"rule": "self.frobnicate()"})),
        with(json!({"rule": "self + 1"})),
        with(json!({"rule": "self > 0", "message": "a\nb"})),
        with(json!({"rule": "self > 0", "messageExpression": "self."})),
        with(json!({"rule": "self > 0", "reason": "Because"})),
        with(json!({"rule": "self > 0", "optionalOldSelf": true})),
        with(json!({"rule": "self > oldSelf"})),
        around(json!({"rule": "self.c > 0"})),
        around(json!({"rule": "has(self.a)", "fieldPath": ".c"})),
        around(json!({"rule": "has(self.a)", "fieldPath": ".a"})),
        around(json!({"rule": "self.l.all(x, x.size() > 1)"})),
        json!({"type": "object", "properties": {"l": {"type": "array", "maxItems": 5, "items": {"type": "string",
            "maxLength": 5, "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}}}),
        json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}),
        json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 3, "default": 1}}}),
        json!({"type": "object", "properties": {"a": {}}}),
        json!({"type": "object", "properties": {"a": {"type": "array"}}}),
        json!({"type": "object", "properties": {"a": {"type": "integer", "default": 1, "x-kubernetes-validations": [
            {"rule": "self > 1"}]}}}),
    ]
}

#[tokio::test]
async fn definitions_are_judged_alike() -> Result<()> {
    let pair = Pair::start().await?;
    let mut wrong = Vec::new();
    for spec in specs() {
        let mut tried = definition(&spec);
        let version = &mut tried["spec"]["versions"][0];
        version.as_object_mut().unwrap().remove("selectableFields");
        version["schema"]["openAPIV3Schema"].as_object_mut().unwrap().remove("x-kubernetes-validations");
        let answers = pair.both("POST", &format!("{DEFINITIONS}?dryRun=All"), Some(&tried)).await?;
        let refused = |answer: &(u16, Value)| (answer.0, answer.1.pointer("/details/causes").cloned());
        if refused(&answers[0]).0 != refused(&answers[1]).0 || refused(&answers[1]).0 >= 300 {
            wrong.extend(difference(&format!("{spec}"), &answers, false));
        }
    }
    for field in ["spec.mode", ".spec.none", ".spec.rules", ".metadata.name", ".spec.mode"] {
        let mut tried = definition(&schema());
        tried["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": field}]);
        let answers = pair.both("POST", &format!("{DEFINITIONS}?dryRun=All"), Some(&tried)).await?;
        if answers[0].0 != answers[1].0 {
            wrong.extend(difference(&format!("selectableFields {field}"), &answers, false));
        }
    }
    let webhook = |client: Value, versions: Value| json!({"strategy": "Webhook", "webhook": {"clientConfig": client, "conversionReviewVersions": versions}});
    let service = || json!({"service": {"name": "a", "namespace": "default"}});
    for conversion in [
        json!({"strategy": "Magic"}),
        json!({"strategy": "Webhook"}),
        webhook(json!({}), json!(["v1"])),
        webhook(json!({"url": "https://a.test/x", "service": service()["service"]}), json!(["v1"])),
        webhook(json!({"url": "http://a.test/x"}), json!(["v1"])),
        webhook(service(), json!([])),
        webhook(service(), json!(["v9"])),
        webhook(service(), json!(["v9", "v1"])),
    ] {
        let mut tried = definition(&schema());
        tried["spec"]["conversion"] = conversion.clone();
        let answers = pair.both("POST", &format!("{DEFINITIONS}?dryRun=All"), Some(&tried)).await?;
        if answers[0].0 != answers[1].0 || answers[0].0 >= 300 {
            wrong.extend(difference(&format!("conversion {conversion}"), &answers, false));
        }
    }
    ensure!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// The released module that carries Gateway API's definitions and examples; its group is changed, so that the definitions are
/// users' own to the embedded server.
const GATEWAY_API: &str = "sigs.k8s.io/gateway-api@v1.6.3";
const GROUP: (&str, &str) = ("gateway.networking.k8s.io", "gateway.example.test");

/// Where the module lies; `None` when it cannot be had.
fn gateway_api() -> Option<PathBuf> {
    let go = std::env::var_os("WEFT_GO").map_or_else(|| PathBuf::from("go"), PathBuf::from);
    let out = Command::new(go)
        .args(["mod", "download", "-json", GATEWAY_API])
        .env("GOFLAGS", "-mod=mod")
        .env("GOWORK", "off")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let told: Value = serde_json::from_slice(&out.stdout).ok()?;
    told["Dir"].as_str().map(PathBuf::from)
}

/// The documents of all YAML files below a folder, each with its file.
fn documents(folder: &std::path::Path) -> Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    let mut entries: Vec<_> = std::fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(|entry| entry.path());
    for entry in entries {
        let path = entry.path();
        if path.is_dir() {
            found.extend(documents(&path)?);
        } else if path.extension().is_some_and(|e| e == "yaml") {
            let text = std::fs::read_to_string(&path)?.replace(GROUP.0, GROUP.1);
            for part in text.split("\n---") {
                let value =
                    weft_k8s_api::yaml::value(part).map_err(|e| anyhow::anyhow!("{}: {e:?}", path.display()))?;
                if value.is_object() {
                    found.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), value));
                }
            }
        }
    }
    Ok(found)
}

#[tokio::test]
async fn gateway_api_is_judged_alike() -> Result<()> {
    let Some(module) = gateway_api() else {
        println!("skipped: {GATEWAY_API} cannot be had (go mod download)");
        return Ok(());
    };
    let pair = Pair::start().await?;
    let mut paths = std::collections::BTreeMap::new();
    for (file, mut definition) in documents(&module.join("config/crd/standard"))? {
        if definition["kind"] != "CustomResourceDefinition" {
            continue;
        }
        definition["metadata"]["annotations"] = json!({});
        definition.as_object_mut().context("an object")?.remove("status");
        let answers = pair.both("POST", DEFINITIONS, Some(&definition)).await?;
        ensure!(
            answers.iter().all(|(status, _)| *status == 201),
            "{file}: {:?}",
            answers.map(|a| a.1["message"].clone())
        );
        let spec = &definition["spec"];
        let (kind, plural) =
            (spec["names"]["kind"].as_str().context("kind")?, spec["names"]["plural"].as_str().context("plural")?);
        let place = if spec["scope"] == "Namespaced" { "namespaces/default/" } else { "" };
        paths.insert(kind.to_string(), format!("{place}{plural}"));
        let version = spec["versions"][0]["name"].as_str().context("version")?;
        pair.served(&format!("/apis/{}/{version}/{place}{plural}", GROUP.1)).await?;
    }
    let (mut wrong, mut taken, mut refused) = (Vec::new(), 0, 0);
    for folder in ["examples/standard", "hack/invalid-examples/standard"] {
        for (file, mut object) in documents(&module.join(folder))? {
            let Some(path) = object["kind"].as_str().and_then(|kind| paths.get(kind)) else { continue };
            let Some(version) = object["apiVersion"].as_str().filter(|v| v.starts_with(GROUP.1)) else { continue };
            let path = format!("/apis/{version}/{path}");
            object["metadata"].as_object_mut().context("metadata")?.remove("namespace");
            object["metadata"]["name"] = format!("o{}", taken + refused).into();
            let answers = pair.both("POST", &path, Some(&object)).await?;
            match answers[1].0 {
                201 => taken += 1,
                _ => refused += 1,
            }
            wrong.extend(difference(&format!("{folder}/{file}"), &answers, true));
        }
    }
    ensure!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    ensure!(taken > 30 && refused > 10, "{taken} were taken, {refused} refused");
    println!("{taken} objects were taken, {refused} refused, by both alike");
    Ok(())
}

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn policy(spec: Value) -> Value {
    let mut all = json!({
        "matchConstraints": {"resourceRules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}]},
        "matchConditions": [{"name": "ours", "expression": "object.metadata.name.startsWith('guarded')"}],
        "variables": [
            {"name": "keys", "expression": "has(object.data) ? object.data.size() : 0"},
            {"name": "nothing", "expression": "object.none.at.all"},
        ],
        "validations": [
            {"expression": "variables.keys <= 2", "messageExpression": "string(variables.keys) + ' keys are too many'"},
            {"expression": "oldObject == null || !has(oldObject.data.fixed) || object.data.fixed == oldObject.data.fixed",
                "message": "fixed is fixed", "reason": "Forbidden"},
            {"expression": "!has(object.data.bad)"},
            {"expression": "namespaceObject.metadata.name == request.namespace"},
        ],
    });
    spec.as_object().unwrap().iter().for_each(|(name, value)| all[name] = value.clone());
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "guard"}, "spec": all,
    })
}

#[tokio::test]
async fn policies_are_judged_alike() -> Result<()> {
    let pair = Pair::start().await?;
    let mut wrong = Vec::new();
    for spec in [
        json!({"validations": []}),
        json!({"validations": [{"expression": "object.a >"}]}),
        json!({"validations": [{"expression": "unknown.a == 1"}]}),
        json!({"validations": [{"expression": "'a'"}]}),
        json!({"validations": [{"expression": ""}]}),
        json!({"validations": [{"expression": "true", "reason": "Because"}]}),
        json!({"matchConstraints": {}}),
        json!({"matchConditions": [{"name": "a", "expression": "1"}]}),
        json!({"matchConditions": [{"name": "a", "expression": "true"}, {"name": "a", "expression": "true"}]}),
    ] {
        let answers = pair.both("POST", &format!("{POLICIES}?dryRun=All"), Some(&policy(spec.clone()))).await?;
        wrong.extend(difference(&format!("policy {spec}"), &answers, false));
    }
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "guard"}, "spec": {"policyName": "guard", "validationActions": ["Deny"]},
    });
    for (path, object) in [(POLICIES, policy(json!({}))), (BINDINGS, binding)] {
        let answers = pair.both("POST", path, Some(&object)).await?;
        ensure!(answers.iter().all(|(status, _)| *status == 201), "{answers:?}");
    }
    let map = |name: &str, data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": data});
    let many = json!({"a": "1", "b": "2", "c": "3"});
    for cluster in &pair.0 {
        eventually("the policy is in force", async || {
            let text = map("guarded-probe", many.clone()).to_string();
            let (status, body) =
                cluster.rest("POST", &format!("{MAPS}?dryRun=All"), Some(("application/json", &text))).await?;
            ensure!(status >= 400, "{body}");
            Ok(())
        })
        .await?;
    }
    let told = |answers: &[(u16, Value); 2]| {
        answers.clone().map(|(status, body)| (status, body["reason"].clone(), body["message"].clone()))
    };
    for (name, data, change) in [
        ("guarded-1", json!({"a": "1"}), None),
        ("guarded-2", many.clone(), None),
        ("other", many.clone(), None),
        ("guarded-3", json!({"bad": "1"}), None),
        ("guarded-4", json!({"fixed": "1"}), Some(json!({"fixed": "1", "b": "2"}))),
        ("guarded-5", json!({"fixed": "1"}), Some(json!({"fixed": "2"}))),
        ("guarded-6", json!({"a": "1"}), Some(json!({"fixed": "2"}))),
    ] {
        let [embedded, real] = told(&pair.both("POST", MAPS, Some(&map(name, data.clone()))).await?);
        if (embedded.0, embedded.1.is_string().then_some(&embedded.2))
            != (real.0, real.1.is_string().then_some(&real.2))
        {
            wrong.push(format!("{name} {data}:\n  {embedded:?}\n  {real:?}"));
        }
        if let Some(change) = change {
            let path = format!("{MAPS}/{name}");
            let [embedded, real] = told(&pair.both("PATCH", &path, Some(&json!({"data": change}))).await?);
            if (embedded.0, &embedded.2) != (real.0, &real.2) {
                wrong.push(format!("{name} changed by {change}:\n  {embedded:?}\n  {real:?}"));
            }
        }
    }
    ensure!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// A definition with a field `size`, and what else is said of its properties.
fn cogs(versions: &[(&str, bool)], properties: &Value) -> Value {
    let version = |(name, storage): &(&str, bool)| {
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"spec": {"type": "object", "properties": properties}}}}})
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "cogs.example.test"},
        "spec": {"group": "example.test", "scope": "Namespaced", "names": {"kind": "Cog", "plural": "cogs"},
            "versions": versions.iter().map(version).collect::<Vec<_>>()},
    })
}

#[tokio::test]
async fn changes_are_judged_alike() -> Result<()> {
    const COGS: &str = "/apis/example.test/v1/namespaces/default/cogs";
    const MAPS: &str = "/api/v1/namespaces/default/configmaps";
    const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
    let pair = Pair::start().await?;
    let mut wrong = Vec::new();
    let mut ask = async |method: &str, path: &str, body: Option<Value>, code: u16| -> Result<[(u16, Value); 2]> {
        let answers = pair.both(method, path, body.as_ref()).await?;
        wrong.extend(difference(&format!("{method} {path} {body:?}"), &answers, false));
        ensure!(answers[1].0 == code, "{method} {path} {body:?}: {}", answers[1].1);
        Ok(answers)
    };
    let definition = format!("{DEFINITIONS}/cogs.example.test");
    // What is read has the defaults of now, and not what the schema no longer has.
    let size = json!({"size": {"type": "integer"}, "old": {"type": "string"}});
    pair.both("POST", DEFINITIONS, Some(&cogs(&[("v1", true)], &size))).await?;
    pair.served(COGS).await?;
    let cog = json!({"apiVersion": "example.test/v1", "kind": "Cog", "metadata": {"name": "a"}, "spec": {"size": 1, "old": "x"}});
    ask("POST", COGS, Some(cog.clone()), 201).await?;
    let size = json!({"size": {"type": "integer"}, "teeth": {"type": "integer", "default": 8}});
    pair.both("PATCH", &definition, Some(&cogs(&[("v1", true)], &size))).await?;
    for cluster in &pair.0 {
        eventually("the new schema is followed", async || {
            let (_, read) = cluster.rest("GET", &format!("{COGS}/a"), None).await?;
            ensure!(read["spec"] == json!({"size": 1, "teeth": 8}), "{read}");
            let (_, list) = cluster.rest("GET", COGS, None).await?;
            ensure!(list["items"][0]["spec"] == read["spec"], "{list}");
            Ok(())
        })
        .await?;
    }
    // Objects of users' kinds, and some others, are overwritten by those only who say what they have read.
    ask("PUT", &format!("{COGS}/a"), Some(cog), 422).await?;
    let named = |version: &str, kind: &str| match kind {
        "Lease" => {
            json!({"apiVersion": version, "kind": kind, "metadata": {"name": "held"}, "spec": {"holderIdentity": "a"}})
        }
        _ => json!({"apiVersion": version, "kind": kind, "metadata": {"name": "held"}}),
    };
    for (path, version, kind, code) in [
        (MAPS, "v1", "ConfigMap", 200),
        ("/api/v1/namespaces/default/serviceaccounts", "v1", "ServiceAccount", 200),
        ("/apis/coordination.k8s.io/v1/namespaces/default/leases", "coordination.k8s.io/v1", "Lease", 422),
    ] {
        ask("POST", path, Some(named(version, kind)), 201).await?;
        ask("PUT", &format!("{path}/held"), Some(named(version, kind)), code).await?;
    }
    // What objects exist under stays.
    ask("PATCH", &definition, Some(json!({"spec": {"scope": "Cluster"}})), 422).await?;
    ask("PATCH", &definition, Some(json!({"spec": {"names": {"kind": "Gear", "listKind": "GearList"}}})), 422).await?;
    ask("PATCH", &definition, Some(cogs(&[("v2", true)], &size)), 422).await?;
    pair.both("PATCH", &definition, Some(&cogs(&[("v1", false), ("v2", true)], &size))).await?;
    ask("PATCH", &definition, Some(cogs(&[("v2", true)], &size)), 422).await?;
    // Nobody new holds back what is on its way out.
    let finalizers = |names: &[&str]| Some(json!({"metadata": {"finalizers": names}}));
    ask("PATCH", &format!("{MAPS}/held"), finalizers(&["x.test/y"]), 200).await?;
    ask("DELETE", &format!("{MAPS}/held"), None, 200).await?;
    ask("PATCH", &format!("{MAPS}/held"), finalizers(&["x.test/y", "x.test/z"]), 422).await?;
    ask("PATCH", &format!("{MAPS}/held"), finalizers(&[]), 200).await?;
    ask("GET", &format!("{MAPS}/held"), None, 404).await?;
    // Items with the same key are other people's until they are applied.
    let deployment = |env: Value| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "twins"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i", "env": env}]}}}})
    };
    let twins = json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]);
    pair.both("POST", DEPLOYMENTS, Some(&deployment(twins))).await?;
    for (env, force) in [("B", ""), ("A", "&force=true")] {
        let path = format!("{DEPLOYMENTS}/twins?fieldManager={env}{force}");
        let answers = pair.both("PATCH", &path, Some(&deployment(json!([{"name": env, "value": "3"}])))).await?;
        let [embedded, real] = answers.map(|(_, body)| body.pointer("/spec/template/spec/containers/0/env").cloned());
        if embedded != real {
            wrong.push(format!("env after applying {env}:\n  embedded: {embedded:?}\n  real: {real:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    // A list that is read in pieces is of one moment.
    for cluster in &pair.0 {
        for name in ["page-1", "page-2"] {
            let map =
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"in": "pages"}}});
            cluster.rest("POST", MAPS, Some(("application/json", &map.to_string()))).await?;
        }
        let pages = format!("{MAPS}?labelSelector=in%3Dpages&limit=1");
        let (_, first) = cluster.rest("GET", &pages, None).await?;
        let second = format!("{pages}&continue={}", first["metadata"]["continue"].as_str().context("more")?);
        let (_, before) = cluster.rest("GET", &second, None).await?;
        cluster.rest("DELETE", &format!("{MAPS}/page-2"), None).await?;
        let (_, after) = cluster.rest("GET", &second, None).await?;
        ensure!(before["items"][0]["metadata"]["name"] == "page-2" && after["items"] == before["items"], "{after}");
    }
    Ok(())
}
