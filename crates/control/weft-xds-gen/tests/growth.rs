//! A gateway with thousands of routes takes one more at the cost of one: the model and the generator reuse all others.
//!
//! Times are those of a debug build on a busy machine; the bounds only tell "one" from "all".

#![allow(clippy::unwrap_used)]

mod common;

use common::World;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use weft_k8s_api::Object;
use weft_model::Inputs;
use weft_xds_gen::GenCache;

/// Routes that are there before.
const ROUTES: usize = 3000;
/// Routes that are added one by one.
const MORE: usize = 30;
/// What one more may take, at the median, in a debug build. All of them anew take some seconds.
const LIMIT: Duration = Duration::from_millis(400);

const GATEWAY: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: istio
  listeners: [{name: http, port: 80, protocol: HTTP}]
";

fn virtual_service(index: usize) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": format!("r{index}"), "namespace": "default", "uid": format!("u{index}"), "resourceVersion": "1",
                     "creationTimestamp": "2026-01-02T00:00:00Z"},
        "spec": {"hosts": [format!("r{index}.example.com")], "gateways": ["edge"], "http": [
            {"match": [{"uri": {"prefix": "/a"}}], "route": [{"destination": {"host": "httpbin", "port": {"number": 8000}}}]},
            {"route": [{"destination": {"host": "httpbin", "port": {"number": 8000}}}], "timeout": "3s"}]},
    })
}

fn http_route(index: usize) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": format!("r{index}"), "namespace": "default", "uid": format!("u{index}"), "resourceVersion": "1",
                     "creationTimestamp": "2026-01-02T00:00:00Z", "generation": 1},
        "spec": {"parentRefs": [{"name": "edge"}], "hostnames": [format!("r{index}.example.com")], "rules": [
            {"matches": [{"path": {"value": "/a"}}], "backendRefs": [{"name": "httpbin", "port": 8000}]},
            {"backendRefs": [{"name": "httpbin", "port": 8000}]}]},
    })
}

/// Median times of the model and of the generator for one more route, with `ROUTES` there.
fn one_more(make: fn(usize) -> Value, weft: bool) -> (Duration, Duration) {
    let mut world = World::new();
    world.add(common::INGRESS).add_sample("httpbin/httpbin.yaml").add(GATEWAY);
    let mut inputs: Inputs = world.inputs();
    let push = |inputs: &mut Inputs, index: usize| {
        inputs.push(Arc::new(serde_json::from_value::<Object>(make(index)).unwrap()));
    };
    (0..ROUTES).for_each(|index| push(&mut inputs, index));
    let cache = GenCache::default();
    let mut snapshot = weft_model::build(&inputs, None);
    let proxy = common::proxy(&snapshot, "istio-system/istio-ingressgateway-0", weft, &Value::Null);
    let mut resources = cache.generate(&snapshot, &proxy);
    let (mut builds, mut generations) = (Vec::new(), Vec::new());
    for index in ROUTES..ROUTES + MORE {
        push(&mut inputs, index);
        let start = Instant::now();
        let next = weft_model::build(&inputs, Some(&snapshot));
        builds.push(start.elapsed());
        let start = Instant::now();
        let made = cache.generate(&next, &proxy);
        generations.push(start.elapsed());
        if weft {
            assert_eq!(made.virtual_hosts.len(), resources.virtual_hosts.len() + 1);
            let name = format!("http.8080/r{index}.example.com:80");
            assert!(made.virtual_hosts.get(&name).is_some(), "{name}");
            let shared = made
                .virtual_hosts
                .iter()
                .filter(|r| resources.virtual_hosts.get(&r.name).is_some_and(|old| Arc::ptr_eq(old, r)));
            assert_eq!(shared.count(), resources.virtual_hosts.len(), "all others are the same");
        }
        (snapshot, resources) = (next, made);
    }
    builds.sort();
    generations.sort();
    (builds[MORE / 2], generations[MORE / 2])
}

#[test]
fn one_more_route_costs_one() {
    for (name, make) in
        [("VirtualService", virtual_service as fn(usize) -> Value), ("HTTPRoute", http_route as fn(usize) -> Value)]
    {
        for weft in [true, false] {
            let (build, generate) = one_more(make, weft);
            eprintln!("{name}, weft-proxy {weft}: model {build:?}, resources {generate:?}");
            assert!(build + generate < LIMIT, "{name}: model {build:?}, resources {generate:?}");
        }
    }
}
