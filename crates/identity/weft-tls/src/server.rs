//! The server's side: a context is built once per listener configuration and used for every connection.

use crate::certificate::dns_pattern_matches;
use crate::settings::BUFFER_LIMIT;
use crate::verify::{ChainVerifier, SanPredicate, TlsFacts};
use crate::{CertifiedKey, HandshakeError, TlsError, TlsSettings, TrustAnchors};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert};
use std::fmt;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

/// A stream of the server's side.
pub type ServerStream<S> = tokio_rustls::server::TlsStream<S>;

/// What is asked of clients.
#[derive(Clone, Default)]
pub enum ClientAuth {
    /// Nothing: no certificate is asked for.
    #[default]
    None,
    /// A certificate is asked for; one that comes must be good.
    Optional {
        /// Trusted roots.
        anchors: TrustAnchors,
        /// Names accepted; `None` = any.
        san: Option<SanPredicate>,
    },
    /// A good certificate must come.
    Required {
        /// Trusted roots.
        anchors: TrustAnchors,
        /// Names accepted; `None` = any.
        san: Option<SanPredicate>,
    },
    /// Nobody has to vouch for the certificate; the predicate decides: certificates that are known by their hashes.
    Pinned {
        /// Certificates accepted.
        san: SanPredicate,
        /// One must come.
        required: bool,
    },
}

/// What a server context is made of.
#[derive(Clone, Default)]
pub struct ServerParams {
    /// Certificates; the first one for the SNI that fits the client's algorithms is shown, else the first that fits.
    pub certificates: Vec<CertifiedKey>,
    /// What is asked of clients.
    pub client_auth: ClientAuth,
    /// ALPN protocols, most wanted first; empty = none is agreed on.
    pub alpn: Vec<Vec<u8>>,
    /// Versions, ciphers, groups.
    pub settings: TlsSettings,
}

/// TLS towards clients. Cheap to clone and to use; immutable: a change of certificates or roots makes a new context.
#[derive(Clone)]
pub struct ServerContext {
    config: Arc<ServerConfig>,
    /// The same without ALPN, for clients that offer none of ours: Envoy goes on without, rustls would refuse.
    without_alpn: Arc<ServerConfig>,
    certificates: Arc<[CertifiedKey]>,
}

impl ServerContext {
    /// Builds a context.
    ///
    /// # Errors
    /// When there is no certificate, or a setting cannot be met.
    pub fn build(params: ServerParams) -> Result<Self, TlsError> {
        if params.certificates.is_empty() {
            let reason = "a TLS server needs at least one".into();
            return Err(TlsError::Setting { field: "certificates", reason });
        }
        let provider = params.settings.provider()?;
        let certificates: Arc<[CertifiedKey]> = params.certificates.into();
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(params.settings.versions()?)
            .map_err(|e| TlsError::Setting { field: "versions", reason: e.to_string() })?;
        let builder = match client_verifier(params.client_auth, &provider) {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(Certificates(certificates.clone())));
        config.alpn_protocols = params.alpn;
        // Stateless tickets under keys of this context alone: no lock between workers, nothing kept per client, and a
        // session can never reach another context.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Ticketer::new().map_err(|e| TlsError::Crypto(format!("ticket keys: {e}")))?;
        config.send_tls13_tickets = 1;
        config.max_early_data_size = 0;
        let mut without_alpn = config.clone();
        without_alpn.alpn_protocols.clear();
        Ok(Self { config: Arc::new(config), without_alpn: Arc::new(without_alpn), certificates })
    }

    /// The configuration for a ClientHello.
    pub fn config_for(&self, hello: &ClientHello<'_>) -> Arc<ServerConfig> {
        let ours = &self.config.alpn_protocols;
        let is_ours = |protocol: &[u8]| ours.iter().any(|our| our == protocol);
        let agreed = hello.alpn().is_none_or(|mut theirs| theirs.any(is_ours));
        if agreed { self.config.clone() } else { self.without_alpn.clone() }
    }

    /// The certificates shown.
    pub fn certificates(&self) -> &[CertifiedKey] {
        &self.certificates
    }

    /// Takes a connection through its handshake. There is no time limit here: put one around it.
    ///
    /// # Errors
    /// Why the handshake failed; the alert has been sent.
    pub async fn accept<S>(&self, stream: S) -> Result<Accepted<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let start =
            LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(|e| HandshakeError::from_io(&e))?;
        self.accept_started(start).await
    }

    /// Finishes a handshake whose ClientHello has been read by a [`LazyAcceptor`](crate::LazyAcceptor).
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub async fn accept_started<S>(&self, start: StartHandshake<S>) -> Result<Accepted<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.config_for(&start.client_hello());
        let stream = start
            .into_stream_with(config, |connection| connection.set_buffer_limit(Some(BUFFER_LIMIT)))
            .await
            .map_err(|e| HandshakeError::from_io(&e))?;
        let facts = TlsFacts::of_server(stream.get_ref().1)?;
        Ok(Accepted { stream, facts })
    }
}

/// A connection after its handshake.
pub struct Accepted<S> {
    /// The stream.
    pub stream: ServerStream<S>,
    /// What was agreed on, and with whom.
    pub facts: TlsFacts,
}

fn client_verifier(auth: ClientAuth, provider: &CryptoProvider) -> Option<Arc<ChainVerifier>> {
    let (anchors, san, mandatory) = match auth {
        ClientAuth::None => return None,
        ClientAuth::Optional { anchors, san } => (anchors, san, false),
        ClientAuth::Required { anchors, san } => (anchors, san, true),
        ClientAuth::Pinned { san, required } => {
            return Some(Arc::new(ChainVerifier { mandatory: required, ..ChainVerifier::pinned(san, provider) }));
        }
    };
    Some(Arc::new(ChainVerifier { mandatory, ..ChainVerifier::new(anchors, san, provider) }))
}

/// Chooses the certificate by SNI and by the client's algorithms.
struct Certificates(Arc<[CertifiedKey]>);

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        if let [only] = &*self.0 {
            return Some(only.rustls().clone());
        }
        let fits = |key: &&CertifiedKey| key.rustls().key.choose_scheme(hello.signature_schemes()).is_some();
        let named = |key: &&CertifiedKey| {
            hello.server_name().is_some_and(|name| key.facts().dns.iter().any(|dns| dns_pattern_matches(dns, name)))
        };
        let all = || self.0.iter();
        let chosen = all().find(|key| named(key) && fits(key)).or_else(|| all().find(fits)).or(self.0.first())?;
        Some(chosen.rustls().clone())
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Certificates").field(&self.0).finish()
    }
}

impl fmt::Debug for ServerContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerContext").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}
