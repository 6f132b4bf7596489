//! The plugin as a container runtime calls it, on a network namespace of a "pod", with an API server that knows the pod; and the
//! agent on folders of a "node". Skipped, saying so, where the kernel permits no user namespace or programs are missing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../../crates/proxy/weft-capture/tests/harness/mod.rs"]
mod harness;

use harness::{BOUND, Neighbour};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use tokio::net::TcpListener;
use weft_apiserver::{AdminToken, ApiServer, ApiServerOptions};
use weft_k8s_api::Object;
use weft_store::MemoryStore;

const PROGRAM: &str = env!("CARGO_BIN_EXE_weft-cni");
const TOKEN: &str = "cni-test-token-0123456789";

/// An API server on loopback, on threads of its own; goes with the value.
struct Api {
    store: MemoryStore,
    url: String,
    _runtime: tokio::runtime::Runtime,
}

impl Api {
    fn start() -> Self {
        weft_tls::install_provider();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let store = MemoryStore::new();
        let options = ApiServerOptions {
            admin_tokens: vec![AdminToken { token: TOKEN.into(), user: "admin".into() }],
            ..ApiServerOptions::default()
        };
        let (serving, kept) = (store.clone(), store.clone());
        let url = runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let server = ApiServer::new(serving, options).unwrap();
            tokio::spawn(async move { server.serve(listener, std::future::pending::<()>()).await });
            url
        });
        Self { store: kept, url, _runtime: runtime }
    }

    fn pod(&self, name: &str, annotations: Value, containers: &[&str]) {
        let mut all = json!({"sidecar.istio.io/status": "{}"});
        annotations.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
        let containers: Vec<Value> = containers.iter().map(|name| json!({"name": name, "image": "i"})).collect();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "annotations": all},
            "spec": {"nodeName": "node-1", "containers": containers},
        });
        self.store.create(serde_json::from_value(pod).unwrap()).unwrap();
    }

    fn find(&self, name: &str) -> Option<std::sync::Arc<Object>> {
        self.store.find("", "Pod", "default", name)
    }
}

/// An account's folder, as a pod has it.
fn account(folder: &Path) -> std::path::PathBuf {
    let account = folder.join("account");
    std::fs::create_dir_all(&account).unwrap();
    std::fs::write(account.join("token"), TOKEN).unwrap();
    std::fs::write(account.join("namespace"), "istio-system").unwrap();
    account
}

/// The agent on a node's folders; killed with the value.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn agent(folder: &Path, url: &str) -> Agent {
    let child = Command::new(PROGRAM)
        .args(["install", "--api-server", url, "--node-name", "node-1", "--account"])
        .arg(account(folder))
        .arg("--bin-dir")
        .arg(folder.join("bin"))
        .arg("--conf-dir")
        .arg(folder.join("net.d"))
        .arg("--conf-dir-on-host")
        .arg(folder.join("net.d"))
        .spawn();
    Agent(child.unwrap())
}

fn is_ready(folder: &Path) -> bool {
    let mut probe = Command::new(folder.join("bin/weft-cni"));
    probe.arg("ready").arg("--bin-dir").arg(folder.join("bin")).arg("--conf-dir").arg(folder.join("net.d"));
    probe.arg("--account").arg(folder.join("account"));
    probe.arg("--conf-dir-on-host").arg(folder.join("net.d")).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < BOUND * 3, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Calls the plugin: whether it succeeded, and what it said.
fn call(program: &Path, command: &str, pod: &str, network: &Path, settings: &Value) -> (bool, Value) {
    let mut child = Command::new(program)
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_NETNS", network)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}"))
        .env("CNI_PATH", program.parent().unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(settings.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), serde_json::from_slice(&output.stdout).unwrap_or_default())
}

fn rules(pod: &Neighbour) -> String {
    let nft = weft_capture::find_tool("nft").unwrap();
    let output = pod.enter().arg(nft).args(["list", "ruleset"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// It needs no namespace.
#[test]
fn an_agent_that_waits_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let (bin, conf) = (folder.path().join("bin"), folder.path().join("net.d"));
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::create_dir_all(&conf).unwrap();
    let list = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}"#;
    std::fs::write(conf.join("10-net.conflist"), list).unwrap();
    // It takes connections and never answers.
    let api = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    api.set_nonblocking(true).unwrap();
    let mut agent = agent(folder.path(), &format!("http://{}", api.local_addr().unwrap()));
    let mut connection = None;
    wait("the agent asks for pods", || {
        connection = api.accept().ok();
        connection.is_some()
    });
    assert!(is_ready(folder.path()));
    kill(Pid::from_raw(i32::try_from(agent.0.id()).unwrap()), Signal::SIGTERM).unwrap();
    wait("the agent has ended", || agent.0.try_wait().unwrap().is_some());
    assert!(agent.0.wait().unwrap().success());
    let left: Value = serde_json::from_slice(&std::fs::read(conf.join("10-net.conflist")).unwrap()).unwrap();
    assert_eq!(left, serde_json::from_str::<Value>(list).unwrap());
    assert_eq!(std::fs::read_dir(&bin).unwrap().count(), 0);
}

#[test]
fn a_runtime_and_a_node() {
    harness::run_inner(&["nft", "ip", "nsenter"]);
}

/// Runs only when started by the test above; alone it has nothing to check.
#[test]
fn inner() {
    if !harness::is_inner() {
        return;
    }
    let network = Neighbour::start(Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
    let api = Api::start();
    let folder = tempfile::tempdir().unwrap();
    let (bin, conf) = (folder.path().join("bin"), folder.path().join("net.d"));
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::create_dir_all(&conf).unwrap();
    // Pods of before: one that its validation has found without redirection, and one that is well.
    for (name, code) in [("broken", 126), ("well", 0)] {
        api.pod(name, json!({}), &["app", "istio-proxy"]);
        let state = json!([{"name": "istio-validation", "state": {"terminated": {"exitCode": code}}}]);
        let key = api.find(name).unwrap().key();
        api.store
            .modify(&key, |pod| drop(pod.body.insert("status".into(), json!({"initContainerStatuses": state}))))
            .unwrap();
    }
    let mut agent = agent(folder.path(), &api.url);
    // There is no network yet: it waits. Then the network's own agent comes.
    assert!(!is_ready(folder.path()));
    let list = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}"#;
    std::fs::write(conf.join("10-net.conflist"), list).unwrap();
    wait("the plugin is installed", || is_ready(folder.path()));
    // No kubelet is there to end it.
    let goes = |name: &str| api.find(name).is_none_or(|pod| pod.metadata.deletion_timestamp.is_some());
    wait("the pod of before is made anew", || goes("broken"));
    assert!(!goes("well"));
    let written: Value = serde_json::from_slice(&std::fs::read(conf.join("10-net.conflist")).unwrap()).unwrap();
    let mut settings = written["plugins"][1].clone();
    settings["cniVersion"] = written["cniVersion"].clone();
    settings["name"] = written["name"].clone();
    settings["prevResult"] = json!({"cniVersion": "1.0.0", "ips": [{"address": "192.0.2.2/24"}]});
    the_plugin(&api, &network, &bin.join("weft-cni"), &settings);
    // Whoever writes the configuration anew: the plugin comes back.
    std::fs::write(conf.join("10-net.conflist"), list).unwrap();
    wait("the plugin is back", || is_ready(folder.path()));
    // Told to stop, it leaves the node as it was.
    kill(Pid::from_raw(i32::try_from(agent.0.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert!(agent.0.wait().unwrap().success());
    let left: Value = serde_json::from_slice(&std::fs::read(conf.join("10-net.conflist")).unwrap()).unwrap();
    assert_eq!(left, serde_json::from_str::<Value>(list).unwrap());
    assert_eq!(std::fs::read_dir(&bin).unwrap().count() + std::fs::read_dir(&conf).unwrap().count(), 1);
    harness::done();
}

fn the_plugin(api: &Api, network: &Neighbour, program: &Path, settings: &Value) {
    let ask = |command: &str, pod: &str| call(program, command, pod, &network.path(), settings);
    let versions = call(program, "VERSION", "", Path::new(""), &json!({"cniVersion": "1.0.0"}));
    assert!(
        versions.0 && versions.1["supportedVersions"].as_array().unwrap().contains(&json!("1.1.0")),
        "{versions:?}"
    );
    assert!(ask("STATUS", "").0);
    // Without a proxy nothing is redirected, and what the plugins before have made is passed on.
    api.pod("plain", json!({}), &["app"]);
    assert_eq!(ask("ADD", "plain"), (true, settings["prevResult"].clone()));
    assert_eq!(rules(network), "");
    assert!(ask("CHECK", "plain").0);
    // With one it is, by the pod's annotations, in its namespace alone.
    let exclude = json!({"traffic.sidecar.istio.io/excludeOutboundPorts": "3306"});
    api.pod("web", exclude, &["app", "istio-proxy"]);
    let before = ask("CHECK", "web");
    assert!(!before.0 && before.1["details"].as_str().unwrap().contains("not redirected"), "{before:?}");
    assert_eq!(ask("ADD", "web"), (true, settings["prevResult"].clone()));
    let found = rules(network);
    assert!(found.contains("redirect to :15001") && found.contains("tcp dport 3306 return"), "{found}");
    assert!(ask("CHECK", "web").0);
    let here = Command::new(weft_capture::find_tool("nft").unwrap()).args(["list", "ruleset"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&here.stdout), "", "the node's own namespace");
    assert!(ask("ADD", "web").0, "again is the same");
    assert!(ask("DEL", "web").0 && ask("DEL", "gone").0);
    // What cannot be known or followed fails, and says why.
    let unknown = ask("ADD", "gone");
    assert!(!unknown.0 && unknown.1["code"] == 11, "{unknown:?}");
    api.pod("odd", json!({"traffic.sidecar.istio.io/excludeOutboundPorts": "many"}), &["app", "istio-proxy"]);
    let odd = ask("ADD", "odd");
    assert!(!odd.0 && odd.1["code"] == 100 && odd.1["details"].to_string().contains("excludeOutboundPorts"), "{odd:?}");
    let nowhere = call(program, "ADD", "web", Path::new("/nowhere"), settings);
    assert!(!nowhere.0 && nowhere.1["details"].to_string().contains("/nowhere"), "{nowhere:?}");
    let later = call(program, "ADD", "web", &network.path(), &json!({"cniVersion": "7.0.0"}));
    assert!(!later.0 && later.1["code"] == 1, "{later:?}");
}
