//! Certificates as the documents make them: a root of `example.com` and leaves of it, by `openssl`.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A root and what it has signed, in a folder of its own.
pub struct Certificates {
    folder: tempfile::TempDir,
    serial: std::cell::Cell<u32>,
}

/// Files of a certificate and its key.
pub struct Pair {
    /// Certificate, PEM.
    pub certificate: PathBuf,
    /// Key, PEM.
    pub key: PathBuf,
}

impl Pair {
    /// The certificate's text.
    pub fn certificate_text(&self) -> Result<String> {
        read(&self.certificate)
    }

    /// The key's text.
    pub fn key_text(&self) -> Result<String> {
        read(&self.key)
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// A path as an argument.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

fn openssl(args: &[&str]) -> Result<()> {
    let out = Command::new("openssl").args(args).output().context("openssl is not installed")?;
    ensure!(out.status.success(), "openssl {}: {}", args.join(" "), crate::lab::text(&out.stderr));
    Ok(())
}

impl Certificates {
    /// A new root of `example Inc.`, `CN=example.com`.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn new() -> Result<Self> {
        let made = Self { folder: tempfile::tempdir()?, serial: std::cell::Cell::new(0) };
        let (key, certificate) = (made.file("example.com.key"), made.file("example.com.crt"));
        let subject = "/O=example Inc./CN=example.com";
        openssl(&[
            "req",
            "-x509",
            "-sha256",
            "-nodes",
            "-days",
            "365",
            "-newkey",
            "rsa:2048",
            "-subj",
            subject,
            "-keyout",
            text(&key)?,
            "-out",
            text(&certificate)?,
        ])?;
        Ok(made)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The root's certificate.
    pub fn root(&self) -> PathBuf {
        self.file("example.com.crt")
    }

    /// The root's certificate as text.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn root_text(&self) -> Result<String> {
        read(&self.root())
    }

    /// A leaf for a host name, good for a year.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn leaf(&self, name: &str) -> Result<Pair> {
        self.leaf_for(name, &["-days", "365"])
    }

    /// A leaf that has expired, a second after it was made.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn expired(&self, name: &str) -> Result<Pair> {
        self.leaf_for(name, &["-days", "0"])
    }

    fn leaf_for(&self, name: &str, life: &[&str]) -> Result<Pair> {
        self.serial.set(self.serial.get() + 1);
        let serial = self.serial.get().to_string();
        let file = |ending: &str| self.file(&format!("{name}-{serial}.{ending}"));
        let (key, request, certificate, extra) = (file("key"), file("csr"), file("crt"), file("ext"));
        let subject = format!("/CN={name}/O=some organization");
        openssl(&[
            "req",
            "-nodes",
            "-newkey",
            "rsa:2048",
            "-subj",
            &subject,
            "-keyout",
            text(&key)?,
            "-out",
            text(&request)?,
        ])?;
        std::fs::write(&extra, format!("subjectAltName=DNS:{name}\n"))?;
        let (root, root_key) = (self.root(), self.file("example.com.key"));
        let common = [
            "x509",
            "-req",
            "-CA",
            text(&root)?,
            "-CAkey",
            text(&root_key)?,
            "-set_serial",
            &serial,
            "-in",
            text(&request)?,
            "-extfile",
            text(&extra)?,
            "-out",
            text(&certificate)?,
        ];
        openssl(&[&common[..], life].concat())?;
        Ok(Pair { certificate, key })
    }
}

/// `kubectl create secret tls NAME --cert --key`, as an object.
///
/// # Errors
/// When a file cannot be read.
pub fn tls_secret(namespace: &str, name: &str, pair: &Pair) -> Result<String> {
    let data = json!({"tls.crt": pair.certificate_text()?, "tls.key": pair.key_text()?});
    Ok(secret(namespace, name, "kubernetes.io/tls", &data))
}

/// `kubectl create secret generic NAME --from-file=…`, as an object.
pub fn generic_secret(namespace: &str, name: &str, data: &Value) -> String {
    secret(namespace, name, "Opaque", data)
}

fn secret(namespace: &str, name: &str, kind: &str, data: &Value) -> String {
    let metadata = json!({"name": name, "namespace": namespace});
    json!({"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": metadata, "stringData": data}).to_string()
}

/// `kubectl create configmap NAME --from-file=KEY=…`, as an object.
pub fn config_map(namespace: &str, name: &str, data: &Value) -> String {
    let metadata = json!({"name": name, "namespace": namespace});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}).to_string()
}
