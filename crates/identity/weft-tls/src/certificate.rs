//! What a certificate says: names, times, subject. Parsing only; whether to believe it is `verify`'s matter.

use crate::{TlsError, dn, pem};
use rustls_pki_types::CertificateDer;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};
use weft_core::Strng;
use weft_identity::SpiffeId;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Most names read from one certificate; more are refused.
const MAX_NAMES: usize = 1000;

/// Facts of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Subject, RFC 2253.
    pub subject: String,
    /// Issuer, RFC 2253.
    pub issuer: String,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
    /// Subject alternative names of kind URI.
    pub uris: Vec<Strng>,
    /// … of kind DNS.
    pub dns: Vec<Strng>,
    /// … of kind e-mail.
    pub emails: Vec<Strng>,
    /// … of kind IP address.
    pub ips: Vec<IpAddr>,
    /// May sign other certificates.
    pub is_ca: bool,
}

impl CertificateFacts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// When it is not one, or a name in it is not well-formed (such as a DNS name with a NUL in it).
    pub fn from_der(what: &'static str, der: &[u8]) -> Result<Self, TlsError> {
        let wrong = |reason: String| TlsError::Certificate { what, reason };
        let (rest, cert) =
            X509Certificate::from_der(der).map_err(|e| wrong(format!("it is not an X.509 certificate: {e}")))?;
        if !rest.is_empty() {
            return Err(wrong("there are bytes after the certificate".into()));
        }
        let mut facts = Self {
            subject: dn::rfc2253(cert.subject()),
            issuer: dn::rfc2253(cert.issuer()),
            serial: crate::hex(cert.raw_serial()),
            not_before: time(cert.validity().not_before.timestamp()),
            not_after: time(cert.validity().not_after.timestamp()),
            uris: Vec::new(),
            dns: Vec::new(),
            emails: Vec::new(),
            ips: Vec::new(),
            is_ca: cert.is_ca(),
        };
        let names = cert.subject_alternative_name().map_err(|e| wrong(format!("subject alternative names: {e}")))?;
        if let Some(names) = names {
            facts.read_names(&names.value.general_names).map_err(wrong)?;
        }
        Ok(facts)
    }

    fn read_names(&mut self, names: &[GeneralName<'_>]) -> Result<(), String> {
        if names.len() > MAX_NAMES {
            return Err(format!("{} subject alternative names are too many; the limit is {MAX_NAMES}", names.len()));
        }
        for name in names {
            match name {
                GeneralName::URI(text) => self.uris.push(name_text(text)?),
                GeneralName::DNSName(text) => self.dns.push(name_text(text)?),
                GeneralName::RFC822Name(text) => self.emails.push(name_text(text)?),
                GeneralName::IPAddress(bytes) => self.ips.push(ip(bytes)?),
                GeneralName::Invalid(..) => return Err("a subject alternative name is broken".into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// The SPIFFE ID: the one URI name (X509-SVID, section 2: exactly one), when it is a SPIFFE ID.
    pub fn spiffe_id(&self) -> Option<SpiffeId> {
        match self.uris.as_slice() {
            [uri] => SpiffeId::parse(uri).ok(),
            _ => None,
        }
    }

    /// Whether a DNS name of the certificate stands for `host`: equal without regard to case, or by a wildcard that is the
    /// whole first label and stands for one label (RFC 6125, section 6.4.3).
    pub fn dns_matches(&self, host: &str) -> bool {
        self.dns.iter().any(|pattern| dns_pattern_matches(pattern, host))
    }
}

/// Whether `pattern` of a certificate stands for `host`.
pub fn dns_pattern_matches(pattern: &str, host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    match pattern.strip_prefix("*.") {
        None => pattern.eq_ignore_ascii_case(host),
        Some(suffix) => match host.split_once('.') {
            Some((first, rest)) => !first.is_empty() && suffix.contains('.') && rest.eq_ignore_ascii_case(suffix),
            None => false,
        },
    }
}

fn name_text(text: &str) -> Result<Strng, String> {
    // A NUL or other control character in a name is an attack on whoever compares it as a C string.
    match text.is_empty() || !text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        true => Err("a subject alternative name is empty or has characters that are not printable ASCII".into()),
        false => Ok(text.into()),
    }
}

fn ip(bytes: &[u8]) -> Result<IpAddr, String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    let v6: [u8; 16] = bytes.try_into().map_err(|_| "an IP address name is neither 4 nor 16 bytes".to_owned())?;
    Ok(v6.into())
}

fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// The certificate a peer showed. Names and times are read at once; digest and PEM on demand.
#[derive(Debug, Clone)]
pub struct PeerCertificate {
    facts: CertificateFacts,
    chain: Vec<CertificateDer<'static>>,
    sha256: OnceLock<String>,
}

impl PeerCertificate {
    /// From the chain a peer showed, leaf first.
    ///
    /// # Errors
    /// When the chain is empty or its leaf cannot be read.
    pub fn from_chain(chain: &[CertificateDer<'_>]) -> Result<Self, TlsError> {
        let what = "peer certificate";
        let leaf = chain.first().ok_or_else(|| TlsError::Certificate { what, reason: "the chain is empty".into() })?;
        let facts = CertificateFacts::from_der(what, leaf)?;
        Ok(Self { facts, chain: chain.iter().map(|der| der.clone().into_owned()).collect(), sha256: OnceLock::new() })
    }

    /// The facts.
    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    /// SHA-256 of the leaf's DER, lower-case hex.
    pub fn sha256(&self) -> &str {
        self.sha256.get_or_init(|| crate::hex(&crate::sha256(self.der())))
    }

    /// SHA-256 of the leaf's public key (SubjectPublicKeyInfo, DER).
    pub fn key_sha256(&self) -> [u8; 32] {
        match x509_parser::parse_x509_certificate(self.der()) {
            Ok((_, parsed)) => crate::sha256(parsed.tbs_certificate.subject_pki.raw),
            // It was read when the value was made.
            Err(_) => [0; 32],
        }
    }

    /// DER of the leaf.
    pub fn der(&self) -> &[u8] {
        self.chain.first().map_or(&[], |der| der.as_ref())
    }

    /// The leaf as PEM, URL-encoded, as `Cert=` of `x-forwarded-client-cert` wants it.
    pub fn pem_url_encoded(&self) -> String {
        url_encode(&pem::encode("CERTIFICATE", self.der()))
    }

    /// The chain as PEM, URL-encoded, as `Chain=` of `x-forwarded-client-cert` wants it.
    pub fn chain_pem_url_encoded(&self) -> String {
        url_encode(&pem::encode_chain(&self.chain))
    }
}

impl Deref for PeerCertificate {
    type Target = CertificateFacts;

    fn deref(&self) -> &CertificateFacts {
        &self.facts
    }
}

/// Everything but unreserved characters (RFC 3986, section 2.3) as `%XX`.
fn url_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 5 / 4);
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_one_label() {
        for (pattern, host, matches) in [
            ("a.example.com", "A.Example.com", true),
            ("a.example.com", "a.example.com.", true),
            ("*.example.com", "b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "a.b.example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.com", "example.com", false),
            ("b*.example.com", "bar.example.com", false),
            ("*", "anything", false),
        ] {
            assert_eq!(dns_pattern_matches(pattern, host), matches, "{pattern} {host}");
        }
    }

    #[test]
    fn names_with_control_characters_are_refused() {
        for bad in ["", "a\0b", "a\nb", "ä"] {
            assert!(name_text(bad).is_err(), "{bad:?}");
        }
        assert_eq!(url_encode("-----A+/=\n"), "-----A%2B%2F%3D%0A");
    }
}
