//! A whole lab without a mesh, driven through its API like a cluster: workloads, services, names, logs, commands, restarts,
//! rollouts, ports of the machine; and that nothing is left of it, whichever of its processes is killed.
//!
//! This one program is `weft up`, the lab, and the programs of its pods. Where namespaces are not permitted all is skipped.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod outside;

use outside::{Lab, cases, eventually};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use weft_store::client::{ExecOptions, LogOptions};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [word, ..] if *word == weft_node::init::COMMAND => weft_node::lab::main(),
        ["serve", port, text] => outside::serve(port, text),
        ["get", url] => outside::get(url),
        // Added by the injector, with whatever arguments the proxy takes.
        ["proxy", ..] => outside::proxy(),
        ["parent", folder] => outside::parent(folder),
        _ => cases(
            &arguments,
            &[
                ("services_names_logs_and_commands", || Box::pin(services_names_logs_and_commands())),
                ("a_rollout_loses_no_request", || Box::pin(a_rollout_loses_no_request())),
                ("crashes_and_jobs", || Box::pin(crashes_and_jobs())),
                ("volumes_and_environment", || Box::pin(volumes_and_environment())),
                ("stateful_pods_have_names", || Box::pin(stateful_pods_have_names())),
                ("injected_pods_talk_through_their_proxy", || Box::pin(injected_pods_talk_through_their_proxy())),
                ("nothing_survives_a_kill", || Box::pin(nothing_survives_a_kill())),
            ],
        ),
    }
}

fn web(text: &str, replicas: u32) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"terminationGracePeriodSeconds": 5, "containers": [{
                "name": "web", "image": "test/self", "args": ["serve", "8080", text],
                "ports": [{"name": "http", "containerPort": 8080}],
                "readinessProbe": {"httpGet": {"path": "/", "port": "http"}},
                // As everywhere: a pod goes on serving until everybody knows that it is leaving.
                "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}]}}}})
}

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": spec})
}

fn web_service() -> Value {
    service("web", json!({"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}))
}

/// A pod to run commands in.
fn client() -> Value {
    pod(
        "client",
        json!({"name": "c", "image": "busybox", "command": ["sh", "-c", "echo first; while :; do sleep 0.1; done"]}),
    )
}

fn pod(name: &str, container: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]}})
}

async fn services_names_logs_and_commands() {
    let lab = Lab::start().await;
    lab.apply(&[web("hello", 2), web_service(), client()]).await;
    lab.apply(&[service("alias", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}))])
        .await;
    lab.until_available("web", 2).await;
    lab.until_ready("client").await;
    let me = std::env::current_exe().unwrap().display().to_string();
    for host in ["web", "web.default", "web.default.svc.cluster.local", "alias"] {
        let (code, text) = lab.run("client", &[&me, "get", &format!("http://{host}/")]).await;
        assert!(code == 0 && text.starts_with("hello from web-"), "{host}: {code} {text}");
    }
    let (code, text) = lab.run("client", &[&me, "get", "http://no-such-name/"]).await;
    assert!(code == 1 && text.contains("lookup"), "{code} {text}");
    // Both pods are found behind the one address.
    let mut seen = std::collections::BTreeSet::new();
    eventually("both pods answer", async || {
        seen.insert(lab.run("client", &[&me, "get", "http://web/"]).await.1);
        seen.len() == 2
    })
    .await;
    assert_eq!(lab.run("client", &["sh", "-c", "cat; exit 5"]).await.0, 5);
    let echoed = lab.exec("client", ExecOptions { command: vec!["cat".into()], ..Default::default() }, b"typed").await;
    assert_eq!((echoed.code, echoed.stdout.as_slice()), (0, &b"typed"[..]));
    let tty = ExecOptions {
        command: vec!["sh".into(), "-c".into(), "test -t 1 && echo terminal".into()],
        tty: true,
        ..Default::default()
    };
    assert_eq!(String::from_utf8_lossy(&lab.exec("client", tty, b"").await.stdout).trim(), "terminal");
    assert_eq!(lab.log("client", LogOptions { tail_lines: Some(1), ..Default::default() }).await, "first\n");
    let timed = lab.log("client", LogOptions { timestamps: true, ..Default::default() }).await;
    assert!(timed.starts_with("20") && timed.trim_end().ends_with("Z first"), "{timed}");
    // A service without pods refuses at once, it does not hang.
    lab.apply(&[service("empty", json!({"selector": {"app": "none"}, "ports": [{"port": 80}]}))]).await;
    eventually("the name is known, and the connection refused", async || {
        let (code, text) = lab.run("client", &[&me, "get", "http://empty/"]).await;
        code == 1 && text.to_lowercase().contains("refused")
    })
    .await;
    // A port on the pod's loopback, through the API server.
    let name = lab.pods("app=web").await[0].name().to_string();
    let text = lab.forwarded(&name, 8080).await;
    assert!(text.contains(&format!("hello from {name}")), "{text}");
}

async fn a_rollout_loses_no_request() {
    let lab = Lab::start().await;
    lab.apply(&[web("one", 3), web_service()]).await;
    lab.until_available("web", 3).await;
    let (stop, failed, asked) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let asking = {
        let (stop, failed, asked, port) = (Arc::clone(&stop), Arc::clone(&failed), Arc::clone(&asked), lab.port);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let answer = outside::ask(&format!("http://127.0.0.1:{port}/"));
                asked.fetch_add(1, Ordering::Relaxed);
                if answer.is_err() {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        })
    };
    lab.apply(&[web("two", 3)]).await;
    eventually("all pods are of the second version", async || {
        let deployment = lab.get("apps", "Deployment", "web").await;
        let status = &deployment.body["status"];
        status["observedGeneration"] == deployment.metadata.generation.unwrap()
            && status["updatedReplicas"] == 3
            && status["availableReplicas"] == 3
            && status["replicas"] == 3
            && lab.pods("app=web").await.len() == 3
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    asking.join().unwrap();
    assert!(outside::ask(&format!("http://127.0.0.1:{}/", lab.port)).unwrap().starts_with("two"));
    // Enough to have met every pod, also on a machine that does ten other things.
    assert!(asked.load(Ordering::Relaxed) > 20);
    assert_eq!(failed.load(Ordering::Relaxed), 0, "of {}", asked.load(Ordering::Relaxed));
}

async fn crashes_and_jobs() {
    let lab = Lab::start().await;
    let crash = pod("crash", json!({"name": "c", "image": "busybox", "command": ["sh", "-c", "echo oops; exit 3"]}));
    let unknown = pod("unknown", json!({"name": "c", "image": "acme/app:1"}));
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job", "namespace": "default"},
        "spec": {"completions": 2, "template": {"spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "initContainers": [{"name": "side", "image": "busybox", "restartPolicy": "Always", "command": ["sleep", "1000"]}],
            "containers": [{"name": "work", "image": "busybox", "command": ["sh", "-c", "sleep 0.2; echo done"]}]}}}});
    lab.apply(&[crash, unknown, job]).await;
    eventually("the container is in a crash loop", async || {
        let status = &lab.get("", "Pod", "crash").await.body["status"]["containerStatuses"][0];
        status["restartCount"].as_u64() >= Some(2)
            && status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            && status["lastState"]["terminated"]["exitCode"] == 3
    })
    .await;
    let previous = lab.log("crash", LogOptions { previous: true, ..Default::default() }).await;
    assert_eq!(previous, "oops\n");
    let waiting =
        lab.get("", "Pod", "unknown").await.body["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    assert_eq!(waiting["reason"], "ErrImagePull");
    assert!(waiting["message"].as_str().unwrap().contains("weft-lab.yaml"), "{waiting}");
    let events =
        lab.client.list(weft_k8s_api::kinds::by_kind("", "Event").unwrap(), Some("default"), &Default::default()).await;
    let events = events.unwrap().items;
    let told = |pod: &str, reason: &str| {
        events.iter().any(|e| e.body["involvedObject"]["name"] == pod && e.body["reason"] == reason)
    };
    for (pod, reason) in
        [("crash", "Scheduled"), ("crash", "Started"), ("crash", "BackOff"), ("unknown", "ErrImagePull")]
    {
        assert!(told(pod, reason), "{pod} {reason}");
    }
    // The sidecar does not keep the job from being complete.
    eventually("the job is complete", async || {
        lab.get("batch", "Job", "job").await.body["status"]["conditions"][0]["type"] == "Complete"
    })
    .await;
    assert_eq!(lab.get("batch", "Job", "job").await.body["status"]["succeeded"], 2);
}

async fn volumes_and_environment() {
    let lab = Lab::start().await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "default"}, "data": {"k": "one"}});
    let reader = json!({"name": "c", "image": "busybox", "command": ["sh", "-c", "while :; do sleep 0.1; done"],
        "env": [{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "volumeMounts": [{"name": "map", "mountPath": "/etc/map"}, {"name": "shared", "mountPath": "/data"}]});
    let mut with_volumes = pod("reader", reader);
    with_volumes["spec"]["volumes"] =
        json!([{"name": "map", "configMap": {"name": "m"}}, {"name": "shared", "emptyDir": {}}]);
    with_volumes["spec"]["initContainers"] = json!([{"name": "i", "image": "busybox", "command": ["sh", "-c", "echo made > /data/file"],
        "volumeMounts": [{"name": "shared", "mountPath": "/data"}]}]);
    lab.apply(&[with_volumes]).await;
    eventually("the pod says what it waits for", async || {
        let status = &lab.get("", "Pod", "reader").await.body["status"]["containerStatuses"][0]["state"]["waiting"];
        status["message"].as_str().is_some_and(|text| text.contains("ConfigMap default/m"))
    })
    .await;
    lab.apply(std::slice::from_ref(&map)).await;
    lab.until_ready("reader").await;
    let (_, text) = lab
        .run(
            "reader",
            &[
                "sh",
                "-c",
                "echo $K $IP; cat /etc/map/k /data/file; cat /var/run/secrets/kubernetes.io/serviceaccount/namespace",
            ],
        )
        .await;
    let ip = lab.get("", "Pod", "reader").await.body["status"]["podIP"].as_str().unwrap().to_string();
    assert_eq!(text, format!("one {ip}\nonemade\ndefault"));
    // What client libraries look for in a pod: the API server's authority beside the token.
    let (_, text) = lab.run("reader", &["cat", "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"]).await;
    assert!(text.starts_with("-----BEGIN CERTIFICATE-----"), "{text}");
    let mut changed = map;
    changed["data"]["k"] = "two".into();
    lab.apply(&[changed]).await;
    eventually("the mounted file follows", async || lab.run("reader", &["cat", "/etc/map/k"]).await.1 == "two").await;
}

async fn stateful_pods_have_names() {
    let lab = Lab::start().await;
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db", "namespace": "default"},
        "spec": {"replicas": 2, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"terminationGracePeriodSeconds": 0,
                "containers": [{"name": "db", "image": "test/self", "args": ["serve", "7000", "data"]}]}}}});
    let headless = service(
        "db",
        json!({"clusterIP": "None", "selector": {"app": "db"}, "ports": [{"name": "tcp", "port": 7000}]}),
    );
    lab.apply(&[headless, set, client()]).await;
    for name in ["db-0", "db-1", "client"] {
        lab.until_ready(name).await;
    }
    let me = std::env::current_exe().unwrap().display().to_string();
    eventually("the pod is found by its own name", async || {
        let (code, text) = lab.run("client", &[&me, "get", "http://db-1.db:7000/"]).await;
        code == 0 && text == "data from db-1"
    })
    .await;
}

/// With a proxy of the test's own, which passes everything on and says what.
async fn injected_pods_talk_through_their_proxy() {
    let lab = Lab::start().await;
    // There is no control plane whose webhook could do it: injected as by `weft kube-inject`.
    let injected = |pod: &Value| {
        let request = weft_inject::Request { pod: pod.clone(), namespace: "default", ..Default::default() };
        weft_inject::Injector::default().inject(&request).unwrap()
    };
    let mut web = web("hello", 1);
    let template = injected(&web["spec"]["template"]);
    web["spec"]["template"] = json!({"metadata": template["metadata"], "spec": template["spec"]});
    let mut client = client();
    client["metadata"]["annotations"] = json!({"traffic.sidecar.istio.io/excludeOutboundPorts": "8080"});
    lab.apply(&[web, web_service(), injected(&client)]).await;
    eventually("the pod says what its proxy lacks", async || {
        let status = lab.get("", "Pod", "client").await.body["status"]["containerStatuses"][0]["state"].clone();
        status["waiting"]["message"].as_str().is_some_and(|text| text.contains("istio-ca-root-cert"))
    })
    .await;
    let roots = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio-ca-root-cert", "namespace": "default"},
        "data": {"root-cert.pem": "none"}});
    lab.apply(&[roots]).await;
    lab.until_available("web", 1).await;
    lab.until_ready("client").await;
    let proxy_log = async |pod: &str| {
        lab.log(pod, LogOptions { container: Some("istio-proxy".into()), ..Default::default() }).await
    };
    let pods = lab.pods("app=web").await;
    let (web_pod, address) = (pods[0].name(), pods[0].body["status"]["podIP"].as_str().unwrap());
    assert!(!proxy_log(web_pod).await.contains("inbound"), "the readiness probe went to the agent");
    let me = std::env::current_exe().unwrap().display().to_string();
    let ask = async |url: &str| {
        let command = [&me, "get", url].map(String::from).to_vec();
        let options = ExecOptions { command, container: Some("c".into()), ..Default::default() };
        let output = lab.exec("client", options, b"").await;
        (output.code, String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(ask("http://web/").await, (0, format!("hello from {web_pod}")));
    let cluster_ip = lab.get("", "Service", "web").await.spec()["clusterIP"].as_str().unwrap().to_string();
    assert!(proxy_log("client").await.contains(&format!("outbound {cluster_ip}:80")));
    assert!(proxy_log(web_pod).await.contains(&format!("inbound {address}:8080")));
    // An excluded port goes around the caller's proxy, but not around the other's.
    assert_eq!(ask(&format!("http://{address}:8080/")).await.0, 0);
    assert!(!proxy_log("client").await.contains(":8080"));
}

async fn nothing_survives_a_kill() {
    // Whichever is killed: `weft up`, the keeper, the lab.
    for victim in 0..3 {
        outside::kill_and_look(victim).await;
    }
}
