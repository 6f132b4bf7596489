//! The one crypto provider: keys, certificates, TLS contexts, SPIFFE verification. Nothing else in the tree imports a TLS or
//! crypto library. Knows nothing of xDS, of files, or of who should be trusted: callers hand in PEM and predicates.
//!
//! Reading order: [`error`], [`settings`] (versions, ciphers, groups), [`pem`], [`certificate`] (facts of a certificate),
//! [`key`] (a certificate chain with its key), [`anchors`] (whom to trust), `revocation`, [`verify`] (chain and SAN checks), [`server`],
//! [`client`], [`hello`] (a ClientHello before the handshake), [`private_key`], [`csr`] and [`issue`] (what a certificate
//! authority does), [`jose`] (signatures of JSON Web Tokens), [`jwks`] (their key sets).
//!
//! # What this provider cannot do
//! - TLS below 1.2, renegotiation, 0-RTT data (switched off: replays).
//! - The static-RSA suites `AES256-GCM-SHA384` and `AES128-GCM-SHA256` of Istio's list: rustls has only suites with forward
//!   secrecy. A peer that offers nothing else is refused.
//!
//! # Sessions
//! Tickets are bound to a context: each [`ServerContext`] has ticket keys of its own and each [`ClientContext`] a session
//! cache of its own. A context is rebuilt when its certificates, roots or names change, so a session from before a change
//! of trust is never resumed after it. A resumed session whose peer certificate has expired meanwhile is refused.

pub mod anchors;
pub mod certificate;
pub mod client;
pub mod csr;
mod dn;
pub mod error;
pub mod hello;
pub mod issue;
pub mod jose;
pub mod jwks;
pub mod key;
pub mod pem;
pub mod private_key;
mod revocation;
pub mod server;
pub mod settings;
pub mod verify;

pub use anchors::{SYSTEM_BUNDLES, TrustAnchors, check_crls, crls_of_roots, crls_until};
pub use certificate::{CertificateFacts, PeerCertificate};
pub use client::{ClientContext, ClientParams, ClientStream, Connected, ServerVerification};
pub use csr::{CertificateRequest, KeyAndCsr, San, generate_key_and_csr};
pub use error::{HandshakeError, Reason, TlsError};
pub use hello::{ClientHelloFacts, PeekedHello, peek_client_hello};
pub use issue::{IssuedCertificate, Issuer, LeafParams, RootParams};
pub use jose::{JwsAlgorithm, JwsCurve, JwsKey, JwsSigner};
pub use jwks::{Jwk, Jwks, JwksError};
pub use key::CertifiedKey;
pub use private_key::{KeyKind, PrivateKey};
pub use server::{Accepted, ClientAuth, ServerContext, ServerParams, ServerStream};
pub use settings::{TlsSettings, TlsVersion, install_provider};
pub use verify::{SanPredicate, TlsFacts};

/// Feeds the bytes of a ClientHello to a [`LazyAcceptor`].
pub use rustls::server::Acceptor;
/// A certificate, DER.
pub type Der = rustls_pki_types::CertificateDer<'static>;
/// Reads the ClientHello first and lets the caller choose a context by it; finish with [`ServerContext::accept_started`].
pub use tokio_rustls::LazyConfigAcceptor as LazyAcceptor;
pub use tokio_rustls::StartHandshake;
/// For buffers that held a key.
pub use zeroize::Zeroizing;

/// SHA-256 of `data`.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, data);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

/// SHA-1 of `data`: for protocols that ask for it where nothing depends on its strength (RFC 6455 §4.2.2).
pub fn sha1(data: &[u8]) -> [u8; 20] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, data);
    let mut out = [0; 20];
    out.copy_from_slice(digest.as_ref());
    out
}

/// Lower-case hexadecimal of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests;
