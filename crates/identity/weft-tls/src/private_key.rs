//! Private keys that sign certificates and requests. The bytes are wiped on drop and never printed.

use crate::{TlsError, pem};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use rustls_pki_types::PrivateKeyDer;
use std::fmt;
use zeroize::Zeroizing;

/// Kind and size of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyKind {
    /// ECDSA on P-256.
    #[default]
    EcdsaP256,
    /// ECDSA on P-384.
    EcdsaP384,
    /// RSA of 2048 bits.
    Rsa2048,
    /// RSA of 3072 bits.
    Rsa3072,
    /// RSA of 4096 bits.
    Rsa4096,
}

/// A private key.
pub struct PrivateKey {
    pair: Pair,
    algorithm: &'static rcgen::SignatureAlgorithm,
    pkcs8: Zeroizing<Vec<u8>>,
}

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl PrivateKey {
    /// A new key.
    ///
    /// # Errors
    /// When the crypto library fails.
    pub fn generate(kind: KeyKind) -> Result<Self, TlsError> {
        let failed = |_| TlsError::Crypto(format!("generating a {kind:?} key failed"));
        let (pair, algorithm) = match kind {
            KeyKind::EcdsaP256 => {
                let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(failed)?;
                (Pair::Ecdsa(pair), &rcgen::PKCS_ECDSA_P256_SHA256)
            }
            KeyKind::EcdsaP384 => {
                let pair = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).map_err(failed)?;
                (Pair::Ecdsa(pair), &rcgen::PKCS_ECDSA_P384_SHA384)
            }
            rsa => {
                let size = match rsa {
                    KeyKind::Rsa4096 => KeySize::Rsa4096,
                    KeyKind::Rsa3072 => KeySize::Rsa3072,
                    _ => KeySize::Rsa2048,
                };
                (Pair::Rsa(RsaKeyPair::generate(size).map_err(failed)?), &rcgen::PKCS_RSA_SHA256)
            }
        };
        Self::with_pkcs8(pair, algorithm)
    }

    /// From PEM: PKCS#8, PKCS#1 or SEC1.
    ///
    /// # Errors
    /// When it is not PEM of a key, or a key of another kind than RSA (2048 to 8192 bits), ECDSA P-256 or P-384.
    pub fn from_pem(text: &[u8]) -> Result<Self, TlsError> {
        let key = pem::private_key(text)?;
        // PKCS#8 says which kind it is; trying each loader is shorter than parsing that here.
        for (curve, algorithm) in [
            (&ECDSA_P256_SHA256_ASN1_SIGNING, &rcgen::PKCS_ECDSA_P256_SHA256),
            (&ECDSA_P384_SHA384_ASN1_SIGNING, &rcgen::PKCS_ECDSA_P384_SHA384),
        ] {
            let pair = match &key {
                PrivateKeyDer::Pkcs8(der) => EcdsaKeyPair::from_pkcs8(curve, der.secret_pkcs8_der()),
                PrivateKeyDer::Sec1(der) => EcdsaKeyPair::from_private_key_der(curve, der.secret_sec1_der()),
                _ => break,
            };
            if let Ok(pair) = pair {
                return Self::with_pkcs8(Pair::Ecdsa(pair), algorithm);
            }
        }
        let rsa = match &key {
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).ok(),
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()).ok(),
            _ => None,
        };
        match rsa {
            Some(pair) => Self::with_pkcs8(Pair::Rsa(pair), &rcgen::PKCS_RSA_SHA256),
            None => Err(TlsError::Key("it cannot be used; use RSA (2048 bits or more), ECDSA P-256 or P-384".into())),
        }
    }

    fn with_pkcs8(pair: Pair, algorithm: &'static rcgen::SignatureAlgorithm) -> Result<Self, TlsError> {
        let failed = |_| TlsError::Crypto("encoding a key failed".into());
        let pkcs8 = match &pair {
            Pair::Ecdsa(pair) => pair.to_pkcs8v1().map_err(failed)?.as_ref().to_vec(),
            Pair::Rsa(pair) => AsDer::<Pkcs8V1Der<'_>>::as_der(pair).map_err(failed)?.as_ref().to_vec(),
        };
        Ok(Self { pair, algorithm, pkcs8: Zeroizing::new(pkcs8) })
    }

    /// The key as PKCS#8 PEM.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(pem::encode("PRIVATE KEY", &self.pkcs8))
    }
}

impl rcgen::PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        match &self.pair {
            Pair::Ecdsa(pair) => pair.public_key().as_ref(),
            Pair::Rsa(pair) => pair.public_key().as_ref(),
        }
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.algorithm
    }
}

impl rcgen::SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Ecdsa(pair) => {
                let signature = pair.sign(&random, message).map_err(|_| rcgen::Error::RingUnspecified)?;
                Ok(signature.as_ref().to_vec())
            }
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map_err(|_| rcgen::Error::RingUnspecified)?;
                Ok(signature)
            }
        }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{PublicKeyData, SigningKey};

    #[test]
    fn round_trip_of_each_kind() {
        for kind in [KeyKind::EcdsaP256, KeyKind::EcdsaP384, KeyKind::Rsa2048] {
            let key = PrivateKey::generate(kind).unwrap();
            let again = PrivateKey::from_pem(key.to_pem().as_bytes()).unwrap();
            assert_eq!(key.der_bytes(), again.der_bytes(), "{kind:?}");
            assert!(!again.sign(b"message").unwrap().is_empty());
        }
    }

    #[test]
    fn other_keys_are_refused() {
        let broken = pem::encode("PRIVATE KEY", &[0x30, 0x00]);
        assert!(matches!(PrivateKey::from_pem(broken.as_bytes()), Err(TlsError::Key(_))));
        assert!(matches!(PrivateKey::from_pem(b"x"), Err(TlsError::Pem { .. })));
    }
}
