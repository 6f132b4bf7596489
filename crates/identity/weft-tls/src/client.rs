//! The client's side: a context is built once per upstream configuration and used for every connection.

use crate::settings::BUFFER_LIMIT;
use crate::verify::{BelieveAnyServer, ChainVerifier, SanPredicate, TlsFacts};
use crate::{CertifiedKey, HandshakeError, Reason, TlsError, TlsSettings, TrustAnchors};
use rustls::ClientConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::{IpAddr, Ipv4Addr, ServerName};
use std::fmt;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

/// A stream of the client's side.
pub type ClientStream<S> = tokio_rustls::client::TlsStream<S>;

/// Sessions kept for resumption. The key is the server's name, and all endpoints of a cluster have the same, so few help.
const SESSIONS: usize = 32;

/// How a server is checked.
#[derive(Clone)]
pub enum ServerVerification {
    /// Its chain leads to a trusted root, and the predicate accepts its names (SPIFFE: no host name is checked).
    Chain {
        /// Trusted roots.
        anchors: TrustAnchors,
        /// Names accepted; `None` = any under the roots.
        san: Option<SanPredicate>,
    },
    /// Nobody vouches for it; only the predicate is asked: certificates that are known by their hashes.
    Pinned(SanPredicate),
    /// Its chain leads to a trusted root, its certificate is for the name that is dialled (the SNI, or the host given to
    /// [`ClientContext::connect_to`]), and the predicate, if any, accepts it too.
    WebPki {
        /// Trusted roots.
        anchors: TrustAnchors,
        /// Names accepted besides; `None` = any.
        san: Option<SanPredicate>,
    },
    /// Not at all.
    Insecure,
}

/// What a client context is made of.
#[derive(Clone)]
pub struct ClientParams {
    /// Certificate shown when the server asks for one.
    pub certificate: Option<CertifiedKey>,
    /// How the server is checked.
    pub verification: ServerVerification,
    /// Name sent as SNI, and checked with [`ServerVerification::WebPki`]; `None` or empty = none is sent. An IP address
    /// is checked but not sent (RFC 6066, section 3).
    pub sni: Option<String>,
    /// ALPN protocols, most wanted first.
    pub alpn: Vec<Vec<u8>>,
    /// Versions, ciphers, groups.
    pub settings: TlsSettings,
}

impl ClientParams {
    /// Parameters with that verification and nothing else set.
    pub fn new(verification: ServerVerification) -> Self {
        Self { certificate: None, verification, sni: None, alpn: Vec::new(), settings: TlsSettings::default() }
    }
}

/// TLS towards servers. Cheap to clone and to use; immutable: a change of certificates or roots makes a new context.
#[derive(Clone)]
pub struct ClientContext {
    config: Arc<ClientConfig>,
    /// The same without SNI, when no name is to be sent.
    name: Option<ServerName<'static>>,
    /// The server's certificate must be for its name; the same without that condition.
    by_name: Option<ChainVerifier>,
    certificate: Option<CertifiedKey>,
}

impl ClientContext {
    /// Builds a context.
    ///
    /// # Errors
    /// When the SNI is not a host name, or a setting cannot be met.
    pub fn build(params: ClientParams) -> Result<Self, TlsError> {
        let provider = params.settings.provider()?;
        let name = params.sni.filter(|sni| !sni.is_empty()).map(|sni| server_name(&sni)).transpose()?;
        let by_name = match &params.verification {
            ServerVerification::WebPki { anchors, san } => {
                Some(ChainVerifier::new(anchors.clone(), san.clone(), &provider))
            }
            _ => None,
        };
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(params.settings.versions()?)
            .map_err(|e| TlsError::Setting { field: "versions", reason: e.to_string() })?
            .dangerous()
            .with_custom_certificate_verifier(server_verifier(params.verification, &provider));
        let mut config = match &params.certificate {
            Some(key) => builder.with_client_cert_resolver(Arc::new(ClientCertificate(key.clone()))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = params.alpn;
        // Envoy goes on when a server picks what was not offered or nothing; what is not offered stays refused.
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        config.enable_early_data = false;
        Ok(Self { config: Arc::new(config), name, by_name, certificate: params.certificate })
    }

    /// The same context, offering other protocols: trust, and the sessions kept under it, stay shared.
    #[must_use]
    pub fn with_alpn(&self, alpn: Vec<Vec<u8>>) -> Self {
        let mut config = (*self.config).clone();
        config.alpn_protocols = alpn;
        Self { config: Arc::new(config), ..self.clone() }
    }

    /// The certificate shown.
    pub fn certificate(&self) -> Option<&CertifiedKey> {
        self.certificate.as_ref()
    }

    /// The name sent as SNI.
    pub fn name(&self) -> Option<String> {
        self.name.as_ref().map(|name| name.to_str().into_owned())
    }

    /// Takes a connection through its handshake, under the context's own name. There is no time limit here: put one
    /// around it.
    ///
    /// # Errors
    /// Why the handshake failed; the alert has been sent.
    pub async fn connect<S>(&self, stream: S) -> Result<Connected<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match (&self.name, &self.by_name) {
            (Some(name), _) => self.handshake(stream, name.clone()).await,
            (None, Some(_)) => {
                Err(HandshakeError::new(Reason::Local, "no name is set to check the server's certificate for"))
            }
            (None, None) => self.handshake(stream, nobody()).await,
        }
    }

    /// As [`connect`](Self::connect), but where the context has no name to check, the chain is enough: for bytes, which
    /// name no host, in a context that takes the name from the request (Envoy's `auto_sni`, which is about HTTP alone).
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_unnamed<S>(&self, stream: S) -> Result<Connected<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (None, Some(chain)) = (&self.name, &self.by_name) else { return self.connect(stream).await };
        let mut config = (*self.config).clone();
        config.dangerous().set_certificate_verifier(Arc::new(chain.clone()));
        // No session of a connection whose name was checked is shared with one whose name was not.
        config.resumption = Resumption::disabled();
        let context = Self { config: Arc::new(config), name: None, by_name: None, certificate: None };
        context.handshake(stream, nobody()).await
    }

    /// As [`connect`](Self::connect), but with `host` as SNI and as the name checked (`auto_host_sni`).
    ///
    /// # Errors
    /// As [`connect`](Self::connect), and when `host` is no host name.
    pub async fn connect_to<S>(&self, stream: S, host: &str) -> Result<Connected<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = server_name(host).map_err(|error| HandshakeError::new(Reason::Local, error.to_string()))?;
        self.handshake(stream, name).await
    }

    async fn handshake<S>(&self, stream: S, name: ServerName<'static>) -> Result<Connected<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = TlsConnector::from(self.config.clone())
            .connect_with(name, stream, |connection| connection.set_buffer_limit(Some(BUFFER_LIMIT)))
            .await
            .map_err(|e| HandshakeError::from_io(&e))?;
        let facts = TlsFacts::of_client(stream.get_ref().1)?;
        Ok(Connected { stream, facts })
    }
}

/// A connection after its handshake.
pub struct Connected<S> {
    /// The stream.
    pub stream: ClientStream<S>,
    /// What was agreed on, and with whom.
    pub facts: TlsFacts,
}

/// The name where none is known: an address as name is never sent.
fn nobody() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0; 4])))
}

fn server_name(text: &str) -> Result<ServerName<'static>, TlsError> {
    let plain = text.strip_suffix('.').unwrap_or(text).trim_matches(['[', ']']).to_owned();
    ServerName::try_from(plain).map_err(|_| TlsError::Setting {
        field: "SNI",
        reason: format!("{text:?} is not a host name; labels have 1 to 63 letters, digits, '-' or '_'"),
    })
}

fn server_verifier(verification: ServerVerification, provider: &CryptoProvider) -> Arc<dyn ServerCertVerifier> {
    match verification {
        ServerVerification::Chain { anchors, san } => Arc::new(ChainVerifier::new(anchors, san, provider)),
        ServerVerification::WebPki { anchors, san } => {
            Arc::new(ChainVerifier { check_name: true, ..ChainVerifier::new(anchors, san, provider) })
        }
        ServerVerification::Pinned(wanted) => Arc::new(ChainVerifier::pinned(wanted, provider)),
        ServerVerification::Insecure => {
            Arc::new(BelieveAnyServer { algorithms: provider.signature_verification_algorithms })
        }
    }
}

/// Shows one certificate to whoever asks.
#[derive(Debug)]
struct ClientCertificate(CertifiedKey);

impl ResolvesClientCert for ClientCertificate {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        // Without a scheme in common the server hears "no certificate" and says what it thinks of that.
        self.0.rustls().key.choose_scheme(schemes).map(|_| self.0.rustls().clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for ClientContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientContext")
            .field("name", &self.name)
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}
