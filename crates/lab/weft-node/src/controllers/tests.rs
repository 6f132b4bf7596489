//! The controllers against a memory store, with a node that only writes statuses.

use super::objects::{is_deleting, is_ready, list, spec_number, status_number};
use super::*;
use serde_json::{Value, json};
use weft_store::DeleteOptions;

/// Pods are there at once; unless they are to be late: then they are only asked for.
#[derive(Default)]
struct Direct {
    store: Option<MemoryStore>,
    late: std::sync::Mutex<HashMap<String, (usize, Option<String>)>>,
    freed: Notify,
}

impl PodMaker for Direct {
    fn create(&self, owner: &Object, mut pod: Object) {
        let Some(store) = &self.store else {
            self.late.lock().unwrap().entry(uid(owner).into()).or_insert((0, None)).0 += 1;
            return;
        };
        if let Some(spec) = pod.body.get_mut("spec") {
            spec["nodeName"] = NODE.into();
        }
        store.create(pod).unwrap();
    }

    fn asked(&self) -> Asked {
        Asked(self.late.lock().unwrap().clone())
    }

    fn freed(&self) -> &Notify {
        &self.freed
    }
}

fn object(value: Value) -> Object {
    serde_json::from_value(value).unwrap()
}

fn store() -> MemoryStore {
    let store = MemoryStore::new();
    store.create(object(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}))).unwrap();
    store
}

fn settle(store: &MemoryStore) {
    settle_with(store, &Direct { store: Some(store.clone()), ..Direct::default() });
}

fn settle_with(store: &MemoryStore, maker: &Direct) {
    let mut controllers = all(Surroundings { root_ca: Some("PEM".into()), ..Surroundings::default() });
    for _ in 0..100 {
        let before = store.revision();
        controllers.iter_mut().for_each(|controller| controller.reconcile(store, maker));
        if store.revision() == before {
            return;
        }
    }
    panic!("the controllers never come to rest");
}

/// One step of a node: `ready` of the pods that are not ready become so, and pods being deleted are gone.
fn node_step(store: &MemoryStore, ready: usize) {
    let pods = list(store, "", "Pod");
    for pod in pods.iter().filter(|pod| is_deleting(pod)) {
        let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        store.delete(&pod.key(), &now).unwrap();
    }
    for pod in pods.iter().filter(|pod| !is_deleting(pod) && !is_ready(pod)).take(ready) {
        set_status(
            store,
            pod,
            json!({"phase": "Running", "podIP": format!("10.244.0.{}", 2 + store.revision() % 250),
                                      "conditions": [{"type": "Ready", "status": "True"}]}),
        );
    }
}

fn set_status(store: &MemoryStore, pod: &Object, status: Value) {
    store.modify(&pod.key(), |pod| drop(pod.body.insert("status".into(), status.clone()))).unwrap();
}

fn deployment(version: &str, replicas: u32) -> Object {
    object(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                 "template": {"metadata": {"labels": {"app": "web"}},
                              "spec": {"containers": [{"name": "web", "image": version,
                                                       "ports": [{"name": "http", "containerPort": 8080}]}]}}}}))
}

fn apply(store: &MemoryStore, new: Object) {
    store.modify(&new.key(), |old| drop(old.body.insert("spec".into(), new.spec().clone()))).unwrap();
}

#[test]
fn a_rollout_keeps_enough_pods_and_finishes() {
    let store = store();
    store.create(deployment("v1", 4)).unwrap();
    for _ in 0..3 {
        settle(&store);
        node_step(&store, 9);
    }
    settle(&store);
    assert_eq!(list(&store, "", "Pod").iter().filter(|pod| is_ready(pod)).count(), 4);
    apply(&store, deployment("v2", 4));
    let mut steps = 0;
    loop {
        settle(&store);
        let pods = list(&store, "", "Pod");
        let ready = pods.iter().filter(|pod| is_ready(pod)).count();
        let active = pods.iter().filter(|pod| !is_deleting(pod)).count();
        assert!((3..=5).contains(&ready) && active <= 5, "step {steps}: {ready} ready of {active}");
        let deployment = store.find("apps", "Deployment", "default", "web").unwrap();
        if status_number(&deployment, "updatedReplicas") == 4 && active == 4 && ready == 4 {
            break;
        }
        node_step(&store, 1);
        steps += 1;
        assert!(steps < 50, "the rollout never ends");
    }
    let image = |pod: &Arc<Object>| pod.spec()["containers"][0]["image"].clone();
    assert!(list(&store, "", "Pod").iter().filter(|pod| !is_deleting(pod)).all(|pod| image(pod) == "v2"));
    let deployment_now = store.find("apps", "Deployment", "default", "web").unwrap();
    assert_eq!(deployment_now.annotation("deployment.kubernetes.io/revision"), Some("2"));
    // Back to the first version: its ReplicaSet is used again.
    apply(&store, deployment("v1", 4));
    settle(&store);
    let sets = list(&store, "apps", "ReplicaSet");
    assert_eq!(sets.len(), 2);
    assert!(sets.iter().any(|set| set.annotation("deployment.kubernetes.io/revision") == Some("3")));
}

#[test]
fn scaling_and_endpoints() {
    let store = store();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}});
    store.create(object(service)).unwrap();
    store.create(deployment("v1", 3)).unwrap();
    settle(&store);
    node_step(&store, 2);
    settle(&store);
    let slice = || list(&store, "discovery.k8s.io", "EndpointSlice")[0].clone();
    let conditions = |name: &str| {
        let slice = slice();
        let endpoints = slice.body["endpoints"].as_array().unwrap().clone();
        endpoints.iter().filter(|e| e["conditions"][name] == true).count()
    };
    assert_eq!(slice().body["ports"][0]["port"], 8080);
    assert_eq!((conditions("ready"), conditions("terminating")), (2, 0));
    apply(&store, deployment("v1", 1));
    settle(&store);
    // The pod that was never ready goes first; the other leaving one is marked at once, and still serves until it is gone.
    assert_eq!((conditions("ready"), conditions("serving"), conditions("terminating")), (1, 2, 1));
    node_step(&store, 0);
    settle(&store);
    assert_eq!(slice().body["endpoints"].as_array().unwrap().len(), 1);
    let endpoints = store.find("", "Endpoints", "default", "web").unwrap();
    assert_eq!(endpoints.body["subsets"][0]["addresses"].as_array().unwrap().len(), 1);
}

#[test]
fn a_pod_without_an_address_of_the_family_is_no_endpoint() {
    let store = store();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "ipFamilies": ["IPv6"], "clusterIP": "fd00:10:96::9", "ports": [{"port": 80}]}});
    store.create(object(service)).unwrap();
    store.create(deployment("v1", 2)).unwrap();
    settle(&store);
    node_step(&store, 2);
    settle(&store);
    let subsets = || store.find("", "Endpoints", "default", "web").unwrap().body["subsets"].clone();
    assert_eq!(subsets(), json!([]), "both have addresses of IPv4 alone");
    let pod = list(&store, "", "Pod")[0].clone();
    let status = json!({"phase": "Running", "podIP": "10.244.0.9", "podIPs": [{"ip": "10.244.0.9"}, {"ip": "fd00:10:244::9"}],
        "conditions": [{"type": "Ready", "status": "True"}]});
    set_status(&store, &pod, status);
    settle(&store);
    let addresses = subsets()[0]["addresses"].clone();
    assert_eq!((addresses.as_array().unwrap().len(), &addresses[0]["ip"]), (1, &json!("fd00:10:244::9")));
}

#[test]
fn stateful_pods_come_in_order_and_keep_their_names() {
    let store = store();
    let set = |image: &str| {
        object(
            json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db", "namespace": "default"},
            "spec": {"replicas": 3, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
                     "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "db", "image": image}]}}}}),
        )
    };
    store.create(set("v1")).unwrap();
    for expected in 1..=3 {
        settle(&store);
        assert_eq!(list(&store, "", "Pod").len(), expected, "one after another");
        node_step(&store, 9);
    }
    settle(&store);
    let first = store.find("", "Pod", "default", "db-0").unwrap();
    assert_eq!((&first.spec()["hostname"], &first.spec()["subdomain"]), (&json!("db-0"), &json!("db")));
    apply(&store, set("v2"));
    settle(&store);
    let leaving: Vec<_> =
        list(&store, "", "Pod").iter().filter(|p| is_deleting(p)).map(|p| p.name().to_string()).collect();
    assert_eq!(leaving, ["db-2"], "the highest first");
    for _ in 0..10 {
        node_step(&store, 9);
        settle(&store);
    }
    let pods = list(&store, "", "Pod");
    assert!(pods.len() == 3 && pods.iter().all(|pod| pod.spec()["containers"][0]["image"] == "v2"));
}

#[test]
fn jobs_end() {
    let job = |name: &str, limit: u32| {
        object(json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": "default"},
            "spec": {"completions": 2, "backoffLimit": limit,
                     "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "a"}]}}}}))
    };
    for (phase, condition, pods) in [("Succeeded", "Complete", 2), ("Failed", "Failed", 2)] {
        let store = store();
        store.create(job("x", 1)).unwrap();
        for _ in 0..4 {
            settle(&store);
            for pod in list(&store, "", "Pod") {
                set_status(&store, &pod, json!({"phase": phase}));
            }
        }
        settle(&store);
        let done = store.find("batch", "Job", "default", "x").unwrap();
        assert_eq!(done.body["status"]["conditions"][0]["type"], condition, "{:?}", done.body["status"]);
        assert_eq!(list(&store, "", "Pod").len(), pods);
    }
}

#[test]
fn daemons_run_once_and_namespaces_have_accounts() {
    let store = store();
    let set = object(
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "d", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": "d"}}, "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": []}}}}),
    );
    store.create(set).unwrap();
    settle(&store);
    assert_eq!(list(&store, "", "Pod").len(), 1);
    node_step(&store, 1);
    settle(&store);
    let set = store.find("apps", "DaemonSet", "default", "d").unwrap();
    assert_eq!((status_number(&set, "numberReady"), spec_number(&set, "x", 5)), (1, 5));
    assert!(store.find("", "ServiceAccount", "default", "default").is_some());
    let map = store.find("", "ConfigMap", "default", "kube-root-ca.crt").unwrap();
    store
        .modify(&map.key(), |map| drop(map.body.insert("data".into(), json!({"ca.crt": "of an earlier lab"}))))
        .unwrap();
    settle(&store);
    assert_eq!(store.get(&map.key()).unwrap().body["data"]["ca.crt"], "PEM");
    assert_eq!(store.find("", "Namespace", "", "default").unwrap().body["status"]["phase"], "Active");
}

#[test]
fn endpoints_by_hand_become_slices() {
    let store = store();
    store
        .create(object(
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "far", "namespace": "default"},
            "spec": {"ports": [{"name": "tls", "port": 443}]}}),
        ))
        .unwrap();
    let endpoints = |ip: &str| {
        object(json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "far", "namespace": "default"},
            "subsets": [{"addresses": [{"ip": ip}], "ports": [{"name": "tls", "port": 8443}]}]}))
    };
    let slices = || list(&store, "discovery.k8s.io", "EndpointSlice");
    let made = store.create(endpoints("198.18.0.2")).unwrap();
    settle(&store);
    let slice = slices()[0].clone();
    assert_eq!(slice.body["endpoints"][0]["addresses"], json!(["198.18.0.2"]));
    assert_eq!(slice.body["ports"][0], json!({"name": "tls", "port": 8443, "protocol": "TCP"}));
    store.modify(&made.key(), |old| old.body = endpoints("198.18.0.3").body.clone()).unwrap();
    settle(&store);
    assert_eq!(slices()[0].body["endpoints"][0]["addresses"], json!(["198.18.0.3"]));
    store.modify(&made.key(), |old| drop(old.body.insert("subsets".into(), json!([])))).unwrap();
    settle(&store);
    assert!(slices().is_empty());
}

#[test]
fn pods_on_their_way_are_not_asked_for_again() {
    let store = store();
    let template = json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": []}});
    let workload = |api: &str, kind: &str, more: Value| {
        let mut spec = json!({"selector": {"matchLabels": {"app": kind}}, "template": template});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        object(
            json!({"apiVersion": api, "kind": kind, "metadata": {"name": "x", "namespace": "default"}, "spec": spec}),
        )
    };
    let all = [
        (workload("apps/v1", "ReplicaSet", json!({"replicas": 3})), 3),
        (workload("apps/v1", "StatefulSet", json!({"replicas": 3})), 1),
        (workload("apps/v1", "DaemonSet", json!({})), 1),
        (workload("batch/v1", "Job", json!({"completions": 5, "parallelism": 2})), 2),
    ];
    let owners = all.map(|(owner, count)| (store.create(owner).unwrap(), count));
    let maker = Direct::default();
    (0..3).for_each(|_| settle_with(&store, &maker));
    for (owner, count) in &owners {
        assert_eq!(maker.asked().pods(owner), *count, "{}", owner.kind);
    }
    // What is refused for some time is a condition of the set, as on a cluster.
    let set = &owners[0].0;
    maker.late.lock().unwrap().insert(uid(set).into(), (3, Some("Error creating: no".into())));
    settle_with(&store, &maker);
    let condition = store.get(&set.key()).unwrap().body["status"]["conditions"][0].clone();
    assert_eq!((&condition["type"], &condition["message"]), (&json!("ReplicaFailure"), &json!("Error creating: no")));
}
