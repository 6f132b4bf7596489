//! Signatures of JSON Web Tokens: the algorithms that are accepted, and public keys that check them (RFC 7518 §3, RFC 8037).
//! Knows nothing of JSON, of claims or of who may sign.
//!
//! The list of algorithms is closed and asymmetric. `none` is no algorithm, and a secret that both sides hold (`HS256`) says
//! nothing about who signed: whoever can check a token could have made it.

use crate::TlsError;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED,
    ED25519, EcdsaKeyPair, KeyPair, ParsedPublicKey, RsaParameters,
};
use std::fmt;

/// A signature algorithm that tokens may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JwsAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
    /// Ed25519.
    EdDsa,
}

impl JwsAlgorithm {
    /// By its name in a token or key, which is case-sensitive (RFC 7515 §4.1.1).
    pub fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }

    fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Self::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
            _ => return None,
        })
    }
}

/// Elliptic curves of [`JwsKey::ec`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JwsCurve {
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
    /// NIST P-521.
    P521,
}

impl JwsCurve {
    /// By its name in a key.
    pub fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "P-256" => Self::P256,
            "P-384" => Self::P384,
            "P-521" => Self::P521,
            _ => return None,
        })
    }

    /// Bytes of a coordinate.
    pub(crate) fn width(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }
}

/// A public key that checks signatures of tokens.
pub struct JwsKey(Kind);

enum Kind {
    Rsa(PublicKeyComponents<Vec<u8>>),
    Other(JwsAlgorithm, ParsedPublicKey),
}

impl fmt::Debug for JwsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Rsa(_) => "JwsKey(RSA)",
            Kind::Other(algorithm, _) => return write!(f, "JwsKey({algorithm:?})"),
        })
    }
}

impl JwsKey {
    /// An RSA key of 2048 to 8192 bits, from modulus and exponent as big-endian bytes.
    ///
    /// # Errors
    /// When the modulus has another size or is even, the exponent is not odd or below 3, or the key was made by generators
    /// whose keys can be factored (CVE-2017-15361).
    pub fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, TlsError> {
        let n = without_leading_zeros(modulus);
        let e = without_leading_zeros(exponent);
        let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
        if !(2048..=8192).contains(&bits) {
            return Err(TlsError::Key(format!("an RSA key has {bits} bits; it must have 2048 to 8192")));
        }
        if n.last().is_none_or(|last| last % 2 == 0) {
            return Err(TlsError::Key("an RSA modulus is even".into()));
        }
        if e.is_empty() || e.len() > 8 || e == [1] || e.last().is_none_or(|last| last % 2 == 0) {
            return Err(TlsError::Key("an RSA exponent must be odd, at least 3 and at most 64 bits long".into()));
        }
        if has_roca_fingerprint(n) {
            return Err(TlsError::Key("an RSA key is of the kind that can be factored (CVE-2017-15361)".into()));
        }
        Ok(Self(Kind::Rsa(PublicKeyComponents { n: n.to_vec(), e: e.to_vec() })))
    }

    /// A point of a curve.
    ///
    /// # Errors
    /// When a coordinate has another width than the curve's, or the point is not on the curve.
    pub fn ec(curve: JwsCurve, x: &[u8], y: &[u8]) -> Result<Self, TlsError> {
        // RFC 7518 §6.2.1.2: the full size of a coordinate, leading zeros included.
        if x.len() != curve.width() || y.len() != curve.width() {
            return Err(TlsError::Key(format!("coordinates of {curve:?} have {} bytes", curve.width())));
        }
        let mut point = Vec::with_capacity(1 + x.len() + y.len());
        point.push(4);
        point.extend_from_slice(x);
        point.extend_from_slice(y);
        let (algorithm, how) = match curve {
            JwsCurve::P256 => (JwsAlgorithm::Es256, &ECDSA_P256_SHA256_FIXED),
            JwsCurve::P384 => (JwsAlgorithm::Es384, &ECDSA_P384_SHA384_FIXED),
            JwsCurve::P521 => (JwsAlgorithm::Es512, &ECDSA_P521_SHA512_FIXED),
        };
        let key = ParsedPublicKey::new(how, point)
            .map_err(|_| TlsError::Key(format!("the point is not on the curve {curve:?}")))?;
        Ok(Self(Kind::Other(algorithm, key)))
    }

    /// An Ed25519 key.
    ///
    /// # Errors
    /// When it has not 32 bytes.
    pub fn ed25519(x: &[u8]) -> Result<Self, TlsError> {
        let key = ParsedPublicKey::new(&ED25519, x).map_err(|_| TlsError::Key("an Ed25519 key has 32 bytes".into()))?;
        Ok(Self(Kind::Other(JwsAlgorithm::EdDsa, key)))
    }

    /// True when signatures of this algorithm can come from the key at all.
    pub fn fits(&self, algorithm: JwsAlgorithm) -> bool {
        match &self.0 {
            Kind::Rsa(_) => algorithm.rsa().is_some(),
            Kind::Other(own, _) => *own == algorithm,
        }
    }

    /// True when `signature` is this key's over `message`.
    pub fn verifies(&self, algorithm: JwsAlgorithm, message: &[u8], signature: &[u8]) -> bool {
        match &self.0 {
            Kind::Rsa(key) => algorithm.rsa().is_some_and(|how| key.verify(how, message, signature).is_ok()),
            Kind::Other(own, key) => *own == algorithm && key.verify_sig(message, signature).is_ok(),
        }
    }
}

/// A key pair for ES256: signs tokens of tests and samples.
pub struct JwsSigner(EcdsaKeyPair);

impl fmt::Debug for JwsSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JwsSigner(ES256)")
    }
}

impl JwsSigner {
    /// A new pair.
    ///
    /// # Errors
    /// When the library cannot make one.
    pub fn generate() -> Result<Self, TlsError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        pair.map(Self).map_err(|_| TlsError::Crypto("no key pair could be made".into()))
    }

    /// Coordinates of the public point.
    pub fn point(&self) -> (&[u8], &[u8]) {
        // Uncompressed: a byte 4, then both coordinates.
        self.0.public_key().as_ref().get(1..).unwrap_or_default().split_at(JwsCurve::P256.width())
    }

    /// The signature over `message`.
    ///
    /// # Errors
    /// When the library cannot make one.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TlsError> {
        let made = self.0.sign(&SystemRandom::new(), message);
        made.map(|s| s.as_ref().to_vec()).map_err(|_| TlsError::Crypto("the signature could not be made".into()))
    }
}

fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|b| **b == 0).count();
    &bytes[zeros..]
}

/// Keys of the weak generator are powers of 65537 modulo each of these primes ("The Return of Coppersmith's Attack", 2017,
/// §2.3). A sound key is so for all of them with a chance below 2^-27.
fn has_roca_fingerprint(modulus: &[u8]) -> bool {
    const PRIMES: [u32; 17] = [11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157];
    PRIMES.iter().all(|prime| {
        let rest = modulus.iter().fold(0u32, |rest, byte| (rest * 256 + u32::from(*byte)) % prime);
        let mut power = 1;
        for _ in 0..*prime {
            if power == rest {
                return true;
            }
            power = power * (65537 % prime) % prime;
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::Ed25519KeyPair;

    #[test]
    fn a_signature_fits_its_key_algorithm_and_message() {
        let pair = JwsSigner::generate().unwrap();
        let (x, y) = pair.point();
        let key = JwsKey::ec(JwsCurve::P256, x, y).unwrap();
        let made = pair.sign(b"text").unwrap();
        assert!(key.verifies(JwsAlgorithm::Es256, b"text", &made));
        assert!(!key.verifies(JwsAlgorithm::Es256, b"other", &made));
        assert!(!key.verifies(JwsAlgorithm::Es384, b"text", &made) && !key.fits(JwsAlgorithm::Rs256));
        assert!(JwsKey::ec(JwsCurve::P256, x, x).is_err(), "not on the curve");
        assert!(JwsKey::ec(JwsCurve::P384, x, y).is_err(), "too short");

        let pair = Ed25519KeyPair::generate().unwrap();
        let key = JwsKey::ed25519(pair.public_key().as_ref()).unwrap();
        assert!(key.verifies(JwsAlgorithm::EdDsa, b"text", pair.sign(b"text").as_ref()));
        assert!(JwsKey::ed25519(&[1; 31]).is_err());
    }

    #[test]
    fn weak_rsa_keys_are_refused() {
        let odd = |bytes: usize| [vec![0xc1; bytes - 1], vec![1]].concat();
        for (modulus, exponent, fine) in [
            (odd(256), &[1u8, 0, 1][..], true),
            ([vec![0], odd(256)].concat(), &[0, 3], true),
            (odd(128), &[1, 0, 1], false),
            (odd(2000), &[1, 0, 1], false),
            (odd(256), &[1], false),
            (odd(256), &[4], false),
            (odd(256), &[], false),
            (vec![0xc0; 256], &[1, 0, 1], false),
            (Vec::new(), &[1, 0, 1], false),
        ] {
            assert_eq!(JwsKey::rsa(&modulus, exponent).is_ok(), fine, "{} bytes, {exponent:?}", modulus.len());
        }
    }

    #[test]
    fn names_of_algorithms_are_a_closed_list() {
        for name in ["none", "None", "HS256", "HS512", "rs256", "ES256K", "RS1", "", "RSA1_5"] {
            assert_eq!(JwsAlgorithm::by_name(name), None, "{name}");
        }
        assert_eq!(JwsAlgorithm::by_name("PS512"), Some(JwsAlgorithm::Ps512));
    }
}
