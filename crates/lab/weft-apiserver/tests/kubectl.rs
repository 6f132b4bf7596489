//! The real `kubectl`, when this machine has one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use serde_json::json;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use weft_apiserver::{ApiServerOptions, ServingCertificate, kubeconfig};
use weft_store::client::{ExecOptions, WriteOptions};
use weft_store::{ApiClient, MemoryStore};

struct Kubectl {
    program: PathBuf,
    directory: tempfile::TempDir,
}

impl Kubectl {
    /// `None` (with a message) when there is no kubectl on the PATH.
    fn find(lab: &Lab, ca_pem: &str) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let Some(program) = std::env::split_paths(&path).map(|d| d.join("kubectl")).find(|p| p.is_file()) else {
            eprintln!("skipped: no kubectl on the PATH");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let config = kubeconfig("lab", &lab.url().replace("http:", "https:"), Some(ca_pem), TOKEN, "default");
        std::fs::write(directory.path().join("config"), config).unwrap();
        Some(Self { program, directory })
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("config")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("KUBECONFIG", self.config()).env("HOME", self.directory.path()).kill_on_drop(true);
        command
    }

    /// Exit code, output and errors.
    async fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = tokio::time::timeout(Duration::from_secs(120), self.command(arguments).output()).await;
        let output = output.unwrap_or_else(|_| panic!("kubectl {arguments:?}: not within 120 s")).unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    async fn ok(&self, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(arguments).await;
        assert_eq!(code, 0, "kubectl {arguments:?}: {stdout}{stderr}");
        stdout
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path: &Path = &self.directory.path().join(name);
        std::fs::write(path, text).unwrap();
        path.to_string_lossy().into_owned()
    }
}

/// A server with TLS, as kubectl sends tokens over TLS alone.
async fn start() -> Option<(Lab, Kubectl)> {
    let address = IpAddr::from([127, 0, 0, 1]);
    let certificate = ServingCertificate::issue(&["localhost"], &[address]).unwrap();
    let options = ApiServerOptions { tls: Some(certificate.context), ..options() };
    let lab = lab_with(MemoryStore::new(), options, (address, 0).into()).await;
    let kubectl = Kubectl::find(&lab, &certificate.ca_pem)?;
    Some((lab, kubectl))
}

const CONFIG_MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  k: v\n";
const VIRTUAL_SERVICE: &str = "apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  name: reviews
spec:
  hosts:
  - reviews
  http:
  - route:
    - destination:
        host: reviews
        subset: v1
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_apply_delete() {
    let Some((lab, kubectl)) = start().await else { return };
    let file = kubectl.file("cm.yaml", CONFIG_MAP);
    assert_eq!(kubectl.ok(&["apply", "-f", &file]).await, "configmap/a created\n");
    assert_eq!(kubectl.ok(&["apply", "-f", &file]).await, "configmap/a unchanged\n");
    kubectl.file("cm.yaml", &CONFIG_MAP.replace("k: v", "k: w"));
    assert_eq!(kubectl.ok(&["apply", "-f", &file]).await, "configmap/a configured\n");
    let table = kubectl.ok(&["get", "cm"]).await;
    assert!(table.starts_with("NAME") && table.contains("DATA") && table.contains("AGE"), "{table}");
    assert_eq!(kubectl.ok(&["get", "cm", "a", "-o", "jsonpath={.data.k}"]).await, "w");

    // Both sides keep the same annotation: what one applied, the other finds unchanged.
    let client = ApiClient::from_kubeconfig(&kubectl.config(), None).await.unwrap();
    let same = object(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "w"},
    }));
    let applied = client.apply(&same, &Default::default()).await.unwrap();
    assert_eq!(applied.outcome.as_str(), "unchanged");
    let plain = lab.client.get(kind("cm"), "default", "a").await.unwrap();
    assert_eq!(plain, applied.object, "the same port takes plain HTTP");

    let route = kubectl.file("vs.yaml", VIRTUAL_SERVICE);
    assert_eq!(kubectl.ok(&["apply", "-f", &route]).await, "virtualservice.networking.istio.io/reviews created\n");
    kubectl.file("vs.yaml", &VIRTUAL_SERVICE.replace("subset: v1", "subset: v2"));
    kubectl.ok(&["apply", "-f", &route]).await;
    let subset = "jsonpath={.spec.http[0].route[0].destination.subset}";
    assert_eq!(kubectl.ok(&["get", "vs", "reviews", "-o", subset]).await, "v2");
    let table = kubectl.ok(&["get", "virtualservices", "-A"]).await;
    assert!(table.contains("GATEWAYS") && table.contains("reviews"), "{table}");
    let bad = kubectl.file("bad.yaml", &VIRTUAL_SERVICE.replace("subset: v1\n", "subset: v1\n      weight: -1\n"));
    let (code, _, stderr) = kubectl.run(&["apply", "-f", &bad]).await;
    assert!(code != 0 && stderr.contains("spec.http[0].route[0]"), "{code} {stderr}");

    assert_eq!(kubectl.ok(&["delete", "-f", &route]).await, "virtualservice.networking.istio.io \"reviews\" deleted\n");
    kubectl.ok(&["delete", "cm", "a"]).await;
    let (code, _, stderr) = kubectl.run(&["get", "cm", "a"]).await;
    assert!(code != 0 && stderr.contains("configmaps \"a\" not found"), "{stderr}");
}

const SHOP: &str = "apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: 'web:1'}]}
---
apiVersion: v1
kind: Secret
metadata: {name: s, namespace: shop}
stringData: {a: b}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_scale_patch_and_server_side_apply() {
    let Some((lab, kubectl)) = start().await else { return };
    let file = kubectl.file("shop.yaml", SHOP);
    let made = kubectl.ok(&["create", "-f", &file]).await;
    assert_eq!(made, "namespace/shop created\ndeployment.apps/web created\nsecret/s created\n");
    kubectl.ok(&["scale", "deployment/web", "--replicas=3", "-n", "shop"]).await;
    kubectl.ok(&["set", "image", "deployment/web", "web=web:2", "-n", "shop"]).await;
    kubectl.ok(&["label", "deployment", "web", "tier=front", "-n", "shop"]).await;
    let get = ["get", "deploy", "web", "-n", "shop", "-o"];
    let path = "jsonpath={.spec.replicas} {.spec.template.spec.containers[0].image} {.metadata.labels.tier}";
    assert_eq!(kubectl.ok(&[&get[..], &[path]].concat()).await, "3 web:2 front");
    kubectl.ok(&["rollout", "restart", "deployment/web", "-n", "shop"]).await;
    assert_eq!(kubectl.ok(&["get", "secret", "s", "-n", "shop", "-o", "jsonpath={.data.a}"]).await, "Yg==");
    let file = kubectl.file("cm.yaml", CONFIG_MAP);
    let applied = kubectl.ok(&["apply", "--server-side", "-n", "shop", "-f", &file]).await;
    assert_eq!(applied, "configmap/a serverside-applied\n");
    let all = kubectl.ok(&["get", "all", "-n", "shop"]).await;
    assert!(all.contains("deployment.apps/web"), "{all}");
    kubectl.ok(&["delete", "namespace", "shop"]).await;
    assert!(lab.server.store().find("", "Namespace", "", "shop").is_none(), "kubectl waits until it is gone");
    assert!(lab.server.store().find("apps", "Deployment", "shop", "web").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_logs_exec_and_watch() {
    let Some((lab, kubectl)) = start().await else { return };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "main", "image": "i"}]},
    });
    lab.client.create(&object(pod), &WriteOptions::default()).await.unwrap();
    assert_eq!(kubectl.ok(&["logs", "p", "--tail=1"]).await, "main Some(1)\n");
    assert_eq!(kubectl.ok(&["exec", "p", "--", "echo", "hello"]).await, "hello\n");
    let client = ApiClient::from_kubeconfig(&kubectl.config(), None).await.unwrap();
    let echo = ExecOptions { command: vec!["echo".into(), "over TLS".into()], ..ExecOptions::default() };
    assert_eq!(client.exec_output("default", "p", &echo, b"", 100).await.unwrap().stdout, b"over TLS\n");
    let (code, _, stderr) = kubectl.run(&["exec", "p", "--", "sh", "-c", "echo no >&2; exit 3"]).await;
    assert!(code == 3 && stderr.contains("no\n"), "{code} {stderr}");
    let mut cat = kubectl
        .command(&["exec", "-i", "p", "--", "cat"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = cat.stdin.take().unwrap();
    stdin.write_all(b"through\n").await.unwrap();
    drop(stdin);
    let output = within(60, cat.wait_with_output()).await.unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "through\n");

    let mut watch =
        kubectl.command(&["get", "cm", "-w", "-o", "name"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    for name in ["one", "two"] {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}});
        lab.server.store().create(object(map)).unwrap();
        let line = within(60, lines.next_line()).await.unwrap();
        assert_eq!(line.as_deref(), Some(format!("configmap/{name}").as_str()));
    }
    watch.kill().await.unwrap();
    let described = kubectl.ok(&["describe", "pod", "p"]).await;
    assert!(described.contains("main:"), "{described}");
}
