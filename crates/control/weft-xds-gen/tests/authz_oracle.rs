//! RBAC filters against those that Istio makes of the same AuthorizationPolicies, where its test data is at hand: the folder
//! `$WEFT_ORACLES/authz/{http,tcp}`. What is compared is what is decided: order and nesting of equal meaning don't count.

#![allow(clippy::unwrap_used)]

mod common;

use common::World;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use weft_proto::envoy::config::listener::v3::Listener;
use weft_proto::json::to_json;
use weft_proto::unpack;
use weft_xds_gen::generate;

const SERVER: &str = "
apiVersion: v1
kind: Service
metadata: {name: httpbin, namespace: foo}
spec: {selector: {app: httpbin}, ports: [{name: http, port: 80}, {name: tcp, port: 81}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: httpbin, namespace: foo}
spec:
  template:
    metadata: {labels: {app: httpbin, version: v1}}
    spec: {containers: [{name: httpbin, image: httpbin}]}
";
/// Ask an external authorizer, which is no part of what is generated.
const ASK_AUTHORIZERS: &[&str] = &["custom-simple-http", "custom-both-http-tcp"];
/// Written for inputs of other names.
const OTHER_INPUTS: &[(&str, &str)] = &[("custom-bad", "custom-simple-http")];

/// The RBAC filters of the world's server: those of its HTTP port or of its TCP port.
fn generated(policies: &str, aliases: &[&str], layer: &str) -> Vec<Value> {
    let mut world = World::new();
    world.mesh =
        json!({"trustDomain": if aliases.is_empty() { "cluster.local" } else { "td1" }, "trustDomainAliases": aliases});
    world.add(SERVER).add(policies);
    let snapshot = world.snapshot();
    let resources = generate(&snapshot, &common::proxy(&snapshot, "foo/httpbin-0", false, &Value::Null));
    let listener = resources.listeners.get("virtualInbound").expect("virtualInbound");
    let listener = to_json(&unpack::<Listener>(&listener.any).unwrap(), true).unwrap();
    let chains = listener["filter_chains"].as_array().unwrap();
    let port = if layer == "http" { 80 } else { 81 };
    let chain = chains.iter().find(|chain| chain["filter_chain_match"]["destination_port"] == port).unwrap();
    let network = chain["filters"].as_array().unwrap();
    let filters = if layer == "http" { &network[0]["typed_config"]["http_filters"] } else { &chain["filters"] };
    let is_rbac = |filter: &&Value| filter["name"].as_str().unwrap().ends_with(".rbac");
    filters.as_array().unwrap().iter().filter(is_rbac).map(|filter| filter["typed_config"].clone()).collect()
}

/// The same in a form in which equal meanings are equal: field names in one style, lists whose order says nothing in order,
/// sets of one as that one, and fields that say nothing left out.
fn normal(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut out = serde_json::Map::new();
            for (key, value) in map {
                let key: String = key.chars().fold(String::new(), |mut name, c| {
                    if c.is_ascii_uppercase() && !name.contains(['[', '/', '.']) && !key.contains('[') {
                        name.push('_');
                    }
                    name.push(if key.contains('[') { c } else { c.to_ascii_lowercase() });
                    name
                });
                let value = normal(value);
                if value != json!(false) && key != "@type" {
                    out.insert(key, value);
                }
            }
            for set in ["and_rules", "or_rules", "and_ids", "or_ids"] {
                let members = out.get(set).and_then(|s| s.get("rules").or(s.get("ids"))).and_then(Value::as_array);
                if let Some([only]) = members.map(Vec::as_slice) {
                    return only.clone();
                }
            }
            out.sort_keys();
            Value::Object(out)
        }
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(normal).collect();
            let is_path = items.iter().any(|item| item.get("key").is_some());
            if !is_path {
                items.sort_by_key(ToString::to_string);
            }
            Value::Array(items)
        }
        other => other.clone(),
    }
}

/// Checks one expectation; says how it fails.
fn check(folder: &Path, layer: &str, name: &str) -> Result<(), String> {
    let (case, _) = name.rsplit_once("-out").unwrap();
    let input = OTHER_INPUTS.iter().find(|(of, _)| *of == case).map_or(case, |(_, input)| input);
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
    let aliases: &[&str] = if case.contains("td-aliases") { &["cluster.local"] } else { &[] };
    let ours: Vec<Value> = generated(&read(&format!("{input}-in.yaml")), aliases, layer).iter().map(normal).collect();
    let theirs = normal(&common::documents(&read(name)).remove(0)["typedConfig"]);
    // Istio makes one filter for each provider it does not know; they are one here.
    let bad_custom = theirs["rules"]["policies"].as_object().into_iter().flatten().any(|(k, _)| k.ends_with("-action"));
    let found = ours.iter().any(|one| {
        if bad_custom {
            let mine = &one["rules"]["policies"];
            return theirs["rules"]["policies"].as_object().unwrap().iter().all(|(k, v)| mine.get(k) == Some(v));
        }
        *one == theirs
    });
    if found {
        return Ok(());
    }
    let show = |value: &Value| serde_json::to_string_pretty(value).unwrap();
    Err(format!("{layer}/{name}\nours: {}\ntheirs: {}", show(&Value::Array(ours)), show(&theirs)))
}

#[test]
fn decides_as_istio_does() {
    let Some(root) = std::env::var_os("WEFT_ORACLES").map(|root| PathBuf::from(root).join("authz")) else {
        eprintln!("skipped: WEFT_ORACLES names no folder with Istio's test data");
        return;
    };
    let mut checked = 0;
    let mut wrong = Vec::new();
    for layer in ["http", "tcp"] {
        let folder = root.join(layer);
        let mut names: Vec<String> =
            std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        for name in names.iter().filter(|name| name.contains("-out")) {
            if ASK_AUTHORIZERS.iter().any(|case| name.starts_with(case)) {
                continue;
            }
            checked += 1;
            wrong.extend(check(&folder, layer, name).err());
        }
    }
    assert!(wrong.is_empty(), "{} of {checked} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(checked > 10, "only {checked} expectations found");
}
