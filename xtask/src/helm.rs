//! Helm for the tests of the charts: built once from its published Go module, kept in the target folder. Its libraries of
//! Kubernetes are those of [`kube`](crate::kube)'s API server, so that Go compiles most of them once for both.

use crate::{kube, run};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::PathBuf;

/// The Go module of ours that names the version.
const MODULE: &str = "tests/kube/helm";
/// Helm's own package of its program.
const PACKAGE: &str = "helm.sh/helm/v4/cmd/helm";
/// Where a build of a release writes the version that the program tells.
const VERSION_AT: &str = "helm.sh/helm/v4/internal/version.version";

/// Helm's program; it is built when it is not there, or when the module has changed since.
pub fn program() -> Result<PathBuf> {
    let folder = run::target().join("kube");
    let (program, stamp) = (folder.join("helm"), folder.join("helm-built-from"));
    let module = run::root().join(MODULE);
    let mut source = String::new();
    for name in ["go.mod", "go.sum"] {
        source += &fs::read_to_string(module.join(name)).with_context(|| format!("{MODULE}/{name}"))?;
    }
    let built = fs::read_to_string(&stamp).is_ok_and(|from| from == source);
    if built && run::works(&program, &["version"]) {
        return Ok(program);
    }
    fs::create_dir_all(&folder)?;
    let version = version(&source).context("go.mod does not require helm.sh/helm/v4")?;
    println!("building helm {version}: minutes, once");
    let out = program.to_str().context("the target directory's path is not UTF-8")?;
    let flags = format!("-ldflags=-s -w -X {VERSION_AT}={version}");
    let go = kube::go()?;
    let go = go.to_str().context("path")?;
    run::with_env(go, &["-C", MODULE, "build", "-trimpath", &flags, "-o", out, PACKAGE], &kube::go_env())?;
    fs::write(&stamp, source)?;
    Ok(program)
}

/// `v4.2.4` of a line `helm.sh/helm/v4 v4.2.4`.
fn version(source: &str) -> Option<&str> {
    let mut lines = source.lines().map(|line| line.trim().trim_start_matches("require "));
    lines.find_map(|line| line.strip_prefix("helm.sh/helm/v4 "))?.split_whitespace().next()
}

/// Writes what the charts have from the code: the definitions of Istio's kinds and the rights to them.
pub fn charts() -> Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let yes = std::path::Path::new("1");
    run::with_env(
        &cargo,
        &["test", "--quiet", "-p", "weft", "--test", "charts", "current"],
        &[("WEFT_UPDATE_CHARTS", yes)],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_comes_from_the_module() {
        let source = "tool helm.sh/helm/v4/cmd/helm\n\nrequire (\n\thelm.sh/helm/v4 v4.2.4 // indirect\n)\n";
        assert_eq!(version(source), Some("v4.2.4"));
        assert_eq!(version("module x"), None);
        let module = fs::read_to_string(run::root().join(MODULE).join("go.mod")).unwrap();
        assert!(version(&module).is_some_and(|v| v.starts_with("v4.")), "{module}");
    }
}
