//! JSON Web Key Sets (RFC 7517) → public keys. A key that cannot be used, or is meant for something else, is left out; a set
//! of which nothing is left checks no token.

use crate::{JwsAlgorithm, JwsCurve, JwsKey};
use serde_json::{Value, json};
use weft_core::Strng;

/// Longest key set, in bytes. Large issuers publish some 20 KiB.
pub const MAX_JWKS: usize = 512 * 1024;
/// Most keys of a set.
pub const MAX_KEYS: usize = 256;

/// The keys of an issuer.
#[derive(Debug, Default)]
pub struct Jwks {
    /// Usable keys, in their order.
    pub keys: Vec<Jwk>,
}

/// A key of an issuer.
#[derive(Debug)]
pub struct Jwk {
    /// Its id, when it has one.
    pub kid: Option<Strng>,
    /// The one algorithm it is for, when it says so.
    pub algorithm: Option<JwsAlgorithm>,
    /// The key.
    pub key: JwsKey,
}

/// Why a key set cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// It is too long to be one.
    #[error("the key set has {0} bytes; at most {MAX_JWKS} are read")]
    TooLong(usize),
    /// It has too many keys.
    #[error("the key set has {0} keys; at most {MAX_KEYS} are read")]
    TooMany(usize),
    /// It is not a key set.
    #[error("{0}; a key set is a JSON object such as {{\"keys\": [{{\"kty\": \"RSA\", …}}]}}")]
    Format(String),
    /// Nothing in it can check a token.
    #[error("no key of the set can check a token: {0}")]
    NoKeys(String),
}

impl Jwks {
    /// Reads a key set; a single key is a set of one.
    ///
    /// # Errors
    /// When it is no key set, is too large, or none of its keys can be used.
    pub fn parse(text: &str) -> Result<Self, JwksError> {
        let keys = usable(text)?.into_iter().map(|(key, _)| key).collect();
        Ok(Self { keys })
    }
}

/// The key set without the keys that cannot be used, as JSON: what any proxy takes. A secret in it, by which whoever reads the
/// configuration could make tokens, is left out as well.
///
/// # Errors
/// As [`Jwks::parse`].
pub fn only_usable(text: &str) -> Result<String, JwksError> {
    let keys: Vec<Value> = usable(text)?.into_iter().map(|(_, json)| json).collect();
    Ok(json!({ "keys": keys }).to_string())
}

/// Usable keys, each with the JSON that it was read from.
fn usable(text: &str) -> Result<Vec<(Jwk, Value)>, JwksError> {
    if text.len() > MAX_JWKS {
        return Err(JwksError::TooLong(text.len()));
    }
    let set: Value = serde_json::from_str(text).map_err(|e| JwksError::Format(format!("not JSON ({e})")))?;
    let list = match (set.get("keys"), set.get("kty")) {
        (Some(Value::Array(list)), _) => list.clone(),
        (None, Some(_)) => vec![set],
        _ => return Err(JwksError::Format("there is no list of keys".into())),
    };
    if list.len() > MAX_KEYS {
        return Err(JwksError::TooMany(list.len()));
    }
    let mut keys = Vec::with_capacity(list.len());
    let mut why = String::from("it is empty");
    for one in list {
        match key(&one) {
            Ok(key) => keys.push((key, one)),
            Err(reason) => why = reason,
        }
    }
    if keys.is_empty() { Err(JwksError::NoKeys(why)) } else { Ok(keys) }
}

fn key(key: &Value) -> Result<Jwk, String> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    if text("use").is_some_and(|purpose| purpose != "sig") {
        return Err("use is not sig".into());
    }
    if let Some(operations) = key.get("key_ops") {
        let verifies = operations.as_array().is_some_and(|list| list.iter().any(|op| op == "verify"));
        if !verifies {
            return Err("key_ops does not hold verify".into());
        }
    }
    let algorithm = match key.get("alg") {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) => Some(
            JwsAlgorithm::by_name(name).ok_or_else(|| format!("algorithm {name:?} is none of RS*, PS*, ES*, EdDSA"))?,
        ),
        Some(_) => return Err("alg is not a string".into()),
    };
    let bytes = |name: &str| {
        let encoded = text(name).ok_or_else(|| format!("{name} is missing"))?;
        base64url(encoded.as_bytes()).ok_or_else(|| format!("{name} is not base64url"))
    };
    let made = match text("kty") {
        Some("RSA") => JwsKey::rsa(&bytes("n")?, &bytes("e")?),
        Some("EC") => {
            let name = text("crv").unwrap_or_default();
            let curve = JwsCurve::by_name(name).ok_or_else(|| format!("curve {name:?} is not known"))?;
            JwsKey::ec(curve, &bytes("x")?, &bytes("y")?)
        }
        Some("OKP") if text("crv") == Some("Ed25519") => JwsKey::ed25519(&bytes("x")?),
        other => return Err(format!("kty {:?} is none of RSA, EC, OKP", other.unwrap_or_default())),
    };
    let made = made.map_err(|error| error.to_string())?;
    if algorithm.is_some_and(|algorithm| !made.fits(algorithm)) {
        return Err("alg does not fit the key".into());
    }
    Ok(Jwk { kid: text("kid").map(Strng::from), algorithm, key: made })
}

/// Base64url without padding (RFC 7515 §2), strictly: no other characters, and no bits to spare.
pub fn base64url(text: &[u8]) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_check_tokens_are_left() {
        let good = r#"{"crv":"P-256","kid":"k","kty":"EC","x":"qyz2pEhQCNijrrbdhzPKw5C62V3lCOprtuZgT-dSqrI","y":"_jyQpz4sWkZ5Oao5Cy-YQ9wzicgxARq8ExFUk6H1hn0"}"#;
        let want = format!("{{\"keys\":[{good}]}}");
        let parsed = |text: &str| text.parse::<Value>().unwrap();
        for set in [
            want.clone(),
            good.to_owned(),
            format!(r#"{{"keys": [{{"kty": "oct", "k": "AAAA"}}, {good}, {{"kty": "RSA", "kid": "1"}}, 7, null]}}"#),
        ] {
            assert_eq!(parsed(&only_usable(&set).unwrap()), parsed(&want), "{set}");
        }
        for none in [r#"{"keys":[{"kty":"RSA"}]}"#, r#"{"keys":[{"kty":"EC","crv":"P-256"}]}"#, r#"{"keys":[7]}"#] {
            assert!(matches!(only_usable(none), Err(JwksError::NoKeys(_))), "{none}");
        }
    }

    #[test]
    fn what_is_no_key_set_says_why() {
        let long = format!("{{\"keys\": [{}]}}", " ".repeat(10 << 20));
        let many = format!("{{\"keys\": [{}{{}}]}}", "{},".repeat(MAX_KEYS));
        for (text, why) in [
            (long.as_str(), "at most 524288 are read"),
            (&many, "at most 256 are read"),
            ("", "not JSON"),
            ("[]", "no list of keys"),
            ("{\"keys\": {}}", "no list of keys"),
            ("{\"keys\": []}", "it is empty"),
            ("{\"keys\": [{\"kty\": \"oct\", \"k\": \"AAAA\"}]}", "kty \"oct\""),
            ("{\"keys\": [{\"kty\": \"RSA\", \"alg\": \"HS256\"}]}", "algorithm \"HS256\""),
            ("{\"keys\": [{\"kty\": \"RSA\", \"use\": \"enc\"}]}", "use is not sig"),
            ("{\"keys\": [{\"kty\": \"RSA\", \"key_ops\": [\"encrypt\"]}]}", "does not hold verify"),
            ("{\"keys\": [{\"kty\": \"RSA\", \"n\": \"AQAB=\", \"e\": \"AQAB\"}]}", "n is not base64url"),
            ("{\"keys\": [{\"kty\": \"RSA\", \"n\": \"AQAB\", \"e\": \"AQAB\"}]}", "has 17 bits"),
            ("{\"keys\": [{\"kty\": \"EC\", \"crv\": \"secp256k1\"}]}", "curve \"secp256k1\""),
        ] {
            let error = Jwks::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{error} / {why}");
        }
        assert!(Jwks::parse(&"[".repeat(100_000)).is_err(), "deep nesting is refused, not followed");
    }
}
