//! What a certificate authority is made of, in the two forms that Secrets hold: self-signed (`istio-ca-secret`) and plugged
//! in (`cacerts`).

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;
use weft_tls::Zeroizing;

/// Largest file read.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Secret of a self-signed authority.
pub const SELF_SIGNED_SECRET: &str = "istio-ca-secret";
/// Secret of an authority that the user plugs in.
pub const PLUGGED_IN_SECRET: &str = "cacerts";

/// Key of the certificate that signs.
pub const CA_CERT: &str = "ca-cert.pem";
/// Key of its private key.
pub const CA_KEY: &str = "ca-key.pem";
/// Key of the roots.
pub const ROOT_CERT: &str = "root-cert.pem";
/// Key of the chain above the certificate that signs.
pub const CERT_CHAIN: &str = "cert-chain.pem";
/// Key of the revocation lists.
pub const CA_CRL: &str = "ca-crl.pem";

/// PEM of an authority.
#[derive(Clone, PartialEq, Eq)]
pub struct CaMaterial {
    /// The certificate that signs.
    pub ca_cert: String,
    /// Its key.
    pub ca_key: Zeroizing<String>,
    /// Root certificates that workloads trust. The certificate that signs, for a self-signed authority.
    pub root_cert: String,
    /// From the certificate that signs to the root, the root left out or not; empty for a self-signed authority.
    pub cert_chain: String,
    /// Revocation lists of every authority of the chain; empty when nothing is revoked by list.
    pub crl: String,
}

/// A Secret that holds no authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MaterialError {
    /// A key is missing.
    #[error(
        "the Secret has no key {key:?}; a CA Secret has {CA_CERT}, {CA_KEY} and, when plugged in, {ROOT_CERT} and {CERT_CHAIN}"
    )]
    Missing {
        /// Which.
        key: &'static str,
    },
    /// A file cannot be read.
    #[error("{path} cannot be read: {reason}")]
    File {
        /// Which.
        path: String,
        /// Why not.
        reason: String,
    },
    /// A value is not text.
    #[error("key {key:?} of the Secret is not PEM text")]
    NotText {
        /// Which.
        key: &'static str,
    },
}

impl CaMaterial {
    /// From the decoded data of a Secret, of either form.
    ///
    /// # Errors
    /// When a key is missing or not text.
    pub fn from_secret(data: &BTreeMap<String, Vec<u8>>) -> Result<Self, MaterialError> {
        let optional = |key: &'static str| match data.get(key) {
            None => Ok(None),
            Some(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Some(text.to_owned())),
                Err(_) => Err(MaterialError::NotText { key }),
            },
        };
        let required =
            |key| optional(key)?.filter(|text| !text.trim().is_empty()).ok_or(MaterialError::Missing { key });
        let ca_cert = required(CA_CERT)?;
        let ca_key = Zeroizing::new(required(CA_KEY)?);
        let root_cert = optional(ROOT_CERT)?.filter(|text| !text.trim().is_empty()).unwrap_or_else(|| ca_cert.clone());
        let cert_chain = optional(CERT_CHAIN)?.unwrap_or_default();
        let crl = optional(CA_CRL)?.filter(|text| !text.trim().is_empty()).unwrap_or_default();
        Ok(Self { ca_cert, ca_key, root_cert, cert_chain, crl })
    }

    /// From files under the names of the Secret's keys, as they lie where the Secret is mounted (`/etc/cacerts`).
    ///
    /// # Errors
    /// As [`from_secret`](Self::from_secret); a file that is there and cannot be read is an error as well.
    pub fn from_files(directory: &Path) -> Result<Self, MaterialError> {
        let mut data = BTreeMap::new();
        for key in [CA_CERT, CA_KEY, ROOT_CERT, CERT_CHAIN, CA_CRL] {
            let path = directory.join(key);
            match read_bounded(&path) {
                Ok(bytes) => _ = data.insert(key.to_owned(), bytes),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(MaterialError::File { path: path.display().to_string(), reason: error.to_string() });
                }
            }
        }
        Self::from_secret(&data)
    }

    /// The data of a Secret, not yet base64. The self-signed form has only certificate and key.
    pub fn to_secret(&self) -> BTreeMap<String, Vec<u8>> {
        let mut data = BTreeMap::from([
            (CA_CERT.to_owned(), self.ca_cert.clone().into_bytes()),
            (CA_KEY.to_owned(), self.ca_key.as_bytes().to_vec()),
        ]);
        if self.root_cert != self.ca_cert {
            data.insert(ROOT_CERT.to_owned(), self.root_cert.clone().into_bytes());
            data.insert(CERT_CHAIN.to_owned(), self.cert_chain.clone().into_bytes());
        }
        if !self.crl.is_empty() {
            data.insert(CA_CRL.to_owned(), self.crl.clone().into_bytes());
        }
        data
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MAX_FILE_BYTES {
        true => Err(io::Error::other(format!("it is larger than {MAX_FILE_BYTES} bytes"))),
        false => Ok(bytes),
    }
}

impl std::fmt::Debug for CaMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaMaterial").field("ca_cert", &self.ca_cert).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(pairs: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect()
    }

    #[test]
    fn both_forms() {
        let own = secret(&[(CA_CERT, "C"), (CA_KEY, "K")]);
        let material = CaMaterial::from_secret(&own).unwrap();
        assert_eq!((material.root_cert.as_str(), material.to_secret()), ("C", own));
        let plugged = secret(&[(CA_CERT, "C"), (CA_KEY, "K"), (ROOT_CERT, "R"), (CERT_CHAIN, "C")]);
        assert_eq!(CaMaterial::from_secret(&plugged).unwrap().to_secret(), plugged);
        assert!(!format!("{material:?}").contains('K'));
    }

    #[test]
    fn missing_keys_are_named() {
        assert_eq!(CaMaterial::from_secret(&secret(&[(CA_CERT, "C")])), Err(MaterialError::Missing { key: CA_KEY }));
        assert_eq!(
            CaMaterial::from_secret(&secret(&[(CA_CERT, " "), (CA_KEY, "K")])),
            Err(MaterialError::Missing { key: CA_CERT })
        );
        let mut broken = secret(&[(CA_CERT, "C")]);
        broken.insert(CA_KEY.to_owned(), vec![0xff]);
        assert_eq!(CaMaterial::from_secret(&broken), Err(MaterialError::NotText { key: CA_KEY }));
    }
}
