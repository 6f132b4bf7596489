//! Which crate may import which: the forbidden edges of ARCHITECTURE.md, read from the manifests.

use crate::run;
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fs;

/// Crates that import no runtime, no I/O, no clock, no randomness.
const PURE: &[&str] = &["weft-core", "weft-identity", "weft-inject", "weft-xds-gen", "weft-route", "weft-authz"];
const IMPURE: &[&str] = &["tokio", "hyper", "h2", "nix", "socket2", "fastrand", "rustls", "tonic", "axum"];

/// An external crate, and the only crates of ours that may import it.
const ONLY: &[(&str, &[&str])] = &[
    ("kube", &["weft-store"]),
    ("rustls", &["weft-tls"]),
    ("tokio-rustls", &["weft-tls"]),
    ("rcgen", &["weft-tls"]),
    ("aws-lc-rs", &["weft-tls"]),
    ("rustls-webpki", &["weft-tls"]),
];

struct Crate {
    /// Folder below `crates/` (`control`, `proxy` …) or `bins`.
    group: String,
    dependencies: Vec<String>,
}

/// Fails with every forbidden edge.
pub fn check() -> Result<()> {
    let crates = read()?;
    let mut wrong = Vec::new();
    for (name, krate) in &crates {
        for dep in &krate.dependencies {
            if let Some(reason) = forbidden(name, krate, dep, &crates) {
                wrong.push(format!("{name} imports {dep}: {reason}"));
            }
        }
    }
    if wrong.is_empty() {
        println!("deps: {} crates, no forbidden edge", crates.len());
        return Ok(());
    }
    bail!("forbidden edges:\n  {}", wrong.join("\n  "))
}

fn forbidden(name: &str, krate: &Crate, dep: &str, crates: &BTreeMap<String, Crate>) -> Option<String> {
    if PURE.contains(&name) && IMPURE.contains(&dep) {
        return Some("the crate is pure".into());
    }
    if let Some((_, allowed)) = ONLY.iter().find(|(external, _)| *external == dep) {
        return (!allowed.contains(&name)).then(|| format!("only {} may", allowed.join(", ")));
    }
    let group = crates.get(dep)?.group.as_str();
    match (krate.group.as_str(), group) {
        ("control", "proxy") | ("proxy", "control") => Some("control plane and data plane meet only in xDS".into()),
        ("proxy", _) if dep == "weft-k8s-api" => Some("the proxy knows xDS, not Kubernetes".into()),
        ("base", "api" | "identity" | "control" | "proxy" | "lab") => Some("base stands before everything".into()),
        (_, "bins") => Some("programs are not libraries".into()),
        _ => None,
    }
}

fn read() -> Result<BTreeMap<String, Crate>> {
    let mut crates = BTreeMap::new();
    let root = run::root();
    let mut groups = vec![("bins".to_string(), root.join("bins"))];
    for group in fs::read_dir(root.join("crates"))? {
        let group = group?;
        groups.push((group.file_name().to_string_lossy().into_owned(), group.path()));
    }
    for (group, folder) in groups {
        for entry in fs::read_dir(folder)? {
            let manifest = entry?.path().join("Cargo.toml");
            if manifest.is_file() {
                let text = fs::read_to_string(&manifest).with_context(|| manifest.display().to_string())?;
                let (name, dependencies) = parse(&text);
                crates.insert(name, Crate { group: group.clone(), dependencies });
            }
        }
    }
    Ok(crates)
}

/// Name and normal dependencies of a manifest. Manifests here are plain: one dependency a line.
fn parse(text: &str) -> (String, Vec<String>) {
    let (mut name, mut dependencies, mut section) = (String::new(), Vec::new(), "");
    for line in text.lines() {
        if line.starts_with('[') {
            section = line;
        } else if section == "[package]" && line.starts_with("name") {
            name = line.split('"').nth(1).unwrap_or_default().to_string();
        } else if section == "[dependencies]" && line.contains('=') {
            let end = line.find(['.', ' ', '=']).unwrap_or(line.len());
            dependencies.push(line[..end].to_string());
        }
    }
    (name, dependencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges() {
        let krate = |group: &str| Crate { group: group.into(), dependencies: vec![] };
        let all = BTreeMap::from([
            ("weft-model".to_string(), krate("control")),
            ("weft-route".to_string(), krate("proxy")),
            ("weft-k8s-api".to_string(), krate("api")),
        ]);
        for (name, group, dep, bad) in [
            ("weft-xds-gen", "control", "weft-route", true),
            ("weft-route", "proxy", "tokio", true),
            ("weft-filter", "proxy", "tokio", false),
            ("weft-filter", "proxy", "weft-k8s-api", true),
            ("weft-filter", "proxy", "kube", true),
            ("weft-store", "control", "kube", false),
        ] {
            assert_eq!(forbidden(name, &krate(group), dep, &all).is_some(), bad, "{name} -> {dep}");
        }
    }

    #[test]
    fn manifests() {
        let (name, deps) = parse(
            "[package]\nname = \"a\"\n[dependencies]\nb.workspace = true\nc = { path = \"x\" }\n[dev-dependencies]\nd.workspace = true\n",
        );
        assert_eq!((name.as_str(), deps), ("a", vec!["b".to_string(), "c".to_string()]));
    }
}
