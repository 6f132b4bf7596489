//! Errors: [`TlsError`] for material and settings (a user's fault, said in the user's words), [`HandshakeError`] for one
//! connection (with a stable reason word for logs and metrics).

use std::io;
use std::sync::Arc;

/// Something is wrong with a certificate, a key or a setting.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    /// The text is not the PEM that was expected.
    #[error("{what}: {reason}")]
    Pem {
        /// What was being read, e.g. `certificate chain`.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate cannot be used.
    #[error("{what}: {reason}")]
    Certificate {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A private key cannot be used.
    #[error("private key: {0}")]
    Key(String),
    /// A setting cannot be met.
    #[error("TLS setting {field}: {reason}")]
    Setting {
        /// Which setting.
        field: &'static str,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// A signing request is refused.
    #[error("certificate signing request: {0}")]
    Request(String),
    /// The crypto library failed.
    #[error("cryptography: {0}")]
    Crypto(String),
}

/// Why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The peer closed the connection, or the network did.
    Closed,
    /// What came is not TLS, or breaks the protocol.
    NotTls,
    /// A client certificate is required and none came.
    NoCertificate,
    /// The peer's certificate leads to no trusted root.
    Untrusted,
    /// The peer's certificate has expired, or is not valid yet.
    Expired,
    /// The peer's certificate is revoked, or its revocation cannot be known.
    Revoked,
    /// The peer is not whom we expect: its names (SAN) were refused.
    NameMismatch,
    /// The peer's certificate is broken or made for another purpose.
    BadCertificate,
    /// No version, cipher suite, group or signature scheme in common.
    NothingInCommon,
    /// The peer refused us by an alert.
    RefusedByPeer,
    /// Our own side is not able to: no certificate, no key.
    Local,
}

impl Reason {
    /// A stable word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Closed => "closed",
            Reason::NotTls => "not_tls",
            Reason::NoCertificate => "no_client_certificate",
            Reason::Untrusted => "untrusted_issuer",
            Reason::Expired => "certificate_expired",
            Reason::Revoked => "certificate_revoked",
            Reason::NameMismatch => "san_mismatch",
            Reason::BadCertificate => "bad_certificate",
            Reason::NothingInCommon => "nothing_in_common",
            Reason::RefusedByPeer => "refused_by_peer",
            Reason::Local => "no_local_certificate",
        }
    }
}

/// A handshake that failed: why, and a sentence with the particulars.
#[derive(Debug, Clone, thiserror::Error)]
#[error("TLS handshake failed: {detail}")]
pub struct HandshakeError {
    /// Why.
    pub reason: Reason,
    /// The particulars.
    pub detail: String,
}

impl HandshakeError {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    /// From what tokio-rustls returns: a TLS error wrapped into an I/O error, or a real I/O error.
    pub fn from_io(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => Self::from_rustls(tls),
            None => Self::new(Reason::Closed, error.to_string()),
        }
    }

    /// From a TLS error.
    pub fn from_rustls(error: &rustls::Error) -> Self {
        use rustls::{Error, PeerIncompatible};
        let reason = match error {
            Error::InvalidCertificate(inner) => return Self::from_certificate(inner),
            Error::NoCertificatesPresented => Reason::NoCertificate,
            Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon)
            | Error::PeerIncompatible(_) => Reason::NothingInCommon,
            Error::NoApplicationProtocol => Reason::NothingInCommon,
            Error::AlertReceived(_) => Reason::RefusedByPeer,
            Error::General(_) if error.to_string().contains("no server certificate chain resolved") => Reason::Local,
            _ => Reason::NotTls,
        };
        Self::new(reason, error.to_string())
    }

    fn from_certificate(error: &rustls::CertificateError) -> Self {
        use rustls::CertificateError as C;
        let reason = match error {
            C::UnknownIssuer => Reason::Untrusted,
            C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. } => Reason::Expired,
            C::Revoked | C::UnknownRevocationStatus => Reason::Revoked,
            C::ExpiredRevocationList | C::ExpiredRevocationListContext { .. } => Reason::Revoked,
            C::NotValidForName | C::NotValidForNameContext { .. } => Reason::NameMismatch,
            C::Other(other) => match other.0.downcast_ref::<SanRefused>() {
                Some(refused) => return Self::new(Reason::NameMismatch, refused.to_string()),
                None => Reason::BadCertificate,
            },
            _ => Reason::BadCertificate,
        };
        let detail = match reason {
            Reason::Untrusted => "the peer's certificate is not signed by a trusted root".to_owned(),
            _ => format!("the peer's certificate is not accepted: {error}"),
        };
        Self::new(reason, detail)
    }
}

impl From<HandshakeError> for io::Error {
    fn from(error: HandshakeError) -> Self {
        let kind = match error.reason {
            Reason::Closed => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

/// The chain is good but the peer's names are not those that were asked for. Travels through rustls.
#[derive(Debug, thiserror::Error)]
#[error("the peer's names are not among those expected; it presents {presented}")]
pub(crate) struct SanRefused {
    pub presented: String,
}

impl SanRefused {
    pub(crate) fn into_rustls(self) -> rustls::Error {
        let other = rustls::OtherError(Arc::new(self));
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))
    }
}
