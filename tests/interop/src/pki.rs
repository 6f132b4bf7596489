//! Certificates of a mesh: a root, and a SPIFFE certificate for the client's and for the server's side.

use std::path::Path;
use std::time::{Duration, SystemTime};
use weft_tls::{Issuer, KeyKind, LeafParams, PrivateKey, RootParams, San};

/// Writes `ca.crt`, and for `client` and `server` a `.crt` and a `.key`.
///
/// # Panics
/// When the folder cannot be written.
pub fn write(folder: &Path) {
    weft_tls::install_provider();
    let (not_before, not_after) = (SystemTime::now(), SystemTime::now() + Duration::from_hours(1));
    let organization = "cluster.local".to_string();
    let root = RootParams { organization, key: KeyKind::EcdsaP256, not_before, not_after };
    let root = Issuer::self_signed(&root).unwrap();
    std::fs::write(folder.join("ca.crt"), root.certificate_pem()).unwrap();
    for name in ["client", "server"] {
        let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
        let names = vec![San::Uri(format!("spiffe://cluster.local/ns/default/sa/{name}"))];
        let issued = root.sign_key(&key, &LeafParams { names, not_before, not_after }).unwrap();
        std::fs::write(folder.join(format!("{name}.crt")), &issued.pem).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key.to_pem().as_bytes()).unwrap();
    }
}
