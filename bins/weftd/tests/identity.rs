//! Identity at the whole control plane, over TLS, against an API server in this process: who signs, who is believed, who may
//! look, and how each of them changes while it runs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Cluster, get_as, until};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;
use weft_ca::rotation::{self, SecretData};
use weft_ca::{Authority, CaMaterial, CaPolicy};
use weft_identity::{SpiffeId, TrustDomain};
use weft_k8s_api::kinds::by_kind;
use weft_k8s_api::{KindInfo, Object};
use weft_sds::{SvidConfig, SvidManager, WorkloadSecrets};
use weft_store::client::WriteOptions;
use weft_tls::{
    CertificateFacts, CertificateRequest, ClientContext, ClientParams, Issuer, LeafParams, San, ServerVerification,
    TrustAnchors, pem,
};

fn kind(group: &str, kind: &str) -> &'static KindInfo {
    by_kind(group, kind).unwrap()
}

fn authority(domain: &str) -> Authority {
    let domain = TrustDomain::new(domain).unwrap();
    Authority::self_signed(domain, CaPolicy::default(), SystemTime::now()).unwrap()
}

/// A pod's folder: the roots as the ConfigMap has them, followed, and a token.
struct Pod {
    folder: tempfile::TempDir,
    follow: tokio::task::JoinHandle<()>,
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.follow.abort();
    }
}

impl Pod {
    async fn of(cluster: &Cluster, account: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let roots = cluster.root_pem().await;
        std::fs::write(folder.path().join("root-cert.pem"), roots).unwrap();
        std::fs::write(folder.path().join("token"), cluster.token(account).await).unwrap();
        let (client, path) = (cluster.client.clone(), folder.path().to_path_buf());
        let follow = tokio::spawn(async move {
            loop {
                if let Ok(map) = client.get(kind("", "ConfigMap"), "default", "istio-ca-root-cert").await {
                    let data = map.body["data"].as_object().unwrap();
                    for key in ["ca-crl.pem", "trust-bundles.json"].iter().filter(|key| !data.contains_key(**key)) {
                        let _ = std::fs::remove_file(path.join(key));
                    }
                    for (key, value) in data {
                        // In one step, as a kubelet does.
                        std::fs::write(path.join(".new"), value.as_str().unwrap()).unwrap();
                        std::fs::rename(path.join(".new"), path.join(key)).unwrap();
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Self { folder, follow }
    }

    fn config(&self, ca: SocketAddr, identity: &str) -> SvidConfig {
        SvidConfig {
            root_cert_path: self.folder.path().join("root-cert.pem"),
            token_path: self.folder.path().join("token"),
            identity: Some(SpiffeId::parse(identity).unwrap()),
            root_poll: Duration::from_millis(50),
            ca_server_name: "istiod.istio-system.svc".into(),
            ..SvidConfig::new(ca.to_string())
        }
    }
}

/// The first secrets of which that is true.
async fn secrets(manager: &SvidManager, what: &str, wanted: impl Fn(&WorkloadSecrets) -> bool) -> Arc<WorkloadSecrets> {
    let mut receiver = manager.secrets();
    let found = receiver.wait_for(|now| now.as_ref().is_some_and(|now| wanted(now)));
    let found = tokio::time::timeout(common::LIMIT, found).await;
    found.unwrap_or_else(|_| panic!("{what} did not come: {:?}", manager.status().borrow())).unwrap().clone().unwrap()
}

const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews";

async fn secret_data(cluster: &Cluster, name: &str) -> Option<SecretData> {
    let object = cluster.client.get(kind("", "Secret"), "istio-system", name).await.ok()?;
    let data = object.body["data"].as_object()?.clone();
    Some(data.into_iter().map(|(k, v)| (k, STANDARD.decode(v.as_str().unwrap()).unwrap())).collect())
}

fn secret(name: &str, data: &SecretData) -> Object {
    let encoded: BTreeMap<&String, String> = data.iter().map(|(k, v)| (k, STANDARD.encode(v))).collect();
    let metadata = json!({"name": name, "namespace": "istio-system"});
    serde_json::from_value(json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": encoded}))
        .unwrap()
}

async fn put_secret(cluster: &Cluster, name: &str, data: &SecretData) {
    let object = secret(name, data);
    match cluster.client.replace(&object, &WriteOptions::default()).await {
        Err(error) if error.is_not_found() => {
            cluster.client.create(&object, &WriteOptions::default()).await.unwrap();
        }
        written => drop(written.unwrap()),
    }
}

async fn mesh_config(cluster: &Cluster, text: &str) {
    let object: Object = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-system"},
        "data": {"mesh": text},
    }))
    .unwrap();
    match cluster.client.replace(&object, &WriteOptions::default()).await {
        Err(error) if error.is_not_found() => {
            cluster.client.create(&object, &WriteOptions::default()).await.unwrap();
        }
        written => drop(written.unwrap()),
    }
}

async fn started(settings: weftd::Settings) -> weftd::Running {
    tokio::time::timeout(common::LIMIT, weftd::start(settings)).await.expect("ready in time").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_is_rotated_old_both_new_and_no_handshake_fails() {
    let cluster = Cluster::start().await;
    let weftd = cluster.weftd().await;
    let (pod, other) = (Pod::of(&cluster, "bookinfo-reviews").await, Pod::of(&cluster, "bookinfo-productpage").await);
    let client_id = "spiffe://cluster.local/ns/default/sa/bookinfo-productpage";
    let server = SvidManager::start(pod.config(weftd.secure, REVIEWS));
    let client = SvidManager::start(other.config(weftd.secure, client_id));
    let first = secrets(&server, "the first identity", |_| true).await;
    secrets(&client, "the client's identity", |_| true).await;
    let load = tokio::spawn(handshakes(server.secrets(), client.secrets()));

    let old = Authority::from_material(
        CaMaterial::from_secret(&secret_data(&cluster, "istio-ca-secret").await.unwrap()).unwrap(),
        TrustDomain::new("cluster.local").unwrap(),
        CaPolicy::default(),
        SystemTime::now(),
    )
    .unwrap();
    let new = authority("cluster.local");
    let by = |root: &Authority, now: &WorkloadSecrets| {
        root.roots().verify_chain(now.certificate.chain(), SystemTime::now()).is_ok()
    };
    assert!(by(&old, &first));
    let data = secret_data(&cluster, "istio-ca-secret").await.unwrap();
    let announced = rotation::announce(&data, new.material()).unwrap();
    put_secret(&cluster, "istio-ca-secret", &announced).await;
    for manager in [&server, &client] {
        let now = secrets(manager, "both roots", |now| now.trust.certificates().len() == 2).await;
        assert!(by(&old, &now), "the old authority still signs");
    }
    let switched = rotation::switch(&announced).unwrap();
    put_secret(&cluster, "istio-ca-secret", &switched).await;
    for manager in [&server, &client] {
        secrets(manager, "a certificate of the new authority", |now| by(&new, now)).await;
    }
    put_secret(&cluster, "istio-ca-secret", &rotation::finish(&switched).unwrap()).await;
    for manager in [&server, &client] {
        let only_new = |now: &WorkloadSecrets| now.trust.certificates() == new.roots().certificates();
        secrets(manager, "the new root alone", only_new).await;
    }
    // What is left of the old: nothing that is trusted.
    let last = secrets(&server, "secrets", |_| true).await;
    assert!(last.trust.verify_chain(first.certificate.chain(), SystemTime::now()).is_err());
    until("handshakes", async || (HANDSHAKES.with_counts().0 > 20).then_some(())).await;
    load.abort();
    let (done, failed) = HANDSHAKES.with_counts();
    assert_eq!(failed, Vec::<String>::new(), "after {done} handshakes");
    weftd.stop().await;
}

/// Counts of [`handshakes`].
struct Counts {
    done: std::sync::atomic::AtomicUsize,
    failed: std::sync::Mutex<Vec<String>>,
}

static HANDSHAKES: Counts =
    Counts { done: std::sync::atomic::AtomicUsize::new(0), failed: std::sync::Mutex::new(Vec::new()) };

impl Counts {
    fn with_counts(&self) -> (usize, Vec<String>) {
        (self.done.load(std::sync::atomic::Ordering::Relaxed), self.failed.lock().unwrap().clone())
    }
}

type Secrets = tokio::sync::watch::Receiver<Option<Arc<WorkloadSecrets>>>;

/// Mutual TLS between the two, over and over, each with the secrets that it has at the moment.
async fn handshakes(server: Secrets, client: Secrets) {
    loop {
        let (ours, theirs) = (server.borrow().clone().unwrap(), client.borrow().clone().unwrap());
        let accept = weft_tls::ServerContext::build(weft_tls::ServerParams {
            certificates: vec![ours.certificate.clone()],
            client_auth: weft_tls::ClientAuth::Required { anchors: ours.trust.clone(), san: None },
            ..Default::default()
        })
        .unwrap();
        let verification = ServerVerification::Chain { anchors: theirs.trust.clone(), san: None };
        let connect = ClientContext::build(ClientParams {
            certificate: Some(theirs.certificate.clone()),
            sni: Some("reviews".into()),
            ..ClientParams::new(verification)
        })
        .unwrap();
        let (a, b) = tokio::io::duplex(64 * 1024);
        let (accepted, connected) = tokio::join!(accept.accept(a), connect.connect(b));
        let errors = [accepted.err().map(|e| e.to_string()), connected.err().map(|e| e.to_string())];
        HANDSHAKES.failed.lock().unwrap().extend(errors.into_iter().flatten());
        HANDSHAKES.done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_is_plugged_in_and_a_bad_one_changes_nothing() {
    let cluster = Cluster::start().await;
    let plugged = authority("example");
    let mut data = plugged.material().to_secret();
    data.insert("root-cert.pem".into(), plugged.root_pem().into());
    put_secret(&cluster, "cacerts", &data).await;
    let weftd = cluster.weftd().await;
    assert_eq!(cluster.root_pem().await, plugged.root_pem());
    assert!(secret_data(&cluster, "istio-ca-secret").await.is_none(), "no root of our own is made beside it");
    let pod = Pod::of(&cluster, "bookinfo-reviews").await;
    let manager = SvidManager::start(pod.config(weftd.secure, REVIEWS));
    let first = secrets(&manager, "an identity", |_| true).await;
    plugged.roots().verify_chain(first.certificate.chain(), SystemTime::now()).unwrap();

    // A key of another: refused, the one in force goes on signing.
    let mut broken = data.clone();
    broken.insert("ca-key.pem".into(), authority("example").material().ca_key.as_bytes().to_vec());
    put_secret(&cluster, "cacerts", &broken).await;
    manager.renew_now();
    let again = secrets(&manager, "a renewal", |now| now.version > first.version).await;
    plugged.roots().verify_chain(again.certificate.chain(), SystemTime::now()).unwrap();
    // A good one is taken up live, and published.
    let next = authority("example");
    let announced = rotation::announce(&data, next.material()).unwrap();
    put_secret(&cluster, "cacerts", &rotation::switch(&announced).unwrap()).await;
    secrets(&manager, "a certificate of the next", |now| {
        next.roots().verify_chain(now.certificate.chain(), SystemTime::now()).is_ok()
    })
    .await;
    weftd.stop().await;
}

/// Whether the holder of `shown`, under trust of its own, is let in by `server`.
async fn let_in(server: &WorkloadSecrets, shown: &WorkloadSecrets) -> Result<(), String> {
    let accept = weft_tls::ServerContext::build(weft_tls::ServerParams {
        certificates: vec![server.certificate.clone()],
        client_auth: weft_tls::ClientAuth::Required { anchors: server.trust.clone(), san: None },
        ..Default::default()
    });
    let connect = ClientContext::build(ClientParams {
        certificate: Some(shown.certificate.clone()),
        sni: Some("reviews".into()),
        ..ClientParams::new(ServerVerification::Insecure)
    });
    let (a, b) = tokio::io::duplex(64 * 1024);
    let (accept, connect) = (accept.unwrap(), connect.unwrap());
    let (accepted, _) = tokio::join!(accept.accept(a), connect.connect(b));
    accepted.map(|_| ()).map_err(|error| format!("{:?}", error.reason))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_workload_is_refused_and_bad_lists_change_nothing() {
    let cluster = Cluster::start().await;
    let plugged = authority("example");
    let issuer = Issuer::from_pem(plugged.material().ca_cert.as_bytes(), plugged.material().ca_key.as_bytes()).unwrap();
    let (at, hour) = (SystemTime::now(), Duration::from_secs(3600));
    let mut data = plugged.material().to_secret();
    data.insert("root-cert.pem".into(), plugged.root_pem().into());
    put_secret(&cluster, "cacerts", &data).await;
    let weftd = cluster.weftd().await;
    let (pod, other) = (Pod::of(&cluster, "bookinfo-reviews").await, Pod::of(&cluster, "bookinfo-reviews").await);
    let manager = SvidManager::start(pod.config(weftd.secure, REVIEWS));
    let others = SvidManager::start(other.config(weftd.secure, REVIEWS));
    let good = secrets(&others, "an identity", |_| true).await;
    let server = secrets(&manager, "an identity", |_| true).await;
    let (bad, serial) = (good.clone(), good.certificate.facts().serial.clone());
    assert_eq!(let_in(&server, &bad).await, Ok(()));

    // Its certificate is revoked: told to all workloads, by our name and by Istio's.
    let list = issuer.revocation_list(&[&serial], at - hour, at + hour).unwrap();
    let mut revoking = data.clone();
    revoking.insert("ca-crl.pem".into(), list.clone().into_bytes());
    put_secret(&cluster, "cacerts", &revoking).await;
    let server = secrets(&manager, "the list", |now| now.crl_pem == list).await;
    assert_eq!(let_in(&server, &bad).await, Err("Revoked".into()));
    let published = async |wanted: &str| {
        until("the ConfigMap of lists", async || {
            let map = cluster.client.get(kind("", "ConfigMap"), "default", "istio-ca-crl").await.ok()?;
            (map.body["data"]["ca-crl.pem"].as_str().unwrap_or_default() == wanted).then_some(())
        })
        .await;
    };
    published(&list).await;
    // It gets another one, and is let in by that; the one that is not revoked always was.
    others.renew_now();
    let renewed = secrets(&others, "another certificate", |now| now.certificate.facts().serial != serial).await;
    assert_eq!(let_in(&server, &renewed).await, Ok(()));

    // Lists under which nobody would be believed: refused, those in force stay, also after a restart.
    for bad_list in [issuer.revocation_list(&[], at - 2 * hour, at - hour).unwrap(), stranger_list(at)] {
        let mut broken = data.clone();
        broken.insert("ca-crl.pem".into(), bad_list.into_bytes());
        put_secret(&cluster, "cacerts", &broken).await;
    }
    weftd.stop().await;
    let weftd = cluster.weftd().await;
    let (_, metrics) = common::get(weftd.monitoring, "/metrics").await;
    assert!(metrics.contains("weft_ca_crl_expiry_seconds 3"), "the list of before is in force: {metrics}");
    published(&list).await;
    let now = secrets(&manager, "secrets", |_| true).await;
    assert_eq!((now.crl_pem.as_str(), let_in(&now, &renewed).await), (list.as_str(), Ok(())));
    // Without lists the ConfigMap of Istio's name is empty.
    put_secret(&cluster, "cacerts", &data).await;
    published("").await;
    weftd.stop().await;
}

/// A list of an authority that nobody here knows.
fn stranger_list(at: SystemTime) -> String {
    let material = authority("example").material().clone();
    let issuer = Issuer::from_pem(material.ca_cert.as_bytes(), material.ca_key.as_bytes()).unwrap();
    issuer.revocation_list(&[], at - Duration::from_secs(60), at + Duration::from_secs(3600)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn class_debug_exposure_endpoints_ask_who_is_there_and_show_what_is_theirs() {
    let cluster = Cluster::start().await;
    let weftd = cluster.weftd().await;
    let (default, root) = (cluster.token("bookinfo-reviews").await, cluster.token_of("istio-system", "istiod").await);
    for path in ["/debug/syncz", "/debug/registryz", "/debug/endpointz", "/debug/push_status", "/debug/config_dump"] {
        assert_eq!(get_as(weftd.monitoring, path, None).await.0, 401, "{path}");
        assert_eq!(get_as(weftd.monitoring, path, Some("nonsense")).await.0, 401, "{path}");
    }
    cluster.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}})).await;
    cluster
        .create(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "secretive", "namespace": "other"},
            "spec": {"clusterIP": "10.96.0.77", "ports": [{"name": "http", "port": 80}]},
        }))
        .await;
    until("the service in the whole view", async || {
        let (_, all) = get_as(weftd.monitoring, "/debug/registryz", Some(&root)).await;
        all.contains("secretive").then_some(())
    })
    .await;
    let (status, own) = get_as(weftd.monitoring, "/debug/registryz", Some(&default)).await;
    assert_eq!(status, 200);
    assert!(own.contains("reviews") && !own.contains("secretive"), "{own}");
    weftd.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dns_certificates_are_made_mended_and_renewed() {
    let cluster = Cluster::start().await;
    mesh_config(
        &cluster,
        "certificates: [{secretName: dns.example1-service-account, dnsNames: [example1.istio-system.svc, example1.istio-system]}]",
    )
    .await;
    let weftd = cluster.weftd().await;
    let name = "dns.example1-service-account";
    let serial = async || {
        let data = secret_data(&cluster, name).await?;
        let chain = pem::certificates("chain", &data["cert-chain.pem"]).ok()?;
        let facts = CertificateFacts::from_der("leaf", &chain[0]).ok()?;
        let names: Vec<&str> = facts.dns.iter().map(|dns| &**dns).collect();
        assert_eq!(names, ["example1.istio-system.svc", "example1.istio-system"]);
        TrustAnchors::from_pem(&data["root-cert.pem"]).unwrap().verify_chain(&chain, SystemTime::now()).unwrap();
        weft_tls::CertifiedKey::from_pem(&data["cert-chain.pem"], &data["key.pem"]).unwrap();
        Some(facts.serial)
    };
    let first = until("the certificate", &serial).await;
    cluster.client.delete(kind("", "Secret"), "istio-system", name, &Default::default()).await.unwrap();
    until("another", async || serial().await.filter(|now| *now != first)).await;
    weftd.stop().await;
}

/// Signs what is approved for `signer`, as a controller in the cluster would.
async fn run_signer(cluster: &Cluster, signer: &'static str, authority: Arc<Authority>) -> tokio::task::JoinHandle<()> {
    let client = cluster.client.clone();
    tokio::spawn(async move {
        let requests = kind("certificates.k8s.io", "CertificateSigningRequest");
        let material = authority.material().clone();
        let issuer = Issuer::from_pem(material.ca_cert.as_bytes(), material.ca_key.as_bytes()).unwrap();
        loop {
            let list =
                client.list(requests, None, &Default::default()).await.map(|list| list.items).unwrap_or_default();
            for mut object in list {
                let approved = object.body.get("status").is_some_and(|s| s["conditions"][0]["type"] == "Approved");
                if object.spec()["signerName"] != signer
                    || !approved
                    || object.body["status"]["certificate"].is_string()
                {
                    continue;
                }
                let csr = STANDARD.decode(object.spec()["request"].as_str().unwrap()).unwrap();
                let request = CertificateRequest::from_pem(&csr).unwrap();
                let dns = ["istiod.istio-system.svc", "istiod"].map(|name| San::Dns(name.into()));
                let mut names: Vec<San> = request.uris.iter().map(|uri| San::Uri(uri.clone())).collect();
                if names.is_empty() {
                    // Of a server: the names that were asked for.
                    names = request.dns.iter().map(|name| San::Dns(name.clone())).collect();
                    assert!(dns.iter().all(|name| names.contains(name)), "{names:?}");
                }
                let now = SystemTime::now();
                let leaf = LeafParams { names, not_before: now, not_after: now + Duration::from_secs(3600) };
                let signed = issuer.sign_request(&request, &leaf).unwrap().pem;
                object.body.get_mut("status").unwrap()["certificate"] = STANDARD.encode(signed).into();
                let _ = client.replace_status(&object).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_of_the_kubernetes_api_signs_and_no_key_is_in_the_cluster() {
    let cluster = Cluster::start().await;
    let external = Arc::new(authority("external"));
    let signer = run_signer(&cluster, "example.com/foo", external.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    let roots = folder.path().join("root-cert.pem");
    std::fs::write(&roots, external.root_pem()).unwrap();
    let flags = ["--external-ca", "ISTIOD_RA_KUBERNETES_API", "--k8s-signer", "example.com/foo"];
    let flags: Vec<&str> = flags.into_iter().chain(["--external-ca-roots", roots.to_str().unwrap()]).collect();
    let weftd = started(cluster.settings(&flags)).await;
    assert_eq!(cluster.root_pem().await, external.root_pem());
    let pod = Pod::of(&cluster, "bookinfo-reviews").await;
    let manager = SvidManager::start(pod.config(weftd.secure, REVIEWS));
    let now = secrets(&manager, "an identity", |_| true).await;
    assert_eq!(now.roots_pem, external.root_pem(), "the workload trusts the external root and nothing else");
    external.roots().verify_chain(now.certificate.chain(), SystemTime::now()).unwrap();
    for name in ["istio-ca-secret", "cacerts"] {
        assert!(secret_data(&cluster, name).await.is_none(), "{name}");
    }
    let requests = kind("certificates.k8s.io", "CertificateSigningRequest");
    until("requests are taken away", async || {
        let left = cluster.client.list(requests, None, &Default::default()).await.unwrap().items;
        left.is_empty().then_some(())
    })
    .await;
    // A workload may not choose a signer of its own accord.
    let asking = SvidManager::start(SvidConfig { signer: "other".into(), ..pod.config(weftd.secure, REVIEWS) });
    let mut status = asking.status();
    let refused = status.wait_for(|s| format!("{s:?}").contains("CERT_SIGNER_DOMAIN"));
    tokio::time::timeout(common::LIMIT, refused).await.expect("refused").unwrap();
    signer.abort();
    weftd.stop().await;
}

/// An authority elsewhere that speaks our API, and knows callers by the tokens of this cluster.
async fn central(cluster: &Cluster, authority: Arc<Authority>) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let client = cluster.client.clone();
    let review: weft_ca::TokenReview = Arc::new(move |token| {
        let client = client.clone();
        Box::pin(async move {
            let identity = client.token_review(&token, &["istio-ca"]).await;
            let identity = identity.map_err(|error| weft_ca::AuthFailure::Refused(error.to_string()))?;
            let (namespace, account) = identity.service_account().unwrap();
            Ok(weft_ca::TokenIdentity { namespace: namespace.into(), service_account: account.into() })
        })
    });
    let domain = TrustDomain::new("cluster.local").unwrap();
    let tokens = Arc::new(weft_ca::TokenAuthenticator::new(domain, review));
    let service = weft_ca::CertificateService::new(authority.clone(), vec![tokens]);
    let own = authority.server_certificate(&["ca.example"], None, Duration::from_secs(600), SystemTime::now()).unwrap();
    let context = weft_tls::ServerContext::build(weft_tls::ServerParams {
        certificates: vec![own],
        alpn: vec![b"h2".to_vec()],
        ..Default::default()
    })
    .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (ready, incoming) = tokio::sync::mpsc::channel::<std::io::Result<weft_ca::TlsConnection<TcpStream>>>(4);
        let server = tonic::transport::Server::builder()
            .add_service(service.into_server())
            .serve_with_incoming(tokio_stream::wrappers::ReceiverStream::new(incoming));
        let accepting = async {
            while let Ok((stream, remote)) = listener.accept().await {
                if let Ok(accepted) = context.accept(stream).await {
                    let _ = ready.send(Ok(weft_ca::TlsConnection::new(accepted, remote))).await;
                }
            }
        };
        tokio::select! { _ = server => {}, () = accepting => {} }
    });
    (address, task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_that_speaks_our_api_signs_for_callers_that_it_knows_itself() {
    let cluster = Cluster::start().await;
    let external = Arc::new(authority("external"));
    let (address, central) = central(&cluster, external.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    let roots = folder.path().join("root-cert.pem");
    std::fs::write(&roots, external.root_pem()).unwrap();
    let address = address.to_string();
    let flags = ["--external-ca", "ISTIOD_RA_ISTIO_API", "--external-ca-addr", &address];
    let more = ["--external-ca-name", "ca.example", "--external-ca-roots", roots.to_str().unwrap()];
    let flags: Vec<&str> = flags.into_iter().chain(more).collect();
    let weftd = started(cluster.settings(&flags)).await;
    let pod = Pod::of(&cluster, "bookinfo-reviews").await;
    let manager = SvidManager::start(pod.config(weftd.secure, REVIEWS));
    let now = secrets(&manager, "an identity", |_| true).await;
    external.roots().verify_chain(now.certificate.chain(), SystemTime::now()).unwrap();
    // Without a token there is nobody whom the authority elsewhere would know, whatever certificate the caller has.
    std::fs::remove_file(pod.folder.path().join("token")).unwrap();
    manager.renew_now();
    let mut status = manager.status();
    let refused = status.wait_for(|s| format!("{s:?}").contains("refuses"));
    tokio::time::timeout(common::LIMIT, refused).await.expect("refused").unwrap();
    central.abort();
    weftd.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trust_domain_changes_live_and_pods_of_the_old_one_can_renew() {
    let cluster = Cluster::start().await;
    mesh_config(&cluster, "trustDomain: old-td").await;
    let weftd = cluster.weftd().await;
    let pod = Pod::of(&cluster, "bookinfo-reviews").await;
    let old_id = "spiffe://old-td/ns/default/sa/bookinfo-reviews";
    let old = SvidManager::start(pod.config(weftd.secure, old_id));
    let first = secrets(&old, "an identity of the old domain", |_| true).await;
    mesh_config(&cluster, "{trustDomain: new-td, trustDomainAliases: [old-td]}").await;
    // A pod that is made anew has an identity of the new domain.
    let new_id = "spiffe://new-td/ns/default/sa/bookinfo-reviews";
    let new = SvidManager::start(pod.config(weftd.secure, new_id));
    assert_eq!(secrets(&new, "an identity of the new domain", |_| true).await.svid.id.to_string(), new_id);
    old.renew_now();
    let serial = first.certificate.facts().serial.clone();
    let renewed = secrets(&old, "a renewal under the old name", |now| now.certificate.facts().serial != serial).await;
    assert_eq!(renewed.svid.id.to_string(), old_id);
    // One that has only its token left, as after a restart of its proxy, has the account's name of now.
    let restarted = SvidManager::start(pod.config(weftd.secure, old_id));
    assert_eq!(secrets(&restarted, "an identity by token", |_| true).await.svid.id.to_string(), new_id);
    // Without the alias the old name is a stranger's.
    mesh_config(&cluster, "trustDomain: new-td").await;
    until("the refusal", async || {
        old.renew_now();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let status = format!("{:?}", old.status().borrow());
        status.contains("may not have a certificate").then_some(())
    })
    .await;
    weftd.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roots_of_another_mesh_reach_workloads_bound_to_its_trust_domain() {
    let cluster = Cluster::start().await;
    let partner = authority("partner.example");
    let indented = partner.root_pem().lines().map(|line| format!("    {line}\n")).collect::<String>();
    mesh_config(&cluster, &format!("caCertificates:\n- trustDomains: [partner.example]\n  pem: |\n{indented}")).await;
    let weftd = cluster.weftd().await;
    let pod = Pod::of(&cluster, "bookinfo-reviews").await;
    let manager = SvidManager::start(pod.config(weftd.secure, REVIEWS));
    let now = secrets(&manager, "the partner's roots", |now| now.bundles.len() == 2).await;
    let sign = |uri: &str| {
        let material = partner.material();
        let issuer = Issuer::from_pem(material.ca_cert.as_bytes(), material.ca_key.as_bytes()).unwrap();
        let (start, end) = (SystemTime::now(), SystemTime::now() + Duration::from_secs(60));
        let leaf = LeafParams { names: vec![San::Uri(uri.into())], not_before: start, not_after: end };
        let key = weft_tls::PrivateKey::generate(weft_tls::KeyKind::EcdsaP256).unwrap();
        pem::certificates("leaf", issuer.sign_key(&key, &leaf).unwrap().pem.as_bytes()).unwrap()
    };
    for (uri, believed) in [("spiffe://partner.example/ns/a/sa/b", true), (REVIEWS, false)] {
        assert_eq!(now.trust.verify_chain(&sign(uri), SystemTime::now()).is_ok(), believed, "{uri}");
    }
    weftd.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_port_can_demand_a_key_exchange_that_lasts() {
    let cluster = Cluster::start().await;
    let weftd = started(cluster.settings(&["--compliance-policy", "pqc"])).await;
    let roots = TrustAnchors::from_pem(cluster.root_pem().await.as_bytes()).unwrap();
    for (groups, agreed) in [(&["X25519MLKEM768", "X25519"][..], true), (&["X25519", "P-256"], false)] {
        let verification = ServerVerification::WebPki { anchors: roots.clone(), san: None };
        let settings =
            weft_tls::TlsSettings { groups: groups.iter().map(|&name| name.into()).collect(), ..Default::default() };
        let context = ClientContext::build(ClientParams {
            sni: Some("istiod.istio-system.svc".into()),
            alpn: vec![b"h2".to_vec()],
            settings,
            ..ClientParams::new(verification)
        })
        .unwrap();
        let stream = TcpStream::connect(weftd.secure).await.unwrap();
        assert_eq!(context.connect(stream).await.is_ok(), agreed, "{groups:?}");
    }
    weftd.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_have_the_names_that_dashboards_know() {
    let cluster = Cluster::start().await;
    let weftd = cluster.weftd().await;
    let pod = Pod::of(&cluster, "bookinfo-reviews").await;
    let manager = SvidManager::start(pod.config(weftd.secure, REVIEWS));
    secrets(&manager, "an identity", |_| true).await;
    let (_, text) = get_as(weftd.monitoring, "/metrics", None).await;
    let value = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("{name}")).rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!((value("citadel_server_csr_count"), value("citadel_server_success_cert_issuance_count")), (1, 1));
    for name in ["authentication_failure", "csr_parsing_err", "id_extraction_err", "csr_sign_err"] {
        assert_eq!(value(&format!("citadel_server_{name}_count")), 0, "{name}");
    }
    let nine_years = 9 * 365 * 24 * 3600;
    for name in ["root_cert_expiry", "cert_chain_expiry"] {
        assert!(value(&format!("citadel_server_{name}_seconds")) > nine_years, "{name}");
        assert!(value(&format!("citadel_server_{name}_timestamp")) > 1_700_000_000, "{name}");
    }
    weftd.stop().await;
}
