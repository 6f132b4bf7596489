//! Certificates, keys and tokens of a test's API server, as files in its folder.

use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};
use weft_tls::issue::{Issuer, LeafParams, RootParams};
use weft_tls::{CertifiedKey, KeyKind, PrivateKey, San};

/// The administrator's bearer token.
pub const ADMIN_TOKEN: &str = "administrator-of-the-test";
/// How long all of it is valid.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// Files of an API server's identity.
pub struct Pki {
    /// The folder.
    pub dir: PathBuf,
    /// Root certificate, PEM.
    pub ca: String,
}

impl Pki {
    /// Makes everything anew.
    ///
    /// # Errors
    /// When a file cannot be written, or `openssl` is not there.
    pub fn create(dir: &Path) -> Result<Self> {
        weft_tls::install_provider();
        let now = SystemTime::now();
        let (not_before, not_after) = (now - Duration::from_secs(300), now + LIFE);
        let root = RootParams { organization: "weft tests".into(), key: KeyKind::EcdsaP256, not_before, not_after };
        let issuer = Issuer::self_signed(&root)?;
        let key = PrivateKey::generate(KeyKind::EcdsaP256)?;
        let names = vec![San::Ip("127.0.0.1".parse()?), San::Dns("localhost".into()), San::Dns("kubernetes".into())];
        let server = issuer.sign_key(&key, &LeafParams { names, not_before, not_after })?;
        let pki = Self { dir: dir.to_path_buf(), ca: issuer.certificate_pem() };
        fs::write(pki.file("ca.crt"), &pki.ca)?;
        fs::write(pki.file("server.crt"), &server.pem)?;
        fs::write(pki.file("server.key"), key.to_pem().as_bytes())?;
        fs::write(pki.file("tokens.csv"), format!("{ADMIN_TOKEN},admin,admin,\"system:masters\"\n"))?;
        pki.account_key()?;
        Ok(pki)
    }

    /// The key that signs service-account tokens: Kubernetes reads public keys of their own.
    fn account_key(&self) -> Result<()> {
        let (key, public) = (self.file("sa.key"), self.file("sa.pub"));
        let (key, public) = (key.to_string_lossy(), public.to_string_lossy());
        for args in [
            &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", &key][..],
            &["pkey", "-in", &key, "-pubout", "-out", &public],
        ] {
            let done = Command::new("openssl").args(args).stdin(Stdio::null()).output().context("openssl")?;
            if !done.status.success() {
                bail!("openssl {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr));
            }
        }
        Ok(())
    }

    /// A file of the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The server's certificate and key.
    ///
    /// # Errors
    /// When the files are gone.
    pub fn server(&self) -> Result<CertifiedKey> {
        Ok(CertifiedKey::from_pem(&fs::read(self.file("server.crt"))?, &fs::read(self.file("server.key"))?)?)
    }

    /// Writes a kubeconfig for `url` with a bearer token, and returns its path.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn kubeconfig(&self, name: &str, url: &str, token: &str) -> Result<PathBuf> {
        let ca = self.file("ca.crt");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: {url:?}, certificate-authority: {ca:?}}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n\
             users: [{{name: test, user: {{token: {token:?}}}}}]\n"
        );
        let path = self.file(&format!("{name}.kubeconfig"));
        fs::write(&path, text)?;
        Ok(path)
    }
}
