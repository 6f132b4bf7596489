//! The certificates of one run: a root, and a SPIFFE certificate for the client's side and for the server's.

use anyhow::Result;
use std::path::Path;
use std::time::{Duration, SystemTime};
use weft_tls::{CertifiedKey, Issuer, KeyKind, LeafParams, PrivateKey, RootParams, San, TrustAnchors};

/// Trust domain of every certificate here.
const TRUST_DOMAIN: &str = "cluster.local";

/// What a program of this run shows, and whom it trusts.
pub struct Pki {
    /// The client's certificate and key.
    pub client: CertifiedKey,
    /// The root.
    pub anchors: TrustAnchors,
}

/// Writes `ca.crt`, and for `client` and `server` a `.crt`, a `.key` and a `.pem` of both (haproxy reads that).
pub fn write(folder: &Path) -> Result<Pki> {
    let (not_before, not_after) = (SystemTime::now(), SystemTime::now() + Duration::from_hours(24));
    let organization = TRUST_DOMAIN.to_string();
    let root = Issuer::self_signed(&RootParams { organization, key: KeyKind::EcdsaP256, not_before, not_after })?;
    let root_pem = root.certificate_pem();
    std::fs::write(folder.join("ca.crt"), &root_pem)?;
    let mut keys = Vec::new();
    for name in ["client", "server"] {
        let key = PrivateKey::generate(KeyKind::EcdsaP256)?;
        let names = vec![San::Uri(spiffe(name))];
        let issued = root.sign_key(&key, &LeafParams { names, not_before, not_after })?;
        let key_pem = key.to_pem();
        std::fs::write(folder.join(format!("{name}.crt")), &issued.pem)?;
        std::fs::write(folder.join(format!("{name}.key")), key_pem.as_bytes())?;
        std::fs::write(folder.join(format!("{name}.pem")), format!("{}{}", issued.pem, *key_pem))?;
        keys.push(CertifiedKey::from_pem(issued.pem.as_bytes(), key_pem.as_bytes())?);
    }
    Ok(Pki { client: keys.swap_remove(0), anchors: TrustAnchors::from_pem(root_pem.as_bytes())? })
}

/// The SPIFFE ID of that side.
pub fn spiffe(account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/default/sa/{account}")
}
