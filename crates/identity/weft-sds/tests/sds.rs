//! The SDS server: the protocol by a plain client, and a real Envoy where one is installed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};
use support::{Ca, Pod, REVIEWS, secrets_when};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use weft_ca::{Authority, CaPolicy};
use weft_identity::{SpiffeId, TrustDomain};
use weft_proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
use weft_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use weft_proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use weft_sds::{SDS_CERTIFICATE, SDS_ROOTS, SdsServer, SvidManager};
use weft_tls::{CertifiedKey, ClientContext, ClientParams, Issuer, ServerVerification};

const ENVOY: &str = "/opt/weft-peers/bin/envoy";
const BOUND: Duration = Duration::from_secs(60);

struct Served {
    manager: SvidManager,
    pod: Pod,
    _ca: Ca,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn start(ttl: u64) -> Self {
        Self::start_with(ttl, |_, _| {}).await
    }

    /// `prepare` puts further files into the pod before anything is read.
    async fn start_with(ttl: u64, prepare: impl FnOnce(&Ca, &Pod)) -> Self {
        let ca = Ca::start().await;
        let pod = Pod::new(ca.authority.root_pem(), Some("reviews-token"));
        prepare(&ca, &pod);
        let manager = SvidManager::start(pod.config(&ca.address, ttl));
        let server = SdsServer::bind(&pod.path("sds/socket"), manager.secrets()).unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            server.run(async { drop(stopped.await) }).await.unwrap();
        });
        Self { manager, pod, _ca: ca, stop: Some(stop), task }
    }

    async fn client(&self) -> SecretDiscoveryServiceClient<tonic::transport::Channel> {
        let path = self.pod.path("sds/socket");
        let connector = tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://sds");
        SecretDiscoveryServiceClient::new(endpoint.connect_with_connector(connector).await.unwrap())
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, future).await.expect("an answer in time")
}

fn kinds(resources: &[weft_proto::Any]) -> Vec<String> {
    let read = |any: &weft_proto::Any| weft_proto::unpack::<Secret>(any).unwrap();
    resources
        .iter()
        .map(read)
        .map(|secret| match secret.r#type {
            Some(Type::TlsCertificate(_)) => format!("{} certificate", secret.name),
            Some(Type::ValidationContext(_)) => format!("{} roots", secret.name),
            _ => secret.name,
        })
        .collect()
}

#[tokio::test]
async fn state_of_the_world_pushes_rotations_and_takes_acks_quietly() {
    let served = Served::start(4).await;
    let (requests, stream) = mpsc::channel(8);
    let ask = |names: &[&str], nonce: &str| DiscoveryRequest {
        resource_names: names.iter().map(|&name| name.to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    };
    requests.send(ask(&[SDS_CERTIFICATE, SDS_ROOTS, "other"], "")).await.unwrap();
    let mut answers =
        within(served.client().await.stream_secrets(ReceiverStream::new(stream)).into_inner_stream()).await;
    let first = within(answers.message()).await.unwrap().unwrap();
    assert_eq!(kinds(&first.resources), ["ROOTCA roots", "default certificate"]);
    requests.send(ask(&[SDS_CERTIFICATE, SDS_ROOTS, "other"], &first.nonce)).await.unwrap();
    let next = within(answers.message()).await.unwrap().unwrap();
    assert_ne!(next.version_info, first.version_info, "the answer after an ACK is a rotation");
    assert_ne!(next.resources, first.resources);
}

#[tokio::test]
async fn delta_answers_each_name_once() {
    let served = Served::start(600).await;
    secrets_when(&mut served.manager.secrets(), |_| true).await;
    let (requests, stream) = mpsc::channel(8);
    let ask = |names: &[&str]| DeltaDiscoveryRequest {
        resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(ask(&[SDS_ROOTS])).await.unwrap();
    let mut answers =
        within(served.client().await.delta_secrets(ReceiverStream::new(stream)).into_inner_stream()).await;
    let names = |answer: &weft_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse| {
        answer.resources.iter().map(|r| r.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&within(answers.message()).await.unwrap().unwrap()), [SDS_ROOTS]);
    requests.send(ask(&[SDS_CERTIFICATE, "other"])).await.unwrap();
    let second = within(answers.message()).await.unwrap().unwrap();
    assert_eq!(
        (names(&second), second.removed_resources.as_slice()),
        (vec![SDS_CERTIFICATE.to_owned()], &["other".to_owned()][..])
    );
    served.manager.renew_now();
    let rotated = within(answers.message()).await.unwrap().unwrap();
    assert_eq!(names(&rotated), [SDS_ROOTS, SDS_CERTIFICATE]);
}

#[tokio::test]
async fn the_socket_is_private_and_goes_away() {
    use std::os::unix::fs::PermissionsExt;
    let mut served = Served::start(600).await;
    let path = served.pod.path("sds/socket");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    served.stop.take().unwrap().send(()).unwrap();
    within(&mut served.task).await.unwrap();
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    assert!(SdsServer::bind(&path, served.manager.secrets()).is_err(), "a file that is no socket is left alone");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

fn bootstrap(socket: &Path, port: u16) -> String {
    let sds = |name: &str| {
        serde_json::json!({
            "name": name,
            "sds_config": {
                "resource_api_version": "V3",
                "api_config_source": {
                    "api_type": "GRPC", "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
                },
            },
        })
    };
    serde_json::json!({
        "node": {"id": "test", "cluster": "test"},
        "static_resources": {
            "clusters": [{
                "name": "sds-grpc", "type": "STATIC", "connect_timeout": "20s",
                "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {}},
                }},
                "load_assignment": {"cluster_name": "sds-grpc", "endpoints": [{"lb_endpoints": [{"endpoint": {
                    "address": {"pipe": {"path": socket}},
                }}]}]},
            }],
            "listeners": [{
                "name": "tls", "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                "filter_chains": [{
                    "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                        "require_client_certificate": true,
                        "common_tls_context": {
                            "tls_certificate_sds_secret_configs": [sds(SDS_CERTIFICATE)],
                            "validation_context_sds_secret_config": sds(SDS_ROOTS),
                        },
                    }},
                    "filters": [{"name": "envoy.filters.network.echo", "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo",
                    }}],
                }],
            }],
        },
    })
    .to_string()
}

/// Serial of the certificate that Envoy shows, once it takes connections; `None` while it does not.
async fn shown_by(port: u16, served: &Served) -> Option<String> {
    let secrets = served.manager.secrets().borrow().clone()?;
    let context = ClientContext::build(ClientParams {
        certificate: Some(secrets.certificate.clone()),
        ..ClientParams::new(ServerVerification::Chain { anchors: secrets.trust.clone(), san: None })
    });
    let tcp = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let mut connected = context.unwrap().connect(tcp).await.ok()?;
    let peer = connected.facts.peer?;
    assert_eq!(peer.spiffe_id()?.to_string(), REVIEWS);
    // In TLS 1.3 a server refuses a client's certificate after the client is done: only an echo proves that it did not.
    connected.stream.write_u8(7).await.ok()?;
    assert_eq!(connected.stream.read_u8().await.ok()?, 7);
    Some(peer.serial.clone())
}

/// An Envoy that listens on `port` with the secrets of the pod.
fn envoy(served: &Served, port: u16) -> tokio::process::Child {
    let config = served.pod.path("envoy.json");
    std::fs::write(&config, bootstrap(&served.pod.path("sds/socket"), port)).unwrap();
    tokio::process::Command::new(ENVOY)
        .args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "warning", "-c"])
        .arg(&config)
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Whether who shows this certificate is let in.
async fn let_in(port: u16, certificate: &CertifiedKey) -> bool {
    let context = ClientContext::build(ClientParams {
        certificate: Some(certificate.clone()),
        ..ClientParams::new(ServerVerification::Insecure)
    });
    let echo = async {
        let tcp = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let mut connected = context.unwrap().connect(tcp).await.ok()?;
        connected.stream.write_u8(7).await.ok()?;
        connected.stream.read_u8().await.ok()
    };
    echo.await == Some(7)
}

/// Revocation lists beside roots of several trust domains: they hold for ours, and another mesh, which gives us none, is let in.
#[tokio::test]
async fn real_envoy_refuses_the_revoked_and_another_mesh_without_lists_is_let_in() {
    if !Path::new(ENVOY).exists() {
        eprintln!("skipped: there is no Envoy at {ENVOY}");
        return;
    }
    weft_tls::install_provider();
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    let leaf = |authority: &Authority, id: &str| {
        let id = SpiffeId::parse(id).unwrap();
        authority.server_certificate(&["client"], Some(&id), hour, now).unwrap()
    };
    let partner = TrustDomain::new("partner.example").unwrap();
    let partner = Authority::self_signed(partner, CaPolicy::default(), now).unwrap();
    let theirs = leaf(&partner, "spiffe://partner.example/ns/a/sa/b");
    let mut ours = None;
    let served = Served::start_with(600, |ca, pod| {
        let (good, bad) = (leaf(&ca.authority, REVIEWS), leaf(&ca.authority, REVIEWS));
        let material = ca.authority.material();
        let issuer = Issuer::from_pem(material.ca_cert.as_bytes(), material.ca_key.as_bytes()).unwrap();
        let list = issuer.revocation_list(&[&bad.facts().serial], now - hour, now + hour).unwrap();
        std::fs::write(pod.path("ca-crl.pem"), list).unwrap();
        let domains = serde_json::json!({
            "cluster.local": ca.authority.root_pem(),
            "partner.example": partner.root_pem(),
        });
        let bundles = serde_json::json!({ "trust_domains": domains }).to_string();
        std::fs::write(pod.path("trust-bundles.json"), bundles).unwrap();
        ours = Some((good, bad));
    })
    .await;
    let (good, bad) = ours.unwrap();
    let port = weft_test_ports::free_port();
    let mut envoy = envoy(&served, port);
    within(async {
        while !let_in(port, &good).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(let_in(port, &theirs).await, "another mesh is refused");
    assert!(!let_in(port, &bad).await, "what is revoked is let in");
    envoy.kill().await.unwrap();
}

#[tokio::test]
async fn real_envoy_takes_secrets_and_rotations() {
    if !Path::new(ENVOY).exists() {
        eprintln!("skipped: there is no Envoy at {ENVOY}");
        return;
    }
    let served = Served::start(12).await;
    let port = weft_test_ports::free_port();
    let mut envoy = envoy(&served, port);
    let poll = |other_than: Option<String>| {
        let served = &served;
        async move {
            loop {
                match shown_by(port, served).await {
                    Some(serial) if Some(&serial) != other_than.as_ref() => break serial,
                    _ => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        }
    };
    let first = within(poll(None)).await;
    let second = within(poll(Some(first.clone()))).await;
    assert_ne!(first, second, "Envoy took the rotated certificate");
    envoy.kill().await.unwrap();
}

/// Opens a stream and gives back what comes on it.
trait IntoInnerStream<T> {
    async fn into_inner_stream(self) -> tonic::Streaming<T>;
}

impl<T, F: Future<Output = Result<tonic::Response<tonic::Streaming<T>>, tonic::Status>>> IntoInnerStream<T> for F {
    async fn into_inner_stream(self) -> tonic::Streaming<T> {
        self.await.unwrap().into_inner()
    }
}
