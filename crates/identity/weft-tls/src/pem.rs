//! PEM in and out, with errors that say what is there instead of what was expected.

use crate::TlsError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use zeroize::Zeroize;

/// Largest PEM text: a bundle of a few hundred roots.
const MAX_BYTES: usize = 2 * 1024 * 1024;

/// Every certificate in the text, in order.
///
/// # Errors
/// When there is none, a block is broken, or the text is over 2 MiB.
pub fn certificates(what: &'static str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let ders = sections(what, text, SectionKind::Certificate)?;
    if ders.is_empty() {
        return Err(missing(what, text, "CERTIFICATE"));
    }
    Ok(ders.into_iter().map(CertificateDer::from).collect())
}

/// Every revocation list in the text.
///
/// # Errors
/// As [`certificates`].
pub fn revocation_lists(text: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let what = "certificate revocation list";
    let ders = sections(what, text, SectionKind::Crl)?;
    if ders.is_empty() {
        return Err(missing(what, text, "X509 CRL"));
    }
    Ok(ders.into_iter().map(CertificateRevocationListDer::from).collect())
}

/// The first private key in the text: PKCS#8, PKCS#1 (`RSA PRIVATE KEY`) or SEC1 (`EC PRIVATE KEY`).
///
/// # Errors
/// When there is none, it is encrypted, or the text is over 2 MiB. The message never shows any of the key.
pub fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    let what = "private key";
    bounded(what, text)?;
    let shown = String::from_utf8_lossy(text);
    if shown.contains("BEGIN ENCRYPTED PRIVATE KEY") || shown.contains("Proc-Type: 4,ENCRYPTED") {
        let reason = "it is encrypted; give it without a passphrase (openssl pkey -in KEY -out PLAIN)".into();
        return Err(TlsError::Pem { what, reason });
    }
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        rustls_pki_types::pem::Error::NoItemsFound => missing(what, text, "PRIVATE KEY"),
        other => TlsError::Pem { what, reason: format!("the PEM block is broken: {other}") },
    })
}

/// One block of PEM, lines of 64 characters.
pub fn encode(label: &str, der: &[u8]) -> String {
    let mut base64 = STANDARD.encode(der);
    let mut out = String::with_capacity(base64.len() + base64.len() / 64 + 64);
    out.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    // It may have been a key.
    base64.zeroize();
    out
}

/// A chain of certificates as PEM.
pub fn encode_chain<'a>(chain: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> String {
    chain.into_iter().map(|der| encode("CERTIFICATE", der)).collect()
}

/// The certificates of all texts, each once, in their order; texts that are empty count as none.
///
/// # Errors
/// As [`certificates`].
pub fn merge(what: &'static str, texts: &[&str]) -> Result<String, TlsError> {
    let mut all = Vec::new();
    for text in texts.iter().filter(|text| !text.trim().is_empty()) {
        for der in certificates(what, text.as_bytes())? {
            if !all.contains(&der) {
                all.push(der);
            }
        }
    }
    Ok(encode_chain(&all))
}

/// The revocation lists of all texts, each once, in their order; texts that are empty count as none.
///
/// # Errors
/// As [`revocation_lists`].
pub fn merge_lists(texts: &[&str]) -> Result<String, TlsError> {
    let mut all = Vec::new();
    for text in texts.iter().filter(|text| !text.trim().is_empty()) {
        for der in revocation_lists(text.as_bytes())? {
            if !all.contains(&der) {
                all.push(der);
            }
        }
    }
    Ok(all.iter().map(|der| encode("X509 CRL", der)).collect())
}

fn sections(what: &'static str, text: &[u8], wanted: SectionKind) -> Result<Vec<Vec<u8>>, TlsError> {
    bounded(what, text)?;
    let mut found = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text) {
        let (kind, mut der) = section.map_err(|error| TlsError::Pem {
            what,
            reason: format!("PEM block {} is broken: {error}", found.len() + 1),
        })?;
        match kind == wanted {
            true => found.push(der),
            // Perhaps a key in the same file.
            false => der.zeroize(),
        }
    }
    Ok(found)
}

fn bounded(what: &'static str, text: &[u8]) -> Result<(), TlsError> {
    match text.len() > MAX_BYTES {
        true => {
            Err(TlsError::Pem { what, reason: format!("{} bytes are too many; the limit is {MAX_BYTES}", text.len()) })
        }
        false => Ok(()),
    }
}

fn missing(what: &'static str, text: &[u8], label: &str) -> TlsError {
    let labels: Vec<String> = String::from_utf8_lossy(text)
        .lines()
        .filter_map(|line| line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----").map(str::to_owned))
        .take(4)
        .collect();
    let reason = match (text.is_empty(), labels.is_empty()) {
        (true, _) => format!("it is empty; expected PEM with a {label:?} block"),
        (false, true) => format!("it is not PEM; expected a line -----BEGIN {label}-----"),
        (false, false) => format!("it has no {label:?} block, only {}", labels.join(", ")),
    };
    TlsError::Pem { what, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_what_it_reads() {
        let der = vec![0xab; 200];
        let text = encode("CERTIFICATE", &der);
        assert!(text.lines().all(|line| line.len() <= 64));
        assert_eq!(certificates("chain", text.as_bytes()).unwrap()[0].as_ref(), &der[..]);
    }

    #[test]
    fn says_what_is_wrong() {
        let key = encode("PRIVATE KEY", &[1, 2, 3]);
        let cut = "-----BEGIN CERTIFICATE-----\nAAAA\n";
        for (text, says) in [
            ("", "empty"),
            ("hello", "not PEM"),
            (key.as_str(), "only PRIVATE KEY"),
            (cut, "broken"),
            ("-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n", "broken"),
        ] {
            let error = certificates("chain", text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
        }
        let encrypted = encode("ENCRYPTED PRIVATE KEY", &[1]);
        assert!(private_key(encrypted.as_bytes()).unwrap_err().to_string().contains("encrypted"));
        assert!(private_key(b"").unwrap_err().to_string().contains("empty"));
        assert!(certificates("chain", &vec![b' '; MAX_BYTES + 1]).is_err());
    }
}
