//! The discovery service over loopback, with real gRPC clients and a generator that gives out what a test says.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use axum::extract::ConnectInfo;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status, Streaming};
use tower::ServiceExt;
use weft_model::{Inputs, MeshSnapshot, build};
use weft_proto::Any;
use weft_proto::envoy::config::cluster::v3::Cluster;
use weft_proto::envoy::config::core::v3::Node;
use weft_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use weft_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use weft_proto::google::rpc;
use weft_tls::{Issuer, KeyKind, RootParams};
use weft_xds_gen::{ProxyResources, ProxyView, Resource};
use weft_xds_server::auth::BoxFuture;
use weft_xds_server::debug::{Monitoring, Scope, router};
use weft_xds_server::{AdsServer, Authenticator, Caller, Generate, Kind, Options};

/// Gives every proxy what was set last.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Arc<ProxyResources>>>);

impl Generate for Fake {
    fn generate(&self, _: &Arc<MeshSnapshot>, _: &ProxyView) -> Arc<ProxyResources> {
        self.0.lock().unwrap().clone()
    }
}

/// Callers that wait for [`ByHeader`].
static UNDER_REVIEW: AtomicUsize = AtomicUsize::new(0);

/// Believes the header `caller: namespace/account`; never decides about `under review`.
struct ByHeader;

impl Authenticator for ByHeader {
    fn authenticate<'a>(
        &'a self,
        headers: &'a MetadataMap,
        _: &'a http::Extensions,
    ) -> BoxFuture<'a, Result<Caller, Status>> {
        Box::pin(async move {
            let text = headers.get("caller").and_then(|v| v.to_str().ok());
            if text == Some("under review") {
                UNDER_REVIEW.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<()>().await;
            }
            let (ns, account) = text.and_then(|t| t.split_once('/')).ok_or_else(|| Status::unauthenticated("who?"))?;
            Ok(Caller::Account { namespace: ns.into(), service_account: account.into() })
        })
    }
}

struct Server {
    ads: AdsServer,
    fake: Fake,
    address: SocketAddr,
    snapshot: Mutex<Arc<MeshSnapshot>>,
    inputs: Inputs,
}

/// Resources by type: name and content, which is anything that differs when it should.
type Sample<'a> = &'a [(Kind, &'a [(&'a str, &'a str)])];

fn resource(kind: Kind, name: &str, content: &str) -> Arc<Resource> {
    let value = format!("{name}={content}").into_bytes();
    let hash = weft_xds_gen::resource::hash_bytes(&value);
    Arc::new(Resource { name: name.into(), any: Any { type_url: kind.type_url().into(), value }, hash })
}

fn resources(sample: Sample<'_>) -> ProxyResources {
    let of = |kind: Kind| {
        let listed = sample.iter().filter(|(k, _)| *k == kind).flat_map(|(_, list)| list.iter());
        listed.map(|(name, content)| resource(kind, name, content)).collect()
    };
    ProxyResources {
        listeners: of(Kind::Listener),
        routes: of(Kind::Route),
        virtual_hosts: of(Kind::VirtualHost),
        clusters: of(Kind::Cluster),
        endpoints: of(Kind::Endpoint),
        ..Default::default()
    }
}

impl Server {
    async fn start(objects: &str, options: Options) -> Self {
        let mut inputs = Inputs::default();
        for document in serde_json::from_str::<Vec<serde_json::Value>>(objects).unwrap() {
            inputs.push(Arc::new(serde_json::from_value(document).unwrap()));
        }
        let fake = Fake::default();
        let ads = AdsServer::new(fake.clone(), options);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = ads.service(Arc::new(ByHeader));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Self { ads, fake, address, snapshot: Mutex::default(), inputs }
    }

    async fn with(sample: Sample<'_>) -> Self {
        let server = Self::start("[]", Options::default()).await;
        server.offer(sample);
        server
    }

    fn offer(&self, sample: Sample<'_>) {
        self.offer_all(resources(sample));
    }

    fn offer_all(&self, resources: ProxyResources) {
        *self.fake.0.lock().unwrap() = Arc::new(resources);
        let mut snapshot = self.snapshot.lock().unwrap();
        *snapshot = Arc::new(build(&self.inputs, Some(&snapshot)));
        self.ads.publish(snapshot.clone());
    }

    async fn client(&self) -> AggregatedDiscoveryServiceClient<tonic::transport::Channel> {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        AggregatedDiscoveryServiceClient::new(endpoint.connect().await.unwrap())
    }

    async fn delta(&self, caller: &str) -> Delta {
        let (requests, receiver) = mpsc::channel(16);
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        request.metadata_mut().insert("caller", caller.parse().unwrap());
        let responses = self.client().await.delta_aggregated_resources(request).await.unwrap().into_inner();
        Delta { requests, responses, node: Some(node("sidecar", "default")) }
    }

    async fn sotw(&self, caller: &str) -> Sotw {
        let (requests, receiver) = mpsc::channel(16);
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        request.metadata_mut().insert("caller", caller.parse().unwrap());
        let responses = self.client().await.stream_aggregated_resources(request).await.unwrap().into_inner();
        Sotw { requests, responses, node: Some(node("sidecar", "default")) }
    }

    /// The debug endpoint's answer to a caller at `from`.
    async fn debug(&self, path: &str, from: &str, token: Option<&str>) -> (u16, String) {
        let app = router(Monitoring {
            server: self.ads.clone(),
            instance: "weftd-0".into(),
            version: "test".into(),
            not_ready: Arc::new(Vec::new),
            more_metrics: Arc::new(String::new),
            access: Arc::new(|headers, _| {
                Box::pin(async move {
                    match headers.get("authorization")?.to_str().ok()? {
                        "Bearer root" => Some(Scope::Mesh),
                        token => Some(Scope::Namespace(token.strip_prefix("Bearer ")?.into())),
                    }
                })
            }),
        });
        let mut request = http::Request::get(path).body(axum::body::Body::empty()).unwrap();
        request.extensions_mut().insert(ConnectInfo(format!("{from}:1").parse::<SocketAddr>().unwrap()));
        if let Some(token) = token {
            request.headers_mut().insert("authorization", token.parse().unwrap());
        }
        let response = app.oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Waits until `/debug/syncz` says this of a type.
    async fn wait_status(&self, kind: &str, want: &str) -> serde_json::Value {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let (_, body) = self.debug("/debug/syncz", "127.0.0.1", Some("Bearer root")).await;
            let all: serde_json::Value = serde_json::from_str(&body).unwrap();
            let state = all[0]["types"][kind].clone();
            if state["status"] == want {
                return all[0].clone();
            }
            assert!(Instant::now() < until, "{kind} is {state}, not {want}");
            tokio::task::yield_now().await;
        }
    }
}

fn node(node_type: &str, namespace: &str) -> Node {
    Node { id: format!("{node_type}~10.0.0.1~pod-1.{namespace}~{namespace}.svc.cluster.local"), ..Default::default() }
}

/// Metadata in which a proxy says that it has a label.
fn labels_of_node(name: &str, value: &str) -> prost_types::Struct {
    use prost_types::{Struct, Value, value::Kind};
    let of = |name: &str, kind| Struct { fields: [(name.to_string(), Value { kind: Some(kind) })].into() };
    of("LABELS", Kind::StructValue(of(name, Kind::StringValue(value.into()))))
}

async fn next<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    let message = tokio::time::timeout(Duration::from_secs(30), stream.message()).await.expect("a message in time");
    message.map(|m| m.expect("the stream goes on"))
}

struct Delta {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    node: Option<Node>,
}

/// What a delta response holds: type, changed names, removed names.
type Seen = (Kind, Vec<String>, Vec<String>);

impl Delta {
    async fn ask(&mut self, kind: Kind, subscribe: &[&str], unsubscribe: &[&str], have: &BTreeMap<String, String>) {
        let owned = |list: &[&str]| list.iter().map(|n| (*n).to_string()).collect();
        let request = DeltaDiscoveryRequest {
            node: self.node.take(),
            type_url: kind.type_url().into(),
            resource_names_subscribe: owned(subscribe),
            resource_names_unsubscribe: owned(unsubscribe),
            initial_resource_versions: have.clone(),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    async fn subscribe(&mut self, kind: Kind, names: &[&str]) {
        self.ask(kind, names, &[], &BTreeMap::new()).await;
    }

    async fn answer(&mut self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(|message| rpc::Status { message: message.into(), code: 3, ..Default::default() }),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    async fn receive(&mut self) -> DeltaDiscoveryResponse {
        next(&mut self.responses).await.unwrap()
    }

    /// The next response, acknowledged.
    async fn take(&mut self) -> Seen {
        let response = self.receive().await;
        self.answer(&response, None).await;
        seen(&response)
    }
}

fn seen(response: &DeltaDiscoveryResponse) -> Seen {
    let names = response.resources.iter().map(|r| r.name.clone()).collect();
    (Kind::of(&response.type_url).unwrap(), names, response.removed_resources.clone())
}

fn expect(kind: Kind, changed: &[&str], removed: &[&str]) -> Seen {
    let owned = |list: &[&str]| list.iter().map(|n| (*n).to_string()).collect();
    (kind, owned(changed), owned(removed))
}

struct Sotw {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
    node: Option<Node>,
}

impl Sotw {
    async fn ask(&mut self, kind: Kind, names: &[&str], answers: Option<&DiscoveryResponse>) {
        let request = DiscoveryRequest {
            node: self.node.take(),
            type_url: kind.type_url().into(),
            resource_names: names.iter().map(|n| (*n).to_string()).collect(),
            response_nonce: answers.map(|a| a.nonce.clone()).unwrap_or_default(),
            version_info: answers.map(|a| a.version_info.clone()).unwrap_or_default(),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// The next response: its type and the names in it, acknowledged with the same subscription.
    async fn take(&mut self, names: &[&str]) -> (Kind, Vec<String>) {
        let response = next(&mut self.responses).await.unwrap();
        let kind = Kind::of(&response.type_url).unwrap();
        self.ask(kind, names, Some(&response)).await;
        let name = |any: &Any| String::from_utf8(any.value.clone()).unwrap().split('=').next().unwrap().to_string();
        (kind, response.resources.iter().map(name).collect())
    }
}

/// What `/debug/config_distribution` says of one object.
async fn distribution(server: &Server, who: &str) -> serde_json::Value {
    let path = "/debug/config_distribution?group=networking.istio.io&kind=Sidecar&namespace=default&name=s";
    let (status, body) = server.debug(path, "127.0.0.1", Some(who)).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
async fn which_proxies_have_an_object_is_told() {
    let server = Server::with(&[(Kind::Cluster, &[("a", "1")]), (Kind::Listener, &[("l", "1")])]).await;
    let mut inputs = server.inputs.clone();
    let object = |generation: i64| {
        let value = serde_json::json!({"apiVersion": "networking.istio.io/v1", "kind": "Sidecar",
            "metadata": {"name": "s", "namespace": "default", "generation": generation, "resourceVersion": "9"}, "spec": {}});
        Arc::new(serde_json::from_value(value).unwrap())
    };
    inputs.set("networking.istio.io", "Sidecar", vec![object(2)]);
    server.ads.built(Arc::new(inputs));
    let told = distribution(&server, "Bearer root").await;
    assert_eq!(told["object"], serde_json::json!({"generation": 2, "resourceVersion": "9"}));
    let hidden = distribution(&server, "Bearer other").await;
    assert!(hidden["object"].is_null() && hidden["proxies"].as_array().unwrap().is_empty(), "{hidden}");

    // The state of the one proxy, once it is as wanted.
    let until = async |wanted: &dyn Fn(&serde_json::Value, u64) -> bool| {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let told = distribution(&server, "Bearer root").await;
            let version = told["version"].as_u64().unwrap();
            let proxy = told["proxies"][0].clone();
            if wanted(&proxy, version) {
                return;
            }
            assert!(Instant::now() < end, "{told}");
            tokio::task::yield_now().await;
        }
    };
    let has = |proxy: &serde_json::Value, version: u64| {
        proxy["version"] == version
            && proxy["waiting"] == serde_json::json!([])
            && proxy["refused"] == serde_json::json!({})
    };
    let mut client = server.delta("default/reviews").await;
    client.subscribe(Kind::Cluster, &[]).await;
    let first = client.receive().await;
    until(&|proxy, _| proxy["waiting"] == serde_json::json!(["CDS"])).await;
    client.answer(&first, None).await;
    until(&has).await;
    // A push that is not answered, then refused; the next one is taken.
    server.offer(&[(Kind::Cluster, &[("a", "2")])]);
    let second = client.receive().await;
    until(&|proxy, _| proxy["waiting"] == serde_json::json!(["CDS"])).await;
    client.answer(&second, Some("cluster a: no")).await;
    until(&|proxy, _| proxy["refused"]["CDS"] == "cluster a: no").await;
    server.offer(&[(Kind::Cluster, &[("a", "3")])]);
    client.take().await;
    until(&has).await;
    // What does not concern the proxy is distributed as soon as it is published.
    server.offer(&[(Kind::Cluster, &[("a", "3")]), (Kind::Listener, &[("l", "2")])]);
    until(&has).await;
}

#[tokio::test]
async fn delta_sends_only_what_changed() {
    let all: Sample = &[
        (Kind::Cluster, &[("a", "1"), ("b", "1")]),
        (Kind::Endpoint, &[("a", "1"), ("b", "1")]),
        (Kind::Listener, &[("l", "1")]),
        (Kind::Route, &[("80", "1"), ("90", "1")]),
    ];
    let server = Server::with(all).await;
    let mut client = server.delta("default/reviews").await;
    client.subscribe(Kind::Cluster, &[]).await;
    assert_eq!(client.take().await, expect(Kind::Cluster, &["a", "b"], &[]));
    client.subscribe(Kind::Endpoint, &["a", "b"]).await;
    assert_eq!(client.take().await, expect(Kind::Endpoint, &["a", "b"], &[]));
    client.subscribe(Kind::Listener, &[]).await;
    assert_eq!(client.take().await, expect(Kind::Listener, &["l"], &[]));
    client.subscribe(Kind::Route, &["80"]).await;
    assert_eq!(client.take().await, expect(Kind::Route, &["80"], &[]));

    // Endpoints alone: nothing else moves.
    server.offer(&[all[0], (Kind::Endpoint, &[("a", "1"), ("b", "2")]), all[2], all[3]]);
    assert_eq!(client.take().await, expect(Kind::Endpoint, &["b"], &[]));
    // One route, and one that is not subscribed to.
    let endpoints: (Kind, &[(&str, &str)]) = (Kind::Endpoint, &[("a", "1"), ("b", "2")]);
    server.offer(&[all[0], endpoints, all[2], (Kind::Route, &[("80", "2"), ("90", "2")])]);
    assert_eq!(client.take().await, expect(Kind::Route, &["80"], &[]));
    // A changed cluster takes its endpoints along.
    let routes: (Kind, &[(&str, &str)]) = (Kind::Route, &[("80", "2"), ("90", "2")]);
    server.offer(&[(Kind::Cluster, &[("a", "2"), ("b", "1")]), endpoints, all[2], routes]);
    assert_eq!(client.take().await, expect(Kind::Cluster, &["a"], &[]));
    assert_eq!(client.take().await, expect(Kind::Endpoint, &["a"], &[]));
    // The other route on demand, and away again.
    client.subscribe(Kind::Route, &["90"]).await;
    assert_eq!(client.take().await, expect(Kind::Route, &["90"], &[]));
    client.ask(Kind::Route, &["none"], &["90"], &BTreeMap::new()).await;
    assert_eq!(client.take().await, expect(Kind::Route, &[], &["none"]));
    server.offer(&[
        (Kind::Cluster, &[("a", "2"), ("b", "1")]),
        endpoints,
        all[2],
        (Kind::Route, &[("80", "3"), ("90", "3")]),
    ]);
    assert_eq!(client.take().await, expect(Kind::Route, &["80"], &[]));
}

#[tokio::test]
async fn clusters_go_when_routes_have_gone() {
    let clusters: (Kind, &[(&str, &str)]) = (Kind::Cluster, &[("new", "1"), ("old", "1")]);
    let server = Server::with(&[clusters, (Kind::Route, &[("80", "to old")])]).await;
    let mut client = server.delta("default/reviews").await;
    client.subscribe(Kind::Cluster, &[]).await;
    client.take().await;
    client.subscribe(Kind::Route, &["80"]).await;
    client.take().await;
    server.offer(&[(Kind::Cluster, &[("new", "1"), ("newer", "1")]), (Kind::Route, &[("80", "to new")])]);
    assert_eq!(client.take().await, expect(Kind::Cluster, &["newer"], &[]));
    let route = client.receive().await;
    assert_eq!(seen(&route), expect(Kind::Route, &["80"], &[]));
    client.answer(&route, None).await;
    assert_eq!(client.take().await, expect(Kind::Cluster, &[], &["old"]));
}

#[tokio::test]
async fn names_that_do_not_exist_yet() {
    let server = Server::with(&[]).await;
    let mut client = server.delta("default/reviews").await;
    client.subscribe(Kind::Cluster, &[]).await;
    assert_eq!(client.take().await, expect(Kind::Cluster, &[], &[]));
    client.subscribe(Kind::Endpoint, &["x"]).await;
    assert_eq!(client.take().await, expect(Kind::Endpoint, &[], &["x"]));
    server.offer(&[(Kind::Endpoint, &[("x", "1")])]);
    assert_eq!(client.take().await, expect(Kind::Endpoint, &["x"], &[]));
    // Asked for again: sent again.
    client.subscribe(Kind::Endpoint, &["x"]).await;
    assert_eq!(client.take().await, expect(Kind::Endpoint, &["x"], &[]));
}

#[tokio::test]
async fn virtual_hosts_by_route() {
    let server = Server::with(&[(Kind::VirtualHost, &[("80/a", "1"), ("80/b", "1"), ("90/c", "1")])]).await;
    let mut client = server.delta("default/reviews").await;
    client.subscribe(Kind::VirtualHost, &["80/*"]).await;
    assert_eq!(client.take().await, expect(Kind::VirtualHost, &["80/a", "80/b"], &[]));
    server.offer(&[(Kind::VirtualHost, &[("80/a", "2"), ("80/d", "1"), ("90/c", "2")])]);
    assert_eq!(client.take().await, expect(Kind::VirtualHost, &["80/a", "80/d"], &["80/b"]));
    client.ask(Kind::VirtualHost, &["90/*"], &["80/*"], &BTreeMap::new()).await;
    assert_eq!(client.take().await, expect(Kind::VirtualHost, &["90/c"], &[]));
}

#[tokio::test]
async fn refusals_are_recorded_and_not_repeated() {
    let server = Server::with(&[(Kind::Listener, &[("l", "bad")])]).await;
    let mut client = server.delta("default/reviews").await;
    client.subscribe(Kind::Listener, &[]).await;
    let response = client.receive().await;
    client.answer(&response, Some("l: no such filter")).await;
    let proxy = server.wait_status("LDS", "ERROR").await;
    assert_eq!(proxy["types"]["LDS"]["error"], "l: no such filter");
    assert_eq!(
        (proxy["proxy"].as_str(), proxy["types"]["CDS"]["status"].as_str()),
        (Some("pod-1.default"), Some("IGNORED"))
    );
    // The same again is not sent; something new is.
    server.offer(&[(Kind::Listener, &[("l", "bad")])]);
    server.offer(&[(Kind::Listener, &[("l", "bad"), ("m", "1")])]);
    assert_eq!(client.take().await, expect(Kind::Listener, &["m"], &[]));
    server.wait_status("LDS", "SYNCED").await;
    let (_, metrics) = server.debug("/metrics", "10.0.0.9", None).await;
    assert!(metrics.contains("pilot_total_xds_rejects{type=\"lds\"} 1"), "{metrics}");
}

#[tokio::test]
async fn a_busy_client_gets_the_newest_alone() {
    let server = Server::with(&[(Kind::Listener, &[("l", "1")])]).await;
    let mut client = server.delta("default/reviews").await;
    client.subscribe(Kind::Listener, &[]).await;
    let first = client.receive().await;
    server.wait_status("LDS", "STALE").await;
    for content in ["2", "3", "4"] {
        server.offer(&[(Kind::Listener, &[("l", content)])]);
    }
    client.answer(&first, None).await;
    let second = client.receive().await;
    let value = &second.resources[0].resource.as_ref().unwrap().value;
    // Where the snapshots overtake the answer, those between are skipped; the last one is never lost.
    let mut last = String::from_utf8(value.clone()).unwrap();
    client.answer(&second, None).await;
    let mut rounds = 0;
    while last != "l=4" {
        let more = client.receive().await;
        last = String::from_utf8(more.resources[0].resource.as_ref().unwrap().value.clone()).unwrap();
        client.answer(&more, None).await;
        rounds += 1;
        assert!(rounds <= 2);
    }
}

#[tokio::test]
async fn reconnecting_with_versions() {
    let server = Server::with(&[(Kind::Cluster, &[("a", "1"), ("b", "1"), ("gone", "1")])]).await;
    let mut client = server.delta("default/reviews").await;
    client.subscribe(Kind::Cluster, &[]).await;
    let response = client.receive().await;
    let have: BTreeMap<String, String> =
        response.resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect();
    drop(client);
    server.offer(&[(Kind::Cluster, &[("a", "1"), ("b", "2"), ("new", "1")])]);
    let mut again = server.delta("default/reviews").await;
    again.ask(Kind::Cluster, &["*"], &[], &have).await;
    assert_eq!(again.take().await, expect(Kind::Cluster, &["b", "new"], &["gone"]));
}

#[tokio::test]
async fn state_of_the_world() {
    let all: Sample =
        &[(Kind::Cluster, &[("a", "1"), ("b", "1")]), (Kind::Endpoint, &[("a", "1"), ("b", "1"), ("c", "1")])];
    let server = Server::with(all).await;
    let mut client = server.sotw("default/reviews").await;
    client.ask(Kind::Cluster, &[], None).await;
    assert_eq!(client.take(&[]).await, (Kind::Cluster, vec!["a".into(), "b".into()]));
    client.ask(Kind::Endpoint, &["a", "b"], None).await;
    assert_eq!(client.take(&["a", "b"]).await, (Kind::Endpoint, vec!["a".into(), "b".into()]));
    // Endpoints: what changed, of what is subscribed to.
    server.offer(&[all[0], (Kind::Endpoint, &[("a", "2"), ("b", "1"), ("c", "2")])]);
    assert_eq!(client.take(&["a", "b"]).await, (Kind::Endpoint, vec!["a".into()]));
    // Clusters: all, and the endpoints of the changed one with them.
    let endpoints: (Kind, &[(&str, &str)]) = (Kind::Endpoint, &[("a", "2"), ("b", "1"), ("c", "2")]);
    server.offer(&[(Kind::Cluster, &[("a", "1"), ("b", "2")]), endpoints]);
    assert_eq!(client.take(&[]).await, (Kind::Cluster, vec!["a".into(), "b".into()]));
    // The whole set is sent, so all its clusters are warmed.
    assert_eq!(client.take(&["a", "b", "c"]).await, (Kind::Endpoint, vec!["a".into(), "b".into()]));
    // A new name came with that answer.
    assert_eq!(client.take(&["a", "b", "c"]).await, (Kind::Endpoint, vec!["c".into()]));
    // A removed cluster is one that is missing.
    server.offer(&[(Kind::Cluster, &[("b", "2")]), endpoints]);
    assert_eq!(client.take(&[]).await, (Kind::Cluster, vec!["b".into()]));
}

#[tokio::test]
async fn strangers_and_impostors_are_refused() {
    let objects = r#"[{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod-1", "namespace": "default"},
        "spec": {"serviceAccountName": "reviews", "containers": []}, "status": {"podIP": "10.0.0.1"}}]"#;
    let server = Server::start(objects, Options::default()).await;
    server.offer(&[]);
    let mut client = server.client().await;
    let status = client.delta_aggregated_resources(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    for (caller, node, code) in [
        ("other/reviews", Some(node("sidecar", "default")), Code::PermissionDenied),
        ("default/other", Some(node("sidecar", "default")), Code::PermissionDenied),
        ("default/reviews", Some(Node { id: "nonsense".into(), ..Default::default() }), Code::InvalidArgument),
        ("default/reviews", None, Code::InvalidArgument),
        (
            "default/reviews",
            Some(Node { user_agent_name: "x".repeat(300_000), ..node("sidecar", "default") }),
            Code::InvalidArgument,
        ),
    ] {
        let mut client = server.delta(caller).await;
        client.node = node;
        client.subscribe(Kind::Cluster, &[]).await;
        assert_eq!(next(&mut client.responses).await.unwrap_err().code(), code, "{caller}");
    }
    let mut client = server.delta("default/reviews").await;
    client.subscribe(Kind::Endpoint, &[&"x".repeat(2000)]).await;
    assert_eq!(next(&mut client.responses).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn who_is_not_known_yet_takes_no_place() {
    let server = Server::start("[]", Options { max_streams: 1, ..Options::default() }).await;
    server.offer(&[]);
    let mut client = server.client().await;
    let mut request = tonic::Request::new(tokio_stream::pending());
    request.metadata_mut().insert("caller", "under review".parse().unwrap());
    let stranger = tokio::spawn(async move { client.delta_aggregated_resources(request).await.map(drop) });
    let until = Instant::now() + Duration::from_secs(30);
    while UNDER_REVIEW.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < until);
        tokio::task::yield_now().await;
    }
    let mut proxy = server.delta("default/reviews").await;
    proxy.subscribe(Kind::Cluster, &[]).await;
    proxy.take().await;
    stranger.abort();
}

#[tokio::test]
async fn a_pod_that_becomes_known_is_not_anothers() {
    let mut server = Server::with(&[]).await;
    let (mut own, mut others) = (server.delta("default/reviews").await, server.delta("default/other").await);
    for client in [&mut own, &mut others] {
        client.subscribe(Kind::Cluster, &[]).await;
        client.take().await;
    }
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod-1", "namespace": "default"},
        "spec": {"serviceAccountName": "reviews", "containers": []}, "status": {"podIP": "10.0.0.1"},
    });
    server.inputs.push(Arc::new(serde_json::from_value(pod).unwrap()));
    server.offer(&[(Kind::Cluster, &[("a", "1")])]);
    assert_eq!(next(&mut others.responses).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(own.take().await, expect(Kind::Cluster, &["a"], &[]));
}

/// A certificate and its key, PEM.
fn pair() -> (String, String) {
    let (not_before, not_after) = (SystemTime::UNIX_EPOCH, SystemTime::now() + Duration::from_secs(3600));
    let params = RootParams { organization: "x".into(), key: KeyKind::EcdsaP256, not_before, not_after };
    let issuer = Issuer::self_signed(&params).unwrap();
    (issuer.certificate_pem(), issuer.key_pem().to_string())
}

#[tokio::test]
async fn secrets_are_for_proven_gateways_of_their_namespace() {
    let (cert, key) = pair();
    let secret = |ns: &str| {
        let data = serde_json::json!({"tls.crt": cert, "tls.key": key});
        let meta = serde_json::json!({"name": "cert", "namespace": ns});
        serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": data}).to_string()
    };
    let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod-1", "namespace": "default"},
        "spec": {"serviceAccountName": "gw", "containers": []}, "status": {"podIP": "10.0.0.1"}}"#;
    for (objects, node_type, names, want) in [
        (format!("[{}, {pod}]", secret("default")), "router", vec!["kubernetes://cert"], true),
        // A sidecar, when a destination rule that selects it names the secret, and when nothing does.
        (format!("[{}, {pod}]", secret("default")), "sidecar", vec!["kubernetes://cert"], true),
        (format!("[{}, {pod}]", secret("default")), "sidecar", vec![], false),
        // One that is bound to the Gateway by labels that only it says it has.
        (format!("[{}, {pod}]", secret("default")), "router labelled", vec!["kubernetes://cert"], false),
        // Not known who runs there.
        (format!("[{}]", secret("default")), "router", vec!["kubernetes://cert"], false),
        // Another namespace's, by default or by name.
        (format!("[{}, {pod}]", secret("other")), "router", vec!["kubernetes://cert"], false),
        (format!("[{}, {pod}]", secret("other")), "router", vec!["kubernetes://other/cert"], false),
        // Nothing that its listeners name.
        (format!("[{}, {pod}]", secret("default")), "router", vec![], false),
    ] {
        let server = Server::start(&objects, Options::default()).await;
        let credentials = names.iter().map(|n| (*n).into()).collect();
        server.offer_all(ProxyResources { credentials, ..Default::default() });
        let mut client = server.delta("default/gw").await;
        let (node_type, claims) = node_type.split_once(' ').map_or((node_type, None), |(t, c)| (t, Some(c)));
        let mut node = node(node_type, "default");
        node.metadata = claims.map(|_| labels_of_node("istio", "ingressgateway"));
        client.node = Some(node);
        let asked = names.first().copied().unwrap_or("kubernetes://cert");
        client.subscribe(Kind::Secret, &[asked]).await;
        let want = if want { expect(Kind::Secret, &[asked], &[]) } else { expect(Kind::Secret, &[], &[asked]) };
        assert_eq!(client.take().await, want, "{objects} {node_type} {names:?}");
    }
}

#[tokio::test]
async fn class_sds_leak_an_account_that_may_not_list_secrets_gets_none() {
    let (cert, key) = pair();
    let secret = serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cert", "namespace": "default"},
        "stringData": {"tls.crt": cert, "tls.key": key}});
    let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod-1", "namespace": "default"},
        "spec": {"serviceAccountName": "gw", "containers": []}, "status": {"podIP": "10.0.0.1"}});
    let objects = format!("[{secret}, {pod}]");
    for allowed in [true, false] {
        let server = Server::start(&objects, Options::default()).await;
        server.ads.set_secret_access(Arc::new(move |namespace, account| {
            assert_eq!((namespace.as_str(), account.as_str()), ("default", "gw"));
            Box::pin(async move { allowed })
        }));
        let name = "kubernetes://cert";
        server.offer_all(ProxyResources { credentials: vec![name.into()], ..Default::default() });
        let mut client = server.delta("default/gw").await;
        client.node = Some(node("router", "default"));
        client.subscribe(Kind::Secret, &[name]).await;
        let want = if allowed { expect(Kind::Secret, &[name], &[]) } else { expect(Kind::Secret, &[], &[name]) };
        assert_eq!(client.take().await, want, "{allowed}");
    }
}

#[tokio::test]
async fn debug_endpoints() {
    let server = Server::with(&[]).await;
    let cluster = Resource::new("outbound|80||a", &Cluster { name: "outbound|80||a".into(), ..Default::default() });
    server.offer_all(ProxyResources { clusters: [cluster].into_iter().collect(), ..Default::default() });
    let mut client = server.delta("default/reviews").await;
    client.subscribe(Kind::Cluster, &[]).await;
    client.take().await;
    let proxy = server.wait_status("CDS", "SYNCED").await;
    assert_eq!((proxy["istiod"].as_str(), proxy["proxy_type"].as_str()), (Some("weftd-0"), Some("sidecar")));
    let (status, body) =
        server.debug("/debug/config_dump?proxyID=pod-1.default", "[::1]", Some("Bearer default")).await;
    assert_eq!(status, 200, "{body}");
    let dump: serde_json::Value = serde_json::from_str(&body).unwrap();
    let clusters = &dump["configs"][0];
    assert_eq!(clusters["@type"], "type.googleapis.com/envoy.admin.v3.ClustersConfigDump");
    assert_eq!(clusters["dynamic_active_clusters"][0]["cluster"]["name"], "outbound|80||a");
    for (path, from, token, want) in [
        ("/debug/config_dump?proxyID=other.default", "127.0.0.1", Some("Bearer root"), 404),
        ("/debug/config_dump?proxyID=pod-1.default", "10.1.2.3", Some("Bearer root"), 200),
        ("/debug/config_dump?proxyID=pod-1.default", "10.1.2.3", Some("Bearer other"), 404),
        ("/debug/config_dump", "127.0.0.1", Some("Bearer root"), 400),
        ("/debug/syncz", "10.1.2.3", None, 401),
        // To call from the same machine proves nothing.
        ("/debug/syncz", "127.0.0.1", None, 401),
        ("/debug/config_dump?proxyID=pod-1.default", "::1", None, 401),
        ("/debug/syncz", "10.1.2.3", Some("Bearer x"), 200),
        ("/debug/registryz", "127.0.0.1", None, 401),
        ("/debug/registryz", "127.0.0.1", Some("Bearer root"), 200),
        ("/debug/endpointz", "127.0.0.1", None, 401),
        ("/debug/endpointz", "127.0.0.1", Some("Bearer root"), 200),
        ("/debug/push_status", "127.0.0.1", None, 401),
        ("/debug/push_status", "127.0.0.1", Some("Bearer root"), 200),
        ("/ready", "10.1.2.3", None, 200),
        ("/version", "10.1.2.3", None, 200),
        ("/metrics", "10.1.2.3", None, 200),
    ] {
        let from = if from.contains("::") { "[::1]" } else { from };
        assert_eq!(server.debug(path, from, token).await.0, want, "{path} from {from}");
    }
    // What is listed is what is of the caller's namespace.
    for (token, proxies) in [("Bearer root", 1), ("Bearer default", 1), ("Bearer other", 0)] {
        let (_, body) = server.debug("/debug/syncz", "10.1.2.3", Some(token)).await;
        let list: Vec<serde_json::Value> = serde_json::from_str(&body).unwrap();
        assert_eq!(list.len(), proxies, "{token}");
    }
}

#[tokio::test]
async fn closing_ends_streams_and_the_list() {
    let server = Server::with(&[]).await;
    let mut client = server.delta("default/reviews").await;
    client.subscribe(Kind::Cluster, &[]).await;
    client.take().await;
    assert_eq!(server.ads.proxies().len(), 1);
    server.ads.close();
    assert_eq!(next(&mut client.responses).await.unwrap_err().code(), Code::Unavailable);
    let until = Instant::now() + Duration::from_secs(30);
    while !server.ads.proxies().is_empty() {
        assert!(Instant::now() < until);
        tokio::task::yield_now().await;
    }
}
