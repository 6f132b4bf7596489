//! Signing certificates: a root that signs itself, and leaves. Who may have which name is decided elsewhere.

use crate::csr::san_type;
use crate::{CertificateFacts, CertificateRequest, KeyKind, PrivateKey, San, TlsError, pem};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    PublicKeyData, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use std::fmt;
use std::time::{Duration, SystemTime};
use zeroize::Zeroizing;

/// What a root is made of.
#[derive(Debug, Clone)]
pub struct RootParams {
    /// Organisation in its subject; the trust domain.
    pub organization: String,
    /// Kind of key.
    pub key: KeyKind,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
}

/// What a leaf is made of.
#[derive(Debug, Clone)]
pub struct LeafParams {
    /// Names; at least one.
    pub names: Vec<San>,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until; cut to the issuer's own end.
    pub not_after: SystemTime,
}

/// A certificate that was signed.
#[derive(Debug, Clone)]
pub struct IssuedCertificate {
    /// PEM of it alone.
    pub pem: String,
    /// Its facts.
    pub facts: CertificateFacts,
}

/// A certificate authority: its certificate and key.
pub struct Issuer {
    inner: rcgen::Issuer<'static, PrivateKey>,
    certificate: CertificateDer<'static>,
    facts: CertificateFacts,
}

impl Issuer {
    /// A new root that signs itself.
    ///
    /// # Errors
    /// When the crypto library fails.
    pub fn self_signed(params: &RootParams) -> Result<Self, TlsError> {
        let key = PrivateKey::generate(params.key)?;
        let mut root = CertificateParams::default();
        root.distinguished_name = DistinguishedName::new();
        root.distinguished_name.push(DnType::OrganizationName, params.organization.as_str());
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        root.serial_number = Some(serial()?);
        set_times(&mut root, params.not_before, params.not_after);
        let certificate = root.self_signed(&key).map_err(signing_failed)?;
        Self::new(certificate.der().clone(), key)
    }

    /// From PEM: the authority's own certificate (the first of the text) and its key.
    ///
    /// # Errors
    /// When either cannot be read, the certificate is not an authority's, or the key is not its own.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let certificates = pem::certificates("CA certificate", certificate)?;
        Self::new(certificates[0].clone(), PrivateKey::from_pem(key)?)
    }

    fn new(certificate: CertificateDer<'static>, key: PrivateKey) -> Result<Self, TlsError> {
        let what = "CA certificate";
        let facts = CertificateFacts::from_der(what, &certificate)?;
        if !facts.is_ca {
            let reason =
                "it may not sign others (basic constraints CA:FALSE); give the authority's own certificate".into();
            return Err(TlsError::Certificate { what, reason });
        }
        if !holds_key(&certificate, &key)? {
            return Err(TlsError::Key(
                "it does not belong to the CA certificate; the two must be made together".into(),
            ));
        }
        let inner = rcgen::Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|e| TlsError::Certificate { what, reason: e.to_string() })?;
        Ok(Self { inner, certificate, facts })
    }

    /// Facts of the authority's certificate.
    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    /// The authority's certificate, PEM.
    pub fn certificate_pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.certificate)
    }

    /// The authority's key, PKCS#8 PEM.
    pub fn key_pem(&self) -> Zeroizing<String> {
        self.inner.key().to_pem()
    }

    /// Signs the key of a request, with the names given here: nothing but the key is taken from the request.
    ///
    /// # Errors
    /// When there is no name, the time is empty or past the authority's own end, or the crypto library fails.
    pub fn sign_request(&self, request: &CertificateRequest, leaf: &LeafParams) -> Result<IssuedCertificate, TlsError> {
        self.sign(&request.public_key, leaf)
    }

    /// Signs a key.
    ///
    /// # Errors
    /// As [`sign_request`](Self::sign_request).
    pub fn sign_key(&self, key: &PrivateKey, leaf: &LeafParams) -> Result<IssuedCertificate, TlsError> {
        self.sign(key, leaf)
    }

    /// A revocation list of this authority, PEM, that names these certificates (serial numbers as [`CertificateFacts`] has
    /// them) and is good until `until`.
    ///
    /// # Errors
    /// When a serial number is none, `until` is not after `now`, or the crypto library fails.
    pub fn revocation_list(&self, serials: &[&str], now: SystemTime, until: SystemTime) -> Result<String, TlsError> {
        let time = |at: SystemTime| {
            let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(since.as_secs())
        };
        let revoked = |serial: &&str| {
            let bytes: Option<Vec<u8>> =
                (0..serial.len()).step_by(2).map(|i| u8::from_str_radix(serial.get(i..i + 2)?, 16).ok()).collect();
            let bytes = bytes.ok_or_else(|| TlsError::Crypto(format!("{serial:?} is no serial number")))?;
            Ok(rcgen::RevokedCertParams {
                serial_number: SerialNumber::from(bytes),
                revocation_time: time(now),
                reason_code: None,
                invalidity_date: None,
            })
        };
        let list = rcgen::CertificateRevocationListParams {
            this_update: time(now),
            next_update: time(until),
            crl_number: serial()?,
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect::<Result<_, TlsError>>()?,
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        Ok(pem::encode("X509 CRL", list.signed_by(&self.inner).map_err(signing_failed)?.der()))
    }

    fn sign(&self, key: &impl PublicKeyData, leaf: &LeafParams) -> Result<IssuedCertificate, TlsError> {
        let not_after = leaf.not_after.min(self.facts.not_after);
        let not_before = leaf.not_before.max(self.facts.not_before);
        if leaf.names.is_empty() || not_after <= not_before {
            let reason =
                "a certificate needs a name, and an end after its beginning and before the authority's own end";
            return Err(TlsError::Certificate { what: "certificate to sign", reason: reason.into() });
        }
        let mut params = CertificateParams::default();
        // Without a subject the names become critical (RFC 5280, section 4.2.1.6), as an SVID wants them.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = leaf.names.iter().map(san_type).collect::<Result<_, _>>()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        set_times(&mut params, not_before, not_after);
        let certificate = params.signed_by(key, &self.inner).map_err(signing_failed)?;
        let facts = CertificateFacts::from_der("issued certificate", certificate.der())?;
        Ok(IssuedCertificate { pem: pem::encode("CERTIFICATE", certificate.der()), facts })
    }
}

fn signing_failed(error: rcgen::Error) -> TlsError {
    TlsError::Crypto(format!("signing a certificate failed: {error}"))
}

/// 16 random bytes, positive (RFC 5280, section 4.1.2.2: at most 20 octets).
fn serial() -> Result<SerialNumber, TlsError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| TlsError::Crypto("no random numbers".into()))?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn set_times(params: &mut CertificateParams, not_before: SystemTime, not_after: SystemTime) {
    let seconds = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        // Whole seconds: a certificate has no fractions, and rounding up would let it live longer than asked.
        Duration::from_secs(since.as_secs())
    };
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + seconds(not_before);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + seconds(not_after);
}

fn holds_key(certificate: &CertificateDer<'_>, key: &PrivateKey) -> Result<bool, TlsError> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|e| TlsError::Certificate { what: "CA certificate", reason: e.to_string() })?;
    Ok(parsed.public_key().subject_public_key.data.as_ref() == key.der_bytes())
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer").field("facts", &self.facts).finish_non_exhaustive()
    }
}
