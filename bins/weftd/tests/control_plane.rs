//! The whole control plane against an API server in this process: objects in, xDS and certificates out, over TLS.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Cluster, LIMIT, get, get_as, post, review, until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use weft_k8s_api::Object;
use weft_k8s_api::kinds::by_kind;
use weft_proto::envoy::config::core::v3::Node;
use weft_proto::envoy::config::route::v3::VirtualHost;
use weft_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use weft_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_proto::istio::v1::auth::IstioCertificateRequest;
use weft_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use weft_proto::{type_url, unpack};
use weft_store::client::TokenRequest;
use weft_tls::{CertifiedKey, ClientContext, ClientParams, KeyKind, San, ServerVerification, TrustAnchors};

/// A gRPC channel over TLS, as a proxy opens it: the control plane is known by its name and the mesh's root.
async fn channel(
    address: SocketAddr,
    root: &str,
    certificate: Option<CertifiedKey>,
) -> Result<Channel, tonic::transport::Error> {
    let verification =
        ServerVerification::WebPki { anchors: TrustAnchors::from_pem(root.as_bytes()).unwrap(), san: None };
    let params = ClientParams {
        certificate,
        sni: Some("istiod.istio-system.svc".into()),
        alpn: vec![b"h2".to_vec()],
        ..ClientParams::new(verification)
    };
    let context = ClientContext::build(params).unwrap();
    let connect = tower::service_fn(move |_: http::Uri| {
        let context = context.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let connected = context.connect(stream).await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(connected.stream))
        }
    });
    Endpoint::from_static("http://istiod.istio-system.svc:15012").connect_with_connector(connect).await
}

/// A delta stream of a proxy.
struct Proxy {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    node: Option<Node>,
}

impl Proxy {
    async fn open(channel: Channel, token: Option<&str>, pod: &str, ip: &str, weft: bool) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(16);
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let responses =
            AggregatedDiscoveryServiceClient::new(channel).delta_aggregated_resources(request).await?.into_inner();
        let metadata =
            if weft { json!({"WEFT": "1", "NAMESPACE": "default"}) } else { json!({"NAMESPACE": "default"}) };
        let node = json!({
            "id": format!("sidecar~{ip}~{pod}.default~default.svc.cluster.local"),
            "metadata": metadata,
        });
        Ok(Self { requests, responses, node: Some(weft_proto::json::from_json(&node).unwrap()) })
    }

    async fn subscribe(&mut self, type_url: &str, names: &[&str]) {
        let request = DeltaDiscoveryRequest {
            node: self.node.take(),
            type_url: type_url.into(),
            resource_names_subscribe: names.iter().map(|n| (*n).to_string()).collect(),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let message = tokio::time::timeout(LIMIT, self.responses.message()).await.expect("a response in time")?;
        let response = message.ok_or_else(|| Status::unavailable("the stream ended"))?;
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        };
        self.requests.send(answer).await.unwrap();
        Ok(response)
    }

    /// The next response, which must be of that type: names of its resources.
    async fn names(&mut self, type_url: &str) -> BTreeSet<String> {
        let response = self.next().await.unwrap();
        assert_eq!(response.type_url, type_url, "{:?}", response.removed_resources);
        response.resources.iter().map(|r| r.name.clone()).collect()
    }
}

/// Clusters that the routes of a virtual host lead to.
fn route_clusters(response: &DeltaDiscoveryResponse, host: &str) -> Option<String> {
    let resource = response.resources.iter().find(|r| r.name.contains(host))?;
    let host: VirtualHost = unpack(resource.resource.as_ref()?).unwrap();
    Some(weft_proto::json::to_json(&host, true).unwrap().to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_become_configuration_of_proxies() {
    let cluster = Cluster::start().await;
    let weftd = cluster.weftd().await;
    let (root, token) = (cluster.root_pem().await, cluster.token("bookinfo-productpage").await);
    let opened = channel(weftd.secure, &root, None).await.unwrap();
    let mut proxy = Proxy::open(opened, Some(&token), "productpage-v1", "10.244.0.6", true).await.unwrap();

    let v1 = "outbound|9080|v1|reviews.default.svc.cluster.local";
    let all = "outbound|9080||reviews.default.svc.cluster.local";
    proxy.subscribe(type_url::CLUSTER, &["*"]).await;
    let clusters = proxy.names(type_url::CLUSTER).await;
    assert!(clusters.contains(v1) && clusters.contains(all) && clusters.contains("inbound|9080||"), "{clusters:?}");
    proxy.subscribe(type_url::ENDPOINT, &[v1, all]).await;
    assert_eq!(proxy.names(type_url::ENDPOINT).await, BTreeSet::from([v1.to_string(), all.to_string()]));
    proxy.subscribe(type_url::LISTENER, &["*"]).await;
    assert!(proxy.names(type_url::LISTENER).await.contains("virtualInbound"));
    proxy.subscribe(type_url::ROUTE, &["9080"]).await;
    assert_eq!(proxy.names(type_url::ROUTE).await, BTreeSet::from(["9080".to_string()]));
    proxy.subscribe(type_url::VIRTUAL_HOST, &["9080/*"]).await;
    let hosts = proxy.next().await.unwrap();
    assert!(route_clusters(&hosts, "reviews.default").unwrap().contains(v1));

    // A route change moves one virtual host, and nothing else.
    let start = Instant::now();
    let spec = json!({"spec": {"http": [{"route": [{"destination": {"host": "reviews"}}]}]}});
    cluster.edit("networking.istio.io", "VirtualService", "reviews", spec).await;
    let changed = proxy.next().await.unwrap();
    eprintln!("route change live after {:?}", start.elapsed());
    assert_eq!((changed.type_url.as_str(), changed.resources.len()), (type_url::VIRTUAL_HOST, 1));
    let routes = route_clusters(&changed, "reviews.default").unwrap();
    assert!(routes.contains(all) && !routes.contains(v1), "{routes}");

    // An endpoint change moves endpoints alone.
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reviews-v2", "namespace": "default", "labels": {"app": "reviews"}},
        "spec": {"serviceAccountName": "bookinfo-reviews", "containers": [{"name": "x", "image": "x"}]},
        "status": {"phase": "Running", "podIP": "10.244.0.7", "conditions": [{"type": "Ready", "status": "True"}]},
    });
    cluster.api.store().create(serde_json::from_value(pod).unwrap()).unwrap();
    let endpoints = json!({"endpoints": [
        {"addresses": ["10.244.0.5"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "reviews-v1"}},
        {"addresses": ["10.244.0.7"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "reviews-v2"}},
    ]});
    cluster.edit("discovery.k8s.io", "EndpointSlice", "reviews-1", endpoints).await;
    assert_eq!(proxy.names(type_url::ENDPOINT).await, BTreeSet::from([all.to_string()]));

    // What users see of it.
    let synced = until("SYNCED", async || {
        let (_, body) =
            get_as(weftd.monitoring, "/debug/syncz", Some(&cluster.token_of("istio-system", "istiod").await)).await;
        let all: Value = serde_json::from_str(&body).ok()?;
        (all[0]["types"]["EDS"]["status"] == "SYNCED").then(|| all[0].clone())
    });
    let synced = synced.await;
    assert_eq!(
        (synced["proxy"].as_str(), synced["istiod"].as_str()),
        (Some("productpage-v1.default"), Some("weftd-0"))
    );
    assert_eq!(synced["engine"], "weft");
    let (status, dump) = get_as(
        weftd.monitoring,
        "/debug/config_dump?proxyID=productpage-v1.default",
        Some(&cluster.token_of("istio-system", "istiod").await),
    )
    .await;
    assert!(status == 200 && dump.contains("outbound|9080||reviews.default.svc.cluster.local"));
    assert_eq!(get(weftd.monitoring, "/ready").await.0, 200);
    assert!(get(weftd.monitoring, "/metrics").await.1.contains("pilot_xds_pushes{type=\"eds\"} 2"));

    // The end: streams are told.
    weftd.stop().await;
    assert_eq!(proxy.next().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_issued_and_open_streams() {
    let cluster = Cluster::start().await;
    let weftd = cluster.weftd().await;
    let (root, token) = (cluster.root_pem().await, cluster.token("bookinfo-reviews").await);
    let identity = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews";
    let made = weft_tls::generate_key_and_csr(KeyKind::EcdsaP256, &[San::Uri(identity.into())]).unwrap();
    let mut service = IstioCertificateServiceClient::new(channel(weftd.secure, &root, None).await.unwrap());
    let ask = |token: Option<&str>, csr: &str| {
        let body = IstioCertificateRequest { csr: csr.into(), validity_duration: 3600, ..Default::default() };
        let mut request = tonic::Request::new(body);
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        request
    };
    for token in [None, Some("not-a-token")] {
        let refused = service.create_certificate(ask(token, &made.csr_pem)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
    // A token for the API server alone is not one for the mesh.
    let other = TokenRequest::default();
    let other = cluster.client.token_request("default", "bookinfo-reviews", &other).await.unwrap().token;
    let refused = service.create_certificate(ask(Some(&other), &made.csr_pem)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);

    let answer = service.create_certificate(ask(Some(&token), &made.csr_pem)).await.unwrap().into_inner();
    let key = CertifiedKey::from_pem(answer.cert_chain.concat().as_bytes(), made.key_pem.as_bytes()).unwrap();
    assert_eq!(&*key.facts().uris[0], identity);
    let (_, metrics) = get(weftd.monitoring, "/metrics").await;
    for (name, value) in [("csr_count", 4), ("authentication_failure_count", 3), ("success_cert_issuance_count", 1)] {
        assert!(metrics.contains(&format!("\ncitadel_server_{name} {value}\n")), "{name}: {metrics}");
    }
    let end = metrics.lines().find_map(|line| line.strip_prefix("citadel_server_root_cert_expiry_timestamp "));
    assert!(end.unwrap().parse::<u64>().unwrap() > 1_900_000_000, "ten years from now: {end:?}");

    // With the certificate no token is needed; without either there is no stream; for another pod there is none.
    let with = channel(weftd.secure, &root, Some(key.clone())).await.unwrap();
    let mut proxy = Proxy::open(with.clone(), None, "reviews-v1", "10.244.0.5", false).await.unwrap();
    proxy.subscribe(type_url::CLUSTER, &[]).await;
    assert!(!proxy.names(type_url::CLUSTER).await.is_empty());
    let without = channel(weftd.secure, &root, None).await.unwrap();
    let refused = Proxy::open(without, None, "reviews-v1", "10.244.0.5", false).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let mut impostor = Proxy::open(with, None, "productpage-v1", "10.244.0.6", false).await.unwrap();
    impostor.subscribe(type_url::CLUSTER, &[]).await;
    assert_eq!(impostor.next().await.unwrap_err().code(), Code::PermissionDenied);

    // The server is known by the mesh's root and by nothing else.
    let stranger = weft_ca::Authority::self_signed(
        weft_identity::TrustDomain::new("other").unwrap(),
        weft_ca::CaPolicy::default(),
        std::time::SystemTime::now(),
    );
    assert!(channel(weftd.secure, stranger.unwrap().root_pem(), None).await.is_err());
    weftd.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_start_together_agree_on_one_authority_and_a_restart_keeps_it() {
    let cluster = Cluster::start().await;
    let (a, b) = tokio::join!(cluster.weftd(), cluster.weftd());
    let root = cluster.root_pem().await;
    for weftd in [&a, &b] {
        channel(weftd.secure, &root, None).await.expect("both serve under one root");
    }
    a.stop().await;
    b.stop().await;
    let again = cluster.weftd().await;
    channel(again.secure, &root, None).await.expect("the root is kept");
    // New namespaces get it too, and what someone breaks is mended.
    cluster.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "late"}})).await;
    let config_map = by_kind("", "ConfigMap").unwrap();
    let read = async |ns: &str| {
        let map = cluster.client.get(config_map, ns, "istio-ca-root-cert").await.ok()?;
        map.body["data"]["root-cert.pem"].as_str().filter(|pem| *pem == root).map(str::to_string)
    };
    until("the root in the new namespace", async || read("late").await).await;
    cluster.edit("", "ConfigMap", "istio-ca-root-cert", json!({"data": {"root-cert.pem": "broken"}})).await;
    until("the mended root", async || read("default").await).await;
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warnings_reach_the_objects_and_leave_them() {
    let cluster = Cluster::start().await;
    let weftd = cluster.weftd().await;
    let spec = |host: &str| json!({"spec": {"http": [{"route": [{"destination": {"host": host}}]}]}});
    let messages = async || {
        let kind = by_kind("networking.istio.io", "VirtualService").unwrap();
        let object = cluster.client.get(kind, "default", "reviews").await.ok()?;
        Some(object.body.get("status").and_then(|s| s.get("validationMessages")).cloned().unwrap_or(Value::Null))
    };
    cluster.edit("networking.istio.io", "VirtualService", "reviews", spec("nowhere")).await;
    let found = until("the message", async || messages().await.filter(|m| m.is_array())).await;
    assert_eq!(found[0]["type"]["code"], "IST0101");
    assert!(found[0]["message"].as_str().unwrap().contains("nowhere.default.svc.cluster.local"), "{found}");
    let (_, body) =
        get_as(weftd.monitoring, "/debug/push_status", Some(&cluster.token_of("istio-system", "istiod").await)).await;
    assert!(body.contains("nowhere.default.svc.cluster.local"));
    cluster.edit("networking.istio.io", "VirtualService", "reviews", spec("reviews")).await;
    until("no message", async || messages().await.filter(|m| m.is_null())).await;
    weftd.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_config_is_live_and_a_bad_one_changes_nothing() {
    let cluster = Cluster::start().await;
    let mut weftd = cluster.weftd().await;
    let (root, token) = (cluster.root_pem().await, cluster.token("bookinfo-productpage").await);
    let opened = channel(weftd.secure, &root, None).await.unwrap();
    let mut proxy = Proxy::open(opened, Some(&token), "productpage-v1", "10.244.0.6", true).await.unwrap();
    proxy.subscribe(type_url::VIRTUAL_HOST, &["9080/*"]).await;
    assert!(proxy.names(type_url::VIRTUAL_HOST).await.contains("9080/allow_any"));
    let mesh = |text: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-system"}, "data": {"mesh": text}});
    cluster.create(mesh("outboundTrafficPolicy: {mode: REGISTRY_ONLY}")).await;
    let changed = proxy.next().await.unwrap();
    assert_eq!(changed.removed_resources, ["9080/allow_any"]);
    assert!(changed.resources.iter().any(|r| r.name == "9080/block_all"));
    let key = cluster.api.store().find("", "ConfigMap", "istio-system", "istio").unwrap().key();
    for (text, good) in
        [("outboundTrafficPolicy: {mode: NONSENSE}", false), ("outboundTrafficPolicy: {mode: ALLOW_ANY}", true)]
    {
        // Past the API server's own check.
        let change = |object: &mut Object| _ = object.body.insert("data".into(), json!({"mesh": text}));
        cluster.api.store().modify(&key, change).unwrap();
        if good {
            assert_eq!(proxy.next().await.unwrap().removed_resources, ["9080/block_all"]);
        }
    }
    // The API server goes away: the proxies stay served.
    let mut cluster = cluster;
    let _ = cluster.stop.take().unwrap().send(());
    until("no API server", async || TcpStream::connect(cluster.address).await.is_err().then_some(())).await;
    proxy.subscribe(type_url::CLUSTER, &["*"]).await;
    assert!(!proxy.names(type_url::CLUSTER).await.is_empty());
    assert!(tokio::time::timeout(Duration::from_millis(1), weftd.failed()).await.is_err());
    assert!(weftd.ready.is_ready());
    weftd.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_mesh_config_at_start_is_waited_out() {
    let cluster = Cluster::start().await;
    let mesh = |text: &str| json!({"mesh": text});
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-system"},
        "data": mesh("{trustDomain: own.example, outboundTrafficPolicy: {mode: NONSENSE}}"),
    });
    // Past the API server's own check.
    let key = cluster.api.store().create(serde_json::from_value(map).unwrap()).unwrap().key();
    let mut settings = cluster.settings(&[]);
    settings.monitoring_addr = ([127, 0, 0, 1], weft_test_ports::free_port()).into();
    let monitoring = settings.monitoring_addr;
    let starting = tokio::spawn(weftd::start(settings));
    let reason = async || {
        TcpStream::connect(monitoring).await.ok()?;
        let (code, body) = get(monitoring, "/ready").await;
        (code == 503 && body.contains("NONSENSE")).then_some(())
    };
    until("the reason", reason).await;
    // A change of something else is no remedy.
    cluster.edit("networking.istio.io", "VirtualService", "reviews", json!({"metadata": {"labels": {"a": "b"}}})).await;
    until("the reason", reason).await;
    let good = |object: &mut Object| _ = object.body.insert("data".into(), mesh("trustDomain: own.example"));
    cluster.api.store().modify(&key, good).unwrap();
    let weftd = tokio::time::timeout(LIMIT, starting).await.expect("ready in time").unwrap().unwrap();
    assert_eq!(weftd.ads().snapshot().unwrap().settings.trust_domain, "own.example");
    weftd.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_text_is_off_unless_asked_for() {
    let cluster = Cluster::start().await;
    let weftd = cluster.weftd().await;
    assert_eq!(weftd.plain, None);
    weftd.stop().await;
    let weftd = weftd::start(cluster.settings(&["--plaintext-xds"])).await.unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{}", weftd.plain.unwrap())).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let mut proxy = Proxy::open(channel, None, "reviews-v1", "10.244.0.5", false).await.unwrap();
    proxy.subscribe(type_url::CLUSTER, &[]).await;
    assert!(!proxy.names(type_url::CLUSTER).await.is_empty());
    // A taken port is named, with the flag that changes it.
    let taken = weftd.monitoring.to_string();
    let mut settings = cluster.settings(&[]);
    settings.monitoring_addr = weftd.monitoring;
    let error = weftd::start(settings).await.err().unwrap();
    assert!(format!("{error:#}").contains(&taken) && format!("{error:#}").contains("--monitoring-addr"), "{error:#}");
    weftd.stop().await;
}

/// What strangers send is refused before it is read, and does not keep the mesh's own from being served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn class_control_plane_dos_strangers_are_refused_before_they_are_read() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let cluster = Cluster::start().await;
    let weftd = cluster.weftd().await;
    let (root, token) = (cluster.root_pem().await, cluster.token("bookinfo-reviews").await);
    // Connections that say nothing, and some that say something that is no TLS.
    let mut silent = Vec::new();
    for n in 0..300 {
        let mut stream = TcpStream::connect(weftd.secure).await.unwrap();
        if n % 3 == 0 {
            stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        }
        silent.push(stream);
    }
    // A stream of a stranger: the answer comes though not one message has been sent.
    let opened = channel(weftd.secure, &root, None).await.unwrap();
    for token in [None, Some("nonsense"), Some("a.b.c")] {
        let refused = Proxy::open(opened.clone(), token, "reviews-v1", "10.244.0.5", false).await.err().unwrap();
        assert_eq!(refused.code(), Code::Unauthenticated, "{token:?}");
    }
    // Many of them at once, tokens that differ, each as large as a header may be.
    let mut flood = tokio::task::JoinSet::new();
    for n in 0..200 {
        let opened = opened.clone();
        flood.spawn(async move {
            let token = format!("{}{n}", "x".repeat(4000));
            Proxy::open(opened, Some(&token), "reviews-v1", "10.244.0.5", false).await.err().map(|e| e.code())
        });
    }
    // Meanwhile the mesh's own are served.
    let own = channel(weftd.secure, &root, None).await.unwrap();
    let mut proxy = Proxy::open(own.clone(), Some(&token), "reviews-v1", "10.244.0.5", false).await.unwrap();
    proxy.subscribe(type_url::CLUSTER, &[]).await;
    assert!(!proxy.names(type_url::CLUSTER).await.is_empty());
    while let Some(refused) = flood.join_next().await {
        assert!(matches!(refused.unwrap(), Some(Code::Unauthenticated | Code::ResourceExhausted | Code::Unavailable)));
    }
    // Messages beyond the bounds, with and without a token: refused by size.
    let mut service = IstioCertificateServiceClient::new(own.clone());
    for bearer in [None, Some(&token)] {
        let body = IstioCertificateRequest { csr: "x".repeat(1 << 20), ..Default::default() };
        let mut request = tonic::Request::new(body);
        if let Some(token) = bearer {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let refused = service.create_certificate(request).await.unwrap_err().code();
        assert!(matches!(refused, Code::OutOfRange | Code::ResourceExhausted | Code::Unauthenticated), "{refused:?}");
    }
    let mut large = Proxy::open(own, Some(&token), "reviews-v1", "10.244.0.5", false).await.unwrap();
    large.subscribe(type_url::CLUSTER, &[&"n".repeat(17 << 20)]).await;
    let refused = large.next().await.unwrap_err().code();
    assert!(matches!(refused, Code::OutOfRange | Code::ResourceExhausted), "{refused:?}");
    // Those that said something wrong are gone; a proxy is served as before.
    let mut buffer = [0; 64];
    let ended = tokio::time::timeout(LIMIT, async { while silent[0].read(&mut buffer).await.is_ok_and(|n| n > 0) {} });
    ended.await.expect("what is no TLS is closed");
    let with = channel(weftd.secure, &root, None).await.unwrap();
    let mut proxy = Proxy::open(with, Some(&token), "reviews-v1", "10.244.0.5", false).await.unwrap();
    proxy.subscribe(type_url::LISTENER, &[]).await;
    assert!(!proxy.names(type_url::LISTENER).await.is_empty());
    weftd.stop().await;
}

/// Webhooks answer while everything is pushed to many proxies again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn class_webhooks_are_not_starved_by_pushes() {
    let cluster = Cluster::start().await;
    let weftd = cluster.weftd().await;
    let (root, token) = (cluster.root_pem().await, cluster.token("bookinfo-reviews").await);
    let (count, received) = (20, std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0)));
    let mut proxies = tokio::task::JoinSet::new();
    for _ in 0..count {
        let opened = channel(weftd.secure, &root, None).await.unwrap();
        let mut proxy = Proxy::open(opened, Some(&token), "reviews-v1", "10.244.0.5", false).await.unwrap();
        proxy.subscribe(type_url::CLUSTER, &[]).await;
        proxy.subscribe(type_url::LISTENER, &[]).await;
        let received = received.clone();
        proxies.spawn(async move {
            while proxy.next().await.is_ok() {
                received.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        });
    }
    let client = cluster.client.clone();
    let writer = tokio::spawn(async move {
        for n in 0.. {
            let subsets: Vec<Value> =
                (0..20).map(|i| json!({"name": format!("s{n}-{i}"), "labels": {"version": "v1"}})).collect();
            let kind = by_kind("networking.istio.io", "DestinationRule").unwrap();
            let patch = json!({"spec": {"subsets": subsets}});
            let _ = client.merge_patch(kind, "default", "reviews", &patch).await;
        }
    });
    let object = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "reviews"},
        "spec": {"hosts": ["reviews"], "http": [{"route": [{"destination": {"host": "reviews"}}]}]}});
    let seen = || received.load(std::sync::atomic::Ordering::Relaxed);
    until("pushes", async || (seen() > 4 * count).then_some(())).await;
    let before = seen();
    let mut slowest = Duration::ZERO;
    for _ in 0..30 {
        let begin = Instant::now();
        let body = review(object.clone());
        let (status, said) = post(weftd.webhooks, &root, "/validate", "application/json", &body).await;
        assert!(status == 200 && said.contains(r#""allowed":true"#), "{status} {said}");
        slowest = slowest.max(begin.elapsed());
    }
    until("further pushes", async || (seen() > before).then_some(())).await;
    println!("{} pushes, slowest answer {slowest:?}", seen() - before);
    // As long as an API server waits for a webhook.
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    writer.abort();
    proxies.abort_all();
    weftd.stop().await;
}
