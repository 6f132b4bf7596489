//! Certificates by signers of the Kubernetes API (2:J-CC): weftd makes and approves requests with the rights that its
//! manifests give it, and somebody else signs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use weft_k8s_api::Object;
use weft_kube_tests::cluster::kind;
use weft_kube_tests::proxy::{channel, root};
use weft_kube_tests::{Cluster, Kind, Weftd, check, eventually, on_both};
use weft_proto::istio::v1::auth::IstioCertificateRequest;
use weft_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use weft_store::ApiClient;
use weft_tls::{CertificateRequest, Issuer, KeyKind, LeafParams, RootParams, San, TrustAnchors, pem};

on_both!(a_signer_of_ones_own);

const SIGNER: &str = "example.com/foo";
const HOUR: Duration = Duration::from_secs(3600);

/// An authority that nobody but the signer has the key of.
fn external() -> Result<Issuer> {
    let now = SystemTime::now();
    let (not_before, not_after) = (now - HOUR, now + 24 * HOUR);
    let organization = "external".into();
    Ok(Issuer::self_signed(&RootParams { organization, key: KeyKind::default(), not_before, not_after })?)
}

/// Signs what is approved for the signer, as its controller does.
async fn sign(client: ApiClient, issuer: Issuer) {
    loop {
        let requests = client.list(kind("csr").unwrap(), None, &Default::default()).await;
        for object in requests.map(|list| list.items).unwrap_or_default() {
            if let Some(signed) = signed(&object, &issuer) {
                // Taken away meanwhile: nobody waits for it.
                let _ = client.replace_status(&signed).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn signed(object: &Object, issuer: &Issuer) -> Option<Object> {
    let approved = object.body.get("status")?["conditions"].as_array()?.iter().any(|c| c["type"] == "Approved");
    if !approved || object.spec()["signerName"] != SIGNER || object.body["status"]["certificate"].is_string() {
        return None;
    }
    let request = CertificateRequest::from_pem(&STANDARD.decode(object.spec()["request"].as_str()?).ok()?).ok()?;
    let names = request.uris.iter().map(|uri| San::Uri(uri.clone()));
    let names = names.chain(request.dns.iter().map(|name| San::Dns(name.clone()))).collect();
    let now = SystemTime::now();
    let leaf = LeafParams { names, not_before: now - Duration::from_secs(60), not_after: now + HOUR };
    let mut object = object.clone();
    let certificate = STANDARD.encode(issuer.sign_request(&request, &leaf).ok()?.pem);
    object.body.get_mut("status")?["certificate"] = certificate.into();
    Some(object)
}

/// Weft installed for an authority elsewhere whose signers weftd may approve, and weftd with a signer.
async fn start(cluster: &Cluster, issuer: &Issuer, signer: &str, rights: &str) -> Result<Weftd> {
    let elsewhere = "values.pilot.env.EXTERNAL_CA=ISTIOD_RA_KUBERNETES_API";
    cluster.install_with(&["--set", elsewhere, "--set", rights]).await?;
    cluster.namespace("shop", &[]).await?;
    let roots: PathBuf = cluster.dir().join("external-root.pem");
    std::fs::write(&roots, issuer.certificate_pem())?;
    let account = cluster.account("istio-system", "istiod").await?;
    let roots = format!("--external-ca-roots={}", roots.display());
    let signer = format!("--k8s-signer={signer}");
    Weftd::spawn(cluster, "weftd-0", &account, &["--external-ca=ISTIOD_RA_KUBERNETES_API", &signer, &roots])
}

async fn a_signer_of_ones_own(cluster: Cluster) -> Result<()> {
    let issuer = external()?;
    let own = issuer.certificate_pem();
    let mut weftd = start(&cluster, &issuer, SIGNER, "values.global.certSigners[0]=example.com/foo").await?;
    let signer = tokio::spawn(sign(cluster.client.clone(), issuer));
    weftd.ready().await?;
    ensure!(root(&cluster, "shop").await? == own, "the root that is published is not the external one");

    let token = cluster.token("shop", "default", &["istio-ca"]).await?;
    let identity = "spiffe://cluster.local/ns/shop/sa/default";
    let made = weft_tls::generate_key_and_csr(KeyKind::EcdsaP256, &[San::Uri(identity.into())])?;
    let body = IstioCertificateRequest { csr: made.csr_pem, validity_duration: 3600, ..Default::default() };
    let mut request = tonic::Request::new(body);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let mut service = IstioCertificateServiceClient::new(channel(weftd.secure, &own).await?);
    let chain = service.create_certificate(request).await?.into_inner().cert_chain;
    let leaf = pem::certificates("chain", chain.concat().as_bytes())?;
    TrustAnchors::from_pem(own.as_bytes())?.verify_chain(&leaf, SystemTime::now())?;
    let facts = weft_tls::CertificateFacts::from_der("leaf", &leaf[0])?;
    ensure!(facts.uris.iter().any(|uri| **uri == *identity), "{:?}", facts.uris);

    // No key of an authority is in the cluster, and no request is left.
    for name in ["istio-ca-secret", "cacerts"] {
        ensure!(cluster.get("secrets", "istio-system", name).await.is_err(), "Secret {name}");
    }
    eventually("requests are taken away", async || {
        let left = cluster.client.list(kind("csr")?, None, &Default::default()).await?.items;
        check(left.is_empty(), &format!("{} are left", left.len()))
    })
    .await?;
    signer.abort();
    Ok(())
}

/// Waits until its log says so, whether it goes on or ends, and that it is not ready.
async fn gives_up(weftd: &Weftd, text: &str) -> Result<()> {
    eventually(text, async || check(weftd.process.output().contains(text), &weftd.process.output())).await?;
    let ready = weftd.readiness().await.is_ok_and(|(status, _)| status == 200);
    check(!ready, "weftd is ready without a certificate")
}

/// Without the right to approve for the signer there is no certificate, and the log says which right is missing. The embedded
/// server knows no such right: who may approve a request may do so for every signer.
#[tokio::test]
async fn a_signer_without_rights() -> Result<()> {
    let cluster = Cluster::start(Kind::Real).await?;
    let issuer = external()?;
    let weftd = start(&cluster, &issuer, SIGNER, "values.global.certSigners[0]=example.com/other").await?;
    gives_up(&weftd, "and approve on the signer").await
}

/// Kubernetes takes no requests for its legacy signer any more (certificates.k8s.io/v1): weftd passes on what the server says.
#[tokio::test]
async fn the_legacy_signer_is_refused_by_name() -> Result<()> {
    let cluster = Cluster::start(Kind::Real).await?;
    let issuer = external()?;
    let legacy = "kubernetes.io/legacy-unknown";
    let weftd = start(&cluster, &issuer, legacy, "values.global.certSigners[0]=kubernetes.io/legacy-unknown").await?;
    gives_up(&weftd, "the legacy signerName is not allowed").await
}
