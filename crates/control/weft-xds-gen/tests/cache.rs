//! What proxies share, and what a change leaves as it was.

#![allow(clippy::unwrap_used)]

mod common;

use common::World;
use serde_json::{Value, json};
use std::sync::Arc;
use weft_model::MeshSnapshot;
use weft_proto::envoy::config::cluster::v3::Cluster;
use weft_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use weft_proto::unpack;
use weft_xds_gen::{GenCache, ProxyResources, ProxyView, ResourceMap, generate, generate_endpoints};

const REVIEWS: &str = "outbound|9080||reviews.default.svc.cluster.local";

fn bookinfo() -> World {
    let mut world = World::new();
    world.add_sample("bookinfo/platform/kube/bookinfo.yaml");
    world
}

fn sidecar(snapshot: &MeshSnapshot, pod: &str) -> ProxyView {
    common::proxy(snapshot, pod, false, &Value::Null)
}

fn same(a: &ResourceMap, b: &ResourceMap) -> bool {
    Arc::ptr_eq(a.shared(), b.shared())
}

/// Names of resources that differ. Of those that proxies share, equal ones must be the same `Arc`.
fn changed(a: &ResourceMap, b: &ResourceMap) -> Vec<String> {
    let is_kept = |name: &str| match (a.get(name), b.get(name)) {
        (Some(one), Some(two)) => {
            assert_eq!(one.hash == two.hash, Arc::ptr_eq(one, two) || b.own().contains_key(name), "{name}");
            one.hash == two.hash
        }
        _ => false,
    };
    let mut names: Vec<String> = a.iter().chain(b.iter()).map(|r| r.name.to_string()).collect();
    names.sort();
    names.dedup();
    names.retain(|name| !is_kept(name));
    names
}

/// Everything by name and content.
fn contents(resources: &ProxyResources) -> Vec<(String, u64)> {
    let r = resources;
    let maps = [&r.listeners, &r.routes, &r.virtual_hosts, &r.clusters, &r.endpoints];
    maps.iter().flat_map(|map| map.iter()).map(|r| (r.name.to_string(), r.hash)).collect()
}

#[test]
fn proxies_of_equal_view_share() {
    let snapshot = bookinfo().snapshot();
    let cache = GenCache::default();
    let one = cache.generate(&snapshot, &sidecar(&snapshot, "reviews-v1-0"));
    let two = cache.generate(&snapshot, &sidecar(&snapshot, "ratings-v1-0"));
    assert!(same(&one.clusters, &two.clusters));
    assert!(same(&one.endpoints, &two.endpoints));
    assert!(same(&one.routes, &two.routes));
    assert_eq!(cache.len(), 1);
    assert!(one.clusters.own().contains_key("inbound|9080||"));
    assert!(one.clusters.get(REVIEWS).is_some());
}

#[test]
fn a_rule_that_asks_for_labels_parts_those_who_have_them() {
    let mut world = bookinfo();
    world.add(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: by-label}
spec:
  hosts: [ratings]
  http:
  - match: [{sourceLabels: {version: v2}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: ratings}}]
  - route: [{destination: {host: ratings}}]
",
    );
    let snapshot = world.snapshot();
    let cache = GenCache::default();
    let of = |pod| cache.generate(&snapshot, &sidecar(&snapshot, pod));
    let (v1, v2, other_v1) = (of("reviews-v1-0"), of("reviews-v2-0"), of("details-v1-0"));
    assert!(!same(&v1.routes, &v2.routes));
    assert!(same(&v1.routes, &other_v1.routes));
    assert_ne!(v1.routes.get("9080").unwrap().hash, v2.routes.get("9080").unwrap().hash);
}

#[test]
fn new_endpoints_leave_the_rest() {
    let mut world = bookinfo();
    let before = world.snapshot();
    let cache = GenCache::default();
    let old = cache.generate(&before, &sidecar(&before, "productpage-v1-0"));

    let reviews = world.objects.iter_mut().find(|o| o.name() == "reviews-v3").unwrap();
    reviews.body["spec"]["replicas"] = json!(2);
    let after = weft_model::build(&world.inputs(), Some(&before));
    let new = cache.generate(&after, &sidecar(&after, "productpage-v1-0"));
    assert!(same(&old.clusters, &new.clusters), "clusters: {:?}", changed(&old.clusters, &new.clusters));
    assert!(same(&old.routes, &new.routes));
    assert_eq!(changed(&old.listeners, &new.listeners), [""; 0]);
    assert_eq!(contents(&new), contents(&generate(&after, &sidecar(&after, "productpage-v1-0"))));
    assert!(changed(&old.endpoints, &new.endpoints).contains(&REVIEWS.to_string()));
    assert!(!changed(&old.endpoints, &new.endpoints).contains(&REVIEWS.replace("reviews", "details")));
}

#[test]
fn a_rule_changes_its_own_clusters() {
    let mut world = bookinfo();
    let before = world.snapshot();
    let cache = GenCache::default();
    let old = cache.generate(&before, &sidecar(&before, "productpage-v1-0"));

    world.add(
        "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}
",
    );
    let after = weft_model::build(&world.inputs(), Some(&before));
    let new = cache.generate(&after, &sidecar(&after, "productpage-v1-0"));
    let subset = REVIEWS.replace("||", "|v1|");
    // The rule is named in the metadata of both clusters.
    assert_eq!(changed(&old.clusters, &new.clusters), [subset.clone(), REVIEWS.into()]);
    assert_eq!(changed(&old.endpoints, &new.endpoints), [subset]);
    assert_eq!(changed(&old.routes, &new.routes), [""; 0]);
}

#[test]
fn dialled_clusters_follow_the_endpoints() {
    let mut world = bookinfo();
    world.add(
        "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: details}
spec: {host: details, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}
",
    );
    let details = REVIEWS.replace("reviews", "details");
    let before = world.snapshot();
    let cache = GenCache::default();
    let secured = |resources: &ProxyResources| {
        let cluster: Cluster = unpack(&resources.clusters.get(&details).unwrap().any).unwrap();
        cluster.transport_socket.is_some()
    };
    let old = cache.generate(&before, &sidecar(&before, "productpage-v1-0"));
    assert!(secured(&old), "all endpoints are of the mesh");

    let pods = world.objects.iter_mut().find(|o| o.name() == "details-v1").unwrap();
    pods.body["spec"]["template"]["metadata"]["annotations"] = json!({"sidecar.istio.io/inject": "false"});
    let after = weft_model::build(&world.inputs(), Some(&before));
    let new = cache.generate(&after, &sidecar(&after, "productpage-v1-0"));
    assert!(!secured(&new), "one has no proxy, and nobody knows which will be dialled");
}

#[test]
fn endpoints_by_name() {
    let snapshot = bookinfo().snapshot();
    let cache = GenCache::default();
    let proxy = sidecar(&snapshot, "productpage-v1-0");
    let scope = cache.scope(&snapshot, &proxy);
    let all = cache.generate(&snapshot, &proxy).endpoints;
    for resource in all.iter() {
        let one = generate_endpoints(&snapshot, &scope, &resource.name).unwrap();
        assert_eq!(one.hash, resource.hash, "{}", resource.name);
    }
    let by_sni = generate_endpoints(&snapshot, &scope, "outbound_.9080_._.reviews.default.svc.cluster.local").unwrap();
    let assignment: ClusterLoadAssignment = unpack(&by_sni.any).unwrap();
    assert_eq!(assignment.endpoints.iter().map(|l| l.lb_endpoints.len()).sum::<usize>(), 3);
    for unknown in ["outbound|9080||nobody", "outbound|1||reviews.default.svc.cluster.local", "BlackHoleCluster", ""] {
        assert!(generate_endpoints(&snapshot, &scope, unknown).is_none(), "{unknown}");
    }
}

#[test]
fn gateways_that_pass_mutual_tls_on_share_endpoints_too() {
    let mut world = bookinfo();
    world.add(common::INGRESS);
    world.add(
        "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: between-networks, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 443, name: tls, protocol: TLS}, tls: {mode: AUTO_PASSTHROUGH}, hosts: ['*.local']}]
",
    );
    let before = world.snapshot();
    let cache = GenCache::default();
    let gateway = |snapshot: &MeshSnapshot| {
        let mut view = sidecar(snapshot, "istio-system/istio-ingressgateway-0");
        view.metadata.name.push_str("-another");
        [
            cache.generate(snapshot, &sidecar(snapshot, "istio-system/istio-ingressgateway-0")),
            cache.generate(snapshot, &view),
        ]
    };
    let [one, two] = gateway(&before);
    let by_name = "outbound_.9080_._.reviews.default.svc.cluster.local";
    assert!(one.endpoints.get(by_name).is_some(), "{by_name}");
    assert!(same(&one.endpoints, &two.endpoints) && one.endpoints.own().is_empty());

    let pods = world.objects.iter_mut().find(|o| o.name() == "reviews-v1").unwrap();
    pods.body["spec"]["template"]["metadata"]["annotations"] = json!({"sidecar.istio.io/inject": "false"});
    let after = weft_model::build(&world.inputs(), Some(&before));
    let [new, _] = gateway(&after);
    assert_eq!(changed(&one.endpoints, &new.endpoints), [by_name, REVIEWS]);
}

#[test]
fn order_of_objects_says_nothing() {
    let mut world = bookinfo();
    world.add_sample("bookinfo/networking/destination-rule-all.yaml");
    let view = |snapshot: &MeshSnapshot| contents(&generate(snapshot, &sidecar(snapshot, "productpage-v1-0")));
    let forwards = view(&world.snapshot());
    world.backwards = true;
    assert_eq!(forwards, view(&world.snapshot()));
}

#[test]
fn scopes_nobody_asks_for_go() {
    let mut world = bookinfo();
    world.add(common::INGRESS);
    let mut snapshot = world.snapshot();
    let cache = GenCache::default();
    cache.generate(&snapshot, &sidecar(&snapshot, "istio-system/istio-ingressgateway-0"));
    for build in 0..40 {
        let reviews = world.objects.iter_mut().find(|o| o.name() == "reviews-v3").unwrap();
        reviews.body["spec"]["replicas"] = json!(1 + build % 2);
        snapshot = weft_model::build(&world.inputs(), Some(&snapshot));
        cache.generate(&snapshot, &sidecar(&snapshot, "productpage-v1-0"));
    }
    world.add(ELSEWHERE);
    let snapshot = weft_model::build(&world.inputs(), Some(&snapshot));
    cache.generate(&snapshot, &sidecar(&snapshot, "elsewhere/one-0"));
    assert_eq!(cache.len(), 2, "the gateway's is gone");
}

const ELSEWHERE: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: one, namespace: elsewhere}
spec: {template: {metadata: {labels: {app: one}}, spec: {containers: [{name: one, image: one}]}}}
";

/// Namespaces differ in the short names of their own services, and in what is exported to them.
#[test]
fn namespaces_share_what_is_equal() {
    let mut world = bookinfo();
    world.add(ELSEWHERE).add(
        "
apiVersion: v1
kind: Service
metadata: {name: secret, namespace: elsewhere, annotations: {networking.istio.io/exportTo: '.'}}
spec: {selector: {app: one}, ports: [{name: http, port: 9080}]}
",
    );
    let without = world.objects.pop().unwrap();
    let cache = GenCache::default();
    let before = world.snapshot();
    let both = |snapshot: &MeshSnapshot| {
        let of = |pod| cache.generate(snapshot, &common::proxy(snapshot, pod, true, &Value::Null));
        (of("reviews-v1-0"), of("elsewhere/one-0"))
    };
    let (here, there) = both(&before);
    assert_eq!(cache.len(), 2);
    assert!(same(&here.clusters, &there.clusters) && same(&here.endpoints, &there.endpoints));
    let reviews = "9080/reviews.default.svc.cluster.local:9080";
    assert_ne!(here.virtual_hosts.get(reviews).unwrap().hash, there.virtual_hosts.get(reviews).unwrap().hash);
    assert!(Arc::ptr_eq(here.routes.get("9080").unwrap(), there.routes.get("9080").unwrap()));

    world.objects.push(without);
    let after = weft_model::build(&world.inputs(), Some(&before));
    let (here, there) = both(&after);
    assert!(!same(&here.clusters, &there.clusters) && !same(&here.endpoints, &there.endpoints));
    assert!(Arc::ptr_eq(here.clusters.get(REVIEWS).unwrap(), there.clusters.get(REVIEWS).unwrap()));
    let secret = "outbound|9080||secret.elsewhere.svc.cluster.local";
    assert!(here.clusters.get(secret).is_none() && there.clusters.get(secret).is_some());
}

/// One virtual service of several changes: its routes, then what it is for.
#[test]
fn a_changed_rule_moves_its_own_virtual_host() {
    let rule = |host: &str, http: Value| {
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": host},
               "spec": {"hosts": [host], "http": [http]}})
    };
    let to = |host: &str, timeout: &str| json!({"route": [{"destination": {"host": host}}], "timeout": timeout});
    for weft in [true, false] {
        let mut world = bookinfo();
        for host in ["reviews", "ratings", "details"] {
            world.add_object(rule(host, to(host, "1s")));
        }
        let cache = GenCache::default();
        let mut snapshot = world.snapshot();
        let proxy = |snapshot: &MeshSnapshot| common::proxy(snapshot, "productpage-v1-0", weft, &Value::Null);
        let mut old = cache.generate(&snapshot, &proxy(&snapshot));
        let place = world.objects.iter().position(|o| o.name() == "ratings" && o.kind == "VirtualService").unwrap();
        let host = "9080/ratings.default.svc.cluster.local:9080";
        let own = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (spec, want) in [
            (json!({"hosts": ["ratings"], "http": [to("ratings", "2s")]}), Some(own(&[host]))),
            (json!({"hosts": ["ratings"], "http": [to("reviews", "2s"), to("ratings", "3s")]}), Some(own(&[host]))),
            (json!({"hosts": ["ratings"], "http": [to("reviews", "2s"), to("ratings", "3s")]}), Some(own(&[]))),
            // For other hosts, for none of these clients, and back again.
            (json!({"hosts": ["reviews"], "http": [to("ratings", "2s")]}), None),
            (
                json!({"hosts": ["ratings"], "http": [{"match": [{"port": 1}], "route": to("ratings", "1s")["route"]}]}),
                None,
            ),
            (json!({"hosts": ["ratings"], "http": [to("ratings", "1s")]}), None),
        ] {
            world.objects[place].body["spec"] = spec;
            snapshot = weft_model::build(&world.inputs(), Some(&snapshot));
            let new = cache.generate(&snapshot, &proxy(&snapshot));
            assert_eq!(contents(&new), contents(&generate(&snapshot, &proxy(&snapshot))));
            assert!(same(&old.clusters, &new.clusters) && same(&old.listeners, &new.listeners));
            if let Some(want) = want {
                let configuration = if want.is_empty() { own(&[]) } else { own(&["9080"]) };
                let (hosts, routes) = if weft { (want, own(&[])) } else { (own(&[]), configuration) };
                assert_eq!(changed(&old.virtual_hosts, &new.virtual_hosts), hosts);
                assert_eq!(changed(&old.routes, &new.routes), routes);
            }
            old = new;
        }
    }
}

/// Every object of every golden world goes and comes back, one at a time; what the cache says is always what would be made
/// without it.
#[test]
fn the_cache_never_lags() {
    let folder = common::repository().join("crates/control/weft-xds-gen/tests/golden");
    let mut compared = 0;
    for file in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        if file.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        let (head, mut world) = World::of_case(&std::fs::read_to_string(&file).unwrap());
        let pod = head["pod"].as_str().unwrap();
        let weft = head["weft"] == true;
        let cache = GenCache::default();
        let mut snapshot = world.snapshot();
        cache.generate(&snapshot, &common::proxy(&snapshot, pod, weft, &head["metadata"]));
        for index in 0..world.objects.len() {
            let object = world.objects[index].clone();
            for step in ["without", "with"] {
                if step == "without" {
                    world.objects.remove(index);
                } else {
                    world.objects.insert(index, object.clone());
                }
                snapshot = weft_model::build(&world.inputs(), Some(&snapshot));
                if !snapshot.workloads_by_name.contains_key(&full_name(pod)) {
                    continue;
                }
                let proxy = common::proxy(&snapshot, pod, weft, &head["metadata"]);
                let cached = cache.generate(&snapshot, &proxy);
                let fresh = generate(&snapshot, &proxy);
                let label = format!("{} {step} {} {}", file.display(), object.kind, object.name());
                assert_eq!(contents(&cached), contents(&fresh), "{label}");
                assert_eq!(cached.credentials, fresh.credentials, "{label}");
                let names = |r: &ProxyResources| r.name_table.as_ref().map(|table| table.hash);
                assert_eq!(names(&cached), names(&fresh), "{label}");
                compared += 1;
            }
        }
    }
    assert!(compared > 100, "{compared}");
}

fn full_name(pod: &str) -> String {
    if pod.contains('/') { pod.into() } else { format!("default/{pod}") }
}
