//! A JSON Web Token for the measurement of its check, made by openssl: a key, a signed token, and the filter that knows the key.

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

const KEY: &str = "jwt.key";
const TOKEN: &str = "jwt.token";
const KEYS: &str = "jwt.jwks";
const ISSUER: &str = "issuer@bench.example";

/// Writes the key, the key set and a token into the folder.
pub fn write(folder: &Path) -> Result<()> {
    openssl(folder, &["genrsa", "-out", KEY, "2048"])?;
    let modulus = openssl(folder, &["rsa", "-in", KEY, "-noout", "-modulus"])?;
    let modulus = String::from_utf8(modulus)?;
    let hex = modulus.trim().strip_prefix("Modulus=").context("openssl prints no modulus")?;
    let pairs = hex.as_bytes().chunks(2).map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?));
    let modulus = pairs.collect::<Result<Vec<u8>>>()?;
    let keys = json!({"keys": [{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "bench", "e": "AQAB",
        "n": URL_SAFE_NO_PAD.encode(modulus)}]});
    std::fs::write(folder.join(KEYS), keys.to_string())?;

    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    // Valid until the year 2100.
    let claims = json!({"iss": ISSUER, "sub": "someone", "exp": 4_102_444_800_u64});
    let signed = format!("{}.{}", part(json!({"alg": "RS256", "typ": "JWT", "kid": "bench"})), part(claims));
    std::fs::write(folder.join("jwt.signed"), &signed)?;
    let signature = openssl(folder, &["dgst", "-sha256", "-sign", KEY, "jwt.signed"])?;
    std::fs::write(folder.join(TOKEN), format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))?;
    Ok(())
}

/// The token.
pub fn token(folder: &Path) -> Result<String> {
    Ok(std::fs::read_to_string(folder.join(TOKEN))?)
}

/// The HTTP filter that asks for it.
pub fn filter(folder: &Path) -> Result<Value> {
    let keys = std::fs::read_to_string(folder.join(KEYS))?;
    Ok(json!({"name": "envoy.filters.http.jwt_authn", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": {"bench": {"issuer": ISSUER, "local_jwks": {"inline_string": keys}, "forward": true}},
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "bench"}}]}}))
}

fn openssl(folder: &Path, arguments: &[&str]) -> Result<Vec<u8>> {
    let output =
        Command::new("openssl").args(arguments).current_dir(folder).output().context("cannot start openssl")?;
    if !output.status.success() {
        bail!("openssl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}
