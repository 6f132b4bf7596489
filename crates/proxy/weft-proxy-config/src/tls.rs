//! TLS contexts. A context is compiled without its secrets; the rustls configuration is built on first use and again after
//! a secret changed (the snapshot then holds a new context), so that open connections are never touched.

use std::sync::{Arc, OnceLock};
use weft_core::Strng;

/// TLS towards clients.
#[derive(Debug)]
pub struct ServerTls {
    /// What is asked for.
    pub spec: ServerTlsSpec,
    /// The secrets it was compiled with; a missing one makes every handshake fail, with that as the reason.
    pub secrets: BoundSecrets,
    /// Built on first handshake.
    pub built: OnceLock<Result<Arc<weft_tls::ServerContext>, Strng>>,
}

/// TLS towards endpoints.
#[derive(Debug)]
pub struct ClientTls {
    /// What is asked for.
    pub spec: ClientTlsSpec,
    /// The secrets it was compiled with.
    pub secrets: BoundSecrets,
    /// Built on first connection.
    pub built: OnceLock<Result<Arc<weft_tls::ClientContext>, Strng>>,
}

/// The secrets of a context.
#[derive(Debug, Clone, Default)]
pub struct BoundSecrets {
    /// Certificate and key.
    pub certificate: Option<Arc<Secret>>,
    /// Trusted roots.
    pub validation: Option<Arc<Secret>>,
}

/// A secret as SDS delivers it.
#[derive(Debug)]
pub enum Secret {
    /// Certificate chain and key, parsed.
    Certificate(weft_tls::CertifiedKey),
    /// Trusted roots (and, with SPIFFE federation, roots by trust domain), revocation lists.
    Validation(weft_tls::TrustAnchors),
}

/// Where a context finds a secret.
#[derive(Debug, Clone, PartialEq)]
pub enum SecretSource {
    /// By SDS name.
    Sds(Strng),
    /// Files or inline PEM, read when the context is compiled: certificate chain and key, or roots.
    Inline(Strng, Option<Strng>),
}

/// Settings of the server's side.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerTlsSpec {
    /// Certificate; the first usable of the list by SNI and key type.
    pub certificates: Vec<SecretSource>,
    /// Trusted roots for client certificates.
    pub validation: Option<SecretSource>,
    /// A client certificate is asked for.
    pub request_client_certificate: bool,
    /// … and must be there.
    pub require_client_certificate: bool,
    /// Client SANs accepted; empty = any under the roots.
    pub san: Vec<SanMatcher>,
    /// ALPN, most wanted first.
    pub alpn: Vec<Strng>,
    /// Versions and ciphers.
    pub params: TlsParams,
}

/// Settings of the client's side.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientTlsSpec {
    /// Certificate to present.
    pub certificate: Option<SecretSource>,
    /// Trusted roots; `None` = the server is not verified.
    pub validation: Option<SecretSource>,
    /// Server SANs accepted; empty = any under the roots.
    pub san: Vec<SanMatcher>,
    /// SNI.
    pub sni: Strng,
    /// SNI from the request's host, and the SAN checked against it.
    pub auto_host_sni: bool,
    /// ALPN.
    pub alpn: Vec<Strng>,
    /// Versions and ciphers.
    pub params: TlsParams,
    /// Skip verification of the chain (`insecureSkipVerify`).
    pub insecure_skip_verify: bool,
}

/// TLS versions and ciphers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsParams {
    /// TLS 1.3 only.
    pub min_tls13: bool,
    /// TLS 1.2 only.
    pub max_tls12: bool,
    /// Cipher suites by OpenSSL name; empty = the defaults.
    pub ciphers: Vec<Strng>,
    /// Key-exchange groups by name; empty = the defaults.
    pub groups: Vec<Strng>,
}

/// A condition on a subject alternative name.
#[derive(Debug, Clone)]
pub struct SanMatcher {
    /// Kind of name; `None` = any.
    pub kind: Option<SanKind>,
    /// Condition.
    pub value: weft_route::StringMatcher,
}

impl PartialEq for SanMatcher {
    /// By text: two matchers are equal when they print alike.
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && format!("{:?}", self.value) == format!("{:?}", other.value)
    }
}

/// Kinds of subject alternative names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SanKind {
    /// URI (SPIFFE).
    Uri,
    /// DNS.
    Dns,
    /// E-mail.
    Email,
    /// IP address.
    Ip,
}
