//! Golden files: `golden/NAME.yaml` holds a world and a proxy, `golden/NAME.json` what is generated for it.
//! `WEFT_UPDATE_GOLDEN=1 cargo test -p weft-xds-gen --test golden` writes the expectations anew.

#![allow(clippy::unwrap_used)]

mod common;

use common::World;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use weft_proto::envoy::config::cluster::v3::Cluster;
use weft_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use weft_proto::envoy::config::listener::v3::Listener;
use weft_proto::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use weft_proto::istio::networking::nds::v1::NameTable;
use weft_proto::{json::to_json, unpack};
use weft_xds_gen::{ProxyResources, Resource, ResourceMap, generate};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Reads the case, generates, and shows what its head asks for: by type, names or beginnings with `*`.
fn run(text: &str) -> Value {
    let (head, world) = World::of_case(text);
    let snapshot = world.snapshot();
    let proxy = common::proxy(&snapshot, head["pod"].as_str().unwrap(), head["weft"] == true, &head["metadata"]);
    let refused: Vec<_> = snapshot.warnings.iter().filter(|w| w.code == "IST0106").collect();
    assert!(refused.is_empty(), "objects that cannot be read: {refused:#?}");
    let resources = generate(&snapshot, &proxy);
    assert_eq!(
        shown(&resources, &head["show"]),
        shown(&generate(&snapshot, &proxy), &head["show"]),
        "not deterministic"
    );
    let mut shown = shown(&resources, &head["show"]);
    if head["show"]["statuses"].is_object() {
        shown["statuses"] = snapshot.statuses.iter().map(|s| status(s)).collect();
    }
    sorted(shown)
}

/// What the status of an object should say: kind and name, then the status without what is the same everywhere.
fn status(update: &weft_model::StatusUpdate) -> Value {
    let mut status = update.status.clone();
    shorten(&mut status);
    json!({"object": update.object.to_string(), "status": status})
}

/// Conditions as `Type=Status Reason: message`.
fn shorten(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, value) in map.iter_mut() {
                match (name.as_str(), value.as_array()) {
                    ("conditions", Some(list)) => {
                        let of = |c: &Value, field: &str| c[field].as_str().unwrap_or_default().to_string();
                        let short = |c: &Value| {
                            let [kind, status, reason, text] =
                                ["type", "status", "reason", "message"].map(|f| of(c, f));
                            Value::String(format!("{kind}={status} {reason}: {text}"))
                        };
                        *value = list.iter().map(short).collect();
                    }
                    _ => shorten(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(shorten),
        _ => {}
    }
}

/// The same with the keys of all objects in order: maps of messages have none.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let entries: std::collections::BTreeMap<String, Value> =
                map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

fn shown(resources: &ProxyResources, wanted: &Value) -> Value {
    let mut out = Map::new();
    for (kind, patterns) in wanted.as_object().expect("show") {
        let value = match kind.as_str() {
            "names" => names(resources),
            "listeners" => of::<Listener>(&resources.listeners, patterns),
            "routes" => of::<RouteConfiguration>(&resources.routes, patterns),
            "virtualHosts" => of::<VirtualHost>(&resources.virtual_hosts, patterns),
            "clusters" => of::<Cluster>(&resources.clusters, patterns),
            "endpoints" => of::<ClusterLoadAssignment>(&resources.endpoints, patterns),
            "nameTable" => {
                let table = resources.name_table.as_ref().map(|r| unpack::<NameTable>(&r.any).unwrap());
                table.map_or(Value::Null, |table| to_json(&table, true).unwrap())
            }
            "statuses" => continue,
            "notApplied" => resources.not_applied.iter().map(ToString::to_string).collect(),
            other => panic!("show knows no {other}"),
        };
        out.insert(kind.clone(), value);
    }
    Value::Object(out)
}

/// Names of everything.
fn names(resources: &ProxyResources) -> Value {
    let list = |map: &ResourceMap| map.iter().map(|r| r.name.to_string()).collect::<Vec<_>>();
    json!({
        "listeners": list(&resources.listeners),
        "routes": list(&resources.routes),
        "virtualHosts": list(&resources.virtual_hosts),
        "clusters": list(&resources.clusters),
        "endpoints": list(&resources.endpoints),
        "credentials": resources.credentials.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn of<M: prost::Message + prost::Name + Default>(map: &ResourceMap, patterns: &Value) -> Value {
    let matches = |resource: &&std::sync::Arc<Resource>| {
        patterns.as_array().into_iter().flatten().any(|pattern| {
            let pattern = pattern.as_str().unwrap();
            pattern.strip_suffix('*').map_or(&*resource.name == pattern, |start| resource.name.starts_with(start))
        })
    };
    let found: Vec<Value> =
        map.iter().filter(matches).map(|r| to_json(&unpack::<M>(&r.any).unwrap(), true).unwrap()).collect();
    assert!(
        !found.is_empty(),
        "nothing matches {patterns}; there are {:?}",
        map.iter().map(|r| &r.name).collect::<Vec<_>>()
    );
    Value::Array(found)
}

#[test]
fn golden_files() {
    let _schema = weft_proto::json::pool();
    let update = std::env::var_os("WEFT_UPDATE_GOLDEN").is_some();
    let mut different = Vec::new();
    let mut cases = 0;
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "yaml")) {
        cases += 1;
        let got = serde_json::to_string_pretty(&run(&std::fs::read_to_string(file).unwrap())).unwrap() + "\n";
        let expectation = file.with_extension("json");
        if update {
            std::fs::write(&expectation, got).unwrap();
        } else if std::fs::read_to_string(&expectation).unwrap_or_default() != got {
            let actual = std::env::temp_dir().join(expectation.file_name().unwrap());
            std::fs::write(&actual, got).unwrap();
            different.push(format!("{} differs from what is generated: {}", expectation.display(), actual.display()));
        }
    }
    assert!(cases > 0, "no golden files");
    assert!(different.is_empty(), "{}", different.join("\n"));
}
