//! A gateway with thousands of routes takes one more at the cost of one: the model and the generator reuse all others. A pod
//! of a headless service that comes or goes moves what is its own.
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

/// Pods of the headless service that are there before.
const PODS: usize = 300;

const HEADLESS: &str = "
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: tcp-db, port: 5432}, {name: http-admin, port: 8081}]}
";

fn pod(index: usize) -> Value {
    let ip = format!("10.250.{}.{}", index / 250, index % 250 + 1);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("db-{index}"), "namespace": "default", "labels": {"app": "db"}},
        "spec": {"serviceAccountName": "db", "containers": [{"name": "db"}, {"name": "istio-proxy"}]},
        "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn slice(pods: usize) -> Value {
    let endpoint = |index: usize| {
        let ip = pod(index)["status"]["podIP"].clone();
        let target = json!({"kind": "Pod", "name": format!("db-{index}"), "namespace": "default"});
        json!({"addresses": [ip], "conditions": {"ready": true}, "targetRef": target})
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "db-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "db"}},
        "ports": [{"name": "tcp-db", "port": 5432}, {"name": "http-admin", "port": 8081}],
        "endpoints": (0..pods).map(endpoint).collect::<Vec<_>>(),
    })
}

/// Names of the resources that a client with `before` is sent, and of those taken from it, to have `after`.
fn moved(before: &weft_xds_gen::ProxyResources, after: &weft_xds_gen::ProxyResources) -> (Vec<String>, Vec<String>) {
    let (mut sent, mut gone) = (Vec::new(), Vec::new());
    for (old, new) in [
        (&before.listeners, &after.listeners),
        (&before.clusters, &after.clusters),
        (&before.endpoints, &after.endpoints),
        (&before.routes, &after.routes),
        (&before.virtual_hosts, &after.virtual_hosts),
    ] {
        let same = |r: &Arc<weft_xds_gen::Resource>| old.get(&r.name).is_some_and(|o| o.any.value == r.any.value);
        sent.extend(new.iter().filter(|r| !same(r)).map(|r| r.name.to_string()));
        gone.extend(old.iter().filter(|r| new.get(&r.name).is_none()).map(|r| r.name.to_string()));
    }
    (sent, gone)
}

#[test]
fn a_pod_of_a_headless_service_moves_what_is_its_own() {
    let mut world = World::new();
    world.add_sample("sleep/sleep.yaml").add(HEADLESS);
    let base: Inputs = world.inputs();
    let with = |pods: usize| {
        let mut inputs = base.clone();
        (0..pods).map(pod).chain([slice(pods)]).for_each(|value| {
            inputs.push(Arc::new(serde_json::from_value::<Object>(value).unwrap()));
        });
        inputs
    };
    let cache = GenCache::default();
    let first = weft_model::build(&with(PODS), None);
    let proxy = common::proxy(&first, "sleep-0", true, &Value::Null);
    let before = cache.generate(&first, &proxy);
    assert!(before.listeners.iter().count() > PODS, "each pod has a listener");
    let more = weft_model::build(&with(PODS + 1), Some(&first));
    let after = cache.generate(&more, &proxy);
    let own = format!("{}_5432", pod(PODS)["status"]["podIP"].as_str().unwrap());
    assert_eq!(moved(&before, &after), (vec![own.clone()], vec![]), "one came");
    let fewer = weft_model::build(&with(PODS), Some(&more));
    let again = cache.generate(&fewer, &proxy);
    assert_eq!(moved(&after, &again), (vec![], vec![own]), "one went");
}
