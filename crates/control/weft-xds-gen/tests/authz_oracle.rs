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
/// The authorizer that Istio's expectations of `custom-both-http-tcp` are written for.
const AUTHORIZER: &str = "
apiVersion: v1
kind: Service
metadata: {name: my-custom-ext-authz, namespace: foo}
spec: {ports: [{name: grpc, port: 9000}]}
";
/// Written for inputs of other names.
const OTHER_INPUTS: &[(&str, &str)] = &[("custom-bad", "custom-simple-http")];

/// The RBAC filters of the world's server: those of its HTTP port or of its TCP port.
fn generated(policies: &str, aliases: &[&str], layer: &str) -> Vec<Value> {
    generated_in(World::new(), policies, aliases, layer)
}

fn generated_in(mut world: World, policies: &str, aliases: &[&str], layer: &str) -> Vec<Value> {
    world.mesh["trustDomain"] = json!(if aliases.is_empty() { "cluster.local" } else { "td1" });
    world.mesh["trustDomainAliases"] = json!(aliases);
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
    let decides = |filter: &&Value| {
        let name = filter["name"].as_str().unwrap();
        name.ends_with(".rbac") || name.ends_with(".ext_authz")
    };
    filters.as_array().unwrap().iter().filter(decides).map(|filter| filter["typed_config"].clone()).collect()
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
                // Names of rules go on with a dash, so that no provider's name begins another's.
                let value = match value.as_str().and_then(|text| text.strip_suffix('-')) {
                    Some(text) if key == "prefix" && text.starts_with("istio-ext-authz-") => json!(text),
                    _ => value,
                };
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

/// The mesh that a case is written for: with an authorizer where one is asked, without where the policy names nobody.
fn world_of(case: &str) -> World {
    let mut world = World::new();
    if case == "custom-both-http-tcp" {
        let grpc = json!({"service": "foo/my-custom-ext-authz.foo.svc.cluster.local", "port": 9000, "timeout": "2ms", "failOpen": true});
        world.mesh["extensionProviders"] = json!([{"name": "default", "envoyExtAuthzGrpc": grpc}]);
        world.add(AUTHORIZER);
    }
    world
}

/// Checks one expectation; says how it fails.
fn check(folder: &Path, layer: &str, name: &str) -> Result<(), String> {
    let (case, _) = name.rsplit_once("-out").unwrap();
    let input = OTHER_INPUTS.iter().find(|(of, _)| *of == case).map_or(case, |(_, input)| input);
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
    let aliases: &[&str] = if case.contains("td-aliases") { &["cluster.local"] } else { &[] };
    let ours = generated_in(world_of(case), &read(&format!("{input}-in.yaml")), aliases, layer);
    let ours: Vec<Value> = ours.iter().map(normal).collect();
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
            checked += 1;
            wrong.extend(check(&folder, layer, name).err());
        }
    }
    assert!(wrong.is_empty(), "{} of {checked} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(checked > 10, "only {checked} expectations found");
}

/// All string matchers in a filter, as `kind:text`.
fn matchers(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match (key.as_str(), value) {
                    ("exact" | "prefix" | "suffix" | "regex" | "path_template", Value::String(text)) => {
                        found.push(format!("{key}:{text}"));
                    }
                    _ => matchers(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| matchers(item, found)),
        _ => {}
    }
}

/// The matchers that one source or operation becomes.
fn matchers_of(rule: &str) -> Vec<String> {
    let policy = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: foo}}\nspec: {{rules: [{rule}]}}\n"
    );
    let mut found = Vec::new();
    generated(&policy, &[], "http").iter().for_each(|filter| matchers(filter, &mut found));
    found.retain(|one| !one.starts_with("exact:/nothing"));
    found
}

#[test]
fn class_regex_in_identity_names_are_taken_literally() {
    // CVE-2026-39350: a dot in a name is a dot.
    for (rule, want) in [
        ("{from: [{source: {serviceAccounts: ['a.b/c.d']}}]}", r"regex:spiffe://.+/ns/a\.b/(.+/|)sa/c\.d(/.+)?"),
        ("{from: [{source: {namespaces: ['a.b(c)+']}}]}", r"regex:.*/ns/a\.b\(c\)\+/.*"),
        ("{from: [{source: {principals: ['td.x/ns/a/sa/b.c']}}]}", "exact:spiffe://td.x/ns/a/sa/b.c"),
        ("{from: [{source: {principals: ['*/a.b|c']}}]}", r"regex:spiffe://.*/a\.b\|c"),
        ("{to: [{operation: {hosts: ['a.b']}}]}", "exact:a.b"),
        ("{to: [{operation: {paths: ['/a.b*']}}]}", "prefix:/a.b"),
    ] {
        assert_eq!(matchers_of(rule), [want], "{rule}");
    }
}

#[test]
fn class_wildcards_of_principals_are_beginnings_and_endings() {
    for (pattern, want) in [
        ("*", "regex:.+"),
        ("*/sa/x", "regex:spiffe://.*/sa/x"),
        ("td/ns/a/*", "prefix:spiffe://td/ns/a/"),
        ("td/ns/*/sa/x", "exact:spiffe://td/ns/*/sa/x"),
        ("td/ns/a/sa/x", "exact:spiffe://td/ns/a/sa/x"),
    ] {
        assert_eq!(matchers_of(&format!("{{from: [{{source: {{principals: ['{pattern}']}}}}]}}")), [want], "{pattern}");
    }
}

#[test]
fn class_uri_templates_stay_templates() {
    for (path, want) in [
        ("/a/{*}/b", "path_template:/a/*/b"),
        ("/{**}", "path_template:/**"),
        ("/a/*", "prefix:/a/"),
        ("/a*b", "exact:/a*b"),
    ] {
        assert_eq!(matchers_of(&format!("{{to: [{{operation: {{paths: ['{path}']}}}}]}}")), [want], "{path}");
    }
}
