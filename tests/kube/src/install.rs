//! Weft installed: the objects of `weft manifest generate`, with the webhooks led to a weftd outside the cluster.

use crate::cluster::Cluster;
use crate::target;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use weft_k8s_api::{Object, yaml};
use weft_store::client::ApplyOptions;

/// The objects of an installation.
///
/// # Errors
/// When `weft` cannot be run or refuses.
pub fn manifests(args: &[&str]) -> Result<Vec<Object>> {
    let weft = std::env::var_os("WEFT_BIN_DIR").map_or_else(|| target().join("debug"), PathBuf::from).join("weft");
    let out = Command::new(&weft)
        .args(["manifest", "generate"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{}: build it with: cargo build -p weft", weft.display()))?;
    ensure!(out.status.success(), "weft manifest generate: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout)?;
    let documents = yaml::documents(&text, "manifests").map_err(|e| anyhow::anyhow!("{e:?}"))?;
    Ok(documents.into_iter().map(|document| document.object).collect())
}

impl Cluster {
    /// Installs everything but the webhooks.
    ///
    /// # Errors
    /// What the server says of the first object that it refuses.
    pub async fn install(&self) -> Result<()> {
        self.install_with(&[]).await
    }

    /// The same, of an installation with further options of `weft manifest generate`.
    ///
    /// # Errors
    /// When `weft` refuses, or what the server says of the first object that it refuses.
    pub async fn install_with(&self, args: &[&str]) -> Result<()> {
        let all = manifests(args)?;
        self.apply_all(all.iter().filter(|object| !is_webhook(object))).await
    }

    /// Installs the webhooks, answered on a port of this machine.
    ///
    /// # Errors
    /// What the server says of the first object that it refuses.
    pub async fn install_webhooks(&self, port: u16) -> Result<()> {
        let mut hooks: Vec<Object> = manifests(&[])?.into_iter().filter(is_webhook).collect();
        for hook in &mut hooks {
            let entries = hook.body.get_mut("webhooks").and_then(Value::as_array_mut).into_iter().flatten();
            for config in entries.filter_map(|entry| entry.get_mut("clientConfig")) {
                let path = config.pointer("/service/path").and_then(Value::as_str).unwrap_or_default().to_string();
                *config = serde_json::json!({"url": format!("https://localhost:{port}{path}")});
            }
        }
        self.apply_all(hooks.iter()).await
    }

    async fn apply_all(&self, objects: impl Iterator<Item = &Object>) -> Result<()> {
        for object in objects {
            let done = crate::eventually("applied", async || {
                Ok(self.client.apply(object, &ApplyOptions::default()).await.map(drop)?)
            });
            done.await.with_context(|| object.key().to_string())?;
        }
        Ok(())
    }
}

fn is_webhook(object: &Object) -> bool {
    object.group() == "admissionregistration.k8s.io"
}
