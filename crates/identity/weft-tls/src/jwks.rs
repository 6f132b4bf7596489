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

/// The key set as an Envoy is given it: without the keys that Envoy cannot read, for it refuses the whole configuration when
/// none is left, and without secrets. Envoy reads more than [`Jwks::parse`] does: shorter RSA keys, and numbers with padding,
/// which are given without.
///
/// # Errors
/// As [`Jwks::parse`].
pub fn for_envoy(text: &str) -> Result<String, JwksError> {
    let keys = each(text, envoy_key)?;
    Ok(json!({ "keys": keys }).to_string())
}

/// Usable keys, each with the JSON that it was read from.
fn usable(text: &str) -> Result<Vec<(Jwk, Value)>, JwksError> {
    each(text, |one| key(one).map(|key| (key, one.clone())))
}

/// What `read` makes of the keys of a set; one at least.
fn each<T>(text: &str, read: impl Fn(&Value) -> Result<T, String>) -> Result<Vec<T>, JwksError> {
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
    for one in &list {
        match read(one) {
            Ok(key) => keys.push(key),
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

/// Members of a key that are nobody's business (RFC 7518 §6.2.2, §6.3.2, §6.4.1).
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];
/// Lengths of RSA moduli that Envoy takes, in bits.
const ENVOY_RSA: std::ops::RangeInclusive<usize> = 512..=8192;
/// Longest RSA exponent that it takes, in bits.
const ENVOY_EXPONENT: usize = 33;

/// A key as Envoy reads it, its numbers in the one form that everybody reads.
fn envoy_key(key: &Value) -> Result<Value, String> {
    let mut out = key.as_object().ok_or("a key is not an object")?.clone();
    out.retain(|name, _| !PRIVATE.contains(&name.as_str()));
    let algorithm = match out.get("alg") {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) => Some(name.clone()),
        Some(_) => return Err("alg is not a string".into()),
    };
    let fits = |made: JwsKey| match &algorithm {
        Some(name) if !JwsAlgorithm::by_name(name).is_some_and(|known| made.fits(known)) => {
            Err("alg does not fit the key".to_string())
        }
        _ => Ok(()),
    };
    match key.get("kty").and_then(Value::as_str) {
        Some("RSA") => {
            let (n, e) = (number(&mut out, "n", 0)?, number(&mut out, "e", 0)?);
            if algorithm.is_some_and(|name| !name.starts_with("RS") && !name.starts_with("PS")) {
                return Err("alg does not fit the key".into());
            }
            let odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
            if !ENVOY_RSA.contains(&bits(&n)) || !odd(&n) || !(2..=ENVOY_EXPONENT).contains(&bits(&e)) || !odd(&e) {
                return Err(format!("an RSA key of {} bits is none", bits(&n)));
            }
        }
        Some("EC") => {
            let curve = match (out.get("crv").and_then(Value::as_str), algorithm.as_deref()) {
                (Some(name), _) => JwsCurve::by_name(name).ok_or_else(|| format!("curve {name:?} is not known"))?,
                (None, Some("ES384")) => JwsCurve::P384,
                (None, Some("ES512")) => JwsCurve::P521,
                (None, _) => JwsCurve::P256,
            };
            let (x, y) = (number(&mut out, "x", curve.width())?, number(&mut out, "y", curve.width())?);
            fits(JwsKey::ec(curve, &x, &y).map_err(|error| error.to_string())?)?;
        }
        Some("OKP") if key.get("crv").and_then(Value::as_str) == Some("Ed25519") => {
            let x = member(&mut out, "x", |bytes| bytes)?;
            fits(JwsKey::ed25519(&x).map_err(|error| error.to_string())?)?;
        }
        other => return Err(format!("kty {:?} is none of RSA, EC, OKP", other.unwrap_or_default())),
    }
    Ok(Value::Object(out))
}

/// The number of a member, big-endian and of `width` bytes at least.
fn number(of: &mut serde_json::Map<String, Value>, name: &str, width: usize) -> Result<Vec<u8>, String> {
    member(of, name, |bytes| {
        let mut bytes: Vec<u8> = bytes.into_iter().skip_while(|byte| *byte == 0).collect();
        let missing = width.saturating_sub(bytes.len());
        bytes.splice(0..0, std::iter::repeat_n(0, missing));
        bytes
    })
}

/// The bytes of a member in base64url with or without padding; from then on they are there without.
fn member(
    of: &mut serde_json::Map<String, Value>,
    name: &str,
    form: impl Fn(Vec<u8>) -> Vec<u8>,
) -> Result<Vec<u8>, String> {
    use base64::Engine as _;
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::URL_SAFE_NO_PAD};
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true);
    let value = of.get_mut(name).ok_or_else(|| format!("{name} is missing"))?;
    let text = value.as_str().ok_or_else(|| format!("{name} is not text"))?;
    let decoded = GeneralPurpose::new(&base64::alphabet::URL_SAFE, config).decode(text.trim_end_matches('='));
    let bytes = form(decoded.map_err(|_| format!("{name} is not base64url"))?);
    *value = URL_SAFE_NO_PAD.encode(&bytes).into();
    Ok(bytes)
}

/// Bits of a number without leading zero bytes.
fn bits(number: &[u8]) -> usize {
    number.first().map_or(0, |first| number.len() * 8 - first.leading_zeros() as usize)
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
    fn envoys_are_given_what_they_read() {
        let x = "04N0xi21hshyvBp7I167sbE_bXqyqkAPfefdklMO7wY";
        let y = "UI8exy-C06a7DUnjIdENkxeFtHM4-l_41LqEw9nVgmw";
        let ed = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        // 1024 bits, odd: 128 bytes are 171 characters, and one of padding.
        let n = format!("{}8", "z".repeat(170));
        let rsa = json!({"kty": "RSA", "n": n, "e": "AQAB"});
        let ec = json!({"kty": "EC", "crv": "P-256", "x": x, "y": y});
        let with = |key: &Value, name: &str, value: &str| {
            let mut key = key.clone();
            key[name] = value.into();
            key
        };
        for (given, wanted) in [
            (ec.clone(), Some(ec.clone())),
            (rsa.clone(), Some(rsa.clone())),
            (with(&rsa, "n", &format!("{n}=")), Some(rsa.clone())),
            (with(&ec, "x", &format!("{x}=")), Some(ec.clone())),
            (with(&rsa, "d", "AAAA"), Some(rsa.clone())),
            (with(&rsa, "use", "enc"), Some(with(&rsa, "use", "enc"))),
            (json!({"kty": "OKP", "crv": "Ed25519", "x": ed}), Some(json!({"kty": "OKP", "crv": "Ed25519", "x": ed}))),
            (json!({"kty": "EC", "x": x, "y": y}), Some(json!({"kty": "EC", "x": x, "y": y}))),
            (json!({"kty": "oct", "k": "AAAA"}), None),
            (with(&rsa, "alg", "HS256"), None),
            (with(&rsa, "n", "AQAB"), None),
            (with(&rsa, "n", "+/=="), None),
            (with(&rsa, "e", "AQ"), None),
            (with(&ec, "alg", "ES384"), None),
            (with(&ec, "crv", "secp256k1"), None),
            (with(&ec, "y", x), None),
            (json!({"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}), None),
            (json!(7), None),
        ] {
            let made = for_envoy(&json!({"keys": [given]}).to_string());
            let made = made.ok().map(|text| text.parse::<Value>().unwrap()["keys"][0].clone());
            assert_eq!(made, wanted, "{given}");
        }
        // Ours is stricter, and reads what it can of the same set.
        assert!(Jwks::parse(&rsa.to_string()).is_err());
        assert!(Jwks::parse(&for_envoy(&with(&ec, "x", &format!("{x}=")).to_string()).unwrap()).is_ok());
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
