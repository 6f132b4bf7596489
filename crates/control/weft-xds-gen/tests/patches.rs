//! Patches that cannot be applied, beside such that can: each counts by itself.

#![allow(clippy::unwrap_used)]

mod common;

use common::World;
use serde_json::{Value, json};
use weft_proto::envoy::config::listener::v3::Listener;
use weft_proto::{json::to_json, unpack};
use weft_xds_gen::generate;

/// One object: what keeps strangers out, and a filter that only its author's Envoy knows; one before and one after it.
const FILTERS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: reviews}
spec: {template: {metadata: {labels: {app: reviews}}, spec: {containers: [{name: r, image: i}]}}}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: own}
spec:
  configPatches:
  - applyTo: HTTP_FILTER
    match: &inbound
      context: SIDECAR_INBOUND
      listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}
    patch:
      operation: INSERT_FIRST
      value:
        name: guard
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
          default_source_code: {inline_string: 'function envoy_on_request(h) end'}
  - applyTo: HTTP_FILTER
    match: *inbound
    patch:
      operation: INSERT_FIRST
      value: {name: foreign, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.golang_of_mine.v3.Config}}
  - applyTo: CLUSTER
    patch: {operation: MERGE, value: {connect_timeout: fast}}
  - applyTo: CLUSTER
    patch: {operation: MERGE, value: {connect_timeout: 7s}}
";

#[test]
fn a_patch_that_is_no_configuration_leaves_its_siblings_in_force() {
    let mut world = World::new();
    world.add(FILTERS);
    let snapshot = world.snapshot();
    let told: Vec<(&str, &str)> = snapshot
        .warnings
        .iter()
        .filter(|warning| warning.at.kind == "EnvoyFilter")
        .map(|warning| (warning.code, warning.at.path.as_str()))
        .collect();
    let wrong =
        ["spec.configPatches[1].patch.value.typed_config.@type", "spec.configPatches[2].patch.value.connect_timeout"];
    assert_eq!(told, wrong.map(|path| ("IST0106", path)), "{:#?}", snapshot.warnings);
    for weft in [false, true] {
        let resources = generate(&snapshot, &common::proxy(&snapshot, "default/reviews-0", weft, &Value::Null));
        let inbound = resources.listeners.get("virtualInbound").unwrap();
        let text = to_json(&unpack::<Listener>(&inbound.any).unwrap(), true).unwrap().to_string();
        assert!(text.contains(r#""name":"guard""#) && !text.contains("foreign"), "weft {weft}: {text}");
        let cluster = resources.clusters.get("outbound|9080||reviews.default.svc.cluster.local").unwrap();
        let cluster: weft_proto::envoy::config::cluster::v3::Cluster = unpack(&cluster.any).unwrap();
        assert_eq!(cluster.connect_timeout.map(|time| time.seconds), Some(7), "weft {weft}");
        let idle: Vec<String> = resources.not_applied.iter().map(|at| at.path.clone()).collect();
        assert_eq!(json!(idle), json!(["spec.configPatches[1]", "spec.configPatches[2]"]), "weft {weft}");
    }
}
