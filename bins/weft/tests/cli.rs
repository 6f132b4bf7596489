//! The program itself against an API server on loopback: what users type, what they see, and what has changed afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;
use weft_apiserver::{
    AdminToken, ApiServer, ApiServerOptions, ExecRequest, ExecStreams, LogRequest, PodBackend, PodError, PodRef,
    PodStream, kubeconfig,
};
use weft_k8s_api::{KindInfo, Object, kinds};
use weft_store::client::{ListOptions, WriteOptions};
use weft_store::{ApiClient, MemoryStore};

const TOKEN: &str = "test-admin-token-0123456789";

/// An API server, and a directory with the kubeconfig for it.
struct Server {
    client: ApiClient,
    directory: tempfile::TempDir,
}

struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Server {
    /// `ports` maps ports of pods to what is answered there, by path.
    async fn start(ports: BTreeMap<u16, Vec<(&'static str, Value)>>) -> Self {
        let options = ApiServerOptions {
            admin_tokens: vec![AdminToken { token: TOKEN.into(), user: "admin".into() }],
            pods: Some(Arc::new(Pods { ports })),
            ..ApiServerOptions::default()
        };
        let server = ApiServer::new(MemoryStore::new(), options).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
        let url = format!("http://{address}");
        let directory = tempfile::tempdir().unwrap();
        let config = kubeconfig("lab", &url, None, TOKEN, "default");
        std::fs::write(directory.path().join("kubeconfig"), config).unwrap();
        Server { client: ApiClient::connect(&url, Some(TOKEN)).unwrap(), directory }
    }

    async fn weft_with(&self, arguments: &[&str], input: &str) -> Done {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.args(arguments).env_remove("KUBECONFIG").env("WEFT_HOME", self.directory.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that does not read its input is no error.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await;
        let output = output.unwrap_or_else(|_| panic!("weft {arguments:?}: not within 60 s")).unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Done { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    async fn weft(&self, arguments: &[&str]) -> Done {
        self.weft_with(arguments, "").await
    }

    /// Output of a command that must succeed.
    async fn ok(&self, arguments: &[&str]) -> String {
        let done = self.weft(arguments).await;
        assert_eq!(done.code, 0, "weft {arguments:?}: {}{}", done.stdout, done.stderr);
        done.stdout
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    }

    async fn count(&self, name: &str) -> usize {
        self.client.list(kind(name), None, &ListOptions::default()).await.unwrap().items.len()
    }

    /// A pod that runs and is ready.
    async fn pod(&self, namespace: &str, name: &str, labels: Value, containers: &[&str]) {
        let namespaces = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        let _ = self.client.create(&object(namespaces), &WriteOptions::default()).await;
        let list: Vec<Value> = containers.iter().map(|c| json!({"name": c, "image": "x"})).collect();
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": labels}, "spec": {"containers": list}});
        self.client.create(&object(pod), &WriteOptions::default()).await.unwrap();
        let status = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        self.client.patch_status(kind("pod"), namespace, name, &status).await.unwrap();
    }
}

fn kind(name: &str) -> &'static KindInfo {
    kinds::by_any_name(name).unwrap()
}

fn object(value: Value) -> Object {
    serde_json::from_value(value).unwrap()
}

/// Pods whose commands run on this machine, and whose ports answer HTTP with fixed JSON.
struct Pods {
    ports: BTreeMap<u16, Vec<(&'static str, Value)>>,
}

impl PodBackend for Pods {
    fn logs(&self, request: LogRequest) -> BoxFuture<'_, Result<BoxStream<'static, io::Result<Bytes>>, PodError>> {
        let line = format!("{} tail {:?} since {:?}\n", request.container, request.tail_lines, request.since_seconds);
        async move { Ok(futures_util::stream::iter([Ok(Bytes::from(line))]).boxed()) }.boxed()
    }

    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<ExecStreams, PodError>> {
        async move {
            let (program, arguments) = request.command.split_first().ok_or(PodError::Invalid("no command".into()))?;
            let mut command = Command::new(program);
            let input = if request.stdin { Stdio::piped() } else { Stdio::null() };
            command.args(arguments).env("CONTAINER", &request.container).kill_on_drop(true);
            let mut child = command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            Ok(ExecStreams {
                stdin: child.stdin.take().map(|s| Box::new(s) as _),
                stdout: child.stdout.take().map(|s| Box::new(s) as _),
                stderr: child.stderr.take().map(|s| Box::new(s) as _),
                resize: None,
                exit: async move { child.wait().await.map(|s| s.code().unwrap_or(137)) }.boxed(),
            })
        }
        .boxed()
    }

    fn connect(&self, _: PodRef, port: u16) -> BoxFuture<'_, Result<Box<dyn PodStream>, PodError>> {
        let answers = self.ports.get(&port).cloned();
        async move {
            let answers = answers.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            let (near, far) = tokio::io::duplex(64 * 1024);
            tokio::spawn(answer(far, answers));
            Ok(Box::new(near) as Box<dyn PodStream>)
        }
        .boxed()
    }
}

async fn answer(mut stream: tokio::io::DuplexStream, answers: Vec<(&'static str, Value)>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read_exact(&mut byte).await.is_err() {
            return;
        }
        request.push(byte[0]);
    }
    let words = String::from_utf8_lossy(&request).split(' ').take(2).collect::<Vec<_>>().join(" ");
    let found = answers.iter().find(|(known, _)| *known == words || format!("GET {known}") == words);
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let (status, body) = found.map_or(("404 Not Found", "no".to_string()), |(_, value)| ("200 OK", text(value)));
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
    let _ = stream.shutdown().await;
}

const REVIEWS: &str = "apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}]
";

fn virtual_service(destination: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews}}\nspec:\n  hosts: [reviews]\n  http:\n  - route:\n    - destination: {destination}\n{more}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_get_delete() {
    let server = Server::start(BTreeMap::new()).await;
    let base = server.file("base.yaml", REVIEWS);
    let said = server.ok(&["apply", "-f", &base]).await;
    assert_eq!(said, "service/reviews created\ndestinationrule.networking.istio.io/reviews created\n");

    let file = server.file("vs.yaml", &virtual_service("{host: reviews, subset: v1}", ""));
    assert_eq!(server.ok(&["apply", "-f", &file, "--dry-run=client"]).await.matches("dry run").count(), 1);
    assert_eq!(server.ok(&["apply", "-f", &file, "--dry-run"]).await.matches("(server dry run)").count(), 1);
    assert_eq!(server.count("vs").await, 0, "a dry run changes nothing");
    let done = server.weft(&["apply", "-f", &file]).await;
    assert_eq!(done.stdout, "virtualservice.networking.istio.io/reviews created\n");
    assert_eq!(done.stderr, "");
    assert_eq!(server.ok(&["apply", "-f", &file]).await, "virtualservice.networking.istio.io/reviews unchanged\n");

    // Valid, but it refers to what is not there: accepted, and said.
    let text = virtual_service("{host: reviews, subset: v9}", "");
    let done = server.weft_with(&["apply", "-f", "-"], &text).await;
    assert_eq!((done.code, done.stdout.as_str()), (0, "virtualservice.networking.istio.io/reviews configured\n"));
    let wanted = "Warning: VirtualService default/reviews: spec.http[0].route[0].destination.subset: no destination rule for \
                  reviews.default.svc.cluster.local has the subset \"v9\"";
    assert!(done.stderr.contains(wanted), "{}", done.stderr);

    let table = server.ok(&["get", "vs"]).await;
    assert!(table.starts_with("NAME") && table.contains("reviews") && table.contains("AGE"), "{table}");
    assert!(server.ok(&["get", "vs", "-A"]).await.starts_with("NAMESPACE"));
    assert_eq!(server.ok(&["get", "vs,dr", "-o", "name"]).await.lines().count(), 2);
    let yaml = server.ok(&["get", "vs", "reviews", "-o", "yaml"]).await;
    assert!(yaml.contains("subset: v9") && !yaml.contains("managedFields"), "{yaml}");
    let json: Value = serde_json::from_str(&server.ok(&["get", "svc", "-o", "json"]).await).unwrap();
    assert_eq!(json["kind"], "List");
    let done = server.weft(&["get", "vs", "nope"]).await;
    assert!(done.code == 1 && done.stderr.contains("nope"), "{}", done.stderr);

    assert_eq!(
        server.ok(&["delete", "vs", "reviews"]).await,
        "virtualservice.networking.istio.io \"reviews\" deleted\n"
    );
    let done = server.weft(&["delete", "-f", &file]).await;
    let missing = "error: virtualservices.networking.istio.io \"reviews\" not found\n";
    assert_eq!((done.code, done.stderr.as_str()), (1, missing));
    let done = server.weft(&["delete"]).await;
    assert!(
        done.code == 2 && done.stderr.contains("KIND NAME") && done.stderr.contains("--filename"),
        "{}",
        done.stderr
    );
    server.ok(&["delete", "-f", &file, "--ignore-not-found"]).await;
    server.ok(&["delete", "-f", &base]).await;
    assert_eq!(server.count("svc").await + server.count("dr").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_changes_nothing() {
    let server = Server::start(BTreeMap::new()).await;
    server.file("a.yaml", REVIEWS);
    server.file("b.yaml", &virtual_service("{host: reviews}", "      weight: -1\n"));
    let directory = server.directory.path().to_string_lossy().into_owned();
    // The kubeconfig has no extension that counts.
    let done = server.weft(&["apply", "-f", &directory]).await;
    assert_eq!(done.code, 1);
    assert_eq!(done.stdout, "");
    let wanted = "b.yaml:9: VirtualService default/reviews: spec.http[0].route[0].weight: is the number -1; it must be a \
                  whole number between 0 and 4294967295\nnothing was changed";
    assert!(done.stderr.contains(wanted), "{}", done.stderr);
    assert_eq!(server.count("svc").await + server.count("dr").await + server.count("vs").await, 0);

    let done = server.weft_with(&["apply", "-f", "-"], "apiVersion: v1\nkind: Service\n\tmetadata: {}\n").await;
    assert!(
        done.code == 1 && done.stderr.contains("error: stdin:3: ") && done.stderr.contains("tab"),
        "{}",
        done.stderr
    );
    let text = virtual_service("{host: reviews}", "    timeot: 5s\n");
    let done = server.weft_with(&["apply", "-f", "-"], &text).await;
    assert!(done.code == 1 && done.stderr.contains("did you mean timeout?"), "{}", done.stderr);
    let done = server.weft_with(&["apply", "-f", "-", "--validate", "warn"], &text).await;
    assert!(done.code == 0 && done.stderr.contains("did you mean timeout?"), "{}", done.stderr);
    let done = server.weft(&["apply", "-f", "/nonexistent.yaml"]).await;
    assert!(done.code == 1 && done.stderr.contains("/nonexistent.yaml"), "{}", done.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_lab() {
    let server = Server::start(BTreeMap::new()).await;
    std::fs::remove_file(server.directory.path().join("kubeconfig")).unwrap();
    let done = server.weft(&["status"]).await;
    assert!(done.code == 1 && done.stdout.contains("`weft up`"), "{}{}", done.stdout, done.stderr);
    let done = server.weft(&["get", "pods"]).await;
    assert!(done.code == 1 && done.stderr.contains("`weft up`"), "{}", done.stderr);
    let dead = kubeconfig("lab", "http://127.0.0.1:1", None, TOKEN, "default");
    server.file("kubeconfig", &dead);
    let done = server.weft(&["status"]).await;
    assert!(done.code == 1 && done.stdout.contains("`weft up`"), "{}{}", done.stdout, done.stderr);
    assert_eq!(server.weft(&["get"]).await.code, 2, "a wrong command line");
    // Programs get the form that they know, whatever there is to say.
    for there in [true, false] {
        if !there {
            std::fs::remove_file(server.directory.path().join("kubeconfig")).unwrap();
        }
        let done = server.weft(&["status", "-o", "json"]).await;
        let status: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {}", done.stdout));
        assert_eq!((done.code, &status["controlPlane"]["pods"], &status["workloads"]), (1, &json!(0), &json!([])));
        assert_eq!(
            (status["apiServer"].is_string(), done.stderr.contains("`weft up`")),
            (there, true),
            "{}",
            done.stderr
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_proxies_are_an_empty_list() {
    let server = Server::start(BTreeMap::from([(15014, vec![("/debug/syncz", json!([]))])])).await;
    server.pod("istio-system", "istiod-1", json!({"app": "istiod"}), &["discovery"]).await;
    let done = server.weft(&["proxy-status", "-o", "json"]).await;
    assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (0, "[]\n", "No proxies are connected.\n"));
    assert_eq!(server.ok(&["ps"]).await, "");
}

/// Files of an archive by name.
fn unpacked(path: &std::path::Path) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()));
    let read = |entry: io::Result<tar::Entry<'_, _>>| {
        let mut entry = entry.unwrap();
        let (name, mut text) = (entry.path().unwrap().display().to_string(), String::new());
        io::Read::read_to_string(&mut entry, &mut text).unwrap();
        (name, text)
    };
    archive.entries().unwrap().map(read).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_for_others() {
    let mut answers = proxy_answers();
    let token = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.c2ln";
    answers.get_mut(&15014).unwrap().push(("/version", json!({"version": "0.1.0"})));
    answers.get_mut(&15014).unwrap().push(("/debug/push_status", json!({"token": token})));
    let server = Server::start(answers).await;
    server.pod("istio-system", "istiod-1", json!({"app": "istiod"}), &["discovery"]).await;
    server.pod("default", "reviews-v1-1", json!({"app": "reviews"}), &["reviews", "istio-proxy"]).await;
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {password: hunter2}\n---\n\
                  apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'accessLogFile: /dev/stdout'}\n";
    assert_eq!(server.weft_with(&["apply", "-f", "-"], &[REVIEWS, "---\n", secret].concat()).await.code, 0);
    let out = server.directory.path().join("out");
    let dir = out.to_string_lossy().into_owned();

    let planned = server.ok(&["bug-report", "--dir", &dir, "--dry-run"]).await;
    assert!(planned.contains("proxies/default/reviews-v1-1/config_dump.json") && !out.exists(), "{planned}");
    let done = server.weft(&["bug-report", "--dir", &dir, "--duration", "5m"]).await;
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(
        done.stdout.contains("bug-report.tar.gz: ") && done.stderr.contains("report.txt names them"),
        "{}{}",
        done.stdout,
        done.stderr
    );
    let files = unpacked(&out.join("bug-report.tar.gz"));
    for (name, says) in [
        ("versions", "control plane version: 0.1.0"),
        ("proxy-status.txt", "reviews-v1-1.default"),
        ("analyze.txt", "[IST"),
        ("mesh-config/istio.yaml", "accessLogFile"),
        ("cluster/core/secrets.yaml", "password: \"[removed]\""),
        ("cluster/networking.istio.io/destinationrules.yaml", "name: reviews"),
        ("istiod/istio-system/istiod-1/discovery.log", "discovery tail None since Some(300)"),
        ("istiod/istio-system/istiod-1/debug/push_status.json", "[removed]"),
        ("proxies/default/reviews-v1-1/istio-proxy.log", "istio-proxy tail None"),
        ("proxies/default/reviews-v1-1/config_dump.json", "outbound|9080|v1|reviews"),
        ("report.txt", "proxies/default/reviews-v1-1/certs.json: "),
    ] {
        let text = files.get(&format!("bug-report/{name}")).unwrap_or_else(|| panic!("{name}: {:?}", files.keys()));
        assert!(text.contains(says), "{name}: {says}: {text}");
    }
    let all = files.values().cloned().collect::<String>();
    for secret in ["hunter2", "aHVudGVyMg", token, TOKEN] {
        assert!(!all.contains(secret), "{secret}");
    }
    server.ok(&["bug-report", "--dir", &dir, "--exclude", "default"]).await;
    let files = unpacked(&out.join("bug-report.tar.gz"));
    assert!(!files.keys().any(|name| name.contains("/proxies/")), "{:?}", files.keys());
    assert!(!files.contains_key("bug-report/cluster/networking.istio.io/destinationrules.yaml"));
    let done = server.weft(&["bug-report", "--include", "a/b/c/d"]).await;
    assert!(done.code == 2 && done.stderr.contains("NAME=VALUE"), "{}", done.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_for_proxies() {
    let page =
        "/debug/config_distribution?group=networking.istio.io&kind=VirtualService&namespace=default&name=reviews";
    let proxy = |name: &str, waiting: Value| json!({"proxy": name, "version": 5, "waiting": waiting, "refused": {}});
    let told = json!({"object": {"generation": 1, "resourceVersion": "1"}, "version": 5,
        "proxies": [proxy("a.default", json!([])), proxy("b.default", json!(["LDS"]))]});
    let server = Server::start(BTreeMap::from([(15014, vec![(page, told)])])).await;
    server.pod("istio-system", "istiod-1", json!({"app": "istiod"}), &["discovery"]).await;
    let done = server.weft(&["wait", "vs", "reviews"]).await;
    assert!(done.code == 1 && done.stderr.contains("there is no virtualservice default/reviews"), "{}", done.stderr);
    assert_eq!(server.weft_with(&["apply", "-f", "-"], &virtual_service("{host: reviews}", "")).await.code, 0);
    let said = server
        .ok(&["x", "wait", "--for=distribution", "virtualservice", "reviews.default", "--threshold", "0.5"])
        .await;
    assert_eq!(said, "virtualservice default/reviews is in 1 of 2 proxies\n");
    for (arguments, says) in [
        (&["vs/reviews"][..], "not within 500ms: 1 of 2 proxies; waiting for b.default (LDS)"),
        (&["vs/reviews", "--generation", "2"], "the control plane does not know it yet"),
        (&["vs/reviews", "--for", "delete"], "it is still there"),
    ] {
        let done = server.weft(&[&["wait", "--timeout", "500ms"], arguments].concat()).await;
        assert!(done.code == 1 && done.stderr.contains(says), "{arguments:?}: {}", done.stderr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shells_and_injectors() {
    let server = Server::start(BTreeMap::new()).await;
    for (shell, says) in [("bash", "complete -F _weft"), ("zsh", "#compdef weft"), ("fish", "complete -c weft")] {
        let script = server.ok(&["completion", shell]).await;
        assert!(script.contains(says) && script.contains("bug-report"), "{shell}");
    }
    let said = server.ok(&["x", "injector", "list"]).await;
    assert_eq!(said, "No Istio injected namespaces present.\n\nNo Istio injection hooks present.\n");
    let value: Value = serde_json::from_str(&server.ok(&["x", "injector", "list", "-o", "json"]).await).unwrap();
    assert_eq!(value, json!({"namespaces": [], "injectors": []}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn into_pods() {
    let server = Server::start(BTreeMap::new()).await;
    server.pod("default", "sleep-1", json!({"app": "sleep"}), &["istio-proxy", "sleep"]).await;
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: sleep}\nspec:\n  selector: {matchLabels: {app: sleep}}\n  template:\n    metadata: {labels: {app: sleep}}\n    spec: {containers: [{name: sleep, image: x}]}\n";
    assert_eq!(server.weft_with(&["apply", "-f", "-"], deployment).await.code, 0);

    let done = server.weft(&["exec", "deploy/sleep", "--", "sh", "-c", "echo $CONTAINER; echo oops >&2; exit 7"]).await;
    assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (7, "sleep\n", "oops\n"));
    let done = server.weft_with(&["exec", "-i", "sleep-1", "-c", "istio-proxy", "--", "cat"], "in and out\n").await;
    assert_eq!((done.code, done.stdout.as_str()), (0, "in and out\n"));
    let done = server.weft_with(&["exec", "sleep-1", "--", "cat"], "not passed on").await;
    assert_eq!((done.code, done.stdout.as_str()), (0, ""));
    let large = server.ok(&["exec", "sleep-1", "--", "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"]).await;
    assert_eq!(large.len(), 3_000_000);
    let done = server.weft(&["exec", "sleep-1", "-c", "nope", "--", "true"]).await;
    assert!(done.code == 1 && done.stderr.contains("istio-proxy, sleep"), "{}", done.stderr);
    for (target, says) in [
        ("deploy/none", "there is no deployment default/none; `weft get deployments -n default` shows what there is"),
        ("sleep", "there is no pod default/sleep; did you mean deploy/sleep?"),
    ] {
        let done = server.weft(&["exec", target, "--", "true"]).await;
        assert!(done.code == 1 && done.stderr.contains(says), "{}", done.stderr);
    }

    assert_eq!(server.ok(&["logs", "deploy/sleep", "--tail", "5"]).await, "sleep tail Some(5) since None\n");
    let text = server.ok(&["logs", "-l", "app=sleep", "-c", "istio-proxy", "--since", "1m"]).await;
    assert_eq!(text, "istio-proxy tail None since Some(60)\n");
}

fn proxy_answers() -> BTreeMap<u16, Vec<(&'static str, Value)>> {
    let socket = json!({"socket_address": {"address": "0.0.0.0", "port_value": 9080}});
    let manager =
        "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let dump = json!({"configs": [
        {"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump", "dynamic_active_clusters": [
            {"cluster": {"name": "outbound|9080|v1|reviews.default.svc.cluster.local", "type": "EDS"}}]},
        {"@type": "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump", "dynamic_endpoint_configs": [
            {"endpoint_config": {"cluster_name": "outbound|9080|v1|reviews.default.svc.cluster.local", "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": socket}, "health_status": "HEALTHY"}]}]}}]},
        {"@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump", "dynamic_listeners": [
            {"name": "0.0.0.0_9080", "active_state": {"listener": {"name": "0.0.0.0_9080", "address": socket,
                "filter_chains": [{"filters": [{"name": "h", "typed_config":
                    {"@type": manager, "rds": {"route_config_name": "9080"}}}]}]}}}]},
        {"@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump", "dynamic_route_configs": [
            {"route_config": {"name": "9080", "virtual_hosts": [{"name": "reviews", "domains": ["reviews"],
                "routes": [{"match": {"prefix": "/"}}]}]}}]},
        {"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump", "bootstrap": {"node": {"id": "sidecar~1"}}},
        {"@type": "type.googleapis.com/envoy.admin.v3.SecretsConfigDump", "dynamic_active_secrets": [
            {"name": "ROOTCA", "secret": {"validation_context": {"trusted_ca": {"inline_bytes": "eA=="}}}}]},
    ]});
    let synced = json!({"status": "SYNCED"});
    let proxies = json!([{"proxy": "reviews-v1-1.default", "cluster_id": "Kubernetes", "istiod": "istiod-1", "engine": "weft",
        "proxy_type": "sidecar", "version": "0.1.0",
        "types": {"CDS": synced, "LDS": synced, "EDS": synced, "RDS": {"status": "STALE"}}}]);
    let loggers = "active loggers:\n  default: info\n  rbac: debug\n";
    let admin = vec![("/config_dump?include_eds", dump.clone()), ("POST /logging?rbac=debug", loggers.into())];
    // What the proxy should have: a cluster more.
    let mut wanted = dump;
    let clusters = wanted["configs"][0]["dynamic_active_clusters"].as_array_mut().unwrap();
    clusters.push(json!({"cluster": {"name": "a"}}));
    let kept = ("/config_dump", admin[0].1.clone());
    let control_plane = vec![("/debug/syncz", proxies), ("/debug/config_dump?proxyID=reviews-v1-1.default", wanted)];
    BTreeMap::from([(15000, [admin, vec![kept]].concat()), (15014, control_plane)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_proxies_have() {
    let server = Server::start(proxy_answers()).await;
    let done = server.weft(&["proxy-status"]).await;
    assert!(done.code == 1 && done.stderr.contains("no control plane runs in istio-system"), "{}", done.stderr);
    server.pod("istio-system", "istiod-1", json!({"app": "istiod"}), &["discovery"]).await;
    server.pod("default", "reviews-v1-1", json!({"app": "reviews"}), &["reviews", "istio-proxy"]).await;

    let text = server.ok(&["ps"]).await;
    let fields: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(
        fields[1],
        ["reviews-v1-1.default", "Kubernetes", "SYNCED", "SYNCED", "SYNCED", "STALE", "istiod-1", "0.1.0"]
    );
    let text = server.ok(&["ps", "reviews-v1-1"]).await;
    assert!(
        text.contains("Clusters don't match (should -> is):\n  a is missing at the proxy\n")
            && text.contains("Routes match"),
        "{text}"
    );
    let page: Value = serde_json::from_str(&server.ok(&["x", "internal-debug", "syncz"]).await).unwrap();
    assert_eq!(page[0]["proxy"], "reviews-v1-1.default");
    let done = server.weft(&["x", "internal-debug", "nothing"]).await;
    assert!(done.code == 1 && done.stderr.contains("does not show /debug/nothing"), "{}", done.stderr);
    let one: Value = serde_json::from_str(&server.ok(&["ps", "reviews-v1-1", "-o", "json"]).await).unwrap();
    assert_eq!(one[0]["differences"]["Listeners"], json!([]));
    let status = server.ok(&["status"]).await;
    assert!(status.contains("1/1 ready in istio-system, 1 proxies connected"), "{status}");
    assert!(status.contains("pod/reviews-v1-1") && status.contains("1 STALE"), "{status}");

    for (what, wanted) in [
        ("listener", "0.0.0.0     9080   ALL     Route: 9080"),
        ("route", "9080   reviews      reviews   /*"),
        ("cluster", "reviews.default.svc.cluster.local   9080   v1       outbound    EDS"),
        ("endpoint", "0.0.0.0:9080   HEALTHY   OK              outbound|9080|v1|reviews.default.svc.cluster.local"),
        ("secret", "ROOTCA          CA     ACTIVE"),
    ] {
        let text = server.ok(&["pc", what, "reviews-v1-1.default"]).await;
        assert!(text.contains(wanted), "{what}: {text}");
        let all = server.ok(&["proxy-config", "all", "reviews-v1-1"]).await;
        assert!(all.contains(wanted), "{what}: {all}");
    }
    let secret: Value =
        serde_json::from_str(&server.ok(&["pc", "secret", "reviews-v1-1", "-o", "json"]).await).unwrap();
    assert_eq!(secret["dynamicActiveSecrets"][0]["secret"]["validationContext"]["trustedCa"]["inlineBytes"], "eA==");
    let yaml = server.ok(&["pc", "route", "reviews-v1-1", "-o", "yaml"]).await;
    assert!(yaml.contains("virtualHosts:"), "{yaml}");
    let bootstrap: Value = serde_json::from_str(&server.ok(&["pc", "bootstrap", "reviews-v1-1"]).await).unwrap();
    assert_eq!(bootstrap["bootstrap"]["node"]["id"], "sidecar~1");
    let log = server.ok(&["proxy-config", "log", "reviews-v1-1.default", "--level", "rbac:debug"]).await;
    assert!(log.starts_with("reviews-v1-1.default:\nactive loggers:\n") && log.contains("  rbac: debug\n"), "{log}");
    let done = server.weft(&["pc", "log", "reviews-v1-1", "--level", "rbac:loud"]).await;
    assert!(done.code == 2 && done.stderr.contains("there are trace, debug"), "{}", done.stderr);
    // What was kept is shown like what a proxy has.
    let kept = server.file("dump.json", &proxy_answers()[&15000][0].1.to_string());
    assert!(server.ok(&["pc", "route", "--file", &kept]).await.contains("9080   reviews      reviews   /*"));
    let done = server.weft(&["pc", "log", "--file", &kept]).await;
    assert!(done.code == 1 && done.stderr.contains("name a proxy"), "{}", done.stderr);
    let done = server.weft_with(&["pc", "cluster", "-f", "-"], "{}").await;
    assert!(done.code == 1 && done.stderr.contains("-: the answer is not a config dump"), "{}", done.stderr);
    let proxies: Value = serde_json::from_str(&server.ok(&["ps", "-o", "json"]).await).unwrap();
    assert_eq!(
        (&proxies[0]["name"], &proxies[0]["types"]["RDS"]["status"]),
        (&json!("reviews-v1-1.default"), &json!("STALE"))
    );
    let status = server.ok(&["status", "-o", "yaml"]).await;
    assert!(status.contains("STALE: 1") && status.contains("name: pod/reviews-v1-1"), "{status}");
    let done = server.weft(&["pc", "cluster", "reviews-v1-1", "--fqdn", "nope"]).await;
    assert!(done.code == 1 && done.stderr.contains("nothing of that"), "{}", done.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_without_a_proxy() {
    let server = Server::start(BTreeMap::new()).await;
    server.pod("default", "plain", json!({}), &["app"]).await;
    let done = server.weft(&["pc", "listener", "plain"]).await;
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("the pod has no sidecar"), "{}", done.stderr);
}

const GUARDED: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: httpbin, namespace: foo}
spec: {clusterIP: 10.96.0.9, selector: {app: httpbin}, ports: [{name: http, port: 8000, targetPort: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: httpbin-1, namespace: foo, labels: {kubernetes.io/service-name: httpbin}}
addressType: IPv4
ports: [{name: http, port: 80, protocol: TCP}]
endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}, targetRef: {kind: Pod, name: httpbin, namespace: foo}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: foo}
spec:
  selector: {matchLabels: {app: httpbin}}
  rules: [{from: [{source: {namespaces: [foo]}}], to: [{operation: {methods: [GET], paths: ["/status/*"]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: foo}
spec: {selector: {matchLabels: {app: gone}}, rules: [{}]}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_call_whom() {
    let server = Server::start(BTreeMap::new()).await;
    for (namespace, name, ip) in
        [("foo", "httpbin", "10.0.0.1"), ("foo", "sleep", "10.0.0.2"), ("bar", "sleep", "10.0.0.3")]
    {
        server.pod(namespace, name, json!({"app": name}), &["app", "istio-proxy"]).await;
        let status = json!({"podIP": ip, "podIPs": [{"ip": ip}]});
        server.client.patch_status(kind("pod"), namespace, name, &status).await.unwrap();
    }
    let file = server.file("guarded.yaml", GUARDED);
    server.ok(&["apply", "-f", &file]).await;

    for (source, more, code, says) in [
        ("sleep.foo", &["--path", "/status/200"][..], 0, "ALLOWED"),
        ("sleep.foo", &["--path", "/status/200"], 0, "by AuthorizationPolicy foo/readers spec.rules[0]"),
        ("sleep.foo", &["--path", "/ip"], 1, "no rule of the ALLOW policies matches: foo/readers"),
        ("sleep.foo", &["--path", "/status/200", "--method", "post"], 1, "DENIED"),
        ("sleep.bar", &["--path", "/status/200"], 1, "DENIED"),
        ("10.9.9.9", &["--path", "/status/200"], 1, "in plain text"),
    ] {
        let done = server.weft(&[&["authz", "can", source, "httpbin.foo"][..], more].concat()).await;
        assert!(done.code == code && done.stdout.contains(says), "{source} {more:?}: {} {}", done.code, done.stdout);
    }
    let wrong = server.weft(&["authz", "can", "sleep.foo", "nothing.foo"]).await;
    assert!(wrong.code != 0 && wrong.stderr.contains("neither a service nor a workload"), "{}", wrong.stderr);

    let can = ["authz", "can", "sleep.foo", "httpbin.foo", "--path", "/status/1", "-o"];
    let answer: Value = serde_json::from_str(&server.ok(&[&can[..], &["json"]].concat()).await).unwrap();
    assert_eq!((&answer["verdict"], &answer["policy"]["name"]), (&json!("ALLOWED"), &json!("readers")));
    assert!(server.ok(&[&can[..], &["yaml"]].concat()).await.contains("verdict: ALLOWED"));

    let told = server.ok(&["x", "describe", "pod", "httpbin.foo"]).await;
    for says in [
        "Pod: httpbin\n",
        "Service: httpbin\n   Port: http 8000/HTTP targets pod port 80\n",
        "Workload mTLS mode: PERMISSIVE",
        "Bound by: AuthorizationPolicy foo/readers",
    ] {
        assert!(told.contains(says), "{says}: {told}");
    }
    let told: Value = serde_json::from_str(&server.ok(&["describe", "svc/httpbin.foo", "-o", "json"]).await).unwrap();
    assert_eq!((&told["host"], &told["ports"][0]["port"]), (&json!("httpbin.foo.svc.cluster.local"), &json!(8000)));
    let done = server.weft(&["describe", "vs", "reviews"]).await;
    assert!(done.code == 1 && done.stderr.contains("`weft get virtualservice NAME -o yaml`"), "{}", done.stderr);

    let check = server.ok(&["authz", "check", "httpbin.foo", "--path", "/status/1"]).await;
    let row = |caller: &str| check.lines().find(|line| line.starts_with(caller)).unwrap_or_default().to_string();
    assert!(check.contains("readers.foo") && row("foo/sleep").contains("ALLOWED"), "{check}");
    assert!(row("bar/sleep").contains("DENIED"), "{check}");
    let matrix = server.ok(&["authz", "matrix", "-n", "foo", "--path", "/status/1", "-o", "json"]).await;
    let pairs: Vec<Value> = serde_json::from_str(&matrix).unwrap();
    assert!(pairs.iter().any(|p| p["source"]["name"] == "bar/sleep" && p["verdict"] == "DENIED"), "{matrix}");
    let lint = server.ok(&["authz", "lint"]).await;
    assert_eq!(lint.lines().count(), 1, "{lint}");
    assert!(lint.starts_with("foo/nobody spec.selector: no live workload"), "{lint}");
}

const EXPECTATIONS: &str = r#"
tests:
- name: jason sees stars
  from: productpage-v1
  to: http://reviews:9080/reviews/0
  headers: {end-user: jason}
  expect: {subset: v2, service: reviews, verdict: ALLOWED, mutualTLS: true, route: VirtualService default/reviews}
- name: the others do not
  from: productpage-v1
  to: http://reviews:9080/reviews/0
  expect: {subsets: {v1: 100}, route: "VirtualService default/reviews spec.http[1]"}
- name: nobody is known elsewhere
  from: istio-ingressgateway.istio-system
  to: http://bookinfo.example/nothing
  expect: {status: 404}
"#;

/// Nothing runs, and nothing is asked of an API server: requests through the sample's own files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_explained_and_tested_before_anything_runs() {
    let server = Server::start(BTreeMap::new()).await;
    std::fs::remove_file(server.directory.path().join("kubeconfig")).unwrap();
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/bookinfo");
    let files = [
        "platform/kube/bookinfo.yaml",
        "networking/destination-rule-all.yaml",
        "networking/bookinfo-gateway.yaml",
        "networking/virtual-service-reviews-test-v2.yaml",
    ];
    let files: Vec<String> = files.iter().map(|file| format!("{samples}/{file}")).collect();
    let from: Vec<&str> = files.iter().flat_map(|file| ["-f", file.as_str()]).chain(["--use-kube=false"]).collect();

    let told = server
        .ok(&[&["explain", "productpage-v1", "reviews/reviews/0", "-H", "end-user=jason"], &from[..]].concat())
        .await;
    assert!(
        told.contains("VirtualService default/reviews spec.http[0]") && told.contains("default/reviews-v2: ALLOWED"),
        "{told}"
    );
    let gateway = ["explain", "istio-ingressgateway.istio-system", "http://x.example/nothing", "-o", "json"];
    let done = server.weft(&[&gateway[..], &from[..]].concat()).await;
    let value: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((done.code, &value["answer"]["status"], &value["arrives"]), (1, &json!(404), &json!(false)));
    let done = server.weft(&[&["explain", "nobody", "reviews"], &from[..]].concat()).await;
    assert!(done.code == 1 && done.stderr.contains("\"nobody\" is no workload of the mesh"), "{}", done.stderr);

    let tests = server.file("tests.yaml", EXPECTATIONS);
    let done = server.weft(&[&["test", &tests], &from[..]].concat()).await;
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    assert!(
        done.stdout.contains("ok      jason sees stars\n") && done.stdout.contains("3 passed, 0 failed"),
        "{}",
        done.stdout
    );
    assert!(done.stdout.contains("no test comes to VirtualService default/bookinfo spec.http[0]"), "{}", done.stdout);

    let tests = server
        .file("wrong.yaml", &EXPECTATIONS.replace("subset: v2", "subset: v3").replace("status: 404", "status: 503"));
    let done = server.weft(&[&["test", &tests], &from[..]].concat()).await;
    assert_eq!(done.code, 1, "{}", done.stdout);
    for says in [
        "FAILED  jason sees stars",
        "subset: expected v3, got v2",
        "status: expected 503, got 404",
        "1 passed, 2 failed",
    ] {
        assert!(done.stdout.contains(says), "{says}: {}", done.stdout);
    }
    let tests = server.file("typo.yaml", &EXPECTATIONS.replace("expect: {subset", "expects: {subset"));
    let done = server.weft(&[&["test", &tests], &from[..]].concat()).await;
    assert!(done.code == 1 && done.stderr.contains("typo.yaml") && done.stderr.contains("expects"), "{}", done.stderr);
    let done = server.weft(&["explain", "productpage-v1", "reviews", "--use-kube=false"]).await;
    assert!(done.code == 1 && done.stderr.contains("name files with -f"), "{}", done.stderr);
}
