//! Certificate signing requests: making one (a workload's side) and reading one (the authority's side).

use crate::{KeyKind, PrivateKey, TlsError};
use rcgen::{CertificateParams, DistinguishedName, SanType};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use std::net::IpAddr;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use zeroize::Zeroizing;

/// Largest request read, in bytes of PEM: RSA-8192 with many names is below half of it.
pub const MAX_CSR_BYTES: usize = 16 * 1024;
/// Least size of an RSA key, in bits.
const MIN_RSA_BITS: usize = 2048;
/// Greatest size of an RSA key, in bits: verifying with a larger one is a way to waste the authority's time.
const MAX_RSA_BITS: usize = 8192;

/// A subject alternative name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum San {
    /// A URI: a SPIFFE ID.
    Uri(String),
    /// A host name.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

/// A new key and the request for its certificate.
pub struct KeyAndCsr {
    /// The key, PKCS#8 PEM.
    pub key_pem: Zeroizing<String>,
    /// The request, PEM.
    pub csr_pem: String,
}

/// Makes a key and a request that asks for `names`.
///
/// # Errors
/// When a name cannot be written into a certificate, or the crypto library fails.
pub fn generate_key_and_csr(kind: KeyKind, names: &[San]) -> Result<KeyAndCsr, TlsError> {
    let key = PrivateKey::generate(kind)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names.iter().map(san_type).collect::<Result<_, _>>()?;
    let csr = params.serialize_request(&key).map_err(|e| TlsError::Request(e.to_string()))?;
    Ok(KeyAndCsr { key_pem: key.to_pem(), csr_pem: crate::pem::encode("CERTIFICATE REQUEST", csr.der()) })
}

pub(crate) fn san_type(name: &San) -> Result<SanType, TlsError> {
    let wrong = |text: &str| TlsError::Request(format!("{text:?} cannot be written as a subject alternative name"));
    match name {
        San::Uri(uri) => Ok(SanType::URI(uri.as_str().try_into().map_err(|_| wrong(uri))?)),
        San::Dns(dns) => Ok(SanType::DnsName(dns.as_str().try_into().map_err(|_| wrong(dns))?)),
        San::Ip(ip) => Ok(SanType::IpAddress(*ip)),
    }
}

/// A request as received: its signature is good and its key is of a kind that is signed.
#[derive(Debug)]
pub struct CertificateRequest {
    /// The key to certify.
    pub(crate) public_key: rcgen::SubjectPublicKeyInfo,
    /// Names of kind URI that it asks for.
    pub uris: Vec<String>,
    /// Names of kind DNS that it asks for; also among `other_names`.
    pub dns: Vec<String>,
    /// Names of other kinds that it asks for, as text.
    pub other_names: Vec<String>,
    /// It asks for a certificate that can sign others.
    pub wants_ca: bool,
}

impl CertificateRequest {
    /// Reads a request and checks that whoever sent it holds the key.
    ///
    /// # Errors
    /// When it is over [`MAX_CSR_BYTES`], not a request, its signature is wrong, or its key is not ECDSA P-256, ECDSA P-384
    /// or RSA of 2048 to 8192 bits.
    pub fn from_pem(text: &[u8]) -> Result<Self, TlsError> {
        if text.len() > MAX_CSR_BYTES {
            return Err(TlsError::Request(format!("{} bytes are too many; the limit is {MAX_CSR_BYTES}", text.len())));
        }
        let der = CertificateSigningRequestDer::from_pem_slice(text)
            .map_err(|_| TlsError::Request("it is not PEM with a CERTIFICATE REQUEST block".into()))?;
        Self::from_der(&der)
    }

    fn from_der(der: &[u8]) -> Result<Self, TlsError> {
        let (rest, csr) = X509CertificationRequest::from_der(der)
            .map_err(|e| TlsError::Request(format!("it is not a PKCS#10 request: {e}")))?;
        if !rest.is_empty() {
            return Err(TlsError::Request("there are bytes after the request".into()));
        }
        let key = &csr.certification_request_info.subject_pki;
        check_key(&key.parsed().map_err(|e| TlsError::Request(format!("public key: {e}")))?)?;
        // After the key's size is known, and not before: the check costs what the key says.
        csr.verify_signature()
            .map_err(|_| TlsError::Request("its signature does not verify: the sender does not hold the key".into()))?;
        let public_key = rcgen::SubjectPublicKeyInfo::from_der(key.raw)
            .map_err(|_| TlsError::Request("public key: only RSA, ECDSA P-256 and ECDSA P-384 are signed".into()))?;
        let mut request =
            Self { public_key, uris: Vec::new(), dns: Vec::new(), other_names: Vec::new(), wants_ca: false };
        request.read_extensions(&csr)?;
        Ok(request)
    }

    /// Whether a certificate (DER) is for the key of this request.
    pub fn is_for(&self, certificate: &[u8]) -> bool {
        use rcgen::PublicKeyData;
        use x509_parser::prelude::X509Certificate;
        X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| {
            parsed.public_key().subject_public_key.data.as_ref() == self.public_key.der_bytes()
        })
    }

    fn read_extensions(&mut self, csr: &X509CertificationRequest<'_>) -> Result<(), TlsError> {
        for extension in csr.requested_extensions().into_iter().flatten() {
            match extension {
                ParsedExtension::SubjectAlternativeName(names) => {
                    for name in &names.general_names {
                        match name {
                            GeneralName::URI(uri) => self.uris.push((*uri).to_owned()),
                            GeneralName::DNSName(name) => {
                                self.dns.push((*name).to_owned());
                                self.other_names.push(format!("DNS {name}").chars().take(128).collect());
                            }
                            other => self.other_names.push(format!("{other:?}").chars().take(128).collect()),
                        }
                    }
                }
                ParsedExtension::BasicConstraints(constraints) => self.wants_ca |= constraints.ca,
                ParsedExtension::ParseError { .. } => return Err(TlsError::Request("an extension is broken".into())),
                _ => {}
            }
        }
        Ok(())
    }
}

fn check_key(key: &PublicKey<'_>) -> Result<(), TlsError> {
    match key {
        PublicKey::RSA(rsa) if (MIN_RSA_BITS..=MAX_RSA_BITS).contains(&rsa.key_size()) => Ok(()),
        PublicKey::RSA(rsa) => Err(TlsError::Request(format!(
            "an RSA key of {} bits is not signed; use {MIN_RSA_BITS} to {MAX_RSA_BITS}",
            rsa.key_size()
        ))),
        PublicKey::EC(_) => Ok(()),
        _ => Err(TlsError::Request("public key: only RSA, ECDSA P-256 and ECDSA P-384 are signed".into())),
    }
}
