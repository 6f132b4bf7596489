//! How clients get in: the server's own certificate authority, and the kubeconfig that names it.

use base64::Engine;
use serde_json::json;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};
use weft_tls::{
    CertifiedKey, Issuer, KeyKind, LeafParams, PrivateKey, RootParams, San, ServerContext, ServerParams, TlsError,
};

/// Life of a serving certificate; a new one is made at every start.
const LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// How far clocks of clients may be behind.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// A certificate for the server, from an authority made for it alone.
pub struct ServingCertificate {
    /// For [`ApiServerOptions::tls`](crate::ApiServerOptions::tls).
    pub context: ServerContext,
    /// The authority's certificate, PEM: what clients trust.
    pub ca_pem: String,
}

impl ServingCertificate {
    /// Makes an authority and a certificate for these host names and addresses. The authority's key is not kept.
    ///
    /// # Errors
    /// When a name cannot be written into a certificate, or the crypto library fails.
    pub fn issue(hosts: &[&str], addresses: &[IpAddr]) -> Result<Self, TlsError> {
        let (not_before, not_after) = (SystemTime::now() - CLOCK_SKEW, SystemTime::now() + LIFETIME);
        let organization = "weft lab API server".to_string();
        let root = RootParams { organization, key: KeyKind::EcdsaP256, not_before, not_after };
        let issuer = Issuer::self_signed(&root)?;
        let key = PrivateKey::generate(KeyKind::EcdsaP256)?;
        let hosts = hosts.iter().map(|h| San::Dns((*h).to_string()));
        let names = hosts.chain(addresses.iter().map(|a| San::Ip(*a))).collect();
        let leaf = issuer.sign_key(&key, &LeafParams { names, not_before, not_after })?;
        let certificate = CertifiedKey::from_pem(leaf.pem.as_bytes(), key.to_pem().as_bytes())?;
        let alpn = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let params = ServerParams { certificates: vec![certificate], alpn, ..ServerParams::default() };
        Ok(Self { context: ServerContext::build(params)?, ca_pem: issuer.certificate_pem() })
    }
}

/// A kubeconfig (JSON, which is YAML too) with one cluster, user and context of that name. With an `https` URL give the
/// authority's certificate; kubectl does not send tokens to `http` URLs.
pub fn kubeconfig(name: &str, url: &str, ca_pem: Option<&str>, token: &str, namespace: &str) -> String {
    let mut cluster = json!({ "server": url });
    if let Some(pem) = ca_pem {
        cluster["certificate-authority-data"] = base64::engine::general_purpose::STANDARD.encode(pem).into();
    }
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": name,
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}],
    });
    format!("{config:#}\n")
}
