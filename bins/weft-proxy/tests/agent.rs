//! The real program against a control plane on loopback: start, traffic, outage, drain.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::process::Stdio;
use std::time::Duration;
use support::{Ads, ControlPlane, PATIENCE, REVIEWS, eventually, free_port, http};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use weft_proto::envoy::config::bootstrap::v3::bootstrap::StaticResources;
use weft_proto::{pack, type_url};
use weft_tls::{ClientContext, ClientParams, ServerVerification};

struct Proxy {
    child: Child,
    folder: tempfile::TempDir,
    admin: u16,
    status: u16,
    readiness: u16,
}

impl Proxy {
    fn start(control_plane: &ControlPlane, token: Option<&str>, ttl: &str) -> Self {
        Self::start_with(control_plane, token, ttl, &[])
    }

    fn start_with(control_plane: &ControlPlane, token: Option<&str>, ttl: &str, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("root.pem"), control_plane.authority.root_pem()).unwrap();
        if let Some(token) = token {
            std::fs::write(file("token"), token).unwrap();
        }
        let (admin, status, readiness, metrics) = (free_port(), free_port(), free_port(), free_port());
        let config = format!(
            "{{\"discoveryAddress\": \"{}\", \"statusPort\": {status}, \"proxyAdminPort\": {admin}, \"concurrency\": 1, \
             \"terminationDrainDuration\": \"1s\"}}",
            control_plane.address
        );
        let child = Command::new(env!("CARGO_BIN_EXE_weft-proxy"))
            .args(["proxy", "sidecar", "--domain", "default.svc.cluster.local"])
            .args(more)
            .env_clear()
            .envs([
                ("POD_NAME", "reviews-v1-abc"),
                ("POD_NAMESPACE", "default"),
                ("SERVICE_ACCOUNT", "reviews"),
                ("INSTANCE_IP", "127.0.0.1"),
                ("TRUST_DOMAIN", "cluster.local"),
                ("SECRET_TTL", ttl),
                ("PROXY_CONFIG", &config),
                ("ENVOY_STATUS_PORT", &readiness.to_string()),
                ("ENVOY_PROMETHEUS_PORT", &metrics.to_string()),
            ])
            .env("WEFT_ROOT_CERT", file("root.pem"))
            .env("WEFT_TOKEN", file("token"))
            .env("WEFT_SDS_SOCKET", file("sds.sock"))
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { child, folder, admin, status, readiness }
    }

    async fn ready(&self) {
        eventually("readiness", || async {
            let (status, _) = http("GET", self.readiness, "/healthz/ready").await?;
            (status == 200).then_some(())
        })
        .await;
    }

    async fn terminate(&mut self) -> bool {
        let id = i32::try_from(self.child.id().unwrap()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM).unwrap();
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("exit in time");
        ended.unwrap().success()
    }
}

fn sds(name: &str) -> String {
    format!(
        "{{name: {name}, sds_config: {{resource_api_version: V3, api_config_source: {{api_type: GRPC, \
         transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: sds-grpc}}}}]}}}}}}"
    )
}

/// A TLS listener that answers every request itself.
fn listeners(port: u16, body: &str) -> StaticResources {
    let text = format!(
        "listeners:
- name: inbound
  address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
  filter_chains:
  - transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
        require_client_certificate: true
        common_tls_context:
          alpn_protocols: [http/1.1]
          tls_certificate_sds_secret_configs: [{}]
          validation_context_sds_secret_config: {}
    filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: inbound
        route_config:
          name: r
          virtual_hosts:
          - name: all
            domains: ['*']
            routes:
            - match: {{prefix: /}}
              direct_response: {{status: 200, body: {{inline_string: '{body}'}}}}
        http_filters:
        - name: envoy.filters.http.router
          typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
clusters:
- name: outbound|80||a.default.svc.cluster.local
  type: STATIC
  connect_timeout: 20s
  load_assignment:
    cluster_name: outbound|80||a.default.svc.cluster.local
    endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}}}}}]}}]
",
        sds("default"),
        sds("ROOTCA"),
    );
    weft_proto::json::from_yaml(&text).unwrap()
}

fn serve(ads: &Ads, port: u16, body: &str) {
    let resources = listeners(port, body);
    for cluster in &resources.clusters {
        ads.set(type_url::CLUSTER, &cluster.name, pack(cluster));
    }
    for listener in &resources.listeners {
        ads.set(type_url::LISTENER, &listener.name, pack(listener));
    }
}

/// The body that the listener answers with, over mutual TLS; checks who answers.
async fn call(control_plane: &ControlPlane, port: u16) -> Option<String> {
    let authority = &control_plane.authority;
    let ratings = weft_identity::SpiffeId::parse("spiffe://cluster.local/ns/default/sa/ratings").unwrap();
    let certificate = authority
        .server_certificate(&[], Some(&ratings), Duration::from_secs(60), std::time::SystemTime::now())
        .unwrap();
    let context = ClientContext::build(ClientParams {
        certificate: Some(certificate),
        alpn: vec![b"http/1.1".to_vec()],
        ..ClientParams::new(ServerVerification::Chain { anchors: authority.roots().clone(), san: None })
    })
    .unwrap();
    let tcp = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let mut connected = context.connect(tcp).await.ok()?;
    assert_eq!(connected.facts.peer.as_ref()?.spiffe_id()?.to_string(), REVIEWS);
    let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    connected.stream.write_all(request).await.ok()?;
    let mut answer = String::new();
    connected.stream.read_to_string(&mut answer).await.ok()?;
    answer.starts_with("HTTP/1.1 200").then(|| answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test]
async fn from_waiting_to_serving_to_drained() {
    let control_plane = ControlPlane::start().await;
    let mut proxy = Proxy::start(&control_plane, None, "1h");
    // Without a token it waits, and says for what.
    eventually("a reason", || async {
        let (status, why) = http("GET", proxy.readiness, "/healthz/ready").await?;
        (status == 503 && why.contains("service-account token")).then_some(())
    })
    .await;
    std::fs::write(proxy.folder.path().join("token"), "reviews-token").unwrap();
    // With an identity it waits for the configuration's listener.
    let port = free_port();
    serve(&control_plane.ads, port, "first");
    proxy.ready().await;
    assert_eq!(call(&control_plane, port).await.as_deref(), Some("first"));
    assert!(control_plane.ads.nodes.lock().unwrap()[0].starts_with("sidecar~127.0.0.1~reviews-v1-abc.default~"));

    let (_, dump) = http("GET", proxy.admin, "/config_dump?include_eds").await.unwrap();
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let section = |kind: &str| {
        let found = dump["configs"].as_array().unwrap().iter().find(|c| c["@type"].as_str().unwrap().ends_with(kind));
        found.unwrap_or_else(|| panic!("{kind}")).clone()
    };
    assert_eq!(section("ListenersConfigDump")["dynamic_listeners"][0]["name"], "inbound");
    let cluster = &section("ClustersConfigDump")["dynamic_active_clusters"][0]["cluster"];
    assert_eq!(cluster["name"], "outbound|80||a.default.svc.cluster.local");
    assert_eq!(section("SecretsConfigDump")["dynamic_active_secrets"][0]["name"], "default");
    assert!(!dump.to_string().contains("PRIVATE KEY"));
    let (_, certs) = http("GET", proxy.admin, "/certs").await.unwrap();
    assert!(certs.contains(REVIEWS), "{certs}");
    let (_, listeners) = http("GET", proxy.admin, "/listeners").await.unwrap();
    assert_eq!(listeners, format!("inbound::127.0.0.1:{port}\n"));
    let (_, clusters) = http("GET", proxy.admin, "/clusters").await.unwrap();
    assert!(clusters.contains("::127.0.0.1:1::health_flags::healthy"), "{clusters}");
    assert_eq!(http("GET", proxy.admin, "/drain_listeners").await.unwrap().0, 405);
    assert_eq!(http("POST", proxy.admin, "/stats").await.unwrap().0, 405);
    assert_eq!(http("GET", proxy.admin, "/ready").await.unwrap(), (200, "LIVE\n".to_owned()));
    let (_, metrics) = http("GET", proxy.status, "/stats/prometheus").await.unwrap();
    assert!(metrics.contains("istio_agent_cert_expiry_timestamp_seconds{resource_name=\"default\"}"), "{metrics}");

    assert!(proxy.terminate().await, "a drained proxy ends without error");
}

#[tokio::test]
async fn what_was_good_stays_when_the_control_plane_is_wrong_or_away() {
    let control_plane = ControlPlane::start().await;
    let port = free_port();
    serve(&control_plane.ads, port, "first");
    let proxy = Proxy::start(&control_plane, Some("reviews-token"), "1h");
    proxy.ready().await;
    // A listener that cannot be used is refused by name, and the old one serves on.
    let mut broken = listeners(port, "broken").listeners.remove(0);
    broken.filter_chains[0].filters[0].name = "no.such.filter".into();
    broken.filter_chains[0].filters[0].config_type = None;
    control_plane.ads.set(type_url::LISTENER, "inbound", pack(&broken));
    let nack = eventually("a NACK", || async { control_plane.ads.nacks.lock().unwrap().first().cloned() }).await;
    assert!(nack.contains("inbound"), "{nack}");
    assert_eq!(call(&control_plane, port).await.as_deref(), Some("first"));
    let (_, dump) = http("GET", proxy.admin, "/config_dump?resource=dynamic_listeners").await.unwrap();
    assert!(dump.contains("error_state"), "{dump}");

    let (authority, ads, address) =
        (control_plane.authority.clone(), control_plane.ads.clone(), control_plane.address.clone());
    drop(control_plane);
    // Calls need an authority to make the caller's certificate; a second one on another port has the same root.
    let beside = ControlPlane::serve(authority.clone(), Ads::default(), "127.0.0.1:0").await;
    for _ in 0..10 {
        assert_eq!(call(&beside, port).await.as_deref(), Some("first"));
    }
    serve(&ads, port, "second");
    let _again = ControlPlane::serve(authority, ads, &address).await;
    eventually("the new configuration", || async {
        (call(&beside, port).await.as_deref() == Some("second")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn rotation_changes_what_new_connections_see() {
    let control_plane = ControlPlane::start().await;
    let port = free_port();
    serve(&control_plane.ads, port, "first");
    let proxy = Proxy::start(&control_plane, Some("reviews-token"), "15s");
    proxy.ready().await;
    let serial = || async {
        let (_, certs) = http("GET", proxy.admin, "/certs").await?;
        let certs: serde_json::Value = serde_json::from_str(&certs).ok()?;
        Some(certs["certificates"][0]["cert_chain"][0]["serial_number"].as_str()?.to_owned())
    };
    let first = serial().await.unwrap();
    let mut calls = 0;
    // Half the lifetime and some jitter; the bound is for a machine with other work.
    let end = std::time::Instant::now() + PATIENCE;
    while serial().await.unwrap() == first && std::time::Instant::now() < end {
        assert_eq!(call(&control_plane, port).await.as_deref(), Some("first"), "after {calls} calls");
        calls += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_ne!(serial().await.unwrap(), first, "rotated");
    assert_eq!(call(&control_plane, port).await.as_deref(), Some("first"), "with the new certificate");
}

#[tokio::test]
async fn an_envoy_under_the_agent_serves_the_same() {
    const ENVOY: &str = "/opt/weft-peers/bin/envoy";
    if !std::path::Path::new(ENVOY).exists() {
        eprintln!("skipped: there is no Envoy at {ENVOY}");
        return;
    }
    let control_plane = ControlPlane::start().await;
    let port = free_port();
    serve(&control_plane.ads, port, "first");
    let engine = ["--engine", "envoy", "--envoy-path", ENVOY];
    let mut proxy = Proxy::start_with(&control_plane, Some("reviews-token"), "12s", &engine);
    proxy.ready().await;
    eventually("an answer", || async { (call(&control_plane, port).await.as_deref() == Some("first")).then_some(()) })
        .await;
    let (_, certs) = http("GET", proxy.admin, "/certs").await.unwrap();
    let serial = |certs: &str| {
        let certs: serde_json::Value = serde_json::from_str(certs).unwrap();
        certs["certificates"][0]["cert_chain"][0]["serial_number"].as_str().unwrap().to_owned()
    };
    let first = serial(&certs);
    eventually("a rotation in Envoy", || async {
        let (_, certs) = http("GET", proxy.admin, "/certs").await?;
        (serial(&certs) != first).then_some(())
    })
    .await;
    assert_eq!(call(&control_plane, port).await.as_deref(), Some("first"));
    let (_, metrics) = http("GET", proxy.status, "/stats/prometheus").await.unwrap();
    assert!(metrics.contains("envoy_server_live") && metrics.contains("istio_agent_cert_expiry_timestamp_seconds"));
    assert!(proxy.terminate().await, "agent and Envoy end together");
    assert!(TcpStream::connect(("127.0.0.1", proxy.admin)).await.is_err(), "no Envoy is left behind");
}

#[tokio::test]
async fn mistakes_end_the_start_with_their_name() {
    for (variable, value, says) in [
        ("POD_NAME", "", "POD_NAME"),
        ("PROXY_CONFIG", "concurrency: [", "PROXY_CONFIG"),
        ("WEFT_SOCKET_MARK", "x", "WEFT_SOCKET_MARK"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_weft-proxy"))
            .arg("sidecar")
            .env_clear()
            .envs([("POD_NAME", "p"), ("POD_NAMESPACE", "n"), ("INSTANCE_IP", "127.0.0.1"), (variable, value)])
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(PATIENCE, output).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(says), "{variable}: {text}");
    }
}
