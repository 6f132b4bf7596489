//! What is handed out: the SVID and whom to trust, as PEM and ready for handshakes.

use std::collections::BTreeMap;
use weft_identity::{Svid, TrustDomain};
use weft_tls::{CertifiedKey, TlsError, TrustAnchors, pem};

/// Most trust domains that have roots of their own.
const MAX_TRUST_DOMAINS: usize = 256;

/// The secrets of a workload at one time. Immutable: a rotation makes new ones.
#[derive(Debug, Clone)]
pub struct WorkloadSecrets {
    /// The identity document, PEM.
    pub svid: Svid,
    /// The same, ready for handshakes.
    pub certificate: CertifiedKey,
    /// Whom to believe: roots, roots of single trust domains, revocation lists.
    pub trust: TrustAnchors,
    /// The general roots, PEM.
    pub roots_pem: String,
    /// Revocation lists, PEM; empty when there are none.
    pub crl_pem: String,
    /// Roots of single trust domains, PEM; when there are any, no other trust domain is believed.
    pub bundles: BTreeMap<TrustDomain, String>,
    /// Roots that came with the SVID; those of the file are added to them.
    pub(crate) received_roots: String,
    /// Grows with each change.
    pub version: u64,
}

/// Whom the control plane says to trust: what lies in the folder of the roots' file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FileTrust {
    /// `root-cert.pem`.
    pub roots: String,
    /// `ca-crl.pem`; empty when it is not there.
    pub crl: String,
    /// `trust-bundles.json`: roots by trust domain.
    pub bundles: BTreeMap<TrustDomain, String>,
}

impl FileTrust {
    /// Reads the text of `trust-bundles.json`: `{"trust_domains": {"NAME": "PEM", …}}`.
    pub(crate) fn parse_bundles(text: &str) -> Result<BTreeMap<TrustDomain, String>, String> {
        let parsed: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let Some(domains) = parsed.get("trust_domains").and_then(serde_json::Value::as_object) else {
            return Err("it has no object trust_domains".into());
        };
        if domains.len() > MAX_TRUST_DOMAINS {
            return Err(format!("{} trust domains are too many; the limit is {MAX_TRUST_DOMAINS}", domains.len()));
        }
        let read = |(name, pem): (&String, &serde_json::Value)| {
            let domain = TrustDomain::new(name).map_err(|error| error.to_string())?;
            let pem = pem.as_str().ok_or_else(|| format!("trust_domains.{name} is not PEM text"))?;
            Ok((domain, pem.to_owned()))
        };
        domains.iter().map(read).collect()
    }
}

/// Roots that were received and those of the files, as PEM and ready for handshakes.
pub(crate) fn trust(received: &str, file: &FileTrust) -> Result<(String, TrustAnchors), TlsError> {
    let roots_pem = pem::merge("root certificates", &[received, &file.roots])?;
    let mut trust = TrustAnchors::from_pem(roots_pem.as_bytes())?;
    for (domain, roots) in &file.bundles {
        trust = trust.with_trust_domain(domain.clone(), roots.as_bytes())?;
    }
    if !file.crl.trim().is_empty() {
        trust = trust.with_crls(file.crl.as_bytes())?;
    }
    Ok((roots_pem, trust))
}

impl WorkloadSecrets {
    /// The same SVID under the roots that came with it and what the files say.
    pub(crate) fn with_file_trust(&self, file: &FileTrust) -> Result<Self, TlsError> {
        let (roots_pem, trust) = trust(&self.received_roots, file)?;
        let (crl_pem, bundles) = (file.crl.clone(), file.bundles.clone());
        Ok(Self { trust, roots_pem, crl_pem, bundles, version: self.version + 1, ..self.clone() })
    }

    /// Whether the authority that gave the SVID is the one that the roots' file puts first, and the roots that came with it
    /// are those of the file. When not, a rotation is under way and a new SVID is wanted soon.
    pub(crate) fn agrees_with(&self, file_roots: &str) -> bool {
        let certificates = |text: &str| pem::certificates("root certificates", text.as_bytes()).unwrap_or_default();
        let (mut received, mut file) = (certificates(&self.received_roots), certificates(file_roots));
        let Some(first) = file.first().map(|der| pem::encode("CERTIFICATE", der)) else { return true };
        let of_first = TrustAnchors::from_pem(first.as_bytes())
            .is_ok_and(|root| root.verify_chain(self.certificate.chain(), self.svid.not_before).is_ok());
        received.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        file.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        of_first && received == file
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_are_read_and_mistakes_are_named() {
        let read = FileTrust::parse_bundles(r#"{"trust_domains": {"a": "PEM A", "b.example": "PEM B"}}"#).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(read[&TrustDomain::new("a").unwrap()], "PEM A");
        for (text, says) in [
            ("", "EOF"),
            ("{}", "no object trust_domains"),
            (r#"{"trust_domains": {"Not Valid": "x"}}"#, "Not Valid"),
            (r#"{"trust_domains": {"a": 1}}"#, "not PEM text"),
        ] {
            let error = FileTrust::parse_bundles(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
