//! Envoy's secret discovery service over a Unix socket: resources `default` (the SVID), `ROOTCA` (the roots) and those named
//! after files, in both forms of the protocol, pushed at each change. Whoever may open the socket gets the key: it is made for its owner alone.

use crate::{FileSecret, WorkloadSecrets};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};
use weft_proto::envoy::config::core::v3::{DataSource, TypedExtensionConfig, data_source::Specifier};
use weft_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret::Type,
};
use weft_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use weft_proto::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};

/// Name of the SVID.
pub const SDS_CERTIFICATE: &str = "default";
/// Name of the roots.
pub const SDS_ROOTS: &str = "ROOTCA";

/// Names that one stream may ask for.
const MAX_NAMES: usize = 64;
/// How often files are looked at.
const LOOK: std::time::Duration = std::time::Duration::from_secs(1);
/// Answers that wait for a slow reader.
const QUEUE: usize = 4;

type Secrets = watch::Receiver<Option<Arc<WorkloadSecrets>>>;

/// The service, bound to its socket.
pub struct SdsServer {
    listener: UnixListener,
    path: PathBuf,
    secrets: Secrets,
}

impl SdsServer {
    /// Makes the socket, with its folder, for the owner alone. A socket left over by a process that died is replaced; a
    /// file of another kind is not.
    ///
    /// # Errors
    /// When the path is taken by something else, or the socket cannot be made.
    pub fn bind(path: &Path, secrets: Secrets) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            // A folder made here is closed to others from the start: between its making and its mode the socket is not.
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => {
                let text = format!("{} is there and is not a socket; remove it or choose another path", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path: path.to_owned(), secrets })
    }

    /// Serves until `stop` ends; then the socket is removed.
    ///
    /// # Errors
    /// When the server fails.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), tonic::transport::Error> {
        let service = SecretDiscoveryServiceServer::new(Service { secrets: self.secrets });
        let incoming = UnixListenerStream::new(self.listener);
        let served =
            tonic::transport::Server::builder().add_service(service).serve_with_incoming_shutdown(incoming, stop).await;
        // The next process replaces a socket that stays.
        let _ = fs::remove_file(&self.path);
        served
    }
}

struct Service {
    secrets: Secrets,
}

#[tonic::async_trait]
impl SecretDiscoveryService for Service {
    type StreamSecretsStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaSecretsStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let (answers, stream) = mpsc::channel(QUEUE);
        tokio::spawn(serve_state(request.into_inner(), self.secrets.clone(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        let (answers, stream) = mpsc::channel(QUEUE);
        tokio::spawn(serve_delta(request.into_inner(), self.secrets.clone(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn fetch_secrets(&self, request: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        let names: BTreeSet<String> = request.into_inner().resource_names.into_iter().take(MAX_NAMES).collect();
        let current = self.secrets.borrow().clone();
        let secrets = current.ok_or_else(|| Status::unavailable("there is no identity yet; try again"))?;
        Ok(Response::new(state_answer(&names, &secrets, 1)))
    }
}

/// State of the world: each answer has all of the names asked for.
async fn serve_state(
    mut requests: Streaming<DiscoveryRequest>,
    mut secrets: Secrets,
    answers: mpsc::Sender<Result<DiscoveryResponse, Status>>,
) {
    let mut names = BTreeSet::new();
    let mut nonce = 0_u64;
    let mut files = Files::default();
    secrets.mark_changed();
    loop {
        let asked = tokio::select! {
            request = requests.next() => {
                let Some(Ok(request)) = request else { return };
                note_refusal(request.error_detail.as_ref(), &request.resource_names);
                let wanted: BTreeSet<String> = request.resource_names.into_iter().take(MAX_NAMES).collect();
                // An ACK or NACK repeats the names; an answer to it would go round for ever.
                let fresh = wanted != names;
                names = wanted;
                fresh
            }
            changed = secrets.changed() => match changed {
                Ok(()) => true,
                Err(_) => return,
            },
            () = tokio::time::sleep(LOOK) => !files.changed(&names).is_empty(),
            () = answers.closed() => return,
        };
        let current = secrets.borrow_and_update().clone();
        if let Some(current) = current.filter(|_| asked && !names.is_empty()) {
            nonce += 1;
            files.changed(&names);
            if answers.send(Ok(state_answer(&names, &current, nonce))).await.is_err() {
                return;
            }
        }
    }
}

fn state_answer(names: &BTreeSet<String>, secrets: &WorkloadSecrets, nonce: u64) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: secrets.version.to_string(),
        resources: names.iter().filter_map(|name| secret(name, secrets)).map(|s| weft_proto::pack(&s)).collect(),
        type_url: type_url(),
        nonce: nonce.to_string(),
        ..DiscoveryResponse::default()
    }
}

/// Delta: names come and go one by one; one that does not exist is said to be removed.
async fn serve_delta(
    mut requests: Streaming<DeltaDiscoveryRequest>,
    mut secrets: Secrets,
    answers: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
) {
    let mut names = BTreeSet::new();
    let mut nonce = 0_u64;
    let mut files = Files::default();
    loop {
        let due: BTreeSet<String> = tokio::select! {
            request = requests.next() => {
                let Some(Ok(request)) = request else { return };
                note_refusal(request.error_detail.as_ref(), &request.resource_names_subscribe);
                for name in &request.resource_names_unsubscribe {
                    names.remove(name);
                }
                let room = MAX_NAMES.saturating_sub(names.len());
                let new: BTreeSet<String> = request.resource_names_subscribe.into_iter().take(room).collect();
                names.extend(new.iter().cloned());
                new
            }
            changed = secrets.changed() => match changed {
                Ok(()) => names.clone(),
                Err(_) => return,
            },
            () = tokio::time::sleep(LOOK) => files.changed(&names),
            () = answers.closed() => return,
        };
        // Without an identity the names stay open; the change that brings it answers them.
        let current = secrets.borrow_and_update().clone();
        if let Some(current) = current.filter(|_| !due.is_empty()) {
            nonce += 1;
            files.changed(&due);
            if answers.send(Ok(delta_answer(&due, &current, nonce))).await.is_err() {
                return;
            }
        }
    }
}

fn delta_answer(names: &BTreeSet<String>, secrets: &WorkloadSecrets, nonce: u64) -> DeltaDiscoveryResponse {
    let version = secrets.version.to_string();
    let (mut resources, mut removed_resources) = (Vec::new(), Vec::new());
    for name in names {
        match secret(name, secrets) {
            Some(found) => resources.push(Resource {
                name: name.clone(),
                version: version.clone(),
                resource: Some(weft_proto::pack(&found)),
                ..Resource::default()
            }),
            None => removed_resources.push(name.clone()),
        }
    }
    DeltaDiscoveryResponse {
        system_version_info: version,
        resources,
        type_url: type_url(),
        removed_resources,
        nonce: nonce.to_string(),
        ..DeltaDiscoveryResponse::default()
    }
}

/// What the files of a stream's names held when they were last sent.
#[derive(Default)]
struct Files(BTreeMap<String, FileSecret>);

impl Files {
    /// Those of the names whose files hold something else now. One that cannot be read stays as it was sent.
    fn changed(&mut self, names: &BTreeSet<String>) -> BTreeSet<String> {
        let mut changed = BTreeSet::new();
        for name in names.iter().filter(|name| FileSecret::is_name(name)) {
            match FileSecret::read(name) {
                Ok(now) if self.0.get(name) != Some(&now) => {
                    self.0.insert(name.clone(), now);
                    changed.insert(name.clone());
                }
                _ => {}
            }
        }
        changed
    }
}

fn inline(text: &str) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineBytes(text.as_bytes().to_vec())), ..DataSource::default() })
}

/// The secret that files hold; `None` when they cannot be read.
fn of_files(name: &str) -> Option<Type> {
    let read = FileSecret::read(name);
    match read {
        Ok(FileSecret::Certificate { chain, key }) => Some(Type::TlsCertificate(TlsCertificate {
            certificate_chain: inline(&chain),
            private_key: inline(&key),
            ..TlsCertificate::default()
        })),
        Ok(FileSecret::Roots(text, lists) | FileSecret::SystemRoots(text, lists)) => {
            let (trusted_ca, crl) = (inline(&text), lists.and_then(|lists| inline(&lists)));
            Some(Type::ValidationContext(CertificateValidationContext { trusted_ca, crl, ..Default::default() }))
        }
        Err(error) => {
            tracing::warn!(secret = name, %error, "Envoy asks for a secret of files that cannot be read");
            None
        }
    }
}

/// The secret of a name; `None` when there is none of that name.
fn secret(name: &str, secrets: &WorkloadSecrets) -> Option<Secret> {
    let kind = match name {
        SDS_CERTIFICATE => Type::TlsCertificate(TlsCertificate {
            certificate_chain: inline(&secrets.svid.chain_pem),
            private_key: inline(&secrets.svid.key_pem),
            ..TlsCertificate::default()
        }),
        SDS_ROOTS => Type::ValidationContext(CertificateValidationContext {
            trusted_ca: inline(&secrets.roots_pem),
            crl: (!secrets.crl_pem.is_empty()).then(|| inline(&secrets.crl_pem)).flatten(),
            custom_validator_config: spiffe_validator(secrets),
            ..CertificateValidationContext::default()
        }),
        name if FileSecret::is_name(name) => of_files(name)?,
        _ => return None,
    };
    Some(Secret { name: name.to_owned(), r#type: Some(kind) })
}

/// Envoy's validator that knows roots by trust domain; needed only when there are any beside the general ones.
fn spiffe_validator(secrets: &WorkloadSecrets) -> Option<TypedExtensionConfig> {
    let domain = |(domain, pem): (&weft_identity::TrustDomain, &String)| SpiffeTrustDomain {
        name: domain.to_string(),
        trust_bundle: Some(DataSource {
            specifier: Some(Specifier::InlineString(with_lists(pem, &secrets.crl_pem))),
            ..DataSource::default()
        }),
    };
    if secrets.bundles.is_empty() {
        return None;
    }
    let config = SpiffeValidator { trust_domains: secrets.bundles.iter().map(domain).collect() };
    Some(TypedExtensionConfig {
        name: "envoy.tls.cert_validator.spiffe".into(),
        typed_config: Some(prost_types::Any {
            type_url: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig".into(),
            value: prost::Message::encode_to_vec(&config),
        }),
    })
}

/// The roots of a trust domain with the revocation lists, when one of them gives a list: this validator looks for lists there
/// alone, and refuses everybody of a domain who is not covered by them.
fn with_lists(roots: &str, lists: &str) -> String {
    match weft_tls::crls_of_roots(roots.as_bytes(), lists.as_bytes()) {
        true => format!("{}\n{lists}", roots.trim_end()),
        false => roots.to_owned(),
    }
}

/// `SPIFFECertValidatorConfig` of Envoy's `tls_spiffe_validator_config.proto`.
#[derive(Clone, PartialEq, prost::Message)]
struct SpiffeValidator {
    #[prost(message, repeated, tag = "1")]
    trust_domains: Vec<SpiffeTrustDomain>,
}

/// One trust domain of it.
#[derive(Clone, PartialEq, prost::Message)]
struct SpiffeTrustDomain {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    trust_bundle: Option<DataSource>,
}

fn type_url() -> String {
    weft_proto::pack(&Secret::default()).type_url
}

fn note_refusal(error: Option<&weft_proto::google::rpc::Status>, names: &[String]) {
    if let Some(error) = error {
        tracing::warn!(reason = error.message, ?names, "Envoy refuses a secret");
    }
}
