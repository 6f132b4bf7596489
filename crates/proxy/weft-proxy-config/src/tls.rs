//! TLS contexts. A context is compiled without its secrets; the rustls configuration is built on first use and again after
//! a secret changed (the snapshot then holds a new context), so that open connections are never touched.

use crate::compile::tls::predicate;
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
    pub(crate) built: OnceLock<Result<Arc<weft_tls::ServerContext>, Strng>>,
}

/// TLS towards endpoints.
#[derive(Debug)]
pub struct ClientTls {
    /// What is asked for.
    pub spec: ClientTlsSpec,
    /// The secrets it was compiled with.
    pub secrets: BoundSecrets,
    /// Built on first connection.
    pub(crate) built: OnceLock<Result<Arc<weft_tls::ClientContext>, Strng>>,
}

/// The secrets of a context.
#[derive(Debug, Clone, Default)]
pub struct BoundSecrets {
    /// Certificates and keys, as the spec lists them; `None` where one has not arrived.
    pub certificates: Vec<Option<Arc<Secret>>>,
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
    /// Certificates accepted.
    pub pins: Pins,
    /// Revocation lists beside roots that come by SDS, PEM.
    pub crl: Option<Arc<[u8]>>,
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
    /// Certificates accepted.
    pub pins: Pins,
    /// Revocation lists beside roots that come by SDS, PEM.
    pub crl: Option<Arc<[u8]>>,
    /// SNI.
    pub sni: Strng,
    /// Where the SNI comes from when none is set.
    pub auto_sni: AutoSni,
    /// The certificate must be for the name that is sent as SNI.
    pub check_name: bool,
    /// ALPN.
    pub alpn: Vec<Strng>,
    /// Versions and ciphers.
    pub params: TlsParams,
    /// Skip verification of the chain (`insecureSkipVerify`).
    pub insecure_skip_verify: bool,
}

/// Where a server's name comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AutoSni {
    /// The setting; without it none is sent.
    #[default]
    No,
    /// The request's host (`auto_sni` of the HTTP options).
    Request,
    /// The endpoint's host name (`auto_host_sni` of the TLS context).
    Endpoint,
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

/// Certificates that are accepted, whatever else holds; both lists empty = any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pins {
    /// SHA-256 of the certificate, lower-case hex.
    pub certificates: Vec<Strng>,
    /// SHA-256 of the public key, base64.
    pub keys: Vec<Strng>,
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

impl ServerTls {
    /// The context, built on first use.
    ///
    /// # Errors
    /// What is missing (`secret NAME has not arrived`) or cannot be met.
    pub fn context(&self) -> Result<Arc<weft_tls::ServerContext>, Strng> {
        self.built.get_or_init(|| self.build().map(Arc::new)).clone()
    }

    fn build(&self) -> Result<weft_tls::ServerContext, Strng> {
        let named = self.spec.certificates.iter().zip(&self.secrets.certificates);
        let certificates =
            named.map(|(source, secret)| certificate(source, secret.as_ref())).collect::<Result<_, _>>()?;
        let san = predicate(&self.spec.san, &self.spec.pins);
        let client_auth = match &self.spec.validation {
            None => match san {
                None => weft_tls::ClientAuth::None,
                Some(san) => weft_tls::ClientAuth::Pinned { san, required: self.spec.require_client_certificate },
            },
            Some(source) => {
                let anchors = anchors(source, self.secrets.validation.as_ref(), self.spec.crl.as_deref())?;
                if self.spec.require_client_certificate {
                    weft_tls::ClientAuth::Required { anchors, san }
                } else {
                    weft_tls::ClientAuth::Optional { anchors, san }
                }
            }
        };
        let params = weft_tls::ServerParams {
            certificates,
            client_auth,
            alpn: bytes(&self.spec.alpn),
            settings: self.spec.params.settings(),
        };
        weft_tls::ServerContext::build(params).map_err(|e| e.to_string().into())
    }

    /// The same with the secrets that `find` has now; `None` when nothing changes.
    pub(crate) fn rebound(&self, find: &dyn Fn(&str) -> Option<Arc<Secret>>) -> Option<Self> {
        let secrets = rebind(&self.spec.certificates, self.spec.validation.as_ref(), &self.secrets, find)?;
        Some(Self { spec: self.spec.clone(), secrets, built: OnceLock::new() })
    }

    /// SDS names that it uses.
    pub fn secret_names(&self) -> impl Iterator<Item = &Strng> {
        names(self.spec.certificates.iter().chain(&self.spec.validation))
    }
}

impl ClientTls {
    /// The context, built on first use.
    ///
    /// # Errors
    /// What is missing (`secret NAME has not arrived`) or cannot be met.
    pub fn context(&self) -> Result<Arc<weft_tls::ClientContext>, Strng> {
        self.built.get_or_init(|| self.build().map(Arc::new)).clone()
    }

    fn build(&self) -> Result<weft_tls::ClientContext, Strng> {
        let own = self.spec.certificate.iter().zip(&self.secrets.certificates);
        let own = own.map(|(source, secret)| certificate(source, secret.as_ref())).next().transpose()?;
        let san = predicate(&self.spec.san, &self.spec.pins);
        let verification = match &self.spec.validation {
            // The chain is not looked at; what is pinned still is.
            _ if self.spec.insecure_skip_verify && san.is_some() => {
                san.map_or(weft_tls::ServerVerification::Insecure, weft_tls::ServerVerification::Pinned)
            }
            _ if self.spec.insecure_skip_verify => weft_tls::ServerVerification::Insecure,
            // Envoy without a validation context does not verify the server.
            None => san.map_or(weft_tls::ServerVerification::Insecure, weft_tls::ServerVerification::Pinned),
            Some(source) => {
                let anchors = anchors(source, self.secrets.validation.as_ref(), self.spec.crl.as_deref())?;
                if self.spec.check_name {
                    weft_tls::ServerVerification::WebPki { anchors, san }
                } else {
                    weft_tls::ServerVerification::Chain { anchors, san }
                }
            }
        };
        let sni = (!self.spec.sni.is_empty()).then(|| self.spec.sni.to_string());
        let params = weft_tls::ClientParams {
            certificate: own,
            verification,
            sni,
            alpn: bytes(&self.spec.alpn),
            settings: self.spec.params.settings(),
        };
        weft_tls::ClientContext::build(params).map_err(|e| e.to_string().into())
    }

    /// The same with the secrets that `find` has now; `None` when nothing changes.
    pub(crate) fn rebound(&self, find: &dyn Fn(&str) -> Option<Arc<Secret>>) -> Option<Self> {
        let certificates: Vec<SecretSource> = self.spec.certificate.iter().cloned().collect();
        let secrets = rebind(&certificates, self.spec.validation.as_ref(), &self.secrets, find)?;
        Some(Self { spec: self.spec.clone(), secrets, built: OnceLock::new() })
    }

    /// SDS names that it uses.
    pub fn secret_names(&self) -> impl Iterator<Item = &Strng> {
        names(self.spec.certificate.iter().chain(&self.spec.validation))
    }
}

impl TlsParams {
    fn settings(&self) -> weft_tls::TlsSettings {
        let mut settings =
            weft_tls::TlsSettings { ciphers: self.ciphers.clone(), groups: self.groups.clone(), ..Default::default() };
        if self.min_tls13 {
            settings.min_version = weft_tls::TlsVersion::V1_3;
        }
        if self.max_tls12 {
            settings.max_version = weft_tls::TlsVersion::V1_2;
        }
        settings
    }
}

fn names<'a>(sources: impl Iterator<Item = &'a SecretSource>) -> impl Iterator<Item = &'a Strng> {
    sources.filter_map(|source| match source {
        SecretSource::Sds(name) => Some(name),
        SecretSource::Inline(..) => None,
    })
}

fn rebind(
    certificates: &[SecretSource],
    validation: Option<&SecretSource>,
    bound: &BoundSecrets,
    find: &dyn Fn(&str) -> Option<Arc<Secret>>,
) -> Option<BoundSecrets> {
    let mut new = bound.clone();
    for (source, slot) in certificates.iter().zip(&mut new.certificates) {
        if let SecretSource::Sds(name) = source {
            *slot = find(name);
        }
    }
    if let Some(SecretSource::Sds(name)) = validation {
        new.validation = find(name);
    }
    let same = |a: &Option<Arc<Secret>>, b: &Option<Arc<Secret>>| match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    };
    let unchanged = same(&new.validation, &bound.validation)
        && new.certificates.iter().zip(&bound.certificates).all(|(a, b)| same(a, b));
    (!unchanged).then_some(new)
}

fn bytes(alpn: &[Strng]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.as_bytes().to_vec()).collect()
}

fn missing(source: &SecretSource) -> Strng {
    match source {
        SecretSource::Sds(name) => format!("secret {name} has not arrived").into(),
        SecretSource::Inline(..) => "a secret of the configuration is missing".into(),
    }
}

fn certificate(source: &SecretSource, secret: Option<&Arc<Secret>>) -> Result<weft_tls::CertifiedKey, Strng> {
    match secret.map(|s| &**s) {
        Some(Secret::Certificate(key)) => Ok(key.clone()),
        Some(Secret::Validation(_)) => Err(format!("{source:?} holds roots, not a certificate").into()),
        None => Err(missing(source)),
    }
}

fn anchors(
    source: &SecretSource,
    secret: Option<&Arc<Secret>>,
    crl: Option<&[u8]>,
) -> Result<weft_tls::TrustAnchors, Strng> {
    match secret.map(|s| &**s) {
        Some(Secret::Validation(anchors)) => match crl {
            None => Ok(anchors.clone()),
            Some(lists) => anchors.clone().with_crls(lists).map_err(|error| error.to_string().into()),
        },
        // A gateway's one secret may hold both; its certificate alone trusts nobody.
        Some(Secret::Certificate(_)) => Err(format!("{source:?} holds a certificate, not roots").into()),
        None => Err(missing(source)),
    }
}
