//! An authority elsewhere: CertificateSigningRequests that weftd makes and approves and someone else signs, or a service that
//! speaks the API that proxies speak. What comes back is checked by `weft_ca::Registration`; here is only the way there.

use crate::settings::{ExternalCa, Settings};
use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use weft_ca::{CaPolicy, Delegate, Errand, Registration, SignError};
use weft_k8s_api::istio::MeshConfig;
use weft_k8s_api::kinds::by_kind;
use weft_k8s_api::{KindInfo, Object};
use weft_proto::istio::v1::auth::IstioCertificateRequest;
use weft_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use weft_store::client::WriteOptions;
use weft_store::{ApiClient, ClientError, DeleteOptions};
use weft_tls::{ClientContext, ClientParams, ServerVerification, TrustAnchors, pem};

/// Time for a signer to sign, and for a service elsewhere to answer.
const SIGN_TIMEOUT: Duration = Duration::from_secs(20);
/// Between looks at a request that is not signed yet.
const POLL: Duration = Duration::from_millis(200);
/// Shortest lifetime that the Kubernetes API takes (certificates.k8s.io/v1, `spec.expirationSeconds`).
const LEAST_SECONDS: u64 = 600;
/// The cluster's own roots, in a pod.
const CLUSTER_ROOTS: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
/// Signers of Kubernetes itself.
const KUBERNETES_SIGNERS: &str = "kubernetes.io/";
/// Largest file of roots.
const MAX_ROOTS: u64 = 1024 * 1024;

/// The registration authority that the settings ask for.
///
/// # Errors
/// When a setting is missing, or there are no roots that what comes back can be checked by.
pub(crate) fn new(
    client: &ApiClient,
    settings: &Arc<Settings>,
    mesh: &MeshConfig,
    policy: CaPolicy,
    kind: ExternalCa,
) -> anyhow::Result<Registration> {
    let roots = roots(settings, mesh)?;
    let (name, delegate) = match kind {
        ExternalCa::KubernetesCsr => {
            if settings.k8s_signer.is_empty() && settings.cert_signer_domain.is_empty() {
                bail!("EXTERNAL_CA=ISTIOD_RA_KUBERNETES_API needs K8S_SIGNER (or CERT_SIGNER_DOMAIN)");
            }
            (format!("signer {}", settings.k8s_signer), kubernetes_delegate(client.clone(), settings.clone()))
        }
        ExternalCa::IstioApi => {
            if settings.external_ca_addr.is_empty() {
                bail!("EXTERNAL_CA=ISTIOD_RA_ISTIO_API needs EXTERNAL_CA_ADDR (HOST:PORT)");
            }
            let anchors = TrustAnchors::from_pem(roots.as_bytes())?;
            (settings.external_ca_addr.clone(), service_delegate(settings.clone(), anchors))
        }
    };
    Ok(Registration::new(name, &roots, policy, delegate)?)
}

/// Roots of the authority elsewhere: its file, mesh config `caCertificates`, and the cluster's own for its own signers.
fn roots(settings: &Settings, mesh: &MeshConfig) -> anyhow::Result<String> {
    let path = &settings.external_ca_roots;
    let mut texts: Vec<String> = read_if_there(path)?.into_iter().collect();
    // Those of single trust domains are whom to believe elsewhere, not who signs here.
    let general = mesh.ca_certificates.iter().filter(|data| data.trust_domains.is_empty());
    texts.extend(general.filter_map(|data| data.pem.clone()));
    if texts.is_empty() && settings.k8s_signer.starts_with(KUBERNETES_SIGNERS) {
        texts.extend(read_if_there(Path::new(CLUSTER_ROOTS))?);
    }
    if texts.is_empty() {
        let path = path.display();
        bail!(
            "no root of the authority elsewhere: give {path} (Secret external-ca-cert), or mesh config caCertificates"
        );
    }
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    Ok(pem::merge("roots of the authority elsewhere", &texts)?)
}

fn read_if_there(path: &Path) -> anyhow::Result<Option<String>> {
    let what = || format!("{} cannot be read", path.display());
    let size = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        found => found.with_context(what)?.len(),
    };
    if size > MAX_ROOTS {
        bail!("{} is larger than 1 MiB", path.display());
    }
    std::fs::read_to_string(path).map(Some).with_context(what)
}

fn kubernetes_delegate(client: ApiClient, settings: Arc<Settings>) -> Delegate {
    Arc::new(move |errand| {
        let (client, settings) = (client.clone(), settings.clone());
        Box::pin(async move {
            let signer = signer_name(&settings, errand.signer.as_deref())?;
            by_kubernetes(&client, &signer, &errand).await
        })
    })
}

/// The full name of the signer: what a workload asks for is a name in our domain of signers, never another domain's.
fn signer_name(settings: &Settings, asked: Option<&str>) -> Result<String, SignError> {
    let domain = &settings.cert_signer_domain;
    match asked {
        None if settings.k8s_signer.is_empty() => {
            Err(SignError::BadRequest("this mesh has no usual signer (K8S_SIGNER); name one: CertSigner".into()))
        }
        None => Ok(settings.k8s_signer.clone()),
        Some(name) if domain.is_empty() || name.contains('/') => {
            let text = format!("signer {name:?} is not given: a workload names one of CERT_SIGNER_DOMAIN, without '/'");
            Err(SignError::BadRequest(text))
        }
        Some(name) => Ok(format!("{domain}/{name}")),
    }
}

/// Has a request signed by a signer of the Kubernetes API: create, approve, wait, take away.
///
/// # Errors
/// Why there is no certificate.
pub(crate) async fn by_kubernetes(client: &ApiClient, signer: &str, errand: &Errand) -> Result<Vec<String>, SignError> {
    let Some(kind) = by_kind("certificates.k8s.io", "CertificateSigningRequest") else {
        return Err(SignError::Elsewhere("the kind CertificateSigningRequest is not known".into()));
    };
    let object = signing_request(signer, errand);
    let created = client.create(&object, &WriteOptions::default()).await.map_err(|e| failed(signer, &e))?.object;
    let signed = tokio::time::timeout(SIGN_TIMEOUT, approve_and_wait(client, kind, signer, created.clone())).await;
    // One that stays is taken away by the API server in time.
    if let Err(error) = client.delete(kind, "", created.name(), &DeleteOptions::default()).await {
        tracing::debug!(%error, "signing request {} stays", created.name());
    }
    let certificate = signed.map_err(|_| {
        let seconds = SIGN_TIMEOUT.as_secs();
        SignError::Unavailable(format!("signer {signer} did not sign within {seconds} s; does its controller run?"))
    })??;
    Ok(vec![certificate])
}

fn signing_request(signer: &str, errand: &Errand) -> Object {
    // Each request has a key of its own, and so a name of its own.
    let name = weft_tls::hex(&weft_tls::sha256(errand.csr.as_bytes())[..10]);
    let mut object = Object {
        api_version: "certificates.k8s.io/v1".into(),
        kind: "CertificateSigningRequest".into(),
        metadata: Default::default(),
        body: Default::default(),
    };
    object.metadata.name = Some(format!("csr-workload-{name}"));
    let spec = json!({
        "request": STANDARD.encode(&errand.csr),
        "signerName": signer,
        "expirationSeconds": errand.ttl.as_secs().clamp(LEAST_SECONDS, i32::MAX as u64),
        "usages": ["digital signature", "key encipherment", "server auth", "client auth"],
    });
    object.body.insert("spec".into(), spec);
    object
}

async fn approve_and_wait(
    client: &ApiClient,
    kind: &KindInfo,
    signer: &str,
    mut object: Object,
) -> Result<String, SignError> {
    let condition = json!({
        "type": "Approved",
        "status": "True",
        "reason": "WorkloadIdentity",
        "message": "weftd has checked that the request is for the caller's own identity",
    });
    object.body.insert("status".into(), json!({ "conditions": [condition] }));
    client.replace_approval(&object).await.map_err(|e| failed(signer, &e))?;
    loop {
        let now = client.get(kind, "", object.name()).await.map_err(|e| failed(signer, &e))?;
        if let Some(certificate) = outcome(&now, signer)? {
            return Ok(certificate);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The certificate, when it is there.
fn outcome(object: &Object, signer: &str) -> Result<Option<String>, SignError> {
    let status = object.body.get("status").unwrap_or(&Value::Null);
    let conditions = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if let Some(no) = conditions.iter().find(|c| c["type"] == "Denied" || c["type"] == "Failed") {
        let (kind, message) = (text(&no["type"]), text(&no["message"]));
        return Err(SignError::Elsewhere(format!("signer {signer}: {kind}: {message}")));
    }
    let Some(encoded) = status["certificate"].as_str().filter(|text| !text.is_empty()) else { return Ok(None) };
    let decoded = STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    decoded.map(Some).ok_or_else(|| SignError::Elsewhere(format!("signer {signer}: status.certificate is not PEM")))
}

fn failed(signer: &str, error: &ClientError) -> SignError {
    match error {
        ClientError::Unreachable { .. } => SignError::Unavailable(format!("signer {signer}: {error}")),
        ClientError::Forbidden(_) => SignError::Elsewhere(format!(
            "signer {signer}: {error}; weftd needs the verbs create, get, delete on certificatesigningrequests, update \
             on their approval, and approve on the signer"
        )),
        _ => SignError::Elsewhere(format!("signer {signer}: {error}")),
    }
}

fn service_delegate(settings: Arc<Settings>, anchors: TrustAnchors) -> Delegate {
    Arc::new(move |errand| {
        let (settings, anchors) = (settings.clone(), anchors.clone());
        Box::pin(async move {
            let asked = tokio::time::timeout(SIGN_TIMEOUT, by_service(&settings, anchors, errand)).await;
            asked.map_err(|_| SignError::Unavailable(format!("{}: no answer in time", settings.external_ca_addr)))?
        })
    })
}

/// Passes the request on with the caller's own token: the authority elsewhere authenticates the workload itself, so that
/// we hold no power to ask for others.
async fn by_service(settings: &Settings, anchors: TrustAnchors, errand: Errand) -> Result<Vec<String>, SignError> {
    let address = &settings.external_ca_addr;
    let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
    let name = if settings.external_ca_name.is_empty() { host } else { &settings.external_ca_name };
    let context = ClientContext::build(ClientParams {
        sni: Some(name.to_owned()),
        alpn: vec![b"h2".to_vec()],
        ..ClientParams::new(ServerVerification::WebPki { anchors, san: None })
    })?;
    let channel = weft_sds::grpc_channel(address, context).await;
    let channel = channel.map_err(|error| SignError::Unavailable(format!("{address}: {error}")))?;
    let mut request = tonic::Request::new(IstioCertificateRequest {
        csr: errand.csr,
        validity_duration: i64::try_from(errand.ttl.as_secs()).unwrap_or(i64::MAX),
        metadata: None,
    });
    if let Some(token) = &errand.token {
        let value = weft_tls::Zeroizing::new(format!("Bearer {}", token.0.as_str()));
        if let Ok(mut value) = value.parse::<tonic::metadata::MetadataValue<_>>() {
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
    }
    let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await;
    let mut chain = answer
        .map_err(|status| match status.code() {
            tonic::Code::Unavailable => SignError::Unavailable(format!("{address}: {}", status.message())),
            code => SignError::Elsewhere(format!("{address} refuses: {code:?}: {}", status.message())),
        })?
        .into_inner()
        .cert_chain;
    // The last text is its roots; which to believe is our own affair.
    if chain.len() > 1 {
        chain.pop();
    }
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn a_workload_names_signers_of_our_domain_alone() {
        let settings = |flags: &[&str]| Settings::parse_from(["weftd"].iter().chain(flags));
        let usual = settings(&["--k8s-signer", "example.com/foo"]);
        let domain = settings(&["--cert-signer-domain", "signers.example"]);
        for (settings, asked, want) in [
            (&usual, None, Ok("example.com/foo")),
            (&usual, Some("bar"), Err(())),
            (&domain, Some("bar"), Ok("signers.example/bar")),
            (&domain, Some("kubernetes.io/kube-apiserver-client"), Err(())),
            (&domain, None, Err(())),
        ] {
            let name = signer_name(settings, asked).ok();
            assert_eq!(name.as_deref(), want.ok(), "{asked:?}");
        }
    }

    #[test]
    fn outcomes() {
        let object = |status: Value| Object {
            body: [("status".to_owned(), status)].into_iter().collect(),
            ..serde_json::from_value(json!({"apiVersion": "certificates.k8s.io/v1", "kind": "X", "metadata": {}}))
                .unwrap()
        };
        let approved = json!({"type": "Approved", "status": "True"});
        let denied = json!({"type": "Denied", "status": "True", "message": "not today"});
        assert_eq!(outcome(&object(json!({"conditions": [approved]})), "s").unwrap(), None);
        let signed = json!({"conditions": [approved], "certificate": STANDARD.encode("PEM")});
        assert_eq!(outcome(&object(signed), "s").unwrap().as_deref(), Some("PEM"));
        let error = outcome(&object(json!({"conditions": [denied]})), "s").unwrap_err().to_string();
        assert!(error.contains("not today"), "{error}");
        assert!(outcome(&object(json!({"certificate": "?"})), "s").is_err());
    }
}
