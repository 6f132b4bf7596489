//! An API server in this process, with the objects of a small Bookinfo, and control planes on it.
#![allow(dead_code)] // Each test file uses its part.

use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use weft_apiserver::{AdminToken, ApiServer, ApiServerOptions};
use weft_k8s_api::kinds::by_kind;
use weft_k8s_api::{Object, yaml};
use weft_store::client::{TokenRequest, WriteOptions};
use weft_store::{ApiClient, MemoryStore};
use weftd::{Running, Settings};

const TOKEN: &str = "administrator-of-the-test";
pub const LIMIT: Duration = Duration::from_secs(60);

/// An API server with the objects of a small Bookinfo.
pub struct Cluster {
    pub api: ApiServer,
    pub address: SocketAddr,
    pub client: ApiClient,
    pub stop: Option<tokio::sync::oneshot::Sender<()>>,
}

const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default, labels: {app: reviews}}
spec: {clusterIP: 10.96.0.10, selector: {app: reviews}, ports: [{name: http, port: 9080, targetPort: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: productpage, namespace: default}
spec: {clusterIP: 10.96.0.11, selector: {app: productpage}, ports: [{name: http, port: 9080, targetPort: 9080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-v1, namespace: default, labels: {app: reviews, version: v1}}
spec: {serviceAccountName: bookinfo-reviews, containers: [{name: reviews, image: x}, {name: istio-proxy, image: x}]}
status: {phase: Running, podIP: 10.244.0.5, podIPs: [{ip: 10.244.0.5}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: productpage-v1, namespace: default, labels: {app: productpage, version: v1}}
spec: {serviceAccountName: bookinfo-productpage, containers: [{name: productpage, image: x}, {name: istio-proxy, image: x}]}
status: {phase: Running, podIP: 10.244.0.6, podIPs: [{ip: 10.244.0.6}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews-1, namespace: default, labels: {kubernetes.io/service-name: reviews}}
addressType: IPv4
ports: [{name: http, port: 9080, protocol: TCP}]
endpoints: [{addresses: [10.244.0.5], conditions: {ready: true}, targetRef: {kind: Pod, name: reviews-v1, namespace: default}}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: bookinfo-productpage, namespace: default}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: bookinfo-reviews, namespace: default}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: istiod, namespace: istio-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: gateway-secrets, namespace: default}
rules: [{apiGroups: [""], resources: [secrets], verbs: [get, watch, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: gateway-secrets, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: gateway-secrets}
subjects: [{kind: ServiceAccount, name: bookinfo-reviews, namespace: default}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v1}}]}]}
"#;

impl Cluster {
    pub async fn start() -> Self {
        weft_tls::install_provider();
        let options = ApiServerOptions {
            admin_tokens: vec![AdminToken { token: TOKEN.into(), user: "admin".into() }],
            namespaces: vec!["default".into(), "kube-system".into(), "istio-system".into()],
            ..ApiServerOptions::default()
        };
        let api = ApiServer::new(MemoryStore::new(), options).unwrap();
        for document in yaml::documents(OBJECTS, "objects").unwrap() {
            api.store().create(document.object).unwrap();
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = ApiClient::connect(&format!("http://{address}"), Some(TOKEN)).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = api.clone();
        tokio::spawn(async move {
            server.serve(listener, async { _ = stopped.await }).await.unwrap();
        });
        Self { api, address, client, stop: Some(stop) }
    }

    pub fn settings(&self, more: &[&str]) -> Settings {
        use clap::Parser;
        // Written once: a file that is being written reads as an empty token.
        static FILE: LazyLock<String> = LazyLock::new(|| {
            let path = std::env::temp_dir().join(format!("weftd-test-token-{}", std::process::id()));
            std::fs::write(&path, TOKEN).unwrap();
            path.display().to_string()
        });
        let (url, token) = (format!("http://{}", self.address), FILE.clone());
        let mut flags = vec!["weftd", "--api-url", &url, "--token-file", &token, "--pod-name", "weftd-0"];
        flags.extend(["--secure-grpc-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0"]);
        flags.extend(["--monitoring-addr", "127.0.0.1:0", "--https-addr", "127.0.0.1:0"]);
        flags.extend(more);
        Settings::parse_from(flags)
    }

    pub async fn weftd(&self) -> Running {
        tokio::time::timeout(LIMIT, weftd::start(self.settings(&[]))).await.expect("ready in time").unwrap()
    }

    pub async fn root_pem(&self) -> String {
        let read = async || {
            let map = self.client.get(by_kind("", "ConfigMap").unwrap(), "default", "istio-ca-root-cert").await.ok()?;
            map.body["data"]["root-cert.pem"].as_str().map(str::to_string)
        };
        until("the root certificate", read).await
    }

    pub async fn token(&self, account: &str) -> String {
        self.token_of("default", account).await
    }

    pub async fn token_of(&self, namespace: &str, account: &str) -> String {
        let request = TokenRequest { audiences: vec!["istio-ca".into()], ..TokenRequest::default() };
        self.client.token_request(namespace, account, &request).await.unwrap().token
    }

    pub async fn edit(&self, group: &str, kind: &str, name: &str, patch: Value) {
        self.client.merge_patch(by_kind(group, kind).unwrap(), "default", name, &patch).await.unwrap();
    }

    pub async fn create(&self, value: Value) {
        let object: Object = serde_json::from_value(value).unwrap();
        self.client.create(&object, &WriteOptions::default()).await.unwrap();
    }
}

/// Asks again until there is an answer.
pub async fn until<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < end, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A GET over plain HTTP: status and body.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    get_as(address, path, None).await
}

/// A GET over plain HTTP by the bearer of a token: status and body.
pub async fn get_as(address: SocketAddr, path: &str, token: Option<&str>) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = TcpStream::connect(address).await.unwrap();
    let bearer = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nhost: weftd\r\n{bearer}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_string())
}

/// One question to a webhook, as bytes, over TLS that is checked by `root`: status and body of the answer.
pub async fn post(address: SocketAddr, root: &str, path: &str, content: &str, body: &[u8]) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;
    use weft_tls::{ClientContext, ClientParams, ServerVerification, TrustAnchors};
    let anchors = TrustAnchors::from_pem(root.as_bytes()).unwrap();
    let params = ClientParams {
        sni: Some("istiod.istio-system.svc".into()),
        alpn: vec![b"http/1.1".to_vec()],
        ..ClientParams::new(ServerVerification::WebPki { anchors, san: None })
    };
    let context = ClientContext::build(params).unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let mut stream = timeout(LIMIT, context.connect(stream)).await.unwrap().unwrap().stream;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: istiod\r\nconnection: close\r\ncontent-type: {content}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // A refusal may come before all has been said.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _ = timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0), body.to_string())
}

/// An admission review that asks about `object`.
pub fn review(object: Value) -> Vec<u8> {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u1", "operation": "CREATE", "namespace": "default", "object": object,
        "resource": {"group": "networking.istio.io", "version": "v1", "resource": "virtualservices"}}})
    .to_string()
    .into_bytes()
}
