//! The real `kubectl`, when this machine has one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use bytes::Bytes;
use common::*;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde_json::json;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use weft_apiserver::{
    ApiServerOptions, ExecRequest, ExecStreams, LogRequest, PodBackend, PodError, PodRef, PodStream,
    ServingCertificate, Usage, kubeconfig,
};
use weft_store::client::{ExecOptions, WriteOptions};
use weft_store::{ApiClient, ListQuery, MemoryStore};

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

/// Runs nothing, and says of every pod that its one container is a little busier each time.
struct Busy {
    store: MemoryStore,
    looks: AtomicU32,
}

impl PodBackend for Busy {
    fn logs(&self, request: LogRequest) -> BoxFuture<'_, Result<BoxStream<'static, io::Result<Bytes>>, PodError>> {
        Box::pin(async move { LocalPods.logs(request).await })
    }

    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<ExecStreams, PodError>> {
        Box::pin(async move { LocalPods.exec(request).await })
    }

    fn connect(&self, pod: PodRef, port: u16) -> BoxFuture<'_, Result<Box<dyn PodStream>, PodError>> {
        Box::pin(async move { LocalPods.connect(pod, port).await })
    }

    fn usage(&self) -> BoxFuture<'_, io::Result<Vec<Usage>>> {
        let looks = self.looks.fetch_add(1, Ordering::SeqCst);
        let of = |pod: &Arc<weft_k8s_api::Object>| Usage {
            pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
            container: "app".into(),
            processor: Duration::from_millis(250) * looks,
            memory: 64 << 20,
        };
        let all = self.store.list(&ListQuery::all("", "Pod")).unwrap().items;
        Box::pin(std::future::ready(Ok(all.iter().map(of).collect())))
    }
}

#[tokio::test]
async fn top() {
    let address = IpAddr::from([127, 0, 0, 1]);
    let certificate = ServingCertificate::issue(&["localhost"], &[address]).unwrap();
    let store = MemoryStore::new();
    let busy = Busy { store: store.clone(), looks: AtomicU32::new(1) };
    let options = ApiServerOptions { tls: Some(certificate.context), pods: Some(Arc::new(busy)), ..options() };
    let lab = lab_with(store.clone(), options, (address, 0).into()).await;
    let Some(kubectl) = Kubectl::find(&lab, &certificate.ca_pem) else { return };
    let pod = |namespace: &str, name: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
               "spec": {"nodeName": "lab", "containers": [{"name": "app", "image": "i"}]}})
    };
    for (namespace, name) in [("default", "web"), ("default", "db"), ("kube-system", "dns")] {
        store.create(object(pod(namespace, name))).unwrap();
    }
    let capacity = json!({"cpu": "2", "memory": "1Gi"});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "lab"},
                      "status": {"capacity": capacity, "allocatable": capacity}});
    store.create(object(node)).unwrap();
    let rows = |text: &str| text.lines().map(|line| line.split_whitespace().map(str::to_string).collect()).collect();
    let of_pods: Vec<Vec<String>> = rows(&kubectl.ok(&["top", "pods", "--no-headers"]).await);
    assert_eq!(of_pods.len(), 2, "{of_pods:?}");
    for (row, name) in of_pods.iter().zip(["db", "web"]) {
        assert_eq!((row[0].as_str(), row[2].as_str()), (name, "64Mi"));
        let millis: u64 = row[1].strip_suffix('m').unwrap().parse().unwrap();
        assert!((1..=250).contains(&millis), "{row:?}");
    }
    let all = kubectl.ok(&["top", "pod", "-A", "--containers", "-l", "app=dns", "--no-headers"]).await;
    assert!(all.starts_with("kube-system") && all.contains("app") && all.lines().count() == 1, "{all}");
    let nodes: Vec<Vec<String>> = rows(&kubectl.ok(&["top", "nodes", "--no-headers"]).await);
    assert_eq!(
        (nodes[0][0].as_str(), nodes[0][3].as_str(), nodes[0][4].as_str()),
        ("lab", "192Mi", "18%"),
        "{nodes:?}"
    );
    let (code, _, error) = kubectl.run(&["top", "pod", "none"]).await;
    assert!(code != 0 && error.contains("NotFound") && error.contains("none"), "{error}");
    let resources = kubectl.ok(&["api-resources", "--api-group=metrics.k8s.io", "--no-headers"]).await;
    assert!(resources.contains("NodeMetrics") && resources.contains("PodMetrics"), "{resources}");
    // The kinds of those names stay what `get` means.
    assert!(kubectl.ok(&["get", "pods", "-o", "name"]).await.contains("pod/web"));
    let raw = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/web";
    let (code, _, error) = kubectl.run(&["delete", "--raw", raw]).await;
    assert!(code != 0 && error.contains("MethodNotAllowed"), "{error}");
}
