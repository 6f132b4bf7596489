//! Secrets named after files of the pod: `file-cert:CERTIFICATE~KEY`, `file-root:FILE` or `file-root:FILE~LISTS` with
//! revocation lists, and `file-root:system` for the roots of the operating system. The control plane names them so when a DestinationRule or Gateway names files.

use std::io;
use std::io::Read as _;
use weft_tls::{CertifiedKey, TlsError, TrustAnchors};

/// Largest file read.
const MAX_SIZE: u64 = 4 << 20;
/// Name of the operating system's roots, in place of a file's.
const SYSTEM: &str = "system";
const CERTIFICATE: &str = "file-cert:";
const ROOTS: &str = "file-root:";

/// What such files hold, PEM.
#[derive(Clone, PartialEq, Eq)]
pub enum FileSecret {
    /// A certificate with its chain, and its key.
    Certificate {
        /// Certificate, then its issuers.
        chain: String,
        /// Private key.
        key: String,
    },
    /// Trusted roots, and revocation lists where the name names some.
    Roots(String, Option<String>),
    /// The same with the operating system's roots.
    SystemRoots(String, Option<String>),
}

impl std::fmt::Debug for FileSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Certificate { .. } => "Certificate",
            Self::Roots(..) => "Roots",
            Self::SystemRoots(..) => "SystemRoots",
        })
    }
}

/// A secret as handshakes need it.
pub enum Ready {
    /// A certificate with its key.
    Certificate(CertifiedKey),
    /// Whom to trust.
    Roots(TrustAnchors),
}

impl FileSecret {
    /// Whether a name is one of files.
    pub fn is_name(name: &str) -> bool {
        name.starts_with(CERTIFICATE) || name.starts_with(ROOTS)
    }

    /// Reads the files that a name names.
    ///
    /// # Errors
    /// When one cannot be read or is larger than 4 MiB, or the name is not as it should be.
    pub fn read(name: &str) -> io::Result<Self> {
        if let Some(files) = name.strip_prefix(ROOTS) {
            let (roots, lists) = files.split_once('~').map_or((files, None), |(roots, lists)| (roots, Some(lists)));
            let lists = lists.map(text).transpose()?;
            if roots != SYSTEM {
                return Ok(Self::Roots(text(roots)?, lists));
            }
            let bundle = weft_tls::SYSTEM_BUNDLES.iter().find_map(|path| text(path).ok());
            let none =
                || io::Error::new(io::ErrorKind::NotFound, "no system roots; install the ca-certificates package");
            return Ok(Self::SystemRoots(bundle.ok_or_else(none)?, lists));
        }
        let files = name.strip_prefix(CERTIFICATE).and_then(|files| files.split_once('~'));
        let wrong = || {
            io::Error::new(io::ErrorKind::InvalidInput, "the name must be file-cert:CERTIFICATE~KEY or file-root:FILE")
        };
        let (chain, key) = files.ok_or_else(wrong)?;
        Ok(Self::Certificate { chain: text(chain)?, key: text(key)? })
    }

    /// The same, ready for handshakes.
    ///
    /// # Errors
    /// When a text is no PEM of the kind that is needed, or certificate and key do not belong together.
    pub fn ready(&self) -> Result<Ready, TlsError> {
        match self {
            Self::Certificate { chain, key } => {
                CertifiedKey::from_pem(chain.as_bytes(), key.as_bytes()).map(Ready::Certificate)
            }
            Self::Roots(text, lists) => with_lists(TrustAnchors::from_pem(text.as_bytes())?, lists.as_deref()),
            // Distributions carry roots that a strict parser refuses.
            Self::SystemRoots(_, lists) => with_lists(TrustAnchors::system()?, lists.as_deref()),
        }
    }
}

fn with_lists(roots: TrustAnchors, lists: Option<&str>) -> Result<Ready, TlsError> {
    match lists {
        Some(lists) => roots.with_crls(lists.as_bytes()).map(Ready::Roots),
        None => Ok(Ready::Roots(roots)),
    }
}

fn text(path: &str) -> io::Result<String> {
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
    let mut text = String::new();
    std::fs::File::open(path).map_err(at)?.take(MAX_SIZE + 1).read_to_string(&mut text).map_err(at)?;
    if text.len() as u64 > MAX_SIZE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{path} is larger than {MAX_SIZE} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        for name in ["cert.pem", "key.pem", "root.pem"] {
            std::fs::write(path(name), name).unwrap();
        }
        let certificate = format!("file-cert:{}~{}", path("cert.pem"), path("key.pem"));
        let want = FileSecret::Certificate { chain: "cert.pem".into(), key: "key.pem".into() };
        assert_eq!(FileSecret::read(&certificate).unwrap(), want);
        let roots = FileSecret::read(&format!("file-root:{}", path("root.pem"))).unwrap();
        assert_eq!(roots, FileSecret::Roots("root.pem".into(), None));
        let both = FileSecret::read(&format!("file-root:{}~{}", path("root.pem"), path("key.pem"))).unwrap();
        assert_eq!(both, FileSecret::Roots("root.pem".into(), Some("key.pem".into())));
        let missing = format!("file-root:{}~/none", path("root.pem"));
        assert!(FileSecret::read(&missing).is_err(), "without its lists it trusts nobody");
        assert!(roots.ready().is_err(), "it is no PEM");
        for (name, said) in [("file-root:/none", "/none"), ("file-cert:/only-one", "CERTIFICATE~KEY")] {
            assert!(FileSecret::read(name).unwrap_err().to_string().contains(said), "{name}");
        }
        assert!(FileSecret::is_name(&certificate) && FileSecret::is_name("file-root:system"));
        assert!(!FileSecret::is_name("default") && !FileSecret::is_name("kubernetes://file-root:x"));
        assert!(!format!("{want:?}").contains("key.pem"), "keys are not shown");
    }
}
