//! Settings of the workload's side.

use std::path::PathBuf;
use std::time::Duration;
use weft_core::well_known::path;
use weft_identity::SpiffeId;
use weft_tls::KeyKind;

/// Settings of the workload's side.
#[derive(Debug, Clone)]
pub struct SvidConfig {
    /// Where the authority listens: `HOST:PORT`.
    pub ca_address: String,
    /// The name its certificate must have.
    pub ca_server_name: String,
    /// Roots under which the authority's certificate is checked; read again at each request, and when it changes. Beside it
    /// may lie `ca-crl.pem` (revocation lists; else `crl/ca-crl.pem`) and `trust-bundles.json` (roots of other trust domains).
    pub root_cert_path: PathBuf,
    /// Further roots under which peers (not the authority) are checked, PEM; may be empty.
    pub extra_roots_pem: String,
    /// The service-account token; read again at each request, since the kubelet renews it.
    pub token_path: PathBuf,
    /// The identity we must be given; `None` = whatever the authority says we are.
    pub identity: Option<SpiffeId>,
    /// Cluster that the token is of, sent along; may be empty.
    pub cluster_id: String,
    /// Kind of key; ECDSA P-256.
    pub key: KeyKind,
    /// Signer to ask for, of those that the mesh has; empty = its usual one.
    pub signer: String,
    /// Folder to write the secrets to as files; `None` = they stay in memory.
    pub output: Option<PathBuf>,
    /// Lifetime asked for; 24 h. The authority may shorten it.
    pub ttl: Duration,
    /// Share of the lifetime kept in reserve: the next SVID is fetched when so much is left. 0.5.
    pub grace_ratio: f64,
    /// Spread of the fetch around that moment, as a share of the lifetime; 0.05.
    pub jitter: f64,
    /// How often the roots' file is looked at; 5 s.
    pub root_poll: Duration,
    /// Time for one request, connection included; 10 s.
    pub request_timeout: Duration,
}

impl SvidConfig {
    /// The usual settings for an authority at `ca_address`.
    pub fn new(ca_address: impl Into<String>) -> Self {
        Self {
            ca_address: ca_address.into(),
            ca_server_name: "istiod.istio-system.svc".into(),
            root_cert_path: path::ROOT_CERT.into(),
            extra_roots_pem: String::new(),
            token_path: path::TOKEN.into(),
            identity: None,
            cluster_id: String::new(),
            key: KeyKind::EcdsaP256,
            signer: String::new(),
            output: None,
            ttl: Duration::from_secs(24 * 3600),
            grace_ratio: 0.5,
            jitter: 0.05,
            root_poll: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
        }
    }
}
