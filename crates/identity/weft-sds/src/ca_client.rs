//! One request to the authority: connect, verify it, show who we are, check what comes back.

use crate::secrets::{FileTrust, trust};
use crate::{SvidConfig, WorkloadSecrets};
use std::path::Path;
use std::time::{Duration, SystemTime};
use tonic::transport::{Channel, Endpoint};
use weft_identity::{SpiffeId, Svid};
use weft_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use weft_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use weft_tls::{
    CertifiedKey, ClientContext, ClientParams, KeyAndCsr, San, ServerVerification, TlsError, TrustAnchors, Zeroizing,
    generate_key_and_csr,
};

/// Largest file read: tokens and root bundles are far below.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Most certificates in an answer.
const MAX_CHAIN: usize = 16;

/// Why there is no new SVID. Each says what is missing and what would help.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file is missing or cannot be read.
    #[error("{what} {path} cannot be read: {reason}")]
    File {
        /// What is in it.
        what: &'static str,
        /// Where it should be.
        path: String,
        /// Why not.
        reason: String,
    },
    /// The authority cannot be reached, or is not who it should be.
    #[error("the certificate authority at {address} cannot be reached: {reason}")]
    Connect {
        /// Where.
        address: String,
        /// Why not.
        reason: String,
    },
    /// The authority refuses.
    #[error("the certificate authority refuses: {0}")]
    Refused(String),
    /// The answer cannot be used.
    #[error("the certificate authority's answer cannot be used: {0}")]
    Answer(String),
    /// Key or request cannot be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Asks for a certificate for a new key.
///
/// # Errors
/// Why there is none.
pub async fn request_svid(config: &SvidConfig, current: Option<&WorkloadSecrets>) -> Result<WorkloadSecrets, CaError> {
    let late = || CaError::Connect {
        address: config.ca_address.clone(),
        reason: format!("no answer within {:?}", config.request_timeout),
    };
    tokio::time::timeout(config.request_timeout, exchange(config, current)).await.map_err(|_| late())?
}

async fn exchange(config: &SvidConfig, current: Option<&WorkloadSecrets>) -> Result<WorkloadSecrets, CaError> {
    let file_roots = read_file("the mesh's root certificate", &config.root_cert_path).await?;
    let now = SystemTime::now();
    let certificate = current.filter(|secrets| secrets.svid.is_valid_at(now)).map(|s| s.certificate.clone());
    let token = match (read_file("the service-account token", &config.token_path).await, &certificate) {
        (Ok(token), _) => Some(Zeroizing::new(token)),
        // The certificate in hand proves who we are just as well.
        (Err(_), Some(_)) => None,
        (Err(error), None) => return Err(error),
    };
    let (kind, names) = (config.key, config.identity.iter().map(|id| San::Uri(id.to_string())).collect::<Vec<_>>());
    // An RSA key takes a second to make.
    let made = tokio::task::spawn_blocking(move || generate_key_and_csr(kind, &names))
        .await
        .map_err(|error| CaError::Answer(format!("making a key failed: {error}")))??;
    let token = token.as_ref().map(|token| token.trim());
    let shown = certificate.is_some();
    let mut answer = ask(config, &file_roots, certificate, token, &made).await;
    // A certificate that was revoked, or whose root is gone, is not taken; the token still says who we are.
    if shown && token.is_some() && matches!(answer, Err(CaError::Connect { .. })) {
        answer = ask(config, &file_roots, None, token, &made).await;
    }
    let answer = answer?;
    let files = file_trust(config).await?;
    accept(config, made, &answer.cert_chain, files, current.map_or(1, |secrets| secrets.version + 1))
}

/// What the files say whom to trust. One beside the roots that cannot be used is an error: a revocation list that is
/// left out would let the revoked in.
pub(crate) async fn file_trust(config: &SvidConfig) -> Result<FileTrust, CaError> {
    let path = &config.root_cert_path;
    let roots = read_file("the mesh's root certificate", path).await?;
    let roots = format!("{roots}\n{}", config.extra_roots_pem);
    let what = "the revocation list";
    let mut crl = read_optional(what, &path.with_file_name("ca-crl.pem")).await?;
    if crl.is_empty() {
        // Where Istio's control plane puts it: the ConfigMap istio-ca-crl.
        crl = read_optional(what, &path.with_file_name("crl").join("ca-crl.pem")).await?;
    }
    let (what, path) = ("the trust domains' roots", path.with_file_name("trust-bundles.json"));
    let bundles = match read_optional(what, &path).await? {
        text if text.is_empty() => Default::default(),
        text => FileTrust::parse_bundles(&text).map_err(|reason| CaError::File {
            what,
            path: path.display().to_string(),
            reason,
        })?,
    };
    Ok(FileTrust { roots, crl, bundles })
}

async fn read_optional(what: &'static str, path: &Path) -> Result<String, CaError> {
    match tokio::fs::try_exists(path).await {
        Ok(false) => Ok(String::new()),
        _ => read_file(what, path).await,
    }
}

async fn connect(config: &SvidConfig, roots: &str, certificate: Option<CertifiedKey>) -> Result<Channel, CaError> {
    let failed = |reason: String| CaError::Connect { address: config.ca_address.clone(), reason };
    let anchors = TrustAnchors::from_pem(roots.as_bytes()).map_err(|error| CaError::File {
        what: "the mesh's root certificate",
        path: config.root_cert_path.display().to_string(),
        reason: error.to_string(),
    })?;
    let context = ClientContext::build(ClientParams {
        certificate,
        sni: Some(config.ca_server_name.clone()),
        alpn: vec![b"h2".to_vec()],
        ..ClientParams::new(ServerVerification::WebPki { anchors, san: None })
    })?;
    grpc_channel(&config.ca_address, context).await.map_err(failed)
}

/// A gRPC channel over one TLS connection, made now, so that what goes wrong is told in its own words. The channel does not
/// connect again by itself once the connection is lost: make a new one.
///
/// # Errors
/// A sentence: name not resolved, connection refused, handshake failed with its reason.
pub async fn grpc_channel(address: &str, context: ClientContext) -> Result<Channel, String> {
    let tcp = weft_runtime::net::connect(address).await.map_err(|error| error.to_string())?;
    let connected = context.connect(tcp).await.map_err(|error| error.to_string())?;
    let mut stream = Some(connected.stream);
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream.take().map(hyper_util::rt::TokioIo::new);
        std::future::ready(stream.ok_or_else(|| std::io::Error::other("the connection was lost")))
    });
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    endpoint
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
        .connect_with_connector(connector)
        .await
        .map_err(|error| describe(&error))
}

/// An error with its causes, which tonic leaves out.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

async fn ask(
    config: &SvidConfig,
    roots: &str,
    certificate: Option<CertifiedKey>,
    token: Option<&str>,
    made: &KeyAndCsr,
) -> Result<IstioCertificateResponse, CaError> {
    let channel = connect(config, roots, certificate).await?;
    let mut request = tonic::Request::new(IstioCertificateRequest {
        csr: made.csr_pem.clone(),
        validity_duration: i64::try_from(config.ttl.as_secs()).unwrap_or(i64::MAX),
        metadata: (!config.signer.is_empty()).then(|| signer_metadata(&config.signer)),
    });
    if let Some(token) = token {
        let value = Zeroizing::new(format!("Bearer {token}"));
        let mut value: tonic::metadata::MetadataValue<_> = value.parse().map_err(|_| CaError::File {
            what: "the service-account token",
            path: config.token_path.display().to_string(),
            reason: "it holds characters that no token has".into(),
        })?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }
    if let Ok(cluster) = config.cluster_id.parse() {
        request.metadata_mut().insert("clusterid", cluster);
    }
    let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await;
    answer.map(tonic::Response::into_inner).map_err(|status| match status.code() {
        // Unknown: the connection ended under the request, as it does when our certificate is not taken.
        tonic::Code::Unavailable | tonic::Code::Unknown => {
            CaError::Connect { address: config.ca_address.clone(), reason: describe(&status) }
        }
        code => CaError::Refused(format!("{code:?}: {}", status.message())),
    })
}

/// Istio's way to name a signer.
fn signer_metadata(signer: &str) -> prost_types::Struct {
    let kind = Some(prost_types::value::Kind::StringValue(signer.to_owned()));
    prost_types::Struct { fields: [("CertSigner".to_owned(), prost_types::Value { kind })].into() }
}

/// Checks the answer: the certificate is for our key and identity, valid now, and leads to a root that we were given.
fn accept(
    config: &SvidConfig,
    made: KeyAndCsr,
    chain: &[String],
    files: FileTrust,
    version: u64,
) -> Result<WorkloadSecrets, CaError> {
    let unusable = CaError::Answer;
    let (received_roots, chain) = match chain {
        // The last are the roots; what stands before them is shown to peers as it came.
        [shown @ .., roots] if !shown.is_empty() && shown.len() < MAX_CHAIN => {
            let shown: String = shown.iter().map(|pem| format!("{}\n", pem.trim())).collect();
            (format!("{}\n", roots.trim()), shown)
        }
        _ => {
            let text = format!("it has {} certificates; expected the leaf first and the root last", chain.len());
            return Err(unusable(text));
        }
    };
    let certificate = CertifiedKey::from_pem(chain.as_bytes(), made.key_pem.as_bytes())
        .map_err(|error| unusable(error.to_string()))?;
    let id = check_identity(config, &certificate)?;
    let (roots_pem, trust) = trust(&received_roots, &files).map_err(|error| unusable(error.to_string()))?;
    trust.verify_chain(certificate.chain(), SystemTime::now()).map_err(|error| {
        unusable(format!("{error}; if the clocks of this machine and the control plane's differ, set them right"))
    })?;
    let (not_before, not_after) = (certificate.facts().not_before, certificate.facts().not_after);
    let svid = Svid { id, chain_pem: chain, key_pem: made.key_pem, not_before, not_after };
    let FileTrust { crl: crl_pem, bundles, .. } = files;
    Ok(WorkloadSecrets { svid, certificate, trust, roots_pem, crl_pem, bundles, received_roots, version })
}

fn check_identity(config: &SvidConfig, certificate: &CertifiedKey) -> Result<SpiffeId, CaError> {
    let Some(id) = certificate.facts().spiffe_id() else {
        return Err(CaError::Answer("the certificate has no SPIFFE ID".into()));
    };
    // The account must be ours. What the mesh is called is the authority's to say: it may have changed since we began.
    let same_account = |a: &SpiffeId, b: &SpiffeId| {
        a.namespace_and_account().is_some() && a.namespace_and_account() == b.namespace_and_account()
    };
    match &config.identity {
        Some(wanted) if *wanted != id && !same_account(wanted, &id) => {
            Err(CaError::Answer(format!("it is for {id}, but we are {wanted}")))
        }
        _ => Ok(id),
    }
}

pub(crate) async fn read_file(what: &'static str, path: &Path) -> Result<String, CaError> {
    let failed = |reason: String| CaError::File { what, path: path.display().to_string(), reason };
    let size = tokio::fs::metadata(path).await.map_err(|error| failed(error.to_string()))?.len();
    if size > MAX_FILE_BYTES {
        return Err(failed(format!("{size} bytes are too many; the limit is {MAX_FILE_BYTES}")));
    }
    let text = tokio::fs::read_to_string(path).await.map_err(|error| failed(error.to_string()))?;
    match text.trim().is_empty() {
        true => Err(failed("it is empty".into())),
        false => Ok(text),
    }
}
