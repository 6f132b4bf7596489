//! Certificate signing requests: making one (a workload's side) and reading one (the authority's side).

use crate::{KeyKind, PrivateKey, TlsError};
use rcgen::{CertificateParams, DistinguishedName, SanType};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use std::net::IpAddr;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry;
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
    /// Its subject, RFC 2253; empty for a workload's.
    pub subject: String,
    /// What was read, without what may have stood around it.
    der: Vec<u8>,
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
        let mut request = Self {
            public_key,
            uris: Vec::new(),
            dns: Vec::new(),
            other_names: Vec::new(),
            wants_ca: false,
            subject: crate::dn::rfc2253(&csr.certification_request_info.subject),
            der: der.to_vec(),
        };
        request.read_extensions(&csr)?;
        Ok(request)
    }

    /// The request as PEM: what was checked, and nothing else that stood in the text.
    pub fn pem(&self) -> String {
        crate::pem::encode("CERTIFICATE REQUEST", &self.der)
    }

    /// Whether the request asks for a certificate with `uri` as its name and for nothing besides: for who passes a request on
    /// to an authority that may grant whatever stands in it. A subject that holds no text, such as the `O=` of Istio's agent,
    /// is no wish.
    ///
    /// # Errors
    /// What it asks for besides: a subject, another extension or name, another attribute.
    pub fn asks_only_for(&self, uri: &str) -> Result<(), TlsError> {
        let (_, csr) = X509CertificationRequest::from_der(&self.der)
            .map_err(|e| TlsError::Request(format!("it is not a PKCS#10 request: {e}")))?;
        let info = &csr.certification_request_info;
        if info.subject.iter_attributes().any(|attribute| !attribute.attr_value().data.is_empty()) {
            let text = format!("it asks for the subject {:?}; a workload asks for its SPIFFE ID alone", self.subject);
            return Err(TlsError::Request(text));
        }
        let extensions = info.iter_attributes().filter_map(|attribute| match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(requested) => Some(&requested.extensions),
            _ => None,
        });
        let san = oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
        if let Some(other) = extensions.flatten().find(|extension| extension.oid != san) {
            let text = format!("it asks for the extension {}; a workload asks for its SPIFFE ID alone", other.oid);
            return Err(TlsError::Request(text));
        }
        // Every byte is accounted for: another parser has nothing left that it could read differently.
        let before = |attributes: &Vec<u8>| {
            let rest = info.raw.strip_suffix(&attributes[..])?;
            let rest = rest.strip_suffix(info.subject_pki.raw)?;
            rest.strip_suffix(info.subject.as_raw()).map(|head| head.ends_with(&[0x02, 0x01, 0x00]))
        };
        match [false, true].iter().any(|critical| before(&name_request(uri, *critical)) == Some(true)) {
            true => Ok(()),
            false => Err(TlsError::Request(format!("it asks for more than, or another thing than, the name {uri}"))),
        }
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

/// The attributes of a request for one name of kind URI, DER (RFC 2986, section 4.1; RFC 2985, section 5.4.2).
fn name_request(uri: &str, critical: bool) -> Vec<u8> {
    const SEQUENCE: u8 = 0x30;
    const EXTENSION_REQUEST: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e];
    const SUBJECT_ALT_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x11];
    const TRUE: &[u8] = &[0x01, 0x01, 0xff];
    let names = tlv(SEQUENCE, &[&tlv(0x86, &[uri.as_bytes()])]);
    let critical = if critical { TRUE } else { &[] };
    let extension = tlv(SEQUENCE, &[SUBJECT_ALT_NAME, critical, &tlv(0x04, &[&names])]);
    let set = tlv(0x31, &[&tlv(SEQUENCE, &[&extension])]);
    tlv(0xa0, &[&tlv(SEQUENCE, &[EXTENSION_REQUEST, &set])])
}

/// One value in DER: tag, length, content.
fn tlv(tag: u8, content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    let mut out = vec![tag];
    let bytes = content.len().to_be_bytes();
    let length: &[u8] = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
    match (content.len(), u8::try_from(length.len())) {
        (0..=0x7f, _) => out.push(length.first().copied().unwrap_or(0)),
        (_, Ok(count)) => {
            out.push(0x80 | count);
            out.extend_from_slice(length);
        }
        // A length has eight bytes at most.
        (_, Err(_)) => {}
    }
    out.extend_from_slice(&content);
    out
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
