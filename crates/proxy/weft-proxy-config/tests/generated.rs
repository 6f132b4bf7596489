//! What the control plane generates is what this crate takes: its golden files are applied here. The two crates share no
//! code, only messages.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

use serde_json::Value;
use std::path::PathBuf;
use weft_proto::any::TypeUrl;
use weft_proto::envoy::config::cluster::v3::Cluster;
use weft_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use weft_proto::envoy::config::listener::v3::Listener;
use weft_proto::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use weft_proxy_config::{Applied, ConfigBuilder, Update, Upsert};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../control/weft-xds-gen/tests/golden")
}

fn update<M>(list: &Value, name: impl Fn(&M) -> String) -> Update
where
    M: prost::Message + prost::Name + Default,
{
    let upserts = list.as_array().into_iter().flatten().map(|json| {
        let message: M = weft_proto::json::from_json(json).unwrap();
        Upsert { name: name(&message), version: "1".into(), any: weft_proto::pack(&message) }
    });
    Update { type_url: M::type_url_of(), upserts: upserts.collect(), removals: Vec::new() }
}

/// Applies all resources of a golden file, in the order in which the control plane sends them.
fn apply(golden: &Value, builder: &mut ConfigBuilder) -> Vec<Applied> {
    // Virtual hosts are sent under the name of their route.
    let host_name = |host: &VirtualHost| {
        let names = golden["names"]["virtualHosts"].as_array().into_iter().flatten();
        let full =
            names.filter_map(Value::as_str).find(|n| n.split_once('/').is_some_and(|(_, rest)| rest == host.name));
        full.unwrap_or("80/x").to_string()
    };
    [
        update::<Cluster>(&golden["clusters"], |m| m.name.clone()),
        update::<ClusterLoadAssignment>(&golden["endpoints"], |m| m.cluster_name.clone()),
        update::<Listener>(&golden["listeners"], |m| m.name.clone()),
        update::<RouteConfiguration>(&golden["routes"], |m| m.name.clone()),
        update::<VirtualHost>(&golden["virtualHosts"], host_name),
    ]
    .iter()
    .map(|update| builder.apply(update))
    .collect()
}

/// What weft-proxy cannot do yet, by file: part of the message that says so.
const KNOWN: [(&str, &str); 2] = [
    // A user's own filter.
    ("envoy-filter", "envoy.filters.http.lua"),
    // Asked of Envoys alone (preserveHttp1HeaderCase).
    ("sidecar-all-ports", "header_key_format"),
];

#[test]
fn all_that_is_generated_is_taken() {
    let mut files: Vec<_> = std::fs::read_dir(folder()).unwrap().map(|f| f.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "json"));
    assert!(files.len() >= 5, "the golden files have moved");
    let mut unexpected = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for file in files {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let golden: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        for applied in apply(&golden, &mut ConfigBuilder::default()) {
            let refused = applied.refused.iter().map(|(resource, why)| format!("{resource}: {why}"));
            for text in refused.chain(applied.errors.iter().map(ToString::to_string)) {
                match KNOWN.iter().position(|(file, part)| *file == name && text.contains(part)) {
                    Some(number) => drop(seen.insert(number)),
                    None => unexpected.push(format!("{name}: {text}")),
                }
            }
        }
    }
    assert!(unexpected.is_empty(), "{unexpected:#?}");
    assert_eq!(seen.len(), KNOWN.len(), "an entry of KNOWN is not needed any more; seen: {seen:?}");
}
