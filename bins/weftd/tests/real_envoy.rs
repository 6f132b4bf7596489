//! Real Envoys as sidecar and as gateway: both variants of the protocol, over TLS, with certificates by SDS. All that is
//! generated is taken, becomes ready, and stays current.
//!
//! The program is `$ENVOY`, else `/opt/weft-peers/bin/envoy`; where neither is there the test says so and passes. Each Envoy
//! has a network namespace of its own, and reaches the control plane through a Unix socket.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Cluster, LIMIT, get_as, until};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::process::{Child, Command};
use weft_sds::{SdsServer, SvidConfig, SvidManager};
use weftd::Running;

fn envoy() -> Option<PathBuf> {
    let named = std::env::var_os("ENVOY").map(PathBuf::from);
    named.or_else(|| Some("/opt/weft-peers/bin/envoy".into())).filter(|path| path.is_file())
}

const GATEWAY: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: gateway-1, namespace: default, labels: {istio: ingressgateway}}
spec: {serviceAccountName: bookinfo-reviews, containers: [{name: istio-proxy, image: x, ports: [{containerPort: 8080}, {containerPort: 8443}]}]}
status: {phase: Running, podIP: 10.244.0.9, podIPs: [{ip: 10.244.0.9}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: istio-ingressgateway, namespace: default}
spec: {clusterIP: 10.96.0.20, selector: {istio: ingressgateway}, ports: [{name: http2, port: 80, targetPort: 8080}, {name: https, port: 443, targetPort: 8443}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: gateway-1, namespace: default, labels: {kubernetes.io/service-name: istio-ingressgateway}}
addressType: IPv4
ports: [{name: http2, port: 8080, protocol: TCP}, {name: https, port: 8443, protocol: TCP}]
endpoints: [{addresses: [10.244.0.9], conditions: {ready: true}, targetRef: {kind: Pod, name: gateway-1, namespace: default}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gateway, namespace: default}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [books.example.com], tls: {mode: SIMPLE, credentialName: books}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: bookinfo, namespace: default}
spec:
  hosts: ["*"]
  gateways: [gateway]
  http: [{match: [{uri: {exact: /productpage}}], route: [{destination: {host: productpage, port: {number: 9080}}}]}]
"#;

/// A proxy under test and what stands around it.
struct Proxy {
    name: &'static str,
    folder: PathBuf,
    _envoy: Child,
    _identity: SvidManager,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Proxy {
    /// An Envoy for a pod, with an agent that keeps its certificate and a socket that leads to `weftd`.
    async fn start(
        program: &Path,
        cluster: &Cluster,
        weftd: &Running,
        (pod, account, id): (&'static str, &str, &str),
        delta: bool,
    ) -> Self {
        let folder = std::env::temp_dir().join(format!("weftd-envoy-{}-{pod}-{delta}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let token = cluster.token(account).await;
        std::fs::write(folder.join("token"), &token).unwrap();
        std::fs::write(folder.join("root.pem"), cluster.root_pem().await).unwrap();
        let identity = SvidManager::start(SvidConfig {
            root_cert_path: folder.join("root.pem"),
            token_path: folder.join("token"),
            ..SvidConfig::new(weftd.secure.to_string())
        });
        let secrets = SdsServer::bind(&folder.join("sds"), identity.secrets()).unwrap();
        tokio::spawn(secrets.run(std::future::pending()));
        tokio::spawn(bridge(UnixListener::bind(folder.join("xds")).unwrap(), weftd.secure));
        let config = folder.join("envoy.json");
        std::fs::write(&config, bootstrap(&folder, id, &token, delta).to_string()).unwrap();
        let envoy = Command::new("unshare")
            .args(["-Urn", "--kill-child", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""])
            .arg(program)
            .args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "warning", "-c"])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("log")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { name: pod, folder, _envoy: envoy, _identity: identity }
    }

    /// Envoy's admin answer, once it gives one.
    async fn admin(&self, path: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.folder.join("admin")).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    async fn wait_ready(&self) {
        let end = Instant::now() + LIMIT;
        loop {
            let answer = self.admin("/ready").await.unwrap_or_default();
            if answer.starts_with("HTTP/1.1 200") {
                return;
            }
            if Instant::now() >= end {
                let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                let state = self.admin("/init_dump").await.unwrap_or_default();
                panic!("{} is not ready: {answer}\n{state}\n{log}", self.name);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

/// Passes connections of a Unix socket on to the control plane.
async fn bridge(listener: UnixListener, to: SocketAddr) {
    while let Ok((mut from, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut to = TcpStream::connect(to).await?;
            tokio::io::copy_bidirectional(&mut from, &mut to).await
        });
    }
}

fn bootstrap(folder: &Path, id: &str, token: &str, delta: bool) -> Value {
    let grpc = |name: &str, socket: &str| {
        json!({
            "name": name, "type": "STATIC", "connect_timeout": "1s",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }},
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {
                "address": {"pipe": {"path": folder.join(socket)}},
            }}]}]},
        })
    };
    let mut xds = grpc("xds-grpc", "xds");
    xds["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": "istiod.istio-system.svc",
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "validation_context": {
                "trusted_ca": {"filename": folder.join("root.pem")},
                "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "istiod.istio-system.svc"}}],
            },
        },
    }});
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    json!({
        "node": {"id": id, "cluster": "test.default", "metadata": {"NAMESPACE": "default"}},
        "admin": {"address": {"pipe": {"path": folder.join("admin")}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": if delta { "DELTA_GRPC" } else { "GRPC" }, "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{
                    "envoy_grpc": {"cluster_name": "xds-grpc"},
                    "initial_metadata": [{"key": "authorization", "value": format!("Bearer {token}")}],
                }],
            },
            "lds_config": ads, "cds_config": ads,
        },
        "static_resources": {"clusters": [xds, grpc("sds-grpc", "sds")]},
    })
}

/// Waits until every type that proxy asked for is taken, at that version at least; a refusal ends the test.
async fn wait_synced(cluster: &Cluster, weftd: &Running, name: &str, kinds: &[(&str, u64)]) -> Value {
    let token = cluster.token_of("istio-system", "istiod").await;
    until("SYNCED", async || {
        let (_, body) = get_as(weftd.monitoring, "/debug/syncz", Some(&token)).await;
        let all: Vec<Value> = serde_json::from_str(&body).ok()?;
        let proxy = all.into_iter().find(|p| p["proxy"] == name)?;
        for kind in ["CDS", "EDS", "LDS", "RDS", "SDS"] {
            assert_eq!(proxy["types"][kind]["error"], "", "{name} refused {kind}");
        }
        let taken = |(kind, version): &(&str, u64)| {
            let state = &proxy["types"][*kind];
            state["status"] == "SYNCED" && state["version"].as_u64() >= Some(*version)
        };
        kinds.iter().all(taken).then_some(proxy)
    })
    .await
}

async fn edit_reviews(cluster: &Cluster, weftd: &Running, subset: Option<&str>) -> u64 {
    let before = weftd.ads().snapshot().unwrap().sections.virtual_services;
    let mut destination = json!({"host": "reviews"});
    if let Some(subset) = subset {
        destination["subset"] = json!(subset);
    }
    let spec = json!({"spec": {"http": [{"route": [{"destination": destination}]}]}});
    cluster.edit("networking.istio.io", "VirtualService", "reviews", spec).await;
    until("the snapshot", async || {
        let now = weftd.ads().snapshot()?.sections.virtual_services;
        (now > before).then_some(now)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoys_take_everything_and_stay_current() {
    let Some(program) = envoy() else {
        eprintln!("skipped: no Envoy at $ENVOY or /opt/weft-peers/bin/envoy");
        return;
    };
    let cluster = Cluster::start().await;
    for document in weft_k8s_api::yaml::documents(GATEWAY, "gateway").unwrap() {
        cluster.api.store().create(document.object).unwrap();
    }
    cluster.create(gateway_secret()).await;
    let weftd = cluster.weftd().await;
    let sidecar = "sidecar~10.244.0.6~productpage-v1.default~default.svc.cluster.local";
    let gateway = "router~10.244.0.9~gateway-1.default~default.svc.cluster.local";
    for delta in [false, true] {
        let a = ("productpage-v1", "bookinfo-productpage", sidecar);
        let b = ("gateway-1", "bookinfo-reviews", gateway);
        let sidecar = Proxy::start(&program, &cluster, &weftd, a, delta).await;
        let gateway = Proxy::start(&program, &cluster, &weftd, b, delta).await;
        sidecar.wait_ready().await;
        gateway.wait_ready().await;
        let all = [("CDS", 0), ("EDS", 0), ("LDS", 0), ("RDS", 0)];
        let found = wait_synced(&cluster, &weftd, "productpage-v1.default", &all).await;
        assert_eq!(
            (found["engine"].as_str(), found["protocol"].as_str()),
            (Some("envoy"), Some(if delta { "delta" } else { "sotw" }))
        );
        wait_synced(&cluster, &weftd, "gateway-1.default", &[all[0], all[1], all[2], all[3], ("SDS", 0)]).await;

        // A route changes and is in force in Envoy.
        for subset in [None, Some("v1")] {
            let version = edit_reviews(&cluster, &weftd, subset).await;
            wait_synced(&cluster, &weftd, "productpage-v1.default", &[("RDS", version)]).await;
            let dump = sidecar.admin("/config_dump?resource=dynamic_route_configs").await.unwrap();
            let v1 = dump.contains("outbound|9080|v1|reviews.default.svc.cluster.local");
            assert_eq!(v1, subset.is_some(), "{dump}");
        }
        // A cluster changes, is warmed, and Envoy stays ready.
        let before = weftd.ads().snapshot().unwrap().version;
        let timeout = if delta { "3s" } else { "2s" };
        let spec = json!({"spec": {"trafficPolicy": {"connectionPool": {"tcp": {"connectTimeout": timeout}}}}});
        cluster.edit("networking.istio.io", "DestinationRule", "reviews", spec).await;
        wait_synced(&cluster, &weftd, "productpage-v1.default", &[("CDS", before + 1), ("EDS", before + 1)]).await;
        until("the warmed cluster", async || {
            let dump = sidecar.admin("/config_dump?resource=dynamic_active_clusters").await?;
            dump.contains(&format!("\"connect_timeout\": \"{timeout}\"")).then_some(())
        })
        .await;
        let warming = sidecar.admin("/config_dump?resource=dynamic_warming_clusters").await.unwrap();
        assert!(!warming.contains("outbound|"), "{warming}");
        sidecar.wait_ready().await;
    }
    weftd.stop().await;
}

/// A certificate for the gateway's HTTPS server.
fn gateway_secret() -> Value {
    let authority = weft_ca::Authority::self_signed(
        weft_identity::TrustDomain::new("books").unwrap(),
        weft_ca::CaPolicy::default(),
        std::time::SystemTime::now(),
    );
    let hour = std::time::Duration::from_secs(3600);
    let (cert, key) = authority
        .unwrap()
        .server_certificate_pem(&["books.example.com"], None, hour, std::time::SystemTime::now())
        .unwrap();
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "books", "namespace": "default"},
        "stringData": {"tls.crt": cert, "tls.key": *key},
    })
}
