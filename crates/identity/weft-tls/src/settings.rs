//! Versions, cipher suites and key-exchange groups, and the crypto provider made of them.

use crate::TlsError;
use rustls::crypto::aws_lc_rs::{self, cipher_suite as suite, kx_group as group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{SupportedCipherSuite, SupportedProtocolVersion};
use std::sync::{Arc, OnceLock};
use weft_core::Strng;

/// A TLS version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// What may be negotiated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// Least version; TLS 1.2 unless set.
    pub min_version: TlsVersion,
    /// Greatest version; TLS 1.3 unless set.
    pub max_version: TlsVersion,
    /// TLS 1.2 cipher suites by OpenSSL name, most wanted first; empty = the suites of spec 1:SEC-11 that rustls has.
    /// TLS 1.3 suites are not a setting, as in Envoy.
    pub ciphers: Vec<Strng>,
    /// Key-exchange groups (`X25519`, `P-256`, `P-384`, `X25519MLKEM768` …), most wanted first; empty = X25519MLKEM768,
    /// X25519, P-256, P-384.
    pub groups: Vec<Strng>,
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self { min_version: TlsVersion::V1_2, max_version: TlsVersion::V1_3, ciphers: Vec::new(), groups: Vec::new() }
    }
}

/// Read ahead of the network; 64 KiB keep a bulk transfer in few system calls and bound a slow peer's memory.
pub(crate) const BUFFER_LIMIT: usize = 64 * 1024;

/// OpenSSL names of the TLS 1.2 suites that rustls has, in the order of spec 1:SEC-11, then the others.
static TLS12_SUITES: [(&str, SupportedCipherSuite); 6] = [
    ("ECDHE-ECDSA-AES256-GCM-SHA384", suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-AES256-GCM-SHA384", suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-ECDSA-AES128-GCM-SHA256", suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-AES128-GCM-SHA256", suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-CHACHA20-POLY1305", suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];
/// How many of [`TLS12_SUITES`] are on by default.
const DEFAULT_TLS12: usize = 4;

/// AES-128 first, as BoringSSL and Go do: as safe here, and a quarter cheaper.
static TLS13_SUITES: [SupportedCipherSuite; 3] =
    [suite::TLS13_AES_128_GCM_SHA256, suite::TLS13_AES_256_GCM_SHA384, suite::TLS13_CHACHA20_POLY1305_SHA256];

/// Suites without forward secrecy that Istio's list has and rustls does not: left out without an error when others remain.
const KNOWN_ABSENT: [&str; 8] = [
    "AES256-GCM-SHA384",
    "AES128-GCM-SHA256",
    "AES256-SHA",
    "AES128-SHA",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES256-SHA",
];

/// The hybrid first: what is recorded today must not be read by a quantum computer tomorrow. A client sends the X25519
/// share along with it, so a peer without it costs no round trip.
static GROUPS: [(&str, &dyn SupportedKxGroup); 4] = [
    ("X25519MLKEM768", group::X25519MLKEM768),
    ("X25519", group::X25519),
    ("P-256", group::SECP256R1),
    ("P-384", group::SECP384R1),
];

/// Makes the provider the default of the process, for libraries that ask rustls for one. Safe to call more than once.
pub fn install_provider() {
    // An error means that a default is installed already.
    let _ = default_provider().as_ref().clone().install_default();
}

/// The provider of default settings, built once.
pub(crate) fn default_provider() -> Arc<CryptoProvider> {
    static DEFAULT: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    DEFAULT
        .get_or_init(|| {
            let tls12 = TLS12_SUITES[..DEFAULT_TLS12].iter().map(|(_, suite)| *suite);
            Arc::new(CryptoProvider {
                cipher_suites: TLS13_SUITES.iter().copied().chain(tls12).collect(),
                kx_groups: GROUPS.iter().map(|(_, group)| *group).collect(),
                ..aws_lc_rs::default_provider()
            })
        })
        .clone()
}

impl TlsSettings {
    /// The provider that offers what the settings say.
    ///
    /// # Errors
    /// When a name is not known, or nothing remains of a list.
    pub(crate) fn provider(&self) -> Result<Arc<CryptoProvider>, TlsError> {
        if self.ciphers.is_empty() && self.groups.is_empty() {
            return Ok(default_provider());
        }
        let mut provider = default_provider().as_ref().clone();
        if !self.ciphers.is_empty() {
            provider.cipher_suites = TLS13_SUITES.iter().copied().chain(tls12_suites(&self.ciphers)?).collect();
        }
        if !self.groups.is_empty() {
            provider.kx_groups = self.groups.iter().map(|name| kx_group(name)).collect::<Result<_, _>>()?;
        }
        Ok(Arc::new(provider))
    }

    /// The versions to negotiate.
    ///
    /// # Errors
    /// When the least version is above the greatest.
    pub(crate) fn versions(&self) -> Result<&'static [&'static SupportedProtocolVersion], TlsError> {
        use rustls::version::{TLS12, TLS13};
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match (self.min_version, self.max_version) {
            (TlsVersion::V1_2, TlsVersion::V1_3) => Ok(&BOTH),
            (TlsVersion::V1_3, TlsVersion::V1_3) => Ok(&BOTH[..1]),
            (TlsVersion::V1_2, TlsVersion::V1_2) => Ok(&BOTH[1..]),
            (TlsVersion::V1_3, TlsVersion::V1_2) => Err(TlsError::Setting {
                field: "minimum version",
                reason: "1.3 is above the maximum version 1.2; lower the one or raise the other".into(),
            }),
        }
    }
}

fn tls12_suites(names: &[Strng]) -> Result<Vec<SupportedCipherSuite>, TlsError> {
    let wrong = |reason| TlsError::Setting { field: "cipher suites", reason };
    let known = || TLS12_SUITES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let mut suites = Vec::with_capacity(names.len());
    // Envoy writes groups of equal preference in brackets: [A|B].
    for name in names.iter().flat_map(|entry| entry.trim_matches(['[', ']']).split('|')) {
        match TLS12_SUITES.iter().find(|(known, _)| *known == name) {
            Some((_, suite)) => suites.push(*suite),
            None if KNOWN_ABSENT.contains(&name) => {}
            None => return Err(wrong(format!("{name:?} is not known; known are {}", known()))),
        }
    }
    if suites.is_empty() {
        return Err(wrong(format!("none of those given has forward secrecy with AEAD; usable are {}", known())));
    }
    Ok(suites)
}

fn kx_group(name: &str) -> Result<&'static dyn SupportedKxGroup, TlsError> {
    let plain = match name {
        "P256" | "prime256v1" | "secp256r1" => "P-256",
        "P384" | "secp384r1" => "P-384",
        other => other,
    };
    GROUPS.iter().find(|(known, _)| *known == plain).map(|(_, group)| *group).ok_or_else(|| TlsError::Setting {
        field: "key-exchange groups",
        reason: format!("{name:?} is not known; known are X25519MLKEM768, X25519, P-256, P-384"),
    })
}

/// The name that OpenSSL and Envoy use for a suite.
pub(crate) fn openssl_name(negotiated: SupportedCipherSuite) -> &'static str {
    if let Some((name, _)) = TLS12_SUITES.iter().find(|(_, suite)| *suite == negotiated) {
        return name;
    }
    match negotiated.suite() {
        rustls::CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        rustls::CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        rustls::CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(ciphers: &[&str], groups: &[&str]) -> TlsSettings {
        TlsSettings {
            ciphers: ciphers.iter().map(|&s| s.into()).collect(),
            groups: groups.iter().map(|&s| s.into()).collect(),
            ..TlsSettings::default()
        }
    }

    #[test]
    fn defaults_follow_the_list() {
        let provider = settings(&[], &[]).provider().unwrap();
        let names: Vec<_> = provider.cipher_suites.iter().map(|s| openssl_name(*s)).collect();
        let tls12: Vec<_> = names.into_iter().filter(|name| name.starts_with("ECDHE")).collect();
        assert_eq!(tls12, TLS12_SUITES[..4].iter().map(|(name, _)| *name).collect::<Vec<_>>());
        assert_eq!(provider.kx_groups.len(), 4);
    }

    #[test]
    fn names_are_checked() {
        let provider = settings(&["[ECDHE-RSA-AES128-GCM-SHA256|AES128-GCM-SHA256]"], &["P-256"]).provider().unwrap();
        assert_eq!((provider.cipher_suites.len(), provider.kx_groups.len()), (4, 1));
        for (ciphers, groups, says) in [
            (&["NULL-MD5"][..], &[][..], "NULL-MD5"),
            (&["AES128-GCM-SHA256"], &[], "forward secrecy"),
            (&[], &["P-521"], "P-521"),
        ] {
            let error = settings(ciphers, groups).provider().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let upside_down =
            TlsSettings { min_version: TlsVersion::V1_3, max_version: TlsVersion::V1_2, ..Default::default() };
        assert!(upside_down.versions().is_err());
    }
}
