//! The world outside the cluster: pods annotated with host names of it (`lab.weft.dev/outside: edition.cnn.com,*.wikipedia.org`).
//! Such a pod has an address outside the pods' network, cluster DNS forwards its names to it, and its containers find a
//! certificate for them in `/etc/outside`, of an authority that all containers of the lab trust like those of the system.
//!
//! Nothing of it is known to the mesh: no Service selects these pods, and their address is like any other host's.

use crate::controllers::objects::addresses_of;
use crate::sandbox::Bind;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use weft_k8s_api::Object;
use weft_tls::{Issuer, KeyKind, LeafParams, PrivateKey, RootParams, San};

/// Annotation with the names, separated by commas; one may begin with `*.`.
pub const ANNOTATION: &str = "lab.weft.dev/outside";
/// Where a container of such a pod finds `tls.crt`, `tls.key` and the authority's `ca.crt`.
const FOLDER: &str = "/etc/outside";
/// Bundles of trusted roots, by distribution; the first that exists is extended.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];
/// Life of the certificates: longer than any lab.
const LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// How far clocks may be behind.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// The authority of the outside, and the bundle that makes containers trust it.
pub struct Outside {
    issuer: Issuer,
    bundle: PathBuf,
}

/// Names of the outside that a pod stands for; none for a pod of the cluster.
pub fn names(annotation: Option<&str>) -> Vec<String> {
    let names = annotation.unwrap_or_default().split(',').map(|name| name.trim().trim_end_matches('.'));
    names.filter(|name| !name.is_empty()).map(str::to_ascii_lowercase).collect()
}

/// Addresses by name, of all pods that stand for something outside and have an address.
pub fn addresses<'a>(pods: impl Iterator<Item = &'a Object>) -> BTreeMap<String, Vec<IpAddr>> {
    let mut all = BTreeMap::<String, Vec<IpAddr>>::new();
    for pod in pods {
        for name in names(pod.annotation(ANNOTATION)) {
            let own = addresses_of(pod).filter_map(|address| address.parse::<IpAddr>().ok());
            all.entry(name).or_default().extend(own);
        }
    }
    all.retain(|_, addresses| !addresses.is_empty());
    all
}

impl Outside {
    /// Makes the authority, and writes the bundle into `folder`.
    ///
    /// # Errors
    /// When the crypto library fails or the file cannot be written.
    pub fn new(folder: &Path) -> Result<Self, String> {
        let (not_before, not_after) = (SystemTime::now() - CLOCK_SKEW, SystemTime::now() + LIFETIME);
        let organization = "weft lab: the world outside".to_string();
        let root = RootParams { organization, key: KeyKind::EcdsaP256, not_before, not_after };
        let issuer = Issuer::self_signed(&root).map_err(|error| error.to_string())?;
        let bundle = folder.join("ca-certificates.crt");
        let system = BUNDLES.iter().find_map(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        let text = format!("{}{system}", issuer.certificate_pem());
        std::fs::write(&bundle, text).map_err(|error| format!("{}: {error}", bundle.display()))?;
        Ok(Self { issuer, bundle })
    }

    /// The system's roots and the authority's.
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// Writes a certificate for `names` into `folder`; what a container sees of it.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate or a file cannot be written.
    pub fn certificate(&self, names: &[String], folder: &Path) -> Result<Bind, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{ANNOTATION}: {error}");
        if let Some(name) = names.iter().find(|name| !is_host_name(name)) {
            return Err(failed(&format!(
                "{name:?} is no host name; write names of letters, digits, `-` and `.`, or `*.NAME`"
            )));
        }
        let (not_before, not_after) = (SystemTime::now() - CLOCK_SKEW, SystemTime::now() + LIFETIME);
        let key = PrivateKey::generate(KeyKind::EcdsaP256).map_err(|error| failed(&error))?;
        let names = names.iter().cloned().map(San::Dns).collect();
        let leaf = LeafParams { names, not_before, not_after };
        let leaf = self.issuer.sign_key(&key, &leaf).map_err(|error| failed(&error))?;
        std::fs::create_dir_all(folder).map_err(|error| failed(&error))?;
        for (name, text) in
            [("tls.crt", leaf.pem.as_str()), ("tls.key", &key.to_pem()), ("ca.crt", &self.issuer.certificate_pem())]
        {
            std::fs::write(folder.join(name), text).map_err(|error| failed(&error))?;
        }
        Ok(Bind { source: folder.to_path_buf(), target: FOLDER.into(), read_only: true })
    }
}

/// A DNS name, or a wildcard of one.
fn is_host_name(name: &str) -> bool {
    let plain = name.strip_prefix("*.").unwrap_or(name);
    !plain.is_empty() && plain.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_and_addresses() {
        let pod = |annotation: &str, address: &str| -> Object {
            serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "x", "namespace": "outside", "annotations": {ANNOTATION: annotation}},
                "status": {"podIPs": [{"ip": address}]}}))
            .unwrap()
        };
        let pods = [pod("Edition.CNN.com., *.wikipedia.org", "198.18.0.2"), pod("edition.cnn.com", "198.18.0.3")];
        let all = addresses(pods.iter().chain([&pod("later.example", ""), &pod("", "10.244.0.2")]));
        assert_eq!(all.keys().collect::<Vec<_>>(), ["*.wikipedia.org", "edition.cnn.com"]);
        assert_eq!(all["edition.cnn.com"].len(), 2);
    }

    #[test]
    fn certificates_are_of_the_bundle_s_authority() {
        let folder = tempfile::tempdir().unwrap();
        let outside = Outside::new(folder.path()).unwrap();
        let bind = outside.certificate(&["*.wikipedia.org".into()], &folder.path().join("pod")).unwrap();
        let own = std::fs::read_to_string(bind.source.join("ca.crt")).unwrap();
        assert!(std::fs::read_to_string(outside.bundle()).unwrap().starts_with(&own));
        assert!(std::fs::read_to_string(bind.source.join("tls.key")).unwrap().contains("PRIVATE KEY"));
        assert!(outside.certificate(&["no name".into()], folder.path()).is_err());
    }
}
