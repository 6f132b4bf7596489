//! Whether to believe a peer: chain to a trusted root, then names. Used by both sides; the crypto library checks that the
//! peer holds the key.

use crate::error::SanRefused;
use crate::revocation::{Chain, Coverage};
use crate::settings::openssl_name;
use crate::{HandshakeError, PeerCertificate, Reason, TrustAnchors};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;
use webpki::{EndEntityCert, KeyUsage};

/// Decides by a peer's names whether it is one that is wanted. Called during the handshake, once per connection.
pub type SanPredicate = Arc<dyn Fn(&PeerCertificate) -> bool + Send + Sync>;

/// Checks chains and names.
#[derive(Clone)]
pub(crate) struct ChainVerifier {
    /// `None`: the predicate alone decides.
    pub anchors: Option<TrustAnchors>,
    pub san: Option<SanPredicate>,
    /// The certificate must be for the server's name (clients only).
    pub check_name: bool,
    /// A client certificate must come (servers only).
    pub mandatory: bool,
    pub algorithms: WebPkiSupportedAlgorithms,
}

impl ChainVerifier {
    pub(crate) fn new(anchors: TrustAnchors, san: Option<SanPredicate>, provider: &CryptoProvider) -> Self {
        let algorithms = provider.signature_verification_algorithms;
        Self { anchors: Some(anchors), san, check_name: false, mandatory: false, algorithms }
    }

    /// Without roots: who is wanted is known by the certificate itself.
    pub(crate) fn pinned(wanted: SanPredicate, provider: &CryptoProvider) -> Self {
        let algorithms = provider.signature_verification_algorithms;
        Self { anchors: None, san: Some(wanted), check_name: false, mandatory: false, algorithms }
    }

    /// The steps of belief: parse, roots of the peer's trust domain, chain with validity and purpose, revocation, names.
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: Option<&ServerName<'_>>,
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        let domains = self.anchors.as_ref().is_some_and(TrustAnchors::has_trust_domains);
        let peer = match self.san.is_some() || domains {
            true => Some(PeerCertificate::from_chain(std::slice::from_ref(leaf)).map_err(|_| bad_encoding())?),
            false => None,
        };
        if let Some(anchors) = &self.anchors {
            self.check_chain(anchors, peer.as_ref(), (leaf, intermediates), name, (now, usage))?;
        }
        match (&self.san, &peer) {
            (Some(wanted), Some(peer)) if !wanted(peer) => Err(SanRefused { presented: names_of(peer) }.into_rustls()),
            _ => Ok(()),
        }
    }

    fn check_chain(
        &self,
        anchors: &TrustAnchors,
        peer: Option<&PeerCertificate>,
        (leaf, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
        name: Option<&ServerName<'_>>,
        (now, usage): (UnixTime, KeyUsage),
    ) -> Result<(), Error> {
        let cert = EndEntityCert::try_from(leaf).map_err(certificate_error)?;
        let id = peer.filter(|_| anchors.has_trust_domains()).and_then(|peer| peer.spiffe_id());
        let roots = anchors.roots_for(id.as_ref().map(|id| id.trust_domain()));
        let checked = Chain { leaf: &cert, intermediates, roots, now, usage };
        checked.verify(anchors, Coverage::OfTheirOwn, self.algorithms.all).map_err(certificate_error)?;
        match name {
            Some(name) => cert.verify_is_valid_for_subject_name(name).map_err(certificate_error),
            None => Ok(()),
        }
    }
}

fn names_of(peer: &PeerCertificate) -> String {
    let names: Vec<&str> = peer.uris.iter().chain(&peer.dns).take(4).map(AsRef::as_ref).collect();
    match names.is_empty() {
        true => format!("no name, only subject {:?}", peer.subject),
        false => names.join(", "),
    }
}

fn bad_encoding() -> Error {
    Error::InvalidCertificate(CertificateError::BadEncoding)
}

/// The same meaning in the TLS library's words, so that the right alert is sent.
fn certificate_error(error: webpki::Error) -> Error {
    use webpki::Error as W;
    let certificate = match error {
        W::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        W::CertNotValidYet { time, not_before } => CertificateError::NotValidYetContext { time, not_before },
        // A root of the same name but another key is a stranger's, not a broken signature.
        W::UnknownIssuer | W::InvalidSignatureForPublicKey => CertificateError::UnknownIssuer,
        W::CertRevoked => CertificateError::Revoked,
        W::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        W::CrlExpired { time, next_update } => CertificateError::ExpiredRevocationListContext { time, next_update },
        W::CertNotValidForName(names) => {
            CertificateError::NotValidForNameContext { expected: names.expected, presented: names.presented }
        }
        W::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        W::BadDer | W::BadDerTime | W::TrailingData(_) => CertificateError::BadEncoding,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    };
    Error::InvalidCertificate(certificate)
}

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let name = self.check_name.then_some(server_name);
        self.check(end_entity, intermediates, name, now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for ChainVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: they tell strangers whom we trust, and clients of a mesh have one certificate.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, None, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl fmt::Debug for ChainVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainVerifier").field("anchors", &self.anchors).finish_non_exhaustive()
    }
}

/// Believes any server that holds the key of the certificate it shows: `insecureSkipVerify`.
#[derive(Debug)]
pub(crate) struct BelieveAnyServer {
    pub algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for BelieveAnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// What is known of a TLS connection after its handshake.
#[derive(Debug, Clone)]
pub struct TlsFacts {
    /// The peer's certificate, verified; `None` when it showed none.
    pub peer: Option<Arc<PeerCertificate>>,
    /// The application protocol agreed on.
    pub alpn: Option<Box<[u8]>>,
    /// The server name: as the client asked (on the server's side).
    pub server_name: Option<Box<str>>,
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// Cipher suite, OpenSSL's name.
    pub cipher: &'static str,
    /// The session was resumed.
    pub resumed: bool,
}

impl TlsFacts {
    /// Facts of a connection of the server's side, after its handshake.
    ///
    /// # Errors
    /// When the peer's certificate cannot be read, or a resumed session's has expired meanwhile.
    pub fn of_server(connection: &rustls::ServerConnection) -> Result<Self, HandshakeError> {
        let mut facts = Self::of(connection)?;
        facts.server_name = connection.server_name().map(Into::into);
        Ok(facts)
    }

    /// Facts of a connection of the client's side, after its handshake.
    ///
    /// # Errors
    /// As [`of_server`](Self::of_server).
    pub fn of_client(connection: &rustls::ClientConnection) -> Result<Self, HandshakeError> {
        Self::of(connection)
    }

    fn of<D>(connection: &rustls::ConnectionCommon<D>) -> Result<Self, HandshakeError> {
        let peer = match connection.peer_certificates() {
            None | Some([]) => None,
            Some(chain) => Some(Arc::new(
                PeerCertificate::from_chain(chain)
                    .map_err(|error| HandshakeError::new(Reason::BadCertificate, error.to_string()))?,
            )),
        };
        let resumed = matches!(connection.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
        // A resumption does not check the chain again; a session must not outlive the certificate it was made with.
        if let Some(peer) = peer.as_ref().filter(|peer| resumed && peer.not_after <= SystemTime::now()) {
            let detail = format!("the session is resumed but the peer's certificate {} has expired", peer.serial);
            return Err(HandshakeError::new(Reason::Expired, detail));
        }
        Ok(Self {
            peer,
            alpn: connection.alpn_protocol().map(Into::into),
            server_name: None,
            version: match connection.protocol_version() {
                Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "TLSv1.3",
            },
            cipher: connection.negotiated_cipher_suite().map_or("unknown", openssl_name),
            resumed,
        })
    }
}
